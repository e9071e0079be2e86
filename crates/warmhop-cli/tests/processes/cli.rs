//! The command line: what it says, what it writes, how it exits.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::role::{ARGUMENTS, BOUND, ROLE, scratch, wait_until};

pub(crate) fn warmhop(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmhop"));
    command
        .args(args)
        .env_remove("WARMHOP_ADMIN")
        .env_remove("WARMHOP_ADMIN_TOKEN")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// What came of a command: see [`outcome`].
pub(crate) fn run(args: &[&str]) -> (i32, String, String) {
    outcome(&warmhop(args).output().unwrap())
}

/// Exit status, standard output, standard error.
pub(crate) fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Certificates for `peer` in a folder of its own; returns that folder.
pub(crate) fn certified(test: &str, peer: &str) -> PathBuf {
    let dir = scratch(test);
    let (ca, certs) = (dir.join("ca"), dir.join("certs"));
    let (code, _, error) = run(&["cert", "ca", "--out", text(&ca), "--cluster", "demo", "--force"]);
    assert_eq!(code, 0, "{error}");
    let (code, _, error) =
        run(&["cert", "peer", peer, "--ca", text(&ca), "--out", text(&certs), "--force"]);
    assert_eq!(code, 0, "{error}");
    dir
}

pub(crate) fn write(dir: &Path, config: &str) -> PathBuf {
    let file = dir.join("warmhop.toml");
    std::fs::write(&file, config).unwrap();
    file
}

/// A peer on ports that the system chooses, with `more` at the end of its configuration.
pub(crate) fn config(more: &str) -> String {
    format!(
        "cluster = 'demo'\n[peer]\nname = 'peer-1'\n[http]\nlisten = ['127.0.0.1:0']\n\
         [mesh]\nlisten = '127.0.0.1:0'\nidentity = 'certs'\n[admin]\nlisten = '127.0.0.1:0'\n{more}"
    )
}

/// An app of this test program, which listens and answers.
pub(crate) fn app_table(more: &str) -> String {
    let program = std::env::current_exe().unwrap();
    format!(
        "[[app]]\nname = 'shop'\nrun = [{:?}, {:?}, {:?}, {:?}]\nenv = {{ {ROLE} = 'app', STUBBORN = '1' }}\n{more}",
        text(&program),
        ARGUMENTS[0],
        ARGUMENTS[1],
        ARGUMENTS[2]
    )
}

/// A running `warmhop run`, whose log is read.
pub(crate) struct Peer {
    child: Child,
    pub(crate) admin: String,
    http: String,
    log: Receiver<String>,
    /// What it logged before it served.
    early: Vec<String>,
}

impl Peer {
    pub(crate) fn start(file: &Path) -> Self {
        Self::start_with(file, &[])
    }

    /// With variables in its environment.
    pub(crate) fn start_with(file: &Path, env: &[(&str, &str)]) -> Self {
        let mut command = warmhop(&["run", "--config", text(file), "--log", "json"]);
        Self::from_command(command.envs(env.iter().copied()))
    }

    /// One whose log nobody reads from the moment on that it serves.
    pub(crate) fn with_a_log_that_nobody_reads(file: &Path) -> Self {
        Self::read(&mut warmhop(&["run", "--config", text(file), "--log", "json"]), true)
    }

    pub(crate) fn from_command(command: &mut Command) -> Self {
        Self::read(command, false)
    }

    /// Starts it and reads its log; with `hangs` only until it serves.
    fn read(command: &mut Command, hangs: bool) -> Self {
        const SERVING: &str = "\"message\":\"serving\"";
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (lines, log) = sync_channel(10_000);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let is_last = hangs && line.contains(SERVING);
                if lines.send(line).is_err() {
                    return;
                }
                if is_last {
                    loop {
                        std::thread::park();
                    }
                }
            }
        });
        let (admin, http, early) = (String::new(), String::new(), Vec::new());
        let mut peer = Self { child, admin, http, log, early };
        let mut early = Vec::new();
        let serving = peer.logged_after(SERVING, &mut early);
        peer.early = early;
        let serving: Value = serde_json::from_str(&serving).unwrap();
        peer.admin = serving["admin"].as_str().unwrap().into();
        peer.http = serving["front_doors"].as_str().unwrap().into();
        peer
    }

    /// The next line of the log with `part` in it.
    pub(crate) fn logged(&self, part: &str) -> String {
        self.logged_after(part, &mut Vec::new())
    }

    /// As [`Peer::logged`], of all that it logged from its start on.
    pub(crate) fn ever_logged(&self, part: &str) -> String {
        let early = self.early.iter().find(|line| line.contains(part));
        early.cloned().unwrap_or_else(|| self.logged(part))
    }

    /// What it logged from when it served on, up to the next line with `part` in it.
    pub(crate) fn logged_before(&self, part: &str) -> Vec<String> {
        let mut before = Vec::new();
        self.logged_after(part, &mut before);
        before
    }

    fn logged_after(&self, part: &str, before: &mut Vec<String>) -> String {
        loop {
            match self.log.recv_timeout(BOUND) {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => before.push(line),
                Err(_) => panic!("no {part:?} in the log, but {before:#?}"),
            }
        }
    }

    /// The address of its front door.
    pub(crate) fn front_door(&self) -> &str {
        self.http.trim_start_matches("http://")
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id().cast_signed()), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        let child = std::cell::RefCell::new((&mut self.child, &mut status));
        wait_until("the peer ends", || {
            let (child, status) = &mut *child.borrow_mut();
            **status = child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub(crate) fn run(&self, args: &[&str]) -> (i32, String, String) {
        outcome(&warmhop(args).env("WARMHOP_ADMIN", &self.admin).output().unwrap())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn wrong_usage_exits_with_2_and_says_how_it_is_meant() {
    for args in [
        &[][..],
        &["fly"],
        &["run"],
        &["run", "--config", "x.toml", "--log", "xml"],
        &["check"],
        &["cert", "peer", "a.b", "--ca", "x", "--out", "y"],
        &["cert", "ca"],
        &["cert", "ca", "--out", "x", "--cluster", "x y"],
        &["session", "nope"],
        &["session", "shop/nothing"],
        &["app", "renew", "shop"],
        &["status", "--admin", "http://127.0.0.1:9001/path"],
        &["status", "--admin", "https://operator@127.0.0.1"],
        &["status", "--admin", "ftp://127.0.0.1"],
        &["lb", "traefik"],
    ] {
        let (code, out, error) = run(args);
        assert_eq!(code, 2, "{args:?}: {error}");
        assert!(out.is_empty(), "{args:?}");
        assert!(error.contains("--help") || error.contains("Usage"), "{args:?}: {error}");
    }
}

#[test]
fn every_command_has_help_and_the_guard_is_not_among_them() {
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, 0);
    for command in
        ["run", "dev", "init", "check", "cert", "status", "app", "drain", "session", "why", "lb"]
    {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
        let (code, help, _) = run(&[command, "--help"]);
        assert_eq!(code, 0);
        assert!(help.contains("Usage: warmhop"), "{help}");
    }
    assert!(!help.contains("guard"), "{help}");
    let (code, version, _) = run(&["--version"]);
    assert_eq!((code, version), (0, format!("warmhop {}\n", env!("CARGO_PKG_VERSION"))));
    let (_, help, _) = outcome(
        &warmhop(&["status", "--help"]).env("WARMHOP_ADMIN_TOKEN", "secret").output().unwrap(),
    );
    assert!(!help.contains("secret"), "{help}");
}

#[test]
fn shells_get_their_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, _) = run(&["completions", shell]);
        assert_eq!(code, 0);
        assert!(script.contains("warmhop") && script.contains("drain"), "{shell}");
    }
}

