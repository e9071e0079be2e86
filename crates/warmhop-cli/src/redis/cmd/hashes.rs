//! Hashes of fields to values.

use bytes::Bytes;

use super::super::frame::Reply;
use super::super::room::Room;
use super::super::value::Hash;
use super::counters::{add, add_float};
use super::keys::{cursor, nothing_scanned, scan_options, scanned};
use super::{flag, length, number, owned, syntax, word, wrong_count};

/// `HSET` and `HMSET`.
pub(super) fn set(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let name = word(&args[0]);
    if !args.len().is_multiple_of(2) {
        return Err(wrong_count(&name));
    }
    let added = room.write(&args[1], |hash: &mut Hash| {
        let mut added = 0;
        for pair in args[2..].chunks_exact(2) {
            added += usize::from(hash.insert(owned(&pair[0]), owned(&pair[1])).is_none());
        }
        Ok((true, added))
    })?;
    Ok(if name == "HMSET" { Reply::OK } else { length(added) })
}

/// `HSETNX`.
pub(super) fn set_if_new(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    room.write(&args[1], |hash: &mut Hash| {
        let is_new = !hash.contains_key(&args[2]);
        if is_new {
            hash.insert(owned(&args[2]), owned(&args[3]));
        }
        Ok((is_new, flag(is_new)))
    })
}

pub(super) fn get(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let hash: Option<&Hash> = room.read(&args[1])?;
    Ok(Reply::optional(hash.and_then(|hash| hash.get(&args[2])).cloned()))
}

pub(super) fn get_many(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let hash: Option<&Hash> = room.read(&args[1])?;
    let one = |field| Reply::optional(hash.and_then(|hash| hash.get(field)).cloned());
    let (mut values, mut size) = (Vec::with_capacity(args.len()), 0);
    for value in args[2..].iter().map(one) {
        size += value.size();
        super::super::arguments::bounded(size, "fields")?;
        values.push(value);
    }
    Ok(Reply::Array(values))
}

pub(super) fn get_all(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let hash = room.read::<Hash>(&args[1])?.into_iter().flatten();
    let pair = |(field, value): (&Bytes, &Bytes)| {
        (Reply::Bytes(field.clone()), Reply::Bytes(value.clone()))
    };
    Ok(Reply::Map(hash.map(pair).collect()))
}

pub(super) fn keys(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let hash = room.read::<Hash>(&args[1])?.into_iter().flatten();
    Ok(Reply::Array(hash.map(|(field, _)| Reply::Bytes(field.clone())).collect()))
}

pub(super) fn values(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let hash = room.read::<Hash>(&args[1])?.into_iter().flatten();
    Ok(Reply::Array(hash.map(|(_, value)| Reply::Bytes(value.clone())).collect()))
}

pub(super) fn len(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    Ok(length(room.read::<Hash>(&args[1])?.map_or(0, Hash::len)))
}

pub(super) fn exists(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let hash: Option<&Hash> = room.read(&args[1])?;
    Ok(flag(hash.is_some_and(|hash| hash.contains_key(&args[2]))))
}

pub(super) fn str_len(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let hash: Option<&Hash> = room.read(&args[1])?;
    Ok(length(hash.and_then(|hash| hash.get(&args[2])).map_or(0, Bytes::len)))
}

pub(super) fn del(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    room.write(&args[1], |hash: &mut Hash| {
        let before = hash.len();
        if args.len() == 3 {
            hash.shift_remove(&args[2]);
        } else {
            let gone: std::collections::HashSet<&Bytes> = args[2..].iter().collect();
            hash.retain(|field, _| !gone.contains(field));
        }
        let gone = before - hash.len();
        Ok((gone > 0, length(gone)))
    })
}

pub(super) fn incr_by(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let by = number(&args[3])?;
    room.write(&args[1], |hash: &mut Hash| {
        let held = hash.get(&args[2]).map(|value| &value[..]);
        let sum = add(held, by, "hash value is not an integer")?;
        hash.insert(owned(&args[2]), Bytes::from(sum.to_string()));
        Ok((true, Reply::Number(sum)))
    })
}

pub(super) fn incr_by_float(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let no_float = || Reply::error("ERR", "value is not a valid float");
    if !super::numbers::float_from_zero(&args[3]).ok_or_else(no_float)?.is_finite() {
        return Err(Reply::error("ERR", "value is NaN or Infinity"));
    }
    room.write(&args[1], |hash: &mut Hash| {
        let held = hash.get(&args[2]).map(|value| &value[..]);
        let sum = Bytes::from(add_float(held, &args[3], "hash value")?);
        hash.insert(owned(&args[2]), sum.clone());
        Ok((true, Reply::Bytes(sum)))
    })
}

/// `HRANDFIELD`.
pub(super) fn random(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let asked = args.get(2).map(|count| number(count)).transpose()?;
    let with_values = match &args[2..] {
        [] | [_] => false,
        [_, option] if word(option) == "WITHVALUES" => true,
        _ => return Err(syntax()),
    };
    let asked = asked.map(|_| super::sets::count_of_picked(&args[2], with_values)).transpose()?;
    let hash = room.read::<Hash>(&args[1])?;
    let at = |place: usize| hash.and_then(|hash| hash.get_index(place));
    let picked = super::sets::picked(hash.map_or(0, Hash::len), asked.unwrap_or(1))?;
    let field = |(field, _): (&Bytes, &Bytes)| Reply::Bytes(field.clone());
    if asked.is_none() {
        return Ok(picked.first().and_then(|place| at(*place)).map_or(Reply::Null, field));
    }
    let found = picked.into_iter().filter_map(at);
    Ok(if with_values {
        Reply::Pairs(found.map(|it| (field(it), Reply::Bytes(it.1.clone()))).collect())
    } else {
        Reply::Array(found.map(field).collect())
    })
}

/// `HSCAN`.
pub(super) fn scan(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    cursor(&args[2])?;
    let Some(hash) = room.read::<Hash>(&args[1])? else { return Ok(nothing_scanned()) };
    let mut options = args[2..].to_vec();
    let no_values = options.last().is_some_and(|last| word(last) == "NOVALUES");
    if no_values {
        options.pop();
    }
    let (_, pattern, ..) = scan_options(&options, false)?;
    let mut found = Vec::new();
    for (field, value) in hash {
        if scanned(pattern.as_ref(), field) {
            found.push(Reply::Bytes(field.clone()));
            if !no_values {
                found.push(Reply::Bytes(value.clone()));
            }
        }
    }
    Ok(Reply::Array(vec![Reply::text("0"), Reply::Array(found)]))
}
