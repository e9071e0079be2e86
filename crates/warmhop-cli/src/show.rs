//! What the commands print: plain tables, coloured only where the caller says so.
//!
//! Names and reasons come from another machine, and a terminal obeys control characters, so
//! none is passed on.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::client::{OtherPeer, Session, Status, Trace};

/// How many peers are named in one cell.
const NAMES_MAX: usize = 6;

/// The table of `warmhop status`.
#[must_use]
pub fn status(status: &Status, coloured: bool) -> String {
    let peer = &status.peer;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} is {}, up {}, version {}; owns {}, holds {}\n",
        clean(&peer.name),
        clean(&peer.state),
        span(Duration::from_millis(peer.uptime_ms)),
        clean(&peer.version),
        counted(status.sessions.owned, "session", "sessions"),
        counted(status.sessions.copies, "copy", "copies"),
    );

    let mut peers = Table::new(&["PEER", "STATE", "ROUND TRIP", "ZONE", "FRONT DOOR", "MESH"]);
    peers.row(vec![
        format!("{} (this one)", peer.name),
        peer.state.clone(),
        String::new(),
        peer.zone.clone().unwrap_or_default(),
        peer.http.join(" "),
        peer.mesh.clone(),
    ]);
    for other in &status.peers {
        peers.row(vec![
            other.name.clone(),
            peer_state(other).into(),
            other.rtt_us.map(|us| span(Duration::from_micros(us))).unwrap_or_default(),
            other.zone.clone().unwrap_or_default(),
            other.http.clone().unwrap_or_default(),
            other.mesh.clone(),
        ]);
    }
    peers.print(&mut text, coloured);

    if status.apps.is_empty() {
        text.push_str("\nno apps are configured on this peer\n");
        return text;
    }
    text.push('\n');
    let mut apps =
        Table::new(&["APP", "HERE", "ELSEWHERE", "STARTS", "START TAKES", "IN FLIGHT", "SESSIONS"]);
    for app in &status.apps {
        apps.row(vec![
            app.name.clone(),
            app.state.clone(),
            // Where it is more than cold.
            elsewhere(&status.peers, |peer| {
                peer.apps.get(&app.name).filter(|state| *state != "cold").cloned()
            }),
            app.starts.to_string(),
            app.eta_ms.map(|ms| span(Duration::from_millis(ms))).unwrap_or_default(),
            app.in_flight.to_string(),
            app.session.clone(),
        ]);
    }
    apps.print(&mut text, coloured);
    for app in &status.apps {
        let Some(error) = &app.error else { continue };
        let _ =
            writeln!(text, "\n{}: {}", clean(&app.name), clean(error.lines().next().unwrap_or("")));
        for line in error.lines().skip(1) {
            let _ = writeln!(text, "    {}", clean(line));
        }
    }
    text
}

pub(crate) fn peer_state(peer: &OtherPeer) -> &str {
    match (peer.state.as_str(), peer.alive, peer.draining) {
        ("", false, _) => "gone",
        ("", true, true) => "draining",
        ("", true, false) => "alive",
        (state, ..) => state,
    }
}

/// The living peers that `told` tells something of, with what.
pub(crate) fn elsewhere(
    peers: &[OtherPeer],
    told: impl Fn(&OtherPeer) -> Option<String>,
) -> String {
    let mut names: Vec<String> = peers
        .iter()
        .filter(|peer| peer.alive)
        .filter_map(|peer| Some(format!("{} {}", peer.name, told(peer)?)))
        .collect();
    let more = names.len().saturating_sub(NAMES_MAX);
    names.truncate(NAMES_MAX);
    if more > 0 {
        names.push(format!("{more} more"));
    }
    names.join(", ")
}

/// What `warmhop app start` prints for an app that was in the state `was`.
#[must_use]
pub fn started(name: &str, was: &str) -> String {
    match was {
        "ready" => format!("{name} is ready already\n"),
        "stopping" => format!("{name} starts again once it has stopped; see `warmhop status`\n"),
        _ => format!("{name} is starting; see `warmhop status`\n"),
    }
}

