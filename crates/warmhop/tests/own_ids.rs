//! Pinned sessions that are known by an id of the app's own, asked for at every peer.
#![allow(missing_docs, reason = "a test crate")]
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bed;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bed::{Answer, Bed, Client, Gate, Plan, eventually};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use tokio::sync::watch;
use warmhop::config::{OwnId, OwnIdPath, SessionMode, StartMode};
use warmhop::{AppSpec, Body, BoxError, Builder, Mesh, NotSent, app_fn};

/// An app that gives ids by every way that there is, and knows those alone that its copy gave or was
/// asked to take.
fn desk(peer: &'static str, by: OwnId, version: &str) -> impl FnOnce(Builder) -> Builder {
    let mut spec = AppSpec::new("desk".parse().unwrap());
    spec.version = Some(version.parse().unwrap());
    spec.matches = vec![
        warmhop::Match::new(Some("desk.test"), "/"),
        warmhop::Match::new(Some("hall.test"), "/first/floor"),
    ];
    spec.strip_prefix = true;
    spec.policy.session = SessionMode::Pinned;
    spec.policy.session_by = vec![by];
    spec.policy.start = StartMode::AtBoot;
    let (refuses, waiting) = (watch::Sender::new(false), Arc::<AtomicU32>::default());
    let make = move || {
        let (refuses, waiting) = (refuses.clone(), Arc::clone(&waiting));
        async move {
            if *refuses.borrow() {
                std::future::pending::<()>().await;
            }
            let known: Arc<Mutex<HashSet<String>>> = Arc::default();
            Ok::<_, BoxError>(tower::service_fn(move |request: Request<Body>| {
                let path = request.uri().path().to_owned();
                let mut answer = answer(peer, &known, &request);
                let (refuses, waiting) = (refuses.clone(), Arc::clone(&waiting));
                async move {
                    match path.as_str() {
                        "/never" => std::future::pending::<()>().await,
                        // The first copy turns out to be gone: no other one follows it.
                        "/gone" if peer == "one" => {
                            waiting.fetch_add(1, Ordering::SeqCst);
                            refuses.subscribe().wait_for(|refuses| *refuses).await?;
                            return Err(NotSent::new("it is gone").refuses(true).into());
                        }
                        "/go" => _ = refuses.send_replace(true),
                        "/waiting" => {
                            let waiting = waiting.load(Ordering::SeqCst).to_string();
                            answer = Response::new(Body::from(waiting));
                        }
                        _ => {}
                    }
                    Ok::<_, BoxError>(answer)
                }
            }))
        }
    };
    move |builder| builder.app(spec, app_fn(make))
}

fn answer(peer: &str, known: &Mutex<HashSet<String>>, request: &Request<Body>) -> Response<Body> {
    let mut known = known.lock().unwrap();
    if request.uri().path() == "/anyone" {
        return Response::new(Body::from(peer.to_owned()));
    }
    if request.uri().path().starts_with("/open") {
        let id = format!("{peer}-{}", known.len());
        known.insert(id.clone());
        return Response::builder()
            .header("x-desk", &id)
            .header("set-cookie", format!("desk={id}; Path=/"))
            .header("content-type", "text/plain; charset=UTF-8")
            .body(match request.uri().path() {
                "/open-streamed" => streamed(["0{\"desk\":".to_owned(), format!("\"{id}\"}}")]),
                _ => Body::from(format!("0{{\"desk\":\"{id}\"}}")),
            })
            .unwrap();
    }
    let field = |name| request.headers().get(name).map(|it| it.to_str().unwrap().to_owned());
    let id = field("x-desk")
        .or_else(|| field("cookie").and_then(|it| Some(it.split_once("desk=")?.1.to_owned())))
        .or_else(|| Some(request.uri().query()?.strip_prefix("desk=")?.to_owned()))
        .or_else(|| Some(request.uri().path().split('/').nth(2)?.to_owned()));
    let Some(id) = id else { return Response::new(Body::from(peer.to_owned())) };
    if matches!(request.uri().path(), "/take" | "/gone") {
        known.insert(id.clone());
    }
    let mut response = Response::new(Body::from(peer.to_owned()));
    if !known.contains(&id) {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    response
}

/// A body whose length nobody knows before it has ended.
fn streamed<const N: usize>(parts: [String; N]) -> Body {
    let parts = parts.map(|part| Ok::<_, BoxError>(Frame::data(Bytes::from(part))));
    Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(parts)))
}

