//! One request of a portable session at its *entry peer*: where its session is, which peer to send
//! it to, when to take the session over, when it continues under another id, when it is lost, and
//! when to stop trying.
//!
//! Owns what one request has learnt on its way ([`Errand`]), and the few rules that peers share
//! about sessions that they do not own yet: which peers are asked to hold a new one
//! ([`first_members`]), which may go on without a majority ([`alone`]), and how a peer treats
//! another's request that was forwarded to it ([`answer_forward`]). Refuses to know how a request
//! travels, where its app runs, and what is committed: the caller reports the outcome of an attempt
//! with [`Errand::ended`]. It draws no random bits: a back-off is a bound, below which the caller
//! draws.
//!
//! ```text
//!              ┌───────────────────────── Again ─────────────────────────┐
//!              ▼                                                         │
//!  new ──▶ next ─▶ Begin ─────┐                                          │
//!              ├─▶ Forward ───┼─▶ served                                 │
//!              ├─▶ AtOwner ───┴─▶ ended ─▶ TryAlone ─▶ tried_alone ──────┤
//!              └─▶ GiveUp             │                                  │
//!                                     └─▶ Refuse, OutcomeUnknown, Again ─┘
//! ```
//!
//! A request's belief about the owner is a hint, and so is every answer that it gets: going to the
//! wrong peer costs a round, and a needless takeover costs a ballot. Neither can harm the session,
//! whose register alone decides (I16). What this file has to guarantee is an end: at most
//! [`ROUNDS_MAX`] attempts, none of which repeats a run that may have happened and may not be
//! repeated (I12).

mod anew;
mod at_owner;
mod members;
mod relayed;
mod still;

use alloc::vec::Vec;
use core::time::Duration;

use super::census::Census;
use super::message::{Config, Members};
use super::{Failure, Otherwise, Session};
use crate::ids::{Ballot, Incarnation, PeerId, SessionId, WallTime};
use crate::view::{Liveness, View};

pub use at_owner::{
    Alone, Enter, Forwarded, Rerun, Reruns, alone, answer_forward, fence_at, is_cut_off,
    is_elsewhere, is_for_entry, tries_alone, way_on,
};
pub use members::{first_members, members_by_key, members_to_begin};
pub use relayed::Relayed;
pub use still::{STOOD_STILL, Stillness};

/// How often a request is forwarded, or takes over or begins a session, before it is refused.
pub const ROUNDS_MAX: u32 = 8;
/// How often a session that a key names may continue under another id: once for each time that its
/// majority was gone, until its key is forgotten.
const FORKS_MAX: u32 = 4;
/// How many peers a request may be forwarded through on its way to its session's owner.
pub const FORWARDS_MAX: u8 = 3;
/// The back-off after the first attempt that failed because of another peer's claim; it doubles
/// with each round, up to 16 times this.
pub const BACK_OFF: Duration = Duration::from_millis(20);

/// How long a peer is newborn ([`Here::newborn`]): gossip has reached everyone several times by then.
pub const NEWBORN_FOR: Duration = Duration::from_secs(3);

const BACK_OFF_DOUBLINGS_MAX: u32 = 4;

/// The properties of a request that stay the same from one attempt to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Whether the client gave it a key.
    pub keyed: bool,
    /// The number that the client's token named when the request arrived.
    pub seen: Option<u64>,
    /// Whether it may run again after an attempt of unknown outcome: see
    /// [`may_retry`](crate::route::may_retry) (I12).
    pub may_repeat: bool,
    /// How many more peers may forward it.
    pub hops_left: u8,
}

/// A session as a token names it: a hint of where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The session.
    pub sid: SessionId,
    /// Its members when the token was made.
    pub cfg: Config,
    /// Its owner when the token was made.
    pub owner: Incarnation,
    /// The number of its newest chosen record; 0 if it was empty.
    pub n: u64,
}

