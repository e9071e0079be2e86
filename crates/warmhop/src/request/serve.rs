//! Carries out a request: on an app here, or by a hop. Requests of portable sessions, which must be
//! committed before the response leaves, are in `portable.rs` and `in_line.rs`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::{Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tower::Service;
use warmhop_core::affinity::{Entry, Kind};
use warmhop_core::config::SessionMode;
use warmhop_core::ids::{Incarnation, PeerId, SessionId};
use warmhop_core::problem::ProblemKind;
use warmhop_core::route::{Arrived, Attempted, PinTo, may_retry};
use warmhop_core::session::repair::may_count_on;
use warmhop_core::view::{AppState, Liveness};

use crate::app::loads::ServedThere;
use crate::app::session::Session;
use crate::app::slot::{Copy, InFlight, Slot};
use crate::app::{AppService, NotSent};
use crate::hop::{self, HopError, HopKind, HopRefusal, HopReply, HopRequest, OfVersion};
use crate::http::about::About;
use crate::http::body::{Body, BoxError};
use crate::http::fields;
use crate::http::refusals::ByReason;
use crate::http::tunnels::Tunnels;
use crate::http::upload::answers_within;
use crate::observe::metrics::ByPeer;
use crate::observe::passage::Passage;
use crate::observe::recall::Tracing;
use crate::observe::trace::{ActiveSpan, SpanKind};
use crate::request::call::Call;
use crate::request::carried::{self, SentHead};
use crate::request::failed_at::FailedAt;
use crate::request::local_error::{LocalError, app_failed, error_chain};
use crate::request::node::{Node, Place, Placing};
use crate::request::problem::{Problem, gave_up, outcome_unknown, too_slow};
use crate::request::served::{FAILURES_MAX, RanHere, Served, Upgrade};
use crate::request::whose::{counted_as, name_client, note_refusal};

/// How often a request may be placed again before it is refused.
const ROUNDS_MAX: u32 = 8;

/// Runs a service, connecting the two sides of an upgrade where the service answers with its own.
/// What passes between them is counted by `passage`, if there is one, and the answer brings that along.
pub(crate) async fn call_service(
    service: AppService,
    request: http::Request<Body>,
    guard: InFlight,
    tunnels: &Tunnels,
    passage: Option<Arc<Passage>>,
) -> Result<Response<Body>, BoxError> {
    let client_side = request.extensions().get::<OnUpgrade>().cloned();
    let answering = {
        let mut service = service;
        std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
        service.call(request)
    };
    let mut response = answering.await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let app_side = response.extensions_mut().remove::<OnUpgrade>();
        if let (Some(client_side), Some(app_side)) = (client_side, app_side) {
            let farewell = tunnels.farewell(response.headers().get(http::header::UPGRADE));
            let farewell = farewell.with_copy(guard.tunnels());
            if let Some(passage) = &passage {
                response.extensions_mut().insert(Arc::clone(passage));
            }
            tunnels.open.spawn(async move {
                let _counted = guard;
                let (Ok(client), Ok(app)) = tokio::join!(client_side, app_side) else { return };
                let (client, app) = (TokioIo::new(client), TokioIo::new(app));
                match passage {
                    Some(passage) => hop::join(passage.of(client), app, farewell).await,
                    None => hop::join(client, app, farewell).await,
                }
            });
        }
        return Ok(response);
    }
    Ok(response.map(|body| body.guarded(guard)))
}

/// Runs a service for a request that asks for an upgrade and came without a connection of its own:
/// an in-memory connection replaces it.
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
                    // The holder of the other end of the in-memory connection sends the close.
                    call_service(service, inner, guard, &Tunnels::default(), None)
                        .await
                        .map_err(std::io::Error::other)
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

