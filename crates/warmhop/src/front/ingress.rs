//! The service in front: names the app, the session and the request, and nothing else. What is
//! decided and carried out for them is in [`crate::request::node`], [`crate::request::serve`] and
//! [`crate::request::portable`].

mod refusal;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tracing::{Instrument, debug_span};
use warmhop_core::affinity::{self, Arrival, Entry, Kind, Reject, Token};
use warmhop_core::config::{SessionMode, StartMode};
use warmhop_core::cookie::COOKIES_MAX;
use warmhop_core::ids::{AppName, PeerId, RequestId, RequestKey, WallTime};
use warmhop_core::route::Arrived;
use warmhop_core::session::entry::FORWARDS_MAX;
use warmhop_core::view::AppState;

use crate::app::places::{Waits, flow_of};
use crate::app::slot::Slot;
use crate::front::client_body::TooSlow;
use crate::front::cookies::AskedAt;
use crate::front::origin::{Origin, TrustedProxies};
use crate::front::starting::{PROGRESS_PATH, is_navigation};
use crate::front::targets;
use crate::hop::{self, AppIs};
use crate::http::about::About;
use crate::http::body::{Body, Broke};
use crate::http::client::ClientInfo;
use crate::http::clients::Clients;
use crate::http::fields::{self, PEER_FIELD, REQUEST_ID_FIELD};
use crate::http::framing::ends_connection;
use crate::http::refusals::ByReason;
use crate::observe::recall::{Tracing, put_line};
use crate::observe::trace::ActiveSpan;
use crate::request::call::{Call, CallBody, user_agent};
use crate::request::grpc;
use crate::request::matches::Matched;
use crate::request::node::Node;
use crate::request::own_ids::OwnSession;
use crate::request::portable::{Portable, Subject};
use crate::request::problem::{Problem, sf_name};
use crate::request::serve::{Served, ServedBy, Upgrade};

use self::refusal::Asked;

/// The longest idempotency key, in bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;
/// How long the body of a request may take that is carried out only once all of it is there.
const WHOLE_BODY_WITHIN: Duration = Duration::from_secs(60);
/// How long a request may have waited for its app to start, and still speak for its client's
/// browser: other tabs have been answered since then.
const OTHER_TABS_WITHIN: Duration = Duration::from_secs(1);
/// Where a front door says whether this peer takes traffic: a load balancer seldom reaches the
/// admin listener. A well-known path (RFC 8615), which no app has by accident.
pub const READY_PATH: &str = "/.well-known/warmhop/readyz";
/// Where a request has the field that names its answer as a stored one.
const REPLAYED_FIELD: &str = "warmhop-replayed";
/// Where a client is told that its session goes on without the majority that it had.
const FORKED_FIELD: &str = "warmhop-session-forked";
/// Where a client is told that its former session is gone.
const LOST_FIELD: &str = "warmhop-session-lost";

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID: HeaderName = HeaderName::from_static(REQUEST_ID_FIELD);
const PEER: HeaderName = HeaderName::from_static(PEER_FIELD);
/// How many fields this peer adds to those that an app is to see.
const FIELDS_ADDED: usize = 6;

/// Which app a request is for.
#[derive(Clone, Copy)]
enum For<'a> {
    /// The one that its host and path match best.
    AnyApp,
    /// One that is known already.
    App(&'a Arc<Slot>),
    /// None: its host cannot be told.
    Nobody,
}

/// What a request brought of its client's session.
struct Former {
    entry: Option<Entry>,
    /// The peer that its cookie named.
    route: Option<PeerId>,
    /// The client may have another session by now.
    may_be_old: bool,
}

/// A peer's front, cheap to clone behind an `Arc`.
pub(crate) struct Ingress {
    pub(crate) node: Arc<Node>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) trusted: TrustedProxies,
}

