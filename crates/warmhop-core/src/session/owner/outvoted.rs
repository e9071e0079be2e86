//! An owner one of whose members has promised a higher ballot to somebody else, while the others may still
//! choose what it proposes.

use super::Few;
use crate::ids::{Ballot, Incarnation};
use crate::session::{Ctx, Effects, Role, Session};

/// Members that have promised more to another peer while a proposal is under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Outvoted {
    by: Ballot,
    who: Few,
}

impl Session {
    /// Whether a new owner waits for the others to choose its first proposal, although `from` has promised
    /// `by`. A majority promised this peer's ballot just now, and nothing higher before: the peer that asked for
    /// `by` may be long gone, and own nothing. Until it is time to send again, it waits; then it steps down.
    /// An owner that had something chosen may have been suspended since, and steps down at once.
    pub(in crate::session) fn holds_out(&mut self, from: Incarnation, by: Ballot) -> bool {
        let Role::Owner(owner) = &mut self.role else { return false };
        if by <= owner.b || owner.chosen.is_some() || owner.work.proposal.is_none() {
            return false;
        }
        let none = || Outvoted { by, who: Few::default() };
        let outvoted = owner.work.outvoted.get_or_insert_with(none);
        outvoted.by = outvoted.by.max(by);
        outvoted.who.insert(from);
        let Role::Owner(owner) = &self.role else { return false };
        let (Some(proposal), Some(outvoted)) = (&owner.work.proposal, &owner.work.outvoted) else {
            return false;
        };
        let set = proposal.record.cfg.deciders();
        self.suffices(set, |peer| !outvoted.who.contains(&peer) && !self.is_voteless(peer, set))
    }

    /// Steps down for a ballot that this peer held out against.
    pub(super) fn give_in(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) -> bool {
        let Role::Owner(owner) = &mut self.role else { return false };
        if owner.work.outvoted.is_none() {
            return false;
        }
        let outvoted = owner.work.outvoted.take();
        if let Some(Outvoted { by, .. }) = outvoted {
            self.outvoted_by(ctx, by, out);
        }
        true
    }
}
