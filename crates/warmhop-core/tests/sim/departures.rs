//! Peers leave a mesh of three for longer than a restart takes, in good order, and nobody can take their
//! places: what was answered is there all the same, wherever anybody is left, even if another has been
//! silent for longer than that.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::calls::Does;
use crate::client::Client;
use crate::one_link::{CLIENTS, List, begin, healthy};
use crate::peer::drain;
use crate::reference::read_list;
use crate::registers;
use crate::run::{Report, finish, report};
use crate::world::{To, World, sleep};

/// How long a peer is away before anything else happens.
const AWAY_MS: u64 = 30_000;

/// A client, and what its session held when it was answered last.
pub(crate) type Begun = (Rc<Client>, List);

/// Clients whose sessions hold something, begun at `node`.
pub(crate) fn sessions(world: &Rc<World>, node: usize) -> Vec<Begun> {
    let clients = (0..CLIENTS).map(|name| (Client::new(world, name), List::default()));
    let clients: Vec<Begun> = clients.collect();
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
pub(crate) fn look(world: &Rc<World>, node: usize, clients: &[Begun]) {
    for (client, list) in clients {
        let (of, client, list) = (Rc::clone(world), Rc::clone(client), Rc::clone(list));
        let sid = client.sid();
        finish(world, async move {
            match client.demand(&of, node, Does::Append).await {
                Err(what) => {
                    let what = format!("{} did not serve: {what}", crate::name(node));
                    of.violated(sid, what);
                }
                Ok(reply) => {
                    let shown = reply.answer.map_or(vec![], |it| read_list(&it).1);
                    if reply.lost || !shown.starts_with(&list.borrow()) {
                        let what = format!("{shown:?} instead of {:?}", list.borrow());
                        of.violated(sid, format!("{}: {what}", crate::name(node)));
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

/// Why a peer is not heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silent {
    /// It crashed, and is not started again.
    Dead,
    /// It is cut off, and comes back with what it held once all others are there again.
    CutOff,
}

/// What differs from run to run in [`one_silent_and_one_restarts`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Degraded {
    /// Where sessions are begun.
    pub(crate) begun_at: usize,
    /// Who restarts: the first or the second peer.
    pub(crate) leaver: usize,
    pub(crate) silent: Silent,
}

/// How many registers are kept.
pub(crate) const REGISTERS: u64 = 4;

/// What each register showed last.
pub(crate) type Lists = Rc<RefCell<BTreeMap<u64, Vec<u16>>>>;

/// The third of three peers is silent, and one of the other two restarts in good order: the one that stays
/// serves what both held, alone, and the next process of the other takes it in again.
pub(crate) fn one_silent_and_one_restarts(seed: u64, listening: bool, scene: Degraded) -> Report {
    let Degraded { begun_at, leaver, silent } = scene;
    let stays = 1 - leaver;
    let world = healthy(seed, listening, 3, 3);
    let (clients, lists) = (sessions(&world, begun_at), Lists::default());
    look_at_registers(&world, begun_at, &lists);
    match silent {
        Silent::Dead => crate::faults::end(&world, 2),
        Silent::CutOff => {
            let mut net = world.net.borrow_mut();
            for other in 0..2 {
                net.cut(2, other, u64::MAX);
                net.cut(other, 2, u64::MAX);
            }
        }
    }
    world.run_until(world.now() + AWAY_MS);
    for at in [leaver, stays] {
        look(&world, at, &clients);
        look_at_registers(&world, at, &lists);
    }
    leave(&world, leaver);
    look(&world, stays, &clients);
    look_at_registers(&world, stays, &lists);
    crate::faults::restart_after(&world, leaver, 10);
    world.run_until(world.now() + AWAY_MS);
    for at in [leaver, stays] {
        look(&world, at, &clients);
        look_at_registers(&world, at, &lists);
    }
    if silent == Silent::CutOff {
        world.net.borrow_mut().heal();
        world.run_until(world.now() + AWAY_MS);
        look(&world, 2, &clients);
        look_at_registers(&world, 2, &lists);
    }
    report(&world)
}

/// What differs from run to run in [`one_leaves_and_one_crashes`] and [`one_crashes_as_another_leaves`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crash {
    /// Where sessions are begun.
    pub(crate) begun_at: usize,
    /// Who crashes: the first or the second peer.
    pub(crate) victim: usize,
    /// How long the second of the two events comes after the first.
    pub(crate) after_ms: u64,
}

/// The third of three peers leaves in good order; while it is down, one of the other two crashes, and both
/// are started again. The one that never stopped holds everything, and everyone serves that.
pub(crate) fn one_leaves_and_one_crashes(seed: u64, listening: bool, scene: Crash) -> Report {
    let Crash { begun_at, victim, after_ms } = scene;
    let world = healthy(seed, listening, 3, 3);
    let (clients, lists) = (sessions(&world, begun_at), Lists::default());
    look_at_registers(&world, begun_at, &lists);
    world.run_until(world.now() + 3_000);
    let Some(leaver) = world.peer(2) else { return report(&world) };
    leaver.draining.set(true);
    world.spawn(Some(leaver.life), drain(leaver));
    let latest = world.now() + AWAY_MS;
    while world.peer(2).is_some() && world.now() < latest {
        world.run_until(world.now() + 50);
    }
    world.run_until(world.now() + after_ms);
    crate::faults::end(&world, victim);
    crate::faults::restart_after(&world, victim, 500);
    crate::faults::restart_after(&world, 2, 500);
    world.run_until(world.now() + AWAY_MS);
    for at in [victim, 2, 1 - victim, victim] {
        look(&world, at, &clients);
        look_at_registers(&world, at, &lists);
    }
    report(&world)
}

/// One of three peers crashes, and another leaves in good order before anybody can have missed the first:
/// the third serves what all held, alone.
pub(crate) fn one_crashes_as_another_leaves(seed: u64, listening: bool, scene: Crash) -> Report {
    let Crash { begun_at, victim, after_ms } = scene;
    let world = healthy(seed, listening, 3, 3);
    let (clients, lists) = (sessions(&world, begun_at), Lists::default());
    look_at_registers(&world, begun_at, &lists);
    world.run_until(world.now() + 3_000);
    crate::faults::end(&world, victim);
    world.run_until(world.now() + after_ms);
    leave(&world, 2);
    look(&world, 1 - victim, &clients);
    look_at_registers(&world, 1 - victim, &lists);
    report(&world)
}

/// Each register takes a change at `node` and shows all of those before.
pub(crate) fn look_at_registers(world: &Rc<World>, node: usize, lists: &Lists) {
    look_at_registers_of(world, node, 0, lists);
}

/// The same of other registers for each `group`.
fn look_at_registers_of(world: &Rc<World>, node: usize, group: u64, lists: &Lists) {
    let (of, lists) = (Rc::clone(world), Rc::clone(lists));
    finish(world, async move {
        for number in group * REGISTERS..(group + 1) * REGISTERS {
            let sid = registers::sid_of(number);
            let before = lists.borrow().get(&number).cloned().unwrap_or_default();
            match registers::ask(&of, 90, node, sid, Does::Append).await {
                Err(what) => {
                    let what = format!("{} did not serve: {what}", crate::name(node));
                    of.violated(Some(sid), what);
                }
                Ok(shown) => {
                    if !shown.starts_with(&before) {
                        let what = format!("{shown:?} instead of {before:?}");
                        of.violated(Some(sid), format!("{}: {what}", crate::name(node)));
                    }
                    lists.borrow_mut().insert(number, shown);
                    of.count("registers looked at");
                }
            }
        }
    });
}

/// Of five peers two are suspended for a while, one after the other, and two others leave in good order and are
/// started again: the first as the second one is suspended, the other while it still is. Nobody crashes,
/// so nothing is lost.
pub(crate) fn two_stand_still_and_two_leave(seed: u64, listening: bool) -> Report {
    let is_young = seed.is_multiple_of(3);
    // If not, then long enough for all the registers to have their ids.
    let ran_for = if is_young { 2_000 } else { 110_000 };
    let world = crate::one_link::healthy_for(seed, listening, 5, ran_for);
    let all: Vec<(Vec<Begun>, Lists)> = (0..5)
        .map(|node| {
            let (clients, lists) = (sessions(&world, node), Lists::default());
            if !is_young {
                look_at_registers_of(&world, node, node as u64, &lists);
            }
            (clients, lists)
        })
        .collect();
    world.run_until(world.now() + world.between(500, 5_000));
    if seed % 2 == 1 {
        // On machines with too much to do all this takes its time.
        let mut net = world.net.borrow_mut();
        (net.delay_max, net.detour_percent) = (200, 20);
        (net.detour_max, net.gossip_lag_max) = (2_000, 2_000);
    }
    let [first, second, third] = [(2_500, 5_000), (9_000, 14_000), (15_000, 20_000)]
        .map(|(from, to)| world.between(from, to));
    world.pause(1, second, false);
    world.run_until(world.now() + first);
    let (at, until) = (world.now(), world.now() + third + world.between(2_000, 7_000));
    world.pause(2, until - at, false);
    depart(&world, 3, 100 + world.below(200));
    world.run_until((at + third).max(world.now()));
    depart(&world, 0, 100);
    world.run_until(until.max(world.now()) + AWAY_MS);
    world.net.borrow_mut().heal();
    world.run_until(world.now() + 1_000);
    for (number, (clients, lists)) in all.iter().enumerate() {
        for node in [(number + 1) % 5, number] {
            look(&world, node, clients);
            if !is_young {
                look_at_registers_of(&world, node, number as u64, lists);
            }
        }
    }
    report(&world)
}

/// Leaves in good order, and is started again so many milliseconds after it has ended. Returns once it has,
/// or after [`AWAY_MS`] if it still waits for others by then.
pub(crate) fn depart(world: &Rc<World>, node: usize, again_after_ms: u64) {
    let Some(peer) = world.peer(node) else { return };
    peer.draining.set(true);
    let life = peer.life;
    world.spawn(Some(life), drain(peer));
    let of = Rc::clone(world);
    world.spawn(None, async move {
        while of.peer(node).is_some() {
            sleep(&of, To::World, 50).await;
        }
        crate::faults::restart_after(&of, node, again_after_ms);
    });
    let latest = world.now() + AWAY_MS;
    while world.peer(node).is_some_and(|peer| peer.life == life) && world.now() < latest {
        world.run_until(world.now() + 50);
    }
}

/// One peer is restarted in good order, and another one crashes right after: fresh registers are served
/// wherever anybody is left, since those that stayed hold all that there is.
pub(crate) fn one_restarts_and_one_crashes(seed: u64, listening: bool, peers: usize) -> Report {
    let world = healthy(seed, listening, peers, 3);
    depart(&world, 1, 200);
    world.run_until(world.now() + 200 + world.between(500, 4_000));
    crate::faults::end(&world, 0);
    world.run_until(world.now() + 8_000);
    let newest = world.now() / 5_000;
    for node in 1..peers {
        let sid = registers::sid_of(newest - node as u64 + 1);
        let of = Rc::clone(&world);
        finish(&world, async move {
            match registers::ask(&of, 90, node, sid, Does::Append).await {
                Ok(_) => of.count("registers begun"),
                Err(what) => of.violated(Some(sid), format!("{}: {what}", crate::name(node))),
            }
        });
    }
    report(&world)
}
