//! Gossip: it repairs the news that links missed, and gives second-hand knowledge of peers without
//! a link. Only this file and the folder `gossip` name chitchat.
//!
//! Its messages travel inside links (see `link`), so only holders of a certificate can send them.
//! Even so every message is screened before chitchat sees it: chitchat trusts its input, and keys,
//! values or numbers out of bounds could end its task. If it ends anyway, [`supervise`] restarts it
//! and counts that. Gossip is a hint: the peer itself is asked before it matters.
//!
//! Each peer keeps one key for itself (`peer`) and one for each app (`app/NAME`); the values are
//! the records of `news` in bincode and base64. A restarted loop is another *generation* of its
//! chitchat node, which is unrelated to the generation of the peer's life in the record.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chitchat::transport::{Socket, Transport};
use chitchat::{
    ChitchatConfig, ChitchatHandle, ChitchatId, ChitchatMessage, FailureDetectorConfig,
    Serializable, spawn_chitchat,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, error};
use warmhop_core::view::{AppNews, FormerLife, News, PeerNews};

use crate::links::context::Shared;
use crate::links::gossip::handle::{Command, GossipIn, Inbound, OwnNode};
use crate::links::gossip::screen::{APP_PREFIX, EMPTY_ACK, PEER_KEY};
use crate::links::handler::Heard;
use crate::links::news::{APPS_MAX, Clock};
use crate::links::wire::{self, GENERATION_MAX, GOSSIP_VALUE_BYTES_MAX};
use crate::observe::clock::unix_ms;

/// Messages that wait for the loop.
const INBOUND_MAX: usize = 256;

/// A dead peer stays in the digests for half of this time.
const DEAD_NODE_GRACE: Duration = Duration::from_secs(240);

const RESTART_AFTER: Duration = Duration::from_millis(200);

/// Runs the gossip loop for as long as this peer does, and restarts it whenever it ends.
pub(crate) async fn supervise(shared: Arc<Shared>, mut input: GossipIn) {
    let mut generation = 0;
    while !shared.closing.is_cancelled() {
        // A restarted node has lost its versions, so each generation must be higher than the one
        // before.
        generation = unix_ms().max(generation + 1).min(GENERATION_MAX);
        input.own.version.store(0, Ordering::Release);
        input.own.generation.store(generation, Ordering::Relaxed);
        let started = start(&shared, &input.inbound, generation).await;
        match started {
            Ok(handle) => run(&shared, &handle, &input.own, &mut input.commands).await,
            Err(error) => error!(%error, "the gossip loop did not start"),
        }
        if shared.closing.is_cancelled() {
            return;
        }
        error!("the gossip loop ended; it is started again");
        shared.counters.gossip_restarted();
        tokio::select! {
            () = sleep(RESTART_AFTER) => {}
            () = shared.closing.cancelled() => {}
        }
    }
}

async fn start(
    shared: &Arc<Shared>,
    inbound: &Arc<Inbound>,
    generation: u64,
) -> Result<ChitchatHandle, anyhow::Error> {
    let interval = shared.tuning.gossip_interval;
    let config = ChitchatConfig {
        chitchat_id: ChitchatId::new(shared.me.as_str(), generation, shared.advertise),
        cluster_id: shared.cluster.clone(),
        gossip_interval: interval,
        listen_addr: shared.advertise,
        // The links determine the first peers to gossip with.
        seed_nodes: Vec::new(),
        failure_detector_config: FailureDetectorConfig {
            phi_threshold: shared.tuning.phi_threshold,
            sampling_window_size: 1000,
            max_interval: interval * 20,
            initial_interval: interval * 2,
            dead_node_grace_period: DEAD_NODE_GRACE,
        },
        marked_for_deletion_grace_period: Duration::from_secs(3600),
        catchup_callback: None,
        extra_liveness_predicate: None,
    };
    let over_links = OverLinks { shared: shared.clone(), inbound: inbound.clone() };
    spawn_chitchat(config, Vec::new(), &over_links).await
}

/// Serves one loop until it ends.
async fn run(
    shared: &Arc<Shared>,
    handle: &ChitchatHandle,
    own: &OwnNode,
    commands: &mut mpsc::Receiver<Command>,
) {
    let mut clock = shared.own.subscribe();
    let mut ticks = interval(shared.tuning.gossip_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut published = 0;
    let mut sweep = Sweep::default();
    let ended = handle.termination_watcher();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                published = publish(shared, handle, own, published).await;
                sweep.run(shared, handle).await;
            }
            () = urgent(&mut clock, published) => {
                published = publish(shared, handle, own, published).await;
            }
            command = commands.recv() => match command {
                // An error means that the loop has ended, which is handled below.
                Some(Command::Meet(addr)) => drop(handle.gossip(addr)),
                #[cfg(test)]
                Some(Command::Fail) => handle.abort(),
                None => return,
            },
            result = &mut ended => {
                debug!(?result, "the gossip loop ended");
                return;
            }
            () = shared.closing.cancelled() => return handle.abort(),
        }
    }
}

