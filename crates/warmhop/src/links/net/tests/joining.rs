//! Peers that look for others: seeds, names in use, starts that cannot work.

use super::*;

#[tokio::test]
async fn peers_that_dial_each_other_at_once_keep_the_same_one_link() {
    let authority = Authority::generate("demo").unwrap();
    let a = Peer::start(config(&authority, "a", &[])).await;
    let b = Peer::start(config(&authority, "b", &[])).await;
    let (a_shared, b_shared) = (a.shared(), b.shared());
    let (first, second) =
        tokio::join!(dial::dial(&a_shared, b.addr()), dial::dial(&b_shared, a.addr()));
    first.unwrap();
    second.unwrap();
    let current = |peer: &Peer, other: &PeerId| peer.net.parts.links.to(other);
    eventually("both keep what the smaller opened", || {
        current(&a, &id("b")).is_some_and(|link| link.opened_here)
            && current(&b, &id("a")).is_some_and(|link| !link.opened_here)
    })
    .await;
    // The other one is drained, then closed; the handlers hear nothing of it.
    eventually("one connection is left", || {
        a_shared.endpoint.open_connections() == 1 && b_shared.endpoint.open_connections() == 1
    })
    .await;
    assert_eq!(a.seen.last_heard(b.net.incarnation()), Some(Heard::Alive));
    assert_eq!(b.seen.last_heard(a.net.incarnation()), Some(Heard::Alive));
    assert_eq!((a.net.connected(), b.net.connected()), (vec![id("b")], vec![id("a")]));
    close_all(vec![a, b]).await;
}

#[tokio::test]
async fn a_name_in_use_is_reported_to_the_peer_that_starts_later() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let mut second = config(&authority, "b", &[peers[0].addr()]);
    // This lets it find the seed at the start even on a busy machine.
    second.tuning.seeds_within = WITHIN;
    let result = Net::start(second, Arc::new(Recorder::default())).await;
    match result.err() {
        Some(StartMeshError::NameInUse { name, addr }) => {
            assert_eq!((name.as_str(), addr), ("b", peers[1].addr()));
        }
        other => panic!("{other:?}"),
    }
    // The first one is not disturbed.
    assert_eq!(peers[0].seen.last_heard(peers[1].net.incarnation()), Some(Heard::Alive));
    assert!(peers[1].net.name_clash().now_or_never().is_none());
    assert_eq!(peers[0].net.connected(), [id("b")]);
    close_all(peers).await;
}

#[tokio::test]
async fn a_name_clash_is_found_when_two_meshes_meet_later() {
    let authority = Authority::generate("demo").unwrap();
    let first = mesh(&authority, &["a", "b"]).await;
    let second = Peer::start(config(&authority, "b", &[])).await;
    let clash = second.net.name_clash();
    // The two halves meet: the seed of one is dialed from the other.
    let _ = dial::dial(&second.shared(), first[0].addr()).await;
    assert_eq!(timeout(WITHIN, clash).await.unwrap(), first[1].addr());
    assert!(first[1].net.name_clash().now_or_never().is_none());
    close_all(first).await;
    close_all(vec![second]).await;
}

#[tokio::test]
async fn a_seed_that_is_down_delays_nothing_and_is_found_when_it_comes_up() {
    let authority = Authority::generate("demo").unwrap();
    // A bound socket that never answers keeps the port for the seed.
    let reserved = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = reserved.local_addr().unwrap();
    let started = std::time::Instant::now();
    let early = Peer::start(config(&authority, "a", &[addr])).await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    drop(reserved);
    let mut seed = config(&authority, "b", &[]);
    seed.listen = addr;
    let seed = Peer::start(seed).await;
    early.links_to(&[&seed]).await;
    seed.links_to(&[&early]).await;
    close_all(vec![early, seed]).await;
}

#[tokio::test]
async fn ones_own_address_among_the_seeds_does_no_harm() {
    let authority = Authority::generate("demo").unwrap();
    let reserved = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = reserved.local_addr().unwrap();
    drop(reserved);
    // It advertises another name for itself, so it cannot tell by the address alone.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut alone = config(&authority, "a", &[addr, silent.local_addr().unwrap()]);
    alone.listen = addr;
    alone.advertise = Some(SocketAddr::from(([127, 0, 0, 2], addr.port())));
    let alone = Peer::start(alone).await;
    eventually("it has met itself", || alone.net.parts.book.knows_itself(&id("a"), addr)).await;
    eventually("one seed is missing of one", || {
        let seeds = alone.net.seeds();
        seeds.len() == 1 && !seeds[0].reached && seeds[0].error.is_some()
    })
    .await;
    assert!(alone.net.connected().is_empty());
    assert!(alone.seen.events.lock().unwrap().is_empty());
    assert!(alone.net.name_clash().now_or_never().is_none());
    close_all(vec![alone]).await;
}

