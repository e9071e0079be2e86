//! What to do with one request: serve it here, hop, wait, or refuse; and why.
//!
//! One pure function, [`decide`], of one [`Question`]. It is asked when a request arrives, when a
//! hop came to nothing, and when anything changed while the request waits. Refuses to know views,
//! sessions and sockets: the caller names the candidates and carries the [`Decision`] out.
//!
//! ```text
//!  front door ─▶ ready here? ──yes──────────────────────────────────────▶ Serve
//!                   │ no: the start begins here; or this peer drains
//!                   ▼
//!                a ready peer not tried yet, fewer than two tried? ─yes──▶ Hop ──▶ its hop door
//!                   │ no                                                   │         │
//!                   ▼                                  said no, unreachable│   ready? ├yes▶ Serve
//!                is it, or will it be, ready soon? ──yes─▶ Wait ─▶ again   ▼         └no─▶ Refuse
//!                   │ no, or waited too long                             again
//!                   ▼
//!                 Refuse
//! ```

use alloc::format;
use alloc::string::String;
use core::cmp::Ordering;
use core::fmt;
use core::time::Duration;

use crate::config::{AppPolicy, SessionMode, StartMode};
use crate::ids::PeerId;
use crate::view::AppState;

/// How many peers one request may be sent to: a candidate, and a second one if the first said no
/// or could not be reached.
pub const ATTEMPTS_MAX: usize = 2;
/// A count of requests in flight that is older than this says nothing: the loads of a mesh change
/// faster. (Prequal lets probes expire after one second; news is pushed, not probed, and less
/// often.)
pub const LOAD_FRESH_FOR: Duration = Duration::from_secs(2);
/// A candidate is *hot* if its requests in flight exceed this quantile of all candidates', in
/// percent. Prequal's section 4 finds 0.6 to 0.9 to serve and runs 0.84.
pub const HOT_QUANTILE_PERCENT: usize = 84;
/// What `Retry-After` says where no start has been measured.
pub const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(5);
/// The most that `Retry-After` says.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

/// This peer's own copy of the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalApp {
    /// Its state.
    pub state: AppState,
    /// Requests that it is serving.
    pub in_flight: u32,
    /// How long until it should be ready, or a start would take; see
    /// [`AppMachine::eta`](crate::app::AppMachine::eta).
    pub eta: Option<Duration>,
    /// *Other* requests that wait here for the app.
    pub waiting: usize,
}

/// Where the request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arrived {
    /// From a client: this is its entry peer.
    AtFrontDoor,
    /// From the entry peer: it was sent here to be run, and goes nowhere else.
    ByHop,
}

/// The peer that made the request's pinned session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinTo<'a> {
    /// Its name.
    pub peer: &'a PeerId,
    /// It is this peer, in this life.
    pub here: bool,
    /// The life that made the session goes on, as far as is known, and has not told this request
    /// that it runs the app no more.
    pub lives: bool,
}

/// Another peer, as it is believed to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its name.
    pub peer: &'a PeerId,
    /// The app's state there.
    pub state: AppState,
    /// It is in this peer's zone, or neither has one.
    pub same_zone: bool,
    /// Requests in flight there, when last heard.
    pub in_flight: u32,
    /// The round trip to it in microseconds, or the time in which it answered lately; absent
    /// without a link.
    pub latency_us: Option<u32>,
    /// How old the belief is.
    pub age: Duration,
    /// How old the count of requests in flight is; absent where none was heard.
    pub load_age: Option<Duration>,
    /// It is late; it may be dead.
    pub suspect: bool,
    /// It is about to leave.
    pub draining: bool,
    /// How long until it should be ready there.
    pub eta: Option<Duration>,
}

