//! How many copies of a busy app are wanted across the mesh.
//!
//! Each peer measures its own copy, and announces when it has been busy for a while, or calm for
//! longer. A peer that believes every ready copy to be busy wants one more, and the first by rank
//! of those that run none starts it; no peer commands another. While beliefs differ, a copy more or
//! less runs than should.

use core::time::Duration;

use crate::config::{AppPolicy, ScalePolicy, StartMode};
use crate::ids::{AppName, Now, PeerId};
use crate::rank;
use crate::view::{AppState, Liveness, View};

/// How often the load of a copy is sampled.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A copy that is as busy as the policy says for so long is announced as busy …
pub const BUSY_AFTER: Duration = Duration::from_secs(2);
/// … and a copy that is less busy for so long as calm.
pub const CALM_AFTER: Duration = Duration::from_secs(10);
/// A surplus copy stops after so long without a request, if the app has no `stop_when_idle`.
pub const SURPLUS_AFTER: Duration = Duration::from_secs(30);
/// The newest sample weighs one in so many.
const WEIGHT: u32 = 4;
/// Fractions of a request in which the mean is kept.
const FINE: u32 = 1024;

/// From how many requests on a copy is busy.
#[must_use]
pub fn busy_from(scale: ScalePolicy, places: u32) -> u32 {
    (places.saturating_mul(scale.at_percent)).div_ceil(100).max(1)
}

/// The recent load of one copy.
#[derive(Debug, Clone, Default)]
pub struct Busyness {
    /// The mean of its requests, in parts of [`FINE`].
    mean: u32,
    /// Since when it is on the other side of the last announcement.
    turned: Option<Now>,
    busy: bool,
}

impl Busyness {
    /// Takes one sample: the requests that the copy serves and those that wait for it here. Returns
    /// whether the copy is busy, if that is to be announced now.
    pub fn look(&mut self, load: u32, busy_from: u32, now: Now) -> Option<bool> {
        let sample = load.saturating_mul(FINE);
        self.mean = self.mean - self.mean / WEIGHT + sample / WEIGHT;
        // Within an eighth the bound counts as reached: a mean approaches a constant value and
        // never gets there.
        let reached = self.mean.saturating_add(busy_from * FINE / 8) >= busy_from * FINE;
        if reached == self.busy {
            self.turned = None;
            return None;
        }
        let since = *self.turned.get_or_insert(now);
        let after = if reached { BUSY_AFTER } else { CALM_AFTER };
        if now.since(since) < after {
            return None;
        }
        (self.busy, self.turned) = (reached, None);
        Some(reached)
    }

    /// Whether it was last announced as busy.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.busy
    }
}

/// How many copies are wanted because the ready ones are busy; 0 if they are not.
#[must_use]
pub fn copies_wanted(
    app: &AppName,
    policy: &AppPolicy,
    here: (AppState, bool),
    draining: bool,
    view: &View,
) -> u32 {
    let (Some(scale), Some(places)) = (policy.scale, policy.concurrency) else { return 0 };
    let from = busy_from(scale, places);
    let elsewhere = view
        .live_peers()
        .filter(|(_, belief)| belief.alive == Liveness::Alive && !belief.news.draining)
        .filter_map(|(_, belief)| belief.apps.get(app))
        .filter(|copy| copy.news.state == AppState::Ready)
        .map(|copy| copy.news.in_flight >= from);
    let own = (here.0 == AppState::Ready && !draining).then_some(here.1);
    let (mut ready, mut busy) = (0, 0);
    for is_busy in elsewhere.chain(own) {
        ready += 1;
        busy += u32::from(is_busy);
    }
    if ready == 0 || busy < ready { 0 } else { (ready + 1).min(scale.max) }
}

