//! The world around the machines: what can happen, and its consequences.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::judge::{self, Violation};
use super::lives;
use super::machine::{Event, Input, Step, ctx, is_spent};
use super::setup::{Attempt, Born, Kind, SELF};
use super::tables::{
    Clients, Envelope, Peer, Standing, Tables, What, World, attempt_of, inc, slot_of, ticket_of,
};
use crate::ids::{Incarnation, Now, Position, RequestKey, SessionId, WallTime};
use crate::session::census::Census;
use crate::session::message::{BodyRef, ExecDone, Message, NackReason};
use crate::session::owner::Stage;
use crate::session::{Process, Role, Session, Submit};

/// What can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Deliver(u32),
    /// The addressee runs as another incarnation, which answers that.
    DeadLetter(u32),
    /// The addressee has no room for the copy that it is offered.
    Refuse(u32),
    End(u32),
    Submit {
        attempt: u8,
        at: u8,
    },
    Begin {
        at: u8,
        attempt: u8,
        executor: u8,
    },
    Abandon {
        at: u8,
        attempt: u8,
    },
    TakeOver {
        at: u8,
    },
    Handoff {
        at: u8,
        to: u8,
    },
    Change {
        at: u8,
        swap: u8,
    },
    Restart {
        at: u8,
    },
    Forget {
        at: u8,
    },
    GiveUp {
        at: u8,
    },
    /// The clock moves on, for everyone.
    Tick,
    /// A peer looks at the clock.
    Wake {
        at: u8,
    },
}

#[derive(Debug, Clone, Copy)]
#[repr(usize)]
enum Budget {
    Takeovers,
    Changes,
    Handoffs,
    Restarts,
    Forgettings,
    Abandons,
    GiveUps,
    Refusals,
}

impl Tables {
    /// The world before anything happened.
    pub(super) fn first(&mut self) -> World {
        let mut peers = Vec::new();
        for slot in 0..self.setup.peers {
            let mut process = Process { census: Arc::new(self.census(slot)), ..Process::default() };
            let mut session = Session::new(SessionId([0; 16]), &process);
            let is_drawn = matches!(self.setup.born, Born::Named | Born::Drawn);
            if is_drawn && slot == self.setup.drawn_at {
                let policy = self.policy.clone();
                let mut ctx = ctx(inc(slot, 0), Now(0), &policy, &mut process);
                session.mint(&mut ctx, self.birth.clone(), &mut Vec::new());
                if self.setup.born == Born::Named {
                    session.name();
                }
            }
            let wall = WallTime::default();
            let peer = Peer { inc: inc(slot, 0), process, session, wall, forgot: 0 };
            peers.push(self.peers.id(peer));
        }
        let clients = self.clients.id(Clients {
            attempts: vec![Standing::Unsent; self.setup.attempts.len()],
            revealed: Vec::new(),
            token_n: 0,
            token_left: self.setup.born != Born::Drawn,
            pinned: BTreeMap::new(),
        });
        World {
            peers,
            wire: Vec::new(),
            runs: Vec::new(),
            votes: Vec::new(),
            used: Vec::new(),
            clients,
            ticks: 0,
            log: Vec::new(),
            spent: [0; 8],
        }
    }

    /// The first beliefs of the peer at `slot` about which processes exist.
    fn census(&self, slot: u8) -> Census {
        let incs = |slots: &[u8]| -> Vec<Incarnation> {
            slots.iter().filter(|it| **it != slot).map(|it| inc(*it, 0)).collect()
        };
        match self.setup.beliefs.iter().find(|belief| belief.at == slot) {
            Some(belief) => Census {
                others: incs(belief.knows),
                silent: incs(belief.silent),
                absent: incs(belief.absent),
                ..Census::default()
            },
            None => {
                let everyone: Vec<u8> = (0..self.setup.peers).collect();
                Census { others: incs(&everyone), ..Census::default() }
            }
        }
    }

