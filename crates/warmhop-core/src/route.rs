//! What to do with one request: serve it here, hop, wait, or refuse; and why.
//!
//! One pure function, [`decide`], of one [`Question`]. It is called when a request arrives, when a
//! hop failed, and whenever anything changed while the request waits. Refuses to know views,
//! sessions and sockets: the caller names the candidates and carries out the [`Decision`].
//!
//! ```text
//!  front door ─▶ ready here, with a free place? ──yes───────────────────▶ Serve
//!                   │ no: the start begins here; or this peer drains, or its copy is busy
//!                   ▼
//!                a ready peer with a free place,
//!                not tried yet, fewer than two tried? ───────────yes─────▶ Hop ──▶ its hop door
//!                   │ no                                                   │         │
//!                   ▼                                  said no, unreachable│   ready? ├yes▶ Serve
//!                is it, or will it be, ready soon,                         │         └no─▶ Refuse
//!                or a place free? ─────────────yes─▶ Wait ─▶ again         ▼
//!                   │ no, or waited too long                             again
//!                   ▼
//!                 Refuse
//! ```
//!
//! Where copies have a limit on the requests that they serve at once, a free place counts more than
//! a copy that is near. Where they have none, a copy here at which several slow requests already
//! wait is *hot*, and a copy elsewhere that is less busy by [`HOT_MARGIN`] takes the next.

use core::cmp::Ordering;
use core::time::Duration;

use self::hopeless::{fails_elsewhere, is_paused_everywhere};
use self::places::{is_behind, is_full, is_full_here, is_full_there, turn_there, wait_for_place};
use crate::config::{AppPolicy, EffectsMode, SessionMode, StartMode};
use crate::ids::PeerId;
use crate::version::AppVersion;
use crate::view::AppState;

mod candidates;
mod hopeless;
mod places;
mod refusal;
mod versions;
mod words;

pub use self::candidates::{
    COLD_MAX, Noted, NotedLoad, Viewpoint, may_go_again, others_start, still_tried,
};
pub use self::places::{AtDoor, TURN_WITHIN, Turn, at_door, is_held_back};
pub use self::refusal::Refusal;
pub use self::versions::{NEWS_WITHIN, Versions, counts_on};

/// How many peers one request may be sent to: a candidate, and a second one if the first refused it
/// or could not be reached.
pub const ATTEMPTS_MAX: usize = 2;
/// A count of requests in flight that is older than this is ignored: the loads of a mesh change
/// faster. (Prequal lets probes expire after one second; news is pushed, not probed, and less
/// often.)
pub const LOAD_FRESH_FOR: Duration = Duration::from_secs(2);
/// A candidate is *hot* if its requests in flight exceed this quantile of all candidates', in
/// percent. Prequal's section 4 finds 0.6 to 0.9 to work and runs 0.84.
pub const HOT_QUANTILE_PERCENT: usize = 84;
/// A copy here is *hot* if this many requests wait for the heads of their answers …
pub const HOT_AWAITING: u32 = 2;
/// … and these take this long, or their time is unknown: if they are quick, a hop costs more than
/// it saves.
pub const HOT_LATENCY_US: u32 = 50_000;
/// A request hops from a hot copy only to one with at least so many requests fewer: with a smaller
/// margin, requests would go back and forth.
pub const HOT_MARGIN: u32 = 2;
/// A copy elsewhere that had no free place is asked again after this time, unless news of it comes
/// first.
pub const FULL_FOR: Duration = Duration::from_millis(100);
/// A waiting request is refused once so many starts here have failed since it came: the first may
/// have been bad luck.
pub const FAILED_STARTS_MAX: u32 = 2;
/// The `Retry-After` if no start has been measured.
pub const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(5);
/// The `Retry-After` while an app is paused everywhere: only a person can tell when that ends.
pub const RETRY_AFTER_PAUSED: Duration = Duration::from_secs(30);
/// The largest `Retry-After`.
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
    /// How many of those in flight wait for the head of their answer.
    pub awaiting: u32,
    /// A smoothed time to the head of an answer, in microseconds; 0 before the first.
    pub latency_us: u32,
    /// How long until the next start begins by itself: the rest of a back-off.
    pub starts_in: Option<Duration>,
    /// The request's client has used its share of the places here.
    pub shut: bool,
}

