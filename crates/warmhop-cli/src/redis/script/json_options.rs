//! What scripts set of `cjson`: how deep values may be nested, and which numbers and lists are written
//! and read. The values, their bounds and the errors are those of Redis' `lua_cjson.c`.

use mlua::{Lua, MultiValue, Value as LuaValue};

use super::values::{Answer, badly, bytes_of, number_of, well};

/// How deep values are nested at most, whatever a script sets.
pub(super) const LEVELS_MAX: usize = 1000;
/// The most digits of a number.
const DIGITS_MAX: i32 = 14;

/// What becomes of a number that JSON does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoNumber {
    Refused,
    /// As C prints it.
    Written,
    Null,
}

/// How the values of a script are written as JSON, and read.
#[derive(Debug, Clone, Copy)]
pub(in crate::redis) struct Options {
    /// A list with many gaps is written as an object instead of being refused.
    converts: bool,
    /// A list has many gaps if it has more than this many places for each element; 0 means never.
    ratio: i32,
    /// A list with up to this many places may have any number of gaps.
    safe: i32,
    digits: i32,
    levels_written: i32,
    levels_read: i32,
    /// It changes nothing here.
    keeps_buffer: bool,
    pub(super) no_number: NoNumber,
    /// Numbers are read that JSON does not have: infinite ones, hexadecimal ones, those with zeros in front.
    pub(super) reads_no_numbers: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            converts: false,
            ratio: 2,
            safe: 10,
            digits: DIGITS_MAX,
            levels_written: 1000,
            levels_read: 1000,
            keeps_buffer: true,
            no_number: NoNumber::Refused,
            reads_no_numbers: true,
        }
    }
}

/// What a script can set, by the names of the functions.
#[derive(Debug, Clone, Copy)]
pub(super) enum Setting {
    SparseArray,
    LevelsWritten,
    LevelsRead,
    Digits,
    KeepsBuffer,
    NoNumbersWritten,
    NoNumbersRead,
}

pub(super) const SETTINGS: [(&str, Setting); 7] = [
    ("encode_sparse_array", Setting::SparseArray),
    ("encode_max_depth", Setting::LevelsWritten),
    ("decode_max_depth", Setting::LevelsRead),
    ("encode_number_precision", Setting::Digits),
    ("encode_keep_buffer", Setting::KeepsBuffer),
    ("encode_invalid_numbers", Setting::NoNumbersWritten),
    ("decode_invalid_numbers", Setting::NoNumbersRead),
];

/// What becomes of a list with gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gaps {
    Few,
    MakeItAnObject,
    AreTooMany,
}

impl Options {
    /// How many levels may be written.
    pub(super) fn levels_written(&self) -> usize {
        levels(self.levels_written)
    }

    /// How many levels may be read.
    pub(super) fn levels_read(&self) -> usize {
        levels(self.levels_read)
    }

    pub(super) fn digits(&self) -> usize {
        usize::try_from(self.digits).unwrap_or(1)
    }

    /// What becomes of a list with so many elements, of which the last has this place.
    pub(super) fn gaps(&self, count: usize, highest: usize) -> Gaps {
        let [ratio, safe] = [self.ratio, self.safe].map(|it| usize::try_from(it).unwrap_or(0));
        if ratio == 0 || highest <= safe || highest <= ratio.saturating_mul(count) {
            return Gaps::Few;
        }
        if self.converts { Gaps::MakeItAnObject } else { Gaps::AreTooMany }
    }

    /// Sets what the arguments say, and answers with what is set.
    pub(super) fn set(
        &mut self,
        lua: &Lua,
        (name, setting): (&str, Setting),
        args: &MultiValue,
    ) -> Answer {
        let most = if matches!(setting, Setting::SparseArray) { 3 } else { 1 };
        let arguments = Arguments { name, args };
        match arguments.checked(most).and_then(|()| self.change(setting, &arguments)) {
            Ok(()) => well(self.told(lua, setting)?),
            Err(why) => badly(lua, why),
        }
    }

