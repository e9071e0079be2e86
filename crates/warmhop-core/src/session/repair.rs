//! What to repair about a session that nobody is asking for: a member that is gone is replaced or
//! struck off, one that is missing is added, an owner outside of the members joins them, and an
//! owner that is gone is succeeded by a member.
//!
//! Decides about one session at a time from the states of its machine and of this peer's view
//! ([`Watch`]), and who succeeds an owner that leaves cleanly ([`heir`]). Refuses to know how
//! members change (`owner.rs`) and how ownership does (`takeover.rs`).

mod leaving;
mod room;
mod search;
mod struck;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use super::Session;
use super::claim::Claimant;
use super::message::{MEMBERS_MAX, Members};
use crate::config::SessionPolicy;
use crate::ids::{Ballot, Incarnation, Now, SessionId, WallTime};
use crate::rank;
use crate::view::{Liveness, PeerBelief, View};

pub use leaving::{counts_on, heir, silent_for_a_while};
pub use room::{full, is_short};
pub use struck::STRUCK_AFTER;

/// How long a member is silent before it is replaced, and an owner before it is succeeded.
pub const SILENT_BEFORE_REPAIR: Duration = Duration::from_secs(3);
/// How much longer each further member waits before it succeeds the owner, so that the first meets
/// no rival.
pub const WAIT_A_RANK: Duration = Duration::from_secs(1);

/// How long a peer may take to answer before it is asked again.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// The facts about one session that this peer owns, and about its holders.
#[derive(Debug, Clone, Copy)]
pub struct Holding<'a> {
    /// This process.
    pub me: Incarnation,
    /// Its members.
    pub members: &'a [Incarnation],
    /// How many there should be, if so many processes are alive.
    pub copies: usize,
    /// The live process that should hold a copy next, best by rank, not yet a member.
    pub spare: Option<Incarnation>,
    /// The member that would be missed least: the last by rank, except this process.
    pub last: Option<Incarnation>,
}

/// What to do about a session now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mend {
    /// Nothing, until a peer comes or goes.
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
    /// Go on alone, as its owner, without both of these, with [`Session::leave_out`].
    LeaveOut([Incarnation; 2]),
    /// Take it over.
    Succeed,
    /// Take it over from itself, with [`Session::take_over_again`]: too few of the members have room for its
    /// record, and the others will not be back.
    TakeOverAgain,
    /// All members are there, but one lacks the newest record: send it again, with
    /// [`Session::remind`].
    Remind,
    /// Show the members that this peer owns it, or learn that it does not, with
    /// [`Session::reassure`].
    Reassure,
    /// Ask the peer that claims it whether it owns it, with [`Session::ask_claimant`], and look
    /// again soon.
    Ask,
    /// The peer that claims it owns it: no further question is needed ([`Session::rest`]).
    Rest,
    /// Too few of the peers that this one considers members are alive: ask everyone, with
    /// [`Session::locate`], who the members are by now, and look again soon.
    AskEveryone,
}

