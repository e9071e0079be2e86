//! The sessions of one peer: re-enacts the mesh crate's store, with the same order of calls into
//! the real machines.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use warmhop_core::affinity::{MoveCounter, Owner};
use warmhop_core::ids::{Ballot, Incarnation, Now, Position, SessionId};
use warmhop_core::session::entry::Enter;
use warmhop_core::session::message::{BodyRef, Config, Exec, Message, NackReason, Stored};
use warmhop_core::session::{
    Ctx, Effect, Failure, Outcome, Process, Session, Submit, Ticket, TokenHint,
};

use crate::peer::Peer;
use crate::world::{Mailbox, To};

const EMPTY_KEPT_FOR: Duration = Duration::from_secs(60);

/// What a waiting request is answered.
#[derive(Debug)]
pub(crate) enum Told {
    Turn,
    Execute { executor: Incarnation, exec: Exec },
    Release { hint: TokenHint },
    Replay { stored: Stored, hint: TokenHint },
    Fail(Failure),
    Again,
    Redirect(Option<Ballot>),
}

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) process: Process,
    pub(crate) entries: BTreeMap<SessionId, Entry>,
    moves: BTreeMap<SessionId, MoveCounter>,
    ended: BTreeSet<Incarnation>,
    latest: BTreeMap<[u8; 6], Incarnation>,
    to_look_at: Vec<SessionId>,
    tickets: u64,
}

pub(crate) struct Entry {
    pub(crate) machine: Session,
    tickets: BTreeMap<Ticket, Mailbox<Told>>,
    wake: Option<Now>,
    keep_empty_until: Now,
    /// Stamps up to this one may have been forgotten by this entry: what the world knows of it.
    pub(crate) low: u64,
}

