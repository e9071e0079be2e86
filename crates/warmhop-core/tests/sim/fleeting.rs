//! Registers that last for a moment: set for a while, deleted and set again, by clients that share a few
//! keys, while peers crash, stop and are cut off for longer than what is over is remembered.
//!
//! What is promised of them, by the times at which requests were sent and answered, and by clocks that differ:
//!
//! * What was answered is there for every later request, until its end, a deletion, or a death that nobody
//!   promised to survive.
//! * What has ended, was deleted or was replaced never comes back, and what was set since does not show it.
//! * Each request takes effect once at most, and not at all if the answer to its client said so.
//! * Once all has healed, every request at every peer is answered.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use warmhop_core::config::{AppPolicy, SessionPolicy};
use warmhop_core::ids::SessionId;
use warmhop_core::problem::{Applied, ProblemKind};
use warmhop_core::session::Session;
use warmhop_core::session::message::{Exec, ExecDone};

use crate::calls::{Asked, Call, Does, LocalError};
use crate::client::{End, send};
use crate::narrate::Narrator;
use crate::peer::Peer;
use crate::prng::Prng;
use crate::reference::{SKEW_MS_MAX, read_list};
use crate::run::{Report, finish, report};
use crate::world::{Knobs, To, World, sleep};

/// How many keys there are.
const KEYS: u64 = 4;
/// For how long most requests are about one key, before they leave it alone for the others' times.
const TURN_MS: u64 = 9_000;
/// How long after the last fault every request is answered.
const SERVED_WITHIN_MS: u64 = 25_000;
/// By how much an end may be misjudged: clocks differ.
const SLACK_MS: u64 = SKEW_MS_MAX + 100;

/// The register with this number.
fn sid_of(number: u64) -> SessionId {
    SessionId(Prng(0x0F1E_E719 + number).bytes())
}

pub(crate) fn is_fleeting(sid: SessionId) -> bool {
    (0..KEYS).any(|number| sid_of(number) == sid)
}

pub(crate) fn run(seed: u64, listening: bool) -> Report {
    let mut rng = Prng(seed ^ 0x000F_1EE7);
    let knobs = draw_knobs(&mut rng);
    let world = World::new(knobs, rng, Narrator::new(listening));
    world.note(None, || format!("{:?}", world.knobs));
    world.net.borrow_mut().heal();
    for node in 0..world.knobs.peers {
        Peer::start(&world, node);
    }
    world.run_until(world.now() + 3_000);
    for name in 0..world.knobs.keepers {
        world.spawn(None, live(Rc::clone(&world), name));
    }
    world.spawn(None, crate::faults::rage(Rc::clone(&world)));
    world.run_until(world.now() + world.knobs.faults_ms);
    crate::run::heal(&world, &[]);
    world.run_until(world.resumed_by() + SERVED_WITHIN_MS);
    finish(&world, demand(Rc::clone(&world)));
    report(&world)
}

fn draw_knobs(rng: &mut Prng) -> Knobs {
    let peers = *rng.pick(&[3, 3, 4, 5, 5]);
    let policy = SessionPolicy::default().with(|made| {
        made.ttl = Duration::from_secs(1800);
        made.forget_grace = Duration::from_secs(*rng.pick(&[3, 6]));
        made.recent_unkeyed_max = *rng.pick(&[2, 16]);
        made.move_interval = Duration::from_secs(*rng.pick(&[1, 10]));
    });
    Knobs {
        peers,
        keepers: 2 + rng.below(3) as usize,
        clients: 0,
        resting: 0,
        policy,
        seeds: (0..peers).map(|node| (0..peers).filter(|at| *at != node).collect()).collect(),
        apps: vec![AppPolicy::default(); peers],
        gentle: rng.chance(80),
        short_ttl: false,
        forgetful: false,
        fleeting: true,
        faults_ms: 60_000 + rng.below(60_000),
        start_ms: (50, 300),
    }
}

