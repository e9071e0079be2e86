//! The fields of a hop's heads on the wire: one block of bytes, so that neither end allocates a
//! string for each name and each value.
//!
//! ```text
//! name's LENGTH (2 bytes, big-endian), value's LENGTH (4 bytes), the name, the value; then the next
//! ```

use std::fmt;

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::http::names::name_of;

/// The two lengths before each field.
const LENGTHS_BYTES: usize = 6;
/// What most fields take at least.
const FIELD_BYTES_USUAL: usize = 24;
/// The most fields for which there is room from the beginning.
const FIELDS_USUAL_MAX: usize = 64;
/// The most fields of a block: more names than that do not fit into a map.
const FIELDS_MAX: usize = 24 * 1024;

/// Fields in order. [`FieldBlock::into_headers`] validates those of another peer.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldBlock(Bytes);

impl FieldBlock {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self::of_both(headers, None)
    }

    /// The same with one more field, whose name is in lower case.
    pub(crate) fn of_both(headers: &HeaderMap, more: Option<(&HeaderName, &[u8])>) -> Self {
        let more = more.map(|(name, value)| (name.as_str().as_bytes(), value));
        let pairs = || {
            let fields = headers.iter();
            let fields = fields.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
            fields.chain(more)
        };
        Self::made_of(
            pairs(),
            pairs().map(|(name, value)| LENGTHS_BYTES + name.len() + value.len()).sum(),
        )
    }

    fn made_of<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>, bytes: usize) -> Self {
        let mut block = Vec::with_capacity(bytes);
        for (name, value) in pairs {
            let [high, low] =
                u16::try_from(name.len()).expect("names of fields are shorter").to_be_bytes();
            let [a, b, c, d] =
                u32::try_from(value.len()).expect("a head is far shorter").to_be_bytes();
            for part in [&[high, low, a, b, c, d], name, value] {
                block.extend_from_slice(part);
            }
        }
        Self(block.into())
    }

    /// Whether there is a field of that name, in lower case.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.pairs().any(|(it, _)| it == name.as_bytes())
    }

    /// The same without the fields of that name, in lower case.
    pub(crate) fn without(self, name: &str) -> Self {
        if !self.contains(name) {
            return self;
        }
        Self::made_of(self.pairs().filter(|(it, _)| *it != name.as_bytes()), self.0.len())
    }

    /// The same with one more field, whose name is in lower case.
    pub(crate) fn with(self, name: &str, value: &[u8]) -> Self {
        let pairs = self.pairs().chain(std::iter::once((name.as_bytes(), value)));
        Self::made_of(pairs, self.0.len() + LENGTHS_BYTES + name.len() + value.len())
    }

    /// The names and values of its well-formed beginning.
    fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (name, value) = next_lengths(&mut rest)?;
            let (pair, after) = rest.split_at(name + value);
            rest = after;
            Some(pair.split_at(name))
        })
    }

    /// The fields, whose values share the block's memory; `None` where it is malformed.
    pub(crate) fn into_headers(self) -> Option<HeaderMap> {
        let block = self.0;
        // An estimate: the map grows where there are more.
        let usual = (block.len() / FIELD_BYTES_USUAL).min(FIELDS_USUAL_MAX);
        let mut headers = HeaderMap::with_capacity(usual);
        let mut at = 0;
        while at < block.len() {
            if headers.len() == FIELDS_MAX {
                return None;
            }
            let mut rest = &block[at..];
            let (name, value) = next_lengths(&mut rest)?;
            let (name_at, value_at) = (at + LENGTHS_BYTES, at + LENGTHS_BYTES + name);
            at = value_at + value;
            let value = HeaderValue::from_maybe_shared(block.slice(value_at..at)).ok()?;
            headers.try_append(name_of(&block[name_at..value_at])?, value).ok()?;
        }
        Some(headers)
    }
}

/// The lengths of the next name and value, if both are complete; `None` at the end, or if they are
/// not.
fn next_lengths(rest: &mut impl Buf) -> Option<(usize, usize)> {
    let (name, value) = (rest.try_get_u16().ok()?, rest.try_get_u32().ok()?);
    let (name, value) = (usize::from(name), usize::try_from(value).ok()?);
    (name.checked_add(value)? <= rest.remaining()).then_some((name, value))
}

impl fmt::Debug for FieldBlock {
    /// Only the names: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.pairs().map(|(name, _)| name.escape_ascii().to_string()))
            .finish()
    }
}

impl Serialize for FieldBlock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for FieldBlock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Block;
        impl Visitor<'_> for Block {
            type Value = FieldBlock;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("fields")
            }

            fn visit_byte_buf<E: Error>(self, block: Vec<u8>) -> Result<FieldBlock, E> {
                Ok(FieldBlock(block.into()))
            }

            fn visit_bytes<E: Error>(self, block: &[u8]) -> Result<FieldBlock, E> {
                Ok(FieldBlock(Bytes::copy_from_slice(block)))
            }
        }
        deserializer.deserialize_byte_buf(Block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::wire;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn fields_come_back_as_they_were_whatever_the_others_are() {
        let pairs = [
            ("accept", "*/*"),
            ("x-request-id", "r"),
            ("sec-fetch-site", "none"),
            ("x-a", "1"),
            ("x-a", ""),
            ("expect", "100-continue"),
        ];
        let block = FieldBlock::of(&headers(&pairs));
        let bytes = wire::encode(&block, 1024).unwrap();
        let read: FieldBlock = wire::decode::<_, 1024>(&bytes).unwrap();
        assert_eq!(read, block);
        assert!(read.contains("expect") && !read.contains("x"));
        assert_eq!(read.clone().into_headers().unwrap(), headers(&pairs));
        assert_eq!(read.clone().without("expect").into_headers().unwrap(), headers(&pairs[..5]));
        let more: Vec<_> = pairs.into_iter().chain([("x-b", "2")]).collect();
        let both = FieldBlock::of_both(
            &headers(&pairs),
            Some((&HeaderName::from_static("x-b"), &b"2"[..])),
        );
        assert_eq!(both.into_headers().unwrap(), headers(&more));
        assert_eq!(read.with("x-b", b"2").into_headers().unwrap(), headers(&more));
        assert_eq!(FieldBlock::default().into_headers().unwrap(), HeaderMap::new());
    }

    #[test]
    fn a_malformed_block_is_no_fields() {
        let whole = FieldBlock::of(&headers(&[("a", "1"), ("b", "2")])).0;
        for cut in 1..whole.len() {
            let is_between = cut == whole.len() / 2;
            assert_eq!(
                FieldBlock(whole.slice(..cut)).into_headers().is_some(),
                is_between,
                "{cut}"
            );
        }
        let with = |name: &[u8], value: &[u8]| {
            FieldBlock::made_of(std::iter::once((name, value)), 0).into_headers()
        };
        assert!(with(b"a", b"1").is_some());
        for (name, value) in [(&b""[..], &b"1"[..]), (b"a b", b"1"), (b"a", b"1\r\nb: 2")] {
            assert!(with(name, value).is_none());
        }
        let many = std::iter::repeat_n((&b"a"[..], &b""[..]), 100_000);
        assert!(FieldBlock::made_of(many, 0).into_headers().is_none(), "more than a map holds");
    }
}
