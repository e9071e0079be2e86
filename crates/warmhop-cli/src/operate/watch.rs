//! `warmhop status --watch`: the contents of the dashboard, in a terminal or as text.
//!
//! ```text
//! live.rs: asks the peer, reads the keys ──▶ board.rs: what they select ──▶ frame.rs: the picture
//!                └───────▶ Watch: the peer's latest answers ────────────────────────┘
//! ```

mod board;
mod fit;
mod frame;
mod grid;
mod live;
#[cfg(test)]
mod tests;
mod traffic;

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use warmhop::status::{AppStatus, OtherPeer, RequestTrace, Status, TraceStep};

use crate::operate::columns::Columns;
use crate::operate::show::{
    NOT_HERE, app_names, app_state, clean, counted, elsewhere, peer_state, printed, span,
};
pub use live::run;
use traffic::Traffic;

/// How wide the bar of a start is.
const BAR_CELLS: usize = 10;
/// How many requests are shown in text.
const RECENT: usize = 20;

/// `GET /v1/requests`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Recent {
    /// The newest first.
    requests: Vec<RequestTrace>,
}

/// The latest answers of one peer, which stay visible while it is silent, and its counters, to
/// compute rates.
#[derive(Debug, Default)]
struct Watch {
    latest: Option<(Status, Vec<RequestTrace>)>,
    /// The last minutes of the mesh, if any peer reports them.
    traffic: Traffic,
    before: Option<Counters>,
    /// Requests a second.
    rates: Option<[f64; 3]>,
}

#[derive(Debug, Clone, Copy)]
struct Counters {
    uptime_ms: u64,
    served: u64,
    hopped: u64,
    received: u64,
}

impl Watch {
    /// Takes the peer's answers.
    fn hear(&mut self, status: Status, recent: Vec<RequestTrace>) {
        self.count(&status);
        self.latest = Some((status, recent));
    }

    /// All of it as text.
    fn text(&self) -> String {
        let Some((status, recent)) = &self.latest else { return String::new() };
        let mut text = self.head(status, false);
        text.push('\n');
        let all: Vec<Option<&OtherPeer>> =
            [None].into_iter().chain(status.peers.iter().map(Some)).collect();
        let mut peers = Columns::new(&[
            "PEER",
            "STATE",
            "ROUND TRIP",
            "HOPS SENT",
            "RECEIVED",
            "ZONE",
            "FRONT DOOR",
            "MESH",
        ]);
        for row in peer_rows(status, false, &all) {
            peers.row(row);
        }
        peers.print(&mut text, false);
        text.push('\n');
        let names = app_names(status);
        if names.is_empty() {
            text.push_str("no apps are configured on this peer\n");
        } else {
            apps(status, &names).print(&mut text, false);
        }
        for app in status.apps.iter().filter(|app| app.state != "ready") {
            let Some(error) = &app.error else { continue };
            let line = error.lines().next().unwrap_or_default();
            let _ = writeln!(text, "{}: {}", clean(&app.name), printed(line));
        }
        if !recent.is_empty() {
            text.push('\n');
            decisions(&recent[..recent.len().min(RECENT)]).print(&mut text, false);
        }
        text
    }

    /// Two lines: the peer's state, and its rates.
    fn head(&self, status: &Status, is_silent: bool) -> String {
        let peer = &status.peer;
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{} {} {}, up {}, version {}; owns {}, holds {}, took {} over",
            clean(&peer.name),
            if is_silent { "was" } else { "is" },
            clean(&peer.state),
            span(Duration::from_millis(peer.uptime_ms)),
            clean(&peer.version),
            counted(status.sessions.owned, "session", "sessions"),
            counted(status.sessions.copies, "copy", "copies"),
            status.takeovers,
        );
        match self.rates {
            _ if is_silent => text.push_str("requests a second: not known\n"),
            Some([served, hopped, received]) => {
                let _ = writeln!(
                    text,
                    "requests a second: {served:.1} served here, {hopped:.1} hopped away, \
                     {received:.1} hopped in"
                );
            }
            None => text.push_str("requests a second: counting\n"),
        }
        text
    }

    /// Measures by the peer's own clock: whatever delayed the answer or this terminal, the peer
    /// counted for as long as its uptime says.
    fn count(&mut self, status: &Status) {
        let sum = |of: fn(&AppStatus) -> u64| status.apps.iter().map(of).sum();
        let now = Counters {
            uptime_ms: status.peer.uptime_ms,
            served: sum(|app| app.requests.served),
            hopped: sum(|app| app.requests.hopped),
            received: status.peers.iter().map(|peer| peer.hops_received).sum(),
        };
        if let Some(before) = self.before {
            let ms = now.uptime_ms.checked_sub(before.uptime_ms);
            if ms == Some(0) {
                return;
            }
            // A restarted peer counts from zero.
            self.rates = ms.map(|ms| {
                let rate =
                    |now: u64, before: u64| now.saturating_sub(before) as f64 * 1e3 / ms as f64;
                [
                    rate(now.served, before.served),
                    rate(now.hopped, before.hopped),
                    rate(now.received, before.received),
                ]
            });
        }
        self.before = Some(now);
    }
}

