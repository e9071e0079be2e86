//! `[[app]] match` and `strip_prefix`.

use std::path::Path;

use crate::config::Config;

fn parse(apps: &str) -> Result<Config, Vec<String>> {
    let text = format!("[peer]\nname = 'p'\n{apps}");
    match Config::parse(Path::new("/nowhere/warmhop.toml"), &text) {
        Ok((config, _)) => Ok(config),
        Err(problems) => Err(problems.iter().map(ToString::to_string).collect()),
    }
}

fn app(name: &str, keys: &str) -> String {
    format!("[[app]]\nname = '{name}'\nrun = ['sh']\n{keys}\n")
}

#[test]
fn an_app_may_answer_for_several_hosts_and_paths() {
    let keys = "match = [{ host = ['A.example', '*.B.example'], path = '/x' }, { path = '/y' }]\n\
                strip_prefix = true\nready = { path = '/' }";
    let config = parse(&app("x", keys)).unwrap();
    let spec = &config.apps[0].spec;
    assert!(spec.strip_prefix);
    let hosts: Vec<String> = spec.matches[0].hosts.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["a.example", "*.b.example"]);
    assert_eq!((&*spec.matches[0].path, &*spec.matches[1].path), ("/x", "/y"));
    assert!(spec.matches[1].hosts.is_empty());
    assert_eq!(config.apps[0].ready.host.as_deref(), Some("a.example"));
    let again = Config::parse(Path::new("/nowhere/warmhop.toml"), &config.to_string()).unwrap().0;
    assert_eq!(again.apps[0].spec, config.apps[0].spec, "what is printed reads back");

    let below = parse(&app("x", "match.host = '*.b.example'\nready = { path = '/' }")).unwrap();
    assert_eq!(below.apps[0].ready.host.as_deref(), Some("b.example"));

    // A list of tables may be written as such, too.
    let tables = "[[app.match]]\nhost = 'a'\n[[app.match]]\nhost = 'b'\npath = '/b'";
    assert_eq!(parse(&app("x", tables)).unwrap().apps[0].spec.matches.len(), 2);
}

#[test]
fn a_match_that_can_be_none_is_refused() {
    for (keys, expected) in [
        ("match = []", ":6:9: app.x.match: 0 tables are given; 1 to 64 are allowed"),
        ("match = '/x'", ":6:9: app.x.match: \"/x\" is not valid; expected a table"),
        (
            "match = [{ host = [] }]",
            ":6:19: app.x.match[0].host: 0 hosts are given; 1 to 64 are allowed",
        ),
        ("match = { host = ['a', 'b/c'] }", ":6:24: app.x.match.host[1]: \"b/c\" is not valid"),
        ("match = { host = 'a.*.b' }", ":6:18: app.x.match.host: \"a.*.b\" is not valid"),
        ("match = { host = '*.' }", ":6:18: app.x.match.host: \"*.\" is not valid"),
        ("match = { host = '*' }", ":6:18: app.x.match.host: \"*\" is not valid"),
        ("match = [{ path = 'x' }]", ":6:19: app.x.match[0].path: \"x\" is not valid"),
        ("match = [{ pat = '/x' }]", ":6:12: app.x.match[0].pat: there is no such key"),
        ("strip_prefix = '/x'", ":6:16: app.x.strip_prefix: \"/x\" is not valid"),
    ] {
        let reported = parse(&app("x", keys)).unwrap_err();
        assert!(reported.iter().any(|problem| problem.contains(expected)), "{keys}: {reported:?}");
    }
}

#[test]
fn two_apps_that_claim_the_same_requests_are_refused_and_no_others() {
    let reported = |one: &str, other: &str| {
        let both = app("x", &format!("match = {one}")) + &app("y", &format!("match = {other}"));
        parse(&both).err().map(|reported| reported.join("\n"))
    };
    for (one, other, expected) in [
        (
            "{ path = '/a' }",
            "{ path = '/a/' }",
            ":10:9: app.y.match: line 6 gives the app x the same requests: any host, path /a; \
             give one of them another host or path",
        ),
        (
            "[{ path = '/b' }, { host = ['a', 'b'] }]",
            "[{ path = '/c' }, { host = ['c', 'B'] }]",
            ":10:27: app.y.match[1]: line 6 gives the app x the same requests: host b, path /;",
        ),
        (
            "{ host = '*.a' }",
            "{ host = '*.A' }",
            ":10:9: app.y.match: line 6 gives the app x the same requests: host *.a, path /;",
        ),
    ] {
        let reported = reported(one, other).unwrap();
        assert!(reported.contains(expected), "{one} {other}: {reported}");
    }
    for (one, other) in [
        ("{ host = '*.a' }", "{ host = 'b.a' }"),
        ("{ host = 'a' }", "{ path = '/' }"),
        ("[{ path = '/a' }, { path = '/b' }]", "{ path = '/a/b' }"),
    ] {
        assert_eq!(reported(one, other), None, "{one} {other}");
    }
    assert!(parse(&app("x", "match = [{ path = '/' }, { path = '/' }]")).is_ok(), "its own");
}
