//! A session that a newer version has served does not go back to an older one.

use warmhop_core::config::{AppPolicy, SessionMode};
use warmhop_core::ids::PeerId;
use warmhop_core::route::*;
use warmhop_core::version::AppVersion;
use warmhop_core::view::AppState;

use crate::prng::Prng;
use crate::scene;

fn version(text: &str) -> AppVersion {
    AppVersion::new(text).unwrap()
}

fn peers() -> Vec<PeerId> {
    ["one", "two", "three"].map(|name| PeerId::new(name).unwrap()).into()
}

fn ready<'a>(peer: &'a PeerId, version: &'a AppVersion) -> Candidate<'a> {
    Candidate { version: Some(version), ..scene::ready(peer) }
}

/// A request of a session at a peer where the app is ready.
fn question<'a>(
    app: &'a AppPolicy,
    candidates: &'a [Candidate<'a>],
    versions: Versions<'a>,
) -> Question<'a> {
    let local = LocalApp { eta: None, ..scene::local(AppState::Ready) };
    Question { local, versions, ..scene::question(app, candidates) }
}

/// Where it goes: a peer's name, or what else becomes of it.
fn goes(q: &Question<'_>) -> String {
    match decide(q).action {
        Action::Hop { to } => to.to_string(),
        Action::Serve => "here".into(),
        Action::Wait { .. } => "waits".into(),
        Action::Refuse(refusal) => refusal.label().into(),
    }
}

#[test]
fn a_session_goes_from_the_older_copy_here_to_a_newer_one_that_is_ready() {
    let (app, p) = (AppPolicy::default(), peers());
    let (old, new, newest) = (version("1.9"), version("1.10"), version("2.0"));
    let others = [ready(&p[0], &old), ready(&p[1], &new)];
    let of = |served| Versions { served, here: Some(&old), heard: Some(&new) };
    let q = question(&app, &others, of(Some(&new)));
    let decision = decide(&q);
    assert_eq!(goes(&q), "two");
    let reason = Reason::NewerThere { peer: p[1].clone(), served: new.clone() };
    assert_eq!((decision.reason, decision.start_here), (reason, false));
    for served in [None, Some(&old)] {
        assert_eq!(goes(&question(&app, &others, of(served))), "here", "{served:?}");
    }
    let newest_there = [ready(&p[0], &old), ready(&p[1], &newest)];
    assert_eq!(goes(&question(&app, &newest_there, of(Some(&new)))), "two", "a later one will do");
}

#[test]
fn of_several_peers_those_with_an_older_copy_are_passed_over() {
    let (app, p) = (AppPolicy::default(), peers());
    let (old, new) = (version("1"), version("2"));
    let others = [ready(&p[0], &old), ready(&p[1], &old), ready(&p[2], &new)];
    let versions = Versions { served: Some(&new), here: None, heard: Some(&new) };
    let q = question(&app, &others, versions);
    let cold = LocalApp { state: AppState::Cold, ..q.local };
    for dice in [0, 1 << 31, u64::MAX, 0x1234_5678_9ABC_DEF0] {
        let decision = decide(&Question { dice, local: cold, ..q });
        assert_eq!(decision.action, Action::Hop { to: p[2].clone() });
        assert!(decision.start_here, "its client may stay");
    }
    let unnamed = [Candidate { version: None, ..ready(&p[0], &old) }];
    let q = question(&app, &unnamed, Versions { here: Some(&old), ..versions });
    assert_eq!(goes(&q), "one", "one that names no version is not known to be older");
}

#[test]
fn a_request_counts_on_the_version_of_a_copy_that_is_not_chosen_although_it_is_older() {
    let (old, new, newest) = (version("1.9"), version("1.10"), version("2.0"));
    for there in [Some(&new), Some(&newest), None] {
        assert_eq!(counts_on(Some(&new), there), Some(&new), "{there:?}");
    }
    assert_eq!(counts_on(Some(&new), Some(&old)), None, "it would be turned away for ever");
    assert_eq!(counts_on(None, Some(&old)), None, "it has seen none");
}

