//! What passes an upgraded connection, such as a WebSocket: its bytes in both directions, counted for
//! its app as they pass, and for its record in the access log, which is made when it ends.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

use crate::http::writes_through::writes_through;
use crate::observe::access::Accessing;
use crate::observe::traffic::AppTraffic;

/// One upgraded connection. The answer that opens it and the task that serves it share it; the last of
/// them to let go of it has it recorded.
pub(crate) struct Passage {
    of: Arc<AppTraffic>,
    received: AtomicU64,
    sent: AtomicU64,
    access: Mutex<Option<Accessing>>,
}

impl Passage {
    pub(crate) fn new(of: Arc<AppTraffic>) -> Arc<Self> {
        let (received, sent) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { of, received, sent, access: Mutex::default() })
    }

    /// Has `access` recorded once the connection has ended.
    pub(crate) fn ends(&self, access: Accessing) {
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = Some(access);
    }

    /// The client's side of the connection, whose bytes are counted.
    pub(crate) fn of<IO>(self: Arc<Self>, io: IO) -> Passing<IO> {
        Passing { io, passage: self }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let access = self.access.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(access) = access.take() {
            access.passed(*self.received.get_mut(), *self.sent.get_mut());
        }
    }
}

/// See [`Passage::of`].
pub(crate) struct Passing<IO> {
    io: IO,
    passage: Arc<Passage>,
}

impl<IO> Passing<IO> {
    // Each piece at once: an upgraded connection may last for days, and seldom carries much.
    fn sends(&self, outcome: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = outcome {
            self.passage.sent.fetch_add(*bytes as u64, Relaxed);
            self.passage.of.sent(*bytes as u64);
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Passing<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.io).poll_read(cx, buf);
        let bytes = (buf.filled().len() - before) as u64;
        if bytes > 0 {
            self.passage.received.fetch_add(bytes, Relaxed);
            self.passage.of.received(bytes);
        }
        outcome
    }
}

writes_through!(Passing, sends);
