//! Standard error, written by a thread of its own.
//!
//! ```text
//! the threads that log ── lines, bounded ──▶ the writer ──▶ standard error
//! ```
//!
//! The reader of standard error may be slow or hang, as a collector behind a full pipe does. A thread
//! that wrote there itself would stop with it, together with the clients that it serves. So nobody
//! waits: lines that find no room are lost, which is counted and logged as a warning.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

/// How many bytes of lines may wait to be written.
const BYTES_MAX: usize = 4 << 20;
/// Of these, how many the access log may take: the others are left to the log itself.
const ACCESS_BYTES_MAX: usize = BYTES_MAX / 2;
/// The least time between two warnings about lost lines.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// How long the last lines may take to be written when the peer ends.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(2);

/// Takes lines for standard error. Clones share it.
#[derive(Debug, Clone)]
pub struct Stderr(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<Lines>,
    came: Condvar,
    written: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    waiting: VecDeque<Box<[u8]>>,
    /// Their bytes, and those of the line that is being written.
    bytes: usize,
    lost: u64,
}

/// Waits for the last lines when it is dropped.
#[derive(Debug)]
pub struct LastLines(Stderr);

impl Drop for LastLines {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl Stderr {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start() -> io::Result<Self> {
        Self::over(io::stderr())
    }

    fn over(mut to: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let writer = Arc::clone(&shared);
        std::thread::Builder::new().name("log".into()).spawn(move || writer.write_to(&mut to))?;
        Ok(Self(shared))
    }

    /// Has the end of the program wait for the lines that are left, for a bounded time.
    #[must_use]
    pub fn last_lines(&self) -> LastLines {
        LastLines(self.clone())
    }

    /// Takes a line, or loses it if there is no room.
    fn push(&self, line: &[u8]) {
        self.0.push(line, &mut self.0.lines());
    }

    /// Takes a line of the access log, whose thread waits for room.
    pub(crate) fn push_patiently(&self, line: &[u8]) {
        let mut lines = self.0.lines();
        while lines.bytes > 0 && lines.bytes + line.len() > ACCESS_BYTES_MAX {
            lines = self.0.written.wait(lines).unwrap_or_else(PoisonError::into_inner);
        }
        self.0.push(line, &mut lines);
    }

    fn finish(&self) {
        let until = Instant::now() + LAST_LINES_WITHIN;
        let mut lines = self.0.lines();
        while lines.bytes > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.0.written.wait_timeout(lines, left);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8], lines: &mut Lines) {
        if lines.bytes > 0 && lines.bytes + line.len() > BYTES_MAX {
            lines.lost += 1;
            return;
        }
        lines.bytes += line.len();
        lines.waiting.push_back(line.into());
        self.came.notify_one();
    }

    /// Writes each line with one call, so that lines of other processes do not come in between.
    fn write_to(&self, to: &mut dyn Write) {
        let (mut reported, mut warned): (u64, Option<Instant>) = (0, None);
        loop {
            let mut lines = self.lines();
            let line = loop {
                match lines.waiting.pop_front() {
                    Some(line) => break line,
                    None => lines = self.came.wait(lines).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(lines);
            // A full disk, or a reader that is gone, costs lines and nothing else.
            let _ = to.write_all(&line);
            let lost = {
                let mut lines = self.lines();
                lines.bytes -= line.len();
                lines.lost
            };
            self.written.notify_all();
            if lost > reported && warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                let lines = lost - reported;
                (reported, warned) = (lost, Some(Instant::now()));
                warn!(
                    lost = lines,
                    "lines of the log were lost: the reader of standard error was too slow, or hung"
                );
            }
        }
    }
}

/// One line of the log on its way.
#[derive(Debug)]
pub struct Line<'a>(&'a Stderr);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// A reader that takes a line only on demand, and passes it on.
    struct Reader {
        takes: Receiver<()>,
        took: SyncSender<Vec<u8>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Nobody demands any more: it no longer hangs.
            let _ = self.takes.recv();
            let _ = self.took.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_hangs_stops_nobody_and_costs_the_lines_that_find_no_room() {
        let ((take, takes), (took, taken)) = (sync_channel(1), sync_channel(1));
        let stderr = Stderr::over(Reader { takes, took }).unwrap();
        let line = [b'x'; 1024];
        // Nothing is taken: each of these would stop its thread if it were written at once.
        for _ in 0..2 * BYTES_MAX / line.len() {
            stderr.make_writer().write_all(&line).unwrap();
        }
        let (waits, lost) = {
            let lines = stderr.0.lines();
            (lines.bytes, lines.lost)
        };
        assert_eq!((waits, lost as usize), (BYTES_MAX, BYTES_MAX / line.len()));
        // From here on everything is taken, in order.
        drop(take);
        for _ in 0..BYTES_MAX / line.len() {
            assert_eq!(taken.recv().unwrap(), line);
        }
        stderr.make_writer().write_all(b"last").unwrap();
        assert_eq!(taken.recv().unwrap(), b"last");
        while stderr.0.lines().bytes > 0 {
            std::thread::yield_now();
        }
        drop(stderr.last_lines());
    }

    #[test]
    fn the_access_log_waits_for_room_and_leaves_some_to_the_log() {
        let ((take, takes), (took, taken)) = (sync_channel(1), sync_channel(1));
        let stderr = Stderr::over(Reader { takes, took }).unwrap();
        let patient = stderr.clone();
        let lines = 2 * BYTES_MAX / 1024;
        let writing = std::thread::spawn(move || {
            for _ in 0..lines {
                patient.push_patiently(&[b'a'; 1024]);
            }
        });
        while stderr.0.lines().bytes < ACCESS_BYTES_MAX {
            std::thread::yield_now();
        }
        stderr.make_writer().write_all(b"log").unwrap();
        assert_eq!(stderr.0.lines().lost, 0);
        drop(take);
        let all: Vec<_> = (0..=lines).map(|_| taken.recv().unwrap()).collect();
        assert_eq!(all.iter().filter(|line| **line == b"log").count(), 1);
        writing.join().unwrap();
        assert_eq!(stderr.0.lines().lost, 0, "none of the access log is lost here");
    }
}
