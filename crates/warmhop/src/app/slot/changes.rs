//! What becomes of an app that is to be started anew, is something else from now on, or is no app of
//! this peer any more.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use warmhop_core::app::{AppEvent, Renewal, StopReason, WantedBy};
use warmhop_core::config::StartMode;
use warmhop_core::version::AppVersion;
use warmhop_core::view::AppState;

use super::Slot;
use crate::app::{App, AppSpec};
use crate::links::news::CopyNews;

impl Slot {
    /// Has a new copy start beside the one that serves, which it is to replace; where none runs,
    /// starts one. Returns the number of that start.
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
            // Once one of the former copies has ended.
            (None, _) => machine.starts() + 1,
        })
    }

    /// The app is `spec` from here on, and `app` is what starts. With `renewed` what runs is
    /// replaced by a new copy once that one is ready.
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
        self.places.freed_at(&self.me);
    }

    /// The app is none of this peer any more: it ends what it has begun, and starts nothing.
    pub(crate) fn retire(self: &Arc<Self>) {
        let mut starting = self.starting();
        self.retired.store(true, Ordering::SeqCst);
        self.carry_out(AppEvent::StopWanted(StopReason::Drain), &mut starting);
    }

    /// Whether it is none of this peer's apps any more.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Whether nothing of it runs, or is about to.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state(), AppState::Cold | AppState::Failed | AppState::Paused)
    }

    /// The numbers of the starts that the copy which serves came of, and of the one that is to
    /// replace it.
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

    /// What other peers learn of the copy here.
    pub(crate) fn copy_news(&self) -> CopyNews {
        let state = match self.state() {
            // What still ends is of no use to anybody, and nothing will start.
            AppState::Stopping if self.machine().is_paused() => AppState::Paused,
            state => state,
        };
        CopyNews {
            state,
            eta_ms: self.eta().map(|eta| u32::try_from(eta.as_millis()).unwrap_or(u32::MAX)),
            in_flight: self.told_in_flight(),
            version: self.version(),
            digest: self.spec().digest,
        }
    }

    /// Tells the mesh of this app for the first time.
    pub(crate) fn announce(&self) {
        let _starting = self.starting();
        self.publish();
    }

    /// Tells the mesh how it stands here.
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

    /// Why a wish to start it would not be heeded.
    pub(crate) fn why_not_start(&self, by: WantedBy) -> Option<String> {
        self.machine().why_not_start(by, self.clock.now()).map(|why| why.to_string())
    }
}
