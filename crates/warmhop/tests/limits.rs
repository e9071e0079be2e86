//! What clients may take of a peer, and that nobody else has to do without for it.
#![allow(missing_docs, reason = "a test crate")]
#![allow(clippy::unwrap_used, reason = "tests: a failed step is a failed test")]

mod bed;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use bed::{PATIENCE, eventually, peer};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use warmhop::config::{SessionMode, StartMode};
use warmhop::identity::Authority;
use warmhop::ids::AppName;
use warmhop::{AppSpec, Builder, ClientLimits, Mesh, TrustedProxies, app_fn};

/// Takes a request and never reads its body.
async fn leave_unread(_body: axum::body::Body) {
    std::future::pending::<()>().await;
}

/// Lets one request go that is held.
static HELD: tokio::sync::Notify = tokio::sync::Notify::const_new();

/// Never ends, and sends as fast as it is read.
async fn endless() -> axum::body::Body {
    let piece = || Ok::<_, std::convert::Infallible>(Bytes::from_static(&[7; 16 * 1024]));
    axum::body::Body::from_stream(futures_util::stream::repeat_with(piece))
}

async fn count(body: Bytes) -> String {
    body.len().to_string()
}

async fn whose(headers: HeaderMap) -> String {
    let field = |name| headers.get(name).map_or("-", |value| value.to_str().unwrap());
    format!("{} {}", field("x-forwarded-for"), field("x-forwarded-proto"))
}

async fn one_peer(with: impl FnOnce(Builder) -> Builder) -> (Mesh, SocketAddr) {
    one_peer_with(|_| {}, with).await
}

