//! What a peer counts and remembers about its own work: Prometheus metrics and the last
//! requests' traces. Metrics belong to one peer, not to the process, so that several peers in
//! one process do not mix.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use lru::LruCache;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use warmhop_core::ids::{AppName, PeerId, RequestId};

use crate::hop::HopRefusal;
use crate::refusals::Refusals;
use crate::status::{RequestCounts, RequestTrace, TraceCandidate, TraceStep};

/// How many requests `why` remembers.
const TRACES_MAX: usize = 4096;
/// How many operations on registers it remembers: a session library asks for several with each
/// request, which would leave no room for the requests.
const REGISTER_TRACES_MAX: usize = 256;
/// The role of the trace of an operation on a register, at every peer that it passes.
pub(crate) const REGISTER: &str = "register";
/// How much of a request's line, and of why something was decided, is remembered, in bytes: both
/// may repeat what a client sent.
pub(crate) const TEXT_BYTES_MAX: usize = 512;

/// The beginning of `text`, of at most `bytes_max` bytes.
pub(crate) fn beginning(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let at = bytes_max.saturating_sub('…'.len_utf8());
        text.truncate((0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByApp {
    pub(crate) app: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByAppAndWay {
    pub(crate) app: String,
    pub(crate) way: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByDecision {
    pub(crate) app: String,
    pub(crate) decision: &'static str,
    pub(crate) reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByPeer {
    pub(crate) peer: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByReason {
    pub(crate) reason: &'static str,
}

/// The counters of one peer.
pub(crate) struct Metrics {
    /// Requests by app and by the way they took: `serve`, `hop`, `page` (the starting page),
    /// `refuse`, `server`.
    pub(crate) requests: Family<ByAppAndWay, Counter>,
    /// Seconds until a response's head, by app and way.
    pub(crate) head_seconds: Family<ByAppAndWay, Histogram>,
    /// Decisions of where a request goes, by what was decided and why. One that waits is counted
    /// when it begins to, and again when it ends.
    pub(crate) decisions: Family<ByDecision, Counter>,
    /// Hops sent, by the peer that they went to.
    pub(crate) hops_sent: Family<ByPeer, Counter>,
    /// Hops received, by the peer that they came from.
    pub(crate) hops_received: Family<ByPeer, Counter>,
    /// Hops that the receiving peer refused, by its reason.
    pub(crate) hops_refused: Family<ByReason, Counter>,
    /// Hops that failed on the way.
    pub(crate) hops_failed: Counter,
    /// Affinity cookies not accepted, by reason.
    pub(crate) cookies_rejected: Family<ByReason, Counter>,
    /// What clients were refused before it was a request.
    pub(crate) refusals: Arc<Refusals>,
    /// Starts of an app's copy here.
    pub(crate) app_starts: Family<ByApp, Counter>,
    /// Seconds that a start took until the copy was ready.
    pub(crate) app_start_seconds: Family<ByApp, Histogram>,
    /// Starts that failed and copies that crashed.
    pub(crate) app_failures: Family<ByApp, Counter>,
    /// Responses of portable sessions released by this peer as owner.
    pub(crate) releases: Counter,
    /// Sessions that this peer took over.
    pub(crate) takeovers: Counter,
    /// Sessions that another peer took from this one.
    pub(crate) depositions: Counter,
    /// Sessions that could not be continued because too many holders are gone.
    pub(crate) sessions_lost: Counter,
    /// Sessions that go on from one copy without their majority.
    pub(crate) sessions_forked: Counter,
    /// Session requests that were refused, by reason.
    pub(crate) session_refusals: Family<ByReason, Counter>,
    /// Copies that were refused to their owners for want of memory.
    pub(crate) copies_refused: Counter,
    /// Sessions owned here.
    pub(crate) sessions_owned: Gauge,
    /// Sessions held here.
    pub(crate) sessions_held: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            head_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.0005, 2.0, 16))
            }),
            decisions: Family::default(),
            hops_sent: Family::default(),
            hops_received: Family::default(),
            hops_refused: Family::default(),
            hops_failed: Counter::default(),
            cookies_rejected: Family::default(),
            refusals: Arc::default(),
            app_starts: Family::default(),
            app_start_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.05, 2.0, 14))
            }),
            app_failures: Family::default(),
            releases: Counter::default(),
            takeovers: Counter::default(),
            depositions: Counter::default(),
            sessions_lost: Counter::default(),
            sessions_forked: Counter::default(),
            session_refusals: Family::default(),
            copies_refused: Counter::default(),
            sessions_owned: Gauge::default(),
            sessions_held: Gauge::default(),
        };
        let r = registry;
        r.register("requests", "Requests by app and way taken", metrics.requests.clone());
        r.register_with_unit(
            "request_head",
            "Time to the response's head",
            Unit::Seconds,
            metrics.head_seconds.clone(),
        );
        r.register(
            "decisions",
            "Decisions of where a request goes, by what was decided and why",
            metrics.decisions.clone(),
        );
        r.register("hops_sent", "Hops sent, by the peer they went to", metrics.hops_sent.clone());
        r.register(
            "hops_received",
            "Hops received, by the peer they came from",
            metrics.hops_received.clone(),
        );
        r.register(
            "hops_refused",
            "Hops refused by the receiving peer",
            metrics.hops_refused.clone(),
        );
        r.register("hops_failed", "Hops that failed on the way", metrics.hops_failed.clone());
        r.register(
            "cookies_rejected",
            "Affinity cookies not accepted",
            metrics.cookies_rejected.clone(),
        );
        r.register(
            "clients_refused",
            "Requests and connections of clients that were refused before an app was looked for",
            metrics.refusals.counts(),
        );
        r.register("app_starts", "Starts of an app's copy", metrics.app_starts.clone());
        r.register_with_unit(
            "app_start",
            "Time from a start's beginning until the copy was ready",
            Unit::Seconds,
            metrics.app_start_seconds.clone(),
        );
        r.register("app_failures", "Failed starts and crashes", metrics.app_failures.clone());
        r.register(
            "session_releases",
            "Responses released here as a session's owner",
            metrics.releases.clone(),
        );
        r.register("session_takeovers", "Sessions taken over", metrics.takeovers.clone());
        r.register(
            "session_depositions",
            "Sessions given up to another",
            metrics.depositions.clone(),
        );
        r.register(
            "sessions_lost",
            "Sessions whose holders are gone",
            metrics.sessions_lost.clone(),
        );
        r.register(
            "sessions_forked",
            "Sessions that go on without their majority",
            metrics.sessions_forked.clone(),
        );
        r.register(
            "session_refusals",
            "Session requests refused",
            metrics.session_refusals.clone(),
        );
        r.register(
            "session_copies_refused",
            "Copies refused to their owners for want of memory",
            metrics.copies_refused.clone(),
        );
        r.register("sessions_owned", "Sessions owned here", metrics.sessions_owned.clone());
        r.register("sessions_held", "Sessions held here", metrics.sessions_held.clone());
        metrics
    }

    /// Begins the series of an app and of what may go wrong with 0: the first that happens would be
    /// no increase otherwise.
    pub(crate) fn begin(&self, app: &AppName) {
        for way in ["serve", "hop", "page", "refuse"] {
            let _ = self.requests.get_or_create(&ByAppAndWay { app: app.to_string(), way });
        }
        let label = ByApp { app: app.to_string() };
        let _ = self.app_starts.get_or_create(&label);
        let _ = self.app_failures.get_or_create(&label);
        let _ = self.app_start_seconds.get_or_create(&label);
        for reason in HopRefusal::LABELS {
            let _ = self.hops_refused.get_or_create(&ByReason { reason });
        }
    }

    /// What became of an app's requests so far.
    pub(crate) fn request_counts(&self, app: &AppName) -> RequestCounts {
        let count = |way| {
            let label = ByAppAndWay { app: app.to_string(), way };
            self.requests.get(&label).map_or(0, |counter| counter.get())
        };
        RequestCounts {
            served: count("serve"),
            hopped: count("hop"),
            refused: count("refuse") + count("page"),
        }
    }

    /// Begins the series of hops to and from a peer with 0, as [`Metrics::begin`] does for an app.
    pub(crate) fn begin_peer(&self, peer: &PeerId) {
        let label = ByPeer { peer: peer.to_string() };
        let _ = self.hops_sent.get_or_create(&label);
        let _ = self.hops_received.get_or_create(&label);
    }

    /// Hops sent to a peer and received from it.
    pub(crate) fn hop_counts(&self, peer: &PeerId) -> (u64, u64) {
        let label = ByPeer { peer: peer.to_string() };
        let count = |family: &Family<ByPeer, Counter>| {
            family.get(&label).map_or(0, |counter| counter.get())
        };
        (count(&self.hops_sent), count(&self.hops_received))
    }

    /// Drops the series of a peer that is long gone: names come and go, and memory stays bounded.
    pub(crate) fn forget_peer(&self, peer: &PeerId) {
        let label = ByPeer { peer: peer.to_string() };
        self.hops_sent.remove(&label);
        self.hops_received.remove(&label);
    }
}

