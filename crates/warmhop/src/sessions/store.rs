//! The striped store of session machines. It feeds each machine its events, carries its effects
//! to the links and to the requests that wait, and wakes it when it asks to be woken.
//!
//! Two sessions wait for each other only if they are in one stripe, and a stripe's lock is never held
//! across an await.

mod asked;
mod line;
mod room;
mod waking;

use std::collections::{BTreeSet, HashSet};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use lru::LruCache;
use tokio::sync::Notify;
use tracing::debug;
use warmhop_core::affinity::{MoveCounter, Owner};
use warmhop_core::config::SessionPolicy;
use warmhop_core::ids::{AppName, Incarnation, Now, Position, SessionId, SessionKey, WallTime};
use warmhop_core::session::census::Census;
use warmhop_core::session::entry::{Enter, Look};
use warmhop_core::session::message::{BodyRef, Config, MEMBERS_MAX, Message, NackReason};
use warmhop_core::session::{Ctx, Effect, Outcome, Process, Session, Submit, Ticket};

use self::asked::FirstAsked;
pub(crate) use self::line::{AsOwner, Begun, InLine, NoRoom};
use self::room::copy_asked_for;
use self::waking::LOOK_THROUGH_EVERY;
use crate::links::wire::SessionFrame;
use crate::observe::clock::Clock;
use crate::observe::failpoint;
use crate::observe::metrics::Metrics;
use crate::sessions::dead::Dead;
use crate::sessions::events::{self, Event, EventSender};
use crate::sessions::losses::Losses;
use crate::sessions::memory::{FullPeers, Memory};
use crate::sessions::table::{Processes, Table, TableEntry};

pub(crate) const STRIPES: usize = 64;
/// Sessions that are to be woken within this time get a timer.
const FILED_WITHIN: Duration = Duration::from_secs(90);
/// How many sessions each stripe counts moves for.
const MOVES_MAX: usize = 1024;
/// The most sessions that this peer holds. Further ones are refused and counted.
const SESSIONS_MAX: usize = 4_000_000;
/// How many sessions at most wait for repair to check their members and their owner. If more do, repair
/// checks all sessions.
const TO_LOOK_AT_MAX: usize = 16 * 1024;
/// An allocation for more effects than this is not kept.
const EFFECTS_KEPT_MAX: usize = 8;
/// How long an empty session that a client's token names is kept as it is; after that its next
/// request asks the other members whether they know more.
const EMPTY_KEPT_FOR: Duration = Duration::from_secs(60);

/// Carries a frame to its addressee and to others, best effort.
pub(crate) type SendFrame = Box<dyn Fn(&[Incarnation], SessionFrame) + Send + Sync>;

pub(crate) struct Store {
    me: Incarnation,
    policy: ArcSwap<SessionPolicy>,
    clock: Clock,
    metrics: Arc<Metrics>,
    stripes: Box<[Mutex<Stripe>]>,
    send: SendFrame,
    tickets: AtomicU64,
    /// Shared by the stripes: what one of them hears of other peers' clocks matters to all.
    stamp_heard: AtomicU64,
    /// Whether this process has heard of everyone, however young it is.
    has_met_all: AtomicBool,
    /// The processes that this one knows.
    census: ArcSwap<Census>,
    /// Processes that are gone for good because their peers were started again.
    dead: Mutex<Dead>,
    /// Sessions that may lack copies or an owner: taken over here, with a member that lags behind,
    /// given up to another, or promised to one that does not own them yet.
    to_look_at: Mutex<HashSet<SessionKey>>,
    /// There were more of those than [`TO_LOOK_AT_MAX`].
    look_at_all: AtomicBool,
    /// How many sessions no other peer holds a copy of.
    sole: AtomicU64,
    /// How many bytes all of them take.
    memory: Memory,
    /// The peers that have no room for copies.
    full: FullPeers,
    losses: Losses,
    first_asked: FirstAsked,
    sooner: Notify,
    next_wake_ms: AtomicU64,
}

