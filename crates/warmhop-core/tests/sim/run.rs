//! One run: a world drawn from its seed, faults, healing, demands.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use warmhop_core::config::{AppPolicy, SessionPolicy, StartMode, WithoutMajority};
use warmhop_core::ids::SessionId;
use warmhop_core::session::Session;
use warmhop_core::session::repair::{countable, is_short};
use warmhop_core::view::Liveness;

use crate::calls::Does;
use crate::client::Client;
use crate::narrate::Narrator;
use crate::peer::{Peer, SHOP};
use crate::prng::Prng;
use crate::world::{Knobs, To, World, sleep};

/// How long after the last fault everyone is served at once, and how long after it each session
/// that nobody asks for has one owner, which knows it, and as many members as it should.
const SERVED_WITHIN_MS: u64 = 25_000;
/// How long a client stays until its session is owned and run where it arrives. Most of it is
/// the back-off of apps whose starts failed.
const SETTLED_WITHIN_MS: u64 = 60_000;
/// How long after that each session is held by as many peers as it should be.
const MENDED_WITHIN_MS: u64 = 20_000;

pub(crate) struct Report {
    pub(crate) violation: Option<String>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// Every line of what happened, where somebody listened.
    pub(crate) trace: Vec<String>,
    pub(crate) story: String,
}

/// A fault that no mesh survives, to show that it would be noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    Nothing,
    /// Every peer forgets every session at once, watermark and all, and is none the wiser.
    Amnesia,
}

pub(crate) fn run(seed: u64, listening: bool, planted: Planted) -> Report {
    let mut rng = Prng(seed);
    let mut knobs = draw_knobs(&mut rng);
    knobs.seeds = draw_seeds(&mut Prng(seed ^ 0x5EED), &knobs);
    let world = World::new(knobs, rng, Narrator::new(listening));
    world.note(None, || format!("{:?}", world.knobs));
    world.note(None, || format!("the seeds of each: {:?}", world.knobs.seeds));
    world.net.borrow_mut().heal();
    for node in 0..world.knobs.peers {
        Peer::start(&world, node);
    }
    // They meet first.
    world.run_until(world.now() + 2_000);
    let clients: Vec<Rc<Client>> =
        (0..world.knobs.clients).map(|name| Client::new(&world, name)).collect();
    for client in &clients {
        world.spawn(None, Rc::clone(client).live(Rc::clone(&world)));
    }
    let resting: Vec<Rc<Client>> = (0..world.knobs.resting)
        .map(|name| Client::new(&world, world.knobs.clients + name))
        .collect();
    for client in &resting {
        world.spawn(None, Rc::clone(client).begin_and_rest(Rc::clone(&world)));
    }
    world.run_until(world.now() + 1_000);
    let began = world.now();
    for name in 0..world.knobs.keepers {
        world.spawn(None, crate::registers::live(Rc::clone(&world), 50 + name));
    }
    world.spawn(None, crate::faults::rage(Rc::clone(&world)));
    world.run_until(world.now() + world.knobs.faults_ms);

    heal(&world, &clients);
    if planted == Planted::Amnesia {
        for peer in world.live_peers() {
            peer.store.borrow_mut().entries.clear();
        }
    }
    world.run_until(world.resumed_by() + SERVED_WITHIN_MS);
    if planted == Planted::Nothing {
        look_at_idle_sessions(&world);
        if world.knobs.keepers > 0 {
            let registers = crate::registers::demand(Rc::clone(&world), began);
            finish(&world, registers);
        }
    }
    for client in clients.into_iter().chain(resting) {
        if world.violation().is_none() {
            finish(&world, demand(Rc::clone(&world), client));
        }
    }
    report(&world)
}

/// What came of a run that is over.
pub(crate) fn report(world: &World) -> Report {
    let report = Report {
        violation: world.violation(),
        counts: world.counts.borrow().clone(),
        trace: world.narrator.borrow().trace(),
        story: world.narrator.borrow().story(),
    };
    world.dismantle();
    report
}

/// Runs until `demands` are answered.
pub(crate) fn finish(world: &Rc<World>, demands: impl Future<Output = ()> + 'static) {
    let task = world.spawn(None, demands);
    let end = world.now() + 400_000;
    while world.is_running(task) && world.now() < end && world.violation().is_none() {
        world.run_until(world.now() + 100);
    }
    if world.is_running(task) {
        world.violated(None, "demands are still unanswered".into());
    }
}

pub(crate) fn heal(world: &Rc<World>, clients: &[Rc<Client>]) {
    world.note(None, || "everything heals".into());
    world.faults_on.set(false);
    world.net.borrow_mut().heal();
    for client in clients {
        client.stop();
    }
    for node in 0..world.knobs.peers {
        if world.peer(node).is_none() {
            crate::faults::restart_after(world, node, 10);
        }
        // A peer that was asked to leave does so, and comes back.
        let life = world.peer(node).filter(|peer| peer.draining.get());
        if life.is_some() {
            crate::faults::end(world, node);
            crate::faults::restart_after(world, node, 10);
        }
    }
}

