//! Functions on strings that Lua's own library performs without bounds.

use std::rc::Rc;

use bytes::Bytes;
use mlua::{Lua, MultiValue, Table, Value as LuaValue};

use super::patterns::{Capture, Found, is_plain, search};
use super::state::{Pace, Shared};
use super::values::{Answer, TOO_LARGE, badly, bytes_of, number_of, well};

/// The place in a text that an argument names, counted from the end where below 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "it is cut to the text"
)]
fn place(value: Option<&LuaValue>, len: usize) -> usize {
    let at = number_of(value).unwrap_or(1.0).trunc();
    let at = if at < 0.0 { (len as f64 + at + 1.0).max(1.0) } else { at.max(1.0) };
    (at - 1.0).min(len as f64 + 1.0) as usize
}

fn captured(lua: &Lua, text: &[u8], found: &Found) -> mlua::Result<Vec<LuaValue>> {
    found
        .captures
        .iter()
        .map(|capture| match *capture {
            Capture::Part(from, to) => lua.create_string(&text[from..to]).map(LuaValue::String),
            Capture::Place(at) => Ok(number(at + 1)),
        })
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "numbers in Lua 5.1 are of this kind")]
fn number(at: usize) -> LuaValue {
    LuaValue::Number(at as f64)
}

fn two_texts(args: &MultiValue, name: &str) -> Result<(Bytes, Bytes), String> {
    let text = |at: usize| {
        let got = args.get(at).map_or("no value", LuaValue::type_name);
        bytes_of(args.get(at)).ok_or_else(|| {
            format!("bad argument #{} to '{name}' (string expected, got {got})", at + 1)
        })
    };
    Ok((text(0)?, text(1)?))
}

/// `string.find` and `string.match`.
fn look_for(lua: &Lua, state: &Shared, args: &MultiValue, is_find: bool) -> Answer {
    let (text, pattern) = match two_texts(args, if is_find { "find" } else { "match" }) {
        Ok(two) => two,
        Err(why) => return badly(lua, why),
    };
    if let Err(why) = Pace::begin(state) {
        return badly(lua, why);
    }
    // As in Lua 5.1: a start behind the end of the text counts as its end.
    let at = place(args.get(2), text.len()).min(text.len());
    let asked_plain = matches!(args.get(3), Some(value) if !matches!(value, LuaValue::Nil | LuaValue::Boolean(false)));
    if is_find && (asked_plain || is_plain(&pattern)) {
        let found = memchr::memmem::find(&text[at..], &pattern).map(|found| found + at);
        return match found {
            Some(start) => well([number(start + 1), number(start + pattern.len())]),
            None => well([LuaValue::Nil]),
        };
    }
    let mut steps = state.borrow().search_steps;
    let found = search(&text, &pattern, at, false, &mut steps);
    state.borrow_mut().searched(steps);
    match found {
        Err(why) => badly(lua, why),
        Ok(None) => well([LuaValue::Nil]),
        Ok(Some(found)) => {
            let captures = captured(lua, &text, &found)?;
            // The places that `find` returns describe the whole match already.
            let whole = found.captures == [Capture::Part(found.start, found.end)]
                && !pattern.contains(&b'(');
            if !is_find {
                return well(captures);
            }
            let places = [number(found.start + 1), number(found.end)];
            well(places.into_iter().chain(if whole { Vec::new() } else { captures }))
        }
    }
}

/// `string.gsub` by a string.
fn replace(
    args: &MultiValue,
    steps: &mut u64,
    longest: usize,
    mut pace: Pace,
) -> Result<(Vec<u8>, usize), String> {
    let (text, pattern) = two_texts(args, "gsub")?;
    let by = bytes_of(args.get(2)).unwrap_or_default();
    let most = number_of(args.get(3)).unwrap_or(f64::INFINITY);
    let (mut whole, mut count, mut at) = (Vec::new(), 0, 0);
    #[expect(clippy::cast_precision_loss, reason = "a text is not that long")]
    while (count as f64) < most {
        pace.passes()?;
        let found = search(&text, &pattern, at, true, steps)?;
        if let Some(found) = &found {
            count += 1;
            put_replacement(&mut whole, &text, &by, found)?;
            if whole.len() > longest {
                return Err(TOO_LARGE.into());
            }
        }
        match found {
            Some(found) if found.end > at => at = found.end,
            _ if at < text.len() => {
                whole.push(text[at]);
                at += 1;
            }
            _ => break,
        }
        if pattern.first() == Some(&b'^') {
            break;
        }
    }
    whole.extend_from_slice(text.get(at..).unwrap_or_default());
    Ok((whole, count))
}

