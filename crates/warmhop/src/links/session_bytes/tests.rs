use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::links::wire::{SESSION_FRAME_BYTES_MAX, decode, encode};

/// How many frames are drawn, and how often each is damaged.
const FRAMES: usize = 2000;
const DAMAGES: usize = 20;

struct Draw(SmallRng);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0.random_range(0..bound)
    }

    fn flag(&mut self) -> bool {
        self.0.random()
    }

    /// One of every length, and those at the bounds between the lengths.
    fn number(&mut self) -> u64 {
        let bounds = [0, 250, 251, 0xFF, 0x100, 0xFFFF, 0x1_0000, 0xFFFF_FFFF, 1 << 32, u64::MAX];
        match self.below(3) {
            0 => bounds[self.below(bounds.len() as u64) as usize],
            1 => self.below(251),
            _ => self.0.random::<u64>() >> self.below(64),
        }
    }

    fn octets(&mut self) -> Arc<[u8]> {
        let length = [0, 1, 250, 251, 1024, 70_000][self.below(6) as usize];
        (0..length).map(|_| self.0.random::<u8>()).collect()
    }

    fn ballot(&mut self) -> Ballot {
        Ballot { round: self.number(), proposer: Incarnation(self.0.random()) }
    }

    fn position(&mut self) -> Position {
        Position { ballot: self.ballot(), n: self.number() }
    }

    fn members(&mut self) -> Members {
        let count = self.below(MEMBERS_MAX as u64 + 1);
        let who = (0..count).map(|_| Incarnation(self.0.random())).collect();
        Members { c: self.number() as u32, stamp: self.number(), who }
    }

    fn config(&mut self) -> Arc<Config> {
        let prev = self.flag().then(|| Box::new(self.members()));
        Arc::new(Config { now: self.members(), prev })
    }

    fn body(&mut self) -> Arc<Body> {
        let recent = (0..self.below(20)).map(|_| Recent {
            rid: RequestKey(self.0.random()),
            fingerprint: self.number(),
            keyed: self.flag(),
            n: self.number(),
            response: match self.below(5) {
                0 => Stored::Applied,
                1 => Stored::Response(self.octets()),
                2 => Stored::TooLarge,
                3 => Stored::Unknown,
                _ => Stored::Begun(self.number()),
            },
        });
        Arc::new(Body {
            recent: recent.collect(),
            state: self.flag().then(|| self.octets()),
            floor_keyed: self.number(),
            floor_unkeyed: self.number(),
            expiry: WallTime(self.number()),
            ended: None,
        })
    }

    fn message(&mut self) -> Message {
        match self.below(4) {
            0 => Message::Prepare {
                b: self.ballot(),
                cfg: self.config(),
                want_body: self.flag(),
                polite: self.flag(),
                nonce: self.number(),
                expiry: WallTime(self.number()),
                into: self.flag().then(|| self.config()),
            },
            1 => Message::Promise {
                b: self.ballot(),
                cfg: self.config(),
                nonce: self.number(),
                accepted: self.flag().then(|| AcceptedInfo {
                    p: self.position(),
                    cfg: self.config(),
                    body: self.flag().then(|| self.body()),
                }),
                births: Vec::new(),
            },
            2 => Message::Accept {
                p: self.position(),
                cfg: self.config(),
                body: match self.flag() {
                    true => BodyRef::Full(self.body()),
                    false => BodyRef::Same(self.position()),
                },
            },
            _ => Message::Accepted { p: self.position() },
        }
    }

    fn frame(&mut self) -> SessionFrame {
        let app = AppName::new(["shop", "redis", "a"][self.below(3) as usize]).unwrap();
        let key = SessionKey { app, sid: SessionId(self.0.random()) };
        SessionFrame { key, to: Incarnation(self.0.random()), message: self.message() }
    }
}

fn written(frame: &SessionFrame) -> Option<Vec<u8>> {
    let mut bytes = b"before".to_vec();
    let put = put(frame, &mut bytes);
    assert!(bytes.starts_with(b"before"));
    assert_eq!(put.is_some(), bytes.len() > 6, "nothing is left of another kind");
    put.map(|()| bytes.split_off(6))
}

#[test]
fn frames_have_the_bytes_that_the_serializer_gives_them_and_read_back() {
    let mut draw = Draw(SmallRng::seed_from_u64(1));
    for _ in 0..FRAMES {
        let frame = draw.frame();
        let bytes = written(&frame).unwrap();
        assert_eq!(bytes, encode(&frame, usize::MAX).unwrap());
        assert_eq!(take(&bytes), Some(frame));
    }
}

#[test]
fn bytes_that_are_read_here_are_what_the_serializer_reads() {
    let mut draw = Draw(SmallRng::seed_from_u64(2));
    let mut read = 0;
    for _ in 0..FRAMES {
        let whole = written(&draw.frame()).unwrap();
        for _ in 0..DAMAGES {
            let mut bytes = whole.clone();
            let at = draw.below(bytes.len().min(400) as u64) as usize;
            match draw.below(3) {
                0 => {
                    bytes[at] = [0, 1, 2, 4, 250, 251, 252, 253, 254, 255][draw.below(10) as usize]
                }
                1 => bytes.truncate(at),
                _ => bytes.insert(at, draw.0.random()),
            }
            if let Some(frame) = take(&bytes) {
                read += 1;
                let expected = decode::<SessionFrame, SESSION_FRAME_BYTES_MAX>(&bytes);
                assert_eq!(expected.as_ref(), Ok(&frame), "{bytes:?}");
            }
        }
    }
    assert!(read > 1000, "{read} of them are frames still");
}

#[test]
fn what_is_rare_is_left_to_the_serializer() {
    let mut draw = Draw(SmallRng::seed_from_u64(3));
    let others = [
        Message::NeedFull { p: draw.position() },
        Message::DEAD_LETTER,
        Message::Invite { cfg: draw.config() },
        Message::Delta,
    ];
    for message in others {
        let frame = SessionFrame { message, ..draw.frame() };
        assert_eq!(written(&frame), None);
        assert_eq!(take(&encode(&frame, 1000).unwrap()), None);
    }
    let births = vec![Birth { b: draw.ballot(), cfg: draw.config() }];
    let (b, cfg) = (draw.ballot(), draw.config());
    let message = Message::Promise { b, cfg, nonce: 1, accepted: None, births };
    let frame = SessionFrame { message, ..draw.frame() };
    assert_eq!(written(&frame).unwrap(), encode(&frame, 1000).unwrap());
}
