//! The world that peers live in: virtual time, one queue of events, and a tiny executor for the
//! tasks that re-enact what a peer's runtime does. One seed decides everything, and nothing here
//! reads a clock or iterates a randomly seeded map, so one seed is one trace.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use warmhop_core::config::{AppPolicy, SessionPolicy};
use warmhop_core::ids::{Incarnation, SessionId};

use crate::fleeting::Register;
use crate::narrate::Narrator;
use crate::network::Network;
use crate::peer::Peer;
use crate::prng::Prng;
use crate::reference::Reference;

/// One life of one simulated process. Never used twice.
pub(crate) type Life = u64;
type TaskId = u64;
type Task = Pin<Box<dyn Future<Output = ()>>>;
type Work = Box<dyn FnOnce(&Rc<World>)>;

/// Whom an event happens to. It is dropped if they are gone by then, and kept while they pause.
#[derive(Debug, Clone, Copy)]
pub(crate) enum To {
    Life(Life),
    Node(usize),
    World,
}

/// One machine of the mesh; its process may live, pause, be gone, or live again as another.
#[derive(Default)]
pub(crate) struct Node {
    pub(crate) life: Option<Life>,
    pub(crate) peer: Option<Rc<Peer>>,
    pub(crate) paused_until: u64,
    /// By how much its wall clock is ahead (or behind) of the world's time.
    pub(crate) wall_skew: i64,
    stalled: Vec<TaskId>,
}

/// What differs from seed to seed.
#[derive(Debug, Clone)]
pub(crate) struct Knobs {
    pub(crate) peers: usize,
    pub(crate) clients: usize,
    /// Clients that begin a session and do not come back for it.
    pub(crate) resting: usize,
    /// Clients that share registers named by keys.
    pub(crate) keepers: usize,
    pub(crate) policy: SessionPolicy,
    /// Which others each node is given to join.
    pub(crate) seeds: Vec<Vec<usize>>,
    /// How each node runs its apps.
    pub(crate) apps: Vec<AppPolicy>,
    /// One holder at a time, with time to mend in between: what the protocol promises to survive.
    pub(crate) gentle: bool,
    /// Sessions are short, so that idle ones expire while others go on.
    pub(crate) short_ttl: bool,
    /// Copies are made to forget at any time.
    pub(crate) forgetful: bool,
    /// Registers last for moments, and some peers stop for longer than what is over is remembered.
    pub(crate) fleeting: bool,
    /// For how long faults happen, in milliseconds.
    pub(crate) faults_ms: u64,
    /// How long a start takes at least and at most, in milliseconds.
    pub(crate) start_ms: (u64, u64),
}

/// How much a node may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) copies: usize,
    /// It calls itself full once it holds so many.
    pub(crate) is_known: bool,
}

pub(crate) struct World {
    pub(crate) knobs: Knobs,
    now: Cell<u64>,
    rng: RefCell<Prng>,
    events: RefCell<BTreeMap<(u64, u64), (To, Work)>>,
    numbers: Cell<u64>,
    tasks: RefCell<BTreeMap<TaskId, (Option<Life>, Option<Task>)>>,
    ready: Arc<Mutex<VecDeque<TaskId>>>,
    pub(crate) nodes: RefCell<Vec<Node>>,
    node_by_life: RefCell<BTreeMap<Life, usize>>,
    node_by_incarnation: RefCell<BTreeMap<Incarnation, usize>>,
    pub(crate) net: RefCell<Network>,
    pub(crate) reference: RefCell<Reference>,
    pub(crate) narrator: RefCell<Narrator>,
    violation: RefCell<Option<String>>,
    pub(crate) faults_on: Cell<bool>,
    pub(crate) counts: RefCell<BTreeMap<&'static str, u64>>,
    requests: Cell<u16>,
    /// Which sessions went on under which others.
    pub(crate) forks: RefCell<Vec<(SessionId, SessionId)>>,
    /// The nodes that have room for a few copies only.
    pub(crate) room: RefCell<BTreeMap<usize, Room>>,
    /// What is known of registers that last for a moment.
    pub(crate) fleeting: RefCell<BTreeMap<SessionId, Register>>,
}