/// Decides what a session's owner repairs. `silent_for` returns for how long a process has not been
/// heard; `None` if it is alive.
pub fn mend(holding: &Holding<'_>, silent_for: impl Fn(Incarnation) -> Option<Duration>) -> Mend {
    let Holding { me, members, copies, spare, last } = *holding;
    let is_member = members.contains(&me);
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

/// The facts about one session that this peer does not own, and about the peer that claims it.
#[derive(Debug, Clone, Copy)]
pub struct Claimed {
    /// This process.
    pub me: Incarnation,
    /// The peer with the highest claim.
    pub owner: Incarnation,
    /// For how long that peer has not been heard; absent if it is alive.
    pub silent: Option<Duration>,
    /// It is about to leave: it hands off its sessions by itself.
    pub leaves: bool,
    /// Its own answer about its claim.
    pub said: Claimant,
    /// The copy here accepted a record at that claim: its proposer came to own the session.
    pub proven: bool,
    /// This process's place among the living members.
    pub rank: u32,
    /// Which sessions this sweep looks at.
    pub scope: Scope,
    /// The monotonic clock.
    pub now: Now,
}

/// Decides what a member does about a session that it does not own, if a majority is alive. It
/// relies on no claim before the claimant has answered that it owns the session: a takeover that
/// gave up, even this process's own, leaves a claim and no owner.
#[must_use]
pub fn mend_claimed(claimed: &Claimed) -> Mend {
    let Claimed { me, owner, silent, leaves, said, proven, rank, scope, now } = *claimed;
    let due = |waited: Duration, first: Duration| {
        if waited >= first + WAIT_A_RANK * rank { Mend::Succeed } else { Mend::Later }
    };
    if owner == me {
        return Mend::Succeed;
    }
    if let Some(silent) = silent {
        return due(silent, SILENT_BEFORE_REPAIR);
    }
    if leaves {
        return Mend::Later;
    }
    match said {
        Claimant::Unasked if proven && scope == Scope::Noted => Mend::Nothing,
        Claimant::Unasked => Mend::Ask,
        Claimant::Unsure(asked) if now.since(asked) >= ASK_AGAIN_AFTER => Mend::Ask,
        Claimant::Unsure(_) => Mend::Later,
        Claimant::Owns => Mend::Rest,
        Claimant::Vacant(since) => due(now.since(since), Duration::ZERO),
    }
}

/// The state of a session's machine, as far as repair needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    owns: bool,
    taking_over: bool,
    claim: Option<Ballot>,
    said: Claimant,
    /// The ballot of the record held here.
    at: Option<Ballot>,
    /// When the session is over, by that record.
    ends: Option<WallTime>,
    members: Vec<Incarnation>,
    /// The members before, while a change of members is under way.
    before: Vec<Incarnation>,
    /// All members hold the newest record, as far as this peer can tell.
    complete: bool,
    /// The view's peers whose votes on this session are lost for good.
    silenced: Vec<Incarnation>,
    /// The members whose votes among these are lost, and the same of the members before: one may
    /// have forgotten that it was a member, and can be added again.
    voteless: Vec<Incarnation>,
    voteless_before: Vec<Incarnation>,
    /// It continues under another id, to which this copy leads.
    is_fenced: bool,
    /// So many members have forgotten it that the others are no majority.
    is_forgotten: bool,
    /// The members that had no room for its newest record, and do not hold it.
    without_room: Vec<Incarnation>,
    /// The other peers that had none, and until when that counts.
    refused: Vec<(Incarnation, Now)>,
}

impl Held {
    /// The state of `machine`.
    #[must_use]
    pub fn of(machine: &Session, view: &View) -> Self {
        let lives = view.live_peers().map(|(_, belief)| belief.news.incarnation);
        let before = machine.config().and_then(|cfg| cfg.prev.as_deref());
        let voteless = |set: Option<&Members>| {
            let who = set.into_iter().flat_map(|set| set.who.iter().map(move |it| (*it, set)));
            who.filter(|(peer, set)| machine.is_voteless(*peer, set)).map(|it| it.0).collect()
        };
        Self {
            owns: machine.is_owner(),
            taking_over: machine.is_taking_over(),
            claim: machine.highest_claim(),
            said: machine.claimant(),
            at: machine.newest_at().map(|p| p.ballot),
            ends: machine.ends(),
            members: machine.members().to_vec(),
            before: before.map(|set| set.who.to_vec()).unwrap_or_default(),
            complete: !machine.is_owner() || machine.is_whole(),
            silenced: lives.filter(|peer| machine.is_gone_for_good(*peer)).collect(),
            voteless: voteless(machine.config().map(|cfg| &cfg.now)),
            voteless_before: voteless(before),
            is_fenced: machine.fenced().is_some(),
            is_forgotten: machine.is_forgotten(),
            without_room: room::without(machine, view),
            refused: room::refused(machine),
        }
    }
}

