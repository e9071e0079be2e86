//! A request's body that may come back: if an app turns out not to have received its request,
//! another one has to get the whole body.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::http::body::{Body, BoxError};

/// How much of a body under way is kept, so that it can be sent again from its start.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// Where a lent body comes back to.
#[derive(Default)]
pub(crate) struct Home(Arc<Mutex<Option<Body>>>);

impl Home {
    /// Hands out a body for the time being.
    pub(crate) fn lend(body: Body) -> (Self, Body) {
        let home = Self::default();
        let to = Arc::clone(&home.0);
        (home, Body::new(Lent { body: Some(body), kept: Vec::new(), bytes: 0, home: to }))
    }

    /// The body, if it has come back intact.
    pub(crate) fn take(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether it has come back intact.
    pub(crate) fn has_it(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

struct Lent {
    body: Option<Body>,
    /// The parts that were read: all of them, or it cannot come back.
    kept: Vec<Bytes>,
    bytes: usize,
    home: Arc<Mutex<Option<Body>>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.bytes > KEPT_BYTES_MAX {
            return;
        }
        let Some(body) = self.body.take() else { return };
        let kept = std::mem::take(&mut self.kept);
        let whole = if kept.is_empty() { body } else { Body::resumed(kept, body) };
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = Some(whole);
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
        match &polled {
            Poll::Ready(Some(Ok(frame))) => match frame.data_ref() {
                Some(data) if self.bytes.saturating_add(data.len()) <= KEPT_BYTES_MAX => {
                    let data = data.clone();
                    self.bytes += data.len();
                    self.kept.push(data);
                }
                // Too much, or trailers, which are not kept.
                _ => {
                    self.bytes = usize::MAX;
                    self.kept = Vec::new();
                }
            },
            // A body that broke off cannot start over.
            Poll::Ready(Some(Err(_))) => self.bytes = usize::MAX,
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn stream(pieces: &[&'static [u8]]) -> Body {
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| Ok::<_, BoxError>(Frame::data(Bytes::from_static(piece))))
            .collect();
        Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(pieces)))
    }

    async fn all(body: Body) -> Bytes {
        body.collect().await.unwrap().to_bytes()
    }

    #[tokio::test]
    async fn a_body_comes_back_whole_however_much_was_read_of_it() {
        for read in 0..=3 {
            let (home, mut lent) = Home::lend(stream(&[b"one ", b"two ", b"three"]));
            for _ in 0..read {
                lent.frame().await;
            }
            assert!(!home.has_it(), "it is still away");
            drop(lent);
            assert_eq!(all(home.take().unwrap()).await, "one two three", "{read} read");
        }
    }

    #[tokio::test]
    async fn a_body_of_which_more_was_read_than_is_kept_does_not_come_back() {
        static LARGE: [u8; KEPT_BYTES_MAX] = [b'x'; KEPT_BYTES_MAX];
        let (home, mut lent) = Home::lend(stream(&[&LARGE, b"and more", b"and more"]));
        lent.frame().await;
        lent.frame().await;
        drop(lent);
        assert!(!home.has_it());
    }
}
