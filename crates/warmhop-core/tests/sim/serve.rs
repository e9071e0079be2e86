//! A request on its way through a peer: re-enacts the mesh crate's ingress, serving and hops line
//! by line, over the real `route`, `affinity`, `rank` and `session`.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use warmhop_core::affinity::{self, Arrival, Authenticator, Entry, Kind, Token};
use warmhop_core::app::{AppEvent, WantedBy};
use warmhop_core::config::{EffectsMode, StartMode};
use warmhop_core::ids::{Ballot, Incarnation, PeerId, RequestKey, SessionId};
use warmhop_core::rank;
use warmhop_core::route::{
    ATTEMPTS_MAX, Action, Arrived, Candidate, LocalApp, Question, decide, may_retry,
};
use warmhop_core::session::entry::{
    self, After, Alone, Because, End, Enter, Errand, FORWARDS_MAX, Forwarded, Here, Look,
    NEWBORN_FOR, Named, Rerun, Reruns, Step, alone, answer_forward, fence_at, first_members,
    is_for_entry, is_void,
};
use warmhop_core::session::message::{Config, Exec, ExecDone, Stored};
use warmhop_core::session::{Failure, Outcome, Session, Submit};
use warmhop_core::view::{AppBelief, AppState, Liveness, PeerBelief, View};

use crate::peer::{Load, Peer, SHOP, app_name};
use crate::store::{InLine, Told};
use crate::world::{Mailbox, To, World};

const ROUNDS_MAX: u32 = 8;
const HEARD_LATELY: Duration = Duration::from_millis(50);
/// How often one that waits for a reply looks whether the link still lives.
const LOOK_MS: u64 = 300;

/// What a request does to its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Does {
    /// Adds its number to the list (a POST).
    Append,
    /// Shows the list (a GET).
    Read,
    /// Adds its number if it is not there (a GET that sets something).
    Mark,
}

/// A request as its client sends it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) slot: usize,
    pub(crate) id: u16,
    pub(crate) does: Does,
    pub(crate) keyed: bool,
    /// The response is too large to be stored.
    pub(crate) large: bool,
    /// Its body is a stream that can be sent once.
    pub(crate) streams: bool,
    pub(crate) fingerprint: u64,
    pub(crate) runs_ms: u64,
}

impl Asked {
    fn is_safe(&self) -> bool {
        self.does != Does::Append
    }
}

/// What a client gets.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) answer: Result<Arc<[u8]>, Problem>,
    pub(crate) cookie: Option<String>,
    pub(crate) served_by: Option<PeerId>,
    pub(crate) lost: bool,
    pub(crate) forked: bool,
    pub(crate) replayed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: u16,
    pub(crate) name: &'static str,
}

const fn problem(status: u16, name: &'static str) -> Problem {
    Problem { status, name }
}

/// A request as it travels.
#[derive(Clone)]
struct Call {
    asked: Asked,
    /// The body can be sent (again).
    has_body: bool,
    may_have_run: bool,
}

impl Call {
    fn take_body(&mut self) -> bool {
        let had = self.has_body;
        self.has_body = had && !self.asked.streams;
        had
    }
}

#[derive(Clone)]
struct Served {
    response: Arc<[u8]>,
    served_by: PeerId,
    entry: Option<Entry>,
    lost: bool,
    forked: bool,
    replayed: bool,
}

impl Served {
    fn here(peer: &Peer, response: Arc<[u8]>) -> Self {
        let served_by = peer.me.clone();
        Self { response, served_by, entry: None, lost: false, forked: false, replayed: false }
    }
}

enum LocalError {
    NotReady,
    Failed,
    Refused(ExecDone),
    BodyGone,
}

#[derive(Clone)]
enum HopKind {
    Plain,
    Wake,
    Exec { sid: SessionId, exec: Exec },
    Forward(Forward),
}

#[derive(Clone)]
struct Forward {
    sid: SessionId,
    cfg: Option<Config>,
    owner: Incarnation,
    n: u64,
    rid: RequestKey,
    keyed: bool,
    seen: Option<u64>,
    hops_left: u8,
    hand_over: Option<Incarnation>,
}

#[derive(Clone)]
struct Hint {
    cfg: Config,
    owner: Incarnation,
    n: u64,
}

#[derive(Clone)]
enum ReplySession {
    None,
    Done(ExecDone),
    Committed { hint: Hint, replayed: bool },
}

#[derive(Clone)]
enum HopRefusal {
    NotReady,
    Exec(ExecDone),
    NotOwner { claim: Option<Ballot> },
    Lost(Failure),
    Problem(Problem),
    AppFailed,
}

enum HopError {
    Unreachable,
    Refused(HopRefusal),
    Broken,
}

struct HopReply {
    response: Arc<[u8]>,
    session: ReplySession,
    served_by: PeerId,
}

type HopOutcome = (Result<(Served, ReplySession), HopRefusal>, Load);

#[derive(Clone)]
enum Place {
    Here,
    There(PeerId),
}

#[derive(Clone, Copy)]
struct Portable {
    rid: RequestKey,
    seen: Option<u64>,
    hops_left: u8,
}

enum LineEnd {
    Served(Box<Served>),
    Elsewhere(Option<Ballot>),
    Failed(Failure),
    Problem(Problem),
}

/// The cluster's key for cookies: not secret here, but sensitive to every byte.
pub(crate) struct Key;

