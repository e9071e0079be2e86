//! Commands and received messages on their way to the gossip loop.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chitchat::ChitchatMessage;
use tokio::sync::mpsc;
use tracing::warn;
use warmhop_core::ids::PeerId;

use crate::links::counters::NetCounters;
use crate::links::gossip::screen::{Me, screened};

const COMMANDS_MAX: usize = 64;

/// Sends commands and received messages to the gossip loop.
pub(crate) struct Gossip {
    commands: mpsc::Sender<Command>,
    /// The channel of the running loop: replaced when the loop is restarted.
    inbound: Arc<Inbound>,
    own: Arc<OwnNode>,
}

/// The node of the running loop.
#[derive(Default)]
pub(in crate::links) struct OwnNode {
    pub(in crate::links) generation: AtomicU64,
    /// The highest version of its state. It is stored here before any message with it leaves.
    pub(in crate::links) version: AtomicU64,
}

pub(in crate::links) type Inbound = Mutex<Option<mpsc::Sender<(SocketAddr, ChitchatMessage)>>>;

/// A command to the loop's supervisor.
pub(crate) enum Command {
    /// Begin to gossip with a peer.
    Meet(SocketAddr),
    /// End the loop as a fault would.
    #[cfg(test)]
    Fail,
}

/// The supervisor's ends of the channels.
pub(crate) struct GossipIn {
    pub(in crate::links) commands: mpsc::Receiver<Command>,
    pub(in crate::links) inbound: Arc<Inbound>,
    pub(in crate::links) own: Arc<OwnNode>,
}

impl Gossip {
    /// Channels to a loop that the supervisor has yet to start.
    pub(crate) fn new() -> (Self, GossipIn) {
        let (commands, commands_in) = mpsc::channel(COMMANDS_MAX);
        let inbound = Arc::new(Mutex::default());
        let own = Arc::<OwnNode>::default();
        (
            Self { commands, inbound: Arc::clone(&inbound), own: Arc::clone(&own) },
            GossipIn { commands: commands_in, inbound, own },
        )
    }

    /// Begins to gossip with a peer; if the loop is too busy for that, its sweep will do it.
    pub(crate) fn meet(&self, addr: SocketAddr) {
        let _ = self.commands.try_send(Command::Meet(addr));
    }

    /// Ends the loop as a fault would.
    #[cfg(test)]
    pub(crate) async fn fail(&self) {
        self.commands.send(Command::Fail).await.expect("the supervisor runs");
    }

    /// Hands a message to the loop. `from` is the sender's advertised address, where the answer
    /// goes.
    pub(crate) fn receive(
        &self,
        counters: &NetCounters,
        me: &PeerId,
        from: SocketAddr,
        message: &[u8],
    ) {
        counters.gossip_received();
        let me = Me {
            name: me.as_str(),
            generation: self.own.generation.load(Ordering::Relaxed),
            version: self.own.version.load(Ordering::Acquire),
        };
        let Some(message) = screened(message, me) else {
            counters.frame_refused("gossip");
            warn!(%from, "refused a gossip message that is out of bounds");
            return;
        };
        let inbound = self.inbound.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sent = inbound.is_some_and(|inbound| inbound.try_send((from, message)).is_ok());
        if !sent {
            counters.drop_counted("gossip-in", "full");
        }
    }
}
