//! A request in line for its session.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use warmhop_core::ids::{Incarnation, Position, SessionKey};
use warmhop_core::session::entry::{Enter, Look};
use warmhop_core::session::message::{Body, Exec, ExecDone, Message};
use warmhop_core::session::{Ctx, Effect, Outcome, Session, Submit, Ticket};

use super::{EMPTY_KEPT_FOR, Lines, Store};
use crate::observe::failpoint::{self, Point};
use crate::sessions::events::{self, Event, EventReceiver};

/// One request in line for its session; leaves the line when it is dropped, whatever happened.
pub(crate) struct InLine {
    pub(super) store: Arc<Store>,
    pub(crate) key: SessionKey,
    pub(super) ticket: Ticket,
    pub(super) events: EventReceiver,
    /// The position being executed, while it is.
    pub(super) running: Option<Option<Position>>,
    /// Messages that were due when the execution began. They are sent while it runs.
    pub(super) held_back: Vec<(Incarnation, Message)>,
    /// It has received its last event and has left the line.
    pub(super) is_out: bool,
}

/// How the run of a request at its session's owner begins.
pub(crate) enum Begun {
    /// It runs by this order, on this body.
    Runs(Exec, Arc<Body>),
    /// It may not run, and the owner has been notified.
    Refused,
    /// It was not this request's turn after all, or another peer runs it. An event will say which.
    No,
}

/// An operation that has entered the line of a session that this peer owns.
pub(crate) struct AsOwner<R> {
    pub(crate) line: InLine,
    /// What its run returned, if it had its turn at once and could begin.
    pub(crate) ran: Option<R>,
    /// The highest number that was known to be chosen before.
    pub(crate) seen: u64,
}

impl Store {
    /// Puts an operation in line for a session that this peer owns, and runs it if it has its turn at
    /// once, all in one step. `work` waits for nothing. `None`, and nothing is done, if this peer does
    /// not own the session, does not hear a majority of its members, or has no room for it to grow to
    /// `grows_to` bytes.
    pub(crate) fn operate_as_owner<R>(
        self: &Arc<Self>,
        key: &SessionKey,
        submit: impl FnOnce(Ticket) -> Submit,
        grows_to: Option<usize>,
        work: impl FnOnce(&mut Session, &mut Ctx<'_>, &Exec) -> (Outcome, R),
    ) -> Option<AsOwner<R>> {
        if grows_to.is_some() && self.memory.is_full() {
            return None;
        }
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        let (sender, events) = events::channel();
        let wanted = |machine: &Session| {
            let look = Look::among(machine, &self.census.load());
            let lacks_room = |bytes| machine.config().is_none_or(|it| self.is_outvoted(it, bytes));
            machine.is_owner() && !look.cut_off && !grows_to.is_some_and(lacks_room)
        };
        let keep_empty_until = self.clock.now().after(EMPTY_KEPT_FOR);
        let joins = Lines::JoinIf(&wanted, ticket, sender, keep_empty_until);
        let me = self.me;
        let mut changed = false;
        let ((ran, seen), outgoing) =
            self.with_held_back(key, false, joins, |machine, ctx, out| {
                let seen = machine.surely_chosen();
                machine.enter(ctx, submit(ticket), Enter::AsOwner, out);
                let is_turn =
                    |it: &Effect| matches!(it, Effect::Turn { ticket: of } if *of == ticket);
                let Some(at) = out.iter().position(is_turn) else { return (None, seen) };
                out.remove(at);
                let Some(exec) = ordered(machine, ctx, ticket, me, out) else {
                    return (None, seen);
                };
                let (outcome, result) = work(machine, ctx, &exec);
                changed = failpoint::changed(&outcome);
                failpoint::pass_if(changed, Point::OwnerVoteBefore);
                machine.executed(ctx, ticket, exec.p, outcome, out);
                (Some(result), seen)
            })?;
        self.deliver(key, outgoing);
        failpoint::pass_if(changed, Point::OwnerVoteAfter);
        let (store, key) = (Arc::clone(self), key.clone());
        let (running, held_back, is_out) = (None, Vec::new(), false);
        let line = InLine { store, key, ticket, events, running, held_back, is_out };
        Some(AsOwner { line, ran, seen })
    }
}

impl InLine {
    /// The next event.
    pub(crate) async fn next(&mut self) -> Event {
        let event = match self.events.unread() {
            Some(event) => event,
            None => {
                self.send_held_back();
                self.events.next().await.unwrap_or(Event::Redirect(None))
            }
        };
        self.is_out |= event.is_last();
        if let Event::Execute { exec, .. } = &event {
            self.running = Some(exec.p);
        }
        event
    }

