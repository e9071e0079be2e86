//! What this peer believes of the others, and how old each belief is.

use alloc::string::String;
use core::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{AppName, Incarnation, PeerId};

/// The state of one app on one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AppState {
    /// Not running.
    #[default]
    Cold,
    /// Started, not ready yet.
    Starting,
    /// Serving.
    Ready,
    /// Finishing what it serves; takes nothing new.
    Stopping,
    /// The last start failed, or the copy crashed; backing off.
    Failed,
}

/// What a peer says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerNews {
    /// Its name.
    pub peer: PeerId,
    /// This life of its process.
    pub incarnation: Incarnation,
    /// Orders the lives of one peer: the wall clock at its start in milliseconds, or one
    /// more than the last where the clock went back.
    pub generation: u64,
    /// Grows with each change of this record within one life.
    pub seq: u64,
    /// Where its mesh port can be reached.
    pub mesh: SocketAddr,
    /// Where its front door can be reached.
    pub http: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// It is about to leave: give it nothing new.
    pub draining: bool,
}

/// What a peer says of one of its apps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppNews {
    /// The app.
    pub app: AppName,
    /// Grows with each change of this record within one life of the peer.
    pub seq: u64,
    /// Its state there.
    pub state: AppState,
    /// Milliseconds until it should be ready, or that a start would take there.
    pub eta_ms: Option<u32>,
    /// Requests in flight there.
    pub in_flight: u32,
}

/// One piece of news. Applying it twice, late or out of order changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// About a peer.
    Peer(PeerNews),
    /// About one app of a peer.
    App {
        /// The peer.
        peer: PeerId,
        /// Its life.
        incarnation: Incarnation,
        /// That life's order.
        generation: u64,
        /// The news.
        news: AppNews,
    },
}
