//! Parts of sorted sets: by rank, by score and by name.

use std::ops::Bound;

use bytes::Bytes;

use super::super::frame::Reply;
use super::super::room::Room;
use super::super::value::SortedSet;
use super::{length, number, numbers, sorted, sorted_combined, span, syntax, word};

/// How a range is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Rank,
    Score,
    Name,
}

/// A part of a sorted set.
enum Part {
    Ranks(i64, i64),
    Scores(Bound<f64>, Bound<f64>),
    /// Between two names, where the set's scores are all the same.
    Names(Bound<Bytes>, Bound<Bytes>),
    /// A range without members.
    Nothing,
}

fn score_bound(text: &[u8]) -> Result<Bound<f64>, Reply> {
    let (excluded, digits) = match text.strip_prefix(b"(") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let no_float = || Reply::error("ERR", "min or max is not a float");
    // As Redis reads it: after spaces, and no text at all is 0.
    let score = match digits.trim_ascii_start() {
        [] if digits.is_empty() => 0.0,
        digits => numbers::nearest_float(digits).ok_or_else(no_float)?,
    };
    Ok(if excluded { Bound::Excluded(score) } else { Bound::Included(score) })
}

/// A bound by name; `None` if no name can be inside of it.
fn name_bound(text: &Bytes, is_lower: bool) -> Result<Option<Bound<Bytes>>, Reply> {
    Ok(Some(match text.first() {
        Some(b'[') => Bound::Included(text.slice(1..)),
        Some(b'(') => Bound::Excluded(text.slice(1..)),
        Some(b'-') if text.len() == 1 && is_lower => Bound::Unbounded,
        Some(b'+') if text.len() == 1 && !is_lower => Bound::Unbounded,
        Some(b'-' | b'+') if text.len() == 1 => return Ok(None),
        _ => return Err(Reply::error("ERR", "min or max not valid string range item")),
    }))
}

impl Part {
    fn of(by: By, low: &Bytes, high: &Bytes) -> Result<Self, Reply> {
        Ok(match by {
            By::Rank => Self::Ranks(number(low)?, number(high)?),
            By::Score => Self::Scores(score_bound(low)?, score_bound(high)?),
            By::Name => match (name_bound(low, true)?, name_bound(high, false)?) {
                (Some(low), Some(high)) => Self::Names(low, high),
                _ => Self::Nothing,
            },
        })
    }

    /// The places of its members in the set's order.
    fn places(&self, set: &SortedSet) -> std::ops::Range<usize> {
        let begin_and_end = |before: &dyn Fn((&Bytes, f64)) -> bool,
                             behind: &dyn Fn((&Bytes, f64)) -> bool| {
            let begin = set.iter().take_while(|it| before(*it)).count();
            let end = set.len() - set.iter().rev().take_while(|it| behind(*it)).count();
            begin..end.max(begin)
        };
        match self {
            Self::Nothing => 0..0,
            Self::Ranks(start, stop) => span(*start, *stop, set.len()),
            Self::Scores(low, high) => begin_and_end(
                &|(_, score)| match low {
                    Bound::Included(low) => score < *low,
                    Bound::Excluded(low) => score <= *low,
                    Bound::Unbounded => false,
                },
                &|(_, score)| match high {
                    Bound::Included(high) => score > *high,
                    Bound::Excluded(high) => score >= *high,
                    Bound::Unbounded => false,
                },
            ),
            Self::Names(low, high) => Self::names(set, low, high),
        }
    }
}

impl Part {
    /// The places of the members between two names: from the first that is not below the lower one up to
    /// the first above the upper one. Where scores differ, and so names are in no order, Redis goes by the
    /// same two steps, once the outermost members do not rule it out.
    fn names(set: &SortedSet, low: &Bound<Bytes>, high: &Bound<Bytes>) -> std::ops::Range<usize> {
        let is_below = |member: &Bytes| match low {
            Bound::Included(low) => member < low,
            Bound::Excluded(low) => member <= low,
            Bound::Unbounded => false,
        };
        let is_above = |member: &Bytes| match high {
            Bound::Included(high) => member > high,
            Bound::Excluded(high) => member >= high,
            Bound::Unbounded => false,
        };
        let names = || set.iter().map(|(member, _)| member);
        if names().next_back().is_none_or(is_below) || names().next().is_none_or(is_above) {
            return 0..0;
        }
        let begin = names().take_while(|member| is_below(member)).count();
        let count = names().skip(begin).take_while(|member| !is_above(member)).count();
        begin..begin + count
    }
}

