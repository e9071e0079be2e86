//! Whom the network layer tells what it hears: everything above it.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use quinn::{RecvStream, SendStream};
use warmhop_core::ids::{Incarnation, PeerId};
use warmhop_core::view::News;

use crate::links::wire::SessionFrame;

/// What was heard of a peer's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// There is a link to it, or others believe that it lives.
    Alive,
    /// Its link was lost, or without a link others have not heard of it for long. Perhaps it
    /// is slow, perhaps dead.
    Suspect,
    /// It lives again as another incarnation.
    Gone,
    /// It said goodbye.
    Left,
}

/// Whom the network layer tells what it hears. All but [`NetHandler::on_hop`] are called from
/// its own tasks, some with its table of links locked: they must be quick, never block, and may
/// call every method of `Net`.
pub(crate) trait NetHandler: Send + Sync + 'static {
    /// A peer opened a hop. Called in a task of its own; the stream's kind byte has been read.
    fn on_hop(
        self: Arc<Self>,
        from: PeerId,
        from_incarnation: Incarnation,
        send: SendStream,
        recv: RecvStream,
    ) -> BoxFuture<'static, ()>;

    /// A frame of a session arrived. Its addressee may be another incarnation than this one:
    /// the answer to that is the session's (`Nack Dead`).
    fn on_session_frame(&self, from: Incarnation, frame: SessionFrame);

    /// News arrived; `first_hand` if from the peer that it is about.
    fn on_news(&self, news: News, first_hand: bool);

    /// Others remember a former life of this peer, which did not leave in good order.
    fn on_former_life(&self);

    /// Something was heard of a peer's life.
    fn on_liveness(&self, peer: &PeerId, incarnation: Incarnation, heard: Heard);
}
