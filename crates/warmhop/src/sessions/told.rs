//! What a request in line for its session is told, and the way to it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use warmhop_core::ids::{Ballot, Incarnation};
use warmhop_core::session::message::{Exec, Stored};
use warmhop_core::session::{Failure, TokenHint};

/// A request sees at most a handful of events before it reads them.
const UNREAD_MAX: usize = 16;

/// What a waiting request is told.
#[derive(Debug)]
pub(crate) enum Told {
    Turn,
    Execute { executor: Incarnation, exec: Exec },
    Release { hint: TokenHint },
    Replay { stored: Stored, hint: TokenHint },
    Fail(Failure),
    Again,
    Redirect(Option<Ballot>),
}

impl Told {
    /// Whether the session knows nothing of the request any more once it has said this, and the
    /// request does not come back. One that failed may: until it has, its place keeps a session that
    /// holds nothing from being dropped.
    pub(crate) fn is_last(&self) -> bool {
        match self {
            Self::Release { .. } | Self::Replay { .. } | Self::Redirect(_) => true,
            Self::Turn | Self::Execute { .. } | Self::Again | Self::Fail(_) => false,
        }
    }
}

/// The way of what one request is told. A request is told four things, mostly by itself: a list
/// behind a lock costs a fraction of what a channel's blocks do.
pub(crate) fn way() -> (Teller, Listener) {
    let way = Arc::new(Mutex::new(Way::default()));
    (Teller(Arc::clone(&way)), Listener(way))
}

#[derive(Default)]
struct Way {
    unread: VecDeque<Told>,
    listens: Option<Waker>,
    /// Nobody tells anything any more.
    over: bool,
}

fn lock(way: &Mutex<Way>) -> MutexGuard<'_, Way> {
    way.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The end of whoever tells.
pub(crate) struct Teller(Arc<Mutex<Way>>);

impl Teller {
    /// Tells it, unless the request reads nothing: then it is gone or stuck.
    pub(crate) fn tell(&self, told: Told) {
        let mut way = lock(&self.0);
        if way.unread.len() < UNREAD_MAX {
            way.unread.push_back(told);
        }
        let listens = way.listens.take();
        drop(way);
        if let Some(listens) = listens {
            listens.wake();
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let mut way = lock(&self.0);
        way.over = true;
        let listens = way.listens.take();
        drop(way);
        if let Some(listens) = listens {
            listens.wake();
        }
    }
}

/// The end of the request.
pub(crate) struct Listener(Arc<Mutex<Way>>);

impl Listener {
    /// What was told and not read.
    pub(crate) fn unread(&self) -> Option<Told> {
        lock(&self.0).unread.pop_front()
    }

    /// What is told next; `None` once nothing is told any more.
    pub(crate) async fn next(&self) -> Option<Told> {
        poll_fn(|cx| {
            let mut way = lock(&self.0);
            if let Some(told) = way.unread.pop_front() {
                return Poll::Ready(Some(told));
            }
            if way.over {
                return Poll::Ready(None);
            }
            if !way.listens.as_ref().is_some_and(|listens| listens.will_wake(cx.waker())) {
                way.listens = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_told_is_heard_in_order_and_then_that_nothing_more_will_be() {
        let (teller, listener) = way();
        assert!(listener.unread().is_none());
        let telling = async {
            teller.tell(Told::Turn);
            tokio::task::yield_now().await;
            teller.tell(Told::Again);
            teller.tell(Told::Redirect(None));
            drop(teller);
        };
        let hearing = async {
            let mut heard = Vec::new();
            while let Some(told) = listener.next().await {
                heard.push(told.is_last());
            }
            heard
        };
        let (heard, ()) = tokio::join!(hearing, telling);
        assert_eq!(heard, [false, false, true]);
    }

    #[test]
    fn a_request_that_reads_nothing_holds_no_more_than_a_bound() {
        let (teller, listener) = way();
        for _ in 0..2 * UNREAD_MAX {
            teller.tell(Told::Turn);
        }
        assert_eq!(std::iter::from_fn(|| listener.unread()).count(), UNREAD_MAX);
    }
}