/// All that a decision depends on.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// How the app is started and waited for.
    pub app: &'a AppPolicy,
    /// This peer's own copy.
    pub local: LocalApp,
    /// This peer is about to leave.
    pub draining: bool,
    /// This peer's zone; only for the words of the reason.
    pub zone: Option<&'a str>,
    /// The others where the app is believed ready or starting, suspects included. Those where it
    /// is cold may be named too, best in the order of [`rank::rank`](crate::rank::rank): where
    /// this peer may not start the app, or could not, the first of them is asked to.
    pub candidates: &'a [Candidate<'a>],
    /// Where the request came in.
    pub arrived: Arrived,
    /// Where its pinned session was made, if it has one.
    pub affinity: Option<PinTo<'a>>,
    /// The peers that this request was sent to in vain.
    pub tried: &'a [PeerId],
    /// How many more peers it may be sent to; never more than [`ATTEMPTS_MAX`] in all count.
    pub attempt_budget: usize,
    /// How long the request has waited.
    pub waited: Duration,
    /// Random bits: which two candidates are compared.
    pub dice: u64,
}

/// What to do, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What to do with the request.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// Begin a start of the app here, beside the action.
    pub start_here: bool,
    /// This peer may not start the app, or could not, and nobody else has it ready or starting: ask
    /// this one to start it, beside the action.
    pub ask_to_start: Option<PeerId>,
    /// The request's pinned session cannot be had any more, and a fresh one begins; the peer that
    /// had made it.
    pub pin_lost: Option<PeerId>,
}

/// What to do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Run it on the copy here.
    Serve,
    /// Send it to this peer.
    Hop {
        /// Where to.
        to: PeerId,
    },
    /// Keep it until anything changes, then ask again; ask again at the latest after `at_most`.
    Wait {
        /// How much longer it may wait.
        at_most: Duration,
    },
    /// Answer that it cannot be served.
    Refuse(Refusal),
}

/// How one of several ready peers came to be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// There was no other.
    Only,
    /// The other one drawn is among the busiest, or busier.
    LessBusy {
        /// Requests in flight at the chosen one.
        in_flight: u32,
        /// And at the other.
        other: u32,
    },
    /// The other one drawn answers more slowly.
    Nearer {
        /// Microseconds to the chosen one.
        latency_us: u32,
        /// And to the other, where a link to it exists.
        other: Option<u32>,
    },
    /// Nothing is known that tells the two drawn apart.
    Drawn,
}

/// What a peer is preferred by, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Alive, and in this zone.
    SameZone,
    /// Alive, in another zone.
    OtherZone,
    /// About to leave: still serves, and better than waiting.
    Draining,
    /// Late: better than nobody.
    Suspect,
}

/// Why a decision was made. `Display` gives one sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The app is ready here.
    ReadyHere,
    /// The app is ready here, and nowhere better: a draining peer serves what it can.
    ReadyHereDraining,
    /// The session was made here.
    PinnedHere,
    /// The session was made there.
    PinnedThere {
        /// The peer that made it.
        peer: PeerId,
    },
    /// Not ready here, or this peer is about to leave; ready there.
    ReadyThere {
        /// Where.
        peer: PeerId,
        /// How many peers of this standing were there to choose from.
        among: usize,
        /// What they have in common.
        standing: Standing,
        /// Why this one.
        choice: Choice,
        /// The peer that was tried before, if one was.
        after: Option<PeerId>,
        /// It is ready here as well, but this peer is about to leave.
        leaving: bool,
    },
    /// Ready nowhere that could be reached; the copy here is on its way.
    StartingHere {
        /// How long until it should be ready.
        eta: Option<Duration>,
    },
    /// Ready nowhere that could be reached; a copy elsewhere is on its way.
    StartingElsewhere {
        /// The peer whose copy should be ready first.
        peer: PeerId,
        /// How long until then.
        eta: Option<Duration>,
    },
    /// Ready nowhere, and this peer may not start it or could not: another one has to.
    NobodyStarts,
    /// The refusal says it.
    Refused(Refusal),
}