/// Goes on asking until faults end.
async fn live(world: Rc<World>, name: usize) {
    loop {
        let pause = if world.chance(40) { 40 } else { 1_500 };
        sleep(&world, To::World, world.between(1, pause)).await;
        if !world.faults_on.get() {
            return;
        }
        let turn = world.now() / TURN_MS;
        let number = if world.chance(15) { world.below(KEYS) } else { turn % KEYS };
        let node = world.below(world.knobs.peers as u64) as usize;
        let does = match world.below(20) {
            0..=4 => Does::Begin,
            5..=9 => Does::Append,
            10..=12 => Does::Delete,
            _ => Does::Read,
        };
        let lasts = match world.below(4) {
            0 => world.between(50, 1_000),
            1 | 2 => world.between(1_000, 5_000),
            _ => world.between(5_000, 25_000),
        };
        let _ = ask(&world, name, node, number, does, lasts).await;
    }
}

/// Asks once, and has the answer judged.
async fn ask(
    world: &Rc<World>,
    name: usize,
    node: usize,
    number: u64,
    does: Does,
    lasts_ms: u64,
) -> Result<(), String> {
    let (id, sid) = (world.next_request(), sid_of(number));
    let asked = Asked { lasts_ms: Some(lasts_ms), ..Asked::of_register(sid, id, does) };
    let request = Request { id, does, lasts_ms, sent: world.now(), was_refused: false };
    world.fleeting.borrow_mut().entry(sid).or_default().requests.insert(id, request);
    let reply = match send(world, name, node, asked, None).await {
        End::Refused => return Err("nobody listens".into()),
        End::Nothing => return Err("no answer came".into()),
        End::Reply(reply) => reply,
    };
    let judged = {
        let mut registers = world.fleeting.borrow_mut();
        let register = registers.entry(sid).or_default();
        match &reply.answer {
            Err(problem) => {
                if problem.applied() == Applied::No
                    && let Some(request) = register.requests.get_mut(&id)
                {
                    request.was_refused = true;
                }
                register.refused(id)
            }
            Ok(answer) => register.answered(id, world.now(), read_list(answer)),
        }
    };
    if let Err(what) = judged {
        let shown = reply.answer.as_deref().map(read_list);
        world.violated(Some(sid), format!("request {id} ({does:?}): {what}; answered {shown:?}"));
    }
    match reply.answer {
        Ok(_) => world.count("fleeting answered"),
        Err(problem) => {
            world.count(problem.name());
            return Err(format!("{} {}", problem.status(), problem.name()));
        }
    }
    Ok(())
}

/// Each request is answered at every peer, once all has healed: at once, or when it is sent again because nobody
/// can tell what came of it.
async fn demand(world: Rc<World>) {
    let unknown = ProblemKind::OutcomeUnknown;
    let unknown = Err(format!("{} {}", unknown.status(), unknown.name()));
    for number in 0..KEYS {
        for node in 0..world.knobs.peers {
            let all =
                [Does::Read, Does::Delete, Does::Begin, Does::Append, Does::Delete, Does::Read];
            for does in all {
                let mut end = ask(&world, 99, node, number, does, 3_000).await;
                // A peer that promised more to somebody who is long gone deposes a peer that begins beside it,
                // once: what came of that request is not known, and said to be so.
                if end == unknown {
                    world.count("unknown though healed");
                    end = ask(&world, 99, node, number, does, 3_000).await;
                }
                if let Err(what) = end {
                    let at = crate::name(node);
                    let what = format!("{at} did not serve {does:?}: {what}");
                    world.violated(Some(sid_of(number)), what);
                    return;
                }
            }
        }
        world.count("fleeting registers looked at");
    }
}