#[tokio::test]
async fn a_peer_at_a_wrong_address_is_reported_with_the_reason_until_there_is_a_link() {
    let authority = Authority::generate("demo").unwrap();
    let a = Peer::start(config(&authority, "a", &[])).await;
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let wrong = silent.local_addr().unwrap();
    // Both reach the first peer, which reports the one to the other.
    let joined = async |name: &str, advertise: Option<SocketAddr>| {
        let mut config = config(&authority, name, &[a.addr()]);
        config.advertise = advertise;
        config.tuning.unlinked_after = Duration::ZERO;
        Peer::start(config).await
    };
    let c = joined("c", Some(wrong)).await;
    a.links_to(&[&c]).await;
    let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let b = joined("b", Some(other.local_addr().unwrap())).await;
    a.links_to(&[&b]).await;
    let says = format!("nobody answers at {wrong}");
    eventually("it says why there is no link", || {
        b.net.why_unlinked(&id("c")).is_some_and(|why| why.contains(&says))
    })
    .await;
    assert_eq!(b.net.why_unlinked(&id("a")), None);
    assert_eq!(a.net.why_unlinked(&id("c")), None);
    dial::dial(&b.shared(), c.addr()).await.unwrap();
    b.links_to(&[&c]).await;
    assert_eq!(b.net.why_unlinked(&id("c")), None);
    close_all(vec![a, b, c]).await;
}

#[tokio::test]
async fn seeds_may_be_names() {
    let authority = Authority::generate("demo").unwrap();
    let a = Peer::start(config(&authority, "a", &[])).await;
    let mut by_name = config(&authority, "b", &[]);
    by_name.seeds = vec![
        "no-such-host.invalid:1".into(),
        "not an address".into(),
        format!("localhost:{}", a.addr().port()),
    ];
    let b = Peer::start(by_name).await;
    b.links_to(&[&a]).await;
    close_all(vec![a, b]).await;
}

#[tokio::test]
async fn a_name_may_stand_for_addresses_that_come_and_go() {
    let authority = Authority::generate("demo").unwrap();
    let a = Peer::start(config(&authority, "a", &[])).await;
    let b = Peer::start(config(&authority, "b", &[])).await;
    let me = Peer::start(config(&authority, "c", &[])).await;
    // These take datagrams and never answer, like the addresses of pods that are gone in their
    // service's name. Tried one by one they would take longer than the test allows.
    let silent: Vec<std::net::UdpSocket> =
        (0..40).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let mut stale: Vec<SocketAddr> =
        silent.iter().map(|socket| socket.local_addr().unwrap()).collect();
    assert!(me.net.parts.tuning.dial_within * 40 > WITHIN * 2);
    stale.extend([me.addr(), a.addr()]);
    let (addrs, known) = watch::channel(stale);
    let (tried, _) = watch::channel(false);
    let resolve = move || std::future::ready(Ok(known.borrow().clone()));
    let following = tokio::spawn(dial::follow(me.shared(), 0, tried, resolve));
    me.links_to(&[&a]).await;

    // Another peer replaces those that the name led to.
    a.net.close().await;
    addrs.send_replace(vec![silent[0].local_addr().unwrap(), me.addr(), b.addr()]);
    me.links_to(&[&b]).await;
    close_all(vec![me, b]).await;
    following.await.unwrap();
}

#[tokio::test]
async fn a_start_that_cannot_work_says_why() {
    let authority = Authority::generate("demo").unwrap();
    let start = |config| Net::start(config, Arc::new(Recorder::default()));

    let mut everywhere = config(&authority, "a", &[]);
    everywhere.listen = "0.0.0.0:0".parse().unwrap();
    let error = start(everywhere).await.err().unwrap();
    assert!(error.to_string().contains("advertise"), "{error}");

    let first = Peer::start(config(&authority, "a", &[])).await;
    let mut taken = config(&authority, "b", &[]);
    taken.listen = first.addr();
    let error = start(taken).await.err().unwrap();
    assert!(matches!(&error, StartMeshError::Bind { addr, .. } if *addr == first.addr()));
    close_all(vec![first]).await;
}
