//! A hop from another peer: from its head to its answer.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument, Span, debug, debug_span, info};
use warmhop_core::affinity::{Entry, Kind};
use warmhop_core::app::WantedBy;
use warmhop_core::ids::{PeerId, RequestId, SessionKey};
use warmhop_core::queue::Flow;
use warmhop_core::version::AppVersion;
use warmhop_core::view::AppState;

use crate::app::places::Waits;
use crate::app::slot::{Copy, InFlight, Slot};
use crate::hop::{
    self, AppIs, ArrivedHop, CutShort, Hint, HopHead, HopIncoming, HopKind, HopRefusal, Load,
    RIDE_ALONG_BYTES_MAX, ReplySession,
};
use crate::http::clients::{Account, Admitted, Clients};
use crate::http::fields;
use crate::http::interim::Queue;
use crate::http::transit::ReadsAhead;
use crate::http::tunnels::Farewell;
use crate::links::endpoint::STREAM_WINDOW_BYTES;
use crate::links::hop_body::HopBodyReader;
use crate::observe::cut_offs::{CutOff, broke_off};
use crate::observe::failpoint::{self, Point};
use crate::observe::lines::Lines;
use crate::observe::metrics::ByPeer;
use crate::observe::recall::{CUT_OFF, REGISTER, Tracing, Why, put_line};
use crate::observe::trace::{ActiveSpan, SpanKind};
use crate::request::at_once::as_sent;
use crate::request::call::{Call, CallBody, user_agent};
use crate::request::door::Door;
use crate::request::forward::Sender;
use crate::request::local_error::LocalError;
use crate::request::node::Node;
use crate::request::problem::as_refusal;
use crate::request::registers::operation::FRAME_BYTES_MAX;
use crate::request::served::{Served, Upgrade};
use crate::request::too_old::is_too_old;
use crate::request::whose::take_client;

/// A hop whose app is here and takes it.
struct Received {
    from: PeerId,
    id: RequestId,
    slot: Arc<Slot>,
    kind: HopKind,
    method: Method,
    target: PathAndQuery,
    fields: HeaderMap,
    upgrade: Option<Vec<u8>>,
    asks_go: bool,
    counts_on: Option<AppVersion>,
    /// Its client.
    whose: Flow,
    /// It has had its turn at its entry peer, and may wait so long for a place here.
    turn: Option<Duration>,
    incoming: HopIncoming,
    takes_interim: bool,
}

/// Which hop an outcome is of.
struct OfHop<'a> {
    from: &'a PeerId,
    slot: &'a Arc<Slot>,
    /// Its body came once only, and this peer has it.
    asked_go: bool,
    client: u64,
    /// Its account, if its body is a stream.
    account: Option<Arc<Admitted>>,
}

impl Received {
    fn door(&self, at_most: Duration) -> Door<'_> {
        let Self { slot, whose, counts_on, .. } = self;
        let wakes = &slot.spec().policy.wake;
        let is_use =
            wakes.is_for_all() || wakes.wakes(user_agent(&self.fields), self.target.path());
        Door { slot, flow: *whose, counts_on: counts_on.as_ref(), is_use, at_most }
    }
}

impl OfHop<'_> {
    /// The account of a hop whose answer is a stream.
    fn account(&self, clients: &Arc<Clients>) -> Arc<Admitted> {
        let account = self.account.clone();
        account.unwrap_or_else(|| Arc::new(clients.take_in(self.from.clone(), self.client)))
    }

    /// The entry peer's log has the request as failed: so does this one's, by the same id.
    fn log_refusal(&self, id: &RequestId, why: &HopRefusal, lines: &Lines) {
        let (app, from) = (self.slot.name(), self.from);
        let (reason, detail) = (why.label(), why.detail());
        let is_usual = self.slot.keeps_registers || !(why.fails() || self.asked_go);
        let Some(not_logged) = (!is_usual).then(|| lines.due()).flatten() else {
            debug!(request = %id, %app, %from, reason, detail, "refused to another peer");
            return;
        };
        let not_logged = Some(not_logged).filter(|not_logged| *not_logged > 0);
        info!(request = %id, %app, %from, reason, detail, not_logged, "refused to another peer");
    }
}