/// Of two peers one dies, and what the other holds ends, by itself or because it is deleted. The one that is left
/// serves alone: it takes what is set since.
pub(crate) fn in_a_pair(seed: u64, listening: bool, is_deleted: bool) -> Report {
    let world = crate::one_link::healthy(seed, listening, 2, 3);
    let at = usize::from(seed.is_multiple_of(2));
    let steps = |steps: Vec<Does>| {
        let of = Rc::clone(&world);
        finish(&world, async move {
            for does in steps {
                if let Err(what) = ask(&of, 0, at, 0, does, 1_000).await {
                    of.violated(Some(sid_of(0)), format!("it did not serve {does:?}: {what}"));
                }
            }
        });
    };
    steps(vec![Does::Begin]);
    if is_deleted {
        steps(vec![Does::Delete]);
    }
    crate::faults::end(&world, 1 - at);
    world.run_until(world.now() + world.between(3_000, 20_000));
    steps(vec![Does::Read, Does::Begin, Does::Append, Does::Delete, Does::Begin]);
    report(&world)
}

/// Registers are deleted while a peer that holds some of them is away, for longer than the others remember
/// them. Once it is back nobody holds them any more, so that nobody lists them, though nobody asks for them.
pub(crate) fn deleted_while_away(
    seed: u64,
    listening: bool,
    peers: usize,
    stands_still: bool,
) -> Report {
    const AWAY_MS: u64 = 85_000;
    let world = crate::one_link::healthy(seed, listening, peers, 3);
    let each = |does: Does, lasts_ms: u64, nodes: Vec<usize>| {
        let of = Rc::clone(&world);
        finish(&world, async move {
            for number in 0..KEYS {
                let node = nodes[of.below(nodes.len() as u64) as usize];
                if let Err(what) = ask(&of, 0, node, number, does, lasts_ms).await {
                    of.violated(Some(sid_of(number)), format!("{does:?} was refused: {what}"));
                }
            }
        });
    };
    each(Does::Append, 1_700_000, (0..peers).collect());
    world.run_until(world.now() + 3_000);
    let back = world.now() + AWAY_MS;
    if stands_still {
        world.pause(0, AWAY_MS, false);
    } else {
        let mut net = world.net.borrow_mut();
        (1..peers).for_each(|other| net.cut(0, other, back));
        (1..peers).for_each(|other| net.cut(other, 0, back));
    }
    world.run_until(world.now() + 6_000);
    each(Does::Delete, 0, (1..peers).collect());
    world.run_until(back + 30_000);
    for (number, peer) in
        (0..KEYS).flat_map(|it| world.live_peers().into_iter().map(move |peer| (it, peer)))
    {
        let held =
            peer.look(sid_of(number), |machine| machine.state().and_then(|it| read_list(it.0).0));
        if let Some(list) = held.flatten() {
            world.violated(Some(sid_of(number)), format!("{} still holds list {list}", peer.me));
        }
    }
    let now = world.now();
    each(Does::Begin, 1_000, (0..peers).collect());
    if world.now() - now > KEYS * 1_000 {
        world.violated(None, format!("{KEYS} requests took {} ms", world.now() - now));
    }
    report(&world)
}

