//! A request in line for its session at this peer: its turn, its execution here or elsewhere, and the
//! answer once that is committed.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use warmhop_core::ids::{Incarnation, PeerId, SessionKey};
use warmhop_core::problem::ProblemKind;
use warmhop_core::route::{Attempted, may_retry};
use warmhop_core::session::entry::{Enter, Rerun, Reruns};
use warmhop_core::session::message::{Body, Exec, ExecDone, Stored};
use warmhop_core::session::{Ctx, Failure, Outcome, Session as Machine, TokenHint};
use warmhop_core::view::AppState;

use crate::app::session::Session;
use crate::app::slot::Slot;
use crate::hop::{self, Hint, HopError, HopKind, HopRefusal, HopReply, ReplySession};
use crate::http::fields;
use crate::observe::recall::Tracing;
use crate::request::answer::Answer;
use crate::request::call::{Call, CallBody};
use crate::request::local_error::{LocalError, app_failed, error_chain};
use crate::request::node::{Node, Place, Placing};
use crate::request::portable::{LineEnd, Portable, Run};
use crate::request::problem::{
    Problem, from_refusal, gave_up, in_words, outcome_unknown, too_many_sessions,
};
use crate::request::registers::bounds::STATE_BYTES_MAX;
use crate::request::served::{FAILURES_MAX, RanHere, Served, ServedBy, Upgrade};
use crate::sessions::events::Event;
use crate::sessions::store::{AsOwner, Begun, InLine, NoRoom};

/// A request in line, and its progress.
struct Standing {
    line: InLine,
    /// Where it runs, if that was chosen before its turn.
    place: Option<Place>,
    /// Its outcome is unknown: it does not run (again).
    is_unknown: bool,
    reruns: Reruns,
    /// The peers that were asked and did not serve it.
    tried: Vec<PeerId>,
    /// The client's problem if no other copy can be asked.
    failed: Option<Problem>,
    /// The answer that leaves once its change is committed.
    held: Option<Served>,
}

impl Standing {
    fn new(line: InLine, run: Run) -> Self {
        let is_unknown = matches!(run, Run::OutcomeUnknown);
        let place = match run {
            Run::At(place) => Some(place),
            Run::WherePlaced | Run::OutcomeUnknown | Run::Begun(_) => None,
        };
        let reruns = Reruns::default();
        Self { line, place, is_unknown, reruns, tried: Vec::new(), failed: None, held: None }
    }

    fn placing<'a>(&'a self, portable: &Portable<'a>, call: &Call) -> Placing<'a> {
        Placing {
            tried: &self.tried,
            failed: self.failed.as_ref(),
            shun_here: call.failed_here(portable.slot),
            ..portable.placing()
        }
    }

    /// Begins its run at `executor`. Returns the order at once if that is this peer, `me`;
    /// otherwise the line delivers it.
    fn begin(&mut self, executor: Incarnation, me: Incarnation) -> Option<Order> {
        if executor != me {
            self.line.begin(executor);
            return None;
        }
        let begun = self.line.begin_here(executor);
        self.begun(begun, executor)
    }

    /// The order to run it here, at `executor`, if its run has begun.
    fn begun(&mut self, begun: Begun, executor: Incarnation) -> Option<Order> {
        match begun {
            Begun::Runs(exec, base) => Some(Order { executor, exec, base: Some(base) }),
            Begun::Refused => {
                self.reruns.came_to_nothing();
                None
            }
            Begun::No => None,
        }
    }

    /// Notes how an execution ended. The error is the client's problem.
    fn ran(
        &mut self,
        ran: Result<Option<Served>, Problem>,
        portable: &Portable<'_>,
        call: &mut Call,
    ) -> Result<(), Problem> {
        match ran {
            Ok(Some(served)) => {
                call.may_have_run |= portable.runs_once();
                self.held = Some(served);
            }
            Ok(None) => self.reruns.came_to_nothing(),
            // The app did not see a request whose field its server refused: its key stays free.
            Err(problem)
                if portable.runs_once() && problem.kind != ProblemKind::SessionFieldRefused =>
            {
                call.may_have_run = true;
                self.is_unknown = true;
                self.failed = Some(problem);
                self.reruns.came_to_nothing();
            }
            Err(problem) => return Err(problem),
        }
        Ok(())
    }
}

