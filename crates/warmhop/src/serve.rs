//! Carries a request out: here, by a hop, or for a session that must be committed before the
//! response leaves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join;
use http::{Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tower::ServiceExt;
use warmhop_core::affinity::{Entry, Kind};
use warmhop_core::config::{EffectsMode, SessionMode, WithoutMajority};
use warmhop_core::ids::{Ballot, Incarnation, PeerId, RequestKey, SessionId, SessionKey};
use warmhop_core::rank;
use warmhop_core::route::{Arrived, PinTo, may_retry};
use warmhop_core::session::message::{Config, Exec, ExecDone, Stored};
use warmhop_core::session::{Failure, Outcome, Submit, TokenHint};
use warmhop_core::view::Liveness;

use crate::app::AppService;
use crate::body::{Body, BoxError};
use crate::call::Call;
use crate::clock::Clock;
use crate::fields::{self, SESSION_FIELD};
use crate::hop::{self, Forward, Hint, HopError, HopKind, HopRefusal, HopReply, ReplySession};
use crate::node::{Node, Place, Placing};
use crate::problem::Problem;
use crate::session::{Session, from_field};
use crate::sessions::{self, InLine, Told};
use crate::supervise::{InFlight, Slot};
use crate::telemetry::{ByReason, Tracing};
use crate::wire::{HopBodyReader, HopBodyWriter};

/// How often a request may be sent on, taken over or begun anew before it is refused.
const ROUNDS_MAX: u32 = 8;
/// The far side of an upgraded connection.
pub(crate) enum Upgrade {
    /// An app on this peer; its bytes are passed by whoever asked.
    Io(Upgraded),
    /// An app on another peer.
    Hop(HopBodyWriter, HopBodyReader),
}

/// A response and how it came about.
pub(crate) struct Served {
    pub(crate) response: Response<Body>,
    /// The peer that ran the app.
    pub(crate) served_by: String,
    /// The peer that the request was sent to, if it was.
    pub(crate) next_hop: Option<PeerId>,
    pub(crate) upgrade: Option<Upgrade>,
    /// What the client's token should say of this app.
    pub(crate) entry: Option<Entry>,
    /// The client's former session was lost, and this is a new one.
    pub(crate) session_lost: bool,
    /// The session goes on from this peer's copy, under another id, without its majority.
    pub(crate) forked: bool,
    /// The response is the stored one of an earlier request.
    pub(crate) replayed: bool,
}

impl Served {
    pub(crate) fn here(node: &Node, response: Response<Body>) -> Self {
        Self {
            response,
            served_by: node.me.to_string(),
            next_hop: None,
            upgrade: None,
            entry: None,
            session_lost: false,
            forked: false,
            replayed: false,
        }
    }
}

/// Why an app on this peer gave no response.
pub(crate) enum LocalError {
    /// It is not ready (any more); it has not seen the request.
    NotReady,
    /// It took the request and failed.
    Failed(String),
    /// The session's part was refused; it has not seen the request.
    Refused(ExecDone),
    /// The request's body was sent elsewhere already.
    BodyGone,
}

/// Runs a service, connecting the two sides of an upgrade where the service answers with its own.
pub(crate) async fn call_service(
    service: AppService,
    request: http::Request<Body>,
    guard: InFlight,
) -> Result<Response<Body>, BoxError> {
    let client_side = request.extensions().get::<OnUpgrade>().cloned();
    let mut response = service.oneshot(request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let app_side = response.extensions_mut().remove::<OnUpgrade>();
        if let (Some(client_side), Some(app_side)) = (client_side, app_side) {
            tokio::spawn(async move {
                let _counted = guard;
                let (Ok(client), Ok(app)) = tokio::join!(client_side, app_side) else { return };
                hop::join(TokioIo::new(client), TokioIo::new(app)).await;
            });
        }
        return Ok(response);
    }
    Ok(response.map(|body| body.guarded(guard)))
}

/// Runs a service for a request that asks for an upgrade and came without a connection of its
/// own: an in-memory one stands in for it.
async fn call_service_upgrading(
    service: AppService,
    request: http::Request<Body>,
    guard: InFlight,
) -> Result<(Response<Body>, Option<Upgraded>), BoxError> {
    let extensions = request.extensions().clone();
    let guard = Arc::new(std::sync::Mutex::new(Some(guard)));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let service = hyper::service::service_fn(move |inner: http::Request<hyper::body::Incoming>| {
        let (service, guard) = (service.clone(), Arc::clone(&guard));
        let mut inner = inner.map(Body::from);
        let own = inner.extensions_mut().remove::<OnUpgrade>();
        *inner.extensions_mut() = extensions.clone();
        if let Some(own) = own {
            inner.extensions_mut().insert(own);
        }
        async move {
            let guard = guard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            match guard {
                Some(guard) => {
                    call_service(service, inner, guard).await.map_err(std::io::Error::other)
                }
                None => Err(std::io::Error::other("one request a connection")),
            }
        }
    });
    tokio::spawn(async move {
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(far), service)
            .with_upgrades();
        let _ = connection.await;
    });
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(near)).await?;
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    let mut response = sender.send_request(request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upgraded = hyper::upgrade::on(&mut response).await?;
        return Ok((response.map(|_| Body::empty()), Some(upgraded)));
    }
    Ok((response.map(Body::from), None))
}

