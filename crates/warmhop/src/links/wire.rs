//! The wire format: frames, their version and their bounds. The only file that names bincode.
//!
//! Streams begin with one byte for their kind (`KIND_…`). Unidirectional streams then carry
//! *frames*: a length of four bytes, big-endian, and that many bytes, which are one value in
//! bincode's standard (varint) encoding.
//!
//! A hop's streams carry one such frame for the head, then the body as *pieces*:
//!
//! ```text
//! data     LENGTH (4 bytes, 1 ..= 0x7FFF_FFFF), then LENGTH bytes of the body
//! end      0xFFFF_FFFF, LENGTH (4 bytes), then LENGTH bytes: the trailers, a frame of
//!          Vec<(name, value)>; LENGTH 0 where there are none
//! ```
//!
//! The end is explicit because quinn finishes a stream that is dropped: without it, a body cut off
//! by a crash would look complete. After the end, readers read on to the end of the stream itself,
//! since dropping a stream that was not read to its end sends a `STOP_SENDING` and costs two
//! packets a side.

use std::cell::Cell;

use bincode::config::standard;
use bincode::enc::write::Writer;
use bincode::error::EncodeError as BincodeError;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::{ReadError, RecvStream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use warmhop_core::ids::{Incarnation, SessionKey};
use warmhop_core::session::message::Message;
use warmhop_core::view::{News, PeerNews};

/// A peer of another version gets an error that says so, and no link.
pub(crate) const PROTOCOL_VERSION: u16 = 10;

/// The first byte of a unidirectional stream: the hello, then news for as long as the link lives.
pub(crate) const KIND_CONTROL: u8 = 1;

/// The first byte of a unidirectional stream: frames of sessions for as long as the link lives.
pub(crate) const KIND_SESSION: u8 = 2;

/// The first byte of a unidirectional stream: one message of gossip.
pub(crate) const KIND_GOSSIP: u8 = 3;

/// The first byte of a datagram: asks for the receiver's wall clock. Then the asker's monotonic
/// clock, eight bytes, big-endian, which is sent back.
pub(crate) const KIND_CLOCK_ASKED: u8 = 4;

/// The first byte of a datagram: the answer. Then the asker's clock as it was sent, and the wall
/// clock in milliseconds, eight bytes each, big-endian.
pub(crate) const KIND_CLOCK_ANSWER: u8 = 5;

/// The first byte of a bidirectional stream: a hop. Its opener writes it together with the head.
pub(crate) const KIND_HOP: u8 = 16;

/// A hello or a batch of news.
pub(crate) const CONTROL_FRAME_BYTES_MAX: usize = 64 * 1024;

/// A session's frame: a body with its state and stored responses.
pub(crate) const SESSION_FRAME_BYTES_MAX: usize = 1280 * 1024;

/// A gossip message: as much as chitchat fits into one UDP packet.
pub(crate) const GOSSIP_BYTES_MAX: usize = 65_535;

/// A gossiped value, encoded.
pub(crate) const GOSSIP_VALUE_BYTES_MAX: usize = 384;

/// The trailers of a hop's body.
pub(crate) const TRAILERS_BYTES_MAX: usize = 64 * 1024;

/// The name of a zone.
pub(crate) const ZONE_BYTES_MAX: usize = 64;

/// The address of a front door, as text.
pub(crate) const HTTP_BYTES_MAX: usize = 128;

/// Generations are milliseconds of the wall clock; this one is some 285,000 years away, and
/// leaves room above for a life that must outrank it.
pub(crate) const GENERATION_MAX: u64 = 1 << 53;

/// The length before a frame.
pub(super) const FRAME_HEADER_BYTES: usize = 4;

/// How much memory a thread keeps for encoding its next value.
pub(super) const SCRATCH_BYTES_MAX: usize = 64 * 1024;

/// A length that a peer claims is trusted with this much memory before its bytes arrive.
const UNPROVEN_BYTES_MAX: usize = 64 * 1024;

/// A value could not be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EncodeError {
    /// It is larger than the receiver takes.
    #[error("the encoded value exceeds {max} bytes")]
    TooLarge {
        /// The bound.
        max: usize,
    },
    /// Its type cannot be encoded: a fault of ours.
    #[error("the value cannot be encoded: {0}")]
    Unsupported(String),
}

