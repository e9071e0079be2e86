//! Whom to ask about a session whose known members are no majority any more.

use super::{ASK_AGAIN_AFTER, Mend, Watch};
use crate::ids::{Now, SessionId};

/// How often everyone is asked about one session between two arrivals or departures of peers.
const EVERYONE_ASKED_MAX: u32 = 2;
/// For how many sessions everyone may be asked at the same time.
const SEARCHES_MAX: usize = 16 * 1024;

impl Watch {
    /// Asks everyone a few times. The session is looked at again when a peer comes back. If the other
    /// members have forgotten it, a takeover finds that it is over, and drops the copy.
    pub(super) fn search(&mut self, sid: SessionId, is_forgotten: bool, now: Now) -> Mend {
        if self.searches.len() >= SEARCHES_MAX {
            self.searches.clear();
        }
        let (times, asked) = self.searches.get(&sid).copied().unwrap_or_default();
        if times > 0 && now.since(asked) < ASK_AGAIN_AFTER {
            return Mend::Later;
        }
        if times == EVERYONE_ASKED_MAX && is_forgotten {
            self.searches.insert(sid, (times + 1, now));
            return Mend::Succeed;
        }
        if times >= EVERYONE_ASKED_MAX {
            if !is_forgotten {
                self.searches.remove(&sid);
            }
            return Mend::Nothing;
        }
        self.searches.insert(sid, (times + 1, now));
        Mend::AskEveryone
    }

    /// Has the owner take the session over from itself a few times, as [`Watch::search`] asks everyone: what
    /// it is short of may not be there.
    pub(super) fn take_over_again(&mut self, sid: SessionId, now: Now) -> Mend {
        match self.search(sid, false, now) {
            Mend::AskEveryone => Mend::TakeOverAgain,
            // From then on as often as the members are offered a record that they have no room for.
            Mend::Nothing => Mend::Remind,
            later => later,
        }
    }
}
