//! What a run's plots show, in bins of equal length.

use std::collections::{BTreeMap, HashMap};

use crate::chaos::history::{History, Micros, Operation, Outcome, Thread};
use crate::chaos::waits::{Wait, percentile};

/// More would be narrower than a pixel of a small screen.
const BINS_MAX: u64 = 240;
const SECOND: Micros = 1_000_000;

/// A run in bins.
#[derive(Debug, Default)]
pub(super) struct Series {
    /// How long a bin is: one second or a whole number of them.
    pub(super) bin: Micros,
    /// From the first bin to the last; empty bins included.
    pub(super) bins: Vec<Bin>,
    /// How many sessions each peer owned, by bin and peer; absent if it did not report it.
    pub(super) owned: Vec<Vec<Option<u64>>>,
    /// How often sessions went from one peer to another, by their positions.
    pub(super) moves_between: BTreeMap<(usize, usize), u64>,
}

/// What fell into one bin.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bin {
    /// Operations that began here: the median of their waits, the 99th percentile, the longest.
    pub(super) waits: Option<[Micros; 3]>,
    /// Attempts that were answered.
    pub(super) answered: u64,
    /// Attempts that were not.
    pub(super) errors: u64,
    /// Sessions that were served by another peer than before.
    pub(super) moves: u64,
}

impl Series {
    pub(super) fn of(history: &History, waits: &[Wait]) -> Self {
        let bin = history.length.div_ceil(SECOND).div_ceil(BINS_MAX).max(1) * SECOND;
        let count = usize::try_from(history.length.div_ceil(bin)).unwrap_or(1).max(1);
        let at = |time: Micros| usize::try_from(time / bin).unwrap_or(count).min(count - 1);
        let mut bins = vec![Bin::default(); count];

        let mut took: Vec<Vec<Micros>> = vec![Vec::new(); count];
        for wait in waits {
            took[at(wait.began)].push(wait.took);
        }
        for (bin, mut took) in bins.iter_mut().zip(took) {
            took.sort_unstable();
            bin.waits = (!took.is_empty()).then(|| [50, 99, 100].map(|it| percentile(&took, it)));
        }

        let peers: HashMap<&str, usize> =
            history.peers.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        let mut served_by: HashMap<Thread, usize> = HashMap::new();
        let mut moves_between = BTreeMap::new();
        for attempt in &history.attempts {
            let bin = &mut bins[at(attempt.ended)];
            let Outcome::Answered { .. } = attempt.outcome else {
                bin.errors += 1;
                continue;
            };
            bin.answered += 1;
            // An echo touches no session.
            let peer = attempt.ran_at.as_deref().and_then(|name| peers.get(name));
            let Some(peer) = peer.filter(|_| attempt.operation != Operation::Echo) else {
                continue;
            };
            if let Some(before) = served_by.insert(attempt.thread, *peer)
                && before != *peer
            {
                bin.moves += 1;
                *moves_between.entry((before, *peer)).or_default() += 1;
            }
        }

        let mut sampled = vec![vec![None; history.peers.len()]; count];
        for sample in &history.samples {
            if let Some(peer) = peers.get(sample.peer.as_str()) {
                sampled[at(sample.at)][*peer] = Some(sample.owned);
            }
        }
        // Where nobody asked it stays as it was; where nobody answered it does not.
        let mut owned: Vec<Vec<Option<u64>>> = Vec::with_capacity(count);
        for bin in sampled {
            let before = owned.last();
            let of = |peer: usize| before.and_then(|before| before[peer]);
            owned.push(bin.iter().enumerate().map(|(at, it)| it.unwrap_or(of(at))).collect());
        }
        Self { bin, bins, owned, moves_between }
    }
}
