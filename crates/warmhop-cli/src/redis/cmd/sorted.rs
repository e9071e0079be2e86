//! Sorted sets: members with scores.

use bytes::Bytes;

use super::super::frame::Reply;
use super::super::room::Room;
use super::super::value::SortedSet;
use super::keys::{cursor, nothing_scanned, scan_options, scanned};
use super::{count, double_text, float, length, number, owned, syntax, word};

fn not_a_number() -> Reply {
    Reply::error("ERR", "resulting score is not a number (NaN)")
}

#[derive(Debug, Default)]
struct AddOptions {
    only_new: bool,
    only_held: bool,
    greater: bool,
    less: bool,
    changed: bool,
    incr: bool,
}

/// `ZADD`.
pub(super) fn add(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let mut options = AddOptions::default();
    let mut rest = &args[2..];
    while let [option, more @ ..] = rest {
        match word(option).as_str() {
            "NX" => options.only_new = true,
            "XX" => options.only_held = true,
            "GT" => options.greater = true,
            "LT" => options.less = true,
            "CH" => options.changed = true,
            "INCR" => options.incr = true,
            _ => break,
        }
        rest = more;
    }
    if rest.is_empty() || !rest.len().is_multiple_of(2) {
        return Err(syntax());
    }
    let AddOptions { only_new, only_held, greater, less, changed, incr } = options;
    if only_new && only_held {
        let detail = "XX and NX options at the same time are not compatible";
        return Err(Reply::error("ERR", detail));
    }
    if (greater && less) || (only_new && (greater || less)) {
        let detail = "GT, LT, and/or NX options at the same time are not compatible";
        return Err(Reply::error("ERR", detail));
    }
    if incr && rest.len() > 2 {
        let detail = "INCR option supports a single increment-element pair";
        return Err(Reply::error("ERR", detail));
    }
    let pairs = rest.chunks_exact(2).map(|pair| Ok((float(&pair[0])?, &pair[1])));
    let pairs: Vec<(f64, &Bytes)> = pairs.collect::<Result<_, Reply>>()?;
    room.write(&args[1], |set: &mut SortedSet| {
        let (mut added, mut moved, mut last) = (0, 0, None);
        for (score, member) in pairs {
            let held = set.score(member);
            let score = if incr { held.map_or(score, |held| held + score) } else { score };
            if score.is_nan() {
                return Err(not_a_number());
            }
            let goes = match held {
                None => !only_held,
                Some(held) => !only_new && (!greater || score > held) && (!less || score < held),
            };
            if !goes {
                continue;
            }
            last = Some(score);
            match held {
                None => added += 1,
                Some(held) if held != score => moved += 1,
                Some(_) => continue,
            }
            set.insert(owned(member), score);
        }
        let reply = match (incr, changed) {
            (true, _) => last.map_or(Reply::Null, Reply::Double),
            (false, true) => Reply::Number(added + moved),
            (false, false) => Reply::Number(added),
        };
        Ok((added + moved > 0, reply))
    })
}

pub(super) fn incr_by(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let by = float(&args[2])?;
    room.write(&args[1], |set: &mut SortedSet| {
        let held = set.score(&args[3]);
        // Not from 0 on: -0 is answered as it came.
        let sum = held.map_or(by, |held| held + by);
        if sum.is_nan() {
            return Err(not_a_number());
        }
        let changes = held != Some(sum);
        if changes {
            set.insert(owned(&args[3]), sum);
        }
        Ok((changes, Reply::Double(sum)))
    })
}

pub(super) fn remove(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    room.write(&args[1], |set: &mut SortedSet| {
        let gone = args[2..].iter().filter_map(|member| set.remove(member)).count();
        Ok((gone > 0, length(gone)))
    })
}

pub(super) fn len(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    Ok(length(room.read::<SortedSet>(&args[1])?.map_or(0, SortedSet::len)))
}

pub(super) fn score(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let set = room.read::<SortedSet>(&args[1])?;
    Ok(set.and_then(|set| set.score(&args[2])).map_or(Reply::Null, Reply::Double))
}

pub(super) fn scores(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let set = room.read::<SortedSet>(&args[1])?;
    let one =
        |member: &Bytes| set.and_then(|set| set.score(member)).map_or(Reply::Null, Reply::Double);
    Ok(Reply::Array(args[2..].iter().map(one).collect()))
}

