//! The affinity token: what is minted is read, and nothing else is.

#![expect(clippy::unwrap_used, reason = "a scene that cannot be set fails its test")]

mod prng;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prng::Prng;
use warmhop_core::affinity::*;
use warmhop_core::config::SessionPolicy;
use warmhop_core::ids::{AppName, Incarnation, Now, PeerId, SessionId, WallTime};
use warmhop_core::session::message::{Config, Members};
use warmhop_core::version::AppVersion;
use warmhop_core::view::{AppNews, AppState, News, PeerNews, Source, View};

/// A keyed sum that stands in for an HMAC: any changed byte changes it.
struct Key(u64);

impl Authenticator for Key {
    fn tag(&self, bytes: &[u8]) -> [u8; 16] {
        let mut sum = Prng(self.0 ^ bytes.len() as u64);
        for byte in bytes {
            sum.0 = sum.next() ^ u64::from(*byte);
        }
        sum.bytes()
    }

    fn verify(&self, bytes: &[u8], tag: &[u8; 16]) -> bool {
        self.tag(bytes) == *tag
    }
}

const KEY: Key = Key(42);
const NOON: WallTime = WallTime(1_000_000);

fn route() -> PeerId {
    PeerId::new("peer-1").unwrap()
}

fn members(rng: &mut Prng, count: u64) -> Members {
    let mut who: Vec<_> = (0..count).map(|_| Incarnation(rng.bytes())).collect();
    who.sort();
    Members { c: rng.next() as u32, stamp: rng.next(), who: who.into_iter().collect() }
}

fn entry(rng: &mut Prng, app: &str) -> Entry {
    let kind = if rng.chance(50) {
        let count = 1 + rng.below(3);
        let now = members(rng, count);
        let prev = rng.chance(50).then(|| Box::new(members(rng, 1)));
        Kind::Portable { cfg: Config { now, prev }, owner: Incarnation(rng.bytes()), n: rng.next() }
    } else {
        let peer = PeerId::new(&"p".repeat(1 + rng.below(32) as usize)).unwrap();
        Kind::Pinned { peer, incarnation: Incarnation(rng.bytes()) }
    };
    Entry {
        app: AppName::new(app).unwrap(),
        sid: SessionId(rng.bytes()),
        expiry: WallTime(NOON.0 + 1 + rng.below(1_000)),
        kind,
        version: rng.chance(50).then(|| version(&"7".repeat(1 + rng.below(64) as usize))),
    }
}

fn version(text: &str) -> AppVersion {
    AppVersion::new(text).unwrap()
}

fn token(rng: &mut Prng) -> Token {
    let count = 1 + rng.below(4);
    Token { entries: (0..count).map(|i| entry(rng, &format!("app-{i}"))).collect() }
}

/// A value whose tag is right, whatever its bytes say.
fn tagged(bytes: &[u8]) -> String {
    let mut bytes = bytes.to_vec();
    bytes.extend_from_slice(&KEY.tag(&bytes));
    format!("{}.peer-1", URL_SAFE_NO_PAD.encode(bytes))
}

