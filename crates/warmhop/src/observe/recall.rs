//! The last requests that a peer saw, for `why`: what it knew and decided for each.
//!
//! They are kept as plain values in a ring, and become text when somebody asks. A request that
//! nobody asks about costs no allocation here: the record that drops out of the ring is reused for
//! the next request.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderValue, Method};
use warmhop_core::ids::{AppName, PeerId, RequestId, SessionKey};
use warmhop_core::route::Reason;
use warmhop_core::view::AppState;

use crate::observe::status::{RequestTrace, TraceCandidate, TraceStep};

/// How many requests `why` remembers.
const TRACES_MAX: usize = 4096;
/// How many operations on registers it remembers: a session library makes several with each
/// request, which would leave no room for the requests.
const REGISTER_TRACES_MAX: usize = 256;
/// The role of the trace of an operation on a register, at every peer that it passes.
pub(crate) const REGISTER: &str = "register";
/// The limit on a remembered request line, and on a remembered reason, in bytes: both may repeat
/// what a client sent.
pub(crate) const TEXT_BYTES_MAX: usize = 512;
/// The most steps kept for one request.
const STEPS_MAX: usize = 32;
/// The limit on a remembered host, in bytes.
const HOST_BYTES_MAX: usize = 256;
/// The step of an answer that broke off after its head.
pub(crate) const CUT_OFF: &str = "cut-off";
/// The steps that end a request even without a status.
const ENDS: [&str; 3] = ["refuse", "problem", "cancelled"];
/// The steps that send a request somewhere.
const WAYS: [&str; 4] = ["serve", "hop", "forward", "relay"];
/// How many records one thread keeps for its next requests.
const SPARE_MAX: usize = 64;

/// The beginning of `text`, of at most `bytes_max` bytes.
pub(crate) fn beginning(mut text: String, bytes_max: usize) -> String {
    cut(&mut text, bytes_max);
    text
}

fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let at = bytes_max.saturating_sub('…'.len_utf8());
        text.truncate((0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
        text.push('…');
        text.shrink_to_fit();
    }
}

/// The reason for a decision or an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    /// As text.
    Said(Cow<'static, str>),
    /// As the routing's reason.
    Decided(Reason),
    /// A peer sent the request here, for this purpose.
    SentBy(PeerId, &'static str),
    /// This peer owns its session.
    OwnedBy(PeerId),
}

impl From<&'static str> for Why {
    fn from(text: &'static str) -> Self {
        Self::Said(text.into())
    }
}

impl From<String> for Why {
    fn from(text: String) -> Self {
        Self::Said(beginning(text, TEXT_BYTES_MAX).into())
    }
}

impl From<Reason> for Why {
    fn from(reason: Reason) -> Self {
        Self::Decided(reason)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Said(text) => f.write_str(text),
            Self::Decided(reason) => reason.fmt(f),
            Self::SentBy(from, kind) => write!(f, "sent here by {from}: {kind}"),
            Self::OwnedBy(peer) => write!(f, "{peer} owns the session"),
        }
    }
}

/// A peer that was considered.
#[derive(Debug, Clone)]
pub(crate) struct Considered {
    pub(crate) peer: PeerId,
    pub(crate) state: AppState,
    pub(crate) in_flight: u32,
    pub(crate) age: Duration,
}

#[derive(Debug)]
struct Step {
    after_us: u64,
    what: &'static str,
    why: Why,
    candidates: Vec<Considered>,
}

impl Step {
    fn in_words(&self) -> TraceStep {
        let candidate = |it: &Considered| TraceCandidate {
            peer: it.peer.to_string(),
            state: it.state.as_str().into(),
            in_flight: it.in_flight,
            age_ms: u64::try_from(it.age.as_millis()).unwrap_or(u64::MAX),
        };
        TraceStep {
            after_us: self.after_us,
            what: self.what.into(),
            why: beginning(self.why.to_string(), TEXT_BYTES_MAX),
            candidates: self.candidates.iter().map(candidate).collect(),
        }
    }
}

/// Writes the line of a request for `path`.
pub(crate) fn put_line(method: &Method, path: &str) -> impl FnOnce(&mut String) {
    move |line| [method.as_str(), " ", path].into_iter().for_each(|part| line.push_str(part))
}