impl Authenticator for Key {
    fn tag(&self, bytes: &[u8]) -> [u8; 16] {
        let mut state = [0xCBF2_9CE4_8422_2325_u64, 0x9E37_79B9_7F4A_7C15];
        for byte in bytes {
            for half in &mut state {
                *half =
                    (*half ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(7);
            }
        }
        let mut tag = [0; 16];
        tag[..8].copy_from_slice(&state[0].to_be_bytes());
        tag[8..].copy_from_slice(&state[1].to_be_bytes());
        tag
    }

    fn verify(&self, bytes: &[u8], tag: &[u8; 16]) -> bool {
        self.tag(bytes) == *tag
    }
}

// The ingress.

impl Peer {
    /// Serves a client's request at its front door.
    pub(crate) async fn front_door(self: &Rc<Self>, asked: Asked, cookie: Option<String>) -> Reply {
        let token =
            cookie.as_deref().and_then(|value| affinity::read(value, &Key, self.wall()).ok());
        let app = app_name(asked.slot);
        let former = token.as_ref().and_then(|(token, _)| token.entry(&app).cloned());
        let mut call = Call { asked, has_body: true, may_have_run: false };
        let served = if call.asked.slot == SHOP {
            let portable = Portable {
                rid: self.rid_of(&call.asked),
                seen: former.as_ref().and_then(|entry| match entry.kind {
                    Kind::Portable { n, .. } => Some(n),
                    Kind::Pinned { .. } => None,
                }),
                hops_left: FORWARDS_MAX,
            };
            self.serve_portable(portable, &mut call, former.as_ref()).await
        } else {
            self.serve_plain(&mut call).await
        };
        match served {
            Ok(served) => self.finish(served, token, former),
            Err(problem) => Reply {
                answer: Err(problem),
                cookie: None,
                served_by: None,
                lost: false,
                forked: false,
                replayed: false,
            },
        }
    }

    fn rid_of(&self, asked: &Asked) -> RequestKey {
        let mut rid = if asked.keyed { [0xEE; 16] } else { self.world.bytes() };
        rid[..2].copy_from_slice(&asked.id.to_be_bytes());
        RequestKey(rid)
    }

    fn finish(
        &self,
        served: Served,
        token: Option<(Token, Option<PeerId>)>,
        former: Option<Entry>,
    ) -> Reply {
        let mut cookie = None;
        if let Some(entry) = served.entry {
            let current = token.as_ref().and_then(|(_, route)| route.clone());
            let route = self.route_of(&entry, current.as_ref(), &served.served_by);
            let stays = former.is_some_and(|former| self.is_settled(&former, &entry))
                && current.as_ref() == Some(&route);
            if !stays {
                let mut token = token.map(|(token, _)| token).unwrap_or_default();
                token.put(entry);
                cookie = Some(affinity::mint(&token, &route, &Key));
            }
        }
        Reply {
            answer: Ok(served.response),
            cookie,
            served_by: Some(served.served_by),
            lost: served.lost,
            forked: served.forked,
            replayed: served.replayed,
        }
    }

    fn is_settled(&self, former: &Entry, entry: &Entry) -> bool {
        let wall = self.wall().0;
        former.sid == entry.sid
            && former.kind == entry.kind
            && former.expiry.0.saturating_sub(wall) > entry.expiry.0.saturating_sub(wall) / 2
    }

