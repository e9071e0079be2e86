//! The scripts that clients of a peer have sent.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Semaphore;

/// How many scripts a peer remembers; the one that was used least lately is forgotten for a new one.
const LOADED_MAX: usize = 4096;
/// How many bytes the texts of these scripts take at most.
const LOADED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many runs after a long run of a script are not tried on the client's thread.
const LONG_RUNS: u32 = 100;
/// How many scripts run at once on other threads; further ones wait.
const AT_ONCE: usize = 8;

/// The longest reply, in bytes, of a script that runs beside other commands of its client.
pub(super) const CONFINED_REPLY_BYTES_MAX: usize = 4096;

/// The bounds of a script that runs beside commands of its client about other keys: it uses only keys
/// that live where those that it names do, publishes nothing and has a short reply. A script that
/// exceeds them has done nothing, and runs again when it is its turn to be answered.
#[derive(Default)]
pub(super) struct Confined {
    ran: AtomicBool,
    stopped: AtomicBool,
    /// All before it have been answered: it has to stay with its keys alone.
    is_first: bool,
}

impl Confined {
    /// The bounds of a new run of a script that was stopped at these; none if nothing came behind it.
    pub(super) fn anew(&self) -> Option<Self> {
        self.ran().then(|| Self { ran: true.into(), stopped: false.into(), is_first: true })
    }

    /// Whether it may publish something, and answer at any length.
    pub(super) fn is_first(&self) -> bool {
        self.is_first
    }

    /// Whether it has run within its bounds. It may have to run anew if another change was faster.
    pub(super) fn ran(&self) -> bool {
        self.ran.load(Ordering::Relaxed)
    }

    pub(super) fn has_run(&self) {
        self.ran.store(true, Ordering::Relaxed);
    }

    /// Whether it was stopped at its bounds, with nothing done.
    pub(super) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// The scripts that clients of this peer have sent, by their digests.
pub(super) struct Scripts {
    known: Mutex<Known>,
    /// Permits for runs on other threads.
    pub(super) room: Semaphore,
}

/// A script that is known.
pub(super) struct Script {
    sha: Arc<str>,
    text: Bytes,
    used: u64,
    /// How many more runs of it are not to be tried as brief ones.
    long_runs: u32,
}

#[derive(Default)]
pub(super) struct Known {
    pub(super) texts: HashMap<Arc<str>, Script>,
    /// The digests of those texts: to look one up takes a fraction of the time.
    digests: HashMap<Bytes, Arc<str>>,
    /// Digests in the order of their use, with the time of use; entries of scripts used again since
    /// are ignored.
    used: VecDeque<(u64, Arc<str>)>,
    clock: u64,
    bytes: usize,
}

impl Default for Scripts {
    fn default() -> Self {
        Self { known: Mutex::default(), room: Semaphore::new(AT_ONCE) }
    }
}

impl Known {
    /// The text of a script that is about to run, and whether it is known to take long.
    pub(super) fn touch(&mut self, sha: &str) -> Option<(Bytes, bool)> {
        self.clock += 1;
        let script = self.texts.get_mut(sha)?;
        script.used = self.clock;
        let took_long = script.long_runs > 0;
        script.long_runs = script.long_runs.saturating_sub(1);
        let text = script.text.clone();
        self.used.push_back((self.clock, Arc::clone(&script.sha)));
        if self.used.len() > 2 * LOADED_MAX {
            let texts = &self.texts;
            self.used.retain(|(at, sha)| texts.get(sha).is_some_and(|it| it.used == *at));
        }
        Some((text, took_long))
    }

    /// The digest of a script that is about to run, and whether it is known to take long; `None` where
    /// its text is not known.
    pub(super) fn touch_text(&mut self, text: &[u8]) -> Option<(Arc<str>, bool)> {
        let sha = Arc::clone(self.digests.get(text)?);
        let (_, took_long) = self.touch(&sha)?;
        Some((sha, took_long))
    }

    /// Records that a run of a script took long: the following ones are assumed to do so, too.
    pub(super) fn took_long(&mut self, sha: &str) {
        if let Some(script) = self.texts.get_mut(sha) {
            script.long_runs = LONG_RUNS;
        }
    }

    /// Adds a script that is about to run; returns whether it is known to take long.
    pub(super) fn add(&mut self, sha: Arc<str>, text: &Bytes) -> bool {
        if let Some((_, took_long)) = self.touch(&sha) {
            return took_long;
        }
        if text.len() > LOADED_BYTES_MAX {
            return false;
        }
        self.bytes += text.len();
        let text = Bytes::copy_from_slice(text);
        self.digests.insert(text.clone(), Arc::clone(&sha));
        let script = Script { sha: Arc::clone(&sha), text, used: 0, long_runs: 0 };
        self.texts.insert(Arc::clone(&sha), script);
        self.touch(&sha);
        while self.texts.len() > LOADED_MAX || self.bytes > LOADED_BYTES_MAX {
            let Some((at, sha)) = self.used.pop_front() else { break };
            if self.texts.get(&sha).is_some_and(|it| it.used == at)
                && let Some(script) = self.texts.remove(&sha)
            {
                self.bytes -= script.text.len();
                self.digests.remove(&script.text);
            }
        }
        false
    }
}

impl Scripts {
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_that_took_long_is_tried_beside_its_client_again_after_a_while() {
        let mut known = Known::default();
        let text = Bytes::from_static(b"return 1");
        assert!(!known.add("sha".into(), &text));
        known.took_long("sha");
        for _ in 0..LONG_RUNS {
            assert!(known.add("sha".into(), &text));
        }
        assert_eq!(known.touch("sha"), Some((text, false)));
    }

    #[test]
    fn the_digest_of_a_text_is_known_as_long_as_the_script_is() {
        let mut known = Known::default();
        let text = |number: usize| Bytes::from(format!("return {number}"));
        for number in 0..=LOADED_MAX {
            known.add(number.to_string().into(), &text(number));
        }
        assert_eq!(known.touch_text(&text(0)), None);
        assert_eq!(known.touch_text(&text(1)), Some(("1".into(), false)));
        assert_eq!(known.digests.len(), known.texts.len());
    }
}