/// Nobody asks for any session meanwhile: each that was not lost has been mended all the same.
fn look_at_idle_sessions(world: &World) {
    // Where sessions end within seconds there is nothing left to look at, and no owner forgets what
    // the members keep.
    if world.knobs.short_ttl || world.knobs.forgetful {
        return;
    }
    for sid in world.sids() {
        // Those are asked for at every peer instead.
        if crate::registers::is_register(world, sid) {
            continue;
        }
        let peers = world.live_peers();
        let holds = |peer: &Rc<Peer>| peer.look(sid, |machine| machine.version() > 0) == Some(true);
        // If a session was continued under another id, some of its members no longer vote.
        let forked = world.forks.borrow().iter().any(|(from, _)| *from == sid);
        if forked || !world.was_answered(sid) || !peers.iter().any(holds) {
            continue;
        }
        // A peer that took it over before it held anything hears of a later owner when it is asked,
        // or lets go of it within a minute.
        let owns = |peer: &&Rc<Peer>| {
            peer.look(sid, |machine| machine.is_owner() && machine.version() > 0) == Some(true)
        };
        let owners: Vec<_> = peers.iter().filter(owns).map(|peer| peer.node).collect();
        let outcome = match owners[..] {
            _ if world.is_hopeless(sid) => {
                world.count("lost sessions looked at");
                is_known_as_lost(world, sid, &owners)
            }
            _ if world.may_be_lost(sid) => continue,
            [owner] => is_whole(world, sid, owner),
            _ => Err(format!("it has {} owners", owners.len())),
        };
        world.count("idle sessions looked at");
        if let Err(what) = outcome {
            world.violated(Some(sid), format!("nobody asks for it: {what}"));
            return;
        }
    }
}

/// Nobody will ever serve the session again: no peer acts as its owner, and no peer that looks at
/// it takes it for one that could be mended.
fn is_known_as_lost(world: &World, sid: SessionId, owners: &[usize]) -> Result<(), String> {
    if !owners.is_empty() {
        return Err(format!("it is lost, and yet has the owners {owners:?}"));
    }
    // Who holds nothing of it, or was left out of the members without a word, has nothing to mend, and is
    // led on to the others by the first who asks it.
    for peer in world.live_peers() {
        let (view, copies) = (peer.view.borrow(), world.knobs.policy.copies);
        let alive = countable(&view, peer.inc);
        let hears = |owner| {
            let belief = view.by_incarnation(&owner);
            belief.is_some_and(|it| it.alive == Liveness::Alive)
        };
        let waits =
            |machine: &Session| is_short(machine, peer.inc, copies, &alive, hears, |_| true);
        if peer.look(sid, waits) == Some(true) {
            return Err(format!("it is lost, and {} waits for it to be mended", peer.me));
        }
    }
    Ok(())
}

/// What one client may expect of a healed mesh.
async fn demand(world: Rc<World>, client: Rc<Client>) {
    while !client.is_idle() {
        sleep(&world, To::World, 100).await;
    }
    let Some(sid) = client.sid() else { return };
    let peers = world.knobs.peers;
    for node in 0..peers {
        let served = client.demand(&world, node, Does::Read).await;
        if let Err(what) = served {
            // The peers that hold it may not know what was chosen last.
            if what == "503 session-no-majority"
                && world.may_be_lost(sid)
                && !world.is_hopeless(sid)
            {
                world.count("refused for want of holders");
                return;
            }
            world.violated(
                Some(sid),
                format!("{} did not serve client {}: {what}", crate::name(node), client.name),
            );
            return;
        }
    }
    let at = world.below(peers as u64) as usize;
    if !settle(&world, &client, at).await {
        return;
    }
    let Some(sid) = client.sid() else { return };
    let end = world.now() + MENDED_WITHIN_MS;
    while let Err(what) = is_whole(&world, sid, at) {
        if world.now() >= end {
            world.violated(Some(sid), what);
            return;
        }
        sleep(&world, To::World, 200).await;
    }
    match client.demand(&world, (at + 1) % peers, Does::Read).await {
        Ok(_) => world.judge_last(sid),
        Err(what) => world.violated(Some(sid), format!("the last read came to nothing: {what}")),
    }
}

/// The client stays with one entry peer until that owns its session and runs its app.
async fn settle(world: &Rc<World>, client: &Client, at: usize) -> bool {
    let began = world.now();
    let runs_there = world.knobs.apps[at].start != StartMode::Never;
    let mut last = String::new();
    while world.now() < began + SETTLED_WITHIN_MS {
        sleep(world, To::World, 400).await;
        match client.demand(world, at, Does::Append).await {
            Err(what) => {
                world.violated(client.sid(), format!("{} did not serve: {what}", crate::name(at)));
                return false;
            }
            Ok(reply) => {
                let ran_there = reply.served_by == Some(crate::name(at));
                let owns = client.sid().zip(world.peer(at)).is_some_and(|(sid, peer)| {
                    peer.look(sid, |machine| machine.is_owner()) == Some(true)
                });
                if owns && (ran_there || !runs_there) {
                    return true;
                }
                let app = world.peer(at).map(|peer| peer.slots[SHOP].borrow().state());
                last = format!(
                    "owned there: {owns}, run by {:?}, its app is {app:?}",
                    reply.served_by
                );
            }
        }
    }
    let what = format!("client {} stays with {}, but: {last}", client.name, crate::name(at));
    world.violated(client.sid(), what);
    false
}

