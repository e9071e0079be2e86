//! A machine's reaction to an input. It is computed once, however many worlds contain the machine.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::judge::{self, Violation};
use super::setup::{Born, Kind};
use super::tables::{Envelope, Peer, Run, Tables, What, attempt_of, history, slot_of};
use crate::config::SessionPolicy;
use crate::ids::{Incarnation, Now, Position, WallTime};
use crate::session::message::{Body, Config, Exec, ExecDone, Message, NackReason, Stored};
use crate::session::owner::Stage;
use crate::session::{Ctx, Effect, Failure, Otherwise, Outcome, Process, Session, Submit, Ticket};

/// How long what is written lasts, where the clock moves at all.
const LASTS: Duration = Duration::from_millis(500);

/// The inputs of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Input {
    Arrives(u32),
    Invited(u32),
    Ends(u32),
    Submit(Submit),
    Begin(Ticket, Incarnation),
    Abandon(Ticket, Option<Position>),
    TakeOver,
    Handoff(Incarnation),
    Change(Vec<Incarnation>, Option<Incarnation>),
    Forget,
    GiveUp,
    /// The clock moves on.
    Tick(WallTime),
    /// It looks at the clock.
    Wake,
}

/// What clients and judges learn from a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// An execution was ordered at a position.
    Ordered(Position),
    Response(Ticket, Vec<u8>),
    Release(Ticket, u64),
    Replay(Ticket, Stored, u64),
    Unknown(Ticket),
    Refused(Ticket),
    Redirect(Ticket),
}

/// A machine's reaction to an input.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) peer: u32,
    pub(super) sends: Vec<u32>,
    pub(super) votes: Option<u32>,
    pub(super) proposes: Option<u32>,
    pub(super) events: Vec<Event>,
    pub(super) run: Option<u32>,
    pub(super) broken: Option<Violation>,
}

/// A machine's reaction to an input, before it is judged.
#[derive(Default)]
struct Made {
    /// The effects that were not carried out yet.
    out: Vec<Effect>,
    sends: Vec<Envelope>,
    events: Vec<Event>,
    run: Option<Run>,
}

fn result(
    from: Incarnation,
    to: Incarnation,
    ticket: Ticket,
    p: Option<Position>,
    done: ExecDone,
    response: Vec<u8>,
) -> Envelope {
    Envelope { from, to, what: What::Result { ticket, p, done, response } }
}

impl Tables {
    /// The machine's reaction to the input; computed once.
    pub(super) fn step(&mut self, peer: u32, input: &Input) -> Arc<Step> {
        if let Some(step) = self.steps.get(&(peer, input.clone())) {
            return step.clone();
        }
        let step = Arc::new(self.work_out(peer, input));
        self.steps.insert((peer, input.clone()), step.clone());
        step
    }

    fn work_out(&mut self, before: u32, input: &Input) -> Step {
        let before = self.peers.at(before).clone();
        let mut peer = (*before).clone();
        let Made { sends, events, run, .. } = self.feed(&mut peer, input);
        let accepted = |peer: &Peer| peer.session.copy.accepted.clone();
        let voted = accepted(&peer).filter(|_| accepted(&peer) != accepted(&before));
        let proposes =
            peer.session.proposing().filter(|it| Some(*it) != before.session.proposing());
        let proposes = proposes.cloned();
        // By itself, after its time, or because another peer asked it to.
        let stamp = before.session.copy.stamp_hi;
        let forgets = stamp > peer.session.copy.stamp_hi;
        if forgets {
            peer.forgot = peer.forgot.max(stamp);
        }
        let drops = accepted(&before).is_some() && accepted(&peer).is_none();
        if drops {
            peer.forgot = peer.forgot.max(peer.session.copy.low);
        }
        let mut broken = (!forgets).then(|| judge::fell(&before, &peer)).flatten();
        if let Some(record) = &voted {
            broken = broken.or_else(|| judge::revoted(peer.inc, peer.forgot, &record.cfg));
        }
        for envelope in &sends {
            if let What::Protocol(Message::Promise { cfg, .. }) = &envelope.what {
                broken = broken.or_else(|| judge::revoted(peer.inc, peer.forgot, cfg));
            }
        }
        let votes = voted.map(|record| {
            let record = self.records.id(record);
            self.votes.id((peer.inc, record))
        });
        Step {
            peer: self.peers.id(peer),
            sends: sends.into_iter().map(|envelope| self.envelopes.id(envelope)).collect(),
            votes,
            proposes: proposes.map(|record| self.records.id(record)),
            events,
            run: run.map(|run| self.runs.id(run)),
            broken,
        }
    }

