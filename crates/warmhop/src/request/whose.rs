//! The client of a request, where each client has a share of an app's places: how its share affects
//! where the request goes, and how the peer that it is sent to learns who the client is. The copy there
//! counts the client's requests, whichever peers they came by.

use std::time::Duration;

use http::HeaderMap;
use http::header::HeaderName;
use warmhop_core::ids::PeerId;
use warmhop_core::queue::Flow;
use warmhop_core::route::Noted;

use crate::app::loads::Whose;
use crate::app::places::Waits;
use crate::app::shares::is_known;
use crate::app::slot::Slot;
use crate::hop::{HopRefusal, HopRequest, Load};

/// Names the client of a hop. Further ones, in any order, say that the hop has had its turn at its
/// entry peer and how many milliseconds it may wait for a place, and which session of its client it is
/// of. No client can send it, no app sees it, and peers that expect one take the first.
const CLIENT: HeaderName = HeaderName::from_static("warmhop-client");
const TURN: &str = "turn=";
const SESSION: &str = "session=";

/// Whose a request is that another peer is to serve: its client, if clients have shares of the app's
/// places and this one is known, and its session, if copies have places.
pub(super) fn counted_as(flow: Flow, slot: &Slot) -> Whose {
    let policy = &slot.spec().policy;
    let is_shared = is_known(flow) && policy.share().is_some();
    Whose { client: is_shared.then_some(flow.client), flow: policy.concurrency.map(|_| flow) }
}

/// Adds to a hop which client its request is from, and that it has had its turn here.
pub(super) fn name_client(
    flow: Flow,
    slot: &Slot,
    turn: Option<Duration>,
    request: &mut HopRequest,
) {
    if (flow != Flow::default() || turn.is_some()) && slot.spec().policy.concurrency.is_some() {
        let client = format!("{:x}", flow.client);
        let mut fields = std::mem::take(&mut request.head.fields);
        fields = fields.with(CLIENT.as_str(), client.as_bytes());
        if let Some(turn) = turn {
            let turn = format!("{TURN}{}", turn.as_millis());
            fields = fields.with(CLIENT.as_str(), turn.as_bytes());
        }
        if flow.session != 0 {
            let session = format!("{SESSION}{:x}", flow.session);
            fields = fields.with(CLIENT.as_str(), session.as_bytes());
        }
        request.head.fields = fields;
    }
}

/// Notes that a peer refused a request although it has free places: those are for other clients.
pub(super) fn note_refusal(
    waits: &mut Waits,
    slot: &Slot,
    by: &PeerId,
    why: &HopRefusal,
    load: Load,
) {
    let has_place = |places| load.in_flight < places;
    let places = slot.spec().policy.concurrency;
    if matches!(why, HopRefusal::Busy) && places.is_some_and(has_place) {
        waits.is_shut_at(by);
    }
}

/// Removes the client from the fields of a hop, and returns it, and how long it may wait for a place.
pub(super) fn take_client(fields: &mut HeaderMap) -> (Flow, Option<Duration>) {
    let mut named = fields.get_all(CLIENT).iter().map(|value| value.to_str().ok());
    let client = named.next().flatten();
    let client = client.and_then(|named| u64::from_str_radix(named, 16).ok());
    let (mut turn, mut session) = (None, 0);
    for value in named.flatten() {
        if let Some(ms) = value.strip_prefix(TURN) {
            turn = ms.parse().ok().map(Duration::from_millis);
        } else if let Some(of) = value.strip_prefix(SESSION) {
            session = u64::from_str_radix(of, 16).unwrap_or(0);
        }
    }
    fields.remove(CLIENT);
    (Flow { client: client.unwrap_or(0), session }, turn)
}

/// What this peer has noted of others, as far as it matters to a request that waits like this one.
pub(super) fn noted_for(slot: &Slot, whose: &Waits) -> impl Fn(&PeerId) -> Noted {
    let flow = whose.flow;
    let policy = &slot.spec().policy;
    let (share, has_places) =
        (policy.share().filter(|_| is_known(flow)), policy.concurrency.is_some());
    move |peer| {
        let has = |share| slot.loads.of_client(peer, flow.client) >= share;
        let shut = share.is_some_and(has) || whose.was_shut_at(peer);
        let is_first = has_places && whose.needs_no_turn() && !slot.loads.has(peer, flow);
        Noted { shut, is_first, ..slot.loads.of(peer) }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_client_is_removed_from_the_fields_and_an_invalid_one_counts_as_unknown() {
        for (value, client) in [("1c0000201", 0x1_c000_0201), ("", 0), ("x", 0), ("-1", 0)] {
            let mut fields = HeaderMap::new();
            fields.insert(CLIENT, HeaderValue::from_static(value));
            let (flow, turn) = take_client(&mut fields);
            assert_eq!((flow.client, turn), (client, None), "{value}");
            assert!(fields.is_empty());
        }
        assert_eq!(take_client(&mut HeaderMap::new()), (Flow::default(), None));
    }

    #[test]
    fn the_session_of_a_hops_client_is_known_whether_it_has_had_its_turn_or_not() {
        for (values, turn, session) in [
            (&["session=9f"][..], None, 0x9f),
            (&["turn=5", "session=9f"], Some(Duration::from_millis(5)), 0x9f),
            (&["session=x"], None, 0),
        ] {
            let mut fields = HeaderMap::new();
            fields.append(CLIENT, HeaderValue::from_static("1c0000201"));
            for value in values {
                fields.append(CLIENT, HeaderValue::from_static(value));
            }
            let flow = Flow { client: 0x1_c000_0201, session };
            assert_eq!(take_client(&mut fields), (flow, turn), "{values:?}");
            assert!(fields.is_empty());
        }
    }

    #[test]
    fn a_hop_that_has_had_its_turn_says_so_beside_its_client() {
        let second = |value| (value, Duration::from_millis(1_000));
        for (value, turn) in [second("turn=1000"), second("turn=x"), second("1000")] {
            let mut fields = HeaderMap::new();
            fields.append(CLIENT, HeaderValue::from_static("1c0000201"));
            fields.append(CLIENT, HeaderValue::from_static(value));
            let expected = (value == "turn=1000").then_some(turn);
            let (flow, turn) = take_client(&mut fields);
            assert_eq!((flow.client, turn), (0x1_c000_0201, expected), "{value}");
            assert!(fields.is_empty());
        }
    }
}
