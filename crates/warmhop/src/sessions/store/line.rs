//! A request in line for its session.

use std::sync::Arc;

use tokio::sync::mpsc;
use warmhop_core::ids::{Incarnation, Position, SessionKey};
use warmhop_core::session::message::{Exec, Message};
use warmhop_core::session::{Ctx, Effect, Outcome, Session, Ticket};

use super::Store;
use crate::observe::failpoint::{self, Point};
use crate::sessions::told::Told;

/// One request in line for its session; leaves the line when it is dropped, whatever happened.
pub(crate) struct InLine {
    pub(super) store: Arc<Store>,
    pub(crate) key: SessionKey,
    pub(super) ticket: Ticket,
    pub(super) telling: mpsc::Receiver<Told>,
    /// The position being executed, while it is.
    pub(super) running: Option<Option<Position>>,
    /// What was to be sent when the execution began: it goes out beside it.
    pub(super) held_back: Vec<(Incarnation, Message)>,
}

impl InLine {
    /// What happens next.
    pub(crate) async fn next(&mut self) -> Told {
        let told = match self.telling.try_recv() {
            Ok(told) => told,
            Err(_) => {
                self.send_held_back();
                self.telling.recv().await.unwrap_or(Told::Redirect(None))
            }
        };
        if let Told::Execute { exec, .. } = &told {
            self.running = Some(exec.p);
        }
        told
    }

    /// Who runs it has been decided.
    pub(crate) fn begin(&mut self, executor: Incarnation) {
        self.send_held_back();
        let begun = self.store.with_held_back(&self.key, false, None, |machine, ctx, out| {
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
            let begun = out.len();
            machine.begin(ctx, ticket, executor, out);
            let at = out.iter().skip(begun).position(
                |effect| matches!(effect, Effect::Execute { ticket: of, .. } if *of == ticket),
            )?;
            let Effect::Execute { exec, .. } = out.remove(begun + at) else { return None };
            let (outcome, result) = work(machine, ctx, &exec);
            changed = failpoint::changed(&outcome);
            failpoint::pass_if(changed, Point::OwnerVoteBefore);
            machine.executed(ctx, ticket, exec.p, outcome, out);
            Some(result)
        });
        failpoint::pass_if(changed, Point::OwnerVoteAfter);
        result.flatten()
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
        self.store.leave(&self.key, self.ticket, self.running.take());
    }
}