    /// Gives the input to the machine of `peer`, and its own effects back to it.
    fn feed(&self, peer: &mut Peer, input: &Input) -> Made {
        let me = peer.inc;
        let late = matches!(input, Input::GiveUp);
        let now = if late { Now(3_600_000) } else { Now(0) };
        let mut ctx = Ctx { wall: peer.wall, ..ctx(me, now, &self.policy, &mut peer.process) };
        let session = &mut peer.session;
        let mut made = Made::default();
        let out = &mut made.out;
        match input {
            Input::Arrives(id) | Input::Invited(id) => {
                self.arrives(session, &mut ctx, *id, &mut made);
            }
            Input::Ends(id) => {
                let Run { order, base, .. } = (**self.runs.at(*id)).clone();
                let Envelope { from, what, .. } = (**self.envelopes.at(order)).clone();
                let What::Order { ticket, exec } = what else { unreachable!("runs are of orders") };
                let (list, done) = self.run_app(session, &mut ctx, ticket, &exec, &base);
                made.sends.push(result(me, from, ticket, exec.p, done, list));
            }
            Input::Submit(submit) => session.submit(&mut ctx, submit.clone(), out),
            Input::Begin(ticket, executor) => {
                session.begin(&mut ctx, *ticket, *executor, out);
                if self.setup.instant && *executor == me {
                    self.run_here(session, &mut ctx, &mut made);
                }
            }
            Input::Abandon(ticket, p) => {
                session.executed(&mut ctx, *ticket, *p, Outcome::Failed, out);
            }
            Input::TakeOver if self.setup.born == Born::Key => {
                let birth = self.birth_by_key(&ctx);
                session.seek(&mut ctx, &[], Otherwise::Begin(birth), out);
            }
            Input::TakeOver => session.take_over(&mut ctx, Some(self.birth.clone()), 0, &[], out),
            Input::Handoff(to) => session.hand_off(&mut ctx, *to, out),
            Input::Change(gone, None) if gone.len() > 1 => {
                session.leave_out(&mut ctx, gone, out);
            }
            Input::Change(gone, newcomer) => {
                session.change_members(&mut ctx, gone.first().copied(), *newcomer, out);
            }
            Input::Forget => session.forget(&mut ctx),
            Input::Tick(wall) => peer.wall = *wall,
            Input::GiveUp | Input::Wake => session.on_timer(&mut ctx, out),
        }
        let invited = made.out.iter().find_map(|effect| match effect {
            Effect::Invited { cfg } => Some(cfg.clone()),
            _ => None,
        });
        if let (Input::Invited(_), Some(cfg)) = (input, invited) {
            session.take_over(&mut ctx, Some(cfg), 0, &[], &mut made.out);
        }
        for effect in core::mem::take(&mut made.out) {
            self.note(me, effect, &mut made.sends, &mut made.events);
        }
        made
    }

