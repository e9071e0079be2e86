//! Traces for a collector: OTLP over HTTP in its JSON form (OpenTelemetry Protocol 1.5, sections
//! "OTLP/HTTP" and "JSON Protobuf Encoding"), which needs no further dependency.
//!
//! Settings are OpenTelemetry's own environment variables; without an endpoint nothing is traced.
//! Spans wait in a bounded queue: a slow or absent collector costs spans, but never a request.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::Uri;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, info, warn};
use warmhop::trace::{AttributeValue, Span, SpanKind, SpanSink};

use self::collector::Collector;

mod collector;

/// How many spans wait at most.
const QUEUE_SPANS: usize = 4096;
/// How many go in one request at most.
const BATCH_SPANS: usize = 512;
/// How long a span waits for others to share its request.
const BATCH_WITHIN: Duration = Duration::from_secs(1);
/// How often lost spans are logged, as long as spans are lost.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// How long the remaining spans may take when the peer ends.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// Where spans are sent, and which.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    endpoint: Uri,
    headers: HeaderMap,
    gzip: bool,
    /// The authorities of the collector's certificate; absent: those that this system trusts.
    authorities: Option<PathBuf>,
    resource: BTreeMap<String, String>,
    sampler: Sampler,
}

/// Which requests are traced: `OTEL_TRACES_SAMPLER`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sampler {
    /// The client's decision counts, if it made one.
    parent_based: bool,
    /// The fraction of the other requests that is traced, from 0 to 1.
    ratio: f64,
}

impl Settings {
    /// The settings in the environment; `None` if nothing is to be traced.
    ///
    /// # Errors
    /// Which variable is wrong, and which values it may have.
    pub fn from_env(peer: &str) -> Result<Option<Self>, String> {
        Self::read(peer, |name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn read(peer: &str, var: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        let is_off = var("OTEL_SDK_DISABLED").is_some_and(|off| off.eq_ignore_ascii_case("true"))
            || var("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter == "none");
        // The endpoint for traces is used as it is; the general one is a base.
        let (name, url) = match var("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            Some(url) => ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url),
            None => match var("OTEL_EXPORTER_OTLP_ENDPOINT") {
                Some(base) => (
                    "OTEL_EXPORTER_OTLP_ENDPOINT",
                    format!("{}/v1/traces", base.trim_end_matches('/')),
                ),
                None => return Ok(None),
            },
        };
        if is_off {
            return Ok(None);
        }
        let wrong =
            |why: &str| format!("{name}: {why}; expected http://HOST:4318 or https://HOST:4318");
        let endpoint: Uri = url.parse().map_err(|error| wrong(&format!("{url:?}: {error}")))?;
        match endpoint.scheme_str() {
            Some("http" | "https") if endpoint.authority().is_some() => {}
            _ => return Err(wrong(&format!("{url:?} is not the URL of a collector"))),
        }
        // Variables for traces alone take precedence over the general ones.
        let either = |end: &str| {
            var(&format!("OTEL_EXPORTER_OTLP_TRACES_{end}"))
                .or_else(|| var(&format!("OTEL_EXPORTER_OTLP_{end}")))
        };
        if either("PROTOCOL").as_deref() == Some("grpc") {
            return Err(
                "OTEL_EXPORTER_OTLP_PROTOCOL: spans are not sent by gRPC; leave it out and \
                        name the collector's port for HTTP, which is 4318"
                    .into(),
            );
        }
        let gzip = match either("COMPRESSION").as_deref() {
            None | Some("none") => false,
            Some("gzip") => true,
            Some(other) => {
                return Err(format!(
                    "OTEL_EXPORTER_OTLP_COMPRESSION: {other:?} is not known; expected gzip or none"
                ));
            }
        };
        let authorities = either("CERTIFICATE").map(PathBuf::from);
        let mut headers = HeaderMap::new();
        let given = either("HEADERS").unwrap_or_default();
        for (key, value) in pairs(&given) {
            let key = HeaderName::from_bytes(key.as_bytes());
            let value = HeaderValue::from_str(&value);
            let (Ok(key), Ok(mut value)) = (key, value) else {
                return Err("OTEL_EXPORTER_OTLP_HEADERS: expected name=value,name=value".into());
            };
            value.set_sensitive(true);
            headers.insert(key, value);
        }
        let mut resource = BTreeMap::from([
            ("service.name".to_owned(), "warmhop".to_owned()),
            ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("service.instance.id".to_owned(), peer.to_owned()),
        ]);
        resource.extend(pairs(&var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default()));
        if let Some(name) = var("OTEL_SERVICE_NAME") {
            resource.insert("service.name".into(), name);
        }
        let sampler = Sampler::read(
            var("OTEL_TRACES_SAMPLER").as_deref(),
            var("OTEL_TRACES_SAMPLER_ARG").as_deref(),
        )?;
        Ok(Some(Self { endpoint, headers, gzip, authorities, resource, sampler }))
    }

    /// Where spans go.
    #[must_use]
    pub fn endpoint(&self) -> &Uri {
        &self.endpoint
    }
}

impl Sampler {
    fn read(name: Option<&str>, argument: Option<&str>) -> Result<Self, String> {
        let name = name.unwrap_or("parentbased_always_on");
        let (parent_based, root) = match name.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, name),
        };
        let ratio = match root {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => {
                let ratio = argument.unwrap_or("1").parse::<f64>().ok();
                ratio.filter(|ratio| (0.0..=1.0).contains(ratio)).ok_or_else(|| {
                    format!("OTEL_TRACES_SAMPLER_ARG: {argument:?} is no number from 0 to 1")
                })?
            }
            _ => {
                return Err(format!(
                    "OTEL_TRACES_SAMPLER: {name:?} is not known; expected always_on, always_off or \
                     traceidratio, with or without parentbased_ before it"
                ));
            }
        };
        Ok(Self { parent_based, ratio })
    }

    fn samples(self, trace_id: &[u8; 16], parent: Option<bool>) -> bool {
        if let Some(sampled) = parent.filter(|_| self.parent_based) {
            return sampled;
        }
        // Every party that sees a trace decides the same: by its id, of which 56 bits are random
        // (W3C Trace Context Level 2, section 3.2.2.3).
        let mut random = [0; 8];
        random[1..].copy_from_slice(&trace_id[9..]);
        let part = u64::from_be_bytes(random) as f64 / (1_u64 << 56) as f64;
        part < self.ratio
    }
}

/// `name=value,name=value`, percent-encoded, as in W3C Baggage.
fn pairs(text: &str) -> Vec<(String, String)> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        Some((decoded(key.trim()), decoded(value.trim())))
    };
    text.split(',').filter_map(pair).collect()
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Takes spans and sends them in the background.
#[derive(Clone)]
pub struct Exporter {
    queue: mpsc::Sender<Span>,
    dropped: Arc<AtomicU64>,
    sampler: Sampler,
}