    /// Everyone learns that the process `old` runs as `new`, itself included; or nobody knew of
    /// either, and only the age of the new one is known.
    fn hear_of_rebirth(&mut self, next: &mut World, old: Incarnation, new: Incarnation) {
        for id in &mut next.peers {
            let mut peer = (**self.peers.at(*id)).clone();
            let census = Arc::make_mut(&mut peer.process.census);
            census.others.retain(|other| *other != old);
            if self.setup.unheard {
                census.is_new = peer.inc == new;
                census.is_young = census.is_new;
                *id = self.peers.id(peer);
                continue;
            }
            if peer.inc != new {
                census.others.push(new);
                census.others.sort_unstable();
            }
            census.reborn.push(new);
            *id = self.peers.id(peer);
        }
    }

    /// The world in which exploration begins, and the actions that led to it.
    pub(super) fn settle(&mut self) -> (World, Vec<Action>) {
        let cut = core::mem::replace(&mut self.setup.cut, self.setup.settled_apart);
        let mut world = self.first();
        let mut actions = Vec::new();
        let begins = self.setup.settled > 0 && self.setup.born == Born::Key;
        let first = begins.then_some(Action::TakeOver { at: 0 });
        let submits = (0..self.setup.settled).map(|attempt| Action::Submit { attempt, at: 0 });
        for action in first.into_iter().chain(submits) {
            let mut next = Some(action);
            while let Some(action) = next {
                let (after, broken) = self.act(&world, action).expect("it was tried");
                assert_eq!(broken, None);
                world = after;
                actions.push(action);
                next = self.actions(&world).into_iter().find(|action| {
                    let runs = matches!(
                        action,
                        Action::Begin { .. } | Action::Deliver(_) | Action::End(_)
                    );
                    runs && self.act(&world, *action).is_some()
                });
            }
        }
        self.setup.cut = cut;
        (world, actions)
    }

    /// Every action that can happen next, in a deterministic order.
    pub(super) fn actions(&self, world: &World) -> Vec<Action> {
        let setup = &self.setup;
        let mut actions = Vec::new();
        let slots = || (0..setup.peers).zip(world.peers.iter().map(|id| self.peer(*id)));
        // The runtime answers a turn at once.
        for (at, peer) in slots() {
            for (ticket, stage, _) in peer.session.flying() {
                if stage == Stage::Turned {
                    let attempt = attempt_of(ticket);
                    let begin = |executor: &u8| {
                        let executor = if *executor == SELF { at } else { *executor };
                        Action::Begin { at, attempt, executor }
                    };
                    actions.extend(setup.executors.iter().map(begin));
                }
            }
        }
        if !actions.is_empty() {
            return actions;
        }
        self.let_messages_arrive(world, &mut actions);
        actions.extend(world.runs.iter().map(|id| Action::End(*id)));
        let clients = self.clients(world);
        for (attempt, standing) in (0_u8..).zip(&clients.attempts) {
            if *standing == Standing::Unsent && self.may_submit(clients, attempt) {
                let owns = |peer: &Peer| !matches!(peer.session.role, Role::None);
                let owners = slots().filter(|(_, peer)| owns(peer));
                actions.extend(owners.map(|(at, _)| Action::Submit { attempt, at }));
            }
        }
        let left = |budget: Budget, of: u8| world.spent[budget as usize] < of;
        self.let_time_pass(world, &mut actions);
        for at in setup.takers {
            if self.may_take_over(world, *at) {
                actions.push(Action::TakeOver { at: *at });
            }
        }
        for (at, peer) in slots() {
            let owns = peer.session.is_owner();
            if owns && left(Budget::Changes, setup.changes) {
                let swaps = 0..u8::try_from(setup.swaps.len()).expect("few swaps");
                actions.extend(swaps.map(|swap| Action::Change { at, swap }));
            }
            if owns && left(Budget::Handoffs, setup.handoffs) {
                actions.extend(setup.heirs.iter().map(|to| Action::Handoff { at, to: *to }));
            }
            if setup.restarters.contains(&at) && left(Budget::Restarts, setup.restarts) {
                actions.push(Action::Restart { at });
            }
            // Without its end, a copy that is dropped is a death that nobody can prove: beside one
            // that is silent it would be the second loss.
            let may_forget = setup.born != Born::Key || !peer.session.holds_copy();
            if setup.forgetters.contains(&at)
                && left(Budget::Forgettings, setup.forgettings)
                && peer.session.load() == 0
                && may_forget
            {
                actions.push(Action::Forget { at });
            }
            if left(Budget::Abandons, setup.abandons) {
                for (ticket, stage, _) in peer.session.flying() {
                    let runs = matches!(stage, Stage::Running { .. });
                    if runs || setup.abandon_proposals && stage == Stage::Proposed {
                        actions.push(Action::Abandon { at, attempt: attempt_of(ticket) });
                    }
                }
            }
            if left(Budget::GiveUps, setup.give_ups) && peer.session.load() > 0 {
                actions.push(Action::GiveUp { at });
            }
        }
        actions
    }

