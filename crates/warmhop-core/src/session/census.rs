//! Who is there: whose word a birth by key, or "nobody knows of it", rests on.
//!
//! A session that a key names may be begun at several peers at once, and they need not believe the
//! same of the mesh. Each asks *everyone known*, suspects included, and goes on once all but one
//! have answered, a majority among them ([`Roll`]). What the others know of the mesh is added to
//! what the beginner knows, so that two of them meet at a peer that knows both, or one of them
//! finds too few.
//!
//! * A peer leaves the count where it is *proven* gone: it left in good order, or lives again as
//!   another process.
//! * A *silent* one is the one that may be missed. A second may be missed only where a majority of
//!   everyone known has met it and has not heard it for long (`absent`).
//! * One that was *reborn* a moment ago has forgotten what it witnessed, and counts as missed.
//! * A seed that was never met may be a peer that witnessed, and counts as one that is missed: who
//!   starts while it is cut off knows of nobody, and must not take that for a mesh of one.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::mutant::{self, Mutant};
use crate::ids::{Incarnation, Now};
use crate::view::{Liveness, View};

/// How long a peer may be silent before its absence can be confirmed.
pub const ABSENT_AFTER: Duration = Duration::from_secs(30);
/// How long a process that took a former one's place counts as a peer that was not asked: until the
/// former one would have been suspected (2.5 s) and replaced (3 s, and 1 s for each rank), what it
/// held brought to others, and a margin.
pub const REBORN_FOR: Duration = Duration::from_secs(12);
/// A mesh of two is the one where either serves without the other; a third peer ends that.
const PAIR: usize = 2;

/// What one peer believes of who is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Census {
    /// Every other process that is known and not proven gone, sorted.
    pub others: Vec<Incarnation>,
    /// Those of them that are not heard: they are asked, and not waited for.
    pub silent: Vec<Incarnation>,
    /// Those of the silent that this peer has met, and not heard for [`ABSENT_AFTER`].
    pub absent: Vec<Incarnation>,
    /// Those that took the place of a former process less than [`REBORN_FOR`] ago.
    pub reborn: Vec<Incarnation>,
    /// There have not been more than two peers for as long as this one and the other remember.
    pub pair: bool,
    /// How many seeds were never met, and lead to nobody known. Others are not told: their own
    /// seeds tell them.
    #[serde(skip)]
    pub unmet: usize,
}

impl Census {
    /// What `view` says at `now`.
    #[must_use]
    pub fn of(view: &View, now: Now) -> Self {
        let mut census = Self { pair: view.is_pair(), ..Self::default() };
        for (_, belief) in view.peers().filter(|(_, belief)| !belief.left) {
            let peer = belief.news.incarnation;
            census.others.push(peer);
            if belief.alive == Liveness::Alive {
                continue;
            }
            census.silent.push(peer);
            if belief.met && now.since(belief.silent_since()) >= ABSENT_AFTER {
                census.absent.push(peer);
            }
        }
        census.others.sort_unstable();
        census.reborn = view.reborn(now, REBORN_FOR).collect();
        census
    }

    /// As `self`, of a peer that has so many seeds that it never met.
    #[must_use]
    pub fn with_unmet(mut self, unmet: usize) -> Self {
        self.unmet = unmet;
        self.pair &= self.others.len() + unmet < PAIR;
        self
    }

    /// Whether this peer knows by itself that there are, or may be, more than two, and tells others so
    /// ([`PeerNews::knows_more`](crate::view::PeerNews::knows_more)).
    #[must_use]
    pub fn knows_more(&self, view: &View) -> bool {
        view.known().max(self.others.len() + self.unmet) >= PAIR
    }

    /// A digest of everyone that it names, `me` included: equal at two peers that know the same.
    #[must_use]
    pub fn digest(&self, me: Incarnation) -> u64 {
        self.others.iter().chain([&me]).fold(0, |all, peer| {
            let one = peer.0.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
            });
            all ^ one
        })
    }

    /// What to tell whoever asked with `digest`: nothing where it knows the same.
    pub(super) fn news(self: &Arc<Self>, me: Incarnation, digest: u64) -> Option<Arc<Self>> {
        let same = self.digest(me) == digest && self.absent.is_empty() && self.reborn.is_empty();
        (!same).then(|| Arc::clone(self))
    }
}

/// Whether the answers suffice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// They do.
    Enough,
    /// Some that may answer have not.
    Wait,
    /// Whoever can answer has, and they are too few.
    TooFew,
}

