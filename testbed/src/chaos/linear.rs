//! Whether what clients saw of one key can have happened in some order that real time allows.
//!
//! The search is that of Wing and Gong (1993), and remembers failed states as Lowe's does (2017): of the
//! operations that may come next it takes one that fits the key's value, and another one if that leads
//! to no order. An operation whose outcome nobody learnt may take
//! effect at any time after it was sent, or never. Few operations meet on one key, and no key has
//! many, so that a search is short; one that is not is given up and counted.

use std::collections::{BTreeMap, HashSet};

use super::history::{Asked, Came, Fault, KeyOperation, Micros};

/// No key has more operations than a search can distinguish.
pub const OPERATIONS_MAX: usize = 128;
/// How many steps one search may take.
const STEPS_MAX: usize = 2_000_000;

/// What a key's history proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// Some order explains it.
    Linearizable,
    /// None does.
    Broken,
    /// The search was too long, or the history is.
    Undecided,
}

/// What an operation does, as far as its client learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect<'a> {
    /// The key held this.
    Saw(Option<&'a str>),
    /// It holds this from then on.
    Sets(&'a str),
    /// It held nothing, and holds this.
    Begins(&'a str),
    /// It held something.
    Found,
    /// It counted up to this.
    CountsTo(i64),
    /// It counted up by one, to what nobody learnt.
    Counts,
    /// It held the first and holds the second.
    Replaces(&'a str, Option<&'a str>),
    /// It held something, and holds nothing.
    Empties,
    /// It held nothing.
    FoundNothing,
    /// It may hold nothing from then on, whatever it held: its holders are lost.
    Loses,
}

struct Step<'a> {
    began: Micros,
    /// Absent where it may never have happened.
    ended: Option<Micros>,
    effect: Effect<'a>,
}

/// Judges the operations on one key. After a fault among `faults` that may lose what a mesh holds,
/// the key may be empty.
#[must_use]
pub fn judge(operations: &[&KeyOperation], faults: &[Fault]) -> Finding {
    let mut steps: Vec<Step<'_>> = operations.iter().filter_map(|it| step(it)).collect();
    let born = operations.iter().map(|it| it.began).min().unwrap_or_default();
    let last = operations.iter().map(|it| it.ended).max().unwrap_or_default();
    let losing = faults.iter().filter(|it| it.may_lose && it.whole >= born && it.began <= last);
    steps.extend(losing.map(|it| Step { began: it.began, ended: None, effect: Effect::Loses }));
    if steps.len() > OPERATIONS_MAX {
        return Finding::Undecided;
    }
    steps.sort_by_key(|step| step.began);
    let mut search = Search { steps: &steps, tried: HashSet::new(), left: STEPS_MAX };
    match search.goes_on(0, None) {
        Some(true) => Finding::Linearizable,
        Some(false) => Finding::Broken,
        None => Finding::Undecided,
    }
}

fn step(operation: &KeyOperation) -> Option<Step<'_>> {
    let known = match (&operation.asked, &operation.came) {
        (_, Came::Refused { .. }) => return None,
        (_, Came::Unknown { .. }) => None,
        (Asked::Get, Came::Value { value }) => Some(Effect::Saw(value.as_deref())),
        (Asked::Set { value }, Came::Done { done: true }) => Some(Effect::Sets(value)),
        (Asked::SetIfAbsent { value }, Came::Done { done: true }) => Some(Effect::Begins(value)),
        (Asked::SetIfAbsent { .. }, Came::Done { done: false }) => Some(Effect::Found),
        (Asked::Increment, Came::Number { number }) => Some(Effect::CountsTo(*number)),
        (Asked::Replace { from, to }, Came::Done { done: true }) => {
            Some(Effect::Replaces(from, to.as_deref()))
        }
        // Another may have changed the key and changed it back: it proves nothing.
        (Asked::Replace { .. }, Came::Done { done: false }) => return None,
        (Asked::Delete, Came::Done { done: true }) => Some(Effect::Empties),
        (Asked::Delete, Came::Done { done: false }) => Some(Effect::FoundNothing),
        // An answer in no form that such a command has: nothing explains it.
        _ => Some(Effect::Replaces("", None)),
    };
    let effect = match (known, &operation.asked) {
        (Some(effect), _) => effect,
        (None, Asked::Get) => return None,
        (None, Asked::Set { value }) => Effect::Sets(value),
        (None, Asked::SetIfAbsent { value }) => Effect::Begins(value),
        (None, Asked::Increment) => Effect::Counts,
        (None, Asked::Replace { from, to }) => Effect::Replaces(from, to.as_deref()),
        (None, Asked::Delete) => Effect::Empties,
    };
    Some(Step { began: operation.began, ended: known.map(|_| operation.ended), effect })
}

/// What the key holds after `effect`; `None` where it cannot take place.
fn after(effect: Effect<'_>, held: Option<&str>) -> Option<Option<String>> {
    let owned = |value: Option<&str>| Some(value.map(str::to_owned));
    let count = || held.map_or(Some(0), |text| text.parse::<i64>().ok());
    match effect {
        Effect::Saw(seen) => (seen == held).then(|| owned(held))?,
        Effect::Sets(value) => owned(Some(value)),
        Effect::Begins(value) => held.is_none().then(|| owned(Some(value)))?,
        Effect::Found => held.is_some().then(|| owned(held))?,
        Effect::CountsTo(number) => {
            let number = (count()?.checked_add(1)? == number).then_some(number)?;
            Some(Some(number.to_string()))
        }
        Effect::Counts => Some(Some(count()?.checked_add(1)?.to_string())),
        Effect::Replaces(from, to) => (held == Some(from)).then(|| owned(to))?,
        Effect::Empties => held.is_some().then_some(None),
        Effect::FoundNothing => held.is_none().then_some(None),
        Effect::Loses => Some(None),
    }
}

struct Search<'a> {
    steps: &'a [Step<'a>],
    tried: HashSet<(u128, Option<String>)>,
    left: usize,
}

impl Search<'_> {
    /// Whether what is not yet `taken` can follow on a key that holds `held`; `None` where the
    /// search was too long.
    fn goes_on(&mut self, taken: u128, held: Option<&str>) -> Option<bool> {
        let open = || self.steps.iter().enumerate().filter(|(at, _)| taken & (1 << at) == 0);
        let Some(first_end) = open().filter_map(|(_, step)| step.ended).min() else {
            return Some(true);
        };
        self.left = self.left.checked_sub(1)?;
        if !self.tried.insert((taken, held.map(str::to_owned))) {
            return Some(false);
        }
        // An operation that began after another had ended comes after it.
        let steps = self.steps;
        let next = steps
            .iter()
            .enumerate()
            .filter(|(at, step)| taken & (1 << at) == 0 && step.began <= first_end);
        for (at, step) in next {
            let Some(then) = after(step.effect, held) else { continue };
            if self.goes_on(taken | 1 << at, then.as_deref())? {
                return Some(true);
            }
        }
        Some(false)
    }
}

/// The operations of each key, in the order in which they were sent.
#[must_use]
pub fn by_key(operations: &[KeyOperation]) -> BTreeMap<&str, Vec<&KeyOperation>> {
    let mut by_key: BTreeMap<&str, Vec<&KeyOperation>> = BTreeMap::new();
    for operation in operations {
        by_key.entry(&operation.key).or_default().push(operation);
    }
    by_key.values_mut().for_each(|operations| operations.sort_by_key(|it| it.began));
    by_key
}

#[cfg(test)]
mod tests;
