//! Notifications to the service manager that started the peer, by the protocol of `sd_notify(3)`:
//! `READY=1` when it serves, `STOPPING=1` when it drains, and `WATCHDOG=1` at half the time that
//! the manager allows, if it asks for that. Without `NOTIFY_SOCKET` in the environment there are
//! none.
//!
//! The variables are the peer's own: the manager would take notifications of an app on the same
//! socket for the peer's, so apps are started without them.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

/// The variables that a service manager sets for the peer, and for none of its apps.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The peer serves; units that wait for it may start.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The peer drains and will end; it has the unit's `TimeoutStopSec` for that.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Notifies for ever that the peer's tasks still run, if the manager asks for that. If the runtime
/// is stuck, the notifications stop, and the manager restarts the peer.
pub async fn watchdog() {
    let Some(allowed) = sd_notify::watchdog_enabled().filter(|span| !span.is_zero()) else {
        return;
    };
    let mut ticks = interval((allowed / 2).max(INTERVAL_MIN));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

/// The shortest interval, even if a manager allows less than twice this.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        // The peer serves its clients whether or not the manager gets the notification.
        warn!(%error, "cannot notify the service manager; check NOTIFY_SOCKET");
    }
}
