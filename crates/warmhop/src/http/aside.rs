//! A rare event awaited beside a frequent one.
//!
//! In a `select!`, a future is polled whenever the other one makes a step. A signal of a connection
//! hardly ever fires, and would be polled several times a request. [`Aside`] polls its future only
//! after that future was woken, and otherwise looks at one flag.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// A future that is polled the first time, and then only after it was woken itself.
pub(crate) struct Aside<T> {
    future: Pin<Box<dyn Future<Output = T> + Send>>,
    woken: Arc<Woken>,
    waker: Waker,
    /// The waker stored in `woken`. Most polls come from the same task as the last, and need not
    /// store it again.
    stored: Waker,
}

struct Woken {
    is: AtomicBool,
    /// It is kept after a wake: a task that has registered once is woken each time.
    task: Mutex<Waker>,
}

impl Woken {
    fn task(&self) -> MutexGuard<'_, Waker> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is.store(true, Ordering::Release);
        // The lock is released before the task is woken, since that runs foreign code.
        let task = self.task().clone();
        task.wake();
    }
}

impl<T> Aside<T> {
    pub(crate) fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        let nobody = Waker::noop();
        let task = Mutex::new(nobody.clone());
        let woken = Arc::new(Woken { is: AtomicBool::new(true), task });
        let (waker, stored) = (Waker::from(Arc::clone(&woken)), nobody.clone());
        Self { future: Box::pin(future), woken, waker, stored }
    }
}

impl<T> Future for Aside<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        // This comes before the look at the flag, so that a later wake finds the task.
        if !this.stored.will_wake(cx.waker()) {
            this.stored.clone_from(cx.waker());
            let former = std::mem::replace(&mut *this.woken.task(), cx.waker().clone());
            drop(former);
        }
        // A load is cheaper than a swap, and the flag is hardly ever set.
        if !this.woken.is.load(Ordering::Acquire) || !this.woken.is.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        this.future.as_mut().poll(&mut Context::from_waker(&this.waker))
    }
}

/// The output of a future that is usually ready at once, if it comes in time: there is a timer only
/// for one that is not.
pub(crate) async fn in_time<F: Future>(within: Duration, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let at_once = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx)));
    if let Poll::Ready(output) = at_once.await {
        return Some(output);
    }
    tokio::time::timeout(within, future).await.ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[tokio::test]
    async fn an_aside_is_polled_only_when_it_was_woken() {
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

    #[tokio::test(start_paused = true)]
    async fn an_output_in_time_is_returned_and_a_late_one_is_not() {
        const WITHIN: Duration = Duration::from_secs(1);
        assert_eq!(in_time(Duration::ZERO, std::future::ready(1)).await, Some(1));
        for (took, outcome) in [(WITHIN / 2, Some(2)), (2 * WITHIN, None)] {
            let began = tokio::time::Instant::now();
            let slow = async {
                tokio::time::sleep(took).await;
                2
            };
            assert_eq!(in_time(WITHIN, slow).await, outcome);
            assert!(began.elapsed() >= took.min(WITHIN));
        }
    }

    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn whichever_task_has_polled_last_is_woken_each_time() {
        let (first, second) = (Arc::new(Task::default()), Arc::new(Task::default()));
        let woken = |task: &Arc<Task>| task.0.load(Ordering::Relaxed);
        let inner = Arc::new(Mutex::new(None::<Waker>));
        let says = Arc::clone(&inner);
        let mut aside = Aside::new(std::future::poll_fn(move |cx| {
            *says.lock().unwrap() = Some(cx.waker().clone());
            Poll::<()>::Pending
        }));
        let mut poll = |task: &Arc<Task>| {
            let waker = Waker::from(Arc::clone(task));
            assert!(Pin::new(&mut aside).poll(&mut Context::from_waker(&waker)).is_pending());
        };
        let wake = || inner.lock().unwrap().clone().unwrap().wake();
        poll(&first);
        for times in 1..4 {
            wake();
            assert_eq!(woken(&first), times);
            // Polled without a wake as well, as happens beside another future.
            poll(&first);
            poll(&first);
        }
        poll(&second);
        wake();
        assert_eq!((woken(&first), woken(&second)), (3, 1));
    }
}
