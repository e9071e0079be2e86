//! What a message may say on its way between a client and an app, served here or through a hop:
//! targets, hosts, trailers, reason phrases, and answers that break off.
#![allow(missing_docs, reason = "a test crate")]
#![allow(clippy::unwrap_used, reason = "tests: a failed step is a failed test")]

mod bed;

use std::net::SocketAddr;

use axum::http::request::Parts;
use axum::routing::{any, get, post};
use axum::{Extension, Router};
use bed::{PATIENCE, eventually, peer};
use bytes::Bytes;
use http::header::LINK;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use warmhop::config::StartMode;
use warmhop::identity::Authority;
use warmhop::ids::AppName;
use warmhop::{AppSpec, Body, Interim, Mesh, app_fn};

/// Tells the request's line and its fields.
async fn tell(parts: Parts) -> String {
    let mut text = format!("{} {}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    text
}

/// Answers with the names of the trailers that it got.
async fn name_trailers(body: axum::body::Body) -> String {
    let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
    let mut names: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names.join(" ")
}

fn trailers() -> HeaderMap {
    ["x-sum", "set-cookie", "content_length", "x-forwarded-for", "cookie", "connection"]
        .into_iter()
        .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("x")))
        .collect()
}

/// A body of two bytes and trailers, of which some have no business there.
fn with_trailers() -> Body {
    let frames = [Frame::data(Bytes::from_static(b"ok")), Frame::trailers(trailers())];
    Body::new(StreamBody::new(futures_util::stream::iter(
        frames.map(Ok::<_, std::convert::Infallible>),
    )))
}

async fn sends_trailers() -> Response<axum::body::Body> {
    let names = "x-sum, set-cookie, content_length, x-forwarded-for";
    Response::builder()
        .header("trailer", names)
        .body(axum::body::Body::new(with_trailers()))
        .unwrap()
}

async fn says_it_otherwise() -> Response<String> {
    let mut response = Response::new("fine".to_owned());
    response.extensions_mut().insert(hyper::ext::ReasonPhrase::from_static(b"Quite Fine"));
    response
}

/// Hints, and says so.
async fn hints(interim: Option<Extension<Interim>>) -> String {
    let link = HeaderMap::from_iter([(LINK, HeaderValue::from_static("</a>"))]);
    let Some(Extension(interim)) = interim else { return "nobody to hint to".to_owned() };
    assert!(interim.send(StatusCode::EARLY_HINTS, &link));
    assert!(!interim.send(StatusCode::CONTINUE, &link), "that is for the mesh to say");
    "hinted".to_owned()
}

/// The head is there, and then the app breaks down.
async fn breaks_off() -> Response<axum::body::Body> {
    let broken = [Err::<Frame<Bytes>, _>(std::io::Error::other("broken"))];
    let body = StreamBody::new(futures_util::stream::iter(broken));
    Response::new(axum::body::Body::new(body))
}

