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

use crate::net::{Heard, Shared, unix_ms};
use crate::news::{APPS_MAX, Clock};
use crate::wire::{self, GENERATION_MAX, GOSSIP_VALUE_BYTES_MAX};

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
}

impl Gossip {
    /// Channels to a loop that [`supervise`] is to start.
    pub(crate) fn new() -> (Self, GossipIn) {
        let (commands, commands_in) = mpsc::channel(COMMANDS_MAX);
        let inbound = Arc::new(Mutex::default());
        (
            Self { commands, inbound: Arc::clone(&inbound) },
            GossipIn { commands: commands_in, inbound },
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
        let Some(message) = screened(message, shared.me.as_str()) else {
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
            }
        }
        return Seen { id: node.id, version: node.version, peer: Some(peer), live: node.live };
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

/// A message whose names, keys, values and numbers are within bounds; `me` names the node
/// whose state only this peer writes.
fn screened(bytes: &[u8], me: &str) -> Option<ChitchatMessage> {
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
fn screen_delta(rest: &mut &[u8], me: &str) -> Option<()> {
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
                if nodes > NODES_PER_MESSAGE_MAX || take_node(&mut rest)? == me {
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

/// A node's name, if the rest of its id is in form as well.
fn take_node<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let name = take_text(rest)?;
    PeerId::new(name).ok()?;
    if take_u64(rest)? > GENERATION_MAX {
        return None;
    }
    let ip: IpAddr = match take_u8(rest)? {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(take(rest, 4)?).ok()?).into(),
        6 => Ipv6Addr::from(<[u8; 16]>::try_from(take(rest, 16)?).ok()?).into(),
        _ => return None,
    };
    let port = take_u16(rest)?;
    (port != 0 && !ip.is_unspecified()).then_some(name)
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
