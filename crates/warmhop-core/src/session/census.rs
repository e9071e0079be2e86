//! Which peers exist, and so whose answers a birth by key, or the conclusion that nobody knows of a
//! session, has to rest on.
//!
//! A session that a key names may be begun at several peers at once, and they need not have the
//! same beliefs about the mesh. Each asks *everyone known*, suspects included, and proceeds once
//! all but one have answered, a majority among them ([`Roll`]). The peers that the others know are
//! added to those that the beginner knows, so that two beginners meet at a peer that knows both, or
//! one of them finds too few.
//!
//! * A peer no longer counts once it is *proven* gone: it left cleanly, or runs as another process.
//!   One that left before others had copied all that it held counts as missed, unless everyone else
//!   known has answered: it cannot answer any more.
//! * One *silent* peer may be missed. A second may be missed only if a majority of everyone known
//!   has met it and has not heard it for long (`absent`).
//! * A peer that holds sessions which nobody else does, because others left or have no room, is not missed
//!   before it is absent. It says so in its news.
//! * A peer that was *reborn* a moment ago has forgotten what it witnessed, and counts as missed.
//!   Once everyone known has answered, nobody is left who could know more, and nothing is missed.
//!   Other peers give it back what it held: while one of them is silent, time proves nothing
//!   ([`View::reborn`]).
//! * A peer that *returned* after its former life left in good order counts as missed as well if another
//!   one left or returned a moment ago, or if there are only two. Who leaves is struck off where nobody can
//!   take its place: of three holders two may have left, so that the silent peer holds a session alone. That
//!   is waited for until the silent one may be [`absent`](Census::absent).
//! * A *young* peer may be reborn, and the peers that know may not have been heard yet. It counts
//!   as missed until a settled peer vouches for it: that peer knows it, and knows of no former
//!   life. If no peer is settled the mesh has just begun, and all of them count that did not begin
//!   after one that is missed. While a silent peer has had no time to give it what was there before,
//!   a peer stays young, and so does one that met nobody before a moment ago: it cannot know of former
//!   lives.
//! * A seed that was never met may be a witness, and counts as missed: a peer that starts while it
//!   is cut off knows nobody, and must not take that for a mesh of one. If no peer is settled, or
//!   if several seeds were never met, they may be missed only by a peer that has waited for them as
//!   long as for any other ([`ABSENT_AFTER`]).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::mutant::{self, Mutant};
use crate::ids::{Incarnation, Now};
use crate::view::{Liveness, PeerBelief, View};

/// How long a peer may be silent before its absence can be confirmed.
pub const ABSENT_AFTER: Duration = Duration::from_secs(30);
/// How long a process that replaced a former one counts as not asked, and how long a process is
/// young: until a former one would have been suspected (2.5 s) and replaced (3 s, and 1 s for each
/// rank), its sessions copied to others, and a margin.
pub const REBORN_FOR: Duration = Duration::from_secs(12);
/// How long after a silence a peer may not have been sent again what it missed: an owner sends about once a
/// second, and one that is gone is replaced first.
pub const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// How far apart the processes of a mesh that has just begun may begin, clocks included. What one of them
/// did alone before the others began, those do not know.
const BEGUN_TOGETHER: Duration = Duration::from_secs(1);
/// In a mesh of two, either serves without the other; a third peer ends that.
const PAIR: usize = 2;