impl Ingress {
    /// Serves one request; every outcome is a response.
    pub(crate) async fn handle(
        &self,
        mut request: Request<Body>,
        client: ClientInfo,
    ) -> Response<Body> {
        let ends = ends_connection(&request);
        let mut response = match self.at_the_door(&mut request, client) {
            Ok((of, client)) => self.identified(of, request, client).await,
            Err(answered) => answered,
        };
        if ends && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Settles whom a request is for and from; or answers it, where it asks for this peer's word.
    #[expect(clippy::result_large_err, reason = "an answer is made here, once")]
    fn at_the_door(
        &self,
        request: &mut Request<Body>,
        client: ClientInfo,
    ) -> Result<(For<'static>, Origin), Response<Body>> {
        let (uri, headers) = (request.uri().clone(), request.headers_mut());
        let host_is_one = fields::settle_host(&uri, headers);
        let client = self.trusted.settle(headers, client);
        // Balancers and starting pages ask several times a second: neither the traces nor the
        // counters of requests are to be full of them.
        let path = request.uri().path();
        if path == READY_PATH {
            return Err(readiness(self.node.is_draining()));
        }
        if let Some(of) = path.strip_prefix(PROGRESS_PATH).filter(|of| of.starts_with('/')) {
            let host = fields::host_as_sent(request.headers());
            if let Some(found) = self.node.apps().matching(host, of).cloned() {
                // Where browsers wait as everybody does, nobody has to be told.
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

    /// Serves one request of an app that is known already, whatever its host and path.
    pub(crate) async fn handle_for(
        &self,
        slot: &Arc<Slot>,
        mut request: Request<Body>,
        client: ClientInfo,
    ) -> Response<Body> {
        let uri = request.uri().clone();
        // Whatever it is, the app was chosen without it.
        let _ = fields::settle_host(&uri, request.headers_mut());
        let client = self.trusted.settle(request.headers_mut(), client);
        self.identified(For::App(slot), request, client).await
    }

    /// Boxed here, where little is to be moved: each future around it would be moved by whoever
    /// awaits it, and all of its bytes with it.
    fn identified<'a>(
        &'a self,
        of: For<'a>,
        request: Request<Body>,
        client: Origin,
    ) -> BoxFuture<'a, Response<Body>> {
        let node = &self.node;
        let id = fields::request_id(request.headers()).unwrap_or_else(fresh_request_id);
        let span = debug_span!("request", id = %id, peer = %node.me);
        let answering = self.traced(of, request, client, id);
        // Where nobody listens, moving the future once more costs more than all of the span.
        if span.is_disabled() { Box::pin(answering) } else { Box::pin(answering.instrument(span)) }
    }

    async fn traced(
        &self,
        of: For<'_>,
        mut request: Request<Body>,
        client: Origin,
        id: RequestId,
    ) -> Response<Body> {
        let node = &self.node;
        let mut tracing = Tracing::begin(
            &node.traces,
            id,
            &node.me,
            "entry",
            put_line(request.method(), request.uri().path()),
        );
        let asked = Asked::of(&request, client.secure);
        let version = request.version();
        let mut span = self.span(&mut request, &client, &tracing.id);
        let mut access = node.accesses.arrives(&request, client.addr, tracing.id.as_str());
        let outcome = self.dispatch(of, request, client, &mut tracing).await;
        let (mut response, way, app) = match outcome {
            Ok(done) => done,
            Err((problem, app)) => {
                let way = if problem.page.is_some() { "page" } else { "refuse" };
                if let Some(access) = &mut access {
                    access.refused(problem.name);
                }
                let response = self.refusal(&problem, app.as_ref(), &asked, &mut tracing);
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
        // The answer to an upgrade says `Connection: upgrade`, and the connection is not used again.
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
            }
            None => node.metrics.answered("-", way, status, elapsed),
        }
        tracing::debug!(
            way,
            status = response.status().as_u16(),
            head_us = elapsed.as_micros() as u64,
            "answered"
        );
        if let Some(span) = span {
            response = span.until_the_end_of(response);
        }
        match access {
            Some(access) => access.until_the_end_of(response, way, &tracing),
            None => response,
        }
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
        tracing: &mut Tracing,
    ) -> Result<(Response<Body>, &'static str, Option<Arc<Slot>>), (Problem, Option<Arc<Slot>>)>
    {
        let extended = request.extensions().get::<Protocol>();
        if request.method() == Method::CONNECT
            && extended.is_none_or(|protocol| !protocol.as_str().eq_ignore_ascii_case("websocket"))
        {
            let detail = "CONNECT is for forward proxies; this is a gateway to apps";
            let problem = Problem::new(StatusCode::NOT_IMPLEMENTED, "no-connect", detail);
            return Err((problem.proxy_error("http_request_denied"), None));
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
                let detail = "the request names no host, or more than one, or one that is none";
                let problem = Problem::new(StatusCode::BAD_REQUEST, "bad-host", detail);
                return Err((problem.proxy_error("http_request_error"), None));
            }
        };
        let Some(slot) = slot else {
            let host = fields::host_of(request.headers()).unwrap_or_default();
            let detail = format!(
                "no app of this mesh answers for {host}{}; see [[app]] match in the configuration",
                request.uri().path()
            );
            let problem = Problem::new(StatusCode::NOT_FOUND, "unknown-app", detail);
            return Err((problem.proxy_error("destination_not_found"), None));
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
        // Boxed for the same reason as all of it.
        match Box::pin(self.serve(&slot, prefix, request, client, tracing)).await {
            Ok((response, way)) => Ok((response, way, Some(slot))),
            Err(problem) => Err((problem, Some(slot))),
        }
    }

    async fn serve(
        &self,
        slot: &Arc<Slot>,
        stripped: Option<Arc<Matched>>,
        request: Request<Body>,
        client: Origin,
        tracing: &mut Tracing,
    ) -> Result<(Response<Body>, &'static str), Problem> {
        let node = &self.node;
        let mode = slot.spec().policy.session;
        let (mut parts, body) = request.into_parts();
        let about = About::of(&parts.headers);
        let key = if about.has(About::KEY) { idempotency_key(&parts.headers)? } else { None };
        let key = key.filter(|_| mode == SessionMode::Portable && !fields::is_safe(&parts.method));

        // A WebSocket over HTTP/2 (RFC 8441) is an upgrade to all who pass it on, and to the app:
        // only the client's side of it differs.
        let extended = parts.extensions.remove::<Protocol>().is_some();
        let upgrade = if extended {
            parts.method = Method::GET;
            parts.headers.insert("sec-websocket-key", websocket_key());
            Some(HeaderValue::from_static("websocket"))
        } else if !about.has(About::CONNECTION) {
            None
        } else {
            // A server may ignore the wish (RFC 9110 section 7.8). Two that read a body and a
            // tunnel differently on one connection would be worse.
            fields::wanted_upgrade(parts.version, &parts.headers).filter(|_| body.is_end_stream())
        };
        let on_upgrade = parts.extensions.remove::<OnUpgrade>().filter(|_| upgrade.is_some());
        let via_version = parts.version;
        let headers = &mut parts.headers;
        if about.has(About::CONNECTION) {
            fields::remove_hop_by_hop(headers);
        }
        if about.has(About::OURS) {
            fields::remove_reserved(headers);
        }
        if about.has(About::SHADOW) {
            fields::remove_shadows(headers);
        }
        if about.has(About::COOKIE) {
            fields::join_cookies(headers);
        }
        if upgrade.is_some() {
            headers.remove(CONTENT_LENGTH);
        }
        let mut asks_first = false;
        if about.has(About::EXPECT) {
            asks_first = fields::expects_continue(headers) && via_version > Version::HTTP_10;
            headers.remove(EXPECT);
        }
        let (entry, current) = if about.has(About::COOKIE) {
            self.take_cookie(headers, slot.name())
        } else {
            (None, None)
        };
        let brought_any = entry.is_some();
        // At once, rather than as they are added.
        headers.reserve(FIELDS_ADDED);
        let host = headers.get(HOST).filter(|host| host.to_str().is_ok()).cloned();
        let prefix = stripped.as_ref().map(|matched| &*matched.prefix);
        if let Some(prefix) = prefix {
            targets::tell_prefix(headers, prefix);
        }
        targets::name_host(headers, slot.spec().host());
        let at = AskedAt::of(headers, &parts.uri, client.secure);
        targets::passed_on(&parts.method, headers);
        let ClientInfo { addr, secure } = client.neighbour;
        let scheme = if secure { "https" } else { "http" };
        fields::append_forwarded(headers, addr.map(|addr| addr.ip()), host, scheme);
        node.via[0].append(headers, via_version);
        headers.insert(X_REQUEST_ID, tracing.id_field());

        let want_whole = key.is_some().then(|| node.store.policy().stored_response_bytes_max);
        let body = if upgrade.is_some() {
            CallBody::Whole(bytes::Bytes::new())
        } else {
            // Boxed where there is something to wait for: its future would be moved with each request.
            let gathered = match Call::gathered(body) {
                Ok(whole) => Ok(Ok(CallBody::Whole(whole))),
                Err(body) => {
                    let gathering = Box::pin(Call::gather(body, want_whole));
                    tokio::time::timeout(WHOLE_BODY_WITHIN, gathering).await
                }
            };
            match gathered {
                Ok(gathered) => gathered.map_err(|error| body_cut_off(&*error))?,
                Err(_) => return Err(body_too_slow()),
            }
        };
        let mut broke = None;
        let body = match body {
            CallBody::Stream(Some(body)) => {
                let broke = broke.insert(Broke::default());
                CallBody::Stream(Some(body.telling_if_broken(broke)))
            }
            body => body,
        };
        if asks_first && key.is_none() && matches!(body, CallBody::Stream(_)) {
            // Nobody has touched the body, so it is the app's to ask for it or to refuse it.
            parts.headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
        }
        let mut own = OwnSession::of(slot, &parts.uri, &parts.headers, &body);
        let entry = match &mut own {
            Some(own) => Box::pin(own.find(node, slot)).await,
            None => entry,
        };
        let flow = flow_of(client.addr.map(|addr| addr.ip()), entry.as_ref().map(|it| &it.sid));
        let mut call = Call {
            id: tracing.id.clone(),
            method: parts.method,
            target: targets::for_app(&parts.uri, prefix),
            fields: parts.headers,
            body,
            upgrade,
            on_upgrade: on_upgrade.clone(),
            may_have_run: false,
            failed_at: None,
            attempt: rand::random(),
            waits: Waits::of(flow),
        };
        call.waits.never_wakes = !call.wakes(&slot.spec().policy.wake);

        let entry = entry.filter(|entry| match entry.kind {
            Kind::Portable { .. } => mode == SessionMode::Portable,
            Kind::Pinned { .. } => mode == SessionMode::Pinned,
        });
        let served = if mode == SessionMode::Portable {
            let portable = Portable {
                slot,
                rid: key.as_deref().map_or_else(|| RequestKey(rand::random()), rid_of_key),
                fingerprint: if key.is_some() { call.fingerprint() } else { 0 },
                keyed: key.is_some(),
                seen: entry.as_ref().and_then(|entry| match entry.kind {
                    Kind::Portable { n, .. } => Some(n),
                    Kind::Pinned { .. } => None,
                }),
                arrived: Arrived::AtFrontDoor,
                hops_left: FORWARDS_MAX,
                drawn: false,
            };
            let subject = Subject::Token(entry.as_ref());
            Box::pin(node.serve_portable(&portable, &mut call, subject, tracing)).await
        } else {
            node.serve_plain(slot, &mut call, entry.as_ref(), tracing).await
        };
        // Whoever was given a body that broke could not but fail, be it in the middle of an answer.
        if let Some(error) = broke.as_ref().and_then(|broke| broke.get()) {
            return Err(body_cut_off(&**error));
        }
        let mut served = served?;
        if let Some(own) = own {
            Box::pin(own.served(node, &mut served)).await;
        }
        let way = if served.next_hop.is_some() { "hop" } else { "serve" };
        let waited_long = call.waits.waited >= OTHER_TABS_WITHIN && !brought_any;
        let former = Former { entry, route: current, may_be_old: waited_long };
        let mut response = self.finish(slot, served, &former, on_upgrade, &at);
        if extended {
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                *response.status_mut() = StatusCode::OK;
                let headers = response.headers_mut();
                for name in ["connection", "upgrade", "sec-websocket-accept"] {
                    headers.remove(name);
                }
            } else if response.status().is_success() {
                // To the client, a 2xx would mean that the WebSocket is open.
                let detail = format!(
                    "the app answered {} and opened no WebSocket",
                    response.status().as_u16()
                );
                return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "no-websocket", detail)
                    .proxy_error("http_upgrade_failed"));
            }
        }
        Ok((response, way))
    }