/// Where the request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arrived {
    /// From a client: this is its entry peer.
    AtFrontDoor,
    /// From the entry peer, which sent it here to be run: it is not sent on.
    ByHop,
}

/// The peer that made the request's pinned session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinTo<'a> {
    /// Its name.
    pub peer: &'a PeerId,
    /// It is this peer, in this life.
    pub here: bool,
    /// The life that made the session is not over, as far as is known, and has not refused this
    /// request because it no longer runs the app.
    pub lives: bool,
}

/// Another peer, as this one believes it to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its name.
    pub peer: &'a PeerId,
    /// The app's state there.
    pub state: AppState,
    /// It is in this peer's zone, or neither has one.
    pub same_zone: bool,
    /// Requests in flight there, by its last news.
    pub in_flight: u32,
    /// This peer's requests that it is serving, which this peer counts itself.
    pub ours: u32,
    /// The round trip to it in microseconds, or its recent time to answer; absent without a link.
    pub latency_us: Option<u32>,
    /// How old the belief is.
    pub age: Duration,
    /// How old the count of requests in flight is; absent if there is none.
    pub load_age: Option<Duration>,
    /// It is silent, and may be dead.
    pub suspect: bool,
    /// It is about to leave.
    pub draining: bool,
    /// How long until it should be ready there.
    pub eta: Option<Duration>,
    /// The version that it serves, if one is named.
    pub version: Option<&'a AppVersion>,
    /// The request's client has used its share of the places there.
    pub shut: bool,
    /// Nothing that this peer sent there is of the request's client and session.
    pub is_first: bool,
}

/// Everything that a decision depends on.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// How the app is started and waited for.
    pub app: &'a AppPolicy,
    /// This peer's own copy.
    pub local: LocalApp,
    /// This peer is about to leave.
    pub draining: bool,
    /// This peer's zone; only for the text of the reason.
    pub zone: Option<&'a str>,
    /// The other peers where the app is believed to be ready or starting, suspects included. Peers
    /// where it is cold may be named too, in the order of [`rank::rank`](crate::rank::rank): if
    /// this peer may not or cannot start the app, the first of them is asked to.
    pub candidates: &'a [Candidate<'a>],
    /// Where the request came in.
    pub arrived: Arrived,
    /// Where its pinned session was made, if it has one.
    pub affinity: Option<PinTo<'a>>,
    /// The peers that this request was sent to and that did not take it.
    pub tried: &'a [PeerId],
    /// How many more peers it may be sent to; the total never exceeds [`ATTEMPTS_MAX`].
    pub attempt_budget: usize,
    /// How long the request has waited.
    pub waited: Duration,
    /// Its place among the requests that wait for a copy with a free place.
    pub queued: Queued,
    /// It does not start the app anywhere, and does not wait for a start: see
    /// [`WakePolicy`](crate::config::WakePolicy).
    pub never_wakes: bool,
    /// How many starts here have failed since it arrived.
    pub failed_starts: u32,
    /// And elsewhere, as far as this peer has heard.
    pub failed_elsewhere: u32,
    /// What is known of the app's versions.
    pub versions: Versions<'a>,
    /// Random bits that choose which two candidates are compared.
    pub dice: u64,
}

/// A request's place among those that wait here for a free place: see
/// [`FairQueue`](crate::queue::FairQueue).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Queued {
    /// It is another request's turn.
    pub behind: bool,
    /// It had to give way to a request of another client.
    pub gave_way: bool,
    /// If the queue is full, a request of another client gives way to it.
    pub displaces: bool,
    /// It has had its turn here: another peer that has no free place lets it wait there.
    pub has_turn: bool,
    /// The next place at the copy here is for a request of the other [`Lane`](crate::queue::Lane).
    pub not_here: bool,
}

/// What to do, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What to do with the request.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// Start the app here as well. After a failed start the app is wanted here all the same, and
    /// starts once the back-off is over.
    pub start_here: bool,
    /// This peer may not or cannot start the app, and no other has it ready or starting: ask this
    /// one to start it as well.
    pub ask_to_start: Option<PeerId>,
    /// The request's pinned session is lost, and a new one begins; this is the peer that had made
    /// the lost one.
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
    /// Keep it until anything changes, then decide again; at the latest after `at_most`.
    Wait {
        /// How much longer it may wait.
        at_most: Duration,
    },
    /// Answer that it cannot be served.
    Refuse(Refusal),
}