    fn route_of(&self, entry: &Entry, current: Option<&PeerId>, served_by: &PeerId) -> PeerId {
        let slot = self.slots[SHOP].borrow();
        let starts = slot.policy.start != StartMode::Never && slot.state() != AppState::Failed;
        let arrival = Arrival {
            me: &self.me,
            incarnation: self.inc,
            serves: starts && !self.draining.get(),
            ready: slot.state() == AppState::Ready,
            view: &self.view.borrow(),
            current,
            served_by: Some(served_by),
        };
        affinity::come_back_to(entry, &arrival)
    }
}

// Where a request goes.

impl Peer {
    fn candidates<'v>(&self, view: &'v View, at: usize, or_cold: bool) -> Vec<Candidate<'v>> {
        let now = self.now();
        let app = app_name(at);
        let loads = self.loads.borrow();
        let candidate = |peer: &'v PeerId, belief: &PeerBelief, told: &AppBelief| {
            let load = loads.get(&(peer.clone(), app.clone()));
            let fresher = load.filter(|(_, at)| *at >= told.heard);
            Candidate {
                peer,
                state: told.news.state,
                same_zone: true,
                in_flight: fresher.map_or(told.news.in_flight, |(load, _)| load.in_flight),
                latency_us: load.map(|(load, _)| load.latency_us).filter(|us| *us > 0),
                age: now.since(told.heard),
                load_age: load.map(|(_, at)| now.since(*at)),
                suspect: belief.alive == Liveness::Suspect,
                draining: belief.news.draining,
                eta: told.eta(now),
            }
        };
        let all = || {
            view.live_peers()
                .filter_map(|(peer, belief)| Some((peer, belief, belief.apps.get(&app)?)))
        };
        let is_warm =
            |told: &AppBelief| matches!(told.news.state, AppState::Ready | AppState::Starting);
        let warm: Vec<_> = all()
            .filter(|(_, _, told)| is_warm(told))
            .map(|(peer, belief, told)| candidate(peer, belief, told))
            .collect();
        assert_eq!(warm.len(), view.warm_peers(&app).count(), "the view's index is its beliefs");
        if !warm.is_empty() || !or_cold {
            return warm;
        }
        let ranked = rank::keepers(&app, all().map(|(peer, _, _)| peer), 8);
        ranked
            .iter()
            .filter_map(|ranked| {
                let (peer, belief, told) = all().find(|(peer, _, _)| *peer == ranked)?;
                Some(candidate(peer, belief, told))
            })
            .collect()
    }

    /// Decides where a request goes, waiting where it must.
    async fn place(self: &Rc<Self>, at: usize, tried: &[PeerId]) -> Result<Place, Problem> {
        let since = self.now();
        let mut waiting: Option<Waits> = None;
        loop {
            let decision = {
                let slot = self.slots[at].borrow();
                let view = self.view.borrow();
                let state = slot.state();
                let draining = self.draining.get();
                let candidates = if state == AppState::Ready && !draining {
                    Vec::new()
                } else {
                    let never = slot.policy.start == StartMode::Never;
                    let others_start = never || draining || state == AppState::Failed;
                    self.candidates(&view, at, others_start)
                };
                decide(&Question {
                    app: &slot.policy,
                    local: LocalApp {
                        state,
                        in_flight: slot.in_flight(),
                        eta: slot.eta(self.now()),
                        waiting: slot.waiting - usize::from(waiting.is_some()),
                        awaiting: 0,
                        latency_us: 0,
                        starts_in: slot.starts_in(self.now()),
                    },
                    draining: self.draining.get(),
                    zone: None,
                    candidates: &candidates,
                    arrived: Arrived::AtFrontDoor,
                    affinity: None,
                    tried: if waiting.is_some() { &[] } else { tried },
                    attempt_budget: ATTEMPTS_MAX,
                    waited: self.now().since(since),
                    failed_starts: 0,
                    dice: self.world.random(),
                })
            };
            if decision.start_here {
                self.tell(at, AppEvent::Wanted(WantedBy::Request));
            }
            if let Some(peer) = decision.ask_to_start.clone() {
                let me = Rc::clone(self);
                self.world.spawn(Some(self.life), async move {
                    let mut call = Call {
                        asked: Asked {
                            slot: at,
                            id: 0,
                            does: Does::Read,
                            keyed: false,
                            large: false,
                            streams: false,
                            fingerprint: 0,
                            runs_ms: 0,
                        },
                        has_body: true,
                        may_have_run: false,
                    };
                    let _ = me.ask(&peer, &mut call, HopKind::Wake).await;
                });
            }
            self.world.count(decision.reason.label());
            match decision.action {
                Action::Serve => return Ok(Place::Here),
                Action::Hop { to } => return Ok(Place::There(to)),
                Action::Refuse(refusal) => return Err(problem(503, refusal.label())),
                Action::Wait { at_most } => {
                    if waiting.is_none() {
                        self.slots[at].borrow_mut().waiting += 1;
                        waiting = Some(Waits { peer: Rc::clone(self), at });
                    }
                    let at_most = u64::try_from(at_most.as_millis()).unwrap_or(u64::MAX);
                    self.changed_within(at_most).await;
                }
            }
        }
    }

    fn incarnation_of(&self, peer: &PeerId) -> Option<Incarnation> {
        self.view.borrow().peer(peer).map(|belief| belief.news.incarnation)
    }
}

struct Waits {
    peer: Rc<Peer>,
    at: usize,
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.peer.slots[self.at].borrow_mut().waiting -= 1;
    }
}

// Hops.

/// What a peer that waits for a reply is woken by.
enum Post {
    Look,
    Reply(HopOutcome),
}

/// Cancels the far side of a hop when its near side ends.
struct CancelFarSide {
    world: Rc<World>,
    task: Rc<Cell<Option<u64>>>,
    ms: u64,
}

impl Drop for CancelFarSide {
    fn drop(&mut self) {
        let task = Rc::clone(&self.task);
        self.world.after(self.ms, To::World, move |world| {
            if let Some(task) = task.get() {
                world.cancel(task);
            }
        });
    }
}

impl Peer {
    fn heard_lately(&self, to: &PeerId, at: usize) -> bool {
        let loads = self.loads.borrow();
        let last = loads.get(&(to.clone(), app_name(at)));
        last.is_some_and(|(_, at)| self.now().since(*at) < HEARD_LATELY)
    }

    /// Waits until the far process can hear, or the link to it is down: then false.
    async fn reaches(self: &Rc<Self>, node: usize, inc: Incarnation) -> bool {
        let Some(delay) = self.world.stream_delay(self.node, node) else {
            while self.has_link(node, inc) {
                self.sleep(LOOK_MS).await;
            }
            return false;
        };
        self.sleep(delay).await;
        while self.has_link(node, inc) {
            match self.world.peer_of(inc) {
                Some(_) if !self.world.is_paused(node) => return true,
                _ => self.sleep(LOOK_MS).await,
            }
        }
        false
    }

    async fn ask(
        self: &Rc<Self>,
        to: &PeerId,
        call: &mut Call,
        kind: HopKind,
    ) -> Result<HopReply, HopError> {
        if !call.take_body() {
            return Err(HopError::Broken);
        }
        let at = call.asked.slot;
        let careful = !call.asked.is_safe() && !self.heard_lately(to, at);
        let result = self.ask_over_link(to, call, kind, careful).await;
        match &result {
            Ok(_) => {}
            Err(HopError::Refused(HopRefusal::AppFailed)) => call.may_have_run = true,
            Err(HopError::Refused(_)) => call.has_body |= careful || !call.asked.streams,
            Err(HopError::Unreachable) => call.has_body = true,
            Err(HopError::Broken) => call.may_have_run = true,
        }
        result
    }

