//! Peers of one process over real QUIC on loopback, ports chosen by the system. Conditions are
//! awaited by notification, never by time; [`WITHIN`] only ends a test that would hang.

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::sync::Notify;
use warmhop_core::ids::{Ballot, Position, SessionId, SessionKey, WallTime};
use warmhop_core::session::message::{Body, BodyRef, Config, Members, Message};

use warmhop_core::view::AppState;

use super::*;
use crate::hop::{self, HopHead, HopKind, HopRequest, Load, ReplySession};
use crate::identity::Authority;
use crate::links::wire::{
    FrameReader, HopBodyError, HopBodyWriter, HopPart, KIND_HOP, KIND_SESSION, Trailers,
};

const WITHIN: Duration = Duration::from_secs(30);

const POUR: &[u8] = b"pour";

#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    News(News, bool),
    Liveness(PeerId, Incarnation, Heard),
    Session(Incarnation, SessionFrame),
}

/// Keeps what it is told; answers a hop with the body it was sent, and trailers. One that asks for
/// an upgrade gets it, and one whose head is [`POUR`] gets bytes without end.
#[derive(Default)]
struct Recorder {
    events: Mutex<Vec<Event>>,
    came: Notify,
}

impl Recorder {
    fn record(&self, event: Event) {
        self.events.lock().unwrap().push(event);
        self.came.notify_waiters();
    }

    async fn until<T>(&self, what: &str, mut found: impl FnMut(&[Event]) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let came = self.came.notified();
                tokio::pin!(came);
                came.as_mut().enable();
                if let Some(found) = found(&self.events.lock().unwrap()) {
                    return found;
                }
                came.await;
            }
        };
        match timeout(WITHIN, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("{what} did not happen; there was {:#?}", self.events.lock().unwrap()),
        }
    }

    async fn hears(&self, of: &PeerId, incarnation: Incarnation, heard: Heard) {
        let wanted = Event::Liveness(of.clone(), incarnation, heard);
        self.until(&format!("{wanted:?}"), |events| events.contains(&wanted).then_some(())).await;
    }

    /// The last thing heard of a life.
    fn last_heard(&self, incarnation: Incarnation) -> Option<Heard> {
        self.events.lock().unwrap().iter().rev().find_map(|event| match event {
            Event::Liveness(_, of, heard) if *of == incarnation => Some(*heard),
            _ => None,
        })
    }

    async fn sees_app(&self, on: &PeerId, app: &str, state: AppState) -> bool {
        self.until(&format!("{app} {state:?} on {on}"), |events| {
            events.iter().rev().find_map(|event| match event {
                Event::News(News::App { peer, news, .. }, first_hand)
                    if peer == on && news.app.as_str() == app && news.state == state =>
                {
                    Some(*first_hand)
                }
                _ => None,
            })
        })
        .await
    }
}

impl NetHandler for Recorder {
    fn on_hop(
        self: Arc<Self>,
        _: PeerId,
        _: Incarnation,
        send: SendStream,
        recv: RecvStream,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut reader = FrameReader::new(recv);
            let Ok(Some(head)) = reader.frame(1024).await else { return };
            let mut body = reader.into_body();
            let mut prefix = BytesMut::new();
            let decoded = wire::decode::<HopHead, 1024>(&head);
            let upgrades = decoded.is_ok_and(|head| head.upgrade.is_some());
            if upgrades {
                let mut response = http::Response::new(crate::Body::empty());
                *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
                let load = Load { in_flight: 0, latency_us: 0 };
                let reply = hop::response_head(&response, ReplySession::None, "b".into(), load);
                wire::put_frame(&mut prefix, &reply, 1024).unwrap();
            } else {
                prefix.put_u32(u32::try_from(head.len()).unwrap());
                prefix.put_slice(&head);
            }
            let mut writer = HopBodyWriter::new(send, prefix);
            if head == POUR {
                let piece = Bytes::from_static(&[7; 64 * 1024]);
                while writer.write_data(piece.clone()).await.is_ok() {}
                return;
            }
            if upgrades && writer.flush().await.is_err() {
                return;
            }
            loop {
                match body.next().await {
                    Ok(HopPart::Data(data)) => {
                        if writer.write_data(data).await.is_err() {
                            return;
                        }
                    }
                    Ok(HopPart::End(trailers)) => {
                        let _ = writer.write_end(Bytes::new(), trailers.as_ref()).await;
                        return;
                    }
                    Err(_) => return writer.abort(link::STREAM_REFUSED),
                }
            }
        })
    }

    fn on_former_life(&self) {}

    fn on_session_frame(&self, from: Incarnation, frame: SessionFrame) {
        self.record(Event::Session(from, frame));
    }

    fn on_news(&self, news: News, first_hand: bool) {
        self.record(Event::News(news, first_hand));
    }

    fn on_liveness(&self, peer: &PeerId, incarnation: Incarnation, heard: Heard) {
        self.record(Event::Liveness(peer.clone(), incarnation, heard));
    }
}

