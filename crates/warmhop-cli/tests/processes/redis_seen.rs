//! What an operator sees of the Redis endpoint: metrics, and one line in the log for what it refuses.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use crate::cli::{Peer, certified, config, write};
use crate::role::{BOUND, wait_until};

struct Redis(RefCell<BufReader<TcpStream>>);

impl Redis {
    fn open(addr: &str) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        Self(RefCell::new(BufReader::new(stream)))
    }

    /// The first line of the reply to a command.
    fn ask(&self, words: &[&str]) -> String {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        let mut stream = self.0.borrow_mut();
        stream.get_mut().write_all(request.as_bytes()).unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

/// The value of a metric of this peer, with its labels; empty if it has none.
pub(crate) fn metric(peer: &Peer, series: &str) -> String {
    let addr = peer.admin.trim_start_matches("http://");
    let mut stream = TcpStream::connect(addr).unwrap();
    let head = format!("GET /metrics HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let value = answer.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap_or_default().to_owned()
}

/// A peer with a Redis endpoint, and where that listens.
fn with_endpoint(test: &str) -> (Peer, String) {
    let file = config("[session]\nredis = '127.0.0.1:0'\n");
    let peer = Peer::start(&write(&certified(test, "peer-1"), &file));
    let opened = peer.ever_logged("the Redis endpoint for session libraries is open");
    let opened: serde_json::Value = serde_json::from_str(&opened).unwrap();
    let addr = opened["url"].as_str().unwrap().trim_start_matches("redis://");
    let addr = addr.trim_end_matches("/0").trim_end_matches('/').to_owned();
    (peer, addr)
}

#[test]
fn the_redis_endpoints_clients_commands_and_refusals_are_seen_from_outside() {
    let (peer, addr) = with_endpoint("redis-seen");
    let connections = "warmhop_connections{door=\"redis\"}";

    let (first, second) = (Redis::open(&addr), Redis::open(&addr));
    assert_eq!(first.ask(&["PING"]), "+PONG");
    assert_eq!(second.ask(&["PING"]), "+PONG");
    assert_eq!(metric(&peer, connections), "2");
    drop(second);
    wait_until("who left is not counted", || metric(&peer, connections) == "1");

    // A peer that has just started creates no keys for a while where it waits for others.
    wait_until("a key is made", || first.ask(&["SET", "greeting", "hello"]) == "+OK");
    assert_eq!(first.ask(&["INCR", "greeting"]).split(' ').next(), Some("-ERR"));
    let commands = |command: &str, outcome: &str| {
        let labels = format!("{{command=\"{command}\",outcome=\"{outcome}\"}}");
        metric(&peer, &format!("warmhop_redis_commands_total{labels}"))
    };
    assert_eq!(commands("set", "done"), "1");
    assert_eq!(commands("incr", "refused"), "1");

    assert_eq!(first.ask(&["CLIENT", "SETINFO", "LIB-NAME", "bookshop-client"]), "+OK");
    for _ in 0..3 {
        let reply = first.ask(&["XADD", "stream", "*", "a", "b"]);
        assert!(reply.starts_with("-ERR"), "{reply}");
    }
    let refused = "{command=\"xadd\",library=\"bookshop-client\"}";
    assert_eq!(metric(&peer, &format!("warmhop_redis_not_offered_total{refused}")), "3");
    let line = peer.logged("a Redis client sends a command that is not offered here");
    assert!(line.contains("WARN") && line.contains("XADD"), "{line}");
    assert!(line.contains("bookshop-client") && line.contains("docs/redis.md"), "{line}");
    // All three were refused by now, and another command's line comes behind theirs.
    assert!(first.ask(&["BITOP", "AND", "a", "b"]).starts_with("-ERR"));
    let next = peer.logged("a Redis client sends a command that is not offered here");
    assert!(next.contains("BITOP"), "one line for each command: {next}");
}

/// What a process has in memory, in bytes.
#[cfg(target_os = "linux")]
fn resident(peer: &Peer) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", peer.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
}

#[cfg(target_os = "linux")]
#[test]
fn what_tiny_keys_take_is_what_is_counted() {
    const AT_ONCE: usize = 500;
    let (peer, addr) = with_endpoint("redis-memory");
    let client = Redis::open(&addr);
    wait_until("a key is made", || client.ask(&["SET", "first", "1"]) == "+OK");
    let fill = |keys: std::ops::Range<usize>| {
        let mut stream = client.0.borrow_mut();
        for from in keys.step_by(AT_ONCE) {
            let mut requests = String::new();
            for key in from..from + AT_ONCE {
                requests.push_str(&format!("*3\r\n$3\r\nSET\r\n$7\r\nk{key:06}\r\n$1\r\n1\r\n"));
            }
            stream.get_mut().write_all(requests.as_bytes()).unwrap();
            for _ in 0..AT_ONCE {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                assert_eq!(line, "+OK\r\n");
            }
        }
    };
    let both = || {
        let counted = metric(&peer, "warmhop_session_memory_bytes").parse::<f64>().unwrap();
        (counted, resident(&peer))
    };
    // What the peer takes once for all of them is there after the first.
    fill(0..2_000);
    let before = both();
    fill(2_000..10_000);
    let after = both();
    let (counted, taken) = (after.0 - before.0, after.1 - before.1);
    assert!(taken < 1.5 * counted, "{taken} bytes, of which {counted} are counted");
}
