//! The begin of a run that must not happen twice: committed under the request's key before the run,
//! recognised by the same attempt on another peer, and removed if no app saw the request.

use alloc::sync::Arc;

use super::message::{Body, Exec, ExecDone, Stored};
use super::{Ctx, Session};
use crate::ids::RequestKey;

/// The key under which the begin of the request's run is remembered, and the reverse. Once the
/// request itself is remembered, its begin is not: it would take the place of another answer.
#[must_use]
pub fn begin_of(rid: RequestKey) -> RequestKey {
    RequestKey(rid.0.map(|byte| !byte))
}

impl Stored {
    /// Whether this is the begin that `attempt` itself committed. The attempt may continue from it
    /// as long as it knows that no app has seen the request; for anybody else the outcome is
    /// unknown.
    #[must_use]
    pub fn is_begin_of(&self, attempt: u64) -> bool {
        *self == Self::Begun(attempt)
    }
}

impl Session {
    /// Executor: as [`Session::exec_end`], for an order that removes the begin that `attempt`
    /// committed as `begin`. The order leaves no trace of its own: the next request finds a key
    /// that was never used. A begin of another attempt stays.
    pub fn exec_end_taking_back(
        &mut self,
        ctx: &mut Ctx<'_>,
        exec: &Exec,
        base: &Body,
        begin: RequestKey,
        attempt: u64,
    ) -> ExecDone {
        // The owner runs it, so that there is no vote for a body that is changed below.
        let exec = Exec { vote: false, ..exec.clone() };
        let mut before = base.clone();
        before.recent.retain(|it| it.rid != begin || !it.response.is_begin_of(attempt));
        let stored = Stored::Applied;
        let mut done = self.copy.exec_end(ctx, &exec, &before, None, stored, None);
        if let ExecDone::Changed { body, .. } = &mut done {
            Arc::make_mut(body).recent.retain(|it| it.rid != exec.rid);
        }
        done
    }
}
