//! Follows the frames of an HTTP/2 connection (RFC 9113 section 4.1) just far enough to count the
//! parts of bodies, since small frames take far more memory than their bytes, and to have trailers with
//! a pseudo field taken for malformed.

use crate::http::field_names::FieldNames;

/// The position of the next byte in the frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Frames {
    head: [u8; 9],
    have: u8,
    payload_left: u32,
    /// The highest stream whose head has begun: streams are opened in order.
    opened: u32,
    trailers: Option<Trailers>,
}

/// A block of trailers that comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Trailers {
    names: FieldNames,
    /// It goes on in the next frame.
    goes_on: bool,
    padded: bool,
    /// Bytes of this frame before its part of the block, and behind it.
    before: u32,
    behind: u32,
    /// A pseudo field was found.
    malformed: bool,
}

/// The parts of bodies that arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct BodyParts {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
}

/// The types of the frames that bodies and fields come in.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// Flags of a frame with fields.
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Where the flags are in a frame's head.
const FLAGS_AT: usize = 4;
/// The number of a field that there is not (RFC 7541 section 6.1).
const NO_FIELD: u8 = 0x80;

impl Frames {
    /// Follows `bytes`. Returns the parts of bodies in them, and whether trailers in them are
    /// malformed: those are changed so that their reader finds them malformed. Without the
    /// end of the stream it resets that; if that bit has been read before, it closes the connection.
    pub(crate) fn see(&mut self, bytes: &mut [u8]) -> (BodyParts, bool) {
        let (mut parts, mut malformed) = (BodyParts::default(), false);
        let (mut at, mut flags_at) = (0, None);
        while at < bytes.len() {
            if self.payload_left > 0 {
                let take = (bytes.len() - at).min(self.payload_left as usize);
                let piece = &bytes[at..at + take];
                if let Some(found) =
                    self.trailers.as_mut().and_then(|it| it.see(piece, self.payload_left))
                {
                    malformed = true;
                    match flags_at {
                        Some(flags_at) => bytes[flags_at] &= !END_STREAM,
                        None => bytes[at + found] = NO_FIELD,
                    }
                }
                self.payload_left -= take as u32;
                at += take;
                continue;
            }
            self.head[usize::from(self.have)] = bytes[at];
            self.have += 1;
            at += 1;
            if usize::from(self.have) == self.head.len() {
                self.have = 0;
                let [high, middle, low, kind, ..] = self.head;
                self.payload_left = u32::from_be_bytes([0, high, middle, low]);
                self.begins(kind);
                match kind {
                    DATA => {
                        parts.frames += 1;
                        parts.bytes += self.payload_left as usize;
                    }
                    HEADERS => flags_at = (at + FLAGS_AT).checked_sub(self.head.len()),
                    _ => {}
                }
            }
        }
        (parts, malformed)
    }

    /// A frame begins.
    fn begins(&mut self, kind: u8) {
        let [_, _, _, _, flags, id @ ..] = self.head;
        let goes_on = flags & END_HEADERS == 0;
        match (kind, self.trailers) {
            (CONTINUATION, Some(before)) if before.goes_on => {
                self.trailers =
                    Some(Trailers { goes_on, padded: false, before: 0, behind: 0, ..before });
            }
            (HEADERS, _) => {
                let stream = u32::from_be_bytes(id) & 0x7fff_ffff;
                let is_trailers = stream <= self.opened;
                self.opened = self.opened.max(stream);
                let (padded, ranked) = (flags & PADDED != 0, flags & PRIORITY != 0);
                let before = u32::from(padded) + if ranked { 5 } else { 0 };
                self.trailers = is_trailers.then(|| Trailers {
                    goes_on,
                    padded,
                    before,
                    ..Trailers::default()
                });
            }
            _ => self.trailers = None,
        }
    }
}

impl Trailers {
    /// Where in `bytes`, the next of `left` of the frame, a pseudo field was found. One is enough.
    fn see(&mut self, bytes: &[u8], left: u32) -> Option<usize> {
        let mut left = left;
        for (at, byte) in bytes.iter().enumerate() {
            left -= 1;
            if self.before > 0 {
                self.before -= 1;
                if std::mem::take(&mut self.padded) {
                    self.behind = u32::from(*byte);
                }
            } else if left >= self.behind && self.names.is_pseudo(*byte) && !self.malformed {
                self.malformed = true;
                return Some(at);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_bodies_are_counted_however_they_are_cut() {
        let frame = |kind: u8, payload: &[u8]| {
            let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
            [&length[1..], &[kind, 0, 0, 0, 0, 1], payload].concat()
        };
        let stream = [
            frame(4, &[]),
            frame(1, &[0; 300]),
            frame(0, &[0; 70_000]),
            frame(0, &[]),
            frame(0, &[7]),
        ];
        let stream = stream.concat();
        for step in [1, 2, 8, 9, 10, 4096, stream.len()] {
            let mut frames = Frames::default();
            let mut all = BodyParts::default();
            for piece in stream.chunks(step) {
                let (parts, malformed) = frames.see(&mut piece.to_vec());
                assert!(!malformed);
                all.frames += parts.frames;
                all.bytes += parts.bytes;
            }
            assert_eq!(all, BodyParts { frames: 3, bytes: 70_001 }, "in steps of {step}");
            assert_eq!((frames.have, frames.payload_left), (0, 0));
        }
    }

    #[test]
    fn trailers_with_a_pseudo_field_become_malformed_however_they_are_cut() {
        let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
            let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
            [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
        };
        let (ends, whole) = (END_STREAM | END_HEADERS, END_HEADERS);
        let path = b"\x44\x05/evil";
        let head = [frame(HEADERS, whole, 1, b"\x83\x84\x86"), frame(DATA, 0, 1, b"abc")].concat();
        for (trailers, malformed, flags_at) in [
            (frame(HEADERS, ends, 1, b"\x00\x01x\x011"), false, None),
            (frame(HEADERS, ends, 3, path), false, None),
            (frame(HEADERS, ends, 1, path), true, Some(4)),
            (frame(HEADERS, ends | PADDED, 1, &[&[2][..], path, &[0, 0]].concat()), true, Some(4)),
            (frame(HEADERS, ends | PADDED, 1, b"\x02\x00\x01x\x011\x84\x84"), false, None),
            (frame(HEADERS, ends | PRIORITY, 1, &[&[0x84; 5][..], path].concat()), true, Some(4)),
            (
                [
                    frame(HEADERS, END_STREAM, 1, b"\x00\x01x\x01"),
                    frame(CONTINUATION, END_HEADERS, 1, b"1\x84"),
                ]
                .concat(),
                true,
                Some(4),
            ),
        ] {
            for step in [1, 3, head.len() + trailers.len()] {
                let mut frames = Frames::default();
                let (mut came, mut found) = (Vec::new(), false);
                for piece in [&head[..], &trailers[..]].concat().chunks(step) {
                    let mut piece = piece.to_vec();
                    found |= frames.see(&mut piece).1;
                    came.extend(piece);
                }
                assert_eq!(found, malformed, "{trailers:x?} in steps of {step}");
                let changed = came != [&head[..], &trailers[..]].concat();
                assert_eq!(changed, malformed);
                if let (Some(at), true) = (flags_at, step > trailers.len()) {
                    assert_eq!(came[head.len() + at] & END_STREAM, 0, "{came:x?}");
                }
            }
        }
    }
}
