//! What all clients of a peer's endpoint share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use warmhop::Mesh;

use super::carrier::Carrier;
use super::ends::Ends;
use super::events::Events;
use super::pubsub::Hub;
use super::scripts::Scripts;

/// What all clients of a peer's endpoint share.
pub(super) struct Shared {
    /// How long an idle key is kept that was set without a time to live.
    pub(super) idle: Duration,
    pub(super) scripts: Scripts,
    pub(super) hub: Arc<Hub>,
    pub(super) carrier: Arc<Carrier>,
    /// Which changes of keys are published.
    pub(super) events: Events,
    pub(super) ends: Ends,
    /// The peer, which counts the clients; absent in tests.
    pub(super) mesh: Option<Mesh>,
    /// Cancelled once the peer leaves: clients that wait for something are disconnected.
    pub(super) leaving: CancellationToken,
    /// Those who wait for a change, by the register's name.
    waiting: Mutex<HashMap<Bytes, (Arc<Notify>, usize)>>,
    waiting_count: AtomicUsize,
}

/// One who waits for changes of a register.
pub(super) struct Waits<'a> {
    shared: &'a Shared,
    name: Bytes,
    pub(super) changed: Arc<Notify>,
}

impl Shared {
    pub(super) fn new(idle: Duration, events: Events, carrier: Arc<Carrier>) -> Self {
        Self {
            idle,
            events,
            ends: Ends::default(),
            mesh: None,
            leaving: CancellationToken::new(),
            hub: Arc::clone(&carrier.hub),
            carrier,
            scripts: Scripts::default(),
            waiting: Mutex::default(),
            waiting_count: AtomicUsize::new(0),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Bytes, (Arc<Notify>, usize)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A register was changed from here.
    pub(super) fn changed(&self, name: &Bytes) {
        if self.waiting_count.load(Ordering::Relaxed) > 0
            && let Some((changed, _)) = self.waiting().get(name)
        {
            changed.notify_waiters();
        }
    }

    /// Waits for changes of a register.
    pub(super) fn wait_for(&self, name: &Bytes) -> Waits<'_> {
        let mut waiting = self.waiting();
        let (changed, count) =
            waiting.entry(name.clone()).or_insert_with(|| (Arc::new(Notify::new()), 0));
        *count += 1;
        self.waiting_count.fetch_add(1, Ordering::Relaxed);
        Waits { shared: self, name: name.clone(), changed: Arc::clone(changed) }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting();
        self.shared.waiting_count.fetch_sub(1, Ordering::Relaxed);
        if let Some((_, count)) = waiting.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.name);
            }
        }
    }
}
