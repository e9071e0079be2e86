//! Links that are cut between some of the peers, while others hear both ends. On Linux any address of the
//! loopback network can be sent from.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
#![allow(missing_docs, reason = "a test crate")]

mod bed;

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bed::{Bed, Client, Gate, Plan, eventually, in_time};
use http::StatusCode;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use warmhop::Mesh;
use warmhop::config::{SessionMode, StartMode};
use warmhop::ids::PeerId;

const NAMES: [&str; 4] = ["one", "two", "three", "four"];

/// What is between the peers: each advertises a port here, and listens at the same one of a loopback
/// address of its own, by which it differs from the others.
#[derive(Clone)]
struct Wires {
    ports: Vec<Arc<UdpSocket>>,
    cut: Arc<Mutex<HashSet<[usize; 2]>>>,
}

fn address_of(peer: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, u8::try_from(peer).unwrap() + 1)
}

impl Wires {
    async fn lay(tasks: &mut JoinSet<()>) -> Self {
        let mut ports = Vec::new();
        for _ in NAMES {
            ports.push(Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap()));
        }
        let wires = Self { ports, cut: Arc::default() };
        for at in 0..NAMES.len() {
            tasks.spawn(wires.clone().carry(at));
        }
        wires
    }

    fn cut(&self, one: usize, other: usize) {
        self.cut.lock().unwrap().extend([[one, other], [other, one]]);
    }

    fn heal(&self, one: usize, other: usize) {
        let mut cut = self.cut.lock().unwrap();
        cut.retain(|link| *link != [one, other] && *link != [other, one]);
    }

    /// Where what `from` sends to `to` goes, unless nowhere.
    fn route(&self, from: usize, to: usize) -> Option<SocketAddr> {
        let is_cut = self.cut.lock().unwrap().contains(&[from, to]);
        (!is_cut).then(|| self.listens(to))
    }

    /// Nobody else has this port: the one that has the same number is taken.
    fn listens(&self, peer: usize) -> SocketAddr {
        (address_of(peer), self.advertised(peer).port()).into()
    }

    fn advertised(&self, peer: usize) -> SocketAddr {
        self.ports[peer].local_addr().unwrap()
    }

    /// Carries what is sent to the peer `to`, and what it answers.
    async fn carry(self, to: usize) {
        let mut flows: HashMap<usize, Arc<UdpSocket>> = HashMap::new();
        let mut back = JoinSet::new();
        let mut datagram = vec![0; 65_536];
        loop {
            let Ok((len, source)) = self.ports[to].recv_from(&mut datagram).await else { continue };
            let Some(from) = (0..NAMES.len()).find(|at| address_of(*at) == source.ip()) else {
                continue;
            };
            let flow = match flows.get(&from) {
                Some(flow) => Arc::clone(flow),
                None => {
                    let flow = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                    back.spawn(self.clone().carry_back(Arc::clone(&flow), from, to));
                    flows.insert(from, Arc::clone(&flow));
                    flow
                }
            };
            if let Some(at) = self.route(from, to) {
                // What cannot be sent now is lost, as it may be in any network.
                let _ = flow.send_to(&datagram[..len], at).await;
            }
        }
    }

    async fn carry_back(self, flow: Arc<UdpSocket>, from: usize, to: usize) {
        let mut datagram = vec![0; 65_536];
        loop {
            let Ok((len, _)) = flow.recv_from(&mut datagram).await else { continue };
            if let Some(at) = self.route(to, from) {
                let _ = self.ports[to].send_to(&datagram[..len], at).await;
            }
        }
    }
}

/// The first so many peers, with the app ready on each, and what is between them.
async fn peers(count: usize, tasks: &mut JoinSet<()>) -> (Bed, Wires) {
    let wires = Wires::lay(tasks).await;
    let (mut bed, gate) = (Bed::new(), Gate::new(true));
    for (at, name) in NAMES.into_iter().enumerate().take(count) {
        let plan =
            Plan { session: SessionMode::Portable, start: StartMode::AtBoot, ..Plan::default() };
        let (listens, advertised) = (wires.listens(at), wires.advertised(at));
        let mesh = bed
            .add_built(name, plan, &gate, |builder| {
                builder.mesh_listen(listens).advertise(advertised)
            })
            .await;
        eventually("the app is ready", || mesh.status().apps[0].state == "ready").await;
    }
    (bed, wires)
}