async fn urgent(clock: &mut watch::Receiver<Clock>, published: u64) {
    if clock.wait_for(|clock| clock.urgent > published).await.is_err() {
        // The sender lives as long as this peer.
        std::future::pending().await
    }
}

/// Puts this peer's records that changed after version `published` into gossip.
async fn publish(shared: &Shared, handle: &ChitchatHandle, own: &OwnNode, published: u64) -> u64 {
    let (news, version) = shared.own.since(published);
    if news.is_empty() {
        return version;
    }
    let mut values = Vec::with_capacity(news.len());
    for news in news {
        match news {
            News::Peer(peer) => values.push((PEER_KEY.to_owned(), to_value(&peer))),
            News::App { news, .. } => {
                values.push((format!("{APP_PREFIX}{}", news.app), to_value(&news)));
            }
        }
    }
    handle
        .with_chitchat(|chitchat| {
            let state = chitchat.self_node_state();
            for (key, value) in &values {
                if let Some(value) = value {
                    state.set(key, value);
                }
            }
            own.version.store(state.max_version(), Ordering::Release);
        })
        .await;
    version
}

fn to_value<T: Serialize>(record: &T) -> Option<String> {
    wire::encode(record, GOSSIP_VALUE_BYTES_MAX)
        .map(|bytes| URL_SAFE_NO_PAD.encode(bytes))
        .inspect_err(|error| error!(%error, "a record is too large for gossip"))
        .ok()
}

fn from_value<T: DeserializeOwned>(value: &str) -> Option<T> {
    let bytes = URL_SAFE_NO_PAD.decode(value).ok()?;
    wire::decode::<T, { GOSSIP_VALUE_BYTES_MAX * 4 }>(&bytes).ok()
}

/// Looks through what gossip has brought since the last sweep. Listeners would be quicker, but they
/// miss deaths and resets; urgent changes come over links anyway.
#[derive(Default)]
struct Sweep {
    nodes: HashMap<String, Seen>,
}

struct Seen {
    id: ChitchatId,
    version: u64,
    peer: Option<PeerNews>,
    live: bool,
}

/// The changes of one node, copied out under chitchat's lock.
struct Changed {
    id: ChitchatId,
    version: u64,
    live: bool,
    peer: Option<String>,
    apps: Vec<String>,
}

impl Sweep {
    async fn run(&mut self, shared: &Arc<Shared>, handle: &ChitchatHandle) {
        let (changed, addrs) = handle.with_chitchat(|chitchat| self.changed(chitchat)).await;
        let mut present = HashMap::with_capacity(changed.len());
        for node in changed {
            let before = self.nodes.remove(&*node.id.node_id);
            present.insert(node.id.node_id.to_string(), hear(shared, before, node));
        }
        self.nodes = present;

        let strangers: Vec<SocketAddr> = shared
            .links
            .table()
            .by_addr
            .keys()
            .filter(|addr| !addrs.contains(addr))
            .copied()
            .collect();
        for addr in strangers {
            // Its first messages were lost, or this loop was restarted.
            let _ = handle.gossip(addr);
        }
    }

    /// The node of the highest generation of each name. Its values are copied out only if its
    /// version has changed since the last sweep.
    fn changed(&self, chitchat: &chitchat::Chitchat) -> (Vec<Changed>, Vec<SocketAddr>) {
        let own = chitchat.self_chitchat_id();
        let live: std::collections::HashSet<&ChitchatId> = chitchat.live_nodes().collect();
        let mut newest: HashMap<&str, &chitchat::NodeState> = HashMap::new();
        for state in chitchat.node_states().values() {
            let id = state.chitchat_id();
            if id == own {
                continue;
            }
            let entry = newest.entry(&id.node_id).or_insert(state);
            if entry.chitchat_id().generation_id < id.generation_id {
                *entry = state;
            }
        }
        let changed = newest.values().map(|state| {
            let (id, version) = (state.chitchat_id(), state.max_version());
            let seen = self.nodes.get(&*id.node_id).filter(|seen| seen.id == *id);
            let since = seen.map_or(0, |seen| seen.version);
            let mut changed = Changed {
                id: id.clone(),
                version,
                live: live.contains(id),
                peer: None,
                apps: Vec::new(),
            };
            if since != version {
                changed.peer = state.get(PEER_KEY).map(ToOwned::to_owned);
                let apps = state.iter_prefix(APP_PREFIX).filter(|(_, value)| value.version > since);
                changed.apps = apps.take(APPS_MAX).map(|(_, value)| value.value.clone()).collect();
            }
            changed
        });
        let addrs = chitchat.node_states().keys().map(|id| id.gossip_advertise_addr).collect();
        (changed.collect(), addrs)
    }
}