/// An order to run a request.
struct Order {
    executor: Incarnation,
    exec: Exec,
    /// The body that it runs on, if this peer has begun it already.
    base: Option<Arc<Body>>,
}

impl Node {
    /// Waits for the request's turn, runs it as `run` says, and waits until its change is
    /// committed.
    ///
    /// The execution here is awaited in here: one more future around it would move all of its own. What
    /// is rarer is boxed.
    pub(crate) async fn stand_in_line(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        key: &SessionKey,
        enter: Enter,
        run: Run,
        tracing: &mut Tracing,
    ) -> LineEnd {
        let entered = self.enters(portable, call, key, enter, run, tracing);
        let Some((mut standing, at_once)) = entered else {
            return LineEnd::Problem(too_many_sessions());
        };
        if let Some(order) = at_once {
            let ran = self.execute_for_line(portable, call, &mut standing, order, tracing).await;
            if let Err(problem) = standing.ran(ran, portable, call) {
                return LineEnd::Problem(problem);
            }
        }
        loop {
            let order = match standing.line.next().await {
                Event::Turn if standing.is_unknown => {
                    standing.line.begin(self.incarnation);
                    continue;
                }
                Event::Execute { exec, .. } if standing.is_unknown => {
                    self.commit_unknown(&mut standing, call, &exec, tracing);
                    continue;
                }
                // Every peer that offers registers executes what it owns.
                Event::Turn if portable.slot.keeps_registers => {
                    if let Err(error) = self.operate_in_line(&mut standing, call, tracing) {
                        return LineEnd::Problem(app_failed(self.me.as_str(), &error));
                    }
                    continue;
                }
                Event::Turn => {
                    let placed = self.placed(&mut standing, portable, call, tracing);
                    let place = match Box::pin(placed).await {
                        Ok(place) => place,
                        Err(problem) => return LineEnd::Problem(problem),
                    };
                    // A peer that vanished between two lines runs nothing: choose again.
                    let Some(executor) = self.incarnation_at(&place) else {
                        return LineEnd::Elsewhere(None);
                    };
                    match standing.begin(executor, self.incarnation) {
                        Some(order) => order,
                        None => continue,
                    }
                }
                Event::Again => {
                    standing.held = None;
                    continue;
                }
                Event::Execute { executor, exec } => Order { executor, exec, base: None },
                Event::Release { hint } => match standing.held.take() {
                    Some(served) => return self.released(portable, key, hint, served),
                    None => continue,
                },
                Event::Replay { stored, hint } => {
                    return self.replay(portable, key, hint, &stored, tracing);
                }
                Event::Fail(failure) => {
                    match self.after_failure(&mut standing, portable, call, failure, tracing) {
                        ControlFlow::Continue(()) => continue,
                        ControlFlow::Break(end) => return end,
                    }
                }
                Event::Redirect(to) => return LineEnd::Elsewhere(to),
            };
            let ran = if order.executor == self.incarnation {
                self.execute_for_line(portable, call, &mut standing, order, tracing).await
            } else {
                let there = self.execute_there(portable, call, &mut standing, order, tracing);
                Box::pin(there).await
            };
            if let Err(problem) = standing.ran(ran, portable, call) {
                return LineEnd::Problem(problem);
            }
        }
    }

    /// Puts a request in line. If the copy here takes it, and its turn is now, its run begins in the
    /// same step: most sessions have one request at a time, from a client that stays.
    fn enters(
        &self,
        portable: &Portable<'_>,
        call: &Call,
        key: &SessionKey,
        enter: Enter,
        run: Run,
        tracing: &mut Tracing,
    ) -> Option<(Standing, Option<Order>)> {
        if let Run::Begun(begun) = run {
            let AsOwner { line, ran, .. } = *begun;
            return Some((self.begun_at_once(line, ran, tracing), None));
        }
        let may = matches!(run, Run::WherePlaced) && !portable.slot.keeps_registers;
        let shun_here = call.failed_here(portable.slot);
        let placing = Placing { shun_here, ..portable.placing() };
        let takes = may.then(|| self.takes_now(&placing, &call.waits)).flatten();
        let submit = portable.submit(call);
        let (line, begun) = self.store.enqueue_to_run(key, submit, enter, takes.is_some())?;
        let mut standing = Standing::new(line, run);
        let order = standing.begun(begun, self.incarnation);
        if let (Some(reason), Some(_)) = (takes, &order) {
            self.taken_now(portable.slot, reason, tracing);
        }
        Some((standing, order))
    }

