//! The only place that reads clocks and hands them to the core.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use warmhop_core::ids::{Now, WallTime};

/// This process's clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Milliseconds since this peer's start.
    pub(crate) fn now(&self) -> Now {
        Now(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Milliseconds since the Unix epoch.
    pub(crate) fn wall() -> WallTime {
        let span = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallTime(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }
}