#[test]
fn a_minted_token_can_be_read() {
    let mut rng = Prng(1);
    for _ in 0..2_000 {
        let token = token(&mut rng);
        let value = mint(&token, &route(), &KEY);
        assert_eq!(read(&value, &KEY, NOON), Ok((token, Some(route()))));
        let (opaque, suffix) = value.split_once('.').unwrap();
        assert_eq!(suffix, "peer-1");
        assert!(opaque.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    }
}

#[test]
fn the_layout_is_the_documented_one_byte_by_byte() {
    let id = |byte| [byte; 16];
    let token = Token {
        entries: vec![
            Entry {
                app: AppName::new("shop").unwrap(),
                sid: SessionId(id(1)),
                expiry: WallTime(0x0102_0304_0506_0708),
                kind: Kind::Portable {
                    cfg: Config {
                        now: Members {
                            c: 2,
                            stamp: 3,
                            who: [4, 5].map(|n| Incarnation(id(n))).into_iter().collect(),
                        },
                        prev: Some(Box::new(Members::first(2, [Incarnation(id(4))]))),
                    },
                    owner: Incarnation(id(4)),
                    n: 9,
                },
                version: None,
            },
            Entry {
                app: AppName::new("b").unwrap(),
                sid: SessionId(id(6)),
                expiry: WallTime(u64::MAX),
                kind: Kind::Pinned { peer: route(), incarnation: Incarnation(id(7)) },
                version: None,
            },
            Entry {
                app: AppName::new("c").unwrap(),
                sid: SessionId(id(8)),
                expiry: WallTime(5),
                kind: Kind::Pinned { peer: route(), incarnation: Incarnation(id(9)) },
                version: Some(version("1.2")),
            },
        ],
    };
    let mut bytes = vec![1, 3];
    bytes.extend([1, 2, 3, 4, 5, 6, 7, 8]);
    bytes.extend(b"\x04shop");
    bytes.extend(id(1));
    bytes.push(0);
    bytes.extend(id(4));
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 9]);
    bytes.extend([0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 2]);
    bytes.extend(id(4));
    bytes.extend(id(5));
    bytes.push(1);
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
    bytes.extend(id(4));
    bytes.extend([255; 8]);
    bytes.extend(b"\x01b");
    bytes.extend(id(6));
    bytes.push(1);
    bytes.extend(b"\x06peer-1");
    bytes.extend(id(7));
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 5]);
    bytes.extend(b"\x01c");
    bytes.extend(id(8));
    bytes.push(3);
    bytes.extend(b"\x031.2");
    bytes.extend(b"\x06peer-1");
    bytes.extend(id(9));
    assert_eq!(mint(&token, &route(), &KEY), tagged(&bytes));
}

#[test]
fn no_value_that_was_changed_in_one_character_or_cut_is_believed() {
    let mut rng = Prng(2);
    for _ in 0..20 {
        let value = mint(&token(&mut rng), &route(), &KEY);
        let opaque = value.find('.').unwrap();
        for at in 0..opaque {
            for with in ["A", "z", "_", "=", ".", " ", "é"] {
                let mut changed = value.clone();
                changed.replace_range(at..=at, with);
                if changed != value {
                    assert!(read(&changed, &KEY, NOON).is_err(), "{changed}");
                }
            }
            assert!(read(&value[..at], &KEY, NOON).is_err());
            assert!(read(&value[at + 1..], &KEY, NOON).is_err());
        }
        assert_eq!(read(&value, &Key(43), NOON), Err(Reject::Forged), "another cluster's key");
    }
}

#[test]
fn no_bytes_panic_be_they_tagged_or_not() {
    let mut rng = Prng(3);
    for round in 0..60_000 {
        let mut bytes: Vec<u8> = (0..rng.below(300)).map(|_| rng.next() as u8).collect();
        if round % 2 == 0 && bytes.len() > 2 {
            (bytes[0], bytes[1]) = (1, 1 + rng.below(4) as u8);
        }
        // Never a member twice, never a malformed name: so hardly any of these has the form.
        let _ = read(&tagged(&bytes), &KEY, NOON);
        let text: String = bytes.iter().map(|b| char::from(*b)).collect();
        assert!(read(&text, &KEY, NOON).is_err());
    }
}

#[test]
fn a_token_has_only_one_valid_form() {
    // Take the bytes of true tokens, change some, tag them rightly: what is read from them mints
    // the very same value again.
    let mut rng = Prng(4);
    let mut read_back = 0;
    for _ in 0..20_000 {
        let value = mint(&token(&mut rng), &route(), &KEY);
        let mut bytes = URL_SAFE_NO_PAD.decode(value.split_once('.').unwrap().0).unwrap();
        bytes.truncate(bytes.len() - 16);
        let at = rng.below(bytes.len() as u64) as usize;
        bytes[at] = rng.next() as u8;
        if rng.chance(10) {
            bytes.push(0);
        }
        let changed = tagged(&bytes);
        // At the dawn of time nothing has expired but what says so.
        if let Ok((token, _)) = read(&changed, &KEY, WallTime(0)) {
            assert_eq!(mint(&token, &route(), &KEY), changed);
            read_back += 1;
        }
    }
    assert!(read_back > 5_000, "{read_back}");
}

