//! The load of the copies of one app elsewhere: as their peers' last replies reported it, and how
//! many requests of this peer they are serving.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use warmhop_core::ids::{Now, PeerId};
use warmhop_core::route::{Noted, NotedLoad};

use crate::app::places::Places;
use crate::app::shares::Shares;
use crate::hop::Load;

/// By peer. Those that are gone are forgotten: see [`Loads::retain`].
#[derive(Debug, Default)]
pub(crate) struct Loads {
    noted: Mutex<HashMap<PeerId, Noted>>,
    /// How many requests of each client other peers are serving, where clients have shares.
    shares: Mutex<HashMap<PeerId, Arc<Shares>>>,
}

impl Loads {
    fn all(&self) -> MutexGuard<'_, HashMap<PeerId, Noted>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shares(&self) -> MutexGuard<'_, HashMap<PeerId, Arc<Shares>>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests of the client that came here the peer is serving.
    pub(crate) fn of_client(&self, peer: &PeerId, client: u64) -> u32 {
        self.shares().get(peer).map_or(0, |shares| shares.of(client))
    }

    pub(crate) fn of(&self, peer: &PeerId) -> Noted {
        self.all().get(peer).copied().unwrap_or_default()
    }

    /// Notes the load in a peer's reply.
    pub(crate) fn note(&self, peer: &PeerId, load: Load, now: Now) {
        let Load { in_flight, latency_us } = load;
        let load = NotedLoad { in_flight, latency_us, at: now };
        let mut all = self.all();
        match all.get_mut(peer) {
            Some(known) => known.load = Some(load),
            None => _ = all.insert(peer.clone(), Noted { load: Some(load), ..Noted::default() }),
        }
    }

    pub(crate) fn retain(&self, is_there: impl Fn(&PeerId) -> bool) {
        self.all().retain(|peer, known| known.ours > 0 || is_there(peer));
        self.shares().retain(|_, shares| !shares.is_empty());
    }

    fn begins(&self, peer: &PeerId) {
        let mut all = self.all();
        match all.get_mut(peer) {
            Some(known) => known.ours += 1,
            None => _ = all.insert(peer.clone(), Noted { ours: 1, ..Noted::default() }),
        }
    }

    /// A request of this peer is no longer there. `was_counted` says that the peer's reported load
    /// included it.
    fn ends(&self, peer: &PeerId, was_counted: bool) {
        if let Some(known) = self.all().get_mut(peer) {
            known.ours = known.ours.saturating_sub(1);
            if let Some(load) = known.load.as_mut().filter(|_| was_counted) {
                load.in_flight = load.in_flight.saturating_sub(1);
            }
        }
    }
}

/// Counts a request of this peer that another one is serving, until it is dropped.
pub(crate) struct ServedThere {
    loads: Arc<Loads>,
    places: Arc<Places>,
    peer: PeerId,
    /// Its client, where clients have shares.
    client: Option<(u64, Arc<Shares>)>,
    was_refused: bool,
}

impl ServedThere {
    pub(crate) fn new(
        loads: &Arc<Loads>,
        places: &Arc<Places>,
        peer: &PeerId,
        client: Option<u64>,
    ) -> Self {
        loads.begins(peer);
        let client = client.map(|client| {
            let mut all = loads.shares();
            let shares = all.entry(peer.clone()).or_default();
            // That peer says whether it is too much.
            shares.take(client, u32::MAX);
            (client, Arc::clone(shares))
        });
        let (loads, places) = (Arc::clone(loads), Arc::clone(places));
        Self { loads, places, peer: peer.clone(), client, was_refused: false }
    }

    /// The peer refused it: the load that the peer reports never included it, and it frees no place
    /// there.
    pub(crate) fn refused(mut self) {
        self.was_refused = true;
    }
}

impl Drop for ServedThere {
    fn drop(&mut self) {
        self.loads.ends(&self.peer, !self.was_refused);
        if let Some((client, shares)) = &self.client {
            shares.give_back(*client);
        }
        self.places.freed_at(&self.peer, self.client.as_ref().map(|(client, _)| *client));
    }
}
