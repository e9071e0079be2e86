//! Spans of distributed traces (W3C Trace Context), for a collector.
//!
//! A request's trace goes through the client, its entry peer, the hop and the app: each peer
//! continues the `traceparent` that it received with spans of its own, and the app gets the last
//! one as its parent. Spans are handed to a [`SpanSink`], set with [`Builder::spans`]. Without a
//! sink, and for requests that their sender did not sample, `traceparent` and `tracestate` pass
//! unchanged at no cost. If the sink does not sample a request, it is forwarded as not sampled.
//!
//! Attributes are named by OpenTelemetry's semantic conventions for HTTP; attributes without a name
//! there begin with `warmhop.`.
//!
//! [`Builder::spans`]: crate::Builder::spans

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, Response};

use crate::http::body::Body;
use crate::http::body::followed::Follow;
use crate::observe::recall::{TEXT_BYTES_MAX, beginning};
use crate::observe::status::TraceStep;

/// The field that names a trace and the span that a request comes from (W3C Trace Context,
/// section 3.2).
pub(crate) const TRACEPARENT: &str = "traceparent";
/// Vendors' additions to it (section 3.3).
const TRACESTATE: &str = "tracestate";
/// The trace flag of a sampled request (section 3.2.2.5.1).
const SAMPLED: u8 = 1;
/// The flag of a trace whose id is random in its last 56 bits (Level 2, section 3.2.2.3.2): it is
/// kept as long as the id is. Flags without a meaning yet are not passed on (section 3.2.2.3.3).
const RANDOM: u8 = 2;

/// Takes finished spans.
pub trait SpanSink: Send + Sync + 'static {
    /// Whether a request is to be traced. `parent` is its sender's decision, if it comes with a
    /// `traceparent`. Default: as its sender decided, and always if nobody has.
    fn samples(&self, trace_id: &[u8; 16], parent: Option<bool>) -> bool {
        let _ = trace_id;
        parent.unwrap_or(true)
    }

    /// Takes a span. It is called while requests are served, and must not block.
    fn record(&self, span: Span);

    /// How many spans it has lost so far, for the metric `warmhop_spans_dropped_total`. Default:
    /// none.
    fn dropped(&self) -> u64 {
        0
    }
}

/// One finished step of a request.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Span {
    /// Its trace.
    pub trace_id: [u8; 16],
    /// Its own id.
    pub span_id: [u8; 8],
    /// The span that it is part of; absent if the trace began here.
    pub parent_span_id: Option<[u8; 8]>,
    /// The value of `tracestate`.
    pub trace_state: String,
    /// Which side of an exchange it describes.
    pub kind: SpanKind,
    /// A name of low cardinality: no paths, no ids.
    pub name: String,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// Its attributes.
    pub attributes: Vec<(&'static str, AttributeValue)>,
    /// The events within it.
    pub events: Vec<SpanEvent>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// Which side of an exchange a span describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpanKind {
    /// The side that was asked.
    Server,
    /// The side that asked.
    Client,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttributeValue {
    /// Text.
    Text(String),
    /// A whole number.
    Integer(i64),
}

/// A moment within a span.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpanEvent {
    /// When.
    pub at: SystemTime,
    /// What.
    pub name: String,
    /// Why, in a sentence.
    pub why: String,
}

impl Span {
    /// A span of no trace that begins and ends now. It also serves tests of a [`SpanSink`].
    #[must_use]
    pub fn new(kind: SpanKind, name: impl Into<String>) -> Self {
        let now = SystemTime::now();
        Self {
            trace_id: [0; 16],
            span_id: [0; 8],
            parent_span_id: None,
            trace_state: String::new(),
            kind,
            name: name.into(),
            start: now,
            end: now,
            attributes: Vec::new(),
            events: Vec::new(),
            error: None,
        }
    }
}

impl From<&str> for AttributeValue {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for AttributeValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u16> for AttributeValue {
    fn from(number: u16) -> Self {
        Self::Integer(number.into())
    }
}

/// Begins spans, if there is a sink.
#[derive(Clone, Default)]
pub(crate) struct Spans(Option<Arc<dyn SpanSink>>);

impl Spans {
    pub(crate) fn new(sink: Arc<dyn SpanSink>) -> Self {
        Self(Some(sink))
    }

