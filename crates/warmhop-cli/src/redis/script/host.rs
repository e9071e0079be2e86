//! The functions beside Lua's own from which the prelude builds what Redis offers to a script.

use std::rc::Rc;

use mlua::chunk::ChunkMode;
use mlua::{Lua, MultiValue, Table, Value as LuaValue};

use super::super::cmd::find;
use super::super::seldom::Seldom;
use super::SPEAKS_AS;
use super::state::{NO_MEMORY, Pace, SEED, Shared};
use super::values::{Answer, badly, bytes_of, number_of, one_line, place, position, well};
use super::{bits, json, msgpack, packing, text};

/// A command's error reply, as an error that ends the script.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct CommandFailed(String);

/// An error of a function that Redis offers: a table, as a command's error is.
fn refuses(why: &str) -> Answer {
    Err(mlua::Error::external(CommandFailed(format!("ERR {why}"))))
}

/// An error as a script sees it: a command's error is a table.
fn failure_of(lua: &Lua, value: LuaValue) -> mlua::Result<LuaValue> {
    let LuaValue::Error(error) = &value else { return without_prelude(lua, value) };
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

/// Whether an error reports that there was no more memory. A script may raise such a text itself: a
/// brief run is then restarted in vain.
fn lacks_memory(error: &LuaValue) -> bool {
    match error {
        LuaValue::Error(error) => error.to_string().contains(NO_MEMORY),
        LuaValue::String(text) => {
            memchr::memmem::find(&text.as_bytes(), NO_MEMORY.as_bytes()).is_some()
        }
        _ => false,
    }
}

/// An error's text without the place in the prelude that it names: Redis has functions in C there,
/// whose errors name no place.
fn without_prelude(lua: &Lua, value: LuaValue) -> mlua::Result<LuaValue> {
    let LuaValue::String(text) = &value else { return Ok(value) };
    let bytes = text.as_bytes();
    let Some(rest) = bytes.strip_prefix(b"prelude:") else { return Ok(value.clone()) };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let rest = rest[digits..].strip_prefix(b": ").unwrap_or(&rest[digits..]);
    Ok(LuaValue::String(lua.create_string(rest)?))
}

/// The table from which the prelude builds a script's environment.
pub(super) fn host(lua: &Lua, state: &Shared) -> mlua::Result<Table> {
    let host = lua.create_table()?;
    host.raw_set("version", SPEAKS_AS)?;
    host.raw_set("version_number", 0x0007_0200)?;
    host.raw_set("null", LuaValue::NULL)?;
    let own = Rc::clone(state);
    let call = lua.create_function(move |lua, args: MultiValue| {
        match super::state::call(lua, &own, &args)? {
            (false, value) => Ok(value),
            (true, value) => {
                let LuaValue::Table(table) = value else { return Ok(value) };
                let text: mlua::LuaString = table.raw_get("err")?;
                let text = String::from_utf8_lossy(&text.as_bytes()).into_owned();
                Err(mlua::Error::external(CommandFailed(text)))
            }
        }
    })?;
    host.raw_set("call", call)?;
    let own = Rc::clone(state);
    let pcall = lua.create_function(move |lua, args: MultiValue| {
        Ok(super::state::call(lua, &own, &args)?.1)
    })?;
    host.raw_set("pcall", pcall)?;
    host.raw_set("failure", lua.create_function(failure_of)?)?;
    host.raw_set("where", lua.create_function(|lua, ()| Ok(place(lua).unzip()))?)?;
    host.raw_set("position", lua.create_function(|lua, ()| Ok(position(lua)))?)?;
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
        lua.create_function(move |_, args: MultiValue| {
            match (args.len(), number_of(args.front())) {
                (1, Some(version)) if version == 2.0 || version == 3.0 => {
                    own.borrow_mut().version = if version == 3.0 { 3 } else { 2 };
                    well([])
                }
                (1, _) => refuses("RESP version must be 2 or 3."),
                _ => refuses("redis.setresp() requires one argument."),
            }
        })?,
    )?;
    let own = Rc::clone(state);
    host.raw_set("sha1hex", lua.create_function(move |lua, args| sha1hex(lua, &own, &args))?)?;
    host.raw_set("acl_check_cmd", lua.create_function(|_, args| acl_check(&args))?)?;
    host.raw_set("log", lua.create_function(log)?)?;
    bounded(lua, &host, state)?;
    random(lua, &host, state)?;
    text::offer(lua, &host, state)?;
    bits::offer(lua, &host)?;
    json::offer(lua, &host, state)?;
    msgpack::offer(lua, &host, state)?;
    packing::offer(lua, &host, state)?;
    Ok(host)
}

