//! Carries messages between peers: one published at any peer reaches subscribers at all of them.
//!
//! ```text
//! PUBLISH ─▶ here ─▶ hub
//!        └─▶ a line for each other peer ─ one batch at a time ─▶ its service ─▶ its hub
//!                                       ◀──── how many got each message ────
//! ```
//!
//! A message goes to the peers that have, or may have, subscribers to it
//! ([`interest`](super::interest)). A client whose subscription was confirmed receives every
//! message published from then on. Each peer is sent one numbered batch at a time; it ignores a
//! batch that arrives after a later one, so that no message arrives twice or out of order.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::join_all;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, warn};
use warmhop::ids::{AppName, PeerId};
use warmhop::peer_service::{AskPeerError, AskedBy};
use warmhop::{Body, BoxError, Mesh};

use super::interest::{ANSWER_BYTES_MAX, GOOD_FOR, Goes, Interests};
use super::pubsub::Published;
use super::pubsub::{COUNTED_WITHIN, Hub};

/// The service that peers offer to each other.
const SERVICE: &str = "redis-messages";
/// The service's second request, beside taking in a batch.
const FORGET: &str = "/forget";
/// How long a batch may be under way; after that its messages are lost to that peer.
const CARRIED_WITHIN: Duration = Duration::from_secs(5);
/// How often a batch is retried to a peer to which there is no link yet.
const LINK_ASKED_EVERY: Duration = Duration::from_millis(20);
/// From how many bytes on a batch takes no more messages.
const BATCH_BYTES: usize = 1024 * 1024;
/// How many bytes a batch has at most: one message more than it needs to be full.
const BATCH_BYTES_MAX: usize = BATCH_BYTES + super::frame::REQUEST_BYTES_MAX + 1024;
/// How many messages one batch has at most.
const BATCH_MAX: usize = 4096;
/// How many bytes of messages wait for one peer; further ones are lost to it.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What a message takes beside its bytes.
const MESSAGE_BYTES: usize = 128;

/// Delivers messages to the subscribers here and at the other peers.
#[derive(Default)]
pub(super) struct Carrier {
    pub(super) hub: Arc<Hub>,
    /// Without one, only subscribers of this peer receive messages.
    mesh: Option<Mesh>,
    intake: Arc<Intake>,
    lines: Mutex<Lines>,
}

/// Takes in the messages of other peers, and tracks what those peers know of this one.
struct Intake {
    hub: Arc<Hub>,
    /// Distinguishes this process from earlier ones of the same peer.
    process: u64,
    heard: Heard,
    interests: Interests,
    #[cfg(test)]
    taken_in: std::sync::atomic::AtomicUsize,
}

impl Default for Intake {
    fn default() -> Self {
        Self::new(Arc::default(), GOOD_FOR)
    }
}

impl Intake {
    fn new(hub: Arc<Hub>, good_for: Duration) -> Self {
        Self {
            hub,
            process: rand::random(),
            heard: Heard::default(),
            interests: Interests::new(good_for),
            #[cfg(test)]
            taken_in: Default::default(),
        }
    }
}

#[derive(Default)]
struct Lines {
    /// The number of the last batch to any peer.
    sent: u64,
    /// What waits for which peer; a peer for which nothing waits has no line.
    by_peer: HashMap<PeerId, Line>,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// How many messages found no room since the last batch.
    lost: u64,
    /// When the batch under way was sent.
    since: Option<Instant>,
    /// A batch is sent even if no message waits: to ask for the peer's subscriptions.
    asks: bool,
}

struct Waiting {
    message: Bytes,
    count: oneshot::Sender<u32>,
}

/// The last batch from each peer: the process that sent it, and its number.
type Heard = Mutex<HashMap<PeerId, (u64, u64)>>;

/// A message on its way.
pub(super) struct Sent {
    here: i64,
    elsewhere: Vec<oneshot::Receiver<u32>>,
}

impl Sent {
    /// How many got it.
    pub(super) async fn count(self) -> i64 {
        let until = Instant::now() + COUNTED_WITHIN;
        let counted = |count| async move {
            let count = timeout_at(until, count).await;
            count.map_or(0, |count: Result<u32, _>| i64::from(count.unwrap_or(0)))
        };
        let elsewhere = join_all(self.elsewhere.into_iter().map(counted)).await;
        self.here + elsewhere.into_iter().sum::<i64>()
    }
}

