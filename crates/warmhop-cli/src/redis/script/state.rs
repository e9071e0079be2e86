//! The state of a script's run, and the commands that the script carries out.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use mlua::{Either, Lua, MultiValue, Value as LuaValue};

use super::super::arguments::{checked_channel, checked_key};
use super::super::cmd::{NOT_IN_SCRIPTS, Run, WRITES, find};
use super::super::engine::{elsewhere, run_on, too_large};
use super::super::frame::{REQUEST_BYTES_MAX, Reply, VALUE_BYTES_MAX};
use super::super::instant;
use super::super::loud;
use super::super::numbers::double_text;
use super::super::pubsub::{Hub, Published};
use super::super::room::{self, Room};
use super::super::value::TooLarge;
use super::bounds::Bounds;
use super::json_options::Options;
use super::values::{bytes_of, in_digits, text_for};

/// How many messages one run publishes at most.
const PUBLISHED_MAX: usize = 1024;
/// How many bytes these messages take at most.
const PUBLISHED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The low bits of a seed that a script sets, as in Redis.
pub(super) const SEED: u64 = 0x330E;

/// Lua's error if it gets no more memory.
pub(super) const NO_MEMORY: &str = "not enough memory";

/// The state of a run.
#[derive(Default)]
pub(super) struct State {
    pub(super) bounds: &'static Bounds,
    pub(super) until: Option<Instant>,
    /// How often that time has passed.
    pub(super) late: u32,
    /// The memory beyond which Lua's allocations fail.
    pub(super) memory: usize,
    /// It has exceeded the bounds of a brief run.
    pub(super) outgrew: bool,
    pub(super) room: Option<Room>,
    pub(super) index: u8,
    /// A command has read or changed the room.
    pub(super) touched: bool,
    pub(super) read_only: bool,
    /// The room that it needs instead of the present one.
    pub(super) needs: Option<Bytes>,
    /// Why it is ended from outside.
    pub(super) stopped: Option<String>,
    /// The version of the protocol that replies come in.
    pub(super) version: u8,
    pub(super) published: Vec<Published>,
    pub(super) published_bytes: usize,
    /// Who listens at this peer.
    pub(super) hub: Option<Arc<Hub>>,
    pub(super) library: Arc<str>,
    /// How its values are written as JSON, and read.
    pub(super) json: Options,
    pub(super) search_steps: u64,
    pub(super) random: u64,
    pub(super) now: u64,
    /// The same to the microsecond, once the script has asked for it.
    pub(super) micros: Option<u64>,
}

pub(super) type Shared = Rc<RefCell<State>>;

/// A reply to a command, as a script gets it.
fn given(lua: &Lua, reply: &Reply, version: u8) -> mlua::Result<LuaValue> {
    let string = |bytes: &[u8]| lua.create_string(bytes).map(LuaValue::String);
    let named = |name: &str, value: Either<&str, LuaValue>| {
        let table = lua.create_table_with_capacity(0, 1)?;
        table.raw_set(name, value)?;
        Ok(LuaValue::Table(table))
    };
    let is_new = version == 3;
    match reply {
        #[expect(clippy::cast_precision_loss, reason = "numbers in Lua 5.1 are of this kind")]
        Reply::Number(number) => Ok(LuaValue::Number(*number as f64)),
        Reply::Bytes(bytes) => string(bytes),
        Reply::Status(text) => named("ok", Either::Left(text)),
        Reply::Error(text) => named("err", Either::Left(text)),
        Reply::Null | Reply::Aborted if is_new => Ok(LuaValue::Nil),
        Reply::Null | Reply::Aborted => Ok(LuaValue::Boolean(false)),
        Reply::Bool(yes) => Ok(LuaValue::Boolean(*yes)),
        Reply::Double(number) if is_new => {
            named("double", Either::Right(LuaValue::Number(*number)))
        }
        Reply::Double(number) => string(double_text(*number).as_bytes()),
        Reply::Set(parts) if is_new => {
            let table = lua.create_table()?;
            for part in parts {
                table.raw_set(given(lua, part, version)?, true)?;
            }
            named("set", Either::Right(LuaValue::Table(table)))
        }
        Reply::Map(pairs) if is_new => {
            let table = lua.create_table()?;
            for (key, value) in pairs {
                table.raw_set(given(lua, key, version)?, given(lua, value, version)?)?;
            }
            named("map", Either::Right(LuaValue::Table(table)))
        }
        Reply::Pairs(pairs) if is_new => {
            let pairs: Vec<Reply> = pairs
                .iter()
                .map(|(one, other)| Reply::Array(vec![one.clone(), other.clone()]))
                .collect();
            list(lua, pairs.iter(), version)
        }
        Reply::Array(parts) | Reply::Set(parts) | Reply::Push(parts) | Reply::Several(parts) => {
            list(lua, parts.iter(), version)
        }
        Reply::Map(pairs) | Reply::Pairs(pairs) => {
            list(lua, pairs.iter().flat_map(|(one, other)| [one, other]), version)
        }
    }
}