    /// Takes the affinity cookies out of what the app sees, and reads the first whose token names
    /// it, with the peer that it names. Tokens that this cluster did not make are left: they may be
    /// those of a mesh behind this one. Beyond a bound none is left, for one of them
    /// could be another app's, which is nobody else's to see.
    fn take_cookie(
        &self,
        headers: &mut HeaderMap,
        app: &AppName,
    ) -> (Option<Entry>, Option<PeerId>) {
        let node = &self.node;
        let (wall, cookie) = (node.clock.wall(), &node.store.policy().cookie);
        let (mut looked_at, mut found) = (0, None);
        let mut hide = |value: &str| {
            looked_at += 1;
            if looked_at > COOKIES_MAX {
                return true;
            }
            match affinity::read(value, &node.auth, wall) {
                Ok((token, route)) => {
                    if let (None, Some(entry)) = (&found, token.entry(app)) {
                        found = Some((self.plain(entry.clone()), route));
                    }
                    true
                }
                Err(reject) => {
                    let label = ByReason { reason: reject.label() };
                    node.metrics.cookies_rejected.get_or_create(&label).inc();
                    !matches!(reject, Reject::Forged | Reject::Version)
                }
            }
        };
        let fields: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
        let stripped: Vec<_> =
            fields.iter().map(|field| cookie.strip(field.as_bytes(), &mut hide)).collect();
        if stripped.iter().any(Option::is_some) {
            headers.remove(COOKIE);
            for (field, rest) in fields.into_iter().zip(stripped) {
                match rest.map(|rest| HeaderValue::from_bytes(&rest)) {
                    None => _ = headers.append(COOKIE, field),
                    Some(Ok(rest)) if !rest.is_empty() => _ = headers.append(COOKIE, rest),
                    Some(_) => {}
                }
            }
        }
        found.map_or((None, None), |(entry, route)| (Some(entry), route))
    }