#[test]
fn each_way_to_be_wrong_has_its_own_reject() {
    let mut rng = Prng(5);
    let value = mint(&token(&mut rng), &route(), &KEY);
    assert_eq!(read(&"A".repeat(VALUE_BYTES_MAX + 1), &KEY, NOON), Err(Reject::TooLong));
    for bad in ["", ".", "no token", "=", "....", ".peer-1", "AQ", "AQEB.peer-1", "Zg==.peer-1"] {
        let reject = read(bad, &KEY, NOON).unwrap_err();
        assert!(matches!(reject, Reject::Form | Reject::Version), "{bad:?}: {reject}");
    }
    for (version, reject) in [(0, Reject::Version), (2, Reject::Forged), (3, Reject::Version)] {
        let other = format!("{}.peer-1", URL_SAFE_NO_PAD.encode([version; 40]));
        assert_eq!(read(&other, &KEY, NOON), Err(reject), "{version}");
    }
    assert_eq!(read(&value, &Key(7), NOON), Err(Reject::Forged));
    assert_eq!(read(&value, &KEY, WallTime(NOON.0 + 1_001)), Err(Reject::Expired));
    for (bytes, what) in [(&[1, 0][..], "no entry"), (&[1, 5], "five"), (&[1, 1], "cut")] {
        assert_eq!(read(&tagged(bytes), &KEY, NOON), Err(Reject::Form), "{what}");
    }
    let labels = [Reject::TooLong, Reject::Form, Reject::Version, Reject::Forged, Reject::Expired]
        .map(Reject::label);
    assert_eq!(labels, ["too_long", "form", "version", "forged", "expired"]);
}

#[test]
fn expired_entries_are_left_out_one_by_one() {
    let mut rng = Prng(6);
    let mut token = Token::default();
    for (app, expiry) in [("c", 30), ("b", 20), ("a", 10)] {
        token.put(Entry { expiry: WallTime(expiry), ..entry(&mut rng, app) });
    }
    let value = mint(&token, &route(), &KEY);
    let apps = |wall| {
        let (token, _) = read(&value, &KEY, WallTime(wall)).unwrap();
        token.entries.iter().map(|e| e.app.to_string()).collect::<Vec<_>>().join("")
    };
    assert_eq!([apps(9), apps(10), apps(29)], ["abc", "bc", "c"]);
    assert_eq!(read(&value, &KEY, WallTime(30)), Err(Reject::Expired));
}

#[test]
fn the_route_is_whatever_a_balancer_made_of_it_and_changes_nothing() {
    let token = token(&mut Prng(7));
    let value = mint(&token, &route(), &KEY);
    let opaque = value.split_once('.').unwrap().0;
    for (route, expected) in [
        (".peer-9", Some("peer-9")),
        ("", None),
        (".", None),
        (".a.b", None),
        (".not a name", None),
        (".\u{e9}", None),
    ] {
        let (read_token, read_route) = read(&format!("{opaque}{route}"), &KEY, NOON).unwrap();
        assert_eq!(read_token, token);
        assert_eq!(read_route.as_ref().map(PeerId::as_str), expected);
    }
}

#[test]
fn a_token_keeps_the_four_apps_used_last_and_fits_its_bound() {
    let mut rng = Prng(8);
    let mut token = Token::default();
    let name = |i: u8| AppName::new(&char::from(b'a' + i).to_string().repeat(64)).unwrap();
    let largest = |rng: &mut Prng, i: u8| {
        let (now, prev) = (members(rng, 3), members(rng, 3));
        let cfg = Config { now, prev: Some(Box::new(prev)) };
        let kind = Kind::Portable { cfg, owner: Incarnation(rng.bytes()), n: 1 };
        let version = Some(version(&"v".repeat(64)));
        Entry { kind, version, ..entry(rng, name(i).as_str()) }
    };
    for i in [0, 1, 2, 3, 4, 2] {
        token.put(largest(&mut rng, i));
    }
    let apps: Vec<_> = token.entries.iter().map(|e| e.app.clone()).collect();
    assert_eq!(apps, [name(2), name(4), name(3), name(1)]);
    let longest = PeerId::new(&"r".repeat(32)).unwrap();
    let value = mint(&token, &longest, &KEY);
    assert_eq!(value.len(), 1_668);
    assert!(value.len() <= VALUE_BYTES_MAX);
    assert_eq!(read(&value, &KEY, NOON).unwrap().0, token);
    token.remove(&name(4));
    assert!(token.entry(&name(4)).is_none() && token.entry(&name(3)).is_some());
}

