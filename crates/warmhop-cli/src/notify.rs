//! What a peer tells the service manager that started it, by the protocol of `sd_notify(3)`:
//! `READY=1` when it serves, `STOPPING=1` when it drains, and `WATCHDOG=1` at half the time that
//! the manager allows, if it asks for that. Without `NOTIFY_SOCKET` in the environment nothing is
//! told.
//!
//! The variables are the peer's own: an app that spoke to the same socket would be taken for it,
//! so apps are started without them.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

/// The variables that a service manager sets for the peer, and for none of its apps.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The peer serves; what waited for it may start.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The peer drains and will end; it has the unit's `TimeoutStopSec` for that.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Tells for ever that the peer's tasks still run, if the manager asks to hear so. A runtime that
/// is stuck stops telling, and the manager restarts the peer.
pub async fn watchdog() {
    let Some(allowed) = sd_notify::watchdog_enabled().filter(|span| !span.is_zero()) else {
        return;
    };
    let mut ticks = interval((allowed / 2).max(INTERVAL_MIN));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

/// A manager that allows less than twice this is not told more often all the same.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        // The peer serves its clients whether or not the manager hears of it.
        warn!(%error, "cannot notify the service manager; check NOTIFY_SOCKET");
    }
}