/// Why a request cannot be served. Each has a status, a `Proxy-Status` error type and mostly a
/// `Retry-After`:
///
/// | refusal | status | error type (RFC 9209 section 2.3) | `Retry-After` |
/// | --- | --- | --- | --- |
/// | [`NotReadyHere`](Self::NotReadyHere) | 503 | `destination_unavailable` | the start's estimate |
/// | [`Draining`](Self::Draining) | 503 | `destination_unavailable` | 1 s: another peer can take it |
/// | [`StartFailed`](Self::StartFailed) | 503 | `destination_unavailable` | back-off and start |
/// | [`WaitFull`](Self::WaitFull) | 503 | `connection_limit_reached` | the start's estimate |
/// | [`WaitedTooLong`](Self::WaitedTooLong) | 503 | `destination_unavailable` | the start's estimate |
/// | [`NobodyAnswered`](Self::NobodyAnswered) | 503 | `destination_unavailable` | 1 s |
/// | [`PinnedPeerUnreachable`](Self::PinnedPeerUnreachable) | 503 | `destination_unavailable` | 1 s |
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It was sent here by a hop, and the app is not ready here: its entry peer knows more.
    NotReadyHere {
        /// The app's state here.
        state: AppState,
        /// How long until it should be ready, or a start would take.
        retry_after: Duration,
    },
    /// This peer is leaving, and nobody else has the app ready or starting.
    Draining,
    /// The app does not start here, and nobody else has it ready or starting.
    StartFailed {
        /// How long until the next start should be ready.
        retry_after: Duration,
    },
    /// As many requests wait as may.
    WaitFull {
        /// How many that is.
        waiting_max: usize,
        /// How long until the first copy should be ready.
        retry_after: Duration,
    },
    /// It waited as long as it may.
    WaitedTooLong {
        /// How long it may wait.
        max_wait: Duration,
        /// How long until the first copy should be ready.
        retry_after: Duration,
    },
    /// The peers that it was sent to said no or could not be reached, and nothing is starting.
    NobodyAnswered {
        /// How many.
        tried: usize,
    },
    /// The peer that holds the session in its memory lives but could not be reached. Another peer
    /// would begin a fresh session in place of one that still exists.
    PinnedPeerUnreachable {
        /// That peer.
        peer: PeerId,
    },
}

impl Refusal {
    /// The HTTP status: each of these passes, so each is 503 (RFC 9110 section 15.6.4).
    #[must_use]
    pub fn status(&self) -> u16 {
        503
    }

    /// The error type for `Proxy-Status`.
    #[must_use]
    pub fn proxy_error(&self) -> &'static str {
        match self {
            Self::WaitFull { .. } => "connection_limit_reached",
            Self::NotReadyHere { .. }
            | Self::Draining
            | Self::StartFailed { .. }
            | Self::WaitedTooLong { .. }
            | Self::NobodyAnswered { .. }
            | Self::PinnedPeerUnreachable { .. } => "destination_unavailable",
        }
    }

    /// The value of `Retry-After` in whole seconds, rounded up: 1 to 120.
    #[must_use]
    pub fn retry_after_s(&self) -> u64 {
        let wait = match self {
            Self::NotReadyHere { retry_after, .. }
            | Self::StartFailed { retry_after }
            | Self::WaitFull { retry_after, .. }
            | Self::WaitedTooLong { retry_after, .. } => *retry_after,
            Self::Draining | Self::NobodyAnswered { .. } | Self::PinnedPeerUnreachable { .. } => {
                Duration::ZERO
            }
        };
        let wait = wait.min(RETRY_AFTER_MAX);
        (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
    }

    /// The label of its counter.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotReadyHere { .. } => "not_ready_here",
            Self::Draining => "draining",
            Self::StartFailed { .. } => "start_failed",
            Self::WaitFull { .. } => "wait_full",
            Self::WaitedTooLong { .. } => "waited_too_long",
            Self::NobodyAnswered { .. } => "nobody_answered",
            Self::PinnedPeerUnreachable { .. } => "pinned_peer_unreachable",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReadyHere { state, .. } => {
                write!(f, "the hop came for a copy that is not ready here, but {}", word(*state))
            }
            Self::Draining => f.write_str(
                "this peer is draining, and the app is neither ready nor starting elsewhere",
            ),
            Self::StartFailed { .. } => f.write_str(
                "the app did not start here, and it is neither ready nor starting elsewhere",
            ),
            Self::WaitFull { waiting_max, .. } => {
                write!(
                    f,
                    "the app is ready nowhere, and {waiting_max} requests wait for it already"
                )
            }
            Self::WaitedTooLong { max_wait, .. } => {
                write!(
                    f,
                    "no peer had the app ready within the {max_wait:?} that a request may wait"
                )
            }
            Self::NobodyAnswered { tried } => write!(
                f,
                "{tried} of the peers where the app should be ready could not take the request, \
                 and it is starting nowhere"
            ),
            Self::PinnedPeerUnreachable { peer } => {
                write!(
                    f,
                    "the session is in the memory of {peer}, which lives but cannot be reached"
                )
            }
        }
    }
}

