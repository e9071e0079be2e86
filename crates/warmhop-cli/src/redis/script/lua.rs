//! One run of a script: a Lua state of its own, which is there for that run alone, so that nothing
//! that a script does is seen by another. It is bounded in steps, in time and in memory; what ends it
//! from outside leaves nothing of it done.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mlua::chunk::ChunkMode;
use mlua::{
    Function, HookTriggers, Lua, LuaOptions, MultiValue, StdLib, Table, Value as LuaValue, VmState,
};

use super::super::cmd::{Run, checked_channel, checked_key, double_text, find};
use super::super::engine::{elsewhere, run_on, too_large};
use super::super::frame::{Reply, VALUE_BYTES_MAX};
use super::super::room::{self, Room};
use super::super::value::TooLarge;
use super::{Ended, Input, Published, SPEAKS_AS};
use super::{bits, json, msgpack, text};

/// How many steps of Lua one run takes at most.
const STEPS_MAX: u64 = 50_000_000;
/// After how many of them it is looked at.
const STEPS_LOOKED_AT: u32 = 1000;
/// How many steps its searches take at most.
const SEARCH_STEPS_MAX: u64 = 20_000_000;
/// How long one run takes at most, whatever it does.
const RUN_WITHIN: Duration = Duration::from_secs(5);
/// How much memory a run may use.
const MEMORY_MAX: usize = 64 * 1024 * 1024;
/// How deep what a script answers may be nested.
const NESTED_MAX: usize = 128;
/// How many messages one run publishes at most.
const PUBLISHED_MAX: usize = 1024;
/// How many bytes of them.
const PUBLISHED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The name that Redis gives a script's text, which its errors tell.
const SOURCE: &str = "@user_script";

/// What a run has come to so far.
pub(super) struct State {
    room: Option<Room>,
    index: u8,
    /// What a command read or changed the room.
    touched: bool,
    read_only: bool,
    /// The room that it needs instead.
    needs: Option<Bytes>,
    /// Why it is ended from outside.
    pub(super) stopped: Option<String>,
    /// The version of the protocol that replies come in.
    version: u8,
    published: Vec<Published>,
    published_bytes: usize,
    pub(super) search_steps: u64,
    random: u64,
    now: u64,
}

pub(super) type Shared = Rc<RefCell<State>>;

/// What a host function answers: that it went well, and what came; or not, and why.
pub(super) type Answer = mlua::Result<MultiValue>;

pub(super) fn well(values: impl IntoIterator<Item = LuaValue>) -> Answer {
    Ok(std::iter::once(LuaValue::Boolean(true)).chain(values).collect())
}

pub(super) fn badly(lua: &Lua, why: impl AsRef<str>) -> Answer {
    let why = lua.create_string(why.as_ref())?;
    Ok([LuaValue::Boolean(false), LuaValue::String(why)].into_iter().collect())
}

