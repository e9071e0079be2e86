//! `cmsgpack`: values of a script as `MessagePack` and back.

use std::rc::Rc;

use super::state::{Pace, Shared};
use super::values::{Answer, badly, bytes_of, number_of, well};
use bytes::{Buf, BufMut, Bytes};
use mlua::{Lua, MultiValue, Table, Value as LuaValue};

/// How deep values are nested at most; deeper ones are written as nil.
const NESTED_MAX: usize = 16;
/// How deep values are read at most.
const READ_NESTED_MAX: usize = 200;

#[expect(clippy::cast_possible_truncation, reason = "each is checked against its bound")]
fn put_integer(number: i64, whole: &mut Vec<u8>) {
    match number {
        0..=0x7f => whole.put_u8(number as u8),
        -32..0 => whole.put_i8(number as i8),
        0x80..=0xff => whole.put_slice(&[0xcc, number as u8]),
        0x100..=0xffff => {
            whole.put_u8(0xcd);
            whole.put_u16(number as u16);
        }
        0x1_0000..=0xffff_ffff => {
            whole.put_u8(0xce);
            whole.put_u32(number as u32);
        }
        0x1_0000_0000.. => {
            whole.put_u8(0xcf);
            whole.put_u64(number.cast_unsigned());
        }
        -128..-32 => {
            whole.put_u8(0xd0);
            whole.put_i8(number as i8);
        }
        -32_768..-128 => {
            whole.put_u8(0xd1);
            whole.put_i16(number as i16);
        }
        -2_147_483_648..-32_768 => {
            whole.put_u8(0xd2);
            whole.put_i32(number as i32);
        }
        _ => {
            whole.put_u8(0xd3);
            whole.put_i64(number);
        }
    }
}

/// Writes a length after the mark of its size: short lengths are part of the mark.
#[expect(clippy::cast_possible_truncation, reason = "each is checked against its bound")]
fn put_len(len: usize, (short, short_max): (u8, usize), marks: [u8; 3], whole: &mut Vec<u8>) {
    match len {
        len if len < short_max => whole.put_u8(short | len as u8),
        0..=0xff if marks[0] != 0 => whole.put_slice(&[marks[0], len as u8]),
        0x100..=0xffff => {
            whole.put_u8(marks[1]);
            whole.put_u16(len as u16);
        }
        len => {
            whole.put_u8(marks[2]);
            whole.put_u32(len as u32);
        }
    }
}

fn list_len(table: &Table) -> Option<usize> {
    let (mut highest, mut count) = (0, 0);
    for pair in table.pairs::<LuaValue, LuaValue>() {
        let at = match pair.ok()?.0 {
            LuaValue::Integer(at) => usize::try_from(at).ok()?,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is whole"
            )]
            LuaValue::Number(at) if at.fract() == 0.0 && at > 0.0 => at as usize,
            _ => return None,
        };
        highest = highest.max(at);
        count += 1;
    }
    (highest == count).then_some(count)
}

fn write(
    value: &LuaValue,
    whole: &mut Vec<u8>,
    (longest, pace): (usize, &mut Pace),
    depth: usize,
) -> Result<(), String> {
    pace.passes()?;
    if whole.len() > longest {
        return Err(format!("more than {longest} bytes"));
    }
    match value {
        LuaValue::Boolean(yes) => whole.put_u8(if *yes { 0xc3 } else { 0xc2 }),
        LuaValue::Integer(number) => put_integer(*number, whole),
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and in bounds")]
        LuaValue::Number(number) if number.fract() == 0.0 && number.abs() < 9e18 => {
            put_integer(*number as i64, whole);
        }
        LuaValue::Number(number) => {
            #[expect(clippy::cast_possible_truncation, reason = "that is what is tried")]
            let short = *number as f32;
            if f64::from(short) == *number {
                whole.put_u8(0xca);
                whole.put_f32(short);
            } else {
                whole.put_u8(0xcb);
                whole.put_f64(*number);
            }
        }
        LuaValue::String(text) => {
            put_len(text.as_bytes().len(), (0xa0, 32), [0xd9, 0xda, 0xdb], whole);
            whole.put_slice(&text.as_bytes());
        }
        LuaValue::Table(table) if depth < NESTED_MAX => match list_len(table) {
            Some(len) => {
                put_len(len, (0x90, 16), [0, 0xdc, 0xdd], whole);
                for at in 1..=len {
                    let value: LuaValue = table.raw_get(at).unwrap_or(LuaValue::Nil);
                    write(&value, whole, (longest, &mut *pace), depth + 1)?;
                }
            }
            None => {
                let pairs: Vec<(LuaValue, LuaValue)> =
                    table.pairs().filter_map(Result::ok).collect();
                put_len(pairs.len(), (0x80, 16), [0, 0xde, 0xdf], whole);
                for (key, value) in &pairs {
                    write(key, whole, (longest, &mut *pace), depth + 1)?;
                    write(value, whole, (longest, &mut *pace), depth + 1)?;
                }
            }
        },
        _ => whole.put_u8(0xc0),
    }
    Ok(())
}

