//! Wakes the machines that asked to be woken.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use warmhop_core::ids::Now;

use super::{FILED_WITHIN, Store, Stripe};

/// How often a stripe is scanned for sessions that are to be woken soon.
pub(super) const LOOK_THROUGH_EVERY: Duration = Duration::from_secs(60);

impl Store {
    /// Sets timers for a stripe's sessions that are to be woken soon, once in a while. Returns when to do so
    /// next.
    fn look_through(&self, stripe: &Mutex<Stripe>, now: Now) -> Now {
        let mut stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
        if now < stripe.look_through_at {
            return stripe.look_through_at;
        }
        stripe.look_through_at = now.after(LOOK_THROUGH_EVERY);
        let wall = self.clock.wall();
        let soon = now.after(FILED_WITHIN);
        let Stripe { sessions, wakes, .. } = &mut *stripe;
        for entry in sessions.iter_mut().filter(|entry| entry.wake().is_none()) {
            let wake = entry
                .machine
                .next_wake(now, wall)
                .filter(|at| *at <= soon)
                .map(|at| at.max(Now(1)));
            wakes.extend(wake.map(|at| (at, entry.key())));
            entry.set_wake(wake);
        }
        stripe.look_through_at
    }

    /// Wakes machines at the times that they asked for, for as long as the peer runs.
    pub(crate) async fn wake(self: Arc<Self>) {
        loop {
            let now = self.clock.now();
            let mut next = u64::MAX;
            self.next_wake_ms.store(u64::MAX, Ordering::Relaxed);
            for stripe in &self.stripes {
                next = next.min(self.look_through(stripe, now).0);
                loop {
                    let due = {
                        let stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
                        match stripe.wakes.first() {
                            Some((at, key)) if *at <= now => Some(key.clone()),
                            Some((at, _)) => {
                                next = next.min(at.0);
                                None
                            }
                            None => None,
                        }
                    };
                    let Some(key) = due else { break };
                    self.with(&key, false, |machine, ctx, out| machine.on_timer(ctx, out));
                    // A machine that asks for the same instant again would make this loop spin.
                    let mut stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
                    let stripe = &mut *stripe;
                    if let Some(entry) = stripe.sessions.get_mut(&key)
                        && let Some(at) = entry.wake().filter(|at| *at <= now)
                    {
                        stripe.wakes.remove(&(at, key.clone()));
                        let later = now.after(Duration::from_millis(1));
                        entry.set_wake(Some(later));
                        stripe.wakes.insert((later, key.clone()));
                        next = next.min(later.0);
                    }
                }
            }
            let next = next.min(self.next_wake_ms.fetch_min(next, Ordering::Relaxed));
            let span = Duration::from_millis(next.saturating_sub(self.clock.now().0));
            tokio::select! {
                () = tokio::time::sleep(span.min(Duration::from_secs(60))) => {}
                () = self.sooner.notified() => {}
            }
        }
    }
}
