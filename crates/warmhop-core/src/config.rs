//! Tunables: each with its meaning, unit, safe range and default.
//!
//! A policy may gain fields: take the default one and change what differs.
//!
//! ```
//! # use warmhop_core::config::{AppPolicy, StartMode};
//! let policy = AppPolicy::default().with(|policy| policy.start = StartMode::AtBoot);
//! ```

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cookie::CookieSpec;
pub use crate::own_id::{
    OWN_ID_NAME_BYTES_MAX, OWN_ID_PATH_BYTES_MAX, OwnId, OwnIdPath, OwnIdPathError,
};

/// Where an app's sessions are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SessionMode {
    /// The mesh keeps it, replicated, and it moves to where its client arrives.
    Portable,
    /// The app keeps it in its own memory: a client stays with the peer that made it.
    Pinned,
    /// There is none; any ready peer may serve any request.
    #[default]
    None,
}

impl SessionMode {
    /// Its name in the status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Pinned => "pinned",
            Self::None => "none",
        }
    }
}

/// When a peer starts its own copy of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StartMode {
    /// With the first request that reaches this peer.
    #[default]
    OnRequest,
    /// With the peer.
    AtBoot,
    /// Not here: requests always hop.
    Never,
}

/// What a request of the app may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EffectsMode {
    /// Anything: an unanswered unsafe request without a key is not run again.
    #[default]
    Anything,
    /// Anything, its session by commands included: it was given the Redis-speaking endpoint, or
    /// uses registers. What it did before its peer died is not undone, so an unanswered unsafe
    /// request is not run again, with a key or without.
    ByCommand,
    /// Nothing but its session: an unanswered request may run again.
    SessionOnly,
}

/// What to do with a session when no majority of its copies can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum WithoutMajority {
    /// Answer 503 until there is one again: a partition never makes two histories.
    #[default]
    Refuse,
    /// Continue under a new session made from the surviving copy.
    Serve,
}

/// How one app is started, stopped, kept ready and waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AppPolicy {
    /// When to start a copy here. Default: with the first request.
    pub start: StartMode,
    /// Stop the copy here after so long without a request. Default: never.
    pub stop_when_idle: Option<Duration>,
    /// Copies kept ready across the mesh, whether or not requests come. 0 to 16. Default: 0.
    pub keep_ready: u32,
    /// Where sessions are kept. Default: there are none.
    pub session: SessionMode,
    /// The app's own ids by which pinned sessions are known, if it has any; they apply only to
    /// [`SessionMode::Pinned`]. Default: none, but the affinity cookie.
    pub session_by: Vec<OwnId>,
    /// What requests may change. Default: anything.
    pub effects: EffectsMode,
    /// How long a request waits while no peer is ready. 0 to 10 min. Default: 30 s.
    pub max_wait: Duration,
    /// How many requests may wait at once on this peer. 1 to 100,000. Default: 1,024.
    pub waiting_max: usize,
    /// Whether a browser that navigates to the app while it is ready nowhere gets a page with the
    /// start's progress, instead of a tab that hangs. Default: yes.
    pub starting_page: bool,
    /// How long a start may take before it counts as failed. Default: 60 s.
    pub start_timeout: Duration,
    /// How long a stopping copy may take to finish what it serves. Default: 10 s.
    pub stop_grace: Duration,
    /// How the peer checks that the copy here is alive. Default: only if its requests give cause.
    pub alive: AlivePolicy,
    /// How long the head of an answer may take; a safe request then goes to another ready peer, and
    /// any other is answered 504. Default: as long as it takes.
    pub head_timeout: Option<Duration>,
    /// How many requests one copy serves at once. 1 to 100,000. Default: any number.
    pub concurrency: Option<u32>,
    /// How many of these places at one copy the requests of one client's address, or of one /64 of
    /// IPv6, may have; heeded only beside `concurrency`. Default: all but one of 8
    /// places or more, all of fewer.
    pub concurrency_per_address: Option<u32>,
    /// Whether more peers start a copy while the ready ones are busy; it applies only beside
    /// `concurrency`. Default: no.
    pub scale: Option<ScalePolicy>,
    /// Which requests do not start the app. Default: all do.
    pub wake: WakePolicy,
}