/// The record of one request.
#[derive(Debug, Default)]
struct Record {
    id: Option<RequestId>,
    peer: Option<PeerId>,
    role: &'static str,
    app: Option<AppName>,
    line: String,
    /// The host that the client asked for; empty if it is not known.
    host: String,
    at: Option<Instant>,
    at_unix_ms: u64,
    status: Option<u16>,
    served_by: Option<PeerId>,
    sent_to: Option<PeerId>,
    session: Option<SessionKey>,
    steps: Vec<Step>,
    head_us: Option<u64>,
}

thread_local! {
    /// Boxed, as they are in the ring.
    #[expect(clippy::vec_box, reason = "they go to the ring and come back as they are")]
    static SPARE: RefCell<Vec<Box<Record>>> = const { RefCell::new(Vec::new()) };
}

impl Record {
    /// An empty record, which may reuse the memory of an earlier one.
    fn fresh() -> Box<Self> {
        SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    /// Keeps it for the thread's next request.
    fn give_back(mut self: Box<Self>) {
        let (mut line, mut host, mut steps) = (
            std::mem::take(&mut self.line),
            std::mem::take(&mut self.host),
            std::mem::take(&mut self.steps),
        );
        line.clear();
        host.clear();
        steps.clear();
        *self = Self { line, host, steps, ..Self::default() };
        // While the thread exits there is nowhere to keep it.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_MAX {
                spare.push(self);
            }
        });
    }

    fn push(&mut self, after: Duration, what: &'static str, why: Why, candidates: Vec<Considered>) {
        let after_us = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        // The last step is the one that people ask for.
        self.steps.truncate(STEPS_MAX - 1);
        self.steps.push(Step { after_us, what, why, candidates });
    }

    fn in_words(&self) -> RequestTrace {
        let text = |name: &PeerId| name.to_string();
        RequestTrace {
            id: self.id.as_ref().map(ToString::to_string).unwrap_or_default(),
            peer: self.peer.as_ref().map(text).unwrap_or_default(),
            role: self.role.into(),
            app: self.app.as_ref().map(ToString::to_string),
            host: (!self.host.is_empty()).then(|| self.host.clone()),
            request: self.line.clone(),
            at_unix_ms: self.at_unix_ms,
            status: self.status,
            served_by: self.served_by.as_ref().map(text),
            sent_to: self.sent_to.as_ref().map(text),
            session: self.session.as_ref().map(ToString::to_string),
            steps: self.steps.iter().map(Step::in_words).collect(),
            head_ms: self.head_us.map(|us| us as f64 / 1000.0),
        }
    }
}

/// Records, the newest at the end.
#[derive(Debug)]
struct Ring {
    records: Mutex<VecDeque<Box<Record>>>,
    max: usize,
}

impl Ring {
    fn new(max: usize) -> Self {
        Self { records: Mutex::default(), max }
    }

    fn records(&self) -> std::sync::MutexGuard<'_, VecDeque<Box<Record>>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, record: Box<Record>) {
        let oldest = {
            let mut records = self.records();
            let oldest = if records.len() < self.max { None } else { records.pop_front() };
            records.push_back(record);
            oldest
        };
        if let Some(oldest) = oldest {
            oldest.give_back();
        }
    }

    fn find(&self, id: &RequestId) -> Option<RequestTrace> {
        let records = self.records();
        records.iter().rev().find(|it| it.id.as_ref() == Some(id)).map(|it| it.in_words())
    }
}

/// The last requests that this peer saw and, apart from them, the last operations on registers.
#[derive(Debug)]
pub(crate) struct Traces {
    requests: Ring,
    registers: Ring,
}

impl Default for Traces {
    fn default() -> Self {
        Self { requests: Ring::new(TRACES_MAX), registers: Ring::new(REGISTER_TRACES_MAX) }
    }
}

impl Traces {
    /// Notes that the answer to a request broke off, whose trace ended with the answer's head.
    pub(crate) fn cut_off(&self, id: &RequestId, why: impl Into<Why>) {
        let why = why.into();
        let mut records = self.requests.records();
        if let Some(record) = records.iter_mut().rev().find(|it| it.id.as_ref() == Some(id)) {
            let after = record.at.map_or(Duration::ZERO, |at| at.elapsed());
            record.push(after, CUT_OFF, why, Vec::new());
        }
    }

    /// The newest requests of clients and of other peers, newest first; at most `count`. Of
    /// requests with the same id it returns the newest alone.
    pub(crate) fn recent(&self, count: usize) -> Vec<RequestTrace> {
        let records = self.requests.records();
        let mut seen = std::collections::HashSet::new();
        // Health checks and starting pages ask all the time, and would crowd out everything else.
        let shown = records.iter().rev().filter(|it| !it.line.contains(" /.well-known/warmhop/"));
        shown.filter(|it| seen.insert(&it.id)).take(count).map(|it| it.in_words()).collect()
    }

