//! The scripts that clients of a peer have sent.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// The scripts that clients of this peer have sent, by their digests.
pub(super) struct Scripts {
    known: Mutex<Known>,
    /// Permits for runs on other threads.
    pub(super) room: Semaphore,
}

/// A script that is known.
pub(super) struct Script {
    text: Bytes,
    used: u64,
    /// How many more runs of it are not to be tried as brief ones.
    long_runs: u32,
}

#[derive(Default)]
pub(super) struct Known {
    pub(super) texts: HashMap<String, Script>,
    /// Digests in the order of their use, with the time of use; entries of scripts used again since
    /// are ignored.
    used: VecDeque<(u64, String)>,
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
        self.used.push_back((self.clock, sha.to_owned()));
        if self.used.len() > 2 * LOADED_MAX {
            let texts = &self.texts;
            self.used.retain(|(at, sha)| texts.get(sha).is_some_and(|it| it.used == *at));
        }
        Some((text, took_long))
    }

    /// Records that a run of a script took long: the following ones are assumed to do so, too.
    pub(super) fn took_long(&mut self, sha: &str) {
        if let Some(script) = self.texts.get_mut(sha) {
            script.long_runs = LONG_RUNS;
        }
    }

    /// Adds a script that is about to run; returns whether it is known to take long.
    pub(super) fn add(&mut self, sha: String, text: &Bytes) -> bool {
        if let Some((_, took_long)) = self.touch(&sha) {
            return took_long;
        }
        if text.len() > LOADED_BYTES_MAX {
            return false;
        }
        self.bytes += text.len();
        let text = Bytes::copy_from_slice(text);
        self.texts.insert(sha.clone(), Script { text, used: 0, long_runs: 0 });
        self.touch(&sha);
        while self.texts.len() > LOADED_MAX || self.bytes > LOADED_BYTES_MAX {
            let Some((at, sha)) = self.used.pop_front() else { break };
            if self.texts.get(&sha).is_some_and(|it| it.used == at)
                && let Some(script) = self.texts.remove(&sha)
            {
                self.bytes -= script.text.len();
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
}