    /// Gives the response what the client's side needs: affinity, the way it came, the upgrade.
    fn finish(
        &self,
        slot: &Slot,
        served: Served,
        former: &Former,
        on_upgrade: Option<OnUpgrade>,
        at: &AskedAt,
    ) -> Response<Body> {
        let node = &self.node;
        let Served {
            mut response,
            served_by,
            next_hop,
            upgrade,
            entry,
            session_lost,
            forked,
            after_end,
            cleared,
            replayed,
        } = served;
        let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        let by = match &served_by {
            ServedBy::Here(_) => Ok(node.me_field.clone()),
            ServedBy::There(said) => HeaderValue::from_str(said),
        };
        if let Ok(by) = by {
            headers.insert(PEER, by);
        }
        if let Some(hop) = &next_hop {
            node.via[1].append(headers, http::Version::HTTP_11);
            let status =
                format!("{}; next-hop={}", sf_name(node.me.as_str()), sf_name(hop.as_str()));
            if let (true, Ok(value)) = (node.reveal, HeaderValue::from_str(&status)) {
                headers.append("proxy-status", value);
            }
        }
        if session_lost {
            headers.insert(LOST_FIELD, HeaderValue::from_static("?1"));
        }
        if forked {
            headers.insert(FORKED_FIELD, HeaderValue::from_static("?1"));
        }
        if replayed {
            headers.insert(REPLAYED_FIELD, HeaderValue::from_static("?1"));
        }
        let cookie = &node.store.policy().cookie;
        if cleared {
            at.remove(cookie, &slot.spec(), headers);
        }
        // Another tab may have begun a session meanwhile, which an empty one must not displace.
        let holds_nothing = |entry: &Entry| matches!(entry.kind, Kind::Portable { n: 0, .. });
        let displaces = |entry: &Entry| holds_nothing(entry) && (after_end || former.may_be_old);
        if let Some(entry) = entry.filter(|entry| !displaces(entry)) {
            let current = former.route.as_ref();
            let back_to = self.comes_back_to(slot, &entry, current, served_by.as_str());
            let route = node.route_name.of(&back_to, &node.auth);
            let wall = node.clock.wall();
            let stays =
                former.entry.as_ref().is_some_and(|former| is_settled(former, &entry, wall))
                    && current == Some(&route);
            if !stays {
                let entries = vec![node.route_name.disguise(entry, &node.auth)];
                let value = affinity::mint(&Token { entries }, &route, &node.auth);
                at.set(cookie, &value, &slot.spec(), headers);
            }
        }
        if switching {
            let protocol = headers.get(http::header::UPGRADE).cloned();
            if let Some(protocol) = protocol {
                fields::put_upgrade(headers, protocol);
            }
            if let (Some(on_upgrade), Some(upgrade)) = (on_upgrade, upgrade) {
                let farewell = node.tunnels.farewell(headers.get(http::header::UPGRADE));
                node.tunnels.open.spawn(async move {
                    let Ok(client) = on_upgrade.await else { return };
                    let client = TokioIo::new(client);
                    match upgrade {
                        Upgrade::Hop(hop::Tunnel { writer, reader, lease, served_there }) => {
                            hop::tunnel(client, writer, reader, AppIs::Far, farewell).await;
                            drop((lease, served_there));
                        }
                        Upgrade::Io(app) => hop::join(client, TokioIo::new(app), farewell).await,
                    }
                });
            }
        }
        response
    }

