//! What this peer says of itself, and its way to the others: each link carries every record
//! that changed since it last spoke, beginning with all of them. So a new link needs no special
//! case, a slow one is sent only the latest of each record, and nothing queues up. What a
//! broken link misses is repaired by gossip, or by the next link.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use warmhop_core::ids::AppName;
use warmhop_core::view::{AppNews, AppState, News, PeerNews};

/// More apps on one peer are not told of.
pub(crate) const APPS_MAX: usize = 4096;

/// This peer's own records, and what changed when.
pub(crate) struct OwnNews {
    state: Mutex<State>,
    clock: watch::Sender<Clock>,
}

/// How far the records have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Clock {
    /// Grows with every change.
    pub(crate) version: u64,
    /// The version of the last change that others should hear of at once. A change of load
    /// alone is not one: it may happen with every request.
    pub(crate) urgent: u64,
}

struct State {
    peer: Versioned<PeerNews>,
    apps: BTreeMap<AppName, Versioned<AppNews>>,
}

struct Versioned<T> {
    record: T,
    version: u64,
}

impl OwnNews {
    /// Begins with a record of this peer and none of apps.
    pub(crate) fn new(peer: PeerNews) -> Self {
        let clock = Clock { version: 1, urgent: 1 };
        let state = State { peer: Versioned { record: peer, version: 1 }, apps: BTreeMap::new() };
        Self { state: Mutex::new(state), clock: watch::Sender::new(clock) }
    }

    /// The record of this peer.
    pub(crate) fn peer(&self) -> PeerNews {
        self.lock().peer.record.clone()
    }

