//! What goes wrong, at random times: crashes and restarts, pauses, cuts in one or both directions,
//! bad weather, jumps of clocks, crashes of apps, peers that leave, copies that forget.

use std::rc::Rc;

use warmhop_core::ids::SessionId;
use warmhop_core::session::repair::{by_rank, may_count_on};

use crate::network::Network;
use crate::peer::{PAGE, Peer, SHOP, drain};
use crate::reference::SKEW_MS_MAX;
use crate::world::{To, World, sleep};

/// The process on `node` is gone; sessions that lose too many holders by that are noted.
pub(crate) fn end(world: &Rc<World>, node: usize) {
    let before: Vec<_> =
        world.sids().into_iter().map(|sid| (sid, world.newest_configs(sid))).collect();
    world.note(None, || format!("{} is gone", crate::name(node)));
    world.end_life(node);
    note_endangered(world, before);
}

fn note_endangered(
    world: &World,
    configs: Vec<(SessionId, Vec<warmhop_core::session::message::Config>)>,
) {
    for (sid, configs) in configs {
        if !configs.is_empty() && world.is_endangered(sid, &configs) {
            world.note_endangered(sid);
        }
    }
}

/// Whether each session has an owner, and as many live members as it should have, all of which stay
/// none of which is being replaced, and all of which hold what was answered last: then any one holder may be
/// lost. While a change of members is
/// under way, those before and those to come are needed.
fn all_whole(world: &World) -> bool {
    let peers = world.live_peers();
    let stays = |member| world.peer_of(member).is_some_and(|peer| !peer.draining.get());
    peers.len() == world.knobs.peers
        && world.sids().into_iter().all(|sid| {
            let held = peers.iter().any(|peer| peer.look(sid, |m| m.version() > 0) == Some(true));
            let whole = peers.iter().any(|peer| {
                peer.look(sid, |machine| {
                    let members = machine.members();
                    machine.is_owner()
                        && machine.is_whole()
                        && machine.config().is_some_and(|cfg| cfg.is_open())
                        && members.len() == peers.len().min(3)
                        && members.iter().all(|member| stays(*member))
                        && !machine.is_changing_members()
                        && !world.is_endangered(sid, &world.newest_configs(sid))
                }) == Some(true)
            });
            let is_over = || {
                crate::fleeting::is_fleeting(sid)
                    && peers.iter().all(|peer| peer.holds_what_is_over(sid))
            };
            whole || !held || is_over()
        })
}

/// Makes things go wrong until the world says that it is enough.
pub(crate) async fn rage(world: Rc<World>) {
    while world.faults_on.get() {
        sleep(&world, To::World, world.between(100, 2_500)).await;
        if !world.faults_on.get() {
            return;
        }
        let node = world.below(world.knobs.peers as u64) as usize;
        match world.below(100) {
            0..=14 => crash(&world, node),
            15..=29 => pause(&world, node),
            30..=49 => cut(&world, node),
            50..=59 => weather(&world),
            60..=67 => {
                if let Some(peer) = world.peer(node) {
                    world.count("app crashes");
                    peer.crash_app(if world.chance(80) { SHOP } else { PAGE });
                }
            }
            68..=72 => leave(&world, node),
            73 => roll(&world).await,
            74..=79 => {
                let skew = world.below(SKEW_MS_MAX + 1) as i64 - SKEW_MS_MAX as i64 / 2;
                world.nodes.borrow_mut()[node].wall_skew = skew;
                world.count("clocks set");
            }
            80..=85 => forget(&world, node),
            86..=92 => rival(&world, node),
            _ => swap(&world, node),
        }
    }
}

fn crash(world: &Rc<World>, node: usize) {
    if world.peer(node).is_none() || (world.knobs.gentle && !all_whole(world)) {
        return;
    }
    world.count("crashes");
    end(world, node);
    restart_after(world, node, world.between(50, 9_000));
}

pub(crate) fn restart_after(world: &Rc<World>, node: usize, ms: u64) {
    world.after(ms, To::World, move |world| {
        if world.peer(node).is_none() {
            Peer::start(world, node);
        }
    });
}

fn pause(world: &Rc<World>, node: usize) {
    let for_long = world.knobs.fleeting && world.chance(25);
    let ms = if for_long { world.between(12_000, 40_000) } else { world.between(100, 9_000) };
    let clock_too = world.chance(50);
    world.note(None, || format!("{} pauses for {ms} ms", crate::name(node)));
    world.count("pauses");
    world.pause(node, ms, clock_too);
}

/// Cuts one node, a pair, or a part of the mesh off, in one or both directions.
fn cut(world: &Rc<World>, node: usize) {
    let peers = world.knobs.peers;
    // Some last for longer than anyone is suspected before it counts as dead.
    let span =
        if world.chance(12) { world.between(9_000, 45_000) } else { world.between(300, 9_000) };
    if span > 9_000 {
        world.count("long cuts");
    }
    let until = world.now() + span;
    let one_way = world.chance(40);
    let side: Vec<usize> = match world.below(3) {
        0 => vec![node],
        1 => (0..peers).filter(|_| world.chance(50)).collect(),
        _ => Vec::new(),
    };
    let mut pairs = Vec::new();
    if side.is_empty() {
        for _ in 0..world.between(1, 2) {
            pairs.push((node, world.below(peers as u64) as usize));
        }
    }
    for from in &side {
        pairs.extend((0..peers).filter(|to| !side.contains(to)).map(|to| (*from, to)));
    }
    world.count(if one_way { "cuts in one direction" } else { "cuts" });
    world.note(None, || format!("cut until {until}: {pairs:?}, one way: {one_way}"));
    let mut net = world.net.borrow_mut();
    for (from, to) in pairs {
        net.cut(from, to, until);
        if !one_way {
            net.cut(to, from, until);
        }
    }
}

