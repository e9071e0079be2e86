//! Reads JSON as Redis' `lua_cjson.c` does: token by token, with its errors. Scripts have strings of any
//! bytes, which a reader of UTF-8 would refuse.

use mlua::{Lua, LuaString, Table, Value as LuaValue};

use super::json_options::Options;
use super::state::Pace;

/// A part of a text.
enum Token {
    ObjectBegin,
    ObjectEnd,
    ListBegin,
    ListEnd,
    Text(Vec<u8>),
    Number(f64),
    Boolean(bool),
    Null,
    Colon,
    Comma,
    End,
    Wrong(&'static str),
}

impl Token {
    /// What an error calls it.
    fn name(&self) -> &'static str {
        match self {
            Self::ObjectBegin => "T_OBJ_BEGIN",
            Self::ObjectEnd => "T_OBJ_END",
            Self::ListBegin => "T_ARR_BEGIN",
            Self::ListEnd => "T_ARR_END",
            Self::Text(_) => "T_STRING",
            Self::Number(_) => "T_NUMBER",
            Self::Boolean(_) => "T_BOOLEAN",
            Self::Null => "T_NULL",
            Self::Colon => "T_COLON",
            Self::Comma => "T_COMMA",
            Self::End => "T_END",
            Self::Wrong(why) => why,
        }
    }
}

const INVALID_NUMBER: (Token, usize) = (Token::Wrong("invalid number"), 0);

/// A token, and where it begins; if it is wrong, what is wrong with it.
type At = (Token, usize);

type Read<T> = Result<T, String>;

/// An object or a list of which a part was read.
struct Level {
    table: Table,
    next: Next,
}

/// Under which name, or at which place, the next value is put.
enum Next {
    Name(LuaString),
    Place(usize),
}

struct Reader<'a> {
    lua: &'a Lua,
    text: &'a [u8],
    at: usize,
    options: Options,
    pace: Pace,
}

/// The value that a text is.
///
/// # Errors
/// In Redis' words, or if Lua has no more memory.
pub(super) fn read(lua: &Lua, text: &[u8], options: Options, pace: Pace) -> Read<LuaValue> {
    // At least the first character of JSON is ASCII.
    if let [first, second, ..] = text
        && (*first == 0 || *second == 0)
    {
        return Err("JSON parser does not support UTF-16 or UTF-32".into());
    }
    Reader { lua, text, at: 0, options, pace }.whole()
}

fn expected<T>(expected: &str, (token, at): &At) -> Read<T> {
    Err(format!("Expected {expected} but found {} at character {}", token.name(), at + 1))
}

fn failed(error: &mlua::Error) -> String {
    error.to_string()
}

