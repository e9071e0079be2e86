//! What reaches this peer from others: hops, news, sessions' messages and word of who lives.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::StatusCode;
use hyper_util::rt::TokioIo;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument, debug, debug_span, info, warn};
use warmhop_core::affinity::{Entry, Kind};
use warmhop_core::app::WantedBy;
use warmhop_core::ids::{Incarnation, PeerId, RequestId, SessionKey};
use warmhop_core::session::message::Message;
use warmhop_core::view::{AppState, News};

use crate::app::places::Waits;
use crate::app::slot::Slot;
use crate::hop::{
    self, AppIs, Arrived, Hint, HopHead, HopIncoming, HopKind, HopRefusal, ReplySession,
};
use crate::http::fields;
use crate::http::tunnels::Farewell;
use crate::links::handler::{Heard, NetHandler};
use crate::links::hop_body::HopBodyReader;
use crate::links::wire::SessionFrame;
use crate::observe::failpoint::{self, Point};
use crate::observe::metrics::ByPeer;
use crate::observe::recall::{REGISTER, Tracing, Why};
use crate::observe::trace::SpanKind;
use crate::request::call::{Call, CallBody};
use crate::request::local_error::LocalError;
use crate::request::node::Node;
use crate::request::problem::as_refusal;
use crate::request::serve::{Served, Upgrade};

impl NetHandler for Node {
    fn on_hop(
        self: Arc<Self>,
        from: PeerId,
        _: Incarnation,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        // From now on, not from when the task is next run: a peer that leaves waits for it.
        let counted = self.tunnels.hops.token();
        async move {
            self.hop(from, send, recv, counted).await;
        }
        .boxed()
    }

    fn on_session_frame(&self, from: Incarnation, frame: SessionFrame) {
        if let Message::Invite { cfg } = &frame.message {
            info!(session = %frame.key, "invited to take a session over");
            let (key, cfg) = (frame.key.clone(), cfg.clone());
            if !self.is_draining() && frame.to == self.incarnation {
                let peers = self.whom_to_ask(&key);
                self.store.with(&key, true, |machine, ctx, out| {
                    machine.on_invite(ctx, from, cfg, &peers, out);
                });
            }
            return;
        }
        self.store.on_frame(from, frame);
    }

    fn on_news(&self, news: News, first_hand: bool) {
        self.apply(news, first_hand);
    }

    fn on_former_life(&self) {
        self.edit_view(|view, now| view.note_reborn(self.incarnation, now));
    }

    fn on_liveness(&self, peer: &PeerId, incarnation: Incarnation, heard: Heard) {
        match heard {
            Heard::Alive => {
                self.edit_view(|view, _| view.alive(peer));
            }
            Heard::Suspect => {
                warn!(%peer, "suspected: its link or its heartbeat is silent");
                self.edit_view(|view, now| view.suspect(peer, now));
            }
            Heard::Gone => {
                info!(%peer, "gone");
                self.edit_view(|view, now| view.lost(peer, &incarnation, now));
                self.store.peer_dead(incarnation);
                self.store.peer_lost(incarnation);
            }
            Heard::Left => {
                info!(%peer, "left");
                self.edit_view(|view, now| view.left(peer, &incarnation, now));
                self.store.peer_dead(incarnation);
                self.store.peer_lost(incarnation);
            }
        }
    }
}