    /// Leaves an event to whoever asks for the next one.
    pub(crate) fn put_back(&self, event: Event) {
        self.events.put_back(event);
    }

    /// The caller has decided which peer runs it.
    pub(crate) fn begin(&mut self, executor: Incarnation) {
        self.send_held_back();
        let begun =
            self.store.with_held_back(&self.key, false, Lines::Stay, |machine, ctx, out| {
                machine.begin(ctx, self.ticket, executor, out);
            });
        self.held_back = begun.map(|((), outgoing)| outgoing).unwrap_or_default();
    }

    /// If it is this request's turn and `executor` is this peer: runs `work`, which waits for nothing, and
    /// reports its outcome, all in one step. `None` if it could not begin.
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

    /// If it is this request's turn and `executor` is this peer: begins its run, in one step.
    pub(crate) fn begin_here(&mut self, executor: Incarnation) -> Begun {
        self.send_held_back();
        let ticket = self.ticket;
        let begun =
            self.store.with_held_back(&self.key, false, Lines::Stay, |machine, ctx, out| {
                begun(machine, ctx, ticket, executor, out)
            });
        let Some((begun, outgoing)) = begun else { return Begun::No };
        self.held_back = outgoing;
        self.notes(&begun);
        begun
    }

    pub(super) fn notes(&mut self, begun: &Begun) {
        if let Begun::Runs(exec, _) = begun {
            self.running = Some(exec.p);
        }
    }

    /// Records the result of a run here by `write_down` and reports its outcome, in one step. An end of the
    /// session's id is returned instead, because its heir has to be committed first.
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

    /// Sends what may be sent while the request runs. Confirming a read takes less time than most
    /// executions, so it is started second: waking the tasks that send takes time.
    pub(crate) fn send_held_back(&mut self) {
        if !self.held_back.is_empty() {
            let outgoing = std::mem::take(&mut self.held_back);
            self.store.deliver(&self.key, outgoing);
        }
    }

    /// Sends it once `run` has begun, and while that waits for the app; returns how the run ended.
    pub(crate) async fn sends_beside<R: Future>(&mut self, mut run: Pin<&mut R>) -> R::Output {
        let running = std::future::poll_fn(|cx| {
            let ran = run.as_mut().poll(cx);
            self.send_held_back();
            ran
        });
        running.await
    }

    /// Reports the outcome of its run.
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

/// Gives a request that has just entered its run at `executor`, if it has its turn at once; the event
/// of that is taken out of the effects.
pub(super) fn turned_at_once(
    machine: &mut Session,
    ctx: &mut Ctx<'_>,
    ticket: Ticket,
    executor: Incarnation,
    out: &mut Vec<Effect>,
) -> Begun {
    let is_turn = |effect: &Effect| matches!(effect, Effect::Turn { ticket: of } if *of == ticket);
    let Some(at) = out.iter().position(is_turn) else { return Begun::No };
    out.remove(at);
    begun(machine, ctx, ticket, executor, out)
}

/// Begins the run of a request whose turn it is at `executor`, which is this peer.
fn begun(
    machine: &mut Session,
    ctx: &mut Ctx<'_>,
    ticket: Ticket,
    executor: Incarnation,
    out: &mut Vec<Effect>,
) -> Begun {
    let Some(exec) = ordered(machine, ctx, ticket, executor, out) else { return Begun::No };
    match machine.exec_begin(ctx, &exec) {
        Ok(base) => Begun::Runs(exec, base),
        Err(refused) => {
            machine.executed(ctx, ticket, exec.p, Outcome::from(refused), out);
            Begun::Refused
        }
    }
}

/// Begins the request and takes its order out of the effects.
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
