//! Counters: `INCR` and its like.

use bytes::Bytes;

use super::super::frame::{Reply, integer};
use super::super::room::Room;
use super::super::value::Value;
use super::{number, numbers};

/// The sum of a held number and an addend; the error `no_number` if no number is held.
pub(super) fn add(text: Option<&[u8]>, by: i64, no_number: &str) -> Result<i64, Reply> {
    let number = match text {
        None => Some(0),
        Some(text) => integer(text),
    };
    let number = number.ok_or_else(|| Reply::error("ERR", no_number))?;
    number
        .checked_add(by)
        .ok_or_else(|| Reply::error("ERR", "increment or decrement would overflow"))
}

/// As [`add`], for numbers with a fraction.
pub(super) fn add_float(text: Option<&[u8]>, by: &[u8], what: &str) -> Result<String, Reply> {
    let no_float = |what: &str| {
        Reply::error(
            "ERR",
            format!("{what} is not a {}float", if what == "value" { "valid " } else { "" }),
        )
    };
    let added = numbers::float_from_zero(by)
        .ok_or_else(|| Reply::error("ERR", "value is not a valid float"))?;
    let held = text.unwrap_or(b"0");
    let before = numbers::float_from_zero(held).ok_or_else(|| no_float(what))?;
    if !(before + added).is_finite() {
        return Err(Reply::error("ERR", "increment would produce NaN or Infinity"));
    }
    numbers::sum(held, by).ok_or_else(|| no_float(what))
}

fn incr_key(room: &mut Room, key: &Bytes, by: i64) -> Result<Reply, Reply> {
    let no_number = "value is not an integer or out of range";
    let sum = add(room.string(key)?.map(|text| &text[..]), by, no_number)?;
    room.replace(key, Value::String(Bytes::from(sum.to_string())));
    Ok(Reply::Number(sum))
}

/// `INCR` and `DECR`.
pub(super) fn incr(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let is_decrement = args[0].eq_ignore_ascii_case(b"DECR");
    incr_key(room, &args[1], if is_decrement { -1 } else { 1 })
}

/// `INCRBY` and `DECRBY`.
pub(super) fn incr_by(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let by = number(&args[2])?;
    let is_decrement = args[0].eq_ignore_ascii_case(b"DECRBY");
    let overflow = || Reply::error("ERR", "decrement would overflow");
    let by = if is_decrement { by.checked_neg().ok_or_else(overflow)? } else { by };
    incr_key(room, &args[1], by)
}

/// `INCRBYFLOAT`.
pub(super) fn incr_by_float(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let held = room.string(&args[1])?;
    let sum = add_float(held.map(|text| &text[..]), &args[2], "value")?;
    let sum = Bytes::from(sum);
    room.replace(&args[1], Value::String(sum.clone()));
    Ok(Reply::Bytes(sum))
}
