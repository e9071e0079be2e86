//! One session on several peers, over a network that loses, repeats and reorders, while peers
//! crash and come back as others, take the session over from each other, hand it over and change
//! its members. Every client's history is judged from outside:
//!
//! * no acknowledged change is lost (I4, I8), none is applied twice (I6);
//! * the states that clients were shown extend one another (I4);
//! * once the faults stop, every request is answered.
//!
//! `SEEDS=1+100000 cargo test --release -p warmhop-core --test session_sim` runs more of them: so
//! many seeds from the first.

mod prng;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prng::Prng;
use warmhop_core::config::SessionPolicy;
use warmhop_core::ids::{Incarnation, Now, Position, RequestKey, SessionId, WallTime};
use warmhop_core::session::message::{Body, Config, Exec, Members, Message, NackReason, Stored};
use warmhop_core::session::{
    Ctx, Effect, Effects, Failure, Outcome, Process, Session, Submit, Ticket,
};

const PEERS: usize = 5;
const REQUESTS: u8 = 14;

struct Peer {
    inc: Incarnation,
    machine: Session,
    process: Process,
}

/// A request as its client sees it.
struct Request {
    rid: RequestKey,
    keyed: bool,
    is_read: bool,
    /// What was acknowledged before it was sent.
    before: Vec<u8>,
    seen: u64,
    state: State,
    /// What the app made of it last, by the position it ran for.
    shown: BTreeMap<(usize, u64), Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// To be sent to some peer.
    Free,
    /// In line at a peer.
    At {
        peer: usize,
        ticket: u64,
    },
    Answered,
    /// The client was told that nobody knows; it does not ask again.
    Unknown,
}

enum Travelling {
    Message { from: Incarnation, to: usize, message: Message },
    Order { owner: usize, ticket: Ticket, executor: usize, exec: Exec },
    Running { owner: usize, ticket: Ticket, executor: usize, exec: Exec, base: Arc<Body> },
    Result { owner: usize, ticket: Ticket, p: Option<Position>, outcome: Outcome, list: Vec<u8> },
}

struct World {
    rng: Prng,
    now: u64,
    policy: SessionPolicy,
    peers: Vec<Peer>,
    lives: u8,
    travelling: Vec<Travelling>,
    requests: Vec<Request>,
    tickets: u64,
    hint: Option<(Config, Incarnation, u64)>,
    acknowledged: Vec<u8>,
    longest: Vec<u8>,
    faults: bool,
    trace: Vec<String>,
    seed: u64,
    dead: BTreeSet<Incarnation>,
    last_crash: u64,
    /// The peer whose messages to and from others are all lost, and until when.
    cut_off: Option<(usize, u64)>,
}

fn incarnation(n: u8) -> Incarnation {
    Incarnation([n; 16])
}

fn list_of(body: &Body) -> Vec<u8> {
    body.state.as_ref().map(|state| state.to_vec()).unwrap_or_default()
}

impl World {
    fn new(seed: u64) -> Self {
        let policy = SessionPolicy { queue_max: 64, ..SessionPolicy::default() };
        let peers = (0..PEERS)
            .map(|at| {
                let process = Process::default();
                let machine = Session::new(SessionId([9; 16]), &process);
                Peer { inc: incarnation(at as u8 + 1), machine, process }
            })
            .collect();
        let mut world = Self {
            rng: Prng(seed),
            now: 1_000,
            policy,
            peers,
            lives: PEERS as u8,
            travelling: Vec::new(),
            requests: Vec::new(),
            tickets: 0,
            hint: None,
            acknowledged: Vec::new(),
            longest: Vec::new(),
            faults: true,
            trace: Vec::new(),
            seed,
            dead: BTreeSet::new(),
            last_crash: 0,
            cut_off: None,
        };
        let who = vec![incarnation(1), incarnation(2), incarnation(3)];
        let cfg = Config { now: Members::first(1, who), prev: None };
        world.on(0, |machine, ctx, out| machine.mint(ctx, cfg.clone(), out));
        world.hint = Some((cfg, incarnation(1), 0));
        world
    }

    fn dice(&mut self, below: u64) -> u64 {
        self.rng.below(below)
    }