impl Reader<'_> {
    fn whole(&mut self) -> Read<LuaValue> {
        let mut levels: Vec<Level> = Vec::new();
        let mut token = self.token();
        'values: loop {
            self.pace.passes()?;
            let mut value = match token.0 {
                Token::ObjectBegin => {
                    let table = self.descend(levels.len())?;
                    match self.token() {
                        (Token::ObjectEnd, _) => LuaValue::Table(table),
                        first => {
                            let next = Next::Name(self.name(first)?);
                            levels.push(Level { table, next });
                            token = self.token();
                            continue 'values;
                        }
                    }
                }
                Token::ListBegin => {
                    let table = self.descend(levels.len())?;
                    match self.token() {
                        (Token::ListEnd, _) => LuaValue::Table(table),
                        first => {
                            levels.push(Level { table, next: Next::Place(1) });
                            token = first;
                            continue 'values;
                        }
                    }
                }
                Token::Text(text) => self.string(&text).map(LuaValue::String)?,
                Token::Number(number) => LuaValue::Number(number),
                Token::Boolean(yes) => LuaValue::Boolean(yes),
                Token::Null => LuaValue::NULL,
                _ => return expected("value", &token),
            };
            loop {
                let Some(mut level) = levels.pop() else {
                    return match self.token() {
                        (Token::End, _) => Ok(value),
                        other => expected("the end", &other),
                    };
                };
                level.put(value)?;
                let next = self.token();
                let is_list = matches!(level.next, Next::Place(_));
                match &next.0 {
                    Token::ListEnd if is_list => value = LuaValue::Table(level.table),
                    Token::ObjectEnd if !is_list => value = LuaValue::Table(level.table),
                    Token::Comma => {
                        if !is_list {
                            let name = self.token();
                            level.next = Next::Name(self.name(name)?);
                        }
                        levels.push(level);
                        token = self.token();
                        continue 'values;
                    }
                    _ if is_list => return expected("comma or array end", &next),
                    _ => return expected("comma or object end", &next),
                }
            }
        }
    }

    /// Begins an object or a list below so many others.
    fn descend(&self, depth: usize) -> Read<Table> {
        let depth = depth + 1;
        if depth > self.options.levels_read() {
            let at = self.at;
            return Err(format!(
                "Found too many nested data structures ({depth}) at character {at}"
            ));
        }
        self.lua.create_table().map_err(|error| failed(&error))
    }

    fn string(&self, text: &[u8]) -> Read<LuaString> {
        self.lua.create_string(text).map_err(|error| failed(&error))
    }

    /// The name that an object's member begins with, and its colon.
    fn name(&mut self, first: At) -> Read<LuaString> {
        let Token::Text(name) = &first.0 else { return expected("object key string", &first) };
        let name = self.string(name)?;
        match self.token() {
            (Token::Colon, _) => Ok(name),
            other => expected("colon", &other),
        }
    }

    fn token(&mut self) -> At {
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        while self.text.get(self.at).is_some_and(is_space) {
            self.at += 1;
        }
        let at = self.at;
        let rest = &self.text[at..];
        let (token, len) = match rest.first() {
            // To Redis a text ends there.
            None | Some(0) => (Token::End, 0),
            Some(b'"') => return self.text_token(),
            Some(b'{') => (Token::ObjectBegin, 1),
            Some(b'}') => (Token::ObjectEnd, 1),
            Some(b'[') => (Token::ListBegin, 1),
            Some(b']') => (Token::ListEnd, 1),
            Some(b':') => (Token::Colon, 1),
            Some(b',') => (Token::Comma, 1),
            Some(b't') if rest.starts_with(b"true") => (Token::Boolean(true), 4),
            Some(b'f') if rest.starts_with(b"false") => (Token::Boolean(false), 5),
            Some(b'n') if rest.starts_with(b"null") => (Token::Null, 4),
            Some(b'-' | b'0'..=b'9') => match number(rest) {
                _ if !self.options.reads_no_numbers && is_no_number(rest) => INVALID_NUMBER,
                Some((number, len)) => (Token::Number(number), len),
                None => INVALID_NUMBER,
            },
            _ if self.options.reads_no_numbers && is_no_number(rest) => match number(rest) {
                Some((number, len)) => (Token::Number(number), len),
                None => INVALID_NUMBER,
            },
            _ => (Token::Wrong("invalid token"), 0),
        };
        self.at += len;
        (token, at)
    }

    fn text_token(&mut self) -> At {
        let begin = self.at;
        self.at += 1;
        let mut whole = Vec::new();
        loop {
            let at = self.at;
            let byte = match self.text.get(at) {
                None | Some(0) => return (Token::Wrong("unexpected end of string"), at),
                Some(b'"') => {
                    self.at += 1;
                    return (Token::Text(whole), begin);
                }
                Some(b'\\') => {
                    self.at += 1;
                    match self.text.get(self.at) {
                        Some(b'n') => b'\n',
                        Some(b'r') => b'\r',
                        Some(b't') => b'\t',
                        Some(b'b') => 0x08,
                        Some(b'f') => 0x0c,
                        Some(same @ (b'"' | b'\\' | b'/')) => *same,
                        Some(b'u') => {
                            self.at += 1;
                            let Some(character) = self.escaped() else {
                                return (Token::Wrong("invalid unicode escape code"), at);
                            };
                            let mut buffer = [0; 4];
                            whole.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
                            continue;
                        }
                        _ => return (Token::Wrong("invalid escape code"), at),
                    }
                }
                Some(byte) => *byte,
            };
            whole.push(byte);
            self.at += 1;
        }
    }

    /// A character by the numbers of its UTF-16 units.
    fn escaped(&mut self) -> Option<char> {
        let first = self.hex()?;
        if !(0xd800..0xe000).contains(&first) {
            return char::from_u32(first);
        }
        let first = first.checked_sub(0xd800).filter(|high| *high < 0x400)?;
        if !self.text.get(self.at..)?.starts_with(b"\\u") {
            return None;
        }
        self.at += 2;
        let second = self.hex()?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
        char::from_u32(0x10000 + (first << 10) + second)
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.at += 4;
        digits.iter().try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?))
    }
}

impl Level {
    fn put(&mut self, value: LuaValue) -> Read<()> {
        let put = match &mut self.next {
            Next::Name(name) => self.table.raw_set(&*name, value),
            Next::Place(place) => {
                *place += 1;
                self.table.raw_set(*place - 1, value)
            }
        };
        put.map_err(|error| failed(&error))
    }
}

/// Whether a text begins with a number that JSON does not have, or might.
fn is_no_number(text: &[u8]) -> bool {
    if text.first() == Some(&b'+') {
        return true;
    }
    let rest = text.strip_prefix(b"-").unwrap_or(text);
    match rest {
        [b'0', b'x' | b'X' | b'0'..=b'9', ..] => true,
        [0..=b'9', ..] | [] => false,
        _ => begins(rest, b"inf") || begins(rest, b"nan"),
    }
}

fn begins(text: &[u8], word: &[u8]) -> bool {
    text.get(..word.len()).is_some_and(|it| it.eq_ignore_ascii_case(word))
}

