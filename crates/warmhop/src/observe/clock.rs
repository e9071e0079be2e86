//! The only place that reads clocks and hands them to the core.
//!
//! Sessions end by the wall clock, and peers' wall clocks differ. So that one that is wrong neither
//! ends a session early nor begins one that others call over, each peer goes by the *mesh's* time:
//! the middle of its own clock and of those that others told, as far as its own is off. What
//! another's clock says is kept against this process's monotonic clock, so that it stays right when
//! this machine's clock is set, and it is kept when its peer is gone, so that the last one left does
//! not follow its own clock again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use tracing::{info, warn};
use warmhop_core::ids::{Now, PeerId, WallTime};

/// As far from the middle a clock counts as right: what a measurement may be off by.
const SLACK_MS: i64 = 500;
/// Beyond this a clock is warned of, once, until it is within [`CLOSE_MS`] again.
const FAR_MS: i64 = 2_000;
const CLOSE_MS: i64 = 1_000;
/// A measurement whose round trip took longer says too little.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(1);
/// The machine's wall clock is read anew after so long: both clocks are asked for some hundred
/// thousand times a second, and in between one goes as the other does.
const READ_EVERY_MS: u64 = 16;
/// So many peers' clocks are remembered.
const CLOCKS_MAX: usize = 1024;

/// This process's clocks, and what it knows of others'. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    start: Instant,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// What is added to the machine's wall clock: 0 but in tests.
    ahead_ms: i64,
    /// Between which epochs this peer's own counts as right. An *epoch* is what a wall clock said,
    /// or would have said, when this process's monotonic clock began.
    low: AtomicI64,
    high: AtomicI64,
    /// This peer's own epoch, and when it was read; 0 before the first time.
    own: AtomicI64,
    own_read_at: AtomicU64,
    others: Mutex<Others>,
}

#[derive(Debug, Default)]
struct Others {
    by_peer: BTreeMap<PeerId, Told>,
    /// This peer's own clock was warned of.
    warned_of_own: bool,
}

/// What a peer's clock said last.
#[derive(Debug, Clone, Copy)]
struct Told {
    epoch: i64,
    at: Now,
    warned: bool,
}

impl Clock {
    /// Whose wall clock is the machine's.
    pub(crate) fn new() -> Self {
        Self::ahead(0)
    }

    /// Whose wall clock is so many milliseconds ahead of the machine's.
    pub(crate) fn ahead(ahead_ms: i64) -> Self {
        Self {
            start: Instant::now(),
            shared: Arc::new(Shared {
                ahead_ms,
                low: AtomicI64::new(i64::MIN),
                high: AtomicI64::new(i64::MAX),
                own: AtomicI64::new(0),
                own_read_at: AtomicU64::new(0),
                others: Mutex::default(),
            }),
        }
    }

