//! Unions, intersections and differences of sorted sets, and of sets beside them.

use std::collections::HashMap;

use bytes::Bytes;

use super::super::frame::Reply;
use super::super::room::{Room, wrong_type};
use super::super::value::{Kind, Set, SortedSet, Value};
use super::{float, length, not_negative, number, sorted, syntax, word};

/// How several sets are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Union,
    Intersection,
    Difference,
}

impl How {
    fn of(name: &str) -> Self {
        match name {
            "ZUNION" | "ZUNIONSTORE" => Self::Union,
            "ZDIFF" | "ZDIFFSTORE" => Self::Difference,
            _ => Self::Intersection,
        }
    }
}

/// The options after the keys.
struct Options {
    weights: Vec<f64>,
    merge: fn(f64, f64) -> f64,
    with_scores: bool,
    limit: usize,
}

fn can_be_combined(room: &Room, sources: &[Bytes]) -> Result<(), Reply> {
    let fits = |value: &Value| matches!(value, Value::SortedSet(_)) || Set::of(value).is_some();
    let all = sources.iter().filter_map(|key| room.value(key)).all(fits);
    if all { Ok(()) } else { Err(wrong_type()) }
}

/// The keys that `numkeys key [key ...]` names, and what follows them.
fn sources<'a>(
    room: &Room,
    name: &str,
    args: &'a [Bytes],
) -> Result<(&'a [Bytes], &'a [Bytes]), Reply> {
    let (count, rest) = args.split_first().ok_or_else(syntax)?;
    let keys = usize::try_from(number(count)?).unwrap_or_default();
    if keys == 0 {
        let detail =
            format!("at least 1 input key is needed for '{}' command", name.to_ascii_lowercase());
        return Err(Reply::error("ERR", detail));
    }
    let (sources, rest) = rest.split_at_checked(keys).ok_or_else(syntax)?;
    // Checked before the options, as in Redis.
    can_be_combined(room, sources)?;
    Ok((sources, rest))
}

fn options(name: &str, keys: usize, mut rest: &[Bytes]) -> Result<Options, Reply> {
    let mut options =
        Options { weights: vec![1.0; keys], merge: |a, b| a + b, with_scores: false, limit: 0 };
    let (weighs, stores) = (How::of(name) != How::Difference, name.ends_with("STORE"));
    let counts = name == "ZINTERCARD";
    while let [option, more @ ..] = rest {
        rest = match word(option).as_str() {
            "WEIGHTS" if weighs && !counts && more.len() >= keys => {
                for (weight, text) in options.weights.iter_mut().zip(more) {
                    let no_float = |_| Reply::error("ERR", "weight value is not a float");
                    *weight = float(text).map_err(no_float)?;
                }
                &more[keys..]
            }
            "AGGREGATE" if weighs && !counts => {
                let (how, more) = more.split_first().ok_or_else(syntax)?;
                options.merge = match word(how).as_str() {
                    "SUM" => |a, b| a + b,
                    "MIN" => f64::min,
                    "MAX" => f64::max,
                    _ => return Err(syntax()),
                };
                more
            }
            "WITHSCORES" if !stores && !counts => {
                options.with_scores = true;
                more
            }
            "LIMIT" if counts => {
                let (limit, more) = more.split_first().ok_or_else(syntax)?;
                options.limit = not_negative(limit, "LIMIT")?;
                more
            }
            _ => return Err(syntax()),
        };
    }
    Ok(options)
}

/// The scores of a set, or of one whose members have none: 1 each.
fn scores_of(room: &Room, key: &Bytes, weight: f64) -> Result<HashMap<Bytes, f64>, Reply> {
    Ok(match room.value(key) {
        None => HashMap::new(),
        Some(Value::SortedSet(set)) => {
            set.iter().map(|(it, score)| (it.clone(), number_of(score * weight))).collect()
        }
        Some(value) => {
            let set = Set::of(value).ok_or_else(wrong_type)?;
            set.iter().map(|it| (it.clone(), weight)).collect()
        }
    })
}

fn number_of(score: f64) -> f64 {
    if score.is_nan() { 0.0 } else { score }
}

fn combined(room: &Room, how: How, keys: &[Bytes], options: &Options) -> Result<SortedSet, Reply> {
    let merge = options.merge;
    let mut whole: Option<HashMap<Bytes, f64>> = None;
    for (key, weight) in keys.iter().zip(&options.weights) {
        let scores = scores_of(room, key, *weight)?;
        whole = Some(match (whole, how) {
            (None, _) => scores,
            (Some(mut whole), How::Union) => {
                for (member, score) in scores {
                    let sum =
                        whole.get(&member).map_or(score, |held| number_of(merge(*held, score)));
                    whole.insert(member, sum);
                }
                whole
            }
            (Some(whole), How::Intersection) => {
                let both = |(member, held): (Bytes, f64)| {
                    let score = scores.get(&member)?;
                    Some((member, number_of(merge(held, *score))))
                };
                whole.into_iter().filter_map(both).collect()
            }
            (Some(mut whole), How::Difference) => {
                whole.retain(|member, _| !scores.contains_key(member));
                whole
            }
        });
    }
    let mut set = SortedSet::default();
    for (member, score) in whole.unwrap_or_default() {
        set.insert(member, score);
    }
    Ok(set)
}

/// Sets a key to this, or deletes it if this is empty; returns the number of members.
pub(super) fn store(room: &mut Room, key: &Bytes, set: SortedSet) -> Reply {
    let reply = length(set.len());
    if set.len() == 0 {
        room.remove(key);
    } else {
        room.set(key, set.whole(), None);
    }
    reply
}

/// `ZUNIONSTORE`, `ZINTERSTORE` and `ZDIFFSTORE`, of sets and sorted sets.
pub(super) fn combine_and_store(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let name = word(&args[0]);
    let (keys, rest) = sources(room, &name, &args[2..])?;
    let options = options(&name, keys.len(), rest)?;
    let set = combined(room, How::of(&name), keys, &options)?;
    Ok(store(room, &args[1], set))
}

/// `ZUNION`, `ZINTER` and `ZDIFF`.
pub(super) fn combine(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let name = word(&args[0]);
    let (keys, rest) = sources(room, &name, &args[1..])?;
    let options = options(&name, keys.len(), rest)?;
    let set = combined(room, How::of(&name), keys, &options)?;
    Ok(sorted::listed(set.iter(), options.with_scores))
}

/// `ZINTERCARD`.
pub(super) fn intersection_len(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let name = word(&args[0]);
    let (keys, rest) = sources(room, &name, &args[1..])?;
    let options = options(&name, keys.len(), rest)?;
    let len = combined(room, How::Intersection, keys, &options)?.len();
    Ok(length(if options.limit == 0 { len } else { len.min(options.limit) }))
}
