//! The records that a session holds here, and their size.

use alloc::sync::Arc;

use arrayvec::ArrayVec;

use super::Owner;
use super::full::Refused;
use crate::ids::Position;
use crate::session::message::{Body, Record};
use crate::session::{Role, Session};

impl Session {
    /// The positions of the records that it holds: as long as they are the same, so are the records
    /// (I1).
    #[must_use]
    pub fn held_at(&self) -> [Option<Position>; 3] {
        let (chosen, proposed) = match &self.role {
            Role::Owner(owner) => (owner.chosen.as_ref(), owner.work.proposal.as_ref()),
            Role::None | Role::Preparing(_) => (None, None),
        };
        let p = |record: &Record| record.p;
        [self.copy.accepted.as_ref().map(p), chosen.map(p), proposed.map(|it| it.record.p)]
    }

    /// How many bytes it holds in memory, approximately, each body once: the copy's, and the
    /// owner's chosen and proposed ones.
    #[must_use]
    pub fn bytes_held(&self) -> usize {
        let mut bodies: ArrayVec<&Arc<Body>, 3> = ArrayVec::new();
        let (mut chosen, mut proposed) = (None, None);
        if let Role::Owner(owner) = &self.role {
            chosen = owner.chosen.as_ref();
            proposed = owner.work.proposal.as_ref().map(|proposal| &proposal.record);
        }
        for record in self.copy.accepted.iter().chain(chosen).chain(proposed) {
            if !bodies.iter().any(|body| Arc::ptr_eq(body, &record.body)) {
                bodies.push(&record.body);
            }
        }
        bodies.into_iter().map(|body| body.bytes()).sum()
    }

    /// How many bytes the newest record has that this peer offers to its members, as their session's owner.
    #[must_use]
    pub fn bytes_offered(&self) -> usize {
        let Role::Owner(owner) = &self.role else { return 0 };
        let proposed = owner.work.proposal.as_ref().map(|proposal| &proposal.record);
        proposed.or(owner.chosen.as_ref()).map_or(0, |record| record.body.bytes())
    }

    /// The peers that had no room for the newest record, which this peer owns, and do not hold it.
    pub(in crate::session) fn refusals(&self) -> impl Iterator<Item = Refused> {
        let owner = match &self.role {
            Role::Owner(owner) => Some(owner),
            Role::None | Role::Preparing(_) => None,
        };
        let lacks = |owner: &Owner, peer| !owner.cfg.now.contains(peer) || !owner.is_held_by(peer);
        owner
            .into_iter()
            .flat_map(move |owner| owner.work.full.refusals().filter(move |it| lacks(owner, it.by)))
    }
}