    async fn ask_over_link(
        self: &Rc<Self>,
        to: &PeerId,
        call: &Call,
        kind: HopKind,
        careful: bool,
    ) -> Result<HopReply, HopError> {
        let world = Rc::clone(&self.world);
        let Some((node, inc)) = crate::node_of(to).zip(self.incarnation_of(to)) else {
            return Err(HopError::Unreachable);
        };
        if !self.has_link(node, inc) {
            self.sleep(world.between(1, 100)).await;
            return Err(HopError::Unreachable);
        }
        let forwards = matches!(kind, HopKind::Forward(_));
        if careful || call.asked.streams {
            if !self.reaches(node, inc).await {
                return Err(HopError::Unreachable);
            }
            let Some(far) = world.peer_of(inc) else { return Err(HopError::Unreachable) };
            let ready = far.slots[call.asked.slot].borrow().state() == AppState::Ready;
            match world.stream_delay(node, self.node) {
                Some(delay) => self.sleep(delay).await,
                None => {
                    while self.has_link(node, inc) {
                        self.sleep(LOOK_MS).await;
                    }
                    return Err(HopError::Unreachable);
                }
            }
            if !ready && !forwards {
                return Err(HopError::Refused(HopRefusal::NotReady));
            }
        }
        let post = Mailbox::new();
        let task = Rc::new(Cell::new(None));
        let ms = if world.is_cut(self.node, node) { 2_500 } else { world.between(0, 5) };
        let _cancel = CancelFarSide { world: Rc::clone(&world), task: Rc::clone(&task), ms };
        if let Some(delay) = world.stream_delay(self.node, node)
            && let Some(far) = world.peer_of(inc)
        {
            let mut call = call.clone();
            call.has_body = true;
            // An order that a confused link delivers twice must not run twice.
            if matches!(kind, HopKind::Exec { .. }) && world.chance(2) && world.faults_on.get() {
                let (far, kind, call) = (Rc::clone(&far), kind.clone(), call.clone());
                world.count("orders repeated");
                world.after(delay + world.below(500), To::Life(far.life), move |world| {
                    let life = far.life;
                    world.spawn(Some(life), async move {
                        let _ = far.hop_door(kind, call).await;
                    });
                });
            }
            let (near_life, near_node, post) = (self.life, self.node, post.clone());
            world.after(delay, To::Life(far.life), move |world| {
                let life = far.life;
                let id = world.spawn(Some(life), async move {
                    let outcome = far.hop_door(kind, call).await;
                    if let Some(delay) = far.world.stream_delay(far.node, near_node) {
                        far.world.after(delay, To::Life(near_life), move |_| {
                            post.put(Post::Reply(outcome))
                        });
                    }
                });
                task.set(Some(id));
            });
        }
        loop {
            let bell = post.clone();
            world.after(LOOK_MS, To::Life(self.life), move |_| bell.put(Post::Look));
            match post.take().await {
                Some(Post::Reply((outcome, load))) => {
                    let key = (to.clone(), app_name(call.asked.slot));
                    self.loads.borrow_mut().insert(key, (load, self.now()));
                    return match outcome {
                        Ok((served, session)) => {
                            let Served { response, served_by, .. } = served;
                            Ok(HopReply { response, session, served_by })
                        }
                        Err(why) => Err(HopError::Refused(why)),
                    };
                }
                Some(Post::Look) if self.has_link(node, inc) => {}
                Some(Post::Look) | None => return Err(HopError::Broken),
            }
        }
    }

    async fn hop_door(self: &Rc<Self>, kind: HopKind, mut call: Call) -> HopOutcome {
        let at = call.asked.slot;
        if matches!(kind, HopKind::Wake) {
            self.tell(at, AppEvent::Wanted(WantedBy::Request));
        }
        let ready = self.slots[at].borrow().state() == AppState::Ready;
        let load = || self.slots[at].borrow().load();
        // Only the owner of a session may have the request executed elsewhere.
        if !ready && !matches!(kind, HopKind::Forward(_)) {
            return (Err(HopRefusal::NotReady), load());
        }
        let local = |error| match error {
            LocalError::NotReady | LocalError::BodyGone => HopRefusal::NotReady,
            LocalError::Refused(done) => HopRefusal::Exec(done),
            LocalError::Failed => HopRefusal::AppFailed,
        };
        let outcome = match kind {
            HopKind::Wake => Err(HopRefusal::NotReady),
            HopKind::Plain => match self.run_here(&mut call, None).await {
                Ok((response, _)) => Ok((Served::here(self, response), ReplySession::None)),
                Err(error) => Err(local(error)),
            },
            HopKind::Exec { sid, exec } => match self.execute_here(&mut call, sid, &exec).await {
                Ok((response, done)) => {
                    Ok((Served::here(self, response), ReplySession::Done(done)))
                }
                Err(error) => Err(local(error)),
            },
            HopKind::Forward(forward) => {
                self.serve_forwarded(&mut call, &forward).await.map(|served| {
                    let session = match served.entry.as_ref().map(|entry| &entry.kind) {
                        Some(Kind::Portable { cfg, owner, n }) => ReplySession::Committed {
                            hint: Hint { cfg: cfg.clone(), owner: *owner, n: *n },
                            replayed: served.replayed,
                        },
                        _ => ReplySession::None,
                    };
                    (served, session)
                })
            }
        };
        (outcome, load())
    }
}

// Running the app.