    /// An envelope arrives: a message of the protocol, an order to run, or the outcome of one.
    fn arrives(&self, session: &mut Session, ctx: &mut Ctx<'_>, id: u32, made: &mut Made) {
        let Envelope { from, what, .. } = (**self.envelopes.at(id)).clone();
        match what {
            What::Protocol(message) => session.on_message(ctx, from, message, &mut made.out),
            What::Order { ticket, exec } => match session.exec_begin(ctx, &exec) {
                Ok(base) => made.run = Some(Run { slot: slot_of(ctx.me), order: id, base }),
                Err(done) => {
                    made.sends.push(result(ctx.me, from, ticket, exec.p, done, Vec::new()));
                }
            },
            What::Result { ticket, p, done, response } => {
                let awaited = session.flying().any(|(it, stage, _)| {
                    it == ticket && matches!(stage, Stage::Running { p: at, .. } if at == p)
                });
                let ran = matches!(done, ExecDone::Changed { .. } | ExecDone::Unchanged { .. });
                if awaited && ran {
                    made.events.push(Event::Response(ticket, response));
                }
                session.executed(ctx, ticket, p, done.into(), &mut made.out);
            }
        }
    }

    /// The members with which this peer begins a session that a key names, by its beliefs about the
    /// mesh.
    fn birth_by_key(&self, ctx: &Ctx<'_>) -> Config {
        let mut cfg = self.birth.clone();
        let belief = self.setup.beliefs.iter().find(|it| it.at == slot_of(ctx.me));
        let members = belief.map_or(self.setup.members, |belief| belief.members);
        // In the lives that this peer knows.
        let known = ctx.process.census.others.iter().chain([&ctx.me]);
        cfg.now.who = known.copied().filter(|it| members.contains(&slot_of(*it))).collect();
        cfg.now.who.sort_unstable();
        // No two begin it with the same stamp, as no two clocks agree.
        cfg.now.stamp += u64::from(slot_of(ctx.me)) + ctx.wall.0;
        cfg
    }

    /// Runs the orders of this peer for itself.
    fn run_here(&self, session: &mut Session, ctx: &mut Ctx<'_>, made: &mut Made) {
        let mut at = 0;
        while at < made.out.len() {
            let (ticket, exec) = match &made.out[at] {
                Effect::Execute { ticket, executor, exec } if *executor == ctx.me => {
                    (*ticket, exec.clone())
                }
                _ => {
                    at += 1;
                    continue;
                }
            };
            made.out.remove(at);
            made.events.extend(exec.p.map(Event::Ordered));
            let done = match session.exec_begin(ctx, &exec) {
                Ok(base) => {
                    let (list, done) = self.run_app(session, ctx, ticket, &exec, &base);
                    made.events.push(Event::Response(ticket, list));
                    done
                }
                Err(done) => done,
            };
            session.executed(ctx, ticket, exec.p, done.into(), &mut made.out);
        }
    }

    /// The app: it answers with the history that it saw or made.
    fn run_app(
        &self,
        session: &mut Session,
        ctx: &mut Ctx<'_>,
        ticket: Ticket,
        exec: &Exec,
        base: &Body,
    ) -> (Vec<u8>, ExecDone) {
        let lasts = !self.setup.walls.is_empty();
        let is_over = lasts && base.expiry <= ctx.wall;
        let mut list = if is_over { Vec::new() } else { history(base) };
        let changes = self.kind_of(ticket).changes();
        if changes {
            list.push(exec.rid.0[0]);
        }
        let bytes: Arc<[u8]> = Arc::from(list.as_slice());
        let change = changes.then(|| Some(bytes.clone()));
        if lasts && changes {
            let until = ctx.wall.after(LASTS);
            return (list, session.exec_end_until(ctx, exec, base, change, until));
        }
        let done = session.exec_end(ctx, exec, base, change, Stored::Response(bytes));
        (list, done)
    }