/// What an app on this peer answered, before anything is committed.
pub(crate) struct RanHere {
    pub(crate) response: Response<Body>,
    pub(crate) upgrade: Option<Upgraded>,
    /// The carried session field of its response.
    field: Option<http::HeaderValue>,
}

impl Node {
    /// Runs the app here.
    pub(crate) async fn run_here(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        session: Option<&Session>,
    ) -> Result<RanHere, LocalError> {
        let Some((copy, guard)) = slot.enter() else { return Err(LocalError::NotReady) };
        let request = call.make_request(session, copy.carried).ok_or(LocalError::BodyGone)?;
        let began = Instant::now();
        let stands_alone = call.upgrade.is_some() && call.on_upgrade.is_none();
        let outcome = if stands_alone {
            call_service_upgrading(copy.service.clone(), request, guard).await
        } else {
            call_service(copy.service.clone(), request, guard)
                .await
                .map(|response| (response, None))
        };
        let (mut response, upgrade) =
            outcome.map_err(|error| LocalError::Failed(error_chain(&*error)))?;
        slot.measured(began.elapsed());
        let field = response.headers_mut().remove(SESSION_FIELD).filter(|_| copy.carried);
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            fields::remove_hop_by_hop(response.headers_mut());
        }
        fields::remove_reserved(response.headers_mut());
        Ok(RanHere { response, upgrade, field })
    }

    /// Runs the app here for a session, around the session's own checks.
    pub(crate) async fn execute_here(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        key: &SessionKey,
        exec: &Exec,
    ) -> Result<(RanHere, ExecDone), LocalError> {
        if slot.state() != warmhop_core::view::AppState::Ready {
            return Err(LocalError::NotReady);
        }
        let base = self
            .store
            .with(key, true, |machine, ctx, _| machine.exec_begin(ctx, exec))
            .ok_or(LocalError::NotReady)?
            .map_err(LocalError::Refused)?;
        let policy = self.store.policy();
        let wall = Clock::wall();
        let expired = base.expiry.0 != 0 && base.expiry < wall;
        let state =
            base.state.clone().filter(|_| !expired).map(|state| Bytes::from_owner(ArcBytes(state)));
        let session = Session::new(state.clone(), policy.state_bytes_max);
        let mut ran = self.run_here(slot, call, Some(&session)).await?;
        let mut changed = session.close();
        if let Some(field) = ran.field.take() {
            let new = from_field(&field).ok_or_else(|| {
                LocalError::Failed(
                    "the app's Warmhop-Session field is no byte sequence (RFC 9651): expected :BASE64:"
                        .into(),
                )
            })?;
            if new.len() > policy.state_bytes_max {
                return Err(LocalError::Failed(format!(
                    "the app's session has {} bytes, but at most {} are kept",
                    new.len(),
                    policy.state_bytes_max
                )));
            }
            changed = Some(Some(new).filter(|new| !new.is_empty()));
        }
        // Used, so it lives on: an unchanged session whose time is half over is written anew.
        let half = u64::try_from(policy.ttl.as_millis()).unwrap_or(u64::MAX) / 2;
        if changed.is_none() && state.is_some() && base.expiry.0 < wall.0.saturating_add(half) {
            changed = Some(state);
        }
        let mut stored = Stored::Applied;
        if exec.keyed {
            let (response, kept) =
                hop::store_response(ran.response, policy.stored_response_bytes_max)
                    .await
                    .map_err(|error| LocalError::Failed(error_chain(&*error)))?;
            ran.response = response;
            stored = kept;
        }
        let changed = changed.map(|new| new.map(|bytes| Arc::<[u8]>::from(bytes.as_ref())));
        let done = self
            .store
            .with(key, true, |machine, ctx, _| machine.exec_end(ctx, exec, &base, changed, stored))
            .ok_or_else(|| LocalError::Failed("too many sessions on this peer".into()))?;
        Ok((ran, done))
    }

    /// Asks `to`, and notes what its reply tells.
    async fn ask(
        &self,
        slot: &Slot,
        to: &PeerId,
        call: &mut Call,
        kind: HopKind,
        tracing: &mut Tracing,
    ) -> Result<HopReply, HopError> {
        let Some(net) = self.net() else {
            return Err(HopError::Broken("this peer is still starting".into()));
        };
        let Some(request) = call.make_hop(slot.name(), kind) else {
            return Err(HopError::Broken("the request's body was sent before".into()));
        };
        // What may not be run twice is sent to a peer that has not been heard lately only once it
        // has said that it is there.
        let careful = !fields::is_safe(&call.method) && !self.heard_lately(to, slot.name());
        match hop::ask(net, to, request, careful).await {
            Ok(reply) => {
                self.note_load(to, slot.name(), reply.load);
                tracing.served_by(&reply.served_by);
                Ok(reply)
            }
            Err(HopError::Refused(why, load, body)) => {
                self.note_load(to, slot.name(), load);
                self.metrics.hops_refused.get_or_create(&ByReason { reason: why.label() }).inc();
                tracing.step("refused", format!("{to} said no: {}", why.label()));
                call.may_have_run |= matches!(why, HopRefusal::AppFailed { .. });
                if let Some(body) = body {
                    call.put_back(body);
                    return Err(HopError::Refused(why, load, None));
                }
                Err(HopError::Refused(why, load, None))
            }
            Err(HopError::Unreachable(error, body)) => {
                self.metrics.hops_failed.inc();
                tracing.step("unreachable", format!("{to} could not be reached: {error}"));
                call.put_back(body);
                Err(HopError::Unreachable(error, Body::empty()))
            }
            Err(HopError::Broken(error)) => {
                self.metrics.hops_failed.inc();
                tracing.step("broken", format!("the hop to {to} broke: {error}"));
                call.may_have_run = true;
                Err(HopError::Broken(error))
            }
        }
    }

    /// Serves a request without a session of the mesh's: `none` and `pinned`.
    pub(crate) async fn serve_plain(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        pinned: Option<&Entry>,
        tracing: &mut Tracing,
    ) -> Result<Served, Problem> {
        let is_pinned = slot.spec.policy.session == SessionMode::Pinned;
        let mut tried: Vec<PeerId> = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let pin = pinned.and_then(|entry| match &entry.kind {
                Kind::Pinned { peer, incarnation } => {
                    let view = self.view();
                    let lives = if *peer == self.me {
                        *incarnation == self.incarnation
                    } else {
                        view.by_incarnation(incarnation).is_some()
                    };
                    Some((peer, lives))
                }
                Kind::Portable { .. } => None,
            });
            let placing = Placing {
                slot,
                arrived: Arrived::AtFrontDoor,
                pin: pin.map(|(peer, lives)| PinTo {
                    peer,
                    here: *peer == self.me,
                    lives: lives && !tried.contains(peer),
                }),
                tried: &tried,
            };
            match self.place(&placing, tracing).await? {
                Place::Here => match self.run_here(slot, call, None).await {
                    Ok(ran) => {
                        tracing.served_by(self.me.as_str());
                        let mut served = Served::here(self, ran.response);
                        served.upgrade = ran.upgrade.map(Upgrade::Io);
                        served.entry = is_pinned
                            .then(|| self.pinned_entry(slot, &self.me, self.incarnation, pinned));
                        return Ok(served);
                    }
                    Err(LocalError::NotReady) => {}
                    Err(error) => {
                        return Err(app_failed(self.me.as_str(), &error));
                    }
                },
                Place::There(to) => {
                    match self.ask(slot, &to, call, HopKind::Plain, tracing).await {
                        Ok(reply) => {
                            let mut served = Served::here(self, reply.response);
                            served.served_by = reply.served_by;
                            served.upgrade =
                                reply.tunnel.map(|(writer, reader)| Upgrade::Hop(writer, reader));
                            served.entry = is_pinned
                                .then(|| self.pinned_entry(slot, &to, reply.executor, pinned));
                            served.next_hop = Some(to);
                            return Ok(served);
                        }
                        Err(error) => self.after_failed_hop(slot, call, &to, error, false)?,
                    }
                    tried.push(to);
                }
            }
        }
        Err(gave_up())
    }

    fn pinned_entry(
        &self,
        slot: &Slot,
        peer: &PeerId,
        incarnation: Incarnation,
        former: Option<&Entry>,
    ) -> Entry {
        let kind = Kind::Pinned { peer: peer.clone(), incarnation };
        let sid = match former {
            Some(entry) if entry.kind == kind => entry.sid,
            _ => SessionId(rand::random()),
        };
        let expiry = Clock::wall().after(self.store.policy().ttl);
        Entry { app: slot.name().clone(), sid, kind, expiry }
    }

    /// Whether the request may go elsewhere after a hop that brought no response; else what the
    /// client is told.
    fn after_failed_hop(
        &self,
        slot: &Slot,
        call: &Call,
        to: &PeerId,
        error: HopError,
        keyed: bool,
    ) -> Result<(), Problem> {
        let app_may_have_seen_it = match &error {
            HopError::Unreachable(..) => false,
            HopError::Refused(HopRefusal::AppFailed { .. }, ..) => true,
            HopError::Refused(..) => false,
            HopError::Broken(_) => true,
        };
        let portable = slot.spec.policy.session == SessionMode::Portable;
        let session_only = slot.spec.policy.effects == EffectsMode::SessionOnly;
        let again = may_retry(
            fields::is_safe(&call.method),
            keyed,
            session_only,
            portable,
            app_may_have_seen_it,
        );
        if again && call.is_sendable() {
            return Ok(());
        }
        Err(match error {
            HopError::Refused(HopRefusal::AppFailed { detail }, ..) => {
                app_failed(to.as_str(), &LocalError::Failed(detail))
            }
            HopError::Refused(why, ..) => Problem::new(
                StatusCode::BAD_GATEWAY,
                "hop-refused",
                format!("{to} refused the request ({}), and its body cannot be sent again", why.label()),
            )
            .proxy_error("destination_unavailable"),
            HopError::Unreachable(error, _) => Problem::new(
                StatusCode::BAD_GATEWAY,
                "hop-unreachable",
                format!("{to} could not be reached: {error}"),
            )
            .proxy_error("destination_unavailable"),
            HopError::Broken(error) => Problem::new(
                StatusCode::BAD_GATEWAY,
                "outcome-unknown",
                format!("the connection to {to} broke before its answer ({error}); whether the request was carried out is unknown"),
            )
            .proxy_error("connection_terminated"),
        })
    }
}

