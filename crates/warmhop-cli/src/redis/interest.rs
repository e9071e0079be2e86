//! The subscriptions at other peers, so that a message goes only where it has subscribers.
//!
//! With each batch of messages a peer asks the receiver for its subscriptions. The answer is valid
//! for a while, counted from the moment at which the batch was sent; during that time the receiver
//! is sent only messages that it has subscribers for. A peer that publishes nothing asks nothing,
//! and a peer that is not asked announces nothing. If a client subscribes to something new, its
//! peer makes those peers forget that hold an older answer. The subscription is confirmed once they
//! have, or once none of those answers is valid any more: so the client receives every message
//! published from then on. An answer counts as received only when a later batch says so, and a peer
//! that has just started does not know what its previous process answered.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::time::Instant;
use warmhop::ids::PeerId;

use super::glob;
use super::pubsub::Published;
use super::pubsub::{Hub, What};

/// How long an answer is valid.
pub(super) const GOOD_FOR: Duration = Duration::from_secs(1);
/// How many channels an answer names at most; with more, the peer asks for all messages.
pub(super) const NAMES_MAX: usize = 16_384;
/// How many patterns an answer has at most, and how many bytes these take.
const PATTERNS_MAX: usize = 64;
const PATTERNS_BYTES_MAX: usize = 8 * 1024;
/// How many bytes an answer takes at most.
pub(super) const ANSWER_BYTES_MAX: usize = 32 + 4 * NAMES_MAX + 2 * PATTERNS_BYTES_MAX;
/// An answer of more bytes is long: a peer gets one at most every [`LONG_EVERY`], and is asked for
/// all messages meanwhile.
const LONG_BYTES: usize = 1024;
const LONG_EVERY: Duration = Duration::from_secs(1);

/// The state of a hub that an answer reports: the process, and the number of changes.
pub(super) type Edition = (u64, u64);

/// The subscriptions of a peer's clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Interest {
    /// Too many to be listed, or unknown.
    Everything,
    Of {
        /// Hashes of channels and shards.
        names: HashSet<u32>,
        patterns: Vec<Bytes>,
    },
}

impl Interest {
    /// Whether the message may have subscribers there.
    fn wants(&self, message: &Published) -> bool {
        let Self::Of { names, patterns } = self else { return true };
        names.contains(&hash(message.is_sharded, &message.channel))
            || (!message.is_sharded
                && patterns.iter().any(|pattern| glob::matches(pattern, &message.channel)))
    }

    fn of(hub: &Hub) -> Self {
        let named = |what| hub.names(what, None, usize::MAX);
        if hub.names_count() > NAMES_MAX {
            return Self::Everything;
        }
        let patterns = named(What::Pattern);
        let bytes: usize = patterns.iter().map(Bytes::len).sum();
        if patterns.len() > PATTERNS_MAX || bytes > PATTERNS_BYTES_MAX {
            return Self::Everything;
        }
        let of = |what| named(what).into_iter().map(move |name| hash(what == What::Shard, &name));
        Self::Of { names: of(What::Channel).chain(of(What::Shard)).collect(), patterns }
    }

    fn pack(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        match self {
            Self::Everything => bytes.put_u8(EVERYTHING),
            Self::Of { names, patterns } => {
                bytes.put_u8(NAMED);
                bytes.put_u32(u32::try_from(names.len()).unwrap_or(u32::MAX));
                names.iter().for_each(|name| bytes.put_u32(*name));
                for pattern in patterns {
                    bytes.put_u32(u32::try_from(pattern.len()).unwrap_or(u32::MAX));
                    bytes.put_slice(pattern);
                }
            }
        }
        bytes.freeze()
    }

    fn unpack(kind: u8, mut bytes: Bytes) -> Option<Self> {
        if kind != NAMED {
            return (kind == EVERYTHING).then_some(Self::Everything);
        }
        let count = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
        if count > NAMES_MAX || bytes.len() < 4 * count {
            return None;
        }
        let names = (0..count).map(|_| bytes.get_u32()).collect();
        let mut patterns = Vec::new();
        while bytes.has_remaining() && patterns.len() < PATTERNS_MAX {
            let len = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
            patterns.push((len <= bytes.len()).then(|| bytes.split_to(len))?);
        }
        Some(Self::Of { names, patterns })
    }
}

