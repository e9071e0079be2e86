//! A connection of HTTP/1 whose framing is checked, and nothing else: the admin listener's.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::Watch;
use crate::http::writes_through::writes_through;

/// A request that two readers could understand differently is spoilt, as by [`Framed`](super::Framed).
pub(crate) struct Checked<IO> {
    io: IO,
    watch: Watch,
}

impl<IO> Checked<IO> {
    pub(crate) fn new(io: IO) -> Self {
        Self { io, watch: Watch::default() }
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
        let (seen, _) = self.watch.see(&mut buf.filled_mut()[before..]);
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