async fn one_peer_with(
    change: impl FnOnce(&mut AppSpec),
    with: impl FnOnce(Builder) -> Builder,
) -> (Mesh, SocketAddr) {
    let one = peer("one");
    let identity = Authority::generate("test").unwrap().issue(&one).unwrap();
    let mut spec = AppSpec::new(AppName::new("shop").unwrap());
    spec.policy.session = SessionMode::None;
    spec.policy.start = StartMode::AtBoot;
    change(&mut spec);
    let app = app_fn(|| async {
        let routes = Router::new()
            .route("/", get(|| async { "ok" }))
            .route("/whose", get(whose))
            .route("/endless", get(endless))
            .route("/held", get(async || HELD.notified().await))
            .route("/unread", post(leave_unread))
            .route("/count", post(count));
        Ok::<_, std::convert::Infallible>(routes)
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let builder = Mesh::builder(identity).app(spec, app).front_door(listener);
    let mesh = with(builder).start().await.unwrap();
    let door = mesh.front_doors()[0];
    (mesh, door)
}

fn limits(change: impl FnOnce(&mut ClientLimits)) -> ClientLimits {
    let mut limits = ClientLimits::default();
    change(&mut limits);
    limits
}

/// The number behind the metric that a line begins with.
fn metric(mesh: &Mesh, begins: &str) -> u64 {
    let metrics = mesh.metrics();
    let line = metrics.lines().find(|line| line.starts_with(begins));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

fn refused(mesh: &Mesh, reason: &str) -> u64 {
    metric(mesh, &format!("warmhop_clients_refused_total{{reason=\"{reason}\"}}"))
}

fn held(mesh: &Mesh) -> u64 {
    metric(mesh, "warmhop_clients_held_bytes")
}

/// How many requests were given to the app of this peer.
fn served(mesh: &Mesh) -> u64 {
    let metrics = mesh.metrics();
    let lines = metrics.lines().filter(|line| {
        line.starts_with("warmhop_decisions_total{") && line.contains("decision=\"serve\"")
    });
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

async fn connect_from(addr: &str, door: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(addr.parse().unwrap()).unwrap();
    socket.connect(door).await.unwrap()
}

async fn exchange(mut stream: TcpStream, bytes: &str) -> String {
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Another client, of another address, is served.
async fn others_are_served(door: SocketAddr) {
    let stream = connect_from("127.0.0.2:0", door).await;
    let answer = exchange(stream, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_malformed_request_is_counted_once_by_its_reason() {
    let (mesh, door) = one_peer(|builder| builder).await;
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(200));
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nB: {}\r\n\r\n", "b".repeat(80 * 1024));
    let tables: [(&str, &[&str]); 5] = [
        (
            "ambiguous-head",
            &[
                "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n",
            ],
        ),
        (
            "unreadable-head",
            &[
                "GET /\r\nHost: a\r\n\r\n",
                "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
                "GET ?q=1 HTTP/1.1\r\nHost: a\r\n\r\n",
                "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
                // Behind a request as well.
                "GET / HTTP/1.1\r\nHost: a\r\n\r\nno request\r\n\r\n",
            ],
        ),
        ("head-too-large", &[&many, &long]),
        // A frame longer than any may be.
        ("http2-error", &["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\u{7f}\u{7f}\u{7f}\0\0\0\0\0\0"]),
        ("tls-on-plain-door", &["\u{16}\u{3}\u{1}\0\u{7f}\u{1}\0\0\u{7b}\u{3}\u{3}"]),
    ];
    for (reason, table) in tables {
        for (at, bytes) in table.iter().enumerate() {
            let mut stream = TcpStream::connect(door).await.unwrap();
            // It may be refused, and reset, before the last of it was sent.
            let _ = stream.write_all(bytes.as_bytes()).await;
            let _ =
                tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.unwrap();
            eventually("it is counted", || refused(&mesh, reason) == at as u64 + 1).await;
        }
    }
    for (reason, table) in tables {
        assert_eq!(refused(&mesh, reason), table.len() as u64, "{reason}");
    }
}

#[tokio::test]
async fn heads_that_never_end_take_no_more_than_the_budget() {
    const BUDGET: u64 = 4 << 20;
    let (mesh, door) =
        one_peer(|builder| builder.client_limits(limits(|it| it.memory = BUDGET))).await;
    let mut attack = Vec::new();
    for _ in 0..60 {
        let mut stream = TcpStream::connect(door).await.unwrap();
        let head = format!("GET / HTTP/1.1\r\nX-Long: {}", "x".repeat(60_000));
        // It may be closed in the middle.
        let _ = stream.write_all(head.as_bytes()).await;
        attack.push(stream);
    }
    eventually("those that take most are closed", || refused(&mesh, "over-budget") > 10).await;
    others_are_served(door).await;
    assert!(held(&mesh) <= BUDGET, "{}", held(&mesh));
    drop(attack);
    eventually("all of it is given back", || held(&mesh) == 0).await;
}

#[tokio::test]
async fn bodies_that_nobody_reads_take_no_more_than_the_budget() {
    const BUDGET: u64 = 4 << 20;
    const PIECE: Bytes = Bytes::from_static(&[7; 16 * 1024]);
    let (mesh, door) =
        one_peer(|builder| builder.client_limits(limits(|it| it.memory = BUDGET))).await;
    let mut attack = Vec::new();
    for _ in 0..3 {
        let stream = TcpStream::connect(door).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        attack.push(tokio::spawn(async move { drop(connection.await) }));
        for _ in 0..40 {
            let endless =
                futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Frame::data(PIECE)));
            let request = Request::post("http://localhost/unread");
            let request = request.body(StreamBody::new(endless)).unwrap();
            let mut sender = sender.clone();
            attack.push(tokio::spawn(async move { drop(sender.send_request(request).await) }));
        }
    }
    eventually("those that take most are closed", || refused(&mesh, "over-budget") > 0).await;
    others_are_served(door).await;
    assert!(held(&mesh) <= BUDGET, "{}", held(&mesh));
    for task in attack {
        task.abort();
    }
    eventually("all of it is given back", || held(&mesh) == 0).await;
}

#[tokio::test]
async fn one_address_has_its_share_of_connections_and_replaces_its_own_idlest() {
    let (mesh, door) =
        one_peer(|builder| builder.client_limits(limits(|it| it.connections_per_address = 8)))
            .await;
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(TcpStream::connect(door).await.unwrap());
    }
    let replaced = || refused(&mesh, "too-many-from-address") == 40 - 8;
    eventually("the address replaces its own", replaced).await;
    others_are_served(door).await;
    is_closed(&mut idle[0]).await;
}

#[tokio::test]
async fn a_full_door_closes_the_connection_that_has_been_idle_longest() {
    let (mesh, door) =
        one_peer(|builder| builder.front_door_connections(std::num::NonZeroUsize::new(8).unwrap()))
            .await;
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(TcpStream::connect(door).await.unwrap());
    }
    others_are_served(door).await;
    assert!(refused(&mesh, "gave-way") >= 40 + 1 - 8);
    is_closed(&mut idle[0]).await;
}

#[tokio::test]
async fn a_door_whose_clients_all_wait_for_the_app_takes_another_once_one_of_them_is_idle() {
    let (mesh, door) =
        one_peer(|builder| builder.front_door_connections(std::num::NonZeroUsize::new(2).unwrap()))
            .await;
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(door).await.unwrap();
        stream.write_all(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        busy.push(stream);
    }
    eventually("both are busy", || served(&mesh) == 2).await;
    let other = tokio::spawn(others_are_served(door));
    HELD.notify_one();
    other.await.unwrap();
    assert_eq!((refused(&mesh, "gave-way"), refused(&mesh, "stood-still")), (1, 0));
    // The client that was left busy has kept the place.
    HELD.notify_one();
    for mut stream in busy {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, *b"HTTP/1.1 200");
    }
}

#[tokio::test]
async fn a_door_full_of_clients_that_take_no_answer_serves_another_at_once() {
    let (mesh, door) =
        one_peer(|builder| builder.front_door_connections(std::num::NonZeroUsize::new(8).unwrap()))
            .await;
    let mut slow = Vec::new();
    // More than there are places, and more than may wait for one.
    for _ in 0..40 {
        let mut stream = TcpStream::connect(door).await.unwrap();
        stream.write_all(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        slow.push(stream);
    }
    eventually("the door is full", || served(&mesh) >= 8).await;
    for _ in 0..4 {
        others_are_served(door).await;
    }
    assert!(refused(&mesh, "stood-still") + refused(&mesh, "gave-way") > 0);
}

async fn is_closed(stream: &mut TcpStream) {
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1])).await.unwrap();
    assert!(!read.is_ok_and(|bytes| bytes > 0));
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up_and_one_that_its_app_does_not_read_is_not() {
    let (mesh, door) = one_peer(|builder| {
        builder.client_limits(limits(|it| it.body_timeout = Duration::from_millis(300)))
    })
    .await;
    let unread = TcpStream::connect(door).await.unwrap();
    let request = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 90\r\nConnection: close\r\n\r\nx"
        )
    };
    let mut unread = unread;
    unread.write_all(request("/unread").as_bytes()).await.unwrap();
    let answer = exchange(TcpStream::connect(door).await.unwrap(), &request("/count")).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body-too-slow"), "{answer}");
    assert_eq!(refused(&mesh, "slow-body"), 1);
    // Longer than a pause may be: the app has never asked for it.
    let still = tokio::time::timeout(Duration::from_millis(600), unread.read(&mut [0; 1])).await;
    assert!(still.is_err(), "it was given up: {still:?}");
}

