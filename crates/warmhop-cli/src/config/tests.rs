use super::*;

mod matching;
mod mistakes;

/// A file with every key, in a folder where nothing exists.
const FULL: &str = r#"
cluster = "demo"

[peer]
name = "peer-1"
zone = "a"

[http]
listen = ["127.0.0.1:8081", "[::1]:8081"]
reveal = false
error_page = "error.html"
memory = "96MiB"
connections_per_address = 64
body_rate = "1KiB"
body_timeout = "20s"
trusted_proxies = ["10.0.0.0/8", "::1"]
proxy_protocol = true
drain_grace = "5s"

[mesh]
listen = "127.0.0.1:7001"
advertise = "127.0.0.2:7001"
seeds = ["127.0.0.1:7001", "peers.internal:7002"]
identity = "certs/peer-1"
refuse = ["peer-9", "sha256:00112233445566778899AABBCCDDEEFF00112233445566778899AABBCCDDEEFF"]
cookie_key = ["new.key", "old.key"]

[admin]
listen = "127.0.0.1:9001"

[session]
copies = 2
ttl = "45m"
without_majority = "serve"
redis = "127.0.0.1:6401"

[log]
access = "log/access.log"
access_format = "json"
access_query = true
level = "warn,warmhop=debug"

[[app]]
name = "shop"
match = { host = "Shop.localhost", path = "/shop" }
run = ["sh", "-c", "exec \"$0\"\t\\ ü"]
dir = "apps"
inherit_env = ["HOME", "LANG"]
env_file = "shop.env"
env = { LOG = "info", "odd.name" = 'a "quoted" \ value' }
ready = { path = "/healthz", timeout = "90s" }
protocol = "h2"
user = "nobody-knows"
group = "root"
limits = { memory = "512MiB", files = 1024, cpu = 2, cgroup = true }
start = "at-boot"
stop_when_idle = "10m"
keep_ready = 1
session = "portable"
version = "1.10.2"
effects = "session-only"
max_wait = "1500ms"

[[app]]
name = "far"
start = "never"
match = { path = "/far" }
"#;

const FILE: &str = "/nowhere/warmhop.toml";

fn parse(text: &str) -> Config {
    Config::parse(Path::new(FILE), text).unwrap().0
}

fn problems(text: &str) -> Vec<String> {
    let problems = match Config::parse(Path::new(FILE), text) {
        Ok((_, warnings)) => warnings,
        Err(problems) => problems,
    };
    problems.iter().filter(|problem| !problem.is_warning).map(ToString::to_string).collect()
}