/// How one of several ready peers was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// There was only this one.
    Only,
    /// The others are of another zone, draining or suspect, and this one is not.
    BetterPlaced,
    /// The other one drawn is hot, or busier.
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
    /// Nothing known distinguishes the two drawn.
    Drawn,
}

/// The rank of a peer among candidates, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Alive, and in this zone.
    SameZone,
    /// Alive, in another zone.
    OtherZone,
    /// About to leave: it still serves, which is better than waiting.
    Draining,
    /// Silent: better than no peer.
    Suspect,
}

/// Why a decision was made. `Display` gives one sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The app is ready here.
    ReadyHere,
    /// The app is ready here, and no other peer is better: a draining peer serves what it can.
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
        /// Their common standing.
        standing: Standing,
        /// Why this one.
        choice: Choice,
        /// The peer that was tried before, if one was.
        after: Option<PeerId>,
        /// It is ready here as well, but this peer is about to leave.
        leaving: bool,
    },
    /// The app is ready nowhere within reach; the copy here is starting.
    StartingHere {
        /// How long until it should be ready.
        eta: Option<Duration>,
    },
    /// The app is ready nowhere within reach; a copy elsewhere is starting.
    StartingElsewhere {
        /// The peer whose copy should be ready first.
        peer: PeerId,
        /// How long until then.
        eta: Option<Duration>,
    },
    /// The copy here is busy; another one is less busy.
    BusyHere {
        /// Where.
        peer: PeerId,
        /// Requests in flight here.
        in_flight: u32,
        /// Requests in flight there, as far as is known.
        other: u32,
    },
    /// The copy here is older than one that has served the session; the copy there is not.
    NewerThere {
        /// Where.
        peer: PeerId,
        /// The newest version that has served the session.
        served: AppVersion,
    },
    /// A version that this peer has not heard of has served the session: its news must be on their
    /// way.
    UnheardVersion {
        /// That version.
        served: AppVersion,
    },
    /// Every copy within reach serves as many requests as it may.
    BusyEverywhere,
    /// So it is, and this request has had its turn here, or needs none: it waits for a place there,
    /// among the requests that came by other peers.
    TurnThere {
        /// Where.
        peer: PeerId,
        /// Requests in flight there, as far as is known.
        in_flight: u32,
    },
    /// The app is ready nowhere within reach; the last start here failed, and the next one is
    /// scheduled.
    BackingOff {
        /// How long until it begins.
        starts_in: Duration,
    },
    /// The app is ready nowhere, and this peer may not or cannot start it: another one has to.
    NobodyStarts,
    /// The refusal has the reason.
    Refused(Refusal),
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
            Self::BusyHere { .. } => "busy_here",
            Self::NewerThere { .. } => "newer_there",
            Self::UnheardVersion { .. } => "unheard_version",
            Self::BusyEverywhere => "busy_everywhere",
            Self::TurnThere { .. } => "turn_there",
            Self::BackingOff { .. } => "backing_off",
            Self::NobodyStarts => "nobody_starts",
            Self::Refused(refusal) => refusal.label(),
        }
    }
}

/// What to do with one request, and why.
#[must_use]
pub fn decide(q: &Question<'_>) -> Decision {
    match q.arrived {
        Arrived::AtFrontDoor => versions::never_back(q).unwrap_or_else(|| at_front_door(q)),
        Arrived::ByHop => by_hop(q),
    }
}