#[test]
fn a_valid_configuration_is_printed_with_its_defaults_and_needs_nothing_to_exist() {
    let dir = scratch("check");
    let file =
        write(&dir, "[peer]\nname = 'peer-1'\n[[app]]\nname = 'shop'\nrun = ['no-such-program']\n");
    let (code, out, error) = run(&["check", text(&file)]);
    assert_eq!(code, 0, "{error}");
    let filled: toml::Table = out.parse().unwrap();
    assert_eq!(filled["session"]["copies"].as_integer(), Some(3));
    assert_eq!(filled["app"][0]["start"].as_str(), Some("on-request"));
    for warned in
        ["warning: app.shop.run: there is no program", "warning: mesh.identity: there is no"]
    {
        assert!(error.contains(warned), "{error}");
    }
}

#[test]
fn a_check_says_of_what_passes_whether_a_peer_would_take_it_here() {
    let dir = certified("check-here", "peer-1");
    std::fs::write(dir.join("page.html"), "<p>{words}</p>").unwrap();
    let would_refuse = "a peer on this machine would not start with this configuration";
    let page = |name: &str| config("").replace("[mesh]", &format!("error_page = '{name}'\n[mesh]"));
    let app = |more: &str| config(&format!("[[app]]\nname = 'shop'\nrun = ['sh']\n{more}"));
    for (is_taken, key, text_of) in [
        (true, "", app("")),
        (true, "", page("page.html")),
        (false, "http.error_page", page("no-such.html")),
        (false, "app.shop.run", app("").replace("sh']", "no-such-program']")),
        (false, "app.shop.dir", app("dir = 'no-such-folder'\n")),
        (false, "app.shop.env_file", app("env_file = 'no-such.env'\n")),
        (false, "app.shop.user", app("user = 'no-such-user'\n")),
    ] {
        let file = write(&dir, &text_of);
        let (code, _, output) = run(&["check", text(&file)]);
        assert_eq!(code, 0, "{key}: {output}");
        assert_eq!(!output.contains(would_refuse), is_taken, "{key}: {output}");
        if !is_taken {
            assert_eq!(output.matches(&format!("warning: {key}: ")).count(), 1, "{key}: {output}");
            let (code, _, refused) = run(&["run", "--config", text(&file)]);
            assert_eq!(code, 2, "{key}: {refused}");
            assert!(refused.contains(&format!(": {key}: ")), "{key}: {refused}");
        }
    }
    let taken = "[[app]]\nname = 'redis'\nrun = ['sh']\n[session]\nredis = '127.0.0.1:0'\n";
    let file = write(&dir, &config(taken));
    for command in [vec!["check", text(&file)], vec!["run", "--config", text(&file)]] {
        let (code, _, output) = run(&command);
        assert_eq!(code, 2, "{output}");
        assert!(
            output.contains("app.redis.name: this name is reserved for the keys of the endpoint"),
            "{output}"
        );
    }
}