/// Bytes that are not what they should be. No value was read from them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// Not a value of the expected type, or beyond its bound.
    #[error("not a valid value: {0}")]
    Malformed(String),
    /// Bytes were left after the value.
    #[error("{0} bytes are left behind the value")]
    Trailing(usize),
}

/// Encodes `value` into at most `max` bytes.
pub(crate) fn encode<T: Serialize>(value: &T, max: usize) -> Result<Bytes, EncodeError> {
    encoded(value, max, |bytes| match bytes.len() {
        // Not worth a copy: the thread does not keep so much memory.
        0..=SCRATCH_BYTES_MAX => Bytes::copy_from_slice(bytes),
        _ => Bytes::from(std::mem::take(bytes)),
    })
}

/// The result of `take` for `value`, encoded into at most `max` bytes.
fn encoded<T: Serialize, R>(
    value: &T,
    max: usize,
    take: impl FnOnce(&mut Vec<u8>) -> R,
) -> Result<R, EncodeError> {
    let mut sink = BoundedSink { bytes: SCRATCH.take(), max };
    let result = sink.put(value).map(|()| take(&mut sink.bytes));
    sink.bytes.clear();
    if sink.bytes.capacity() <= SCRATCH_BYTES_MAX {
        SCRATCH.set(sink.bytes);
    }
    result
}

/// Appends a frame to `buffer`: the length of `value`, then `value` in at most `max` bytes.
/// On an error the buffer is as it was.
pub(crate) fn put_frame<T: Serialize>(
    buffer: &mut BytesMut,
    value: &T,
    max: usize,
) -> Result<(), EncodeError> {
    encoded(value, max, |bytes| put_encoded(buffer, bytes))
}

/// Appends a frame that is encoded already: its length, then its bytes.
pub(super) fn put_encoded(buffer: &mut BytesMut, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("frames are bounded far below 4 GiB");
    buffer.reserve(FRAME_HEADER_BYTES + bytes.len());
    buffer.put_u32(len);
    buffer.extend_from_slice(bytes);
}

/// Decodes a `T` that takes up all of `bytes`, without allocating more than `MAX` bytes.
pub(crate) fn decode<T: DeserializeOwned, const MAX: usize>(
    bytes: &[u8],
) -> Result<T, DecodeError> {
    let config = standard().with_limit::<MAX>();
    let (value, used) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|error| DecodeError::Malformed(error.to_string()))?;
    match bytes.len() - used {
        0 => Ok(value),
        left => Err(DecodeError::Trailing(left)),
    }
}

/// As [`decode`], borrowing what it can from `bytes`.
pub(crate) fn decode_borrowed<'a, T: serde::Deserialize<'a>, const MAX: usize>(
    bytes: &'a [u8],
) -> Result<T, DecodeError> {
    let config = standard().with_limit::<MAX>();
    let (value, used) = bincode::serde::borrow_decode_from_slice(bytes, config)
        .map_err(|error| DecodeError::Malformed(error.to_string()))?;
    match bytes.len() - used {
        0 => Ok(value),
        left => Err(DecodeError::Trailing(left)),
    }
}

thread_local! {
    /// Where values are encoded. They are copied from here, so that they take as much memory as they
    /// need and no more.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The limit of bincode's configuration does not hold when encoding, so this one does.
struct BoundedSink {
    bytes: Vec<u8>,
    max: usize,
}

impl BoundedSink {
    fn put<T: Serialize>(&mut self, value: &T) -> Result<(), EncodeError> {
        let max = self.max;
        bincode::serde::encode_into_writer(value, &mut *self, standard()).map_err(|error| {
            match error {
                BincodeError::UnexpectedEnd => EncodeError::TooLarge { max },
                other => EncodeError::Unsupported(other.to_string()),
            }
        })
    }
}

impl Writer for &mut BoundedSink {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), BincodeError> {
        if bytes.len() > self.max - self.bytes.len().min(self.max) {
            return Err(BincodeError::UnexpectedEnd);
        }
        match bytes {
            // Identifiers are encoded byte by byte.
            [byte] => self.bytes.push(*byte),
            bytes => self.bytes.extend_from_slice(bytes),
        }
        Ok(())
    }
}

