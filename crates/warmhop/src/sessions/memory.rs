//! How many bytes the sessions here use, and whether there is room for more, here and elsewhere.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{info, warn};
use warmhop_core::ids::{Incarnation, Now};
use warmhop_core::session::Session;
use warmhop_core::session::message::Config;

/// The bytes that a session uses beside its state and the requests that it remembers: its entry and its
/// place in the table, its configuration, and what surrounds its contents.
const SESSION_BYTES: usize = 448;
/// What it uses further where this peer owns it.
const OWNER_BYTES: u32 = 128;
/// The share that the allocator adds to a session's state, at most.
const ROUNDED_BY: usize = 8;
/// The share of the room that is reserved for sessions which began before it was full: for copies of
/// other peers' sessions, and for the records of changes of members.
const KEPT_FREE: u64 = 8;
/// The share of the room that is not for copies either, but for promises.
const KEPT_FOR_PROMISES: u64 = 16;
/// A peer that refused a copy counts as full for so long; then one change finds out.
const FULL_FOR: Duration = Duration::from_secs(2);

/// A count of bytes, and its bound.
#[derive(Debug)]
pub(crate) struct Memory {
    bytes: AtomicU64,
    bytes_max: AtomicU64,
    warned: AtomicBool,
    /// It has become hardly free, and has not had room for long since.
    hardly_free: AtomicBool,
}

impl Memory {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            bytes: AtomicU64::new(0),
            bytes_max: AtomicU64::new(bytes_max),
            warned: AtomicBool::new(false),
            hardly_free: AtomicBool::new(false),
        }
    }

    /// How many bytes are used.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many may be used.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max.load(Ordering::Relaxed)
    }

    /// Changes how many may be used. Sessions that exist stay.
    pub(crate) fn may_take(&self, bytes_max: u64) {
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// Updates the count of a session that was `counted` before; `None` for one that is dropped.
    pub(crate) fn counts(&self, counted: &mut u32, session: Option<&Session>) {
        let owner = |session: &Session| if session.is_owner() { OWNER_BYTES } else { 0 };
        let now = session.map_or(0, |session| taken(session.bytes_held()) + owner(session));
        if now > *counted {
            self.bytes.fetch_add(u64::from(now - *counted), Ordering::Relaxed);
        } else if now < *counted {
            self.bytes.fetch_sub(u64::from(*counted - now), Ordering::Relaxed);
        }
        *counted = now;
    }

    /// Whether a copy of so many bytes fits in place of one of `held`, if the session is known here. One of 0
    /// bytes is a promise, for which the last of the room is reserved: a peer that refuses it is no witness
    /// of the session.
    pub(crate) fn has_room(&self, bytes: usize, held: Option<usize>) -> bool {
        let bytes_max = self.bytes_max();
        let reserved = if bytes > 0 { bytes_max / KEPT_FOR_PROMISES } else { 0 };
        let before = u64::from(held.map_or(0, taken));
        let after = (self.bytes() + u64::from(taken(bytes))).saturating_sub(before);
        held.is_some_and(|held| bytes <= held) || after <= bytes_max - reserved
    }

    /// Whether the state of a session that is known here, of `held` bytes, may become one of `bytes`: both are
    /// held until the new one is chosen.
    pub(crate) fn may_grow(&self, held: usize, bytes: usize) -> bool {
        let added = |bytes: usize| u64::from(taken(bytes) - taken(0));
        let at_most = self.bytes() + added(bytes);
        let rest = at_most.saturating_sub(added(held));
        bytes <= held || at_most <= self.bytes_max() && rest <= self.for_own()
    }

    /// Whether a session with a state of so many bytes may begin here.
    pub(crate) fn may_begin(&self, bytes: usize) -> bool {
        self.bytes() + u64::from(taken(bytes) + OWNER_BYTES) <= self.for_own()
    }

    /// How many bytes may be used by what begins here.
    fn for_own(&self) -> u64 {
        let bytes_max = self.bytes_max();
        bytes_max - bytes_max / KEPT_FREE
    }

    /// Whether half of the room is used.
    pub(crate) fn is_half_full(&self) -> bool {
        self.bytes() >= self.bytes_max() / 2
    }

    /// Whether the room is full, so that nothing may begin that would use more.
    pub(crate) fn is_full(&self) -> bool {
        let bytes = self.bytes();
        let bytes_max = self.bytes_max();
        let is_full = bytes >= self.for_own();
        if is_full && !self.warned.swap(true, Ordering::Relaxed) {
            warn!(
                bytes,
                bytes_max,
                "sessions use all the memory that they may: changes are refused, reads and deletions are not; give them more memory or a shorter time to live, or keep less in them"
            );
        } else if bytes < bytes_max / 4 * 3 && self.warned.swap(false, Ordering::Relaxed) {
            info!(bytes, bytes_max, "there is room for sessions again");
        }
        is_full
    }

    /// Whether there is hardly any room for copies, or was a moment ago: this peer should get no more of them.
    /// Peers of equal memory stop to begin anything before.
    pub(crate) fn is_hardly_free(&self) -> bool {
        let (bytes, bytes_max) = (self.bytes(), self.bytes_max());
        if bytes >= bytes_max - bytes_max / KEPT_FREE / 4 * 3 {
            self.hardly_free.store(true, Ordering::Relaxed);
        } else if bytes < bytes_max / 4 * 3 && self.hardly_free.load(Ordering::Relaxed) {
            self.hardly_free.store(false, Ordering::Relaxed);
        }
        self.hardly_free.load(Ordering::Relaxed)
    }
}