type TracesById = Mutex<LruCache<RequestId, RequestTrace>>;

/// The last requests that this peer saw, by id; apart from them, the last operations on registers.
pub(crate) struct Traces {
    requests: TracesById,
    registers: TracesById,
}

impl Traces {
    pub(crate) fn new() -> Self {
        let last = |count| {
            Mutex::new(LruCache::new(NonZeroUsize::new(count).expect("a positive constant")))
        };
        Self { requests: last(TRACES_MAX), registers: last(REGISTER_TRACES_MAX) }
    }

    pub(crate) fn keep(&self, id: RequestId, trace: RequestTrace) {
        let traces = if trace.role == REGISTER { &self.registers } else { &self.requests };
        traces.lock().unwrap_or_else(PoisonError::into_inner).put(id, trace);
    }

    /// The newest requests of clients and of other peers, newest first; at most `count`.
    pub(crate) fn recent(&self, count: usize) -> Vec<RequestTrace> {
        let traces = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        // What health checks and starting pages ask all the time would crowd out everything else.
        let shown =
            traces.iter().filter(|(_, trace)| !trace.request.contains(" /.well-known/warmhop/"));
        shown.take(count).map(|(_, trace)| trace.clone()).collect()
    }

    pub(crate) fn find(&self, id: &RequestId) -> Option<RequestTrace> {
        let found = |traces: &TracesById| {
            traces.lock().unwrap_or_else(PoisonError::into_inner).peek(id).cloned()
        };
        found(&self.requests).or_else(|| found(&self.registers))
    }
}

