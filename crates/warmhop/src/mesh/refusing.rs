//! Members that a peer is told to have nothing to do with.

use crate::identity::RefusedPeers;
use crate::mesh::builder::Builder;

impl Builder {
    /// Refuses members, though the authority vouches for them: by default nobody.
    #[must_use]
    pub fn refuse(mut self, refused: RefusedPeers) -> Self {
        self.refused = refused;
        self
    }
}
