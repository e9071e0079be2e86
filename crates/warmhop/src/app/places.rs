//! The requests that wait here for a place at an app's copies: carries out what the core's
//! `FairQueue` decides.
//!
//! Requests that any copy can serve form one queue, those that are pinned to a peer another for
//! each: a request that could proceed must not wait for one that cannot. Requests that other peers
//! have sent here to wait for a place are among those pinned to this peer. The core's `Lanes` decides
//! which of the two queues that wait for the copy here gets its next place.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use warmhop_core::ids::{PeerId, SessionId};
use warmhop_core::queue::{FairQueue, Flow, Lane, Lanes, Since, Ticket};
use warmhop_core::route::{FULL_FOR, Queued};

/// One queue, and how each that waits in it is woken.
#[derive(Default)]
struct Line {
    queue: FairQueue,
    waiting: HashMap<Ticket, Arc<Notify>>,
    /// The one that was called and does not take the free place here.
    declines: Option<Ticket>,
}

/// Those in which anything waits, by the peer that their requests are pinned to.
#[derive(Default)]
struct Lines {
    by_pin: BTreeMap<Option<PeerId>, Line>,
    lanes: Lanes,
}

/// The queues of one app.
pub(crate) struct Places {
    me: PeerId,
    lines: Mutex<Lines>,
    /// Their number, readable without the lock.
    open: AtomicUsize,
}

/// Whose request this is: its client's, by the address that it came from, and its session's.
pub(crate) fn flow_of(from: Option<IpAddr>, session: Option<&SessionId>) -> Flow {
    // 0 means that the client is not known.
    let client = match from.map(|ip| ip.to_canonical()) {
        Some(IpAddr::V4(ip)) => 1 << 32 | u64::from(u32::from(ip)),
        // A client has as many addresses as it likes below its own network's prefix.
        Some(IpAddr::V6(ip)) => ((u128::from(ip) >> 64) as u64).max(1),
        None => 0,
    };
    let number = |sid: &SessionId| {
        sid.0.iter().fold(0_u64, |number, byte| number.rotate_left(8) ^ u64::from(*byte))
    };
    Flow { client, session: session.map_or(0, number) }
}

/// How a request that has no place is to wait for one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wait {
    /// No longer than this.
    pub(crate) at_most: Duration,
    /// As many wait as may.
    pub(crate) is_full: bool,
    /// Only its client's share keeps it from a place that is free.
    pub(crate) is_held_back: bool,
    /// It does not take the place that is free here.
    pub(crate) declines: bool,
}

/// A request's place in a queue, until it is dropped.
pub(crate) struct Turn {
    places: Arc<Places>,
    pinned_to: Option<PeerId>,
    flow: Flow,
    ticket: Ticket,
    woken: Arc<Notify>,
}

/// How a request has waited so far.
#[derive(Default)]
pub(crate) struct Waits {
    /// How long, in all.
    pub(crate) waited: Duration,
    /// Whose it is.
    pub(crate) flow: Flow,
    /// Peers that turned it away because of its client's share, and when.
    shut_at: Vec<(PeerId, Instant)>,
    /// It is not to start the app.
    pub(crate) never_wakes: bool,
    /// Its place in a queue. Once it has begun at a copy it lets the next one look.
    turn: Option<Turn>,
    /// When it had its turn, if it had it before and was turned away.
    had_turn: Option<Since>,
    /// The peer that it is sent to may let it wait.
    pub(crate) may_wait_there: bool,
    /// It goes to wait elsewhere only in its turn: where it did so before, as many waited as may.
    needs_turn: bool,
}

impl Places {
    pub(crate) fn new(me: PeerId) -> Self {
        Self { me, lines: Mutex::default(), open: AtomicUsize::new(0) }
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        if self.open.load(Ordering::SeqCst) == 0 {
            return 0;
        }
        self.lines().by_pin.values().map(|line| line.waiting.len()).sum()
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane of the requests that are pinned so, if they wait for the copy here.
    fn lane(&self, pinned_to: Option<&PeerId>) -> Option<Lane> {
        match pinned_to {
            None => Some(Lane::Any),
            Some(peer) => (*peer == self.me).then_some(Lane::Here),
        }
    }

    /// The line of a lane, if anything waits in it.
    fn line_of<'a>(&self, lines: &'a Lines, lane: Lane) -> Option<&'a Line> {
        lines.by_pin.get(&match lane {
            Lane::Any => None,
            Lane::Here => Some(self.me.clone()),
        })
    }

    /// Whether the next place here is for the other lane.
    fn is_not_here(&self, lines: &Lines, pinned_to: Option<&PeerId>) -> bool {
        let Some(lane) = self.lane(pinned_to) else { return false };
        let looks = |lane| self.line_of(lines, lane).is_some_and(Line::looks);
        looks(other(lane)) && !(looks(lane) && lines.lanes.next() == lane)
    }

    /// A place at the copy of `peer` has become free, which `client` had, where clients have shares.
    pub(crate) fn freed_at(&self, peer: &PeerId, client: Option<u64>) {
        if self.open.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut lines = self.lines();
        for pinned_to in [None, Some(peer.clone())] {
            let Some(line) = lines.by_pin.get_mut(&pinned_to) else { continue };
            if let Some(client) = client {
                line.queue.release(client);
            }
            line.declines = None;
            line.wake(line.queue.called());
        }
    }

    /// Whether a request that waits here takes the next place at the copy here.
    pub(crate) fn is_awaited(&self) -> bool {
        if self.open.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let lines = self.lines();
        let looks = |lane| self.line_of(&lines, lane).is_some_and(Line::looks);
        looks(Lane::Any) || looks(Lane::Here)
    }

    /// The place in line of a request that arrives now.
    fn look(&self, pinned_to: Option<&PeerId>, flow: Flow) -> Queued {
        if self.open.load(Ordering::SeqCst) == 0 {
            return Queued::default();
        }
        let lines = self.lines();
        let line = lines.by_pin.get(&pinned_to.cloned());
        Queued {
            // A newcomer is behind all of them.
            behind: line.is_some_and(|line| line.queue.is_before(flow)),
            displaces: lines.by_pin.values().any(|line| line.queue.gives_way_to(flow)),
            not_here: self.is_not_here(&lines, pinned_to),
            ..Queued::default()
        }
    }
}

