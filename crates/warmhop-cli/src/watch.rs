//! The picture of `warmhop status --watch`: what the dashboard shows, in a terminal.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::client::{AppStatus, OtherPeer, Status, Step, Trace};
use crate::show::{
    NOT_HERE, Shrinks, Table, app_names, app_state, clean, counted, cut, elsewhere, peer_state,
    span,
};

/// How wide the bar of a start is.
const BAR_CELLS: usize = 10;
/// How many requests are shown where nothing says how many fit.
const RECENT: usize = 20;
/// How many of them have their place, however many apps and peers there are.
const RECENT_LEAST: usize = 4;
/// How many apps tell why they failed.
const ERRORS_MAX: usize = 3;

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

/// Draws one peer again and again. Remembers what it told last, which stays in sight while it is
/// silent, and its counters, to tell how much happens.
#[derive(Debug, Default)]
pub struct Watch {
    told: Option<(Status, Vec<Trace>)>,
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
    /// Takes what the peer told.
    pub fn hear(&mut self, status: Status, recent: Vec<Trace>) {
        self.count(&status);
        self.told = Some((status, recent));
    }

    /// The picture; without a `size` all of it. `silence` is what to say of a peer that does not
    /// answer: then the picture is what it told last.
    pub fn draw(&self, silence: Option<&str>, size: Option<Size>, coloured: bool) -> String {
        let columns = size.map(|size| size.columns);
        let Some((status, recent)) = &self.told else {
            let lines = folded(silence.unwrap_or("asking the peer"), columns);
            return fitted(&lines, size);
        };
        let mut text = String::new();
        if let Some(silence) = silence {
            let line = cut(&clean(silence), columns.unwrap_or(usize::MAX));
            let (red, plain) = if coloured { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
            let _ = writeln!(text, "{red}{line}{plain}");
        }
        self.head(status, silence.is_some(), &mut text);
        text.push('\n');

        let names = app_names(status);
        let failed: Vec<&AppStatus> =
            status.apps.iter().filter(|app| app.state != "ready" && app.error.is_some()).collect();
        let room = Room::within(size, &text, status, names.len(), failed.len(), recent.len());
        peers(status, silence.is_some(), room.peers).print_within(&mut text, coloured, columns);
        left_out(1 + status.peers.len(), room.peers, "peers", &mut text);
        text.push('\n');
        if names.is_empty() {
            text.push_str("no apps are configured on this peer\n");
        } else {
            apps(status, &names, room.apps).print_within(&mut text, coloured, columns);
            left_out(names.len(), room.apps, "apps", &mut text);
        }
        for app in failed.iter().take(room.errors) {
            let line = app.error.as_deref().and_then(|error| error.lines().next());
            let _ = writeln!(text, "{}: {}", clean(&app.name), clean(line.unwrap_or_default()));
        }

        let left = size
            .map_or(RECENT, |size| size.rows.saturating_sub(text.lines().count() + 3).min(RECENT));
        if left > 0 && !recent.is_empty() {
            text.push('\n');
            decisions(&recent[..recent.len().min(left)]).print_within(&mut text, coloured, columns);
        }
        fitted(&text, size)
    }

    fn head(&self, status: &Status, is_silent: bool, text: &mut String) {
        let peer = &status.peer;
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
    }

    /// Measures by the peer's own clock: whatever kept the answer or this terminal, the peer counted
    /// for as long as its uptime says.
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
            // One that was started anew counts from the beginning.
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

/// How many rows each table has, and how many apps tell why they failed.
struct Room {
    peers: usize,
    apps: usize,
    errors: usize,
}

impl Room {
    /// Shares what is left below `head` out, the newest requests' few rows kept free.
    fn within(
        size: Option<Size>,
        head: &str,
        status: &Status,
        apps: usize,
        failed: usize,
        recent: usize,
    ) -> Self {
        let peers = 1 + status.peers.len();
        let errors = failed.min(ERRORS_MAX);
        let Some(size) = size else { return Self { peers, apps, errors: failed } };
        // The heads of three tables, and the empty lines between them.
        let around = if recent > 0 { 5 } else { 3 };
        let taken = 1 + head.lines().count() + around + recent.min(RECENT_LEAST);
        let free = size.rows.saturating_sub(taken);
        if peers + apps + errors <= free {
            return Self { peers, apps, errors };
        }
        let peers = peers.min(free.saturating_sub(apps + errors).max(free / 3));
        let errors = errors.min((free - peers) / 4);
        Self { peers, apps: apps.min(free - peers - errors), errors }
    }
}

/// Those of `items` that have room, in their order: first those that stand out. Where not all have,
/// one row is for the number of the others.
fn chosen<T: Copy>(items: &[T], room: usize, stands_out: impl Fn(T) -> bool) -> Vec<T> {
    if items.len() <= room {
        return items.to_vec();
    }
    let (mut first, rest): (Vec<usize>, Vec<usize>) =
        (0..items.len()).partition(|at| stands_out(items[*at]));
    first.extend(rest);
    first.truncate(room.saturating_sub(1));
    first.sort_unstable();
    first.into_iter().map(|at| items[at]).collect()
}

/// Tells how many [`chosen`] left out.
fn left_out(count: usize, room: usize, what: &str, text: &mut String) {
    if count > room {
        let _ = writeln!(text, "{} more {what}", count - room.saturating_sub(1));
    }
}

fn peers(status: &Status, is_silent: bool, room: usize) -> Table {
    let mut table = Table::shrinking(&[
        ("PEER", Shrinks::Middle(18)),
        ("STATE", Shrinks::Never),
        ("ROUND TRIP", Shrinks::Never),
        ("HOPS SENT", Shrinks::Never),
        ("RECEIVED", Shrinks::Never),
        ("ZONE", Shrinks::Never),
        ("FRONT DOOR", Shrinks::Never),
        ("MESH", Shrinks::Never),
    ]);
    let all: Vec<Option<&OtherPeer>> =
        [None].into_iter().chain(status.peers.iter().map(Some)).collect();
    let stands_out = |peer: Option<&OtherPeer>| peer.is_none_or(|it| peer_state(it) != "alive");
    for peer in chosen(&all, room, stands_out) {
        let Some(peer) = peer else {
            let own = &status.peer;
            table.row(vec![
                format!("{} (this one)", own.name),
                if is_silent { "no answer".into() } else { own.state.clone() },
                String::new(),
                String::new(),
                String::new(),
                own.zone.clone().unwrap_or_default(),
                own.http.join(" "),
                own.mesh.clone(),
            ]);
            continue;
        };
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

fn apps(status: &Status, names: &[&str], room: usize) -> Table {
    let mut table = Table::shrinking(&[
        ("APP", Shrinks::Middle(12)),
        ("HERE", Shrinks::Never),
        ("ELSEWHERE", Shrinks::End(12)),
        ("PROGRESS", Shrinks::Never),
        ("IN FLIGHT", Shrinks::Never),
        ("WAITING", Shrinks::Never),
        ("STARTS", Shrinks::Never),
    ]);
    let here = |name: &str| status.apps.iter().find(|app| app.name == name);
    let is_up = |name: &str| {
        here(name).is_some_and(|app| app_state(app) != "cold")
            || !elsewhere_with_eta(name, &status.peers).is_empty()
    };
    for name in chosen(names, room, is_up) {
        let elsewhere = elsewhere_with_eta(name, &status.peers);
        let Some(app) = here(name) else {
            table.row(vec![name.into(), NOT_HERE.into(), elsewhere]);
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

fn decisions(recent: &[Trace]) -> Table {
    let mut table = Table::shrinking(&[
        ("AGO", Shrinks::Never),
        ("WHAT", Shrinks::Middle(9)),
        ("ANSWER", Shrinks::Never),
        ("REQUEST", Shrinks::Middle(8)),
        ("WHY", Shrinks::End(12)),
    ]);
    for trace in recent {
        let at = UNIX_EPOCH + Duration::from_millis(trace.at_unix_ms);
        let decided = decided(trace);
        table.row(vec![
            ago(SystemTime::now().duration_since(at).unwrap_or_default()),
            words(trace, decided),
            answer(trace),
            trace.request.clone(),
            decided.map(|step| step.why.clone()).unwrap_or_default(),
        ]);
    }
    table
}

/// What the request came to. A refusal and the starting page are told as a problem after that.
fn decided(trace: &Trace) -> Option<&Step> {
    const DECISIONS: [&str; 7] = ["serve", "hop", "forward", "wait", "refuse", "page", "problem"];
    let mut last = trace.steps.iter().rev().filter(|step| DECISIONS.contains(&&*step.what));
    let decided = last.next().or(trace.steps.last())?;
    let before = last.next().filter(|step| ["refuse", "page"].contains(&&*step.what));
    Some(before.filter(|_| decided.what == "problem").unwrap_or(decided))
}

fn words(trace: &Trace, decided: Option<&Step>) -> String {
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

fn answer(trace: &Trace) -> String {
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

/// Lines of whole words where they fit, for what is said where nothing else is shown.
fn folded(text: &str, columns: Option<usize>) -> String {
    let columns = columns.unwrap_or(usize::MAX);
    let mut lines = vec![String::new()];
    for word in clean(text).split_whitespace() {
        let line = lines.last_mut().expect("there is always one");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= columns {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n") + "\n"
}

/// Without what does not fit; a line that is too long would push everything down.
fn fitted(text: &str, size: Option<Size>) -> String {
    let Some(size) = size else { return text.to_owned() };
    let lines = text.lines().take(size.rows.saturating_sub(1)).map(|line| {
        // What is coloured fits already.
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
                 "apps": {"shop": "starting", "blog": "ready", "atlas": "ready"},
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
        let mut watch = Watch::default();
        watch.hear(status(1000, 10), recent());
        let first = watch.draw(None, None, false);
        assert!(first.contains("requests a second: counting"), "{first}");
        watch.hear(status(3000, 25), recent());
        let text = watch.draw(None, None, false);
        for line in [
            "peer-1 is serving, up 3.0 s, version 0.1.0; owns 1 session, holds 30 copies, took 2 over\n",
            "requests a second: 7.5 served here, 0.0 hopped away, 0.0 hopped in\n",
            "peer-2             suspect  300 µs      4          7",
            "shop   starting      peer-2 starting (2.0 s left)  █████░░░░░ 1.5 s left  0          2        1\n",
            "blog   cold, failed  peer-2 ready                  takes 900 ms",
            "atlas  not here      peer-2 ready\n",
            "blog: it exited with status 3\n",
            "to peer-2  200, 2.0 ms  GET /search  ready on peer-2 alone\u{fffd}[2J\n",
            "hopped in  200          GET /        sent here by peer-2: serve it\n",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
        // One that was started anew has counted nothing yet.
        watch.hear(status(10, 0), Vec::new());
        let anew = watch.draw(None, None, false);
        assert!(anew.contains("requests a second: counting"), "{anew}");
    }

    #[test]
    fn a_silent_peer_is_said_to_be_silent_within_what_fits() {
        let mut watch = Watch::default();
        let silence = Some("no answer for 7 s, trying again: nobody listens at that address");
        let narrow = Some(Size { columns: 36, rows: 24 });
        let first = watch.draw(silence, narrow, false);
        assert_eq!(first, "no answer for 7 s, trying again:\nnobody listens at that address\n");

        watch.hear(status(1000, 10), recent());
        assert!(watch.draw(None, narrow, true).contains("\x1b[32mserving"));
        // A smaller size is that of a window that was made smaller meanwhile.
        for rows in [24, 12, 5] {
            let text = watch.draw(silence, Some(Size { columns: 36, rows }), true);
            let begins = "\x1b[31mno answer for 7 s, trying again: no…\x1b[0m\npeer-1 was serving";
            assert!(text.starts_with(begins), "{text}");
            assert!(text.lines().count() < rows, "{text}");
            assert!(!text.contains("\x1b[32mserving"), "{text}");
        }
        let whole = watch.draw(silence, Some(Size { columns: 120, rows: 40 }), true);
        assert!(whole.contains("\x1b[31mno answer"), "{whole}");
        assert!(whole.contains("requests a second: not known"), "{whole}");
    }

    #[test]
    fn a_pause_between_two_answers_changes_no_rate() {
        let mut watch = Watch::default();
        watch.hear(status(1000, 10), Vec::new());
        // All of it was asked for in one moment here, by a terminal that was stopped meanwhile.
        watch.hear(status(101_000, 210), Vec::new());
        let text = watch.draw(None, None, false);
        assert!(text.contains("requests a second: 2.0 served here"), "{text}");
        watch.hear(status(101_000, 210), Vec::new());
        assert_eq!(watch.draw(None, None, false), text, "the same answer twice");
    }

    #[test]
    fn a_small_terminal_shows_what_matters_of_many_apps_and_peers() {
        let mut told = status(1000, 1);
        told.peers[0].state = "alive".into();
        let copy = |name: &str| json!({"name": name, "state": "cold"});
        for number in 0..20 {
            told.apps.push(AppStatus::deserialize(copy(&format!("tenant-{number:02}"))).unwrap());
        }
        told.apps[19].state = "starting".into();
        told.apps[18].name =
            "tenant-with-a-very-long-name-that-never-ends-acme-corporation-eu".into();
        told.apps[18].state = "ready".into();
        for number in 3..9 {
            let peer = json!({"name": format!("peer-{number}"), "alive": number != 8});
            told.peers.push(OtherPeer::deserialize(peer).unwrap());
        }
        let mut watch = Watch::default();
        let mut requests: Vec<Trace> = (0..3).flat_map(|_| recent()).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        for trace in &mut requests {
            trace.at_unix_ms = now.as_millis() as u64;
        }
        watch.hear(told, requests);
        for (columns, shown) in [
            (80, &["HERE", "ELSEWHERE", "PROGRESS", "ROUND TRIP", "HOPS SENT", "WHY"][..]),
            (40, &["HERE", "STATE", "ROUND TRIP", "ANSWER", "REQUEST"]),
        ] {
            let text = watch.draw(None, Some(Size { columns, rows: 24 }), false);
            for head in shown {
                assert!(text.contains(head), "no {head} within {columns}:\n{text}");
            }
            for what in ["n-eu", "tenant-17", "peer-8", "gone", "more apps", "more peers"] {
                assert!(text.contains(what), "no {what} within {columns}:\n{text}");
            }
            let requests = text.lines().skip_while(|line| !line.starts_with("AGO")).skip(1);
            assert!(requests.count() >= RECENT_LEAST, "{text}");
        }
    }

    #[test]
    fn a_request_is_told_by_what_it_came_to() {
        let told = |steps: &[&str], status: Option<u16>| {
            let steps: Vec<_> =
                steps.iter().map(|what| json!({"what": what, "why": what})).collect();
            let trace = json!({"role": "entry", "status": status, "sent_to": "peer-3",
                               "served_by": "peer-2", "steps": steps});
            let trace = Trace::deserialize(trace).unwrap();
            (words(&trace, decided(&trace)), answer(&trace))
        };
        for (steps, status, what, answered) in [
            (&["serve"][..], Some(200), "served", "200"),
            (&["wait", "hop"], Some(200), "to peer-3", "200"),
            (&["owner", "forward"], Some(200), "to peer-3", "200"),
            (&["wait", "cancelled"], None, "waited", "client left"),
            (&["refuse", "problem"], Some(503), "refused", "503"),
            (&["page", "problem"], Some(503), "shown a page", "503"),
            (&["hop", "broken", "problem"], Some(502), "problem", "502"),
            (&["problem"], Some(404), "problem", "404"),
            (&[], None, "", ""),
        ] {
            assert_eq!(told(steps, status), (what.into(), answered.into()), "{steps:?}");
        }
    }

    #[test]
    fn a_picture_is_never_larger_than_its_terminal() {
        for (columns, rows) in [(80, 24), (40, 10), (20, 5), (1, 1)] {
            for coloured in [false, true] {
                let mut watch = Watch::default();
                watch.hear(status(1000, 1), recent());
                let text = watch.draw(None, Some(Size { columns, rows }), coloured);
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
