//! Whether a session's machines withstand a member of the mesh that lies about it: whatever it
//! sends, none panics or grows without bound; and while the liar is no member of the session and
//! sends nothing but votes, every acknowledged answer shows in every later one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use warmhop_core::config::SessionPolicy;
use warmhop_core::ids::{Incarnation, Now, Position, RequestKey, SessionId, WallTime};
use warmhop_core::session::message::{
    Config, Exec, ExecDone, MEMBERS_MAX, Members, Message, NackReason, Stored,
};
use warmhop_core::session::{
    Ctx, Effect, Effects, Otherwise, Outcome, Process, Session, Submit, Ticket,
};

use crate::links::wire::{self, SESSION_FRAME_BYTES_MAX};

/// Peers that follow the protocol.
const HONEST: usize = 3;
/// The most messages of others that the liar can repeat in its own words.
const OVERHEARD_MAX: usize = 64;
/// The most effects of one call: a few messages to every known peer.
const EFFECTS_MAX: usize = 512;
/// The largest state of a machine, written out: an input can add far less.
const HELD_BYTES_MAX: usize = 1 << 20;
/// The wall clock when a session begins, in milliseconds.
const DAWN: u64 = 1_000_000_000;

const SID: SessionId = SessionId([5; 16]);
const LIAR: Incarnation = Incarnation([99; 16]);

fn honest(at: usize) -> Incarnation {
    Incarnation([at as u8 + 1; 16])
}

enum What {
    Protocol(Message),
    Order(Ticket, Exec),
    Result(Ticket, Option<Position>, ExecDone, Vec<u8>),
}

struct Packet {
    from: Incarnation,
    to: usize,
    what: What,
}

/// A client's knowledge of a request.
struct Asked {
    at: usize,
    /// The changes acknowledged before it was sent.
    before: Vec<u8>,
    /// Where it was last ordered, and the answer of its run.
    ordered: Option<Option<Position>>,
    answer: Option<Vec<u8>>,
}

struct World<'a> {
    input: &'a [u8],
    policy: SessionPolicy,
    now: u64,
    peers: Vec<(Session, Process)>,
    flying: VecDeque<Packet>,
    overheard: VecDeque<Vec<u8>>,
    asked: BTreeMap<u64, Asked>,
    acknowledged: Vec<u8>,
    /// The liar is no member, and says nothing but what votes are.
    votes_alone: bool,
    released: usize,
}

/// Carries out `input` on a session of three honest peers and a liar; returns how many requests
/// were answered.
///
/// # Panics
/// If a machine holds or asks for too much, or an acknowledged change is missing in a later answer.
pub fn sessions(input: &[u8]) -> usize {
    let Some((how, input)) = input.split_first() else { return 0 };
    let policy = SessionPolicy::default();
    let processes = (0..HONEST).map(|_| Process::default());
    let peers = processes.map(|process| (Session::new(SID, &process), process)).collect();
    let mut world = World {
        input,
        policy,
        now: 0,
        peers,
        flying: VecDeque::new(),
        overheard: VecDeque::new(),
        asked: BTreeMap::new(),
        acknowledged: Vec::new(),
        votes_alone: how & 1 == 1,
        released: 0,
    };
    let liar = (how & 2 == 2 && !world.votes_alone).then_some(LIAR);
    let members = (0..HONEST).map(honest).take(MEMBERS_MAX - liar.iter().len()).chain(liar);
    let now = Members::first(DAWN, members);
    let cfg = Config { now, prev: None };
    if how & 4 == 4 && !world.votes_alone {
        world.act(0, |session, ctx, out| session.seek(ctx, &[], Otherwise::Begin(cfg), out));
    } else {
        world.act(0, |session, ctx, out| session.mint(ctx, cfg, out));
    }
    while world.step().is_some() {}
    world.released
}