impl Reason {
    /// The label for logs and metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::ReadyHere => "ready_here",
            Self::ReadyHereDraining => "ready_here_draining",
            Self::PinnedHere => "pinned_here",
            Self::PinnedThere { .. } => "pinned_there",
            Self::ReadyThere { .. } => "ready_there",
            Self::StartingHere { .. } => "starting_here",
            Self::StartingElsewhere { .. } => "starting_elsewhere",
            Self::NobodyStarts => "nobody_starts",
            Self::Refused(refusal) => refusal.label(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadyHere => f.write_str("the app is ready here"),
            Self::ReadyHereDraining => {
                f.write_str("the app is ready here, and a draining peer serves what still comes")
            }
            Self::PinnedHere => f.write_str("the session was made here, and the app is ready"),
            Self::PinnedThere { peer } => write!(f, "the session was made on {peer}"),
            Self::ReadyThere { peer, among, standing, choice, after, leaving } => {
                match after {
                    Some(first) => write!(f, "{first} could not take it; {peer} is ready")?,
                    None if *leaving => write!(f, "this peer is draining; {peer} is ready")?,
                    None => write!(f, "not ready here, but on {peer}")?,
                }
                write!(f, ", {}", choice_words(*choice, *among))?;
                f.write_str(match standing {
                    Standing::SameZone => "",
                    Standing::OtherZone => "; nobody of this zone is ready",
                    Standing::Draining => "; all that are ready are draining",
                    Standing::Suspect => "; all that are ready are suspected to be dead",
                })
            }
            Self::StartingHere { eta: Some(eta) } => {
                write!(f, "ready nowhere; the copy here should be ready in {eta:?}")
            }
            Self::StartingHere { eta: None } => {
                f.write_str("ready nowhere; the copy here is starting, for the first time")
            }
            Self::StartingElsewhere { peer, eta: Some(eta) } => {
                write!(f, "ready nowhere; the copy on {peer} should be ready in {eta:?}")
            }
            Self::StartingElsewhere { peer, eta: None } => {
                write!(f, "ready nowhere; the copy on {peer} is starting")
            }
            Self::NobodyStarts => {
                f.write_str("ready nowhere, and no start is under way here; another peer has to")
            }
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

fn choice_words(choice: Choice, among: usize) -> String {
    match choice {
        Choice::Only => "the only one".into(),
        Choice::LessBusy { in_flight, other } => {
            format!("the less busy of two drawn from {among} ({in_flight} in flight, {other})")
        }
        Choice::Nearer { latency_us, other: Some(other) } => {
            format!("the nearer of two drawn from {among} ({latency_us} µs, {other} µs)")
        }
        Choice::Nearer { latency_us, other: None } => {
            format!("the one linked ({latency_us} µs) of two drawn from {among}")
        }
        Choice::Drawn => format!("drawn from {among}"),
    }
}

fn word(state: AppState) -> &'static str {
    match state {
        AppState::Cold => "cold",
        AppState::Starting => "starting",
        AppState::Ready => "ready",
        AppState::Stopping => "stopping",
        AppState::Failed => "failed",
    }
}

impl fmt::Display for Decision {
    /// The whole story in one sentence: a lost session, the reason, and what begins beside it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(peer) = &self.pin_lost {
            write!(f, "the session made on {peer} is gone, a fresh one begins; ")?;
        }
        self.reason.fmt(f)?;
        if self.start_here {
            f.write_str("; a start begins here")?;
        }
        match &self.ask_to_start {
            Some(peer) => write!(f, "; {peer} is asked to start it"),
            None => Ok(()),
        }
    }
}

