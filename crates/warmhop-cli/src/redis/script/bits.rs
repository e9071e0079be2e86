//! The `bit` library: operations on 32 bits.

use super::values::{badly, number_of, well};
use mlua::{Lua, MultiValue, Table, Value as LuaValue};

const NAMES: [&str; 12] = [
    "tobit", "bnot", "band", "bor", "bxor", "lshift", "rshift", "arshift", "rol", "ror", "bswap",
    "tohex",
];

/// A number's lowest 32 bits.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "that is what it is for"
)]
fn bits(number: f64) -> u32 {
    if number.is_finite() {
        number.round_ties_even().rem_euclid(4_294_967_296.0) as u64 as u32
    } else {
        0
    }
}

fn number(bits: u32) -> LuaValue {
    LuaValue::Number(f64::from(bits.cast_signed()))
}

fn hex(bits: u32, digits: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is bounded")]
    let len = digits.abs().clamp(0.0, 8.0) as usize;
    let text = format!("{bits:08x}");
    let text = text[8 - len..].to_owned();
    if digits < 0.0 { text.to_uppercase() } else { text }
}

/// Adds the library to the host's table for the prelude.
pub(super) fn offer(lua: &Lua, host: &Table) -> mlua::Result<()> {
    let bit = lua.create_table()?;
    for name in NAMES {
        let one = lua.create_function(move |lua, args: MultiValue| {
            let wrong = args.iter().position(|value| number_of(Some(value)).is_none());
            if let Some(at) = wrong.or(args.is_empty().then_some(0)) {
                let got = args.get(at).map_or("no value", LuaValue::type_name);
                let why = format!("number expected, got {got}");
                return badly(lua, format!("bad argument #{} to '{name}' ({why})", at + 1));
            }
            let numbers: Vec<f64> =
                args.iter().filter_map(|value| number_of(Some(value))).collect();
            well([operate(lua, name, &numbers)?])
        })?;
        bit.raw_set(name, one)?;
    }
    host.raw_set("bit", bit)
}

/// The result of an operation on one or more numbers.
fn operate(lua: &Lua, name: &str, numbers: &[f64]) -> mlua::Result<LuaValue> {
    let first = bits(numbers.first().copied().unwrap_or_default());
    let rest = || numbers.iter().skip(1).map(|number| bits(*number));
    let by = rest().next().unwrap_or(0) & 31;
    Ok(match name {
        "bnot" => number(!first),
        "band" => number(rest().fold(first, |a, b| a & b)),
        "bor" => number(rest().fold(first, |a, b| a | b)),
        "bxor" => number(rest().fold(first, |a, b| a ^ b)),
        "lshift" => number(first << by),
        "rshift" => number(first >> by),
        "arshift" => number((first.cast_signed() >> by).cast_unsigned()),
        "rol" => number(first.rotate_left(by)),
        "ror" => number(first.rotate_right(by)),
        "bswap" => number(first.swap_bytes()),
        "tohex" => {
            let digits = numbers.get(1).copied().unwrap_or(8.0);
            LuaValue::String(lua.create_string(hex(first, digits))?)
        }
        _ => number(first),
    })
}
