//! Members that a peer refuses, and those whose certificates end.

use super::*;

fn refused(text: &str) -> RefusedPeers {
    let mut refused = RefusedPeers::default();
    refused.add(text).unwrap();
    refused
}

/// Waits until `peer` has links to `others` and to nobody else.
async fn linked_only_with(peer: &Peer, others: &[PeerId]) {
    eventually("the links", || peer.net.connected() == others).await;
}

#[tokio::test]
async fn a_member_whose_name_is_refused_loses_its_link_and_is_taken_back_once_it_is_not() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b", "c"]).await;
    peers[0].net.refuse(refused("c"));
    linked_only_with(&peers[0], &[id("b")]).await;
    peers[1].linked_with(&[id("a"), id("c")]).await;
    peers[0].seen.hears(&id("c"), peers[2].net.incarnation(), Heard::Suspect).await;
    let reason = Reason { reason: "refused" };
    let tries = || peers[0].net.counters().links_refused.get_or_create(&reason).get();
    // It dials again, and is refused at once.
    eventually("it tries again", || tries() > 1).await;
    // Its news reaches the other, which does not believe it at second hand.
    peers[2].net.publish_app(&app("shop"), copy_news(AppState::Ready, None, 0));
    peers[1].seen.sees_app(&id("c"), "shop", AppState::Ready).await;
    peers[1].net.publish_app(&app("shop"), copy_news(AppState::Ready, None, 0));
    peers[0].seen.sees_app(&id("b"), "shop", AppState::Ready).await;
    let of_c =
        |event: &Event| matches!(event, Event::News(News::App { peer, .. }, _) if *peer == id("c"));
    assert!(!peers[0].seen.events.lock().unwrap().iter().any(of_c));
    assert_eq!(peers[0].net.connected(), [id("b")]);

    peers[0].net.refuse(RefusedPeers::default());
    peers[0].linked_with(&[id("b"), id("c")]).await;
    peers[0].seen.sees_app(&id("c"), "shop", AppState::Ready).await;
    close_all(peers).await;
}

#[tokio::test]
async fn a_refused_certificate_opens_no_link_and_another_of_the_same_name_does() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let link = peers[0].net.parts.links.to(&id("b")).unwrap();
    let stolen = crate::identity::proven_identity(link.conn.peer_identity()).unwrap().certificate;
    peers[0].net.refuse(refused(&stolen.to_string()));
    linked_only_with(&peers[0], &[]).await;
    let reason = link.conn.closed().await;
    assert_eq!(reason, quinn::ConnectionError::LocallyClosed);
    let mut peers = peers.into_iter();
    let (one, thief) = (peers.next().unwrap(), peers.next().unwrap());
    thief.net.close().await;
    // A new certificate for the same name.
    let other = Peer::start(config(&authority, "b", &[one.addr()])).await;
    one.links_to(&[&other]).await;
    close_all(vec![one, other]).await;
}

/// `peer` with a certificate that ends in `left`.
fn short_lived(
    authority: &Authority,
    peer: &str,
    left: Duration,
    seeds: &[SocketAddr],
) -> NetConfig {
    let identity = authority.issue_until(&id(peer), SystemTime::now() + left).unwrap();
    NetConfig { identity, ..config(authority, peer, seeds) }
}

#[tokio::test]
async fn the_link_of_a_certificate_that_expires_ends_and_both_ends_are_told_why() {
    let authority = Authority::generate("demo").unwrap();
    let one = Peer::start(config(&authority, "a", &[])).await;
    let expiring = short_lived(&authority, "b", Duration::from_secs(6), &[one.addr()]);
    let expiring = Peer::start(expiring).await;
    one.links_to(&[&expiring]).await;
    let link = expiring.net.parts.links.to(&id("a")).unwrap();
    let reason = link.conn.closed().await;
    let quinn::ConnectionError::ApplicationClosed(close) = &reason else { panic!("{reason}") };
    assert_eq!(close.error_code, close_code::EXPIRED);
    let said = crate::links::seeds::why_closed(&reason);
    assert!(said.contains("which has expired there"), "{said}");
    linked_only_with(&one, &[]).await;
    one.seen.hears(&id("b"), expiring.net.incarnation(), Heard::Suspect).await;
    let counted = Reason { reason: "expired" };
    assert_eq!(one.net.counters().links_refused.get_or_create(&counted).get(), 1);
    close_all(vec![one, expiring]).await;
}
