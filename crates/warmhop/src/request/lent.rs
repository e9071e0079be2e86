//! A request's body that may come back: if an app turns out not to have received its request, or
//! another peer not to have run it, another one has to get the whole body.

use std::sync::{Arc, Mutex, PoisonError};

use crate::http::body::{Body, Lender};

/// How much of a body under way is kept, so that it can be sent again from its start.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// Where a lent body comes back to.
#[derive(Default)]
pub(crate) struct Home(Arc<Mutex<Option<Body>>>);

impl Home {
    /// Hands out a body for the time being.
    pub(crate) fn lend(body: Body) -> (Self, Body) {
        let home = Self::default();
        let back = Back(Arc::clone(&home.0));
        (home, body.lent(KEPT_BYTES_MAX, back))
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

struct Back(Arc<Mutex<Option<Body>>>);

impl Lender for Back {
    fn is_waiting(&self) -> bool {
        // The request has ended otherwise.
        Arc::strong_count(&self.0) > 1
    }

    fn take_back(&mut self, body: Body) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::BodyExt;

    use super::*;
    use crate::http::body::BoxError;

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
