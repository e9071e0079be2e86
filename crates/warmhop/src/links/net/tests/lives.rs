//! Links that end: of peers that leave, die, live again, and of age.

use super::*;

#[tokio::test]
async fn an_old_link_is_renewed_without_anyone_noticing() {
    let authority = Authority::generate("demo").unwrap();
    let mut aging = config(&authority, "a", &[]);
    aging.tuning.link_age_max = Duration::from_millis(400);
    let a = Peer::start(aging).await;
    let b = Peer::start(config(&authority, "b", &[])).await;
    dial::dial(&a.shared(), b.addr()).await.unwrap();
    b.linked_with(&[id("a")]).await;
    let current = || b.net.parts.links.to(&id("a")).map(|link| link.conn.stable_id());
    let before = current();
    eventually("another link", || current().is_some() && current() != before).await;
    assert_eq!(a.seen.last_heard(b.net.incarnation()), Some(Heard::Alive));
    assert_eq!(b.seen.last_heard(a.net.incarnation()), Some(Heard::Alive));
    close_all(vec![a, b]).await;
}

#[tokio::test]
async fn a_goodbye_is_heard_at_once_and_not_taken_back() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b", "c"]).await;
    let left = peers[2].net.incarnation();
    peers[2].net.close().await;
    for peer in &peers[..2] {
        let name = id("c");
        let heard = peer.seen.hears(&name, left, Heard::Left);
        // Far below the idle timeout and what suspicion takes.
        timeout(Duration::from_millis(1500), heard).await.unwrap();
        assert!(peer.net.open_hop(&id("c")).await.is_err());
    }
    // Gossip remembers it for a while, but nobody dials it or considers it alive.
    peers[0].net.publish_app(&app("shop"), copy_news(AppState::Ready, None, 0));
    peers[1].seen.sees_app(&id("a"), "shop", AppState::Ready).await;
    assert_eq!(peers[1].seen.last_heard(left), Some(Heard::Left));
    assert_eq!(peers[1].net.connected(), [id("a")]);
    close_all(peers).await;
}

#[tokio::test]
async fn a_peer_that_ends_in_a_hurry_does_not_count_as_one_that_left_in_good_order() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b", "c"]).await;
    let (hurried, owing) = (peers[1].net.incarnation(), peers[2].net.incarnation());
    for peer in &peers[1..] {
        peer.net.owe(true);
    }
    peers[1].net.vanish().await;
    peers[2].net.close().await;
    peers[0].seen.hears(&id("b"), hurried, Heard::CutShort).await;
    peers[0].seen.hears(&id("c"), owing, Heard::CutShort).await;
    assert_eq!(peers[0].net.connected(), []);
    close_all(peers).await;
}

/// A peer on a runtime of its own, which can die without a goodbye.
struct Victim {
    runtime: Option<tokio::runtime::Runtime>,
    incarnation: Incarnation,
    addr: SocketAddr,
}

impl Victim {
    fn start(config: NetConfig) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (send, started) = std::sync::mpsc::sync_channel(1);
        runtime.spawn(async move {
            let peer = Peer::start(config).await;
            send.send((peer.net.incarnation(), peer.addr())).unwrap();
            std::future::pending::<()>().await;
        });
        let (incarnation, addr) =
            started.recv_timeout(WITHIN).expect("the victim starts within the time");
        Self { runtime: Some(runtime), incarnation, addr }
    }

    /// As by SIGKILL: its tasks are dropped at any point, and nothing more is sent.
    fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl std::ops::Drop for Victim {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_peer_becomes_suspect_and_its_next_life_replaces_it() {
    let authority = Authority::generate("demo").unwrap();
    let peer = Peer::start(config(&authority, "a", &[])).await;
    let seeds = [peer.addr()];
    let victim = config(&authority, "b", &seeds);
    let mut victim = tokio::task::spawn_blocking(|| Victim::start(victim)).await.unwrap();
    peer.seen.hears(&id("b"), victim.incarnation, Heard::Alive).await;
    victim.kill();
    peer.seen.hears(&id("b"), victim.incarnation, Heard::Suspect).await;
    assert_ne!(peer.seen.last_heard(victim.incarnation), Some(Heard::Gone));

    let mut again = config(&authority, "b", &seeds);
    again.listen = victim.addr;
    let again = Peer::start(again).await;
    assert_ne!(again.net.incarnation(), victim.incarnation);
    peer.seen.hears(&id("b"), victim.incarnation, Heard::Gone).await;
    peer.seen.hears(&id("b"), again.net.incarnation(), Heard::Alive).await;
    close_all(vec![peer, again]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_at_the_same_address_is_seen_before_the_old_link_times_out() {
    let authority = Authority::generate("demo").unwrap();
    let mut patient = config(&authority, "a", &[]);
    patient.tuning.idle_timeout = Duration::from_secs(60);
    let peer = Peer::start(patient).await;
    let seeds = [peer.addr()];
    let mut victim = config(&authority, "b", &seeds);
    victim.tuning.idle_timeout = Duration::from_secs(60);
    let mut victim = tokio::task::spawn_blocking(|| Victim::start(victim)).await.unwrap();
    peer.seen.hears(&id("b"), victim.incarnation, Heard::Alive).await;
    victim.kill();
    let again = loop {
        let mut again = config(&authority, "b", &seeds);
        again.listen = victim.addr;
        match Net::start(again, Arc::new(Recorder::default())).await {
            Ok(net) => break net,
            // The killed runtime has not released its socket yet.
            Err(StartMeshError::Bind { .. }) => tokio::task::yield_now().await,
            Err(other) => panic!("{other}"),
        }
    };
    peer.seen.hears(&id("b"), victim.incarnation, Heard::Gone).await;
    peer.seen.hears(&id("b"), again.incarnation(), Heard::Alive).await;
    assert!(again.name_clash().now_or_never().is_none(), "a restart is no clash");
    again.close().await;
    close_all(vec![peer]).await;
}

#[tokio::test]
async fn dropping_the_last_handle_ends_everything() {
    let authority = Authority::generate("demo").unwrap();
    let a = Peer::start(config(&authority, "a", &[])).await;
    let b = Peer::start(config(&authority, "b", &[a.addr()])).await;
    a.links_to(&[&b]).await;
    let left = b.net.incarnation();
    let tasks = b.net.parts.tasks.clone();
    drop(b);
    a.seen.hears(&id("b"), left, Heard::Left).await;
    tasks.close();
    timeout(WITHIN, tasks.wait()).await.unwrap();
    close_all(vec![a]).await;
}
