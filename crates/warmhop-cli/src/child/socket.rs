//! The app's end of a connection, in the form that hyper needs.
//!
//! hyper gives a connection up at the first failed write. If an app has answered and closed before
//! the request has ended, a write fails while the answer is still to be read. So a [`Socket`]
//! reports bytes that can no longer be sent as sent, until the other side has been read to its end.
//!
//! For a failed request, hyper reports neither whether its connection had been kept from an earlier
//! one nor whether any of an answer arrived: [`Talk`] does.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A connection over loopback that takes longer is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The most that one read brings hyper.
const READ_BYTES_MAX: usize = 32 * 1024;

/// A connection to an app.
async fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(addr)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The facts about a connection that decide whether a request may be sent again.
#[derive(Clone, Default)]
pub(super) struct Talk(Arc<Heard>);

#[derive(Default)]
struct Heard {
    /// The app sent something before the last write to it …
    earlier: AtomicBool,
    /// … and has sent something since.
    since: AtomicBool,
    /// Something of the latest request was written.
    begun: AtomicBool,
    /// The app had closed the connection before anything of the latest request was written.
    unsent: AtomicBool,
}

impl Talk {
    /// Whether the latest request used a connection that was kept after another's answer, and got
    /// no byte of one itself.
    pub(super) fn is_stale(&self) -> bool {
        self.0.earlier.load(Relaxed) && !self.0.since.load(Relaxed)
    }

    /// Whether no byte of the latest request can have reached the app.
    pub(super) fn is_unsent(&self) -> bool {
        self.0.unsent.load(Relaxed)
    }

    /// Notes that bytes are about to be written, and returns whether a request begins with them.
    fn writes(&self) -> bool {
        // Only the connection's task writes here.
        if self.0.since.load(Relaxed) {
            self.0.since.store(false, Relaxed);
            self.0.earlier.store(true, Relaxed);
            self.0.begun.store(false, Relaxed);
        }
        !self.0.begun.load(Relaxed)
    }

    fn read(&self) {
        if !self.0.since.load(Relaxed) {
            self.0.since.store(true, Relaxed);
        }
    }
}

/// The beginning of an answer, for a second reader. Until the exchange is over, that reader writes
/// the request again, which the app already has.
struct Again {
    bytes: Bytes,
    /// The answer must not be read before its request was written.
    is_asked: bool,
    /// The reader that waits for that.
    reader: Option<Waker>,
}

/// A connection whose answers outlive its requests.
pub(super) struct Socket {
    stream: TcpStream,
    talk: Talk,
    /// Several requests share it, as in HTTP/2: their beginnings cannot be distinguished.
    is_shared: bool,
    /// The error of a failed write.
    deaf: Option<io::ErrorKind>,
    /// Nothing more is to be read.
    ended: bool,
    /// Bytes that were read already and are to be read again.
    again: Option<Again>,
    /// Whether a read gets at most [`READ_BYTES_MAX`].
    in_pieces: bool,
    /// Woken whenever the reader has dealt with all that has come.
    caught_up: Arc<AtomicWaker>,
    /// Buffers for a request and for an answer.
    buffers: (Vec<u8>, BytesMut),
}

impl Socket {
    /// Connects to an app.
    pub(super) async fn connect(addr: SocketAddr) -> io::Result<Self> {
        Ok(Self::new(connect(addr).await?))
    }

    /// The same for several requests at once.
    pub(super) async fn shared(addr: SocketAddr) -> io::Result<Self> {
        Ok(Self { is_shared: true, ..Self::connect(addr).await? })
    }

    /// The record of what was sent and received on it.
    pub(super) fn talk(&self) -> Talk {
        self.talk.clone()
    }