impl Peer {
    /// Runs `work` on the machine of `sid`, which is made if `create` says so, and carries out
    /// what it decides. `None` where there is no such machine, or no such process any more.
    pub(crate) fn with<R>(
        self: &Rc<Self>,
        sid: SessionId,
        create: bool,
        work: impl FnOnce(&mut Session, &mut Ctx<'_>, &mut Vec<Effect>) -> R,
    ) -> Option<R> {
        if self.dead.get() {
            return None;
        }
        let mut effects = Vec::new();
        let mut outgoing = Vec::new();
        let dice = self.world.random();
        let result = {
            let mut store = self.store.borrow_mut();
            let store = &mut *store;
            store.process.census = Arc::new(self.census());
            if create {
                store.entry(sid);
            }
            let entry = store.entries.get_mut(&sid)?;
            let mut ctx = Ctx {
                me: self.inc,
                now: self.now(),
                wall: self.wall(),
                policy: &self.world.knobs.policy,
                process: &mut store.process,
                dice,
            };
            let result = work(&mut entry.machine, &mut ctx, &mut effects);
            for effect in effects {
                self.carry_out(sid, effect, entry, &mut store.to_look_at, &mut outgoing);
            }
            self.settle(sid, store);
            result
        };
        self.deliver(sid, outgoing);
        Some(result)
    }

    fn carry_out(
        &self,
        sid: SessionId,
        effect: Effect,
        entry: &mut Entry,
        to_look_at: &mut Vec<SessionId>,
        outgoing: &mut Vec<(Incarnation, Message)>,
    ) {
        let world = &self.world;
        if !matches!(effect, Effect::Send { .. }) {
            world.note(Some(sid), || format!("{} decides {effect:?}", self.me));
        }
        let (ticket, answer) = match effect {
            Effect::Send { to, message } => {
                outgoing.push((to, message));
                return;
            }
            Effect::Owned { ballot } => {
                world.count(if ballot.round > 1 { "taken over" } else { "minted by fork" });
                to_look_at.push(sid);
                return;
            }
            Effect::FewCopies | Effect::Lagging | Effect::Claimed => return to_look_at.push(sid),
            Effect::Deposed { .. } => {
                to_look_at.push(sid);
                return world.count("deposed");
            }
            Effect::GaveUp => {
                to_look_at.push(sid);
                return world.count("gave up");
            }
            Effect::Located { .. } => return world.count("located"),
            Effect::Opened { .. } => return world.count("opened"),
            Effect::Lost { .. } => {
                world.count("lost");
                // Not while the store of this peer is at work.
                world.after(0, To::World, move |world| crate::registers::is_lost(world, sid));
                return;
            }
            Effect::Invited { .. } => return,
            Effect::Turn { ticket } => (ticket, Told::Turn),
            Effect::Execute { ticket, executor, exec } => {
                (ticket, Told::Execute { executor, exec })
            }
            Effect::Release { ticket, hint } => (ticket, Told::Release { hint }),
            Effect::Replay { ticket, stored, hint } => (ticket, Told::Replay { stored, hint }),
            Effect::Fail { ticket, failure } => (ticket, Told::Fail(failure)),
            Effect::Again { ticket } => (ticket, Told::Again),
            Effect::Redirect { ticket, to } => (ticket, Told::Redirect(to)),
        };
        if let Some(waiting) = entry.tickets.get(&ticket) {
            waiting.put(answer);
        }
    }

    /// Files the machine's next wake, or drops a machine that has nothing left to remember.
    fn settle(self: &Rc<Self>, sid: SessionId, store: &mut Store) {
        let Some(entry) = store.entries.get_mut(&sid) else { return };
        let now = self.now();
        let idle = entry.tickets.is_empty();
        let empty = idle && entry.machine.is_disposable();
        let gone = idle && (entry.machine.forgotten() || (empty && entry.keep_empty_until <= now));
        if gone {
            store.entries.remove(&sid);
            return;
        }
        let mut wake = entry.machine.next_wake(now, self.wall());
        if empty {
            wake = Some(wake.map_or(entry.keep_empty_until, |at| at.min(entry.keep_empty_until)));
        }
        if wake != entry.wake {
            entry.wake = wake;
            if let Some(at) = wake {
                let me = Rc::clone(self);
                // A machine that asks for the same instant again is woken a little later.
                let span = at.0.saturating_sub(now.0).max(1);
                self.world.after(span, To::Life(self.life), move |_| me.woken(sid, at));
            }
        }
    }

    fn woken(self: &Rc<Self>, sid: SessionId, at: Now) {
        let due = self.store.borrow_mut().entries.get_mut(&sid).is_some_and(|entry| {
            let due = entry.wake == Some(at);
            if due {
                entry.wake = None;
            }
            due
        });
        if due {
            self.with(sid, false, |machine, ctx, out| machine.on_timer(ctx, out));
        }
    }

    fn deliver(self: &Rc<Self>, sid: SessionId, outgoing: Vec<(Incarnation, Message)>) {
        for (to, message) in outgoing {
            // What nobody can receive any more is answered in their place.
            if message.is_question() && self.is_dead(to) {
                self.with(sid, false, |machine, ctx, out| {
                    machine.on_message(ctx, to, Message::DEAD_LETTER, out);
                });
            } else {
                self.world.send_frame(self, to, sid, message);
            }
        }
    }

    pub(crate) fn is_dead(&self, peer: Incarnation) -> bool {
        self.store.borrow().is_dead(peer)
    }

    /// A frame from another peer.
    pub(crate) fn on_frame(
        self: &Rc<Self>,
        from: Incarnation,
        to: Incarnation,
        sid: SessionId,
        message: Message,
    ) {
        if let Message::Invite { cfg } = &message {
            if to == self.inc && !self.draining.get() {
                let (cfg, peers) = (cfg.clone(), self.whom_to_ask(sid));
                self.with(sid, true, |machine, ctx, out| {
                    machine.on_invite(ctx, from, cfg, &peers, out);
                });
            }
            return;
        }
        let bytes = match &message {
            Message::Accept { body: BodyRef::Full(body), .. } => body.bytes(),
            Message::Locate { bytes, .. } => *bytes as usize,
            _ => 0,
        };
        if bytes > 0
            && !self.has_room()
            && self.look(sid, Session::bytes_held).unwrap_or_default() < bytes
        {
            self.world.count("copies refused");
            let reason = NackReason::Full;
            let refusal = Message::Nack { reason, promised: None, cfg: None, watermark: 0 };
            self.world.send_frame(self, from, sid, refusal);
            return;
        }
        let create = message.makes_a_copy();
        let members = self.look(sid, |machine| machine.config().map(Config::everyone)).flatten();
        let dead: Vec<_> =
            members.into_iter().flatten().filter(|peer| self.is_dead(*peer)).collect();
        self.with(sid, create, |machine, ctx, out| {
            if matches!(message, Message::Locate { .. }) {
                dead.into_iter().for_each(|peer| machine.peer_dead(peer));
            }
            machine.on_message(ctx, from, message, out);
        });
    }

    /// Whether there is room for one more copy.
    pub(crate) fn has_room(&self) -> bool {
        let Some(room) = self.world.room.borrow().get(&self.node).copied() else { return true };
        let store = self.store.borrow();
        store.entries.values().filter(|entry| entry.machine.holds_copy()).count() < room.copies
    }

    /// Whether it holds what nobody else does.
    pub(crate) fn is_sole_holder(&self) -> bool {
        let store = self.store.borrow();
        store.entries.values().any(|entry| entry.machine.is_held_alone(self.inc))
    }

    /// Whether it has no room, and says so.
    pub(crate) fn is_full(&self) -> bool {
        let says_so = self.world.room.borrow().get(&self.node).is_some_and(|room| room.is_known);
        says_so && !self.has_room()
    }

    /// A peer's process cannot be reached any more.
    pub(crate) fn peer_lost(self: &Rc<Self>, dead: Incarnation) {
        let concerned = |machine: &Session| machine.members().contains(&dead) || machine.load() > 0;
        for sid in self.sids_where(concerned) {
            self.with(sid, false, |machine, ctx, out| machine.peer_lost(ctx, dead, out));
        }
    }

    fn sids_where(&self, wanted: impl Fn(&Session) -> bool) -> Vec<SessionId> {
        let store = self.store.borrow();
        store.entries.iter().filter(|(_, e)| wanted(&e.machine)).map(|(sid, _)| *sid).collect()
    }

    pub(crate) fn owned(&self) -> Vec<SessionId> {
        self.sids_where(|machine| machine.is_owner() && machine.version() > 0)
    }

    pub(crate) fn kept(&self) -> Vec<SessionId> {
        self.sids_where(|machine| machine.version() > 0)
    }

    pub(crate) fn take_to_look_at(&self) -> Vec<SessionId> {
        std::mem::take(&mut self.store.borrow_mut().to_look_at)
    }

    /// Looks at a machine, if there is one, and changes nothing.
    pub(crate) fn look<R>(&self, sid: SessionId, look: impl FnOnce(&Session) -> R) -> Option<R> {
        self.store.borrow().entries.get(&sid).map(|entry| look(&entry.machine))
    }

    /// Whether a request that arrived here, with `n` in its token, should bring the ownership.
    pub(crate) fn should_move(&self, sid: SessionId, n: u64) -> bool {
        let now = self.now();
        let mut store = self.store.borrow_mut();
        let counter = store.moves.entry(sid).or_default();
        let moves = counter.arrived(Owner::Serving, n, now, &self.world.knobs.policy);
        if moves {
            counter.moved(now);
            self.world.count("moves wanted");
        }
        moves
    }

    /// A response left through this peer with `n` in its token.
    pub(crate) fn gave(&self, sid: SessionId, n: u64) {
        if let Some(counter) = self.store.borrow_mut().moves.get_mut(&sid) {
            counter.answered(n);
        }
    }

    /// A number that was chosen before now, the highest known here.
    pub(crate) fn surely_chosen(&self, sid: SessionId) -> u64 {
        let given = self.store.borrow().moves.get(&sid).map_or(0, MoveCounter::given);
        given.max(self.look(sid, Session::surely_chosen).unwrap_or_default())
    }

    /// Puts a request in line for its session.
    pub(crate) fn enqueue(
        self: &Rc<Self>,
        sid: SessionId,
        submit: impl FnOnce(Ticket) -> Submit,
        enter: Enter,
    ) -> InLine {
        let telling = Mailbox::new();
        let now = self.now();
        let ticket = {
            let mut store = self.store.borrow_mut();
            store.tickets += 1;
            let ticket = Ticket(store.tickets);
            let entry = store.entry(sid);
            entry.tickets.insert(ticket, telling.clone());
            let keep = match enter {
                Enter::Beginning(_) | Enter::Seeking { .. } => Now::default(),
                Enter::AsOwner | Enter::TakingOver { .. } => now.after(EMPTY_KEPT_FOR),
            };
            entry.keep_empty_until = entry.keep_empty_until.max(keep);
            ticket
        };
        let submit = submit(ticket);
        let in_line =
            InLine { peer: Rc::clone(self), sid, ticket, telling, running: RefCell::new(None) };
        self.with(sid, false, |machine, ctx, out| machine.enter(ctx, submit, enter, out));
        in_line
    }

    fn leave(self: &Rc<Self>, sid: SessionId, ticket: Ticket, running: Option<Option<Position>>) {
        if let Some(entry) = self.store.borrow_mut().entries.get_mut(&sid) {
            entry.tickets.remove(&ticket);
        }
        self.with(sid, false, |machine, ctx, out| {
            if let Some(p) = running {
                machine.executed(ctx, ticket, p, Outcome::Failed, out);
            }
            machine.cancel(ctx, ticket, out);
        });
    }
}

impl Store {
    /// A process said goodbye.
    pub(crate) fn peer_dead(&mut self, life: Incarnation) {
        self.ended.insert(life);
    }

