//! Clients: each holds its cookie as browsers do, arrives where its balancer sends it, and repeats
//! a request only as the contract allows.

use std::cell::RefCell;
use std::rc::Rc;

use warmhop_core::affinity::{self, Kind};
use warmhop_core::ids::{Incarnation, SessionId, WallTime};
use warmhop_core::problem::{Applied, ProblemKind};

use crate::calls::{Asked, Does, Reply};
use crate::cookie_key::Key;
use crate::peer::{PAGE, SHOP, app_name};
use crate::world::{CloseOnDrop, Mailbox, To, World, sleep};

/// How long a client waits for an answer.
const PATIENCE_MS: u64 = 20_000;
/// How many requests a client has under way at once.
const AT_ONCE_MAX: usize = 3;
/// How often a client takes a refusal of a keyed request for its end, in percent.
const GIVES_UP: u64 = 20;
/// How long a request may be on its way after its client gave it up.
const ON_ITS_WAY_MS: u64 = 30_000;
const ATTEMPTS_MAX: usize = 8;

/// How a client's balancer chooses the entry peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Balancing {
    /// By the route in the cookie.
    Affinity,
    /// The same one until it cannot be reached.
    Sticky,
    RoundRobin,
    Random,
}

pub(crate) struct Client {
    pub(crate) name: usize,
    state: RefCell<State>,
}

struct State {
    cookie: Option<String>,
    balancing: Balancing,
    at: usize,
    under_way: usize,
    keyed_begun: usize,
    /// How many keyed requests had been begun when one of those was that is repeated with a newer
    /// cookie, and until when such a repeat may be on its way.
    repeated: Vec<(usize, u64)>,
    stopped: bool,
}

impl State {
    /// Whether one more keyed request could push one out of the retention window that may still arrive
    /// with a newer cookie.
    fn would_push_out(&mut self, now: u64, window: usize) -> bool {
        self.repeated.retain(|(_, until)| now < *until);
        self.repeated.iter().any(|(begun, _)| self.keyed_begun + 1 - begun + AT_ONCE_MAX >= window)
    }
}

/// How a request ended for its client.
pub(crate) enum End {
    Reply(Reply),
    /// Nobody listens there.
    Refused,
    /// No answer came.
    Nothing,
}

pub(crate) fn sid_in(cookie: &str) -> Option<SessionId> {
    let (token, _) = affinity::read(cookie, &Key, WallTime(0)).ok()?;
    token.entry(&app_name(SHOP)).map(|entry| entry.sid)
}

impl Client {
    pub(crate) fn new(world: &World, name: usize) -> Rc<Self> {
        let kinds =
            [Balancing::Affinity, Balancing::Sticky, Balancing::RoundRobin, Balancing::Random];
        let balancing = kinds[world.below(4) as usize];
        let at = world.below(world.knobs.peers as u64) as usize;
        let state = State {
            cookie: None,
            balancing,
            at,
            under_way: 0,
            keyed_begun: 0,
            repeated: Vec::new(),
            stopped: false,
        };
        Rc::new(Self { name, state: RefCell::new(state) })
    }

    /// One that has the cookie of another.
    pub(crate) fn with_cookie(world: &World, name: usize, cookie: Option<String>) -> Rc<Self> {
        let client = Self::new(world, name);
        client.state.borrow_mut().cookie = cookie;
        client
    }

    pub(crate) fn cookie(&self) -> Option<String> {
        self.state.borrow().cookie.clone()
    }

