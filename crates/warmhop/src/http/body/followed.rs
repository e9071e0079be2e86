//! A body that passes through as it is while something follows how it is read: a record, a span, a
//! clock.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::http::body::{Body, BoxError};

/// The outcome of asking a body for its next frame.
pub(crate) type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

/// Follows a body while it is read. It is dropped with the body.
pub(crate) trait Follow: Send + Unpin + 'static {
    /// The next frame is asked for.
    fn is_wanted(&mut self) {}

    /// The outcome of that; `is_at_end` if nothing follows it.
    fn has_polled(&mut self, polled: &Polled, is_at_end: bool) {
        let _ = (polled, is_at_end);
    }
}

struct Followed<F> {
    body: Body,
    by: F,
}

impl Body {
    /// The same body, which `by` follows.
    pub(crate) fn followed(self, by: impl Follow) -> Self {
        Self::new(Followed { body: self, by })
    }
}

impl<F: Follow> http_body::Body for Followed<F> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        self.by.is_wanted();
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let is_at_end = self.body.is_end_stream();
        self.by.has_polled(&polled, is_at_end);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