/// A portable request on its way through this peer.
#[derive(Clone, Copy)]
pub(crate) struct Portable<'a> {
    pub(crate) slot: &'a Arc<Slot>,
    pub(crate) rid: RequestKey,
    pub(crate) fingerprint: u64,
    pub(crate) keyed: bool,
    /// The number that the client's token named when the request arrived.
    pub(crate) seen: Option<u64>,
    pub(crate) arrived: Arrived,
    pub(crate) hops_left: u8,
}

/// Where the session of a request stands.
enum Stand {
    /// Drawn here, with this request.
    Fresh,
    Known {
        key: SessionKey,
        cfg: Config,
        owner: Incarnation,
        n: u64,
    },
}

/// How waiting in line for the session ended.
enum LineEnd {
    Served(Box<Served>),
    /// Someone else owns the session.
    Elsewhere(Option<Incarnation>),
    /// Nothing was, nor will be, applied under this session by this request.
    Failed(Failure),
    Problem(Problem),
}

impl Node {
    /// Serves a request of a portable session: at its owner, which this peer is, becomes, or
    /// forwards to.
    pub(crate) async fn serve_portable(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        entry: Option<&Entry>,
        tracing: &mut Tracing,
    ) -> Result<Served, Problem> {
        let slot = portable.slot;
        let mut stand = match entry {
            Some(Entry { sid, kind: Kind::Portable { cfg, owner, n }, .. }) => Stand::Known {
                key: SessionKey { app: slot.name().clone(), sid: *sid },
                cfg: cfg.clone(),
                owner: *owner,
                n: *n,
            },
            _ => Stand::Fresh,
        };
        let mut lost = false;
        let mut forked = false;
        let mut take_over = false;
        for round in 0..ROUNDS_MAX {
            // A request that this peer has just named cannot have been applied before; only after
            // an attempt of unknown outcome has that to be shown. A client's own key may be a
            // repeat from the start.
            let seen = portable.seen.filter(|_| portable.keyed || call.may_have_run);
            let portable = &Portable { seen, ..*portable };
            match &stand {
                Stand::Fresh => {
                    match self.begin_session(portable, call, tracing).await? {
                        LineEnd::Served(mut served) => {
                            served.session_lost = lost;
                            return Ok(*served);
                        }
                        LineEnd::Problem(problem) => return Err(problem),
                        // No token had left: another session is as good.
                        LineEnd::Elsewhere(_) => {}
                        LineEnd::Failed(failure)
                            if self.may_begin_anew(portable, call, &failure) => {}
                        LineEnd::Failed(failure) => return Err(self.session_problem(&failure)),
                    }
                    if !call.is_sendable() {
                        return Err(outcome_unknown("its session could not be begun"));
                    }
                }
                Stand::Known { key, cfg, owner, n } => {
                    tracing.session(key.to_string());
                    let (owns, known) = self
                        .store
                        .with(key, false, |machine, _, _| {
                            (machine.is_owner() || machine.is_taking_over(), machine.known_owner())
                        })
                        .unwrap_or((false, None));
                    let owner = known.unwrap_or(*owner);
                    let destination = if owns || take_over {
                        None
                    } else {
                        self.forward_to(key, owner, *n, tracing)
                    };
                    let end = match destination {
                        Some((to, moves)) if portable.hops_left > 0 => {
                            let forward = Forward {
                                sid: key.sid,
                                cfg: cfg.clone(),
                                owner,
                                n: *n,
                                rid: portable.rid,
                                fingerprint: portable.fingerprint,
                                keyed: portable.keyed,
                                seen: portable.seen,
                                hops_left: portable.hops_left.saturating_sub(1),
                                hand_over: moves.then_some(self.incarnation),
                            };
                            self.forward(portable, call, key, forward, &to, tracing).await
                        }
                        _ => {
                            if !owns {
                                tracing.step("take over", "this peer takes the session over");
                            }
                            self.at_owner(portable, call, key, Some(cfg), !owns, None, tracing)
                                .await
                        }
                    };
                    match end {
                        LineEnd::Served(mut served) => {
                            served.forked = forked;
                            return Ok(*served);
                        }
                        LineEnd::Problem(problem) => return Err(problem),
                        // Those who can still be reached may go on where they are allowed to.
                        LineEnd::Failed(
                            Failure::NoMajority { ran: false } | Failure::Lost { ran: false },
                        ) if !forked && self.fork(key, tracing).is_some() => {
                            forked = true;
                            if let Some(Some(new)) =
                                self.store.with(key, false, |machine, _, _| machine.fenced())
                            {
                                let key = SessionKey { app: key.app.clone(), sid: new };
                                let cfg = cfg.clone();
                                stand = Stand::Known { key, cfg, owner: self.incarnation, n: *n };
                            }
                        }
                        LineEnd::Elsewhere(other) => {
                            take_over = other.is_none_or(|other| !self.lives(other));
                            if let (Some(other), Stand::Known { owner, .. }) = (other, &mut stand) {
                                *owner = other;
                            }
                            // Two peers that both want the session give each other time.
                            let jitter = rand::random_range(0..20u64 << round.min(4));
                            tokio::time::sleep(Duration::from_millis(jitter)).await;
                        }
                        // Somebody who still held it went on without the others, under another id.
                        LineEnd::Failed(Failure::WentOn { into: sid, by })
                            if !forked && self.lives(by) =>
                        {
                            forked = true;
                            tracing.step("fork", format!("it goes on as {sid}"));
                            let key = SessionKey { app: key.app.clone(), sid };
                            let cfg = sessions::first_config(vec![by], Clock::wall());
                            stand = Stand::Known { key, cfg, owner: by, n: *n };
                            take_over = false;
                        }
                        LineEnd::Failed(Failure::Lost { ran: false } | Failure::WentOn { .. }) => {
                            if *n > 0 {
                                lost = true;
                                tracing.step("lost", "too many of the session's holders are gone");
                            }
                            stand = Stand::Fresh;
                        }
                        // Whoever owns the session knows whether this request was applied.
                        LineEnd::Failed(Failure::Deposed { to })
                            if self.may_begin_anew(portable, call, &Failure::Deposed { to }) =>
                        {
                            call.may_have_run = true;
                            if let (Some(to), Stand::Known { owner, .. }) = (to, &mut stand) {
                                *owner = to;
                            }
                        }
                        LineEnd::Failed(failure) => return Err(self.session_problem(&failure)),
                    }
                    if !call.is_sendable() {
                        return Err(outcome_unknown("the session's owner changed"));
                    }
                }
            }
        }
        Err(gave_up())
    }

