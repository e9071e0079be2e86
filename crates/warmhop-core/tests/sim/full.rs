//! One peer has no room for copies, and the others have: each session is where there is room, and what the
//! peers promise of it holds beside the full one as in a mesh without it.

use warmhop_core::session::Session;

use crate::calls::Does;
use crate::departures::{Lists, REGISTERS, depart, look, look_at_registers, sessions};
use crate::one_link::healthy;
use crate::run::{Report, report};
use crate::world::Room;

/// The peer without room, and the one where everything is begun.
const FULL: usize = 0;
const BEGUN_AT: usize = 1;
/// How long the mesh has after each event to give everything its place.
const SETTLES_WITHIN_MS: u64 = 20_000;

/// How soon a member without room is replaced.
const MISSED_WITHIN_MS: u64 = 2_500;
/// A peer that refused copies and did not call itself full is asked again after such a while.
const ASKED_AGAIN_WITHIN_MS: u64 = 70_000;

/// What happens to the peers with room, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Each is restarted in good order.
    Restarts,
    /// Each crashes, and is replaced by an empty process.
    Crashes,
    /// The same, and the peer becomes full only as the first of them crashes.
    CrashesAtOnce,
}

/// Whether the full peer calls itself full. If not, the others learn it as it refuses copies: a peer that has
/// room for small ones does not call itself full.
pub(crate) fn is_known(seed: u64) -> bool {
    seed.is_multiple_of(2)
}

/// `room`: how many copies the full peer may hold.
pub(crate) fn run(seed: u64, listening: bool, peers: usize, room: usize, fault: Fault) -> Report {
    let world = healthy(seed, listening, peers, 3);
    let fills_if = |is_known| {
        world.room.borrow_mut().insert(FULL, Room { copies: room, is_known });
    };
    let fills = || fills_if(is_known(seed));
    // Others hear that it is full a moment after it has become so.
    let lags = fault == Fault::CrashesAtOnce && seed.is_multiple_of(4);
    if lags {
        fills_if(false);
    }
    if fault != Fault::CrashesAtOnce {
        fills();
        world.run_until(world.now() + 1_000);
    }
    let (clients, lists) = (sessions(&world, BEGUN_AT), Lists::default());
    look_at_registers(&world, BEGUN_AT, &lists);
    world.run_until(world.now() + if lags { 0 } else { SETTLES_WITHIN_MS });
    if fault == Fault::CrashesAtOnce {
        // From here on the full peer keeps the records that it has, and takes no larger ones.
        fills();
        look(&world, BEGUN_AT, &clients);
        look_at_registers(&world, BEGUN_AT, &lists);
        // Of more than three the owner may be no member, and needs a moment to become one.
        world.run_until(world.now() + if peers > 3 { MISSED_WITHIN_MS } else { 0 });
    }
    for gone in (1..peers).rev() {
        match fault {
            Fault::Restarts => depart(&world, gone, 200),
            Fault::Crashes | Fault::CrashesAtOnce => {
                crate::faults::end(&world, gone);
                crate::faults::restart_after(&world, gone, 500);
            }
        }
        if seed.is_multiple_of(3) {
            // At once: the new process is asked to take over before the others have mended anything.
            world.run_until(world.now() + 1_500);
            for sid in (0..REGISTERS).map(crate::registers::sid_of) {
                let of = world.clone();
                crate::run::finish(&world, async move {
                    let _ = crate::registers::ask(&of, 91, gone, sid, Does::Read).await;
                });
            }
        }
        world.run_until(world.now() + SETTLES_WITHIN_MS);
        // The new process asks as well, and holds nothing yet.
        let at = if seed.is_multiple_of(3) {
            gone
        } else if gone == BEGUN_AT {
            peers - 1
        } else {
            BEGUN_AT
        };
        look(&world, at, &clients);
        look_at_registers(&world, at, &lists);
        world.run_until(world.now() + SETTLES_WITHIN_MS);
    }
    // There is room again: the peer takes its share of the copies, so that of three all hold everything.
    world.room.borrow_mut().remove(&FULL);
    let asked_again_after = if is_known(seed) { 0 } else { ASKED_AGAIN_WITHIN_MS };
    world.run_until(world.now() + SETTLES_WITHIN_MS + asked_again_after);
    if peers == 3 {
        let holds = |sid| {
            let full = world.peer(FULL);
            full.is_some_and(|it| it.look(sid, Session::holds_copy) == Some(true))
        };
        let sids = clients.iter().filter_map(|(client, _)| client.sid());
        for sid in sids.chain((0..REGISTERS).map(crate::registers::sid_of)) {
            if !holds(sid) {
                world.violated(Some(sid), "no copy came to where there is room".into());
            }
        }
    }
    report(&world)
}