impl Peer {
    /// Runs the app here: its answer, and what it made of the state if it changed it.
    async fn run_here(
        self: &Rc<Self>,
        call: &mut Call,
        state: Option<Arc<[u8]>>,
    ) -> Result<(Arc<[u8]>, Option<Arc<[u8]>>), LocalError> {
        let at = call.asked.slot;
        let began = self.now();
        let Some(attempt) = self.slots[at].borrow_mut().enter(began) else {
            return Err(LocalError::NotReady);
        };
        let in_flight = Runs { peer: Rc::clone(self), at, attempt, began: began.0 };
        if !call.take_body() {
            return Err(LocalError::BodyGone);
        }
        let asked = call.asked.clone();
        let id = asked.id.to_be_bytes();
        self.world.count("runs");
        self.sleep(asked.runs_ms).await;
        let runs = self.slots[at].borrow().still_runs(attempt);
        drop(in_flight);
        if !runs {
            return Err(LocalError::Failed);
        }
        let known = state.as_deref().unwrap_or_default();
        let is_there = known.get(4..).unwrap_or_default().chunks_exact(2).any(|other| other == id);
        let changes = match asked.does {
            Does::Read => false,
            Does::Append => true,
            Does::Mark => !is_there,
        };
        if !changes {
            return Ok((Arc::from(known), None));
        }
        let mut list = known.to_vec();
        if list.is_empty() {
            // Each list begins with a random number, so that no two are taken for one.
            list.extend_from_slice(&(self.world.random() as u32).to_be_bytes());
        }
        list.extend_from_slice(&id);
        let list: Arc<[u8]> = Arc::from(list);
        Ok((Arc::clone(&list), Some(list)))
    }

    /// Runs the app here for a session, around the session's own checks.
    async fn execute_here(
        self: &Rc<Self>,
        call: &mut Call,
        sid: SessionId,
        exec: &Exec,
    ) -> Result<(Arc<[u8]>, ExecDone), LocalError> {
        if self.slots[call.asked.slot].borrow().state() != AppState::Ready {
            return Err(LocalError::NotReady);
        }
        let base = self
            .with(sid, true, |machine, ctx, _| machine.exec_begin(ctx, exec))
            .ok_or(LocalError::NotReady)?
            .map_err(LocalError::Refused)?;
        let ttl = self.world.knobs.policy.ttl;
        let expired = base.is_over(exec, self.wall(), ttl);
        if expired {
            self.world.count("expired states");
        }
        let state = base.state.clone().filter(|_| !expired);
        let (response, mut changed) = self.run_here(call, state.clone()).await?;
        // Used, so it lives on: an unchanged session whose time is half over is written anew.
        if changed.is_none() && state.is_some() && base.is_half_over(exec, ttl) {
            changed = state;
        }
        let stored = match exec.keyed {
            true if call.asked.large => Stored::TooLarge,
            true => Stored::Response(Arc::clone(&response)),
            false => Stored::Applied,
        };
        let done = self
            .with(sid, true, |machine, ctx, _| {
                machine.exec_end(ctx, exec, &base, changed.map(Some), stored)
            })
            .ok_or(LocalError::Failed)?;
        Ok((response, done))
    }
}

/// Counts one request in flight until it is dropped.
struct Runs {
    peer: Rc<Peer>,
    at: usize,
    attempt: u64,
    began: u64,
}

impl Drop for Runs {
    fn drop(&mut self) {
        let took = self.peer.now().0.saturating_sub(self.began);
        self.peer.slots[self.at].borrow_mut().exit(self.attempt, took);
    }
}

// Serving.

impl Peer {
    async fn serve_plain(self: &Rc<Self>, call: &mut Call) -> Result<Served, Problem> {
        let at = call.asked.slot;
        let mut tried: Vec<PeerId> = Vec::new();
        for _ in 0..ROUNDS_MAX {
            match self.place(at, &tried).await? {
                Place::Here => match self.run_here(call, None).await {
                    Ok((response, _)) => return Ok(Served::here(self, response)),
                    Err(LocalError::NotReady) => {}
                    Err(_) => return Err(problem(502, "app-failed")),
                },
                Place::There(to) => {
                    match self.ask(&to, call, HopKind::Plain).await {
                        Ok(reply) => {
                            let mut served = Served::here(self, reply.response);
                            served.served_by = reply.served_by;
                            return Ok(served);
                        }
                        Err(error) => after_failed_hop(call, &error)?,
                    }
                    tried.push(to);
                }
            }
        }
        Err(problem(503, "no-progress"))
    }