/// A request that joins or leaves a session's line in the same step as a change to its machine.
enum Lines<'a> {
    /// None.
    Stay,
    /// A request joins; an empty session is kept until the time named at least.
    Join(Ticket, EventSender, Now),
    /// The same, if the machine is as wanted; otherwise nothing is done.
    JoinIf(&'a dyn Fn(&Session) -> bool, Ticket, EventSender, Now),
    /// The request with this ticket gets no more events.
    Leave(Ticket),
}

struct Stripe {
    processes: Processes,
    sessions: Table,
    /// The sessions to be woken soon. The others are found when the stripe is scanned: a timer for each
    /// would take more memory than a small session's own state.
    wakes: BTreeSet<(Now, SessionKey)>,
    look_through_at: Now,
    moves: LruCache<SessionKey, MoveCounter>,
    /// The allocation for the effects of one step is reused for the next.
    effects: Vec<Effect>,
}

impl Store {
    pub(crate) fn new(
        me: Incarnation,
        policy: SessionPolicy,
        clock: Clock,
        metrics: Arc<Metrics>,
        send: SendFrame,
    ) -> Arc<Self> {
        let memory = Memory::new(policy.memory_bytes_max);
        let moves = NonZeroUsize::new(MOVES_MAX).expect("a positive constant");
        let stripes = (0u32..)
            .take(STRIPES)
            .map(|at| {
                Mutex::new(Stripe {
                    processes: Processes::default(),
                    sessions: Table::default(),
                    wakes: BTreeSet::new(),
                    // One after the other, so that none of them takes long.
                    look_through_at: clock.now().after(LOOK_THROUGH_EVERY * at / STRIPES as u32),
                    moves: LruCache::new(moves),
                    effects: Vec::new(),
                })
            })
            .collect();
        Arc::new(Self {
            me,
            policy: ArcSwap::from_pointee(policy),
            clock,
            metrics,
            stripes,
            send,
            tickets: AtomicU64::new(1),
            stamp_heard: AtomicU64::new(0),
            has_met_all: AtomicBool::new(false),
            census: ArcSwap::default(),
            dead: Mutex::new(Dead::new(me)),
            to_look_at: Mutex::default(),
            look_at_all: AtomicBool::new(false),
            sole: AtomicU64::new(0),
            memory,
            full: FullPeers::default(),
            losses: Losses::default(),
            first_asked: FirstAsked::default(),
            sooner: Notify::new(),
            next_wake_ms: AtomicU64::new(u64::MAX),
        })
    }