impl Carrier {
    /// A carrier between the peers of `mesh`: from now on it delivers what they publish.
    pub(super) fn between(mesh: Mesh) -> Self {
        Self::believing(mesh, GOOD_FOR)
    }

    /// As [`Carrier::between`], with the time for which a peer's answer about its subscriptions is
    /// valid.
    pub(super) fn believing(mesh: Mesh, good_for: Duration) -> Self {
        let hub = Arc::new(Hub::default());
        super::listeners::tell_others(&mesh, &hub);
        let intake = Arc::new(Intake::new(Arc::clone(&hub), good_for));
        let to = Arc::clone(&intake);
        mesh.offer_to_peers(service_name(), move |request| {
            let intake = Arc::clone(&to);
            async move { intake.take_in(request).await }
        });
        Self { hub, mesh: Some(mesh), intake, lines: Mutex::default() }
    }

    /// Returns once every peer sends what it publishes to the subscriptions that exist here now.
    pub(super) async fn is_heard_of(&self) {
        let Some(mesh) = &self.mesh else { return };
        let (_, growth) = self.hub.changes();
        let others = mesh.others();
        let forgets = others.iter().map(|peer| self.forgets(mesh, peer, growth, &others));
        join_all(forgets).await;
    }

    /// Makes a peer forget an answer that lacks this growth of the hub; returns once it has, or
    /// once that answer is no longer valid.
    async fn forgets(&self, mesh: &Mesh, peer: &PeerId, growth: u64, others: &[PeerId]) {
        let interests = &self.intake.interests;
        let Some((_, until)) = interests.behind(peer, growth) else { return };
        let turn = interests.turn(peer, others);
        let forgets = async {
            let _turn = turn.lock().await;
            while let Some((given, _)) = interests.behind(peer, growth) {
                let asking =
                    Request::builder().method(Method::POST).uri(FORGET).body(Body::empty());
                let Ok(asking) = asking else { return };
                match mesh.ask_peer(peer, &service_name(), asking).await {
                    Ok(_) => interests.forgot(peer, given),
                    Err(_) => sleep(LINK_ASKED_EVERY).await,
                }
            }
        };
        let _ = timeout_at(until, forgets).await;
    }

