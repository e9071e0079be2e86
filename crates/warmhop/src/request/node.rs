//! The parts of one peer, and how it decides where a request goes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use http::HeaderValue;
use tokio::sync::watch;
use warmhop_core::affinity::RouteName;
use warmhop_core::app::{ETA_FLOOR, WantedBy};
use warmhop_core::ids::{AppName, Incarnation, Now, PeerId};
use warmhop_core::problem::ProblemKind;
use warmhop_core::route::{
    ATTEMPTS_MAX, Action, Arrived, Candidate, Decision, HOT_AWAITING, LocalApp, PinTo, Question,
    Queued, RETRY_AFTER_DEFAULT, RETRY_AFTER_MAX, Reason, Refusal, Versions, Viewpoint, decide,
    is_held_back, may_go_again, others_start, still_tried,
};
use warmhop_core::session::census::Census;
use warmhop_core::session::entry::Stillness;
use warmhop_core::version::AppVersion;
use warmhop_core::view::{AppState, Liveness, News, Source, View};

use crate::app::places::{Wait, Waits};
use crate::app::slot::Slot;
use crate::hop::Load;
use crate::hop::peer_service::PeerServices;
use crate::http::clients::Clients;
use crate::http::fields::Via;
use crate::http::tunnels::Tunnels;
use crate::identity::CookieAuthenticator;
use crate::links::net::Net;
use crate::links::news::Standing;
use crate::observe::access::Accesses;
use crate::observe::clock::Clock;
use crate::observe::history::Keeper;
use crate::observe::metrics::Metrics;
use crate::observe::progress::Progress;
use crate::observe::recall::{Considered, Traces, Tracing};
use crate::observe::trace::Spans;
use crate::request::apps::Apps;
use crate::request::error_page::ErrorPage;
use crate::request::known_ids::KnownIds;
use crate::request::problem::{PSEUDONYM, Problem, sf_name};
use crate::request::under_way::RunsOnce;
use crate::request::whose::noted_for;
use crate::sessions::store::Store;

/// How long a reply vouches for the peer that sent it.
const HEARD_LATELY: Duration = Duration::from_millis(50);
/// How long a dead peer is remembered.
pub(crate) const FORGET_DEAD_AFTER: Duration = Duration::from_secs(10 * 60);

/// One peer.
pub(crate) struct Node {
    pub(crate) me: PeerId,
    /// Its name as the value of a field.
    pub(crate) me_field: HeaderValue,
    /// Its value in `Via`, for apps and for clients.
    pub(crate) via: [Via; 2],
    /// Its value in `Proxy-Status` before the name of the peer that it sent a request to.
    pub(crate) status_of_hop: String,
    pub(crate) cluster: String,
    pub(crate) zone: Option<String>,
    pub(crate) incarnation: Incarnation,
    pub(crate) reveal: bool,
    /// How its cookies name peers.
    pub(crate) route_name: RouteName,
    pub(crate) error_page: ErrorPage,
    pub(crate) clock: Clock,
    pub(crate) started: Instant,
    pub(crate) stillness: Mutex<Stillness>,
    /// How many addresses of other peers it is configured to join.
    pub(crate) seeds: usize,
    apps: ArcSwap<Apps>,
    /// The slots that execute operations on registers: no client's request reaches them.
    pub(crate) registers: Vec<Arc<Slot>>,
    /// The services that other peers may use besides its apps.
    pub(crate) services: PeerServices,
    view: ArcSwap<View>,
    view_owner: Mutex<View>,
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) store: Arc<Store>,
    pub(crate) net: Net,
    /// The memory that requests make it hold.
    pub(crate) clients: Arc<Clients>,
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) draining: AtomicBool,
    /// It has drained: everything it held was given to other peers.
    pub(crate) drained: AtomicBool,
    pub(crate) tunnels: Tunnels,
    pub(crate) runs_once: RunsOnce,
    pub(crate) known_ids: KnownIds,
    /// How often a peer fell silent, even for a moment between two looks at the view.
    pub(crate) silences: AtomicU64,
    pub(crate) auth: CookieAuthenticator,
    pub(crate) traces: Arc<Traces>,
    pub(crate) accesses: Accesses,
    pub(crate) spans: Spans,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) history: Keeper,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Here,
    There(PeerId),
}

