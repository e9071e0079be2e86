//! The end of a copy: its requests, then whatever runs it, each within the app's grace.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{info, warn};
use warmhop_core::app::AppEvent;

use super::{Copy, Slot};

impl Slot {
    fn leaving(&self) -> MutexGuard<'_, Vec<Arc<Copy>>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the copy out of service, lets its requests end, stops it.
    pub(super) fn stop(self: &Arc<Self>, attempt: u64, grace: Duration) {
        let replaced = self.replaced().take_if(|copy| copy.attempt == attempt);
        let copy = replaced.or_else(|| {
            let mut held = [self.copy.load_full(), self.aside().clone()].into_iter().flatten();
            held.find(|copy| copy.attempt == attempt && self.take_out(copy))
        });
        self.leaving().extend(copy.clone());
        let slot = Arc::clone(self);
        tokio::spawn(async move {
            if let Some(copy) = copy {
                slot.end(&copy, grace).await;
            }
            slot.leaving().retain(|leaving| leaving.attempt != attempt);
            slot.tell(AppEvent::Stopped { attempt });
        });
    }

    async fn end(&self, copy: &Copy, grace: Duration) {
        let attempt = copy.attempt;
        info!(app = %self.name(), attempt, "stopping");
        let ending = async {
            if tokio::time::timeout(grace, copy.emptied()).await.is_err() {
                warn!(app = %self.name(), attempt, "the copy still had requests under way when stop_grace ended: they are cut off");
                copy.tunnels.end().await;
            }
            if let Some(stop) = copy.take_stop() {
                stop(grace).await;
            }
        };
        tokio::select! {
            biased;
            () = ending => {}
            // A stop that has begun is dropped, which ends whatever it waits for.
            () = copy.ends_now.notified() => if let Some(stop) = copy.take_stop() {
                copy.tunnels.end().await;
                stop(Duration::ZERO).await;
            }
        }
    }

    /// Cuts short the grace of a copy that is being stopped.
    pub(super) fn end_now(&self, attempt: u64) {
        let leaving = self.leaving();
        if let Some(copy) = leaving.iter().find(|copy| copy.attempt == attempt) {
            let others = leaving.len() - 1;
            warn!(
                app = %self.name(), attempt, others,
                "the copy is killed before stop_grace ended: it and others are slow to stop, and the \
                 next copy needs the room; a shorter stop_grace, or an app that exits on SIGTERM, avoids that"
            );
            copy.ends_now.notify_one();
        }
    }
}