/// The cells of some peers; `None` is the one that was asked.
fn peer_rows(status: &Status, is_silent: bool, peers: &[Option<&OtherPeer>]) -> Vec<Vec<String>> {
    let row = |peer: &Option<&OtherPeer>| match peer {
        None => {
            let own = &status.peer;
            vec![
                format!("{} (this one)", own.name),
                if is_silent { "no answer".into() } else { own.state.clone() },
                String::new(),
                String::new(),
                String::new(),
                own.zone.clone().unwrap_or_default(),
                own.http.join(" "),
                own.mesh.clone(),
            ]
        }
        Some(peer) => vec![
            peer.name.clone(),
            peer_state(peer).into(),
            peer.rtt_us.map(|us| span(Duration::from_micros(us))).unwrap_or_default(),
            peer.hops_sent.to_string(),
            peer.hops_received.to_string(),
            peer.zone.clone().unwrap_or_default(),
            peer.http.clone().unwrap_or_default(),
            peer.mesh.clone(),
        ],
    };
    peers.iter().map(row).collect()
}

fn apps(status: &Status, names: &[&str]) -> Columns {
    let mut table =
        Columns::new(&["APP", "HERE", "ELSEWHERE", "PROGRESS", "IN FLIGHT", "WAITING", "STARTS"]);
    for name in names {
        let elsewhere = elsewhere_with_eta(name, &status.peers);
        let Some(app) = status.apps.iter().find(|app| app.name == *name) else {
            table.row(vec![(*name).into(), NOT_HERE.into(), elsewhere]);
            continue;
        };
        table.row(vec![
            app.name.clone(),
            app_state(app).into(),
            elsewhere,
            progress(app),
            app.in_flight.to_string(),
            app.waiting.to_string(),
            app.starts.to_string(),
        ]);
    }
    table
}

/// How far a start has come, or how long one takes.
fn progress(app: &AppStatus) -> String {
    let eta = app.eta_ms.map(Duration::from_millis);
    if app.state != "starting" {
        return eta.map(|eta| format!("takes {}", span(eta))).unwrap_or_default();
    }
    let gone = Duration::from_millis(app.starting_ms.unwrap_or_default());
    let Some(left) = eta else { return format!("for {}, its first start", span(gone)) };
    let part = gone.as_secs_f64() / (gone + left).as_secs_f64().max(1e-3);
    // A start that takes longer than usual does not fill the bar.
    let full = ((part * BAR_CELLS as f64) as usize).min(BAR_CELLS - 1);
    let bar: String = (0..BAR_CELLS).map(|cell| if cell < full { '█' } else { '░' }).collect();
    format!("{bar} {} left", span(left))
}

/// The other peers where it is more than cold, with how long until it is ready there.
fn elsewhere_with_eta(app: &str, peers: &[OtherPeer]) -> String {
    elsewhere(peers, |peer| {
        let state = peer.apps.get(app).filter(|state| *state != "cold")?;
        let eta = peer.copies.get(app).and_then(|copy| copy.eta_ms);
        Some(match eta.filter(|_| state == "starting") {
            Some(ms) => format!("{state} ({} left)", span(Duration::from_millis(ms))),
            None => state.clone(),
        })
    })
}

fn decisions(recent: &[RequestTrace]) -> Columns {
    let mut table = Columns::new(&["AGO", "WHAT", "ANSWER", "REQUEST", "APP", "WHY"]);
    for trace in recent {
        let decided = decided(trace);
        table.row(vec![
            ago(since(trace, SystemTime::now())),
            words(trace, decided),
            answer(trace),
            trace.request.clone(),
            trace.app.clone().unwrap_or_else(|| "none".into()),
            decided.map(|step| step.why.clone()).unwrap_or_default(),
        ]);
    }
    table
}

fn since(trace: &RequestTrace, now: SystemTime) -> Duration {
    let at = UNIX_EPOCH + Duration::from_millis(trace.at_unix_ms);
    now.duration_since(at).unwrap_or_default()
}

/// The step of an answer that broke off after its head, and the word for it.
const CUT_OFF: &str = "cut-off";
const BROKE_OFF: &str = "broke off";

/// The outcome of the request. A refusal and the starting page are recorded as a problem after
/// that.
fn decided(trace: &RequestTrace) -> Option<&TraceStep> {
    const DECISIONS: [&str; 8] =
        ["serve", "hop", "forward", "wait", "refuse", "page", "problem", CUT_OFF];
    let mut last = trace.steps.iter().rev().filter(|step| DECISIONS.contains(&&*step.what));
    let decided = last.next().or(trace.steps.last())?;
    let before = last.next().filter(|step| ["refuse", "page"].contains(&&*step.what));
    Some(before.filter(|_| decided.what == "problem").unwrap_or(decided))
}

fn words(trace: &RequestTrace, decided: Option<&TraceStep>) -> String {
    if decided.is_some_and(|step| step.what == CUT_OFF) {
        return BROKE_OFF.into();
    }
    if trace.role == "hop" {
        return "hopped in".into();
    }
    let to = trace.sent_to.as_ref().or(trace.served_by.as_ref());
    match (decided.map_or("", |step| &step.what), to) {
        ("hop" | "forward", Some(peer)) => format!("to {peer}"),
        ("serve", _) => "served".into(),
        ("wait", _) => "waited".into(),
        ("refuse", _) => "refused".into(),
        ("page", _) => "shown a page".into(),
        (what, _) => what.into(),
    }
}

fn answer(trace: &RequestTrace) -> String {
    let after = trace
        .head_ms
        .map(|ms| format!(", {}", span(Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default())));
    match (trace.status, trace.steps.last().map(|step| step.what.as_str())) {
        (Some(status), _) => format!("{status}{}", after.unwrap_or_default()),
        (None, Some("cancelled")) => "client left".into(),
        (None, Some("refuse")) => "refused".into(),
        (None, _) => String::new(),
    }
}

/// How long ago, in one unit.
fn ago(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