#[test]
fn every_key_arrives() {
    let config = parse(FULL);
    assert_eq!(config.cluster, "demo");
    assert_eq!(config.peer.name.as_str(), "peer-1");
    assert_eq!(config.peer.zone.as_deref(), Some("a"));
    assert_eq!(config.http.listen.len(), 2);
    assert!(!config.http.reveal);
    assert_eq!(config.http.error_page.as_deref(), Some(Path::new("/nowhere/error.html")));
    let mut limits = ClientLimits::default();
    limits.memory = 96 << 20;
    limits.connections_per_address = 64;
    limits.body_rate = 1024;
    limits.body_timeout = Duration::from_secs(20);
    assert_eq!(config.http.limits, limits);
    assert_eq!(config.http.trusted_proxies.texts().collect::<Vec<_>>(), ["10.0.0.0/8", "::1"]);
    assert!(config.http.proxy_protocol);
    assert_eq!(config.http.drain_grace, Duration::from_secs(5));
    assert_eq!(config.mesh.advertise, Some("127.0.0.2:7001".parse().unwrap()));
    assert_eq!(config.mesh.seeds, ["127.0.0.1:7001", "peers.internal:7002"]);
    assert_eq!(config.mesh.identity, Path::new("/nowhere/certs/peer-1"));
    assert_eq!(config.session.policy.copies, 2);
    assert_eq!(config.session.policy.ttl, Duration::from_secs(45 * 60));
    assert_eq!(config.session.policy.without_majority, warmhop::config::WithoutMajority::Serve);
    assert_eq!(config.session.redis, Some("127.0.0.1:6401".parse().unwrap()));
    let expected = Log {
        access: Some(AccessTo::File("/nowhere/log/access.log".into())),
        access_format: Some(AccessFormat::Json),
        access_query: true,
        level: Some("warn,warmhop=debug".into()),
    };
    assert_eq!(config.log, expected);
    let [shop, far] = config.apps.as_slice() else { panic!("two apps") };
    assert_eq!(shop.spec.host(), Some("shop.localhost"), "hosts have no case");
    assert_eq!(shop.spec.matches[0].path, "/shop");
    assert_eq!(shop.spec.version.as_ref().map(warmhop::AppVersion::as_str), Some("1.10.2"));
    assert_eq!(shop.run, ["sh", "-c", "exec \"$0\"\t\\ ü"]);
    assert_eq!(shop.dir, Path::new("/nowhere/apps"));
    assert_eq!(shop.inherit_env, Inherit::Only(vec!["HOME".into(), "LANG".into()]));
    assert_eq!(shop.env_file.as_deref(), Some(Path::new("/nowhere/shop.env")));
    assert_eq!(shop.env["LOG"], "info");
    assert_eq!(shop.env["odd.name"], "a \"quoted\" \\ value");
    let timeout = Duration::from_secs(90);
    assert_eq!(shop.protocol, Protocol::H2);
    let expected = Ready {
        path: Some("/healthz".into()),
        host: Some("shop.localhost".into()),
        timeout,
        ..Ready::default()
    };
    assert_eq!(shop.ready, expected, "it is asked as clients ask");
    assert_eq!(shop.spec.policy.alive, warmhop::config::AlivePolicy::default());
    let policy = &shop.spec.policy;
    assert_eq!(policy.start, warmhop::config::StartMode::AtBoot);
    assert_eq!(policy.stop_when_idle, Some(Duration::from_secs(600)));
    assert_eq!(policy.keep_ready, 1);
    assert_eq!(policy.session, warmhop::config::SessionMode::Portable);
    assert_eq!(policy.effects, warmhop::config::EffectsMode::SessionOnly);
    assert_eq!(policy.max_wait, Duration::from_millis(1500));
    assert!(policy.start_timeout > timeout, "the app's own deadline has the better message");
    assert!(far.run.is_empty());
    assert_eq!(far.dir, Path::new("/nowhere"));
}

#[test]
fn the_least_configuration_gets_every_default() {
    let config = parse("[peer]\nname = 'p'");
    assert_eq!(config.cluster, "warmhop");
    assert_eq!(config.http.listen, ["127.0.0.1:8081".parse().unwrap()]);
    assert!(config.http.reveal);
    assert_eq!(config.mesh.listen, "127.0.0.1:7001".parse().unwrap());
    assert_eq!(config.mesh.identity, Path::new("/nowhere/certs/p"));
    assert_eq!(config.admin.listen, "127.0.0.1:9001".parse().unwrap());
    let policy = SessionPolicy::default().with(|it| it.memory_bytes_max = memory::default());
    assert_eq!(config.session.policy, policy);
}

#[test]
fn a_printed_configuration_reads_back_to_the_same() {
    for text in [FULL, "[peer]\nname = 'p'", "[peer]\nname = 'p'\n[http]\nlisten = []"] {
        let once = parse(text).to_string();
        // In another folder, which makes no difference because the printed paths are absolute.
        let again = Config::parse(Path::new("/elsewhere/x.toml"), &once).unwrap().0.to_string();
        assert_eq!(once, again);
    }
}

/// The output for a file that names a peer and an app, except for shares of this machine's memory.
const DEFAULTS: &str = r#"cluster = "warmhop"

[peer]
name = "p"
# zone is not set: no peer is nearer than another

[http]
listen = ["127.0.0.1:8081"]
# tls is not set: plain HTTP
reveal = true
# error_page is not set: a page of the mesh's own
memory = "MEMORY"
connections_per_address = 4096
body_rate = "240B"
body_timeout = "1m"
trusted_proxies = []
proxy_protocol = false
drain_grace = "30s"

[mesh]
listen = "127.0.0.1:7001"
advertise = "127.0.0.1:7001"
seeds = []
identity = "/nowhere/certs/p"
refuse = []

