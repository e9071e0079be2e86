//! A request of a portable session on its way through this peer: carried to the session's owner,
//! executed around the session's checks, and answered once its change is committed. What to do in
//! each case is decided by the core's `session::entry`.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join;
use http::StatusCode;
use warmhop_core::affinity::{Entry, Kind};
use warmhop_core::app::WantedBy;
use warmhop_core::ids::{Ballot, Incarnation, PeerId, RequestKey, SessionId, SessionKey};
use warmhop_core::route::{Arrived, may_retry};
use warmhop_core::session::entry::{
    After, Alone, Asked, Because, ByKey, End, Enter, Errand, Forwarded, Here, Look, Moves,
    NEWBORN_FOR, Named, Rerun, Reruns, Step, TakeOver, alone, answer_forward, fence_at,
    first_members, hears_most, is_elsewhere, is_for_entry, is_void, members_by_key,
};
use warmhop_core::session::message::{Config, Exec, ExecDone, Stored};
use warmhop_core::session::{Failure, Outcome, Submit, TokenHint};
use warmhop_core::view::{AppState, View};

use crate::app::session::{Session, Turn};
use crate::app::slot::Slot;
use crate::hop::{self, Forward, Hint, HopError, HopKind, HopRefusal, HopReply, ReplySession};
use crate::http::fields;
use crate::http::refusals::ByReason;
use crate::observe::recall::{Tracing, Why};
use crate::request::call::{Call, CallBody};
use crate::request::local_error::{LocalError, app_failed, error_chain};
use crate::request::node::{Node, Place, Placing};
use crate::request::problem::{
    Problem, after_an_attempt, as_refusal, describe, from_refusal, gave_up, memory_full,
    of_session, outcome_unknown, too_many_sessions,
};
use crate::request::registers::bounds::STATE_BYTES_MAX;
use crate::request::serve::{RanHere, Served, ServedBy, Upgrade};
use crate::sessions::store::InLine;
use crate::sessions::told::Told;

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
    /// Its session was drawn for it: no token of it has left.
    pub(crate) drawn: bool,
}

impl<'a> Portable<'a> {
    /// That of a request which another peer sent on.
    fn forwarded(slot: &'a Arc<Slot>, forward: &Forward) -> Self {
        Self {
            slot,
            rid: forward.rid,
            fingerprint: forward.fingerprint,
            keyed: forward.keyed,
            seen: forward.seen,
            arrived: Arrived::AtFrontDoor,
            hops_left: forward.hops_left,
            drawn: false,
        }
    }

    /// What does not change about it from one attempt to the next.
    fn asked(&self, call: &Call) -> Asked {
        Asked {
            keyed: self.keyed,
            seen: self.seen,
            may_repeat: may_retry(
                fields::is_safe(&call.method),
                self.keyed,
                self.slot.spec().policy.effects,
                true,
                true,
            ),
            hops_left: self.hops_left,
        }
    }

    /// What a client is told of `problem`, where an attempt before it, if `unsure`, may have been
    /// applied. A repeat of a safe request harms nothing, and one with a key is known for what it
    /// is.
    fn told(&self, problem: Problem, call: &Call, unsure: bool) -> Problem {
        let harmless = self.keyed || fields::is_safe(&call.method);
        if unsure && !harmless { after_an_attempt(problem) } else { problem }
    }
}

/// What tells which session a request is about.
#[derive(Clone, Copy)]
pub(crate) enum Subject<'a> {
    /// Its client's token, if it has one that names a session.
    Token(Option<&'a Entry>),
    /// A key.
    Key(ByKey),
}

/// How waiting in line for the session ended.
pub(crate) enum LineEnd {
    Served(Box<Served>),
    /// Someone else owns the session, by the highest claim that is known.
    Elsewhere(Option<Ballot>),
    /// Nothing was, nor will be, applied under this session by this request.
    Failed(Failure),
    Problem(Problem),
}

impl LineEnd {
    /// Whether somebody else is to be asked, or to look for the session itself.
    fn is_elsewhere(&self) -> bool {
        match self {
            LineEnd::Elsewhere(_) => true,
            LineEnd::Failed(failure) => is_elsewhere(failure),
            LineEnd::Served(_) | LineEnd::Problem(_) => false,
        }
    }
}

