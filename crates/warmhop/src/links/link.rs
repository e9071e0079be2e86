//! QUIC links between peers: how one begins, what it carries, which of two is kept and how it
//! ends. The only file that opens a stream.
//!
//! ```text
//! dial/accept ─TLS─▶ proven identity ─hello─▶ admitted ─▶ current ─▶ draining ─▶ closed
//!                          │                     │           │                     ▲
//!                          └─ wrong: closed      ├─ surplus: draining              │
//!                                                └─ name in use: closed            │
//!                                                            └─ lost, goodbye ─────┘
//! ```
//!
//! A link says nothing before the certificate at its other end has proven a peer of this
//! cluster. Each direction then opens its control stream and says hello, the end that dialed
//! first; its name must be the certificate's. The end that was dialed answers once it has
//! admitted the other. One link per pair is *current*: of several to one incarnation, that which was opened
//! by the smaller peer name, and of those the one dialed last. The others *drain*: nothing new
//! is opened on them, and they close when their hops have ended.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt, WriteError};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};
use warmhop_core::ids::{Incarnation, PeerId};
use warmhop_core::view::{News, PeerNews};

use crate::identity::{Proven, proven_identity};
use crate::links::clocks;
use crate::links::net::{Heard, Shared};
use crate::links::seeds;
use crate::links::wire::{
    self, CONTROL_FRAME_BYTES_MAX, FrameError, FrameReader, GOSSIP_BYTES_MAX, Hello,
    KIND_CLOCK_ASKED, KIND_CLOCK_TOLD, KIND_CONTROL, KIND_GOSSIP, KIND_HOP, KIND_SESSION,
    NewsBatch, PROTOCOL_VERSION, SESSION_FRAME_BYTES_MAX, SessionFrame,
};

/// Why a link is closed; the other end reads it.
pub(crate) mod close_code {
    use quinn::VarInt;

    /// The peer leaves the mesh. The reason, where there is one, is how many hops it took in.
    pub(crate) const GOODBYE: VarInt = VarInt::from_u32(1);
    /// Another link took this one's place, and its hops have ended.
    pub(crate) const DRAINED: VarInt = VarInt::from_u32(2);
    /// The peer lives again as another incarnation.
    pub(crate) const REPLACED: VarInt = VarInt::from_u32(3);
    /// A peer dialed itself.
    pub(crate) const MYSELF: VarInt = VarInt::from_u32(4);
    /// Another live peer has this name; the reason is its address.
    pub(crate) const NAME_IN_USE: VarInt = VarInt::from_u32(5);
    /// The certificate does not prove a peer of this cluster, or the hello says otherwise.
    pub(crate) const WRONG_IDENTITY: VarInt = VarInt::from_u32(6);
    /// Another protocol version.
    pub(crate) const WRONG_VERSION: VarInt = VarInt::from_u32(7);
    /// No valid hello came in time.
    pub(crate) const NO_HELLO: VarInt = VarInt::from_u32(8);
    /// The link reached its maximum age and was not renewed.
    pub(crate) const TOO_OLD: VarInt = VarInt::from_u32(9);
    /// The peer knows too many others.
    pub(crate) const FULL: VarInt = VarInt::from_u32(10);
    /// The other end did not answer a hop in time.
    pub(crate) const SILENT: VarInt = VarInt::from_u32(11);
    /// The operator of the peer has it refuse the other.
    pub(crate) const REFUSED: VarInt = VarInt::from_u32(12);
}

/// A stream of an unknown kind or with a malformed frame is stopped and reset with this code.
pub(crate) const STREAM_REFUSED: VarInt = VarInt::from_u32(0x100);

/// Frames of sessions that wait for one link.
const LANE_FRAMES_MAX: usize = 1024;
/// Bytes of sessions that wait for one link.
const LANE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Gossip messages that wait for one link because they do not fit in a datagram.
const GOSSIP_QUEUE_MAX: usize = 4;
/// News in one frame: each is below 1 KiB.
const NEWS_PER_FRAME_MAX: usize = 60;
/// Changes of load alone are told at most this often.
const LOAD_NEWS_EVERY: Duration = Duration::from_millis(100);
/// How long a draining link stays at least: the other end may not know yet that it drains.
const DRAIN_MIN: Duration = Duration::from_secs(2);
/// How long the hops on a draining link may take. Links are renewed every hour or so, and what is
/// open then, a download or a WebSocket, is not to end for that.
const DRAIN_MAX: Duration = Duration::from_secs(24 * 3600);
/// Hops that the other end of a new link may have under way. Each that it may have costs this end
/// some memory, used or not, so the allowance grows as it is used.
pub(crate) const HOPS_AT_FIRST: u32 = 128;
/// What carries the mesh itself goes before the bodies of hops, however many of those wait.
const AHEAD_OF_HOPS: i32 = 1;
/// How long a hop may take to send its first byte.
/// How long the other end may take to acknowledge an answer, where this peer is about to leave.
const DELIVERED_WITHIN: Duration = Duration::from_secs(2);
const HOP_KIND_WITHIN: Duration = Duration::from_secs(10);

