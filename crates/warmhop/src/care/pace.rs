//! How much is begun at once of work that other peers have to answer: less where they are slow, so that
//! clients' requests do not wait behind thousands of repairs.

use std::ops::RangeInclusive;

/// A bound on the number of pieces of work under way, halved while most of the last ones have not ended,
/// and doubled while most have (additive-increase rules would take minutes to get anywhere here).
#[derive(Debug)]
pub(crate) struct Pace {
    limits: RangeInclusive<usize>,
    bound: usize,
    begun: usize,
}

impl Pace {
    /// Begins with the most that `limits` allow.
    pub(crate) const fn new(limits: RangeInclusive<usize>) -> Self {
        Self { bound: *limits.end(), limits, begun: 0 }
    }

    /// How many may be under way now, if `unfinished` of those last begun have not ended.
    pub(crate) fn bound(&mut self, unfinished: usize) -> usize {
        if 2 * unfinished > self.begun {
            self.bound = (self.bound / 2).max(*self.limits.start());
        } else if 4 * unfinished <= self.begun {
            self.bound = self.bound.saturating_mul(2).min(*self.limits.end());
        }
        self.bound
    }

    /// Notes how many are under way.
    pub(crate) fn begin(&mut self, count: usize) {
        self.begun = count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_peer_is_asked_for_less_until_it_keeps_up() {
        let mut pace = Pace::new(64..=512);
        let mut bounds = Vec::new();
        for unfinished in [0, 512, 200, 100, 64, 30, 10, 0, 0, 0, 0] {
            let bound = pace.bound(unfinished);
            pace.begin(bound);
            bounds.push(bound);
        }
        assert_eq!(bounds, [512, 256, 128, 64, 64, 64, 128, 256, 512, 512, 512]);
    }
}
