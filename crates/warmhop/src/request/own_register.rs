//! An operation on a register that this peer owns: put in line, executed and answered without what a
//! request needs that may go to another peer. If anything but its answer comes, it goes on as any
//! request does, from where it stands.

use std::sync::Arc;

use warmhop_core::ids::{RequestKey, SessionKey, WallTime};
use warmhop_core::session::Submit;
use warmhop_core::session::entry::{ByKey, Here};
use warmhop_core::view::{Liveness, View};

use crate::observe::recall::Tracing;
use crate::request::answer::Answer;
use crate::request::call::Call;
use crate::request::local_error::app_failed;
use crate::request::node::Node;
use crate::request::portable::Portable;
use crate::request::problem::Problem;
use crate::request::registers::operation::Operation;
use crate::request::serve::Served;
use crate::sessions::events::Event;
use crate::sessions::store::AsOwner;

/// An operation in line for its register at this peer, its owner.
pub(crate) struct Unfinished {
    begun: AsOwner<Option<Answer>>,
    /// What this peer knew of the others, and the time, when it began.
    view: Arc<View>,
    wall: WallTime,
}

impl Node {
    /// Begins an operation here, if this peer owns the register and hears a majority of its members.
    /// `None` if it has to go the way of any request.
    ///
    /// # Errors
    /// If the operation cannot be carried out.
    pub(crate) fn operates_here(
        &self,
        key: &SessionKey,
        rid: RequestKey,
        operation: &Operation<'_>,
    ) -> Option<Result<Unfinished, Problem>> {
        let view = self.view();
        // A peer that was started a moment ago and hears no other waits until it does.
        let hears_anyone = view.live_peers().any(|(_, it)| it.alive == Liveness::Alive);
        if !hears_anyone && !self.newborn_for().is_zero() {
            return None;
        }
        let wall = self.clock.wall();
        let safe = matches!(operation, Operation::Get);
        let submit =
            |ticket| Submit { ticket, rid, fingerprint: 0, keyed: false, seen: None, safe };
        let begun = self.operate_as_owner(key, submit, operation)?;
        Some(match begun {
            Ok(begun) => Ok(Unfinished { begun, view, wall }),
            Err(error) => Err(app_failed(self.me.as_str(), &error)),
        })
    }
}

impl Unfinished {
    /// The highest number of the register that was known to be chosen before it began.
    pub(crate) fn seen(&self) -> u64 {
        self.begun.seen
    }

    /// The answer once it may leave.
    ///
    /// # Errors
    /// With the operation, if it has to go the way of any request from here.
    pub(crate) async fn answer(
        mut self,
        node: &Node,
        operation: &Operation<'_>,
    ) -> Result<Result<Answer, Problem>, Self> {
        let AsOwner { line, ran, .. } = &mut self.begun;
        loop {
            match line.next().await {
                Event::Turn if ran.is_none() => match node.operate_in_turn(line, operation) {
                    Ok(answer) => *ran = Some(answer),
                    Err(error) => return Ok(Err(app_failed(node.me.as_str(), &error))),
                },
                Event::Release { .. } if matches!(ran, Some(Some(_))) => {
                    let answer = ran.take().flatten();
                    return answer.map(Ok).ok_or(self);
                }
                event => {
                    line.put_back(event);
                    return Err(self);
                }
            }
        }
    }

    /// Goes on as any request does, from where it stands in line.
    pub(crate) async fn serve_on(
        self,
        node: &Node,
        portable: &Portable<'_>,
        call: &mut Call,
        by_key: ByKey,
        tracing: &mut Tracing,
    ) -> Result<Served, Problem> {
        let Self { begun, view, wall } = self;
        let here = Here { wall, ..node.here(&view) };
        node.serve_on(portable, call, by_key, Box::new(begun), &here, tracing).await
    }
}
