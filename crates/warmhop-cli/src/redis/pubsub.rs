//! Publish and subscribe: messages to those who listen at this peer at this moment, at most once
//! each. What takes them there from other peers is the [carrier](super::carrier).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::frame::Reply;
use super::glob;

/// How many bytes of messages wait for one subscriber; one that lets more come up is closed.
pub(super) const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a message takes beside its bytes.
const MESSAGE_BYTES: usize = 128;
/// What a name takes in a list of them beside its bytes.
const NAME_BYTES: usize = 4;
/// How many messages wait for one subscriber: as many as those bytes allow where all are empty.
const WAITING_MAX: usize = WAITING_BYTES_MAX / MESSAGE_BYTES;
/// How many bytes of messages wait for all subscribers of a peer, about; while it is more, one for whom
/// more than its part of it comes up is closed.
const ALL_WAITING_BYTES_MAX: usize = 128 * 1024 * 1024;
const PART_BYTES_MAX: usize = ALL_WAITING_BYTES_MAX / super::CONNECTIONS_MAX;
/// How many patterns are listened to at a peer, at most: each is compared with every message.
const PATTERNS_MAX: usize = 16_384;
/// What all subscriptions of a peer take at most, in bytes, and one beside its name.
const SUBSCRIPTIONS_BYTES_MAX: usize = 64 * 1024 * 1024;
const SUBSCRIPTION_BYTES: usize = 256;
/// How many channels and patterns one client listens to at most.
const SUBSCRIBED_MAX: usize = 65_536;

/// How long the answer to `PUBLISH` waits for another peer to say how many got the message there.
/// One that has not said so since then is not waited for, until it does.
pub(super) const COUNTED_WITHIN: Duration = Duration::from_secs(1);

/// A message to those who listen to a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Published {
    pub(super) channel: Bytes,
    pub(super) message: Bytes,
    pub(super) is_sharded: bool,
}

/// What is listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum What {
    Channel,
    Pattern,
    Shard,
}

impl What {
    /// Of a command's name.
    pub(super) fn of(command: &str) -> Self {
        match command.as_bytes().first() {
            Some(b'P') => Self::Pattern,
            Some(b'S') if command.starts_with("SS") || command.starts_with("SUN") => Self::Shard,
            _ => Self::Channel,
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Channel => "",
            Self::Pattern => "p",
            Self::Shard => "s",
        }
    }
}

/// The end of a subscriber's line that is written to.
struct Listener {
    line: mpsc::Sender<Reply>,
    waiting: Arc<AtomicUsize>,
    all_waiting: Arc<AtomicUsize>,
}

impl Listener {
    /// Puts a message into the line; false where it is not read.
    fn tell(&self, message: Reply) -> bool {
        let size = message.size() + MESSAGE_BYTES;
        let waiting = self.waiting.load(Ordering::Relaxed) + size;
        let all_waiting = self.all_waiting.load(Ordering::Relaxed) + size;
        if waiting > WAITING_BYTES_MAX
            || (all_waiting > ALL_WAITING_BYTES_MAX && waiting > PART_BYTES_MAX)
        {
            return false;
        }
        // Before it can be taken: what is taken is no longer counted.
        self.waiting.fetch_add(size, Ordering::Relaxed);
        self.all_waiting.fetch_add(size, Ordering::Relaxed);
        self.line.try_send(message).is_ok()
    }
}

type Listeners = HashMap<Bytes, HashSet<u64>>;

#[derive(Default)]
struct State {
    listeners: HashMap<u64, Listener>,
    channels: Listeners,
    patterns: Listeners,
    shards: Listeners,
    /// What all subscriptions take.
    bytes: usize,
    /// How often something came to be listened to, and how often that or the opposite happened.
    growth: u64,
    changes: u64,
}

impl State {
    fn of(&mut self, what: What) -> &mut Listeners {
        match what {
            What::Channel => &mut self.channels,
            What::Pattern => &mut self.patterns,
            What::Shard => &mut self.shards,
        }
    }

