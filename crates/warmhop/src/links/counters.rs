//! What the network layer counts.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::identity::handshake::HandshakeFailure;
use crate::observe::doors::{Doors, MESH};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Reason {
    pub(super) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Drop {
    pub(super) what: &'static str,
    pub(super) reason: &'static str,
}

/// Why current links end.
const CLOSED: [&str; 13] = [
    "goodbye",
    "cut-short",
    "drained",
    "replaced",
    "name-in-use",
    "too-old",
    "silent",
    "refused",
    "expired",
    "timed-out",
    "reset",
    "closed-here",
    "broken",
];
/// Why connections do not become links.
const LINKS_REFUSED: [&str; 11] = [
    "handshake",
    "handshakes",
    "connection",
    "not-of-cluster",
    "wrong-name",
    "version",
    "no-hello",
    "name-in-use",
    "refused",
    "expired",
    "full",
];
/// The kinds of frames that are refused.
const FRAMES: [&str; 8] = [
    "clock",
    "datagram-kind",
    "foreign-news",
    "gossip",
    "gossip-value",
    "news",
    "session",
    "stream-kind",
];
/// What is not sent, and why.
const DROPPED: [(&str, &[&str]); 4] = [
    ("gossip", &["no-link", "full", "too-large"]),
    ("gossip-in", &["full"]),
    ("news", &["too-many-apps"]),
    ("session", &["no-link", "full", "too-large"]),
];

/// The counters of the network layer.
#[derive(Debug, Default)]
pub(crate) struct NetCounters {
    doors: Doors,
    connections: Gauge,
    pub(super) links: Gauge,
    pub(super) links_opened: Counter,
    pub(super) links_closed: Family<Reason, Counter>,
    pub(super) links_refused: Family<Reason, Counter>,
    pub(super) handshakes_retried: Counter,
    pub(super) dials_failed: Counter,
    pub(super) frames_refused: Family<Reason, Counter>,
    pub(super) session_frames_sent: Counter,
    pub(super) session_frames_received: Counter,
    pub(super) dropped: Family<Drop, Counter>,
    pub(super) gossip_received: Counter,
    pub(super) gossip_restarts: Counter<u64, AtomicU64>,
}

impl NetCounters {
    /// New counters, which `registry` exposes.
    pub(crate) fn new(registry: &mut Registry, doors: Doors) -> Arc<Self> {
        doors.begin_tls(MESH);
        let connections = doors.connections(MESH);
        let counters = Self { doors, connections, ..Self::default() };
        registry.register("links", "Links to other peers", counters.links.clone());
        registry.register(
            "links_opened",
            "Links that became current",
            counters.links_opened.clone(),
        );
        registry.register(
            "links_closed",
            "Current links that ended, by reason",
            counters.links_closed.clone(),
        );
        registry.register(
            "links_refused",
            "Connections that did not become a link, by reason",
            counters.links_refused.clone(),
        );
        registry.register(
            "handshakes_retried",
            "Connections that were asked to show first that they hear what is sent to them",
            counters.handshakes_retried.clone(),
        );
        registry.register(
            "dials_failed",
            "Dials that did not lead to a link",
            counters.dials_failed.clone(),
        );
        registry.register(
            "frames_refused",
            "Frames from peers that were malformed or out of place, by kind",
            counters.frames_refused.clone(),
        );
        registry.register(
            "session_frames_sent",
            "Frames of sessions that were queued for a peer",
            counters.session_frames_sent.clone(),
        );
        registry.register(
            "session_frames_received",
            "Frames of sessions that arrived",
            counters.session_frames_received.clone(),
        );
        registry.register(
            "dropped",
            "What was not sent, by kind and reason",
            counters.dropped.clone(),
        );
        registry.register(
            "gossip_received",
            "Gossip messages that arrived",
            counters.gossip_received.clone(),
        );
        registry.register(
            "gossip_restarts",
            "Times that the gossip loop ended and was started anew",
            counters.gossip_restarts.clone(),
        );
        counters.begin();
        Arc::new(counters)
    }

    /// Begins all series at 0: otherwise the first event would be no increase.
    fn begin(&self) {
        let families = [
            (&self.links_closed, &CLOSED[..]),
            (&self.links_refused, &LINKS_REFUSED),
            (&self.frames_refused, &FRAMES),
        ];
        for (family, reasons) in families {
            for reason in reasons {
                let _ = family.get_or_create(&Reason { reason });
            }
        }
        for (what, reasons) in DROPPED {
            for reason in reasons {
                let _ = self.dropped.get_or_create(&Drop { what, reason });
            }
        }
    }

    pub(crate) fn link_opened(&self) {
        self.links_opened.inc();
    }

    pub(crate) fn links_now(&self, links: usize) {
        let links = i64::try_from(links).unwrap_or(i64::MAX);
        self.links.set(links);
        self.connections.set(links);
    }

    pub(crate) fn link_closed(&self, reason: &'static str) {
        debug_assert!(CLOSED.contains(&reason), "{reason} does not begin at 0");
        self.links_closed.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn links_refused(&self, reason: &'static str) {
        debug_assert!(LINKS_REFUSED.contains(&reason), "{reason} does not begin at 0");
        self.links_refused.get_or_create(&Reason { reason }).inc();
    }

    /// Counts a failed handshake that another end began.
    pub(crate) fn handshake_failed(&self, failure: HandshakeFailure) {
        self.links_refused("handshake");
        self.doors.tls_failed(MESH, failure);
    }

    pub(crate) fn handshake_retried(&self) {
        self.handshakes_retried.inc();
    }

    pub(crate) fn dial_failed(&self) {
        self.dials_failed.inc();
    }

    pub(crate) fn frame_refused(&self, reason: &'static str) {
        debug_assert!(FRAMES.contains(&reason), "{reason} does not begin at 0");
        self.frames_refused.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn session_frame_sent(&self) {
        self.session_frames_sent(1);
    }

    pub(crate) fn session_frames_sent(&self, count: u64) {
        self.session_frames_sent.inc_by(count);
    }

    pub(crate) fn session_frame_received(&self) {
        self.session_frames_received.inc();
    }

    pub(crate) fn drop_counted(&self, what: &'static str, reason: &'static str) {
        let is_listed = |(of, reasons): &(&str, &[&str])| *of == what && reasons.contains(&reason);
        debug_assert!(DROPPED.iter().any(is_listed), "{what}, {reason} does not begin at 0");
        self.dropped.get_or_create(&Drop { what, reason }).inc();
    }

    pub(crate) fn gossip_received(&self) {
        self.gossip_received.inc();
    }

    pub(crate) fn gossip_restarted(&self) {
        self.gossip_restarts.inc();
    }
}
