//! Numbers as Redis reads and writes them.

/// Reads a number with a fraction, or an infinity. As in Redis, one that is too large to tell from an
/// infinity, or too small to tell from 0, is none.
pub(super) fn float(text: &[u8]) -> Option<f64> {
    let number = nearest_float(text)?;
    let mut mantissa = text.iter().take_while(|byte| !byte.eq_ignore_ascii_case(&b'e'));
    let fits = match number.abs() {
        0.0 => mantissa.all(|byte| matches!(byte, b'0' | b'.' | b'+' | b'-')),
        f64::INFINITY => !text.iter().any(u8::is_ascii_digit),
        _ => true,
    };
    fits.then_some(number)
}

/// As [`float`], but of a number out of bounds, what is nearest to it.
pub(super) fn nearest_float(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?;
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_number = digits.starts_with(|first: char| first.is_ascii_digit() || first == '.');
    let is_infinite = ["inf", "infinity"].iter().any(|it| digits.eq_ignore_ascii_case(it));
    (is_number || is_infinite).then(|| text.parse().ok()).flatten()
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
/// Numbers below this, times the scale, can be added without overflow.
const SCALED_MAX: i128 = 1 << 120;

/// The decimal number in `text`, times ten to the power of [`SCALE_DIGITS`].
fn scaled(text: &str) -> Option<i128> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if fraction.len() > SCALE_DIGITS || whole.len() + fraction.len() == 0 {
        return None;
    }
    let mut number: i128 = 0;
    let zeros = std::iter::repeat_n(b'0', SCALE_DIGITS - fraction.len());
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
    let sum = float(one)? + float(other)?;
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
            ("0x10", None),
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
        ] {
            assert_eq!(sum(one.as_bytes(), other.as_bytes()).unwrap(), expected);
        }
        assert_eq!(sum(b"x", b"1"), None);
        assert_eq!(sum(b"inf", b"1"), None);
    }
}