/// `redis.sha1hex`.
fn sha1hex(lua: &Lua, state: &Shared, args: &MultiValue) -> Answer {
    if let Err(why) = Pace::begin(state) {
        return badly(lua, why);
    }
    match (args.len(), bytes_of(args.front())) {
        (1, Some(text)) => {
            let digest = lua.create_string(super::digest(&text))?;
            well([LuaValue::String(digest)])
        }
        _ => refuses("wrong number of arguments"),
    }
}

/// Adds the functions that could take much, and the one that ends a run which took too much.
fn bounded(lua: &Lua, host: &Table, state: &Shared) -> mlua::Result<()> {
    let own = Rc::clone(state);
    host.raw_set(
        "stopped",
        lua.create_function(move |_, error: LuaValue| {
            let mut state = own.borrow_mut();
            if lacks_memory(&error) {
                state.outgrows();
            }
            Ok(state.stopped.clone())
        })?,
    )?;
    let own = Rc::clone(state);
    let load = lua.create_function(move |lua, args: (mlua::LuaString, String, Table)| {
        if let Err(why) = Pace::begin(&own) {
            return badly(lua, why);
        }
        own.borrow_mut().makes(args.0.as_bytes().len());
        let loaded = load(lua, args)?;
        if loaded.iter().any(lacks_memory) {
            own.borrow_mut().outgrows();
        }
        Ok(loaded)
    })?;
    host.raw_set("load", load)
}

/// An error as `redis.error_reply` makes it: with a code.
fn error_text(text: &str) -> String {
    let text = text.strip_prefix('-').unwrap_or(text).trim_end_matches(['\r', '\n']);
    if text.contains(' ') { text.to_owned() } else { format!("ERR {text}") }
}

/// `redis.acl_check_cmd`: no user may do less than any other.
fn acl_check(args: &MultiValue) -> Answer {
    match bytes_of(args.front()) {
        None if args.is_empty() => {
            refuses("Please specify at least one argument for this redis.acl_check_cmd() call")
        }
        Some(name) if find(&name).is_some() => well([LuaValue::Boolean(true)]),
        _ => refuses("Invalid command passed to redis.acl_check_cmd()"),
    }
}

fn log(_: &Lua, args: MultiValue) -> Answer {
    let level = number_of(args.front());
    if args.len() < 2 {
        return refuses("redis.log() requires two arguments or more.");
    }
    let Some(level) = level else {
        return refuses("First argument must be a number (log level).");
    };
    if !(0.0..4.0).contains(&level) {
        return refuses("Invalid debug level.");
    }
    let text: Vec<String> = args
        .iter()
        .skip(1)
        .filter_map(|part| bytes_of(Some(part)))
        .map(|part| String::from_utf8_lossy(&part).chars().take(1024).collect())
        .collect();
    let text = text.join(" ");
    // One script may log without end.
    static LINES: Seldom = Seldom::new();
    let Some(not_logged) = LINES.due() else { return well([]) };
    if level >= 3.0 {
        tracing::warn!(said = %text, not_logged, "a Redis client's script logs");
    } else if level >= 2.0 {
        tracing::info!(said = %text, not_logged, "a Redis client's script logs");
    } else {
        tracing::debug!(said = %text, not_logged, "a Redis client's script logs");
    }
    well([])
}

/// `loadstring`: source text only, since bytecode could do anything.
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

/// The highest random number before scaling.
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
                let at = args.len();
                let why = format!("bad argument #{at} to 'random' (interval is empty)");
                return badly(lua, why);
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
