//! Interim responses such as `103 Early Hints`, and what follows a switch of protocols: from an app's
//! connection to its client's, here and through a hop.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use warmhop::access::{Access, AccessEnd, AccessSink};
use warmhop::config::{SessionMode, StartMode};
use warmhop::identity::Authority;
use warmhop::ids::{AppName, PeerId};
use warmhop::{AppSpec, Mesh, app_fn};
use warmhop_cli::child::ChildService;
use warmhop_cli::config::Protocol;

use crate::role::BOUND;

const HINT: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\
    Set-Cookie: own=1\r\nSet-Cookie: warmhop=forged.one\r\nWarmhop-Session: secret\r\n\
    Connection: x-mine\r\nX-Mine: 1\r\nContent-Length: 7\r\n\r\n";
/// What its client gets of it.
const HINT_SEEN: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\
    set-cookie: own=1\r\n\r\n";
const FINAL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An app that answers by path, and waits with `/hints` until it may go on.
struct App {
    port: u16,
    go: Arc<Semaphore>,
    /// The heads of its requests.
    heads: Arc<Mutex<String>>,
    /// What was recorded of its clients' requests.
    records: Records,
}

#[derive(Clone, Default)]
struct Records(Arc<Mutex<Vec<Access>>>);

impl Records {
    /// The only one since the last.
    async fn next(&self) -> Access {
        let recorded = async {
            while self.0.lock().unwrap().is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(BOUND, recorded).await.expect("it is recorded at its end");
        let [access] = std::mem::take(&mut *self.0.lock().unwrap()).try_into().unwrap();
        access
    }
}

impl AccessSink for Records {
    fn record(&self, access: Access) {
        self.0.lock().unwrap().push(access);
    }
}

impl App {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (go, heads) = (Arc::new(Semaphore::new(0)), Arc::default());
        let (go_on, kept, records) = (Arc::clone(&go), Arc::clone(&heads), Records::default());
        let app = Self { port, go: go_on, heads: kept, records };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answers(stream, Arc::clone(&go), Arc::clone(&heads)));
            }
        });
        app
    }
}