/// As long as the link is cut each of the two is the entry of requests of the same sessions, and no request
/// of unknown outcome may be due to that: neither hears the other, and the others hear both.
#[tokio::test]
async fn a_session_that_is_used_at_both_ends_of_a_cut_link_stays_with_its_owner() {
    let mut tasks = JoinSet::new();
    let (bed, wires) = peers(4, &mut tasks).await;
    let (one, two) = (&bed.peers[0], &bed.peers[1]);
    let mut clients = vec![Client::default(); 6];
    let mut expected = vec![String::new(); clients.len()];
    for (at, client) in clients.iter_mut().enumerate() {
        let begun = client.post([one, two][at % 2], "/add", "a").await;
        assert_eq!((begun.status, begun.text.as_str()), (StatusCode::OK, "a "));
        expected[at] = begun.text;
    }
    wires.cut(0, 1);
    eventually("the link is missed", || !hears(one, "two") && !hears(two, "one")).await;
    // For longer than it takes until a member takes a session over whose owner it does not hear.
    let end = Instant::now() + Duration::from_secs(12);
    let mut rounds = 0;
    while Instant::now() < end || rounds < 10 {
        rounds += 1;
        for (at, client) in clients.iter_mut().enumerate() {
            for peer in [one, two] {
                let added = client.post(peer, "/add", "b").await;
                expected[at].push_str("b ");
                let answer = (added.status, added.text.as_str());
                assert_eq!(answer, (StatusCode::OK, expected[at].as_str()), "round {rounds}");
            }
        }
        // What a session may hold is bounded.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn hears(mesh: &Mesh, other: &str) -> bool {
    mesh.status().peers.iter().any(|peer| peer.name == other && peer.alive)
}

#[tokio::test]
async fn a_session_is_served_by_a_detour_where_its_owner_and_members_are_out_of_reach() {
    let mut tasks = JoinSet::new();
    let (bed, wires) = peers(4, &mut tasks).await;
    let (one, four) = (&bed.peers[0], &bed.peers[3]);
    // Each has the owner and two of the three others as its members: of so many, some have one and two.
    let mut clients = vec![Client::default(); 8];
    for client in &mut clients {
        let begun = client.post(one, "/add", "a").await;
        assert_eq!((begun.status, begun.text.as_str()), (StatusCode::OK, "a "));
    }
    wires.cut(3, 0);
    wires.cut(3, 1);
    let (two, missed) = (&bed.peers[1], "the links are missed");
    eventually(missed, || !hears(four, "one") && !hears(four, "two")).await;
    eventually(missed, || !hears(one, "four") && !hears(two, "four")).await;
    assert!(hears(four, "three"));
    for client in &mut clients {
        let read = client.get(four, "/").await;
        assert_eq!((read.status, read.text.as_str()), (StatusCode::OK, "a "), "{:?}", read.headers);
        let added = client.post(four, "/add", "b").await;
        assert_eq!((added.status, added.text.as_str()), (StatusCode::OK, "a b "));
        // Nor does the owner's side see another history.
        let seen = client.get(one, "/").await;
        assert_eq!((seen.status, seen.text.as_str()), (StatusCode::OK, "a b "));
    }
}

/// A peer that nobody hears is taken for dead after 30 s.
const TAKEN_FOR_DEAD_AFTER: Duration = Duration::from_secs(35);

/// Nothing proves that the other is gone: what goes on here is a copy of the session, and says so.
#[tokio::test]
async fn of_two_peers_whose_link_is_cut_either_goes_on_with_a_copy() {
    let mut tasks = JoinSet::new();
    let (bed, wires) = peers(2, &mut tasks).await;
    let (one, two) = (&bed.peers[0], &bed.peers[1]);
    eventually("they hear each other", || hears(one, "two") && hears(two, "one")).await;
    let mut client = Client::default();
    client.post(one, "/add", "a").await;
    assert_eq!(client.post(one, "/add", "b").await.text, "a b ");
    wires.cut(0, 1);
    eventually("the link is missed", || !hears(two, "one")).await;
    let forked = in_time("the other goes on", async {
        loop {
            let answer = client.post(two, "/add", "c").await;
            if answer.status == StatusCode::OK {
                break answer;
            }
        }
    })
    .await;
    assert_eq!((forked.text.as_str(), forked.field("warmhop-session-forked")), ("a b c ", "?1"));
    let next = client.post(two, "/add", "d").await;
    assert_eq!((next.text.as_str(), next.field("warmhop-session-forked")), ("a b c d ", ""));
    assert!(two.metrics().contains("warmhop_sessions_forked_total 1"));
}

/// It cannot tell peers that are down from a cut link: what it says to its client names them. What to
/// do is for the operator (docs/observability.md).
#[tokio::test]
async fn a_peer_that_hears_nobody_refuses_changes_and_says_whom_it_does_not_hear() {
    let mut tasks = JoinSet::new();
    let (bed, wires) = peers(3, &mut tasks).await;
    let one = &bed.peers[0];
    eventually("they hear each other", || hears(one, "two") && hears(one, "three")).await;
    let early = one.write_off(&PeerId::new("two").unwrap()).unwrap_err().to_string();
    assert!(early.contains("it is heard"), "{early}");
    for other in [1, 2] {
        wires.cut(0, other);
    }
    eventually("it hears nobody", || !hears(one, "two") && !hears(one, "three")).await;
    assert_eq!(Client::default().get(one, "/").await.status, StatusCode::OK, "it only reads");
    // A process that began a moment ago holds nothing back: whether that was carried out is unknown.
    let refused = in_time("its change is refused", async {
        loop {
            let answer = Client::default().post(one, "/add", "a").await;
            if answer.status != StatusCode::BAD_GATEWAY {
                break answer;
            }
        }
    })
    .await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.text);
    for part in ["session-no-majority", "two", "three", "not been heard for"] {
        assert!(refused.text.contains(part), "{part}: {}", refused.text);
    }
    let ways_out = ["without_majority", "members --gone"];
    assert!(!ways_out.iter().any(|it| refused.text.contains(it)), "these are no client's business");
    // On an operator's word that the others never come back it goes on alone.
    tokio::time::sleep(TAKEN_FOR_DEAD_AFTER).await;
    for name in &NAMES[1..3] {
        let name = PeerId::new(name).unwrap();
        eventually("nobody has heard it for long", || one.write_off(&name).is_ok()).await;
    }
    let twice = one.write_off(&PeerId::new("two").unwrap()).unwrap_err().to_string();
    assert!(twice.contains("two cannot be declared gone"), "{twice}");
    let mut client = Client::default();
    for expected in ["a ", "a a "] {
        let served = client.post(one, "/add", "a").await;
        assert_eq!((served.status, served.text.as_str()), (StatusCode::OK, expected));
    }
}

