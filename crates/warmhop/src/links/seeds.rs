//! Whether the seeds could be reached, and why not: a peer that cannot join logs that, and so does
//! the one that refuses it.
//!
//! A seed that does not answer may only be about to start, so it has [`PATIENCE`] before the first
//! warning; a trouble that cannot pass by itself, such as a certificate of another authority, is
//! logged at once. Either is logged again each [`AGAIN_AFTER`] until the seed is reached.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::ConnectionError;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use crate::links::close_code;
use crate::links::met::{DialError, MeetError};
use crate::observe::status::SeedStatus;

/// How long a seed may stay silent before that is logged.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a trouble that lasts is logged again.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// At most so many kinds and senders of refusals are logged one by one.
const REFUSALS_MAX: usize = 256;
/// Of one machine's addresses at most so many are named for one reason: each port may be a peer's, and
/// one that is anybody's may change with each try.
const REFUSALS_OF_ONE_MAX: usize = 16;

/// TLS alerts (RFC 8446 section 6) as QUIC transport errors carry them (RFC 9001 section 4.8).
mod alert {
    pub(super) const FIRST: u64 = 0x100;
    pub(super) const BAD_CERTIFICATE: u64 = FIRST + 42;
    pub(super) const CERTIFICATE_EXPIRED: u64 = FIRST + 45;
    pub(super) const CERTIFICATE_UNKNOWN: u64 = FIRST + 46;
    pub(super) const UNKNOWN_CA: u64 = FIRST + 48;
    /// A signature does not verify: two authorities of one cluster's name, made one after the
    /// other.
    pub(super) const DECRYPT_ERROR: u64 = FIRST + 51;
    pub(super) const NO_APPLICATION_PROTOCOL: u64 = FIRST + 120;
    pub(super) const LAST: u64 = FIRST + 0xff;
}

/// The outcome of each seed.
#[derive(Debug)]
pub(crate) struct Seeds {
    /// In the order of the configuration.
    named: Mutex<Vec<Seed>>,
    /// How many there have been: the next one's number.
    count: AtomicUsize,
    /// Notified when there are new seeds.
    changed: Notify,
    refused: Mutex<HashMap<(SocketAddr, String), Instant>>,
}

#[derive(Debug)]
struct Seed {
    /// Distinguishes it from an earlier seed of its name.
    number: usize,
    name: String,
    /// A task tries it.
    followed: bool,
    /// Ends that task.
    while_named: DropGuard,
    reached: bool,
    /// It has led to another peer, or leads to this one alone.
    met: bool,
    /// According to the latest attempt, it leads to this peer alone.
    leads_here: bool,
    trouble: Option<Trouble>,
    since: Instant,
    warned: Option<Instant>,
}

/// A seed to be tried until it is no longer configured.
#[derive(Debug)]
pub(crate) struct ToFollow {
    pub(crate) number: usize,
    pub(crate) name: String,
    pub(crate) gone: CancellationToken,
}

/// Why a seed could not be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    why: String,
    /// It may pass by itself, once the other peer has started.
    may_pass: bool,
}

impl Trouble {
    /// The seed's name has no address.
    pub(crate) fn unresolved(why: impl std::fmt::Display) -> Self {
        Self { why: format!("its name cannot be resolved: {why}"), may_pass: false }
    }

    fn lasting(why: impl Into<String>) -> Self {
        Self { why: why.into(), may_pass: false }
    }

    /// What a failed dial of `addr` means.
    pub(crate) fn of_dial(addr: SocketAddr, error: &DialError) -> Self {
        match error {
            DialError::NoAnswer => Self { why: no_answer(addr), may_pass: true },
            DialError::Connect(error) => {
                Self { why: format!("{addr} cannot be dialed: {error}"), may_pass: false }
            }
            DialError::Meet(error) => Self::of_meeting(addr, error),
        }
    }

    /// A different peer from the one that is wanted answers at `addr`.
    pub(crate) fn leads_elsewhere(addr: SocketAddr) -> Self {
        Self::lasting(format!("another peer answers at {addr}"))
    }

