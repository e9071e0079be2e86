//! Reads along in the blocks of fields of an HTTP/2 connection (HPACK, RFC 7541 section 6) just far
//! enough to know which names begin with a colon, and which paths have a fragment: the h2 crate drops
//! pseudo fields in trailers, where RFC 9113 section 8.1 has them malformed, and fragments, which no
//! path has (section 8.3.1).
//!
//! A field may be named by its place in the connection's dynamic table, so every block is followed. No
//! text is kept: of each entry of that table, the length of its name, its size and whether it is a
//! pseudo field say when it is evicted, and what a later field that names it is.

use crate::http::field_table::{CodedSigns, CodedText, Entry, FieldTable};

/// A colon in the Huffman code (RFC 7541 appendix B): seven bits.
const CODED_COLON: u8 = 0b101_1100;
/// How long `:path` is; no other pseudo field of a request has that length.
const PATH_LENGTH: u32 = 5;
/// What a number sign becomes, which no path may have: the h2 crate resets the stream.
const NOT_IN_PATHS: u8 = b'>';

/// The names of the fields of one connection's blocks.
#[derive(Debug, Default)]
pub(crate) struct FieldNames {
    at: At,
    /// The literal field that is being read.
    field: Literal,
    table: FieldTable,
}

/// The position of the next byte in a block.
#[derive(Debug, Clone, Copy, Default)]
enum At {
    /// At the beginning of a field.
    #[default]
    Field,
    /// In a number that takes several bytes.
    Number { of: Of, value: u32, shift: u32 },
    /// At the length of a text.
    Length(Text),
    /// In a text with so many bytes left, of which the next is the first or not.
    Text { text: Text, coded: bool, left: u32, is_first: bool },
}

/// What a number says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Which field of the tables it is.
    Field,
    /// Which field of the tables has the name.
    Name,
    /// How large the dynamic table may be.
    TableSize,
    /// How long a text is, in the Huffman code or not.
    Length { text: Text, coded: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Name,
    Value,
}

#[derive(Debug, Clone, Copy, Default)]
struct Literal {
    /// It becomes an entry of the dynamic table.
    is_added: bool,
    is_pseudo: bool,
    name_length: u32,
    value_length: u32,
    coded: CodedText,
    signs: CodedSigns,
}

/// What was found in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Field(Named),
    /// A path has a fragment here. With these bits of the byte `at` inverted, its first character is one
    /// that no path has.
    Fragment {
        at: usize,
        bits: u8,
    },
}

/// A field of a block, as soon as its name is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Named {
    /// Which of the bytes that were read said it.
    pub(crate) at: usize,
    /// The field of the tables that it repeats, or whose name it has. Of one whose name is spelled out,
    /// only whether it is a pseudo field is known.
    pub(crate) entry: Entry,
}

impl FieldNames {
    /// A block begins. One that broke off has ended its connection, or its stream without a change to
    /// the table.
    pub(crate) fn begin(&mut self) {
        self.at = At::Field;
    }

