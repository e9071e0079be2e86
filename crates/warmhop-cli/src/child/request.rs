//! A request's body on its way to the app.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::Sleep;
use warmhop::{Body, BoxError};

/// A request's body; where the client expects `100 Continue`, it is not touched before the
/// app has said so, since touching it is what makes the front door ask the client for it.
pub(super) struct RequestBody {
    pub(super) body: Body,
    pub(super) gate: Option<(oneshot::Receiver<()>, Pin<Box<Sleep>>)>,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some((gate, patience)) = &mut self.gate {
            let said_so = matches!(Pin::new(gate).poll(cx), Poll::Ready(Ok(())));
            if !said_so && patience.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.gate = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
