//! The output of the commands: plain tables, coloured only if the caller asks for it.
//!
//! Names and reasons come from another machine, and a terminal obeys control characters, so none is
//! printed.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use warmhop::status::{
    AppStatus, OtherPeer, PeerStatus, RequestTrace, SeedStatus, SessionStatus, Status,
};

use crate::cert::ends_soon;
pub use crate::operate::clean::{clean, printed};

use crate::operate::columns::{COLD_AFTER_A_FAILURE, Columns};

/// How many peers are named in one cell.
const NAMES_MAX: usize = 6;
/// The state here of an app that only other peers have.
pub(crate) const NOT_HERE: &str = "not here";

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

    peers(status, coloured, &mut text);
    text.push_str(&to_see_to(status));

    if app_names(status).is_empty() {
        text.push_str("\nno apps are configured on this peer\n");
        return text;
    }
    text.push('\n');
    apps(status, coloured, &mut text);
    text.push_str(&versions(status));
    errors(status, &mut text);
    text
}

fn peers(status: &Status, coloured: bool, text: &mut String) {
    let peer = &status.peer;
    let mut peers = Columns::new(&["PEER", "STATE", "ROUND TRIP", "ZONE", "FRONT DOOR", "MESH"]);
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
    peers.print(text, coloured);
}

fn apps(status: &Status, coloured: bool, text: &mut String) {
    let mut apps = Columns::new(&[
        "APP",
        "HERE",
        "ELSEWHERE",
        "STARTS",
        "START TAKES",
        "IN FLIGHT",
        "SESSIONS",
    ]);
    for name in app_names(status) {
        // The peers where it is more than cold.
        let elsewhere = elsewhere(&status.peers, |peer| {
            peer.apps.get(name).filter(|state| *state != "cold").cloned()
        });
        let Some(app) = status.apps.iter().find(|app| app.name == name) else {
            apps.row(vec![name.into(), NOT_HERE.into(), elsewhere]);
            continue;
        };
        apps.row(vec![
            app.name.clone(),
            app_state(app).into(),
            elsewhere,
            app.starts.to_string(),
            app.eta_ms.map(|ms| span(Duration::from_millis(ms))).unwrap_or_default(),
            app.in_flight.to_string(),
            app.session.clone(),
        ]);
    }
    apps.print(text, coloured);
}

/// Why apps failed.
fn errors(status: &Status, text: &mut String) {
    for app in &status.apps {
        let Some(error) = &app.error else { continue };
        let _ = writeln!(
            text,
            "\n{}: {}",
            clean(&app.name),
            printed(error.lines().next().unwrap_or(""))
        );
        for line in error.lines().skip(1) {
            let _ = writeln!(text, "    {}", printed(line));
        }
    }
}

/// Which versions run where, and where peers differ; empty if neither needs mention.
fn versions(status: &Status) -> String {
    let mut text = String::new();
    for app in &status.apps {
        let elsewhere = elsewhere(&status.peers, |peer| {
            peer.copies.get(&app.name).and_then(|copy| copy.version.clone())
        });
        if let Some(version) = &app.version {
            let _ = write!(text, "\n{} {}", clean(&app.name), clean(version));
            if let Some(next) = &app.next_version {
                let _ = write!(text, ", {} to come", clean(next));
            }
            if !elsewhere.is_empty() {
                let _ = write!(text, "; {}", clean(&elsewhere));
            }
            text.push('\n');
        }
        if !app.differs_on.is_empty() {
            let _ = writeln!(
                text,
                "\n{} is configured differently on {}: compare `warmhop check` there and here",
                clean(&app.name),
                clean(&app.differs_on.join(", "))
            );
        }
    }
    text
}

/// What `warmhop reload` prints.
#[must_use]
pub fn reloaded(answer: &serde_json::Value) -> String {
    let mut text = String::new();
    let names = |key: &str| {
        let all = answer[key].as_array().into_iter().flatten();
        all.filter_map(|name| name.as_str()).map(clean).collect::<Vec<_>>()
    };
    for (key, what) in [
        ("added", "added"),
        ("removed", "removed"),
        ("changed", "changed"),
        ("replaced", "replaced by a new copy once that is ready"),
        ("applied", "holds from now on"),
        ("needs_restart", "takes a restart of the peer"),
    ] {
        let names = names(key);
        if !names.is_empty() {
            let _ = writeln!(text, "{what}: {}", names.join(", "));
        }
    }
    if text.is_empty() {
        text.push_str("nothing has changed\n");
    }
    for warning in names("warnings") {
        let _ = writeln!(text, "{warning}");
    }
    text
}

