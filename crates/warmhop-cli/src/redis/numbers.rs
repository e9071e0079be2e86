//! Numbers as Redis reads and writes them.

/// Reads a number with a fraction, or an infinity. As in Redis, one that is too large to tell from an
/// infinity, or too small to tell from 0, is none.
pub(super) fn float(text: &[u8]) -> Option<f64> {
    float_from_zero(text).filter(|number| *number != 0.0 || is_zero(text))
}

/// As [`float`], but one that is too small to tell from 0 is 0, as for Redis' numbers of 80 bits.
pub(super) fn float_from_zero(text: &[u8]) -> Option<f64> {
    nearest_float(text).filter(|number| number.is_finite() || !text.iter().any(u8::is_ascii_digit))
}

/// As [`float`], but of a number out of bounds, what is nearest to it.
pub(super) fn nearest_float(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?;
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if let Some(digits) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        let number = hexadecimal(digits)?;
        return Some(if text.starts_with('-') { -number } else { number });
    }
    let is_number = digits.starts_with(|first: char| first.is_ascii_digit() || first == '.');
    let is_infinite = ["inf", "infinity"].iter().any(|it| digits.eq_ignore_ascii_case(it));
    (is_number || is_infinite).then(|| text.parse().ok()).flatten()
}

/// Whether a number that was read has no other digit than 0.
fn is_zero(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"+").or_else(|| text.strip_prefix(b"-")).unwrap_or(text);
    let is_hexadecimal = matches!(digits, [b'0', b'x' | b'X', ..]);
    let (digits, ends) = if is_hexadecimal { (&digits[2..], b'p') } else { (digits, b'e') };
    let mut mantissa = digits.iter().take_while(|byte| !byte.eq_ignore_ascii_case(&ends));
    mantissa.all(|byte| matches!(byte, b'0' | b'.'))
}

/// The bits of a mantissa that are read: the first of the others decides how it is rounded.
const MANTISSA_BITS: u32 = 60;

/// Reads what follows `0x`: hexadecimal digits, one of them behind a point or not, and an exponent of 2.
fn hexadecimal(text: &str) -> Option<f64> {
    let (digits, exponent) = match text.split_once(['p', 'P']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i64>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.len() + fraction.len() == 0 {
        return None;
    }
    let (mut mantissa, mut passed_over) = (0_u64, 0_i64);
    for digit in whole.chars().chain(fraction.chars()) {
        let digit = u64::from(digit.to_digit(16)?);
        if mantissa >> MANTISSA_BITS == 0 {
            mantissa = mantissa << 4 | digit;
        } else {
            // It only matters whether there is anything behind.
            mantissa |= u64::from(digit != 0);
            passed_over += 4;
        }
    }
    let behind = i64::try_from(fraction.len()).ok()?.checked_mul(4)?;
    let exponent = exponent.saturating_add(passed_over).saturating_sub(behind);
    // In steps that no power of two exceeds.
    let exponent = i32::try_from(exponent.clamp(-4000, 4000)).unwrap_or_default();
    let step = |number: f64, exponent: i32| number * 2_f64.powi(exponent);
    #[expect(clippy::cast_precision_loss, reason = "it is rounded as a number is that is read")]
    let number = mantissa as f64;
    Some(
        (0..5)
            .fold((number, exponent), |(number, left), _| {
                let taken = left.clamp(-1000, 1000);
                (step(number, taken), left - taken)
            })
            .0,
    )
}

/// Writes a number in as few digits as distinguish it from all others.
pub(super) fn double_text(number: f64) -> String {
    const WHOLE_MAX: f64 = 4_503_599_627_370_496.0;
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    if number.is_nan() {
        return "nan".into();
    }
    if number == number.trunc() && number.abs() <= WHOLE_MAX {
        return format!("{number:.0}");
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).count();
    let behind = exponent - i32::try_from(digits).unwrap_or_default() + 1;
    let plain = (behind >= 0 && exponent < i32::try_from(digits).unwrap_or_default() + 7)
        || (behind < 0 && (behind > -7 || exponent.abs() < 4));
    if plain { format!("{number}") } else { format!("{mantissa}e{exponent:+}") }
}

/// How many digits behind the point a sum has.
const SCALE_DIGITS: usize = 17;
/// More zeros than this behind a number's digits make it too large, unless it is 0.
const SCALED_DIGITS_MAX: usize = 40;
/// Numbers below this, times the scale, can be added without overflow.
const SCALED_MAX: i128 = 1 << 120;

/// The decimal number in `text`, times ten to the power of [`SCALE_DIGITS`].
fn scaled(text: &str) -> Option<i128> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, exponent) = match digits.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i32>().ok()?),
        None => (digits, 0),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.len() + fraction.len() == 0 {
        return None;
    }
    // How many zeros its digits lack; it has too many digits if that is negative.
    let behind = i32::try_from(fraction.len()).ok()?.checked_sub(exponent)?;
    let zeros = i32::try_from(SCALE_DIGITS).ok()?.checked_sub(behind)?;
    let zeros = usize::try_from(zeros).ok().filter(|zeros| *zeros <= SCALED_DIGITS_MAX)?;
    let mut number: i128 = 0;
    let zeros = std::iter::repeat_n(b'0', zeros);
    for digit in whole.bytes().chain(fraction.bytes()).chain(zeros) {
        let digit = char::from(digit).to_digit(10)?;
        number = number.checked_mul(10)?.checked_add(i128::from(digit))?;
    }
    (number < SCALED_MAX).then_some(sign * number)
}