/// The same, and the registers are made anew before the peer is back. It is asked for them as soon as it is
/// heard, by one of the others after the other: what was made anew is there.
pub(crate) fn made_anew_while_away(seed: u64, listening: bool, peers: usize) -> Report {
    const AWAY_MS: u64 = 85_000;
    let world = crate::one_link::healthy(seed, listening, peers, 3);
    let each = |does: Does, nodes: Vec<usize>, is_served: bool| {
        let of = Rc::clone(&world);
        finish(&world, async move {
            for number in 0..KEYS {
                let node = nodes[of.below(nodes.len() as u64) as usize];
                let asked = ask(&of, 0, node, number, does, 1_700_000).await;
                if let Some(what) = asked.err().filter(|_| is_served) {
                    of.violated(Some(sid_of(number)), format!("{does:?} was refused: {what}"));
                }
            }
        });
    };
    let others = || (1..peers).collect::<Vec<_>>();
    each(Does::Append, vec![0], true);
    world.run_until(world.now() + 3_000);
    let back = world.now() + AWAY_MS;
    for other in 1..peers {
        let until = back + world.below(3_000);
        let mut net = world.net.borrow_mut();
        net.cut(0, other, until);
        net.cut(other, 0, until);
    }
    world.run_until(world.now() + 6_000);
    each(Does::Delete, others(), true);
    world.run_until(back - 10_000);
    each(Does::Append, others(), true);
    world.run_until(back);
    for _ in 0..12 {
        each(Does::Read, vec![0], false);
        world.run_until(world.now() + 250);
    }
    world.run_until(back + 30_000);
    for node in 0..peers {
        each(Does::Read, vec![node], true);
    }
    for number in 0..KEYS {
        let held = world.live_peers().into_iter().filter(|peer| {
            let state = |machine: &Session| machine.state().and_then(|it| read_list(it.0).0);
            peer.look(sid_of(number), state).flatten().is_some()
        });
        if held.count() < 2 {
            world.violated(Some(sid_of(number)), "what was made anew is gone".into());
        }
    }
    report(&world)
}

/// Registers are deleted while a peer that holds some of them is away, and set again before it is back, at about
/// the time when the others forget them: that takes no longer than at any other time.
pub(crate) fn set_again_while_away(seed: u64, listening: bool, peers: usize) -> Report {
    const TAKES_MS_MAX: u64 = 2_500;
    let world = crate::one_link::healthy(seed, listening, peers, 3);
    let each = |does: Does, nodes: Vec<usize>| {
        let of = Rc::clone(&world);
        finish(&world, async move {
            for number in 0..KEYS {
                let node = nodes[of.below(nodes.len() as u64) as usize];
                let began = of.now();
                let answer = ask(&of, 0, node, number, does, 1_700_000).await;
                let took = of.now() - began;
                if answer.is_err() || does == Does::Begin && took > TAKES_MS_MAX {
                    let what = format!("{does:?} took {took} ms: {answer:?}");
                    of.violated(Some(sid_of(number)), what);
                }
            }
        });
    };
    let others = || (1..peers).collect::<Vec<_>>();
    each(Does::Append, (0..peers).collect());
    world.run_until(world.now() + 3_000);
    for other in 1..peers {
        let mut net = world.net.borrow_mut();
        net.cut(0, other, u64::MAX);
        net.cut(other, 0, u64::MAX);
    }
    world.run_until(world.now() + 5_000);
    let deleted = world.now();
    each(Does::Delete, others());
    world.run_until(deleted + world.between(55_000, 75_000));
    each(Does::Begin, others());
    report(&world)
}

/// What is known of one register.
#[derive(Default)]
pub(crate) struct Register {
    requests: BTreeMap<u16, Request>,
    /// Each list that was shown, by its own number: the longest of it.
    lists: BTreeMap<u32, Vec<u16>>,
    /// In which list each request is.
    list_of: BTreeMap<u16, u32>,
    seen: Vec<Seen>,
    /// When so many of its holders were gone at once that it may be lost.
    pub(crate) endangered: Option<u64>,
}

struct Request {
    id: u16,
    does: Does,
    lasts_ms: u64,
    sent: u64,
    /// The answer to its client says that it did nothing.
    was_refused: bool,
}

/// What one answer showed.
#[derive(Debug, Clone)]
struct Seen {
    by: u16,
    sent: u64,
    answered: u64,
    list: Option<(u32, usize)>,
    /// The request took what it shows away.
    takes_away: bool,
}

type Shown = (Option<u32>, Vec<u16>);

impl Register {
    /// The answer to the client says that the request failed.
    fn refused(&self, id: u16) -> Result<(), String> {
        let refused = self.requests.get(&id).is_some_and(|it| it.was_refused);
        match self.list_of.get(&id).filter(|_| refused) {
            Some(_) => Err("it was said to have done nothing, and had been seen".into()),
            None => Ok(()),
        }
    }

