//! A process that was suspended: by a signal, or because its machine slept. Others have missed it meanwhile, have
//! been restarted and have begun what it held anew, and the first thing that it sees again may be a
//! request. Until it has heard from somebody it knows as little of the mesh as a newborn one.

use core::time::Duration;

use super::NEWBORN_FOR;
use crate::ids::{Now, WallTime};

/// How long a process is suspended before others miss it.
pub const STOOD_STILL: Duration = Duration::from_secs(2);

/// Notices that this process was suspended, by both clocks: the monotonic one may have stopped as
/// well. A wall clock that is set looks the same, and costs a moment's caution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stillness {
    ran: Option<(Now, WallTime)>,
    woke: Option<Now>,
}

impl Stillness {
    /// Notes that this process runs. It has to be called at least once in a second, and before
    /// [`Stillness::newborn_for`].
    pub fn runs(&mut self, now: Now, wall: WallTime) {
        if let Some((at, wall_at)) = self.ran {
            let by_wall = Duration::from_millis(wall.0.saturating_sub(wall_at.0));
            if now.since(at).max(by_wall) >= STOOD_STILL {
                self.woke = Some(now);
            }
        }
        self.ran = Some((now, wall));
    }

    /// For how much longer this process counts as newborn because it was suspended.
    #[must_use]
    pub fn newborn_for(&self, now: Now) -> Duration {
        self.woke.map_or(Duration::ZERO, |at| NEWBORN_FOR.saturating_sub(now.since(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_stood_still_is_newborn_by_whichever_clock_shows_it() {
        let mut it = Stillness::default();
        let mut runs = |now: u64, wall: u64| {
            it.runs(Now(now), WallTime(wall));
            it.newborn_for(Now(now))
        };
        assert_eq!(runs(1_000, 50_000), Duration::ZERO, "it has just begun to count");
        assert_eq!(runs(2_999, 51_999), Duration::ZERO);
        assert_eq!(runs(4_999, 53_999), NEWBORN_FOR);
        assert_eq!(runs(5_999, 54_999), NEWBORN_FOR - Duration::from_secs(1));
        assert_eq!(runs(6_999, 90_000), NEWBORN_FOR, "its monotonic clock stopped as well");
        assert_eq!(runs(8_000, 20_000), NEWBORN_FOR - Duration::from_millis(1_001), "set back");
        assert_eq!(runs(9_999, 21_000), Duration::ZERO);
    }
}
