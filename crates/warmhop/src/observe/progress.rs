//! How far the start of an app is.

use std::time::Duration;

use warmhop_core::app::ETA_FLOOR;

/// A start that is to end so soon is waited for: the page would only flash by.
const WORTH_A_PAGE: Duration = Duration::from_secs(1);

/// How far the start of an app is, wherever in the mesh its first copy comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// `ready`, `starting`, `failed` or `cold`.
    pub(crate) state: &'static str,
    /// How long until the first copy should be ready; absent where no start was measured.
    pub(crate) eta: Option<Duration>,
    /// How long the start has taken, where it is this peer's.
    pub(crate) elapsed: Option<Duration>,
    /// How often in a row it failed here.
    pub(crate) failures: u32,
    /// How long until it may be tried again here, after a failure.
    pub(crate) retry: Option<Duration>,
}

impl Progress {
    /// Whether it takes so long that a page is better than waiting. One that is overdue says the
    /// least that a start can need, and may take any time.
    pub(crate) fn is_worth_a_page(&self) -> bool {
        self.eta.is_none_or(|eta| eta > WORTH_A_PAGE || eta <= ETA_FLOOR)
    }
}