/// Sends the spans that an [`Exporter`] took.
pub struct Sending {
    task: JoinHandle<()>,
    finish: oneshot::Sender<()>,
}

impl Exporter {
    /// Begins to send.
    ///
    /// # Errors
    /// If the authorities of the collector's certificate cannot be read.
    pub fn start(settings: Settings) -> Result<(Self, Sending), String> {
        let collector = Collector::new(&settings)?;
        let (queue, spans) = mpsc::channel(QUEUE_SPANS);
        let dropped = Arc::new(AtomicU64::new(0));
        let exporter = Self { queue, dropped: Arc::clone(&dropped), sampler: settings.sampler };
        let (finish, finishing) = oneshot::channel();
        let task = tokio::spawn(send_all(settings, collector, spans, finishing, dropped));
        Ok((exporter, Sending { task, finish }))
    }
}

impl SpanSink for Exporter {
    fn samples(&self, trace_id: &[u8; 16], parent: Option<bool>) -> bool {
        self.sampler.samples(trace_id, parent)
    }

    fn record(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Sending {
    /// Sends the remaining spans, takes no more, and returns within 3 s.
    pub async fn flush(mut self) {
        let _ = self.finish.send(());
        if timeout(FLUSH_WITHIN, &mut self.task).await.is_err() {
            warn!("some spans were not sent: the collector takes too long");
            self.task.abort();
        }
    }
}

async fn send_all(
    settings: Settings,
    collector: Collector,
    mut spans: mpsc::Receiver<Span>,
    mut finishing: oneshot::Receiver<()>,
    dropped: Arc<AtomicU64>,
) {
    let mut batch = Vec::with_capacity(BATCH_SPANS);
    let mut losses = Losses::default();
    loop {
        let first = tokio::select! {
            first = spans.recv() => first,
            _ = &mut finishing, if !finishing.is_terminated() => {
                spans.close();
                continue;
            }
        };
        let Some(first) = first else { return };
        batch.push(first);
        let more = async {
            while batch.len() < BATCH_SPANS
                && let Some(span) = spans.recv().await
            {
                batch.push(span);
            }
        };
        let _ = timeout(BATCH_WITHIN, more).await;
        let outcome = collector.send(&request_of(&settings.resource, &batch).to_string()).await;
        if let Err(error) = &outcome {
            dropped.fetch_add(batch.len() as u64, Ordering::Relaxed);
            debug!(%error, spans = batch.len(), "spans were not sent");
        }
        match losses.note(dropped.load(Ordering::Relaxed), Instant::now()) {
            Some(Word::Lost(lost)) => {
                let error = outcome.err().unwrap_or_else(|| "it is too slow".into());
                warn!(endpoint = %settings.endpoint, %error, lost, "spans are lost: check the collector");
            }
            Some(Word::SentAgain(lost)) => {
                info!(endpoint = %settings.endpoint, lost, "spans are sent again");
            }
            None => {}
        }
        batch.clear();
    }
}

/// Decides when lost spans are logged: when the losses begin, about once a minute while they
/// continue, and when they have ended; not for each batch.
#[derive(Default)]
struct Losses {
    /// The number of all lost spans.
    total: u64,
    /// How many had been lost when the losses began, and when that was last logged.
    trouble: Option<(u64, Instant)>,
}

/// How many spans were lost since the losses began.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    Lost(u64),
    SentAgain(u64),
}

impl Losses {
    /// Takes the number of lost spans after each batch.
    fn note(&mut self, total: u64, now: Instant) -> Option<Word> {
        let before = std::mem::replace(&mut self.total, total);
        let more = total > before;
        match &mut self.trouble {
            None if more => {
                self.trouble = Some((before, now));
                Some(Word::Lost(total - before))
            }
            None => None,
            Some((began, logged_at)) if more => {
                let is_due = now.duration_since(*logged_at) >= LOG_EVERY;
                is_due.then(|| {
                    *logged_at = now;
                    Word::Lost(total - *began)
                })
            }
            Some((began, _)) => {
                let lost = total - *began;
                self.trouble = None;
                Some(Word::SentAgain(lost))
            }
        }
    }
}

/// An `ExportTraceServiceRequest`. Ids are hexadecimal and 64-bit numbers are strings, as the
/// encoding requires.
fn request_of(resource: &BTreeMap<String, String>, spans: &[Span]) -> Value {
    let resource: Vec<Value> =
        resource.iter().map(|(key, value)| attribute(key, &value.as_str().into())).collect();
    let spans: Vec<Value> = spans.iter().map(span_of).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": resource },
        "scopeSpans": [{
            "scope": { "name": "warmhop", "version": env!("CARGO_PKG_VERSION") },
            "spans": spans,
        }],
    }] })
}

