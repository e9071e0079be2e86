//! The state that all tasks of the network layer share. It uses the leaves of this room, and every
//! file that acts on them uses it.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use quinn::ConnectionError;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use warmhop_core::ids::{Incarnation, PeerId};
use warmhop_core::view::PeerNews;

use crate::identity::Identity;
use crate::identity::RefusedPeers;
use crate::links::book::Book;
use crate::links::close_code;
use crate::links::counters::NetCounters;
use crate::links::gossip::handle::Gossip;
use crate::links::handler::NetHandler;
use crate::links::link::Link;
use crate::links::news::OwnNews;
use crate::links::seeds::Seeds;
use crate::links::table::Links;
use crate::links::tuning::NetTuning;
use crate::links::wire::SessionFrame;
use crate::observe::clock::Clock;

/// The parts of the network layer that do not depend on the handler's type.
pub(crate) struct NetParts {
    pub(crate) cluster: String,
    pub(crate) me: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) advertise: SocketAddr,
    pub(crate) tuning: NetTuning,
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) own: OwnNews,
    pub(crate) links: Links,
    pub(crate) book: Book,
    pub(crate) seeds: Seeds,
    pub(crate) counters: Arc<NetCounters>,
    /// This peer accepts no more hops, and answers those that it accepted.
    pub(crate) leaving: CancellationToken,
    pub(crate) clock: Clock,
    pub(crate) closing: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// The hops that were accepted and are not answered yet.
    pub(crate) taken_in: TaskTracker,
    /// The tasks that accept hops.
    pub(crate) acceptors: TaskTracker,
    /// This peer is about to leave.
    pub(crate) draining: AtomicBool,
    /// Others have not yet copied all that this peer holds.
    pub(crate) owes: AtomicBool,
    /// Members that this peer refuses.
    pub(crate) refused: watch::Sender<RefusedPeers>,
    pub(crate) identity: Identity,
    pub(crate) client: ArcSwap<quinn::ClientConfig>,
    pub(crate) gossip: Gossip,
    pub(crate) loopback: mpsc::Sender<SessionFrame>,
    pub(crate) clash: watch::Sender<Option<SocketAddr>>,
    /// Probes for peers of this one's name under way.
    pub(crate) probes: watch::Sender<usize>,
    /// The next address to probe.
    pub(crate) to_probe: mpsc::Sender<SocketAddr>,
}

/// The state that every task of the network layer shares.
pub(crate) struct Shared {
    parts: Arc<NetParts>,
    /// Receives news, frames and hops.
    pub(crate) handler: Arc<dyn NetHandler>,
}

impl Shared {
    pub(crate) fn new(parts: Arc<NetParts>, handler: Arc<dyn NetHandler>) -> Arc<Self> {
        Arc::new(Self { parts, handler })
    }
}

impl Deref for Shared {
    type Target = NetParts;

    fn deref(&self) -> &NetParts {
        &self.parts
    }
}

impl NetParts {
    /// How this peer says goodbye.
    pub(crate) fn goodbye(&self) -> quinn::VarInt {
        let owes = self.owes.load(Ordering::Acquire);
        if owes { close_code::CUT_SHORT } else { close_code::GOODBYE }
    }

    pub(crate) fn client_config(&self) -> quinn::ClientConfig {
        quinn::ClientConfig::clone(&self.client.load())
    }

    /// Begins gossip with a peer once there is a link to it.
    pub(crate) fn gossip_with(&self, addr: SocketAddr) {
        self.gossip.meet(addr);
    }

    /// Takes gossip that arrived on a link.
    pub(crate) fn receive_gossip(&self, link: &Link, message: &[u8]) {
        self.gossip.receive(&self.counters, &self.me, link.peer.mesh, message);
    }

    /// Handles a connection to another process of this peer's name. `by_dialing`: this end dialed
    /// the address, so it is certain that the process lives there.
    pub(crate) fn met_namesake(&self, other: &PeerNews, by_dialing: bool) {
        if !by_dialing {
            return self.probe_namesake(other.mesh);
        }
        let mine = self.own.peer();
        // Exactly one of the two considers itself the later one.
        if (mine.generation, mine.incarnation) > (other.generation, other.incarnation) {
            warn!(name = %self.me, addr = %other.mesh, "another live peer has this name");
            self.clash.send_replace(Some(other.mesh));
        }
    }

    /// Others remember an earlier life of this peer: makes this life's generation higher.
    pub(crate) fn outrank_earlier_life(&self, generation: u64) {
        if self.own.raise_generation_above(generation) {
            info!(
                "the clock is behind the one of this peer's previous run: its generation was raised above that run's"
            );
        }
    }

    /// Asks at an address, one probe at a time, whether another process has this peer's name.
    pub(crate) fn probe_namesake(&self, addr: SocketAddr) {
        if addr == self.advertise || self.clash.borrow().is_some() {
            return;
        }
        let first = self.probes.send_if_modified(|probes| {
            let free = *probes == 0;
            *probes += usize::from(free);
            free
        });
        if first && self.to_probe.try_send(addr).is_err() {
            // The task that would probe has ended, and with it this peer.
            self.probes.send_replace(0);
        }
    }

    /// If the other end refused this peer because its name is taken, probes the address of the peer
    /// that has the name.
    pub(crate) fn heed_name_in_use(&self, reason: &ConnectionError) {
        if let ConnectionError::ApplicationClosed(close) = reason
            && close.error_code == close_code::NAME_IN_USE
            && let Some(addr) = std::str::from_utf8(&close.reason).ok().and_then(|s| s.parse().ok())
        {
            self.probe_namesake(addr);
        }
    }
}
