//! Which peers can hear those that this peer cannot: it asks the others as long as any peer is
//! suspect here. If one link is down, the peer at its other end may still be alive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use rand::seq::IteratorRandom;
use tokio::time::{sleep, timeout};
use warmhop_core::ids::{AppName, Incarnation, PeerId};
use warmhop_core::view::{Liveness, PEERS_MAX};

use crate::hop::peer_service::{self, boxed};
use crate::http::body::{Body, BoxError};
use crate::request::node::Node;

/// How often they are asked.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// How many peers are asked at once, chosen anew each time.
const ASKED_MAX: usize = 8;
const BYTES_EACH: usize = 16;

fn service_name() -> AppName {
    AppName::new("warmhop-hears").expect("a constant of the right form")
}

/// Answers which peers this peer has a link to.
pub(crate) fn offer(node: &Arc<Node>) {
    let weak = Arc::downgrade(node);
    let answer = boxed(move |_request| {
        let node = weak.upgrade();
        std::future::ready(Ok::<_, BoxError>(Response::new(Body::from(
            node.map(|node| heard(&node)).unwrap_or_default(),
        ))))
    });
    node.services.offer(service_name(), answer);
}

fn heard(node: &Node) -> bytes::Bytes {
    let view = node.view();
    let linked = view
        .live_peers()
        .filter(|(peer, belief)| belief.alive == Liveness::Alive && node.net.rtt(peer).is_some());
    linked.flat_map(|(_, belief)| belief.news.incarnation.0).collect()
}

/// Asks as long as the peer runs.
pub(crate) async fn ask(node: Arc<Node>) {
    let mut changes = node.changed.subscribe();
    loop {
        changes.mark_unchanged();
        let suspects = suspects(&node);
        if suspects.is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        }
        let ways = ways_to(&node, &suspects).await;
        if !node.view().says_ways(&ways) {
            node.edit_view(|view, _| view.set_ways(ways));
        }
        sleep(ASK_EVERY).await;
    }
}

fn suspects(node: &Node) -> Vec<Incarnation> {
    let view = node.view();
    let silent = view.live_peers().filter(|(_, it)| it.alive == Liveness::Suspect);
    silent.map(|(_, belief)| belief.news.incarnation).collect()
}

async fn ways_to(node: &Node, suspects: &[Incarnation]) -> BTreeMap<Incarnation, Vec<PeerId>> {
    let view = node.view();
    let heard = view.live_peers().filter(|(_, it)| it.alive == Liveness::Alive);
    let peers = heard.map(|(peer, _)| peer.clone()).sample(&mut rand::rng(), ASKED_MAX);
    let asked = peers.into_iter().map(|peer| async {
        let answer = timeout(ANSWER_WITHIN, hears(node, &peer)).await;
        (peer, answer.ok().flatten().unwrap_or_default())
    });
    let mut ways: BTreeMap<Incarnation, Vec<PeerId>> = BTreeMap::new();
    for (peer, hears) in join_all(asked).await {
        for suspect in suspects.iter().filter(|it| hears.contains(it)) {
            ways.entry(*suspect).or_default().push(peer.clone());
        }
    }
    for ways in ways.values_mut() {
        ways.sort_unstable();
    }
    ways
}

/// Which processes `peer` hears, if it answers.
async fn hears(node: &Node, peer: &PeerId) -> Option<Vec<Incarnation>> {
    let request = Request::new(Body::empty());
    let answer = peer_service::ask(&node.net, peer, &service_name(), request).await.ok()?;
    let whole = Limited::new(answer.into_body(), PEERS_MAX * BYTES_EACH).collect().await.ok()?;
    let bytes = whole.to_bytes();
    let each = bytes.chunks_exact(BYTES_EACH);
    Some(each.filter_map(|bytes| bytes.try_into().ok().map(Incarnation)).collect())
}
