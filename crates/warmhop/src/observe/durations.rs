//! A histogram of durations that requests count into without a lock, and that can be read back: the
//! history of an app's requests is made of the same counts that Prometheus scrapes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// The first bound; each later one is twice the one before it.
const FIRST_BOUND: Duration = Duration::from_micros(500);
/// How many buckets have a bound: up to 16 seconds. One more counts longer durations.
const BOUNDED: usize = 16;

/// How many durations fell into each bucket.
pub(crate) type Buckets = [u64; BOUNDED + 1];

/// The upper bounds of all buckets but the last, which has none.
pub(crate) fn bounds() -> impl Iterator<Item = Duration> {
    (0..BOUNDED as u32).map(|bucket| FIRST_BOUND * 2_u32.pow(bucket))
}

/// Which bucket counts a duration: the first whose bound is not below it.
fn bucket_of(took: Duration) -> usize {
    let Some(above) = took.as_nanos().checked_sub(1) else { return 0 };
    let doublings = u128::BITS - (above / FIRST_BOUND.as_nanos()).leading_zeros();
    (doublings as usize).min(BOUNDED)
}

/// A clone counts into the same histogram.
#[derive(Debug, Clone, Default)]
pub(crate) struct Durations(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    buckets: [AtomicU64; BOUNDED + 1],
    /// The sum of all durations; it would overflow after five hundred years of waiting.
    nanoseconds: AtomicU64,
}

impl Durations {
    pub(crate) fn observe(&self, took: Duration) {
        self.0.buckets[bucket_of(took)].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    pub(crate) fn buckets(&self) -> Buckets {
        std::array::from_fn(|bucket| self.0.buckets[bucket].load(Ordering::Relaxed))
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let counts = self.buckets();
        let bounds = bounds().map(|bound| bound.as_secs_f64()).chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let sum = Duration::from_nanos(self.0.nanoseconds.load(Ordering::Relaxed));
        let count = counts.iter().sum();
        encoder.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_first_bucket_whose_bound_is_not_below_it() {
        assert_eq!(bucket_of(Duration::ZERO), 0);
        for (bucket, bound) in bounds().enumerate() {
            assert_eq!(bucket_of(bound), bucket, "{bound:?}");
            assert_eq!(bucket_of(bound + Duration::from_nanos(1)), bucket + 1, "{bound:?}");
        }
        assert_eq!(bucket_of(Duration::MAX), BOUNDED);
    }

    #[test]
    fn a_scrape_shows_what_was_counted() {
        let durations = Durations::default();
        for took in [300, 700, 800, 20_000_000] {
            durations.observe(Duration::from_micros(took));
        }
        assert_eq!(durations.buckets()[..2], [1, 2]);
        let mut registry = Registry::default();
        registry.register("head", "A test", durations);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("it is encoded");
        for line in [
            "head_sum 20.0018",
            "head_count 4",
            "head_bucket{le=\"0.0005\"} 1",
            "head_bucket{le=\"0.001\"} 3",
            "head_bucket{le=\"16.384\"} 3",
            "head_bucket{le=\"+Inf\"} 4",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is missing from {text}");
        }
    }
}
