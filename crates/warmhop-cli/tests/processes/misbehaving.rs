//! Apps whose answers are not what they should be, and what their clients get.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::cli::{Peer, app_table, certified, config, write};
use crate::role::{BOUND, wait_until};

/// The app's table with `answers` in its environment instead of what it has there.
fn answering(answers: &str, more: &str) -> String {
    let ready = "start = 'at-boot'\nready = { path = '/healthz', timeout = '2s' }\n";
    let app = app_table(&format!("{ready}{more}"));
    config(&app.replace("STUBBORN = '1'", &format!("ANSWERS = {answers:?}")))
}

/// All that comes on a connection that the client keeps open.
fn kept_open(peer: &Peer, target: &str) -> String {
    let mut stream = TcpStream::connect(peer.front_door()).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").unwrap();
    let mut all = Vec::new();
    let read = stream.read_to_end(&mut all);
    // A reset behind the answer is as good an end.
    assert!(!matches!(&read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock));
    String::from_utf8(all).unwrap()
}

/// The answer on a connection of its own.
fn asked(peer: &Peer) -> String {
    let mut stream = TcpStream::connect(peer.front_door()).unwrap();
    let ask = "GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(ask.as_bytes()).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    all
}

#[test]
fn an_answer_that_is_shorter_than_it_says_never_looks_whole() {
    for (test, body) in [("short-none", ""), ("short-some", "hello")] {
        let dir = certified(test, "peer-1");
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{body}");
        let peer = Peer::start(&write(&dir, &answering(&answer, "")));
        peer.ever_logged("\"ready\"");
        // When it is heard that the app has closed its connection is a matter of luck.
        for _ in 0..20 {
            let all = kept_open(&peer, "/");
            let (head, came) = all.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{all:?}"));
            assert!(head.starts_with("HTTP/1.1 200 "), "{all}");
            let lengths: Vec<_> =
                head.lines().filter(|line| line.starts_with("content-length:")).collect();
            assert_eq!((lengths, came), (vec!["content-length: 9"], body), "{all}");
        }
    }
}

#[test]
fn an_answer_in_a_coding_that_nobody_asked_for_is_not_passed_on_as_if_it_had_none() {
    let dir = certified("coded", "peer-1");
    let chunks = "5\r\nzzzzz\r\n0\r\n\r\n";
    let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n{chunks}");
    let peer = Peer::start(&write(&dir, &answering(&answer, "")));
    peer.ever_logged("\"ready\"");
    let answer = asked(&peer);
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("app-failed"), "{answer}");
}

#[test]
fn where_a_new_version_answers_its_health_check_with_garbage_the_old_copy_serves_on() {
    let dir = certified("garbage", "peer-1");
    let old = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold";
    let peer = Peer::start(&write(&dir, &answering(old, "version = '1'\n")));
    peer.ever_logged("\"ready\"");
    let app = || -> Value {
        let (code, printed, error) = peer.run(&["status", "--json"]);
        assert_eq!(code, 0, "{error}");
        serde_json::from_str::<Value>(&printed).unwrap()["apps"][0].clone()
    };
    assert!(asked(&peer).ends_with("old"));
    write(&dir, &answering("what is this?\r\n\r\n", "version = '2'\n"));
    let (code, printed, error) = peer.run(&["reload"]);
    assert_eq!(code, 0, "{error}");
    assert!(printed.contains("replaced by a new copy once that is ready: shop"), "{printed}");
    let failed = peer.logged("did not start");
    assert!(failed.contains("/healthz was answered by something that is not HTTP"), "{failed}");
    wait_until("the failed version is reported", || app()["error"].is_string());
    let app = app();
    assert_eq!(
        (&app["state"], &app["version"], &app["copy"]),
        (&"ready".into(), &"1".into(), &1.into()),
        "{app}"
    );
    assert!(asked(&peer).ends_with("old"));
}

#[test]
fn a_server_that_closes_its_connection_on_a_long_session_field_is_reported_as_such() {
    let dir = certified("short-heads", "peer-1");
    let table =
        answering("", "session = 'portable'\n").replace("ANSWERS = \"\"", "SHORT_HEADS = '1'");
    let peer = Peer::start(&write(&dir, &table));
    peer.ever_logged("\"ready\"");
    let asked = |fields: &str| {
        let mut stream = TcpStream::connect(peer.front_door()).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        let line = "POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 0\r\n";
        write!(stream, "{line}Connection: close\r\n{fields}\r\n").unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        all
    };
    let answer = asked("");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\r\nwell\r\n"), "{answer}");
    let set = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    let cookie = format!("Cookie: {}\r\n", set.split(';').next().unwrap());

    let answer = asked(&cookie);
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(answer.contains("session-field-refused") && answer.contains("Max-Age=0"), "{answer}");
    let line = peer.logged("the app's server refused a request");
    assert!(line.contains("\"WARN\"") && line.contains("\"status\":400"), "{line}");
    assert!(asked("").starts_with("HTTP/1.1 200 "), "nobody is locked out");
    // Where no session makes the request longer, the refusal is the app's own.
    let long = format!("X-Long: {}\r\n", "x".repeat(3000));
    assert!(asked(&long).starts_with("HTTP/1.1 400 "));
}