fn other(lane: Lane) -> Lane {
    match lane {
        Lane::Any => Lane::Here,
        Lane::Here => Lane::Any,
    }
}

impl Lines {
    /// A request of another client stops waiting, in favour of this flow: of its own line, if that has
    /// one.
    fn give_way(&mut self, pinned_to: Option<&PeerId>, flow: Flow) {
        let own = pinned_to.cloned();
        let others = self.by_pin.keys().filter(|pin| **pin != own).cloned();
        for pin in std::iter::once(own.clone()).chain(others.collect::<Vec<_>>()) {
            let Some(line) = self.by_pin.get_mut(&pin) else { continue };
            let Some(gone) = line.queue.give_way_to(flow) else { continue };
            // It finds that it was removed, and is refused.
            if let Some(gone) = line.waiting.remove(&gone) {
                gone.notify_one();
            }
            return;
        }
    }
}

impl Waits {
    /// For a request that has just arrived.
    pub(crate) fn of(flow: Flow) -> Self {
        Self { flow, ..Self::default() }
    }

    /// The request's place in line, if it waits for a place at any copy, or at the one it is pinned to.
    pub(crate) fn standing(&self, places: &Places, pinned_to: Option<&PeerId>) -> Queued {
        match self.turn.as_ref().filter(|turn| turn.pinned_to.as_ref() == pinned_to) {
            Some(turn) => turn.standing(),
            None => {
                Queued { has_turn: self.had_turn.is_some(), ..places.look(pinned_to, self.flow) }
            }
        }
    }

    /// Has it wait for its turn. The first time it joins, and returns at once, since places may have
    /// become free meanwhile; afterwards it waits until it is woken, and no longer than may be, or than
    /// a moment if it is the one that looks for a place.
    pub(crate) async fn for_place(
        &mut self,
        places: &Arc<Places>,
        pinned_to: Option<&PeerId>,
        wait: Wait,
    ) {
        let turn = self.turn.take().filter(|turn| turn.pinned_to.as_ref() == pinned_to);
        let Some(turn) = turn else {
            let (flow, had_turn) = (self.flow, self.had_turn);
            self.turn = Some(Turn::join(places, pinned_to, flow, had_turn, wait.is_full));
            return;
        };
        let looks_after = match turn.settled(wait) {
            Settled::Behind => wait.at_most,
            Settled::Looks => wait.at_most.min(FULL_FOR),
            Settled::IsCalled | Settled::Gone => Duration::ZERO,
        };
        if !looks_after.is_zero() {
            let _ = tokio::time::timeout(looks_after, turn.woken.notified()).await;
        }
        self.turn = Some(turn);
    }

    /// It has waited so long at a peer where it may wait `at_most`, and got no place.
    pub(crate) fn waited_in_vain(&mut self, at: &PeerId, waited: Duration, at_most: Duration) {
        self.waited += waited;
        if waited < at_most {
            // As many wait there as may.
            self.is_shut_at(at);
            self.needs_turn = true;
        }
    }

    /// A peer has turned it away because of its client's share there.
    pub(crate) fn is_shut_at(&mut self, peer: &PeerId) {
        self.shut_at.retain(|(other, _)| other != peer);
        self.shut_at.push((peer.clone(), Instant::now()));
    }

    /// Whether a peer has done so just now.
    pub(crate) fn was_shut_at(&self, peer: &PeerId) -> bool {
        self.shut_at.iter().any(|(other, at)| other == peer && at.elapsed() < FULL_FOR)
    }

    /// Whether it may wait at another peer although it is not its turn here.
    pub(crate) fn needs_no_turn(&self) -> bool {
        !self.needs_turn
    }

    /// It has a place at the copy here.
    pub(crate) fn enters(&mut self) {
        if let Some(turn) = &self.turn {
            turn.takes_place();
        }
        self.over();
    }

    /// It waits for something else than a place.
    pub(crate) fn leaves(&mut self) {
        self.turn = None;
    }

