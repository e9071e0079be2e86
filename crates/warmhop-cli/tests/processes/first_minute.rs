//! What a newcomer types first: `dev`, `init`, and the certificates' dates.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli::{Peer, certified, config, run, text, warmhop, write};
use crate::role::{ARGUMENTS, BOUND, ROLE, scratch, wait_until, wait_until_gone};

/// A running `warmhop dev`, whose output is read.
struct Dev {
    child: Child,
    lines: Receiver<String>,
}

impl Dev {
    fn start(args: &[&str], command: &[&str]) -> Self {
        let args = [&["dev", "--port", "0"], args, &["--"], command].concat();
        let mut child = warmhop(&args)
            .env(ROLE, "app")
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = sync_channel(10_000);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line with `part` in it.
    fn said(&self, part: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(BOUND);
            let line = line.unwrap_or_else(|error| panic!("no line with {part:?}: {error}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    fn end(mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        self.child.wait().unwrap().code()
    }
}

/// The address behind `http://` in a line.
fn front_door(line: &str) -> String {
    let (_, rest) = line.split_once("http://").unwrap();
    rest.split_once('/').unwrap().0.to_owned()
}

fn get(door: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(door).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {door}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn this_program() -> String {
    std::env::current_exe().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn help_is_given_however_it_is_asked_for() {
    for (args, part) in [
        (&["--help"][..], "\n  drain "),
        (&["help"], "\n  drain "),
        (&["help", "--help"], "\n  drain "),
        (&["help", "-h"], "\n  drain "),
        (&["app", "help", "--help"], "\n  pause "),
        (&["help", "app", "--help"], "\n  pause "),
        (&["help", "run", "-h"], "--config <FILE>"),
    ] {
        let (code, help, error) = run(args);
        assert!(code == 0 && help.contains(part), "{args:?}: {code} {help} {error}");
    }
    for args in [&["help", "fly"][..], &["help", "fly", "--help"], &["run", "help", "--help"]] {
        assert_eq!(run(args).0, 2, "{args:?}");
    }
}

#[test]
fn dev_puts_a_command_behind_two_peers_and_ends_all_of_it() {
    let program = this_program();
    let command = [&[program.as_str()], &ARGUMENTS[..]].concat();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let dev = Dev::start(&["--peers", "2"], &command);
        let doors = [front_door(&dev.said("peer-1  http")), front_door(&dev.said("peer-2  http"))];
        dev.said("the app is ready");
        let mut pids = Vec::new();
        for door in &doors {
            let answer = get(door, "/pids");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            pids.extend(body.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        assert!(!pids.is_empty());
        let code = dev.end(signal);
        assert_eq!(code, (signal == Signal::SIGINT).then_some(0));
        wait_until_gone(&pids);
        for door in doors {
            wait_until("the front door is closed", || TcpStream::connect(&door).is_err());
        }
    }
}

#[test]
fn dev_whose_reader_went_away_leaves_nothing_behind() {
    let program = this_program();
    let command = [&[program.as_str()], &ARGUMENTS[..]].concat();
    let Dev { mut child, lines } = Dev::start(&["--peers", "1"], &command);
    let door = loop {
        let line = lines.recv_timeout(BOUND).unwrap();
        if line.contains("peer-1  http") {
            break front_door(&line);
        }
    };
    // What it shows from here on cannot be written.
    drop(lines);
    let child = std::cell::RefCell::new(&mut child);
    wait_until("dev ends, as it cannot tell of the app's ends and starts", || {
        if let Ok(mut stream) = TcpStream::connect(&door) {
            let _ = write!(stream, "GET /exit HTTP/1.1\r\nHost: {door}\r\n\r\n");
        }
        child.borrow_mut().try_wait().unwrap().is_some()
    });
    wait_until("the peer is gone", || TcpStream::connect(&door).is_err());
}

#[test]
fn dev_gives_a_line_of_several_words_to_a_shell() {
    let line = format!(
        "[ \"${{PORT}}\" -gt 0 ] && exec {:?} {} # $PORT",
        this_program(),
        ARGUMENTS.join(" ")
    );
    let dev = Dev::start(&["--peers", "1"], &[&line]);
    dev.said("the app is ready");
    assert_eq!(dev.end(Signal::SIGTERM), Some(0));
}

#[test]
fn dev_says_what_is_wrong_with_a_command() {
    let (code, _, error) = run(&["dev", "--", "no-such-program-anywhere"]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("no-such-program-anywhere") && error.contains("warmhop dev --"));

    let dev = Dev::start(&["--peers", "1"], &["sh", "-c", "echo it is broken >&2; exit 3"]);
    let said = dev.said("did not start");
    assert!(said.contains("the app did not start: it exited with status 3"), "{said}");
    assert!(said.contains("; next try in "), "{said}");
    assert_eq!(dev.end(Signal::SIGINT), Some(0));

    let elsewhere = format!("PORT=0 exec {:?} {} # not $PORT", this_program(), ARGUMENTS.join(" "));
    let dev = Dev::start(&["--peers", "1"], &[&elsewhere]);
    let said = dev.said("the app is not ready yet");
    assert!(said.contains("it listens at 127.0.0.1:"), "{said}");
    assert!(dev.said("Have it listen on $PORT").contains("python3 -m http.server $PORT"));
    assert_eq!(dev.end(Signal::SIGINT), Some(0));
}

#[test]
fn dev_says_so_where_an_app_rejects_its_probe() {
    let line = format!("exec {:?} {}", this_program(), ARGUMENTS.join(" "));
    let dev = Dev::start(&["--peers", "1", "--ready", "/rejected"], &[&line]);
    let said = dev.said("the app is not ready yet");
    assert!(said.contains("/rejected answered 404; 2xx or 3xx is needed"), "{said}");
    dev.said("Name a path with --ready");
    dev.signal(Signal::SIGINT);
    dev.said("ending; Ctrl-C again ends everything at once");
    assert_eq!(dev.end(Signal::SIGINT), Some(0));
}

#[test]
fn dev_says_which_port_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, _, error) = run(&["dev", "--port", &port, "--", "true"]);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains(&format!("port {port} (")) && error.contains("--port"), "{error}");
    assert!(error.contains("in use"), "the reason is missing: {error}");
}

#[test]
fn dev_says_that_there_are_too_few_ports_behind_the_first() {
    let (code, _, error) = run(&["dev", "--port", "65535", "--", "true"]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("--port 65535") && error.contains("up to 65533"), "{error}");
}

#[test]
fn the_files_of_init_pass_check_and_are_never_overwritten() {
    let dir = scratch("init").join("mesh");
    let _ = std::fs::remove_dir_all(&dir);
    let (code, printed, error) = run(&["init", "--peers", "2", text(&dir)]);
    assert_eq!(code, 0, "{error}");
    for name in ["peer-1", "peer-2"] {
        let file = dir.join(name).join("warmhop.toml");
        assert!(printed.contains(&format!("warmhop run --config {}", text(&file))), "{printed}");
        let (code, printed, error) = run(&["check", text(&file)]);
        assert_eq!(code, 0, "{error}");
        // Where root looks at it, the app would be root as well.
        let expected = usize::from(nix::unistd::Uid::effective().is_root());
        let is_warning = |line: &&str| line.contains("warning: app.app.user: the app runs as root");
        assert_eq!(error.lines().count(), expected, "{error}");
        assert_eq!(error.lines().filter(is_warning).count(), expected, "{error}");
        assert!(printed.contains(&format!("name = \"{name}\"")), "{printed}");
    }
    let before = std::fs::read(dir.join("ca/ca-key.pem")).unwrap();
    let (code, _, error) = run(&["init", text(&dir)]);
    assert_eq!(code, 1);
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(std::fs::read(dir.join("ca/ca-key.pem")).unwrap(), before);
}

#[test]
fn certificates_show_their_dates_and_are_renewed() {
    let dir = certified("dates", "peer-1");
    let (ca, certs) = (dir.join("ca"), dir.join("certs"));
    let (code, shown, error) = run(&["cert", "show", text(&certs)]);
    assert_eq!(code, 0, "{error}");
    assert!(shown.contains("peer peer-1 of the cluster demo"), "{shown}");
    assert!(shown.contains("364 days left") && shown.contains("authority of"), "{shown}");

    let key = std::fs::read(certs.join("key.pem")).unwrap();
    let (code, printed, error) =
        run(&["cert", "renew", text(&certs), "--ca", text(&ca), "--days", "7"]);
    assert_eq!(code, 0, "{error}");
    assert!(printed.contains("peer-1, for 7 days"), "{printed}");
    assert_ne!(std::fs::read(certs.join("key.pem")).unwrap(), key);
    let (_, shown, _) = run(&["cert", "show", text(&certs)]);
    assert!(shown.contains("6 days left") && shown.contains("expires soon"), "{shown}");

    // A check of the configuration, and a peer that runs with it, say so as well.
    let file = write(&dir, &config(""));
    let (code, _, warned) = run(&["check", text(&file)]);
    assert_eq!(code, 0, "{warned}");
    let expected = "mesh.identity: the certificate ends in 6 days, on ";
    assert!(warned.contains(expected) && warned.contains("`warmhop cert renew`"), "{warned}");
    let peer = Peer::start(&file);
    let (code, shown, error) = peer.run(&["status"]);
    assert_eq!(code, 0, "{error}");
    assert!(shown.contains("\nthe peer's certificate ends in 6 days, on "), "{shown}");
    drop(peer);

    let other = certified("dates-other", "peer-1");
    let (code, _, error) = run(&["cert", "renew", text(&certs), "--ca", text(&other.join("ca"))]);
    assert_eq!(code, 1);
    assert!(error.contains("another authority"), "{error}");

    // An authority lives for ten years; a certificate of its cannot outlive it.
    let (code, _, error) = run(&["cert", "renew", text(&certs), "--ca", text(&ca), "--days", "0"]);
    assert_eq!(code, 2, "{error}");
    let (code, _, error) = run(&["cert", "show", text(&dir)]);
    assert_eq!(code, 1);
    assert!(error.contains("ca.pem"), "{error}");
}
