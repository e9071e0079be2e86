//! The turns of requests: each runs where the runtime chooses, and its outcome is proposed or
//! confirmed.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use super::{Asking, Flight, ORDERS_MAX, Stage, send_asks};
use crate::ids::{Incarnation, Position};
use crate::session::message::{Base, Body, Exec, ExecDone, NackReason, Record};
use crate::session::mutant::Mutant;
use crate::session::reach::LISTEN_EVERY;
use crate::session::recent::Known;
use crate::session::{
    Ctx, DEAD, Effect, Effects, FENCED, Failure, Outcome, Resend, Role, Session, Ticket, mutant,
    recent,
};

impl Session {
    /// The runtime has chosen where to run the request whose turn came.
    pub fn begin(
        &mut self,
        ctx: &mut Ctx<'_>,
        ticket: Ticket,
        executor: Incarnation,
        out: &mut Effects,
    ) {
        let Some(at) = self
            .line
            .flights
            .iter()
            .position(|flight| flight.ticket() == ticket && flight.stage == Stage::Turned)
        else {
            return;
        };
        // The requests of one session never run on two peers at once.
        let elsewhere = self.line.flights.iter().any(|other| {
            matches!(other.stage, Stage::Running { executor: other, .. } if other != executor)
        });
        if elsewhere {
            let flight = self.line.flights.remove(at);
            self.line.queue.push_front(flight.waiting);
            return;
        }
        self.order(ctx, at, executor, false, out);
        self.settle(ctx, out);
    }

    /// Orders the flight's request to be run.
    fn order(
        &mut self,
        ctx: &mut Ctx<'_>,
        at: usize,
        executor: Incarnation,
        inline: bool,
        out: &mut Effects,
    ) {
        let Role::Owner(owner) = &mut self.role else { return };
        let Some(flight) = self.line.flights.get_mut(at) else { return };
        flight.orders += 1;
        let p = flight.exclusive.then(|| owner.next_position());
        let base_at = owner.chosen.as_ref().map(|record| record.p);
        let base = match &owner.chosen {
            None => Base::Inline(None),
            Some(record) if executor == ctx.me => Base::Held(record.p),
            Some(record) if !inline && owner.is_held_by(executor) => Base::Held(record.p),
            Some(record) => Base::Inline(Some(record.clone())),
        };
        let members = &owner.cfg.now;
        let vote = p.is_some()
            && executor != ctx.me
            && !flight.voteless
            && owner.cfg.is_open()
            && members.who.len() >= 2
            && members.contains(executor);
        let submit = &flight.waiting.submit;
        let exec = Exec {
            p,
            cfg: owner.cfg.clone(),
            base,
            vote,
            rid: submit.rid,
            fingerprint: submit.fingerprint,
            keyed: submit.keyed,
            expiry: ctx.wall.after(ctx.policy.ttl),
        };
        flight.stage = Stage::Running { executor, p, base: base_at };
        out.push(Effect::Execute { ticket: submit.ticket, executor, exec });
        // A safe request most likely only reads: its confirmation runs beside it.
        if submit.safe && !vote && !owner.unnamed && flight.nonce.is_none() {
            self.ask_confirmation(ctx, at, out);
        }
    }

    /// Asks the members, at this owner's own ballot, whether another peer has taken the session
    /// over.
    fn ask_confirmation(&mut self, ctx: &mut Ctx<'_>, at: usize, out: &mut Effects) {
        let Role::Owner(owner) = &mut self.role else { return };
        let Some(flight) = self.line.flights.get_mut(at) else { return };
        let nonce = ctx.process.next_nonce();
        flight.nonce = Some(nonce);
        let resend = Resend::new(ctx);
        match &mut owner.work.asking {
            Some(asking) => asking.resend = resend,
            None => owner.work.asking = Some(Asking { resend, answered: BTreeMap::new() }),
        }
        send_asks(ctx, owner, nonce, out);
    }