/// This peer and its beliefs, for the length of one sweep through its sessions.
#[derive(Debug)]
pub struct Around<'a> {
    /// This process.
    pub me: Incarnation,
    /// Its monotonic clock.
    pub now: Now,
    /// The mesh's clock.
    pub wall: WallTime,
    /// Its beliefs about the others.
    pub view: &'a View,
    /// The processes that sessions may count on: see [`countable`].
    pub alive: &'a BTreeSet<Incarnation>,
    /// The tunables.
    pub policy: &'a SessionPolicy,
    /// It is about to leave: it hands off what it owns, and repairs nothing of that. What has no owner it
    /// takes over all the same, after all others had the time to, since they may lack a record.
    pub leaves: bool,
}

impl Around<'_> {
    /// Whether `peer` is alive, and about to leave.
    fn leaves(&self, peer: Incarnation) -> bool {
        let belief = self.view.by_incarnation(&peer);
        belief.is_some_and(|it| it.alive == Liveness::Alive && it.news.draining)
    }
}

/// What one sweep through the sessions of a peer passes on to the next.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// Since when processes that sessions name have been missing from the view.
    missing_since: BTreeMap<Incarnation, Now>,
    /// The processes that were alive when a sweep through all sessions last began.
    looked_for: Option<BTreeSet<Incarnation>>,
    /// Those of them that were full.
    full: BTreeSet<Incarnation>,
    /// How many silences had been counted by then.
    silences: u64,
    /// The sessions that everyone is asked about: how often, and when last.
    searches: BTreeMap<SessionId, (u32, Now)>,
}

/// Which sessions a sweep has to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All that hold anything, once each: a peer came or went, and may have been cut off before.
    All,
    /// Those noted since the last sweep as in need of a look, or that a sweep had to leave for
    /// later.
    Noted,
}

impl Watch {
    /// Begins a sweep. One that looks at all sessions includes what earlier ones left for later.
    /// `silences` counts how often any peer fell silent or left for good: a peer that was stopped, or
    /// was cut off, may have been succeeded meanwhile, even if all are heard again before this call.
    /// One that is no longer among those that are [`full`] can take copies.
    pub fn begin(
        &mut self,
        alive: &BTreeSet<Incarnation>,
        full: BTreeSet<Incarnation>,
        silences: u64,
    ) -> Scope {
        self.missing_since.retain(|peer, _| !alive.contains(peer));
        let fell_silent = silences != core::mem::replace(&mut self.silences, silences);
        let is_room_again = !self.full.is_subset(&full);
        self.full = full;
        if self.looked_for.as_ref() == Some(alive) && !fell_silent && !is_room_again {
            return Scope::Noted;
        }
        self.looked_for = Some(alive.clone());
        self.searches.clear();
        Scope::All
    }

    /// Makes the next sweep look at all sessions again: there were more to note than there was
    /// room.
    pub fn begin_anew(&mut self) {
        self.looked_for = None;
    }

    /// Decides what to repair about the session `sid`. `is_dead` says which processes are known to
    /// be gone for good.
    pub fn look(
        &mut self,
        sid: SessionId,
        held: &Held,
        around: &Around<'_>,
        scope: Scope,
        is_dead: impl Fn(Incarnation) -> bool,
    ) -> Mend {
        if held.taking_over {
            // It is looked at again once that has ended.
            let is_stuck = room::is_stuck(held, around, is_dead);
            return if is_stuck { self.take_over_again(sid, around.now) } else { Mend::Later };
        }
        if held.is_fenced {
            return Mend::Nothing;
        }
        let owner = held.claim.map(|claim| claim.proposer);
        let named = held.members.iter().copied().chain(owner);
        for peer in named.filter(|peer| !around.alive.contains(peer)) {
            self.missing_since.entry(peer).or_insert(around.now);
        }
        if held.owns && around.leaves {
            Mend::Nothing
        } else if held.owns {
            self.look_as_owner(sid, held, around, scope, is_dead)
        } else {
            self.look_as_member(sid, held, around, scope, is_dead)
        }
    }

