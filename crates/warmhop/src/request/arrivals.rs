//! What other peers send here: hops, news, session messages and changes of liveness.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tracing::{debug, info, warn};
use warmhop_core::ids::{Incarnation, PeerId};
use warmhop_core::session::message::Message;
use warmhop_core::view::{FormerLife, News};

use crate::links::handler::{Heard, NetHandler};
use crate::links::wire::SessionFrame;
use crate::request::node::Node;

impl NetHandler for Node {
    fn on_hop(
        self: Arc<Self>,
        from: PeerId,
        _: Incarnation,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        // Counted from now on, not from when the task first runs: a peer that leaves waits for it.
        let counted = self.tunnels.hops.token();
        async move {
            self.receive(from, send, recv, counted).await;
        }
        .boxed()
    }

    fn on_session_frame(&self, from: Incarnation, frame: SessionFrame) {
        if let Message::Invite { cfg } = &frame.message {
            debug!(session = %frame.key, "another peer asks this one to take a session over");
            let (key, cfg) = (frame.key.clone(), cfg.clone());
            if !self.is_draining() && frame.to == self.incarnation {
                let peers = self.whom_to_ask(&key);
                self.store.given(&key);
                self.store.with(&key, true, |machine, ctx, out| {
                    machine.on_invite(ctx, from, cfg, &peers, out);
                });
            }
            return;
        }
        self.store.on_frame(from, frame);
    }

    fn on_news(&self, news: News, first_hand: bool) {
        self.apply(news, first_hand);
    }

    fn on_former_life(&self, former: FormerLife) {
        self.edit_view(|view, now| view.note_former(self.incarnation, former, now));
    }

    fn on_liveness(&self, peer: &PeerId, incarnation: Incarnation, heard: Heard) {
        self.known_ids.silence(peer, self.clock.now());
        match heard {
            Heard::Alive => {
                self.edit_view(|view, now| view.alive(peer, now));
            }
            Heard::Suspect => {
                warn!(%peer, "the peer is suspect: its link or its heartbeat is silent");
                self.silences.fetch_add(1, Ordering::Relaxed);
                self.edit_view(|view, now| view.suspect(peer, now));
            }
            Heard::ByOthers => {
                if self.view().wants_word_of(peer, self.clock.now()) {
                    self.edit_view(|view, now| view.heard_by_others(peer, &incarnation, now));
                }
            }
            Heard::Gone => {
                info!(%peer, "the peer is gone");
                self.edit_view(|view, now| view.lost(peer, &incarnation, now));
                self.store.peer_dead(incarnation);
                self.store.peer_lost(incarnation);
            }
            Heard::Left => {
                info!(%peer, "the peer has left");
                self.edit_view(|view, now| view.left(peer, &incarnation, now));
                self.is_over(incarnation);
            }
            Heard::CutShort => {
                warn!(%peer, "the peer has ended without handing off what it held");
                self.edit_view(|view, now| view.cut_short(peer, &incarnation, now));
                self.is_over(incarnation);
            }
        }
    }
}

impl Node {
    /// Notes that an incarnation is gone for good: it no longer votes, and its sessions are checked for
    /// repair, even if no peer expected it to come back.
    pub(crate) fn is_over(&self, life: Incarnation) {
        self.store.peer_dead(life);
        self.store.peer_lost(life);
        self.silences.fetch_add(1, Ordering::Relaxed);
    }
}
