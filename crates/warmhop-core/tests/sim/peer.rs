//! One peer: the real machines of its apps and sessions, its real view, and around them what the
//! mesh crate's runtime does, re-enacted call by call. Requests are in `serve.rs`, sessions in
//! `store.rs`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use warmhop_core::app::{AppEffect, AppEvent, AppMachine, StopReason};
use warmhop_core::config::{AppPolicy, SessionMode};
use warmhop_core::ids::{AppName, Incarnation, Now, PeerId, SessionId, WallTime};
use warmhop_core::keep::keeps_ready;
use warmhop_core::session::census::Census;
use warmhop_core::session::entry::Stillness;
use warmhop_core::session::repair::{
    Around, Held, Mend, Scope, Watch, by_rank, countable, counts_on, full, heir, may_count_on,
    silent_for_a_while,
};
use warmhop_core::view::{AppNews, AppState, FormerLife, Liveness, News, PeerNews, Source, View};

use crate::store::Store;
use crate::world::{Life, Mailbox, To, World, sleep};

/// The world's beginning on the wall.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// What the monotonic clock of a process shows when it begins.
const BORN_AT: Now = Now(50_000);
const HEARTBEAT_MS: u64 = 600;
/// A link that is silent for so long is down.
const LINK_SILENT_MS: u64 = 2_500;
const GOSSIP_MS: u64 = 1_000;
const SWEEP_MS: u64 = 1_000;
const FORGET_DEAD_AFTER: Duration = Duration::from_secs(600);
const INVITE_AGAIN_MS: u64 = 250;
const HAND_OVER_WITHIN_MS: u64 = 10_000;
const REPLACED_WITHIN_MS: u64 = 10_000;
const REPLACED_WITHIN_MS_MAX: u64 = 60_000;

/// The apps of every peer: one with portable sessions, one without any.
pub(crate) const SHOP: usize = 0;
pub(crate) const PAGE: usize = 1;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) in_flight: u32,
    pub(crate) latency_us: u32,
}

pub(crate) struct Peer {
    pub(crate) world: Rc<World>,
    pub(crate) node: usize,
    pub(crate) me: PeerId,
    pub(crate) inc: Incarnation,
    pub(crate) life: Life,
    generation: u64,
    pub(crate) born: u64,
    /// How long its monotonic clock was stopped.
    pub(crate) lag: Cell<u64>,
    pub(crate) dead: Cell<bool>,
    pub(crate) draining: Cell<bool>,
    pub(crate) view: RefCell<View>,
    own: RefCell<PeerNews>,
    /// What it passes on of others, as they wrote it.
    hearsay: RefCell<BTreeMap<(PeerId, Option<AppName>), News>>,
    /// What former lives of others said last of themselves, which is passed on as well.
    former: RefCell<BTreeMap<Incarnation, News>>,
    heard_at: RefCell<BTreeMap<usize, (Incarnation, Now)>>,
    /// How far the heartbeat of each process has come, by its own count, as gossip passes it on.
    heartbeats: RefCell<BTreeMap<Incarnation, u64>>,
    changed: RefCell<Vec<Mailbox<()>>>,
    pub(crate) store: RefCell<Store>,
    pub(crate) slots: [RefCell<Slot>; 2],
    pub(crate) loads: RefCell<BTreeMap<(PeerId, AppName), (Load, Now)>>,
    watch: RefCell<Watch>,
    /// How often another fell silent.
    silences: Cell<u64>,
    pub(crate) stillness: Cell<Stillness>,
    /// Whom each of the others said that it hears, and when.
    pub(crate) hears: RefCell<BTreeMap<PeerId, (Vec<Incarnation>, Now)>>,
    under_way: RefCell<BTreeMap<SessionId, Scope>>,
}

/// One app on this peer.
pub(crate) struct Slot {
    pub(crate) name: AppName,
    pub(crate) policy: AppPolicy,
    machine: AppMachine,
    /// The copy that takes requests.
    copy: Option<u64>,
    /// Requests in flight at each copy that runs, those that take no more included.
    copies: BTreeMap<u64, u32>,
    starting: Option<(u64, u64)>,
    used_at: Now,
    pub(crate) waiting: usize,
    latency_us: u32,
    seq: u64,
}

