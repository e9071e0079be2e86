//! `cjson`: values of a script as JSON and back. This module parses JSON itself: scripts have
//! strings of any bytes, which a reader of UTF-8 would refuse.

use std::rc::Rc;

use super::state::{Options, Shared};
use super::values::{badly, bytes_of, in_digits, number_of, well};
use mlua::{Lua, MultiValue, Table, Value as LuaValue};

/// How deep values may be nested.
const NESTED_MAX: usize = 200;
const DIGITS_MAX: usize = 17;

fn put_string(text: &[u8], whole: &mut Vec<u8>) {
    whole.push(b'"');
    for byte in text {
        match byte {
            b'"' => whole.extend_from_slice(b"\\\""),
            b'\\' => whole.extend_from_slice(b"\\\\"),
            b'/' => whole.extend_from_slice(b"\\/"),
            b'\n' => whole.extend_from_slice(b"\\n"),
            b'\r' => whole.extend_from_slice(b"\\r"),
            b'\t' => whole.extend_from_slice(b"\\t"),
            0x08 => whole.extend_from_slice(b"\\b"),
            0x0c => whole.extend_from_slice(b"\\f"),
            0..=0x1f | 0x7f => whole.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            byte => whole.push(*byte),
        }
    }
    whole.push(b'"');
}

/// The length of a list; `None` for a table that is no list.
fn list_len(table: &Table, options: Options) -> Result<Option<usize>, String> {
    let (mut highest, mut count) = (0, 0);
    for pair in table.pairs::<LuaValue, LuaValue>() {
        let Ok((key, _)) = pair else { return Ok(None) };
        let at = match key {
            LuaValue::Integer(at) => usize::try_from(at).ok(),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is whole"
            )]
            LuaValue::Number(at) if at.fract() == 0.0 && at > 0.0 => Some(at as usize),
            _ => None,
        };
        let Some(at) = at.filter(|at| *at > 0) else { return Ok(None) };
        highest = highest.max(at);
        count += 1;
    }
    let Options { converts, ratio, safe, .. } = options;
    if ratio > 0 && highest > safe && highest > ratio.saturating_mul(count) {
        if converts {
            return Ok(None);
        }
        return Err("Cannot serialise table: excessively sparse array".into());
    }
    Ok((count > 0).then_some(highest))
}

fn write(
    value: &LuaValue,
    options: Options,
    whole: &mut Vec<u8>,
    depth: usize,
) -> Result<(), String> {
    if depth > NESTED_MAX {
        return Err(format!("Cannot serialise, excessive nesting ({depth})"));
    }
    if whole.len() > options.longest {
        return Err(format!("Cannot serialise, more than {} bytes", options.longest));
    }
    match value {
        LuaValue::Nil => whole.extend_from_slice(b"null"),
        LuaValue::LightUserData(it) if it.0.is_null() => whole.extend_from_slice(b"null"),
        LuaValue::Boolean(true) => whole.extend_from_slice(b"true"),
        LuaValue::Boolean(false) => whole.extend_from_slice(b"false"),
        #[expect(clippy::cast_precision_loss, reason = "numbers in Lua 5.1 are of this kind")]
        LuaValue::Integer(number) => {
            whole.extend_from_slice(in_digits(*number as f64, options.digits).as_bytes());
        }
        LuaValue::Number(number) if number.is_finite() => {
            whole.extend_from_slice(in_digits(*number, options.digits).as_bytes());
        }
        LuaValue::Number(_) => {
            return Err("Cannot serialise number: must not be NaN or Inf".into());
        }
        LuaValue::String(text) => put_string(&text.as_bytes(), whole),
        LuaValue::Table(table) => write_table(table, options, whole, depth)?,
        other => {
            return Err(format!("Cannot serialise {}: type not supported", other.type_name()));
        }
    }
    Ok(())
}

fn write_table(
    table: &Table,
    options: Options,
    whole: &mut Vec<u8>,
    depth: usize,
) -> Result<(), String> {
    if let Some(len) = list_len(table, options)? {
        whole.push(b'[');
        for at in 1..=len {
            if at > 1 {
                whole.push(b',');
            }
            let value: LuaValue = table.raw_get(at).unwrap_or(LuaValue::Nil);
            write(&value, options, whole, depth + 1)?;
        }
        whole.push(b']');
        return Ok(());
    }
    whole.push(b'{');
    let mut first = true;
    for pair in table.pairs::<LuaValue, LuaValue>() {
        let Ok((key, value)) = pair else { continue };
        if !std::mem::take(&mut first) {
            whole.push(b',');
        }
        let key = bytes_of(Some(&key)).ok_or_else(|| {
            let kind = key.type_name();
            format!("Cannot serialise {kind}: table key must be a number or string")
        })?;
        put_string(&key, whole);
        whole.push(b':');
        write(&value, options, whole, depth + 1)?;
    }
    whole.push(b'}');
    Ok(())
}