/// A session whose id follows from a key: any peer finds it without a token, and if no peer knows
/// of it, it does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByKey {
    /// The session.
    pub sid: SessionId,
    /// Whether the request creates the session if it does not exist.
    pub begins: bool,
}

/// The state of the entry peer's own machine for the session: the default if it has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    /// This peer owns it, or is about to.
    pub owns: bool,
    /// The highest claim to it that this peer remembers.
    pub claim: Option<Ballot>,
    /// This peer holds a record of it.
    pub holds: bool,
    /// This peer owns it, but does not hear a majority of its members.
    pub cut_off: bool,
}

impl Look {
    /// The state of `machine`.
    #[must_use]
    pub fn of(machine: &Session) -> Self {
        let owns = machine.is_owner() || machine.is_taking_over();
        Self { owns, claim: machine.claim(), holds: machine.version() > 0, cut_off: false }
    }

    /// As [`Look::of`], with `census` for which peers are heard.
    #[must_use]
    pub fn among(machine: &Session, census: &Census) -> Self {
        let heard = |peer| !census.silent.contains(&peer);
        let reaches = machine.config().is_none_or(|cfg| cfg.sets().all(|set| set.majority(heard)));
        Self { cut_off: machine.is_owner() && !reaches, ..Self::of(machine) }
    }
}

/// This peer, at the moment of a decision.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// This process.
    pub me: Incarnation,
    /// It is about to leave.
    pub draining: bool,
    /// It began a moment ago, or was suspended until then ([`Stillness`]), and may not have heard yet
    /// of every peer that knows of a session.
    pub newborn: bool,
    /// It hears most of the others: see [`hears_most`].
    pub hears_most: bool,
    /// It is full: it should hold no session that it does not hold yet.
    pub full: bool,
    /// Its beliefs about the others.
    pub view: &'a View,
    /// The wall clock, for the stamp of a configuration.
    pub wall: WallTime,
}

impl Here<'_> {
    fn lives(&self, incarnation: Incarnation) -> bool {
        incarnation == self.me || self.view.by_incarnation(&incarnation).is_some()
    }

    /// Whether the process is alive and was heard of lately.
    fn hears(&self, peer: Incarnation) -> bool {
        let belief = self.view.by_incarnation(&peer);
        peer == self.me || belief.is_some_and(|it| it.alive == Liveness::Alive)
    }

    /// Whether this peer hears any other.
    fn hears_anyone(&self) -> bool {
        self.view.live_peers().any(|(_, belief)| belief.alive == Liveness::Alive)
    }

    /// Whether this peer does not hear a majority of the members in `cfg`, although so many may be
    /// alive: the links to them may be down.
    fn is_cut_off_from(&self, cfg: &Config) -> bool {
        let of_all = |some: &dyn Fn(Incarnation) -> bool| cfg.sets().all(|set| set.majority(some));
        !of_all(&|peer| self.hears(peer)) && of_all(&|peer| self.lives(peer))
    }

    /// Whether a majority of every set of members in `cfg` is alive, was heard of lately and stays:
    /// nobody replaces the members of an empty session.
    fn reaches(&self, cfg: &Config) -> bool {
        let leaves = |peer| {
            let belief = self.view.by_incarnation(&peer);
            belief.map_or(self.draining, |it| it.news.draining)
        };
        cfg.sets().all(|set| set.majority(|peer| self.hears(peer) && !leaves(peer)))
    }
}

/// Why the session is to move to this peer after the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moves {
    /// Its owner is about to leave.
    OwnerDrains,
    /// Its client keeps arriving here (I17).
    ClientStays,
}

/// Why this peer takes a session over rather than forward the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeOver {
    /// The owner is gone, or has not been heard for too long.
    OwnerSilent,
    /// The peer that was asked is not the owner and knows no other living one; or the token names
    /// this very process, which holds nothing of the session.
    NobodyElse,
    /// A key names it, and this peer does not know its owner.
    Unknown,
}

