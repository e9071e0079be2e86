//! A request of a session that another peer owns: forwarded to that peer, or served for the sender.

use std::sync::Arc;
use std::time::Duration;

use warmhop_core::app::WantedBy;
use warmhop_core::config::WithoutMajority;
use warmhop_core::ids::{AppName, Incarnation, PeerId, SessionKey};
use warmhop_core::route::{Arrived, Viewpoint};
use warmhop_core::session::entry::{
    ByKey, End, Enter, Errand, Forwarded, Look, Named, Relayed, answer_forward, is_cut_off,
    is_for_entry, is_void, tries_alone, way_on,
};
use warmhop_core::session::{Failure, Session};
use warmhop_core::version::AppVersion;
use warmhop_core::view::AppState;

use crate::app::slot::Slot;
use crate::hop::{Forward, HopError, HopKind, HopRefusal, Relay, ReplySession};
use crate::observe::recall::{Tracing, Why};
use crate::request::call::Call;
use crate::request::node::Node;
use crate::request::portable::{LineEnd, Portable};
use crate::request::problem::{as_refusal, from_refusal};
use crate::request::served::{Served, ServedBy, Upgrade};

/// The peer that forwarded a request to this one.
#[derive(Clone, Copy)]
pub(crate) struct Sender<'a> {
    pub(crate) peer: &'a PeerId,
    /// It can send the request to another peer.
    pub(crate) keeps_body: bool,
}

impl Node {
    /// Sends the request to the session's owner.
    pub(crate) async fn forward(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        key: &SessionKey,
        forward: Forward,
        to: &PeerId,
        tracing: &mut Tracing,
    ) -> LineEnd {
        // Its client has come here, and may stay: if the app is not ready here, it starts.
        let slot = portable.slot;
        let is_cold = !slot.keeps_registers && slot.state() != AppState::Ready;
        if is_cold && portable.arrived == Arrived::AtFrontDoor && !self.is_draining() {
            slot.wanted(WantedBy::Request);
        }
        let asking = self.ask(portable.slot, to, call, HopKind::Forward(forward), tracing);
        match Box::pin(asking).await {
            Ok(reply) => {
                let mut served = Served::here(self, reply.response);
                served.served_by = ServedBy::There(reply.served_by);
                served.next_hop = Some(to.clone());
                served.upgrade = reply.tunnel.map(Upgrade::Hop).map(Box::new);
                match reply.session {
                    ReplySession::Committed { hint, replayed } => {
                        served.replayed = replayed;
                        if hint.sid == key.sid {
                            self.store.gave(key, hint.n);
                        }
                        served.entry = Some(self.portable_entry(key, &hint));
                    }
                    ReplySession::Cleared { replayed } => {
                        served.replayed = replayed;
                        served.cleared = true;
                    }
                    ReplySession::None | ReplySession::Done(_) => {}
                }
                LineEnd::Served(Box::new(served))
            }
            Err(HopError::Refused(HopRefusal::NotOwner { claim, .. }, ..)) => {
                // The next request need not ask the wrong peer first.
                self.store.with(key, false, |machine, _, _| machine.note_claim(claim));
                LineEnd::Elsewhere(claim)
            }
            Err(HopError::Refused(HopRefusal::Deposed { to, n }, ..)) => {
                LineEnd::Failed(Failure::Deposed { to, n })
            }
            Err(HopError::Refused(HopRefusal::Lost { went_on }, ..)) => {
                LineEnd::Failed(match went_on {
                    Some((into, by)) => Failure::WentOn { into, by },
                    None => Failure::Lost { ran: false },
                })
            }
            Err(HopError::Refused(HopRefusal::Ended, ..)) => LineEnd::Failed(Failure::Ended),
            Err(HopError::Refused(HopRefusal::Problem(sent), ..)) => {
                LineEnd::Problem(from_refusal(sent))
            }
            Err(error) => {
                match self.after_failed_hop(portable.slot, call, to, error, portable.keyed) {
                    // The owner is out of reach: the peer that is asked next takes over.
                    Ok(_) => LineEnd::Elsewhere(None),
                    // It is not run again there either, but its session may know its outcome.
                    Err(_) if portable.runs_once() => {
                        call.may_have_run = true;
                        LineEnd::Elsewhere(None)
                    }
                    Err(problem) => LineEnd::Problem(problem),
                }
            }
        }
    }