[admin]
listen = "127.0.0.1:9001"
# token is not set: loopback only

[session]
copies = 3
ttl = "30m"
memory = "A QUARTER"
without_majority = "refuse"
state_bytes_max = 4096
stored_response_bytes_max = 65536
cookie = { name = "warmhop", same_site = "lax", route = "name" }
# redis is not set: no endpoint for session libraries
redis_events = ""

[log]
# access is not set: requests that succeed are not logged
# access_format is not set: text, or JSON on standard error where the log is
access_query = false
# level is not set: events of the peer, and what its apps print

[run]
# threads is not set: one for each core that it may use

[[app]]
name = "shop"
match = { path = "/" }
strip_prefix = false
run = ["sh"]
dir = "/nowhere"
inherit_env = true
# env_file is not set: its variables are those of env
env = {}
ready = { timeout = "1m", every = "100ms", probe_timeout = "2s" }
# alive is not set: a copy is probed only if its requests fail or hang
# head_timeout is not set: an answer may take any time to begin
# concurrency is not set: a copy serves any number of requests at once
# concurrency_per_address is not set: of 8 or more places a client may hold all but one
# version is not set
# scale is not set: no copy starts because others are busy
# wake is not set: every request starts the app
protocol = "http1"
# user is not set: the peer's own
# group is not set: the peer's own
start = "on-request"
# stop_when_idle is not set: never
keep_ready = 0
session = "none"
effects = "anything"
max_wait = "30s"
waiting_max = 1024
starting_page = true
stop_grace = "10s"
"#;
#[test]
fn defaults_are_printed_as_values_and_absences_as_comments() {
    let text = "[peer]\nname = 'p'\n[[app]]\nname = 'shop'\nrun = ['sh']";
    // Shares of this machine's memory.
    let expected = DEFAULTS.replace("A QUARTER", &memory::text(memory::default()));
    let expected = expected.replace("MEMORY", &memory::text(ClientLimits::default().memory));
    assert_eq!(parse(text).to_string(), expected);
}

#[test]
fn the_token_is_never_printed() {
    let text = "[peer]\nname = 'p'\n[admin]\nlisten = '0.0.0.0:9001'\ntoken = 'very-secret-indeed'";
    let config = parse(text);
    assert!(!config.to_string().contains("very-secret"), "{config}");
    assert!(!format!("{config:?}").contains("very-secret"));
    parse(&config.to_string());
}

#[test]
fn every_mistake_of_a_file_is_reported_at_once_and_in_order() {
    let text =
        "clutser = 'demo'\n[peer]\nname = 'p'\n[session]\ncopies = 0\nttl = 5\n[[app]]\nname = 'é'";
    let places: Vec<String> = problems(text)
        .iter()
        .map(|problem| {
            problem[FILE.len()..].splitn(5, ':').skip(1).take(3).collect::<Vec<_>>().join(":")
        })
        .collect();
    assert_eq!(
        places,
        ["1:1: clutser", "5:10: session.copies", "6:7: session.ttl", "8:8: app[0].name"]
    );
}

#[test]
fn broken_toml_is_placed() {
    let reported = problems("[peer]\nname = \"p\"\nzone = ü\n");
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert!(reported[0].starts_with(&format!("{FILE}:3:8: ")), "{reported:?}");
    assert!(reported[0].ends_with("; mend the TOML there"), "{reported:?}");
}

#[test]
fn of_broken_toml_only_the_first_mistake_is_reported() {
    let reported = problems(&FULL.replacen("\"[::1]:8081\"]", "\"[::1]:8081\"", 1));
    assert_eq!(reported.len(), 1, "what follows is its consequence: {reported:#?}");
    assert!(reported[0].starts_with(&format!("{FILE}:10:1: ")), "{reported:?}");
    let reported = problems("[peer]\nname = 'p'\nname = 'q'\nzone = ü\n");
    assert_eq!(reported.len(), 1, "{reported:#?}");
    assert!(reported[0].starts_with(&format!("{FILE}:3:")), "{reported:?}");
}

