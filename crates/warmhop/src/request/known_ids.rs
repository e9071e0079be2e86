//! Which copies hold the sessions that apps have ids of their own for, as far as this peer has
//! learnt it lately: a shortcut to the registers that say so.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use warmhop_core::ids::{AppName, Incarnation, Now, PeerId};

/// How many ids a peer remembers; beyond that it asks for them anew.
const KNOWN_IDS_MAX: usize = 65_536;
/// How long what was learnt is believed. Whoever uses a session has its register read so often, which
/// puts its end off.
const KNOWN_FOR: Duration = Duration::from_secs(10);

/// An id of an app's: a digest, so that nobody who sees the key can use the session.
pub(crate) type IdKey = [u8; 32];

/// The copy that holds a session in its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) peer: PeerId,
    /// Its life: the next one remembers nothing.
    pub(crate) incarnation: Incarnation,
}

/// The name of the registers, which no app may have.
pub(crate) fn registers_name() -> AppName {
    AppName::new("warmhop-session-ids").expect("a constant of the right form")
}

#[derive(Default)]
pub(crate) struct KnownIds(Mutex<HashMap<IdKey, (Holder, Now)>>);

impl KnownIds {
    pub(crate) fn get(&self, key: &IdKey, now: Now) -> Option<Holder> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (holder, at) = known.get(key)?;
        (now.since(*at) < KNOWN_FOR).then(|| holder.clone())
    }

    pub(crate) fn put(&self, key: IdKey, holder: Holder, now: Now) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_IDS_MAX && !known.contains_key(&key) {
            known.retain(|_, (_, at)| now.since(*at) < KNOWN_FOR);
            if known.len() >= KNOWN_IDS_MAX {
                known.clear();
            }
        }
        known.insert(key, (holder, now));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    fn key(number: usize) -> IdKey {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        key
    }

    #[test]
    fn what_is_known_of_ids_is_bounded_and_believed_for_a_while() {
        let holder =
            Holder { peer: PeerId::new("one").unwrap(), incarnation: Incarnation([1; 16]) };
        let known = KnownIds::default();
        known.put(key(0), holder.clone(), Now(0));
        assert_eq!(known.get(&key(0), Now(9_999)), Some(holder.clone()));
        assert_eq!(known.get(&key(0), Now(10_000)), None);
        for number in 0..=KNOWN_IDS_MAX {
            known.put(key(number), holder.clone(), Now(0));
        }
        assert!(known.0.lock().unwrap().len() <= KNOWN_IDS_MAX);
        assert_eq!(known.get(&key(KNOWN_IDS_MAX), Now(0)), Some(holder));
    }
}
