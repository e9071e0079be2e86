//! What a peer tells of itself, put together from its parts.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Unit;
use warmhop_core::config::SessionMode;
use warmhop_core::ids::{Incarnation, PeerId, SessionKey};
use warmhop_core::view::{AppState, Liveness, PeerBelief};

use crate::app::slot::Slot;
use crate::care::skew;
use crate::links::net::Net;
use crate::observe::status::{
    AppStatus, CopyStatus, OtherPeer, PeerStatus, SessionCounts, SessionStatus, Status,
};
use crate::request::node::Node;

pub(crate) fn status(node: &Node, net: &Net) -> Status {
    let spiffe = |name: &str| format!("spiffe://{}/peer/{name}", node.cluster);
    let route = |peer: &PeerId| node.route_name.of(peer, &node.auth).to_string();
    let (owned, copies) = node.store.counts();
    let peer = PeerStatus {
        name: node.me.to_string(),
        route: route(&node.me),
        id: spiffe(node.me.as_str()),
        incarnation: node.incarnation.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_ms: millis(node.started.elapsed()),
        state: own_state(node).into(),
        http: node.http.iter().map(ToString::to_string).collect(),
        mesh: net.advertised_addr().to_string(),
        zone: node.zone.clone(),
        clock_correction_ms: node.clock.correction_ms(),
        identity_not_after: unix_seconds(net.identity_expires()),
    };
    let view = node.view();
    let apps = node
        .apps()
        .slots
        .iter()
        .map(|slot| (slot, slot.copies(), slot.version(), slot.spec().version.clone()))
        .map(|(slot, (copy, next), version, configured)| AppStatus {
            name: slot.name().to_string(),
            state: slot.state().as_str().into(),
            starts: slot.starts(),
            eta_ms: slot.eta().map(millis),
            starting_ms: slot.starting_for().map(millis),
            in_flight: slot.in_flight.load(Ordering::Relaxed),
            waiting: slot.waiting.load(Ordering::Relaxed) as u64,
            requests: node.metrics.request_counts(slot.name()),
            error: slot.last_error(),
            session: match slot.spec().policy.session {
                SessionMode::Portable => "portable",
                SessionMode::Pinned => "pinned",
                SessionMode::None => "none",
            }
            .into(),
            copy,
            next,
            next_version: configured.filter(|it| Some(it) != version.as_ref()).map(String::from),
            version: version.map(String::from),
            digest: digest_text(slot.spec().digest),
            differs_on: skew::differing(slot, &view),
        })
        .collect();
    let now = node.clock.now();
    let peers = view
        .peers()
        .map(|(name, belief)| (name, belief, node.metrics.hop_counts(name)))
        .map(|(name, belief, (hops_sent, hops_received))| OtherPeer {
            name: name.to_string(),
            route: route(name),
            id: spiffe(name.as_str()),
            incarnation: belief.news.incarnation.to_string(),
            alive: belief.alive == Liveness::Alive,
            draining: belief.news.draining,
            state: peer_state(belief).into(),
            rtt_us: net.rtt(name).map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            clock_ahead_ms: node.clock.ahead_of_own_ms(name),
            zone: belief.news.zone.clone(),
            mesh: belief.news.mesh.to_string(),
            http: belief.news.http.clone(),
            apps: belief
                .apps
                .iter()
                .map(|(app, told)| (app.to_string(), told.news.state.as_str().to_owned()))
                .collect(),
            copies: belief
                .apps
                .iter()
                .map(|(app, told)| {
                    let eta_ms = told.eta(now).map(millis);
                    let told = &told.news;
                    let copy = CopyStatus {
                        eta_ms,
                        in_flight: told.in_flight,
                        version: told.version.clone().map(String::from),
                        digest: digest_text(told.digest),
                    };
                    (app.to_string(), copy)
                })
                .collect(),
            hops_sent,
            hops_received,
        })
        .collect();
    let takeovers = node.metrics.takeovers.get();
    let cookie = node.store.policy().cookie.name.clone();
    let (sessions, seeds) = (
        SessionCounts {
            owned,
            copies,
            bytes: node.store.memory().bytes(),
            bytes_max: node.store.memory().bytes_max(),
        },
        net.seeds(),
    );
    Status { peer, apps, peers, cookie, sessions, takeovers, seeds }
}

/// A digest for people: enough of it to tell two apart.
fn digest_text(digest: u64) -> String {
    if digest == 0 { "-".into() } else { format!("{digest:016x}") }
}

