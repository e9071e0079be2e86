//! The commands that are offered, from their arguments.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::frame::{Arguments, KEY_BYTES_MAX, Reply, integer};

/// The longest time to live, about 146 million years: later times could not be counted with.
const TTL_MS_MAX: i64 = 1 << 62;
/// The longest pattern, in bytes: what each key costs that is compared with it.
const PATTERN_BYTES_MAX: usize = 1024;
/// How much of a word that a client sent it is told again, in characters.
const WORD_TOLD_MAX: usize = 64;
/// How many commands are offered, as `COMMAND COUNT` tells it.
pub(super) const OFFERED: i64 = 67;

/// How many databases there are.
pub(super) const DATABASES: u8 = 16;

/// The longest name that a client gives itself, in bytes.
const CLIENT_NAME_BYTES_MAX: usize = 256;

/// A command of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// About the connection: see [`Connection`].
    Connection(Connection),
    /// About what keys hold: see [`Data`].
    Data(Data),
    /// Its arguments make no sense: it is answered this. As a part of a transaction, as well.
    Refused(Reply),
}

/// A command about the connection itself, or that is answered without a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Connection {
    Ping(Option<Bytes>),
    Echo(Bytes),
    Hello {
        version: Option<u8>,
        user: Option<Bytes>,
        name: Option<Bytes>,
    },
    Auth {
        user: Option<Bytes>,
    },
    Select(u8),
    SetName(Bytes),
    GetName,
    Id,
    /// Something that is noted and changes nothing here.
    Noted,
    /// A command of the `COMMAND` family: how many there are, or nothing.
    CommandCount,
    Nothing,
    /// A setting of a Redis server, by its name.
    Setting(String),
    Info,
    Time,
    Quit,
    Reset,
    Multi,
    Exec,
    Discard,
    Watch(Vec<Bytes>),
    Unwatch,
}

/// A command about what keys hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Data {
    Get(Bytes),
    Set {
        key: Bytes,
        value: Bytes,
        ends: Ends,
        when: Existing,
        answer: Answer,
    },
    GetEx {
        key: Bytes,
        ends: Option<Ends>,
    },
    GetDel(Bytes),
    MGet(Vec<Bytes>),
    MSet(Vec<(Bytes, Bytes)>),
    Append {
        key: Bytes,
        more: Bytes,
    },
    StrLen(Bytes),
    IncrBy {
        key: Bytes,
        by: i64,
    },
    Del(Vec<Bytes>),
    Exists(Vec<Bytes>),
    Expire {
        key: Bytes,
        at: SystemTime,
        only: Only,
    },
    /// When a key ends: in `unit`s from now, or since 1970 if `absolute`.
    Ends {
        key: Bytes,
        unit: Unit,
        absolute: bool,
    },
    Persist(Bytes),
    Type(Bytes),
    Rename {
        from: Bytes,
        to: Bytes,
        only_if_free: bool,
    },
    Scan {
        cursor: u64,
        pattern: Option<Bytes>,
        count: usize,
        kind: Option<Bytes>,
    },
    Keys(Bytes),
    DbSize,
    /// Every key of the database, or of `all` of them.
    Flush {
        all: bool,
    },
    HSet {
        key: Bytes,
        fields: Vec<(Bytes, Bytes)>,
        old_form: bool,
    },
    HSetNx {
        key: Bytes,
        field: Bytes,
        value: Bytes,
    },
    HGet {
        key: Bytes,
        field: Bytes,
    },
    HMGet {
        key: Bytes,
        fields: Vec<Bytes>,
    },
    HGetAll(Bytes),
    HKeys(Bytes),
    HVals(Bytes),
    HLen(Bytes),
    HExists {
        key: Bytes,
        field: Bytes,
    },
    HStrLen {
        key: Bytes,
        field: Bytes,
    },
    HDel {
        key: Bytes,
        fields: Vec<Bytes>,
    },
    HIncrBy {
        key: Bytes,
        field: Bytes,
        by: i64,
    },
}

/// When what is set ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// Nothing was said: after the mesh's session time.
    Unsaid,
    /// As what it replaces.
    Keep,
    /// Then.
    At(SystemTime),
}

/// What setting a key is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// `OK`, or nothing where the condition did not hold.
    Status,
    /// 1, or 0 where the condition did not hold.
    Number,
    /// What the key held before.
    Before,
}

