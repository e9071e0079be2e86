//! News: a peer's announcements about itself and its apps, how they arrived, and why one is
//! refused.

use alloc::string::String;
use core::fmt;
use core::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{AppName, Incarnation, PeerId};
use crate::version::AppVersion;

/// The state of one app on one peer.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
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
    /// Held down by an operator: no request starts it.
    Paused,
}

impl AppState {
    /// Its name in status, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Paused => "paused",
        }
    }
}

/// A peer's news about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerNews {
    /// Its name.
    pub peer: PeerId,
    /// This life of its process.
    pub incarnation: Incarnation,
    /// Orders the lives of one peer: the wall clock at its start in milliseconds, or one more than
    /// the last one if the clock went back.
    pub generation: u64,
    /// Grows with each change of this record within one life.
    pub seq: u64,
    /// Where its mesh port can be reached.
    pub mesh: SocketAddr,
    /// Where its front door can be reached.
    pub http: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// It is about to leave: it should get nothing new.
    pub draining: bool,
    /// It knows at least two others, or seeds that may be others: it is not one half of a mesh of
    /// two, whatever the receiver of this news knows by itself.
    pub knows_more: bool,
    /// Its process began a moment ago: until others have had the time to correct it, a former life
    /// of it may have witnessed what this one does not know
    /// ([`REBORN_FOR`](crate::session::census::REBORN_FOR)).
    pub young: bool,
    /// It has hardly any room for sessions left: it should get no more copies.
    pub full: bool,
    /// It holds sessions that no other peer holds a copy of: without its answer nobody can tell that a key is
    /// free.
    pub sole: bool,
}

impl PeerNews {
    /// The first news of a process with no front door and in no zone, which stays and is no newcomer.
    #[must_use]
    pub fn of(peer: PeerId, incarnation: Incarnation, mesh: SocketAddr) -> Self {
        Self {
            peer,
            incarnation,
            generation: 1,
            seq: 1,
            mesh,
            http: None,
            zone: None,
            draining: false,
            knows_more: false,
            young: false,
            full: false,
            sole: false,
        }
    }
}

/// A peer's news about one of its apps.
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
    /// The version that serves there, or that a start would bring up; absent if none is named.
    pub version: Option<AppVersion>,
    /// A digest of the app's configuration there, to compare peers; 0: unknown.
    pub digest: u64,
    /// The peer no longer has this app, and nothing else in this record counts.
    pub gone: bool,
}

impl AppNews {
    /// An app of no version and nothing in flight.
    #[must_use]
    pub fn of(app: AppName, seq: u64, state: AppState) -> Self {
        Self { app, seq, state, eta_ms: None, in_flight: 0, version: None, digest: 0, gone: false }
    }
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
        /// The generation of that life.
        generation: u64,
        /// The news.
        news: AppNews,
    },
}

impl News {
    /// The peer that it is about, and that wrote it.
    #[must_use]
    pub fn peer(&self) -> &PeerId {
        match self {
            Self::Peer(news) => &news.peer,
            Self::App { peer, .. } => peer,
        }
    }

    pub(super) fn life(&self) -> (u64, Incarnation) {
        match self {
            Self::Peer(news) => (news.generation, news.incarnation),
            Self::App { generation, incarnation, .. } => (*generation, *incarnation),
        }
    }
}

/// How a piece of news arrived. The peer that it is about wrote it in either case; of two with one
/// number, news over its own link wins over news that others passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Passed on by others, by gossip.
    Hearsay,
    /// Over a link to the peer itself, whose certificate vouches for its name. It proves that the
    /// peer is alive.
    FirstHand,
}

/// Why a piece of news was refused. Each is counted: see [`View::refused`](super::View::refused).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusedNews {
    /// It is about this very peer: about a former life, or about another process of its name.
    Myself,
    /// Two lives claim one name and one generation: two processes share a name.
    NameClash,
    /// Two peers claim one incarnation.
    IncarnationClash,
    /// There are [`PEERS_MAX`](super::PEERS_MAX) peers already.
    TooManyPeers,
    /// There are [`APPS_PER_PEER_MAX`](super::APPS_PER_PEER_MAX) apps of this peer already.
    TooManyApps,
    /// Its zone or front door exceeds its bound.
    TooLong,
}

impl RefusedNews {
    /// The label of its counter.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Myself => "myself",
            Self::NameClash => "name_clash",
            Self::IncarnationClash => "incarnation_clash",
            Self::TooManyPeers => "too_many_peers",
            Self::TooManyApps => "too_many_apps",
            Self::TooLong => "too_long",
        }
    }
}

impl fmt::Display for RefusedNews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Myself => "it speaks of this very peer; does another process have its name?",
            Self::NameClash => "two processes have this name; names are unique: rename one",
            Self::IncarnationClash => "two peers claim one incarnation",
            Self::TooManyPeers => "the view is full of peers",
            Self::TooManyApps => "the view is full of apps of this peer",
            Self::TooLong => "its zone or its front door's address is too long",
        })
    }
}
