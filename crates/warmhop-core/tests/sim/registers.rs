//! Registers that a key names: any client begins them at any peer, several at once, and nobody
//! carries a token. Every answer shows the whole register, so that a history is linearizable where
//! the answers extend one another and each holds what was answered before it was asked for: the
//! same judge as for sessions.
//!
//! A fresh key is begun every few seconds, by all clients at once, whatever links are cut and whichever peer
//! was reborn by then.
//!
//! It is assumed that nobody is served for so long as a process has not met half of the others since
//! it was started. One that was started while it is cut off from everyone cannot tell that from being
//! the only one, and goes on alone once it is newborn no more.
//!
//! Nor is it promised that a register has one history where all who can be reached were restarted while
//! cut off from those who hold it, and have not met them for as long as a former life of theirs is missed:
//! nobody is left there who knows of a mesh in which it was begun. Two such histories are not judged, nor
//! is it that the register is called absent there.

use std::rc::Rc;
use std::sync::Arc;

use warmhop_core::ids::SessionId;
use warmhop_core::problem::{Applied, ProblemKind};
use warmhop_core::session::census::REBORN_FOR;
use warmhop_core::session::entry::{self, ByKey, Errand, FORWARDS_MAX};

use crate::calls::{Asked, Call, Does, Portable, Reply, Served};
use crate::client::{End, send};
use crate::peer::Peer;
use crate::prng::Prng;
use crate::reference::read_list;
use crate::world::{To, World, sleep};

/// For how long every client asks for the same register first.
const FRESH_EVERY_MS: u64 = 5_000;
/// How often a register that was lost is begun anew for one request.
const BEGUN_ANEW_MAX: usize = 2;

/// The register with this number.
pub(crate) fn sid_of(number: u64) -> SessionId {
    SessionId(Prng(0x00AC_E0FB_A5E0 + number).bytes())
}

/// Whether a key names it.
pub(crate) fn is_register(world: &World, sid: SessionId) -> bool {
    (0..=world.now() / FRESH_EVERY_MS).any(|number| sid_of(number) == sid)
}

/// Goes on asking until faults end.
pub(crate) async fn live(world: Rc<World>, name: usize) {
    loop {
        let pause = if world.chance(50) { 40 } else { 1_200 };
        sleep(&world, To::World, world.between(1, pause)).await;
        if !world.faults_on.get() {
            return;
        }
        let newest = world.now() / FRESH_EVERY_MS;
        let number = newest - if world.chance(25) { world.below(4) } else { 0 };
        let node = world.below(world.knobs.peers as u64) as usize;
        let does = match world.below(10) {
            0..=3 => Does::Begin,
            4..=6 => Does::Append,
            _ => Does::Read,
        };
        let _ = ask(&world, name, node, sid_of(number), does).await;
    }
}

/// Asks once, and has the answer judged; the list that it shows.
pub(crate) async fn ask(
    world: &Rc<World>,
    name: usize,
    node: usize,
    sid: SessionId,
    does: Does,
) -> Result<Vec<u16>, String> {
    let id = world.next_request();
    let asked = Asked::of_register(sid, id, does);
    let before = world.before(Some(sid));
    let sent = world.now();
    let reply = match send(world, name, node, asked.clone(), None).await {
        End::Refused => return Err("nobody listens".into()),
        End::Nothing => return Err("no answer came".into()),
        End::Reply(reply) => reply,
    };
    let shown = match &reply.answer {
        Ok(list) => read_list(list).1,
        Err(problem) => {
            world.count(problem.name());
            return Err(format!("{} {}", problem.status(), problem.name()));
        }
    };
    world.count("registers answered");
    // Too many of its holders were gone at once: nothing is promised any more.
    if world.noted_endangered(sid) {
        world.count("registers endangered");
        return Ok(shown);
    }
    if is_held_by_strangers(world, sid, &reply) {
        world.count("begun among strangers");
        world.note_endangered(sid);
        return Ok(shown);
    }
    let under = reply.cookie.as_deref().and_then(crate::client::sid_in).unwrap_or(sid);
    world.judge(&asked, &before, sent, under, &reply);
    Ok(shown)
}

/// A peer found that a register is lost, asked for or not: that is counted and logged, and from then on its
/// key is free, whichever peer is asked for it. It may only be lost after deaths that nobody promised to survive.
pub(crate) fn is_lost(world: &World, sid: SessionId) {
    if !is_register(world, sid) || !world.is_hopeless(sid) || world.noted_endangered(sid) {
        return;
    }
    if world.knobs.gentle && world.was_answered(sid) {
        world.violated(Some(sid), "the register is lost, and no two of its holders were".into());
    }
    world.note_endangered(sid);
}

