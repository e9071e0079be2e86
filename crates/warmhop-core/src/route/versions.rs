//! A session that a newer version of the app has served does not go back to an older one while a
//! copy of that version, or of a later one, is ready anywhere.
//!
//! Older copies are passed over as if they took no new requests. A copy that names no version does
//! not count as older. If no copy that is new enough is ready, or can be reached, an older one
//! serves. A peer that may be dead counts as out of reach.

use alloc::vec::Vec;
use core::time::Duration;

use super::{
    Action, Candidate, Decision, LocalApp, Question, Reason, at_front_door, may_try, starts_here,
};
use crate::version::AppVersion;
use crate::view::AppState;

/// How long a request waits for the news of a version that has served its session and that this
/// peer has not heard of. Its client may be faster than the news, but hardly by more.
pub const NEWS_WITHIN: Duration = Duration::from_millis(500);

/// The versions of an app that bear on where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Versions<'a> {
    /// The newest one that has served the request's session, according to its client's token.
    pub served: Option<&'a AppVersion>,
    /// The version of the copy here.
    pub here: Option<&'a AppVersion>,
    /// The newest one that this peer knows to have been ready anywhere.
    pub heard: Option<&'a AppVersion>,
}

/// The version that a request requires of a copy whose version is `there`, as far as that is known:
/// the version that has `served` its session, unless the copy is chosen although it is older. If an
/// older copy serves there by then, its peer refuses the request, and the sender decides again.
#[must_use]
pub fn counts_on<'a>(
    served: Option<&'a AppVersion>,
    there: Option<&AppVersion>,
) -> Option<&'a AppVersion> {
    served.filter(|served| there.is_none_or(|there| !served.is_newer_than(there)))
}

/// The decision about a request for which some of the ready copies are too old; `None` if that does
/// not matter.
pub(super) fn never_back(q: &Question<'_>) -> Option<Decision> {
    let served = q.versions.served?;
    let is_old = |version: Option<&AppVersion>| version.is_some_and(|it| served.is_newer_than(it));
    let old_there = |c: &&Candidate<'_>| c.state == AppState::Ready && is_old(c.version);
    let ready_here = q.local.state == AppState::Ready;
    let old_here = ready_here && is_old(q.versions.here);
    if !old_here && !q.candidates.iter().any(|c| old_there(&c)) {
        return None;
    }
    let new_there = |c: &Candidate<'_>| {
        let is_ready = c.state == AppState::Ready && !c.suspect;
        is_ready && !is_old(c.version) && may_try(q, c.peer)
    };
    if (!ready_here || old_here) && !q.candidates.iter().any(new_there) {
        return awaits_news(q, served);
    }
    let candidates: Vec<_> = q.candidates.iter().filter(|c| !old_there(c)).copied().collect();
    let state = if old_here { AppState::Stopping } else { q.local.state };
    let local = LocalApp { state, ..q.local };
    let mut decision = at_front_door(&Question { candidates: &candidates, local, ..*q });
    if old_here {
        decision.start_here = false;
        if let (Action::Hop { to }, Reason::ReadyThere { .. }) =
            (&decision.action, &decision.reason)
        {
            decision.reason = Reason::NewerThere { peer: to.clone(), served: served.clone() };
        }
    }
    Some(decision)
}

/// Waits if this peer has no news of the version: the peer that served the session announced the
/// version to all peers before it answered, so the news must come.
fn awaits_news(q: &Question<'_>, served: &AppVersion) -> Option<Decision> {
    let is_heard = q.versions.heard.is_some_and(|heard| !served.is_newer_than(heard));
    let left = NEWS_WITHIN.min(q.app.max_wait).saturating_sub(q.waited);
    if is_heard || left.is_zero() || q.local.waiting >= q.app.waiting_max {
        return None;
    }
    Some(Decision {
        action: Action::Wait { at_most: left },
        reason: Reason::UnheardVersion { served: served.clone() },
        start_here: starts_here(q),
        ask_to_start: None,
        pin_lost: None,
    })
}