#[tokio::test]
async fn a_head_that_trickles_is_given_up_and_counted_and_an_idle_connection_is_only_closed() {
    let (mesh, door) = one_peer(|builder| builder).await;
    let mut idle = TcpStream::connect(door).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut served = [0; 15];
    idle.read_exact(&mut served).await.unwrap();
    assert_eq!(&served, b"HTTP/1.1 200 OK");
    let before = held(&mesh);
    let mut slow = TcpStream::connect(door).await.unwrap();
    slow.write_all(&[b"GET / HTTP/1.1\r\nX: ", &[b'x'; 8000][..]].concat()).await.unwrap();
    while held(&mesh) < before + 8000 {
        tokio::task::yield_now().await;
    }
    tokio::time::pause();
    let mut answers = [Vec::new(), Vec::new()];
    // Time passes while nothing else can happen.
    let _ = slow.read_to_end(&mut answers[0]).await;
    let _ = idle.read_to_end(&mut answers[1]).await;
    let [slow, idle] = answers.map(|answer| String::from_utf8(answer).unwrap());
    assert!(slow.starts_with("HTTP/1.1 408 ") && slow.contains("Connection: close"), "{slow}");
    assert!(!idle.contains("HTTP/1.1"), "{idle}");
    assert_eq!(refused(&mesh, "slow-head"), 1);
}

