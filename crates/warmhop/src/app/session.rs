//! How an app sees its client's session: a handle in the request's extensions, or the carried
//! `Warmhop-Session` field.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// The session of the client whose request is being served, for apps whose sessions are
/// `portable`. Found in the request's extensions.
///
/// What [`Session::set`] leaves when the response's head is returned is committed, replicated,
/// before the client sees the response; later changes are refused.
#[derive(Clone)]
pub struct Session(Arc<Mutex<Cell>>);

struct Cell {
    state: Option<Bytes>,
    changed: bool,
    /// Its id ends with this turn.
    ends: bool,
    closed: bool,
    bytes_max: usize,
}

/// Why a session was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The response's head was returned: its session is committed already.
    #[error("the session cannot be changed after the response was returned; set it before")]
    TooLate,
    /// The state is larger than the mesh keeps for one session.
    #[error(
        "the session's state has {bytes} bytes, but at most {bytes_max} are kept; store it through the Redis-speaking endpoint or in registers, and a reference here"
    )]
    TooLarge {
        /// The state's size in bytes.
        bytes: usize,
        /// The bound, in bytes.
        bytes_max: usize,
    },
}

impl Session {
    pub(crate) fn new(state: Option<Bytes>, bytes_max: usize) -> Self {
        let cell = Cell { state, changed: false, ends: false, closed: false, bytes_max };
        Self(Arc::new(Mutex::new(cell)))
    }

    fn cell(&self) -> std::sync::MutexGuard<'_, Cell> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that the app last set; `None` for an empty session.
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

    /// Gives the session a new id once the response is returned, and the client a new cookie for
    /// it; the session's contents stay. The old id is invalid from then on: anybody else with the
    /// old cookie gets an empty session.
    ///
    /// Call this at a login, and wherever else a session gains privileges: a cookie that somebody
    /// planted in the client's browser, or read before, is then worthless (session fixation). A
    /// session that is new with this request has an id that nobody else knows, and keeps it.
    ///
    /// # Errors
    /// [`SessionError::TooLate`] after the response was returned.
    pub fn renew(&self) -> Result<(), SessionError> {
        let mut cell = self.cell();
        if cell.closed {
            return Err(SessionError::TooLate);
        }
        cell.ends = true;
        Ok(())
    }

    /// Removes the session's bytes, and ends its id if it held any: the old cookie brings nothing
    /// back, not even what the client stores later.
    ///
    /// # Errors
    /// [`SessionError::TooLate`] after the response was returned.
    pub fn clear(&self) -> Result<(), SessionError> {
        let mut cell = self.cell();
        if cell.closed {
            return Err(SessionError::TooLate);
        }
        if cell.state.take().is_some() {
            cell.changed = true;
            cell.ends = true;
        }
        Ok(())
    }

    /// Ends the app's turn; returns the new state, if it changed anything.
    pub(crate) fn close(&self) -> Option<Option<Bytes>> {
        let mut cell = self.cell();
        cell.closed = true;
        (cell.changed || cell.ends).then(|| cell.state.clone())
    }

    /// Whether the session's id ends with this turn.
    pub(crate) fn ends(&self) -> bool {
        self.cell().ends
    }
}

impl std::fmt::Debug for Session {
    /// Sessions may hold secrets: only their size is shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.cell().state.as_ref().map_or(0, Bytes::len);
        write!(f, "Session({bytes} bytes)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_after_the_response_is_refused_not_lost_in_silence() {
        let session = Session::new(None, 4);
        session.set("abcd").unwrap();
        assert_eq!(session.set("abcde"), Err(SessionError::TooLarge { bytes: 5, bytes_max: 4 }));
        assert_eq!(session.close(), Some(Some(Bytes::from("abcd"))));
        assert_eq!(session.set("x"), Err(SessionError::TooLate));
        assert_eq!(session.clear(), Err(SessionError::TooLate));
    }

    #[test]
    fn a_renewal_keeps_the_state_and_ends_the_id_and_so_does_clearing() {
        let session = Session::new(Some(Bytes::from("a")), 4);
        session.renew().unwrap();
        assert_eq!((session.close(), session.ends()), (Some(Some(Bytes::from("a"))), true));
        assert_eq!(session.renew(), Err(SessionError::TooLate));

        let cleared = Session::new(Some(Bytes::from("a")), 4);
        cleared.clear().unwrap();
        cleared.set("b").unwrap();
        assert_eq!((cleared.close(), cleared.ends()), (Some(Some(Bytes::from("b"))), true));

        let empty = Session::new(None, 4);
        empty.clear().unwrap();
        assert_eq!((empty.close(), empty.ends()), (None, false), "there was nothing to end");
    }

    #[test]
    fn reading_changes_nothing() {
        let session = Session::new(Some(Bytes::from("a")), 4);
        assert_eq!(session.get().unwrap(), "a");
        assert_eq!(session.close(), None);
    }
}