    /// Serves a request for another peer, which does not hear the session's owner or too few of its
    /// members.
    async fn serve_relayed(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        forward: &Forward,
        Relay { by, begins }: Relay,
        tracing: &mut Tracing,
    ) -> Result<Served, HopRefusal> {
        call.attempt = forward.attempt;
        let portable = Portable::forwarded(slot, forward);
        if let Some(cfg) = &forward.cfg {
            let (sid, owner, n) = (forward.sid, forward.owner, forward.n);
            let named = Named { sid, cfg: cfg.clone(), owner, n };
            let errand = Errand::relayed_token(portable.asked(call), named, by);
            return self.serve_relayed_token(&portable, call, forward, errand, tracing).await;
        }
        let mut errand = Errand::relayed(portable.asked(call), ByKey { sid: forward.sid, begins });
        let served = Box::pin(self.run_errand(&portable, call, &mut errand, None, tracing)).await;
        let unsure = errand.may_have_run() || call.may_have_run;
        served.map_err(|problem| as_refusal(&portable.problem_for_client(problem, call, unsure)))
    }

    /// As [`Node::serve_relayed`], if a token names the session. Whether a new session replaces one
    /// that is lost is decided by the peer that the client reached.
    async fn serve_relayed_token(
        &self,
        portable: &Portable<'_>,
        call: &mut Call,
        forward: &Forward,
        mut errand: Errand,
        tracing: &mut Tracing,
    ) -> Result<Served, HopRefusal> {
        loop {
            let attempt = Box::pin(self.attempt(portable, call, &mut errand, tracing)).await;
            let end = attempt.unwrap_or_else(LineEnd::Problem);
            call.may_have_run |= errand.may_have_run();
            let ended = match &end {
                LineEnd::Elsewhere(other) => End::Elsewhere(*other),
                LineEnd::Failed(failure) => End::Failed(*failure),
                LineEnd::Served(_) | LineEnd::Problem(_) => {
                    return self.reply_of(portable, call, forward, end);
                }
            };
            let (view, sendable) = (self.view(), call.is_sendable());
            let mut after = errand.relayed_ended(ended, sendable, &self.here(&view));
            if let Relayed::TryAlone(failure) = after {
                let key = SessionKey { app: portable.slot.name().clone(), sid: forward.sid };
                let (into, cfg) = self.tried_alone(&key, errand.is_by_key());
                let here = self.here(&view);
                after = errand.relayed_alone(failure, into, cfg.as_ref(), sendable, &here);
            }
            let end = match after {
                Relayed::Again { back_off } => {
                    if !back_off.is_zero() {
                        tokio::time::sleep(rand::random_range(Duration::ZERO..back_off)).await;
                    }
                    continue;
                }
                Relayed::TryAlone(failure) | Relayed::Tell(Some(failure)) => {
                    LineEnd::Failed(failure)
                }
                Relayed::Tell(None) => end,
            };
            return self.reply_of(portable, call, forward, end);
        }
    }

