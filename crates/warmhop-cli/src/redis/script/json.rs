//! `cjson`: values of a script as JSON and back.

use std::cell::Cell;
use std::rc::Rc;

use super::json_options::{Gaps, NoNumber, Options, SETTINGS, Setting, kind_of};
use super::json_read::read;
use super::state::{Pace, Shared};
use super::values::{Answer, badly, bytes_of, in_digits, well};
use mlua::{Function, Lua, MultiValue, Table, Value as LuaValue};

fn put_string(text: &[u8], whole: &mut Vec<u8>) {
    whole.push(b'"');
    for byte in text {
        match byte {
            b'"' => whole.extend_from_slice(b"\\\""),
            b'\\' => whole.extend_from_slice(b"\\\\"),
            b'/' => whole.extend_from_slice(b"\\/"),
            b'\n' => whole.extend_from_slice(b"\\n"),
            b'\r' => whole.extend_from_slice(b"\\r"),
            b'\t' => whole.extend_from_slice(b"\\t"),
            0x08 => whole.extend_from_slice(b"\\b"),
            0x0c => whole.extend_from_slice(b"\\f"),
            0..=0x1f | 0x7f => whole.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            byte => whole.push(*byte),
        }
    }
    whole.push(b'"');
}

/// The length of a list; `None` for a table that is no list.
fn list_len(table: &Table, options: &Options) -> Result<Option<usize>, String> {
    let (mut highest, mut count) = (0, 0);
    for pair in table.pairs::<LuaValue, LuaValue>() {
        let Ok((key, _)) = pair else { return Ok(None) };
        let at = match key {
            LuaValue::Integer(at) => usize::try_from(at).ok(),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is whole"
            )]
            LuaValue::Number(at) if at.fract() == 0.0 && at > 0.0 => Some(at as usize),
            _ => None,
        };
        let Some(at) = at.filter(|at| *at > 0) else { return Ok(None) };
        highest = highest.max(at);
        count += 1;
    }
    match options.gaps(count, highest) {
        Gaps::Few => Ok((count > 0).then_some(highest)),
        Gaps::MakeItAnObject => Ok(None),
        Gaps::AreTooMany => Err("Cannot serialise table: excessively sparse array".into()),
    }
}

/// A table of which a part was written.
enum Level {
    List { table: Table, at: usize, len: usize },
    Object { table: Table, last: LuaValue },
}

/// A text that is being written.
struct Writer {
    options: Options,
    /// The longest text.
    longest: usize,
    whole: Vec<u8>,
    levels: Vec<Level>,
    /// Lua's own.
    next: Function,
    pace: Pace,
}

impl Writer {
    /// Writes a value with all that is in it: level by level, since values may be nested deeper than a
    /// thread's stack is.
    fn write(&mut self, value: &LuaValue) -> Result<(), String> {
        self.begin(value)?;
        loop {
            let value = match self.levels.last_mut() {
                None => return Ok(()),
                Some(Level::List { at, len, .. }) if at == len => {
                    self.whole.push(b']');
                    self.levels.pop();
                    continue;
                }
                Some(Level::List { table, at, .. }) => {
                    if *at > 0 {
                        self.whole.push(b',');
                    }
                    *at += 1;
                    table.raw_get(*at).unwrap_or(LuaValue::Nil)
                }
                Some(Level::Object { table, last }) => {
                    let pair = self.next.call::<(LuaValue, LuaValue)>((&*table, &*last));
                    let (key, value) = pair.map_err(|error| error.to_string())?;
                    if key.is_nil() {
                        self.whole.push(b'}');
                        self.levels.pop();
                        continue;
                    }
                    if !last.is_nil() {
                        self.whole.push(b',');
                    }
                    *last = key.clone();
                    self.put_key(&key)?;
                    value
                }
            };
            self.begin(&value)?;
        }
    }

    /// Writes a value; of a table, only where it begins.
    fn begin(&mut self, value: &LuaValue) -> Result<(), String> {
        self.pace.passes()?;
        if self.whole.len() > self.longest {
            return Err(format!("Cannot serialise, more than {} bytes", self.longest));
        }
        let whole = &mut self.whole;
        match value {
            LuaValue::Nil => whole.extend_from_slice(b"null"),
            LuaValue::LightUserData(it) if it.0.is_null() => whole.extend_from_slice(b"null"),
            LuaValue::Boolean(true) => whole.extend_from_slice(b"true"),
            LuaValue::Boolean(false) => whole.extend_from_slice(b"false"),
            #[expect(clippy::cast_precision_loss, reason = "numbers in Lua 5.1 are of this kind")]
            LuaValue::Integer(number) => self.put_number(*number as f64)?,
            LuaValue::Number(number) => self.put_number(*number)?,
            LuaValue::String(text) => put_string(&text.as_bytes(), whole),
            LuaValue::Table(table) => {
                let depth = self.levels.len() + 1;
                if depth > self.options.levels_written() {
                    return Err(format!("Cannot serialise, excessive nesting ({depth})"));
                }
                let table = table.clone();
                match list_len(&table, &self.options)? {
                    Some(len) => {
                        self.whole.push(b'[');
                        self.levels.push(Level::List { table, at: 0, len });
                    }
                    None => {
                        self.whole.push(b'{');
                        self.levels.push(Level::Object { table, last: LuaValue::Nil });
                    }
                }
            }
            other => {
                let kind = kind_of(Some(other));
                return Err(format!("Cannot serialise {kind}: type not supported"));
            }
        }
        Ok(())
    }