/// The bytes of a string, or of a number as Lua writes it.
pub(super) fn bytes_of(value: Option<&LuaValue>) -> Option<Bytes> {
    match value? {
        LuaValue::String(text) => Some(Bytes::copy_from_slice(&text.as_bytes())),
        LuaValue::Integer(number) => Some(Bytes::from(number.to_string())),
        LuaValue::Number(number) => Some(Bytes::from(super::text::lua_number(*number))),
        _ => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers in Lua 5.1 are of this kind")]
pub(super) fn number_of(value: Option<&LuaValue>) -> Option<f64> {
    match value? {
        LuaValue::Integer(number) => Some(*number as f64),
        LuaValue::Number(number) => Some(*number),
        LuaValue::String(text) => std::str::from_utf8(&text.as_bytes()).ok()?.trim().parse().ok(),
        _ => None,
    }
}

/// Runs a script on a room, or on none as long as it needs none.
pub(super) fn run(input: &Input, room: Option<Room>) -> Ended {
    let now = room.as_ref().map_or(input.now, |room| room.now);
    let state = Rc::new(RefCell::new(State {
        room,
        index: input.index,
        touched: false,
        read_only: input.read_only,
        needs: None,
        stopped: None,
        version: 2,
        published: Vec::new(),
        published_bytes: 0,
        search_steps: SEARCH_STEPS_MAX,
        random: SEED,
        now,
    }));
    let reply = run_in(input, &state).unwrap_or_else(|error| {
        let stopped = state.borrow().stopped.clone();
        let memory = matches!(error, mlua::Error::MemoryError(_));
        let why = match (stopped, memory) {
            (Some(why), _) => why,
            (None, true) => out_of_memory(),
            (None, false) => format!("ERR {}", one_line(&error.to_string())),
        };
        state.borrow_mut().stopped.get_or_insert(why.clone());
        Reply::Error(why)
    });
    let mut state = state.borrow_mut();
    let (needs, stopped) = (state.needs.take(), state.stopped.take());
    Ended {
        room: state.room.take(),
        depends: state.touched,
        // What Redis could only kill before it wrote is undone here.
        stands: stopped.is_none() && needs.is_none(),
        reply: stopped.map_or(reply, Reply::Error),
        published: std::mem::take(&mut state.published),
        needs,
    }
}

/// What is answered to one who loads a script that does not compile.
pub(super) fn refused_text(text: &[u8]) -> Option<Reply> {
    let (text, _) = match super::without_shebang(&Bytes::copy_from_slice(text)) {
        Ok(text) => text,
        Err(refused) => return Some(refused),
    };
    let lua = Lua::new_with(StdLib::NONE, LuaOptions::new()).ok()?;
    lua.set_memory_limit(lua.used_memory() + MEMORY_MAX).ok()?;
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

fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn out_of_memory() -> String {
    format!("OOM nothing was done: the script used more than {MEMORY_MAX} bytes")
}

fn run_in(input: &Input, state: &Shared) -> mlua::Result<Reply> {
    let libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH;
    let lua = Lua::new_with(libraries, LuaOptions::new())?;
    let host = host(&lua, input, state)?;
    let prelude = lua.load(include_str!("prelude.lua")).set_name("=prelude");
    let (globals, run): (Table, Function) = prelude.into_function()?.call(host)?;
    let script = lua.load(&input.text[..]).set_name(SOURCE).set_mode(ChunkMode::Text);
    let script = match script.set_environment(globals).into_function() {
        Ok(script) => script,
        Err(error @ mlua::Error::SyntaxError { .. }) => return Ok(not_compiled(&error)),
        Err(error) => return Err(error),
    };
    lua.set_memory_limit(lua.used_memory() + MEMORY_MAX)?;
    let (counted, until) = (Rc::clone(state), Instant::now() + RUN_WITHIN);
    let left = RefCell::new(STEPS_MAX / u64::from(STEPS_LOOKED_AT));
    lua.set_global_hook(
        HookTriggers::new().every_nth_instruction(STEPS_LOOKED_AT),
        move |_, _| {
            let mut state = counted.borrow_mut();
            let mut left = left.borrow_mut();
            *left = left.saturating_sub(1);
            if *left == 0 || Instant::now() > until {
                let told = format!(
                    "ERR Error running script: killed after {STEPS_MAX} steps, or {} s; nothing \
                     was done",
                    RUN_WITHIN.as_secs()
                );
                state.stopped.get_or_insert(told);
            }
            match &state.stopped {
                Some(why) => Err(mlua::Error::runtime(why)),
                None => Ok(VmState::Continue),
            }
        },
    )?;
    let (is_well, value): (bool, LuaValue) = run.call(script)?;
    lua.remove_global_hook();
    // Nothing else is run in it; its answer is read.
    lua.set_memory_limit(0)?;
    let version = state.borrow().version;
    if is_well {
        return Ok(told(&value, version, 0));
    }
    Ok(failure(&value, &input.sha, state))
}

/// What a script's client is told of an error that ended it.
fn failure(value: &LuaValue, sha: &str, state: &Shared) -> Reply {
    let LuaValue::Table(error) = value else {
        // What has no room for an error's table had none for anything.
        let told = out_of_memory();
        state.borrow_mut().stopped.get_or_insert(told.clone());
        return Reply::Error(told);
    };
    let text = |name: &str| -> Option<String> {
        let value: LuaValue = error.raw_get(name).ok()?;
        bytes_of(Some(&value)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let told = text("err").unwrap_or_else(|| "ERR unknown error".into());
    if told.contains("not enough memory") {
        state.borrow_mut().stopped.get_or_insert_with(out_of_memory);
    }
    let at = text("source").zip(text("line"));
    let whole = match at {
        Some((source, line)) => format!("{told} script: {sha}, on {source}:{line}."),
        None => told,
    };
    Reply::Error(whole.replace(['\r', '\n'], " "))
}

/// What a script answers, as its client gets it.
fn told(value: &LuaValue, version: u8, depth: usize) -> Reply {
    if depth == NESTED_MAX {
        return Reply::error("ERR", "reached lua stack limit");
    }
    match value {
        LuaValue::String(text) => Reply::Bytes(Bytes::copy_from_slice(&text.as_bytes())),
        LuaValue::Integer(number) => Reply::Number(*number),
        #[expect(clippy::cast_possible_truncation, reason = "as Redis does")]
        LuaValue::Number(number) => Reply::Number(*number as i64),
        LuaValue::Boolean(yes) if version == 3 => Reply::Bool(*yes),
        LuaValue::Boolean(true) => Reply::Number(1),
        LuaValue::Table(table) => told_of(table, version, depth),
        _ => Reply::Null,
    }
}

fn told_of(table: &Table, version: u8, depth: usize) -> Reply {
    let field = |name: &str| table.raw_get::<LuaValue>(name).ok();
    let text = |name: &str| match field(name)? {
        LuaValue::String(text) => Some(String::from_utf8_lossy(&text.as_bytes()).into_owned()),
        _ => None,
    };
    if let Some(error) = text("err") {
        let error = error.strip_prefix('-').unwrap_or(&error).replace(['\r', '\n'], " ");
        return Reply::Error(error);
    }
    if let Some(status) = text("ok") {
        return Reply::status(status.replace(['\r', '\n'], " "));
    }
    if let Some(LuaValue::Number(number)) = field("double") {
        return Reply::Double(number);
    }
    if let Some(LuaValue::Integer(number)) = field("double") {
        #[expect(clippy::cast_precision_loss, reason = "numbers in Lua 5.1 are of this kind")]
        return Reply::Double(number as f64);
    }
    if let Some(LuaValue::Table(map)) = field("map") {
        let pairs = map.pairs::<LuaValue, LuaValue>().filter_map(Result::ok);
        let pair =
            |(key, value)| (told(&key, version, depth + 1), told(&value, version, depth + 1));
        return Reply::Map(pairs.map(pair).collect());
    }
    if let Some(LuaValue::Table(set)) = field("set") {
        let pairs = set.pairs::<LuaValue, LuaValue>().filter_map(Result::ok);
        return Reply::Set(pairs.map(|(key, _)| told(&key, version, depth + 1)).collect());
    }
    let mut parts = Vec::new();
    for at in 1.. {
        match table.raw_get::<LuaValue>(at) {
            Ok(LuaValue::Nil) | Err(_) => break,
            Ok(value) => parts.push(told(&value, version, depth + 1)),
        }
    }
    Reply::Array(parts)
}

/// A reply to a command, as a script gets it.
fn given(lua: &Lua, reply: &Reply, version: u8) -> mlua::Result<LuaValue> {
    let string = |bytes: &[u8]| lua.create_string(bytes).map(LuaValue::String);
    let named = |name: &str, value: LuaValue| {
        let table = lua.create_table()?;
        table.raw_set(name, value)?;
        Ok(LuaValue::Table(table))
    };
    let all = |parts: &[&Reply]| {
        let table = lua.create_table_with_capacity(parts.len(), 0)?;
        for (at, part) in parts.iter().enumerate() {
            table.raw_set(at + 1, given(lua, part, version)?)?;
        }
        Ok(LuaValue::Table(table))
    };
    let is_new = version == 3;
    match reply {
        #[expect(clippy::cast_precision_loss, reason = "numbers in Lua 5.1 are of this kind")]
        Reply::Number(number) => Ok(LuaValue::Number(*number as f64)),
        Reply::Bytes(bytes) => string(bytes),
        Reply::Status(text) => named("ok", string(text.as_bytes())?),
        Reply::Error(text) => named("err", string(text.as_bytes())?),
        Reply::Null | Reply::Aborted if is_new => Ok(LuaValue::Nil),
        Reply::Null | Reply::Aborted => Ok(LuaValue::Boolean(false)),
        Reply::Bool(yes) => Ok(LuaValue::Boolean(*yes)),
        Reply::Double(number) if is_new => named("double", LuaValue::Number(*number)),
        Reply::Double(number) => string(double_text(*number).as_bytes()),
        Reply::Set(parts) if is_new => {
            let table = lua.create_table()?;
            for part in parts {
                table.raw_set(given(lua, part, version)?, true)?;
            }
            named("set", LuaValue::Table(table))
        }
        Reply::Map(pairs) if is_new => {
            let table = lua.create_table()?;
            for (key, value) in pairs {
                table.raw_set(given(lua, key, version)?, given(lua, value, version)?)?;
            }
            named("map", LuaValue::Table(table))
        }
        Reply::Pairs(pairs) if is_new => {
            let pairs: Vec<Reply> = pairs
                .iter()
                .map(|(one, other)| Reply::Array(vec![one.clone(), other.clone()]))
                .collect();
            all(&pairs.iter().collect::<Vec<_>>())
        }
        Reply::Array(parts) | Reply::Set(parts) | Reply::Push(parts) | Reply::Several(parts) => {
            all(&parts.iter().collect::<Vec<_>>())
        }
        Reply::Map(pairs) | Reply::Pairs(pairs) => {
            all(&pairs.iter().flat_map(|(one, other)| [one, other]).collect::<Vec<_>>())
        }
    }
}

impl State {
    /// Carries out a command of a script.
    fn call(&mut self, args: &[Bytes]) -> Reply {
        let spec = match find(&args[0]) {
            None => return Reply::error("ERR", "Unknown Redis command called from script"),
            Some(spec) => spec,
        };
        if !spec.is_count_right(args.len()) {
            return Reply::error("ERR", "Wrong number of args calling Redis command from script");
        }
        if spec.has(super::super::cmd::NOT_IN_SCRIPTS) {
            return Reply::error("ERR", "This Redis command is not allowed from script");
        }
        if self.read_only && spec.has(super::super::cmd::WRITES) {
            let detail = "Write commands are not allowed from read-only scripts.";
            return Reply::error("ERR", detail);
        }
        let handler = match spec.run {
            Run::Room(handler) | Run::Split(handler, _) => handler,
            _ => return self.call_without_key(spec.name, args),
        };
        let keys = spec.keys_of(args);
        if let Err(refused) = keys.iter().try_for_each(|key| checked_key(key)) {
            return refused;
        }
        if let Err(refused) = self.enter(&keys) {
            return refused;
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

    /// Sees to it that the room at hand is that of these keys.
    fn enter(&mut self, keys: &[Bytes]) -> Result<(), Reply> {
        let Some(first) = keys.first() else { return Ok(()) };
        let name = room::register(self.index, first);
        if let Some(other) = keys.iter().find(|key| room::register(self.index, key) != name) {
            return Err(self.refuse(elsewhere(other, Some(first))));
        }
        match &self.room {
            Some(room) if room.has(first) => Ok(()),
            // It is refused as a whole: half of it would be worse than none.
            Some(_) if self.touched => Err(self.refuse(elsewhere(first, None))),
            _ => {
                self.needs = Some(name);
                self.stopped = Some("ERR another key is looked up".into());
                Err(Reply::error("ERR", "another key is looked up"))
            }
        }
    }

    /// Ends the script, with nothing done.
    fn refuse(&mut self, refused: Reply) -> Reply {
        if let Reply::Error(told) = &refused {
            self.stopped = Some(told.clone());
        }
        refused
    }

    fn call_without_key(&mut self, name: &str, args: &[Bytes]) -> Reply {
        match name {
            "PING" => args.get(1).map_or(Reply::status("PONG"), |text| Reply::Bytes(text.clone())),
            "ECHO" => Reply::Bytes(args[1].clone()),
            "TIME" => {
                let parts = [self.now / 1000, self.now % 1000 * 1000];
                Reply::Array(parts.map(|part| Reply::text(part.to_string())).into())
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
                self.published.push(Published { channel, message, is_sharded });
                // How many it reaches is known when the script's change is.
                Reply::Number(0)
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

/// What a command of a script was answered, as an error that ends the script.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct CommandFailed(String);

/// An error as a script sees it: that of a command is a table.
fn failure_of(lua: &Lua, value: LuaValue) -> mlua::Result<LuaValue> {
    let LuaValue::Error(error) = &value else { return Ok(value) };
    let mut error: &mlua::Error = error;
    while let mlua::Error::CallbackError { cause, .. } = error {
        error = cause;
    }
    let Some(CommandFailed(text)) = error.downcast_ref::<CommandFailed>() else {
        return Ok(LuaValue::String(lua.create_string(one_line(&error.to_string()))?));
    };
    let table = lua.create_table()?;
    table.raw_set("err", text.as_str())?;
    Ok(LuaValue::Table(table))
}

/// Where a script is: its name and line.
fn place(lua: &Lua) -> Option<(String, usize)> {
    for level in 0..64 {
        let found = lua.inspect_stack(level, |debug| {
            let source = debug.source().source.map(|source| source.into_owned());
            source.filter(|source| source == SOURCE).zip(debug.current_line())
        })?;
        if found.is_some() {
            return found;
        }
    }
    None
}

/// What the prelude makes a script's surroundings of.
fn host(lua: &Lua, input: &Input, state: &Shared) -> mlua::Result<Table> {
    let host = lua.create_table()?;
    let strings = |all: &[Bytes]| {
        let table = lua.create_table_with_capacity(all.len(), 0)?;
        for (at, text) in all.iter().enumerate() {
            table.raw_set(at + 1, lua.create_string(text)?)?;
        }
        Ok::<_, mlua::Error>(table)
    };
    host.raw_set("keys", strings(&input.keys)?)?;
    host.raw_set("args", strings(&input.args)?)?;
    host.raw_set("version", SPEAKS_AS)?;
    host.raw_set("version_number", 0x0007_0200)?;
    host.raw_set("null", LuaValue::NULL)?;
    let own = Rc::clone(state);
    let call =
        lua.create_function(move |lua, args: MultiValue| match self::call(lua, &own, &args)? {
            (false, value) => Ok(value),
            (true, value) => {
                let LuaValue::Table(table) = value else { return Ok(value) };
                let text: mlua::LuaString = table.raw_get("err")?;
                let text = String::from_utf8_lossy(&text.as_bytes()).into_owned();
                Err(mlua::Error::external(CommandFailed(text)))
            }
        })?;
    host.raw_set("call", call)?;
    let own = Rc::clone(state);
    let pcall =
        lua.create_function(move |lua, args: MultiValue| Ok(self::call(lua, &own, &args)?.1))?;
    host.raw_set("pcall", pcall)?;
    host.raw_set("failure", lua.create_function(failure_of)?)?;
    let own = Rc::clone(state);
    host.raw_set("stopped", lua.create_function(move |_, ()| Ok(own.borrow().stopped.clone()))?)?;
    host.raw_set("where", lua.create_function(|lua, ()| Ok(place(lua).unzip()))?)?;
    host.raw_set(
        "position",
        lua.create_function(|lua, ()| {
            Ok(place(lua).map_or(String::new(), |(_, line)| format!("user_script:{line}: ")))
        })?,
    )?;
    host.raw_set("memory", lua.create_function(|lua, ()| Ok(lua.used_memory() / 1024))?)?;
    host.raw_set(
        "error_text",
        lua.create_function(|_, text: mlua::LuaString| {
            Ok(error_text(&String::from_utf8_lossy(&text.as_bytes())))
        })?,
    )?;
    let own = Rc::clone(state);
    host.raw_set(
        "setresp",
        lua.create_function(move |lua, args: MultiValue| {
            match (args.len(), number_of(args.front())) {
                (1, Some(version)) if version == 2.0 || version == 3.0 => {
                    own.borrow_mut().version = if version == 3.0 { 3 } else { 2 };
                    well([])
                }
                (1, _) => badly(lua, "RESP version must be 2 or 3."),
                _ => badly(lua, "redis.setresp() requires one argument."),
            }
        })?,
    )?;
    host.raw_set(
        "sha1hex",
        lua.create_function(|lua, args: MultiValue| match (args.len(), bytes_of(args.front())) {
            (1, Some(text)) => {
                let digest = lua.create_string(super::digest(&text))?;
                well([LuaValue::String(digest)])
            }
            _ => badly(lua, "wrong number of arguments"),
        })?,
    )?;
    host.raw_set("log", lua.create_function(log)?)?;
    let started = Instant::now();
    host.raw_set(
        "clock",
        lua.create_function(move |_, ()| {
            well([LuaValue::Number(started.elapsed().as_secs_f64())])
        })?,
    )?;
    host.raw_set("load", lua.create_function(load)?)?;
    random(lua, &host, state)?;
    text::offer(lua, &host, state)?;
    bits::offer(lua, &host)?;
    json::offer(lua, &host)?;
    msgpack::offer(lua, &host)?;
    Ok(host)
}

fn call(lua: &Lua, state: &Shared, args: &MultiValue) -> mlua::Result<(bool, LuaValue)> {
    let version = state.borrow().version;
    if args.is_empty() {
        let detail = "Please specify at least one argument for this redis.call() call";
        return Ok((true, given(lua, &Reply::error("ERR", detail), version)?));
    }
    let words: Option<Vec<Bytes>> = args
        .iter()
        .map(|arg| match arg {
            LuaValue::Number(number) => Some(Bytes::from(double_text(*number))),
            other => bytes_of(Some(other)),
        })
        .collect();
    let reply = match words {
        Some(words) => state.borrow_mut().call(&words),
        None => {
            let detail = "Lua redis lib command arguments must be strings or integers";
            Reply::error("ERR", detail)
        }
    };
    Ok((reply.is_error(), given(lua, &reply, version)?))
}

/// An error as `redis.error_reply` makes it: with a code.
fn error_text(text: &str) -> String {
    let text = text.strip_prefix('-').unwrap_or(text).trim_end_matches(['\r', '\n']);
    if text.contains(' ') { text.to_owned() } else { format!("ERR {text}") }
}

fn log(lua: &Lua, args: MultiValue) -> Answer {
    let level = number_of(args.front());
    if args.len() < 2 {
        return badly(lua, "redis.log() requires two arguments or more.");
    }
    let Some(level) = level else {
        return badly(lua, "First argument must be a number (log level).");
    };
    let text: Vec<String> = args
        .iter()
        .skip(1)
        .filter_map(|part| bytes_of(Some(part)))
        .map(|part| String::from_utf8_lossy(&part).chars().take(1024).collect())
        .collect();
    let text = text.join(" ");
    if level >= 3.0 {
        tracing::warn!(said = %text, "a Redis client's script logs");
    } else if level >= 2.0 {
        tracing::info!(said = %text, "a Redis client's script logs");
    } else {
        tracing::debug!(said = %text, "a Redis client's script logs");
    }
    well([])
}

/// `loadstring`: text alone, for what is compiled already could be anything.
fn load(
    lua: &Lua,
    (text, name, globals): (mlua::LuaString, String, Table),
) -> mlua::Result<MultiValue> {
    let text = text.as_bytes().to_vec();
    let name = if name.starts_with(['=', '@']) { name } else { format!("={}", one_line(&name)) };
    let chunk = lua.load(text).set_name(name).set_mode(ChunkMode::Text);
    match chunk.set_environment(globals).into_function() {
        Ok(function) => Ok([LuaValue::Function(function)].into_iter().collect()),
        Err(error) => {
            let why = match error {
                mlua::Error::SyntaxError { message, .. } => message,
                other => other.to_string(),
            };
            let why = lua.create_string(one_line(&why))?;
            Ok([LuaValue::Nil, LuaValue::String(why)].into_iter().collect())
        }
    }
}

/// What each script's random numbers begin with, so that they are the same in each run.
const SEED: u64 = 0x330E;
/// The highest of them, in what they are scaled by.
const RANDOM_MAX: u64 = i32::MAX as u64;

fn random(lua: &Lua, host: &Table, state: &Shared) -> mlua::Result<()> {
    let own = Rc::clone(state);
    let next = move || {
        let mut state = own.borrow_mut();
        state.random = state.random.wrapping_mul(0x5_DEEC_E66D).wrapping_add(0xB) & ((1 << 48) - 1);
        #[expect(clippy::cast_precision_loss, reason = "it has 31 bits")]
        let random = ((state.random >> 17) % RANDOM_MAX) as f64 / RANDOM_MAX as f64;
        random
    };
    host.raw_set(
        "random",
        lua.create_function(move |lua, args: MultiValue| {
            let random = next();
            let bound = |at: usize| number_of(args.get(at)).map(f64::floor);
            let (low, high) = match (args.len(), bound(0), bound(1)) {
                (0, ..) => return well([LuaValue::Number(random)]),
                (1, Some(high), _) => (1.0, high),
                (2, Some(low), Some(high)) => (low, high),
                _ => return badly(lua, "wrong number of arguments"),
            };
            if low > high {
                return badly(lua, "bad argument #1 to 'random' (interval is empty)");
            }
            well([LuaValue::Number((random * (high - low + 1.0)).floor() + low)])
        })?,
    )?;
    let own = Rc::clone(state);
    host.raw_set(
        "randomseed",
        lua.create_function(move |lua, args: MultiValue| {
            let Some(seed) = number_of(args.front()) else {
                return badly(lua, "bad argument #1 to 'randomseed' (number expected)");
            };
            #[expect(clippy::cast_possible_truncation, reason = "as Redis does")]
            let seed = u64::from((seed as i64).cast_unsigned() as u32);
            own.borrow_mut().random = seed << 16 | SEED;
            well([])
        })?,
    )?;
    Ok(())
}
