//! What to mend about a session that nobody is asking for: a member that is gone is replaced, one
//! that is missing is added, an owner outside of the members joins them, and an owner that is
//! gone is succeeded by a member.
//!
//! Decides about one session at a time from what its machine and this peer's view tell
//! ([`Watch`]), and who succeeds an owner that leaves in good order ([`heir`]). Refuses to know
//! how members change (`owner.rs`) and how ownership does (`takeover.rs`).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use super::Session;
use super::message::MEMBERS_MAX;
use crate::config::SessionPolicy;
use crate::ids::{AppName, Incarnation, Now, PeerId, SessionId};
use crate::rank;
use crate::view::{AppState, Liveness, PeerBelief, View};

/// How long a member is silent before it is replaced, and an owner before it is succeeded.
pub const SILENT_BEFORE_REPAIR: Duration = Duration::from_secs(3);
/// How much longer each further member waits before it succeeds the owner, so that the first
/// meets no rival.
pub const WAIT_A_RANK: Duration = Duration::from_secs(1);

/// What is known of one session and its holders.
#[derive(Debug, Clone, Copy)]
pub struct Holding<'a> {
    /// This process.
    pub me: Incarnation,
    /// Whether it owns the session.
    pub owns: bool,
    /// Who owns it as far as this process knows.
    pub owner: Option<Incarnation>,
    /// Its members.
    pub members: &'a [Incarnation],
    /// How many there should be, where so many processes live.
    pub copies: usize,
    /// The live process that should hold a copy next, best by rank, no member yet.
    pub spare: Option<Incarnation>,
    /// The member that would be missed least: the last by rank, this process left out.
    pub last: Option<Incarnation>,
}

/// What to do about a session now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mend {
    /// Nothing, until somebody comes or goes.
    Nothing,
    /// Nothing yet: look again soon.
    Later,
    /// Change its members, as its owner.
    Change {
        /// Who leaves.
        gone: Option<Incarnation>,
        /// Who joins.
        newcomer: Option<Incarnation>,
    },
    /// Take it over.
    Succeed,
    /// Everyone is there, but somebody lacks the newest record: send it again, with
    /// [`Session::remind`].
    Remind,
}

/// Decides what to mend. `silent_for` tells for how long a process has not been heard; `None`
/// where it lives.
pub fn mend(holding: &Holding<'_>, silent_for: impl Fn(Incarnation) -> Option<Duration>) -> Mend {
    let Holding { me, owns, owner, members, copies, spare, last } = *holding;
    let is_member = members.contains(&me);
    if !owns {
        let (Some(silent), Some(rank)) = (
            owner.and_then(&silent_for),
            members
                .iter()
                .filter(|peer| silent_for(**peer).is_none())
                .position(|peer| *peer == me)
                .and_then(|rank| u32::try_from(rank).ok()),
        ) else {
            return Mend::Nothing;
        };
        let patience = SILENT_BEFORE_REPAIR + WAIT_A_RANK * rank;
        return if silent >= patience { Mend::Succeed } else { Mend::Later };
    }
    let newcomer = if is_member { spare } else { Some(me) };
    let mut silent = members.iter().filter_map(|peer| Some((*peer, silent_for(*peer)?)));
    let longest = silent.clone().max_by_key(|(_, span)| *span);
    let due = longest.filter(|(_, span)| *span >= SILENT_BEFORE_REPAIR).map(|(peer, _)| peer);
    if newcomer.is_some() && (due.is_some() || members.len() < copies) {
        return Mend::Change { gone: due, newcomer };
    }
    if !is_member && silent.next().is_none() {
        // It owns what it does not hold: each of its commits needs two others, and none is its own.
        return Mend::Change { gone: last, newcomer };
    }
    match longest {
        Some(_) if newcomer.is_some() => Mend::Later,
        _ => Mend::Nothing,
    }
}

/// What a machine says of its session, as far as mending goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    owns: bool,
    taking_over: bool,
    owner: Option<Incarnation>,
    members: Vec<Incarnation>,
    /// The members all hold the newest record, as far as this peer can tell.
    complete: bool,
    /// Those of the view's peers whose votes on this session are gone for good.
    silenced: Vec<Incarnation>,
}

impl Held {
    /// What `machine` says.
    #[must_use]
    pub fn of(machine: &Session, view: &View) -> Self {
        let lives = view.live_peers().map(|(_, belief)| belief.news.incarnation);
        Self {
            owns: machine.is_owner(),
            taking_over: machine.is_taking_over(),
            owner: machine.promised().map(|ballot| ballot.proposer),
            members: machine.members().to_vec(),
            complete: !machine.is_owner() || machine.is_whole(),
            silenced: lives.filter(|peer| machine.is_gone_for_good(*peer)).collect(),
        }
    }
}