    /// Where a request runs whose turn has come.
    async fn placed(
        &self,
        standing: &mut Standing,
        portable: &Portable<'_>,
        call: &mut Call,
        tracing: &mut Tracing,
    ) -> Result<Place, Problem> {
        if let Some(place) = standing.place.take() {
            return Ok(place);
        }
        let placing = standing.placing(portable, call);
        let (waits, failed_at) = (&mut call.waits, &mut call.failed_at);
        self.place_anew(&placing, waits, failed_at, tracing).await
    }

    /// Commits that the request's outcome is unknown, and holds the answer that reports so.
    fn commit_unknown(
        &self,
        standing: &mut Standing,
        call: &Call,
        exec: &Exec,
        tracing: &mut Tracing,
    ) {
        tracing.step("unknown", "whether it was applied is unknown: it is not run again");
        let done = self.write_down(&standing.line.key, exec, Stored::Unknown);
        if done.is_none() {
            standing.reruns.came_to_nothing();
        }
        standing.held = Some(self.unknown_for_good(standing.failed.take(), call.id.as_str()));
        standing.line.executed(done.map_or(Outcome::Failed, Outcome::from));
    }

    /// Executes an operation on a register that this peer owns.
    fn operate_in_line(
        &self,
        standing: &mut Standing,
        call: &Call,
        tracing: &mut Tracing,
    ) -> Result<(), LocalError> {
        let CallBody::Whole(operation) = &call.body else { return Err(LocalError::BodyGone) };
        let answer = self.operate(&mut standing.line, operation)?;
        self.operated(standing, answer, tracing);
        Ok(())
    }

    /// Holds the answer to an operation; `None` if its run came to nothing.
    fn operated(&self, standing: &mut Standing, answer: Option<Answer>, tracing: &mut Tracing) {
        match answer {
            Some(answer) => {
                tracing.served_by(&self.me);
                let mut served =
                    Served::here(self, Response::new(crate::http::body::Body::empty()));
                served.answer = Some(answer);
                standing.held = Some(served);
            }
            None => standing.reruns.came_to_nothing(),
        }
    }

    /// An operation in line that may have had its turn and run already: `ran` is how.
    fn begun_at_once(
        &self,
        line: InLine,
        ran: Option<Option<Answer>>,
        tracing: &mut Tracing,
    ) -> Standing {
        let mut standing = Standing::new(line, Run::WherePlaced);
        if let Some(answer) = ran {
            self.operated(&mut standing, answer, tracing);
        }
        standing
    }

    /// The life of the peer at `place`; `None` if it is gone.
    fn incarnation_at(&self, place: &Place) -> Option<Incarnation> {
        match place {
            Place::Here => Some(self.incarnation),
            Place::There(peer) => self.view().peer(peer).map(|belief| belief.news.incarnation),
        }
    }

    /// The end of a request whose change is committed: its answer, which names the session.
    fn released(
        &self,
        portable: &Portable<'_>,
        key: &SessionKey,
        hint: TokenHint,
        mut served: Served,
    ) -> LineEnd {
        let hint = Hint { sid: key.sid, cfg: hint.cfg, owner: hint.owner, n: hint.n };
        let entry = self.portable_entry(key, &hint);
        self.name_session(portable, key, entry, &mut served);
        LineEnd::Served(Box::new(served))
    }

    /// The end of a request that was applied before: its stored answer, if there is one.
    fn replay(
        &self,
        portable: &Portable<'_>,
        key: &SessionKey,
        hint: TokenHint,
        stored: &Stored,
        tracing: &mut Tracing,
    ) -> LineEnd {
        tracing.step("replay", "this request was applied before");
        match replayed(self, stored) {
            Ok(served) => self.released(portable, key, hint, served),
            Err(problem) => LineEnd::Problem(problem),
        }
    }

