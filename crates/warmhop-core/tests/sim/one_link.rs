//! One link of three peers is cut for longer than anybody is suspected for before it is taken for gone,
//! while the third peer hears both ends. Sessions are begun meanwhile, and a peer dies right after: what was
//! answered is there, at every peer, once all has healed.

use std::rc::Rc;
use std::time::Duration;

use warmhop_core::config::{AppPolicy, SessionPolicy};

use crate::calls::Does;
use crate::client::Client;
use crate::narrate::Narrator;
use crate::peer::Peer;
use crate::prng::Prng;
use crate::reference::read_list;
use crate::run::{Report, finish, report};
use crate::world::{Knobs, To, World, sleep};

/// The ends of the cut.
const CUT: (usize, usize) = (0, 1);
/// How long it lasts.
const CUT_MS: u64 = 50_000;
/// When sessions are begun, after it began: nobody is suspected for so long.
const BEGUN_AFTER_MS: u64 = 36_000;
pub(crate) const CLIENTS: usize = 6;

fn knobs(rng: &mut Prng, peers: usize, copies: usize) -> Knobs {
    Knobs {
        peers,
        clients: CLIENTS,
        resting: 0,
        keepers: 0,
        policy: SessionPolicy::default().with(|made| {
            made.ttl = Duration::from_secs(1800);
            made.copies = copies;
        }),
        seeds: (0..peers).map(|node| (0..peers).filter(|at| *at != node).collect()).collect(),
        apps: vec![AppPolicy::default(); peers],
        gentle: true,
        short_ttl: false,
        forgetful: false,
        fleeting: false,
        faults_ms: CUT_MS,
        start_ms: *rng.pick(&[(50, 300), (300, 3_000)]),
    }
}

/// Peers that have met, among which nothing goes wrong yet.
pub(crate) fn healthy(seed: u64, listening: bool, peers: usize, copies: usize) -> Rc<World> {
    healthy_where(seed, listening, peers, copies, |_| {})
}

/// The same, after they have run for so long.
pub(crate) fn healthy_for(seed: u64, listening: bool, peers: usize, ms: u64) -> Rc<World> {
    begin_mesh(seed, listening, (peers, 3), ms, |_| {})
}

pub(crate) fn healthy_where(
    seed: u64,
    listening: bool,
    peers: usize,
    copies: usize,
    differ: impl FnOnce(&mut Knobs),
) -> Rc<World> {
    begin_mesh(seed, listening, (peers, copies), 20_000, differ)
}

fn begin_mesh(
    seed: u64,
    listening: bool,
    (peers, copies): (usize, usize),
    ms: u64,
    differ: impl FnOnce(&mut Knobs),
) -> Rc<World> {
    let mut rng = Prng(seed);
    let mut knobs = knobs(&mut rng, peers, copies);
    differ(&mut knobs);
    let world = World::new(knobs, rng, Narrator::new(listening));
    world.net.borrow_mut().heal();
    world.faults_on.set(false);
    for node in 0..peers {
        Peer::start(&world, node);
    }
    world.run_until(world.now() + ms);
    world
}

/// What differs from run to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scene {
    /// How many members a session has. Of two, either goes on alone once the other is gone.
    pub(crate) copies: usize,
    /// Where sessions are begun.
    pub(crate) begun_at: usize,
    /// Whose process dies.
    pub(crate) victim: usize,
}

pub(crate) fn run(seed: u64, listening: bool, scene: Scene) -> Report {
    let Scene { copies, begun_at, victim } = scene;
    let world = healthy(seed, listening, 3, copies);
    let end = world.now() + CUT_MS;
    {
        let mut net = world.net.borrow_mut();
        net.cut(CUT.0, CUT.1, end);
        net.cut(CUT.1, CUT.0, end);
    }
    world.run_until(world.now() + BEGUN_AFTER_MS);
    let clients: Vec<Rc<Client>> = (0..CLIENTS).map(|name| Client::new(&world, name)).collect();
    let begun: Vec<_> = clients.iter().map(|_| Rc::default()).collect();
    for (client, list) in clients.iter().zip(&begun) {
        finish(&world, begin(Rc::clone(&world), Rc::clone(client), begun_at, Rc::clone(list)));
    }
    crate::faults::end(&world, victim);
    world.count("crashes");
    crate::faults::restart_after(&world, victim, world.between(50, 4_000));
    for (client, list) in clients.iter().zip(&begun) {
        finish(&world, look(Rc::clone(&world), Rc::clone(client), Rc::clone(list), false));
    }
    world.run_until(world.now().max(end) + 15_000);
    for (client, list) in clients.iter().zip(&begun) {
        finish(&world, look(Rc::clone(&world), Rc::clone(client), Rc::clone(list), true));
    }
    report(&world)
}

