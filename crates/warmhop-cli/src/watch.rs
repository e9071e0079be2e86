//! The picture of `warmhop status --watch`: what the dashboard shows, in a terminal.

use std::fmt::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::client::{AppStatus, OtherPeer, Status, Trace};
use crate::show::{Table, clean, counted, cut, elsewhere, peer_state, span};

/// How wide the bar of a start is.
const BAR_CELLS: usize = 10;
/// How many requests are shown where nothing says how many fit.
const RECENT: usize = 20;

/// `GET /v1/requests`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Recent {
    /// The newest first.
    pub requests: Vec<Trace>,
}

/// How much fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters in a line.
    pub columns: usize,
    /// Lines.
    pub rows: usize,
}

/// Draws one peer again and again; remembers its counters, to tell how much happens.
#[derive(Debug, Default)]
pub struct Watch {
    before: Option<(Instant, Counters)>,
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
    /// The picture; without a `size` all of it.
    pub fn draw(
        &mut self,
        status: &Status,
        recent: &[Trace],
        now: Instant,
        size: Option<Size>,
        coloured: bool,
    ) -> String {
        self.count(status, now);
        let peer = &status.peer;
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{} is {}, up {}, version {}; owns {}, holds {}, took {} over",
            clean(&peer.name),
            clean(&peer.state),
            span(Duration::from_millis(peer.uptime_ms)),
            clean(&peer.version),
            counted(status.sessions.owned, "session", "sessions"),
            counted(status.sessions.copies, "copy", "copies"),
            status.takeovers,
        );
        if let Some([served, hopped, received]) = self.rates {
            let _ = writeln!(
                text,
                "requests a second: {served:.1} served here, {hopped:.1} hopped away, \
                 {received:.1} hopped in"
            );
        } else {
            text.push_str("requests a second: counting\n");
        }
        text.push('\n');

        let columns = size.map(|size| size.columns);
        peers(status).print_within(&mut text, coloured, columns);
        text.push('\n');
        if status.apps.is_empty() {
            text.push_str("no apps are configured on this peer\n");
        } else {
            apps(status).print_within(&mut text, coloured, columns);
        }
        for app in status.apps.iter().filter(|app| app.state != "ready") {
            if let Some(line) = app.error.as_deref().and_then(|error| error.lines().next()) {
                let _ = writeln!(text, "{}: {}", clean(&app.name), clean(line));
            }
        }

        let left = size
            .map_or(RECENT, |size| size.rows.saturating_sub(text.lines().count() + 3).min(RECENT));
        if left > 0 && !recent.is_empty() {
            text.push('\n');
            decisions(&recent[..recent.len().min(left)]).print_within(&mut text, coloured, columns);
        }
        fitted(&text, size)
    }

    fn count(&mut self, status: &Status, now: Instant) {
        let sum = |of: fn(&AppStatus) -> u64| status.apps.iter().map(of).sum();
        let counters = Counters {
            uptime_ms: status.peer.uptime_ms,
            served: sum(|app| app.requests.served),
            hopped: sum(|app| app.requests.hopped),
            received: status.peers.iter().map(|peer| peer.hops_received).sum(),
        };
        self.rates = self.before.and_then(|(then, before)| {
            let seconds = now.duration_since(then).as_secs_f64();
            // One that was started anew counts from the beginning.
            (seconds > 0.0 && before.uptime_ms <= counters.uptime_ms).then(|| {
                let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
                [
                    rate(counters.served, before.served),
                    rate(counters.hopped, before.hopped),
                    rate(counters.received, before.received),
                ]
            })
        });
        self.before = Some((now, counters));
    }
}