/// The beliefs of one peer about which processes exist.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Census {
    /// Every other process that is known and not proven gone, sorted.
    pub others: Vec<Incarnation>,
    /// Those of them that are not heard: they are asked, but not waited for.
    pub silent: Vec<Incarnation>,
    /// Since when the last of them has been silent. This is not sent to others.
    #[serde(skip)]
    pub silent_since: Option<Now>,
    /// Those of the silent that this peer has met, but not heard for [`ABSENT_AFTER`].
    pub absent: Vec<Incarnation>,
    /// Another was silent until less than [`TOLD_WITHIN`] ago: what this peer missed may not have been
    /// sent again yet. This is not sent to others.
    #[serde(skip)]
    pub is_behind: bool,
    /// Those that replaced a former process less than [`REBORN_FOR`] ago.
    pub reborn: Vec<Incarnation>,
    /// Those that left in good order less than [`REBORN_FOR`] ago, and those that replaced such a process
    /// then.
    pub returned: Vec<Incarnation>,
    /// Those of the silent that left before others had copied all that they held. This is not sent to
    /// others: each knows by itself who left.
    #[serde(skip)]
    pub cut_short: Vec<Incarnation>,
    /// Those that are full, by their own word. This is not sent to others.
    #[serde(skip)]
    pub full: Vec<Incarnation>,
    /// Those that are about to leave, by their own word. This is not sent to others.
    #[serde(skip)]
    pub leaving: Vec<Incarnation>,
    /// Those that hold sessions which nobody else does, by their own word.
    pub sole: Vec<Incarnation>,
    /// There have been no more than two peers for as long as this one and the other remember.
    pub pair: bool,
    /// This peer's process began less than [`REBORN_FOR`] ago, or has not been given since what was
    /// there before.
    pub is_young: bool,
    /// It began less than [`REBORN_FOR`] ago. This is not sent to others.
    #[serde(skip)]
    pub is_new: bool,
    /// Those of the others that are young by their own latest news. This is not sent to others:
    /// each process speaks for itself.
    #[serde(skip)]
    pub young: Vec<Incarnation>,
    /// How many seeds were never met, and are no known peer. This is not sent to others: they have
    /// seeds of their own.
    #[serde(skip)]
    pub unmet: usize,
    /// This peer's process began [`ABSENT_AFTER`] ago or longer: it will hardly meet a peer that it
    /// has not met by now. This is not sent to others.
    #[serde(skip)]
    pub has_waited: bool,
}

impl Census {
    /// The census by `view` at `now`.
    #[must_use]
    pub fn of(view: &View, now: Now) -> Self {
        let mut census = Self { pair: view.is_pair(), ..Self::default() };
        let counts = |belief: &PeerBelief| !belief.left || belief.cut_short;
        for (_, belief) in view.peers().filter(|(_, belief)| counts(belief)) {
            let peer = belief.news.incarnation;
            census.others.push(peer);
            if belief.cut_short {
                census.cut_short.push(peer);
            }
            if belief.news.young {
                census.young.push(peer);
            }
            if belief.news.full {
                census.full.push(peer);
            }
            if belief.news.draining {
                census.leaving.push(peer);
            }
            if belief.news.sole {
                census.sole.push(peer);
            }
            if belief.alive == Liveness::Alive {
                census.is_behind |= belief.was_silent_within(now, TOLD_WITHIN);
                continue;
            }
            census.silent.push(peer);
            census.silent_since = census.silent_since.max(Some(belief.silent_since()));
            if belief.met && now.since(belief.silent_since()) >= ABSENT_AFTER {
                census.absent.push(peer);
            }
        }
        census.others.sort_unstable();
        census.reborn = view.reborn(now, REBORN_FOR).collect();
        census.returned = view.returned(now, REBORN_FOR, ABSENT_AFTER).collect();
        census
    }

    /// Whether `peer`, another one, is known, heard, and stays.
    pub(super) fn may_count_on(&self, peer: Incarnation) -> bool {
        self.others.contains(&peer) && !self.silent.contains(&peer) && !self.leaving.contains(&peer)
    }