/// The properties of a request that decide where it goes.
pub(crate) struct Placing<'a> {
    pub(crate) slot: &'a Arc<Slot>,
    pub(crate) arrived: Arrived,
    pub(crate) pin: Option<PinTo<'a>>,
    pub(crate) tried: &'a [PeerId],
    /// How an app failed on the request: the client's problem unless another copy is ready. The
    /// request does not wait for one.
    pub(crate) failed: Option<&'a Problem>,
    /// The copy here took the request, and was too slow.
    pub(crate) shun_here: bool,
    /// The newest version of the app that has served its session.
    pub(crate) version: Option<&'a AppVersion>,
}

impl<'a> Placing<'a> {
    /// For a request that no app has had.
    pub(crate) fn first(slot: &'a Arc<Slot>, arrived: Arrived) -> Self {
        let (pin, failed, version) = (None, None, None);
        Self { slot, arrived, pin, tried: &[], failed, shun_here: false, version }
    }
}

/// The parts that a node is made of, except for those that it makes itself.
pub(crate) struct Parts {
    pub(crate) me: PeerId,
    pub(crate) cluster: String,
    pub(crate) zone: Option<String>,
    pub(crate) incarnation: Incarnation,
    pub(crate) reveal: bool,
    pub(crate) error_page: ErrorPage,
    pub(crate) clock: Clock,
    pub(crate) seeds: usize,
    pub(crate) slots: Vec<Arc<Slot>>,
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) store: Arc<Store>,
    pub(crate) net: Net,
    pub(crate) clients: Arc<Clients>,
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) auth: CookieAuthenticator,
    pub(crate) accesses: Accesses,
    pub(crate) spans: Spans,
    pub(crate) metrics: Arc<Metrics>,
}