struct TaskWaker {
    id: TaskId,
    ready: Arc<Mutex<VecDeque<TaskId>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready
            .lock()
            .expect("the executor never panics with its queue locked")
            .push_back(self.id);
    }
}

impl World {
    pub(crate) fn new(knobs: Knobs, rng: Prng, narrator: Narrator) -> Rc<Self> {
        let nodes = (0..knobs.peers).map(|_| Node::default()).collect();
        Rc::new(Self {
            knobs,
            // Not zero, so that a time before the beginning can be represented.
            now: Cell::new(100_000),
            rng: RefCell::new(rng),
            events: RefCell::default(),
            numbers: Cell::new(1),
            tasks: RefCell::default(),
            ready: Arc::default(),
            nodes: RefCell::new(nodes),
            node_by_life: RefCell::default(),
            node_by_incarnation: RefCell::default(),
            net: RefCell::default(),
            reference: RefCell::default(),
            narrator: RefCell::new(narrator),
            violation: RefCell::default(),
            faults_on: Cell::new(true),
            counts: RefCell::default(),
            requests: Cell::new(0),
            forks: RefCell::default(),
            room: RefCell::default(),
            fleeting: RefCell::default(),
        })
    }

    pub(crate) fn now(&self) -> u64 {
        self.now.get()
    }

    pub(crate) fn number(&self) -> u64 {
        let number = self.numbers.get();
        self.numbers.set(number + 1);
        number
    }

    /// The number of the next request of any client.
    pub(crate) fn next_request(&self) -> u16 {
        self.requests.set(self.requests.get() + 1);
        self.requests.get()
    }

    pub(crate) fn random(&self) -> u64 {
        self.rng.borrow_mut().next()
    }

    pub(crate) fn below(&self, n: u64) -> u64 {
        self.rng.borrow_mut().below(n.max(1))
    }

