//! Requests to a child, against small servers in this process.

mod endings;
mod heads;
mod lent;

use std::convert::Infallible;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use super::super::h2::{STREAM_WINDOW_BYTES, STREAMS_MAX};
use super::*;
use crate::child::plain::FIELDS_MAX;

async fn listener() -> (TcpListener, ChildService) {
    listener_of(Protocol::Http1).await
}

async fn listener_of(protocol: Protocol) -> (TcpListener, ChildService) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let service = ChildService::new(listener.local_addr().unwrap().port(), protocol);
    (listener, service)
}

/// A server that answers every request with `answer`.
async fn server<F, Fut>(answer: F) -> ChildService
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let (listener, service) = listener().await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(request);
                async { Ok::<_, Infallible>(answer.await) }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades(),
            );
        }
    });
    service
}

/// The same over HTTP/2, and how many connections it has had.
async fn h2_server<F, Fut>(answer: F) -> (ChildService, Arc<AtomicUsize>)
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let (listener, service) = listener_of(Protocol::H2).await;
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(request);
                async { Ok::<_, Infallible>(answer.await) }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (service, accepted)
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn get(target: &str) -> Request<Body> {
    Request::get(target).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn the_app_sees_the_target_and_host_that_the_client_asked_for() {
    let mut service = server(|request: Request<Incoming>| async move {
        let host = request.headers()[HOST].to_str().unwrap().to_owned();
        Response::new(Body::from(format!("{} {host}", request.uri())))
    })
    .await;
    let with_host = Request::get("/a?b=c").header(HOST, "shop.example").body(Body::empty());
    let http_2 =
        Request::get("https://blog.example/x").version(Version::HTTP_2).body(Body::empty());
    for (request, seen) in
        [(with_host.unwrap(), "/a?b=c shop.example"), (http_2.unwrap(), "/x blog.example")]
    {
        let response = service.call(request).await.unwrap();
        assert_eq!(response.version(), Version::HTTP_11);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), seen);
    }
    let response = service.call(Request::options("*").body(Body::empty()).unwrap()).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.starts_with(b"* 127.0.0.1:"), "{body:?}");
}

#[tokio::test]
async fn te_goes_with_the_connection_that_it_concerns() {
    let said = |request: Request<Incoming>| async move {
        let (te, connection) = (request.headers().get(TE), request.headers().get(CONNECTION));
        Response::new(Body::from(format!("{te:?} {connection:?}")))
    };
    let with_te = || Request::get("/").header(TE, "trailers");
    let upgrade = || with_te().header(CONNECTION, "upgrade").header(UPGRADE, "websocket");
    let (http1, h2) = (server(said).await, h2_server(said).await.0);
    for (service, request, seen) in [
        (&http1, with_te(), "Some(\"trailers\") Some(\"te\")"),
        (&http1, upgrade(), "None Some(\"upgrade\")"),
        (&http1, Request::get("/"), "None None"),
        (&h2, with_te(), "Some(\"trailers\") None"),
    ] {
        let request = request.body(Body::empty()).unwrap();
        let response = service.clone().call(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), seen);
    }
}

#[tokio::test]
async fn a_length_meant_for_another_body_does_not_reach_the_app() {
    let said = |request: Request<Incoming>| async move {
        let length = request.headers().get("content-length").cloned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(Body::from(format!("{length:?} {body:?}")))
    };
    for mut service in [server(said).await, h2_server(said).await.0] {
        for (body, seen) in [("", "Some(\"0\") b\"\""), ("whole", "Some(\"5\") b\"whole\"")] {
            let request = Request::post("/").header("content-length", "40").body(Body::from(body));
            let answer = service.call(request.unwrap());
            let response = timeout(Duration::from_secs(10), answer).await.unwrap().unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), seen);
        }
    }
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once_and_trailers_follow() {
    let mut service = server(|request: Request<Incoming>| async move {
        let echo = Body::new(request.into_body());
        Response::builder().header("trailer", "x-sum").body(echo).unwrap()
    })
    .await;
    let (frames, queue) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, BoxError>>(1);
    let stream = futures_from(queue);
    let request = Request::post("/echo")
        .header("te", "trailers")
        .header("trailer", "x-sum")
        .body(Body::new(StreamBody::new(stream)))
        .unwrap();
    let mut response = service.call(request).await.unwrap();
    // Each piece comes back before the next is sent, so nothing was held back.
    for piece in ["one", "two", "three"] {
        frames.send(Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).await.unwrap();
        let frame = response.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), piece);
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("7"));
    frames.send(Ok(Frame::trailers(trailers))).await.unwrap();
    drop(frames);
    let last = response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(last.into_trailers().unwrap()["x-sum"], "7");
}