/// It says how long it is, and breaks down before it is as long.
async fn ends_early() -> Response<axum::body::Body> {
    let frames = [
        Ok(Frame::data(Bytes::from_static(b"hello"))),
        Err::<Frame<Bytes>, _>(std::io::Error::other("broken")),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    Response::builder().header("content-length", "9").body(axum::body::Body::new(body)).unwrap()
}

/// Two peers; the app runs at the first, and the other's door leads to it through a hop.
async fn two_doors() -> ([Mesh; 2], [SocketAddr; 2]) {
    let authority = Authority::generate("test").unwrap();
    let mut meshes: Vec<Mesh> = Vec::new();
    for (name, start) in [("one", StartMode::AtBoot), ("two", StartMode::Never)] {
        let mut spec = AppSpec::new(AppName::new("shop").unwrap());
        spec.policy.start = start;
        spec.policy.session = warmhop::config::SessionMode::None;
        let app = app_fn(|| async {
            let routes = Router::new()
                .route("/trailers", post(name_trailers).get(sends_trailers))
                .route("/reason", get(says_it_otherwise))
                .route("/hints", any(hints))
                .route("/breaks", get(breaks_off))
                .route("/ends-early", get(ends_early))
                .fallback(any(tell));
            Ok::<_, std::convert::Infallible>(routes)
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let identity = authority.issue(&peer(name)).unwrap();
        let mut builder = Mesh::builder(identity).front_door(listener).app(spec, app);
        if let Some(first) = meshes.first() {
            builder = builder.seed(first.mesh_addr().to_string());
        }
        meshes.push(builder.start().await.unwrap());
    }
    let meshes: [Mesh; 2] = meshes.try_into().ok().unwrap();
    eventually("the second peer knows where the app is ready", || {
        let peers = meshes[1].status().peers;
        peers.iter().any(|p| p.name == "one" && p.apps.get("shop").is_some_and(|s| s == "ready"))
    })
    .await;
    let doors = [meshes[0].front_doors()[0], meshes[1].front_doors()[0]];
    (meshes, doors)
}

/// A client's connection that speaks HTTP/2 with prior knowledge.
async fn http_2(door: SocketAddr) -> hyper::client::conn::http2::SendRequest<Body> {
    let stream = TokioIo::new(TcpStream::connect(door).await.unwrap());
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends raw bytes; all that comes back up to the end of the connection.
async fn exchange(door: SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    // A reset behind the answer is as good an end.
    let _ = read.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn ask(door: SocketAddr, line: &str, fields: &str) -> String {
    exchange(door, &format!("{line} HTTP/1.1\r\nHost: a.test\r\n{fields}Connection: close\r\n\r\n"))
        .await
}

#[tokio::test]
async fn a_target_is_served_as_it_is_meant_or_refused() {
    let (_meshes, doors) = two_doors().await;
    for door in doors {
        for (line, status, app_gets) in [
            ("DELETE products", "400", ""),
            ("GET *", "400", ""),
            ("GET http://b.test?q=1", "200", "GET /?q=1\n"),
            ("GET http://b.test", "200", "GET /\n"),
            ("GET http://b.test", "200", "host: b.test\n"),
            ("GET http://u:p@b.test/", "400", ""),
            ("OPTIONS *", "204", ""),
            ("OPTIONS /x", "200", "OPTIONS /x\n"),
        ] {
            let answer = ask(door, line, "").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
            assert!(answer.contains("warmhop-request-id: "), "{line}: {answer}");
            assert!(answer.contains(app_gets), "{line}: {answer}");
        }
        let last = ask(door, "OPTIONS /x", "Max-Forwards: 0\r\n").await;
        assert!(last.starts_with("HTTP/1.1 204 ") && last.contains("allow: GET"), "{last}");
        let next = ask(door, "OPTIONS /x", "Max-Forwards: 7\r\n").await;
        assert!(next.contains("max-forwards: 6\n"), "{next}");

        let old = exchange(door, "GET /x HTTP/1.0\r\n\r\n").await;
        assert!(old.contains("host: localhost\n") && !old.contains("127.0.0.1:"), "{old}");
    }
}

#[tokio::test]
async fn trailers_pass_both_ways_without_what_a_head_is_believed_for() {
    let (_meshes, doors) = two_doors().await;
    for door in doors {
        let request = "POST /trailers HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\
             Connection: close\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\nx-forwarded-for: 6.6.6.6\r\n\
             Cookie: warmhop=forged\r\nconnection: x\r\ncontent_length: 9\r\nX_Forwarded_For: 6\r\n\r\n";
        let answer = exchange(door, request).await;
        assert!(answer.ends_with("\r\n\r\nx-sum"), "{answer}");

        for willing in ["TE: trailers\r\n", "TE: gzip\r\n", ""] {
            let answer = ask(door, "GET /trailers", willing).await;
            assert!(answer.ends_with("2\r\nok\r\n0\r\nx-sum: x\r\n\r\n"), "{answer}");
        }
        let answer = ask(door, "GET /trailers", "TE: trailers;q=0\r\n").await;
        assert!(answer.ends_with("2\r\nok\r\n0\r\n\r\n"), "{answer}");

        let mut sender = http_2(door).await;
        let request = Request::post("http://a.test/trailers").body(with_trailers()).unwrap();
        let answer =
            sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(answer.to_bytes(), "x-sum");
        let request = Request::get("http://a.test/trailers").body(Body::empty()).unwrap();
        let answer =
            sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        let names: Vec<_> = answer.trailers().unwrap().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-sum"]);
    }
}

#[tokio::test]
async fn an_app_sends_early_hints_to_clients_that_can_get_them() {
    let (_meshes, doors) = two_doors().await;
    for door in doors {
        // The second one is of a kind that is left to hyper.
        for (line, fields) in [("GET /hints", ""), ("POST /hints", "Expect: 100-continue\r\n")] {
            let answer = ask(door, line, fields).await;
            let rest = answer.strip_prefix("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
            let rest = rest.unwrap_or_else(|| panic!("{line}: {answer}"));
            assert!(rest.starts_with("HTTP/1.1 200 OK\r\n"), "{line}: {answer}");
            assert!(rest.ends_with("\r\n\r\nhinted"), "{line}: {answer}");
        }
        let old = exchange(door, "GET /hints HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
        assert!(old.starts_with("HTTP/1.0 200 OK\r\n"), "{old}");
        assert!(old.ends_with("\r\n\r\nnobody to hint to"), "{old}");

        let mut sender = http_2(door).await;
        let request = Request::get("http://a.test/hints").body(Body::empty()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "nobody to hint to");
    }
}

#[tokio::test]
async fn over_http_2_a_request_names_one_host_and_no_user() {
    let (_meshes, doors) = two_doors().await;
    let mut sender = http_2(doors[0]).await;
    let mut status = async |uri: &str, hosts: &[&'static str]| {
        let mut request = Request::get(uri).body(Body::empty()).unwrap();
        for host in hosts {
            request.headers_mut().append("host", HeaderValue::from_static(host));
        }
        sender.send_request(request).await.map(|response| response.status()).ok()
    };
    assert_eq!(status("http://a.test/", &[]).await, Some(StatusCode::OK));
    // The client's library refuses to send some; what it sends is refused here.
    for (uri, hosts) in [("/", &["a.test", "b.test"][..]), ("http://u@a.test/", &[])] {
        assert_ne!(status(uri, hosts).await, Some(StatusCode::OK), "{uri} {hosts:?}");
    }
}

#[tokio::test]
async fn an_answer_keeps_its_reason_and_one_that_breaks_off_is_cut_off() {
    let (_meshes, doors) = two_doors().await;
    for door in doors {
        let answer = ask(door, "GET /reason", "").await;
        assert!(answer.starts_with("HTTP/1.1 200 Quite Fine\r\n"), "{answer}");
        let answer = ask(door, "GET /breaks", "").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("transfer-encoding: chunked"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n") && !answer.ends_with("0\r\n\r\n"), "{answer}");
        // A client that keeps its connection open sees an end, and no other length.
        for target in ["/breaks", "/ends-early"] {
            let answer = exchange(door, &format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(!answer.contains("content-length: 0"), "{answer}");
            assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
            assert_eq!(answer.ends_with("\r\n\r\nhello"), target == "/ends-early", "{answer}");
        }
    }
}