    /// For how long all that are silent have been so.
    #[must_use]
    pub(super) fn silence(&self, now: Now) -> Duration {
        self.silent_since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// Whether this is one of two peers, and the other has been silent for as long as a request waits, or is
    /// not known any more: then a session of both may go on without the other.
    #[must_use]
    pub fn is_left_alone(&self, now: Now, patience: Duration) -> bool {
        let is_silent = !self.silent.is_empty() && self.silence(now) >= patience;
        self.pair && (self.others.is_empty() || is_silent)
    }

    /// The same, for a peer with so many seeds that it never met.
    #[must_use]
    pub fn with_unmet(mut self, unmet: usize) -> Self {
        self.unmet = unmet;
        self.pair &= self.others.len() + unmet < PAIR;
        self
    }

    /// The same, for a peer whose process has this age.
    #[must_use]
    pub fn with_age(mut self, age: Duration) -> Self {
        self.is_new = is_young(age);
        self.is_young = self.is_new;
        self.has_waited = age >= ABSENT_AFTER;
        self
    }

    /// The same, by the `view` of a peer whose process has this age: it stays young while a peer is
    /// silent, but not absent yet, that has had no time to give it what was there before, and until it has
    /// met others for so long.
    #[must_use]
    pub fn with_silences(mut self, view: &View, now: Now, age: Duration) -> Self {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let since = Now(now.0.saturating_sub(age));
        self.is_young |= view.is_delayed_for(since, REBORN_FOR, ABSENT_AFTER, now);
        // Until it met somebody, it was given nothing, and heard of no former life.
        self.is_young |= view.has_just_met(now, REBORN_FOR);
        self
    }

    /// Whether this peer knows by itself that there are, or may be, more than two, which it
    /// announces to others ([`PeerNews::knows_more`](crate::view::PeerNews::knows_more)).
    #[must_use]
    pub fn knows_more(&self, view: &View) -> bool {
        view.known().max(self.others.len() + self.unmet) >= PAIR
    }

    /// A digest of all processes that it names, `me` included: equal at two peers that know the
    /// same.
    #[must_use]
    pub fn digest(&self, me: Incarnation) -> u64 {
        self.others.iter().chain([&me]).fold(0, |all, peer| {
            let one = peer.0.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
            });
            all ^ one
        })
    }

    /// The answer to a peer that asked with `digest`: `None` if it knows the same.
    pub(super) fn news(self: &Arc<Self>, me: Incarnation, digest: u64) -> Option<Arc<Self>> {
        let same = self.digest(me) == digest;
        let all_stayed = self.reborn.is_empty() && self.returned.is_empty();
        let plain = self.absent.is_empty() && self.sole.is_empty() && all_stayed && !self.is_young;
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
    /// Some peers that may answer have not.
    Wait,
    /// All peers that can answer have, and they are too few.
    TooFew,
}

/// The peers that were asked, and which of their answers count.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Roll {
    everyone: BTreeSet<Incarnation>,
    answered: BTreeSet<Incarnation>,
    silent: BTreeSet<Incarnation>,
    reborn: BTreeSet<Incarnation>,
    /// Those that left in good order a moment ago, or replaced one that did.
    returned: BTreeSet<Incarnation>,
    /// Those that left before others had copied all that they held.
    cut_short: BTreeSet<Incarnation>,
    /// Those that hold sessions which nobody else does.
    sole: BTreeSet<Incarnation>,
    /// Those that are young by their own answer.
    young: BTreeSet<Incarnation>,
    /// Those that a settled peer knows.
    vouched: BTreeSet<Incarnation>,
    /// The peers known to one that answers that it knows the same.
    same: Vec<Incarnation>,
    /// Which peers report which others as absent.
    absent: BTreeMap<Incarnation, BTreeSet<Incarnation>>,
    pair: bool,
    /// How many peers there may be beyond everyone known.
    unmet: usize,
    /// Whether those were waited for as long as for any other.
    has_waited: bool,
    /// In a pair: the other may be heard again before this peer has been patient for long enough.
    is_patient: bool,
}

impl Roll {
    /// Asks everyone that `census` knows, and counts the answer of `me`, whose census it is.
    #[must_use]
    pub fn new(me: Incarnation, census: &Census) -> Self {
        let mut roll = Self {
            everyone: census.others.iter().copied().chain([me]).collect(),
            answered: BTreeSet::new(),
            silent: census.silent.iter().copied().collect(),
            reborn: BTreeSet::new(),
            returned: BTreeSet::new(),
            cut_short: census.cut_short.iter().copied().collect(),
            sole: census.sole.iter().copied().collect(),
            young: census.young.iter().copied().collect(),
            vouched: BTreeSet::new(),
            same: census.others.iter().copied().chain([me]).collect(),
            absent: BTreeMap::new(),
            pair: census.pair,
            unmet: census.unmet,
            has_waited: census.has_waited,
            is_patient: false,
        };
        roll.answer(me, Some(census));
        roll
    }