fn futures_from(
    mut queue: tokio::sync::mpsc::Receiver<Result<Frame<Bytes>, BoxError>>,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, BoxError>> {
    futures_util::stream::poll_fn(move |cx| queue.poll_recv(cx))
}

#[tokio::test]
async fn an_upgrade_leaves_the_apps_side_in_the_response() {
    let mut service = server(|mut request: Request<Incoming>| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 4];
            io.read_exact(&mut word).await.unwrap();
            io.write_all(&word).await.unwrap();
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "echo")
            .body(Body::empty())
            .unwrap()
    })
    .await;
    let request = Request::get("/")
        .header("connection", "upgrade")
        .header("upgrade", "echo")
        .body(Body::empty())
        .unwrap();
    let mut response = service.call(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let side = response.extensions_mut().remove::<hyper::upgrade::OnUpgrade>().unwrap();
    let mut io = TokioIo::new(side.await.unwrap());
    io.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    io.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
}

/// Answers with as many fields as the path says.
async fn many_fields(request: Request<Incoming>) -> Response<Body> {
    const VALUE: &str = "a value as long as those of policies and cookies are, so that sizes are tried as well as numbers";
    let fields: usize = request.uri().path()[1..].parse().unwrap();
    let mut response = Response::new(Body::from("ok"));
    // `Date` and `Content-Length` are the server's.
    for number in 2..fields {
        let name = format!("x-field-{number}").parse::<http::HeaderName>().unwrap();
        response.headers_mut().insert(name, HeaderValue::from_static(VALUE));
    }
    response
}

#[tokio::test]
async fn a_response_may_have_as_many_fields_as_a_request() {
    let target = format!("/{FIELDS_MAX}");
    for mut service in [server(many_fields).await, h2_server(many_fields).await.0] {
        let response = service.call(get(&target)).await.unwrap();
        assert_eq!(response.headers().len(), FIELDS_MAX);
    }
    let too_many = get(&format!("/{}", FIELDS_MAX + 1));
    let error = server(many_fields).await.call(too_many).await.unwrap_err().to_string();
    assert!(error.contains(&format!("more than {FIELDS_MAX} fields")), "{error}");
}

#[tokio::test]
async fn connections_are_kept_and_one_that_the_app_closed_costs_no_request() {
    let (listener, mut service) = listener().await;
    let (closed, mut has_closed) = tokio::sync::mpsc::channel(1);
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            // Two answers on each connection, both with the promise to keep it.
            for _ in 0..2 {
                read_head(&mut stream).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
            drop(stream);
            closed.send(()).await.unwrap();
        }
    });
    for round in 1..=5 {
        for _ in 0..2 {
            let response = service.call(get("/")).await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
        }
        assert_eq!(accepted.load(Ordering::SeqCst), round);
        has_closed.recv().await.unwrap();
    }
}

/// An app with one connection: to each request that it reads it answers with the next pieces, each
/// written once the one before was read.
async fn app_of_one_connection(answers: &'static [&'static [&'static str]]) -> ChildService {
    let (listener, service) = listener().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        // A request that opened another connection would wait for ever.
        for pieces in answers {
            read_head(&mut stream).await;
            for piece in *pieces {
                stream.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
        std::future::pending::<()>().await;
    });
    service
}

#[tokio::test]
async fn answers_of_every_kind_leave_their_connection_to_the_next_request() {
    let service = app_of_one_connection(&[
        &["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab"],
        &["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"],
        &["HTTP/1.1 200 OK\r\ncontent-", "length: 2\r\n\r\n", "a", "b"],
        &["HTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na", "b"],
        &["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n", "1\r\nb\r\n0\r\n\r\n"],
        &["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab"],
    ])
    .await;
    for at in 0..6 {
        let response = service.clone().call(get("/")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{at}");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ab", "{at}");
    }
}

#[tokio::test]
async fn a_body_that_ends_before_its_length_is_cut_off_visibly() {
    let (listener, service) = listener().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab";
        stream.write_all(answer).await.unwrap();
    });
    let mut service = service;
    let response = service.call(get("/")).await.unwrap();
    assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(3));
    response.into_body().collect().await.unwrap_err();
}

