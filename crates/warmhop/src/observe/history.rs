//! The outcomes of each app's requests over the last minutes, so that a reader who looks only now
//! sees the past.
//!
//! It is made of the counters that a scrape reads, sampled once an interval: it costs a request
//! nothing, and an app without requests takes no memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use warmhop_core::ids::AppName;

use crate::observe::durations::{self, Buckets};
use crate::observe::status::{History, HistoryInterval};

/// How long one interval is.
pub(crate) const INTERVAL: Duration = Duration::from_secs(10);
/// How many intervals are kept: ten minutes of them.
const INTERVALS_MAX: u64 = 60;

/// What was counted for an app since the peer's start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) heads: Buckets,
}

impl Totals {
    /// The counts since `earlier`; `None` if there are none.
    fn since(&self, earlier: &Self) -> Option<Self> {
        let grown = |now: u64, before: u64| now.saturating_sub(before);
        let requests = grown(self.requests, earlier.requests);
        let failed = grown(self.failed, earlier.failed);
        // A request counts as soon as it is answered, and its answer may break off much later.
        (requests > 0 || failed > 0).then(|| Self {
            requests,
            failed,
            heads: std::array::from_fn(|at| grown(self.heads[at], earlier.heads[at])),
        })
    }
}

#[derive(Debug, Default)]
struct OfApp {
    /// As of the end of the last interval.
    totals: Totals,
    /// By the number of the interval, oldest first; intervals without requests are left out.
    intervals: VecDeque<(u64, Totals)>,
}

/// Keeps the history of every app.
#[derive(Debug, Default)]
pub(crate) struct Keeper(Mutex<BTreeMap<AppName, OfApp>>);

impl Keeper {
    /// Ends the interval that began one [`INTERVAL`] before `uptime`, or later ones if this was not
    /// called in time: counts since the last call belong to the newest.
    pub(crate) fn turn(&self, uptime: Duration, apps: impl Iterator<Item = (AppName, Totals)>) {
        let number = number_at(uptime);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (app, totals) in apps {
            let of_app = known.entry(app).or_default();
            if let Some(grown) = totals.since(&of_app.totals) {
                of_app.intervals.push_back((number, grown));
            }
            of_app.totals = totals;
        }
        let is_kept = |at: u64| at + INTERVALS_MAX > number;
        known.retain(|_, of_app| {
            while of_app.intervals.front().is_some_and(|(at, _)| !is_kept(*at)) {
                of_app.intervals.pop_front();
            }
            // The counters of an app that is gone continue if it comes back.
            !of_app.intervals.is_empty() || of_app.totals.requests > 0
        });
    }

    /// The intervals that have ended by `uptime`, and the current one so far.
    pub(crate) fn tell(
        &self,
        uptime: Duration,
        apps: impl Iterator<Item = (AppName, Totals)>,
    ) -> History {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = number_at(uptime);
        let under_way = uptime.saturating_sub(INTERVAL * u32::try_from(number).unwrap_or(u32::MAX));
        let histories = apps.map(|(app, totals)| {
            let of_app = known.get(&app);
            let ended = of_app.into_iter().flat_map(|of_app| &of_app.intervals);
            let ended = ended.filter(|(at, _)| at + INTERVALS_MAX > number).map(|(at, counted)| {
                let ago = INTERVAL * u32::try_from(number - at).unwrap_or(u32::MAX) + under_way;
                interval(ago, INTERVAL, counted)
            });
            let earlier = of_app.map(|of_app| &of_app.totals);
            let newest = totals.since(earlier.unwrap_or(&Totals::default()));
            let newest = newest.iter().map(|counted| interval(Duration::ZERO, under_way, counted));
            (app.to_string(), ended.chain(newest).collect())
        });
        History {
            interval_ms: millis(INTERVAL),
            intervals_max: INTERVALS_MAX,
            bounds_ms: durations::bounds().map(|bound| bound.as_secs_f64() * 1000.0).collect(),
            apps: histories.collect(),
        }
    }
}

/// How many intervals have ended by `uptime`.
fn number_at(uptime: Duration) -> u64 {
    millis(uptime) / millis(INTERVAL)
}

fn interval(ended: Duration, lasted: Duration, counted: &Totals) -> HistoryInterval {
    HistoryInterval {
        ended_ms_ago: millis(ended),
        lasted_ms: millis(lasted),
        requests: counted.requests,
        failed: counted.failed,
        heads: counted.heads.to_vec(),
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(requests: u64, failed: u64) -> impl Iterator<Item = (AppName, Totals)> {
        let mut heads = Buckets::default();
        heads[3] = requests;
        let app = AppName::new("shop").expect("a name");
        [(app, Totals { requests, failed, heads })].into_iter()
    }

    fn intervals(
        keeper: &Keeper,
        seconds: u64,
        requests: u64,
        failed: u64,
    ) -> Vec<(u64, u64, u64, u64)> {
        let history = keeper.tell(Duration::from_secs(seconds), counted(requests, failed));
        let intervals = history.apps["shop"].iter();
        intervals.map(|it| (it.ended_ms_ago, it.lasted_ms, it.requests, it.failed)).collect()
    }

    #[test]
    fn an_answer_that_breaks_off_counts_when_it_does() {
        let keeper = Keeper::default();
        keeper.turn(Duration::from_secs(10), counted(1, 0));
        assert_eq!(intervals(&keeper, 15, 1, 1).last(), Some(&(0, 5000, 0, 1)));
    }

    #[test]
    fn each_interval_tells_what_was_counted_in_it() {
        let keeper = Keeper::default();
        keeper.turn(Duration::from_secs(10), counted(5, 0));
        keeper.turn(Duration::from_secs(20), counted(5, 0));
        keeper.turn(Duration::from_secs(30), counted(12, 2));
        let all = intervals(&keeper, 34, 15, 2);
        assert_eq!(all, [(24_000, 10_000, 5, 0), (4_000, 10_000, 7, 2), (0, 4_000, 3, 0)]);
        let history = keeper.tell(Duration::from_secs(34), counted(15, 2));
        assert_eq!(history.apps["shop"][1].heads[3], 7);
        assert_eq!(history.bounds_ms[..2], [0.5, 1.0]);
    }

    #[test]
    fn intervals_older_than_ten_minutes_are_dropped() {
        let keeper = Keeper::default();
        keeper.turn(Duration::from_secs(10), counted(5, 0));
        keeper.turn(Duration::from_secs(20), counted(9, 0));
        assert_eq!(intervals(&keeper, 600, 9, 0).len(), 2);
        assert_eq!(intervals(&keeper, 610, 9, 0), [(590_000, 10_000, 4, 0)]);
        keeper.turn(Duration::from_secs(900), counted(9, 0));
        assert_eq!(intervals(&keeper, 900, 9, 0), []);
    }

    #[test]
    fn an_app_that_is_gone_and_comes_back_is_not_counted_twice() {
        let keeper = Keeper::default();
        keeper.turn(Duration::from_secs(10), counted(5, 0));
        keeper.turn(Duration::from_secs(700), std::iter::empty());
        assert_eq!(intervals(&keeper, 710, 5, 0), []);
    }
}
