use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use http::HeaderName;
use http_body_util::{BodyExt as _, StreamBody};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::oneshot;

use super::*;
use crate::http::clients::{ClientLimits, Clients};
use crate::http::departure::ConnectionRequests;

const LONG: usize = 100_000;

/// Answers by path.
struct App(ConnectionRequests);

impl App {
    fn new() -> Self {
        let clients = Clients::new(ClientLimits::default(), Arc::default(), Gauge::default());
        let place = clients.admit(IpAddr::from([127, 0, 0, 1]), false).unwrap();
        Self(ConnectionRequests::new(Arc::clone(place.account())))
    }
}

impl Answers for App {
    fn answer(
        &self,
        request: Box<Request<Body>>,
        bytes: usize,
    ) -> impl Future<Output = Response<CountedBody>> + Send + use<> {
        let counted = self.0.begin_of(bytes, true);
        let asked = Asked::of(&request);
        async move { counted.until_the_end_of(answer(asked).await) }
    }
}

fn streamed(frames: Vec<Result<Frame<Bytes>, BoxError>>) -> Body {
    // Each frame comes alone, as from a network.
    let frames = stream::iter(frames).then(|frame| async {
        tokio::task::yield_now().await;
        frame
    });
    Body::new(StreamBody::new(Box::pin(frames)))
}

