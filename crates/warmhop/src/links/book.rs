//! The peers that this one knows, and which of them it found at the addresses of seeds.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use warmhop_core::ids::{Incarnation, PeerId};
use warmhop_core::view::PeerNews;

use crate::links::link::Link;
use crate::links::seeds::Trouble;
use crate::links::table::Links;

/// The most peers that are known at once. Peers beyond them get no link.
pub(crate) const PEERS_MAX: usize = 1024;

/// The most addresses of seeds for which the peer behind them is remembered.
const ALIASES_MAX: usize = 1024;

/// The known peers, by name.
pub(crate) struct Book {
    peers: Mutex<HashMap<PeerId, Arc<Known>>>,
    /// The peers that were found at the addresses of seeds.
    aliases: Mutex<HashMap<SocketAddr, PeerId>>,
    dials: AtomicU64,
    /// Peers to which a link is to be kept from now on, each at most once.
    to_keep: mpsc::Sender<Arc<Known>>,
}

pub(crate) struct Known {
    pub(super) state: Mutex<KnownState>,
    /// Notified when a hop needs the link: dial without back-off.
    pub(super) wanted: Notify,
    /// Counts the dials that failed.
    pub(super) failures: watch::Sender<u64>,
}

pub(super) struct KnownState {
    pub(super) news: PeerNews,
    pub(super) heard: Instant,
    /// It said goodbye. This life of it is not dialed again.
    pub(super) departed: bool,
    /// A task keeps a link to it.
    pub(super) kept: bool,
    /// Its task has no link.
    pub(super) missing: Option<Missing>,
}

/// A link that is missing.
pub(super) struct Missing {
    since: Instant,
    /// Why the last attempt to make one failed.
    trouble: Option<Trouble>,
}

/// Why there is no link to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoLink {
    /// The peer is not known, or it has left.
    Unknown,
    /// It was dialed and did not answer.
    Unreachable,
}