    /// Notes that `peer` answered, with its census unless that is the same. Returns those that were
    /// not known before.
    pub fn answer(&mut self, peer: Incarnation, sent: Option<&Census>) -> Vec<Incarnation> {
        self.everyone.insert(peer);
        self.answered.insert(peer);
        if sent.is_some_and(|census| census.is_young) {
            self.young.insert(peer);
        } else {
            self.young.remove(&peer);
            self.vouched.extend(sent.map_or(&self.same, |census| &census.others));
        }
        let Some(census) = sent else { return Vec::new() };
        self.pair &= census.pair;
        self.reborn.extend(census.reborn.iter().copied());
        self.returned.extend(census.returned.iter().copied());
        self.sole.extend(census.sole.iter().copied());
        for absent in &census.absent {
            self.absent.entry(*absent).or_default().insert(peer);
        }
        self.add(census.others.iter().copied())
    }

    /// Adds `peers` to everyone known. Returns those that were not.
    pub fn add(&mut self, peers: impl Iterator<Item = Incarnation>) -> Vec<Incarnation> {
        peers.filter(|peer| self.everyone.insert(*peer)).collect()
    }

    /// Notes that `peer` is proven gone. The process that replaced it has forgotten what it
    /// witnessed.
    pub fn gone(&mut self, peer: Incarnation) {
        self.reborn.extend(self.everyone.iter().filter(|other| peer.is_before(other)));
        self.answered.remove(&peer);
        if !self.cut_short.contains(&peer) {
            self.everyone.remove(&peer);
        }
    }

    /// Notes that `peer` cannot promise what it was asked for.
    pub fn miss(&mut self, peer: Incarnation) {
        self.answered.remove(&peer);
    }

