//! What came of a request: the response, who ran it, and what its client is to keep.

use http::Response;
use hyper::upgrade::Upgraded;
use warmhop_core::affinity::Entry;
use warmhop_core::ids::PeerId;
use warmhop_core::version::AppVersion;

use crate::hop::{self, HopReply, OfVersion};
use crate::http::body::Body;
use crate::http::transit::ReadsAhead;
use crate::http::tunnels::CopyTunnels;
use crate::links::endpoint::STREAM_WINDOW_BYTES;
use crate::request::answer::Answer;
use crate::request::carried::Carried;
use crate::request::node::Node;

/// How many copies may take a request and fail on it: the next might too.
pub(super) const FAILURES_MAX: u32 = 2;

/// The buffers of a connection to an app here, while an answer is read from it.
const APP_READ_AHEAD_BYTES: u32 = 64 * 1024;

/// The app's side of an upgraded connection.
pub(crate) enum Upgrade {
    /// An app on this peer; the caller passes its bytes.
    Io(Upgraded, CopyTunnels),
    /// An app on another peer.
    Hop(hop::Tunnel),
}

/// The peer that ran an app.
pub(crate) enum ServedBy {
    /// This one.
    Here(PeerId),
    /// Another one, by the name that it gave.
    There(String),
}

impl ServedBy {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Here(me) => me.as_str(),
            Self::There(said) => said,
        }
    }
}

/// A response and its origin.
pub(crate) struct Served {
    pub(crate) response: Response<Body>,
    /// The answer to an operation on a register that was executed here.
    pub(crate) answer: Option<Answer>,
    /// The peer that ran the app.
    pub(crate) served_by: ServedBy,
    /// The peer that the request was sent to, if it was.
    pub(crate) next_hop: Option<PeerId>,
    /// Boxed, since it is rare: the answer is moved around.
    pub(crate) upgrade: Option<Box<Upgrade>>,
    /// The contents for the client's token about this app.
    pub(crate) entry: Option<Entry>,
    /// The client's former session was lost, and this is a new one.
    pub(crate) session_lost: bool,
    /// The session continues from this peer's copy, under another id, without its majority.
    pub(crate) forked: bool,
    /// The client's former session was ended on purpose, and this is a new one.
    pub(crate) after_end: bool,
    /// The request ended its session, and the client's session is to be removed.
    pub(crate) cleared: bool,
    /// The response is the stored one of an earlier request.
    pub(crate) replayed: bool,
}

impl Served {
    pub(crate) fn here(node: &Node, response: Response<Body>) -> Self {
        Self {
            response,
            answer: None,
            served_by: ServedBy::Here(node.me.clone()),
            next_hop: None,
            upgrade: None,
            entry: None,
            session_lost: false,
            forked: false,
            after_end: false,
            cleared: false,
            replayed: false,
        }
    }

    /// The reply of another peer.
    pub(crate) fn replied(node: &Node, reply: HopReply) -> Self {
        let mut served = Self::here(node, reply.response);
        served.served_by = ServedBy::There(reply.served_by);
        served.upgrade = reply.tunnel.map(Upgrade::Hop).map(Box::new);
        served
    }

    /// How much the source of its body may hold that has not been read.
    pub(crate) fn reads_ahead(&self) -> ReadsAhead {
        ReadsAhead(match &self.served_by {
            ServedBy::Here(_) => APP_READ_AHEAD_BYTES,
            ServedBy::There(_) => STREAM_WINDOW_BYTES,
        })
    }

    /// Makes the client's token name the newest version that has served it; `former` is its present
    /// entry.
    pub(crate) fn name_version(&mut self, former: Option<&Entry>) {
        let now = self.response.extensions_mut().remove::<OfVersion>().map(|it| it.0);
        if let Some(entry) = &mut self.entry {
            let before = former.and_then(|former| former.version.clone());
            entry.version = AppVersion::newest(before, now);
        }
    }
}

/// The answer of an app on this peer, before anything is committed.
pub(crate) struct RanHere {
    pub(crate) response: Response<Body>,
    pub(crate) upgrade: Option<Box<Upgrade>>,
    /// The carried session field of its response.
    pub(crate) field: Option<Result<Carried, &'static str>>,
}