/// The number that a text begins with, and its length: what C's `strtod` reads.
fn number(text: &[u8]) -> Option<(f64, usize)> {
    let (is_negative, rest) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let (number, len) = if begins(rest, b"infinity") {
        (f64::INFINITY, 8)
    } else if begins(rest, b"inf") {
        (f64::INFINITY, 3)
    } else if begins(rest, b"nan") {
        (f64::NAN, 3 + in_braces(&rest[3..]))
    } else if let Some(found) = hexadecimal(rest) {
        found
    } else {
        decimal(rest)?
    };
    let len = len + text.len() - rest.len();
    Some((if is_negative { -number } else { number }, len))
}

/// The length of what may follow `nan`.
fn in_braces(text: &[u8]) -> usize {
    let Some(inner) = text.strip_prefix(b"(") else { return 0 };
    let len = inner.iter().take_while(|it| it.is_ascii_alphanumeric() || **it == b'_').count();
    if inner.get(len) == Some(&b')') { len + 2 } else { 0 }
}

fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

/// The length of an exponent, if there is one.
fn exponent(text: &[u8], mark: u8) -> usize {
    let [first, rest @ ..] = text else { return 0 };
    let sign = usize::from(matches!(rest.first(), Some(b'+' | b'-')));
    let len = digits(&rest[sign..]);
    if first.eq_ignore_ascii_case(&mark) && len > 0 { 1 + sign + len } else { 0 }
}

fn decimal(text: &[u8]) -> Option<(f64, usize)> {
    let whole = digits(text);
    let mut len = whole;
    if text.get(len) == Some(&b'.') {
        let behind = digits(&text[len + 1..]);
        if whole + behind == 0 {
            return None;
        }
        len += 1 + behind;
    }
    if len == 0 {
        return None;
    }
    len += exponent(&text[len..], b'e');
    let number = std::str::from_utf8(&text[..len]).ok()?.parse().ok()?;
    Some((number, len))
}

/// A hexadecimal number, as `0x1.8p3`.
fn hexadecimal(text: &[u8]) -> Option<(f64, usize)> {
    /// More digits than a number with 64 bits has.
    const DIGITS_MAX: usize = 30;
    let [b'0', b'x' | b'X', rest @ ..] = text else { return None };
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let (mut value, mut counted, mut shift, mut found, mut at) = (0_u128, 0, 0_i32, false, 0);
    let mut is_behind = false;
    while let Some(byte) = rest.get(at) {
        match digit(byte) {
            Some(digit) => {
                found = true;
                if counted < DIGITS_MAX {
                    value = value * 16 + u128::from(digit);
                    counted += usize::from(value > 0);
                    shift -= if is_behind { 4 } else { 0 };
                } else if !is_behind {
                    shift = shift.saturating_add(4);
                }
            }
            None if *byte == b'.' && !is_behind => is_behind = true,
            None => break,
        }
        at += 1;
    }
    if !found {
        // The zero alone.
        return Some((0.0, 1));
    }
    let len = exponent(&rest[at..], b'p');
    if len > 0 {
        let text = std::str::from_utf8(&rest[at + 1..at + len]).ok()?;
        let most = if text.starts_with('-') { -100_000 } else { 100_000 };
        shift = shift.saturating_add(text.parse().unwrap_or(most).clamp(-100_000, 100_000));
    }
    #[expect(clippy::cast_precision_loss, reason = "it is rounded, as C does")]
    let mut number = value as f64;
    // In steps, since the powers themselves have bounds.
    while shift != 0 && number != 0.0 && number.is_finite() {
        let step = shift.clamp(-1000, 1000);
        number *= 2_f64.powi(step);
        shift -= step;
    }
    Some((number, 2 + at + len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_what_c_reads() {
        for (text, number_, len) in [
            ("1", 1.0, 1),
            ("-1.5e3x", -1500.0, 6),
            ("1.", 1.0, 2),
            (".5", 0.5, 2),
            ("1e", 1.0, 1),
            ("1e+", 1.0, 1),
            ("1-2", 1.0, 1),
            ("007", 7.0, 3),
            ("+3", 3.0, 2),
            ("0x10", 16.0, 4),
            ("0x1.8p3,", 12.0, 7),
            ("0x.8", 0.5, 4),
            ("0xg", 0.0, 1),
            ("0x1p-2000", 0.0, 9),
            ("0x1p99999999999", f64::INFINITY, 15),
            ("Infinity", f64::INFINITY, 8),
            ("-infx", f64::NEG_INFINITY, 4),
            ("1e400", f64::INFINITY, 5),
        ] {
            assert_eq!(number(text.as_bytes()), Some((number_, len)), "{text}");
        }
        for text in ["", "-", "x", ".", "-.", "e5"] {
            assert_eq!(number(text.as_bytes()), None, "{text}");
        }
        let (nan, len) = number(b"-nan(x_1)]").unwrap();
        assert!(nan.is_nan() && nan.is_sign_negative() && len == 9);
    }
}