impl Node {
    /// Runs the app here.
    pub(crate) async fn run_here(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        session: Option<&Session>,
    ) -> Result<RanHere, LocalError> {
        let (copy, guard) = call.enters(slot)?;
        let field = if copy.carried { session.and_then(carried::field_of) } else { None };
        let head = SentHead::of(&call.fields, field.as_ref());
        // A span is named in the fields of a copy.
        let lends = copy.whole.as_deref().filter(|_| !self.spans.is_traced(&call.fields));
        let lends = lends.filter(|app| call.lent(field.as_ref()).is_some_and(|it| app.takes(&it)));
        let mut request = None;
        if lends.is_none() {
            let session = session.filter(|_| !copy.carried);
            request = Some(call.make_request(session, field.as_ref()).ok_or(LocalError::BodyGone)?);
        }
        let mut span = request.as_mut().and_then(|request| self.span_of_run(slot, request));
        // Read first: the policy's guard would be held for as long as the app takes, and only a few
        // such guards may be held at a time before new ones become expensive.
        let head_timeout = slot.spec().policy.head_timeout;
        let upload = head_timeout.and_then(|_| call.watch_upload(request.as_mut()?));
        let upgrades = (call.upgrade.is_some(), call.on_upgrade.is_some());
        let began = tokio::time::Instant::now();
        let awaiting = copy.awaits();
        let outcome = {
            let call = &*call;
            let lent = lends.and_then(|app| Some(app.answer(call.lent(field.as_ref())?)));
            // Each is pinned in place: moving it would take its room twice.
            let answering = std::pin::pin!(async {
                match (lent, request) {
                    (Some(lent), _) => {
                        lent.await.map(|response| (response.map(|it| it.guarded(guard)), None))
                    }
                    // Boxed, since its future is larger.
                    (None, Some(request)) => {
                        Box::pin(self.call_copy(slot, &copy, request, upgrades, guard)).await
                    }
                    (None, None) => Err("there is no request".into()),
                }
            });
            let mut answering = std::pin::pin!(async {
                tokio::select! {
                    biased;
                    outcome = answering => outcome,
                    () = copy.given_up() => Err("it hung, and was given up".into()),
                }
            });
            match head_timeout {
                None => Some(answering.as_mut().await),
                // Boxed, since it is rare: the future of every request would be as large.
                Some(within) => Box::pin(answers_within(answering.as_mut(), within, upload)).await,
            }
        };
        let Some(outcome) = outcome else {
            copy.failed_in_a_row.fetch_add(1, Ordering::Relaxed);
            call.fails_at(FailedAt::Here(copy.attempt));
            return Err(LocalError::TooSlow(format!(
                "not within {:?}",
                head_timeout.unwrap_or_default()
            )));
        };
        drop(awaiting);
        if let Some(span) = &mut span {
            match &outcome {
                Ok((response, _)) => span.status(response.status().as_u16()),
                Err(error) => span.failed("app-failed", error_chain(&**error)),
            }
        }
        let answered = match outcome {
            Ok(answered) => answered,
            Err(error) => {
                let error = failed_here(slot, &copy, &*error);
                // A copy that got none of it may be asked again.
                if !matches!(error, LocalError::NotReady) {
                    call.fails_at(FailedAt::Here(copy.attempt));
                }
                return Err(error);
            }
        };
        let answered_at = tokio::time::Instant::now();
        copy.answers(self.clock.at(answered_at));
        slot.measured(answered_at.saturating_duration_since(began));
        self.taken(slot, &copy, call, answered, head)
    }

    /// Has the service of a copy answer a request of its own, which asks for an upgrade or not, and comes
    /// with a connection for that or not.
    async fn call_copy(
        &self,
        slot: &Slot,
        copy: &Copy,
        request: http::Request<Body>,
        (is_asked, has_own): (bool, bool),
        guard: InFlight,
    ) -> Result<(Response<Body>, Option<Upgraded>), BoxError> {
        let service = copy.service.clone();
        if is_asked && !has_own {
            return call_service_upgrading(service, request, guard).await;
        }
        let passes = || Passage::new(Arc::clone(slot.counts.traffic(&self.metrics, slot.name())));
        let passage = has_own.then(passes);
        let response = call_service(service, request, guard, &self.tunnels, passage).await?;
        Ok((response, None))
    }

    /// The span of a request to an app, which is sent to the app as its parent.
    fn span_of_run(&self, slot: &Slot, request: &mut http::Request<Body>) -> Option<ActiveSpan> {
        let method = request.method().clone();
        let mut span =
            self.spans.within(request.headers_mut(), SpanKind::Client, || method.to_string());
        if let Some(span) = &mut span {
            span.set("http.request.method", request.method().as_str());
            span.set("url.path", request.uri().path());
            span.set("server.address", slot.name().as_str());
            span.set("warmhop.app", slot.name().as_str());
        }
        span
    }

