//! The service in front, and the walk of a request: identify what it is for, prepare it for its app,
//! carry it out here or by a hop, finish its answer. Each step is one function, in this order, and
//! hands on the request with its [`RequestContext`].
//!
//! What is decided about a request is decided behind it, in [`crate::request::node`],
//! [`crate::request::serve`] and [`crate::request::portable`].

mod refusal;

use std::pin::pin;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::ext::Protocol;
use tracing::{Instrument, debug_span};
use warmhop_core::affinity::Entry;
use warmhop_core::config::SessionMode;
use warmhop_core::problem::ProblemKind;
use warmhop_core::view::AppState;

use crate::app::slot::Slot;
use crate::front::context::RequestContext;
use crate::front::cookies::AskedAt;
use crate::front::finish;
use crate::front::origin::TrustedProxies;
use crate::front::prepare::{self, Prepared};
use crate::front::starting::{PROGRESS_PATH, is_navigation};
use crate::front::targets;
use crate::http::body::Body;
use crate::http::client::ClientInfo;
use crate::http::clients::Clients;
use crate::http::fields;
use crate::http::framing::ends_connection;
use crate::http::interim::Interim;
use crate::http::spare;
use crate::observe::lines::Refused;
use crate::observe::recall::Tracing;
use crate::request::call::{Call, user_agent};
use crate::request::matches::Matched;
use crate::request::node::Node;
use crate::request::own_ids::OwnSession;
use crate::request::portable::Subject;
use crate::request::problem::Problem;
use crate::request::served::Served;

