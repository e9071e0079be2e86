//! The first part of a body, read ahead and put back.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};

use crate::http::body::{Body, BoxError};

/// Reads what comes of `body` until it ends, `bytes_max` bytes have come, `within` has passed or `is_enough`
/// of what was read, and puts it back in front of the rest. A body that ended is whole from then on.
pub(crate) async fn peek(
    body: &mut Body,
    bytes_max: usize,
    within: Duration,
    is_enough: impl Fn(&[u8]) -> bool,
) -> Bytes {
    if let Some(whole) = body.take_whole(bytes_max) {
        *body = Body::from(whole.clone());
        return whole;
    }
    let mut read = BytesMut::new();
    let late = tokio::time::sleep(within);
    tokio::pin!(late);
    while read.len() <= bytes_max && !is_enough(&read) {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = &mut late => break,
        };
        let frame = match frame {
            None => {
                let whole = read.freeze();
                *body = Body::from(whole.clone());
                return whole;
            }
            Some(frame) => frame.map(Frame::into_data),
        };
        let last = match frame {
            Ok(Ok(data)) => {
                read.extend_from_slice(&data);
                continue;
            }
            Ok(Err(trailers)) => Ok::<_, BoxError>(trailers),
            Err(error) => Err(error),
        };
        *body = Body::new(StreamBody::new(stream::iter([last])));
        break;
    }
    let read = read.freeze();
    if !read.is_empty() {
        *body = Body::resumed(vec![read.clone()], std::mem::take(body));
    }
    read
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn of(frames: Vec<Result<Frame<Bytes>, BoxError>>, goes_on: bool) -> Body {
        let frames = stream::iter(frames);
        if goes_on {
            return Body::new(StreamBody::new(frames.chain(stream::pending())));
        }
        Body::new(StreamBody::new(frames))
    }

    fn data(text: &'static str) -> Result<Frame<Bytes>, BoxError> {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    async fn rest(body: Body) -> (Bytes, bool) {
        let whole = body.collect().await.unwrap();
        let has_trailers = whole.trailers().is_some();
        (whole.to_bytes(), has_trailers)
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_ahead_is_there_afterwards() {
        let mut whole = of(vec![data("ab"), data("cd")], false);
        assert_eq!(peek(&mut whole, 16, SOON, |_| false).await, "abcd");
        assert_eq!(rest(whole).await, ("abcd".into(), false));

        let trailers = Frame::trailers(http::HeaderMap::from_iter([(
            http::header::ETAG,
            http::HeaderValue::from_static("x"),
        )]));
        let mut ended = of(vec![data("ab"), Ok(trailers)], false);
        assert_eq!(peek(&mut ended, 16, SOON, |_| false).await, "ab");
        assert_eq!(rest(ended).await, ("ab".into(), true));

        let mut broken = of(vec![data("ab"), Err("broken".into())], false);
        assert_eq!(peek(&mut broken, 16, SOON, |_| false).await, "ab");
        assert!(broken.collect().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_ahead_no_further_than_it_has_to_be() {
        let mut long = of(vec![data("abcd"), data("efgh"), data("ij")], false);
        assert_eq!(peek(&mut long, 5, SOON, |_| false).await, "abcdefgh");
        assert_eq!(rest(long).await, ("abcdefghij".into(), false));

        let mut enough = of(vec![data("ab"), data("cd")], true);
        assert_eq!(peek(&mut enough, 16, SOON, |read| read.contains(&b'b')).await, "ab");

        let mut slow = of(vec![data("ab")], true);
        assert_eq!(peek(&mut slow, 16, SOON, |_| false).await, "ab");
        let next = slow.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(next, "ab");
    }
}
