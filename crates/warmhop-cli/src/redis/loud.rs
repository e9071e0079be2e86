//! Logs and counts what the endpoint refuses and Redis would not: libraries swallow such refusals,
//! and what they meant to guard is left unguarded.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

/// How often a command of one library is logged.
const LOGGED_EVERY: Duration = Duration::from_secs(60);
/// How many pairs of a command and a library are counted separately.
const COUNTED_APART_MAX: usize = 256;
/// How much of a name is kept, in characters.
const NAME_MAX: usize = 32;

static ALL: Loud = Loud { refused: Mutex::new(BTreeMap::new()) };

/// The refusals of this process, which has one endpoint.
pub(super) fn all() -> &'static Loud {
    &ALL
}

#[derive(Default)]
pub(super) struct Loud {
    refused: Mutex<BTreeMap<(String, String), Noted>>,
}

struct Noted {
    count: u64,
    last: Option<Instant>,
}

fn name(text: &str) -> String {
    let is_plain = |it: &char| it.is_ascii_alphanumeric() || "-_.|()/ ".contains(*it);
    text.chars().filter(is_plain).take(NAME_MAX).collect()
}

impl Loud {
    fn refused(&self) -> MutexGuard<'_, BTreeMap<(String, String), Noted>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts, and sometimes logs, a command that is refused because it is not offered.
    pub(super) fn refused_command(&self, command: &str, library: &str) {
        let library = if library.is_empty() { "unknown" } else { library };
        let mut key = (name(command).to_ascii_uppercase(), name(library));
        let mut refused = self.refused();
        if refused.len() >= COUNTED_APART_MAX && !refused.contains_key(&key) {
            key = ("OTHER".into(), "other".into());
        }
        let noted = refused.entry(key).or_insert(Noted { count: 0, last: None });
        noted.count += 1;
        let now = Instant::now();
        if noted.last.is_none_or(|last| now.duration_since(last) >= LOGGED_EVERY) {
            noted.last = Some(now);
            warn!(
                command = %name(command),
                library = %name(library),
                refused = noted.count,
                "a Redis client sends a command that is not offered here, so a part of its library \
                 does not work; docs/redis.md says what works"
            );
        }
    }

    /// How often which command of which library was refused.
    pub(super) fn counts(&self) -> Vec<(String, String, u64)> {
        let refused = self.refused();
        let count = |((command, library), noted): (&(String, String), &Noted)| {
            (command.clone(), library.clone(), noted.count)
        };
        refused.iter().map(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_commands_are_counted_by_command_and_library_within_a_bound() {
        let loud = Loud::default();
        loud.refused_command("xadd", "redis-py");
        loud.refused_command("XADD", "redis-py");
        loud.refused_command("XADD\r\n", "");
        let xadd = |library: &str, count| ("XADD".to_owned(), library.to_owned(), count);
        assert_eq!(loud.counts(), [xadd("redis-py", 2), xadd("unknown", 1)]);
        for number in 0..2 * COUNTED_APART_MAX {
            loud.refused_command(&format!("C{number}"), "x");
        }
        assert!(loud.counts().len() <= COUNTED_APART_MAX + 1);
    }
}
