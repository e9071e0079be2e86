//! Requests whose session's owner, or most of whose members, this peer does not hear: which other
//! peer it asks instead, and when; how the asked peer proceeds; and how one member of two is asked
//! to go on without the other.

use alloc::vec::Vec;
use core::time::Duration;

use super::{After, Asked, ByKey, End, Errand, Here, Look, Named, Relay, Step, TakeOver};
use crate::ids::{Ballot, Incarnation, PeerId, SessionId};
use crate::rank;
use crate::session::Failure;
use crate::session::message::Config;
use crate::session::repair::may_count_on;

/// What a peer that was asked by another ([`Errand::relayed_token`]) does after an attempt that
/// served nothing. The peer that the client reached decides about a session that cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relayed {
    /// Continue with [`Errand::next`], after a random span below `back_off`.
    Again {
        /// The bound of the span to wait; zero: at once.
        back_off: Duration,
    },
    /// Continue from this peer's own copy if [`alone`](super::alone) allows it, and report with
    /// [`Errand::relayed_alone`].
    TryAlone(Failure),
    /// Return this failure to the peer that asked, or the attempt's end as it is.
    Tell(Option<Failure>),
}

impl Errand {
    /// As [`Errand::by_key`], for a peer that was asked by another, which does not hear the owner.
    #[must_use]
    pub fn relayed(asked: Asked, key: ByKey) -> Self {
        Self { key: Some(key), ..Self::new(asked, None) }
    }

    /// As [`Errand::relayed`], for the session that the client's token names, asked by `by`. That
    /// peer decides about a session that cannot be had. If `by` owns the session, it does not hear
    /// a majority: it is not asked in turn.
    #[must_use]
    pub fn relayed_token(asked: Asked, named: Named, by: Incarnation) -> Self {
        // A number was pinned only if an attempt may have been applied.
        let may_have_run = !asked.keyed && asked.seen.is_some();
        Self { for_another: Some(by), may_have_run, ..Self::new(asked, Some(named)) }
    }

    /// The session that another peer may be asked for, and whether the request creates it. If it
    /// continues under another id, only this peer knows that id.
    pub(super) fn relayable(&self) -> Option<(SessionId, bool)> {
        match (&self.named, self.key) {
            _ if self.relay == Relay::Done => None,
            (None, Some(key)) => Some((key.sid, key.begins)),
            (Some(named), None) if self.forks == 0 => Some((named.sid, false)),
            _ => None,
        }
    }

    pub(super) fn can_relay(&self, here: &Here<'_>) -> bool {
        self.relay == Relay::Possible && self.relay_to(None, here).is_some()
    }

    pub(super) fn relay_to(&self, owner: Option<Incarnation>, here: &Here<'_>) -> Option<PeerId> {
        let (sid, _) = self.relayable()?;
        relay_of(sid, self.token(), owner, here)
    }

    /// Whether another peer is asked before this one tries: it does not hear a majority of more
    /// than two members, which may be alive. One of two goes on alone if it may.
    pub(super) fn relays_first(&self, here: &Here<'_>) -> bool {
        self.named
            .as_ref()
            .is_none_or(|it| it.cfg.now.who.len() > 2 && here.is_cut_off_from(&it.cfg))
    }

    /// The peer to be asked instead of this one: a living one, and not `owner`, which is not heard.
    pub(super) fn relay(&mut self, owner: Option<Incarnation>, here: &Here<'_>) -> Option<Step> {
        let (_, begins) = self.relayable()?;
        let hops_left = self.asked.hops_left.checked_sub(1)?;
        let to = self.relay_to(owner, here)?;
        self.relay = Relay::Done;
        Some(Step::Relay { to, hops_left, begins })
    }

    /// Takes the session over, for this reason; or asks another peer to, once, if this one is full and does not
    /// hold the session: it would have to hold more than it may.
    pub(super) fn take_over(&mut self, why: TakeOver, look: &Look, here: &Here<'_>) -> Step {
        let relay = (here.full && !look.holds).then(|| self.relay(None, here)).flatten();
        relay.unwrap_or(Step::AtOwner { take_over: Some(why) })
    }

    /// Forwards it to `owner`, which this peer does not hear, by way of a peer that does, or that
    /// may if no peer has reported that yet. An owner that others hear would not know that it was
    /// deposed, and would run requests that it cannot commit. This is tried once: after that the
    /// session is taken over. The owner of a session of two members commits nothing once it no
    /// longer hears this one.
    pub(super) fn by_way_of_another(
        &mut self,
        owner: Incarnation,
        claim: Option<Ballot>,
        here: &Here<'_>,
    ) -> Option<Step> {
        let cfg = self.token().filter(|cfg| cfg.now.who.len() > 2)?;
        if self.for_another.is_some() || self.by_way {
            return None;
        }
        let sid = self.sid()?;
        let hops_left = self.asked.hops_left.checked_sub(1)?;
        // An owner that none of its members hears can commit nothing.
        let mut ways = here.view.ways_to(&owner);
        let heard = ways.find(|(_, belief)| cfg.contains(belief.news.incarnation));
        let to = heard
            .map(|(way, _)| way.clone())
            .or_else(|| relay_of(sid, Some(cfg), Some(owner), here))?;
        self.by_way = true;
        self.sent_to = Some((owner, claim));
        Some(Step::Forward { to, owner, hops_left, moves: None })
    }

