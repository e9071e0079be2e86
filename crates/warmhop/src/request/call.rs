//! One request on its way to an app, in a form that can be sent more than once where its body
//! allows it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use warmhop_core::config::{SessionMode, WakePolicy};
use warmhop_core::ids::{PeerId, RequestId};
use warmhop_core::route::{Attempted, may_retry};
use warmhop_core::version::AppVersion;

use crate::app::WholeRequest;
use crate::app::places::Waits;
use crate::app::session::Session;
use crate::app::slot::{Copy, InFlight, Slot};
use crate::hop::{self, HopHead, HopKind, HopRequest, OnSilence};
use crate::http::body::{Body, BoxError};
use crate::http::fields::{self, SESSION_FIELD};
use crate::http::interim::Interim;
use crate::http::upload::Upload;
use crate::request::failed_at::FailedAt;
use crate::request::lent::Home;

/// A body whose length is known to be at most this is read before the request goes anywhere, so
/// that it can be sent again.
pub(crate) const SMALL_BODY_BYTES_MAX: usize = 16 * 1024;

/// How long to wait for a small body that need not be complete: the app may answer first, and the
/// client may wait for that answer before it sends the rest.
const SMALL_BODY_WITHIN: Duration = Duration::from_millis(100);

/// What is left of a request's body.
pub(crate) enum CallBody {
    /// All of it.
    Whole(Bytes),
    /// A stream, until it was handed out.
    Stream(Option<Body>),
    /// A stream that an app here or another peer got, and that may come back.
    Lent(Home),
}

/// One request for one app, with the fields that the app is to see.
pub(crate) struct Call {
    pub(crate) id: RequestId,
    pub(crate) method: Method,
    pub(crate) target: PathAndQuery,
    pub(crate) fields: HeaderMap,
    pub(crate) body: CallBody,
    pub(crate) upgrade: Option<HeaderValue>,
    /// The client's side of an upgrade.
    pub(crate) on_upgrade: Option<OnUpgrade>,
    /// An earlier attempt may have reached an app.
    pub(crate) may_have_run: bool,
    /// The copy that last took it and failed.
    pub(crate) failed_at: Option<FailedAt>,
    /// How many copies took it and failed, or were too slow.
    pub(crate) failures: u32,
    /// Distinguishes this request from its client's repeats, on any peer that serves it.
    pub(crate) attempt: u64,
    /// How it has waited for a copy of the app.
    pub(crate) waits: Waits,
    /// The copy here at which it has a place already.
    pub(crate) entered: Option<(Arc<Copy>, InFlight)>,
    /// The newest version of the app that has served its session.
    pub(crate) version: Option<AppVersion>,
    /// If the version here is older than this, another peer has to run it.
    pub(crate) counts_on: Option<AppVersion>,
    /// The way to its client for interim responses, if that can get any.
    pub(crate) interim: Option<Interim>,
    /// If the copy that its session is pinned to is lost, another is to be recorded before it goes on.
    pub(crate) moves_first: bool,
    /// The peer of that copy, once it is lost.
    pub(crate) lost: Option<PeerId>,
}

impl Call {
    /// The bytes of an empty body, or of a small one in memory; otherwise the body itself.
    pub(crate) fn gathered(mut body: Body) -> Result<Bytes, Body> {
        use http_body::Body as _;
        if body.size_hint().exact() == Some(0) {
            return Ok(Bytes::new());
        }
        body.take_whole(SMALL_BODY_BYTES_MAX).ok_or(body)
    }