#[test]
fn a_check_shows_the_variables_of_an_app_by_their_names_alone() {
    let dir = scratch("check-env");
    let app = "[peer]\nname = 'peer-1'\n[[app]]\nname = 'shop'\nrun = ['sh', '-c', 'x ${TOKEN}']\n";
    let env = "env = { KEY = 'hush-hush', TAKEN = '${TOKEN}' }\n";
    let file = write(&dir, &format!("{app}{env}"));
    let checked = |file: &Path| {
        outcome(&warmhop(&["check", text(file)]).env("TOKEN", "of-the-peer").output().unwrap())
    };
    let (code, out, error) = checked(&file);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("\"KEY\" = ") && out.contains("\"x $${TOKEN}\""), "{out}");
    for secret in ["hush-hush", "of-the-peer"] {
        assert!(!out.contains(secret) && !error.contains(secret), "{secret}: {out}{error}");
    }
    // Nor does an error, of a number for example.
    let file = write(&dir, &format!("{app}env = {{ KEY = 271828 }}\n"));
    let (code, _, error) = checked(&file);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("app.shop.env.KEY: ") && !error.contains("271828"), "{error}");
}

#[test]
fn every_problem_of_a_configuration_is_a_line_of_its_own() {
    let dir = scratch("check-bad");
    let file = write(&dir, "[peer]\nname = 'a b'\n[mesh]\nlisen = 'x'\n");
    for command in [vec!["check", text(&file)], vec!["run", "--config", text(&file)]] {
        let (code, out, error) = run(&command);
        assert_eq!((code, out.as_str()), (2, ""));
        let at = file.display();
        let expected = [
            format!(
                "warmhop: {at}:2:8: peer.name: \"a b\" is not valid; expected 1 to 32 of the characters A-Z a-z 0-9 _ -"
            ),
            format!("warmhop: {at}:4:1: mesh.lisen: there is no such key; did you mean listen?"),
        ];
        let errors: Vec<&str> = error.lines().filter(|line| !line.contains(": warning")).collect();
        assert_eq!(errors, expected);
    }
    let (code, _, error) = run(&["check", "/no/such.toml"]);
    assert_eq!(code, 2);
    assert!(error.starts_with("warmhop: /no/such.toml: cannot read the file: "), "{error}");
}

