//! Values of Lua as host functions take and return them, and the errors of those functions.

use bytes::Bytes;
use mlua::{Either, Lua, MultiValue, Value as LuaValue};

/// The name that Redis gives a script's text in errors.
pub(super) const SOURCE: &str = "@user_script";

/// The error for a text that would be too long.
pub(super) const TOO_LARGE: &str = "resulting string too large";

/// The result of a host function: values, or an error. Scripts call the function directly: a Lua
/// function around it would, as a script's tail call, take the place that errors name.
pub(super) type Answer = mlua::Result<MultiValue>;

#[expect(clippy::unnecessary_wraps, reason = "it is an answer")]
pub(super) fn well(values: impl IntoIterator<Item = LuaValue>) -> Answer {
    Ok(values.into_iter().collect())
}

/// An error of a host function in the form of Lua's own libraries: with the place in the script.
pub(super) fn badly(lua: &Lua, why: impl AsRef<str>) -> Answer {
    Err(mlua::Error::external(HostFailed(format!("{}{}", position(lua), why.as_ref()))))
}

/// Why a host function failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct HostFailed(String);

/// A text on its way to Lua, which takes the common kind without a value in between.
pub(super) fn text_for<'a>(lua: &Lua, text: &'a [u8]) -> mlua::Result<Either<&'a str, LuaValue>> {
    Ok(match std::str::from_utf8(text) {
        Ok(text) => Either::Left(text),
        Err(_) => Either::Right(LuaValue::String(lua.create_string(text)?)),
    })
}

/// The bytes of a string, or of a number as Lua writes it.
pub(super) fn bytes_of(value: Option<&LuaValue>) -> Option<Bytes> {
    match value? {
        LuaValue::String(text) => Some(Bytes::copy_from_slice(&text.as_bytes())),
        LuaValue::Integer(number) => Some(Bytes::from(number.to_string())),
        LuaValue::Number(number) => Some(Bytes::from(lua_number(*number))),
        _ => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers in Lua 5.1 are of this kind")]
pub(super) fn number_of(value: Option<&LuaValue>) -> Option<f64> {
    match value? {
        LuaValue::Integer(number) => Some(*number as f64),
        LuaValue::Number(number) => Some(*number),
        LuaValue::String(text) => std::str::from_utf8(&text.as_bytes()).ok()?.trim().parse().ok(),
        _ => None,
    }
}

/// A number as Lua writes it: `%.14g`.
pub(super) fn lua_number(number: f64) -> String {
    in_digits(number, 14)
}

/// A number with at most so many digits, from 1 to 17: as C's `%g` prints it.
pub(super) fn in_digits(number: f64, digits: usize) -> String {
    if number.is_nan() {
        return if number.is_sign_negative() { "-nan".into() } else { "nan".into() };
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    if number == 0.0 {
        return if number.is_sign_negative() { "-0".into() } else { "0".into() };
    }
    let scientific = format!("{number:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    let last = i32::try_from(digits).unwrap_or(i32::MAX);
    if !(-4..last).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trimmed(mantissa), exponent.abs());
    }
    let behind = usize::try_from(last - 1 - exponent).unwrap_or_default();
    trimmed(&format!("{number:.behind$}"))
}

pub(super) fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The place in a script with which errors begin.
pub(super) fn position(lua: &Lua) -> String {
    place(lua).map_or_else(String::new, |(_, line)| format!("user_script:{line}: "))
}

/// The place at which the script is: its name and line.
pub(super) fn place(lua: &Lua) -> Option<(String, usize)> {
    for level in 0..64 {
        let found = lua.inspect_stack(level, |debug| {
            let source = debug.source().source.map(|source| source.into_owned());
            source.filter(|source| source == SOURCE).zip(debug.current_line())
        })?;
        if found.is_some() {
            return found;
        }
    }
    None
}