struct Peer {
    net: Net,
    seen: Arc<Recorder>,
}

fn told(state: AppState, eta_ms: Option<u32>, in_flight: u32) -> Told {
    Told { state, eta_ms, in_flight, version: None, digest: 0 }
}

fn id(name: &str) -> PeerId {
    PeerId::new(name).unwrap()
}

fn config(authority: &Authority, name: &str, seeds: &[SocketAddr]) -> NetConfig {
    NetConfig {
        cluster: authority.cluster().to_owned(),
        me: id(name),
        incarnation: Incarnation::of(
            &id(name),
            crate::observe::clock::Clock::ahead(0).own_wall(),
            rand::random(),
        ),
        zone: Some("a".into()),
        http: None,
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        seeds: seeds.iter().map(ToString::to_string).collect(),
        refused: RefusedPeers::default(),
        identity: authority.issue(&id(name)).unwrap(),
        counters: NetCounters::new(&mut Registry::default()),
        clock: crate::observe::clock::Clock::ahead(0),
        tuning: NetTuning { gossip_interval: Duration::from_millis(50), ..NetTuning::default() },
    }
}

impl Peer {
    async fn start(config: NetConfig) -> Self {
        let seen = Arc::new(Recorder::default());
        let net = Net::start(config, seen.clone()).await.unwrap();
        Self { net, seen }
    }

    fn addr(&self) -> SocketAddr {
        self.net.local_addr()
    }

    fn name(&self) -> &PeerId {
        &self.net.shared.me
    }

    async fn links_to(&self, others: &[&Peer]) {
        self.linked_with(&others.iter().map(|peer| peer.name().clone()).collect::<Vec<_>>()).await;
    }

    async fn linked_with(&self, others: &[PeerId]) {
        let mut links = self.net.shared.links.changes();
        let waiting = async {
            while !others.iter().all(|peer| self.net.connected().contains(peer)) {
                links.changed().await.unwrap();
            }
        };
        if timeout(WITHIN, waiting).await.is_err() {
            panic!("{} has links to {:?} only", self.name(), self.net.connected());
        }
    }

    fn refused(&self, reason: &'static str) -> u64 {
        self.net.counters().frames_refused.get_or_create(&Reason { reason }).get()
    }

    fn links_refused(&self) -> u64 {
        let reasons = ["handshake", "not-of-cluster", "wrong-name", "connection"];
        let family = &self.net.counters().links_refused;
        reasons.map(|reason| family.get_or_create(&Reason { reason }).get()).iter().sum()
    }
}

/// Starts peers `a`, `b`, … and waits until each has a link to every other.
async fn mesh(authority: &Authority, names: &[&str]) -> Vec<Peer> {
    let mut peers: Vec<Peer> = Vec::new();
    for name in names {
        let seeds: Vec<SocketAddr> = peers.first().iter().map(|peer| peer.addr()).collect();
        peers.push(Peer::start(config(authority, name, &seeds)).await);
    }
    for peer in &peers {
        let others: Vec<&Peer> = peers.iter().filter(|other| other.name() != peer.name()).collect();
        peer.links_to(&others).await;
    }
    peers
}

async fn close_all(peers: Vec<Peer>) {
    futures_util::future::join_all(peers.iter().map(|peer| peer.net.close())).await;
}

/// Awaits a condition that nothing notifies of: counters, for example.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        let mut ticks = interval(Duration::from_millis(5));
        while !holds() {
            ticks.tick().await;
        }
    };
    assert!(timeout(WITHIN, waiting).await.is_ok(), "{what} did not come true");
}

fn app(name: &str) -> AppName {
    AppName::new(name).unwrap()
}

fn session_frame(to: Incarnation, state: &[u8]) -> SessionFrame {
    let members = Members::first(1, [to]);
    let ballot = Ballot { round: 1, proposer: to };
    SessionFrame {
        key: SessionKey { app: app("shop"), sid: SessionId([7; 16]) },
        to,
        message: Message::Accept {
            p: Position { ballot, n: 1 },
            cfg: Arc::new(Config { now: members, prev: None }),
            body: BodyRef::Full(Arc::new(Body { state: Some(state.into()), ..Body::default() })),
        },
    }
}

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
    peers[1].net.publish_app(&app("shop"), told(AppState::Starting, Some(900), 0));
    peers[1].net.publish_app(&app("shop"), told(AppState::Ready, None, 3));
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
async fn load_alone_is_told_too_and_only_its_latest() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    for in_flight in 0..=500 {
        peers[0].net.publish_app(&app("shop"), told(AppState::Ready, None, in_flight));
    }
    let load = |event: &Event| match event {
        Event::News(News::App { news, .. }, true) => Some(news.in_flight),
        _ => None,
    };
    peers[1]
        .seen
        .until("a load of 500", |events| events.iter().filter_map(load).find(|load| *load == 500))
        .await;
    let told = peers[1].seen.events.lock().unwrap().iter().filter_map(load).count();
    assert!(told < 100, "each of 501 changes was told: {told}");
    close_all(peers).await;
}