    /// The entry with the peer of a pinned session by its name, where this peer knows who is meant.
    fn plain(&self, mut entry: Entry) -> Entry {
        if let Kind::Pinned { peer, .. } = &mut entry.kind
            && let Some(known) = self.peer_called(peer)
        {
            *peer = known;
        }
        entry
    }

    /// The peer that a cookie means by `said`.
    fn peer_called(&self, said: &PeerId) -> Option<PeerId> {
        let node = &self.node;
        let view = node.view();
        if *said == node.me || view.peer(said).is_some() {
            return Some(said.clone());
        }
        let known = std::iter::once(&node.me).chain(view.peers().map(|(peer, _)| peer));
        affinity::peer_called(said, known, &node.auth).cloned()
    }

    /// The peer that the client should come back to.
    fn comes_back_to(
        &self,
        slot: &Slot,
        entry: &Entry,
        current: Option<&PeerId>,
        served_by: &str,
    ) -> PeerId {
        let node = &self.node;
        let served_by = PeerId::new(served_by).ok();
        let state = slot.state();
        let starts = slot.spec().policy.start != StartMode::Never && state != AppState::Failed;
        let serves = starts && !node.is_draining();
        // Only a peer that does not serve the client itself goes by what its cookie says.
        let current = current.filter(|_| !serves).and_then(|said| self.peer_called(said));
        let arrival = Arrival {
            me: &node.me,
            incarnation: node.incarnation,
            serves,
            ready: state == AppState::Ready,
            view: &node.view(),
            current: current.as_ref(),
            served_by: served_by.as_ref(),
        };
        affinity::come_back_to(entry, &arrival)
    }
}

