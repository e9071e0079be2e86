//! Which peers keep an app ready although nobody asks for it.
//!
//! Each peer decides for itself from its beliefs about the others, and peers agree as far as their
//! beliefs do. While beliefs differ, an app runs on a peer more or less than it should: that costs
//! memory or a cold start, and nothing else.

use crate::config::{AppPolicy, StartMode};
use crate::ids::{AppName, PeerId};
use crate::rank;
use crate::view::{AppState, Liveness, View};

/// Whether this peer's copy of `app`, which is in `state`, is one of those to be kept ready. Of the
/// ready copies the first by rank are kept, so that all peers that know of each other agree which
/// may stop; if too few copies run at all, the first by rank of the other peers start theirs. A
/// peer that is `draining`, or holds its copy down, keeps none.
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
    let may_run = policy.start != StartMode::Never && state != AppState::Paused && !draining;
    if wanted == 0 || !may_run {
        return false;
    }
    let others_in = |states: &'static [AppState]| {
        view.live_peers()
            .filter(|(_, belief)| belief.alive == Liveness::Alive && !belief.news.draining)
            .filter(move |(_, belief)| {
                belief.apps.get(app).is_some_and(|copy| states.contains(&copy.news.state))
            })
            .map(|(peer, _)| peer)
    };
    if state == AppState::Ready {
        // A copy that starts may still fail, so no ready copy stops in its favour.
        let ready = others_in(&[AppState::Ready]).chain([me]);
        return rank::keepers(app, ready, wanted).contains(me);
    }
    let warm = others_in(&[AppState::Ready, AppState::Starting]).count();
    let missing = wanted.saturating_sub(warm);
    if missing == 0 || state == AppState::Starting {
        return missing > 0;
    }
    let able = others_in(&[AppState::Cold, AppState::Stopping]).chain([me]);
    rank::keepers(app, able, missing).contains(me)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::ids::{Incarnation, Now};
    use crate::view::{AppNews, News, PeerNews, Source};

    const NAMES: [&str; 4] = ["one", "two", "three", "four"];

    /// Which peers keep their copies if each knows the true states of all the others.
    fn keepers_of(states: [AppState; 4], wanted: u32, draining: Option<usize>) -> Vec<usize> {
        let app = AppName::new("shop").unwrap();
        let policy = AppPolicy { keep_ready: wanted, ..AppPolicy::default() };
        let peer = |at: usize| PeerId::new(NAMES[at]).unwrap();
        let keeps = |me: usize| {
            let mut view = View::new(peer(me));
            for other in (0..states.len()).filter(|other| *other != me) {
                let incarnation = Incarnation([other as u8; 16]);
                let hello = PeerNews {
                    draining: draining == Some(other),
                    ..PeerNews::of(peer(other), incarnation, "127.0.0.1:7001".parse().unwrap())
                };
                let news = AppNews::of(app.clone(), 1, states[other]);
                let news = News::App { peer: peer(other), incarnation, generation: 1, news };
                view.apply(News::Peer(hello), Now(1), Source::FirstHand);
                view.apply(news, Now(1), Source::FirstHand);
            }
            keeps_ready(&app, &policy, states[me], draining == Some(me), &peer(me), &view)
        };
        (0..states.len()).filter(|at| keeps(*at)).collect()
    }

    #[test]
    fn of_ready_copies_as_many_are_kept_as_are_wanted_and_no_more() {
        use AppState::{Cold, Failed, Ready, Starting, Stopping};
        for other in [Cold, Starting, Ready, Stopping, Failed] {
            let ready = [Ready, Ready, other, Ready];
            for wanted in 1..=3 {
                let kept = keepers_of(ready, wanted, None);
                assert_eq!(kept.len(), wanted as usize, "{other:?}: {kept:?}");
                assert!(kept.iter().all(|at| ready[*at] == Ready), "{other:?}: {kept:?}");
            }
        }
    }

    #[test]
    fn a_ready_copy_is_kept_until_another_is_ready_and_not_only_starting() {
        use AppState::{Cold, Ready, Starting};
        assert_eq!(keepers_of([Starting, Ready, Cold, Starting], 1, None), [1]);
    }

    #[test]
    fn where_none_runs_one_starts_and_where_one_starts_no_other_does() {
        use AppState::{Cold, Failed, Paused, Starting};
        assert_eq!(keepers_of([Cold; 4], 1, None).len(), 1);
        assert_eq!(keepers_of([Cold; 4], 2, None).len(), 2);
        assert_eq!(keepers_of([Cold, Starting, Failed, Cold], 1, None), [1]);
        assert_eq!(keepers_of([Paused, Paused, Paused, Cold], 2, None), [3], "held down");
        assert!(keepers_of([Cold; 4], 0, None).is_empty());
    }

    #[test]
    fn a_peer_that_leaves_keeps_nothing_and_counts_for_nothing() {
        use AppState::{Cold, Ready};
        for leaving in 0..4 {
            let kept = keepers_of([Ready; 4], 1, Some(leaving));
            assert!(kept.len() == 1 && kept[0] != leaving, "{kept:?}");
        }
        let started = keepers_of([Ready, Cold, Cold, Cold], 1, Some(0));
        assert!(started.len() == 1 && started[0] != 0, "{started:?}");
    }
}