async fn three(by: &OwnId) -> Bed {
    three_of(by, ["1", "1", "1"]).await
}

async fn three_of(by: &OwnId, versions: [&str; 3]) -> Bed {
    let mut bed = Bed::new();
    for (name, version) in ["one", "two", "three"].into_iter().zip(versions) {
        let desk = desk(name, by.clone(), version);
        bed.add_built(name, Plan::default(), &Gate::new(true), desk).await;
    }
    eventually("each peer knows that it is ready everywhere", || {
        bed.peers.iter().all(|mesh| {
            let status = mesh.status();
            let there =
                status.peers.iter().filter(|it| it.apps.get("desk").is_some_and(|s| s == "ready"));
            let here = status.apps.iter().any(|app| app.name == "desk" && app.state == "ready");
            here && there.count() == 2
        })
    })
    .await;
    bed
}

/// Asks for `path` with the id where `by` says, as a client without a memory of its own.
async fn ask(mesh: &Mesh, by: &OwnId, path: &str, id: &str) -> Answer {
    let query = if matches!(by, OwnId::Query(_)) { format!("?desk={id}") } else { String::new() };
    let segment = if matches!(by, OwnId::Path(_)) { format!("/{id}") } else { String::new() };
    let mut request = Request::get(format!("http://desk.test{path}{segment}{query}"));
    request = match by {
        OwnId::Header(name) => request.header(name, id),
        OwnId::Cookie(_) => request.header("cookie", format!("a=b; desk={id}")),
        _ => request,
    };
    Client::default().send(mesh, request.body(Body::empty()).unwrap()).await
}

fn ways() -> [OwnId; 3] {
    [OwnId::Header("x-desk".into()), OwnId::Query("desk".into()), OwnId::Cookie("desk".into())]
}

fn in_path() -> OwnId {
    OwnId::Path(OwnIdPath::new("/*/{desk}").unwrap())
}

