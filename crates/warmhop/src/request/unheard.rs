//! The peers that this one does not hear, in words: why it answers that no majority can be reached.

use std::fmt::Write as _;
use std::time::Duration;

use warmhop_core::ids::PeerId;
use warmhop_core::view::Liveness;

use crate::request::node::Node;
use crate::request::problem::{NO_MAJORITY, Problem};

/// How many peers are named.
const NAMED_MAX: usize = 4;

impl Node {
    /// The peers that this one has known and does not hear, unless they left in good order, and for
    /// how long it has not; those that fell silent first come first.
    pub(crate) fn unheard(&self) -> Vec<(PeerId, Duration)> {
        let (view, now) = (self.view(), self.clock.now());
        let silent =
            view.peers().filter(|(_, belief)| belief.alive != Liveness::Alive && !belief.left);
        let mut silent: Vec<_> =
            silent.map(|(peer, it)| (peer.clone(), now.since(it.silent_since()))).collect();
        silent.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        silent
    }

    /// Adds to a problem for want of a majority which peers are not heard.
    pub(crate) fn name_unheard(&self, mut problem: Problem) -> Problem {
        let silent = self.unheard();
        if problem.detail == NO_MAJORITY && !silent.is_empty() {
            problem.detail = format!("{NO_MAJORITY}: {}", in_words(&silent));
        }
        problem
    }
}

/// Such as `peer-2 has not been heard for 41 s, nor peer-3 for 8 s`.
pub(crate) fn in_words(silent: &[(PeerId, Duration)]) -> String {
    let mut words = String::new();
    for (number, (peer, span)) in silent.iter().take(NAMED_MAX).enumerate() {
        let (before, verb) = if number == 0 { ("", " has not been heard") } else { (", nor ", "") };
        // Writing to a string cannot fail.
        let _ = write!(words, "{before}{peer}{verb} for {} s", span.as_secs());
    }
    if let Some(more) = silent.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        let _ = write!(words, ", nor {more} more");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_peers_are_named_as_far_as_there_is_room() {
        let silent = |count: u64| -> Vec<(PeerId, Duration)> {
            let peer = |n| PeerId::new(&format!("peer-{n}")).unwrap();
            (0..count).map(|n| (peer(n + 2), Duration::from_millis(41_900 - 1_000 * n))).collect()
        };
        assert_eq!(in_words(&silent(1)), "peer-2 has not been heard for 41 s");
        let two = "peer-2 has not been heard for 41 s, nor peer-3 for 40 s";
        assert_eq!(in_words(&silent(2)), two);
        let six = in_words(&silent(6));
        assert!(six.ends_with("nor peer-5 for 38 s, nor 2 more"), "{six}");
    }
}