    /// The reason, for people.
    pub(crate) fn why(&self) -> &str {
        &self.why
    }

    /// The same, for display beside the seed's name, which is not repeated if it is the address.
    fn beside(mut self, name: &str) -> Self {
        if let Some(rest) = self.why.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")) {
            self.why = rest.to_owned();
        }
        self
    }

    /// Another live peer at `addr` has this peer's name.
    pub(crate) fn namesake(addr: SocketAddr) -> Self {
        Self::lasting(format!("the peer at {addr} has the same name as this one"))
    }

    fn of_meeting(addr: SocketAddr, error: &MeetError) -> Self {
        match error {
            MeetError::Connection(ConnectionError::TimedOut | ConnectionError::Reset) => {
                Self { why: no_answer(addr), may_pass: true }
            }
            MeetError::Connection(error) => {
                Self { why: format!("{addr}: {}", why_closed(error)), may_pass: false }
            }
            MeetError::NotOfCluster => {
                Self::lasting(format!("the peer at {addr} belongs to another cluster"))
            }
            error => Self::lasting(format!("{addr}: {error}")),
        }
    }
}

/// What may be wrong if no answer comes.
fn no_answer(addr: SocketAddr) -> String {
    format!("nobody answers at {addr}: is a peer running there, and does UDP get through?")
}

/// Why a connection between two peers failed or ended, with the remedy if there is one.
pub(crate) fn why_closed(error: &ConnectionError) -> String {
    match error {
        // This end refused the other.
        ConnectionError::TransportError(error) => {
            let code = u64::from(error.code);
            match code {
                alert::UNKNOWN_CA | alert::DECRYPT_ERROR => {
                    "its certificate was issued by another authority than this peer's ca.pem; issue \
                     both from one authority"
                        .into()
                }
                alert::CERTIFICATE_EXPIRED => {
                    "its certificate has expired, or the clocks differ: renew it there".into()
                }
                alert::FIRST..=alert::LAST => format!("the handshake failed: {}", error.reason),
                _ => error.to_string(),
            }
        }
        // The other end refused this one.
        ConnectionError::ConnectionClosed(close) => match u64::from(close.error_code) {
            alert::UNKNOWN_CA
            | alert::DECRYPT_ERROR
            | alert::BAD_CERTIFICATE
            | alert::CERTIFICATE_UNKNOWN => {
                "it refuses this peer's certificate, which another authority issued; issue both from \
                 one authority"
                    .into()
            }
            alert::CERTIFICATE_EXPIRED => {
                "it refuses this peer's certificate, which has expired there: renew it, or set the \
                 clock"
                    .into()
            }
            alert::NO_APPLICATION_PROTOCOL => "it is no peer of a warmhop mesh".into(),
            _ => error.to_string(),
        },
        ConnectionError::ApplicationClosed(close) => match close.error_code {
            close_code::WRONG_IDENTITY => {
                "it refuses this peer, which belongs to another cluster".into()
            }
            close_code::WRONG_VERSION => {
                "it refuses this peer, which speaks another version of the protocol".into()
            }
            close_code::REFUSED => {
                "it refuses this peer, which its operator has shut out"
                    .into()
            }
            close_code::EXPIRED => {
                "it refuses this peer's certificate, which has expired there: renew it, or set the \
                 clock"
                    .into()
            }
            close_code::NAME_IN_USE => {
                "it refuses this peer, since another live peer has the same name: give each peer a \
                 name of its own"
                    .into()
            }
            close_code::GOODBYE | close_code::CUT_SHORT => "it is shutting down".into(),
            close_code::FULL => "it refuses this peer, since it knows as many as it can".into(),
            _ => error.to_string(),
        },
        ConnectionError::TimedOut => "it does not answer".into(),
        error => error.to_string(),
    }
}

impl Seeds {
    /// New seeds, of which nothing is known yet.
    pub(crate) fn new(names: &[String]) -> Self {
        let seeds = Self {
            named: Mutex::default(),
            count: AtomicUsize::new(0),
            changed: Notify::new(),
            refused: Mutex::default(),
        };
        seeds.change(names);
        seeds
    }

