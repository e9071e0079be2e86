//! Whether heads of another peer are read without harm, and re-encoded to the same value.

use crate::fuzzing::frames::reads_back;
use crate::hop::field_block::FieldBlock;
use crate::hop::head::{HEAD_BYTES_MAX, HopHead, ReplyHead};
use crate::links::wire;

/// Reads `input` as the head of a hop or of its reply; the first byte says which.
///
/// # Panics
/// If the value read differs when it is encoded and read once more.
pub fn hop_heads(input: &[u8]) -> bool {
    let Some((which, head)) = input.split_first() else { return false };
    let fields = if which & 1 == 0 {
        wire::decode::<HopHead, HEAD_BYTES_MAX>(head).ok().map(|head| head.fields)
    } else {
        match wire::decode::<ReplyHead, HEAD_BYTES_MAX>(head) {
            Ok(ReplyHead::Response { fields, .. }) => Some(fields),
            _ => None,
        }
    };
    // Well-formed or not.
    let _ = fields.map(FieldBlock::into_headers);
    if which & 1 == 0 {
        reads_back::<HopHead, HEAD_BYTES_MAX>(head)
    } else {
        reads_back::<ReplyHead, HEAD_BYTES_MAX>(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::arbitrary::{Numbers, feed, strung};
    use crate::hop::{HopKind, HopRefusal, Load};

    #[test]
    fn heads_of_hops_read_back_as_they_were_read() {
        let fields = [(http::header::HOST, http::HeaderValue::from_static("a"))];
        let fields = FieldBlock::of(&fields.into_iter().collect());
        let hop = HopHead {
            kind: HopKind::Plain,
            app: warmhop_core::ids::AppName::new("shop").unwrap(),
            request_id: "id".into(),
            method: "GET".into(),
            target: "/".into(),
            fields,
            upgrade: Some(b"websocket".to_vec()),
            asks_go: true,
            counts_on: Some(warmhop_core::version::AppVersion::new("1.10").unwrap()),
        };
        let load = Load { in_flight: 1, latency_us: 300 };
        let refused =
            ReplyHead::Refused { why: HopRefusal::AppFailed { detail: "x".into() }, load };
        let heads = [
            [&[0], &wire::encode(&hop, HEAD_BYTES_MAX).unwrap()[..]].concat(),
            [&[1], &wire::encode(&refused, HEAD_BYTES_MAX).unwrap()[..]].concat(),
        ];
        assert!(heads.iter().all(|head| hop_heads(head)));
        let words: [&[u8]; 8] =
            [&heads[0], &heads[1], &heads[0][1..], &[0], &[1], &[0xfb], &[0xff; 9], b"/"];
        let make = |numbers: &mut Numbers| strung(numbers, &words, 3);
        let read = feed("hop_heads", 20_000, make, |input| usize::from(hop_heads(input)));
        assert!(read > 500, "only {read} were read");
    }
}