/// Whether the token need not be sent again: the same session under the same configuration, and
/// with more than half of its time to go.
fn is_settled(former: &Entry, entry: &Entry, wall: WallTime) -> bool {
    let span = |from: u64, to: u64| Duration::from_millis(to.saturating_sub(from));
    former.sid == entry.sid
        && former.kind == entry.kind
        && span(wall.0, former.expiry.0) > span(wall.0, entry.expiry.0) / 2
}

/// What a client is told whose body ended before its length, or had no form.
fn body_cut_off(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Problem {
    if error.is::<TooSlow>() {
        let detail = format!("the request's body was given up: {error}");
        return Problem::new(StatusCode::REQUEST_TIMEOUT, "body-too-slow", detail)
            .proxy_error("http_request_error");
    }
    let detail = "the request's body was cut off, or is no HTTP";
    Problem::new(StatusCode::BAD_REQUEST, "body-cut-off", detail)
        .proxy_error("http_request_error")
        .because(error)
}

fn body_too_slow() -> Problem {
    let detail = format!(
        "a request with an Idempotency-Key is carried out once its body is there, which took over \
         {WHOLE_BODY_WITHIN:?}"
    );
    Problem::new(StatusCode::REQUEST_TIMEOUT, "body-too-slow", detail)
        .proxy_error("http_request_error")
}

fn fresh_request_id() -> RequestId {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 32];
    for (pair, byte) in text.chunks_exact_mut(2).zip(rand::random::<[u8; 16]>()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    let text = std::str::from_utf8(&text).expect("digits are ASCII");
    RequestId::new(text).expect("hexadecimal digits form a request id")
}

/// A nonce for an app's handshake (RFC 6455 section 4.1), which a client over HTTP/2 sends none of.
fn websocket_key() -> HeaderValue {
    let nonce: [u8; 16] = rand::random();
    HeaderValue::from_str(&STANDARD.encode(nonce)).expect("base64 is a field's value")
}

fn rid_of_key(key: &str) -> RequestKey {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
    RequestKey(digest.as_ref()[..16].try_into().expect("a digest has 32 bytes"))
}

/// The `Idempotency-Key`, as a string item or bare; refused where it is out of form, because a
/// client that sends one relies on it.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().map(|text| text.trim().trim_matches('"'));
    match text {
        Some(key)
            if values.next().is_none() && (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) =>
        {
            Ok(Some(key.to_owned()))
        }
        _ => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "idempotency-key",
            format!(
                "Idempotency-Key must be one value of 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible characters"
            ),
        )
        .proxy_error("http_request_error")),
    }
}

/// What [`READY_PATH`] answers, as `/readyz` of the admin listener does: a peer whose apps are cold
/// takes traffic, one that drains does not.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idempotency_key_is_taken_bare_or_quoted_and_refused_out_of_form() {
        let with = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("idempotency-key", HeaderValue::from_str(value).unwrap());
            }
            idempotency_key(&headers)
        };
        assert_eq!(with(&[]).unwrap(), None);
        assert_eq!(with(&["\"a-1\""]).unwrap().unwrap(), "a-1");
        assert_eq!(with(&["a-1"]).unwrap().unwrap(), "a-1");
        assert!(with(&["a", "b"]).is_err());
        assert!(with(&[""]).is_err());
        assert!(with(&[&"k".repeat(257)]).is_err());
    }
}