/// The sum of two numbers in decimal notation, in the same notation. Redis adds them with more
/// digits than a 64-bit number has: 0.1 and 0.2 are 0.3. `None` if one is no number.
pub(super) fn sum(one: &[u8], other: &[u8]) -> Option<String> {
    let text = |bytes| std::str::from_utf8(bytes).ok();
    if let (Some(a), Some(b)) = (text(one).and_then(scaled), text(other).and_then(scaled)) {
        let sum = a + b;
        let sign = if sum < 0 { "-" } else { "" };
        let digits = format!("{:0width$}", sum.unsigned_abs(), width = SCALE_DIGITS + 1);
        let (whole, fraction) = digits.split_at(digits.len() - SCALE_DIGITS);
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        return Some(format!("{sign}{whole}{point}{fraction}"));
    }
    let sum = float_from_zero(one)? + float_from_zero(other)?;
    sum.is_finite().then(|| format!("{sum}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_redis_writes_them() {
        for (number, text) in [
            (3.0, "3"),
            (-0.5, "-0.5"),
            (0.1, "0.1"),
            (1e20, "1e+20"),
            (1.5e-9, "1.5e-9"),
            (f64::NEG_INFINITY, "-inf"),
            (1_700_000_000_123.0, "1700000000123"),
        ] {
            assert_eq!(double_text(number), text);
        }
    }

    #[test]
    fn a_number_out_of_bounds_is_none() {
        for (text, number) in [
            ("1e308", Some(1e308)),
            ("1e309", None),
            ("-1e309", None),
            ("1e-400", None),
            ("0e-400", Some(0.0)),
            ("-0.0", Some(0.0)),
            (".0e9", Some(0.0)),
            ("-inf", Some(f64::NEG_INFINITY)),
            ("0x10", Some(16.0)),
            ("-0X1.8p3", Some(-12.0)),
            ("0x1p-1074", Some(5e-324)),
            ("0x1p1023", Some(8.98846567431158e307)),
            ("0x1fffffffffffff8", Some(144_115_188_075_855_870.0)),
            ("0x0p9", Some(0.0)),
            ("0x1p1024", None),
            ("0x1p-2000", None),
            ("0x", None),
            ("0xp1", None),
            ("0x1p", None),
            ("0xg", None),
            (".", None),
        ] {
            assert_eq!(float(text.as_bytes()), number, "{text}");
        }
        assert_eq!(nearest_float(b"-1e309"), Some(f64::NEG_INFINITY));
    }

    #[test]
    fn decimal_numbers_are_added_exactly() {
        for (one, other, expected) in [
            ("0.1", "0.2", "0.3"),
            ("10.50", "0.1", "10.6"),
            ("5.0e3", "200", "5200"),
            ("-1", "0.5", "-0.5"),
            ("3", "-3.0", "0"),
            ("10", "1e17", "100000000000000010"),
            ("10", "1e18", "1000000000000000010"),
            ("1", "25e-1", "3.5"),
            ("10", "1e-400", "10"),
            ("0x10", "1", "17"),
        ] {
            assert_eq!(sum(one.as_bytes(), other.as_bytes()).unwrap(), expected);
        }
        assert_eq!(sum(b"x", b"1"), None);
        assert_eq!(sum(b"inf", b"1"), None);
    }
}
