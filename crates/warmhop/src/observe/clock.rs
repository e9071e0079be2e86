//! The only place that reads clocks and hands them to the core.
//!
//! Sessions end by the wall clock, and peers' wall clocks differ. A wrong clock must neither end a
//! session early nor keep one that others consider ended. So each peer goes by the *mesh's* time:
//! the lower median of its own clock and its peers' clocks. If its own clock lies within the error
//! of the others' measurements, it counts as the median itself. So a lock that is taken at one peer
//! and looked up at another expires at both at once, whatever their machines' clocks show. Another
//! peer's clock is kept relative to this process's monotonic clock, so that it stays right when
//! this machine's clock is set. It is kept when that peer is gone, so that the last peer left does
//! not fall back to its own clock.
//!
//! A measurement is off by half of its round trip at most, so the quickest of a peer's last few
//! counts (the clock filter of RFC 5905, section 10); peers' times differ by no more than that
//! trip.
//!
//! A clock that is *set* while its process runs is not followed at once: sessions that began by the
//! old time would end early by the new one, and with no other peer, or only one, no other clock can
//! correct it. This peer's clock then goes by the process's monotonic clock, and follows the
//! machine's slowly.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use tracing::{info, warn};
use warmhop_core::ids::{Now, PeerId, WallTime};

/// The machine's clock counts as set if it jumps by more than this. NTP may step it by less.
const STEP_MS: i64 = 500;
/// Of this many measurements of a peer's clock the one with the shortest round trip counts.
const MEASUREMENTS: usize = 8;
/// A clock that is further off is warned of, once, until it is within [`CLOSE_MS`] again.
const FAR_MS: i64 = 2_000;
const CLOSE_MS: i64 = 1_000;
/// Clocks are read and sent in whole milliseconds.
const ROUNDED_MS: i64 = 1;
/// A measurement with a longer round trip is too inexact.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(1);
/// The machine's wall clock is read again after this time: time is asked for some hundred thousand
/// times a second, and in between the monotonic clock advances as the wall clock does.
const READ_EVERY_MS: u64 = 16;
/// This machine's two clocks count as read at once if they are read within this time. Otherwise
/// they are read again, so many times: a thread may be descheduled between the two.
const AT_ONCE: Duration = Duration::from_micros(50);
const READINGS_MAX: usize = 8;
/// A clock that was set is followed by one millisecond in so many: a session of half an hour ends
/// half a minute early at most.
const FOLLOWED_BY: u64 = 60;
/// Before this, 1 January 2020, a clock shows a time that nobody set it to: that of a machine
/// without a battery, until it has asked the network.
const NEVER_SET_BEFORE_MS: i64 = 1_577_836_800_000;
/// The clocks of this many peers are remembered.
const CLOCKS_MAX: usize = 1024;

/// This process's clocks, and its knowledge of others'. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    start: Instant,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// What is added to the machine's wall clock: 0 but in tests.
    ahead_ms: i64,
    /// The time of the machine's wall clock, in milliseconds, if a test sets it.
    #[cfg(test)]
    shown: Option<AtomicU64>,
    /// The bounds within which this peer's own epoch counts as right. An *epoch* is what a wall
    /// clock showed, or would have shown, when this process's monotonic clock began.
    low: AtomicI64,
    high: AtomicI64,
    /// This peer's own epoch, and when it was read; 0 before the first time.
    own: AtomicI64,
    own_read_at: AtomicU64,
    /// The machine's clock was set, and this peer's has not caught up with it yet.
    was_set: AtomicBool,
    others: Mutex<Others>,
}

#[derive(Debug, Default)]
struct Others {
    by_peer: BTreeMap<PeerId, PeerClock>,
    /// A warning about this peer's own clock was logged.
    warned_of_own: bool,
}

/// The measurements of a peer's clock.
#[derive(Debug)]
struct PeerClock {
    /// The last measurements, the newest at the end.
    measured: VecDeque<Measured>,
    at: Now,
    warned: bool,
}

/// A measurement of a peer's epoch, and its error bound in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Measured {
    epoch: i64,
    off: i64,
}

impl PeerClock {
    /// The measurement that counts: the newest of those with the least error.
    fn best(&self) -> Option<Measured> {
        self.measured.iter().rev().min_by_key(|it| it.off).copied()
    }
}

impl Clock {
    /// A clock that follows the machine's wall clock.
    pub(crate) fn new() -> Self {
        Self::ahead(0)
    }

