//! Gossip: the repair of news that links missed, and the second-hand knowledge of peers that
//! there is no link to yet. The only file that names chitchat.
//!
//! Its messages travel inside links (see `link`), so only certificate-holders speak. Even so
//! every message is screened before chitchat sees it: it trusts its input, and keys, values or
//! numbers out of bounds could end its task. Should it end anyway, [`supervise`] starts it anew
//! and counts that. What gossip says is a hint: the peer itself is asked before it matters.
//!
//! Each peer keeps one key for itself (`peer`) and one for each app (`app/NAME`); the values are
//! the records of `news` in bincode and base64. A loop that was started anew is another
//! *generation* of its chitchat node, which is unrelated to the generation of the peer's life
//! that the record tells.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Buf;
use chitchat::transport::{Socket, Transport};
use chitchat::{
    ChitchatConfig, ChitchatHandle, ChitchatId, ChitchatMessage, Deserializable,
    FailureDetectorConfig, Serializable, spawn_chitchat,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, error, warn};
use warmhop_core::ids::{AppName, PeerId};
use warmhop_core::view::{AppNews, News, PeerNews};

use crate::links::net::{Heard, Shared, unix_ms};
use crate::links::news::{APPS_MAX, Clock};
use crate::links::wire::{self, GENERATION_MAX, GOSSIP_VALUE_BYTES_MAX};

/// Messages that wait for the loop.
const INBOUND_MAX: usize = 256;
const COMMANDS_MAX: usize = 64;
/// A dead peer stays in the digests for half of it.
const DEAD_NODE_GRACE: Duration = Duration::from_secs(240);
const RESTART_AFTER: Duration = Duration::from_millis(200);

/// Nodes in one message. Far above the digest of a mesh, and far below where one near
/// 64 KiB would end chitchat's task.
const NODES_PER_MESSAGE_MAX: usize = 600;
/// What the compressed part of one message may come to.
const DELTA_BYTES_MAX: usize = 4 << 20;
const BLOCK_BYTES_MAX: usize = u16::MAX as usize;
const VALUE_CHARS_MAX: usize = GOSSIP_VALUE_BYTES_MAX.div_ceil(3) * 4;
/// Heartbeats and versions beyond it are not counted up to in any life.
const COUNT_MAX: u64 = 1 << 53;

const PEER_KEY: &str = "peer";
const APP_PREFIX: &str = "app/";

/// The way to the gossip loop.
pub(crate) struct Gossip {
    commands: mpsc::Sender<Command>,
    /// The loop that runs: replaced when it is started anew.
    inbound: Arc<Inbound>,
    /// The generation of that loop's node.
    generation: Arc<AtomicU64>,
}

type Inbound = Mutex<Option<mpsc::Sender<(SocketAddr, ChitchatMessage)>>>;

/// What the supervisor is told.
pub(crate) enum Command {
    /// Begin gossip with a peer.
    Meet(SocketAddr),
    /// End the loop as a fault would.
    #[cfg(test)]
    Fail,
}

/// The supervisor's ends of the channels.
pub(crate) struct GossipIn {
    commands: mpsc::Receiver<Command>,
    inbound: Arc<Inbound>,
    generation: Arc<AtomicU64>,
}

impl Gossip {
    /// Channels to a loop that [`supervise`] is to start.
    pub(crate) fn new() -> (Self, GossipIn) {
        let (commands, commands_in) = mpsc::channel(COMMANDS_MAX);
        let inbound = Arc::new(Mutex::default());
        let generation = Arc::new(AtomicU64::new(0));
        (
            Self { commands, inbound: Arc::clone(&inbound), generation: Arc::clone(&generation) },
            GossipIn { commands: commands_in, inbound, generation },
        )
    }

    /// Begins gossip with a peer; if the loop is too busy to, its sweep will.
    pub(crate) fn meet(&self, addr: SocketAddr) {
        let _ = self.commands.try_send(Command::Meet(addr));
    }

