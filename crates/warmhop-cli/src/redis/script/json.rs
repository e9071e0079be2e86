//! `cjson`: values of a script as JSON and back. JSON is read here, since scripts have strings of any
//! bytes, which a reader of text would refuse.

use bytes::Bytes;
use mlua::{Lua, MultiValue, Table, Value as LuaValue};

use super::lua::{badly, bytes_of, well};
use super::text::lua_number;

/// How deep values may be nested.
const NESTED_MAX: usize = 200;
/// The longest text that a value is written as.
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// A list with more gaps than places that hold something, and a place above this one, is refused.
const SPARSE_FROM: usize = 10;

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

/// The length of a list; `None` for what is none.
fn list_len(table: &Table) -> Result<Option<usize>, String> {
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
    if highest > SPARSE_FROM && highest > 2 * count {
        return Err("Cannot serialise table: excessively sparse array".into());
    }
    Ok((count > 0).then_some(highest))
}

fn write(value: &LuaValue, whole: &mut Vec<u8>, depth: usize) -> Result<(), String> {
    if depth > NESTED_MAX {
        return Err(format!("Cannot serialise, excessive depth ({depth})"));
    }
    if whole.len() > BYTES_MAX {
        return Err(format!("Cannot serialise, more than {BYTES_MAX} bytes"));
    }
    match value {
        LuaValue::Nil => whole.extend_from_slice(b"null"),
        LuaValue::LightUserData(it) if it.0.is_null() => whole.extend_from_slice(b"null"),
        LuaValue::Boolean(true) => whole.extend_from_slice(b"true"),
        LuaValue::Boolean(false) => whole.extend_from_slice(b"false"),
        LuaValue::Integer(number) => whole.extend_from_slice(number.to_string().as_bytes()),
        LuaValue::Number(number) if number.is_finite() => {
            whole.extend_from_slice(lua_number(*number).as_bytes());
        }
        LuaValue::Number(_) => {
            return Err("Cannot serialise number: must not be NaN or Inf".into());
        }
        LuaValue::String(text) => put_string(&text.as_bytes(), whole),
        LuaValue::Table(table) => write_table(table, whole, depth)?,
        other => {
            return Err(format!("Cannot serialise {}: type not supported", other.type_name()));
        }
    }
    Ok(())
}

fn write_table(table: &Table, whole: &mut Vec<u8>, depth: usize) -> Result<(), String> {
    if let Some(len) = list_len(table)? {
        whole.push(b'[');
        for at in 1..=len {
            if at > 1 {
                whole.push(b',');
            }
            let value: LuaValue = table.raw_get(at).unwrap_or(LuaValue::Nil);
            write(&value, whole, depth + 1)?;
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
        let key = bytes_of(Some(&key))
            .ok_or("Cannot serialise table: table key must be a number or string")?;
        put_string(&key, whole);
        whole.push(b':');
        write(&value, whole, depth + 1)?;
    }
    whole.push(b'}');
    Ok(())
}

/// What is left of a text to read.
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
            Some(_) => "invalid token",
        };
        Err(format!("Expected {expected} but found {found} at character {}", self.at + 1))
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
            _ => self.fails("value"),
        }
    }

    fn number(&mut self) -> Read<LuaValue> {
        let rest = &self.text[self.at..];
        let is_part = |byte: &&u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
        let len = rest.iter().take_while(is_part).count();
        let number = std::str::from_utf8(&rest[..len]).ok().and_then(|text| text.parse().ok());
        let Some(number) = number else { return self.fails("value") };
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
            let Some(&byte) = self.text.get(self.at) else { return self.fails("string end") };
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
                            let character = self.escaped().ok_or_else(|| {
                                format!("Expected value but found invalid unicode escape code at character {}", self.at)
                            })?;
                            let mut buffer = [0; 4];
                            whole.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
                            continue;
                        }
                        _ => return self.fails("escape code"),
                    });
                }
                0..=0x1f => return self.fails("string"),
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

/// Adds it to what the prelude gets.
pub(super) fn offer(lua: &Lua, host: &Table) -> mlua::Result<()> {
    let encode = lua.create_function(|lua, args: MultiValue| {
        if args.len() != 1 {
            return badly(lua, "bad argument #1 to 'encode' (expected 1 argument)");
        }
        let mut whole = Vec::new();
        match write(args.front().unwrap_or(&LuaValue::Nil), &mut whole, 0) {
            Ok(()) => well([LuaValue::String(lua.create_string(whole)?)]),
            Err(why) => badly(lua, why),
        }
    })?;
    host.raw_set("json_encode", encode)?;
    let decode = lua.create_function(|lua, args: MultiValue| {
        let text: Option<Bytes> = bytes_of(args.front());
        let (Some(text), 1) = (text, args.len()) else {
            return badly(lua, "bad argument #1 to 'decode' (expected 1 argument)");
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
    host.raw_set("json_decode", decode)
}
