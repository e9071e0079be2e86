//! Peers of one process over real QUIC on loopback, ports chosen by the system. Conditions are
//! awaited by notification, never by time; [`WITHIN`] only ends a test that would hang.

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use warmhop_core::ids::{Ballot, Position, SessionId, SessionKey, WallTime};
use warmhop_core::session::message::{Body, BodyRef, Config, Members, Message};
use warmhop_core::view::News;

use warmhop_core::view::AppState;

use super::*;
use crate::hop::{self, HopHead, HopKind, HopRequest, Load, ReplySession};
use crate::identity::Authority;
use crate::links::carry;
use crate::links::close_code::{self, STREAM_REFUSED};
use crate::links::counters::{Drop, Reason};
use crate::links::endpoint::STREAM_WINDOW_BYTES;
use crate::links::handler::Heard;
use crate::links::hop_body::{HopBodyError, HopBodyWriter, HopPart};
use crate::links::wire::{FrameReader, KIND_HOP, KIND_SESSION, Trailers};
use crate::observe::doors::Doors;

mod frames;
mod hops;
mod joining;
mod lives;
mod news_spread;
mod proof;
mod refused;

const WITHIN: Duration = Duration::from_secs(30);

const POUR: &[u8] = b"pour";

#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    News(News, bool),
    Liveness(PeerId, Incarnation, Heard),
    Session(Incarnation, SessionFrame),
}

/// Records what it receives; answers a hop with the body it was sent, and trailers. A hop that asks
/// for an upgrade gets it, and a hop whose head is [`POUR`] gets bytes without end.
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

    /// The last report about an incarnation.
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
                    Err(_) => return writer.abort(STREAM_REFUSED),
                }
            }
        })
    }

    fn on_former_life(&self, _: warmhop_core::view::FormerLife) {}

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

fn copy_news(state: AppState, eta_ms: Option<u32>, in_flight: u32) -> CopyNews {
    CopyNews { state, eta_ms, in_flight, version: None, digest: 0 }
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
        counters: NetCounters::new(&mut Registry::default(), Doors::default()),
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

    /// The state that its tasks share.
    fn shared(&self) -> Arc<Shared> {
        Shared::new(self.net.parts.clone(), self.seen.clone())
    }

    fn addr(&self) -> SocketAddr {
        self.net.local_addr()
    }

    fn name(&self) -> &PeerId {
        &self.net.parts.me
    }

    async fn links_to(&self, others: &[&Peer]) {
        self.linked_with(&others.iter().map(|peer| peer.name().clone()).collect::<Vec<_>>()).await;
    }

    async fn linked_with(&self, others: &[PeerId]) {
        let mut links = self.net.parts.links.changes();
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

/// Awaits a condition that sends no notification: of counters, for example.
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
        peer: PeerNews::of(
            id(name),
            Incarnation::of(&id(name), WallTime(9), 9),
            "127.0.0.1:9".parse().unwrap(),
        ),
    }
}

async fn say_hello(conn: &quinn::Connection, hello: &wire::Hello) -> SendStream {
    let mut control = conn.open_uni().await.unwrap();
    let mut bytes = BytesMut::from(&[wire::KIND_CONTROL][..]);
    wire::put_frame(&mut bytes, hello, wire::CONTROL_FRAME_BYTES_MAX).unwrap();
    control.write_chunk(bytes.freeze()).await.unwrap();
    control
}