fn short() -> String {
    "Missing bytes in input.".into()
}

fn read_string(lua: &Lua, text: &mut Bytes, len: usize) -> Result<LuaValue, String> {
    if len > text.len() {
        return Err(short());
    }
    lua.create_string(text.split_to(len)).map(LuaValue::String).map_err(|error| error.to_string())
}

#[expect(clippy::cast_precision_loss, reason = "numbers in Lua 5.1 are of this kind")]
fn read(lua: &Lua, text: &mut Bytes, depth: usize) -> Result<LuaValue, String> {
    if depth > READ_NESTED_MAX {
        return Err("Bad data format in input.".into());
    }
    let missing = |_| short();
    let number = |number: f64| Ok(LuaValue::Number(number));
    let first = text.try_get_u8().map_err(missing)?;
    let low = |mask: u8| usize::from(first & mask);
    let mut len = |size: u8| -> Result<usize, String> {
        Ok(match size {
            1 => usize::from(text.try_get_u8().map_err(missing)?),
            2 => usize::from(text.try_get_u16().map_err(missing)?),
            _ => text.try_get_u32().map_err(missing)? as usize,
        })
    };
    match first {
        0..=0x7f => number(f64::from(first)),
        0xe0..=0xff => number(f64::from(first.cast_signed())),
        0x80..=0x8f => read_map(lua, text, low(0x0f), depth),
        0x90..=0x9f => read_list(lua, text, low(0x0f), depth),
        0xa0..=0xbf => read_string(lua, text, low(0x1f)),
        0xc0 => Ok(LuaValue::Nil),
        0xc2 => Ok(LuaValue::Boolean(false)),
        0xc3 => Ok(LuaValue::Boolean(true)),
        0xca => number(f64::from(text.try_get_f32().map_err(missing)?)),
        0xcb => number(text.try_get_f64().map_err(missing)?),
        0xcc => number(f64::from(text.try_get_u8().map_err(missing)?)),
        0xcd => number(f64::from(text.try_get_u16().map_err(missing)?)),
        0xce => number(f64::from(text.try_get_u32().map_err(missing)?)),
        0xcf => number(text.try_get_u64().map_err(missing)? as f64),
        0xd0 => number(f64::from(text.try_get_i8().map_err(missing)?)),
        0xd1 => number(f64::from(text.try_get_i16().map_err(missing)?)),
        0xd2 => number(f64::from(text.try_get_i32().map_err(missing)?)),
        0xd3 => number(text.try_get_i64().map_err(missing)? as f64),
        0xc4 | 0xd9 => len(1).and_then(|len| read_string(lua, text, len)),
        0xc5 | 0xda => len(2).and_then(|len| read_string(lua, text, len)),
        0xc6 | 0xdb => len(4).and_then(|len| read_string(lua, text, len)),
        0xdc => len(2).and_then(|len| read_list(lua, text, len, depth)),
        0xdd => len(4).and_then(|len| read_list(lua, text, len, depth)),
        0xde => len(2).and_then(|len| read_map(lua, text, len, depth)),
        0xdf => len(4).and_then(|len| read_map(lua, text, len, depth)),
        _ => Err("Bad data format in input.".into()),
    }
}

fn read_list(lua: &Lua, text: &mut Bytes, len: usize, depth: usize) -> Result<LuaValue, String> {
    let said = |error: mlua::Error| error.to_string();
    let table = lua.create_table().map_err(said)?;
    for at in 1..=len {
        let value = read(lua, text, depth + 1)?;
        table.raw_set(at, value).map_err(said)?;
    }
    Ok(LuaValue::Table(table))
}

