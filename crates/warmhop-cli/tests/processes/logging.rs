//! What a running peer writes of its clients' requests.

use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cli::{Peer, app_table, certified, config, text, write};
use crate::operators::two_with;
use crate::role::wait_until;

/// Asks the peer's front door for `path`, as a client with this id.
fn ask(peer: &Peer, path: &str, id: &str) -> String {
    let mut stream = TcpStream::connect(peer.front_door()).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: shop.localhost\r\nX-Request-Id: {id}\r\n\
         Connection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn each_request_is_a_line_of_the_access_log_and_a_renamed_log_is_begun_anew() {
    let dir = certified("access", "peer-1");
    let log = "[log]\naccess = 'access.log'\naccess_format = 'json'\n";
    let table = config(&format!("{log}{}", app_table("start = 'at-boot'\n")));
    let mut peer = Peer::start(&write(&dir, &table));
    peer.ever_logged("\"ready\"");
    let (file, old) = (dir.join("access.log"), dir.join("access.log.1"));
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();

    ask(&peer, "/cart?token=secret", "the-first");
    wait_until("the request is recorded", || read(&file).contains("the-first"));
    let record: Value = serde_json::from_str(read(&file).trim()).unwrap();
    assert_eq!((&record["app"], &record["way"]), (&"shop".into(), &"serve".into()), "{record}");
    assert_eq!((&record["peer"], &record["path"]), (&"peer-1".into(), &"/cart".into()), "{record}");
    assert!(!read(&file).contains("secret"), "{record}");

    std::fs::rename(&file, &old).unwrap();
    peer.signal(Signal::SIGUSR1);
    peer.logged("the access log was opened again");
    ask(&peer, "/", "the-second");
    peer.signal(Signal::SIGTERM);
    assert!(peer.wait().success());
    assert!(read(&file).contains("the-second"), "{} | {}", read(&file), read(&old));
    assert!(!read(&old).contains("the-second"));
}

#[test]
fn a_level_that_leaves_out_what_apps_print_is_named_to_those_who_ask_for_that() {
    for (level, is_left_out) in [("info,warmhop::app=warn", true), ("info", false)] {
        let dir = certified("log-level", "peer-1");
        let log = format!("[log]\nlevel = '{level}'\n");
        let table = config(&format!("{log}{}", app_table("start = 'at-boot'\n")));
        let peer = Peer::start(&write(&dir, &table));
        wait_until("it is ready", || peer.run(&["status"]).1.contains("  ready"));
        let (code, shown, error) = peer.run(&["logs", "shop"]);
        assert_eq!(code, 0, "{error}");
        assert_eq!(shown.contains("leaves out what apps print"), is_left_out, "{level}: {shown}");
    }
}

#[test]
fn an_access_log_that_cannot_be_opened_is_reported_before_anyone_is_served() {
    let dir = certified("access-none", "peer-1");
    let file = write(&dir, &config("[log]\naccess = 'no/such/folder/access.log'\n"));
    let (code, _, error) = crate::cli::run(&["run", "--config", crate::cli::text(&file)]);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("log.access: the access log cannot be opened"), "{error}");
}

#[test]
fn a_request_is_found_in_the_log_by_its_id() {
    let file = write(&certified("by-id", "peer-1"), &config(""));
    let peer = Peer::start_with(&file, &[("RUST_LOG", "warmhop=debug")]);
    assert!(ask(&peer, "/nowhere", "the-one-that-failed").contains(" 404 "));
    let failed = peer.logged("\"refused\"");
    assert!(failed.contains("\"INFO\"") && failed.contains("the-one-that-failed"), "{failed}");
    assert!(failed.contains("unknown-app"), "{failed}");
    // At this level a success is logged as well, in the same way.
    let answered = peer.logged("\"answered\"");
    assert!(
        answered.contains("\"DEBUG\"") && answered.contains("the-one-that-failed"),
        "{answered}"
    );
}