    /// Replaces the seeds; the outcomes of those that stay are kept.
    pub(crate) fn change(&self, names: &[String]) {
        let mut seeds = self.lock();
        let mut before = std::mem::take(&mut *seeds);
        for name in names {
            let kept = before.iter().position(|seed| seed.name == *name);
            seeds.push(kept.map_or_else(|| self.begin(name), |at| before.swap_remove(at)));
        }
        self.changed.notify_one();
    }

    fn begin(&self, name: &str) -> Seed {
        Seed {
            number: self.count.fetch_add(1, Ordering::Relaxed),
            name: name.to_owned(),
            followed: false,
            while_named: CancellationToken::new().drop_guard(),
            reached: false,
            met: false,
            leads_here: false,
            trouble: None,
            since: Instant::now(),
            warned: None,
        }
    }

    /// The seeds that no task tries yet. Each is returned once.
    pub(crate) fn to_follow(&self) -> Vec<ToFollow> {
        let mut seeds = self.lock();
        let new = seeds.iter_mut().filter(|seed| !seed.followed);
        new.map(|seed| {
            seed.followed = true;
            let gone = seed.while_named.token().clone();
            ToFollow { number: seed.number, name: seed.name.clone(), gone }
        })
        .collect()
    }

    /// Returns once there may be new seeds.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The seed of this number was tried: it was reached, or `trouble` is the reason why not.
    pub(crate) fn tried(&self, number: usize, trouble: Option<Trouble>) {
        let mut seeds = self.lock();
        let Some(seed) = seeds.iter_mut().find(|seed| seed.number == number) else { return };
        let now = Instant::now();
        let Some(trouble) = trouble.map(|trouble| trouble.beside(&seed.name)) else {
            if !seed.reached && seed.warned.is_some() {
                info!(seed = seed.name, "the seed is reached");
            }
            (seed.reached, seed.since) = (true, now);
            (seed.trouble, seed.warned) = (None, None);
            return;
        };
        if seed.reached || seed.trouble.as_ref().is_some_and(|before| *before != trouble) {
            // A trouble of another kind is logged as soon as its own patience ends.
            seed.warned = None;
        }
        if seed.reached {
            seed.since = now;
        }
        let due = match seed.warned {
            Some(warned) => now.duration_since(warned) >= AGAIN_AFTER,
            None => !trouble.may_pass || now.duration_since(seed.since) >= PATIENCE,
        };
        if due {
            seed.warned = Some(now);
            warn!(
                seed = seed.name,
                reason = trouble.why,
                "a seed cannot be reached; it is tried until it answers"
            );
        }
        seed.reached = false;
        seed.trouble = Some(trouble);
    }

    /// The seed of this number led to another peer, or leads to this one alone.
    pub(crate) fn met(&self, number: usize) {
        if let Some(seed) = self.lock().iter_mut().find(|seed| seed.number == number) {
            seed.met = true;
        }
    }

    /// Notes whether the seed of this number leads to this peer alone.
    pub(crate) fn leads_here(&self, number: usize, alone: bool) {
        if let Some(seed) = self.lock().iter_mut().find(|seed| seed.number == number) {
            seed.leads_here = alone;
        }
    }

    /// How many seeds were never met, and are not the address of a peer that `is_known`.
    pub(crate) fn unmet(&self, is_known: impl Fn(SocketAddr) -> bool) -> usize {
        let leads = |seed: &Seed| seed.met || seed.name.parse().is_ok_and(&is_known);
        self.lock().iter().filter(|seed| !leads(seed)).count()
    }

    /// A peer at `from` was refused. Logged once a minute for each sender and reason.
    pub(crate) fn refused(&self, from: SocketAddr, why: &str) {
        if self.is_new(from, why) {
            warn!(%from, reason = why, "refused a peer that wants to join");
        }
    }

