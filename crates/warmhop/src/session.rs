//! What an app sees of its client's session: a handle in the request's extensions, or the
//! carried `Warmhop-Session` field.

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use warmhop_core::ids::WallTime;

/// The session of the client whose request is being served, for apps whose sessions are
/// `portable`. Found in the request's extensions.
///
/// What [`Session::set`] leaves when the response's head is returned is committed, replicated,
/// before the client sees the response; later changes are refused.
#[derive(Clone)]
pub struct Session(Arc<Mutex<Cell>>);

/// What a session's turn knows beside its state.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Turn {
    /// When what it holds ends.
    pub(crate) expiry: WallTime,
    /// When it ends if it is used at this turn and then no more.
    pub(crate) idle_until: WallTime,
    /// The number that a change will have, where one was reserved for it.
    pub(crate) n: Option<u64>,
    /// When what it is changed to shall end, where that is not the session's idle time from now.
    pub(crate) keep_until: Option<WallTime>,
}

struct Cell {
    state: Option<Bytes>,
    turn: Turn,
    changed: bool,
    closed: bool,
    bytes_max: usize,
}

/// Why a session was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The response's head has gone: what it said is committed already.
    #[error("the session cannot be changed after the response was returned; set it before")]
    TooLate,
    /// The state is larger than the mesh keeps for one session.
    #[error(
        "the session's state has {bytes} bytes, but at most {bytes_max} are kept; store a reference instead"
    )]
    TooLarge {
        /// The state's size in bytes.
        bytes: usize,
        /// The bound, in bytes.
        bytes_max: usize,
    },
}

impl Session {
    pub(crate) fn new(state: Option<Bytes>, bytes_max: usize, turn: Turn) -> Self {
        let cell = Cell { state, turn, changed: false, closed: false, bytes_max };
        Self(Arc::new(Mutex::new(cell)))
    }

    pub(crate) fn turn(&self) -> Turn {
        self.cell().turn
    }

    /// Lets what the session is changed to end at `expiry`.
    pub(crate) fn end_at(&self, expiry: WallTime) {
        self.cell().turn.keep_until = Some(expiry);
    }

    pub(crate) fn keep_until(&self) -> Option<WallTime> {
        self.cell().turn.keep_until
    }

    fn cell(&self) -> std::sync::MutexGuard<'_, Cell> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that the app last set; `None` for a session that holds nothing.
    #[must_use]
    pub fn get(&self) -> Option<Bytes> {
        self.cell().state.clone()
    }

    /// Replaces the session's bytes.
    ///
    /// # Errors
    /// See [`SessionError`]; nothing changed.
    pub fn set(&self, state: impl Into<Bytes>) -> Result<(), SessionError> {
        let state = state.into();
        let mut cell = self.cell();
        if cell.closed {
            return Err(SessionError::TooLate);
        }
        if state.len() > cell.bytes_max {
            return Err(SessionError::TooLarge { bytes: state.len(), bytes_max: cell.bytes_max });
        }
        cell.state = Some(state);
        cell.changed = true;
        Ok(())
    }

    /// Forgets the session's bytes.
    ///
    /// # Errors
    /// [`SessionError::TooLate`] after the response was returned.
    pub fn clear(&self) -> Result<(), SessionError> {
        let mut cell = self.cell();
        if cell.closed {
            return Err(SessionError::TooLate);
        }
        cell.changed |= cell.state.take().is_some();
        Ok(())
    }

    /// Ends the app's turn; what it changed, if anything: the new state.
    pub(crate) fn close(&self) -> Option<Option<Bytes>> {
        let mut cell = self.cell();
        cell.closed = true;
        cell.changed.then(|| cell.state.clone())
    }
}

impl std::fmt::Debug for Session {
    /// Sessions may hold secrets: only their size is shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.cell().state.as_ref().map_or(0, Bytes::len);
        write!(f, "Session({bytes} bytes)")
    }
}

/// The carried form: an RFC 9651 byte sequence (section 3.3.5).
pub(crate) fn to_field(state: &[u8]) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!(":{}:", STANDARD.encode(state))).ok()
}

/// Reads the carried form; parameters behind it are passed over, as section 4.2 asks.
pub(crate) fn from_field(value: &HeaderValue) -> Option<Bytes> {
    let text = value.to_str().ok()?.trim().strip_prefix(':')?;
    let (encoded, rest) = text.split_once(':')?;
    if !(rest.is_empty() || rest.trim_start().starts_with(';')) {
        return None;
    }
    STANDARD.decode(encoded).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_carried_form_reads_back_and_refuses_what_is_no_byte_sequence() {
        let value = to_field(b"\x00state").unwrap();
        assert_eq!(from_field(&value).unwrap(), &b"\x00state"[..]);
        assert_eq!(from_field(&HeaderValue::from_static("::")).unwrap(), Bytes::new());
        assert_eq!(from_field(&HeaderValue::from_static(":YQ==:;a=1")).unwrap(), &b"a"[..]);
        for bad in ["", ":", "YQ==", ":Y:", ":YQ==:x", "\"a\""] {
            assert_eq!(from_field(&HeaderValue::from_static(bad)), None, "{bad}");
        }
    }

    #[test]
    fn a_change_after_the_response_is_refused_not_lost_in_silence() {
        let session = Session::new(None, 4, Turn::default());
        session.set("abcd").unwrap();
        assert_eq!(session.set("abcde"), Err(SessionError::TooLarge { bytes: 5, bytes_max: 4 }));
        assert_eq!(session.close(), Some(Some(Bytes::from("abcd"))));
        assert_eq!(session.set("x"), Err(SessionError::TooLate));
        assert_eq!(session.clear(), Err(SessionError::TooLate));
    }

    #[test]
    fn reading_changes_nothing() {
        let session = Session::new(Some(Bytes::from("a")), 4, Turn::default());
        assert_eq!(session.get().unwrap(), "a");
        assert_eq!(session.close(), None);
    }
}