#[test]
fn an_older_copy_serves_where_no_newer_one_can_be_reached() {
    let (app, p) = (AppPolicy::default(), peers());
    let (old, new) = (version("1"), version("2"));
    let versions = Versions { served: Some(&new), here: Some(&old), heard: Some(&new) };
    let newer = ready(&p[0], &new);
    let starting = [Candidate { state: AppState::Starting, ..newer }];
    assert_eq!(goes(&question(&app, &starting, versions)), "here", "it is not ready");
    let late = [Candidate { suspect: true, ..newer }];
    assert_eq!(goes(&question(&app, &late, versions)), "here", "it may be dead");
    let (others, tried) = ([newer], [p[0].clone()]);
    let q = Question { tried: &tried, ..question(&app, &others, versions) };
    assert_eq!(goes(&q), "here", "it said no");
    let leaving = [Candidate { draining: true, ..newer }];
    assert_eq!(goes(&question(&app, &leaving, versions)), "one", "what leaves serves still");
    let busy = AppPolicy::default().with(|made| made.concurrency = Some(1));
    let full = [Candidate { in_flight: 1, ..newer }];
    assert_eq!(goes(&question(&busy, &full, versions)), "waits", "a place will be free");
}

#[test]
fn a_request_that_is_faster_than_the_news_of_its_version_waits_for_them_once() {
    let (app, p) = (AppPolicy::default(), peers());
    let (old, new) = (version("1"), version("2"));
    let others = [ready(&p[0], &old)];
    let of = |heard| Versions { served: Some(&new), here: Some(&old), heard };
    for heard in [None, Some(&old)] {
        let q = question(&app, &others, of(heard));
        assert_eq!(decide(&q).action, Action::Wait { at_most: NEWS_WITHIN });
        assert_eq!(decide(&q).reason, Reason::UnheardVersion { served: new.clone() });
        assert_eq!(goes(&Question { waited: NEWS_WITHIN, ..q }), "here");
        let full = LocalApp { waiting: app.waiting_max, ..q.local };
        assert_eq!(goes(&Question { local: full, ..q }), "here", "no more wait than may");
    }
    assert_eq!(goes(&question(&app, &others, of(Some(&new)))), "here", "it was there, and went");
}

#[test]
fn a_pinned_session_leaves_a_copy_that_was_taken_back() {
    let app = AppPolicy::default().with(|made| made.session = SessionMode::Pinned);
    let (p, me) = (peers(), PeerId::new("me").unwrap());
    let (old, new) = (version("1"), version("2"));
    let others = [ready(&p[0], &old), ready(&p[1], &new)];
    let versions = Versions { served: Some(&new), here: Some(&old), heard: Some(&new) };
    let pins = [(&p[0], false, "two"), (&me, true, "two"), (&p[1], false, "two")];
    for (peer, here, expected) in pins {
        let pin = PinTo { peer, here, lives: true };
        let q = Question { affinity: Some(pin), ..question(&app, &others, versions) };
        assert_eq!(goes(&q), expected, "{peer}");
        let stays = Question { versions: Versions { served: Some(&old), ..versions }, ..q };
        let where_it_is = if here { "here" } else { peer.as_str() };
        assert_eq!(goes(&stays), where_it_is, "{peer}");
    }
}

#[test]
fn whatever_the_mesh_looks_like_nothing_goes_back_while_a_newer_copy_is_at_hand() {
    let mut rng = Prng(11);
    let (app, p) = (AppPolicy::default(), peers());
    let all = ["1", "2", "3"].map(version);
    let states = [AppState::Ready, AppState::Starting, AppState::Cold];
    let (mut kept, mut back) = (0, 0);
    for _ in 0..20_000 {
        let mut any = || &all[rng.below(3) as usize];
        let (served, here, there) = (any(), any(), [any(), any(), any()]);
        let others: Vec<_> = (0..3)
            .map(|at| Candidate {
                state: states[rng.below(3) as usize],
                suspect: rng.chance(20),
                draining: rng.chance(20),
                ..ready(&p[at], there[at])
            })
            .collect();
        let versions = Versions { served: Some(served), here: Some(here), heard: Some(&all[2]) };
        let q = question(&app, &others, versions);
        let local = LocalApp { state: states[rng.below(3) as usize], ..q.local };
        let draining = rng.chance(20);
        let q = Question { local, draining, dice: rng.next(), ..q };
        let is_old = |version: &AppVersion| served.is_newer_than(version);
        let at_hand = others
            .iter()
            .any(|c| c.state == AppState::Ready && !c.suspect && !c.version.is_some_and(is_old));
        let at_hand = at_hand || (local.state == AppState::Ready && !is_old(here));
        let went_back = match decide(&q).action {
            Action::Serve => is_old(here),
            Action::Hop { to } => {
                others.iter().any(|c| *c.peer == to && c.version.is_some_and(is_old))
            }
            Action::Wait { .. } | Action::Refuse(_) => false,
        };
        assert!(!(at_hand && went_back), "{q:#?}");
        kept += u32::from(at_hand);
        back += u32::from(went_back);
    }
    assert!(kept > 1_000 && back > 1_000, "{kept} {back}");
}
