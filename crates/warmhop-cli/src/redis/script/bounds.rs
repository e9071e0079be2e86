//! Bounds on what one run of a script may take.

use std::time::Duration;

use super::super::arguments::REPLY_BYTES_MAX;
use super::super::room::Room;
use super::Input;

/// The bounds of one run.
#[derive(Debug)]
pub(super) struct Bounds {
    /// A run that exceeds them is restarted with wider ones; otherwise that is an error.
    pub(super) are_brief: bool,
    /// Instructions of Lua.
    pub(super) steps: u64,
    /// After how many of them the run is checked: each may call a function of Lua's own that takes
    /// several milliseconds.
    pub(super) looked_at: u32,
    /// Time, whatever the run does.
    pub(super) within: Duration,
    /// How often the run gets as much time again.
    pub(super) late: u32,
    /// The memory beyond which Lua's allocations fail.
    pub(super) memory: usize,
    /// The memory beyond which the next check ends the run.
    pub(super) memory_looked_at: usize,
    /// Steps of all its searches together.
    pub(super) search_steps: u64,
    /// The longest text that a host function makes.
    pub(super) text: usize,
    /// The largest reply.
    pub(super) reply: usize,
}

/// The bounds of a script: exceeding them is an error.
pub(super) static WHOLE: Bounds = Bounds {
    are_brief: false,
    steps: 50_000_000,
    looked_at: 100,
    within: Duration::from_secs(5),
    late: 0,
    memory: 64 * 1024 * 1024,
    memory_looked_at: usize::MAX,
    search_steps: 20_000_000,
    text: 16 * 1024 * 1024,
    reply: REPLY_BYTES_MAX,
};

/// The bounds of a run on the thread that serves its client, where other clients wait meanwhile: a
/// run that exceeds them is restarted on another thread within [`WHOLE`]. Hardly any script does,
/// and waking another thread and being woken by it takes several times as long as most scripts.
pub(super) static BRIEF: Bounds = Bounds {
    are_brief: true,
    steps: 10_000,
    looked_at: 100,
    within: Duration::from_millis(1),
    late: 2,
    memory: 4 * 1024 * 1024,
    memory_looked_at: 512 * 1024,
    search_steps: 20_000,
    text: 64 * 1024,
    reply: 256 * 1024,
};

impl Bounds {
    /// The error that ends a run beyond them.
    pub(super) fn killed(&self) -> String {
        let (steps, within) = (self.steps, self.within.as_secs());
        format!(
            "ERR Error running script: killed after {steps} steps, or {within} s; nothing was done"
        )
    }
}

impl Default for &Bounds {
    fn default() -> Self {
        &WHOLE
    }
}

/// The longest script that is compiled on its client's thread.
const TEXT_BYTES_MAX: usize = 16 * 1024;
/// How many bytes the keys and arguments of a brief run may take together.
const ARGUMENTS_BYTES_MAX: usize = 32 * 1024;
/// How many bytes the room of a brief run may have: it is copied, and some commands scan it.
const ROOM_BYTES_MAX: usize = 32 * 1024;

/// Whether a run is likely to stay within [`BRIEF`].
pub(super) fn seems_brief(input: &Input, room: Option<&Room>) -> bool {
    let arguments = input.keys.iter().chain(&input.args).map(|it| it.len()).sum::<usize>();
    !input.took_long
        && input.text.len() <= TEXT_BYTES_MAX
        && arguments <= ARGUMENTS_BYTES_MAX
        && room.is_none_or(|room| room.len() <= ROOM_BYTES_MAX)
}