/// The load that a peer is told whose request gets no place here and does not wait for one.
fn load_without_place(slot: &Slot, whose: Flow) -> Option<Load> {
    let spec = slot.spec();
    let places = spec.policy.concurrency?;
    let load = Node::local_load(slot);
    let doing = slot.doing(&spec.policy, whose);
    if doing.is_full || doing.is_shut {
        return Some(load);
    }
    // A free place is for one that waits here: to others, the copy is full.
    let in_flight = load.in_flight.max(places);
    slot.places.is_awaited().then_some(Load { in_flight, ..load })
}

/// The outcome of a hop: the answer, or why it is refused.
type Answered = Result<(Served, ReplySession), HopRefusal>;

impl Node {
    /// Reads a hop and answers it. `counted` makes a drain wait for the answer.
    pub(crate) async fn receive(
        &self,
        from: PeerId,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
        counted: TaskTrackerToken,
    ) {
        let closing = &self.tunnels.closing;
        let is_late = closing.is_cancelled();
        let arrived = tokio::select! {
            biased;
            arrived = ArrivedHop::read(recv) => arrived,
            () = closing.cancelled(), if !is_late => return,
        };
        let Some(arrived) = arrived else {
            debug!(%from, "a hop's head is malformed");
            let none = Load { in_flight: 0, latency_us: 0 };
            let _ = hop::refuse(send, HopRefusal::Malformed, none).await;
            return;
        };
        if matches!(arrived.head.kind, HopKind::Service) {
            // A drain does not wait for users who only watch this peer.
            drop(counted);
            let answering = Box::pin(self.services.answer(&self.me, &from, arrived, send));
            tokio::select! {
                () = answering => {}
                () = self.tunnels.cut.cancelled() => {}
            }
            return;
        }
        let received = match self.takes(&from, arrived, is_late) {
            Ok(received) => received,
            Err((why, load)) => {
                let _ = hop::refuse(send, why, load).await;
                return;
            }
        };
        let (id, slot) = (received.id.clone(), Arc::clone(&received.slot));
        let span = debug_span!("hop", id = %received.id, peer = %self.me, from = %from);
        // An upgraded connection gets the signal first, and ends by itself.
        let cut_off = if received.upgrade.is_some() { &self.tunnels.cut } else { closing };
        let answering = self.answering(received, send, span);
        tokio::select! {
            biased;
            () = answering => {}
            () = cut_off.cancelled(), if !is_late => {
                let reason = "this peer leaves, and its grace time for accepted hops is over";
                info!(request = %id, app = %slot.name(), %from, reason, "a hop was cut off");
            }
        }
    }

    /// Whether this peer accepts the hop; otherwise its answer. `is_late`: hops were cut off
    /// already.
    fn takes(
        &self,
        from: &PeerId,
        arrived: ArrivedHop,
        is_late: bool,
    ) -> Result<Box<Received>, (HopRefusal, Load)> {
        let ArrivedHop { head, method, mut fields, incoming, takes_interim } = arrived;
        debug!(request = %head.request_id, app = %head.app, %from, kind = head.kind.label(), "a hop arrived");
        let (whose, turn) = take_client(&mut fields);
        let HopHead { kind, app, request_id, target, upgrade, asks_go, counts_on, .. } = head;
        let form = (RequestId::new(&request_id), PathAndQuery::try_from(target), self.slot(&app));
        let (Ok(id), Ok(target), Some(slot)) = form else {
            return Err((HopRefusal::UnknownApp, Load { in_flight: 0, latency_us: 0 }));
        };
        self.metrics.hops_received.get_or_create(&ByPeer { peer: from.clone() }).inc();
        let load = Node::local_load(&slot);
        if matches!(kind, HopKind::Wake) {
            slot.wanted(WantedBy::Request);
        }
        // Only the owner of a session may have the request executed elsewhere. Once hops have been
        // cut off, the app is about to stop, and would be cut off too if it started anything.
        let runs_here = slot.state() == AppState::Ready && !is_late;
        let may_run_there = matches!(kind, HopKind::Forward(_) | HopKind::Onward { .. });
        if !runs_here && !may_run_there {
            return Err((HopRefusal::NotReady, load));
        }
        if let HopKind::Onward { to } = &kind
            && self.heard_peer(to).is_none()
        {
            return Err((HopRefusal::NotReady, load));
        }
        let turn = turn.filter(|_| !may_run_there);
        if !may_run_there
            && turn.is_none()
            && let Some(load) = load_without_place(&slot, whose)
        {
            return Err((HopRefusal::Busy, load));
        }
        if let HopKind::Forward(forward) = &kind
            && let Some(refusal) = self.is_no_way(slot.name(), forward)
        {
            return Err((refusal, load));
        }
        if is_too_old(&slot, counts_on.as_ref()) {
            return Err((self.refusal_of_older(&slot), load));
        }
        let from = from.clone();
        Ok(Box::new(Received {
            from,
            id,
            slot,
            kind,
            method,
            target,
            fields,
            upgrade,
            asks_go,
            counts_on,
            whose,
            turn,
            incoming,
            takes_interim,
        }))
    }

