//! Whether waiting for a start can help where this peer starts none.

use core::time::Duration;

use super::{FAILED_STARTS_MAX, Question};
use crate::config::StartMode;
use crate::view::AppState;

/// Whether no peer may start the app, because operators hold it down: on this one or, if this one
/// never starts it, on the others.
pub(super) fn is_paused_everywhere(q: &Question<'_>) -> bool {
    let here = q.local.state == AppState::Paused;
    let never_here = q.app.start == StartMode::Never && !q.candidates.is_empty();
    (here || never_here) && q.candidates.iter().all(|c| c.state == AppState::Paused)
}

/// If only others may start the app, and it fails at all that do: after how long the next start
/// there may be ready, if the request need not wait for it. It need not if the back-off outlasts
/// its wait, or if two starts have failed while it waited, as for starts here.
pub(super) fn fails_elsewhere(q: &Question<'_>, left: Duration) -> Option<Duration> {
    let only_others = q.local.state == AppState::Paused || q.app.start == StartMode::Never;
    let in_vain = |state| matches!(state, AppState::Failed | AppState::Paused);
    if !only_others || !q.candidates.iter().all(|c| in_vain(c.state) || c.draining) {
        return None;
    }
    let mut soonest = None;
    for failing in q.candidates.iter().filter(|c| c.state == AppState::Failed && !c.draining) {
        // A copy that is unwell has no estimate: it may serve again at any moment.
        let again = failing.eta?;
        soonest = Some(soonest.map_or(again, |it: Duration| it.min(again)));
    }
    soonest.filter(|again| *again > left || q.failed_elsewhere >= FAILED_STARTS_MAX)
}
