//! The effect of one operation on a register's contents: decided here, by the clock that is passed
//! in.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use warmhop_core::ids::WallTime;
use warmhop_core::octets;

use crate::app::session::Session;
use crate::http::body::BoxError;
pub(crate) use crate::request::answer::{Answer, Held};
use crate::request::registers::bounds::{HELD_BYTES, STATE_BYTES_MAX};

/// A use restarts an idle time only once this part of it is over: so a read causes a write now and
/// then, but not each time.
const MOVED_AFTER: u64 = 10;
/// An operation or its answer in transit: a value, a key and their fields.
pub(crate) const FRAME_BYTES_MAX: usize = STATE_BYTES_MAX + 256;
/// On what condition a register is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum When {
    /// Whatever it holds.
    Always,
    /// It holds nothing.
    Absent,
    /// It holds something.
    Present,
    /// It holds the value of this version.
    Version(u64),
}

/// An operation on its way to the register's owner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Operation<'a> {
    Get,
    Put {
        #[serde(borrow, serialize_with = "octets::serialize")]
        key: &'a [u8],
        #[serde(serialize_with = "octets::serialize")]
        bytes: &'a [u8],
        expires: Ending,
        when: When,
    },
    Expire {
        expires: Ending,
        when: When,
    },
    Delete {
        when: When,
    },
    /// Not for one register: the keys that this peer holds.
    List {
        from: u64,
        count: u64,
    },
}

/// [`Expires`](crate::Expires), with a named time converted by the clock of the peer that was
/// asked.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Ending {
    Idle,
    At(u64),
    Keep,
}

/// A register's state: its version, whether it expires when idle, its key's length, its key, its
/// value.
pub(crate) struct Parsed<'a> {
    pub(crate) version: u64,
    pub(crate) idles: bool,
    pub(crate) key: &'a [u8],
    pub(crate) bytes: &'a [u8],
}

pub(crate) fn parse(state: &[u8]) -> Option<Parsed<'_>> {
    let (version, rest) = state.split_first_chunk::<8>()?;
    let (idles, rest) = rest.split_first()?;
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let (key, bytes) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
    Some(Parsed { version: u64::from_be_bytes(*version), idles: *idles != 0, key, bytes })
}

fn compose(version: u64, idles: bool, key: &[u8], bytes: &[u8]) -> Option<Bytes> {
    let mut state = BytesMut::with_capacity(HELD_BYTES + key.len() + bytes.len());
    state.put_u64(version);
    state.put_u8(u8::from(idles));
    state.put_u16(u16::try_from(key.len()).ok()?);
    state.put_slice(key);
    state.put_slice(bytes);
    Some(state.freeze())
}

/// Executes one operation on a register's contents. `ttl` is the idle time, `now` the mesh's time.
pub(crate) fn execute(
    operation: &Operation<'_>,
    session: &Session,
    ttl: Duration,
    now: WallTime,
) -> Result<Answer, BoxError> {
    let state = session.get();
    let turn = session.turn();
    let held = match &state {
        Some(state) => Some(parse(state).ok_or("the register's state is malformed")?),
        None => None,
    };
    let held = held.filter(|_| turn.expiry > now);
    let shared = |bytes: &[u8]| state.as_ref().map_or_else(Bytes::new, |it| it.slice_ref(bytes));
    let before = held.as_ref().map(|held| Held {
        bytes: shared(held.bytes),
        version: held.version,
        expires: turn.expiry.0,
    });
    let version = held.as_ref().map_or(0, |held| held.version);
    let holds = |when: &When| match when {
        When::Always => true,
        When::Absent => held.is_none(),
        When::Present => held.is_some(),
        When::Version(wanted) => held.as_ref().is_some_and(|held| held.version == *wanted),
    };
    // It also returns whether the value expires when idle.
    let ending = |expires: &Ending| match (expires, &held) {
        (Ending::At(at), _) => (WallTime(*at), false),
        (Ending::Keep, Some(held)) if !held.idles => (turn.expiry, false),
        (Ending::Idle | Ending::Keep, Some(held)) if held.idles => {
            (turn.idle_until.max(turn.expiry), true)
        }
        (Ending::Idle | Ending::Keep, _) => (turn.idle_until, true),
    };
    let next = turn.n.unwrap_or_default();
    let done = |done, version| Answer { done, version, before };
    Ok(match operation {
        Operation::Put { key, bytes, expires, when } if holds(when) => {
            let (end, idles) = ending(expires);
            session.set(compose(next, idles, key, bytes).ok_or("the key is too long")?)?;
            session.end_at(end);
            done(true, next)
        }
        Operation::Expire { expires, when } if holds(when) && version > 0 => {
            let (end, idles) = ending(expires);
            let (key, bytes) = held.as_ref().map_or((&[][..], &[][..]), |it| (it.key, it.bytes));
            session.set(compose(next, idles, key, bytes).ok_or("the key is too long")?)?;
            session.end_at(end);
            done(true, next)
        }
        Operation::Delete { when } if holds(when) && version > 0 => {
            session.clear()?;
            session.end_at(now);
            done(true, 0)
        }
        // It changes nothing, but it is a use. The version stays, as the value does.
        Operation::Get
        | Operation::Put { .. }
        | Operation::Expire { .. }
        | Operation::Delete { .. } => {
            let part = turn.idle_until.0.saturating_sub(turn.expiry.0).saturating_mul(MOVED_AFTER);
            if held.as_ref().is_some_and(|held| held.idles) && u128::from(part) > ttl.as_millis() {
                session.set(state.clone().unwrap_or_default())?;
                session.end_at(turn.idle_until);
            }
            done(matches!(operation, Operation::Get) && held.is_some(), version)
        }
        Operation::List { .. } => done(false, 0),
    })
}
