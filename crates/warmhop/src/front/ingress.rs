//! The service in front: it identifies the app, the session and the request, and nothing else.
//! [`crate::request::node`], [`crate::request::serve`] and [`crate::request::portable`] decide
//! about them and carry that out.

mod refusal;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::header::{CONNECTION, EXPECT, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::ext::Protocol;
use tracing::{Instrument, debug_span};
use warmhop_core::affinity::Kind;
use warmhop_core::config::SessionMode;
use warmhop_core::ids::RequestId;
use warmhop_core::problem::ProblemKind;
use warmhop_core::view::AppState;

use crate::app::places::{Waits, flow_of};
use crate::app::slot::Slot;
use crate::front::finish;
use crate::front::origin::{Origin, TrustedProxies};
use crate::front::prepare::{self, UpgradeAsked};
use crate::front::starting::{PROGRESS_PATH, is_navigation};
use crate::front::targets;
use crate::front::token::{self, Former};
use crate::http::about::About;
use crate::http::body::Body;
use crate::http::client::ClientInfo;
use crate::http::clients::Clients;
use crate::http::fields::{self, PEER_FIELD, REQUEST_ID_FIELD};
use crate::http::framing::ends_connection;
use crate::http::interim::Interim;
use crate::observe::access::Accessing;
use crate::observe::lines::Refused;
use crate::observe::passage::Passage;
use crate::observe::recall::{Tracing, put_line};
use crate::observe::trace::ActiveSpan;
use crate::observe::traffic::{AnswerTo, Received};
use crate::request::call::{Call, CallBody, user_agent};
use crate::request::grpc;
use crate::request::matches::Matched;
use crate::request::node::Node;
use crate::request::own_ids::OwnSession;
use crate::request::portable::Subject;
use crate::request::problem::Problem;

use self::refusal::Asked;

/// How long a request may have waited for its app to start, and still count as its client's latest:
/// other tabs may have been answered since then.
const OTHER_TABS_WITHIN: Duration = Duration::from_secs(1);
/// The path at which a front door answers whether this peer takes traffic: a load balancer seldom
/// reaches the admin listener. A well-known path (RFC 8615), which no app has by accident.
pub const READY_PATH: &str = "/.well-known/warmhop/readyz";

const REQUEST_ID: HeaderName = HeaderName::from_static(REQUEST_ID_FIELD);

/// Which app a request is for.
#[derive(Clone, Copy)]
enum For<'a> {
    /// The one that its host and path match best.
    AnyApp,
    /// A known one.
    App(&'a Arc<Slot>),
    /// None: its host is ambiguous.
    Nobody,
}

/// A peer's front, cheap to clone behind an `Arc`.
pub(crate) struct Ingress {
    pub(crate) node: Arc<Node>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) trusted: TrustedProxies,
    /// Bounds the lines of requests that were refused.
    pub(crate) refused: Refused,
}