#[tokio::test]
async fn more_apps_than_fit_in_one_frame_are_told_whole() {
    let authority = Authority::generate("demo").unwrap();
    let first = Peer::start(config(&authority, "a", &[])).await;
    for n in 0..1000 {
        first.net.publish_app(&app(&format!("app-{n}")), told(AppState::Ready, Some(n), n));
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
    silent.net.publish_app(&app("shop"), told(AppState::Ready, None, 0));
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
    first.net.publish_app(&app("one"), told(AppState::Ready, None, 0));
    second.seen.sees_app(&id("a"), "one", AppState::Ready).await;

    first.net.shared.gossip.fail().await;
    let restarts = || first.net.counters().gossip_restarts.get();
    eventually("the restart", || restarts() == 1).await;
    first.net.publish_app(&app("two"), told(AppState::Ready, None, 0));
    second.seen.sees_app(&id("a"), "two", AppState::Ready).await;
    assert_eq!(restarts(), 1);
    close_all(vec![first, second]).await;
}

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
    // It dials again, and is refused at the door.
    eventually("it tries again", || tries() > 1).await;
    // What it tells reaches the other, and is not believed at second hand.
    peers[2].net.publish_app(&app("shop"), told(AppState::Ready, None, 0));
    peers[1].seen.sees_app(&id("c"), "shop", AppState::Ready).await;
    peers[1].net.publish_app(&app("shop"), told(AppState::Ready, None, 0));
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
    let link = peers[0].net.shared.links.to(&id("b")).unwrap();
    let stolen = crate::identity::proven_identity(link.conn.peer_identity()).unwrap().certificate;
    peers[0].net.refuse(refused(&stolen.to_string()));
    linked_only_with(&peers[0], &[]).await;
    let reason = link.conn.closed().await;
    assert_eq!(reason, quinn::ConnectionError::LocallyClosed);
    let mut peers = peers.into_iter();
    let (one, thief) = (peers.next().unwrap(), peers.next().unwrap());
    thief.net.close().await;
    // Issued anew.
    let other = Peer::start(config(&authority, "b", &[one.addr()])).await;
    one.links_to(&[&other]).await;
    close_all(vec![one, other]).await;
}