/// The session is on as many live peers as it should be, each with the owner's newest record.
fn is_whole(world: &World, sid: SessionId, owner: usize) -> Result<(), String> {
    let Some(owner) = world.peer(owner) else { return Err("its owner is gone".into()) };
    let owned = owner
        .look(sid, |machine| (machine.is_owner(), machine.members().to_vec(), machine.version()));
    let Some((true, members, version)) = owned else { return Err("it lost its owner".into()) };
    // One that went on alone votes no more.
    let votes = |peer: &&Rc<Peer>| peer.look(sid, |it| it.fenced()).flatten().is_none();
    let able = world.live_peers().iter().filter(votes).count();
    let wanted = world.knobs.policy.copies.min(able);
    let config = owner.look(sid, |machine| machine.config().cloned()).flatten();
    let silenced = members
        .iter()
        .any(|member| config.as_ref().is_some_and(|cfg| !world.can_vote(sid, &cfg.now, *member)));
    if silenced {
        // One that lives and votes no more is not replaced.
        world.count("members without a vote");
        return Ok(());
    }
    let held = members.iter().filter(|member| {
        world.peer_of(**member).is_some_and(|peer| {
            // An executor may hold a vote for more than came to be.
            peer.look(sid, |machine| machine.holds_copy() && machine.version() >= version)
                == Some(true)
        })
    });
    let held = held.count();
    if members.len() != wanted || held != wanted {
        return Err(format!("of {} members {held} hold it, instead of {wanted}", members.len()));
    }
    Ok(())
}

fn draw_knobs(rng: &mut Prng) -> Knobs {
    let peers = *rng.pick(&[2, 3, 3, 4, 5, 5, 6]);
    let short_ttl = rng.chance(20);
    let policy = SessionPolicy::default().with(|made| {
        made.ttl = if short_ttl { Duration::from_secs(24) } else { Duration::from_secs(1800) };
        made.forget_grace =
            if short_ttl { Duration::from_secs(5) } else { Duration::from_secs(60) };
        made.recent_keyed_max = *rng.pick(&[2, 4, 6, 32]);
        made.recent_unkeyed_max = *rng.pick(&[2, 16]);
        made.queue_max = *rng.pick(&[2, 64]);
        made.without_majority =
            if rng.chance(12) { WithoutMajority::Serve } else { WithoutMajority::Refuse };
        made.move_interval = Duration::from_secs(*rng.pick(&[1, 10]));
    });
    let idle = rng.chance(30);
    let keep_ready = rng.below(3) as u32 / 2;
    let never = rng.chance(25).then(|| rng.below(peers as u64) as usize);
    let app = |node: usize| {
        AppPolicy::default().with(|made| {
            made.start = if never == Some(node) { StartMode::Never } else { StartMode::OnRequest };
            made.stop_when_idle = idle.then_some(Duration::from_secs(4));
            made.keep_ready = keep_ready;
        })
    };
    let forgetful = rng.chance(25);
    // Of two peers either serves without the other, and forks are never merged. What has been
    // forgotten by some is reported as lost although others still hold some of it.
    let refuses = policy.without_majority == WithoutMajority::Refuse;
    let keeps = peers > 2 && refuses && !short_ttl && !forgetful;
    Knobs {
        peers,
        keepers: if keeps { 1 + rng.below(3) as usize } else { 0 },
        clients: 2 + rng.below(3) as usize,
        resting: 1 + rng.below(4) as usize,
        policy,
        seeds: Vec::new(),
        apps: (0..peers).map(app).collect(),
        gentle: rng.chance(65),
        short_ttl,
        forgetful,
        fleeting: false,
        faults_ms: 20_000 + rng.below(40_000),
        start_ms: *rng.pick(&[(50, 300), (300, 3_000)]),
    }
}

/// All others, the first few, or one: then only those whom they meet tell who else there is. Keys are
/// kept where everyone is a seed: of two sides of a partition on which all were restarted meanwhile,
/// each may hold what the other has never heard of, and only seeds tell that there is another.
fn draw_seeds(rng: &mut Prng, knobs: &Knobs) -> Vec<Vec<usize>> {
    let peers = knobs.peers;
    let count = if knobs.keepers > 0 { peers } else { *rng.pick(&[1, 3, peers]) };
    let of = |node: usize| {
        (0..count.max(2)).filter(move |at| *at != node && *at < peers).take(count).collect()
    };
    (0..peers).map(of).collect()
}
