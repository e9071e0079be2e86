//! The requests that must not run twice, for as long as they are under way.

use std::collections::HashSet;
use std::sync::Mutex;

use warmhop_core::ids::{RequestKey, SessionKey};

/// The requests under way here that must not run twice: a repeat learns that the first one is under
/// way, rather than waiting for it. Bounded by the requests under way.
#[derive(Debug, Default)]
pub(crate) struct RunsOnce(Mutex<HashSet<(SessionKey, RequestKey)>>);

impl RunsOnce {
    /// `None` while another attempt of it is under way here.
    pub(crate) fn enter(&self, key: &SessionKey, rid: RequestKey) -> Option<UnderWay<'_>> {
        let name = (key.clone(), rid);
        let mut all = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Lazily: a value dropped here would wait for this lock, and remove the first one's name.
        all.insert(name.clone()).then(|| UnderWay { all: self, name })
    }
}

/// One of these requests; it is removed when this is dropped.
pub(crate) struct UnderWay<'a> {
    all: &'a RunsOnce,
    name: (SessionKey, RequestKey),
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.remove(&self.name);
    }
}