#[test]
fn an_impossible_entry_is_not_minted() {
    let mut rng = Prng(9);
    let good = entry(&mut rng, "good");
    let with = |rng: &mut Prng, now| {
        let kind =
            Kind::Portable { cfg: Config { now, prev: None }, owner: Incarnation([0; 16]), n: 0 };
        Entry { kind, ..entry(rng, "bad") }
    };
    let none = members(&mut rng, 0);
    let twice =
        Members { who: [Incarnation([1; 16]); 2].into_iter().collect(), ..members(&mut rng, 1) };
    for members in [none, twice] {
        let token = Token { entries: vec![with(&mut rng, members), good.clone(), good.clone()] };
        let value = mint(&token, &route(), &KEY);
        assert_eq!(read(&value, &KEY, NOON).unwrap().0.entries, std::slice::from_ref(&good));
    }
}

/// Asks and answers `times` requests, `n` growing by one with each.
fn requests(counter: &mut MoveCounter, n: &mut u64, times: u32, now: Now) -> Vec<bool> {
    (0..times)
        .map(|_| {
            let moves = counter.arrived(Owner::Serving, *n, now, &SessionPolicy::default());
            *n += 1;
            counter.answered(*n);
            moves
        })
        .collect()
}

#[test]
fn a_cold_owner_gives_a_session_away_once_in_an_interval() {
    let policy = SessionPolicy::default();
    let mut counter = MoveCounter::new();
    assert!(counter.may_give(Now(5), &policy), "it began here");
    counter.moved(Now(5));
    let interval = u64::try_from(policy.move_interval.as_millis()).unwrap();
    assert!(!counter.may_give(Now(4 + interval), &policy));
    assert!(counter.may_give(Now(5 + interval), &policy));
}

#[test]
fn a_session_moves_with_the_third_consecutive_request_and_not_again_within_the_interval() {
    let policy = SessionPolicy::default();
    let (mut counter, mut n) = (MoveCounter::new(), 7);
    assert_eq!(requests(&mut counter, &mut n, 3, Now(0)), [false, false, true]);
    counter.moved(Now(100));
    let soon = Now(99).after(policy.move_interval);
    assert_eq!(requests(&mut counter, &mut n, 5, soon), [false; 5]);
    let later = Now(100).after(policy.move_interval);
    assert_eq!(requests(&mut counter, &mut n, 1, later), [true]);
    // It moved here and away again: what was counted before counts no more.
    counter.moved(later);
    let much_later = later.after(policy.move_interval);
    assert_eq!(requests(&mut counter, &mut n, 3, much_later), [false, false, true]);
}

#[test]
fn a_client_dealt_out_in_turn_never_moves_its_session() {
    let (mut counter, mut n) = (MoveCounter::new(), 0);
    for second in 0..100 {
        assert_eq!(requests(&mut counter, &mut n, 2, Now(second * 1_000)), [false, false]);
        // Another entry peer answered one meanwhile.
        n += 1;
    }
}

#[test]
fn a_request_sent_beside_another_does_not_look_like_one_from_elsewhere() {
    let policy = SessionPolicy::default();
    let mut counter = MoveCounter::new();
    counter.arrived(Owner::Serving, 1, Now(0), &policy);
    counter.answered(2);
    // Sent before the answer: its token still says 1.
    assert!(!counter.arrived(Owner::Serving, 1, Now(1), &policy));
    counter.answered(3);
    assert!(counter.arrived(Owner::Serving, 3, Now(2), &policy));
}

#[test]
fn a_session_leaves_an_owner_that_is_gone_or_draining_at_once_and_whenever() {
    let policy = SessionPolicy::default();
    for owner in [Owner::Gone, Owner::Draining] {
        let mut counter = MoveCounter::new();
        counter.moved(Now(0));
        assert!(counter.arrived(owner, 1, Now(1), &policy));
    }
    let eager = policy.with(|made| {
        made.move_after = 0;
        made.move_interval = Duration::ZERO;
    });
    assert!(MoveCounter::new().arrived(Owner::Serving, 1, Now(0), &eager));
}

