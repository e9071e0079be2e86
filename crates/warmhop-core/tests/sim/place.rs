//! Where a request runs: re-enacts the mesh crate's waits over the real `route`.

use std::rc::Rc;
use std::time::Duration;

use warmhop_core::app::{AppEvent, WantedBy};
use warmhop_core::ids::{Incarnation, PeerId};
use warmhop_core::problem::ProblemKind;
use warmhop_core::route::{
    ATTEMPTS_MAX, Action, Arrived, Candidate, Decision, LocalApp, Noted, NotedLoad, Question,
    Queued, Versions, Viewpoint, decide, may_go_again, others_start, still_tried,
};
use warmhop_core::view::{AppState, View};

use crate::calls::{Asked, Call, Does, HopKind, Place};
use crate::peer::{Peer, app_name};

impl Peer {
    pub(crate) fn candidates<'v>(
        &self,
        view: &'v View,
        at: usize,
        or_cold: bool,
    ) -> Vec<Candidate<'v>> {
        let app = app_name(at);
        let is_warm = |state| matches!(state, AppState::Ready | AppState::Starting);
        let warm = view
            .live_peers()
            .filter(|(_, it)| it.apps.get(&app).is_some_and(|copy| is_warm(copy.news.state)));
        assert_eq!(warm.count(), view.warm_peers(&app).count(), "the view's index is its beliefs");
        let loads = self.loads.borrow();
        let noted = |peer: &PeerId| {
            let load = loads.get(&(peer.clone(), app.clone())).map(|(load, at)| NotedLoad {
                in_flight: load.in_flight,
                latency_us: load.latency_us,
                at: *at,
            });
            Noted { load, ..Noted::default() }
        };
        Viewpoint { view, zone: None, now: self.now() }.candidates(&app, or_cold, noted)
    }

    /// Decides where a request goes, waiting where it must.
    pub(crate) async fn place(
        self: &Rc<Self>,
        at: usize,
        tried: &[PeerId],
    ) -> Result<Place, ProblemKind> {
        let since = self.now();
        let mut waiting: Option<Waits> = None;
        loop {
            let decision = self.decision(at, tried, self.now().since(since), waiting.is_some());
            if decision.start_here {
                self.tell(at, AppEvent::Wanted(WantedBy::Request));
            }
            if let Some(peer) = decision.ask_to_start.clone() {
                self.ask_to_start(peer, at);
            }
            self.world.count(decision.reason.label());
            match decision.action {
                Action::Serve => return Ok(Place::Here),
                Action::Hop { to } => return Ok(Place::There(to)),
                Action::Refuse(refusal) => return Err(refusal.problem()),
                Action::Wait { at_most } => {
                    if waiting.is_none() {
                        self.slots[at].borrow_mut().waiting += 1;
                        waiting = Some(Waits { peer: Rc::clone(self), at });
                    }
                    let at_most = u64::try_from(at_most.as_millis()).unwrap_or(u64::MAX);
                    self.changed_within(at_most).await;
                }
            }
        }
    }

    fn decision(&self, at: usize, tried: &[PeerId], waited: Duration, waits: bool) -> Decision {
        let slot = self.slots[at].borrow();
        let view = self.view.borrow();
        let state = slot.state();
        let draining = self.draining.get();
        let mut candidates = if state == AppState::Ready && !draining {
            Vec::new()
        } else {
            self.candidates(&view, at, others_start(&slot.policy, state, draining))
        };
        candidates.retain(|it| may_go_again(it, tried, waits));
        decide(&Question {
            app: &slot.policy,
            local: LocalApp {
                state,
                in_flight: slot.in_flight(),
                eta: slot.eta(self.now()),
                waiting: slot.waiting - usize::from(waits),
                awaiting: 0,
                latency_us: 0,
                starts_in: slot.starts_in(self.now()),
                shut: false,
            },
            draining,
            zone: None,
            candidates: &candidates,
            arrived: Arrived::AtFrontDoor,
            affinity: None,
            tried: still_tried(tried, waits),
            attempt_budget: ATTEMPTS_MAX,
            waited,
            queued: Queued::default(),
            never_wakes: false,
            failed_starts: 0,
            failed_elsewhere: 0,
            versions: Versions::default(),
            dice: self.world.random(),
        })
    }

    fn ask_to_start(self: &Rc<Self>, peer: PeerId, at: usize) {
        let me = Rc::clone(self);
        self.world.spawn(Some(self.life), async move {
            let asked = Asked {
                slot: at,
                key: None,
                id: 0,
                does: Does::Read,
                keyed: false,
                large: false,
                streams: false,
                fingerprint: 0,
                runs_ms: 0,
                lasts_ms: None,
            };
            let mut call = Call { asked, has_body: true, may_have_run: false };
            let _ = me.ask(&peer, &mut call, HopKind::Wake).await;
        });
    }

    pub(crate) fn incarnation_of(&self, peer: &PeerId) -> Option<Incarnation> {
        self.view.borrow().peer(peer).map(|belief| belief.news.incarnation)
    }
}

pub(crate) struct Waits {
    pub(crate) peer: Rc<Peer>,
    pub(crate) at: usize,
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.peer.slots[self.at].borrow_mut().waiting -= 1;
    }
}
