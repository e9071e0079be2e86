//! Publish and subscribe: a message reaches those who are subscribed at this moment, at most once
//! each. The [carrier](super::carrier) brings messages here from other peers.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tracing::warn;

use super::frame::Reply;
use super::glob;
use super::seldom::Seldom;

/// How many bytes of messages wait for one subscriber; one that falls further behind is closed.
pub(super) const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a message takes beside its bytes.
const MESSAGE_BYTES: usize = 128;
/// What a name takes beside its bytes in a list of names.
const NAME_BYTES: usize = 4;
/// How many messages wait for one subscriber: as many as those bytes allow where all are empty.
const WAITING_MAX: usize = WAITING_BYTES_MAX / MESSAGE_BYTES;
/// How many bytes of messages wait for all subscribers of a peer, approximately; above that,
/// subscribers are closed that exceed their share of it.
const ALL_WAITING_BYTES_MAX: usize = 128 * 1024 * 1024;
const PART_BYTES_MAX: usize = ALL_WAITING_BYTES_MAX / super::CONNECTIONS_MAX;
/// How much of a channel's name is logged, in characters.
const CHANNEL_MAX: usize = 64;
/// How many patterns are subscribed to at a peer at most: each is compared with every message.
const PATTERNS_MAX: usize = 16_384;
/// What all subscriptions of a peer take at most, in bytes, and one beside its name.
const SUBSCRIPTIONS_BYTES_MAX: usize = 64 * 1024 * 1024;
const SUBSCRIPTION_BYTES: usize = 256;
/// How many channels and patterns one client subscribes to at most.
const SUBSCRIBED_MAX: usize = 65_536;

/// How long the reply to `PUBLISH` waits for another peer to report how many received the message
/// there. A peer that fails to report in time is not waited for again until it reports.
pub(super) const COUNTED_WITHIN: Duration = Duration::from_secs(1);

/// A message to the subscribers of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Published {
    pub(super) channel: Bytes,
    pub(super) message: Bytes,
    pub(super) is_sharded: bool,
}

/// The kind of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum What {
    Channel,
    Pattern,
    Shard,
}

impl What {
    /// The kind that a command's name refers to.
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

/// The writing end of a subscriber's line.
struct Listener {
    line: mpsc::Sender<Reply>,
    waiting: Arc<AtomicUsize>,
    all_waiting: Arc<AtomicUsize>,
}

impl Listener {
    /// Puts a message into the line; false if the subscriber is too slow.
    fn tell(&self, message: Reply) -> bool {
        let size = message.size() + MESSAGE_BYTES;
        let waiting = self.waiting.load(Ordering::Relaxed) + size;
        let all_waiting = self.all_waiting.load(Ordering::Relaxed) + size;
        if waiting > WAITING_BYTES_MAX
            || (all_waiting > ALL_WAITING_BYTES_MAX && waiting > PART_BYTES_MAX)
        {
            return false;
        }
        // Before a receiver can take it, as that subtracts its size.
        self.waiting.fetch_add(size, Ordering::Relaxed);
        self.all_waiting.fetch_add(size, Ordering::Relaxed);
        self.line.try_send(message).is_ok()
    }
}

/// How many subscribers were disconnected because they read too slowly.
pub(super) static TOO_SLOW: AtomicU64 = AtomicU64::new(0);

/// Counts and logs a subscriber that was disconnected when something was published on `channel`.
fn too_slow(channel: &[u8]) {
    static LINES: Seldom = Seldom::new();
    TOO_SLOW.fetch_add(1, Ordering::Relaxed);
    if let Some(not_logged) = LINES.due() {
        let channel: String = String::from_utf8_lossy(channel).chars().take(CHANNEL_MAX).collect();
        warn!(
            channel,
            waiting_bytes_max = WAITING_BYTES_MAX,
            not_logged,
            "a Redis client that subscribes reads too slowly and is disconnected: it misses what is \
             published until it subscribes again"
        );
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
    /// How often a channel or pattern got its first subscriber, and how often it got its first or
    /// lost its last.
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

    /// Adds a subscription.
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

/// The subscriptions at this peer.
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

    /// How many subscribers here a message has.
    pub(super) fn count_here(&self, message: &Published) -> i64 {
        let what = if message.is_sharded { What::Shard } else { What::Channel };
        self.count(what, &message.channel)
    }

    /// Delivers a message to the subscribers here; returns their number.
    pub(super) fn deliver(&self, message: &Published) -> i64 {
        let Published { channel, message, is_sharded } = message;
        let mut state = self.state();
        let (mut reached, mut gone) = (0, Vec::new());
        let kind = if *is_sharded { What::Shard } else { What::Channel };
        let bytes = |bytes: &Bytes| Reply::Bytes(bytes.clone());
        let named = |name: String| Reply::text(name);
        let State { listeners, channels, patterns, shards, .. } = &mut *state;
        let here = if *is_sharded { &*shards } else { &*channels };
        let mut tell = |id: &u64, parts: Vec<Reply>| match listeners.get(id) {
            Some(listener) if listener.tell(Reply::Push(parts)) => reached += 1,
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
            // Its connection notices that the line has ended, and ends as well.
            if listeners.remove(&id).is_some() {
                too_slow(channel);
            }
        }
        reached
    }

    /// The channels, or patterns, with subscribers here that match `pattern`, up to so many bytes
    /// of names.
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

    /// How often the subscriptions here have changed, and how often they have grown.
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

/// One client's subscriptions.
pub(super) struct Subscriber {
    hub: Arc<Hub>,
    id: u64,
    subscribed: HashSet<(What, Bytes)>,
    /// How many of those are shards: counting them anew each time would cost their square.
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

    /// How many subscriptions it has, of channels and patterns, or of shards.
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

    fn confirmation(&self, what: What, how: &str, name: Reply) -> Reply {
        let kind = Reply::text(format!("{}{how}", what.prefix()));
        Reply::Push(vec![kind, name, Reply::Number(self.count(what))])
    }

    /// Adds a subscription.
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
        self.confirmation(what, "subscribe", Reply::Bytes(name))
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

    /// Removes these subscriptions; all of this kind if none is named.
    pub(super) fn unsubscribe(&mut self, what: What, names: &[Bytes]) -> Reply {
        let all: Vec<Bytes> = match names {
            [] => {
                let same = self.subscribed.iter().filter(|(it, _)| *it == what);
                same.map(|(_, name)| name.clone()).collect()
            }
            names => names.to_vec(),
        };
        if all.is_empty() {
            return self.confirmation(what, "unsubscribe", Reply::Null);
        }
        let one = |name: Bytes| {
            if self.subscribed.remove(&(what, name.clone())) {
                self.shards -= usize::from(what == What::Shard);
                self.leave(what, &name);
            }
            self.confirmation(what, "unsubscribe", Reply::Bytes(name))
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