    /// Whether nobody is left who could know of a peer that was not asked: everyone known has answered,
    /// one of them has lived for a while, and no seed is unmet.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let has_settled = self.answered.iter().any(|peer| !self.young.contains(peer));
        has_settled && self.unmet == 0 && self.everyone.is_subset(&self.answered)
    }

    /// Whether `peer` is not heard, so that it is asked but not waited for.
    #[must_use]
    pub fn is_silent(&self, peer: Incarnation) -> bool {
        self.silent.contains(&peer)
    }

    /// The peers that have not answered.
    pub fn open(&self) -> impl Iterator<Item = Incarnation> + '_ {
        self.everyone.difference(&self.answered).copied()
    }

    /// Updates which peers are not heard.
    pub fn hear(&mut self, census: &Census) {
        self.silent = census.silent.iter().copied().collect();
        self.cut_short.extend(census.cut_short.iter().copied());
        self.sole.extend(census.sole.iter().copied());
        self.reborn.extend(census.reborn.iter().copied());
        self.returned.extend(census.returned.iter().copied());
    }

    /// In a pair, whether a peer that is silent is still waited for.
    pub fn waits_for_the_other(&mut self, is_patient: bool) {
        self.is_patient = is_patient;
    }

    /// Whether the answers suffice; `waited`: all that are alive have had the time to answer.
    #[must_use]
    pub fn verdict(&self, waited: bool) -> Verdict {
        let is_waited_for = self.is_patient && self.is_pair();
        let pending = |peer: &Incarnation| is_waited_for || !self.silent.contains(peer);
        if self.suffice(|_| false) {
            Verdict::Enough
        } else if self.suffice(pending) || !waited && self.open().any(|peer| pending(&peer)) {
            Verdict::Wait
        } else {
            Verdict::TooFew
        }
    }

    /// Whether `peer` replaced a process that others count on: a peer said so, or still counts on
    /// that one.
    fn is_reborn(&self, peer: Incarnation) -> bool {
        self.reborn.contains(&peer) || self.everyone.iter().any(|other| other.is_before(&peer))
    }

    /// Whether `peer` may have forgotten what only a missed one knows.
    fn forgot(&self, peer: Incarnation) -> bool {
        let enough = if self.everyone.len() + self.unmet > PAIR { 2 } else { 1 };
        let several_left = self.returned.len() >= enough;
        self.is_reborn(peer) || several_left && self.returned.contains(&peer)
    }

    /// Whether there are two, so that either serves without the other.
    fn is_pair(&self) -> bool {
        self.pair && self.everyone.len() + self.unmet == PAIR
    }

    /// Whether the answers would suffice if the peers that `will` answer had done so.
    fn suffice(&self, will: impl Fn(&Incarnation) -> bool) -> bool {
        let is_young = |peer: &Incarnation| self.young.contains(peer);
        let is_pair = self.is_pair();
        let nobody_is_settled = self.everyone.iter().all(is_young);
        let will_vouch =
            |it: &Incarnation| will(it) && !self.answered.contains(it) && !is_young(it);
        let vouched_soon = self.everyone.iter().any(will_vouch);
        let is_no_witness = |peer: &Incarnation| {
            is_young(peer) && !self.vouched.contains(peer) && !mutant::on(Mutant::YoungWitness)
        };
        let misses = |peer: &&Incarnation| !self.answered.contains(*peer) && !will(peer);
        let missed_began = self.everyone.iter().filter(misses).map(Incarnation::began).min();
        let is_younger = |peer: &Incarnation| {
            missed_began.is_some_and(|began| began.after(BEGUN_TOGETHER) <= peer.began())
        };
        let heeds_age = |peer: &Incarnation| {
            !is_pair && !vouched_soon && (!nobody_is_settled || is_younger(peer))
        };
        let counts = |peer: &Incarnation| {
            (self.answered.contains(peer) || will(peer))
                && (!self.forgot(*peer) || mutant::on(Mutant::RebornWitness))
                && !(heeds_age(peer) && is_no_witness(peer))
        };
        let missed: Vec<Incarnation> =
            self.everyone.iter().copied().filter(|peer| !counts(peer)).collect();
        let count = self.everyone.len() + self.unmet;
        let is_majority = |some: usize| 2 * some > count;
        let answers = |peer: &Incarnation| {
            self.answered.contains(peer) || self.cut_short.contains(peer) || will(peer)
        };
        if self.unmet == 0 && self.everyone.iter().all(answers) {
            return true;
        }
        let said = |peer: &Incarnation| self.absent.get(peer).into_iter().flatten();
        let absent = |peer: &Incarnation| is_majority(said(peer).filter(|by| counts(by)).count());
        let is_needed = |peer: &&Incarnation| self.sole.contains(*peer) && !absent(peer);
        if !is_pair && self.everyone.iter().filter(misses).any(|peer| is_needed(&peer)) {
            return false;
        }
        let majority = is_majority(self.everyone.len() - missed.len());
        match (&missed[..], self.unmet) {
            ([], 0) => true,
            // In a pair, either holds everything: one that was silent for long, or knows no more, is not
            // needed.
            ([one], 0) if is_pair => {
                self.answered.contains(one) || self.silent.contains(one) && !self.is_patient
            }
            ([], 1) if is_pair => true,
            ([_], 0) => majority,
            // Everyone known is asked. Any other peers have no majority, but may have had one with
            // the former lives of these, or may be all that is left of one.
            ([], 1) => majority && (self.has_waited || !nobody_is_settled),
            ([], _) => majority && self.has_waited,
            ([_, _], 0) | ([_], 1) if mutant::on(Mutant::MissTwo) => true,
            ([_, _], 0) | ([_], 1) => {
                let is_reborn = missed.iter().any(|peer| self.forgot(*peer));
                majority && !is_reborn && missed.iter().any(absent)
            }
            _ => false,
        }
    }
}
