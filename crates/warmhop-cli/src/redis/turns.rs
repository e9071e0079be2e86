//! Turns: the clients of one peer change a key one after the other.
//!
//! Only speed depends on turns, since every change is compared by version: if two clients read the
//! same value, one of them has to retry, and a register takes only a few waiting changes. So every
//! wait for a turn is bounded, and a client that has waited too long proceeds without one.
//!
//! A turn that fails after a while shows that the key's holders are unreachable. The clients in
//! line behind it would find the same one after the other, each taking as long: they fail at once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::frame::Reply;

/// How many changes of one key that do not depend on its value are under way at once: enough to
/// keep its register busy, and few compared with what that accepts from all peers.
const TOGETHER_MAX: u32 = 8;
/// How long a client waits for its turn before it proceeds without one.
const TURN_WITHIN: Duration = Duration::from_secs(10);
/// How many clients may be in line for one key; further ones are refused.
const IN_LINE_MAX: usize = 1024;
/// How many keys have lines at once; changes of further keys have no turns.
const LINES_MAX: usize = 64 * 1024;
/// How long a failed change has to have tried for those behind it to fail as well. A change that is
/// refused sooner was refused for a reason that does not concern them.
const TRIED_FOR: Duration = Duration::from_secs(1);

/// How a change of a key is ordered among others of the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It depends on the key's value: no other change may come in between.
    Alone,
    /// It does not.
    Together,
}

/// The lines of clients that change keys, by the name of the key's register.
#[derive(Default)]
pub(super) struct Turns {
    lines: Mutex<HashMap<Bytes, Line>>,
}

struct Line {
    shared: Arc<Shared>,
    /// How many are in line, including those whose turn it is.
    in_line: usize,
}

struct Shared {
    room: Semaphore,
    in_vain: Notify,
}

/// A place in a line, and a turn unless that took too long; dropping it gives both back.
pub(super) struct Place<'a> {
    turns: &'a Turns,
    name: Bytes,
    shared: Option<Arc<Shared>>,
    /// How many of the room's places are its own while it is its turn.
    turn: Option<u32>,
    since: Instant,
}

impl Turns {
    fn lines(&self) -> MutexGuard<'_, HashMap<Bytes, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn with the key of this name.
    ///
    /// # Errors
    /// With the client's error, if too many wait, or if a change before it failed.
    pub(super) async fn wait(&self, name: &Bytes, turn: Turn) -> Result<Place<'_>, Reply> {
        let mut place = self.join(name)?;
        let Some(shared) = place.shared.clone() else { return Ok(place) };
        let places = if turn == Turn::Alone { TOGETHER_MAX } else { 1 };
        // Mostly nobody else is in line. Whoever waits has the places that are given back.
        if let Ok(turn) = shared.room.try_acquire_many(places) {
            place.takes(turn);
            return Ok(place);
        }
        let turn = tokio::select! {
            biased;
            () = shared.in_vain.notified() => {
                let detail = "nothing was done: a change of the key before this one was not \
                              confirmed by a majority of its holders";
                return Err(Reply::error("TRYAGAIN", detail));
            }
            turn = shared.room.acquire_many(places) => turn.ok(),
            () = tokio::time::sleep(TURN_WITHIN) => None,
        };
        turn.into_iter().for_each(|turn| place.takes(turn));
        place.since = Instant::now();
        Ok(place)
    }

    fn join(&self, name: &Bytes) -> Result<Place<'_>, Reply> {
        let mut lines = self.lines();
        let is_full = lines.len() >= LINES_MAX;
        let shared = match lines.entry(name.clone()) {
            Entry::Occupied(line) if line.get().in_line >= IN_LINE_MAX => {
                let detail = "nothing was done: too many wait to change the key already";
                return Err(Reply::error("TRYAGAIN", detail));
            }
            Entry::Occupied(mut line) => {
                line.get_mut().in_line += 1;
                Some(Arc::clone(&line.get().shared))
            }
            Entry::Vacant(_) if is_full => None,
            Entry::Vacant(free) => {
                let room = Semaphore::new(TOGETHER_MAX as usize);
                let shared = Arc::new(Shared { room, in_vain: Notify::new() });
                free.insert(Line { shared: Arc::clone(&shared), in_line: 1 });
                Some(shared)
            }
        };
        Ok(Place { turns: self, name: name.clone(), shared, turn: None, since: Instant::now() })
    }
}

impl Place<'_> {
    /// It gives the places back when it is dropped: a permit that did would need its room in memory of its
    /// own.
    fn takes(&mut self, turn: SemaphorePermit<'_>) {
        self.turn = u32::try_from(turn.num_permits()).ok();
        turn.forget();
    }

    /// Records that the change failed: no majority of the key's holders acknowledged it.
    pub(super) fn in_vain(&self) {
        if self.since.elapsed() >= TRIED_FOR
            && let Some(shared) = &self.shared
        {
            shared.in_vain.notify_waiters();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(shared) = &self.shared else { return };
        if let Some(places) = self.turn.take() {
            shared.room.add_permits(places as usize);
        }
        let mut lines = self.turns.lines();
        if let Some(line) = lines.get_mut(&self.name) {
            line.in_line -= 1;
            if line.in_line == 0 {
                lines.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn name(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_s_turn_keeps_no_other_key_waiting_and_leaves_nothing_behind() {
        let turns = Turns::default();
        let first = turns.wait(&name("a"), Turn::Alone).await.unwrap();
        for other in 0..2000 {
            let other = Bytes::from(format!("other:{other}"));
            assert!(turns.wait(&other, Turn::Alone).await.unwrap().turn.is_some());
        }
        assert!(turns.wait(&name("a"), Turn::Together).now_or_never().is_none());
        drop(first);
        assert!(turns.wait(&name("a"), Turn::Alone).now_or_never().is_some());
        assert!(turns.lines().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_too_long_goes_on_without_a_turn() {
        let turns = Turns::default();
        let _first = turns.wait(&name("a"), Turn::Alone).await.unwrap();
        let late = turns.wait(&name("a"), Turn::Alone).await.unwrap();
        assert!(late.turn.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_not_reached_in_time_ends_the_wait_of_all_behind_it() {
        let turns = Turns::default();
        let first = turns.wait(&name("a"), Turn::Together).await.unwrap();
        let a = name("a");
        let mut behind: Vec<_> = (0..5).map(|_| Box::pin(turns.wait(&a, Turn::Alone))).collect();
        for waits in &mut behind {
            assert!(waits.now_or_never().is_none());
        }
        first.in_vain();
        for waits in &mut behind {
            assert!(waits.now_or_never().is_none(), "it was refused at once");
        }
        tokio::time::advance(TRIED_FOR).await;
        first.in_vain();
        for waits in &mut behind {
            let Some(Err(Reply::Error(error))) = waits.now_or_never() else { panic!("it waits") };
            assert!(error.starts_with("TRYAGAIN nothing was done"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_line_has_an_end() {
        let turns = Turns::default();
        let mut line = Vec::new();
        for _ in 0..IN_LINE_MAX {
            line.push(turns.join(&name("a")).ok().unwrap());
        }
        assert!(turns.wait(&name("a"), Turn::Together).await.is_err());
        line.clear();
        assert!(turns.wait(&name("a"), Turn::Together).await.is_ok());
    }
}