pub(crate) fn app_name(slot: usize) -> AppName {
    AppName::new(["shop", "page"][slot]).expect("a valid name")
}

impl Peer {
    /// Starts a process on `node` and everything that runs on it as long as it lives.
    pub(crate) fn start(world: &Rc<World>, node: usize) -> Rc<Self> {
        let me = crate::name(node);
        let wall =
            (EPOCH_MS + world.now()).saturating_add_signed(world.nodes.borrow()[node].wall_skew);
        let random = u32::try_from(world.random() >> 32).unwrap_or_default();
        let inc = Incarnation::of(&me, WallTime(wall), random);
        let life = world.begin_life(node, inc);
        // Its lives are ordered by the wall clock, raised where that went back.
        let generation = wall + 1_000_000 * life;
        let own = PeerNews {
            peer: me.clone(),
            incarnation: inc,
            generation,
            seq: 1,
            mesh: SocketAddr::from((Ipv4Addr::LOCALHOST, 7000 + node as u16)),
            http: None,
            zone: None,
            draining: false,
            knows_more: world.knobs.seeds[node].len() > 1,
            young: true,
            full: false,
            sole: false,
        };
        let slot = |at: usize| {
            let policy = world.knobs.apps[node].clone().with(|made| {
                made.session = [SessionMode::Portable, SessionMode::None][at];
                made.max_wait = Duration::from_secs(10);
            });
            RefCell::new(Slot {
                name: app_name(at),
                machine: AppMachine::new(policy.clone(), world.random()),
                policy,
                copy: None,
                copies: BTreeMap::new(),
                starting: None,
                used_at: Now::default(),
                waiting: 0,
                latency_us: 0,
                seq: 0,
            })
        };
        let peer = Rc::new(Self {
            world: Rc::clone(world),
            node,
            me: me.clone(),
            inc,
            life,
            generation,
            born: world.now(),
            lag: Cell::new(0),
            dead: Cell::new(false),
            draining: Cell::new(false),
            view: RefCell::new(View::new(me)),
            own: RefCell::new(own),
            hearsay: RefCell::default(),
            former: RefCell::default(),
            heard_at: RefCell::default(),
            heartbeats: RefCell::default(),
            changed: RefCell::default(),
            store: RefCell::default(),
            slots: [slot(SHOP), slot(PAGE)],
            loads: RefCell::default(),
            watch: RefCell::default(),
            silences: Cell::default(),
            stillness: Cell::default(),
            hears: RefCell::default(),
            under_way: RefCell::default(),
        });
        peer.store.borrow_mut().peer_lives(inc, None);
        world.nodes.borrow_mut()[node].peer = Some(Rc::clone(&peer));
        world.note(None, || format!("{} starts as {inc:?}", peer.me));
        for at in [SHOP, PAGE] {
            peer.publish(at);
        }
        world.spawn(Some(life), heartbeat(Rc::clone(&peer)));
        world.spawn(Some(life), gossip(Rc::clone(&peer)));
        world.spawn(Some(life), upkeep(Rc::clone(&peer)));
        world.spawn(Some(life), crate::ways::ask(Rc::clone(&peer)));
        peer
    }

    pub(crate) fn now(&self) -> Now {
        Now(BORN_AT.0 + self.world.now() - self.born - self.lag.get())
    }

    pub(crate) fn wall(&self) -> WallTime {
        let skew = self.world.nodes.borrow()[self.node].wall_skew;
        WallTime((EPOCH_MS + self.world.now()).saturating_add_signed(skew))
    }

    pub(crate) async fn sleep(&self, ms: u64) {
        sleep(&self.world, To::Life(self.life), ms).await;
    }

    /// Waits until anything changed, or for so long.
    pub(crate) async fn changed_within(self: &Rc<Self>, ms: u64) {
        let bell = Mailbox::new();
        self.changed.borrow_mut().push(bell.clone());
        let timer = bell.clone();
        self.world.after(ms, To::Life(self.life), move |_| timer.put(()));
        bell.take().await;
    }

