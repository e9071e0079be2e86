//! A request's body on a connection that the app may leave before it takes the request: what has been
//! read of it is kept for a while, so that it can be sent again from its start.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use warmhop::Body;
use warmhop::body::Lender;

/// How much of a body is kept: what an app's first window lets pass, and the piece that overshoots it.
const KEPT_BYTES_MAX: usize = 128 * 1024;
/// How long to wait for a body whose stream is over: its task may be on a busy thread.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Where a lent body comes back to. It is kept for as long as this exists.
pub(super) struct Home {
    keeps: Arc<()>,
    back: oneshot::Receiver<Body>,
}

impl Home {
    /// Hands out a body for the time being.
    pub(super) fn lend(body: Body) -> (Self, Body) {
        let (to, back) = oneshot::channel();
        let keeps = Arc::new(());
        let wanted = Arc::downgrade(&keeps);
        let lent = body.lent(KEPT_BYTES_MAX, Back { wanted, home: Some(to) });
        (Self { keeps, back }, lent)
    }

    /// The whole body, if its connection gives it back and all that was read of it was kept.
    pub(super) async fn body(self) -> Option<Body> {
        let back = timeout(BACK_WITHIN, self.back).await.ok()?.ok();
        drop(self.keeps);
        back
    }
}

struct Back {
    /// Gone once nobody would send the body again.
    wanted: Weak<()>,
    home: Option<oneshot::Sender<Body>>,
}

impl Lender for Back {
    fn is_waiting(&self) -> bool {
        self.wanted.strong_count() > 0
    }

    fn take_back(&mut self, body: Body) {
        if let Some(home) = self.home.take() {
            // Nobody may want it any more.
            let _ = home.send(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};
    use warmhop::BoxError;

    use super::*;

    fn stream(pieces: usize, bytes: usize) -> Body {
        let frame = move |at: usize| {
            Ok::<_, BoxError>(Frame::data(Bytes::from(vec![
                u8::try_from(at % 251).unwrap();
                bytes
            ])))
        };
        Body::new(StreamBody::new(futures_util::stream::iter((0..pieces).map(frame))))
    }

    #[tokio::test]
    async fn a_body_comes_back_whole_however_often_and_as_much_as_is_kept_was_read_of_it() {
        let all = stream(20, 10_000).collect().await.unwrap().to_bytes();
        let mut body = stream(20, 10_000);
        for reads in [0, 1, 5, 13, 3] {
            let (home, mut lent) = Home::lend(body);
            for _ in 0..reads {
                lent.frame().await.unwrap().unwrap();
            }
            drop(lent);
            body = home.body().await.unwrap_or_else(|| panic!("it is back after {reads}"));
        }
        assert_eq!(body.collect().await.unwrap().to_bytes(), all);
    }

    #[tokio::test]
    async fn a_body_that_nobody_would_send_again_is_not_kept_and_neither_is_too_much_of_one() {
        let (home, mut lent) = Home::lend(stream(20, 10_000));
        for _ in 0..14 {
            lent.frame().await.unwrap().unwrap();
        }
        drop(lent);
        assert!(home.body().await.is_none(), "more was read than is kept");
        let (home, body) = Home::lend(stream(2, 10));
        drop(home);
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 20);
    }
}