#[test]
fn certificates_are_private_and_never_overwritten_unasked() {
    let dir = scratch("cert");
    let (ca, peer) = (dir.join("ca"), dir.join("peer-1"));
    let make_ca = ["cert", "ca", "--out", text(&ca), "--cluster", "demo"];
    let make_peer = ["cert", "peer", "peer-1", "--ca", text(&ca), "--out", text(&peer)];
    let (code, _, error) = run(&make_peer);
    assert_eq!(code, 1, "there is no authority yet");
    assert!(error.contains("warmhop cert ca"), "{error}");

    let (code, out, error) = run(&make_ca);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("ca-key.pem") && out.contains("Next"), "{out}");
    let (code, out, error) = run(&make_peer);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("key.pem") && out.contains("cluster = \"demo\""), "{out}");
    for key in [ca.join("ca-key.pem"), peer.join("key.pem")] {
        let mode = std::fs::metadata(&key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", key.display());
    }

    for command in [&make_ca[..], &make_peer[..]] {
        let key = if command[1] == "ca" { ca.join("ca-key.pem") } else { peer.join("key.pem") };
        let before = std::fs::read(&key).unwrap();
        let (code, _, error) = run(command);
        assert_eq!(code, 1);
        assert!(error.contains("--force"), "{error}");
        assert_eq!(std::fs::read(&key).unwrap(), before);
    }
    let (code, _, error) = run(&[&make_peer[..], &["--force"]].concat());
    assert_eq!(code, 0, "{error}");
}

/// Every command that asks a peer.
const COMMANDS: [&[&str]; 8] = [
    &["status"],
    &["status", "--json"],
    &["app", "start", "shop"],
    &["app", "stop", "shop"],
    &["drain"],
    &["session", "shop/000102030405060708090a0b0c0d0e0f"],
    &["why", "x"],
    &["lb", "nginx"],
];

#[test]
fn where_no_peer_answers_the_commands_say_so() {
    // It is this test's and nobody listens there: no other test is given the port.
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    silent.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap().as_socket().unwrap());
    for args in COMMANDS {
        let (code, out, error) = run(&[args, &["--admin", &url]].concat());
        assert_eq!((code, out.as_str()), (1, ""), "{args:?}");
        assert!(error.contains(&format!("no peer answers at {url}: is it running?")), "{error}");
    }
}

/// Answers whatever it is asked with `head` and `body`, until the test ends.
fn answering(head: &'static str, body: &'static str) -> String {
    use std::io::Write;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let _request: Vec<_> =
                lines.map_while(Result::ok).take_while(|l| !l.is_empty()).collect();
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
        }
    });
    url
}

