//! What is known of one request, from its arrival to its answer, and the records of it: its trace,
//! its span, its access record and the counters.

use std::sync::Arc;

use http::header::{ACCEPT, CONNECTION, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Version};
use warmhop_core::ids::RequestId;

use crate::app::slot::Slot;
use crate::front::cookies::AskedAt;
use crate::front::origin::Origin;
use crate::http::body::Body;
use crate::http::fields::{self, PEER_FIELD, REQUEST_ID_FIELD};
use crate::http::interim::Interim;
use crate::observe::access::Accessing;
use crate::observe::passage::Passage;
use crate::observe::recall::{Tracing, put_line};
use crate::observe::trace::ActiveSpan;
use crate::observe::traffic::AnswerTo;
use crate::request::grpc;
use crate::request::node::Node;

const REQUEST_ID: HeaderName = HeaderName::from_static(REQUEST_ID_FIELD);

/// What is known of one request. The steps that answer it hand this on, and each adds what it
/// learned.
pub(super) struct RequestContext {
    pub(super) client: Origin,
    /// The way to the client for interim responses, if it can get any.
    pub(super) interim: Option<Interim>,
    /// Where the client asked, which decides its app, and what its cookie is valid for.
    pub(super) asked_at: AskedAt,
    /// What decides the form of a refusal.
    pub(super) refusal_form: RefusalForm,
    /// The app that the request is for, once that is known.
    pub(super) slot: Option<Arc<Slot>>,
    /// How it was answered: a label of metrics and records.
    pub(super) way: &'static str,
    pub(super) tracing: Tracing,
    access: Option<Accessing>,
    span: Option<ActiveSpan>,
    version: Version,
    is_head: bool,
}

/// The parts of a request that decide the form of its refusal.
pub(super) struct RefusalForm {
    /// All values of `Accept`; most requests have one.
    accept: Option<HeaderValue>,
    further: Vec<HeaderValue>,
    pub(super) is_get: bool,
    pub(super) is_call: bool,
}

impl RefusalForm {
    fn of(request: &Request<Body>) -> Self {
        let mut accept = request.headers().get_all(ACCEPT).iter().cloned();
        Self {
            accept: accept.next(),
            further: accept.collect(),
            is_get: *request.method() == Method::GET,
            is_call: grpc::is_grpc(request.headers()),
        }
    }

    pub(super) fn accept(&self) -> HeaderMap {
        let all = self.accept.iter().chain(&self.further);
        all.map(|accept| (ACCEPT, accept.clone())).collect()
    }
}

impl RequestContext {
    /// Gives the request its id, and begins to record it.
    pub(super) fn begin(
        node: &Node,
        request: &mut Request<Body>,
        client: Origin,
        interim: Option<Interim>,
    ) -> Self {
        let id = fields::request_id(request.headers()).unwrap_or_else(fresh_request_id);
        let line = put_line(request.method(), request.uri().path());
        let mut tracing = Tracing::begin(&node.traces, id, &node.me, "entry", line);
        if let Some(host) = fields::host_as_sent(request.headers()) {
            tracing.host(host);
        }
        let asked_at = AskedAt::of(request.headers(), request.uri(), client.secure);
        let refusal_form = RefusalForm::of(request);
        let (version, is_head) = (request.version(), request.method() == Method::HEAD);
        let span = begin_span(node, request, &client, &tracing.id);
        let access = node.accesses.arrives(request, client.addr, tracing.id.as_str());
        let (slot, way) = (None, "serve");
        Self {
            client,
            interim,
            asked_at,
            refusal_form,
            slot,
            way,
            tracing,
            access,
            span,
            version,
            is_head,
        }
    }

    /// Notes which app the request is for.
    pub(super) fn is_for(&mut self, slot: &Arc<Slot>) {
        self.tracing.app(slot.name());
        self.slot = Some(Arc::clone(slot));
    }

    /// Notes the problem that the request is refused for.
    pub(super) fn refused(&mut self, problem: &'static str, is_page: bool) {
        self.way = if is_page { "page" } else { "refuse" };
        if let Some(access) = &mut self.access {
            access.refused(problem);
        }
    }