    /// Messages arrive, or are refused for want of room.
    fn let_messages_arrive(&self, world: &World, actions: &mut Vec<Action>) {
        let setup = &self.setup;
        for id in &world.wire {
            let envelope = self.envelope(*id);
            if setup.cut.contains(&(slot_of(envelope.from), slot_of(envelope.to))) {
                continue;
            }
            let addressee = self.peer(world.peers[usize::from(slot_of(envelope.to))]);
            let invites = matches!(envelope.what, What::Protocol(Message::Invite { .. }));
            if addressee.inc != envelope.to {
                actions.push(Action::DeadLetter(*id));
            } else if !invites || self.may_take_over(world, slot_of(envelope.to)) {
                actions.push(Action::Deliver(*id));
            }
            let full = setup.full.contains(&slot_of(envelope.to));
            let spent = world.spent[Budget::Refusals as usize];
            if full && spent < setup.refusals && offers_a_copy(&envelope.what) {
                actions.push(Action::Refuse(*id));
            }
        }
    }

    /// The clock moves on, or a peer looks at it.
    fn let_time_pass(&self, world: &World, actions: &mut Vec<Action>) {
        if usize::from(world.ticks) < self.setup.walls.len() {
            actions.push(Action::Tick);
        }
        if world.ticks > 0 {
            actions.extend((0..self.setup.peers).map(|at| Action::Wake { at }));
        }
    }

    fn may_take_over(&self, world: &World, slot: u8) -> bool {
        let peer = self.peer(world.peers[usize::from(slot)]);
        world.spent[Budget::Takeovers as usize] < self.setup.takeovers
            && matches!(peer.session.role, Role::None)
            && self.clients(world).token_left
    }

    /// A repeat follows the attempt before it.
    fn may_submit(&self, clients: &Clients, attempt: u8) -> bool {
        let number = self.setup.attempts[usize::from(attempt)].number;
        let earlier = self.setup.attempts.iter().zip(&clients.attempts).take(usize::from(attempt));
        earlier
            .filter(|(other, _)| other.number == number)
            .all(|(_, standing)| *standing != Standing::Unsent)
    }

