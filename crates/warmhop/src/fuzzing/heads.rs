//! Whether what another peer sends as a head is read without harm, and reads back as it was read.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::hop::{HEAD_BYTES_MAX, HopHead, ReplyHead};
use crate::links::wire;

/// Reads `input` as the head of a hop or of its reply; the first byte says which.
///
/// # Panics
/// If what was read is not what is read of it once more.
pub fn hop_heads(input: &[u8]) -> bool {
    let Some((which, head)) = input.split_first() else { return false };
    if which & 1 == 0 { reads_back::<HopHead>(head) } else { reads_back::<ReplyHead>(head) }
}

fn reads_back<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> bool {
    let Ok(value) = wire::decode::<T, HEAD_BYTES_MAX>(bytes) else { return false };
    let Ok(once) = wire::encode(&value, HEAD_BYTES_MAX) else { return false };
    let again =
        wire::decode::<T, HEAD_BYTES_MAX>(&once).map(|value| wire::encode(&value, HEAD_BYTES_MAX));
    assert!(matches!(again, Ok(Ok(twice)) if twice == once), "a head reads back as another");
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::arbitrary::{Numbers, strung};
    use crate::hop::{HopKind, HopRefusal, Load};

    #[test]
    fn heads_of_hops_read_back_as_they_were_read() {
        let fields = vec![("host".to_owned(), b"a".to_vec())];
        let hop = HopHead {
            kind: HopKind::Plain,
            app: warmhop_core::ids::AppName::new("shop").unwrap(),
            request_id: "id".into(),
            method: "GET".into(),
            target: "/".into(),
            fields,
            upgrade: Some(b"websocket".to_vec()),
            asks_go: true,
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
        let mut numbers = Numbers::new(2);
        let read = (0..20_000).filter(|_| hop_heads(&strung(&mut numbers, &words, 3))).count();
        assert!(read > 500, "only {read} were read");
    }
}
