//! A full-text index in memory: what makes the shop slow to start and worth keeping warm.
//!
//! Each term has a list of postings, compressed as varint deltas: document, positions in it.
//! Hits are ranked by BM25 (Robertson and Zaragoza 2009, section 3); words in quotes must
//! follow one another, which the positions tell. Each book also gets a `MinHash` signature
//! (Broder 1997), by which books with a like vocabulary are put into common buckets.

use std::collections::HashMap;

use crate::corpus::Book;

const BM25_K1: f32 = 1.2;
const BM25_B: f32 = 0.75;
/// Signatures are cut into `BANDS` of `ROWS`; books that agree on a band share its bucket.
const BANDS: usize = 12;
const ROWS: usize = 4;
const BUCKET_BOOKS_MAX: usize = 32;
const QUERY_TERMS_MAX: usize = 16;

/// The finished index; nothing changes it.
pub(crate) struct Index {
    terms: HashMap<String, Postings>,
    doc_lengths: Vec<u16>,
    average_length: f32,
    buckets: HashMap<u64, Vec<u32>>,
}

/// One found book.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Hit {
    book: u32,
    score: f32,
    title: String,
    author: String,
    similar: Vec<u32>,
}

#[derive(Default)]
struct Postings {
    docs: u32,
    last_doc: u32,
    bytes: Vec<u8>,
}

impl Index {
    /// Reads `docs` books; `progress` is called after each twentieth of them.
    pub(crate) fn build(docs: u32, mut progress: impl FnMut(u32)) -> Self {
        let mut terms: HashMap<String, Postings> = HashMap::new();
        let mut buckets: HashMap<u64, Vec<u32>> = HashMap::new();
        let mut doc_lengths = Vec::with_capacity(docs as usize);
        let mut total_length = 0u64;
        let mut book = Book::default();
        let mut term = String::new();
        let mut positions_by_term: HashMap<String, Vec<u32>> = HashMap::new();
        for doc in 0..docs {
            book.rewrite(doc);
            positions_by_term.values_mut().for_each(Vec::clear);
            let mut length = 0u16;
            let words = words(&book.title).chain(words(&book.author)).chain(words(&book.blurb));
            for word in words {
                stem_into(word, &mut term);
                match positions_by_term.get_mut(&term) {
                    Some(positions) => positions.push(u32::from(length)),
                    None => {
                        positions_by_term.insert(term.clone(), vec![u32::from(length)]);
                    }
                }
                length = length.saturating_add(1);
            }
            let mut signature = [u64::MAX; BANDS * ROWS];
            for (term, positions) in positions_by_term.iter().filter(|(_, at)| !at.is_empty()) {
                match terms.get_mut(term) {
                    Some(postings) => postings.add(doc, positions),
                    None => terms.entry(term.clone()).or_default().add(doc, positions),
                }
                let hash = fnv1a(term.as_bytes());
                for (row, least) in signature.iter_mut().enumerate() {
                    *least = (*least).min(mix(hash ^ (row as u64).wrapping_mul(0x9E37_79B9)));
                }
            }
            for bucket in bands(&signature) {
                let books = buckets.entry(bucket).or_default();
                if books.len() < BUCKET_BOOKS_MAX {
                    books.push(doc);
                }
            }
            doc_lengths.push(length);
            total_length += u64::from(length);
            if (doc + 1) % (docs / 20).max(1) == 0 {
                progress(doc + 1);
            }
        }
        // A bucket of one book relates it to nothing.
        buckets.retain(|_, books| books.len() > 1);
        let average_length = total_length as f32 / docs.max(1) as f32;
        Self { terms, doc_lengths, average_length, buckets }
    }

    /// How many different terms it knows.
    pub(crate) fn terms(&self) -> usize {
        self.terms.len()
    }

    /// The best `limit` books for `query`, and how many there are in all.
    pub(crate) fn search(&self, query: &str, limit: usize) -> (usize, Vec<Hit>) {
        let phrase = query.len() > 2 && query.starts_with('"') && query.ends_with('"');
        let mut term = String::new();
        let mut wanted = Vec::new();
        for word in words(query).take(QUERY_TERMS_MAX) {
            stem_into(word, &mut term);
            match self.terms.get(&term) {
                Some(postings) => wanted.push(postings),
                None => return (0, Vec::new()),
            }
        }
        let Some((first, rest)) = wanted.split_first() else { return (0, Vec::new()) };
        // Every word must occur, so each further list only narrows the first.
        let mut found: HashMap<u32, (f32, Vec<u32>)> =
            self.scored(first).map(|(doc, score, positions)| (doc, (score, positions))).collect();
        for (offset, postings) in rest.iter().enumerate() {
            let offset = offset as u32 + 1;
            let mut narrowed = HashMap::with_capacity(found.len());
            for (doc, score, positions) in self.scored(postings) {
                let Some((so_far, mut starts)) = found.remove(&doc) else { continue };
                if phrase {
                    starts.retain(|start| positions.contains(&(start + offset)));
                }
                if !starts.is_empty() {
                    narrowed.insert(doc, (so_far + score, starts));
                }
            }
            found = narrowed;
        }
        let total = found.len();
        let mut ranked: Vec<(u32, f32)> =
            found.into_iter().map(|(doc, (score, _))| (doc, score)).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.truncate(limit);
        (total, ranked.into_iter().map(|(doc, score)| self.hit(doc, score)).collect())
    }

