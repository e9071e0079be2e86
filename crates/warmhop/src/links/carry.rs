//! Carries everything on one link until it closes: hops, session frames, news, gossip, clocks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use quinn::{ConnectionError, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};
use warmhop_core::view::{News, PeerNews};

use crate::http::aside::in_time;
use crate::identity::proven_identity;
use crate::links::close_code::{self, STREAM_REFUSED};
use crate::links::context::Shared;
use crate::links::handler::Heard;
use crate::links::lane::{LaneStream, go_ahead};
use crate::links::link::{HOPS_AT_FIRST, HopLease, Link, Queues};
use crate::links::together::together;
use crate::links::wire::{
    self, CONTROL_FRAME_BYTES_MAX, FrameError, FrameReader, GOSSIP_BYTES_MAX, Hello,
    KIND_CLOCK_ANSWER, KIND_CLOCK_ASKED, KIND_GOSSIP, KIND_HOP, KIND_SESSION, NewsBatch,
};
use crate::links::{clocks, seeds, session_bytes, watch};

/// The most news records in one frame. Each is below 1 KiB.
const NEWS_PER_FRAME_MAX: usize = 60;

/// Changes of load alone are sent at most this often.
const LOAD_NEWS_EVERY: Duration = Duration::from_millis(100);

/// How long a draining link stays open at least: the other end may not know yet that it drains.
const DRAIN_MIN: Duration = Duration::from_secs(2);

/// How long the hops on a draining link may take. Links are renewed every hour or so, and a renewal
/// must not end a download or a WebSocket.
const DRAIN_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long the other end may take to acknowledge an answer while this peer leaves.
const DELIVERED_WITHIN: Duration = Duration::from_secs(2);

/// How long a hop may take to send its first byte.
const HOP_KIND_WITHIN: Duration = Duration::from_secs(10);

/// How often the clock is read while a certificate is about to end.
const CLOCK_EVERY: Duration = Duration::from_secs(60);

/// The result of the exchange of hellos: both control streams and the other end's hello.
pub(super) struct Greeted {
    pub(super) hello: Hello,
    pub(super) control_out: SendStream,
    pub(super) control_in: FrameReader,
    /// This end's hello if it has not been sent: the end that was dialed sends its hello only once
    /// it has admitted the other, so that an answer means admission.
    pub(super) answer: Option<Bytes>,
    /// When the other end's certificate ends.
    pub(super) certificate_ends: SystemTime,
}

/// Carries everything on one link until it closes.
pub(super) async fn run(
    shared: Arc<Shared>,
    link: Arc<Link>,
    queues: Queues,
    mut greeted: Greeted,
    surplus: bool,
) {
    let tasks = &shared.tasks;
    if let Some(answer) = greeted.answer.take() {
        // If it cannot be sent, the link is closed or about to close, which the code below notices.
        let _ = greeted.control_out.write_chunk(answer).await;
    }
    shared.acceptors.spawn(accept_hops(shared.clone(), link.clone()));
    tasks.spawn(accept_streams(shared.clone(), link.clone()));
    tasks.spawn(receive_datagrams(shared.clone(), link.clone()));
    tasks.spawn(clocks::compare(shared.clone(), link.clone()));
    tasks.spawn(watch::run(shared.clone(), link.clone()));
    tasks.spawn(receive_news(shared.clone(), link.clone(), greeted.control_in));
    if !surplus {
        tasks.spawn(send_news(shared.clone(), link.clone(), greeted.control_out));
        tasks.spawn(send_sessions(link.clone(), queues.lane));
        tasks.spawn(send_gathered(shared.clone(), link.clone()));
        tasks.spawn(send_gossip(link.clone(), queues.gossip));
        shared.gossip_with(link.peer.mesh);
    }
    let reason = tokio::select! {
        reason = link.conn.closed() => reason,
        () = is_refused(&shared, &link) => {
            warn!(peer = %link.peer.peer, "an operator has shut this peer or its certificate out: the link ends");
            shared.counters.links_refused("refused");
            link.conn.close(close_code::REFUSED, b"");
            link.conn.closed().await
        }
        () = has_expired(&shared, &link) => {
            warn!(
                peer = %link.peer.peer,
                "the certificate that this peer has shown has expired: the link ends; renew it \
                 there, and the peer loads the new one by itself"
            );
            shared.counters.links_refused("expired");
            link.conn.close(close_code::EXPIRED, b"");
            link.conn.closed().await
        }
    };

    let held = shared.links.hold();
    if shared.links.remove(&held, &link) {
        let goodbye = goodbye_of(&reason);
        shared.counters.link_closed(close_label(&reason));
        shared.counters.links_now(shared.links.table().by_peer.len());
        debug!(peer = %link.peer.peer, %reason, "link is down");
        if let Some(heard) = goodbye {
            shared.book.departed(&link.peer.peer, link.peer.incarnation);
            shared.handler.on_liveness(&link.peer.peer, link.peer.incarnation, heard);
        } else if !shared.closing.is_cancelled() {
            let why = seeds::why_closed(&reason);
            info!(peer = %link.peer.peer, why, "the link was lost; the peer is suspect");
            shared.handler.on_liveness(&link.peer.peer, link.peer.incarnation, Heard::Suspect);
        }
    }
    drop(held);
    shared.heed_name_in_use(&reason);
}