/// The first frame on the control stream of each direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub(crate) version: u16,
    /// The opener's count of its dials, which distinguishes two links of one opener; 0 from the
    /// other end.
    pub(crate) dial: u64,
    /// The sender: its name must be the one in its certificate.
    pub(crate) peer: PeerNews,
}

/// The version in a hello that may be of another version: it comes first in each.
pub(crate) fn hello_version(frame: &[u8]) -> Option<u16> {
    bincode::serde::decode_from_slice(frame, standard()).map(|(version, _)| version).ok()
}

/// Whether a peer's record of itself is within bounds.
pub(crate) fn is_presentable(peer: &PeerNews) -> bool {
    let fits = |text: &Option<String>, max| text.as_ref().is_none_or(|text| text.len() <= max);
    fits(&peer.zone, ZONE_BYTES_MAX)
        && fits(&peer.http, HTTP_BYTES_MAX)
        && peer.generation <= GENERATION_MAX
        && peer.incarnation.is_of(&peer.peer)
        && peer.mesh.port() != 0
        && !peer.mesh.ip().is_unspecified()
}

/// Every further frame on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewsBatch {
    /// News of the sender itself and its apps.
    pub(crate) news: Vec<News>,
}

/// One message about one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionFrame {
    /// The session.
    pub(crate) key: SessionKey,
    /// The incarnation that the message is for; another one answers `Nack Dead`.
    pub(crate) to: Incarnation,
    /// The message.
    pub(crate) message: Message,
}

/// Trailers of a hop's body, in order.
pub(crate) type Trailers = Vec<(String, Vec<u8>)>;

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    CutOff,
    /// The claimed length exceeds the bound.
    #[error("a frame of {len} bytes exceeds the bound of {max}")]
    TooLarge {
        /// The length claimed.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// The frame does not hold what it should.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The stream or its link broke.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl FrameError {
    /// Whether the sender broke the protocol, rather than the link.
    pub(crate) fn is_violation(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::Decode(_))
    }
}

/// Reads bytes and frames from a stream without copying those that arrive in one chunk.
/// Not cancel-safe: a dropped read may lose bytes.
pub(crate) struct FrameReader {
    pub(super) recv: RecvStream,
    pub(super) left: Bytes,
}

impl FrameReader {
    /// Reads from the current position of `recv`.
    pub(crate) fn new(recv: RecvStream) -> Self {
        Self { recv, left: Bytes::new() }
    }

    /// The next byte; `None` at the end of the stream.
    pub(crate) async fn byte(&mut self) -> Result<Option<u8>, FrameError> {
        Ok(self.fill().await?.then(|| self.left.get_u8()))
    }

    /// The next frame of at most `max` bytes; `None` at the end of the stream.
    pub(crate) async fn frame(&mut self, max: usize) -> Result<Option<Bytes>, FrameError> {
        let mut header = [0; 4];
        for (at, slot) in header.iter_mut().enumerate() {
            match self.byte().await? {
                Some(byte) => *slot = byte,
                None if at == 0 => return Ok(None),
                None => return Err(FrameError::CutOff),
            }
        }
        let len = u32::from_be_bytes(header) as usize;
        if len > max {
            return Err(FrameError::TooLarge { len, max });
        }
        if self.left.len() >= len {
            return Ok(Some(self.left.split_to(len)));
        }
        let mut frame = BytesMut::with_capacity(len.min(UNPROVEN_BYTES_MAX));
        while frame.len() < len {
            if !self.fill().await? {
                return Err(FrameError::CutOff);
            }
            let wanted = (len - frame.len()).min(self.left.len());
            frame.extend_from_slice(&self.left.split_to(wanted));
        }
        Ok(Some(frame.freeze()))
    }