/// Who was asked, and whose answers count.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Roll {
    everyone: BTreeSet<Incarnation>,
    answered: BTreeSet<Incarnation>,
    silent: BTreeSet<Incarnation>,
    reborn: BTreeSet<Incarnation>,
    /// Who says of whom that it is absent.
    absent: BTreeMap<Incarnation, BTreeSet<Incarnation>>,
    pair: bool,
    /// How many may be there beyond everyone known.
    unmet: usize,
}

impl Roll {
    /// Calls everyone that `census` knows, and counts the word of `me`, whose it is.
    #[must_use]
    pub fn new(me: Incarnation, census: &Census) -> Self {
        let mut roll = Self {
            everyone: census.others.iter().copied().chain([me]).collect(),
            answered: BTreeSet::new(),
            silent: census.silent.iter().copied().collect(),
            reborn: BTreeSet::new(),
            absent: BTreeMap::new(),
            pair: census.pair,
            unmet: census.unmet,
        };
        roll.answer(me, Some(census));
        roll
    }

    /// `peer` answered, and told what it knows. Returns those that were not known before.
    pub fn answer(&mut self, peer: Incarnation, told: Option<&Census>) -> Vec<Incarnation> {
        self.everyone.insert(peer);
        self.answered.insert(peer);
        let Some(census) = told else { return Vec::new() };
        self.pair &= census.pair;
        self.reborn.extend(census.reborn.iter().copied());
        for absent in &census.absent {
            self.absent.entry(*absent).or_default().insert(peer);
        }
        self.add(census.others.iter().copied())
    }

    /// `peers` are known as well. Returns those that were not.
    pub fn add(&mut self, peers: impl Iterator<Item = Incarnation>) -> Vec<Incarnation> {
        peers.filter(|peer| self.everyone.insert(*peer)).collect()
    }

    /// `peer` is proven gone.
    pub fn gone(&mut self, peer: Incarnation) {
        self.everyone.remove(&peer);
        self.answered.remove(&peer);
    }

    /// `peer` cannot promise what it was asked for.
    pub fn miss(&mut self, peer: Incarnation) {
        self.answered.remove(&peer);
    }

    /// Whether `peer` is not heard, so that it is asked and not waited for.
    #[must_use]
    pub fn is_silent(&self, peer: Incarnation) -> bool {
        self.silent.contains(&peer)
    }

    /// Whoever has not answered.
    pub fn open(&self) -> impl Iterator<Item = Incarnation> + '_ {
        self.everyone.difference(&self.answered).copied()
    }

    /// Those who were not heard are others by now.
    pub fn hear(&mut self, census: &Census) {
        self.silent = census.silent.iter().copied().collect();
    }

    /// Whether the answers suffice; `waited`: whoever lives has had the time to answer.
    #[must_use]
    pub fn verdict(&self, waited: bool) -> Verdict {
        let pending = |peer: &Incarnation| !self.silent.contains(peer);
        if self.suffice(|_| false) {
            Verdict::Enough
        } else if self.suffice(pending) || !waited && self.open().any(|peer| pending(&peer)) {
            Verdict::Wait
        } else {
            Verdict::TooFew
        }
    }

    /// Whether the answers suffice, if those that `will` answer had done so.
    fn suffice(&self, will: impl Fn(&Incarnation) -> bool) -> bool {
        let counts = |peer: &Incarnation| {
            (self.answered.contains(peer) || will(peer))
                && (!self.reborn.contains(peer) || mutant::on(Mutant::RebornWitness))
        };
        let missed: Vec<Incarnation> =
            self.everyone.iter().copied().filter(|peer| !counts(peer)).collect();
        let count = self.everyone.len() + self.unmet;
        let is_majority = |some: usize| 2 * some > count;
        let majority = is_majority(self.everyone.len() - missed.len());
        match (&missed[..], self.unmet) {
            ([], 0) => true,
            // Of a pair either holds everything: one that is silent, or knows no more, is not needed.
            ([one], 0) if self.pair && count == PAIR => {
                self.answered.contains(one) || self.silent.contains(one)
            }
            ([], 1) if self.pair && count == PAIR => true,
            // Everyone known is asked. Whoever else there is has no majority.
            ([], _) | ([_], 0) => majority,
            ([_, _], 0) | ([_], 1) if mutant::on(Mutant::MissTwo) => true,
            ([_, _], 0) | ([_], 1) => {
                let said = |peer| self.absent.get(peer).into_iter().flatten();
                let absent = |peer| is_majority(said(peer).filter(|by| counts(by)).count());
                majority && missed.iter().any(absent)
            }
            _ => false,
        }
    }
}