    /// For how long `peer` has not been heard; `None` if it is alive.
    fn silence(
        &self,
        peer: Incarnation,
        held: &Held,
        around: &Around<'_>,
        is_dead: impl Fn(Incarnation) -> bool,
    ) -> Option<Duration> {
        if around.alive.contains(&peer) {
            return None;
        }
        if is_dead(peer) {
            return Some(Duration::MAX);
        }
        if around.leaves(peer) {
            // It is replaced before it leaves; it hands off its own sessions by itself.
            return held.owns.then_some(SILENT_BEFORE_REPAIR);
        }
        let heard = around.view.by_incarnation(&peer).map(|belief| belief.heard);
        let since = heard.or_else(|| self.missing_since.get(&peer).copied());
        Some(since.map_or(Duration::ZERO, |since| around.now.since(since)))
    }

    /// Decides for a session that another peer owns.
    fn look_as_member(
        &mut self,
        sid: SessionId,
        held: &Held,
        around: &Around<'_>,
        scope: Scope,
        is_dead: impl Fn(Incarnation) -> bool,
    ) -> Mend {
        let Around { me, now, wall, alive, .. } = *around;
        if held.ends.is_some_and(|end| end <= wall) {
            // Its copies are forgotten soon. A new owner would only have them kept for longer.
            return Mend::Nothing;
        }
        let members = &held.members;
        let lives = |peer: &&Incarnation| self.silence(**peer, held, around, &is_dead).is_none();
        let majority = |set: &[Incarnation], voteless: &[Incarnation]| {
            let votes = |peer: &Incarnation| lives(&peer) && !voteless.contains(peer);
            suffices(set, votes, &is_dead)
        };
        let has_majority = majority(members, &held.voteless)
            && (held.before.is_empty() || majority(&held.before, &held.voteless_before));
        let rank = members.iter().filter(lives).position(|peer| *peer == me);
        let rank = rank.map(|rank| if around.leaves { rank + members.len() } else { rank });
        let owner = held.claim.map(|claim| claim.proposer);
        // A peer without a record has nothing to continue from, and leaves it to those that have
        // one.
        let (Some(owner), Some(rank), Some(at)) = (owner, rank, held.at) else {
            return Mend::Nothing;
        };
        // Without a majority a takeover would fail, and leave a claim for which others step down. A
        // peer that missed a change of members considers the former ones all that there are.
        if !has_majority {
            let is_alone = alive.len() <= 1;
            return if is_alone { Mend::Nothing } else { self.search(sid, held.is_forgotten, now) };
        }
        self.searches.remove(&sid);
        let silent = self.silence(owner, held, around, &is_dead);
        // An owner that another member hears continues, and would not know that it was succeeded.
        let is_heard = around
            .view
            .ways_to(&owner)
            .any(|(_, belief)| members.contains(&belief.news.incarnation));
        mend_claimed(&Claimed {
            me,
            owner,
            silent: silent.filter(|_| is_dead(owner) || !is_heard),
            leaves: around.leaves(owner),
            said: held.said,
            proven: Some(at) == held.claim,
            rank: u32::try_from(rank).unwrap_or(u32::MAX),
            scope,
            now,
        })
    }

