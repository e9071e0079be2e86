//! What an operator asks a running mesh for.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::cli::{Peer, app_table, certified, config, run, text, write};
use crate::joining::{mesh_addr, seeded};
use crate::role::{scratch, wait_until};

/// Two peers that see each other; the first runs an app.
pub(crate) fn two(test: &str) -> (Peer, Peer) {
    two_with(test, &app_table("start = 'at-boot'\n"), "")
}

/// Two peers that see each other, with more at the end of the configuration of each.
pub(crate) fn two_with(test: &str, more_of_first: &str, more_of_second: &str) -> (Peer, Peer) {
    let dir = certified(test, "peer-1");
    let second = scratch(test).join("second");
    std::fs::create_dir_all(&second).unwrap();
    let (ca, certs) = (dir.join("ca"), second.join("certs"));
    let (code, _, error) =
        run(&["cert", "peer", "peer-2", "--ca", text(&ca), "--out", text(&certs), "--force"]);
    assert_eq!(code, 0, "{error}");
    let first = Peer::start(&write(&dir, &config(more_of_first)));
    let joining = seeded(&[&mesh_addr(&first)]).replace("peer-1", "peer-2");
    let other = Peer::start(&write(&second, &format!("{joining}{more_of_second}")));
    wait_until("the two see each other", || {
        let (_, members, _) = other.run(&["members"]);
        members.lines().any(|line| line.starts_with("peer-1") && line.contains("alive"))
    });
    (first, other)
}

#[test]
fn the_log_of_any_peer_is_read_through_another() {
    let (first, second) = two("logs");
    first.ever_logged("\"ready\"");
    let (code, logs, error) = second.run(&["logs", "shop", "--peer", "peer-1"]);
    assert_eq!(code, 0, "{error}");
    assert!(logs.contains("INFO  ready app=shop"), "{logs}");
    let (code, logs, error) =
        second.run(&["logs", "shop", "--peer", "peer-1", "--json", "-n", "1"]);
    assert_eq!(code, 0, "{error}");
    let line: Value = serde_json::from_str(logs.trim()).unwrap();
    assert_eq!(line["app"], "shop", "{logs}");
    let (code, logs, error) = first.run(&["logs", "shop", "--peer", "peer-1"]);
    assert_eq!(code, 0, "it is asked for its own: {error}");
    assert!(logs.contains("INFO  ready app=shop"), "{logs}");

    let (code, _, error) = second.run(&["logs", "shoop", "--peer", "peer-1"]);
    assert_eq!(code, 1);
    assert!(error.contains("no app shoop is configured on this peer; it has: shop"), "{error}");

    let (code, _, error) = second.run(&["logs", "shop", "--peer", "peer-9"]);
    assert_eq!(code, 1);
    assert!(error.contains("peer-9") && error.contains("cannot be reached"), "{error}");
}

#[test]
fn a_log_is_followed_until_its_reader_leaves() {
    use std::io::{BufRead, BufReader};
    let (first, second) = two("follow");
    let mut monitor = crate::cli::warmhop(&["monitor", "--peer", "peer-1", "-n", "0", "--json"])
        .env("WARMHOP_ADMIN", &second.admin)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(monitor.stdout.take().unwrap()).lines();
    let (sender, heard) = std::sync::mpsc::sync_channel(100);
    let reader = std::thread::spawn(move || {
        while let Some(Ok(line)) = lines.next() {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    // The first of these commands after the follower has connected is reported.
    wait_until("the events of the one are shown through the other", || {
        first.run(&["app", "stop", "shop"]);
        first.run(&["app", "start", "shop"]);
        heard.try_iter().any(|line| line.contains("\"starting\"") && line.contains("shop"))
    });
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    drop(heard);
    reader.join().unwrap();
}

#[test]
fn a_restart_of_an_app_that_runs_nowhere_says_so() {
    let (first, second) = two("restart-none");
    first.ever_logged("\"ready\"");
    first.run(&["app", "pause", "shop"]);
    // What the other peer knows of it may be older.
    wait_until("the other one knows", || {
        let (code, _, error) = second.run(&["app", "restart", "shop", "--mesh"]);
        code == 1 && error.contains("shop runs on no peer")
    });
    let (code, printed, error) = first.run(&["app", "restart", "shop", "--mesh"]);
    assert_eq!((code, printed.as_str()), (1, ""), "{error}");
    assert!(error.contains("shop runs on no peer, so there is nothing to restart"), "{error}");
}

#[test]
fn an_archive_for_a_report_holds_no_secrets() {
    let dir = certified("debug", "peer-1");
    let app = app_table("start = 'never'\n").replace("STUBBORN = '1'", "KEY = 'hush-hush'");
    let token = "a-token-of-some-length";
    let table = config(&app).replace("[admin]", &format!("[admin]\ntoken = '{token}'"));
    let peer = Peer::start(&write(&dir, &table));
    let file = dir.join("debug.tar.gz");
    let (code, printed, error) = peer.run(&["debug", "--token", token, "--out", text(&file)]);
    assert_eq!(code, 0, "{error}");
    assert!(printed.contains(text(&file)), "{printed}");
    let mut archive =
        tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(&file).unwrap()));
    let mut names = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        assert!(!content.contains(token) && !content.contains("hush-hush"), "{name}: {content}");
        if name.ends_with("warmhop.toml") {
            assert!(content.contains("KEY") && content.contains("not shown"), "{content}");
        }
        names.push(name);
    }
    let expected = ["status.json", "requests.json", "metrics.txt", "warmhop.toml", "log.ndjson"];
    assert_eq!(names, expected.map(|name| format!("warmhop-debug-peer-1/{name}")));
}