/// A link that was admitted.
pub(crate) struct Link {
    pub(crate) conn: Connection,
    /// What the other end said of itself in its hello.
    pub(crate) peer: PeerNews,
    /// Which end dialed.
    pub(crate) opened_here: bool,
    /// The opener's count of its dials: of two links by one opener, the higher is newer.
    dial: u64,
    pub(crate) since: Instant,
    lane: Lane,
    gossip: mpsc::Sender<Bytes>,
    /// Hops under way in either direction.
    hops: AtomicUsize,
    /// How many hops of the other end were taken in here, from the first on.
    taken: AtomicU64,
    /// Those of them that were opened here.
    hops_out: AtomicUsize,
    hop_ended: Notify,
    draining: AtomicBool,
}

/// The way of session frames to one peer, in order on one stream, opened with the first of them.
struct Lane {
    out: tokio::sync::Mutex<LaneStream>,
    queue: mpsc::Sender<Bytes>,
    /// What was taken and not written yet.
    bytes: AtomicUsize,
}

#[derive(Default)]
struct LaneStream {
    send: Option<SendStream>,
    /// The end of a frame whose beginning is written.
    rest: Bytes,
}

impl Lane {
    /// Writes the frame at once where nothing is before it and the stream has room: that saves a
    /// task switch at each end of a round trip. Else it waits in the queue.
    fn send(&self, frame: Bytes) -> Result<(), Dropped> {
        let len = frame.len();
        let before = self.bytes.fetch_add(len, Ordering::AcqRel);
        if before + len > LANE_BYTES_MAX {
            self.bytes.fetch_sub(len, Ordering::AcqRel);
            return Err(Dropped::Full);
        }
        let frame = match before {
            0 => self.write_now(frame),
            _ => Some(frame),
        };
        // An empty one wakes the task that writes the rest.
        let Some(frame) = frame else { return Ok(()) };
        let queued = frame.len();
        self.queue.try_send(frame).map_err(|error| {
            self.bytes.fetch_sub(queued, Ordering::AcqRel);
            match error {
                mpsc::error::TrySendError::Full(_) => Dropped::Full,
                mpsc::error::TrySendError::Closed(_) => Dropped::NoLink,
            }
        })
    }

    /// Returns what is to be queued.
    fn write_now(&self, frame: Bytes) -> Option<Bytes> {
        let Ok(mut out) = self.out.try_lock() else { return Some(frame) };
        let LaneStream { send: Some(send), rest } = &mut *out else { return Some(frame) };
        if !rest.is_empty() {
            return Some(frame);
        }
        let mut chunks = [frame];
        let written = send.write_chunks(&mut chunks).now_or_never();
        let [left] = chunks;
        match written {
            Some(Ok(written)) => {
                self.bytes.fetch_sub(written.bytes, Ordering::AcqRel);
                *rest = left;
                (!rest.is_empty()).then(Bytes::new)
            }
            // Whoever writes what is queued finds the stream closed.
            Some(Err(_)) | None => Some(left),
        }
    }
}

impl LaneStream {
    async fn write(&mut self, link: &Link, frame: Bytes) -> Result<(), WriteError> {
        let send = match &mut self.send {
            Some(send) => send,
            None => {
                let mut send = link.conn.open_uni().await?;
                go_ahead(&send);
                send.write_all(&[KIND_SESSION]).await?;
                self.send.insert(send)
            }
        };
        send.write_chunk(std::mem::take(&mut self.rest)).await?;
        send.write_chunk(frame).await
    }
}

/// The receiving ends of a link's queues, until its tasks start.
struct Queues {
    lane: mpsc::Receiver<Bytes>,
    gossip: mpsc::Receiver<Bytes>,
}

/// Counts a hop, and keeps a draining link open while the hop uses it.
pub(crate) struct HopLease {
    link: Arc<Link>,
    opened_here: bool,
}

impl HopLease {
    /// For a hop that is opened here; `None` where `max` are under way.
    pub(crate) fn of_own(link: &Arc<Link>, max: u32) -> Option<Self> {
        // Made before the count is looked at, so that it is taken back where it is too high.
        let before = link.hops_out.fetch_add(1, Ordering::AcqRel);
        link.hops.fetch_add(1, Ordering::AcqRel);
        let lease = Self { link: link.clone(), opened_here: true };
        (before < max as usize).then_some(lease)
    }

    fn of_other(link: &Arc<Link>) -> Self {
        link.hops.fetch_add(1, Ordering::AcqRel);
        Self { link: link.clone(), opened_here: false }
    }

    /// The link that the hop goes over.
    pub(crate) fn link(&self) -> Arc<Link> {
        self.link.clone()
    }

    /// Opens the hop's streams. Nothing is sent before their user writes.
    pub(crate) async fn open(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        self.link.conn.open_bi().await
    }