impl Node {
    /// `registers`: executes them on this node, which does not exist yet.
    pub(crate) fn new(
        parts: Parts,
        registers: impl FnOnce(&Weak<Self>) -> Vec<Arc<Slot>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|node| Self::of(parts, registers(node)))
    }

    fn of(parts: Parts, registers: Vec<Arc<Slot>>) -> Self {
        let apps = Apps::new(parts.slots, Vec::new(), &registers);
        let view = View::new(parts.me.clone());
        let me_field = HeaderValue::from_str(parts.me.as_str()).expect("a name is visible ASCII");
        let shown = if parts.reveal { parts.me.as_str() } else { PSEUDONYM };
        let via = [Via::of(parts.me.as_str()), Via::of(shown)];
        let status_of_hop = format!("{}; next-hop=", sf_name(parts.me.as_str()));
        Self {
            me: parts.me,
            me_field,
            via,
            status_of_hop,
            cluster: parts.cluster,
            zone: parts.zone,
            incarnation: parts.incarnation,
            reveal: parts.reveal,
            route_name: parts.store.policy().cookie.route_name(parts.reveal),
            error_page: parts.error_page,
            clock: parts.clock,
            started: Instant::now(),
            stillness: Mutex::default(),
            seeds: parts.seeds,
            apps: ArcSwap::from_pointee(apps),
            registers,
            services: PeerServices::new(),
            view: ArcSwap::from_pointee(view.clone()),
            view_owner: Mutex::new(view),
            changed: parts.changed,
            store: parts.store,
            net: parts.net,
            clients: parts.clients,
            http: parts.http,
            draining: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            tunnels: Tunnels::default(),
            runs_once: RunsOnce::default(),
            known_ids: KnownIds::default(),
            silences: AtomicU64::new(0),
            auth: parts.auth,
            traces: Arc::clone(&parts.metrics.traffic.cut_offs.traces),
            accesses: parts.accesses,
            spans: parts.spans,
            metrics: parts.metrics,
            history: Keeper::default(),
        }
    }

    /// Its current apps.
    pub(crate) fn apps(&self) -> Guard<Arc<Apps>> {
        self.apps.load()
    }

    /// Replaces its apps.
    pub(crate) fn put_apps(&self, apps: Apps) {
        self.apps.store(Arc::new(apps));
    }

    /// The app of this name, or the registers.
    pub(crate) fn slot(&self, name: &AppName) -> Option<Arc<Slot>> {
        self.apps.load().named(name).cloned()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// This peer's beliefs about the others, as one immutable snapshot.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Changes the view and publishes the snapshot.
    pub(crate) fn edit_view<R>(&self, edit: impl FnOnce(&mut View, Now) -> R) -> R {
        let mut view = self.view_owner.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let result = edit(&mut view, now);
        self.view.store(Arc::new(view.clone()));
        self.count(&view, now);
        drop(view);
        self.changed.send_modify(|count| *count += 1);
        result
    }

    /// Counts the other peers again: some silences have become long.
    pub(crate) fn count_peers(&self) {
        // Excludes a concurrent change, whose count would be newer.
        let view = self.view_owner.lock().unwrap_or_else(PoisonError::into_inner);
        self.count(&view, self.clock.now());
    }

    fn count(&self, view: &View, now: Now) {
        let known = |addr| view.peers().any(|(_, it)| it.news.mesh == addr);
        // Until this peer has joined the mesh, no seed was met.
        let (unmet, age) = (self.net.unmet_seeds(known), self.started.elapsed());
        let census =
            Census::of(view, now).with_unmet(unmet).with_age(age).with_silences(view, now, age);
        let knows_more = census.knows_more(view);
        let (full, sole) = (self.store.has_hardly_any_room(), self.store.is_sole_holder());
        self.net.publish_standing(Standing { knows_more, young: census.is_young, full, sole });
        self.store.count(census);
    }

    pub(crate) fn apply(&self, news: News, first_hand: bool) {
        let source = if first_hand { Source::FirstHand } else { Source::Hearsay };
        let ready = match &news {
            News::App { news, .. } if news.state == AppState::Ready => {
                news.version.clone().map(|version| (news.app.clone(), version))
            }
            _ => None,
        };
        let unready = match &news {
            News::App { news, .. } if news.state != AppState::Ready => Some(news.app.clone()),
            _ => None,
        };
        let (begun, fails) = self.edit_view(|view, now| {
            let peer = news.peer().clone();
            let state =
                |view: &View| view.peer(&peer)?.apps.get(unready.as_ref()?).map(|it| it.news.state);
            let (before, was) = (view.life(&peer), state(view));
            view.apply(news, now, source);
            let fails = state(view) == Some(AppState::Failed)
                && was.is_some_and(|was| !matches!(was, AppState::Failed | AppState::Ready));
            let life = view.life(&peer).filter(|life| Some(*life) != before);
            (life.map(|life| (life, before)), fails)
        });
        if let Some(app) = unready
            && let Some(slot) = self.slot(&app)
        {
            self.known_ids.unready(&app, self.clock.now());
            if fails {
                slot.fails_elsewhere();
            }
        }
        // Only once a request that looks for the copy finds it in the view.
        if let Some((app, version)) = ready
            && let Some(slot) = self.slot(&app)
        {
            slot.hears(&version);
        }
        if let Some((life, former)) = begun {
            self.store.peer_lives(life, former);
        }
    }

    /// Whether the peer replied so recently that it very likely is still alive.
    pub(crate) fn heard_lately(&self, slot: &Slot, peer: &PeerId) -> bool {
        let load = slot.loads.of(peer).load;
        load.is_some_and(|load| self.clock.now().since(load.at) < HEARD_LATELY)
    }

    /// Drops what was noted about peers that are gone.
    pub(crate) fn forget_loads(&self) {
        let view = self.view();
        for slot in self.apps().slots.iter().chain(&self.registers) {
            slot.loads.retain(|peer| view.peer(peer).is_some());
        }
    }

    pub(crate) fn local_load(slot: &Slot) -> Load {
        Load { in_flight: slot.in_flight_here(), latency_us: slot.latency_us() }
    }

    /// Asks a peer to start an app that may not start here; its news will report the outcome.
    fn ask_to_start(&self, peer: PeerId, app: AppName) {
        let net = self.net.clone();
        tokio::spawn(async move {
            if let Err(error) = crate::hop::wake(&net, &peer, app).await {
                tracing::debug!(%peer, ?error, "could not ask for a start");
            }
        });
    }

    /// Decides where a request goes, and waits if it has to; every decision is traced. `waits`
    /// accumulates how the request has waited over all placements, and holds its place in the queue
    /// until it has begun somewhere.
    pub(crate) async fn place(
        &self,
        placing: &Placing<'_>,
        waits: &mut Waits,
        tracing: &mut Tracing,
    ) -> Result<Place, Problem> {
        let slot = placing.slot;
        let pinned_to = placing.pin.filter(|pin| pin.lives).map(|pin| pin.peer);
        let mut waiting: Option<(Instant, Waiting<'_>)> = None;
        let before = waits.waited;
        let (failed_before, elsewhere_before) = (slot.failed_starts(), slot.failed_elsewhere());
        let mut changes: Option<watch::Receiver<u64>> = None;
        loop {
            if let Some(changes) = &mut changes {
                changes.mark_unchanged();
            }
            if let Some((since, _)) = &waiting {
                waits.waited = before + since.elapsed();
            }
            let failed_starts = slot.failed_starts().saturating_sub(failed_before);
            let so_far = SoFar {
                waits: waiting.is_some(),
                waited: waits.waited,
                failed_starts,
                failed_elsewhere: slot.failed_elsewhere().saturating_sub(elsewhere_before),
                queued: waits.standing(&slot.places, pinned_to),
                never_wakes: waits.never_wakes,
            };
            let has_turn = so_far.queued.has_turn;
            let Considering { decision, candidates, is_held_back, declines } =
                self.consider(placing, so_far, waits);
            if changes.is_none() && matches!(decision.action, Action::Wait { .. }) {
                // Most requests never wait. One that will checks once more, so that it misses nothing.
                changes = Some(self.changed.subscribe());
                continue;
            }
            let what = name_of(&decision.action);
            if waiting.is_none() || what != "wait" {
                let label = decision.reason.label();
                slot.counts.decided(&self.metrics, slot.name(), what, label);
            }
            tracing.step_among(what, decision.reason.clone(), candidates);
            let goes_on = matches!(decision.action, Action::Serve | Action::Hop { .. });
            if !goes_on && decision.reason != Reason::BusyEverywhere {
                waits.leaves();
            }
            if let (Some(failed), false) = (placing.failed, goes_on) {
                return Err(failed.clone());
            }
            match decision.action {
                Action::Serve => return Ok(Place::Here),
                Action::Hop { to } => {
                    // With a copy here, the next place may be one of its own.
                    let only_there = pinned_to.is_some() || slot.state() != AppState::Ready;
                    let takes_turn =
                        has_turn || matches!(decision.reason, Reason::TurnThere { .. });
                    waits.may_wait_there = takes_turn && only_there;
                    return Ok(Place::There(to));
                }
                Action::Refuse(refusal) => {
                    let problem = refused(&refusal, &decision.reason.to_string());
                    return Err(self.naming(&refusal, placing.tried, problem));
                }
                Action::Wait { at_most } => {
                    if waiting.is_none() {
                        slot.waiting.fetch_add(1, Ordering::Relaxed);
                        waiting = Some((Instant::now(), Waiting(slot)));
                    }
                    if decision.reason == Reason::BusyEverywhere {
                        // A place that becomes free elsewhere is no news: ask for one again.
                        let most = slot.spec().policy.waiting_max;
                        let is_full = slot.waiting.load(Ordering::Relaxed) > most;
                        let wait = Wait { at_most, is_full, is_held_back, declines };
                        waits.for_place(&slot.places, pinned_to, wait).await;
                    } else if let Some(changes) = &mut changes {
                        let is_over =
                            tokio::time::timeout(at_most, changes.changed()).await.is_err();
                        if let (true, Reason::UnheardVersion { served }) =
                            (is_over, &decision.reason)
                        {
                            // No other request needs to wait for a version that does not come.
                            slot.hears(served);
                        }
                    }
                }
            }
        }
    }

    /// Why the copy here takes the request now, if it does; nothing is traced or counted yet.
    pub(crate) fn takes_now(&self, placing: &Placing<'_>, waits: &Waits) -> Option<Reason> {
        // Anything else may start the app, or wait.
        if placing.slot.state() != AppState::Ready {
            return None;
        }
        let queued = waits.standing(&placing.slot.places, None);
        let (waited, never_wakes) = (waits.waited, waits.never_wakes);
        let so_far = SoFar { waited, queued, never_wakes, ..SoFar::default() };
        let Decision { action, reason, .. } = self.consider(placing, so_far, waits).decision;
        matches!(action, Action::Serve).then_some(reason)
    }

    /// Traces and counts a request that the copy here takes.
    pub(crate) fn taken_now(&self, slot: &Slot, reason: Reason, tracing: &mut Tracing) {
        let what = name_of(&Action::Serve);
        slot.counts.decided(&self.metrics, slot.name(), what, reason.label());
        tracing.step(what, reason);
    }

    /// Adds to a refusal which peers did not take the request, and why there is no link to them: for
    /// the log, not for clients.
    fn naming(&self, refusal: &Refusal, tried: &[PeerId], problem: Problem) -> Problem {
        if !matches!(refusal, Refusal::NobodyAnswered { .. }) {
            return problem;
        }
        let why = |peer: &PeerId| match self.net.why_no_link(peer) {
            Some(why) => format!("no link to {peer}: {why}"),
            None => format!("{peer} did not take it"),
        };
        problem.because(tried.iter().map(why).collect::<Vec<_>>().join("; "))
    }

    /// The starting page for a browser that navigates while the app is ready nowhere; the start
    /// begins as for a request that waits. `None` if the request is treated like any other.
    pub(crate) fn starting_page(&self, slot: &Arc<Slot>, tracing: &mut Tracing) -> Option<Problem> {
        if slot.state() == AppState::Ready {
            return None;
        }
        let arrived = Arrived::AtFrontDoor;
        let placing = Placing::first(slot, arrived);
        let Considering { decision, candidates, .. } =
            self.consider(&placing, SoFar::default(), &Waits::default());
        if !matches!(decision.action, Action::Wait { .. }) {
            return None;
        }
        let progress = self.progress(slot);
        if !progress.is_worth_a_page() {
            return None;
        }
        slot.counts.decided(&self.metrics, slot.name(), "page", decision.reason.label());
        let why = format!("{}; a browser is shown the starting page", decision.reason);
        tracing.step_among("page", why, candidates);
        let detail = "the app is starting and ready nowhere yet";
        let mut problem = Problem::new(ProblemKind::Starting, detail)
            .retry_after(progress.eta.unwrap_or(RETRY_AFTER_DEFAULT).min(RETRY_AFTER_MAX));
        problem.page = Some(Box::new(progress.page(if self.reveal {
            slot.name().as_str()
        } else {
            "This page"
        })));
        Some(problem)
    }

    /// How far the first copy of the app has come, as clients see it. Asking starts nothing.
    pub(crate) fn progress(&self, slot: &Slot) -> Progress {
        let progress = self.first_copy(slot);
        if self.reveal { progress } else { progress.for_anybody() }
    }

    /// How far the first copy of the app has come, wherever it starts.
    fn first_copy(&self, slot: &Slot) -> Progress {
        let state = slot.state();
        let (failures, retry) = slot.failures();
        let ready = Progress { state: "ready", eta: None, elapsed: None, failures, retry };
        if state == AppState::Ready {
            return ready;
        }
        let (view, now) = (self.view(), self.clock.now());
        let mut first = (state == AppState::Starting).then(|| Progress {
            state: "starting",
            eta: slot.eta(),
            elapsed: slot.starting_for(),
            ..ready
        });
        for (_, belief, copy) in view.warm_peers(slot.name()) {
            match copy.news.state {
                AppState::Ready if belief.alive == Liveness::Alive => return ready,
                AppState::Starting if belief.alive == Liveness::Alive => {
                    let eta = copy.eta(now);
                    let sooner = first.as_ref().is_none_or(|first| {
                        eta.is_some_and(|eta| first.eta.is_none_or(|other| eta < other))
                    });
                    if sooner {
                        first = Some(Progress { state: "starting", eta, elapsed: None, ..ready });
                    }
                }
                _ => {}
            }
        }
        let otherwise = if state == AppState::Failed { "failed" } else { "cold" };
        let mut first =
            first.unwrap_or(Progress { state: otherwise, eta: slot.eta(), elapsed: None, ..ready });
        // A first start here takes about as long as starts elsewhere, where there were any.
        if first.eta.is_none() {
            let copies = view.live_peers().filter_map(|(_, belief)| belief.apps.get(slot.name()));
            let cold = copies.filter(|copy| copy.news.state == AppState::Cold);
            let whole = cold.filter_map(|copy| copy.eta(now)).min();
            let gone = first.elapsed.unwrap_or_default();
            first.eta = whole.map(|whole| whole.saturating_sub(gone).max(ETA_FLOOR));
        }
        first
    }

    /// Asks the core what to do with a request, and carries out what goes beside the answer: a
    /// start here, or the wish that another peer starts the app.
    fn consider(&self, placing: &Placing<'_>, so_far: SoFar, whose: &Waits) -> Considering {
        let SoFar { waits, waited, failed_starts, failed_elsewhere, queued, never_wakes } = so_far;
        let slot = placing.slot;
        let spec = slot.spec();
        // A ready copy that must not be asked again counts as one that takes nothing new.
        let state = if placing.shun_here { AppState::Stopping } else { slot.state_to_start_from() };
        let view = self.view.load();
        let pinned_here = placing.pin.is_none_or(|pin| pin.here);
        // An app that is removed here leaves as if this peer were leaving.
        let draining = self.is_draining() || slot.is_retired();
        let here = placing.version.and_then(|_| slot.version());
        let is_old =
            placing.version.zip(here.as_ref()).is_some_and(|(it, here)| it.is_newer_than(here));
        let doing = slot.doing(&spec.policy, whose.flow);
        let is_busy = is_old || doing.is_shut || doing.is_full || doing.awaiting >= HOT_AWAITING;
        let is_first = queued == Queued::default();
        let is_plain = state == AppState::Ready && pinned_here && !draining && !is_busy && is_first;
        let candidates = if is_plain {
            Vec::new()
        } else {
            let (zone, now) = (self.zone.as_deref(), self.clock.now());
            let others_start = others_start(&spec.policy, state, draining);
            let noted = noted_for(slot, whose);
            let at = Viewpoint { view: &view, zone, now };
            let mut candidates = at.candidates(slot.name(), others_start, noted);
            candidates.retain(|it| may_go_again(it, placing.tried, waits));
            candidates
        };
        let heard = placing.version.filter(|_| !is_plain).and_then(|_| slot.heard());
        let question = Question {
            app: &spec.policy,
            local: LocalApp {
                state,
                in_flight: doing.in_flight,
                // Nobody asks when a copy that is ready, and has room, will be ready.
                eta: if is_plain { None } else { slot.eta() },
                waiting: slot.waiting.load(Ordering::Relaxed) - usize::from(waits),
                awaiting: doing.awaiting,
                latency_us: slot.latency_us(),
                starts_in: if state == AppState::Failed { slot.starts_in() } else { None },
                shut: doing.is_shut,
            },
            draining,
            zone: self.zone.as_deref(),
            candidates: &candidates,
            arrived: placing.arrived,
            affinity: placing.pin,
            tried: still_tried(placing.tried, waits),
            attempt_budget: ATTEMPTS_MAX,
            waited,
            queued,
            never_wakes,
            failed_starts,
            failed_elsewhere,
            versions: Versions {
                served: placing.version,
                here: here.as_ref(),
                heard: heard.as_ref(),
            },
            dice: rand::random(),
        };
        let decision = decide(&question);
        let is_held_back = decision.reason == Reason::BusyEverywhere && is_held_back(&question);
        let backs_off = state == AppState::Failed;
        let wants = (decision.start_here || backs_off) && !never_wakes;
        if wants && placing.arrived == Arrived::AtFrontDoor {
            slot.wanted(WantedBy::Request);
        }
        if let Some(peer) = decision.ask_to_start.clone() {
            self.ask_to_start(peer, slot.name().clone());
        }
        let declines = !doing.is_full && !queued.not_here;
        let candidates = considered(&candidates);
        Considering { decision, candidates, is_held_back, declines }
    }
}

/// What came of considering where a request goes.
struct Considering {
    decision: Decision,
    candidates: Vec<Considered>,
    /// It waits only because its client has used its share.
    is_held_back: bool,
    /// If it waits for a place: it does not take one that is free here.
    declines: bool,
}

/// How it has gone with a request until now.
#[derive(Default)]
struct SoFar {
    /// It is among the requests that wait.
    waits: bool,
    waited: Duration,
    failed_starts: u32,
    failed_elsewhere: u32,
    queued: Queued,
    never_wakes: bool,
}

fn name_of(action: &Action) -> &'static str {
    match action {
        Action::Serve => "serve",
        Action::Hop { .. } => "hop",
        Action::Wait { .. } => "wait",
        Action::Refuse(_) => "refuse",
    }
}

struct Waiting<'a>(&'a Slot);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn considered(candidates: &[Candidate<'_>]) -> Vec<Considered> {
    candidates
        .iter()
        .take(16)
        .map(|candidate| Considered {
            peer: candidate.peer.clone(),
            state: candidate.state,
            in_flight: candidate.in_flight,
            age: candidate.age,
        })
        .collect()
}

/// A refusal of the core, in the client's form.
pub(crate) fn refused(refusal: &Refusal, reason: &str) -> Problem {
    let retry_after = Duration::from_secs(refusal.retry_after_s());
    Problem::new(refusal.problem(), reason).retry_after(retry_after)
}
