//! What an access log gets about clients' requests.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bed;

use std::sync::{Arc, Mutex};

use bed::{Bed, Client, Gate, Plan, eventually};
use bytes::Bytes;
use http::{Method, Request};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tower::ServiceExt;
use warmhop::access::{Access, AccessEnd, AccessSink};
use warmhop::config::StartMode;
use warmhop::{Body, BoxError, Mesh};

/// Keeps all entries that it gets.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Access>>>);

impl AccessSink for Kept {
    fn record(&self, access: Access) {
        self.0.lock().unwrap().push(access);
    }
}

impl Kept {
    fn all(&self) -> Vec<Access> {
        self.0.lock().unwrap().clone()
    }
}

async fn ask(mesh: &Mesh, method: Method, target: &str) -> Body {
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header("host", "shop.localhost")
        .header("x-request-id", "one-and-only")
        .body(Body::empty())
        .unwrap();
    mesh.service().oneshot(request).await.unwrap().into_body()
}

#[tokio::test]
async fn each_request_is_recorded_once_with_its_way_and_its_bytes_after_it_has_ended() {
    let (warm, cold, kept) = (Gate::new(true), Gate::new(false), Kept::default());
    let mut bed = Bed::new();
    bed.add_ready("one", Plan::default(), &warm).await;
    let sink = kept.clone();
    let two = bed.add_built("two", Plan::default(), &cold, |built| built.access_log(sink)).await;
    bed.believes(&two, "one", "ready").await;

    let body = ask(&two, Method::GET, "/who?token=secret").await;
    assert!(kept.all().is_empty(), "its body is still to be sent");
    assert_eq!(body.collect().await.unwrap().to_bytes(), "one");
    let [access] = kept.all().try_into().unwrap();
    assert_eq!((access.status, access.way, access.bytes), (Some(200), Some("hop"), 3));
    assert_eq!((access.app.as_deref(), access.peer.as_deref()), (Some("shop"), Some("one")));
    assert_eq!((access.path.as_str(), access.query.as_deref()), ("/who", Some("token=secret")));
    assert_eq!((access.id.as_str(), access.end), ("one-and-only", AccessEnd::Complete));
    assert_eq!(access.host.as_deref(), Some("shop.localhost"));
    assert!(access.head.is_some_and(|head| head <= access.total) && !access.why.is_empty());

    drop(ask(&two, Method::GET, "/who").await);
    drop(ask(&two, Method::HEAD, "/who").await);
    drop(ask(&two, Method::CONNECT, "shop.localhost:80").await);
    drop(Client::default().get(&two, warmhop::READY_PATH).await);
    let records: Vec<_> =
        kept.all()[1..].iter().map(|access| (access.status, access.way, access.end)).collect();
    assert_eq!(
        records,
        [
            (Some(200), Some("hop"), AccessEnd::CutOff),
            (Some(200), Some("hop"), AccessEnd::Complete),
            (Some(501), Some("refuse"), AccessEnd::CutOff),
        ]
    );
    assert_eq!(kept.all()[3].problem, Some("no-connect"));
}

#[tokio::test]
async fn a_client_that_leaves_before_there_is_an_answer_is_recorded_as_such() {
    let (cold, kept) = (Gate::new(false), Kept::default());
    let mut bed = Bed::new();
    let sink = kept.clone();
    let one = bed.add_built("one", Plan::default(), &cold, |built| built.access_log(sink)).await;
    let waits = tokio::spawn({
        let one = one.clone();
        async move { ask(&one, Method::GET, "/who").await }
    });
    eventually("the client waits", || one.status().apps[0].waiting == 1).await;
    waits.abort();
    eventually("the client is gone", || !kept.all().is_empty()).await;
    let [access] = kept.all().try_into().unwrap();
    assert_eq!((access.status, access.way, access.end), (None, None, AccessEnd::ClientLeft));
    assert_eq!((access.app.as_deref(), access.peer), (Some("shop"), None));
}

#[tokio::test]
async fn a_client_that_leaves_while_its_request_runs_is_recorded_with_the_peer_that_ran_it() {
    let (warm, cold, kept) = (Gate::new(true), Gate::new(false), Kept::default());
    let mut bed = Bed::new();
    let at_boot = || Plan { start: StartMode::AtBoot, ..Plan::default() };
    let sink = kept.clone();
    let one = bed.add_built("one", at_boot(), &warm, |built| built.access_log(sink)).await;
    eventually("the app is ready on one", || one.status().apps[0].state == "ready").await;
    let sink = kept.clone();
    let two = bed.add_built("two", Plan::default(), &cold, |built| built.access_log(sink)).await;
    bed.believes(&two, "one", "ready").await;
    for (mesh, way) in [(&one, "serve"), (&two, "hop")] {
        // The app waits for the end of the body, which never comes.
        let never = futures_util::stream::pending::<Result<Frame<Bytes>, BoxError>>();
        let body = Body::new(StreamBody::new(never));
        let request = Request::post("/add").header("host", "a").body(body).unwrap();
        let asks = tokio::spawn(mesh.service().oneshot(request));
        eventually("the app has it", || one.status().apps[0].in_flight == 1).await;
        asks.abort();
        eventually("the client is gone", || !kept.all().is_empty()).await;
        let [access] = std::mem::take(&mut *kept.0.lock().unwrap()).try_into().unwrap();
        assert_eq!((access.status, access.end), (None, AccessEnd::ClientLeft));
        let known = (access.app.as_deref(), access.way, access.peer.as_deref());
        assert_eq!(known, (Some("shop"), Some(way), Some("one")));
        eventually("the app has none", || one.status().apps[0].in_flight == 0).await;
    }
}
