//! The load of the copies of one app elsewhere: as their peers' last replies reported it, and how
//! many requests of this peer they are serving.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use warmhop_core::ids::{Now, PeerId};
use warmhop_core::route::{Noted, NotedLoad};

use crate::app::places::Places;
use crate::hop::Load;

/// By peer. Those that are gone are forgotten: see [`Loads::retain`].
#[derive(Debug, Default)]
pub(crate) struct Loads(Mutex<HashMap<PeerId, Noted>>);

impl Loads {
    fn all(&self) -> MutexGuard<'_, HashMap<PeerId, Noted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
            None => _ = all.insert(peer.clone(), Noted { load: Some(load), ours: 0 }),
        }
    }

    pub(crate) fn retain(&self, is_there: impl Fn(&PeerId) -> bool) {
        self.all().retain(|peer, known| known.ours > 0 || is_there(peer));
    }

    fn begins(&self, peer: &PeerId) {
        let mut all = self.all();
        match all.get_mut(peer) {
            Some(known) => known.ours += 1,
            None => _ = all.insert(peer.clone(), Noted { load: None, ours: 1 }),
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
    was_refused: bool,
}

impl ServedThere {
    pub(crate) fn new(loads: &Arc<Loads>, places: &Arc<Places>, peer: &PeerId) -> Self {
        loads.begins(peer);
        let (loads, places) = (Arc::clone(loads), Arc::clone(places));
        Self { loads, places, peer: peer.clone(), was_refused: false }
    }

    /// The peer refused it: it never was among those that the peer tells of, and it frees no place
    /// there.
    pub(crate) fn refused(mut self) {
        self.was_refused = true;
    }
}

impl Drop for ServedThere {
    fn drop(&mut self) {
        self.loads.ends(&self.peer, !self.was_refused);
        self.places.freed_at(&self.peer);
    }
}