#[test]
fn an_app_may_have_a_redis_of_its_own_where_the_mesh_has_none() {
    let text =
        "[peer]\nname = 'p'\n[[app]]\nname = 'x'\nrun = ['sh']\nenv = { REDIS_URL = 'redis://db' }";
    assert_eq!(parse(text).apps[0].env["REDIS_URL"], "redis://db");
}

#[test]
fn a_program_or_file_that_is_missing_here_is_only_a_warning() {
    let text = "[peer]\nname = 'p'\n[[app]]\nname = 'x'\nrun = ['no-such-program']\n\
                [[app]]\nname = 'y'\nrun = ['sh']\ndir = 'nowhere'\nmatch = { path = '/y' }";
    let (config, warnings) = Config::parse(Path::new("/tmp/warmhop.toml"), text).unwrap();
    // As root there is a warning for each app that would be root as well.
    let is_root = nix::unistd::Uid::effective().is_root();
    let of_root: Vec<String> = config.apps_as_root().map(|problem| problem.to_string()).collect();
    assert_eq!(of_root.len(), if is_root { 2 } else { 0 });
    assert!(
        of_root.iter().all(|reported| reported.contains(".user: the app runs as root")),
        "{of_root:?}"
    );
    let reported: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        reported,
        [
            "/tmp/warmhop.toml:5:7: warning: app.x.run: there is no program \"no-such-program\" in PATH; install it, or correct run or dir",
            "/tmp/warmhop.toml:9:7: warning: app.y.dir: there is no folder /tmp/nowhere to run \"sh\" in; make it, or correct dir",
            "/tmp/warmhop.toml: warning: mesh.identity: there is no /tmp/certs/p/ca.pem; make it with `warmhop cert peer p --ca DIR --out /tmp/certs/p`",
        ]
    );
}

#[test]
fn no_value_of_an_apps_env_is_shown_and_no_variable_of_the_peer_in_its_command() {
    // Cargo sets it for every process that it starts.
    let text = "[peer]\nname = 'p'\n[[app]]\nname = 'a'\n\
         run = ['sh', '--key=${CARGO_PKG_NAME}', '-v']\n\
         env = { A = 'x${CARGO_PKG_NAME}', B = 'plain' }\n";
    let (config, _) = Config::parse(Path::new("/tmp/warmhop.toml"), text).unwrap();
    assert_eq!(config.apps[0].env["A"], concat!("x", env!("CARGO_PKG_NAME")));
    let shown = config.without_secrets();
    assert_eq!(shown.apps[0].run, ["sh", "--key=${CARGO_PKG_NAME}", "-v"]);
    assert_eq!(shown.apps[0].env["A"], "(not shown)");
    assert_eq!(shown.apps[0].env["B"], "(not shown)");
}

