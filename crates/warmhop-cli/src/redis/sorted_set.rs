//! Members with scores, in the order of both.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, btree_set};
use std::slice;

use bytes::Bytes;

/// Up to so many members are looked for one by one: a set is made anew for each command, and that takes
/// less time than to sort them into two maps.
const FEW: usize = 128;

/// A score, ordered as numbers are. It is never NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Score(pub(super) f64);

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        // Not `total_cmp`, for which the two zeros differ.
        self.0.partial_cmp(&other.0).unwrap_or(Ordering::Equal)
    }
}

type Scored = (Score, Bytes);

/// Members and their scores.
#[derive(Debug, Clone, Default)]
pub(super) struct SortedSet {
    members: Members,
    /// How many bytes all its members have.
    bytes: usize,
}

#[derive(Debug, Clone)]
enum Members {
    /// In their order.
    Few(Vec<Scored>),
    Many {
        scores: HashMap<Bytes, Score>,
        order: BTreeSet<Scored>,
    },
}

impl Default for Members {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl PartialEq for SortedSet {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

/// From the lowest to the highest.
enum Iter<'a> {
    Few(slice::Iter<'a, Scored>),
    Many(btree_set::Iter<'a, Scored>),
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Scored;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Few(few) => few.next(),
            Self::Many(many) => many.next(),
        }
    }
}

impl DoubleEndedIterator for Iter<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        match self {
            Self::Few(few) => few.next_back(),
            Self::Many(many) => many.next_back(),
        }
    }
}

impl SortedSet {
    /// One of these members, which come in their order as a rule, and once each: then it is made at once.
    pub(super) fn of(members: Vec<Scored>) -> Self {
        let is_in_order = members.is_sorted_by(|one, next| one < next);
        if members.len() <= FEW && is_in_order && !has_twins(&members) {
            let bytes = members.iter().map(|(_, member)| member.len()).sum();
            return Self { members: Members::Few(members), bytes };
        }
        let scores: HashMap<Bytes, Score> =
            members.iter().map(|(score, member)| (member.clone(), *score)).collect();
        let bytes = members.iter().map(|(_, member)| member.len()).sum();
        let order: BTreeSet<Scored> = members.into_iter().collect();
        if scores.len() == order.len() && order.len() > FEW {
            return Self { members: Members::Many { scores, order }, bytes };
        }
        // They are few, or one of them has several scores.
        let mut set = Self::default();
        for (score, member) in order {
            set.insert(member, score.0);
        }
        set
    }

    pub(super) fn len(&self) -> usize {
        match &self.members {
            Members::Few(few) => few.len(),
            Members::Many { scores, .. } => scores.len(),
        }
    }

    /// How many bytes all its members have.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn score(&self, member: &[u8]) -> Option<f64> {
        let score = match &self.members {
            Members::Few(few) => few.iter().find(|(_, it)| *it == member).map(|(score, _)| score),
            Members::Many { scores, .. } => scores.get(member),
        };
        score.map(|score| score.0)
    }

    /// Sets a member's score; returns the old one.
    pub(super) fn insert(&mut self, member: Bytes, score: f64) -> Option<f64> {
        let before = self.remove(&member);
        self.bytes += member.len();
        // As in Redis, -0 is kept as 0.
        let scored = (Score(score + 0.0), member);
        match &mut self.members {
            Members::Few(few) => {
                let at = few.partition_point(|it| *it < scored);
                few.insert(at, scored);
                if few.len() > FEW {
                    let many = std::mem::take(few);
                    let scores =
                        many.iter().map(|(score, member)| (member.clone(), *score)).collect();
                    self.members = Members::Many { scores, order: many.into_iter().collect() };
                }
            }
            Members::Many { scores, order } => {
                scores.insert(scored.1.clone(), scored.0);
                order.insert(scored);
            }
        }
        before
    }

    pub(super) fn remove(&mut self, member: &Bytes) -> Option<f64> {
        let score = match &mut self.members {
            Members::Few(few) => {
                let at = few.iter().position(|(_, it)| it == member)?;
                few.remove(at).0
            }
            Members::Many { scores, order } => {
                let score = scores.remove(member)?;
                order.remove(&(score, member.clone()));
                score
            }
        };
        self.bytes -= member.len();
        Some(score.0)
    }

    /// From the lowest to the highest.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Bytes, f64)> {
        let scored = match &self.members {
            Members::Few(few) => Iter::Few(few.iter()),
            Members::Many { order, .. } => Iter::Many(order.iter()),
        };
        scored.map(|(score, member)| (member, score.0))
    }

    pub(super) fn rank(&self, member: &[u8]) -> Option<usize> {
        match &self.members {
            Members::Few(few) => few.iter().position(|(_, it)| *it == member),
            Members::Many { scores, order } => {
                let score = *scores.get(member)?;
                let member = Bytes::copy_from_slice(member);
                Some(order.range(..(score, member)).count())
            }
        }
    }
}

