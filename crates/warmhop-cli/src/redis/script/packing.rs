//! `struct`: numbers and strings of a script as the bytes of a C structure and back.

use std::rc::Rc;

use super::state::{Pace, Shared};
use super::values::{TOO_LARGE, badly, bytes_of, number_of, well};
use bytes::Bytes;
use mlua::{Lua, MultiValue, Table, Value as LuaValue};

/// How many values are read from one text.
const VALUES_MAX: usize = 4000;
/// How many bytes an integer has at most.
const INTEGER_BYTES_MAX: usize = 32;
/// The alignment after a `!` without a number.
const ALIGNED_TO: usize = 8;

/// The order of a number's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

const NATIVE: Order = if cfg!(target_endian = "big") { Order::Big } else { Order::Little };

/// An item of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Signed,
    Unsigned,
    Float,
    Double,
    /// Text of a fixed length; 0 if another value states the length.
    Text,
    /// Text that ends with a zero.
    Terminated,
    Padding,
}

/// The rest of a format, with the layout of what follows.
struct Format<'a> {
    text: &'a [u8],
    order: Order,
    aligned_to: usize,
}

type Read<T> = Result<T, String>;

impl<'a> Format<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, order: NATIVE, aligned_to: 1 }
    }

    fn number(&mut self, otherwise: usize) -> usize {
        let digits = self.text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, rest) = self.text.split_at(digits);
        self.text = rest;
        if number.is_empty() {
            return otherwise;
        }
        let number = std::str::from_utf8(number).ok().and_then(|it| it.parse().ok());
        number.unwrap_or(usize::MAX)
    }

    /// The next item and its size.
    fn next(&mut self) -> Read<Option<(Item, usize)>> {
        while let Some((option, rest)) = self.text.split_first() {
            self.text = rest;
            return Ok(Some(match option {
                b'b' => (Item::Signed, 1),
                b'B' => (Item::Unsigned, 1),
                b'h' => (Item::Signed, 2),
                b'H' => (Item::Unsigned, 2),
                b'l' => (Item::Signed, 8),
                b'L' | b'T' => (Item::Unsigned, 8),
                b'i' => (Item::Signed, self.integer_size()?),
                b'I' => (Item::Unsigned, self.integer_size()?),
                b'f' => (Item::Float, 4),
                b'd' => (Item::Double, 8),
                b'x' => (Item::Padding, 1),
                b'c' => (Item::Text, self.number(1)),
                b's' => (Item::Terminated, 0),
                _ => {
                    self.lay_out(*option)?;
                    continue;
                }
            }));
        }
        Ok(None)
    }

    fn integer_size(&mut self) -> Read<usize> {
        let size = self.number(4);
        if size > INTEGER_BYTES_MAX {
            return Err(format!(
                "integral size {size} is larger than limit of {INTEGER_BYTES_MAX}"
            ));
        }
        Ok(size)
    }

    fn lay_out(&mut self, option: u8) -> Read<()> {
        match option {
            b' ' => {}
            b'>' => self.order = Order::Big,
            b'<' => self.order = Order::Little,
            b'!' => {
                let to = self.number(ALIGNED_TO);
                if !to.is_power_of_two() {
                    return Err(format!("alignment {to} is not a power of 2"));
                }
                self.aligned_to = to;
            }
            other => {
                let option = char::from(other);
                return Err(format!("bad argument #1 (invalid format option '{option}')"));
            }
        }
        Ok(())
    }

    /// How many bytes of padding come before an item at this place.
    fn gap(&self, at: usize, item: Item, size: usize) -> usize {
        if size == 0 || matches!(item, Item::Text | Item::Terminated) {
            return 0;
        }
        let size = size.min(self.aligned_to);
        size.wrapping_sub(at & size.wrapping_sub(1)) & size.wrapping_sub(1)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers are cut as C does"
)]
fn put_integer(whole: &mut Vec<u8>, number: f64, size: usize, order: Order) {
    let bits = if number < 0.0 { (number as i64).cast_unsigned() } else { number as u64 };
    let byte = |at: usize| bits.checked_shr(8 * at as u32).unwrap_or_default() as u8;
    match order {
        Order::Big => whole.extend((0..size).rev().map(byte)),
        Order::Little => whole.extend((0..size).map(byte)),
    }
}

