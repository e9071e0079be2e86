//! What a key holds, as bytes: a value of one of Redis's types.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use indexmap::{IndexMap, IndexSet};

use super::frame::VALUE_BYTES_MAX;
use super::sorted_set::Score;
pub(super) use super::sorted_set::SortedSet;

const STRING: u8 = 1;
const HASH: u8 = 2;
const LIST: u8 = 3;
const SET: u8 = 4;
const SORTED_SET: u8 = 5;
/// Added to the type's byte for a key without a time to live.
const ENDLESS: u8 = 0x80;
/// What a part takes beside its bytes.
const PART_BYTES: usize = 4;
/// What a score takes.
const SCORE_BYTES: usize = 8;

/// Fields and their values, in the order in which they were first set.
pub(super) type Hash = IndexMap<Bytes, Bytes>;
/// Elements, from the left to the right.
pub(super) type List = VecDeque<Bytes>;
/// Members, in the order in which they were added.
pub(super) type Set = IndexSet<Bytes>;

/// A value of one of the types that are offered.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// A string of bytes.
    String(Bytes),
    Hash(Hash),
    List(List),
    Set(Set),
    SortedSet(SortedSet),
}

/// The error for a value that is larger than a key may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

/// A type of values.
pub(super) trait Kind: Default {
    fn of(value: &Value) -> Option<&Self>;
    fn of_mut(value: &mut Value) -> Option<&mut Self>;
    fn whole(self) -> Value;
    fn nothing_left(&self) -> bool;
}

macro_rules! kind {
    ($kind:ty, $case:ident) => {
        impl Kind for $kind {
            fn of(value: &Value) -> Option<&Self> {
                if let Value::$case(it) = value { Some(it) } else { None }
            }
            fn of_mut(value: &mut Value) -> Option<&mut Self> {
                if let Value::$case(it) = value { Some(it) } else { None }
            }
            fn whole(self) -> Value {
                Value::$case(self)
            }
            fn nothing_left(&self) -> bool {
                self.len() == 0
            }
        }
    };
}

kind!(Hash, Hash);
kind!(List, List);
kind!(Set, Set);
kind!(SortedSet, SortedSet);