#[tokio::test]
async fn an_id_from_an_answer_is_served_by_the_copy_that_sent_it_whichever_peer_is_asked() {
    for by in ways().into_iter().chain([in_path()]) {
        let bed = three(&by).await;
        for (at, name) in ["one", "two", "three"].into_iter().enumerate() {
            let open = Request::get("http://desk.test/open").body(Body::empty()).unwrap();
            let opened = Client::default().send(&bed.peers[at], open).await;
            assert_eq!(opened.status, StatusCode::OK, "{by:?}");
            assert!(opened.text.contains(name), "ready here is served here: {}", opened.text);
            let cookies = opened.headers.get_all("set-cookie").iter().count();
            assert_eq!(cookies, 1, "{by:?}: the mesh sets none beside the app's");
            for _ in 0..2 {
                for mesh in &bed.peers {
                    let answer = ask(mesh, &by, "/use", opened.field("x-desk")).await;
                    assert_eq!((answer.status, &*answer.text), (StatusCode::OK, name), "{by:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn an_id_in_a_path_counts_only_if_an_answer_had_it() {
    let bed = three(&in_path()).await;
    // What stands where an id would is none, and the answer's is learnt.
    let open = Request::post("http://hall.test/first/floor/open/v2").body(Body::empty()).unwrap();
    let opened = Client::default().send(&bed.peers[1], open).await;
    let id = opened.field("x-desk");
    let encoded = id.replace("two", "%74wo");
    for mesh in &bed.peers {
        for uri in [
            format!("http://desk.test/use/{id}"),
            format!("http://desk.test/use/{encoded}/"),
            format!("http://hall.test/first/floor/use/{id}?x=1"),
        ] {
            let request = Request::get(&uri).body(Body::empty()).unwrap();
            let answer = Client::default().send(mesh, request).await;
            assert_eq!(answer.text, "two", "{uri}");
        }
    }
    for (mesh, name) in bed.peers.iter().zip(["one", "two", "three"]) {
        assert_eq!(ask(mesh, &in_path(), "/take", "mine").await.text, name, "it is pinned nowhere");
        assert_eq!(ask(mesh, &in_path(), "/open", "v2").await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn an_id_counts_in_a_small_body_of_unknown_length_as_well() {
    let by = OwnId::Query("desk".into());
    let bed = three(&by).await;
    let open = Request::get("http://desk.test/open-streamed").body(Body::empty()).unwrap();
    let opened = Client::default().send(&bed.peers[1], open).await;
    for mesh in &bed.peers {
        let answer = ask(mesh, &by, "/use", opened.field("x-desk")).await;
        assert_eq!((answer.status, &*answer.text), (StatusCode::OK, "two"));
    }
    let body = streamed(["{\"a\":{\"desk\":\"no\"},".into(), "\"desk\":\"made-up\"}".into()]);
    let join = Request::post("http://desk.test/anyone").header("content-type", "application/json");
    let joined = Client::default().send(&bed.peers[2], join.body(body).unwrap()).await;
    assert_eq!(joined.text, "three");
    for mesh in &bed.peers {
        assert_eq!(ask(mesh, &by, "/anyone", "made-up").await.text, "three");
    }
}

#[tokio::test]
async fn an_id_that_a_client_makes_up_stays_with_the_copy_that_first_served_it() {
    for by in ways() {
        let bed = three(&by).await;
        // Nobody knows it: that pins it nowhere.
        let answer = ask(&bed.peers[0], &by, "/use", "mine").await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert_eq!(ask(&bed.peers[2], &by, "/take", "mine").await.text, "three");
        for mesh in &bed.peers {
            let answer = ask(mesh, &by, "/use", "mine").await;
            assert_eq!((answer.status, &*answer.text), (StatusCode::OK, "three"), "{by:?}");
        }
    }
}

/// How many registers a peer holds, those included of which only the end is remembered.
fn held(mesh: &Mesh) -> u64 {
    let metrics = mesh.metrics();
    let line = metrics.lines().find_map(|line| line.strip_prefix("warmhop_sessions_held "));
    line.unwrap().parse().unwrap()
}

#[tokio::test]
async fn of_ids_that_an_app_refuses_no_more_than_a_few_leave_anything() {
    for by in ways() {
        let bed = three(&by).await;
        for number in 0..300 {
            let answer = ask(&bed.peers[0], &by, "/use", &format!("made-up-{number}")).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND);
        }
        let held = bed.peers.iter().map(held).max().unwrap();
        assert!(held <= 64, "{by:?}: {held} registers for 300 ids");
        // Others are claimed as before, and what the app takes is known everywhere.
        assert_eq!(ask(&bed.peers[0], &by, "/take", "mine").await.text, "one");
        let takes = bed.peers[1..].iter().map(|it| ask(it, &by, "/take", "theirs"));
        let taken = futures_util::future::join_all(takes).await;
        assert_eq!(taken[0].text, taken[1].text, "{by:?}");
        for mesh in &bed.peers {
            for (id, holder) in [("mine", "one"), ("theirs", &*taken[0].text)] {
                let answer = ask(mesh, &by, "/use", id).await;
                assert_eq!((answer.status, &*answer.text), (StatusCode::OK, holder), "{by:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_id_whose_client_leaves_before_the_first_answer_is_claimed_no_longer() {
    let by = OwnId::Header("x-desk".into());
    let bed = three(&by).await;
    {
        let asks = std::pin::pin!(ask(&bed.peers[0], &by, "/never", "mine"));
        let claimed = eventually("a claim", || bed.peers.iter().all(|mesh| held(mesh) == 1));
        tokio::select! {
            _ = asks => panic!("it is never answered"),
            () = claimed => {}
        }
    }
    let given_up = async { while ask(&bed.peers[2], &by, "/use", "mine").await.text != "three" {} };
    tokio::time::timeout(bed::PATIENCE, given_up).await.expect("it is anybody's again");
}

#[tokio::test]
async fn an_id_whose_copy_is_gone_is_anothers_from_the_next_answer_on() {
    let by = OwnId::Header("x-desk".into());
    let bed = three(&by).await;
    assert_eq!(ask(&bed.peers[0], &by, "/take", "mine").await.text, "one");
    assert_eq!(ask(&bed.peers[1], &by, "/use", "mine").await.text, "one");
    bed.peers[0].shutdown().await;
    assert_eq!(ask(&bed.peers[1], &by, "/use", "mine").await.status, StatusCode::NOT_FOUND);
    let taken = ask(&bed.peers[2], &by, "/take", "mine").await.text;
    for mesh in &bed.peers[1..] {
        let answer = ask(mesh, &by, "/use", "mine").await;
        assert_eq!((answer.status, answer.text), (StatusCode::OK, taken.clone()));
    }
}

#[tokio::test]
async fn peers_that_are_asked_at_once_for_ids_whose_copy_is_gone_choose_the_same_one() {
    let by = OwnId::Header("x-desk".into());
    for (versions, chosen) in [(["1", "1", "1"], None), (["1", "1", "2"], Some("three"))] {
        let bed = three_of(&by, versions).await;
        let ids: Vec<String> = (0..12).map(|number| format!("id-{number}")).collect();
        for id in &ids {
            assert_eq!(ask(&bed.peers[0], &by, "/take", id).await.text, "one");
            for mesh in &bed.peers[1..] {
                assert_eq!(ask(mesh, &by, "/use", id).await.text, "one");
            }
        }
        bed.peers[0].shutdown().await;
        for id in &ids {
            let (one, other) = tokio::join!(
                ask(&bed.peers[1], &by, "/take", id),
                ask(&bed.peers[2], &by, "/take", id),
            );
            assert_eq!(one.text, other.text, "{id}: two copies have it");
            assert!(chosen.is_none_or(|chosen| chosen == one.text), "{id}: {}", one.text);
            for mesh in &bed.peers[1..] {
                assert_eq!(ask(mesh, &by, "/use", id).await.text, one.text, "{id}");
            }
        }
    }
}

#[tokio::test]
async fn requests_that_find_their_copy_gone_all_go_to_the_next_one_that_is_recorded() {
    let by = OwnId::Header("x-desk".into());
    let bed = three(&by).await;
    let ids: Vec<String> = (0..12).map(|number| format!("id-{number}")).collect();
    for id in &ids {
        assert_eq!(ask(&bed.peers[0], &by, "/take", id).await.text, "one");
    }
    let gone = ids.iter().map(|id| {
        futures_util::future::join_all(bed.peers.iter().map(|mesh| ask(mesh, &by, "/gone", id)))
    });
    let all_wait = async {
        while ask(&bed.peers[0], &by, "/waiting", &ids[0]).await.text != "36" {}
        ask(&bed.peers[0], &by, "/go", &ids[0]).await
    };
    let (answers, _) = tokio::join!(futures_util::future::join_all(gone), all_wait);
    for (id, answers) in ids.iter().zip(&answers) {
        let by_whom: HashSet<&str> = answers.iter().map(|answer| &*answer.text).collect();
        assert_eq!(by_whom.len(), 1, "{id}: {by_whom:?} have it");
    }
}

#[tokio::test]
async fn a_new_id_that_reaches_all_peers_at_once_is_served_by_one_copy() {
    for by in ways() {
        let bed = three(&by).await;
        for round in 0..6 {
            let id = format!("new-{round}");
            let takes = bed.peers.iter().chain(&bed.peers).map(|it| ask(it, &by, "/take", &id));
            let taken = futures_util::future::join_all(takes).await;
            let by_whom: HashSet<&str> = taken.iter().map(|answer| &*answer.text).collect();
            assert_eq!(by_whom.len(), 1, "{by:?} {id}: {by_whom:?} have it");
            for mesh in &bed.peers {
                let answer = ask(mesh, &by, "/use", &id).await;
                assert_eq!((answer.status, &answer.text), (StatusCode::OK, &taken[0].text), "{id}");
            }
        }
    }
}
