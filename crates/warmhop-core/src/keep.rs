//! Which peers keep an app ready although nobody asks for it.
//!
//! Each peer decides for itself, from what it believes of the others, and they agree as far as
//! their beliefs do. Where they differ for a while, an app runs on a peer more or less than it
//! should: that costs memory or a cold start, and nothing else.

use crate::config::{AppPolicy, StartMode};
use crate::ids::{AppName, PeerId};
use crate::rank;
use crate::view::{AppState, Liveness, View};

/// Whether this peer's copy of `app`, which is in `state`, is one of those to be kept ready. A
/// copy that runs is kept while too few others do; where too few run at all, the first by rank
/// start theirs. A peer that is `draining` keeps none: it would have to stop it at once.
#[must_use]
pub fn keeps_ready(
    app: &AppName,
    policy: &AppPolicy,
    state: AppState,
    draining: bool,
    me: &PeerId,
    view: &View,
) -> bool {
    let wanted = policy.keep_ready as usize;
    if wanted == 0 || policy.start == StartMode::Never || draining {
        return false;
    }
    let others_warm = view
        .warm_peers(app)
        .filter(|(_, belief, _)| belief.alive == Liveness::Alive && !belief.news.draining)
        .count();
    let missing = wanted.saturating_sub(others_warm);
    if missing == 0 {
        return false;
    }
    if matches!(state, AppState::Ready | AppState::Starting) {
        return true;
    }
    let able =
        view.live_peers()
            .filter(|(_, belief)| belief.alive == Liveness::Alive && !belief.news.draining)
            .filter(|(_, belief)| {
                belief.apps.get(app).is_some_and(|told| {
                    matches!(told.news.state, AppState::Cold | AppState::Stopping)
                })
            })
            .map(|(peer, _)| peer)
            .chain([me]);
    rank::keepers(app, able, missing).contains(me)
}