    /// The next frame as a `T`; `None` at the end of the stream.
    pub(crate) async fn value<T: DeserializeOwned, const MAX: usize>(
        &mut self,
    ) -> Result<Option<T>, FrameError> {
        match self.frame(MAX).await? {
            Some(frame) => Ok(Some(decode::<T, MAX>(&frame)?)),
            None => Ok(None),
        }
    }

    /// All bytes up to the end of the stream, if they are at most `max`.
    pub(crate) async fn rest(mut self, max: usize) -> Result<Bytes, FrameError> {
        let mut all = BytesMut::from(std::mem::take(&mut self.left));
        while self.fill().await? {
            let len = all.len() + self.left.len();
            if len > max {
                return Err(FrameError::TooLarge { len, max });
            }
            all.extend_from_slice(&std::mem::take(&mut self.left));
        }
        Ok(all.freeze())
    }

    /// Refuses the rest of the stream, for the reason `code`.
    pub(crate) fn stop(mut self, code: quinn::VarInt) {
        // A stream that has ended needs no stop.
        let _ = self.recv.stop(code);
    }

    /// Waits for bytes where none are left; false at the end of the stream.
    async fn fill(&mut self) -> Result<bool, ReadError> {
        while self.left.is_empty() {
            match self.recv.read_chunk(usize::MAX, true).await? {
                Some(chunk) => self.left = chunk.bytes,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::sync::Arc;

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};
    use warmhop_core::ids::{AppName, Ballot, PeerId, Position, RequestKey, SessionId, WallTime};
    use warmhop_core::session::census::Census;
    use warmhop_core::session::message::{
        AcceptedInfo, Birth, Body, BodyRef, Config, Members, NackReason, Part, Recent, Stored,
    };
    use warmhop_core::view::{AppNews, AppState};

    use warmhop_core::version::AppVersion;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Asserts that `value` is encoded as these bytes, and decoded from them. If this fails, this
    /// version cannot talk to peers of the version before: raise [`PROTOCOL_VERSION`].
    #[track_caller]
    fn golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, expected: &str) {
        let bytes = encode(value, SESSION_FRAME_BYTES_MAX).unwrap();
        assert_eq!(hex(&bytes), expected.replace(' ', ""));
        assert_eq!(decode::<T, SESSION_FRAME_BYTES_MAX>(&bytes).as_ref(), Ok(value));
    }

    fn inc(n: u8) -> Incarnation {
        Incarnation([n; 16])
    }

    fn peer_news() -> PeerNews {
        PeerNews {
            peer: PeerId::new("peer-1").unwrap(),
            incarnation: Incarnation::of(&PeerId::new("peer-1").unwrap(), WallTime(0xAB), 0xCD),
            generation: 1_700_000_000_000,
            seq: 300,
            mesh: "127.0.0.1:7001".parse().unwrap(),
            http: Some("h:1".into()),
            zone: None,
            draining: true,
            knows_more: true,
            young: false,
            full: false,
            sole: false,
        }
    }

    fn app_news() -> AppNews {
        AppNews {
            app: AppName::new("shop").unwrap(),
            seq: 2,
            state: AppState::Ready,
            eta_ms: Some(1200),
            in_flight: 7,
            version: Some(AppVersion::new("1.2").unwrap()),
            digest: 3,
            gone: false,
        }
    }

    fn position() -> Position {
        Position { ballot: Ballot { round: 3, proposer: inc(1) }, n: 251 }
    }

    fn cfg() -> Arc<Config> {
        let members = |c, who: &[u8]| Members {
            c,
            stamp: 70_000,
            who: who.iter().map(|n| inc(*n)).collect(),
        };
        Arc::new(Config { now: members(2, &[1, 2]), prev: Some(Box::new(members(1, &[1]))) })
    }

    fn body() -> Body {
        let recent = |rid, response| Recent {
            rid: RequestKey([rid; 16]),
            fingerprint: u64::MAX,
            keyed: rid == 1,
            n: 5,
            response,
        };
        Body {
            state: Some(Arc::from(&b"state"[..])),
            recent: vec![
                recent(1, Stored::Response(Arc::from(&b"ok"[..]))),
                recent(2, Stored::Applied),
                recent(3, Stored::TooLarge),
            ],
            floor_keyed: 1,
            floor_unkeyed: 2,
            expiry: WallTime(1_700_000_000_001),
            ended: None,
        }
    }

    fn frame(message: Message) -> SessionFrame {
        let key = SessionKey { app: AppName::new("shop").unwrap(), sid: SessionId([9; 16]) };
        SessionFrame { key, to: inc(2), message }
    }

    const INC_1: &str = "01010101010101010101010101010101";
    const INC_2: &str = "02020202020202020202020202020202";
    const PEER: &str = "06 706565722d31 000000cd 0d03e2b6d01e 0000000000ab fd 0068e5cf8b010000 \
        fb 2c01 00 7f000001 fb 591b 01 03 683a31 00 01 01 00 00 00";
    const APP: &str = "04 73686f70 02 02 01 fb b004 07 01 03 312e32 03 00";
    const FRAME: &str = "04 73686f70 09090909090909090909090909090909 \
        02020202020202020202020202020202";

    #[test]
    fn hellos_and_news_have_the_bytes_they_always_had() {
        golden(&Hello { version: 1, dial: 2, peer: peer_news() }, &format!("01 02 {PEER}"));
        golden(
            &NewsBatch {
                news: vec![
                    News::Peer(peer_news()),
                    News::App {
                        peer: PeerId::new("p").unwrap(),
                        incarnation: inc(1),
                        generation: 250,
                        news: app_news(),
                    },
                ],
            },
            &format!("02 00 {PEER} 01 01 70 {INC_1} fa {APP}"),
        );
        golden(&app_news(), APP);
        let trailers: Trailers = vec![("x-sum".into(), vec![1, 2])];
        golden(&trailers, "01 05 782d73756d 02 0102");
    }

    #[test]
    fn identifiers_of_any_bytes_are_encoded_as_these_bytes() {
        let halves = [
            [0; 8],
            [0xFF; 8],
            // Were they numbers with a fraction, they would be none.
            [1, 0, 0, 0, 0, 0, 0xF0, 0x7F],
            [1, 0, 0, 0, 0, 0, 0xF0, 0xFF],
            [0, 0, 0, 0, 0, 0, 0xF8, 0x7F],
            [0, 0, 0, 0, 0, 0, 0, 0x80],
            [1, 2, 3, 4, 5, 6, 7, 8],
        ];
        for first in halves {
            for second in halves {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&first);
                bytes[8..].copy_from_slice(&second);
                golden(&SessionId(bytes), &hex(&bytes));
                let text = serde_json::to_string(&SessionId(bytes)).unwrap();
                assert_eq!(text, serde_json::to_string(&bytes).unwrap());
                assert_eq!(serde_json::from_str::<SessionId>(&text).unwrap().0, bytes);
            }
        }
    }

