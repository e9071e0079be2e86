//! What clients may do to a peer, and what it still does for others meanwhile: its memory is bounded
//! while it lasts and given back afterwards, and nobody takes all places.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::cli::{Peer, app_table, certified, config, text, write};
use crate::joining::{mesh_addr, second};
use crate::role::{BOUND, wait_until, wait_within};

/// What all clients together may have a peer hold in these tests.
const BUDGET_MIB: u64 = 16;
/// What a peer may take beyond what it took before: the budget, and several times as much for what
/// keeps it, such as queues, tasks, what the allocator rounds up, and connections that are closed but
/// have not ended yet. Without a budget each of these attacks takes more than 120.
const HELD_MIB: u64 = 96;
/// How long an attacker waits for a peer that does not take what it sends, before it goes on.
const PATIENCE: Duration = Duration::from_secs(1);
/// What it may keep of that when the attack is over.
const KEPT_MIB: u64 = 32;

/// A peer with so small a budget, and an app that starts for ever.
fn peer(test: &str, more: &str) -> Peer {
    peer_of(test, &configured(more))
}

/// A peer with so small a budget, and an app that is ready and does not read what is sent to [`UNREAD`].
fn ready_peer(test: &str) -> Peer {
    let peer =
        peer_of(test, &budgeted(&app_table("start = 'at-boot'\nready = { path = '/healthz' }\n")));
    let answer = asks(other(&peer), "/healthz");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    peer
}

fn peer_of(test: &str, configured: &str) -> Peer {
    more_files();
    let dir = certified(test, "peer-1");
    let file = write(&dir, configured);
    // Debug builds have the system's allocator, which keeps what is free for itself, but for pieces
    // above a bound. What is freed is to be seen.
    Peer::start_with(&file, &[("MALLOC_MMAP_THRESHOLD_", "4096")])
}

fn configured(more: &str) -> String {
    let app = "[[app]]\nname = 'shop'\nrun = ['sleep', '600']\nwaiting_max = 10000\n";
    budgeted(&format!("{app}{more}"))
}

fn budgeted(apps: &str) -> String {
    let http = format!("[http]\nmemory = '{BUDGET_MIB}MiB'\n");
    config(apps).replace("[http]\n", &http)
}

/// As many open files in this process as it may have.
fn more_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// What a process has in memory, in MiB.
fn resident(peer: &Peer) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", peer.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Another client, whose address is another.
fn other(peer: &Peer) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    let door: SocketAddr = peer.front_door().parse().unwrap();
    socket.connect(&door.into()).unwrap();
    socket.into()
}