/// Replies as a list of a script.
fn list<'a>(
    lua: &Lua,
    parts: impl Iterator<Item = &'a Reply>,
    version: u8,
) -> mlua::Result<LuaValue> {
    let part = |part: &'a Reply| match part {
        Reply::Bytes(text) => text_for(lua, text),
        part => given(lua, part, version).map(Either::Right),
    };
    let parts: Vec<_> = parts.map(part).collect::<Result<_, _>>()?;
    lua.create_sequence_from(parts).map(LuaValue::Table)
}

impl State {
    /// The run has exceeded its bounds: this ends a brief run.
    pub(super) fn outgrows(&mut self) {
        if self.bounds.are_brief {
            self.outgrew = true;
            self.stopped.get_or_insert_with(|| "ERR it is run anew, with more time".into());
        }
    }

    /// Whether the run takes longer than it may; once that is so, it stays so.
    pub(super) fn is_over(&mut self) -> bool {
        let now = Instant::now();
        if self.until.is_some_and(|until| now >= until) {
            // The thread may have waited for a core, for which the script is not to blame.
            self.late += 1;
            self.until = Some(now + self.bounds.within);
        }
        self.late > self.bounds.late
    }

    /// Ends the run.
    pub(super) fn kill(&mut self) {
        self.outgrows();
        self.stopped.get_or_insert_with(|| self.bounds.killed());
    }

    /// A host function has made a text of this length, or would have.
    pub(super) fn makes(&mut self, len: usize) {
        if len >= self.bounds.text {
            self.outgrows();
        }
    }

    /// Records how many steps are left to its searches.
    pub(super) fn searched(&mut self, left: u64) {
        self.search_steps = left;
        if left == 0 {
            self.outgrows();
        }
    }

    /// Carries out a command of a script.
    fn call(&mut self, args: &[Bytes]) -> Reply {
        let spec = match find(&args[0]) {
            None => {
                loud::all().refused_command(&String::from_utf8_lossy(&args[0]), &self.library);
                return Reply::error("ERR", "Unknown Redis command called from script");
            }
            Some(spec) => spec,
        };
        if !spec.is_count_right(args.len()) {
            return Reply::error("ERR", "Wrong number of args calling Redis command from script");
        }
        if spec.has(NOT_IN_SCRIPTS) {
            return Reply::error("ERR", "This Redis command is not allowed from script");
        }
        if self.read_only && (spec.has(WRITES) || spec.name.ends_with("PUBLISH")) {
            let detail = "Write commands are not allowed from read-only scripts.";
            return Reply::error("ERR", detail);
        }
        let handler = match spec.run {
            // A blocking command does not wait in a script.
            Run::Room(handler) | Run::Split(handler, _) | Run::Blocking(handler) => handler,
            _ => return self.call_without_key(spec.name, args),
        };
        let entered = match spec.only_key(args) {
            Some(key) => self.enter(std::slice::from_ref(key)),
            None => self.enter(&spec.keys_of(args)),
        };
        if let Err(refused) = entered {
            return refused;
        }
        // Some commands take as long as thousands of instructions.
        if self.is_over() {
            self.outgrows();
        }
        let Some(room) = &mut self.room else {
            return Reply::error("ERR", "the command names no key");
        };
        self.touched = true;
        let reply = run_on(room, handler, args).unwrap_or_else(|refused| refused);
        if room.is_changed() && room.len() > VALUE_BYTES_MAX {
            return self.refuse(too_large(TooLarge));
        }
        reply
    }

    /// Makes sure that the present room is that of these keys.
    fn enter(&mut self, keys: &[Bytes]) -> Result<(), Reply> {
        keys.iter().try_for_each(|key| checked_key(key))?;
        let Some(first) = keys.first() else { return Ok(()) };
        if self.room.as_ref().is_some_and(|room| keys.iter().all(|key| room.has(key))) {
            return Ok(());
        }
        let name = room::register(self.index, first);
        if let Some(other) = keys.iter().find(|key| room::register(self.index, key) != name) {
            return Err(self.refuse(elsewhere(other, Some(first))));
        }
        match &self.room {
            // It is refused as a whole: a partial change would be worse than none.
            Some(_) if self.touched => Err(self.refuse(elsewhere(first, None))),
            _ => {
                self.needs = Some(name);
                self.stopped = Some("ERR another key is looked up".into());
                Err(Reply::error("ERR", "another key is looked up"))
            }
        }
    }

    /// Ends the script without any change.
    fn refuse(&mut self, refused: Reply) -> Reply {
        if let Reply::Error(error) = &refused {
            self.stopped = Some(error.clone());
        }
        refused
    }