#[tokio::test]
async fn a_foreign_authority_gets_nothing_even_under_the_same_cluster_name() {
    let authority = Authority::generate("demo").unwrap();
    let foreign = Authority::generate("demo").unwrap();
    let peer = Peer::start(config(&authority, "a", &[])).await;
    peer.net.publish_app(&app("shop"), told(AppState::Ready, None, 0));
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
    // It is closed before the peer says so much as hello.
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
async fn a_hello_of_another_version_is_told_apart() {
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

/// A bare connection as the peer `name` would dial it.
async fn raw_link(authority: &Authority, name: &str, to: &Peer) -> quinn::Connection {
    let identity = authority.issue(&id(name)).unwrap();
    let transport = Arc::new(transport(&NetTuning::default()));
    let (client, _) = quic_configs(&identity, &transport).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.connect_with(client, to.addr(), crate::identity::TLS_NAME).unwrap().await.unwrap()
}

fn hello_of(name: &str) -> wire::Hello {
    wire::Hello {
        version: wire::PROTOCOL_VERSION,
        dial: 1,
        peer: PeerNews {
            peer: id(name),
            incarnation: Incarnation::of(&id(name), WallTime(9), 9),
            generation: 1,
            seq: 1,
            mesh: "127.0.0.1:9".parse().unwrap(),
            http: None,
            zone: None,
            draining: false,
            knows_more: false,
        },
    }
}

async fn say_hello(conn: &quinn::Connection, hello: &wire::Hello) -> SendStream {
    let mut control = conn.open_uni().await.unwrap();
    let mut bytes = BytesMut::from(&[wire::KIND_CONTROL][..]);
    wire::put_frame(&mut bytes, hello, wire::CONTROL_FRAME_BYTES_MAX).unwrap();
    control.write_chunk(bytes.freeze()).await.unwrap();
    control
}

#[tokio::test]
async fn garbage_closes_its_stream_alone_and_is_counted() {
    let authority = Authority::generate("demo").unwrap();
    let peer = Peer::start(config(&authority, "a", &[])).await;
    let conn = raw_link(&authority, "b", &peer).await;
    let mut control = say_hello(&conn, &hello_of("b")).await;
    peer.linked_with(&[id("b")]).await;

    let refused = async |bytes: &[u8]| {
        let mut stream = conn.open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let stopped = timeout(WITHIN, stream.stopped()).await.unwrap().unwrap();
        assert_eq!(stopped, Some(link::STREAM_REFUSED));
    };
    refused(&[99]).await;
    assert_eq!(peer.refused("stream-kind"), 1);
    refused(&[KIND_SESSION, 0, 0, 0, 3, 255, 255, 255]).await;
    refused(&[KIND_SESSION, 255, 255, 255, 255]).await;
    assert_eq!(peer.refused("session"), 2);

    let mut gossip = conn.open_uni().await.unwrap();
    gossip.write_all(&[wire::KIND_GOSSIP, 1, 2, 3]).await.unwrap();
    gossip.finish().unwrap();
    conn.send_datagram(Bytes::from_static(&[wire::KIND_GOSSIP, 9])).unwrap();
    eventually("the gossip's refusal", || peer.refused("gossip") == 2).await;
    conn.send_datagram(Bytes::from_static(&[77])).unwrap();
    eventually("the datagram's refusal", || peer.refused("datagram-kind") == 1).await;

    let (mut hop, mut back) = conn.open_bi().await.unwrap();
    hop.write_all(&[5]).await.unwrap();
    assert!(back.read(&mut [0; 8]).await.is_err());

    // News about another peer is no first-hand news.
    let foreign = wire::NewsBatch { news: vec![News::Peer(hello_of("c").peer)] };
    let mut bytes = BytesMut::new();
    wire::put_frame(&mut bytes, &foreign, wire::CONTROL_FRAME_BYTES_MAX).unwrap();
    control.write_chunk(bytes.freeze()).await.unwrap();
    eventually("foreign news", || peer.refused("foreign-news") == 1).await;

    // The link itself is as good as before.
    let mut sessions = conn.open_uni().await.unwrap();
    let frame = session_frame(peer.net.incarnation(), b"state");
    let mut bytes = BytesMut::from(&[KIND_SESSION][..]);
    wire::put_frame(&mut bytes, &frame, wire::SESSION_FRAME_BYTES_MAX).unwrap();
    sessions.write_chunk(bytes.freeze()).await.unwrap();
    let wanted = Event::Session(hello_of("b").peer.incarnation, frame);
    peer.seen.until("the frame", |events| events.contains(&wanted).then_some(())).await;
    assert_eq!(peer.net.connected(), [id("b")]);
    close_all(vec![peer]).await;
}

#[tokio::test]
async fn session_frames_arrive_in_order_large_ones_and_ones_own_included() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let (to, me) = (peers[1].net.incarnation(), peers[0].net.incarnation());
    let large = vec![0xA5; 1_200_000];
    let frames: Vec<SessionFrame> =
        [&b"first"[..], &large, b"last"].iter().map(|state| session_frame(to, state)).collect();
    for frame in &frames {
        peers[0].net.send_session(to, frame.clone());
    }
    peers[0].net.send_session(me, session_frame(me, b"mine"));
    let sessions = |events: &[Event]| -> Vec<(Incarnation, SessionFrame)> {
        let session = |event: &Event| match event {
            Event::Session(from, frame) => Some((*from, frame.clone())),
            _ => None,
        };
        events.iter().filter_map(session).collect()
    };
    let got = peers[1]
        .seen
        .until("three frames", |events| Some(sessions(events)).filter(|got| got.len() == 3))
        .await;
    assert!(got.iter().map(|(_, frame)| frame).eq(&frames));
    assert!(got.iter().all(|(from, _)| *from == me));
    let mine = peers[0]
        .seen
        .until("the own frame", |events| Some(sessions(events)).filter(|got| got.len() == 1))
        .await;
    assert_eq!(mine[0], (me, session_frame(me, b"mine")));
    close_all(peers).await;
}

#[tokio::test]
async fn session_frames_that_cannot_leave_are_counted() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let counted = |reason| {
        let family = &peers[0].net.counters().dropped;
        family.get_or_create(&Drop { what: "session", reason }).get()
    };
    let nobody = Incarnation([1; 16]);
    peers[0].net.send_session(nobody, session_frame(nobody, b""));
    assert_eq!(counted("no-link"), 1);
    let to = peers[1].net.incarnation();
    peers[0].net.send_session(to, session_frame(to, &vec![0; wire::SESSION_FRAME_BYTES_MAX]));
    assert_eq!(counted("too-large"), 1);
    // This task does not yield, so on its one-threaded runtime nothing leaves the queue.
    let frame = session_frame(to, &vec![0; 1_000_000]);
    for _ in 0..40 {
        peers[0].net.send_session(to, frame.clone());
    }
    assert!(counted("full") >= 20, "{}", counted("full"));
    close_all(peers).await;
}