fn span_of(span: &Span) -> Value {
    let attributes: Vec<Value> =
        span.attributes.iter().map(|(key, value)| attribute(key, value)).collect();
    let events: Vec<Value> = span
        .events
        .iter()
        .map(|event| {
            let why = attribute("warmhop.why", &event.why.as_str().into());
            json!({ "timeUnixNano": nanos(event.at), "name": event.name, "attributes": [why] })
        })
        .collect();
    let kind = match span.kind {
        SpanKind::Server => 2,
        SpanKind::Client => 3,
        // SPAN_KIND_UNSPECIFIED
        _ => 0,
    };
    let mut json = json!({
        "traceId": hex(&span.trace_id),
        "spanId": hex(&span.span_id),
        "flags": 1,
        "name": span.name,
        "kind": kind,
        "startTimeUnixNano": nanos(span.start),
        "endTimeUnixNano": nanos(span.end),
        "attributes": attributes,
        "events": events,
        "status": {},
    });
    if let Some(parent) = &span.parent_span_id {
        json["parentSpanId"] = hex(parent).into();
    }
    if !span.trace_state.is_empty() {
        json["traceState"] = span.trace_state.as_str().into();
    }
    if let Some(why) = &span.error {
        json["status"] = json!({ "code": 2, "message": why });
    }
    json
}

fn attribute(key: &str, value: &AttributeValue) -> Value {
    let value = match value {
        AttributeValue::Text(text) => json!({ "stringValue": text }),
        AttributeValue::Integer(number) => json!({ "intValue": number.to_string() }),
        other => json!({ "stringValue": format!("{other:?}") }),
    };
    json!({ "key": key, "value": value })
}

