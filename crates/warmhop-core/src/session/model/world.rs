//! The world around the machines: what can happen, and what each step makes of it.
//!
//! Everything a world consists of is interned: a world is a handful of numbers, and what a
//! machine does with an input is worked out once, however many worlds hold that machine.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::hash::Hash;
use std::collections::HashMap;

use super::judge::{self, Violation};
use crate::config::SessionPolicy;
use crate::ids::{Incarnation, Now, Position, RequestKey, SessionId, WallTime};
use crate::session::message::{
    Body, Config, Exec, ExecDone, Members, Message, NackReason, Record, Stored,
};
use crate::session::owner::Stage;
use crate::session::{Ctx, Effect, Failure, Outcome, Process, Role, Session, Submit, Ticket};

/// What a request does to the state, which is the list of the requests applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Appends itself.
    Write,
    /// Safe: runs beside others, changes nothing.
    Read,
    /// Runs alone, and changes nothing.
    Look,
    /// Declared safe, and appends itself all the same.
    Liar,
}

/// One attempt of a client to have a request applied. Attempts of one number share its key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    pub(super) number: u8,
    pub(super) kind: Kind,
    pub(super) keyed: bool,
}

/// How the session came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Born {
    /// Drawn by the first peer, and a token that names it has left.
    Named,
    /// Drawn by the first peer; nobody else takes it over before a token has left.
    Drawn,
    /// Known by its token alone: whoever serves it takes it over.
    Token,
}

/// What may happen in one exploration. Lists name peers by their places.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) name: &'static str,
    pub(super) peers: u8,
    pub(super) members: &'static [u8],
    pub(super) born: Born,
    /// Where requests may run; [`SELF`] is at their owner.
    pub(super) executors: &'static [u8],
    pub(super) attempts: &'static [Attempt],
    pub(super) takers: &'static [u8],
    pub(super) takeovers: u8,
    /// Changes of members that an owner may begin: who leaves, who comes.
    pub(super) swaps: &'static [(Option<u8>, Option<u8>)],
    pub(super) changes: u8,
    pub(super) heirs: &'static [u8],
    pub(super) hand_overs: u8,
    pub(super) restarters: &'static [u8],
    pub(super) restarts: u8,
    pub(super) forgetters: &'static [u8],
    pub(super) forgettings: u8,
    /// Executions reported as failed while they run.
    pub(super) abandons: u8,
    /// Owners that lose patience: everyone who waits for a majority is told so.
    pub(super) give_ups: u8,
    pub(super) keyed_max: usize,
    pub(super) unkeyed_max: usize,
    /// So many of the first attempts are applied at the first peer, and everything they cause
    /// has arrived, before exploration begins.
    pub(super) settled: u8,
    /// Links on which nothing arrives once the exploration has begun: from, to.
    pub(super) cut: &'static [(u8, u8)],
    /// An owner's own executions take no time.
    pub(super) instant: bool,
    /// Orders and results arrive again, too. In truth each travels once, on a stream of its own.
    pub(super) echoes: bool,
    /// Messages that can change nothing any more are dropped. What they could still do is to
    /// tell a peer of a ballot it has outgrown; that they are lost is one of the cases anyway.
    pub(super) prune: bool,
    /// A restarted process takes its former identity.
    pub(super) amnesia: bool,
    /// A repeat names what its client has seen by then, not what it had seen at first.
    pub(super) unpinned: bool,
    /// A proposal may be reported as a failed execution.
    pub(super) abandon_proposals: bool,
}

/// In a list of executors: the owner itself.
pub(super) const SELF: u8 = u8::MAX;

impl Setup {
    pub(super) const PLAIN: Setup = Setup {
        name: "",
        peers: 3,
        members: &[0, 1, 2],
        born: Born::Named,
        executors: &[SELF],
        attempts: &[],
        takers: &[],
        takeovers: 0,
        swaps: &[],
        changes: 0,
        heirs: &[],
        hand_overs: 0,
        restarters: &[],
        restarts: 0,
        forgetters: &[],
        forgettings: 0,
        abandons: 0,
        give_ups: 0,
        keyed_max: 4,
        unkeyed_max: 4,
        settled: 0,
        cut: &[],
        instant: true,
        echoes: false,
        prune: true,
        amnesia: false,
        unpinned: false,
        abandon_proposals: false,
    };
}