    pub(crate) fn find(&self, id: &RequestId) -> Option<RequestTrace> {
        self.requests.find(id).or_else(|| self.registers.find(id))
    }
}

/// An id as the bytes of a field's value, which need no copy of it.
struct Text(RequestId);

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        self.0.as_str().as_bytes()
    }
}

/// The trace of a request under way. It is kept when this is dropped, so that a request whose
/// client left is found as well.
pub(crate) struct Tracing {
    pub(crate) id: RequestId,
    since: Instant,
    record: Option<Box<Record>>,
    traces: Arc<Traces>,
    /// The id as a field's value.
    field: Option<HeaderValue>,
}

impl Tracing {
    pub(crate) fn begin(
        traces: &Arc<Traces>,
        id: RequestId,
        peer: &PeerId,
        role: &'static str,
        line: impl FnOnce(&mut String),
    ) -> Self {
        let mut record = Record::fresh();
        record.id = Some(id.clone());
        record.peer = Some(peer.clone());
        record.role = role;
        line(&mut record.line);
        cut(&mut record.line, TEXT_BYTES_MAX);
        record.at_unix_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
        let (since, traces) = (Instant::now(), Arc::clone(traces));
        record.at = Some(since);
        Self { id, since, record: Some(record), traces, field: None }
    }

    /// The request's id as the value of a field.
    pub(crate) fn id_field(&mut self) -> HeaderValue {
        let field = self.field.get_or_insert_with(|| {
            let shared = Bytes::from_owner(Text(self.id.clone()));
            HeaderValue::from_maybe_shared(shared).expect("an id is made of visible characters")
        });
        field.clone()
    }