    /// A clock that is so many milliseconds ahead of the machine's.
    pub(crate) fn ahead(ahead_ms: i64) -> Self {
        Self {
            start: Instant::now(),
            shared: Arc::new(Shared {
                ahead_ms,
                #[cfg(test)]
                shown: None,
                low: AtomicI64::new(i64::MIN),
                high: AtomicI64::new(i64::MAX),
                own: AtomicI64::new(0),
                own_read_at: AtomicU64::new(0),
                was_set: AtomicBool::new(false),
                others: Mutex::default(),
            }),
        }
    }

    /// Milliseconds since this peer's start.
    pub(crate) fn now(&self) -> Now {
        self.at(Instant::now())
    }

    /// The same for a moment that was read already.
    pub(crate) fn at(&self, moment: Instant) -> Now {
        let span = moment.saturating_duration_since(self.start);
        Now(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }

    /// The mesh's time, in milliseconds since the Unix epoch: sessions begin and end by it.
    pub(crate) fn wall(&self) -> WallTime {
        self.both().1
    }

    /// Both times from one reading: a clock is read some hundred thousand times a second.
    pub(crate) fn both(&self) -> (Now, WallTime) {
        let now = self.now();
        let since_start = i64::try_from(now.0).unwrap_or(i64::MAX);
        let right = self.right(self.own_epoch(now));
        let wall = u64::try_from(right.saturating_add(since_start)).unwrap_or_default();
        (now, WallTime(wall))
    }

    /// The epoch of the mesh's time if this peer's own is `epoch`.
    fn right(&self, epoch: i64) -> i64 {
        let (low, high) = (&self.shared.low, &self.shared.high);
        epoch.max(low.load(Ordering::Relaxed)).min(high.load(Ordering::Relaxed))
    }

    /// This peer's own epoch, as it was a moment ago.
    fn own_epoch(&self, now: Now) -> i64 {
        let Shared { own, own_read_at, was_set, .. } = &*self.shared;
        let read_at = own_read_at.load(Ordering::Acquire);
        let before = own.load(Ordering::Relaxed);
        if (read_at..read_at.saturating_add(READ_EVERY_MS)).contains(&now.0) && read_at > 0 {
            return before;
        }
        let machine = self.epoch();
        let off = machine.saturating_sub(before);
        let was_never_set = before < NEVER_SET_BEFORE_MS;
        if read_at == 0 || was_never_set || off.saturating_abs() <= STEP_MS {
            was_set.store(false, Ordering::Relaxed);
            own.store(machine, Ordering::Relaxed);
            own_read_at.store(now.0, Ordering::Release);
            return machine;
        }
        if !was_set.swap(true, Ordering::Relaxed) {
            warn!(
                by_ms = off,
                "this machine's clock was set: sessions, which end by it, follow it by a second a minute, so that none ends early; a restart of this peer follows it at once"
            );
        }
        let most = now.0.saturating_sub(read_at) / FOLLOWED_BY;
        if most == 0 {
            return before;
        }
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let followed = before.saturating_add(off.clamp(-most, most));
        own.store(followed, Ordering::Relaxed);
        own_read_at.store(now.0, Ordering::Release);
        followed
    }

    /// The reading for other peers: this peer's own clock, without their corrections.
    pub(crate) fn own_reading(&self) -> WallTime {
        let now = self.now();
        let since_start = i64::try_from(now.0).unwrap_or(i64::MAX);
        let own = self.own_epoch(now).saturating_add(since_start);
        WallTime(u64::try_from(own).unwrap_or_default())
    }

    /// The time of this machine's wall clock, right or wrong.
    pub(crate) fn own_wall(&self) -> WallTime {
        let machine = i64::try_from(self.machine().as_millis()).unwrap_or(i64::MAX);
        WallTime(u64::try_from(machine.saturating_add(self.shared.ahead_ms)).unwrap_or_default())
    }

    /// The time since 1970 on the machine's wall clock.
    fn machine(&self) -> Duration {
        #[cfg(test)]
        if let Some(shown) = &self.shared.shown {
            return Duration::from_millis(shown.load(Ordering::Relaxed));
        }
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// This peer's own epoch, from a new reading of both clocks.
    fn epoch(&self) -> i64 {
        let machine = epoch_of(|| {
            let before = self.start.elapsed();
            Reading { before, wall: self.machine(), after: self.start.elapsed() }
        });
        machine.saturating_add(self.shared.ahead_ms)
    }

    /// Takes the clock `reading` of a peer that was asked at `asked` and whose answer arrived now.
    pub(crate) fn heard(&self, peer: &PeerId, asked: Now, reading: WallTime) {
        let now = self.now();
        let round_trip = now.0.checked_sub(asked.0).map(Duration::from_millis);
        let Some(round_trip) = round_trip.filter(|it| *it <= ROUND_TRIP_MAX) else { return };
        // The peer read it half way through the round trip, or at either end at worst.
        let half = u64::try_from(round_trip.as_millis() / 2).unwrap_or(0);
        let read_at = now.0.saturating_sub(half);
        let epoch = i64::try_from(reading.0).unwrap_or(i64::MAX).saturating_sub_unsigned(read_at);
        let measured = Measured { epoch, off: i64::try_from(half).unwrap_or(0) + ROUNDED_MS };
        let mut others = self.others();
        let about = others.by_peer.entry(peer.clone()).or_insert_with(|| PeerClock {
            measured: VecDeque::with_capacity(MEASUREMENTS),
            at: now,
            warned: false,
        });
        // Drops measurements that disagree with this one: the peer's clock was set since.
        about.measured.retain(|it| (it.epoch - epoch).saturating_abs() <= it.off + measured.off);
        if about.measured.len() == MEASUREMENTS {
            about.measured.pop_front();
        }
        about.measured.push_back(measured);
        about.at = now;
        if others.by_peer.len() > CLOCKS_MAX {
            let oldest = others.by_peer.iter().min_by_key(|(_, reading)| reading.at);
            if let Some(oldest) = oldest.map(|(peer, _)| peer.clone()) {
                others.by_peer.remove(&oldest);
            }
        }
        self.settle(&mut others);
        self.warn(&mut others, peer);
    }

    /// Computes the median: the lower one of two, so that nothing ends early.
    fn settle(&self, others: &mut Others) {
        let mut epochs: Vec<Measured> =
            others.by_peer.values().filter_map(PeerClock::best).collect();
        epochs.sort_unstable();
        // The median of these and the own epoch is the own one if it lies between these two, else
        // the nearer.
        let at = epochs.len() / 2;
        let below = at.checked_sub(1).and_then(|at| epochs.get(at));
        let low = below.map_or(i64::MIN, |it| it.epoch.saturating_sub(it.off));
        let high = epochs.get(at).map_or(i64::MAX, |it| it.epoch.saturating_add(it.off));
        self.shared.low.store(low, Ordering::Relaxed);
        self.shared.high.store(high, Ordering::Relaxed);
    }

    /// Warns once if the own clock or `peer`'s is far from the median.
    fn warn(&self, others: &mut Others, peer: &PeerId) {
        let own = self.correction_ms().saturating_neg();
        if own.saturating_abs() > FAR_MS && !others.warned_of_own {
            others.warned_of_own = true;
            warn!(
                ahead_ms = own,
                "this machine's clock is far from the other peers': sessions go by the median of all clocks; correct this one (NTP)"
            );
        } else if own.saturating_abs() < CLOSE_MS && others.warned_of_own {
            others.warned_of_own = false;
            info!("this machine's clock agrees with the other peers' again");
        }
        let middle = self.epoch().saturating_sub(own);
        let Some(about) = others.by_peer.get_mut(peer) else { return };
        let Some(best) = about.best() else { return };
        let off = best.epoch.saturating_sub(middle);
        if off.saturating_abs() > FAR_MS && !about.warned {
            about.warned = true;
            warn!(
                %peer,
                ahead_ms = off,
                "the peer's clock is far from the others': sessions go by the median of all clocks; correct that one (NTP)"
            );
        } else if off.saturating_abs() < CLOSE_MS && about.warned {
            about.warned = false;
            info!(%peer, "the peer's clock agrees with the others' again");
        }
    }

    /// The mesh's time less this machine's clock.
    pub(crate) fn correction_ms(&self) -> i64 {
        self.right(self.own_epoch(self.now())).saturating_sub(self.epoch())
    }

    /// How far a peer's clock is ahead of this machine's; `None` where it has not sent one.
    pub(crate) fn ahead_of_own_ms(&self, peer: &PeerId) -> Option<i64> {
        let best = self.others().by_peer.get(peer)?.best()?;
        Some(best.epoch.saturating_sub(self.epoch()))
    }

    /// Whether a peer's clock was measured often enough that one slow answer does not matter.
    pub(crate) fn knows(&self, peer: &PeerId) -> bool {
        let others = self.others();
        others.by_peer.get(peer).is_some_and(|about| about.measured.len() >= MEASUREMENTS / 2)
    }

    fn others(&self) -> MutexGuard<'_, Others> {
        self.shared.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time of the wall clock between two readings of the monotonic one.
#[derive(Debug, Clone, Copy)]
struct Reading {
    before: Duration,
    wall: Duration,
    after: Duration,
}

/// What the wall clock showed when the monotonic one began, in milliseconds, rounded down. It goes
/// by the first reading that counts as at once, or by the one whose clocks were closest together.
fn epoch_of(read: impl FnMut() -> Reading) -> i64 {
    let apart = |reading: &Reading| reading.after.saturating_sub(reading.before);
    let mut closest: Option<Reading> = None;
    for reading in std::iter::repeat_with(read).take(READINGS_MAX) {
        if closest.is_none_or(|closest| apart(&reading) < apart(&closest)) {
            closest = Some(reading);
        }
        if apart(&reading) <= AT_ONCE {
            break;
        }
    }
    let Some(Reading { before, wall, after }) = closest else { return 0 };
    let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    let between = before + after.saturating_sub(before) / 2;
    micros(wall).saturating_sub(micros(between)).div_euclid(1_000)
}

/// The time of the machine's own clock, in milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTES_40: i64 = 40 * 60 * 1000;

    /// By how much `clock`'s time is ahead of the machine's after it heard of clocks that are ahead
    /// by `others`; in whole seconds, since time passes.
    fn ahead_s(clock: &Clock, others: &[i64]) -> i64 {
        for (at, ahead) in others.iter().enumerate() {
            let peer = PeerId::new(&format!("peer-{at}")).unwrap();
            let reading = Clock::ahead(*ahead).own_wall();
            clock.heard(&peer, clock.now(), reading);
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
    fn a_clock_alone_is_the_machines() {
        assert_eq!(ahead_s(&Clock::ahead(MINUTES_40), &[]), 2400);
    }

    #[test]
    fn a_thread_that_is_descheduled_between_two_clocks_moves_neither() {
        let ms = Duration::from_millis;
        let reading = |before, wall, after| Reading { before, wall: ms(wall), after };
        let stalled = reading(ms(5), 1_045, ms(60));
        let whole = reading(ms(61), 1_061, ms(61) + Duration::from_micros(20));
        let mut read = [stalled, stalled, whole, stalled].into_iter();
        assert_eq!(epoch_of(|| read.next().unwrap()), 999, "1,000 less 10 us");
        assert_eq!(read.len(), 1, "none is read after one that is whole");
        let less = reading(ms(100), 1_101, ms(101));
        let mut read =
            std::iter::repeat_n(stalled, 4).chain([less]).chain(std::iter::repeat(stalled));
        assert_eq!(epoch_of(|| read.next().unwrap()), 1_000, "the closest of all");
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
        assert!((own.correction_ms() + MINUTES_40).abs() <= 100);
    }

    /// Some moment of 2026.
    const BEGAN_MS: u64 = 1_780_000_000_000;
    const MINUTE_MS: u64 = 60 * 1_000;

    /// The clock of a peer whose machine's clock shows `ms` and advances only by [`passes`].
    fn showing(ms: u64) -> Clock {
        let mut clock = Clock::ahead(0);
        Arc::get_mut(&mut clock.shared).unwrap().shown = Some(AtomicU64::new(ms));
        clock
    }

    fn set(clock: &Clock, by_ms: i64) {
        let shown = clock.shared.shown.as_ref().unwrap();
        let before = shown.load(Ordering::Relaxed);
        shown.store(before.checked_add_signed(by_ms).unwrap(), Ordering::Relaxed);
    }

    /// Time passes for both clocks of each peer's machine.
    async fn passes(clocks: &[Clock], ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
        clocks.iter().for_each(|clock| set(clock, ms.cast_signed()));
    }

    /// By how many milliseconds the mesh's time is off if it should have advanced by `since_ms`.
    fn off_ms(clock: &Clock, since_ms: u64) -> u64 {
        clock.wall().0.abs_diff(BEGAN_MS + since_ms)
    }

    /// A peer whose clock is `ahead_ms` from the mesh's is measured in a round trip of `round_trip_ms`,
    /// all of which its answer took.
    async fn measured(clock: &Clock, peer: &str, ahead_ms: i64, round_trip_ms: u64) {
        let asked = clock.now();
        let machine = BEGAN_MS + asked.0;
        passes(std::slice::from_ref(clock), round_trip_ms).await;
        let reported = WallTime(machine.checked_add_signed(ahead_ms).unwrap());
        clock.heard(&PeerId::new(peer).unwrap(), asked, reported);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_a_little_ahead_of_the_others_ends_no_lock_early() {
        for ahead_ms in [400, -400, 3_000, 3_600_000] {
            let clock = showing(BEGAN_MS.checked_add_signed(ahead_ms).unwrap());
            for peer in ["b", "c"] {
                measured(&clock, peer, 0, 2).await;
            }
            let off = off_ms(&clock, clock.now().0);
            assert!(off <= 3, "{ahead_ms} ms ahead: the mesh's time is off by {off} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_measurement_that_took_long_moves_no_clock() {
        let clock = showing(BEGAN_MS + 400);
        for peer in ["b", "c"] {
            measured(&clock, peer, 0, 2).await;
        }
        for _ in 0..MEASUREMENTS - 1 {
            for peer in ["b", "c"] {
                measured(&clock, peer, 0, 800).await;
            }
            let off = off_ms(&clock, clock.now().0);
            assert!(off <= 3, "{off} ms off");
        }
        // If all measurements took long, it is off by as much as they took.
        for peer in ["b", "c"] {
            measured(&clock, peer, 0, 800).await;
        }
        let off = off_ms(&clock, clock.now().0);
        assert!(off <= 801, "{off} ms off");
        // A right clock is not moved by them.
        let right = showing(BEGAN_MS);
        for peer in ["b", "c"] {
            measured(&right, peer, 0, 800).await;
        }
        assert_eq!(off_ms(&right, right.now().0), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_ends_nothing_early_though_nobody_else_tells_the_time() {
        for by_ms in [MINUTES_40, -MINUTES_40] {
            let clock = [showing(BEGAN_MS)];
            passes(&clock, 50).await;
            assert_eq!(off_ms(&clock[0], 50), 0);
            set(&clock[0], by_ms);
            passes(&clock, MINUTE_MS).await;
            let off = off_ms(&clock[0], 50 + MINUTE_MS);
            assert!(off <= 1_001, "set by {by_ms} ms: {off} ms off after a minute");
            let correction = clock[0].correction_ms() + by_ms;
            assert!(correction.abs() <= 1_001, "it learns how far off it is: {correction}");
            // It is set right again, and nothing happens.
            set(&clock[0], -by_ms);
            passes(&clock, MINUTE_MS).await;
            let off = off_ms(&clock[0], 50 + 2 * MINUTE_MS);
            assert!(off <= 1_001, "and back: {off} ms off after two");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_for_good_is_caught_up_with_a_little_at_a_time() {
        let clock = [showing(BEGAN_MS)];
        passes(&clock, 50).await;
        assert_eq!(off_ms(&clock[0], 50), 0);
        set(&clock[0], 10_000);
        for minute in 1..=9 {
            passes(&clock, MINUTE_MS).await;
            assert_eq!(off_ms(&clock[0], 50 + minute * MINUTE_MS), minute * 1_000);
        }
        for _ in 0..2 {
            passes(&clock, MINUTE_MS).await;
            let _ = clock[0].wall();
        }
        assert_eq!(off_ms(&clock[0], 50 + 11 * MINUTE_MS), 10_000);
        assert_eq!(clock[0].correction_ms(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_showed_no_time_at_all_is_followed_at_once() {
        let clock = [showing(1_000)];
        passes(&clock, 50).await;
        assert_eq!(clock[0].wall(), WallTime(1_050));
        set(&clock[0], BEGAN_MS.cast_signed() - 1_000);
        passes(&clock, MINUTE_MS).await;
        assert_eq!(off_ms(&clock[0], 50 + MINUTE_MS), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_peer_follows_clocks_that_are_set_be_they_one_or_most_of_them() {
        for (count, moved) in [(2, 1), (2, 2), (3, 1), (3, 2), (3, 3), (4, 2)] {
            let clocks: Vec<Clock> = (0..count).map(|_| showing(BEGAN_MS)).collect();
            let tell = || {
                for (at, clock) in clocks.iter().enumerate() {
                    for other in (0..count).filter(|other| *other != at) {
                        let peer = PeerId::new(&format!("peer-{other}")).unwrap();
                        clock.heard(&peer, clock.now(), clocks[other].own_reading());
                    }
                }
            };
            passes(&clocks, 50).await;
            tell();
            let mut passed = 50;
            for by_ms in [-MINUTES_40, 2 * MINUTES_40, -MINUTES_40] {
                clocks.iter().take(moved).for_each(|clock| set(clock, by_ms));
                passes(&clocks, 20_000).await;
                passed += 20_000;
                tell();
                for clock in &clocks {
                    let off = off_ms(clock, passed);
                    assert!(off < 1_000, "{moved} of {count} set by {by_ms} ms: {off} ms off");
                }
            }
        }
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