/// The peers of the mesh, the one that was asked first.
#[must_use]
pub fn members(status: &Status, coloured: bool) -> String {
    let mut members = Columns::new(&["PEER", "STATE", "INCARNATION", "ROUND TRIP", "ZONE", "MESH"]);
    let peer = &status.peer;
    members.row(vec![
        format!("{} (asked)", peer.name),
        peer.state.clone(),
        peer.incarnation.clone(),
        String::new(),
        peer.zone.clone().unwrap_or_default(),
        peer.mesh.clone(),
    ]);
    for other in &status.peers {
        members.row(vec![
            other.name.clone(),
            peer_state(other).into(),
            other.incarnation.clone(),
            other.rtt_us.map(|us| span(Duration::from_micros(us))).unwrap_or_default(),
            other.zone.clone().unwrap_or_default(),
            other.mesh.clone(),
        ]);
    }
    let mut text = String::new();
    members.print(&mut text, coloured);
    text.push_str(&to_see_to(status));
    text
}

/// What needs attention: peers without a link, seeds that are not reached, and certificates that
/// end.
fn to_see_to(status: &Status) -> String {
    unlinked(&status.peers) + &seeds(&status.seeds) + &certificates(&status.peer, SystemTime::now())
}

/// Which certificates of the peer end soon; empty if none does.
fn certificates(peer: &PeerStatus, now: SystemTime) -> String {
    let identity = Some(peer.identity_not_after).filter(|ends| *ends > 0);
    let all = [
        ("the peer's certificate", identity, "renew it, for example with `warmhop cert renew`"),
        ("the front door's certificate", peer.front_door_not_after, "renew it where it was issued"),
    ];
    let mut text = String::new();
    for (what, ends, remedy) in all {
        let ends = ends.and_then(|ends| UNIX_EPOCH.checked_add(Duration::from_secs(ends)));
        if let Some(words) = ends.and_then(|ends| ends_soon(ends, now)) {
            let _ = writeln!(text, "\n{what} {words}: {remedy}");
        }
    }
    text
}

/// Which seeds and peers this one does not reach, and why; empty if there are none.
pub(crate) fn trouble(status: &Status) -> String {
    seeds(&status.seeds) + &unlinked(&status.peers)
}

/// The peers to which no link can be made though others hear them, and why; empty if there are none.
fn unlinked(peers: &[OtherPeer]) -> String {
    let why = |peer: &OtherPeer| {
        let why = peer.unlinked.as_deref()?;
        Some(format!("  {}: {}\n", clean(&peer.name), clean(why)))
    };
    let lines: Vec<_> = peers.iter().filter_map(why).collect();
    if lines.is_empty() {
        return String::new();
    }
    format!("\nalive, without a link: {} of {}\n{}", lines.len(), peers.len(), lines.concat())
}

/// How many seeds are reached, and why the others are not; empty if all are.
fn seeds(seeds: &[SeedStatus]) -> String {
    let missing: Vec<_> = seeds.iter().filter(|seed| !seed.reached).collect();
    if missing.is_empty() {
        return String::new();
    }
    let mut text = format!("\nseeds: {} of {} reached\n", seeds.len() - missing.len(), seeds.len());
    for seed in missing {
        let why = seed.error.as_deref().unwrap_or("not tried yet");
        let _ = writeln!(text, "  {}: {}", clean(&seed.seed), clean(why));
    }
    text
}

/// The apps of any peer: this peer's own, and then those of other living peers, by name.
pub(crate) fn app_names(status: &Status) -> Vec<&str> {
    let mut names: Vec<&str> = status.apps.iter().map(|app| app.name.as_str()).collect();
    let others = status.peers.iter().filter(|peer| peer.alive);
    let elsewhere: BTreeSet<&str> =
        others.flat_map(|peer| peer.apps.keys().map(String::as_str)).collect();
    names.extend(
        elsewhere.into_iter().filter(|name| status.apps.iter().all(|app| app.name != *name)),
    );
    names
}

/// An app's state here. A failed app is cold again once it may be tried again, and a reader should
/// not take that for one that nobody has asked for.
pub(crate) fn app_state(app: &AppStatus) -> &str {
    if app.state == "cold" && app.error.is_some() { COLD_AFTER_A_FAILURE } else { &app.state }
}

pub(crate) fn peer_state(peer: &OtherPeer) -> &str {
    match (peer.state.as_str(), peer.alive, peer.draining) {
        ("", false, _) => "gone",
        ("", true, true) => "draining",
        ("", true, false) => "alive",
        (state, ..) => state,
    }
}

/// The living peers for which `text_of` returns a text, with it.
pub(crate) fn elsewhere(
    peers: &[OtherPeer],
    text_of: impl Fn(&OtherPeer) -> Option<String>,
) -> String {
    let mut names: Vec<String> = peers
        .iter()
        .filter(|peer| peer.alive)
        .filter_map(|peer| Some(format!("{} {}", peer.name, text_of(peer)?)))
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
        "starting" => format!("the start of {name} is cancelled\n"),
        _ => format!("{name} stops once its requests have ended; see `warmhop status`\n"),
    }
}

