//! Which other peers a request may go to, their state, and which of them to ask again.

use alloc::vec::Vec;

use super::Candidate;
use crate::config::{AppPolicy, StartMode};
use crate::ids::{AppName, Incarnation, Now, PeerId};
use crate::rank;
use crate::version::AppVersion;
use crate::view::{AppBelief, AppState, Liveness, PeerBelief, View};

/// How many peers where the app is cold are named at most: the first that can start it is asked.
pub const COLD_MAX: usize = 8;

/// What this peer noted about another one's copy from the requests that it sent there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Noted {
    /// The load that its last reply named.
    pub load: Option<NotedLoad>,
    /// This peer's requests that it is serving.
    pub ours: u32,
    /// The request's client has used its share of the places there.
    pub shut: bool,
    /// Nothing that this peer sent there is of the request's client and session.
    pub is_first: bool,
}

/// The load of a copy, as a reply named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotedLoad {
    /// Requests in flight there.
    pub in_flight: u32,
    /// A smoothed time to the head of an answer, in microseconds; 0 before the first.
    pub latency_us: u32,
    /// When the reply arrived.
    pub at: Now,
}

/// Whether only another peer can start the app: this one may not, cannot or is leaving.
#[must_use]
pub fn others_start(app: &AppPolicy, here: AppState, draining: bool) -> bool {
    app.start == StartMode::Never || draining || matches!(here, AppState::Failed | AppState::Paused)
}

/// The peers not to ask again. After a wait every peer may be asked: its reason to refuse may be
/// over.
#[must_use]
pub fn still_tried(tried: &[PeerId], has_waited: bool) -> &[PeerId] {
    if has_waited { &[] } else { tried }
}

/// Whether a request that was sent to the candidate before, and has waited since, may go there: not
/// as long as that peer is silent. It would come back at once, again and again, until its attempts
/// are used up, although a copy that is starting here would serve it.
#[must_use]
pub fn may_go_again(candidate: &Candidate<'_>, tried: &[PeerId], has_waited: bool) -> bool {
    !(has_waited && candidate.suspect && tried.contains(candidate.peer))
}

/// From where a peer looks at the others.
#[derive(Debug, Clone, Copy)]
pub struct Viewpoint<'a> {
    /// Its beliefs about them.
    pub view: &'a View,
    /// Its zone.
    pub zone: Option<&'a str>,
    /// The time.
    pub now: Now,
}