    fn answered(&mut self, id: u16, now: u64, (list_id, list): Shown) -> Result<(), String> {
        let Some(request) = self.requests.get(&id) else { return Ok(()) };
        let (does, sent) = (request.does, request.sent);
        let is_there = match does {
            Does::Append => list.last() == Some(&id),
            Does::Begin => !list.is_empty(),
            Does::Read | Does::Mark | Does::Delete => true,
        };
        if !is_there {
            return Err("its change is not in its answer, or not last".into());
        }
        let seen = Seen {
            by: id,
            sent,
            answered: now,
            list: list_id.map(|list_id| (list_id, list.len())),
            takes_away: does == Does::Delete && list_id.is_some(),
        };
        if let Some(list_id) = list_id {
            self.take_in(list_id, &list)?;
            let ended = self.shown_after_its_end(&seen, list_id, &list);
            if let Some(by) = ended {
                return Err(format!("it had ended {by} ms before that was asked for"));
            }
        }
        for before in self.seen.iter().filter(|before| before.answered < sent) {
            self.follows(before, &seen)?;
        }
        self.seen.push(seen);
        Ok(())
    }

    /// Takes in what a list holds.
    fn take_in(&mut self, list_id: u32, list: &[u16]) -> Result<(), String> {
        let known = self.lists.entry(list_id).or_default();
        let both = known.len().min(list.len());
        if known[..both] != list[..both] {
            return Err(format!("two histories: the other is {known:?}"));
        }
        for (at, id) in list.iter().enumerate() {
            if list[..at].contains(id) {
                return Err(format!("request {id} was applied twice"));
            }
            let other = self.list_of.insert(*id, list_id).filter(|other| *other != list_id);
            if let Some(other) = other {
                let other = &self.lists[&other];
                return Err(format!("request {id} was applied twice: before that in {other:?}"));
            }
            match self.requests.get(id) {
                None => return Err(format!("request {id} was never sent")),
                Some(it) if it.was_refused => {
                    return Err(format!("request {id} was said to have done nothing"));
                }
                Some(_) => {}
            }
        }
        if list.len() > self.lists[&list_id].len() {
            self.lists.insert(list_id, list.to_vec());
        }
        Ok(())
    }

    /// By how much what is shown had ended for certain before that was asked for.
    fn shown_after_its_end(&self, seen: &Seen, list_id: u32, list: &[u16]) -> Option<u64> {
        // What it added to has to have been there.
        let base = list.strip_suffix(&[seen.by]).unwrap_or(list);
        let end = self.ended_by(list_id, base)? + SLACK_MS;
        (seen.sent > end).then(|| seen.sent - end)
    }

    /// The latest time at which the list can have ended.
    fn ended_by(&self, list_id: u32, list: &[u16]) -> Option<u64> {
        let last = self.requests.get(list.last()?)?;
        let shows = |it: &&Seen| {
            it.by == last.id && it.list.is_some()
                || it.list.is_some_and(|(id, len)| id == list_id && len >= list.len())
        };
        let ran_by = self.seen.iter().filter(shows).map(|it| it.answered).min()?;
        Some(ran_by + last.lasts_ms)
    }

