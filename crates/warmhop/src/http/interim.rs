//! Interim responses (RFC 9110 section 15.2) on their way from an app to its client, such as `103
//! Early Hints`. hyper cannot send them, so they wait here for the task that writes to the
//! client's connection, or to the hop that the request came by.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use http::header::{CONTENT_LENGTH, HeaderMap, TE};
use http::{Response, StatusCode};

use crate::http::fields;

/// The most interim responses of one request that wait to be sent; further ones are dropped.
const WAITING_MAX: usize = 8;
/// The most bytes of fields that those have together.
const WAITING_BYTES_MAX: usize = 16 * 1024;

/// Sends interim responses, such as `103 Early Hints`, to the client of a request before its
/// response. Found in the request's extensions, unless its client cannot get any: clients can over
/// HTTP/1.1.
///
/// ```
/// # fn hint(request: &http::Request<warmhop::Body>) {
/// use http::{HeaderMap, HeaderValue, StatusCode};
///
/// if let Some(interim) = request.extensions().get::<warmhop::Interim>() {
///     let mut fields = HeaderMap::new();
///     fields.insert("link", HeaderValue::from_static("</a.css>; rel=preload; as=style"));
///     interim.send(StatusCode::EARLY_HINTS, &fields);
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct Interim {
    queue: Arc<Queue>,
    /// The request that it belongs to.
    turn: u64,
}

impl Interim {
    /// Sends one, without the fields that concern a connection or belong to the mesh. Returns
    /// whether it was taken: it is dropped if the response has begun, if too many wait for a slow
    /// client, if they are too long, or if the status is not that of an interim response. `100` and
    /// `101` are not: they answer what a client asks of its connection.
    pub fn send(&self, status: StatusCode, fields: &HeaderMap) -> bool {
        if !is_interim(status) {
            return false;
        }
        let pairs = fields.iter();
        let bytes: usize = pairs.map(|(name, value)| name.as_str().len() + value.len()).sum();
        let mut waiting = self.queue.waiting();
        let is_in_time = waiting.is_open && waiting.turn == self.turn;
        let has_room =
            waiting.heads.len() < WAITING_MAX && waiting.bytes + bytes <= WAITING_BYTES_MAX;
        if !is_in_time || !has_room {
            return false;
        }
        let mut head = Response::new(());
        *head.status_mut() = status;
        *head.headers_mut() = fields.clone();
        remove_fields(head.headers_mut());
        waiting.bytes += bytes;
        waiting.heads.push_back((head, bytes));
        self.queue.has_some.store(true, Ordering::Release);
        let waker = waiting.waker.take();
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

impl fmt::Debug for Interim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interim")
    }
}

/// Whether a client gets responses of this status before the one to its request.
fn is_interim(status: StatusCode) -> bool {
    status.is_informational()
        && !matches!(status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS)
}

/// Removes what concerns one connection, what belongs to the mesh, and a length, which an interim
/// response may not have (RFC 9110 section 8.6).
fn remove_fields(headers: &mut HeaderMap) {
    fields::remove_hop_by_hop(headers);
    fields::remove_reserved(headers);
    headers.remove(TE);
    headers.remove(CONTENT_LENGTH);
}