    /// Boxed here, where little is to be moved: everything around it would otherwise be moved with
    /// it.
    fn answering(
        &self,
        received: Box<Received>,
        send: quinn::SendStream,
        span: Span,
    ) -> BoxFuture<'_, ()> {
        // Created in each branch: without a subscriber, moving the future once more costs more than
        // the whole span.
        if span.is_disabled() {
            Box::pin(self.answer_received(received, send))
        } else {
            Box::pin(self.answer_received(received, send).instrument(span))
        }
    }

    async fn answer_received(&self, mut received: Box<Received>, mut send: quinn::SendStream) {
        let mut tracing = self.trace_of_received(&received);
        let mut span = self.span_of_received(&mut received);
        let door = received.turn.map(|at_most| received.door(at_most));
        let entered = match self.place_for(door, &mut send, &mut tracing).await {
            Some(Ok(entered)) => entered,
            Some(Err(why)) => {
                tracing.step("refuse", why.label());
                let _ = hop::refuse(send, why, Node::local_load(&received.slot)).await;
                return;
            }
            None => return tracing.step("cancelled", "the client left"),
        };
        // Boxed, as what else is rare: this future is moved with each hop.
        if received.asks_go && Box::pin(hop::go(&mut send)).await.is_err() {
            return;
        }
        // An operation is executed in one step, so its whole body has to be there.
        let whole = received.slot.keeps_registers.then_some(FRAME_BYTES_MAX);
        let account = received.asks_go.then(|| self.account_of(&received));
        let incoming = charged(received.incoming, account.as_ref(), &received.fields);
        let Some((body, tunnel)) = body_of(incoming, whole).await else { return };
        let (body, wanted) = match body {
            CallBody::Stream(Some(body)) if fields::expects_continue(&received.fields) => {
                let (body, wanted) = body.telling_when_wanted();
                (CallBody::Stream(Some(body)), Some(wanted))
            }
            body => (body, None),
        };
        let interims = received.takes_interim.then(Arc::<Queue>::default);
        let upgrade = received.upgrade.and_then(|it| HeaderValue::from_bytes(&it).ok());
        let mut call = Call {
            id: received.id,
            method: received.method,
            target: received.target,
            fields: received.fields,
            body,
            upgrade,
            on_upgrade: None,
            may_have_run: false,
            failed_at: None,
            failures: 0,
            attempt: rand::random(),
            waits: Waits::of(received.whose),
            entered,
            version: match &received.kind {
                HopKind::Forward(forward) => forward.version.clone(),
                _ => None,
            },
            // A streamed body comes only once, and must not be lost.
            counts_on: received.counts_on.filter(|_| !received.asks_go),
            interim: interims.as_ref().map(Queue::begin),
            moves_first: false,
            lost: None,
        };
        let (slot, kind) = (&received.slot, received.kind);
        let (from, asked_go, client) = (&received.from, received.asks_go, received.whose.client);
        let of = OfHop { from, slot, asked_go, client, account };
        let outcome = {
            // Pinned in place: moving it would take its room twice.
            let answering = std::pin::pin!(self.answer(&of, kind, &mut call, &mut tracing));
            let answering = while_it_is_wanted(&mut send, wanted, interims.as_deref(), answering);
            match &of.account {
                None => answering.await,
                Some(account) => unless_it_gives_way(account.account(), answering).await,
            }
        };
        if let Some(span) = &mut span {
            span.decided(&tracing.steps());
            match &outcome {
                Some(Ok((served, _))) => span.status(served.response.status().as_u16()),
                Some(Err(why)) => span.failed(why.label(), ""),
                None => span.failed("cancelled", "the client left"),
            }
        }
        match outcome {
            Some(outcome) => self.send_answer(send, &of, outcome, tunnel, &mut tracing).await,
            None => tracing.step("cancelled", "the client left"),
        }
    }

    fn account_of(&self, received: &Received) -> Arc<Admitted> {
        Arc::new(self.clients.take_in(received.from.clone(), received.whose.client))
    }

    /// A place for a hop that may wait for one. `None` if the client leaves.
    async fn place_for(
        &self,
        door: Option<Door<'_>>,
        send: &mut quinn::SendStream,
        tracing: &mut Tracing,
    ) -> Option<Result<Option<(Arc<Copy>, InFlight)>, HopRefusal>> {
        let Some(door) = door else { return Some(Ok(None)) };
        // Boxed: most do not wait.
        let mut waiting = Box::pin(self.wait_at_door(&door, tracing));
        let outcome = while_it_is_wanted(send, None, None, waiting.as_mut()).await?;
        Some(outcome.map(Some))
    }

    fn trace_of_received(&self, received: &Received) -> Tracing {
        let role = if received.slot.keeps_registers { REGISTER } else { "hop" };
        let mut tracing = Tracing::begin(
            &self.traces,
            received.id.clone(),
            &self.me,
            role,
            put_line(&received.method, received.target.path()),
        );
        if let Some(host) = fields::host_as_sent(&received.fields) {
            tracing.host(host);
        }
        tracing.app(received.slot.name());
        tracing.step("arrived", Why::SentBy(received.from.clone(), received.kind.label()));
        tracing
    }

    fn span_of_received(&self, received: &mut Received) -> Option<ActiveSpan> {
        let fields = &mut received.fields;
        let mut span = self.spans.within(fields, SpanKind::Server, || "hop received".into())?;
        span.set("http.request.method", received.method.as_str());
        span.set("url.path", received.target.path());
        span.set("warmhop.app", received.slot.name().as_str());
        span.set("warmhop.peer.from", received.from.as_str());
        span.set("warmhop.hop", received.kind.label());
        Some(span)
    }

    async fn send_answer(
        &self,
        send: quinn::SendStream,
        of: &OfHop<'_>,
        outcome: Answered,
        tunnel: Option<HopBodyReader>,
        tracing: &mut Tracing,
    ) {
        let load = Node::local_load(of.slot);
        match outcome {
            Ok((served, session)) => {
                tracing.head(served.response.status().as_u16());
                debug!(status = served.response.status().as_u16(), "answered");
                let voted = matches!(&session, ReplySession::Done(done) if failpoint::voted(done));
                let peer = tracing.ran_at();
                if let Err(cut) = self.respond(send, of, served, session, tunnel).await
                    && !cut.is_unwanted()
                {
                    let CutShort { bytes, source } = cut;
                    let (id, app, from) = (&tracing.id, of.slot.name(), Some(of.from));
                    let way = "hop received";
                    let what = CutOff { id, app, way, peer: peer.as_ref(), from, bytes };
                    self.metrics.traffic.cut_offs.log(&what, &source);
                    tracing.step(CUT_OFF, broke_off(bytes, &source));
                }
                failpoint::pass_if(voted, Point::ExecVoteAfter);
            }
            Err(why) => {
                tracing.step("refuse", why.label());
                of.log_refusal(&tracing.id, &why, &self.metrics.refused_hops);
                let _ = hop::refuse(send, why, load).await;
            }
        }
    }

    async fn answer(
        &self,
        of: &OfHop<'_>,
        kind: HopKind,
        call: &mut Call,
        tracing: &mut Tracing,
    ) -> Answered {
        let slot = of.slot;
        let local = |error| match error {
            LocalError::NotReady | LocalError::BodyGone => HopRefusal::NotReady,
            LocalError::Busy => HopRefusal::Busy,
            LocalError::Older => self.refusal_of_older(slot),
            LocalError::TooSlow(detail) => HopRefusal::TooSlow { detail },
            LocalError::Refused(done) => HopRefusal::Exec(done),
            LocalError::Failed(detail) => HopRefusal::AppFailed { detail },
            LocalError::Problem(problem) => as_refusal(&problem),
        };
        match kind {
            HopKind::Plain | HopKind::Wake | HopKind::Service => {
                let ran = self.run_here(slot, call, None).await.map_err(local)?;
                tracing.served_by(&self.me);
                Ok((Served::ran(self, ran), ReplySession::None))
            }
            HopKind::Exec { sid, exec } => {
                let key = SessionKey { app: slot.name().clone(), sid };
                tracing.session(&key);
                // Boxed, as the next one: the future of a plain hop has no room for either.
                let executing = Box::pin(self.execute_here(slot, call, &key, &exec));
                let (ran, done) = executing.await.map_err(local)?;
                failpoint::pass_if(failpoint::voted(&done), Point::ExecVoteBefore);
                tracing.served_by(&self.me);
                Ok((Served::ran(self, ran), ReplySession::Done(done)))
            }
            HopKind::Onward { to } => {
                let Some(peer) = self.heard_peer(&to) else { return Err(HopRefusal::NotReady) };
                let served = Box::pin(self.send_onward(slot, call, peer, tracing)).await?;
                Ok((served, ReplySession::None))
            }
            HopKind::Forward(forward) => {
                let sender = Sender { peer: of.from, keeps_body: !of.asked_go };
                let serving = self.serve_forwarded(slot, call, &forward, sender, tracing);
                let served = Box::pin(serving).await?;
                let hint = served.entry.as_ref().and_then(hint_of);
                let session = match hint {
                    Some(hint) => ReplySession::Committed { hint, replayed: served.replayed },
                    None if served.cleared => ReplySession::Cleared { replayed: served.replayed },
                    None => ReplySession::None,
                };
                Ok((served, session))
            }
        }
    }

    async fn respond(
        &self,
        send: quinn::SendStream,
        of: &OfHop<'_>,
        served: Served,
        session: ReplySession,
        tunnel: Option<HopBodyReader>,
    ) -> Result<(), CutShort> {
        let (load, ahead) = (Node::local_load(of.slot), served.reads_ahead());
        let Served { response, answer, served_by, upgrade, .. } = served;
        let response = as_sent(response, answer).map_err(CutShort::at_once)?;
        let head = hop::response_head(&response, session, served_by.as_str().to_owned(), load);
        let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let (Some(reader), true) = (tunnel, switching) else {
            let (fields, body) = (response.headers(), response.body());
            if body.bytes_in_memory().is_some_and(|bytes| bytes <= RIDE_ALONG_BYTES_MAX as u64) {
                return hop::reply(send, &head, response.into_body(), None).await;
            }
            let account = of.account(&self.clients);
            let gives_way = Some(account.account().gives_way().clone());
            let fields = fields.clone();
            let body = response.into_body().in_transit(&account, ahead, &fields);
            return hop::reply(send, &head, body, gives_way).await;
        };
        Box::pin(async move {
            let writer = hop::reply_switching(send, &head).await.map_err(CutShort::at_once)?;
            let _counted = self.tunnels.open.token();
            let farewell = self.tunnels.farewell(response.headers().get(http::header::UPGRADE));
            match upgrade.map(|it| *it) {
                Some(Upgrade::Io(io, copy)) => {
                    let farewell = farewell.with_copy(&copy);
                    hop::tunnel(TokioIo::new(io), writer, reader, AppIs::Near, farewell).await;
                }
                Some(Upgrade::Hop(next)) => {
                    let (near, far) = tokio::io::duplex(64 * 1024);
                    tokio::join!(
                        hop::tunnel(near, writer, reader, AppIs::Near, farewell),
                        hop::tunnel(far, next.writer, next.reader, AppIs::Far, Farewell::default())
                    );
                    drop(next.lease);
                }
                None => {}
            }
            Ok(())
        })
        .await
    }
}