impl Ingress {
    /// Serves one request; every outcome is a response. `interim` leads to its client, if that can
    /// get interim responses.
    pub(crate) async fn handle(
        &self,
        mut request: Request<Body>,
        client: ClientInfo,
        interim: Option<Interim>,
    ) -> Response<Body> {
        let ends = ends_connection(&request);
        let mut response = match self.at_the_door(&mut request, client) {
            Ok((of, client)) => self.identified(of, request, client, interim).await,
            Err(answered) => answered,
        };
        if ends && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Identifies a request's app and client; or answers it, if it asks about this peer itself.
    #[expect(
        clippy::result_large_err,
        reason = "the response is boxed nowhere on its way to the client"
    )]
    fn at_the_door(
        &self,
        request: &mut Request<Body>,
        client: ClientInfo,
    ) -> Result<(For<'static>, Origin), Response<Body>> {
        // Most targets have no authority, and nothing is copied then.
        let (authority, version) = (request.uri().authority().cloned(), request.version());
        let headers = request.headers_mut();
        let host_is_one = fields::settle_host(authority.as_ref(), version, headers);
        let client = self.trusted.settle(headers, client);
        // Balancers and starting pages ask several times a second, which would fill the traces and
        // the counters of requests.
        let path = request.uri().path();
        if path == READY_PATH {
            return Err(readiness(self.node.is_draining()));
        }
        if let Some(of) = path.strip_prefix(PROGRESS_PATH).filter(|of| of.starts_with('/')) {
            let host = fields::host_as_sent(request.headers());
            if let Some(found) = self.node.apps().matching(host, of).cloned() {
                // Without the starting page nobody asks for the progress.
                if !found.app.spec().policy.starting_page {
                    let mut nothing = Response::new(Body::empty());
                    *nothing.status_mut() = StatusCode::NOT_FOUND;
                    return Err(nothing);
                }
                return Err(self.node.progress(&found.app).response());
            }
        }
        Ok((if host_is_one { For::AnyApp } else { For::Nobody }, client))
    }

    /// Serves one request of a known app, whatever its host and path.
    pub(crate) async fn handle_for(
        &self,
        slot: &Arc<Slot>,
        mut request: Request<Body>,
        client: ClientInfo,
    ) -> Response<Body> {
        let (authority, version) = (request.uri().authority().cloned(), request.version());
        // The result does not matter, since the app was chosen without the host.
        let _ = fields::settle_host(authority.as_ref(), version, request.headers_mut());
        let client = self.trusted.settle(request.headers_mut(), client);
        self.identified(For::App(slot), request, client, None).await
    }

    /// Boxed here, where little is to be moved: each future around it would be moved by its caller,
    /// with all of its bytes.
    fn identified<'a>(
        &'a self,
        of: For<'a>,
        request: Request<Body>,
        client: Origin,
        interim: Option<Interim>,
    ) -> BoxFuture<'a, Response<Body>> {
        let node = &self.node;
        let id = fields::request_id(request.headers()).unwrap_or_else(fresh_request_id);
        let span = debug_span!("request", id = %id, peer = %node.me);
        // Created in each branch: without a subscriber, moving the future once more costs more than
        // the whole span.
        if span.is_disabled() {
            Box::pin(self.traced(of, request, client, interim, id))
        } else {
            Box::pin(self.traced(of, request, client, interim, id).instrument(span))
        }
    }

    async fn traced(
        &self,
        of: For<'_>,
        mut request: Request<Body>,
        client: Origin,
        interim: Option<Interim>,
        id: RequestId,
    ) -> Response<Body> {
        let node = &self.node;
        let tracing = Tracing::begin(
            &node.traces,
            id,
            &node.me,
            "entry",
            put_line(request.method(), request.uri().path()),
        );
        let asked = Asked::of(&request, client.secure);
        let (version, is_head) = (request.version(), request.method() == Method::HEAD);
        let mut span = self.span(&mut request, &client, &tracing.id);
        let access = node.accesses.arrives(&mut request, client.addr, tracing.id.as_str());
        let mut recorded = Recorded { access, tracing };
        let tracing = &mut recorded.tracing;
        let outcome = self.dispatch(of, request, client, interim, tracing).await;
        let (mut response, way, app) = match outcome {
            Ok(done) => done,
            Err((problem, app)) => {
                let way = if problem.page.is_some() { "page" } else { "refuse" };
                if let Some(access) = &mut recorded.access {
                    access.refused(problem.kind.name());
                }
                let response = self.refusal(&problem, app.as_ref(), &asked, tracing);
                (response, way, app)
            }
        };
        if asked.is_call && grpc::is_grpc(response.headers()) {
            response = grpc::answer(response);
        }
        let status = response.status();
        let headers = response.headers_mut();
        if node.reveal {
            headers.insert(REQUEST_ID, tracing.id_field());
        } else {
            headers.remove(PEER_FIELD);
        }
        // The answer to an upgrade has `Connection: upgrade`, and the connection is not used again.
        let upgrades = status == http::StatusCode::SWITCHING_PROTOCOLS;
        if node.is_draining() && version < http::Version::HTTP_2 && !upgrades {
            headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        let elapsed = tracing.head(response.status().as_u16());
        if let Some(span) = &mut span {
            span.set("warmhop.app", app.as_ref().map_or("-", |slot| slot.name().as_str()));
            span.set("warmhop.way", way);
            span.decided(&tracing.steps());
            span.status(status.as_u16());
        }
        match &app {
            Some(slot) => {
                slot.counts.answered(&node.metrics, slot.name(), way, status, elapsed);
                if !is_head {
                    let (id, peer) = (&tracing.id, || tracing.ran_at());
                    let to = || AnswerTo { id: id.clone(), way, peer: peer() };
                    let traffic = slot.counts.traffic(&node.metrics, slot.name());
                    response = response.map(|body| traffic.sends(body, to));
                }
            }
            None => node.metrics.answered("-", way, status, elapsed),
        }
        tracing::debug!(
            way,
            status = response.status().as_u16(),
            head_us = elapsed.as_micros() as u64,
            "answered"
        );
        let response = match span {
            Some(span) => span.until_the_end_of(response),
            None => response,
        };
        recorded.until_the_end_of(response, way)
    }

    /// The span of a client's request, if it is traced.
    fn span(
        &self,
        request: &mut Request<Body>,
        client: &Origin,
        id: &RequestId,
    ) -> Option<ActiveSpan> {
        let method = request.method().clone();
        let mut span = self.node.spans.arrives(request.headers_mut(), || method.to_string())?;
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
            http::Version::HTTP_2 => "2",
            http::Version::HTTP_10 => "1.0",
            _ => "1.1",
        };
        span.set("network.protocol.version", version);
        let agent = request.headers().get(http::header::USER_AGENT);
        if let Some(agent) = agent.and_then(|agent| agent.to_str().ok()) {
            span.set("user_agent.original", agent);
        }
        span.set("warmhop.request_id", id.as_str());
        Some(span)
    }

    async fn dispatch(
        &self,
        of: For<'_>,
        request: Request<Body>,
        client: Origin,
        interim: Option<Interim>,
        tracing: &mut Tracing,
    ) -> Result<(Response<Body>, &'static str, Option<Arc<Slot>>), (Problem, Option<Arc<Slot>>)>
    {
        let extended = request.extensions().get::<Protocol>();
        if request.method() == Method::CONNECT
            && extended.is_none_or(|protocol| !protocol.as_str().eq_ignore_ascii_case("websocket"))
        {
            let detail = "CONNECT is for forward proxies; this is a gateway to apps";
            return Err((Problem::new(ProblemKind::NoConnect, detail), None));
        }
        if let Some(answer) = targets::answered_here(&request) {
            return answer
                .map(|response| (response, "server", None))
                .map_err(|problem| (problem, None));
        }
        let by_front_door = matches!(of, For::AnyApp);
        let mut prefix = None;
        let slot = match of {
            For::App(slot) => Some(Arc::clone(slot)),
            For::AnyApp => {
                let host = fields::host_as_sent(request.headers());
                let apps = self.node.apps();
                apps.matching(host, request.uri().path()).map(|found| {
                    let taken_off = found.app.spec().strip_prefix && !found.prefix.is_empty();
                    prefix = taken_off.then(|| Arc::clone(found));
                    Arc::clone(&found.app)
                })
            }
            For::Nobody => {
                let detail = "the request names no host, more than one host, or an invalid one";
                return Err((Problem::new(ProblemKind::BadHost, detail), None));
            }
        };
        let Some(slot) = slot else {
            let host = fields::host_of(request.headers()).unwrap_or_default();
            let path = request.uri().path();
            let detail = format!("no app of this mesh answers for {host}{path}");
            return Err((Problem::new(ProblemKind::UnknownApp, detail), None));
        };
        tracing.app(slot.name());
        if by_front_door
            && slot.state() != AppState::Ready
            && slot.spec().policy.starting_page
            && is_navigation(request.method(), request.headers())
            && slot.spec().policy.wake.wakes(user_agent(request.headers()), request.uri().path())
            && let Some(page) = self.node.starting_page(&slot, tracing)
        {
            return Err((page, Some(slot)));
        }
        // Boxed for the same reason as the whole.
        match Box::pin(self.serve(&slot, prefix, request, client, interim, tracing)).await {
            Ok((response, way)) => Ok((response, way, Some(slot))),
            Err(problem) => Err((problem, Some(slot))),
        }
    }

    /// Serves a request of `slot`'s app: handles the client's side of it, before and after the app.
    async fn serve(
        &self,
        slot: &Arc<Slot>,
        stripped: Option<Arc<Matched>>,
        request: Request<Body>,
        client: Origin,
        interim: Option<Interim>,
        tracing: &mut Tracing,
    ) -> Result<(Response<Body>, &'static str), Problem> {
        let node = &self.node;
        let mode = slot.spec().policy.session;
        let (mut parts, body) = request.into_parts();
        let record = parts.extensions.remove::<Received>();
        let body = slot.counts.traffic(&node.metrics, slot.name()).receives(body, record);
        let about = About::of(&parts.headers);
        let key = prepare::idempotency_key(&parts, about, mode)?;
        let upgrade = UpgradeAsked::take(&mut parts, about, &body);
        let asks_first = prepare::remove_fields(&mut parts, about, &upgrade);
        let (token, route) = if about.has(About::COOKIE) {
            token::take(node, &mut parts.headers, slot.name())
        } else {
            (None, None)
        };
        let brought_token = token.is_some();
        let prefix = stripped.as_ref().map(|matched| &*matched.prefix);
        let at = prepare::add_fields(node, slot, prefix, &mut parts, &client, tracing);
        let body = if upgrade.is_asked() {
            CallBody::Whole(bytes::Bytes::new())
        } else {
            match Call::gathered(body) {
                Ok(whole) => CallBody::Whole(whole),
                // Boxed if there is something to wait for: otherwise its future would be moved with
                // each request.
                Err(body) => {
                    let bytes_max = node.store.policy().stored_response_bytes_max;
                    Box::pin(prepare::gather(body, key.is_some().then_some(bytes_max))).await?
                }
            }
        };
        let (body, broke) = prepare::noting_if_broken(body);
        if asks_first && key.is_none() && matches!(body, CallBody::Stream(_)) {
            // Nobody has polled the body, so the app may ask for it or refuse it.
            parts.headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
        }
        let mut own = OwnSession::of(slot, &parts.uri, &parts.headers, &body);
        let entry = match &mut own {
            Some(own) => Box::pin(own.find(node, slot)).await,
            None => token,
        };
        let flow = flow_of(client.addr.map(|addr| addr.ip()), entry.as_ref().map(|it| &it.sid));
        let mut call = prepare::call(slot, parts, prefix, body, &upgrade, Waits::of(flow), tracing);
        let entry = entry.filter(|entry| match entry.kind {
            Kind::Portable { .. } => mode == SessionMode::Portable,
            Kind::Pinned { .. } => mode == SessionMode::Pinned,
        });
        call.version = entry.as_ref().and_then(|entry| entry.version.clone());
        call.interim = interim;
        let served = if mode == SessionMode::Portable {
            let portable = prepare::portable(slot, &call, key.as_deref(), entry.as_ref());
            let subject = Subject::Token(entry.as_ref());
            Box::pin(node.serve_portable(&portable, &mut call, subject, tracing)).await
        } else {
            node.serve_plain(slot, &mut call, entry.as_ref(), tracing).await
        };
        // An app with a broken body can only fail, even in the middle of an answer.
        if let Some(error) = broke.as_ref().and_then(|broke| broke.get()) {
            return Err(prepare::body_cut_off(&**error));
        }
        let mut served = served?;
        served.name_version(entry.as_ref());
        if let Some(own) = own {
            Box::pin(own.served(node, &mut served)).await;
        }
        let way = if served.next_hop.is_some() { "hop" } else { "serve" };
        let waited_long = call.waits.waited >= OTHER_TABS_WITHIN && !brought_token;
        let former = Former { entry, route, may_be_old: waited_long };
        let mut response = finish::finish(node, slot, served, &former, upgrade.client_side, &at);
        if upgrade.is_extended {
            finish::open_extended(&mut response)?;
        }
        Ok((response, way))
    }
}

/// What is recorded of a request until it has an answer.
struct Recorded {
    access: Option<Accessing>,
    tracing: Tracing,
}

impl Recorded {
    /// Has it recorded once its answer has ended, or the connection that its answer upgrades.
    fn until_the_end_of(
        &mut self,
        mut response: Response<Body>,
        way: &'static str,
    ) -> Response<Body> {
        let passage = response.extensions_mut().remove::<Arc<Passage>>();
        let Some(mut access) = self.access.take() else { return response };
        let Some(passage) = passage else {
            return access.until_the_end_of(response, way, &self.tracing);
        };
        access.answered(response.status(), way, &self.tracing);
        passage.ends(access);
        response
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if let Some(access) = &mut self.access {
            access.left(&self.tracing);
        }
    }
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

/// The answer at [`READY_PATH`], the same as at `/readyz` of the admin listener: a peer whose apps
/// are cold takes traffic, one that drains does not.
fn readiness(draining: bool) -> Response<Body> {
    let (status, text) = if draining {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else {
        (StatusCode::OK, "ready\n")
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