/// The rest of a text that is being read.
struct Reader<'a> {
    lua: &'a Lua,
    text: &'a [u8],
    at: usize,
}

type Read<T> = Result<T, String>;

impl Reader<'_> {
    fn skip_space(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn fails<T>(&self, expected: &str) -> Read<T> {
        let found = match self.text.get(self.at) {
            None => "T_END",
            Some(b',') => "T_COMMA",
            Some(b':') => "T_COLON",
            Some(b'}') => "T_OBJ_END",
            Some(b']') => "T_ARR_END",
            Some(b'{') => "T_OBJ_BEGIN",
            Some(b'[') => "T_ARR_BEGIN",
            Some(b'"') => "T_STRING",
            Some(b'0'..=b'9') => "T_NUMBER",
            Some(_) => "invalid token",
        };
        self.found(expected, found, self.at)
    }

    /// The error for finding something else at a place than was expected.
    fn found<T>(&self, expected: &str, found: &str, at: usize) -> Read<T> {
        Err(format!("Expected {expected} but found {found} at character {}", at + 1))
    }

    fn failed<T>(&self, error: &mlua::Error) -> Read<T> {
        Err(error.to_string())
    }

    fn takes(&mut self, text: &[u8]) -> bool {
        let is_it = self.text[self.at..].starts_with(text);
        self.at += if is_it { text.len() } else { 0 };
        is_it
    }

    fn value(&mut self, depth: usize) -> Read<LuaValue> {
        if depth > NESTED_MAX {
            return Err(format!("Found too many nested data structures ({depth})"));
        }
        self.skip_space();
        match self.text.get(self.at) {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => {
                let text = self.string()?;
                self.lua.create_string(text).map(LuaValue::String).or_else(|e| self.failed(&e))
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ if self.takes(b"true") => Ok(LuaValue::Boolean(true)),
            _ if self.takes(b"false") => Ok(LuaValue::Boolean(false)),
            _ if self.takes(b"null") => Ok(LuaValue::NULL),
            _ => match self.no_number() {
                Some(number) => Ok(LuaValue::Number(number)),
                None => self.fails("value"),
            },
        }
    }

    /// Numbers that JSON does not have, as Redis reads them.
    fn no_number(&mut self) -> Option<f64> {
        let rest = &self.text[self.at..];
        let (sign, digits) = match rest.strip_prefix(b"-") {
            Some(digits) => (-1.0, digits),
            None => (1.0, rest),
        };
        let words = [("infinity", f64::INFINITY), ("inf", f64::INFINITY), ("nan", f64::NAN)];
        let begins = |word: &str| {
            digits.get(..word.len()).is_some_and(|it| it.eq_ignore_ascii_case(word.as_bytes()))
        };
        let (word, number) = words.into_iter().find(|(word, _)| begins(word))?;
        self.at += rest.len() - digits.len() + word.len();
        Some(sign * number)
    }

    fn number(&mut self) -> Read<LuaValue> {
        if let Some(number) = self.no_number() {
            return Ok(LuaValue::Number(number));
        }
        let rest = &self.text[self.at..];
        let is_part = |byte: &&u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
        let len = rest.iter().take_while(is_part).count();
        let number = std::str::from_utf8(&rest[..len]).ok().and_then(|text| text.parse().ok());
        let Some(number) = number else { return self.found("value", "invalid number", self.at) };
        self.at += len;
        Ok(LuaValue::Number(number))
    }

    fn array(&mut self, depth: usize) -> Read<LuaValue> {
        self.at += 1;
        let table = self.lua.create_table().or_else(|error| self.failed(&error))?;
        self.skip_space();
        if self.takes(b"]") {
            return Ok(LuaValue::Table(table));
        }
        for place in 1.. {
            let value = self.value(depth + 1)?;
            table.raw_set(place, value).or_else(|error| self.failed(&error))?;
            self.skip_space();
            if self.takes(b"]") {
                break;
            }
            if !self.takes(b",") {
                return self.fails("comma or array end");
            }
        }
        Ok(LuaValue::Table(table))
    }

    fn object(&mut self, depth: usize) -> Read<LuaValue> {
        self.at += 1;
        let table = self.lua.create_table().or_else(|error| self.failed(&error))?;
        self.skip_space();
        if self.takes(b"}") {
            return Ok(LuaValue::Table(table));
        }
        loop {
            self.skip_space();
            if self.text.get(self.at) != Some(&b'"') {
                return self.fails("object key string");
            }
            let key = self.string()?;
            let key = self.lua.create_string(key).or_else(|error| self.failed(&error))?;
            self.skip_space();
            if !self.takes(b":") {
                return self.fails("colon");
            }
            let value = self.value(depth + 1)?;
            table.raw_set(key, value).or_else(|error| self.failed(&error))?;
            self.skip_space();
            if self.takes(b"}") {
                return Ok(LuaValue::Table(table));
            }
            if !self.takes(b",") {
                return self.fails("comma or object end");
            }
        }
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = std::str::from_utf8(self.text.get(self.at..self.at + 4)?).ok()?;
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }

    fn string(&mut self) -> Read<Vec<u8>> {
        self.at += 1;
        let mut whole = Vec::new();
        loop {
            let Some(&byte) = self.text.get(self.at) else {
                return self.found("value", "unexpected end of string", self.at);
            };
            let begin = self.at;
            self.at += 1;
            match byte {
                b'"' => return Ok(whole),
                b'\\' => {
                    let escaped = self.text.get(self.at).copied();
                    self.at += 1;
                    whole.push(match escaped {
                        Some(b'n') => b'\n',
                        Some(b'r') => b'\r',
                        Some(b't') => b'\t',
                        Some(b'b') => 0x08,
                        Some(b'f') => 0x0c,
                        Some(same @ (b'"' | b'\\' | b'/')) => same,
                        Some(b'u') => {
                            let Some(character) = self.escaped() else {
                                let found = "invalid unicode escape code";
                                return self.found("value", found, begin);
                            };
                            let mut buffer = [0; 4];
                            whole.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
                            continue;
                        }
                        _ => return self.found("value", "invalid escape code", begin),
                    });
                }
                0..=0x1f => return self.found("value", "invalid token", begin),
                byte => whole.push(byte),
            }
        }
    }

    fn escaped(&mut self) -> Option<char> {
        let first = self.hex()?;
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first);
        }
        if !self.takes(b"\\u") {
            return None;
        }
        let second = self.hex()?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
        char::from_u32(0x10000 + ((first - 0xd800) << 10) + second)
    }
}