impl Value {
    /// Its type's name, as `TYPE` answers it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "string",
            Self::Hash(_) => "hash",
            Self::List(_) => "list",
            Self::Set(_) => "set",
            Self::SortedSet(_) => "zset",
        }
    }

    /// The reply to `OBJECT ENCODING`: what a Redis server with its default bounds would say.
    pub(super) fn encoding(&self) -> &'static str {
        let small = |len: usize, mut parts: &mut dyn Iterator<Item = &Bytes>| {
            len <= 128 && (&mut parts).all(|part| part.len() <= 64)
        };
        match self {
            Self::String(bytes) if super::frame::integer(bytes).is_some() => "int",
            Self::String(bytes) if bytes.len() <= 44 => "embstr",
            Self::String(_) => "raw",
            Self::Hash(fields) => {
                match small(fields.len(), &mut fields.iter().flat_map(|(a, b)| [a, b])) {
                    true => "listpack",
                    false => "hashtable",
                }
            }
            Self::List(list) if list.iter().map(Bytes::len).sum::<usize>() <= 8192 => "listpack",
            Self::List(_) => "quicklist",
            Self::Set(set) if set.len() <= 512 && set.iter().all(is_integer) => "intset",
            Self::Set(set) if small(set.len(), &mut set.iter()) => "listpack",
            Self::Set(_) => "hashtable",
            Self::SortedSet(set) if small(set.len(), &mut set.iter().map(|(it, _)| it)) => {
                "listpack"
            }
            Self::SortedSet(_) => "skiplist",
        }
    }

    /// How many bytes it takes when encoded.
    pub(super) fn len(&self) -> usize {
        let all = |parts: &mut dyn Iterator<Item = &Bytes>| -> usize {
            parts.map(|part| PART_BYTES + part.len()).sum()
        };
        match self {
            Self::String(bytes) => bytes.len(),
            Self::Hash(fields) => all(&mut fields.iter().flat_map(|(field, value)| [field, value])),
            Self::List(list) => all(&mut list.iter()),
            Self::Set(set) => all(&mut set.iter()),
            Self::SortedSet(set) => set.len() * (SCORE_BYTES + PART_BYTES) + set.bytes(),
        }
    }

    /// Encodes it. `endless`: it was set without a time to live, although it has an end.
    pub(super) fn encode(&self, endless: bool) -> Result<Bytes, TooLarge> {
        let len = self.len();
        if len > VALUE_BYTES_MAX {
            return Err(TooLarge);
        }
        let mark = if endless { ENDLESS } else { 0 };
        let mut kept = BytesMut::with_capacity(1 + len);
        let kind = match self {
            Self::String(_) => STRING,
            Self::Hash(_) => HASH,
            Self::List(_) => LIST,
            Self::Set(_) => SET,
            Self::SortedSet(_) => SORTED_SET,
        };
        kept.put_u8(kind | mark);
        let put = |part: &Bytes| {
            kept.put_u32(u32::try_from(part.len()).unwrap_or(u32::MAX));
            kept.put_slice(part);
        };
        match self {
            Self::String(bytes) => kept.put_slice(bytes),
            Self::Hash(fields) => {
                fields.iter().flat_map(|(field, value)| [field, value]).for_each(put);
            }
            Self::List(list) => list.iter().for_each(put),
            Self::Set(set) => set.iter().for_each(put),
            Self::SortedSet(set) => {
                for (member, score) in set.iter() {
                    kept.put_f64(score);
                    kept.put_u32(u32::try_from(member.len()).unwrap_or(u32::MAX));
                    kept.put_slice(member);
                }
            }
        }
        Ok(kept.freeze())
    }

    /// As [`Value::decode`], but a string alone.
    pub(super) fn decode_string(kept: &Bytes) -> Option<(Bytes, bool)> {
        let first = *kept.first()?;
        (first & !ENDLESS == STRING).then(|| (kept.slice(1..), first & ENDLESS != 0))
    }

    /// Reads what [`Value::encode`] wrote, with whether it was endless; `None` for anything else.
    pub(super) fn decode(mut kept: Bytes) -> Option<(Self, bool)> {
        let first = kept.try_get_u8().ok()?;
        let value = match first & !ENDLESS {
            STRING => Self::String(kept),
            HASH => {
                let mut fields = Hash::new();
                while kept.has_remaining() {
                    fields.insert(part(&mut kept)?, part(&mut kept)?);
                }
                Self::Hash(fields)
            }
            LIST => Self::List(parts(kept)?),
            SET => Self::Set(parts(kept)?),
            SORTED_SET => {
                let mut members = Vec::new();
                while kept.has_remaining() {
                    let score = kept.try_get_f64().ok().filter(|score| !score.is_nan())?;
                    members.push((Score(score), part(&mut kept)?));
                }
                Self::SortedSet(SortedSet::of(members))
            }
            _ => return None,
        };
        Some((value, first & ENDLESS != 0))
    }
}

fn is_integer(bytes: &Bytes) -> bool {
    super::frame::integer(bytes).is_some()
}

fn part(kept: &mut Bytes) -> Option<Bytes> {
    let len = usize::try_from(kept.try_get_u32().ok()?).ok()?;
    (len <= kept.len()).then(|| kept.split_to(len))
}

fn parts<T: FromIterator<Bytes>>(mut kept: Bytes) -> Option<T> {
    std::iter::from_fn(|| kept.has_remaining().then(|| part(&mut kept))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn a_value_of_any_type_is_read_as_it_was_written() {
        let mut sorted = SortedSet::default();
        sorted.insert(bytes("b"), f64::INFINITY);
        sorted.insert(bytes("a"), -1.5);
        sorted.insert(bytes("b"), 2.0);
        sorted.insert(bytes("gone"), 3.0);
        sorted.remove(&bytes("gone"));
        for value in [
            Value::String(bytes("text")),
            Value::Hash([(bytes("f"), bytes("v")), (bytes("g"), bytes(""))].into()),
            Value::List([bytes("x"), bytes(""), bytes("x")].into()),
            Value::Set([bytes("m"), bytes("n")].into()),
            Value::SortedSet(sorted),
        ] {
            for endless in [false, true] {
                let kept = value.encode(endless).unwrap();
                assert_eq!(kept.len(), 1 + value.len());
                assert_eq!(Value::decode(kept), Some((value.clone(), endless)));
            }
        }
    }

    #[test]
    fn values_of_earlier_versions_can_be_read() {
        let string = Bytes::from_static(b"\x81text");
        assert_eq!(Value::decode(string), Some((Value::String(bytes("text")), true)));
        let hash = Bytes::from_static(b"\x02\0\0\0\x01f\0\0\0\x01v");
        let fields = Hash::from([(bytes("f"), bytes("v"))]);
        assert_eq!(Value::decode(hash), Some((Value::Hash(fields), false)));
    }
}