    /// Puts a request whose execution failed in line again, if the core allows it.
    fn after_failure(
        &self,
        standing: &mut Standing,
        portable: &Portable<'_>,
        call: &Call,
        failure: Failure,
        tracing: &mut Tracing,
    ) -> ControlFlow<LineEnd> {
        match standing.reruns.failed(&failure, call.is_sendable()) {
            Rerun::Again => {
                let key = standing.line.key.clone();
                match self.store.enqueue(&key, portable.submit(call), Enter::AsOwner) {
                    Some(anew) => {
                        standing.line = anew;
                        ControlFlow::Continue(())
                    }
                    None => ControlFlow::Break(LineEnd::Problem(too_many_sessions())),
                }
            }
            Rerun::GiveUp => ControlFlow::Break(LineEnd::Problem(gave_up())),
            Rerun::No => {
                tracing.step("session", in_words(&failure));
                ControlFlow::Break(LineEnd::Failed(failure))
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
        let (ran, came) = self.run_on(slot, call, exec, base).await?;
        let done =
            self.store.with(key, true, |machine, ctx, _| came.write_down(machine, ctx, exec));
        Ok((ran, done.ok_or_else(no_room)?))
    }

    /// Runs the app here on `base`, for an order that may run.
    async fn run_on(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        exec: &Exec,
        base: Arc<Body>,
    ) -> Result<(RanHere, Uncommitted), LocalError> {
        let (ttl, state_max, stored_max) = {
            let policy = self.store.policy();
            (policy.ttl, policy.state_bytes_max, policy.stored_response_bytes_max)
        };
        let expired = base.is_over(exec, self.clock.wall(), ttl);
        let state =
            base.state.clone().filter(|_| !expired).map(|state| Bytes::from_owner(ArcBytes(state)));
        let bytes_max = if slot.keeps_registers { STATE_BYTES_MAX } else { state_max };
        let session = Session::new(state.clone(), bytes_max);
        let mut ran = self.run_here(slot, call, Some(&session)).await?;
        if let Some(field) = ran.field.take() {
            self.set_carried(slot, &session, field)?;
        }
        let mut changed = session.close();
        // A deleted register may be created again under its key.
        let ends = session.ends() && !slot.keeps_registers;
        // Its use extends its life: an unchanged session whose time is half over is written again.
        let uses_up = changed.is_none() && state.is_some() && !slot.keeps_registers;
        if uses_up && base.is_half_over(exec, ttl) {
            changed = Some(state);
        }
        let mut stored = Stored::Applied;
        if exec.keyed {
            let (response, kept) = Box::pin(hop::store_response(ran.response, stored_max))
                .await
                .map_err(|error| LocalError::Failed(error_chain(&*error)))?;
            ran.response = response;
            stored = kept;
        }
        let changed = changed.map(|new| new.map(|bytes| Arc::<[u8]>::from(bytes.as_ref())));
        Ok((ran, Uncommitted { base, changed, ends, stored }))
    }

    async fn execute_for_line(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        standing: &mut Standing,
        order: Order,
        tracing: &mut Tracing,
    ) -> Result<Option<Served>, Problem> {
        let Order { exec, base, .. } = order;
        let Standing { line, failed, reruns, .. } = standing;
        let key = line.key.clone();
        let slot = portable.slot;
        let ran = {
            let execution = std::pin::pin!(async {
                match base {
                    Some(base) => {
                        let (ran, came) = self.run_on(slot, call, &exec, base).await?;
                        Ok((ran, Done::Uncommitted(came)))
                    }
                    None => {
                        let ran = Box::pin(self.execute_here(slot, call, &key, &exec)).await;
                        let (ran, done) = ran?;
                        Ok((ran, Done::WrittenDown(done)))
                    }
                }
            });
            line.sends_beside(execution).await
        };
        match ran {
            Ok((ran, done)) => {
                tracing.served_by(&self.me);
                let mut served = Served::here(self, ran.response);
                served.upgrade = ran.upgrade;
                let left = match done {
                    Done::WrittenDown(done) => Some(done),
                    Done::Uncommitted(came) => {
                        match line.ended_here(|machine, ctx| came.write_down(machine, ctx, &exec)) {
                            Ok(left) => left,
                            Err(NoRoom) => {
                                line.executed(Outcome::Failed);
                                return Err(app_failed(self.me.as_str(), &no_room()));
                            }
                        }
                    }
                };
                if let Some(done) = left {
                    self.conclude(portable, line, done).await?;
                }
                Ok(Some(served))
            }
            Err(LocalError::Busy) if call.is_sendable() => {
                reruns.had_no_place();
                line.executed(Outcome::Failed);
                Ok(None)
            }
            // The app went away before it saw the request: the next turn routes it again.
            Err(LocalError::NotReady) if call.is_sendable() => {
                line.executed(Outcome::Failed);
                Ok(None)
            }
            // It hung and was ended: the next copy is asked.
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
            Err(error @ (LocalError::Failed(_) | LocalError::TooSlow(_)))
                if may_go_to_another(portable, call) =>
            {
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

    async fn execute_there(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        standing: &mut Standing,
        order: Order,
        tracing: &mut Tracing,
    ) -> Result<Option<Served>, Problem> {
        let Order { executor, exec, .. } = order;
        let Standing { line, tried, failed, reruns, .. } = standing;
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
                served.upgrade = tunnel.map(Upgrade::Hop).map(Box::new);
                Ok(Some(served))
            }
            Ok(_) => {
                line.executed(Outcome::Failed);
                Err(outcome_unknown("the executing peer's reply was malformed"))
            }
            Err(HopError::Refused(HopRefusal::Exec(done), ..)) => {
                line.executed(Outcome::from(done));
                Ok(None)
            }
            Err(HopError::Refused(HopRefusal::Problem(sent), ..)) => {
                line.executed(Outcome::Failed);
                Err(from_refusal(sent))
            }
            // Its reported load shows that it need not be asked again soon.
            Err(HopError::Refused(HopRefusal::Busy, ..)) if call.is_sendable() => {
                reruns.had_no_place();
                line.executed(Outcome::Failed);
                Ok(None)
            }
            // Its version is known now.
            Err(HopError::Refused(HopRefusal::Older(_), ..))
                if call.is_sendable() && self.counts_on(slot, &to, call).is_none() =>
            {
                line.executed(Outcome::Failed);
                Ok(None)
            }
            Err(error) => {
                line.executed(Outcome::Failed);
                *failed = self.after_failed_hop(slot, call, &to, error, portable.keyed)?;
                tried.push(to);
                Ok(None)
            }
        }
    }
}

/// Whether a request that the app here took and failed on may be given to another copy: as if it had
/// failed at another peer.
fn may_go_to_another(portable: &Portable<'_>, call: &Call) -> bool {
    let is_void = may_retry(Attempted {
        is_safe: false,
        has_key: portable.keyed,
        effects: portable.slot.spec().policy.effects,
        is_portable: true,
        may_have_reached_app: true,
    });
    call.may_go_to_another() || (is_void && call.is_sendable() && call.failures < FAILURES_MAX)
}

/// The outcome of a run here, not committed yet.
struct Uncommitted {
    base: Arc<Body>,
    changed: Option<Option<Arc<[u8]>>>,
    /// It ended the session's id.
    ends: bool,
    stored: Stored,
}

impl Uncommitted {
    fn write_down(self, machine: &mut Machine, ctx: &mut Ctx<'_>, exec: &Exec) -> ExecDone {
        let Self { base, changed, ends, stored } = self;
        match ends {
            true => machine.exec_end_of_id(ctx, exec, &base, changed.flatten(), stored),
            false => machine.exec_end(ctx, exec, &base, changed, stored),
        }
    }
}

/// How far the outcome of a run has come.
enum Done {
    Uncommitted(Uncommitted),
    WrittenDown(ExecDone),
}

fn no_room() -> LocalError {
    LocalError::Failed("too many sessions on this peer".into())
}

/// Keeps the bytes of a session's state alive without copying them.
struct ArcBytes(Arc<[u8]>);

impl AsRef<[u8]> for ArcBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
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
            ProblemKind::KeyOutcomeUnknown,
            "whether the request with this Idempotency-Key was applied is unknown, and it is not run \
             again: look at what it was to change, and use another key",
        )),
        Stored::TooLarge => Err(Problem::new(
            ProblemKind::AppliedTooLargeToRepeat,
            "this request was applied before; its answer was too large to be kept, or made room for later ones",
        )),
        Stored::Applied => Err(Problem::new(
            ProblemKind::AppliedAnswerLost,
            "the request was applied, but its answer was lost on the way; do not repeat it",
        )),
    }
}
