//! How much memory all clients together take by what is not finished: requests of which a part has arrived,
//! commands that wait for `EXEC` or in a blocking read, keys that are watched, and replies that are not
//! read. Each client has bounds of its own, but there may be thousands of clients.
//!
//! Beyond the bound for all, one client is disconnected: that which takes the most, and of those that take
//! about as much that which has done so for the longest. So nobody can keep others from their share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::seldom::Seldom;

/// How much a client may take that is not counted.
pub(super) const FREE_BYTES: usize = 32 * 1024;
/// The least that all clients may take together.
const BYTES_MIN: usize = 128 * 1024 * 1024;

/// What all clients take.
pub(super) struct Holdings {
    bytes_max: usize,
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    bytes: usize,
    by_client: HashMap<i64, Held>,
}

struct Held {
    bytes: usize,
    since: Instant,
    ends: CancellationToken,
}

/// What one client takes.
pub(super) struct Holding {
    all: Arc<Holdings>,
    client: i64,
    requests: AtomicUsize,
    replies: AtomicUsize,
    /// As it was counted last.
    counted: AtomicUsize,
    ends: CancellationToken,
}

impl Holdings {
    /// With room for so many bytes, or a little.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max: bytes_max.max(BYTES_MIN), counted: Mutex::default() }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much they take.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.counted().bytes
    }

    pub(super) fn of(self: &Arc<Self>, client: i64) -> Holding {
        Holding {
            all: Arc::clone(self),
            client,
            requests: AtomicUsize::new(0),
            replies: AtomicUsize::new(0),
            counted: AtomicUsize::new(0),
            ends: CancellationToken::new(),
        }
    }

    fn set(&self, client: i64, bytes: usize, ends: &CancellationToken) {
        let mut counted = self.counted();
        if ends.is_cancelled() {
            // It is no longer counted.
            return;
        }
        if let Some(held) = counted.by_client.get_mut(&client) {
            let before = std::mem::replace(&mut held.bytes, bytes);
            counted.bytes = counted.bytes - before + bytes;
        } else if bytes > 0 {
            let (since, ends) = (Instant::now(), ends.clone());
            counted.by_client.insert(client, Held { bytes, since, ends });
            counted.bytes += bytes;
        }
        if bytes == 0 {
            counted.by_client.remove(&client);
        }
        while counted.bytes > self.bytes_max {
            let Some(client) = counted.hardest() else { return };
            let Some(held) = counted.by_client.remove(&client) else { return };
            counted.bytes -= held.bytes;
            held.ends.cancel();
            static LINES: Seldom = Seldom::new();
            if let Some(not_logged) = LINES.due() {
                warn!(
                    bytes = held.bytes,
                    not_logged,
                    "a Redis client is disconnected: all clients' unfinished requests and unread replies \
                     would take over {} bytes, and it holds the most",
                    self.bytes_max
                );
            }
        }
    }
}

impl Counted {
    /// The client that has to go first.
    fn hardest(&self) -> Option<i64> {
        let weight = |held: &Held| held.bytes.checked_ilog2();
        let all = self.by_client.iter();
        let hardest = all.max_by(|(_, one), (_, other)| {
            weight(one).cmp(&weight(other)).then(other.since.cmp(&one.since))
        });
        hardest.map(|(client, _)| *client)
    }
}

impl Holding {
    /// So many bytes of its requests are kept.
    pub(super) fn requests(&self, bytes: usize) {
        self.requests.store(bytes, Ordering::Relaxed);
        self.count();
    }

    /// So many bytes of its replies, and of the commands that they are for.
    pub(super) fn replies(&self, bytes: usize) {
        self.replies.store(bytes, Ordering::Relaxed);
        self.count();
    }

    fn count(&self) {
        let all = [&self.requests, &self.replies].map(|bytes| bytes.load(Ordering::Relaxed));
        let bytes = all.iter().sum::<usize>();
        let bytes = if bytes <= FREE_BYTES { 0 } else { bytes };
        if self.counted.swap(bytes, Ordering::Relaxed) != bytes {
            self.all.set(self.client, bytes, &self.ends);
        }
    }

    /// Whether it may have to end.
    pub(super) fn is_counted(&self) -> bool {
        self.counted.load(Ordering::Relaxed) > 0
    }

    /// Waits until it has to end.
    pub(super) async fn ended(&self) {
        self.ends.cancelled().await;
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if self.is_counted() {
            self.all.set(self.client, 0, &self.ends);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_that_takes_the_most_for_the_longest_goes_first() {
        let all = Arc::new(Holdings::new(0));
        let mib = 1024 * 1024;
        let large: Vec<Holding> = (0..8).map(|client| all.of(client)).collect();
        for holding in &large {
            holding.requests(8 * mib);
            holding.replies(7 * mib);
        }
        let small: Vec<Holding> = (8..4000).map(|client| all.of(client)).collect();
        for holding in &small {
            holding.requests(FREE_BYTES);
        }
        let ended = || large.iter().filter(|it| it.ends.is_cancelled()).count();
        assert_eq!((all.bytes(), ended()), (120 * mib, 0));
        for (at, holding) in small.iter().take(16).enumerate() {
            holding.requests(mib);
            assert_eq!(ended(), usize::from(at >= 8), "{at}");
        }
        assert!(large[0].ends.is_cancelled() && !small.iter().any(|it| it.ends.is_cancelled()));
        // What is disconnected counts no more, whatever it still notes.
        large[0].requests(9 * mib);
        large[1].replies(0);
        assert_eq!(all.bytes(), (120 - 15 - 7 + 16) * mib);
        drop((large, small));
        assert_eq!(all.bytes(), 0);
    }
}