impl<'a> Viewpoint<'a> {
    /// The peers where `app` is ready or starting. If there are none and `or_cold` is set, those
    /// that could start it, best first.
    #[must_use]
    pub fn candidates(
        &self,
        app: &AppName,
        or_cold: bool,
        noted: impl Fn(&PeerId) -> Noted,
    ) -> Vec<Candidate<'a>> {
        let candidate = |peer: &'a PeerId, belief: &PeerBelief, copy: &'a AppBelief| {
            self.candidate(peer, belief, copy, noted(peer))
        };
        let warm = self.view.warm_peers(app);
        let warm: Vec<_> = warm.map(|(peer, belief, copy)| candidate(peer, belief, copy)).collect();
        if !warm.is_empty() || !or_cold {
            return warm;
        }
        // Those that cannot start it are named only where no other is left, or they could crowd out
        // one that can; and those where it is held down only where it fails nowhere.
        let tier = |belief: &PeerBelief| {
            let state = belief.apps.get(app)?.news.state;
            let stays = belief.alive == Liveness::Alive && !belief.news.draining;
            Some(match state {
                AppState::Cold | AppState::Stopping if stays => 0,
                AppState::Paused => 2,
                _ => 1,
            })
        };
        let of_tier = |wanted: u8| {
            let live = self.view.live_peers();
            live.filter(move |(_, belief)| tier(belief) == Some(wanted)).map(|(peer, _)| peer)
        };
        let ranked = (0..3).map(|wanted| rank::keepers(app, of_tier(wanted), COLD_MAX));
        let ranked = ranked.into_iter().find(|ranked| !ranked.is_empty()).unwrap_or_default();
        let found = ranked.iter().filter_map(|ranked| {
            let (peer, belief) = self.view.live_peers().find(|(peer, _)| *peer == ranked)?;
            Some(candidate(peer, belief, belief.apps.get(app)?))
        });
        found.collect()
    }

    /// Which peer gets a session whose owner does not run its app: the one that asked for it if that
    /// runs the app, else the least busy that does. `too_old` excludes versions.
    #[must_use]
    pub fn heir(
        &self,
        app: &AppName,
        asks: &PeerId,
        too_old: impl Fn(Option<&AppVersion>) -> bool,
    ) -> Option<Incarnation> {
        let serves = |belief: &PeerBelief, copy: &AppBelief| {
            let stays = belief.alive == Liveness::Alive && !belief.news.draining;
            stays && copy.news.state == AppState::Ready && !too_old(copy.news.version.as_ref())
        };
        let warm = self.view.warm_peers(app);
        let serving = warm.filter(|(_, belief, copy)| serves(belief, copy));
        let key = |(peer, _, copy): &(&PeerId, &PeerBelief, &AppBelief)| {
            (*peer != asks, copy.news.in_flight)
        };
        serving.min_by_key(key).map(|(_, belief, _)| belief.news.incarnation)
    }

    fn candidate(
        &self,
        peer: &'a PeerId,
        belief: &PeerBelief,
        copy: &'a AppBelief,
        noted: Noted,
    ) -> Candidate<'a> {
        let Noted { load, ours, .. } = noted;
        // News counts more than a reply that arrived before it.
        let fresher = load.filter(|load| load.at >= copy.heard);
        Candidate {
            peer,
            state: copy.news.state,
            same_zone: self.zone == belief.news.zone.as_deref(),
            in_flight: fresher.map_or(copy.news.in_flight, |load| load.in_flight),
            ours,
            latency_us: load.map(|load| load.latency_us).filter(|us| *us > 0),
            age: self.now.since(copy.heard),
            load_age: load.map(|load| self.now.since(load.at)),
            suspect: belief.alive == Liveness::Suspect,
            draining: belief.news.draining,
            eta: copy.eta(self.now),
            version: copy.news.version.as_ref(),
            shut: noted.shut,
            is_first: noted.is_first,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use core::time::Duration;

    use super::*;
    use crate::view::{AppNews, News, PeerNews, Source};

    fn at(ms: u64) -> Now {
        Now(ms)
    }

    fn at_ms(at: u8) -> Now {
        Now(u64::from(at))
    }

    fn app() -> AppName {
        AppName::new("shop").expect("a name")
    }

    /// A view of one peer, in zone `a`, whose copy served 7 requests by its news of 1 s.
    fn view(state: AppState) -> View {
        let (peer, incarnation) = (PeerId::new("one").expect("a name"), Incarnation([1; 16]));
        let mut view = View::new(PeerId::new("me").expect("a name"));
        let hello = PeerNews {
            zone: Some(String::from("a")),
            ..PeerNews::of(peer.clone(), incarnation, "127.0.0.1:7001".parse().expect("an address"))
        };
        let _ = view.apply(News::Peer(hello), at(1_000), Source::FirstHand);
        let news = AppNews { in_flight: 7, ..AppNews::of(app(), 1, state) };
        let news = News::App { peer, incarnation, generation: 1, news };
        let _ = view.apply(news, at(1_000), Source::FirstHand);
        view
    }

    fn named(view: &View, or_cold: bool, noted: Noted) -> Vec<Candidate<'_>> {
        let from = Viewpoint { view, zone: Some("a"), now: at(3_000) };
        from.candidates(&app(), or_cold, |_| noted)
    }

    #[test]
    fn the_later_of_news_and_reply_says_how_busy_a_copy_is() {
        let view = view(AppState::Ready);
        let reply = |ms| NotedLoad { in_flight: 2, latency_us: 300, at: at(ms) };
        for (ms, in_flight) in [(999, 7), (1_000, 2), (2_500, 2)] {
            let noted = Noted { load: Some(reply(ms)), ours: 1, ..Noted::default() };
            let [it] = named(&view, false, noted)[..] else { panic!("one peer has the app") };
            assert_eq!((it.in_flight, it.ours, it.latency_us), (in_flight, 1, Some(300)));
            assert_eq!(it.load_age, Some(Duration::from_millis(3_000 - ms)));
            assert_eq!((it.age, it.same_zone), (Duration::from_secs(2), true));
        }
        let [it] = named(&view, false, Noted::default())[..] else {
            panic!("one peer has the app")
        };
        assert_eq!((it.in_flight, it.latency_us, it.load_age), (7, None, None));
    }

    #[test]
    fn peers_where_the_app_is_cold_are_candidates_only_where_another_has_to_start_it() {
        let view = view(AppState::Cold);
        assert_eq!(named(&view, false, Noted::default()), []);
        assert_eq!(named(&view, true, Noted::default()).len(), 1);
    }

    #[test]
    fn a_peer_that_could_start_the_app_is_named_before_all_that_cannot() {
        let mut view = View::new(PeerId::new("me").expect("a name"));
        let mut add = |at: u8, state, draining| {
            let incarnation = Incarnation([at; 16]);
            let peer = PeerId::new(&alloc::format!("p{at}")).expect("a name");
            let mesh = "127.0.0.1:7001".parse().expect("an address");
            let hello = PeerNews { draining, ..PeerNews::of(peer.clone(), incarnation, mesh) };
            let _ = view.apply(News::Peer(hello), at_ms(at), Source::FirstHand);
            let news = AppNews::of(app(), 1, state);
            let news = News::App { peer, incarnation, generation: 1, news };
            let _ = view.apply(news, at_ms(at), Source::FirstHand);
            let candidates = named(&view, true, Noted::default());
            let states: Vec<_> = candidates.iter().map(|it| it.state).collect();
            (states.len(), states.iter().all(|it| *it == state), states.contains(&state))
        };
        assert_eq!(add(1, AppState::Paused, false), (1, true, true));
        assert_eq!(add(2, AppState::Cold, true), (1, true, true), "it leaves, but is not paused");
        for at in 3..3 + COLD_MAX as u8 {
            assert!(add(at, AppState::Failed, false).2);
        }
        assert_eq!(add(99, AppState::Cold, false), (1, true, true), "however many fail");
    }

    #[test]
    fn a_session_of_a_cold_owner_goes_to_a_peer_that_serves() {
        let asks = PeerId::new("other").expect("a name");
        let heir = |state, too_old: bool| {
            let view = view(state);
            let from = Viewpoint { view: &view, zone: None, now: at(3_000) };
            from.heir(&app(), &asks, |_| too_old)
        };
        assert_eq!(heir(AppState::Ready, false), Some(Incarnation([1; 16])));
        assert_eq!(heir(AppState::Ready, true), None);
        assert_eq!(heir(AppState::Starting, false), None);
    }

    #[test]
    fn others_start_what_this_peer_may_not_start_or_could_not() {
        let mut policy = AppPolicy::default();
        for (here, draining, expected) in [
            (AppState::Cold, false, false),
            (AppState::Starting, false, false),
            (AppState::Failed, false, true),
            (AppState::Paused, false, true),
            (AppState::Cold, true, true),
        ] {
            assert_eq!(others_start(&policy, here, draining), expected, "{here:?} {draining}");
        }
        policy.start = StartMode::Never;
        assert!(others_start(&policy, AppState::Cold, false));
    }

    #[test]
    fn after_a_wait_each_peer_may_be_asked_again() {
        let tried = [PeerId::new("one").expect("a name")];
        assert_eq!(still_tried(&tried, false), tried);
        assert_eq!(still_tried(&tried, true), []);
    }
}