    /// Whether `after`, which was asked for once `before` was answered, may follow it.
    fn follows(&self, before: &Seen, after: &Seen) -> Result<(), String> {
        if let Some((list_id, count)) = before.list.filter(|_| !before.takes_away) {
            let longest = &self.lists[&list_id];
            match after.list {
                Some((id, len)) if id == list_id && len < count => {
                    let missing = &longest[len..count];
                    return Err(format!("{missing:?} had been answered, and is not in it"));
                }
                Some((id, _)) if id == list_id => {}
                _ if self.may_be_over(before, (list_id, count), after) => {}
                _ => {
                    let longest = &longest[..count];
                    return Err(format!("{longest:?} had been answered, and has not ended"));
                }
            }
        }
        let Some((list_id, len)) = after.list else { return Ok(()) };
        let shows_it = |it: &Seen| it.list.is_some_and(|(id, _)| id == list_id);
        if before.takes_away && shows_it(before) {
            return Err(format!("request {} had deleted it", before.by));
        }
        // It was there before `before` was asked for, which did not see it any more.
        let was_there = self.seen.iter().any(|it| it.answered < before.sent && shows_it(it));
        if !was_there || shows_it(before) {
            return Ok(());
        }
        if before.list.is_some() {
            return Err(format!("request {} had seen another after it", before.by));
        }
        let longest = &self.lists[&list_id];
        let base = longest[..len].strip_suffix(&[after.by]).unwrap_or(&longest[..len]);
        let has_ended = self.ended_by(list_id, base).is_some_and(|end| after.sent > end + SLACK_MS);
        let was_deleted = before.answered + SLACK_MS < self.ends_from(list_id, 0);
        if has_ended || was_deleted {
            return Err(format!("request {} had seen nothing any more", before.by));
        }
        Ok(())
    }

    /// The earliest time at which the list can have ended by itself, if it was as long as this once.
    fn ends_from(&self, list_id: u32, len: usize) -> u64 {
        let known = &self.lists[&list_id][len.saturating_sub(1)..];
        let is_there = |it: &&Request| match self.list_of.get(&it.id) {
            Some(_) => known.contains(&it.id),
            // It may have been added since, whatever came of it.
            None => it.does == Does::Append && !it.was_refused,
        };
        let ends = self.requests.values().filter(is_there).map(|it| it.sent + it.lasts_ms);
        ends.min().unwrap_or(u64::MAX)
    }

    /// Whether a list that was answered may be over by the time of another answer.
    fn may_be_over(&self, before: &Seen, (list_id, len): (u32, usize), after: &Seen) -> bool {
        let has_ended = self.ends_from(list_id, len) <= after.answered + SLACK_MS;
        let is_lost = self.endangered.is_some_and(|at| before.sent <= at);
        let deletes =
            |it: &&Request| it.does == Does::Delete && it.sent < after.answered && !it.was_refused;
        let mut deletions = self.requests.values().filter(deletes);
        let deleted = deletions.any(|it| match self.seen.iter().find(|seen| seen.by == it.id) {
            Some(seen) => seen.list.is_some_and(|(id, _)| id == list_id),
            // What came of it is not known.
            None => true,
        });
        has_ended || is_lost || deleted
    }
}

impl Peer {
    /// Whether all that this peer holds of a register ended some time ago.
    pub(crate) fn holds_what_is_over(&self, sid: SessionId) -> bool {
        let end = self.look(sid, |machine| machine.state().map(|(_, end)| end)).flatten();
        end.is_none_or(|end| end.0 + SLACK_MS < self.wall().0)
    }

    /// Executes a request for a register that lasts for a while: as the mesh crate does, in one step.
    pub(crate) fn operate(
        self: &Rc<Self>,
        call: &Call,
        sid: SessionId,
        exec: &Exec,
        lasts_ms: u64,
    ) -> Result<(Arc<[u8]>, ExecDone), LocalError> {
        let done = self.with(sid, true, |machine, ctx, _| {
            let base = machine.exec_begin(ctx, exec)?;
            let now = ctx.wall;
            let state = base.state.clone().filter(|_| base.expiry > now);
            let (answer, change) = self.outcome(&call.asked, state);
            let (change, until) = match call.asked.does {
                Does::Delete => (change.map(|_| None), now),
                _ => (change.map(Some), now.after(Duration::from_millis(lasts_ms))),
            };
            let done = match change {
                Some(change) => machine.exec_end_until(ctx, exec, &base, Some(change), until),
                None => {
                    let stored = warmhop_core::session::message::Stored::Applied;
                    machine.exec_end(ctx, exec, &base, None, stored)
                }
            };
            Ok((answer, done))
        });
        done.ok_or(LocalError::NotReady)?.map_err(LocalError::Refused)
    }
}