    /// How many spans were lost, if there is a sink.
    pub(crate) fn dropped(&self) -> Option<u64> {
        Some(self.0.as_ref()?.dropped())
    }

    /// The span of a request that a client sent here. From now on `headers` name it as the parent.
    pub(crate) fn arrives(
        &self,
        headers: &mut HeaderMap,
        name: impl FnOnce() -> String,
    ) -> Option<ActiveSpan> {
        let sink = self.0.as_ref()?;
        let parent = Parent::of(headers);
        let trace_id = parent.map_or_else(rand::random, |parent| parent.trace_id);
        if !sink.samples(&trace_id, parent.map(Parent::is_sampled)) {
            // Nobody downstream should record it either. A party that changes a flag names itself
            // as the parent (section 3.3.1).
            if let Some(parent) = parent.filter(|parent| parent.is_sampled()) {
                let flags = parent.flags & RANDOM;
                let itself = Parent { trace_id, span_id: rand::random(), flags };
                headers.insert(TRACEPARENT, itself.to_field());
            }
            return None;
        }
        if parent.is_none() {
            // Without a valid parent, the vendors' additions mean nothing (section 4.3).
            headers.remove(TRACESTATE);
        }
        Some(self.begin(sink, headers, (trace_id, parent), SpanKind::Server, name()))
    }

    /// Whether a request with `headers` is traced.
    pub(crate) fn is_traced(&self, headers: &HeaderMap) -> bool {
        self.0.is_some() && Parent::of(headers).is_some_and(Parent::is_sampled)
    }

    /// A span within the one that `headers` name as the parent; from then on they name this one. A
    /// request that is not sampled gets none.
    pub(crate) fn within(
        &self,
        headers: &mut HeaderMap,
        kind: SpanKind,
        name: impl FnOnce() -> String,
    ) -> Option<ActiveSpan> {
        let sink = self.0.as_ref()?;
        let parent = Parent::of(headers).filter(|parent| parent.is_sampled())?;
        Some(self.begin(sink, headers, (parent.trace_id, Some(parent)), kind, name()))
    }

    fn begin(
        &self,
        sink: &Arc<dyn SpanSink>,
        headers: &mut HeaderMap,
        (trace_id, parent): ([u8; 16], Option<Parent>),
        kind: SpanKind,
        name: String,
    ) -> ActiveSpan {
        let trace_state = headers.get(TRACESTATE).and_then(|value| value.to_str().ok());
        let now = SystemTime::now();
        let span = Span {
            trace_id,
            span_id: rand::random(),
            parent_span_id: parent.map(|parent| parent.span_id),
            // A truncated entry would mean nothing.
            trace_state: trace_state.filter(|it| it.len() <= TEXT_BYTES_MAX).unwrap_or("").into(),
            kind,
            name,
            start: now,
            end: now,
            attributes: Vec::with_capacity(8),
            events: Vec::new(),
            error: None,
        };
        // An id that was made here is random.
        let flags = SAMPLED | parent.map_or(RANDOM, |parent| parent.flags & RANDOM);
        let itself = Parent { trace_id, span_id: span.span_id, flags };
        headers.insert(TRACEPARENT, itself.to_field());
        ActiveSpan { span: Some(span), sink: Arc::clone(sink) }
    }
}

/// A span under way; it ends when it is dropped.
pub(crate) struct ActiveSpan {
    span: Option<Span>,
    sink: Arc<dyn SpanSink>,
}

impl ActiveSpan {
    fn edit(&mut self, edit: impl FnOnce(&mut Span)) {
        if let Some(span) = &mut self.span {
            edit(span);
        }
    }

    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<AttributeValue>) {
        let value = match value.into() {
            AttributeValue::Text(text) => AttributeValue::Text(beginning(text, TEXT_BYTES_MAX)),
            other => other,
        };
        self.edit(|span| span.attributes.push((name, value)));
    }

