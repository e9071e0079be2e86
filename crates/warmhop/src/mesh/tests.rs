//! Tests that look inside of peers: the beliefs of one about another.

use std::convert::Infallible;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use tower::ServiceExt;
use warmhop_core::config::{SessionMode, StartMode};
use warmhop_core::ids::{AppName, PeerId};
use warmhop_core::version::AppVersion;
use warmhop_core::view::{AppNews, News, Source};

use crate::app::{AppSpec, app_fn};
use crate::http::body::Body;
use crate::identity::Authority;
use crate::mesh::change::AppChanges;
use crate::mesh::running::Mesh;

fn shop() -> AppName {
    AppName::new("shop").unwrap()
}

/// A version of the shop, which answers with its name.
fn spec(version: &str, session: SessionMode, start: StartMode) -> AppSpec {
    let mut spec = AppSpec::new(shop());
    spec.version = Some(AppVersion::new(version).unwrap());
    spec.policy.session = session;
    spec.policy.start = start;
    spec
}

fn says(version: &'static str) -> impl crate::app::App {
    app_fn(move || async move {
        Ok::<_, Infallible>(tower::service_fn(move |_: Request<Body>| async move {
            Ok::<_, Infallible>(http::Response::new(Body::from(version)))
        }))
    })
}

async fn peer(
    authority: &Authority,
    name: &str,
    zone: &str,
    first: Option<&Mesh>,
    spec: AppSpec,
) -> Mesh {
    let identity = authority.issue(&PeerId::new(name).unwrap()).unwrap();
    let mut builder = Mesh::builder(identity).zone(zone).app(spec, says("1.10"));
    if let Some(first) = first {
        builder = builder.seed(first.mesh_addr().to_string());
    }
    builder.start().await.unwrap()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let within = Duration::from_secs(20);
    tokio::time::timeout(within, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// The mesh's answer to a client with this cookie.
async fn get(mesh: &Mesh, cookie: &mut Option<String>) -> String {
    let mut request = Request::get("/").header("host", "shop.test").body(Body::empty()).unwrap();
    if let Some(cookie) = cookie {
        request.headers_mut().insert("cookie", cookie.parse().unwrap());
    }
    let response = mesh.service().oneshot(request).await.unwrap();
    if let Some(set) = response.headers().get("set-cookie") {
        *cookie = Some(set.to_str().unwrap().split(';').next().unwrap().to_owned());
    }
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The belief of one peer about the app at the other.
fn believed(mesh: &Mesh, other: &Mesh) -> Option<AppNews> {
    let view = mesh.0.node.view();
    Some(view.peer(&other.0.node.me)?.apps.get(&shop())?.news.clone())
}

/// Two peers that both reach a third, and each of which advertises an address where nobody answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_others_hear_and_that_cannot_be_reached_is_named_wherever_one_looks() {
    let authority = Authority::generate("test").unwrap();
    let hub = Mesh::builder(authority.issue(&PeerId::new("hub").unwrap()).unwrap());
    let hub = hub.start().await.unwrap();
    let mut silent = Vec::new();
    let mut astray = async |name: &str, start: StartMode| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        silent.push(socket);
        let builder = Mesh::builder(authority.issue(&PeerId::new(name).unwrap()).unwrap())
            .app(spec("1.10", SessionMode::None, start), says("1.10"))
            .seed(hub.mesh_addr().to_string())
            .advertise(addr);
        (builder.start().await.unwrap(), addr)
    };
    let (far, addr) = astray("far", StartMode::AtBoot).await;
    let (near, _) = astray("near", StartMode::Never).await;
    let far_peer = || near.status().peers.into_iter().find(|it| it.name == "far");
    eventually("it is unlinked", || far_peer().is_some_and(|it| it.state == "unlinked")).await;
    let far_peer = far_peer().unwrap();
    let why = format!("nobody answers at {addr}");
    assert!(
        far_peer.alive && far_peer.unlinked.as_ref().is_some_and(|it| it.contains(&why)),
        "{far_peer:?}"
    );
    let metrics = near.metrics();
    assert!(metrics.contains("warmhop_peers{state=\"unlinked\"} 1"), "{metrics}");
    let linked = near.status().peers.into_iter().find(|it| it.name == "hub").unwrap();
    assert_eq!((linked.state.as_str(), linked.unlinked), ("alive", None));

    let ready = |it: AppNews| it.state == warmhop_core::view::AppState::Ready;
    eventually("it seems ready there", || believed(&near, &far).is_some_and(ready)).await;
    let request = Request::get("/").header("host", "shop.test").body(Body::empty()).unwrap();
    let response = near.service().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 503);
    let trace = near.recent(1).remove(0);
    let named = |why: &str| why.contains("no link to far: nobody answers at");
    assert!(trace.steps.iter().any(|step| named(&step.why)), "{trace:#?}");
}

async fn turned_away(session: SessionMode) {
    let authority = Authority::generate("test").unwrap();
    let boot = || spec("1.10", session, StartMode::AtBoot);
    let near = peer(&authority, "near", "a", None, boot()).await;
    let far = peer(&authority, "far", "b", Some(&near), boot()).await;
    let never = spec("1.10", session, StartMode::Never);
    let entry = peer(&authority, "entry", "a", Some(&near), never).await;
    let serves = |on: &Mesh, version: &str| {
        let serves = |it: &AppNews| it.version.as_ref().is_some_and(|it| it.as_str() == version);
        let believed_peer = believed(&entry, on);
        believed_peer
            .is_some_and(|it| serves(&it) && it.state == warmhop_core::view::AppState::Ready)
    };
    let reached = |on: &Mesh| {
        let name = on.status().peer.name;
        entry.status().peers.iter().any(|it| it.name == name && it.rtt_us.is_some())
    };
    let can_serve = |on: &Mesh| serves(on, "1.10") && reached(on);
    eventually("both can serve", || can_serve(&near) && can_serve(&far)).await;
    let mut cookie = None;
    assert_eq!(get(&entry, &mut cookie).await, "1.10");
    assert!(cookie.is_some());

    let old = spec("1.9", session, StartMode::AtBoot);
    near.change_apps(AppChanges::new().replace(old, says("1.9"))).unwrap();
    eventually("it is taken back", || serves(&near, "1.9")).await;
    // As if that news were still on its way: the near copy goes first.
    let AppNews { seq, .. } = believed(&entry, &near).unwrap();
    let node = &near.0.node;
    let news =
        AppNews { version: AppVersion::new("1.10").ok(), ..believed(&entry, &near).unwrap() };
    let stale = News::App {
        peer: node.me.clone(),
        incarnation: node.incarnation,
        generation: node
            .net
            .own_news_of(&shop())
            .and_then(|kind| match kind {
                News::App { generation, .. } => Some(generation),
                News::Peer(_) => None,
            })
            .unwrap(),
        news: AppNews { seq: seq + 1, ..news },
    };
    entry.0.node.edit_view(|view, now| view.apply(stale, now, Source::FirstHand));
    assert!(serves(&near, "1.10"), "it is believed so");
    let answer = get(&entry, &mut cookie).await;
    assert_eq!(answer, "1.10", "{session:?} {:#?}", entry.recent(1));
    // A client that has seen neither is served where it is sent.
    assert!(!get(&near, &mut None).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_counts_on_a_version_which_was_taken_back_is_turned_away() {
    turned_away(SessionMode::Portable).await;
    turned_away(SessionMode::Pinned).await;
}