    /// Decides for a session that this peer owns.
    fn look_as_owner(
        &mut self,
        sid: SessionId,
        held: &Held,
        around: &Around<'_>,
        scope: Scope,
        is_dead: impl Fn(Incarnation) -> bool,
    ) -> Mend {
        let Around { me, view, alive, policy, .. } = *around;
        let members = &held.members;
        let can_hold = |peer: &&Incarnation| members.contains(*peer) || !room::lacks(view, **peer);
        let able = alive.iter().filter(can_hold).count();
        let copies = policy.copies.clamp(1, MEMBERS_MAX).min(able);
        // The votes of the first count no more, and the others have no room to vote for anything.
        let is_silenced =
            |peer: &Incarnation| held.silenced.contains(peer) || held.without_room.contains(peer);
        let whole = members.contains(&me)
            && members.iter().all(|peer| alive.contains(peer) && !is_silenced(peer))
            && members.len() >= copies;
        // While this peer was cut off, another may have succeeded it.
        let rests = if scope == Scope::All { Mend::Reassure } else { Mend::Nothing };
        if whole {
            return if held.complete { rests } else { Mend::Remind };
        }
        // A member without room may have some later.
        let rests = if held.without_room.is_empty() { rests } else { Mend::Remind };
        if !may_change_members(held, around, &is_dead) {
            let is_stuck = room::is_stuck(held, around, &is_dead);
            return if is_stuck { self.take_over_again(sid, around.now) } else { rests };
        }
        let is_refused = |peer: &Incarnation| {
            held.refused.iter().any(|(by, until)| by == peer && *until > around.now)
        };
        let is_member = |belief: &PeerBelief| members.contains(&belief.news.incarnation);
        let spare = by_rank(sid, view, |belief| {
            alive.contains(&belief.news.incarnation)
                && !belief.news.draining
                && !is_member(belief)
                // Its vote would not count, so its copy would be useless.
                && !is_silenced(&belief.news.incarnation)
                && !belief.news.full
                && !is_refused(&belief.news.incarnation)
        });
        let last = by_rank(sid, view, is_member);
        let holding = Holding {
            me,
            members,
            copies,
            spare: spare.first().copied(),
            last: last.last().copied(),
        };
        let silence = |peer| {
            if is_silenced(&peer) {
                return Some(Duration::MAX);
            }
            self.silence(peer, held, around, &is_dead)
        };
        match mend(&holding, silence) {
            Mend::Nothing if holding.spare.is_none() => {
                self.strike(held, around, is_dead).unwrap_or(rests)
            }
            Mend::Nothing => rests,
            decided => decided,
        }
    }
}

/// Whether an owner tries to change the members. A majority has to agree to a change, and it stays
/// under way until one is heard. If none ever will be, the owner tries all the same, finds that
/// out, and gives up the session, which it no longer owns.
fn may_change_members(
    held: &Held,
    around: &Around<'_>,
    is_dead: impl Fn(Incarnation) -> bool,
) -> bool {
    let me = around.me;
    let has_hope = |set: &[Incarnation], voteless: &[Incarnation]| {
        let lost = |peer: &Incarnation| *peer != me && (is_dead(*peer) || voteless.contains(peer));
        set.is_empty() || suffices(set, |it| !lost(it), &is_dead)
    };
    let has_majority = |set: &[Incarnation], voteless: &[Incarnation]| {
        let lacks =
            |peer: &Incarnation| voteless.contains(peer) || held.without_room.contains(peer);
        let votes = |peer: &Incarnation| struck::hears(around, *peer) && !lacks(peer);
        set.is_empty() || suffices(set, votes, &is_dead)
    };
    let hears_enough = has_majority(&held.members, &held.voteless)
        && has_majority(&held.before, &held.voteless_before);
    let hope =
        has_hope(&held.members, &held.voteless) && has_hope(&held.before, &held.voteless_before);
    hears_enough || !hope
}

/// Whether those of `set` that have votes are enough: a majority, or the one that is left of two.
fn suffices(
    set: &[Incarnation],
    votes: impl Fn(&Incarnation) -> bool,
    is_dead: impl Fn(Incarnation) -> bool,
) -> bool {
    let count = set.iter().filter(|peer| votes(peer)).count();
    let is_survivor = set.len() == 2 && count == 1;
    2 * count > set.len() || is_survivor && set.iter().any(|peer| !votes(peer) && is_dead(*peer))
}

/// Whether sessions may count on a peer: it is alive, was heard lately, and does not leave.
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