#[tokio::test]
async fn a_hop_streams_both_ways_and_ends_with_trailers() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let hop = peers[0].net.open_hop(&id("b")).await.unwrap();
    assert_eq!(hop.incarnation, peers[1].net.incarnation());

    let mut prefix = BytesMut::from(&[KIND_HOP][..]);
    prefix.put_u32(4);
    prefix.put_slice(b"head");
    let mut writer = HopBodyWriter::new(hop.send, prefix);
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let trailers: Trailers = vec![("x-sum".into(), b"1".to_vec())];
    let sent = body.clone();
    let told = trailers.clone();
    let sending = tokio::spawn(async move {
        let sent = Bytes::from(sent);
        // Small and large pieces, which travel differently.
        for piece in [sent.slice(..10), sent.slice(10..5000), sent.slice(5000..2_999_990)] {
            writer.write_data(piece).await.unwrap();
        }
        writer.write_end(sent.slice(2_999_990..), Some(&told)).await.unwrap();
    });

    let mut reader = FrameReader::new(hop.recv);
    assert_eq!(reader.frame(1024).await.unwrap().unwrap(), "head");
    let mut answer = reader.into_body();
    let mut got = Vec::new();
    let end = loop {
        match answer.next().await.unwrap() {
            HopPart::Data(data) => got.extend_from_slice(&data),
            HopPart::End(trailers) => break trailers,
        }
    };
    assert!(got == body);
    assert_eq!(end, Some(trailers));
    assert!(answer.is_done());
    assert!(matches!(answer.next().await, Err(HopBodyError::CutOff)));
    sending.await.unwrap();
    drop((answer, hop.lease));
    // Both ends read to the end of their streams, so neither asked the other to stop.
    for peer in &peers {
        let table = peer.net.shared.links.table();
        for link in table.by_peer.values() {
            let stats = link.conn.stats();
            assert_eq!((stats.frame_tx.stop_sending, stats.frame_rx.stop_sending), (0, 0));
        }
    }
    close_all(peers).await;
}

/// Begins a hop with this head.
async fn begin(from: &Peer, to: &str, head: &[u8]) -> (HopBodyWriter, FrameReader, HopLease) {
    let opened = timeout(WITHIN, from.net.open_hop(&id(to))).await.expect("it opens");
    let OpenHop { send, recv, lease, .. } = opened.unwrap();
    let mut prefix = BytesMut::from(&[KIND_HOP][..]);
    prefix.put_u32(u32::try_from(head.len()).unwrap());
    prefix.put_slice(head);
    let mut writer = HopBodyWriter::new(send, prefix);
    writer.flush().await.unwrap();
    (writer, FrameReader::new(recv), lease)
}

/// Sends a hop through and waits for its echo.
async fn echoes(from: &Peer, to: &str) {
    let (mut writer, mut reader, _lease) = begin(from, to, b"echo").await;
    let body = Bytes::from(vec![1; 3 * STREAM_WINDOW_BYTES as usize]);
    let sent = body.clone();
    let sending = tokio::spawn(async move {
        writer.write_data(sent).await.unwrap();
        writer.write_end(Bytes::new(), None).await.unwrap();
    });
    let echo = async {
        assert_eq!(reader.frame(1024).await.unwrap().unwrap(), "echo");
        let (mut echo, mut back) = (reader.into_body(), BytesMut::new());
        while let HopPart::Data(data) = echo.next().await.unwrap() {
            back.extend_from_slice(&data);
        }
        back.freeze()
    };
    assert!(timeout(WITHIN, echo).await.expect("the echo comes") == body);
    sending.await.unwrap();
}

#[tokio::test]
async fn hops_that_nobody_reads_stop_no_other_hop_and_no_frame_of_a_session() {
    const STALLED: u64 = 48;
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        stalled.push(begin(&peers[0], "b", POUR).await);
    }
    // Each has filled its own window, or all of them have filled what they share.
    let link = peers[1].net.shared.links.to(&id("a")).unwrap();
    eventually("every one of them stands still", || {
        let sent = link.conn.stats().frame_tx;
        sent.stream_data_blocked >= STALLED || sent.data_blocked > 0
    })
    .await;

    let frame = session_frame(peers[0].net.incarnation(), &vec![5; 1024 * 1024]);
    peers[1].net.send_session(peers[0].net.incarnation(), frame.clone());
    let wanted = Event::Session(peers[1].net.incarnation(), frame);
    peers[0].seen.until("the frame", |events| events.contains(&wanted).then_some(())).await;
    echoes(&peers[0], "b").await;
    echoes(&peers[1], "a").await;
    drop(stalled);
    close_all(peers).await;
}