/// Whether the copy here, ready and idle, is surplus.
#[must_use]
pub fn is_surplus(app: &AppName, policy: &AppPolicy, me: &PeerId, view: &View) -> bool {
    if policy.scale.is_none() || policy.start == StartMode::AtBoot {
        return false;
    }
    let ready = view
        .live_peers()
        .filter(|(_, belief)| belief.alive == Liveness::Alive && !belief.news.draining)
        .filter(|(_, it)| it.apps.get(app).is_some_and(|copy| copy.news.state == AppState::Ready))
        .map(|(peer, _)| peer)
        .chain([me]);
    let stay = policy.keep_ready.max(1) as usize;
    !rank::keepers(app, ready, stay).contains(me)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::ids::Incarnation;
    use crate::view::{AppNews, News, PeerNews, Source};

    const AT_80: ScalePolicy = ScalePolicy { at_percent: 80, max: 3 };

    fn app() -> AppName {
        AppName::new("shop").unwrap()
    }

    fn peer(at: u8) -> PeerId {
        PeerId::new(&alloc::format!("p{at}")).unwrap()
    }

    fn policy(keep_ready: u32) -> AppPolicy {
        let (scale, concurrency) = (Some(AT_80), Some(4));
        AppPolicy { scale, concurrency, keep_ready, ..AppPolicy::default() }
    }

    /// The beliefs of `me` about peers whose copies are in these states, with so many requests in
    /// flight.
    fn view(me: u8, copies: &[(AppState, u32)]) -> View {
        let mut view = View::new(peer(me));
        for (at, (state, in_flight)) in (0..).zip(copies) {
            if at == me {
                continue;
            }
            let incarnation = Incarnation([at; 16]);
            let hello = PeerNews::of(peer(at), incarnation, "127.0.0.1:7001".parse().unwrap());
            let (state, in_flight) = (*state, *in_flight);
            let news = AppNews { in_flight, ..AppNews::of(app(), 1, state) };
            let news = News::App { peer: peer(at), incarnation, generation: 1, news };
            view.apply(News::Peer(hello), Now(1), Source::FirstHand);
            view.apply(news, Now(1), Source::FirstHand);
        }
        view
    }

    /// The peers that keep or start a copy if each knows the truth about the others.
    fn keepers(copies: &[(AppState, u32)]) -> Vec<u8> {
        let policy = policy(0);
        let from = busy_from(AT_80, 4);
        (0..copies.len() as u8)
            .filter(|me| {
                let view = view(*me, copies);
                let (state, in_flight) = copies[usize::from(*me)];
                let here = (state, in_flight >= from);
                let wanted = copies_wanted(&app(), &policy, here, false, &view);
                let policy = AppPolicy { keep_ready: wanted, ..policy.clone() };
                crate::keep::keeps_ready(&app(), &policy, state, false, &peer(*me), &view)
            })
            .collect()
    }

    #[test]
    fn a_copy_is_busy_from_its_part_of_the_places_on() {
        assert_eq!([1, 2, 4, 10].map(|places| busy_from(AT_80, places)), [1, 2, 4, 8]);
        let low = ScalePolicy { at_percent: 1, max: 2 };
        assert_eq!(busy_from(low, 4), 1, "one that serves nobody is never busy");
    }

    #[test]
    fn a_copy_is_reported_as_busy_after_a_while_and_as_calm_after_a_longer_one() {
        let mut busyness = Busyness::default();
        let mut reported = Vec::new();
        let mut look = |busyness: &mut Busyness, load, span: core::ops::Range<u64>| {
            for ms in span.step_by(250) {
                if let Some(busy) = busyness.look(load, 4, Now(ms)) {
                    reported.push((ms, busy));
                }
            }
        };
        look(&mut busyness, 4, 0..1_500);
        look(&mut busyness, 0, 1_500..20_000);
        look(&mut busyness, 4, 20_000..30_000);
        look(&mut busyness, 0, 30_000..38_000);
        look(&mut busyness, 4, 38_000..50_000);
        look(&mut busyness, 0, 50_000..70_000);
        let [(busy_at, true), (calm_at, false)] = reported[..] else { panic!("{reported:?}") };
        assert!((22_000..25_000).contains(&busy_at), "a burst is none: {busy_at}");
        assert!((60_000..62_000).contains(&calm_at), "a pause is none: {calm_at}");
    }

    #[test]
    fn where_all_ready_copies_are_busy_one_more_peer_starts_one_and_no_two_do() {
        use AppState::{Cold, Ready, Starting};
        assert_eq!(keepers(&[(Ready, 4), (Cold, 0), (Cold, 0), (Cold, 0)]).len(), 2);
        assert_eq!(keepers(&[(Ready, 4), (Starting, 0), (Cold, 0), (Cold, 0)]), [0, 1]);
        let three = keepers(&[(Ready, 4), (Ready, 4), (Cold, 0), (Cold, 0)]);
        assert_eq!(three.len(), 3, "{three:?}");
        // One copy that is not busy is enough.
        assert!(keepers(&[(Ready, 4), (Ready, 1), (Cold, 0), (Cold, 0)]).is_empty());
        // There are never more than the maximum.
        let most = keepers(&[(Ready, 4), (Ready, 4), (Ready, 4), (Cold, 0)]);
        assert_eq!(most, [0, 1, 2]);
        assert!(keepers(&[(Cold, 0); 4]).is_empty(), "nobody asks for it");
    }

    #[test]
    fn of_idle_copies_all_but_those_to_be_kept_are_surplus() {
        use AppState::{Cold, Ready};
        let surplus = |keep_ready, copies: &[(AppState, u32)]| {
            (0..copies.len() as u8)
                .filter(|me| copies[usize::from(*me)].0 == Ready)
                .filter(|me| {
                    is_surplus(&app(), &policy(keep_ready), &peer(*me), &view(*me, copies))
                })
                .count()
        };
        let copies = [(Ready, 0), (Ready, 0), (Ready, 0), (Cold, 0)];
        assert_eq!(surplus(0, &copies), 2, "one stays for the next request");
        assert_eq!(surplus(2, &copies), 1);
        assert_eq!(surplus(0, &copies[3..]), 0);
        let boot = AppPolicy { start: StartMode::AtBoot, ..policy(0) };
        assert!((0..3).all(|me| !is_surplus(&app(), &boot, &peer(me), &view(me, &copies))));
        let none = AppPolicy { scale: None, ..policy(0) };
        assert!((0..3).all(|me| !is_surplus(&app(), &none, &peer(me), &view(me, &copies))));
    }
}