/// How the peer at the other end left, if it said goodbye.
fn goodbye_of(reason: &ConnectionError) -> Option<Heard> {
    match reason {
        ConnectionError::ApplicationClosed(close) => match close.error_code {
            close_code::GOODBYE => Some(Heard::Left),
            close_code::CUT_SHORT => Some(Heard::CutShort),
            _ => None,
        },
        _ => None,
    }
}

/// Resolves once `[mesh] refuse` names the peer at the other end.
async fn is_refused(shared: &Shared, link: &Link) {
    let certificate = proven_identity(link.conn.peer_identity()).map(|proven| proven.certificate);
    let mut refused = shared.refused.subscribe();
    if refused.wait_for(|refused| refused.has(&link.peer.peer, certificate)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Resolves once the certificate that the other end has shown is no longer valid. The clock is read
/// again and again, since it may be set meanwhile. A link that only drains goes on if another took its
/// place, for which the other end has proven itself anew.
async fn has_expired(shared: &Shared, link: &Arc<Link>) {
    loop {
        let left = link.ends.other.duration_since(SystemTime::now());
        let is_replaced = || {
            let current = shared.links.to(&link.peer.peer);
            current.is_some_and(|current| !Arc::ptr_eq(&current, link))
        };
        match left {
            // It is valid for the whole second in which it ends (RFC 5280, section 4.1.2.5).
            Ok(left) => sleep((left + Duration::from_secs(1)).min(CLOCK_EVERY)).await,
            Err(_) if is_replaced() => sleep(CLOCK_EVERY).await,
            Err(_) => return,
        }
    }
}

fn close_label(reason: &ConnectionError) -> &'static str {
    match reason {
        ConnectionError::ApplicationClosed(close) => match close.error_code {
            close_code::GOODBYE => "goodbye",
            close_code::CUT_SHORT => "cut-short",
            close_code::DRAINED => "drained",
            close_code::REPLACED => "replaced",
            close_code::NAME_IN_USE => "name-in-use",
            close_code::TOO_OLD => "too-old",
            close_code::SILENT => "silent",
            close_code::EXPIRED => "expired",
            _ => "refused",
        },
        ConnectionError::TimedOut => "timed-out",
        ConnectionError::Reset => "reset",
        ConnectionError::LocallyClosed => "closed-here",
        _ => "broken",
    }
}

/// Opens nothing new on the link, and closes it when its hops have ended.
pub(crate) fn start_draining(shared: &Arc<Shared>, link: &Arc<Link>) {
    if link.draining.swap(true, Ordering::AcqRel) {
        return;
    }
    let link = link.clone();
    shared.tasks.spawn(async move {
        let ended = async {
            sleep(DRAIN_MIN).await;
            while link.hops() > 0 {
                link.hop_ended.notified().await;
            }
        };
        tokio::select! {
            _ = link.conn.closed() => {}
            _ = timeout(DRAIN_MAX, ended) => link.conn.close(close_code::DRAINED, b""),
        }
    });
}

/// Accepts the hops that the other end opens. A peer that leaves accepts no more, answers those
/// that it accepted, and reports their number: the other end sends later ones elsewhere.
async fn accept_hops(shared: Arc<Shared>, link: Arc<Link>) {
    // The other end counts its hops itself and never opens more than that. A hop that has ended
    // there may not have ended here yet, and this end reports ended hops late, by the eighth. So
    // there is some room.
    let max = shared.tuning.hops_max.saturating_add(shared.tuning.hops_max / 4);
    let mut allowed = HOPS_AT_FIRST;
    loop {
        let (send, recv) = tokio::select! {
            biased;
            () = shared.leaving.cancelled() => break,
            accepted = link.conn.accept_bi() => match accepted {
                Ok(streams) => streams,
                Err(_) => return,
            },
        };
        link.taken.fetch_add(1, Ordering::AcqRel);
        let (shared, lease) = (shared.clone(), HopLease::of_other(&link));
        allowed = link.make_room(allowed, max);
        let counted = shared.taken_in.token();
        shared.tasks.clone().spawn(async move {
            // Resolves once the other end has all of the answer.
            let delivered = send.stopped();
            take_in(&shared, &lease, send, recv).await;
            drop(lease);
            if shared.draining.load(Ordering::Acquire) {
                let _ = timeout(DELIVERED_WITHIN, delivered).await;
            }
            drop(counted);
        });
    }
    // Wait for the hops of other links, too: a hop that came over one may have been forwarded over
    // another.
    shared.taken_in.wait().await;
    let taken = link.taken.load(Ordering::Acquire);
    link.conn.close(shared.goodbye(), taken.to_string().as_bytes());
}

async fn take_in(shared: &Shared, lease: &HopLease, mut send: SendStream, mut recv: RecvStream) {
    let mut kind = [0];
    match in_time(HOP_KIND_WITHIN, recv.read_exact(&mut kind)).await {
        Some(Ok(())) if kind == [KIND_HOP] => {}
        _ => {
            shared.counters.frame_refused("stream-kind");
            // Either may have ended by itself, which is fine.
            let _ = (recv.stop(STREAM_REFUSED), send.reset(STREAM_REFUSED));
            return;
        }
    }
    let peer = &lease.link.peer;
    shared.handler.clone().on_hop(peer.peer.clone(), peer.incarnation, send, recv).await;
}

async fn accept_streams(shared: Arc<Shared>, link: Arc<Link>) {
    while let Ok(recv) = link.conn.accept_uni().await {
        let (shared, link) = (shared.clone(), link.clone());
        shared.tasks.clone().spawn(async move {
            let mut reader = FrameReader::new(recv);
            match reader.byte().await {
                // The answers to all that has come are sent together.
                Ok(Some(KIND_SESSION)) => together(receive_sessions(&shared, &link, reader)).await,
                Ok(Some(KIND_GOSSIP)) => match reader.rest(GOSSIP_BYTES_MAX).await {
                    Ok(message) => shared.receive_gossip(&link, &message),
                    Err(error) => refuse(&shared, &link, "gossip", &error),
                },
                Ok(Some(_)) => {
                    shared.counters.frame_refused("stream-kind");
                    reader.stop(STREAM_REFUSED);
                }
                Ok(None) | Err(_) => {}
            }
        });
    }
}

async fn receive_sessions(shared: &Shared, link: &Link, mut reader: FrameReader) {
    loop {
        match session_bytes::next(&mut reader).await {
            Ok(Some(frame)) => {
                shared.counters.session_frame_received();
                shared.handler.on_session_frame(link.peer.incarnation, frame);
            }
            Ok(None) => return,
            Err(error) => {
                refuse(shared, link, "session", &error);
                return reader.stop(STREAM_REFUSED);
            }
        }
    }
}

async fn receive_news(shared: Arc<Shared>, link: Arc<Link>, mut reader: FrameReader) {
    loop {
        match reader.value::<NewsBatch, CONTROL_FRAME_BYTES_MAX>().await {
            Ok(Some(batch)) => {
                for news in batch.news {
                    if is_of(&news, &link.peer) {
                        // News that is read after the peer's goodbye would make it count as alive
                        // again.
                        let _held = shared.links.hold();
                        if link.conn.close_reason().is_some()
                            || shared.book.has_departed(&link.peer)
                        {
                            return;
                        }
                        shared.handler.on_news(news, true);
                    } else {
                        // First-hand news is about its sender. Anything else is second-hand.
                        shared.counters.frame_refused("foreign-news");
                    }
                }
            }
            Ok(None) => return,
            Err(error) => {
                refuse(&shared, &link, "news", &error);
                return reader.stop(STREAM_REFUSED);
            }
        }
    }
}

fn is_of(news: &News, sender: &PeerNews) -> bool {
    match news {
        News::Peer(news) => {
            (&news.peer, news.incarnation) == (&sender.peer, sender.incarnation)
                && wire::is_presentable(news)
        }
        News::App { peer, incarnation, .. } => {
            (peer, *incarnation) == (&sender.peer, sender.incarnation)
        }
    }
}

/// Counts a malformed frame; a broken link is not counted.
fn refuse(shared: &Shared, link: &Link, what: &'static str, error: &FrameError) {
    if error.is_violation() {
        shared.counters.frame_refused(what);
        warn!(peer = %link.peer.peer, what, %error, "refused a malformed frame");
    }
}

async fn receive_datagrams(shared: Arc<Shared>, link: Arc<Link>) {
    while let Ok(datagram) = link.conn.read_datagram().await {
        match datagram.split_first() {
            Some((&KIND_GOSSIP, message)) => shared.receive_gossip(&link, message),
            Some((&(KIND_CLOCK_ASKED | KIND_CLOCK_ANSWER), _)) => {
                clocks::receive(&shared, &link, &datagram)
            }
            _ => shared.counters.frame_refused("datagram-kind"),
        }
    }
}

/// Sends each record that changed, at once if its state did. See `news`.
async fn send_news(shared: Arc<Shared>, link: Arc<Link>, mut control: SendStream) {
    if !shared.tuning.push_news {
        // The stream stays open: its end would be an error to the other side's future versions.
        link.conn.closed().await;
        return;
    }
    let mut clock = shared.own.subscribe();
    let mut sent = 0;
    loop {
        let (news, version) = shared.own.since(sent);
        let mut frames = BytesMut::new();
        for news in news.chunks(NEWS_PER_FRAME_MAX) {
            let batch = NewsBatch { news: news.to_vec() };
            if let Err(error) = wire::put_frame(&mut frames, &batch, CONTROL_FRAME_BYTES_MAX) {
                warn!(%error, "this peer's news cannot be encoded");
            }
        }
        if !frames.is_empty() && control.write_chunk(frames.freeze()).await.is_err() {
            return;
        }
        sent = version;
        let sent_at = Instant::now();
        let wait = async {
            if clock.wait_for(|clock| clock.version > sent).await.is_err() {
                return;
            }
            let urgent = clock.wait_for(|clock| clock.urgent > sent);
            // Either a change was urgent or the interval is over: read the records again.
            let _ = tokio::time::timeout_at(sent_at + LOAD_NEWS_EVERY, urgent).await;
        };
        tokio::select! {
            () = wait => {}
            _ = link.conn.closed() => return,
        }
    }
}

/// Writes the session frames that could not be written at once.
async fn send_sessions(link: Arc<Link>, mut queue: mpsc::Receiver<Bytes>) {
    loop {
        let frame = tokio::select! {
            frame = queue.recv() => frame,
            _ = link.conn.closed() => return,
        };
        let Some(frame) = frame else { return };
        let mut out = link.lane.out.lock().await;
        let len = frame.len() + out.rest.len();
        if out.write(&link.conn, frame).await.is_err() {
            // The other end refused the lane for a malformed frame: the next one begins anew.
            *out = LaneStream::default();
        }
        link.lane.bytes.fetch_sub(len, Ordering::AcqRel);
    }
}

/// Sends the frames that were gathered while other tasks ran.
async fn send_gathered(shared: Arc<Shared>, link: Arc<Link>) {
    let mut closed = std::pin::pin!(link.conn.closed());
    loop {
        tokio::select! {
            biased;
            () = link.lane.gathers() => {}
            _ = &mut closed => return,
        }
        if let Err(dropped) = link.lane.send_gathered() {
            shared.counters.drop_counted("session", dropped.label());
        }
    }
}

/// Sends gossip that does not fit in a datagram, on a stream for each message.
async fn send_gossip(link: Arc<Link>, mut queue: mpsc::Receiver<Bytes>) {
    loop {
        let message = tokio::select! {
            message = queue.recv() => message,
            _ = link.conn.closed() => return,
        };
        let Some(message) = message else { return };
        let Ok(mut send) = link.conn.open_uni().await else { return };
        go_ahead(&send);
        if send.write_chunk(message).await.is_ok() {
            // A stream that the other end stopped needs no end.
            let _ = send.finish();
        }
    }
}
