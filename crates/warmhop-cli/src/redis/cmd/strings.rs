//! Strings of bytes.

use bytes::{Bytes, BytesMut};

use super::super::frame::{Reply, VALUE_BYTES_MAX};
use super::super::room::{Room, wrong_type};
use super::super::value::Value;
use super::keys::{Timed, timed};
use super::{flag, length, number, owned, syntax, word, wrong_count};

/// What the options of `SET` and `GETEX` say about the end. As in Redis, one may come again, also with
/// another time.
#[derive(Default)]
struct Timing<'a> {
    by: Option<(Timed, &'a Bytes)>,
    /// The option without a time came: `KEEPTTL` or `PERSIST`.
    stays: bool,
}

impl<'a> Timing<'a> {
    /// Takes an option, which is `stays` or names the form of a time.
    fn take(
        &mut self,
        option: &str,
        stays: &str,
        rest: &mut std::slice::Iter<'a, Bytes>,
    ) -> Result<(), Reply> {
        if option == stays && self.by.is_none() {
            self.stays = true;
            return Ok(());
        }
        let fits = |form: &Timed| !self.stays && self.by.is_none_or(|(held, _)| held == *form);
        let form = Timed::of(option).filter(fits).ok_or_else(syntax)?;
        self.by = Some((form, rest.next().ok_or_else(syntax)?));
        Ok(())
    }

    /// The end, if there is one, in milliseconds since 1970.
    fn end(&self, now: u64, command: &str) -> Result<Option<u64>, Reply> {
        self.by.map(|(form, count)| timed(number(count)?, form, now, command)).transpose()
    }
}

/// What a key has to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    None,
    Absent,
    Present,
    Equal(Bytes),
    Unequal(Bytes),
}

impl Condition {
    fn holds(&self, held: Option<&Bytes>, is_present: bool) -> bool {
        match self {
            Self::None => true,
            Self::Absent => !is_present,
            Self::Present => is_present,
            Self::Equal(wanted) => held == Some(wanted),
            Self::Unequal(other) => held != Some(other),
        }
    }
}

pub(super) fn get(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    Ok(Reply::optional(room.string(&args[1])?.cloned()))
}

struct SetOptions<'a> {
    timing: Timing<'a>,
    condition: Condition,
    get: bool,
}

fn set_options(args: &[Bytes]) -> Result<SetOptions<'_>, Reply> {
    let mut options =
        SetOptions { timing: Timing::default(), condition: Condition::None, get: false };
    let mut rest = args[3..].iter();
    while let Some(option) = rest.next() {
        let free = options.condition == Condition::None;
        match word(option).as_str() {
            "NX" if free || options.condition == Condition::Absent => {
                options.condition = Condition::Absent;
            }
            "XX" if free || options.condition == Condition::Present => {
                options.condition = Condition::Present;
            }
            "IFEQ" if free => {
                options.condition = Condition::Equal(rest.next().ok_or_else(syntax)?.clone());
            }
            "IFNE" if free => {
                options.condition = Condition::Unequal(rest.next().ok_or_else(syntax)?.clone());
            }
            "GET" => options.get = true,
            option => options.timing.take(option, "KEEPTTL", &mut rest)?,
        }
    }
    Ok(options)
}

/// `SET`.
pub(super) fn set(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let SetOptions { timing, condition, get } = set_options(args)?;
    let end = timing.end(room.now, "set")?;
    let (key, value) = (&args[1], &args[2]);
    let compares = matches!(condition, Condition::Equal(_) | Condition::Unequal(_));
    let held = match room.value(key) {
        Some(Value::String(held)) => Some(held.clone()),
        Some(_) if get || compares => return Err(wrong_type()),
        _ => None,
    };
    let holds = condition.holds(held.as_ref(), room.value(key).is_some());
    if holds {
        let value = Value::String(owned(value));
        if timing.stays {
            room.replace(key, value);
        } else {
            room.set(key, value, end);
        }
    }
    Ok(match (get, holds) {
        (true, _) => Reply::optional(held),
        (false, true) => Reply::OK,
        (false, false) => Reply::Null,
    })
}

/// `SETEX` and `PSETEX`.
pub(super) fn set_ex(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let name = word(&args[0]);
    let form = if name == "SETEX" { Timed::Ex } else { Timed::Px };
    let end = timed(number(&args[2])?, form, room.now, &name)?;
    room.set(&args[1], Value::String(owned(&args[3])), Some(end));
    Ok(Reply::OK)
}

/// `SETNX`.
pub(super) fn set_if_new(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let is_new = room.value(&args[1]).is_none();
    if is_new {
        room.set(&args[1], Value::String(owned(&args[2])), None);
    }
    Ok(flag(is_new))
}

