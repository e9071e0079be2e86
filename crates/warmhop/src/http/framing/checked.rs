//! A connection of HTTP/1 whose framing is checked, and nothing else: the admin listener's.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::Watch;
use crate::http::refusals::Refusal;
use crate::http::writes_through::writes_through;

/// A request that two readers could understand differently is spoilt, as by [`Framed`](super::Framed).
pub(crate) struct Checked<IO> {
    io: IO,
    watch: Watch,
    seen: Arc<Seen>,
}

/// What was seen of a connection, for who serves it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    refused: OnceLock<Refusal>,
    /// A part of a request has come, and not all of it.
    is_within: AtomicBool,
}

impl Seen {
    /// Why the connection was refused, if it was; `ended` is how serving it ended.
    pub(crate) fn refusal(&self, ended: &hyper::Result<()>) -> Option<Refusal> {
        if let Some(why) = self.refused.get() {
            return Some(*why);
        }
        let error = ended.as_ref().err()?;
        // An idle connection ends by the same timeout as one whose head is not complete.
        if error.is_timeout() && self.is_within.load(Ordering::Relaxed) {
            return Some(Refusal::SlowHead);
        }
        Refusal::of_error(error)
    }
}

impl<IO> Checked<IO> {
    pub(crate) fn new(io: IO) -> Self {
        Self { io, watch: Watch::default(), seen: Arc::default() }
    }

    pub(crate) fn seen(&self) -> Arc<Seen> {
        Arc::clone(&self.seen)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Checked<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(instead) = self.watch.instead(buf) {
            return Poll::Ready(instead);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let (seen, why) = self.watch.see(&mut buf.filled_mut()[before..]);
        if let Some(why) = why {
            // Nothing is read behind a refusal, so there is one at most.
            let _ = self.seen.refused.set(why);
        }
        self.seen.is_within.store(!self.watch.is_between(), Ordering::Relaxed);
        let came = buf.filled().len() > before;
        buf.set_filled(before + seen);
        if came && seen == 0 {
            // A read of nothing would look like the end of the connection to the reader.
            return self.poll_read(cx, buf);
        }
        Poll::Ready(Ok(()))
    }
}

writes_through!(Checked);
