//! QUIC links between peers: how one begins, what it carries, which of two is kept and how it ends.
//! The only file that opens a stream.
//!
//! ```text
//! dial/accept ─TLS─▶ proven identity ─hello─▶ admitted ─▶ current ─▶ draining ─▶ closed
//!                          │                     │           │                     ▲
//!                          └─ wrong: closed      ├─ surplus: draining              │
//!                                                └─ name in use: closed            │
//!                                                            └─ lost, goodbye ─────┘
//! ```
//!
//! A link sends nothing before the certificate at its other end has proven a peer of this
//! cluster. Each direction then opens its control stream and says hello, the end that dialed
//! first; its name must be the certificate's. The end that was dialed answers once it has
//! admitted the other. One link per pair is *current*: of several to one incarnation, that which was opened
//! by the smaller peer name, and of those the one dialed last. The others *drain*: nothing new
//! is opened on them, and they close when their hops have ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use warmhop_core::ids::PeerId;
use warmhop_core::view::PeerNews;

use crate::links::close_code;
use crate::links::lane::Lane;
use crate::links::silence::{Awaiting, Silence};

/// The most session frames that wait for one link.
const LANE_FRAMES_MAX: usize = 1024;

/// The most gossip messages that wait for one link because they do not fit in a datagram.
const GOSSIP_QUEUE_MAX: usize = 4;

/// How many hops the other end of a new link may have under way. Each allowed hop costs this end some
/// memory, used or not, so the allowance grows with use.
pub(crate) const HOPS_AT_FIRST: u32 = 128;

/// An admitted link.
pub(crate) struct Link {
    pub(crate) conn: Connection,
    /// The other end's own description, from its hello.
    pub(crate) peer: PeerNews,
    /// Which end dialed.
    pub(crate) opened_here: bool,
    /// The opener's count of its dials: of two links by one opener, the higher is newer.
    pub(super) dial: u64,
    pub(crate) since: Instant,
    pub(super) ends: CertificatesEnd,
    pub(super) lane: Lane,
    pub(super) gossip: mpsc::Sender<Bytes>,
    /// Hops under way in either direction.
    pub(super) hops: AtomicUsize,
    /// How many hops of the other end this end has accepted since the link began.
    pub(super) taken: AtomicU64,
    /// Those hops under way that were opened here.
    pub(super) hops_out: AtomicUsize,
    pub(super) hop_ended: Notify,
    pub(super) draining: AtomicBool,
    pub(super) silence: Silence,
}

/// When the certificates that a link was made with end.
#[derive(Debug, Clone, Copy)]
pub(super) struct CertificatesEnd {
    pub(super) own: SystemTime,
    pub(super) other: SystemTime,
}

impl CertificatesEnd {
    /// The time until the first of them ends.
    pub(super) fn left(self) -> Duration {
        self.own.min(self.other).duration_since(SystemTime::now()).unwrap_or_default()
    }
}

/// The receiving ends of a link's queues, until its tasks start.
pub(super) struct Queues {
    pub(super) lane: mpsc::Receiver<Bytes>,
    pub(super) gossip: mpsc::Receiver<Bytes>,
}

/// Counts a hop, and keeps a draining link open while the hop uses it.
pub(crate) struct HopLease {
    pub(super) link: Arc<Link>,
    opened_here: bool,
}

impl HopLease {
    /// For a hop that is opened here; `None` if `max` are under way already.
    pub(crate) fn of_own(link: &Arc<Link>, max: u32) -> Option<Self> {
        // Created before the count is checked, so that dropping it reverts the count.
        let before = link.hops_out.fetch_add(1, Ordering::AcqRel);
        link.hops.fetch_add(1, Ordering::AcqRel);
        let lease = Self { link: link.clone(), opened_here: true };
        (before < max as usize).then_some(lease)
    }

    pub(super) fn of_other(link: &Arc<Link>) -> Self {
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

    /// Has the link watched for silence until the result is dropped: the hop waits for its answer.
    pub(crate) fn awaits(&self) -> Awaiting<'_> {
        self.link.silence.awaits()
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
    /// A link over `conn`, and the receiving ends of its queues. `dial` is its opener's count.
    pub(super) fn new(
        conn: &Connection,
        peer: PeerNews,
        opened_here: bool,
        dial: u64,
        ends: CertificatesEnd,
    ) -> (Arc<Self>, Queues) {
        let (lane, lane_out) = mpsc::channel(LANE_FRAMES_MAX);
        let (gossip, gossip_out) = mpsc::channel(GOSSIP_QUEUE_MAX);
        let link = Arc::new(Self {
            conn: conn.clone(),
            peer,
            opened_here,
            dial,
            since: Instant::now(),
            ends,
            lane: Lane::new(lane),
            gossip,
            hops: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            hops_out: AtomicUsize::new(0),
            hop_ended: Notify::new(),
            draining: AtomicBool::new(false),
            silence: Silence::default(),
        });
        (link, Queues { lane: lane_out, gossip: gossip_out })
    }

    /// Whether new hops and session frames may use it.
    pub(crate) fn is_usable(&self) -> bool {
        self.conn.close_reason().is_none() && !self.draining.load(Ordering::Acquire)
    }

    /// Whether the other end has left and reported that it never accepted the hop of this number,
    /// by QUIC's numbers for the streams of one opener.
    pub(crate) fn never_took(&self, number: u64) -> bool {
        let Some(ConnectionError::ApplicationClosed(close)) = self.conn.close_reason() else {
            return false;
        };
        let taken = std::str::from_utf8(&close.reason).ok().and_then(|s| s.parse::<u64>().ok());
        close.error_code == close_code::GOODBYE && taken.is_some_and(|taken| number >= taken)
    }

    /// How many hops use it, in either direction.
    pub(crate) fn hops(&self) -> usize {
        self.hops.load(Ordering::Acquire)
    }

    /// Doubles the hops that the other end may have under way, up to `max`, once it uses half of
    /// `allowed`. Returns the new allowance.
    pub(super) fn make_room(&self, allowed: u32, max: u32) -> u32 {
        let under_way = self.hops().saturating_sub(self.hops_out.load(Ordering::Acquire));
        if allowed >= max || under_way < allowed as usize / 2 {
            return allowed;
        }
        let allowed = allowed.saturating_mul(2).min(max);
        self.conn.set_max_concurrent_bi_streams(allowed.into());
        allowed
    }

    /// The order of two links to one incarnation: the greater one is kept. Both ends agree on it.
    pub(super) fn rank(&self, me: &PeerId) -> (bool, u64) {
        let opener = if self.opened_here { me } else { &self.peer.peer };
        let smaller = me.min(&self.peer.peer);
        (opener == smaller, self.dial)
    }
}
