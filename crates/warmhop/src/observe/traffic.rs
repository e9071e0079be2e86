//! The bodies of clients' requests and of their answers, and what passes upgraded connections: bytes,
//! counted by app, and whether an answer broke off.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};
use warmhop_core::ids::{AppName, PeerId, RequestId};

use crate::http::body::{Body, BoxError, Watch};
use crate::observe::cut_offs::{CutOff, CutOffs};
use crate::observe::labels::ByApp;

/// A stream is counted whenever so many more bytes of it have passed, and at its end: if each piece
/// were, all threads would write to one place all the time.
const COUNTED_EVERY: u64 = 256 * 1024;

/// The bytes of bodies, by app, and the answers that were cut off. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traffic {
    received: Family<ByApp, Counter>,
    sent: Family<ByApp, Counter>,
    pub(crate) cut_offs: CutOffs,
}

/// What is counted of one app's bodies.
#[derive(Debug)]
pub(crate) struct AppTraffic {
    app: AppName,
    received: Counter,
    sent: Counter,
    cut_offs: CutOffs,
}

/// Whose answer a body is.
pub(crate) struct AnswerTo {
    pub(crate) id: RequestId,
    pub(crate) way: &'static str,
    /// The peer that ran it, if it is known.
    pub(crate) peer: Option<PeerId>,
}

impl Traffic {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let cut_offs = CutOffs::register(registry);
        let traffic = Self { cut_offs, ..Self::default() };
        registry.register_with_unit(
            "request_body",
            "Bytes that were read of the bodies of clients' requests, and of their upgraded \
             connections, by app",
            Unit::Bytes,
            traffic.received.clone(),
        );
        registry.register_with_unit(
            "response_body",
            "Bytes that clients were sent of the bodies of answers, and in their upgraded \
             connections, by app",
            Unit::Bytes,
            traffic.sent.clone(),
        );
        traffic
    }

    /// What is counted of an app's bodies, which is 0 from then on.
    pub(crate) fn of(&self, app: &AppName) -> Arc<AppTraffic> {
        self.cut_offs.begin(app);
        let label = ByApp { app: app.to_string() };
        Arc::new(AppTraffic {
            app: app.clone(),
            received: self.received.get_or_create(&label).clone(),
            sent: self.sent.get_or_create(&label).clone(),
            cut_offs: self.cut_offs.clone(),
        })
    }
}

impl AppTraffic {
    /// The body of a client's request, whose bytes are counted as they are read, also for `record`.
    pub(crate) fn receives(self: &Arc<Self>, body: Body, record: Option<Received>) -> Body {
        if let Some(bytes) = body.bytes_in_memory() {
            count(&self.received, bytes);
            if let Some(record) = record {
                record.add(bytes);
            }
            return body;
        }
        body.watched(Box::new(Request { of: Arc::clone(self), bytes: Bytes::default(), record }))
    }

    /// Counts bytes that a client sent in an upgraded connection.
    pub(crate) fn received(&self, bytes: u64) {
        count(&self.received, bytes);
    }

    /// Counts bytes that a client was sent in an upgraded connection.
    pub(crate) fn sent(&self, bytes: u64) {
        count(&self.sent, bytes);
    }

    /// The body of an answer, whose bytes are counted as they are sent, and which is reported if it
    /// breaks off.
    pub(crate) fn sends(self: &Arc<Self>, body: Body, to: impl FnOnce() -> AnswerTo) -> Body {
        if let Some(bytes) = body.bytes_in_memory() {
            count(&self.sent, bytes);
            return body;
        }
        let (of, bytes) = (Arc::clone(self), Bytes::default());
        body.watched(Box::new(Answer { of, bytes, to: to() }))
    }
}

fn count(sum: &Counter, bytes: u64) {
    // A counter belongs to no thread: the many bodies without bytes leave it alone.
    if bytes > 0 {
        sum.inc_by(bytes);
    }
}

/// The bytes of one body.
#[derive(Default)]
struct Bytes {
    all: u64,
    /// Those that were not counted yet.
    fresh: u64,
}

impl Bytes {
    fn pass(&mut self, bytes: usize, sum: &Counter) {
        self.all += bytes as u64;
        self.fresh += bytes as u64;
        if self.fresh >= COUNTED_EVERY {
            self.end(sum);
        }
    }

    fn end(&mut self, sum: &Counter) {
        count(sum, std::mem::take(&mut self.fresh));
    }
}

/// How many bytes of one request's body were read. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Received(Arc<AtomicU64>);

impl Received {
    fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

struct Request {
    of: Arc<AppTraffic>,
    bytes: Bytes,
    record: Option<Received>,
}

impl Watch for Request {
    fn passes(&mut self, bytes: usize) {
        self.bytes.pass(bytes, &self.of.received);
        if let Some(record) = &self.record {
            record.add(bytes as u64);
        }
    }

    // What its client did to it is reported where the request is answered.
    fn breaks(&mut self, _: &BoxError) {}
}

impl Drop for Request {
    fn drop(&mut self) {
        self.bytes.end(&self.of.received);
    }
}

struct Answer {
    of: Arc<AppTraffic>,
    bytes: Bytes,
    to: AnswerTo,
}

impl Watch for Answer {
    fn passes(&mut self, bytes: usize) {
        self.bytes.pass(bytes, &self.of.sent);
    }

    fn breaks(&mut self, error: &BoxError) {
        let AnswerTo { id, way, peer } = &self.to;
        let (app, bytes) = (&self.of.app, self.bytes.all);
        let what = CutOff { id, app, way, peer: peer.as_ref(), from: None, bytes };
        self.of.cut_offs.note(&what, error);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.bytes.end(&self.of.sent);
    }
}