    fn fail(&self, what: &str) -> ! {
        let from = self.trace.len().saturating_sub(120);
        panic!("seed {}: {what}\n{}", self.seed, self.trace[from..].join("\n"));
    }

    fn index_of(&self, inc: Incarnation) -> Option<usize> {
        self.peers.iter().position(|peer| peer.inc == inc)
    }

    fn on<R>(
        &mut self,
        at: usize,
        work: impl FnOnce(&mut Session, &mut Ctx<'_>, &mut Effects) -> R,
    ) -> R {
        let mut out = Effects::new();
        let dice = self.rng.next();
        let peer = &mut self.peers[at];
        let mut ctx = Ctx {
            me: peer.inc,
            now: Now(self.now),
            wall: WallTime(self.now),
            policy: &self.policy,
            process: &mut peer.process,
            dice,
        };
        let result = work(&mut peer.machine, &mut ctx, &mut out);
        for effect in out {
            self.carry_out(at, effect);
        }
        result
    }

    fn carry_out(&mut self, at: usize, effect: Effect) {
        self.trace.push(format!("{:>6} p{} {effect:?}", self.now, at));
        match effect {
            Effect::Send { to, message } => {
                let from = self.peers[at].inc;
                let copies = match self.dice(10) {
                    0 if self.faults => 0,
                    1 if self.faults => 2,
                    _ => 1,
                };
                let cut = self.cut_off.filter(|(_, until)| self.faults && self.now < *until);
                match self.index_of(to) {
                    Some(to) if cut.is_some_and(|(peer, _)| peer == at || peer == to) => {}
                    Some(to) => {
                        for _ in 0..copies {
                            let message = message.clone();
                            self.travelling.push(Travelling::Message { from, to, message });
                        }
                    }
                    None => {
                        let asks = matches!(
                            message,
                            Message::Prepare { .. } | Message::Accept { .. } | Message::Locate
                        );
                        // Its peer lives again as another, which says so; or nobody answers.
                        if asks && self.dice(2) == 0 {
                            let message = Message::Nack {
                                reason: NackReason::Dead,
                                promised: None,
                                cfg: None,
                                watermark: 0,
                            };
                            self.travelling.push(Travelling::Message { from: to, to: at, message });
                        }
                    }
                }
            }
            Effect::Turn { ticket } => {
                if self.find(at, ticket).is_none() {
                    self.on(at, |machine, ctx, out| machine.cancel(ctx, ticket, out));
                    return;
                }
                let executor = match self.dice(3) {
                    0 => at,
                    _ => self.dice(PEERS as u64) as usize,
                };
                let executor = self.peers[executor].inc;
                self.on(at, |machine, ctx, out| machine.begin(ctx, ticket, executor, out));
            }
            Effect::Execute { ticket, executor, exec } => match self.index_of(executor) {
                Some(executor) => {
                    self.travelling.push(Travelling::Order { owner: at, ticket, executor, exec });
                }
                None => self.travelling.push(Travelling::Result {
                    owner: at,
                    ticket,
                    p: exec.p,
                    outcome: Outcome::Failed,
                    list: Vec::new(),
                }),
            },
            Effect::Release { ticket, hint } => {
                let Some(index) = self.find(at, ticket) else { return };
                let Some(list) = self.requests[index].shown.get(&(at, ticket.0)).cloned() else {
                    self.fail("a response was released that no app gave");
                };
                self.hint = Some((hint.cfg, hint.owner, hint.n));
                self.answered(index, &list);
            }
            Effect::Replay { ticket, .. } => {
                let Some(index) = self.find(at, ticket) else { return };
                let rid = self.requests[index].rid.0[0];
                self.requests[index].state = State::Answered;
                if !self.acknowledged.contains(&rid) {
                    self.acknowledged.push(rid);
                }
            }
            Effect::Fail { ticket, failure } => {
                let Some(index) = self.find(at, ticket) else { return };
                let request = &mut self.requests[index];
                let certain = matches!(
                    failure,
                    Failure::QueueFull
                        | Failure::NoMajority { ran: false }
                        | Failure::TooManyRetries
                        | Failure::KeyInUse
                        | Failure::ExecutionFailed
                );
                request.state = if failure == (Failure::Lost { ran: false }) {
                    self.fail("lost although a majority of holders never died at once")
                } else if failure == Failure::BelowFloor || failure == Failure::FingerprintDiffers {
                    State::Unknown
                } else if certain || request.keyed || request.is_read {
                    State::Free
                } else {
                    State::Unknown
                };
            }
            Effect::Redirect { ticket, .. } => {
                if let Some(index) = self.find(at, ticket) {
                    self.requests[index].state = State::Free;
                }
            }
            Effect::Invited { cfg } => {
                self.on(at, |machine, ctx, out| {
                    if !machine.is_owner() && !machine.is_taking_over() {
                        let round = machine.seen_round();
                        machine.take_over(ctx, Some(cfg), round, &[], out);
                    }
                });
            }
            Effect::Lost => self.fail("lost although a majority of holders never died at once"),
            _ => {}
        }
    }

    fn find(&self, peer: usize, ticket: Ticket) -> Option<usize> {
        let at = State::At { peer, ticket: ticket.0 };
        self.requests.iter().position(|request| request.state == at)
    }

    fn answered(&mut self, index: usize, list: &[u8]) {
        let rid = self.requests[index].rid.0[0];
        let unique: BTreeSet<u8> = list.iter().copied().collect();
        if unique.len() != list.len() {
            self.fail(&format!("applied twice: {list:?}"));
        }
        for known in &self.requests[index].before {
            if !list.contains(known) {
                self.fail(&format!("{known} was acknowledged before, but {list:?} lacks it"));
            }
        }
        let shorter = list.len().min(self.longest.len());
        if list[..shorter] != self.longest[..shorter] {
            self.fail(&format!("two histories: {list:?} and {:?}", self.longest));
        }
        if list.len() > self.longest.len() {
            self.longest = list.to_vec();
        }
        if !self.requests[index].is_read {
            if !list.contains(&rid) {
                self.fail("a change was acknowledged without its change");
            }
            self.acknowledged.push(rid);
        }
        self.requests[index].state = State::Answered;
    }

    fn send_request(&mut self, index: usize) {
        let at = self.dice(PEERS as u64) as usize;
        let (cfg, owner, n) = self.hint.clone().expect("the first token is known");
        let request = &mut self.requests[index];
        if request.before.is_empty() && request.seen == u64::MAX {
            request.before = self.acknowledged.clone();
            request.seen = n;
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let submit = Submit {
            ticket,
            rid: request.rid,
            fingerprint: 1,
            keyed: request.keyed,
            seen: request.keyed.then_some(request.seen),
            safe: request.is_read,
        };
        let machine = &self.peers[at].machine;
        let involved = machine.is_owner() || machine.is_taking_over();
        let known = machine.known_owner().unwrap_or(owner);
        let at = match self.index_of(known) {
            _ if involved => at,
            Some(owner) if self.dice(4) > 0 => owner,
            _ => at,
        };
        self.requests[index].state = State::At { peer: at, ticket: ticket.0 };
        self.on(at, |machine, ctx, out| {
            if !machine.is_owner() && !machine.is_taking_over() {
                let round = machine.seen_round();
                machine.take_over(ctx, Some(cfg), round, &[], out);
            }
            machine.submit(ctx, submit, out);
        });
    }

    fn crash(&mut self) {
        // One holder at a time, with time to mend in between: what the protocol survives.
        let settled = self.peers.iter().any(|peer| {
            peer.machine.is_owner()
                && peer.machine.config().is_some_and(|cfg| {
                    cfg.is_open() && cfg.now.who.iter().all(|member| !self.dead.contains(member))
                })
        });
        if !settled || self.now < self.last_crash + 8_000 {
            return;
        }
        self.last_crash = self.now;
        let at = self.dice(PEERS as u64) as usize;
        self.lives += 1;
        let old = self.peers[at].inc;
        self.dead.insert(old);
        let process = Process::default();
        let machine = Session::new(SessionId([9; 16]), &process);
        self.peers[at] = Peer { inc: incarnation(self.lives), machine, process };
        self.trace.push(format!("{:>6} p{at} crashes, comes back as {}", self.now, self.lives));
        for request in &mut self.requests {
            if matches!(request.state, State::At { peer, .. } if peer == at) {
                request.state =
                    if request.keyed || request.is_read { State::Free } else { State::Unknown };
            }
        }
        // What ran there is lost; what was sent there arrives at another life.
        let mut kept = Vec::new();
        for item in std::mem::take(&mut self.travelling) {
            match item {
                Travelling::Order { owner, ticket, executor, exec }
                | Travelling::Running { owner, ticket, executor, exec, .. }
                    if executor == at && owner != at =>
                {
                    let (p, outcome, list) = (exec.p, Outcome::Failed, Vec::new());
                    kept.push(Travelling::Result { owner, ticket, p, outcome, list });
                }
                Travelling::Order { owner, .. }
                | Travelling::Running { owner, .. }
                | Travelling::Result { owner, .. }
                    if owner == at => {}
                Travelling::Message { to, .. } if to == at => {}
                other => kept.push(other),
            }
        }
        self.travelling = kept;
    }

    /// What the runtime does for a session that has lost a member: replaces it.
    fn mend(&mut self) {
        for at in 0..PEERS {
            let machine = &self.peers[at].machine;
            if !machine.is_owner() {
                continue;
            }
            let members = machine.members().to_vec();
            let gone = members.iter().copied().find(|member| self.dead.contains(member));
            let swap = self.faults && self.dice(40) == 0;
            let gone = gone.or_else(|| {
                let other = members.iter().find(|member| **member != self.peers[at].inc);
                other.copied().filter(|_| swap)
            });
            let Some(gone) = gone else { continue };
            let newcomer =
                self.peers.iter().map(|peer| peer.inc).find(|inc| !members.contains(inc));
            self.on(at, |machine, ctx, out| {
                machine.change_members(ctx, Some(gone), newcomer, out);
            });
        }
    }

    fn step(&mut self) {
        self.now += self.dice(12);
        for at in 0..PEERS {
            let (now, wall) = (Now(self.now), WallTime(self.now));
            if self.peers[at].machine.next_wake(now, wall).is_some_and(|wake| wake <= now) {
                self.on(at, |machine, ctx, out| machine.on_timer(ctx, out));
            }
        }
        if self.dice(30) == 0 {
            self.mend();
        }
        if self.faults {
            if self.dice(150) == 0 {
                self.crash();
            }
            if self.dice(200) == 0 {
                // The owner, more often than not: one that does not learn that it is none.
                let owner = self.peers.iter().position(|peer| peer.machine.is_owner());
                let peer = match self.dice(3) {
                    0 => self.dice(PEERS as u64) as usize,
                    _ => owner.unwrap_or(0),
                };
                self.cut_off = Some((peer, self.now + 3_000));
            }
            if self.dice(60) == 0 {
                let (from, to) =
                    (self.dice(PEERS as u64) as usize, self.dice(PEERS as u64) as usize);
                let to = self.peers[to].inc;
                self.on(from, |machine, ctx, out| machine.hand_over(ctx, to, out));
            }
            if self.dice(80) == 0 {
                let at = self.dice(PEERS as u64) as usize;
                let cfg = self.hint.clone().map(|(cfg, _, _)| cfg);
                self.on(at, |machine, ctx, out| {
                    if !machine.is_owner() && !machine.is_taking_over() {
                        let round = machine.seen_round();
                        machine.take_over(ctx, cfg, round, &[], out);
                    }
                });
            }
        }
        let free: Vec<usize> = (0..self.requests.len())
            .filter(|index| self.requests[*index].state == State::Free)
            .collect();
        if !free.is_empty() && self.dice(6) == 0 {
            let pick = self.dice(free.len() as u64) as usize;
            self.send_request(free[pick]);
        }
        if self.travelling.is_empty() {
            return;
        }
        let pick = self.dice(self.travelling.len() as u64) as usize;
        match self.travelling.swap_remove(pick) {
            Travelling::Message { from, to, message } => {
                self.trace.push(format!("{:>6} p{to} <- {from:?} {message:?}", self.now));
                self.on(to, |machine, ctx, out| machine.on_message(ctx, from, message, out));
            }
            Travelling::Order { owner, ticket, executor, exec } => {
                match self.on(executor, |machine, ctx, _| machine.exec_begin(ctx, &exec)) {
                    Ok(base) => self.travelling.push(Travelling::Running {
                        owner,
                        ticket,
                        executor,
                        exec,
                        base,
                    }),
                    Err(done) => {
                        let (p, outcome) = (exec.p, Outcome::from(done));
                        let list = Vec::new();
                        self.travelling.push(Travelling::Result {
                            owner,
                            ticket,
                            p,
                            outcome,
                            list,
                        });
                    }
                }
            }
            Travelling::Running { owner, ticket, executor, exec, base } => {
                let mut list = list_of(&base);
                let is_read =
                    self.requests.iter().any(|request| request.rid == exec.rid && request.is_read);
                let change = (!is_read).then(|| {
                    list.push(exec.rid.0[0]);
                    Some(Arc::from(list.as_slice()))
                });
                let stored = if exec.keyed {
                    Stored::Response(Arc::from(list.as_slice()))
                } else {
                    Stored::Applied
                };
                let done = self.on(executor, |machine, ctx, _| {
                    machine.exec_end(ctx, &exec, &base, change, stored)
                });
                let outcome = match self.dice(25) {
                    0 if self.faults && owner != executor => Outcome::Failed,
                    _ => Outcome::from(done),
                };
                let p = exec.p;
                self.travelling.push(Travelling::Result { owner, ticket, p, outcome, list });
            }
            Travelling::Result { owner, ticket, p, outcome, list } => {
                if let Some(index) = self.find(owner, ticket) {
                    self.requests[index].shown.insert((owner, ticket.0), list);
                }
                self.on(owner, |machine, ctx, out| machine.executed(ctx, ticket, p, outcome, out));
            }
        }
    }

    fn run(mut self) -> (usize, usize) {
        for n in 0..REQUESTS {
            let kind = self.dice(4);
            self.requests.push(Request {
                rid: RequestKey([n + 1; 16]),
                keyed: kind == 0 || kind == 1,
                is_read: kind == 2,
                before: Vec::new(),
                seen: u64::MAX,
                state: State::Free,
                shown: BTreeMap::new(),
            });
        }
        for _ in 0..2_500 {
            self.step();
        }
        self.faults = false;
        let mut steps = 0;
        while self.requests.iter().any(|r| matches!(r.state, State::Free | State::At { .. })) {
            self.step();
            steps += 1;
            if steps > 60_000 {
                let open: Vec<_> = self.requests.iter().map(|r| (r.rid, r.state)).collect();
                self.fail(&format!("no progress without faults: {open:?}"));
            }
        }
        // A last look: everything that was acknowledged is there, once.
        self.requests.push(Request {
            rid: RequestKey([200; 16]),
            keyed: false,
            is_read: true,
            before: Vec::new(),
            seen: u64::MAX,
            state: State::Free,
            shown: BTreeMap::new(),
        });
        let last = self.requests.len() - 1;
        let mut steps = 0;
        while self.requests[last].state != State::Answered {
            self.step();
            steps += 1;
            if steps > 60_000 {
                self.fail("the last read was never answered");
            }
        }
        for rid in self.acknowledged.clone() {
            if !self.longest.contains(&rid) {
                self.fail(&format!("{rid} was acknowledged and is lost: {:?}", self.longest));
            }
        }
        (self.acknowledged.len(), usize::from(self.lives) - PEERS)
    }
}

#[test]
fn no_acknowledged_change_is_lost_or_doubled_whatever_happens() {
    let asked = std::env::var("SEEDS").ok().and_then(|text| {
        let (first, count) = text.split_once('+')?;
        Some((first.parse().ok()?, count.parse().ok()?))
    });
    let (first, count): (u64, u64) = asked.unwrap_or((1, 400));
    let (mut acknowledged, mut crashes) = (0, 0);
    for seed in first..first + count {
        let (some, died) = World::new(seed).run();
        acknowledged += some;
        crashes += died;
    }
    println!("{count} runs, {acknowledged} changes acknowledged, {crashes} crashes");
    assert!(acknowledged > count as usize, "most changes are acknowledged");
    assert!(count < 100 || crashes > 0, "peers crashed");
}

#[test]
fn one_seed_gives_one_history() {
    assert_eq!(World::new(7).run(), World::new(7).run());
}
