//! The effect of one operation on a register's contents: decided here, by the clock that is passed
//! in.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use warmhop_core::ids::WallTime;
use warmhop_core::octets;

use crate::app::session::SessionError;
use crate::http::body::BoxError;
pub(crate) use crate::request::answer::{Answer, Held};
use crate::request::registers::bounds::{HELD_BYTES, STATE_BYTES_MAX};

/// A use restarts an idle time only once this part of it is over: so a read causes a write now and
/// then, but not each time.
const MOVED_AFTER: u64 = 10;
/// An operation or its answer in transit: a value, a key and their fields.
pub(crate) const FRAME_BYTES_MAX: usize = STATE_BYTES_MAX + 256;
/// The largest scratch that is kept.
const SCRATCH_BYTES_MAX: usize = 64 * 1024;

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

thread_local! {
    /// Where states are put together: memory that was used a moment ago, instead of another piece of each
    /// state's size.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn compose(version: u64, idles: bool, key: &[u8], bytes: &[u8]) -> Result<Arc<[u8]>, BoxError> {
    let key_len = u16::try_from(key.len()).map_err(|_| "the key is too long")?;
    let len = HELD_BYTES + key.len() + bytes.len();
    if len > STATE_BYTES_MAX {
        return Err(SessionError::TooLarge { bytes: len, bytes_max: STATE_BYTES_MAX }.into());
    }
    let mut state = SCRATCH.take();
    state.clear();
    state.reserve(len);
    state.extend_from_slice(&version.to_be_bytes());
    state.push(u8::from(idles));
    state.extend_from_slice(&key_len.to_be_bytes());
    state.extend_from_slice(key);
    state.extend_from_slice(bytes);
    let composed = Arc::from(&state[..]);
    if state.capacity() <= SCRATCH_BYTES_MAX {
        SCRATCH.set(state);
    }
    Ok(composed)
}

/// The facts of an operation's turn, besides the register's state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// When its present contents expire.
    pub(crate) expiry: WallTime,
    /// When it expires if this turn is its last use.
    pub(crate) idle_until: WallTime,
    /// The number that a change will have, if one was reserved for it.
    pub(crate) n: Option<u64>,
}

/// What an operation makes of a register's contents: its new state, if there is one, and when that ends.
pub(crate) struct Next {
    pub(crate) state: Option<Arc<[u8]>>,
    pub(crate) until: WallTime,
}

/// Executes one operation on a register's contents, which change if it returns what comes next. `ttl` is the
/// idle time, `now` the mesh's time.
pub(crate) fn execute(
    operation: &Operation<'_>,
    state: Option<&Arc<[u8]>>,
    turn: &Turn,
    ttl: Duration,
    now: WallTime,
) -> Result<(Answer, Option<Next>), BoxError> {
    let held = match state {
        Some(state) => Some(parse(state).ok_or("the register's state is malformed")?),
        None => None,
    };
    let held = held.filter(|_| turn.expiry > now);
    let shared = |bytes: &[u8]| {
        state.map_or_else(Bytes::new, |it| Bytes::from_owner(Arc::clone(it)).slice_ref(bytes))
    };
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
            let (until, idles) = ending(expires);
            let state = Some(compose(next, idles, key, bytes)?);
            (done(true, next), Some(Next { state, until }))
        }
        Operation::Expire { expires, when } if holds(when) && version > 0 => {
            let (until, idles) = ending(expires);
            let (key, bytes) = held.as_ref().map_or((&[][..], &[][..]), |it| (it.key, it.bytes));
            let state = Some(compose(next, idles, key, bytes)?);
            (done(true, next), Some(Next { state, until }))
        }
        Operation::Delete { when } if holds(when) && version > 0 => {
            (done(true, 0), Some(Next { state: None, until: now }))
        }
        // It changes nothing, but it is a use. The version stays, as the value does.
        Operation::Get
        | Operation::Put { .. }
        | Operation::Expire { .. }
        | Operation::Delete { .. } => {
            let part = turn.idle_until.0.saturating_sub(turn.expiry.0).saturating_mul(MOVED_AFTER);
            let moves =
                held.as_ref().is_some_and(|it| it.idles) && u128::from(part) > ttl.as_millis();
            let moved = moves.then(|| Next { state: state.cloned(), until: turn.idle_until });
            (done(matches!(operation, Operation::Get) && held.is_some(), version), moved)
        }
        Operation::List { .. } => (done(false, 0), None),
    })
}