#[test]
fn a_drain_is_waited_for_and_called_off_again() {
    let (first, second) = two("drain");
    let state = |peer: &Peer| {
        let (code, printed, error) = peer.run(&["status", "--json"]);
        assert_eq!(code, 0, "{error}");
        serde_json::from_str::<Value>(&printed).unwrap()["peer"]["state"].clone()
    };
    let seen_as = |expected: &str| {
        wait_until(&format!("the other peer sees it {expected}"), || {
            let (_, members, _) = second.run(&["members"]);
            members.lines().any(|line| line.starts_with("peer-1") && line.contains(expected))
        });
    };
    let (code, printed, error) = first.run(&["drain", "--wait", "--timeout", "60s"]);
    assert_eq!((code, printed.as_str()), (0, "drained\n"), "{error}");
    assert_eq!(state(&first), "drained");
    seen_as("draining");

    let (code, printed, error) = first.run(&["undrain"]);
    assert_eq!((code, printed.as_str()), (0, "the peer takes traffic again\n"), "{error}");
    assert_eq!(state(&first), "serving");
    seen_as("alive");

    // A drain takes a second at least, in which balancers notice.
    let (code, _, error) = first.run(&["drain", "--wait", "--timeout", "1ms"]);
    assert_eq!(code, 1);
    assert!(error.contains("not drained within 1ms") && error.contains("undrain"), "{error}");
    assert_eq!(first.run(&["undrain"]).0, 0, "in the middle of a drain as well");
    assert_eq!(state(&first), "serving");
    let (code, printed, _) = first.run(&["drain", "--wait", "--json"]);
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((code, &printed["peer"]["state"]), (0, &"drained".into()));
}

#[test]
fn every_error_of_the_admin_listener_is_problem_details() {
    let (first, _second) = two("problems");
    let addr = first.admin.trim_start_matches("http://");
    for (method, path, status) in [
        ("GET", "/v1/nothing", 404),
        ("GET", "/nothing", 404),
        ("POST", "/", 405),
        ("DELETE", "/v1/status", 405),
        ("POST", "/v1/logs", 405),
        ("GET", "/v1/reload", 405),
        ("POST", "/v1/config", 405),
        ("GET", "/v1/apps/shop/restart", 405),
        ("GET", "/v1/members/peer-2/gone", 405),
        ("POST", "/v1/peers/peer-2/v1/status", 405),
        ("GET", "/v1/requests?limit=many", 400),
        ("GET", "/v1/requests/%ff", 400),
        ("GET", "/v1/sessions/%ff", 400),
        ("GET", "/v1/sessions/shop", 400),
        ("GET", "/v1/logs?lines=many", 400),
        ("GET", "/v1/logs?level=loud", 400),
        ("GET", "/v1/logs?app=nothing", 404),
        ("POST", "/v1/apps/%ff/start", 400),
        ("POST", "/v1/apps/nothing/stop", 404),
        ("POST", "/v1/apps/shop/restart?mesh=perhaps", 400),
        ("POST", "/v1/apps/nothing/restart?mesh=true", 404),
        ("POST", "/v1/members/%ff/gone", 400),
        ("POST", "/v1/members/peer-2/gone", 409),
        ("GET", "/v1/peers/peer-2/v1/nothing", 404),
        ("GET", "/v1/peers/peer-2/v1/requests?limit=many", 400),
        ("GET", "/v1/peers/peer-2/v1/logs?lines=many", 400),
        ("GET", "/v1/peers/%ff/v1/status", 400),
        ("GET", "/v1/peers/peer-9/v1/status", 502),
    ] {
        let mut stream = TcpStream::connect(addr).unwrap();
        let fields = "Host: localhost\r\nContent-Length: 0\r\nConnection: close\r\n";
        write!(stream, "{method} {path} HTTP/1.1\r\n{fields}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {answer}");
        assert!(head.contains("application/problem+json"), "{method} {path}: {answer}");
        let problem: Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["status"], status, "{method} {path}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|it| !it.is_empty()), "{method} {path}");
    }
}