/// The peers not known to be dead that are `wanted`, by their rank for the session.
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

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};

    use crate::ids::PeerId;
    use crate::view::{News, PeerNews, Source};

    pub(super) fn peer(name: u8) -> Incarnation {
        Incarnation([name; 16])
    }

    fn holding(members: &[Incarnation]) -> Holding<'_> {
        Holding { me: peer(1), members, copies: 3, spare: Some(peer(9)), last: Some(peer(3)) }
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

    fn claimed() -> Claimed {
        Claimed {
            me: peer(1),
            owner: peer(9),
            silent: None,
            leaves: false,
            said: Claimant::Unasked,
            proven: true,
            rank: 1,
            scope: Scope::All,
            now: Now(10_000),
        }
    }

    #[test]
    fn members_succeed_a_silent_owner_one_after_the_other() {
        let silent = |rank, secs| {
            let silent = Some(Duration::from_secs(secs));
            mend_claimed(&Claimed { silent, rank, ..claimed() })
        };
        assert_eq!((silent(0, 2), silent(0, 3)), (Mend::Later, Mend::Succeed));
        assert_eq!((silent(1, 3), silent(1, 4)), (Mend::Later, Mend::Succeed));
    }

    #[test]
    fn a_claim_is_not_trusted_if_its_proposer_was_not_asked() {
        assert_eq!(mend_claimed(&claimed()), Mend::Ask);
        let noted = Claimed { scope: Scope::Noted, ..claimed() };
        assert_eq!(mend_claimed(&noted), Mend::Nothing);
        assert_eq!(mend_claimed(&Claimed { proven: false, ..noted }), Mend::Ask);
        assert_eq!(mend_claimed(&Claimed { said: Claimant::Owns, ..claimed() }), Mend::Rest);
        let asked = |at| Claimed { said: Claimant::Unsure(Now(at)), ..claimed() };
        assert_eq!(mend_claimed(&asked(9_000)), Mend::Later);
        assert_eq!(mend_claimed(&asked(8_000)), Mend::Ask);
    }

    #[test]
    fn a_claimant_that_owns_nothing_is_succeeded_by_one_member_after_the_other() {
        let vacant = |at, rank| Claimed { said: Claimant::Vacant(Now(at)), rank, ..claimed() };
        assert_eq!(mend_claimed(&vacant(10_000, 0)), Mend::Succeed);
        assert_eq!(mend_claimed(&vacant(9_500, 1)), Mend::Later);
        assert_eq!(mend_claimed(&vacant(9_000, 1)), Mend::Succeed);
    }

    #[test]
    fn a_member_whose_own_claim_came_to_nothing_tries_again() {
        assert_eq!(mend_claimed(&Claimed { owner: peer(1), ..claimed() }), Mend::Succeed);
    }

    /// The view of the first peer once it has met those of these numbers.
    pub(super) fn met(numbers: &[u8]) -> View {
        met_leaving(numbers, &[])
    }

    /// The same, if some are about to leave.
    pub(super) fn met_leaving(numbers: &[u8], leaving: &[u8]) -> View {
        let mut view = View::new(PeerId::new("p1").unwrap());
        for number in numbers {
            view.apply(
                News::Peer(PeerNews {
                    draining: leaving.contains(number),
                    ..PeerNews::of(
                        PeerId::new(&format!("p{number}")).unwrap(),
                        peer(*number),
                        "127.0.0.1:7001".parse().unwrap(),
                    )
                }),
                Now(1),
                Source::FirstHand,
            );
        }
        view
    }

    /// A session of the first peer and of those of these numbers, which it owns.
    pub(super) fn owned(others: &[u8]) -> Held {
        Held {
            owns: true,
            taking_over: false,
            claim: None,
            said: Claimant::Unasked,
            at: None,
            ends: None,
            members: [1].iter().chain(others).map(|number| peer(*number)).collect(),
            before: Vec::new(),
            complete: true,
            silenced: Vec::new(),
            voteless: Vec::new(),
            voteless_before: Vec::new(),
            is_fenced: false,
            is_forgotten: false,
            without_room: Vec::new(),
            refused: Vec::new(),
        }
    }

    #[test]
    fn an_owner_without_a_majority_begins_no_change_that_would_never_end() {
        let view = met(&[2, 9]);
        let alive = countable(&view, peer(1));
        let held = |others: &[u8], before: &[u8]| Held {
            before: before.iter().map(|number| peer(*number)).collect(),
            ..owned(others)
        };
        let (policy, now) = (SessionPolicy::default(), Now(60_000));
        let around = Around {
            me: peer(1),
            now,
            wall: WallTime(1),
            view: &view,
            alive: &alive,
            policy: &policy,
            leaves: false,
        };
        let look = |held: &Held| {
            Watch::default().look(SessionId([7; 16]), held, &around, Scope::Noted, |it| {
                it == peer(5) || it == peer(6)
            })
        };
        let replaces = |gone| Mend::Change { gone: Some(peer(gone)), newcomer: Some(peer(9)) };
        assert_eq!(look(&held(&[2, 5], &[])), replaces(5));
        assert_eq!(look(&held(&[3, 4], &[])), Mend::Nothing);
        assert_eq!(look(&held(&[3, 9], &[1, 3, 4])), Mend::Nothing);
        // They never come back: it finds out by trying, and gives up.
        assert!(matches!(look(&held(&[5, 6], &[])), Mend::Change { gone: Some(_), .. }));
    }

    #[test]
    fn a_member_whose_majority_is_gone_asks_everyone_for_those_who_took_their_places() {
        let view = met(&[9]);
        let alive = countable(&view, peer(1));
        let ballot = Ballot { round: 1, proposer: peer(2) };
        let held = |others: [u8; 2], voteless: &[u8]| Held {
            owns: false,
            claim: Some(ballot),
            at: Some(ballot),
            voteless: voteless.iter().map(|number| peer(*number)).collect(),
            ..owned(&others)
        };
        let mut watch = Watch::default();
        let mut look = |held: &Held, at: u64| {
            let policy = SessionPolicy::default();
            let now = Now(at);
            let around = Around {
                me: peer(1),
                now,
                wall: WallTime(1),
                view: &view,
                alive: &alive,
                policy: &policy,
                leaves: false,
            };
            if watch.begin(&alive, BTreeSet::new(), 0) == Scope::All {
                assert_eq!(at, 60_000);
            }
            watch.look(SessionId([7; 16]), held, &around, Scope::Noted, |it| it != peer(9))
        };
        let orphan = held([2, 3], &[]);
        assert_eq!(look(&orphan, 60_000), Mend::AskEveryone);
        assert_eq!(look(&orphan, 61_000), Mend::Later);
        assert_eq!(look(&orphan, 62_000), Mend::AskEveryone);
        assert_eq!(look(&orphan, 64_000), Mend::Nothing, "nobody knows more: until somebody comes");
        // A member that forgot the session is alive, but is no majority with this peer.
        assert_eq!(look(&held([2, 9], &[9]), 70_000), Mend::AskEveryone);
        assert_eq!(look(&held([2, 9], &[]), 70_001), Mend::Succeed, "it knows who else there is");
        // It was added again, in a change that needs its vote among the old members as well.
        let before = vec![peer(1), peer(2), peer(9)];
        let changed = Held { before, voteless_before: vec![peer(9)], ..held([8, 9], &[]) };
        assert_eq!(look(&changed, 80_000), Mend::AskEveryone, "it would try without end");
    }

    #[test]
    fn all_are_looked_at_where_somebody_fell_silent_and_is_heard_again_before_the_next_look() {
        let alive = countable(&met(&[2, 3]), peer(1));
        let mut watch = Watch::default();
        let none = BTreeSet::new;
        assert_eq!(watch.begin(&alive, none(), 0), Scope::All);
        assert_eq!(watch.begin(&alive, none(), 0), Scope::Noted);
        assert_eq!(watch.begin(&alive, none(), 1), Scope::All);
        assert_eq!(watch.begin(&alive, none(), 1), Scope::Noted);
        let fewer = countable(&met(&[2]), peer(1));
        assert_eq!(watch.begin(&fewer, none(), 2), Scope::All);
        assert_eq!(watch.begin(&fewer, none(), 2), Scope::Noted);
        watch.begin_anew();
        assert_eq!(watch.begin(&fewer, none(), 2), Scope::All);
    }

    #[test]
    fn an_owner_that_leaves_is_given_time_to_hand_off() {
        assert_eq!(mend_claimed(&Claimed { leaves: true, ..claimed() }), Mend::Later);
    }
}