    async fn serve_portable(
        self: &Rc<Self>,
        portable: Portable,
        call: &mut Call,
        entry: Option<&Entry>,
    ) -> Result<Served, Problem> {
        let asked = entry::Asked {
            keyed: call.asked.keyed,
            seen: portable.seen,
            may_repeat: may_retry(
                call.asked.is_safe(),
                call.asked.keyed,
                EffectsMode::Anything,
                true,
                true,
            ),
            hops_left: portable.hops_left,
        };
        let named = entry.and_then(|entry| match &entry.kind {
            Kind::Portable { cfg, owner, n } => {
                Some(Named { sid: entry.sid, cfg: cfg.clone(), owner: *owner, n: *n })
            }
            Kind::Pinned { .. } => None,
        });
        let mut errand = Errand::new(asked, named);
        loop {
            let about = errand.session().map(|named| named.sid);
            let end = self.attempt(portable, call, &mut errand).await?;
            self.world.note(about, || {
                let end = match &end {
                    LineEnd::Served(_) => {
                        return format!("{} served request {}", self.me, call.asked.id);
                    }
                    LineEnd::Elsewhere(other) => format!("owned elsewhere: {other:?}"),
                    LineEnd::Failed(failure) => format!("{failure:?}"),
                    LineEnd::Problem(problem) => format!("{problem:?}"),
                };
                format!("{} did not serve request {}: {end}", self.me, call.asked.id)
            });
            let end = match end {
                LineEnd::Served(mut served) => {
                    served.lost = errand.lost();
                    served.forked = errand.forked();
                    return Ok(*served);
                }
                LineEnd::Problem(problem) => return Err(problem),
                LineEnd::Elsewhere(other) => End::Elsewhere(other),
                LineEnd::Failed(failure) => End::Failed(failure),
            };
            let mut after = errand.ended(end, call.has_body, &self.here(&self.view.borrow()));
            if let (After::TryAlone(failure), Some(named)) = (after, errand.session()) {
                let into = self.fork(named.sid);
                let view = self.view.borrow();
                after = errand.tried_alone(failure, into, call.has_body, &self.here(&view));
            }
            match after {
                After::Again { because: Because::NoWitness, back_off } => {
                    let bound = back_off.as_millis() as u64;
                    self.sleep(self.newborn_for() + self.world.below(bound)).await;
                }
                After::Again { back_off, .. } => {
                    if !back_off.is_zero() {
                        self.sleep(self.world.below(back_off.as_millis() as u64)).await;
                    }
                }
                After::Refuse(failure) | After::TryAlone(failure) => {
                    return Err(describe(&failure));
                }
                After::OutcomeUnknown(_) => return Err(problem(502, "outcome-unknown")),
            }
        }
    }

    async fn attempt(
        self: &Rc<Self>,
        portable: Portable,
        call: &mut Call,
        errand: &mut Errand,
    ) -> Result<LineEnd, Problem> {
        let portable = Portable { seen: errand.seen(call.may_have_run), ..portable };
        let named = errand.session().cloned();
        let look = named.as_ref().and_then(|named| self.look(named.sid, Look::of));
        let stays = || named.as_ref().is_some_and(|named| self.should_move(named.sid, named.n));
        let step = errand.next(look.unwrap_or_default(), &self.here(&self.view.borrow()), stays);
        let cfg = errand.token().cloned();
        let Some(Named { sid, n, .. }) = named else {
            return match step {
                Step::GiveUp => Err(problem(503, "no-progress")),
                _ => self.begin_session(portable, call).await,
            };
        };
        self.world
            .note(Some(sid), || format!("{}: request {} -> {step:?}", self.me, call.asked.id));
        Ok(match step {
            Step::GiveUp => return Err(problem(503, "no-progress")),
            Step::Begin => self.begin_session(portable, call).await?,
            Step::Forward { to, owner, hops_left, moves } => {
                let forward = Forward {
                    sid,
                    cfg,
                    owner,
                    n,
                    rid: portable.rid,
                    keyed: call.asked.keyed,
                    seen: portable.seen,
                    hops_left,
                    hand_over: moves.map(|_| self.inc),
                };
                self.forward(call, sid, forward, &to).await
            }
            Step::Relay { .. } => unreachable!("no key names the sessions of this world"),
            Step::AtOwner { take_over } => {
                let enter = match take_over {
                    None => Enter::AsOwner,
                    Some(_) => self.taking_over(sid, cfg),
                };
                self.at_owner(portable, call, sid, enter, None).await
            }
        })
    }

    /// For how many milliseconds more it is newborn.
    fn newborn_for(&self) -> u64 {
        (NEWBORN_FOR.as_millis() as u64).saturating_sub(self.world.now() - self.born)
    }