    /// Serves a request that another peer forwarded because this one owns, or should own, its
    /// session.
    pub(crate) async fn serve_forwarded(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        forward: &Forward,
        sender: Sender<'_>,
        tracing: &mut Tracing,
    ) -> Result<Served, HopRefusal> {
        let key = SessionKey { app: slot.name().clone(), sid: forward.sid };
        tracing.session(&key);
        if let Some(cfg) = forward.cfg.as_ref().filter(|_| forward.n == 0 && !forward.keyed) {
            let look = self.store.read(&key, Look::of);
            if is_void(cfg, look.unwrap_or_default(), &self.here(&self.view())) {
                return Err(HopRefusal::Lost { went_on: None });
            }
        }
        if let Some(relay) = forward.relay {
            return self.serve_relayed(slot, call, forward, relay, tracing).await;
        }
        if let Some(to) = self.way_on(&key, forward) {
            call.attempt = forward.attempt;
            return self.send_on(slot, call, &key, forward, to, tracing).await;
        }
        if let Some(refusal) = self.leaves_to_others(&key) {
            return Err(refusal);
        }
        let (me, owner) = (self.incarnation, forward.owner);
        let token = forward.cfg.is_some();
        let answer = self
            .store
            .read(&key, |machine| answer_forward(Some(machine), me, owner, token))
            .unwrap_or_else(|| answer_forward(None, me, owner, token));
        let enter = match (answer, &forward.cfg) {
            (Forwarded::Serve { take_over: true }, Some(cfg)) => {
                self.taking_over(&key, cfg.clone())
            }
            (Forwarded::Serve { .. }, _) => Enter::AsOwner,
            (Forwarded::NotOwner { claim, cfg }, _) => {
                return Err(HopRefusal::NotOwner { claim, cfg });
            }
        };
        call.attempt = forward.attempt;
        let portable = Portable::forwarded(slot, forward);
        let give = |to| {
            self.store.with(&key, false, |machine, ctx, out| machine.hand_off(ctx, to, out));
        };
        let heir = self.heir_where_cold(slot, &key, forward, sender.peer);
        if let Some(to) = heir.filter(|_| sender.keeps_body) {
            // The request waits for that, and its entry peer sends it there.
            tracing.step("owner", "the app runs elsewhere: its session moves there");
            give(to);
        }
        let end = self.at_owner(&portable, call, &key, enter, None, tracing).await;
        if let Some(to) = forward.hand_off.or(heir.filter(|_| !sender.keeps_body)) {
            give(to);
        }
        self.reply_of(&portable, call, forward, end)
    }

    /// The peer that this one, the session's owner, gives the session to since it does not run the
    /// app: requests of its client arrive elsewhere, and would take two hops.
    fn heir_where_cold(
        &self,
        slot: &Slot,
        key: &SessionKey,
        forward: &Forward,
        asks: &PeerId,
    ) -> Option<Incarnation> {
        let is_cold = !slot.keeps_registers && slot.state() != AppState::Ready;
        if !is_cold || forward.hand_off.is_some() || !self.store.may_give(key) {
            return None;
        }
        let (view, zone, now) = (self.view(), self.zone.as_deref(), self.clock.now());
        let served = forward.version.as_ref();
        let too_old = |it: Option<&AppVersion>| {
            served.zip(it).is_some_and(|(served, it)| served.is_newer_than(it))
        };
        Viewpoint { view: &view, zone, now }.heir(slot.name(), asks, too_old)
    }

    /// The owner of the session of a request that was forwarded by way of this peer, if this peer
    /// hears it.
    fn way_on(&self, key: &SessionKey, forward: &Forward) -> Option<Incarnation> {
        let (view, owner) = (self.view(), forward.owner);
        let here = self.here(&view);
        let known = self.store.read(key, |machine| way_on(Some(machine), owner, &here));
        known.unwrap_or_else(|| way_on(None, owner, &here))
    }

    /// Whether this peer cannot forward the request either: then its sender keeps the body.
    pub(crate) fn is_no_way(&self, app: &AppName, forward: &Forward) -> Option<HopRefusal> {
        let key = SessionKey { app: app.clone(), sid: forward.sid };
        if forward.relay.is_some() {
            return None;
        }
        if let Some(refusal) = self.leaves_to_others(&key) {
            return Some(refusal);
        }
        if forward.owner == self.incarnation {
            return None;
        }
        let look = self.store.look(&key).unwrap_or_default();
        if look.owns || self.way_on(&key, forward).is_some() {
            return None;
        }
        let known = self.store.read(&key, |machine| (machine.claim(), machine.config().cloned()));
        let (claim, cfg) = known.unwrap_or_default();
        Some(HopRefusal::NotOwner { claim, cfg })
    }

