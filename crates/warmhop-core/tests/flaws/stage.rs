//! The stage: peers with real machines, messages in flight that arrive when the story says so, and
//! a narrator.

mod curtain;
mod plots;
mod speech;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use warmhop_core::config::SessionPolicy;
use warmhop_core::ids::{Incarnation, Now, Position, RequestKey, SessionId, WallTime};
use warmhop_core::session::census::Census;
use warmhop_core::session::claim::Claimant;
use warmhop_core::session::entry::Enter;
use warmhop_core::session::message::{Body, Config, Exec, Members, Message};
use warmhop_core::session::{
    Failure, Otherwise, Outcome, Process, Session, Submit, Ticket, TokenHint,
};

use speech::{config, has, letter, letters, life, life_name, list_of, parse, spoken, words};

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
    /// It has no room for copies.
    is_full: bool,
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
    /// How long what an app sets lasts, if it says so itself.
    lasts: Option<Duration>,
    /// The peers whose repair is to look at the session, since it may have too few copies.
    to_look_at: BTreeSet<String>,
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
                is_full: false,
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
            lasts: None,
            to_look_at: BTreeSet::new(),
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

    /// From now on, what an app sets lasts for `span` from then, however it is used.
    pub(crate) fn lasts_for(&mut self, span: Duration) {
        self.say(format!("what is set from now on lasts for {}", spoken(span)));
        self.lasts = Some(span);
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

    /// The peer has no room for copies from here on.
    pub(crate) fn is_full(&mut self, name: &str) {
        self.say(format!("{name} has no room for copies"));
        self.peer_mut(name).is_full = true;
    }

    pub(crate) fn has_room_again(&mut self, name: &str) {
        self.say(format!("{name} has room for copies again"));
        self.peer_mut(name).is_full = false;
    }

    /// The peer is suspended; what is sent to it waits.
    pub(crate) fn pauses(&mut self, name: &str) {
        self.say(format!("{name} is suspended"));
        self.peer_mut(name).health = Health::Paused;
    }

    pub(crate) fn resumes(&mut self, name: &str) {
        self.say(format!("{name} goes on where it was"));
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

    /// Time passes for every peer; those that run do what their timers ask for.
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

/// What peers believe of the mesh. At first they know nobody.
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

    /// `others`, as far as it knows, are about to leave.
    #[track_caller]
    pub(crate) fn is_left_by(&mut self, name: &str, others: &str) {
        self.say(format!("{name} hears that {others} will leave"));
        let leaving = self.incs(others);
        Arc::make_mut(&mut self.peer_mut(name).process.census).leaving = leaving;
    }

    /// Its process, and those of `others` as far as it knows, began a moment ago.
    #[track_caller]
    pub(crate) fn is_young(&mut self, name: &str, others: &str) {
        self.say(format!("{name} is young, and so are {others:?} as far as it knows"));
        let young = self.incs(others);
        let census = Arc::make_mut(&mut self.peer_mut(name).process.census);
        (census.is_young, census.is_new, census.young) = (true, true, young);
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

    /// The owner puts `newcomer` in the place of `gone` as soon as the request that runs has ended.
    #[track_caller]
    pub(crate) fn replaces_soon(&mut self, owner: &str, gone: Incarnation, newcomer: Option<&str>) {
        let came = newcomer.map(|name| self.inc(name));
        self.say(format!("{owner} is to go on without {}", life_name(gone)));
        self.on(owner, |machine, ctx, out| {
            machine.change_members_soon(ctx, Some(gone), came, out);
        });
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

    /// The peer asks the one that claims the session whether it owns it.
    #[track_caller]
    pub(crate) fn asks_claimant(&mut self, name: &str) {
        self.say(format!("{name} asks the peer that claims the session"));
        self.on(name, |machine, ctx, out| machine.ask_claimant(ctx.now, out));
    }

    /// The peer asks others who the members are by now.
    #[track_caller]
    pub(crate) fn asks_everyone(&mut self, name: &str, others: &str) {
        self.say(format!("{name} asks {others} who the members are by now"));
        let peers: Vec<Incarnation> = others.split(' ').map(|other| self.inc(other)).collect();
        self.on(name, |machine, _, out| machine.locate(&peers, out));
    }

    /// The answer that the peer got about the claim.
    #[track_caller]
    pub(crate) fn claimant(&self, name: &str) -> Claimant {
        self.machine(name).map_or(Claimant::Unasked, Session::claimant)
    }

    /// The owner invites `heir` to take the session over.
    #[track_caller]
    pub(crate) fn hands_off(&mut self, owner: &str, heir: &str) {
        self.say(format!("{owner} hands the session off to {heir}"));
        let to = self.inc(heir);
        self.on(owner, |machine, ctx, out| machine.hand_off(ctx, to, out));
    }

    /// The peer is made to forget the session, although its time is not over.
    #[track_caller]
    pub(crate) fn forgets(&mut self, name: &str) {
        self.say(format!("{name} is made to forget the session"));
        self.on(name, |machine, ctx, _| machine.forget(ctx));
    }

    /// The peer, which found the session lost, has everyone it knows forget it.
    #[track_caller]
    pub(crate) fn buries(&mut self, name: &str) {
        let peers = self.peer(name).process.census.others.clone();
        self.say(format!("{name} has everyone forget what is left of the session"));
        self.on(name, |machine, ctx, out| machine.bury(ctx, &peers, out));
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

/// What clients do, and the answers that they get.
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

    /// As [`Stage::asks_by_key`], for a request that makes nothing: if nobody knows of the session, its
    /// answer says so.
    #[track_caller]
    pub(crate) fn looks_by_key(&mut self, entry: &str, request: &str) {
        self.say(format!("{entry} looks whether anybody knows of the session"));
        let submit = self.prepares(entry, request, entry);
        let peers = self.peer(entry).process.census.others.clone();
        let enter = Enter::Seeking { peers, otherwise: Otherwise::Absent };
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
            self.fail(&format!("{name} should end at {expected:?}, but is at {end:?}"));
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

    /// Its client learned so.
    #[track_caller]
    pub(crate) fn failed(&mut self, name: &str, failure: Failure) {
        self.ended(name, &End::Failed(failure));
    }

    /// Time passes until the request fails for want of a majority.
    #[track_caller]
    pub(crate) fn gives_up_waiting(&mut self, name: &str) {
        self.settles();
        for _ in 0..3 {
            self.passes(Duration::from_secs(2));
            self.settles();
        }
        self.failed(name, Failure::NoMajority { ran: false });
    }

    /// Its client learned that the peer owns the session, and can tell what came of it.
    #[track_caller]
    pub(crate) fn deposed(&mut self, name: &str, by: &str) {
        let (at, _) = self.attempt(name);
        let owner = self.inc(by);
        match self.attempts[at].end.clone() {
            End::Failed(Failure::Deposed { to: Some(claim), .. }) if claim.proposer == owner => {}
            end => self.fail(&format!("{name} should be deposed by {by}, but is at {end:?}")),
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

    /// Whether the repair of `name` was to look at the session since this was last asked.
    pub(crate) fn is_to_look_at_it(&mut self, name: &str) -> bool {
        self.to_look_at.remove(name)
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
