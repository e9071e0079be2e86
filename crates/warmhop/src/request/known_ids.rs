//! Which copies hold the sessions that are known by an app's own ids, as far as this peer has
//! learnt it lately: a cache of the registers that record it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use warmhop_core::ids::{AppName, Incarnation, Now, PeerId, WallTime};
use warmhop_core::version::AppVersion;

/// How many ids a peer remembers; others are read from their registers again.
const KNOWN_IDS_MAX: usize = 65_536;
/// How long a cached entry is used. While a session is in use its register is read this often,
/// which extends the register's life.
const KNOWN_FOR: Duration = Duration::from_secs(10);
/// How many claims of ids may be unconfirmed at once, or have come to nothing within [`IN_VAIN_FOR`]: so
/// many of one app, and so many of one client. What remains of such a register is kept for that long.
const IN_VAIN_MAX: u32 = 1024;
const IN_VAIN_OF_CLIENT_MAX: u32 = 64;
const IN_VAIN_FOR: Duration = Duration::from_secs(60);

/// An app's own id: a digest, so that nobody who sees the key can use the session.
pub(crate) type IdKey = [u8; 32];

/// The copy that holds a session in its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) peer: PeerId,
    /// Its life: the next one has no memory of the session.
    pub(crate) incarnation: Incarnation,
    /// The newest version of the app that has served the session.
    pub(crate) version: Option<AppVersion>,
    /// When it took the session over from a copy that was gone; 0 if it had it from the start, and
    /// [`CLAIMED`] while no answer has shown that it has it.
    pub(crate) taken: WallTime,
}

/// See [`Holder::taken`]; no session was taken over that long ago.
pub(crate) const CLAIMED: WallTime = WallTime(1);

impl Holder {
    /// Whether it was recorded for a request that was yet to be served: if that ends with an error, it is
    /// given up.
    pub(crate) fn is_claim(&self) -> bool {
        self.taken == CLAIMED
    }

    /// Whether it is the same copy, of the same version.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let Self { peer, incarnation, version, taken: _ } = self;
        (peer, incarnation, version) == (&other.peer, &other.incarnation, &other.version)
    }
}

/// The name of the registers, which no app may have.
pub(crate) fn registers_name() -> AppName {
    AppName::new("warmhop-session-ids").expect("a constant of the right form")
}

/// The contents of an id's register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) holder: Holder,
    /// The register's version; 0 if it could not be written.
    pub(crate) version: u64,
}

#[derive(Default)]
pub(crate) struct KnownIds {
    known: Mutex<HashMap<IdKey, (Known, Now)>>,
    /// When a copy of an app last ceased to be ready, or was found not to be: others may have taken
    /// over its sessions since. Only for this peer's own apps.
    unready: Mutex<HashMap<AppName, Now>>,
    in_vain: Mutex<HashMap<AppName, InVain>>,
    silences: Mutex<Silences>,
}

/// The claims of ids that no answer has confirmed, since the count last began anew.
#[derive(Default)]
struct InVain {
    since: Now,
    all: u32,
    /// Clients without any are not in it.
    by_client: HashMap<u64, u32>,
}

/// When peers last fell silent, or were heard again: others may have taken over their sessions
/// meanwhile.
#[derive(Default)]
struct Silences {
    last: Option<Now>,
    of: HashMap<PeerId, Now>,
}

impl KnownIds {
    /// Notes that the peer fell silent, or is heard again. For that peer it may be this one that
    /// was silent.
    pub(crate) fn silence(&self, peer: &PeerId, at: Now) {
        let mut silences = self.silences.lock().unwrap_or_else(PoisonError::into_inner);
        silences.last = Some(at);
        silences.of.retain(|_, last| at.since(*last) < KNOWN_FOR);
        silences.of.insert(peer.clone(), at);
    }

    /// Whether the holder was heard, without a break, since `at`.
    fn is_heard_since(&self, holder: &PeerId, me: &PeerId, at: Now) -> bool {
        let silences = self.silences.lock().unwrap_or_else(PoisonError::into_inner);
        let last = if holder == me { silences.last } else { silences.of.get(holder).copied() };
        last.is_none_or(|last| at > last)
    }

    /// As [`KnownIds::get`], unless its holder was silent meanwhile.
    pub(crate) fn get_heard(
        &self,
        key: &IdKey,
        app: &AppName,
        me: &PeerId,
        now: Now,
    ) -> Option<Known> {
        let known = self.get(key, app, now)?;
        let learnt_at = {
            let all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            all.get(key).map(|(_, at)| *at)?
        };
        self.is_heard_since(&known.holder.peer, me, learnt_at).then_some(known)
    }