/// What to do with the request next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Create a session for it, with [`first_members`], and serve it at this peer.
    Begin,
    /// Forward it to the session's owner.
    Forward {
        /// The owner's peer; if this one does not hear it, another that may.
        to: PeerId,
        /// The owner.
        owner: Incarnation,
        /// How many more peers may forward it from there.
        hops_left: u8,
        /// Whether the session is to move to this peer afterwards.
        moves: Option<Moves>,
    },
    /// Have another peer find the session's owner, or take it over: this one does not hear the
    /// owner, or too few peers at all.
    Relay {
        /// That peer.
        to: PeerId,
        /// How many more peers may forward it from there.
        hops_left: u8,
        /// Whether the request creates the session if it does not exist.
        begins: bool,
    },
    /// Serve it at this peer: as the session's owner, or after taking it over.
    AtOwner {
        /// Why it has to be taken over, if it has to be.
        take_over: Option<TakeOver>,
    },
    /// It has used up its attempts.
    GiveUp,
}

/// How an attempt ended that served nothing, and that does not end the request by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The peer asked does not own the session, or could not be reached; with the highest claim
    /// that it reported, if any.
    Elsewhere(Option<Ballot>),
    /// The session's machine refused it: at this peer, or at its owner ([`is_for_entry`]).
    Failed(Failure),
}

/// How the request proceeds after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Continue with [`Errand::next`], after a random span below `back_off`.
    Again {
        /// Why another attempt makes sense.
        because: Because,
        /// The bound of the span to wait; zero: at once.
        back_off: Duration,
    },
    /// No majority of the session's members is left: continue from this peer's own copy if
    /// [`alone`] allows it, and report with [`Errand::tried_alone`].
    TryAlone(Failure),
    /// Report this failure to the client.
    Refuse(Failure),
    /// Its body was sent and cannot be sent again: the client learns that the outcome is unknown.
    OutcomeUnknown(Because),
}

/// Why a request is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// The session that was created for it failed, and no token of it had left.
    NotBegun,
    /// Another peer may own the session.
    OwnedElsewhere,
    /// The session continues without its majority, under this id.
    Forked(SessionId),
    /// Too many of its holders are gone: a new one begins.
    Lost,
    /// Its id is no longer valid: a new one begins.
    Ended,
    /// Another peer took it over while the request ran, and knows whether it was applied.
    Deposed,
    /// It looks lost from here, but this peer is newborn, or has learnt since of others that it did
    /// not ask: it cannot tell yet.
    NoWitness,
}

/// A peer that reported that it does not own the session, or could not be reached. A peer's ballots
/// only rise, and exceed all that it knows: those up to the highest known then have failed, and a
/// higher one is a new attempt.
#[derive(Debug, Clone, Copy)]
struct Disclaimed {
    by: Incarnation,
    up_to: Option<Ballot>,
}

/// One request on its way to its session's owner. See the module's documentation.
#[derive(Debug, Clone)]
pub struct Errand {
    asked: Asked,
    /// Its session; absent until one is created for it, or while its key names it.
    named: Option<Named>,
    key: Option<ByKey>,
    /// The highest claim that the last peer asked has reported.
    reported: Option<Ballot>,
    disclaimed: Vec<Disclaimed>,
    /// The peer that the current attempt was sent to, and the claim that led there: none if that
    /// was the token.
    sent_to: Option<(Incarnation, Option<Ballot>)>,
    /// An attempt ended at a peer that does not own the session: the token's hint is used up.
    led_on: bool,
    /// Whether the session is to move here because its client stays; decided once.
    stays: Option<bool>,
    /// The peers that this one knew when the current attempt began.
    witnesses: Vec<Incarnation>,
    /// An attempt ran whose outcome is unknown.
    may_have_run: bool,
    /// How often its session turned out to continue under another id.
    forks: u32,
    lost: bool,
    /// The session that its token names had been ended on purpose.
    ended: bool,
    rounds: u32,
    /// When it was first attempted.
    began: Option<WallTime>,
    relay: Relay,
    /// Whether one of two members was asked to go on without the other, and which peer to ask for
    /// that next.
    survivor_asked: bool,
    ask_survivor: Option<PeerId>,
    /// Another peer was asked to forward it to an owner that this one does not hear.
    by_way: bool,
    /// The peer that its client reached, if that peer asked this one to find the session's owner.
    for_another: Option<Incarnation>,
}