    /// Resolves, having given the link up, if nothing at all arrives on it within `span`. What
    /// a hop has just sent is acknowledged within a round trip and is sent again several times
    /// within `span`, so a peer that is this silent is dead, stopped or cut off, long before the
    /// idle timer says so.
    pub(crate) async fn fell_silent(&self, span: Duration) {
        let conn = &self.link.conn;
        let before = conn.stats().udp_rx.datagrams;
        sleep(span).await;
        if conn.stats().udp_rx.datagrams == before {
            conn.close(close_code::SILENT, b"");
        } else {
            std::future::pending().await
        }
    }
}

impl Drop for HopLease {
    fn drop(&mut self) {
        let link = &self.link;
        if self.opened_here {
            link.hops_out.fetch_sub(1, Ordering::AcqRel);
        }
        if link.hops.fetch_sub(1, Ordering::AcqRel) == 1 {
            link.hop_ended.notify_one();
        }
    }
}

impl Link {
    /// Whether hops and sessions may still go this way.
    pub(crate) fn is_usable(&self) -> bool {
        self.conn.close_reason().is_none() && !self.draining.load(Ordering::Acquire)
    }

    /// Whether the other end has left and said that it never took in the hop of this number, counted
    /// as QUIC counts the streams of one opener.
    pub(crate) fn never_took(&self, number: u64) -> bool {
        let Some(ConnectionError::ApplicationClosed(close)) = self.conn.close_reason() else {
            return false;
        };
        let taken = std::str::from_utf8(&close.reason).ok().and_then(|s| s.parse::<u64>().ok());
        close.error_code == close_code::GOODBYE && taken.is_some_and(|taken| number >= taken)
    }

    /// How many hops go over it, in either direction.
    pub(crate) fn hops(&self) -> usize {
        self.hops.load(Ordering::Acquire)
    }

    /// Where the other end has half as many hops under way as `allowed`, lets it have twice as
    /// many, up to `max`. Returns what it may have.
    fn make_room(&self, allowed: u32, max: u32) -> u32 {
        let under_way = self.hops().saturating_sub(self.hops_out.load(Ordering::Acquire));
        if allowed >= max || under_way < allowed as usize / 2 {
            return allowed;
        }
        let allowed = allowed.saturating_mul(2).min(max);
        self.conn.set_max_concurrent_bi_streams(allowed.into());
        allowed
    }

    /// Which of two links to one incarnation is kept: the greater. Both ends agree on it.
    fn rank(&self, me: &PeerId) -> (bool, u64) {
        let opener = if self.opened_here { me } else { &self.peer.peer };
        let smaller = me.min(&self.peer.peer);
        (opener == smaller, self.dial)
    }
}

/// The current links, as an immutable snapshot for readers.
pub(crate) struct Links {
    table: ArcSwap<Table>,
    /// Held while the table changes and the handler hears of it, so that it hears in order.
    writing: Mutex<()>,
    changed: watch::Sender<u64>,
}

/// The current links by what they are asked for.
#[derive(Clone, Default)]
pub(crate) struct Table {
    pub(crate) by_peer: HashMap<PeerId, Arc<Link>>,
    pub(crate) by_incarnation: HashMap<Incarnation, Arc<Link>>,
    pub(crate) by_addr: HashMap<SocketAddr, Arc<Link>>,
}

impl Links {
    /// No link yet.
    pub(crate) fn new() -> Self {
        Self { table: ArcSwap::default(), writing: Mutex::new(()), changed: watch::Sender::new(0) }
    }

    /// The links as they are.
    pub(crate) fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    /// The current link to a peer.
    pub(crate) fn to(&self, peer: &PeerId) -> Option<Arc<Link>> {
        self.table.load().by_peer.get(peer).filter(|link| link.is_usable()).cloned()
    }

    /// Changes whenever a link comes or goes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// No link comes or goes while the guard is held.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, _: &MutexGuard<'_, ()>, link: &Arc<Link>) {
        let mut table = Table::clone(&self.table.load());
        if let Some(before) = table.by_peer.insert(link.peer.peer.clone(), link.clone()) {
            table.forget(&before);
        }
        table.by_incarnation.insert(link.peer.incarnation, link.clone());
        table.by_addr.insert(link.peer.mesh, link.clone());
        self.table.store(Arc::new(table));
        self.changed.send_modify(|count| *count += 1);
    }

    /// Takes a link out; false if it was not current.
    fn remove(&self, _: &MutexGuard<'_, ()>, link: &Arc<Link>) -> bool {
        let table = self.table.load();
        if !table.by_peer.get(&link.peer.peer).is_some_and(|current| Arc::ptr_eq(current, link)) {
            return false;
        }
        let mut table = Table::clone(&table);
        table.by_peer.remove(&link.peer.peer);
        table.forget(link);
        self.table.store(Arc::new(table));
        self.changed.send_modify(|count| *count += 1);
        true
    }
}

impl Table {
    fn forget(&mut self, link: &Arc<Link>) {
        self.by_incarnation.retain(|_, other| !Arc::ptr_eq(other, link));
        self.by_addr.retain(|_, other| !Arc::ptr_eq(other, link));
    }
}