fn peers(status: &Status) -> Table {
    let mut table = Table::new(&[
        "PEER",
        "STATE",
        "ROUND TRIP",
        "HOPS SENT",
        "RECEIVED",
        "ZONE",
        "FRONT DOOR",
        "MESH",
    ]);
    let own = &status.peer;
    table.row(vec![
        format!("{} (this one)", own.name),
        own.state.clone(),
        String::new(),
        String::new(),
        String::new(),
        own.zone.clone().unwrap_or_default(),
        own.http.join(" "),
        own.mesh.clone(),
    ]);
    for peer in &status.peers {
        table.row(vec![
            peer.name.clone(),
            peer_state(peer).into(),
            peer.rtt_us.map(|us| span(Duration::from_micros(us))).unwrap_or_default(),
            peer.hops_sent.to_string(),
            peer.hops_received.to_string(),
            peer.zone.clone().unwrap_or_default(),
            peer.http.clone().unwrap_or_default(),
            peer.mesh.clone(),
        ]);
    }
    table
}

fn apps(status: &Status) -> Table {
    let mut table =
        Table::new(&["APP", "HERE", "PROGRESS", "IN FLIGHT", "WAITING", "STARTS", "ELSEWHERE"]);
    for app in &status.apps {
        table.row(vec![
            app.name.clone(),
            app.state.clone(),
            progress(app),
            app.in_flight.to_string(),
            app.waiting.to_string(),
            app.starts.to_string(),
            elsewhere_with_eta(app, &status.peers),
        ]);
    }
    table
}

/// How far a start is, or how long one takes.
fn progress(app: &AppStatus) -> String {
    let eta = app.eta_ms.map(Duration::from_millis);
    if app.state != "starting" {
        return eta.map(|eta| format!("takes {}", span(eta))).unwrap_or_default();
    }
    let gone = Duration::from_millis(app.starting_ms.unwrap_or_default());
    let Some(left) = eta else { return format!("for {}, its first start", span(gone)) };
    let part = gone.as_secs_f64() / (gone + left).as_secs_f64().max(1e-3);
    // A start that takes longer than usual stays short of the end.
    let full = ((part * BAR_CELLS as f64) as usize).min(BAR_CELLS - 1);
    let bar: String = (0..BAR_CELLS).map(|cell| if cell < full { '█' } else { '░' }).collect();
    format!("{bar} {} left", span(left))
}

/// Where else it is more than cold, with how long until it is ready there.
fn elsewhere_with_eta(app: &AppStatus, peers: &[OtherPeer]) -> String {
    elsewhere(peers, |peer| {
        let state = peer.apps.get(&app.name).filter(|state| *state != "cold")?;
        let eta = peer.copies.get(&app.name).and_then(|copy| copy.eta_ms);
        Some(match eta.filter(|_| state == "starting") {
            Some(ms) => format!("{state} ({} left)", span(Duration::from_millis(ms))),
            None => state.clone(),
        })
    })
}

fn decisions(recent: &[Trace]) -> Table {
    let mut table = Table::new(&["AGO", "WHAT", "REQUEST", "ANSWER", "WHY"]);
    for trace in recent {
        let at = UNIX_EPOCH + Duration::from_millis(trace.at_unix_ms);
        let ago = SystemTime::now().duration_since(at).unwrap_or_default();
        let decided = trace
            .steps
            .iter()
            .rfind(|step| ["serve", "hop", "wait", "refuse", "page"].contains(&step.what.as_str()))
            .or(trace.steps.last());
        let what = match (trace.role.as_str(), decided.map(|step| step.what.as_str())) {
            ("hop", _) => "hopped in".into(),
            (_, Some("hop")) => match &trace.served_by {
                Some(peer) => format!("to {peer}"),
                None => "hop".into(),
            },
            (_, what) => what.unwrap_or_default().to_owned(),
        };
        let after = trace.head_ms.map(|ms| {
            format!(", {}", span(Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default()))
        });
        let answer = match trace.status {
            Some(status) => format!("{status}{}", after.unwrap_or_default()),
            None => String::new(),
        };
        let why = decided.map(|step| step.why.clone()).unwrap_or_default();
        table.row(vec![span(ago), what, trace.request.clone(), answer, why]);
    }
    table
}

