//! Whether a majority of a session's members is heard, and how long to wait if it is not.
//!
//! A peer that already believes that too few of the members can answer refuses its clients soon,
//! instead of making each of them wait for as long as a majority may take. Its belief may be about
//! to change, as links form again, so it asks all the same, and waits a little.

use core::time::Duration;

use super::message::Config;
use super::{Ctx, Session};
use crate::config::WithoutMajority;

/// How long a request waits for a majority of which too few are heard: long enough for a link that
/// is just forming.
pub(super) const UNHEARD_WITHIN: Duration = Duration::from_secs(1);
/// How often the members that are heard are asked within about that time.
const UNHEARD_TRIES: u32 = 3;
/// How often a peer that holds requests back checks whether a majority is heard again.
pub(super) const LISTEN_EVERY: Duration = Duration::from_millis(100);

impl Session {
    /// Whether too few of the members in `cfg` are heard for a majority, although one is still
    /// possible. It is false for a young process, which has yet to hear of others.
    pub(super) fn is_unheard(&self, ctx: &Ctx<'_>, cfg: &Config) -> bool {
        let census = &ctx.process.census;
        if census.is_new || census.silent.is_empty() {
            return false;
        }
        let heard = |peer| peer == ctx.me || !census.silent.contains(&peer);
        let hears = cfg.sets().all(|set| {
            self.suffices(set, |peer| {
                heard(peer) && (peer == ctx.me || !self.is_voteless(peer, set))
            })
        });
        !hears && self.may_have_majority(cfg)
    }

    /// How long a request for the session waits for a majority of the members in `cfg`.
    ///
    /// A peer that may go on without a majority must not do so for lack of a moment's patience. It waits
    /// until the members have been silent for as long as any request waits, and from then on it makes no
    /// other request wait for them.
    pub(super) fn patience(&self, ctx: &Ctx<'_>, cfg: &Config) -> Duration {
        let patience = ctx.policy.majority_timeout;
        if !self.is_unheard(ctx, cfg) {
            patience
        } else if !may_go_on_alone(ctx) {
            patience.min(UNHEARD_WITHIN)
        } else if waits_for_the_silent(ctx) {
            patience
        } else {
            Duration::ZERO
        }
    }

    /// Whether nobody has to wait any longer for a majority of the members in `cfg`, of which too few are
    /// heard.
    pub(super) fn is_given_up(&self, ctx: &Ctx<'_>, cfg: &Config) -> bool {
        self.is_unheard(ctx, cfg) && self.patience(ctx, cfg) < ctx.policy.majority_timeout
    }
}

/// Whether this peer may serve a session from its own copy without a majority.
pub(super) fn may_go_on_alone(ctx: &Ctx<'_>) -> bool {
    ctx.policy.without_majority == WithoutMajority::Serve || ctx.process.census.pair
}

/// Whether this peer would go on alone, and the others have been silent for less time than any request waits:
/// they may be heard again, and would do the same.
pub(super) fn waits_for_the_silent(ctx: &Ctx<'_>) -> bool {
    let census = &ctx.process.census;
    let is_patient = census.silence(ctx.now) < ctx.policy.majority_timeout;
    may_go_on_alone(ctx) && !census.silent.is_empty() && is_patient
}

/// How often those that are heard are asked before a takeover ends for lack of a majority. One that may go
/// on alone has waited for the others before.
pub(super) fn unheard_tries(ctx: &Ctx<'_>) -> u32 {
    if may_go_on_alone(ctx) { 1 } else { UNHEARD_TRIES }
}
