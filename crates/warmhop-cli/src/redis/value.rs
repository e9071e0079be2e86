//! What a key holds, as bytes: a string, or a hash of fields to values.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::VALUE_BYTES_MAX;

const STRING: u8 = 1;
const HASH: u8 = 2;
/// Added to the type's byte where nobody asked for an end.
const ENDLESS: u8 = 0x80;

/// A value of one of the types that are offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// A string of bytes.
    String(Bytes),
    /// Fields and their values, in the order in which they were first set.
    Hash(Vec<(Bytes, Bytes)>),
}

/// The value would be larger than is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

impl Value {
    /// Its type's name, as `TYPE` tells it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "string",
            Self::Hash(_) => "hash",
        }
    }

    /// As it is kept. `endless` says that nobody asked for an end, although it has one.
    pub(super) fn encode(&self, endless: bool) -> Result<Bytes, TooLarge> {
        let mark = if endless { ENDLESS } else { 0 };
        let fields = match self {
            Self::String(bytes) => {
                if bytes.len() > VALUE_BYTES_MAX {
                    return Err(TooLarge);
                }
                let mut kept = BytesMut::with_capacity(1 + bytes.len());
                kept.put_u8(STRING | mark);
                kept.put_slice(bytes);
                return Ok(kept.freeze());
            }
            Self::Hash(fields) => fields,
        };
        let len: usize = fields.iter().map(|(field, value)| 8 + field.len() + value.len()).sum();
        if len > VALUE_BYTES_MAX {
            return Err(TooLarge);
        }
        let mut kept = BytesMut::with_capacity(1 + len);
        kept.put_u8(HASH | mark);
        for part in fields.iter().flat_map(|(field, value)| [field, value]) {
            kept.put_u32(u32::try_from(part.len()).map_err(|_| TooLarge)?);
            kept.put_slice(part);
        }
        Ok(kept.freeze())
    }

    /// Reads what [`Value::encode`] wrote, with whether it was endless; `None` for anything else.
    pub(super) fn decode(mut kept: Bytes) -> Option<(Self, bool)> {
        let first = kept.try_get_u8().ok()?;
        let value = match first & !ENDLESS {
            STRING => Some(Self::String(kept)),
            HASH => {
                let mut fields = Vec::new();
                while kept.has_remaining() {
                    fields.push((part(&mut kept)?, part(&mut kept)?));
                }
                Some(Self::Hash(fields))
            }
            _ => None,
        }?;
        Some((value, first & ENDLESS != 0))
    }
}

fn part(kept: &mut Bytes) -> Option<Bytes> {
    let len = usize::try_from(kept.try_get_u32().ok()?).ok()?;
    (len <= kept.len()).then(|| kept.split_to(len))
}
