//! An operation on a register that this peer owns: put in line, executed and answered without what a
//! request needs that may go to another peer. If anything but its answer comes, it goes on as any
//! request does, from where it stands.

use std::sync::Arc;

use warmhop_core::ids::WallTime;
use warmhop_core::session::entry::{ByKey, Here};
use warmhop_core::view::View;

use crate::observe::recall::Tracing;
use crate::request::answer::Answer;
use crate::request::call::Call;
use crate::request::node::Node;
use crate::request::portable::Portable;
use crate::request::problem::Problem;
use crate::request::served::Served;
use crate::sessions::store::AsOwner;

/// An operation in line for its register at this peer, its owner.
pub(crate) struct Unfinished {
    pub(crate) begun: AsOwner<Option<Answer>>,
    /// What this peer knew of the others, and the time, when it began.
    pub(crate) view: Arc<View>,
    pub(crate) wall: WallTime,
}

impl Unfinished {
    /// The highest number of the register that was known to be chosen before it began.
    pub(crate) fn seen(&self) -> u64 {
        self.begun.seen
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