    pub(crate) fn has_changed(&self) {
        let waiting = std::mem::take(&mut *self.changed.borrow_mut());
        waiting.iter().for_each(|bell| bell.put(()));
    }

    // What it hears of others.

    /// Something came over the link to the process `inc` on `node`.
    pub(crate) fn heard_from(self: &Rc<Self>, node: usize, inc: Incarnation) {
        let before = self.heard_at.borrow_mut().insert(node, (inc, self.now()));
        if let Some((former, _)) = before.filter(|(former, _)| *former != inc) {
            let peer = crate::name(node);
            self.view.borrow_mut().lost(&peer, &former, self.now());
            self.peer_lost(former);
        }
    }

    pub(crate) fn on_news(self: &Rc<Self>, news: News, source: Source) {
        let peer = news.peer().clone();
        if peer == self.me {
            // Others remember a former life.
            if let News::Peer(it) = &news
                && it.incarnation != self.inc
            {
                let former = if it.draining { FormerLife::Left } else { FormerLife::Ended };
                self.view.borrow_mut().note_former(self.inc, former, self.now());
            }
            return;
        }
        let app = match &news {
            News::Peer(_) => None,
            News::App { news, .. } => Some(news.app.clone()),
        };
        let before = self.hearsay.borrow_mut().insert((peer.clone(), app), news.clone());
        if let (Some(News::Peer(before)), News::Peer(news)) = (before, &news)
            && before.generation < news.generation
        {
            self.former.borrow_mut().insert(before.incarnation, News::Peer(before));
        }
        let now = self.now();
        let begun = {
            let mut view = self.view.borrow_mut();
            let before = view.life(&peer);
            view.apply(news, now, source);
            if source == Source::FirstHand {
                view.alive(&peer, now);
            }
            view.life(&peer).filter(|life| Some(*life) != before).map(|life| (life, before))
        };
        if let Some((life, former)) = begun {
            self.store.borrow_mut().peer_lives(life, former);
        }
        self.tell_how_it_stands();
        self.has_changed();
    }

    /// Who is there, as far as it knows.
    pub(crate) fn census(&self) -> Census {
        let view = self.view.borrow();
        let seeds = &self.world.knobs.seeds[self.node];
        let unmet = seeds.iter().filter(|node| view.peer(&crate::name(**node)).is_none());
        Census::of(&view, self.now()).with_unmet(unmet.count()).with_age(self.age()).with_silences(
            &view,
            self.now(),
            self.age(),
        )
    }

    /// It notices whether it was suspended.
    pub(crate) fn runs(&self) {
        let mut stillness = self.stillness.get();
        stillness.runs(self.now(), self.wall());
        self.stillness.set(stillness);
    }

    /// For how long its process has lived, by its own clock.
    fn age(&self) -> Duration {
        self.now().since(BORN_AT)
    }

    fn tell_how_it_stands(&self) {
        let census = self.census();
        let knows_more = census.knows_more(&self.view.borrow());
        let stands = (knows_more, census.is_young, self.is_full(), self.is_sole_holder());
        let mut own = self.own.borrow_mut();
        if (own.knows_more, own.young, own.full, own.sole) != stands {
            (own.knows_more, own.young, own.full, own.sole) = stands;
            own.seq += 1;
        }
    }

    /// Whether the link to the process `inc` on `node` is up, as far as this peer can tell.
    pub(crate) fn has_link(&self, node: usize, inc: Incarnation) -> bool {
        let now = self.now();
        self.heard_at.borrow().get(&node).is_some_and(|(who, at)| {
            *who == inc && now.since(*at) < Duration::from_millis(LINK_SILENT_MS)
        })
    }

    fn look_for_silence(&self) {
        let now = self.now();
        for (node, (inc, at)) in self.heard_at.borrow().iter() {
            let mut view = self.view.borrow_mut();
            let peer = crate::name(*node);
            if now.since(*at) >= Duration::from_millis(LINK_SILENT_MS)
                && view.life(&peer) == Some(*inc)
                && view.suspect(&peer, now)
            {
                self.silences.set(self.silences.get() + 1);
            }
        }
    }