/// Whether another peer is asked to find the session's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relay {
    /// Allowed, if necessary.
    Possible,
    /// Next.
    Wanted,
    /// Done, or this peer is the one that was asked.
    Done,
}

impl Errand {
    /// A request that arrived with a token that names a session, or with none.
    #[must_use]
    pub fn new(asked: Asked, named: Option<Named>) -> Self {
        Self {
            asked,
            named,
            key: None,
            reported: None,
            disclaimed: Vec::new(),
            sent_to: None,
            led_on: false,
            stays: None,
            witnesses: Vec::new(),
            may_have_run: false,
            forks: 0,
            lost: false,
            ended: false,
            rounds: 0,
            began: None,
            relay: Relay::Done,
            survivor_asked: false,
            ask_survivor: None,
            by_way: false,
            for_another: None,
        }
    }

    /// The same, but another peer may be asked to find the session's owner: no peer goes on without
    /// a majority, and this peer may be the one that does not hear it.
    #[must_use]
    pub fn that_may_be_relayed(self) -> Self {
        Self { relay: Relay::Possible, ..self }
    }

    /// A request for the session that a key names.
    #[must_use]
    pub fn by_key(asked: Asked, key: ByKey) -> Self {
        Self { key: Some(key), relay: Relay::Possible, ..Self::new(asked, None) }
    }

    /// Whether it has to wait until this peer hears another, or is no longer newborn. A peer that was
    /// started a moment ago, or was suspended, and hears no other yet would find that nobody knows of
    /// the session, and begin it beside those that do.
    #[must_use]
    pub fn must_meet(&self, here: &Here<'_>) -> bool {
        self.key.is_some() && self.named.is_none() && here.newborn && !here.hears_anyone()
    }

    /// The id of the session it is about, if it has one yet.
    #[must_use]
    pub fn sid(&self) -> Option<SessionId> {
        self.named.as_ref().map(|named| named.sid).or(self.key.map(|key| key.sid))
    }

    /// How the search for the session proceeds if this peer knows no owner and a key names it:
    /// `members` are those to begin it with if no peer knows of it.
    #[must_use]
    pub fn otherwise(&self, members: impl FnOnce(SessionId) -> Config) -> Option<Otherwise> {
        let key = self.key?;
        if self.named.is_some() {
            return Some(Otherwise::Absent);
        }
        Some(if key.begins { Otherwise::Begin(members(key.sid)) } else { Otherwise::Absent })
    }

    /// The session to look at for [`Errand::next`].
    #[must_use]
    pub fn session(&self) -> Option<&Named> {
        self.named.as_ref()
    }

    /// The configuration in which something was chosen if anything ever was: that of the client's
    /// token, for [`Session::take_over`]. If the session continues under another id, the token says
    /// nothing: its members never heard of that id, and their silence would make it look empty.
    #[must_use]
    pub fn token(&self) -> Option<&Config> {
        self.named.as_ref().filter(|_| self.forks == 0).map(|named| &named.cfg)
    }

    /// The number to pin for the next attempt. If the entry peer has just named the request, it
    /// cannot have been applied before; that has to be shown only after an attempt of unknown
    /// outcome, where `may_have_run` says whether a hop was one. A client's own key may be a repeat
    /// from the start. In a session that is created for the request nothing was applied yet, and
    /// the numbers of a former one mean nothing.
    #[must_use]
    pub fn seen(&self, may_have_run: bool) -> Option<u64> {
        let shown = self.asked.keyed || self.may_have_run || may_have_run;
        self.asked.seen.filter(|_| shown && self.sid().is_some())
    }

