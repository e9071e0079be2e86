//! One run of a script, bounded in steps, time and memory; a run that is ended from outside leaves
//! no change. Making a Lua state and its environment takes longer than most scripts, so a thread
//! keeps one for its next run: but only if it is as if nothing had run in it, so that no script
//! sees what another did.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use mlua::chunk::ChunkMode;
use mlua::{Function, HookTriggers, Lua, LuaOptions, StdLib, Table, Value as LuaValue, VmState};

use super::super::frame::Reply;
use super::super::room::Room;
use super::bounds::{Bounds, WHOLE};
use super::host::host;
use super::reply::reply_of;
use super::state::{NO_MEMORY, Shared, State};
use super::values::{SOURCE, bytes_of, one_line, text_for};
use super::{Ended, Input};

/// How much a state may have grown since it was made, to be kept for another run.
const KEPT_BYTES_MAX: usize = 1024 * 1024;
/// How many compiled scripts it keeps.
const COMPILED_MAX: usize = 64;

/// Runs a script on a room, or on none until it needs one.
pub(super) fn run(input: &Input, room: Option<Room>, bounds: &'static Bounds) -> Ended {
    let kept = KEPT.with_borrow_mut(Option::take);
    let mut surroundings = match kept.map_or_else(Surroundings::new, Ok) {
        Ok(surroundings) => surroundings,
        Err(error) => {
            let reply = Reply::error("ERR", one_line(&error.to_string()));
            return Ended { room, ..Ended::refused(reply) };
        }
    };
    let now = room.as_ref().map_or(input.now, |room| room.now);
    let state = Rc::clone(&surroundings.state);
    *state.borrow_mut() = State {
        room,
        index: input.index,
        read_only: input.read_only,
        version: 2,
        search_steps: bounds.search_steps,
        bounds,
        until: Some(Instant::now() + bounds.within),
        random: input.seed,
        hub: Some(Arc::clone(&input.hub)),
        library: Arc::clone(&input.library),
        now,
        ..State::default()
    };
    let came_to = surroundings.run(input);
    let is_sound = came_to.is_ok();
    let reply = came_to.unwrap_or_else(|error| {
        let stopped = state.borrow().stopped.clone();
        let memory = matches!(error, mlua::Error::MemoryError(_));
        if memory {
            state.borrow_mut().outgrows();
        }
        let why = match (stopped, memory) {
            (Some(why), _) => why,
            (None, true) => out_of_memory(),
            (None, false) => format!("ERR {}", one_line(&error.to_string())),
        };
        state.borrow_mut().stopped.get_or_insert(why.clone());
        Reply::Error(why)
    });
    let State { room, touched, needs, stopped, published, outgrew, .. } =
        std::mem::take(&mut *state.borrow_mut());
    // A run that only lacked the room of its key has ended like any other.
    if is_sound && (stopped.is_none() || needs.is_some()) && surroundings.are_as_new() {
        KEPT.set(Some(surroundings));
    }
    Ended {
        room,
        depends: touched,
        // Redis could kill such a script only before its first write; here its changes are dropped.
        commits: stopped.is_none() && needs.is_none(),
        reply: stopped.map_or(reply, Reply::Error),
        published,
        needs,
        outgrew,
    }
}

thread_local! {
    /// The environment of this thread's next script.
    static KEPT: RefCell<Option<Surroundings>> = const { RefCell::new(None) };
}

/// How many this thread has made.
#[cfg(test)]
pub(super) fn made_here() -> usize {
    MADE.get()
}

