//! A trace in words: one line for each step.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::tables::{Envelope, Tables, What, World, history, inc, slot_of};
use super::world::Action;
use crate::ids::{Ballot, Incarnation, Position};
use crate::session::message::{Base, BodyRef, Config, Exec, ExecDone, Members, Message};

/// Each action, and the state of the peer that it concerns after it.
pub(super) fn steps(tables: &mut Tables, actions: &[Action]) -> Vec<String> {
    let mut world = tables.first();
    let mut lines = Vec::new();
    for action in actions {
        let line = line_of(tables, &world, *action);
        let Some((next, _)) = tables.act(&world, *action) else { break };
        let sent = next.wire.iter().filter(|id| world.wire.binary_search(id).is_err());
        let sent: Vec<String> = sent.map(|id| envelope(tables.envelope(*id))).collect();
        let sent = if sent.is_empty() {
            String::new()
        } else {
            format!("\n        sends {}", sent.join("\n        sends "))
        };
        lines.push(format!("{line}{sent}"));
        world = next;
    }
    lines
}

fn line_of(tables: &Tables, world: &World, action: Action) -> String {
    let peer = |at: u8| name(tables.peer(world.peers[usize::from(at)]).inc);
    let request = |attempt: u8| {
        let it = tables.setup.attempts[usize::from(attempt)];
        let keyed = if it.keyed { "keyed " } else { "" };
        format!("{keyed}{:?} {}", it.kind, it.number)
    };
    match action {
        Action::Deliver(id) => format!("arrives: {}", envelope(tables.envelope(id))),
        Action::DeadLetter(id) => {
            format!("arrives at another life: {}", envelope(tables.envelope(id)))
        }
        Action::Refuse(id) => format!("no room for: {}", envelope(tables.envelope(id))),
        Action::End(id) => {
            let run = tables.run(id);
            format!("{} has run: {}", peer(run.slot), envelope(tables.envelope(run.order)))
        }
        Action::Submit { attempt, at } => format!("{} arrives at {}", request(attempt), peer(at)),
        Action::Begin { at, attempt, executor } => {
            format!("{} lets {} run at {}", peer(at), request(attempt), peer(executor))
        }
        Action::Abandon { at, attempt } => format!("{} abandons {}", peer(at), request(attempt)),
        Action::TakeOver { at } => format!("{} takes over", peer(at)),
        Action::Handoff { at, to } => format!("{} hands off to {}", peer(at), peer(to)),
        Action::Change { at, swap } => {
            let (gone, newcomer) = tables.setup.swaps[usize::from(swap)];
            let say = |slots: &[u8]| match slots {
                [] => String::from("nobody"),
                _ => slots.iter().map(|slot| peer(*slot)).collect::<Vec<_>>().join(" and "),
            };
            format!("{} replaces {} by {}", peer(at), say(gone), say(newcomer.as_slice()))
        }
        Action::Tick => {
            let wall = tables.setup.walls[usize::from(world.ticks)];
            format!("it is {wall} ms past the beginning")
        }
        Action::Wake { at } => format!("{} looks at the clock", peer(at)),
        Action::Restart { at } => format!("{} is killed and starts again", peer(at)),
        Action::Forget { at } => format!("{} forgets the session", peer(at)),
        Action::GiveUp { at } => format!("{} loses patience", peer(at)),
    }
}

fn envelope(it: &Envelope) -> String {
    let what = match &it.what {
        What::Protocol(message) => protocol(message),
        What::Order { ticket: _, exec } => order(exec),
        What::Result { p, done, response, .. } => {
            let at = p.map_or_else(|| String::from("beside others"), position);
            match done {
                ExecDone::Changed { voted: true, .. } => format!("ran {at}, voted: {response:?}"),
                ExecDone::Changed { .. } => format!("ran {at}: {response:?}"),
                ExecDone::Unchanged { confirmed } => {
                    format!("ran {at}, nothing changed, confirmed {confirmed}: {response:?}")
                }
                ExecDone::NeedBase => format!("needs the base of {at}"),
                ExecDone::Refused { reason, .. } => format!("refuses {at}: {reason:?}"),
            }
        }
    };
    format!("{} → {}: {what}", name(it.from), name(it.to))
}

fn order(exec: &Exec) -> String {
    let base = match &exec.base {
        Base::Held(p) => format!("what you hold at {}", position(*p)),
        Base::Inline(None) => String::from("nothing"),
        Base::Inline(Some(record)) => format!("{:?}", history(&record.body)),
    };
    let at = exec.p.map_or_else(|| String::from("beside others"), position);
    let vote = if exec.vote { " and vote" } else { "" };
    format!("run {} {at} on {base}{vote}", exec.rid.0[0])
}

fn protocol(message: &Message) -> String {
    match message {
        Message::Prepare { b, cfg, nonce, .. } => {
            format!("prepare {} in {} (#{nonce})", ballot(*b), config(cfg))
        }
        Message::Promise { b, cfg, nonce, accepted, .. } => {
            let held = accepted.as_ref().map_or_else(
                || String::from("nothing"),
                |info| {
                    let list = info.body.as_ref().map(|body| history(body));
                    format!("{} {list:?} in {}", position(info.p), config(&info.cfg))
                },
            );
            format!("promise {} in {} (#{nonce}), holding {held}", ballot(*b), config(cfg))
        }
        Message::Accept { p, cfg, body } => {
            let body = match body {
                BodyRef::Full(body) => format!("{:?}", history(body)),
                BodyRef::Same(at) => format!("the body at {}", position(*at)),
            };
            format!("accept {} {body} in {}", position(*p), config(cfg))
        }
        Message::Accepted { p } => format!("accepted {}", position(*p)),
        Message::NeedFull { p } => format!("need the body at {}", position(*p)),
        Message::Nack { reason, promised, .. } => {
            format!("nack {reason:?}, promised {:?}", promised.map(ballot))
        }
        Message::Invite { .. } => String::from("please take over"),
        Message::Begin { b, cfg, over, .. } => {
            let over: Vec<String> = over.iter().map(|cfg| config(cfg)).collect();
            format!("begin {} in {} over {over:?}", ballot(*b), config(cfg))
        }
        Message::Free { b, births, .. } => {
            let births: Vec<String> = births
                .iter()
                .map(|birth| format!("{} in {}", ballot(birth.b), config(&birth.cfg)))
                .collect();
            format!("free for {}, begun before: {births:?}", ballot(*b))
        }
        other => format!("{other:?}"),
    }
}

fn name(peer: Incarnation) -> String {
    let lives = if peer == inc(slot_of(peer), 0) { "" } else { "'" };
    format!("{}{lives}", char::from(b'A' + slot_of(peer)))
}

fn ballot(b: Ballot) -> String {
    format!("{}{}", b.round, name(b.proposer))
}

pub(super) fn position(p: Position) -> String {
    format!("{}.{}", ballot(p.ballot), p.n)
}

pub(super) fn members(set: &Members) -> String {
    let who: Vec<String> = set.who.iter().map(|peer| name(*peer)).collect();
    format!("c{}{{{}}}", set.c, who.join(""))
}

fn config(cfg: &Config) -> String {
    match &cfg.prev {
        None => members(&cfg.now),
        Some(prev) => format!("seal {} of {}", members(&cfg.now), members(prev)),
    }
}