impl Node {
    /// `counted` has a drain wait for the answer.
    async fn hop(
        &self,
        from: PeerId,
        mut send: quinn::SendStream,
        recv: quinn::RecvStream,
        counted: TaskTrackerToken,
    ) {
        let none = hop::Load { in_flight: 0, latency_us: 0 };
        let closing = &self.tunnels.closing;
        let is_late = closing.is_cancelled();
        let arrived = tokio::select! {
            arrived = Arrived::read(recv) => arrived,
            () = closing.cancelled(), if !is_late => return,
        };
        let Some(arrived) = arrived else {
            debug!(%from, "a hop's head is out of form");
            let _ = hop::refuse(send, HopRefusal::Malformed, none).await;
            return;
        };
        if matches!(arrived.head.kind, HopKind::Service) {
            // A drain does not wait for those who only watch this peer.
            drop(counted);
            let answering = Box::pin(self.services.answer(&self.me, &from, arrived, send));
            tokio::select! {
                () = answering => {}
                () = self.tunnels.cut.cancelled() => {}
            }
            return;
        }
        let Arrived { head, method, mut fields, incoming } = arrived;
        let HopHead { kind, app, request_id, target, upgrade, asks_go, .. } = head;
        let (Ok(id), Some(slot)) = (RequestId::new(&request_id), self.slot(&app)) else {
            let _ = hop::refuse(send, HopRefusal::UnknownApp, none).await;
            return;
        };
        self.metrics.hops_received.get_or_create(&ByPeer { peer: from.clone() }).inc();
        let slot = &slot;
        let load = Node::local_load(slot);
        if matches!(kind, HopKind::Wake) {
            slot.wanted(WantedBy::Request);
        }
        // Only the owner of a session may have the request executed elsewhere. Where hops have been
        // cut off, the app is about to stop, and what begins still would be cut off with it.
        let runs_here = slot.state() == AppState::Ready && !is_late;
        if !runs_here && !matches!(kind, HopKind::Forward(_)) {
            let _ = hop::refuse(send, HopRefusal::NotReady, load).await;
            return;
        }
        if slot.is_full() && !matches!(kind, HopKind::Forward(_)) {
            let _ = hop::refuse(send, HopRefusal::Busy, load).await;
            return;
        }
        let span = debug_span!("hop", id = %id, peer = %self.me, from = %from);
        // An upgraded connection is told first, and ends itself.
        let cut_off = if upgrade.is_some() { &self.tunnels.cut } else { closing };
        let answering = async {
            let path = target.split('?').next().unwrap_or_default();
            let role = if slot.keeps_registers { REGISTER } else { "hop" };
            let mut tracing = Tracing::begin(
                &self.traces,
                id.clone(),
                &self.me,
                role,
                format_args!("{method} {path}"),
            );
            tracing.app(slot.name());
            tracing.step("arrived", Why::SentBy(from.clone(), kind.label()));
            let mut spanned =
                self.spans.within(&mut fields, SpanKind::Server, || "hop received".into());
            if let Some(span) = &mut spanned {
                span.set("http.request.method", method.as_str());
                span.set("url.path", target.split('?').next().unwrap_or_default());
                span.set("warmhop.app", slot.name().as_str());
                span.set("warmhop.peer.from", from.as_str());
                span.set("warmhop.hop", kind.label());
            }
            if asks_go && hop::go(&mut send).await.is_err() {
                return;
            }
            let (body, tunnel) = match incoming {
                HopIncoming::Body(body) => {
                    // The first part shows that the entry peer has heard the go-ahead: an app that
                    // ran without it could run twice. Without one the body came with the head, and
                    // is known here to be whole: one without bytes must not reach an app as chunks.
                    let Ok(body) = body.begun().await else { return };
                    // Boxed where there is something to wait for, as at a front door.
                    let gathered = match Call::gathered(body) {
                        Ok(whole) => Ok(CallBody::Whole(whole)),
                        Err(body) => Box::pin(Call::gather(body, None)).await,
                    };
                    match gathered {
                        Ok(body) => (body, None),
                        Err(_) => return,
                    }
                }
                HopIncoming::Tunnel(reader) => (CallBody::Whole(bytes::Bytes::new()), Some(reader)),
            };
            let (body, mut wanted) = match body {
                CallBody::Stream(Some(body)) if fields::expects_continue(&fields) => {
                    let (body, wanted) = body.telling_when_wanted();
                    (CallBody::Stream(Some(body)), Some(wanted))
                }
                body => (body, None),
            };
            let mut call = Call {
                id,
                method,
                target,
                fields,
                body,
                upgrade: upgrade.and_then(|protocol| http::HeaderValue::from_bytes(&protocol).ok()),
                on_upgrade: None,
                may_have_run: false,
                failed_at: None,
                attempt: rand::random(),
                waits: Waits::default(),
            };
            // A client that leaves cancels here at once, before there is a response to write.
            let stopped = send.stopped();
            let outcome = {
                let answer = self.answer(slot, kind, &mut call, &mut tracing);
                tokio::pin!(answer, stopped);
                loop {
                    let is_wanted = async {
                        match &mut wanted {
                            Some(wanted) => wanted.await.is_ok(),
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        outcome = &mut answer => break Some(outcome),
                        _ = &mut stopped => break None,
                        is_wanted = is_wanted => {
                            wanted = None;
                            if is_wanted && hop::go(&mut send).await.is_err() {
                                break None;
                            }
                        }
                    }
                }
            };
            if let Some(span) = &mut spanned {
                span.decided(&tracing.steps());
                match &outcome {
                    Some(Ok((served, _))) => span.status(served.response.status().as_u16()),
                    Some(Err(why)) => span.failed(why.label(), ""),
                    None => span.failed("cancelled", "the client left"),
                }
            }
            let Some(outcome) = outcome else {
                tracing.step("cancelled", "the client left");
                return;
            };
            let slot = &slot;
            let load = Node::local_load(slot);
            match outcome {
                Ok((served, session)) => {
                    tracing.head(served.response.status().as_u16());
                    debug!(status = served.response.status().as_u16(), "answered");
                    let voted =
                        matches!(&session, ReplySession::Done(done) if failpoint::voted(done));
                    if let Err(error) = self.respond(send, served, session, load, tunnel).await {
                        debug!(%error, "a hop's response ended early");
                    }
                    failpoint::pass_if(voted, Point::ExecVoteAfter);
                }
                Err(why) => {
                    tracing.step("refuse", why.label());
                    let _ = hop::refuse(send, why, load).await;
                }
            }
        }
        .instrument(span);
        tokio::select! {
            () = answering => {}
            () = cut_off.cancelled(), if !is_late => debug!(%from, "a hop was cut off"),
        }
    }

    async fn answer(
        &self,
        slot: &Arc<Slot>,
        kind: HopKind,
        call: &mut Call,
        tracing: &mut Tracing,
    ) -> Result<(Served, ReplySession), HopRefusal> {
        let local = |error| match error {
            LocalError::NotReady | LocalError::BodyGone => HopRefusal::NotReady,
            LocalError::Busy => HopRefusal::Busy,
            LocalError::TooSlow(detail) => HopRefusal::TooSlow { detail },
            LocalError::Refused(done) => HopRefusal::Exec(done),
            LocalError::Failed(detail) => HopRefusal::AppFailed { detail },
            LocalError::Told(problem) => as_refusal(&problem),
        };
        match kind {
            HopKind::Plain | HopKind::Wake | HopKind::Service => {
                let ran = self.run_here(slot, call, None).await.map_err(local)?;
                tracing.served_by(&self.me);
                Ok((Served::ran(self, ran), ReplySession::None))
            }
            HopKind::Exec { sid, exec } => {
                let key = SessionKey { app: slot.name().clone(), sid };
                tracing.session(&key);
                // Boxed, as the next: the future of a plain hop has no room for either.
                let executing = Box::pin(self.execute_here(slot, call, &key, &exec));
                let (ran, done) = executing.await.map_err(local)?;
                failpoint::pass_if(failpoint::voted(&done), Point::ExecVoteBefore);
                tracing.served_by(&self.me);
                Ok((Served::ran(self, ran), ReplySession::Done(done)))
            }
            HopKind::Forward(forward) => {
                let serving = Box::pin(self.serve_forwarded(slot, call, &forward, tracing));
                let served = serving.await?;
                let hint = served.entry.as_ref().and_then(hint_of);
                let session = match hint {
                    Some(hint) => ReplySession::Committed { hint, replayed: served.replayed },
                    None if served.cleared => ReplySession::Cleared { replayed: served.replayed },
                    None => ReplySession::None,
                };
                Ok((served, session))
            }
        }
    }

    async fn respond(
        &self,
        send: quinn::SendStream,
        served: Served,
        session: ReplySession,
        load: hop::Load,
        tunnel: Option<HopBodyReader>,
    ) -> Result<(), crate::http::body::BoxError> {
        let Served { response, served_by, upgrade, .. } = served;
        let head = hop::response_head(&response, session, served_by.as_str().to_owned(), load);
        let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let (Some(reader), true) = (tunnel, switching) else {
            return hop::reply(send, &head, response.into_body()).await;
        };
        Box::pin(async move {
            let writer = hop::reply_switching(send, &head).await?;
            let _counted = self.tunnels.open.token();
            let farewell = self.tunnels.farewell(response.headers().get(http::header::UPGRADE));
            match upgrade {
                Some(Upgrade::Io(io)) => {
                    hop::tunnel(TokioIo::new(io), writer, reader, AppIs::Near, farewell).await;
                }
                Some(Upgrade::Hop(next)) => {
                    let (near, far) = tokio::io::duplex(64 * 1024);
                    tokio::join!(
                        hop::tunnel(near, writer, reader, AppIs::Near, farewell),
                        hop::tunnel(far, next.writer, next.reader, AppIs::Far, Farewell::default())
                    );
                    drop(next.lease);
                }
                None => {}
            }
            Ok(())
        })
        .await
    }
}

fn hint_of(entry: &Entry) -> Option<Hint> {
    match &entry.kind {
        Kind::Portable { cfg, owner, n } => {
            Some(Hint { sid: entry.sid, cfg: cfg.clone(), owner: *owner, n: *n })
        }
        Kind::Pinned { .. } => None,
    }
}

impl Served {
    fn ran(node: &Node, ran: crate::request::serve::RanHere) -> Self {
        let mut served = Self::here(node, ran.response);
        served.upgrade = ran.upgrade.map(Upgrade::Io);
        served
    }
}
