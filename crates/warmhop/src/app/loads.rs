//! The load of the copies of one app elsewhere: as their peers' last replies reported it, and how
//! many requests of this peer they are serving.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use warmhop_core::ids::{Now, PeerId};
use warmhop_core::queue::Flow;
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
    /// And of each client and session, where copies serve so many at once.
    flows: Mutex<HashMap<PeerId, Arc<Shares<Flow>>>>,
}

/// Whose request another peer is serving, as far as that counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Whose {
    /// Its client, where clients have shares of the places.
    pub(crate) client: Option<u64>,
    /// Its client and session, where copies have places.
    pub(crate) flow: Option<Flow>,
}

impl Loads {
    fn all(&self) -> MutexGuard<'_, HashMap<PeerId, Noted>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shares(&self) -> MutexGuard<'_, HashMap<PeerId, Arc<Shares>>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flows(&self) -> MutexGuard<'_, HashMap<PeerId, Arc<Shares<Flow>>>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the peer is serving, or lets wait, a request of this client and session that came here.
    pub(crate) fn has(&self, peer: &PeerId, flow: Flow) -> bool {
        self.flows().get(peer).is_some_and(|flows| flows.of(flow) > 0)
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
        self.flows().retain(|_, flows| !flows.is_empty());
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
    /// And its session, where copies have places.
    flow: Option<(Flow, Arc<Shares<Flow>>)>,
    was_refused: bool,
}

impl ServedThere {
    pub(crate) fn new(
        loads: &Arc<Loads>,
        places: &Arc<Places>,
        peer: &PeerId,
        whose: Whose,
    ) -> Self {
        loads.begins(peer);
        // That peer says whether it is too much.
        let client = whose.client.map(|client| {
            let mut all = loads.shares();
            let shares = all.entry(peer.clone()).or_default();
            shares.take(client, u32::MAX);
            (client, Arc::clone(shares))
        });
        let flow = whose.flow.map(|flow| {
            let mut all = loads.flows();
            let flows = all.entry(peer.clone()).or_default();
            flows.take(flow, u32::MAX);
            (flow, Arc::clone(flows))
        });
        let (loads, places) = (Arc::clone(loads), Arc::clone(places));
        Self { loads, places, peer: peer.clone(), client, flow, was_refused: false }
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
        if let Some((flow, flows)) = &self.flow {
            flows.give_back(*flow);
        }
        self.places.freed_at(&self.peer, self.client.as_ref().map(|(client, _)| *client));
    }
}