    /// Wakes the task that registers there once the reader has dealt with all that has come and waits for
    /// more.
    pub(super) fn caught_up(&self) -> Arc<AtomicWaker> {
        Arc::clone(&self.caught_up)
    }

    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            talk: Talk::default(),
            is_shared: false,
            deaf: None,
            ended: false,
            again: None,
            in_pieces: false,
            caught_up: Arc::default(),
            buffers: Default::default(),
        }
    }

    /// Buffers for a request and for an answer, which may have been used before.
    pub(super) fn take_buffers(&mut self) -> (Vec<u8>, BytesMut) {
        std::mem::take(&mut self.buffers)
    }

    /// Keeps the buffers for the next request and its answer.
    pub(super) fn give_back_buffers(&mut self, mut out: Vec<u8>, read: BytesMut) {
        out.clear();
        self.buffers = (out, read);
    }

    /// The next reader gets `bytes` first, and its request is not sent, since the app already has
    /// it.
    pub(super) fn reads_again(&mut self, bytes: Bytes) {
        self.again = Some(Again { bytes, is_asked: false, reader: None });
    }

    /// The exchange is over: writes are sent again.
    pub(super) fn writes_again(&mut self) {
        self.again = None;
        self.in_pieces = false;
    }

    /// From here on a read gets at most [`READ_BYTES_MAX`], whatever room its reader has: hyper's buffers
    /// grow with what its reads bring, up to the longest head, and an answer that nobody reads would hold
    /// two of them.
    pub(super) fn reads_in_pieces(&mut self) {
        self.in_pieces = true;
    }

    /// Whether it can no longer be written to.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf.is_some()
    }

    /// Whether there is nothing to read on it, not even its end, as far as the runtime knows.
    pub(super) fn is_quiet(&self) -> bool {
        let unread = self.again.as_ref().is_some_and(|again| !again.bytes.is_empty());
        let read = self.stream.try_read(&mut [0]);
        !unread && !self.is_deaf() && read.is_err_and(|it| it.kind() == io::ErrorKind::WouldBlock)
    }

    /// Writes a request that may be sent twice, without checking first whether the app has closed
    /// the connection.
    pub(super) fn poll_write_harmless(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write_outcome(cx, bytes.len(), true, |stream, cx| stream.poll_write(cx, bytes))
    }

    /// The outcome that a write of `bytes` bytes reports.
    fn write_outcome(
        &mut self,
        cx: &mut Context<'_>,
        bytes: usize,
        harmless: bool,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Some(again) = &mut self.again {
            again.is_asked = true;
            if let Some(reader) = again.reader.take() {
                reader.wake();
            }
            return Poll::Ready(Ok(bytes));
        }
        let begins = !self.is_shared && self.talk.writes();
        if begins && !harmless && has_closed(&self.stream) {
            // The runtime may not have noticed yet: this is the last moment at which it is certain
            // that the app gets none of it.
            self.talk.0.unsent.store(true, Relaxed);
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.deaf.is_none() {
            match ready!(write(Pin::new(&mut self.stream), cx)) {
                Err(error) if begins && is_closed(error.kind()) => {
                    self.talk.0.unsent.store(true, Relaxed);
                    return Poll::Ready(Err(error));
                }
                Err(error) if is_closed(error.kind()) => self.deaf = Some(error.kind()),
                outcome => {
                    if begins && outcome.is_ok() {
                        self.talk.0.begun.store(true, Relaxed);
                    }
                    return Poll::Ready(outcome);
                }
            }
        }
        if let (Some(kind), true) = (self.deaf, self.ended) {
            return Poll::Ready(Err(kind.into()));
        }
        // The runtime may not have noticed the end yet. Once it has, no read waits, so that hyper
        // finds the end before it keeps the connection.
        ready!(self.stream.poll_read_ready(cx))?;
        Poll::Ready(Ok(bytes))
    }
}

/// Whether the app has closed the connection without sending anything first.
fn has_closed(stream: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    match SockRef::from(stream).peek(&mut byte) {
        Ok(bytes) => bytes == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

/// Whether a write failed because the app has closed the connection.
fn is_closed(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
    )
}

/// Reads no more than [`READ_BYTES_MAX`], however much room there is.
fn poll_read_piece(
    stream: Pin<&mut TcpStream>,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    thread_local! {
        // Of a buffer that is not initialized, no part can be lent out in safe code.
        static PIECE: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES_MAX].into());
    }
    PIECE.with_borrow_mut(|piece| {
        let mut read = ReadBuf::new(piece);
        ready!(stream.poll_read(cx, &mut read))?;
        buf.put_slice(read.filled());
        Poll::Ready(Ok(()))
    })
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(again) = &mut self.again {
            if !again.is_asked {
                again.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if !again.bytes.is_empty() {
                buf.put_slice(&again.bytes.split_to(again.bytes.len().min(buf.remaining())));
                return Poll::Ready(Ok(()));
            }
        }
        let before = buf.filled().len();
        let in_pieces = self.in_pieces && buf.remaining() > READ_BYTES_MAX;
        let stream = Pin::new(&mut self.stream);
        let read =
            if in_pieces { poll_read_piece(stream, cx, buf) } else { stream.poll_read(cx, buf) };
        let Poll::Ready(mut outcome) = read else {
            self.caught_up.wake();
            return Poll::Pending;
        };
        let nothing = buf.filled().len() == before && buf.remaining() > 0;
        if nothing && outcome.is_ok() && self.deaf == Some(io::ErrorKind::ConnectionReset) {
            // The kernel reports a reset once, and the write has received that: an answer that ends
            // with the connection may be incomplete.
            outcome = Err(io::ErrorKind::ConnectionReset.into());
        }
        if buf.filled().len() > before {
            self.talk.read();
        }
        self.ended |= nothing || outcome.is_err();
        Poll::Ready(outcome)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write_outcome(cx, buf.len(), false, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = bufs.iter().map(|buf| buf.len()).sum();
        self.write_outcome(cx, bytes, false, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_answer_sent_before_the_close_is_read_after_a_write_has_failed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = Socket::new(connect(listener.local_addr().unwrap()).await.unwrap());
        let (mut app, _) = listener.accept().unwrap();
        socket.write_all(b"some of it").await.unwrap();
        app.read_exact(&mut [0; 4]).unwrap();
        app.write_all(b"answer").unwrap();
        // Closing with unread bytes resets the connection.
        drop(app);
        while socket.deaf.is_none() {
            assert_eq!(socket.write(b"the rest").await.unwrap(), 8);
        }
        let mut answer = [0; 6];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        let end = socket.read(&mut answer).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset, "it may not have been all");
        socket.write(b"more").await.unwrap_err();
    }
}