impl World<'_> {
    fn byte(&mut self) -> Option<usize> {
        let (first, rest) = self.input.split_first()?;
        self.input = rest;
        Some(usize::from(*first))
    }

    fn step(&mut self) -> Option<()> {
        let what = self.byte()?;
        let (at, arg) = (what / 16 % HONEST, what / 16);
        match what % 16 {
            0..=4 => {
                if let Some(packet) = self.flying.pop_front() {
                    self.deliver(packet);
                }
            }
            5 => {
                let pick = self.byte()? % self.flying.len().max(1);
                if let Some(packet) = self.flying.remove(pick) {
                    self.deliver(packet);
                }
            }
            6 => {
                // It is lost; orders and results may be lost too, as when a peer's connection
                // breaks.
                self.flying.pop_front();
            }
            7 => self.submit(at),
            8 => {
                self.now += 50 << arg;
                for at in 0..HONEST {
                    self.act(at, Session::on_timer);
                }
            }
            9 => self.act(at, |session, ctx, out| {
                if !session.is_owner() {
                    session.take_over(ctx, None, 0, &[honest(0), honest(1)], out);
                }
            }),
            10 => {
                let to = honest(arg % HONEST);
                self.act(at, |session, ctx, out| session.hand_off(ctx, to, out));
            }
            11 => {
                let pick = self.byte()?;
                let peer = |pick: usize| if pick % 4 == 3 { LIAR } else { honest(pick % 4) };
                let (gone, newcomer) = (peer(pick), peer(pick / 4));
                if !self.votes_alone {
                    self.act(at, |session, ctx, out| {
                        session.change_members(ctx, Some(gone), Some(newcomer), out);
                    });
                }
            }
            12 => self.lie_of_a_result(at, arg)?,
            13 => {
                let bytes = self.byte()?.min(self.input.len());
                let (encoded, rest) = self.input.split_at(bytes);
                self.input = rest;
                self.lie(at, encoded);
            }
            _ => {
                let pick = self.byte()? % self.overheard.len().max(1);
                let Some(mut message) = self.overheard.get(pick).cloned() else { return Some(()) };
                for _ in 0..arg % 4 {
                    let (place, value) = (self.byte()? % message.len().max(1), self.byte()?);
                    if let Some(byte) = message.get_mut(place) {
                        *byte = value as u8;
                    }
                }
                self.lie(at, &message);
            }
        }
        Some(())
    }

    /// The liar sends a peer the message in `encoded`, if there is one.
    fn lie(&mut self, to: usize, encoded: &[u8]) {
        let Ok(message) = wire::decode::<Message, SESSION_FRAME_BYTES_MAX>(encoded) else { return };
        let is_vote = match &message {
            Message::Promise { births, .. } | Message::Free { births, .. } => births.is_empty(),
            Message::Accepted { .. } | Message::NeedFull { .. } => true,
            Message::Nack { cfg, reason, .. } => {
                cfg.is_none() && matches!(reason, NackReason::Higher | NackReason::Full)
            }
            _ => false,
        };
        if is_vote || !self.votes_alone {
            self.act(to, |session, ctx, out| session.on_message(ctx, LIAR, message, out));
        }
    }

    /// The liar answers for a run that it was asked for, or was not.
    fn lie_of_a_result(&mut self, at: usize, arg: usize) -> Option<()> {
        let pick = self.byte()? as u64 % (self.asked.len() as u64 + 1);
        if self.votes_alone {
            return Some(());
        }
        let p = self.asked.get(&pick).and_then(|asked| asked.ordered).flatten();
        let body = Arc::default();
        let done = match arg % 4 {
            0 => ExecDone::Changed { body, voted: arg & 4 == 4 },
            1 => ExecDone::Unchanged { confirmed: true },
            2 => ExecDone::NeedBase,
            _ => ExecDone::Refused {
                reason: NackReason::Forgotten,
                promised: None,
                watermark: u64::MAX,
            },
        };
        let outcome = Outcome::Done(done);
        self.act(at, |session, ctx, out| session.executed(ctx, Ticket(pick), p, outcome, out));
        Some(())
    }

    fn submit(&mut self, at: usize) {
        let ticket = self.asked.len() as u64;
        let Ok(rid) = u8::try_from(ticket) else { return };
        let before = self.acknowledged.clone();
        self.asked.insert(ticket, Asked { at, before, ordered: None, answer: None });
        let submit = Submit {
            ticket: Ticket(ticket),
            rid: RequestKey([rid; 16]),
            fingerprint: 0,
            keyed: false,
            seen: None,
            safe: false,
        };
        self.act(at, |session, ctx, out| session.submit(ctx, submit, out));
    }

    /// Makes a peer's machine act, and carries out the effects.
    fn act(&mut self, at: usize, act: impl FnOnce(&mut Session, &mut Ctx<'_>, &mut Effects)) {
        let mut out = Effects::new();
        let (session, process) = &mut self.peers[at];
        let wall = WallTime(DAWN + self.now);
        let mut ctx = Ctx {
            me: honest(at),
            now: Now(self.now),
            wall,
            policy: &self.policy,
            process,
            dice: 0,
        };
        act(session, &mut ctx, &mut out);
        assert!(out.len() <= EFFECTS_MAX, "{} effects at once", out.len());
        let held = format!("{session:?}").len();
        assert!(held <= HELD_BYTES_MAX, "a machine holds {held} bytes");
        for effect in out {
            self.carry_out(at, effect);
        }
    }

    fn carry_out(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::Send { to, message } => {
                if let Ok(bytes) = wire::encode(&message, SESSION_FRAME_BYTES_MAX) {
                    if self.overheard.len() >= OVERHEARD_MAX {
                        self.overheard.pop_front();
                    }
                    self.overheard.push_back(bytes.to_vec());
                }
                self.send(honest(at), to, What::Protocol(message));
            }
            Effect::Turn { ticket } => {
                let executor = honest((at + ticket.0 as usize) % HONEST);
                self.act(at, |session, ctx, out| session.begin(ctx, ticket, executor, out));
            }
            Effect::Execute { ticket, executor, exec } => {
                if let Some(asked) = self.asked.get_mut(&ticket.0) {
                    asked.ordered = Some(exec.p);
                }
                self.send(honest(at), executor, What::Order(ticket, exec));
            }
            Effect::Release { ticket, .. } => self.acknowledge(at, ticket),
            Effect::Invited { cfg } => {
                self.act(at, |session, ctx, out| {
                    if !session.is_owner() {
                        session.take_over(ctx, Some(cfg), 0, &[], out);
                    }
                });
            }
            _ => {}
        }
    }

    fn send(&mut self, from: Incarnation, to: Incarnation, what: What) {
        if let Some(to) = (0..HONEST).find(|at| honest(*at) == to) {
            self.flying.push_back(Packet { from, to, what });
        }
    }

    fn deliver(&mut self, packet: Packet) {
        let Packet { from, to, what } = packet;
        match what {
            What::Protocol(message) => {
                self.act(to, |session, ctx, out| session.on_message(ctx, from, message, out));
            }
            What::Order(ticket, exec) => {
                let mut came = None;
                self.act(to, |session, ctx, _| came = Some(run(session, ctx, &exec)));
                if let Some((done, answer)) = came {
                    self.send(honest(to), from, What::Result(ticket, exec.p, done, answer));
                }
            }
            What::Result(ticket, p, done, answer) => {
                if let Some(asked) = self.asked.get_mut(&ticket.0).filter(|it| it.at == to)
                    && asked.ordered == Some(p)
                {
                    asked.answer = Some(answer);
                }
                self.act(to, |session, ctx, out| {
                    session.executed(ctx, ticket, p, done.into(), out)
                });
            }
        }
    }

    /// A client gets its answer.
    fn acknowledge(&mut self, at: usize, ticket: Ticket) {
        let Some(asked) = self.asked.get(&ticket.0).filter(|asked| asked.at == at) else { return };
        self.released += 1;
        let Some(answer) = &asked.answer else { return };
        if self.votes_alone {
            let lost = asked.before.iter().find(|change| !answer.contains(change));
            assert!(lost.is_none(), "{lost:?} was acknowledged, and is missing in {answer:?}");
            self.acknowledged.push(ticket.0 as u8);
        }
    }
}

