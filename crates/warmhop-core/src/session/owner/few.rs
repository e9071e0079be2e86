//! A set of members.

use alloc::vec::Vec;

use crate::ids::Incarnation;

/// A handful of members, in as little memory as possible.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Few(pub(super) Vec<Incarnation>);

impl Few {
    pub(super) fn contains(&self, peer: &Incarnation) -> bool {
        self.0.contains(peer)
    }

    pub(super) fn insert(&mut self, peer: Incarnation) {
        if let Err(at) = self.0.binary_search(&peer) {
            self.0.reserve_exact(1);
            self.0.insert(at, peer);
        }
    }
}

impl FromIterator<Incarnation> for Few {
    fn from_iter<I: IntoIterator<Item = Incarnation>>(peers: I) -> Self {
        let mut few = Self::default();
        peers.into_iter().for_each(|peer| few.insert(peer));
        few
    }
}