/// One request's trace while it is under way. Kept when it is dropped, so that a request whose
/// client left is found as well.
pub(crate) struct Tracing {
    pub(crate) id: RequestId,
    since: Instant,
    trace: Option<RequestTrace>,
    traces: Arc<Traces>,
}

/// The most steps kept for one request.
const STEPS_MAX: usize = 32;
/// The steps after which nothing follows, though there be no status.
const ENDS: [&str; 3] = ["refuse", "problem", "cancelled"];

impl Tracing {
    pub(crate) fn begin(
        traces: &Arc<Traces>,
        id: RequestId,
        peer: &PeerId,
        role: &'static str,
        request: String,
    ) -> Self {
        let at_unix_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
        let trace = RequestTrace {
            id: id.to_string(),
            peer: peer.to_string(),
            role: role.into(),
            app: None,
            request: beginning(request, TEXT_BYTES_MAX),
            at_unix_ms,
            status: None,
            served_by: None,
            sent_to: None,
            session: None,
            steps: Vec::new(),
            head_ms: None,
        };
        Self { id, since: Instant::now(), trace: Some(trace), traces: Arc::clone(traces) }
    }

    pub(crate) fn elapsed(&self) -> std::time::Duration {
        self.since.elapsed()
    }

    fn edit(&mut self, edit: impl FnOnce(&mut RequestTrace)) {
        if let Some(trace) = &mut self.trace {
            edit(trace);
        }
    }

    pub(crate) fn app(&mut self, app: &AppName) {
        self.edit(|trace| trace.app = Some(app.to_string()));
    }

    pub(crate) fn session(&mut self, key: String) {
        self.edit(|trace| trace.session = Some(key));
    }

    pub(crate) fn served_by(&mut self, peer: &str) {
        self.edit(|trace| trace.served_by = Some(peer.into()));
    }

    pub(crate) fn sent_to(&mut self, peer: &PeerId) {
        self.edit(|trace| trace.sent_to = Some(peer.to_string()));
    }

    pub(crate) fn step(&mut self, what: &str, why: impl Into<String>) {
        self.step_among(what, why, Vec::new());
    }

    pub(crate) fn step_among(
        &mut self,
        what: &str,
        why: impl Into<String>,
        candidates: Vec<TraceCandidate>,
    ) {
        let after_us = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let why = beginning(why.into(), TEXT_BYTES_MAX);
        tracing::debug!(request = %self.id, what, why, "decided");
        self.edit(|trace| {
            // Whoever waits considers the same again at every change that is none for it.
            if trace.steps.last().is_some_and(|last| last.what == what && last.why == why) {
                return;
            }
            // How it ended is what one asks for.
            trace.steps.truncate(STEPS_MAX - 1);
            trace.steps.push(TraceStep { after_us, what: what.into(), why, candidates });
        });
    }

    /// What was decided so far.
    pub(crate) fn steps(&self) -> &[TraceStep] {
        self.trace.as_ref().map_or(&[], |trace| &trace.steps)
    }

