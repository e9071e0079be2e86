//! The endpoint on a peer that is alone, asked over TCP.

mod attacks;
mod events;
mod messages;
mod pipelines;
mod probes;
mod reader;
mod together;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use warmhop::config::SessionPolicy;
use warmhop::identity::Authority;
use warmhop::ids::{AppName, PeerId};
use warmhop::{Builder, Mesh};

use super::carrier::Carrier;
use super::engine::Database;
use super::events::Events;
use super::frame::{Incoming, ProtocolError, REQUEST_BYTES_MAX, Reply, VALUE_BYTES_MAX};
use super::shared::Shared;

const PATIENCE: Duration = Duration::from_secs(20);
const IDLE: Duration = Duration::from_secs(1800);
const WRONG: &str = "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";

struct Client(TcpStream);

async fn mesh() -> (Mesh, AppName) {
    let mut peers = mesh_of(1).await;
    (peers.remove(0), AppName::new(super::NAME).unwrap())
}

/// So many peers that see each other.
async fn mesh_of(peers: usize) -> Vec<Mesh> {
    let authority = Authority::generate("test").unwrap();
    let mut mesh: Vec<Mesh> = Vec::new();
    for index in 0..peers {
        let mut builder = builder(&authority, index);
        if let Some(first) = mesh.first() {
            builder = builder.seed(first.mesh_addr().to_string());
        }
        mesh.push(builder.start().await.unwrap());
    }
    all_see_each_other(&mesh).await;
    mesh
}

fn builder(authority: &Authority, index: usize) -> Builder {
    let peer = PeerId::new(&format!("peer-{index}")).unwrap();
    let identity = authority.issue(&peer).unwrap();
    Mesh::builder(identity).registers(AppName::new(super::NAME).unwrap())
}

async fn all_see_each_other(mesh: &[Mesh]) {
    let seen = |it: &Mesh| it.status().peers.iter().filter(|it| it.alive).count() + 1;
    let late = Instant::now() + PATIENCE;
    while !mesh.iter().all(|it| seen(it) == mesh.len()) {
        assert!(Instant::now() < late, "they do not see each other");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A peer that can be stopped as a process is by SIGSTOP: it says no goodbye, and its socket stays.
async fn stoppable(builder: Builder) -> (Mesh, oneshot::Sender<()>) {
    let (started, starting) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mesh = runtime.block_on(builder.start()).unwrap();
        assert!(started.send(mesh).is_ok());
        runtime.block_on(stopped).unwrap();
        std::mem::forget(runtime);
    });
    (starting.await.unwrap(), stop)
}

/// What clients share of an endpoint that is alone.
fn quiet() -> Shared {
    Shared::new(IDLE, Events::default(), Arc::new(Carrier::default()))
}

/// Serves the keys of `mesh` at an address.
async fn serve(mesh: &Mesh) -> std::net::SocketAddr {
    serve_telling(mesh, "").await
}

/// As [`serve`], where such changes of keys are published.
async fn serve_telling(mesh: &Mesh, events: &str) -> std::net::SocketAddr {
    let events = events.parse().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let registers = mesh.registers(&AppName::new(super::NAME).unwrap()).unwrap();
    let stays = CancellationToken::new();
    tokio::spawn(super::serve(listener, mesh.clone(), registers, IDLE, events, stays));
    addr
}

/// A peer, its endpoint, and a client of it.
async fn endpoint() -> (Mesh, Client) {
    let (mesh, _) = mesh().await;
    let addr = serve(&mesh).await;
    (mesh, Client(TcpStream::connect(addr).await.unwrap()))
}

