//! Commands about keys of any type.

use bytes::Bytes;

use super::super::frame::Reply;
use super::super::glob;
use super::super::room::Room;
use super::{
    DATABASES, WORD_SHOWN_MAX, checked_pattern, flag, number, syntax, unknown_subcommand, word,
};

/// The longest time to live, about 146 million years: sums with later times would overflow.
pub(in crate::redis) const TTL_MS_MAX: i64 = 1 << 62;

/// How a time is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timed {
    Ex,
    Px,
    ExAt,
    PxAt,
}

impl Timed {
    pub(super) fn of(word: &str) -> Option<Self> {
        Some(match word {
            "EX" => Self::Ex,
            "PX" => Self::Px,
            "EXAT" => Self::ExAt,
            "PXAT" => Self::PxAt,
            _ => return None,
        })
    }

    fn is_absolute(self) -> bool {
        matches!(self, Self::ExAt | Self::PxAt)
    }

    fn scale(self) -> i64 {
        if matches!(self, Self::Ex | Self::ExAt) { 1000 } else { 1 }
    }
}

/// A time in milliseconds since 1970, by the `now` of the command; a time before 1970 becomes 0,
/// which is as long past as any.
fn time(count: i64, form: Timed, now: u64, command: &str) -> Result<u64, Reply> {
    let ms = count.checked_mul(form.scale());
    let base = if form.is_absolute() { 0 } else { i64::try_from(now).unwrap_or(i64::MAX) };
    let in_bounds = |ms: &i64| ms.unsigned_abs() <= TTL_MS_MAX.unsigned_abs();
    // Redis accepts every time in the past that it can represent.
    let ms = ms.filter(|ms| *ms < 0 || in_bounds(ms));
    let at = ms.and_then(|ms| ms.checked_add(base));
    match (at, count < 0 && form.scale() == 1) {
        (Some(at), _) => Ok(u64::try_from(at).unwrap_or_default()),
        (None, true) => Ok(0),
        (None, false) => Err(invalid_time(command)),
    }
}

fn invalid_time(command: &str) -> Reply {
    let name = command.to_ascii_lowercase();
    Reply::error("ERR", format!("invalid expire time in '{name}' command"))
}

/// As `time`, for a value that is set: a time of 0 or below is an error.
pub(super) fn timed(count: i64, form: Timed, now: u64, command: &str) -> Result<u64, Reply> {
    if count > 0 { time(count, form, now, command) } else { Err(invalid_time(command)) }
}

/// The conditions of `EXPIRE`: all that are set have to hold.
#[derive(Debug, Clone, Copy, Default)]
struct Only {
    endless: bool,
    ending: bool,
    later: bool,
    earlier: bool,
}

fn only(options: &[Bytes]) -> Result<Only, Reply> {
    let mut only = Only::default();
    for option in options {
        match word(option).as_str() {
            "NX" => only.endless = true,
            "XX" => only.ending = true,
            "GT" => only.later = true,
            "LT" => only.earlier = true,
            _ => {
                let named = String::from_utf8_lossy(option);
                let named: String = named.chars().take(WORD_SHOWN_MAX).collect();
                return Err(Reply::error("ERR", format!("Unsupported option {named}")));
            }
        }
    }
    if only.endless && (only.ending || only.later || only.earlier) {
        let detail = "NX and XX, GT or LT options at the same time are not compatible";
        return Err(Reply::error("ERR", detail));
    }
    if only.later && only.earlier {
        let detail = "GT and LT options at the same time are not compatible";
        return Err(Reply::error("ERR", detail));
    }
    Ok(only)
}

/// `EXPIRE` and its like.
pub(super) fn expire(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let name = word(&args[0]);
    let form = match name.as_str() {
        "EXPIRE" => Timed::Ex,
        "PEXPIRE" => Timed::Px,
        "EXPIREAT" => Timed::ExAt,
        _ => Timed::PxAt,
    };
    let only = only(&args[3..])?;
    let at = time(number(&args[2])?, form, room.now, &name)?;
    let Some(item) = room.item(&args[1]) else { return Ok(Reply::Number(0)) };
    let holds = (!only.endless || item.end.is_none())
        && (!only.ending || item.end.is_some())
        && (!only.later || item.end.is_some_and(|end| at > end))
        && (!only.earlier || item.end.is_none_or(|end| at < end));
    Ok(flag(holds && room.end(&args[1], Some(at))))
}

/// `PERSIST`.
pub(super) fn persist(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let ends = room.item(&args[1]).is_some_and(|item| item.end.is_some());
    Ok(flag(ends && room.end(&args[1], None)))
}

/// `TTL` and its like.
pub(super) fn ends(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let name = word(&args[0]);
    let Some(item) = room.item(&args[1]) else { return Ok(Reply::Number(-2)) };
    let Some(end) = item.end else { return Ok(Reply::Number(-1)) };
    let left = if name.ends_with("TIME") { end } else { end.saturating_sub(room.now) };
    let left = i64::try_from(left).unwrap_or(i64::MAX);
    Ok(Reply::Number(match name.as_str() {
        "PTTL" | "PEXPIRETIME" => left,
        // Rounded, as Redis does: a key just set to 10 s has 10 s left.
        _ => left.saturating_add(500) / 1000,
    }))
}

/// `TYPE`.
pub(super) fn kind(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    Ok(Reply::status(room.value(&args[1]).map_or("none", |value| value.kind())))
}

