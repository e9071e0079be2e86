//! The gRPC status where HTTP alone would leave a client guessing: a call whose stream breaks ends
//! with a status in its trailers, and a refusal is a status rather than a page.
//!
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md> specifies the form.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body::Frame;

use crate::http::body::{Body, BoxError};
use crate::request::error_page::in_plain_words;
use crate::request::problem::Problem;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// `UNAVAILABLE`: the call may be tried again.
const UNAVAILABLE: &str = "14";

/// Whether a message belongs to a gRPC call. gRPC-Web does not count, since it frames its trailers
/// itself.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| {
        const GRPC: &[u8] = b"application/grpc";
        let (kind, rest) = kind.as_bytes().split_at(kind.len().min(GRPC.len()));
        kind.eq_ignore_ascii_case(GRPC)
            && rest.first().is_none_or(|next| matches!(next, b'+' | b';' | b' '))
    })
}

/// Turns a problem's response into one of trailers only, and keeps the fields with details.
pub(crate) fn refusal(problem: &Problem, reveal: bool, response: &mut Response<Body>) {
    let code = match problem.status() {
        StatusCode::BAD_REQUEST => "13",
        StatusCode::NOT_FOUND => "12",
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => UNAVAILABLE,
        _ => "2",
    };
    *response.status_mut() = StatusCode::OK;
    *response.body_mut() = Body::empty();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(STATUS, HeaderValue::from_static(code));
    let (_, words) = in_plain_words(problem.status(), false);
    headers.insert(MESSAGE, message(if reveal { &problem.detail } else { words }));
}

/// An app's response, in which a failure of the body becomes the call's status.
pub(crate) fn answer(response: Response<Body>) -> Response<Body> {
    // Where the status is in the head, the response is one of trailers only, and clients
    // read it as such only if the stream ends with the head.
    let trailers_only = response.headers().contains_key(STATUS);
    response.map(|body| {
        if trailers_only { Body::empty() } else { Body::new(CallBody { body, ended: false }) }
    })
}

struct CallBody {
    body: Body,
    ended: bool,
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let Poll::Ready(Some(Err(error))) = polled else { return polled };
        self.ended = true;
        tracing::debug!(%error, "a call was cut off");
        let mut trailers = HeaderMap::new();
        trailers.insert(STATUS, HeaderValue::from_static(UNAVAILABLE));
        trailers.insert(MESSAGE, message("the app ended in the middle of the call"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }
}

/// A text in the form of `grpc-message`: percent-encoded except for printable ASCII.
fn message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::from_str(&encoded).expect("printable ASCII is a field's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_by_its_content_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC;x=y", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let headers: HeaderMap =
                [(CONTENT_TYPE, HeaderValue::from_static(kind))].into_iter().collect();
            assert_eq!(is_grpc(&headers), expected, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn a_message_is_percent_encoded() {
        assert_eq!(message("100 % \u{e9}\n"), "100 %25 %C3%A9%0A");
    }
}
