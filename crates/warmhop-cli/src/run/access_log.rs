//! The access log: one line for each request of a client, written by a thread of its own.
//!
//! ```text
//! the thread that serves ── queue, bounded ──▶ the writer ──▶ a file, or standard error
//! ```
//!
//! No request waits for it: if the disk or the reader of standard error is too slow, lines are
//! lost, which is counted (`warmhop_access_log_dropped_total`) and logged as a warning. A file is
//! opened again on SIGUSR1, which a log rotator sends after renaming it.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::{info, warn};
use warmhop::access::{Access, AccessSink};

use crate::config::{AccessFormat, AccessTo, Log};
use crate::host::log;
use crate::host::stderr::Stderr;

/// How many requests may wait to be written.
const QUEUE_MAX: usize = 4096;
/// How long the last lines may take to be written when the peer ends.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(2);
/// The least time between two warnings about lost lines.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// The file is readable by the peer's user and group only.
const FILE_MODE: u32 = 0o640;

/// A message to the writer.
enum Message {
    Request(Box<Access>),
    /// Nothing to write: the writer should look at [`Asked`].
    Wake,
}

/// Requests to the writer other than lines.
#[derive(Default)]
struct Asked {
    reopen: AtomicBool,
    end: AtomicBool,
    dropped: AtomicU64,
}

/// The end of the access log that the mesh writes to. Clones share it.
#[derive(Clone)]
pub struct AccessLog {
    queue: SyncSender<Message>,
    asked: Arc<Asked>,
}

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessLog").finish_non_exhaustive()
    }
}

/// The end of it that belongs to the program.
#[derive(Debug)]
pub struct Writing {
    log: AccessLog,
    ended: oneshot::Receiver<()>,
}

impl AccessLog {
    /// Opens the target in `settings`, and starts to write there; `None` if they have none. Lines on
    /// `stderr` are JSON if those of the log there are, and no other form is set.
    ///
    /// # Errors
    /// Why the file cannot be opened, or the thread cannot be started.
    pub fn start(
        settings: &Log,
        stderr: &Stderr,
        log: log::Format,
    ) -> io::Result<Option<(Self, Writing)>> {
        let (sink, around) = match &settings.access {
            None => return Ok(None),
            Some(AccessTo::Stderr) => (Sink::Stderr(stderr.clone()), log),
            Some(AccessTo::File(path)) => (Sink::file(path)?, log::Format::Text),
        };
        let format = settings.access_format.unwrap_or(match around {
            log::Format::Text => AccessFormat::Text,
            log::Format::Json => AccessFormat::Json,
        });
        let (queue, requests) = sync_channel(QUEUE_MAX);
        let (signal, ended) = oneshot::channel();
        let asked = Arc::<Asked>::default();
        let writer = Writer {
            sink,
            form: Form { format, query: settings.access_query },
            asked: Arc::clone(&asked),
            buffered: 0,
            reported: 0,
            warned: None,
        };
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            writer.run(&requests);
            // The peer may be gone already.
            let _ = signal.send(());
        })?;
        let log = Self { queue, asked };
        Ok(Some((log.clone(), Writing { log, ended })))
    }

    fn wake(&self) {
        // If the queue is full, the writer is awake.
        let _ = self.queue.try_send(Message::Wake);
    }
}

