//! Peers leave a mesh of three for longer than a restart takes, in good order, and nobody can take their
//! places: what was answered is there all the same, wherever anybody is left.

use std::rc::Rc;

use crate::calls::Does;
use crate::client::Client;
use crate::one_link::{CLIENTS, List, begin, healthy};
use crate::peer::drain;
use crate::reference::read_list;
use crate::run::{Report, finish, report};
use crate::world::World;

/// How long a peer is away before anything else happens.
const AWAY_MS: u64 = 30_000;

type Begun = Vec<(Rc<Client>, List)>;

/// Clients whose sessions hold something, begun at `node`.
fn sessions(world: &Rc<World>, node: usize) -> Begun {
    let clients = (0..CLIENTS).map(|name| (Client::new(world, name), List::default()));
    let clients: Begun = clients.collect();
    for (client, list) in &clients {
        finish(world, begin(Rc::clone(world), Rc::clone(client), node, Rc::clone(list)));
    }
    clients
}

fn leave(world: &Rc<World>, node: usize) {
    let Some(peer) = world.peer(node) else { return };
    peer.draining.set(true);
    world.spawn(Some(peer.life), drain(peer));
    world.run_until(world.now() + AWAY_MS);
    if world.peer(node).is_some() {
        world.violated(None, format!("{} does not come to an end", crate::name(node)));
    }
}

/// Every session is served at `node`, holds what was answered last, and takes changes.
fn look(world: &Rc<World>, node: usize, clients: &Begun) {
    for (client, list) in clients {
        let (of, client, list) = (Rc::clone(world), Rc::clone(client), Rc::clone(list));
        finish(world, async move {
            match client.demand(&of, node, Does::Append).await {
                Err(what) => {
                    let what = format!("{} did not serve: {what}", crate::name(node));
                    of.violated(client.sid(), what);
                }
                Ok(reply) => {
                    let shown = reply.answer.map_or(vec![], |it| read_list(&it).1);
                    if reply.lost || !shown.starts_with(&list.borrow()) {
                        let what = format!("{shown:?} instead of {:?}", list.borrow());
                        of.violated(client.sid(), format!("{}: {what}", crate::name(node)));
                    }
                    *list.borrow_mut() = shown;
                    of.count("sessions looked at");
                }
            }
        });
    }
}

/// Two of three leave, one after the other: the last one serves alone.
pub(crate) fn one_after_the_other(seed: u64, listening: bool, begun_at: usize) -> Report {
    let world = healthy(seed, listening, 3, 3);
    let clients = sessions(&world, begun_at);
    leave(&world, 2);
    look(&world, 1, &clients);
    leave(&world, 1);
    look(&world, 0, &clients);
    crate::faults::restart_after(&world, 1, 10);
    crate::faults::restart_after(&world, 2, 10);
    world.run_until(world.now() + AWAY_MS);
    look(&world, 2, &clients);
    report(&world)
}

/// One of three is away, and one of the other two crashes and comes back without what it held.
pub(crate) fn one_away_and_one_crash(seed: u64, listening: bool, victim: usize) -> Report {
    let world = healthy(seed, listening, 3, 3);
    let clients = sessions(&world, 0);
    leave(&world, 2);
    look(&world, 1, &clients);
    world.run_until(world.now() + 1_000);
    crate::faults::end(&world, victim);
    crate::faults::restart_after(&world, victim, 500);
    world.run_until(world.now() + AWAY_MS);
    look(&world, victim, &clients);
    report(&world)
}
