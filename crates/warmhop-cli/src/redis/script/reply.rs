//! A script's result as its client's reply.

use bytes::Bytes;
use mlua::{LuaString, Table, Value as LuaValue};

use super::super::frame::Reply;

/// How deep a script's reply may be nested.
const NESTED_MAX: usize = 128;
/// What each part of a reply counts for besides its text, in bytes.
const PART_BYTES: usize = 32;

/// The reply for `value` by this version of the protocol; `None` if it would exceed `bytes_max`.
pub(super) fn reply_of(value: &LuaValue, version: u8, bytes_max: usize) -> Option<Reply> {
    let mut making = Making { version, left: bytes_max };
    making.reply(value, 0)
}

/// A reply that is being made.
struct Making {
    version: u8,
    /// How many bytes it may still grow by.
    left: usize,
}

impl Making {
    /// `None` if it would grow by more than it may.
    fn grow(&mut self, bytes: usize) -> Option<()> {
        self.left = self.left.checked_sub(PART_BYTES.saturating_add(bytes))?;
        Some(())
    }

    fn bytes(&mut self, text: &LuaString) -> Option<Reply> {
        let text = text.as_bytes();
        self.grow(text.len())?;
        Some(Reply::Bytes(Bytes::copy_from_slice(&text)))
    }

    fn reply(&mut self, value: &LuaValue, depth: usize) -> Option<Reply> {
        self.grow(0)?;
        if depth == NESTED_MAX {
            return Some(Reply::error("ERR", "reached lua stack limit"));
        }
        Some(match value {
            LuaValue::String(text) => self.bytes(text)?,
            LuaValue::Integer(number) => Reply::Number(*number),
            LuaValue::Number(number) => Reply::Number(whole_number(*number)),
            LuaValue::Boolean(yes) if self.version == 3 => Reply::Bool(*yes),
            LuaValue::Boolean(true) => Reply::Number(1),
            LuaValue::Table(table) => self.of_table(table, depth)?,
            _ => Reply::Null,
        })
    }

    fn of_table(&mut self, table: &Table, depth: usize) -> Option<Reply> {
        let field = |name: &str| table.raw_get::<LuaValue>(name).ok();
        let text = |name: &str| match field(name)? {
            LuaValue::String(text) => Some(String::from_utf8_lossy(&text.as_bytes()).into_owned()),
            _ => None,
        };
        if let Some(error) = text("err") {
            self.grow(error.len())?;
            return Some(Reply::Error(error.replace(['\r', '\n'], " ")));
        }
        if let Some(status) = text("ok") {
            self.grow(status.len())?;
            return Some(Reply::status(status.replace(['\r', '\n'], " ")));
        }
        if let Some(LuaValue::Number(number)) = field("double") {
            return Some(Reply::Double(number));
        }
        if let Some(LuaValue::Integer(number)) = field("double") {
            #[expect(clippy::cast_precision_loss, reason = "numbers in Lua 5.1 are of this kind")]
            return Some(Reply::Double(number as f64));
        }
        if let Some(LuaValue::String(number)) = field("big_number") {
            return self.bytes(&number);
        }
        if let Some(LuaValue::Table(verbatim)) = field("verbatim_string")
            && let Ok(LuaValue::String(text)) = verbatim.raw_get("string")
        {
            return self.bytes(&text);
        }
        if let Some(LuaValue::Table(map)) = field("map") {
            let pairs = map.pairs::<LuaValue, LuaValue>().filter_map(Result::ok);
            let pairs = pairs.map(|(key, value)| {
                Some((self.reply(&key, depth + 1)?, self.reply(&value, depth + 1)?))
            });
            return Some(Reply::Map(pairs.collect::<Option<_>>()?));
        }
        if let Some(LuaValue::Table(set)) = field("set") {
            let pairs = set.pairs::<LuaValue, LuaValue>().filter_map(Result::ok);
            let parts = pairs.map(|(key, _)| self.reply(&key, depth + 1));
            return Some(Reply::Set(parts.collect::<Option<_>>()?));
        }
        let mut parts = Vec::new();
        for at in 1.. {
            match table.raw_get::<LuaValue>(at) {
                Ok(LuaValue::Nil) | Err(_) => break,
                Ok(value) => parts.push(self.reply(&value, depth + 1)?),
            }
        }
        Some(Reply::Array(parts))
    }
}

/// A number without its fraction. A number out of bounds becomes the lowest, as on Redis'
/// platforms.
fn whole_number(number: f64) -> i64 {
    /// The first number above all that are in bounds.
    const ABOVE: f64 = 9_223_372_036_854_775_808.0;
    #[expect(clippy::cast_possible_truncation, reason = "as Redis does")]
    let whole = number as i64;
    if number.is_nan() || number >= ABOVE { i64::MIN } else { whole }
}