impl AccessSink for AccessLog {
    fn record(&self, access: Access) {
        if self.queue.try_send(Message::Request(Box::new(access))).is_err() {
            self.asked.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn dropped(&self) -> u64 {
        self.asked.dropped.load(Ordering::Relaxed)
    }
}

impl Writing {
    /// Has the writer open the file again.
    pub fn reopen(&self) {
        self.log.asked.reopen.store(true, Ordering::Relaxed);
        self.log.wake();
    }

    /// Has the writer write the queued lines, and end.
    pub async fn end(self) {
        self.log.asked.end.store(true, Ordering::Relaxed);
        self.log.wake();
        if tokio::time::timeout(LAST_LINES_WITHIN, self.ended).await.is_err() {
            warn!("the last lines of the access log could not be written in time");
        }
    }
}

/// Where lines go.
enum Sink {
    Stderr(Stderr),
    File(PathBuf, BufWriter<File>),
}

impl Sink {
    fn file(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(path)?;
        Ok(Self::File(path.to_path_buf(), BufWriter::new(file)))
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::Stderr(stderr) => {
                stderr.push_patiently(line.as_bytes());
                Ok(())
            }
            Self::File(_, file) => file.write_all(line.as_bytes()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stderr(_) => Ok(()),
            Self::File(_, file) => file.flush(),
        }
    }
}

struct Writer {
    sink: Sink,
    form: Form,
    asked: Arc<Asked>,
    /// How many lines the buffer of a file may hold.
    buffered: u64,
    /// How many lost lines were in warnings so far.
    reported: u64,
    warned: Option<Instant>,
}

impl Writer {
    fn run(mut self, requests: &Receiver<Message>) {
        let mut next = requests.recv().ok();
        while let Some(message) = next {
            if let Message::Request(access) = message {
                self.put(&access);
            }
            if self.asked.reopen.swap(false, Ordering::Relaxed) {
                self.reopen();
            }
            self.report_losses();
            next = requests.try_recv().ok().or_else(|| {
                // No line is waiting: a program that follows the file should see these now.
                self.flush();
                if self.asked.end.load(Ordering::Relaxed) { None } else { requests.recv().ok() }
            });
        }
    }

    fn put(&mut self, access: &Access) {
        let written = self.sink.write(&self.form.line(access));
        match written {
            Ok(()) => self.buffered += 1,
            Err(error) => {
                self.asked.dropped.fetch_add(1, Ordering::Relaxed);
                self.fails(&error);
            }
        }
    }

    /// Writes the buffered lines. Lines that find no room stay in the buffer until there is room.
    fn flush(&mut self) {
        match self.sink.flush() {
            Ok(()) => self.buffered = 0,
            Err(error) => self.fails(&error),
        }
    }

    fn reopen(&mut self) {
        self.flush();
        let Sink::File(path, _) = &self.sink else { return };
        match Sink::file(path) {
            Ok(sink) => {
                info!(file = %path.display(), "the access log was opened again");
                self.sink = sink;
                // The former file has everything that it could take.
                let lost = std::mem::take(&mut self.buffered);
                self.asked.dropped.fetch_add(lost, Ordering::Relaxed);
            }
            Err(error) => warn!(
                file = %path.display(),
                %error,
                "the access log cannot be opened again and goes on in the former file; fix the \
                 cause and send SIGUSR1 again"
            ),
        }
    }

    fn fails(&mut self, error: &io::Error) {
        if self.may_warn() {
            self.reported = self.asked.dropped.load(Ordering::Relaxed);
            warn!(%error, "the access log cannot be written: lines that find no room are lost");
        }
    }

    fn report_losses(&mut self) {
        let lost = self.asked.dropped.load(Ordering::Relaxed);
        if lost > self.reported && self.may_warn() {
            warn!(
                lost = lost - self.reported,
                "lines of the access log were lost: they came faster than they could be written"
            );
            self.reported = lost;
        }
    }

    fn may_warn(&mut self) -> bool {
        let may = self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY);
        if may {
            self.warned = Some(Instant::now());
        }
        may
    }
}

/// The format of a line.
struct Form {
    format: AccessFormat,
    query: bool,
}

impl Form {
    /// One line, with its newline.
    fn line(&self, access: &Access) -> String {
        match self.format {
            AccessFormat::Text => self.text(access),
            AccessFormat::Json => format!("{}\n", self.json(access)),
        }
    }

    fn query<'a>(&self, access: &'a Access) -> Option<&'a str> {
        access.query.as_deref().filter(|_| self.query)
    }

    /// `TIME CLIENT APP WAY PEER HEAD/TOTAL STATUS BYTES END ID "REQUEST" "WHY" RECEIVED`, times in
    /// milliseconds, `-` for absent values.
    fn text(&self, access: &Access) -> String {
        let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
        let client = access.client.map(|addr| addr.to_string());
        let status = access.status.map(|status| status.to_string());
        let head = access.head.map(|head| format!("{:.3}", millis(head)));
        let mut request =
            format!("{} {}{}", access.method, access.host.as_deref().unwrap_or(""), access.path);
        if let Some(query) = self.query(access) {
            // Writing to a string cannot fail.
            let _ = write!(request, "?{query}");
        }
        let _ = write!(request, " {:?}", access.version);
        format!(
            "{} {} {} {} {} {}/{:.3} {} {} {} {} {} {} {}\n",
            rfc3339(access.at),
            or_none(client.as_deref()),
            or_none(access.app.as_deref()),
            access.way.unwrap_or("-"),
            or_none(access.peer.as_deref()),
            or_none(head.as_deref()),
            millis(access.total),
            or_none(status.as_deref()),
            access.bytes,
            access.end.label(),
            access.id,
            // A client may send quotes and control characters, which would break a reader of lines.
            json!(request),
            json!(access.why),
            access.received,
        )
    }

    fn json(&self, access: &Access) -> Value {
        let mut line = json!({
            "at": rfc3339(access.at),
            "client": access.client.map(|addr| addr.to_string()),
            "id": access.id,
            "method": access.method.as_str(),
            "host": access.host,
            "path": access.path,
            "protocol": format!("{:?}", access.version),
            "app": access.app,
            "way": access.way,
            "peer": access.peer,
            "status": access.status,
            "problem": access.problem,
            "why": access.why,
            "bytes": access.bytes,
            "received": access.received,
            "head_ms": access.head.map(millis),
            "total_ms": millis(access.total),
            "end": access.end.label(),
        });
        if let (true, Some(line)) = (self.query, line.as_object_mut()) {
            line.insert("query".into(), json!(access.query));
        }
        line
    }
}

