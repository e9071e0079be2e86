//! How many requests an app gets at once on one connection.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use http::StatusCode;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tower::Service;

use super::*;
use crate::child::launch::Protocol;
use crate::child::service::ChildService;

/// An app that takes so many requests at once on a connection, and refuses those beyond. Also returns
/// how many connections it has had.
async fn app_of(streams_max: u32) -> (ChildService, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let service = ChildService::new(listener.local_addr().unwrap().port(), Protocol::H2);
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let answer = hyper::service::service_fn(|request: Request<Incoming>| async {
                request.into_body().collect().await?;
                sleep(Duration::from_millis(20)).await;
                Ok::<_, hyper::Error>(Response::new(Body::from("ok")))
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .max_concurrent_streams(streams_max)
                    .serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
    (service, accepted)
}

/// A request whose body can be sent only once.
fn upload() -> Request<Body> {
    let frame = Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x")));
    let body = StreamBody::new(futures_util::stream::iter([frame]));
    Request::post("/").body(Body::new(body)).unwrap()
}

#[tokio::test]
async fn an_app_gets_no_more_at_once_than_it_takes_on_the_first_connection_either() {
    for streams_max in [1, 4, 250] {
        let (service, accepted) = app_of(streams_max).await;
        let clients: Vec<_> = (0..48)
            .map(|_| {
                let mut service = service.clone();
                tokio::spawn(async move { service.call(upload()).await })
            })
            .collect();
        for client in clients {
            let response = client.await.unwrap().unwrap_or_else(|e| panic!("{streams_max}: {e}"));
            assert_eq!(response.status(), StatusCode::OK);
            response.into_body().collect().await.unwrap();
        }
        let accepted = accepted.load(Ordering::SeqCst);
        assert!(accepted <= 48 / streams_max.min(48) as usize, "{streams_max}: {accepted}");
    }
}

#[tokio::test]
async fn an_app_that_takes_one_at_a_time_and_is_slow_to_answer_holds_nobody_up() {
    let (service, accepted) = app_of(1).await;
    let (mut first, mut second) = (service.clone(), service.clone());
    // The first is open for as long as its body is.
    let (more, body) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let body = StreamBody::new(futures_util::stream::unfold(body, |mut body| async {
        Some((body.recv().await?, body))
    }));
    let endless = Request::post("/").body(Body::new(body)).unwrap();
    let first = tokio::spawn(async move { first.call(endless).await });
    let opened = async {
        while accepted.load(Ordering::SeqCst) == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), opened).await.expect("no connection for the first");
    assert_eq!(second.call(upload()).await.unwrap().status(), StatusCode::OK);
    drop(more);
    assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(accepted.load(Ordering::SeqCst), 2);
}

/// An app that takes so many requests on each connection, says so by a `GOAWAY` at once, and looks at
/// nothing that comes behind them. Also returns how long the body of each was that it took.
async fn leaving_app(takes: u32) -> (ChildService, Arc<std::sync::Mutex<Vec<usize>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let service = ChildService::new(listener.local_addr().unwrap().port(), Protocol::H2);
    let bodies = Arc::new(std::sync::Mutex::new(Vec::new()));
    let taken = Arc::clone(&bodies);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(takes_some(stream, takes, Arc::clone(&taken)));
        }
    });
    (service, bodies)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

async fn takes_some(
    mut stream: tokio::net::TcpStream,
    takes: u32,
    taken: Arc<std::sync::Mutex<Vec<usize>>>,
) -> std::io::Result<()> {
    const PREFACE_BYTES: usize = 24;
    stream.read_exact(&mut [0; PREFACE_BYTES]).await?;
    stream.write_all(&frame(4, 0, 0, &[])).await?;
    let last = 2 * takes - 1;
    let mut bodies = std::collections::HashMap::<u32, usize>::new();
    let mut answered = 0;
    while answered < takes {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await?;
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes(head[5..].try_into().unwrap());
        match kind {
            1 if id == last => {
                let left = [&last.to_be_bytes()[..], &[0; 4]].concat();
                stream.write_all(&frame(7, 0, 0, &left)).await?;
            }
            4 if flags == 0 => stream.write_all(&frame(4, 1, 0, &[])).await?,
            6 if flags == 0 => stream.write_all(&frame(6, 1, 0, &payload)).await?,
            _ => {}
        }
        if kind == 0 && length > 0 {
            let more = length.to_be_bytes();
            stream.write_all(&frame(8, 0, 0, &more)).await?;
            if id <= last {
                *bodies.entry(id).or_default() += length as usize;
                stream.write_all(&frame(8, 0, id, &more)).await?;
            }
        }
        // The end of a request: its answer is an empty 200.
        if kind <= 1 && flags & 1 == 1 && id <= last {
            taken.lock().unwrap().push(bodies.remove(&id).unwrap_or_default());
            stream.write_all(&frame(1, 5, id, &[0x88])).await?;
            answered += 1;
        }
    }
    // What the client has sent is read to its end: otherwise the close would be a reset.
    stream.shutdown().await?;
    while stream.read(&mut [0; 4096]).await? > 0 {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_app_left_without_taking_it_is_sent_again_whole_however_soon_it_leaves() {
    for takes in [1, 3] {
        for (pieces, bytes) in [(0, 0), (1, 10), (5, 1000), (3, 10_000), (6, 10_000)] {
            let (service, taken) = leaving_app(takes).await;
            let clients: Vec<_> = (0..16)
                .map(|_| {
                    let mut service = service.clone();
                    tokio::spawn(async move {
                        for _ in 0..4 {
                            let piece = Bytes::from(vec![b'x'; bytes]);
                            let frame = move |_| Ok::<_, Infallible>(Frame::data(piece.clone()));
                            let frames = futures_util::stream::iter((0..pieces).map(frame));
                            let body = Body::new(StreamBody::new(frames));
                            let request = Request::post("/").body(body).unwrap();
                            let case = format!("{takes} taken, {pieces} of {bytes}");
                            let answer = service.call(request).await;
                            let answer = answer.unwrap_or_else(|error| panic!("{case}: {error}"));
                            assert_eq!(answer.status(), StatusCode::OK, "{case}");
                        }
                    })
                })
                .collect();
            for client in clients {
                client.await.unwrap();
            }
            assert_eq!(*taken.lock().unwrap(), [pieces * bytes; 64], "each once, and whole");
        }
    }
}