/// What follows a hop's head; a body is charged to the hop's account, if it has one.
fn charged(
    incoming: HopIncoming,
    account: Option<&Arc<Admitted>>,
    fields: &HeaderMap,
) -> HopIncoming {
    match (incoming, account) {
        (HopIncoming::Body(body), Some(account)) => {
            let ahead = ReadsAhead(STREAM_WINDOW_BYTES);
            HopIncoming::Body(body.in_transit(account, ahead, fields))
        }
        (incoming, _) => incoming,
    }
}

/// The body of a hop, all of it if it has at most `want_whole` bytes, and the stream from the
/// client's side of an upgrade; `None` if it broke off.
async fn body_of(
    incoming: HopIncoming,
    want_whole: Option<usize>,
) -> Option<(CallBody, Option<HopBodyReader>)> {
    let body = match incoming {
        // The first part proves that the entry peer has received the go-ahead: an app that ran
        // without it could run twice. Without a go-ahead the body came with the head, and is known
        // here to be complete: an empty body must not reach an app as chunks.
        HopIncoming::Body(body) => body.begun().await.ok()?,
        HopIncoming::Tunnel(reader) => {
            return Some((CallBody::Whole(bytes::Bytes::new()), Some(reader)));
        }
    };
    // Boxed if there is something to wait for, as at a front door.
    let body = match Call::gathered(body) {
        Ok(whole) => CallBody::Whole(whole),
        Err(body) => Box::pin(Call::gather(body, want_whole)).await.ok()?,
    };
    Some((body, None))
}

