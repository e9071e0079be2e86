//! A request's body on a connection that the app may leave before it takes the request: what has been
//! read of it is kept for a while, so that it can be sent again from its start.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::timeout;
use warmhop::{Body, BoxError};

/// How much of a body is kept: what an app's first window lets pass, and the piece that overshoots it.
const KEPT_BYTES_MAX: usize = 128 * 1024;
/// How long to wait for a body whose stream is over: its task may be on a busy thread.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Where a lent body comes back to. It is kept for as long as this exists.
pub(super) struct Home {
    keeps: Arc<()>,
    back: oneshot::Receiver<Body>,
}

impl Home {
    /// Hands out a body for the time being.
    pub(super) fn lend(body: Body) -> (Self, Body) {
        let (to, back) = oneshot::channel();
        let keeps = Arc::new(());
        let wanted = Arc::downgrade(&keeps);
        let kept = VecDeque::new();
        let lent = Lent { body: Some(body), kept, bytes: 0, intact: true, wanted, home: Some(to) };
        (Self { keeps, back }, Body::new(lent))
    }

    /// The whole body, if its connection gives it back and all that was read of it was kept.
    pub(super) async fn body(self) -> Option<Body> {
        let back = timeout(BACK_WITHIN, self.back).await.ok()?.ok();
        drop(self.keeps);
        back
    }
}

struct Lent {
    body: Option<Body>,
    /// The parts that were read.
    kept: VecDeque<Bytes>,
    bytes: usize,
    /// All of what was read is among them.
    intact: bool,
    /// Gone once nobody would send it again.
    wanted: Weak<()>,
    home: Option<oneshot::Sender<Body>>,
}

impl Lent {
    fn note(&mut self, polled: &Poll<Option<Result<Frame<Bytes>, BoxError>>>) {
        let Poll::Ready(Some(read)) = polled else { return };
        let data = read.as_ref().ok().and_then(Frame::data_ref);
        let room = KEPT_BYTES_MAX.saturating_sub(self.bytes);
        match data.filter(|data| data.len() <= room && self.wanted.strong_count() > 0) {
            Some(data) if self.intact => {
                self.bytes += data.len();
                self.kept.push_back(data.clone());
            }
            // Trailers are not kept, and a body that broke off cannot start over.
            _ => {
                self.intact = false;
                self.kept = VecDeque::new();
            }
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let (Some(body), Some(home)) = (self.body.take(), self.home.take()) else { return };
        if self.intact {
            let first = std::mem::take(&mut self.kept);
            let whole =
                if first.is_empty() { body } else { Body::new(Resumed { first, rest: body }) };
            // Nobody may want it any more.
            let _ = home.send(whole);
        }
    }
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        self.note(&polled);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

/// A body of which the first parts are sent a second time.
struct Resumed {
    first: VecDeque<Bytes>,
    rest: Body,
}

impl http_body::Body for Resumed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(first) = self.first.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.iter().map(|data| data.len() as u64).sum::<u64>();
        let mut hint = self.rest.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + first);
        }
        hint.set_lower(hint.lower() + first);
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn stream(pieces: usize, bytes: usize) -> Body {
        let frame = move |at: usize| {
            Ok::<_, BoxError>(Frame::data(Bytes::from(vec![
                u8::try_from(at % 251).unwrap();
                bytes
            ])))
        };
        Body::new(StreamBody::new(futures_util::stream::iter((0..pieces).map(frame))))
    }

    #[tokio::test]
    async fn a_body_comes_back_whole_however_often_and_as_much_as_is_kept_was_read_of_it() {
        let all = stream(20, 10_000).collect().await.unwrap().to_bytes();
        let mut body = stream(20, 10_000);
        for reads in [0, 1, 5, 13, 3] {
            let (home, mut lent) = Home::lend(body);
            for _ in 0..reads {
                lent.frame().await.unwrap().unwrap();
            }
            drop(lent);
            body = home.body().await.unwrap_or_else(|| panic!("it is back after {reads}"));
        }
        assert_eq!(body.collect().await.unwrap().to_bytes(), all);
    }

    #[tokio::test]
    async fn a_body_that_nobody_would_send_again_is_not_kept_and_neither_is_too_much_of_one() {
        let (home, mut lent) = Home::lend(stream(20, 10_000));
        for _ in 0..14 {
            lent.frame().await.unwrap().unwrap();
        }
        drop(lent);
        assert!(home.body().await.is_none(), "more was read than is kept");
        let (home, body) = Home::lend(stream(2, 10));
        drop(home);
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 20);
    }
}
