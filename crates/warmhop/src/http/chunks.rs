//! Where a chunked body ends (RFC 9112 section 7.1), read as strictly as the strictest reader.
//!
//! Every line ends with CRLF, and neither byte occurs alone. A parser that accepts a lone LF as a
//! line's end, or skips one, disagrees with the next reader about what follows. So a body with a
//! lone CR or LF counts as malformed, and its connection is closed. The same goes for any other control
//! character but a tab in an extension or a trailer: neither can have one (RFC 9110 section 5.5, RFC
//! 9112 section 7.1.1), and a NUL ends the text for some readers.

/// The most digits of a chunk's size: 16 are all of 64 bits.
const SIZE_DIGITS_MAX: u8 = 16;

/// The position of the next byte in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunked {
    /// In a chunk's size, after so many digits.
    Size { size: u64, digits: u8 },
    /// In the blanks behind a size.
    Blank { size: u64 },
    /// In an extension.
    Extension { size: u64 },
    /// Before the LF that ends the size's line.
    SizeLf { size: u64 },
    /// In a chunk's bytes.
    Data { left: u64 },
    /// Before the CR behind a chunk's bytes.
    DataCr,
    /// Before its LF.
    DataLf,
    /// At the start of a line of the trailer section.
    TrailerStart,
    /// Within one.
    Trailer,
    /// Before the LF that ends one.
    TrailerLf,
    /// Before the LF that ends the body.
    EndLf,
}

/// What became of the bytes that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// All of them belong to the body.
    All(Chunked),
    /// This many belong to the body, which has ended.
    Ended(usize),
    /// This many belong to the body, and the next one is not allowed there.
    Malformed(usize),
}

impl Chunked {
    pub(crate) const START: Self = Self::Size { size: 0, digits: 0 };

    /// Reads on with `bytes`.
    pub(crate) fn read(mut self, bytes: &[u8]) -> Read {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if let Self::Data { left } = self {
                let take = left.min((bytes.len() - at) as u64);
                self = if take == left { Self::DataCr } else { Self::Data { left: left - take } };
                at += take as usize;
                continue;
            }
            match (self, byte) {
                (Self::EndLf, b'\n') => return Read::Ended(at + 1),
                _ => match self.step(byte) {
                    Some(next) => self = next,
                    None => return Read::Malformed(at),
                },
            }
            at += 1;
        }
        Read::All(self)
    }

    fn step(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Size { size, digits }, b'\r') if digits > 0 => Self::SizeLf { size },
            (Self::Size { size, digits }, b' ' | b'\t') if digits > 0 => Self::Blank { size },
            (Self::Size { size, digits }, b';') if digits > 0 => Self::Extension { size },
            (Self::Size { size, digits }, digit) if digits < SIZE_DIGITS_MAX => {
                let value = char::from(digit).to_digit(16)?;
                Self::Size { size: size << 4 | u64::from(value), digits: digits + 1 }
            }
            (Self::Blank { size } | Self::Extension { size }, b'\r') => Self::SizeLf { size },
            (Self::Blank { size }, b' ' | b'\t') => Self::Blank { size },
            (Self::Blank { size }, b';') => Self::Extension { size },
            (Self::Extension { size }, other) if is_text(other) => Self::Extension { size },
            (Self::SizeLf { size: 0 }, b'\n') => Self::TrailerStart,
            (Self::SizeLf { size }, b'\n') => Self::Data { left: size },
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::START,
            (Self::TrailerStart, b'\r') => Self::EndLf,
            (Self::Trailer, b'\r') => Self::TrailerLf,
            (Self::TrailerStart | Self::Trailer, other) if is_text(other) => Self::Trailer,
            (Self::TrailerLf, b'\n') => Self::TrailerStart,
            _ => return None,
        })
    }
}

/// Whether a line may have the byte before its end.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `text` in pieces of `step` bytes. Returns how many bytes belong to the body, and
    /// whether it ended.
    fn read(text: &[u8], step: usize) -> (usize, Option<bool>) {
        let (mut at, mut passed) = (Chunked::START, 0);
        for piece in text.chunks(step) {
            match at.read(piece) {
                Read::All(next) => (at, passed) = (next, passed + piece.len()),
                Read::Ended(bytes) => return (passed + bytes, Some(true)),
                Read::Malformed(bytes) => return (passed + bytes, Some(false)),
            }
        }
        (passed, None)
    }

    #[test]
    fn a_body_ends_where_the_strictest_reader_ends_it_however_it_is_cut() {
        for text in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "00000000000000a;x=\"a;b\"\r\n0123456789\r\n0\r\nx: y\r\nz: \r\n\r\n",
            "1 \t \r\na\r\n0 ;x\r\n\r\n",
            "1;\tx=\"\t\u{e9}\"\r\n\0\r\n0\r\nx: \ty\u{e9}\r\n\r\n",
            "2\r\n\n\n\r\n0\r\n\r\n",
        ] {
            let whole = format!("{text}GET / HTTP/1.1");
            for step in 1..whole.len() {
                assert_eq!(read(whole.as_bytes(), step), (text.len(), Some(true)), "{text:?}");
            }
        }
    }

    #[test]
    fn a_body_whose_end_is_ambiguous_has_no_end() {
        for (good, bad) in [
            ("", "\r\n"),
            ("", ";x\r\n"),
            ("", " 1\r\n"),
            ("", "-1\r\n"),
            ("", "+1\r\n"),
            ("", "g\r\n"),
            ("0", "x0\r\n"),
            ("1", "\na\r\n"),
            ("1 ", "1\r\n"),
            ("1;x", "\na\r\n"),
            ("1;x\r", "x\r\na\r\n"),
            ("0000000000000000", "1\r\na"),
            ("1\r\na", "\n0\r\n\r\n"),
            ("1\r\na\r", "0\r\n\r\n"),
            ("1\r\na", "b\r\n"),
            ("0\r\n", "\n"),
            ("0\r\nx: y", "\n\r\n"),
            ("0\r\nx: y\r\n", "\n"),
            ("0\r\nx: \r", "y\r\n\r\n"),
            ("0\r\n\r", "\r\n"),
            ("1;x", "\0\r\na\r\n"),
            ("1;x=\"", "\u{1}\"\r\na\r\n"),
            ("1;", "\u{7f}\r\na\r\n"),
            ("0\r\nx: y", "\0\r\n\r\n"),
            ("0\r\n", "\u{b}x: y\r\n\r\n"),
        ] {
            let whole = format!("{good}{bad}");
            for step in 1..whole.len() {
                assert_eq!(read(whole.as_bytes(), step), (good.len(), Some(false)), "{whole:?}");
            }
        }
    }
}