    fn ballot_bytes() -> String {
        format!("03 {INC_1}")
    }

    fn cfg_bytes() -> String {
        format!("02 fc 70110100 02 {INC_1} {INC_2} 01 01 fc 70110100 01 {INC_1}")
    }

    #[test]
    fn frames_of_votes_have_the_bytes_they_always_had() {
        let (ballot_bytes, cfg_bytes) = (ballot_bytes(), cfg_bytes());
        let at = format!("{ballot_bytes} fb fb00");
        let max = "fd ffffffffffffffff";
        let rid = |n: u8| hex(&[n; 16]);
        let body_bytes = format!(
            "01 05 7374617465 03 {} {max} 01 05 01 02 6f6b {} {max} 00 05 00 {} {max} 00 05 02 \
             01 02 fd 0168e5cf8b010000 00",
            rid(1),
            rid(2),
            rid(3),
        );
        let ballot = position().ballot;
        let (p, cfg) = (position(), cfg());
        golden(
            &frame(Message::Prepare {
                b: ballot,
                cfg: cfg.clone(),
                want_body: true,
                polite: false,
                nonce: 4,
                expiry: WallTime(5),
                into: None,
            }),
            &format!("{FRAME} 00 {ballot_bytes} {cfg_bytes} 01 00 04 05 00"),
        );
        let accepted = AcceptedInfo { p, cfg: cfg.clone(), body: Some(Arc::new(body())) };
        golden(
            &frame(Message::Promise {
                b: ballot,
                cfg: cfg.clone(),
                nonce: 4,
                accepted: Some(accepted),
                births: vec![Birth { b: ballot, cfg: cfg.clone() }],
            }),
            &format!(
                "{FRAME} 01 {ballot_bytes} {cfg_bytes} 04 01 {at} {cfg_bytes} 01 {body_bytes} \
                 01 {ballot_bytes} {cfg_bytes}"
            ),
        );
        golden(
            &frame(Message::Accept { p, cfg: cfg.clone(), body: BodyRef::Full(Arc::new(body())) }),
            &format!("{FRAME} 02 {at} {cfg_bytes} 00 {body_bytes}"),
        );
        golden(
            &frame(Message::Accept { p, cfg: cfg.clone(), body: BodyRef::Same(p) }),
            &format!("{FRAME} 02 {at} {cfg_bytes} 01 {at}"),
        );
        golden(&frame(Message::Accepted { p }), &format!("{FRAME} 03 {at}"));
        golden(&frame(Message::NeedFull { p }), &format!("{FRAME} 04 {at}"));
        golden(
            &frame(Message::Nack {
                reason: NackReason::Fenced(SessionId([1; 16])),
                promised: Some(ballot),
                cfg: None,
                watermark: 1,
            }),
            &format!("{FRAME} 05 02 {INC_1} 01 {ballot_bytes} 00 01"),
        );
    }

