//! Peers die, and their clients ask the others at once: for sessions that never held anything, which are known
//! by the tokens of clients that only read, and for sessions of which too few holders are left.

use std::cell::RefCell;
use std::rc::Rc;

use crate::calls::Does;
use crate::client::Client;
use crate::one_link::healthy;
use crate::run::{Report, finish, report};
use crate::world::World;

const CLIENTS: usize = 6;

/// What happens after the sessions were begun at the first peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scene {
    pub(crate) peers: usize,
    pub(crate) copies: usize,
    /// Those that were started anew before.
    pub(crate) restarted: &'static [usize],
    /// Those that die.
    pub(crate) die: &'static [usize],
    /// Whether they are started again at once.
    pub(crate) come_back: bool,
}

/// How long one request took, in milliseconds, and how it ended: whether its client learned that its session is
/// lost.
#[derive(Debug, Clone)]
pub(crate) struct Wait {
    pub(crate) at: usize,
    pub(crate) took_ms: u64,
    pub(crate) end: Result<bool, String>,
}

/// Sessions of clients that do this once at the first peer; then the peers die, and so long after that each of the
/// others is asked with the same tokens, and `again` after that. What came of each round.
pub(crate) fn run(
    seed: u64,
    listening: bool,
    scene: Scene,
    does: Does,
    (after_ms, again_ms): (u64, Option<u64>),
) -> (Report, Vec<Vec<Wait>>) {
    let world = healthy(seed, listening, scene.peers, scene.copies);
    for node in 0..scene.peers {
        warm(&world, node);
    }
    world.run_until(world.now() + 3_000);
    let clients: Vec<Rc<Client>> = (0..CLIENTS).map(|name| Client::new(&world, name)).collect();
    for client in &clients {
        if let Err(what) = ask(&world, client, 0, does) {
            world.violated(client.sid(), format!("no session was begun: {what}"));
        }
    }
    world.run_until(world.now() + 5_000);
    for node in scene.restarted {
        crate::faults::end(&world, *node);
        crate::faults::restart_after(&world, *node, 200);
        world.run_until(world.now() + 5_000);
        warm(&world, *node);
        world.run_until(world.now() + 10_000);
    }
    for node in scene.die {
        crate::faults::end(&world, *node);
        if scene.come_back {
            crate::faults::restart_after(&world, *node, 200);
        }
    }
    let rounds = [Some(after_ms), again_ms].into_iter().flatten();
    let waits = rounds.map(|after_ms| {
        world.run_until(world.now() + after_ms);
        look(&world, &clients)
    });
    let waits = waits.collect();
    (report(&world), waits)
}

/// Has a peer start the app: where it runs is not what this is about.
fn warm(world: &Rc<World>, node: usize) {
    let _ = ask(world, &Client::new(world, 50 + node), node, Does::Read);
}

/// Each client asks every peer, with the token that it had before.
fn look(world: &Rc<World>, clients: &[Rc<Client>]) -> Vec<Wait> {
    let peers = world.knobs.peers;
    let mut waits = Vec::new();
    for (client, first) in clients.iter().zip((0..peers).cycle()) {
        for at in (first..peers).chain(0..first).filter(|at| world.peer(*at).is_some()) {
            let same = Client::with_cookie(world, client.name, client.cookie());
            let asked = world.now();
            let end = ask(world, &same, at, Does::Read);
            waits.push(Wait { at, took_ms: world.now() - asked, end });
        }
    }
    waits
}

/// Asks once, to the end; whether the client learned that its session is lost.
fn ask(world: &Rc<World>, client: &Rc<Client>, at: usize, does: Does) -> Result<bool, String> {
    let end = Rc::new(RefCell::new(Err("it has no end".to_owned())));
    let (of, client, into) = (Rc::clone(world), Rc::clone(client), Rc::clone(&end));
    finish(world, async move {
        *into.borrow_mut() = client.demand(&of, at, does).await.map(|reply| reply.lost);
    });
    end.borrow().clone()
}
