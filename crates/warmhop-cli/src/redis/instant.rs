//! The time that `TIME` tells, in microseconds. The mesh's clock has milliseconds; within each of them
//! no two answers of a peer are the same, so that they can be told apart in a sorted set.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::frame::Reply;

/// Microseconds of a millisecond.
const OF_MS: u64 = 1000;

/// Some microsecond of the millisecond `ms` since 1970, and a later one than any before of the same one,
/// as long as there are such.
pub(super) fn micros(ms: u64) -> u64 {
    static LATEST: AtomicU64 = AtomicU64::new(0);
    let within = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_micros();
    later(&LATEST, ms, u64::from(within) % OF_MS)
}

/// The answer to `TIME`.
pub(super) fn reply(micros: u64) -> Reply {
    let parts = [micros / 1_000_000, micros % 1_000_000];
    Reply::Array(parts.map(|part| Reply::text(part.to_string())).into())
}

fn later(latest: &AtomicU64, ms: u64, within: u64) -> u64 {
    let first = ms.min(u64::MAX / OF_MS - 1) * OF_MS;
    let next = |latest: u64| match latest / OF_MS == ms {
        true => (latest + 1).max(first + within).min(first + OF_MS - 1),
        false => first + within,
    };
    let before = latest.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |it| Some(next(it)));
    next(before.unwrap_or_else(|unchanged| unchanged))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_answers_within_a_millisecond_are_the_same() {
        let latest = AtomicU64::new(0);
        let all: Vec<u64> = [7, 3, 3, 900, 5].map(|within| later(&latest, 50, within)).into();
        assert_eq!(all, [50_007, 50_008, 50_009, 50_900, 50_901]);
        // The clock may be set back.
        assert_eq!(later(&latest, 20, 4), 20_004);
        assert_eq!(later(&latest, 20, 999), 20_999);
        assert_eq!(later(&latest, 20, 0), 20_999, "there is none after that");
        assert_eq!(later(&latest, 21, 0), 21_000);
    }
}
