//! A mesh of two of which one peer is gone for a while. The other goes on alone as soon as the first was
//! silent for as long as any request waits. From then on no request waits, and none fails. Once the first is
//! back it is given everything, whichever of the two is gone next.

use std::cell::RefCell;
use std::rc::Rc;

use warmhop_core::ids::SessionId;

use crate::calls::Does;
use crate::departures::{Begun, Lists, REGISTERS, depart, look, look_at_registers, sessions};
use crate::registers;
use crate::run::{Report, finish, report};
use crate::world::World;

/// The peer that is gone, and the one that stays.
const GONE: usize = 1;
const STAYS: usize = 0;
/// How long the peer is gone, and how long it has afterwards to be given everything.
const AWAY_MS: u64 = 30_000;
/// By then its silence has been noticed.
const NOTICED_MS: u64 = 4_000;

/// How long it is waited for from its last word on, at most, and how long a request then takes.
const PATIENCE_MS: u64 = 6_000;
const ALONE_WITHIN_MS: u64 = 1_500;

/// Why a peer of two is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    /// It crashed, and another process replaces it.
    Crashed,
    /// It stood still, and comes back with what it held.
    Stopped,
}

/// `begun_at`: where sessions and registers are begun.
pub(crate) fn run(seed: u64, listening: bool, gone: Gone, begun_at: usize) -> Report {
    let world = crate::one_link::healthy(seed, listening, 2, 3);
    let (clients, lists) = (sessions(&world, begun_at), Lists::default());
    look_at_registers(&world, begun_at, &lists);
    world.run_until(world.now() + world.between(0, 3_000));
    let back_at = world.now() + AWAY_MS;
    match gone {
        Gone::Crashed => crate::faults::end(&world, GONE),
        Gone::Stopped => world.pause(GONE, AWAY_MS, false),
    }
    let silent_for = NOTICED_MS + world.between(0, 9_000);
    let began = world.now() + silent_for;
    world.run_until(began);
    // What is not used meanwhile is there afterwards as well.
    let (used, idle) = clients.split_at(clients.len() / 2);
    look_at(&world, STAYS, used, &lists);
    let (took, each) = (world.now() - began, used.len() as u64 + REGISTERS);
    let patience = PATIENCE_MS.saturating_sub(silent_for);
    if took > patience + each * ALONE_WITHIN_MS {
        world.violated(None, format!("{each} requests took {took} ms"));
    }
    world.run_until(back_at.max(world.now()));
    if gone == Gone::Crashed {
        crate::faults::restart_after(&world, GONE, 10);
    }
    world.run_until(world.now() + AWAY_MS);
    for clients in [used, idle] {
        look_at(&world, GONE, clients, &lists);
        look_at(&world, STAYS, clients, &lists);
    }
    depart(&world, STAYS, 200);
    look_at(&world, GONE, &clients, &lists);
    world.run_until(world.now() + AWAY_MS);
    look_at(&world, STAYS, &clients, &lists);
    crate::faults::end(&world, GONE);
    world.run_until(world.now() + NOTICED_MS);
    look_at(&world, STAYS, &clients, &lists);
    report(&world)
}

fn look_at(world: &Rc<World>, node: usize, clients: &[Begun], lists: &Lists) {
    look(world, node, clients);
    look_at_registers(world, node, lists);
}

/// The link between the two is cut for less time than either waits for the other, both ways or one way, and
/// registers old and new are asked for at both meanwhile: neither peer goes on alone, so that what one of them
/// answered is there at the other.
pub(crate) fn cut_for_a_moment(seed: u64, listening: bool, ways: usize) -> Report {
    let world = crate::one_link::healthy(seed, listening, 2, 3);
    let lists = Lists::default();
    look_at_registers(&world, STAYS, &lists);
    world.run_until(world.now() + world.between(0, 3_000));
    let until = world.now() + world.between(3_000, 4_500);
    let ends = [(STAYS, GONE), (GONE, STAYS)];
    for (from, to) in ends.into_iter().cycle().skip(seed as usize % 2).take(ways) {
        world.net.borrow_mut().cut(from, to, until);
    }
    let answered: Rc<RefCell<Vec<(SessionId, Vec<u16>)>>> = Rc::default();
    let mut number = 0;
    while world.now() < until {
        number += 1;
        let old = number % REGISTERS;
        let fresh = REGISTERS + number / 2;
        for (node, number) in [(STAYS, old), (GONE, old), (STAYS, fresh), (GONE, fresh)] {
            let sid = registers::sid_of(number);
            let (of, answered) = (Rc::clone(&world), Rc::clone(&answered));
            world.spawn(None, async move {
                if let Ok(shown) = registers::ask(&of, 90 + node, node, sid, Does::Append).await {
                    answered.borrow_mut().push((sid, shown));
                }
            });
        }
        world.run_until(world.now() + 100);
    }
    world.run_until(until + AWAY_MS);
    for (sid, shown) in answered.borrow().iter().cloned() {
        for node in [STAYS, GONE] {
            let (of, shown) = (Rc::clone(&world), shown.clone());
            finish(&world, async move {
                match registers::ask(&of, 90, node, sid, Does::Read).await {
                    Ok(now) if now.starts_with(&shown) => of.count("answers looked at"),
                    other => of.violated(Some(sid), format!("{other:?} instead of {shown:?}")),
                }
            });
        }
    }
    report(&world)
}

/// The link between the two is cut for longer than they wait for each other. Meanwhile each register is changed
/// at one of them, and only read at the other: once they meet, both show the changes.
pub(crate) fn cut_for_long(seed: u64, listening: bool) -> Report {
    let world = crate::one_link::healthy(seed, listening, 2, 3);
    let lists = Lists::default();
    look_at_registers(&world, seed as usize % 2, &lists);
    world.run_until(world.now() + world.between(0, 3_000));
    let until = world.now() + AWAY_MS;
    for (from, to) in [(STAYS, GONE), (GONE, STAYS)] {
        world.net.borrow_mut().cut(from, to, until);
    }
    world.run_until(world.now() + 10_000);
    for number in 0..REGISTERS {
        let (sid, changed_at) = (registers::sid_of(number), (number % 2) as usize);
        for (node, does) in [(changed_at, Does::Append), (1 - changed_at, Does::Read)] {
            let (of, lists) = (Rc::clone(&world), Rc::clone(&lists));
            // What the two answer is not one history until they meet, so nobody else judges it.
            of.note_endangered(sid);
            finish(&world, async move {
                match registers::ask(&of, 90 + node, node, sid, does).await {
                    Ok(shown) if does == Does::Append => {
                        lists.borrow_mut().insert(number, shown);
                    }
                    Ok(_) => {}
                    Err(what) => of.violated(Some(sid), what),
                }
            });
        }
    }
    world.run_until(until + AWAY_MS);
    for node in [STAYS, GONE] {
        look_at_registers(&world, node, &lists);
    }
    report(&world)
}
