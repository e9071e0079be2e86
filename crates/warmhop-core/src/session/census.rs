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
//! * One that was *reborn* a moment ago has forgotten what it witnessed, and counts as missed. Where
//!   everyone who is known has answered nobody is left who could know more, and nothing is missed.
//! * One that is *young* may be reborn, and those who know need not have been heard yet. It counts as
//!   missed until one that is settled vouches for it: that one knows it, and knows of no former life.
//!   Where nobody is settled the mesh has just begun, and all of them count.
//! * A seed that was never met may be a peer that witnessed, and counts as one that is missed: who
//!   starts while it is cut off knows of nobody, and must not take that for a mesh of one. Where nobody
//!   is settled, and where several were never met, they are missed only by a peer that has waited for them
//!   as long as for any other ([`ABSENT_AFTER`]).

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
/// How long a process that took a former one's place counts as a peer that was not asked, and how
/// long a process is young: until a former one would have been suspected (2.5 s) and replaced (3 s,
/// and 1 s for each rank), what it held brought to others, and a margin.
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
    /// This peer's process began less than [`REBORN_FOR`] ago.
    pub is_young: bool,
    /// Those of the others that are young by their own last word. Others are not told: each speaks
    /// for itself.
    #[serde(skip)]
    pub young: Vec<Incarnation>,
    /// How many seeds were never met, and lead to nobody known. Others are not told: their own
    /// seeds tell them.
    #[serde(skip)]
    pub unmet: usize,
    /// This peer's process began [`ABSENT_AFTER`] ago or longer: whom it has not met since it will
    /// hardly meet. Others are not told.
    #[serde(skip)]
    pub has_waited: bool,
}