    /// Decides how a relayed request proceeds after an attempt; `sendable` as in [`Errand::ended`].
    pub fn relayed_ended(&mut self, end: End, sendable: bool, here: &Here<'_>) -> Relayed {
        let is_ours = match end {
            End::Elsewhere(_) | End::Failed(Failure::Deposed { .. }) => true,
            // It is lost only if everyone was asked, by a peer that hears most of them.
            End::Failed(Failure::Lost { ran: false }) => !here.newborn,
            End::Failed(_) => false,
        };
        if !is_ours {
            return Relayed::Tell(None);
        }
        match self.ended(end, sendable, here) {
            After::Again { back_off, .. } => Relayed::Again { back_off },
            After::TryAlone(failure) => Relayed::TryAlone(failure),
            After::Refuse(_) | After::OutcomeUnknown(_) => Relayed::Tell(None),
        }
    }

    /// As [`Errand::tried_alone`], for a relayed request.
    pub fn relayed_alone(
        &mut self,
        failure: Failure,
        into: Option<SessionId>,
        cfg: Option<&Config>,
        sendable: bool,
        here: &Here<'_>,
    ) -> Relayed {
        let failure = self.unless_survived(failure, into.is_some(), cfg, here);
        match into {
            Some(into) => Relayed::Tell(Some(Failure::WentOn { into, by: here.me })),
            None if self.ask_survivor.is_some() && sendable => {
                Relayed::Again { back_off: Duration::ZERO }
            }
            None => Relayed::Tell(Some(failure)),
        }
    }

    /// How to proceed with a session that looks lost while one of its two members may be alive and
    /// was not asked yet: that member holds every acknowledged change, and may go on alone. It is
    /// asked next, by another peer if this one does not hear it; if no peer can ask it, nobody can
    /// tell whether the session is lost.
    pub(super) fn unless_survived(
        &mut self,
        failure: Failure,
        went_on: bool,
        cfg: Option<&Config>,
        here: &Here<'_>,
    ) -> Failure {
        let is_lost = failure == Failure::Lost { ran: false };
        if went_on || !is_lost || self.survivor_asked {
            return failure;
        }
        let Some(sid) = self.sid() else { return failure };
        let cfg = cfg.or(self.token()).filter(|cfg| cfg.now.who.len() <= 2);
        let lives = |peer: &&Incarnation| **peer != here.me && here.lives(**peer);
        let asks = |peer: &&Incarnation| self.for_another == Some(**peer);
        let mut others = cfg.into_iter().flat_map(|cfg| &cfg.now.who);
        let Some(survivor) = others.find(|peer| lives(peer) && !asks(peer)).copied() else {
            return failure;
        };
        self.survivor_asked = true;
        self.ask_survivor = if here.hears(survivor) {
            here.view.by_incarnation(&survivor).map(|belief| belief.news.peer.clone())
        } else {
            relay_of(sid, None, self.for_another, here)
        };
        if self.ask_survivor.is_none() || self.asked.hops_left == 0 {
            self.ask_survivor = None;
            return Failure::NoMajority { ran: false };
        }
        failure
    }

    pub(super) fn relay_to_survivor(&mut self) -> Option<Step> {
        let to = self.ask_survivor.take()?;
        let hops_left = self.asked.hops_left.checked_sub(1)?;
        let begins = self.named.is_none() && self.key.is_some_and(|key| key.begins);
        Some(Step::Relay { to, hops_left, begins })
    }
}

/// The peer to ask for a session instead of this one: one of its members in `cfg`, if one is heard,
/// which knows its owner and has a vote.
fn relay_of(
    sid: SessionId,
    cfg: Option<&Config>,
    owner: Option<Incarnation>,
    here: &Here<'_>,
) -> Option<PeerId> {
    let able = here
        .view
        .live_peers()
        .filter(|(_, belief)| may_count_on(belief) && Some(belief.news.incarnation) != owner);
    let mut able: Vec<_> = able.collect();
    if able.iter().any(|(_, belief)| !belief.news.full) {
        able.retain(|(_, belief)| !belief.news.full);
    }
    let is_member = |peer| cfg.is_some_and(|cfg| cfg.contains(peer));
    let members = able.iter().filter(|(_, belief)| is_member(belief.news.incarnation));
    let first = |ranks: Vec<PeerId>| ranks.into_iter().next();
    first(rank::session_ranks(&sid, members.map(|(peer, _)| *peer)))
        .or_else(|| first(rank::session_ranks(&sid, able.iter().map(|(peer, _)| *peer))))
}
