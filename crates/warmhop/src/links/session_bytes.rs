//! The bytes of the frames that commits and reads consist of, written and read without a serializer.
//!
//! They are those of `wire.rs`, which remains what defines them: a frame of any other kind, and bytes that
//! are not exactly as expected, are left to it. A serializer takes about ten times the instructions, and
//! of a small session's commit these were a third at the members.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use bytes::BytesMut;
use warmhop_core::ids::{
    AppName, Ballot, Incarnation, Position, RequestKey, SessionId, SessionKey, WallTime,
};
use warmhop_core::session::message::{
    AcceptedInfo, Birth, Body, BodyRef, Config, MEMBERS_MAX, Members, Message, Recent, Stored,
};

use crate::links::wire::{
    self, DecodeError, EncodeError, FRAME_HEADER_BYTES, FrameError, FrameReader, SCRATCH_BYTES_MAX,
    SESSION_FRAME_BYTES_MAX, SessionFrame,
};

/// The numbers of the kinds of messages, in the order of [`Message`].
const PREPARE: u8 = 0;
const PROMISE: u8 = 1;
const ACCEPT: u8 = 2;
const ACCEPTED: u8 = 3;
/// Of [`BodyRef`].
const FULL: u8 = 0;
const SAME: u8 = 1;
/// Of [`Stored`].
const APPLIED: u8 = 0;
const RESPONSE: u8 = 1;
const TOO_LARGE: u8 = 2;
const UNKNOWN: u8 = 3;
const BEGUN: u8 = 4;
/// Above this, a number begins with a byte that says how many bytes follow.
const ONE_BYTE_MAX: u64 = 250;
const TWO_BYTES: u8 = 251;
const FOUR_BYTES: u8 = 252;
const EIGHT_BYTES: u8 = 253;
/// The least that a remembered request takes.
const RECENT_BYTES_MIN: usize = 20;
/// What one takes that has no answer, at most.
const RECENT_BYTES: usize = 16 + 9 + 1 + 9 + 10;
/// What else a frame takes at most, about: room for it is made once.
const REST_BYTES: usize = 512;
/// A frame with more of them is read by the serializer, which has a bound for what it allocates.
const RECENT_MAX: usize = 1024;

thread_local! {
    /// Where frames are encoded.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The result of `use_them` for the bytes of a frame, without the length before it.
pub(super) fn encoded<R>(
    frame: &SessionFrame,
    use_them: impl FnOnce(&[u8]) -> R,
) -> Result<R, EncodeError> {
    let mut bytes = SCRATCH.take();
    bytes.clear();
    let put = put(frame, &mut bytes).filter(|()| bytes.len() <= SESSION_FRAME_BYTES_MAX);
    let result = match put {
        Some(()) => Ok(use_them(&bytes)),
        None => wire::encode(frame, SESSION_FRAME_BYTES_MAX).map(|bytes| use_them(&bytes)),
    };
    if bytes.capacity() <= SCRATCH_BYTES_MAX {
        SCRATCH.set(bytes);
    }
    result
}

/// The next frame of a session; `None` at the end of the stream.
pub(super) async fn next(reader: &mut FrameReader) -> Result<Option<SessionFrame>, FrameError> {
    let Some(frame) = reader.frame(SESSION_FRAME_BYTES_MAX).await? else { return Ok(None) };
    Ok(Some(decode(&frame)?))
}

/// Appends the frame of a session with the length before it, as [`wire::put_frame`] does.
pub(super) fn put_frame(buffer: &mut BytesMut, frame: &SessionFrame) -> Result<(), EncodeError> {
    encoded(frame, |bytes| wire::put_encoded(buffer, bytes))
}

/// Changes the addressee of a session's encoded frame. No other byte of it depends on the addressee.
pub(super) fn readdress(frame: &mut [u8], key: &SessionKey, to: Incarnation) {
    // The name's length fits one byte.
    let at = FRAME_HEADER_BYTES + 1 + key.app.as_str().len() + key.sid.0.len();
    frame[at..at + to.0.len()].copy_from_slice(&to.0);
}

/// Reads a frame.
pub(super) fn decode(bytes: &[u8]) -> Result<SessionFrame, DecodeError> {
    match take(bytes) {
        Some(frame) => Ok(frame),
        None => wire::decode::<_, SESSION_FRAME_BYTES_MAX>(bytes),
    }
}

/// Appends a frame; `None`, and the bytes are as they were, for one of another kind.
pub(super) fn put(frame: &SessionFrame, bytes: &mut Vec<u8>) -> Option<()> {
    let begin = bytes.len();
    let put = Out(bytes).frame(frame);
    if put.is_none() {
        bytes.truncate(begin);
    }
    put
}

struct Out<'a>(&'a mut Vec<u8>);