    /// Whether it is too old to be attempted again after an attempt of unknown outcome, of which
    /// `may_have_run` is as for [`Errand::seen`]: it may have been applied to what has ended and been
    /// forgotten since, so that nobody could tell any more. That takes `forget_grace` at least, and no
    /// request lasts for as long unless this process was suspended.
    #[must_use]
    pub fn is_too_old(&self, may_have_run: bool, forget_grace: Duration, here: &Here<'_>) -> bool {
        let unsure = self.may_have_run || may_have_run;
        let is_old = |began: WallTime| began.after(forget_grace / 2) <= here.wall;
        unsure && self.key.is_some() && self.began.is_some_and(is_old)
    }

    /// Whether an attempt of it ran whose outcome is unknown.
    #[must_use]
    pub fn may_have_run(&self) -> bool {
        self.may_have_run
    }

    /// Whether its session is lost, and was replaced by a new one: the client learns of it.
    #[must_use]
    pub fn lost(&self) -> bool {
        self.lost && self.named.is_none()
    }

    /// Whether its session was ended on purpose, and replaced by a new one: its client, or another
    /// with its cookie, may have got a newer one meanwhile.
    #[must_use]
    pub fn ended_before(&self) -> bool {
        self.ended && self.named.is_none()
    }

    /// Whether its session continues without its majority, under another id: the client learns of
    /// it.
    #[must_use]
    pub fn forked(&self) -> bool {
        self.forks > 0 && self.named.is_some()
    }

    /// Decides the next attempt. `look` is the state of this peer's machine for
    /// [`Errand::session`]; `client_stays` counts the request as one that arrived at a peer that
    /// does not own its session, and returns whether that should move (I17): it is called at most
    /// once for each session of the request, and only if the request is forwarded.
    pub fn next(
        &mut self,
        look: Look,
        here: &Here<'_>,
        client_stays: impl FnOnce() -> bool,
    ) -> Step {
        if self.rounds == ROUNDS_MAX {
            return Step::GiveUp;
        }
        self.rounds += 1;
        self.began.get_or_insert(here.wall);
        self.sent_to = None;
        self.witnesses = here.view.live_peers().map(|(_, it)| it.news.incarnation).collect();
        if let Some(cfg) = self.void(look, here) {
            // Another peer may hear members that only this one does not, and the client's next
            // request may write there at the same time: it would use another session than this one.
            if here.is_cut_off_from(&cfg)
                && let Some(step) = self.relay(None, here)
            {
                return step;
            }
            self.named = None;
        }
        if self.sid().is_none() {
            return Step::Begin;
        }
        if let Some(step) = self.relay_to_survivor() {
            return step;
        }
        let relays = look.cut_off && self.relays_first(here);
        if (relays || self.relay == Relay::Wanted)
            && let Some(step) = self.relay(None, here)
        {
            return step;
        }
        if look.owns {
            return Step::AtOwner { take_over: None };
        }
        // A session that moves fast may have moved again, even back to a peer that was asked before.
        let claims = [self.reported, look.claim].into_iter().flatten();
        let asks = |peer: Incarnation| self.for_another == Some(peer);
        let leads_on = |claim: &Ballot| !self.came_to_nothing(claim) && !asks(claim.proposer);
        let claim = claims.filter(leads_on).max();
        let named = self.named.as_ref().filter(|_| !self.led_on).map(|named| named.owner);
        let named = named.filter(|owner| !asks(*owner));
        let owner = match (claim.map(|claim| claim.proposer).or(named), self.led_on) {
            (Some(owner), _) => owner,
            (None, false) => return self.take_over(TakeOver::Unknown, &look, here),
            (None, true) => return self.take_over(TakeOver::NobodyElse, &look, here),
        };
        if owner == here.me {
            return self.take_over(TakeOver::NobodyElse, &look, here);
        }
        // A suspect owner may be alive: to wait for it costs more than a takeover, to ask another less.
        let belief = here.view.by_incarnation(&owner);
        let Some(belief) = belief.filter(|belief| belief.alive == Liveness::Alive) else {
            // A peer that hears both spares the two a duel. The members of a token find the session
            // sooner, if this peer hears a majority of them.
            let may_live = belief.is_some().then_some(owner);
            let relays = may_live.filter(|_| self.relays_first(here));
            let relay = relays.and_then(|owner| self.relay(Some(owner), here));
            let relay = relay.or_else(|| self.by_way_of_another(may_live?, claim, here));
            return relay.unwrap_or_else(|| self.take_over(TakeOver::OwnerSilent, &look, here));
        };
        let Some(hops_left) = self.asked.hops_left.checked_sub(1) else {
            return self.take_over(TakeOver::NobodyElse, &look, here);
        };
        let moves = if here.draining {
            // This peer would have to give it away at once.
            None
        } else if belief.news.draining {
            Some(Moves::OwnerDrains)
        } else {
            // One request is one arrival, whichever owner it reaches in the end. A second call
            // would return false, since a move was ordered just now, by a peer that was no owner.
            let stays = *self.stays.get_or_insert_with(client_stays);
            stays.then_some(Moves::ClientStays)
        };
        self.sent_to = Some((owner, claim));
        Step::Forward { to: belief.news.peer.clone(), owner, hops_left, moves }
    }

