//! Whether there is room for what sessions would grow by, here and at the other members.

use std::sync::atomic::Ordering;

use warmhop_core::ids::SessionKey;
use warmhop_core::session::message::{Body, BodyRef, Config, Message};

use super::Store;

/// The most bytes that remain of a session that is over: those of the unkeyed requests that it
/// remembers.
const OVER_BYTES_MAX: usize = 1024;
/// What is remembered of an operation beside what it puts into its register, in bytes.
const OPERATION_BYTES: usize = 64;

impl Store {
    /// Whether this peer is full, and should get no more copies.
    pub(crate) fn has_hardly_any_room(&self) -> bool {
        self.memory.is_hardly_free()
    }

    /// Whether this peer holds sessions that no other peer holds a copy of.
    pub(crate) fn is_sole_holder(&self) -> bool {
        self.sole.load(Ordering::Relaxed) > 0
    }

    /// Whether there is no room here for the register of `key` to begin with an operation of `bytes`. It is better
    /// not begun at all: what others remember of that takes room, too.
    pub(crate) fn has_no_room_to_begin(&self, key: &SessionKey, bytes: usize) -> bool {
        let is_new = self.read(key, |it| !it.holds_copy()).unwrap_or(true);
        is_new && !self.memory.may_begin(bytes + OPERATION_BYTES)
    }

    /// Whether there is no room for a change that may grow a session to `bytes`: here, or at a
    /// majority of the members that decide about it. `begins` is the configuration for a session that would begin.
    pub(crate) fn lacks_room(
        &self,
        key: &SessionKey,
        begins: Option<&Config>,
        bytes: usize,
    ) -> bool {
        if self.memory.is_full() {
            return true;
        }
        let is_outvoted = |config: &Config| self.is_outvoted(config, bytes);
        let held = self.read(key, |it| it.config().map(is_outvoted)).flatten();
        held.unwrap_or_else(|| begins.is_some_and(is_outvoted))
    }

    /// Whether a majority of those that decide about a session has no room for `bytes` of it.
    pub(super) fn is_outvoted(&self, config: &Config, bytes: usize) -> bool {
        self.full.outvote(config, bytes, self.clock.now())
    }
}

/// The size of the copy that `message` asks this peer to hold, in bytes; 0 if it is to remember a birth, at
/// least, and none if nothing.
pub(super) fn copy_asked_for(message: &Message) -> Option<usize> {
    match message {
        Message::Accept { body: BodyRef::Full(body), .. } if is_over(body) => None,
        Message::Accept { body: BodyRef::Full(body), .. } => Some(body.bytes()),
        Message::Locate { bytes, .. } if *bytes > 0 => usize::try_from(*bytes).ok(),
        Message::Begin { .. } => Some(0),
        _ => None,
    }
}

/// Whether this is what remains of a session that is over, which is forgotten soon: there is always
/// room for that. One without state that keeps its answers is not.
fn is_over(body: &Body) -> bool {
    body.state.is_none() && body.bytes() <= OVER_BYTES_MAX
}
