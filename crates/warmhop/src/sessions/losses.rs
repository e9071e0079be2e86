//! Which losses were counted before.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;
use prometheus_client::metrics::counter::Counter;
use tracing::warn;
use warmhop_core::ids::SessionKey;

/// How many losses are remembered.
const REMEMBERED_MAX: usize = 4096;

/// The losses that this process found: each counts once, however often its session is asked for until every
/// copy of it is dropped.
pub(crate) struct Losses(Mutex<LruCache<(SessionKey, u64), ()>>);

impl Default for Losses {
    fn default() -> Self {
        let max = NonZeroUsize::new(REMEMBERED_MAX).expect("a positive constant");
        Self(Mutex::new(LruCache::new(max)))
    }
}

impl Losses {
    /// Counts and logs that the session is lost in configurations up to `stamp`, if that is news.
    pub(crate) fn count(&self, key: &SessionKey, stamp: u64, counter: &Counter) {
        if self.is_news(key, stamp) {
            warn!(session = %key, "the session is lost: too many of the peers that held it are gone");
            counter.inc();
        }
    }

    fn is_news(&self, key: &SessionKey, stamp: u64) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.put((key.clone(), stamp), ()).is_none()
    }
}

#[cfg(test)]
mod tests {
    use warmhop_core::ids::{AppName, SessionId};

    use super::*;

    #[test]
    fn a_loss_is_news_once_and_another_of_the_same_key_is_news() {
        let losses = Losses::default();
        let key = SessionKey { app: AppName::new("redis").unwrap(), sid: SessionId([7; 16]) };
        let news = [5, 5, 6, 5].map(|stamp| losses.is_news(&key, stamp));
        assert_eq!(news, [true, false, true, false]);
    }
}