    /// Decides how the request proceeds after an attempt. `sendable` says whether its body can be
    /// sent (again).
    pub fn ended(&mut self, end: End, sendable: bool, here: &Here<'_>) -> After {
        if self.sid().is_none() {
            return match end {
                End::Failed(failure) if !self.may_go_on(&failure) => After::Refuse(failure),
                // Another one would have the same members.
                End::Failed(failure @ Failure::NoMajority { .. }) if !here.hears_anyone() => {
                    After::Refuse(failure)
                }
                // No token had left: another session is as good.
                _ => again(Because::NotBegun, Duration::ZERO, sendable),
            };
        }
        let may_follow = self.forks < if self.key.is_some() { FORKS_MAX } else { 1 };
        let mut end = end;
        if end == End::Failed(Failure::Lost { ran: false }) && !self.holds_nothing() {
            let heard_of_more = here
                .view
                .live_peers()
                .any(|(_, it)| !self.witnesses.contains(&it.news.incarnation));
            // A peer that was asked says that only once it is newborn no more itself.
            if here.newborn && self.sent_to.is_none() || heard_of_more {
                self.led_on = true;
                self.reported = None;
                return again(Because::NoWitness, BACK_OFF, sendable);
            }
            if !here.hears_most {
                end = End::Failed(Failure::NoMajority { ran: false });
            }
        }
        match end {
            End::Elsewhere(other) => {
                let suspect = |peer| {
                    let belief = here.view.by_incarnation(&peer);
                    belief.is_some_and(|it| it.alive == Liveness::Suspect)
                };
                // The link that it was sent over broke: the owner itself has said nothing.
                if other.is_none() && !self.by_way && self.sent_to.is_some_and(|it| suspect(it.0)) {
                    return again(Because::OwnedElsewhere, Duration::ZERO, sendable);
                }
                if let Some((by, claim)) = self.sent_to {
                    self.disclaimed.push(Disclaimed { by, up_to: claim.max(other) });
                }
                self.led_on = true;
                self.reported = other;
                // Two peers that both want the session give each other time.
                let doublings = self.rounds.saturating_sub(1).min(BACK_OFF_DOUBLINGS_MAX);
                again(Because::OwnedElsewhere, BACK_OFF * (1 << doublings), sendable)
            }
            // Another peer may reach the majority that this one does not.
            End::Failed(Failure::NoMajority { ran: false })
                if self.named.is_none() && self.can_relay(here) =>
            {
                self.relay = Relay::Wanted;
                again(Because::OwnedElsewhere, Duration::ZERO, sendable)
            }
            End::Failed(
                failure @ (Failure::NoMajority { ran: false } | Failure::Lost { ran: false }),
            ) if may_follow => After::TryAlone(failure),
            // A peer that still held it continued without the others, under another id.
            End::Failed(Failure::WentOn { into, by }) if may_follow && here.lives(by) => {
                self.go_on_as(into, by, here, sendable)
            }
            End::Failed(failure) => self.failed(failure, sendable),
        }
    }