    /// Whether a first request whose session came to nothing may be tried under another one.
    fn may_begin_anew(&self, portable: &Portable<'_>, call: &Call, failure: &Failure) -> bool {
        match failure {
            Failure::NoMajority { ran: false }
            | Failure::Lost { ran: false }
            | Failure::WentOn { .. } => true,
            Failure::NoMajority { ran: true }
            | Failure::Lost { ran: true }
            | Failure::Deposed { .. } => may_retry(
                fields::is_safe(&call.method),
                portable.keyed,
                portable.slot.spec.policy.effects == EffectsMode::SessionOnly,
                true,
                true,
            ),
            _ => false,
        }
    }

    /// Without a majority, goes on from this peer's own copy under a new session, where the policy
    /// says so or the session never had more than two members: then this copy holds every change
    /// that was acknowledged. The copy's vote under the old id is withdrawn first, which is to
    /// the others as if this peer had crashed.
    fn fork(&self, key: &SessionKey, tracing: &mut Tracing) -> Option<SessionKey> {
        let serves = self.store.policy().without_majority == WithoutMajority::Serve;
        let new = SessionKey { app: key.app.clone(), sid: SessionId(rand::random()) };
        let record = self.store.with(key, false, |machine, ctx, out| {
            let whole = machine.holds_everything(ctx.me);
            if (serves || whole) && machine.holds_copy() && machine.fenced().is_none() {
                machine.fence(ctx, new.sid, out)
            } else {
                None
            }
        })??;
        let view = self.view();
        let mut who = vec![self.incarnation];
        let live = view
            .live_peers()
            .filter(|(_, belief)| !belief.news.draining && belief.alive == Liveness::Alive);
        for peer in rank::session_ranks(&new.sid, live.map(|(peer, _)| peer)) {
            if who.len() >= self.store.policy().copies.clamp(1, 3) {
                break;
            }
            who.extend(view.peer(&peer).map(|belief| belief.news.incarnation));
        }
        let cfg = sessions::first_config(who, Clock::wall());
        self.store.with(&new, true, |machine, ctx, out| {
            machine.mint_from(ctx, cfg, record.body, out);
        })?;
        self.metrics.sessions_forked.inc();
        tracing::warn!(session = %key, as_session = %new, "forked: no majority of its holders is left");
        tracing.step("fork", format!("no majority is left: it goes on here as {new}"));
        Some(new)
    }

