//! Where a request runs: re-enacts the mesh crate's placing over the real `route` and `rank`.

use std::rc::Rc;

use warmhop_core::app::{AppEvent, WantedBy};
use warmhop_core::config::StartMode;
use warmhop_core::ids::{Incarnation, PeerId};
use warmhop_core::rank;
use warmhop_core::route::{
    ATTEMPTS_MAX, Action, Arrived, Candidate, LocalApp, Question, Queued, decide,
};
use warmhop_core::view::{AppBelief, AppState, Liveness, PeerBelief, View};

use crate::calls::{Asked, Call, Does, HopKind, Place, Problem, problem};
use crate::peer::{Peer, app_name};

impl Peer {
    pub(crate) fn candidates<'v>(
        &self,
        view: &'v View,
        at: usize,
        or_cold: bool,
    ) -> Vec<Candidate<'v>> {
        let now = self.now();
        let app = app_name(at);
        let loads = self.loads.borrow();
        let candidate = |peer: &'v PeerId, belief: &PeerBelief, told: &AppBelief| {
            let load = loads.get(&(peer.clone(), app.clone()));
            let fresher = load.filter(|(_, at)| *at >= told.heard);
            Candidate {
                peer,
                state: told.news.state,
                same_zone: true,
                in_flight: fresher.map_or(told.news.in_flight, |(load, _)| load.in_flight),
                ours: 0,
                latency_us: load.map(|(load, _)| load.latency_us).filter(|us| *us > 0),
                age: now.since(told.heard),
                load_age: load.map(|(_, at)| now.since(*at)),
                suspect: belief.alive == Liveness::Suspect,
                draining: belief.news.draining,
                eta: told.eta(now),
            }
        };
        let all = || {
            view.live_peers()
                .filter_map(|(peer, belief)| Some((peer, belief, belief.apps.get(&app)?)))
        };
        let is_warm =
            |told: &AppBelief| matches!(told.news.state, AppState::Ready | AppState::Starting);
        let warm: Vec<_> = all()
            .filter(|(_, _, told)| is_warm(told))
            .map(|(peer, belief, told)| candidate(peer, belief, told))
            .collect();
        assert_eq!(warm.len(), view.warm_peers(&app).count(), "the view's index is its beliefs");
        if !warm.is_empty() || !or_cold {
            return warm;
        }
        let ranked = rank::keepers(&app, all().map(|(peer, _, _)| peer), 8);
        ranked
            .iter()
            .filter_map(|ranked| {
                let (peer, belief, told) = all().find(|(peer, _, _)| *peer == ranked)?;
                Some(candidate(peer, belief, told))
            })
            .collect()
    }

    /// Decides where a request goes, waiting where it must.
    pub(crate) async fn place(
        self: &Rc<Self>,
        at: usize,
        tried: &[PeerId],
    ) -> Result<Place, Problem> {
        let since = self.now();
        let mut waiting: Option<Waits> = None;
        loop {
            let decision = {
                let slot = self.slots[at].borrow();
                let view = self.view.borrow();
                let state = slot.state();
                let draining = self.draining.get();
                let candidates = if state == AppState::Ready && !draining {
                    Vec::new()
                } else {
                    let never = slot.policy.start == StartMode::Never;
                    let others_start = never || draining || state == AppState::Failed;
                    self.candidates(&view, at, others_start)
                };
                decide(&Question {
                    app: &slot.policy,
                    local: LocalApp {
                        state,
                        in_flight: slot.in_flight(),
                        eta: slot.eta(self.now()),
                        waiting: slot.waiting - usize::from(waiting.is_some()),
                        awaiting: 0,
                        latency_us: 0,
                        starts_in: slot.starts_in(self.now()),
                    },
                    draining: self.draining.get(),
                    zone: None,
                    candidates: &candidates,
                    arrived: Arrived::AtFrontDoor,
                    affinity: None,
                    tried: if waiting.is_some() { &[] } else { tried },
                    attempt_budget: ATTEMPTS_MAX,
                    waited: self.now().since(since),
                    queued: Queued::default(),
                    never_wakes: false,
                    failed_starts: 0,
                    dice: self.world.random(),
                })
            };
            if decision.start_here {
                self.tell(at, AppEvent::Wanted(WantedBy::Request));
            }
            if let Some(peer) = decision.ask_to_start.clone() {
                let me = Rc::clone(self);
                self.world.spawn(Some(self.life), async move {
                    let mut call = Call {
                        asked: Asked {
                            slot: at,
                            key: None,
                            id: 0,
                            does: Does::Read,
                            keyed: false,
                            large: false,
                            streams: false,
                            fingerprint: 0,
                            runs_ms: 0,
                        },
                        has_body: true,
                        may_have_run: false,
                    };
                    let _ = me.ask(&peer, &mut call, HopKind::Wake).await;
                });
            }
            self.world.count(decision.reason.label());
            match decision.action {
                Action::Serve => return Ok(Place::Here),
                Action::Hop { to } => return Ok(Place::There(to)),
                Action::Refuse(refusal) => return Err(problem(503, refusal.label())),
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