    /// This peer continued from its own copy as `into`, or may not. `failure` is that of
    /// [`After::TryAlone`], and `cfg` the configuration that this peer's machine knows by now.
    pub fn tried_alone(
        &mut self,
        failure: Failure,
        into: Option<SessionId>,
        cfg: Option<&Config>,
        sendable: bool,
        here: &Here<'_>,
    ) -> After {
        let failure = self.unless_survived(failure, into.is_some(), cfg, here);
        match into {
            Some(sid) if self.is_named_by_key(sid) => {
                self.led_anew();
                again(Because::Forked(sid), Duration::ZERO, sendable)
            }
            Some(sid) => self.go_on_as(sid, here.me, here, sendable),
            None if self.ask_survivor.is_some() => {
                again(Because::OwnedElsewhere, Duration::ZERO, sendable)
            }
            None if sendable
                && failure == (Failure::NoMajority { ran: false })
                && self.can_relay(here) =>
            {
                self.relay = Relay::Wanted;
                again(Because::OwnedElsewhere, Duration::ZERO, sendable)
            }
            None => self.failed(failure, sendable),
        }
    }

    fn go_on_as(
        &mut self,
        sid: SessionId,
        owner: Incarnation,
        here: &Here<'_>,
        sendable: bool,
    ) -> After {
        let because = Because::Forked(sid);
        self.forks += 1;
        let former = self.named.take();
        let n = former.as_ref().map_or(0, |named| named.n);
        let first = || Config { now: Members::first(here.wall.0, [owner]), prev: None };
        let cfg = former.filter(|_| owner == here.me).map_or_else(first, |named| named.cfg);
        self.named = Some(Named { sid, cfg, owner, n });
        self.led_anew();
        again(because, Duration::ZERO, sendable)
    }

    fn failed(&mut self, failure: Failure, sendable: bool) -> After {
        match failure {
            // Another session under the same key does not begin silently: the caller gets the
            // failure.
            Failure::Lost { ran: false } | Failure::WentOn { .. } if self.key.is_some() => {
                After::Refuse(Failure::Lost { ran: false })
            }
            // What it went on as is over and forgotten, and what it was before has no majority.
            Failure::Absent if self.forks > 0 => After::Refuse(Failure::Lost { ran: false }),
            // It existed a moment ago, as those who read it saw.
            Failure::Absent if self.key.is_some_and(|key| key.begins) => {
                again(Because::NotBegun, Duration::ZERO, sendable)
            }
            Failure::Lost { ran: false } | Failure::WentOn { .. } => {
                // An empty session is no loss.
                self.lost |= self.named.as_ref().is_some_and(|named| named.n > 0);
                self.named = None;
                again(Because::Lost, Duration::ZERO, sendable)
            }
            Failure::Ended if self.key.is_none() => {
                self.ended = true;
                self.named = None;
                again(Because::Ended, Duration::ZERO, sendable)
            }
            // The session's owner knows whether this request was applied.
            Failure::Deposed { to, n } if self.may_go_on(&failure) => {
                // The owner knew what had been chosen before this first attempt.
                if self.key.is_some() && !self.may_have_run {
                    self.asked.seen = self.asked.seen.max(Some(n));
                }
                self.may_have_run = true;
                // It is asked before this peer tries again: the two would only depose each other.
                self.reported = to.or(self.reported);
                again(Because::Deposed, Duration::ZERO, sendable)
            }
            failure => After::Refuse(failure),
        }
    }