    /// The process on `node` said goodbye.
    pub(crate) fn heard_goodbye(self: &Rc<Self>, node: usize, inc: Incarnation) {
        self.view.borrow_mut().left(&crate::name(node), &inc, self.now());
        self.store.borrow_mut().peer_dead(inc);
        self.peer_lost(inc);
        self.silences.set(self.silences.get() + 1);
        self.has_changed();
    }

    /// Gossip has reported the heartbeats of others.
    pub(crate) fn on_heartbeats(&self, counts: &BTreeMap<Incarnation, u64>) {
        let now = self.now();
        for (inc, count) in counts.iter().filter(|(inc, _)| **inc != self.inc) {
            let known = self.heartbeats.borrow_mut().insert(*inc, *count);
            if known > Some(*count) {
                self.heartbeats.borrow_mut().extend(known.map(|known| (*inc, known)));
            } else if known < Some(*count)
                && let Some(node) = self.world.node_of(*inc)
            {
                self.view.borrow_mut().heard_by_others(&crate::name(node), inc, now);
            }
        }
    }

    // What it announces about itself.

    fn own_news(&self) -> Vec<News> {
        let own = self.own.borrow();
        let mut news = vec![News::Peer(own.clone())];
        for slot in &self.slots {
            let slot = slot.borrow();
            news.push(News::App {
                peer: self.me.clone(),
                incarnation: self.inc,
                generation: self.generation,
                news: AppNews {
                    eta_ms: slot.machine.eta(self.now()).map(|eta| eta.as_millis() as u32),
                    in_flight: slot.in_flight(),
                    ..AppNews::of(slot.name.clone(), slot.seq, slot.state())
                },
            });
        }
        news
    }

    fn tell_everyone(&self) {
        let news = Rc::new(self.own_news());
        for node in 0..self.world.knobs.peers {
            self.world.send_news(self, node, Rc::clone(&news));
        }
    }

    fn publish(&self, at: usize) {
        self.slots[at].borrow_mut().seq += 1;
        self.tell_everyone();
    }

    fn publish_draining(&self) {
        self.draining.set(true);
        {
            let mut own = self.own.borrow_mut();
            own.draining = true;
            own.seq += 1;
        }
        self.tell_everyone();
        self.has_changed();
    }

    // Its apps.

    pub(crate) fn tell(self: &Rc<Self>, at: usize, event: AppEvent) {
        let now = self.now();
        let (effects, wake) = {
            let mut slot = self.slots[at].borrow_mut();
            let (used_at, in_flight) = (slot.used_at, slot.in_flight());
            slot.machine.used(used_at);
            let effects = slot.machine.on(event, now, in_flight);
            (effects, slot.machine.next_wake())
        };
        let mut changed = false;
        for effect in effects {
            match effect {
                AppEffect::Start { attempt } => {
                    let task =
                        self.world.spawn(Some(self.life), start_copy(Rc::clone(self), at, attempt));
                    self.slots[at].borrow_mut().starting = Some((attempt, task));
                }
                AppEffect::CancelStart { attempt } => self.cancel_start(at, attempt),
                AppEffect::Stop { attempt, grace } => {
                    self.cancel_start(at, attempt);
                    {
                        let mut slot = self.slots[at].borrow_mut();
                        if slot.copy == Some(attempt) {
                            slot.copy = None;
                        }
                    }
                    self.world
                        .spawn(Some(self.life), stop_copy(Rc::clone(self), at, attempt, grace));
                }
                AppEffect::EndNow { attempt } => {
                    self.slots[at].borrow_mut().copies.remove(&attempt);
                }
                AppEffect::Changed => changed = true,
            }
        }
        if changed {
            self.world.note(None, || {
                format!("{}'s {} is {:?}", self.me, app_name(at), self.slots[at].borrow().state())
            });
            self.publish(at);
            self.has_changed();
        }
        if let Some(wake) = wake {
            let me = Rc::clone(self);
            let span = wake.0.saturating_sub(now.0).max(1);
            self.world.after(span, To::Life(self.life), move |_| {
                let due = me.slots[at].borrow().machine.next_wake() == Some(wake);
                if due {
                    me.tell(at, AppEvent::Tick);
                }
            });
        }
    }

