//! Follows the frames of an HTTP/2 connection (RFC 9113 section 4.1) just far enough to count the
//! parts of bodies, since small frames take far more memory than their bytes, and to have trailers with
//! a pseudo field, and heads whose path has a fragment, taken for malformed.

use crate::http::field_names::{FieldNames, Found};
use crate::http::refusals::Refusal;

/// The position of the next byte in the frames.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    head: [u8; 9],
    have: u8,
    payload_left: u32,
    /// The highest stream whose head has begun: streams are opened in order.
    opened: u32,
    names: FieldNames,
    block: Option<Block>,
}

/// A block of fields that comes, of a head or of trailers.
#[derive(Debug, Clone, Copy, Default)]
struct Block {
    is_trailers: bool,
    stream: u32,
    /// It goes on in the next frame.
    goes_on: bool,
    padded: bool,
    ranked: bool,
    /// Bytes of this frame before its part of the block, and behind it.
    before: u32,
    behind: u32,
    /// The stream that this one depends on.
    dependency: u32,
    /// A pseudo field was found in trailers.
    malformed: bool,
    /// The rest of the block is overwritten.
    spoilt: bool,
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
/// How many bytes say which stream this one depends on, and with what weight (RFC 9113 section 6.2).
const PRIORITY_BYTES: u32 = 5;
/// A block that ends with these is malformed: each byte says that a number goes on (RFC 7541 section 5.1).
const ENDLESS: u8 = 0xff;

impl Frames {
    /// Follows `bytes`. Returns the parts of bodies in them, and why a head or trailers in them are
    /// refused: those are changed so that their reader finds them malformed. It resets the stream of
    /// trailers that lack its end, and closes the connection if that bit has been read before.
    pub(crate) fn see(&mut self, bytes: &mut [u8]) -> (BodyParts, Option<Refusal>) {
        let (mut parts, mut refusal) = (BodyParts::default(), None);
        let (mut at, mut flags_at) = (0, None);
        while at < bytes.len() {
            if self.payload_left > 0 {
                let take = (bytes.len() - at).min(self.payload_left as usize);
                if let Some(block) = &mut self.block {
                    let piece = &mut bytes[at..at + take];
                    let (found, why) = block.see(piece, self.payload_left, &mut self.names);
                    refusal = refusal.or(why);
                    match (found, flags_at) {
                        (Some(_), Some(flags_at)) => bytes[flags_at] &= !END_STREAM,
                        (Some(found), None) => block.spoil(&mut piece[found..]),
                        (None, _) if block.spoilt => block.spoil(piece),
                        (None, _) => {}
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
        (parts, refusal)
    }

    /// A frame begins.
    fn begins(&mut self, kind: u8) {
        let [_, _, _, _, flags, id @ ..] = self.head;
        let goes_on = flags & END_HEADERS == 0;
        match (kind, self.block) {
            (CONTINUATION, Some(block)) if block.goes_on => {
                self.block = Some(Block { goes_on, padded: false, before: 0, behind: 0, ..block });
            }
            (HEADERS, _) => {
                let stream = u32::from_be_bytes(id) & 0x7fff_ffff;
                let is_trailers = stream <= self.opened;
                self.opened = self.opened.max(stream);
                let (padded, ranked) = (flags & PADDED != 0, flags & PRIORITY != 0);
                let before = u32::from(padded) + if ranked { PRIORITY_BYTES } else { 0 };
                let block = Block {
                    is_trailers,
                    stream,
                    goes_on,
                    padded,
                    ranked,
                    before,
                    ..Block::default()
                };
                self.block = Some(block);
                self.names.begin();
            }
            _ => self.block = None,
        }
    }
}

impl Block {
    /// Where in `bytes`, the next of `left` of the frame, a pseudo field of trailers was found, and why
    /// the block is refused. One such field is enough. Each fragment of a path is changed, since the
    /// reader may keep the path for a later head.
    fn see(
        &mut self,
        bytes: &mut [u8],
        left: u32,
        names: &mut FieldNames,
    ) -> (Option<usize>, Option<Refusal>) {
        let mut from = 0;
        while let (1.., Some(byte)) = (self.before, bytes.get(from)) {
            self.see_before(*byte);
            from += 1;
        }
        // The h2 crate resets a stream that depends on itself, and does not read its block.
        if self.ranked && self.before == 0 && self.dependency & 0x7fff_ffff == self.stream {
            return (None, None);
        }
        let of_block = (left - from as u32).saturating_sub(self.behind) as usize;
        let end = bytes.len().min(from + of_block);
        let (mut found, mut fragments) = (None, Vec::new());
        names.read(&bytes[from..end], |it| match it {
            Found::Field(named) if named.entry.is_pseudo && found.is_none() => {
                found = Some(from + named.at);
            }
            Found::Field(_) => {}
            Found::Fragment { at, bits } => fragments.push((from + at, bits)),
        });
        let ambiguous = (!fragments.is_empty()).then_some(Refusal::AmbiguousHead);
        for (at, bits) in fragments {
            bytes[at] ^= bits;
        }
        if !self.is_trailers || self.malformed {
            return (None, ambiguous);
        }
        self.malformed = found.is_some();
        (found, found.map(|_| Refusal::MalformedTrailers).or(ambiguous))
    }

    /// A byte before the frame's part of the block.
    fn see_before(&mut self, byte: u8) {
        self.before -= 1;
        if std::mem::take(&mut self.padded) {
            self.behind = u32::from(byte);
        } else if self.before > 0 {
            // Behind the stream comes its weight.
            self.dependency = self.dependency << 8 | u32::from(byte);
        }
    }

    /// Has the block, of which `rest` is what came, be malformed whatever follows.
    fn spoil(&mut self, rest: &mut [u8]) {
        self.spoilt = true;
        rest.fill(ENDLESS);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(1);

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
                let (parts, refusal) = frames.see(&mut piece.to_vec());
                assert_eq!(refusal, None);
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
        let head =
            [frame(HEADERS, whole, 1, b"\x83\x86\x44\x04/own"), frame(DATA, 0, 1, b"abc")].concat();
        for (trailers, malformed, flags_at) in [
            (frame(HEADERS, ends, 1, b"\x00\x01x\x011"), false, None),
            (frame(HEADERS, ends, 3, path), false, None),
            (frame(HEADERS, ends, 1, path), true, Some(4)),
            // What the head added to the dynamic table.
            (frame(HEADERS, ends, 1, b"\xbe"), true, Some(4)),
            (frame(HEADERS, ends, 1, b"\x7e\x01/"), true, Some(4)),
            (frame(HEADERS, ends, 1, b"\x0f\x2f\x01/"), true, Some(4)),
            (frame(HEADERS, ends, 1, b"\x40\x01x\x011\xbe"), false, None),
            (frame(HEADERS, ends, 1, b"\x40\x01x\x011\xbf"), true, Some(4)),
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
                    found |= frames.see(&mut piece).1.is_some();
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

    /// What the h2 crate makes of the frames: the trailers of the one request in them, or its error.
    async fn read_by_h2(frames: &[u8]) -> Result<Option<http::HeaderMap>, h2::Error> {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        client.write_all(crate::http::framing::H2_PREFACE).await.unwrap();
        client.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        client.write_all(frames).await.unwrap();
        let mut server = h2::server::handshake(server).await?;
        let malformed = || h2::Error::from(h2::Reason::PROTOCOL_ERROR);
        let accepted = server.accept().await.ok_or_else(malformed)?;
        let mut body = accepted?.0.into_body();
        let reading = async {
            while let Some(data) = body.data().await {
                data?;
            }
            body.trailers().await
        };
        tokio::select! {
            biased;
            read = reading => read,
            Some(Err(error)) = server.accept() => Err(error),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_became_malformed_is_refused_by_its_reader_however_it_is_cut() {
        let frame = |kind: u8, flags: u8, payload: &[u8]| {
            let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
            [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
        };
        let trailers = |block: &[u8]| frame(HEADERS, END_STREAM | END_HEADERS, block);
        // A table as full as it gets, whose oldest field is the path.
        let full = [&b"\x83\x86\x44\x04/own"[..], &b"\x40\x01x\x00".repeat(122)].concat();
        let small = b"\x83\x86\x44\x04/own".to_vec();
        for (head, block, is_refused) in [
            (&small, &b"\x00\x01x\x011"[..], false),
            (&small, b"\x84", true),
            (&small, b"\xbe", true),
            (&small, b"\x0f\x2f\x01/", true),
            (&small, b"\x7e\x01/", true),
            (&small, b"\x00\x05:path\x01/", true),
            (&small, b"\x00\x84\xb9\x58\xd3\x3f\x01/", true),
            (&small, b"\xbe\x00\x01y\x011", true),
            (&full, b"\xff\x39", true),
            (&full, b"\xff\x39\x00\x01y\x011", true),
            (&full, b"\x7f\x79\x01/", true),
            (&full, b"\x0f\xa9\x01\x01/", true),
            (&full, b"\x0f\xa9\x01\x01/\x00\x01y\x011", true),
            (&full, b"\xff\x38", false),
        ] {
            let whole =
                [&frame(HEADERS, END_HEADERS, head)[..], &frame(DATA, 0, b"abc"), &trailers(block)];
            let whole = whole.concat();
            for step in [1, 2, 3, 5, 8, 13, whole.len()] {
                let (mut frames, mut came, mut found) = (Frames::default(), whole.clone(), false);
                for piece in came.chunks_mut(step) {
                    found |= frames.see(piece).1.is_some();
                }
                assert_eq!(found, is_refused, "{block:x?} in steps of {step}");
                let read = timeout(SOON, read_by_h2(&came)).await.expect("it is read or refused");
                assert_eq!(read.is_err(), is_refused, "{block:x?} in steps of {step}: {read:?}");
            }
            let unseen = timeout(SOON, read_by_h2(&whole)).await.unwrap();
            assert!(unseen.is_ok_and(|trailers| trailers.is_some()), "{block:x?} passes by itself");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_whose_path_has_a_fragment_is_refused_by_its_reader_however_it_is_cut() {
        let head = |block: &[u8]| {
            let length = u32::try_from(block.len()).unwrap().to_be_bytes();
            [&length[1..], &[HEADERS, END_STREAM | END_HEADERS, 0, 0, 0, 1], block].concat()
        };
        // `/a#b` in the Huffman code and without it, kept in the table or not.
        for path in [&b"\x04\x04/a#b"[..], b"\x44\x84\x60\x7f\xf5\x1f", b"\x00\x05:path\x04/a#b"] {
            let whole = head(&[b"\x82\x86\x41\x01x", path].concat());
            for step in [1, 2, 3, 5, whole.len()] {
                let (mut frames, mut came, mut found) = (Frames::default(), whole.clone(), None);
                for piece in came.chunks_mut(step) {
                    found = found.or(frames.see(piece).1);
                }
                assert_eq!(found, Some(Refusal::AmbiguousHead), "{path:x?} in steps of {step}");
                // It resets the stream, and hands on no request: time passes once nothing else happens.
                let read = timeout(SOON, read_by_h2(&came)).await;
                assert!(!matches!(read, Ok(Ok(_))), "{path:x?} in steps of {step}: {read:?}");
            }
            let unseen = timeout(SOON, read_by_h2(&whole)).await.unwrap();
            assert!(unseen.is_ok(), "{path:x?} passes by itself: {unseen:?}");
        }
    }

    #[test]
    fn a_head_that_its_reader_leaves_out_adds_nothing_to_the_table() {
        let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
            let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
            [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
        };
        let path = b"\x83\x86\x44\x04/own";
        let on_itself = [&[0, 0, 0, 3, 16][..], b"\x40\x01x\x011"].concat();
        let stream = [
            frame(HEADERS, END_HEADERS, 1, path),
            frame(HEADERS, END_HEADERS | PRIORITY, 3, &on_itself),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xbe"),
        ];
        for step in [1, 7, 4096] {
            let mut frames = Frames::default();
            let mut stream = stream.concat();
            let found = stream.chunks_mut(step).any(|piece| frames.see(piece).1.is_some());
            assert!(found, "in steps of {step}");
        }
    }
}
