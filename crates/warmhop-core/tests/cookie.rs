//! The fields that the affinity token travels in.

#![expect(clippy::unwrap_used, reason = "a scene that cannot be set fails its test")]

mod prng;

use prng::Prng;
use warmhop_core::cookie::*;

fn found(header: &[u8]) -> Vec<String> {
    CookieSpec::default().values(header).map(str::to_owned).collect()
}

fn strip(header: &[u8], hide: impl FnMut(&str) -> bool) -> Option<String> {
    CookieSpec::default().strip(header, hide).map(|kept| String::from_utf8(kept).unwrap())
}

fn named(name: &str) -> CookieSpec {
    CookieSpec::default().with(|made| made.name = name.into())
}

#[test]
fn our_cookies_are_found_among_others_however_they_are_written() {
    assert_eq!(found(b"warmhop=a.b"), ["a.b"]);
    assert_eq!(found(b"x=1; warmhop=a.b; y=2"), ["a.b"]);
    assert_eq!(found(b"x=1;warmhop = \"a.b\"\t;;; warmhop=c="), ["a.b", "c="]);
    assert_eq!(found(b"warmhop=\xff"), [""], "rejected as of no form, and so counted");
    let others: [&[u8]; 7] = [
        b"",
        b"warmhop",
        b"Warmhop=a",
        b"xwarmhop=a",
        b"warmhop2=a",
        b"x=warmhop=a",
        b"=warmhop=a",
    ];
    for header in others {
        assert_eq!(found(header), [""; 0], "{header:?}");
        assert_eq!(strip(header, |_| true), None);
    }
    assert_eq!(found(&b"warmhop=1; ".repeat(10_000)).len(), 10_000);
}

#[test]
fn apps_get_every_cookie_but_those_that_are_hidden_as_it_was() {
    let all = |header: &[u8]| strip(header, |_| true);
    assert_eq!(all(b"warmhop=a.b").as_deref(), Some(""));
    assert_eq!(all(b"x=1; warmhop=a.b; y=\"2 3\"").as_deref(), Some("x=1; y=\"2 3\""));
    assert_eq!(all(b"warmhop=a;flag;warmhop=b;z=%20=").as_deref(), Some("flag; z=%20="));
    assert_eq!(all(b"x=1;  y=2"), None, "left as it is, spaces and all");
    assert_eq!(all(&b"warmhop=1; ".repeat(100)).as_deref(), Some(""));
    let ours = strip(b"warmhop=theirs; x=1; warmhop=ours", |value| value == "ours");
    assert_eq!(ours.as_deref(), Some("warmhop=theirs; x=1"), "another mesh's stays");
    assert_eq!(strip(b"warmhop=theirs;x", |_| false), None);
}

#[test]
fn the_cookie_is_given_with_the_attributes_of_the_contract() {
    let spec = CookieSpec::default();
    assert_eq!(spec.set("a.b", "/", false), "warmhop=a.b; Path=/; HttpOnly; SameSite=Lax");
    assert_eq!(
        spec.set("a.b", "/a/", true),
        "warmhop=a.b; Path=/a; HttpOnly; SameSite=Lax; Secure"
    );
    assert_eq!(spec.remove("/a", false), "warmhop=; Path=/a; HttpOnly; SameSite=Lax; Max-Age=0");
    // No attribute can be made of a path.
    for path in ["", "/a;Domain=evil", "/a b", "/a\r\nx: y", "/é"] {
        assert!(spec.set("v", path, false).starts_with("warmhop=v; Path=/; HttpOnly"), "{path}");
    }
    let mut other = CookieSpec::default().with(|made| {
        made.name = "__Secure-x".into();
        made.same_site = SameSite::Strict;
        made.secure = None;
        made.domain = Some("a.example".into());
    });
    other.settle(["/", "/a"]).unwrap();
    let given = "__Secure-x=v; Path=/a; Domain=a.example; HttpOnly; SameSite=Strict; Secure";
    assert_eq!(other.set("v", "/a", false), given);
}