pub(crate) type List = Rc<std::cell::RefCell<Vec<u16>>>;

pub(crate) async fn begin(world: Rc<World>, client: Rc<Client>, at: usize, list: List) {
    for _ in 0..2 {
        match client.demand(&world, at, Does::Append).await {
            Ok(reply) => *list.borrow_mut() = reply.answer.map_or(vec![], |it| read_list(&it).1),
            Err(what) => world.violated(client.sid(), format!("no session was begun: {what}")),
        }
    }
}

/// Nothing is answered that is not what was answered before. Until all has `healed` a peer may say that it
/// cannot tell.
async fn look(world: Rc<World>, client: Rc<Client>, list: List, healed: bool) {
    let sid = client.sid();
    for node in 0..world.knobs.peers {
        let at = crate::name(node);
        match client.demand(&world, node, Does::Read).await {
            Ok(reply) => {
                let shown = reply.answer.map_or(vec![], |it| read_list(&it).1);
                if shown != *list.borrow() {
                    let what = format!("{at} answered {shown:?} instead of {:?}", list.borrow());
                    world.violated(sid, what);
                }
                world.count("sessions looked at");
            }
            Err(what) if healed => world.violated(sid, format!("{at} did not serve: {what}")),
            Err(_) => {}
        }
        sleep(&world, To::World, 50).await;
    }
}

/// A client that only read writes twice at once, at two peers, of which one does not hear most of the members
/// that its session has. Both writes are in one session.
pub(crate) fn first_writes(seed: u64, listening: bool) -> Report {
    let world = healthy(seed, listening, 5, 3);
    let client = Client::new(&world, 0);
    let reads = {
        let (world, client) = (Rc::clone(&world), Rc::clone(&client));
        async move {
            let _ = client.demand(&world, 0, Does::Read).await;
        }
    };
    finish(&world, reads);
    let members: Vec<usize> =
        client.members().into_iter().filter_map(|member| world.node_of(member)).collect();
    let others: Vec<usize> = (0..5).filter(|node| !members.contains(node)).collect();
    let ([first, second, _], [cut_off, hears]) = (&members[..], &others[..]) else {
        world.violated(client.sid(), format!("its members are {members:?}"));
        return report(&world);
    };
    {
        let (mut net, end) = (world.net.borrow_mut(), world.now() + 20_000);
        for member in [first, second] {
            net.cut(*cut_off, *member, end);
            net.cut(*member, *cut_off, end);
        }
    }
    world.run_until(world.now() + 5_000);
    let written: Rc<std::cell::RefCell<Vec<_>>> = Rc::default();
    let cookie = client.cookie();
    let tasks = [*cut_off, *hears].map(|node| {
        let (world, written) = (Rc::clone(&world), Rc::clone(&written));
        let writer = Client::with_cookie(&world, 1 + node, cookie.clone());
        async move {
            if writer.demand(&world, node, Does::Append).await.is_ok() {
                written.borrow_mut().push(writer.sid());
            }
        }
    });
    let [one, other] = tasks;
    world.spawn(None, one);
    finish(&world, other);
    world.run_until(world.now() + 10_000);
    let written = written.borrow();
    if written.len() != 2 || written[0] != written[1] {
        world.violated(client.sid(), format!("the writes were answered under {written:?}"));
    }
    report(&world)
}

/// A peer that hears none of the two others begins sessions, and its process dies once all has healed and
/// before anybody can have made a copy: what was answered is there, or was not answered. What only looks is
/// served.
pub(crate) fn begun_while_cut_off(seed: u64, listening: bool) -> Report {
    let world = healthy(seed, listening, 3, 3);
    let end = world.now() + 20_000;
    for other in [1, 2] {
        let mut net = world.net.borrow_mut();
        net.cut(0, other, end);
        net.cut(other, 0, end);
    }
    world.run_until(world.now() + 4_000);
    let clients: Vec<Rc<Client>> = (0..CLIENTS).map(|name| Client::new(&world, name)).collect();
    for client in &clients {
        finish(&world, write_cut_off(Rc::clone(&world), Rc::clone(client)));
    }
    crate::faults::end(&world, 0);
    crate::faults::restart_after(&world, 0, 1_000);
    world.run_until(end + 15_000);
    for client in &clients {
        finish(&world, write_again(Rc::clone(&world), Rc::clone(client)));
    }
    report(&world)
}

