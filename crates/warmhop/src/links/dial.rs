//! The tasks that keep a link to each peer: seeds are resolved and dialed repeatedly, known peers
//! are dialed until they answer, links that grow old are renewed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::identity::TLS_NAME;
use crate::links::book::Known;
use crate::links::close_code;
use crate::links::context::Shared;
use crate::links::link::Link;
use crate::links::meet;
use crate::links::met::{DialError, MeetError, Met};
use crate::links::seeds::{ToFollow, Trouble};

/// The most addresses that one seed's name may resolve to.
const SEED_ADDRS_MAX: usize = 64;

const BACKOFF_MIN: Duration = Duration::from_millis(100);

const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How often seeds with a link are resolved again: their names may lead to other peers by then.
const SEED_EVERY: Duration = Duration::from_secs(10);

const RESOLVE_WITHIN: Duration = Duration::from_secs(5);

/// The peer with the greater name waits this long before its first dial, so that of two peers that
/// learn of each other usually only one dials.
const YIELD_TO_SMALLER: Duration = Duration::from_millis(80);

/// How long before a link's certificates end it is renewed, in case that the peers have new ones.
const RENEW_BEFORE_END: Duration = Duration::from_secs(300);

/// Keeps a link to each peer that it receives, with a task for each.
pub(crate) async fn keep_links(shared: Arc<Shared>, mut to_keep: mpsc::Receiver<Arc<Known>>) {
    loop {
        tokio::select! {
            known = to_keep.recv() => match known {
                Some(known) => {
                    shared.tasks.spawn(keep(shared.clone(), known));
                }
                None => return,
            },
            () = shared.closing.cancelled() => return,
        }
    }
}

/// Asks at each address that it receives whether another process has this peer's name.
pub(crate) async fn probe_namesakes(shared: Arc<Shared>, mut to_probe: mpsc::Receiver<SocketAddr>) {
    loop {
        let addr = tokio::select! {
            addr = to_probe.recv() => addr,
            () = shared.closing.cancelled() => return,
        };
        let Some(addr) = addr else { return };
        match dial(&shared, addr).await {
            Ok(Met::Namesake) => {}
            other => debug!(%addr, ?other, "no namesake answers there"),
        }
        shared.probes.send_modify(|probes| *probes -= 1);
    }
}

/// Keeps a link to one peer for as long as the peer is known.
async fn keep(shared: Arc<Shared>, known: Arc<Known>) {
    let keeping = async {
        let peer = known.lock().news.peer.clone();
        let mut backoff = Backoff::default();
        if shared.me > peer {
            // Waits for whichever of the two comes first.
            let _ = timeout(YIELD_TO_SMALLER, known.wanted.notified()).await;
        }
        loop {
            if let Some(link) = shared.links.to(&peer) {
                backoff = Backoff::default();
                known.lock().missing = None;
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
                    state.missing = None;
                    return;
                }
                state.misses_link();
                state.news.mesh
            };
            let met = dial(&shared, addr).await;
            if shared.links.to(&peer).is_some() {
                continue;
            }
            let trouble = match met {
                Ok(met) => {
                    debug!(%peer, %addr, ?met, "the address leads to another");
                    Trouble::leads_elsewhere(addr)
                }
                Err(error) => {
                    debug!(%peer, %addr, %error, "dialing failed");
                    Trouble::of_dial(addr, &error)
                }
            };
            known.lock().failed(trouble);
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

/// Waits until the link is gone. The end that opened it dials again when it is old or one of its
/// certificates is about to end, so that both certificates are verified anew; the newer link takes its
/// place. One that could not be renewed is closed.
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
                // A link leaves the table a moment after it closes.
                _ = link.conn.closed() => tokio::task::yield_now().await,
            }
        }
    };
    let renew = async {
        let mut due = link.since + jittered(age_max);
        // A link that was made later than that goes on until its certificates end.
        if let Some(until_then) = link.ends.left().checked_sub(jittered(RENEW_BEFORE_END)) {
            due = due.min(Instant::now() + until_then.min(age_max * 2));
        }
        tokio::time::sleep_until(due).await;
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

/// Dials an address and makes a link of the connection.
pub(crate) async fn dial(shared: &Arc<Shared>, addr: SocketAddr) -> Result<Met, DialError> {
    let result = async {
        let count = shared.book.next_dial();
        let connecting = shared.endpoint.connect_with(shared.client_config(), addr, TLS_NAME)?;
        let conn = timeout(shared.tuning.dial_within, connecting)
            .await
            .map_err(|_| DialError::NoAnswer)?
            .map_err(MeetError::from)?;
        Ok(meet::meet(shared, conn, Some(count)).await?)
    }
    .await;
    if let Err(error) = &result {
        shared.counters.dial_failed();
        if let DialError::Meet(MeetError::Connection(reason)) = error {
            shared.heed_name_in_use(reason);
        }
    }
    result
}

/// Dials one seed's addresses repeatedly, for as long as it is configured and this peer runs.
/// `tried` is set once each address was tried.
pub(crate) async fn follow_seed(shared: Arc<Shared>, seed: ToFollow, tried: watch::Sender<bool>) {
    let ToFollow { number, name, gone } = seed;
    tokio::select! {
        () = follow(shared, number, tried, || resolve(&name)) => {}
        () = gone.cancelled() => {}
    }
}

/// Follows each new seed, until this peer leaves.
pub(crate) async fn follow_new_seeds(shared: Arc<Shared>) {
    let following = async {
        loop {
            shared.seeds.changed().await;
            for seed in shared.seeds.to_follow() {
                let (tried, _) = watch::channel(false);
                shared.tasks.spawn(follow_seed(Arc::clone(&shared), seed, tried));
            }
        }
    };
    tokio::select! {
        () = following => {}
        () = shared.closing.cancelled() => {}
    }
}

/// As [`follow_seed`], with `resolve` to look up the name's addresses.
pub(crate) async fn follow<R, Fut>(
    shared: Arc<Shared>,
    number: usize,
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
                    // All at once: a name of many peers still resolves to some that are gone, and
                    // each of those takes a while to time out.
                    let reached = join_all(addrs.iter().map(|addr| reach(&shared, *addr))).await;
                    let all_linked = reached.iter().all(Result::is_ok);
                    // A name that leads to at least one peer has served its purpose.
                    let joined = reached.iter().any(Result::is_ok);
                    // If the name leads to this peer among others, the others have yet to be found.
                    if all_linked || reached.iter().flatten().any(|led| *led == Led::Elsewhere) {
                        shared.seeds.met(number);
                    }
                    let here = reached.iter().all(|led| matches!(led, Ok(Led::Here)));
                    shared.seeds.leads_here(number, here);
                    let trouble = reached.into_iter().find_map(Result::err);
                    shared.seeds.tried(number, trouble.filter(|_| !joined));
                    all_linked
                }
                Err(trouble) => {
                    shared.seeds.tried(number, Some(trouble));
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

/// Makes sure that there is a link to the peer that answers at the address, unless it is this peer.
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

/// Doubles from [`BACKOFF_MIN`] to [`BACKOFF_MAX`], with jitter so that peers which lost the same peer do
/// not dial it in step.
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
