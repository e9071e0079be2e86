//! Members that a peer is configured to refuse.

use crate::identity::RefusedPeers;
use crate::mesh::builder::Builder;

impl Builder {
    /// Refuses members although the authority has issued their certificates. Default: none.
    #[must_use]
    pub fn refuse(mut self, refused: RefusedPeers) -> Self {
        self.refused = refused;
        self
    }
}
