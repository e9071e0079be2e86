//! An answer on its way out to its client: the mesh's own fields, the client's token, and the tunnel
//! of a connection that changed its protocol.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::{Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use warmhop_core::affinity::{Entry, Kind};
use warmhop_core::problem::ProblemKind;

use crate::app::slot::Slot;
use crate::front::cookies::AskedAt;
use crate::front::prepare::Prepared;
use crate::front::token::{self, Former};
use crate::hop::{self, AppIs};
use crate::http::body::Body;
use crate::http::fields::{self, PEER_FIELD};
use crate::observe::passage::Passage;
use crate::request::node::Node;
use crate::request::problem::{Problem, sf_name};
use crate::request::served::{Served, ServedBy, Upgrade};

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const PEER: HeaderName = HeaderName::from_static(PEER_FIELD);
/// Marks the answer as the stored one of an earlier request.
const REPLAYED_FIELD: &str = "warmhop-replayed";
/// Reports that the client's session continues without the majority that it had.
const FORKED_FIELD: &str = "warmhop-session-forked";
/// Reports that the client's former session is lost.
const LOST_FIELD: &str = "warmhop-session-lost";

/// How long a request may have waited for its app to start, and still count as its client's latest:
/// other tabs may have been answered since then.
const OTHER_TABS_WITHIN: Duration = Duration::from_secs(1);

/// Adds to the response what the client's side needs: affinity, the peers it came by, the upgrade.
pub(super) fn finish(
    node: &Arc<Node>,
    slot: &Slot,
    mut served: Served,
    prepared: Box<Prepared>,
    asked_at: &AskedAt,
) -> Result<Response<Body>, Problem> {
    let Prepared { call, entry, route, brought_token, upgrade: asked, own_at, .. } = *prepared;
    let at = own_at.as_ref().unwrap_or(asked_at);
    let waited_long = call.waits.waited >= OTHER_TABS_WITHIN && !brought_token;
    let former = Former { entry, route, may_be_old: waited_long };
    add_fields(node, &mut served);
    let Served { mut response, served_by, upgrade, entry, after_end, cleared, .. } = served;
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    if cleared {
        at.remove(&node.store.policy().cookie, &slot.spec(), headers);
    }
    // Another tab may have begun a session meanwhile, and an empty one must not replace it.
    let holds_nothing = |entry: &Entry| matches!(entry.kind, Kind::Portable { n: 0, .. });
    let displaces = |entry: &Entry| holds_nothing(entry) && (after_end || former.may_be_old);
    if let Some(entry) = entry.filter(|entry| !displaces(entry)) {
        token::set(node, slot, entry, &former, served_by.as_str(), at, headers);
    }
    if switching {
        let protocol = headers.get(UPGRADE).cloned();
        if let Some(protocol) = protocol {
            fields::put_upgrade(headers, protocol);
        }
        if let (Some(client_side), Some(upgrade)) = (asked.client_side, upgrade) {
            let passage = Passage::new(Arc::clone(slot.counts.traffic(&node.metrics, slot.name())));
            connect(node, client_side, *upgrade, headers, Arc::clone(&passage));
            response.extensions_mut().insert(passage);
        }
    }
    if asked.is_extended {
        open_extended(&mut response)?;
    }
    Ok(response)
}

/// Adds the fields about the peers that handled the request, and about its session.
fn add_fields(node: &Node, served: &mut Served) {
    let headers = served.response.headers_mut();
    let by = match &served.served_by {
        ServedBy::Here(_) => Ok(node.me_field.clone()),
        ServedBy::There(said) => HeaderValue::from_str(said),
    };
    if let Ok(by) = by {
        headers.insert(PEER, by);
    }
    if let Some(hop) = &served.next_hop {
        node.via[1].append(headers, Version::HTTP_11);
        if node.reveal {
            let hop = sf_name(hop.as_str());
            let mut status = String::with_capacity(node.status_of_hop.len() + hop.len());
            status.extend([&*node.status_of_hop, &*hop]);
            if let Ok(value) = HeaderValue::try_from(status) {
                headers.append(PROXY_STATUS, value);
            }
        }
    }
    let flags = [
        (served.session_lost, LOST_FIELD),
        (served.forked, FORKED_FIELD),
        (served.replayed, REPLAYED_FIELD),
    ];
    for (_, field) in flags.into_iter().filter(|(is_set, _)| *is_set) {
        headers.insert(field, HeaderValue::from_static("?1"));
    }
}

/// Connects the two sides of an upgraded connection, for as long as both last.
fn connect(
    node: &Node,
    client_side: OnUpgrade,
    upgrade: Upgrade,
    headers: &HeaderMap,
    passage: Arc<Passage>,
) {
    let farewell = node.tunnels.farewell(headers.get(UPGRADE));
    node.tunnels.open.spawn(async move {
        let Ok(client) = client_side.await else { return };
        let client = passage.of(TokioIo::new(client));
        match upgrade {
            Upgrade::Hop(hop::Tunnel { writer, reader, lease, served_there }) => {
                hop::tunnel(client, writer, reader, AppIs::Far, farewell).await;
                drop((lease, served_there));
            }
            Upgrade::Io(app, copy) => {
                let farewell = farewell.with_copy(&copy);
                hop::join(client, TokioIo::new(app), farewell).await;
            }
        }
    });
}

/// Turns the answer to an upgrade into one to an extended CONNECT (RFC 8441), where a success alone
/// means that the WebSocket is open.
fn open_extended(response: &mut Response<Body>) -> Result<(), Problem> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        *response.status_mut() = StatusCode::OK;
        let headers = response.headers_mut();
        for name in ["connection", "upgrade", "sec-websocket-accept"] {
            headers.remove(name);
        }
    } else if response.status().is_success() {
        let status = response.status().as_u16();
        let detail = format!("the app answered {status} and opened no WebSocket");
        return Err(Problem::new(ProblemKind::NoWebSocket, detail));
    }
    Ok(())
}