#[tokio::test]
async fn a_link_makes_room_for_more_hops_at_once_than_it_began_with() {
    const AT_ONCE: usize = 1100;
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let mut open = Vec::new();
    for _ in 0..AT_ONCE {
        open.push(begin(&peers[0], "b", b"echo").await);
    }
    let link = peers[1].net.shared.links.to(&id("a")).unwrap();
    eventually("all of them have come", || link.hops() == AT_ONCE).await;
    echoes(&peers[0], "b").await;
    drop(open);
    eventually("all of them have ended", || link.hops() == 0).await;
    close_all(peers).await;
}

#[tokio::test]
async fn a_hop_more_than_may_be_is_refused_at_once_and_fits_when_one_has_ended() {
    let authority = Authority::generate("demo").unwrap();
    let b = Peer::start(config(&authority, "b", &[])).await;
    let mut few = config(&authority, "a", &[b.addr()]);
    few.tuning.hops_max = 2;
    let a = Peer::start(few).await;
    a.links_to(&[&b]).await;
    let mut open = vec![begin(&a, "b", b"echo").await, begin(&a, "b", b"echo").await];
    for _ in 0..3 {
        let refused = a.net.open_hop(&id("b")).now_or_never().expect("without waiting").err();
        assert_eq!(refused, Some(OpenError::Busy(id("b"))));
    }
    // What the other end opens is its own to count.
    echoes(&b, "a").await;
    drop(open.pop());
    echoes(&a, "b").await;
    drop(open);
    close_all(vec![a, b]).await;
}

#[tokio::test]
async fn a_malformed_body_is_refused_and_a_well_formed_one_is_answered() {
    let authority = Authority::generate("demo").unwrap();
    let peer = Peer::start(config(&authority, "a", &[])).await;
    let conn = raw_link(&authority, "b", &peer).await;
    let _control = say_hello(&conn, &hello_of("b")).await;
    peer.linked_with(&[id("b")]).await;

    // The handler sends back what it reads, and resets its stream where that is malformed.
    let answer = async |body: &[u8]| {
        let (mut send, mut recv) = conn.open_bi().await.unwrap();
        send.write_all(&[&[KIND_HOP, 0, 0, 0, 0], body].concat()).await.unwrap();
        send.finish().unwrap();
        timeout(WITHIN, recv.read_to_end(1024)).await.unwrap()
    };
    let end = [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];
    let whole = [&[0, 0, 0, 2, b'h', b'i'][..], &end].concat();
    assert_eq!(answer(&whole).await.unwrap(), [&[0; 4][..], &whole].concat());
    let malformed: [(&str, &[u8]); 8] = [
        ("nothing at all", &[]),
        ("a piece without bytes", &[0, 0, 0, 0]),
        ("a tag that is reserved", &[0xFF, 0xFF, 0xFF, 0xFE]),
        ("a piece that is cut off", &[0, 0, 0, 2, b'h']),
        ("an end that is cut off", &end[..7]),
        ("bytes behind the end", &[&end[..], &[0]].concat()),
        ("trailers beyond their bound", &[0xFF, 0xFF, 0xFF, 0xFF, 0, 1, 0, 1]),
        ("trailers out of form", &[0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 1, 9]),
    ];
    for (what, body) in malformed {
        assert!(answer(body).await.is_err(), "{what}");
    }
    close_all(vec![peer]).await;
}

#[tokio::test]
async fn a_body_that_is_cut_off_never_passes_for_whole() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let hop = peers[0].net.open_hop(&id("b")).await.unwrap();
    let mut send = hop.send;
    // A piece, and no end: quinn finishes a stream that is dropped.
    send.write_all(&[KIND_HOP, 0, 0, 0, 0, 0, 0, 0, 2, b'h', b'i']).await.unwrap();
    drop(send);
    let mut reader = FrameReader::new(hop.recv);
    let head = reader.frame(1024).await;
    let cut_off = match head {
        Ok(Some(_)) => {
            let mut body = reader.into_body();
            loop {
                match body.next().await {
                    Ok(HopPart::Data(_)) => {}
                    Ok(HopPart::End(_)) => break false,
                    Err(_) => break true,
                }
            }
        }
        _ => true,
    };
    assert!(cut_off);
    close_all(peers).await;
}