    /// One more listens to this.
    fn add(&mut self, what: What, name: &Bytes, id: u64) -> Result<(), Reply> {
        let is_new_pattern = what == What::Pattern && !self.patterns.contains_key(name);
        if is_new_pattern && self.patterns.len() >= PATTERNS_MAX {
            let detail = format!("at most {PATTERNS_MAX} patterns are listened to at a peer");
            return Err(Reply::error("ERR", detail));
        }
        let bytes = self.bytes + SUBSCRIPTION_BYTES + name.len();
        if bytes > SUBSCRIPTIONS_BYTES_MAX {
            let detail = "all that clients listen to takes as much memory as it may at a peer";
            return Err(Reply::error("ERR", detail));
        }
        self.bytes = bytes;
        let listeners = self.of(what).entry(name.clone()).or_default();
        let is_new = listeners.is_empty();
        listeners.insert(id);
        self.growth += u64::from(is_new);
        self.changes += u64::from(is_new);
        Ok(())
    }
}

/// Who listens to what at this peer.
#[derive(Default)]
pub(super) struct Hub {
    state: Mutex<State>,
    next: AtomicU64,
    all_waiting: Arc<AtomicUsize>,
}

impl Hub {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many listen here to what a message is about.
    pub(super) fn count_here(&self, message: &Published) -> i64 {
        let what = if message.is_sharded { What::Shard } else { What::Channel };
        self.count(what, &message.channel)
    }

    /// Hands a message to those who listen here; how many those are.
    pub(super) fn deliver(&self, message: &Published) -> i64 {
        let Published { channel, message, is_sharded } = message;
        let mut state = self.state();
        let (mut told, mut gone) = (0, Vec::new());
        let kind = if *is_sharded { What::Shard } else { What::Channel };
        let bytes = |bytes: &Bytes| Reply::Bytes(bytes.clone());
        let named = |name: String| Reply::text(name);
        let State { listeners, channels, patterns, shards, .. } = &mut *state;
        let here = if *is_sharded { &*shards } else { &*channels };
        let mut tell = |id: &u64, parts: Vec<Reply>| match listeners.get(id) {
            Some(listener) if listener.tell(Reply::Push(parts)) => told += 1,
            _ => gone.push(*id),
        };
        for id in here.get(channel).into_iter().flatten() {
            let name = named(format!("{}message", kind.prefix()));
            tell(id, vec![name, bytes(channel), bytes(message)]);
        }
        if !is_sharded {
            for (pattern, ids) in &*patterns {
                if !glob::matches(pattern, channel) {
                    continue;
                }
                for id in ids {
                    let name = named("pmessage".into());
                    tell(id, vec![name, bytes(pattern), bytes(channel), bytes(message)]);
                }
            }
        }
        for id in gone {
            // Its connection sees the line end, and ends.
            listeners.remove(&id);
        }
        told
    }

    /// The channels, or patterns, with subscribers here, of those that `pattern` matches: as many
    /// as take so many bytes.
    pub(super) fn names(
        &self,
        what: What,
        pattern: Option<&Bytes>,
        bytes_max: usize,
    ) -> Vec<Bytes> {
        let mut state = self.state();
        let names = state.of(what).keys();
        let is_match = |name: &&Bytes| pattern.is_none_or(|it| glob::matches(it, name));
        let mut left = bytes_max;
        let fits = |name: &&Bytes| {
            let rest = left.checked_sub(NAME_BYTES + name.len());
            left = rest.unwrap_or(left);
            rest.is_some()
        };
        names.filter(is_match).take_while(fits).cloned().collect()
    }

    /// How many channels and shards have subscribers here.
    pub(super) fn names_count(&self) -> usize {
        let state = self.state();
        state.channels.len() + state.shards.len()
    }

    /// How often what is listened to here has changed, and how often it has grown.
    pub(super) fn changes(&self) -> (u64, u64) {
        let state = self.state();
        (state.changes, state.growth)
    }

    pub(super) fn count(&self, what: What, channel: &Bytes) -> i64 {
        let mut state = self.state();
        let count = state.of(what).get(channel).map_or(0, HashSet::len);
        i64::try_from(count).unwrap_or(i64::MAX)
    }
}

/// What one client listens to.
pub(super) struct Subscriber {
    hub: Arc<Hub>,
    id: u64,
    subscribed: HashSet<(What, Bytes)>,
    /// How many of those are shards: to count them anew each time would cost the square of them.
    shards: usize,
    line: mpsc::Receiver<Reply>,
    waiting: Arc<AtomicUsize>,
}

