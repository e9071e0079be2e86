//! Detects whether a client that sends no more has left.
//!
//! On TCP, the end of what a client sends looks the same whether the client closed its connection
//! or only its sending side, and still listens (RFC 9293 section 3.6). If it left, the app should
//! learn that at once; if it listens, it should get its answer. So once a client with a complete
//! request stops sending, something must be written to it within a short time: a closed socket
//! answers the write with a reset, and a client to which nothing is written for that long counts as
//! gone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::http::body::{Body, BoxError};
use crate::http::clients::Account;
use crate::http::transit::{Behind, ReadsAhead};

/// How long nothing may be written to a client that sends no more before it counts as gone.
const SILENT_WITHIN: Duration = Duration::from_secs(1);

/// The requests in flight on one HTTP/1 connection.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionRequests(Arc<Account>);

impl ConnectionRequests {
    /// Counts on the connection of `account`.
    pub(crate) fn new(account: Arc<Account>) -> Self {
        Self(account)
    }

    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.0
    }

    /// Counts a request until what is returned is dropped.
    pub(crate) fn begin<B>(&self, request: &Request<B>) -> Counted {
        let fields = request.headers().iter();
        let head = fields.map(|(name, value)| name.as_str().len() + value.len()).sum();
        self.begin_of(head, request.version() < Version::HTTP_2)
    }

    /// The same for a head of this many bytes. `alone` says that no other request shares the
    /// connection, as with HTTP/1.
    pub(crate) fn begin_of(&self, head: usize, alone: bool) -> Counted {
        self.0.begins(head, alone);
        Counted { account: Arc::clone(&self.0), head }
    }

    fn is_none(&self) -> bool {
        self.0.idle_for().is_some()
    }
}

/// One request in flight.
pub(crate) struct Counted {
    account: Arc<Account>,
    head: usize,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.account.ends(self.head);
    }
}

impl Counted {
    /// Keeps counting until the response's body has been sent or given up.
    pub(crate) fn until_the_end_of(self, response: Response<Body>) -> Response<CountedBody> {
        let ahead = response.extensions().get::<ReadsAhead>().copied();
        let account = || Arc::clone(&self.account);
        let behind = ahead.map(|it| Box::new(Behind::new(account(), it, response.headers())));
        response.map(|body| CountedBody { body, failed: None, behind, counted: self })
    }
}

/// A response's body, while it is sent.
pub(crate) struct CountedBody {
    body: Body,
    /// How it failed, until that is reported.
    failed: Option<BoxError>,
    /// What its source may hold, if it is not in memory.
    behind: Option<Box<Behind>>,
    counted: Counted,
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let is_at_end = self.body.is_end_stream();
        if let Some(behind) = &mut self.behind {
            behind.has_polled(&frame, is_at_end);
        }
        if let Poll::Ready(Some(Err(error))) = frame {
            // hyper drops what it has not sent yet as soon as it gets the error. While it waits, it
            // sends: the client gets what there is of the answer, and sees that it was cut off.
            self.failed = Some(error);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.counted.account.answers(data.len());
        }
        frame
    }

    // A failed body has nothing more to give. Until the failure is reported, that must not count as
    // the body's end: the client would get a shorter answer that looks complete.
    fn is_end_stream(&self) -> bool {
        self.failed.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.failed.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }
}

/// Detects that the client of one connection has left.
pub(crate) struct Departure {
    in_flight: ConnectionRequests,
    /// Set once the client sends no more; fires when nothing was written for long enough.
    silence: Option<Pin<Box<Sleep>>>,
    /// A write waits for the client to read: the peer is still sending.
    blocked: bool,
}

impl Departure {
    pub(crate) fn new(in_flight: ConnectionRequests) -> Self {
        Self { in_flight, silence: None, blocked: false }
    }

    /// Notes that the client sends no more. Returns whether it may still listen: `between` says
    /// that its last request is complete.
    pub(crate) fn sends_no_more(&mut self, between: bool) -> bool {
        let may_listen = between && !self.in_flight.is_none();
        if may_listen {
            self.silence = Some(Box::pin(tokio::time::sleep(SILENT_WITHIN)));
        }
        may_listen
    }

    /// Whether the client has stopped sending and may still listen.
    pub(crate) fn waits(&self) -> bool {
        self.silence.is_some()
    }

    /// Resolves once the client counts as gone.
    pub(crate) fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(silence) = &mut self.silence else { return Poll::Pending };
        while silence.as_mut().poll(cx).is_ready() {
            if !self.blocked {
                return Poll::Ready(());
            }
            silence.as_mut().reset(Instant::now() + SILENT_WITHIN);
        }
        Poll::Pending
    }

    /// Notes the outcome of a write.
    pub(crate) fn wrote<T>(&mut self, outcome: &Poll<std::io::Result<T>>) {
        if let Some(silence) = &mut self.silence {
            self.blocked = outcome.is_pending();
            silence.as_mut().reset(Instant::now() + SILENT_WITHIN);
        }
    }
}