    #[test]
    fn the_other_session_frames_have_the_bytes_they_always_had() {
        let (ballot_bytes, cfg_bytes) = (ballot_bytes(), cfg_bytes());
        let at = format!("{ballot_bytes} fb fb00");
        let ballot = position().ballot;
        let (p, cfg) = (position(), cfg());
        let census = Census { others: vec![inc(1)], pair: true, ..Census::default() };
        golden(
            &frame(Message::Locate { census: Some(7), nonce: 9, bytes: 250 }),
            &format!("{FRAME} 06 01 07 09 fa"),
        );
        golden(
            &frame(Message::Located {
                nonce: 9,
                p: Some(p),
                cfg: None,
                promised: None,
                fenced: None,
                dead: vec![inc(1)],
                births: Vec::new(),
                census: Some(Arc::new(census)),
                part: Part::None,
            }),
            &format!(
                "{FRAME} 07 09 01 {at} 00 00 00 01 {INC_1} 00 00 01 01 {INC_1} 00 00 00 00 00 01 00"
            ),
        );
        golden(
            &frame(Message::Begin {
                b: ballot,
                cfg: cfg.clone(),
                over: vec![cfg.clone()],
                expiry: WallTime(5),
                census: 7,
                nonce: 9,
            }),
            &format!("{FRAME} 0c {ballot_bytes} {cfg_bytes} 01 {cfg_bytes} 05 07 09"),
        );
        golden(
            &frame(Message::Free {
                b: ballot,
                over: Vec::new(),
                births: vec![Birth { b: ballot, cfg: cfg.clone() }],
                census: None,
            }),
            &format!("{FRAME} 0d {ballot_bytes} 00 01 {ballot_bytes} {cfg_bytes} 00"),
        );
        golden(&frame(Message::Invite { cfg }), &format!("{FRAME} 08 {cfg_bytes}"));
        golden(&frame(Message::Delta), &format!("{FRAME} 09"));
        golden(&frame(Message::Lease), &format!("{FRAME} 0a"));
        golden(&frame(Message::Retire { stamp: 250 }), &format!("{FRAME} 0b fa"));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let valid = [
            encode(&Hello { version: 1, dial: 2, peer: peer_news() }, 1000).unwrap(),
            encode(&NewsBatch { news: vec![News::Peer(peer_news())] }, 1000).unwrap(),
            encode(
                &frame(Message::Accept {
                    p: position(),
                    cfg: cfg(),
                    body: BodyRef::Full(Arc::new(body())),
                }),
                1000,
            )
            .unwrap(),
        ];
        let all = |bytes: &[u8]| {
            let hello = decode::<Hello, CONTROL_FRAME_BYTES_MAX>(bytes);
            let news = decode::<NewsBatch, CONTROL_FRAME_BYTES_MAX>(bytes);
            let frame = decode::<SessionFrame, SESSION_FRAME_BYTES_MAX>(bytes);
            let trailers = decode::<Trailers, TRAILERS_BYTES_MAX>(bytes);
            let _ = (hello_version(bytes), trailers);
            hello.is_ok() || news.is_ok() || frame.is_ok()
        };
        for value in &valid {
            assert!(all(value));
            for len in 0..value.len() {
                assert!(!all(&value[..len]), "a cut value passes for a whole one");
            }
            for _ in 0..2000 {
                let mut bytes = value.to_vec();
                for _ in 0..rng.random_range(1..4) {
                    let at = rng.random_range(0..bytes.len());
                    bytes[at] = rng.random();
                }
                all(&bytes);
            }
        }
        for _ in 0..2000 {
            let len = rng.random_range(0..200);
            let bytes: Vec<u8> = (0..len).map(|_| rng.random()).collect();
            all(&bytes);
        }
    }

