//! Answers that were cut off after their head: counted by app, and logged, since their status says
//! that all went well.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tracing::info;
use warmhop_core::ids::{AppName, PeerId, RequestId};

use crate::observe::labels::ByApp;

/// How many of these lines are logged within [`LINES_WITHIN`]: an app that dies cuts off all that it
/// was answering.
const LINES_MAX: u32 = 20;
const LINES_WITHIN: Duration = Duration::from_secs(1);

/// What a peer knows of the answers that were cut off. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct CutOffs {
    by_app: Family<ByApp, Counter>,
    lines: Arc<Mutex<Lines>>,
}

/// Bounds the lines: at most [`LINES_MAX`] within [`LINES_WITHIN`].
#[derive(Debug, Default)]
struct Lines {
    since: Option<Instant>,
    logged: u32,
    /// How many were not logged since the last line.
    not_logged: u64,
}

/// An answer that was cut off.
pub(crate) struct CutOff<'a> {
    pub(crate) id: &'a RequestId,
    pub(crate) app: &'a AppName,
    /// The way of a client's request, or `hop received`.
    pub(crate) way: &'static str,
    /// The peer that ran it, if it is known.
    pub(crate) peer: Option<&'a PeerId>,
    /// The peer that sent the request here, if one did.
    pub(crate) from: Option<&'a PeerId>,
    /// How many bytes of its body had come.
    pub(crate) bytes: u64,
}

impl CutOffs {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let cut_offs = Self::default();
        registry.register(
            "answers_cut_off",
            "Answers whose body broke off after their head, by app",
            cut_offs.by_app.clone(),
        );
        cut_offs
    }

    /// Begins an app's series at 0.
    pub(crate) fn begin(&self, app: &AppName) {
        let _ = self.by_app.get_or_create(&ByApp { app: app.to_string() });
    }

    /// Counts a client's answer that was cut off, and logs it.
    pub(crate) fn note(&self, what: &CutOff<'_>, reason: &dyn fmt::Display) {
        self.by_app.get_or_create(&ByApp { app: what.app.to_string() }).inc();
        self.log(what, reason);
    }

    /// Logs an answer that was cut off, unless there have just been many.
    pub(crate) fn log(&self, what: &CutOff<'_>, reason: &dyn fmt::Display) {
        let CutOff { id, app, way, peer, from, bytes } = what;
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(not_logged) = lines.next(Instant::now()) else { return };
        drop(lines);
        info!(
            request = %id,
            %app,
            way,
            peer = peer.map(PeerId::as_str),
            from = from.map(PeerId::as_str),
            bytes,
            %reason,
            not_logged = Some(not_logged).filter(|number| *number > 0),
            "an answer was cut off after its head"
        );
    }
}

impl Lines {
    /// Whether one more line may be logged; if so, returns how many were not since the last.
    fn next(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= LINES_WITHIN) {
            (self.since, self.logged) = (Some(now), 0);
        }
        if self.logged >= LINES_MAX {
            self.not_logged += 1;
            return None;
        }
        self.logged += 1;
        Some(std::mem::take(&mut self.not_logged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_at_once_some_are_logged_and_the_next_line_has_the_number_of_the_others() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        let logged = (0..50).filter(|_| lines.next(now).is_some()).count();
        assert_eq!(logged as u32, LINES_MAX);
        assert_eq!(lines.next(now + LINES_WITHIN), Some(50 - u64::from(LINES_MAX)));
        assert_eq!(lines.next(now + LINES_WITHIN), Some(0));
    }
}