    /// The result of an action: `None` if it changes nothing.
    pub(super) fn act(
        &mut self,
        world: &World,
        action: Action,
    ) -> Option<(World, Option<Violation>)> {
        let mut next = world.clone();
        if let Some(budget) = self.budget_of(action) {
            next.spent[budget as usize] += 1;
        }
        let (slot, input) = match action {
            Action::DeadLetter(id) => {
                let answer = self.dead_letter(id)?;
                insert(&mut next.wire, answer);
                return (next != *world).then_some((next, None));
            }
            Action::Refuse(id) => {
                let Envelope { from, to, .. } = self.envelope(id).clone();
                let what = What::Protocol(Message::NO_ROOM);
                let answer = self.envelopes.id(Envelope { from: to, to: from, what });
                insert(&mut next.wire, answer);
                return (next.wire != world.wire).then_some((next, None));
            }
            Action::Restart { at } => {
                self.restart(world, &mut next, at);
                return Some((next, None));
            }
            Action::Tick => {
                self.tick(&mut next);
                return Some((next, None));
            }
            Action::Submit { attempt, at } => {
                let submit = self.submit(&mut next, attempt, at);
                (at, Input::Submit(submit))
            }
            _ => self.input_of(world, action)?,
        };
        let step = self.step(world.peers[usize::from(slot)], &input);
        let unchanged = next == *world
            && step.peer == world.peers[usize::from(slot)]
            && step.events.is_empty()
            && step.run.is_none()
            && step.sends.iter().all(|id| world.wire.binary_search(id).is_ok());
        match input {
            Input::Ends(id) => remove(&mut next.runs, id),
            Input::Arrives(id) if self.travels_once(id) => remove(&mut next.wire, id),
            _ if unchanged => return None,
            // A change of members or a handoff that the owner declined costs nothing.
            Input::Change(..) | Input::Handoff(_)
                if step.peer == world.peers[usize::from(slot)] =>
            {
                return None;
            }
            _ => {}
        }
        let broken = self.apply(&mut next, slot, &step);
        // A copy that forgets may let through what it would not have before.
        let forgets = self.setup.forgettings > 0 || !self.setup.walls.is_empty();
        if self.setup.prune && !forgets && !self.setup.amnesia {
            self.prune(&mut next);
        }
        (next != *world || broken.is_some()).then_some((next, broken))
    }

    fn is_invitation(&self, envelope: u32) -> bool {
        matches!(self.envelope(envelope).what, What::Protocol(Message::Invite { .. }))
    }

    /// The cost of an action to the setup's budget.
    fn budget_of(&self, action: Action) -> Option<Budget> {
        Some(match action {
            Action::Deliver(id) if self.is_invitation(id) => Budget::Takeovers,
            Action::TakeOver { .. } => Budget::Takeovers,
            Action::Abandon { .. } => Budget::Abandons,
            Action::Handoff { .. } => Budget::Handoffs,
            Action::Change { .. } => Budget::Changes,
            Action::Restart { .. } => Budget::Restarts,
            Action::Forget { .. } => Budget::Forgettings,
            Action::GiveUp { .. } => Budget::GiveUps,
            Action::Refuse(_) => Budget::Refusals,
            Action::Tick
            | Action::Wake { .. }
            | Action::Deliver(_)
            | Action::DeadLetter(_)
            | Action::End(_)
            | Action::Submit { .. }
            | Action::Begin { .. } => return None,
        })
    }

