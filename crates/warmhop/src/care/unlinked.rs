//! Peers that are alive, as others report, and to which no link can be made from here: most often an
//! address that they advertise and that only they themselves reach.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::warn;
use warmhop_core::ids::PeerId;
use warmhop_core::view::{Liveness, PeerBelief};

use crate::request::node::Node;

/// How often one that lasts is logged again.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Why a peer that is believed to be alive has been without a link for a while.
pub(super) fn why(node: &Node, peer: &PeerId, belief: &PeerBelief) -> Option<String> {
    if belief.alive == Liveness::Alive { node.net.why_unlinked(peer) } else { None }
}

/// Warns of each at once, and again every minute while it lasts.
#[derive(Default)]
pub(crate) struct Watch {
    warned_at: BTreeMap<PeerId, Instant>,
}

impl Watch {
    pub(crate) fn look(&mut self, node: &Node) {
        let view = node.view();
        let missing: BTreeMap<_, _> = view
            .peers()
            .filter_map(|(peer, belief)| Some((peer, (belief.news.mesh, why(node, peer, belief)?))))
            .collect();
        self.warned_at.retain(|peer, _| missing.contains_key(peer));
        for (peer, (addr, reason)) in missing {
            if self.is_due(peer, Instant::now()) {
                warn!(
                    %peer,
                    %addr,
                    reason,
                    "there is no link to a peer that others hear: what only it can serve fails here; \
                     if the address is wrong, correct the one that the peer advertises"
                );
            }
        }
    }

    /// Whether to warn of a peer now; if so, the time is noted.
    fn is_due(&mut self, peer: &PeerId, now: Instant) -> bool {
        let warned_at = self.warned_at.get(peer);
        let is_due =
            warned_at.is_none_or(|warned_at| now.duration_since(*warned_at) >= AGAIN_AFTER);
        if is_due {
            self.warned_at.insert(peer.clone(), now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_problem_is_warned_of_at_once_and_each_minute() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        let [one, other] = ["one", "other"].map(|name| PeerId::new(name).unwrap());
        assert!(watch.is_due(&one, now));
        assert!(!watch.is_due(&one, now + AGAIN_AFTER / 2));
        assert!(watch.is_due(&other, now + AGAIN_AFTER / 2));
        assert!(watch.is_due(&one, now + AGAIN_AFTER));
        assert!(!watch.is_due(&one, now + AGAIN_AFTER));
    }
}
