//! A request in line for its session.

use std::sync::Arc;

use warmhop_core::ids::{Incarnation, Position, SessionKey};
use warmhop_core::session::message::{Body, Exec, ExecDone, Message};
use warmhop_core::session::{Ctx, Effect, Outcome, Session, Ticket};

use super::{Lines, Store};
use crate::observe::failpoint::{self, Point};
use crate::sessions::told::{Listener, Told};

/// One request in line for its session; leaves the line when it is dropped, whatever happened.
pub(crate) struct InLine {
    pub(super) store: Arc<Store>,
    pub(crate) key: SessionKey,
    pub(super) ticket: Ticket,
    pub(super) listener: Listener,
    /// The position being executed, while it is.
    pub(super) running: Option<Option<Position>>,
    /// What was to be sent when the execution began: it goes out beside it.
    pub(super) held_back: Vec<(Incarnation, Message)>,
    /// It was told the last thing, and is in line no more.
    pub(super) is_out: bool,
}

/// How the run of a request at its session's owner begins.
pub(crate) enum Begun {
    /// With this order, on this body.
    Runs(Exec, Arc<Body>),
    /// It may not run, and its owner has been told so.
    Refused,
    /// It was not its turn after all, or the order goes another way: the line tells.
    No,
}

impl InLine {
    /// What happens next.
    pub(crate) async fn next(&mut self) -> Told {
        let told = match self.listener.unread() {
            Some(told) => told,
            None => {
                self.send_held_back();
                self.listener.next().await.unwrap_or(Told::Redirect(None))
            }
        };
        self.is_out |= told.is_last();
        if let Told::Execute { exec, .. } = &told {
            self.running = Some(exec.p);
        }
        told
    }

    /// Who runs it has been decided.
    pub(crate) fn begin(&mut self, executor: Incarnation) {
        self.send_held_back();
        let begun =
            self.store.with_held_back(&self.key, false, Lines::Stay, |machine, ctx, out| {
                machine.begin(ctx, self.ticket, executor, out);
            });
        self.held_back = begun.map(|((), outgoing)| outgoing).unwrap_or_default();
    }

    /// Where it is this request's turn, and `executor` is this peer: has what waits for nothing executed
    /// and its outcome told, all in one step. `None` where it could not begin.
    pub(crate) fn execute_at_once<R>(
        &mut self,
        executor: Incarnation,
        work: impl FnOnce(&mut Session, &mut Ctx<'_>, &Exec) -> (Outcome, R),
    ) -> Option<R> {
        self.send_held_back();
        let (store, ticket) = (Arc::clone(&self.store), self.ticket);
        let mut changed = false;
        let result = store.with(&self.key, false, |machine, ctx, out| {
            let exec = ordered(machine, ctx, ticket, executor, out)?;
            let (outcome, result) = work(machine, ctx, &exec);
            changed = failpoint::changed(&outcome);
            failpoint::pass_if(changed, Point::OwnerVoteBefore);
            machine.executed(ctx, ticket, exec.p, outcome, out);
            Some(result)
        });
        failpoint::pass_if(changed, Point::OwnerVoteAfter);
        result.flatten()
    }

    /// Where it is this request's turn, and `executor` is this peer: begins its run, in one step.
    pub(crate) fn begin_here(&mut self, executor: Incarnation) -> Begun {
        self.send_held_back();
        let ticket = self.ticket;
        let begun =
            self.store.with_held_back(&self.key, false, Lines::Stay, |machine, ctx, out| {
                let Some(exec) = ordered(machine, ctx, ticket, executor, out) else {
                    return Begun::No;
                };
                match machine.exec_begin(ctx, &exec) {
                    Ok(base) => Begun::Runs(exec, base),
                    Err(refused) => {
                        machine.executed(ctx, ticket, exec.p, Outcome::from(refused), out);
                        Begun::Refused
                    }
                }
            });
        let Some((begun, outgoing)) = begun else { return Begun::No };
        self.held_back = outgoing;
        if let Begun::Runs(exec, _) = &begun {
            self.running = Some(exec.p);
        }
        begun
    }

    /// Has what came of a run here written down by `write_down`, and its outcome told, in one step.
    /// An end of the session's id is given back instead, since its heir comes first.
    pub(crate) fn ended_here(
        &mut self,
        write_down: impl FnOnce(&mut Session, &mut Ctx<'_>) -> ExecDone,
    ) -> Result<Option<ExecDone>, NoRoom> {
        self.send_held_back();
        let Some(p) = self.running.take() else { return Ok(None) };
        let ticket = self.ticket;
        let mut changed = false;
        let left = self.store.with(&self.key, true, |machine, ctx, out| {
            let done = write_down(machine, ctx);
            if matches!(&done, ExecDone::Changed { body, .. } if body.ended.is_some()) {
                return Some(done);
            }
            let outcome = Outcome::from(done);
            changed = failpoint::changed(&outcome);
            failpoint::pass_if(changed, Point::OwnerVoteBefore);
            machine.executed(ctx, ticket, p, outcome, out);
            None
        });
        failpoint::pass_if(changed, Point::OwnerVoteAfter);
        let left = left.ok_or(NoRoom);
        if !matches!(left, Ok(None)) {
            self.running = Some(p);
        }
        left
    }

    /// Sends what may go out beside the execution. A read's confirmation is shorter than most
    /// executions: it is begun second, since waking the tasks that send it takes time.
    pub(crate) fn send_held_back(&mut self) {
        let outgoing = std::mem::take(&mut self.held_back);
        self.store.deliver(&self.key, outgoing);
    }

    /// What came of running it.
    pub(crate) fn executed(&mut self, outcome: Outcome) {
        self.send_held_back();
        let Some(p) = self.running.take() else { return };
        let changed = failpoint::changed(&outcome);
        failpoint::pass_if(changed, Point::OwnerVoteBefore);
        self.store.with(&self.key, false, |machine, ctx, out| {
            machine.executed(ctx, self.ticket, p, outcome, out);
        });
        failpoint::pass_if(changed, Point::OwnerVoteAfter);
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.send_held_back();
        if !self.is_out {
            self.store.leave(&self.key, self.ticket, self.running.take());
        }
    }
}

/// There is no room for the session here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// The order that comes of beginning, taken out of what follows from it.
fn ordered(
    machine: &mut Session,
    ctx: &mut Ctx<'_>,
    ticket: Ticket,
    executor: Incarnation,
    out: &mut Vec<Effect>,
) -> Option<Exec> {
    let begun = out.len();
    machine.begin(ctx, ticket, executor, out);
    let is_order =
        |effect: &Effect| matches!(effect, Effect::Execute { ticket: of, .. } if *of == ticket);
    let at = out.iter().skip(begun).position(is_order)?;
    match out.remove(begun + at) {
        Effect::Execute { exec, .. } => Some(exec),
        _ => None,
    }
}