fn nanos(at: SystemTime) -> String {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let vars: BTreeMap<_, _> = vars.iter().copied().collect();
        Settings::read("peer-1", |name| vars.get(name).map(ToString::to_string))
    }

    fn span(name: &str) -> Span {
        let at = UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        let mut span = Span::new(SpanKind::Client, name);
        (span.trace_id, span.span_id) = ([0xAB; 16], [1; 8]);
        (span.start, span.end) = (at, at);
        span.attributes = vec![("http.response.status_code", 200_u16.into())];
        span
    }

    #[test]
    fn settings_are_opentelemetry_s_own_variables() {
        assert_eq!(read(&[]), Ok(None));
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318/");
        let settings = read(&[endpoint]).unwrap().unwrap();
        assert_eq!(settings.endpoint, "http://127.0.0.1:4318/v1/traces");
        assert_eq!(settings.resource["service.name"], "warmhop");
        assert_eq!(settings.resource["service.instance.id"], "peer-1");
        assert_eq!(settings.sampler, Sampler { parent_based: true, ratio: 1.0 });
        let settings = read(&[
            endpoint,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:9/own"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b, other=c"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=one,deployment.environment.name=test"),
            ("OTEL_SERVICE_NAME", "two"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ]);
        let settings = settings.unwrap().unwrap();
        assert_eq!(settings.endpoint, "http://collector:9/own");
        assert_eq!(
            (&settings.headers["x-key"], &settings.headers["other"]),
            (&HeaderValue::from_static("a b"), &HeaderValue::from_static("c"))
        );
        assert_eq!(settings.resource["service.name"], "two");
        assert_eq!(settings.resource["deployment.environment.name"], "test");
        assert_eq!(settings.sampler, Sampler { parent_based: false, ratio: 0.25 });
        assert_eq!(read(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), Ok(None));
        assert_eq!(read(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        for (wrong, said) in [
            (("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), "port for HTTP, which is 4318"),
            (("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"), "expected gzip or none"),
            (("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"), "expected http://HOST:4318"),
            (("OTEL_EXPORTER_OTLP_HEADERS", "a b=c"), "name=value"),
            (("OTEL_TRACES_SAMPLER", "sometimes"), "expected always_on"),
            (("OTEL_TRACES_SAMPLER_ARG", "2"), "from 0 to 1"),
        ] {
            let sampler = ("OTEL_TRACES_SAMPLER", "traceidratio");
            let error = read(&[endpoint, sampler, wrong]).unwrap_err();
            assert!(error.starts_with(wrong.0) && error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_ratio_is_of_those_that_nobody_decided_for() {
        let ids: Vec<[u8; 16]> = (0..2000_u64)
            .map(|n| {
                let mut id = [7; 16];
                id[8..].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
                id
            })
            .collect();
        let part =
            |sampler: Sampler, parent| ids.iter().filter(|id| sampler.samples(id, parent)).count();
        let tenth = Sampler { parent_based: true, ratio: 0.1 };
        assert!((150..250).contains(&part(tenth, None)), "{}", part(tenth, None));
        assert_eq!((part(tenth, Some(true)), part(tenth, Some(false))), (2000, 0));
        assert_eq!(part(Sampler { parent_based: false, ratio: 1.0 }, Some(false)), 2000);
        assert_eq!(part(Sampler { parent_based: true, ratio: 0.0 }, None), 0);
    }

    #[test]
    fn losses_are_logged_when_they_begin_each_minute_and_when_they_have_ended() {
        let (mut losses, began) = (Losses::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(losses.note(0, at(0)), None);
        assert_eq!(losses.note(5, at(1)), Some(Word::Lost(5)));
        assert_eq!(losses.note(9, at(30)), None);
        assert_eq!(losses.note(12, at(61)), Some(Word::Lost(12)));
        assert_eq!(losses.note(14, at(62)), None);
        assert_eq!(losses.note(14, at(63)), Some(Word::SentAgain(14)));
        assert_eq!(losses.note(14, at(200)), None);
        assert_eq!(losses.note(15, at(201)), Some(Word::Lost(1)), "what is new alone");
    }

    #[tokio::test]
    async fn a_collector_that_says_nothing_costs_spans_and_no_time_or_memory() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let settings = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]).unwrap().unwrap();
        let (exporter, sending) = Exporter::start(settings).unwrap();
        for _ in 0..3 * QUEUE_SPANS {
            exporter.record(span("x"));
        }
        let (_silent, _) = listener.accept().await.unwrap();
        let dropped = exporter.dropped.load(Ordering::Relaxed);
        assert!(dropped >= 2 * QUEUE_SPANS as u64 - BATCH_SPANS as u64, "{dropped} dropped");
        assert_eq!(exporter.queue.max_capacity(), QUEUE_SPANS);
        sending.task.abort();
    }
}