    /// Notes the answer's status. A server has failed with 5xx, a client with 4xx too.
    pub(crate) fn status(&mut self, status: u16) {
        self.set("http.response.status_code", status);
        self.edit(|span| {
            let failed_from = if span.kind == SpanKind::Server { 500 } else { 400 };
            if status >= failed_from && span.error.is_none() {
                span.attributes.push(("error.type", status.to_string().into()));
                span.error = Some(String::new());
            }
        });
    }

    pub(crate) fn failed(&mut self, kind: &str, why: impl Into<String>) {
        self.edit(|span| {
            span.attributes.push(("error.type", kind.into()));
            span.error = Some(why.into());
        });
    }

    /// Adds the decisions so far as events.
    pub(crate) fn decided(&mut self, steps: &[TraceStep]) {
        self.edit(|span| {
            span.events.extend(steps.iter().map(|step| SpanEvent {
                at: span.start + Duration::from_micros(step.after_us),
                name: step.what.clone(),
                why: step.why.clone(),
            }));
        });
    }

    /// Keeps the span open until the response's body has been sent or given up.
    pub(crate) fn until_the_end_of(self, response: Response<Body>) -> Response<Body> {
        response.map(|body| body.followed(self))
    }
}

impl Drop for ActiveSpan {
    fn drop(&mut self) {
        if let Some(mut span) = self.span.take() {
            span.end = SystemTime::now().max(span.start);
            self.sink.record(span);
        }
    }
}

/// It is open for as long as the body that it follows.
impl Follow for ActiveSpan {}

/// A parsed `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Parent {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
}

impl Parent {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut fields = headers.get_all(TRACEPARENT).iter();
        let (Some(field), None) = (fields.next(), fields.next()) else { return None };
        Self::parse(field.to_str().ok()?)
    }

    /// Parses it by section 3.2; of a later version, only the parts that this version defines
    /// (section 4.2).
    fn parse(text: &str) -> Option<Self> {
        let (known, more) = text.split_at_checked(55)?;
        let mut parts = known.split('-');
        let [version, trace_id, span_id, flags] =
            [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
        let [version] = hex(version)?;
        let goes_on = version > 0 && more.starts_with('-');
        if parts.next().is_some() || version == 0xFF || !(more.is_empty() || goes_on) {
            return None;
        }
        let parent =
            Self { trace_id: hex(trace_id)?, span_id: hex(span_id)?, flags: hex::<1>(flags)?[0] };
        (parent.trace_id != [0; 16] && parent.span_id != [0; 8]).then_some(parent)
    }

    fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    fn to_field(self) -> HeaderValue {
        let mut text = String::with_capacity(55);
        text.push_str("00-");
        for (bytes, end) in [(&self.trace_id[..], "-"), (&self.span_id, "-"), (&[self.flags], "")] {
            for byte in bytes {
                let _ = write!(text, "{byte:02x}");
            }
            text.push_str(end);
        }
        HeaderValue::try_from(text).expect("hexadecimal digits and dashes are visible ASCII")
    }
}