    fn lives(&self, incarnation: Incarnation) -> bool {
        incarnation == self.incarnation || self.view().by_incarnation(&incarnation).is_some()
    }

    /// The peer to send a request to whose session `owner` owns, and whether the session is to
    /// move here after it; `None` if it has to be taken over instead.
    fn forward_to(
        &self,
        key: &SessionKey,
        owner: Incarnation,
        n: u64,
        tracing: &mut Tracing,
    ) -> Option<(PeerId, bool)> {
        if owner == self.incarnation {
            return None;
        }
        let view = self.view();
        let Some(belief) = view.by_incarnation(&owner).filter(|b| b.alive == Liveness::Alive)
        else {
            tracing.step("owner", "the session's owner is gone or silent");
            return None;
        };
        let moves = if self.is_draining() {
            false
        } else if belief.news.draining {
            tracing.step("owner", "the session's owner is draining: the session moves here");
            true
        } else if self.store.should_move(key, n) {
            tracing.step("owner", "its client keeps arriving here: the session moves here");
            true
        } else {
            false
        };
        Some((belief.news.peer.clone(), moves))
    }

    /// Draws a session for a client that has none, and serves its first request.
    async fn begin_session(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        tracing: &mut Tracing,
    ) -> Result<LineEnd, Problem> {
        let placing =
            Placing { slot: portable.slot, arrived: portable.arrived, pin: None, tried: &[] };
        let place = self.place(&placing, tracing).await?;
        let view = self.view();
        let mut who = vec![self.incarnation];
        let executor = match &place {
            Place::Here => None,
            Place::There(peer) => view.peer(peer).map(|belief| belief.news.incarnation),
        };
        who.extend(executor);
        // The third member is found by its rank, so that any peer can find it without a token.
        let sid = SessionId(rand::random());
        let live = view
            .live_peers()
            .filter(|(_, belief)| !belief.news.draining && belief.alive == Liveness::Alive)
            .filter(|(_, belief)| !who.contains(&belief.news.incarnation));
        for peer in rank::session_ranks(&sid, live.map(|(peer, _)| peer)) {
            if who.len() >= self.store.policy().copies.clamp(1, 3) {
                break;
            }
            who.extend(view.peer(&peer).map(|belief| belief.news.incarnation));
        }
        let cfg = sessions::first_config(who, Clock::wall());
        let key = SessionKey { app: portable.slot.name().clone(), sid };
        tracing.session(key.to_string());
        Ok(self.at_owner(portable, call, &key, None, false, Some((place, cfg)), tracing).await)
    }