fn put_replacement(
    whole: &mut Vec<u8>,
    text: &[u8],
    by: &[u8],
    found: &Found,
) -> Result<(), String> {
    let mut rest = by.iter();
    while let Some(byte) = rest.next() {
        if *byte != b'%' {
            whole.push(*byte);
            continue;
        }
        match rest.next() {
            Some(b'0') => whole.extend_from_slice(&text[found.start..found.end]),
            Some(digit) if digit.is_ascii_digit() => {
                match found.captures.get(usize::from(digit - b'1')) {
                    Some(Capture::Part(from, to)) => whole.extend_from_slice(&text[*from..*to]),
                    Some(Capture::Place(at)) => {
                        whole.extend_from_slice((at + 1).to_string().as_bytes());
                    }
                    None => return Err("invalid capture index".into()),
                }
            }
            Some(other) => whole.push(*other),
            None => whole.push(b'\0'),
        }
    }
    Ok(())
}

fn offer_gsub(lua: &Lua, host: &Table, state: &Shared) -> mlua::Result<()> {
    let own = Rc::clone(state);
    let gsub = lua.create_function(move |lua, args: MultiValue| {
        let (mut steps, longest) = (own.borrow().search_steps, own.borrow().bounds.text);
        let replaced = Pace::begin(&own).and_then(|pace| replace(&args, &mut steps, longest, pace));
        own.borrow_mut().searched(steps);
        match replaced {
            Ok((whole, count)) => {
                well([LuaValue::String(lua.create_string(whole)?), number(count)])
            }
            Err(why) => {
                if why == TOO_LARGE {
                    own.borrow_mut().outgrows();
                }
                badly(lua, why)
            }
        }
    })?;
    host.raw_set("gsub", gsub)
}

/// Adds these functions to the host's table for the prelude.
pub(super) fn offer(lua: &Lua, host: &Table, state: &Shared) -> mlua::Result<()> {
    for (name, is_find) in [("find", true), ("match", false)] {
        let own = Rc::clone(state);
        let look =
            lua.create_function(move |lua, args: MultiValue| look_for(lua, &own, &args, is_find))?;
        host.raw_set(name, look)?;
    }
    offer_gsub(lua, host, state)?;
    let own = Rc::clone(state);
    // One step of a longer search: where it begins and ends, counted from 0, and what it captured.
    let step = lua.create_function(move |lua, args: MultiValue| {
        let (text, pattern) = match two_texts(&args, "gmatch") {
            Ok(two) => two,
            Err(why) => return badly(lua, why),
        };
        if let Err(why) = Pace::begin(&own) {
            return badly(lua, why);
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is a place in a text"
        )]
        let at = number_of(args.get(2)).unwrap_or_default().max(0.0) as usize;
        let fixed = matches!(args.get(3), Some(LuaValue::Boolean(true)));
        let mut steps = own.borrow().search_steps;
        let found = search(&text, &pattern, at, fixed, &mut steps);
        own.borrow_mut().searched(steps);
        match found {
            Err(why) => badly(lua, why),
            Ok(None) => well([LuaValue::Nil]),
            Ok(Some(found)) => {
                let places = [number(found.start), number(found.end)];
                well(places.into_iter().chain(captured(lua, &text, &found)?))
            }
        }
    })?;
    host.raw_set("step", step)?;
    let own = Rc::clone(state);
    let rep = lua.create_function(move |lua, args: MultiValue| {
        if let Err(why) = Pace::begin(&own) {
            return badly(lua, why);
        }
        let count = number_of(args.get(1));
        let (Some(text), Some(count)) = (bytes_of(args.front()), count) else {
            return badly(lua, "bad argument to 'rep' (a string and a number expected)");
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is bounded next"
        )]
        let count = count.max(0.0) as usize;
        if text.is_empty() || count == 0 {
            return well([LuaValue::String(lua.create_string("")?)]);
        }
        let len = text.len().saturating_mul(count);
        own.borrow_mut().makes(len);
        if len > own.borrow().bounds.text {
            return badly(lua, TOO_LARGE);
        }
        well([LuaValue::String(lua.create_string(text.repeat(count))?)])
    })?;
    host.raw_set("rep", rep)?;
    let text_of = lua.create_function(|lua, args: MultiValue| match bytes_of(args.front()) {
        Some(text) => well([LuaValue::String(lua.create_string(text)?)]),
        None => {
            let name = bytes_of(args.get(1)).unwrap_or_default();
            let name = String::from_utf8_lossy(&name).into_owned();
            badly(lua, format!("bad argument #1 to '{name}' (string expected)"))
        }
    })?;
    host.raw_set("text_of", text_of)
}

#[cfg(test)]
mod tests {
    use crate::redis::script::values::lua_number;

    #[test]
    fn numbers_are_written_as_lua_writes_them() {
        for (number, text) in [
            (1.0, "1"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e15, "1e+15"),
            (123_456_789_012_345.0, "1.2345678901234e+14"),
            (1e-5, "1e-05"),
            (3.999_999_999_999_999_9, "4"),
            (10_000_000_000_000.0, "10000000000000"),
        ] {
            assert_eq!(lua_number(number), text);
        }
    }
}