    fn call_without_key(&mut self, name: &str, args: &[Bytes]) -> Reply {
        match name {
            "PING" => args.get(1).map_or(Reply::status("PONG"), |text| Reply::Bytes(text.clone())),
            "ECHO" => Reply::Bytes(args[1].clone()),
            "TIME" => {
                let now = self.now;
                instant::reply(*self.micros.get_or_insert_with(|| instant::micros(now)))
            }
            "PUBLISH" | "SPUBLISH"
                if self.published.len() < PUBLISHED_MAX
                    && self.published_bytes + args[2].len() <= PUBLISHED_BYTES_MAX =>
            {
                if let Err(refused) = checked_channel(&args[1]) {
                    return refused;
                }
                let is_sharded = name == "SPUBLISH";
                let (channel, message) = (args[1].clone(), args[2].clone());
                self.published_bytes += message.len();
                let message = Published { channel, message, is_sharded };
                // The message is published once the script's change is committed.
                let here = self.hub.as_ref().map_or(0, |hub| hub.count_here(&message));
                self.published.push(message);
                Reply::Number(here)
            }
            "PUBLISH" | "SPUBLISH" => {
                let detail = format!(
                    "a script publishes at most {PUBLISHED_MAX} messages and {PUBLISHED_BYTES_MAX} bytes"
                );
                Reply::error("ERR", detail)
            }
            _ => Reply::error("ERR", "This Redis command is not allowed from script"),
        }
    }
}

/// Looks at the clock for a host function that may take long: a script takes few steps to call it. An
/// error ends the run.
pub(super) struct Pace {
    state: Shared,
    passed: u32,
}

impl Pace {
    /// So many parts of its work are done between two looks.
    const PARTS: u32 = 4096;

    /// The function begins.
    pub(super) fn begin(state: &Shared) -> Result<Self, String> {
        let pace = Self { state: Rc::clone(state), passed: 0 };
        pace.look()?;
        Ok(pace)
    }

    /// One more part of its work is done.
    pub(super) fn passes(&mut self) -> Result<(), String> {
        self.passed += 1;
        if self.passed < Self::PARTS {
            return Ok(());
        }
        self.passed = 0;
        self.look()
    }

    fn look(&self) -> Result<(), String> {
        let mut state = self.state.borrow_mut();
        if state.is_over() {
            state.kill();
        }
        state.stopped.clone().map_or(Ok(()), Err)
    }
}

/// A number of a script as a command gets it: `%.17g`.
fn argument(number: f64) -> String {
    const DIGITS: usize = 17;
    /// Whole numbers below it have fewer digits than that, and are written without an exponent.
    const EXACT: f64 = 1e15;
    if number.trunc() == number && number.abs() < EXACT && number != 0.0 {
        #[expect(clippy::cast_possible_truncation, reason = "it is a whole number in bounds")]
        return (number as i64).to_string();
    }
    in_digits(number, DIGITS)
}

/// Carries out `redis.call` and `redis.pcall`: returns whether the reply is an error, and the
/// reply.
pub(super) fn call(lua: &Lua, state: &Shared, args: &MultiValue) -> mlua::Result<(bool, LuaValue)> {
    let version = state.borrow().version;
    if args.is_empty() {
        let detail = "Please specify at least one argument for this redis lib call";
        return Ok((true, at_once(lua, state, &Reply::error("ERR", detail), version)?));
    }
    let word = |arg: &LuaValue| match arg {
        LuaValue::Number(number) => Some(Bytes::from(argument(*number))),
        other => bytes_of(Some(other)),
    };
    let reply = if is_too_long(args) {
        Reply::error("ERR", format!("a command has at most {REQUEST_BYTES_MAX} bytes"))
    } else if let Some(words) = args.iter().map(word).collect::<Option<Vec<Bytes>>>() {
        state.borrow_mut().call(&words)
    } else {
        let detail = "Lua redis lib command arguments must be strings or integers";
        Reply::error("ERR", detail)
    };
    Ok((reply.is_error(), at_once(lua, state, &reply, version)?))
}

/// Whether a command with these arguments would be longer than a client may send: they may be the same string
/// many times.
fn is_too_long(args: &MultiValue) -> bool {
    let len = |arg: &LuaValue| match arg {
        LuaValue::String(text) => text.as_bytes().len(),
        _ => 0,
    };
    args.iter().map(len).sum::<usize>() > REQUEST_BYTES_MAX
}

/// As [`given`]. As long as Lua's memory has a limit, each allocation outside of Lua's own code is
/// prepared for an error, which takes longer than all else here. A reply is no longer than what its room
/// holds, or some megabytes: where there is memory left, it may exceed the limit, at which the script's
/// next allocation ends it.
fn at_once(lua: &Lua, state: &Shared, reply: &Reply, version: u8) -> mlua::Result<LuaValue> {
    let limit = state.borrow().memory;
    if lua.used_memory() >= limit {
        return given(lua, reply, version);
    }
    lua.set_memory_limit(0)?;
    let value = given(lua, reply, version);
    lua.set_memory_limit(limit)?;
    value
}