    /// An app's answer, without the fields of the mesh's own. `head` is that of the request.
    fn taken(
        &self,
        slot: &Arc<Slot>,
        copy: &Copy,
        call: &Call,
        (mut response, upgrade): (Response<Body>, Option<Upgraded>),
        head: SentHead,
    ) -> Result<RanHere, LocalError> {
        let status = response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS && call.upgrade.is_none() {
            let detail = "it switched protocols, which it was not asked to";
            return Err(LocalError::Failed(detail.into()));
        }
        if let Some(problem) = self.field_refused(slot, copy, &response, head) {
            return Err(LocalError::Problem(Box::new(problem)));
        }
        match &copy.version {
            Some(version) => _ = response.extensions_mut().insert(OfVersion(version.clone())),
            None => _ = response.extensions_mut().remove::<OfVersion>(),
        }
        let headers = response.headers_mut();
        let about = About::of(headers);
        let mut field = None;
        if about.has(About::OURS) {
            field = carried::take(headers).filter(|_| copy.carried);
            fields::remove_reserved(headers);
        }
        fields::mend_framing(status, headers);
        if about.has(About::CONNECTION) && status != StatusCode::SWITCHING_PROTOCOLS {
            fields::remove_hop_by_hop(headers);
        }
        if about.has(About::SET_COOKIE) {
            fields::remove_our_cookie(headers, &self.store.policy().cookie);
        }
        let upgrade = upgrade.map(|io| Box::new(Upgrade::Io(io, copy.tunnels.clone())));
        Ok(RanHere { response, upgrade, field })
    }