    pub(crate) fn between(&self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    pub(crate) fn chance(&self, percent: u64) -> bool {
        self.rng.borrow_mut().chance(percent)
    }

    pub(crate) fn bytes(&self) -> [u8; 16] {
        self.rng.borrow_mut().bytes()
    }

    pub(crate) fn pick<T: Clone>(&self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len() as u64) as usize].clone())
    }

    pub(crate) fn count(&self, what: &'static str) {
        *self.counts.borrow_mut().entry(what).or_default() += 1;
    }

    /// Writes a line of the trace, if anybody reads it; `about` names the session.
    pub(crate) fn note(&self, about: Option<SessionId>, line: impl FnOnce() -> String) {
        self.narrator.borrow_mut().note(self.now(), about, line);
    }

    /// Something that must not be. The run ends; the first such counts.
    pub(crate) fn violated(&self, about: Option<SessionId>, what: String) {
        let mut violation = self.violation.borrow_mut();
        if violation.is_none() {
            self.note(about, || format!("VIOLATION: {what}"));
            self.narrator.borrow_mut().about = about;
            *violation = Some(what);
        }
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.violation.borrow().clone()
    }

    // Lives.

    /// A new process on `node`; its peer is put in by the caller.
    pub(crate) fn begin_life(&self, node: usize, incarnation: Incarnation) -> Life {
        let life = self.number();
        self.node_by_life.borrow_mut().insert(life, node);
        self.node_by_incarnation.borrow_mut().insert(incarnation, node);
        self.nodes.borrow_mut()[node].life = Some(life);
        life
    }

    /// The process on `node` ends without a word: its tasks and what was to happen to it go.
    pub(crate) fn end_life(&self, node: usize) {
        let (life, peer) = {
            let mut nodes = self.nodes.borrow_mut();
            let node = &mut nodes[node];
            node.stalled.clear();
            node.paused_until = 0;
            (node.life.take(), node.peer.take())
        };
        if let Some(peer) = &peer {
            peer.dead.set(true);
        }
        let mut dropped = Vec::new();
        self.tasks.borrow_mut().retain(|_, (owner, task)| {
            let gone = *owner == life && life.is_some();
            if gone {
                dropped.extend(task.take());
            }
            !gone
        });
        // Dropped outside of the borrow: what a task holds may wake others as it goes.
        drop(dropped);
    }

    pub(crate) fn peer(&self, node: usize) -> Option<Rc<Peer>> {
        self.nodes.borrow()[node].peer.clone()
    }

    pub(crate) fn live_peers(&self) -> Vec<Rc<Peer>> {
        self.nodes.borrow().iter().filter_map(|node| node.peer.clone()).collect()
    }

    pub(crate) fn peer_of(&self, incarnation: Incarnation) -> Option<Rc<Peer>> {
        let node = self.node_of(incarnation)?;
        self.peer(node).filter(|peer| peer.inc == incarnation)
    }

    /// The node whose process has or had this incarnation.
    pub(crate) fn node_of(&self, incarnation: Incarnation) -> Option<usize> {
        self.node_by_incarnation.borrow().get(&incarnation).copied()
    }

    pub(crate) fn is_paused(&self, node: usize) -> bool {
        self.nodes.borrow()[node].paused_until > self.now()
    }

    fn life_of(&self, to: To) -> Option<usize> {
        match to {
            To::World => None,
            To::Node(node) => Some(node),
            To::Life(life) => self.node_by_life.borrow().get(&life).copied(),
        }
    }

    fn is_over(&self, to: To) -> bool {
        match to {
            To::World => false,
            To::Node(node) => self.nodes.borrow()[node].life.is_none(),
            To::Life(life) => {
                let node = self.node_by_life.borrow()[&life];
                self.nodes.borrow()[node].life != Some(life)
            }
        }
    }

    // Events and tasks.

    pub(crate) fn after(&self, ms: u64, to: To, work: impl FnOnce(&Rc<World>) + 'static) {
        let at = (self.now() + ms, self.number());
        self.events.borrow_mut().insert(at, (to, Box::new(work)));
    }

    /// Starts a task of `life`, or of the world itself.
    pub(crate) fn spawn(
        &self,
        life: Option<Life>,
        task: impl Future<Output = ()> + 'static,
    ) -> TaskId {
        let id = self.number();
        self.tasks.borrow_mut().insert(id, (life, Some(Box::pin(task))));
        self.wake(id);
        id
    }

    pub(crate) fn cancel(&self, id: TaskId) {
        let task = self.tasks.borrow_mut().remove(&id);
        drop(task);
    }

    pub(crate) fn is_running(&self, id: TaskId) -> bool {
        self.tasks.borrow().contains_key(&id)
    }

    fn wake(&self, id: TaskId) {
        self.ready.lock().expect("nothing panics with the queue locked").push_back(id);
    }

    fn poll_ready(&self) {
        loop {
            let next = self.ready.lock().expect("nothing panics with the queue locked").pop_front();
            let Some(id) = next else { return };
            let (life, task) = match self.tasks.borrow_mut().get_mut(&id) {
                Some((life, task)) => (*life, task.take()),
                None => continue,
            };
            let Some(mut task) = task else { continue };
            if let Some(node) = life.and_then(|life| self.life_of(To::Life(life)))
                && self.is_paused(node)
            {
                self.nodes.borrow_mut()[node].stalled.push(id);
                self.put_back(id, task);
                continue;
            }
            let waker = Waker::from(Arc::new(TaskWaker { id, ready: Arc::clone(&self.ready) }));
            match task.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(()) => {
                    self.tasks.borrow_mut().remove(&id);
                }
                Poll::Pending => self.put_back(id, task),
            }
        }
    }

    fn put_back(&self, id: TaskId, task: Task) {
        if let Some((_, place)) = self.tasks.borrow_mut().get_mut(&id) {
            *place = Some(task);
        }
    }

    /// Runs until `end`, or until something is violated.
    pub(crate) fn run_until(self: &Rc<Self>, end: u64) {
        self.poll_ready();
        while self.violation.borrow().is_none() {
            let next = self.events.borrow().first_key_value().map(|(at, _)| *at);
            let Some(at) = next.filter(|(time, _)| *time <= end) else { break };
            let Some((to, work)) = self.events.borrow_mut().remove(&at) else { break };
            self.now.set(self.now().max(at.0));
            if self.is_over(to) {
                continue;
            }
            let paused = self.life_of(to).map(|node| self.nodes.borrow()[node].paused_until);
            if let Some(until) = paused.filter(|until| *until > self.now()) {
                let later = (until, self.number());
                self.events.borrow_mut().insert(later, (to, work));
                continue;
            }
            work(self);
            self.poll_ready();
        }
        self.now.set(self.now().max(end));
    }

    /// Stops a process for so long. Its monotonic clock stops meanwhile if `clock_too`, as
    /// that of a virtual machine does; that of a stopped process goes on.
    pub(crate) fn pause(self: &Rc<Self>, node: usize, ms: u64, clock_too: bool) {
        let Some(peer) = self.peer(node) else { return };
        if self.is_paused(node) {
            return;
        }
        self.nodes.borrow_mut()[node].paused_until = self.now() + ms;
        let life = peer.life;
        self.after(ms, To::World, move |world| {
            if peer.life == life && clock_too {
                peer.lag.set(peer.lag.get() + ms);
            }
            world.resume(node);
        });
    }

    /// When no process pauses any more.
    pub(crate) fn resumed_by(&self) -> u64 {
        let nodes = self.nodes.borrow();
        nodes.iter().map(|node| node.paused_until).max().unwrap_or_default().max(self.now())
    }

    fn resume(&self, node: usize) {
        let stalled = std::mem::take(&mut self.nodes.borrow_mut()[node].stalled);
        stalled.into_iter().for_each(|id| self.wake(id));
    }

    /// Lets go of everything, since tasks, peers and the world hold each other.
    pub(crate) fn dismantle(&self) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        for node in 0..self.knobs.peers {
            self.end_life(node);
        }
        drop(tasks);
        let events = std::mem::take(&mut *self.events.borrow_mut());
        drop(events);
    }
}

