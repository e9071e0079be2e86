//! The `bit` library: operations on 32 bits.

use mlua::{Lua, MultiValue, Table, Value as LuaValue};

use super::lua::{badly, bytes_of, number_of, well};

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

/// Adds it to what the prelude gets.
pub(super) fn offer(lua: &Lua, host: &Table) -> mlua::Result<()> {
    let bit = lua.create_function(|lua, args: MultiValue| {
        let name = bytes_of(args.front()).unwrap_or_default();
        let numbers: Option<Vec<f64>> =
            args.iter().skip(1).map(|value| number_of(Some(value))).collect();
        let (Some(numbers), Some(first)) = (numbers, number_of(args.get(1))) else {
            let name = String::from_utf8_lossy(&name).into_owned();
            return badly(lua, format!("bad argument #1 to '{name}' (number expected)"));
        };
        let first = bits(first);
        let rest = || numbers[1..].iter().map(|number| bits(*number));
        let by = rest().next().unwrap_or(0) & 31;
        well([match &name[..] {
            b"bnot" => number(!first),
            b"band" => number(rest().fold(first, |a, b| a & b)),
            b"bor" => number(rest().fold(first, |a, b| a | b)),
            b"bxor" => number(rest().fold(first, |a, b| a ^ b)),
            b"lshift" => number(first << by),
            b"rshift" => number(first >> by),
            b"arshift" => number((first.cast_signed() >> by).cast_unsigned()),
            b"rol" => number(first.rotate_left(by)),
            b"ror" => number(first.rotate_right(by)),
            b"bswap" => number(first.swap_bytes()),
            b"tohex" => {
                let digits = numbers.get(1).copied().unwrap_or(8.0);
                LuaValue::String(lua.create_string(hex(first, digits))?)
            }
            _ => number(first),
        }])
    })?;
    host.raw_set("bit", bit)
}
