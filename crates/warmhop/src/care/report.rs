//! A peer's status, put together from its parts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use warmhop_core::ids::{AppName, Incarnation, Now, PeerId, SessionKey};
use warmhop_core::view::{Liveness, PeerBelief, View};

use crate::app::slot::Slot;
use crate::care::{skew, unlinked};
use crate::links::net::Net;
use crate::observe::history::Totals;
use crate::observe::status::{
    AppStatus, CopyStatus, History, OtherPeer, PeerStatus, SessionCounts, SessionStatus, Status,
};
use crate::request::node::Node;

pub(crate) fn status(node: &Node, net: &Net) -> Status {
    let (owned, copies) = node.store.counts();
    let peer = PeerStatus {
        name: node.me.to_string(),
        route: route(node, &node.me),
        id: spiffe(node, &node.me),
        incarnation: node.incarnation.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_ms: millis(node.started.elapsed()),
        state: own_state(node).into(),
        http: node.http.iter().map(ToString::to_string).collect(),
        mesh: net.advertised_addr().to_string(),
        zone: node.zone.clone(),
        clock_correction_ms: node.clock.correction_ms(),
        identity_not_after: unix_seconds(net.identity_expires()),
        front_door_not_after: node.metrics.doors.certificate_ends().map(unix_seconds),
    };
    let view = node.view();
    let apps = node.apps().slots.iter().map(|slot| app_status(node, slot, &view)).collect();
    let now = node.clock.now();
    let peers = view.peers().map(|(name, belief)| other(node, name, belief, now)).collect();
    let sessions = SessionCounts {
        owned,
        copies,
        short: node.short(),
        bytes: node.store.memory().bytes(),
        bytes_max: node.store.memory().bytes_max(),
    };
    Status {
        peer,
        apps,
        peers,
        cookie: node.store.policy().cookie.name.clone(),
        sessions,
        takeovers: node.metrics.takeovers.get(),
        seeds: net.seeds(),
    }
}

/// The outcomes of each app's recent requests.
pub(crate) fn history(node: &Node) -> History {
    node.history.tell(node.started.elapsed(), totals(node).into_iter())
}

/// The counts that each app's history is made of, at this moment.
pub(crate) fn totals(node: &Node) -> Vec<(AppName, Totals)> {
    let apps = node.apps();
    let slots = apps.slots.iter();
    slots.map(|slot| (slot.name().clone(), node.metrics.totals(slot.name()))).collect()
}

/// The status of an app on this peer.
fn app_status(node: &Node, slot: &Slot, view: &View) -> AppStatus {
    let spec = slot.spec();
    let (copy, next) = slot.copies();
    let version = slot.version();
    AppStatus {
        name: slot.name().to_string(),
        state: slot.state().as_str().into(),
        starts: slot.starts(),
        eta_ms: slot.eta().map(millis),
        starting_ms: slot.starting_for().map(millis),
        in_flight: slot.in_flight.load(Ordering::Relaxed),
        waiting: slot.waiting.load(Ordering::Relaxed) as u64,
        requests: node.metrics.request_counts(slot.name()),
        error: slot.last_error(),
        session: spec.policy.session.as_str().into(),
        copy,
        next,
        next_version: spec
            .version
            .clone()
            .filter(|it| Some(it) != version.as_ref())
            .map(String::from),
        version: version.map(String::from),
        digest: digest_text(spec.digest),
        differs_on: skew::differing(slot, view),
    }
}