/// Which peers had no room for a copy lately.
///
/// A change that no majority has room for is held by its owner alone, and is known to have failed
/// only much later, so it is better not begun.
#[derive(Debug, Default)]
pub(crate) struct FullPeers {
    refusals: Mutex<BTreeMap<Incarnation, Refusal>>,
    /// Whether there are any: read for each change.
    any: AtomicBool,
}

/// What a peer had no room for.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    at: Now,
    /// The size of the smallest copy that it refused lately, in bytes.
    bytes: usize,
}

impl FullPeers {
    /// A peer refused a copy of so many bytes: it has no room for that.
    pub(crate) fn note(&self, peer: Incarnation, bytes: usize, now: Now) {
        let mut refusals = self.refusals();
        refusals.retain(|_, it| is_lately(it.at, now));
        let known = refusals.entry(peer).or_insert(Refusal { at: now, bytes });
        *known = Refusal { at: now, bytes: bytes.min(known.bytes) };
        self.any.store(true, Ordering::Relaxed);
    }

    /// Whether so many of the members that decide about a change to a state of `bytes` have no room for it
    /// that it could not be committed.
    pub(crate) fn outvote(&self, config: &Config, bytes: usize, now: Now) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let mut refusals = self.refusals();
        refusals.retain(|_, it| is_lately(it.at, now));
        self.any.store(!refusals.is_empty(), Ordering::Relaxed);
        let refuses = |peer| refusals.get(&peer).is_some_and(|it| it.bytes <= bytes);
        !config.deciders().majority(|peer| !refuses(peer))
    }

    fn refusals(&self) -> MutexGuard<'_, BTreeMap<Incarnation, Refusal>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_lately(since: Now, now: Now) -> bool {
    now.since(since) < FULL_FOR
}

fn taken(held: usize) -> u32 {
    u32::try_from(SESSION_BYTES + held + held / ROUNDED_BY).unwrap_or(u32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use warmhop_core::session::message::Members;

    use super::*;

    #[test]
    fn a_change_is_not_begun_where_those_who_refused_copies_lately_are_a_majority() {
        let full = FullPeers::default();
        let peer = |at: u8| Incarnation([at; 16]);
        let config = |who: &[u8]| Config {
            now: Members::first(1, who.iter().map(|at| peer(*at))),
            prev: None,
        };
        let (three, two) = (config(&[1, 2, 3]), config(&[1, 2]));
        assert!(!full.outvote(&three, 900, Now(0)));
        full.note(peer(2), 900, Now(1_000));
        assert!(!full.outvote(&three, 900, Now(1_000)), "two of three have room");
        assert!(full.outvote(&two, 900, Now(1_000)));
        assert!(!full.outvote(&two, 899, Now(1_000)), "it may have room for less");
        full.note(peer(2), 500, Now(1_000));
        full.note(peer(2), 700, Now(1_000));
        assert!(full.outvote(&two, 500, Now(1_000)));
        full.note(peer(3), 500, Now(2_000));
        assert!(full.outvote(&three, 500, Now(2_000)));
        assert!(!full.outvote(&three, 500, Now(3_000)), "the first may have room again");
        assert!(!full.outvote(&two, 500, Now(3_000)));
        assert!(!full.outvote(&config(&[3]), 500, Now(4_000)));
        assert!(!full.any.load(Ordering::Relaxed));
    }

    #[test]
    fn a_copy_fits_where_it_takes_no_more_than_is_left_or_than_the_one_before() {
        let memory = Memory::new(10_000);
        memory.bytes.store(8_808, Ordering::Relaxed);
        assert!(memory.has_room(100, None) && !memory.has_room(200, None));
        assert!(memory.has_room(400, Some(200)));
        assert!(memory.has_room(0, None), "there is room for promises");
        memory.bytes.store(9_900, Ordering::Relaxed);
        assert!(!memory.has_room(0, None));
        assert!(memory.has_room(0, Some(0)));
        memory.bytes.store(11_000, Ordering::Relaxed);
        let fits = |bytes, held| memory.has_room(bytes, Some(held));
        assert!(fits(400, 400) && fits(10, 400) && !fits(401, 400));
    }

    #[test]
    fn a_state_grows_only_where_the_old_and_the_new_one_fit_beside_all_others() {
        let memory = Memory::new(80_000);
        memory.bytes.store(50_000, Ordering::Relaxed);
        let grows = |held, bytes| memory.may_grow(held, bytes);
        assert!(grows(0, 15_000) && !grows(0, 20_000), "an eighth is kept free for others' copies");
        assert!(grows(10_000, 25_000) && !grows(20_000, 30_000), "for a moment both are held");
        let begins = |bytes| memory.may_begin(bytes);
        assert!(begins(15_000) && !begins(20_000));
        memory.bytes.store(69_800, Ordering::Relaxed);
        assert!(grows(0, 100) && !begins(100), "it is counted from when it has begun");
        memory.bytes.store(79_000, Ordering::Relaxed);
        assert!(grows(20_000, 20_000) && !grows(0, 1));
    }

    #[test]
    fn a_peer_gets_no_copies_from_before_it_refuses_them_until_a_quarter_is_free() {
        let memory = Memory::new(8_000);
        for (bytes, is_hardly_free) in
            [(7_249, false), (7_250, true), (6_000, true), (5_999, false), (7_000, false)]
        {
            memory.bytes.store(bytes, Ordering::Relaxed);
            assert_eq!(memory.is_hardly_free(), is_hardly_free, "{bytes}");
        }
        memory.bytes.store(7_249, Ordering::Relaxed);
        assert!(memory.has_room(1, Some(0)), "not yet");
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
