//! This peer's news about itself, and how it reaches the others: each link carries every record
//! that changed since the link's last frame, beginning with all of them. So a new link needs no
//! special case, a slow one is sent only the latest of each record, and nothing queues up. Gossip,
//! or the next link, repairs what a broken link misses.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use warmhop_core::ids::AppName;
use warmhop_core::version::AppVersion;
use warmhop_core::view::{AppNews, AppState, News, PeerNews};

/// The most apps of one peer that are announced.
pub(crate) const APPS_MAX: usize = 4096;

/// This peer's own records, and what changed when.
pub(crate) struct OwnNews {
    state: Mutex<State>,
    clock: watch::Sender<Clock>,
}

/// The version of the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Clock {
    /// Grows with every change.
    pub(crate) version: u64,
    /// The version of the last change that others should get at once. A change of load alone does
    /// not count: it may happen with every request.
    pub(crate) urgent: u64,
}

struct State {
    peer: Versioned<PeerNews>,
    apps: BTreeMap<AppName, Versioned<AppNews>>,
}

impl State {
    /// The news that other peers get of an app.
    fn of(&self, app: &AppNews) -> News {
        let PeerNews { peer, incarnation, generation, .. } = &self.peer.record;
        News::App {
            peer: peer.clone(),
            incarnation: *incarnation,
            generation: *generation,
            news: app.clone(),
        }
    }
}

struct Versioned<T> {
    record: T,
    version: u64,
}

/// The news that other peers get of the copy of one app here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopyNews {
    pub(crate) state: AppState,
    pub(crate) eta_ms: Option<u32>,
    pub(crate) in_flight: u32,
    pub(crate) version: Option<AppVersion>,
    pub(crate) digest: u64,
}

/// What the other peers need to know of this one to choose members and to count witnesses: see [`PeerNews`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Standing {
    /// It knows, or may know, more than two peers.
    pub(crate) knows_more: bool,
    /// Its process began a moment ago.
    pub(crate) young: bool,
    /// It has hardly any room for sessions left.
    pub(crate) full: bool,
    /// It holds sessions that no other peer holds a copy of.
    pub(crate) sole: bool,
}

impl Standing {
    fn of(record: &PeerNews) -> Self {
        let PeerNews { knows_more, young, full, sole, .. } = *record;
        Self { knows_more, young, full, sole }
    }
}

impl OwnNews {
    /// Begins with a record of this peer, and none of apps.
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

    /// Stores an app's record; false if there are too many apps to announce this one.
    pub(crate) fn publish_app(&self, app: &AppName, copy: CopyNews) -> bool {
        let CopyNews { state, eta_ms, in_flight, version, digest } = copy;
        let record =
            AppNews { eta_ms, in_flight, version, digest, ..AppNews::of(app.clone(), 0, state) };
        self.put(record)
    }

    /// Announces that this peer no longer has the app, if it ever announced that it had.
    pub(crate) fn retract_app(&self, app: &AppName) {
        if self.lock().apps.contains_key(app) {
            self.put(AppNews { gone: true, ..AppNews::of(app.clone(), 0, AppState::Cold) });
        }
    }

    /// Stores a record under the next version, if it says anything new.
    fn put(&self, mut record: AppNews) -> bool {
        let mut own = self.lock();
        let before = own.apps.get(&record.app).map(|app| &app.record);
        record.seq = before.map_or(0, |before| before.seq);
        if before == Some(&record) {
            return true;
        }
        if before.is_none() && own.apps.len() >= APPS_MAX {
            return false;
        }
        let is_load_alone = before.is_some_and(|before| {
            let AppNews { eta_ms, in_flight, .. } = record;
            AppNews { eta_ms, in_flight, ..before.clone() } == record
        });
        record.seq += 1;
        let version = self.tick(!is_load_alone);
        own.apps.insert(record.app.clone(), Versioned { record, version });
        true
    }

    /// Announces whether this peer is about to leave.
    pub(crate) fn publish_draining(&self, draining: bool) {
        let mut own = self.lock();
        if own.peer.record.draining != draining {
            own.peer.record.draining = draining;
            own.peer.record.seq += 1;
            own.peer.version = self.tick(true);
        }
    }

    /// Announces what the other peers need to know of this one.
    pub(crate) fn publish_standing(&self, standing: Standing) {
        let mut own = self.lock();
        let record = &mut own.peer.record;
        if Standing::of(record) != standing {
            let Standing { knows_more, young, full, sole } = standing;
            (record.knows_more, record.young) = (knows_more, young);
            (record.full, record.sole) = (full, sole);
            record.seq += 1;
            own.peer.version = self.tick(true);
        }
    }

    /// Makes this life's generation higher than `other`, that of an earlier life which others still
    /// announce: the clock went back between the two. Returns whether it had to be raised.
    pub(crate) fn raise_generation_above(&self, other: u64) -> bool {
        let mut own = self.lock();
        if own.peer.record.generation > other || other == u64::MAX {
            return false;
        }
        own.peer.record.generation = other + 1;
        own.peer.record.seq += 1;
        let version = self.tick(true);
        own.peer.version = version;
        // An app's news names the generation too, so all of it is sent again.
        own.apps.values_mut().for_each(|app| app.version = version);
        true
    }

    /// The record of an app.
    pub(crate) fn of_app(&self, app: &AppName) -> Option<News> {
        let own = self.lock();
        own.apps.get(app).map(|app| own.of(&app.record))
    }