    fn here<'v>(&self, view: &'v View) -> Here<'v> {
        Here {
            me: self.inc,
            draining: self.draining.get(),
            newborn: self.newborn_for() > 0,
            hears_most: entry::hears_most(view, |peer| self.is_dead(peer)),
            view,
            wall: self.wall(),
        }
    }

    /// Without a majority, goes on from this peer's own copy where that is allowed.
    fn fork(self: &Rc<Self>, sid: SessionId) -> Option<SessionId> {
        let policy = &self.world.knobs.policy;
        let pair = self.view.borrow().peers().count() < 2;
        let record = match self.look(sid, |machine| alone(machine, self.inc, policy, pair))? {
            Alone::No => return None,
            Alone::Already(into) => return Some(into),
            Alone::From(record) => record,
        };
        let new = SessionId(self.world.bytes());
        let cfg = first_members(new, None, policy.copies, &self.here(&self.view.borrow()));
        self.with(new, true, |machine, ctx, out| machine.mint_from(ctx, cfg, &record, out))?;
        let into =
            self.with(sid, false, |machine, ctx, out| fence_at(machine, ctx, record.p, new, out))??;
        self.world.count("forked");
        self.world.forks.borrow_mut().push((sid, into));
        self.world.note(Some(sid), || format!("{} forks it as {new:?}", self.me));
        Some(into)
    }

    async fn begin_session(
        self: &Rc<Self>,
        portable: Portable,
        call: &mut Call,
    ) -> Result<LineEnd, Problem> {
        let place = self.place(call.asked.slot, &[]).await?;
        let executor = match &place {
            Place::Here => None,
            Place::There(peer) => self.incarnation_of(peer),
        };
        let sid = SessionId(self.world.bytes());
        let copies = self.world.knobs.policy.copies;
        let cfg = first_members(sid, executor, copies, &self.here(&self.view.borrow()));
        Ok(self.at_owner(portable, call, sid, Enter::Beginning(cfg), Some(place)).await)
    }

    fn taking_over(&self, sid: SessionId, token: Option<Config>) -> Enter {
        Enter::TakingOver { token, peers: self.whom_to_ask(sid) }
    }

    async fn at_owner(
        self: &Rc<Self>,
        portable: Portable,
        call: &mut Call,
        sid: SessionId,
        enter: Enter,
        mut place: Option<Place>,
    ) -> LineEnd {
        let asked = call.asked.clone();
        let submit = |ticket| Submit {
            ticket,
            rid: portable.rid,
            fingerprint: asked.fingerprint,
            keyed: asked.keyed,
            seen: portable.seen,
            safe: asked.is_safe() && !asked.keyed,
        };
        let mut line = self.enqueue(sid, submit, enter);
        let mut reruns = Reruns::default();
        let mut tried: Vec<PeerId> = Vec::new();
        let mut held: Option<Served> = None;
        loop {
            match line.next().await {
                Told::Turn => {
                    let chosen = match place.take() {
                        Some(place) => place,
                        None => match self.place(asked.slot, &tried).await {
                            Ok(place) => place,
                            Err(problem) => return LineEnd::Problem(problem),
                        },
                    };
                    let executor = match &chosen {
                        Place::Here => Some(self.inc),
                        Place::There(peer) => self.incarnation_of(peer),
                    };
                    match executor {
                        Some(executor) => line.begin(executor),
                        None => return LineEnd::Elsewhere(None),
                    }
                }
                Told::Again => held = None,
                Told::Execute { executor, exec } => {
                    let ran = if executor == self.inc {
                        self.execute_for_line(call, &line, &exec).await
                    } else {
                        self.execute_there(call, &line, executor, exec, &mut tried).await
                    };
                    match ran {
                        Ok(Some(served)) => held = Some(served),
                        Ok(None) => reruns.came_to_nothing(),
                        Err(problem) => return LineEnd::Problem(problem),
                    }
                }
                Told::Release { hint } => {
                    let Some(mut served) = held.take() else { continue };
                    let hint = Hint { cfg: hint.cfg, owner: hint.owner, n: hint.n };
                    served.entry = Some(self.entry_for(sid, hint));
                    return LineEnd::Served(Box::new(served));
                }
                Told::Replay { stored, hint } => {
                    self.world.count("replayed");
                    let response = match stored {
                        Stored::Response(response) => response,
                        Stored::TooLarge => {
                            return LineEnd::Problem(problem(409, "applied-too-large-to-repeat"));
                        }
                        Stored::Applied => {
                            return LineEnd::Problem(problem(502, "applied-answer-lost"));
                        }
                        // Its apps write nothing by commands.
                        Stored::Unknown => {
                            return LineEnd::Problem(problem(
                                409,
                                "idempotency-key-outcome-unknown",
                            ));
                        }
                    };
                    let mut served = Served::here(self, response);
                    served.replayed = true;
                    let hint = Hint { cfg: hint.cfg, owner: hint.owner, n: hint.n };
                    served.entry = Some(self.entry_for(sid, hint));
                    return LineEnd::Served(Box::new(served));
                }
                Told::Fail(failure) => match reruns.failed(&failure, call.has_body) {
                    Rerun::Again => line = self.enqueue(sid, submit, Enter::AsOwner),
                    Rerun::GiveUp => return LineEnd::Problem(problem(503, "no-progress")),
                    Rerun::No => return LineEnd::Failed(failure),
                },
                Told::Redirect(to) => return LineEnd::Elsewhere(to),
            }
        }
    }

    async fn execute_for_line(
        self: &Rc<Self>,
        call: &mut Call,
        line: &InLine,
        exec: &Exec,
    ) -> Result<Option<Served>, Problem> {
        match self.execute_here(call, line.sid, exec).await {
            Ok((response, done)) => {
                line.executed(Outcome::from(done));
                Ok(Some(Served::here(self, response)))
            }
            Err(LocalError::NotReady) => {
                line.executed(Outcome::Failed);
                Ok(None)
            }
            Err(LocalError::Refused(done)) => {
                line.executed(Outcome::from(done));
                Ok(None)
            }
            Err(LocalError::Failed | LocalError::BodyGone) => {
                line.executed(Outcome::Failed);
                Err(problem(502, "app-failed"))
            }
        }
    }

    async fn execute_there(
        self: &Rc<Self>,
        call: &mut Call,
        line: &InLine,
        executor: Incarnation,
        exec: Exec,
        tried: &mut Vec<PeerId>,
    ) -> Result<Option<Served>, Problem> {
        let to =
            self.view.borrow().by_incarnation(&executor).map(|belief| belief.news.peer.clone());
        let Some(to) = to else {
            line.executed(Outcome::Failed);
            return Ok(None);
        };
        match self.ask(&to, call, HopKind::Exec { sid: line.sid, exec }).await {
            Ok(HopReply { response, session: ReplySession::Done(done), served_by }) => {
                line.executed(Outcome::from(done));
                let mut served = Served::here(self, response);
                served.served_by = served_by;
                Ok(Some(served))
            }
            Ok(_) => {
                line.executed(Outcome::Failed);
                Err(problem(502, "outcome-unknown"))
            }
            Err(HopError::Refused(HopRefusal::Exec(done))) => {
                line.executed(Outcome::from(done));
                Ok(None)
            }
            Err(error) => {
                line.executed(Outcome::Failed);
                after_failed_hop(call, &error)?;
                tried.push(to);
                Ok(None)
            }
        }
    }

    async fn forward(
        self: &Rc<Self>,
        call: &mut Call,
        sid: SessionId,
        forward: Forward,
        to: &PeerId,
    ) -> LineEnd {
        match self.ask(to, call, HopKind::Forward(forward)).await {
            Ok(reply) => {
                let mut served = Served::here(self, reply.response);
                served.served_by = reply.served_by;
                if let ReplySession::Committed { hint, replayed } = reply.session {
                    served.replayed = replayed;
                    self.gave(sid, hint.n);
                    served.entry = Some(self.entry_for(sid, hint));
                }
                LineEnd::Served(Box::new(served))
            }
            Err(HopError::Refused(HopRefusal::NotOwner { claim })) => {
                self.with(sid, false, |machine, _, _| machine.note_claim(claim));
                LineEnd::Elsewhere(claim)
            }
            Err(HopError::Refused(HopRefusal::Lost(failure))) => LineEnd::Failed(failure),
            Err(HopError::Refused(HopRefusal::Problem(problem))) => LineEnd::Problem(problem),
            Err(error) => match after_failed_hop(call, &error) {
                Ok(()) => LineEnd::Elsewhere(None),
                Err(problem) => LineEnd::Problem(problem),
            },
        }
    }

    fn entry_for(&self, sid: SessionId, hint: Hint) -> Entry {
        Entry {
            app: app_name(SHOP),
            sid,
            kind: Kind::Portable { cfg: hint.cfg, owner: hint.owner, n: hint.n },
            expiry: self.wall().after(self.world.knobs.policy.ttl),
        }
    }

    async fn serve_forwarded(
        self: &Rc<Self>,
        call: &mut Call,
        forward: &Forward,
    ) -> Result<Served, HopRefusal> {
        let sid = forward.sid;
        if let Some(cfg) = forward.cfg.as_ref().filter(|_| forward.n == 0 && !forward.keyed) {
            let look = self.look(sid, Look::of).unwrap_or_default();
            if is_void(cfg, look, &self.here(&self.view.borrow())) {
                return Err(HopRefusal::Lost(Failure::Lost { ran: false }));
            }
        }
        let has_token = forward.cfg.is_some();
        let answer =
            |machine: Option<&Session>| answer_forward(machine, self.inc, forward.owner, has_token);
        let answer =
            self.look(sid, |machine| answer(Some(machine))).unwrap_or_else(|| answer(None));
        let enter = match answer {
            Forwarded::Serve { take_over: false } => Enter::AsOwner,
            Forwarded::Serve { take_over: true } => self.taking_over(sid, forward.cfg.clone()),
            Forwarded::NotOwner { claim, .. } => return Err(HopRefusal::NotOwner { claim }),
        };
        let portable =
            Portable { rid: forward.rid, seen: forward.seen, hops_left: forward.hops_left };
        let end = self.at_owner(portable, call, sid, enter, None).await;
        if let Some(to) = forward.hand_over {
            self.world.count("handed over");
            self.with(sid, false, |machine, ctx, out| machine.hand_over(ctx, to, out));
        }
        match end {
            LineEnd::Served(served) => Ok(*served),
            LineEnd::Elsewhere(_) => {
                let claim = self.look(sid, |machine| machine.claim()).flatten();
                Err(HopRefusal::NotOwner { claim })
            }
            LineEnd::Failed(failure) if is_for_entry(&failure) => Err(HopRefusal::Lost(failure)),
            LineEnd::Failed(failure) => Err(HopRefusal::Problem(describe(&failure))),
            LineEnd::Problem(problem) => Err(HopRefusal::Problem(problem)),
        }
    }
}