/// The app: it adds the request to the list that is the session's state, and answers with it.
fn run(session: &mut Session, ctx: &mut Ctx<'_>, exec: &Exec) -> (ExecDone, Vec<u8>) {
    let base = match session.exec_begin(ctx, exec) {
        Ok(base) => base,
        Err(done) => return (done, Vec::new()),
    };
    let mut list = base.state.as_deref().unwrap_or_default().to_vec();
    list.push(exec.rid.0[0]);
    let change = Some(Some(Arc::from(list.as_slice())));
    (session.exec_end(ctx, exec, &base, change, Stored::Applied), list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::arbitrary::{Numbers, feed};

    /// Frequent sequences: a request is submitted, and all that follows arrives.
    const BEATS: &[&[u8]] = &[
        &[0x07, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x17, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x19, 0, 0, 0, 0, 0, 0],
        &[0x29, 0, 0, 0, 0, 0, 0],
        &[0x1A, 0, 0, 0, 0, 0],
        &[0x0B, 0x07, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x08],
        &[0x58],
        &[0x06],
        &[0x05, 3],
    ];

    #[test]
    fn a_session_bears_a_member_that_lies_and_loses_nothing_to_one_without_a_vote() {
        let make = |numbers: &mut Numbers| {
            let mut input = vec![numbers.below(8) as u8];
            for _ in 0..=numbers.below(40) {
                if numbers.below(2) == 0 {
                    input.extend_from_slice(BEATS[numbers.below(BEATS.len())]);
                } else {
                    // Something is repeated, changed in places.
                    let changes = numbers.below(4);
                    let at = numbers.below(HONEST);
                    input.push((14 + 16 * (at + 3 * changes)) as u8);
                    input.extend((0..=2 * changes).map(|_| numbers.below(256) as u8));
                }
            }
            input
        };
        let answered = feed("sessions", 4_400, make, sessions);
        assert!(answered > 2_000, "only {answered} were answered");
    }
}