    /// Every record that changed after `version`, and the version of the records now.
    pub(crate) fn since(&self, version: u64) -> (Vec<News>, u64) {
        let own = self.lock();
        let peer = &own.peer.record;
        let apps = own.apps.values().filter(|app| app.version > version);
        let apps = apps.map(|app| own.of(&app.record));
        let first = (own.peer.version > version).then(|| News::Peer(peer.clone()));
        let news = first.into_iter().chain(apps).collect();
        (news, self.clock.borrow().version)
    }

    /// Called with the records locked, so that each version belongs to one state of them.
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
        // Every change is complete, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use warmhop_core::ids::{Incarnation, PeerId};

    use super::*;

    fn own() -> OwnNews {
        OwnNews::new(PeerNews {
            generation: 5,
            ..PeerNews::of(
                PeerId::new("a").unwrap(),
                Incarnation([1; 16]),
                "127.0.0.1:1".parse().unwrap(),
            )
        })
    }

    fn shop() -> AppName {
        AppName::new("shop").unwrap()
    }

    fn copy(state: AppState, eta_ms: Option<u32>, in_flight: u32) -> CopyNews {
        CopyNews { state, eta_ms, in_flight, version: None, digest: 0 }
    }

    fn apps(news: &[News]) -> Vec<(u64, AppState, u32)> {
        let app = |news: &News| match news {
            News::App { news, .. } => Some((news.seq, news.state, news.in_flight)),
            News::Peer(_) => None,
        };
        news.iter().filter_map(app).collect()
    }

    #[test]
    fn the_first_read_gives_all_records_and_later_ones_give_the_changes() {
        let own = own();
        own.publish_app(&shop(), copy(AppState::Starting, Some(9), 0));
        let (all, sent_up_to) = own.since(0);
        assert_eq!(all.len(), 2);
        assert!(matches!(&all[0], News::Peer(peer) if peer.seq == 1));
        assert_eq!(own.since(sent_up_to).0, []);

        own.publish_app(&shop(), copy(AppState::Ready, None, 0));
        own.publish_app(&shop(), copy(AppState::Ready, None, 2));
        let (changed, sent_up_to) = own.since(sent_up_to);
        assert_eq!(apps(&changed), [(3, AppState::Ready, 2)], "the latest alone");
        assert_eq!(changed.len(), 1);
        own.publish_draining(true);
        assert!(
            matches!(&own.since(sent_up_to).0[..], [News::Peer(peer)] if peer.draining && peer.seq == 2)
        );
        own.publish_standing(Standing { knows_more: true, ..Standing::default() });
        assert!(matches!(&own.since(sent_up_to).0[..], [News::Peer(peer)] if peer.knows_more));
    }

    #[test]
    fn an_app_that_is_removed_is_news_at_once_and_may_come_back() {
        let own = own();
        own.retract_app(&shop());
        assert_eq!(own.since(1).0, [], "no peer ever learned of it");
        own.publish_app(&shop(), copy(AppState::Ready, None, 0));
        let (_, version) = own.since(0);
        own.retract_app(&shop());
        assert_eq!(own.subscribe().borrow().urgent, version + 1);
        own.retract_app(&shop());
        let (news, version) = own.since(version);
        assert!(matches!(&news[..], [News::App { news, .. }] if news.gone && news.seq == 2));
        own.publish_app(&shop(), copy(AppState::Cold, None, 0));
        assert_eq!(apps(&own.since(version).0), [(3, AppState::Cold, 0)]);
    }

    #[test]
    fn saying_the_same_again_is_no_news() {
        let own = own();
        own.publish_app(&shop(), copy(AppState::Ready, None, 0));
        let before = *own.subscribe().borrow();
        own.publish_app(&shop(), copy(AppState::Ready, None, 0));
        own.publish_draining(false);
        own.publish_standing(Standing::default());
        assert_eq!(*own.subscribe().borrow(), before);
    }

    #[test]
    fn a_change_of_load_alone_is_not_urgent() {
        let own = own();
        own.publish_app(&shop(), copy(AppState::Ready, None, 0));
        let ready = *own.subscribe().borrow();
        assert_eq!(ready.urgent, ready.version);
        own.publish_app(&shop(), copy(AppState::Ready, None, 1));
        let loaded = *own.subscribe().borrow();
        assert_eq!((loaded.urgent, loaded.version), (ready.urgent, ready.version + 1));
    }

    #[test]
    fn apps_beyond_the_bound_are_refused_and_known_ones_are_not() {
        let own = own();
        for n in 0..APPS_MAX {
            assert!(own.publish_app(
                &AppName::new(&format!("a{n}")).unwrap(),
                copy(AppState::Cold, None, 0)
            ));
        }
        assert!(!own.publish_app(&shop(), copy(AppState::Ready, None, 0)));
        assert!(own.publish_app(&AppName::new("a7").unwrap(), copy(AppState::Ready, None, 0)));
    }

    #[test]
    fn a_raised_generation_is_in_every_record() {
        let own = own();
        own.publish_app(&shop(), copy(AppState::Ready, None, 0));
        let (_, sent_up_to) = own.since(0);
        assert!(!own.raise_generation_above(4));
        assert!(own.raise_generation_above(5));
        let (news, _) = own.since(sent_up_to);
        assert_eq!(news.len(), 2);
        for news in news {
            let (News::Peer(PeerNews { generation, .. }) | News::App { generation, .. }) = news;
            assert_eq!(generation, 6);
        }
        assert!(!own.raise_generation_above(u64::MAX));
    }
}