    fn put_number(&mut self, number: f64) -> Result<(), String> {
        if !number.is_finite() {
            match self.options.no_number {
                NoNumber::Refused => {
                    return Err("Cannot serialise number: must not be NaN or Inf".into());
                }
                NoNumber::Null => {
                    self.whole.extend_from_slice(b"null");
                    return Ok(());
                }
                NoNumber::Written if number.is_nan() => {
                    self.whole.extend_from_slice(b"nan");
                    return Ok(());
                }
                NoNumber::Written => {}
            }
        }
        self.whole.extend_from_slice(in_digits(number, self.options.digits()).as_bytes());
        Ok(())
    }

    /// Writes a name with its colon.
    fn put_key(&mut self, key: &LuaValue) -> Result<(), String> {
        match key {
            LuaValue::String(text) => put_string(&text.as_bytes(), &mut self.whole),
            LuaValue::Integer(_) | LuaValue::Number(_) => {
                self.whole.push(b'"');
                self.begin(key)?;
                self.whole.push(b'"');
            }
            other => {
                let kind = kind_of(Some(other));
                return Err(format!(
                    "Cannot serialise {kind}: table key must be a number or string"
                ));
            }
        }
        self.whole.push(b':');
        Ok(())
    }
}

/// One `cjson`: that of all scripts, whose settings last as long as a run, or one with settings of its own
/// that a script has made.
#[derive(Clone)]
struct Library {
    state: Shared,
    own: Option<Rc<Cell<Options>>>,
}

impl Library {
    fn options(&self) -> Options {
        self.own.as_ref().map_or_else(|| self.state.borrow().json, |own| own.get())
    }

    fn set(&self, lua: &Lua, setting: (&str, Setting), args: &MultiValue) -> Answer {
        let mut options = self.options();
        let answer = options.set(lua, setting, args);
        match &self.own {
            Some(own) => own.set(options),
            None => self.state.borrow_mut().json = options,
        }
        answer
    }

    fn encode(&self, lua: &Lua, args: &MultiValue) -> Answer {
        if args.len() != 1 {
            return badly(lua, "bad argument #1 to 'encode' (expected 1 argument)");
        }
        let pace = match Pace::begin(&self.state) {
            Ok(pace) => pace,
            Err(why) => return badly(lua, why),
        };
        let (options, longest) = (self.options(), self.state.borrow().bounds.text);
        let next = lua.globals().raw_get("next")?;
        let (whole, levels) = (Vec::new(), Vec::new());
        let mut writer = Writer { options, longest, whole, levels, next, pace };
        let written = writer.write(args.front().unwrap_or(&LuaValue::Nil));
        self.state.borrow_mut().makes(writer.whole.len());
        match written {
            Ok(()) => well([LuaValue::String(lua.create_string(writer.whole)?)]),
            Err(why) => badly(lua, why),
        }
    }

    fn decode(&self, lua: &Lua, args: &MultiValue) -> Answer {
        if args.len() != 1 {
            return badly(lua, "bad argument #1 to 'decode' (expected 1 argument)");
        }
        let Some(text) = bytes_of(args.front()) else {
            let got = kind_of(args.front());
            let why = format!("bad argument #1 to 'decode' (string expected, got {got})");
            return badly(lua, why);
        };
        match Pace::begin(&self.state).and_then(|pace| read(lua, &text, self.options(), pace)) {
            Ok(value) => well([value]),
            Err(why) => badly(lua, why),
        }
    }

    /// Its functions, as scripts find them.
    fn table(&self, lua: &Lua) -> mlua::Result<Table> {
        let table = lua.create_table()?;
        table.raw_set("null", LuaValue::NULL)?;
        table.raw_set("_NAME", "cjson")?;
        table.raw_set("_VERSION", "2.1.0")?;
        let it = self.clone();
        let encode = lua.create_function(move |lua, args| it.encode(lua, &args))?;
        table.raw_set("encode", encode)?;
        let it = self.clone();
        let decode = lua.create_function(move |lua, args| it.decode(lua, &args))?;
        table.raw_set("decode", decode)?;
        for setting in SETTINGS {
            let it = self.clone();
            let set = lua.create_function(move |lua, args| it.set(lua, setting, &args))?;
            table.raw_set(setting.0, set)?;
        }
        let state = self.state.clone();
        let new = lua.create_function(move |lua, _: MultiValue| {
            Self { state: Rc::clone(&state), own: Some(Rc::default()) }.table(lua)
        })?;
        table.raw_set("new", new)?;
        Ok(table)
    }
}

/// Adds the library to the host's table for the prelude.
pub(super) fn offer(lua: &Lua, host: &Table, state: &Shared) -> mlua::Result<()> {
    let library = Library { state: Rc::clone(state), own: None };
    host.raw_set("cjson", library.table(lua)?)
}
