//! The registers with keys whose expiry this peer publishes.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// How many registers with expiring keys this peer keeps track of; the ends of further ones are
/// found when copies are looked through.
const KNOWN_MAX: usize = 1 << 20;
/// How many keys are removed at once.
pub(super) const AT_ONCE: usize = 32;

/// The next end of a key in each register that was last changed at this peer.
#[derive(Default)]
pub(super) struct Ends {
    known: Mutex<Known>,
    pub(super) sooner: Notify,
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

    /// Sets when the first key of a register ends, if one does.
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

    /// Takes the registers whose end has come; also returns when the next end comes.
    pub(super) fn due(&self, now: u64) -> (Vec<Bytes>, Option<u64>) {
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