/// Two of three peers are full: one has no room at all, the other just for what it holds. What happens to the
/// others in any order loses nothing that a peer with room, or one that holds it, could keep.
pub(crate) fn two_full(seed: u64, listening: bool) -> Report {
    let world = healthy(seed, listening, 3, 3);
    world.room.borrow_mut().insert(FULL, Room { copies: 0, is_known: true });
    world.run_until(world.now() + 1_000);
    let lists = Lists::default();
    look_at_registers(&world, BEGUN_AT, &lists);
    world.run_until(world.now() + SETTLES_WITHIN_MS);
    let held = REGISTERS as usize;
    world.room.borrow_mut().insert(BEGUN_AT, Room { copies: held, is_known: true });
    world.run_until(world.now() + 1_000);
    for _ in 0..6 {
        let gone = [2, 2, BEGUN_AT, FULL][world.below(4) as usize];
        if world.chance(30) && gone != 2 {
            crate::faults::end(&world, gone);
            crate::faults::restart_after(&world, gone, 500);
        } else {
            depart(&world, gone, 200);
        }
        world.run_until(world.now() + SETTLES_WITHIN_MS);
        for number in 0..REGISTERS {
            let (of, sid) = (world.clone(), crate::registers::sid_of(number));
            let before = lists.borrow()[&number].clone();
            crate::run::finish(&world, async move {
                let node = of.below(3) as usize;
                match crate::registers::ask(&of, 91, node, sid, Does::Read).await {
                    Ok(shown) if shown == before => {}
                    other => of.violated(Some(sid), format!("{other:?} instead of {before:?}")),
                }
            });
        }
        world.run_until(world.now() + SETTLES_WITHIN_MS);
    }
    report(&world)
}

/// Two of three have no room for larger copies: a change is refused as what it is, soon, and changes nothing,
/// what was there is served all along, and what could not begin is absent. Once there is room again, changes
/// are taken again. Meanwhile peers are restarted in good order.
pub(crate) fn refused_changes(seed: u64, listening: bool) -> Report {
    let world = healthy(seed, listening, 3, 3);
    let lists = Lists::default();
    look_at_registers(&world, BEGUN_AT, &lists);
    world.run_until(world.now() + SETTLES_WITHIN_MS);
    for node in [FULL, BEGUN_AT] {
        let room = Room { copies: REGISTERS as usize, is_known: is_known(seed) };
        world.room.borrow_mut().insert(node, room);
    }
    world.run_until(world.now() + 1_000);
    for _ in 0..40 {
        let (number, node) = (world.below(2 * REGISTERS), world.below(3) as usize);
        let does = if world.chance(40) { Does::Read } else { Does::Append };
        let (of, sid) = (world.clone(), crate::registers::sid_of(number));
        let before = lists.borrow().get(&number).cloned().unwrap_or_default();
        let lists = lists.clone();
        crate::run::finish(&world, async move {
            let began = of.now();
            match crate::registers::ask(&of, 91, node, sid, does).await {
                Ok(shown) if does == Does::Read && shown == before => {}
                Ok(shown) if does == Does::Append && shown.starts_with(&before) => {
                    lists.borrow_mut().insert(number, shown);
                }
                Err(what) if does == Does::Append && what.ends_with("session-memory-full") => {
                    of.count("changes refused");
                }
                other => {
                    let after = of.now() - began;
                    let what = format!("{does:?}: {other:?} after {after} ms, not {before:?}");
                    of.violated(Some(sid), what);
                }
            }
        });
        if world.chance(5) {
            depart(&world, world.below(3) as usize, 200);
            world.run_until(world.now() + SETTLES_WITHIN_MS);
        }
    }
    world.room.borrow_mut().clear();
    world.run_until(world.now() + ASKED_AGAIN_WITHIN_MS);
    look_at_registers(&world, BEGUN_AT, &lists);
    report(&world)
}

/// Two of three are restarted and have no room from then on, so that the third holds everything alone. It is suspended for
/// a while: nobody calls a key absent meanwhile, nor begins it anew.
pub(crate) fn held_alone(seed: u64, listening: bool) -> Report {
    let world = healthy(seed, listening, 3, 3);
    let lists = Lists::default();
    look_at_registers(&world, 2, &lists);
    for node in [FULL, BEGUN_AT] {
        depart(&world, node, 200);
        world.room.borrow_mut().insert(node, Room { copies: 0, is_known: is_known(seed) });
        world.run_until(world.now() + SETTLES_WITHIN_MS);
    }
    world.pause(2, world.between(500, 24_000), false);
    for _ in 0..20 {
        let (number, node) = (world.below(REGISTERS), world.below(2) as usize);
        let (of, sid) = (world.clone(), crate::registers::sid_of(number));
        let before = lists.borrow().get(&number).cloned().unwrap_or_default();
        let lists = lists.clone();
        let does = if world.chance(50) { Does::Read } else { Does::Append };
        crate::run::finish(&world, async move {
            match crate::registers::ask(&of, 91, node, sid, does).await {
                Ok(shown) if shown.starts_with(&before) => {
                    lists.borrow_mut().insert(number, shown);
                }
                Ok(shown) => of.violated(Some(sid), format!("{shown:?}, not {before:?}")),
                Err(_) => of.count("not answered"),
            }
        });
    }
    world.run_until(world.now() + SETTLES_WITHIN_MS);
    world.room.borrow_mut().clear();
    world.run_until(world.now() + ASKED_AGAIN_WITHIN_MS);
    look_at_registers(&world, BEGUN_AT, &lists);
    report(&world)
}