impl Node {
    /// Serves a request of a portable session: at its owner, which this peer is, becomes, or
    /// forwards to, as the core's [`Errand`] decides.
    pub(crate) async fn serve_portable(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        subject: Subject<'_>,
        tracing: &mut Tracing,
    ) -> Result<Served, Problem> {
        let asked = portable.asked(call);
        let named = |entry: &Entry| match &entry.kind {
            Kind::Portable { cfg, owner, n } => {
                Some(Named { sid: entry.sid, cfg: cfg.clone(), owner: *owner, n: *n })
            }
            Kind::Pinned { .. } => None,
        };
        let mut errand = match subject {
            Subject::Token(entry) => Errand::new(asked, entry.and_then(named)),
            Subject::Key(key) => Errand::by_key(asked, key),
        };
        let served = self.run_errand(portable, call, &mut errand, tracing).await;
        let unsure = errand.may_have_run() || call.may_have_run;
        served.map_err(|problem| portable.told(problem, call, unsure))
    }

    /// Tries until it is served, or must not or cannot be tried again.
    async fn run_errand(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        errand: &mut Errand,
        tracing: &mut Tracing,
    ) -> Result<Served, Problem> {
        loop {
            let end = self.attempt(portable, call, errand, tracing).await?;
            let end = match end {
                LineEnd::Served(mut served) => {
                    served.session_lost = errand.lost();
                    served.after_end = errand.ended_before();
                    served.forked = errand.forked();
                    return Ok(*served);
                }
                LineEnd::Problem(problem) => return Err(problem),
                LineEnd::Elsewhere(other) => End::Elsewhere(other),
                LineEnd::Failed(failure) => End::Failed(failure),
            };
            let mut after = errand.ended(end, call.is_sendable(), &self.here(&self.view()));
            if let (After::TryAlone(failure), Some(sid)) = (after, errand.sid()) {
                let key = SessionKey { app: portable.slot.name().clone(), sid };
                let (into, view) = (self.fork(&key), self.view());
                after = errand.tried_alone(failure, into, call.is_sendable(), &self.here(&view));
            }
            match after {
                After::Again { because: Because::NoWitness, back_off } => {
                    tracing.step("wait", "this peer does not know yet whom else to ask");
                    let jitter = rand::random_range(Duration::ZERO..back_off);
                    tokio::time::sleep(self.newborn_for() + jitter).await;
                }
                After::Again { because, back_off } => {
                    trace(because, errand.lost(), tracing);
                    if !back_off.is_zero() {
                        tokio::time::sleep(rand::random_range(Duration::ZERO..back_off)).await;
                    }
                }
                After::Refuse(failure) | After::TryAlone(failure) => {
                    return Err(self.session_problem(&failure));
                }
                After::OutcomeUnknown(Because::NotBegun) => {
                    return Err(outcome_unknown("its session could not be begun"));
                }
                After::OutcomeUnknown(because) => {
                    trace(because, errand.lost(), tracing);
                    return Err(outcome_unknown("the session's owner changed"));
                }
            }
        }
    }