/// Whether the request may go elsewhere after a hop that brought no response.
fn after_failed_hop(call: &Call, error: &HopError) -> Result<(), Problem> {
    let app_may_have_seen_it = match error {
        HopError::Unreachable => false,
        HopError::Refused(HopRefusal::AppFailed) => true,
        HopError::Refused(_) => false,
        HopError::Broken => true,
    };
    let asked = &call.asked;
    let portable = asked.slot == SHOP;
    let again = may_retry(
        asked.is_safe(),
        asked.keyed,
        EffectsMode::Anything,
        portable,
        app_may_have_seen_it,
    );
    if again && call.has_body {
        return Ok(());
    }
    Err(match error {
        HopError::Refused(HopRefusal::AppFailed) => problem(502, "app-failed"),
        HopError::Refused(_) => problem(502, "hop-refused"),
        HopError::Unreachable => problem(502, "hop-unreachable"),
        HopError::Broken => problem(502, "outcome-unknown"),
    })
}

fn describe(failure: &Failure) -> Problem {
    match failure {
        Failure::QueueFull => problem(503, "session-queue-full"),
        Failure::NoMajority { ran: false } => problem(503, "session-no-majority"),
        Failure::NoMajority { ran: true }
        | Failure::Lost { ran: true }
        | Failure::Deposed { .. } => problem(502, "outcome-unknown"),
        Failure::FingerprintDiffers => problem(422, "idempotency-key-reused"),
        Failure::KeyInUse => problem(409, "idempotency-key-in-use"),
        Failure::BelowFloor => problem(409, "outcome-unknown"),
        Failure::Lost { ran: false } | Failure::WentOn { .. } => problem(503, "session-lost"),
        Failure::Absent => problem(404, "absent"),
        Failure::TooManyRetries => problem(503, "session-no-executor"),
        Failure::Ended => problem(409, "session-ended"),
        Failure::ExecutionFailed => problem(502, "execution-failed"),
    }
}