    /// The machine that an action concerns, and its input.
    fn input_of(&self, world: &World, action: Action) -> Option<(u8, Input)> {
        let peer = |slot: u8| self.peer(world.peers[usize::from(slot)]);
        Some(match action {
            Action::Deliver(id) if self.is_invitation(id) => {
                (slot_of(self.envelope(id).to), Input::Invited(id))
            }
            Action::Deliver(id) => (slot_of(self.envelope(id).to), Input::Arrives(id)),
            Action::End(id) => (self.run(id).slot, Input::Ends(id)),
            Action::Begin { at, attempt, executor } => {
                (at, Input::Begin(ticket_of(attempt), peer(executor).inc))
            }
            Action::Abandon { at, attempt } => {
                let ticket = ticket_of(attempt);
                let (_, stage, b) = peer(at).session.flying().find(|(it, _, _)| *it == ticket)?;
                let p = match stage {
                    Stage::Running { p, .. } => p,
                    _ => b.map(|ballot| Position { ballot, n: 0 }),
                };
                (at, Input::Abandon(ticket, p))
            }
            Action::TakeOver { at } => (at, Input::TakeOver),
            Action::Handoff { at, to } => (at, Input::Handoff(peer(to).inc)),
            Action::Change { at, swap } => {
                let (gone, newcomer) = self.setup.swaps[usize::from(swap)];
                // A member that leaves may be a former life; one that joins is alive.
                let members = peer(at).session.members();
                let member = |slot| members.iter().copied().find(|it| slot_of(*it) == slot);
                let now = |slot| peer(slot).inc;
                let gone = gone.iter().copied().filter_map(member).collect();
                (at, Input::Change(gone, newcomer.map(now)))
            }
            Action::Forget { at } => (at, Input::Forget),
            Action::GiveUp { at } => (at, Input::GiveUp),
            Action::Wake { at } => (at, Input::Wake),
            Action::Tick => return None,
            Action::DeadLetter(_)
            | Action::Refuse(_)
            | Action::Submit { .. }
            | Action::Restart { .. } => return None,
        })
    }

    fn tick(&mut self, next: &mut World) {
        next.ticks += 1;
        let wall = self.wall(next);
        for slot in 0..next.peers.len() {
            let step = self.step(next.peers[slot], &Input::Tick(wall));
            next.peers[slot] = step.peer;
        }
    }

    /// The process of a peer ends, and another begins in its place.
    fn restart(&mut self, world: &World, next: &mut World, at: u8) {
        let old = self.peer(world.peers[usize::from(at)]).clone();
        let census = Arc::new(self.census(at));
        let process = Process { census, ..Process::default() };
        let session = Session::new(old.session.sid(), &process);
        let life = old.inc.0[1] + u8::from(!self.setup.amnesia);
        let peer = Peer { inc: inc(at, life), process, session, wall: old.wall, forgot: 0 };
        next.peers[usize::from(at)] = self.peers.id(peer);
        if !self.setup.amnesia && self.setup.born == Born::Key {
            self.hear_of_rebirth(next, old.inc, inc(at, life));
        }
        next.runs.retain(|id| self.run(*id).slot != at);
        for slot in 0..next.peers.len() {
            let peer = self.peer(next.peers[slot]);
            if let Some(record) = peer.session.copy.accepted.clone() {
                let (by, record) = (peer.inc, self.records.id(record));
                self.count_the_dead(next, by, record);
            }
        }
    }

    /// For the judge: `by` holds this record. If it is the one that is left of the two that decide about
    /// it, the record is chosen as if the other had voted for it, too.
    fn count_the_dead(&mut self, next: &mut World, by: Incarnation, record: u32) {
        let cfg = self.record(record).cfg.clone();
        // Not `Config::deciders`, which is under test.
        let deciders = &cfg.prev.as_deref().unwrap_or(&cfg.now).who;
        if deciders.len() != 2 || !deciders.contains(&by) {
            return;
        }
        for other in deciders.iter().filter(|peer| **peer != by) {
            let lives = self.peer(next.peers[usize::from(slot_of(*other))]).inc;
            if lives != *other {
                let vote = self.votes.id((*other, record));
                insert(&mut next.votes, vote);
            }
        }
    }