    /// Takes the outcome of running a request.
    pub fn executed(
        &mut self,
        ctx: &mut Ctx<'_>,
        ticket: Ticket,
        p: Option<Position>,
        outcome: Outcome,
        out: &mut Effects,
    ) {
        let running = self.line.flights.iter().position(|flight| {
            flight.ticket() == ticket
                && matches!(flight.stage, Stage::Running { p: at, .. } if at == p)
        });
        // Late results are ignored: their number is spent.
        let Some(at) = running else {
            self.late_result(ctx, ticket, p, outcome, out);
            return;
        };
        let Stage::Running { executor, base, .. } = self.line.flights[at].stage else { return };
        match outcome {
            Outcome::Failed => {
                self.line.flights.remove(at);
                if let (true, Role::Owner(owner)) =
                    (mutant::on(Mutant::ReuseNumber), &mut self.role)
                {
                    owner.n_last -= u64::from(p.is_some());
                }
                out.push(Effect::Fail { ticket, failure: Failure::ExecutionFailed });
            }
            Outcome::Done(ExecDone::NeedBase) => self.order_again(ctx, at, executor, out),
            Outcome::Done(ExecDone::Refused { reason, promised, watermark }) => {
                if reason == NackReason::Forgotten {
                    ctx.process.stamp_heard = ctx.process.stamp_heard.max(watermark);
                }
                let mine = self.ballot();
                match reason {
                    NackReason::Higher if promised > mine => {
                        // It did not run there.
                        let flight = self.line.flights.remove(at);
                        self.line.queue.push_front(flight.waiting);
                        if let Some(by) = promised {
                            self.step_down(ctx, by, out);
                        }
                    }
                    NackReason::Higher => self.order_again(ctx, at, executor, out),
                    NackReason::Forgotten => {
                        self.line.flights[at].voteless = true;
                        self.order_again(ctx, at, executor, out);
                    }
                    NackReason::Full => {
                        self.line.flights[at].voteless = true;
                        self.order_again(ctx, at, executor, out);
                    }
                    NackReason::Fenced(_) | NackReason::Dead => {
                        let dead = reason == NackReason::Dead;
                        self.note_gone(executor, if dead { DEAD } else { FENCED });
                        self.line.flights[at].voteless = true;
                        self.order_again(ctx, at, executor, out);
                    }
                }
            }
            Outcome::Done(ExecDone::Unchanged { confirmed }) => {
                let flight = &mut self.line.flights[at];
                flight.stage = Stage::Confirming { since: ctx.now };
                flight.confirmed_by = confirmed.then_some(executor);
                let needs_asking = flight.nonce.is_none();
                if needs_asking && !self.is_confirmed(ctx, at) {
                    self.ask_confirmation(ctx, at, out);
                }
            }
            Outcome::Done(ExecDone::Changed { body, voted }) => {
                self.changed(ctx, at, p, base, body, voted.then_some(executor), out);
            }
        }
        self.settle(ctx, out);
    }

    /// Drops a result that nobody waits for, or does what some of the mutants do with it.
    fn late_result(
        &mut self,
        ctx: &mut Ctx<'_>,
        ticket: Ticket,
        p: Option<Position>,
        outcome: Outcome,
        out: &mut Effects,
    ) {
        let Role::Owner(owner) = &mut self.role else { return };
        match (outcome, p) {
            (Outcome::Done(ExecDone::Changed { body, voted: _ }), Some(p))
                if mutant::on(Mutant::LateResult)
                    && owner.work.proposal.is_none()
                    && self.line.flights.is_empty()
                    && p.ballot == owner.b =>
            {
                let record = Record { p, cfg: owner.cfg.clone(), body };
                self.propose(ctx, record, None, None, out);
                self.settle(ctx, out);
            }
            (Outcome::Failed, Some(_)) if mutant::on(Mutant::AbandonProposal) => {
                owner.work.proposal = None;
                self.line.flights.retain(|flight| flight.ticket() != ticket);
                out.push(Effect::Fail { ticket, failure: Failure::ExecutionFailed });
                self.settle(ctx, out);
            }
            _ => {}
        }
    }