    /// The refusal of an owner that does not hear enough of its session's members to commit anything:
    /// the peer that asks it may hear them, and takes the session over.
    fn leaves_to_others(&self, key: &SessionKey) -> Option<HopRefusal> {
        if self.store.policy().without_majority == WithoutMajority::Serve {
            return None;
        }
        let view = self.view();
        let here = self.here(&view);
        let known = |machine: &Session| (machine.claim(), machine.config().cloned());
        let cut_off = |machine: &Session| is_cut_off(machine, &here).then(|| known(machine));
        let (claim, cfg) = self.store.read(key, cut_off)??;
        Some(HopRefusal::NotOwner { claim, cfg })
    }

    /// Forwards a request to its session's owner for another peer, which does not hear the owner.
    async fn send_on(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        key: &SessionKey,
        forward: &Forward,
        owner: Incarnation,
        tracing: &mut Tracing,
    ) -> Result<Served, HopRefusal> {
        let view = self.view();
        let (Some(belief), Some(hops_left)) =
            (view.by_incarnation(&owner), forward.hops_left.checked_sub(1))
        else {
            return Err(HopRefusal::NotOwner { claim: None, cfg: None });
        };
        let to = belief.news.peer.clone();
        let portable = Portable::forwarded(slot, forward);
        let on = Forward { owner, hops_left, hand_off: None, ..forward.clone() };
        tracing.step("forward", Why::OwnedBy(to.clone()));
        let end = Box::pin(self.forward(&portable, call, key, on, &to, tracing)).await;
        self.reply_of(&portable, call, forward, end)
    }

    /// The reply to the peer that forwarded a request, by how the request ended here.
    fn reply_of(
        &self,
        portable: &Portable<'_>,
        call: &Call,
        forward: &Forward,
        end: LineEnd,
    ) -> Result<Served, HopRefusal> {
        let key = SessionKey { app: portable.slot.name().clone(), sid: forward.sid };
        let end = match end {
            LineEnd::Failed(failure) if tries_alone(&failure) => {
                let went_on = |into| Failure::WentOn { into, by: self.incarnation };
                LineEnd::Failed(self.fork(&key, forward.cfg.is_none()).map_or(failure, went_on))
            }
            end => end,
        };
        match end {
            LineEnd::Served(served) => Ok(*served),
            // The peer that forwarded it may know more.
            LineEnd::Failed(Failure::Lost { ran: false }) if !self.newborn_for().is_zero() => {
                Err(HopRefusal::NotOwner { claim: None, cfg: None })
            }
            // A peer that gets `NotOwner` continues as if no app had seen the request.
            LineEnd::Elsewhere(to) if portable.runs_once() && call.may_have_run => {
                Err(HopRefusal::Deposed { to, n: forward.n })
            }
            end if end.is_elsewhere() => {
                let known =
                    self.store.read(&key, |machine| (machine.claim(), machine.config().cloned()));
                let (claim, cfg) = known.unwrap_or_default();
                Err(HopRefusal::NotOwner { claim, cfg })
            }
            LineEnd::Failed(failure) if is_for_entry(&failure) => Err(match failure {
                Failure::WentOn { into, by } => HopRefusal::Lost { went_on: Some((into, by)) },
                Failure::Deposed { to, n } => HopRefusal::Deposed { to, n },
                Failure::Ended => HopRefusal::Ended,
                _ => HopRefusal::Lost { went_on: None },
            }),
            LineEnd::Failed(failure) => {
                let problem = self.session_problem(portable.slot, &failure);
                Err(as_refusal(&portable.problem_for_client(problem, call, call.may_have_run)))
            }
            LineEnd::Problem(problem) => {
                Err(as_refusal(&portable.problem_for_client(problem, call, call.may_have_run)))
            }
            LineEnd::Elsewhere(claim) => Err(HopRefusal::NotOwner { claim, cfg: None }),
        }
    }
}