#[test]
fn a_program_that_answers_json_is_not_taken_for_a_peer() {
    let json = "200 OK\r\ncontent-type: application/json";
    for (head, body, why) in [
        (json, "{\"items\":[]}", " has no /"),
        (json, "{\"peer\":{\"name\":\"\"},\"action\":\"\",\"key\":\"\",\"id\":\"\"}", " has no /"),
        (json, "[]", " has no /"),
        ("200 OK", "hello", "its answer is not JSON"),
        ("404 Not Found\r\ncontent-type: application/json", "{\"detail\":\"no\"}", "404 Not Found"),
        (
            "404 Not Found\r\ncontent-type: application/problem+json\r\nwarmhop-request-id: r",
            "{\"detail\":\"no app\"}",
            "it answers as a front door does",
        ),
    ] {
        let url = answering(head, body);
        for args in COMMANDS {
            let (code, out, error) = run(&[args, &["--admin", &url]].concat());
            assert_eq!((code, out.as_str()), (1, ""), "{args:?}: {body}");
            let said = format!("what listens at {url} is not the admin listener of a peer: ");
            assert!(error.contains(&said) && error.contains(why), "{args:?}: {error}");
            assert!(error.contains("--admin URL"), "{error}");
        }
    }
}

#[test]
fn a_peer_serves_answers_its_commands_and_drains_on_sigterm() {
    let dir = certified("serve", "peer-1");
    let mut peer = Peer::start(&write(
        &dir,
        &config(&app_table("stop_grace = '200ms'\nready = { path = '/healthz' }\n")),
    ));
    assert!(peer.http.starts_with("http://127.0.0.1:"));

    let (code, out, error) = peer.run(&["status"]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("peer-1 (this one)") && out.contains("shop"), "{out}");
    assert!(!out.contains('\x1b'), "no colour where there is no terminal");
    let (_, json, _) = peer.run(&["status", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["apps"][0]["state"], "cold");

    assert_eq!(peer.run(&["app", "stop", "shop"]).1, "shop does not run there\n");
    let (code, out, error) = peer.run(&["app", "start", "shop"]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("starting"), "{out}");
    let line = peer.logged("the app runs as");
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["app"], &line["stream"]), (&"shop".into(), &"stdout".into()));
    wait_until("it is ready", || peer.run(&["status", "--json"]).1.contains("\"ready\""));

    for (args, part) in [
        (["app", "start", "blog"], "it has: shop"),
        (["why", "nothing-such", "--json"], "remembers no such request"),
        (["session", "shop/000102030405060708090a0b0c0d0e0f", "--json"], "holds no copy"),
    ] {
        let (code, out, error) = peer.run(&args);
        assert_eq!((code, out.as_str()), (1, ""), "{args:?}");
        assert!(error.contains(part), "{args:?}: {error}");
    }
    for balancer in ["haproxy", "nginx", "apache", "envoy"] {
        let (code, out, error) = peer.run(&["lb", balancer]);
        assert_eq!(code, 0, "{error}");
        let (_, port) = peer.http.rsplit_once(':').unwrap();
        assert!(out.contains(port), "{balancer}: {out}");
    }

    assert_eq!(peer.run(&["app", "start", "shop"]).1, "shop is ready already\n");
    let (code, out, error) = peer.run(&["app", "stop", "shop"]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("stops once its requests have ended"), "{out}");
    let (code, _, error) = peer.run(&["drain"]);
    assert_eq!(code, 0, "{error}");
    wait_until("it drains", || peer.run(&["status", "--json"]).1.contains("\"draining\""));
    peer.signal(Signal::SIGTERM);
    assert_eq!(peer.wait().code(), Some(0));
}

/// A socket as a service manager has it, and the datagrams that come to it.
fn manager(dir: &Path) -> (PathBuf, UnixDatagram) {
    let path = dir.join("notify");
    let _ = std::fs::remove_file(&path);
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(BOUND)).unwrap();
    (path, socket)
}