    pub(crate) fn head(&mut self, status: u16) {
        let head_ms = self.since.elapsed().as_secs_f64() * 1000.0;
        self.edit(|trace| {
            trace.status = Some(status);
            trace.head_ms = Some((head_ms * 1000.0).round() / 1000.0);
        });
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let ended = |trace: &RequestTrace| {
            // Operations on registers have no status; of a hop that is refused there is none either.
            trace.status.is_some()
                || trace.role == REGISTER
                || trace.steps.last().is_some_and(|step| ENDS.contains(&step.what.as_str()))
        };
        if self.trace.as_ref().is_some_and(|trace| !ended(trace)) {
            self.step("cancelled", "the client left");
        }
        if let Some(trace) = self.trace.take() {
            self.traces.keep(self.id.clone(), trace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(traces: &Arc<Traces>, id: &str, role: &'static str, line: String) -> RequestId {
        let id = RequestId::new(id).unwrap();
        let peer = PeerId::new("one").unwrap();
        drop(Tracing::begin(traces, id.clone(), &peer, role, line));
        id
    }

    #[test]
    fn operations_on_registers_push_out_no_request_and_each_other_only() {
        let traces = Arc::new(Traces::new());
        let request = trace(&traces, "request", "entry", "GET /".into());
        let first = trace(&traces, "first", REGISTER, "GET /".into());
        for number in 0..TRACES_MAX {
            trace(&traces, &format!("register-{number}"), REGISTER, "GET /".into());
        }
        assert!(traces.find(&request).is_some());
        assert!(traces.find(&first).is_none());
        assert!(traces.find(&RequestId::new("register-4095").unwrap()).is_some());
        let shown: Vec<String> = traces.recent(9).into_iter().map(|trace| trace.id).collect();
        assert_eq!(shown, ["request"]);
    }

    #[test]
    fn a_long_wait_is_told_from_its_first_decision_to_its_last() {
        let traces = Arc::new(Traces::new());
        let id = RequestId::new("long").unwrap();
        let peer = PeerId::new("one").unwrap();
        let mut tracing = Tracing::begin(&traces, id.clone(), &peer, "entry", "GET /".into());
        for _ in 0..2 * STEPS_MAX {
            tracing.step("wait", "ready nowhere");
        }
        assert_eq!(tracing.steps().len(), 1, "the same again is no step");
        for number in 0..2 * STEPS_MAX {
            tracing.step("wait", format!("ready nowhere, {number} wait"));
        }
        tracing.step("serve", "the app is ready here");
        tracing.head(200);
        drop(tracing);
        let steps = traces.find(&id).unwrap().steps;
        assert_eq!(steps.len(), STEPS_MAX);
        assert_eq!((&*steps[0].why, &*steps[STEPS_MAX - 1].what), ("ready nowhere", "serve"));
    }

    #[test]
    fn a_request_whose_client_left_says_so_and_no_other_does() {
        let traces = Arc::new(Traces::new());
        let peer = PeerId::new("one").unwrap();
        let last = |role, steps: &[&str], status: Option<u16>| {
            let id = RequestId::new(role).unwrap();
            let mut tracing = Tracing::begin(&traces, id.clone(), &peer, role, "GET /".into());
            for what in steps {
                tracing.step(what, "why");
            }
            if let Some(status) = status {
                tracing.head(status);
            }
            drop(tracing);
            traces.find(&id).unwrap().steps.last().map(|step| step.what.clone())
        };
        assert_eq!(last("entry", &["wait"], None).as_deref(), Some("cancelled"));
        assert_eq!(last("hop", &["arrived", "cancelled"], None).as_deref(), Some("cancelled"));
        assert_eq!(last("entry", &["serve"], Some(200)).as_deref(), Some("serve"));
        assert_eq!(last("hop", &["arrived", "refuse"], None).as_deref(), Some("refuse"));
        assert_eq!(last(REGISTER, &["serve"], None).as_deref(), Some("serve"));
    }

    #[test]
    fn of_what_a_client_sent_only_the_beginning_is_remembered() {
        let traces = Arc::new(Traces::new());
        let id = RequestId::new("long").unwrap();
        let peer = PeerId::new("one").unwrap();
        let mut tracing = Tracing::begin(&traces, id.clone(), &peer, "entry", "é".repeat(60_000));
        tracing.step("refuse", "x".repeat(60_000));
        drop(tracing);
        let kept = traces.find(&id).unwrap();
        for text in [&kept.request, &kept.steps[0].why] {
            assert!(text.len() <= TEXT_BYTES_MAX && text.ends_with('…'), "{}", text.len());
        }
        assert_eq!(beginning("short".into(), 5), "short");
    }
}