    /// Completes the head of the answer, and records it; the records end with its body.
    pub(super) fn complete(&mut self, node: &Node, mut response: Response<Body>) -> Response<Body> {
        if self.refusal_form.is_call && grpc::is_grpc(response.headers()) {
            response = grpc::answer(response);
        }
        self.complete_head(node, &mut response);
        let (way, status) = (self.way, response.status());
        let elapsed = self.tracing.head(status.as_u16());
        match &self.slot {
            Some(slot) => {
                slot.counts.answered(&node.metrics, slot.name(), way, status, elapsed);
                if !self.is_head {
                    let (id, peer) = (&self.tracing.id, || self.tracing.ran_at());
                    let to = || AnswerTo { id: id.clone(), way, peer: peer() };
                    let traffic = slot.counts.traffic(&node.metrics, slot.name());
                    response = response.map(|body| traffic.sends(body, to));
                }
            }
            None => node.metrics.answered("-", way, status, elapsed),
        }
        tracing::debug!(
            way,
            status = status.as_u16(),
            head_us = elapsed.as_micros() as u64,
            "answered"
        );
        if let Some(mut span) = self.span.take() {
            span.set("warmhop.app", self.slot.as_ref().map_or("-", |slot| slot.name().as_str()));
            span.set("warmhop.way", way);
            span.decided(&self.tracing.steps());
            span.status(status.as_u16());
            response = span.until_the_end_of(response);
        }
        self.record_access_at_end(response)
    }

    /// Sets the fields of the answer that are about the mesh and the connection.
    fn complete_head(&mut self, node: &Node, response: &mut Response<Body>) {
        // The answer to an upgrade has `Connection: upgrade`, and the connection is not used again.
        let upgrades = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        if node.reveal {
            headers.insert(REQUEST_ID, self.tracing.id_field());
        } else {
            headers.remove(PEER_FIELD);
        }
        if node.is_draining() && self.version < Version::HTTP_2 && !upgrades {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }

    /// Has the access recorded once the answer has ended, or the connection that the answer
    /// upgrades.
    fn record_access_at_end(&mut self, mut response: Response<Body>) -> Response<Body> {
        let passage = response.extensions_mut().remove::<Arc<Passage>>();
        let Some(mut access) = self.access.take() else { return response };
        let Some(passage) = passage else {
            return access.until_the_end_of(response, self.way, &self.tracing);
        };
        access.answered(response.status(), self.way, &self.tracing);
        passage.ends(access);
        response
    }
}

impl Drop for RequestContext {
    /// Without an answer, the client has left.
    fn drop(&mut self) {
        if let Some(access) = &mut self.access {
            access.left(&self.tracing);
        }
    }
}

/// The span of a client's request, if it is traced.
fn begin_span(
    node: &Node,
    request: &mut Request<Body>,
    client: &Origin,
    id: &RequestId,
) -> Option<ActiveSpan> {
    let method = request.method().clone();
    let mut span = node.spans.arrives(request.headers_mut(), || method.to_string())?;
    span.set("http.request.method", method.as_str());
    span.set("url.path", request.uri().path());
    span.set("url.scheme", if client.secure { "https" } else { "http" });
    if let Some(host) = fields::host_of(request.headers()) {
        span.set("server.address", host);
    }
    if let Some(addr) = client.addr {
        span.set("client.address", addr.ip().to_string());
    }
    let version = match request.version() {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    };
    span.set("network.protocol.version", version);
    let agent = request.headers().get(USER_AGENT);
    if let Some(agent) = agent.and_then(|agent| agent.to_str().ok()) {
        span.set("user_agent.original", agent);
    }
    span.set("warmhop.request_id", id.as_str());
    Some(span)
}

fn fresh_request_id() -> RequestId {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 32];
    // One number of 16 bytes: an array of them would draw four times as many.
    for (pair, byte) in text.chunks_exact_mut(2).zip(rand::random::<u128>().to_ne_bytes()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    let text = std::str::from_utf8(&text).expect("digits are ASCII");
    RequestId::new(text).expect("hexadecimal digits form a request id")
}