    fn apply(&mut self, next: &mut World, slot: u8, step: &Step) -> Option<Violation> {
        next.peers[usize::from(slot)] = step.peer;
        let mut broken = step.broken.clone();
        for id in &step.sends {
            insert(&mut next.wire, *id);
        }
        if let Some(run) = step.run {
            insert(&mut next.runs, run);
        }
        if let Some(vote) = step.votes {
            insert(&mut next.votes, vote);
            let (by, record) = self.vote(vote);
            self.count_the_dead(next, by, record);
        }
        if let Some(record) = step.proposes {
            broken = broken.or_else(|| judge::proposed(self, next, record));
        }
        for event in &step.events {
            if let Event::Ordered(p) = event {
                let id = self.positions.id(*p);
                broken = broken.or_else(|| judge::ordered(next, id, *p));
                insert(&mut next.used, id);
            }
        }
        let lasts = !self.setup.walls.is_empty();
        let votes = step.votes.is_some() || !step.events.is_empty();
        // What was chosen by this very step may be answered in it.
        if lasts && votes {
            broken = broken.or_else(|| lives::chosen_since(self, next, step.votes));
        }
        if !step.events.is_empty() {
            // The action itself may have changed them already.
            let mut clients = self.clients(next).clone();
            for event in &step.events {
                let judged = match lasts {
                    true => lives::answered(self, next, &mut clients, event),
                    false => judge::answered(self, next, &mut clients, event),
                };
                broken = broken.or(judged);
            }
            next.clients = self.clients.id(clients);
        }
        if !lasts && votes {
            broken = broken.or_else(|| judge::histories(self, next, step.votes));
        }
        broken
    }

    /// Orders and results are not delivered twice; those without a position never.
    fn travels_once(&self, id: u32) -> bool {
        let p = match &self.envelope(id).what {
            What::Protocol(_) => return false,
            What::Order { exec, .. } => exec.p,
            What::Result { p, .. } => *p,
        };
        !self.setup.echoes || p.is_none()
    }

    /// Drops the messages that can have no effect any more.
    fn prune(&self, world: &mut World) {
        let peers: Vec<&Peer> = world.peers.iter().map(|id| self.peer(*id)).collect();
        world.wire.retain(|id| {
            let envelope = self.envelope(*id);
            let from = peers[usize::from(slot_of(envelope.from))];
            let to = peers[usize::from(slot_of(envelope.to))];
            !is_spent(envelope, from, to)
        });
    }

    fn dead_letter(&mut self, id: u32) -> Option<u32> {
        let Envelope { from, to, what } = self.envelope(id).clone();
        let what = match what {
            What::Protocol(message) if message.is_question() => {
                What::Protocol(Message::DEAD_LETTER)
            }
            What::Order { ticket, exec } => {
                let done =
                    ExecDone::Refused { reason: NackReason::Dead, promised: None, watermark: 0 };
                What::Result { ticket, p: exec.p, done, response: Vec::new() }
            }
            _ => return None,
        };
        Some(self.envelopes.id(Envelope { from: to, to: from, what }))
    }

    /// Notes the attempt as under way, and pins what its client has seen.
    fn submit(&mut self, next: &mut World, attempt: u8, at: u8) -> Submit {
        let Attempt { number, kind, keyed } = self.setup.attempts[usize::from(attempt)];
        let mut clients = self.clients(next).clone();
        let seen = clients.token_n;
        let pinned = *clients.pinned.entry(number).or_insert(seen);
        clients.attempts[usize::from(attempt)] = Standing::Waiting {
            at: self.peer(next.peers[usize::from(at)]).inc,
            must_see: clients.revealed.clone(),
            since: self.wall(next),
            response: None,
        };
        next.clients = self.clients.id(clients);
        Submit {
            ticket: ticket_of(attempt),
            rid: RequestKey([number; 16]),
            fingerprint: u64::from(number),
            keyed,
            seen: Some(if self.setup.unpinned { seen } else { pinned }),
            safe: matches!(kind, Kind::Read | Kind::Liar),
        }
    }
}

fn offers_a_copy(what: &What) -> bool {
    matches!(what, What::Protocol(Message::Accept { body: BodyRef::Full(_), .. }))
}

fn insert(list: &mut Vec<u32>, id: u32) {
    if let Err(at) = list.binary_search(&id) {
        list.insert(at, id);
    }
}

fn remove(list: &mut Vec<u32>, id: u32) {
    if let Ok(at) = list.binary_search(&id) {
        list.remove(at);
    }
}
