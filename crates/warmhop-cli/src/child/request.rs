//! A request's body on its way to the app.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, HeaderName, TRANSFER_ENCODING};
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::Sleep;
use warmhop::{Body, BoxError};

use super::lent::Home;

/// A request's body, held to the length that the request declares. If the client expects `100
/// Continue`, the body is not polled before the app has answered that, since polling makes the
/// front door ask the client for it.
pub(super) struct RequestBody {
    body: Body,
    pub(super) gate: Option<Gate>,
    /// How many bytes are still to come, if its length was declared.
    owed: Option<u64>,
    /// Dropped with this body, which hyper drops once it is sent.
    sending: Option<Arc<()>>,
}

/// A body that was lent to a connection.
pub(super) struct Lending {
    home: Home,
    owed: Option<u64>,
}

impl Lending {
    /// The body once more, if it comes back whole. Nothing is waited for again.
    pub(super) async fn back(self) -> Option<RequestBody> {
        let Self { home, owed } = self;
        Some(RequestBody { body: home.body().await?, gate: None, owed, sending: None })
    }
}

/// The most bytes of state that an app may be allowed to set in a carried session.
pub const STATE_BYTES_MAX: usize = 1 << 20;
/// How long the field is in which such a state is carried: in base64, with its name and parameters.
pub(super) const SESSION_FIELD_BYTES_MAX: usize = STATE_BYTES_MAX.div_ceil(3) * 4 + 64;

/// The longest body that is sent together with its request's head: the mesh has read that much
/// ahead.
pub(super) const WHOLE_BYTES_MAX: u64 = 16 * 1024;

impl RequestBody {
    /// No body.
    pub(super) fn empty() -> Self {
        Self { body: Body::empty(), gate: None, owed: Some(0), sending: None }
    }

    /// Whether its length was not declared.
    pub(super) fn is_of_unknown_length(&self) -> bool {
        self.owed.is_none()
    }

    /// All of it, if it is in memory, short, and waits for nothing.
    pub(super) fn whole(&self) -> Option<Bytes> {
        if self.gate.is_some() {
            return None;
        }
        self.body.whole(WHOLE_BYTES_MAX)
    }

    /// A copy of the body, if all of it is in memory.
    pub(super) fn try_clone(&self) -> Option<Self> {
        let body = self.body.try_clone().filter(|_| self.gate.is_none())?;
        Some(Self { body, gate: None, owed: self.owed, sending: None })
    }

    /// The same, whose body can come back, and what it takes to send it once more.
    pub(super) fn lend(self) -> (Self, Lending) {
        let Self { body, gate, owed, sending } = self;
        let (home, body) = Home::lend(body);
        (Self { body, gate, owed, sending }, Lending { home, owed })
    }

    /// A handle that shows whether it is still being sent; absent if there is nothing to send.
    pub(super) fn sending(&mut self) -> Option<Weak<()>> {
        if self.is_end_stream() {
            return None;
        }
        Some(Arc::downgrade(self.sending.get_or_insert_with(Arc::default)))
    }

    /// Wraps `body`, and makes `headers` agree with its length.
    ///
    /// hyper sends whatever `Content-Length` it finds. A length that was meant for another body
    /// would make the app take the next request on the connection for the rest of this one, or the
    /// reverse (CWE-444). So if the length is known, the field is set to it; if it is not, a number
    /// stays and the body is held to it, and any other value is removed.
    pub(super) fn new(headers: &mut HeaderMap, body: Body) -> Self {
        let known = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        // Most requests have neither field: one look at all names costs less than a lookup of each.
        let frames = |name: &HeaderName| *name == TRANSFER_ENCODING || *name == CONTENT_LENGTH;
        if !headers.keys().any(frames) {
            return Self { body, gate: None, owed: known, sending: None };
        }
        // How an unknown length is declared depends on the protocol.
        headers.remove(TRANSFER_ENCODING);
        let said = said_length(headers);
        let is_right = known.map_or(said.is_some(), |known| said == Some(known));
        if headers.contains_key(CONTENT_LENGTH) && !is_right {
            match known {
                Some(known) => headers.insert(CONTENT_LENGTH, known.into()),
                None => headers.remove(CONTENT_LENGTH),
            };
        }
        Self { body, gate: None, owed: known.or(said), sending: None }
    }
}

/// The number in `Content-Length`, if there is exactly one.
fn said_length(headers: &HeaderMap) -> Option<u64> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let digits = value.to_str().ok()?;
    // Parsing would accept a sign.
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// The gate that a body waits at.
pub(super) struct Gate {
    /// Resolves with the app's `100 Continue`; absent once that can no longer come: the app has
    /// answered without it, or uses HTTP/2, where hyper does not report a `100`.
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
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()?;
        if let Some(owed) = &mut self.owed {
            match frame.as_ref().and_then(Frame::data_ref) {
                Some(data) => match owed.checked_sub(data.len() as u64) {
                    Some(rest) => *owed = rest,
                    None => return Poll::Ready(Some(Err("longer than its Content-Length".into()))),
                },
                None if *owed > 0 => {
                    return Poll::Ready(Some(Err("shorter than its Content-Length".into())));
                }
                None => {}
            }
        }
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.owed.is_none_or(|bytes| bytes == 0) && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    /// A body of unknown length.
    fn streamed(text: &'static str) -> Body {
        let frames =
            text.split_inclusive(' ').map(|piece| Ok::<_, BoxError>(Frame::data(piece.into())));
        Body::new(StreamBody::new(futures_util::stream::iter(frames)))
    }

    #[test]
    fn no_request_says_another_length_than_its_body_has() {
        const FOUR: &[(&str, &str)] = &[("content-length", "4")];
        for (said, body, sent) in [
            (FOUR, Body::empty(), &[("content-length", "0")] as &[_]),
            (FOUR, Body::from("longer"), &[("content-length", "6")]),
            (FOUR, Body::from("body"), FOUR),
            (&[("content-length", "4"), ("content-length", "4")], Body::from("body"), FOUR),
            (&[("content-length", "+4")], Body::from("body"), FOUR),
            (
                &[("content-length", "4"), ("transfer-encoding", "chunked")],
                Body::from("body"),
                FOUR,
            ),
            (&[], Body::from("body"), &[]),
            (FOUR, streamed("of any length"), FOUR),
            (&[("content-length", "4, 4")], streamed("body"), &[]),
            (&[("content-length", "4"), ("content-length", "5")], streamed("body"), &[]),
            (&[("content-length", "")], streamed("body"), &[]),
            (&[("transfer-encoding", "gzip")], streamed("body"), &[]),
        ] {
            let mut fields = headers(said);
            RequestBody::new(&mut fields, body);
            assert_eq!(fields, headers(sent), "{said:?}");
        }
    }

    #[tokio::test]
    async fn a_streamed_body_is_held_to_the_length_that_the_client_said() {
        for (said, is_right) in [("7", false), ("8", true), ("9", false)] {
            let mut fields = headers(&[("content-length", said)]);
            let mut body = RequestBody::new(&mut fields, streamed("the body"));
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "the ");
            assert_eq!(body.collect().await.is_ok(), is_right, "{said}");
        }
    }
}
