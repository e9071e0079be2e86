//! The body type of every request and response in the mesh: boxed and streamed.

pub(crate) mod followed;
mod lent;

use std::any::Any;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use tokio::sync::oneshot;

use self::followed::Follow;
pub use self::lent::Lender;
use crate::http::fields;

/// Any error, boxed: the error type of bodies and of an app's service.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How a client's body broke off, if it did.
pub(crate) type Broke = Arc<OnceLock<BoxError>>;

/// A streamed HTTP body.
pub struct Body {
    inner: Inner,
    /// Dropped when the body ends: it counts the request as in flight.
    guard: Option<Box<dyn Send>>,
    watch: Option<Box<dyn Watch>>,
}

/// Follows a body until it is dropped.
pub(crate) trait Watch: Send {
    /// So many more of its bytes have passed.
    fn passes(&mut self, bytes: usize);
    /// It broke off.
    fn breaks(&mut self, error: &BoxError);
}

enum Inner {
    Empty,
    Full(Full<Bytes>),
    Incoming(hyper::body::Incoming),
    Boxed(UnsyncBoxBody<Bytes, BoxError>),
}

impl Body {
    /// A body without bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::plain(Inner::Empty)
    }

    fn plain(inner: Inner) -> Self {
        Self { inner, guard: None, watch: None }
    }

    /// The number of its bytes, if all of them are in memory.
    pub(crate) fn bytes_in_memory(&self) -> Option<u64> {
        match &self.inner {
            Inner::Full(full) => full.size_hint().exact(),
            _ => self.is_end_stream().then_some(0),
        }
    }

    /// Has `watch` follow it: for a body that is not in memory.
    pub(crate) fn watched(mut self, watch: Box<dyn Watch>) -> Self {
        if self.watch.is_some() {
            // It passes through several peers of one process.
            self = Self::plain(Inner::Boxed(self.boxed_unsync()));
        }
        self.watch = Some(watch);
        self
    }

    /// Counts a request as in flight until this body has ended or is dropped.
    pub(crate) fn guarded(mut self, guard: impl Send + 'static) -> Self {
        if !http_body::Body::is_end_stream(&self) {
            self.guard = Some(Box::new(guard));
        }
        self
    }

    /// A copy of the body, if all of it is in memory.
    #[must_use]
    pub fn try_clone(&self) -> Option<Self> {
        match &self.inner {
            Inner::Empty => Some(Self::empty()),
            Inner::Full(full) => Some(Self::plain(Inner::Full(full.clone()))),
            Inner::Incoming(_) | Inner::Boxed(_) => None,
        }
    }

    /// All of its bytes, if they are in memory and at most `bytes_max` long.
    #[must_use]
    pub fn whole(&self, bytes_max: u64) -> Option<Bytes> {
        match &self.inner {
            Inner::Empty => Some(Bytes::new()),
            Inner::Full(full) if full.size_hint().exact()? <= bytes_max => {
                let mut noop = Context::from_waker(std::task::Waker::noop());
                match Pin::new(&mut full.clone()).poll_frame(&mut noop) {
                    Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
                    _ => Some(Bytes::new()),
                }
            }
            Inner::Incoming(_) if self.is_end_stream() => Some(Bytes::new()),
            _ => None,
        }
    }

    /// Takes all bytes of the body, if they are in memory and at most `bytes_max` long.
    pub(crate) fn take_whole(&mut self, bytes_max: usize) -> Option<Bytes> {
        match &mut self.inner {
            Inner::Empty => Some(Bytes::new()),
            Inner::Full(full) if full.size_hint().exact()? <= bytes_max as u64 => {
                let mut noop = Context::from_waker(std::task::Waker::noop());
                let frame = Pin::new(full).poll_frame(&mut noop);
                self.inner = Inner::Empty;
                match frame {
                    Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
                    _ => Some(Bytes::new()),
                }
            }
            _ => None,
        }
    }

    /// The same body once its first part, or its end, has arrived.
    pub(crate) async fn begun(mut self) -> Result<Self, BoxError> {
        match self.frame().await {
            None => Ok(Self::empty()),
            Some(frame) => match frame?.into_data() {
                Ok(data) if data.is_empty() => Ok(self),
                Ok(data) if self.is_end_stream() => Ok(Self::from(data)),
                Ok(data) => Ok(Self::resumed(vec![data], self)),
                Err(_) => Ok(Self::empty()),
            },
        }
    }

    /// The same body, and a receiver that resolves once somebody asks for its first part.
    pub(crate) fn telling_when_wanted(self) -> (Self, oneshot::Receiver<()>) {
        let (tell, wanted) = oneshot::channel();
        (self.followed(Telling(Some(tell))), wanted)
    }

    /// The same body, which stores the error in `broke` if it ends with one.
    pub(crate) fn telling_if_broken(self, broke: &Broke) -> Self {
        let broke = Arc::clone(broke);
        Self::new(self.map_err(move |error| {
            let text = error.to_string();
            let _ = broke.set(error);
            text
        }))
    }

    /// `first`, then what is left of `rest`.
    pub(crate) fn resumed(first: Vec<Bytes>, rest: Body) -> Self {
        Self::new(Resumed { first: first.into(), rest })
    }

    /// Wraps any other body.
    pub fn new<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // A `Body` that passed through a service generic over bodies is not boxed again.
        let mut body = Some(body);
        if let Some(own) = (&mut body as &mut dyn Any).downcast_mut::<Option<Self>>() {
            return own.take().unwrap_or_default();
        }
        match body {
            Some(body) => Self::plain(Inner::Boxed(body.map_err(Into::into).boxed_unsync())),
            None => Self::empty(),
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Body")
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::empty() } else { Self::plain(Inner::Full(Full::new(bytes))) }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl From<hyper::body::Incoming> for Body {
    fn from(incoming: hyper::body::Incoming) -> Self {
        Self::plain(Inner::Incoming(incoming))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut polled = match &mut self.inner {
            Inner::Empty => Poll::Ready(None),
            Inner::Full(full) => Pin::new(full).poll_frame(cx).map_err(|never| match never {}),
            Inner::Incoming(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
            Inner::Boxed(boxed) => Pin::new(boxed).poll_frame(cx),
        };
        match &mut polled {
            Poll::Ready(None | Some(Err(_))) => self.guard = None,
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    fields::tidy_trailers(trailers);
                }
            }
            Poll::Pending => {}
        }
        if let (Some(watch), Poll::Ready(Some(outcome))) = (&mut self.watch, &polled) {
            match outcome {
                Ok(frame) => watch.passes(frame.data_ref().map_or(0, Bytes::len)),
                Err(error) => watch.breaks(error),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Empty => true,
            Inner::Full(full) => full.is_end_stream(),
            Inner::Incoming(incoming) => incoming.is_end_stream(),
            Inner::Boxed(boxed) => boxed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Full(full) => full.size_hint(),
            Inner::Incoming(incoming) => incoming.size_hint(),
            Inner::Boxed(boxed) => boxed.size_hint(),
        }
    }
}

/// Reports when a body's first part is asked for.
struct Telling(Option<oneshot::Sender<()>>);

impl Follow for Telling {
    fn is_wanted(&mut self) {
        if let Some(tell) = self.0.take() {
            // Nobody listens any more once the answer has begun.
            let _ = tell.send(());
        }
    }
}

/// A body of which some parts were read ahead.
struct Resumed {
    first: std::collections::VecDeque<Bytes>,
    rest: Body,
}

impl http_body::Body for Resumed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(bytes) = self.first.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
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
    use super::*;

    #[tokio::test]
    async fn a_body_that_is_resumed_knows_how_long_it_is_and_when_it_ends() {
        let first = vec![Bytes::from_static(b"some"), Bytes::from_static(b"thing ")];
        let mut body = Body::resumed(first, Body::from("to read"));
        for left in [17, 13, 7] {
            assert_eq!(body.size_hint().exact(), Some(left));
            assert!(!body.is_end_stream());
            body.frame().await.unwrap().unwrap();
        }
        assert!(body.is_end_stream());
    }
}
