//! Warns when this peer knows two or more others and hears none of them: from then on it refuses changes of
//! sessions and keys, and without a warning only a client's error would say why.

use tracing::{info, warn};
use warmhop_core::config::WithoutMajority;
use warmhop_core::view::Liveness;

use crate::request::node::Node;
use crate::request::unheard::in_words;

/// Whether this peer was alone at the last look.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    is_alone: bool,
}

impl Watch {
    /// Logs once when this peer comes to hear nobody, and once when that is over.
    pub(crate) fn look(&mut self, node: &Node) {
        let view = node.view();
        let silent = node.unheard();
        let hears_anyone = view.peers().any(|(_, belief)| belief.alive == Liveness::Alive);
        let refuses = node.store.policy().without_majority == WithoutMajority::Refuse;
        let is_alone = refuses
            && !node.is_draining()
            && !silent.is_empty()
            && !hears_anyone
            && !view.is_pair();
        if is_alone && !self.is_alone {
            warn!(
                "this peer hears no other: {}. Changes of sessions and registers are refused, requests \
                 that only read new sessions are served. The others may be down, or this peer may be \
                 the one that is cut off: start them again under their names, or mend the network. If \
                 they never come back, an operator has to declare them gone",
                in_words(&silent)
            );
        } else if !is_alone && self.is_alone {
            info!(
                "this peer hears others again, or those that it does not hear left in good order"
            );
        }
        self.is_alone = is_alone;
    }
}
