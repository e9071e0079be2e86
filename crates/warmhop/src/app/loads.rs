//! How busy the copies of one app elsewhere are: what their peers told with their replies, and how
//! many requests of this peer they are serving.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use warmhop_core::ids::{Now, PeerId};

use crate::app::places::Places;
use crate::hop::Load;

/// What is known of one peer's copy.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Known {
    /// What it told last, and when.
    pub(crate) told: Option<(Load, Now)>,
    /// This peer's requests that it is serving.
    pub(crate) ours: u32,
}

/// By peer. Those that are gone are forgotten: see [`Loads::retain`].
#[derive(Debug, Default)]
pub(crate) struct Loads(Mutex<HashMap<PeerId, Known>>);

impl Loads {
    fn all(&self) -> MutexGuard<'_, HashMap<PeerId, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn of(&self, peer: &PeerId) -> Known {
        self.all().get(peer).copied().unwrap_or_default()
    }

    /// Notes what a peer told with its reply.
    pub(crate) fn note(&self, peer: &PeerId, load: Load, now: Now) {
        let mut all = self.all();
        match all.get_mut(peer) {
            Some(known) => known.told = Some((load, now)),
            None => _ = all.insert(peer.clone(), Known { told: Some((load, now)), ours: 0 }),
        }
    }

    pub(crate) fn retain(&self, is_there: impl Fn(&PeerId) -> bool) {
        self.all().retain(|peer, known| known.ours > 0 || is_there(peer));
    }

    fn begins(&self, peer: &PeerId) {
        let mut all = self.all();
        match all.get_mut(peer) {
            Some(known) => known.ours += 1,
            None => _ = all.insert(peer.clone(), Known { told: None, ours: 1 }),
        }
    }

    fn ends(&self, peer: &PeerId) {
        if let Some(known) = self.all().get_mut(peer) {
            known.ours = known.ours.saturating_sub(1);
            // It was counted in what the peer told, too.
            if let Some((load, _)) = &mut known.told {
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
}

impl ServedThere {
    pub(crate) fn new(loads: &Arc<Loads>, places: &Arc<Places>, peer: &PeerId) -> Self {
        loads.begins(peer);
        Self { loads: Arc::clone(loads), places: Arc::clone(places), peer: peer.clone() }
    }
}

impl Drop for ServedThere {
    fn drop(&mut self) {
        self.loads.ends(&self.peer);
        self.places.freed_at(&self.peer);
    }
}