async fn write_cut_off(world: Rc<World>, client: Rc<Client>) {
    if let Err(what) = client.demand(&world, 0, Does::Read).await {
        world.violated(client.sid(), format!("what only looks was not served: {what}"));
    }
    let asked = world.now();
    match client.demand(&world, 0, Does::Append).await {
        Ok(_) => world.count("answered by a peer that is cut off"),
        Err(what) if what != "503 session-no-majority" => {
            world.violated(client.sid(), format!("it was refused otherwise: {what}"));
        }
        Err(_) if world.now() - asked > 2_000 => {
            world.violated(client.sid(), "it was refused late".into());
        }
        Err(_) => world.count("refused by a peer that is cut off"),
    }
}

async fn write_again(world: Rc<World>, client: Rc<Client>) {
    match client.demand(&world, 1, Does::Append).await {
        Ok(reply) if reply.lost => {
            world.violated(client.sid(), "what was answered is lost".into());
        }
        Ok(_) => world.count("served once it had healed"),
        Err(what) => world.violated(client.sid(), format!("it is not served: {what}")),
    }
}

/// The owner of sessions hears none of the other members, and is asked by a peer that hears everyone.
/// Returns how long each request waited, in milliseconds.
pub(crate) fn owner_cut_off(seed: u64, listening: bool) -> (Report, Vec<u64>) {
    let world = healthy(seed, listening, 5, 3);
    // Every peer has the app ready: where it runs is not what this is about.
    for node in 0..5 {
        let (client, of) = (Client::new(&world, 10 + node), Rc::clone(&world));
        finish(&world, async move {
            let _ = client.demand(&of, node, Does::Read).await;
        });
    }
    world.run_until(world.now() + 5_000);
    let waits: Rc<std::cell::RefCell<Vec<u64>>> = Rc::default();
    for name in 0..CLIENTS {
        let client = Client::new(&world, name);
        let begins = {
            let (world, client) = (Rc::clone(&world), Rc::clone(&client));
            async move {
                let _ = client.demand(&world, 0, Does::Append).await;
            }
        };
        finish(&world, begins);
        let members: Vec<usize> =
            client.members().into_iter().filter_map(|member| world.node_of(member)).collect();
        let Some(other) = (0..5).find(|node| !members.contains(node)) else { continue };
        let end = world.now() + 20_000;
        for member in members.iter().filter(|node| **node != 0) {
            let mut net = world.net.borrow_mut();
            net.cut(0, *member, end);
            net.cut(*member, 0, end);
        }
        // They are suspected by then, and nobody has succeeded it yet.
        world.run_until(world.now() + 3_600);
        let asks = {
            let (world, waits) = (Rc::clone(&world), Rc::clone(&waits));
            async move {
                let asked = world.now();
                let served = client.demand(&world, other, Does::Append).await;
                waits.borrow_mut().push(world.now() - asked);
                if let Err(what) = served {
                    let what = format!("{} hears everyone: {what}", crate::name(other));
                    world.violated(client.sid(), what);
                }
            }
        };
        finish(&world, asks);
        world.run_until(end + 10_000);
    }
    let waits = waits.borrow().clone();
    (report(&world), waits)
}

/// The only ready copy of the app is at a peer that the sessions' owner does not hear, and the owner's own is
/// slow to start: what is asked at the owner waits for that. Returns how many waited.
pub(crate) fn ready_only_where_not_heard(seed: u64, listening: bool) -> (Report, u64) {
    let idle = |knobs: &mut Knobs| {
        knobs.apps[0] = knobs.apps[0].clone().with(|made| {
            made.stop_when_idle = Some(Duration::from_secs(4));
        });
        knobs.start_ms = (2_000, 6_000);
    };
    let world = healthy_where(seed, listening, 3, 3, idle);
    let demand = |client: &Rc<Client>, node: usize, does: Does| {
        let (of, client) = (Rc::clone(&world), Rc::clone(client));
        finish(&world, async move {
            if let Err(what) = client.demand(&of, node, does).await {
                of.violated(client.sid(), format!("{}: {what}", crate::name(node)));
            }
        });
    };
    demand(&Client::new(&world, 50), 1, Does::Read);
    let clients: Vec<Rc<Client>> = (0..CLIENTS).map(|name| Client::new(&world, name)).collect();
    for client in &clients {
        demand(client, 0, Does::Append);
    }
    // The copy of the owner has had nothing to do since, and has ended.
    world.run_until(world.now() + 12_000);
    let end = world.now() + 20_000;
    for (from, to) in [(0, 1), (1, 0)] {
        world.net.borrow_mut().cut(from, to, end);
    }
    world.run_until(world.now() + 3_600);
    let mut waited = 0;
    for client in &clients {
        let asked = world.now();
        demand(client, 0, Does::Append);
        waited += u64::from(world.now() - asked >= 1_000);
    }
    (report(&world), waited)
}
