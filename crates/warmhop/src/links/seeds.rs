//! Whether the seeds could be reached, and why not: a peer that cannot join says so, and so does
//! the one that refuses it.
//!
//! A seed that nobody answers at may only be about to start, so it has [`PATIENCE`] before the
//! first warning; what cannot mend itself, such as a certificate of another authority, is told at
//! once. Either is told again each [`AGAIN_AFTER`] until the seed is reached.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::ConnectionError;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::links::close_code;
use crate::links::met::{DialError, MeetError};
use crate::observe::status::SeedStatus;

/// How long nobody may answer at a seed before it is told.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a trouble that lasts is told again.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Refusals of different kinds and senders that are told apart.
const REFUSALS_MAX: usize = 256;

/// TLS alerts (RFC 8446 section 6) as QUIC transport errors carry them (RFC 9001 section 4.8).
mod alert {
    pub(super) const FIRST: u64 = 0x100;
    pub(super) const BAD_CERTIFICATE: u64 = FIRST + 42;
    pub(super) const CERTIFICATE_EXPIRED: u64 = FIRST + 45;
    pub(super) const CERTIFICATE_UNKNOWN: u64 = FIRST + 46;
    pub(super) const UNKNOWN_CA: u64 = FIRST + 48;
    /// A signature does not fit: two authorities of one cluster's name, made one after the other.
    pub(super) const DECRYPT_ERROR: u64 = FIRST + 51;
    pub(super) const NO_APPLICATION_PROTOCOL: u64 = FIRST + 120;
    pub(super) const LAST: u64 = FIRST + 0xff;
}

/// What became of each seed.
#[derive(Debug)]
pub(crate) struct Seeds {
    by_position: Mutex<Vec<Seed>>,
    refused: Mutex<HashMap<(IpAddr, String), Instant>>,
}

#[derive(Debug)]
struct Seed {
    name: String,
    reached: bool,
    /// It led to another peer once, or leads to this one alone.
    met: bool,
    trouble: Option<Trouble>,
    since: Instant,
    warned: Option<Instant>,
}

/// Why a seed could not be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    why: String,
    /// It may end by itself, as soon as the other peer has started.
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
            DialError::NoAnswer => {
                Self { why: format!("nobody answers at {addr}"), may_pass: true }
            }
            DialError::Connect(error) => {
                Self { why: format!("{addr} cannot be dialed: {error}"), may_pass: false }
            }
            DialError::Meet(error) => Self::of_meeting(addr, error),
        }
    }

    /// Another live peer at `addr` has this peer's name.
    pub(crate) fn namesake(addr: SocketAddr) -> Self {
        Self::lasting(format!("the peer at {addr} has the same name as this one"))
    }

    fn of_meeting(addr: SocketAddr, error: &MeetError) -> Self {
        match error {
            MeetError::Connection(ConnectionError::TimedOut | ConnectionError::Reset) => {
                Self { why: format!("nobody answers at {addr}"), may_pass: true }
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

/// Why a connection between two peers did not come about or ended, in words that name the remedy
/// where there is one.
pub(crate) fn why_closed(error: &ConnectionError) -> String {
    match error {
        // This end refused the other.
        ConnectionError::TransportError(error) => {
            let code = u64::from(error.code);
            match code {
                alert::UNKNOWN_CA | alert::DECRYPT_ERROR => {
                    "its certificate was issued by another authority than this peer's ca.pem".into()
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
                "it refuses this peer's certificate, which another authority issued".into()
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
                "it refuses this peer, which its [mesh] refuse names: its operator threw it out"
                    .into()
            }
            close_code::FULL => "it refuses this peer, since it knows as many as it can".into(),
            _ => error.to_string(),
        },
        ConnectionError::TimedOut => "it does not answer".into(),
        error => error.to_string(),
    }
}

impl Seeds {
    /// Nothing is known yet of these seeds.
    pub(crate) fn new(names: &[String]) -> Self {
        let now = Instant::now();
        let seed = |name: &String| Seed {
            name: name.clone(),
            reached: false,
            met: false,
            trouble: None,
            since: now,
            warned: None,
        };
        Self {
            by_position: Mutex::new(names.iter().map(seed).collect()),
            refused: Mutex::default(),
        }
    }

    /// The seed at `position` was tried: it is reached, or what is wrong.
    pub(crate) fn tried(&self, position: usize, trouble: Option<Trouble>) {
        let mut seeds = self.lock();
        let Some(seed) = seeds.get_mut(position) else { return };
        let now = Instant::now();
        let Some(trouble) = trouble else {
            if !seed.reached && seed.warned.is_some() {
                info!(seed = seed.name, "the seed is reached");
            }
            *seed = Seed {
                name: std::mem::take(&mut seed.name),
                reached: true,
                met: seed.met,
                trouble: None,
                since: now,
                warned: None,
            };
            return;
        };
        if seed.reached || seed.trouble.as_ref().is_some_and(|before| *before != trouble) {
            // A trouble of another kind is told at once, after its own patience.
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
                "a seed cannot be reached; it is tried again and again"
            );
        }
        seed.reached = false;
        seed.trouble = Some(trouble);
    }

    /// The seed at `position` led to another peer, or leads to this one alone.
    pub(crate) fn met(&self, position: usize) {
        if let Some(seed) = self.lock().get_mut(position) {
            seed.met = true;
        }
    }

    /// How many were never met, and are not the address of a peer that `is_known`.
    pub(crate) fn unmet(&self, is_known: impl Fn(SocketAddr) -> bool) -> usize {
        let leads = |seed: &Seed| seed.met || seed.name.parse().is_ok_and(&is_known);
        self.lock().iter().filter(|seed| !leads(seed)).count()
    }

    /// A peer at `from` was refused. Told once a minute for each sender and reason.
    pub(crate) fn refused(&self, from: SocketAddr, why: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        refused.retain(|_, told| now.duration_since(*told) < AGAIN_AFTER);
        let key = (from.ip(), why.to_owned());
        if refused.len() < REFUSALS_MAX && !refused.contains_key(&key) {
            refused.insert(key, now);
            warn!(%from, reason = why, "refused a peer that wants to join");
        }
    }

    /// What became of each, in the order of the configuration.
    pub(crate) fn status(&self) -> Vec<SeedStatus> {
        let status = |seed: &Seed| SeedStatus {
            seed: seed.name.clone(),
            reached: seed.reached,
            error: seed.trouble.as_ref().map(|trouble| trouble.why.clone()),
        };
        self.lock().iter().map(status).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Seed>> {
        self.by_position.lock().unwrap_or_else(PoisonError::into_inner)
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
        let told = seeds.status();
        assert!(!told[0].reached && told[0].error.as_deref().unwrap_or("").contains("nobody"));
        assert_eq!((told[1].reached, told[1].error.as_deref()), (false, None), "not tried yet");
        seeds.tried(0, None);
        assert!(seeds.status()[0].reached);
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
    async fn what_cannot_mend_itself_is_told_at_once_and_each_minute() {
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
}