/// The entry peer chose this peer: the request gets the copy here, or is refused (I11). A hop starts nothing here: its entry peer starts its own copy, or asks for this one explicitly.
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
    let start_here = starts_here(q);
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
            Pinned::Here if is_full_here(q) || is_behind(q) => return wait_for_place(q),
            Pinned::Here => return decision(Action::Serve, Reason::PinnedHere, None),
            Pinned::There if is_behind(q) || is_full_there(q, pin.peer) => {
                if let Some((to, reason)) = turn_there(q, |c| c.peer == pin.peer) {
                    return decision(Action::Hop { to }, reason, None);
                }
                return Decision { start_here, ..wait_for_place(q) };
            }
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
    let ready_there = |c: &Candidate<'_>| c.state == AppState::Ready;
    if is_behind(q) && (ready_here || q.candidates.iter().any(ready_there)) {
        if let Some((to, reason)) = turn_there(q, |_| !ready_here) {
            return decision(Action::Hop { to }, reason, pin_lost);
        }
        return Decision { pin_lost, start_here, ..wait_for_place(q) };
    }
    if ready_here && !q.draining {
        return Decision { pin_lost, ..ready_here_and_stays(q) };
    }
    let other = better_of_two(q);
    if ready_here {
        // Work that begins here while this peer leaves would be cut short.
        let stays = |reason: &Reason| match reason {
            Reason::ReadyThere { standing, .. } => *standing <= Standing::OtherZone,
            _ => false,
        };
        return match other.filter(|(_, reason)| stays(reason)) {
            Some((to, reason)) => decision(Action::Hop { to }, reason, pin_lost),
            None if is_full_here(q) => Decision { pin_lost, ..wait_for_place(q) },
            None => decision(Action::Serve, Reason::ReadyHereDraining, pin_lost),
        };
    }
    if let Some((to, reason)) = other {
        return decision(Action::Hop { to }, reason, pin_lost);
    }
    if q.candidates.iter().any(|c| c.state == AppState::Ready && is_full(q, c)) {
        if let Some((to, reason)) = turn_there(q, |_| true) {
            return decision(Action::Hop { to }, reason, pin_lost);
        }
        return Decision { pin_lost, start_here, ..wait_for_place(q) };
    }
    Decision { pin_lost, ..wait_or_refuse(q, start_here) }
}

/// Whether the app starts here for this request. A request that waits for a copy to stop may start
/// the next one meanwhile.
fn starts_here(q: &Question<'_>) -> bool {
    matches!(q.local.state, AppState::Cold | AppState::Stopping)
        && q.app.start != StartMode::Never
        && !q.draining
        && !q.never_wakes
}