/// What came of a connection that was established.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Met {
    /// A link to this incarnation; perhaps a surplus one beside the current.
    Peer(PeerId),
    /// This very process.
    Myself,
    /// Another process with this peer's name.
    Namesake,
}

/// Why a connection did not become a link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeetError {
    /// The connection broke or was refused by the other end.
    #[error("the link failed: {0}")]
    Connection(#[from] ConnectionError),
    /// The certificate does not prove a peer of this cluster.
    #[error("the certificate is not one of a peer of this cluster")]
    NotOfCluster,
    /// The hello names another peer than the certificate.
    #[error("the hello names {said}, the certificate {proven}")]
    WrongName {
        /// The name in the hello.
        said: PeerId,
        /// The name in the certificate.
        proven: PeerId,
    },
    /// It speaks another version of the protocol.
    #[error("the peer speaks protocol version {0}, this one {PROTOCOL_VERSION}")]
    Version(u16),
    /// No valid hello came.
    #[error("no valid hello came: {0}")]
    NoHello(String),
    /// Another live peer has the name already.
    #[error("a live peer at {0} has the name already")]
    NameInUse(SocketAddr),
    /// It is among those that are refused.
    #[error("[mesh] refuse names {0} or its certificate")]
    Refused(PeerId),
    /// No more peers are taken.
    #[error("this peer knows as many others as it can")]
    Full,
}

impl MeetError {
    /// The label of the counter.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Connection(_) => "connection",
            Self::NotOfCluster => "not-of-cluster",
            Self::WrongName { .. } => "wrong-name",
            Self::Version(_) => "version",
            Self::NoHello(_) => "no-hello",
            Self::NameInUse(_) => "name-in-use",
            Self::Refused(_) => "refused",
            Self::Full => "full",
        }
    }
}

/// Makes a link of an established connection: proof, hello, admission. `dial` is the count of
/// this dial where this end opened it.
pub(crate) async fn meet(
    shared: &Arc<Shared>,
    conn: Connection,
    dial: Option<u64>,
) -> Result<Met, MeetError> {
    let result = match timeout(shared.tuning.hello_within, hello(shared, &conn, dial)).await {
        Ok(Ok(greeted)) => admit(shared, &conn, dial, greeted),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(MeetError::NoHello("it took too long".into())),
    };
    if let Err(error) = &result {
        let code = match error {
            MeetError::Connection(_) => return result,
            MeetError::NotOfCluster | MeetError::WrongName { .. } => close_code::WRONG_IDENTITY,
            MeetError::Version(_) => close_code::WRONG_VERSION,
            MeetError::NoHello(_) => close_code::NO_HELLO,
            MeetError::NameInUse(_) => close_code::NAME_IN_USE,
            MeetError::Refused(_) => close_code::REFUSED,
            MeetError::Full => close_code::FULL,
        };
        let reason = match error {
            MeetError::NameInUse(addr) => addr.to_string(),
            _ => String::new(),
        };
        shared.counters.links_refused(error.reason());
        conn.close(code, reason.as_bytes());
    }
    result
}

/// What both ends' control streams and the other's hello came to.
struct Greeted {
    hello: Hello,
    control_out: SendStream,
    control_in: FrameReader,
    /// This end's hello where it has not been sent: the end that was dialed greets back only
    /// once it has admitted the other, so that an answer means admission.
    answer: Option<Bytes>,
}

async fn hello(
    shared: &Shared,
    conn: &Connection,
    dial: Option<u64>,
) -> Result<Greeted, MeetError> {
    let Proven { cluster, peer: proven, certificate } =
        proven_identity(conn.peer_identity()).ok_or(MeetError::NotOfCluster)?;
    if cluster != shared.cluster {
        return Err(MeetError::NotOfCluster);
    }
    if shared.refused.borrow().has(&proven, Some(certificate)) {
        return Err(MeetError::Refused(proven));
    }

    // Opened before the other end may open any, so that its id is the lowest.
    let mut control_out = conn.open_uni().await?;
    go_ahead(&control_out);
    let mut first = BytesMut::with_capacity(256);
    first.put_u8(KIND_CONTROL);
    let mine =
        Hello { version: PROTOCOL_VERSION, dial: dial.unwrap_or(0), peer: shared.own.peer() };
    wire::put_frame(&mut first, &mine, CONTROL_FRAME_BYTES_MAX)
        .map_err(|error| MeetError::NoHello(error.to_string()))?;
    let broken = |error: String| match conn.close_reason() {
        Some(closed) => MeetError::Connection(closed),
        None => MeetError::NoHello(error),
    };
    let unreadable = |error: FrameError| broken(error.to_string());
    let mut answer = Some(first.freeze());
    if dial.is_some()
        && let Some(first) = answer.take()
    {
        control_out.write_chunk(first).await.map_err(|error| broken(error.to_string()))?;
    }

    // Streams are accepted in the order of their ids, so the other end's first one comes first
    // whatever order their packets take.
    let mut control_in = FrameReader::new(conn.accept_uni().await?);
    if control_in.byte().await.map_err(unreadable)? != Some(KIND_CONTROL) {
        return Err(MeetError::NoHello("the first stream is not the control stream".into()));
    }
    let frame = control_in.frame(CONTROL_FRAME_BYTES_MAX).await.map_err(unreadable)?;
    let frame = frame.ok_or_else(|| MeetError::NoHello("the control stream is empty".into()))?;
    // The version comes first in the hello of every version, so that it can be told apart.
    let hello = match wire::decode::<Hello, CONTROL_FRAME_BYTES_MAX>(&frame) {
        Ok(hello) if hello.version == PROTOCOL_VERSION => hello,
        Ok(hello) => return Err(MeetError::Version(hello.version)),
        Err(error) => {
            return Err(match wire::hello_version(&frame) {
                Some(version) if version != PROTOCOL_VERSION => MeetError::Version(version),
                _ => MeetError::NoHello(error.to_string()),
            });
        }
    };
    if hello.peer.peer != proven {
        return Err(MeetError::WrongName { said: hello.peer.peer, proven });
    }
    if !wire::is_presentable(&hello.peer) {
        return Err(MeetError::NoHello("its fields exceed their bounds".into()));
    }
    Ok(Greeted { hello, control_out, control_in, answer })
}