/// The path at which a front door answers whether this peer takes traffic: a load balancer seldom
/// reaches the admin listener. A well-known path (RFC 8615), which no app has by accident.
pub const READY_PATH: &str = "/.well-known/warmhop/readyz";

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
    ///
    /// The request is boxed: each future that it passes through would be larger by it, and by what is
    /// done with it.
    pub(crate) async fn handle(
        &self,
        mut request: Box<Request<Body>>,
        client: ClientInfo,
        interim: Option<Interim>,
    ) -> Response<Body> {
        let ends = ends_connection(&request);
        let app = if settle_host(&mut request) { For::AnyApp } else { For::Nobody };
        let client = self.trusted.settle(request.headers_mut(), client);
        let mut response = match self.answer_about_this_peer(&request) {
            Some(answer) => answer,
            None => {
                let context = RequestContext::begin(&self.node, &mut request, client, interim);
                self.answer_in_log_span(app, request, context).await
            }
        };
        if ends && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Serves one request of a known app, whatever its host and path.
    pub(crate) async fn handle_for(
        &self,
        slot: &Arc<Slot>,
        mut request: Request<Body>,
        client: ClientInfo,
    ) -> Response<Body> {
        // The result does not matter, since the app was chosen without the host.
        let _ = settle_host(&mut request);
        let client = self.trusted.settle(request.headers_mut(), client);
        let context = RequestContext::begin(&self.node, &mut request, client, None);
        self.answer_in_log_span(For::App(slot), Box::new(request), context).await
    }

    /// The answer to a question about this peer itself. Balancers and starting pages ask several
    /// times a second, which would fill the traces and the counters of requests.
    fn answer_about_this_peer(&self, request: &Request<Body>) -> Option<Response<Body>> {
        let path = request.uri().path();
        if path == READY_PATH {
            return Some(readiness(self.node.is_draining()));
        }
        let app_path = path.strip_prefix(PROGRESS_PATH).filter(|path| path.starts_with('/'))?;
        let host = fields::host_as_sent(request.headers());
        let found = self.node.apps().matching(host, app_path).cloned()?;
        // Without the starting page nobody asks for the progress.
        if !found.app.spec().policy.starting_page {
            let mut nothing = Response::new(Body::empty());
            *nothing.status_mut() = StatusCode::NOT_FOUND;
            return Some(nothing);
        }
        Some(self.node.progress(&found.app).response())
    }

    /// Boxed here, where little is to be moved: each future around it would be moved by its caller,
    /// with all of its bytes.
    fn answer_in_log_span<'a>(
        &'a self,
        app: For<'a>,
        request: Box<Request<Body>>,
        context: RequestContext,
    ) -> BoxFuture<'a, Response<Body>> {
        let span = debug_span!("request", id = %context.tracing.id, peer = %self.node.me);
        // Created in each branch: without a subscriber, moving the future once more costs more than
        // the whole span.
        if span.is_disabled() {
            Box::pin(self.answer_and_record(app, request, context))
        } else {
            Box::pin(self.answer_and_record(app, request, context).instrument(span))
        }
    }

    async fn answer_and_record(
        &self,
        app: For<'_>,
        request: Box<Request<Body>>,
        mut context: RequestContext,
    ) -> Response<Body> {
        let response = match self.answer(app, request, &mut context).await {
            Ok(response) => response,
            Err(problem) => self.refuse(&problem, &mut context),
        };
        context.complete(&self.node, response)
    }

    /// Answers what the peer itself can answer; asks the request's app for anything else.
    async fn answer(
        &self,
        app: For<'_>,
        request: Box<Request<Body>>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Problem> {
        refuse_forward_proxying(&request)?;
        if let Some(answer) = targets::answered_here(&request) {
            let response = answer?;
            context.way = "server";
            return Ok(response);
        }
        let (slot, prefix) = self.find_app(app, &request, &context.asked_at)?;
        context.is_for(&slot);
        if matches!(app, For::AnyApp)
            && let Some(page) = self.starting_page(&slot, &request, &mut context.tracing)
        {
            return Err(page);
        }
        // Boxed for the same reason as the whole.
        Box::pin(self.answer_by_app(&slot, prefix, request, context)).await
    }

    /// The app that a request is for, and its prefix if the app's requests come without it.
    fn find_app(
        &self,
        app: For<'_>,
        request: &Request<Body>,
        asked_at: &AskedAt,
    ) -> Result<(Arc<Slot>, Option<Arc<Matched>>), Problem> {
        let path = request.uri().path();
        match app {
            For::App(slot) => Ok((Arc::clone(slot), None)),
            For::AnyApp => {
                let apps = self.node.apps();
                let Some(found) = apps.matching(asked_at.host(), path) else {
                    let host = fields::host_of(request.headers()).unwrap_or_default();
                    let detail = format!("no app of this mesh answers for {host}{path}");
                    return Err(Problem::new(ProblemKind::UnknownApp, detail));
                };
                let is_stripped = found.app.spec().strip_prefix && !found.prefix.is_empty();
                Ok((Arc::clone(&found.app), is_stripped.then(|| Arc::clone(found))))
            }
            For::Nobody => {
                let detail = "the request names no host, more than one host, or an invalid one";
                Err(Problem::new(ProblemKind::BadHost, detail))
            }
        }
    }

    /// The page that a browser shows until the app is ready.
    fn starting_page(
        &self,
        slot: &Arc<Slot>,
        request: &Request<Body>,
        tracing: &mut Tracing,
    ) -> Option<Problem> {
        if slot.state() == AppState::Ready {
            return None;
        }
        let spec = slot.spec();
        let shows_page = spec.policy.starting_page
            && is_navigation(request.method(), request.headers())
            && spec.policy.wake.wakes(user_agent(request.headers()), request.uri().path());
        if shows_page { self.node.starting_page(slot, tracing) } else { None }
    }

    /// Asks the app: here, or at a peer where it is ready.
    async fn answer_by_app(
        &self,
        slot: &Arc<Slot>,
        prefix: Option<Arc<Matched>>,
        request: Box<Request<Body>>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Problem> {
        let prefix = prefix.as_ref().map(|matched| &*matched.prefix);
        let mut prepared = prepare::prepare(&self.node, slot, prefix, request, context).await?;
        // Pinned in place: moving it would take its room twice.
        let served = pin!(self.carry_out(slot, &mut prepared, &mut context.tracing)).await?;
        context.way = if served.next_hop.is_some() { "hop" } else { "serve" };
        let ahead = served.reads_ahead();
        let mut response = finish::finish(&self.node, slot, served, prepared, &context.asked_at)?;
        if response.body().bytes_in_memory().is_none() {
            response.extensions_mut().insert(ahead);
        }
        Ok(response)
    }

    /// Has the request served, here or by a hop, and its session committed.
    async fn carry_out(
        &self,
        slot: &Arc<Slot>,
        prepared: &mut Prepared,
        tracing: &mut Tracing,
    ) -> Result<Served, Problem> {
        let node = &self.node;
        let Prepared { mode, call, key, entry, own, broke, .. } = prepared;
        if let Some(own) = own
            && entry.is_none()
        {
            *entry = Box::pin(own.claim(node, slot, call, tracing)).await?;
            call.version = entry.as_ref().and_then(|entry| entry.version.clone());
        }
        let served = if *mode == SessionMode::Portable {
            let entry = entry.as_ref();
            let portable = prepare::portable(slot, call, key.as_deref(), entry);
            Box::pin(node.serve_portable(&portable, call, Subject::Token(entry), tracing)).await
        } else if let Some(own) = own {
            Box::pin(self.serve_by_own_id(slot, call, entry, own, tracing)).await
        } else {
            node.serve_plain(slot, call, entry.as_ref(), tracing).await
        };
        // An app with a broken body can only fail, even in the middle of an answer.
        if let Some(error) = broke.as_ref().and_then(|broke| broke.get()) {
            return Err(prepare::body_cut_off(&**error));
        }
        let mut served = served?;
        spare::keep(std::mem::take(&mut call.fields));
        served.name_version(entry.as_ref());
        if let Some(own) = own.take() {
            Box::pin(own.served(node, &mut served)).await;
        }
        Ok(served)
    }

    /// Serves a request whose session is known by an id of the app's own. If the copy that holds it is
    /// lost, the next one is recorded before the request goes there: so all peers go to the same one.
    async fn serve_by_own_id(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        entry: &mut Option<Entry>,
        own: &mut OwnSession,
        tracing: &mut Tracing,
    ) -> Result<Served, Problem> {
        let mut lost = Vec::new();
        loop {
            call.moves_first = entry.is_some() && lost.len() < LOST_MAX;
            let served = self.node.serve_plain(slot, call, entry.as_ref(), tracing).await;
            let Some(peer) = call.lost.take() else { return served };
            lost.push(peer);
            *entry = Box::pin(own.succeed(&self.node, slot, &lost)).await;
        }
    }
}

/// How many copies of a pinned session may be lost while one request looks for it.
const LOST_MAX: usize = 3;

/// Makes the request's host agree with its target; false if it has not exactly one host.
fn settle_host(request: &mut Request<Body>) -> bool {
    // Most targets have no authority, and nothing is copied then.
    let (authority, version) = (request.uri().authority().cloned(), request.version());
    fields::settle_host(authority.as_ref(), version, request.headers_mut())
}

/// Refuses `CONNECT`, but for one that opens a WebSocket over HTTP/2 (RFC 8441).
fn refuse_forward_proxying(request: &Request<Body>) -> Result<(), Problem> {
    let protocol = request.extensions().get::<Protocol>();
    let opens_websocket =
        protocol.is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"));
    if request.method() == Method::CONNECT && !opens_websocket {
        let detail = "CONNECT is for forward proxies; this is a gateway to apps";
        return Err(Problem::new(ProblemKind::NoConnect, detail));
    }
    Ok(())
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