/// In milliseconds, with microseconds as decimals.
fn millis(span: Duration) -> f64 {
    span.as_micros() as f64 / 1000.0
}

/// To the millisecond, in UTC.
fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or_default();
    let at = time::OffsetDateTime::from_unix_timestamp(seconds)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        since.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use http::{Method, Version};
    use warmhop::access::AccessEnd;

    use super::*;

    fn access() -> Access {
        let mut access = Access::new("abc", Method::GET, "/cart\"x");
        access.at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        access.client = Some("192.0.2.7:4711".parse().unwrap());
        access.host = Some("shop.localhost".into());
        access.query = Some("token=secret".into());
        access.version = Version::HTTP_11;
        access.app = Some("shop".into());
        access.way = Some("hop");
        access.peer = Some("peer-1".into());
        access.status = Some(200);
        access.why = "ready there".into();
        (access.bytes, access.received) = (12, 34);
        access.head = Some(Duration::from_micros(1500));
        access.total = Duration::from_micros(2250);
        access.end = AccessEnd::Complete;
        access
    }

    #[test]
    fn a_line_is_read_by_its_parts_and_tells_no_query_unless_that_is_asked_for() {
        let mut form = Form { format: AccessFormat::Text, query: false };
        let expected = "2023-11-14T22:13:20.123Z 192.0.2.7:4711 shop hop peer-1 1.500/2.250 200 12 \
             complete abc \"GET shop.localhost/cart\\\"x HTTP/1.1\" \"ready there\" 34\n";
        assert_eq!(form.line(&access()), expected);
        form.query = true;
        assert!(form.line(&access()).contains("x?token=secret HTTP/1.1\""));
        let mut gone = access();
        (gone.client, gone.app, gone.way, gone.peer) = (None, None, None, None);
        (gone.status, gone.head, gone.end) = (None, None, AccessEnd::ClientLeft);
        let line = form.line(&gone);
        assert!(line.contains("Z - - - - -/2.250 - 12 client-left abc "), "{line}");

        form = Form { format: AccessFormat::Json, query: false };
        let line = form.line(&access());
        let reported: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&reported["status"], &reported["head_ms"]), (&json!(200), &json!(1.5)));
        assert_eq!((&reported["bytes"], &reported["received"]), (&json!(12), &json!(34)));
        assert!(!line.contains("secret") && line.ends_with("}\n"), "{line}");
    }

    #[tokio::test]
    async fn a_stuck_writer_holds_nobody_up_and_lost_lines_are_counted() {
        let (queue, requests) = sync_channel(2);
        let log = AccessLog { queue, asked: Arc::default() };
        for _ in 0..5 {
            log.record(access());
        }
        assert_eq!(log.dropped(), 3);
        drop(requests);
        log.record(access());
        assert_eq!(log.dropped(), 4);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn on_a_full_disk_each_line_is_lost_once_and_none_that_is_kept_for_later() {
        let mut writer = Writer {
            sink: Sink::file(Path::new("/dev/full")).unwrap(),
            form: Form { format: AccessFormat::Text, query: false },
            asked: Arc::default(),
            buffered: 0,
            reported: 0,
            warned: None,
        };
        for lines in 1..=500 {
            writer.put(&access());
            writer.flush();
            let lost = writer.asked.dropped.load(Ordering::Relaxed);
            assert_eq!(lost + writer.buffered, lines);
        }
        assert!(writer.buffered > 0, "the buffer keeps some");
        writer.reopen();
        assert_eq!(writer.asked.dropped.load(Ordering::Relaxed), 500);
    }

    #[tokio::test]
    async fn a_file_that_was_renamed_is_begun_anew_when_that_is_asked_for() {
        let dir = std::env::temp_dir().join(format!("warmhop-access-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (file, old) = (dir.join("access.log"), dir.join("access.log.1"));
        let settings = Log { access: Some(AccessTo::File(file.clone())), ..Log::default() };
        let (log, writing) =
            AccessLog::start(&settings, &Stderr::start().unwrap(), log::Format::Json)
                .unwrap()
                .unwrap();
        log.record(access());
        let written = async |file: &Path| {
            for _ in 0..2000 {
                if std::fs::read_to_string(file).is_ok_and(|text| text.contains("abc")) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            panic!("nothing in {}", file.display());
        };
        written(&file).await;
        std::fs::rename(&file, &old).unwrap();
        writing.reopen();
        log.record(access());
        log.record(access());
        writing.end().await;
        let lines = |file| std::fs::read_to_string(file).unwrap().lines().count();
        assert_eq!(lines(&file) + lines(&old), 3);
        assert!(lines(&file) >= 1, "the next line went to the new file");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