/// Two peers, of which the first runs an app that answers everything with these bytes.
fn two_of_an_app_that_answers(test: &str, answers: &str) -> (Peer, Peer) {
    let app = app_table("start = 'at-boot'\nready = { path = '/healthz' }\n");
    let app = app.replace("STUBBORN = '1'", &format!("ANSWERS = {answers:?}"));
    two_with(test, &app, "[[app]]\nname = 'shop'\nstart = 'never'\n")
}

#[test]
fn a_request_that_failed_by_a_hop_is_found_in_the_logs_of_both_peers() {
    let (first, second) = two_of_an_app_that_answers("by-id-far", "HTTP/9 no answer\r\n\r\n");
    let answer = ask(&second, "/", "the-one-that-failed");
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    for (peer, parts) in [
        (&first, ["\"from\":\"peer-2\"", "\"reason\":\"app-failed\""]),
        (&second, ["\"problem\":\"app-failed\"", "\"status\":502"]),
    ] {
        let line = peer.logged("the-one-that-failed");
        assert!(line.contains("\"INFO\"") && parts.iter().all(|it| line.contains(it)), "{line}");
    }
}

#[test]
fn an_answer_that_was_cut_off_is_found_in_the_logs_of_both_peers() {
    let answers = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf";
    let (first, second) = two_of_an_app_that_answers("cut-off", answers);
    for (peer, way) in [(&first, "serve"), (&second, "hop")] {
        let id = format!("cut-off-by-{way}");
        let answer = ask(peer, "/", &id);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("half"), "{answer}");
        let line = peer.logged(&id);
        let record: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(record["level"], "INFO", "{line}");
        assert_eq!((&record["app"], &record["way"]), (&"shop".into(), &way.into()), "{line}");
        assert_eq!((&record["peer"], &record["bytes"]), (&"peer-1".into(), &4.into()), "{line}");
        assert!(record["reason"].as_str().is_some_and(|why| !why.is_empty()), "{line}");
    }
    let line = first.logged("cut-off-by-hop");
    let record: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&record["from"], &record["bytes"]), (&"peer-2".into(), &4.into()), "{line}");
    for peer in [&first, &second] {
        let (code, metrics) = get(&peer.admin, "/metrics");
        assert_eq!(code, 200);
        assert!(metrics.contains("warmhop_answers_cut_off_total{app=\"shop\"} 1"), "{metrics}");
    }
}

/// Asks the admin listener at `url` for `path`: the status and all of the answer.
fn get(url: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

#[test]
fn a_log_in_json_has_no_lines_that_are_none() {
    for (form, is_json) in [("", true), ("access_format = 'text'\n", false)] {
        let log = format!("[log]\naccess = 'stderr'\n{form}");
        let peer = Peer::start(&write(&certified("json-log", "peer-1"), &config(&log)));
        ask(&peer, "/nowhere", "the-one");
        let line = peer.logged("GET");
        assert!(line.contains("the-one"), "{line}");
        let record = serde_json::from_str::<Value>(&line);
        assert_eq!(record.is_ok_and(|record| record["id"] == "the-one"), is_json, "{line}");
    }
}

#[test]
fn a_reader_of_the_log_that_hangs_stops_neither_apps_nor_clients_nor_the_end() {
    let dir = certified("log-hangs", "peer-1");
    let printed = dir.join("printed");
    // Ten times what the pipes on its way take.
    let script =
        format!("yes {} | head -n 8000; touch {}; exec sleep 600", "x".repeat(200), text(&printed));
    let app = format!("[[app]]\nname = 'shop'\nrun = ['sh', '-c', {script:?}]\n");
    let table = config(&format!("[log]\naccess = 'stderr'\n{app}"));
    let mut peer = Peer::with_a_log_that_nobody_reads(&write(&dir, &table));
    let (code, _, error) = peer.run(&["app", "start", "shop"]);
    assert_eq!(code, 0, "{error}");
    wait_until("the app has printed all of it", || printed.exists());
    assert!(ask(&peer, "/.well-known/warmhop/readyz", "b").contains(" 200 "));
    peer.signal(Signal::SIGTERM);
    assert!(peer.wait().success());
}