    /// Ends the loop as a fault would.
    #[cfg(test)]
    pub(crate) async fn fail(&self) {
        self.commands.send(Command::Fail).await.expect("the supervisor runs");
    }

    /// Hands a message to the loop. `from` is the sender's advertised address, which is where
    /// the answer goes.
    pub(crate) fn receive(&self, shared: &Shared, from: SocketAddr, message: &[u8]) {
        shared.counters.gossip_received();
        let me = (shared.me.as_str(), self.generation.load(Ordering::Relaxed));
        let Some(message) = screened(message, me) else {
            shared.counters.frame_refused("gossip");
            warn!(%from, "refused a gossip message that is out of bounds");
            return;
        };
        let inbound = self.inbound.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sent = inbound.is_some_and(|inbound| inbound.try_send((from, message)).is_ok());
        if !sent {
            shared.counters.drop_counted("gossip-in", "full");
        }
    }
}

/// Runs the gossip loop for as long as this peer does, starting it anew whenever it ends.
pub(crate) async fn supervise(shared: Arc<Shared>, mut input: GossipIn) {
    let mut generation = 0;
    while !shared.closing.is_cancelled() {
        // A loop's node forgets its versions, so each must outrank the one before.
        generation = unix_ms().max(generation + 1).min(GENERATION_MAX);
        input.generation.store(generation, Ordering::Relaxed);
        let started = start(&shared, &input.inbound, generation).await;
        match started {
            Ok(handle) => run(&shared, &handle, &mut input.commands).await,
            Err(error) => error!(%error, "the gossip loop did not start"),
        }
        if shared.closing.is_cancelled() {
            return;
        }
        error!("the gossip loop ended; starting it anew");
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
        // Whom to begin with is told by the links.
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
    commands: &mut mpsc::Receiver<Command>,
) {
    let mut clock = shared.own.subscribe();
    let mut ticks = interval(shared.tuning.gossip_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = 0;
    let mut sweep = Sweep::default();
    let ended = handle.termination_watcher();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                told = publish(shared, handle, told).await;
                sweep.run(shared, handle).await;
            }
            () = urgent(&mut clock, told) => told = publish(shared, handle, told).await,
            command = commands.recv() => match command {
                // An error means that the loop has ended, which is seen below.
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

async fn urgent(clock: &mut watch::Receiver<Clock>, told: u64) {
    if clock.wait_for(|clock| clock.urgent > told).await.is_err() {
        // The sender lives as long as this peer.
        std::future::pending().await
    }
}

/// Puts the own records that changed after `told` into gossip.
async fn publish(shared: &Shared, handle: &ChitchatHandle, told: u64) -> u64 {
    let (news, version) = shared.own.since(told);
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
            let own = chitchat.self_node_state();
            for (key, value) in &values {
                if let Some(value) = value {
                    own.set(key, value);
                }
            }
        })
        .await;
    version
}

fn to_value<T: Serialize>(record: &T) -> Option<String> {
    wire::encode(record, GOSSIP_VALUE_BYTES_MAX)
        .map(|bytes| URL_SAFE_NO_PAD.encode(bytes))
        .inspect_err(|error| error!(%error, "a record does not fit into gossip"))
        .ok()
}

fn from_value<T: DeserializeOwned>(value: &str) -> Option<T> {
    let bytes = URL_SAFE_NO_PAD.decode(value).ok()?;
    wire::decode::<T, { GOSSIP_VALUE_BYTES_MAX * 4 }>(&bytes).ok()
}

/// Looks through what gossip has brought since the last time. Listeners would be quicker, but
/// they miss deaths and resets; and what must be quick comes over links.
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

/// What changed of one node, taken out under chitchat's lock.
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
            // Its first messages were lost, or this loop was started anew.
            let _ = handle.gossip(addr);
        }
    }

    /// The node of the highest generation of each name. Its values are taken out only where
    /// its version is another than the last time.
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