    fn edit(&mut self, edit: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            edit(record);
        }
    }

    pub(crate) fn app(&mut self, app: &AppName) {
        self.edit(|record| record.app = Some(app.clone()));
    }

    pub(crate) fn host(&mut self, host: &str) {
        self.edit(|record| {
            record.host.push_str(host);
            cut(&mut record.host, HOST_BYTES_MAX);
        });
    }

    pub(crate) fn session(&mut self, key: &SessionKey) {
        self.edit(|record| record.session = Some(key.clone()));
    }

    pub(crate) fn served_by(&mut self, peer: &PeerId) {
        self.edit(|record| record.served_by = Some(peer.clone()));
    }

    pub(crate) fn sent_to(&mut self, peer: &PeerId) {
        self.edit(|record| record.sent_to = Some(peer.clone()));
    }

    pub(crate) fn step(&mut self, what: &'static str, why: impl Into<Why>) {
        self.step_among(what, why, Vec::new());
    }

    pub(crate) fn step_among(
        &mut self,
        what: &'static str,
        why: impl Into<Why>,
        candidates: Vec<Considered>,
    ) {
        let after = self.since.elapsed();
        let why = why.into();
        tracing::debug!(request = %self.id, what, %why, "decided");
        self.edit(|record| {
            // A request that waits considers the same peers again at every change that does not
            // concern it.
            if record.steps.last().is_some_and(|last| last.what == what && last.why == why) {
                return;
            }
            record.push(after, what, why, candidates);
        });
    }

    /// The decisions so far, as text.
    pub(crate) fn steps(&self) -> Vec<TraceStep> {
        let steps = self.record.iter().flat_map(|record| &record.steps);
        steps.map(Step::in_words).collect()
    }

    /// The app that the request is for, if it is known.
    pub(crate) fn named_app(&self) -> Option<String> {
        self.record.as_ref()?.app.as_ref().map(ToString::to_string)
    }

    /// The peer that ran the request, if there is one.
    pub(crate) fn named_peer(&self) -> Option<String> {
        self.record.as_ref()?.served_by.as_ref().map(ToString::to_string)
    }

    /// The same, as its name.
    pub(crate) fn ran_at(&self) -> Option<PeerId> {
        self.record.as_ref()?.served_by.clone()
    }

    /// Where a request is that has no answer yet: the way that it was sent last, and the peer that it
    /// was sent to.
    pub(crate) fn under_way(&self) -> Option<(&'static str, String)> {
        let record = self.record.as_ref()?;
        let mut steps = record.steps.iter().rev().map(|step| step.what);
        let what = steps.find(|what| WAYS.contains(what) || *what == "wait")?;
        let (way, peer) = match what {
            "wait" => return None,
            "serve" => ("serve", record.peer.as_ref()),
            _ => ("hop", record.sent_to.as_ref()),
        };
        Some((way, peer?.to_string()))
    }

    /// The reason of the last decision.
    pub(crate) fn last_reason(&self) -> String {
        let last = self.record.as_ref().and_then(|record| record.steps.last());
        last.map(|step| beginning(step.why.to_string(), TEXT_BYTES_MAX)).unwrap_or_default()
    }

    /// Notes that the answer's head is sent now, and returns how long that has taken.
    pub(crate) fn head(&mut self, status: u16) -> Duration {
        let elapsed = self.since.elapsed();
        let head_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.edit(|record| {
            record.status = Some(status);
            record.head_us = Some(head_us);
        });
        elapsed
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let ended = |record: &Record| {
            // Operations on registers have no status, and neither has a refused hop.
            record.status.is_some()
                || record.role == REGISTER
                || record.steps.last().is_some_and(|step| ENDS.contains(&step.what))
        };
        if self.record.as_ref().is_some_and(|record| !ended(record)) {
            self.step("cancelled", "the client left");
        }
        if let Some(record) = self.record.take() {
            let is_register = record.role == REGISTER;
            let ring = if is_register { &self.traces.registers } else { &self.traces.requests };
            ring.keep(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(traces: &Arc<Traces>, id: &str, role: &'static str) -> RequestId {
        let id = RequestId::new(id).unwrap();
        let peer = PeerId::new("one").unwrap();
        drop(Tracing::begin(traces, id.clone(), &peer, role, |line| line.push_str("GET /")));
        id
    }

    #[test]
    fn an_answer_that_breaks_off_is_remembered_after_its_trace_has_ended() {
        let traces = Arc::new(Traces::default());
        let ids = ["a", "b", "c"].map(|id| trace(&traces, id, "entry"));
        traces.cut_off(&ids[1], "the answer broke off");
        let steps = |id| traces.find(id).unwrap().steps.into_iter().map(|step| step.what);
        assert_eq!(steps(&ids[1]).next_back().as_deref(), Some(CUT_OFF));
        for other in [&ids[0], &ids[2]] {
            assert!(!steps(other).any(|what| what == CUT_OFF));
        }
    }

    #[test]
    fn operations_on_registers_push_out_no_request_and_each_other_only() {
        let traces = Arc::new(Traces::default());
        let request = trace(&traces, "request", "entry");
        let first = trace(&traces, "first", REGISTER);
        for number in 0..TRACES_MAX {
            trace(&traces, &format!("register-{number}"), REGISTER);
        }
        assert!(traces.find(&request).is_some());
        assert!(traces.find(&first).is_none());
        assert!(traces.find(&RequestId::new("register-4095").unwrap()).is_some());
        let shown: Vec<String> = traces.recent(9).into_iter().map(|trace| trace.id).collect();
        assert_eq!(shown, ["request"]);
    }

    #[test]
    fn a_long_wait_is_recorded_from_its_first_decision_to_its_last() {
        let traces = Arc::new(Traces::default());
        let id = RequestId::new("long").unwrap();
        let peer = PeerId::new("one").unwrap();
        let mut tracing =
            Tracing::begin(&traces, id.clone(), &peer, "entry", |line| line.push_str("GET /"));
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
        let traces = Arc::new(Traces::default());
        let peer = PeerId::new("one").unwrap();
        let last = |role, steps: &[&'static str], status: Option<u16>| {
            let id = RequestId::new(role).unwrap();
            let mut tracing =
                Tracing::begin(&traces, id.clone(), &peer, role, |line| line.push_str("GET /"));
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
        let traces = Arc::new(Traces::default());
        let id = RequestId::new("long").unwrap();
        let peer = PeerId::new("one").unwrap();
        let mut tracing =
            Tracing::begin(&traces, id.clone(), &peer, "entry", |line| *line = "é".repeat(60_000));
        tracing.step("refuse", "x".repeat(60_000));
        drop(tracing);
        let kept = traces.find(&id).unwrap();
        for text in [&kept.request, &kept.steps[0].why] {
            assert!(text.len() <= TEXT_BYTES_MAX && text.ends_with('…'), "{}", text.len());
        }
        assert_eq!(beginning("short".into(), 5), "short");
    }
}