/// What `warmhop app stop` prints for an app that was in the state `was`.
#[must_use]
pub fn stopped(name: &str, was: &str) -> String {
    match was {
        "cold" => format!("{name} does not run there\n"),
        "failed" => {
            format!("{name} does not run there, and is not tried again until it is wanted\n")
        }
        "starting" => format!("the start of {name} is given up\n"),
        _ => format!("{name} stops once its requests have ended; see `warmhop status`\n"),
    }
}

/// What `warmhop session` prints.
#[must_use]
pub fn session(session: &Session) -> String {
    let mut text = String::new();
    let owner = session.owner.as_deref().unwrap_or("not known here");
    let _ = writeln!(text, "session  {}", clean(&session.key));
    let _ = writeln!(text, "owner    {}", clean(owner));
    let _ = writeln!(text, "copies   {}", clean(&session.members.join(", ")));
    let _ = writeln!(text, "version  {} (ballot {})", session.version, clean(&session.ballot));
    text
}

/// What `warmhop why` prints.
#[must_use]
pub fn trace(trace: &Trace, coloured: bool) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "request    {}", clean(&trace.id));
    let role = match trace.role.as_str() {
        "entry" => "the client reached it here",
        "hop" => "another peer sent it here",
        other => other,
    };
    let _ = writeln!(text, "told by    {} ({})", clean(&trace.peer), clean(role));
    let arrived = UNIX_EPOCH + Duration::from_millis(trace.at_unix_ms);
    let ago = SystemTime::now().duration_since(arrived).unwrap_or_default();
    let _ = writeln!(text, "asked for  {}, {} ago", clean(&trace.request), span(ago));
    let _ = writeln!(text, "app        {}", clean(trace.app.as_deref().unwrap_or("none matched")));
    if let Some(session) = &trace.session {
        let _ = writeln!(text, "session    {}", clean(session));
    }
    let outcome = match trace.status {
        Some(status) => status.to_string(),
        None => "not answered yet".into(),
    };
    let by = trace.served_by.as_ref().map(|peer| format!(" from {peer}")).unwrap_or_default();
    let after = trace.head_ms.map(|ms| format!(" after {}", millis(ms))).unwrap_or_default();
    let _ = writeln!(text, "answer     {outcome}{}{after}\n", clean(&by));
    let mut steps = Table::new(&["AFTER", "WHAT", "WHY"]);
    for step in &trace.steps {
        let after = span(Duration::from_micros(step.after_us));
        steps.row(vec![after, step.what.clone(), step.why.clone()]);
        for candidate in &step.candidates {
            let believed = format!(
                "  {}: {}, {} in flight, as of {} ago",
                candidate.peer,
                candidate.state,
                candidate.in_flight,
                span(Duration::from_millis(candidate.age_ms)),
            );
            steps.row(vec![String::new(), String::new(), believed]);
        }
    }
    steps.print(&mut text, coloured);
    text
}

fn millis(ms: f64) -> String {
    span(Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default())
}

pub(crate) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// A span in at most two units, as people say it.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 if span < Duration::from_millis(1) => format!("{} µs", span.as_micros()),
        0 if span < Duration::from_millis(100) => format!("{:.1} ms", span.as_secs_f64() * 1e3),
        0 => format!("{} ms", span.as_millis()),
        1..60 => format!("{:.1} s", span.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Without anything that a terminal would obey.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// At most `columns` characters of a text without colours.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let kept = text.chars().take(columns.saturating_sub(1));
    kept.chain((columns > 0).then_some('…')).collect()
}

pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(ToString::to_string).collect()] }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| clean(cell)).collect());
    }

    /// Columns two spaces apart, as wide as their widest cell.
    fn print(&self, text: &mut String, coloured: bool) {
        self.print_within(text, coloured, None);
    }

    /// The same, with lines of at most `columns` characters.
    pub(crate) fn print_within(&self, text: &mut String, coloured: bool, columns: Option<usize>) {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for (at, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            let mut left = columns.unwrap_or(usize::MAX);
            for (cell, width) in row.iter().zip(&widths) {
                let padded = format!("{:<1$}", cut(cell, left), (width + 2).min(left));
                left -= padded.chars().count();
                let colour = if at == 0 { Some("1") } else { colour_of(cell) };
                match colour.filter(|_| coloured) {
                    Some(code) => {
                        let _ = write!(line, "\x1b[{code}m{padded}\x1b[0m");
                    }
                    None => line.push_str(&padded),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
}

/// The colour of a cell that is a state.
fn colour_of(cell: &str) -> Option<&'static str> {
    match cell {
        "ready" | "serving" | "alive" => Some("32"),
        "starting" | "stopping" | "draining" | "wait" => Some("33"),
        "failed" | "gone" | "refuse" => Some("31"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    fn example() -> Status {
        Status::deserialize(json!({
            "peer": {"name": "peer-1", "state": "serving", "version": "0.1.0", "uptime_ms": 65_000,
                     "http": ["127.0.0.1:8081"], "mesh": "127.0.0.1:7001", "zone": null, "new": 1},
            "apps": [
                {"name": "shop", "state": "ready", "starts": 1, "eta_ms": 1200, "in_flight": 3,
                 "error": null, "session": "portable"},
                {"name": "blog", "state": "failed", "starts": 2,
                 "error": "it exited with status 3\n\u{1b}[31mboom"}
            ],
            "peers": [
                {"name": "peer-2", "alive": true, "rtt_us": 300, "apps": {"shop": "starting", "blog": "cold"}},
                {"name": "peer-3", "alive": false, "apps": {"shop": "ready"}}
            ],
            "sessions": {"owned": 1, "copies": 30}
        }))
        .unwrap()
    }

    #[test]
    fn a_status_is_two_aligned_tables_and_the_reasons_of_failures() {
        let expected = "\
peer-1 is serving, up 1 min 5 s, version 0.1.0; owns 1 session, holds 30 copies

PEER               STATE    ROUND TRIP  ZONE  FRONT DOOR      MESH
peer-1 (this one)  serving                    127.0.0.1:8081  127.0.0.1:7001
peer-2             alive    300 µs
peer-3             gone

APP   HERE    ELSEWHERE        STARTS  START TAKES  IN FLIGHT  SESSIONS
shop  ready   peer-2 starting  1       1.2 s        3          portable
blog  failed                   2                    0

blog: it exited with status 3
    \u{fffd}[31mboom
";
        assert_eq!(status(&example(), false), expected);
    }

    #[test]
    fn colour_changes_no_text_and_never_comes_from_the_peer() {
        let coloured = status(&example(), true);
        assert!(coloured.contains("\x1b[32mready"), "{coloured:?}");
        assert!(!coloured.contains("\x1b[31mboom"), "{coloured:?}");
        let mut plain = coloured;
        for code in ["0", "1", "31", "32", "33"] {
            plain = plain.replace(&format!("\x1b[{code}m"), "");
        }
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&plain), words(&status(&example(), false)));
    }

    #[test]
    fn a_trace_tells_who_was_considered_and_what_was_decided() {
        let told = trace(
            &Trace::deserialize(json!({
                "id": "r-1", "peer": "peer-1", "role": "entry", "app": "shop", "request": "GET /x",
                "at_unix_ms": 0, "status": 200, "served_by": "peer-2", "session": null, "head_ms": 3.25,
                "steps": [{"after_us": 40, "what": "hop", "why": "peer-2 is ready",
                           "candidates": [{"peer": "peer-2", "state": "ready", "in_flight": 2, "age_ms": 12}]}]
            }))
            .unwrap(),
            false,
        );
        for line in [
            "request    r-1\n",
            "told by    peer-1 (the client reached it here)\n",
            "answer     200 from peer-2 after 3.2 ms\n",
            "40 µs  hop   peer-2 is ready\n",
            "  peer-2: ready, 2 in flight, as of 12.0 ms ago\n",
        ] {
            assert!(told.contains(line), "{line:?} in {told}");
        }
    }
}