/// Whether one of at most [`FEW`] members is among them twice, with different scores.
fn has_twins(members: &[Scored]) -> bool {
    // Compared by a few of their bytes first, which takes much less time.
    let mut marks = [0_u64; FEW];
    for (mark, (_, member)) in marks.iter_mut().zip(members) {
        let mut last = [0; 8];
        let tail = &member[member.len().saturating_sub(last.len())..];
        last[..tail.len()].copy_from_slice(tail);
        *mark = u64::from_le_bytes(last);
    }
    members.iter().enumerate().any(|(at, (_, member))| {
        let others = at + 1..members.len();
        marks[others.clone()].contains(&marks[at])
            && members[others].iter().any(|(_, other)| other == member)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Few and many members are kept in different ways: nobody can tell which.
    #[test]
    fn a_set_of_any_size_is_in_the_order_of_its_scores_and_names() {
        let name = |at: usize| Bytes::from(format!("m{at:04}"));
        for len in [0, 1, 2, FEW - 1, FEW, FEW + 1, 3 * FEW] {
            let mut set = SortedSet::default();
            let mut expected = BTreeSet::new();
            for at in 0..len {
                // Neither in the order of their names nor of their scores.
                let at = at * 7 % len.max(1);
                let score = (at % 5) as f64 - 2.0;
                expected.retain(|(_, member)| *member != name(at));
                let before = expected.len();
                expected.insert((Score(score), name(at)));
                assert_eq!(set.insert(name(at), score).is_none(), expected.len() > before);
            }
            let in_order = |set: &SortedSet| -> Vec<Scored> {
                set.iter().map(|(member, score)| (Score(score), member.clone())).collect()
            };
            assert_eq!(in_order(&set), expected.iter().cloned().collect::<Vec<_>>());
            assert_eq!(SortedSet::of(in_order(&set)), set);
            let mut backwards = in_order(&set);
            backwards.reverse();
            assert_eq!(SortedSet::of(backwards), set);
            for (rank, (score, member)) in expected.iter().enumerate() {
                assert_eq!(set.rank(member), Some(rank));
                assert_eq!(set.score(member), Some(score.0));
            }
            assert_eq!((set.rank(b"none"), set.score(b"none")), (None, None));
            assert_eq!(set.bytes(), expected.len() * 5);
            // Down to nothing, past the bound.
            for (score, member) in expected {
                assert_eq!(set.remove(&member), Some(score.0));
                assert_eq!(set.remove(&member), None);
            }
            assert_eq!((set.len(), set.bytes(), set.iter().count()), (0, 0, 0));
        }
    }

    #[test]
    fn a_member_with_several_scores_is_kept_once() {
        let scored = |score, member: &'static str| (Score(score), Bytes::from(member));
        let set = SortedSet::of(vec![scored(1.0, "a"), scored(2.0, "b"), scored(3.0, "a")]);
        let listed: Vec<(&Bytes, f64)> = set.iter().collect();
        assert_eq!(listed, [(&Bytes::from("b"), 2.0), (&Bytes::from("a"), 3.0)]);
        assert_eq!((set.len(), set.bytes()), (2, 2));
    }

    #[test]
    fn zero_below_zero_is_kept_as_zero() {
        let mut set = SortedSet::default();
        set.insert(Bytes::from("a"), -0.0);
        assert!(set.score(b"a").is_some_and(f64::is_sign_positive));
    }
}
