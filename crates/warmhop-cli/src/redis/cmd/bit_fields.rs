//! `BITFIELD`: numbers of any width in a string, as counters that are packed densely.

use bytes::{Bytes, BytesMut};

use super::super::events::Deed;
use super::super::frame::{Reply, VALUE_BYTES_MAX};
use super::super::room::Room;
use super::super::value::Value;
use super::{integer, number, syntax, word};

/// What happens to a sum that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overflow {
    Wrap,
    Saturate,
    Fail,
}

/// A number's place and width in a string, in bits.
#[derive(Debug, Clone, Copy)]
struct Field {
    signed: bool,
    bits: u32,
    at: usize,
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    Get(Field),
    Set(Field, i64, Overflow),
    Add(Field, i64, Overflow),
}

impl Field {
    fn of(kind: &[u8], at: &[u8]) -> Result<Self, Reply> {
        let wrong_kind = || {
            let detail = "Invalid bitfield type. Use something like i16 u8. Note that u64 is not \
                          supported but i64 is.";
            Reply::error("ERR", detail)
        };
        let (signed, width) = match kind.split_first() {
            Some((b'i', width)) => (true, width),
            Some((b'u', width)) => (false, width),
            _ => return Err(wrong_kind()),
        };
        let most = if signed { 64 } else { 63 };
        let bits = integer(width).and_then(|bits| u32::try_from(bits).ok());
        let bits = bits.filter(|bits| (1..=most).contains(bits)).ok_or_else(wrong_kind)?;
        let wrong_place = || Reply::error("ERR", "bit offset is not an integer or out of range");
        let (text, by_fields) = match at.strip_prefix(b"#") {
            Some(text) => (text, true),
            None => (at, false),
        };
        let at = integer(text).and_then(|at| usize::try_from(at).ok());
        let at = at.and_then(|at| at.checked_mul(if by_fields { bits as usize } else { 1 }));
        let in_bounds = |at: &usize| *at >> 32 == 0;
        Ok(Self { signed, bits, at: at.filter(in_bounds).ok_or_else(wrong_place)? })
    }

    /// Where it ends, in bytes.
    fn end(self) -> usize {
        (self.at + self.bits as usize).div_ceil(8)
    }

    fn get(self, text: &[u8]) -> i64 {
        let bit =
            |at: usize| text.get(at / 8).map_or(0, |byte| u64::from(byte >> (7 - at % 8) & 1));
        let places = self.at..self.at + self.bits as usize;
        let whole = places.fold(0, |whole, at| whole << 1 | bit(at));
        self.value_of(whole)
    }

    /// The number that its bits represent.
    fn value_of(self, bits: u64) -> i64 {
        let unused = 64 - self.bits;
        match self.signed {
            true => (bits << unused).cast_signed() >> unused,
            false => (bits << unused >> unused).cast_signed(),
        }
    }

    fn put(self, text: &mut [u8], number: i64) {
        for place in 0..self.bits as usize {
            let (at, shift) = (self.at + place, self.bits as usize - 1 - place);
            let mask = 1 << (7 - at % 8);
            let on = number.cast_unsigned() >> shift & 1 == 1;
            if let Some(byte) = text.get_mut(at / 8) {
                *byte = if on { *byte | mask } else { *byte & !mask };
            }
        }
    }

    /// A number made to fit; `None` if it does not fit and that is to fail.
    fn fit(self, number: i128, overflow: Overflow) -> Option<i64> {
        let (least, most) = match self.signed {
            true => (-(1i128 << (self.bits - 1)), (1i128 << (self.bits - 1)) - 1),
            false => (0, (1i128 << self.bits) - 1),
        };
        #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are what is kept")]
        let lowest = number as i64;
        match overflow {
            _ if (least..=most).contains(&number) => Some(lowest),
            Overflow::Wrap => Some(self.value_of(lowest.cast_unsigned())),
            Overflow::Saturate => i64::try_from(number.clamp(least, most)).ok(),
            Overflow::Fail => None,
        }
    }
}