/// The outcome, unless the hop's account is closed before: it held the most. Then it is as if its client
/// had left.
async fn unless_it_gives_way<A>(
    account: &Account,
    answering: impl Future<Output = Option<A>>,
) -> Option<A> {
    tokio::select! {
        biased;
        outcome = answering => outcome,
        () = account.gives_way().cancelled() => None,
    }
}

/// Waits for the answer; until then, requests the body once the app has asked for it, and sends the
/// app's interim responses. `None` if the client leaves: that cancels here at once, before there is a
/// response to write.
async fn while_it_is_wanted<A>(
    send: &mut quinn::SendStream,
    mut wanted: Option<oneshot::Receiver<()>>,
    interims: Option<&Queue>,
    mut answering: Pin<&mut impl Future<Output = A>>,
) -> Option<A> {
    let stopped = send.stopped();
    tokio::pin!(stopped);
    let outcome = loop {
        let is_wanted = async {
            match &mut wanted {
                Some(wanted) => wanted.await.is_ok(),
                None => std::future::pending().await,
            }
        };
        let interim = async {
            match interims {
                Some(interims) => interims.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            outcome = answering.as_mut() => break outcome,
            _ = &mut stopped => return None,
            is_wanted = is_wanted => {
                wanted = None;
                if is_wanted && Box::pin(hop::go(send)).await.is_err() {
                    return None;
                }
            }
            interim = interim => {
                if Box::pin(hop::interim(send, &interim)).await.is_err() {
                    return None;
                }
            }
        }
    };
    if let Some(interims) = interims {
        interims.end();
        while let Some(interim) = interims.take() {
            if Box::pin(hop::interim(send, &interim)).await.is_err() {
                return None;
            }
        }
    }
    Some(outcome)
}

fn hint_of(entry: &Entry) -> Option<Hint> {
    match &entry.kind {
        Kind::Portable { cfg, owner, n } => {
            Some(Hint { sid: entry.sid, cfg: cfg.clone(), owner: *owner, n: *n })
        }
        Kind::Pinned { .. } => None,
    }
}

impl Served {
    fn ran(node: &Node, ran: crate::request::served::RanHere) -> Self {
        let mut served = Self::here(node, ran.response);
        served.upgrade = ran.upgrade;
        served
    }
}