impl Out<'_> {
    fn frame(&mut self, frame: &SessionFrame) -> Option<()> {
        let SessionFrame { key, to, message } = frame;
        self.octets(key.app.as_str().as_bytes());
        self.raw(&key.sid.0);
        self.raw(&to.0);
        match message {
            Message::Prepare { b, cfg, want_body, polite, nonce, expiry, into } => {
                self.0.push(PREPARE);
                self.ballot(*b);
                self.config(cfg);
                self.0.extend_from_slice(&[u8::from(*want_body), u8::from(*polite)]);
                self.number(*nonce);
                self.number(expiry.0);
                self.option(into.as_deref(), |out, cfg| {
                    out.config(cfg);
                    Some(())
                })
            }
            Message::Promise { b, cfg, nonce, accepted, births } => {
                self.0.push(PROMISE);
                self.ballot(*b);
                self.config(cfg);
                self.number(*nonce);
                self.option(accepted.as_ref(), |out, info| {
                    out.position(info.p);
                    out.config(&info.cfg);
                    out.option(info.body.as_deref(), Self::body)
                })?;
                self.number(births.len() as u64);
                for birth in births {
                    self.ballot(birth.b);
                    self.config(&birth.cfg);
                }
                Some(())
            }
            Message::Accept { p, cfg, body } => {
                self.0.push(ACCEPT);
                self.position(*p);
                self.config(cfg);
                match body {
                    BodyRef::Full(body) => {
                        self.0.push(FULL);
                        self.body(body)
                    }
                    BodyRef::Same(at) => {
                        self.0.push(SAME);
                        self.position(*at);
                        Some(())
                    }
                }
            }
            Message::Accepted { p } => {
                self.0.push(ACCEPTED);
                self.position(*p);
                Some(())
            }
            _ => None,
        }
    }

    fn raw(&mut self, bytes: &[u8; 16]) {
        self.0.extend_from_slice(bytes);
    }

    fn number(&mut self, number: u64) {
        if number <= ONE_BYTE_MAX {
            self.0.push(number as u8);
        } else if let Ok(number) = u16::try_from(number) {
            let [one, two] = number.to_le_bytes();
            self.0.extend_from_slice(&[TWO_BYTES, one, two]);
        } else if let Ok(number) = u32::try_from(number) {
            self.0.push(FOUR_BYTES);
            self.0.extend_from_slice(&number.to_le_bytes());
        } else {
            self.0.push(EIGHT_BYTES);
            self.0.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn octets(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn option<T>(
        &mut self,
        value: Option<T>,
        put: impl FnOnce(&mut Self, T) -> Option<()>,
    ) -> Option<()> {
        self.0.push(u8::from(value.is_some()));
        value.map_or(Some(()), |value| put(self, value))
    }

    fn ballot(&mut self, ballot: Ballot) {
        self.number(ballot.round);
        self.raw(&ballot.proposer.0);
    }

    fn position(&mut self, position: Position) {
        self.ballot(position.ballot);
        self.number(position.n);
    }

    fn config(&mut self, config: &Config) {
        self.members(&config.now);
        self.0.push(u8::from(config.prev.is_some()));
        if let Some(before) = &config.prev {
            self.members(before);
        }
    }

    fn members(&mut self, members: &Members) {
        self.number(members.c.into());
        self.number(members.stamp);
        self.number(members.who.len() as u64);
        members.who.iter().for_each(|peer| self.raw(&peer.0));
    }

    fn body(&mut self, body: &Body) -> Option<()> {
        let Body { state, recent, floor_keyed, floor_unkeyed, expiry, ended } = body;
        if ended.is_some() {
            return None;
        }
        let state_bytes = state.as_deref().map_or(0, <[u8]>::len);
        self.0.reserve(state_bytes + recent.len() * RECENT_BYTES + REST_BYTES);
        self.option(state.as_deref(), |out, state| {
            out.octets(state);
            Some(())
        })?;
        self.number(recent.len() as u64);
        recent.iter().for_each(|recent| self.recent(recent));
        self.number(*floor_keyed);
        self.number(*floor_unkeyed);
        self.number(expiry.0);
        self.0.push(0);
        Some(())
    }

    fn recent(&mut self, recent: &Recent) {
        self.raw(&recent.rid.0);
        self.number(recent.fingerprint);
        self.0.push(u8::from(recent.keyed));
        self.number(recent.n);
        match &recent.response {
            Stored::Applied => self.0.push(APPLIED),
            Stored::Response(response) => {
                self.0.push(RESPONSE);
                self.octets(response);
            }
            Stored::TooLarge => self.0.push(TOO_LARGE),
            Stored::Unknown => self.0.push(UNKNOWN),
            Stored::Begun(attempt) => {
                self.0.push(BEGUN);
                self.number(*attempt);
            }
        }
    }
}

/// The frame that takes up all of these bytes; `None` if they are for the serializer.
pub(crate) fn take(bytes: &[u8]) -> Option<SessionFrame> {
    if bytes.len() > SESSION_FRAME_BYTES_MAX {
        return None;
    }
    let mut from = In(bytes);
    let frame = from.frame()?;
    from.0.is_empty().then_some(frame)
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn frame(&mut self) -> Option<SessionFrame> {
        let app = app_of(self.octets()?)?;
        let key = SessionKey { app, sid: SessionId(self.raw()?) };
        let to = Incarnation(self.raw()?);
        let message = match self.byte()? {
            PREPARE => Message::Prepare {
                b: self.ballot()?,
                cfg: self.config()?,
                want_body: self.flag()?,
                polite: self.flag()?,
                nonce: self.number()?,
                expiry: WallTime(self.number()?),
                into: self.option(Self::config)?,
            },
            PROMISE => Message::Promise {
                b: self.ballot()?,
                cfg: self.config()?,
                nonce: self.number()?,
                accepted: self.option(|from| {
                    let (p, cfg) = (from.position()?, from.config()?);
                    Some(AcceptedInfo { p, cfg, body: from.option(Self::body)? })
                })?,
                births: self.births()?,
            },
            ACCEPT => Message::Accept {
                p: self.position()?,
                cfg: self.config()?,
                body: match self.byte()? {
                    FULL => BodyRef::Full(self.body()?),
                    SAME => BodyRef::Same(self.position()?),
                    _ => return None,
                },
            },
            ACCEPTED => Message::Accepted { p: self.position()? },
            _ => return None,
        };
        Some(SessionFrame { key, to, message })
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn exactly<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn raw(&mut self) -> Option<[u8; 16]> {
        self.exactly()
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn number(&mut self) -> Option<u64> {
        match self.byte()? {
            TWO_BYTES => self.exactly().map(u16::from_le_bytes).map(u64::from),
            FOUR_BYTES => self.exactly().map(u32::from_le_bytes).map(u64::from),
            EIGHT_BYTES => self.exactly().map(u64::from_le_bytes),
            byte if u64::from(byte) <= ONE_BYTE_MAX => Some(byte.into()),
            _ => None,
        }
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(self.number()?).ok()
    }

    fn octets(&mut self) -> Option<&'a [u8]> {
        let length = self.length()?;
        let (octets, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(octets)
    }

    fn option<T>(&mut self, take: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.flag()? { take(self).map(Some) } else { Some(None) }
    }

    fn ballot(&mut self) -> Option<Ballot> {
        Some(Ballot { round: self.number()?, proposer: Incarnation(self.raw()?) })
    }

    fn position(&mut self) -> Option<Position> {
        Some(Position { ballot: self.ballot()?, n: self.number()? })
    }

    fn config(&mut self) -> Option<Arc<Config>> {
        let now = self.members()?;
        let prev = self.option(|from| from.members().map(Box::new))?;
        Some(Arc::new(Config { now, prev }))
    }

    fn members(&mut self) -> Option<Members> {
        // A number of eight bytes is none of four, however small it is.
        if self.0.first() == Some(&EIGHT_BYTES) {
            return None;
        }
        let c = u32::try_from(self.number()?).ok()?;
        let stamp = self.number()?;
        let count = self.length().filter(|count| *count <= MEMBERS_MAX)?;
        let (who, rest) = self.0.split_at_checked(count * 16)?;
        self.0 = rest;
        let (who, _) = who.as_chunks();
        Some(Members { c, stamp, who: who.iter().copied().map(Incarnation).collect() })
    }

    fn births(&mut self) -> Option<Vec<Birth>> {
        // They are rare.
        (self.byte()? == 0).then(Vec::new)
    }

    fn body(&mut self) -> Option<Arc<Body>> {
        let state = self.option(|from| from.octets().map(Arc::from))?;
        let count = self.length()?;
        if count > RECENT_MAX || count > self.0.len() / RECENT_BYTES_MIN {
            return None;
        }
        let mut recent = Vec::with_capacity(count);
        for _ in 0..count {
            recent.push(self.recent()?);
        }
        let (floor_keyed, floor_unkeyed) = (self.number()?, self.number()?);
        let expiry = WallTime(self.number()?);
        let is_over = self.flag()?;
        let body = Body { state, recent, floor_keyed, floor_unkeyed, expiry, ended: None };
        (!is_over).then(|| Arc::new(body))
    }

    fn recent(&mut self) -> Option<Recent> {
        Some(Recent {
            rid: RequestKey(self.raw()?),
            fingerprint: self.number()?,
            keyed: self.flag()?,
            n: self.number()?,
            response: match self.byte()? {
                APPLIED => Stored::Applied,
                RESPONSE => Stored::Response(Arc::from(self.octets()?)),
                TOO_LARGE => Stored::TooLarge,
                UNKNOWN => Stored::Unknown,
                BEGUN => Stored::Begun(self.number()?),
                _ => return None,
            },
        })
    }
}

/// The name of an app. Most frames are about the same one as the last, and share its memory.
fn app_of(name: &[u8]) -> Option<AppName> {
    thread_local! {
        static LAST: RefCell<Option<AppName>> = const { RefCell::new(None) };
    }
    LAST.with_borrow_mut(|last| match last {
        Some(app) if app.as_str().as_bytes() == name => Some(app.clone()),
        _ => {
            let app = AppName::new(std::str::from_utf8(name).ok()?).ok()?;
            *last = Some(app.clone());
            Some(app)
        }
    })
}

#[cfg(test)]
mod tests;