fn admit(
    shared: &Arc<Shared>,
    conn: &Connection,
    dial: Option<u64>,
    mut greeted: Greeted,
) -> Result<Met, MeetError> {
    let peer = greeted.hello.peer.clone();
    if peer.peer == shared.me {
        let myself = peer.incarnation == shared.incarnation;
        if !myself {
            shared.met_namesake(&peer, dial.is_some());
        }
        let code = if myself { close_code::MYSELF } else { close_code::NAME_IN_USE };
        let conn = conn.clone();
        let linger = shared.tuning.hello_within;
        shared.tasks.spawn(async move {
            if let Some(answer) = greeted.answer.take() {
                // The end that dialed has to read this one's hello before the connection goes.
                let _ = greeted.control_out.write_chunk(answer).await;
                let _ = timeout(linger, conn.closed()).await;
            }
            conn.close(code, b"");
        });
        return Ok(if myself { Met::Myself } else { Met::Namesake });
    }

    let (lane, lane_out) = mpsc::channel(LANE_FRAMES_MAX);
    let (gossip, gossip_out) = mpsc::channel(GOSSIP_QUEUE_MAX);
    let link = Arc::new(Link {
        conn: conn.clone(),
        peer: peer.clone(),
        opened_here: dial.is_some(),
        dial: dial.unwrap_or(greeted.hello.dial),
        since: Instant::now(),
        lane: Lane { out: Default::default(), queue: lane, bytes: AtomicUsize::new(0) },
        gossip,
        hops: AtomicUsize::new(0),
        taken: AtomicU64::new(0),
        hops_out: AtomicUsize::new(0),
        hop_ended: Notify::new(),
        draining: AtomicBool::new(false),
    });
    let queues = Queues { lane: lane_out, gossip: gossip_out };

    let held = shared.links.hold();
    let current = shared.links.table().by_peer.get(&peer.peer).cloned();
    let alive = current.filter(|current| current.conn.close_reason().is_none());
    let mut surplus = false;
    match &alive {
        Some(current) if current.peer.incarnation == peer.incarnation => {
            surplus = current.rank(&shared.me) > link.rank(&shared.me);
            start_draining(shared, if surplus { &link } else { current });
        }
        // While the link to the other life works, that life is real: the newcomer at another
        // address is a namesake, or has to wait until the link to its past has timed out.
        Some(current) if current.peer.mesh != peer.mesh => {
            return Err(MeetError::NameInUse(current.peer.mesh));
        }
        Some(current) => current.conn.close(close_code::REPLACED, b""),
        None => {}
    }
    if !surplus {
        let before = shared.book.linked(shared, &peer).ok_or(MeetError::Full)?;
        shared.links.put(&held, &link);
        if let Some(before) = before {
            shared.handler.on_liveness(&peer.peer, before, Heard::Gone);
        }
        shared.handler.on_news(News::Peer(peer.clone()), true);
        shared.handler.on_liveness(&peer.peer, peer.incarnation, Heard::Alive);
        shared.counters.link_opened();
        shared.counters.links_now(shared.links.table().by_peer.len());
        debug!(peer = %peer.peer, addr = %peer.mesh, opened_here = link.opened_here, "link is up");
        if alive.is_none() {
            info!(peer = %peer.peer, addr = %peer.mesh, incarnation = %peer.incarnation, "joined");
        }
    }
    drop(held);

    let name = peer.peer.clone();
    shared.tasks.spawn(run(shared.clone(), link, queues, greeted, surplus));
    Ok(Met::Peer(name))
}

