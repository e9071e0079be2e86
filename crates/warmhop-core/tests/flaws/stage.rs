//! The stage: peers with real machines, messages in flight that arrive when they are told to, and
//! a narrator.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use warmhop_core::config::SessionPolicy;
use warmhop_core::ids::{Ballot, Incarnation, Now, Position, RequestKey, SessionId, WallTime};
use warmhop_core::session::census::Census;
use warmhop_core::session::claim::Claimant;
use warmhop_core::session::entry::Enter;
use warmhop_core::session::message::{
    Base, Body, BodyRef, Config, Exec, ExecDone, Members, Message, NackReason, Stored,
};
use warmhop_core::session::{
    Ctx, Effect, Effects, Failure, Otherwise, Outcome, Process, Session, Submit, Ticket, TokenHint,
};

/// More steps than any story needs: one that goes on for longer goes in circles.
const STEPS_MAX: usize = 2_000;
/// What the wall clocks show when a story begins, in milliseconds.
const DAWN: u64 = 1_000_000_000;

/// The session that a story begins with, and the one that a fork goes on as.
pub(crate) const FIRST: SessionId = SessionId([1; 16]);
pub(crate) const FORK: SessionId = SessionId([2; 16]);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Well,
    /// It neither hears nor does anything until it is resumed.
    Paused,
    /// It is gone, without a trace.
    Down,
}

struct Peer {
    inc: Incarnation,
    health: Health,
    process: Process,
    machines: BTreeMap<SessionId, Session>,
    /// How far its wall clock is ahead of the true one, in milliseconds.
    ahead: i64,
}

#[derive(Debug, Clone)]
enum What {
    Protocol(Message),
    Order { ticket: Ticket, exec: Exec },
    Result { ticket: Ticket, p: Option<Position>, outcome: Outcome, seen: Seen },
}

#[derive(Debug, Clone)]
struct Packet {
    sid: SessionId,
    from: Incarnation,
    to: Incarnation,
    what: What,
}

/// What the app saw when it ran, which is what it answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    list: String,
    /// The session's time was over: the app was given nothing.
    afresh: bool,
}

/// An execution that has begun.
struct Run {
    sid: SessionId,
    owner: Incarnation,
    executor: Incarnation,
    ticket: Ticket,
    exec: Exec,
    base: Arc<Body>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    keyed: bool,
    /// It asks, and changes nothing.
    read: bool,
    /// A safe method: it may run beside others.
    safe: bool,
    /// Its response is longer than what is stored of one.
    large: bool,
}

/// A request as its client sees it, over all its attempts.
struct Request {
    name: String,
    kind: Kind,
    /// What was acknowledged before it was first sent.
    before: Vec<String>,
    /// What the client's token named then.
    pinned: u64,
}

/// One attempt of a request at one peer.
struct Attempt {
    request: usize,
    sid: SessionId,
    at: Incarnation,
    executor: String,
    /// The position that its present execution was ordered at, and what that one answered.
    ordered: Option<Option<Position>>,
    response: Option<Seen>,
    end: End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Waiting,
    Answered(String),
    Failed(Failure),
    SentOn(Option<Incarnation>),
}

/// What clients know of one session.
#[derive(Default)]
struct History {
    acknowledged: Vec<String>,
    longest: Vec<String>,
    token: Option<TokenHint>,
}

pub(crate) struct Stage {
    title: String,
    lines: Vec<String>,
    pub(crate) policy: SessionPolicy,
    /// The session that the story is about at the moment.
    sid: SessionId,
    /// The true time since the story began, in milliseconds.
    now: u64,
    peers: BTreeMap<char, Peer>,
    flying: VecDeque<Packet>,
    held_back: Vec<Packet>,
    arrived: Vec<Packet>,
    cuts: Vec<(char, char)>,
    runs: Vec<Run>,
    /// How often each request ran to its end on each process.
    ran: BTreeMap<(Incarnation, String), u32>,
    requests: Vec<Request>,
    attempts: Vec<Attempt>,
    histories: BTreeMap<SessionId, History>,
    bodies: BTreeMap<(SessionId, Position), Arc<Body>>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        println!("{}", self.narrative());
    }
}

/// The setting.
impl Stage {
    /// A stage on which the peers named in `peers`, one letter each, are up.
    pub(crate) fn new(title: &str, peers: &str) -> Self {
        let policy = SessionPolicy::default();
        let peers = letters(peers).map(|letter| {
            let peer = Peer {
                inc: life(letter, 1),
                health: Health::Well,
                process: Process::default(),
                machines: BTreeMap::new(),
                ahead: 0,
            };
            (letter, peer)
        });
        Self {
            title: title.into(),
            lines: Vec::new(),
            policy,
            sid: FIRST,
            now: 0,
            peers: peers.collect(),
            flying: VecDeque::new(),
            held_back: Vec::new(),
            arrived: Vec::new(),
            cuts: Vec::new(),
            runs: Vec::new(),
            ran: BTreeMap::new(),
            requests: Vec::new(),
            attempts: Vec::new(),
            histories: BTreeMap::new(),
            bodies: BTreeMap::new(),
        }
    }

    /// The storyteller speaks.
    pub(crate) fn tell(&mut self, line: &str) {
        self.lines.push(format!("# {line}"));
    }