    /// The members of a session that was empty, if it cannot be reached from here.
    fn void(&self, look: Look, here: &Here<'_>) -> Option<Config> {
        let named = self.named.as_ref().filter(|_| self.holds_nothing())?;
        // If its owner is alive, it knows whether the session was written since.
        let owner_answers = here.hears(look.claim.map_or(named.owner, |claim| claim.proposer));
        let is_void = (look.owns || !owner_answers) && is_void(&named.cfg, look, here);
        (is_void && self.for_another.is_none()).then(|| named.cfg.clone())
    }

    /// Whether the session that its token names was empty then, and the request need not be
    /// distinguished from a repeat: another session is as good if that one cannot be reached.
    fn holds_nothing(&self) -> bool {
        !self.asked.keyed
            && self.forks == 0
            && self.named.as_ref().is_some_and(|named| named.n == 0)
    }

    /// Whether the proposer of `claim` has reported since that it does not own the session.
    fn came_to_nothing(&self, claim: &Ballot) -> bool {
        let covers = |it: &Disclaimed| it.by == claim.proposer && Some(*claim) <= it.up_to;
        self.disclaimed.iter().any(covers)
    }

    /// Whether a request may be tried again after `failure`, under another session or another
    /// owner: if it did not run, or may run twice (I12). All other failures are answers: another
    /// attempt would get the same, or is for the client to decide.
    fn may_go_on(&self, failure: &Failure) -> bool {
        match failure {
            Failure::NoMajority { ran: false }
            | Failure::Lost { ran: false }
            | Failure::WentOn { .. }
            | Failure::Ended => true,
            Failure::NoMajority { ran: true }
            | Failure::Lost { ran: true }
            | Failure::Deposed { .. } => self.asked.may_repeat,
            Failure::QueueFull
            | Failure::Absent
            | Failure::FingerprintDiffers
            | Failure::KeyInUse
            | Failure::BelowFloor
            | Failure::TooManyRetries
            | Failure::ExecutionFailed
            | Failure::NoRoom => false,
        }
    }
}

/// Whether a session that was empty when its token was made cannot be reached: this peer does not
/// know that it was written since, and too few of its members can be reached to tell. A new one
/// replaces it, and no client learns that anything was lost. A peer that is cut off leaves that to
/// the others, unless the session has so few members that each may go on alone.
#[must_use]
pub fn is_void(cfg: &Config, look: Look, here: &Here<'_>) -> bool {
    let may_tell = here.hears_most || cfg.now.who.len() <= 2;
    may_tell && !look.holds && !here.reaches(cfg)
}

/// Whether a peer hears most of the others that it knows and that are not known to be gone for
/// good. A peer that is cut off from the rest knows least about what the rest still hold.
#[must_use]
pub fn hears_most(view: &View, is_gone: impl Fn(Incarnation) -> bool) -> bool {
    // Usually it hears all of them: then it does not matter which are gone.
    if view.peers().all(|(_, belief)| belief.alive == Liveness::Alive) {
        return true;
    }
    let known = view.peers().filter(|(_, it)| !is_gone(it.news.incarnation));
    let (mut count, mut heard) = (1, 1);
    for (_, belief) in known {
        count += 1;
        heard += usize::from(belief.alive == Liveness::Alive);
    }
    2 * heard > count
}

fn again(because: Because, back_off: Duration, sendable: bool) -> After {
    if sendable { After::Again { because, back_off } } else { After::OutcomeUnknown(because) }
}