/// Waits for so many milliseconds of the world's time, or longer while its process pauses.
pub(crate) async fn sleep(world: &Rc<World>, to: To, ms: u64) {
    let alarm = Mailbox::new();
    let bell = alarm.clone();
    world.after(ms, to, move |_| bell.put(()));
    alarm.take().await;
}

/// A queue between tasks; closed when its sender is dropped.
pub(crate) struct Mailbox<T>(Rc<RefCell<Letters<T>>>);

struct Letters<T> {
    queue: VecDeque<T>,
    waker: Option<Waker>,
    closed: bool,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Mailbox<T> {
    pub(crate) fn new() -> Self {
        Self(Rc::new(RefCell::new(Letters { queue: VecDeque::new(), waker: None, closed: false })))
    }

    pub(crate) fn put(&self, letter: T) {
        let mut letters = self.0.borrow_mut();
        letters.queue.push_back(letter);
        if let Some(waker) = letters.waker.take() {
            waker.wake();
        }
    }

    pub(crate) fn close(&self) {
        let mut letters = self.0.borrow_mut();
        letters.closed = true;
        if let Some(waker) = letters.waker.take() {
            waker.wake();
        }
    }

    /// The next letter; `None` once the mailbox is closed and empty.
    pub(crate) fn take(&self) -> impl Future<Output = Option<T>> {
        std::future::poll_fn(move |cx| {
            let mut letters = self.0.borrow_mut();
            match letters.queue.pop_front() {
                Some(letter) => Poll::Ready(Some(letter)),
                None if letters.closed => Poll::Ready(None),
                None => {
                    letters.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }
}

/// Closes a mailbox when it is dropped, however the task that holds it ends.
pub(crate) struct CloseOnDrop<T>(pub(crate) Mailbox<T>);

impl<T> Drop for CloseOnDrop<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}