    pub(crate) fn narrative(&self) -> String {
        let mut text = format!("\n== {} ==\n", self.title);
        for line in &self.lines {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// From here on the story is about another session.
    pub(crate) fn about(&mut self, sid: SessionId) {
        self.sid = sid;
    }

    /// Draws the session at `owner`, with `members`.
    #[track_caller]
    pub(crate) fn draws(&mut self, owner: &str, members: &str) {
        let now = Members::first(self.wall(letter(owner)).0, self.incs(members));
        let cfg = Config { now, prev: None };
        self.say(format!("{owner} draws the session for {}", config(&cfg)));
        self.on(owner, |machine, ctx, out| machine.mint(ctx, cfg, out));
        self.histories.entry(self.sid).or_default();
    }

    /// The client's token of the moment.
    #[track_caller]
    pub(crate) fn token(&self) -> TokenHint {
        match self.histories.get(&self.sid).and_then(|it| it.token.clone()) {
            Some(token) => token,
            None => self.fail("the client has no token yet"),
        }
    }

    /// Whether the process runs at the moment.
    pub(crate) fn lives(&self, life: Incarnation) -> bool {
        self.peers.values().any(|peer| peer.inc == life && peer.health != Health::Down)
    }

    /// The process that runs on the peer at the moment.
    #[track_caller]
    pub(crate) fn inc(&self, name: &str) -> Incarnation {
        self.peer(name).inc
    }

    #[track_caller]
    fn incs(&self, names: &str) -> Vec<Incarnation> {
        let mut who: Vec<_> = letters(names).map(|it| self.inc(&it.to_string())).collect();
        who.sort_unstable();
        who
    }

    #[track_caller]
    fn peer(&self, name: &str) -> &Peer {
        match self.peers.get(&letter(name)) {
            Some(peer) => peer,
            None => self.fail(&format!("there is no peer {name}")),
        }
    }

    fn peer_mut(&mut self, name: &str) -> &mut Peer {
        self.peers.get_mut(&letter(name)).expect("the story names peers that it set up")
    }
}

/// What happens to peers.
impl Stage {
    /// The peer vanishes, and everything in its memory with it.
    pub(crate) fn crashes(&mut self, name: &str) {
        self.say(format!("{name} crashes"));
        self.peer_mut(name).health = Health::Down;
        let dead = self.inc(name);
        self.runs.retain(|run| run.executor != dead);
        for attempt in self.attempts.iter_mut().filter(|it| it.at == dead) {
            if attempt.end == End::Waiting {
                attempt.end = End::SentOn(None);
            }
        }
    }

    /// The peer lives again, as another process that remembers nothing.
    pub(crate) fn restarts(&mut self, name: &str) {
        let before = self.inc(name);
        let lives = before.0[1] + 1;
        self.lives_again(name, life(letter(name), lives));
    }

    /// The peer lives again, remembers nothing, and yet takes itself for the one that it was:
    /// what the rule of incarnations forbids.
    pub(crate) fn restarts_under_its_old_name(&mut self, name: &str) {
        let before = self.inc(name);
        self.lives_again(name, before);
    }

    fn lives_again(&mut self, name: &str, inc: Incarnation) {
        if self.peer(name).health != Health::Down {
            self.crashes(name);
        }
        self.say(format!("{name} starts again, as {}, and remembers nothing", life_name(inc)));
        let peer = self.peer_mut(name);
        peer.inc = inc;
        peer.health = Health::Well;
        peer.process = Process::default();
        peer.machines.clear();
    }

    /// The peer stands still; what is sent to it waits.
    pub(crate) fn pauses(&mut self, name: &str) {
        self.say(format!("{name} stands still"));
        self.peer_mut(name).health = Health::Paused;
    }

    pub(crate) fn resumes(&mut self, name: &str) {
        self.say(format!("{name} goes on where it stood"));
        self.peer_mut(name).health = Health::Well;
    }

    /// No message passes between the peers of one side and those of the other. What was sent
    /// before may still arrive, if the story says so.
    pub(crate) fn parts(&mut self, one: &str, other: &str) {
        self.say(format!("the network parts {one} from {other}"));
        for a in letters(one) {
            for b in letters(other) {
                self.cuts.extend([(a, b), (b, a)]);
            }
        }
    }

    pub(crate) fn heals(&mut self) {
        self.say("the network is whole again");
        self.cuts.clear();
    }

    /// The peer's wall clock is ahead of the others', or behind.
    pub(crate) fn clock_is_off(&mut self, name: &str, hours: i64) {
        let side = if hours < 0 { "behind" } else { "ahead" };
        self.say(format!("the clock of {name} is {} h {side}", hours.abs()));
        self.peer_mut(name).ahead = hours * 3_600_000;
    }

    /// Time passes for everyone; whoever stands does what its timers ask for.
    pub(crate) fn passes(&mut self, span: Duration) {
        self.say(format!("{} pass", spoken(span)));
        self.now += u64::try_from(span.as_millis()).expect("stories are short");
        self.wakes();
    }

    fn wakes(&mut self) {
        let names: Vec<char> = self.peers.keys().copied().collect();
        for name in names {
            let peer = &self.peers[&name];
            if peer.health != Health::Well {
                continue;
            }
            let (now, wall) = (Now(self.now), self.wall(name));
            let due = |machine: &Session| machine.next_wake(now, wall);
            let due = peer.machines.iter().filter(|(_, it)| {
                due(it).is_some_and(|at| {
                    // What is to be forgotten is looked at again a little later, however late it is.
                    at.since(now) <= Duration::from_millis(1)
                })
            });
            let due: Vec<SessionId> = due.map(|(sid, _)| *sid).collect();
            for sid in due {
                let held = self.peers[&name].machines[&sid].holds_copy();
                self.on_session(name, sid, |machine, ctx, out| machine.on_timer(ctx, out));
                let holds = self.peers[&name].machines.get(&sid).is_some_and(Session::holds_copy);
                if held && !holds {
                    self.say(format!("{name} forgets the session: its time is over there"));
                }
            }
        }
    }

    fn wall(&self, name: char) -> WallTime {
        let ahead = self.peers.get(&name).map_or(0, |peer| peer.ahead);
        WallTime((DAWN + self.now).saturating_add_signed(ahead))
    }
}

/// What peers believe of the mesh. Before they are told they know nobody.
impl Stage {
    /// The peer knows the processes that run on `others` at the moment, and does not hear `silent` of
    /// them. Its own process is no young one.
    #[track_caller]
    pub(crate) fn knows(&mut self, name: &str, others: &str, silent: &str) {
        let census =
            Census { others: self.incs(others), silent: self.incs(silent), ..Census::default() };
        self.say(format!("{name} knows {others}, and does not hear {silent:?}"));
        self.peer_mut(name).process.census = Arc::new(census);
    }

    /// Its process, and those of `others` as far as it knows, began a moment ago.
    #[track_caller]
    pub(crate) fn is_young(&mut self, name: &str, others: &str) {
        self.say(format!("{name} is young, and so are {others:?} as far as it knows"));
        let young = self.incs(others);
        let census = Arc::make_mut(&mut self.peer_mut(name).process.census);
        (census.is_young, census.young) = (true, young);
    }
}

/// What peers are made to do.
impl Stage {
    /// The peer takes the session over, with the client's token of the moment. Where that leads
    /// nowhere, it asks everyone.
    #[track_caller]
    pub(crate) fn takes_over(&mut self, name: &str) {
        let token = self.token();
        let everyone: Vec<String> = self.peers.keys().map(char::to_string).collect();
        self.takes_over_with(name, &token, &everyone.join(" "));
    }

    /// The peer takes the session over with a token; where that leads nowhere, it may ask `ask`.
    #[track_caller]
    pub(crate) fn takes_over_with(&mut self, name: &str, token: &TokenHint, ask: &str) {
        let peers = self.incs(ask);
        let cfg = token.cfg.clone();
        self.say(format!("{name} takes the session over, by a token of {}", config(&cfg)));
        self.on(name, |machine, ctx, out| {
            let round = machine.seen_round();
            machine.take_over(ctx, Some(cfg), round, &peers, out);
        });
    }

    /// The peer takes over a session that it knows by its name alone; it may ask `ask`.
    #[track_caller]
    pub(crate) fn takes_over_without_a_token(&mut self, name: &str, ask: &str) {
        let peers = self.incs(ask);
        self.say(format!("{name} takes the session over, without a token"));
        self.on(name, |machine, ctx, out| {
            let round = machine.seen_round();
            machine.take_over(ctx, None, round, &peers, out);
        });
    }

    /// The owner puts `newcomer` in the place of `gone`.
    #[track_caller]
    pub(crate) fn replaces(&mut self, owner: &str, gone: Incarnation, newcomer: &str) {
        let came = self.inc(newcomer);
        let (gone_name, came_name) = (life_name(gone), life_name(came));
        self.say(format!("{owner} puts {came_name} in the place of {gone_name}"));
        let begun = self.on(owner, |machine, ctx, out| {
            machine.change_members(ctx, Some(gone), Some(came), out)
        });
        if !begun {
            self.fail(&format!("{owner} could not change the members"));
        }
    }

    /// The owner looks after the members that lack the newest record.
    #[track_caller]
    pub(crate) fn reminds(&mut self, owner: &str) {
        self.say(format!("{owner} looks after those that lack the newest record"));
        self.on(owner, |machine, ctx, out| machine.remind(ctx, out));
    }

    /// The owner of an idle session shows that it is, or hears that it is no longer.
    #[track_caller]
    pub(crate) fn reassures(&mut self, owner: &str) {
        self.say(format!("{owner} reassures the members that it owns the session"));
        self.on(owner, |machine, ctx, out| machine.reassure(ctx, out));
    }

    /// The peer asks whoever claims the session whether it owns it.
    #[track_caller]
    pub(crate) fn asks_claimant(&mut self, name: &str) {
        self.say(format!("{name} asks whoever claims the session"));
        self.on(name, |machine, ctx, out| machine.ask_claimant(ctx.now, out));
    }

    /// What the peer was told of the claim.
    #[track_caller]
    pub(crate) fn claimant(&self, name: &str) -> Claimant {
        self.machine(name).map_or(Claimant::Unasked, Session::claimant)
    }

    /// The owner invites `heir` to take the session over.
    #[track_caller]
    pub(crate) fn hands_over(&mut self, owner: &str, heir: &str) {
        self.say(format!("{owner} hands the session over to {heir}"));
        let to = self.inc(heir);
        self.on(owner, |machine, ctx, out| machine.hand_over(ctx, to, out));
    }

    /// The peer is made to forget the session, although its time is not over.
    #[track_caller]
    pub(crate) fn forgets(&mut self, name: &str) {
        self.say(format!("{name} is made to forget the session"));
        self.on(name, |machine, ctx, _| machine.forget(ctx));
    }

    /// The peer withdraws its vote and goes on alone under another session.
    #[track_caller]
    pub(crate) fn forks(&mut self, name: &str) {
        self.say(format!("{name} fences its copy and goes on alone, under another session"));
        let record = self.on(name, |machine, ctx, out| machine.fence(ctx, FORK, out));
        let Some(record) = record else {
            self.fail(&format!("{name} held nothing to go on with"));
        };
        let before = self.histories.get(&self.sid).map(|it| it.acknowledged.clone());
        let list: Vec<String> = words(&list_of(&record.body));
        self.about(FORK);
        let history = History {
            // A fork may go without what was acknowledged where the others are: that is said.
            acknowledged: before
                .unwrap_or_default()
                .into_iter()
                .filter(|it| has(&list, it))
                .collect(),
            longest: list,
            token: None,
        };
        self.histories.insert(FORK, history);
        let now = Members::first(self.wall(letter(name)).0, self.incs(name));
        let cfg = Config { now, prev: None };
        self.on(name, |machine, ctx, out| machine.mint_from(ctx, cfg, &record, out));
    }

    /// The owner learns that an execution failed, or gives it up.
    #[track_caller]
    pub(crate) fn gives_up(&mut self, owner: &str, request: &str) {
        self.say(format!("{owner} gives the execution of {request} up"));
        let (at, ticket) = self.attempt(request);
        let Some(p) = self.attempts[at].ordered else {
            self.fail(&format!("{request} was not ordered"));
        };
        self.on(owner, |machine, ctx, out| {
            machine.executed(ctx, ticket, p, Outcome::Failed, out);
        });
    }
}

/// What clients do, and what they are told.
impl Stage {
    /// A client sends a request to `entry`, to be run by the app on `executor` if its turn comes:
    /// `change tea`, `keyed tea`, `keyed large tea`, `read list` or, by a method that is not safe,
    /// `look list`. A name that was used before is the same request, sent again.
    #[track_caller]
    pub(crate) fn asks(&mut self, entry: &str, request: &str, executor: &str) {
        let submit = self.prepares(entry, request, executor);
        self.on(entry, |machine, ctx, out| machine.submit(ctx, submit, out));
    }

    /// Writes an attempt of the request down.
    fn prepares(&mut self, entry: &str, request: &str, executor: &str) -> Submit {
        let (kind, name) = parse(request);
        let known = self.requests.iter().position(|it| it.name == name);
        let again = if known.is_some() { " again" } else { "" };
        self.say(format!("a client asks {entry} for {request}{again}"));
        let history = self.histories.entry(self.sid).or_default();
        let index = known.unwrap_or_else(|| {
            self.requests.push(Request {
                name: name.into(),
                kind,
                before: history.acknowledged.clone(),
                pinned: history.token.as_ref().map_or(0, |token| token.n),
            });
            self.requests.len() - 1
        });
        let pinned = self.requests[index].pinned;
        self.attempts.push(Attempt {
            request: index,
            sid: self.sid,
            at: self.inc(entry),
            executor: executor.into(),
            ordered: None,
            response: None,
            end: End::Waiting,
        });
        Submit {
            ticket: Ticket(self.attempts.len() as u64),
            rid: RequestKey([index as u8 + 1; 16]),
            fingerprint: index as u64,
            keyed: kind.keyed,
            seen: Some(pinned),
            safe: kind.safe,
        }
    }

    /// As [`Stage::asks`], for a session that a key names, and that `entry` knows of no owner of: it is
    /// begun at `members` where nobody knows of it, and runs at `entry`.
    #[track_caller]
    pub(crate) fn asks_by_key(&mut self, entry: &str, request: &str, members: &str) {
        let who = self.incs(members);
        let now = Members::first(self.wall(letter(entry)).0, who);
        let cfg = Config { now, prev: None };
        self.say(format!("{entry} would begin the session in {}", config(&cfg)));
        let submit = self.prepares(entry, request, entry);
        let peers = self.peer(entry).process.census.others.clone();
        let enter = Enter::Seeking { peers, otherwise: Otherwise::Begin(cfg) };
        self.on(entry, |machine, ctx, out| machine.enter(ctx, submit, enter, out));
    }

    /// The last attempt of a request.
    #[track_caller]
    fn attempt(&self, name: &str) -> (usize, Ticket) {
        let named = |it: &Attempt| self.requests[it.request].name == name;
        match self.attempts.iter().rposition(named) {
            Some(at) => (at, Ticket(at as u64 + 1)),
            None => self.fail(&format!("nobody asked for {name}")),
        }
    }

    #[track_caller]
    fn ended(&mut self, name: &str, expected: &End) {
        let (at, _) = self.attempt(name);
        let end = self.attempts[at].end.clone();
        if end != *expected {
            self.fail(&format!("{name} should stand at {expected:?}, but stands at {end:?}"));
        }
    }

    /// The request was answered so.
    #[track_caller]
    pub(crate) fn answered(&mut self, name: &str, answer: &str) {
        self.ended(name, &End::Answered(answer.into()));
    }

    /// Its client waits still.
    #[track_caller]
    pub(crate) fn waits(&mut self, name: &str) {
        self.ended(name, &End::Waiting);
        self.say(format!("the client of {name} waits"));
    }

    /// Its client was told so.
    #[track_caller]
    pub(crate) fn failed(&mut self, name: &str, failure: Failure) {
        self.ended(name, &End::Failed(failure));
    }

    /// Its client was told that the peer owns the session, and can tell what came of it.
    #[track_caller]
    pub(crate) fn deposed(&mut self, name: &str, by: &str) {
        let (at, _) = self.attempt(name);
        let owner = self.inc(by);
        match self.attempts[at].end.clone() {
            End::Failed(Failure::Deposed { to: Some(claim), .. }) if claim.proposer == owner => {}
            end => self.fail(&format!("{name} should be deposed by {by}, but stands at {end:?}")),
        }
    }

    /// It was sent on to the peer.
    #[track_caller]
    pub(crate) fn sent_on(&mut self, name: &str, to: Option<&str>) {
        let to = to.map(|to| self.inc(to));
        self.ended(name, &End::SentOn(to));
    }

    #[track_caller]
    pub(crate) fn serves(&mut self, name: &str) {
        if !self.machine(name).is_some_and(Session::is_owner) {
            self.fail(&format!("{name} should serve the session"));
        }
    }

    #[track_caller]
    pub(crate) fn does_not_serve(&mut self, name: &str) {
        if self.machine(name).is_some_and(Session::is_owner) {
            self.fail(&format!("{name} should not serve the session"));
        }
    }

    /// The machine that the peer has for the session, if any.
    #[track_caller]
    pub(crate) fn machine(&self, name: &str) -> Option<&Session> {
        self.peer(name).machines.get(&self.sid)
    }

    /// The number of the newest record that the peer holds.
    #[track_caller]
    pub(crate) fn holds(&self, name: &str, n: u64) {
        let held = self.machine(name).map_or(0, Session::version);
        if held != n {
            self.fail(&format!("{name} should hold record {n}, but holds {held}"));
        }
    }

    /// So many executions of the request are under way.
    #[track_caller]
    pub(crate) fn runs(&self, name: &str, count: usize) {
        let runs = self.runs.iter().filter(|run| self.name_of(run.ticket) == name).count();
        if runs != count {
            self.fail(&format!("{name} should be running {count} times, but is {runs} times"));
        }
    }
}

/// What happens to messages. One is named by its kind, its way and words that its line contains:
/// `Nack B>A Higher`.
impl Stage {
    /// The oldest such message arrives.
    #[track_caller]
    pub(crate) fn arrives(&mut self, pattern: &str) {
        let packet = if let Some(at) = self.flying.iter().position(|it| self.fits(it, pattern)) {
            self.flying.remove(at)
        } else {
            let at = self.held_back.iter().position(|it| self.fits(it, pattern));
            at.map(|at| self.held_back.remove(at))
        };
        let Some(packet) = packet else {
            self.fail(&format!("no such message is on its way: {pattern}"));
        };
        self.deliver("arrives", packet);
    }

    /// The last such message that arrived arrives once more.
    #[track_caller]
    pub(crate) fn arrives_again(&mut self, pattern: &str) {
        let Some(at) = self.arrived.iter().rposition(|it| self.fits(it, pattern)) else {
            self.fail(&format!("no such message arrived: {pattern}"));
        };
        self.deliver("arrives again", self.arrived[at].clone());
    }

    /// Such messages never arrive.
    #[track_caller]
    pub(crate) fn loses(&mut self, pattern: &str) {
        for packet in self.take(pattern) {
            self.say(format!("never arrives: {}", self.words_of(&packet)));
        }
    }

    /// Such messages are late: they arrive once the story says so.
    #[track_caller]
    pub(crate) fn holds_back(&mut self, pattern: &str) {
        for packet in self.take(pattern) {
            self.say(format!("is late: {}", self.words_of(&packet)));
            self.held_back.push(packet);
        }
    }

    #[track_caller]
    fn take(&mut self, pattern: &str) -> Vec<Packet> {
        let (taken, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.flying).into_iter().partition(|it| self.fits(it, pattern));
        self.flying = left.into();
        if taken.is_empty() {
            self.fail(&format!("no such message is on its way: {pattern}"));
        }
        taken
    }

    /// Such a message is on its way.
    #[track_caller]
    pub(crate) fn is_sent(&self, pattern: &str) {
        if !self.flying.iter().any(|it| self.fits(it, pattern)) {
            self.fail(&format!("this should be on its way: {pattern}"));
        }
    }

    /// No such message is on its way.
    #[track_caller]
    pub(crate) fn is_not_sent(&self, pattern: &str) {
        if self.flying.iter().any(|it| self.fits(it, pattern)) {
            self.fail(&format!("this should not be on its way: {pattern}"));
        }
    }

    /// An execution ends: `tea`, or `tea at B`.
    #[track_caller]
    pub(crate) fn ends(&mut self, what: &str) {
        let (name, executor) = what.split_once(" at ").unwrap_or((what, ""));
        let found = self.runs.iter().position(|run| {
            self.name_of(run.ticket) == name
                && (executor.is_empty() || life_name(run.executor) == executor)
        });
        let Some(at) = found else { self.fail(&format!("it does not run: {what}")) };
        self.end(at);
    }

    /// Everything that can arrive does, in the order in which it was sent, and whatever runs ends.
    #[track_caller]
    pub(crate) fn settles(&mut self) {
        for _ in 0..STEPS_MAX {
            let up = |inc: Incarnation| {
                self.peers.get(&(inc.0[0] as char)).map(|peer| peer.health) == Some(Health::Well)
            };
            let may_arrive = |it: &Packet| {
                let paused = self.peers[&(it.to.0[0] as char)].health == Health::Paused;
                !paused && !self.is_cut(it.from, it.to)
            };
            if let Some(at) = self.flying.iter().position(may_arrive)
                && let Some(packet) = self.flying.remove(at)
            {
                self.deliver("arrives", packet);
            } else if let Some(at) = self.runs.iter().position(|run| up(run.executor)) {
                self.end(at);
            } else {
                return;
            }
        }
        self.fail("the story goes in circles");
    }
}

/// The machinery behind the curtain.
impl Stage {
    fn say(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    #[track_caller]
    pub(crate) fn fail(&self, what: &str) -> ! {
        panic!("{what}, as the narrative of \"{}\" shows", self.title);
    }

    #[track_caller]
    fn on<R>(
        &mut self,
        name: &str,
        work: impl FnOnce(&mut Session, &mut Ctx<'_>, &mut Effects) -> R,
    ) -> R {
        self.on_session(letter(name), self.sid, work)
    }

    #[track_caller]
    fn on_session<R>(
        &mut self,
        name: char,
        sid: SessionId,
        work: impl FnOnce(&mut Session, &mut Ctx<'_>, &mut Effects) -> R,
    ) -> R {
        let wall = self.wall(name);
        let Some(peer) = self.peers.get_mut(&name) else {
            panic!("there is no peer {name}");
        };
        assert!(peer.health == Health::Well, "{name} cannot do anything now");
        let mut out = Effects::new();
        let mut ctx = Ctx {
            me: peer.inc,
            now: Now(self.now),
            wall,
            policy: &self.policy,
            process: &mut peer.process,
            dice: 0,
        };
        let fresh = || Session::new(sid, ctx.process);
        let machine = peer.machines.entry(sid).or_insert_with(fresh);
        let watermark = ctx.process.watermark;
        let (promised, version) = (machine.promised(), machine.holds_copy());
        let result = work(machine, &mut ctx, &mut out);
        let forgot = peer.process.watermark > watermark || version && !machine.holds_copy();
        let fell = machine.promised() < promised && !forgot;
        if machine.forgotten() {
            peer.machines.remove(&sid);
        }
        if fell {
            self.fail(&format!("I2: what {name} promised fell"));
        }
        let me = self.peers[&name].inc;
        for effect in out {
            self.carry_out(me, sid, effect);
        }
        result
    }

    fn carry_out(&mut self, me: Incarnation, sid: SessionId, effect: Effect) {
        let name = life_name(me);
        match effect {
            Effect::Send { to, message } => {
                if let Message::Accept { p, body: BodyRef::Full(body), .. } = &message {
                    self.note_body(sid, *p, body);
                }
                self.send(Packet { sid, from: me, to, what: What::Protocol(message) });
            }
            Effect::Turn { ticket } => {
                let executor = self.inc(&self.attempts[ticket.0 as usize - 1].executor);
                self.on_session(me.0[0] as char, sid, |machine, ctx, out| {
                    machine.begin(ctx, ticket, executor, out);
                });
            }
            Effect::Execute { ticket, executor, exec } => {
                self.attempts[ticket.0 as usize - 1].ordered = Some(exec.p);
                let packet =
                    Packet { sid, from: me, to: executor, what: What::Order { ticket, exec } };
                if executor == me {
                    self.deliver("orders itself:", packet);
                } else {
                    self.send(packet);
                }
            }
            Effect::Release { ticket, hint } => {
                let Some(seen) = self.attempts[ticket.0 as usize - 1].response.clone() else {
                    self.fail("a response was released that no app gave");
                };
                self.answer(me, ticket, &seen.list, seen.afresh, Some(hint));
            }
            Effect::Replay { ticket, stored, hint } => {
                let answer = match stored {
                    Stored::Response(bytes) => {
                        let text = String::from_utf8_lossy(&bytes).into_owned();
                        format!("again: {}", text.trim_end_matches('.'))
                    }
                    Stored::TooLarge => "applied, too large to repeat".into(),
                    Stored::Applied => "applied before".into(),
                    Stored::Unknown | Stored::Begun(_) => "outcome unknown".into(),
                };
                self.answer(me, ticket, &answer, false, Some(hint));
            }
            Effect::Fail { ticket, failure } => {
                let request = self.name_of(ticket);
                self.say(format!("  {name} tells the client of {request}: {}", reason(failure)));
                self.attempts[ticket.0 as usize - 1].end = End::Failed(failure);
            }
            Effect::Redirect { ticket, to } => {
                let request = self.name_of(ticket);
                let to = to.map(|claim| claim.proposer);
                let whom = to.map_or("whoever takes it over".into(), life_name);
                self.say(format!("  {name} sends {request} on to {whom}"));
                self.attempts[ticket.0 as usize - 1].end = End::SentOn(to);
            }
            Effect::Again { ticket } => {
                let request = self.name_of(ticket);
                self.say(format!("  {name} drops the response of {request}, which runs again"));
            }
            Effect::Invited { cfg } => {
                self.say(format!("  {name} is invited to take the session over"));
                let from = self.arrived.last().map_or(me, |packet| packet.from);
                self.on_session(me.0[0] as char, sid, |machine, ctx, out| {
                    machine.on_invite(ctx, from, cfg.into(), &[], out);
                });
            }
            Effect::Owned { ballot: b } => {
                self.say(format!("  {name} owns the session and serves it, at {}", ballot(b)));
            }
            Effect::Opened { cfg } => {
                self.say(format!("  {name} knows the change of members done: {}", config(&cfg)));
            }
            Effect::Deposed { by } => {
                self.say(format!("  {name} owns the session no longer: {} does", ballot(by)));
            }
            Effect::GaveUp => {
                self.say(format!("  {name} gives up: it finds no majority"));
            }
            Effect::Lost => {
                self.say(format!("  {name} says that the session is lost"));
            }
            Effect::Located { .. } | Effect::Lagging | Effect::FewCopies | Effect::Claimed => {}
        }
    }

    fn note_body(&mut self, sid: SessionId, p: Position, body: &Arc<Body>) {
        let known = self.bodies.entry((sid, p)).or_insert_with(|| body.clone());
        if known != body {
            let both = format!("[{}] and [{}]", list_of(known), list_of(body));
            self.fail(&format!("I1: {} names two bodies, {both}", position(p)));
        }
    }

    fn send(&mut self, packet: Packet) {
        let words = self.words_of(&packet);
        if self.is_cut(packet.from, packet.to) {
            self.say(format!("  in vain: {words}"));
            return;
        }
        self.say(format!("  {words}"));
        self.flying.push_back(packet);
    }

    fn is_cut(&self, from: Incarnation, to: Incarnation) -> bool {
        self.cuts.contains(&(from.0[0] as char, to.0[0] as char))
    }

    fn deliver(&mut self, how: &str, packet: Packet) {
        self.say(format!("{how} {}", self.words_of(&packet)));
        self.arrived.push(packet.clone());
        let Packet { sid, from, to, what } = packet;
        let name = to.0[0] as char;
        let peer = &self.peers[&name];
        match peer.health {
            Health::Well => {}
            Health::Paused => panic!("{name} stands still and hears nothing"),
            Health::Down => {
                self.say("  nobody is there");
                return;
            }
        }
        if peer.inc != to {
            self.answer_for_the_dead(sid, from, to, what);
            return;
        }
        match what {
            What::Protocol(message) => {
                self.on_session(name, sid, |machine, ctx, out| {
                    machine.on_message(ctx, from, message, out);
                });
            }
            What::Order { ticket, exec } => {
                let begun =
                    self.on_session(name, sid, |machine, ctx, _| machine.exec_begin(ctx, &exec));
                match begun {
                    Ok(base) => {
                        let held = list_of(&base);
                        let request = self.name_of(ticket);
                        self.say(format!("  {} runs {request} on [{held}]", life_name(to)));
                        self.runs.push(Run { sid, owner: from, executor: to, ticket, exec, base });
                    }
                    Err(done) => self.report(sid, to, from, ticket, exec.p, done, Seen::default()),
                }
            }
            What::Result { ticket, p, outcome, seen } => {
                let attempt = &mut self.attempts[ticket.0 as usize - 1];
                if attempt.ordered == Some(p) {
                    attempt.response = Some(seen);
                }
                self.on_session(name, sid, |machine, ctx, out| {
                    machine.executed(ctx, ticket, p, outcome, out);
                });
            }
        }
    }

    /// The peer lives as another, which says so to those that ask for the one that it was.
    fn answer_for_the_dead(
        &mut self,
        sid: SessionId,
        from: Incarnation,
        to: Incarnation,
        what: What,
    ) {
        let reason = NackReason::Dead;
        match what {
            What::Protocol(
                Message::Prepare { .. }
                | Message::Accept { .. }
                | Message::Locate { .. }
                | Message::Begin { .. },
            ) => {
                let message = Message::Nack { reason, promised: None, cfg: None, watermark: 0 };
                self.send(Packet { sid, from: to, to: from, what: What::Protocol(message) });
            }
            What::Order { ticket, exec } => {
                let done = ExecDone::Refused { reason, promised: None, watermark: 0 };
                self.report(sid, to, from, ticket, exec.p, done, Seen::default());
            }
            What::Protocol(_) | What::Result { .. } => {
                self.say(format!("  {} is gone and hears it not", life_name(to)));
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "an execution's end, as it travels")]
    fn report(
        &mut self,
        sid: SessionId,
        executor: Incarnation,
        owner: Incarnation,
        ticket: Ticket,
        p: Option<Position>,
        done: ExecDone,
        seen: Seen,
    ) {
        if let (Some(p), ExecDone::Changed { body, voted: true }) = (p, &done) {
            self.note_body(sid, p, body);
        }
        let outcome = Outcome::from(done);
        let what = What::Result { ticket, p, outcome, seen };
        let packet = Packet { sid, from: executor, to: owner, what };
        if executor == owner {
            self.deliver("answers itself:", packet);
        } else {
            self.send(packet);
        }
    }

    fn end(&mut self, at: usize) {
        let Run { sid, owner, executor, ticket, exec, base } = self.runs.remove(at);
        let name = executor.0[0] as char;
        let request = &self.requests[self.attempts[ticket.0 as usize - 1].request];
        let Kind { read, large, .. } = request.kind;
        // Each run has a result of its own, as if the app asked for the time.
        let ran = self.ran.entry((executor, request.name.clone())).or_default();
        *ran += 1;
        let nth = if *ran > 1 { format!("#{ran}") } else { String::new() };
        let item = format!("{}/{name}{nth}", request.name);
        let afresh = base.expiry.0 != 0 && base.expiry < self.wall(name);
        let mut list = if afresh { String::new() } else { list_of(&base) };
        if !read {
            list = format!("{list} {item}").trim_start().into();
        }
        let end = if afresh { ", the session's time being over" } else { "" };
        self.say(format!(
            "{} has run {}: [{list}]{end}",
            life_name(executor),
            self.name_of(ticket)
        ));
        let change = (!read).then(|| Some(Arc::from(list.as_bytes())));
        let tail = if large { ".".repeat(200) } else { String::new() };
        let stored = match exec.keyed {
            true => Stored::Response(Arc::from(format!("{list}{tail}").as_bytes())),
            false => Stored::Applied,
        };
        let done = self.on_session(name, sid, |machine, ctx, _| {
            machine.exec_end(ctx, &exec, &base, change, stored)
        });
        self.report(sid, executor, owner, ticket, exec.p, done, Seen { list, afresh });
    }

    /// A client gets its answer, and the stage judges it.
    fn answer(
        &mut self,
        me: Incarnation,
        ticket: Ticket,
        answer: &str,
        afresh: bool,
        token: Option<TokenHint>,
    ) {
        let name = life_name(me);
        let request = self.name_of(ticket);
        self.say(format!("  {name} answers the client of {request}: [{answer}]"));
        let attempt = &mut self.attempts[ticket.0 as usize - 1];
        attempt.end = End::Answered(answer.into());
        let is_replay = attempt.response.is_none();
        let request = &self.requests[attempt.request];
        let now = WallTime(DAWN + self.now);
        let history = self.histories.entry(attempt.sid).or_default();
        let mut wrong = None;
        if afresh {
            if history.token.as_ref().is_some_and(|token| now <= token.expiry) {
                wrong = Some("a session began afresh before its time was over".to_owned());
            }
            history.acknowledged.clear();
            history.longest.clear();
        }
        if !is_replay {
            let list = words(answer);
            let name_of = |item: &String| item.split('/').next().unwrap_or_default().to_owned();
            let mut names: Vec<String> = list.iter().map(name_of).collect();
            for lost in request.before.iter().filter(|it| !afresh && !has(&list, it)) {
                wrong = Some(format!("I8: {lost} was acknowledged before, and is lost"));
            }
            let both = list.len().min(history.longest.len());
            if list[..both] != history.longest[..both] {
                wrong = Some(format!("I4: two histories, [{}]", history.longest.join(" ")));
            }
            if list.len() > history.longest.len() {
                history.longest = list;
            }
            names.sort_unstable();
            if names.windows(2).any(|pair| pair[0] == pair[1]) {
                wrong = Some("I6: a request was applied twice".into());
            }
        }
        if !request.kind.read && !history.acknowledged.contains(&request.name) {
            history.acknowledged.push(request.name.clone());
        }
        history.token = token.or(history.token.take());
        if let Some(wrong) = wrong {
            self.fail(&wrong);
        }
    }

    fn name_of(&self, ticket: Ticket) -> String {
        self.requests[self.attempts[ticket.0 as usize - 1].request].name.clone()
    }

    fn fits(&self, packet: &Packet, pattern: &str) -> bool {
        let line = self.words_of(packet);
        let mut asked = pattern.split(' ');
        let mut told = line.split(' ');
        asked.by_ref().take(2).eq(told.by_ref().take(2)) && {
            let rest = told.collect::<Vec<_>>().join(" ");
            asked.all(|word| rest.contains(word))
        }
    }

    /// A message in one line: its kind, its way, what it says.
    fn words_of(&self, packet: &Packet) -> String {
        let way = format!("{}>{}", life_name(packet.from), life_name(packet.to));
        let (kind, text) = match &packet.what {
            What::Protocol(message) => spoken_message(message),
            What::Order { ticket, exec } => {
                let base = match &exec.base {
                    Base::Held(p) => format!("what it holds at {}", position(*p)),
                    Base::Inline(None) => "nothing".into(),
                    Base::Inline(Some(record)) => {
                        format!("{} [{}]", position(record.p), list_of(&record.body))
                    }
                };
                let vote = if exec.vote { ", with its vote" } else { "" };
                let name = self.name_of(*ticket);
                let p = exec.p.map_or(String::new(), |p| format!(" as {}", position(p)));
                ("Exec", format!("{name}{p} on {base}{vote}"))
            }
            What::Result { ticket, p, outcome, .. } => {
                let name = self.name_of(*ticket);
                let p = p.map_or(String::new(), |p| format!(" as {}", position(p)));
                ("ExecDone", format!("{name}{p}: {}", spoken_outcome(outcome)))
            }
        };
        format!("{kind} {way} {text}").trim_end().to_owned()
    }
}

fn spoken_outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Changed { body, voted } => {
            let vote = if *voted { "voted for" } else { "no vote" };
            format!("changed to [{}], {vote}", list_of(body))
        }
        Outcome::Unchanged { confirmed: true } => "unchanged, confirmed".into(),
        Outcome::Unchanged { confirmed: false } => "unchanged".into(),
        Outcome::NeedBase => "NeedBase".into(),
        Outcome::Refused { reason, promised, .. } => {
            let by = promised.map_or(String::new(), |b| format!(", having promised {}", ballot(b)));
            format!("refused, {}{by}", nack_reason(*reason))
        }
        Outcome::Failed => "failed".into(),
    }
}

fn spoken_message(message: &Message) -> (&'static str, String) {
    match message {
        Message::Prepare { b, cfg, nonce, .. } => {
            ("Prepare", format!("{} in {} #{nonce}", ballot(*b), config(cfg)))
        }
        Message::Promise { b, nonce, accepted, .. } => {
            let held = match accepted {
                None => "holding nothing".into(),
                Some(info) => {
                    let body = info.body.as_ref();
                    let body = body.map_or(String::new(), |it| format!(" [{}]", list_of(it)));
                    format!("holding {}{body} in {}", position(info.p), config(&info.cfg))
                }
            };
            ("Promise", format!("{} #{nonce}, {held}", ballot(*b)))
        }
        Message::Accept { p, cfg, body } => {
            let body = match body {
                BodyRef::Full(body) => format!("[{}]", list_of(body)),
                BodyRef::Same(at) => format!("same as {}", position(*at)),
            };
            ("Accept", format!("{} {body} in {}", position(*p), config(cfg)))
        }
        Message::Accepted { p } => ("Accepted", position(*p)),
        Message::NeedFull { p } => ("NeedFull", position(*p)),
        Message::Nack { reason, promised, .. } => {
            let by = promised.map_or(String::new(), |b| format!(", having promised {}", ballot(b)));
            ("Nack", format!("{}{by}", nack_reason(*reason)))
        }
        Message::Locate { .. } => ("Locate", String::new()),
        Message::Begin { b, cfg, .. } => ("Begin", format!("{} in {}", ballot(*b), config(cfg))),
        Message::Free { b, births, .. } => {
            let before = births.iter().map(|birth| config(&birth.cfg)).collect::<Vec<_>>();
            ("Free", format!("{}, begun before: {}", ballot(*b), before.join(" ")))
        }
        Message::Located { p, cfg, .. } => {
            let held = p.map_or("nothing".into(), position);
            let cfg = cfg.as_ref().map_or(String::new(), |cfg| format!(" in {}", config(cfg)));
            ("Located", format!("{held}{cfg}"))
        }
        Message::Invite { cfg } => ("Invite", config(cfg)),
        Message::Retire { stamp } => ("Retire", format!("up to stamp {stamp}")),
        Message::Delta | Message::Lease => ("Reserved", String::new()),
    }
}

fn nack_reason(reason: NackReason) -> &'static str {
    match reason {
        NackReason::Higher => "Higher",
        NackReason::Forgotten => "Forgotten",
        NackReason::Fenced(_) => "Fenced",
        NackReason::Full => "Full",
        NackReason::Dead => "Dead",
    }
}

fn reason(failure: Failure) -> String {
    match failure {
        Failure::Deposed { to: Some(claim), .. } => {
            let owner = life_name(claim.proposer);
            format!("outcome unknown, {owner} owns the session and can tell")
        }
        Failure::WentOn { by, .. } => format!("it went on as another session at {}", life_name(by)),
        Failure::NoMajority { ran: true } => "no majority answered, it may be applied yet".into(),
        Failure::NoMajority { ran: false } => "no majority answered, it did not run".into(),
        Failure::Lost { .. } => "the session is lost".into(),
        Failure::BelowFloor => "it may have been applied and its answer forgotten".into(),
        Failure::KeyInUse => "the same request is under way".into(),
        Failure::ExecutionFailed => "its execution failed".into(),
        other => format!("{other:?}"),
    }
}

fn parse(request: &str) -> (Kind, &str) {
    let mut kind = Kind { keyed: false, read: false, safe: false, large: false };
    let (words, name) = request.rsplit_once(' ').expect("a request says what it is");
    for word in words.split(' ') {
        match word {
            "change" => {}
            "keyed" => kind.keyed = true,
            "large" => kind.large = true,
            "look" => kind.read = true,
            "read" => (kind.read, kind.safe) = (true, true),
            _ => panic!("a request is no {word}"),
        }
    }
    (kind, name)
}

fn letters(names: &str) -> impl Iterator<Item = char> {
    names.split(' ').filter(|name| !name.is_empty()).map(letter)
}

fn letter(name: &str) -> char {
    name.chars().next().expect("a peer has a name")
}

fn life(letter: char, nth: u8) -> Incarnation {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&[letter as u8, nth]);
    // As `Incarnation::of` has it: its peer, and when it began.
    (bytes[4], bytes[15]) = (letter as u8, nth);
    Incarnation(bytes)
}

fn life_name(inc: Incarnation) -> String {
    let letter = inc.0[0] as char;
    match inc.0[1] {
        1 => letter.to_string(),
        nth => format!("{letter}{nth}"),
    }
}

fn ballot(b: Ballot) -> String {
    format!("{}.{}", b.round, life_name(b.proposer))
}

fn position(p: Position) -> String {
    format!("{}/{}", ballot(p.ballot), p.n)
}

fn config(cfg: &Config) -> String {
    let set = |set: &Members| {
        let who: Vec<String> = set.who.iter().copied().map(life_name).collect();
        format!("c{}{{{}}}", set.c, who.join(" "))
    };
    let prev = cfg.prev.as_ref().map_or(String::new(), |prev| format!("<{}", set(prev)));
    format!("{}{prev}", set(&cfg.now))
}

fn spoken(span: Duration) -> String {
    match span.as_millis() {
        ms if ms % 60_000 == 0 => format!("{} min", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{} s", ms / 1_000),
        ms => format!("{ms} ms"),
    }
}

fn list_of(body: &Body) -> String {
    body.state.as_ref().map_or(String::new(), |it| String::from_utf8_lossy(it).into_owned())
}

fn words(list: &str) -> Vec<String> {
    list.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn has(list: &[String], name: &str) -> bool {
    list.iter().any(|item| item.split('/').next() == Some(name))
}
