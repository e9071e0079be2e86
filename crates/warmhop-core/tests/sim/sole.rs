//! A register that one peer holds alone, because all others left in good order, one after the other, and were
//! struck off. They are started again, and the one that holds it is stopped before it has given them any of
//! it. Nobody calls the register absent, nor begins it anew, while its holder lives.

use std::rc::Rc;

use crate::calls::Does;
use crate::peer::{Peer, drain};
use crate::registers::{ask, sid_of};
use crate::run::{Report, finish, report};
use crate::world::{To, sleep};

const REGISTERS: u64 = 4;
/// How long its holder is suspended.
const STOPPED_MS: [u64; 2] = [8_000, 24_000];

/// `runs_for_ms`: for how long all of them have run before. In a mesh that has just begun nobody is settled.
pub(crate) fn run(seed: u64, listening: bool, peers: usize, runs_for_ms: u64) -> Report {
    let world = crate::one_link::healthy_for(seed, listening, peers, runs_for_ms);
    let first = world.now() / 5_000;
    let sids = move || (0..REGISTERS).map(move |number| sid_of(first.saturating_sub(number)));
    let of = Rc::clone(&world);
    finish(&world, async move {
        for sid in sids() {
            if let Err(what) = ask(&of, 0, 0, sid, Does::Append).await {
                of.violated(Some(sid), format!("it was not begun: {what}"));
            }
        }
    });
    for node in 1..peers {
        let peer = world.peer(node).expect("it runs");
        peer.draining.set(true);
        world.spawn(Some(peer.life), drain(peer));
        while world.peer(node).is_some() {
            world.run_until(world.now() + 100);
        }
    }
    for node in 1..peers {
        Peer::start(&world, node);
    }
    // They meet, and the one that holds it is stopped before it looks after its sessions.
    world.run_until(world.now() + world.between(5, 1_500));
    world.pause(0, *STOPPED_MS.get(seed as usize % 2).expect("one of two"), false);
    let resumed = world.resumed_by();
    let of = Rc::clone(&world);
    finish(&world, async move {
        while of.now() < resumed {
            for sid in sids() {
                let node = 1 + of.below(of.knobs.peers as u64 - 1) as usize;
                let does = if of.chance(50) { Does::Read } else { Does::Begin };
                if ask(&of, 1, node, sid, does).await.is_ok() {
                    of.count("answered while its holder is suspended");
                }
            }
            sleep(&of, To::World, 50).await;
        }
    });
    world.run_until(world.now() + 15_000);
    let of = Rc::clone(&world);
    finish(&world, async move {
        for (sid, node) in sids().flat_map(|sid| (0..peers).map(move |node| (sid, node))) {
            match ask(&of, 99, node, sid, Does::Read).await {
                Ok(list) if !list.is_empty() => of.count("registers looked at"),
                end => {
                    let at = crate::name(node);
                    of.violated(Some(sid), format!("{at} did not serve the register: {end:?}"));
                }
            }
        }
    });
    report(&world)
}
