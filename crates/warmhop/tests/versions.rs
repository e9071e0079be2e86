//! A session that a newer version of its app has served, on peers that have different ones.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bed;

use std::convert::Infallible;

use axum::Router;
use axum::routing::get;
use warmhop::config::SessionMode;
use warmhop::{AppChanges, AppSpec, AppVersion, Mesh, app_fn};

use bed::{Bed, Client, Gate, Plan, app, eventually};

/// Has the peer serve another version, which says so, and all peers know of it.
async fn rolls(bed: &Bed, on: &Mesh, version: &'static str, session: SessionMode) {
    let mut spec = AppSpec::new(app());
    spec.version = Some(AppVersion::new(version).unwrap());
    spec.policy.session = session;
    let routes = move || async move {
        Ok::<_, Infallible>(Router::new().route("/who", get(move || async move { version })))
    };
    on.change_apps(AppChanges::new().replace(spec, app_fn(routes))).unwrap();
    let (name, version) = (on.status().peer.name, Some(version.to_owned()));
    eventually("the new copy serves", || on.status().apps[0].version == version).await;
    for other in &bed.peers {
        let all_know = || {
            let status = other.status();
            let peer = status.peers.iter().find(|peer| peer.name == name);
            // A new copy is not announced at once.
            peer.is_none_or(|peer| {
                peer.copies.get(app().as_str()).is_some_and(|copy| copy.version == version)
            })
        };
        eventually("the others know", all_know).await;
    }
}

async fn never_goes_back(session: SessionMode) {
    let mut bed = Bed::new();
    let plan = || Plan { session, ..Plan::default() };
    let one = bed.add("one", plan(), &Gate::new(true)).await;
    let two = bed.add("two", plan(), &Gate::new(true)).await;
    bed.all_see_each_other().await;
    for mesh in [&one, &two] {
        Client::default().get(mesh, "/who").await;
        eventually("its own copy serves", || mesh.status().apps[0].copy.is_some()).await;
        rolls(&bed, mesh, "1.9", session).await;
    }
    let mut early = Client::default();
    assert_eq!(early.get(&two, "/who").await.text, "1.9");
    rolls(&bed, &one, "1.10", session).await;
    let mut client = Client::default();
    for mesh in [&one, &two, &one, &two] {
        assert_eq!(client.get(mesh, "/who").await.text, "1.10");
    }
    assert_eq!(early.get(&two, "/who").await.text, "1.9", "it has not seen the new one yet");

    // It is taken back where the client was, and there elsewhere.
    rolls(&bed, &two, "1.10", session).await;
    rolls(&bed, &one, "1.9", session).await;
    for mesh in [&one, &two, &one] {
        assert_eq!(client.get(mesh, "/who").await.text, "1.10");
    }
    // Where it is nowhere, an older one is better than none.
    rolls(&bed, &two, "1.9", session).await;
    for mesh in [&one, &two] {
        assert_eq!(client.get(mesh, "/who").await.text, "1.9");
    }
    // It is not forgotten, though.
    rolls(&bed, &two, "1.10", session).await;
    assert_eq!(client.get(&one, "/who").await.text, "1.10");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_portable_session_never_goes_back_to_an_older_version_where_a_newer_is_ready() {
    never_goes_back(SessionMode::Portable).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_session_never_goes_back_to_an_older_version_where_a_newer_is_ready() {
    never_goes_back(SessionMode::Pinned).await;
}
