//! The outcomes of each app's requests over the last minutes, put together from the history of
//! every peer that answers.

use std::collections::BTreeMap;

use warmhop::status::History;

/// How many intervals of one app are read, however many a peer sends.
const INTERVALS_MAX: u64 = 360;
/// How many of the newest intervals give the current rate.
const LATELY: usize = 3;

/// The requests of one interval.
#[derive(Debug, Clone, Copy, Default)]
struct Bin {
    requests: f64,
    failed: f64,
}

/// The requests of all apps.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    interval_ms: u64,
    /// The newest first.
    apps: BTreeMap<String, Vec<Bin>>,
}

impl Traffic {
    /// The traffic of all peers together. Their intervals do not begin together, so each is spread
    /// over those of the first peer that it overlaps.
    pub(super) fn of(histories: &[History]) -> Self {
        let Some(first) = histories.first().filter(|first| first.interval_ms > 0) else {
            return Self::default();
        };
        let (width, length) = (first.interval_ms, first.intervals_max.clamp(1, INTERVALS_MAX));
        let mut apps: BTreeMap<String, Vec<Bin>> = BTreeMap::new();
        let alike = histories.iter().filter(|peer| peer.interval_ms == width);
        for (name, intervals) in alike.flat_map(|peer| &peer.apps) {
            let bins =
                apps.entry(name.clone()).or_insert_with(|| vec![Bin::default(); length as usize]);
            for interval in intervals {
                let (from, lasted) = (interval.ended_ms_ago, interval.lasted_ms.max(1));
                let to = from.saturating_add(lasted);
                for (at, bin) in (0..).zip(bins.iter_mut()) {
                    let (begin, end) = (at * width, (at + 1) * width);
                    let within = to.min(end).saturating_sub(from.max(begin));
                    let share = within as f64 / lasted as f64;
                    bin.requests += interval.requests as f64 * share;
                    bin.failed += interval.failed as f64 * share;
                }
            }
        }
        Self { interval_ms: width, apps }
    }

    /// Whether any peer reported anything.
    pub(super) fn is_known(&self) -> bool {
        self.interval_ms > 0
    }

    /// Requests a second over the newest intervals.
    pub(super) fn lately(&self, app: &str) -> f64 {
        let Some(bins) = self.apps.get(app) else { return 0.0 };
        let requests: f64 = bins.iter().take(LATELY).map(|bin| bin.requests).sum();
        requests * 1e3 / (self.interval_ms * LATELY as u64).max(1) as f64
    }

    /// Requests in all, and those that failed.
    pub(super) fn counts(&self, app: &str) -> (f64, f64) {
        let bins = self.apps.get(app).into_iter().flatten();
        bins.fold((0.0, 0.0), |(all, failed), bin| (all + bin.requests, failed + bin.failed))
    }

    /// Requests, and those that failed, in `cells` equal parts of the time, oldest first.
    pub(super) fn parts(&self, app: &str, cells: usize) -> Vec<(u64, u64)> {
        let Some(bins) = self.apps.get(app) else { return vec![(0, 0); cells] };
        let each = bins.len().div_ceil(cells.max(1)).max(1);
        let mut parts: Vec<(u64, u64)> = bins
            .chunks(each)
            .map(|part| {
                let sum = |of: fn(&Bin) -> f64| part.iter().map(of).sum::<f64>().round() as u64;
                (sum(|bin| bin.requests), sum(|bin| bin.failed))
            })
            .collect();
        parts.resize(cells, (0, 0));
        parts.reverse();
        parts
    }

    /// How long ago the oldest reported interval is, in minutes.
    pub(super) fn minutes(&self) -> u64 {
        let intervals = self.apps.values().map(Vec::len).max().unwrap_or_default();
        self.interval_ms * intervals as u64 / 60_000
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[test]
    fn intervals_of_two_peers_that_do_not_begin_together_are_counted_once() {
        let history = |apps: serde_json::Value| {
            let body = json!({"interval_ms": 10_000, "intervals_max": 4, "apps": apps});
            History::deserialize(body).unwrap()
        };
        let traffic = Traffic::of(&[
            history(json!({"shop": [
                {"ended_ms_ago": 30_000, "lasted_ms": 10_000, "requests": 8},
                {"ended_ms_ago": 0, "lasted_ms": 5_000, "requests": 6, "failed": 2}
            ]})),
            history(
                json!({"shop": [{"ended_ms_ago": 5_000, "lasted_ms": 10_000, "requests": 10}]}),
            ),
        ]);
        assert_eq!(traffic.counts("shop"), (24.0, 2.0));
        assert_eq!(traffic.parts("shop", 4), [(8, 0), (0, 0), (5, 0), (11, 2)]);
        assert_eq!(traffic.parts("shop", 2), [(8, 0), (16, 2)]);
        assert!((traffic.lately("shop") - 16.0 / 30.0).abs() < 1e-9);
        assert_eq!(traffic.parts("nobody", 2), [(0, 0), (0, 0)]);
        assert!(!Traffic::of(&[History::default()]).is_known());
    }
}