    fn cancel_start(&self, at: usize, attempt: u64) {
        let mut slot = self.slots[at].borrow_mut();
        if let Some((_, task)) = slot.starting.take_if(|(current, _)| *current == attempt) {
            self.world.cancel(task);
        }
    }

    /// The app's process ends by itself, with what runs on it.
    pub(crate) fn crash_app(self: &Rc<Self>, at: usize) {
        let attempt = {
            let mut slot = self.slots[at].borrow_mut();
            let Some(attempt) = slot.copy.take() else { return };
            slot.copies.remove(&attempt);
            attempt
        };
        self.tell(at, AppEvent::Exited { attempt, reason: "it crashed".into(), failed: true });
    }

    // What it looks after.

    /// Looks through the sessions here once, or only through those that came here since, where
    /// nobody came or went. Returns whether there is more to do soon.
    fn sweep(self: &Rc<Self>) -> bool {
        let alive = countable(&self.view.borrow(), self.inc);
        let noted = self.take_to_look_at();
        let mut under_way = std::mem::take(&mut *self.under_way.borrow_mut());
        for sid in noted {
            under_way.entry(sid).or_insert(Scope::Noted);
        }
        let full = full(&self.view.borrow());
        if self.watch.borrow_mut().begin(&alive, full, self.silences.get()) == Scope::All {
            under_way = self.kept().into_iter().map(|sid| (sid, Scope::All)).collect();
        }
        under_way.retain(|sid, scope| self.mend(&alive, *sid, *scope));
        let busy = !under_way.is_empty();
        *self.under_way.borrow_mut() = under_way;
        busy
    }

    fn mend(self: &Rc<Self>, alive: &BTreeSet<Incarnation>, sid: SessionId, scope: Scope) -> bool {
        let decided = {
            let view = self.view.borrow();
            let Some(held) = self.look(sid, |machine| Held::of(machine, &view)) else {
                return false;
            };
            let policy = &self.world.knobs.policy;
            let leaves = self.draining.get();
            let around = Around {
                me: self.inc,
                now: self.now(),
                wall: self.wall(),
                view: &view,
                alive,
                policy,
                leaves,
            };
            self.watch.borrow_mut().look(sid, &held, &around, scope, |peer| self.is_dead(peer))
        };
        match decided {
            Mend::Nothing => return false,
            Mend::Remind => {
                self.with(sid, false, |machine, ctx, out| machine.remind(ctx, out));
                return false;
            }
            Mend::Reassure => {
                self.with(sid, false, |machine, ctx, out| machine.reassure(ctx, out));
                return false;
            }
            Mend::Rest => {
                self.with(sid, false, |machine, _, _| machine.rest());
                return false;
            }
            Mend::Later => {}
            Mend::Ask => {
                self.world.count("claimants asked");
                self.with(sid, false, |machine, ctx, out| machine.ask_claimant(ctx.now, out));
            }
            Mend::AskEveryone => {
                self.world.count("members looked for");
                let peers = self.whom_to_ask(sid);
                self.with(sid, false, |machine, _, out| machine.locate(&peers, out));
            }
            Mend::Change { gone, newcomer } => {
                self.world.count("member changes wanted");
                self.with(sid, false, |machine, ctx, out| {
                    machine.change_members_soon(ctx, gone, newcomer, out)
                });
            }
            Mend::LeaveOut(gone) => {
                self.world.count("left out");
                self.with(sid, false, |machine, ctx, out| machine.leave_out_soon(ctx, gone, out));
            }
            Mend::TakeOverAgain => {
                self.world.count("taken over again");
                let peers = self.whom_to_ask(sid);
                self.with(sid, false, |machine, ctx, out| {
                    machine.take_over_again(ctx, &peers, out);
                });
            }
            Mend::Succeed => {
                self.world.count("successions");
                let peers = self.whom_to_ask(sid);
                self.with(sid, false, |machine, ctx, out| {
                    if !machine.is_owner() && !machine.is_taking_over() {
                        let round = machine.seen_round();
                        machine.take_over(ctx, None, round, &peers, out);
                    }
                });
            }
        }
        true
    }

