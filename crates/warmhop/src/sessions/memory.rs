//! How many bytes the sessions here take, and whether there is room for more.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tracing::{info, warn};
use warmhop_core::session::Session;

/// What a session takes beside what it holds.
const SESSION_BYTES: usize = 256;
/// The part of what it holds that the allocator adds, at most.
const ROUNDED_BY: usize = 8;
/// The part of the room that is kept for what was begun before it was full: for others' copies, and
/// for the records of changes of members.
const KEPT_FREE: u64 = 8;

/// A count of bytes, and its bound.
#[derive(Debug)]
pub(crate) struct Memory {
    bytes: AtomicU64,
    bytes_max: u64,
    warned: AtomicBool,
}

impl Memory {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { bytes: AtomicU64::new(0), bytes_max, warned: AtomicBool::new(false) }
    }

    /// How many bytes are taken.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many may be.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Counts a session anew that was `counted` before; `None` is one that is dropped.
    pub(crate) fn counts(&self, counted: &mut u32, session: Option<&Session>) {
        let now = session.map_or(0, |session| taken(session.bytes_held()));
        if now > *counted {
            self.bytes.fetch_add(u64::from(now - *counted), Ordering::Relaxed);
        } else if now < *counted {
            self.bytes.fetch_sub(u64::from(*counted - now), Ordering::Relaxed);
        }
        *counted = now;
    }

    /// Whether a copy of so many bytes fits in place of one of `held`.
    pub(crate) fn has_room(&self, bytes: usize, held: usize) -> bool {
        bytes <= held
            || self.bytes() + u64::from(taken(bytes)) - u64::from(taken(held)) <= self.bytes_max
    }

    /// Whether nothing further is to be begun that may take more.
    pub(crate) fn is_full(&self) -> bool {
        let bytes = self.bytes();
        let is_full = bytes >= self.bytes_max - self.bytes_max / KEPT_FREE;
        if is_full && !self.warned.swap(true, Ordering::Relaxed) {
            warn!(
                bytes,
                bytes_max = self.bytes_max,
                "sessions take all the memory that they may: changes are refused, reads and deletions go on; raise [session] memory, lower ttl, or keep less in sessions"
            );
        } else if bytes < self.bytes_max / 4 * 3 && self.warned.swap(false, Ordering::Relaxed) {
            info!(bytes, bytes_max = self.bytes_max, "there is room for sessions again");
        }
        is_full
    }
}

fn taken(held: usize) -> u32 {
    u32::try_from(SESSION_BYTES + held + held / ROUNDED_BY).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_fits_where_it_takes_no_more_than_is_left_or_than_the_one_before() {
        let memory = Memory::new(10_000);
        memory.bytes.store(9_000, Ordering::Relaxed);
        assert!(memory.has_room(800, 0) && !memory.has_room(1_000, 0));
        assert!(memory.has_room(1_000, 400));
        memory.bytes.store(11_000, Ordering::Relaxed);
        assert!(
            memory.has_room(400, 400) && memory.has_room(10, 400) && !memory.has_room(401, 400)
        );
    }

    #[test]
    fn changes_are_refused_while_there_is_room_for_what_they_bring_elsewhere() {
        let memory = Memory::new(8_000);
        for (bytes, is_full) in [(6_999, false), (7_000, true), (8_000, true), (5_000, false)] {
            memory.bytes.store(bytes, Ordering::Relaxed);
            assert_eq!(memory.is_full(), is_full, "{bytes}");
        }
    }
}