/// Whether those that hold what was answered, or the peer that called it absent, have, in a long life, never met any
/// of those who hold another list under the same key.
fn is_held_by_strangers(world: &World, sid: SessionId, reply: &Reply) -> bool {
    let list_of = |bytes: &[u8]| read_list(bytes).0;
    let Ok(answer) = &reply.answer else { return false };
    let answered = list_of(answer);
    let peers = world.live_peers();
    let held = |peer: &&Rc<Peer>| {
        peer.look(sid, |machine| machine.state().and_then(|(bytes, _)| list_of(bytes))).flatten()
    };
    let (mut these, others): (Vec<_>, Vec<_>) =
        peers.iter().filter(|peer| held(peer).is_some()).partition(|peer| held(peer) == answered);
    if answered.is_none() {
        these = peers.iter().filter(|peer| reply.served_by.as_ref() == Some(&peer.me)).collect();
    }
    let is_old = |peer: &Peer| world.now() - peer.born >= REBORN_FOR.as_millis() as u64;
    let has_met =
        |peer: &Peer, other: &Peer| peer.view.borrow().by_incarnation(&other.inc).is_some();
    !others.is_empty()
        && (answered.is_some() || !these.is_empty())
        && these.iter().all(|peer| is_old(peer) && !others.iter().any(|it| has_met(peer, it)))
}

/// Each register is served at every peer, once all has healed.
pub(crate) async fn demand(world: Rc<World>, since: u64) {
    for number in since / FRESH_EVERY_MS..=world.now() / FRESH_EVERY_MS {
        let sid = sid_of(number);
        if !world.was_answered(sid) || world.noted_endangered(sid) {
            continue;
        }
        for node in 0..world.knobs.peers {
            if let Err(what) = ask(&world, 99, node, sid, Does::Read).await {
                let at = crate::name(node);
                world.violated(Some(sid), format!("{at} did not serve the register: {what}"));
                return;
            }
        }
        world.count("registers looked at");
    }
}

impl Peer {
    /// Serves a request for the register that `sid` is.
    pub(crate) async fn serve_register(
        self: &Rc<Self>,
        call: &mut Call,
        sid: SessionId,
    ) -> Result<Served, ProblemKind> {
        let seen = Some(self.surely_chosen(sid));
        let portable = Portable { rid: self.rid_of(&call.asked), seen, hops_left: FORWARDS_MAX };
        let begins = call.asked.begins();
        let asked = || entry::Asked { keyed: false, ..self.asked(portable, call) };
        for _ in 0..=BEGUN_ANEW_MAX {
            let mut errand = Errand::by_key(asked(), ByKey { sid, begins });
            let mut anew = Call { asked: call.asked.clone(), has_body: true, may_have_run: false };
            let end = self.run_errand(portable, &mut anew, &mut errand).await;
            let unsure = (errand.may_have_run() || anew.may_have_run) && !call.asked.is_safe();
            match end {
                Err(ProblemKind::Absent) => return Ok(self.nothing()),
                Err(ProblemKind::SessionLost) => {
                    let knobs = &self.world.knobs;
                    // Elsewhere several may be gone in the midst of a change of members.
                    let strict = knobs.gentle;
                    if strict && self.world.was_answered(sid) && !self.world.noted_endangered(sid) {
                        let what = format!("{} calls the register lost", self.me);
                        self.world.violated(Some(sid), what);
                    }
                    self.world.count("registers lost");
                    // Of what lasts for a moment it is not news that some peers hold too little.
                    if !crate::fleeting::is_fleeting(sid) {
                        self.world.note_endangered(sid);
                    }
                    let peers = self.whom_to_ask(sid);
                    self.with(sid, false, |machine, ctx, out| machine.bury(ctx, &peers, out));
                }
                Err(problem) if unsure && problem.applied() == Applied::No => {
                    return Err(ProblemKind::OutcomeUnknown);
                }
                end => return end,
            }
        }
        if begins { Err(ProblemKind::SessionLost) } else { Ok(self.nothing()) }
    }

    /// Whether an attempt of unknown outcome may be followed by another.
    pub(crate) fn may_repeat(&self, call: &Call, errand: &Errand) -> Result<(), ProblemKind> {
        let grace = self.world.knobs.policy.forget_grace;
        if errand.is_too_old(call.may_have_run, grace, &self.here(&self.view.borrow())) {
            self.world.count("too old to be repeated");
            return Err(ProblemKind::OutcomeUnknown);
        }
        Ok(())
    }

    /// What is answered where there is no register.
    fn nothing(&self) -> Served {
        self.world.count("absent");
        Served::here(self, Arc::from([]))
    }
}

/// A reply to nobody's session.
pub(crate) fn refusal(problem: ProblemKind) -> Reply {
    Reply {
        answer: Err(problem),
        cookie: None,
        served_by: None,
        lost: false,
        forked: false,
        replayed: false,
    }
}
