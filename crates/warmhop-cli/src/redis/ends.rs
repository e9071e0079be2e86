//! The ends of keys, where they are told: a register is kept on past the end of its key, and whoever
//! takes the key out of it, as a change like any other, tells of it. So each end is told once, and the
//! death of any peer is no reason for it not to be.
//!
//! The peer that a key was changed at last takes it out as its end comes. Those that have a copy of it
//! look, now and then, whether there is one that nobody has taken out.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::engine::{Database, Outcome, Stop};
use super::frame::Reply;
use super::room;

/// How many registers are known here whose keys end, at most; the ends of further ones are found when
/// copies are looked through.
const KNOWN_MAX: usize = 1 << 20;
/// How many keys are taken out at once.
const AT_ONCE: usize = 32;
/// How often the copies of this peer are looked through.
const LOOKED_EVERY: Duration = Duration::from_secs(5);
/// How long past its end a key is left to the peer that it was changed at last, in milliseconds.
const LEFT_FOR: u64 = 1000;
/// How long nothing is looked at where no end is known.
const RESTS: Duration = Duration::from_secs(1);

/// When keys of which registers end that were changed here last.
#[derive(Default)]
pub(super) struct Ends {
    known: Mutex<Known>,
    sooner: Notify,
}

#[derive(Default)]
struct Known {
    by_name: HashMap<Bytes, u64>,
    in_order: BTreeSet<(u64, Bytes)>,
}

impl Known {
    fn forget(&mut self, name: &Bytes) {
        if let Some((name, end)) = self.by_name.remove_entry(name) {
            self.in_order.remove(&(end, name));
        }
    }
}

impl Ends {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first key of a register ends then; or none does.
    pub(super) fn set(&self, name: &Bytes, end: Option<u64>) {
        let mut known = self.known();
        known.forget(name);
        let Some(end) = end.filter(|_| known.by_name.len() < KNOWN_MAX) else { return };
        let is_first = known.in_order.first().is_none_or(|(first, _)| end < *first);
        let name = Bytes::copy_from_slice(name);
        known.by_name.insert(name.clone(), end);
        known.in_order.insert((end, name));
        drop(known);
        if is_first {
            self.sooner.notify_one();
        }
    }

    /// Takes those whose end has come, and says when the next one does.
    fn due(&self, now: u64) -> (Vec<Bytes>, Option<u64>) {
        let mut known = self.known();
        let mut due = Vec::new();
        while let Some((end, name)) = known.in_order.first().cloned() {
            if end > now || due.len() == AT_ONCE {
                return (due, Some(end));
            }
            known.forget(&name);
            due.push(name);
        }
        (due, None)
    }
}

impl Database {
    /// Takes out keys whose end has come, and tells of them, for as long as it is polled.
    pub(super) async fn tell_ends(&self) {
        let ends = &self.shared.ends;
        let mut looked = Instant::now();
        loop {
            if looked.elapsed() >= LOOKED_EVERY {
                self.look_for_overdue().await;
                looked = Instant::now();
            }
            let now = self.now();
            let (due, next) = ends.due(now);
            if due.is_empty() {
                let rests = next.map_or(RESTS, |next| Duration::from_millis(next - now)).min(RESTS);
                tokio::select! {
                    () = sleep(rests) => {}
                    () = ends.sooner.notified() => {}
                }
                continue;
            }
            stream::iter(due).for_each_concurrent(AT_ONCE, |name| self.end_keys(name)).await;
        }
    }

    async fn end_keys(&self, name: Bytes) {
        let database = Self { index: room::index_of(&name), ..self.clone() };
        let take_out = |mut room: room::Room| {
            room.ended_are_a_change();
            let (reply, stands) = (Reply::OK, true);
            std::future::ready(Outcome { room, reply, stands, depends: true })
        };
        if let Err(Stop::Told(Reply::Error(why))) = database.update(&name, take_out).await {
            // It is found when copies are looked through.
            debug!(why, "a key that has ended could not be taken out yet");
        }
    }

    /// Notes the keys in this peer's copies that ended a while ago: the peer that would have taken
    /// them out did not.
    async fn look_for_overdue(&self) {
        let overdue = self.now().saturating_sub(LEFT_FOR);
        let is_overdue = |name: &[u8], held: &[u8]| {
            let end = room::first_end_of(name, held).filter(|end| *end <= overdue)?;
            Some((Bytes::copy_from_slice(name), end))
        };
        for part in 0.. {
            let Some(found) = self.registers.copies_here(part, is_overdue) else { return };
            for (name, end) in found {
                self.shared.ends.set(&name, Some(end));
            }
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_is_due_once_at_the_end_that_was_set_last() {
        let ends = Ends::default();
        let [a, b] = ["a", "b"].map(Bytes::from);
        ends.set(&a, Some(10));
        ends.set(&b, Some(5));
        ends.set(&a, Some(20));
        assert_eq!(ends.due(4), (vec![], Some(5)));
        assert_eq!(ends.due(15), (vec![b.clone()], Some(20)));
        ends.set(&a, None);
        assert_eq!(ends.due(100), (vec![], None));
        for number in 0..AT_ONCE + 1 {
            ends.set(&Bytes::from(number.to_string()), Some(1));
        }
        assert_eq!(ends.due(1).0.len(), AT_ONCE);
        assert_eq!(ends.due(1).0.len(), 1);
    }
}