/// What to do with one request, and why.
#[must_use]
pub fn decide(q: &Question<'_>) -> Decision {
    match q.arrived {
        Arrived::AtFrontDoor => at_front_door(q),
        Arrived::ByHop => by_hop(q),
    }
}

/// The entry peer chose this peer; it gets the copy here, or a no at once (I11). Nothing starts
/// here for a hop: its entry peer starts its own copy, or asks for this one by name.
fn by_hop(q: &Question<'_>) -> Decision {
    let reason = if q.local.state == AppState::Ready {
        if q.draining { Reason::ReadyHereDraining } else { Reason::ReadyHere }
    } else if q.draining {
        Reason::Refused(Refusal::Draining)
    } else {
        let retry_after = q.local.eta.unwrap_or(RETRY_AFTER_DEFAULT);
        Reason::Refused(Refusal::NotReadyHere { state: q.local.state, retry_after })
    };
    let action = match &reason {
        Reason::Refused(refusal) => Action::Refuse(refusal.clone()),
        _ => Action::Serve,
    };
    Decision { action, reason, start_here: false, ask_to_start: None, pin_lost: None }
}

fn at_front_door(q: &Question<'_>) -> Decision {
    let ready_here = q.local.state == AppState::Ready;
    // Whoever waits for the copy that stops may as well have begun the next.
    let start_here = matches!(q.local.state, AppState::Cold | AppState::Stopping)
        && q.app.start != StartMode::Never
        && !q.draining;
    let decision = |action, reason, pin_lost| Decision {
        action,
        reason,
        start_here,
        ask_to_start: None,
        pin_lost,
    };

    let mut pin_lost = None;
    if let Some(pin) = q.affinity.filter(|_| q.app.session == SessionMode::Pinned) {
        match pinned(q, pin) {
            Pinned::Here => return decision(Action::Serve, Reason::PinnedHere, None),
            Pinned::There => {
                let peer = pin.peer.clone();
                return decision(
                    Action::Hop { to: peer.clone() },
                    Reason::PinnedThere { peer },
                    None,
                );
            }
            Pinned::Unreachable => {
                let refusal = Refusal::PinnedPeerUnreachable { peer: pin.peer.clone() };
                let reason = Reason::Refused(refusal.clone());
                return decision(Action::Refuse(refusal), reason, None);
            }
            Pinned::Lost => pin_lost = Some(pin.peer.clone()),
        }
    }
    if ready_here && !q.draining {
        return decision(Action::Serve, Reason::ReadyHere, pin_lost);
    }
    let other = better_of_two(q);
    if ready_here {
        // What begins here while this peer leaves ends sooner than its client would like.
        let stays = |reason: &Reason| match reason {
            Reason::ReadyThere { standing, .. } => *standing <= Standing::OtherZone,
            _ => false,
        };
        return match other.filter(|(_, reason)| stays(reason)) {
            Some((to, reason)) => decision(Action::Hop { to }, reason, pin_lost),
            None => decision(Action::Serve, Reason::ReadyHereDraining, pin_lost),
        };
    }
    if let Some((to, reason)) = other {
        return decision(Action::Hop { to }, reason, pin_lost);
    }
    Decision { pin_lost, ..wait_or_refuse(q, start_here) }
}

enum Pinned {
    Here,
    There,
    Unreachable,
    Lost,
}

