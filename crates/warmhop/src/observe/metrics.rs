//! What a peer counts about its own work: Prometheus metrics. They belong to one peer, not to the
//! process, so that several peers in one process do not mix.
//!
//! Counters of every request are looked up once for each app ([`AppCounts`]): a lookup takes a
//! lock, and a string for each label.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use warmhop_core::affinity::Reject;
use warmhop_core::ids::{AppName, PeerId};
use warmhop_core::session::Failure;

#[cfg(feature = "admin")]
use crate::http::refusals::admin::AdminRefusal;
use crate::http::refusals::{ByReason, Refusals};
use crate::observe::doors::Doors;
use crate::observe::durations::{Buckets, Durations};
use crate::observe::history::Totals;
pub(crate) use crate::observe::labels::ByApp;
use crate::observe::lines::Lines;
use crate::observe::status::RequestCounts;
use crate::observe::traffic::{AppTraffic, Traffic};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByAppAndWay {
    pub(crate) app: String,
    pub(crate) way: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByAnswer {
    pub(crate) app: String,
    pub(crate) way: &'static str,
    pub(crate) code: &'static str,
}

/// The reason for a refused change of a session if there is no memory for it.
pub(crate) const MEMORY_FULL: &str = "memory-full";
/// What a carried session was too large for: to be set, or for the app's server to take.
pub(crate) const TOO_LARGE: [&str; 2] = ["set", "field"];

/// The classes of status codes, in their order.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The index of a status code's class in [`CLASSES`]. There are no other classes: a code has three
/// digits, and an app's answer with another first digit counts as a failure of the app.
fn class_of(status: StatusCode) -> usize {
    usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByDecision {
    pub(crate) app: String,
    pub(crate) decision: &'static str,
    pub(crate) reason: &'static str,
}

/// The label is looked up with each hop, so its text is shared and not copied.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub(crate) struct ByPeer {
    pub(crate) peer: PeerId,
}

impl EncodeLabelSet for ByPeer {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        [("peer", self.peer.as_str())].encode(encoder)
    }
}