/// Drained is who has given everything away and serves nothing any more.
fn own_state(node: &Node) -> &'static str {
    let is_busy = || {
        let flying = |slot: &Arc<Slot>| slot.in_flight.load(Ordering::Relaxed) > 0;
        node.apps().slots.iter().any(flying) || !node.tunnels.open.is_empty()
    };
    match (node.is_draining(), node.drained.load(Ordering::Relaxed)) {
        (false, _) => "serving",
        (true, true) if !is_busy() => "drained",
        (true, _) => "draining",
    }
}

/// A span in milliseconds as a metric.
fn f64_of(ms: i64) -> f64 {
    // Exact up to 2^53 ms, which is some 285,000 years.
    ms as f64
}

fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Every state that [`peer_state`] tells.
const PEER_STATES: [&str; 4] = ["alive", "suspect", "draining", "gone"];
/// Every state that an app can be in.
const APP_STATES: [AppState; 6] = [
    AppState::Cold,
    AppState::Starting,
    AppState::Ready,
    AppState::Stopping,
    AppState::Failed,
    AppState::Paused,
];

fn peer_state(belief: &PeerBelief) -> &'static str {
    match belief.alive {
        Liveness::Dead => "gone",
        Liveness::Suspect => "suspect",
        Liveness::Alive if belief.news.draining => "draining",
        Liveness::Alive => "alive",
    }
}