#[test]
fn a_cookie_that_browsers_would_refuse_is_an_error_with_a_remedy() {
    let lax = CookieSpec::default();
    let insecure = |spec: CookieSpec| spec.with(|made| made.secure = Some(false));
    let wide = |spec: CookieSpec| spec.with(|made| made.domain = Some("a.example".into()));
    let cases = [
        (named(""), "name"),
        (named("a b"), "name"),
        (named("a;b"), "name"),
        (named(&"a".repeat(65)), "name"),
        (named(BALANCER_COOKIE), "name"),
        (insecure(named("__Host-a")), "secure"),
        (insecure(named("__secure-a")), "secure"),
        (insecure(lax.clone().with(|made| made.same_site = SameSite::None)), "secure"),
        (wide(named("__Host-a")), "domain"),
        (named("__HOST-a"), "name"),
        (lax.clone().with(|made| made.domain = Some(".a.example".into())), "domain"),
        (lax.clone().with(|made| made.domain = Some("a;b".into())), "domain"),
    ];
    for (mut spec, key) in cases {
        let mistake = spec.settle(["/", "/below"]).unwrap_err();
        assert_eq!(mistake.key, key, "{spec:?}");
        assert!(!mistake.remedy.is_empty());
    }
    for mut spec in [named("__Host-a"), lax.clone().with(|made| made.same_site = SameSite::None)] {
        spec.settle(["/"]).unwrap();
        assert_eq!(spec.secure, Some(true));
    }
    let mut plain = lax.clone();
    plain.settle(["/a"]).unwrap();
    assert_eq!(plain, lax);
}

#[test]
fn an_app_cannot_set_the_cookie_by_its_name_or_by_none() {
    let spec = CookieSpec::default();
    for set in [
        "warmhop=evil; Path=/",
        "warmhop = evil",
        " warmhop=x",
        "=warmhop=evil",
        "= warmhop=evil",
        "\t=\twarmhop\t=x",
        "  =  =warmhop=x",
        "warmhop",
        "=warmhop",
    ] {
        assert!(spec.is_set_by(set.as_bytes()), "{set:?}");
    }
    for other in
        ["a=1", "Warmhop=1", "=Warmhop=1", "warmhopper=2", "x=warmhop=3", "", "; warmhop=1"]
    {
        assert!(!spec.is_set_by(other.as_bytes()), "{other:?}");
    }
    assert!(named("__Host-a").is_set_by(b"=__Host-a=1"));
}

#[test]
fn no_bytes_panic() {
    let mut rng = Prng(3);
    let letters = b"warmhop=; \t\"\xff.a";
    for _ in 0..20_000 {
        let length = rng.below(60);
        let bytes: Vec<u8> =
            (0..length).map(|_| letters[rng.below(letters.len() as u64) as usize]).collect();
        let spec = CookieSpec::default();
        let count = spec.values(&bytes).count();
        let mut seen = 0;
        let stripped = spec.strip(&bytes, |_| {
            seen += 1;
            true
        });
        assert_eq!((seen, stripped.is_some()), (count, count > 0));
        assert!(stripped.is_none_or(|rest| spec.values(&rest).next().is_none()));
        let _ = spec.is_set_by(&bytes);
    }
}

#[test]
fn peers_go_by_aliases_where_nothing_is_revealed_unless_the_cookie_says_otherwise() {
    let mut spec = CookieSpec::default();
    assert_eq!(spec.route_name(true), RouteName::Name);
    assert_eq!(spec.route_name(false), RouteName::Opaque);
    spec.route = Some(RouteName::Name);
    assert_eq!(spec.route_name(false), RouteName::Name);
    spec.route = Some(RouteName::Opaque);
    assert_eq!(spec.route_name(true), RouteName::Opaque);
}