/// `ZCOUNT` and `ZLEXCOUNT`.
pub(super) fn count(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let by = if word(&args[0]) == "ZCOUNT" { By::Score } else { By::Name };
    let part = Part::of(by, &args[2], &args[3])?;
    let set = room.read::<SortedSet>(&args[1])?;
    Ok(length(set.map_or(0, |set| part.places(set).len())))
}

/// `ZREMRANGEBYRANK`, `ZREMRANGEBYSCORE` and `ZREMRANGEBYLEX`.
pub(super) fn remove(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let by = match word(&args[0]).as_str() {
        "ZREMRANGEBYRANK" => By::Rank,
        "ZREMRANGEBYSCORE" => By::Score,
        _ => By::Name,
    };
    let part = Part::of(by, &args[2], &args[3])?;
    room.write(&args[1], |set: &mut SortedSet| {
        let places = part.places(set);
        let gone = set.iter().skip(places.start).take(places.len());
        let gone: Vec<Bytes> = gone.map(|(member, _)| member.clone()).collect();
        for member in &gone {
            set.remove(member);
        }
        Ok((!gone.is_empty(), length(gone.len())))
    })
}

/// `ZRANGE` and its older forms.
pub(super) fn range(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let (found, with_scores) = found(room, &word(&args[0]), args)?;
    Ok(sorted::listed(found.iter().map(|(member, score)| (member, *score)), with_scores))
}

/// `ZRANGESTORE`.
pub(super) fn range_and_store(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let (found, _) = found(room, &word(&args[0]), &args[1..])?;
    let mut set = SortedSet::default();
    for (member, score) in found {
        set.insert(member, score);
    }
    Ok(sorted_combined::store(room, &args[1], set))
}

/// The members of a part with their scores, and whether the client asked for these; the first
/// argument is ignored.
fn found(room: &Room, name: &str, args: &[Bytes]) -> Result<(Vec<(Bytes, f64)>, bool), Reply> {
    let mut by = match name {
        "ZRANGEBYSCORE" | "ZREVRANGEBYSCORE" => By::Score,
        "ZRANGEBYLEX" | "ZREVRANGEBYLEX" => By::Name,
        _ => By::Rank,
    };
    let stores = name == "ZRANGESTORE";
    let is_new_form = name == "ZRANGE" || stores;
    let (mut reverse, mut with_scores) = (name.starts_with("ZREV"), false);
    let mut limit = None;
    let mut rest = &args[4..];
    while let [option, more @ ..] = rest {
        rest = more;
        match word(option).as_str() {
            "WITHSCORES" if !stores => with_scores = true,
            "LIMIT" if more.len() >= 2 => {
                limit = Some((number(&more[0])?, number(&more[1])?));
                rest = &more[2..];
            }
            "BYSCORE" if is_new_form => by = By::Score,
            "BYLEX" if is_new_form => by = By::Name,
            "REV" if is_new_form => reverse = true,
            _ => return Err(syntax()),
        }
    }
    if limit.is_some() && by == By::Rank {
        let detail =
            "syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX";
        return Err(Reply::error("ERR", detail));
    }
    if with_scores && by == By::Name {
        let detail = "syntax error, WITHSCORES not supported in combination with BYLEX";
        return Err(Reply::error("ERR", detail));
    }
    // Ranks are counted from the other end; scores and names come with the higher one first.
    let part = match (by, reverse) {
        (By::Rank, _) | (_, false) => Part::of(by, &args[2], &args[3])?,
        (_, true) => Part::of(by, &args[3], &args[2])?,
    };
    let nothing = || Ok((Vec::new(), with_scores));
    let Some(set) = room.read::<SortedSet>(&args[1])? else { return nothing() };
    let mut places = part.places(set);
    let len = set.len();
    if by == By::Rank && reverse {
        places = if places.is_empty() { 0..0 } else { len - places.end..len - places.start };
    }
    let found = set.iter().skip(places.start).take(places.len());
    let mut found: Vec<(&Bytes, f64)> = found.collect();
    if reverse {
        found.reverse();
    }
    let (offset, many) = limit.unwrap_or((0, -1));
    let Ok(offset) = usize::try_from(offset) else { return nothing() };
    let many = usize::try_from(many).unwrap_or(usize::MAX);
    let found = found.into_iter().skip(offset).take(many);
    Ok((found.map(|(member, score)| (member.clone(), score)).collect(), with_scores))
}