fn pinned(q: &Question<'_>, pin: PinTo<'_>) -> Pinned {
    if !pin.lives {
        return Pinned::Lost;
    }
    if pin.here {
        // Where the copy here has gone, the session in its memory went with it.
        return if q.local.state == AppState::Ready { Pinned::Here } else { Pinned::Lost };
    }
    match q.candidates.iter().find(|c| c.peer == pin.peer) {
        Some(c) if c.state != AppState::Ready => Pinned::Lost,
        Some(_) if may_try(q, pin.peer) => Pinned::There,
        Some(c) if !c.suspect => Pinned::Unreachable,
        Some(_) | None => Pinned::Lost,
    }
}

fn may_try(q: &Question<'_>, peer: &PeerId) -> bool {
    q.attempt_budget > 0 && q.tried.len() < ATTEMPTS_MAX && !q.tried.contains(peer)
}

/// The better of two ready peers drawn at random from those of the best standing (Mitzenmacher,
/// "The power of two choices in randomized load balancing", 2001), by Prequal's hot-cold rule
/// (Wydrowski and others, "Load is not what you should balance", arXiv 2312.10172, section 4):
/// of two hot ones, the less busy; else a cold one rather than a hot one; of two cold ones, the
/// faster. Departures: load comes with news instead of probes, and counts only while it is fresh;
/// where it is unknown a candidate is neither hot nor busy; and no standing is mixed with a
/// better one.
fn better_of_two(q: &Question<'_>) -> Option<(PeerId, Reason)> {
    let eligible = |c: &&Candidate<'_>| c.state == AppState::Ready && may_try(q, c.peer);
    let standing = q.candidates.iter().filter(eligible).map(standing_of).min()?;
    let pool = || q.candidates.iter().filter(eligible).filter(move |c| standing_of(c) == standing);
    let among = pool().count();
    let (first, choice) = if among == 1 {
        (pool().next()?, Choice::Only)
    } else {
        let (i, j) = draw_two(q.dice, among);
        let (a, b) = (pool().nth(i)?, pool().nth(j)?);
        let loads = |c: &Candidate<'_>| known_load(c);
        let hot = |c: &Candidate<'_>| {
            let Some(load) = known_load(c) else { return false };
            let known = pool().filter_map(loads).count();
            let below = pool().filter_map(loads).filter(|other| *other < load).count();
            below >= (known * HOT_QUANTILE_PERCENT).div_ceil(100)
        };
        compare(a, b, hot(a), hot(b))
    };
    let peer = first.peer.clone();
    let after = q.tried.last().cloned();
    let leaving = q.draining && q.local.state == AppState::Ready;
    let reason = Reason::ReadyThere { peer: peer.clone(), among, standing, choice, after, leaving };
    Some((peer, reason))
}

fn standing_of(c: &Candidate<'_>) -> Standing {
    match (c.suspect, c.draining, c.same_zone) {
        (true, ..) => Standing::Suspect,
        (_, true, _) => Standing::Draining,
        (.., false) => Standing::OtherZone,
        (.., true) => Standing::SameZone,
    }
}

fn known_load(c: &Candidate<'_>) -> Option<u32> {
    c.load_age.filter(|age| *age <= LOAD_FRESH_FOR).map(|_| c.in_flight)
}

/// Two different numbers below `n`, each pair as likely as any other but for a bias below
/// `n / 2^32`.
fn draw_two(dice: u64, n: usize) -> (usize, usize) {
    let scale = |bits: u64, n: usize| ((u128::from(bits) * n as u128) >> 32) as usize;
    let first = scale(dice & 0xFFFF_FFFF, n);
    let other = scale(dice >> 32, n - 1);
    (first, if other < first { other } else { other + 1 })
}

