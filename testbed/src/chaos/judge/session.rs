//! Judges what happened to one session.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Verdict;
use crate::chaos::history::{Attempt, Micros, Operation, Outcome, Thread};

/// One operation with all its attempts.
struct Done<'a> {
    first: &'a Attempt,
    /// When it was answered.
    ended: Option<Micros>,
    items: Option<&'a [String]>,
}

impl Done<'_> {
    fn item(&self) -> Option<&str> {
        match &self.first.operation {
            Operation::Append { item, .. } => Some(item),
            _ => None,
        }
    }
}

fn operations<'a>(attempts: &[&'a Attempt]) -> Vec<Done<'a>> {
    let mut by_number: BTreeMap<u32, Done<'a>> = BTreeMap::new();
    let mut in_order: Vec<&'a Attempt> = attempts.to_vec();
    in_order.sort_by_key(|attempt| (attempt.number, attempt.attempt));
    for attempt in in_order {
        let done = by_number.entry(attempt.number).or_insert(Done {
            first: attempt,
            ended: None,
            items: None,
        });
        if let (Outcome::Answered { items }, None) = (&attempt.outcome, done.ended) {
            // A read that is repeated is another read; an append is the same one.
            if attempt.operation == Operation::Read {
                done.first = attempt;
            }
            done.ended = Some(attempt.ended);
            done.items = (attempt.operation != Operation::Echo).then_some(items);
        }
    }
    by_number.into_values().collect()
}

/// What clients did with one session, and saw of it.
struct Seen<'a> {
    who: String,
    operations: Vec<Done<'a>>,
    /// The longest answer: the order of all appends that took effect.
    longest: &'a [String],
}

pub(super) fn judge(thread: Thread, attempts: &[&Attempt], verdict: &mut Verdict) {
    let operations = operations(attempts);
    let answers = operations.iter().filter_map(|done| done.items);
    let longest = answers.max_by_key(|items| items.len()).unwrap_or_default();
    let who = format!("client {}, session {}", thread.client, thread.session);
    let seen = Seen { who, operations, longest };
    let acknowledged = seen.answered().filter(|(done, _)| done.item().is_some());
    verdict.acknowledged += acknowledged.count() as u64;
    seen.judge_answers(verdict);
    seen.judge_order(verdict);
    for item in seen.lost() {
        verdict.lost += 1;
        verdict.tell(format!("{}: {item} was acknowledged and is gone", seen.who));
    }
}

/// The place of an operation in the order of all: an append of the item at position p at 2p + 1, a
/// read of k items at 2k.
struct Placed<'a> {
    began: Micros,
    ended: Option<Micros>,
    place: usize,
    done: &'a Done<'a>,
}

impl<'a> Seen<'a> {
    fn answered(&self) -> impl Iterator<Item = (&Done<'a>, &'a [String])> {
        self.operations.iter().filter_map(|done| Some((done, done.items?)))
    }

    /// Whether every answer is a beginning of the longest one, and shows each item once and only what
    /// was sent.
    fn judge_answers(&self, verdict: &mut Verdict) {
        let Self { who, longest, .. } = self;
        let asked: HashMap<&str, &Done<'_>> =
            self.operations.iter().filter_map(|done| Some((done.item()?, done))).collect();
        let mut split = false;
        let mut doubled: HashSet<&str> = HashSet::new();
        for (done, items) in self.answered() {
            let mut seen = HashSet::new();
            for item in items {
                if !seen.insert(item.as_str()) && doubled.insert(item) {
                    verdict.doubled += 1;
                    verdict.tell(format!("{who}: {item} occurs twice in {items:?}"));
                }
                let sent = asked.get(item.as_str());
                if sent.is_none_or(|sent| done.ended.is_some_and(|at| sent.first.began > at)) {
                    verdict.disordered += 1;
                    verdict.tell(format!("{who}: {item} was seen before anybody sent it"));
                }
            }
            if done.item().is_some_and(|own| items.last().is_none_or(|last| last != own)) {
                verdict.disordered += 1;
                verdict.tell(format!(
                    "{who}: the answer of operation {} does not end with its own item: {items:?}",
                    done.first.number
                ));
            }
            if !longest.starts_with(items) && !split {
                split = true;
                verdict.tell(format!("{who}: two histories, {items:?} and {longest:?}"));
            }
        }
        verdict.split += u64::from(split);
    }

    fn places(&self) -> HashMap<&'a str, usize> {
        self.longest.iter().enumerate().map(|(at, item)| (item.as_str(), at)).collect()
    }

    fn placed(&self) -> Vec<Placed<'_>> {
        let places = self.places();
        let place_of = |done: &Done<'_>| match (done.item(), done.items) {
            (Some(item), _) => places.get(item).map(|at| 2 * at + 1),
            (None, items) => items.map(|items| 2 * items.len()),
        };
        let placed = self.operations.iter().filter_map(|done| {
            let place = place_of(done)?;
            Some(Placed { began: done.first.began, ended: done.ended, place, done })
        });
        placed.collect()
    }

    /// Whether no operation that ended before another began comes after it in the order.
    fn judge_order(&self, verdict: &mut Verdict) {
        let who = &self.who;
        let mut by_begin = self.placed();
        by_begin.sort_by_key(|it| it.began);
        let mut by_end: Vec<&Placed<'_>> =
            by_begin.iter().filter(|it| it.ended.is_some()).collect();
        by_end.sort_by_key(|it| it.ended);
        let mut ended = by_end.into_iter().peekable();
        let mut furthest: Option<&Placed<'_>> = None;
        for later in &by_begin {
            let before_it = |it: &&Placed<'_>| it.ended.is_some_and(|end| end < later.began);
            while let Some(earlier) = ended.next_if(before_it) {
                if furthest.is_none_or(|known| known.place < earlier.place) {
                    furthest = Some(earlier);
                }
            }
            let Some(earlier) = furthest.filter(|it| it.place > later.place) else { continue };
            let (before, after) = (earlier.done.first.number, later.done.first.number);
            if later.done.item().is_none() {
                verdict.stale += 1;
                verdict.tell(format!(
                    "{who}: operation {after} did not see what operation {before} had shown before"
                ));
            } else {
                verdict.disordered += 1;
                verdict.tell(format!("{who}: operation {after} comes before operation {before}"));
            }
        }
    }

    /// The acknowledged appends that are gone: those that the longest answer lacks, and those that a
    /// later answer lacks and that never come back. Where an append's own answer was the longest,
    /// the later ones are shorter.
    fn lost(&self) -> HashSet<&str> {
        let places = self.places();
        let mut lost = HashSet::new();
        for (done, _) in self.answered() {
            let (Some(item), Some(acknowledged)) = (done.item(), done.ended) else { continue };
            let mut later = self
                .answered()
                .filter(|(other, _)| other.first.began > acknowledged)
                .map(|(_, items)| items.iter().any(|held| held == item))
                .peekable();
            let never_comes_back = later.peek().is_some() && !later.any(|held| held);
            if never_comes_back || !places.contains_key(item) {
                lost.insert(item);
            }
        }
        lost
    }
}
