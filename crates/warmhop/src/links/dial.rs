//! Which peers this one knows, and the tasks that keep a link to each: seeds are resolved and
//! dialed again and again, peers that are heard of are dialed until they answer, links that grow
//! old are renewed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};
use warmhop_core::ids::{Incarnation, PeerId};
use warmhop_core::view::PeerNews;

use crate::identity::TLS_NAME;
use crate::links::link::{self, Link, MeetError, Met, close_code};
use crate::links::net::Shared;
use crate::links::seeds::Trouble;

/// Peers that are known at once; more are not linked to.
pub(crate) const PEERS_MAX: usize = 1024;
/// Addresses of seeds that are remembered by whom they lead to.
const ALIASES_MAX: usize = 1024;
/// Addresses that one seed's name may stand for.
const SEED_ADDRS_MAX: usize = 64;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Seeds that are linked are resolved again this often: their names may stand for others now.
const SEED_EVERY: Duration = Duration::from_secs(10);
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);
/// The peer with the greater name waits this long before its first dial, so that mostly one
/// of two that hear of each other dials.
const YIELD_TO_SMALLER: Duration = Duration::from_millis(80);

/// The peers that are known, by name.
pub(crate) struct Book {
    peers: Mutex<HashMap<PeerId, Arc<Known>>>,
    /// Who was found behind an address of a seed.
    aliases: Mutex<HashMap<SocketAddr, PeerId>>,
    dials: AtomicU64,
}

struct Known {
    state: Mutex<KnownState>,
    /// A hop wants the link: no back-off.
    wanted: Notify,
    /// Counts the dials that failed.
    failures: watch::Sender<u64>,
}

struct KnownState {
    news: PeerNews,
    heard: Instant,
    /// It said goodbye: this life is not dialed again.
    departed: bool,
    /// A task keeps a link to it.
    kept: bool,
}

/// Why there is no link to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoLink {
    /// Nothing is known of it, or it has left.
    Unknown,
    /// It was dialed and did not answer.
    Unreachable,
}

impl Book {
    /// Knows nobody.
    pub(crate) fn new() -> Self {
        Self { peers: Mutex::default(), aliases: Mutex::default(), dials: AtomicU64::new(1) }
    }