fn datagram(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).expect("the peer tells the manager in time");
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[test]
fn a_service_manager_is_notified_when_the_peer_serves_and_when_it_drains() {
    let dir = certified("notify", "peer-1");
    let (path, socket) = manager(&dir);
    let file = write(&dir, &config(""));
    let mut peer = Peer::start_with(&file, &[("NOTIFY_SOCKET", text(&path))]);
    let output = datagram(&socket);
    assert!(output.lines().any(|line| line == "READY=1"), "{output}");
    assert!(output.lines().any(|line| line == "STATUS=serving as peer-1"), "{output}");
    peer.signal(Signal::SIGTERM);
    let output = datagram(&socket);
    assert!(
        output.lines().any(|line| line == "STOPPING=1"),
        "a watchdog nobody asked for? {output}"
    );
    assert_eq!(peer.wait().code(), Some(0));
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 16]).is_err(), "nothing else was sent");
}

#[test]
fn a_watchdog_that_is_asked_for_hears_of_the_peer_and_its_apps_do_not_speak_to_it() {
    let dir = certified("watchdog", "peer-1");
    let (path, socket) = manager(&dir);
    let out = dir.join("env");
    let app = format!(
        "[[app]]\nname = 'shop'\nstart = 'at-boot'\n\
         run = ['sh', '-c', 'env > {0}.new; mv {0}.new {0}; exec sleep 600']\n",
        text(&out)
    );
    let _ = std::fs::remove_file(&out);
    let file = write(&dir, &config(&app));
    let env = [("NOTIFY_SOCKET", text(&path)), ("WATCHDOG_USEC", "200000")];
    let mut peer = Peer::start_with(&file, &env);
    assert!(datagram(&socket).contains("READY=1"));
    for _ in 0..3 {
        assert_eq!(datagram(&socket).trim_end(), "WATCHDOG=1");
    }
    wait_until("the app runs", || out.exists());
    let seen = std::fs::read_to_string(&out).unwrap();
    assert!(seen.contains("PORT="), "{seen}");
    for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC"] {
        assert!(!seen.contains(variable), "the app could speak for the peer: {seen}");
    }
    peer.signal(Signal::SIGKILL);
    peer.wait();
}