    /// Reads a body that is small, or one of at most `bytes_max` bytes if `want_whole`, into
    /// memory; a longer one stays a stream, and so does a small one that is slow to arrive.
    pub(crate) async fn gather(
        mut body: Body,
        want_whole: Option<usize>,
    ) -> Result<CallBody, BoxError> {
        use http_body::Body as _;
        let exact = body.size_hint().exact();
        let bytes_max = match (want_whole, exact) {
            (_, Some(0)) => return Ok(CallBody::Whole(Bytes::new())),
            (Some(bytes_max), Some(bytes)) if bytes <= bytes_max as u64 => bytes_max,
            (Some(bytes_max), None) => bytes_max,
            (None, Some(bytes)) if bytes <= SMALL_BODY_BYTES_MAX as u64 => SMALL_BODY_BYTES_MAX,
            _ => return Ok(CallBody::Stream(Some(body))),
        };
        if let Some(whole) = body.take_whole(bytes_max) {
            return Ok(CallBody::Whole(whole));
        }
        let mut collected = BytesMut::new();
        let late = tokio::time::sleep(SMALL_BODY_WITHIN);
        tokio::pin!(late);
        loop {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = &mut late, if want_whole.is_none() => {
                    let read = Vec::from_iter((!collected.is_empty()).then(|| collected.freeze()));
                    return Ok(CallBody::Stream(Some(Body::resumed(read, body))));
                }
            };
            let Some(frame) = frame else { break };
            let data = match frame?.into_data() {
                Ok(data) => data,
                // Trailers cannot be kept in a whole body: the body is passed on as a stream.
                Err(trailers) => {
                    let read = vec![collected.freeze()];
                    let rest = http_body_util::StreamBody::new(futures_util::stream::iter([Ok::<
                        _,
                        BoxError,
                    >(
                        trailers,
                    )]));
                    return Ok(CallBody::Stream(Some(Body::resumed(read, Body::new(rest)))));
                }
            };
            if exact == Some(data.len() as u64) {
                // Most small bodies arrive in one piece, which needs no copy.
                return Ok(CallBody::Whole(data));
            }
            if collected.len() + data.len() > bytes_max {
                let read = vec![collected.freeze(), data];
                return Ok(CallBody::Stream(Some(Body::resumed(read, body))));
            }
            collected.extend_from_slice(&data);
        }
        Ok(CallBody::Whole(collected.freeze()))
    }

    /// Whether the body can still be sent.
    pub(crate) fn is_sendable(&self) -> bool {
        match &self.body {
            CallBody::Whole(_) => true,
            CallBody::Stream(stream) => stream.is_some(),
            CallBody::Lent(home) => home.has_it(),
        }
    }

    /// Whether a request that an app took and failed on may be given to another: the first time, if
    /// it changes nothing.
    pub(crate) fn may_go_to_another(&self) -> bool {
        fields::is_safe(&self.method) && self.is_sendable() && !self.may_have_run
    }

    /// Notes that a copy took it and failed, or was too slow.
    pub(crate) fn fails_at(&mut self, at: FailedAt) {
        self.failed_at = Some(at);
        self.failures += 1;
    }

    /// Whether the copy that serves here took it and failed.
    pub(crate) fn failed_here(&self, slot: &Slot) -> bool {
        self.failed_at.as_ref().is_some_and(|at| at.serves_here(slot))
    }

    /// Whether it may start the app.
    pub(crate) fn wakes(&self, policy: &WakePolicy) -> bool {
        policy.is_for_all() || policy.wakes(user_agent(&self.fields), self.target.path())
    }

    fn take_body(&mut self) -> Option<Body> {
        match &mut self.body {
            CallBody::Whole(bytes) => Some(Body::from(bytes.clone())),
            CallBody::Stream(stream) => stream.take(),
            CallBody::Lent(home) => home.take(),
        }
    }

    /// The body for an app here or for another peer, which may turn out not to have run it: a stream
    /// comes back then, unless too much of it was read. So nothing waits for the end of a small body
    /// whose length is unknown, and it can be sent again all the same.
    fn lend_body(&mut self) -> Option<Body> {
        let body = self.take_body()?;
        if matches!(self.body, CallBody::Whole(_)) {
            return Some(body);
        }
        let (home, lent) = Home::lend(body);
        self.body = CallBody::Lent(home);
        Some(lent)
    }

    /// Puts back a body that was not sent after all.
    pub(crate) fn put_back(&mut self, body: Body) {
        match &mut self.body {
            CallBody::Stream(stream @ None) => *stream = Some(body),
            // A lent one comes back by being dropped.
            CallBody::Stream(Some(_)) | CallBody::Lent(_) | CallBody::Whole(_) => drop(body),
        }
    }

    /// The request for an app on this peer, with the handle of its `session`, or with the `carried` one;
    /// `None` once its stream was handed out.
    pub(crate) fn make_request(
        &mut self,
        session: Option<&Session>,
        carried: Option<&HeaderValue>,
    ) -> Option<Request<Body>> {
        let mut request = Request::new(self.lend_body()?);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from(self.target.clone());
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = self.fields.clone();
        if let Some(protocol) = &self.upgrade {
            fields::put_upgrade(request.headers_mut(), protocol.clone());
            // Its body is empty, and must not be announced.
            request.headers_mut().remove(CONTENT_LENGTH);
            if let Some(on_upgrade) = &self.on_upgrade {
                request.extensions_mut().insert(on_upgrade.clone());
            }
        }
        if let Some(interim) = &self.interim {
            request.extensions_mut().insert(interim.clone());
        }
        if let Some(session) = session {
            request.extensions_mut().insert(session.clone());
        }
        if let Some(carried) = carried {
            request.headers_mut().insert(SESSION_FIELD, carried.clone());
        }
        Some(request)
    }

    /// The request as it is lent to an app here, with the carried `session`; `None` if it is not in
    /// memory as a whole, or asks for an upgrade.
    pub(crate) fn lent(&self, session: Option<&HeaderValue>) -> Option<WholeRequest<'_>> {
        let CallBody::Whole(body) = &self.body else { return None };
        if self.upgrade.is_some() || self.on_upgrade.is_some() {
            return None;
        }
        let mut lent = WholeRequest::new(&self.method, &self.target, &self.fields, body);
        lent.further = session.map(|session| (SESSION_FIELD, session.clone()));
        lent.interim = self.interim.as_ref();
        Some(lent)
    }

    /// Follows the progress of a streamed body to an app here.
    pub(crate) fn watch_upload(&self, request: &mut Request<Body>) -> Option<Arc<Upload>> {
        if !matches!(self.body, CallBody::Lent(_)) {
            return None;
        }
        let (body, upload) = Upload::watch(std::mem::take(request.body_mut()));
        *request.body_mut() = body;
        Some(upload)
    }

    /// The request for another peer; `None` once its stream was handed out.
    pub(crate) fn make_hop(
        &mut self,
        slot: &Slot,
        kind: HopKind,
        counts_on: Option<AppVersion>,
    ) -> Option<HopRequest> {
        let on_silence = self.on_silence(slot);
        let body = self.lend_body()?;
        let head = HopHead {
            kind,
            app: slot.name().clone(),
            request_id: self.id.to_string(),
            method: self.method.as_str().to_owned(),
            target: self.target.as_str().to_owned(),
            fields: hop::request_fields(&self.fields, self.interim.as_ref()),
            upgrade: self.upgrade.as_ref().map(|protocol| protocol.as_bytes().to_vec()),
            asks_go: false,
            counts_on,
        };
        Some(HopRequest { head, body, interim: self.interim.clone(), on_silence })
    }

    /// Whether it may be sent to another peer at once if the one that it was sent to falls silent.
    fn on_silence(&self, slot: &Slot) -> OnSilence {
        let policy = &slot.spec().policy;
        let may_go_elsewhere = may_retry(Attempted {
            is_safe: fields::is_safe(&self.method),
            has_key: self.fields.contains_key("idempotency-key"),
            effects: policy.effects,
            is_portable: policy.session == SessionMode::Portable,
            may_have_reached_app: true,
        });
        if may_go_elsewhere { OnSilence::GoElsewhere } else { OnSilence::WaitOn }
    }

    /// A digest of everything that a repeat with the same key must have in common.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        for part in [self.method.as_str().as_bytes(), b" ", self.target.as_str().as_bytes(), b"\n"]
        {
            context.update(part);
        }
        if let CallBody::Whole(bytes) = &self.body {
            context.update(bytes);
        }
        let digest = context.finish();
        let first: [u8; 8] = digest.as_ref()[..8].try_into().expect("a digest has 32 bytes");
        u64::from_be_bytes(first)
    }
}

/// The `User-Agent` of the client's program.
pub(crate) fn user_agent(fields: &HeaderMap) -> &[u8] {
    fields.get(USER_AGENT).map_or(&[], HeaderValue::as_bytes)
}