    /// The cached entry, if it is recent, and all ready copies of `app` have been ready since.
    pub(crate) fn get(&self, key: &IdKey, app: &AppName, now: Now) -> Option<Known> {
        let unready = self.unready.lock().unwrap_or_else(PoisonError::into_inner).get(app).copied();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, at) = known.get(key)?;
        let is_fresh = now.since(*at) < KNOWN_FOR && unready.is_none_or(|unready| *at > unready);
        is_fresh.then(|| known.clone())
    }

    /// Counts one more claim of an id; false if too many have come to nothing lately. Each costs two
    /// changes of a register, so a client that makes up ids which its app refuses gets no more of them.
    pub(crate) fn may_claim(&self, app: &AppName, client: u64, now: Now) -> bool {
        let mut apps = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = apps.entry(app.clone()).or_default();
        if now.since(counted.since) >= IN_VAIN_FOR {
            *counted = InVain { since: now, ..InVain::default() };
        }
        let of_client = counted.by_client.get(&client).copied().unwrap_or(0);
        let may = counted.all < IN_VAIN_MAX && of_client < IN_VAIN_OF_CLIENT_MAX;
        if may {
            counted.all += 1;
            counted.by_client.insert(client, of_client + 1);
        }
        may
    }

    /// An answer has confirmed a claim.
    pub(crate) fn confirm_claim(&self, app: &AppName, client: u64) {
        let mut apps = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counted) = apps.get_mut(app)
            && let Some(of_client) = counted.by_client.get_mut(&client)
        {
            *of_client -= 1;
            counted.all -= 1;
            if *of_client == 0 {
                counted.by_client.remove(&client);
            }
        }
    }

    pub(crate) fn put(&self, key: IdKey, learnt: Known, now: Now) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_IDS_MAX && !known.contains_key(&key) {
            known.retain(|_, (_, at)| now.since(*at) < KNOWN_FOR);
            if known.len() >= KNOWN_IDS_MAX {
                known.clear();
            }
        }
        known.insert(key, (learnt, now));
    }

    /// Forgets the id: its register has to be read.
    pub(crate) fn forget(&self, key: &IdKey) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// A copy of `app` was not ready at `at`: earlier entries may no longer be true.
    pub(crate) fn unready(&self, app: &AppName, at: Now) {
        let mut unready = self.unready.lock().unwrap_or_else(PoisonError::into_inner);
        match unready.get_mut(app) {
            Some(last) => *last = at.max(*last),
            None => drop(unready.insert(app.clone(), at)),
        }
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
    fn claims_that_come_to_nothing_are_bounded_for_each_client_and_for_all() {
        let (app, other) = (AppName::new("a").unwrap(), AppName::new("b").unwrap());
        let known = KnownIds::default();
        for _ in 0..10 * IN_VAIN_OF_CLIENT_MAX {
            assert!(known.may_claim(&app, 1, Now(5)));
            known.confirm_claim(&app, 1);
        }
        let claims = |client: u64, at: u64| {
            (0..IN_VAIN_MAX).filter(|_| known.may_claim(&app, client, Now(at))).count()
        };
        let all: usize = (1..100).map(|client| claims(client, 5)).sum();
        assert_eq!(all, IN_VAIN_MAX as usize);
        assert_eq!(known.in_vain.lock().unwrap()[&app].by_client[&1], IN_VAIN_OF_CLIENT_MAX);
        assert!(known.may_claim(&other, 1, Now(5)));
        known.confirm_claim(&app, 1);
        assert_eq!(claims(1, 59_999), 1);
        assert_eq!(claims(1, 60_000), IN_VAIN_OF_CLIENT_MAX as usize);
    }

    #[test]
    fn the_table_of_ids_is_bounded_and_its_entries_expire() {
        let (peer, incarnation) = (PeerId::new("one").unwrap(), Incarnation([1; 16]));
        let holder = Holder { peer, incarnation, version: None, taken: WallTime(0) };
        let learnt = Known { holder, version: 1 };
        let (app, other) = (AppName::new("a").unwrap(), AppName::new("b").unwrap());
        let known = KnownIds::default();
        known.put(key(0), learnt.clone(), Now(1));
        assert_eq!(known.get(&key(0), &app, Now(10_000)), Some(learnt.clone()));
        assert_eq!(known.get(&key(0), &app, Now(10_001)), None);
        known.unready(&other, Now(1));
        assert_eq!(known.get(&key(0), &app, Now(2)), Some(learnt.clone()));
        assert_eq!(known.get(&key(0), &other, Now(2)), None, "its copy may have lost the session");
        known.put(key(0), learnt.clone(), Now(2));
        known.unready(&other, Now(0));
        assert_eq!(known.get(&key(0), &other, Now(2)), Some(learnt.clone()));
        let get_at = |me: &PeerId| known.get_heard(&key(0), &app, me, Now(9));
        let (holder, me) = (PeerId::new("one").unwrap(), PeerId::new("me").unwrap());
        known.silence(&me, Now(5));
        assert_eq!(get_at(&me), Some(learnt.clone()));
        assert_eq!(get_at(&holder), None, "to another peer this one may have been silent");
        known.silence(&holder, Now(5));
        assert_eq!(get_at(&me), None, "others may have taken over what it held");
        known.put(key(0), learnt.clone(), Now(6));
        assert_eq!(get_at(&me), Some(learnt.clone()));
        for number in 0..=KNOWN_IDS_MAX {
            known.put(key(number), learnt.clone(), Now(0));
        }
        assert!(known.known.lock().unwrap().len() <= KNOWN_IDS_MAX);
        assert_eq!(known.get(&key(KNOWN_IDS_MAX), &app, Now(0)), Some(learnt));
    }
}