    /// Milliseconds since this peer's start.
    pub(crate) fn now(&self) -> Now {
        Now(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// The mesh's time, in milliseconds since the Unix epoch: what sessions begin and end by.
    pub(crate) fn wall(&self) -> WallTime {
        self.both().1
    }

    /// Both times at once: a clock is read some hundred thousand times a second.
    pub(crate) fn both(&self) -> (Now, WallTime) {
        let now = self.now();
        let since_start = i64::try_from(now.0).unwrap_or(i64::MAX);
        let right = self.right(self.own_epoch(now));
        let wall = u64::try_from(right.saturating_add(since_start)).unwrap_or_default();
        (now, WallTime(wall))
    }

    /// The epoch that counts where this peer's own is `epoch`.
    fn right(&self, epoch: i64) -> i64 {
        let (low, high) = (&self.shared.low, &self.shared.high);
        epoch.max(low.load(Ordering::Relaxed)).min(high.load(Ordering::Relaxed))
    }

    /// This peer's own epoch, as it was a moment ago.
    fn own_epoch(&self, now: Now) -> i64 {
        let Shared { own, own_read_at, .. } = &*self.shared;
        let read_at = own_read_at.load(Ordering::Acquire);
        if (read_at..read_at.saturating_add(READ_EVERY_MS)).contains(&now.0) && read_at > 0 {
            return own.load(Ordering::Relaxed);
        }
        let wall = i64::try_from(self.own_wall().0).unwrap_or(i64::MAX);
        let epoch = wall.saturating_sub(i64::try_from(now.0).unwrap_or(i64::MAX));
        own.store(epoch, Ordering::Relaxed);
        own_read_at.store(now.0, Ordering::Release);
        epoch
    }

    /// What this machine's wall clock says, right or wrong.
    pub(crate) fn own_wall(&self) -> WallTime {
        let span = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let machine = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        WallTime(u64::try_from(machine.saturating_add(self.shared.ahead_ms)).unwrap_or_default())
    }

    fn epoch(&self) -> i64 {
        let own = i64::try_from(self.own_wall().0).unwrap_or(i64::MAX);
        own.saturating_sub(self.since_start())
    }

    fn since_start(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// A peer was asked for its clock at `asked` and its answer came now: `told`.
    pub(crate) fn heard(&self, peer: &PeerId, asked: Now, told: WallTime) {
        let now = self.now();
        let round_trip = now.0.checked_sub(asked.0).map(Duration::from_millis);
        let Some(round_trip) = round_trip.filter(|it| *it <= ROUND_TRIP_MAX) else { return };
        // It was read half way.
        let read_at = now.0.saturating_sub(u64::try_from(round_trip.as_millis() / 2).unwrap_or(0));
        let epoch = i64::try_from(told.0).unwrap_or(i64::MAX).saturating_sub_unsigned(read_at);
        let mut others = self.others();
        let warned = others.by_peer.get(peer).is_some_and(|before| before.warned);
        others.by_peer.insert(peer.clone(), Told { epoch, at: now, warned });
        if others.by_peer.len() > CLOCKS_MAX {
            let oldest = others.by_peer.iter().min_by_key(|(_, told)| told.at);
            if let Some(oldest) = oldest.map(|(peer, _)| peer.clone()) {
                others.by_peer.remove(&oldest);
            }
        }
        self.settle(&mut others);
        self.warn(&mut others, peer);
    }

    /// Works out the middle: the lower one of two, so that nothing ends early.
    fn settle(&self, others: &mut Others) {
        let mut epochs: Vec<i64> = others.by_peer.values().map(|told| told.epoch).collect();
        epochs.sort_unstable();
        // The middle of these and of the own one is the own one between these two, else the nearer.
        let at = epochs.len() / 2;
        let below = at.checked_sub(1).and_then(|at| epochs.get(at));
        let low = below.map_or(i64::MIN, |epoch| epoch.saturating_sub(SLACK_MS));
        let high = epochs.get(at).map_or(i64::MAX, |epoch| epoch.saturating_add(SLACK_MS));
        self.shared.low.store(low, Ordering::Relaxed);
        self.shared.high.store(high, Ordering::Relaxed);
    }

    /// Warns once of a clock that is far from the middle, this peer's own or `peer`'s.
    fn warn(&self, others: &mut Others, peer: &PeerId) {
        let own = self.correction_ms().saturating_neg();
        if own.saturating_abs() > FAR_MS && !others.warned_of_own {
            others.warned_of_own = true;
            warn!(
                ahead_ms = own,
                "this machine's clock is far from the other peers': sessions go by the middle of all clocks; set this one right (NTP)"
            );
        } else if own.saturating_abs() < CLOSE_MS && others.warned_of_own {
            others.warned_of_own = false;
            info!("this machine's clock agrees with the other peers' again");
        }
        let middle = self.epoch().saturating_sub(own);
        let Some(told) = others.by_peer.get_mut(peer) else { return };
        let off = told.epoch.saturating_sub(middle);
        if off.saturating_abs() > FAR_MS && !told.warned {
            told.warned = true;
            warn!(
                %peer,
                ahead_ms = off,
                "the peer's clock is far from the others': sessions go by the middle of all clocks; set that one right (NTP)"
            );
        } else if off.saturating_abs() < CLOSE_MS && told.warned {
            told.warned = false;
            info!(%peer, "the peer's clock agrees with the others' again");
        }
    }

    /// The mesh's time less this machine's clock.
    pub(crate) fn correction_ms(&self) -> i64 {
        let own = self.epoch();
        self.right(own).saturating_sub(own)
    }

    /// How far a peer's clock is ahead of this machine's; `None` where it has not told.
    pub(crate) fn ahead_of_own_ms(&self, peer: &PeerId) -> Option<i64> {
        let told = self.others().by_peer.get(peer)?.epoch;
        Some(told.saturating_sub(self.epoch()))
    }

    fn others(&self) -> MutexGuard<'_, Others> {
        self.shared.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the machine's own clock shows, in milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTES_40: i64 = 40 * 60 * 1000;

    /// What `clock`'s time is ahead of the machine's, after clocks so far ahead of that were told;
    /// in whole seconds, since time passes.
    fn ahead_s(clock: &Clock, others: &[i64]) -> i64 {
        for (at, ahead) in others.iter().enumerate() {
            let peer = PeerId::new(&format!("peer-{at}")).unwrap();
            let told = Clock::ahead(*ahead).own_wall();
            clock.heard(&peer, clock.now(), told);
        }
        let machine = Clock::ahead(0).own_wall().0.cast_signed();
        (clock.wall().0.cast_signed() - machine + 500).div_euclid(1000)
    }

    #[test]
    fn one_clock_of_three_or_more_neither_leads_nor_follows_astray() {
        for wrong in [MINUTES_40, -MINUTES_40] {
            for right in 2..5_usize {
                let alone = Clock::ahead(wrong);
                let time = ahead_s(&alone, &vec![0; right]);
                assert!(time.abs() <= 1, "{wrong} ms off beside {right} right ones: {time} s");
                let mut others = vec![0; right - 1];
                others.push(wrong);
                let time = ahead_s(&Clock::ahead(0), &others);
                assert!(time.abs() <= 1, "right beside one that is {wrong} ms off: {time} s");
            }
        }
    }

    #[test]
    fn of_two_clocks_the_one_that_ends_nothing_early_counts_at_both() {
        for (own, other) in [(MINUTES_40, 0), (0, MINUTES_40)] {
            assert!(ahead_s(&Clock::ahead(own), &[other]).abs() <= 1);
        }
    }

    #[test]
    fn a_clock_alone_is_the_machines_and_a_small_difference_changes_nothing() {
        assert_eq!(ahead_s(&Clock::ahead(MINUTES_40), &[]), 2400);
        let clock = Clock::ahead(300);
        let _ = ahead_s(&clock, &[0, 0, 0]);
        assert_eq!(clock.correction_ms(), 0);
        assert!(!clock.others().warned_of_own);
    }

    #[test]
    fn a_far_clock_is_warned_of_once_until_it_is_close_again() {
        let clock = Clock::ahead(0);
        let peer = PeerId::new("peer-2").unwrap();
        let warned = |clock: &Clock| clock.others().by_peer[&peer].warned;
        let _ = ahead_s(&clock, &[0, 0, MINUTES_40]);
        assert!(warned(&clock));
        let off = clock.ahead_of_own_ms(&peer).unwrap();
        assert!((off - MINUTES_40).abs() < 100, "{off}");
        let _ = ahead_s(&clock, &[0, 0, 1_500]);
        assert!(warned(&clock), "nearer, but not close");
        let _ = ahead_s(&clock, &[0, 0, 100]);
        assert!(!warned(&clock));
        let own = Clock::ahead(MINUTES_40);
        let _ = ahead_s(&own, &[0, 0]);
        assert!(own.others().warned_of_own && !own.others().by_peer.values().any(|it| it.warned));
        assert!((own.correction_ms() + MINUTES_40).abs() <= SLACK_MS);
    }

    #[test]
    fn an_answer_that_took_too_long_or_came_before_it_was_asked_for_is_not_heeded() {
        let clock = Clock::ahead(0);
        let peer = PeerId::new("a").unwrap();
        let late = Now(clock.now().0 + 10_000);
        clock.heard(&peer, late, WallTime(7));
        assert_eq!(clock.ahead_of_own_ms(&peer), None);
    }
}