/// Tells what one node's change amounts to.
fn hear(shared: &Arc<Shared>, before: Option<Seen>, node: Changed) -> Seen {
    let before = before.filter(|before| before.id == node.id);
    let was_live = before.as_ref().is_some_and(|before| before.live);
    let known = before.and_then(|before| before.peer);
    let told = node.peer.as_deref().and_then(from_value::<PeerNews>).filter(|peer| {
        peer.peer.as_str() == &*node.id.node_id
            && peer.mesh == node.id.gossip_advertise_addr
            && wire::is_presentable(peer)
    });
    if node.peer.is_some() && told.is_none() {
        shared.counters.frame_refused("gossip-value");
    }
    let changed = told.is_some() && told != known;
    let Some(peer) = told.or(known) else {
        // The apps of an unknown peer are looked at again when it is known.
        return Seen { id: node.id, version: 0, peer: None, live: node.live };
    };

    if peer.peer == shared.me {
        if peer.incarnation != shared.incarnation {
            if node.live {
                shared.book.heard_of(shared, &peer);
            } else {
                shared.outrank_earlier_life(peer.generation);
                if !peer.draining {
                    shared.handler.on_former_life();
                }
            }
        }
        return Seen { id: node.id, version: node.version, peer: Some(peer), live: node.live };
    }
    if shared.refused.borrow().has_name(&peer.peer) {
        // What others say of it counts as little; once it is refused no more, all of it is heard.
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
    if node.live {
        shared.book.heard_of(shared, &peer);
    }
    if node.live != was_live {
        let held = shared.links.hold();
        // A link knows better: suspicion is for peers that there is none to.
        if !shared.links.table().by_peer.contains_key(&peer.peer) {
            let heard = if node.live { Heard::Alive } else { Heard::Suspect };
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
        if let Err(dropped) = self.shared.links.table().send_gossip(to, &message) {
            self.shared.counters.drop_counted("gossip", dropped.label());
        }
        Ok(())
    }

    /// Loses nothing when it is dropped while it waits. An error would end the loop.
    async fn recv(&mut self) -> Result<(SocketAddr, ChitchatMessage), anyhow::Error> {
        match self.inbound.recv().await {
            Some(message) => Ok(message),
            // Another loop took this one's place.
            None => std::future::pending().await,
        }
    }
}

/// Whether `bytes` are a message that would be listened to.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn is_well_formed(bytes: &[u8]) -> bool {
    screened(bytes, ("me", 1)).is_some()
}

/// A message whose names, keys, values and numbers are within bounds; `me` is the name and
/// generation of the node whose state only this peer writes. Others still tell of its earlier
/// lives, which is harmless.
fn screened(bytes: &[u8], me: (&str, u64)) -> Option<ChitchatMessage> {
    /// The first bytes of every message: a magic number and the version.
    const HEADER: [u8; 3] = [0x53, 0xB0, 0];
    let mut rest = bytes.strip_prefix(&HEADER)?;
    match take_u8(&mut rest)? {
        0 => {
            screen_digest(&mut rest)?;
            take_text(&mut rest)?;
        }
        1 => {
            screen_digest(&mut rest)?;
            screen_delta(&mut rest, me)?;
        }
        2 => screen_delta(&mut rest, me)?,
        _ => return None,
    }
    if !rest.is_empty() {
        return None;
    }
    let mut whole = bytes;
    ChitchatMessage::deserialize(&mut whole).ok()
}

fn screen_digest(rest: &mut &[u8]) -> Option<()> {
    let nodes = usize::from(take_u16(rest)?);
    if nodes > NODES_PER_MESSAGE_MAX {
        return None;
    }
    for _ in 0..nodes {
        take_node(rest)?;
        // Heartbeat, collected version, highest version.
        for _ in 0..3 {
            take_count(rest)?;
        }
    }
    Some(())
}

/// Compressed blocks of operations: a node, then values of it with growing versions.
fn screen_delta(rest: &mut &[u8], me: (&str, u64)) -> Option<()> {
    let mut operations = Vec::new();
    let mut block = vec![0; BLOCK_BYTES_MAX];
    loop {
        let kind = take_u8(rest)?;
        if kind == 0 {
            break;
        }
        let len = usize::from(take_u16(rest)?);
        let bytes = take(rest, len)?;
        match kind {
            1 => {
                let len = zstd::bulk::decompress_to_buffer(bytes, &mut block[..]).ok()?;
                operations.extend_from_slice(&block[..len]);
            }
            2 => operations.extend_from_slice(bytes),
            _ => return None,
        }
        if operations.len() > DELTA_BYTES_MAX {
            return None;
        }
    }

    let mut rest = operations.as_slice();
    let mut nodes = 0;
    let mut version = None;
    while !rest.is_empty() {
        match take_u8(&mut rest)? {
            0 => {
                nodes += 1;
                let (name, generation) = take_node(&mut rest)?;
                if nodes > NODES_PER_MESSAGE_MAX || (name == me.0 && generation >= me.1) {
                    return None;
                }
                // Collected version, and the version that the values begin after.
                take_count(&mut rest)?;
                take_count(&mut rest)?;
                version = Some(0);
            }
            1 => {
                let key = take_text(&mut rest)?;
                let app = key.strip_prefix(APP_PREFIX).is_some_and(|app| AppName::new(app).is_ok());
                if !(key == PEER_KEY || app) || take_text(&mut rest)?.len() > VALUE_CHARS_MAX {
                    return None;
                }
                let next = take_count(&mut rest)?;
                // Set, deleted, or deleted later; warmhop only ever sets.
                if take_u8(&mut rest)? != 0 || version? >= next {
                    return None;
                }
                version = Some(next);
            }
            // The highest version of a node without values to send.
            2 => {
                if version? != 0 {
                    return None;
                }
                version = Some(take_count(&mut rest)?);
            }
            _ => return None,
        }
    }
    Some(())
}

/// A node's name and generation, if the rest of its id is in form as well.
fn take_node<'a>(rest: &mut &'a [u8]) -> Option<(&'a str, u64)> {
    let name = take_text(rest)?;
    PeerId::new(name).ok()?;
    let generation = take_u64(rest).filter(|generation| *generation <= GENERATION_MAX)?;
    let ip: IpAddr = match take_u8(rest)? {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(take(rest, 4)?).ok()?).into(),
        6 => Ipv6Addr::from(<[u8; 16]>::try_from(take(rest, 16)?).ok()?).into(),
        _ => return None,
    };
    let port = take_u16(rest)?;
    (port != 0 && !ip.is_unspecified()).then_some((name, generation))
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken)
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let len = take_u16(rest)?;
    std::str::from_utf8(take(rest, len.into())?).ok()
}