/// Carries everything on one link until it closes.
async fn run(
    shared: Arc<Shared>,
    link: Arc<Link>,
    queues: Queues,
    mut greeted: Greeted,
    surplus: bool,
) {
    let tasks = &shared.tasks;
    if let Some(answer) = greeted.answer.take() {
        // Where it cannot be sent, the link is closed or about to be, which is seen below.
        let _ = greeted.control_out.write_chunk(answer).await;
    }
    shared.acceptors.spawn(accept_hops(shared.clone(), link.clone()));
    tasks.spawn(accept_streams(shared.clone(), link.clone()));
    tasks.spawn(receive_datagrams(shared.clone(), link.clone()));
    tasks.spawn(clocks::compare(shared.clone(), link.clone()));
    tasks.spawn(receive_news(shared.clone(), link.clone(), greeted.control_in));
    if !surplus {
        tasks.spawn(send_news(shared.clone(), link.clone(), greeted.control_out));
        tasks.spawn(send_sessions(link.clone(), queues.lane));
        tasks.spawn(send_gossip(link.clone(), queues.gossip));
        shared.gossip_with(link.peer.mesh);
    }
    let reason = tokio::select! {
        reason = link.conn.closed() => reason,
        () = is_refused(&shared, &link) => {
            warn!(peer = %link.peer.peer, "[mesh] refuse names this peer or its certificate: the link ends");
            shared.counters.links_refused("refused");
            link.conn.close(close_code::REFUSED, b"");
            link.conn.closed().await
        }
    };

    let held = shared.links.hold();
    if shared.links.remove(&held, &link) {
        let goodbye = matches!(&reason, ConnectionError::ApplicationClosed(close)
            if close.error_code == close_code::GOODBYE);
        shared.counters.link_closed(close_label(&reason));
        shared.counters.links_now(shared.links.table().by_peer.len());
        debug!(peer = %link.peer.peer, %reason, "link is down");
        if goodbye {
            info!(peer = %link.peer.peer, "left");
            shared.book.departed(&link.peer.peer, link.peer.incarnation);
            shared.handler.on_liveness(&link.peer.peer, link.peer.incarnation, Heard::Left);
        } else if !shared.closing.is_cancelled() {
            let why = seeds::why_closed(&reason);
            info!(peer = %link.peer.peer, why, "the link was lost; the peer is suspect");
            shared.handler.on_liveness(&link.peer.peer, link.peer.incarnation, Heard::Suspect);
        }
    }
    drop(held);
    heed_name_in_use(&shared, &reason);
}