/// The copy here is ready, and this peer stays: it serves unless it is full, or hot while another
/// copy is less busy.
fn ready_here_and_stays(q: &Question<'_>) -> Decision {
    let is_full = is_full_here(q);
    let is_slow = q.local.latency_us == 0 || q.local.latency_us >= HOT_LATENCY_US;
    let is_hot = q.local.awaiting >= HOT_AWAITING && is_slow;
    let serve = Decision {
        action: Action::Serve,
        reason: Reason::ReadyHere,
        start_here: false,
        ask_to_start: None,
        pin_lost: None,
    };
    if !is_full && !is_hot {
        return serve;
    }
    let load = |c: &Candidate<'_>| known_load(c).unwrap_or(0);
    let less_busy = q
        .candidates
        .iter()
        .filter(|c| c.state == AppState::Ready && may_try(q, c.peer) && !self::is_full(q, c))
        .filter(|c| standing_of(c) <= Standing::OtherZone)
        .filter(|c| is_full || load(c).saturating_add(HOT_MARGIN) <= q.local.awaiting)
        .min_by_key(|c| (load(c), standing_of(c), c.latency_us.unwrap_or(u32::MAX)));
    match less_busy {
        Some(c) => {
            let (peer, in_flight) = (c.peer.clone(), q.local.in_flight);
            let reason = Reason::BusyHere { peer: peer.clone(), in_flight, other: load(c) };
            Decision { action: Action::Hop { to: peer }, reason, ..serve }
        }
        None if is_full => wait_for_place(q),
        None => serve,
    }
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
        // Where the copy here is gone, the session in its memory is gone with it.
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
/// (Wydrowski and others, "Load is not what you should balance", arXiv 2312.10172, section 4): of
/// two hot ones, the less busy; else a cold one rather than a hot one; of two cold ones, the
/// faster. Departures: load comes with news instead of probes, and counts only while it is fresh; a
/// candidate of unknown load is neither hot nor busy; and no standing is mixed with a better one.
fn better_of_two(q: &Question<'_>) -> Option<(PeerId, Reason)> {
    let eligible =
        |c: &&Candidate<'_>| c.state == AppState::Ready && may_try(q, c.peer) && !is_full(q, c);
    let standing = q.candidates.iter().filter(eligible).map(standing_of).min()?;
    let pool = || q.candidates.iter().filter(eligible).filter(move |c| standing_of(c) == standing);
    let among = pool().count();
    let (first, choice) = if among == 1 {
        let is_only = q.candidates.iter().filter(eligible).count() == 1;
        (pool().next()?, if is_only { Choice::Only } else { Choice::BetterPlaced })
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
        compare(a, b, hot)
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

/// The load in its latest news, and at least what it serves for this peer.
fn known_load(c: &Candidate<'_>) -> Option<u32> {
    let reported = c.load_age.filter(|age| *age <= LOAD_FRESH_FOR).map(|_| c.in_flight);
    reported.max((c.ours > 0).then_some(c.ours))
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
    is_hot: impl Fn(&Candidate<'_>) -> bool,
) -> (&'a Candidate<'a>, Choice) {
    let loads = known_load(a).zip(known_load(b));
    let less_busy = |won: &'a Candidate<'a>, lost: &Candidate<'_>| {
        let load = |c| known_load(c).unwrap_or(0);
        (won, Choice::LessBusy { in_flight: load(won), other: load(lost) })
    };
    match (is_hot(a), is_hot(b)) {
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

/// No ready peer is left to try.
fn wait_or_refuse(q: &Question<'_>, start_here: bool) -> Decision {
    // A draining peer gives up its own start, and counts on none.
    let starting_here = start_here || (q.local.state == AppState::Starting && !q.draining);
    let starting = |c: &&Candidate<'_>| c.state == AppState::Starting;
    let key = |c: &Candidate<'_>| (c.suspect, c.eta.unwrap_or(Duration::MAX));
    let elsewhere = q.candidates.iter().filter(starting).min_by_key(|c| key(c));
    let here = q.local.eta.filter(|_| !q.draining && q.app.start != StartMode::Never);
    let best_eta = q.candidates.iter().filter(starting).filter_map(|c| c.eta).chain(here).min();
    let retry_after = best_eta.unwrap_or(RETRY_AFTER_DEFAULT);

    if q.never_wakes {
        let refusal = Refusal::NotWoken { retry_after };
        let (action, reason) = (Action::Refuse(refusal.clone()), Reason::Refused(refusal));
        return Decision { action, reason, start_here: false, ask_to_start: None, pin_lost: None };
    }
    let nobody_starts = !starting_here && elsewhere.is_none();
    let ask_to_start = nobody_starts.then(|| first_able(q)).flatten();
    let failed = nobody_starts && q.local.state == AppState::Failed && ask_to_start.is_none();
    // Nobody knows when an unwell copy serves again; the end of a back-off is known.
    let left = q.app.max_wait.saturating_sub(q.waited);
    let again = q.local.starts_in.unwrap_or_default();
    let in_vain = q.app.start == StartMode::Never
        || q.draining
        || q.failed_starts >= FAILED_STARTS_MAX
        || again > left;
    let in_vain_there = fails_elsewhere(q, left);
    let reason = if failed && in_vain {
        Reason::Refused(Refusal::StartFailed { retry_after })
    } else if nobody_starts && q.draining {
        Reason::Refused(Refusal::Draining)
    } else if nobody_starts && is_paused_everywhere(q) {
        Reason::Refused(Refusal::Paused { retry_after: RETRY_AFTER_PAUSED })
    } else if let (true, None, Some(retry_after)) = (nobody_starts, &ask_to_start, in_vain_there) {
        let paused = q.local.state == AppState::Paused;
        Reason::Refused(Refusal::FailsElsewhere { paused, retry_after })
    } else if nobody_starts && !failed && !q.tried.is_empty() && ask_to_start.is_none() {
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
            _ if failed => Reason::BackingOff { starts_in: again },
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

/// A request that ended at one peer without a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempted {
    /// Its method is safe (RFC 9110 section 9.2.1).
    pub is_safe: bool,
    /// It carries an `Idempotency-Key`.
    pub has_key: bool,
    /// What the app changes beside its session.
    pub effects: EffectsMode,
    /// Its session is portable.
    pub is_portable: bool,
    /// An app may have received a byte of it.
    pub may_have_reached_app: bool,
}

/// Whether such a request may be run again, on another peer: if no byte of it can have reached an
/// app; or if it is safe; or, if the session is portable, when everything that it did to its
/// session is void with the attempt (I12). That holds for an app that changes nothing but its
/// session. It also holds for an app without commands to change its session by, if the request
/// carries a key: then the session's register applies it once.
#[must_use]
pub fn may_retry(attempted: Attempted) -> bool {
    let Attempted { is_safe, has_key, effects, is_portable, may_have_reached_app } = attempted;
    let is_void = match effects {
        EffectsMode::SessionOnly => true,
        EffectsMode::Anything => has_key,
        EffectsMode::ByCommand => false,
    };
    !may_have_reached_app || is_safe || (is_void && is_portable)
}
