//! Requests that two readers could understand differently, as tables: each is refused as a whole, and
//! no app sees it or what hides behind it. What has one meaning alone is served, in the same tables.
#![allow(missing_docs, reason = "a test crate")]
#![allow(clippy::unwrap_used, reason = "tests: a failed step is a failed test")]

mod bed;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::routing::any;
use bed::{PATIENCE, peer};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use warmhop::config::{SessionMode, StartMode};
use warmhop::identity::Authority;
use warmhop::ids::AppName;
use warmhop::{AppSpec, Mesh, app_fn};

/// What the app saw: method, target, host and body of each request that came as a whole.
type Seen = Arc<Mutex<Vec<String>>>;

/// A peer with one app that is ready, which writes down what it sees.
async fn front_door() -> (Mesh, SocketAddr, Seen) {
    let one = peer("one");
    let identity = Authority::generate("test").unwrap().issue(&one).unwrap();
    let mut spec = AppSpec::new(AppName::new("shop").unwrap());
    spec.policy.session = SessionMode::None;
    spec.policy.start = StartMode::AtBoot;
    let seen = Seen::default();
    let writes_to = Arc::clone(&seen);
    let app = app_fn(move || {
        let routes = Router::new().fallback(any(write_down)).with_state(Arc::clone(&writes_to));
        async { Ok::<_, std::convert::Infallible>(routes) }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::builder(identity).app(spec, app).front_door(listener);
    let mesh = mesh.start().await.unwrap();
    let door = mesh.front_doors()[0];
    // It has been started, so that no request waits.
    assert_eq!(
        exchange(door, b"GET /first HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await,
        [200]
    );
    (mesh, door, seen)
}

async fn write_down(State(seen): State<Seen>, request: axum::extract::Request) -> &'static str {
    let (parts, body) = request.into_parts();
    let host = parts.headers.get("host").map_or("-", |host| host.to_str().unwrap());
    let begins = format!("{} {} {host} ", parts.method, parts.uri);
    let body: Result<Bytes, _> = axum::body::to_bytes(body, 1 << 20).await;
    let Ok(body) = body else { return "it broke off" };
    seen.lock().unwrap().push(begins + &body.escape_ascii().to_string());
    "ok"
}

/// Sends raw bytes and no more; the status of each answer up to the end of the connection.
async fn exchange(door: SocketAddr, bytes: &[u8]) -> Vec<u16> {
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    // A reset behind the answer is as good an end.
    let _ = read.unwrap_or_else(|_| panic!("it stays open: {}", bytes.escape_ascii()));
    let text = String::from_utf8_lossy(&answer);
    // Answers follow one another, and a body ends without a line's end.
    text.split("HTTP/1.").skip(1).map(|answer| answer[2..5].parse().unwrap()).collect()
}

/// A request whose body is in chunks.
macro_rules! chunked {
    ($body:literal) => {
        concat!("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", $body)
    };
}

/// A request with so many fields.
macro_rules! with {
    ($fields:literal, $body:literal) => {
        concat!("POST /a HTTP/1.1\r\nHost: x\r\n", $fields, "\r\n", $body)
    };
}

/// What is refused with 400.
const REFUSED: &[(&str, &str)] = &[
    ("both lengths", with!("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
    (
        "both lengths, turned",
        with!("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
    ),
    ("two lengths", with!("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!")),
    ("two equal lengths", with!("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")),
    ("a list of lengths", with!("Content-Length: 5, 6\r\n", "hello!")),
    ("a list of equal lengths", with!("Content-Length: 5, 5\r\n", "hello")),
    ("a signed length", with!("Content-Length: +5\r\n", "hello")),
    ("a negative length", with!("Content-Length: -5\r\n", "hello")),
    ("a length in hexadecimal", with!("Content-Length: 0x5\r\n", "hello")),
    ("a length with a blank in it", with!("Content-Length: 1 0\r\n", "hello")),
    ("a length with a fraction", with!("Content-Length: 5.0\r\n", "hello")),
    ("a quoted length", with!("Content-Length: \"5\"\r\n", "hello")),
    ("an empty length", with!("Content-Length:\r\n", "")),
    ("a length beyond 64 bits", with!("Content-Length: 99999999999999999999\r\n", "")),
    ("a length behind a vertical tab", with!("Content-Length: \x0b5\r\n", "hello")),
    ("a length with a space before the colon", with!("Content-Length : 5\r\n", "hello")),
    ("an unknown coding last", with!("Transfer-Encoding: chunked, sideways\r\n", "0\r\n\r\n")),
    ("an unknown coding first", with!("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n")),
    ("chunked twice", with!("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n")),
    ("a comma behind chunked", with!("Transfer-Encoding: chunked,\r\n", "0\r\n\r\n")),
    ("a comma before chunked", with!("Transfer-Encoding: ,chunked\r\n", "0\r\n\r\n")),
    ("a parameter of chunked", with!("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n")),
    ("a quoted coding", with!("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n")),
    ("identity", with!("Transfer-Encoding: identity\r\n", "")),
    ("no coding", with!("Transfer-Encoding:\r\n", "0\r\n\r\n")),
    ("a disguised coding", with!("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n")),
    ("a coding cut by a blank", with!("Transfer-Encoding: chunk ed\r\n", "0\r\n\r\n")),
    (
        "a coding in two fields",
        with!("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ),
    (
        "codings in two fields",
        with!("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"),
    ),
    ("a coding on a folded line", with!("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n")),
    ("a space before the colon", with!("Transfer-Encoding : chunked\r\n", "0\r\n\r\n")),
    ("a tab before the colon", with!("Transfer-Encoding\t: chunked\r\n", "0\r\n\r\n")),
    ("a vertical tab in a coding", with!("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n")),
    ("a NUL in a coding", with!("Transfer-Encoding: chunked\0\r\n", "0\r\n\r\n")),
    ("a blank before a name", with!(" Transfer-Encoding: chunked\r\n", "0\r\n\r\n")),
    (
        "a coding in HTTP/1.0",
        "POST /a HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("a size that is none", chunked!(";x\r\n\r\n")),
    ("an empty size", chunked!("\r\n0\r\n\r\n")),
    ("a size of too many digits", chunked!("00000000000000005\r\nhello\r\n0\r\n\r\n")),
    ("a size beyond 64 bits", chunked!("fffffffffffffffff\r\nhello\r\n0\r\n\r\n")),
    ("a size with a prefix", chunked!("0x5\r\nhello\r\n0\r\n\r\n")),
    ("a signed size", chunked!("+5\r\nhello\r\n0\r\n\r\n")),
    ("a negative size", chunked!("-5\r\nhello\r\n0\r\n\r\n")),
    ("a size behind a blank", chunked!(" 5\r\nhello\r\n0\r\n\r\n")),
    ("two sizes", chunked!("5 5\r\nhello\r\n0\r\n\r\n")),
    ("a size with an underscore", chunked!("1_0\r\n0123456789012345\r\n0\r\n\r\n")),
    ("a line feed alone behind a size", chunked!("5\nhello\r\n0\r\n\r\n")),
    ("a carriage return alone behind a size", chunked!("5\rhello\r\n0\r\n\r\n")),
    ("a line feed alone in an extension", chunked!("5;x\nhello\r\n0\r\n\r\n")),
    ("a NUL in an extension", chunked!("5;x\0\r\nhello\r\n0\r\n\r\n")),
    ("a NUL in a quoted extension", chunked!("5;x=\"\0\"\r\nhello\r\n0\r\n\r\n")),
    ("a control character in an extension", chunked!("5;\x01\r\nhello\r\n0\r\n\r\n")),
    ("a DEL in an extension", chunked!("5;\x7f\r\nhello\r\n0\r\n\r\n")),
    ("a NUL in the last extension", chunked!("5\r\nhello\r\n0;\0\r\n\r\n")),
    ("a line feed alone behind a chunk", chunked!("5\r\nhello\n0\r\n\r\n")),
    ("a chunk longer than its size", chunked!("5\r\nhello!\r\n0\r\n\r\n")),
    ("a chunk shorter than its size", chunked!("5\r\nhell\r\n0\r\n\r\n\r\n")),
    ("a line feed alone for the end", chunked!("0\r\n\n")),
    ("a line feed alone behind the last size", chunked!("0\n\r\n")),
    ("a line feed alone in trailers", chunked!("0\r\nx: y\n\r\n")),
    ("a line feed alone behind trailers", chunked!("0\r\nx: y\r\n\n")),
    ("a carriage return alone in trailers", chunked!("0\r\nx: \ry\r\n\r\n")),
    ("a NUL in trailers", chunked!("0\r\nx: y\0\r\n\r\n")),
    ("a control character in trailers", chunked!("0\r\nx: \x01y\r\n\r\n")),
    ("no host", "GET /a HTTP/1.1\r\n\r\n"),
    ("two hosts", with!("Host: y\r\n", "")),
    ("two equal hosts", with!("Host: x\r\n", "")),
    ("a list of hosts", "GET /a HTTP/1.1\r\nHost: x, y\r\nConnection: close\r\n\r\n"),
    ("a user in the host", "GET /a HTTP/1.1\r\nHost: u@x\r\nConnection: close\r\n\r\n"),
    ("a path in the host", "GET /a HTTP/1.1\r\nHost: x/y\r\nConnection: close\r\n\r\n"),
    ("a blank in the host", "GET /a HTTP/1.1\r\nHost: x y\r\nConnection: close\r\n\r\n"),
    ("a host on a folded line", "GET /a HTTP/1.1\r\nHost:\r\n x\r\n\r\n"),
    ("a user in the target", "GET http://u@x/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    (
        "a user with a password in the target",
        "GET http://u:p@x/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ),
    ("a whole URI and two hosts", "GET http://x/a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
    ("a whole URI and no host", "GET http://x/a HTTP/1.1\r\n\r\n"),
    ("no slash", "DELETE a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    ("a fragment in the target", "GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a fragment in the query", "GET /a?b#c HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a target that is a fragment", "GET # HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("an empty fragment", "POST /a# HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok"),
    ("a fragment in a whole URI", "GET http://x/a#b HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a fragment behind a host", "GET http://x#@y/a HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a fragment behind an asterisk", "OPTIONS *#a HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a NUL in the target", "GET /a\0b HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a control character in the target", "GET /a\x01b HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a tab in the target", "GET /a\tb HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a vertical tab in the target", "GET /a\x0bb HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a DEL in the target", "GET /a\x7fb HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    ("a DEL in the query", "GET /a?\x7f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    ("an angle bracket in the target", "GET /<a> HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    ("an angle bracket in the query", "GET /?> HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    ("a URI of FTP", "GET ftp://x/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    ("a URI of WebSocket", "GET ws://x/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    ("a URI of a file", "GET file:///a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    (
        "a URI of an unknown scheme",
        "GET x+y://x/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ),
    ("the whole server by FTP", "OPTIONS ftp://x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    ("a blank in the target", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a folded line", with!("X-A: one\r\n two\r\n", "")),
    ("a line folded by a tab", with!("X-A: one\r\n\ttwo\r\n", "")),
    ("a field without a colon", with!("nonsense\r\n", "")),
    ("a field without a name", with!(": x\r\n", "")),
    ("a name with a blank", with!("X A: x\r\n", "")),
    ("a name with a bracket", with!("X[A]: x\r\n", "")),
    ("a control character in a field", with!("X-A: a\x01b\r\n", "")),
    ("a NUL in a field", with!("X-A: a\0b\r\n", "")),
    ("a carriage return alone in a field", with!("X-A: a\rX-B: b\r\n", "")),
    ("a carriage return alone before the end", with!("X-A: a\r\r\n", "")),
    ("no version", "GET /a\r\nHost: x\r\n\r\n"),
    ("an unknown version", "GET /a HTTP/1.2\r\nHost: x\r\n\r\n"),
    ("a version of HTTP/2", "GET /a HTTP/2.0\r\nHost: x\r\n\r\n"),
    ("a version in lower case", "GET /a http/1.1\r\nHost: x\r\n\r\n"),
    ("a method with a bracket", "GET( /a HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a blank before the method", " GET /a HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a handshake of TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n"),
];

/// What is answered, with the statuses of its answers: what follows it on the connection is not read,
/// or is a request of its own.
const ANSWERED: &[(&str, &str, &[u16], &[&str])] = &[
    (
        "a coding in capitals, and blanks around it",
        "POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: \tCHUNKED \r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        &[200],
        &["POST /a x hello"],
    ),
    (
        "sizes with zeros, blanks, extensions and trailers",
        "POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
         0005 \r\nhello\r\n1;x=\"y\"\r\n!\r\n000;z\r\nContent-Length: 9\r\n\r\n",
        &[200],
        &["POST /a x hello!"],
    ),
    (
        "two requests at once",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nHost: y\r\nConnection: close\r\n\r\n",
        &[200, 200],
        &["POST /a x hello", "GET /b y "],
    ),
    (
        "a request in the body of another",
        "POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 18\r\n\r\nGET /b HTTP/1.1\r\n\r",
        &[200],
        &["POST /a x GET /b HTTP/1.1\\r\\n\\r"],
    ),
    (
        "a whole URI of another host",
        "GET http://y/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        &[200],
        &["GET /a y "],
    ),
    (
        "a whole URI of HTTPS, in capitals",
        "GET HTTPS://y/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        &[200],
        &["GET /a y "],
    ),
    (
        "an upgrade of HTTP/1.0",
        "GET /a HTTP/1.0\r\nHost: x\r\nConnection: keep-alive, upgrade\r\nUpgrade: x\r\n\r\n\
         GET /b HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        &[200, 400],
        &["GET /a x "],
    ),
    (
        "an upgrade that nobody grants",
        "GET /a HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\
         GET /b HTTP/1.1\r\nHost: x\r\n\r\n",
        &[200],
        &["GET /a x "],
    ),
    (
        "an ambiguous request behind a clear one",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nokPOST /b HTTP/1.1\r\nHost: x\r\n\
         Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[200, 400],
        &["POST /a x ok"],
    ),
    (
        "lengths with an underscore",
        "POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent_Length: 5\r\nTransfer_Encoding: chunked\r\n\r\n",
        &[200],
        &["POST /a x "],
    ),
    (
        "a method to forward by",
        "CONNECT y:80 HTTP/1.1\r\nHost: y:80\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
        &[501],
        &[],
    ),
];

#[tokio::test]
async fn nothing_that_two_readers_could_understand_differently_reaches_an_app() {
    let (_mesh, door, seen) = front_door().await;
    let taken = || std::mem::take(&mut *seen.lock().unwrap());
    taken();
    let mut wrong = Vec::new();
    for (what, request) in REFUSED {
        // What hides behind it would be another client's next request.
        let hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        for bytes in [(*request).to_owned(), format!("{request}{hidden}")] {
            let statuses = exchange(door, bytes.as_bytes()).await;
            let by_app = taken();
            if statuses != [400] || !by_app.is_empty() {
                wrong.push(format!("{what}: {statuses:?}, the app saw {by_app:?}"));
            }
        }
    }
    for (what, request, statuses, by_app) in ANSWERED {
        let (answers, came) = (exchange(door, request.as_bytes()).await, taken());
        if answers != *statuses || came != *by_app {
            wrong.push(format!("{what}: {answers:?}, the app saw {came:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A request over HTTP/2: its fields, its body where it has one, and its trailers.
struct Two {
    what: &'static str,
    fields: &'static [(&'static str, &'static str)],
    body: Option<&'static str>,
    trailers: &'static [(&'static str, &'static str)],
}

/// The four fields that a request begins with, and others.
macro_rules! two {
    ($what:literal, $method:literal $path:literal $authority:literal $(, $name:literal: $value:literal)*) => {
        Two {
            what: $what,
            fields: &[
                (":method", $method), (":scheme", "http"), (":authority", $authority),
                (":path", $path), $(($name, $value)),*
            ],
            body: None,
            trailers: &[],
        }
    };
}

/// A request with these fields and no others.
const fn only(what: &'static str, fields: &'static [(&'static str, &'static str)]) -> Two {
    Two { what, fields, body: None, trailers: &[] }
}

/// What is refused with 400, or whose stream or connection is reset.
const REFUSED_OVER_TWO: &[Two] = &[
    only(
        "two hosts and no authority",
        &[(":method", "GET"), (":scheme", "http"), (":path", "/a"), ("host", "x"), ("host", "y")],
    ),
    only(
        "neither a host nor an authority",
        &[(":method", "GET"), (":scheme", "http"), (":path", "/a")],
    ),
    only("no path", &[(":method", "GET"), (":scheme", "http"), (":authority", "x")]),
    only("no method", &[(":scheme", "http"), (":authority", "x"), (":path", "/a")]),
    only(
        "two paths",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "x"),
            (":path", "/a"),
            (":path", "/b"),
        ],
    ),
    only(
        "two authorities",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "x"),
            (":authority", "y"),
            (":path", "/a"),
        ],
    ),
    only(
        "a path behind other fields",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "x"),
            ("x-a", "b"),
            (":path", "/a"),
        ],
    ),
    two!("a status", "GET" "/a" "x", ":status": "200"),
    two!("an unknown pseudo-field", "GET" "/a" "x", ":hidden": "1"),
    two!("an empty path", "GET" "" "x"),
    two!("a path without a slash", "GET" "a" "x"),
    two!("a blank in the path", "GET" "/a b" "x"),
    two!("a fragment in the path", "GET" "/a#b" "x"),
    two!("a fragment in the query", "GET" "/a?b#c" "x"),
    two!("a path that is a fragment", "GET" "#" "x"),
    two!("a fragment in the authority", "GET" "/a" "x#y"),
    two!("a NUL in the path", "GET" "/a\0b" "x"),
    two!("a control character in the path", "GET" "/a\x01b" "x"),
    two!("a DEL in the path", "GET" "/a\x7fb" "x"),
    two!("an angle bracket in the path", "GET" "/<a>" "x"),
    only(
        "a scheme of FTP",
        &[(":method", "GET"), (":scheme", "ftp"), (":authority", "x"), (":path", "/a")],
    ),
    two!("a head in the path", "GET" "/a HTTP/1.1\r\nX: y" "x"),
    two!("a head in the method", "GET /b HTTP/1.1\r\nHost: x\r\n\r\nGET" "/a" "x"),
    two!("a user in the authority", "GET" "/a" "u@x"),
    two!("a path in the authority", "GET" "/a" "x/y"),
    two!("a list of authorities", "GET" "/a" "x,y"),
    two!("a field in the authority", "GET" "/a" "x\r\nX-A: b"),
    two!("a name in capitals", "GET" "/a" "x", "X-A": "b"),
    two!("a name with a blank", "GET" "/a" "x", "x a": "b"),
    two!("a name with a colon", "GET" "/a" "x", "x-a:": "b"),
    two!("a field in a name", "GET" "/a" "x", "x-a: b\r\nx-b": "c"),
    two!("an empty name", "GET" "/a" "x", "": "b"),
    two!("a field in a value", "GET" "/a" "x", "x-a": "b\r\nx-b: c"),
    two!("a line feed in a value", "GET" "/a" "x", "x-a": "b\nc"),
    two!("a NUL in a value", "GET" "/a" "x", "x-a": "b\0c"),
    two!("connection", "GET" "/a" "x", "connection": "close"),
    two!("keep-alive", "GET" "/a" "x", "keep-alive": "1"),
    two!("proxy-connection", "GET" "/a" "x", "proxy-connection": "close"),
    two!("a transfer coding", "POST" "/a" "x", "transfer-encoding": "chunked"),
    two!("an upgrade", "GET" "/a" "x", "upgrade": "websocket"),
    two!("te beyond trailers", "GET" "/a" "x", "te": "gzip"),
    two!("a length without a body", "POST" "/a" "x", "content-length": "5"),
    two!("a signed length", "POST" "/a" "x", "content-length": "+0"),
    Two {
        body: Some("hell"),
        ..two!("a body shorter than its length", "POST" "/a" "x", "content-length": "5")
    },
    Two {
        body: Some("hello!"),
        ..two!("a body longer than its length", "POST" "/a" "x", "content-length": "5")
    },
    Two {
        body: Some("hello"),
        ..two!("two lengths", "POST" "/a" "x", "content-length": "5", "content-length": "6")
    },
    Two {
        body: Some("hello"),
        ..two!("a list of lengths", "POST" "/a" "x", "content-length": "5, 5")
    },
    Two {
        body: Some("hello"),
        trailers: &[(":path", "/b"), ("x", "1")],
        ..two!("a path in trailers", "POST" "/a" "x")
    },
    Two {
        body: Some("hello"),
        trailers: &[("x", "1"), (":status", "200")],
        ..two!("a status in trailers", "POST" "/a" "x")
    },
];

const SERVED_OVER_TWO: &[(Two, &str)] = &[
    (two!("a plain one", "GET" "/a" "x"), "GET /a x "),
    (two!("another host", "GET" "/a" "x", "host": "y"), "GET /a x "),
    (
        only(
            "a host and no authority",
            &[(":method", "GET"), (":scheme", "http"), (":path", "/a"), ("host", "y")],
        ),
        "GET /a y ",
    ),
    (
        Two { body: Some("hello"), ..two!("a length", "POST" "/a" "x", "content-length": "5") },
        "POST /a x hello",
    ),
    (
        Two {
            body: Some("hello"),
            trailers: &[("content-length", "9"), ("host", "y")],
            ..two!("trailers of a head", "POST" "/a" "x", "te": "trailers")
        },
        "POST /a x hello",
    ),
];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields without compression (RFC 7541 section 6.2.2).
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let literal = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let field = |(name, value): &(&str, &str)| [vec![0], literal(name), literal(value)].concat();
    fields.iter().flat_map(field).collect()
}

/// Asks for one thing over a connection of its own; the status of the answer, or none where the
/// stream or the connection was reset.
async fn ask_over_two(door: SocketAddr, request: &Two) -> Option<u16> {
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    let ends = |last: bool| if last { END_STREAM } else { 0 };
    let without = request.body.is_none();
    bytes.extend(frame(1, END_HEADERS | ends(without), 1, &block(request.fields)));
    if let Some(body) = request.body {
        bytes.extend(frame(0, ends(request.trailers.is_empty()), 1, body.as_bytes()));
        if !request.trailers.is_empty() {
            bytes.extend(frame(1, END_HEADERS | END_STREAM, 1, &block(request.trailers)));
        }
    }
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let answer = async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.ok()?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            stream.read_exact(&mut payload).await.ok()?;
            match head[3] {
                // A status is the first field, and these are in the static table (RFC 7541, A).
                1 => {
                    let first = payload.iter().find(|byte| *byte & 0xe0 != 0x20);
                    return match first {
                        Some(0x88) => Some(200),
                        Some(0x8c) => Some(400),
                        // Of another answer.
                        _ => Some(0),
                    };
                }
                3 | 7 => return None,
                _ => {}
            }
        }
    };
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    answer.unwrap_or_else(|_| panic!("{}: no answer", request.what))
}

#[tokio::test]
async fn over_http_2_nothing_that_http_1_would_read_as_something_else_reaches_an_app() {
    let (mesh, door, seen) = front_door().await;
    let taken = || std::mem::take(&mut *seen.lock().unwrap());
    taken();
    let mut wrong = Vec::new();
    for request in REFUSED_OVER_TWO {
        let (status, by_app) = (ask_over_two(door, request).await, taken());
        if !matches!(status, None | Some(400)) || !by_app.is_empty() {
            wrong.push(format!("{}: {status:?}, the app saw {by_app:?}", request.what));
        }
    }
    for (request, by_app) in SERVED_OVER_TWO {
        let (status, came) = (ask_over_two(door, request).await, taken());
        if status != Some(200) || came != [*by_app] {
            wrong.push(format!("{}: {status:?}, the app saw {came:?}", request.what));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let counted = "warmhop_clients_refused_total{reason=\"malformed-trailers\"} 2";
    assert!(mesh.metrics().contains(counted), "{}", mesh.metrics());
}
