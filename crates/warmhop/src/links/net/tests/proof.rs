//! Which peers are admitted, and with which certificate.

use super::*;

#[tokio::test]
async fn a_foreign_authority_gets_nothing_even_under_the_same_cluster_name() {
    let authority = Authority::generate("demo").unwrap();
    let foreign = Authority::generate("demo").unwrap();
    let peer = Peer::start(config(&authority, "a", &[])).await;
    peer.net.publish_app(&app("shop"), copy_news(AppState::Ready, None, 0));
    let stranger = Peer::start(config(&foreign, "b", &[peer.addr()])).await;
    eventually("the refusal", || stranger.net.counters().dials_failed.get() > 1).await;
    assert!(stranger.seen.events.lock().unwrap().is_empty());
    assert!(peer.seen.events.lock().unwrap().is_empty());
    assert!(peer.net.connected().is_empty());
    close_all(vec![peer, stranger]).await;
}

#[tokio::test]
async fn a_client_without_a_certificate_of_the_cluster_learns_nothing() {
    let authority = Authority::generate("demo").unwrap();
    let peer = Peer::start(config(&authority, "a", &[])).await;
    // Its certificate is of the same authority, but names another cluster.
    let other = authority.in_cluster("other").issue(&id("b")).unwrap();
    let transport = Arc::new(transport(&NetTuning::default()));
    let (client, _) = quic_configs(&other, &transport).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let conn = endpoint
        .connect_with(client, peer.addr(), crate::identity::TLS_NAME)
        .unwrap()
        .await
        .unwrap();
    // It is closed before the peer even sends its hello.
    let said = conn.accept_uni().await.map(|_| ());
    assert!(
        matches!(&said, Err(quinn::ConnectionError::ApplicationClosed(close))
            if close.error_code == close_code::WRONG_IDENTITY && close.reason.is_empty()),
        "{said:?}"
    );
    assert_eq!(peer.links_refused(), 1);
    assert!(peer.seen.events.lock().unwrap().is_empty());
    close_all(vec![peer]).await;
}

#[tokio::test]
async fn a_peer_of_another_cluster_under_the_same_authority_is_no_peer() {
    let authority = Authority::generate("demo").unwrap();
    let peer = Peer::start(config(&authority, "a", &[])).await;
    let other = authority.in_cluster("other");
    let stranger = Peer::start(config(&other, "b", &[peer.addr()])).await;
    eventually("the refusal", || stranger.net.counters().dials_failed.get() > 1).await;
    assert!(stranger.seen.events.lock().unwrap().is_empty());
    assert!(peer.seen.events.lock().unwrap().is_empty());
    close_all(vec![peer, stranger]).await;
}

#[tokio::test]
async fn a_hello_in_anothers_name_is_refused_and_counted() {
    let authority = Authority::generate("demo").unwrap();
    let peer = Peer::start(config(&authority, "a", &[])).await;
    let liar_conn = raw_link(&authority, "b", &peer).await;
    say_hello(&liar_conn, &hello_of("c")).await;
    let closed = liar_conn.closed().await;
    assert!(
        matches!(&closed, quinn::ConnectionError::ApplicationClosed(close)
            if close.error_code == close_code::WRONG_IDENTITY),
        "{closed:?}"
    );
    assert_eq!(peer.links_refused(), 1);
    assert!(peer.net.connected().is_empty());
    close_all(vec![peer]).await;
}

#[tokio::test]
async fn a_hello_of_another_version_is_recognized() {
    let authority = Authority::generate("demo").unwrap();
    let peer = Peer::start(config(&authority, "a", &[])).await;
    let conn = raw_link(&authority, "b", &peer).await;
    let mut future = hello_of("b");
    future.version = wire::PROTOCOL_VERSION + 1;
    say_hello(&conn, &future).await;
    let closed = conn.closed().await;
    assert!(
        matches!(&closed, quinn::ConnectionError::ApplicationClosed(close)
            if close.error_code == close_code::WRONG_VERSION),
        "{closed:?}"
    );
    close_all(vec![peer]).await;
}

#[tokio::test]
async fn a_reloaded_identity_serves_the_links_to_come() {
    let dir = std::env::temp_dir().join(format!("warmhop-net-{:032x}", rand::random::<u128>()));
    let authority = Authority::generate("demo").unwrap();
    authority.issue_into(&id("a"), &dir, false).unwrap();
    let mut from_files = config(&authority, "a", &[]);
    from_files.identity = Identity::from_dir(&dir).unwrap();
    let identity = from_files.identity.clone();
    let a = Peer::start(from_files).await;
    let b = Peer::start(config(&authority, "b", &[a.addr()])).await;
    b.links_to(&[&a]).await;
    let certificate = |peer: &Peer| {
        let link = peer.net.parts.links.to(&id("a")).unwrap();
        crate::identity::certificate_of(&link.conn).unwrap()
    };
    let before = certificate(&b);

    authority.issue_into(&id("a"), &dir, true).unwrap();
    assert!(identity.reload().unwrap());
    assert_eq!(certificate(&b), before, "a live link keeps what it proved");
    let c = Peer::start(config(&authority, "c", &[a.addr()])).await;
    c.links_to(&[&a]).await;
    assert_ne!(certificate(&c), before);
    close_all(vec![a, b, c]).await;
    std::fs::remove_dir_all(dir).unwrap();
}