/// Without what does not fit; a line that is too long would push everything down.
fn fitted(text: &str, size: Option<Size>) -> String {
    let Some(size) = size else { return text.to_owned() };
    let lines = text.lines().take(size.rows.saturating_sub(1)).map(|line| {
        // Tables fit already, and they alone are coloured.
        if line.contains('\x1b') { line.to_owned() } else { cut(line, size.columns) }
    });
    lines.map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(uptime_ms: u64, served: u64) -> Status {
        Status::deserialize(json!({
            "peer": {"name": "peer-1", "state": "serving", "version": "0.1.0",
                     "uptime_ms": uptime_ms, "http": ["127.0.0.1:8081"], "mesh": "127.0.0.1:7001"},
            "apps": [
                {"name": "shop", "state": "starting", "starts": 1, "eta_ms": 1500,
                 "starting_ms": 1500, "waiting": 2, "requests": {"served": served, "hopped": 4}},
                {"name": "blog", "state": "cold", "starts": 2, "eta_ms": 900,
                 "error": "it exited with status 3\n\u{1b}[31mboom"}
            ],
            "peers": [
                {"name": "peer-2", "alive": true, "state": "suspect", "rtt_us": 300,
                 "apps": {"shop": "starting", "blog": "ready"},
                 "copies": {"shop": {"eta_ms": 2000}}, "hops_sent": 4, "hops_received": 7}
            ],
            "sessions": {"owned": 1, "copies": 30}, "takeovers": 2
        }))
        .unwrap()
    }

    fn recent() -> Vec<Trace> {
        Recent::deserialize(json!({"requests": [
            {"id": "r-2", "role": "entry", "app": "shop", "request": "GET /search", "status": 200,
             "served_by": "peer-2", "head_ms": 2.0,
             "steps": [{"what": "hop", "why": "ready on peer-2 alone\u{1b}[2J"}]},
            {"id": "r-1", "role": "hop", "app": "blog", "request": "GET /", "status": 200,
             "steps": [{"what": "arrived", "why": "sent here by peer-2: serve it"}]}
        ]}))
        .unwrap()
        .requests
    }

    #[test]
    fn a_picture_tells_what_flows_what_starts_and_what_was_decided() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        let first = watch.draw(&status(1000, 10), &recent(), now, None, false);
        assert!(first.contains("requests a second: counting"), "{first}");
        let then = now + Duration::from_secs(2);
        let text = watch.draw(&status(3000, 25), &recent(), then, None, false);
        for line in [
            "peer-1 is serving, up 3.0 s, version 0.1.0; owns 1 session, holds 30 copies, took 2 over\n",
            "requests a second: 7.5 served here, 0.0 hopped away, 0.0 hopped in\n",
            "peer-2             suspect  300 µs      4          7",
            "shop  starting  █████░░░░░ 1.5 s left  0          2        1       peer-2 starting (2.0 s left)\n",
            "blog  cold      takes 900 ms",
            "blog: it exited with status 3\n",
            "to peer-2  GET /search  200, 2.0 ms  ready on peer-2 alone\u{fffd}[2J\n",
            "hopped in  GET /        200          sent here by peer-2: serve it\n",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
        // One that was started anew has counted nothing yet.
        let anew = watch.draw(&status(10, 0), &[], then, None, false);
        assert!(anew.contains("requests a second: counting"), "{anew}");
    }

    #[test]
    fn a_picture_is_never_larger_than_its_terminal() {
        for (columns, rows) in [(80, 24), (40, 10), (20, 5), (1, 1)] {
            for coloured in [false, true] {
                let mut watch = Watch::default();
                let size = Some(Size { columns, rows });
                let text = watch.draw(&status(1000, 1), &recent(), Instant::now(), size, coloured);
                assert!(text.lines().count() < rows.max(2), "{columns}x{rows}:\n{text}");
                for line in text.lines() {
                    let mut plain = line.to_owned();
                    for code in ["0", "1", "31", "32", "33"] {
                        plain = plain.replace(&format!("\x1b[{code}m"), "");
                    }
                    assert!(plain.chars().count() <= columns, "{columns}x{rows}: {plain:?}");
                    let opens = line.matches("\x1b[").count() - line.matches("\x1b[0m").count();
                    assert_eq!(
                        opens,
                        line.matches("\x1b[0m").count(),
                        "a colour goes on: {line:?}"
                    );
                }
            }
        }
    }
}