fn compare<'a>(
    a: &'a Candidate<'a>,
    b: &'a Candidate<'a>,
    a_hot: bool,
    b_hot: bool,
) -> (&'a Candidate<'a>, Choice) {
    let loads = known_load(a).zip(known_load(b));
    let less_busy = |won: &'a Candidate<'a>, lost: &Candidate<'_>| {
        (won, Choice::LessBusy { in_flight: won.in_flight, other: lost.in_flight })
    };
    match (a_hot, b_hot) {
        (false, true) => return less_busy(a, b),
        (true, false) => return less_busy(b, a),
        (true, true) => {}
        (false, false) => match (a.latency_us, b.latency_us) {
            (Some(us), other) if other.is_none_or(|other| us < other) => {
                return (a, Choice::Nearer { latency_us: us, other });
            }
            (other, Some(us)) if other.is_none_or(|other| us < other) => {
                return (b, Choice::Nearer { latency_us: us, other });
            }
            _ => {}
        },
    }
    match loads.map(|(of_a, of_b)| of_a.cmp(&of_b)) {
        Some(Ordering::Less) => less_busy(a, b),
        Some(Ordering::Greater) => less_busy(b, a),
        Some(Ordering::Equal) | None => (a, Choice::Drawn),
    }
}

/// Nobody ready is left to try.
fn wait_or_refuse(q: &Question<'_>, start_here: bool) -> Decision {
    // A draining peer gives its own start up, and counts on none.
    let starting_here = start_here || (q.local.state == AppState::Starting && !q.draining);
    let starting = |c: &&Candidate<'_>| c.state == AppState::Starting;
    let key = |c: &Candidate<'_>| (c.suspect, c.eta.unwrap_or(Duration::MAX));
    let elsewhere = q.candidates.iter().filter(starting).min_by_key(|c| key(c));
    let here = q.local.eta.filter(|_| !q.draining && q.app.start != StartMode::Never);
    let best_eta = q.candidates.iter().filter(starting).filter_map(|c| c.eta).chain(here).min();
    let retry_after = best_eta.unwrap_or(RETRY_AFTER_DEFAULT);

    let nobody_starts = !starting_here && elsewhere.is_none();
    let ask_to_start = nobody_starts.then(|| first_able(q)).flatten();
    let reason = if nobody_starts && q.local.state == AppState::Failed && ask_to_start.is_none() {
        Reason::Refused(Refusal::StartFailed { retry_after })
    } else if nobody_starts && q.draining {
        Reason::Refused(Refusal::Draining)
    } else if nobody_starts && !q.tried.is_empty() && ask_to_start.is_none() {
        Reason::Refused(Refusal::NobodyAnswered { tried: q.tried.len() })
    } else if q.waited >= q.app.max_wait {
        Reason::Refused(Refusal::WaitedTooLong { max_wait: q.app.max_wait, retry_after })
    } else if q.local.waiting >= q.app.waiting_max {
        Reason::Refused(Refusal::WaitFull { waiting_max: q.app.waiting_max, retry_after })
    } else {
        match elsewhere {
            Some(c) if !starting_here || (!c.suspect && c.eta < q.local.eta && c.eta.is_some()) => {
                Reason::StartingElsewhere { peer: c.peer.clone(), eta: c.eta }
            }
            _ if starting_here => Reason::StartingHere { eta: q.local.eta },
            _ => Reason::NobodyStarts,
        }
    };
    let action = match &reason {
        Reason::Refused(refusal) => Action::Refuse(refusal.clone()),
        _ => Action::Wait { at_most: q.app.max_wait.saturating_sub(q.waited) },
    };
    Decision { action, reason, start_here, ask_to_start, pin_lost: None }
}

/// The first peer that could start the app.
fn first_able(q: &Question<'_>) -> Option<PeerId> {
    let able = |c: &&Candidate<'_>| {
        matches!(c.state, AppState::Cold | AppState::Stopping) && !c.suspect && !c.draining
    };
    q.candidates.iter().find(able).map(|c| c.peer.clone())
}

/// Whether a request that came to nothing may be tried on another peer: if no byte of it can have
/// reached an app; or if it is safe; or if it carries a key, or the app changes nothing but its
/// session, and the session is portable: then the session's register applies it once (I12).
#[must_use]
pub fn may_retry(
    method_safe: bool,
    idempotent_key: bool,
    session_only: bool,
    portable: bool,
    bytes_may_have_reached_app: bool,
) -> bool {
    !bytes_may_have_reached_app || method_safe || ((idempotent_key || session_only) && portable)
}