/// `GETSET`.
pub(super) fn get_set(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let held = room.string(&args[1])?.cloned();
    room.set(&args[1], Value::String(owned(&args[2])), None);
    Ok(Reply::optional(held))
}

/// `GETDEL`.
pub(super) fn get_del(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let held = room.string(&args[1])?.cloned();
    room.remove(&args[1]);
    Ok(Reply::optional(held))
}

/// `GETEX`.
pub(super) fn get_ex(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let mut timing = Timing::default();
    let mut rest = args[2..].iter();
    while let Some(option) = rest.next() {
        timing.take(&word(option), "PERSIST", &mut rest)?;
    }
    // As Redis does: if there is no such key, the time is not checked.
    let Some(held) = room.string(&args[1])?.cloned() else { return Ok(Reply::Null) };
    let end = timing.end(room.now, "getex")?;
    let is_endless = room.item(&args[1]).is_some_and(|item| item.end.is_none());
    if end.is_some() || timing.stays && !is_endless {
        room.end(&args[1], end);
    }
    Ok(Reply::Bytes(held))
}

/// `DELEX`: deletes a key if its value meets a condition.
pub(super) fn del_ex(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let condition = match args[2..] {
        [] => Condition::Present,
        [ref how, ref value] => match word(how).as_str() {
            "IFEQ" => Condition::Equal(value.clone()),
            "IFNE" => Condition::Unequal(value.clone()),
            _ => return Err(syntax()),
        },
        _ => return Err(syntax()),
    };
    let held = match room.value(&args[1]) {
        None => return Ok(Reply::Number(0)),
        Some(Value::String(held)) => Some(held.clone()),
        Some(_) if condition == Condition::Present => None,
        Some(_) => return Err(wrong_type()),
    };
    let holds = condition.holds(held.as_ref(), true);
    if holds {
        room.remove(&args[1]);
    }
    Ok(flag(holds))
}

/// `MGET`.
pub(super) fn get_many(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    // As Redis does: a key of another type counts as absent.
    let one = |key: &Bytes| Reply::optional(room.string(key).ok().flatten().cloned());
    Ok(Reply::Array(args[1..].iter().map(one).collect()))
}

/// `MSET` and `MSETNX`.
pub(super) fn set_many(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let name = word(&args[0]);
    if args.len().is_multiple_of(2) {
        return Err(wrong_count(&name));
    }
    let pairs = || args[1..].chunks_exact(2);
    let only_new = name == "MSETNX";
    if only_new && pairs().any(|pair| room.value(&pair[0]).is_some()) {
        return Ok(Reply::Number(0));
    }
    for pair in pairs() {
        room.set(&pair[0], Value::String(owned(&pair[1])), None);
    }
    Ok(if only_new { Reply::Number(1) } else { Reply::OK })
}

fn too_long() -> Reply {
    Reply::error("ERR", format!("a value has at most {VALUE_BYTES_MAX} bytes"))
}

/// `APPEND`.
pub(super) fn append(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let held = room.string(&args[1])?.map_or(&[][..], |held| held);
    let mut whole = BytesMut::with_capacity(held.len() + args[2].len());
    whole.extend_from_slice(held);
    whole.extend_from_slice(&args[2]);
    let reply = length(whole.len());
    room.replace(&args[1], Value::String(whole.freeze()));
    Ok(reply)
}

pub(super) fn str_len(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    Ok(length(room.string(&args[1])?.map_or(0, Bytes::len)))
}

/// `GETRANGE` and `SUBSTR`.
pub(super) fn get_range(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let (start, stop) = (number(&args[2])?, number(&args[3])?);
    let held = room.string(&args[1])?.cloned().unwrap_or_default();
    if start < 0 && stop < 0 && start > stop {
        return Ok(Reply::Bytes(Bytes::new()));
    }
    // A place before the first byte counts as the first, at both ends.
    let len = i64::try_from(held.len()).unwrap_or(i64::MAX);
    let stop = if stop < 0 { stop.saturating_add(len).max(0) } else { stop };
    Ok(Reply::Bytes(held.slice(super::span(start, stop, held.len()))))
}

/// A key's string, extended to at least this length.
fn stretched(room: &Room, key: &Bytes, len: usize) -> Result<BytesMut, Reply> {
    if len > VALUE_BYTES_MAX {
        return Err(too_long());
    }
    let mut whole = BytesMut::from(room.string(key)?.map_or(&[][..], |held| held));
    if whole.len() < len {
        whole.resize(len, 0);
    }
    Ok(whole)
}

/// `SETRANGE`.
pub(super) fn set_range(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let offset = number(&args[2])?;
    let offset =
        usize::try_from(offset).map_err(|_| Reply::error("ERR", "offset is out of range"))?;
    let part = &args[3];
    if part.is_empty() {
        return str_len(room, args);
    }
    let end = offset.checked_add(part.len()).ok_or_else(too_long)?;
    let mut whole = stretched(room, &args[1], end)?;
    whole[offset..end].copy_from_slice(part);
    let reply = length(whole.len());
    room.replace(&args[1], Value::String(whole.freeze()));
    Ok(reply)
}