/// What `warmhop session` prints.
#[must_use]
pub fn session(session: &SessionStatus) -> String {
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
pub fn trace(trace: &RequestTrace, coloured: bool) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "request    {}", clean(&trace.id));
    let role = match trace.role.as_str() {
        "entry" => "the client reached it here",
        "hop" => "another peer sent it here",
        other => other,
    };
    let _ = writeln!(text, "seen by    {} ({})", clean(&trace.peer), clean(role));
    let arrived = UNIX_EPOCH + Duration::from_millis(trace.at_unix_ms);
    let ago = SystemTime::now().duration_since(arrived).unwrap_or_default();
    let _ = writeln!(text, "asked for  {}, {} ago", clean(&trace.request), span(ago));
    if let Some(host) = &trace.host {
        let _ = writeln!(text, "host       {}", clean(host));
    }
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
    let cut_off = trace.steps.iter().find(|step| step.what == "cut-off").map(|step| {
        let after = span(Duration::from_micros(step.after_us));
        format!(", broken off after {after}: the client did not get all of it")
    });
    let cut_off = cut_off.unwrap_or_default();
    let _ = writeln!(text, "answer     {outcome}{}{after}{cut_off}\n", clean(&by));
    let mut steps = Columns::new(&["AFTER", "WHAT", "WHY"]);
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

/// A span in at most two units, as people write it.
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
    boom
";
        assert_eq!(status(&example(), false), expected);
    }

    #[test]
    fn each_trouble_with_others_is_shown_once_in_the_status_and_among_the_members() {
        let mut reported = example();
        reported.peers[0].state = "unlinked".into();
        reported.peers[0].unlinked = Some("nobody answers at 127.0.0.1:7002".into());
        reported.seeds = vec![SeedStatus::deserialize(json!({"seed": "far:1"})).unwrap()];
        for shown in [status(&reported, false), members(&reported, false)] {
            for line in [
                "alive, without a link: 1 of 2\n  peer-2: nobody answers at 127.0.0.1:7002\n",
                "seeds: 0 of 1 reached\n  far:1: not tried yet\n",
            ] {
                assert_eq!(shown.matches(line).count(), 1, "{shown}");
            }
            assert!(shown.contains("peer-2") && shown.contains("unlinked"), "{shown}");
        }
    }

    #[test]
    fn an_app_that_only_others_have_is_shown_too_and_one_that_failed_is_not_merely_cold() {
        let mut reported = example();
        reported.apps[1].state = "cold".into();
        reported.peers[0].apps.insert("atlas".into(), "ready".into());
        reported.peers[1].apps.insert("of-the-dead".into(), "ready".into());
        let shown = status(&reported, true);
        assert!(shown.contains("atlas  not here"), "{shown}");
        assert!(shown.contains("\x1b[38;5;1mcold, failed"), "{shown}");
        assert!(!shown.contains("of-the-dead"), "{shown}");
        reported.apps.clear();
        assert!(status(&reported, false).contains("atlas  not here  peer-2 ready"));
    }

    #[test]
    fn control_and_direction_characters_are_replaced() {
        let marks = "\u{1b}\u{202e}\u{200b}\u{2066}\u{ad}\u{feff}\u{2028}\u{e0041}";
        assert_eq!(clean(marks), "\u{fffd}".repeat(8));
        assert_eq!(clean("naïve Ω 書店 ✓"), "naïve Ω 書店 ✓");
    }

    #[test]
    fn the_output_of_an_app_is_shown_without_control_characters() {
        for (line, shown) in [
            ("\u{1b}[1;31merror\u{1b}[0m: no such file", "error: no such file"),
            ("\u{1b}]0;title\u{7}ready\u{1b}[2K", "ready"),
            ("a\tb", "a    b"),
            ("half a sequence \u{1b}[31", "half a sequence "),
            ("naïve Ω 書店 \u{202e}", "naïve Ω 書店 \u{fffd}"),
        ] {
            assert_eq!(printed(line), shown, "{line:?}");
        }
    }

    #[test]
    fn colour_changes_no_text_and_never_comes_from_the_peer() {
        let coloured = status(&example(), true);
        assert!(coloured.contains("\x1b[38;5;2mready"), "{coloured:?}");
        assert!(!coloured.contains("\x1b[31mboom"), "{coloured:?}");
        assert_eq!(strip_ansi_escapes::strip_str(&coloured), status(&example(), false));
    }

    #[test]
    fn a_trace_tells_who_was_considered_and_what_was_decided() {
        let text = trace(
            &RequestTrace::deserialize(json!({
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
            "seen by    peer-1 (the client reached it here)\n",
            "answer     200 from peer-2 after 3.2 ms\n",
            "40 µs  hop   peer-2 is ready\n",
            "  peer-2: ready, 2 in flight, as of 12.0 ms ago\n",
        ] {
            assert!(text.contains(line), "{line:?} in {text}");
        }
    }
}