#[tokio::test]
async fn a_hop_to_an_unknown_peer_fails_at_once() {
    let authority = Authority::generate("demo").unwrap();
    let peer = Peer::start(config(&authority, "a", &[])).await;
    let error = peer.net.open_hop(&id("nobody")).await.err();
    assert_eq!(error, Some(OpenError::Unknown(id("nobody"))));
    close_all(vec![peer]).await;
}

#[tokio::test]
async fn peers_that_dial_each_other_at_once_keep_the_same_one_link() {
    let authority = Authority::generate("demo").unwrap();
    let a = Peer::start(config(&authority, "a", &[])).await;
    let b = Peer::start(config(&authority, "b", &[])).await;
    let (a_shared, b_shared) = (&a.net.shared, &b.net.shared);
    let (first, second) =
        tokio::join!(dial::dial(a_shared, b.addr()), dial::dial(b_shared, a.addr()));
    first.unwrap();
    second.unwrap();
    let current = |peer: &Peer, other: &PeerId| peer.net.shared.links.to(other);
    eventually("both keep what the smaller opened", || {
        current(&a, &id("b")).is_some_and(|link| link.opened_here)
            && current(&b, &id("a")).is_some_and(|link| !link.opened_here)
    })
    .await;
    // The other one is drained, then closed; nobody hears of it.
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
async fn an_old_link_is_renewed_without_anyone_noticing() {
    let authority = Authority::generate("demo").unwrap();
    let mut aging = config(&authority, "a", &[]);
    aging.tuning.link_age_max = Duration::from_millis(400);
    let a = Peer::start(aging).await;
    let b = Peer::start(config(&authority, "b", &[])).await;
    dial::dial(&a.net.shared, b.addr()).await.unwrap();
    b.linked_with(&[id("a")]).await;
    let current = || b.net.shared.links.to(&id("a")).map(|link| link.conn.stable_id());
    let before = current();
    eventually("another link", || current().is_some() && current() != before).await;
    assert_eq!(a.seen.last_heard(b.net.incarnation()), Some(Heard::Alive));
    assert_eq!(b.seen.last_heard(a.net.incarnation()), Some(Heard::Alive));
    close_all(vec![a, b]).await;
}

#[tokio::test]
async fn a_link_that_is_replaced_stays_for_as_long_as_a_tunnel_goes_over_it() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let link = peers[0].net.shared.links.to(&id("b")).unwrap();
    let head = HopHead {
        kind: HopKind::Plain,
        app: app("shop"),
        request_id: "one".into(),
        method: "GET".into(),
        target: "/ws".into(),
        fields: Vec::new(),
        upgrade: Some(b"websocket".to_vec()),
        asks_go: false,
    };
    let request = HopRequest { head, body: crate::Body::empty() };
    let to = id("b");
    let asked = hop::ask(&peers[0].net, &to, request, false);
    let Ok(reply) = timeout(WITHIN, asked).await.unwrap() else { panic!("no answer") };
    let mut tunnel = reply.tunnel.expect("it was switched");
    link::start_draining(&peers[0].net.shared, &link);
    assert_eq!(link.hops(), 1);
    tunnel.writer.write_data(Bytes::from_static(b"hello")).await.unwrap();
    match timeout(WITHIN, tunnel.reader.next()).await.unwrap() {
        Ok(HopPart::Data(data)) => assert_eq!(&data[..], b"hello"),
        other => panic!("{other:?}"),
    }
    drop(tunnel);
    timeout(WITHIN, link.conn.closed()).await.expect("then it ends");
    close_all(peers).await;
}