impl Census {
    /// What `view` says at `now`.
    #[must_use]
    pub fn of(view: &View, now: Now) -> Self {
        let mut census = Self { pair: view.is_pair(), ..Self::default() };
        for (_, belief) in view.peers().filter(|(_, belief)| !belief.left) {
            let peer = belief.news.incarnation;
            census.others.push(peer);
            if belief.news.young {
                census.young.push(peer);
            }
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

    /// As `self`, of a peer whose process is so old.
    #[must_use]
    pub fn with_age(mut self, age: Duration) -> Self {
        self.is_young = is_young(age);
        self.has_waited = age >= ABSENT_AFTER;
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

    /// The answer to a peer that asked with `digest`: nothing where it knows the same.
    pub(super) fn news(self: &Arc<Self>, me: Incarnation, digest: u64) -> Option<Arc<Self>> {
        let same = self.digest(me) == digest;
        let plain = self.absent.is_empty() && self.reborn.is_empty() && !self.is_young;
        (!same || !plain).then(|| Arc::clone(self))
    }
}

/// Whether a process of this age may be a reborn one whose former life others still miss
/// ([`PeerNews::young`](crate::view::PeerNews::young)).
#[must_use]
pub fn is_young(age: Duration) -> bool {
    age < REBORN_FOR
}

/// Whether the answers suffice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// They do.
    Enough,
    /// Some that may answer have not.
    Wait,
    /// All that can answer have, and they are too few.
    TooFew,
}

/// Who was asked, and whose answers count.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Roll {
    everyone: BTreeSet<Incarnation>,
    answered: BTreeSet<Incarnation>,
    silent: BTreeSet<Incarnation>,
    reborn: BTreeSet<Incarnation>,
    /// Those who are young by their own word.
    young: BTreeSet<Incarnation>,
    /// Those whom one that is settled knows.
    vouched: BTreeSet<Incarnation>,
    /// Whom one knows that answers that it knows the same.
    same: Vec<Incarnation>,
    /// Who says of whom that it is absent.
    absent: BTreeMap<Incarnation, BTreeSet<Incarnation>>,
    pair: bool,
    /// How many may be there beyond everyone known.
    unmet: usize,
    /// Whether those were waited for as long as for any other.
    has_waited: bool,
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
            young: census.young.iter().copied().collect(),
            vouched: BTreeSet::new(),
            same: census.others.iter().copied().chain([me]).collect(),
            absent: BTreeMap::new(),
            pair: census.pair,
            unmet: census.unmet,
            has_waited: census.has_waited,
        };
        roll.answer(me, Some(census));
        roll
    }

    /// `peer` answered, and told what it knows, unless that is the same. Returns those that were not
    /// known before.
    pub fn answer(&mut self, peer: Incarnation, told: Option<&Census>) -> Vec<Incarnation> {
        self.everyone.insert(peer);
        self.answered.insert(peer);
        if told.is_some_and(|census| census.is_young) {
            self.young.insert(peer);
        } else {
            self.young.remove(&peer);
            self.vouched.extend(told.map_or(&self.same, |census| &census.others));
        }
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

    /// `peer` is proven gone. The process that lives in its place has forgotten what it witnessed.
    pub fn gone(&mut self, peer: Incarnation) {
        self.reborn.extend(self.everyone.iter().filter(|other| peer.is_before(other)));
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

    /// The peers that have not answered.
    pub fn open(&self) -> impl Iterator<Item = Incarnation> + '_ {
        self.everyone.difference(&self.answered).copied()
    }

    /// Those who were not heard are others by now.
    pub fn hear(&mut self, census: &Census) {
        self.silent = census.silent.iter().copied().collect();
    }

    /// Whether the answers suffice; `waited`: all that live have had the time to answer.
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

    /// Whether `peer` took the place of a process that others count on: somebody said so, or still
    /// counts on that one.
    fn is_reborn(&self, peer: Incarnation) -> bool {
        self.reborn.contains(&peer) || self.everyone.iter().any(|other| other.is_before(&peer))
    }

    /// Whether the answers suffice, if those that `will` answer had done so.
    fn suffice(&self, will: impl Fn(&Incarnation) -> bool) -> bool {
        let is_young = |peer: &Incarnation| self.young.contains(peer);
        // Of a pair either serves without the other.
        let is_pair = self.pair && self.everyone.len() + self.unmet == PAIR;
        let nobody_is_settled = self.everyone.iter().all(is_young);
        let will_vouch =
            |it: &Incarnation| will(it) && !self.answered.contains(it) && !is_young(it);
        let vouched_soon = self.everyone.iter().any(will_vouch);
        let is_no_witness = |peer: &Incarnation| {
            is_young(peer) && !self.vouched.contains(peer) && !mutant::on(Mutant::YoungWitness)
        };
        let heeds_age = !is_pair && !nobody_is_settled && !vouched_soon;
        let counts = |peer: &Incarnation| {
            (self.answered.contains(peer) || will(peer))
                && (!self.is_reborn(*peer) || mutant::on(Mutant::RebornWitness))
                && !(heeds_age && is_no_witness(peer))
        };
        let missed: Vec<Incarnation> =
            self.everyone.iter().copied().filter(|peer| !counts(peer)).collect();
        let count = self.everyone.len() + self.unmet;
        let is_majority = |some: usize| 2 * some > count;
        let answers = |peer: &Incarnation| self.answered.contains(peer) || will(peer);
        if self.unmet == 0 && self.everyone.iter().all(answers) {
            return true;
        }
        let majority = is_majority(self.everyone.len() - missed.len());
        match (&missed[..], self.unmet) {
            ([], 0) => true,
            // Of a pair either holds everything: one that is silent, or knows no more, is not needed.
            ([one], 0) if is_pair => self.answered.contains(one) || self.silent.contains(one),
            ([], 1) if is_pair => true,
            ([_], 0) => majority,
            // Everyone known is asked. Any others that there are have no majority, but may have had one with
            // the former lives of these, or have been left alone by them.
            ([], 1) => majority && (self.has_waited || !nobody_is_settled),
            ([], _) => majority && self.has_waited,
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