#[test]
fn a_peer_takes_its_name_from_the_environment_and_its_cookie_key_from_a_file() {
    let dir = certified("environment", "peer-1");
    let text_of = config("")
        .replace("'peer-1'", "'${POD_NAME}'")
        .replace("identity = 'certs'", "identity = 'certs'\ncookie_key = 'keys/cookie.key'");
    let file = write(&dir, &text_of);
    let keys = dir.join("keys");
    std::fs::create_dir_all(&keys).unwrap();
    std::fs::write(keys.join("cookie.key"), "too short").unwrap();
    let output = warmhop(&["run", "--config", text(&file)]).env("POD_NAME", "peer-1").output();
    let (code, _, error) = outcome(&output.unwrap());
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("mesh.cookie_key") && error.contains("openssl rand"), "{error}");

    // 32 bytes of base64.
    std::fs::write(keys.join("cookie.key"), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n")
        .unwrap();
    let mut peer = Peer::start_with(&file, &[("POD_NAME", "peer-1")]);
    peer.signal(Signal::SIGTERM);
    assert_eq!(peer.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_peer_at_once_and_its_app_with_it() {
    let dir = certified("twice", "peer-1");
    let more = "start = 'at-boot'\nstop_grace = '10m'\nready = { path = '/healthz' }\n";
    let mut peer = Peer::start(&write(&dir, &config(&app_table(more))));
    let line = peer.logged("the app runs as ");
    let line: Value = serde_json::from_str(&line).unwrap();
    // On one processor the test harness writes on the same line, before it.
    let (_, said) = line["message"].as_str().unwrap().split_once("the app runs as ").unwrap();
    let pids: Vec<i32> = said.split(' ').map(|pid| pid.parse().unwrap()).collect();
    wait_until("it is ready", || peer.run(&["status", "--json"]).1.contains("\"ready\""));

    peer.signal(Signal::SIGINT);
    // The app has got its SIGTERM and pays no heed.
    peer.logged("not now");
    peer.signal(Signal::SIGTERM);
    assert_eq!(peer.wait().code(), Some(128 + Signal::SIGTERM as i32));
    crate::role::wait_until_gone(&pids);
}

#[test]
fn a_peer_that_is_stopped_while_it_starts_ends_in_good_order() {
    let dir = certified("early", "peer-1");
    let file = dir.join("warmhop.toml");
    let _ = std::fs::remove_file(&file);
    // It waits for its configuration, which comes after the signal.
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    let child = warmhop(&["run", "--config", text(&file)]).stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let log = sync_channel(0).1;
    let (admin, http, early) = (String::new(), String::new(), Vec::new());
    let mut peer = Peer { child, admin, http, log, early };
    wait_until("it takes signals", || {
        let status = std::fs::read_to_string(&status).unwrap();
        let taken = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        let taken = u64::from_str_radix(taken.trim(), 16).unwrap();
        [Signal::SIGTERM, Signal::SIGINT].iter().all(|it| taken >> (*it as i32 - 1) & 1 == 1)
    });
    peer.signal(Signal::SIGTERM);
    std::fs::write(&file, config("")).unwrap();
    assert_eq!(peer.wait().code(), Some(0));
}

/// A peer that may have 100 files open, and so few connections, with its front door.
fn with_few_files(dir: &Path) -> (Peer, String) {
    let file = write(dir, &config(""));
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 100 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_warmhop")]);
    limited.args(["run", "--config", text(&file), "--log", "json"]).stdin(Stdio::null());
    let peer = Peer::from_command(&mut limited);
    let door = peer.http.trim_start_matches("http://").to_owned();
    (peer, door)
}

#[test]
fn clients_that_keep_connections_open_leave_the_admin_listener_its_files() {
    let dir = certified("files", "peer-1");
    let (mut peer, door) = with_few_files(&dir);
    // More than there are files, and fewer than the system lets wait to be accepted.
    let idle: Vec<TcpStream> = (0..120).map(|_| TcpStream::connect(&door).unwrap()).collect();
    for _ in 0..10 {
        let (code, _, error) = peer.run(&["status"]);
        assert_eq!(code, 0, "{error}");
    }
    drop(idle);
    let mut client = TcpStream::connect(&door).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "there is no app: {answer}");
    peer.signal(Signal::SIGTERM);
    assert_eq!(peer.wait().code(), Some(0));
}

#[test]
fn a_burst_at_a_full_door_turns_nobody_away_while_idle_connections_can_give_way() {
    let dir = certified("burst", "peer-1");
    let (mut peer, door) = with_few_files(&dir);
    let idle: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(&door).unwrap()).collect();
    assert_eq!(peer.run(&["status"]).0, 0);
    // All of them wait to be accepted when the peer goes on: far more than may wait at its door,
    // and before them others that have gone meanwhile.
    peer.signal(Signal::SIGSTOP);
    drop((0..40).map(|_| TcpStream::connect(&door).unwrap()).collect::<Vec<_>>());
    let burst: Vec<TcpStream> = (0..60)
        .map(|_| {
            let mut client = TcpStream::connect(&door).unwrap();
            client.set_read_timeout(Some(BOUND)).unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
            client
        })
        .collect();
    peer.signal(Signal::SIGCONT);
    for (at, mut client) in burst.into_iter().enumerate() {
        let mut answer = String::new();
        let read = client.read_to_string(&mut answer);
        assert!(read.is_ok(), "client {at} was turned away: {read:?} after {answer:?}");
        assert!(answer.starts_with("HTTP/1.1 404"), "there is no app: {answer}");
    }
    drop(idle);
    peer.signal(Signal::SIGTERM);
    assert_eq!(peer.wait().code(), Some(0));
}