/// This peer and what it believes, for the length of one sweep through its sessions.
#[derive(Debug)]
pub struct Around<'a> {
    /// This process.
    pub me: Incarnation,
    /// Its monotonic clock.
    pub now: Now,
    /// What it believes of the others.
    pub view: &'a View,
    /// Whom sessions may count on: see [`countable`].
    pub alive: &'a BTreeSet<Incarnation>,
    /// The tunables.
    pub policy: &'a SessionPolicy,
}

/// What one sweep through the sessions of a peer hands on to the next.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// Since when those that sessions name have been missing from the view.
    missing_since: BTreeMap<Incarnation, Now>,
    /// Who was alive when a sweep last found nothing to mend.
    mended_for: Option<BTreeSet<Incarnation>>,
}

/// Which sessions a sweep has to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All that hold anything.
    All,
    /// Only those that came to need a look since the last sweep: nobody came or went.
    Noted,
}

impl Watch {
    /// Begins a sweep.
    pub fn begin(&mut self, alive: &BTreeSet<Incarnation>) -> Scope {
        self.missing_since.retain(|peer, _| !alive.contains(peer));
        if self.mended_for.as_ref() == Some(alive) { Scope::Noted } else { Scope::All }
    }

    /// Ends a sweep; `busy` tells whether anything is left to be done.
    pub fn end(&mut self, alive: BTreeSet<Incarnation>, busy: bool) {
        self.mended_for = (!busy).then_some(alive);
    }

    /// Decides what to mend about the session `sid`. `is_dead` tells which processes are known to
    /// be gone for good.
    pub fn look(
        &mut self,
        sid: SessionId,
        held: &Held,
        around: &Around<'_>,
        is_dead: impl Fn(Incarnation) -> bool,
    ) -> Mend {
        let Around { me, now, view, alive, policy } = *around;
        if held.taking_over {
            // It is looked at again once that has come to an end.
            return Mend::Later;
        }
        let members = &held.members;
        for peer in members.iter().copied().chain(held.owner).filter(|peer| !alive.contains(peer)) {
            self.missing_since.entry(peer).or_insert(now);
        }
        let silent_for = |peer: Incarnation| -> Option<Duration> {
            if alive.contains(&peer) {
                return None;
            }
            if is_dead(peer) {
                return Some(Duration::MAX);
            }
            let belief = view.by_incarnation(&peer);
            if belief.is_some_and(|it| it.alive == Liveness::Alive && it.news.draining) {
                // It is replaced before it leaves; what it owns it hands over by itself.
                return held.owns.then_some(SILENT_BEFORE_REPAIR);
            }
            let heard = belief.map(|belief| belief.heard);
            let since = heard.or_else(|| self.missing_since.get(&peer).copied());
            Some(since.map_or(Duration::ZERO, |since| now.since(since)))
        };
        let copies = policy.copies.clamp(1, MEMBERS_MAX).min(alive.len());
        let whole = held.owns
            && members.contains(&me)
            && members.iter().all(|peer| alive.contains(peer))
            && members.len() >= copies;
        if whole {
            return if held.complete { Mend::Nothing } else { Mend::Remind };
        }
        let is_member = |belief: &PeerBelief| members.contains(&belief.news.incarnation);
        let spare = by_rank(sid, view, |belief| {
            alive.contains(&belief.news.incarnation)
                && !belief.news.draining
                && !is_member(belief)
                // Its vote would count for nothing, so its copy is none.
                && !held.silenced.contains(&belief.news.incarnation)
        });
        let last = by_rank(sid, view, is_member);
        let holding = Holding {
            me,
            owns: held.owns,
            owner: held.owner,
            members,
            copies,
            spare: spare.first().copied(),
            last: last.last().copied(),
        };
        mend(&holding, silent_for)
    }
}

/// Whether sessions may count on a peer: it lives, has been heard lately, and does not leave.
#[must_use]
pub fn may_count_on(belief: &PeerBelief) -> bool {
    belief.alive == Liveness::Alive && !belief.news.draining
}

/// The processes that sessions may count on, this one included.
#[must_use]
pub fn countable(view: &View, me: Incarnation) -> BTreeSet<Incarnation> {
    view.live_peers()
        .filter(|(_, belief)| may_count_on(belief))
        .map(|(_, belief)| belief.news.incarnation)
        .chain([me])
        .collect()
}