impl Book {
    /// An empty book. The receiver gets each peer to which a link is to be kept.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Arc<Known>>) {
        let (to_keep, to_keep_out) = mpsc::channel(PEERS_MAX);
        let book = Self {
            peers: Mutex::default(),
            aliases: Mutex::default(),
            dials: AtomicU64::new(1),
            to_keep,
        };
        (book, to_keep_out)
    }

    /// Notes a peer that another peer believes to be alive. False if the book is full.
    pub(crate) fn heard_of(&self, news: &PeerNews) -> bool {
        let mut peers = self.lock();
        if let Some(known) = peers.get(&news.peer) {
            let mut state = known.lock();
            if state.news.incarnation == news.incarnation {
                state.heard = Instant::now();
                if state.news.seq < news.seq {
                    state.news = news.clone();
                }
            } else if state.news.generation < news.generation {
                state.renew(news.clone());
                known.wanted.notify_one();
            }
            self.keep_if_left(known, &mut state);
        } else if peers.len() < PEERS_MAX {
            let known = Arc::new(Known::new(news.clone()));
            self.keep_if_left(&known, &mut known.lock());
            peers.insert(news.peer.clone(), known);
        } else {
            return false;
        }
        true
    }

    /// Notes a peer met at first hand, which counts for more than any generation. Returns the other
    /// incarnation that it was known as, if any; `None` if the book is full.
    #[expect(
        clippy::option_option,
        reason = "the outer says whether there was room, the inner which incarnation it was"
    )]
    pub(crate) fn linked(&self, news: &PeerNews) -> Option<Option<Incarnation>> {
        let mut peers = self.lock();
        if let Some(known) = peers.get(&news.peer) {
            let mut state = known.lock();
            let before = state.news.incarnation;
            state.renew(news.clone());
            self.keep_if_left(known, &mut state);
            return Some((before != news.incarnation).then_some(before));
        }
        if peers.len() >= PEERS_MAX {
            return None;
        }
        let known = Arc::new(Known::new(news.clone()));
        self.keep_if_left(&known, &mut known.lock());
        peers.insert(news.peer.clone(), known);
        Some(None)
    }

    /// Notes that a peer said goodbye.
    pub(crate) fn departed(&self, peer: &PeerId, incarnation: Incarnation) {
        if let Some(known) = self.lock().get(peer) {
            let mut state = known.lock();
            if state.news.incarnation == incarnation {
                state.departed = true;
            }
        }
    }

    /// Whether this life of a peer said goodbye.
    pub(crate) fn has_departed(&self, news: &PeerNews) -> bool {
        self.lock().get(&news.peer).is_some_and(|known| {
            let state = known.lock();
            state.departed && state.news.incarnation == news.incarnation
        })
    }

    /// The current link to a peer. If there is none, the peer is dialed at once, and this waits for
    /// as long as that dial takes.
    pub(crate) async fn link_to(&self, links: &Links, peer: &PeerId) -> Result<Arc<Link>, NoLink> {
        if let Some(link) = links.to(peer) {
            return Ok(link);
        }
        let known = self.lock().get(peer).cloned().ok_or(NoLink::Unknown)?;
        if known.lock().departed {
            return Err(NoLink::Unknown);
        }
        let mut changes = links.changes();
        let mut failures = known.failures.subscribe();
        known.wanted.notify_one();
        loop {
            if let Some(link) = links.to(peer) {
                return Ok(link);
            }
            tokio::select! {
                changed = changes.changed() => changed.map_err(|_| NoLink::Unreachable)?,
                _ = failures.changed() => return Err(NoLink::Unreachable),
            }
        }
    }

    /// Others hear a peer again: the time that it is without a link counts from now on.
    pub(crate) fn is_back(&self, peer: &PeerId) {
        if let Some(known) = self.lock().get(peer)
            && let Some(missing) = &mut known.lock().missing
        {
            missing.since = Instant::now();
        }
    }

    /// Why no link could be made to a peer that has been without one for longer than `after`.
    pub(crate) fn why_unlinked(
        &self,
        links: &Links,
        peer: &PeerId,
        after: Duration,
    ) -> Option<String> {
        if links.to(peer).is_some() {
            return None;
        }
        let known = self.lock().get(peer).cloned()?;
        let state = known.lock();
        let missing = state.missing.as_ref().filter(|it| it.since.elapsed() > after)?;
        missing.trouble.as_ref().map(|trouble| trouble.why().to_owned())
    }

    /// Forgets peers without a link that have left, or that nobody has mentioned for long.
    pub(crate) fn sweep(&self, links: &Links, forget_after: Duration) {
        self.lock().retain(|peer, known| {
            let state = known.lock();
            state.kept
                || state.heard.elapsed() < forget_after
                || links.table().by_peer.contains_key(peer)
        });
    }

    /// The number of the next dial.
    pub(super) fn next_dial(&self) -> u64 {
        self.dials.fetch_add(1, Ordering::Relaxed)
    }

    fn keep_if_left(&self, known: &Arc<Known>, state: &mut KnownState) {
        if !state.kept && !state.departed {
            // The channel has room for every peer that can be known, so it fails only once this
            // peer has ended.
            state.kept = self.to_keep.try_send(known.clone()).is_ok();
        }
    }

    #[cfg(test)]
    /// Whether the address was found to lead to this very process.
    pub(crate) fn knows_itself(&self, me: &PeerId, addr: SocketAddr) -> bool {
        self.alias(addr).as_ref() == Some(me)
    }

    pub(super) fn alias(&self, addr: SocketAddr) -> Option<PeerId> {
        self.aliases.lock().unwrap_or_else(PoisonError::into_inner).get(&addr).cloned()
    }

    pub(super) fn remember(&self, addr: SocketAddr, peer: PeerId) {
        let mut aliases = self.aliases.lock().unwrap_or_else(PoisonError::into_inner);
        if aliases.len() < ALIASES_MAX || aliases.contains_key(&addr) {
            aliases.insert(addr, peer);
        } else {
            // Only over a long time can seeds' names resolve to so many different addresses.
            aliases.clear();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Arc<Known>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    pub(super) fn new(news: PeerNews) -> Self {
        let heard = Instant::now();
        let state = KnownState { news, heard, departed: false, kept: false, missing: None };
        Self { state: Mutex::new(state), wanted: Notify::new(), failures: watch::Sender::new(0) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, KnownState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KnownState {
    /// There is no link to it.
    pub(super) fn misses_link(&mut self) {
        self.missing.get_or_insert_with(|| Missing { since: Instant::now(), trouble: None });
    }

    /// An attempt to make a link to it failed.
    pub(super) fn failed(&mut self, trouble: Trouble) {
        if let Some(missing) = &mut self.missing {
            missing.trouble = Some(trouble);
        }
    }

    pub(super) fn renew(&mut self, news: PeerNews) {
        self.departed &= self.news.incarnation == news.incarnation;
        self.news = news;
        self.heard = Instant::now();
    }
}
