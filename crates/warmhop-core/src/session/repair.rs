//! What to mend about a session that nobody is asking for: a member that is gone is replaced, one
//! that is missing is added, an owner outside of the members joins them, and an owner that is
//! gone is succeeded by a member.
//!
//! Decides about one session at a time from what its machine and this peer's view tell. Refuses
//! to know how members change (`owner.rs`) and how ownership does (`takeover.rs`).

use core::time::Duration;

use crate::ids::Incarnation;

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
