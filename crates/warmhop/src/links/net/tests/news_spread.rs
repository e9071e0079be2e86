//! The news of peers about their apps, over links and by gossip.

use super::*;

#[tokio::test]
async fn peers_that_know_one_seed_all_see_each_other() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b", "c", "d", "e"]).await;
    for peer in &peers {
        assert_eq!(peer.net.connected().len(), 4);
        for other in peers.iter().filter(|other| other.name() != peer.name()) {
            peer.seen.hears(other.name(), other.net.incarnation(), Heard::Alive).await;
            assert!(peer.net.rtt(other.name()).is_some());
        }
        assert!(peer.net.rtt(peer.name()).is_none());
    }
    close_all(peers).await;
}

#[tokio::test]
async fn news_reaches_every_peer_at_first_hand_and_late_comers_too() {
    let authority = Authority::generate("demo").unwrap();
    let mut peers = mesh(&authority, &["a", "b", "c"]).await;
    peers[1].net.publish_app(&app("shop"), copy_news(AppState::Starting, Some(900), 0));
    peers[1].net.publish_app(&app("shop"), copy_news(AppState::Ready, None, 3));
    for peer in [&peers[0], &peers[2]] {
        peer.seen.sees_app(&id("b"), "shop", AppState::Ready).await;
    }
    peers[1].net.publish_draining(true);
    peers[0]
        .seen
        .until("draining", |events| {
            events.iter().find_map(|event| match event {
                Event::News(News::Peer(news), true) if news.draining => Some(news.peer.clone()),
                _ => None,
            })
        })
        .await;

    let late = Peer::start(config(&authority, "d", &[peers[0].addr()])).await;
    late.links_to(&[&peers[1]]).await;
    late.seen.sees_app(&id("b"), "shop", AppState::Ready).await;
    peers.push(late);
    close_all(peers).await;
}

#[tokio::test]
async fn load_alone_is_sent_too_and_only_its_latest() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    for in_flight in 0..=500 {
        peers[0].net.publish_app(&app("shop"), copy_news(AppState::Ready, None, in_flight));
    }
    let load = |event: &Event| match event {
        Event::News(News::App { news, .. }, true) => Some(news.in_flight),
        _ => None,
    };
    peers[1]
        .seen
        .until("a load of 500", |events| events.iter().filter_map(load).find(|load| *load == 500))
        .await;
    let reported = peers[1].seen.events.lock().unwrap().iter().filter_map(load).count();
    assert!(reported < 100, "each of 501 changes was sent: {reported}");
    close_all(peers).await;
}

#[tokio::test]
async fn more_apps_than_fit_in_one_frame_are_sent_completely() {
    let authority = Authority::generate("demo").unwrap();
    let first = Peer::start(config(&authority, "a", &[])).await;
    for n in 0..1000 {
        first.net.publish_app(&app(&format!("app-{n}")), copy_news(AppState::Ready, Some(n), n));
    }
    let second = Peer::start(config(&authority, "b", &[first.addr()])).await;
    second
        .seen
        .until("1000 apps", |events| {
            let mut apps = BTreeMap::new();
            for event in events {
                if let Event::News(News::App { news, .. }, true) = event {
                    apps.insert(news.app.clone(), news.in_flight);
                }
            }
            (apps.len() == 1000).then_some(())
        })
        .await;
    close_all(vec![first, second]).await;
}

#[tokio::test]
async fn gossip_repairs_what_was_never_pushed() {
    let authority = Authority::generate("demo").unwrap();
    let mut silent = config(&authority, "a", &[]);
    silent.tuning.push_news = false;
    let silent = Peer::start(silent).await;
    let other = Peer::start(config(&authority, "b", &[silent.addr()])).await;
    other.links_to(&[&silent]).await;
    silent.net.publish_app(&app("shop"), copy_news(AppState::Ready, None, 0));
    assert!(!other.seen.sees_app(&id("a"), "shop", AppState::Ready).await, "at second hand");
    close_all(vec![silent, other]).await;
}

#[tokio::test]
async fn a_gossip_loop_that_ends_is_started_anew_and_counted() {
    let authority = Authority::generate("demo").unwrap();
    let mut first = config(&authority, "a", &[]);
    first.tuning.push_news = false;
    let first = Peer::start(first).await;
    let second = Peer::start(config(&authority, "b", &[first.addr()])).await;
    first.net.publish_app(&app("one"), copy_news(AppState::Ready, None, 0));
    second.seen.sees_app(&id("a"), "one", AppState::Ready).await;

    first.net.parts.gossip.fail().await;
    let restarts = || first.net.counters().gossip_restarts.get();
    eventually("the restart", || restarts() == 1).await;
    first.net.publish_app(&app("two"), copy_news(AppState::Ready, None, 0));
    second.seen.sees_app(&id("a"), "two", AppState::Ready).await;
    assert_eq!(restarts(), 1);
    close_all(vec![first, second]).await;
}