/// The interim responses of one connection or hop that wait to be sent. It serves one request after
/// the other.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    /// The same as in `waiting`: a look costs less than the lock.
    has_some: AtomicBool,
    is_open: AtomicBool,
    /// Bytes of another response may be half written.
    is_amid: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    turn: u64,
    is_open: bool,
    /// Each with the bytes of its fields.
    heads: VecDeque<(Response<()>, usize)>,
    bytes: usize,
    waker: Option<Waker>,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with the next request: what is left of the one before is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Interim {
        let mut waiting = self.waiting();
        self.clear(&mut waiting);
        waiting.turn += 1;
        waiting.is_open = true;
        self.is_open.store(true, Ordering::Relaxed);
        Interim { queue: Arc::clone(self), turn: waiting.turn }
    }

    /// Takes no more, since the response is here. What waits is sent before it, unless that one
    /// follows another without a boundary between them.
    pub(crate) fn end(&self) {
        let mut waiting = self.waiting();
        waiting.is_open = false;
        self.is_open.store(false, Ordering::Relaxed);
        if self.is_amid() {
            self.clear(&mut waiting);
        }
    }

    fn clear(&self, waiting: &mut Waiting) {
        waiting.heads.clear();
        waiting.bytes = 0;
        self.has_some.store(false, Ordering::Relaxed);
    }

    /// Notes whether bytes of a response may be half written.
    pub(crate) fn set_amid(&self, is_amid: bool) {
        self.is_amid.store(is_amid, Ordering::Relaxed);
    }

    pub(crate) fn is_amid(&self) -> bool {
        self.is_amid.load(Ordering::Relaxed)
    }

    /// Wakes this task when there is another.
    pub(crate) fn listen(&self, cx: &mut Context<'_>) {
        if !self.is_open.load(Ordering::Relaxed) {
            return;
        }
        let mut waiting = self.waiting();
        match &mut waiting.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    /// The next one that waits.
    pub(crate) fn take(&self) -> Option<Response<()>> {
        if !self.has_some.load(Ordering::Acquire) {
            return None;
        }
        let mut waiting = self.waiting();
        let (head, bytes) = waiting.heads.pop_front()?;
        waiting.bytes -= bytes;
        if waiting.heads.is_empty() {
            self.has_some.store(false, Ordering::Relaxed);
        }
        Some(head)
    }

    /// The next one, once there is one.
    pub(crate) async fn next(&self) -> Response<()> {
        std::future::poll_fn(|cx| {
            self.listen(cx);
            self.take().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use http::HeaderValue;

    use super::*;

    fn fields(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (http::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn fields_of_the_connection_and_of_the_mesh_are_removed() {
        let queue = Arc::new(Queue::default());
        let all = fields(&[
            ("link", "</a>"),
            ("connection", "x-mine, keep-alive"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("warmhop-session", "secret"),
            ("warmhop_session", "secret"),
            ("upgrade", "websocket"),
        ]);
        assert!(queue.begin().send(StatusCode::EARLY_HINTS, &all));
        let head = queue.take().unwrap();
        assert_eq!(head.status(), StatusCode::EARLY_HINTS);
        assert_eq!(head.headers(), &fields(&[("link", "</a>")]));
        assert!(queue.take().is_none());
    }

    #[test]
    fn only_an_interim_response_passes_and_only_until_the_response() {
        let queue = Arc::new(Queue::default());
        let first = queue.begin();
        for status in [100, 101, 200, 204, 404] {
            assert!(!first.send(StatusCode::from_u16(status).unwrap(), &HeaderMap::new()));
        }
        for status in [102, 103, 104, 199] {
            assert!(first.send(StatusCode::from_u16(status).unwrap(), &HeaderMap::new()));
        }
        queue.end();
        assert!(!first.send(StatusCode::PROCESSING, &HeaderMap::new()), "its response is here");
        assert_eq!(queue.take().unwrap().status(), StatusCode::PROCESSING, "these came before");
        let second = queue.begin();
        assert!(queue.take().is_none(), "the rest is of another request");
        assert!(!first.send(StatusCode::PROCESSING, &HeaderMap::new()), "and so is that one");
        assert!(second.send(StatusCode::EARLY_HINTS, &HeaderMap::new()));
        queue.set_amid(true);
        queue.end();
        assert!(queue.take().is_none(), "the response follows the one before at once");
    }

    #[test]
    fn a_client_that_does_not_read_makes_few_wait() {
        let queue = Arc::new(Queue::default());
        let interim = queue.begin();
        let taken = (0..1000).filter(|_| interim.send(StatusCode::EARLY_HINTS, &HeaderMap::new()));
        assert_eq!(taken.count(), WAITING_MAX);
        queue.take().unwrap();
        assert!(interim.send(StatusCode::EARLY_HINTS, &HeaderMap::new()), "there is room again");

        let interim = queue.begin();
        let long = |bytes| {
            let value = HeaderValue::from_str(&"a".repeat(bytes - "link".len())).unwrap();
            HeaderMap::from_iter([(http::header::LINK, value)])
        };
        assert!(!interim.send(StatusCode::EARLY_HINTS, &long(64 * 1024)));
        assert!(!interim.send(StatusCode::EARLY_HINTS, &long(WAITING_BYTES_MAX + 1)));
        assert!(interim.send(StatusCode::EARLY_HINTS, &long(WAITING_BYTES_MAX)));
        assert!(!interim.send(StatusCode::EARLY_HINTS, &long(5)), "all of them have one bound");
        queue.take().unwrap();
        assert!(interim.send(StatusCode::EARLY_HINTS, &long(WAITING_BYTES_MAX)));
    }

    #[test]
    fn the_task_that_writes_is_woken_by_each() {
        struct Woken(AtomicUsize);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let queue = Arc::new(Queue::default());
        let interim = queue.begin();
        for times in 1..4 {
            queue.listen(&mut cx);
            interim.send(StatusCode::EARLY_HINTS, &HeaderMap::new());
            assert_eq!(woken.0.load(Ordering::SeqCst), times);
        }
    }
}
