//! A body that is lent to a reader: if the reader drops it before it has read too much of it, the body
//! comes back and can be read from its start.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::http::body::followed::Polled;
use crate::http::body::{Body, BoxError};

/// Takes back a body that was lent: see [`Body::lent`].
pub trait Lender: Send + Unpin + 'static {
    /// Whether the body is still wanted. Once it is not, nothing of it is kept any more.
    fn is_waiting(&self) -> bool {
        true
    }

    /// The reader has dropped the body: here it is, from its start. It is not called if the body cannot
    /// come back.
    fn take_back(&mut self, body: Body);
}

impl Body {
    /// The same body, which `lender` gets back if its reader drops it: whole, with the parts that the
    /// reader has read. At most `kept_bytes_max` of them are kept. A body of which more was read, whose
    /// trailers were read, or that broke off, does not come back.
    #[must_use]
    pub fn lent(self, kept_bytes_max: usize, lender: impl Lender) -> Self {
        let kept = Vec::new();
        Self::new(Lent { body: Some(self), kept, room: kept_bytes_max, intact: true, lender })
    }
}

struct Lent<L: Lender> {
    body: Option<Body>,
    /// The parts that were read.
    kept: Vec<Bytes>,
    /// How many more bytes may be kept.
    room: usize,
    /// All parts that were read are kept.
    intact: bool,
    lender: L,
}

impl<L: Lender> Lent<L> {
    fn note(&mut self, polled: &Polled) {
        let Poll::Ready(Some(read)) = polled else { return };
        // Trailers are not kept, and a body that broke off cannot start over.
        let data = read.as_ref().ok().and_then(Frame::data_ref);
        match data.filter(|data| data.len() <= self.room && self.lender.is_waiting()) {
            Some(data) if self.intact => {
                self.room -= data.len();
                self.kept.push(data.clone());
            }
            _ => {
                self.intact = false;
                self.kept = Vec::new();
            }
        }
    }
}

impl<L: Lender> Drop for Lent<L> {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|_| self.intact) else { return };
        let kept = std::mem::take(&mut self.kept);
        self.lender.take_back(if kept.is_empty() { body } else { Body::resumed(kept, body) });
    }
}

impl<L: Lender> http_body::Body for Lent<L> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
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
