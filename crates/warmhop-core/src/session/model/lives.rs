//! What is judged where the session lasts for a moment: it ends, is forgotten, and may begin again under the same
//! key. Each such *life* has a history of its own. Histories are read from the requests that a record remembers,
//! which outlive the state.
//!
//! A life may follow another once what was chosen last in that one has ended, by the one clock that all peers
//! share here. No request is in two lives, and nothing of a former life is chosen or answered any more.

use alloc::format;
use alloc::vec::Vec;

use super::judge::{Invariant, Violation, chosen, other_body, violation};
use super::machine::Event;
use super::tables::{Clients, Standing, Tables, World, attempt_of, history};
use crate::ids::WallTime;
use crate::session::Ticket;
use crate::session::message::{Body, Record};

/// The requests applied in the life that a body is of.
fn applied(body: &Body) -> Vec<u8> {
    body.recent.iter().map(|entry| entry.rid.0[0]).collect()
}

fn is_over(record: &Record, wall: WallTime) -> bool {
    record.body.state.is_none() || record.body.expiry <= wall
}

/// Notes what is chosen since the last step, and judges it. `log` holds all that was chosen, the newest of the
/// current life last.
pub(super) fn chosen_since(
    tables: &Tables,
    world: &mut World,
    vote: Option<u32>,
) -> Option<Violation> {
    if let Some(broken) = vote.and_then(|vote| other_body(tables, world, tables.vote(vote).1)) {
        return Some(broken);
    }
    let wall = tables.wall(world);
    for id in chosen(tables, world) {
        if world.log.contains(&id) {
            continue;
        }
        let record = tables.record(id);
        let list = applied(&record.body);
        let Some(newest) = world.log.last().map(|id| tables.record(*id)) else {
            world.log.push(id);
            continue;
        };
        let known = applied(&newest.body);
        if record.p > newest.p && list.starts_with(&known) {
            world.log.push(id);
        } else if record.p < newest.p && known.starts_with(&list) {
            world.log.insert(world.log.len() - 1, id);
        } else {
            let before = world.log.iter().map(|id| applied(&tables.record(*id).body));
            let mut before = before.flatten();
            if let Some(again) = before.find(|it| list.contains(it)) {
                let how = format!("{list:?} is chosen after {known:?}, and has {again} again");
                return violation(Invariant::ChosenExtend, how);
            }
            if !is_over(newest, wall) {
                let how = format!("{list:?} is chosen, and {known:?} has not ended");
                return violation(Invariant::ChosenExtend, how);
            }
            world.log.push(id);
        }
    }
    honest(tables, world)
}

/// What was said not to have run is in no life.
fn honest(tables: &Tables, world: &World) -> Option<Violation> {
    let clients = tables.clients(world);
    let attempts = tables.setup.attempts.iter().zip(&clients.attempts);
    for (attempt, _) in attempts.filter(|(_, standing)| **standing == Standing::Refused) {
        let mut all = world.log.iter().map(|id| applied(&tables.record(*id).body));
        if all.any(|list| list.contains(&attempt.number)) {
            let how = format!("{} was said not to have run", attempt.number);
            return violation(Invariant::Honest, how);
        }
    }
    None
}

/// The latest end of what was chosen and shows `list`; absent if nothing does.
fn ends(tables: &Tables, world: &World, list: &[u8]) -> Option<WallTime> {
    let records = world.log.iter().map(|id| tables.record(*id));
    let shows = records.filter(|it| it.body.state.is_some() && history(&it.body) == list);
    shows.map(|it| it.body.expiry).max()
}

/// The answer to a client, and its effect on what the client knows.
pub(super) fn answered(
    tables: &Tables,
    world: &World,
    clients: &mut Clients,
    event: &Event,
) -> Option<Violation> {
    let slot = |ticket: Ticket| usize::from(attempt_of(ticket));
    let (ticket, standing) = match event {
        Event::Release(ticket, _) => return released(tables, world, clients, *ticket),
        Event::Response(ticket, list) => {
            if let Standing::Waiting { response, .. } = &mut clients.attempts[slot(*ticket)] {
                *response = Some(list.clone());
            }
            return None;
        }
        Event::Ordered(_) => return None,
        Event::Replay(ticket, ..) => (ticket, Standing::Answered),
        Event::Unknown(ticket) => (ticket, Standing::Unknown),
        Event::Refused(ticket) => (ticket, Standing::Refused),
        Event::Redirect(ticket) => (ticket, Standing::Unsent),
    };
    clients.attempts[slot(*ticket)] = standing;
    None
}

fn released(
    tables: &Tables,
    world: &World,
    clients: &mut Clients,
    ticket: Ticket,
) -> Option<Violation> {
    let slot = usize::from(attempt_of(ticket));
    let before = core::mem::replace(&mut clients.attempts[slot], Standing::Answered);
    let Standing::Waiting { must_see, since, response: Some(list), .. } = before else {
        return violation(Invariant::FromChosen, format!("{ticket:?} has no response"));
    };
    let attempt = tables.setup.attempts[slot];
    let mut base = &list[..];
    if attempt.kind.changes() {
        let Some((last, rest)) = list.split_last().filter(|(last, _)| **last == attempt.number)
        else {
            let how = format!("{list:?} does not end with {}", attempt.number);
            return violation(Invariant::FromChosen, how);
        };
        let _ = last;
        base = rest;
    }
    if !list.is_empty() && ends(tables, world, &list).is_none() {
        return violation(Invariant::FromChosen, format!("{list:?} is not chosen"));
    }
    let wall = tables.wall(world);
    if !base.is_empty() && ends(tables, world, base).is_none_or(|end| end <= since) {
        let how = format!("{base:?} was answered from, and had ended when that was asked for");
        return violation(Invariant::ReadsFresh, how);
    }
    let is_over = |list: &[u8]| ends(tables, world, list).is_none_or(|end| end <= wall);
    if !list.starts_with(&must_see) && !is_over(&must_see) {
        let how = format!("{list:?} was answered, {must_see:?} was acknowledged before");
        return violation(Invariant::ReadsFresh, how);
    }
    if list.starts_with(&clients.revealed) || is_over(&clients.revealed) {
        clients.revealed = list;
    }
    clients.token_left = true;
    None
}