#[tokio::test]
async fn a_request_that_an_app_may_have_seen_is_not_sent_again() {
    let (listener, mut service) = listener().await;
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    service.call(get("/")).await.unwrap_err();
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

/// An app that answers the first request on each connection and then, `closes` times, sends `last`
/// and closes when the next request has arrived. Also returns how many have arrived.
async fn closing_app(closes: usize, last: &'static str) -> (ChildService, Arc<AtomicUsize>) {
    let (listener, service) = listener().await;
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        for connection in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", last] {
                read_head(&mut stream).await;
                counted.fetch_add(1, Ordering::SeqCst);
                // A request that is sent again comes on a connection of its own.
                let answer = if connection > 0 && connection < closes { last } else { answer };
                stream.write_all(answer.as_bytes()).await.unwrap();
                if answer == last {
                    break;
                }
            }
        }
    });
    (service, requests)
}

#[tokio::test]
async fn a_safe_request_that_met_the_close_of_a_kept_connection_is_sent_once_more() {
    for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE] {
        let (mut service, requests) = closing_app(1, "").await;
        service.call(get("/")).await.unwrap();
        let mut request = get("/");
        *request.method_mut() = method;
        let response = service.call(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(requests.load(Ordering::SeqCst), 3);
    }
    let (mut service, requests) = closing_app(2, "").await;
    service.call(get("/")).await.unwrap();
    service.call(get("/")).await.unwrap_err();
    assert_eq!(requests.load(Ordering::SeqCst), 3, "once, not for ever");
}

#[tokio::test]
async fn a_request_that_was_half_answered_or_may_change_something_is_not_sent_again() {
    for (method, body, last) in [
        (Method::POST, "", ""),
        (Method::DELETE, "", ""),
        (Method::GET, "body", ""),
        (Method::GET, "", "H"),
        (Method::GET, "", "HTTP/1.1 103 Early Hints\r\n\r\n"),
    ] {
        let (mut service, requests) = closing_app(1, last).await;
        // Requests that change something are sent on connections of their own.
        let first = Request::builder().method(&method).uri("/").body(Body::empty());
        service.call(first.unwrap()).await.unwrap();
        let request = Request::builder().method(&method).uri("/").body(Body::from(body));
        service.call(request.unwrap()).await.unwrap_err();
        assert_eq!(requests.load(Ordering::SeqCst), 2, "{method} {body:?} {last:?}");
    }
}

/// A body, and whether anybody has polled it.
fn watched_body() -> (Body, Arc<AtomicBool>) {
    let asked = Arc::new(AtomicBool::new(false));
    let was_asked = Arc::clone(&asked);
    let mut bytes = Some(Bytes::from_static(b"body"));
    let stream = futures_util::stream::poll_fn(move |_| {
        was_asked.store(true, Ordering::SeqCst);
        Poll::Ready(bytes.take().map(|bytes| Ok::<_, BoxError>(Frame::data(bytes))))
    });
    (Body::new(StreamBody::new(stream)), asked)
}

fn expecting(body: Body) -> Request<Body> {
    Request::post("/")
        .header(EXPECT, "100-continue")
        .header("content-length", "4")
        .body(body)
        .unwrap()
}

#[tokio::test]
async fn the_body_of_a_request_that_expects_100_continue_waits_for_the_app() {
    let (listener, mut service) = listener().await;
    let (body, asked) = watched_body();
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(read_head(&mut stream).await.contains("expect: 100-continue"));
        assert!(!seen.load(Ordering::SeqCst), "not before the app wants it");
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let mut body = [0; 4];
        stream.read_exact(&mut body).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").await.unwrap();
        stream.write_all(&body).await.unwrap();
    });
    let response = service.call(expecting(body)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "body");
    assert!(asked.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_body_that_the_app_refuses_is_never_asked_for() {
    let (listener, mut service) = listener().await;
    let (body, asked) = watched_body();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
            .await
            .unwrap();
    });
    let response = service.call(expecting(body)).await.unwrap();
    assert_eq!(response.status(), StatusCode::EXPECTATION_FAILED);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "no");
    assert!(!asked.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn an_app_that_never_says_continue_gets_the_body_all_the_same() {
    let (listener, mut service) = listener().await;
    let (body, _) = watched_body();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await;
        let mut body = [0; 4];
        stream.read_exact(&mut body).await.unwrap();
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    });
    let response = service.call(expecting(body)).await.unwrap();
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
}

#[tokio::test(start_paused = true)]
async fn a_final_answer_without_a_100_passes_while_the_body_is_withheld() {
    let (listener, mut service) = listener().await;
    let (body, asked) = watched_body();
    let seen = Arc::clone(&asked);
    let app = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsl").await.unwrap();
        sleep(CONTINUE_TIMEOUT / 2).await;
        assert!(!seen.load(Ordering::SeqCst), "the client has its patience");
        stream.write_all(b"ow").await.unwrap();
        let mut body = [0; 4];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"body");
    });
    let response = service.call(expecting(body)).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "slow");
    app.await.unwrap();
}