    /// Every process that may know of the session, best by rank.
    pub(crate) fn whom_to_ask(&self, sid: SessionId) -> Vec<Incarnation> {
        by_rank(sid, &self.view.borrow(), |_| true)
    }

    fn keeps_ready(&self, at: usize) -> bool {
        let slot = self.slots[at].borrow();
        let draining = self.draining.get();
        let view = self.view.borrow();
        keeps_ready(&slot.name, &slot.policy, slot.state(), draining, &self.me, &view)
    }

    /// How many sessions count on this peer's copy although another peer could hold it.
    fn copies_to_replace(&self) -> usize {
        let able = countable(&self.view.borrow(), self.inc);
        let silent = silent_for_a_while(&self.view.borrow(), self.now());
        let store = self.store.borrow();
        let machines = store.entries.values().map(|entry| &entry.machine);
        let counts = |members: &[Incarnation]| counts_on(members, self.inc, &able, &silent);
        let lasts =
            |it: &warmhop_core::session::Session| it.ends().is_some_and(|end| end > self.wall());
        machines.filter(|it| it.holds_copy() && lasts(it) && counts(it.members())).count()
    }
}

impl Slot {
    pub(crate) fn state(&self) -> AppState {
        match (self.copy, self.machine.state()) {
            (Some(_), _) => AppState::Ready,
            (None, AppState::Ready) => AppState::Stopping,
            (None, state) => state,
        }
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.copies.values().sum()
    }

    pub(crate) fn eta(&self, now: Now) -> Option<Duration> {
        self.machine.eta(now)
    }

    pub(crate) fn load(&self) -> Load {
        Load { in_flight: self.in_flight(), latency_us: self.latency_us }
    }

    /// The copy that takes requests, with this one counted as in flight.
    pub(crate) fn enter(&mut self, now: Now) -> Option<u64> {
        let attempt = self.copy?;
        *self.copies.get_mut(&attempt)? += 1;
        self.used_at = now;
        Some(attempt)
    }

    pub(crate) fn starts_in(&self, now: Now) -> Option<Duration> {
        self.machine.starts_in(now)
    }

    /// Whether the copy lives on.
    pub(crate) fn still_runs(&self, attempt: u64) -> bool {
        self.copies.contains_key(&attempt)
    }

    pub(crate) fn exit(&mut self, attempt: u64, took_ms: u64) {
        if let Some(in_flight) = self.copies.get_mut(&attempt) {
            *in_flight -= 1;
        }
        self.latency_us = (took_ms as u32 * 1000).max(1);
    }
}

async fn start_copy(peer: Rc<Peer>, at: usize, attempt: u64) {
    let world = Rc::clone(&peer.world);
    let (from, to) = world.knobs.start_ms;
    let fails = world.faults_on.get() && world.chance(8);
    peer.sleep(world.between(from, to)).await;
    peer.slots[at].borrow_mut().starting = None;
    if fails {
        let (reason, output) = ("it could not bind its port".into(), Vec::new());
        peer.tell(at, AppEvent::StartFailed { attempt, reason, output });
        return;
    }
    {
        let mut slot = peer.slots[at].borrow_mut();
        slot.copy = Some(attempt);
        slot.copies.insert(attempt, 0);
    }
    peer.tell(at, AppEvent::Started { attempt });
}

async fn stop_copy(peer: Rc<Peer>, at: usize, attempt: u64, grace: Duration) {
    let mut left = grace.as_millis() as u64;
    while left > 0 && peer.slots[at].borrow().copies.get(&attempt).is_some_and(|n| *n > 0) {
        peer.sleep(20).await;
        left = left.saturating_sub(20);
    }
    peer.slots[at].borrow_mut().copies.remove(&attempt);
    peer.sleep(peer.world.between(1, 100)).await;
    peer.tell(at, AppEvent::Stopped { attempt });
}