#[tokio::test]
async fn a_client_is_who_a_trusted_proxy_says_and_nobody_else() {
    let mut trusted = TrustedProxies::default();
    trusted.add("127.0.0.2").unwrap();
    let ask = "GET /whose HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.7\r\n\
         X-Forwarded-Proto: https\r\nForwarded: for=192.0.2.7\r\nConnection: close\r\n\r\n";
    let (_mesh, door) = one_peer(|builder| builder.trusted_proxies(trusted.clone())).await;
    for (from, expected) in
        [("127.0.0.2", "192.0.2.7, 127.0.0.2 https"), ("127.0.0.3", "127.0.0.3 http")]
    {
        let answer = exchange(connect_from(&format!("{from}:0"), door).await, ask).await;
        assert!(answer.ends_with(&format!("\r\n\r\n{expected}")), "{from}: {answer}");
    }

    let (mesh, door) =
        one_peer(|builder| builder.trusted_proxies(trusted).proxy_protocol(true)).await;
    let header = "PROXY TCP4 192.0.2.9 192.0.2.1 4711 80\r\n";
    let plain = "GET /whose HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let with_header = format!("{header}{plain}");
    for (from, bytes, expected) in [
        ("127.0.0.2", with_header.as_str(), "192.0.2.9 http"),
        ("127.0.0.3", with_header.as_str(), ""),
        ("127.0.0.2", plain, ""),
    ] {
        let answer = exchange(connect_from(&format!("{from}:0"), door).await, bytes).await;
        assert!(
            answer.ends_with(expected) && answer.is_empty() == expected.is_empty(),
            "{from}: {answer}"
        );
    }
    assert_eq!((refused(&mesh, "untrusted-proxy"), refused(&mesh, "no-proxy-header")), (1, 1));
}

/// A frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The next frame: its kind, its flags, its stream and its payload.
async fn next_frame(stream: &mut TcpStream) -> (u8, u8, u32, Vec<u8>) {
    let reading = async {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut payload).await.unwrap();
        let number = u32::from_be_bytes(head[5..9].try_into().unwrap()) & 0x7fff_ffff;
        (head[3], head[4], number, payload)
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap()
}

/// What a door announces beside a stream's window: `SETTINGS_MAX_CONCURRENT_STREAMS` and
/// `SETTINGS_INITIAL_WINDOW_SIZE`.
async fn announced(stream: &mut TcpStream) -> (u32, u32) {
    const SETTINGS: u8 = 4;
    loop {
        let (kind, flags, _, payload) = next_frame(stream).await;
        if kind == SETTINGS && flags == 0 {
            let setting = |number: u16| {
                let mut all = payload.chunks(6);
                let it = all.find(|it| it[..2] == number.to_be_bytes()).unwrap();
                u32::from_be_bytes(it[2..6].try_into().unwrap())
            };
            return (setting(3), setting(4));
        }
    }
}

#[tokio::test]
async fn as_many_streams_are_served_as_the_door_announces_and_one_more_is_refused() {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const REFUSED_STREAM: u32 = 7;
    let (mesh, door) = one_peer(|builder| builder).await;
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    let (most, window) = announced(&mut stream).await;
    assert_eq!((most, window), (100, 64 * 1024), "docs/streams.md says so");
    // POST, http, the path and the authority, as HPACK has them without any compression.
    let mut fields = vec![0x83, 0x86];
    for (name, value) in [(0x44, "/unread"), (0x41, "a.test")] {
        fields.extend([name, u8::try_from(value.len()).unwrap()]);
        fields.extend(value.as_bytes());
    }
    // Each request is whole, and its app never answers.
    for number in 0..most {
        stream.write_all(&frame(HEADERS, 0x5, 2 * number + 1, &fields)).await.unwrap();
    }
    eventually("all are with the app", || served(&mesh) == u64::from(most)).await;
    let one_more = 2 * most + 1;
    stream.write_all(&frame(HEADERS, 0x5, one_more, &fields)).await.unwrap();
    let why = loop {
        let (kind, _, number, payload) = next_frame(&mut stream).await;
        if kind == RST_STREAM {
            assert_eq!(number, one_more, "those before it are left alone");
            break u32::from_be_bytes(payload[..4].try_into().unwrap());
        }
    };
    assert_eq!(why, REFUSED_STREAM, "it is safe to send it again (RFC 9113 section 8.7)");
    assert_eq!(served(&mesh), u64::from(most));
    others_are_served(door).await;
}

#[tokio::test]
async fn an_app_is_not_blamed_for_a_client_that_takes_its_time_to_send() {
    const WITHIN: Duration = Duration::from_secs(5);
    let (mesh, door) =
        one_peer_with(|spec| spec.policy.head_timeout = Some(WITHIN), |builder| builder).await;
    eventually("the app is ready", || mesh.status().apps[0].state == "ready").await;
    let mut stream = TcpStream::connect(door).await.unwrap();
    let head =
        "POST /count HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(WITHIN + WITHIN / 5).await;
    stream.write_all(b"5\r\nthere\r\n0\r\n\r\n").await.unwrap();
    let mut answer = [0; 13];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 200 ");
}
