//! How many requests an app gets at once on one connection.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use http::StatusCode;
use http_body_util::{BodyExt, StreamBody};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tower::Service;

use super::*;
use crate::child::service::ChildService;
use crate::launch::Protocol;

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
