//! What a peer tells of itself, put together from its parts.

use std::sync::atomic::Ordering;

use warmhop_core::config::SessionMode;
use warmhop_core::ids::{Incarnation, SessionKey};
use warmhop_core::view::Liveness;

use crate::net::Net;
use crate::node::{Node, state_name};
use crate::status::{AppStatus, OtherPeer, PeerStatus, SessionCounts, SessionStatus, Status};

pub(crate) fn status(node: &Node, net: &Net) -> Status {
    let spiffe = |name: &str| format!("spiffe://{}/peer/{name}", node.cluster);
    let (owned, copies) = node.store.counts();
    let peer = PeerStatus {
        name: node.me.to_string(),
        id: spiffe(node.me.as_str()),
        incarnation: node.incarnation.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_ms: u64::try_from(node.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        state: if node.is_draining() { "draining" } else { "serving" }.into(),
        http: node.http.iter().map(ToString::to_string).collect(),
        mesh: net.advertised_addr().to_string(),
        zone: node.zone.clone(),
    };
    let apps = node
        .slots
        .iter()
        .map(|slot| AppStatus {
            name: slot.name().to_string(),
            state: state_name(slot.state()).into(),
            starts: slot.starts(),
            eta_ms: slot.eta().map(|eta| u64::try_from(eta.as_millis()).unwrap_or(u64::MAX)),
            in_flight: slot.in_flight.load(Ordering::Relaxed),
            error: slot.last_error(),
            session: match slot.spec.policy.session {
                SessionMode::Portable => "portable",
                SessionMode::Pinned => "pinned",
                SessionMode::None => "none",
            }
            .into(),
        })
        .collect();
    let view = node.view();
    let peers = view
        .peers()
        .map(|(name, belief)| OtherPeer {
            name: name.to_string(),
            id: spiffe(name.as_str()),
            incarnation: belief.news.incarnation.to_string(),
            alive: belief.alive == Liveness::Alive,
            draining: belief.news.draining,
            rtt_us: net.rtt(name).map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            zone: belief.news.zone.clone(),
            mesh: belief.news.mesh.to_string(),
            http: belief.news.http.clone(),
            apps: belief
                .apps
                .iter()
                .map(|(app, told)| (app.to_string(), state_name(told.news.state).to_owned()))
                .collect(),
        })
        .collect();
    Status { peer, apps, peers, sessions: SessionCounts { owned, copies } }
}

pub(crate) fn session(node: &Node, key: &SessionKey) -> Option<SessionStatus> {
    let (owner, ballot, version, members) = node.store.with(key, false, |machine, _, _| {
        let owner = if machine.is_owner() { Some(node.incarnation) } else { machine.known_owner() };
        // While its members change, those that the newest chosen record names still count: until the
        // new ones hold it, the loss of one more of the old ones may be the loss of the session.
        let chosen = machine.token_hint().map(|hint| hint.cfg.now.who.to_vec());
        let members = chosen.unwrap_or_else(|| machine.members().to_vec());
        (owner, machine.ballot(), machine.version(), members)
    })?;
    let view = node.view();
    let name = |incarnation: &Incarnation| {
        if *incarnation == node.incarnation {
            return node.me.to_string();
        }
        match view.by_incarnation(incarnation) {
            Some(belief) => belief.news.peer.to_string(),
            None => format!("gone:{incarnation:?}"),
        }
    };
    Some(SessionStatus {
        key: key.to_string(),
        owner: owner.as_ref().map(name),
        ballot: ballot.map(|ballot| ballot.to_string()).unwrap_or_default(),
        version,
        members: members.iter().map(name).collect(),
    })
}