    fn note(
        &self,
        me: Incarnation,
        effect: Effect,
        sends: &mut Vec<Envelope>,
        events: &mut Vec<Event>,
    ) {
        match effect {
            Effect::Send { to, message } => {
                sends.push(Envelope { from: me, to, what: What::Protocol(message) });
            }
            Effect::Execute { ticket, executor, exec } => {
                events.extend(exec.p.map(Event::Ordered));
                let what = What::Order { ticket, exec };
                sends.push(Envelope { from: me, to: executor, what });
            }
            Effect::Release { ticket, hint } => events.push(Event::Release(ticket, hint.n)),
            Effect::Replay { ticket, stored, hint } => {
                events.push(Event::Replay(ticket, stored, hint.n));
            }
            Effect::Redirect { ticket, .. } => events.push(Event::Redirect(ticket)),
            Effect::Fail { ticket, failure } => events.push(match failure {
                Failure::QueueFull
                | Failure::NoMajority { ran: false }
                | Failure::Lost { ran: false }
                | Failure::WentOn { .. }
                | Failure::FingerprintDiffers
                | Failure::TooManyRetries
                | Failure::NoRoom => Event::Refused(ticket),
                _ => Event::Unknown(ticket),
            }),
            Effect::Turn { .. }
            | Effect::Again { .. }
            | Effect::Invited { .. }
            | Effect::Located { .. }
            | Effect::Owned { .. }
            | Effect::Opened { .. }
            | Effect::Deposed { .. }
            | Effect::GaveUp
            | Effect::Claimed
            | Effect::Lagging
            | Effect::FewCopies
            | Effect::Lost { .. } => {}
        }
    }

    fn kind_of(&self, ticket: Ticket) -> Kind {
        self.setup.attempts[usize::from(attempt_of(ticket))].kind
    }
}

/// Whether an envelope can have no effect any more, given the states of its sender and its
/// addressee. Ballots only rise and numbers are not reused, so this is final.
pub(super) fn is_spent(envelope: &Envelope, from: &Peer, to: &Peer) -> bool {
    let Envelope { from: sender, to: addressee, what } = envelope;
    if to.inc != *addressee {
        // An answer to a process that is gone; anything else comes back as `Dead`.
        return match what {
            What::Protocol(
                Message::Prepare { .. }
                | Message::Accept { .. }
                | Message::Locate { .. }
                | Message::Begin { .. },
            )
            | What::Order { .. } => from.inc != *sender,
            _ => true,
        };
    }
    let asks = |peer: &Peer, b| peer.inc == *sender && peer.session.ballot() == Some(b);
    let promised = to.session.copy.promised();
    match what {
        What::Protocol(Message::Prepare { b, .. }) => promised > Some(*b) && !asks(from, *b),
        What::Protocol(Message::Accept { p, .. }) => {
            let held = to.session.copy.accepted.as_ref().map(|record| record.p);
            let late = held > Some(*p) || promised > Some(p.ballot);
            late && !asks(from, p.ballot) || held > Some(*p) && promised == Some(p.ballot)
        }
        What::Protocol(Message::Begin { b, .. }) => promised > Some(*b) && !asks(from, *b),
        What::Protocol(Message::Promise { b, .. } | Message::Free { b, .. }) => {
            to.session.ballot() != Some(*b)
        }
        What::Protocol(Message::Accepted { p } | Message::NeedFull { p }) => {
            to.session.ballot() != Some(p.ballot)
                || to.session.proposing().is_none_or(|record| record.p > *p)
                    && to.session.newest_chosen() > Some(*p)
        }
        What::Protocol(Message::Nack { reason: NackReason::Higher, promised, .. }) => {
            to.session.ballot().is_none() || to.session.ballot() >= *promised
        }
        What::Protocol(_) => false,
        What::Order { .. } => false,
        What::Result { ticket, p, .. } => !to.session.flying().any(|(it, stage, _)| {
            it == *ticket && matches!(stage, Stage::Running { p: at, .. } if at == *p)
        }),
    }
}

pub(super) fn ctx<'a>(
    me: Incarnation,
    now: Now,
    policy: &'a SessionPolicy,
    process: &'a mut Process,
) -> Ctx<'a> {
    Ctx { me, now, wall: WallTime(0), policy, process, dice: 0 }
}