/// `EXISTS` and `TOUCH`.
pub(super) fn exists(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let there = args[1..].iter().filter(|key| room.value(key).is_some()).count();
    Ok(super::length(there))
}

/// `DEL` and `UNLINK`.
pub(super) fn del(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    Ok(super::length(args[1..].iter().filter_map(|key| room.remove(key)).count()))
}

/// `RENAME` and `RENAMENX`, of keys of one room.
pub(super) fn rename(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let only_if_free = word(&args[0]) == "RENAMENX";
    let Some(item) = room.item(&args[1]).cloned() else {
        return Err(Reply::error("ERR", "no such key"));
    };
    if only_if_free && room.value(&args[2]).is_some() {
        return Ok(Reply::Number(0));
    }
    if args[1] != args[2] {
        room.remove(&args[1]);
        room.put_item(&args[2], item);
    }
    Ok(if only_if_free { Reply::Number(1) } else { Reply::OK })
}

/// The options of `COPY`: whether it replaces what is there. `DB` is refused unless it names the database
/// in which the key is.
fn copy_options(room: &Room, options: &[Bytes]) -> Result<bool, Reply> {
    let mut replaces = false;
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        match word(option).as_str() {
            "REPLACE" => replaces = true,
            "DB" => {
                let asked = number(rest.next().ok_or_else(syntax)?)?;
                let asked = u8::try_from(asked).ok().filter(|index| *index < DATABASES);
                let out_of_range = || Reply::error("ERR", "DB index is out of range");
                if asked.ok_or_else(out_of_range)? != room.index() {
                    let detail = "COPY to another database is not offered here";
                    return Err(Reply::error("ERR", detail));
                }
            }
            _ => return Err(syntax()),
        }
    }
    Ok(replaces)
}

/// `COPY`, within one room.
pub(super) fn copy(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let replaces = copy_options(room, &args[3..])?;
    let (from, to) = (&args[1], &args[2]);
    if from == to {
        return Err(Reply::error("ERR", "source and destination objects are the same"));
    }
    let Some(item) = room.item(from).cloned() else { return Ok(Reply::Number(0)) };
    if !replaces && room.value(to).is_some() {
        return Ok(Reply::Number(0));
    }
    room.put_item(to, item);
    Ok(Reply::Number(1))
}

/// `OBJECT`.
pub(super) fn object(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let what = word(&args[1]);
    if what == "HELP" {
        let lines = ["OBJECT ENCODING|FREQ|IDLETIME|REFCOUNT <key>"];
        return Ok(Reply::Array(lines.map(Reply::status).into()));
    }
    let [_, _, key] = args else {
        return Err(Reply::error(
            "ERR",
            format!("wrong number of arguments for 'object|{}' command", what.to_ascii_lowercase()),
        ));
    };
    let held = room.value(key);
    match (what.as_str(), held) {
        ("ENCODING" | "REFCOUNT" | "IDLETIME" | "FREQ", None) => Ok(Reply::Null),
        ("ENCODING", Some(value)) => Ok(Reply::text(value.encoding())),
        ("REFCOUNT", Some(_)) => Ok(Reply::Number(1)),
        ("IDLETIME", Some(_)) => Ok(Reply::Number(0)),
        ("FREQ", _) => Err(Reply::error(
            "ERR",
            "An LFU maxmemory policy is not selected, access frequency not tracked. Please note \
             that when switching between policies at runtime LRU and LFU data will take some time \
             to adjust.",
        )),
        _ => Err(unknown_subcommand("OBJECT", &args[1])),
    }
}

/// The cursor of `SCAN` and its like. As Redis reads it, no text is 0, and a number below 0 counts from
/// the end of all.
pub(super) fn cursor(text: &[u8]) -> Result<u64, Reply> {
    let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<u64>().ok();
    let cursor = match text {
        [] => Some(0),
        [b'-', digits @ ..] if digits.first().is_some_and(u8::is_ascii_digit) => {
            number(digits).map(u64::wrapping_neg)
        }
        digits => number(digits),
    };
    cursor.ok_or_else(|| Reply::error("ERR", "invalid cursor"))
}

/// The options of `SCAN` and its like: a cursor, a pattern, a count, a type.
pub(in crate::redis) fn scan_options(
    args: &[Bytes],
    of_keys: bool,
) -> Result<(u64, Option<Bytes>, usize, Option<Bytes>), Reply> {
    let cursor = cursor(args.first().map_or(&[][..], |text| text))?;
    let (mut pattern, mut count, mut kind) = (None, 10, None);
    let mut rest = args[1..].iter();
    while let Some(option) = rest.next() {
        let value = rest.next().ok_or_else(syntax)?;
        match word(option).as_str() {
            "MATCH" => {
                checked_pattern(value)?;
                pattern = Some(value.clone());
            }
            "COUNT" => {
                let asked = usize::try_from(number(value)?).ok();
                count = asked.filter(|count| *count > 0).ok_or_else(syntax)?;
            }
            "TYPE" if of_keys => kind = Some(value.clone()),
            _ => return Err(syntax()),
        }
    }
    Ok((cursor, pattern, count, kind))
}

/// The answer to a scan of a key that has no element to list.
pub(super) fn nothing_scanned() -> Reply {
    Reply::Array(vec![Reply::text("0"), Reply::Array(Vec::new())])
}

/// Whether a scan for `pattern` lists `text`.
pub(super) fn scanned(pattern: Option<&Bytes>, text: &[u8]) -> bool {
    pattern.is_none_or(|pattern| glob::matches(pattern, text))
}
