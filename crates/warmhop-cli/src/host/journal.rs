//! The newest lines of this peer's log, for clients of the admin listener: `warmhop logs`,
//! `monitor` and `debug`. It does not affect the log on standard error.
//!
//! Lines of the apps and those of the peer itself are kept separately, so that a talkative app
//! evicts only its own lines. Everything is bounded: lines by number and length, apps by number. A
//! follower that reads slowly misses lines and learns how many.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::broadcast;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// How many lines are kept of the peer itself, and of each app.
const LINES_MAX: usize = 1000;
/// The lines of how many apps are kept.
const APPS_MAX: usize = 256;
/// The longest message or field that is kept whole, in bytes.
const TEXT_BYTES_MAX: usize = 4096;
/// How many lines a follower may be behind.
const BEHIND_MAX: usize = 512;
/// The target of what apps print.
const APP_TARGET: &str = "warmhop::app";

/// One line of the log.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// Milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// `ERROR`, `WARN`, `INFO`, `DEBUG` or `TRACE`.
    pub level: &'static str,
    /// The part of the program that logged it.
    pub target: String,
    /// What happened, or what the app printed.
    pub message: String,
    /// The app that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// All its other fields.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl Line {
    /// Whether the app printed it.
    fn is_output(&self) -> bool {
        self.target == APP_TARGET
    }
}

/// A filter for lines.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Only this app's output, and lines about its starts and ends; absent: everything but the
    /// output of apps.
    pub app: Option<String>,
    /// Only lines of this level or a more severe one.
    pub level: Option<Level>,
}

impl Wanted {
    /// Whether `line` is wanted.
    #[must_use]
    pub fn takes(&self, line: &Line) -> bool {
        let of_level = self
            .level
            .is_none_or(|least| line.level.parse::<Level>().is_ok_and(|level| level <= least));
        let of_app = match &self.app {
            Some(app) => line.app.as_ref() == Some(app),
            None => !line.is_output(),
        };
        of_level && of_app
    }
}

/// The newest lines. Clones share them.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    kept: Mutex<Kept>,
    live: broadcast::Sender<Arc<Line>>,
}

#[derive(Default)]
struct Kept {
    own: VecDeque<Arc<Line>>,
    by_app: BTreeMap<String, VecDeque<Arc<Line>>>,
}

impl Default for Journal {
    fn default() -> Self {
        let live = broadcast::Sender::new(BEHIND_MAX);
        Self { inner: Arc::new(Inner { kept: Mutex::default(), live }) }
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

impl Journal {
    /// The newest `count` lines that match, oldest first, and a stream of those that follow.
    #[must_use]
    pub fn read(
        &self,
        wanted: &Wanted,
        count: usize,
    ) -> (Vec<Arc<Line>>, broadcast::Receiver<Arc<Line>>) {
        let kept = self.lock();
        // Subscribes before the lock is released, so that no line is missed or sent twice.
        let live = self.inner.live.subscribe();
        let mut lines: Vec<Arc<Line>> = match &wanted.app {
            // The peer's own lines include those about an app.
            Some(app) => kept.by_app.get(app).into_iter().flatten().chain(&kept.own),
            None => None.into_iter().flatten().chain(&kept.own),
        }
        .filter(|line| wanted.takes(line))
        .cloned()
        .collect();
        drop(kept);
        lines.sort_by_key(|line| line.at_unix_ms);
        let surplus = lines.len().saturating_sub(count);
        lines.drain(..surplus);
        (lines, live)
    }

    fn put(&self, line: Line) {
        let line = Arc::new(line);
        let mut kept = self.lock();
        let lines = match line.app.as_ref().filter(|_| line.is_output()) {
            Some(app) => {
                if !kept.by_app.contains_key(app) && kept.by_app.len() >= APPS_MAX {
                    return;
                }
                kept.by_app.entry(app.clone()).or_default()
            }
            None => &mut kept.own,
        };
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line.clone());
        // There may be no follower.
        let _ = self.inner.live.send(line);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let meta = event.metadata();
        self.put(Line {
            at_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            level: meta.level().as_str(),
            target: meta.target().to_owned(),
            message: fields.message,
            app: fields.app,
            fields: fields.others,
        });
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    app: Option<String>,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("app", Value::String(text)) => self.app = Some(text),
            (name, value) => {
                self.others.insert(name.to_owned(), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = Bounded(String::new());
        // Fails when the text is cut, which is intended.
        let _ = write!(text, "{value:?}");
        self.put(field, text.0.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let mut text = Bounded(String::new());
        let _ = text.write_str(value);
        self.put(field, text.0.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

/// Takes [`TEXT_BYTES_MAX`] bytes and no more.
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = TEXT_BYTES_MAX.saturating_sub(self.0.len());
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        let end = (0..=room).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        self.0.push_str(&text[..end]);
        self.0.push('…');
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use tracing::{info, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn messages(lines: &[Arc<Line>]) -> Vec<&str> {
        lines.iter().map(|line| line.message.as_str()).collect()
    }

    #[test]
    fn output_of_an_app_is_kept_apart_from_the_peers_own_lines() {
        let journal = Journal::default();
        let subscriber = tracing_subscriber::registry().with(journal.clone());
        tracing::subscriber::with_default(subscriber, || {
            info!(peer = "p", "joined");
            info!(app = %"shop", attempt = 1, "starting");
            for number in 0..LINES_MAX + 5 {
                info!(target: "warmhop::app", app = %"shop", stream = "stdout", "line {number}");
            }
            warn!("odd");
        });
        let (own, _) = journal.read(&Wanted::default(), 10);
        assert_eq!(messages(&own), ["joined", "starting", "odd"]);
        let shop = Wanted { app: Some("shop".into()), level: None };
        let (lines, _) = journal.read(&shop, usize::MAX);
        assert_eq!(lines.len(), LINES_MAX + 1, "its output, bounded, and its start");
        assert_eq!(messages(&lines[lines.len() - 1..]), [format!("line {}", LINES_MAX + 4)]);
        let grave = Wanted { app: None, level: Some(Level::WARN) };
        assert_eq!(messages(&journal.read(&grave, 10).0), ["odd"]);
        assert_eq!(journal.read(&shop, 2).0.len(), 2, "no more than was asked for");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let journal = Journal::default();
        let subscriber = tracing_subscriber::registry().with(journal.clone());
        tracing::subscriber::with_default(subscriber, || info!("{}", "ü".repeat(TEXT_BYTES_MAX)));
        let (lines, _) = journal.read(&Wanted::default(), 1);
        assert!(lines[0].message.ends_with('…') && lines[0].message.len() < TEXT_BYTES_MAX + 8);
    }
}