#[test]
fn a_key_that_every_user_may_read_is_reported_with_the_remedy() {
    use std::os::unix::fs::PermissionsExt;

    let dir = std::env::temp_dir().join(format!("warmhop-exposed-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let text = format!("[peer]\nname = 'p'\n[mesh]\nidentity = '{}'\n", dir.display());
    let (config, _) = Config::parse(Path::new("/tmp/warmhop.toml"), &text).unwrap();
    let reported = || config.exposed_keys().map(|problem| problem.to_string()).collect::<Vec<_>>();
    for name in ["key.pem", "cookie.key"] {
        let file = dir.join(name);
        std::fs::write(&file, "secret").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(reported().is_empty(), "{:?}", reported());
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let reported = reported();
        let part = format!("every user of this machine may read {}; chmod 600", file.display());
        assert!(reported.len() == 1 && reported[0].contains(&part), "{reported:?}");
        std::fs::remove_file(&file).unwrap();
    }
    let file = dir.join("warmhop.toml");
    let text = format!("{text}[admin]\ntoken = 'sesame-sesame-sesame'\n");
    std::fs::write(&file, &text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (config, _) = Config::parse(&file, &text).unwrap();
    let reported: Vec<String> = config.exposed_keys().map(|problem| problem.to_string()).collect();
    assert!(reported.len() == 1 && reported[0].contains("admin.token: every user"), "{reported:?}");
    assert!(!reported[0].contains("sesame"), "{reported:?}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let file = Path::new("/nowhere/at-all.toml");
    let reported = Config::load(file).unwrap_err();
    assert_eq!(reported.len(), 1);
    let reported = reported[0].to_string();
    assert!(reported.starts_with("/nowhere/at-all.toml: cannot read the file: "), "{reported}");
}

#[test]
fn durations_have_one_unit_and_read_back() {
    for (text, millis) in [
        ("0ms", 0),
        ("250ms", 250),
        ("30s", 30_000),
        ("10m", 600_000),
        ("1h", 3_600_000),
        ("2d", 172_800_000),
    ] {
        let span = Duration::from_millis(millis);
        assert_eq!(duration_from(text), Some(span), "{text}");
        assert_eq!(duration_text(span), text);
    }
    assert_eq!(duration_text(Duration::from_millis(90_000)), "90s");
    for text in [
        "",
        "s",
        "10",
        "-1s",
        "1.5s",
        "1 s",
        "1h30m",
        "1w",
        "99999999999999999999s",
        "18446744073709551615d",
    ] {
        assert_eq!(duration_from(text), None, "{text}");
    }
}

/// No text, however broken, may panic.
#[test]
fn any_text_is_read_without_a_panic() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap()
    };
    let mut rejected = 0;
    for _ in 0..3_000 {
        let mut bytes = FULL.as_bytes().to_vec();
        for _ in 0..=next() % 4 {
            let at = next() % bytes.len();
            match next() % 3 {
                0 => bytes[at] = b"[]{}'\"=.,#\n\\0aZ"[next() % 15],
                1 => drop(bytes.drain(at..(at + next() % 20).min(bytes.len()))),
                _ => bytes.extend_from_within(at..),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        match Config::parse(Path::new(FILE), &text) {
            Ok((config, _)) => drop(config.to_string()),
            Err(problems) => {
                assert!(!problems.is_empty());
                rejected += 1;
            }
        }
    }
    assert!(rejected > 1_000, "the changes do break files: {rejected}");
}

/// The configuration in `text`, in an environment that holds `NAME` and `ADDRESS`.
fn in_environment(text: &str) -> Result<Config, Vec<String>> {
    let variable = |name: &str| match name {
        "NAME" => Some("peer-7".to_owned()),
        "ADDRESS" => Some("192.0.2.7".to_owned()),
        "SECRET" => Some("sesame".to_owned()),
        _ => None,
    };
    Config::parse_in(Path::new("/tmp/warmhop.toml"), text, &variable)
        .map(|(config, _)| config)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

#[test]
fn peers_share_a_file_that_names_variables_of_their_environment() {
    let config = in_environment(
        "[peer]\nname = '${NAME}'\n[mesh]\nlisten = '0.0.0.0:7001'\n\
         advertise = '${ADDRESS}:7001'\nseeds = ['a.${NAME}.internal:7001']\n\
         cookie_key = 'keys/${NAME}'\n[[app]]\nname = 'a'\nrun = ['sh', '-c', 'serve ${PORT}']\n\
         env = { KEY = '${SECRET}' }\n",
    )
    .unwrap();
    // Those of an app's env as well: another app must not inherit them.
    assert!(
        config.substituted.iter().eq(["ADDRESS", "NAME", "SECRET"]),
        "{:?}",
        config.substituted
    );
    assert_eq!(config.peer.name.as_str(), "peer-7");
    assert_eq!(config.mesh.advertise.unwrap().to_string(), "192.0.2.7:7001");
    assert_eq!(config.mesh.seeds, ["a.peer-7.internal:7001"]);
    assert_eq!(config.mesh.cookie_key, [Path::new("/tmp/keys/peer-7")]);
    assert_eq!(config.apps[0].run[2], "serve ${PORT}", "a shell knows variables of its own");
    let again = in_environment(&config.to_string()).unwrap();
    assert_eq!(again.to_string(), config.to_string());
}

#[test]
fn what_a_variable_holds_is_not_shown_where_it_is_invalid() {
    let problems = in_environment("[peer]\nname = 'a'\nzone = 'in ${ADDRESS}'\n").unwrap_err();
    let all = problems.join("\n");
    assert!(all.contains("peer.zone: 'in ${ADDRESS}' is not valid"), "{all}");
    assert!(!all.contains("192.0.2.7"), "{all}");
}

#[test]
fn a_missing_or_malformed_variable_is_reported_with_its_place_and_remedy() {
    let problems = in_environment("[peer]\nname = '${NOBODY}'\n").unwrap_err();
    assert_eq!(
        problems.iter().filter(|reported| reported.contains("peer.name")).count(),
        1,
        "{problems:?}"
    );
    assert!(problems[0].starts_with("/tmp/warmhop.toml:2:8: peer.name: "), "{problems:?}");
    assert!(problems[0].contains("NOBODY") && problems[0].contains("; set "), "{problems:?}");
    for bad in ["${", "${}", "${A B}", "${NAME"] {
        let problems = in_environment(&format!("[peer]\nname = '{bad}'\n")).unwrap_err();
        assert!(problems[0].contains("write ${NAME}"), "{problems:?}");
    }
}

#[test]
fn the_value_of_a_missing_variable_is_not_checked() {
    let problems = in_environment(
        "[peer]\nname = 'p'\n[http]\nlisten = ['${NOBODY}']\ndrain_grace = '${NOBODY}'\n\
         [mesh]\nidentity = '${NOBODY}'\n[session]\ncopies = 9\n",
    )
    .unwrap_err();
    let keys: Vec<&str> =
        problems.iter().map(|reported| reported.split(": ").nth(1).unwrap()).collect();
    let expected = ["http.listen", "http.drain_grace", "mesh.identity", "session.copies"];
    assert_eq!(
        keys, expected,
        "each once, without a warning, and what else is wrong: {problems:#?}"
    );
}

#[test]
fn an_apps_environment_names_variables_of_the_peers_and_dollars_as_they_are() {
    let config = in_environment(
        "[peer]\nname = 'p'\n[[app]]\nname = 'a'\nrun = ['sh', '-c', 'a $${PORT} ${PORT} $x']\n\
         match = { host = '${NAME}.example' }\n\
         env = { A = 'at ${ADDRESS}:1', B = '$${NAME}', C = '$$${NAME} $NAME $', D = '${NAME}${NAME}' }\n",
    )
    .unwrap();
    let app = &config.apps[0];
    let env: Vec<&str> = app.env.values().map(String::as_str).collect();
    assert_eq!(env, ["at 192.0.2.7:1", "${NAME}", "$${NAME} $NAME $", "peer-7peer-7"]);
    assert_eq!(app.spec.host(), Some("peer-7.example"));
    assert_eq!(app.run[2], "a ${PORT} ${PORT} $x");
    let again = in_environment(&config.to_string()).unwrap();
    assert_eq!(again.to_string(), config.to_string());
    assert_eq!((&again.apps[0].env, &again.apps[0].run), (&app.env, &app.run));

    let problems = in_environment(
        "[peer]\nname = 'p'\n[[app]]\nname = 'a'\nrun = ['sh']\nenv = { A = '${NOBODY}' }\n",
    )
    .unwrap_err();
    let reported = problems.iter().filter(|reported| reported.contains("NOBODY")).count();
    assert_eq!(reported, 1, "{problems:?}");
    assert!(problems[0].starts_with("/tmp/warmhop.toml:6:13: app.a.env.A: "), "{problems:?}");
}

#[test]
fn where_an_apps_variables_come_from_is_checked() {
    let app = |keys: &str| {
        problems(&format!("[peer]\nname = 'p'\n[[app]]\nname = 'a'\nrun = ['sh']\n{keys}\n"))
    };
    for keys in ["inherit_env = false", "inherit_env = true", "inherit_env = ['A']"] {
        assert!(app(keys).is_empty(), "{keys}: {:?}", app(keys));
    }
    for (keys, place, part) in [
        ("inherit_env = 'no'", ":6:15: app.a.inherit_env: ", "expected true, false, or a list"),
        ("inherit_env = ['A=1']", ":6:16: app.a.inherit_env[0]: ", "correct the name"),
        ("inherit_env = [1]", ":6:16: app.a.inherit_env[0]: ", "a text in quotes"),
        ("env_file = ['.env']", ":6:12: app.a.env_file: ", "a text in quotes"),
    ] {
        let reported = app(keys);
        assert_eq!(reported.len(), 1, "{keys}: {reported:?}");
        assert!(reported[0].contains(place) && reported[0].contains(part), "{keys}: {reported:?}");
    }
    assert!(app("env_file = '.env'").is_empty(), "it may be on the machine that it runs on");

    let folder = std::env::temp_dir().join(format!("warmhop-env-file-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(".env"), "A=1\nB\n").unwrap();
    let text = "[peer]\nname = 'p'\n[[app]]\nname = 'a'\nrun = ['sh']\nenv_file = '.env'\n";
    let problems = Config::parse(&folder.join("warmhop.toml"), text).unwrap_err();
    std::fs::remove_dir_all(&folder).unwrap();
    let reported = problems[0].to_string();
    assert!(
        reported.contains(":6:12: app.a.env_file: ") && reported.contains(".env:2: "),
        "{reported}"
    );
}

#[test]
fn the_share_of_one_address_is_read_checked_and_printed() {
    let app = "[peer]\nname = 'p'\n[[app]]\nname = 'a'\nrun = ['sh']\n";
    let config = parse(&format!("{app}concurrency = 4\nconcurrency_per_address = 2\n"));
    assert_eq!(config.apps[0].spec.policy.share(), Some(2));
    assert_eq!(parse(&config.to_string()).apps[0].spec.policy, config.apps[0].spec.policy);
    for (text, share) in [
        ("concurrency = 8", Some(7)),
        ("concurrency = 7", None),
        ("concurrency = 2\nconcurrency_per_address = 1", Some(1)),
        ("concurrency = 1", None),
        ("concurrency = 4\nconcurrency_per_address = 4", None),
        ("", None),
    ] {
        let config = parse(&format!("{app}{text}\n"));
        assert_eq!(config.apps[0].spec.policy.share(), share, "{text}");
    }
    for (wrong, expected) in [
        ("concurrency = 4\nconcurrency_per_address = 5", ":7:27: app.a.concurrency_per_address: "),
        ("concurrency_per_address = 2", ":6:27: app.a.concurrency_per_address: "),
    ] {
        let problems = problems(&format!("{app}{wrong}\n"));
        assert!(problems.len() == 1 && problems[0].contains(expected), "{wrong}: {problems:?}");
    }
}

#[test]
fn how_an_app_scales_and_what_does_not_wake_it_is_read_checked_and_printed() {
    let app = "[peer]\nname = 'p'\n[[app]]\nname = 'a'\nrun = ['sh']\n";
    let text = format!(
        "{app}concurrency = 4\nscale = {{ at = 0.55, max = 7 }}\n\
         wake = {{ not_user_agent = ['kube-probe'], not_path = ['/status/*'] }}\n"
    );
    let config = parse(&text);
    let policy = &config.apps[0].spec.policy;
    let scale = policy.scale.unwrap();
    assert_eq!((scale.at_percent, scale.max), (55, 7));
    assert_eq!(policy.wake.not_user_agent, ["kube-probe"]);
    assert_eq!(policy.wake.not_path, ["/status/*"]);
    let printed = config.to_string();
    assert!(printed.contains("\nscale = { at = 0.55, max = 7 }\n"), "{printed}");
    assert_eq!(parse(&printed).apps[0].spec.policy, *policy);
    for (wrong, expected) in [
        ("concurrency = 4\nscale = { at = 80 }", "a part of one, 0.01 to 1, such as 0.8"),
        ("concurrency = 4\nscale = { max = 1 }", "expected a whole number from 2 to 64"),
        ("scale = {}", "add concurrency = 4"),
        ("wake = { not_path = ['healthz'] }", "expected a path, such as"),
        ("wake = { not_user_agent = [''] }", "expected a part of User-Agent"),
        ("wake = { not_agent = ['x'] }", "not_agent"),
    ] {
        let problems = problems(&format!("{app}{wrong}\n"));
        assert!(problems.len() == 1 && problems[0].contains(expected), "{wrong}: {problems:?}");
        assert!(problems[0].contains(":6:") || problems[0].contains(":7:"), "{problems:?}");
    }
}
