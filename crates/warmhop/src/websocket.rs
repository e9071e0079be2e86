//! The end of a WebSocket that is not the app's own doing (RFC 6455): where its app is gone or its
//! peer leaves, the client gets a close frame rather than a connection that breaks off.
//!
//! A frame can follow only a whole one, so what goes to the client is counted frame by frame.
//! Nothing of it is read but lengths.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Section 7.4.1: an endpoint is going away.
const GOING_AWAY: u16 = 1001;
/// Section 7.4.1: an unexpected condition kept the server from going on.
const INTERNAL_ERROR: u16 = 1011;
/// How long a frame under way may take to end, when the peer leaves.
const FRAME_WITHIN: Duration = Duration::from_secs(1);
/// How long a client may take to answer a close frame.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked whether a frame has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The upgraded connections of clients at this peer.
#[derive(Clone, Default)]
pub(crate) struct Upgrades {
    /// Cancelled when those that are left have to end.
    pub(crate) leaving: CancellationToken,
    pub(crate) open: TaskTracker,
}

impl Upgrades {
    /// Passes bytes between a client and whatever `pass` connects it to, until that ends or the
    /// peer leaves; then the client is told in the words of its protocol.
    pub(crate) async fn carry<IO, P>(&self, client: IO, protocol: Option<&HeaderValue>, pass: P)
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin,
        P: AsyncFnOnce(&mut Client<IO>),
    {
        let speaks = protocol.is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let between = Arc::new(AtomicBool::new(true));
        let mut client = Client {
            io: client,
            frames: speaks.then(Frames::default),
            between: Arc::clone(&between),
            farewell: Farewell { code: INTERNAL_ERROR, sent: 0 },
        };
        {
            let passing = pass(&mut client);
            tokio::pin!(passing);
            tokio::select! {
                () = &mut passing => return,
                () = self.leaving.cancelled() => {}
            }
            let frame_ended = async {
                while !between.load(Ordering::Acquire) {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            };
            tokio::select! {
                () = &mut passing => return,
                _ = tokio::time::timeout(FRAME_WITHIN, frame_ended) => {}
            }
        }
        client.farewell.code = GOING_AWAY;
        // A client that is gone needs no farewell.
        let _ = client.shutdown().await;
        let mut rest = [0; 1024];
        let answered = async { while client.read(&mut rest).await.is_ok_and(|read| read > 0) {} };
        let _ = tokio::time::timeout(ANSWER_WITHIN, answered).await;
    }
}

/// A client's connection, which ends with a close frame if it is a WebSocket.
pub(crate) struct Client<IO> {
    io: IO,
    /// What has gone to it; absent where it speaks something else.
    frames: Option<Frames>,
    /// Whether it has got whole frames only.
    between: Arc<AtomicBool>,
    farewell: Farewell,
}

/// A close frame on its way.
struct Farewell {
    code: u16,
    sent: usize,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Client<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Client<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = std::task::ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        if let Some(frames) = &mut self.frames {
            frames.passed(&buf[..written]);
            let between = frames.is_between();
            self.between.store(between, Ordering::Release);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.frames.as_ref().is_some_and(|frames| frames.is_between() && !frames.closed) {
            let [high, low] = this.farewell.code.to_be_bytes();
            // The whole message, not masked, with the code alone (section 5.5.1).
            let frame = [0x88, 2, high, low];
            while let Some(rest) = frame.get(this.farewell.sent..).filter(|rest| !rest.is_empty()) {
                let written = std::task::ready!(Pin::new(&mut this.io).poll_write(cx, rest))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                this.farewell.sent += written;
            }
            if let Some(frames) = &mut this.frames {
                frames.closed = true;
            }
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

/// Where one frame ends and the next begins (section 5.2).
#[derive(Debug, Default)]
struct Frames {
    /// The head of the frame under way, as far as it has passed.
    head: [u8; 14],
    head_len: usize,
    /// What is left of its payload.
    payload: u64,
    /// A close frame has passed, or begun to.
    closed: bool,
}

impl Frames {
    fn is_between(&self) -> bool {
        self.head_len == 0 && self.payload == 0
    }

    fn passed(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload > 0 {
                let taken = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                self.payload -= taken as u64;
                bytes = &bytes[taken..];
                continue;
            }
            self.head[self.head_len] = *first;
            self.head_len += 1;
            bytes = rest;
            if let Some(payload) = self.whole_head() {
                const CLOSE: u8 = 8;
                self.closed |= self.head[0] & 0x0F == CLOSE;
                self.payload = payload;
                self.head_len = 0;
            }
        }
    }

    /// The payload's length, once the head is whole.
    fn whole_head(&self) -> Option<u64> {
        let head = &self.head[..self.head_len];
        let second = *head.get(1)?;
        let masking = if second & 0x80 == 0 { 0 } else { 4 };
        let (extended, short) = match second & 0x7F {
            126 => (2, 0),
            127 => (8, 0),
            short => (0, u64::from(short)),
        };
        if head.len() < 2 + extended + masking {
            return None;
        }
        let length = head[2..2 + extended].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        Some(if extended == 0 { short } else { length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn websocket() -> Option<HeaderValue> {
        Some(HeaderValue::from_static("WebSocket"))
    }

    /// What a client gets while `pass` runs, and until its connection ends.
    async fn told(
        upgrades: &Upgrades,
        protocol: Option<HeaderValue>,
        pass: impl AsyncFnOnce(&mut Client<tokio::io::DuplexStream>),
    ) -> Vec<u8> {
        let (near, mut far) = tokio::io::duplex(64);
        let carried = upgrades.carry(near, protocol.as_ref(), pass);
        let reads = async {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            drop(far);
            all
        };
        tokio::join!(carried, reads).1
    }

    #[test]
    fn frames_of_every_length_are_counted_wherever_they_are_cut() {
        let mut sent = vec![0x81, 3, 1, 2, 3, 0x82, 126, 1, 0];
        sent.extend([7; 256]);
        sent.extend([0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        sent.extend([7; 65536]);
        sent.extend([0x89, 0x80, 1, 2, 3, 4, 0x01, 0]);
        let ends = [5, 265, 65811, 65817, 65819];
        let mut frames = Frames::default();
        for (at, byte) in (1..).zip(&sent) {
            frames.passed(&[*byte]);
            assert_eq!(frames.is_between(), ends.contains(&at), "after {at} bytes");
        }
        let mut frames = Frames::default();
        frames.passed(&sent);
        assert!(frames.is_between() && !frames.closed);
        frames.passed(&[0x88, 0]);
        assert!(frames.is_between() && frames.closed);
    }

    #[tokio::test]
    async fn a_client_whose_app_is_gone_is_told_so_after_the_last_whole_frame() {
        let upgrades = Upgrades::default();
        let ends = async |client: &mut Client<_>| {
            client.write_all(&[0x81, 1, b'a']).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let got = told(&upgrades, websocket(), ends).await;
        assert_eq!(got, [0x81, 1, b'a', 0x88, 2, 0x03, 0xF3]);
        let breaks_off = async |client: &mut Client<_>| {
            client.write_all(&[0x81, 2, b'a']).await.unwrap();
            client.shutdown().await.unwrap();
        };
        assert_eq!(told(&upgrades, websocket(), breaks_off).await, [0x81, 2, b'a']);
        let closes = async |client: &mut Client<_>| {
            client.write_all(&[0x88, 2, 0x03, 0xE8]).await.unwrap();
            client.shutdown().await.unwrap();
        };
        assert_eq!(told(&upgrades, websocket(), closes).await, [0x88, 2, 0x03, 0xE8]);
        let other = async |client: &mut Client<_>| client.shutdown().await.unwrap();
        assert!(told(&upgrades, None, other).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_leaves_ends_the_frame_under_way_and_then_says_goodbye() {
        let upgrades = Upgrades::default();
        let leaving = upgrades.leaving.clone();
        let talks = async |client: &mut Client<_>| {
            client.write_all(&[0x81, 2, b'a']).await.unwrap();
            leaving.cancel();
            tokio::time::sleep(LOOK_EVERY * 3).await;
            client.write_all(b"b").await.unwrap();
            std::future::pending::<()>().await;
        };
        let got = told(&upgrades, websocket(), talks).await;
        assert_eq!(got, [0x81, 2, b'a', b'b', 0x88, 2, 0x03, 0xE9]);
    }
}
