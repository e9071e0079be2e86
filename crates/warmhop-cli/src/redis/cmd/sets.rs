//! Sets of members.

use std::collections::HashSet;

use bytes::Bytes;

use super::super::frame::Reply;
use super::super::room::Room;
use super::super::value::{Kind, Set};
use super::keys::{cursor, nothing_scanned, scan_options, scanned};
use super::{count, flag, length, not_negative, number, owned, syntax, word};

/// How many members one command picks at random, where it may pick one more than once.
const PICKED_MAX: u64 = 1_000_000;

pub(super) fn add(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    room.write(&args[1], |set: &mut Set| {
        let added = args[2..].iter().filter(|member| set.insert(owned(member))).count();
        Ok((added > 0, length(added)))
    })
}

pub(super) fn remove(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    room.write(&args[1], |set: &mut Set| {
        let before = set.len();
        if args.len() == 3 {
            set.shift_remove(&args[2]);
        } else {
            let gone: HashSet<&Bytes> = args[2..].iter().collect();
            set.retain(|member| !gone.contains(member));
        }
        let gone = before - set.len();
        Ok((gone > 0, length(gone)))
    })
}

fn all_of<'a>(members: impl IntoIterator<Item = &'a Bytes>) -> Reply {
    Reply::Set(members.into_iter().cloned().map(Reply::Bytes).collect())
}

pub(super) fn members(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    Ok(all_of(room.read::<Set>(&args[1])?.into_iter().flatten()))
}

pub(super) fn len(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    Ok(length(room.read::<Set>(&args[1])?.map_or(0, Set::len)))
}

pub(super) fn has(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let set = room.read::<Set>(&args[1])?;
    Ok(flag(set.is_some_and(|set| set.contains(&args[2]))))
}

pub(super) fn has_many(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let set = room.read::<Set>(&args[1])?;
    let one = |member| flag(set.is_some_and(|set| set.contains(member)));
    Ok(Reply::Array(args[2..].iter().map(one).collect()))
}

/// How many elements a client asks for, if they come in `pairs` with something.
pub(super) fn count_of_picked(text: &[u8], pairs: bool) -> Result<i64, Reply> {
    let asked = number(text)?;
    if asked == i64::MIN {
        let detail = "value is out of range, value must between -9223372036854775807 and \
                      9223372036854775807";
        return Err(Reply::error("ERR", detail));
    }
    if pairs && asked.unsigned_abs() > i64::MAX.unsigned_abs() / 2 {
        return Err(Reply::error("ERR", "value is out of range"));
    }
    Ok(asked)
}

/// The places of picked elements: `asked` different ones, or if negative, any, with repetition.
pub(super) fn picked(len: usize, asked: i64) -> Result<Vec<usize>, Reply> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let any = || rand::random_range(0..len);
    if asked < 0 {
        let many = asked.unsigned_abs();
        if many > PICKED_MAX {
            return Err(Reply::error("ERR", "value is out of range"));
        }
        return Ok((0..many).map(|_| any()).collect());
    }
    let asked = usize::try_from(asked).unwrap_or(usize::MAX).min(len);
    let mut places: Vec<usize> = (0..len).collect();
    for at in 0..asked {
        places.swap(at, rand::random_range(at..len));
    }
    places.truncate(asked);
    Ok(places)
}

/// `SRANDMEMBER`.
pub(super) fn random(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let asked = match &args[2..] {
        [] => None,
        [asked] => Some(count_of_picked(asked, false)?),
        _ => return Err(syntax()),
    };
    let set = room.read::<Set>(&args[1])?;
    let places = picked(set.map_or(0, Set::len), asked.unwrap_or(1))?;
    let members = places.into_iter().filter_map(|at| set.and_then(|set| set.get_index(at)));
    let mut members = members.cloned().map(Reply::Bytes);
    Ok(match asked {
        None => members.next().unwrap_or(Reply::Null),
        Some(_) => Reply::Array(members.collect()),
    })
}

