//! What a request in line for its session is told.

use warmhop_core::ids::{Ballot, Incarnation};
use warmhop_core::session::message::{Exec, Stored};
use warmhop_core::session::{Failure, TokenHint};

/// What a waiting request is told.
#[derive(Debug)]
pub(crate) enum Told {
    Turn,
    Execute { executor: Incarnation, exec: Exec },
    Release { hint: TokenHint },
    Replay { stored: Stored, hint: TokenHint },
    Fail(Failure),
    Again,
    Redirect(Option<Ballot>),
}
