//! The token in a client's affinity cookie: read from its requests, and set in their answers.

use std::time::Duration;

use http::header::{COOKIE, HeaderMap, HeaderValue};
use warmhop_core::affinity::{self, Arrival, Entry, Kind, Reject, RouteName, Token};
use warmhop_core::config::StartMode;
use warmhop_core::cookie::COOKIES_MAX;
use warmhop_core::ids::{AppName, PeerId, WallTime};
use warmhop_core::view::AppState;

use crate::app::slot::Slot;
use crate::front::cookies::AskedAt;
use crate::front::known_cookies::{self, Found};
use crate::http::refusals::ByReason;
use crate::request::node::Node;

/// What a request brought of its client's session.
pub(super) struct Former {
    pub(super) entry: Option<Entry>,
    /// The peer that its cookie named.
    pub(super) route: Option<PeerId>,
    /// The client may have another session by now.
    pub(super) may_be_old: bool,
}

/// Removes the affinity cookies from what the app sees, and reads the first whose token names it,
/// with the peer that it names. Tokens that this cluster did not make are left: they may belong to
/// a mesh behind this one. Beyond a bound none is left, since one of them could be another app's,
/// which only that app may see.
pub(super) fn take(
    node: &Node,
    headers: &mut HeaderMap,
    app: &AppName,
) -> (Option<Entry>, Option<PeerId>) {
    let (wall, policy) = (node.clock.wall(), node.store.policy());
    let (cookie, keys) = (&policy.cookie, node.auth.in_use());
    let mut sent = headers.get_all(COOKIE).iter();
    let only = sent.next().filter(|_| sent.next().is_none()).cloned();
    if let Some(field) = &only
        && let Some(known) = known_cookies::find(field, app, &cookie.name, &keys, wall)
    {
        headers.remove(COOKIE);
        if !known.rest.is_empty() {
            headers.insert(COOKIE, known.rest);
        }
        return (Some(plain(node, known.entry)), known.route);
    }
    let (mut looked_at, mut found) = (0, None);
    let mut hide = |value: &str| {
        looked_at += 1;
        if looked_at > COOKIES_MAX {
            return true;
        }
        match affinity::read(value, &node.auth, wall) {
            Ok((token, route)) => {
                if let (None, Some(entry)) = (&found, token.entry(app)) {
                    found = Some((entry.clone(), route));
                }
                true
            }
            Err(reject) => {
                let label = ByReason { reason: reject.label() };
                node.metrics.cookies_rejected.get_or_create(&label).inc();
                !matches!(reject, Reject::Forged | Reject::Version)
            }
        }
    };
    let fields: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
    let stripped: Vec<_> =
        fields.iter().map(|field| cookie.strip(field.as_bytes(), &mut hide)).collect();
    if stripped.iter().any(Option::is_some) {
        headers.remove(COOKIE);
        for (field, rest) in fields.into_iter().zip(stripped) {
            match rest.map(|rest| HeaderValue::from_bytes(&rest)) {
                None => _ = headers.append(COOKIE, field),
                Some(Ok(rest)) if !rest.is_empty() => _ = headers.append(COOKIE, rest),
                Some(_) => {}
            }
        }
    }
    let Some((entry, route)) = found else { return (None, None) };
    if let (Some(field), 1) = (only, looked_at) {
        let empty = || HeaderValue::from_static("");
        let rest = headers.get(COOKIE).cloned().unwrap_or_else(empty);
        let found = Found { entry: entry.clone(), route: route.clone(), rest };
        known_cookies::keep(&field, &cookie.name, keys, found);
    }
    (Some(plain(node, entry)), route)
}

/// Sets the token of `entry` in an answer of `served_by`, unless the client has an equal one.
pub(super) fn set(
    node: &Node,
    slot: &Slot,
    entry: Entry,
    former: &Former,
    served_by: &str,
    at: &AskedAt,
    headers: &mut HeaderMap,
) {
    let current = former.route.as_ref();
    let back_to = comes_back_to(node, slot, &entry, current, served_by);
    let route = node.route_name.of(&back_to, &node.auth);
    let wall = node.clock.wall();
    let stays = former.entry.as_ref().is_some_and(|former| is_settled(former, &entry, wall))
        && current == Some(&route);
    if !stays {
        let entries = vec![node.route_name.disguise(entry, &node.auth)];
        // A client that is not to see the mesh's inside is not to decode it either.
        let is_hidden = !node.reveal || node.route_name == RouteName::Opaque;
        let token = Token { entries };
        let value = if is_hidden {
            affinity::mint_veiled(&token, &route, &node.auth)
        } else {
            affinity::mint(&token, &route, &node.auth)
        };
        at.set(&node.store.policy().cookie, &value, &slot.spec(), headers);
    }
}

/// The entry with the peer of a pinned session by its name, if this peer knows which one is meant.
fn plain(node: &Node, mut entry: Entry) -> Entry {
    if let Kind::Pinned { peer, .. } = &mut entry.kind
        && let Some(known) = peer_called(node, peer)
    {
        *peer = known;
    }
    entry
}

/// The peer that a cookie calls `said`.
fn peer_called(node: &Node, said: &PeerId) -> Option<PeerId> {
    let view = node.view();
    if *said == node.me || view.peer(said).is_some() {
        return Some(said.clone());
    }
    let known = std::iter::once(&node.me).chain(view.peers().map(|(peer, _)| peer));
    affinity::peer_called(said, known, &node.auth).cloned()
}

/// The peer that the client should come back to.
fn comes_back_to(
    node: &Node,
    slot: &Slot,
    entry: &Entry,
    current: Option<&PeerId>,
    served_by: &str,
) -> PeerId {
    let served_by = PeerId::new(served_by).ok();
    let state = slot.state();
    let starts = slot.spec().policy.start != StartMode::Never && state != AppState::Failed;
    let serves = starts && !node.is_draining();
    // Only a peer that does not serve the client itself follows the client's cookie.
    let current = current.filter(|_| !serves).and_then(|said| peer_called(node, said));
    let arrival = Arrival {
        me: &node.me,
        incarnation: node.incarnation,
        serves,
        ready: state == AppState::Ready,
        view: &node.view(),
        current: current.as_ref(),
        served_by: served_by.as_ref(),
    };
    affinity::come_back_to(entry, &arrival)
}

/// Whether the token need not be sent again: the same session with the same configuration, and with
/// more than half of its time left.
fn is_settled(former: &Entry, entry: &Entry, wall: WallTime) -> bool {
    let span = |from: u64, to: u64| Duration::from_millis(to.saturating_sub(from));
    former.sid == entry.sid
        && former.kind == entry.kind
        && former.version == entry.version
        && span(wall.0, former.expiry.0) > span(wall.0, entry.expiry.0) / 2
}