#[cfg(test)]
thread_local! {
    static MADE: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// A Lua state with a script's environment.
struct Surroundings {
    lua: Lua,
    state: Shared,
    /// The globals of scripts.
    globals: Table,
    /// Runs a script with its keys and arguments.
    run: Function,
    /// Tells whether no script has left anything for the next one: in the tables that scripts can reach,
    /// which are empty before, or in strings' metatable, which has its index alone.
    is_untouched: Function,
    /// By their digests.
    compiled: HashMap<Arc<str>, Function>,
    /// How much memory it took before anything had run in it.
    bytes: usize,
}

/// The error for a script that is loaded and does not compile.
pub(super) fn refused_text(text: &[u8]) -> Option<Reply> {
    let (text, _) = match super::without_shebang(&Bytes::copy_from_slice(text)) {
        Ok(text) => text,
        Err(refused) => return Some(refused),
    };
    let lua = Lua::new_with(StdLib::NONE, LuaOptions::new()).ok()?;
    lua.set_memory_limit(lua.used_memory() + WHOLE.memory).ok()?;
    let chunk = lua.load(&text[..]).set_name(SOURCE).set_mode(ChunkMode::Text);
    chunk.into_function().err().map(|error| not_compiled(&error))
}

fn not_compiled(error: &mlua::Error) -> Reply {
    let why = match error {
        mlua::Error::SyntaxError { message, .. } => one_line(message),
        other => one_line(&other.to_string()),
    };
    Reply::error("ERR", format!("Error compiling script (new function): {why}"))
}

fn out_of_memory() -> String {
    format!("OOM nothing was done: the script used more than {} bytes", WHOLE.memory)
}

impl Surroundings {
    fn new() -> mlua::Result<Self> {
        #[cfg(test)]
        MADE.set(MADE.get() + 1);
        let state = Shared::default();
        let lua = Lua::new_with(StdLib::TABLE | StdLib::STRING | StdLib::MATH, LuaOptions::new())?;
        let prelude = lua.load(include_str!("prelude.lua")).set_name("=prelude");
        let host = host(&lua, &state)?;
        let (globals, run, is_untouched) = prelude.into_function()?.call(host)?;
        let (compiled, bytes) = (HashMap::new(), lua.used_memory());
        Ok(Self { lua, state, globals, run, is_untouched, compiled, bytes })
    }

    /// Whether the next script could not notice that others have run.
    fn are_as_new(&self) -> bool {
        self.lua.used_memory() <= self.bytes + KEPT_BYTES_MAX
            && self.is_untouched.call::<bool>(()).unwrap_or(false)
    }

    fn strings(&self, all: &[Bytes]) -> mlua::Result<Table> {
        let all: Vec<_> =
            all.iter().map(|text| text_for(&self.lua, text)).collect::<Result<_, _>>()?;
        self.lua.create_sequence_from(all)
    }

    fn compiled(&mut self, input: &Input) -> mlua::Result<Function> {
        if let Some(script) = self.compiled.get(&input.sha) {
            return Ok(script.clone());
        }
        let script = self.lua.load(&input.text[..]).set_name(SOURCE).set_mode(ChunkMode::Text);
        let script = script.set_environment(self.globals.clone()).into_function()?;
        if self.compiled.len() >= COMPILED_MAX {
            self.compiled.clear();
        }
        self.compiled.insert(Arc::clone(&input.sha), script.clone());
        Ok(script)
    }

    fn run(&mut self, input: &Input) -> mlua::Result<Reply> {
        let (keys, arguments) = (self.strings(&input.keys)?, self.strings(&input.args)?);
        let script = match self.compiled(input) {
            Ok(script) => script,
            Err(error @ mlua::Error::SyntaxError { .. }) => return Ok(not_compiled(&error)),
            Err(error) => return Err(error),
        };
        self.bound()?;
        let (is_well, value): (bool, LuaValue) = self.run.call((script, keys, arguments))?;
        self.lua.remove_global_hook();
        // Nothing else runs in it; the result still has to be read.
        self.lua.set_memory_limit(0)?;
        let version = self.state.borrow().version;
        if !is_well {
            return Ok(failure(&value, &input.sha, &self.state));
        }
        let bytes_max = self.state.borrow().bounds.reply;
        Ok(reply_of(&value, version, bytes_max).unwrap_or_else(|| too_large(&self.state)))
    }

    /// Has the following run checked, and ended once it has taken too much.
    fn bound(&self) -> mlua::Result<()> {
        let (counted, bounds) = (Rc::clone(&self.state), self.state.borrow().bounds);
        let begun_with = self.lua.used_memory();
        self.state.borrow_mut().memory = begun_with + bounds.memory;
        self.lua.set_memory_limit(begun_with + bounds.memory)?;
        let memory_max = begun_with.saturating_add(bounds.memory_looked_at);
        let left = Cell::new(bounds.steps / u64::from(bounds.looked_at));
        let triggers = HookTriggers::new().every_nth_instruction(bounds.looked_at);
        self.lua.set_global_hook(triggers, move |lua, _| {
            let mut state = counted.borrow_mut();
            left.set(left.get().saturating_sub(1));
            if left.get() == 0 || state.is_over() {
                state.kill();
            }
            if lua.used_memory() > memory_max {
                state.outgrows();
            }
            match &state.stopped {
                Some(why) => Err(mlua::Error::runtime(why)),
                None => Ok(VmState::Continue),
            }
        })
    }
}

/// The client's error for a result that is too large for a reply: it may be many times as large as what the
/// script took, since its parts may be the same.
fn too_large(state: &Shared) -> Reply {
    let bytes_max = WHOLE.reply;
    let error = format!("ERR nothing was done: the script's reply would exceed {bytes_max} bytes");
    state.borrow_mut().outgrows();
    state.borrow_mut().stopped.get_or_insert(error.clone());
    Reply::Error(error)
}

/// The client's error if an error ended the script.
fn failure(value: &LuaValue, sha: &str, state: &Shared) -> Reply {
    let LuaValue::Table(error) = value else {
        // No table for the error: there was no memory left for one.
        let error = out_of_memory();
        state.borrow_mut().outgrows();
        state.borrow_mut().stopped.get_or_insert(error.clone());
        return Reply::Error(error);
    };
    let text = |name: &str| -> Option<String> {
        let value: LuaValue = error.raw_get(name).ok()?;
        bytes_of(Some(&value)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let error = text("err").unwrap_or_else(|| "ERR unknown error".into());
    if error.contains(NO_MEMORY) {
        state.borrow_mut().outgrows();
        state.borrow_mut().stopped.get_or_insert_with(out_of_memory);
    }
    let at = text("source").zip(text("line"));
    let whole = match at {
        Some((source, line)) => format!("{error} script: {sha}, on {source}:{line}."),
        None => error,
    };
    Reply::Error(whole.replace(['\r', '\n'], " "))
}
