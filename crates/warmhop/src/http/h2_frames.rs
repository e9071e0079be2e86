//! Follows the frames of an HTTP/2 connection (RFC 9113 section 4.1) just far enough to count the
//! parts of bodies: small frames take far more memory than their bytes.

/// The position of the next byte in the frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Frames {
    head: [u8; 9],
    have: u8,
    payload_left: u32,
}

/// The parts of bodies that arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct BodyParts {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
}

/// The type of the frames that bodies come in.
const DATA: u8 = 0;

impl Frames {
    pub(crate) fn see(&mut self, mut bytes: &[u8]) -> BodyParts {
        let mut parts = BodyParts::default();
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload_left > 0 {
                let take = bytes.len().min(self.payload_left as usize);
                self.payload_left -= take as u32;
                bytes = &bytes[take..];
                continue;
            }
            self.head[usize::from(self.have)] = *first;
            self.have += 1;
            bytes = rest;
            if usize::from(self.have) == self.head.len() {
                self.have = 0;
                let [high, middle, low, kind, ..] = self.head;
                self.payload_left = u32::from_be_bytes([0, high, middle, low]);
                if kind == DATA {
                    parts.frames += 1;
                    parts.bytes += self.payload_left as usize;
                }
            }
        }
        parts
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
                let parts = frames.see(piece);
                all.frames += parts.frames;
                all.bytes += parts.bytes;
            }
            assert_eq!(all, BodyParts { frames: 3, bytes: 70_001 }, "in steps of {step}");
            assert_eq!((frames.have, frames.payload_left), (0, 0));
        }
    }
}
