//! The state that all clients of a peer's endpoint share.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use warmhop::Mesh;

use super::carrier::Carrier;
use super::ends::Ends;
use super::events::Events;
use super::holdings::Holdings;
use super::pubsub::Hub;
use super::scripts::Scripts;

/// How many clients wait in a blocking read.
pub(super) static BLOCKED: AtomicI64 = AtomicI64::new(0);

/// The state that all clients of a peer's endpoint share.
pub(super) struct Shared {
    /// How long an idle key without a time to live is kept.
    pub(super) idle: Duration,
    pub(super) scripts: Scripts,
    pub(super) hub: Arc<Hub>,
    pub(super) carrier: Arc<Carrier>,
    /// Which changes of keys are published.
    pub(super) events: Events,
    pub(super) ends: Ends,
    /// Whose turn it is to have a part of a long request read.
    pub(super) long_reads: Semaphore,
    /// The memory that clients take.
    pub(super) holdings: Arc<Holdings>,
    /// The peer, which counts the clients; absent in tests.
    pub(super) mesh: Option<Mesh>,
    /// Cancelled once the peer leaves: clients that wait for something are disconnected.
    pub(super) leaving: CancellationToken,
    /// The clients that wait for a change, by the register's name.
    waiting: Mutex<HashMap<Bytes, Vec<Line>>>,
    waiting_count: AtomicUsize,
}

/// The clients that wait for the same keys of a register, in the order in which they came. The
/// first one checks the register, and lets the next one do so once it leaves: if it finds nothing,
/// nobody behind it would.
struct Line {
    awaited: Awaited,
    clients: VecDeque<Arc<Notify>>,
}

/// What a client waits for in a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Awaited {
    pub(super) is_sorted_set: bool,
    /// Any of these keys.
    pub(super) keys: Vec<Bytes>,
}

/// One client's wait for changes of a register.
pub(super) struct Waits<'a> {
    shared: &'a Shared,
    name: Bytes,
    awaited: Awaited,
    /// Its turn to check has come.
    pub(super) turn: Arc<Notify>,
}

impl Shared {
    pub(super) fn new(idle: Duration, events: Events, carrier: Arc<Carrier>) -> Self {
        Self {
            idle,
            events,
            ends: Ends::default(),
            long_reads: Semaphore::new(1),
            holdings: Arc::new(Holdings::new(0)),
            mesh: None,
            leaving: CancellationToken::new(),
            hub: Arc::clone(&carrier.hub),
            carrier,
            scripts: Scripts::default(),
            waiting: Mutex::default(),
            waiting_count: AtomicUsize::new(0),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Bytes, Vec<Line>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes those who wait for a register, which was changed from here.
    pub(super) fn changed(&self, name: &Bytes) {
        if self.waiting_count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let waiting = self.waiting();
        let lines = waiting.get(name).into_iter().flatten();
        lines.filter_map(|line| line.clients.front()).for_each(|first| first.notify_one());
    }

    /// Begins to wait for changes of a register, behind those who already wait for the same keys.
    pub(super) fn wait_for(&self, name: &Bytes, awaited: Awaited) -> Waits<'_> {
        let turn = Arc::new(Notify::new());
        let mut waiting = self.waiting();
        let lines = waiting.entry(name.clone()).or_default();
        match lines.iter_mut().find(|line| line.awaited == awaited) {
            Some(line) => line.clients.push_back(Arc::clone(&turn)),
            None => {
                let clients = VecDeque::from([Arc::clone(&turn)]);
                lines.push(Line { awaited: awaited.clone(), clients });
            }
        }
        self.waiting_count.fetch_add(1, Ordering::Relaxed);
        BLOCKED.fetch_add(1, Ordering::Relaxed);
        Waits { shared: self, name: name.clone(), awaited, turn }
    }

    /// How many clients wait for changes.
    #[cfg(test)]
    pub(super) fn waiting_count(&self) -> usize {
        self.waiting_count.load(Ordering::Relaxed)
    }
}

impl Waits<'_> {
    /// Whether nobody who came before waits for the same keys.
    pub(super) fn is_first(&self) -> bool {
        let waiting = self.shared.waiting();
        let mut lines = waiting.get(&self.name).into_iter().flatten();
        let line = lines.find(|line| line.awaited == self.awaited);
        let first = line.and_then(|line| line.clients.front());
        first.is_some_and(|first| Arc::ptr_eq(first, &self.turn))
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting();
        self.shared.waiting_count.fetch_sub(1, Ordering::Relaxed);
        BLOCKED.fetch_sub(1, Ordering::Relaxed);
        let Some(lines) = waiting.get_mut(&self.name) else { return };
        if let Some(at) = lines.iter().position(|line| line.awaited == self.awaited) {
            let clients = &mut lines[at].clients;
            let place = clients.iter().position(|it| Arc::ptr_eq(it, &self.turn));
            place.and_then(|place| clients.remove(place));
            match (place, clients.front()) {
                // There may be more than this client took.
                (Some(0), Some(next)) => next.notify_one(),
                (_, None) => drop(lines.swap_remove(at)),
                _ => {}
            }
        }
        if lines.is_empty() {
            waiting.remove(&self.name);
        }
    }
}