fn weather(world: &World) {
    let bad = world.chance(60);
    let cuts = std::mem::take(&mut world.net.borrow_mut().cuts);
    let new = match bad {
        true => Network {
            loss_percent: world.below(25),
            repeat_percent: world.below(20),
            delay_max: world.between(1, 60),
            detour_percent: world.below(20),
            detour_max: world.between(10, 4_000),
            gossip_lag_max: world.between(10, 10_000),
            cuts,
        },
        false => Network {
            loss_percent: 1,
            delay_max: 3,
            gossip_lag_max: 500,
            cuts,
            ..Network::default()
        },
    };
    world.note(None, || {
        format!(
            "weather: {} % lost, {} % twice, up to {} ms",
            new.loss_percent, new.repeat_percent, new.delay_max
        )
    });
    *world.net.borrow_mut() = new;
}

fn leave(world: &Rc<World>, node: usize) {
    let Some(peer) = world.peer(node).filter(|peer| !peer.draining.get()) else { return };
    if world.knobs.gentle && !all_whole(world) {
        return;
    }
    world.count("departures");
    world.note(None, || format!("{} leaves", peer.me));
    // From here on, not from when the task first runs: all may heal in between.
    peer.draining.set(true);
    world.spawn(Some(peer.life), drain(peer));
    restart_after(world, node, world.between(18_000, 26_000));
}

/// All peers restart in good order, one after the other.
async fn roll(world: &Rc<World>) {
    world.count("rolls");
    for node in 0..world.knobs.peers {
        let Some(peer) = world.peer(node).filter(|peer| !peer.draining.get()) else { continue };
        if world.knobs.gentle && !all_whole(world) {
            return;
        }
        world.note(None, || format!("{} restarts in good order", peer.me));
        peer.draining.set(true);
        world.spawn(Some(peer.life), drain(peer));
        while world.peer(node).is_some_and(|peer| peer.draining.get()) {
            sleep(world, To::World, 100).await;
        }
        if world.peer(node).is_none() {
            restart_after(world, node, world.between(10, 500));
        }
        sleep(world, To::World, world.between(1_000, 3_000)).await;
        if !world.faults_on.get() {
            return;
        }
    }
}

/// A copy drops what it holds, as it would after its time.
fn forget(world: &Rc<World>, node: usize) {
    if !world.knobs.forgetful || (world.knobs.gentle && !all_whole(world)) {
        return;
    }
    let Some(peer) = world.peer(node) else { return };
    let Some(sid) = world.pick(&peer.kept()) else { return };
    world.count("forced to forget");
    world.note(Some(sid), || format!("{} is made to forget it", peer.me));
    let before: Vec<_> =
        world.sids().into_iter().map(|sid| (sid, world.newest_configs(sid))).collect();
    peer.with(sid, false, |machine, ctx, _| {
        if machine.load() == 0 {
            machine.forget(ctx);
        }
    });
    {
        let mut store = peer.store.borrow_mut();
        let watermark = store.process.watermark;
        if let Some(entry) = store.entries.get_mut(&sid) {
            entry.low = watermark;
        }
    }
    note_endangered(world, before);
}

/// A peer takes over a session whose owner is well.
fn rival(world: &Rc<World>, node: usize) {
    let Some(peer) = world.peer(node) else { return };
    let Some(sid) = world.pick(&peer.kept()) else { return };
    world.count("rivals");
    let peers = peer.whom_to_ask(sid);
    peer.with(sid, false, |machine, ctx, out| {
        if !machine.is_owner() && !machine.is_taking_over() {
            let round = machine.seen_round();
            machine.take_over(ctx, None, round, &peers, out);
        }
    });
}

/// An owner swaps a member that is well for another. That takes a holder away, and the other may have
/// been gone for a moment.
fn swap(world: &Rc<World>, node: usize) {
    if world.knobs.gentle && !all_whole(world) {
        return;
    }
    let Some(peer) = world.peer(node) else { return };
    let Some(sid) = world.pick(&peer.owned()) else { return };
    let members = peer.look(sid, |machine| machine.members().to_vec()).unwrap_or_default();
    let gone = members.iter().copied().find(|member| *member != peer.inc);
    let others = by_rank(sid, &peer.view.borrow(), |it| {
        may_count_on(it) && !members.contains(&it.news.incarnation)
    });
    let Some(newcomer) = others.first().copied().filter(|_| members.len() == 3) else { return };
    world.count("swaps");
    peer.with(sid, false, |machine, ctx, out| {
        machine.change_members(ctx, gone, Some(newcomer), out)
    });
}