/// What a key has to hold for `SET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    Any,
    Nothing,
    Something,
}

/// The conditions of `EXPIRE`: all that are set have to hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Only {
    /// Nobody asked for the key's end.
    pub(super) endless: bool,
    /// Somebody did.
    pub(super) ending: bool,
    /// It comes later than the key's end.
    pub(super) later: bool,
    /// It comes sooner.
    pub(super) earlier: bool,
}

/// The unit of a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Milliseconds,
}

/// Why a command is refused; nothing of it was done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refused {
    /// There is no such command, or not with so many arguments.
    Form(Reply),
    /// One of its arguments makes no sense.
    Argument(Reply),
}

impl Refused {
    fn argument(detail: impl std::fmt::Display) -> Self {
        Self::Argument(Reply::error("ERR", detail))
    }
}

fn syntax() -> Refused {
    Refused::argument("syntax error")
}

fn not_a_number() -> Refused {
    Refused::argument("value is not an integer or out of range")
}

/// A command's arguments, behind its name.
struct Rest {
    name: String,
    /// What times to live are counted from.
    now: SystemTime,
    left: std::vec::IntoIter<Bytes>,
}

impl Rest {
    fn wrong_count(&self) -> Refused {
        let name = self.name.to_ascii_lowercase();
        Refused::Form(Reply::error(
            "ERR",
            format!("wrong number of arguments for '{name}' command"),
        ))
    }

    fn next(&mut self) -> Result<Bytes, Refused> {
        self.left.next().ok_or_else(|| self.wrong_count())
    }

    fn key(&mut self) -> Result<Bytes, Refused> {
        self.next().and_then(checked)
    }

    /// At least one key, and nothing else.
    fn keys(mut self) -> Result<Vec<Bytes>, Refused> {
        let first = self.key()?;
        std::iter::once(Ok(first)).chain(self.left.map(checked)).collect()
    }

    /// The next argument as a word in capitals, if there is one.
    fn word(&mut self) -> Option<String> {
        self.left.next().map(|word| String::from_utf8_lossy(&word).to_ascii_uppercase())
    }

    fn number(&mut self) -> Result<i64, Refused> {
        number(&self.next()?)
    }