/// The kind of an answer, after its edition: the asker's copy is current, or the subscriptions.
const SAME: u8 = 0;
const EVERYTHING: u8 = 1;
const NAMED: u8 = 2;

/// Equal at all peers, however they were built (FNV-1a): two channels with the same hash are not
/// distinguished, so a message may be sent in vain.
fn hash(is_sharded: bool, name: &[u8]) -> u32 {
    let bytes = [u8::from(is_sharded)].into_iter().chain(name.iter().copied());
    let long = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (long ^ (long >> 32)) as u32
}

/// The answer of another peer.
struct Known {
    edition: Edition,
    interest: Interest,
    /// When it becomes invalid.
    until: Instant,
    /// When that peer last asked to forget its answer: answers to earlier batches are ignored.
    forgotten: Option<Instant>,
}

/// The answer to another peer.
#[derive(Debug, Clone, Copy)]
struct Informed {
    at: Instant,
    /// The least growth of the hub that the answer in use at that peer may reflect: the last answer
    /// may not have arrived yet.
    growth: u64,
    /// When that peer last got a long answer.
    long: Option<Instant>,
}

/// Whether a message goes to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goes {
    Yes,
    No,
    /// It does not, and the answer is to be renewed soon.
    Ask,
}

/// What peers know of each other's subscriptions. Both tables contain peers of the mesh alone.
pub(super) struct Interests {
    good_for: Duration,
    /// When this process began; it does not know what was answered before.
    began: Instant,
    known: Mutex<HashMap<PeerId, Known>>,
    informed: Mutex<HashMap<PeerId, Informed>>,
    turns: Mutex<HashMap<PeerId, Arc<tokio::sync::Mutex<()>>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Interests {
    pub(super) fn new(good_for: Duration) -> Self {
        Self {
            good_for,
            began: Instant::now(),
            known: Mutex::default(),
            informed: Mutex::default(),
            turns: Mutex::default(),
        }
    }

    /// Whether a message goes to `peer` now.
    pub(super) fn goes(&self, peer: &PeerId, message: &Published) -> Goes {
        let now = Instant::now();
        match locked(&self.known).get(peer).filter(|known| now < known.until) {
            Some(known) if known.interest.wants(message) => Goes::Yes,
            Some(known) if known.until - now < self.good_for / 2 => Goes::Ask,
            Some(_) => Goes::No,
            None => Goes::Yes,
        }
    }

    /// The edition of the answer known from `peer`.
    pub(super) fn edition(&self, peer: &PeerId) -> Edition {
        locked(&self.known).get(peer).map_or((0, 0), |known| known.edition)
    }

    /// `peer` answered a batch that was sent at `sent`; `others` are the peers of the mesh.
    pub(super) fn learn(&self, peer: &PeerId, sent: Instant, mut answer: Bytes, others: &[PeerId]) {
        let mut read = || Some((answer.try_get_u64().ok()?, answer.try_get_u64().ok()?));
        let Some(edition) = read() else { return };
        let Ok(kind) = answer.try_get_u8() else { return };
        let until = sent + self.good_for;
        let mut all = locked(&self.known);
        all.retain(|peer, _| others.contains(peer));
        let known = all.entry(peer.clone()).or_insert(Known {
            edition: (0, 0),
            interest: Interest::Everything,
            until,
            forgotten: None,
        });
        if known.forgotten.is_some_and(|at| sent <= at) {
            return;
        }
        if kind == SAME {
            if known.edition == edition {
                known.until = until;
            }
        } else if let Some(interest) = Interest::unpack(kind, answer) {
            // A peer that asked for everything is to answer in full next time.
            let edition = if interest == Interest::Everything { (0, 0) } else { edition };
            *known = Known { edition, interest, until, forgotten: known.forgotten };
        }
    }

    /// Forgets the answer of `peer`, which has a new subscription.
    pub(super) fn forget(&self, peer: PeerId) {
        let now = Instant::now();
        let nothing = Known {
            edition: (0, 0),
            interest: Interest::Everything,
            until: now,
            forgotten: Some(now),
        };
        locked(&self.known).insert(peer, nothing);
    }

    /// The answer to `peer`, which holds this edition, about this hub.
    pub(super) fn answer(&self, peer: PeerId, holds: Edition, process: u64, hub: &Hub) -> Bytes {
        let (changes, growth) = hub.changes();
        let now = Instant::now();
        let mut bytes = BytesMut::new();
        bytes.put_u64(process);
        bytes.put_u64(changes);
        // Recorded before the hub is read: a client that subscribes in between is part of the
        // answer, or finds this record.
        let long = {
            let mut informed = locked(&self.informed);
            let informed = informed.entry(peer.clone()).or_insert(self.unknown());
            // A peer that holds no answer sends everything until this one arrives.
            let lacks_nothing = holds == (0, 0) || holds == (process, changes);
            informed.growth = if lacks_nothing { growth } else { informed.growth.min(growth) };
            informed.at = now;
            informed.long
        };
        if holds == (process, changes) {
            bytes.put_u8(SAME);
            return bytes.freeze();
        }
        let mut packed = Interest::of(hub).pack();
        if packed.len() > LONG_BYTES {
            if long.is_some_and(|at| now.duration_since(at) < LONG_EVERY) {
                packed = Interest::Everything.pack();
            } else if let Some(informed) = locked(&self.informed).get_mut(&peer) {
                informed.long = Some(now);
            }
        }
        bytes.put(packed);
        bytes.freeze()
    }

    /// What is assumed of a peer to which this process has not answered.
    fn unknown(&self) -> Informed {
        Informed { at: self.began, growth: 0, long: None }
    }

    /// The answer in use at `peer`, if it may lack this growth of the hub: when it was given, and
    /// when it becomes invalid at the latest.
    pub(super) fn behind(&self, peer: &PeerId, growth: u64) -> Option<(Instant, Instant)> {
        let informed = locked(&self.informed).get(peer).copied().unwrap_or(self.unknown());
        if informed.growth >= growth {
            return None;
        }
        // Clocks do not run equally fast.
        let until = informed.at + self.good_for + self.good_for / 8;
        (Instant::now() < until).then_some((informed.at, until))
    }

    /// Records that `peer` forgot the answer that was given at this time.
    pub(super) fn forgot(&self, peer: &PeerId, given: Instant) {
        let mut informed = locked(&self.informed);
        let informed = informed.entry(peer.clone()).or_insert(self.unknown());
        // Otherwise it has got another answer since.
        if informed.at == given {
            informed.growth = u64::MAX;
        }
    }

    /// The lock under which one client at a time makes `peer` forget, on behalf of all who wait.
    pub(super) fn turn(&self, peer: &PeerId, others: &[PeerId]) -> Arc<tokio::sync::Mutex<()>> {
        locked(&self.informed).retain(|peer, _| others.contains(peer));
        let mut turns = locked(&self.turns);
        turns.retain(|peer, _| others.contains(peer));
        Arc::clone(turns.entry(peer.clone()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::pubsub::Subscriber;
    use super::*;

    fn about(channel: &str, is_sharded: bool) -> Published {
        let (channel, message) = (Bytes::copy_from_slice(channel.as_bytes()), Bytes::new());
        Published { channel, message, is_sharded }
    }

    #[test]
    fn an_interest_names_all_subscriptions_of_a_hub_and_nothing_else() {
        let hub = Arc::new(Hub::default());
        let mut subscriber = Subscriber::new(&hub);
        for (what, name) in [(What::Channel, "a"), (What::Shard, "s"), (What::Pattern, "p*")] {
            subscriber.subscribe(what, &Bytes::from(name));
        }
        let packed = Interest::of(&hub).pack();
        let unpacked = Interest::unpack(packed[0], packed.slice(1..)).unwrap();
        assert_eq!(unpacked, Interest::of(&hub));
        let wanted = [("a", false), ("s", true), ("p", false), ("pq", false)];
        assert!(wanted.iter().all(|(name, shard)| unpacked.wants(&about(name, *shard))));
        let others = [("a", true), ("s", false), ("p", true), ("b", false)];
        assert!(!others.iter().any(|(name, shard)| unpacked.wants(&about(name, *shard))));
        for end in 1..packed.len() {
            let cut_off = Interest::unpack(packed[0], packed.slice(1..end));
            assert!(cut_off.is_none_or(|it| it != unpacked), "{end}");
        }
    }

    #[test]
    fn an_interest_beyond_the_bounds_is_everything() {
        let hub = Arc::new(Hub::default());
        let mut subscriber = Subscriber::new(&hub);
        for name in 0..NAMES_MAX {
            subscriber.subscribe(What::Channel, &Bytes::from(name.to_string()));
        }
        assert!(Interest::of(&hub).pack().len() + 16 <= ANSWER_BYTES_MAX);
        assert!(!Interest::of(&hub).wants(&about("another", true)));
        subscriber.subscribe(What::Shard, &Bytes::from("one more"));
        assert_eq!(Interest::of(&hub), Interest::Everything);
        subscriber.unsubscribe(What::Shard, &[]);
        for name in 0..=PATTERNS_MAX {
            subscriber.subscribe(What::Pattern, &Bytes::from(format!("{name}*")));
        }
        assert_eq!(Interest::of(&hub), Interest::Everything);
    }

    #[tokio::test]
    async fn an_answer_to_what_was_sent_before_it_was_to_be_forgotten_is_none() {
        let (hub, it) = (Arc::new(Hub::default()), Interests::new(Duration::from_secs(3600)));
        let peer = PeerId::new("peer-1").unwrap();
        let others = [peer.clone()];
        let answer = || it.answer(peer.clone(), it.edition(&peer), 7, &hub);
        let message = about("a", false);
        assert_eq!(it.goes(&peer, &message), Goes::Yes, "nothing is known");
        let sent = Instant::now();
        it.learn(&peer, sent, answer(), &others);
        assert_eq!(it.goes(&peer, &message), Goes::No);
        let (sent, late) = (Instant::now(), answer());
        it.forget(peer.clone());
        it.learn(&peer, sent, late, &others);
        assert_eq!(it.goes(&peer, &message), Goes::Yes);
    }
    #[tokio::test]
    async fn an_answer_that_is_on_its_way_is_not_yet_gone_by() {
        let (hub, it) = (Arc::new(Hub::default()), Interests::new(Duration::from_secs(3600)));
        let peer = PeerId::new("peer-1").unwrap();
        let growth = || hub.changes().1;
        let answer = || it.answer(peer.clone(), it.edition(&peer), 7, &hub);
        it.learn(&peer, Instant::now(), answer(), std::slice::from_ref(&peer));
        let mut subscriber = Subscriber::new(&hub);
        subscriber.subscribe(What::Channel, &Bytes::from("a"));
        let (sent, late) = (Instant::now(), answer());
        assert_eq!(it.goes(&peer, &about("a", false)), Goes::No);
        assert!(it.behind(&peer, growth()).is_some(), "it goes by the answer before");
        it.learn(&peer, sent, late, std::slice::from_ref(&peer));
        answer();
        assert!(it.behind(&peer, growth()).is_none(), "it said that it holds the last one");
    }

    #[tokio::test]
    async fn who_has_just_started_has_the_answers_forgotten_of_the_process_before() {
        let it = Interests::new(Duration::from_secs(3600));
        let peer = PeerId::new("peer-1").unwrap();
        let (given, _) = it.behind(&peer, 1).unwrap();
        it.forgot(&peer, given);
        assert!(it.behind(&peer, 1).is_none());
        assert!(Interests::new(Duration::ZERO).behind(&peer, 1).is_none(), "none is good any more");
    }
}