#[tokio::test]
async fn an_app_of_http_2_gets_an_expected_body_once_the_patience_is_over() {
    let (mut service, _) = h2_server(|request: Request<Incoming>| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(Body::from(body))
    })
    .await;
    let (body, asked) = watched_body();
    let begun = Instant::now();
    let response = service.call(expecting(body)).await.unwrap();
    assert!(begun.elapsed() >= CONTINUE_TIMEOUT);
    assert!(asked.load(Ordering::SeqCst));
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "body");
}

#[tokio::test]
async fn an_app_of_http_2_may_answer_without_the_expected_body() {
    let (mut service, _) = h2_server(|_| async {
        let refused = Response::builder().status(StatusCode::EXPECTATION_FAILED);
        refused.body(Body::from("no")).unwrap()
    })
    .await;
    let (body, asked) = watched_body();
    let response = service.call(expecting(body)).await.unwrap();
    assert_eq!(response.status(), StatusCode::EXPECTATION_FAILED);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "no");
    assert!(!asked.load(Ordering::SeqCst));
}

/// A body that never ends, and how many bytes of it were taken.
fn endless_body(taken: Arc<AtomicUsize>) -> Body {
    const PIECE: &[u8] = &[0; 16 * 1024];
    let stream = futures_util::stream::repeat_with(move || {
        taken.fetch_add(PIECE.len(), Ordering::SeqCst);
        Ok::<_, BoxError>(Frame::data(Bytes::from_static(PIECE)))
    });
    Body::new(StreamBody::new(stream))
}

/// Waits until an app of HTTP/2 has sent all that each of `taken` has credit for.
async fn until_stalled(taken: &[Arc<AtomicUsize>]) {
    let window = STREAM_WINDOW_BYTES as usize;
    let all_sent = async {
        while taken.iter().any(|taken| taken.load(Ordering::SeqCst) < window) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), all_sent).await.expect("one stream stalls another");
}

#[tokio::test]
async fn clients_that_do_not_read_stall_nobody_else_of_an_app_of_http_2() {
    let (tell, sender) = std::sync::mpsc::sync_channel(STREAMS_MAX as usize);
    let (mut service, accepted) = h2_server(move |request: Request<Incoming>| {
        let body = match request.uri().path() {
            "/endless" => {
                let taken = Arc::new(AtomicUsize::new(0));
                tell.send(Arc::clone(&taken)).unwrap();
                endless_body(taken)
            }
            _ => Body::from("ok"),
        };
        async { Response::new(body) }
    })
    .await;
    let (mut unread, mut taken) = (Vec::new(), Vec::new());
    // One connection has a place left for a request that reads, the next has none.
    for (stalled, connections) in [(STREAMS_MAX - 1, 1), (1, 2)] {
        for _ in 0..stalled {
            unread.push(service.call(get("/endless")).await.unwrap());
        }
        taken.extend(sender.try_iter());
        until_stalled(&taken).await;
        let response = service.call(get("/")).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
        assert_eq!(accepted.load(Ordering::SeqCst), connections);
    }
    // Dropped bodies make room again.
    drop(unread);
    for _ in 0..STREAMS_MAX {
        let response = service.call(get("/")).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 2);
}

/// An app on a thread of its own that answers its first request with `answer` when the second piece
/// of the body is polled, and closes before it gets that; later requests get `204`. Also returns a
/// body for that request, of `pieces` pieces in all.
fn early_app(answer: &'static str, pieces: usize) -> (ChildService, Body) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let service = ChildService::new(listener.local_addr().unwrap().port(), Protocol::Http1);
    let (go, may_go) = std::sync::mpsc::sync_channel(1);
    let (close, closed) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            if number == 0 {
                may_go.recv().unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                drop(stream);
                close.send(()).unwrap();
            } else {
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            }
        }
    });
    let mut asked = 0;
    let stream = futures_util::stream::poll_fn(move |cx| {
        asked += 1;
        match asked {
            // The first piece is sent before the second is made.
            2 => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // The connection's task waits here, so that it writes before it reads.
            3 => {
                go.send(()).unwrap();
                closed.recv().unwrap();
            }
            _ => {}
        }
        let piece = Bytes::from_static(&[0; 64 * 1024]);
        Poll::Ready((asked <= pieces + 1).then_some(Ok::<_, BoxError>(Frame::data(piece))))
    });
    (service, Body::new(StreamBody::new(stream)))
}

#[tokio::test]
async fn an_answer_passes_though_the_app_has_closed_before_the_body_was_sent() {
    let answer = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig";
    let (mut service, body) = early_app(answer, usize::MAX - 1);
    let response = service.call(Request::post("/").body(body).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "big");
}