/// Reports the changes of one node to the handler.
fn hear(shared: &Arc<Shared>, before: Option<Seen>, node: Changed) -> Seen {
    let before = before.filter(|before| before.id == node.id);
    let was_live = before.as_ref().is_some_and(|before| before.live);
    let known = before.and_then(|before| before.peer);
    let announced = node.peer.as_deref().and_then(from_value::<PeerNews>).filter(|peer| {
        peer.peer.as_str() == &*node.id.node_id
            && peer.mesh == node.id.gossip_advertise_addr
            && wire::is_presentable(peer)
    });
    if node.peer.is_some() && announced.is_none() {
        shared.counters.frame_refused("gossip-value");
    }
    let changed = announced.is_some() && announced != known;
    let Some(peer) = announced.or(known) else {
        // The apps of an unknown peer are read again once it is known.
        return Seen { id: node.id, version: 0, peer: None, live: node.live };
    };

    if peer.peer == shared.me {
        if peer.incarnation != shared.incarnation {
            // Even while it counts as live: others have not noticed its end yet.
            let former = if peer.draining { FormerLife::Left } else { FormerLife::Ended };
            shared.handler.on_former_life(former);
            if node.live {
                shared.probe_namesake(peer.mesh);
            } else {
                shared.outrank_earlier_life(peer.generation);
            }
        }
        return Seen { id: node.id, version: node.version, peer: Some(peer), live: node.live };
    }
    if shared.refused.borrow().has_name(&peer.peer) {
        // Second-hand news of a refused peer is ignored too; once it is no longer refused, all of
        // it is read.
        return Seen { id: node.id, version: 0, peer: None, live: false };
    }
    if changed {
        shared.handler.on_news(News::Peer(peer.clone()), false);
    }
    for value in &node.apps {
        match from_value::<AppNews>(value) {
            Some(news) => shared.handler.on_news(
                News::App {
                    peer: peer.peer.clone(),
                    incarnation: peer.incarnation,
                    generation: peer.generation,
                    news,
                },
                false,
            ),
            None => shared.counters.frame_refused("gossip-value"),
        }
    }
    if node.live && !shared.book.heard_of(&peer) {
        shared.counters.links_refused("full");
    }
    if node.live || was_live {
        let held = shared.links.hold();
        // A link knows better: gossip raises suspicion only of peers without one.
        if !shared.links.table().by_peer.contains_key(&peer.peer) {
            let heard = match (was_live, node.live) {
                (true, true) => Heard::ByOthers,
                (_, true) => Heard::Alive,
                (_, false) => Heard::Suspect,
            };
            if heard == Heard::Alive {
                shared.book.is_back(&peer.peer);
            }
            if !shared.book.has_departed(&peer) {
                shared.handler.on_liveness(&peer.peer, peer.incarnation, heard);
            }
        }
        drop(held);
    }
    Seen { id: node.id, version: node.version, peer: Some(peer), live: node.live }
}

/// Carries chitchat's messages inside links.
struct OverLinks {
    shared: Arc<Shared>,
    inbound: Arc<Inbound>,
}

#[async_trait::async_trait]
impl Transport for OverLinks {
    async fn open(&self, _: SocketAddr) -> Result<Box<dyn Socket>, anyhow::Error> {
        let (sender, inbound) = mpsc::channel(INBOUND_MAX);
        *self.inbound.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        Ok(Box::new(LinkSocket { shared: self.shared.clone(), inbound }))
    }
}

struct LinkSocket {
    shared: Arc<Shared>,
    inbound: mpsc::Receiver<(SocketAddr, ChitchatMessage)>,
}

#[async_trait::async_trait]
impl Socket for LinkSocket {
    /// Never waits and never fails: it is called within chitchat's only task.
    async fn send(
        &mut self,
        to: SocketAddr,
        message: ChitchatMessage,
    ) -> Result<(), anyhow::Error> {
        let message = message.serialize_to_vec();
        if message == EMPTY_ACK {
            return Ok(());
        }
        if let Err(dropped) = self.shared.links.table().send_gossip(to, &message) {
            self.shared.counters.drop_counted("gossip", dropped.label());
        }
        Ok(())
    }

    /// Loses nothing when it is dropped while it waits. An error would end the loop.
    async fn recv(&mut self) -> Result<(SocketAddr, ChitchatMessage), anyhow::Error> {
        match self.inbound.recv().await {
            Some(message) => Ok(message),
            // Another loop has taken this one's place.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use warmhop_core::ids::PeerId;

    use super::*;
    use crate::links::gossip::screen::VALUE_CHARS_MAX;

    #[test]
    fn the_largest_record_fits_into_a_value() {
        let peer = PeerNews {
            peer: PeerId::new(&"p".repeat(32)).unwrap(),
            incarnation: warmhop_core::ids::Incarnation([255; 16]),
            generation: GENERATION_MAX,
            seq: u64::MAX,
            mesh: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap(),
            http: Some("h".repeat(wire::HTTP_BYTES_MAX)),
            zone: Some("z".repeat(wire::ZONE_BYTES_MAX)),
            draining: true,
            knows_more: true,
            young: false,
            full: false,
            sole: false,
        };
        let value = to_value(&peer).unwrap();
        assert!(value.len() <= VALUE_CHARS_MAX);
        assert_eq!(from_value(&value), Some(peer));
        assert_eq!(from_value::<PeerNews>("not base64!"), None);
        assert_eq!(from_value::<PeerNews>(""), None);
    }
}