fn bit_at(text: &[u8]) -> Result<(usize, u8), Reply> {
    let invalid = || Reply::error("ERR", "bit offset is not an integer or out of range");
    let offset = super::integer(text).and_then(|offset| usize::try_from(offset).ok());
    let offset = offset.filter(|offset| *offset >> 32 == 0).ok_or_else(invalid)?;
    Ok((offset / 8, 7 - u8::try_from(offset % 8).unwrap_or_default()))
}

/// `GETBIT`.
pub(super) fn get_bit(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let (byte, bit) = bit_at(&args[2])?;
    let held = room.string(&args[1])?.and_then(|held| held.get(byte)).copied().unwrap_or(0);
    Ok(Reply::Number(i64::from(held >> bit & 1)))
}

/// `SETBIT`.
pub(super) fn set_bit(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let (byte, bit) = bit_at(&args[2])?;
    let on = match &args[3][..] {
        b"0" => 0,
        b"1" => 1,
        _ => return Err(Reply::error("ERR", "bit is not an integer or out of range")),
    };
    let len = room.string(&args[1])?.map_or(0, Bytes::len);
    let mut whole = stretched(room, &args[1], byte + 1)?;
    let before = whole[byte] >> bit & 1;
    if before != on || whole.len() > len {
        whole[byte] = whole[byte] & !(1 << bit) | on << bit;
        room.replace(&args[1], Value::String(whole.freeze()));
    }
    Ok(Reply::Number(i64::from(before)))
}

/// `BITPOS`: the place of the first bit of a kind, by bytes or by bits.
pub(super) fn bit_position(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let wanted = match number(&args[2])? {
        0 => 0,
        1 => 1,
        _ => return Err(Reply::error("ERR", "The bit argument must be 1 or 0.")),
    };
    // If there is no such key, the other arguments are not checked, as in Redis.
    let Some(held) = room.string(&args[1])?.cloned() else {
        return Ok(Reply::Number(if wanted == 1 { -1 } else { 0 }));
    };
    if args.len() > 6 {
        return Err(syntax());
    }
    // The unit is checked between the two ends.
    let start = args.get(3).map_or(Ok(0), |start| number(start))?;
    let by_bits = match args.get(5).map(|unit| word(unit)).as_deref() {
        None | Some("BYTE") => false,
        Some("BIT") => true,
        Some(_) => return Err(syntax()),
    };
    let stop = args.get(4).map(|stop| number(stop)).transpose()?;
    let len = if by_bits { held.len() * 8 } else { held.len() };
    let first = i64::try_from(len).map_or(i64::MIN, |len| -len);
    let mut places = super::span(start, stop.unwrap_or(-1).max(first), len);
    if !by_bits {
        places = places.start * 8..places.end * 8;
    }
    let end = places.end;
    let is_it = |at: &usize| held[at / 8] >> (7 - at % 8) & 1 == wanted;
    Ok(match places.clone().find(is_it) {
        Some(at) => length(at),
        // Behind the end every bit is 0, unless the command gave an end.
        None if wanted == 0 && stop.is_none() && !places.is_empty() => length(end),
        None => Reply::Number(-1),
    })
}

/// `BITCOUNT`, by bytes or by bits.
pub(super) fn bit_count(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let Some(held) = room.string(&args[1])?.cloned() else { return Ok(Reply::Number(0)) };
    let bounds = match &args[2..] {
        [] => None,
        [start, stop] | [start, stop, _] => Some((number(start)?, number(stop)?)),
        _ => return Err(syntax()),
    };
    // Checked before the unit, as in Redis.
    if bounds.is_some_and(|(start, stop)| stop < start && start < 0) {
        return Ok(Reply::Number(0));
    }
    let by_bits = match args.get(4).map(|unit| word(unit)) {
        None => false,
        Some(unit) if unit == "BYTE" => false,
        Some(unit) if unit == "BIT" => true,
        Some(_) => return Err(syntax()),
    };
    let len = if by_bits { held.len() * 8 } else { held.len() };
    // A range that ends before the first byte contains the first, as in Redis.
    let first = i64::try_from(len).map_or(i64::MIN, |len| -len);
    let places = bounds.map_or(0..len, |(start, stop)| super::span(start, stop.max(first), len));
    let ones = match by_bits {
        true => places.filter(|at| held[at / 8] & (0x80 >> (at % 8)) != 0).count(),
        false => held[places].iter().map(|byte| byte.count_ones() as usize).sum(),
    };
    Ok(length(ones))
}
