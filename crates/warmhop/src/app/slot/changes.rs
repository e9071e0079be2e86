//! Replaces an app's copy, changes its configuration, or removes it from this peer.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use warmhop_core::app::{AppEvent, Renewal, StopReason, WantedBy};
use warmhop_core::config::StartMode;
use warmhop_core::version::AppVersion;
use warmhop_core::view::AppState;

use super::Slot;
use crate::app::{App, AppSpec};
use crate::links::news::CopyNews;

impl Slot {
    /// Starts a new copy to replace the one that serves; if none runs, starts one. Returns the
    /// number of that start.
    pub(crate) fn renew(self: &Arc<Self>) -> Result<u64, String> {
        let mut starting = self.starting();
        if let Some(why) = self.machine().why_not_renew() {
            return Err(why.to_string());
        }
        self.carry_out(AppEvent::Renew(Renewal::Operator), &mut starting);
        let machine = self.machine();
        Ok(match (machine.next_attempt(), machine.state()) {
            (Some(next), _) => next,
            (None, AppState::Starting) => machine.attempt(),
            // It starts once one of the former copies has ended.
            (None, _) => machine.starts() + 1,
        })
    }

    /// Sets the app's specification to `spec`, and what starts to `app`. With `renewed` a running
    /// copy is replaced by a new one once that is ready.
    pub(crate) fn change(
        self: &Arc<Self>,
        spec: AppSpec,
        app: Option<Arc<dyn App>>,
        renewed: bool,
    ) {
        let mut starting = self.starting();
        let start = spec.policy.start;
        self.machine().set_policy(spec.policy.clone());
        let before = self.spec.swap(Arc::new(spec)).policy.start;
        if let Some(app) = app {
            *self.app.lock().unwrap_or_else(PoisonError::into_inner) = app;
        }
        if renewed || start == StartMode::Never {
            self.carry_out(AppEvent::Renew(Renewal::Changed), &mut starting);
        }
        if start == StartMode::AtBoot && before != start {
            self.carry_out(AppEvent::Wanted(WantedBy::Boot), &mut starting);
        }
        self.publish();
        self.ticker.notify_one();
        self.places.freed_at(&self.me, None);
    }

    /// The app is none of this peer any more: it ends what it has begun, and starts nothing.
    pub(crate) fn retire(self: &Arc<Self>) {
        let mut starting = self.starting();
        self.retired.store(true, Ordering::SeqCst);
        self.carry_out(AppEvent::StopWanted(StopReason::Drain), &mut starting);
    }

    /// Whether this peer no longer has the app.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Whether none of its copies runs, or is about to.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state(), AppState::Cold | AppState::Failed | AppState::Paused)
    }

    /// The number of the start of the copy that serves, and that of the copy that is to replace it.
    pub(crate) fn copies(&self) -> (Option<u64>, Option<u64>) {
        let serves = self.copy.load().as_ref().map(|copy| copy.attempt);
        (serves, self.machine().next_attempt())
    }

    /// The version that serves, or that a start would bring up.
    pub(crate) fn version(&self) -> Option<AppVersion> {
        match &*self.copy.load() {
            Some(copy) => copy.version.clone(),
            None => self.spec().version.clone(),
        }
    }

    /// Notes that a copy of this version is or was ready somewhere.
    pub(crate) fn hears(&self, version: &AppVersion) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.as_ref().is_none_or(|before| version.is_newer_than(before)) {
            *heard = Some(version.clone());
        }
    }

    /// The newest version that is known to have been ready anywhere.
    pub(crate) fn heard(&self) -> Option<AppVersion> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its state, as far as requests are concerned: a copy that still ends is of no use to them, and
    /// none will start where it is paused.
    pub(crate) fn state_to_start_from(&self) -> AppState {
        match self.state() {
            AppState::Stopping if self.machine().is_paused() => AppState::Paused,
            state => state,
        }
    }

    /// The news about the copy here for other peers.
    pub(crate) fn copy_news(&self) -> CopyNews {
        CopyNews {
            state: self.state_to_start_from(),
            // Where no start has been measured, a back-off says at least when the next one begins.
            eta_ms: self.eta().or_else(|| self.starts_in()).map(as_ms),
            in_flight: self.announced_in_flight(),
            version: self.version(),
            digest: self.spec().digest,
        }
    }

    /// Announces this app to the mesh for the first time.
    pub(crate) fn announce(&self) {
        let _starting = self.starting();
        self.publish();
    }

    /// Announces the app's state here to the mesh.
    pub(super) fn publish(&self) {
        // Another app may have its name by now.
        if !self.is_retired() {
            (self.publish)(self);
        }
    }

    /// Whether it is ready or being started.
    pub(crate) fn is_under_way(&self) -> bool {
        matches!(self.state(), AppState::Ready | AppState::Starting)
    }

    /// Why a request to start it would be ignored.
    pub(crate) fn why_not_start(&self, by: WantedBy) -> Option<String> {
        self.machine().why_not_start(by, self.clock.now()).map(|why| why.to_string())
    }
}

fn as_ms(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}