    fn pairs(self) -> Result<Vec<(Bytes, Bytes)>, Refused> {
        let wrong = self.wrong_count();
        let all: Vec<Bytes> = self.left.collect();
        match (wrong, all.len()) {
            (wrong, 0 | 1) => return Err(wrong),
            // There are enough of them: that one lacks its other half is seen when it is run.
            (Refused::Form(wrong), len) if !len.is_multiple_of(2) => {
                return Err(Refused::Argument(wrong));
            }
            _ => {}
        }
        Ok(all.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
    }

    fn end<T>(mut self, whole: T) -> Result<T, Refused> {
        match self.left.next() {
            None => Ok(whole),
            Some(_) => Err(self.wrong_count()),
        }
    }
}

fn checked(key: Bytes) -> Result<Bytes, Refused> {
    if key.len() > KEY_BYTES_MAX {
        let detail =
            format!("the key has {} bytes, but at most {KEY_BYTES_MAX} are kept", key.len());
        return Err(Refused::argument(detail));
    }
    Ok(key)
}

fn checked_pattern(pattern: Bytes) -> Result<Bytes, Refused> {
    if pattern.len() > PATTERN_BYTES_MAX {
        let detail = format!("a pattern has at most {PATTERN_BYTES_MAX} bytes");
        return Err(Refused::argument(detail));
    }
    Ok(pattern)
}

fn number(bytes: &[u8]) -> Result<i64, Refused> {
    integer(bytes).ok_or_else(not_a_number)
}

/// A time to live as the command gives it, in `unit`s from now or since 1970.
fn time(count: i64, unit: Unit, absolute: bool, rest: &Rest) -> Result<SystemTime, Refused> {
    let invalid = || invalid_time(&rest.name);
    let scale = match unit {
        Unit::Seconds => 1000,
        Unit::Milliseconds => 1,
    };
    let ms = count.checked_mul(scale).filter(|ms| ms.abs() <= TTL_MS_MAX).ok_or_else(invalid)?;
    let span = Duration::from_millis(ms.unsigned_abs());
    let base = if absolute { UNIX_EPOCH } else { rest.now };
    let time = if ms < 0 { base.checked_sub(span) } else { base.checked_add(span) };
    time.ok_or_else(invalid)
}

/// Reads `EX 10` and its like; `None` where `word` is none of them.
fn ending(word: &str, rest: &mut Rest) -> Result<Option<Ends>, Refused> {
    let (unit, absolute) = match word {
        "EX" => (Unit::Seconds, false),
        "PX" => (Unit::Milliseconds, false),
        "EXAT" => (Unit::Seconds, true),
        "PXAT" => (Unit::Milliseconds, true),
        _ => return Ok(None),
    };
    let count = number(&rest.left.next().ok_or_else(syntax)?)?;
    let at = positive(count, unit, absolute, rest)?;
    Ok(Some(Ends::At(at)))
}

fn invalid_time(command: &str) -> Refused {
    let name = command.to_ascii_lowercase();
    Refused::argument(format!("invalid expire time in '{name}' command"))
}

/// As [`time`], where a value is set: a time that is not above 0 is an error.
fn positive(count: i64, unit: Unit, absolute: bool, rest: &Rest) -> Result<SystemTime, Refused> {
    if count > 0 { time(count, unit, absolute, rest) } else { Err(invalid_time(&rest.name)) }
}

impl Command {
    /// Reads a command. The arguments hold its name at least; its time to live begins `now`.
    ///
    /// # Errors
    /// With what is answered, if there is no such command, or not with so many arguments: a
    /// transaction that it is a part of comes to nothing.
    pub(super) fn parse(arguments: Arguments, now: SystemTime) -> Result<Self, Reply> {
        let mut left = arguments.into_iter();
        let name = left.next().unwrap_or_default();
        let name = String::from_utf8_lossy(&name).to_ascii_uppercase();
        let mut rest = Rest { name, now, left };
        let command = match connection(&mut rest) {
            Ok(Some(command)) => Ok(Self::Connection(command)),
            Ok(None) => data(rest).map(Self::Data),
            Err(refused) => Err(refused),
        };
        command.or_else(|refused| match refused {
            Refused::Form(reply) => Err(reply),
            Refused::Argument(reply) => Ok(Self::Refused(reply)),
        })
    }
}

fn connection(rest: &mut Rest) -> Result<Option<Connection>, Refused> {
    let command = match rest.name.as_str() {
        "PING" => Connection::Ping(rest.left.next()),
        "ECHO" => Connection::Echo(rest.next()?),
        "HELLO" => hello(rest)?,
        "AUTH" => {
            let first = rest.next()?;
            let user = rest.left.next().map(|_| first);
            Connection::Auth { user }
        }
        "SELECT" => {
            let index = rest.number()?;
            let out_of_range = || Refused::argument("DB index is out of range");
            let index = u8::try_from(index).ok().filter(|index| *index < DATABASES);
            Connection::Select(index.ok_or_else(out_of_range)?)
        }
        "CLIENT" => client(rest)?,
        "COMMAND" => match rest.word().as_deref() {
            Some("COUNT") => Connection::CommandCount,
            _ => {
                rest.left.by_ref().for_each(drop);
                Connection::Nothing
            }
        },
        "CONFIG" => match (rest.word().as_deref(), rest.word().as_deref(), rest.left.next()) {
            (Some("GET"), Some(name), None) => Connection::Setting(name.to_ascii_lowercase()),
            _ => {
                let detail =
                    "only CONFIG GET of one name is offered; a peer has its own configuration";
                return Err(Refused::Form(Reply::error("ERR", detail)));
            }
        },
        "INFO" => {
            rest.left.by_ref().for_each(drop);
            Connection::Info
        }
        "TIME" => Connection::Time,
        "QUIT" => Connection::Quit,
        "RESET" => Connection::Reset,
        "MULTI" => Connection::Multi,
        "EXEC" => Connection::Exec,
        "DISCARD" => Connection::Discard,
        "UNWATCH" => Connection::Unwatch,
        "WATCH" => {
            let first = rest.key()?;
            let more: Result<Vec<Bytes>, Refused> = rest.left.by_ref().map(checked).collect();
            Connection::Watch(std::iter::once(first).chain(more?).collect())
        }
        _ => return Ok(None),
    };
    if rest.left.next().is_some() {
        return Err(rest.wrong_count());
    }
    Ok(Some(command))
}

fn hello(rest: &mut Rest) -> Result<Connection, Refused> {
    let unsupported = || Refused::Argument(Reply::error("NOPROTO", "unsupported protocol version"));
    let version = match rest.left.next() {
        None => None,
        Some(version) => {
            let version = number(&version).map_err(|_| {
                Refused::argument("Protocol version is not an integer or out of range")
            })?;
            Some(
                u8::try_from(version)
                    .ok()
                    .filter(|it| [2, 3].contains(it))
                    .ok_or_else(unsupported)?,
            )
        }
    };
    let (mut user, mut name) = (None, None);
    while let Some(word) = rest.word() {
        match word.as_str() {
            "AUTH" => {
                user = Some(rest.left.next().ok_or_else(syntax)?);
                rest.left.next().ok_or_else(syntax)?;
            }
            "SETNAME" => name = Some(client_name(&rest.left.next().ok_or_else(syntax)?)?),
            _ => return Err(syntax()),
        }
    }
    Ok(Connection::Hello { version, user, name })
}

/// A client's name is kept for as long as it is connected, the request that it came in is not.
fn client_name(name: &[u8]) -> Result<Bytes, Refused> {
    if name.len() > CLIENT_NAME_BYTES_MAX {
        let detail = format!("a client's name has at most {CLIENT_NAME_BYTES_MAX} bytes");
        return Err(Refused::argument(detail));
    }
    if !name.iter().all(u8::is_ascii_graphic) {
        let detail = "Client names cannot contain spaces, newlines or special characters.";
        return Err(Refused::argument(detail));
    }
    Ok(Bytes::copy_from_slice(name))
}

fn client(rest: &mut Rest) -> Result<Connection, Refused> {
    Ok(match rest.word().ok_or_else(|| rest.wrong_count())?.as_str() {
        "SETNAME" => Connection::SetName(client_name(&rest.next()?)?),
        "GETNAME" => Connection::GetName,
        "ID" => Connection::Id,
        "SETINFO" | "NO-EVICT" | "NO-TOUCH" => {
            rest.left.by_ref().for_each(drop);
            Connection::Noted
        }
        other => {
            let detail = format!("CLIENT {other} is not offered here; see docs/redis.md");
            return Err(Refused::Form(Reply::error("ERR", detail)));
        }
    })
}

fn data(mut rest: Rest) -> Result<Data, Refused> {
    let name = rest.name.clone();
    match name.as_str() {
        "GET" => {
            let key = rest.key()?;
            rest.end(Data::Get(key))
        }
        "SET" => set(rest),
        "SETEX" | "PSETEX" => {
            let key = rest.key()?;
            let unit = if name == "SETEX" { Unit::Seconds } else { Unit::Milliseconds };
            let count = rest.number()?;
            let value = rest.next()?;
            let ends = Ends::At(positive(count, unit, false, &rest)?);
            rest.end(Data::Set { key, value, ends, when: Existing::Any, answer: Answer::Status })
        }
        "GETSET" => {
            let (key, value) = (rest.key()?, rest.next()?);
            let (ends, when) = (Ends::Unsaid, Existing::Any);
            rest.end(Data::Set { key, value, ends, when, answer: Answer::Before })
        }
        "GETEX" => {
            let key = rest.key()?;
            let mut ends = None;
            while let Some(word) = rest.word() {
                ends = match (ends, word.as_str()) {
                    (None, "PERSIST") => Some(Ends::Unsaid),
                    (None, word) => Some(ending(word, &mut rest)?.ok_or_else(syntax)?),
                    (Some(_), _) => return Err(syntax()),
                };
            }
            Ok(Data::GetEx { key, ends })
        }
        "GETDEL" => {
            let key = rest.key()?;
            rest.end(Data::GetDel(key))
        }
        "MGET" => Ok(Data::MGet(rest.keys()?)),
        "MSET" => {
            let pairs = rest.pairs()?;
            let checked = pairs.into_iter().map(|(key, value)| Ok((checked(key)?, value)));
            Ok(Data::MSet(checked.collect::<Result<_, Refused>>()?))
        }
        "APPEND" => {
            let (key, more) = (rest.key()?, rest.next()?);
            rest.end(Data::Append { key, more })
        }
        "STRLEN" => {
            let key = rest.key()?;
            rest.end(Data::StrLen(key))
        }
        "INCR" | "DECR" => {
            let key = rest.key()?;
            rest.end(Data::IncrBy { key, by: if name == "INCR" { 1 } else { -1 } })
        }
        "INCRBY" | "DECRBY" => {
            let (key, by) = (rest.key()?, rest.number()?);
            let by = if name == "INCRBY" { Some(by) } else { by.checked_neg() };
            rest.end(Data::IncrBy { key, by: by.ok_or_else(not_a_number)? })
        }
        "DEL" | "UNLINK" => Ok(Data::Del(rest.keys()?)),
        "EXISTS" | "TOUCH" => Ok(Data::Exists(rest.keys()?)),
        "EXPIRE" | "PEXPIRE" | "EXPIREAT" | "PEXPIREAT" => {
            let key = rest.key()?;
            let unit = if name.starts_with('P') { Unit::Milliseconds } else { Unit::Seconds };
            let count = rest.number()?;
            let at = time(count, unit, name.ends_with("AT"), &rest)?;
            Ok(Data::Expire { key, at, only: only(&mut rest)? })
        }
        "TTL" | "PTTL" | "EXPIRETIME" | "PEXPIRETIME" => {
            let key = rest.key()?;
            let unit = if name.starts_with('P') { Unit::Milliseconds } else { Unit::Seconds };
            let absolute = name.ends_with("TIME");
            rest.end(Data::Ends { key, unit, absolute })
        }
        "PERSIST" => {
            let key = rest.key()?;
            rest.end(Data::Persist(key))
        }
        "TYPE" => {
            let key = rest.key()?;
            rest.end(Data::Type(key))
        }
        "RENAME" | "RENAMENX" => {
            let (from, to) = (rest.key()?, rest.key()?);
            rest.end(Data::Rename { from, to, only_if_free: name == "RENAMENX" })
        }
        "SETNX" => {
            let (key, value) = (rest.key()?, rest.next()?);
            let (ends, when) = (Ends::Unsaid, Existing::Nothing);
            rest.end(Data::Set { key, value, ends, when, answer: Answer::Number })
        }
        "SCAN" => scan(rest),
        "KEYS" => {
            let pattern = rest.next().and_then(checked_pattern)?;
            rest.end(Data::Keys(pattern))
        }
        "DBSIZE" => rest.end(Data::DbSize),
        "FLUSHDB" | "FLUSHALL" => {
            match rest.word().as_deref() {
                None | Some("ASYNC" | "SYNC") => {}
                Some(_) => return Err(syntax()),
            }
            rest.end(Data::Flush { all: name == "FLUSHALL" })
        }
        _ if name.starts_with('H') => hash(rest),
        _ => Err(unknown(&name)),
    }
}

fn only(rest: &mut Rest) -> Result<Only, Refused> {
    let mut only = Only::default();
    while let Some(word) = rest.word() {
        match word.as_str() {
            "NX" => only.endless = true,
            "XX" => only.ending = true,
            "GT" => only.later = true,
            "LT" => only.earlier = true,
            other => {
                let other: String = other.chars().take(WORD_TOLD_MAX).collect();
                return Err(Refused::argument(format!("Unsupported option {other}")));
            }
        }
    }
    if only.endless && (only.ending || only.later || only.earlier) {
        let detail = "NX and XX, GT or LT options at the same time are not compatible";
        return Err(Refused::argument(detail));
    }
    if only.later && only.earlier {
        let detail = "GT and LT options at the same time are not compatible";
        return Err(Refused::argument(detail));
    }
    Ok(only)
}

fn set(mut rest: Rest) -> Result<Data, Refused> {
    let (key, value) = (rest.key()?, rest.next()?);
    let (mut ends, mut when, mut answer) = (None, Existing::Any, Answer::Status);
    while let Some(word) = rest.word() {
        match word.as_str() {
            "NX" if when == Existing::Any => when = Existing::Nothing,
            "XX" if when == Existing::Any => when = Existing::Something,
            "GET" => answer = Answer::Before,
            "KEEPTTL" if ends.is_none() => ends = Some(Ends::Keep),
            word if ends.is_none() => {
                ends = Some(ending(word, &mut rest)?.ok_or_else(syntax)?);
            }
            _ => return Err(syntax()),
        }
    }
    Ok(Data::Set { key, value, ends: ends.unwrap_or(Ends::Unsaid), when, answer })
}

fn scan(mut rest: Rest) -> Result<Data, Refused> {
    let cursor = rest.next()?;
    let cursor = std::str::from_utf8(&cursor).ok().and_then(|text| text.parse().ok());
    let cursor = cursor.ok_or_else(|| Refused::argument("invalid cursor"))?;
    let (mut pattern, mut count, mut kind) = (None, 10, None);
    while let Some(word) = rest.word() {
        let value = rest.left.next().ok_or_else(syntax)?;
        match word.as_str() {
            "MATCH" => pattern = Some(checked_pattern(value)?),
            "COUNT" => {
                let asked = usize::try_from(number(&value)?).ok();
                count = asked.filter(|count| *count > 0).ok_or_else(syntax)?;
            }
            "TYPE" => kind = Some(value),
            _ => return Err(syntax()),
        }
    }
    Ok(Data::Scan { cursor, pattern, count, kind })
}

fn hash(mut rest: Rest) -> Result<Data, Refused> {
    let name = rest.name.clone();
    let key = rest.key();
    match name.as_str() {
        "HSET" | "HMSET" => {
            let key = key?;
            Ok(Data::HSet { key, fields: rest.pairs()?, old_form: name == "HMSET" })
        }
        "HSETNX" => {
            let (key, field, value) = (key?, rest.next()?, rest.next()?);
            rest.end(Data::HSetNx { key, field, value })
        }
        "HGET" | "HEXISTS" | "HSTRLEN" => {
            let (key, field) = (key?, rest.next()?);
            rest.end(match name.as_str() {
                "HGET" => Data::HGet { key, field },
                "HEXISTS" => Data::HExists { key, field },
                _ => Data::HStrLen { key, field },
            })
        }
        "HMGET" | "HDEL" => {
            let key = key?;
            let fields: Vec<Bytes> = rest.left.by_ref().collect();
            if fields.is_empty() {
                return Err(rest.wrong_count());
            }
            Ok(if name == "HMGET" {
                Data::HMGet { key, fields }
            } else {
                Data::HDel { key, fields }
            })
        }
        "HGETALL" => rest.end(Data::HGetAll(key?)),
        "HKEYS" => rest.end(Data::HKeys(key?)),
        "HVALS" => rest.end(Data::HVals(key?)),
        "HLEN" => rest.end(Data::HLen(key?)),
        "HINCRBY" => {
            let (key, field, by) = (key?, rest.next()?, rest.number()?);
            rest.end(Data::HIncrBy { key, field, by })
        }
        _ => Err(unknown(&name)),
    }
}

fn unknown(name: &str) -> Refused {
    let name: String = name.chars().take(WORD_TOLD_MAX).collect();
    let detail =
        format!("unknown command '{name}': this endpoint keeps sessions, see docs/redis.md");
    Refused::Form(Reply::error("ERR", detail))
}

impl Data {
    /// The keys that it is about; none for those that look through all of them.
    pub(super) fn keys(&self) -> Vec<&Bytes> {
        match self {
            Self::Get(key)
            | Self::Set { key, .. }
            | Self::GetEx { key, .. }
            | Self::GetDel(key)
            | Self::Append { key, .. }
            | Self::StrLen(key)
            | Self::IncrBy { key, .. }
            | Self::Expire { key, .. }
            | Self::Ends { key, .. }
            | Self::Persist(key)
            | Self::Type(key)
            | Self::HSet { key, .. }
            | Self::HSetNx { key, .. }
            | Self::HGet { key, .. }
            | Self::HMGet { key, .. }
            | Self::HGetAll(key)
            | Self::HKeys(key)
            | Self::HVals(key)
            | Self::HLen(key)
            | Self::HExists { key, .. }
            | Self::HStrLen { key, .. }
            | Self::HDel { key, .. }
            | Self::HIncrBy { key, .. } => vec![key],
            Self::MGet(keys) | Self::Del(keys) | Self::Exists(keys) => keys.iter().collect(),
            Self::MSet(pairs) => pairs.iter().map(|(key, _)| key).collect(),
            Self::Rename { from, to, .. } => vec![from, to],
            Self::Scan { .. } | Self::Keys(_) | Self::DbSize | Self::Flush { .. } => Vec::new(),
        }
    }
}