    /// Carries out what the core decides for the next attempt.
    async fn attempt(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        errand: &mut Errand,
        tracing: &mut Tracing,
    ) -> Result<LineEnd, Problem> {
        let portable = &Portable { seen: errand.seen(call.may_have_run), ..*portable };
        let (view, later) = (self.view(), OnceCell::new());
        let mut here = self.here(&view);
        if errand.must_meet(&here) {
            tracing.step("wait", "this peer has just started, and has met no other yet");
            self.meet_someone(errand).await;
            here = self.here(later.get_or_init(|| self.view()));
        }
        let app = portable.slot.name();
        let key = errand.sid().map(|sid| SessionKey { app: app.clone(), sid });
        let look = key.as_ref().and_then(|key| {
            self.store.with(key, false, |machine, ctx, _| Look::among(machine, &ctx.process.census))
        });
        if let Some(key) = &key {
            tracing.session(key);
        }
        let n = errand.session().map_or(0, |named| named.n);
        let stays = || key.as_ref().is_some_and(|key| self.store.should_move(key, n));
        // What an app may have seen is another attempt: it must not go on from what this one began.
        let unsure = errand.may_have_run() || call.may_have_run;
        let attempt = if unsure { rand::random() } else { call.attempt };
        let step = errand.next(look.unwrap_or_default(), &here, stays);
        let Some(key) = key else {
            return match step {
                Step::GiveUp => Err(gave_up()),
                _ => self.begin_session(portable, call, tracing).await,
            };
        };
        Ok(match step {
            Step::GiveUp => return Err(gave_up()),
            Step::Begin => self.begin_session(portable, call, tracing).await?,
            Step::Forward { to, owner, hops_left, moves } => {
                match moves {
                    Some(Moves::OwnerDrains) => tracing
                        .step("owner", "the session's owner is draining: the session moves here"),
                    Some(Moves::ClientStays) => tracing
                        .step("owner", "its client keeps arriving here: the session moves here"),
                    None => {}
                }
                let forward = Forward {
                    sid: key.sid,
                    cfg: errand.token().cloned(),
                    owner,
                    n,
                    rid: portable.rid,
                    fingerprint: portable.fingerprint,
                    keyed: portable.keyed,
                    seen: portable.seen,
                    attempt,
                    hops_left,
                    hand_over: moves.map(|_| self.incarnation),
                    relay: None,
                };
                tracing.step("forward", Why::OwnedBy(to.clone()));
                self.forward(portable, call, &key, forward, &to, tracing).await
            }
            Step::Relay { to, hops_left, begins } => {
                let forward = Forward {
                    sid: key.sid,
                    cfg: None,
                    owner: self.incarnation,
                    n,
                    rid: portable.rid,
                    fingerprint: portable.fingerprint,
                    keyed: portable.keyed,
                    seen: portable.seen,
                    attempt,
                    hops_left,
                    hand_over: None,
                    relay: Some(begins),
                };
                let why = "this peer hears too few of those that hold it, and others may hear more";
                tracing.step("relay", format!("{to} is asked: {why}"));
                self.forward(portable, call, &key, forward, &to, tracing).await
            }
            Step::AtOwner { take_over } => {
                if take_over == Some(TakeOver::OwnerSilent) {
                    tracing.step("owner", "the session's owner is gone or silent");
                }
                if take_over.is_some() {
                    tracing.step("take over", "this peer takes the session over");
                }
                let enter = match take_over {
                    None => Enter::AsOwner,
                    Some(_) => self.seeking(&key, errand),
                };
                self.at_owner(portable, call, &key, enter, None, tracing).await
            }
        })
    }