macro_rules! changeable {
    ($($policy:ident)*) => {$(
        impl $policy {
            /// This policy with a change.
            #[must_use]
            pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
                change(&mut self);
                self
            }
        }
    )*};
}

changeable! { AppPolicy ScalePolicy WakePolicy AlivePolicy SessionPolicy }

/// If a copy has at least so many places, one client may not have all of them by default. With fewer
/// places, the one kept free would be too large a part of the copy's capacity where all clients come
/// from one address.
const SHARED_FROM: u32 = 8;

impl AppPolicy {
    /// How many places of one copy one client may have, if that is fewer than all.
    #[must_use]
    pub fn share(&self) -> Option<u32> {
        let places = self.concurrency?;
        let by_default = if places < SHARED_FROM { places } else { places - 1 };
        let share = self.concurrency_per_address.unwrap_or(by_default).max(1);
        (share < places).then_some(share)
    }
}

/// How many copies of a busy app run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScalePolicy {
    /// A copy is busy once it uses this part of its places, in percent. 1 to 100. Default: 80.
    pub at_percent: u32,
    /// The most copies that are ready across the mesh for that. 2 to 64. Default: 3.
    pub max: u32,
}

impl Default for ScalePolicy {
    fn default() -> Self {
        Self { at_percent: 80, max: 3 }
    }
}

/// Requests that do not start an app, and do not keep it from being idle: those of programs that
/// only check whether it is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WakePolicy {
    /// Parts of `User-Agent`, in any case.
    pub not_user_agent: Vec<String>,
    /// Paths, or beginnings of paths with `*` after them.
    pub not_path: Vec<String>,
}

impl WakePolicy {
    /// Whether every request wakes the app.
    #[must_use]
    pub fn is_for_all(&self) -> bool {
        self.not_user_agent.is_empty() && self.not_path.is_empty()
    }

    /// Whether a request of this path, by this program, wakes the app.
    #[must_use]
    pub fn wakes(&self, user_agent: &[u8], path: &str) -> bool {
        let has = |part: &String| {
            let part = part.as_bytes();
            user_agent.windows(part.len().max(1)).any(|here| here.eq_ignore_ascii_case(part))
        };
        let is = |wanted: &String| match wanted.strip_suffix('*') {
            Some(beginning) => path.starts_with(beginning),
            None => path == wanted,
        };
        !self.not_user_agent.iter().any(has) && !self.not_path.iter().any(is)
    }
}

/// How the peer checks that a ready copy is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AlivePolicy {
    /// How often it is asked; absent: only when its requests fail or hang.
    pub every: Option<Duration>,
    /// How many checks in a row have to fail. 1 to 100. Default: 3.
    pub misses: u32,
    /// Whether a copy that does not answer at all is restarted. Default: yes.
    pub restart: bool,
}

impl Default for AlivePolicy {
    fn default() -> Self {
        Self { every: None, misses: 3, restart: true }
    }
}

impl Default for AppPolicy {
    fn default() -> Self {
        Self {
            start: StartMode::default(),
            stop_when_idle: None,
            keep_ready: 0,
            session: SessionMode::default(),
            session_by: Vec::new(),
            effects: EffectsMode::default(),
            max_wait: Duration::from_secs(30),
            waiting_max: 1024,
            starting_page: true,
            start_timeout: Duration::from_secs(60),
            stop_grace: Duration::from_secs(10),
            alive: AlivePolicy::default(),
            head_timeout: None,
            concurrency: None,
            concurrency_per_address: None,
            scale: None,
            wake: WakePolicy::default(),
        }
    }
}