/// Those of the peers not known to be dead that are `wanted`, by their rank for the session.
#[must_use]
pub fn by_rank(
    sid: SessionId,
    view: &View,
    wanted: impl Fn(&PeerBelief) -> bool,
) -> Vec<Incarnation> {
    let able = view.live_peers().filter(|(_, belief)| wanted(belief));
    rank::session_ranks(&sid, able.map(|(peer, _)| peer))
        .iter()
        .filter_map(|peer| view.peer(peer).map(|belief| belief.news.incarnation))
        .collect()
}

/// Whether a session with these members counts on the copy of `me` although one of `able`, as
/// [`countable`] tells them, could hold it: a peer that leaves waits until none does. Where most of
/// the members are gone nobody can change them, and nothing is to be waited for.
#[must_use]
pub fn counts_on(members: &[Incarnation], me: Incarnation, able: &BTreeSet<Incarnation>) -> bool {
    let living = members.iter().filter(|peer| **peer == me || able.contains(peer)).count();
    members.contains(&me)
        && 2 * living > members.len()
        && able.iter().any(|peer| !members.contains(peer))
}

/// Who should own the session after this peer, which leaves: best where its app is ready, then by
/// rank. `None` where nobody is left who could.
#[must_use]
pub fn heir(sid: SessionId, app: &AppName, view: &View) -> Option<Incarnation> {
    let able = view.live_peers().filter(|(_, belief)| may_count_on(belief));
    let ranked = rank::session_ranks(&sid, able.map(|(peer, _)| peer));
    let is_ready = |peer: &&PeerId| {
        view.peer(peer)
            .and_then(|belief| belief.apps.get(app))
            .is_some_and(|told| told.news.state == AppState::Ready)
    };
    let best = ranked.iter().find(is_ready).or_else(|| ranked.first())?;
    view.peer(best).map(|belief| belief.news.incarnation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: u8) -> Incarnation {
        Incarnation([name; 16])
    }

    fn holding(members: &[Incarnation]) -> Holding<'_> {
        Holding {
            me: peer(1),
            owns: true,
            owner: Some(peer(1)),
            members,
            copies: 3,
            spare: Some(peer(9)),
            last: Some(peer(3)),
        }
    }

    fn silent(who: u8, secs: u64) -> impl Fn(Incarnation) -> Option<Duration> {
        move |asked| (asked == peer(who)).then(|| Duration::from_secs(secs))
    }

    #[test]
    fn a_silent_member_is_replaced_once_it_was_silent_for_long() {
        let members = [peer(1), peer(2), peer(3)];
        assert_eq!(mend(&holding(&members), silent(2, 2)), Mend::Later);
        let change = Mend::Change { gone: Some(peer(2)), newcomer: Some(peer(9)) };
        assert_eq!(mend(&holding(&members), silent(2, 3)), change);
        assert_eq!(mend(&holding(&members), silent(7, 30)), Mend::Nothing);
    }

    #[test]
    fn without_a_spare_nobody_is_sent_away() {
        let members = [peer(1), peer(2), peer(3)];
        let holding = Holding { spare: None, ..holding(&members) };
        assert_eq!(mend(&holding, silent(2, 30)), Mend::Nothing);
    }

    #[test]
    fn a_session_with_too_few_copies_grows_when_a_peer_comes() {
        let members = [peer(1)];
        let change = Mend::Change { gone: None, newcomer: Some(peer(9)) };
        assert_eq!(mend(&holding(&members), silent(7, 0)), change);
        let holding = Holding { copies: 1, ..holding(&members) };
        assert_eq!(mend(&holding, silent(7, 0)), Mend::Nothing);
    }

    #[test]
    fn an_owner_that_holds_no_copy_joins_the_members() {
        let members = [peer(2), peer(3), peer(4)];
        let joins = |gone| Mend::Change { gone, newcomer: Some(peer(1)) };
        assert_eq!(mend(&holding(&members), silent(7, 0)), joins(Some(peer(3))));
        assert_eq!(mend(&holding(&members), silent(4, 5)), joins(Some(peer(4))));
    }

    #[test]
    fn members_succeed_a_silent_owner_one_after_the_other() {
        let members = [peer(0), peer(2), peer(1)];
        let holding = Holding { owns: false, owner: Some(peer(0)), ..holding(&members) };
        assert_eq!(mend(&holding, silent(0, 3)), Mend::Later);
        assert_eq!(mend(&holding, silent(0, 4)), Mend::Succeed);
        let first = Holding { me: peer(2), ..holding };
        assert_eq!(mend(&first, silent(0, 3)), Mend::Succeed);
        assert_eq!(mend(&holding, silent(3, 60)), Mend::Nothing);
        let outsider = Holding { me: peer(5), ..holding };
        assert_eq!(mend(&outsider, silent(2, 60)), Mend::Nothing);
    }
}
