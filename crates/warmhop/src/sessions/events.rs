//! The events of a request in line for its session, and the channel that they take to it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use warmhop_core::ids::{Ballot, Incarnation};
use warmhop_core::session::message::{Exec, Stored};
use warmhop_core::session::{Failure, TokenHint};

/// A request sees at most a handful of events before it reads them.
const UNREAD_MAX: usize = 16;

/// What happens to a waiting request.
#[derive(Debug)]
pub(crate) enum Event {
    Turn,
    Execute { executor: Incarnation, exec: Exec },
    Release { hint: TokenHint },
    Replay { stored: Stored, hint: TokenHint },
    Fail(Failure),
    Again,
    Redirect(Option<Ballot>),
}

impl Event {
    /// Whether the session forgets the request with this event, and the request does not come back.
    /// A failed request may come back: until it has, its place keeps an empty session from being
    /// dropped.
    pub(crate) fn is_last(&self) -> bool {
        match self {
            Self::Release { .. } | Self::Replay { .. } | Self::Redirect(_) => true,
            Self::Turn | Self::Execute { .. } | Self::Again | Self::Fail(_) => false,
        }
    }
}

/// The channel of one request's events. A request gets four of them, mostly from its own task, and reads
/// most before the next is sent: one place and a list behind a lock cost a fraction of what a channel's
/// blocks do.
pub(crate) fn channel() -> (EventSender, EventReceiver) {
    let channel = Arc::new(Mutex::new(Channel::default()));
    (EventSender(Arc::clone(&channel)), EventReceiver(channel))
}

#[derive(Default)]
struct Channel {
    next: Option<Event>,
    /// Those after the next one.
    later: VecDeque<Event>,
    waker: Option<Waker>,
    /// The sender is gone.
    over: bool,
}

impl Channel {
    fn push(&mut self, event: Event) {
        if self.next.is_none() {
            self.next = Some(event);
        } else if self.later.len() + 1 < UNREAD_MAX {
            self.later.push_back(event);
        }
    }

    fn pop(&mut self) -> Option<Event> {
        let next = self.next.take()?;
        self.next = self.later.pop_front();
        Some(next)
    }
}

fn lock(channel: &Mutex<Channel>) -> MutexGuard<'_, Channel> {
    channel.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sender's end.
pub(crate) struct EventSender(Arc<Mutex<Channel>>);

impl EventSender {
    /// Sends an event, unless the request reads none: then it is gone or stuck.
    pub(crate) fn send(&self, event: Event) {
        let mut channel = lock(&self.0);
        channel.push(event);
        let waker = channel.waker.take();
        drop(channel);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        let mut channel = lock(&self.0);
        channel.over = true;
        let waker = channel.waker.take();
        drop(channel);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The request's end.
pub(crate) struct EventReceiver(Arc<Mutex<Channel>>);

impl EventReceiver {
    /// The first event that was sent and not read.
    pub(crate) fn unread(&self) -> Option<Event> {
        lock(&self.0).pop()
    }

    /// Leaves an event that was read to whoever reads next.
    pub(crate) fn put_back(&self, event: Event) {
        let mut channel = lock(&self.0);
        if let Some(next) = channel.next.replace(event) {
            channel.later.push_front(next);
        }
    }

    /// The next event; `None` once the sender is gone.
    pub(crate) async fn next(&self) -> Option<Event> {
        poll_fn(|cx| {
            let mut channel = lock(&self.0);
            if let Some(event) = channel.pop() {
                return Poll::Ready(Some(event));
            }
            if channel.over {
                return Poll::Ready(None);
            }
            if !channel.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                channel.waker = Some(cx.waker().clone());
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
    async fn events_are_received_in_order_until_the_sender_is_gone() {
        let (sender, receiver) = channel();
        assert!(receiver.unread().is_none());
        let sending = async {
            sender.send(Event::Turn);
            tokio::task::yield_now().await;
            sender.send(Event::Again);
            sender.send(Event::Redirect(None));
            drop(sender);
        };
        let receiving = async {
            let mut received = Vec::new();
            while let Some(event) = receiver.next().await {
                received.push(event.is_last());
            }
            received
        };
        let (received, ()) = tokio::join!(receiving, sending);
        assert_eq!(received, [false, false, true]);
    }

    #[test]
    fn a_request_that_reads_nothing_holds_no_more_than_a_bound() {
        let (sender, receiver) = channel();
        for _ in 0..2 * UNREAD_MAX {
            sender.send(Event::Turn);
        }
        assert_eq!(std::iter::from_fn(|| receiver.unread()).count(), UNREAD_MAX);
    }
}
