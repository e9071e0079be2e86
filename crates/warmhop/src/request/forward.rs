//! A request of a session that another peer owns: sent to that one, or served for the one that sent it.

use std::sync::Arc;

use warmhop_core::app::WantedBy;
use warmhop_core::ids::{PeerId, SessionKey};
use warmhop_core::route::Arrived;
use warmhop_core::session::Failure;
use warmhop_core::session::entry::{
    ByKey, Enter, Errand, Forwarded, Look, answer_forward, is_for_entry, is_void,
};
use warmhop_core::view::AppState;

use crate::app::slot::Slot;
use crate::hop::{Forward, HopError, HopKind, HopRefusal, ReplySession};
use crate::observe::recall::Tracing;
use crate::request::call::Call;
use crate::request::node::Node;
use crate::request::portable::{LineEnd, Portable};
use crate::request::problem::{as_refusal, from_refusal};
use crate::request::serve::{Served, ServedBy, Upgrade};

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
        // Its client has come here, and may stay: what is not ready here begins to be.
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
                served.upgrade = reply.tunnel.map(Upgrade::Hop);
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
            Err(HopError::Refused(
                HopRefusal::Problem { status, name, detail, retry_after_ms },
                ..,
            )) => LineEnd::Problem(from_refusal(status, &name, detail, retry_after_ms)),
            Err(error) => {
                match self.after_failed_hop(portable.slot, call, to, error, portable.keyed) {
                    // The owner is not reached: whoever is asked next takes over.
                    Ok(_) => LineEnd::Elsewhere(None),
                    // Nor is it run again there, but its session may know what became of it.
                    Err(_) if portable.runs_once() => {
                        call.may_have_run = true;
                        LineEnd::Elsewhere(None)
                    }
                    Err(problem) => LineEnd::Problem(problem),
                }
            }
        }
    }

    /// Serves a request for another peer, which does not hear its owner.
    async fn serve_relayed(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        forward: &Forward,
        begins: bool,
        tracing: &mut Tracing,
    ) -> Result<Served, HopRefusal> {
        call.attempt = forward.attempt;
        let portable = Portable::forwarded(slot, forward);
        let mut errand = Errand::relayed(portable.asked(call), ByKey { sid: forward.sid, begins });
        let served = Box::pin(self.run_errand(&portable, call, &mut errand, tracing)).await;
        let unsure = errand.may_have_run() || call.may_have_run;
        served.map_err(|problem| as_refusal(&portable.told(problem, call, unsure)))
    }

    /// Serves a request that another peer forwarded because this one owns, or should own, its
    /// session.
    pub(crate) async fn serve_forwarded(
        &self,
        slot: &Arc<Slot>,
        call: &mut Call,
        forward: &Forward,
        tracing: &mut Tracing,
    ) -> Result<Served, HopRefusal> {
        let key = SessionKey { app: slot.name().clone(), sid: forward.sid };
        tracing.session(&key);
        if let Some(begins) = forward.relay {
            return self.serve_relayed(slot, call, forward, begins, tracing).await;
        }
        let (me, owner) = (self.incarnation, forward.owner);
        let token = forward.cfg.is_some();
        if let Some(cfg) = forward.cfg.as_ref().filter(|_| forward.n == 0 && !forward.keyed) {
            let look = self.store.read(&key, Look::of);
            if is_void(cfg, look.unwrap_or_default(), &self.here(&self.view())) {
                return Err(HopRefusal::Lost { went_on: None });
            }
        }
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
        let end = self.at_owner(&portable, call, &key, enter, None, tracing).await;
        if let Some(to) = forward.hand_over {
            self.store.with(&key, false, |machine, ctx, out| machine.hand_over(ctx, to, out));
        }
        match end {
            LineEnd::Served(served) => Ok(*served),
            // Whoever forwarded it may know more.
            LineEnd::Failed(Failure::Lost { ran: false }) if !self.newborn_for().is_zero() => {
                Err(HopRefusal::NotOwner { claim: None, cfg: None })
            }
            // Who is told that this is not the owner goes on as if no app had seen the request.
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
                let problem = self.session_problem(&failure);
                Err(as_refusal(&portable.told(problem, call, call.may_have_run)))
            }
            LineEnd::Problem(problem) => {
                Err(as_refusal(&portable.told(problem, call, call.may_have_run)))
            }
            LineEnd::Elsewhere(claim) => Err(HopRefusal::NotOwner { claim, cfg: None }),
        }
    }
}