    /// The members of its session, as its cookie names them.
    pub(crate) fn members(&self) -> Vec<Incarnation> {
        let token = self.cookie().and_then(|it| affinity::read(&it, &Key, WallTime(0)).ok());
        let entry = token.and_then(|(token, _)| token.entry(&app_name(SHOP)).cloned());
        match entry.map(|entry| entry.kind) {
            Some(Kind::Portable { cfg, .. }) => cfg.now.who.to_vec(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn stop(&self) {
        self.state.borrow_mut().stopped = true;
    }

    /// Whether none of its requests is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.borrow().under_way == 0
    }

    pub(crate) fn sid(&self) -> Option<SessionId> {
        self.state.borrow().cookie.as_deref().and_then(sid_in)
    }

    /// Chooses the node that a request enters at.
    fn entry(&self, world: &World) -> usize {
        let peers = world.knobs.peers;
        let mut state = self.state.borrow_mut();
        let route = state.cookie.as_deref().and_then(|cookie| cookie.split_once('.'));
        let route = route.and_then(|(_, name)| name.strip_prefix("peer-")?.parse::<usize>().ok());
        match (state.balancing, route) {
            (Balancing::Affinity, Some(number)) => number - 1,
            (Balancing::Affinity | Balancing::Sticky, _) => state.at,
            (Balancing::RoundRobin, _) => {
                state.at = (state.at + 1) % peers;
                state.at
            }
            (Balancing::Random, _) => world.below(peers as u64) as usize,
        }
    }

    /// Goes on asking until it is stopped.
    pub(crate) async fn live(self: Rc<Self>, world: Rc<World>) {
        loop {
            sleep(&world, To::World, world.between(60, 1_500)).await;
            let idle = world.knobs.short_ttl && world.chance(4);
            if idle {
                sleep(&world, To::World, world.between(2_000, 20_000)).await;
            }
            let asked = {
                let mut state = self.state.borrow_mut();
                if state.stopped {
                    return;
                }
                // Without a cookie two requests would be of two sessions.
                let at_once = if state.cookie.is_some() { AT_ONCE_MAX } else { 1 };
                if state.under_way >= at_once {
                    continue;
                }
                let asked = draw(&world);
                let window = world.knobs.policy.recent_keyed_max;
                if asked.keyed && state.would_push_out(world.now(), window) {
                    continue;
                }
                state.under_way += 1;
                asked
            };
            let (me, of) = (Rc::clone(&self), Rc::clone(&world));
            world.spawn(None, async move {
                me.ask_until_answered(&of, asked).await;
                me.state.borrow_mut().under_way -= 1;
            });
        }
    }

    /// Asks once or twice, perhaps only to look, and is not seen again before all is healed.
    pub(crate) async fn begin_and_rest(self: Rc<Self>, world: Rc<World>) {
        let only_looks = world.chance(30);
        self.state.borrow_mut().under_way += 1;
        for _ in 0..world.between(1, 2) {
            sleep(&world, To::World, world.between(1, 8_000)).await;
            if self.state.borrow().stopped {
                break;
            }
            let mut asked = Asked { slot: SHOP, ..draw(&world) };
            if only_looks {
                (asked.does, asked.keyed) = (Does::Read, false);
            }
            self.ask_until_answered(&world, asked).await;
        }
        self.state.borrow_mut().under_way -= 1;
    }

    async fn ask_until_answered(&self, world: &Rc<World>, asked: Asked) {
        let first_cookie = self.state.borrow().cookie.clone();
        let begun_before = {
            let mut state = self.state.borrow_mut();
            state.keyed_begun += usize::from(asked.keyed);
            state.keyed_begun
        };
        let sid = first_cookie.as_deref().and_then(sid_in);
        let before = world.before(sid);
        // Whether an attempt before may have been applied, as far as this client knows.
        let mut in_doubt = false;
        for _ in 0..ATTEMPTS_MAX {
            let newest = self.state.borrow().cookie.clone();
            let same_session = newest.as_deref().and_then(sid_in) == sid;
            if !same_session {
                // A repeat would be of another session: the client has gone on.
                return;
            }
            // Within the retention window a repeat may come with any cookie; with the one that it
            // was first sent with, it may come whenever it likes.
            let since = self.state.borrow().keyed_begun - begun_before;
            let within_window = since + AT_ONCE_MAX < world.knobs.policy.recent_keyed_max;
            let cookie = if within_window && world.chance(30) {
                let until = world.now() + ON_ITS_WAY_MS;
                self.state.borrow_mut().repeated.push((begun_before, until));
                newest
            } else {
                first_cookie.clone()
            };
            let node = self.entry(world);
            let sent = world.now();
            match send(world, self.name, node, asked.clone(), cookie.clone()).await {
                End::Refused => {
                    let mut state = self.state.borrow_mut();
                    state.at = (state.at + 1) % world.knobs.peers;
                    if state.balancing == Balancing::Affinity {
                        // Its balancer marks the peer as down and deals the request out.
                        state.balancing = Balancing::Sticky;
                    }
                }
                End::Nothing => {
                    world.count("unanswered");
                    in_doubt = true;
                    if !may_repeat(&asked, first_cookie.is_some()) {
                        return;
                    }
                }
                End::Reply(reply) => {
                    let Some(problem) = self.take(world, &asked, &before, sent, cookie, reply)
                    else {
                        return;
                    };
                    match problem {
                        _ if problem.applied() == Applied::Yes => {
                            if let Some(sid) = sid {
                                world.was_applied(sid, asked.id);
                            }
                            return;
                        }
                        ProblemKind::OutcomeForgotten => return world.count("below floor"),
                        ProblemKind::KeyReused => {
                            let what = format!("request {} was taken for another", asked.id);
                            return world.violated(sid, what);
                        }
                        _ => {}
                    }
                    in_doubt |= problem.applied() != Applied::No;
                    let repeats = may_repeat(&asked, first_cookie.is_some());
                    if !repeats || !in_doubt && asked.keyed && world.chance(GIVES_UP) {
                        if let Some(sid) = sid.filter(|_| !in_doubt) {
                            world.was_refused(sid, asked.id);
                            world.count("refused for good");
                        }
                        return;
                    }
                }
            }
            sleep(world, To::World, world.between(50, 1_500)).await;
        }
    }

    /// Takes an answer in and has it judged; the problem, if that is what it is.
    fn take(
        &self,
        world: &World,
        asked: &Asked,
        before: &crate::reference::Before,
        sent: u64,
        cookie: Option<String>,
        reply: Reply,
    ) -> Option<ProblemKind> {
        if let Err(problem) = reply.answer {
            world.count(problem.name());
            return Some(problem);
        }
        world.count(if asked.slot == PAGE { "pages" } else { "answers" });
        if asked.slot == PAGE {
            return None;
        }
        if reply.lost {
            world.count("reported lost");
        }
        let given = reply.cookie.clone().or(cookie);
        let Some(sid) = given.as_deref().and_then(sid_in) else {
            world.violated(before.sid, format!("request {} got no session", asked.id));
            return None;
        };
        if let Some(new) = &reply.cookie {
            self.state.borrow_mut().cookie = Some(new.clone());
        }
        world.judge(asked, before, sent, sid, &reply);
        None
    }

    /// Asks at one entry, once, and takes the answer in: for demands, not for life.
    pub(crate) async fn demand(
        &self,
        world: &Rc<World>,
        node: usize,
        does: Does,
    ) -> Result<Reply, String> {
        let asked =
            Asked { slot: SHOP, does, keyed: false, large: false, streams: false, ..draw(world) };
        let asked = Asked { runs_ms: asked.runs_ms.min(15), ..asked };
        let cookie = self.state.borrow().cookie.clone();
        let before = world.before(cookie.as_deref().and_then(sid_in));
        let sent = world.now();
        match send(world, self.name, node, asked.clone(), cookie.clone()).await {
            End::Refused => Err("nobody listens".into()),
            End::Nothing => Err("no answer came".into()),
            End::Reply(reply) => {
                match self.take(world, &asked, &before, sent, cookie, reply.clone()) {
                    Some(problem) => Err(format!("{} {}", problem.status(), problem.name())),
                    None => Ok(reply),
                }
            }
        }
    }
}

/// Sends a request to one entry peer, once.
pub(crate) async fn send(
    world: &Rc<World>,
    name: usize,
    node: usize,
    asked: Asked,
    cookie: Option<String>,
) -> End {
    let about = asked.key.or(cookie.as_deref().and_then(sid_in));
    let id = asked.id;
    world.note(about, || {
        format!(
            "client {} asks {}: request {id} {:?}{}",
            name,
            crate::name(node),
            asked.does,
            if asked.keyed { ", keyed" } else { "" }
        )
    });
    sleep(world, To::World, 1).await;
    let Some(peer) = world.peer(node) else { return End::Refused };
    let (post, life) = (Mailbox::new(), peer.life);
    let desk = CloseOnDrop(post.clone());
    let task = world.spawn(Some(life), async move {
        let desk = desk;
        let reply = peer.front_door(asked, cookie).await;
        desk.0.put(Some(reply));
    });
    // Some leave early, as people do.
    let patience = if world.faults_on.get() && world.chance(3) { 200 } else { PATIENCE_MS };
    let timer = post.clone();
    world.after(patience, To::World, move |_| timer.put(None));
    let reply = post.take().await.flatten();
    world.cancel(task);
    world.note(about, || match &reply {
        None => format!("client {} got nothing for request {id}", name),
        Some(reply) => match &reply.answer {
            Ok(list) => format!(
                "client {} got for request {id}: {:?}{}",
                name,
                crate::reference::read_list(list).1,
                if reply.replayed { " (replayed)" } else { "" }
            ),
            Err(problem) => format!("client {} got for request {id}: {problem:?}", name),
        },
    });
    reply.map_or(End::Nothing, End::Reply)
}

/// A first request has no cookie yet: a repeat would be of another session.
fn may_repeat(asked: &Asked, had_cookie: bool) -> bool {
    asked.does != Does::Append || (asked.keyed && had_cookie)
}

fn draw(world: &World) -> Asked {
    let does = match world.below(10) {
        0..=5 => Does::Append,
        6..=8 => Does::Read,
        _ => Does::Mark,
    };
    let keyed = does == Does::Append && world.chance(60);
    let id = world.next_request();
    Asked {
        slot: if world.chance(10) { PAGE } else { SHOP },
        key: None,
        id,
        does,
        keyed,
        large: keyed && world.chance(5),
        streams: does == Does::Append && !keyed && world.chance(20),
        fingerprint: u64::from(id),
        runs_ms: if world.chance(5) { world.between(100, 3_000) } else { world.between(1, 15) },
        lasts_ms: None,
    }
}