    /// Asks `to`, and notes the information in its reply.
    pub(crate) async fn ask(
        &self,
        slot: &Arc<Slot>,
        to: &PeerId,
        call: &mut Call,
        kind: HopKind,
        tracing: &mut Tracing,
    ) -> Result<HopReply, HopError> {
        let label = kind.label();
        // An owner may have it run elsewhere.
        let runs_there = !matches!(kind, HopKind::Forward(_) | HopKind::Onward { .. });
        let flow = call.waits.flow;
        let whose = counted_as(flow, slot);
        let served_there =
            runs_there.then(|| ServedThere::new(&slot.loads, &slot.places, to, whose));
        call.waits.over();
        let turn = self.turn_there(slot, call).filter(|_| runs_there);
        let counts_on = if runs_there { self.counts_on(slot, to, call) } else { None };
        let Some(mut request) = call.make_hop(slot, kind, counts_on) else {
            return Err(HopError::Broken("the request's body was sent before".into()));
        };
        let mut span = self.span_of_hop(call, &mut request);
        if let Some(span) = &mut span {
            span.set("http.request.method", call.method.as_str());
            span.set("server.address", to.as_str());
            span.set("warmhop.app", slot.name().as_str());
            span.set("warmhop.peer.to", to.as_str());
            span.set("warmhop.hop", label);
        }
        name_client(flow, slot, turn, &mut request);
        self.metrics.hops_sent.get_or_create(&ByPeer { peer: to.clone() }).inc();
        tracing.sent_to(to);
        // A request that may not run twice is sent to a peer that has not been heard lately only
        // after that peer has answered that it is there, and one that may wait there after it has a
        // place: until then it can go elsewhere.
        let careful =
            turn.is_some() || !fields::is_safe(&call.method) && !self.heard_lately(slot, to);
        let began = Instant::now();
        let outcome = hop::ask(&self.net, to, request, careful).await;
        if let Some(span) = span {
            end_span(span, &outcome);
        }
        match outcome {
            Ok(mut reply) => {
                match &mut reply.tunnel {
                    Some(tunnel) => tunnel.served_there = Some(Box::new(served_there)),
                    None => reply.response = reply.response.map(|body| body.guarded(served_there)),
                }
                slot.loads.note(to, reply.load, self.clock.now());
                if reply.served_by == to.as_str() {
                    tracing.served_by(to);
                } else if let Ok(other) = PeerId::new(&reply.served_by) {
                    tracing.served_by(&other);
                }
                Ok(reply)
            }
            Err(HopError::Refused(why, load, body)) => {
                if let Some(served_there) = served_there {
                    served_there.refused();
                }
                slot.loads.note(to, load, self.clock.now());
                self.metrics.hops_refused.get_or_create(&ByReason { reason: why.label() }).inc();
                tracing.step("refused", format!("{to} said no: {}", why.label()));
                self.learns_version(slot, to, &why);
                note_refusal(&mut call.waits, slot, to, &why, load);
                if let (Some(turn), HopRefusal::Busy) = (turn, &why) {
                    call.waits.waited_in_vain(to, began.elapsed(), turn);
                }
                if matches!(why, HopRefusal::AppFailed { .. } | HopRefusal::TooSlow { .. }) {
                    call.may_have_run = true;
                    call.fails_at(FailedAt::There(to.clone()));
                }
                if let Some(body) = body {
                    call.put_back(body);
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

    /// The span of a hop, which is sent to the asked peer as its parent.
    fn span_of_hop(&self, call: &Call, request: &mut HopRequest) -> Option<ActiveSpan> {
        if !self.spans.is_traced(&call.fields) {
            return None;
        }
        let mut fields = call.fields.clone();
        let span = self.spans.within(&mut fields, SpanKind::Client, || "hop".into())?;
        request.head.fields = hop::request_fields(&fields, call.interim.as_ref());
        Some(span)
    }

    /// Where a request without a session of the mesh's goes next; to nobody if that is another copy than the
    /// one that holds its session, and has to be recorded first.
    async fn place_plain(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        pinned: Option<&Entry>,
        tried: &[PeerId],
        failed: Option<&Problem>,
        tracing: &mut Tracing,
    ) -> Result<Place, Problem> {
        let placing = Placing {
            slot,
            arrived: Arrived::AtFrontDoor,
            pin: pinned.and_then(|entry| self.pin_of(entry, tried)),
            tried,
            failed,
            shun_here: call.failed_here(slot),
            version: pinned.and_then(|entry| entry.version.as_ref()),
        };
        let (waits, failed_at) = (&mut call.waits, &mut call.failed_at);
        let place = self.place_anew(&placing, waits, failed_at, tracing).await?;
        let left = pinned.filter(|_| call.moves_first).and_then(|it| self.left_by(&place, it));
        if left.is_some() {
            call.lost = left;
            return Err(failed.cloned().unwrap_or_else(gave_up));
        }
        Ok(place)
    }

    /// Serves a request without a session of the mesh's: `none` and `pinned`.
    pub(crate) async fn serve_plain(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        pinned: Option<&Entry>,
        tracing: &mut Tracing,
    ) -> Result<Served, Problem> {
        let is_pinned = slot.spec().policy.session == SessionMode::Pinned;
        let mut tried: Vec<PeerId> = Vec::new();
        let mut failed = None;
        let mut went_round = false;
        let mut rounds = 0;
        while rounds < ROUNDS_MAX {
            let placed = self.place_plain(slot, call, pinned, &tried, failed.as_ref(), tracing);
            match placed.await? {
                Place::Here => match self.run_here(slot, call, None).await {
                    Ok(ran) => {
                        tracing.served_by(&self.me);
                        let mut served = Served::here(self, ran.response);
                        served.upgrade = ran.upgrade;
                        served.entry = is_pinned
                            .then(|| self.pinned_entry(slot, &self.me, self.incarnation, pinned));
                        return Ok(served);
                    }
                    // The time that it waits for a place is bounded.
                    Err(LocalError::Busy) if call.is_sendable() => continue,
                    Err(LocalError::NotReady) if call.is_sendable() => {}
                    Err(error) => {
                        failed = self.after_failed_run(slot, call, error)?;
                    }
                },
                Place::There(to) => {
                    let holder = pinned.and_then(|entry| holder_at(entry, &to));
                    let way = holder.and_then(|holder| self.way_round(holder, went_round));
                    let kind = match (holder, &way) {
                        (Some(to), Some(_)) => HopKind::Onward { to },
                        _ => HopKind::Plain,
                    };
                    let next = way.as_ref().unwrap_or(&to);
                    // Boxed, since it is rare here: the future of a request that is served here
                    // moves with each of them.
                    match Box::pin(self.ask(slot, next, call, kind, tracing)).await {
                        Ok(reply) => {
                            let by = holder.filter(|_| way.is_some()).unwrap_or(reply.executor);
                            let mut served = Served::replied(self, reply);
                            served.entry =
                                is_pinned.then(|| self.pinned_entry(slot, &to, by, pinned));
                            served.next_hop = Some(way.unwrap_or(to));
                            return Ok(served);
                        }
                        // The load in its reply shows that it need not be asked again soon.
                        Err(HopError::Refused(HopRefusal::Busy, ..)) if call.is_sendable() => {
                            continue;
                        }
                        // Its version is known now.
                        Err(HopError::Refused(HopRefusal::Older(_), ..))
                            if call.is_sendable() && self.counts_on(slot, &to, call).is_none() =>
                        {
                            rounds += 1;
                            continue;
                        }
                        Err(error) => {
                            // The link broke: another peer may hear the copy that holds the
                            // session.
                            let broke = !matches!(error, HopError::Refused(..)) && holder.is_some();
                            failed = self.after_failed_hop(slot, call, &to, error, false)?;
                            if !broke || std::mem::replace(&mut went_round, true) {
                                if call.moves_first && holder.is_some() {
                                    call.lost = Some(to);
                                    return Err(failed.unwrap_or_else(gave_up));
                                }
                                tried.push(to);
                            }
                        }
                    }
                }
            }
            rounds += 1;
        }
        Err(gave_up())
    }

    /// The peer that holds the pinned session, if a request of it is placed at another.
    fn left_by(&self, place: &Place, entry: &Entry) -> Option<PeerId> {
        let Kind::Pinned { peer, .. } = &entry.kind else { return None };
        let is_there = match place {
            Place::Here => *peer == self.me,
            Place::There(to) => peer == to,
        };
        (!is_there).then(|| peer.clone())
    }

    /// The peer through which to forward if the target is suspect here, or if the link to it just
    /// broke: a peer that hears the target, or that may hear it if no peer has reported yet.
    fn way_round(&self, to: Incarnation, broke: bool) -> Option<PeerId> {
        let view = self.view();
        let belief = view.by_incarnation(&to)?;
        if !broke && belief.alive != Liveness::Suspect {
            return None;
        }
        let reported = view.ways_to(&to).next().map(|(way, _)| way.clone());
        reported.or_else(|| {
            let others = view.live_peers().filter(|(peer, _)| **peer != belief.news.peer);
            let mut heard = others.filter(|(_, belief)| may_count_on(belief));
            heard.next().map(|(peer, _)| peer.clone())
        })
    }

    /// The peer with this life, if this peer hears it.
    pub(crate) fn heard_peer(&self, life: &Incarnation) -> Option<PeerId> {
        let view = self.view();
        let heard = view.by_incarnation(life).filter(|it| it.alive == Liveness::Alive)?;
        Some(heard.news.peer.clone())
    }

    /// Forwards a request to the copy that holds its session, for a peer that does not hear that
    /// copy.
    pub(crate) async fn send_onward(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        to: PeerId,
        tracing: &mut Tracing,
    ) -> Result<Served, HopRefusal> {
        match self.ask(slot, &to, call, HopKind::Plain, tracing).await {
            Ok(reply) => {
                let mut served = Served::replied(self, reply);
                served.next_hop = Some(to);
                Ok(served)
            }
            Err(HopError::Refused(why, ..)) => Err(why),
            Err(HopError::Unreachable(..)) => Err(HopRefusal::NotReady),
            Err(HopError::Broken(detail)) => {
                Err(HopRefusal::AppFailed { detail: format!("the hop to {to} broke: {detail}") })
            }
        }
    }

    /// Where a pinned session is, and whether that peer is alive and has not refused.
    fn pin_of<'e>(&self, entry: &'e Entry, tried: &[PeerId]) -> Option<PinTo<'e>> {
        let Kind::Pinned { peer, incarnation } = &entry.kind else { return None };
        let here = *peer == self.me;
        let lives = if here {
            *incarnation == self.incarnation
        } else {
            self.view().by_incarnation(incarnation).is_some()
        };
        Some(PinTo { peer, here, lives: lives && !tried.contains(peer) })
    }

    /// Whether the request may go elsewhere after the app here failed on it; otherwise the client's
    /// problem is the error. The returned problem is for the client if no other copy is ready.
    fn after_failed_run(
        &self,
        slot: &Slot,
        call: &mut Call,
        error: LocalError,
    ) -> Result<Option<Problem>, Problem> {
        if let LocalError::TooSlow(detail) = &error {
            let problem = too_slow(self.me.as_str(), detail);
            if !fields::is_safe(&call.method) || !call.is_sendable() {
                return Err(problem);
            }
            call.may_have_run = true;
            // Only once: a request that is slow here may be slow everywhere.
            if call.failures >= FAILURES_MAX {
                return Err(problem);
            }
            // A copy that was ended is replaced, and the request waits for the next.
            return Ok((slot.state() == AppState::Ready).then_some(problem));
        }
        let problem = app_failed(self.me.as_str(), &error);
        if !matches!(error, LocalError::Failed(_)) || !call.may_go_to_another() {
            return Err(problem);
        }
        call.may_have_run = true;
        Ok(Some(problem))
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
        let expiry = self.clock.wall().after(self.store.policy().ttl);
        Entry { app: slot.name().clone(), sid, kind, expiry, version: None }
    }

    /// Whether the request may go elsewhere after a hop that brought no response; otherwise the
    /// error is the client's problem. If an app took it and failed, it goes to one other ready
    /// copy, if there is one: a request that makes every app fail must neither wait for the next,
    /// nor be passed around. The returned problem is for the client if there is no such copy.
    pub(crate) fn after_failed_hop(
        &self,
        slot: &Slot,
        call: &Call,
        to: &PeerId,
        error: HopError,
        keyed: bool,
    ) -> Result<Option<Problem>, Problem> {
        let app_may_have_seen_it = match &error {
            HopError::Unreachable(..) => false,
            HopError::Refused(HopRefusal::AppFailed { .. } | HopRefusal::TooSlow { .. }, ..) => {
                true
            }
            HopError::Refused(..) => false,
            HopError::Broken(_) => true,
        };
        let policy = &slot.spec().policy;
        let again = may_retry(Attempted {
            is_safe: fields::is_safe(&call.method),
            has_key: keyed,
            effects: policy.effects,
            is_portable: policy.session == SessionMode::Portable,
            may_have_reached_app: app_may_have_seen_it,
        });
        let again = again && call.is_sendable();
        let once_more = again && call.failures < FAILURES_MAX;
        Err(match error {
            HopError::Refused(HopRefusal::AppFailed { detail }, ..) => {
                let failed = app_failed(to.as_str(), &LocalError::Failed(detail));
                if once_more {
                    return Ok(Some(failed));
                }
                failed
            }
            HopError::Refused(HopRefusal::TooSlow { detail }, ..) => {
                let failed = too_slow(to.as_str(), &detail);
                if once_more {
                    return Ok(Some(failed));
                }
                failed
            }
            _ if again => return Ok(None),
            HopError::Refused(why, ..) => {
                let why = why.label();
                let detail =
                    format!("{to} refused the request ({why}), and its body cannot be sent again");
                Problem::new(ProblemKind::HopRefused, detail)
            }
            HopError::Unreachable(error, _) => {
                let detail = format!("{to} could not be reached");
                Problem::new(ProblemKind::HopUnreachable, detail).because(error)
            }
            HopError::Broken(error) => {
                let why = format!("the connection to {to} broke before its answer");
                outcome_unknown(&why).because(error)
            }
        })
    }
}

/// Ends the span of a hop with the hop's outcome.
fn end_span(mut span: ActiveSpan, outcome: &Result<HopReply, HopError>) {
    match outcome {
        Ok(reply) => span.status(reply.response.status().as_u16()),
        Err(HopError::Refused(why, ..)) => span.failed(why.label(), ""),
        Err(HopError::Unreachable(error, _)) => span.failed("unreachable", error.to_string()),
        Err(HopError::Broken(error)) => span.failed("broken", error.as_str()),
    }
}

/// The meaning of a service's error for the request, and for the copy.
fn failed_here(
    slot: &Arc<Slot>,
    copy: &Arc<Copy>,
    error: &(dyn std::error::Error + Send + Sync + 'static),
) -> LocalError {
    if let Some(NotSent { reason, refuses, .. }) = error.downcast_ref::<NotSent>() {
        if *refuses {
            slot.refuses(copy, reason);
        }
        return LocalError::NotReady;
    }
    if copy.hangs() {
        return LocalError::TooSlow("it hung, and was ended".into());
    }
    copy.failed_in_a_row.fetch_add(1, Ordering::Relaxed);
    LocalError::Failed(error_chain(error))
}

/// The life of `peer` that holds the pinned session, if it does.
fn holder_at(entry: &Entry, peer: &PeerId) -> Option<Incarnation> {
    match &entry.kind {
        Kind::Pinned { peer: holder, incarnation } if holder == peer => Some(*incarnation),
        _ => None,
    }
}