/// One peer: a process and its machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    pub(super) inc: Incarnation,
    pub(super) process: Process,
    pub(super) session: Session,
    /// The highest stamp of a configuration in which it may have voted and forgotten it.
    forgot: u64,
}

/// Something sent. It stays sent: it can arrive at any time, again, or never.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Envelope {
    pub(super) from: Incarnation,
    pub(super) to: Incarnation,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum What {
    Protocol(Message),
    /// An order to execute.
    Order {
        ticket: Ticket,
        exec: Exec,
    },
    Result {
        ticket: Ticket,
        p: Option<Position>,
        done: ExecDone,
        response: Vec<u8>,
    },
}

/// A request running at an executor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Run {
    pub(super) slot: u8,
    pub(super) order: u32,
    base: Arc<Body>,
}

/// How an attempt stands, as its entry peer knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Standing {
    Unsent,
    Waiting {
        at: Incarnation,
        must_see: Vec<u8>,
        response: Option<Vec<u8>>,
    },
    Answered,
    /// It was told that nothing was applied.
    Refused,
    Unknown,
}

/// The clients, who share one cookie.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Clients {
    pub(super) attempts: Vec<Standing>,
    /// The longest history that any response let be known.
    pub(super) revealed: Vec<u8>,
    /// The number that the newest token names.
    token_n: u64,
    token_left: bool,
    /// For each request the number its first attempt came with.
    pinned: BTreeMap<u8, u64>,
}

impl Clients {
    /// A response or token reached the client.
    pub(super) fn learn(&mut self, list: &[u8], n: u64) {
        if self.revealed.len() < list.len() {
            self.revealed = list.to_vec();
        }
        self.token_n = self.token_n.max(n);
        self.token_left = true;
    }
}

/// What a machine can be given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Input {
    Arrives(u32),
    Invited(u32),
    Ends(u32),
    Submit(Submit),
    Begin(Ticket, Incarnation),
    Abandon(Ticket, Option<Position>),
    TakeOver,
    HandOver(Incarnation),
    Change(Option<Incarnation>, Option<Incarnation>),
    Forget,
    GiveUp,
}

/// What clients and judges learn of a step.
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

/// What a machine did with an input.
#[derive(Debug)]
pub(super) struct Step {
    peer: u32,
    sends: Vec<u32>,
    pub(super) votes: Option<u32>,
    pub(super) proposes: Option<u32>,
    pub(super) events: Vec<Event>,
    run: Option<u32>,
    broken: Option<Violation>,
}

/// What can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Deliver(u32),
    /// The addressee lives on as another incarnation, which says so.
    DeadLetter(u32),
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
    HandOver {
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
}

#[derive(Debug, Clone, Copy)]
#[repr(usize)]
enum Budget {
    Takeovers,
    Changes,
    HandOvers,
    Restarts,
    Forgettings,
    Abandons,
    GiveUps,
}

/// One state of everything. Lists are sorted, so that equal worlds are equal in memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) peers: Vec<u32>,
    pub(super) wire: Vec<u32>,
    pub(super) runs: Vec<u32>,
    /// Every vote ever cast: who, and for which record.
    pub(super) votes: Vec<u32>,
    /// Every position that was ever given to an execution.
    pub(super) used: Vec<u32>,
    pub(super) clients: u32,
    spent: [u8; 7],
}

/// A table that gives equal things equal numbers.
#[derive(Debug)]
struct Interner<T> {
    ids: HashMap<Arc<T>, u32>,
    things: Vec<Arc<T>>,
}

impl<T: Eq + Hash> Interner<T> {
    fn new() -> Self {
        Self { ids: HashMap::new(), things: Vec::new() }
    }

    fn id(&mut self, thing: T) -> u32 {
        if let Some(id) = self.ids.get(&thing) {
            return *id;
        }
        let id = u32::try_from(self.things.len()).expect("fewer things than 2^32");
        let thing = Arc::new(thing);
        self.ids.insert(thing.clone(), id);
        self.things.push(thing);
        id
    }

    fn at(&self, id: u32) -> &Arc<T> {
        &self.things[usize::try_from(id).expect("a usize has 32 bits or more")]
    }
}

/// A setup with all that was interned while exploring it.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) setup: Setup,
    policy: SessionPolicy,
    birth: Config,
    peers: Interner<Peer>,
    envelopes: Interner<Envelope>,
    records: Interner<Record>,
    votes: Interner<(Incarnation, u32)>,
    positions: Interner<Position>,
    runs: Interner<Run>,
    clients: Interner<Clients>,
    steps: HashMap<(u32, Input), Arc<Step>>,
}