fn asks(mut client: TcpStream, path: &str) -> String {
    client.set_read_timeout(Some(BOUND)).unwrap();
    write!(client, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

fn others_are_served(peer: &Peer) {
    let answer = asks(other(peer), "/.well-known/warmhop/readyz");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

fn refused(peer: &Peer, reason: &str) -> bool {
    let metrics = asks(admin(peer), "/metrics");
    let series = format!("warmhop_clients_refused_total{{reason=\"{reason}\"}} ");
    let count = metrics.lines().find_map(|line| line.strip_prefix(&series));
    count.unwrap_or_else(|| panic!("{reason} begins at 0: {metrics}")).trim() != "0"
}

fn admin(peer: &Peer) -> TcpStream {
    TcpStream::connect(peer.admin.trim_start_matches("http://")).unwrap()
}

/// Attacks, looks on until clients have been refused for it, and ends it.
fn withstands(peer: &Peer, attack: impl FnOnce(&dyn Fn()) -> Vec<TcpStream>) {
    let before = resident(peer);
    let bounded = || {
        let held = resident(peer).saturating_sub(before);
        assert!(held < HELD_MIB, "{held} MiB more than the {before} before");
    };
    let connections = attack(&bounded);
    wait_until("those that take most are closed", || {
        bounded();
        refused(peer, "over-budget")
    });
    others_are_served(peer);
    bounded();
    drop(connections);
    // The allocator gives it back in its own time.
    wait_within(4 * BOUND, "what it held is given back", || {
        others_are_served(peer);
        resident(peer).saturating_sub(before) < KEPT_MIB
    });
}

#[test]
fn bodies_over_http_2_that_nobody_reads_take_no_more_than_the_budget() {
    let peer = peer("attack-bodies", "");
    withstands(&peer, |bounded| {
        let connections = (0..20).filter_map(|_| {
            bounded();
            // The peer may end it in the middle.
            bodies(TcpStream::connect(peer.front_door()).unwrap(), POST).ok()
        });
        connections.collect()
    });
}

#[test]
fn bodies_over_http_2_that_a_ready_app_does_not_read_take_no_more_than_the_budget() {
    let peer = ready_peer("attack-ready-bodies");
    let post = [b"\x83\x86\x04\x07/unread".as_slice(), b"\x41\x01a"].concat();
    withstands(&peer, |bounded| {
        let connections = (0..20).filter_map(|_| {
            bounded();
            // The peer may end it in the middle.
            bodies(TcpStream::connect(peer.front_door()).unwrap(), &post).ok()
        });
        connections.collect()
    });
}

#[test]
fn long_bodies_that_a_ready_app_does_not_read_take_no_more_than_the_budget() {
    let peer = ready_peer("attack-ready-long");
    let door: SocketAddr = peer.front_door().parse().unwrap();
    let head = format!("POST {UNREAD} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n");
    let piece = [7; 64 * 1024];
    withstands(&peer, |bounded| {
        let connections = (0..1_500).map(|at| {
            if at % 50 == 0 {
                bounded();
            }
            let mut stream = TcpStream::connect_timeout(&door, PATIENCE).ok()?;
            let _ = stream.write_all(head.as_bytes());
            // As much as is taken of it; the peer may end it in the middle.
            stream.set_nonblocking(true).unwrap();
            for _ in 0..64 {
                let Ok(sent) = stream.write(&piece) else { break };
                if sent < piece.len() {
                    std::thread::yield_now();
                }
            }
            Some(stream)
        });
        connections.flatten().collect()
    });
}

/// A mesh of two such peers: the app runs at the first, and the second sends its requests there.
fn two_peers(test: &str) -> [Peer; 2] {
    more_files();
    let app = "ready = { path = '/healthz' }\nstart = ";
    let dir = certified(test, "peer-1");
    let env = [("MALLOC_MMAP_THRESHOLD_", "4096")];
    let here = budgeted(&app_table(&format!("{app}'at-boot'\n")));
    let one = Peer::start_with(&write(&dir, &here), &env);
    let seeds = format!("[mesh]\nseeds = ['{}']", mesh_addr(&one));
    let there = budgeted(&app_table(&format!("{app}'never'\n")));
    let there = there.replace("[mesh]", &seeds).replace("peer-1", "peer-2");
    let two = Peer::start_with(&write(&second(&dir, "90"), &there), &env);
    wait_until("requests reach the app by a hop", || {
        asks(other(&two), "/healthz").starts_with("HTTP/1.1 200 ")
    });
    [one, two]
}

/// Clients that ask for an answer without end and read nothing of it.
fn readers_of_nothing(peer: &Peer, looks: &dyn Fn()) -> Vec<TcpStream> {
    let door: SocketAddr = peer.front_door().parse().unwrap();
    let clients = (0..300).filter_map(|at| {
        if at % 50 == 0 {
            looks();
        }
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&door.into()).ok()?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").ok()?;
        Some(stream)
    });
    clients.collect()
}

/// What a peer counts as held for clients, in bytes.
fn counted(peer: &Peer) -> u64 {
    let metrics = asks(admin(peer), "/metrics");
    let count = metrics.lines().find_map(|line| line.strip_prefix("warmhop_clients_held_bytes "));
    count.unwrap().trim().parse().unwrap()
}

#[test]
fn answers_that_nobody_reads_take_no_more_than_the_budget() {
    let peer = ready_peer("attack-answers");
    withstands(&peer, |bounded| readers_of_nothing(&peer, bounded));
}

#[test]
fn answers_by_a_hop_that_nobody_reads_take_no_more_than_the_budget_at_either_end() {
    let [one, two] = two_peers("attack-answers-by-a-hop");
    let before = [&one, &two].map(resident);
    // While requests are ended, what they had written to the link stays until the other end has it.
    let is_bounded = || {
        let held = [&one, &two].into_iter().zip(before);
        held.map(|(peer, before)| resident(peer).saturating_sub(before)).all(|it| it < HELD_MIB)
    };
    let clients = readers_of_nothing(&two, &|| ());
    wait_within(4 * BOUND, "both ends count what they hold, and that is bounded", || {
        let is_counted = counted(&one).min(counted(&two)) > 1 << 20;
        let are_ended = refused(&one, "hop-over-budget") || refused(&two, "over-budget");
        is_counted && are_ended && is_bounded()
    });
    others_are_served(&two);
    drop(clients);
    wait_within(4 * BOUND, "neither counts anything any more", || {
        counted(&one).max(counted(&two)) < 1 << 20
    });
}

/// A path of an app whose body it does not read.
const UNREAD: &str = "/unread";
/// A request's fields: `POST http://a/`.
const POST: &[u8] = b"\x83\x86\x84\x41\x01a";

/// Opens as many requests with the fields `post` as it may, and sends as much of each one's body as it may.
fn bodies(mut stream: TcpStream, post: &[u8]) -> std::io::Result<TcpStream> {
    stream.set_read_timeout(Some(BOUND))?;
    stream.write_all(H2_PREFACE)?;
    stream.write_all(&frame(4, 0, 0, &[]))?;
    let allowed = Allowed::read(&mut stream)?;
    // From here on they hold.
    stream.write_all(&frame(4, 1, 0, &[]))?;
    let mut left = allowed.in_all;
    for at in 0..allowed.streams {
        let id = 2 * at + 1;
        stream.write_all(&frame(1, 4, id, post))?;
        let body = allowed.each.min(left);
        left -= body;
        for piece in vec![7; body].chunks(16 * 1024) {
            stream.write_all(&frame(0, 0, id, piece))?;
        }
    }
    Ok(stream)
}

const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A request's fields: `GET http://a/`.
const GET: &[u8] = b"\x82\x86\x84\x41\x01a";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What a client may send at first.
struct Allowed {
    streams: u32,
    each: usize,
    in_all: usize,
}

impl Allowed {
    /// As the first frames of a peer tell it.
    fn read(stream: &mut TcpStream) -> std::io::Result<Self> {
        let mut allowed = Self { streams: 100, each: 65_535, in_all: 65_535 };
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        let mut answered = 0;
        // Its settings, and the window of the connection.
        while answered < 2 {
            let mut head = [0; 9];
            stream.read_exact(&mut head)?;
            let mut payload = vec![0; number(&[0, head[0], head[1], head[2]]) as usize];
            stream.read_exact(&mut payload)?;
            match (head[3], head[4]) {
                (4, 0) => {
                    answered += 1;
                    for setting in payload.chunks_exact(6) {
                        match setting[1] {
                            3 => allowed.streams = number(&setting[2..]),
                            4 => allowed.each = number(&setting[2..]) as usize,
                            _ => {}
                        }
                    }
                }
                (8, _) => {
                    answered += 1;
                    allowed.in_all += number(&payload) as usize;
                }
                _ => {}
            }
        }
        Ok(allowed)
    }
}

#[test]
fn heads_that_never_end_take_no_more_than_the_budget() {
    let peer = peer("attack-heads", "");
    let head = format!("GET / HTTP/1.1\r\nX-Long: {}", "x".repeat(60_000));
    let door: SocketAddr = peer.front_door().parse().unwrap();
    withstands(&peer, |bounded| {
        // All at once: those that are to end have not ended yet when others come.
        let connections = (0..3_000).map(|at| {
            if at % 50 == 0 {
                bounded();
            }
            // On a busy machine, a thread of the peer may not get its turn to accept them.
            let mut stream = TcpStream::connect_timeout(&door, PATIENCE).ok()?;
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            // The peer may end it in the middle.
            let _ = stream.write_all(head.as_bytes());
            Some(stream)
        });
        connections.flatten().collect()
    });
}

#[test]
fn clients_that_break_the_rules_of_http_2_again_and_again_do_not_fill_the_log() {
    let peer = peer("attack-resets", "");
    let asks_and_resets = |id| [frame(1, 5, id, GET), frame(3, 0, id, &[0, 0, 0, 8])].concat();
    let all: Vec<u8> = (0..100).flat_map(|at| asks_and_resets(2 * at + 1)).collect();
    for _ in 0..5 {
        let mut stream = TcpStream::connect(peer.front_door()).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        // The peer may end it in the middle.
        let _ = stream.write_all(&[H2_PREFACE, &frame(4, 0, 0, &[]), &all].concat());
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let before = peer.logged_before("a client broke the rules of HTTP/2");
    let of_library: Vec<_> = before.iter().filter(|line| line.contains("h2::")).collect();
    assert!(of_library.is_empty(), "{of_library:#?}");
}

#[test]
fn requests_that_are_refused_again_and_again_do_not_fill_the_log() {
    const REQUESTS: usize = 2_000;
    let peer = peer("attack-refused", "");
    let mut client = TcpStream::connect(peer.front_door()).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    let mut asked = "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n".repeat(REQUESTS);
    // One of another kind, which ends the connection.
    asked.push_str("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n");
    client.write_all(asked.as_bytes()).unwrap();
    let mut answers = String::new();
    client.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 400 ").count(), REQUESTS);
    let before = peer.logged_before("no-connect");
    let lines = before.iter().filter(|line| line.contains("bad-host")).count();
    assert!(lines > 0 && lines < REQUESTS, "{lines}");
}

#[test]
fn hundreds_of_connections_to_the_admin_listener_leave_health_its_places() {
    let peer = peer("attack-admin", "");
    let mut held = Vec::new();
    for at in 0..384 {
        let mut stream = admin(&peer);
        let what = match at % 3 {
            0 => "",
            1 => "GET /v1/status HTTP/1.1\r\nHost: ",
            // An answer that never ends, and is not read.
            _ => "GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n",
        };
        // One of those before may give way to it, and so may it.
        let _ = stream.write_all(what.as_bytes());
        held.push(stream);
        if at % 64 == 63 {
            for path in ["/healthz", "/readyz"] {
                let answer = asks(admin(&peer), path);
                assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
            }
        }
    }
    drop(held);
    wait_until("the others are answered again", || peer.run(&["status"]).0 == 0);
}

#[test]
fn a_thousand_idle_connections_from_one_address_leave_another_its_place() {
    more_files();
    let dir = certified("attack-idle", "peer-1");
    let file = write(&dir, &configured(""));
    let peer = Peer::from_command(&mut with_files(600, &file));
    let mut idle = Vec::new();
    for at in 0..1_000 {
        idle.push(TcpStream::connect(peer.front_door()).unwrap());
        if at % 250 == 249 {
            others_are_served(&peer);
        }
    }
    assert!(refused(&peer, "gave-way"));
}

/// A peer that may have so many files open.
fn with_files(open: u64, file: &Path) -> Command {
    let mut limited = Command::new("sh");
    let script = format!("ulimit -n {open} && exec \"$@\"");
    limited.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_warmhop")]);
    limited.args(["run", "--config", text(file), "--log", "json"]).stdin(Stdio::null());
    limited
}
