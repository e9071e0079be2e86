//! Whether frames of another peer on a link are read without harm, and re-encoded to the same
//! value.

use serde::Serialize;
use serde::de::DeserializeOwned;
use warmhop_core::view::{AppNews, PeerNews};

use crate::links::gossip::screen;
use crate::links::session_bytes;
use crate::links::wire::{
    self, CONTROL_FRAME_BYTES_MAX, Hello, NewsBatch, SESSION_FRAME_BYTES_MAX, SessionFrame,
};

/// Reads `input` as a frame of the control stream, of a session, or as a value or a message of gossip;
/// the first byte says which.
///
/// # Panics
/// If the value read differs when it is encoded and read once more, or by how it is read.
pub fn frames(input: &[u8]) -> bool {
    let Some((which, frame)) = input.split_first() else { return false };
    match which % 6 {
        0 => reads_back::<Hello, CONTROL_FRAME_BYTES_MAX>(frame),
        1 => reads_back::<NewsBatch, CONTROL_FRAME_BYTES_MAX>(frame),
        2 => is_read_alike(frame) && reads_back::<SessionFrame, SESSION_FRAME_BYTES_MAX>(frame),
        3 => reads_back::<PeerNews, CONTROL_FRAME_BYTES_MAX>(frame),
        4 => reads_back::<AppNews, CONTROL_FRAME_BYTES_MAX>(frame),
        _ => screen::is_well_formed(frame),
    }
}

/// Whether a session's frame that is read without a serializer is the one that the serializer reads.
fn is_read_alike(bytes: &[u8]) -> bool {
    if let Some(frame) = session_bytes::take(bytes) {
        let other = wire::decode::<_, SESSION_FRAME_BYTES_MAX>(bytes);
        assert_eq!(other, Ok(frame), "a frame is read as two");
    }
    true
}

pub(super) fn reads_back<T: Serialize + DeserializeOwned, const MAX: usize>(bytes: &[u8]) -> bool {
    let Ok(value) = wire::decode::<T, MAX>(bytes) else { return false };
    let Ok(once) = wire::encode(&value, MAX) else { return false };
    let again = wire::decode::<T, MAX>(&once).map(|value| wire::encode(&value, MAX));
    assert!(matches!(again, Ok(Ok(twice)) if twice == once), "a frame reads back as another");
    true
}

#[cfg(test)]
mod tests {
    use warmhop_core::ids::{AppName, Incarnation, PeerId};
    use warmhop_core::view::{AppState, News};

    use super::*;
    use crate::fuzzing::arbitrary::{Numbers, feed, strung};
    use crate::links::wire::PROTOCOL_VERSION;

    #[test]
    fn frames_of_links_read_back_as_they_were_read() {
        let peer = PeerNews {
            peer: PeerId::new("one").unwrap(),
            incarnation: Incarnation([7; 16]),
            generation: 1,
            seq: 2,
            mesh: "192.0.2.1:7001".parse().unwrap(),
            http: Some("192.0.2.1:80".into()),
            zone: None,
            draining: false,
            knows_more: false,
            young: false,
            full: false,
            sole: false,
        };
        let app = AppNews {
            app: AppName::new("shop").unwrap(),
            seq: 3,
            state: AppState::Ready,
            eta_ms: Some(900),
            in_flight: 4,
            version: None,
            digest: 7,
            gone: false,
        };
        let news = NewsBatch { news: vec![News::Peer(peer.clone())] };
        let hello = Hello { version: PROTOCOL_VERSION, dial: 1, peer: peer.clone() };
        fn framed<T: Serialize>(which: u8, value: &T) -> Vec<u8> {
            [&[which], &wire::encode(value, CONTROL_FRAME_BYTES_MAX).unwrap()[..]].concat()
        }
        let whole = [framed(0, &hello), framed(1, &news), framed(3, &peer), framed(4, &app)];
        assert!(whole.iter().all(|frame| frames(frame)));
        let mut words: Vec<&[u8]> = whole.iter().map(Vec::as_slice).collect();
        words.extend([
            &[2][..],
            &[5],
            &[5, 0x53, 0xB0, 0, 0],
            &[0xfb],
            &[0xff; 9],
            &[0; 16],
            b"shop",
        ]);
        let make = |numbers: &mut Numbers| strung(numbers, &words, 3);
        let read = feed("frames", 20_000, make, |input| usize::from(frames(input)));
        assert!(read > 500, "only {read} were read");
    }
}
