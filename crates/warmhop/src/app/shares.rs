//! How many places of one copy each client has.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use warmhop_core::queue::Flow;

/// By client, or by client and session. Who has no place is not in it, so it has at most as many entries
/// as there are places.
#[derive(Debug)]
pub(crate) struct Shares<Of = u64>(Mutex<HashMap<Of, u32>>);

impl<Of> Default for Shares<Of> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<Of: Copy + Eq + Hash> Shares<Of> {
    fn all(&self) -> MutexGuard<'_, HashMap<Of, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn of(&self, client: Of) -> u32 {
        self.all().get(&client).copied().unwrap_or(0)
    }

    /// Takes a place for the client, unless it has `most` already.
    pub(crate) fn take(&self, client: Of, most: u32) -> bool {
        let mut all = self.all();
        let has = all.entry(client).or_default();
        if *has >= most {
            return false;
        }
        *has += 1;
        true
    }

    pub(crate) fn give_back(&self, client: Of) {
        let mut all = self.all();
        if let Some(has) = all.get_mut(&client) {
            *has -= 1;
            if *has == 0 {
                all.remove(&client);
            }
        }
    }

    /// Whether nobody has a place.
    pub(crate) fn is_empty(&self) -> bool {
        self.all().is_empty()
    }
}

/// Whether the client of a flow is known by its address, and so can be distinguished from others.
pub(crate) fn is_known(flow: Flow) -> bool {
    flow.client != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_takes_more_than_its_share_and_one_without_requests_is_forgotten() {
        let shares = Shares::<u64>::default();
        assert!(shares.take(1, 2) && shares.take(1, 2) && shares.take(2, 2));
        assert!(!shares.take(1, 2));
        assert_eq!((shares.of(1), shares.of(2), shares.of(3)), (2, 1, 0));
        shares.give_back(1);
        assert!(shares.take(1, 2));
        for client in [1, 1, 2] {
            shares.give_back(client);
        }
        assert!(shares.is_empty());
    }
}
