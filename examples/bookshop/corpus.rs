//! The stock of the shop: books that are invented, but always the same ones.
//!
//! A book is a function of its number, so the shop keeps no texts: it writes them again when
//! it shows them.

use std::fmt::Write as _;

/// Words of the blurbs, the commonest first: they are drawn by a Zipf-like law, as words are.
const WORDS: &[&str] = &[
    "harbour",
    "winter",
    "letter",
    "garden",
    "mother",
    "river",
    "stranger",
    "window",
    "island",
    "silence",
    "captain",
    "memory",
    "village",
    "promise",
    "mountain",
    "journey",
    "daughter",
    "evening",
    "painter",
    "bridge",
    "secret",
    "summer",
    "station",
    "brother",
    "forest",
    "market",
    "doctor",
    "shadow",
    "teacher",
    "voyage",
    "kitchen",
    "soldier",
    "library",
    "morning",
    "desert",
    "sister",
    "theatre",
    "fortune",
    "widow",
    "lantern",
    "orchard",
    "captive",
    "physician",
    "cartographer",
    "lighthouse",
    "clockmaker",
    "translator",
    "smuggler",
    "botanist",
    "apprentice",
    "inheritance",
    "revolution",
    "telegraph",
    "manuscript",
    "expedition",
    "astronomer",
    "cathedral",
    "machinery",
    "railway",
    "archive",
    "monastery",
    "glacier",
    "vineyard",
    "shipwreck",
    "embassy",
    "forgery",
    "engraver",
    "midwife",
    "violinist",
    "beekeeper",
    "ferryman",
    "surveyor",
    "locksmith",
    "governess",
    "mathematician",
    "perfumer",
    "bookbinder",
    "tailor",
    "gambler",
    "pilgrim",
    "refugee",
    "watching",
    "returning",
    "remembering",
    "forgetting",
    "crossing",
    "building",
    "burning",
    "waiting",
    "searching",
    "leaving",
    "hiding",
    "translating",
    "measuring",
    "planting",
    "sailing",
    "forbidden",
    "restless",
    "northern",
    "distant",
    "ordinary",
    "borrowed",
    "unfinished",
    "patient",
    "luminous",
    "stubborn",
    "hollow",
    "gentle",
    "broken",
    "crowded",
    "frozen",
    "invisible",
];
const ADJECTIVES: &[&str] = &[
    "Silent",
    "Borrowed",
    "Northern",
    "Last",
    "Unfinished",
    "Restless",
    "Luminous",
    "Hollow",
    "Patient",
    "Forbidden",
    "Ordinary",
    "Distant",
    "Frozen",
    "Second",
    "Stubborn",
    "Invisible",
];
const NOUNS: &[&str] = &[
    "Harbour",
    "Cartographer",
    "Orchard",
    "Lighthouse",
    "Letter",
    "Clockmaker",
    "Garden",
    "Translator",
    "Glacier",
    "Archive",
    "Ferryman",
    "Window",
    "Monastery",
    "Voyage",
    "Beekeeper",
    "Engraver",
    "Station",
    "Vineyard",
    "Telegraph",
    "Astronomer",
];
const PLACES: &[&str] = &[
    "Lisbon",
    "Trieste",
    "Bergen",
    "Odessa",
    "Valparaiso",
    "Aleppo",
    "Kyoto",
    "Tangier",
    "Riga",
    "Cork",
    "Zanzibar",
    "Tbilisi",
    "Quebec",
    "Salvador",
    "Madras",
    "Hobart",
];
const FIRST: &[&str] = &[
    "Ada", "Bruno", "Clara", "Dmitri", "Elif", "Farid", "Greta", "Hana", "Ivo", "Jun", "Kofi",
    "Lena", "Mateo", "Nadia", "Oskar", "Priya",
];
const LAST: &[&str] = &[
    "Abel",
    "Brandt",
    "Castellan",
    "Dumont",
    "Eriksen",
    "Ferrante",
    "Grey",
    "Holub",
    "Ito",
    "Jansen",
    "Kovac",
    "Lindqvist",
    "Moreau",
    "Novak",
    "Okafor",
    "Petrov",
];

/// One book of the stock.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) title: String,
    pub(crate) author: String,
    pub(crate) blurb: String,
}

impl Book {
    /// Writes book `number` into `self`, whose allocations are used again.
    pub(crate) fn rewrite(&mut self, number: u32) {
        let mut random = SplitMix(u64::from(number).wrapping_mul(0xD6E8_FEB8_6659_FD93));
        self.title.clear();
        self.author.clear();
        self.blurb.clear();
        // Writing to a `String` cannot fail.
        let _ = match random.below(3) {
            0 => write!(self.title, "The {} {}", random.of(ADJECTIVES), random.of(NOUNS)),
            1 => write!(self.title, "The {} of {}", random.of(NOUNS), random.of(PLACES)),
            _ => write!(
                self.title,
                "{} {} in {}",
                random.of(ADJECTIVES),
                random.of(NOUNS),
                random.of(PLACES)
            ),
        };
        let _ = write!(self.author, "{} {}", random.of(FIRST), random.of(LAST));
        for place in 0..40 + random.below(40) {
            if place > 0 {
                self.blurb.push_str(if place % 12 == 0 { ". " } else { " " });
            }
            // The product of two uniform draws prefers the front of the list.
            let rank = random.unit() * random.unit() * WORDS.len() as f64;
            self.blurb.push_str(WORDS[rank as usize % WORDS.len()]);
            if random.below(25) == 0 {
                let _ = write!(self.blurb, " {}", random.of(PLACES));
            }
        }
        self.blurb.push('.');
    }
}

/// Steele, Lea and Flood's `SplitMix64`: tiny, fast, and the same on every machine.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_book_is_always_the_same_and_books_differ() {
        let (mut one, mut again, mut other) = (Book::default(), Book::default(), Book::default());
        one.rewrite(7);
        other.rewrite(8);
        again.rewrite(9);
        again.rewrite(7);
        assert_eq!((&one.title, &one.blurb), (&again.title, &again.blurb));
        assert_ne!(one.blurb, other.blurb);
    }
}