/// Answers requests until there are none, or one ends the connection.
async fn answers(mut stream: TcpStream, go: Arc<Semaphore>, heads: Arc<Mutex<String>>) {
    while let Some(head) = head_of(&mut stream).await {
        heads.lock().unwrap().push_str(&head);
        let path = head.split(' ').nth(1).unwrap_or_default();
        let mut answer = String::new();
        match path {
            "/hints" => {
                stream.write_all(HINT.as_bytes()).await.unwrap();
                go.acquire().await.unwrap().forget();
            }
            "/at-once" => answer.push_str(HINT),
            "/many" => answer = "HTTP/1.1 102 Processing\r\n\r\n".repeat(1000),
            "/long" => {
                let value = "a".repeat(64 * 1024);
                answer = format!("HTTP/1.1 103 Early Hints\r\nLink: {value}\r\n\r\n");
            }
            "/switches" => {
                answer = format!(
                    "{HINT}HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                     Upgrade: echo\r\n\r\nhello"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
                let mut byte = [0];
                while stream.read(&mut byte).await.is_ok_and(|bytes| bytes > 0) {
                    stream.write_all(&byte).await.unwrap();
                }
                return;
            }
            "/upload" => {
                stream.write_all(HINT.as_bytes()).await.unwrap();
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            }
            _ => {}
        }
        if head.contains("transfer-encoding: chunked") {
            let mut body = Vec::new();
            while !body.ends_with(b"0\r\n\r\n") {
                body.push(stream.read_u8().await.unwrap());
            }
        }
        if path == "/dies" {
            // All of the request is read: its connection ends without a reset.
            stream.write_all(HINT.as_bytes()).await.unwrap();
            return;
        }
        if path == "/chunked" {
            answer.push_str(HINT);
            answer.push_str("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n");
            answer.push_str("0\r\n\r\n");
        } else {
            answer.push_str(FINAL);
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

/// The next head; `None` if the other end sends none.
async fn head_of(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// Two peers: the app is at the first, and the door of the other leads to it by a hop.
async fn two_doors(app: &App) -> (Vec<Mesh>, [SocketAddr; 2]) {
    let authority = Authority::generate("test").unwrap();
    let mut meshes: Vec<Mesh> = Vec::new();
    for (name, start) in [("one", StartMode::AtBoot), ("two", StartMode::Never)] {
        let mut spec = AppSpec::new(AppName::new("shop").unwrap());
        spec.policy.start = start;
        spec.policy.session = SessionMode::None;
        let port = app.port;
        let child = app_fn(move || async move {
            Ok::<_, std::convert::Infallible>(ChildService::new(port, Protocol::Http1))
        });
        let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let identity = authority.issue(&PeerId::new(name).unwrap()).unwrap();
        let records = app.records.clone();
        let mut builder =
            Mesh::builder(identity).front_door(door).access_log(records).app(spec, child);
        if let Some(first) = meshes.first() {
            builder = builder.seed(first.mesh_addr().to_string());
        }
        meshes.push(builder.start().await.unwrap());
    }
    let knows = async {
        let is_ready = |mesh: &Mesh| {
            let peers = mesh.status().peers;
            peers.iter().any(|it| it.apps.get("shop").is_some_and(|state| state == "ready"))
        };
        while !is_ready(&meshes[1]) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(BOUND, knows).await.expect("the second peer learns where the app is");
    let doors = [meshes[0].front_doors()[0], meshes[1].front_doors()[0]];
    (meshes, doors)
}

struct Client(TcpStream);

impl Client {
    async fn of(door: SocketAddr) -> Self {
        Self(TcpStream::connect(door).await.unwrap())
    }

    async fn sends(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    async fn head(&mut self) -> String {
        let head = timeout(BOUND, head_of(&mut self.0)).await.expect("a head comes in time");
        head.expect("the connection stays open")
    }

    /// The next bytes, as many as `text` has.
    async fn gets(&mut self, text: &str) {
        let mut bytes = vec![0; text.len()];
        timeout(BOUND, self.0.read_exact(&mut bytes)).await.expect("they come in time").unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), text);
    }

    /// The final response and its body.
    async fn gets_final(&mut self) {
        let head = self.head().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        if head.contains("transfer-encoding: chunked") {
            self.gets("2\r\nok\r\n0\r\n\r\n").await;
        } else {
            self.gets("ok").await;
        }
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")
}

/// What a client finds at the door of the peer with the app, and at that of the other.
async fn at_each_door(client_finds: impl AsyncFn(Client)) {
    let app = App::start().await;
    let (_meshes, doors) = two_doors(&app).await;
    for door in doors {
        client_finds(Client::of(door).await).await;
    }
}

/// A request of the kind that the front door leaves to hyper.
fn post(path: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nhi\r\n0\r\n\r\n"
    )
}

#[tokio::test]
async fn a_hint_comes_while_its_response_is_still_awaited() {
    let app = App::start().await;
    let (_meshes, doors) = two_doors(&app).await;
    for door in doors {
        let mut client = Client::of(door).await;
        for request in [get("/hints"), post("/hints"), get("/hints")] {
            client.sends(&request).await;
            client.gets(HINT_SEEN).await;
            app.go.add_permits(1);
            client.gets_final().await;
        }
    }
    let heads = app.heads.lock().unwrap().to_ascii_lowercase();
    assert_eq!(heads.matches("/hints http/1.1").count(), 6);
    assert!(!heads.contains("warmhop-interim"), "{heads}");
}

#[tokio::test]
async fn each_of_several_requests_at_once_gets_its_own_hint_before_its_own_response() {
    at_each_door(async |mut client| {
        let all = ["/at-once", "/chunked", "/none", "/at-once"].map(get).concat();
        client.sends(&all).await;
        client.sends(&["/at-once", "/none", "/chunked", "/at-once"].map(post).concat()).await;
        for is_hinted in [true, true, false, true, true, false, true, true] {
            if is_hinted {
                client.gets(HINT_SEEN).await;
            }
            client.gets_final().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_cannot_get_any_gets_its_response_alone() {
    let app = App::start().await;
    let (_meshes, doors) = two_doors(&app).await;
    for door in doors {
        for more in ["", "Connection: keep-alive\r\n"] {
            let mut client = Client::of(door).await;
            client.sends(&format!("GET /at-once HTTP/1.0\r\nHost: a.test\r\n{more}\r\n")).await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
            client.gets("ok").await;
        }
    }
}

#[tokio::test]
async fn an_app_that_sends_far_too_many_or_too_long_ones_is_still_answered_for() {
    at_each_door(async |mut client| {
        for request in [get("/many"), post("/many"), get("/long"), post("/long")] {
            client.sends(&request).await;
            let mut came = 0;
            let head = loop {
                let head = client.head().await;
                if head != "HTTP/1.1 102 Processing\r\n\r\n" {
                    break head;
                }
                came += 1;
            };
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            client.gets("ok").await;
            let is_many = request.contains("/many");
            assert_eq!(came > 0, is_many, "{came} of {request}");
            assert!(came <= 1000, "{came}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_app_that_dies_after_a_hint_is_a_failure_after_a_hint() {
    at_each_door(async |mut client| {
        client.sends(&post("/dies")).await;
        client.gets(HINT_SEEN).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    })
    .await;
}

#[tokio::test]
async fn a_hint_comes_before_a_switch_of_protocols_too() {
    at_each_door(async |mut client| {
        client
            .sends(
                "GET /switches HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
            )
            .await;
        client.gets(HINT_SEEN).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        client.gets("hello").await;
        client.sends("echoed").await;
        client.gets("echoed").await;
    })
    .await;
}

#[tokio::test]
async fn the_bytes_of_an_upgraded_connection_are_counted_at_once_and_recorded_at_its_end() {
    let app = App::start().await;
    let (meshes, doors) = two_doors(&app).await;
    for (mesh, door) in meshes.iter().zip(doors) {
        let mut client = Client::of(door).await;
        client
            .sends(
                "GET /switches HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
            )
            .await;
        client.gets(HINT_SEEN).await;
        client.head().await;
        client.gets("hello").await;
        client.sends("echoed").await;
        client.gets("echoed").await;
        let metrics = mesh.metrics();
        for (of, bytes) in [("request", 6), ("response", 11)] {
            let series = format!("warmhop_{of}_body_bytes_total{{app=\"shop\"}} {bytes}\n");
            assert!(metrics.contains(&series), "no {series}: {metrics}");
        }
        assert!(app.records.0.lock().unwrap().is_empty(), "it has not ended");
        drop(client);
        let access = app.records.next().await;
        assert_eq!((access.received, access.bytes), (6, 11));
        assert_eq!((access.status, access.end), (Some(101), AccessEnd::Upgraded));
        assert!(access.head.is_some_and(|head| head < access.total), "{access:?}");
    }
    let mut client = Client::of(doors[0]).await;
    client.sends(&post("/none")).await;
    client.gets_final().await;
    let access = app.records.next().await;
    assert_eq!((access.received, access.bytes), (2, 2), "those of another request's body");
}

#[tokio::test]
async fn a_hint_and_a_request_for_the_body_come_both() {
    at_each_door(async |mut client| {
        client
            .sends(
                "POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\
                 Expect: 100-continue\r\n\r\n",
            )
            .await;
        // They are of two kinds, which nobody holds back for each other.
        let mut heads = [client.head().await, client.head().await];
        heads.sort_unstable();
        assert_eq!(heads, ["HTTP/1.1 100 Continue\r\n\r\n", HINT_SEEN]);
        client.sends("2\r\nhi\r\n0\r\n\r\n").await;
        client.gets_final().await;
    })
    .await;
}