    /// Stands in line at this peer for the session: as its owner, or once it has taken over.
    #[expect(clippy::too_many_arguments, reason = "one call site for each of three situations")]
    async fn at_owner(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        key: &SessionKey,
        hint: Option<&Config>,
        take_over: bool,
        fresh: Option<(Place, Config)>,
        tracing: &mut Tracing,
    ) -> LineEnd {
        let (mut place, mint) = match fresh {
            Some((place, cfg)) => (Some(place), Some(cfg)),
            None => (None, None),
        };
        let safe = fields::is_safe(&call.method) && !portable.keyed;
        let submit = |ticket| Submit {
            ticket,
            rid: portable.rid,
            fingerprint: portable.fingerprint,
            keyed: portable.keyed,
            seen: portable.seen,
            safe,
        };
        let peers = if take_over { self.whom_to_ask(key) } else { Vec::new() };
        let line = self.store.enqueue(key, mint.is_some(), submit, |machine, ctx, out| {
            if let Some(cfg) = mint {
                machine.mint(ctx, cfg, out);
            } else if take_over && !machine.is_owner() && !machine.is_taking_over() {
                let round = machine.seen_round();
                machine.take_over(ctx, hint.cloned(), round, &peers, out);
            }
        });
        let Some(mut line) = line else { return LineEnd::Problem(too_many_sessions()) };
        // Set where an attempt came to nothing that may be made again.
        let mut again = false;
        let mut rounds = 0;
        let mut tried: Vec<PeerId> = Vec::new();
        let mut held: Option<Served> = None;
        loop {
            match line.next().await {
                Told::Turn => {
                    let placing = Placing {
                        slot: portable.slot,
                        arrived: portable.arrived,
                        pin: None,
                        tried: &tried,
                    };
                    let chosen = match place.take() {
                        Some(place) => place,
                        None => match self.place(&placing, tracing).await {
                            Ok(place) => place,
                            Err(problem) => return LineEnd::Problem(problem),
                        },
                    };
                    let executor = match &chosen {
                        Place::Here => Some(self.incarnation),
                        Place::There(peer) => {
                            self.view().peer(peer).map(|belief| belief.news.incarnation)
                        }
                    };
                    match executor {
                        Some(executor) => line.begin(executor),
                        // It vanished between two lines: choose anew.
                        None => return LineEnd::Elsewhere(Some(self.incarnation)),
                    }
                }
                Told::Again => held = None,
                Told::Execute { executor, exec } => {
                    let ran = if executor == self.incarnation {
                        self.execute_for_line(portable.slot, call, &mut line, &exec, tracing).await
                    } else {
                        self.execute_there(
                            portable, call, &mut line, executor, exec, &mut tried, tracing,
                        )
                        .await
                    };
                    match ran {
                        Ok(Some(served)) => held = Some(served),
                        Ok(None) => again = true,
                        Err(problem) => return LineEnd::Problem(problem),
                    }
                }
                Told::Fail(Failure::ExecutionFailed) if again && call.is_sendable() => {
                    again = false;
                    rounds += 1;
                    if rounds > ROUNDS_MAX {
                        return LineEnd::Problem(gave_up());
                    }
                    match self.store.enqueue(key, false, submit, |_, _, _| ()) {
                        Some(anew) => line = anew,
                        None => return LineEnd::Problem(too_many_sessions()),
                    }
                }
                Told::Release { hint } => {
                    let Some(mut served) = held.take() else { continue };
                    served.entry = Some(self.portable_entry(key, &hint_of(hint)));
                    return LineEnd::Served(Box::new(served));
                }
                Told::Replay { stored, hint } => {
                    tracing.step("replay", "this request was applied before");
                    return match replayed(self, &stored) {
                        Ok(mut served) => {
                            served.entry = Some(self.portable_entry(key, &hint_of(hint)));
                            LineEnd::Served(Box::new(served))
                        }
                        Err(problem) => LineEnd::Problem(problem),
                    };
                }
                Told::Fail(failure) => {
                    tracing.step("session", sessions::describe(&failure).2);
                    return LineEnd::Failed(failure);
                }
                Told::Redirect(to) => return LineEnd::Elsewhere(to),
            }
        }
    }