/// The status of another peer, as this one believes it.
fn other(node: &Node, name: &PeerId, belief: &PeerBelief, now: Now) -> OtherPeer {
    let (hops_sent, hops_received) = node.metrics.hop_counts(name);
    let rtt = node.net.rtt(name);
    let states = belief.apps.iter();
    let states = states.map(|(app, copy)| (app.to_string(), copy.news.state.as_str().to_owned()));
    let copies = belief.apps.iter().map(|(app, copy)| {
        let copy = CopyStatus {
            eta_ms: copy.eta(now).map(millis),
            in_flight: copy.news.in_flight,
            version: copy.news.version.clone().map(String::from),
            digest: digest_text(copy.news.digest),
        };
        (app.to_string(), copy)
    });
    OtherPeer {
        name: name.to_string(),
        id: spiffe(node, name),
        route: route(node, name),
        incarnation: belief.news.incarnation.to_string(),
        alive: belief.alive == Liveness::Alive,
        draining: belief.news.draining,
        state: peer_state(node, name, belief).into(),
        unlinked: unlinked::why(node, name, belief),
        rtt_us: rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        clock_ahead_ms: node.clock.ahead_of_own_ms(name),
        zone: belief.news.zone.clone(),
        mesh: belief.news.mesh.to_string(),
        http: belief.news.http.clone(),
        apps: states.collect(),
        copies: copies.collect(),
        hops_sent,
        hops_received,
    }
}

/// A peer's name in cookies.
fn route(node: &Node, peer: &PeerId) -> String {
    node.route_name.of(peer, &node.auth).to_string()
}

fn spiffe(node: &Node, name: &PeerId) -> String {
    format!("spiffe://{}/peer/{name}", node.cluster)
}

/// A digest for people: enough of it to tell two apart.
fn digest_text(digest: u64) -> String {
    if digest == 0 { "-".into() } else { format!("{digest:016x}") }
}

/// A peer has drained once it has given everything away and serves nothing.
fn own_state(node: &Node) -> &'static str {
    let is_busy = || {
        let flying = |slot: &Arc<Slot>| slot.in_flight.load(Ordering::Relaxed) > 0;
        node.apps().slots.iter().any(flying) || !node.tunnels.open.is_empty()
    };
    match (node.is_draining(), node.drained.load(Ordering::Relaxed)) {
        (false, _) => "serving",
        (true, true) if !is_busy() => "drained",
        (true, _) => "draining",
    }
}

pub(super) fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn peer_state(node: &Node, name: &PeerId, belief: &PeerBelief) -> &'static str {
    match belief.alive {
        Liveness::Dead => "gone",
        Liveness::Suspect => "suspect",
        Liveness::Alive if belief.news.draining => "draining",
        Liveness::Alive if unlinked::why(node, name, belief).is_some() => "unlinked",
        Liveness::Alive => "alive",
    }
}

pub(crate) fn session(node: &Node, key: &SessionKey) -> Option<SessionStatus> {
    let view = node.view();
    let lives = |peer| peer == node.incarnation || view.by_incarnation(&peer).is_some();
    let (owner, ballot, version, members) = node.store.read(key, |machine| {
        // A failed claim of this peer does not make it the owner, whether or not another peer is.
        let claimed = machine.known_owner().filter(|owner| *owner != node.incarnation);
        let owner = if machine.is_owner() { Some(node.incarnation) } else { claimed };
        // A change of members that cannot be completed must not make a lost session look alive.
        let members = machine.deciders(lives);
        (owner, machine.ballot().or_else(|| machine.claim()), machine.version(), members)
    })?;
    let name = |incarnation: &Incarnation| {
        if *incarnation == node.incarnation {
            return node.me.to_string();
        }
        match view.by_incarnation(incarnation) {
            Some(belief) => belief.news.peer.to_string(),
            None => format!("gone:{incarnation:?}"),
        }
    };
    // A peer that lives and has forgotten the session does not keep it alive.
    let member = |(peer, votes): &(Incarnation, bool)| match votes {
        false if lives(*peer) => format!("gone:{peer:?}"),
        _ => name(peer),
    };
    Some(SessionStatus {
        key: key.to_string(),
        owner: owner.as_ref().map(name),
        ballot: ballot.map(|ballot| ballot.to_string()).unwrap_or_default(),
        version,
        members: members.iter().map(member).collect(),
    })
}