#[tokio::test]
async fn a_peer_that_leaves_answers_what_it_took_and_says_what_it_did_not_take() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let (a, b) = (peers[0].net.clone(), peers[1].net.clone());
    let link = a.shared.links.to(&id("b")).unwrap();
    let request = |upgrade: Option<Vec<u8>>, body| {
        let head = HopHead {
            kind: HopKind::Plain,
            app: app("shop"),
            request_id: "r".into(),
            method: "POST".into(),
            target: "/".into(),
            fields: Vec::new(),
            upgrade,
            asks_go: false,
        };
        HopRequest { head, body }
    };
    let switches = request(Some(b"websocket".to_vec()), crate::Body::empty());
    let taken = timeout(WITHIN, hop::ask(&a, &id("b"), switches, false)).await.unwrap();
    let Ok(reply) = taken else { panic!("no answer") };
    let mut tunnel = reply.tunnel.expect("it was switched");

    let leaves = tokio::spawn({
        let b = b.clone();
        async move { b.close().await }
    });
    eventually("it leaves", || b.shared.leaving.is_cancelled()).await;
    let late = request(None, crate::Body::from(Bytes::from_static(b"late")));
    let late = tokio::spawn(async move { hop::ask(&a, &id("b"), late, false).await });
    eventually("another hop is opened", || link.hops() == 2).await;

    tunnel.writer.write_data(Bytes::from_static(b"hello")).await.unwrap();
    match timeout(WITHIN, tunnel.reader.next()).await.unwrap() {
        Ok(HopPart::Data(data)) => assert_eq!(&data[..], b"hello"),
        other => panic!("{other:?}"),
    }
    drop(tunnel);
    match timeout(WITHIN, late).await.unwrap().unwrap() {
        Err(hop::HopError::Unreachable(_, mut body)) => {
            assert_eq!(body.take_whole(100).as_deref(), Some(&b"late"[..]));
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was not taken"),
    }
    timeout(WITHIN, leaves).await.unwrap().unwrap();
    close_all(peers).await;
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
    // Gossip remembers it for a while, and still nobody dials it or takes it for alive.
    peers[0].net.publish_app(&app("shop"), told(AppState::Ready, None, 0));
    peers[1].seen.sees_app(&id("a"), "shop", AppState::Ready).await;
    assert_eq!(peers[1].seen.last_heard(left), Some(Heard::Left));
    assert_eq!(peers[1].net.connected(), [id("a")]);
    close_all(peers).await;
}

/// A peer on a runtime of its own, which can end without a word.
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

    /// As by SIGKILL: its tasks are dropped where they stand, and nothing more is sent.
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
            // The killed runtime has not let go of its socket yet.
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
async fn a_name_in_use_is_told_to_the_one_that_starts_later() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let mut second = config(&authority, "b", &[peers[0].addr()]);
    // So that a busy machine finds it at the start, too.
    second.tuning.seeds_within = WITHIN;
    let result = Net::start(second, Arc::new(Recorder::default())).await;
    match result.err() {
        Some(StartMeshError::NameInUse { name, addr }) => {
            assert_eq!((name.as_str(), addr), ("b", peers[1].addr()));
        }
        other => panic!("{other:?}"),
    }
    // The first one goes on undisturbed.
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
    let _ = dial::dial(&second.net.shared, first[0].addr()).await;
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
    let mut alone = config(&authority, "a", &[addr]);
    alone.listen = addr;
    alone.advertise = Some(SocketAddr::from(([127, 0, 0, 2], addr.port())));
    let alone = Peer::start(alone).await;
    eventually("it has met itself", || alone.net.shared.book.knows_itself(&id("a"), addr)).await;
    assert!(alone.net.connected().is_empty());
    assert!(alone.seen.events.lock().unwrap().is_empty());
    assert!(alone.net.name_clash().now_or_never().is_none());
    close_all(vec![alone]).await;
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
    // They take datagrams and never answer, as what is left of a pod in its service's name. Tried
    // one after the other they would take longer than the test allows.
    let silent: Vec<std::net::UdpSocket> =
        (0..40).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let mut stale: Vec<SocketAddr> =
        silent.iter().map(|socket| socket.local_addr().unwrap()).collect();
    assert!(me.net.shared.tuning.dial_within * 40 > WITHIN * 2);
    stale.extend([me.addr(), a.addr()]);
    let (addrs, known) = watch::channel(stale);
    let (tried, _) = watch::channel(false);
    let resolve = move || std::future::ready(Ok(known.borrow().clone()));
    let following = tokio::spawn(dial::follow(me.net.shared.clone(), 0, tried, resolve));
    me.links_to(&[&a]).await;

    // The peers that it stood for are replaced by another.
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

    let mut wrong = config(&authority, "a", &[]);
    wrong.me = id("b");
    let error = start(wrong).await.err().unwrap();
    assert!(matches!(&error, StartMeshError::WrongIdentity { found, expected }
        if found == "spiffe://demo/peer/a" && expected == "spiffe://demo/peer/b"));

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
        let link = peer.net.shared.links.to(&id("a")).unwrap();
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

#[tokio::test]
async fn dropping_the_last_handle_ends_everything() {
    let authority = Authority::generate("demo").unwrap();
    let a = Peer::start(config(&authority, "a", &[])).await;
    let b = Peer::start(config(&authority, "b", &[a.addr()])).await;
    a.links_to(&[&b]).await;
    let left = b.net.incarnation();
    let tasks = b.net.shared.tasks.clone();
    drop(b);
    a.seen.hears(&id("b"), left, Heard::Left).await;
    tasks.close();
    timeout(WITHIN, tasks.wait()).await.unwrap();
    close_all(vec![a]).await;
}