/// Resolves once the peer at the other end is among those that are refused.
async fn is_refused(shared: &Shared, link: &Link) {
    let certificate = proven_identity(link.conn.peer_identity()).map(|proven| proven.certificate);
    let mut refused = shared.refused.subscribe();
    if refused.wait_for(|refused| refused.has(&link.peer.peer, certificate)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Where the other end refused this peer because its name is taken, the one that has it is
/// asked directly.
pub(crate) fn heed_name_in_use(shared: &Arc<Shared>, reason: &ConnectionError) {
    if let ConnectionError::ApplicationClosed(close) = reason
        && close.error_code == close_code::NAME_IN_USE
        && let Some(addr) = std::str::from_utf8(&close.reason).ok().and_then(|s| s.parse().ok())
    {
        shared.probe_namesake(addr);
    }
}

fn close_label(reason: &ConnectionError) -> &'static str {
    match reason {
        ConnectionError::ApplicationClosed(close) => match close.error_code {
            close_code::GOODBYE => "goodbye",
            close_code::DRAINED => "drained",
            close_code::REPLACED => "replaced",
            close_code::NAME_IN_USE => "name-in-use",
            close_code::TOO_OLD => "too-old",
            close_code::SILENT => "silent",
            _ => "refused",
        },
        ConnectionError::TimedOut => "timed-out",
        ConnectionError::Reset => "reset",
        ConnectionError::LocallyClosed => "closed-here",
        _ => "broken",
    }
}

/// Opens nothing new on the link, and closes it when its hops have ended.
pub(crate) fn start_draining(shared: &Arc<Shared>, link: &Arc<Link>) {
    if link.draining.swap(true, Ordering::AcqRel) {
        return;
    }
    let link = link.clone();
    shared.tasks.spawn(async move {
        let ended = async {
            sleep(DRAIN_MIN).await;
            while link.hops() > 0 {
                link.hop_ended.notified().await;
            }
        };
        tokio::select! {
            _ = link.conn.closed() => {}
            _ = timeout(DRAIN_MAX, ended) => link.conn.close(close_code::DRAINED, b""),
        }
    });
}

/// Takes in the hops that the other end opens. A peer that leaves takes in no more, answers what it
/// took, and says how many those were: whatever was sent to it since goes elsewhere.
async fn accept_hops(shared: Arc<Shared>, link: Arc<Link>) {
    // The other end counts its hops itself and never wants more than that. What has ended there
    // may not have ended here yet, and that it has is told late, by the eighth: so there is room.
    let max = shared.tuning.hops_max.saturating_add(shared.tuning.hops_max / 4);
    let mut allowed = HOPS_AT_FIRST;
    loop {
        let (send, recv) = tokio::select! {
            biased;
            () = shared.leaving.cancelled() => break,
            accepted = link.conn.accept_bi() => match accepted {
                Ok(streams) => streams,
                Err(_) => return,
            },
        };
        link.taken.fetch_add(1, Ordering::AcqRel);
        let (shared, lease) = (shared.clone(), HopLease::of_other(&link));
        allowed = link.make_room(allowed, max);
        let counted = shared.taken_in.token();
        shared.tasks.clone().spawn(async move {
            // Known once the other end has all of the answer.
            let delivered = send.stopped();
            take_in(&shared, &lease, send, recv).await;
            drop(lease);
            if shared.draining.load(Ordering::Acquire) {
                let _ = timeout(DELIVERED_WITHIN, delivered).await;
            }
            drop(counted);
        });
    }
    // Those of other links, too: what came over one may have gone on over another.
    shared.taken_in.wait().await;
    let taken = link.taken.load(Ordering::Acquire);
    link.conn.close(close_code::GOODBYE, taken.to_string().as_bytes());
}

async fn take_in(shared: &Shared, lease: &HopLease, mut send: SendStream, mut recv: RecvStream) {
    let mut kind = [0];
    match timeout(HOP_KIND_WITHIN, recv.read_exact(&mut kind)).await {
        Ok(Ok(())) if kind == [KIND_HOP] => {}
        _ => {
            shared.counters.frame_refused("stream-kind");
            // Either may have ended by itself, which is as good.
            let _ = (recv.stop(STREAM_REFUSED), send.reset(STREAM_REFUSED));
            return;
        }
    }
    let peer = &lease.link.peer;
    shared.handler.clone().on_hop(peer.peer.clone(), peer.incarnation, send, recv).await;
}

async fn accept_streams(shared: Arc<Shared>, link: Arc<Link>) {
    while let Ok(recv) = link.conn.accept_uni().await {
        let (shared, link) = (shared.clone(), link.clone());
        shared.tasks.clone().spawn(async move {
            let mut reader = FrameReader::new(recv);
            match reader.byte().await {
                Ok(Some(KIND_SESSION)) => receive_sessions(&shared, &link, reader).await,
                Ok(Some(KIND_GOSSIP)) => match reader.rest(GOSSIP_BYTES_MAX).await {
                    Ok(message) => shared.receive_gossip(&link, &message),
                    Err(error) => refuse(&shared, &link, "gossip", &error),
                },
                Ok(Some(_)) => {
                    shared.counters.frame_refused("stream-kind");
                    reader.stop(STREAM_REFUSED);
                }
                Ok(None) | Err(_) => {}
            }
        });
    }
}

async fn receive_sessions(shared: &Shared, link: &Link, mut reader: FrameReader) {
    loop {
        match reader.value::<SessionFrame, SESSION_FRAME_BYTES_MAX>().await {
            Ok(Some(frame)) => {
                shared.counters.session_frame_received();
                shared.handler.on_session_frame(link.peer.incarnation, frame);
            }
            Ok(None) => return,
            Err(error) => {
                refuse(shared, link, "session", &error);
                return reader.stop(STREAM_REFUSED);
            }
        }
    }
}

async fn receive_news(shared: Arc<Shared>, link: Arc<Link>, mut reader: FrameReader) {
    loop {
        match reader.value::<NewsBatch, CONTROL_FRAME_BYTES_MAX>().await {
            Ok(Some(batch)) => {
                for news in batch.news {
                    if is_of(&news, &link.peer) {
                        // What was read after the peer's goodbye would have it live again.
                        let _held = shared.links.hold();
                        if link.conn.close_reason().is_some()
                            || shared.book.has_departed(&link.peer)
                        {
                            return;
                        }
                        shared.handler.on_news(news, true);
                    } else {
                        // First-hand news is about its sender; anything else is hearsay in
                        // disguise.
                        shared.counters.frame_refused("foreign-news");
                    }
                }
            }
            Ok(None) => return,
            Err(error) => {
                refuse(&shared, &link, "news", &error);
                return reader.stop(STREAM_REFUSED);
            }
        }
    }
}

fn is_of(news: &News, sender: &PeerNews) -> bool {
    match news {
        News::Peer(news) => {
            (&news.peer, news.incarnation) == (&sender.peer, sender.incarnation)
                && wire::is_presentable(news)
        }
        News::App { peer, incarnation, .. } => {
            (peer, *incarnation) == (&sender.peer, sender.incarnation)
        }
    }
}

/// Counts a malformed frame; a link that broke is none.
fn refuse(shared: &Shared, link: &Link, what: &'static str, error: &FrameError) {
    if error.is_violation() {
        shared.counters.frame_refused(what);
        warn!(peer = %link.peer.peer, what, %error, "refused a malformed frame");
    }
}

async fn receive_datagrams(shared: Arc<Shared>, link: Arc<Link>) {
    while let Ok(datagram) = link.conn.read_datagram().await {
        match datagram.split_first() {
            Some((&KIND_GOSSIP, message)) => shared.receive_gossip(&link, message),
            Some((&(KIND_CLOCK_ASKED | KIND_CLOCK_TOLD), _)) => {
                clocks::receive(&shared, &link, &datagram)
            }
            _ => shared.counters.frame_refused("datagram-kind"),
        }
    }
}

/// Tells every record that changed, at once where its state did; see `news`.
async fn send_news(shared: Arc<Shared>, link: Arc<Link>, mut control: SendStream) {
    if !shared.tuning.push_news {
        // The stream stays open: its end would be an error to the other side's future versions.
        link.conn.closed().await;
        return;
    }
    let mut clock = shared.own.subscribe();
    let mut told = 0;
    loop {
        let (news, version) = shared.own.since(told);
        let mut frames = BytesMut::new();
        for news in news.chunks(NEWS_PER_FRAME_MAX) {
            let batch = NewsBatch { news: news.to_vec() };
            if let Err(error) = wire::put_frame(&mut frames, &batch, CONTROL_FRAME_BYTES_MAX) {
                warn!(%error, "own news cannot be encoded");
            }
        }
        if !frames.is_empty() && control.write_chunk(frames.freeze()).await.is_err() {
            return;
        }
        told = version;
        let told_at = Instant::now();
        let wait = async {
            if clock.wait_for(|clock| clock.version > told).await.is_err() {
                return;
            }
            let urgent = clock.wait_for(|clock| clock.urgent > told);
            // Whether it was urgent or time is up, the records are looked at again.
            let _ = tokio::time::timeout_at(told_at + LOAD_NEWS_EVERY, urgent).await;
        };
        tokio::select! {
            () = wait => {}
            _ = link.conn.closed() => return,
        }
    }
}

/// Writes the frames of sessions that could not be written at once.
async fn send_sessions(link: Arc<Link>, mut queue: mpsc::Receiver<Bytes>) {
    loop {
        let frame = tokio::select! {
            frame = queue.recv() => frame,
            _ = link.conn.closed() => return,
        };
        let Some(frame) = frame else { return };
        let mut out = link.lane.out.lock().await;
        let len = frame.len() + out.rest.len();
        if out.write(&link, frame).await.is_err() {
            // The other end refused the lane for a malformed frame: the next one begins anew.
            *out = LaneStream::default();
        }
        link.lane.bytes.fetch_sub(len, Ordering::AcqRel);
    }
}

/// Lets what is written to a stream leave before what waits on the streams of hops.
fn go_ahead(send: &SendStream) {
    // It fails only for a stream that has ended, which has nothing to send.
    let _ = send.set_priority(AHEAD_OF_HOPS);
}

/// Gossip that does not fit in a datagram goes on a stream of its own.
async fn send_gossip(link: Arc<Link>, mut queue: mpsc::Receiver<Bytes>) {
    loop {
        let message = tokio::select! {
            message = queue.recv() => message,
            _ = link.conn.closed() => return,
        };
        let Some(message) = message else { return };
        let Ok(mut send) = link.conn.open_uni().await else { return };
        go_ahead(&send);
        if send.write_chunk(message).await.is_ok() {
            // A stream that was stopped needs no end.
            let _ = send.finish();
        }
    }
}

/// Why something was not sent; the label of the counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// There is no link to the addressee.
    NoLink,
    /// The link's queue is full.
    Full,
    /// It exceeds the bound of its kind.
    TooLarge,
}

