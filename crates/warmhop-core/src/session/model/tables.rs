//! The parts of a world. Everything is interned, so that a world is a handful of numbers.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hash::Hash;
use std::collections::HashMap;

use super::machine::{Input, Step};
use super::setup::Setup;
use crate::config::SessionPolicy;
use crate::ids::{Incarnation, Position, WallTime};
use crate::session::message::{Body, Config, Exec, ExecDone, Members, Message, Record};
use crate::session::{Process, Session, Ticket};

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
    /// How often the clock has moved on.
    pub(super) ticks: u8,
    /// Where the session lasts for a moment: see `lives.rs`.
    pub(super) log: Vec<u32>,
    pub(super) spent: [u8; 8],
}

/// One peer: a process and its machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    pub(super) inc: Incarnation,
    pub(super) process: Process,
    pub(super) session: Session,
    /// What its clock shows.
    pub(super) wall: WallTime,
    /// The highest stamp of a configuration in which it may have voted and forgotten it.
    pub(super) forgot: u64,
}

/// A sent message. It stays sent: it can arrive at any time, again, or never.
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
    pub(super) base: Arc<Body>,
}

/// The state of an attempt, as its entry peer knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Standing {
    Unsent,
    Waiting {
        at: Incarnation,
        must_see: Vec<u8>,
        /// When it was sent.
        since: WallTime,
        response: Option<Vec<u8>>,
    },
    Answered,
    /// It learnt that nothing was applied.
    Refused,
    Unknown,
}

/// The clients, who share one cookie.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Clients {
    pub(super) attempts: Vec<Standing>,
    /// The longest history that any response revealed.
    pub(super) revealed: Vec<u8>,
    /// The number that the newest token names.
    pub(super) token_n: u64,
    pub(super) token_left: bool,
    /// For each request the number that its first attempt came with.
    pub(super) pinned: BTreeMap<u8, u64>,
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

/// A setup with everything that was interned while exploring it.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) setup: Setup,
    pub(super) policy: SessionPolicy,
    pub(super) birth: Config,
    pub(super) peers: Interner<Peer>,
    pub(super) envelopes: Interner<Envelope>,
    pub(super) records: Interner<Record>,
    pub(super) votes: Interner<(Incarnation, u32)>,
    pub(super) positions: Interner<Position>,
    pub(super) runs: Interner<Run>,
    pub(super) clients: Interner<Clients>,
    pub(super) steps: HashMap<(u32, Input), Arc<Step>>,
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

    /// What all clocks show.
    pub(super) fn wall(&self, world: &World) -> WallTime {
        let last = usize::from(world.ticks).checked_sub(1);
        WallTime(last.map_or(0, |last| self.setup.walls[last]))
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
}

/// A table that gives equal things equal numbers.
#[derive(Debug)]
pub(super) struct Interner<T> {
    ids: HashMap<Arc<T>, u32>,
    things: Vec<Arc<T>>,
}

impl<T: Eq + Hash> Interner<T> {
    pub(super) fn new() -> Self {
        Self { ids: HashMap::new(), things: Vec::new() }
    }

    pub(super) fn id(&mut self, thing: T) -> u32 {
        if let Some(id) = self.ids.get(&thing) {
            return *id;
        }
        let id = u32::try_from(self.things.len()).expect("fewer things than 2^32");
        let thing = Arc::new(thing);
        self.ids.insert(thing.clone(), id);
        self.things.push(thing);
        id
    }

    pub(super) fn at(&self, id: u32) -> &Arc<T> {
        &self.things[usize::try_from(id).expect("a usize has 32 bits or more")]
    }
}

/// The peer at a place, in one of its lives.
pub(super) fn inc(slot: u8, life: u8) -> Incarnation {
    let mut bytes = [0; 16];
    (bytes[0], bytes[1]) = (slot, life);
    Incarnation(bytes)
}

pub(super) fn slot_of(inc: Incarnation) -> u8 {
    inc.0[0]
}

pub(super) fn ticket_of(attempt: u8) -> Ticket {
    Ticket(u64::from(attempt))
}

pub(super) fn attempt_of(ticket: Ticket) -> u8 {
    u8::try_from(ticket.0).expect("tickets are numbers of attempts")
}

/// The history that a body holds.
pub(super) fn history(body: &Body) -> Vec<u8> {
    body.state.as_deref().map_or_else(Vec::new, <[u8]>::to_vec)
}