/// `SPOP`.
pub(super) fn pop(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let asked = match &args[2..] {
        [] => None,
        [asked] => Some(count(asked)?),
        _ => return Err(syntax()),
    };
    let wanted = i64::try_from(asked.unwrap_or(1)).unwrap_or(i64::MAX);
    room.write(&args[1], |set: &mut Set| {
        let places: HashSet<usize> = picked(set.len(), wanted)?.into_iter().collect();
        let mut gone = Vec::new();
        let mut at = 0;
        set.retain(|member| {
            let goes = places.contains(&at);
            at += 1;
            if goes {
                gone.push(Reply::Bytes(member.clone()));
            }
            !goes
        });
        let changed = !gone.is_empty();
        Ok((
            changed,
            match asked {
                None => gone.pop().unwrap_or(Reply::Null),
                Some(_) => Reply::Set(gone),
            },
        ))
    })
}

/// `SMOVE`.
pub(super) fn move_one(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let (from, to, member) = (&args[1], &args[2], &args[3]);
    let Some(set) = room.read::<Set>(from)? else { return Ok(Reply::Number(0)) };
    let is_there = set.contains(member);
    room.read::<Set>(to)?;
    if !is_there || from == to {
        return Ok(flag(is_there));
    }
    room.write(from, |set: &mut Set| Ok((set.shift_remove(member), ())))?;
    room.write(to, |set: &mut Set| Ok((set.insert(owned(member)), ())))?;
    Ok(Reply::Number(1))
}

fn combined(room: &Room, how: &str, keys: &[Bytes]) -> Result<Set, Reply> {
    let mut sets = Vec::new();
    for key in keys {
        sets.push(room.read::<Set>(key)?.cloned().unwrap_or_default());
    }
    let mut sets = sets.into_iter();
    let first = sets.next().unwrap_or_default();
    Ok(sets.fold(first, |mut whole, set| {
        match how {
            "SUNION" => whole.extend(set),
            "SINTER" => whole.retain(|member| set.contains(member)),
            _ => whole.retain(|member| !set.contains(member)),
        }
        whole
    }))
}

/// `SUNION`, `SINTER` and `SDIFF`.
pub(super) fn combine(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    Ok(all_of(&combined(room, &word(&args[0]), &args[1..])?))
}

/// `SUNIONSTORE`, `SINTERSTORE` and `SDIFFSTORE`.
pub(super) fn combine_and_store(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let name = word(&args[0]);
    let set = combined(room, name.trim_end_matches("STORE"), &args[2..])?;
    let reply = length(set.len());
    if set.is_empty() {
        room.remove(&args[1]);
    } else {
        room.set(&args[1], set.whole(), None);
    }
    Ok(reply)
}

/// `SINTERCARD`.
pub(super) fn intersection_len(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let no_count = || Reply::error("ERR", "numkeys should be greater than 0");
    let keys = number(&args[1]).ok().and_then(|keys| usize::try_from(keys).ok());
    let keys = keys.filter(|keys| *keys > 0).ok_or_else(no_count)?;
    let Some(rest) = args.get(2 + keys..) else {
        let detail = "Number of keys can't be greater than number of args";
        return Err(Reply::error("ERR", detail));
    };
    let limit = match rest {
        [] => 0,
        [option, limit] if word(option) == "LIMIT" => not_negative(limit, "LIMIT")?,
        _ => return Err(syntax()),
    };
    let len = combined(room, "SINTER", &args[2..2 + keys])?.len();
    Ok(length(if limit == 0 { len } else { len.min(limit) }))
}

/// `SSCAN`.
pub(super) fn scan(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    cursor(&args[2])?;
    let Some(set) = room.read::<Set>(&args[1])? else { return Ok(nothing_scanned()) };
    let (_, pattern, ..) = scan_options(&args[2..], false)?;
    let found = set.iter().filter(|member| scanned(pattern.as_ref(), member));
    let found = found.cloned().map(Reply::Bytes).collect();
    Ok(Reply::Array(vec![Reply::text("0"), Reply::Array(found)]))
}