    /// Hears of a peer through another, which believes that it lives.
    pub(crate) fn heard_of(&self, shared: &Arc<Shared>, news: &PeerNews) {
        if news.peer == shared.me {
            if news.incarnation != shared.incarnation {
                shared.probe_namesake(news.mesh);
            }
            return;
        }
        if shared.refused.borrow().has_name(&news.peer) {
            return;
        }
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
            keep_if_left(shared, known, &mut state);
        } else if peers.len() < PEERS_MAX {
            let known = Arc::new(Known::new(news.clone()));
            keep_if_left(shared, &known, &mut known.lock());
            peers.insert(news.peer.clone(), known);
        } else {
            shared.counters.links_refused("full");
        }
    }

    /// A peer was met at first hand, which counts for more than any generation. Returns the
    /// other incarnation that it was known as, if any; `None` if no more peers are taken.
    #[expect(
        clippy::option_option,
        reason = "the outer says whether it is taken, the inner who it was"
    )]
    pub(crate) fn linked(
        &self,
        shared: &Arc<Shared>,
        news: &PeerNews,
    ) -> Option<Option<Incarnation>> {
        let mut peers = self.lock();
        if let Some(known) = peers.get(&news.peer) {
            let mut state = known.lock();
            let before = state.news.incarnation;
            state.renew(news.clone());
            keep_if_left(shared, known, &mut state);
            return Some((before != news.incarnation).then_some(before));
        }
        if peers.len() >= PEERS_MAX {
            return None;
        }
        let known = Arc::new(Known::new(news.clone()));
        keep_if_left(shared, &known, &mut known.lock());
        peers.insert(news.peer.clone(), known);
        Some(None)
    }

    /// A peer said goodbye.
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

    /// The current link to a peer; where there is none it is dialed at once, and waited for as
    /// long as that dial takes.
    pub(crate) async fn link_to(
        &self,
        shared: &Shared,
        peer: &PeerId,
    ) -> Result<Arc<Link>, NoLink> {
        if let Some(link) = shared.links.to(peer) {
            return Ok(link);
        }
        let known = self.lock().get(peer).cloned().ok_or(NoLink::Unknown)?;
        if known.lock().departed {
            return Err(NoLink::Unknown);
        }
        let mut links = shared.links.changes();
        let mut failures = known.failures.subscribe();
        known.wanted.notify_one();
        loop {
            if let Some(link) = shared.links.to(peer) {
                return Ok(link);
            }
            tokio::select! {
                changed = links.changed() => changed.map_err(|_| NoLink::Unreachable)?,
                _ = failures.changed() => return Err(NoLink::Unreachable),
            }
        }
    }

    /// Forgets those that left or were not heard of for long and have no link.
    pub(crate) fn sweep(&self, shared: &Shared) {
        let forget_after = shared.tuning.forget_after;
        self.lock().retain(|peer, known| {
            let state = known.lock();
            state.kept
                || state.heard.elapsed() < forget_after
                || shared.links.table().by_peer.contains_key(peer)
        });
    }

    /// Whether the address was found to lead to this very process.
    #[cfg(test)]
    pub(crate) fn knows_itself(&self, me: &PeerId, addr: SocketAddr) -> bool {
        self.alias(addr).as_ref() == Some(me)
    }

    fn alias(&self, addr: SocketAddr) -> Option<PeerId> {
        self.aliases.lock().unwrap_or_else(PoisonError::into_inner).get(&addr).cloned()
    }

    fn remember(&self, addr: SocketAddr, peer: PeerId) {
        let mut aliases = self.aliases.lock().unwrap_or_else(PoisonError::into_inner);
        if aliases.len() < ALIASES_MAX || aliases.contains_key(&addr) {
            aliases.insert(addr, peer);
        } else {
            // Seeds' names can only have gone through so many addresses over a long time.
            aliases.clear();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Arc<Known>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn new(news: PeerNews) -> Self {
        let state = KnownState { news, heard: Instant::now(), departed: false, kept: false };
        Self { state: Mutex::new(state), wanted: Notify::new(), failures: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, KnownState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KnownState {
    fn renew(&mut self, news: PeerNews) {
        self.departed &= self.news.incarnation == news.incarnation;
        self.news = news;
        self.heard = Instant::now();
    }
}

fn keep_if_left(shared: &Arc<Shared>, known: &Arc<Known>, state: &mut KnownState) {
    if !state.kept && !state.departed && !shared.closing.is_cancelled() {
        state.kept = true;
        shared.tasks.spawn(keep(shared.clone(), known.clone()));
    }
}

/// Keeps a link to one peer for as long as it is heard of.
async fn keep(shared: Arc<Shared>, known: Arc<Known>) {
    let keeping = async {
        let peer = known.lock().news.peer.clone();
        let mut backoff = Backoff::default();
        if shared.me > peer {
            // Whichever of the two comes first.
            let _ = timeout(YIELD_TO_SMALLER, known.wanted.notified()).await;
        }
        loop {
            if let Some(link) = shared.links.to(&peer) {
                backoff = Backoff::default();
                renew_when_old(&shared, &link).await;
                continue;
            }
            let addr = {
                let mut state = known.lock();
                let is_refused = shared.refused.borrow().has_name(&peer);
                if state.departed
                    || is_refused
                    || state.heard.elapsed() > shared.tuning.forget_after
                {
                    state.kept = false;
                    return;
                }
                state.news.mesh
            };
            let met = dial(&shared, addr).await;
            if shared.links.to(&peer).is_some() {
                continue;
            }
            match met {
                Ok(met) => debug!(%peer, %addr, ?met, "the address leads to another"),
                Err(error) => debug!(%peer, %addr, %error, "dialing failed"),
            }
            known.failures.send_modify(|count| *count += 1);
            let mut links = shared.links.changes();
            tokio::select! {
                () = sleep(backoff.next()) => {}
                () = known.wanted.notified() => {}
                // The peer may have dialed meanwhile.
                _ = async { while links.changed().await.is_ok() && shared.links.to(&peer).is_none() {} } => {}
            }
        }
    };
    tokio::select! {
        () = keeping => {}
        () = shared.closing.cancelled() => {}
    }
}

/// Waits until the link is gone. The end that opened it dials again when it is old, so that
/// both certificates are verified anew; the newer link takes its place. One that could not be
/// renewed is closed.
async fn renew_when_old(shared: &Arc<Shared>, link: &Arc<Link>) {
    let age_max = shared.tuning.link_age_max;
    let gone = async {
        let mut links = shared.links.changes();
        loop {
            let current = shared.links.to(&link.peer.peer);
            if !current.is_some_and(|current| Arc::ptr_eq(&current, link)) {
                return;
            }
            tokio::select! {
                _ = links.changed() => {}
                // It leaves the table a moment after it closes.
                _ = link.conn.closed() => tokio::task::yield_now().await,
            }
        }
    };
    let renew = async {
        tokio::time::sleep_until(link.since + jittered(age_max)).await;
        let mut backoff = Backoff::default();
        while link.opened_here && link.since.elapsed() < age_max.mul_f64(1.5) {
            if let Err(error) = dial(shared, link.peer.mesh).await {
                debug!(peer = %link.peer.peer, %error, "renewing the link failed");
            }
            sleep(backoff.next()).await;
        }
        tokio::time::sleep_until(link.since + age_max.mul_f64(1.5)).await;
        info!(peer = %link.peer.peer, "closing a link that was not renewed");
        link.conn.close(close_code::TOO_OLD, b"");
        link.conn.closed().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = gone => {}
        () = renew => {}
    }
}

/// Why an address could not be dialed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The endpoint refused to try.
    #[error("cannot dial: {0}")]
    Connect(#[from] quinn::ConnectError),
    /// No handshake came about in time.
    #[error("no answer in time")]
    NoAnswer,
    /// The handshake or what followed it failed.
    #[error(transparent)]
    Meet(#[from] MeetError),
}

/// Dials an address and makes a link of the connection.
pub(crate) async fn dial(shared: &Arc<Shared>, addr: SocketAddr) -> Result<Met, DialError> {
    let result = async {
        let count = shared.book.dials.fetch_add(1, Ordering::Relaxed);
        let connecting = shared.endpoint.connect_with(shared.client_config(), addr, TLS_NAME)?;
        let conn = timeout(shared.tuning.dial_within, connecting)
            .await
            .map_err(|_| DialError::NoAnswer)?
            .map_err(MeetError::from)?;
        Ok(link::meet(shared, conn, Some(count)).await?)
    }
    .await;
    if let Err(error) = &result {
        shared.counters.dial_failed();
        if let DialError::Meet(MeetError::Connection(reason)) = error {
            link::heed_name_in_use(shared, reason);
        }
    }
    result
}

/// Dials one seed's addresses again and again, for as long as this peer runs. `tried` is told
/// when each was tried once.
pub(crate) async fn follow_seed(
    shared: Arc<Shared>,
    position: usize,
    seed: String,
    tried: watch::Sender<bool>,
) {
    follow(shared, position, tried, || resolve(&seed)).await;
}

/// As [`follow_seed`], of a name that `resolve` has the addresses of.
pub(crate) async fn follow<R, Fut>(
    shared: Arc<Shared>,
    position: usize,
    tried: watch::Sender<bool>,
    resolve: R,
) where
    R: Fn() -> Fut,
    Fut: Future<Output = Result<Vec<SocketAddr>, Trouble>>,
{
    let following = async {
        let mut backoff = Backoff::default();
        loop {
            let all_linked = match resolve().await {
                Ok(addrs) => {
                    // All at once: a name of many peers still stands for some that are gone, and
                    // each of those takes a while to give up on.
                    let reached = join_all(addrs.iter().map(|addr| reach(&shared, *addr))).await;
                    let all_linked = reached.iter().all(Result::is_ok);
                    // A name that leads to one peer at least has done what it is there for.
                    let joined = reached.iter().any(Result::is_ok);
                    // Where a name leads to this peer among others, they are yet to be met.
                    if all_linked || reached.iter().flatten().any(|led| *led == Led::Elsewhere) {
                        shared.seeds.met(position);
                    }
                    let trouble = reached.into_iter().find_map(Result::err);
                    shared.seeds.tried(position, trouble.filter(|_| !joined));
                    all_linked
                }
                Err(trouble) => {
                    shared.seeds.tried(position, Some(trouble));
                    false
                }
            };
            tried.send_replace(true);
            if all_linked {
                backoff = Backoff::default();
                sleep(jittered(SEED_EVERY)).await;
            } else {
                sleep(backoff.next()).await;
            }
        }
    };
    tokio::select! {
        () = following => {}
        () = shared.closing.cancelled() => {}
    }
}

/// The addresses of a seed: at least one.
async fn resolve(seed: &str) -> Result<Vec<SocketAddr>, Trouble> {
    if let Ok(addr) = seed.parse() {
        return Ok(vec![addr]);
    }
    let found = timeout(RESOLVE_WITHIN, tokio::net::lookup_host(seed)).await;
    let addrs: Vec<_> = found
        .map_err(|_| Trouble::unresolved("the name server does not answer"))?
        .map_err(Trouble::unresolved)?
        .take(SEED_ADDRS_MAX)
        .collect();
    if addrs.is_empty() { Err(Trouble::unresolved("it has no address")) } else { Ok(addrs) }
}

/// Where an address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Led {
    Here,
    Elsewhere,
}

/// Sees to it that there is a link to the peer that answers at the address, unless it is this peer
/// itself.
async fn reach(shared: &Arc<Shared>, addr: SocketAddr) -> Result<Led, Trouble> {
    let alias = shared.book.alias(addr);
    if addr == shared.advertise || alias.as_ref() == Some(&shared.me) {
        return Ok(Led::Here);
    }
    if shared.links.table().by_addr.contains_key(&addr)
        || alias.is_some_and(|peer| shared.links.to(&peer).is_some())
    {
        return Ok(Led::Elsewhere);
    }
    match dial(shared, addr).await {
        Ok(Met::Peer(peer)) => {
            shared.book.remember(addr, peer);
            Ok(Led::Elsewhere)
        }
        Ok(Met::Myself) => {
            shared.book.remember(addr, shared.me.clone());
            Ok(Led::Here)
        }
        Ok(Met::Namesake) => Err(Trouble::namesake(addr)),
        Err(error) => {
            debug!(%addr, %error, "a seed does not answer");
            Err(Trouble::of_dial(addr, &error))
        }
    }
}

/// Doubles from [`BACKOFF_MIN`] to [`BACKOFF_MAX`], jittered so that peers which lost the same
/// one do not dial it in step.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(BACKOFF_MIN)
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let span = self.0;
        self.0 = (span * 2).min(BACKOFF_MAX);
        jittered(span)
    }
}

/// Between three quarters and five quarters of `span`.
fn jittered(span: Duration) -> Duration {
    span.mul_f64(rand::random_range(0.75..1.25))
}
