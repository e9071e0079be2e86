//! A request in line for its session at this peer: its turn, its execution here or elsewhere, and the
//! answer once that is committed.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join;
use http::StatusCode;
use warmhop_core::ids::{Incarnation, PeerId, SessionKey, WallTime};
use warmhop_core::session::entry::{Enter, Rerun, Reruns};
use warmhop_core::session::message::{Body, Exec, ExecDone, Stored};
use warmhop_core::session::{Ctx, Outcome, Session as Machine, Submit, TokenHint};
use warmhop_core::view::AppState;

use crate::app::session::{Session, Turn};
use crate::app::slot::Slot;
use crate::hop::{self, Hint, HopError, HopKind, HopRefusal, HopReply, ReplySession};
use crate::http::fields;
use crate::observe::recall::Tracing;
use crate::request::call::{Call, CallBody};
use crate::request::local_error::{LocalError, app_failed, error_chain};
use crate::request::node::{Node, Place, Placing};
use crate::request::portable::{LineEnd, Portable};
use crate::request::problem::{
    Problem, describe, from_refusal, gave_up, outcome_unknown, too_many_sessions,
};
use crate::request::registers::bounds::STATE_BYTES_MAX;
use crate::request::serve::{RanHere, Served, ServedBy, Upgrade};
use crate::sessions::store::{Begun, InLine, NoRoom};
use crate::sessions::told::Told;

impl Node {
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
            let (executor, exec, base) = match line.next().await {
                Told::Turn if unknown => {
                    line.begin(self.incarnation);
                    continue;
                }
                Told::Execute { exec, .. } if unknown => {
                    tracing
                        .step("unknown", "whether it was applied is unknown: it is not run again");
                    let done = self.write_down(key, &exec, Stored::Unknown);
                    if done.is_none() {
                        reruns.came_to_nothing();
                    }
                    held = Some(self.unknown_for_good(failed.take(), call.id.as_str()));
                    line.executed(done.map_or(Outcome::Failed, Outcome::from));
                    continue;
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
                    continue;
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
                        Some(executor) if executor == self.incarnation => {
                            match line.begin_here(executor) {
                                Begun::Runs(exec, base) => (executor, exec, Some(base)),
                                Begun::Refused => {
                                    reruns.came_to_nothing();
                                    continue;
                                }
                                Begun::No => continue,
                            }
                        }
                        Some(executor) => {
                            line.begin(executor);
                            continue;
                        }
                        // It vanished between two lines: choose anew.
                        None => return LineEnd::Elsewhere(None),
                    }
                }
                Told::Again => {
                    held = None;
                    continue;
                }
                Told::Execute { executor, exec } => (executor, exec, None),
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
                        Some(anew) => {
                            line = anew;
                            continue;
                        }
                        None => return LineEnd::Problem(too_many_sessions()),
                    },
                    Rerun::GiveUp => return LineEnd::Problem(gave_up()),
                    Rerun::No => {
                        tracing.step("session", describe(&failure).2);
                        return LineEnd::Failed(failure);
                    }
                },
                Told::Redirect(to) => return LineEnd::Elsewhere(to),
            };
            let ran = if executor == self.incarnation {
                let failed = &mut failed;
                self.execute_for_line(portable, call, &mut line, (exec, base), failed, tracing)
                    .await
            } else {
                let told = &mut (&mut tried, &mut failed);
                self.execute_there(portable, call, &mut line, executor, exec, told, tracing).await
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

    /// Runs the app here on `base`, as an order that may run says.
    async fn run_on(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        exec: &Exec,
        base: Arc<Body>,
    ) -> Result<(RanHere, Came), LocalError> {
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
        Ok((ran, Came { base, changed, ends, keep_until: session.keep_until(), stored }))
    }

    async fn execute_for_line(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        line: &mut InLine,
        (exec, base): (Exec, Option<Arc<Body>>),
        failed: &mut Option<Problem>,
        tracing: &mut Tracing,
    ) -> Result<Option<Served>, Problem> {
        let key = line.key.clone();
        let slot = portable.slot;
        let execution = async {
            match base {
                Some(base) => {
                    let (ran, came) = self.run_on(slot, call, &exec, base).await?;
                    Ok((ran, Done::Came(came)))
                }
                None => {
                    let (ran, done) = self.execute_here(slot, call, &key, &exec).await?;
                    Ok((ran, Done::WrittenDown(done)))
                }
            }
        };
        let (ran, ()) = join(execution, async { line.send_held_back() }).await;
        match ran {
            Ok((ran, done)) => {
                tracing.served_by(&self.me);
                let mut served = Served::here(self, ran.response);
                served.upgrade = ran.upgrade.map(Upgrade::Io);
                let left = match done {
                    Done::WrittenDown(done) => Some(done),
                    Done::Came(came) => {
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
}

/// What came of a run here, not written down yet.
struct Came {
    base: Arc<Body>,
    changed: Option<Option<Arc<[u8]>>>,
    /// It ended the session's id.
    ends: bool,
    keep_until: Option<WallTime>,
    stored: Stored,
}

impl Came {
    fn write_down(self, machine: &mut Machine, ctx: &mut Ctx<'_>, exec: &Exec) -> ExecDone {
        let Self { base, changed, ends, keep_until, stored } = self;
        match keep_until {
            Some(until) => machine.exec_end_until(ctx, exec, &base, changed, until),
            None if ends => machine.exec_end_of_id(ctx, exec, &base, changed.flatten(), stored),
            None => machine.exec_end(ctx, exec, &base, changed, stored),
        }
    }
}

/// How far what came of a run is.
enum Done {
    Came(Came),
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