/// A peer's name, its life, whether it drains, and the state of the app there.
type Other = (&'static str, u8, bool, AppState);

fn view_of(others: &[Other]) -> View {
    let mut view = View::new(PeerId::new("me").unwrap());
    for (name, life, draining, state) in others {
        let (peer, incarnation) = (PeerId::new(name).unwrap(), Incarnation([*life; 16]));
        let news = PeerNews {
            draining: *draining,
            ..PeerNews::of(peer.clone(), incarnation, "127.0.0.1:7001".parse().unwrap())
        };
        view.apply(News::Peer(news), Now(1), Source::FirstHand);
        let app = AppName::new("shop").unwrap();
        let news = AppNews::of(app, 1, *state);
        let news = News::App { peer, incarnation, generation: 1, news };
        view.apply(news, Now(1), Source::FirstHand);
    }
    view
}

#[test]
fn a_client_comes_back_to_where_its_session_is_and_to_nobody_who_always_has_to_ask() {
    use AppState::{Cold, Ready, Starting};
    const ME: u8 = 9;
    let named = |owner: u8, (serves, ready), others: &[Other], current: Option<&str>| {
        let mut rng = Prng(1);
        let cfg = Config { now: members(&mut rng, 3), prev: None };
        let kind = Kind::Portable { cfg, owner: Incarnation([owner; 16]), n: 1 };
        let entry = Entry {
            app: AppName::new("shop").unwrap(),
            sid: SessionId([0; 16]),
            expiry: NOON,
            kind,
            version: None,
        };
        let (me, served_by) = (PeerId::new("me").unwrap(), PeerId::new("two").unwrap());
        let current = current.map(|name| PeerId::new(name).unwrap());
        let arrival = Arrival {
            me: &me,
            incarnation: Incarnation([ME; 16]),
            serves,
            ready,
            view: &view_of(others),
            current: current.as_ref(),
            served_by: Some(&served_by),
        };
        come_back_to(&entry, &arrival).to_string()
    };
    let two = |state| ("two", 2, false, state);
    let three = |state| ("three", 3, false, state);
    // Its own, starting or ready: here.
    assert_eq!(named(ME, (true, false), &[two(Ready)], None), "me");
    // Another's, where the app runs or soon will: there, for as long as that peer stays.
    for state in [Ready, Starting] {
        assert_eq!(named(2, (true, true), &[two(state)], Some("me")), "two");
    }
    assert_eq!(named(2, (true, false), &[two(Cold)], Some("two")), "two", "neither has it");
    assert_eq!(named(2, (true, true), &[two(Cold)], Some("two")), "me", "only this one has it");
    assert_eq!(named(2, (true, false), &[("two", 2, true, Ready)], Some("two")), "me", "it leaves");
    // This peer may not run it, or leaves: where it is ready, and there again the next time.
    let not_here = (false, false);
    assert_eq!(named(ME, not_here, &[two(Ready), three(Ready)], Some("me")), "two");
    assert_eq!(named(ME, not_here, &[two(Ready), three(Ready)], Some("three")), "three");
    assert_eq!(named(ME, not_here, &[two(Cold), three(Ready)], Some("two")), "three");
    assert_eq!(named(ME, not_here, &[two(Cold), ("three", 3, true, Ready)], None), "me", "nobody");
    // And from there it is not sent back to the peer that owns it and cannot run it.
    assert_eq!(named(1, (true, true), &[("one", 1, false, Cold)], Some("me")), "me");
}

#[test]
fn an_alias_tells_nothing_of_the_name_and_every_holder_of_a_key_knows_whose_it_is() {
    let peers = ["peer-1", "peer-2", "a"].map(|name| PeerId::new(name).unwrap());
    for peer in &peers {
        assert_eq!(RouteName::Name.of(peer, &KEY), *peer);
        let alias = RouteName::Opaque.of(peer, &KEY);
        assert_eq!(alias.as_str().len(), 32);
        assert!(alias.as_str().bytes().all(|byte| byte.is_ascii_hexdigit()), "{alias}");
        assert_ne!(alias, RouteName::Opaque.of(peer, &Key(7)), "another key, another alias");
        assert_eq!(peer_called(&alias, peers.iter(), &KEY), Some(peer));
        assert_eq!(peer_called(peer, peers.iter(), &KEY), Some(peer), "a name is understood, too");
        assert_eq!(peer_called(&alias, peers.iter(), &Key(7)), None);
        assert_eq!(peer_called(&alias, peers.iter().filter(|it| *it != peer), &KEY), None);
    }
    for unknown in
        ["peer-9", "0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdeg"]
    {
        assert_eq!(peer_called(&PeerId::new(unknown).unwrap(), peers.iter(), &KEY), None);
    }
}

/// Two keys, of which the first makes tags.
struct Keys(Key, Key);

impl Authenticator for Keys {
    fn tag(&self, bytes: &[u8]) -> [u8; 16] {
        self.0.tag(bytes)
    }

    fn verify(&self, bytes: &[u8], tag: &[u8; 16]) -> bool {
        self.0.verify(bytes, tag) || self.1.verify(bytes, tag)
    }

    fn keys(&self) -> usize {
        2
    }

    fn tag_by(&self, key: usize, bytes: &[u8]) -> [u8; 16] {
        [&self.0, &self.1][key].tag(bytes)
    }
}

#[test]
fn a_token_under_a_veil_is_read_by_holders_of_its_key_and_shows_nothing_to_others() {
    let mut rng = Prng(23);
    for _ in 0..200 {
        let token = token(&mut rng);
        let (plain, veiled) = (mint(&token, &route(), &KEY), mint_veiled(&token, &route(), &KEY));
        assert_eq!(plain.len(), veiled.len());
        for value in [&plain, &veiled] {
            assert_eq!(read(value, &KEY, WallTime(0)), Ok((token.clone(), Some(route()))));
            for keys in [Keys(KEY, Key(7)), Keys(Key(7), KEY)] {
                assert_eq!(read(value, &keys, WallTime(0)), Ok((token.clone(), Some(route()))));
            }
            assert_eq!(read(value, &Key(7), WallTime(0)), Err(Reject::Forged));
            assert_eq!(read(value, &Keys(Key(7), Key(8)), WallTime(0)), Err(Reject::Forged));
        }
        let bytes = |value: &str| URL_SAFE_NO_PAD.decode(value.split('.').next().unwrap()).unwrap();
        let (plain, veiled) = (bytes(&plain), bytes(&veiled));
        for entry in &token.entries {
            let shows = |bytes: &[u8]| {
                let name = entry.app.as_str().as_bytes();
                bytes.windows(name.len()).any(|window| window == name)
                    && bytes.windows(16).any(|window| window == entry.sid.0)
            };
            assert!(shows(&plain) && !shows(&veiled), "{entry:?}");
        }
        // Any changed bit of it makes it nobody's.
        let at = rng.below(veiled.len() as u64 - 1) as usize + 1;
        let mut changed = veiled;
        changed[at] ^= 1 << rng.below(8);
        let changed = format!("{}.peer-1", URL_SAFE_NO_PAD.encode(&changed));
        assert_eq!(read(&changed, &KEY, WallTime(0)), Err(Reject::Forged));
    }
}

#[test]
fn the_peer_of_a_pinned_session_is_disguised_as_the_route_is() {
    let peer = PeerId::new("peer-1").unwrap();
    let kind = Kind::Pinned { peer: peer.clone(), incarnation: Incarnation([7; 16]) };
    let entry = Entry { kind, ..entry(&mut Prng(1), "shop") };
    let hidden = RouteName::Opaque.disguise(entry.clone(), &KEY);
    let value = mint(&Token { entries: vec![hidden] }, &RouteName::Opaque.of(&peer, &KEY), &KEY);
    let (opaque, _) = value.split_once('.').unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(opaque).unwrap();
    assert!(!bytes.windows(6).any(|window| window == b"peer-1"));
    let (token, _) = read(&value, &KEY, NOON).unwrap();
    let Kind::Pinned { peer: said, .. } = &token.entries[0].kind else { panic!("{token:?}") };
    assert_eq!(peer_called(said, [&peer].into_iter(), &KEY), Some(&peer));
    assert_eq!(RouteName::Name.disguise(entry.clone(), &KEY), entry);
}