/// Bytes of lower-case hexadecimal digits.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != 2 * N || !text.bytes().all(lower) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const SAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[derive(Default)]
    struct Kept {
        spans: Mutex<Vec<Span>>,
        refuses: bool,
    }

    impl SpanSink for Kept {
        fn samples(&self, _: &[u8; 16], parent: Option<bool>) -> bool {
            !self.refuses && parent.unwrap_or(true)
        }

        fn record(&self, span: Span) {
            self.spans.lock().unwrap().push(span);
        }
    }

    fn headers(traceparent: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in traceparent {
            headers.append(TRACEPARENT, HeaderValue::from_static(value));
        }
        headers.insert(TRACESTATE, HeaderValue::from_static("a=b"));
        headers
    }

    #[test]
    fn a_parent_is_read_as_the_recommendation_says_and_written_as_it_was() {
        let parent = Parent::parse(SAMPLE).unwrap();
        assert_eq!(parent.to_field(), SAMPLE);
        assert!(parent.is_sampled());
        assert!(
            Parent::parse("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more").is_some()
        );
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
            "00-4bf92f3577b34da6a3ce929d0e0e47-3600f067aa0ba902b7-01",
            "é0-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Parent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn each_span_is_the_parent_of_the_next() {
        let sink = Arc::new(Kept::default());
        let spans = Spans::new(sink.clone());
        let mut fields = headers(&[SAMPLE]);
        let mut first = spans.arrives(&mut fields, || "GET".into()).unwrap();
        let second = spans.within(&mut fields, SpanKind::Client, || "hop".into()).unwrap();
        first.status(503);
        drop(second);
        drop(first);
        let kept = sink.spans.lock().unwrap();
        let [hop, entry] = &kept[..] else { panic!("{kept:?}") };
        assert_eq!(entry.parent_span_id, Some([0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]));
        assert_eq!(hop.parent_span_id, Some(entry.span_id));
        assert_eq!((hop.trace_id, &*hop.trace_state), (entry.trace_id, "a=b"));
        assert_eq!(entry.error.as_deref(), Some(""));
        let last = Parent::of(&fields).unwrap();
        assert_eq!((last.trace_id, last.span_id), (hop.trace_id, hop.span_id));
    }

    #[test]
    fn a_trace_is_said_to_be_random_as_long_as_its_id_is() {
        let sink = Arc::new(Kept::default());
        let refuses = Arc::new(Kept { refuses: true, ..Kept::default() });
        let flags = |sink: &Arc<Kept>, came: &[&'static str]| {
            let spans = Spans::new(Arc::<Kept>::clone(sink));
            let mut fields = headers(came);
            let first = spans.arrives(&mut fields, String::new);
            let second = spans.within(&mut fields, SpanKind::Client, String::new);
            drop((first, second));
            Parent::of(&fields).unwrap().flags
        };
        let random = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03";
        let unknown = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff";
        assert_eq!(flags(&sink, &[random]), SAMPLED | RANDOM);
        assert_eq!(flags(&sink, &[SAMPLE]), SAMPLED);
        assert_eq!(flags(&sink, &[unknown]), SAMPLED | RANDOM);
        assert_eq!(flags(&sink, &[]), SAMPLED | RANDOM);
        assert_eq!(flags(&refuses, &[random]), RANDOM);
        assert_eq!(flags(&refuses, &[SAMPLE]), 0);
    }

    #[test]
    fn an_unsampled_trace_passes_unchanged_and_a_request_without_one_gets_one() {
        let unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let spans = Spans::new(Arc::new(Kept::default()));
        let mut fields = headers(&[unsampled]);
        assert!(spans.arrives(&mut fields, String::new).is_none());
        assert!(spans.within(&mut fields, SpanKind::Client, String::new).is_none());
        assert_eq!(fields, headers(&[unsampled]));
        for own in [&[][..], &["nonsense"], &[SAMPLE, SAMPLE]] {
            let mut fields = headers(own);
            assert!(spans.arrives(&mut fields, String::new).is_some());
            assert!(Parent::of(&fields).is_some_and(Parent::is_sampled), "{own:?}");
            assert!(!fields.contains_key(TRACESTATE));
        }
        for silent in
            [Spans::default(), Spans::new(Arc::new(Kept { refuses: true, ..Kept::default() }))]
        {
            let mut fields = headers(&[SAMPLE]);
            assert!(silent.arrives(&mut fields, String::new).is_none());
            assert!(silent.within(&mut fields, SpanKind::Client, String::new).is_none());
        }
        // Without a sink nothing is decided; a sampler that refuses decides for everyone
        // downstream.
        let mut fields = headers(&[SAMPLE]);
        assert!(Spans::default().arrives(&mut fields, String::new).is_none());
        assert_eq!(fields, headers(&[SAMPLE]));
        let refuses = Spans::new(Arc::new(Kept { refuses: true, ..Kept::default() }));
        assert!(refuses.arrives(&mut fields, String::new).is_none());
        let (before, after) = (Parent::parse(SAMPLE).unwrap(), Parent::of(&fields).unwrap());
        assert_eq!((after.trace_id, after.is_sampled()), (before.trace_id, false));
        assert_ne!(after.span_id, before.span_id);
    }
}
