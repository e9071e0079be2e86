//! The id of a session that is renewed or cleared is dead: everywhere, once the response is out.
#![allow(missing_docs, reason = "a test crate")]

mod bed;

use bed::{Bed, Client, Gate, Plan};
use warmhop::config::SessionMode;

/// Three peers: the app ready on the first, cold on the others.
async fn three() -> Bed {
    let portable = || Plan { session: SessionMode::Portable, ..Plan::default() };
    let warm = Gate::new(true);
    let mut bed = Bed::new();
    bed.add_ready("one", portable(), &warm).await;
    for name in ["two", "three"] {
        let mesh = bed.add(name, portable(), &Gate::new(false)).await;
        bed.believes(&mesh, "one", "ready").await;
    }
    bed
}

#[tokio::test]
async fn a_renewed_session_goes_on_under_a_new_cookie_and_the_old_one_opens_nothing_anywhere() {
    let bed = three().await;
    // At the peer that runs the app, and through a hop.
    for door in [0, 1] {
        let mut client = Client::default();
        client.post(&bed.peers[door], "/add", "cart").await;
        let mut planted = client.clone();
        assert_eq!(client.post(&bed.peers[door], "/login", "").await.text, "cart ");
        assert_ne!(client.cookie, planted.cookie);
        for mesh in &bed.peers {
            assert_eq!(planted.get(mesh, "/").await.text, "");
            assert_eq!(client.get(mesh, "/").await.text, "cart ");
        }
        // A client that reads with the old cookie gets no other one.
        assert_ne!(client.cookie, planted.cookie);
        assert_eq!(planted.post(&bed.peers[2], "/add", "theirs").await.text, "theirs ");
        assert_eq!(client.post(&bed.peers[2], "/add", "book").await.text, "cart book ");
    }
}

#[tokio::test]
async fn the_new_cookie_outlives_the_peer_that_renewed_it() {
    let mut bed = three().await;
    let mut client = Client::default();
    client.post(&bed.peers[1], "/add", "cart").await;
    let mut planted = client.clone();
    client.post(&bed.peers[1], "/login", "").await;
    bed.peers.remove(1).shutdown().await;
    for mesh in &bed.peers {
        assert_eq!(client.get(mesh, "/").await.text, "cart ");
        assert_eq!(planted.get(mesh, "/").await.text, "");
    }
}

#[tokio::test]
async fn a_repeat_of_the_login_gets_the_first_answer_and_its_cookie_and_no_other_key_does() {
    let bed = three().await;
    let mut client = Client::default();
    client.post(&bed.peers[1], "/add", "cart").await;
    let (mut unanswered, mut planted) = (client.clone(), client.clone());
    client.post_keyed(&bed.peers[1], "/login", "login", "").await;
    let repeat = unanswered.post_keyed(&bed.peers[2], "/login", "login", "").await;
    assert_eq!((repeat.text.as_str(), repeat.field("warmhop-replayed")), ("cart ", "?1"));
    let mut renewed = [client, unanswered];
    for client in &mut renewed {
        assert_eq!(client.get(&bed.peers[0], "/").await.text, "cart ");
        // The key is known under the new id, too.
        let again = client.post_keyed(&bed.peers[0], "/login", "login", "").await;
        assert_eq!(again.field("warmhop-replayed"), "?1");
    }
    let other = planted.post_keyed(&bed.peers[0], "/login", "guessed", "").await;
    assert_eq!((other.text.as_str(), other.field("warmhop-replayed")), ("", ""));
    assert_eq!(planted.get(&bed.peers[0], "/").await.text, "");
}

#[tokio::test]
async fn a_cleared_session_takes_its_id_with_it() {
    let bed = three().await;
    let mut client = Client::default();
    client.post(&bed.peers[1], "/add", "secret").await;
    let mut kept = client.clone();
    assert_eq!(client.post(&bed.peers[1], "/logout", "").await.text, "bye");
    assert_eq!(client.post(&bed.peers[1], "/add", "new").await.text, "new ");
    for mesh in &bed.peers {
        assert_eq!(kept.get(mesh, "/").await.text, "", "neither the old state nor the new");
        assert_eq!(client.get(mesh, "/").await.text, "new ");
    }
}

#[tokio::test]
async fn requests_that_run_beside_a_renewal_see_all_of_the_old_session_or_nothing() {
    let bed = three().await;
    let mut client = Client::default();
    client.post(&bed.peers[1], "/add", "cart").await;
    let mut beside = tokio::task::JoinSet::new();
    for turn in 0..12 {
        let (mesh, mut old) = (bed.peers[turn % 3].clone(), client.clone());
        beside.spawn(async move {
            let text = old.get(&mesh, "/").await.text;
            (text, old)
        });
    }
    assert_eq!(client.post(&bed.peers[1], "/login", "").await.text, "cart ");
    while let Some(done) = beside.join_next().await {
        let (text, mut old) = done.unwrap();
        assert!(text.is_empty() || text == "cart ", "{text}");
        assert_eq!(old.get(&bed.peers[0], "/").await.text, "", "none was given the new cookie");
    }
    assert_eq!(client.get(&bed.peers[0], "/").await.text, "cart ");
}
