//! The memory of a body in transit: what its source holds behind the piece that was read last, and at
//! the far end of a hop the pieces themselves.
//!
//! A source reads ahead: a stream of a link up to its window, the connection to an app up to its
//! buffers. How much of that it holds cannot be seen from outside. But a body that had nothing more when
//! it was last asked holds nothing; one that did may hold all that fits, and does if its reader is slow. So
//! a body is charged that much from one to the other.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Frame, SizeHint};

use crate::http::body::followed::Polled;
use crate::http::body::{Body, BoxError};
use crate::http::clients::{Account, Admitted};

/// In a response's extensions: so many bytes the source of its body may hold at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadsAhead(pub(crate) u32);

/// What the source of one body may hold, charged to an account.
pub(crate) struct Behind {
    account: Arc<Account>,
    /// The most that it may hold …
    most: i64,
    /// … and how much of the body is still to come.
    left: i64,
    charged: i64,
}

impl Behind {
    /// For a body with these fields.
    pub(crate) fn new(account: Arc<Account>, ahead: ReadsAhead, fields: &HeaderMap) -> Self {
        let length = fields.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Self { account, most: ahead.0.into(), left: length.unwrap_or(i64::MAX), charged: 0 }
    }

    /// Notes the outcome of asking the body for its next frame.
    pub(crate) fn has_polled(&mut self, polled: &Polled, is_at_end: bool) {
        let behind = match polled {
            Poll::Ready(Some(Ok(frame))) if !is_at_end => {
                let bytes = frame.data_ref().map_or(0, Bytes::len) as i64;
                self.left = self.left.saturating_sub(bytes).max(0);
                self.most.min(self.left)
            }
            _ => 0,
        };
        self.charge(behind);
    }

    fn charge(&mut self, behind: i64) {
        if behind != self.charged {
            self.account.holds(behind - self.charged);
            self.charged = behind;
        }
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.charge(0);
    }
}

/// A body that passes through the far end of a hop.
struct InTransit {
    body: Body,
    behind: Behind,
    hop: Arc<Admitted>,
}

impl Body {
    /// The same body, of a hop that has this account, with these fields.
    pub(crate) fn in_transit(
        self,
        hop: &Arc<Admitted>,
        ahead: ReadsAhead,
        fields: &HeaderMap,
    ) -> Self {
        let behind = Behind::new(Arc::clone(hop.account()), ahead, fields);
        Self::new(InTransit { body: self, behind, hop: Arc::clone(hop) })
    }
}

impl http_body::Body for InTransit {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        this.behind.has_polled(&polled, this.body.is_end_stream());
        let counted = |frame: Frame<Bytes>| frame.map_data(|data| this.hop.passes_on(data));
        polled.map(|frame| frame.map(|frame| frame.map(counted)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