/// What is true at the moment of a scrape, read from where it is kept rather than counted along.
#[derive(Debug)]
pub(crate) struct Gauges(pub(crate) Weak<Node>);

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(node) = self.0.upgrade() else { return Ok(()) };
        let labels: &[(&str, &str)] = &[("version", env!("CARGO_PKG_VERSION"))];
        let build = Info::new(labels.to_vec());
        build.encode(encoder.encode_descriptor(
            "build",
            "The version of warmhop",
            None,
            MetricType::Info,
        )?)?;
        if let Some(dropped) = node.spans.dropped() {
            let counter = ConstCounter::new(dropped);
            counter.encode(encoder.encode_descriptor(
                "spans_dropped",
                "Spans that could not be sent to the collector",
                None,
                MetricType::Counter,
            )?)?;
        }
        if let Some(dropped) = node.accesses.dropped() {
            let counter = ConstCounter::new(dropped);
            counter.encode(encoder.encode_descriptor(
                "access_log_dropped",
                "Requests that the access log could not take",
                None,
                MetricType::Counter,
            )?)?;
        }
        let mut gauge = |name, help, unit: Option<&Unit>, values: &[(Labels<'_>, f64)]| {
            let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            if let [(labels, value)] = values
                && labels.is_empty()
            {
                return ConstGauge::new(*value).encode(family);
            }
            for (labels, value) in values {
                ConstGauge::new(*value).encode(family.encode_family(labels)?)?;
            }
            Ok::<_, fmt::Error>(())
        };
        let began = SystemTime::now()
            .checked_sub(node.started.elapsed())
            .and_then(|began| began.duration_since(UNIX_EPOCH).ok())
            .unwrap_or_default();
        let draining = f64::from(u8::from(node.is_draining()));
        gauge(
            "start_time",
            "When this peer started, in seconds since the Unix epoch",
            Some(&Unit::Seconds),
            &[(vec![], began.as_secs_f64())],
        )?;
        let ends = unix_seconds(node.net.identity_expires()) as f64;
        gauge(
            "identity_not_after",
            "When this peer's certificate ends, in seconds since the Unix epoch",
            Some(&Unit::Seconds),
            &[(vec![], ends)],
        )?;
        let seeds = node.net.seeds();
        let reached = seeds.iter().filter(|seed| seed.reached).count();
        let by_reach = [
            (vec![("reached", "true")], reached as f64),
            (vec![("reached", "false")], (seeds.len() - reached) as f64),
        ];
        gauge("seeds", "Configured seeds, by whether they lead to a peer", None, &by_reach)?;
        let correction = f64_of(node.clock.correction_ms()) / 1000.0;
        gauge(
            "clock_correction",
            "The time that sessions go by less this machine's clock: not 0 where that is far off",
            Some(&Unit::Seconds),
            &[(vec![], correction)],
        )?;
        let memory = node.store.memory();
        gauge(
            "session_memory",
            "What sessions take here, as far as they are counted",
            Some(&Unit::Bytes),
            &[(vec![], memory.bytes() as f64)],
        )?;
        gauge(
            "session_memory_max",
            "What sessions may take here; changes are refused from seven eighths of it on",
            Some(&Unit::Bytes),
            &[(vec![], memory.bytes_max() as f64)],
        )?;
        gauge("draining", "Whether this peer is draining", None, &[(vec![], draining)])?;

        let apps = node.apps();
        let names: Vec<&str> = apps.slots.iter().map(|slot| slot.name().as_str()).collect();
        let (mut states, mut in_flight, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for (slot, name) in apps.slots.iter().zip(names) {
            let state = slot.state();
            states.extend(APP_STATES.map(|each| {
                let labels = vec![("app", name), ("state", each.as_str())];
                (labels, f64::from(u8::from(each == state)))
            }));
            let flying = slot.in_flight.load(Ordering::Relaxed);
            in_flight.push((vec![("app", name)], f64::from(flying)));
            waiting.push((vec![("app", name)], slot.waiting.load(Ordering::Relaxed) as f64));
        }
        let view = node.view();
        let differ: Vec<_> = apps
            .slots
            .iter()
            .map(|slot| {
                (vec![("app", slot.name().as_str())], skew::differing(slot, &view).len() as f64)
            })
            .collect();
        gauge(
            "app_differs_on_peers",
            "How many other peers mean something else by the app: their configurations differ",
            None,
            &differ,
        )?;
        let versions: Vec<(String, String)> = apps
            .slots
            .iter()
            .filter_map(|slot| Some((slot.name().to_string(), slot.version()?.to_string())))
            .collect();
        let versions: Vec<_> = versions
            .iter()
            .map(|(app, version)| (vec![("app", app.as_str()), ("version", version.as_str())], 1.0))
            .collect();
        gauge(
            "app_version",
            "1 for the version that serves here, or that a start would bring up",
            None,
            &versions,
        )?;
        gauge("app_state", "1 for the state that the app is in here, else 0", None, &states)?;
        gauge("app_in_flight", "Requests that the app is serving here", None, &in_flight)?;
        gauge("app_waiting", "Requests that wait here for a copy to be ready", None, &waiting)?;

        let mut by_state = PEER_STATES.map(|state| (vec![("state", state)], 0.0));
        let (mut round_trips, mut clocks) = (Vec::new(), Vec::new());
        for (name, belief) in view.peers() {
            let state = peer_state(belief);
            if let Some(entry) = by_state.iter_mut().find(|(labels, _)| labels[0].1 == state) {
                entry.1 += 1.0;
            }
            if let Some(rtt) = node.net.rtt(name) {
                round_trips.push((vec![("peer", name.as_str())], rtt.as_secs_f64()));
            }
            if let Some(ahead) = node.clock.ahead_of_own_ms(name) {
                clocks.push((vec![("peer", name.as_str())], f64_of(ahead) / 1000.0));
            }
        }
        gauge("peers", "Other peers that this one knows, by their state", None, &by_state)?;
        gauge(
            "peer_clock_ahead",
            "How far a peer's clock is ahead of this machine's",
            Some(&Unit::Seconds),
            &clocks,
        )?;
        gauge(
            "peer_round_trip",
            "Round-trip time of the link to a peer",
            Some(&Unit::Seconds),
            &round_trips,
        )
    }
}

type Labels<'a> = Vec<(&'a str, &'a str)>;

pub(crate) fn session(node: &Node, key: &SessionKey) -> Option<SessionStatus> {
    let (owner, ballot, version, members) = node.store.with(key, false, |machine, _, _| {
        let owner = if machine.is_owner() { Some(node.incarnation) } else { machine.known_owner() };
        // While its members change, those that the newest chosen record names still count: until the
        // new ones hold it, the loss of one more of the old ones may be the loss of the session.
        let chosen = machine.token_hint().map(|hint| hint.cfg.now.who.to_vec());
        let members = chosen.unwrap_or_else(|| machine.members().to_vec());
        (owner, machine.ballot().or_else(|| machine.claim()), machine.version(), members)
    })?;
    let view = node.view();
    let name = |incarnation: &Incarnation| {
        if *incarnation == node.incarnation {
            return node.me.to_string();
        }
        match view.by_incarnation(incarnation) {
            Some(belief) => belief.news.peer.to_string(),
            None => format!("gone:{incarnation:?}"),
        }
    };
    Some(SessionStatus {
        key: key.to_string(),
        owner: owner.as_ref().map(name),
        ballot: ballot.map(|ballot| ballot.to_string()).unwrap_or_default(),
        version,
        members: members.iter().map(name).collect(),
    })
}