    fn change(&mut self, setting: Setting, arguments: &Arguments<'_>) -> Result<(), String> {
        match setting {
            Setting::SparseArray => {
                arguments.yes_or_no(0, &mut self.converts)?;
                arguments.number(1, &mut self.ratio, 0, i32::MAX)?;
                arguments.number(2, &mut self.safe, 0, i32::MAX)
            }
            Setting::LevelsWritten => arguments.number(0, &mut self.levels_written, 1, i32::MAX),
            Setting::LevelsRead => arguments.number(0, &mut self.levels_read, 1, i32::MAX),
            Setting::Digits => arguments.number(0, &mut self.digits, 1, DIGITS_MAX),
            Setting::KeepsBuffer => arguments.yes_or_no(0, &mut self.keeps_buffer),
            Setting::NoNumbersRead => arguments.yes_or_no(0, &mut self.reads_no_numbers),
            Setting::NoNumbersWritten => {
                let all = [NoNumber::Refused, NoNumber::Written, NoNumber::Null];
                if let Some(at) = arguments.option(0, &["off", "on", "null"])? {
                    self.no_number = all[at];
                }
                Ok(())
            }
        }
    }

    fn told(&self, lua: &Lua, setting: Setting) -> mlua::Result<Vec<LuaValue>> {
        let number = |it: i32| LuaValue::Number(f64::from(it));
        Ok(match setting {
            Setting::SparseArray => {
                vec![LuaValue::Boolean(self.converts), number(self.ratio), number(self.safe)]
            }
            Setting::LevelsWritten => vec![number(self.levels_written)],
            Setting::LevelsRead => vec![number(self.levels_read)],
            Setting::Digits => vec![number(self.digits)],
            Setting::KeepsBuffer => vec![LuaValue::Boolean(self.keeps_buffer)],
            Setting::NoNumbersRead => vec![LuaValue::Boolean(self.reads_no_numbers)],
            Setting::NoNumbersWritten => vec![match self.no_number {
                NoNumber::Null => LuaValue::String(lua.create_string("null")?),
                other => LuaValue::Boolean(other == NoNumber::Written),
            }],
        })
    }
}

fn levels(set: i32) -> usize {
    usize::try_from(set).unwrap_or(1).min(LEVELS_MAX)
}

/// A kind of value, as Lua names it.
pub(super) fn kind_of(value: Option<&LuaValue>) -> &'static str {
    match value {
        None => "no value",
        Some(LuaValue::Integer(_)) => "number",
        Some(LuaValue::LightUserData(_)) => "userdata",
        Some(other) => other.type_name(),
    }
}

/// The arguments of a function of this name.
struct Arguments<'a> {
    name: &'a str,
    args: &'a MultiValue,
}

impl Arguments<'_> {
    fn bad(&self, at: usize, why: &str) -> String {
        format!("bad argument #{} to '{}' ({why})", at + 1, self.name)
    }

    fn checked(&self, most: usize) -> Result<(), String> {
        match self.args.len() <= most {
            true => Ok(()),
            false => Err(self.bad(most, "found too many arguments")),
        }
    }

    /// The argument there, unless it leaves things as they are.
    fn given(&self, at: usize) -> Option<&LuaValue> {
        self.args.get(at).filter(|it| !matches!(it, LuaValue::Nil))
    }

    fn number(&self, at: usize, set: &mut i32, min: i32, max: i32) -> Result<(), String> {
        let Some(given) = self.given(at) else { return Ok(()) };
        let Some(number) = number_of(Some(given)) else {
            let why = format!("number expected, got {}", kind_of(Some(given)));
            return Err(self.bad(at, &why));
        };
        #[expect(clippy::cast_possible_truncation, reason = "as Redis does")]
        let number = number as i64 as i32;
        if !(min..=max).contains(&number) {
            // Whichever argument it is.
            return Err(self.bad(0, &format!("expected integer between {min} and {max}")));
        }
        *set = number;
        Ok(())
    }

    fn yes_or_no(&self, at: usize, set: &mut bool) -> Result<(), String> {
        if let Some(option) = self.option(at, &["off", "on"])? {
            *set = option == 1;
        }
        Ok(())
    }

    /// Which of `options` is given, of which the first two are no and yes.
    fn option(&self, at: usize, options: &[&str]) -> Result<Option<usize>, String> {
        let Some(given) = self.given(at) else { return Ok(None) };
        if let LuaValue::Boolean(yes) = given {
            return Ok(Some(usize::from(*yes)));
        }
        let Some(text) = bytes_of(Some(given)) else {
            let why = format!("string expected, got {}", kind_of(Some(given)));
            return Err(self.bad(at, &why));
        };
        let found = options.iter().position(|option| option.as_bytes() == text);
        let unknown =
            || self.bad(at, &format!("invalid option '{}'", String::from_utf8_lossy(&text)));
        found.map(Some).ok_or_else(unknown)
    }
}