    /// How many messages came from other peers.
    #[cfg(test)]
    pub(super) fn taken_in(&self) -> usize {
        self.intake.taken_in.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The mesh whose peers it carries messages between, if there is one.
    pub(super) fn mesh(&self) -> Option<&Mesh> {
        self.mesh.as_ref()
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a message here and at all other peers.
    pub(super) fn publish(self: &Arc<Self>, message: &Published) -> Sent {
        let here = self.hub.deliver(message);
        let others = self.mesh.as_ref().map(Mesh::others).unwrap_or_default();
        let mut bytes = None;
        let line_up = |peer: PeerId| match self.intake.interests.goes(&peer, message) {
            Goes::Yes => self.line_up(peer, bytes.get_or_insert_with(|| packed(message))),
            Goes::No => None,
            Goes::Ask => {
                self.asks(peer);
                None
            }
        };
        Sent { here, elsewhere: others.into_iter().filter_map(line_up).collect() }
    }

    /// Asks a peer for its subscriptions, unless a batch to it is under way, which asks as well.
    fn asks(self: &Arc<Self>, peer: PeerId) {
        let mut lines = self.lines();
        if !lines.by_peer.contains_key(&peer) {
            lines.by_peer.insert(peer.clone(), Line { asks: true, ..Line::default() });
            drop(lines);
            tokio::spawn(Arc::clone(self).carry(peer));
        }
    }

    /// Puts a message into a peer's line; returns where the number of its receivers there will
    /// arrive, if that is worth waiting for.
    fn line_up(self: &Arc<Self>, peer: PeerId, message: &Bytes) -> Option<oneshot::Receiver<u32>> {
        let mut lines = self.lines();
        let is_idle = !lines.by_peer.contains_key(&peer);
        let line = lines.by_peer.entry(peer.clone()).or_default();
        let bytes = message.len() + MESSAGE_BYTES;
        if line.bytes + bytes > WAITING_BYTES_MAX {
            line.lost += 1;
            return None;
        }
        let (count, counted) = oneshot::channel();
        line.bytes += bytes;
        line.waiting.push_back(Waiting { message: message.clone(), count });
        let is_stuck = line.since.is_some_and(|since| since.elapsed() > COUNTED_WITHIN);
        drop(lines);
        if is_idle {
            tokio::spawn(Arc::clone(self).carry(peer));
        }
        (!is_stuck).then_some(counted)
    }

    /// Sends a peer what waits for it, until nothing is left.
    async fn carry(self: Arc<Self>, peer: PeerId) {
        let Some(mesh) = &self.mesh else { return };
        while let Some((batch, counts)) = self.next_batch(&peer) {
            let asking = async {
                let (sent, response) = loop {
                    let sent = Instant::now();
                    let body = Body::from(batch.clone());
                    let request = Request::builder().method(Method::POST).uri("/").body(body)?;
                    match mesh.ask_peer(&peer, &service_name(), request).await {
                        // Peers that have just met know of each other before they have a link.
                        Err(AskPeerError::Unreachable { .. }) if mesh.others().contains(&peer) => {
                            sleep(LINK_ASKED_EVERY).await;
                        }
                        answer => break (sent, answer?),
                    }
                };
                let bytes_max = 4 * BATCH_MAX + ANSWER_BYTES_MAX;
                let body = Limited::new(response.into_body(), bytes_max).collect().await?;
                Ok::<(Instant, Bytes), BoxError>((sent, body.to_bytes()))
            };
            match timeout(CARRIED_WITHIN, asking).await {
                Ok(Ok((sent, mut answer))) => {
                    let mut number = || answer.try_get_u32().unwrap_or(0);
                    let numbers: Vec<u32> = counts.iter().map(|_| number()).collect();
                    // First: a caller that has a message's count may rely on the subscriptions.
                    self.intake.interests.learn(&peer, sent, answer, &mesh.others());
                    for (count, number) in counts.into_iter().zip(numbers) {
                        let _ = count.send(number);
                    }
                }
                Ok(Err(error)) => debug!(%peer, %error, "messages did not reach a peer"),
                Err(_) => warn!(
                    %peer, messages = counts.len(),
                    "a peer did not say that it took messages of Redis clients: those who listen \
                     there may not have got them"
                ),
            }
        }
    }

    /// The next batch to a peer; if nothing waits, its line is removed.
    fn next_batch(&self, peer: &PeerId) -> Option<(Bytes, Vec<oneshot::Sender<u32>>)> {
        let mut lines = self.lines();
        let Lines { sent, by_peer } = &mut *lines;
        let line = by_peer.get_mut(peer)?;
        if line.lost > 0 {
            warn!(
                %peer, messages = line.lost,
                "a peer takes messages of Redis clients too slowly: further ones were not sent, and \
                 those who listen there did not get them"
            );
            line.lost = 0;
        }
        if line.waiting.is_empty() && !line.asks {
            by_peer.remove(peer);
            return None;
        }
        *sent += 1;
        line.asks = false;
        line.since = Some(Instant::now());
        let (mut batch, mut counts) = (BytesMut::new(), Vec::new());
        batch.put_u64(self.intake.process);
        batch.put_u64(*sent);
        let (process, changes) = self.intake.interests.edition(peer);
        batch.put_u64(process);
        batch.put_u64(changes);
        while batch.len() < BATCH_BYTES
            && counts.len() < BATCH_MAX
            && let Some(Waiting { message, count }) = line.waiting.pop_front()
        {
            line.bytes -= message.len() + MESSAGE_BYTES;
            batch.put(message);
            counts.push(count);
        }
        Some((batch.freeze(), counts))
    }
}

fn service_name() -> AppName {
    AppName::new(SERVICE).expect("a constant of the right form")
}

/// A message as it is sent: whether it was sent by `SPUBLISH`, both lengths, both texts.
fn packed(message: &Published) -> Bytes {
    let Published { channel, message, is_sharded } = message;
    let mut bytes = BytesMut::with_capacity(9 + channel.len() + message.len());
    bytes.put_u8(u8::from(*is_sharded));
    for part in [channel, message] {
        bytes.put_u32(u32::try_from(part.len()).unwrap_or(u32::MAX));
    }
    bytes.put_slice(channel);
    bytes.put_slice(message);
    bytes.freeze()
}

/// Reads the first message of a batch.
fn unpacked(bytes: &mut Bytes) -> Result<Published, BoxError> {
    let is_sharded = bytes.try_get_u8()? != 0;
    let channel = usize::try_from(bytes.try_get_u32()?)?;
    let message = usize::try_from(bytes.try_get_u32()?)?;
    if bytes.len() < channel.saturating_add(message) {
        return Err("a message ends early".into());
    }
    let channel = bytes.split_to(channel);
    Ok(Published { channel, message: bytes.split_to(message), is_sharded })
}

impl Intake {
    /// Delivers a batch of another peer, unless a later one came before it, or forgets that peer's
    /// subscriptions.
    async fn take_in(&self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let from = request.extensions().get::<AskedBy>().map(|AskedBy(peer)| peer.clone());
        let from = from.ok_or("nobody is known to ask")?;
        if request.uri().path() == FORGET {
            self.interests.forget(from);
            return Ok(Response::new(Body::empty()));
        }
        let body = Limited::new(request.into_body(), BATCH_BYTES_MAX).collect().await?;
        Ok(Response::new(Body::from(self.hand_out(from, body.to_bytes())?)))
    }

    fn hand_out(&self, from: PeerId, mut batch: Bytes) -> Result<Bytes, BoxError> {
        let (process, number) = (batch.try_get_u64()?, batch.try_get_u64()?);
        let holds = (batch.try_get_u64()?, batch.try_get_u64()?);
        let mut messages = Vec::new();
        while !batch.is_empty() {
            messages.push(unpacked(&mut batch)?);
        }
        let mut counts = BytesMut::with_capacity(4 * messages.len());
        {
            // Held until all are delivered, so that the next batch cannot come in between.
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            if heard.get(&from).is_some_and(|(last, at)| *last == process && *at >= number) {
                return Ok(Bytes::new());
            }
            heard.insert(from.clone(), (process, number));
            for message in &messages {
                counts.put_u32(u32::try_from(self.hub.deliver(message)).unwrap_or(u32::MAX));
            }
        }
        #[cfg(test)]
        self.taken_in.fetch_add(messages.len(), std::sync::atomic::Ordering::Relaxed);
        counts.put(self.interests.answer(from, holds, self.process, &self.hub));
        Ok(counts.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(process: u64, number: u64, texts: &[&str]) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u64(process);
        bytes.put_u64(number);
        bytes.put_slice(&[0; 16]);
        for text in texts {
            let message = Bytes::copy_from_slice(text.as_bytes());
            bytes.put(packed(&Published { channel: message.clone(), message, is_sharded: false }));
        }
        bytes.freeze()
    }

    #[test]
    fn a_batch_that_comes_again_or_after_a_later_one_is_passed_over() {
        let intake = Intake::default();
        let peer = PeerId::new("peer-1").unwrap();
        let is_heard = |process, number| {
            let batch = batch(process, number, &["a", "b"]);
            intake.hand_out(peer.clone(), batch).unwrap().is_empty()
        };
        assert_eq!(
            [is_heard(1, 5), is_heard(1, 5), is_heard(1, 4), is_heard(1, 6)],
            [false, true, true, false]
        );
        assert!(!is_heard(2, 1), "the peer was started anew");
        assert_eq!(intake.taken_in.into_inner(), 6);
    }

    #[test]
    fn a_malformed_batch_is_refused_as_a_whole() {
        let intake = Intake::default();
        let peer = PeerId::new("peer-1").unwrap();
        let whole = batch(1, 1, &["channel"]);
        for end in (0..whole.len()).filter(|end| *end != 32) {
            assert!(intake.hand_out(peer.clone(), whole.slice(..end)).is_err(), "{end}");
        }
        assert!(intake.heard.lock().unwrap().is_empty());
    }
}
