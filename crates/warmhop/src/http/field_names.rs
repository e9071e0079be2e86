//! Reads along in a block of fields of HTTP/2 (HPACK, RFC 7541 section 6) just far enough to notice a
//! name that begins with a colon: the h2 crate drops pseudo fields in trailers, where RFC 9113 section
//! 8.1 has them malformed.
//!
//! It keeps no dynamic table. So a field that repeats a whole pseudo field of an earlier head, by its
//! number in that table, is not noticed, but dropped as ever.

/// The entries of the static table whose names begin with a colon (RFC 7541 appendix A).
const PSEUDO: std::ops::RangeInclusive<u8> = 1..=14;
/// A colon in the Huffman code (RFC 7541 appendix B): seven bits.
const CODED_COLON: u8 = 0b101_1100;

/// The position of the next byte in a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum FieldNames {
    /// At the beginning of a field.
    #[default]
    Field,
    /// In a number that takes several bytes; then comes `next`.
    Number { next: Next, coded: bool, value: u64, shift: u32 },
    /// At the length of a name or a value.
    Length { is_name: bool },
    /// At the first byte of a name.
    Name { coded: bool, left: u64 },
    /// In a text; then comes a value, or the next field.
    Text { left: u64, then_value: bool },
}

/// What follows a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Field,
    Value,
    TextOfName,
    TextOfValue,
}

impl FieldNames {
    /// Whether the byte is that by which a field turns out to have such a name. Goes on behind it.
    pub(crate) fn is_pseudo(&mut self, byte: u8) -> bool {
        match *self {
            Self::Field => return self.begins_field(byte),
            Self::Number { next, coded, value, shift } => {
                // A number that is too long for the h2 crate ends the connection there.
                let more = u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(u64::MAX);
                let value = value.saturating_add(more);
                *self = match byte & 0x80 {
                    0 => Self::behind(next, coded, value),
                    _ => Self::Number { next, coded, value, shift: shift.saturating_add(7) },
                };
            }
            Self::Length { is_name } => {
                let (coded, length) = (byte & 0x80 != 0, byte & 0x7f);
                let next = if is_name { Next::TextOfName } else { Next::TextOfValue };
                *self = match length {
                    0x7f => Self::Number { next, coded, value: 0x7f, shift: 0 },
                    length => Self::behind(next, coded, length.into()),
                };
            }
            Self::Name { coded, left } => {
                let is_colon = if coded { byte >> 1 == CODED_COLON } else { byte == b':' };
                *self = Self::text(left - 1, true);
                return is_colon;
            }
            Self::Text { left, then_value } => *self = Self::text(left - 1, then_value),
        }
        false
    }

    fn begins_field(&mut self, byte: u8) -> bool {
        let (most, next) = match byte {
            0x80.. => (0x7f, Next::Field),
            0x40.. => (0x3f, Next::Value),
            // The size of the dynamic table changes.
            0x20.. => (0x1f, Next::Field),
            _ => (0x0f, Next::Value),
        };
        let index = byte & most;
        *self = match index {
            0 if next == Next::Value => Self::Length { is_name: true },
            index if index == most => {
                Self::Number { next, coded: false, value: index.into(), shift: 0 }
            }
            _ => Self::behind(next, false, 0),
        };
        let names_one = index != most && PSEUDO.contains(&index);
        names_one && !(0x20..0x40).contains(&byte)
    }

    fn behind(next: Next, coded: bool, value: u64) -> Self {
        match next {
            Next::Field => Self::Field,
            Next::Value => Self::Length { is_name: false },
            Next::TextOfName if value > 0 => Self::Name { coded, left: value },
            Next::TextOfName => Self::Length { is_name: false },
            Next::TextOfValue => Self::text(value, false),
        }
    }

    fn text(left: u64, then_value: bool) -> Self {
        match (left, then_value) {
            (0, true) => Self::Length { is_name: false },
            (0, false) => Self::Field,
            (left, then_value) => Self::Text { left, then_value },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finds(block: &[u8]) -> Option<usize> {
        let mut names = FieldNames::default();
        block.iter().position(|byte| names.is_pseudo(*byte))
    }

    #[test]
    fn a_pseudo_field_is_noticed_in_each_form_and_no_other_field() {
        let long = [&[0x00, 0x01, b'a', 0x7f, 0x49][..], &[b':'; 200], &[0x84]].concat();
        for (block, at) in [
            // By its number, with its value or without.
            (&[0x84][..], Some(0)),
            (&[0x88], Some(0)),
            (&[0x44, 0x05, b'/', b'e', b'v', b'i', b'l'], Some(0)),
            (&[0x01, 0x01, b'a'], Some(0)),
            (&[0x11, 0x01, b'a'], Some(0)),
            // By its name.
            (b"\x00\x05:path\x01/", Some(2)),
            (b"\x40\x04:foo\x01/", Some(2)),
            (&[0x00, 0x84, 0xb9, 0x58, 0xd3, 0x3f, 0x01, b'/'], Some(2)),
            (b"\x00\x01x\x011\x10\x01:\x00", Some(7)),
            (b"\x0f\x2f\x021:\x84", Some(5)),
            (&long, Some(205)),
            // None of them.
            (b"", None),
            (b"\x00\x01x\x02:a\x0f\x0d\x03:::", None),
            (b"\x00\x00\x01:", None),
            (&[0x3f, 0x04, 0x22, 0xbe, 0x8f, 0xff, 0x00, 0x90], None),
            (&[0x40, 0x82, 0xf3, 0xd8, 0x81, 0xb9], None),
            (&[0x7f, 0x84, 0x00, 0x01, b':'], None),
            (&[0x00, 0x7f], None),
        ] {
            assert_eq!(finds(block), at, "{block:x?}");
        }
        // However long a number claims to be.
        let mut names = FieldNames::default();
        for _ in 0..1000 {
            assert!(!names.is_pseudo(0xff));
        }
    }
}