#[test]
fn a_hang_up_has_the_list_of_refused_members_read_again_unless_the_file_is_wrong() {
    let dir = certified("hangup", "peer-1");
    let file = write(&dir, &config(""));
    let mut peer = Peer::start(&file);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("[mesh]", "[mesh]\nrefuse = ['peer-7']", 1)).unwrap();
    peer.signal(Signal::SIGHUP);
    let output = peer.logged("[mesh] refuse was read again");
    assert!(output.contains("peer-7"), "{output}");
    std::fs::write(&file, text.replacen("[mesh]", "[mesh]\nrefuse = ['peer 7']", 1)).unwrap();
    peer.signal(Signal::SIGHUP);
    let output = peer.logged("nothing was changed");
    assert!(output.contains("mesh.refuse[0]"), "{output}");
    assert_eq!(peer.run(&["status"]).0, 0);
    peer.signal(Signal::SIGTERM);
    assert_eq!(peer.wait().code(), Some(0));
}

#[test]
fn a_log_whose_reader_went_away_costs_its_lines_and_nothing_else() {
    let dir = certified("unread", "peer-1");
    let more = "stop_grace = '200ms'\nready = { path = '/healthz' }\n";
    let mut peer = Peer::start(&write(&dir, &config(&app_table(more))));
    // The reader closes the pipe with the next line, and every later one fails.
    peer.log = sync_channel(0).1;
    for _ in 0..2 {
        assert_eq!(peer.run(&["app", "start", "shop"]).0, 0);
        wait_until("it is ready", || peer.run(&["status", "--json"]).1.contains("\"ready\""));
        assert_eq!(peer.run(&["app", "stop", "shop"]).0, 0);
        wait_until("it is cold", || peer.run(&["status", "--json"]).1.contains("\"cold\""));
    }
    peer.signal(Signal::SIGTERM);
    assert_eq!(peer.wait().code(), Some(0));
}

#[test]
fn a_log_on_a_full_disk_costs_its_lines_and_nothing_else() {
    let dir = certified("full", "peer-1");
    let (path, socket) = manager(&dir);
    let said = dir.join("said");
    let _ = std::fs::remove_file(&said);
    // More than a pipe holds, so that it gets stuck where its output is not taken.
    let app = format!(
        "[[app]]\nname = 'shop'\nstart = 'at-boot'\n\
         run = ['sh', '-c', 'yes | head -n 100000; touch {}; exec sleep 600']\n",
        text(&said)
    );
    let file = write(&dir, &config(&app));
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let child = warmhop(&["run", "--config", text(&file)])
        .env("NOTIFY_SOCKET", &path)
        .stderr(full)
        .spawn()
        .unwrap();
    let log = sync_channel(0).1;
    let (admin, http, early) = (String::new(), String::new(), Vec::new());
    let mut peer = Peer { child, admin, http, log, early };
    let output = datagram(&socket);
    assert!(output.lines().any(|line| line == "READY=1"), "{output}");
    wait_until("the app has said all it had to say", || said.exists());
    peer.signal(Signal::SIGTERM);
    assert_eq!(peer.wait().code(), Some(0));
}

#[test]
fn a_token_opens_an_admin_listener_for_those_who_have_it() {
    let dir = certified("token", "peer-1");
    let with_token = config("token = 'a-token-of-length'\n");
    let peer = Peer::start(&write(&dir, &with_token));
    let (code, _, error) = peer.run(&["status"]);
    assert_eq!(code, 1);
    assert!(error.contains("WARMHOP_ADMIN_TOKEN"), "{error}");
    let (code, _, error) = peer.run(&["status", "--token", "a-token-of-length"]);
    assert_eq!(code, 0, "{error}");
    let (code, _, _) = peer.run(&["drain", "--token", "another-token-of"]);
    assert_eq!(code, 1);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut child = warmhop(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{output:?}");
}