    /// A process was heard of, and what its peer was before, if anything.
    pub(crate) fn peer_lives(&mut self, life: Incarnation, former: Option<Incarnation>) {
        self.ended.extend(former);
        self.ended.remove(&life);
        self.latest.insert(life.name(), life);
    }

    fn is_dead(&self, peer: Incarnation) -> bool {
        self.ended.contains(&peer)
            || self.latest.get(&peer.name()).is_some_and(|latest| peer.is_before(latest))
    }

    fn entry(&mut self, sid: SessionId) -> &mut Entry {
        let process = &self.process;
        self.entries.entry(sid).or_insert_with(|| Entry {
            machine: Session::new(sid, process),
            tickets: BTreeMap::new(),
            wake: None,
            keep_empty_until: Now::default(),
            low: process.watermark,
        })
    }
}

/// One request in line for its session; leaves the line when it is dropped, whatever happened.
pub(crate) struct InLine {
    peer: Rc<Peer>,
    pub(crate) sid: SessionId,
    ticket: Ticket,
    telling: Mailbox<Told>,
    /// The position being executed, while it is.
    running: RefCell<Option<Option<Position>>>,
}

impl InLine {
    pub(crate) async fn next(&self) -> Told {
        let answer = self.telling.take().await.unwrap_or(Told::Redirect(None));
        if let Told::Execute { exec, .. } = &answer {
            *self.running.borrow_mut() = Some(exec.p);
        }
        answer
    }

    pub(crate) fn begin(&self, executor: Incarnation) {
        self.peer.with(self.sid, false, |machine, ctx, out| {
            machine.begin(ctx, self.ticket, executor, out);
        });
    }

    pub(crate) fn executed(&self, outcome: Outcome) {
        let Some(p) = self.running.borrow_mut().take() else { return };
        self.peer.with(self.sid, false, |machine, ctx, out| {
            machine.executed(ctx, self.ticket, p, outcome, out);
        });
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.peer.leave(self.sid, self.ticket, self.running.take());
    }
}