/// Adds the library to the host's table for the prelude.
pub(super) fn offer(lua: &Lua, host: &Table, state: &Shared) -> mlua::Result<()> {
    let own = Rc::clone(state);
    let encode = lua.create_function(move |lua, args: MultiValue| {
        if args.len() != 1 {
            return badly(lua, "bad argument #1 to 'encode' (expected 1 argument)");
        }
        let longest = own.borrow().bounds.text;
        let options = Options { longest, ..own.borrow().json };
        let mut whole = Vec::new();
        let written = write(args.front().unwrap_or(&LuaValue::Nil), options, &mut whole, 0);
        own.borrow_mut().makes(whole.len());
        match written {
            Ok(()) => well([LuaValue::String(lua.create_string(whole)?)]),
            Err(why) => badly(lua, why),
        }
    })?;
    host.raw_set("json_encode", encode)?;
    let decode = lua.create_function(|lua, args: MultiValue| {
        if args.len() != 1 {
            return badly(lua, "bad argument #1 to 'decode' (expected 1 argument)");
        }
        let Some(text) = bytes_of(args.front()) else {
            let got = args.front().map_or("no value", LuaValue::type_name);
            let why = format!("bad argument #1 to 'decode' (string expected, got {got})");
            return badly(lua, why);
        };
        let mut reader = Reader { lua, text: &text, at: 0 };
        let read = reader.value(0).and_then(|value| {
            reader.skip_space();
            if reader.at == text.len() { Ok(value) } else { reader.fails("the end") }
        });
        match read {
            Ok(value) => well([value]),
            Err(why) => badly(lua, why),
        }
    })?;
    host.raw_set("json_decode", decode)?;
    options(lua, host, state)
}

/// Adds what scripts say with how their values are written.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "they are small and not below 0"
)]
fn options(lua: &Lua, host: &Table, state: &Shared) -> mlua::Result<()> {
    let count = |value: Option<&LuaValue>, otherwise: usize| {
        number_of(value).filter(|it| *it >= 0.0).map_or(otherwise, |it| it as usize)
    };
    let own = Rc::clone(state);
    let sparse = lua.create_function(move |_, args: MultiValue| {
        let options = &mut own.borrow_mut().json;
        if let Some(LuaValue::Boolean(converts)) = args.front() {
            options.converts = *converts;
        }
        options.ratio = count(args.get(1), options.ratio);
        options.safe = count(args.get(2), options.safe);
        let (ratio, safe) = (options.ratio as f64, options.safe as f64);
        let converts = LuaValue::Boolean(options.converts);
        well([converts, LuaValue::Number(ratio), LuaValue::Number(safe)])
    })?;
    host.raw_set("json_sparse", sparse)?;
    let own = Rc::clone(state);
    let precision = lua.create_function(move |_, args: MultiValue| {
        let options = &mut own.borrow_mut().json;
        options.digits = count(args.front(), options.digits).clamp(1, DIGITS_MAX);
        well([LuaValue::Number(options.digits as f64)])
    })?;
    host.raw_set("json_precision", precision)
}