    fn scored<'a>(
        &'a self,
        postings: &'a Postings,
    ) -> impl Iterator<Item = (u32, f32, Vec<u32>)> + 'a {
        let docs = self.doc_lengths.len() as f32;
        let holders = postings.docs as f32;
        let idf = ((docs - holders + 0.5) / (holders + 0.5) + 1.0).ln();
        postings.iter().map(move |(doc, positions)| {
            let length = f32::from(self.doc_lengths[doc as usize]) / self.average_length;
            let count = positions.len() as f32;
            let saturation = count + BM25_K1 * (1.0 - BM25_B + BM25_B * length);
            (doc, idf * count * (BM25_K1 + 1.0) / saturation, positions)
        })
    }

    fn hit(&self, doc: u32, score: f32) -> Hit {
        let mut book = Book::default();
        book.rewrite(doc);
        Hit {
            book: doc,
            score,
            similar: self.similar(&book, doc),
            title: book.title,
            author: book.author,
        }
    }

    fn similar(&self, book: &Book, doc: u32) -> Vec<u32> {
        let mut signature = [u64::MAX; BANDS * ROWS];
        let mut term = String::new();
        for word in words(&book.title).chain(words(&book.author)).chain(words(&book.blurb)) {
            stem_into(word, &mut term);
            let hash = fnv1a(term.as_bytes());
            for (row, least) in signature.iter_mut().enumerate() {
                *least = (*least).min(mix(hash ^ (row as u64).wrapping_mul(0x9E37_79B9)));
            }
        }
        let mut similar: Vec<u32> = bands(&signature)
            .filter_map(|bucket| self.buckets.get(&bucket))
            .flatten()
            .copied()
            .filter(|other| *other != doc)
            .collect();
        similar.sort_unstable();
        similar.dedup();
        similar.truncate(3);
        similar
    }
}

impl Postings {
    fn add(&mut self, doc: u32, positions: &[u32]) {
        push_varint(&mut self.bytes, doc - self.last_doc);
        push_varint(&mut self.bytes, positions.len() as u32);
        let mut last = 0;
        for position in positions {
            push_varint(&mut self.bytes, position - last);
            last = *position;
        }
        self.last_doc = doc;
        self.docs += 1;
    }

    fn iter(&self) -> impl Iterator<Item = (u32, Vec<u32>)> + '_ {
        let mut bytes = self.bytes.as_slice();
        let mut doc = 0;
        std::iter::from_fn(move || {
            if bytes.is_empty() {
                return None;
            }
            doc += take_varint(&mut bytes);
            let mut position = 0;
            let positions = (0..take_varint(&mut bytes))
                .map(|_| {
                    position += take_varint(&mut bytes);
                    position
                })
                .collect();
            Some((doc, positions))
        })
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

/// Lower case, and without the commonest English endings.
fn stem_into(word: &str, term: &mut String) {
    term.clear();
    term.extend(word.chars().flat_map(char::to_lowercase));
    for ending in ["ing", "ed", "s"] {
        if term.len() > ending.len() + 3 && term.ends_with(ending) {
            term.truncate(term.len() - ending.len());
            return;
        }
    }
}

fn bands(signature: &[u64; BANDS * ROWS]) -> impl Iterator<Item = u64> + '_ {
    signature
        .chunks_exact(ROWS)
        .enumerate()
        .map(|(band, rows)| rows.iter().fold(mix(band as u64), |hash, row| mix(hash ^ row)))
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    z = (z ^ (z >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    z ^ (z >> 33)
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        bytes.push((value as u8) | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Reads what [`push_varint`] wrote; the index reads only its own bytes.
fn take_varint(bytes: &mut &[u8]) -> u32 {
    let mut value = 0;
    let mut shift = 0;
    while let Some((byte, rest)) = bytes.split_first() {
        *bytes = rest;
        value |= u32::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            break;
        }
        shift += 7;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_a_book_finds_it() {
        let index = Index::build(200, |_| ());
        let mut book = Book::default();
        book.rewrite(42);
        let (total, hits) = index.search(&format!("{} {}", book.title, book.author), 200);
        assert!(total >= 1);
        assert!(hits.iter().any(|hit| hit.book == 42), "{hits:?}");
    }

    #[test]
    fn quotes_ask_for_words_that_follow_one_another() {
        let index = Index::build(500, |_| ());
        let mut book = Book::default();
        book.rewrite(3);
        let mut two = words(&book.blurb).take(2).map(str::to_owned);
        let (a, b) = (two.next().unwrap(), two.next().unwrap());
        let (loose, _) = index.search(&format!("{a} {b}"), 10);
        let (strict, hits) = index.search(&format!("\"{a} {b}\""), 500);
        assert!(strict <= loose);
        assert!(hits.iter().any(|hit| hit.book == 3));
    }

    #[test]
    fn an_unknown_word_finds_nothing() {
        assert_eq!(Index::build(50, |_| ()).search("xylophonist", 10).0, 0);
    }

    #[test]
    fn varints_come_back() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u32::MAX] {
            let mut bytes = Vec::new();
            push_varint(&mut bytes, value);
            assert_eq!(take_varint(&mut bytes.as_slice()), value);
        }
    }
}