    fn order_again(
        &mut self,
        ctx: &mut Ctx<'_>,
        at: usize,
        executor: Incarnation,
        out: &mut Effects,
    ) {
        if self.line.flights[at].orders >= ORDERS_MAX {
            let ticket = self.line.flights.remove(at).ticket();
            out.push(Effect::Fail { ticket, failure: Failure::TooManyRetries });
        } else {
            self.order(ctx, at, executor, true, out);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "an outcome, taken apart by its one caller")]
    fn changed(
        &mut self,
        ctx: &mut Ctx<'_>,
        at: usize,
        p: Option<Position>,
        base: Option<Position>,
        mut body: Arc<Body>,
        voter: Option<Incarnation>,
        out: &mut Effects,
    ) {
        let Role::Owner(owner) = &mut self.role else { return };
        let flight = &mut self.line.flights[at];
        let p = match p {
            Some(p) => p,
            // A safe request changed the session: that can be proposed only on the newest base.
            None if owner.work.proposal.is_none()
                && owner.chosen.as_ref().map(|record| record.p) == base =>
            {
                let p = owner.next_position();
                let submit = &flight.waiting.submit;
                recent::renumber(&mut body, submit.rid, submit.keyed, p.n);
                p
            }
            None => {
                let mut flight = self.line.flights.remove(at);
                out.push(Effect::Again { ticket: flight.ticket() });
                flight.waiting.alone = true;
                self.line.queue.push_front(flight.waiting);
                return;
            }
        };
        flight.stage = Stage::Proposed;
        let record = Record { p, cfg: owner.cfg.clone(), body };
        self.propose(ctx, record, voter, None, out);
    }

    /// Gives the requests at the head of the line their turns.
    pub(super) fn give_turns(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        if self.is_past_its_time(ctx) {
            self.leave_behind(ctx, out);
            return;
        }
        loop {
            let Role::Owner(owner) = &mut self.role else { return };
            if !owner.serving || owner.work.proposal.is_some() || owner.work.yielding.is_some() {
                return;
            }
            let Some(next) = self.line.queue.front() else { return };
            // Its change could not be chosen, nor its read be confirmed. A read of a session that no
            // other peer can know of needs no confirmation.
            let listens = !owner.unnamed || !next.submit.safe;
            let cfg = Arc::clone(&owner.cfg);
            let holds_back = listens && self.is_unheard(ctx, &cfg);
            let Role::Owner(owner) = &mut self.role else { return };
            if holds_back {
                owner.work.listening.get_or_insert(ctx.now.after(LISTEN_EVERY));
                return;
            }
            let Some(next) = self.line.queue.front() else { return };
            let submit = &next.submit;
            // The first request of a session that is created with it cannot meet another, and alone
            // it needs no second round for its change.
            let first = owner.unnamed && self.line.flights.is_empty();
            let exclusive = !submit.safe || next.alone || first;
            let busy = |flight: &Flight| !matches!(flight.stage, Stage::Confirming { .. });
            let must_wait = self
                .line
                .flights
                .iter()
                .filter(|flight| busy(flight))
                .any(|flight| exclusive || flight.exclusive);
            if must_wait {
                return;
            }
            let answer = self.answer_at_once();
            if exclusive && answer.is_none() && self.makes_wanted_change(ctx, out) {
                return;
            }
            let Some(waiting) = self.line.queue.pop_front() else { return };
            let ticket = waiting.submit.ticket;
            match answer {
                Some(answer) => out.push(answer),
                None => {
                    self.line.flights.push(Flight {
                        waiting,
                        exclusive,
                        stage: Stage::Turned,
                        orders: 0,
                        voteless: false,
                        nonce: None,
                        confirmed_by: None,
                    });
                    out.push(Effect::Turn { ticket });
                }
            }
        }
    }

    /// The answer to the next request in line if it need not run.
    fn answer_at_once(&self) -> Option<Effect> {
        let Role::Owner(owner) = &self.role else { return None };
        let submit = &self.line.queue.front()?.submit;
        let known = match (&owner.chosen, submit.safe) {
            (Some(record), false) => recent::look_up(
                &record.body,
                submit.rid,
                submit.fingerprint,
                submit.keyed,
                submit.seen,
            ),
            _ => Known::No,
        };
        let ticket = submit.ticket;
        let ended = owner.chosen.as_ref().is_some_and(|record| record.body.ended.is_some());
        match known {
            Known::No | Known::BelowFloor if ended => {
                Some(Effect::Fail { ticket, failure: Failure::Ended })
            }
            Known::No => None,
            Known::Applied(stored) => {
                Some(Effect::Replay { ticket, stored: stored.clone(), hint: owner.hint() })
            }
            Known::Differs => Some(Effect::Fail { ticket, failure: Failure::FingerprintDiffers }),
            Known::BelowFloor => Some(Effect::Fail { ticket, failure: Failure::BelowFloor }),
        }
    }
}