    async fn execute_for_line(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        line: &mut InLine,
        exec: &Exec,
        tracing: &mut Tracing,
    ) -> Result<Option<Served>, Problem> {
        let key = line.key.clone();
        let execution = self.execute_here(slot, call, &key, exec);
        let (ran, ()) = join(execution, async { line.send_held_back() }).await;
        match ran {
            Ok((ran, done)) => {
                tracing.served_by(self.me.as_str());
                let mut served = Served::here(self, ran.response);
                served.upgrade = ran.upgrade.map(Upgrade::Io);
                line.executed(Outcome::from(done));
                Ok(Some(served))
            }
            // The app went away before it saw the request: the next turn routes anew.
            Err(LocalError::NotReady) => {
                line.executed(Outcome::Failed);
                Ok(None)
            }
            Err(LocalError::Refused(done)) => {
                line.executed(Outcome::from(done));
                Ok(None)
            }
            Err(error) => {
                line.executed(Outcome::Failed);
                Err(app_failed(self.me.as_str(), &error))
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one caller, and each is borrowed differently")]
    async fn execute_there(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        line: &mut InLine,
        executor: Incarnation,
        exec: Exec,
        tried: &mut Vec<PeerId>,
        tracing: &mut Tracing,
    ) -> Result<Option<Served>, Problem> {
        let slot = portable.slot;
        let to = self.view().by_incarnation(&executor).map(|belief| belief.news.peer.clone());
        let Some(to) = to else {
            line.executed(Outcome::Failed);
            return Ok(None);
        };
        line.send_held_back();
        let kind = HopKind::Exec { sid: line.key.sid, exec };
        match self.ask(slot, &to, call, kind, tracing).await {
            Ok(HopReply {
                response, session: ReplySession::Done(done), served_by, tunnel, ..
            }) => {
                line.executed(Outcome::from(done));
                let mut served = Served::here(self, response);
                served.served_by = served_by;
                served.next_hop = Some(to);
                served.upgrade = tunnel.map(|(writer, reader)| Upgrade::Hop(writer, reader));
                Ok(Some(served))
            }
            Ok(_) => {
                line.executed(Outcome::Failed);
                Err(outcome_unknown("the executing peer's reply was out of form"))
            }
            Err(HopError::Refused(HopRefusal::Exec(done), ..)) => {
                line.executed(Outcome::from(done));
                Ok(None)
            }
            Err(error) => {
                line.executed(Outcome::Failed);
                self.after_failed_hop(slot, call, &to, error, portable.keyed)?;
                tried.push(to);
                Ok(None)
            }
        }
    }

    /// Sends the request to the session's owner.
    async fn forward(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        key: &SessionKey,
        forward: Forward,
        to: &PeerId,
        tracing: &mut Tracing,
    ) -> LineEnd {
        tracing.step("forward", format!("{to} owns the session"));
        match self.ask(portable.slot, to, call, HopKind::Forward(forward), tracing).await {
            Ok(reply) => {
                let mut served = Served::here(self, reply.response);
                served.served_by = reply.served_by;
                served.next_hop = Some(to.clone());
                served.upgrade = reply.tunnel.map(|(writer, reader)| Upgrade::Hop(writer, reader));
                if let ReplySession::Committed { hint, replayed } = reply.session {
                    served.replayed = replayed;
                    self.store.gave(key, hint.n);
                    served.entry = Some(self.portable_entry(key, &hint));
                }
                LineEnd::Served(Box::new(served))
            }
            Err(HopError::Refused(HopRefusal::NotOwner { promised, .. }, ..)) => {
                LineEnd::Elsewhere(promised.map(|ballot: Ballot| ballot.proposer))
            }
            Err(HopError::Refused(
                HopRefusal::Problem { status, name, detail, retry_after_ms },
                ..,
            )) => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
                let name = known_problem(&name);
                let mut problem = Problem::new(status, name, detail);
                problem.retry_after = retry_after_ms.map(Duration::from_millis);
                if status.is_server_error() {
                    problem = problem.proxy_error("destination_unavailable");
                }
                LineEnd::Problem(problem)
            }
            Err(error) => {
                match self.after_failed_hop(portable.slot, call, to, error, portable.keyed) {
                    // The owner is not reached: whoever is asked next takes over.
                    Ok(()) => LineEnd::Elsewhere(None),
                    Err(problem) => LineEnd::Problem(problem),
                }
            }
        }
    }

    fn portable_entry(&self, key: &SessionKey, hint: &Hint) -> Entry {
        Entry {
            app: key.app.clone(),
            sid: key.sid,
            kind: Kind::Portable { cfg: hint.cfg.clone(), owner: hint.owner, n: hint.n },
            expiry: Clock::wall().after(self.store.policy().ttl),
        }
    }

    /// What a client is told of a session that could not be used.
    fn session_problem(&self, failure: &Failure) -> Problem {
        self.metrics.session_refusals.get_or_create(&sessions::refusal_label(failure)).inc();
        let (name, status, detail) = sessions::describe(failure);
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        let problem = Problem::new(status, name, detail);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            problem.proxy_error("destination_unavailable").retry_after(Duration::from_secs(1))
        } else if status.is_server_error() {
            problem.proxy_error("connection_terminated")
        } else {
            problem
        }
    }

    /// Serves a request that another peer forwarded because this one owns, or should own, its
    /// session.
    pub(crate) async fn serve_forwarded(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        forward: &Forward,
        tracing: &mut Tracing,
    ) -> Result<Served, HopRefusal> {
        let key = SessionKey { app: slot.name().clone(), sid: forward.sid };
        tracing.session(key.to_string());
        let (owns, promised, known_cfg) = self
            .store
            .with(&key, false, |machine, _, _| {
                (
                    machine.is_owner() || machine.is_taking_over(),
                    machine.promised(),
                    machine.config().cloned(),
                )
            })
            .unwrap_or((false, None, None));
        // The token may name this very process although it keeps nothing: then the session held
        // nothing, or it has to be read back from the other members.
        let named = forward.owner == self.incarnation;
        let elsewhere = promised.is_some_and(|ballot| ballot.proposer != self.incarnation);
        if !owns && (!named || elsewhere) {
            return Err(HopRefusal::NotOwner { promised, cfg: known_cfg });
        }
        let portable = Portable {
            slot,
            rid: forward.rid,
            fingerprint: forward.fingerprint,
            keyed: forward.keyed,
            seen: forward.seen,
            arrived: Arrived::AtFrontDoor,
            hops_left: forward.hops_left,
        };
        let end =
            self.at_owner(&portable, call, &key, Some(&forward.cfg), !owns, None, tracing).await;
        if let Some(to) = forward.hand_over {
            self.store.with(&key, false, |machine, ctx, out| machine.hand_over(ctx, to, out));
        }
        match end {
            LineEnd::Served(served) => Ok(*served),
            LineEnd::Elsewhere(_) => {
                let promised = self.store.with(&key, false, |machine, _, _| machine.promised());
                Err(HopRefusal::NotOwner { promised: promised.flatten(), cfg: known_cfg })
            }
            LineEnd::Failed(Failure::Lost { ran: false } | Failure::WentOn { .. }) => {
                Err(HopRefusal::NotOwner { promised: None, cfg: known_cfg })
            }
            LineEnd::Failed(failure) => Err(as_refusal(&self.session_problem(&failure))),
            LineEnd::Problem(problem) => Err(as_refusal(&problem)),
        }
    }
}

/// Keeps the bytes of a session's state alive without copying them.
struct ArcBytes(Arc<[u8]>);

impl AsRef<[u8]> for ArcBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn hint_of(hint: TokenHint) -> Hint {
    Hint { cfg: hint.cfg, owner: hint.owner, n: hint.n }
}

fn replayed(node: &Node, stored: &Stored) -> Result<Served, Problem> {
    match stored {
        Stored::Response(bytes) => match hop::restore_response(bytes) {
            Some(response) => {
                let mut served = Served::here(node, response);
                served.replayed = true;
                Ok(served)
            }
            None => Err(outcome_unknown("the stored answer cannot be read")),
        },
        Stored::TooLarge => Err(Problem::new(
            StatusCode::CONFLICT,
            "applied-too-large-to-repeat",
            "this request was applied before; its answer was too large to be kept",
        )),
        Stored::Applied => Err(Problem::new(
            StatusCode::BAD_GATEWAY,
            "applied-answer-lost",
            "the request was applied, but its answer was lost on the way; do not repeat it",
        )
        .proxy_error("connection_terminated")),
    }
}

pub(crate) fn as_refusal(problem: &Problem) -> HopRefusal {
    HopRefusal::Problem {
        status: problem.status.as_u16(),
        name: problem.name.to_owned(),
        detail: problem.detail.clone(),
        retry_after_ms: problem
            .retry_after
            .map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// The names of problems are the project's own; one from a newer peer is told by its detail.
fn known_problem(name: &str) -> &'static str {
    const KNOWN: [&str; 12] = [
        "session-queue-full",
        "session-no-majority",
        "outcome-unknown",
        "idempotency-key-reused",
        "idempotency-key-in-use",
        "session-lost",
        "session-no-executor",
        "execution-failed",
        "app-failed",
        "applied-answer-lost",
        "applied-too-large-to-repeat",
        "no-progress",
    ];
    KNOWN.iter().copied().find(|known| *known == name).unwrap_or("at-owner")
}

fn too_many_sessions() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "too-many-sessions",
        "this peer holds as many sessions as it may",
    )
    .proxy_error("destination_unavailable")
    .retry_after(Duration::from_secs(5))
}

pub(crate) fn app_failed(peer: &str, error: &LocalError) -> Problem {
    let detail = match error {
        LocalError::Failed(detail) => format!("the app on {peer} failed to answer: {detail}"),
        LocalError::NotReady => format!("the app on {peer} is not ready"),
        LocalError::Refused(_) => format!("the session was refused on {peer}"),
        LocalError::BodyGone => "the request's body cannot be sent again".into(),
    };
    Problem::new(StatusCode::BAD_GATEWAY, "app-failed", detail).proxy_error("connection_terminated")
}

fn outcome_unknown(why: &str) -> Problem {
    Problem::new(
        StatusCode::BAD_GATEWAY,
        "outcome-unknown",
        format!("{why}; whether the request was carried out is unknown"),
    )
    .proxy_error("connection_terminated")
}

fn gave_up() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no-progress",
        "no peer could take the request after several tries",
    )
    .proxy_error("destination_unavailable")
    .retry_after(Duration::from_secs(1))
}

fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
