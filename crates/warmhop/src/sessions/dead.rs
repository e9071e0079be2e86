//! Which processes are gone for good because their peers were started again.

use std::num::NonZeroUsize;

use lru::LruCache;
use warmhop_core::ids::Incarnation;

/// How many former processes are remembered one by one, and for how many peers the latest process.
const REMEMBERED_MAX: usize = 4096;

/// This process's knowledge of processes that are gone.
///
/// A process that saw a peer restart knows which life ended. A process that was started later knows
/// it as well, since it hears of the later life: see [`Incarnation::is_before`].
pub(crate) struct Dead {
    ended: LruCache<Incarnation, ()>,
    latest: LruCache<[u8; 6], Incarnation>,
}

impl Dead {
    /// `me` is this process. Its existence proves that its peer's former processes are gone.
    pub(crate) fn new(me: Incarnation) -> Self {
        let max = NonZeroUsize::new(REMEMBERED_MAX).expect("a positive constant");
        let mut latest = LruCache::new(max);
        latest.put(me.name(), me);
        Self { ended: LruCache::new(max), latest }
    }

    /// The peer runs as `life` now, and no longer as `former`.
    pub(crate) fn lives(&mut self, life: Incarnation, former: Option<Incarnation>) {
        if let Some(former) = former {
            self.ended(former);
        }
        self.ended.pop(&life);
        self.latest.put(life.name(), life);
    }

    /// `life` is over, though its peer may not run again.
    pub(crate) fn ended(&mut self, life: Incarnation) {
        self.ended.put(life, ());
    }

    pub(crate) fn contains(&self, life: &Incarnation) -> bool {
        self.ended.contains(life)
            || self.latest.peek(&life.name()).is_some_and(|latest| life.is_before(latest))
    }
}

#[cfg(test)]
mod tests {
    use warmhop_core::ids::{PeerId, WallTime};

    use super::*;

    fn life(peer: &str, born: u64) -> Incarnation {
        Incarnation::of(&PeerId::new(peer).unwrap(), WallTime(born), 7)
    }

    #[test]
    fn a_process_that_began_after_a_death_learns_of_it_from_the_name() {
        let mut dead = Dead::new(life("a", 50));
        assert!(!dead.contains(&life("b", 10)));
        dead.lives(life("b", 20), None);
        assert!(dead.contains(&life("b", 10)));
        assert!(!dead.contains(&life("b", 20)) && !dead.contains(&life("c", 10)));
        // It is newer than the known one: nothing proves that it is gone.
        assert!(!dead.contains(&life("b", 30)));
    }

    #[test]
    fn a_process_is_proof_that_its_own_peers_former_ones_are_gone() {
        let dead = Dead::new(life("a", 50));
        assert!(dead.contains(&life("a", 40)) && !dead.contains(&life("a", 50)));
    }

    #[test]
    fn where_a_clock_went_back_the_peers_that_saw_the_restart_know() {
        let mut dead = Dead::new(life("a", 50));
        dead.lives(life("b", 20), None);
        dead.lives(life("b", 5), Some(life("b", 20)));
        assert!(dead.contains(&life("b", 20)) && !dead.contains(&life("b", 5)));
    }
}
