//! The interface through which the network layer reports to everything above it.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use quinn::{RecvStream, SendStream};
use warmhop_core::ids::{Incarnation, PeerId};
use warmhop_core::view::{FormerLife, News};

use crate::links::wire::SessionFrame;

/// A change of a peer's state, as the network layer knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// There is a link to it, or others believe that it is alive.
    Alive,
    /// Its link was lost; or there is no link, and others have not heard from it for long. It may
    /// be slow or dead.
    Suspect,
    /// There is no link to it, but others hear it.
    ByOthers,
    /// It has restarted as another incarnation.
    Gone,
    /// It said goodbye.
    Left,
    /// It said goodbye before others had copied all that it held.
    CutShort,
}

/// Receives what the network layer learns. All methods but [`NetHandler::on_hop`] are called from
/// its own tasks, some with its table of links locked: they must be quick and never block. They may
/// call every method of `Net`.
pub(crate) trait NetHandler: Send + Sync + 'static {
    /// A peer opened a hop. Called in a task for that hop; the stream's kind byte has been read.
    fn on_hop(
        self: Arc<Self>,
        from: PeerId,
        from_incarnation: Incarnation,
        send: SendStream,
        recv: RecvStream,
    ) -> BoxFuture<'static, ()>;

    /// A frame of a session arrived. It may be addressed to a former incarnation of this peer; the
    /// session answers that itself (`Nack Dead`).
    fn on_session_frame(&self, from: Incarnation, frame: SessionFrame);

    /// News arrived. `first_hand`: it came from the peer that it is about.
    fn on_news(&self, news: News, first_hand: bool);

    /// Others remember a former life of this peer.
    fn on_former_life(&self, former: FormerLife);

    /// The state of a peer, as the network layer knows it, has changed.
    fn on_liveness(&self, peer: &PeerId, incarnation: Incarnation, heard: Heard);
}
