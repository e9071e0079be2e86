//! The idle connections to an app, kept for the thread that opened them.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::socket::Socket;

/// Idle connections that are kept to one app, for all threads together.
const IDLE_CONNECTIONS_MAX: usize = 256;
/// Each thread keeps at least so many, however many threads there are.
const IDLE_CONNECTIONS_MIN: usize = 16;
/// Shorter than the keep-alive time of common servers (Node.js: 5 s), so that the app seldom closes
/// first.
pub(super) const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(4);
/// How often idle connections are checked, while there are any.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Idle connections, by thread: a connection that is used by the thread which opened it wakes no
/// other thread.
pub(super) struct Pool {
    pub(super) addr: SocketAddr,
    shards: Box<[Mutex<Shard>]>,
    each_max: usize,
}

#[derive(Default)]
struct Shard {
    /// The most recently used are at the end, each with the time of its use.
    idle: Vec<(Instant, Box<Socket>)>,
    /// A task checks them.
    watched: bool,
}

impl Pool {
    pub(super) fn new(addr: SocketAddr) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let each_max = (IDLE_CONNECTIONS_MAX / threads).max(IDLE_CONNECTIONS_MIN);
        Self { addr, shards: (0..threads).map(|_| Mutex::default()).collect(), each_max }
    }

    fn shard(&self, at: usize) -> MutexGuard<'_, Shard> {
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard of the calling thread.
    fn own(&self) -> usize {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
        }
        let thread = THREAD.get().unwrap_or_else(|| {
            let thread = THREADS.fetch_add(1, Ordering::Relaxed);
            THREAD.set(Some(thread));
            thread
        });
        thread % self.shards.len()
    }

    /// A kept connection that was used less than `idle` ago and is still free, as far as is known.
    pub(super) fn take(&self, idle: Duration) -> Option<Box<Socket>> {
        let own = self.own();
        loop {
            // Taken out first, so that a connection that has ended is not dropped under the lock.
            let kept = self.shard(own).idle.pop_if(|(used, _)| used.elapsed() < idle);
            let (_, socket) = kept?;
            if socket.is_quiet() {
                return Some(socket);
            }
        }
    }

    /// Keeps a connection, unless there are enough.
    pub(super) fn put(self: &Arc<Self>, mut socket: Box<Socket>) {
        socket.writes_again();
        if !socket.is_quiet() {
            return;
        }
        let used = Instant::now();
        let own = self.own();
        let mut shard = self.shard(own);
        if shard.idle.len() >= self.each_max {
            return;
        }
        shard.idle.push((used, socket));
        if !std::mem::replace(&mut shard.watched, true) {
            tokio::spawn(watch(Arc::downgrade(self), own));
        }
    }

    /// Drops connections that have been idle for too long, or were closed by the app. Returns
    /// whether any is left.
    fn look(&self, at: usize) -> bool {
        let mut shard = self.shard(at);
        shard.idle.retain(|(used, it)| used.elapsed() < IDLE_CONNECTION_TIMEOUT && it.is_quiet());
        shard.watched = !shard.idle.is_empty();
        shard.watched
    }
}

/// Checks the idle connections of one thread for as long as there are any.
async fn watch(pool: Weak<Pool>, at: usize) {
    loop {
        sleep(LOOK_EVERY).await;
        if !pool.upgrade().is_some_and(|pool| pool.look(at)) {
            return;
        }
    }
}