    /// Reads the next bytes of the block; has `each` know of the fields that are named in them, and of
    /// fragments.
    pub(crate) fn read(&mut self, bytes: &[u8], mut each: impl FnMut(Found)) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            let named = match self.at {
                At::Field => self.begins_field(byte),
                At::Number { of, value, shift } => {
                    // A number that is too long for the h2 crate ends the connection there.
                    let more = u32::from(byte & 0x7f).checked_shl(shift).unwrap_or(u32::MAX);
                    let value = value.saturating_add(more);
                    if byte & 0x80 == 0 {
                        self.number(of, value)
                    } else {
                        self.at = At::Number { of, value, shift: shift.saturating_add(7) };
                        None
                    }
                }
                At::Length(text) => {
                    let (coded, length) = (byte & 0x80 != 0, byte & 0x7f);
                    self.number_of(Of::Length { text, coded }, length, 0x7f)
                }
                At::Text { text, coded, left, is_first } => {
                    let take = (bytes.len() - at).min(left as usize);
                    let piece = &bytes[at..at + take];
                    let named = self.text(piece, text, coded, is_first);
                    if text == Text::Value && self.field.is_path() {
                        let fragment = |(from, bits)| Found::Fragment { at: at + from, bits };
                        self.field.fragments(piece, coded).map(fragment).for_each(&mut each);
                    }
                    let left = left - take as u32;
                    self.at = At::Text { text, coded, left, is_first: false };
                    if left == 0 {
                        self.text_ends(text, coded);
                    }
                    if let Some(entry) = named {
                        each(Found::Field(Named { at, entry }));
                    }
                    at += take;
                    continue;
                }
            };
            if let Some(entry) = named {
                each(Found::Field(Named { at, entry }));
            }
            at += 1;
        }
    }

    /// The first byte of a field. Like those below, it returns the field once its name is known.
    fn begins_field(&mut self, byte: u8) -> Option<Entry> {
        let (most, of) = match byte {
            0x80.. => (0x7f, Of::Field),
            0x40.. => (0x3f, Of::Name),
            0x20.. => (0x1f, Of::TableSize),
            _ => (0x0f, Of::Name),
        };
        self.field = Literal { is_added: most == 0x3f, ..Literal::default() };
        self.number_of(of, byte & most, most)
    }

    /// The first byte of a number, of which `most` says that others follow.
    fn number_of(&mut self, of: Of, value: u8, most: u8) -> Option<Entry> {
        if value < most {
            return self.number(of, value.into());
        }
        self.at = At::Number { of, value: value.into(), shift: 0 };
        None
    }

    fn number(&mut self, of: Of, value: u32) -> Option<Entry> {
        let (next, named) = match of {
            Of::Field => (At::Field, Some(self.table.get(value))),
            Of::TableSize => {
                self.table.resize(value);
                (At::Field, None)
            }
            Of::Name if value == 0 => (At::Length(Text::Name), None),
            Of::Name => {
                let entry = self.table.get(value);
                let Entry { name_length, is_pseudo, .. } = entry;
                self.field = Literal { name_length, is_pseudo, ..self.field };
                (At::Length(Text::Value), Some(entry))
            }
            Of::Length { text, coded } => {
                self.field.coded = CodedText::default();
                self.field.signs = CodedSigns::default();
                (At::Text { text, coded, left: value, is_first: true }, None)
            }
        };
        self.at = next;
        if let At::Text { text, coded, left: 0, .. } = next {
            self.text_ends(text, coded);
        }
        named
    }

    /// More of a text.
    fn text(&mut self, bytes: &[u8], text: Text, coded: bool, is_first: bool) -> Option<Entry> {
        let field = &mut self.field;
        if field.is_counted(text) {
            let more = if coded { field.coded.read(bytes) } else { bytes.len() as u32 };
            field.longer(text, more);
        }
        if !is_first || text == Text::Value {
            return None;
        }
        let first = bytes.first()?;
        field.is_pseudo = if coded { first >> 1 == CODED_COLON } else { *first == b':' };
        Some(Entry::new(0, 0, field.is_pseudo))
    }

    fn text_ends(&mut self, text: Text, coded: bool) {
        let field = &mut self.field;
        if field.is_counted(text) && coded {
            let more = field.coded.end();
            field.longer(text, more);
        }
        self.at = match text {
            Text::Name => At::Length(Text::Value),
            Text::Value => At::Field,
        };
        if field.is_added && text == Text::Value {
            let Literal { name_length, value_length, is_pseudo, .. } = *field;
            self.table.add(Entry::new(name_length, value_length, is_pseudo));
        }
    }
}

impl Literal {
    /// Whether it matters how long the text is: a name may be that of the path.
    fn is_counted(&self, text: Text) -> bool {
        self.is_added || text == Text::Name
    }

    fn is_path(&self) -> bool {
        self.is_pseudo && self.name_length == PATH_LENGTH
    }

    /// Where in the next bytes of a value a number sign ends, and the bits by which it becomes a character
    /// that no path has.
    fn fragments(&mut self, bytes: &[u8], coded: bool) -> impl Iterator<Item = (usize, u8)> {
        let sign = move |byte: &u8| match coded {
            true => self.signs.read(*byte),
            false => (*byte == b'#').then_some(b'#' ^ NOT_IN_PATHS),
        };
        bytes.iter().map(sign).enumerate().filter_map(|(at, bits)| Some((at, bits?)))
    }

