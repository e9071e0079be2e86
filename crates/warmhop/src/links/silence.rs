//! Who awaits an answer on a link, and how they learn that its other end has fallen silent.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// What the hops of a link and the task that watches it share.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    /// Hops that wait for an answer.
    awaiting: AtomicUsize,
    is_watched: AtomicBool,
    begins: Notify,
    /// Notifies the hops that nothing has come for a while.
    found: Notify,
}

/// An answer that is awaited, until it is dropped.
pub(crate) struct Awaiting<'link>(&'link Silence);

impl Silence {
    /// Has the link watched until the result is dropped.
    pub(super) fn awaits(&self) -> Awaiting<'_> {
        self.awaiting.fetch_add(1, Ordering::SeqCst);
        if !self.is_watched.load(Ordering::SeqCst) && !self.is_watched.swap(true, Ordering::SeqCst)
        {
            self.begins.notify_one();
        }
        Awaiting(self)
    }

    /// Resolves once an answer is awaited on a link that is not watched.
    pub(super) async fn begins(&self) {
        self.begins.notified().await;
    }

    /// Notifies the hops that nothing has come for a while.
    pub(super) fn is_found(&self) {
        self.found.notify_waiters();
    }

    /// Whether the watch ends, since no answer is awaited.
    pub(super) fn ends(&self) -> bool {
        if self.awaiting.load(Ordering::SeqCst) > 0 {
            return false;
        }
        self.is_watched.store(false, Ordering::SeqCst);
        // One that has begun to wait before that store relies on this watch.
        self.awaiting.load(Ordering::SeqCst) == 0 || self.is_watched.swap(true, Ordering::SeqCst)
    }
}

impl Awaiting<'_> {
    /// Resolves each time the other end has been silent for long enough to be suspect.
    pub(crate) async fn silence(&self) {
        self.0.found.notified().await;
    }
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        self.0.awaiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Whether `future` is ready when it is polled for the first time.
    fn is_ready(future: impl Future<Output = ()>) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn a_watch_begins_with_the_first_that_waits_and_ends_after_the_last() {
        let silence = Silence::default();
        assert!(!is_ready(silence.begins()), "nobody waits");
        let first = silence.awaits();
        let second = silence.awaits();
        assert!(is_ready(silence.begins()));
        assert!(!is_ready(silence.begins()), "it is watched once");
        drop(first);
        assert!(!silence.ends(), "one still waits");
        drop(second);
        assert!(silence.ends());
        let _third = silence.awaits();
        assert!(is_ready(silence.begins()), "it is watched again");
        assert!(!silence.ends());
    }

    #[test]
    fn all_that_wait_learn_of_the_silence_each_time_it_is_found() {
        let silence = Silence::default();
        let waiting = [silence.awaits(), silence.awaits()];
        for _ in 0..2 {
            let mut found: Vec<_> = waiting.iter().map(|it| Box::pin(it.silence())).collect();
            let mut context = Context::from_waker(Waker::noop());
            assert!(found.iter_mut().all(|it| it.as_mut().poll(&mut context).is_pending()));
            silence.is_found();
            assert!(found.iter_mut().all(|it| it.as_mut().poll(&mut context).is_ready()));
        }
    }
}