/// How sessions are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionPolicy {
    /// Copies kept if so many peers are alive. 1 to 3. Default: 3.
    pub copies: usize,
    /// Idle time after which a session ends. Default: 30 min.
    pub ttl: Duration,
    /// What to do without a majority. Default: refuse.
    pub without_majority: WithoutMajority,
    /// How many bytes sessions may take here, as far as they are counted: their contents, their
    /// remembered requests, and a fixed cost for each. Once only an eighth of it is left, requests
    /// that would change a session are refused, while reads and deletions continue; an acknowledged
    /// session that has not expired is never evicted. A copy that does not fit at all is refused to
    /// its owner. Default: 1 GiB.
    pub memory_bytes_max: u64,
    /// The most bytes of state that one session may hold. Default: 4 KiB. As a field of a request
    /// that is 5.4 KiB, which the servers of most frameworks accept beside a browser's other
    /// fields: Node accepts 16 KiB of fields in all, Tomcat and Jetty 8 KiB, gunicorn and Apache 8
    /// KiB a field.
    pub state_bytes_max: usize,
    /// The most bytes of one keyed response that are stored for a repeat. Default: 64 KiB.
    pub stored_response_bytes_max: usize,
    /// How many answered keyed requests are remembered, which is also how many may be under way at
    /// once on one cookie. Each change carries them to the other members, 32 bytes each. A repeat
    /// is not applied again while it is remembered. Default: 256.
    pub recent_keyed_max: usize,
    /// How many of them, the latest, keep their responses for a repeat. Default: 32.
    pub stored_responses_max: usize,
    /// How many answered unkeyed requests are remembered. Default: 16.
    pub recent_unkeyed_max: usize,
    /// How many requests of one session may wait for their turn. Default: 64.
    pub queue_max: usize,
    /// The delay before the first resend of an unanswered message; it doubles up to eight times
    /// this. Default: 100 ms.
    pub resend_after: Duration,
    /// How long a takeover or commit tries to reach a majority before its requests are
    /// refused. Default: 5 s.
    pub majority_timeout: Duration,
    /// Consecutive requests through one entry peer that move ownership to it. Default: 3.
    pub move_after: u32,
    /// The least time between two moves of one session. Default: 10 s.
    pub move_interval: Duration,
    /// How long a copy outlives its session's expiry, so that clocks may differ by as
    /// much. Default: 60 s.
    pub forget_grace: Duration,
    /// The cookie's name and attributes.
    pub cookie: CookieSpec,
}

impl Default for SessionPolicy {
    fn default() -> Self {
        Self {
            copies: 3,
            ttl: Duration::from_secs(30 * 60),
            without_majority: WithoutMajority::default(),
            memory_bytes_max: 1 << 30,
            state_bytes_max: 4 * 1024,
            stored_response_bytes_max: 64 * 1024,
            recent_keyed_max: 256,
            stored_responses_max: 32,
            recent_unkeyed_max: 16,
            queue_max: 64,
            resend_after: Duration::from_millis(100),
            majority_timeout: Duration::from_secs(5),
            move_after: 3,
            move_interval: Duration::from_secs(10),
            forget_grace: Duration::from_secs(60),
            cookie: CookieSpec::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_known_by_a_part_of_its_name_or_by_its_path() {
        let text = |words: &[&str]| words.iter().map(|word| String::from(*word)).collect();
        let wake = WakePolicy {
            not_user_agent: text(&["kube-probe", "GoogleHC"]),
            not_path: text(&["/healthz", "/status/*"]),
        };
        for (agent, path, wakes) in [
            ("Mozilla/5.0", "/", true),
            ("", "/", true),
            ("Kube-Probe/1.30", "/", false),
            ("GoogleHC/1.0", "/anything", false),
            ("curl/8", "/healthz", false),
            ("curl/8", "/healthz/more", true),
            ("curl/8", "/status/live", false),
            ("curl/8", "/status", true),
        ] {
            assert_eq!(wake.wakes(agent.as_bytes(), path), wakes, "{agent} {path}");
        }
        assert!(!wake.is_for_all() && WakePolicy::default().is_for_all());
    }
}