#[tokio::test]
async fn an_answer_without_a_length_that_a_reset_ended_is_cut_off_visibly() {
    let (mut service, body) = early_app("HTTP/1.1 413 Content Too Large\r\n\r\nbig", 2);
    let response = service.call(Request::post("/").body(body).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "big");
    body.frame().await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_connection_that_could_not_be_written_to_is_not_used_again() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let (mut service, body) = early_app(answer, 2);
    let response = service.call(Request::post("/").body(body).unwrap()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    let second = service.call(Request::post("/").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(second.status(), StatusCode::NO_CONTENT);
}

/// Whether the error means that the app has received nothing of the request, and takes no more.
fn refuses(error: &BoxError) -> bool {
    error.downcast_ref::<warmhop::NotSent>().is_some_and(|error| error.refuses)
}

#[tokio::test]
async fn an_app_that_does_not_listen_is_said_to_have_seen_nothing() {
    for protocol in [Protocol::Http1, Protocol::H2] {
        let (listener, mut service) = listener_of(protocol).await;
        drop(listener);
        for method in [Method::GET, Method::POST] {
            let request = Request::builder().method(method).uri("/").body(Body::from("x")).unwrap();
            assert!(refuses(&service.call(request).await.unwrap_err()), "{protocol:?}");
        }
    }
}

#[tokio::test]
async fn a_request_that_changes_something_is_lost_on_no_connection_that_the_app_has_closed() {
    let (listener, mut service) = listener().await;
    tokio::spawn(async move {
        loop {
            // One answer on each connection, which is then closed without notice.
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    });
    for _ in 0..200 {
        let request = Request::post("/").body(Body::from("x")).unwrap();
        let response = service.call(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_request_that_a_stopping_app_did_not_accept_is_sent_again_whatever_its_method() {
    let (listener, service) = listener_of(Protocol::H2).await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let count = Arc::new(AtomicUsize::new(0));
                let counted = Arc::clone(&count);
                let answer = hyper::service::service_fn(move |_| {
                    counted.fetch_add(1, Ordering::SeqCst);
                    async { Ok::<_, Infallible>(Response::new(Body::from("ok"))) }
                });
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer);
                tokio::pin!(connection);
                let mut leaves = false;
                std::future::poll_fn(|cx| {
                    let polled = connection.as_mut().poll(cx);
                    if !leaves && count.load(Ordering::SeqCst) >= 3 {
                        leaves = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    polled
                })
                .await
                .ok();
            });
        }
    });
    let clients = (0..8).map(|_| {
        let mut service = service.clone();
        tokio::spawn(async move {
            for _ in 0..20 {
                let request = Request::post("/").body(Body::from("x")).unwrap();
                let response = service.call(request).await.unwrap();
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap();
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

/// The HTTP/2 frames that a server with one answer needs.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const ANSWER_200: &[u8] = &[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88];
const GOAWAY_AFTER_1: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];

/// Reads up to the head of a request, and answers the first stream.
fn answer_first(stream: &mut std::net::TcpStream) {
    stream.read_exact(&mut [0; 24]).unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; length as usize]).unwrap();
        if head[3] == 1 {
            break;
        }
    }
    stream.write_all(SETTINGS).unwrap();
    stream.write_all(ANSWER_200).unwrap();
}

#[tokio::test]
async fn the_last_words_of_an_app_are_read_though_the_connection_was_reset() {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut service = ChildService::new(listener.local_addr().unwrap().port(), Protocol::H2);
    let (acked, has_acked) = oneshot::channel();
    let (leave, leaves) = std::sync::mpsc::sync_channel::<()>(1);
    let (left, has_left) = std::sync::mpsc::sync_channel(1);
    let app = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        answer_first(&mut stream);
        // The client acknowledges the settings, which nobody reads: so the close is a reset.
        stream.peek(&mut [0]).unwrap();
        acked.send(()).unwrap();
        leaves.recv().unwrap();
        stream.write_all(GOAWAY_AFTER_1).unwrap();
        drop(stream);
        left.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        answer_first(&mut stream);
        stream
    });
    assert_eq!(service.call(get("/")).await.unwrap().status(), 200);
    has_acked.await.unwrap();
    // The runtime cannot notice it before it writes the next request: it has this thread alone.
    leave.send(()).unwrap();
    has_left.recv().unwrap();
    let request = Request::post("/").body(Body::from("x")).unwrap();
    assert_eq!(service.call(request).await.unwrap().status(), 200);
    app.join().unwrap();
}
