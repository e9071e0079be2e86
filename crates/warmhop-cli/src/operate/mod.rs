//! The commands that ask a running peer through its admin listener: here those that wait for a drain or
//! a restart, show its log, or write the archive for a bug report.

pub(crate) mod clean;
pub mod client;
mod columns;
pub mod show;
pub mod watch;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use http::Method;
use serde_json::{Map, Value};
use warmhop::ids::PeerId;

use crate::failure::Failure;
use crate::operate::client::{Admin, encoded};
use crate::operate::show::{clean, printed};

/// How much of the log goes into the archive.
const ARCHIVED_LINES: usize = 2000;

/// How often a draining peer is asked about its progress.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Has the peer drain, and waits until it has drained; returns its status then.
///
/// # Errors
/// It cannot be asked, has not drained in time, or was put back into service.
pub async fn drain(admin: &Admin, within: Option<Duration>) -> Result<Value, Failure> {
    let failed = |error| Failure::failed(error);
    admin.ask(Method::POST, "/v1/drain", "/action").await.map_err(failed)?;
    let deadline = within.map(|within| tokio::time::Instant::now() + within);
    // The drain may begin a moment after the answer.
    let mut has_begun = false;
    loop {
        let status = admin.status().await.map_err(failed)?;
        let state = status["peer"]["state"].as_str().unwrap_or_default();
        match state {
            "drained" => return Ok(status),
            "serving" if has_begun => {
                return Err(Failure::failed("the drain was called off: the peer takes traffic"));
            }
            _ => has_begun |= state == "draining",
        }
        if deadline.is_some_and(|deadline| tokio::time::Instant::now() >= deadline) {
            let apps = status["apps"].as_array().into_iter().flatten();
            let flying: u64 = apps.filter_map(|app| app["in_flight"].as_u64()).sum();
            let owned = status["sessions"]["owned"].as_u64().unwrap_or_default();
            return Err(Failure::failed(format!(
                "not drained within {:?}: requests in flight: {flying}, sessions owned: {owned}; the \
                 peer goes on draining, and `warmhop undrain` calls it off",
                within.unwrap_or_default()
            )));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Starts a new copy of the app beside the one that serves, and waits until it serves.
///
/// # Errors
/// It cannot be asked, or the new copy did not become ready: the old one continues to serve.
pub async fn restart(admin: &Admin, name: &str, path: &str) -> Result<Value, Failure> {
    let failed = |error| Failure::failed(error);
    let answer = admin.ask(Method::POST, path, "/attempt").await.map_err(failed)?;
    let attempt = answer["attempt"].as_u64().unwrap_or_default();
    loop {
        let status = admin.status().await.map_err(failed)?;
        match warmhop::admin::outcome(&status, name, attempt) {
            Some(Ok(())) => return Ok(answer),
            Some(Err(why)) => {
                let what = format!("the new copy of {name} did not become ready: {why}");
                return Err(Failure::failed(what));
            }
            None => tokio::time::sleep(ASK_EVERY).await,
        }
    }
}

/// One step of a restart over the whole mesh, as text, and whether it failed.
#[must_use]
pub fn step(json: &str) -> (String, bool) {
    let step: Value = serde_json::from_str(json).unwrap_or_default();
    let text = |key: &str| clean(step[key].as_str().unwrap_or_default());
    match step["state"].as_str() {
        Some("starting") => (format!("{}: a new copy starts\n", text("peer")), false),
        Some("serves") => (format!("{}: it serves\n", text("peer")), false),
        Some("failed") => {
            // The app's last lines of output follow the reason.
            let error = step["error"].as_str().unwrap_or_default();
            let (reason, output) = error.split_once('\n').unwrap_or((error, ""));
            let (peer, reason) = (text("peer"), clean(reason));
            let mut said = format!(
                "{peer}: {reason}; the old copy keeps serving, and no other peer was asked\n"
            );
            for line in output.lines() {
                said.push_str(&printed(line));
                said.push('\n');
            }
            (said, true)
        }
        _ => (String::new(), false),
    }
}

/// Which lines of a log to ask for.
#[derive(Debug, Clone)]
pub struct Question {
    /// Lines about this app; absent: those of the peer itself.
    pub app: Option<String>,
    /// Lines of this level or a more severe one.
    pub level: Option<String>,
    /// Also lines that are yet to come.
    pub follow: bool,
}

impl Question {
    /// The path to ask the admin listener for: the log of `peer`, or of the peer that is asked.
    #[must_use]
    pub fn path(&self, peer: Option<&PeerId>, lines: usize) -> String {
        let mut path = through(peer, "/v1/logs");
        path.push_str(&format!("?lines={lines}&follow={}", self.follow));
        for (key, value) in [("app", &self.app), ("level", &self.level)] {
            if let Some(value) = value {
                path.push_str(&format!("&{key}={}", encoded(value).replace('/', "%2F")));
            }
        }
        path
    }
}

/// `path` of `peer`, through the peer that is asked.
fn through(peer: Option<&PeerId>, path: &str) -> String {
    match peer {
        Some(peer) => format!("/v1/peers/{peer}{path}"),
        None => path.to_owned(),
    }
}

/// One line of the log for people: the time of day in UTC, the level unless an app printed it, and
/// what happened.
#[must_use]
pub fn line(json: &str) -> String {
    let Ok(Value::Object(mut line)) = serde_json::from_str::<Value>(json) else {
        return format!("{}\n", clean(json));
    };
    let text = |line: &mut Map<String, Value>, key: &str| match line.remove(key) {
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let at = line.remove("at_unix_ms").and_then(|at| at.as_u64()).unwrap_or_default();
    let (level, target) = (text(&mut line, "level"), text(&mut line, "target"));
    let (message, app) = (text(&mut line, "message"), text(&mut line, "app"));
    let time = time_of_day(at);
    if target == "warmhop::app" {
        return format!("{time} {}\n", printed(&message));
    }
    let mut shown = format!("{time} {level:<5} {}", clean(&message));
    if !app.is_empty() {
        shown.push_str(&format!(" app={}", clean(&app)));
    }
    for (key, value) in line {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        shown.push_str(&format!(" {}={}", clean(&key), clean(&value)));
    }
    shown.push('\n');
    shown
}

/// `HH:MM:SS.mmm` in UTC.
fn time_of_day(at_unix_ms: u64) -> String {
    let (seconds, millis) = (at_unix_ms / 1000, at_unix_ms % 1000);
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{millis:03}", seconds % 60)
}

/// Writes the archive and returns its path. A part that cannot be fetched is replaced by the
/// reason.
///
/// # Errors
/// If the peer does not answer at all, or the archive cannot be written.
pub async fn archive(admin: &Admin, out: Option<PathBuf>) -> Result<String, Failure> {
    let status = admin.status().await.map_err(Failure::failed)?;
    let name = status["peer"]["name"].as_str().unwrap_or("peer").to_owned();
    let file = out.unwrap_or_else(|| PathBuf::from(format!("warmhop-debug-{name}.tar.gz")));
    let mut parts = vec![("status.json".to_owned(), format!("{status:#}\n"))];
    let requests = admin.ask(Method::GET, "/v1/requests?limit=200", "/requests").await;
    let requests =
        requests.map_or_else(|error| error.to_string(), |answer| format!("{answer:#}\n"));
    parts.push(("requests.json".into(), requests));
    for (part, path) in [
        ("metrics.txt", "/metrics".to_owned()),
        ("warmhop.toml", "/v1/config".to_owned()),
        ("log.ndjson", format!("/v1/logs?lines={ARCHIVED_LINES}")),
    ] {
        let answer = admin.text(&path).await.unwrap_or_else(|error| format!("{error}\n"));
        parts.push((part.into(), answer));
    }
    let others = status["peers"].as_array().into_iter().flatten();
    for other in others.filter_map(|peer| peer["name"].as_str()?.parse::<PeerId>().ok()) {
        let path = through(Some(&other), "/v1/status");
        let answer = admin.text(&path).await.unwrap_or_else(|error| format!("{error}\n"));
        parts.push((format!("peers/{other}.json"), answer));
    }
    write(&file, &name, &parts)
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", file.display())))?;
    Ok(format!(
        "wrote {}: status, configuration without secrets, metrics, newest requests and log\n\
         Look through it before you give it away: paths of requests and what apps printed are in it.\n",
        file.display()
    ))
}

fn write(file: &std::path::Path, name: &str, parts: &[(String, String)]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let options = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)?;
    let mut archive = tar::Builder::new(GzEncoder::new(options, Compression::default()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for (part, text) in parts {
        let mut head = tar::Header::new_gnu();
        head.set_size(text.len() as u64);
        head.set_mode(0o600);
        head.set_mtime(now);
        archive.append_data(&mut head, format!("warmhop-debug-{name}/{part}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_shown_for_people() {
        let shown = line(
            r#"{"at_unix_ms":3723004,"level":"WARN","target":"warmhop::net","message":"odd","app":"shop","n":3}"#,
        );
        assert_eq!(shown, "01:02:03.004 WARN  odd app=shop n=3\n");
        let printed = line(
            r#"{"at_unix_ms":0,"level":"INFO","target":"warmhop::app","message":"hello \u001b[2J","app":"shop"}"#,
        );
        assert_eq!(printed, "00:00:00.000 hello \n");
    }

    #[test]
    fn a_step_that_failed_is_followed_by_what_the_app_printed() {
        let (said, failed) = step(
            r#"{"state":"failed","peer":"peer-2","error":"it exited with status 1\n  no \u001b[1mtable\n  bye"}"#,
        );
        assert!(failed);
        assert_eq!(
            said,
            "peer-2: it exited with status 1; the old copy keeps serving, and no other peer was asked\n  \
             no table\n  bye\n"
        );
    }

    #[test]
    fn the_question_is_part_of_the_path() {
        let question =
            Question { app: Some("a/b".into()), level: Some("warn".into()), follow: true };
        let peer = PeerId::new("peer-2").expect("a name");
        let path = question.path(Some(&peer), 5);
        assert_eq!(path, "/v1/peers/peer-2/v1/logs?lines=5&follow=true&app=a%2Fb&level=warn");
    }
}
