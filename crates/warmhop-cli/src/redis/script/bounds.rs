//! How much one run of a script may take.

use std::time::Duration;

use super::super::room::Room;
use super::Input;

/// How much of everything one run may take.
#[derive(Debug)]
pub(super) struct Bounds {
    /// What takes more is begun anew with more; otherwise that is an error.
    pub(super) are_brief: bool,
    /// Steps of Lua.
    pub(super) steps: u64,
    /// After how many of them it is looked at.
    pub(super) looked_at: u32,
    /// Whatever it does.
    pub(super) within: Duration,
    /// How often it gets as much time once more.
    pub(super) late: u32,
    /// The memory beyond which Lua gets none.
    pub(super) memory: usize,
    /// The memory beyond which it is ended when it is looked at.
    pub(super) memory_looked_at: usize,
    /// Steps of all its searches.
    pub(super) search_steps: u64,
    /// The longest text that a function of the host makes.
    pub(super) text: usize,
}

/// Those of a script: what takes more is an error.
pub(super) static WHOLE: Bounds = Bounds {
    are_brief: false,
    steps: 50_000_000,
    looked_at: 1000,
    within: Duration::from_secs(5),
    late: 0,
    memory: 64 * 1024 * 1024,
    memory_looked_at: usize::MAX,
    search_steps: 20_000_000,
    text: 16 * 1024 * 1024,
};

/// Those of a run on the thread that serves its client, beside whom others wait meanwhile: what takes
/// more is begun anew on a thread of its own, within [`WHOLE`]. Nearly no script does, and to wake
/// another thread and be woken by it takes several times what most of them take.
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
};

impl Default for &Bounds {
    fn default() -> Self {
        &WHOLE
    }
}

/// The longest script that is compiled beside its client.
const TEXT_BYTES_MAX: usize = 16 * 1024;
/// How many bytes the keys and arguments of a run that is brief come to.
const ARGUMENTS_BYTES_MAX: usize = 32 * 1024;
/// How many bytes its room has: it is copied, and looked through by some commands.
const ROOM_BYTES_MAX: usize = 32 * 1024;

/// Whether a run is likely to stay within [`BRIEF`].
pub(super) fn seems_brief(input: &Input, room: Option<&Room>) -> bool {
    let arguments = input.keys.iter().chain(&input.args).map(|it| it.len()).sum::<usize>();
    !input.took_long
        && input.text.len() <= TEXT_BYTES_MAX
        && arguments <= ARGUMENTS_BYTES_MAX
        && room.is_none_or(|room| room.len() <= ROOM_BYTES_MAX)
}