    fn longer(&mut self, text: Text, more: u32) {
        let length = match text {
            Text::Name => &mut self.name_length,
            Text::Value => &mut self.value_length,
        };
        *length = length.saturating_add(more);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::fuzzing::arbitrary::Numbers;

    /// Where a pseudo field is found in the block, which comes in pieces of `step` bytes.
    fn finds_in(names: &mut FieldNames, block: &[u8], step: usize) -> Option<usize> {
        let mut found = None;
        names.begin();
        for (piece, bytes) in block.chunks(step).enumerate() {
            names.read(bytes, |it| {
                let Found::Field(named) = it else { panic!("{it:?}") };
                found = found.or(named.entry.is_pseudo.then_some(piece * step + named.at));
            });
        }
        found
    }

    fn finds(block: &[u8]) -> Option<usize> {
        let whole = finds_in(&mut FieldNames::default(), block, usize::MAX);
        for step in [1, 2, 7] {
            assert_eq!(finds_in(&mut FieldNames::default(), block, step), whole, "{block:x?}");
        }
        whole
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
        names.read(&[0xff; 1000], |it| panic!("{it:?}"));
    }

    #[test]
    fn a_pseudo_field_of_an_earlier_block_is_noticed_by_its_number_until_it_is_evicted() {
        let path = b"\x44\x05/evil";
        let other = b"\x40\x01x\x011";
        for (blocks, last, at) in [
            (&[&path[..]][..], &[0xbe][..], Some(0)),
            (&[path], &[0x7e, 0x01, b'/'], Some(0)),
            (&[path], &[0x0f, 0x2f, 0x01, b'/'], Some(1)),
            (&[path, other], &[0xbe, 0xbf], Some(1)),
            (&[other, path], &[0xbf], None),
            // One that is not added is none.
            (&[b"\x04\x05/evil"], &[0xbe], None),
            // The table was emptied, or is too small for it.
            (&[path, b"\x20\x3f\xe1\x1f"], &[0xbe], None),
            (&[b"\x3f\x0a", path], &[0xbe], None),
            (&[b"\x3f\x0b", path], &[0xbe], Some(0)),
            (&[b"\x3f\x0b", path, other], &[0xbe], None),
        ] {
            for step in [1, 2, usize::MAX] {
                let mut names = FieldNames::default();
                for block in blocks {
                    finds_in(&mut names, block, step);
                }
                assert_eq!(finds_in(&mut names, last, step), at, "{blocks:x?} {last:x?}");
            }
        }
    }

    /// The Huffman codes of some characters.
    const CODES: [(u8, &str); 7] = [
        (b'/', "011000"),
        (b'a', "00011"),
        (b'b', "100011"),
        (b'?', "1111111100"),
        (b'~', "1111111111101"),
        (b'#', "111111111010"),
        (b'>', "111111111011"),
    ];

    fn coded(text: &[u8]) -> Vec<u8> {
        let of = |byte: &u8| CODES.iter().find(|(it, _)| it == byte).unwrap().1;
        let mut bits: String = text.iter().map(of).collect();
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        let bytes = bits.as_bytes().chunks(8).map(|bits| std::str::from_utf8(bits).unwrap());
        bytes.map(|bits| u8::from_str_radix(bits, 2).unwrap()).collect()
    }

    #[test]
    fn each_number_sign_of_a_path_becomes_another_character_however_it_is_written_and_cut() {
        let mut numbers = Numbers::new(11);
        for _ in 0..500 {
            let one = |_| CODES[numbers.below(6)].0;
            let path: Vec<u8> = (0..10).map(one).collect();
            let without: Vec<u8> =
                path.iter().map(|byte| if *byte == b'#' { b'>' } else { *byte }).collect();
            let text = |text: &[u8], code: bool| {
                let bytes = if code { coded(text) } else { text.to_vec() };
                [&[bytes.len() as u8 | if code { 0x80 } else { 0 }][..], &bytes].concat()
            };
            for begins in
                [&b"\x04"[..], b"\x44", b"\x15", b"\x00\x05:path", b"\x40\x84\xb9\x58\xd3\x3f"]
            {
                for (code, step) in [(false, 1), (false, 5), (true, 1), (true, 3), (true, 100)] {
                    let of = |path: &[u8]| [begins, &text(path, code), b"\x00\x01x\x01#"].concat();
                    let (mut block, mut names) = (of(&path), FieldNames::default());
                    for piece in block.chunks_mut(step) {
                        let mut changes = Vec::new();
                        names.read(piece, |it| {
                            if let Found::Fragment { at, bits } = it {
                                changes.push((at, bits));
                            }
                        });
                        for (at, bits) in changes {
                            piece[at] ^= bits;
                        }
                    }
                    assert_eq!(block, of(&without), "{}", path.escape_ascii());
                }
            }
        }
    }

    /// Adds up to ten fields to a request's head, with names and values that differ in length; some are
    /// those of earlier requests.
    fn decorate(head: &mut http::HeaderMap, numbers: &mut Numbers) {
        for _ in 0..numbers.below(10) {
            let (number, bytes) = (numbers.below(40), 1 + numbers.below(300));
            let name = format!("x-{:0>1$}", number, 1 + number % 30);
            let value = match numbers.below(3) {
                0 => format!("{number}").into_bytes(),
                1 => (0..bytes).map(|_| b' ' + numbers.below(95) as u8).collect(),
                // Those whose codes are long.
                _ => (0..bytes).map(|_| 128 + numbers.below(128) as u8).collect(),
            };
            let mut value = http::HeaderValue::from_bytes(value.trim_ascii()).unwrap();
            value.set_sensitive(numbers.below(8) == 0);
            head.append(http::HeaderName::try_from(name).unwrap(), value);
        }
    }

    /// The blocks of fields that the h2 crate writes for heads of requests, and the fields in each.
    async fn written(requests: usize) -> Vec<(Vec<u8>, Vec<(String, usize)>)> {
        let (client, mut server) = tokio::io::duplex(1 << 24);
        let (mut client, connection) = h2::client::handshake(client).await.unwrap();
        let connection = tokio::spawn(connection);
        let (mut numbers, mut all) = (Numbers::new(7), Vec::new());
        for at in 0..requests {
            let request = http::Request::get(format!("http://a/{}", at % 3));
            let mut request = request.body(()).unwrap();
            decorate(request.headers_mut(), &mut numbers);
            let pseudo = [(":method", 3), (":scheme", 4), (":authority", 1), (":path", 2)];
            let mut fields: Vec<_> = pseudo.map(|(name, length)| (name.to_owned(), length)).into();
            let own = request.headers().iter();
            fields.extend(own.map(|(name, value)| (name.to_string(), value.len())));
            client = client.ready().await.unwrap();
            drop(client.send_request(request, true).unwrap());
            tokio::task::yield_now().await;
            all.push(fields);
        }
        drop(client);
        let _ = connection.await;
        let mut bytes = Vec::new();
        server.read_to_end(&mut bytes).await.unwrap();
        let mut rest = &bytes[crate::http::framing::H2_PREFACE.len()..];
        let mut blocks: Vec<Vec<u8>> = Vec::new();
        while let [high, middle, low, kind, ..] = *rest {
            let (frame, behind) =
                rest.split_at(9 + u32::from_be_bytes([0, high, middle, low]) as usize);
            match kind {
                1 => blocks.push(frame[9..].to_vec()),
                9 => blocks.last_mut().unwrap().extend(&frame[9..]),
                _ => {}
            }
            rest = behind;
        }
        assert_eq!(blocks.len(), all.len());
        blocks.into_iter().zip(all).collect()
    }

    #[tokio::test]
    async fn a_field_of_the_table_is_the_one_that_another_encoder_put_there() {
        let mut names = FieldNames::default();
        let (mut by_number, mut by_name) = (0, 0);
        for (block, fields) in written(300).await {
            let mut found = Vec::new();
            names.begin();
            for piece in block.chunks(1 + block.len() % 17) {
                names.read(piece, |it| match it {
                    Found::Field(named) => found.push(named),
                    Found::Fragment { .. } => panic!("{it:?} in {fields:?}"),
                });
            }
            assert_eq!(found.len(), fields.len(), "{fields:?}");
            for ((name, value), named) in fields.iter().zip(found) {
                let entry = named.entry;
                assert_eq!(entry.is_pseudo, name.starts_with(':'), "{name}");
                if entry.name_length == 0 {
                    continue;
                }
                assert_eq!(entry.name_length as usize, name.len(), "{name}");
                let whole = Entry::new(entry.name_length, *value as u32, entry.is_pseudo);
                if entry == whole { by_number += 1 } else { by_name += 1 }
            }
        }
        assert!(by_number > 300 && by_name > 50, "{by_number} {by_name}");
    }
}