impl Subscriber {
    pub(super) fn new(hub: &Arc<Hub>) -> Self {
        let (sender, line) = mpsc::channel(WAITING_MAX);
        let id = hub.next.fetch_add(1, Ordering::Relaxed);
        let waiting = Arc::new(AtomicUsize::new(0));
        let (waiting_here, all_waiting) = (Arc::clone(&waiting), Arc::clone(&hub.all_waiting));
        let listener = Listener { line: sender, waiting: waiting_here, all_waiting };
        hub.state().listeners.insert(id, listener);
        Self { hub: Arc::clone(hub), id, subscribed: HashSet::new(), shards: 0, line, waiting }
    }

    /// How much it listens to, of channels and patterns, or of shards.
    fn count(&self, what: What) -> i64 {
        let count = match what {
            What::Shard => self.shards,
            What::Channel | What::Pattern => self.subscribed.len() - self.shards,
        };
        i64::try_from(count).unwrap_or(i64::MAX)
    }

    pub(super) fn is_listening(&self) -> bool {
        !self.subscribed.is_empty()
    }

    /// The next message; `None` once it is closed because it was too slow.
    pub(super) async fn next(&mut self) -> Option<Reply> {
        let message = self.line.recv().await?;
        self.taken(&message);
        Some(message)
    }

    /// The next message, if it is there.
    pub(super) fn ready(&mut self) -> Option<Reply> {
        let message = self.line.try_recv().ok()?;
        self.taken(&message);
        Some(message)
    }

    fn taken(&self, message: &Reply) {
        let size = message.size() + MESSAGE_BYTES;
        self.waiting.fetch_sub(size, Ordering::Relaxed);
        self.hub.all_waiting.fetch_sub(size, Ordering::Relaxed);
    }

    fn told(&self, what: What, how: &str, name: Reply) -> Reply {
        let kind = Reply::text(format!("{}{how}", what.prefix()));
        Reply::Push(vec![kind, name, Reply::Number(self.count(what))])
    }

    /// Listens to one more.
    pub(super) fn subscribe(&mut self, what: What, name: &Bytes) -> Reply {
        let name = Bytes::copy_from_slice(name);
        if self.subscribed.len() >= SUBSCRIBED_MAX {
            let detail = format!("a client listens to at most {SUBSCRIBED_MAX} channels");
            return Reply::error("ERR", detail);
        }
        if !self.subscribed.contains(&(what, name.clone())) {
            if let Err(refused) = self.hub.state().add(what, &name, self.id) {
                return refused;
            }
            self.subscribed.insert((what, name.clone()));
            self.shards += usize::from(what == What::Shard);
        }
        self.told(what, "subscribe", Reply::Bytes(name))
    }

    fn leave(&self, what: What, name: &Bytes) {
        let mut state = self.hub.state();
        state.bytes = state.bytes.saturating_sub(SUBSCRIPTION_BYTES + name.len());
        let all = state.of(what);
        if let Some(ids) = all.get_mut(name) {
            ids.remove(&self.id);
            if ids.is_empty() {
                all.remove(name);
                state.changes += 1;
            }
        }
    }

    /// Listens to these no more; to none of this kind where none is named.
    pub(super) fn unsubscribe(&mut self, what: What, names: &[Bytes]) -> Reply {
        let all: Vec<Bytes> = match names {
            [] => {
                let same = self.subscribed.iter().filter(|(it, _)| *it == what);
                same.map(|(_, name)| name.clone()).collect()
            }
            names => names.to_vec(),
        };
        if all.is_empty() {
            return self.told(what, "unsubscribe", Reply::Null);
        }
        let one = |name: Bytes| {
            if self.subscribed.remove(&(what, name.clone())) {
                self.shards -= usize::from(what == What::Shard);
                self.leave(what, &name);
            }
            self.told(what, "unsubscribe", Reply::Bytes(name))
        };
        Reply::Several(all.into_iter().map(one).collect())
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        for (what, name) in &self.subscribed {
            self.leave(*what, name);
        }
        self.hub.state().listeners.remove(&self.id);
        // What it has not read is discarded.
        self.hub.all_waiting.fetch_sub(self.waiting.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}