/// `ZRANK` and `ZREVRANK`.
pub(super) fn rank(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let with_score = match &args[3..] {
        [] => false,
        [option] if word(option) == "WITHSCORE" => true,
        _ => return Err(syntax()),
    };
    let set = room.read::<SortedSet>(&args[1])?;
    let found = set.and_then(|set| Some((set.rank(&args[2])?, set.len(), set.score(&args[2])?)));
    let Some((rank, len, score)) = found else {
        return Ok(if with_score { Reply::Aborted } else { Reply::Null });
    };
    let rank = length(if word(&args[0]) == "ZRANK" { rank } else { len - 1 - rank });
    Ok(if with_score { Reply::Array(vec![rank, Reply::Double(score)]) } else { rank })
}

/// Members and their scores, as a reply.
pub(super) fn listed<'a>(
    found: impl IntoIterator<Item = (&'a Bytes, f64)>,
    with_scores: bool,
) -> Reply {
    let found = found.into_iter();
    if with_scores {
        let pair =
            |(member, score): (&Bytes, f64)| (Reply::Bytes(member.clone()), Reply::Double(score));
        return Reply::Pairs(found.map(pair).collect());
    }
    Reply::Array(found.map(|(member, _)| Reply::Bytes(member.clone())).collect())
}

pub(super) fn popped(set: &mut SortedSet, highest: bool, many: usize) -> Vec<(Bytes, f64)> {
    let owned = |(member, score): (&Bytes, f64)| (member.clone(), score);
    let gone: Vec<(Bytes, f64)> = match highest {
        true => set.iter().rev().take(many).map(owned).collect(),
        false => set.iter().take(many).map(owned).collect(),
    };
    for (member, _) in &gone {
        set.remove(member);
    }
    gone
}

/// `ZPOPMIN` and `ZPOPMAX`.
pub(super) fn pop(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let asked = match &args[2..] {
        [] => None,
        [asked] => Some(count(asked)?),
        _ => return Err(syntax()),
    };
    let highest = word(&args[0]) == "ZPOPMAX";
    room.write(&args[1], |set: &mut SortedSet| {
        let gone = popped(set, highest, asked.unwrap_or(1));
        let changed = !gone.is_empty();
        let pairs =
            gone.into_iter().map(|(member, score)| (Reply::Bytes(member), Reply::Double(score)));
        let reply = match asked {
            // A single pair is flat in both versions of the protocol.
            None => Reply::Array(pairs.flat_map(|(member, score)| [member, score]).collect()),
            Some(_) => Reply::Pairs(pairs.collect()),
        };
        Ok((changed, reply))
    })
}

/// `ZRANDMEMBER`.
pub(super) fn random(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let asked = args.get(2).map(|count| number(count)).transpose()?;
    let with_scores = match &args[2..] {
        [] | [_] => false,
        [_, option] if word(option) == "WITHSCORES" => true,
        _ => return Err(syntax()),
    };
    let asked = asked.map(|_| super::sets::count_of_picked(&args[2], with_scores)).transpose()?;
    let all: Vec<(&Bytes, f64)> =
        room.read::<SortedSet>(&args[1])?.into_iter().flat_map(SortedSet::iter).collect();
    let places = super::sets::picked(all.len(), asked.unwrap_or(1))?;
    let mut found = places.into_iter().filter_map(|at| all.get(at).copied());
    Ok(match asked {
        None => found.next().map_or(Reply::Null, |(member, _)| Reply::Bytes(member.clone())),
        Some(_) => listed(found, with_scores),
    })
}

/// `ZSCAN`.
pub(super) fn scan(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    cursor(&args[2])?;
    let Some(set) = room.read::<SortedSet>(&args[1])? else { return Ok(nothing_scanned()) };
    let (_, pattern, ..) = scan_options(&args[2..], false)?;
    let found = set.iter().filter(|(member, _)| scanned(pattern.as_ref(), member));
    let pair = |(member, score): (&Bytes, f64)| {
        [Reply::Bytes(member.clone()), Reply::text(double_text(score))]
    };
    Ok(Reply::Array(vec![Reply::text("0"), Reply::Array(found.flat_map(pair).collect())]))
}