const FRESH: WallTime = WallTime(0);

/// The peer at a place, in one of its lives.
pub(super) fn inc(slot: u8, life: u8) -> Incarnation {
    let mut bytes = [0; 16];
    (bytes[0], bytes[1]) = (slot, life);
    Incarnation(bytes)
}

pub(super) fn slot_of(inc: Incarnation) -> u8 {
    inc.0[0]
}

/// The history that a body holds.
pub(super) fn history(body: &Body) -> Vec<u8> {
    body.state.as_deref().map_or_else(Vec::new, <[u8]>::to_vec)
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

impl Tables {
    pub(super) fn new(setup: Setup) -> Self {
        let policy = SessionPolicy {
            recent_keyed_max: setup.keyed_max,
            recent_unkeyed_max: setup.unkeyed_max,
            ..SessionPolicy::default()
        };
        let who = setup.members.iter().map(|slot| inc(*slot, 0)).collect();
        let birth = Config { now: Members { c: 1, stamp: 1, who }, prev: None };
        Self {
            setup,
            policy,
            birth,
            peers: Interner::new(),
            envelopes: Interner::new(),
            records: Interner::new(),
            votes: Interner::new(),
            positions: Interner::new(),
            runs: Interner::new(),
            clients: Interner::new(),
            steps: HashMap::new(),
        }
    }

    pub(super) fn peer(&self, id: u32) -> &Peer {
        self.peers.at(id)
    }

    pub(super) fn envelope(&self, id: u32) -> &Envelope {
        self.envelopes.at(id)
    }

    pub(super) fn record(&self, id: u32) -> &Record {
        self.records.at(id)
    }

    pub(super) fn vote(&self, id: u32) -> (Incarnation, u32) {
        **self.votes.at(id)
    }

    pub(super) fn run(&self, id: u32) -> &Run {
        self.runs.at(id)
    }

    pub(super) fn clients(&self, world: &World) -> &Clients {
        self.clients.at(world.clients)
    }

    /// The world before anything happened.
    pub(super) fn first(&mut self) -> World {
        let mut peers = Vec::new();
        for slot in 0..self.setup.peers {
            let mut process = Process::default();
            let mut session = Session::new(SessionId([0; 16]), &process);
            if slot == 0 && self.setup.born != Born::Token {
                let policy = self.policy.clone();
                let mut ctx = ctx(inc(0, 0), Now(0), &policy, &mut process);
                session.mint(&mut ctx, self.birth.clone(), &mut Vec::new());
                if self.setup.born == Born::Named {
                    session.name();
                }
            }
            peers.push(self.peers.id(Peer { inc: inc(slot, 0), process, session, forgot: 0 }));
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
            spent: [0; 7],
        }
    }

    /// The world in which exploration begins, and how it came about.
    pub(super) fn settle(&mut self) -> (World, Vec<Action>) {
        let cut = core::mem::take(&mut self.setup.cut);
        let mut world = self.first();
        let mut actions = Vec::new();
        for attempt in 0..self.setup.settled {
            let mut next = Some(Action::Submit { attempt, at: 0 });
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

    /// Whatever can happen next, in an order that is the same every time.
    pub(super) fn actions(&self, world: &World) -> Vec<Action> {
        let setup = &self.setup;
        let mut actions = Vec::new();
        let slots = || (0..setup.peers).zip(world.peers.iter().map(|id| self.peer(*id)));
        // A turn is answered at once, in the same breath of the runtime.
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
        }
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
            if owns && left(Budget::HandOvers, setup.hand_overs) {
                actions.extend(setup.heirs.iter().map(|to| Action::HandOver { at, to: *to }));
            }
            if setup.restarters.contains(&at) && left(Budget::Restarts, setup.restarts) {
                actions.push(Action::Restart { at });
            }
            if setup.forgetters.contains(&at)
                && left(Budget::Forgettings, setup.forgettings)
                && peer.session.load() == 0
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

    /// What comes of an action: `None` where it changes nothing.
    pub(super) fn act(
        &mut self,
        world: &World,
        action: Action,
    ) -> Option<(World, Option<Violation>)> {
        let mut next = world.clone();
        let mut spend = |budget: Budget| next.spent[budget as usize] += 1;
        let (slot, input) = match action {
            Action::Deliver(id) => {
                let envelope = self.envelope(id);
                let slot = slot_of(envelope.to);
                if matches!(envelope.what, What::Protocol(Message::Invite { .. })) {
                    spend(Budget::Takeovers);
                    (slot, Input::Invited(id))
                } else {
                    (slot, Input::Arrives(id))
                }
            }
            Action::DeadLetter(id) => {
                let answer = self.dead_letter(id)?;
                insert(&mut next.wire, answer);
                return (next != *world).then_some((next, None));
            }
            Action::End(id) => (self.run(id).slot, Input::Ends(id)),
            Action::Submit { attempt, at } => {
                let submit = self.submit(&mut next, attempt, at);
                (at, Input::Submit(submit))
            }
            Action::Begin { at, attempt, executor } => {
                let executor = self.peer(world.peers[usize::from(executor)]).inc;
                (at, Input::Begin(ticket_of(attempt), executor))
            }
            Action::Abandon { at, attempt } => {
                spend(Budget::Abandons);
                let peer = self.peer(world.peers[usize::from(at)]);
                let ticket = ticket_of(attempt);
                let (_, stage, b) = peer.session.flying().find(|(it, _, _)| *it == ticket)?;
                let p = match stage {
                    Stage::Running { p, .. } => p,
                    _ => b.map(|ballot| Position { ballot, n: 0 }),
                };
                (at, Input::Abandon(ticket, p))
            }
            Action::TakeOver { at } => {
                spend(Budget::Takeovers);
                (at, Input::TakeOver)
            }
            Action::HandOver { at, to } => {
                spend(Budget::HandOvers);
                (at, Input::HandOver(self.peer(world.peers[usize::from(to)]).inc))
            }
            Action::Change { at, swap } => {
                spend(Budget::Changes);
                let (gone, newcomer) = self.setup.swaps[usize::from(swap)];
                let now = |slot: u8| self.peer(world.peers[usize::from(slot)]).inc;
                // Who leaves may be a former life; who comes lives.
                let owner = self.peer(world.peers[usize::from(at)]);
                let member =
                    |slot| owner.session.members().iter().copied().find(|it| slot_of(*it) == slot);
                (at, Input::Change(gone.and_then(member), newcomer.map(now)))
            }
            Action::Restart { at } => {
                spend(Budget::Restarts);
                let old = self.peer(world.peers[usize::from(at)]).clone();
                let process = Process::default();
                let session = Session::new(old.session.sid(), &process);
                let life = old.inc.0[1] + u8::from(!self.setup.amnesia);
                let peer = Peer { inc: inc(at, life), process, session, forgot: 0 };
                next.peers[usize::from(at)] = self.peers.id(peer);
                next.runs.retain(|id| self.run(*id).slot != at);
                return Some((next, None));
            }
            Action::Forget { at } => {
                spend(Budget::Forgettings);
                (at, Input::Forget)
            }
            Action::GiveUp { at } => {
                spend(Budget::GiveUps);
                (at, Input::GiveUp)
            }
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
            // A change of members or a hand-over that the owner declined spends nothing.
            Input::Change(..) | Input::HandOver(_)
                if step.peer == world.peers[usize::from(slot)] =>
            {
                return None;
            }
            _ => {}
        }
        let broken = self.apply(world, &mut next, slot, &step);
        // A copy that forgets may let through what it would not have before.
        if self.setup.prune && self.setup.forgettings == 0 && !self.setup.amnesia {
            self.prune(&mut next);
        }
        (next != *world || broken.is_some()).then_some((next, broken))
    }

    fn apply(
        &mut self,
        before: &World,
        next: &mut World,
        slot: u8,
        step: &Step,
    ) -> Option<Violation> {
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
        }
        if let Some(record) = step.proposes {
            broken = broken.or_else(|| judge::proposed(self, next, record));
        }
        if !step.events.is_empty() {
            let mut clients = self.clients(before).clone();
            // The action itself may have changed them already.
            if next.clients != before.clients {
                clients = self.clients(next).clone();
            }
            for event in &step.events {
                if let Event::Ordered(p) = event {
                    let id = self.positions.id(*p);
                    broken = broken.or_else(|| judge::ordered(next, id, *p));
                    insert(&mut next.used, id);
                }
                let judged = judge::told(self, next, &mut clients, event);
                broken = broken.or(judged);
            }
            next.clients = self.clients.id(clients);
        }
        if step.votes.is_some() || !step.events.is_empty() {
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

    /// Drops the messages of which nothing can come any more.
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
            What::Protocol(Message::Prepare { .. } | Message::Accept { .. }) => {
                What::Protocol(Message::Nack {
                    reason: NackReason::Dead,
                    promised: None,
                    cfg: None,
                    watermark: 0,
                })
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

    /// What the machine does with the input; worked out once.
    fn step(&mut self, peer: u32, input: &Input) -> Arc<Step> {
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
        let me = peer.inc;
        let policy = self.policy.clone();
        let late = matches!(input, Input::GiveUp);
        let now = if late { Now(3_600_000) } else { Now(0) };
        let mut ctx = ctx(me, now, &policy, &mut peer.process);
        let session = &mut peer.session;
        let mut out = Vec::new();
        let mut sends = Vec::new();
        let mut events = Vec::new();
        let mut run = None;
        let result = |to, ticket, p, done, response| Envelope {
            from: me,
            to,
            what: What::Result { ticket, p, done, response },
        };
        match input {
            Input::Arrives(id) | Input::Invited(id) => {
                let Envelope { from, what, .. } = (**self.envelopes.at(*id)).clone();
                match what {
                    What::Protocol(message) => {
                        session.on_message(&mut ctx, from, message, &mut out)
                    }
                    What::Order { ticket, exec } => match session.exec_begin(&mut ctx, &exec) {
                        Ok(base) => run = Some(Run { slot: slot_of(me), order: *id, base }),
                        Err(done) => sends.push(result(from, ticket, exec.p, done, Vec::new())),
                    },
                    What::Result { ticket, p, done, response } => {
                        let awaited = session.flying().any(|(it, stage, _)| {
                            it == ticket && matches!(stage, Stage::Running { p: at, .. } if at == p)
                        });
                        let ran =
                            matches!(done, ExecDone::Changed { .. } | ExecDone::Unchanged { .. });
                        if awaited && ran {
                            events.push(Event::Response(ticket, response));
                        }
                        session.executed(&mut ctx, ticket, p, done.into(), &mut out);
                    }
                }
            }
            Input::Ends(id) => {
                let Run { order, base, .. } = (**self.runs.at(*id)).clone();
                let Envelope { from, what, .. } = (**self.envelopes.at(order)).clone();
                let What::Order { ticket, exec } = what else { unreachable!("runs are of orders") };
                let (list, done) = self.run_app(session, &mut ctx, ticket, &exec, &base);
                sends.push(result(from, ticket, exec.p, done, list));
            }
            Input::Submit(submit) => session.submit(&mut ctx, submit.clone(), &mut out),
            Input::Begin(ticket, executor) => {
                session.begin(&mut ctx, *ticket, *executor, &mut out);
                if self.setup.instant && *executor == me {
                    self.run_here(session, &mut ctx, &mut out, &mut events);
                }
            }
            Input::Abandon(ticket, p) => {
                session.executed(&mut ctx, *ticket, *p, Outcome::Failed, &mut out);
            }
            Input::TakeOver => {
                session.take_over(&mut ctx, Some(self.birth.clone()), 0, &[], &mut out);
            }
            Input::HandOver(to) => session.hand_over(&mut ctx, *to, &mut out),
            Input::Change(gone, newcomer) => {
                session.change_members(&mut ctx, *gone, *newcomer, &mut out);
            }
            Input::Forget => {
                peer.forgot = peer.forgot.max(session.copy.stamp_hi);
                session.forget(&mut ctx);
            }
            Input::GiveUp => session.on_timer(&mut ctx, &mut out),
        }
        let invited = out.iter().find_map(|effect| match effect {
            Effect::Invited { cfg } => Some(cfg.clone()),
            _ => None,
        });
        if let (Input::Invited(_), Some(cfg)) = (input, invited) {
            session.take_over(&mut ctx, Some(cfg), 0, &[], &mut out);
        }
        for effect in out {
            self.note(me, effect, &mut sends, &mut events);
        }
        let accepted = |peer: &Peer| peer.session.copy.accepted.clone();
        let voted = accepted(&peer).filter(|_| accepted(&peer) != accepted(&before));
        let proposes =
            peer.session.proposing().filter(|it| Some(*it) != before.session.proposing());
        let proposes = proposes.cloned();
        let forgets = matches!(input, Input::Forget);
        let mut broken = (!forgets).then(|| judge::fell(&before, &peer)).flatten();
        if let Some(record) = &voted {
            broken = broken.or_else(|| judge::revoted(me, peer.forgot, &record.cfg));
        }
        for envelope in &sends {
            if let What::Protocol(Message::Promise { cfg, .. }) = &envelope.what {
                broken = broken.or_else(|| judge::revoted(me, peer.forgot, cfg));
            }
        }
        let votes = voted.map(|record| {
            let record = self.records.id(record);
            self.votes.id((me, record))
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

    /// Runs what this peer ordered of itself.
    fn run_here(
        &self,
        session: &mut Session,
        ctx: &mut Ctx<'_>,
        out: &mut Vec<Effect>,
        events: &mut Vec<Event>,
    ) {
        let mut at = 0;
        while at < out.len() {
            let (ticket, exec) = match &out[at] {
                Effect::Execute { ticket, executor, exec } if *executor == ctx.me => {
                    (*ticket, exec.clone())
                }
                _ => {
                    at += 1;
                    continue;
                }
            };
            out.remove(at);
            events.extend(exec.p.map(Event::Ordered));
            let done = match session.exec_begin(ctx, &exec) {
                Ok(base) => {
                    let (list, done) = self.run_app(session, ctx, ticket, &exec, &base);
                    events.push(Event::Response(ticket, list));
                    done
                }
                Err(done) => done,
            };
            session.executed(ctx, ticket, exec.p, done.into(), out);
        }
    }

    /// The app: what it answers is the history that it saw or made.
    fn run_app(
        &self,
        session: &mut Session,
        ctx: &mut Ctx<'_>,
        ticket: Ticket,
        exec: &Exec,
        base: &Body,
    ) -> (Vec<u8>, ExecDone) {
        let mut list = history(base);
        let changes = self.kind_of(ticket).changes();
        if changes {
            list.push(exec.rid.0[0]);
        }
        let bytes: Arc<[u8]> = Arc::from(list.as_slice());
        let change = changes.then(|| Some(bytes.clone()));
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
                | Failure::TooManyRetries => Event::Refused(ticket),
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
            | Effect::Lagging
            | Effect::Lost => {}
        }
    }

    fn kind_of(&self, ticket: Ticket) -> Kind {
        self.setup.attempts[usize::from(attempt_of(ticket))].kind
    }
}

/// Whether nothing can come of an envelope any more, given how its sender and its addressee
/// stand. Ballots only rise and numbers are not used again, so that this never changes back.
fn is_spent(envelope: &Envelope, from: &Peer, to: &Peer) -> bool {
    let Envelope { from: sender, to: addressee, what } = envelope;
    if to.inc != *addressee {
        // An answer to somebody who is gone; the rest comes back as `Dead`.
        return match what {
            What::Protocol(Message::Prepare { .. } | Message::Accept { .. })
            | What::Order { .. } => from.inc != *sender,
            _ => true,
        };
    }
    let asks = |peer: &Peer, b| peer.inc == *sender && peer.session.ballot() == Some(b);
    let promised = to.session.copy.promised;
    match what {
        What::Protocol(Message::Prepare { b, .. }) => promised > Some(*b) && !asks(from, *b),
        What::Protocol(Message::Accept { p, .. }) => {
            let held = to.session.copy.accepted.as_ref().map(|record| record.p);
            let late = held > Some(*p) || promised > Some(p.ballot);
            late && !asks(from, p.ballot) || held > Some(*p) && promised == Some(p.ballot)
        }
        What::Protocol(Message::Promise { b, .. }) => to.session.ballot() != Some(*b),
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

impl Kind {
    pub(super) fn changes(self) -> bool {
        matches!(self, Kind::Write | Kind::Liar)
    }
}

fn ticket_of(attempt: u8) -> Ticket {
    Ticket(u64::from(attempt))
}

pub(super) fn attempt_of(ticket: Ticket) -> u8 {
    u8::try_from(ticket.0).expect("tickets are numbers of attempts")
}

fn ctx<'a>(
    me: Incarnation,
    now: Now,
    policy: &'a SessionPolicy,
    process: &'a mut Process,
) -> Ctx<'a> {
    Ctx { me, now, wall: FRESH, policy, process, dice: 0 }
}