impl Dropped {
    /// The label of the counter.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::NoLink => "no-link",
            Self::Full => "full",
            Self::TooLarge => "too-large",
        }
    }
}

impl Table {
    /// Queues a frame of a session for the link to its incarnation.
    pub(crate) fn send_session(
        &self,
        to: Incarnation,
        frame: &SessionFrame,
    ) -> Result<(), Dropped> {
        let link = self.by_incarnation.get(&to).ok_or(Dropped::NoLink)?;
        let mut bytes = BytesMut::with_capacity(256);
        wire::put_frame(&mut bytes, frame, SESSION_FRAME_BYTES_MAX)
            .map_err(|_| Dropped::TooLarge)?;
        link.lane.send(bytes.freeze())
    }

    /// Sends gossip to the peer that is reached at `to`, without waiting.
    pub(crate) fn send_gossip(&self, to: SocketAddr, message: &[u8]) -> Result<(), Dropped> {
        let link = self.by_addr.get(&to).ok_or(Dropped::NoLink)?;
        let mut bytes = BytesMut::with_capacity(1 + message.len());
        bytes.put_u8(KIND_GOSSIP);
        bytes.extend_from_slice(message);
        let bytes = bytes.freeze();
        // The size that fits changes with the path's MTU, so it is asked for each time.
        if link.conn.max_datagram_size().is_some_and(|max| bytes.len() <= max) {
            return link.conn.send_datagram(bytes).map_err(|_| Dropped::NoLink);
        }
        link.gossip.try_send(bytes).map_err(|_| Dropped::Full)
    }
}
