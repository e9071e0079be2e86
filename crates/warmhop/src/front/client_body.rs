//! A request's body as it comes from a client: charged to its connection until it is read, and
//! given up if it comes too slowly.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::http::body::BoxError;
use crate::http::clients::{Account, ClientLimits};
use crate::http::refusals::Refusal;

/// The client sent its body more slowly than the limits on clients allow.
#[derive(Debug, thiserror::Error)]
#[error("it arrived more slowly than this server allows")]
pub(crate) struct TooSlow;

/// A body that a client sends.
pub(crate) struct ClientBody {
    incoming: Incoming,
    /// It comes in HTTP/2 frames.
    in_frames: bool,
    pace: Pace,
    exchange: Arc<Exchange>,
}

/// One request and its answer: decides whether the client has to hurry.
pub(crate) struct Exchange {
    account: Arc<Account>,
    /// Set once the answer has begun: from then on both sides may take their time.
    answered: AtomicBool,
    /// The peer waits for the body.
    awaited: AtomicBool,
}

impl Exchange {
    pub(crate) fn new(account: Arc<Account>, at_leisure: bool) -> Arc<Self> {
        let (answered, awaited) = (AtomicBool::new(at_leisure), AtomicBool::new(false));
        Arc::new(Self { account, answered, awaited })
    }

    /// Notes that the answer begins.
    pub(crate) fn answers(&self) {
        self.answered.store(true, Ordering::SeqCst);
        self.is_awaited(false);
    }

    fn is_answered(&self) -> bool {
        self.answered.load(Ordering::SeqCst)
    }

    fn is_awaited(&self, awaited: bool) {
        if self.awaited.swap(awaited, Ordering::SeqCst) != awaited {
            self.account.awaits(awaited);
        }
        // The answer may have begun meanwhile.
        if awaited && self.is_answered() {
            self.is_awaited(false);
        }
    }
}

/// How quickly a body has to come. Time counts only while the peer waits for the body: a client is
/// not to blame for an app that reads slowly.
struct Pace {
    rate: u64,
    pause: Duration,
    brought: u64,
    waited: Duration,
    /// Since when the peer waits for it, and when the time is over.
    since: Option<Instant>,
    end: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn new(limits: &ClientLimits) -> Self {
        Self {
            rate: limits.body_rate,
            pause: limits.body_timeout,
            brought: 0,
            waited: Duration::ZERO,
            since: None,
            end: None,
        }
    }

    fn came(&mut self, bytes: usize) {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
        self.brought += bytes as u64;
    }

    /// How long the peer waits from now on.
    fn patience(&self) -> Duration {
        let earned = match self.rate {
            0 => return self.pause,
            rate => Duration::from_millis(self.brought.saturating_mul(1000) / rate),
        };
        (self.pause + earned).saturating_sub(self.waited).min(self.pause)
    }

    /// Resolves when the time is over.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let patience = self.patience();
        let begins = self.since.is_none();
        let since = *self.since.get_or_insert_with(Instant::now);
        let end = self.end.get_or_insert_with(|| Box::pin(sleep_until(since + patience)));
        if begins {
            end.as_mut().reset(since + patience);
        }
        end.as_mut().poll(cx)
    }
}

impl ClientBody {
    pub(crate) fn new(
        incoming: Incoming,
        limits: &ClientLimits,
        in_frames: bool,
        exchange: Arc<Exchange>,
    ) -> Self {
        Self { incoming, in_frames, pace: Pace::new(limits), exchange }
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        self.exchange.is_awaited(false);
    }
}

impl http_body::Body for ClientBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.incoming).poll_frame(cx);
        let (exchange, at_leisure) = (&this.exchange, this.exchange.is_answered());
        if !at_leisure {
            exchange.is_awaited(frame.is_pending());
        }
        match frame {
            Poll::Ready(frame) => {
                if let Some(Ok(frame)) = &frame {
                    let bytes = frame.data_ref().map(Bytes::len);
                    this.pace.came(bytes.unwrap_or(0));
                    if let Some(bytes) = bytes {
                        exchange.account.read(bytes, this.in_frames);
                    }
                }
                let charged =
                    |frame: Frame<Bytes>| frame.map_data(|data| exchange.account.passes_on(data));
                Poll::Ready(frame.map(|frame| frame.map(charged).map_err(Into::into)))
            }
            Poll::Pending if at_leisure => Poll::Pending,
            Poll::Pending => {
                if this.pace.poll_end(cx).is_pending() || exchange.is_answered() {
                    return Poll::Pending;
                }
                exchange.account.refused(Refusal::SlowBody);
                Poll::Ready(Some(Err(TooSlow.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(rate: u64) -> Pace {
        let body_timeout = Duration::from_secs(10);
        Pace::new(&ClientLimits { body_rate: rate, body_timeout, ..ClientLimits::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_waited_for_as_long_as_it_earns() {
        let second = Duration::from_secs(1);
        let mut noop = Context::from_waker(std::task::Waker::noop());
        // A byte before the end of each pause does not get around the rate.
        let mut trickle = pace(100);
        for _ in 0..2 {
            assert!(trickle.poll_end(&mut noop).is_pending());
            tokio::time::advance(5 * second).await;
            trickle.came(1);
        }
        assert!(trickle.patience() < second, "{:?}", trickle.patience());
        // A body that keeps to the rate may continue for ever, and its reader may take its time.
        let mut steady = pace(100);
        for _ in 0..100 {
            assert!(steady.poll_end(&mut noop).is_pending());
            tokio::time::advance(5 * second).await;
            steady.came(500);
            tokio::time::advance(100 * second).await;
        }
        assert_eq!(steady.patience(), 10 * second);
        // Without a rate only the pause counts.
        let mut slow = pace(0);
        for _ in 0..100 {
            assert!(slow.poll_end(&mut noop).is_pending());
            tokio::time::advance(9 * second).await;
            slow.came(1);
        }
        assert!(slow.poll_end(&mut noop).is_pending());
        tokio::time::advance(10 * second).await;
        assert!(slow.poll_end(&mut noop).is_ready());
    }
}
