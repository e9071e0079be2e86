//! What an errand does once its session went on without its majority.

use super::Errand;
use crate::ids::SessionId;

impl Errand {
    /// Whether the session that its key names is `sid`: a session by key goes on under its own id.
    pub(super) fn is_named_by_key(&self, sid: SessionId) -> bool {
        self.named.is_none() && self.key.is_some_and(|key| key.sid == sid)
    }

    /// Forgets what peers reported of the session as it was before.
    pub(super) fn led_anew(&mut self) {
        self.reported = None;
        self.stays = None;
        self.disclaimed.clear();
        self.led_on = false;
    }

    /// Whether its session's id follows from a key.
    #[must_use]
    pub fn is_by_key(&self) -> bool {
        self.key.is_some()
    }
}
