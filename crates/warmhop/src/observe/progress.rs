//! How far an app's start has come.

use std::time::Duration;

use warmhop_core::app::ETA_FLOOR;

/// A client waits for a start that should end this soon: the page would only flash by.
const WORTH_A_PAGE: Duration = Duration::from_secs(1);

/// How far an app's start has come, wherever in the mesh its first copy is starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// `ready`, `starting`, `failed` or `cold`.
    pub(crate) state: &'static str,
    /// How long until the first copy should be ready; absent if no start was measured.
    pub(crate) eta: Option<Duration>,
    /// How long the start has taken, if it is this peer's.
    pub(crate) elapsed: Option<Duration>,
    /// How many starts in a row failed here.
    pub(crate) failures: u32,
    /// How long until it may be tried again here, after a failure.
    pub(crate) retry: Option<Duration>,
}

impl Progress {
    /// The part of it for clients that must learn nothing of what is behind a front door: whether
    /// the app is ready, and when it should be.
    pub(crate) fn for_anybody(self) -> Self {
        let state = if self.state == "ready" { "ready" } else { "starting" };
        Self { state, elapsed: None, failures: 0, retry: None, ..self }
    }

    /// Whether it takes so long that a page is better than waiting. The estimate of an overdue
    /// start is only the least that it can need; it may take any time.
    pub(crate) fn is_worth_a_page(&self) -> bool {
        self.eta.is_none_or(|eta| eta > WORTH_A_PAGE || eta <= ETA_FLOOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_progress_has_the_time_and_neither_failures_nor_reasons() {
        let eta = Some(Duration::from_secs(3));
        let failed = Progress { state: "failed", eta, elapsed: eta, failures: 3, retry: eta };
        let expected = Progress { state: "starting", eta, elapsed: None, failures: 0, retry: None };
        assert_eq!(failed.for_anybody(), expected);
        assert_eq!(Progress { state: "ready", ..failed }.for_anybody().state, "ready");
    }
}