    /// The memory that sessions use here, and its bound.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) fn policy(&self) -> Guard<Arc<SessionPolicy>> {
        self.policy.load()
    }

    /// Applies `policy` from now on, except for the cookie, which stays the same.
    pub(crate) fn change_policy(&self, mut policy: SessionPolicy) {
        policy.cookie = self.policy().cookie.clone();
        self.memory.may_take(policy.memory_bytes_max);
        self.policy.store(Arc::new(policy));
        self.sooner.notify_one();
    }

    /// Notes which processes exist.
    pub(crate) fn count(&self, census: Census) {
        if **self.census.load() != census {
            self.census.store(Arc::new(census));
        }
    }

    /// The processes that this one knows.
    pub(crate) fn census(&self) -> Arc<Census> {
        self.census.load_full()
    }

    fn stripe(&self, key: &SessionKey) -> MutexGuard<'_, Stripe> {
        // Ids are random, or digests: their beginnings are spread as evenly as a hash, and a scan
        // of all sessions follows the order of their ids.
        let at = usize::from(key.sid.0[0]) * STRIPES / 256;
        self.stripes[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the machine of `key`, which is created if `create` says so, and carries out
    /// its effects. `None` if there is no such machine.
    pub(crate) fn with<R>(
        &self,
        key: &SessionKey,
        create: bool,
        work: impl FnOnce(&mut Session, &mut Ctx<'_>, &mut Vec<Effect>) -> R,
    ) -> Option<R> {
        let (result, outgoing) = self.with_held_back(key, create, Lines::Stay, work)?;
        self.deliver(key, outgoing);
        Some(result)
    }

    /// This peer's knowledge of the session of `key`. Changes nothing.
    pub(crate) fn look(&self, key: &SessionKey) -> Option<Look> {
        self.read(key, |machine| Look::among(machine, &self.census.load()))
    }

    /// The result of `read` for the machine of `key`; `None` if there is none. It changes nothing,
    /// which makes it much cheaper than [`Store::with`].
    pub(crate) fn read<R>(&self, key: &SessionKey, read: impl FnOnce(&Session) -> R) -> Option<R> {
        self.stripe(key).sessions.get_mut(key).map(|entry| read(&entry.machine))
    }

    /// As [`Store::with`], but returns the messages for the caller to send.
    fn with_held_back<R>(
        &self,
        key: &SessionKey,
        create: bool,
        lines: Lines<'_>,
        work: impl FnOnce(&mut Session, &mut Ctx<'_>, &mut Vec<Effect>) -> R,
    ) -> Option<(R, Vec<(Incarnation, Message)>)> {
        let mut outgoing = Vec::new();
        let mut stripe = self.stripe(key);
        let Stripe { processes, sessions, wakes, effects: kept, .. } = &mut *stripe;
        let entry = if create {
            self.entry(key, sessions, processes.of(&key.app))?
        } else {
            sessions.get_mut(key)?
        };
        match lines {
            Lines::Stay => {}
            Lines::JoinIf(wanted, ..) if !wanted(&entry.machine) => return None,
            // The ticket is known before its first event can be sent.
            Lines::Join(ticket, events, keep_empty_until)
            | Lines::JoinIf(_, ticket, events, keep_empty_until) => {
                entry.join(ticket, events, keep_empty_until);
            }
            Lines::Leave(ticket) => entry.leave(ticket),
        }
        let process = processes.of(&key.app);
        process.stamp_heard = self.stamp_heard.load(Ordering::Relaxed);
        // It seldom changes: a look costs less than another reference.
        let census = self.census.load();
        if !Arc::ptr_eq(&process.census, &census) {
            process.census = Guard::into_inner(census);
        }
        process.has_met_all = self.has_met_all.load(Ordering::Relaxed);
        let at = self.clock.both();
        let policy = self.policy();
        let mut ctx = Ctx {
            me: self.me,
            now: at.0,
            wall: at.1,
            policy: &policy,
            process: &mut *process,
            dice: rand::random(),
        };
        let mut effects = std::mem::take(kept);
        let before = failpoint::Before::of(&entry.machine);
        let held = entry.machine.held_at();
        let result = work(&mut entry.machine, &mut ctx, &mut effects);
        self.stamp_heard.fetch_max(process.stamp_heard, Ordering::Relaxed);
        if process.has_met_all != self.has_met_all.load(Ordering::Relaxed) {
            self.has_met_all.store(process.has_met_all, Ordering::Relaxed);
        }
        before.passed(&entry.machine, &effects);
        self.carry_out(key, entry, &mut effects, &mut outgoing);
        if effects.capacity() <= EFFECTS_KEPT_MAX {
            *kept = effects;
        }
        if entry.counted == 0 || entry.machine.held_at() != held {
            self.memory.counts(&mut entry.counted, Some(&entry.machine));
        }
        if self.settle(key, entry, wakes, at) {
            sessions.remove(key);
        }
        drop(stripe);
        Some((result, outgoing))
    }

    fn deliver(&self, key: &SessionKey, mut outgoing: Vec<(Incarnation, Message)>) {
        if outgoing.len() == 2 {
            self.first_asked.spare(self.me, key, &mut outgoing, self.clock.now());
        }
        let mut outgoing = outgoing.into_iter().peekable();
        while let Some((to, message)) = outgoing.next() {
            // Processes that are gone do not answer messages: this answers for them.
            if message.is_question() && self.is_dead(&to) {
                self.with(key, false, |machine, ctx, out| {
                    machine.on_message(ctx, to, Message::DEAD_LETTER, out);
                });
                continue;
            }
            let (mut others, mut count) = ([to; MEMBERS_MAX], 0);
            let is_alike = |(to, it): &(Incarnation, Message)| {
                is_same_offer(it, &message) && !self.is_dead(to)
            };
            while count < others.len()
                && let Some((other, _)) = outgoing.next_if(is_alike)
            {
                (others[count], count) = (other, count + 1);
            }
            (self.send)(&others[..count], SessionFrame { key: key.clone(), to, message });
        }
    }

    fn dead(&self) -> MutexGuard<'_, Dead> {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether everyone that may know of a session has answered this process.
    pub(crate) fn has_met_all(&self) -> bool {
        self.has_met_all.load(Ordering::Relaxed)
    }

    /// Whether a process is known to be gone for good.
    pub(crate) fn is_dead(&self, peer: &Incarnation) -> bool {
        self.dead().contains(peer)
    }

    /// A process said goodbye: it is gone for good, its votes with it.
    pub(crate) fn peer_dead(&self, life: Incarnation) {
        self.dead().ended(life);
    }

    /// A process was heard of; the former process of its peer, if there was one, is gone for good,
    /// its votes with it.
    pub(crate) fn peer_lives(&self, life: Incarnation, former: Option<Incarnation>) {
        self.dead().lives(life, former);
    }

    /// The entry of `key`, created if there is none; `None` if there is no room.
    fn entry<'s>(
        &self,
        key: &SessionKey,
        sessions: &'s mut Table,
        process: &Process,
    ) -> Option<&'s mut TableEntry> {
        let room = SESSIONS_MAX / STRIPES;
        let (entry, made) = sessions.get_or_make(key, process, room)?;
        if made {
            self.metrics.sessions_held.inc();
        }
        Some(entry)
    }

    fn carry_out(
        &self,
        key: &SessionKey,
        entry: &mut TableEntry,
        effects: &mut Vec<Effect>,
        outgoing: &mut Vec<(Incarnation, Message)>,
    ) {
        for effect in effects.drain(..) {
            let (ticket, event) = match effect {
                Effect::Send { to, message } => {
                    outgoing.push((to, message));
                    continue;
                }
                Effect::Owned { ballot } => {
                    debug!(session = %key, %ballot, "owned");
                    if ballot.round > 1 {
                        self.metrics.takeovers.inc();
                    }
                    self.look_at(key);
                    continue;
                }
                Effect::Lagging | Effect::FewCopies | Effect::Claimed => {
                    self.look_at(key);
                    continue;
                }
                Effect::Deposed { by } => {
                    debug!(session = %key, by = %by, "another peer has taken the session over");
                    self.metrics.depositions.inc();
                    self.look_at(key);
                    continue;
                }
                Effect::GaveUp => {
                    debug!(session = %key, "no majority answered the takeover in time");
                    self.look_at(key);
                    continue;
                }
                Effect::Located { .. } | Effect::Opened { .. } => continue,
                Effect::Lost { stamp } => {
                    self.losses.count(key, stamp, &self.metrics.sessions_lost);
                    continue;
                }
                Effect::Invited { .. } => continue,
                Effect::Turn { ticket } => (ticket, Event::Turn),
                Effect::Execute { ticket, executor, exec } => {
                    (ticket, Event::Execute { executor, exec })
                }
                Effect::Release { ticket, hint } => {
                    self.metrics.releases.inc();
                    (ticket, Event::Release { hint })
                }
                Effect::Replay { ticket, stored, hint } => (ticket, Event::Replay { stored, hint }),
                Effect::Fail { ticket, failure } => (ticket, Event::Fail(failure)),
                Effect::Again { ticket } => (ticket, Event::Again),
                Effect::Redirect { ticket, to } => (ticket, Event::Redirect(to)),
            };
            let is_last = event.is_last();
            if let Some(waiting) = entry.waiting(ticket) {
                waiting.send(event);
            }
            if is_last {
                entry.leave(ticket);
            }
        }
    }

    /// Files the machine's next wake. Returns whether the machine has nothing left to remember, and
    /// is to be dropped.
    fn settle(
        &self,
        key: &SessionKey,
        entry: &mut TableEntry,
        wakes: &mut BTreeSet<(Now, SessionKey)>,
        (now, wall): (Now, WallTime),
    ) -> bool {
        let owns = entry.machine.is_owner();
        if owns != entry.was_owner {
            entry.was_owner = owns;
            if owns {
                self.metrics.sessions_owned.inc()
            } else {
                self.metrics.sessions_owned.dec()
            };
        }
        let sole = entry.machine.is_held_alone(self.me);
        if sole != entry.was_sole {
            entry.was_sole = sole;
            if sole {
                self.sole.fetch_add(1, Ordering::Relaxed);
            } else {
                self.sole.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let idle = entry.is_idle();
        let empty = idle && entry.machine.is_disposable();
        let gone =
            idle && (entry.machine.forgotten() || (empty && entry.keep_empty_until() <= now));
        let wake = match entry.machine.next_wake(now, wall) {
            _ if gone => None,
            wake if empty => {
                Some(wake.map_or(entry.keep_empty_until(), |at| at.min(entry.keep_empty_until())))
            }
            wake => wake,
        };
        entry.rest();
        let wake = wake.filter(|at| *at <= now.after(FILED_WITHIN)).map(|at| at.max(Now(1)));
        // A session in use asks for another time with each step of each request, and is hardly ever
        // woken. Until it rests, one that is filed too early is left: it comes to nothing.
        let suffices = |filed: Now| !idle && filed > now && wake.is_none_or(|at| filed <= at);
        if wake != entry.wake() && !entry.wake().is_some_and(suffices) {
            if let Some(old) = entry.wake() {
                wakes.remove(&(old, key.clone()));
            }
            if let Some(new) = wake {
                wakes.insert((new, key.clone()));
                if new.0 < self.next_wake_ms.fetch_min(new.0, Ordering::Relaxed) {
                    self.sooner.notify_one();
                }
            }
            entry.set_wake(wake);
        }
        if gone {
            self.memory.counts(&mut entry.counted, None);
            self.metrics.sessions_held.dec();
            if owns {
                self.metrics.sessions_owned.dec();
            }
            if sole {
                self.sole.fetch_sub(1, Ordering::Relaxed);
            }
        }
        gone
    }

    /// A frame from another peer.
    pub(crate) fn on_frame(&self, from: Incarnation, frame: SessionFrame) {
        let SessionFrame { key, to, message } = frame;
        if to != self.me {
            if message.is_question() {
                (self.send)(&[], SessionFrame { key, to: from, message: Message::DEAD_LETTER });
            }
            return;
        }
        if let Some(bytes) = copy_asked_for(&message)
            && !self.memory.has_room(bytes, None)
        {
            let held = self.read(&key, Session::bytes_held);
            if !self.memory.has_room(bytes, held) {
                self.metrics.copies_refused.inc();
                (self.send)(&[], SessionFrame { key, to: from, message: Message::NO_ROOM });
                return;
            }
        }
        if matches!(message, Message::Nack { reason: NackReason::Full, .. }) {
            let bytes = self.read(&key, Session::bytes_offered).unwrap_or_default();
            self.full.note(from, bytes, self.clock.now());
        }
        self.first_asked.answered(from, key.sid, &message, self.clock.now());
        self.with(&key, message.makes_a_copy(), |machine, ctx, out| {
            if matches!(message, Message::Locate { .. }) {
                let members = machine.config().map(Config::everyone).unwrap_or_default();
                for peer in members.into_iter().filter(|peer| self.is_dead(peer)) {
                    machine.peer_dead(peer);
                }
            }
            machine.on_message(ctx, from, message, out);
        });
    }

    /// A peer's process is gone.
    pub(crate) fn peer_lost(&self, dead: Incarnation) {
        for key in
            self.keys_where(|machine| machine.members().contains(&dead) || machine.load() > 0)
        {
            self.with(&key, false, |machine, ctx, out| machine.peer_lost(ctx, dead, out));
        }
    }

    fn keys_where(&self, wanted: impl Fn(&Session) -> bool) -> Vec<SessionKey> {
        self.stripes.iter().flat_map(|stripe| keys_in(stripe, &wanted)).collect()
    }

    /// The non-empty sessions that this peer owns.
    pub(crate) fn owned(&self) -> Vec<SessionKey> {
        self.keys_where(|machine| machine.is_owner() && machine.version() > 0)
    }

    /// The sessions of which a record is held here, which are not over, and whose members are as `wanted`.
    pub(crate) fn held(&self, wanted: impl Fn(&[Incarnation]) -> bool) -> Vec<SessionKey> {
        let wall = self.clock.wall();
        self.keys_where(|machine| {
            let lasts = machine.ends().is_some_and(|end| end > wall);
            machine.holds_copy() && lasts && wanted(machine.members())
        })
    }

    /// The store's parts, for [`Store::kept_in`].
    pub(crate) fn stripes(&self) -> std::ops::Range<usize> {
        0..self.stripes.len()
    }

    /// The sessions of one stripe that this peer owns or holds a record of.
    pub(crate) fn kept_in(&self, stripe: usize) -> Vec<SessionKey> {
        keys_in(&self.stripes[stripe], |machine| machine.version() > 0)
    }

    /// The sessions that came to need repair since the last call, and whether there were more.
    pub(crate) fn take_to_look_at(&self) -> (HashSet<SessionKey>, bool) {
        let noted = std::mem::take(&mut *self.noted());
        (noted, self.look_at_all.swap(false, Ordering::Relaxed))
    }

    fn noted(&self) -> MutexGuard<'_, HashSet<SessionKey>> {
        self.to_look_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The results of `pick` for the records of `app` that are held in one stripe.
    pub(crate) fn records_in<R>(
        &self,
        stripe: usize,
        app: &AppName,
        pick: impl Fn(SessionId, &Session) -> Option<R>,
    ) -> Vec<R> {
        let Some(stripe) = self.stripes.get(stripe) else { return Vec::new() };
        let stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
        let of_app = stripe.sessions.iter().filter(|entry| entry.app() == app);
        of_app.filter_map(|entry| pick(entry.machine.sid(), &entry.machine)).collect()
    }

    fn look_at(&self, key: &SessionKey) {
        let mut waiting = self.noted();
        if waiting.len() < TO_LOOK_AT_MAX {
            waiting.insert(key.clone());
        } else {
            self.look_at_all.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn counts(&self) -> (u64, u64) {
        let mut owned = 0;
        let mut held = 0;
        for stripe in &self.stripes {
            let stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            for entry in stripe.sessions.iter() {
                owned += u64::from(entry.machine.is_owner());
                held += u64::from(entry.machine.holds_copy());
            }
        }
        (owned, held)
    }

    /// For how many sessions this is true.
    pub(crate) fn count_where(&self, wanted: impl Fn(&Session) -> bool) -> u64 {
        let counted = |stripe: &Mutex<Stripe>| {
            let stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            stripe.sessions.iter().filter(|entry| wanted(&entry.machine)).count() as u64
        };
        self.stripes.iter().map(counted).sum()
    }

    /// Whether a request of `key` that arrived at this peer, which does not own it, with `n` in
    /// its token, should bring the ownership here.
    pub(crate) fn should_move(&self, key: &SessionKey, n: u64) -> bool {
        // It is not known how large it is.
        if self.memory.is_half_full() {
            return false;
        }
        let mut stripe = self.stripe(key);
        let now = self.clock.now();
        let counter = stripe.moves.get_or_insert_mut(key.clone(), MoveCounter::new);
        let moves = counter.arrived(Owner::Serving, n, now, &self.policy());
        if moves {
            counter.moved(now);
        }
        moves
    }

    /// Whether this peer, which owns `key` and does not run its app, may give it to one that does.
    pub(crate) fn may_give(&self, key: &SessionKey) -> bool {
        let now = self.clock.now();
        let mut stripe = self.stripe(key);
        stripe.moves.get(key).is_none_or(|counter| counter.may_give(now, &self.policy()))
    }

    /// Another peer gives `key` to this one.
    pub(crate) fn given(&self, key: &SessionKey) {
        let now = self.clock.now();
        let mut stripe = self.stripe(key);
        stripe.moves.get_or_insert_mut(key.clone(), MoveCounter::new).moved(now);
    }

    /// A response of `key` left through this peer with `n` in its token.
    pub(crate) fn gave(&self, key: &SessionKey, n: u64) {
        if let Some(counter) = self.stripe(key).moves.get_mut(key) {
            counter.answered(n);
        }
    }

    /// A number of `key` that was chosen before now, the highest known here.
    pub(crate) fn surely_chosen(&self, key: &SessionKey) -> u64 {
        let given = self.stripe(key).moves.peek(key).map_or(0, MoveCounter::given);
        given.max(self.read(key, Session::surely_chosen).unwrap_or_default())
    }

    /// Puts a request in line for its session.
    pub(crate) fn enqueue(
        self: &Arc<Self>,
        key: &SessionKey,
        submit: impl FnOnce(Ticket) -> Submit,
        enter: Enter,
    ) -> Option<InLine> {
        self.enqueue_to_run(key, submit, enter, false).map(|(line, _)| line)
    }

    /// The same; `at_once` begins its run here in the same step, if it has its turn at once.
    pub(crate) fn enqueue_to_run(
        self: &Arc<Self>,
        key: &SessionKey,
        submit: impl FnOnce(Ticket) -> Submit,
        enter: Enter,
        at_once: bool,
    ) -> Option<(InLine, Begun)> {
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        let (sender, events) = events::channel();
        let submit = submit(ticket);
        let keep_empty_until = match enter {
            // A search by key need not remember that there was no session.
            Enter::Beginning(_) | Enter::Seeking { .. } => Now::default(),
            Enter::AsOwner | Enter::TakingOver { .. } => self.clock.now().after(EMPTY_KEPT_FOR),
        };
        let joins = Lines::Join(ticket, sender, keep_empty_until);
        let (begun, held_back) = self.with_held_back(key, true, joins, |machine, ctx, out| {
            machine.enter(ctx, submit, enter, out);
            if at_once {
                line::turned_at_once(machine, ctx, ticket, self.me, out)
            } else {
                Begun::No
            }
        })?;
        let (store, key) = (Arc::clone(self), key.clone());
        let (running, is_out) = (None, false);
        let mut line = InLine { store, key, ticket, events, running, held_back, is_out };
        line.notes(&begun);
        if !matches!(begun, Begun::Runs(..)) {
            line.send_held_back();
        }
        Some((line, begun))
    }

    fn leave(&self, key: &SessionKey, ticket: Ticket, running: Option<Option<Position>>) {
        let leaves = Lines::Leave(ticket);
        let left = self.with_held_back(key, false, leaves, |machine, ctx, out| {
            if let Some(p) = running {
                machine.executed(ctx, ticket, p, Outcome::Failed, out);
            }
            machine.cancel(ctx, ticket, out);
        });
        if let Some(((), outgoing)) = left {
            self.deliver(key, outgoing);
        }
    }
}

/// Whether both offer the same record, and as much of it.
fn is_same_offer(one: &Message, other: &Message) -> bool {
    match (one, other) {
        (
            Message::Accept { p, cfg, body: BodyRef::Full(body) },
            Message::Accept { p: at, cfg: other_cfg, body: BodyRef::Full(other) },
        ) => p == at && Arc::ptr_eq(cfg, other_cfg) && Arc::ptr_eq(body, other),
        _ => false,
    }
}

fn keys_in(stripe: &Mutex<Stripe>, wanted: impl Fn(&Session) -> bool) -> Vec<SessionKey> {
    let stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
    stripe.sessions.iter().filter(|entry| wanted(&entry.machine)).map(TableEntry::key).collect()
}
