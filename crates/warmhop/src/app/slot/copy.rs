//! One running copy of an app: its requests, and how it ends.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use warmhop_core::ids::Now;
use warmhop_core::version::AppVersion;

use crate::app::shares::Shares;
use crate::app::{AnswersWhole, AppService};
use crate::http::tunnels::CopyTunnels;

pub(super) type StopFn =
    Box<dyn FnOnce(Duration) -> futures_util::future::BoxFuture<'static, ()> + Send>;

/// One running copy.
pub(crate) struct Copy {
    pub(crate) attempt: u64,
    pub(crate) version: Option<AppVersion>,
    pub(crate) service: AppService,
    /// What answers requests that are in memory as a whole, if not the service.
    pub(crate) whole: Option<Box<dyn AnswersWhole>>,
    /// Whether the app speaks the carried `Warmhop-Session` field.
    pub(crate) carried: bool,
    pub(super) in_flight: AtomicU32,
    /// How many of those each client has, where clients have shares.
    pub(super) shares: Shares,
    pub(super) idle: Notify,
    pub(super) stop: Mutex<Option<StopFn>>,
    /// Its upgraded connections.
    pub(crate) tunnels: CopyTunnels,
    /// Requests that wait for the heads of their answers.
    pub(crate) awaiting: AtomicU32,
    /// When it last began an answer, in the clock's milliseconds; 0 before the first.
    pub(crate) answered: AtomicU64,
    /// How many requests have failed since.
    pub(crate) failed_in_a_row: AtomicU32,
    /// The size of the largest head with a session in it that its server has taken.
    pub(crate) took_head: AtomicUsize,
    /// It was found to hang, and is being ended.
    pub(super) hangs: AtomicBool,
    pub(super) given_up: Notify,
    /// Its grace is cut short.
    pub(super) ends_now: Notify,
}

/// Counts one request that waits for the head of its answer until it is dropped.
pub(crate) struct Awaiting<'a>(&'a Copy);

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        self.0.awaiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Copy {
    /// Whether it has begun an answer to any request.
    pub(super) fn has_served(&self) -> bool {
        self.answered.load(Ordering::Relaxed) > 0
    }

    /// What ends it; absent once that has begun.
    pub(super) fn take_stop(&self) -> Option<StopFn> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Notes that its server has taken a head of this size.
    pub(crate) fn takes_head(&self, bytes: usize) {
        if bytes > self.took_head.load(Ordering::Relaxed) {
            self.took_head.fetch_max(bytes, Ordering::Relaxed);
        }
    }

    /// Counts a request that waits for the head of its answer.
    pub(crate) fn awaits(&self) -> Awaiting<'_> {
        self.awaiting.fetch_add(1, Ordering::Relaxed);
        Awaiting(self)
    }

    /// Whether it was found to hang.
    pub(crate) fn hangs(&self) -> bool {
        self.hangs.load(Ordering::SeqCst)
    }

    /// Resolves once it was found to hang: requests need not wait for it any longer.
    pub(crate) async fn given_up(&self) {
        let given_up = self.given_up.notified();
        tokio::pin!(given_up);
        given_up.as_mut().enable();
        if !self.hangs() {
            given_up.await;
        }
    }

    /// Notes that it has begun an answer.
    pub(crate) fn answers(&self, now: Now) {
        self.answered.store(now.0.max(1), Ordering::Relaxed);
        if self.failed_in_a_row.load(Ordering::Relaxed) > 0 {
            self.failed_in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// Resolves when nothing is in flight. If the copy is out of service already, that is final.
    pub(super) async fn emptied(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            fence(Ordering::SeqCst);
            if self.in_flight.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}