    /// It has a place, or asks for one elsewhere.
    pub(crate) fn over(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.had_turn = Some(turn.since());
        }
    }
}

impl Line {
    /// Whether one of its requests looks for a place, and would take one here.
    fn looks(&self) -> bool {
        self.queue.called().is_some_and(|called| self.declines != Some(called))
    }

    fn wake(&self, ticket: Option<Ticket>) {
        if let Some(woken) = ticket.and_then(|ticket| self.waiting.get(&ticket)) {
            woken.notify_one();
        }
    }
}

/// Where a waiting request is in its line.
enum Settled {
    /// It is another's turn.
    Behind,
    /// It checks whether there is a place for it.
    Looks,
    /// It is its turn from now on.
    IsCalled,
    /// It had to give way.
    Gone,
}

impl Turn {
    /// Where the request is by now. The first request of each client also finds out whether its client
    /// is held back.
    fn settled(&self, wait: Wait) -> Settled {
        let Wait { is_held_back, declines, .. } = wait;
        let (ticket, flow) = (self.ticket, self.flow);
        let mut lines = self.places.lines();
        let line = lines.by_pin.get_mut(&self.pinned_to);
        let Some(line) = line.filter(|it| it.waiting.contains_key(&ticket)) else {
            return Settled::Gone;
        };
        if line.queue.called() == Some(ticket) {
            if declines && line.declines.replace(ticket) != Some(ticket) {
                self.wake_other_lane(&lines);
            }
            let Some(line) = lines.by_pin.get_mut(&self.pinned_to) else { return Settled::Gone };
            if is_held_back {
                let next = line.queue.hold(ticket, flow);
                line.wake(next);
            }
            return Settled::Looks;
        }
        if line.queue.first_of_held(flow.client) != Some(ticket) {
            return Settled::Behind;
        }
        if is_held_back {
            return Settled::Looks;
        }
        let called = line.queue.release(flow.client);
        if called == Some(ticket) {
            return Settled::IsCalled;
        }
        line.wake(called);
        Settled::Behind
    }

    fn join(
        places: &Arc<Places>,
        pinned_to: Option<&PeerId>,
        flow: Flow,
        had_turn: Option<Since>,
        is_full: bool,
    ) -> Self {
        let woken = Arc::new(Notify::new());
        let mut lines = places.lines();
        if is_full {
            lines.give_way(pinned_to, flow);
        }
        if let (Some(lane), false) =
            (places.lane(pinned_to), lines.by_pin.contains_key(&pinned_to.cloned()))
        {
            lines.lanes.begins(lane);
        }
        let line = lines.by_pin.entry(pinned_to.cloned()).or_default();
        let ticket = line.queue.join(flow, had_turn);
        line.waiting.insert(ticket, Arc::clone(&woken));
        places.open.store(lines.by_pin.len(), Ordering::SeqCst);
        drop(lines);
        Self { places: Arc::clone(places), pinned_to: pinned_to.cloned(), flow, ticket, woken }
    }

    fn standing(&self) -> Queued {
        let lines = self.places.lines();
        let line = lines.by_pin.get(&self.pinned_to);
        let Some(line) = line.filter(|it| it.waiting.contains_key(&self.ticket)) else {
            return Queued { gave_way: true, ..Queued::default() };
        };
        let is_called = line.queue.called() == Some(self.ticket);
        Queued {
            behind: !is_called,
            gave_way: false,
            // It is in the queue already, however many there are.
            displaces: true,
            has_turn: is_called,
            not_here: self.places.is_not_here(&lines, self.pinned_to.as_ref()),
        }
    }

    /// When it was called.
    fn since(&self) -> Since {
        let lines = self.places.lines();
        let line = lines.by_pin.get(&self.pinned_to);
        line.map_or_else(Since::default, |line| line.queue.since(self.ticket))
    }

    /// It takes a place at the copy here.
    fn takes_place(&self) {
        let Some(lane) = self.places.lane(self.pinned_to.as_ref()) else { return };
        let mut lines = self.places.lines();
        let line = lines.by_pin.get(&self.pinned_to);
        let clients = line.map_or(1, |line| line.queue.clients());
        lines.lanes.took(lane, clients);
    }

    /// Whose turn it is in the other lane may take the next place here.
    fn wake_other_lane(&self, lines: &Lines) {
        let lane = self.places.lane(self.pinned_to.as_ref());
        if let Some(line) = lane.and_then(|lane| self.places.line_of(lines, other(lane))) {
            line.wake(line.queue.called());
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut lines = self.places.lines();
        let Some(line) = lines.by_pin.get_mut(&self.pinned_to) else { return };
        if line.waiting.remove(&self.ticket).is_some() {
            let next = line.queue.leave(self.ticket, self.flow);
            line.wake(next);
            line.wake(line.queue.first_of_held(self.flow.client));
        }
        if line.queue.is_empty() {
            lines.by_pin.remove(&self.pinned_to);
        }
        if lines.by_pin.is_empty() {
            lines.lanes = Lanes::default();
        }
        self.wake_other_lane(&lines);
        self.places.open.store(lines.by_pin.len(), Ordering::SeqCst);
    }
}