/// The counters of one peer.
pub(crate) struct Metrics {
    /// Requests by app, by the way they took (`serve`, `hop`, `page` for the starting page,
    /// `refuse`, `server`) and by the class of their response's status.
    pub(crate) requests: Family<ByAnswer, Counter>,
    /// Seconds until a response's head, by app and way.
    pub(crate) head_seconds: Family<ByAppAndWay, Durations>,
    /// Decisions of where a request goes, by what was decided and why. A request that waits is
    /// counted when it begins to wait, and again when it ends.
    pub(crate) decisions: Family<ByDecision, Counter>,
    /// Hops sent, by the peer that they went to.
    pub(crate) hops_sent: Family<ByPeer, Counter>,
    /// Hops received, by the peer that they came from.
    pub(crate) hops_received: Family<ByPeer, Counter>,
    /// Hops that the receiving peer refused, by its reason.
    pub(crate) hops_refused: Family<ByReason, Counter>,
    /// Hops that failed on the way.
    pub(crate) hops_failed: Counter,
    /// Affinity cookies that were not accepted, by reason.
    pub(crate) cookies_rejected: Family<ByReason, Counter>,
    /// The bodies of requests and of their answers.
    pub(crate) traffic: Traffic,
    /// Refusals of clients that sent no complete request.
    pub(crate) refusals: Arc<Refusals>,
    /// Refusals at the admin listener.
    #[cfg(feature = "admin")]
    pub(crate) admin_refusals: Arc<Refusals<AdminRefusal>>,
    /// Connections of the doors, and handshakes that failed there.
    pub(crate) doors: Doors,
    /// Bounds the lines of hops that were refused here.
    pub(crate) refused_hops: Lines,
    /// Bytes that clients make this peer hold.
    pub(crate) client_bytes: Gauge,
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
    /// Copies that this peer refused to their owners for lack of memory.
    pub(crate) copies_refused: Counter,
    /// Carried sessions that were too large to be set, or for the app's server.
    pub(crate) session_too_large: Family<ByReason, Counter>,
    pub(crate) session_malformed: Counter,
    /// Sessions owned here.
    pub(crate) sessions_owned: Gauge,
    /// Sessions held here.
    pub(crate) sessions_held: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::new(Doors::register(registry), Traffic::register(registry));
        metrics.register_requests(registry);
        metrics.register_apps(registry);
        metrics.register_sessions(registry);
        metrics.begin_reasons();
        metrics
    }

    /// Begins the series of all reasons at 0: otherwise the first event would be no increase.
    fn begin_reasons(&self) {
        let of_sessions = Failure::PROBLEMS.map(|problem| problem.name());
        let families: [(_, &[&'static str]); 4] = [
            (&self.cookies_rejected, &Reject::ALL.map(Reject::label)),
            (&self.session_refusals, &of_sessions),
            (&self.session_refusals, &[MEMORY_FULL]),
            (&self.session_too_large, &TOO_LARGE),
        ];
        for (family, reasons) in families {
            for &reason in reasons {
                let _ = family.get_or_create(&ByReason { reason });
            }
        }
    }

    fn new(doors: Doors, traffic: Traffic) -> Self {
        Self {
            requests: Family::default(),
            head_seconds: Family::default(),
            decisions: Family::default(),
            hops_sent: Family::default(),
            hops_received: Family::default(),
            hops_refused: Family::default(),
            hops_failed: Counter::default(),
            cookies_rejected: Family::default(),
            traffic,
            refusals: Arc::default(),
            #[cfg(feature = "admin")]
            admin_refusals: Arc::default(),
            doors,
            refused_hops: Lines::default(),
            client_bytes: Gauge::default(),
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
            session_too_large: Family::default(),
            session_malformed: Counter::default(),
            sessions_owned: Gauge::default(),
            sessions_held: Gauge::default(),
        }
    }

    fn register_requests(&self, r: &mut Registry) {
        r.register(
            "requests",
            "Requests by app, way taken and class of the status code",
            self.requests.clone(),
        );
        r.register_with_unit(
            "request_head",
            "Time to the response's head",
            Unit::Seconds,
            self.head_seconds.clone(),
        );
        r.register(
            "decisions",
            "Decisions of where a request goes, by what was decided and why",
            self.decisions.clone(),
        );
        r.register("hops_sent", "Hops sent, by the peer they went to", self.hops_sent.clone());
        r.register(
            "hops_received",
            "Hops received, by the peer they came from",
            self.hops_received.clone(),
        );
        r.register("hops_refused", "Hops refused by the receiving peer", self.hops_refused.clone());
        r.register("hops_failed", "Hops that failed on the way", self.hops_failed.clone());
        r.register(
            "cookies_rejected",
            "Affinity cookies not accepted",
            self.cookies_rejected.clone(),
        );
        r.register(
            "clients_refused",
            "Requests and connections of clients that were refused before an app was looked for",
            self.refusals.counts(),
        );
        #[cfg(feature = "admin")]
        r.register(
            "admin_refused",
            "Requests and connections that were refused at the admin listener",
            self.admin_refusals.counts(),
        );
        r.register_with_unit(
            "clients_held",
            "What clients make this peer hold, of the memory that they may use",
            Unit::Bytes,
            self.client_bytes.clone(),
        );
    }

    fn register_apps(&self, r: &mut Registry) {
        r.register("app_starts", "Starts of an app's copy", self.app_starts.clone());
        r.register_with_unit(
            "app_start",
            "Time from a start's beginning until the copy was ready",
            Unit::Seconds,
            self.app_start_seconds.clone(),
        );
        r.register("app_failures", "Failed starts and crashes", self.app_failures.clone());
    }

    fn register_sessions(&self, r: &mut Registry) {
        r.register(
            "session_releases",
            "Responses released here as a session's owner",
            self.releases.clone(),
        );
        r.register("session_takeovers", "Sessions taken over", self.takeovers.clone());
        r.register("session_depositions", "Sessions given up to another", self.depositions.clone());
        r.register("sessions_lost", "Sessions whose holders are gone", self.sessions_lost.clone());
        r.register(
            "sessions_forked",
            "Sessions that go on without their majority",
            self.sessions_forked.clone(),
        );
        r.register("session_refusals", "Session requests refused", self.session_refusals.clone());
        r.register(
            "session_copies_refused",
            "Copies refused to their owners for want of memory",
            self.copies_refused.clone(),
        );
        r.register(
            "session_too_large",
            "Carried sessions too large to be set, or for the app's server to take",
            self.session_too_large.clone(),
        );
        r.register(
            "session_malformed",
            "Answers of apps with a malformed Warmhop-Session field",
            self.session_malformed.clone(),
        );
        r.register("sessions_owned", "Sessions owned here", self.sessions_owned.clone());
        r.register("sessions_held", "Sessions held here", self.sessions_held.clone());
    }

    /// Begins an app's series, and those of its possible refusals, at 0: otherwise the first event
    /// would be no increase.
    pub(crate) fn begin(&self, app: &AppName, refusals: &[&'static str]) {
        let answers: [(_, &[usize]); 4] =
            [("serve", &[1, 2, 3, 4]), ("hop", &[1, 2, 3, 4]), ("page", &[4]), ("refuse", &[3, 4])];
        for (way, classes) in answers {
            for class in classes {
                let _ = self.counter(app.as_str(), way, *class);
            }
        }
        let label = ByApp { app: app.to_string() };
        let _ = self.app_starts.get_or_create(&label);
        let _ = self.app_failures.get_or_create(&label);
        let _ = self.app_start_seconds.get_or_create(&label);
        let _ = self.traffic.of(app);
        for &reason in refusals {
            let _ = self.hops_refused.get_or_create(&ByReason { reason });
        }
    }

    fn counter(&self, app: &str, way: &'static str, class: usize) -> Counter {
        let label = ByAnswer { app: app.to_owned(), way, code: CLASSES[class] };
        self.requests.get_or_create(&label).clone()
    }

    fn durations(&self, app: &str, way: &'static str) -> Durations {
        self.head_seconds.get_or_create(&ByAppAndWay { app: app.to_owned(), way }).clone()
    }

    /// Counts an answer; `app` is `-` if it came from no app.
    pub(crate) fn answered(
        &self,
        app: &str,
        way: &'static str,
        status: StatusCode,
        took: Duration,
    ) {
        self.counter(app, way, class_of(status)).inc();
        self.durations(app, way).observe(took);
    }

    /// The outcomes of an app's requests so far.
    pub(crate) fn request_counts(&self, app: &AppName) -> RequestCounts {
        let of_class = |way, code| {
            let label = ByAnswer { app: app.to_string(), way, code };
            self.requests.get(&label).map_or(0, |counter| counter.get())
        };
        let count = |way| CLASSES.iter().map(|code| of_class(way, code)).sum::<u64>();
        // The starting page is not a failure, though its status says that the app cannot serve yet.
        let by_status: u64 =
            ["serve", "hop", "refuse"].map(|way| of_class(way, "5xx")).iter().sum();
        let failed = by_status + self.traffic.cut_offs.of(app);
        RequestCounts {
            served: count("serve"),
            hopped: count("hop"),
            refused: count("refuse") + count("page"),
            failed,
        }
    }

    /// The counts that an app's history is made of.
    pub(crate) fn totals(&self, app: &AppName) -> Totals {
        let counts = self.request_counts(app);
        let mut heads = Buckets::default();
        for way in ["serve", "hop"] {
            let label = ByAppAndWay { app: app.to_string(), way };
            let of_way = self.head_seconds.get(&label).map(|seconds| seconds.buckets());
            for (all, one) in heads.iter_mut().zip(of_way.into_iter().flatten()) {
                *all += one;
            }
        }
        let requests = counts.served + counts.hopped + counts.refused;
        Totals { requests, failed: counts.failed, heads }
    }

    /// Begins the series of hops to and from a peer at 0, as [`Metrics::begin`] does for an app.
    pub(crate) fn begin_peer(&self, peer: &PeerId) {
        let label = ByPeer { peer: peer.clone() };
        let _ = self.hops_sent.get_or_create(&label);
        let _ = self.hops_received.get_or_create(&label);
    }

    /// Hops sent to a peer and received from it.
    pub(crate) fn hop_counts(&self, peer: &PeerId) -> (u64, u64) {
        let label = ByPeer { peer: peer.clone() };
        let count = |family: &Family<ByPeer, Counter>| {
            family.get(&label).map_or(0, |counter| counter.get())
        };
        (count(&self.hops_sent), count(&self.hops_received))
    }

    /// Drops the series of a peer that is long gone: names come and go, and memory has to stay
    /// bounded.
    pub(crate) fn forget_peer(&self, peer: &PeerId) {
        let label = ByPeer { peer: peer.clone() };
        self.hops_sent.remove(&label);
        self.hops_received.remove(&label);
    }
}

/// The limit on different decisions whose counters are kept; there are fewer.
const DECISIONS_MAX: usize = 32;

/// The decision, its reason, and their counter.
type DecisionCount = (&'static str, &'static str, Counter);

/// The series of one app and one way.
#[derive(Default)]
struct WayCounts {
    by_class: [OnceLock<Counter>; CLASSES.len()],
    seconds: OnceLock<Durations>,
}

/// The series of one app that are counted with every request.
#[derive(Default)]
pub(crate) struct AppCounts {
    served: WayCounts,
    hopped: WayCounts,
    decisions: Box<[OnceLock<DecisionCount>; DECISIONS_MAX]>,
    traffic: OnceLock<Arc<AppTraffic>>,
}

impl AppCounts {
    /// What is counted of the bodies of `app`.
    pub(crate) fn traffic(&self, metrics: &Metrics, app: &AppName) -> &Arc<AppTraffic> {
        self.traffic.get_or_init(|| metrics.traffic.of(app))
    }

    /// Counts an answer of `app` that went `way` and had its head after `took`.
    pub(crate) fn answered(
        &self,
        metrics: &Metrics,
        app: &AppName,
        way: &'static str,
        status: StatusCode,
        took: Duration,
    ) {
        let known = match way {
            "serve" => &self.served,
            "hop" => &self.hopped,
            _ => return metrics.answered(app.as_str(), way, status, took),
        };
        let class = class_of(status);
        known.by_class[class].get_or_init(|| metrics.counter(app.as_str(), way, class)).inc();
        let seconds = known.seconds.get_or_init(|| metrics.durations(app.as_str(), way));
        seconds.observe(took);
    }

    /// Counts a decision for a request of `app`.
    pub(crate) fn decided(
        &self,
        metrics: &Metrics,
        app: &AppName,
        decision: &'static str,
        reason: &'static str,
    ) {
        let look_up = || {
            let label = ByDecision { app: app.to_string(), decision, reason };
            metrics.decisions.get_or_create(&label).clone()
        };
        for known in self.decisions.iter() {
            // Of two threads that get here at once, the second takes the next slot.
            let (is, because, count) = known.get_or_init(|| (decision, reason, look_up()));
            if *is == decision && *because == reason {
                count.inc();
                return;
            }
        }
        look_up().inc();
    }
}