fn read_map(lua: &Lua, text: &mut Bytes, len: usize, depth: usize) -> Result<LuaValue, String> {
    let said = |error: mlua::Error| error.to_string();
    let table = lua.create_table().map_err(said)?;
    for _ in 0..len {
        let (key, value) = (read(lua, text, depth + 1)?, read(lua, text, depth + 1)?);
        table.raw_set(key, value).map_err(said)?;
    }
    Ok(LuaValue::Table(table))
}

/// Adds the library to the host's table for the prelude.
pub(super) fn offer(lua: &Lua, host: &Table, state: &Shared) -> mlua::Result<()> {
    let own = Rc::clone(state);
    let pack = lua.create_function(move |lua, args: MultiValue| {
        if args.is_empty() {
            return badly(lua, "bad argument #0 to 'pack' (MessagePack pack needs input.)");
        }
        let (mut whole, longest) = (Vec::new(), own.borrow().bounds.text);
        let written = Pace::begin(&own).and_then(|mut pace| {
            args.iter().try_for_each(|value| write(value, &mut whole, (longest, &mut pace), 0))
        });
        own.borrow_mut().makes(whole.len());
        if let Err(why) = written {
            return badly(lua, why);
        }
        well([LuaValue::String(lua.create_string(whole)?)])
    })?;
    host.raw_set("msgpack_pack", pack)?;
    let own = Rc::clone(state);
    let unpack = lua.create_function(move |lua, args: MultiValue| {
        if let Err(why) = Pace::begin(&own) {
            return badly(lua, why);
        }
        let Some(mut text) = bytes_of(args.front()) else {
            return badly(lua, "bad argument #1 to 'unpack' (string expected)");
        };
        let mut values = Vec::new();
        while text.has_remaining() {
            match read(lua, &mut text, 0) {
                Ok(value) => values.push(value),
                Err(why) => return badly(lua, why),
            }
        }
        well(values)
    })?;
    host.raw_set("msgpack_unpack", unpack)?;
    let own = Rc::clone(state);
    let one = lua.create_function(move |lua, args: MultiValue| {
        unpack_some((lua, &own), "unpack_one", args.front(), 1, number_of(args.get(1)))
    })?;
    host.raw_set("msgpack_unpack_one", one)?;
    let own = Rc::clone(state);
    let limited = lua.create_function(move |lua, args: MultiValue| {
        let Some(limit) = number_of(args.get(1)).filter(|limit| *limit >= 0.0) else {
            return badly(lua, "bad argument #2 to 'unpack_limit' (a number from 0 on expected)");
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is not below 0"
        )]
        let limit = limit as usize;
        unpack_some((lua, &own), "unpack_limit", args.front(), limit, number_of(args.get(2)))
    })?;
    host.raw_set("msgpack_unpack_limit", limited)
}

/// Reads some values from a place on; the first result is the place after them, or -1 at the end.
fn unpack_some(
    (lua, state): (&Lua, &Shared),
    name: &str,
    text: Option<&LuaValue>,
    limit: usize,
    offset: Option<f64>,
) -> Answer {
    let Some(mut text) = bytes_of(text) else {
        return badly(lua, format!("bad argument #1 to '{name}' (string expected)"));
    };
    if let Err(why) = Pace::begin(state) {
        return badly(lua, why);
    }
    let len = text.len();
    let offset = offset.unwrap_or(0.0);
    #[expect(clippy::cast_precision_loss, reason = "a text is not that long")]
    if !(0.0..=len as f64).contains(&offset) {
        return badly(lua, format!("Start offset {offset} greater than input length {len}."));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is a place in the text"
    )]
    text.advance(offset as usize);
    let mut values = vec![LuaValue::Nil];
    while text.has_remaining() && values.len() <= limit {
        match read(lua, &mut text, 0) {
            Ok(value) => values.push(value),
            Err(why) => return badly(lua, why),
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a text is not that long")]
    let behind = if text.has_remaining() { (len - text.len()) as f64 } else { -1.0 };
    values[0] = LuaValue::Number(behind);
    well(values)
}