    #[test]
    fn bytes_behind_a_value_are_refused() {
        let mut bytes = encode(&app_news(), 100).unwrap().to_vec();
        bytes.push(0);
        assert_eq!(decode::<AppNews, 100>(&bytes), Err(DecodeError::Trailing(1)));
    }

    #[test]
    fn malformed_names_are_refused_when_they_are_read() {
        let bytes = encode(&("a.b", 0_u8), 100).unwrap();
        assert!(decode::<(PeerId, u8), 100>(&bytes).is_err());
    }

    #[test]
    fn a_claimed_length_beyond_the_limit_allocates_nothing() {
        // A vector of 2^62 bytes.
        let claim = [0xFD, 0, 0, 0, 0, 0, 0, 0, 0x40];
        assert!(decode::<Vec<u8>, 1000>(&claim).is_err());
        assert!(decode::<Trailers, 1000>(&claim).is_err());
    }

    #[test]
    fn encoding_stops_at_its_bound_and_leaves_the_buffer_as_it_was() {
        let value = vec![7_u8; 100];
        assert_eq!(encode(&value, 101).unwrap().len(), 101);
        assert_eq!(encode(&value, 100), Err(EncodeError::TooLarge { max: 100 }));
        let mut buffer = BytesMut::from(&b"before"[..]);
        let error = put_frame(&mut buffer, &value, 100);
        assert_eq!(error, Err(EncodeError::TooLarge { max: 100 }));
        assert_eq!(buffer, &b"before"[..]);
        put_frame(&mut buffer, &value, 101).unwrap();
        assert_eq!(&buffer[..10], b"before\0\0\0\x65");
        assert_eq!(buffer.len(), 6 + 4 + 101);
    }

    #[test]
    fn a_peers_news_about_itself_is_bounded() {
        assert!(is_presentable(&peer_news()));
        let bad: [fn(&mut PeerNews); 6] = [
            |peer| peer.incarnation = inc(1),
            |peer| peer.zone = Some("z".repeat(ZONE_BYTES_MAX + 1)),
            |peer| peer.http = Some("h".repeat(HTTP_BYTES_MAX + 1)),
            |peer| peer.generation = u64::MAX,
            |peer| peer.mesh.set_port(0),
            |peer| peer.mesh = "0.0.0.0:1".parse().unwrap(),
        ];
        for change in bad {
            let mut peer = peer_news();
            change(&mut peer);
            assert!(!is_presentable(&peer), "{peer:?}");
        }
    }
}
