//! Gauges that are read from the peer's state at each scrape instead of being counted.

use std::fmt;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Unit;
use warmhop_core::view::AppState;

use crate::care::report::{peer_state, unix_seconds};
use crate::care::skew;
use crate::request::node::Node;

/// Every state that [`peer_state`] returns.
const PEER_STATES: [&str; 5] = ["alive", "unlinked", "suspect", "draining", "gone"];
/// Every state that an app can be in.
const APP_STATES: [AppState; 6] = [
    AppState::Cold,
    AppState::Starting,
    AppState::Ready,
    AppState::Stopping,
    AppState::Failed,
    AppState::Paused,
];

type Labels<'a> = Vec<(&'a str, &'a str)>;

/// Reads a peer's gauges for a registry.
#[derive(Debug)]
pub(crate) struct Gauges(pub(crate) Weak<Node>);

impl Collector for Gauges {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(node) = self.0.upgrade() else { return Ok(()) };
        let mut scrape = Scrape(encoder);
        scrape.build()?;
        scrape.dropped(&node)?;
        scrape.peer(&node)?;
        scrape.sessions(&node)?;
        scrape.apps(&node)?;
        scrape.peers(&node)
    }
}

struct Scrape<'e>(DescriptorEncoder<'e>);

impl Scrape<'_> {
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: &[(Labels<'_>, f64)],
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        if let [(labels, value)] = values
            && labels.is_empty()
        {
            return ConstGauge::new(*value).encode(family);
        }
        for (labels, value) in values {
            ConstGauge::new(*value).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(family)
    }

    fn build(&mut self) -> fmt::Result {
        let labels: &[(&str, &str)] = &[("version", env!("CARGO_PKG_VERSION"))];
        let build = Info::new(labels.to_vec());
        let help = "The version of warmhop";
        build.encode(self.0.encode_descriptor("build", help, None, MetricType::Info)?)
    }

    fn dropped(&mut self, node: &Node) -> fmt::Result {
        if let Some(dropped) = node.spans.dropped() {
            let help = "Spans that could not be sent to the collector";
            self.counter("spans_dropped", help, dropped)?;
        }
        if let Some(dropped) = node.accesses.dropped() {
            let help = "Requests that the access log could not take";
            self.counter("access_log_dropped", help, dropped)?;
        }
        Ok(())
    }

    fn peer(&mut self, node: &Node) -> fmt::Result {
        let began = SystemTime::now()
            .checked_sub(node.started.elapsed())
            .and_then(|began| began.duration_since(UNIX_EPOCH).ok())
            .unwrap_or_default();
        self.gauge(
            "start_time",
            "When this peer started, in seconds since the Unix epoch",
            Some(&Unit::Seconds),
            &[(vec![], began.as_secs_f64())],
        )?;
        let ends = unix_seconds(node.net.identity_expires()) as f64;
        self.gauge(
            "identity_not_after",
            "When this peer's certificate ends, in seconds since the Unix epoch",
            Some(&Unit::Seconds),
            &[(vec![], ends)],
        )?;
        if let Some(ends) = node.metrics.doors.certificate_ends() {
            self.gauge(
                "front_door_not_after",
                "When the first of the front doors' certificates ends, in seconds since the Unix epoch",
                Some(&Unit::Seconds),
                &[(vec![], unix_seconds(ends) as f64)],
            )?;
        }
        let seeds = node.net.seeds();
        let reached = seeds.iter().filter(|seed| seed.reached).count();
        let by_reach = [
            (vec![("reached", "true")], reached as f64),
            (vec![("reached", "false")], (seeds.len() - reached) as f64),
        ];
        self.gauge(
            "seeds",
            "Configured seeds but the peer's own address, by whether they lead to a peer",
            None,
            &by_reach,
        )?;
        self.gauge(
            "clock_correction",
            "The time that sessions go by, less this machine's clock: not 0 where that clock is far off",
            Some(&Unit::Seconds),
            &[(vec![], seconds(node.clock.correction_ms()))],
        )?;
        let draining = f64::from(u8::from(node.is_draining()));
        self.gauge("draining", "Whether this peer is draining", None, &[(vec![], draining)])
    }

    fn sessions(&mut self, node: &Node) -> fmt::Result {
        self.gauge(
            "sessions_short",
            "Sessions and keys with fewer living members than there should be, or no living owner",
            None,
            &[(vec![], node.short() as f64)],
        )?;
        let memory = node.store.memory();
        self.gauge(
            "session_memory",
            "Memory that sessions use here, as far as it is counted",
            Some(&Unit::Bytes),
            &[(vec![], memory.bytes() as f64)],
        )?;
        self.gauge(
            "session_memory_max",
            "Memory that sessions may use here; changes are refused from seven eighths of it on",
            Some(&Unit::Bytes),
            &[(vec![], memory.bytes_max() as f64)],
        )
    }

    fn apps(&mut self, node: &Node) -> fmt::Result {
        let apps = node.apps();
        let view = node.view();
        let (mut states, mut in_flight, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        let (mut differ, mut versions) = (Vec::new(), Vec::new());
        for slot in &apps.slots {
            let name = slot.name().as_str();
            let state = slot.state();
            states.extend(APP_STATES.map(|each| {
                let labels = vec![("app", name), ("state", each.as_str())];
                (labels, f64::from(u8::from(each == state)))
            }));
            let flying = slot.in_flight.load(Ordering::Relaxed);
            in_flight.push((vec![("app", name)], f64::from(flying)));
            waiting.push((vec![("app", name)], slot.waiting.load(Ordering::Relaxed) as f64));
            differ.push((vec![("app", name)], skew::differing(slot, &view).len() as f64));
            versions.extend(slot.version().map(|version| (name, version.to_string())));
        }
        self.gauge(
            "app_differs_on_peers",
            "How many other peers have a different configuration of the app",
            None,
            &differ,
        )?;
        let versions: Vec<_> = versions
            .iter()
            .map(|(app, version)| (vec![("app", *app), ("version", version.as_str())], 1.0))
            .collect();
        self.gauge(
            "app_version",
            "1 for the version that serves here, or that a start would bring up",
            None,
            &versions,
        )?;
        self.gauge("app_state", "1 for the state that the app is in here, else 0", None, &states)?;
        self.gauge("app_in_flight", "Requests that the app is serving here", None, &in_flight)?;
        self.gauge("app_waiting", "Requests that wait here for a copy to be ready", None, &waiting)
    }

    fn peers(&mut self, node: &Node) -> fmt::Result {
        let view = node.view();
        let mut by_state = PEER_STATES.map(|state| (vec![("state", state)], 0.0));
        let (mut round_trips, mut clocks) = (Vec::new(), Vec::new());
        for (name, belief) in view.peers() {
            let state = peer_state(node, name, belief);
            if let Some(entry) = by_state.iter_mut().find(|(labels, _)| labels[0].1 == state) {
                entry.1 += 1.0;
            }
            if let Some(rtt) = node.net.rtt(name) {
                round_trips.push((vec![("peer", name.as_str())], rtt.as_secs_f64()));
            }
            if let Some(ahead) = node.clock.ahead_of_own_ms(name) {
                clocks.push((vec![("peer", name.as_str())], seconds(ahead)));
            }
        }
        self.gauge("peers", "Other peers that this one knows, by their state", None, &by_state)?;
        self.gauge(
            "peer_clock_ahead",
            "How far a peer's clock is ahead of this machine's",
            Some(&Unit::Seconds),
            &clocks,
        )?;
        self.gauge(
            "peer_round_trip",
            "Round-trip time of the link to a peer",
            Some(&Unit::Seconds),
            &round_trips,
        )
    }
}

/// A time in seconds, as metrics have it.
fn seconds(ms: i64) -> f64 {
    // Exact up to 2^53 ms, which is some 285,000 years.
    ms as f64 / 1000.0
}
