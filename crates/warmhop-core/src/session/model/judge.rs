//! The invariants of the session module, checked from outside: by all votes ever cast, all messages
//! ever sent and all answers to clients.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::machine::Event;
use super::narrate::{members, position};
use super::tables::{Clients, Peer, Standing, Tables, World, attempt_of, history};
use crate::ids::{Incarnation, Position};
use crate::session::message::{Config, Stored};

/// Which invariant broke, and how. The numbers are those of the session module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Invariant {
    OneBody = 1,
    PromisesRise = 2,
    NoVoteForgotten = 3,
    ChosenExtend = 4,
    SealFirst = 5,
    Once = 6,
    FromChosen = 7,
    ReadsFresh = 8,
    UsedOnce = 9,
    /// A request that was reported as not applied was not applied.
    Honest = 10,
}

/// A violation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) invariant: Invariant,
    pub(super) how: String,
}

pub(super) fn violation(invariant: Invariant, how: String) -> Option<Violation> {
    Some(Violation { invariant, how })
}

/// I2, over one step of one machine.
pub(super) fn fell(before: &Peer, after: &Peer) -> Option<Violation> {
    let (was, is) = (&before.session.copy, &after.session.copy);
    if was.promised() > is.promised() {
        let how = format!("promised {:?}, then {:?}", was.promised(), is.promised());
        return violation(Invariant::PromisesRise, how);
    }
    let at = |record: &Option<crate::session::message::Record>| record.as_ref().map(|it| it.p);
    // Another peer had it forget that, and it votes there no more.
    let retired = is.accepted.is_none()
        && was.accepted.as_ref().is_some_and(|record| record.cfg.now.stamp <= is.low);
    if at(&was.accepted) > at(&is.accepted) && !retired {
        let how = format!("accepted {:?}, then {:?}", at(&was.accepted), at(&is.accepted));
        return violation(Invariant::PromisesRise, how);
    }
    None
}

/// I3: `me` votes or promises in `cfg`, having forgotten its votes up to the stamp `forgot`.
pub(super) fn revoted(me: Incarnation, forgot: u64, cfg: &Config) -> Option<Violation> {
    let again = cfg.sets().any(|set| set.contains(me) && set.stamp <= forgot);
    if again {
        let how = format!("in {}, but stamps up to {forgot} were forgotten", members(&cfg.now));
        return violation(Invariant::NoVoteForgotten, how);
    }
    None
}

/// I9: an order names a position that no order named before.
pub(super) fn ordered(world: &World, id: u32, p: Position) -> Option<Violation> {
    let again = world.used.binary_search(&id).is_ok();
    again.then(|| Violation {
        invariant: Invariant::UsedOnce,
        how: format!("{} was used before", position(p)),
    })
}

/// I5, and I1 against the votes cast.
pub(super) fn proposed(tables: &Tables, world: &World, id: u32) -> Option<Violation> {
    let record = tables.record(id);
    if let Some(other) = other_body(tables, world, id) {
        return Some(other);
    }
    if record.cfg.prev.is_none() && record.cfg.now.c > 1 {
        let sealed = chosen(tables, world).into_iter().any(|seal| {
            let cfg = &tables.record(seal).cfg;
            cfg.prev.is_some() && cfg.now == record.cfg.now
        });
        if !sealed {
            let how =
                format!("{} was proposed open, its seal not chosen", members(&record.cfg.now));
            return violation(Invariant::SealFirst, how);
        }
    }
    None
}

pub(super) fn other_body(tables: &Tables, world: &World, id: u32) -> Option<Violation> {
    let record = tables.record(id);
    for vote in &world.votes {
        let (_, other) = tables.vote(*vote);
        if other != id && tables.record(other).p == record.p {
            let (one, two) = (history(&record.body), history(&tables.record(other).body));
            let how = format!("at {} both {one:?} and {two:?}", position(record.p));
            return violation(Invariant::OneBody, how);
        }
    }
    None
}

/// The records that a majority of their deciders ever voted for, by position.
pub(super) fn chosen(tables: &Tables, world: &World) -> Vec<u32> {
    let votes: Vec<(Incarnation, u32)> = world.votes.iter().map(|id| tables.vote(*id)).collect();
    let records: BTreeSet<u32> = votes.iter().map(|(_, record)| *record).collect();
    let mut chosen: Vec<u32> = records
        .into_iter()
        .filter(|id| {
            let cfg = &tables.record(*id).cfg;
            // Not `Config::deciders`, which is under test.
            let deciders = &cfg.deciders().who;
            let voted = deciders.iter().filter(|peer| votes.contains(&(**peer, *id))).count();
            2 * voted > deciders.len()
        })
        .collect();
    chosen.sort_by_key(|id| tables.record(*id).p);
    chosen
}

