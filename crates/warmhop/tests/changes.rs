//! What becomes of apps while their peer serves: new copies beside old ones, other apps, none.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bed;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::routing::get;
use http::StatusCode;
use tokio::sync::watch;
use warmhop::config::StartMode;
use warmhop::error::ControlError;
use warmhop::ids::AppName;
use warmhop::{App, AppChanges, AppSpec, AppVersion, Match, app_fn};

use bed::{Bed, Client, Gate, PATIENCE, Plan, app, eventually};

/// Answers `/who` with `says`, once `ready` says true; fails where it says false.
fn saying(says: &'static str, ready: &watch::Sender<Option<bool>>) -> impl App {
    let ready = ready.clone();
    app_fn(move || {
        let mut ready = ready.subscribe();
        async move {
            let well = ready.wait_for(Option::is_some).await.unwrap().unwrap();
            let routes = Router::new().route("/who", get(move || async move { says }));
            if well { Ok(routes) } else { Err("no such table") }
        }
    })
}

fn gate(open: Option<bool>) -> watch::Sender<Option<bool>> {
    watch::Sender::new(open)
}

fn spec(version: &str) -> AppSpec {
    let mut spec = AppSpec::new(app());
    spec.version = Some(AppVersion::new(version).unwrap());
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_copy_takes_over_once_it_is_ready_and_the_old_one_serves_until_then() {
    let mut bed = Bed::new();
    let mesh = bed.add("one", Plan::default(), &Gate::new(true)).await;
    let mut client = Client::default();
    assert_eq!(client.get(&mesh, "/who").await.text, "one");
    let first = mesh.status().apps[0].copy.unwrap();

    let ready = gate(None);
    let changes = AppChanges::new().replace(spec("2"), saying("two", &ready));
    mesh.change_apps(changes).unwrap();
    let status = mesh.status();
    assert_eq!((&*status.apps[0].state, status.apps[0].copy), ("ready", Some(first)));
    assert!(status.apps[0].next.is_some_and(|next| next > first));
    assert_eq!(status.apps[0].version, None);
    assert_eq!(status.apps[0].next_version.as_deref(), Some("2"));
    assert_eq!(client.get(&mesh, "/who").await.text, "one");

    ready.send_replace(Some(true));
    eventually("the new copy serves", || mesh.status().apps[0].copy > Some(first)).await;
    assert_eq!(client.get(&mesh, "/who").await.text, "two");
    assert_eq!(mesh.status().apps[0].version.as_deref(), Some("2"));
    assert_eq!(mesh.status().apps[0].next, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_copy_that_does_not_become_ready_leaves_the_old_one_in_place_and_says_so() {
    let mut bed = Bed::new();
    let mesh = bed.add("one", Plan::default(), &Gate::new(true)).await;
    let mut client = Client::default();
    assert_eq!(client.get(&mesh, "/who").await.text, "one");
    let first = mesh.status().apps[0].copy;

    let ready = gate(Some(false));
    let changes = AppChanges::new().replace(spec("2"), saying("two", &ready));
    mesh.change_apps(changes).unwrap();
    eventually("it has failed", || mesh.status().apps[0].error.is_some()).await;
    let status = &mesh.status().apps[0];
    assert_eq!((&*status.state, status.copy, status.next), ("ready", first, None));
    assert!(status.error.as_ref().unwrap().contains("no such table"), "{status:?}");
    assert_eq!(client.get(&mesh, "/who").await.text, "one");

    // By hand it is tried again.
    ready.send_replace(Some(true));
    let next = mesh.restart_app(&app()).unwrap();
    eventually("the new copy serves", || mesh.status().apps[0].copy == Some(next)).await;
    assert_eq!(client.get(&mesh, "/who").await.text, "two");
    assert_eq!(mesh.status().apps[0].error, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_meet_no_gap_while_copies_are_replaced_again_and_again() {
    let mut bed = Bed::new();
    let mesh = bed.add("one", Plan::default(), &Gate::new(true)).await;
    assert_eq!(Client::default().get(&mesh, "/who").await.status, StatusCode::OK);
    let (stop, answers) = (watch::Sender::new(false), Arc::new(AtomicU32::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (mesh, stop, answers) = (mesh.clone(), stop.subscribe(), Arc::clone(&answers));
            tokio::spawn(async move {
                while !*stop.borrow() {
                    let answer = Client::default().get(&mesh, "/who").await;
                    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
                    answers.fetch_add(1, Ordering::SeqCst);
                    // Nothing here waits for anything else.
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for _ in 0..30 {
        let next = mesh.restart_app(&app()).unwrap();
        eventually("the new copy serves", || mesh.status().apps[0].copy == Some(next)).await;
        let so_far = answers.load(Ordering::SeqCst);
        eventually("it answers", || answers.load(Ordering::SeqCst) > so_far).await;
    }
    stop.send_replace(true);
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apps_come_and_go_and_the_other_peers_hear_of_it_at_once() {
    let mut bed = Bed::new();
    let one = bed.add("one", Plan::default(), &Gate::new(true)).await;
    let two = bed.add("two", Plan::default(), &Gate::new(true)).await;
    let mut client = Client::default();
    assert_eq!(client.get(&one, "/who").await.text, "one");
    bed.believes(&two, "one", "ready").await;

    let blog = AppName::new("blog").unwrap();
    let mut spec = AppSpec::new(blog.clone());
    spec.matches = vec![Match::new(None, "/blog")];
    let ready = gate(Some(true));
    let routes = || async {
        Ok::<_, Infallible>(Router::new().route("/blog", get(|| async { "the blog" })))
    };
    one.change_apps(AppChanges::new().remove(app()).add(spec.clone(), app_fn(routes))).unwrap();
    let known_apps = || two.status().peers[0].apps.keys().cloned().collect::<Vec<_>>();
    eventually("the other peer knows", || known_apps() == ["blog"]).await;
    assert_eq!(client.get(&one, "/who").await.status, StatusCode::NOT_FOUND);
    assert_eq!(client.get(&one, "/blog").await.text, "the blog");
    // What it is asked by others it has no more, either.
    assert_eq!(client.get(&two, "/who").await.text, "two");

    // All or nothing.
    let mut same = AppSpec::new(AppName::new("news").unwrap());
    same.matches = vec![Match::new(None, "/blog/")];
    let refused = one.change_apps(AppChanges::new().add(same.clone(), saying("two", &ready)));
    assert!(matches!(refused, Err(ControlError::NotChanged { .. })), "{refused:?}");
    let refused = one.change_apps(
        AppChanges::new()
            .add(AppSpec::new(app()), app_fn(routes))
            .remove(AppName::new("nothing").unwrap()),
    );
    assert!(matches!(refused, Err(ControlError::UnknownApp { .. })), "{refused:?}");
    assert_eq!(client.get(&one, "/who").await.status, StatusCode::NOT_FOUND);

    // One takes over another's path in one step.
    let changes = AppChanges::new().remove(blog).add(same, app_fn(routes));
    one.change_apps(changes).unwrap();
    assert_eq!(client.get(&one, "/blog").await.text, "the blog");
    eventually("the other peer knows", || known_apps() == ["news"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_app_ends_what_it_has_begun() {
    let mut bed = Bed::new();
    let mesh = bed.add("one", Plan::default(), &Gate::new(true)).await;
    let (begun, go) = (watch::Sender::new(false), watch::Sender::new(false));
    let slow = {
        let (begun, go) = (begun.clone(), go.clone());
        app_fn(move || {
            let (begun, go) = (begun.clone(), go.clone());
            let answer = move || {
                let (begun, mut go) = (begun.clone(), go.subscribe());
                async move {
                    begun.send_replace(true);
                    go.wait_for(|go| *go).await.unwrap();
                    "at last"
                }
            };
            async move { Ok::<_, Infallible>(Router::new().route("/slow", get(answer))) }
        })
    };
    mesh.change_apps(AppChanges::new().replace(spec("2"), slow)).unwrap();
    let asking = tokio::spawn({
        let mesh = mesh.clone();
        async move { Client::default().get(&mesh, "/slow").await }
    });
    tokio::time::timeout(PATIENCE, begun.subscribe().wait_for(|begun| *begun))
        .await
        .expect("the app has the request")
        .unwrap();
    mesh.change_apps(AppChanges::new().remove(app())).unwrap();
    assert_eq!(Client::default().get(&mesh, "/slow").await.status, StatusCode::NOT_FOUND);
    go.send_replace(true);
    assert_eq!(asking.await.unwrap().text, "at last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_app_starts_for_nobody_and_is_served_by_others() {
    let mut bed = Bed::new();
    let one = bed.add("one", Plan { keep_ready: 1, ..Plan::default() }, &Gate::new(true)).await;
    let two = bed.add("two", Plan { keep_ready: 1, ..Plan::default() }, &Gate::new(true)).await;
    one.pause_app(&app(), true).unwrap();
    eventually("it is paused", || one.status().apps[0].state == "paused").await;
    bed.believes(&two, "one", "paused").await;
    // The other one keeps it.
    bed.believes(&one, "two", "ready").await;
    assert_eq!(Client::default().get(&one, "/who").await.text, "two");
    assert!(matches!(one.start_app(&app()), Err(ControlError::NotStartable { .. })));
    assert!(matches!(one.restart_app(&app()), Err(ControlError::NotStartable { .. })));
    two.pause_app(&app(), true).unwrap();
    bed.believes(&one, "two", "paused").await;
    assert_eq!(one.status().apps[0].state, "paused");
    one.pause_app(&app(), false).unwrap();
    eventually("it is kept ready again", || one.status().apps[0].state == "ready").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_is_paused_where_it_could_run_is_refused_at_once_at_every_peer() {
    let mut bed = Bed::new();
    let one = bed.add("one", Plan::default(), &Gate::new(true)).await;
    for name in ["two", "three"] {
        let never = Plan { start: StartMode::Never, ..Plan::default() };
        bed.add(name, never, &Gate::new(true)).await;
    }
    one.pause_app(&app(), true).unwrap();
    for other in &bed.peers[1..] {
        bed.believes(other, "one", "paused").await;
    }
    for (at, who) in bed.peers.iter().enumerate() {
        // Far sooner than the time that a request may wait, after which the problem is another.
        let answer = Client::default().get(who, "/who").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{at}");
        assert!(answer.text.contains("paused"), "{at}: {}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_is_paused_here_and_does_not_start_elsewhere_is_refused_with_the_reason() {
    let mut bed = Bed::new();
    let one = bed.add("one", Plan::default(), &Gate::new(true)).await;
    let two = bed.add("two", Plan::default(), &Gate::new(true)).await;
    let fails = saying("never", &gate(Some(false)));
    two.change_apps(AppChanges::new().replace(AppSpec::new(app()), fails)).unwrap();
    one.pause_app(&app(), true).unwrap();
    bed.believes(&two, "one", "paused").await;
    // Not only once the time is over that a request may wait: that is another problem.
    let answer = Client::default().get(&one, "/who").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text.contains("start_failed"), "{}", answer.text);
    assert!(answer.text.contains("paused here, and does not start"), "{}", answer.text);
    assert!(two.status().apps[0].starts >= 2, "it was asked to start it again");
    let resumed = saying("at last", &gate(Some(true)));
    two.change_apps(AppChanges::new().replace(AppSpec::new(app()), resumed)).unwrap();
    assert_eq!(Client::default().get(&one, "/who").await.text, "at last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_with_another_configuration_of_an_app_are_reported() {
    let mut bed = Bed::new();
    let one = bed.add("one", Plan::default(), &Gate::new(true)).await;
    let two = bed.add("two", Plan::default(), &Gate::new(true)).await;
    let with = |digest| AppSpec::new(app()).with(|spec| spec.digest = digest);
    one.change_apps(AppChanges::new().change(with(7))).unwrap();
    two.change_apps(AppChanges::new().change(with(8))).unwrap();
    for mesh in [&one, &two] {
        eventually("it is reported", || mesh.status().apps[0].differs_on.len() == 1).await;
        assert!(mesh.metrics().contains("warmhop_app_differs_on_peers{app=\"shop\"} 1"));
    }
    two.change_apps(AppChanges::new().change(with(7))).unwrap();
    for mesh in [&one, &two] {
        eventually("they agree", || mesh.status().apps[0].differs_on.is_empty()).await;
    }
}