/// Reads at `mesh` until it is served: links form again in their own time.
async fn read(client: &mut Client, mesh: &Mesh) -> String {
    in_time("a read is served", async {
        loop {
            let read = client.get(mesh, "/").await;
            if read.status == StatusCode::OK {
                return read.text;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_peer_that_others_hear_holds_what_is_begun_while_its_link_is_cut_for_long() {
    let mut tasks = JoinSet::new();
    let (bed, wires) = peers(3, &mut tasks).await;
    let (one, two) = (&bed.peers[0], &bed.peers[1]);
    wires.cut(0, 1);
    eventually("the link is missed", || !hears(one, "two") && !hears(two, "one")).await;
    tokio::time::sleep(TAKEN_FOR_DEAD_AFTER).await;
    let mut clients = vec![Client::default(); 8];
    for (at, client) in clients.iter_mut().enumerate() {
        let begun = client.post(&bed.peers[at % 2], "/add", "a").await;
        assert_eq!((begun.status, begun.text.as_str()), (StatusCode::OK, "a "));
    }
    // The third, whom both heard, is out of reach before anybody hears the other again.
    wires.cut(2, 0);
    wires.cut(2, 1);
    eventually("the third is missed", || !hears(one, "three") && !hears(two, "three")).await;
    wires.heal(0, 1);
    for client in &mut clients {
        assert_eq!(read(client, one).await, "a ");
        assert_eq!(read(client, two).await, "a ");
    }
}

/// Whether the first owns a session or the second does, both hold it, and only both together could leave the
/// third out.
#[tokio::test]
async fn the_peer_that_stays_serves_alone_while_one_is_cut_off_and_another_leaves() {
    let mut tasks = JoinSet::new();
    let (bed, wires) = peers(3, &mut tasks).await;
    let [one, two, three] = &bed.peers[..] else { panic!("three peers") };
    let mut clients = vec![Client::default(); 8];
    for (at, client) in clients.iter_mut().enumerate() {
        let begun = client.post([one, two][at % 2], "/add", "a").await;
        assert_eq!((begun.status, begun.text.as_str()), (StatusCode::OK, "a "));
    }
    wires.cut(2, 0);
    wires.cut(2, 1);
    eventually("the third is missed", || !hears(one, "three") && !hears(two, "three")).await;
    one.shutdown().await;
    for client in &mut clients {
        let added = client.post(two, "/add", "b").await;
        let answer = (added.status, added.text.as_str());
        assert_eq!(answer, (StatusCode::OK, "a b "), "{:?}", added.headers);
    }
    // The third still counts itself as one of three.
    let refused = clients[0].clone().post(three, "/add", "x").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.text);
    wires.heal(2, 1);
    eventually("the third is heard again", || hears(two, "three") && hears(three, "two")).await;
    for client in &mut clients {
        assert_eq!(read(client, three).await, "a b ");
        let added = client.post(three, "/add", "c").await;
        assert_eq!((added.status, added.text.as_str()), (StatusCode::OK, "a b c "));
        assert_eq!(read(client, two).await, "a b c ");
    }
}
