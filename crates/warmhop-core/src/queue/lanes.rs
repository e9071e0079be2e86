//! Which of two queues gets the next place at the copy here: the one whose requests any copy can
//! serve, or the one whose requests only this copy can.
//!
//! They are two, since a request that could go elsewhere must not wait for one that cannot. Each gets
//! places in proportion to the clients that wait in it (by virtual times: Zhang, "VirtualClock",
//! 1990), so that neither clients nor requests gain by the queue that they are in. Refuses to know
//! who is in them.

/// What one client of a lane has had with one place, if it is alone in it.
const WHOLE: u64 = 1 << 32;

/// One of the two queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Of requests that any copy can serve.
    Any,
    /// Of requests that wait for the copy here alone.
    Here,
}

/// The turns of two queues at one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lanes {
    /// The places that each has had for each of its clients, in [`WHOLE`]s.
    any: u64,
    here: u64,
}

impl Lanes {
    /// The lane that gets the next place if requests wait in both.
    #[must_use]
    pub fn next(&self) -> Lane {
        if self.here <= self.any { Lane::Here } else { Lane::Any }
    }

    /// The first request has come to wait in a lane: that nobody waited in it before is no credit.
    pub fn begins(&mut self, lane: Lane) {
        let most = self.any.max(self.here);
        *self.of(lane) = most;
    }

    /// A request of `lane`, in which so many clients wait, has taken a place.
    pub fn took(&mut self, lane: Lane, clients: usize) {
        let part = WHOLE / u64::try_from(clients.max(1)).unwrap_or(WHOLE);
        let had = self.of(lane);
        *had = had.saturating_add(part);
    }

    fn of(&mut self, lane: Lane) -> &mut u64 {
        match lane {
            Lane::Any => &mut self.any,
            Lane::Here => &mut self.here,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many places each lane gets, with so many clients in it.
    fn parts(any: usize, here: usize, places: usize) -> (usize, usize) {
        let mut lanes = Lanes::default();
        let (mut to_any, mut to_here) = (0, 0);
        for _ in 0..places {
            match lanes.next() {
                Lane::Any => to_any += 1,
                Lane::Here => to_here += 1,
            }
            lanes.took(lanes.next(), if lanes.next() == Lane::Any { any } else { here });
        }
        (to_any, to_here)
    }

    #[test]
    fn each_lane_gets_places_in_proportion_to_its_clients() {
        assert_eq!(parts(1, 1, 10), (5, 5));
        assert_eq!(parts(3, 1, 40), (30, 10));
        let (any, here) = parts(1, 4, 50);
        assert!((10..=11).contains(&any), "{any} and {here}");
    }

    #[test]
    fn a_lane_that_was_empty_has_the_next_turn_and_no_credit() {
        let mut lanes = Lanes::default();
        for _ in 0..100 {
            lanes.took(Lane::Any, 1);
        }
        lanes.begins(Lane::Here);
        assert_eq!(lanes.next(), Lane::Here);
        lanes.took(Lane::Here, 1);
        assert_eq!(lanes.next(), Lane::Any, "not the hundred that it did not wait for");
        // A client that leaves and comes again has had its turn all the same.
        lanes.begins(Lane::Here);
        assert_eq!(lanes.next(), Lane::Any);
    }
}