fn unsigned(bytes: &[u8], order: Order) -> u64 {
    let join = |bits: u64, byte: &u8| bits << 8 | u64::from(*byte);
    match order {
        Order::Big => bytes.iter().fold(0, join),
        Order::Little => bytes.iter().rev().fold(0, join),
    }
}

fn signed(bytes: &[u8], order: Order) -> i64 {
    let unused = 64 - 8 * bytes.len().clamp(1, 8);
    (unsigned(bytes, order) << unused).cast_signed() >> unused
}

fn pack(format: &[u8], args: &MultiValue, longest: usize) -> Read<Vec<u8>> {
    let (mut format, mut whole, mut next) = (Format::new(format), Vec::new(), 1);
    while let Some((item, size)) = format.next()? {
        if whole.len().saturating_add(size) > longest {
            return Err(TOO_LARGE.into());
        }
        whole.resize(whole.len() + format.gap(whole.len(), item, size), 0);
        if item == Item::Padding {
            whole.push(0);
            continue;
        }
        let got = args.get(next);
        next += 1;
        let wrong = |expected: &str| {
            let got = got.map_or("no value", LuaValue::type_name);
            format!("bad argument #{next} to 'pack' ({expected} expected, got {got})")
        };
        if matches!(item, Item::Text | Item::Terminated) {
            let text = bytes_of(got).ok_or_else(|| wrong("string"))?;
            let size = if size == 0 { text.len() } else { size };
            let part = text.get(..size);
            whole.extend_from_slice(part.ok_or_else(|| {
                format!("bad argument #{} to 'pack' (string too short)", next + 1)
            })?);
            whole.extend((item == Item::Terminated).then_some(0));
            continue;
        }
        let number = number_of(got).ok_or_else(|| wrong("number"))?;
        #[expect(clippy::cast_possible_truncation, reason = "that is what is asked for")]
        let float = number as f32;
        match (item, format.order) {
            (Item::Float, Order::Big) => whole.extend(float.to_be_bytes()),
            (Item::Float, Order::Little) => whole.extend(float.to_le_bytes()),
            (Item::Double, Order::Big) => whole.extend(number.to_be_bytes()),
            (Item::Double, Order::Little) => whole.extend(number.to_le_bytes()),
            (_, order) => put_integer(&mut whole, number, size, order),
        }
    }
    Ok(whole)
}

/// The values in a text, and the place after them.
fn unpack(lua: &Lua, format: &[u8], text: &Bytes, mut at: usize) -> Read<Vec<LuaValue>> {
    let mut format = Format::new(format);
    let mut values: Vec<LuaValue> = Vec::new();
    let short = || "bad argument #2 to 'unpack' (data string too short)".to_owned();
    let said = |error: mlua::Error| error.to_string();
    while let Some((item, size)) = format.next()? {
        if values.len() == VALUES_MAX {
            return Err("too many results".into());
        }
        at += format.gap(at, item, size);
        let size = match (item, size) {
            (Item::Text, 0) => {
                let size = values.pop().and_then(|value| number_of(Some(&value)));
                let size = size.ok_or("format 'c0' needs a previous size")?;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "it is compared with the text next"
                )]
                let size = size as usize;
                size
            }
            (Item::Terminated, _) => {
                let rest = text.get(at..).ok_or_else(short)?;
                memchr::memchr(0, rest).ok_or("unfinished string in data")?
            }
            (_, size) => size,
        };
        let end = at.checked_add(size).ok_or_else(short)?;
        let part = text.get(at..end).ok_or_else(short)?;
        at = end + usize::from(item == Item::Terminated);
        #[expect(clippy::cast_precision_loss, reason = "numbers in Lua 5.1 are of this kind")]
        let number = match item {
            Item::Padding => continue,
            Item::Text | Item::Terminated => {
                values.push(LuaValue::String(lua.create_string(part).map_err(said)?));
                continue;
            }
            Item::Float => {
                let bytes = part.try_into().map_err(|_| short())?;
                f64::from(match format.order {
                    Order::Big => f32::from_be_bytes(bytes),
                    Order::Little => f32::from_le_bytes(bytes),
                })
            }
            Item::Double => {
                let bytes = part.try_into().map_err(|_| short())?;
                match format.order {
                    Order::Big => f64::from_be_bytes(bytes),
                    Order::Little => f64::from_le_bytes(bytes),
                }
            }
            Item::Signed => signed(part, format.order) as f64,
            Item::Unsigned => unsigned(part, format.order) as f64,
        };
        values.push(LuaValue::Number(number));
    }
    #[expect(clippy::cast_precision_loss, reason = "a text is not that long")]
    values.push(LuaValue::Number((at + 1) as f64));
    Ok(values)
}

