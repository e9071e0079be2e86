//! Breadth-first exploration: the first violation found is one of the shortest.

use alloc::string::String;
use alloc::vec::Vec;
use core::hash::{BuildHasherDefault, Hash, Hasher};
use std::collections::HashSet;
use std::time::{Duration, Instant};

use siphasher::sip128::{Hasher128, SipHasher13};

use super::judge::Violation;
use super::narrate;
use super::setup::Setup;
use super::tables::{Tables, World};
use super::world::Action;

/// The result of an exploration.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) name: &'static str,
    pub(super) states: usize,
    pub(super) depth: usize,
    pub(super) took: Duration,
    /// Every state within the setup was seen.
    pub(super) complete: bool,
    pub(super) found: Option<Found>,
}

/// A violation and the steps that lead to it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) violation: Violation,
    pub(super) steps: Vec<String>,
}

/// Fingerprints are random enough to be used as their own hashes.
#[derive(Debug, Default)]
struct Itself(u64);

impl Hasher for Itself {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for (at, byte) in bytes.iter().take(8).enumerate() {
            self.0 |= u64::from(*byte) << (8 * at);
        }
    }
}

/// With 2^128 fingerprints, a hundred million states share one by chance in 10^-22 of cases.
fn fingerprint(world: &World) -> u128 {
    let mut hasher = SipHasher13::new_with_keys(0x7761_726d, 0x686f_7000);
    world.hash(&mut hasher);
    hasher.finish128().as_u128()
}

/// Visits every world that the setup allows, up to `states_max` of them.
pub(super) fn explore(setup: Setup, states_max: usize) -> Report {
    let began = Instant::now();
    let mut tables = Tables::new(setup);
    let (first, prelude) = tables.settle();
    let mut seen: HashSet<u128, BuildHasherDefault<Itself>> = HashSet::default();
    seen.insert(fingerprint(&first));
    // For each state the state from which it was first reached, and how.
    let mut origins: Vec<(u32, Action)> = Vec::from([(0, Action::TakeOver { at: 0 })]);
    let mut level = Vec::from([(0_u32, first)]);
    let mut depth = 0;
    let mut complete = true;
    let mut found = None;
    'levels: while !level.is_empty() {
        let mut next_level = Vec::new();
        for (index, world) in level {
            for action in tables.actions(&world) {
                let Some((next, broken)) = tables.act(&world, action) else { continue };
                if let Some(violation) = broken {
                    let mut actions = prelude;
                    actions.extend(path(&origins, index, action));
                    let steps = narrate::steps(&mut tables, &actions);
                    found = Some(Found { violation, steps });
                    complete = false;
                    break 'levels;
                }
                if !seen.insert(fingerprint(&next)) {
                    continue;
                }
                let at = u32::try_from(origins.len()).expect("fewer states than 2^32");
                origins.push((index, action));
                next_level.push((at, next));
            }
            if origins.len() >= states_max {
                complete = false;
                break 'levels;
            }
        }
        depth += usize::from(!next_level.is_empty());
        level = next_level;
    }
    Report {
        name: tables.setup.name,
        states: origins.len(),
        depth,
        took: began.elapsed(),
        complete,
        found,
    }
}

/// The actions from the first world to the one at `index`, and the last one.
fn path(origins: &[(u32, Action)], index: u32, last: Action) -> Vec<Action> {
    let mut actions = Vec::from([last]);
    let mut at = index;
    while at != 0 {
        let (before, action) = origins[usize::try_from(at).expect("a usize has 32 bits or more")];
        actions.push(action);
        at = before;
    }
    actions.reverse();
    actions
}