fn data(text: &'static str) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

/// A body that knows its length and fails before it has all of it. Once it has failed it has
/// nothing more to give, and says so.
struct Short {
    first: Option<Bytes>,
    left: u64,
    failed: bool,
}

impl http_body::Body for Short {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(first) = self.first.take() {
            self.left -= first.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        self.failed = true;
        Poll::Ready(Some(Err("it broke".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.failed
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(if self.failed { 0 } else { self.left })
    }
}

/// The parts of a request on which its answer depends.
struct Asked {
    path: String,
    fields: String,
}

impl Asked {
    fn of<B>(request: &Request<B>) -> Self {
        let fields = request.headers().iter();
        let fields = fields.map(|(name, value)| format!("{name}={};", value.to_str().unwrap()));
        Self { path: request.uri().path().to_owned(), fields: fields.collect() }
    }
}

async fn answer(asked: Asked) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    answer.headers_mut().insert("x-path", asked.path.parse().unwrap());
    answer.headers_mut().insert("x-fields", asked.fields.parse().unwrap());
    let mut field = |name: &'static str, value: &'static str| {
        answer.headers_mut().append(name, HeaderValue::from_static(value));
    };
    match asked.path.as_str() {
        "/whole" => *answer.body_mut() = Body::from("hello"),
        "/says-so" => {
            field("content-length", "5");
            *answer.body_mut() = Body::from("hello");
        }
        "/later" => {
            tokio::task::yield_now().await;
            *answer.body_mut() = Body::from("hello");
        }
        "/joins" => *answer.body_mut() = Body::from("x".repeat(JOINED_BYTES_MAX + 1)),
        "/long" => *answer.body_mut() = Body::from("x".repeat(LONG)),
        "/none" => *answer.status_mut() = StatusCode::NO_CONTENT,
        "/same" => *answer.status_mut() = StatusCode::NOT_MODIFIED,
        "/missing" => *answer.status_mut() = StatusCode::NOT_FOUND,
        "/odd" => *answer.status_mut() = StatusCode::from_u16(599).unwrap(),
        "/reason" => {
            answer.extensions_mut().insert(ReasonPhrase::from_static(b"Fine"));
        }
        "/dated" => field("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        "/twice" => {
            field("set-cookie", "a=1");
            field("set-cookie", "b=2");
        }
        "/chunks" => *answer.body_mut() = streamed(vec![data("one"), data("two")]),
        "/length" => {
            field("content-length", "6");
            *answer.body_mut() = streamed(vec![data("one"), data("two")]);
        }
        "/pieces" => {
            field("content-length", "200003");
            let pieces = vec![Ok(Frame::data(Bytes::from(vec![b'x'; 200_000]))), data("end")];
            *answer.body_mut() = streamed(pieces);
        }
        "/short" => {
            field("content-length", "7");
            *answer.body_mut() = streamed(vec![data("one"), data("two")]);
        }
        "/breaks-off" => {
            field("content-length", "6");
            *answer.body_mut() = streamed(vec![data("one"), Err("it broke".into())]);
        }
        "/tagged" => {
            field("etag", "1");
            field("content-length", "5");
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
        }
        "/at-once" => {
            field("content-length", "3");
            let frames = stream::iter([data("one")]);
            *answer.body_mut() = Body::new(StreamBody::new(frames));
        }
        "/trailers" => {
            field("trailer", "x-end");
            let trailers = HeaderMap::from_iter([(
                HeaderName::from_static("x-end"),
                HeaderValue::from_static("yes"),
            )]);
            *answer.body_mut() = streamed(vec![data("one"), Ok(Frame::trailers(trailers))]);
        }
        "/breaks" => *answer.body_mut() = streamed(vec![data("one"), Err("it broke".into())]),
        "/breaks-at-once" | "/breaks-within" => {
            field("content-length", "9");
            let first = (asked.path == "/breaks-within").then(|| Bytes::from_static(b"hello"));
            *answer.body_mut() = Body::new(Short { first, left: 9, failed: false });
        }
        "/closes" => field("connection", "close"),
        _ => {}
    }
    answer
}

async fn by_hyper<IO>(io: IO, first: Option<Box<Response<Ahead>>>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (app, first) = (App::new(), Mutex::new(first));
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let first = first.lock().unwrap().take();
        let (counted, asked) = (app.0.begin(&request), Asked::of(&request));
        async move {
            let body = request.into_body().collect().await;
            if let Some(first) = first {
                return Ok(*first);
            }
            assert!(body.is_ok());
            let answer = answer(asked).await;
            Ok::<_, Infallible>(counted.until_the_end_of(answer).map(Ahead::from))
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(io), service)
        .await;
}

async fn by_both(io: DuplexStream) {
    if let Left::Other { io, answer } = serve(io, &App::new(), &AtomicBool::new(false)).await {
        by_hyper(io, answer).await;
    }
}

/// The answers to a client that sends `text` in steps of `step` bytes, with the fields in order and
/// without dates.
async fn answers<S>(
    text: &[u8],
    step: usize,
    serving: impl FnOnce(DuplexStream) -> S,
) -> Vec<String>
where
    S: Future<Output = ()> + Send + 'static,
{
    let (mut client, server) = duplex(1 << 20);
    let served = tokio::spawn(serving(server));
    for piece in text.chunks(step) {
        // The server may have ended the connection already.
        if client.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    served.await.unwrap();
    let text = String::from_utf8(all).unwrap();
    let answers = text.split("HTTP/1.1 ").skip(1);
    let in_order = |answer: &str| {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let mut fields: Vec<_> = head.split("\r\n").collect();
        let dates = |field: &&str| field.starts_with("date: ") && !field.contains("1970");
        assert!(fields.iter().filter(|field| field.starts_with("date: ")).count() == 1, "{head}");
        fields.retain(|field| !dates(field));
        fields[1..].sort_unstable();
        format!("{}\n{body}", fields.join("\n"))
    };
    answers.map(in_order).collect()
}

#[tokio::test]
async fn whatever_is_asked_and_answered_a_client_sees_what_hyper_alone_would_send() {
    let paths = [
        "whole",
        "says-so",
        "later",
        "joins",
        "long",
        "none",
        "same",
        "missing",
        "odd",
        "reason",
        "dated",
        "twice",
        "chunks",
        "length",
        "at-once",
        "trailers",
        "breaks",
        "breaks-at-once",
        "breaks-within",
        "pieces",
        "breaks-off",
        "tagged",
        "closes",
    ];
    let get = |path: &str| format!("GET /{path} HTTP/1.1\r\nHost: x\r\nA: \r\na: 1\r\n\r\n");
    let post =
        |path: &str| format!("POST /{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET /");
    let last = "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for path in paths {
        for (before, asked) in [
            (String::new(), get(path)),
            (get("whole"), post(path)),
            (post("later"), get(path)),
            (get("chunks"), post(path)),
        ] {
            // It is followed by a common one, and the last.
            let text = format!("{before}{asked}{}{last}", get("whole"));
            let expected = answers(text.as_bytes(), text.len(), |io| by_hyper(io, None)).await;
            assert!(!expected.is_empty());
            for step in [text.len(), 7] {
                let seen = answers(text.as_bytes(), step, by_both).await;
                assert!(
                    seen == expected,
                    "{path} in steps of {step}: {seen:#?}, not {expected:#?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn requests_of_another_kind_are_hypers_with_all_that_follows_them() {
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(FIELDS_MAX));
    for other in [
        "HEAD /whole HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: x\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 16385\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\nthe rest is still to come",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        "\0\r\n\r\n",
        many.as_str(),
    ] {
        let (mut client, server) = duplex(1 << 20);
        let plain = "GET /whole HTTP/1.1\r\nHost: x\r\nConnection: Keep-Alive\r\n\r\n";
        let follows = "GET /behind HTTP/1.1\r\nHost: x\r\n\r\n";
        client.write_all(format!("{plain}{other}{follows}").as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let left = serve(server, &App::new(), &AtomicBool::new(false)).await;
        let Left::Other { mut io, answer } = left else { panic!("it is over: {other}") };
        assert!(answer.is_none());
        let mut rest = String::new();
        io.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, format!("{other}{follows}"));
    }
}

#[tokio::test]
async fn a_head_without_an_end_is_left_to_hyper_in_time() {
    let (mut client, server) = duplex(1 << 20);
    let endless = format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(2 * HEAD_BYTES_MAX));
    client.write_all(endless.as_bytes()).await.unwrap();
    let left = serve(server, &App::new(), &AtomicBool::new(false)).await;
    let Left::Other { io, .. } = left else { panic!("it is over") };
    assert!(io.first.len() <= HEAD_BYTES_MAX + 2 * READ_BYTES, "{}", io.first.len());
}

/// Answers once it gets a signal.
struct Slow(App, Mutex<Option<oneshot::Receiver<()>>>);

impl Answers for Slow {
    fn answer(
        &self,
        request: Box<Request<Body>>,
        bytes: usize,
    ) -> impl Future<Output = Response<CountedBody>> + Send + use<> {
        let (answering, released) = (self.0.answer(request, bytes), self.1.lock().unwrap().take());
        let answering: BoxFuture<'static, _> = Box::pin(async move {
            if let Some(released) = released {
                let _ = released.await;
            }
            answering.await
        });
        answering
    }
}

fn slow() -> (Slow, oneshot::Sender<()>) {
    let (tell, released) = oneshot::channel();
    (Slow(App::new(), Mutex::new(Some(released))), tell)
}

#[tokio::test]
async fn a_connection_that_is_to_end_does_so_when_it_is_idle_or_behind_its_answer() {
    for (path, connection) in [("whole", "connection: close"), ("chunks", "connection: close")] {
        let (mut client, server) = duplex(1 << 20);
        let (app, tell) = slow();
        let ends = Arc::new(AtomicBool::new(false));
        let ends_soon = Arc::clone(&ends);
        let get = format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n");
        // A second request follows it, which is not served.
        client.write_all(get.repeat(2).as_bytes()).await.unwrap();
        let served = tokio::spawn(async move {
            if let Left::Other { io, answer } = serve(server, &app, &ends_soon).await {
                by_hyper(io, answer).await;
            }
        });
        tokio::task::yield_now().await;
        ends.store(true, Ordering::Relaxed);
        tell.send(()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        served.await.unwrap();
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1, "{answer}");
        assert!(answer.contains(connection), "{answer}");
    }
    let (mut client, server) = duplex(1 << 10);
    let left = serve(server, &App::new(), &AtomicBool::new(true)).await;
    assert!(matches!(left, Left::Ended));
    assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_with_it() {
    let (mut client, server) = duplex(1 << 10);
    let (app, tell) = slow();
    client.write_all(b"GET /whole HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let ends = AtomicBool::new(false);
    let mut serving = by_hand(serve(server, &app, &ends));
    assert!(serving().is_none(), "it waits for its answer");
    drop(client);
    assert!(matches!(serving(), Some(Left::Ended)));
    assert!(tell.is_closed(), "nobody waits for the answer any more");
}

#[tokio::test]
async fn a_connection_stays_here_behind_whatever_says_how_long_it_is() {
    for path in ["long", "length", "pieces", "none", "same"] {
        let (mut client, server) = duplex(1 << 20);
        let get = |path: &str| format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n");
        client.write_all((get(path) + &get("whole")).as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let left = serve(server, &App::new(), &AtomicBool::new(false)).await;
        assert!(matches!(left, Left::Ended), "{path}");
        let mut answers = String::new();
        client.read_to_string(&mut answers).await.unwrap();
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 2, "{answers}");
        assert!(answers.ends_with("\r\n\r\nhello"), "{answers}");
    }
}

/// Answers with a body that is longer than fits, and counts polls for its pieces.
struct Endless(ConnectionRequests, Arc<AtomicUsize>);

const PIECE: usize = 4096;

impl Answers for Endless {
    fn answer(
        &self,
        _: Box<Request<Body>>,
        bytes: usize,
    ) -> impl Future<Output = Response<CountedBody>> + Send + use<> {
        let (counted, asked) = (self.0.begin_of(bytes, true), Arc::clone(&self.1));
        let pieces = stream::repeat_with(move || {
            asked.fetch_add(1, Ordering::Relaxed);
            Ok::<_, BoxError>(Frame::data(Bytes::from_static(&[b'x'; PIECE])))
        });
        let mut answer = Response::new(Body::new(StreamBody::new(pieces)));
        answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("1000000000000"));
        async move { counted.until_the_end_of(answer) }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_has_no_more_of_its_answer_fetched_and_may_leave() {
    let (mut client, server) = duplex(PIECE);
    let asked = Arc::new(AtomicUsize::new(0));
    let app = Endless(App::new().0, Arc::clone(&asked));
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let ends = AtomicBool::new(false);
    let mut serving = by_hand(serve(server, &app, &ends));
    for _ in 0..100 {
        assert!(serving().is_none());
    }
    let fetched = asked.load(Ordering::Relaxed);
    assert!((1..=3).contains(&fetched), "{fetched} pieces for a client that takes none");
    let mut read = vec![0; 10 * PIECE];
    let mut reading = by_hand(client.read_exact(&mut read));
    while reading().is_none() {
        assert!(serving().is_none());
    }
    drop(reading);
    assert!((10..=15).contains(&asked.load(Ordering::Relaxed)), "as much as it reads is fetched");
    drop(client);
    assert!(matches!(serving(), Some(Left::Ended)));
}

#[tokio::test]
async fn of_an_answer_that_ends_too_soon_a_client_gets_what_there_was_and_sees_that_it_is_cut_off()
{
    for path in ["short", "breaks-off"] {
        let (mut client, server) = duplex(1 << 20);
        let get = format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n");
        client.write_all(get.repeat(2).as_bytes()).await.unwrap();
        let left = serve(server, &App::new(), &AtomicBool::new(false)).await;
        assert!(matches!(left, Left::Ended), "{path}");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(body, if path == "short" { "onetwo" } else { "one" });
    }
}

#[tokio::test]
async fn an_answer_that_is_longer_than_it_says_is_cut_off_and_nothing_follows_it() {
    struct Longer(ConnectionRequests);
    impl Answers for Longer {
        fn answer(
            &self,
            _: Box<Request<Body>>,
            bytes: usize,
        ) -> impl Future<Output = Response<CountedBody>> + Send + use<> {
            let counted = self.0.begin_of(bytes, true);
            let mut answer = Response::new(streamed(vec![data("one"), data("two and more")]));
            answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("6"));
            async move { counted.until_the_end_of(answer) }
        }
    }
    let (mut client, server) = duplex(1 << 20);
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2).as_slice()).await.unwrap();
    let left = serve(server, &Longer(App::new().0), &AtomicBool::new(false)).await;
    assert!(matches!(left, Left::Ended));
    drop(left);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("\r\n\r\none"), "{answer}");
}

/// Polls a future by hand, once for each call.
fn by_hand<F: Future>(future: F) -> impl FnMut() -> Option<F::Output> {
    let mut future = Box::pin(future);
    move || {
        let mut noop = Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut noop) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }
}