fn size_of(format: &[u8]) -> Read<usize> {
    let (mut format, mut whole) = (Format::new(format), 0usize);
    while let Some((item, size)) = format.next()? {
        match (item, size) {
            (Item::Terminated, _) => {
                return Err("bad argument #1 to 'size' (variable-size format 's')".into());
            }
            (Item::Text, 0) => {
                return Err("bad argument #1 to 'size' (variable-length format 'c0')".into());
            }
            _ => {}
        }
        whole = whole.saturating_add(format.gap(whole, item, size)).saturating_add(size);
    }
    Ok(whole)
}

/// Adds the library to the host's table for the prelude.
pub(super) fn offer(lua: &Lua, host: &Table, state: &Shared) -> mlua::Result<()> {
    let no_format = |name: &str| format!("bad argument #1 to '{name}' (string expected)");
    let own = Rc::clone(state);
    let packed = lua.create_function(move |lua, args: MultiValue| {
        let Some(format) = bytes_of(args.front()) else { return badly(lua, no_format("pack")) };
        if let Err(why) = Pace::begin(&own) {
            return badly(lua, why);
        }
        let longest = own.borrow().bounds.text;
        match pack(&format, &args, longest) {
            Ok(whole) => well([LuaValue::String(lua.create_string(whole)?)]),
            Err(why) => {
                if why == TOO_LARGE {
                    own.borrow_mut().outgrows();
                }
                badly(lua, why)
            }
        }
    })?;
    host.raw_set("struct_pack", packed)?;
    let own = Rc::clone(state);
    let unpacked = lua.create_function(move |lua, args: MultiValue| {
        if let Err(why) = Pace::begin(&own) {
            return badly(lua, why);
        }
        let Some(format) = bytes_of(args.front()) else { return badly(lua, no_format("unpack")) };
        let Some(text) = bytes_of(args.get(1)) else {
            return badly(lua, "bad argument #2 to 'unpack' (string expected)");
        };
        let at = number_of(args.get(2)).unwrap_or(1.0);
        if at < 1.0 {
            return badly(lua, "bad argument #3 to 'unpack' (offset must be 1 or greater)");
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "it is cut to the text"
        )]
        let at = (at - 1.0).min(text.len() as f64 + 1.0) as usize;
        match unpack(lua, &format, &text, at) {
            Ok(values) => well(values),
            Err(why) => badly(lua, why),
        }
    })?;
    host.raw_set("struct_unpack", unpacked)?;
    let size = lua.create_function(move |lua, args: MultiValue| {
        let Some(format) = bytes_of(args.front()) else { return badly(lua, no_format("size")) };
        match size_of(&format) {
            #[expect(clippy::cast_precision_loss, reason = "numbers in Lua 5.1 are of this kind")]
            Ok(size) => well([LuaValue::Number(size as f64)]),
            Err(why) => badly(lua, why),
        }
    })?;
    host.raw_set("struct_size", size)
}
