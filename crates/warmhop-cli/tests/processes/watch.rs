//! `warmhop status --watch` for programs, at a peer that goes away.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// Answers as many requests as one look takes, and is gone then.
fn peer_that_is_asked_once() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let head = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
            let request: Vec<String> = head.take_while(|line| !line.is_empty()).collect();
            let body = if request[0].contains("/v1/status") {
                json!({ "peer": { "name": "peer-1", "state": "serving" }, "sessions": {} })
            } else {
                json!({ "requests": [{ "id": "r-1", "request": "GET /" }] })
            };
            let body = format!("{body:#}");
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        }
    });
    admin
}

#[test]
fn a_program_that_watches_gets_one_object_a_line_and_no_error_among_them() {
    let admin = peer_that_is_asked_once();
    let mut watching = Command::new(env!("CARGO_BIN_EXE_warmhop"))
        .args(["status", "--watch", "--json", "--admin", &admin])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(watching.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.starts_with("warmhop: no answer, trying again: "), "{said}");
    watching.kill().unwrap();
    watching.wait().unwrap();
    let mut printed = String::new();
    watching.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    let lines: Vec<Value> =
        printed.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let [only] = &lines[..] else { panic!("{printed}") };
    assert_eq!(only["peer"]["name"], "peer-1");
    assert_eq!(only["requests"], json!([{ "id": "r-1", "request": "GET /" }]));
}