    pub(crate) fn here<'v>(&self, view: &'v View) -> Here<'v> {
        Here {
            me: self.incarnation,
            draining: self.is_draining(),
            newborn: !self.newborn_for().is_zero(),
            hears_most: hears_most(view, |peer| self.store.is_dead(&peer)),
            view,
            wall: self.clock.wall(),
        }
    }

    /// Waits until this peer has met another, or is newborn no more.
    async fn meet_someone(&self, errand: &Errand) {
        let mut changed = self.changed.subscribe();
        while errand.must_meet(&self.here(&self.view())) {
            // Until the view changes, or its time is over.
            let _ = tokio::time::timeout(self.newborn_for(), changed.changed()).await;
        }
    }

    /// For how long it is newborn yet: see [`Here::newborn`]. A peer that joins nobody never is.
    fn newborn_for(&self) -> Duration {
        let span = if self.seeds > 0 { NEWBORN_FOR } else { Duration::ZERO };
        span.saturating_sub(self.started.elapsed())
    }

    /// Without a majority, goes on from this peer's own copy under a new session, where the core
    /// allows it; returns the session that it goes on as, now or since before.
    fn fork(&self, key: &SessionKey) -> Option<SessionId> {
        let policy = self.store.policy();
        let may = self.store.with(key, false, |machine, ctx, _| {
            alone(machine, ctx.me, policy, ctx.process.census.pair)
        })?;
        let record = match may {
            Alone::No => return None,
            Alone::Already(into) => return Some(into),
            Alone::From(record) => record,
        };
        let new = SessionKey { app: key.app.clone(), sid: SessionId(rand::random()) };
        let cfg = first_members(new.sid, None, policy.copies, &self.here(&self.view()));
        self.store.with(&new, true, |machine, ctx, out| {
            machine.mint_from(ctx, cfg, &record, out);
        })?;
        let into = self.store.with(key, false, |machine, ctx, out| {
            fence_at(machine, ctx, record.p, new.sid, out)
        })??;
        if into == new.sid {
            self.metrics.sessions_forked.inc();
            tracing::warn!(session = %key, as_session = %new, "forked: no majority of its holders is left");
        }
        Some(into)
    }

    /// Draws a session for a client that has none, and serves its first request.
    async fn begin_session(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        tracing: &mut Tracing,
    ) -> Result<LineEnd, Problem> {
        let placing = Placing::first(portable.slot, portable.arrived);
        let place = self.place(&placing, &mut call.waits, tracing).await?;
        let view = self.view();
        let executor = match &place {
            Place::Here => None,
            Place::There(peer) => view.peer(peer).map(|belief| belief.news.incarnation),
        };
        let sid = SessionId(rand::random());
        let cfg = first_members(sid, executor, self.store.policy().copies, &self.here(&view));
        let key = SessionKey { app: portable.slot.name().clone(), sid };
        tracing.session(&key);
        let enter = Enter::Beginning(cfg);
        Ok(self.at_owner(portable, call, &key, enter, Some(place), tracing).await)
    }

    /// Takes the session over that a token names, or looks for the one that a key does.
    fn seeking(&self, key: &SessionKey, errand: &Errand) -> Enter {
        let view = self.view();
        let copies = self.store.policy().copies;
        let members = |sid| members_by_key(sid, copies, &self.me, &self.here(&view));
        match errand.otherwise(members) {
            Some(otherwise) => Enter::Seeking { peers: self.whom_to_ask(key), otherwise },
            None => {
                Enter::TakingOver { token: errand.token().cloned(), peers: self.whom_to_ask(key) }
            }
        }
    }

    fn taking_over(&self, key: &SessionKey, token: Config) -> Enter {
        Enter::TakingOver { token: Some(token), peers: self.whom_to_ask(key) }
    }

    /// Stands in line at this peer for the session: as its owner, or once it has taken over.
    /// `place` is where the request runs, if that is decided.
    async fn at_owner(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        key: &SessionKey,
        enter: Enter,
        place: Option<Place>,
        tracing: &mut Tracing,
    ) -> LineEnd {
        // What empties a session makes room.
        let may_grow = !fields::is_safe(&call.method) && call.method != http::Method::DELETE;
        if may_grow && self.store.memory().is_full() {
            let reason = ByReason { reason: "memory-full" };
            self.metrics.session_refusals.get_or_create(&reason).inc();
            return LineEnd::Problem(memory_full());
        }
        let drawn = matches!(enter, Enter::Beginning(_));
        let portable = &Portable { drawn, ..*portable };
        // The outcome of an earlier attempt is unknown, and stays so.
        let unknown = portable.runs_once() && call.may_have_run;
        if portable.runs_once() && !drawn && !unknown {
            return self.run_once(portable, call, key, enter, tracing).await;
        }
        self.stand_in_line(portable, call, key, enter, (place, unknown), tracing).await
    }

    /// Waits for the request's turn, has it run, and waits until that is committed. With `unknown`
    /// it is not run: what is committed is that nobody knows its outcome.
    pub(crate) async fn stand_in_line(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        key: &SessionKey,
        enter: Enter,
        (mut place, mut unknown): (Option<Place>, bool),
        tracing: &mut Tracing,
    ) -> LineEnd {
        let safe = fields::is_safe(&call.method) && !portable.keyed;
        let submit = |ticket| Submit {
            ticket,
            rid: portable.rid,
            fingerprint: portable.fingerprint,
            keyed: portable.keyed,
            seen: portable.seen,
            safe,
        };
        let line = self.store.enqueue(key, submit, enter);
        let Some(mut line) = line else { return LineEnd::Problem(too_many_sessions()) };
        let mut reruns = Reruns::default();
        let mut tried: Vec<PeerId> = Vec::new();
        let mut failed: Option<Problem> = None;
        let mut held: Option<Served> = None;
        loop {
            match line.next().await {
                Told::Turn if unknown => line.begin(self.incarnation),
                Told::Execute { exec, .. } if unknown => {
                    tracing
                        .step("unknown", "whether it was applied is unknown: it is not run again");
                    let done = self.write_down(key, &exec, Stored::Unknown);
                    if done.is_none() {
                        reruns.came_to_nothing();
                    }
                    held = Some(self.unknown_for_good(failed.take(), call.id.as_str()));
                    line.executed(done.map_or(Outcome::Failed, Outcome::from));
                }
                // Every peer that offers registers executes what it owns.
                Told::Turn if portable.slot.keeps_registers => {
                    let CallBody::Whole(operation) = &call.body else {
                        let gone = LocalError::BodyGone;
                        return LineEnd::Problem(app_failed(self.me.as_str(), &gone));
                    };
                    match self.operate(&mut line, operation) {
                        Ok(Some(response)) => {
                            tracing.served_by(&self.me);
                            held = Some(Served::here(self, response));
                        }
                        Ok(None) => reruns.came_to_nothing(),
                        Err(error) => {
                            return LineEnd::Problem(app_failed(self.me.as_str(), &error));
                        }
                    }
                }
                Told::Turn => {
                    let placing = Placing {
                        slot: portable.slot,
                        arrived: portable.arrived,
                        pin: None,
                        tried: &tried,
                        failed: failed.as_ref(),
                        shun_here: call.failed_here(portable.slot),
                    };
                    let (waits, failed_at) = (&mut call.waits, &mut call.failed_at);
                    let chosen = match place.take() {
                        Some(place) => place,
                        // Every peer that offers registers executes what it owns.
                        None if portable.slot.keeps_registers => Place::Here,
                        None => match self.place_anew(&placing, waits, failed_at, tracing).await {
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
                        None => return LineEnd::Elsewhere(None),
                    }
                }
                Told::Again => held = None,
                Told::Execute { executor, exec } => {
                    let ran = if executor == self.incarnation {
                        let failed = &mut failed;
                        self.execute_for_line(portable, call, &mut line, &exec, failed, tracing)
                            .await
                    } else {
                        self.execute_there(
                            portable,
                            call,
                            &mut line,
                            executor,
                            exec,
                            &mut (&mut tried, &mut failed),
                            tracing,
                        )
                        .await
                    };
                    match ran {
                        Ok(Some(served)) => {
                            call.may_have_run |= portable.runs_once();
                            held = Some(served);
                        }
                        Ok(None) => reruns.came_to_nothing(),
                        Err(problem) if portable.runs_once() => {
                            call.may_have_run = true;
                            unknown = true;
                            failed = Some(problem);
                            reruns.came_to_nothing();
                        }
                        Err(problem) => return LineEnd::Problem(problem),
                    }
                }
                Told::Release { hint } => {
                    let Some(mut served) = held.take() else { continue };
                    let entry = self.portable_entry(key, &hint_of(key, hint));
                    self.name_session(portable, key, entry, &mut served);
                    return LineEnd::Served(Box::new(served));
                }
                Told::Replay { stored, hint } => {
                    tracing.step("replay", "this request was applied before");
                    return match replayed(self, &stored) {
                        Ok(mut served) => {
                            let entry = self.portable_entry(key, &hint_of(key, hint));
                            self.name_session(portable, key, entry, &mut served);
                            LineEnd::Served(Box::new(served))
                        }
                        Err(problem) => LineEnd::Problem(problem),
                    };
                }
                Told::Fail(failure) => match reruns.failed(&failure, call.is_sendable()) {
                    Rerun::Again => match self.store.enqueue(key, submit, Enter::AsOwner) {
                        Some(anew) => line = anew,
                        None => return LineEnd::Problem(too_many_sessions()),
                    },
                    Rerun::GiveUp => return LineEnd::Problem(gave_up()),
                    Rerun::No => {
                        tracing.step("session", describe(&failure).2);
                        return LineEnd::Failed(failure);
                    }
                },
                Told::Redirect(to) => return LineEnd::Elsewhere(to),
            }
        }
    }

    /// Runs the app here for a session, around the session's own checks.
    pub(crate) async fn execute_here(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        key: &SessionKey,
        exec: &Exec,
    ) -> Result<(RanHere, ExecDone), LocalError> {
        if slot.state() != AppState::Ready {
            return Err(LocalError::NotReady);
        }
        let base = self
            .store
            .with(key, true, |machine, ctx, _| machine.exec_begin(ctx, exec))
            .ok_or(LocalError::NotReady)?
            .map_err(LocalError::Refused)?;
        let policy = self.store.policy();
        let expired = base.is_over(exec, self.clock.wall(), policy.ttl);
        let state =
            base.state.clone().filter(|_| !expired).map(|state| Bytes::from_owner(ArcBytes(state)));
        let bytes_max = if slot.keeps_registers { STATE_BYTES_MAX } else { policy.state_bytes_max };
        let turn = Turn {
            expiry: base.expiry,
            idle_until: exec.expiry,
            n: exec.p.map(|p| p.n),
            keep_until: None,
        };
        let session = Session::new(state.clone(), bytes_max, turn);
        let mut ran = self.run_here(slot, call, Some(&session)).await?;
        if let Some(field) = ran.field.take() {
            self.set_carried(slot, &session, field)?;
        }
        let mut changed = session.close();
        // A register that is deleted may be made again under its key.
        let ends = session.ends() && !slot.keeps_registers;
        // Used, so it lives on: an unchanged session whose time is half over is written anew.
        let uses_up = changed.is_none() && state.is_some() && !slot.keeps_registers;
        if uses_up && base.is_half_over(exec, policy.ttl) {
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
            .with(key, true, |machine, ctx, _| match session.keep_until() {
                Some(until) => machine.exec_end_until(ctx, exec, &base, changed, until),
                None if ends => machine.exec_end_of_id(ctx, exec, &base, changed.flatten(), stored),
                None => machine.exec_end(ctx, exec, &base, changed, stored),
            })
            .ok_or_else(|| LocalError::Failed("too many sessions on this peer".into()))?;
        Ok((ran, done))
    }

    async fn execute_for_line(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        line: &mut InLine,
        exec: &Exec,
        failed: &mut Option<Problem>,
        tracing: &mut Tracing,
    ) -> Result<Option<Served>, Problem> {
        let key = line.key.clone();
        let execution = self.execute_here(portable.slot, call, &key, exec);
        let (ran, ()) = join(execution, async { line.send_held_back() }).await;
        match ran {
            Ok((ran, done)) => {
                tracing.served_by(&self.me);
                let mut served = Served::here(self, ran.response);
                served.upgrade = ran.upgrade.map(Upgrade::Io);
                self.conclude(portable, line, done).await?;
                Ok(Some(served))
            }
            // The app went away before it saw the request: the next turn routes anew.
            Err(LocalError::NotReady | LocalError::Busy) if call.is_sendable() => {
                line.executed(Outcome::Failed);
                Ok(None)
            }
            // It hung and was ended: the next one is asked.
            Err(LocalError::TooSlow(_))
                if fields::is_safe(&call.method)
                    && call.is_sendable()
                    && portable.slot.state() != AppState::Ready =>
            {
                call.may_have_run = true;
                line.executed(Outcome::Failed);
                Ok(None)
            }
            Err(LocalError::Refused(done)) => {
                line.executed(Outcome::from(done));
                Ok(None)
            }
            Err(error @ LocalError::Failed(_)) if call.may_go_to_another() => {
                call.may_have_run = true;
                *failed = Some(app_failed(self.me.as_str(), &error));
                line.executed(Outcome::Failed);
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
        (tried, failed): &mut (&mut Vec<PeerId>, &mut Option<Problem>),
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
        match Box::pin(self.ask(slot, &to, call, kind, tracing)).await {
            Ok(HopReply {
                response, session: ReplySession::Done(done), served_by, tunnel, ..
            }) => {
                self.conclude(portable, line, done).await?;
                let mut served = Served::here(self, response);
                served.served_by = ServedBy::There(served_by);
                served.next_hop = Some(to);
                served.upgrade = tunnel.map(Upgrade::Hop);
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
            Err(HopError::Refused(HopRefusal::Problem { status, name, detail, .. }, ..)) => {
                line.executed(Outcome::Failed);
                Err(from_refusal(status, &name, detail, None))
            }
            Err(error) => {
                line.executed(Outcome::Failed);
                **failed = self.after_failed_hop(slot, call, &to, error, portable.keyed)?;
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
        // Its client has come here, and may stay: what is not ready here begins to be.
        let slot = portable.slot;
        let is_cold = !slot.keeps_registers && slot.state() != AppState::Ready;
        if is_cold && portable.arrived == Arrived::AtFrontDoor && !self.is_draining() {
            slot.wanted(WantedBy::Request);
        }
        let asking = self.ask(portable.slot, to, call, HopKind::Forward(forward), tracing);
        match Box::pin(asking).await {
            Ok(reply) => {
                let mut served = Served::here(self, reply.response);
                served.served_by = ServedBy::There(reply.served_by);
                served.next_hop = Some(to.clone());
                served.upgrade = reply.tunnel.map(Upgrade::Hop);
                match reply.session {
                    ReplySession::Committed { hint, replayed } => {
                        served.replayed = replayed;
                        if hint.sid == key.sid {
                            self.store.gave(key, hint.n);
                        }
                        served.entry = Some(self.portable_entry(key, &hint));
                    }
                    ReplySession::Cleared { replayed } => {
                        served.replayed = replayed;
                        served.cleared = true;
                    }
                    ReplySession::None | ReplySession::Done(_) => {}
                }
                LineEnd::Served(Box::new(served))
            }
            Err(HopError::Refused(HopRefusal::NotOwner { claim, .. }, ..)) => {
                // The next request need not ask the wrong peer first.
                self.store.with(key, false, |machine, _, _| machine.note_claim(claim));
                LineEnd::Elsewhere(claim)
            }
            Err(HopError::Refused(HopRefusal::Deposed { to, n }, ..)) => {
                LineEnd::Failed(Failure::Deposed { to, n })
            }
            Err(HopError::Refused(HopRefusal::Lost { went_on }, ..)) => {
                LineEnd::Failed(match went_on {
                    Some((into, by)) => Failure::WentOn { into, by },
                    None => Failure::Lost { ran: false },
                })
            }
            Err(HopError::Refused(HopRefusal::Ended, ..)) => LineEnd::Failed(Failure::Ended),
            Err(HopError::Refused(
                HopRefusal::Problem { status, name, detail, retry_after_ms },
                ..,
            )) => LineEnd::Problem(from_refusal(status, &name, detail, retry_after_ms)),
            Err(error) => {
                match self.after_failed_hop(portable.slot, call, to, error, portable.keyed) {
                    // The owner is not reached: whoever is asked next takes over.
                    Ok(_) => LineEnd::Elsewhere(None),
                    // Nor is it run again there, but its session may know what became of it.
                    Err(_) if portable.runs_once() => {
                        call.may_have_run = true;
                        LineEnd::Elsewhere(None)
                    }
                    Err(problem) => LineEnd::Problem(problem),
                }
            }
        }
    }

    fn portable_entry(&self, key: &SessionKey, hint: &Hint) -> Entry {
        Entry {
            app: key.app.clone(),
            sid: hint.sid,
            kind: Kind::Portable { cfg: hint.cfg.clone(), owner: hint.owner, n: hint.n },
            expiry: self.clock.wall().after(self.store.policy().ttl),
        }
    }

    /// What a client is told of a session that could not be used, counted.
    fn session_problem(&self, failure: &Failure) -> Problem {
        if *failure == Failure::Absent {
            // That there is none is an answer.
            return of_session(failure);
        }
        let reason = ByReason { reason: describe(failure).0 };
        self.metrics.session_refusals.get_or_create(&reason).inc();
        of_session(failure)
    }

    /// Serves a request for another peer, which does not hear its owner.
    async fn serve_relayed(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        forward: &Forward,
        begins: bool,
        tracing: &mut Tracing,
    ) -> Result<Served, HopRefusal> {
        call.attempt = forward.attempt;
        let portable = Portable::forwarded(slot, forward);
        let mut errand = Errand::relayed(portable.asked(call), ByKey { sid: forward.sid, begins });
        let served = Box::pin(self.run_errand(&portable, call, &mut errand, tracing)).await;
        let unsure = errand.may_have_run() || call.may_have_run;
        served.map_err(|problem| as_refusal(&portable.told(problem, call, unsure)))
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
        tracing.session(&key);
        if let Some(begins) = forward.relay {
            return self.serve_relayed(slot, call, forward, begins, tracing).await;
        }
        let (me, owner) = (self.incarnation, forward.owner);
        let token = forward.cfg.is_some();
        if let Some(cfg) = forward.cfg.as_ref().filter(|_| forward.n == 0 && !forward.keyed) {
            let look = self.store.with(&key, false, |machine, _, _| Look::of(machine));
            if is_void(cfg, look.unwrap_or_default(), &self.here(&self.view())) {
                return Err(HopRefusal::Lost { went_on: None });
            }
        }
        let answer = self
            .store
            .with(&key, false, |machine, _, _| answer_forward(Some(machine), me, owner, token))
            .unwrap_or_else(|| answer_forward(None, me, owner, token));
        let enter = match (answer, &forward.cfg) {
            (Forwarded::Serve { take_over: true }, Some(cfg)) => {
                self.taking_over(&key, cfg.clone())
            }
            (Forwarded::Serve { .. }, _) => Enter::AsOwner,
            (Forwarded::NotOwner { claim, cfg }, _) => {
                return Err(HopRefusal::NotOwner { claim, cfg });
            }
        };
        call.attempt = forward.attempt;
        let portable = Portable::forwarded(slot, forward);
        let end = self.at_owner(&portable, call, &key, enter, None, tracing).await;
        if let Some(to) = forward.hand_over {
            self.store.with(&key, false, |machine, ctx, out| machine.hand_over(ctx, to, out));
        }
        match end {
            LineEnd::Served(served) => Ok(*served),
            // Whoever forwarded it may know more.
            LineEnd::Failed(Failure::Lost { ran: false }) if !self.newborn_for().is_zero() => {
                Err(HopRefusal::NotOwner { claim: None, cfg: None })
            }
            // Who is told that this is not the owner goes on as if no app had seen the request.
            LineEnd::Elsewhere(to) if portable.runs_once() && call.may_have_run => {
                Err(HopRefusal::Deposed { to, n: forward.n })
            }
            end if end.is_elsewhere() => {
                let known = self.store.with(&key, false, |machine, _, _| {
                    (machine.claim(), machine.config().cloned())
                });
                let (claim, cfg) = known.unwrap_or_default();
                Err(HopRefusal::NotOwner { claim, cfg })
            }
            LineEnd::Failed(failure) if is_for_entry(&failure) => Err(match failure {
                Failure::WentOn { into, by } => HopRefusal::Lost { went_on: Some((into, by)) },
                Failure::Deposed { to, n } => HopRefusal::Deposed { to, n },
                Failure::Ended => HopRefusal::Ended,
                _ => HopRefusal::Lost { went_on: None },
            }),
            LineEnd::Failed(failure) => {
                let problem = self.session_problem(&failure);
                Err(as_refusal(&portable.told(problem, call, call.may_have_run)))
            }
            LineEnd::Problem(problem) => {
                Err(as_refusal(&portable.told(problem, call, call.may_have_run)))
            }
            LineEnd::Elsewhere(claim) => Err(HopRefusal::NotOwner { claim, cfg: None }),
        }
    }
}

fn trace(because: Because, lost: bool, tracing: &mut Tracing) {
    match because {
        Because::Forked(into) => tracing.step("fork", format!("it goes on as {into}")),
        Because::Lost if lost => {
            tracing.step("lost", "too many of the session's holders are gone");
        }
        Because::Ended => tracing.step("ended", "the session's id was ended: a new one begins"),
        Because::Lost
        | Because::NotBegun
        | Because::OwnedElsewhere
        | Because::Deposed
        | Because::NoWitness => {}
    }
}

/// Keeps the bytes of a session's state alive without copying them.
struct ArcBytes(Arc<[u8]>);

impl AsRef<[u8]> for ArcBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn hint_of(key: &SessionKey, hint: TokenHint) -> Hint {
    Hint { sid: key.sid, cfg: hint.cfg, owner: hint.owner, n: hint.n }
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
        Stored::Unknown | Stored::Begun(_) => Err(Problem::new(
            StatusCode::CONFLICT,
            "idempotency-key-outcome-unknown",
            "whether the request with this Idempotency-Key was applied is unknown, and it is not run \
             again: look at what it was to change, and use another key",
        )),
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
