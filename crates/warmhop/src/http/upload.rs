//! How far a request's body has come on its way to an app, and which side the peer waits for: the
//! app, or the client that sends the body.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::http::body::Body;
use crate::http::body::followed::{Follow, Polled};

/// A body on its way to an app.
#[derive(Debug)]
pub(crate) struct Upload {
    began: Instant,
    /// When the app last got a part of the body, counted from then.
    moved_ms: AtomicU64,
    /// The app waits for more than the client has sent yet.
    is_wanted: AtomicBool,
}

impl Upload {
    /// The same body, and a record of how far it has come.
    pub(crate) fn watch(body: Body) -> (Body, Arc<Self>) {
        let upload = Arc::new(Self {
            began: Instant::now(),
            moved_ms: AtomicU64::new(0),
            is_wanted: AtomicBool::new(false),
        });
        (body.followed(Watched(Arc::clone(&upload))), upload)
    }

    fn moved(&self, is_wanted: bool) {
        if !is_wanted {
            let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.moved_ms.store(ms, Ordering::Relaxed);
        }
        self.is_wanted.store(is_wanted, Ordering::Relaxed);
    }

    /// Resolves once the app has had `within` to itself since it last got a part of the body.
    async fn app_has_had(&self, within: Duration) {
        loop {
            let moved = Duration::from_millis(self.moved_ms.load(Ordering::Relaxed));
            let left = within.saturating_sub(self.began.elapsed().saturating_sub(moved));
            if !left.is_zero() {
                sleep(left).await;
            } else if self.is_wanted.load(Ordering::Relaxed) {
                // The front door bounds how long a client may take.
                sleep(within).await;
            } else {
                return;
            }
        }
    }
}

/// The output of `answering`, if it comes in time. Time that the client takes to send a body does
/// not count against the app.
pub(crate) async fn answers_within<F: Future>(
    answering: F,
    within: Duration,
    upload: Option<Arc<Upload>>,
) -> Option<F::Output> {
    let is_over = async {
        match &upload {
            Some(upload) => upload.app_has_had(within).await,
            None => sleep(within).await,
        }
    };
    tokio::select! {
        biased;
        outcome = answering => Some(outcome),
        () = is_over => None,
    }
}

/// Keeps the record of a body.
struct Watched(Arc<Upload>);

impl Follow for Watched {
    fn has_polled(&mut self, polled: &Polled, _is_at_end: bool) {
        self.0.moved(polled.is_pending());
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // The app wants no more of the body.
        self.0.moved(false);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::mpsc;

    use super::*;
    use crate::http::body::BoxError;

    const WITHIN: Duration = Duration::from_secs(1);

    type Sends = mpsc::Sender<Result<Frame<Bytes>, BoxError>>;

    /// A client that sends what the test hands it.
    fn client() -> (Sends, Body, Arc<Upload>) {
        let (sends, sent) = mpsc::channel(1);
        let frames = futures_util::stream::unfold(sent, |mut sent| async move {
            sent.recv().await.map(|frame| (frame, sent))
        });
        let (body, upload) = Upload::watch(Body::new(StreamBody::new(Box::pin(frames))));
        (sends, body, upload)
    }

    #[tokio::test(start_paused = true)]
    async fn an_app_has_its_time_once_a_slow_client_has_sent_all() {
        let (sends, mut body, upload) = client();
        let began = Instant::now();
        let slow = tokio::spawn(async move {
            for _ in 0..5 {
                sleep(3 * WITHIN).await;
                sends.send(Ok(Frame::data(Bytes::from_static(b"x")))).await.unwrap();
            }
        });
        // It reads the whole body, and never answers.
        let app = async move {
            while body.frame().await.is_some() {}
            std::future::pending::<()>().await;
        };
        assert_eq!(answers_within(app, WITHIN, Some(upload)).await, None);
        slow.await.unwrap();
        let took = began.elapsed();
        assert!((16 * WITHIN..18 * WITHIN).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_app_that_does_not_read_or_reads_no_further_is_given_up_in_time() {
        for reads in [0, 1] {
            let (sends, mut body, upload) = client();
            sends.send(Ok(Frame::data(Bytes::from_static(b"x")))).await.unwrap();
            let began = Instant::now();
            let app = async move {
                for _ in 0..reads {
                    body.frame().await;
                }
                std::future::pending::<()>().await;
            };
            assert_eq!(answers_within(app, WITHIN, Some(upload)).await, None);
            let took = began.elapsed();
            assert!((WITHIN..2 * WITHIN).contains(&took), "{took:?}");
        }
        // An app that wanted more, and no longer does.
        let (_sends, mut body, upload) = client();
        let app = async move {
            tokio::time::timeout(WITHIN / 2, body.frame()).await.unwrap_err();
            drop(body);
            std::future::pending::<()>().await;
        };
        let gives_up = answers_within(app, WITHIN, Some(upload));
        assert_eq!(tokio::time::timeout(3 * WITHIN, gives_up).await, Ok(None));
    }
}