/// Shows every other peer that this one lives, and looks who does not.
async fn heartbeat(peer: Rc<Peer>) {
    loop {
        peer.runs();
        peer.tell_everyone();
        peer.look_for_silence();
        peer.sleep(HEARTBEAT_MS + peer.world.below(50)).await;
    }
}

/// Passes on what it knows of others to one of them at a time.
async fn gossip(peer: Rc<Peer>) {
    loop {
        peer.sleep(GOSSIP_MS + peer.world.below(200)).await;
        let to = peer.world.below(peer.world.knobs.peers as u64) as usize;
        let news = peer.hearsay.borrow().values().cloned().collect::<Vec<News>>();
        let former = peer.former.borrow().values().cloned().collect::<Vec<News>>();
        let news = [former, news].concat();
        *peer.heartbeats.borrow_mut().entry(peer.inc).or_default() += 1;
        let heartbeats = peer.heartbeats.borrow().clone();
        peer.world.send_gossip(&peer, to, Rc::new(news), heartbeats);
    }
}

async fn upkeep(peer: Rc<Peer>) {
    peer.sleep(1_500).await;
    loop {
        let busy = peer.sweep();
        for at in [SHOP, PAGE] {
            let kept = peer.keeps_ready(at);
            if kept || peer.slots[at].borrow().machine.is_kept() {
                peer.tell(at, AppEvent::Keep(kept));
            }
        }
        let now = peer.now();
        let unheard: Vec<PeerId> = peer.view.borrow().unheard(now).cloned().collect();
        for who in unheard {
            peer.view.borrow_mut().give_up(&who, now);
        }
        peer.view.borrow_mut().forget_dead(now, FORGET_DEAD_AFTER);
        peer.sleep(SWEEP_MS / 4).await;
        if !busy {
            peer.changed_within(SWEEP_MS).await;
        }
    }
}

/// Leaves as an operator's stop makes a peer leave: gives its sessions away, then ends.
pub(crate) async fn drain(peer: Rc<Peer>) {
    peer.publish_draining();
    let end = peer.now().after(Duration::from_millis(HAND_OVER_WITHIN_MS));
    while peer.now() < end {
        let owned = peer.owned();
        let heirs_live = peer.view.borrow().live_peers().any(|(_, belief)| may_count_on(belief));
        if owned.is_empty() || !heirs_live {
            break;
        }
        for sid in owned {
            let to = heir(sid, &app_name(SHOP), &peer.view.borrow());
            if let Some(to) = to {
                peer.with(sid, false, |machine, ctx, out| machine.hand_off(ctx, to, out));
            }
        }
        peer.sleep(INVITE_AGAIN_MS).await;
    }
    let alive = || {
        let view = peer.view.borrow();
        view.live_peers().filter(|(_, belief)| belief.alive == Liveness::Alive).count()
    };
    let latest = peer.now().after(Duration::from_millis(REPLACED_WITHIN_MS_MAX));
    let mut end = peer.now().after(Duration::from_millis(REPLACED_WITHIN_MS));
    let (mut living, mut least) = (alive(), usize::MAX);
    loop {
        let left = peer.copies_to_replace();
        if left == 0 || peer.now() >= end {
            break;
        }
        peer.sleep(INVITE_AGAIN_MS).await;
        let still = alive();
        if still != living || left < least {
            end = peer.now().after(Duration::from_millis(REPLACED_WITHIN_MS)).min(latest);
        }
        (living, least) = (still, left.min(least));
    }
    peer.sleep(500).await;
    for at in [SHOP, PAGE] {
        peer.tell(at, AppEvent::StopWanted(StopReason::Drain));
    }
    peer.sleep(500).await;
    let (world, node, inc) = (Rc::clone(&peer.world), peer.node, peer.inc);
    for other in world.live_peers() {
        if other.node != node && !world.is_cut(node, other.node) {
            other.heard_goodbye(node, inc);
        }
    }
    // A task cannot end the life that it belongs to while it runs.
    world.clone().after(0, To::Life(peer.life), move |world| crate::faults::end(world, node));
}