fn take_count(rest: &mut &[u8]) -> Option<u64> {
    take_u64(rest).filter(|count| *count <= COUNT_MAX)
}

fn take_u8(rest: &mut &[u8]) -> Option<u8> {
    rest.try_get_u8().ok()
}

fn take_u16(rest: &mut &[u8]) -> Option<u16> {
    rest.try_get_u16_le().ok()
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    rest.try_get_u64_le().ok()
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn put_text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
        bytes.extend(text.as_bytes());
    }

    fn put_node(bytes: &mut Vec<u8>, name: &str, generation: u64) {
        put_text(bytes, name);
        bytes.extend(generation.to_le_bytes());
        bytes.extend([4, 127, 0, 0, 1]);
        bytes.extend(7001_u16.to_le_bytes());
    }

    /// An ACK whose delta has one node and one value, in a block that is not compressed.
    fn ack(name: &str, key: &str, value: &str, versions: [u64; 3]) -> Vec<u8> {
        let mut operations = vec![0];
        put_node(&mut operations, name, 1);
        operations.extend(versions[0].to_le_bytes());
        operations.extend(versions[1].to_le_bytes());
        operations.push(1);
        put_text(&mut operations, key);
        put_text(&mut operations, value);
        operations.extend(versions[2].to_le_bytes());
        operations.push(0);
        message_of_delta(&operations)
    }

    fn message_of_delta(operations: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x53, 0xB0, 0, 2, 2];
        bytes.extend(u16::try_from(operations.len()).unwrap().to_le_bytes());
        bytes.extend(operations);
        bytes.push(0);
        bytes
    }

    #[test]
    fn what_chitchat_itself_says_passes_the_screen() {
        let config = |name: &str, port: u16| ChitchatConfig {
            chitchat_id: ChitchatId::new(name, 1, SocketAddr::from(([127, 0, 0, 1], port))),
            cluster_id: "demo".into(),
            gossip_interval: Duration::from_secs(1),
            listen_addr: SocketAddr::from(([127, 0, 0, 1], port)),
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig::default(),
            marked_for_deletion_grace_period: Duration::from_secs(1),
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Two loops over a transport that hands out what they say.
        let (tap, mut said) = mpsc::channel::<Vec<u8>>(64);
        let values: Vec<(String, String)> =
            (0..500).map(|n| (format!("app/a{n}"), format!("{n:064}"))).collect();
        runtime.block_on(async {
            let (a_in, a_out) = mpsc::channel(64);
            let (b_in, b_out) = mpsc::channel(64);
            let a =
                Tapped { inbound: Mutex::new(Some(a_out)), other: b_in, tap: tap.clone(), from: 1 };
            let b = Tapped { inbound: Mutex::new(Some(b_out)), other: a_in, tap, from: 2 };
            let a = spawn_chitchat(config("a", 1), values, &a).await.unwrap();
            let b = spawn_chitchat(config("b", 2), Vec::new(), &b).await.unwrap();
            b.gossip(SocketAddr::from(([127, 0, 0, 1], 1))).unwrap();
            let mut kinds = std::collections::HashSet::new();
            while kinds.len() < 3 {
                let message = said.recv().await.unwrap();
                assert!(screened(&message, ("me", 1)).is_some(), "kind {}", message[3]);
                kinds.insert(message[3]);
            }
            a.abort();
            b.abort();
        });
    }

    struct Tapped {
        inbound: Mutex<Option<mpsc::Receiver<(SocketAddr, ChitchatMessage)>>>,
        other: mpsc::Sender<(SocketAddr, ChitchatMessage)>,
        tap: mpsc::Sender<Vec<u8>>,
        from: u16,
    }

    struct TappedSocket {
        inbound: mpsc::Receiver<(SocketAddr, ChitchatMessage)>,
        other: mpsc::Sender<(SocketAddr, ChitchatMessage)>,
        tap: mpsc::Sender<Vec<u8>>,
        from: u16,
    }

    #[async_trait::async_trait]
    impl Transport for Tapped {
        async fn open(&self, _: SocketAddr) -> Result<Box<dyn Socket>, anyhow::Error> {
            let inbound = self.inbound.lock().unwrap().take().unwrap();
            let (other, tap) = (self.other.clone(), self.tap.clone());
            Ok(Box::new(TappedSocket { inbound, other, tap, from: self.from }))
        }
    }

    #[async_trait::async_trait]
    impl Socket for TappedSocket {
        async fn send(
            &mut self,
            _: SocketAddr,
            message: ChitchatMessage,
        ) -> Result<(), anyhow::Error> {
            let _ = self.tap.try_send(message.serialize_to_vec());
            let from = SocketAddr::from(([127, 0, 0, 1], self.from));
            let _ = self.other.try_send((from, message));
            Ok(())
        }

        async fn recv(&mut self) -> Result<(SocketAddr, ChitchatMessage), anyhow::Error> {
            match self.inbound.recv().await {
                Some(message) => Ok(message),
                None => std::future::pending().await,
            }
        }
    }

    #[test]
    fn what_could_end_chitchats_task_is_refused() {
        let fine = ack("b", "app/shop", "value", [0, 0, 1]);
        assert!(screened(&fine, ("a", 1)).is_some());
        assert!(screened(&fine, ("b", 1)).is_none(), "nobody else writes this peer's state");
        assert!(screened(&fine, ("b", 2)).is_some(), "but its former lives are no secret");
        let refused = [
            ("a key of another form", ack("b", "épée", "v", [0, 0, 1])),
            ("an app out of form", ack("b", "app/a b", "v", [0, 0, 1])),
            ("a long value", ack("b", "peer", &"v".repeat(VALUE_CHARS_MAX + 1), [0, 0, 1])),
            ("a version that ends counting", ack("b", "peer", "v", [0, 0, u64::MAX])),
            ("a collected version that does", ack("b", "peer", "v", [u64::MAX, 0, 1])),
            ("a version zero", ack("b", "peer", "v", [0, 0, 0])),
            ("a name out of form", ack("b.c", "peer", "v", [0, 0, 1])),
            ("another magic number", [&[0, 0], &fine[2..]].concat()),
            ("another version", [&fine[..2], &[1], &fine[3..]].concat()),
            ("a rejection, which no peer of this cluster sends", vec![0x53, 0xB0, 0, 3]),
            ("bytes behind the message", [&fine[..], &[0]].concat()),
        ];
        for (what, message) in refused {
            assert!(screened(&message, ("a", 1)).is_none(), "{what}");
        }

        // A highest version below that of a value would fail an assertion inside.
        let mut operations = vec![0];
        put_node(&mut operations, "b", 1);
        operations.extend([0; 16]);
        operations.push(1);
        put_text(&mut operations, "peer");
        put_text(&mut operations, "v");
        operations.extend(9_u64.to_le_bytes());
        operations.push(0);
        operations.push(2);
        operations.extend(3_u64.to_le_bytes());
        assert!(screened(&message_of_delta(&operations), ("a", 1)).is_none());

        // A digest with a heartbeat that cannot be counted on from.
        let mut syn = vec![0x53, 0xB0, 0, 0, 1, 0];
        put_node(&mut syn, "b", 1);
        let heartbeat = syn.len();
        syn.extend([0; 24]);
        put_text(&mut syn, "demo");
        assert!(screened(&syn, ("a", 1)).is_some());
        syn[heartbeat..heartbeat + 8].fill(0xFF);
        assert!(screened(&syn, ("a", 1)).is_none());
    }

    #[test]
    fn a_small_message_cannot_unfold_into_a_large_one() {
        let zeros = vec![0; BLOCK_BYTES_MAX];
        let block = zstd::bulk::compress(&zeros, 0).unwrap();
        let mut bomb = vec![0x53, 0xB0, 0, 2];
        for _ in 0..DELTA_BYTES_MAX / BLOCK_BYTES_MAX + 2 {
            bomb.push(1);
            bomb.extend(u16::try_from(block.len()).unwrap().to_le_bytes());
            bomb.extend(&block);
        }
        bomb.push(0);
        assert!(bomb.len() < 10_000);
        assert!(screened(&bomb, ("a", 1)).is_none());
    }

    #[test]
    fn no_bytes_make_the_screen_panic() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let fine = ack("b", "app/shop", "value", [0, 0, 1]);
        for len in 0..fine.len() {
            assert!(screened(&fine[..len], ("a", 1)).is_none());
        }
        for _ in 0..5000 {
            let mut bytes = fine.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(3..bytes.len());
                bytes[at] = rng.random();
            }
            let _ = screened(&bytes, ("a", 1));
        }
    }

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
        };
        let value = to_value(&peer).unwrap();
        assert!(value.len() <= VALUE_CHARS_MAX);
        assert_eq!(from_value(&value), Some(peer));
        assert_eq!(from_value::<PeerNews>("not base64!"), None);
        assert_eq!(from_value::<PeerNews>(""), None);
    }
}