fn request(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Several short bulk strings, as an array.
fn array(parts: &[&str]) -> String {
    let mut text = format!("*{}\r\n", parts.len());
    for part in parts {
        text.push_str(&bulk(part));
    }
    text
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Reads exactly `expected`.
    async fn reads(&mut self, expected: &str) {
        let mut bytes = vec![0; expected.len()];
        let read = tokio::time::timeout(PATIENCE, self.0.read_exact(&mut bytes)).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(matches!(read, Ok(Ok(_))) && text == expected, "{text:?}, not {expected:?}");
    }

    /// Sends a command and reads its whole reply.
    async fn asks(&mut self, command: &str, expected: impl AsRef<str>) {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        self.send(&request(&words)).await;
        self.reads(expected.as_ref()).await;
    }

    /// Reads a line.
    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        let reading = async {
            while !line.ends_with(b"\r\n") {
                line.push(self.0.read_u8().await.unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("a line");
        String::from_utf8(line).unwrap()
    }

    /// Reads so many arrays of bulk strings.
    async fn arrays(&mut self, count: usize) -> String {
        let mut text = String::new();
        for _ in 0..count {
            let head = self.line().await;
            let parts: usize = head[1..].trim_end().parse().expect("the head of an array");
            text.push_str(&head);
            for _ in 0..2 * parts {
                text.push_str(&self.line().await);
            }
        }
        text
    }

    /// Reads an array of a bulk string and a number: the number.
    async fn name_and_number(&mut self) -> i64 {
        let mut line = String::new();
        for _ in 0..4 {
            line = self.line().await;
        }
        line[1..].trim_end().parse().expect("a number")
    }

    /// Reads to the end of the connection.
    async fn rest(&mut self) -> String {
        let mut text = String::new();
        let read = tokio::time::timeout(PATIENCE, self.0.read_to_string(&mut text)).await;
        read.expect("the connection ends").unwrap();
        text
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strings_are_set_read_changed_and_deleted() {
    let (_mesh, mut it) = endpoint().await;
    it.asks("GET a", "$-1\r\n").await;
    it.asks("SET a 1", "+OK\r\n").await;
    it.asks("GET a", bulk("1")).await;
    it.asks("SET a 2 NX", "$-1\r\n").await;
    it.asks("SET a 2 XX GET", bulk("1")).await;
    it.asks("SETNX a 3", ":0\r\n").await;
    it.asks("GETSET a 5", bulk("2")).await;
    it.asks("INCRBY a 10", ":15\r\n").await;
    it.asks("DECR a", ":14\r\n").await;
    it.asks("APPEND a 0", ":3\r\n").await;
    it.asks("STRLEN a", ":3\r\n").await;
    it.asks("MSET b x c y", "+OK\r\n").await;
    it.asks("MGET a none c", format!("*3\r\n{}$-1\r\n{}", bulk("140"), bulk("y"))).await;
    it.asks("EXISTS a b none", ":2\r\n").await;
    it.asks("TYPE a", "+string\r\n").await;
    it.asks("GETDEL c", bulk("y")).await;
    it.asks("UNLINK a b none", ":2\r\n").await;
    it.asks("GET a", "$-1\r\n").await;
    it.asks("TYPE a", "+none\r\n").await;
    it.asks("SET b", "-ERR wrong number of arguments for 'set' command\r\n").await;
    it.asks("SET b 1 XX NX", "-ERR syntax error\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_ends_and_its_time_to_live_can_be_read() {
    let (_mesh, mut it) = endpoint().await;
    it.asks("TTL none", ":-2\r\n").await;
    it.asks("SET a 1", "+OK\r\n").await;
    it.asks("TTL a", ":-1\r\n").await;
    it.asks("EXPIRE a 9000 GT", ":0\r\n").await;
    it.asks("EXPIRE a 60 XX", ":0\r\n").await;
    it.asks("EXPIRE a 60 NX", ":1\r\n").await;
    it.asks("EXPIRE a 70 NX", ":0\r\n").await;
    it.asks("TTL a", ":60\r\n").await;
    it.asks("INCR counter", ":1\r\n").await;
    it.asks("INCR counter", ":2\r\n").await;
    it.asks("EXPIRETIME counter", ":-1\r\n").await;
    it.asks("PERSIST counter", ":0\r\n").await;
    it.asks("EXPIRE counter 9000 LT", ":1\r\n").await;
    it.asks("SETEX a 100 2", "+OK\r\n").await;
    it.asks("TTL a", ":100\r\n").await;
    it.asks("SET a 3 KEEPTTL", "+OK\r\n").await;
    it.asks("TTL a", ":100\r\n").await;
    it.asks("EXPIRE a 200 LT", ":0\r\n").await;
    it.asks("EXPIRE a 200 GT", ":1\r\n").await;
    it.asks("GETEX a EX 300", bulk("3")).await;
    it.asks("TTL a", ":300\r\n").await;
    it.asks("EXPIREAT a 4000000000", ":1\r\n").await;
    it.asks("EXPIRETIME a", ":4000000000\r\n").await;
    it.asks("PERSIST a", ":1\r\n").await;
    it.asks("TTL a", ":-1\r\n").await;
    it.asks("SET a 4 KEEPTTL", "+OK\r\n").await;
    it.asks("RENAME a b", "+OK\r\n").await;
    it.asks("PTTL b", ":-1\r\n").await;
    it.asks("RENAME b a", "+OK\r\n").await;
    it.asks("EXPIRE a -1", ":1\r\n").await;
    it.asks("EXISTS a", ":0\r\n").await;
    it.asks("EXPIRE a 10", ":0\r\n").await;
    let over = Instant::now() + Duration::from_millis(30);
    it.asks("SET a 1 PX 20", "+OK\r\n").await;
    tokio::time::sleep_until(over.into()).await;
    it.asks("GET a", "$-1\r\n").await;
    it.asks("SET a 1 EX 0", "-ERR invalid expire time in 'set' command\r\n").await;
    it.asks("SET a 1 EX x", "-ERR value is not an integer or out of range\r\n").await;
    let far = format!("SET a 1 EX {}", i64::MAX);
    it.asks(&far, "-ERR invalid expire time in 'set' command\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hashes_keep_their_fields() {
    let (_mesh, mut it) = endpoint().await;
    it.asks("HMSET h a 1 b 2", "+OK\r\n").await;
    it.asks("HSET h b 3 c 4", ":1\r\n").await;
    it.asks("HGET h b", bulk("3")).await;
    it.asks("HMGET h a none", format!("*2\r\n{}$-1\r\n", bulk("1"))).await;
    it.asks("HGETALL h", array(&["a", "1", "b", "3", "c", "4"])).await;
    it.asks("HINCRBY h a 9", ":10\r\n").await;
    it.asks("HEXISTS h c", ":1\r\n").await;
    it.asks("HLEN h", ":3\r\n").await;
    it.asks("HDEL h a b none", ":2\r\n").await;
    it.asks("HKEYS h", array(&["c"])).await;
    it.asks("HVALS h", array(&["4"])).await;
    it.asks("HSETNX h c 5", ":0\r\n").await;
    it.asks("GET h", WRONG).await;
    it.asks("HDEL h c", ":1\r\n").await;
    it.asks("EXISTS h", ":0\r\n").await;
    it.asks("HGETALL h", "*0\r\n").await;
    it.asks("SET s 1", "+OK\r\n").await;
    it.asks("HSET s a 1", WRONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_found_by_pattern_each_in_its_database() {
    let (_mesh, mut it) = endpoint().await;
    it.asks("SET sess:1 x", "+OK\r\n").await;
    it.asks("SET other x", "+OK\r\n").await;
    it.asks("SELECT 3", "+OK\r\n").await;
    it.asks("GET sess:1", "$-1\r\n").await;
    it.asks("SET sess:3 x", "+OK\r\n").await;
    it.asks("KEYS sess:*", array(&["sess:3"])).await;
    it.asks("DBSIZE", ":1\r\n").await;
    it.asks("FLUSHDB", "+OK\r\n").await;
    it.asks("DBSIZE", ":0\r\n").await;
    it.asks("SET sess:3 x", "+OK\r\n").await;
    it.asks("SELECT 4", "+OK\r\n").await;
    it.asks("SET sess:4 x", "+OK\r\n").await;
    it.asks("FLUSHALL", "+OK\r\n").await;
    it.asks("DBSIZE", ":0\r\n").await;
    it.asks("SELECT 3", "+OK\r\n").await;
    it.asks("DBSIZE", ":0\r\n").await;
    it.asks("SELECT 0", "+OK\r\n").await;
    it.asks("SET sess:1 x", "+OK\r\n").await;
    it.asks("SET other x", "+OK\r\n").await;
    let found = |keys: &[&str]| format!("*2\r\n{}{}", bulk("0"), array(keys));
    it.asks("SCAN 0 MATCH sess:* COUNT 1000", found(&["sess:1"])).await;
    it.asks("SCAN 0 MATCH sess:* TYPE hash", found(&[])).await;
    it.asks("RENAME sess:1 sess:2", "+OK\r\n").await;
    it.asks("RENAMENX sess:2 other", ":0\r\n").await;
    it.asks("KEYS sess:*", array(&["sess:2"])).await;
    it.asks("SELECT 16", "-ERR DB index is out of range\r\n").await;
    it.asks("SCAN x", "-ERR invalid cursor\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_is_answered_in_order_whatever_runs_beside() {
    let (_mesh, mut it) = endpoint().await;
    let mut pipeline = Vec::new();
    let mut expected = String::new();
    for round in 0..300 {
        let (key, value) = (format!("k{}", round % 70), round.to_string());
        pipeline.extend(request(&[b"SET", key.as_bytes(), value.as_bytes()]));
        pipeline.extend(request(&[b"GET", key.as_bytes()]));
        expected.push_str(&format!("+OK\r\n{}", bulk(&value)));
    }
    pipeline.extend(b"PING\r\n");
    expected.push_str("+PONG\r\n");
    it.send(&pipeline).await;
    it.reads(&expected).await;
}

/// `count` clients that each send a command at once, and the first line that each is answered.
async fn answers_to_all(addr: std::net::SocketAddr, count: usize, command: &str) -> Vec<String> {
    let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client(TcpStream::connect(addr).await.unwrap()));
    }
    for client in &mut clients {
        client.send(&request(&words)).await;
    }
    let mut answers = Vec::new();
    for client in &mut clients {
        answers.push(client.line().await);
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_for_a_key_that_is_not_reached_wait_no_longer_than_the_first() {
    let authority = Authority::generate("test").unwrap();
    let here = builder(&authority, 0).start().await.unwrap();
    let seed = here.mesh_addr().to_string();
    let (first, stop_first) = stoppable(builder(&authority, 1).seed(seed.clone())).await;
    let (second, stop_second) = stoppable(builder(&authority, 2).seed(seed)).await;
    let mesh = [here, first, second];
    all_see_each_other(&mesh).await;
    let addr = serve(&mesh[0]).await;
    let mut it = Client(TcpStream::connect(addr).await.unwrap());
    it.asks("SET n 0", "+OK\r\n").await;
    for stop in [stop_first, stop_second] {
        stop.send(()).unwrap();
    }
    // One after the other would take them longer than this test is patient.
    for answer in answers_to_all(addr, 12, "INCR n").await {
        assert!(answer.starts_with("-TRYAGAIN ") || answer.starts_with("-UNKNOWN "), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_everybody_writes_refuses_nobody() {
    let (_mesh, it) = endpoint().await;
    let addr = it.0.peer_addr().unwrap();
    for (command, expected) in [("SET hot v", "+OK\r\n"), ("INCR n", ":"), ("DEL hot", ":")] {
        for answer in answers_to_all(addr, 300, command).await {
            assert!(answer.starts_with(expected), "{command}: {answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_renamed_however_often_others_change_it() {
    let mesh = mesh_of(2).await;
    let (here, there) = (serve(&mesh[0]).await, serve(&mesh[1]).await);
    let connect = async |addr| Client(TcpStream::connect(addr).await.unwrap());
    let mut counting = tokio::task::JoinSet::new();
    for addr in [here, here, there] {
        let mut client = connect(addr).await;
        counting.spawn(async move {
            loop {
                client.send(&request(&[b"INCR", b"n"])).await;
                let answer = client.line().await;
                assert!(answer.starts_with(':'), "{answer}");
            }
        });
    }
    let mut it = connect(here).await;
    let mut renamed = 0;
    while renamed < 30 {
        it.send(&request(&[b"RENAME", b"n", b"to"])).await;
        match it.line().await.as_str() {
            "+OK\r\n" => renamed += 1,
            // It was just renamed, and nobody has counted since.
            answer => assert_eq!(answer, "-ERR no such key\r\n"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_cannot_have_its_browser_send_commands() {
    for head in ["POST / HTTP/1.1\r\n", "GET /x HTTP/1.1\r\n", "PUT x\r\n", "host: here\r\n"] {
        let (_mesh, mut it) = endpoint().await;
        it.asks("SET a 1", "+OK\r\n").await;
        let rest = "Content-Length: 30\r\n\r\nSET a evil\r\nFLUSHALL\r\n";
        it.send(format!("{head}{rest}").as_bytes()).await;
        let reply = it.rest().await;
        assert!(reply.starts_with("-ERR Protocol error: this is no HTTP server"), "{reply}");
        assert_eq!(reply.lines().count(), 1, "{reply}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_speaks_tls_gets_an_error_and_is_disconnected() {
    let (_mesh, mut it) = endpoint().await;
    it.send(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03]).await;
    let reply = it.rest().await;
    assert!(reply.starts_with("-ERR Protocol error: there is no TLS here"), "{reply}");
    assert_eq!(reply.lines().count(), 1, "{reply}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reply_to_one_command_is_bounded() {
    let (_mesh, mut it) = endpoint().await;
    let value = vec![b'v'; VALUE_BYTES_MAX - 64];
    it.send(&request(&[b"HSET", b"h", b"f", &value])).await;
    it.reads(":1\r\n").await;
    let mut many: Vec<&[u8]> = vec![b"HMGET", b"h"];
    many.extend([b"f".as_slice(); 40]);
    it.send(&request(&many)).await;
    it.reads("-ERR the answer exceeds 33554432 bytes: ask for fewer fields\r\n").await;
    it.asks("SADD s", "-ERR wrong number of arguments for 'sadd' command\r\n").await;
    it.send(&request(&[b"SADD", b"s", &value])).await;
    it.reads(":1\r\n").await;
    it.send(&request(&[b"SET", b"k", &value])).await;
    it.reads("+OK\r\n").await;
    let mut same: Vec<&[u8]> = vec![b"MGET"];
    same.extend([b"k".as_slice(); 40]);
    for large in
        [&same[..], &[b"SRANDMEMBER", b"s", b"-40"], &[b"HRANDFIELD", b"h", b"-40", b"WITHVALUES"]]
    {
        it.send(&request(large)).await;
        it.reads("-ERR the answer exceeds 33554432 bytes: ask for fewer parts\r\n").await;
    }
    // The replies of a transaction that are too much are not sent; all of it is run.
    it.asks("MULTI", "+OK\r\n").await;
    for _ in 0..40 {
        it.asks("HGET h f", "+QUEUED\r\n").await;
    }
    it.asks("SET a 1", "+QUEUED\r\n").await;
    it.send(&request(&[b"EXEC"])).await;
    it.send(&request(&[b"QUIT"])).await;
    let answers = it.rest().await;
    assert!(answers.starts_with("*41\r\n") && answers.len() < 34 << 20, "{}", answers.len());
    let end = "-ERR it was run, but the answers exceed 33554432 bytes\r\n+OK\r\n";
    assert!(answers.ends_with(end));
    let mut it = Client(TcpStream::connect(it.0.peer_addr().unwrap()).await.unwrap());
    it.asks("GET a", bulk("1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_reader_no_further_command_begins() {
    const KEYS: usize = 64;
    let (_mesh, mut it) = endpoint().await;
    let value = vec![b'v'; VALUE_BYTES_MAX];
    for key in 0..KEYS {
        it.send(&request(&[b"SET", key.to_string().as_bytes(), &value])).await;
        it.reads("+OK\r\n").await;
    }
    let mut other = Client(TcpStream::connect(it.0.peer_addr().unwrap()).await.unwrap());
    let mut wire = Vec::new();
    for key in 0..KEYS {
        wire.extend(request(&[b"GETDEL", key.to_string().as_bytes()]));
    }
    it.send(&wire).await;
    let mut exist = vec!["EXISTS".to_owned()];
    exist.extend((0..KEYS).map(|key| key.to_string()));
    let exist: Vec<&[u8]> = exist.iter().map(String::as_bytes).collect();
    let mut seen = Vec::new();
    // The sockets hold some of it, too; more is not begun, however long it takes.
    while seen.len() < 5 || seen[seen.len() - 5..].iter().any(|left| *left != seen[seen.len() - 1])
    {
        other.send(&request(&exist)).await;
        seen.push(other.line().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let left: usize = seen[seen.len() - 1].trim_start_matches(':').trim_end().parse().unwrap();
    assert!((KEYS / 2..KEYS).contains(&left), "{seen:?}");
    for _ in 0..KEYS {
        it.reads(&bulk(std::str::from_utf8(&value).unwrap())).await;
    }
    other.send(&request(&exist)).await;
    other.reads(":0\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_introduce_themselves_in_both_versions() {
    let (_mesh, mut it) = endpoint().await;
    it.asks("CLIENT SETNAME web", "+OK\r\n").await;
    it.asks("CLIENT GETNAME", bulk("web")).await;
    it.asks("CLIENT SETINFO LIB-NAME x", "+OK\r\n").await;
    it.asks("CLIENT KILL x", "-ERR CLIENT KILL is not offered here; see docs/redis.md\r\n").await;
    it.asks("AUTH default x", "+OK\r\n").await;
    let refused = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
    it.asks("AUTH ada x", refused).await;
    it.asks("HELLO 4", "-NOPROTO unsupported protocol version\r\n").await;
    it.asks("CONFIG GET save", array(&["save", ""])).await;
    it.asks("CONFIG GET maxmemory save", array(&["maxmemory", "0", "save", ""])).await;
    it.asks("CONFIG GET none", "*0\r\n").await;
    it.asks("HSET h a 1 z 2 b 3 y 4", ":4\r\n").await;
    it.asks("HELLO 3 AUTH default x", "%7\r\n").await;
    it.send(&request(&[b"HGETALL", b"h"])).await;
    it.send(&request(&[b"GET", b"none"])).await;
    it.send(&request(&[b"QUIT"])).await;
    let rest = it.rest().await;
    // In the order in which they were set, as Redis has it for small ones.
    let fields = ["a", "1", "z", "2", "b", "3", "y", "4"].map(bulk).concat();
    let end = format!("%4\r\n{fields}_\r\n+OK\r\n");
    assert!(rest.ends_with(&end), "{rest:?}");
    assert!(rest.contains(&format!("{}:3\r\n", bulk("proto"))), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_request_gets_an_error_and_ends_the_connection() {
    for (garbage, expected) in [
        ("*1\r\n*1\r\n$1\r\na\r\n", "-ERR Protocol error: expected '$', got '*'\r\n"),
        ("*1\r\n$99999999999\r\n", "-ERR Protocol error: invalid bulk length"),
        ("*1\r\n$-1\r\n", "-ERR Protocol error: invalid bulk length"),
        ("*1\r\n$1a\r\n", "-ERR Protocol error: invalid bulk length"),
        ("*1\r\n$000000000000000000", "-ERR Protocol error: invalid bulk length"),
        ("*99999\r\n", "-ERR Protocol error: invalid multibulk length"),
    ] {
        let (_mesh, mut it) = endpoint().await;
        it.send(b"PING\r\n").await;
        it.send(garbage.as_bytes()).await;
        let rest = it.rest().await;
        assert!(rest.starts_with("+PONG\r\n") && rest.contains(expected), "{garbage:?}: {rest:?}");
    }
    let (_mesh, mut it) = endpoint().await;
    it.send(&[b'x'; 4096]).await;
    assert_eq!(it.rest().await, "-ERR Protocol error: too big inline request\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_too_large_is_passed_over_and_its_client_goes_on() {
    let (_mesh, mut it) = endpoint().await;
    let refused = "-ERR a request has at most 2097152 bytes\r\n";
    let value = vec![b'v'; 5 * VALUE_BYTES_MAX];
    it.asks("SET a 1", "+OK\r\n").await;
    it.send(&request(&[b"SET", b"a", &value, b"EX", &value, b"10"])).await;
    it.send(&request(&[b"GET", b"a"])).await;
    it.reads(&format!("{refused}{}", bulk("1"))).await;
    it.asks("MULTI", "+OK\r\n").await;
    it.send(&request(&[b"MSET", b"b", &value[..VALUE_BYTES_MAX], b"c", &value])).await;
    it.reads(refused).await;
    it.asks("EXEC", "-EXECABORT Transaction discarded because of previous errors.\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reads_why_its_connection_ends_whatever_else_it_has_sent() {
    let (_mesh, mut it) = endpoint().await;
    it.send(b"*1\r\n$x\r\n").await;
    it.send(&vec![b'v'; 5 * VALUE_BYTES_MAX]).await;
    assert!(it.rest().await.starts_with("-ERR Protocol error: invalid bulk length"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_too_many_gets_an_error_and_has_room_when_another_leaves() {
    let (mesh, name) = mesh().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let registers = mesh.registers(&name).unwrap();
    tokio::spawn(super::serve_up_to(2, listener, registers, quiet()));
    let connect = async || Client(TcpStream::connect(addr).await.unwrap());
    let (mut one, mut other) = (connect().await, connect().await);
    one.asks("PING", "+PONG\r\n").await;
    other.asks("PING", "+PONG\r\n").await;
    assert_eq!(connect().await.rest().await, "-ERR max number of clients reached\r\n");
    drop(one);
    one_more(addr).await;
}

/// Connects until the endpoint takes one client more.
async fn one_more(addr: std::net::SocketAddr) -> Client {
    let late = Instant::now() + PATIENCE;
    loop {
        let mut another = Client(TcpStream::connect(addr).await.unwrap());
        // One that is turned away while it asks may find its connection reset.
        let _ = another.0.write_all(&request(&[b"PING"])).await;
        let mut first = [0];
        if matches!(another.0.read(&mut first).await, Ok(1)) && first == *b"+" {
            another.reads("PONG\r\n").await;
            return another;
        }
        assert!(Instant::now() < late, "nobody has left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_commands_are_answered_as_in_redis() {
    let (_mesh, mut it) = endpoint().await;
    let not_a_number = "-ERR value is not an integer or out of range\r\n";
    for value in ["+5", "007", "-0", ""] {
        it.asks(&format!("SET k {value}"), "+OK\r\n").await;
        it.asks("INCR k", not_a_number).await;
    }
    for by in ["+5", "05", "-0"] {
        it.asks(&format!("INCRBY n {by}"), not_a_number).await;
    }
    it.asks("SET k v EX 10", "+OK\r\n").await;
    it.asks("EXPIRE k 20 XX GT", ":1\r\n").await;
    it.asks("EXPIRE k 15 XX GT", ":0\r\n").await;
    it.asks("EXPIRE k 15 XX LT", ":1\r\n").await;
    it.asks("PERSIST k", ":1\r\n").await;
    it.asks("EXPIRE k 15 XX LT", ":0\r\n").await;
    let detail = "NX and XX, GT or LT options at the same time are not compatible";
    it.asks("EXPIRE k 15 NX GT", format!("-ERR {detail}\r\n")).await;
    let detail = "GT and LT options at the same time are not compatible";
    it.asks("EXPIRE k 15 GT LT", format!("-ERR {detail}\r\n")).await;
    it.asks("EXPIRE k 15 FOO", "-ERR Unsupported option FOO\r\n").await;
    it.asks("EXPIREAT k 9999999999999", ":1\r\n").await;
    it.asks("EXPIRETIME k", ":9999999999999\r\n").await;
    it.asks("GET k", bulk("v")).await;
    let detail = "Client names cannot contain spaces, newlines or special characters.";
    it.send(&request(&[b"CLIENT", b"SETNAME", b"a b"])).await;
    it.reads(&format!("-ERR {detail}\r\n")).await;
    it.asks("CONFIG GET databases", array(&["databases", "16"])).await;
    it.asks(&format!("KEYS {}", "a".repeat(1025)), "-ERR a pattern has at most 1024 bytes\r\n")
        .await;
    for command in ["LPOP l x", "RPOP l -1", "ZPOPMIN z 1.5", "SPOP s x"] {
        it.asks(command, "-ERR value is out of range, must be positive\r\n").await;
    }
    it.asks("HINCRBYFLOAT k f inf", "-ERR value is NaN or Infinity\r\n").await;
    // Of a key that is not there, what follows its name is not looked at.
    for (command, none) in [("GETEX no EX -1", "$-1\r\n"), ("LINDEX no x", "$-1\r\n")] {
        it.asks(command, none).await;
    }
    it.asks("BITCOUNT no x y", ":0\r\n").await;
    it.asks("SET bits ab", "+OK\r\n").await;
    for (range, ones) in
        [("", 6), (" 1 1", 3), (" 1 9 BIT", 4), (" -1 -1 BYTE", 3), (" 9 1 BIT", 0)]
    {
        it.asks(&format!("BITCOUNT bits{range}"), format!(":{ones}\r\n")).await;
    }
    it.asks("MULTI", "+OK\r\n").await;
    let why = "wrong number of arguments for 'exec' command";
    it.asks("EXEC x", format!("-EXECABORT Transaction discarded because of: {why}\r\n")).await;
    it.asks("EXEC", "-ERR EXEC without MULTI\r\n").await;
    it.asks("HELLO 3", "%7\r\n").await;
    it.send(&request(&[b"ECHO", b"behind it"])).await;
    while it.line().await != "behind it\r\n" {}
    it.asks("WATCH k", "+OK\r\n").await;
    it.asks("SET k w", "+OK\r\n").await;
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("EXEC", "_\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_typed_line_may_quote_its_words() {
    let (_mesh, mut it) = endpoint().await;
    for (line, expected) in [
        (r#"SET k "hello world""#, "+OK\r\n".to_owned()),
        ("GET k", bulk("hello world")),
        (r#"ECHO "a\x41\n\t\q\"""#, bulk("aA\n\tq\"")),
        (r"ECHO 'it\'s \n'", bulk("it's \\n")),
        (r#"ECHO """#, bulk("")),
        (r#"ECHO a"b c""#, bulk("ab c")),
        ("ECHO {\"a\":1}", "-ERR Protocol error: unbalanced quotes in request\r\n".to_owned()),
    ] {
        it.send(format!("{line}\r\n").as_bytes()).await;
        it.reads(&expected).await;
    }
    assert_eq!(it.rest().await, "");
    for unbalanced in ["SET k \"v\n", "SET k 'v\n", "SET k \"v\"w\n"] {
        let answer = Incoming::from(unbalanced.as_bytes()).take_request();
        assert_eq!(answer, Err(ProtocolError::Quotes));
    }
}

#[test]
fn the_commands_that_the_documentation_tells_of_are_those_that_are_offered() {
    let docs = include_str!("../../../../docs/redis.md");
    let list = docs.split_once("## Commands").unwrap().1;
    let names: Vec<&str> =
        list.split('`').skip(1).step_by(2).map(|it| it.split(' ').next().unwrap()).collect();
    let offered: Vec<&str> = super::cmd::TABLE.iter().map(|spec| spec.name).collect();
    assert_eq!(names, offered);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_and_keys_have_bounds() {
    let (_mesh, mut it) = endpoint().await;
    let value = vec![b'v'; VALUE_BYTES_MAX];
    it.send(&request(&[b"SET", b"a", &value])).await;
    it.reads("+OK\r\n").await;
    it.asks("STRLEN a", ":1048576\r\n").await;
    let refused = "-ERR a value has at most 1048576 bytes\r\n";
    it.asks("APPEND a x", refused).await;
    let value = vec![b'v'; VALUE_BYTES_MAX + 1];
    it.send(&request(&[b"SET", b"a", &value])).await;
    it.reads(refused).await;
    it.send(&request(&[b"SET", &[b'k'; 512], b"x"])).await;
    it.reads("+OK\r\n").await;
    it.send(&request(&[b"SET", &[b'k'; 513], b"x"])).await;
    it.reads("-ERR the key has 513 bytes, but at most 512 are kept\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_buffers_of_a_connection_are_bounded() {
    let (_mesh, mut it) = endpoint().await;
    let name = [b'n'; 257];
    it.send(&request(&[b"CLIENT", b"SETNAME", &name])).await;
    it.reads("-ERR a client's name has at most 256 bytes\r\n").await;
    it.asks("MULTI", "+OK\r\n").await;
    let value = vec![b'v'; VALUE_BYTES_MAX];
    for _ in 0..7 {
        it.send(&request(&[b"SET", b"a", &value])).await;
        it.reads("+QUEUED\r\n").await;
    }
    it.send(&request(&[b"SET", b"a", &value])).await;
    it.reads("-ERR a transaction has at most 1024 commands and 8388608 bytes\r\n").await;
    it.asks("EXEC", "-EXECABORT Transaction discarded because of previous errors.\r\n").await;
    it.asks("EXISTS a", ":0\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_ends_is_given_up() {
    let (mesh, name) = mesh().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let mut near = Client(near.unwrap());
    near.send(b"*1\r\n$4\r\nPI").await;
    let database = Database::new(mesh.registers(&name).unwrap(), Arc::new(quiet()));
    let serving = super::connection::serve(far.unwrap().0, database);
    // The clock is paused: it jumps to the deadline once nothing else can happen.
    serving.await.unwrap();
    assert_eq!(near.rest().await, "-ERR Protocol error: the request took too long\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_memory_is_full_a_change_is_answered_as_redis_does() {
    let authority = Authority::generate("test").unwrap();
    let peer = PeerId::new("peer-0").unwrap();
    let identity = authority.issue(&peer).unwrap();
    let policy = SessionPolicy::default().with(|policy| policy.memory_bytes_max = 8192);
    let name = AppName::new(super::NAME).unwrap();
    let builder = Mesh::builder(identity).sessions(policy).registers(name);
    let mesh = builder.start().await.unwrap();
    let mut it = Client(TcpStream::connect(serve(&mesh).await).await.unwrap());
    it.asks(&format!("SET a {}", "x".repeat(4000)), "+OK\r\n").await;
    let oom = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";
    it.asks(&format!("SET b {}", "x".repeat(3000)), oom).await;
    it.asks(&format!("SET c {}", "x".repeat(1100)), "+OK\r\n").await;
    it.asks("SET b 1", oom).await;
    it.asks("INCR b", oom).await;
    it.asks("STRLEN a", ":4000\r\n").await;
    it.asks("DEL a", ":1\r\n").await;
    it.asks("GET a", "$-1\r\n").await;
}
