//! What seldom happens beside what happens all the time.
//!
//! A future beside another in a `select!` is polled whenever the other makes a step, which for each
//! signal of a connection that hardly ever comes would be several times a request. [`Aside`] polls it
//! when it has something to say, and else looks at one flag.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// A future that is polled at first, and whenever it was woken itself.
pub(crate) struct Aside<T> {
    future: Pin<Box<dyn Future<Output = T> + Send>>,
    woken: Arc<Woken>,
    waker: Waker,
}

struct Woken {
    is: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<T> Aside<T> {
    pub(crate) fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        let woken = Arc::new(Woken { is: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { future: Box::pin(future), waker: Waker::from(Arc::clone(&woken)), woken }
    }
}

impl<T> Future for Aside<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        // Before the look, so that a wake after it finds whom to wake.
        this.woken.task.register(cx.waker());
        if !this.woken.is.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        this.future.as_mut().poll(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[tokio::test]
    async fn what_is_aside_is_polled_when_it_was_woken_and_not_else() {
        let polls = Arc::new(AtomicUsize::new(0));
        let (say, said) = tokio::sync::oneshot::channel::<u8>();
        let mut said = Box::pin(said);
        let counted = Arc::clone(&polls);
        let mut aside = Aside::new(std::future::poll_fn(move |cx| {
            counted.fetch_add(1, Ordering::Relaxed);
            said.as_mut().poll(cx)
        }));
        for _ in 0..100 {
            tokio::select! {
                biased;
                _ = &mut aside => panic!("nobody has said anything"),
                () = std::future::ready(()) => {}
            }
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        let waits = tokio::spawn(aside);
        tokio::task::yield_now().await;
        say.send(7).unwrap();
        assert_eq!(waits.await.unwrap().unwrap(), 7);
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }
}