/// I1, I4, I6, and that acknowledged changes are in every later chosen record.
pub(super) fn histories(tables: &Tables, world: &World, vote: Option<u32>) -> Option<Violation> {
    if let Some(vote) = vote {
        let (_, id) = tables.vote(vote);
        if let Some(other) = other_body(tables, world, id) {
            return Some(other);
        }
        let list = history(&tables.record(id).body);
        let distinct: BTreeSet<u8> = list.iter().copied().collect();
        if distinct.len() < list.len() {
            return violation(Invariant::Once, format!("{list:?}"));
        }
    }
    let chosen = chosen(tables, world);
    for pair in chosen.windows(2) {
        let (one, two) = (tables.record(pair[0]), tables.record(pair[1]));
        if !history(&two.body).starts_with(&history(&one.body)) {
            let (was, is) = (history(&one.body), history(&two.body));
            let how = format!(
                "{was:?} chosen at {}, then {is:?} at {}",
                position(one.p),
                position(two.p)
            );
            return violation(Invariant::ChosenExtend, how);
        }
    }
    let newest = chosen.last().map(|id| history(&tables.record(*id).body)).unwrap_or_default();
    let clients = tables.clients(world);
    if !newest.starts_with(&clients.revealed) {
        let how = format!("{:?} was acknowledged, {newest:?} is chosen", clients.revealed);
        return violation(Invariant::ChosenExtend, how);
    }
    let attempts = || tables.setup.attempts.iter().zip(&clients.attempts);
    for (attempt, standing) in attempts() {
        let refused = *standing == Standing::Refused
            && attempts()
                .filter(|(other, _)| other.number == attempt.number)
                .all(|(_, it)| matches!(it, Standing::Refused | Standing::Unsent));
        if refused && !tables.setup.echoes && newest.contains(&attempt.number) {
            let how = format!("{} was said not to have run", attempt.number);
            return violation(Invariant::Honest, how);
        }
    }
    None
}

/// The answer to a client: I7 and I8, and its effect on what the client knows.
pub(super) fn answered(
    tables: &Tables,
    world: &World,
    clients: &mut Clients,
    event: &Event,
) -> Option<Violation> {
    let slot = |ticket| usize::from(attempt_of(ticket));
    match event {
        Event::Ordered(_) => None,
        Event::Response(ticket, list) => {
            if let Standing::Waiting { response, .. } = &mut clients.attempts[slot(*ticket)] {
                *response = Some(list.clone());
            }
            None
        }
        Event::Release(ticket, n) => {
            let before =
                core::mem::replace(&mut clients.attempts[slot(*ticket)], Standing::Answered);
            let Standing::Waiting { must_see, response: Some(list), .. } = before else {
                return violation(Invariant::FromChosen, format!("{ticket:?} has no response"));
            };
            clients.learn(&list, *n);
            if !is_chosen(tables, world, &list) {
                return violation(Invariant::FromChosen, format!("{list:?} is not chosen"));
            }
            let attempt = tables.setup.attempts[slot(*ticket)];
            if !list.starts_with(&must_see) {
                let how = format!("{list:?} was answered, {must_see:?} was acknowledged before");
                return violation(Invariant::ReadsFresh, how);
            }
            if attempt.kind.changes() && list.last() != Some(&attempt.number) {
                let how = format!("{list:?} does not end with {}", attempt.number);
                return violation(Invariant::FromChosen, how);
            }
            None
        }
        Event::Replay(ticket, stored, n) => {
            clients.attempts[slot(*ticket)] = Standing::Answered;
            let number = tables.setup.attempts[slot(*ticket)].number;
            let shortest = chosen(tables, world)
                .into_iter()
                .filter(|id| tables.record(*id).cfg.prev.is_none())
                .map(|id| history(&tables.record(id).body))
                .find(|list| list.contains(&number));
            let Some(mut list) = shortest else {
                return violation(Invariant::FromChosen, format!("{number} is not chosen"));
            };
            let upto = list.iter().position(|it| *it == number).map_or(0, |at| at + 1);
            list.truncate(upto);
            clients.learn(&list, *n);
            if let Stored::Response(bytes) = stored
                && bytes[..] != list[..]
            {
                let how = format!("{number} is answered {bytes:?}, and was applied in {list:?}");
                return violation(Invariant::FromChosen, how);
            }
            None
        }
        Event::Unknown(ticket) => {
            clients.attempts[slot(*ticket)] = Standing::Unknown;
            None
        }
        Event::Refused(ticket) => {
            clients.attempts[slot(*ticket)] = Standing::Refused;
            None
        }
        Event::Redirect(ticket) => {
            clients.attempts[slot(*ticket)] = Standing::Unsent;
            None
        }
    }
}

/// Whether a chosen, open record holds exactly `list`. The empty history needs no record.
fn is_chosen(tables: &Tables, world: &World, list: &[u8]) -> bool {
    list.is_empty()
        || chosen(tables, world).into_iter().any(|id| {
            let record = tables.record(id);
            record.cfg.prev.is_none() && history(&record.body) == list
        })
}
