//! The places of clients that get events for as long as they like. There are few, so no client may
//! take all of them: if all are taken, the client with most gives one up to another that would
//! still have fewer.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Extensions;
use tokio_util::sync::CancellationToken;

/// The origin of a watcher, as far as it can be distinguished from others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// Nobody knows.
    Unknown,
    /// A client, by its address or, for IPv6, by its network.
    Client(IpAddr),
}

impl Who {
    /// A client that is connected from this address.
    pub(crate) fn client(address: IpAddr) -> Self {
        Self::Client(match address.to_canonical() {
            // It can have any number of addresses below its own network's prefix.
            IpAddr::V6(it) => Ipv6Addr::from_bits(it.to_bits() >> 64 << 64).into(),
            it => it,
        })
    }

    /// The sender of the request with these extensions.
    pub(crate) fn sent(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or(Self::Unknown)
    }
}

/// A fixed number of places.
pub(crate) struct Places {
    max: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// In the order in which they were taken.
    taken: BTreeMap<u64, (Who, CancellationToken)>,
    next: u64,
}

/// A place, which is free again once this is dropped.
pub(crate) struct Place {
    id: u64,
    leave: CancellationToken,
    all: Arc<Places>,
}

impl Places {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, table: Mutex::default() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if there is one or another client has to give one up for it.
    pub(crate) fn take(self: &Arc<Self>, who: Who) -> Option<Place> {
        let mut table = self.table();
        if table.taken.len() >= self.max && !table.one_gives_way_to(&who) {
            return None;
        }
        table.next += 1;
        let (id, leave) = (table.next, CancellationToken::new());
        table.taken.insert(id, (who, leave.clone()));
        Some(Place { id, leave, all: Arc::clone(self) })
    }
}

impl Table {
    /// Ends the oldest place of the client with most, unless that client had no more than `who`
    /// would have then.
    fn one_gives_way_to(&mut self, who: &Who) -> bool {
        let mut counts: HashMap<&Who, usize> = HashMap::new();
        for (who, _) in self.taken.values() {
            *counts.entry(who).or_default() += 1;
        }
        let own = counts.get(who).copied().unwrap_or_default();
        let most = counts.values().copied().max().unwrap_or_default();
        if most < own + 2 {
            return false;
        }
        let oldest = self.taken.iter().find(|(_, (who, _))| counts.get(who) == Some(&most));
        let Some(id) = oldest.map(|(id, _)| *id) else { return false };
        if let Some((_, leave)) = self.taken.remove(&id) {
            leave.cancel();
        }
        true
    }
}

impl Place {
    /// Cancelled once the place belongs to another client.
    pub(crate) fn leave(&self) -> CancellationToken {
        self.leave.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.table().taken.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> Who {
        Who::client(address.parse().unwrap())
    }

    #[test]
    fn who_has_most_places_gives_its_oldest_up_until_others_have_as_many() {
        let places = Places::new(4);
        let greedy: Vec<_> = (0..4).map(|_| places.take(client("10.0.0.1")).unwrap()).collect();
        assert!(places.take(client("10.0.0.1")).is_none(), "it has them all");
        let others: Vec<_> = (0..2).map(|_| places.take(client("10.0.0.2")).unwrap()).collect();
        let left = |of: &[Place]| of.iter().filter(|place| !place.leave().is_cancelled()).count();
        assert_eq!((left(&greedy), left(&others)), (2, 2));
        assert!(greedy[0].leave().is_cancelled() && greedy[1].leave().is_cancelled());
        assert!(places.take(client("10.0.0.2")).is_none(), "both have as many");
        assert!(places.take(client("10.0.0.3")).is_some(), "one has none");
        drop(greedy);
        assert!(places.take(client("10.0.0.2")).is_some(), "one is free");
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:1"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_eq!(client("::ffff:10.0.0.1"), client("10.0.0.1"));
    }
}