    /// Follows the changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Clock> {
        self.clock.subscribe()
    }

    /// Puts an app's record in place; false if there are too many apps to tell of this one.
    pub(crate) fn publish_app(
        &self,
        app: &AppName,
        state: AppState,
        eta_ms: Option<u32>,
        in_flight: u32,
    ) -> bool {
        let mut own = self.lock();
        let before = own.apps.get(app).map(|app| &app.record);
        let same_state = before.is_some_and(|before| before.state == state);
        if same_state
            && before.is_some_and(|before| (before.eta_ms, before.in_flight) == (eta_ms, in_flight))
        {
            return true;
        }
        if before.is_none() && own.apps.len() >= APPS_MAX {
            return false;
        }
        let seq = before.map_or(0, |before| before.seq) + 1;
        let version = self.tick(!same_state);
        let record = AppNews { app: app.clone(), seq, state, eta_ms, in_flight };
        own.apps.insert(app.clone(), Versioned { record, version });
        true
    }

    /// Says whether this peer is about to leave.
    pub(crate) fn publish_draining(&self, draining: bool) {
        let mut own = self.lock();
        if own.peer.record.draining != draining {
            own.peer.record.draining = draining;
            own.peer.record.seq += 1;
            own.peer.version = self.tick(true);
        }
    }

    /// Says whether there are, or may be, more than two peers as far as this one knows.
    pub(crate) fn publish_knows_more(&self, knows_more: bool) {
        let mut own = self.lock();
        if own.peer.record.knows_more != knows_more {
            own.peer.record.knows_more = knows_more;
            own.peer.record.seq += 1;
            own.peer.version = self.tick(true);
        }
    }

    /// Makes this life's generation higher than `other`, that of an earlier life which others
    /// still speak of: the clock went back between the two. Says whether it had to be raised.
    pub(crate) fn raise_generation_above(&self, other: u64) -> bool {
        let mut own = self.lock();
        if own.peer.record.generation > other || other == u64::MAX {
            return false;
        }
        own.peer.record.generation = other + 1;
        own.peer.record.seq += 1;
        let version = self.tick(true);
        own.peer.version = version;
        // An app's news names the generation too, so all of it is told again.
        own.apps.values_mut().for_each(|app| app.version = version);
        true
    }

    /// Every record that changed after `version`, and the version that they stand for.
    pub(crate) fn since(&self, version: u64) -> (Vec<News>, u64) {
        let own = self.lock();
        let peer = &own.peer.record;
        let apps = own.apps.values().filter(|app| app.version > version).map(|app| News::App {
            peer: peer.peer.clone(),
            incarnation: peer.incarnation,
            generation: peer.generation,
            news: app.record.clone(),
        });
        let first = (own.peer.version > version).then(|| News::Peer(peer.clone()));
        let news = first.into_iter().chain(apps).collect();
        (news, self.clock.borrow().version)
    }

    /// Called with the records locked, so that a version names one state of them.
    fn tick(&self, urgent: bool) -> u64 {
        let mut version = 0;
        self.clock.send_modify(|clock| {
            clock.version += 1;
            version = clock.version;
            if urgent {
                clock.urgent = version;
            }
        });
        version
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a whole one, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use warmhop_core::ids::{Incarnation, PeerId};

    use super::*;

    fn own() -> OwnNews {
        OwnNews::new(PeerNews {
            peer: PeerId::new("a").unwrap(),
            incarnation: Incarnation([1; 16]),
            generation: 5,
            seq: 1,
            mesh: "127.0.0.1:1".parse().unwrap(),
            http: None,
            zone: None,
            draining: false,
            knows_more: false,
        })
    }

    fn shop() -> AppName {
        AppName::new("shop").unwrap()
    }

    fn apps(news: &[News]) -> Vec<(u64, AppState, u32)> {
        let app = |news: &News| match news {
            News::App { news, .. } => Some((news.seq, news.state, news.in_flight)),
            News::Peer(_) => None,
        };
        news.iter().filter_map(app).collect()
    }

    #[test]
    fn whoever_asks_first_is_told_all_and_then_only_what_changed() {
        let own = own();
        own.publish_app(&shop(), AppState::Starting, Some(9), 0);
        let (all, told) = own.since(0);
        assert_eq!(all.len(), 2);
        assert!(matches!(&all[0], News::Peer(peer) if peer.seq == 1));
        assert_eq!(own.since(told).0, []);

        own.publish_app(&shop(), AppState::Ready, None, 0);
        own.publish_app(&shop(), AppState::Ready, None, 2);
        let (changed, told) = own.since(told);
        assert_eq!(apps(&changed), [(3, AppState::Ready, 2)], "the latest alone");
        assert_eq!(changed.len(), 1);
        own.publish_draining(true);
        assert!(
            matches!(&own.since(told).0[..], [News::Peer(peer)] if peer.draining && peer.seq == 2)
        );
        own.publish_knows_more(true);
        assert!(matches!(&own.since(told).0[..], [News::Peer(peer)] if peer.knows_more));
    }

    #[test]
    fn saying_the_same_again_is_no_news() {
        let own = own();
        own.publish_app(&shop(), AppState::Ready, None, 0);
        let before = *own.subscribe().borrow();
        own.publish_app(&shop(), AppState::Ready, None, 0);
        own.publish_draining(false);
        own.publish_knows_more(false);
        assert_eq!(*own.subscribe().borrow(), before);
    }

    #[test]
    fn a_change_of_load_alone_is_not_urgent() {
        let own = own();
        own.publish_app(&shop(), AppState::Ready, None, 0);
        let ready = *own.subscribe().borrow();
        assert_eq!(ready.urgent, ready.version);
        own.publish_app(&shop(), AppState::Ready, None, 1);
        let loaded = *own.subscribe().borrow();
        assert_eq!((loaded.urgent, loaded.version), (ready.urgent, ready.version + 1));
    }

    #[test]
    fn apps_beyond_the_bound_are_refused_and_known_ones_are_not() {
        let own = own();
        for n in 0..APPS_MAX {
            assert!(own.publish_app(
                &AppName::new(&format!("a{n}")).unwrap(),
                AppState::Cold,
                None,
                0
            ));
        }
        assert!(!own.publish_app(&shop(), AppState::Ready, None, 0));
        assert!(own.publish_app(&AppName::new("a7").unwrap(), AppState::Ready, None, 0));
    }

    #[test]
    fn a_raised_generation_is_told_with_every_record() {
        let own = own();
        own.publish_app(&shop(), AppState::Ready, None, 0);
        let (_, told) = own.since(0);
        assert!(!own.raise_generation_above(4));
        assert!(own.raise_generation_above(5));
        let (news, _) = own.since(told);
        assert_eq!(news.len(), 2);
        for news in news {
            let (News::Peer(PeerNews { generation, .. }) | News::App { generation, .. }) = news;
            assert_eq!(generation, 6);
        }
        assert!(!own.raise_generation_above(u64::MAX));
    }
}