    /// The handshake that a peer at `from` began failed. Logged in the same way if one of both refused
    /// the other: which of them is the first to read the other's certificate is a matter of chance.
    pub(crate) fn handshake_failed(&self, from: SocketAddr, error: &ConnectionError) {
        let why = why_closed(error);
        match error {
            ConnectionError::TransportError(_) => self.refused(from, &why),
            ConnectionError::ConnectionClosed(close)
                if (alert::FIRST..=alert::LAST).contains(&u64::from(close.error_code))
                    && self.is_new(from, &why) =>
            {
                warn!(%from, reason = why, "a peer that wants to join refused this one");
            }
            // Strangers that fall silent are not worth a line.
            _ => {}
        }
    }

    fn is_new(&self, from: SocketAddr, why: &str) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        refused.retain(|_, logged_at| now.duration_since(*logged_at) < AGAIN_AFTER);
        let key = (from, why.to_owned());
        let alike = || refused.keys().filter(|(at, said)| at.ip() == from.ip() && said == why);
        let is_new = refused.len() < REFUSALS_MAX
            && !refused.contains_key(&key)
            && alike().count() < REFUSALS_OF_ONE_MAX;
        if is_new {
            refused.insert(key, now);
        }
        is_new
    }

    /// The outcome of each, in the order of the configuration. Seeds that lead to this peer alone
    /// are left out: they would count as reached where no other is.
    pub(crate) fn status(&self) -> Vec<SeedStatus> {
        let status = |seed: &Seed| SeedStatus {
            seed: seed.name.clone(),
            reached: seed.reached,
            error: seed.trouble.as_ref().map(|trouble| trouble.why.clone()),
        };
        self.lock().iter().filter(|seed| !seed.leads_here).map(status).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Seed>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr() -> SocketAddr {
        "127.0.0.1:7001".parse().expect("an address")
    }

    #[tokio::test(start_paused = true)]
    async fn a_seed_that_is_only_late_is_not_warned_of() {
        let seeds = Seeds::new(&["a:1".into(), "b:1".into()]);
        let silent = Trouble::of_dial(addr(), &DialError::NoAnswer);
        seeds.tried(0, Some(silent.clone()));
        assert!(seeds.lock()[0].warned.is_none());
        tokio::time::advance(PATIENCE).await;
        seeds.tried(0, Some(silent));
        assert!(seeds.lock()[0].warned.is_some(), "by then it is");
        let status = seeds.status();
        assert!(!status[0].reached && status[0].error.as_deref().unwrap_or("").contains("nobody"));
        assert_eq!((status[1].reached, status[1].error.as_deref()), (false, None), "not tried yet");
        seeds.tried(0, None);
        assert!(seeds.status()[0].reached);
    }

    #[test]
    fn a_refusal_is_explained_and_its_address_named_once() {
        let closed = |code: quinn::VarInt| {
            let close = quinn::ApplicationClose { error_code: code, reason: Default::default() };
            let error = MeetError::Connection(ConnectionError::ApplicationClosed(close));
            Trouble::of_dial(addr(), &DialError::Meet(error)).why
        };
        for (code, part) in [
            (close_code::NAME_IN_USE, "another live peer has the same name"),
            (close_code::GOODBYE, "shutting down"),
            (close_code::REFUSED, "its operator has shut out"),
            (close_code::WRONG_VERSION, "another version of the protocol"),
        ] {
            let why = closed(code);
            assert!(why.starts_with("127.0.0.1:7001: it ") && why.contains(part), "{why}");
        }
        let seeds = Seeds::new(&["127.0.0.1:7001".into(), "a.example:7001".into()]);
        for number in [0, 1] {
            seeds.tried(number, Some(Trouble::lasting(closed(close_code::GOODBYE))));
        }
        let status = seeds.status();
        assert_eq!(status[0].error.as_deref(), Some("it is shutting down"));
        assert_eq!(status[1].error.as_deref(), Some("127.0.0.1:7001: it is shutting down"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_seed_is_met_for_good_or_known_by_its_address() {
        let seeds = Seeds::new(&["a:1".into(), "127.0.0.1:7001".into()]);
        assert_eq!(seeds.unmet(|_| false), 2);
        assert_eq!(seeds.unmet(|known| known == addr()), 1);
        seeds.tried(0, None);
        assert_eq!(seeds.unmet(|_| false), 2, "it may have led to this peer, among others");
        seeds.met(0);
        seeds.tried(0, Some(Trouble::of_dial(addr(), &DialError::NoAnswer)));
        seeds.tried(0, None);
        assert_eq!(seeds.unmet(|_| false), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_seed_that_leads_here_alone_counts_neither_as_reached_nor_as_missing() {
        let seeds = Seeds::new(&["me:1".into(), "a:1".into()]);
        seeds.leads_here(0, true);
        seeds.tried(0, None);
        seeds.tried(1, Some(Trouble::of_dial(addr(), &DialError::NoAnswer)));
        let status = seeds.status();
        assert_eq!((status.len(), status[0].seed.as_str(), status[0].reached), (1, "a:1", false));
        // Its name leads to others as well by now.
        seeds.leads_here(0, false);
        seeds.tried(0, None);
        let status = seeds.status();
        assert_eq!((status.len(), status[0].seed.as_str(), status[0].reached), (2, "me:1", true));
    }

    #[tokio::test(start_paused = true)]
    async fn seeds_that_stay_are_known_still_and_one_that_comes_back_begins_anew() {
        let named = |names: &[&str]| names.iter().map(|name| (*name).into()).collect::<Vec<_>>();
        let seeds = Seeds::new(&named(&["a:1", "b:1"]));
        let [a, b] = seeds.to_follow().try_into().expect("two");
        assert_eq!((a.number, b.number, b.name.as_str()), (0, 1, "b:1"));
        seeds.tried(1, None);
        seeds.change(&named(&["c:1", "b:1"]));
        seeds.changed().await;
        let new = seeds.to_follow();
        assert_eq!((new.len(), new[0].number, new[0].name.as_str()), (1, 2, "c:1"));
        let status = seeds.status();
        assert_eq!((status[0].reached, status[1].reached, status.len()), (false, true, 2));
        assert!(a.gone.is_cancelled() && !b.gone.is_cancelled());
        // The task that tried the former seed reports nothing about the new one.
        seeds.change(&named(&["a:1"]));
        seeds.tried(0, None);
        assert!(!seeds.status()[0].reached);
        assert_eq!(seeds.to_follow()[0].number, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lasting_problem_is_logged_at_once_and_each_minute() {
        let seeds = Seeds::new(&["a:1".into()]);
        let trouble = Trouble::unresolved("no such host");
        seeds.tried(0, Some(trouble.clone()));
        let first = seeds.lock()[0].warned;
        assert!(first.is_some());
        tokio::time::advance(AGAIN_AFTER / 2).await;
        seeds.tried(0, Some(trouble.clone()));
        assert_eq!(seeds.lock()[0].warned, first);
        tokio::time::advance(AGAIN_AFTER / 2).await;
        seeds.tried(0, Some(trouble));
        assert!(seeds.lock()[0].warned > first);
    }

    #[tokio::test(start_paused = true)]
    async fn each_peer_that_is_refused_is_named_once_a_minute() {
        let seeds = Seeds::new(&[]);
        let [one, other] = [7014, 7015].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        assert!(seeds.is_new(one, "expired") && seeds.is_new(other, "expired"));
        assert!(!seeds.is_new(one, "expired") && !seeds.is_new(other, "expired"));
        assert!(seeds.is_new(one, "another cluster"));
        tokio::time::advance(AGAIN_AFTER).await;
        assert!(seeds.is_new(other, "expired"));
        // A sender of whom each packet comes from another port fills no log.
        let ports = 10_000..11_000;
        let new = |port| seeds.is_new(SocketAddr::from(([127, 0, 0, 1], port)), "expired");
        assert_eq!(ports.filter(|port| new(*port)).count(), REFUSALS_OF_ONE_MAX - 1);
    }
}
