//! A request's body on its way to the app.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::Sleep;
use warmhop::{Body, BoxError};

/// A request's body; where the client expects `100 Continue`, it is not touched before the
/// app has said so, since touching it is what makes the front door ask the client for it.
pub(super) struct RequestBody {
    pub(super) body: Body,
    pub(super) gate: Option<Gate>,
}

impl RequestBody {
    pub(super) fn empty() -> Self {
        Self { body: Body::empty(), gate: None }
    }
}

/// What a body waits for.
pub(super) struct Gate {
    /// The app's word; absent once nobody is left who could pass it on: the app has answered
    /// without it, or speaks HTTP/2, where hyper tells nothing of a `100`.
    pub(super) go: Option<oneshot::Receiver<()>>,
    pub(super) patience: Pin<Box<Sleep>>,
}

impl Gate {
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.go.as_mut().map(|go| Pin::new(go).poll(cx)) {
            Some(Poll::Ready(Ok(()))) => return Poll::Ready(()),
            Some(Poll::Ready(Err(_))) => self.go = None,
            Some(Poll::Pending) | None => {}
        }
        self.patience.as_mut().poll(cx)
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(gate) = &mut self.gate {
            ready!(gate.poll_open(cx));
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
