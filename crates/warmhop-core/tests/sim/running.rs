//! Running the app at one peer, around the session's own checks.

use std::rc::Rc;
use std::sync::Arc;

use warmhop_core::ids::SessionId;
use warmhop_core::session::message::{Exec, ExecDone, Stored};
use warmhop_core::view::AppState;

use crate::calls::{Asked, Call, Does, LocalError};
use crate::peer::Peer;

impl Peer {
    /// Runs the app here: its answer, and what it made of the state if it changed it.
    pub(crate) async fn run_here(
        self: &Rc<Self>,
        call: &mut Call,
        state: Option<Arc<[u8]>>,
    ) -> Result<(Arc<[u8]>, Option<Arc<[u8]>>), LocalError> {
        if call.asked.key.is_some() {
            // A command needs no app.
            return Ok(self.outcome(&call.asked, state));
        }
        let at = call.asked.slot;
        let began = self.now();
        let Some(attempt) = self.slots[at].borrow_mut().enter(began) else {
            return Err(LocalError::NotReady);
        };
        let in_flight = Runs { peer: Rc::clone(self), at, attempt, began: began.0 };
        if !call.take_body() {
            return Err(LocalError::BodyGone);
        }
        let asked = call.asked.clone();
        self.world.count("runs");
        self.sleep(asked.runs_ms).await;
        let runs = self.slots[at].borrow().still_runs(attempt);
        drop(in_flight);
        if !runs {
            return Err(LocalError::Failed);
        }
        Ok(self.outcome(&asked, state))
    }

    /// What a request answers, and makes of the state if it changes it.
    pub(crate) fn outcome(
        &self,
        asked: &Asked,
        state: Option<Arc<[u8]>>,
    ) -> (Arc<[u8]>, Option<Arc<[u8]>>) {
        let id = asked.id.to_be_bytes();
        let known = state.as_deref().unwrap_or_default();
        let is_there = known.get(4..).unwrap_or_default().chunks_exact(2).any(|other| other == id);
        let changes = match asked.does {
            Does::Read => false,
            Does::Append => true,
            Does::Mark => !is_there,
            Does::Begin => known.is_empty(),
            Does::Delete => !known.is_empty(),
        };
        if !changes {
            return (Arc::from(known), None);
        }
        if asked.does == Does::Delete {
            return (Arc::from(known), Some(Arc::from([])));
        }
        let mut list = known.to_vec();
        if list.is_empty() {
            // Each list begins with a random number, so that no two are taken for one.
            list.extend_from_slice(&(self.world.random() as u32).to_be_bytes());
        }
        list.extend_from_slice(&id);
        let list: Arc<[u8]> = Arc::from(list);
        (Arc::clone(&list), Some(list))
    }

    /// Runs the app here for a session, around the session's own checks.
    pub(crate) async fn execute_here(
        self: &Rc<Self>,
        call: &mut Call,
        sid: SessionId,
        exec: &Exec,
    ) -> Result<(Arc<[u8]>, ExecDone), LocalError> {
        let ready = self.slots[call.asked.slot].borrow().state() == AppState::Ready;
        if !ready && call.asked.key.is_none() {
            return Err(LocalError::NotReady);
        }
        if let Some(lasts_ms) = call.asked.lasts_ms {
            return self.operate(call, sid, exec, lasts_ms);
        }
        let base = self
            .with(sid, true, |machine, ctx, _| machine.exec_begin(ctx, exec))
            .ok_or(LocalError::NotReady)?
            .map_err(LocalError::Refused)?;
        let ttl = self.world.knobs.policy.ttl;
        let expired = base.is_over(exec, self.wall(), ttl);
        if expired {
            self.world.count("expired states");
        }
        let state = base.state.clone().filter(|_| !expired);
        let (response, mut changed) = self.run_here(call, state.clone()).await?;
        // Used, so it lives on: an unchanged session whose time is half over is written anew.
        if changed.is_none() && state.is_some() && base.is_half_over(exec, ttl) {
            changed = state;
        }
        let stored = match exec.keyed {
            true if call.asked.large => Stored::TooLarge,
            true => Stored::Response(Arc::clone(&response)),
            false => Stored::Applied,
        };
        let done = self
            .with(sid, true, |machine, ctx, _| {
                machine.exec_end(ctx, exec, &base, changed.map(Some), stored)
            })
            .ok_or(LocalError::Failed)?;
        Ok((response, done))
    }
}

/// Counts one request in flight until it is dropped.
pub(crate) struct Runs {
    pub(crate) peer: Rc<Peer>,
    pub(crate) at: usize,
    pub(crate) attempt: u64,
    pub(crate) began: u64,
}

impl Drop for Runs {
    fn drop(&mut self) {
        let took = self.peer.now().0.saturating_sub(self.began);
        self.peer.slots[self.at].borrow_mut().exit(self.attempt, took);
    }
}
