//! The tables of fields that a connection's blocks name by number (HPACK, RFC 7541 section 2.3), as far
//! as [`FieldNames`](crate::http::field_names::FieldNames) needs them.

use std::collections::VecDeque;

/// What an entry takes beyond its texts (RFC 7541 section 4.1).
const ENTRY_BYTES: u32 = 32;
/// How large the dynamic table may be: a front door announces nothing else.
const SIZE_MAX: u32 = 4096;

/// The first number of the dynamic table.
const DYNAMIC: u32 = 62;
/// The last pseudo field of the static table (RFC 7541 appendix A).
const PSEUDO_LAST: usize = 14;
/// How long the names of the static table are, the first at 0.
const NAME_LENGTHS: [u8; DYNAMIC as usize - 1] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14,
    16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10,
    25, 17, 10, 4, 3, 16,
];

/// A field of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    pub(crate) name_length: u32,
    pub(crate) is_pseudo: bool,
    size: u32,
}

impl Entry {
    pub(crate) fn new(name_length: u32, value_length: u32, is_pseudo: bool) -> Self {
        let size = name_length.saturating_add(value_length).saturating_add(ENTRY_BYTES);
        Self { name_length, is_pseudo, size }
    }
}

/// The dynamic table, and the static one before it.
#[derive(Debug)]
pub(crate) struct FieldTable {
    /// The newest first. Each takes at least [`ENTRY_BYTES`] of the table's size.
    entries: VecDeque<Entry>,
    size: u32,
    size_max: u32,
}

impl Default for FieldTable {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, size_max: SIZE_MAX }
    }
}

impl FieldTable {
    /// The field with that number. The connection ends by one that there is not.
    pub(crate) fn get(&self, number: u32) -> Entry {
        if let Some(place) = number.checked_sub(DYNAMIC) {
            return self.entries.get(place as usize).copied().unwrap_or_default();
        }
        let Some(place) = (number as usize).checked_sub(1) else { return Entry::default() };
        Entry::new(NAME_LENGTHS[place].into(), 0, place < PSEUDO_LAST)
    }

    /// Adds the newest entry, for which older ones are evicted. One that is larger than the table
    /// empties it (RFC 7541 section 4.4).
    pub(crate) fn add(&mut self, entry: Entry) {
        self.make_room(entry.size);
        if entry.size <= self.size_max {
            self.size += entry.size;
            self.entries.push_front(entry);
        }
    }

    /// Lets the table be so large from now on. The connection ends by a size above what it may be.
    pub(crate) fn resize(&mut self, size_max: u32) {
        self.size_max = size_max.min(SIZE_MAX);
        self.make_room(0);
    }

    fn make_room(&mut self, size: u32) {
        while self.size.saturating_add(size) > self.size_max {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.size;
        }
    }
}

/// Counts the bytes of a text in the Huffman code (RFC 7541 appendix B), piece by piece.
///
/// The code is canonical: ordered by length, the codes of one length follow each other. So the first
/// bits of a code say how long it is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CodedText {
    /// The bits that were not read as codes, in the lowest places.
    bits: u64,
    count: u32,
}

/// No code is longer.
const CODE_BITS_MAX: u32 = 30;
/// The codes of up to eight bits begin with a byte below these.
const SHORT: [(u32, u32); 4] = [(0x50, 5), (0xb8, 6), (0xf8, 7), (0xfe, 8)];
/// The first 32 bits of longer codes are below these.
const LONG: [(u32, u32); 16] = [
    (0xff40_0000, 10),
    (0xffa0_0000, 11),
    (0xffc0_0000, 12),
    (0xfff0_0000, 13),
    (0xfff8_0000, 14),
    (0xfffe_0000, 15),
    (0xfffe_6000, 19),
    (0xfffe_e000, 20),
    (0xffff_4800, 21),
    (0xffff_b000, 22),
    (0xffff_ea00, 23),
    (0xffff_f600, 24),
    (0xffff_f800, 25),
    (0xffff_fbc0, 26),
    (0xffff_fe20, 27),
    (0xffff_fff0, 28),
];

impl CodedText {
    /// How many bytes of the text the next bytes of its code complete.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> u32 {
        let mut texts = 0;
        for byte in bytes {
            self.bits = self.bits << 8 | u64::from(*byte);
            self.count += 8;
            while self.count >= CODE_BITS_MAX {
                self.count -= code_bits((self.bits >> (self.count - CODE_BITS_MAX) << 2) as u32);
                texts += 1;
            }
        }
        texts
    }

    /// How many more bytes the end of the code completes. Behind its last one are up to seven ones.
    pub(crate) fn end(&mut self) -> u32 {
        let mut texts = 0;
        while self.count > 0 {
            let ones = (1 << (32 - self.count)) - 1;
            let next = (self.bits << (32 - self.count)) as u32 | ones;
            let bits = code_bits(next);
            if bits > self.count {
                break;
            }
            self.count -= bits;
            texts += 1;
        }
        texts
    }
}

/// Finds each number sign in a text in the Huffman code, piece by piece, as soon as its code is complete.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CodedSigns {
    /// The bits of a code that is not complete, in the lowest places.
    bits: u64,
    count: u32,
}

/// The code of a number sign. That of `>` follows it: they differ in the last bit.
const CODED_SIGN: (u32, u32) = (0xffa, 12);

impl CodedSigns {
    /// Reads the next byte of the code; returns the bit of it that is the last one of a number sign.
    /// No byte is the end of two: the code is longer than it.
    pub(crate) fn read(&mut self, byte: u8) -> Option<u8> {
        self.bits = self.bits << 8 | u64::from(byte);
        self.count += 8;
        let mut last = None;
        while self.count > 0 {
            let next = (self.bits << (u64::BITS - self.count) >> u32::BITS) as u32;
            let bits = code_bits(next);
            // Whatever bits follow, a code that is complete is no longer than what is there.
            let Some(rest) = self.count.checked_sub(bits) else { break };
            if (next >> (u32::BITS - bits), bits) == CODED_SIGN {
                last = Some(1 << rest);
            }
            self.count = rest;
        }
        last
    }
}

/// The length of the code that these bits begin with.
fn code_bits(next: u32) -> u32 {
    let first = next >> 24;
    let short = SHORT.iter().find(|(end, _)| first < *end);
    let code = short.or_else(|| LONG.iter().find(|(end, _)| next < *end));
    code.map_or(CODE_BITS_MAX, |(_, bits)| *bits)
}
