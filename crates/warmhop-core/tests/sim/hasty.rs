//! A register that is used often, so that it forgets soon which requests were applied to it, and whose owner
//! dies while a request is on its way to it. The peer that the request came to need not own the register,
//! and cannot know the outcome of the request; the next owner can.

use std::rc::Rc;

use warmhop_core::problem::ProblemKind;

use crate::calls::Does;
use crate::registers::{ask, sid_of};
use crate::run::{Report, finish, report};
use crate::world::{To, World, sleep};

/// Requests before its owner dies: more than are remembered.
const BEFORE: usize = 9;
const REMEMBERED: usize = 4;

/// `at`: where requests arrive once the first peer, its owner, is about to die.
pub(crate) fn run(seed: u64, listening: bool, peers: usize, at: usize) -> Report {
    let world = crate::one_link::healthy_where(seed, listening, peers, 3, |knobs| {
        knobs.policy = knobs.policy.clone().with(|made| made.recent_unkeyed_max = REMEMBERED);
    });
    let sid = sid_of(world.now() / 5_000);
    let of = Rc::clone(&world);
    finish(&world, async move {
        for number in 0..BEFORE {
            // Once from everywhere, so that every peer has been given an answer.
            let node = if number < 5 { 0 } else { number % of.knobs.peers };
            let _ = ask(&of, 0, node, sid, Does::Append).await;
        }
    });
    let owner = (0..peers).find(|node| {
        let peer = world.peer(*node);
        peer.is_some_and(|peer| peer.look(sid, |it| it.is_owner()) == Some(true))
    });
    let Some(owner) = owner.filter(|owner| *owner != at) else { return report(&world) };
    world.count("owners that die");
    world.after(world.between(1, 12), To::World, move |world| crate::faults::end(world, owner));
    finish(&world, ask_hastily(Rc::clone(&world), at, sid));
    report(&world)
}

async fn ask_hastily(world: Rc<World>, at: usize, sid: warmhop_core::ids::SessionId) {
    let forgotten = ProblemKind::OutcomeForgotten;
    let forgotten = format!("{} {}", forgotten.status(), forgotten.name());
    for _ in 0..10 {
        sleep(&world, To::World, world.below(3)).await;
        if let Err(what) = ask(&world, 0, at, sid, Does::Append).await
            && what == forgotten
        {
            world.violated(Some(sid), format!("a request sent just now got: {what}"));
        }
    }
}