fn operations(mut rest: &[Bytes]) -> Result<Vec<Operation>, Reply> {
    let (mut all, mut overflow) = (Vec::new(), Overflow::Wrap);
    while let [name, more @ ..] = rest {
        rest = match (word(name).as_str(), more) {
            ("GET", [kind, at, more @ ..]) => {
                all.push(Operation::Get(Field::of(kind, at)?));
                more
            }
            ("SET", [kind, at, value, more @ ..]) => {
                let field = Field::of(kind, at)?;
                all.push(Operation::Set(field, number(value)?, overflow));
                more
            }
            ("INCRBY", [kind, at, by, more @ ..]) => {
                let field = Field::of(kind, at)?;
                all.push(Operation::Add(field, number(by)?, overflow));
                more
            }
            ("OVERFLOW", [how, more @ ..]) => {
                overflow = match word(how).as_str() {
                    "WRAP" => Overflow::Wrap,
                    "SAT" => Overflow::Saturate,
                    "FAIL" => Overflow::Fail,
                    _ => return Err(Reply::error("ERR", "Invalid OVERFLOW type specified")),
                };
                more
            }
            _ => return Err(syntax()),
        };
    }
    Ok(all)
}

/// `BITFIELD` and `BITFIELD_RO`.
pub(super) fn run(room: &mut Room, args: &[Bytes]) -> Result<Reply, Reply> {
    let operations = operations(&args[2..])?;
    let written = operations.iter().filter_map(|operation| match operation {
        Operation::Get(_) => None,
        Operation::Set(field, ..) | Operation::Add(field, ..) => Some(field.end()),
    });
    let written = written.max();
    if written.is_some() && word(&args[0]) == "BITFIELD_RO" {
        return Err(Reply::error("ERR", "BITFIELD_RO only supports the GET subcommand"));
    }
    let held = room.string(&args[1])?.cloned();
    let mut text = BytesMut::from(held.as_deref().unwrap_or_default());
    if let Some(end) = written {
        if end > VALUE_BYTES_MAX {
            let detail = format!("a value has at most {VALUE_BYTES_MAX} bytes");
            return Err(Reply::error("ERR", detail));
        }
        text.resize(text.len().max(end), 0);
    }
    let grew = held.as_ref().is_none_or(|held| held.len() < text.len());
    // As Redis does: a write that is refused publishes no event, though the value has grown for it.
    let mut is_published = false;
    let one = |operation: Operation| match operation {
        Operation::Get(field) => Reply::Number(field.get(&text)),
        Operation::Set(field, value, overflow) => {
            let before = field.get(&text);
            // A negative value for an unsigned field counts as the number that its bits represent.
            let value = match field.signed {
                true => i128::from(value),
                false => i128::from(value.cast_unsigned()),
            };
            let Some(value) = field.fit(value, overflow) else { return Reply::Null };
            field.put(&mut text, value);
            is_published |= grew || value != before;
            Reply::Number(before)
        }
        Operation::Add(field, by, overflow) => {
            let before = field.get(&text);
            let sum = i128::from(before) + i128::from(by);
            let Some(sum) = field.fit(sum, overflow) else { return Reply::Null };
            field.put(&mut text, sum);
            is_published |= grew || sum != before;
            Reply::Number(sum)
        }
    };
    let replies = operations.into_iter().map(one).collect();
    if written.is_some() && held.is_none_or(|held| held[..] != text[..]) {
        room.replace_silently(&args[1], Value::String(text.freeze()));
    }
    if is_published {
        room.note(&args[1], Deed::Wrote);
    }
    Ok(Reply::Array(replies))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_is_wrapped_saturated_or_refused() {
        let byte = Field { signed: true, bits: 8, at: 3 };
        let two = Field { signed: false, bits: 2, at: 0 };
        for (field, number, overflow, expected) in [
            (byte, 130, Overflow::Wrap, Some(-126)),
            (byte, 130, Overflow::Saturate, Some(127)),
            (byte, -130, Overflow::Saturate, Some(-128)),
            (byte, 130, Overflow::Fail, None),
            (two, 5, Overflow::Wrap, Some(1)),
            (two, -1, Overflow::Saturate, Some(0)),
            (two, 3, Overflow::Fail, Some(3)),
        ] {
            assert_eq!(field.fit(number, overflow), expected, "{field:?} {number} {overflow:?}");
        }
        let mut text = [0xff; 3];
        byte.put(&mut text, -126);
        assert_eq!((byte.get(&text), text), (-126, [0b1111_0000, 0b0101_1111, 0xff]));
    }
}
