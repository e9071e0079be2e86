//! Commands carried out on the mesh's registers. A command that reads, changes and writes is
//! tried again where another was faster; each register is changed by itself.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use warmhop::{Expires, RegisterError, Registers, When};

use super::command::{Answer, Data, Ends, Existing, Unit};
use super::frame::{Reply, VALUE_BYTES_MAX, integer};
use super::glob;
use super::turns::{Place, Turn, Turns};
use super::value::{TooLarge, Value};

/// The code of the answer to a command that may have been done.
const UNKNOWN: &str = "UNKNOWN";
/// How often a command is tried that others keep being faster than.
const TRIES_MAX: u32 = 100;
/// How often a key is renamed that others keep changing meanwhile.
const RENAMED_MAX: u32 = 16;
/// How many keys of one command are looked up at once.
const AT_ONCE: usize = 16;
/// The most that one command is answered, in bytes.
pub(super) const REPLY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The most keys that `KEYS` tells; SCAN tells more.
const KEYS_MAX: usize = 100_000;
/// The most bytes of keys that `KEYS` tells.
const KEYS_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How many keys are asked for at once where all are looked through.
const LISTED_AT_ONCE: usize = 1000;

/// A database of the endpoint: 0 to 15, each with keys of its own.
#[derive(Clone)]
pub(super) struct Database {
    pub(super) registers: Registers,
    pub(super) turns: Arc<Turns>,
    pub(super) index: u8,
    /// The keys that its client watches, while a transaction runs.
    pub(super) guards: Arc<[Guard]>,
}

/// A key that a client watches. Its first change by the transaction is one step with the comparison
/// that it holds what it held; from then on it holds what the transaction made of it.
pub(super) struct Guard {
    /// Its register's name.
    pub(super) name: Bytes,
    pub(super) held: Watched,
    pub(super) spent: AtomicBool,
}

/// Why a command came to nothing.
enum Stop {
    /// Its client is told so.
    Told(Reply),
    /// A key that its client watches was changed by another.
    WatchedChanged(WatchedChanged),
}

impl From<Reply> for Stop {
    fn from(reply: Reply) -> Self {
        Self::Told(reply)
    }
}

impl Stop {
    const WATCHED_CHANGED: Self = Self::WatchedChanged(WatchedChanged { some_changed: false });

    /// What its client is told where the command may have done a part of it before.
    fn partly(self) -> Self {
        match self {
            Self::Told(Reply::Error(told)) => {
                let why = told.split_once(' ').map_or(told.as_str(), |(_, why)| why);
                let why = why.trim_start_matches("nothing was done: ");
                let detail = format!("some of the keys may have been changed: {why}");
                Self::Told(Reply::error(UNKNOWN, detail))
            }
            Self::Told(reply) => Self::Told(reply),
            Self::WatchedChanged(_) => Self::WatchedChanged(WatchedChanged { some_changed: true }),
        }
    }

    /// Whether it leaves everything as it was.
    fn changes_nothing(&self) -> bool {
        !matches!(self, Self::Told(Reply::Error(told)) if told.starts_with(UNKNOWN))
    }
}

/// A key that the client watches was changed by another: the command was not carried out, or only
/// for some of its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WatchedChanged {
    pub(super) some_changed: bool,
}

/// What a watched key held: its version, or nothing.
pub(super) type Watched = Option<u64>;

/// What is to become of a key.
enum Step {
    /// Nothing: the answer is known.
    Leave(Reply),
    /// It holds this from now on.
    Put(Value, Expires, Reply),
    /// It holds nothing from now on.
    Delete(Reply),
}

/// What a key holds.
struct Held {
    value: Value,
    version: u64,
    expires: SystemTime,
    /// Nobody asked for an end: to clients it has none, although it ends when sessions do.
    endless: bool,
}

fn failed(error: RegisterError) -> Reply {
    match error {
        // As servers of a cluster say that a command may be sent again.
        RegisterError::Unavailable(_) => Reply::error("TRYAGAIN", error),
        // Word for word as servers say it: clients look for it.
        RegisterError::Full(_) => {
            Reply::error("OOM", "command not allowed when used memory > 'maxmemory'.")
        }
        RegisterError::OutcomeUnknown(_) => Reply::error(UNKNOWN, error),
        _ => Reply::error("ERR", error),
    }
}

fn wrong_type() -> Reply {
    let detail = "Operation against a key holding the wrong kind of value";
    Reply::error("WRONGTYPE", detail)
}

fn too_much(what: &str) -> Reply {
    Reply::error("ERR", format!("the answer exceeds {REPLY_BYTES_MAX} bytes: ask for fewer {what}"))
}

fn too_large(_: TooLarge) -> Reply {
    Reply::error("ERR", format!("a value has at most {VALUE_BYTES_MAX} bytes"))
}

impl Database {
    /// The name of a key's register.
    pub(super) fn name(&self, key: &[u8]) -> Bytes {
        let mut name = BytesMut::with_capacity(1 + key.len());
        name.put_u8(self.index);
        name.put_slice(key);
        name.freeze()
    }

    async fn held(&self, name: &[u8]) -> Result<Option<Held>, Reply> {
        let Some(found) = self.registers.get(name).await.map_err(failed)? else { return Ok(None) };
        let (value, endless) = Value::decode(found.bytes)
            .ok_or_else(|| Reply::error("ERR", "the key holds what this version cannot read"))?;
        Ok(Some(Held { value, version: found.version, expires: found.expires, endless }))
    }

    /// What a key is to hold for a watching client's command to go ahead, by its register's name.
    pub(super) async fn watch(&self, name: &[u8]) -> Result<Watched, Reply> {
        Ok(self.held(name).await?.map(|held| held.version))
    }

    async fn string(&self, key: &[u8]) -> Result<Option<Bytes>, Reply> {
        match self.held(&self.name(key)).await? {
            None => Ok(None),
            Some(Held { value: Value::String(bytes), .. }) => Ok(Some(bytes)),
            Some(_) => Err(wrong_type()),
        }
    }

    async fn hash(&self, key: &[u8]) -> Result<Vec<(Bytes, Bytes)>, Reply> {
        match self.held(&self.name(key)).await? {
            None => Ok(Vec::new()),
            Some(Held { value: Value::Hash(fields), .. }) => Ok(fields),
            Some(_) => Err(wrong_type()),
        }
    }

    async fn field(&self, key: &[u8], field: &[u8]) -> Result<Option<Bytes>, Reply> {
        let fields = self.hash(key).await?;
        Ok(fields.into_iter().find(|(name, _)| name == field).map(|(_, value)| value))
    }

    fn guard(&self, name: &[u8]) -> Option<&Guard> {
        let fresh = |guard: &&Guard| guard.name == name && !guard.spent.load(Ordering::Relaxed);
        self.guards.iter().find(fresh)
    }

    /// Reads a key and changes it to what `decide` makes of it, as one step.
    async fn update(
        &self,
        key: &[u8],
        mut decide: impl FnMut(Option<Held>) -> Result<Step, Reply> + Send,
    ) -> Result<Reply, Stop> {
        let name = self.name(key);
        let place = self.turns.wait(&name, Turn::Alone).await?;
        for _ in 0..TRIES_MAX {
            let held = self.held(&name).await.inspect_err(|_| place.in_vain())?;
            let version = held.as_ref().map(|held| held.version);
            let endless = held.as_ref().is_none_or(|held| held.endless);
            let guard = self.guard(&name);
            if guard.is_some_and(|guard| guard.held != version) {
                return Err(Stop::WATCHED_CHANGED);
            }
            let when = version.map_or(When::Absent, When::Version);
            let (change, reply) = match decide(held)? {
                Step::Leave(reply) => return Ok(reply),
                Step::Put(value, expires, reply) => {
                    let endless = match expires {
                        Expires::Default => true,
                        Expires::Keep => endless,
                        _ => false,
                    };
                    let kept = value.encode(endless).map_err(too_large)?;
                    (self.registers.put(&name, kept, expires, when).await, reply)
                }
                Step::Delete(reply) => (self.registers.delete(&name, when).await, reply),
            };
            if change.inspect_err(|_| place.in_vain()).map_err(failed)?.done {
                if let Some(guard) = guard {
                    guard.spent.store(true, Ordering::Relaxed);
                }
                return Ok(reply);
            }
        }
        Err(Reply::error("TRYAGAIN", "others kept changing the key; nothing was done").into())
    }

    /// Changes the fields of a hash.
    async fn update_hash(
        &self,
        key: &[u8],
        mut change: impl FnMut(&mut Vec<(Bytes, Bytes)>) -> Result<(bool, Reply), Reply> + Send,
    ) -> Result<Reply, Stop> {
        self.update(key, |held| {
            let mut fields = match held {
                None => Vec::new(),
                Some(Held { value: Value::Hash(fields), .. }) => fields,
                Some(_) => return Err(wrong_type()),
            };
            let (changed, reply) = change(&mut fields)?;
            Ok(match (changed, fields.is_empty()) {
                (false, _) => Step::Leave(reply),
                (true, true) => Step::Delete(reply),
                (true, false) => Step::Put(Value::Hash(fields), Expires::Keep, reply),
            })
        })
        .await
    }

    /// Carries a command out.
    ///
    /// # Errors
    /// If a key of [`Database::guards`] that it would have changed was changed by another.
    pub(super) async fn execute(self, data: Data) -> Result<Reply, WatchedChanged> {
        match self.run(data).await {
            Ok(reply) | Err(Stop::Told(reply)) => Ok(reply),
            Err(Stop::WatchedChanged(changed)) => Err(changed),
        }
    }

    async fn run(&self, data: Data) -> Result<Reply, Stop> {
        match data {
            Data::Get(key) => Ok(Reply::optional(self.string(&key).await?)),
            Data::Set { key, value, ends, when, answer } => {
                self.set(&key, value, ends, when, answer).await
            }
            Data::GetEx { key, ends } => {
                self.update(&key, |held| {
                    let Some(held) = held else { return Ok(Step::Leave(Reply::Null)) };
                    let Value::String(bytes) = &held.value else { return Err(wrong_type()) };
                    let reply = Reply::Bytes(bytes.clone());
                    Ok(match ends {
                        None | Some(Ends::Keep) => Step::Leave(reply),
                        Some(Ends::At(at)) if at <= self.registers.now() => Step::Delete(reply),
                        Some(Ends::At(at)) => Step::Put(held.value, Expires::At(at), reply),
                        Some(Ends::Unsaid) => Step::Put(held.value, Expires::Default, reply),
                    })
                })
                .await
            }
            Data::GetDel(key) => {
                self.update(&key, |held| match held {
                    None => Ok(Step::Leave(Reply::Null)),
                    Some(Held { value: Value::String(bytes), .. }) => {
                        Ok(Step::Delete(Reply::Bytes(bytes)))
                    }
                    Some(_) => Err(wrong_type()),
                })
                .await
            }
            Data::MGet(keys) => self.get_many(keys).await,
            Data::MSet(pairs) => {
                // Of a key that is named twice, the last value counts.
                let last: HashMap<Bytes, Bytes> = pairs.into_iter().collect();
                if last.values().any(|value| value.len() > VALUE_BYTES_MAX) {
                    return Err(too_large(TooLarge).into());
                }
                let set = |(key, value): (Bytes, Bytes)| async move {
                    let (ends, when) = (Ends::Unsaid, Existing::Any);
                    self.set(&key, value, ends, when, Answer::Number).await
                };
                change_all(last, set).await.whole()?;
                Ok(Reply::OK)
            }
            Data::Append { key, more } => {
                self.update(&key, |held| {
                    let mut whole = BytesMut::new();
                    match held.map(|held| held.value) {
                        None => {}
                        Some(Value::String(bytes)) => whole.extend_from_slice(&bytes),
                        Some(_) => return Err(wrong_type()),
                    }
                    whole.extend_from_slice(&more);
                    let reply = length(whole.len());
                    Ok(Step::Put(Value::String(whole.freeze()), Expires::Keep, reply))
                })
                .await
            }
            Data::StrLen(key) => {
                Ok(length(self.string(&key).await?.map_or(0, |bytes| bytes.len())))
            }
            Data::IncrBy { key, by } => {
                self.update(&key, |held| {
                    let text = match held.map(|held| held.value) {
                        None => None,
                        Some(Value::String(bytes)) => Some(bytes),
                        Some(_) => return Err(wrong_type()),
                    };
                    let sum = add(text.as_deref(), by, "value")?;
                    let value = Value::String(Bytes::from(sum.to_string()));
                    Ok(Step::Put(value, Expires::Keep, Reply::Number(sum)))
                })
                .await
            }
            Data::Del(keys) => {
                let delete = |key: Bytes| async move { self.delete(&self.name(&key)).await };
                change_all(keys, delete).await.whole().map(Reply::Number)
            }
            Data::Exists(keys) => {
                let exists = |key: Bytes| async move {
                    let held = self.registers.get(&self.name(&key)).await.map_err(failed)?;
                    Ok(Reply::Number(i64::from(held.is_some())))
                };
                count_all(keys, exists).await
            }
            Data::Expire { key, at, only } => {
                self.update(&key, |held| {
                    let no = Ok(Step::Leave(Reply::Number(0)));
                    let Some(held) = held else { return no };
                    let holds = (!only.endless || held.endless)
                        && (!only.ending || !held.endless)
                        && (!only.later || (!held.endless && at > held.expires))
                        && (!only.earlier || held.endless || at < held.expires);
                    let yes = Reply::Number(1);
                    match (holds, at <= self.registers.now()) {
                        (false, _) => no,
                        (true, true) => Ok(Step::Delete(yes)),
                        (true, false) => Ok(Step::Put(held.value, Expires::At(at), yes)),
                    }
                })
                .await
            }
            Data::Ends { key, unit, absolute } => {
                let Some(held) = self.held(&self.name(&key)).await? else {
                    return Ok(Reply::Number(-2));
                };
                if held.endless {
                    return Ok(Reply::Number(-1));
                }
                let since = if absolute { UNIX_EPOCH } else { self.registers.now() };
                let left = held.expires.duration_since(since).unwrap_or_default();
                Ok(Reply::Number(in_unit(left, unit)))
            }
            Data::Persist(key) => {
                self.update(&key, |held| {
                    Ok(match held {
                        Some(held) if !held.endless => {
                            Step::Put(held.value, Expires::Default, Reply::Number(1))
                        }
                        _ => Step::Leave(Reply::Number(0)),
                    })
                })
                .await
            }
            Data::Type(key) => {
                let held = self.held(&self.name(&key)).await?;
                Ok(Reply::Status(held.map_or("none", |held| held.value.kind())))
            }
            Data::Rename { from, to, only_if_free } => self.rename(&from, &to, only_if_free).await,
            Data::Scan { cursor, pattern, count, kind } => {
                self.scan(cursor, pattern, count, kind).await
            }
            Data::Keys(pattern) => {
                let mut found = Found::default();
                self.each_key(|key| match glob::matches(&pattern, &key) {
                    true => found.add(key),
                    false => Ok(()),
                })
                .await?;
                Ok(Reply::Array(found.keys))
            }
            Data::DbSize => {
                let mut keys = 0;
                self.each_key(|_| {
                    keys += 1;
                    Ok(())
                })
                .await?;
                Ok(length(keys))
            }
            Data::Flush { all } => self.flush(all).await,
            Data::HSet { key, fields, old_form } => {
                self.update_hash(&key, |held| {
                    let mut added = 0;
                    // So many that looking for each among all would take its time.
                    let mut places: HashMap<Bytes, usize> =
                        held.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
                    for (field, value) in &fields {
                        match places.get(field) {
                            Some(at) => held[*at].1 = value.clone(),
                            None => {
                                places.insert(field.clone(), held.len());
                                held.push((field.clone(), value.clone()));
                                added += 1;
                            }
                        }
                    }
                    let reply = if old_form { Reply::OK } else { Reply::Number(added) };
                    Ok((true, reply))
                })
                .await
            }
            Data::HSetNx { key, field, value } => {
                self.update_hash(&key, |held| {
                    if held.iter().any(|(name, _)| *name == field) {
                        return Ok((false, Reply::Number(0)));
                    }
                    held.push((field.clone(), value.clone()));
                    Ok((true, Reply::Number(1)))
                })
                .await
            }
            Data::HGet { key, field } => Ok(Reply::optional(self.field(&key, &field).await?)),
            Data::HMGet { key, fields } => {
                let held: HashMap<Bytes, Bytes> = self.hash(&key).await?.into_iter().collect();
                let mut values = Vec::with_capacity(fields.len());
                let mut size = 0;
                for field in &fields {
                    let value = Reply::optional(held.get(field).cloned());
                    size += value.size();
                    if size > REPLY_BYTES_MAX {
                        return Err(too_much("fields").into());
                    }
                    values.push(value);
                }
                Ok(Reply::Array(values))
            }
            Data::HGetAll(key) => {
                let fields = self.hash(&key).await?.into_iter();
                let pair = |(field, value)| (Reply::Bytes(field), Reply::Bytes(value));
                Ok(Reply::Map(fields.map(pair).collect()))
            }
            Data::HKeys(key) => {
                let fields = self.hash(&key).await?.into_iter();
                Ok(Reply::Array(fields.map(|(field, _)| Reply::Bytes(field)).collect()))
            }
            Data::HVals(key) => {
                let fields = self.hash(&key).await?.into_iter();
                Ok(Reply::Array(fields.map(|(_, value)| Reply::Bytes(value)).collect()))
            }
            Data::HLen(key) => Ok(length(self.hash(&key).await?.len())),
            Data::HExists { key, field } => {
                let found = self.field(&key, &field).await?;
                Ok(Reply::Number(i64::from(found.is_some())))
            }
            Data::HStrLen { key, field } => {
                Ok(length(self.field(&key, &field).await?.map_or(0, |value| value.len())))
            }
            Data::HDel { key, fields } => {
                let fields: HashSet<Bytes> = fields.into_iter().collect();
                self.update_hash(&key, |held| {
                    let before = held.len();
                    held.retain(|(name, _)| !fields.contains(name));
                    let gone = before - held.len();
                    Ok((gone > 0, length(gone)))
                })
                .await
            }
            Data::HIncrBy { key, field, by } => {
                self.update_hash(&key, |held| {
                    let value = held.iter().find(|(name, _)| *name == field);
                    let sum = add(value.map(|(_, value)| &value[..]), by, "hash value")?;
                    put(held, &field, &Bytes::from(sum.to_string()));
                    Ok((true, Reply::Number(sum)))
                })
                .await
            }
        }
    }

    async fn set(
        &self,
        key: &[u8],
        value: Bytes,
        ends: Ends,
        when: Existing,
        answer: Answer,
    ) -> Result<Reply, Stop> {
        let value = Value::String(value);
        let expires = match ends {
            Ends::Unsaid => Expires::Default,
            Ends::Keep => Expires::Keep,
            Ends::At(at) => Expires::At(at),
        };
        // What keeps its end keeps it from somewhere.
        let reads = answer == Answer::Before || ends == Ends::Keep;
        if !reads && self.guard(&self.name(key)).is_none() {
            // One operation does.
            let kept = value.encode(ends == Ends::Unsaid).map_err(too_large)?;
            let when = match when {
                Existing::Any => When::Always,
                Existing::Nothing => When::Absent,
                Existing::Something => When::Present,
            };
            let name = self.name(key);
            let place = self.turns.wait(&name, Turn::Together).await?;
            let change = self.registers.put(&name, kept, expires, when).await;
            let change = change.inspect_err(|_| place.in_vain()).map_err(failed)?;
            return Ok(match (answer, change.done) {
                (Answer::Number, done) => Reply::Number(i64::from(done)),
                (_, true) => Reply::OK,
                (_, false) => Reply::Null,
            });
        }
        self.update(key, |held| {
            let holds = match when {
                Existing::Any => true,
                Existing::Nothing => held.is_none(),
                Existing::Something => held.is_some(),
            };
            let reply = match (answer, held.map(|held| held.value)) {
                (Answer::Before, None) => Reply::Null,
                (Answer::Before, Some(Value::String(before))) => Reply::Bytes(before),
                (Answer::Before, Some(_)) => return Err(wrong_type()),
                (Answer::Number, _) => Reply::Number(i64::from(holds)),
                (Answer::Status, _) if holds => Reply::OK,
                (Answer::Status, _) => Reply::Null,
            };
            Ok(if holds { Step::Put(value.clone(), expires, reply) } else { Step::Leave(reply) })
        })
        .await
    }

    /// Deletes a key, by its register's name.
    async fn delete(&self, name: &Bytes) -> Result<Reply, Stop> {
        if self.guard(name).is_some() {
            let gone = |held: Option<Held>| match held {
                None => Ok(Step::Leave(Reply::Number(0))),
                Some(_) => Ok(Step::Delete(Reply::Number(1))),
            };
            return self.update(&name.slice(1..), gone).await;
        }
        let place = self.turns.wait(name, Turn::Together).await?;
        let change = self.registers.delete(name, When::Present).await;
        let change = change.inspect_err(|_| place.in_vain()).map_err(failed)?;
        Ok(Reply::Number(i64::from(change.done)))
    }

    async fn get_many(&self, keys: Vec<Bytes>) -> Result<Reply, Stop> {
        let mut found = stream::iter(keys)
            .map(|key| async move {
                match self.held(&self.name(&key)).await? {
                    Some(Held { value: Value::String(bytes), .. }) => Ok(Reply::Bytes(bytes)),
                    // As Redis does: what is no string is nothing here.
                    _ => Ok::<_, Reply>(Reply::Null),
                }
            })
            .buffered(AT_ONCE);
        let (mut values, mut size) = (Vec::new(), 0);
        while let Some(value) = found.try_next().await? {
            size += value.size();
            if size > REPLY_BYTES_MAX {
                return Err(too_much("keys").into());
            }
            values.push(value);
        }
        Ok(Reply::Array(values))
    }

    /// Two registers are two steps: one that fails between them leaves both keys there.
    async fn rename(&self, from: &[u8], to: &[u8], only_if_free: bool) -> Result<Reply, Stop> {
        let (from, to) = (self.name(from), self.name(to));
        // In one order, whoever renames what: nobody waits for one who waits for him.
        let first = self.turns.wait((&from).min(&to), Turn::Alone).await?;
        let second = match from == to {
            true => None,
            false => Some(self.turns.wait((&from).max(&to), Turn::Alone).await?),
        };
        let in_vain =
            || [Some(&first), second.as_ref()].into_iter().flatten().for_each(Place::in_vain);
        // The version that it gave the new key, once it has.
        let mut moved = None;
        for _ in 0..RENAMED_MAX {
            let held = self.held(&from).await.inspect_err(|_| in_vain());
            let Some(held) = held.map_err(|reply| partly_if(moved, reply))? else {
                let none = Reply::error("ERR", "no such key");
                return Err(partly_if(moved, none));
            };
            if from == to {
                return Ok(if only_if_free { Reply::Number(0) } else { Reply::OK });
            }
            let kept = held.value.encode(held.endless).map_err(too_large)?;
            let when = match (only_if_free, moved) {
                (false, _) => When::Always,
                (true, None) => When::Absent,
                (true, Some(version)) => When::Version(version),
            };
            let expires = if held.endless { Expires::Default } else { Expires::At(held.expires) };
            let put = self.registers.put(&to, kept, expires, when).await;
            let put = put.inspect_err(|_| in_vain());
            let put = put.map_err(|error| partly_if(moved, failed(error)))?;
            match (put.done, moved) {
                (true, _) => moved = Some(put.version),
                (false, None) => return Ok(Reply::Number(0)),
                (false, Some(_)) => break,
            }
            let deleted = self.registers.delete(&from, When::Version(held.version)).await;
            let deleted = deleted.inspect_err(|_| in_vain());
            if deleted.map_err(|error| partly_if(moved, failed(error)))?.done {
                return Ok(if only_if_free { Reply::Number(1) } else { Reply::OK });
            }
        }
        let detail = "others kept changing the key while it was renamed; both are there now";
        Err(Stop::Told(Reply::error("ERR", detail)).partly())
    }

    async fn scan(
        &self,
        cursor: u64,
        pattern: Option<Bytes>,
        count: usize,
        kind: Option<Bytes>,
    ) -> Result<Reply, Stop> {
        let (names, next) = self.registers.keys(cursor, count).await.map_err(failed)?;
        let is_match = |name: &Bytes| {
            let key = self.key(name)?;
            pattern.as_ref().is_none_or(|pattern| glob::matches(pattern, &key)).then_some(key)
        };
        let names: Vec<Bytes> = names.into_iter().filter(|name| is_match(name).is_some()).collect();
        let kind = kind.as_deref();
        let found = stream::iter(names)
            .map(|name| async move {
                let is_kind = match kind {
                    None => true,
                    Some(kind) => self.held(&name).await?.is_some_and(|held| {
                        kind.eq_ignore_ascii_case(held.value.kind().as_bytes())
                    }),
                };
                Ok::<_, Reply>(self.key(&name).filter(|_| is_kind).map(Reply::Bytes))
            })
            .buffered(AT_ONCE)
            .try_filter_map(|key| std::future::ready(Ok(key)));
        let found: Vec<Reply> = found.try_collect().await?;
        Ok(Reply::Array(vec![Reply::text(next.to_string()), Reply::Array(found)]))
    }

    /// The key of a register of this database.
    fn key(&self, name: &Bytes) -> Option<Bytes> {
        (name.first() == Some(&self.index)).then(|| name.slice(1..))
    }

    async fn each_key(
        &self,
        mut each: impl FnMut(Bytes) -> Result<(), Reply> + Send,
    ) -> Result<(), Reply> {
        let mut cursor = 0;
        loop {
            let listed = self.registers.keys(cursor, LISTED_AT_ONCE).await;
            let (names, next) = listed.map_err(failed)?;
            names.iter().filter_map(|name| self.key(name)).try_for_each(&mut each)?;
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }

    async fn flush(&self, all: bool) -> Result<Reply, Stop> {
        let (mut cursor, mut flushed) = (0, Changes::default());
        loop {
            let listed = self.registers.keys(cursor, LISTED_AT_ONCE).await;
            let (names, next) = match listed {
                Ok(listed) => listed,
                Err(error) => {
                    flushed.stop = Some(failed(error).into());
                    return flushed.whole().map(Reply::Number);
                }
            };
            let mine = names.into_iter().filter(|name| all || self.key(name).is_some());
            let delete = |name: Bytes| async move { self.delete(&name).await };
            flushed.add(change_all(mine, delete).await);
            if flushed.stop.is_some() || next == 0 {
                return flushed.whole().map(|_| Reply::OK);
            }
            cursor = next;
        }
    }
}

/// What `KEYS` has found.
#[derive(Default)]
struct Found {
    keys: Vec<Reply>,
    bytes: usize,
}

impl Found {
    fn add(&mut self, key: Bytes) -> Result<(), Reply> {
        let key = Reply::Bytes(key);
        self.bytes += key.size();
        self.keys.push(key);
        if self.keys.len() > KEYS_MAX || self.bytes > KEYS_BYTES_MAX {
            let detail = format!(
                "more than {KEYS_MAX} keys match, or {KEYS_BYTES_MAX} bytes of them: use SCAN"
            );
            return Err(Reply::error("ERR", detail));
        }
        Ok(())
    }
}

/// What came of a command that changes several keys, each by itself.
#[derive(Default)]
struct Changes {
    /// How many were changed for certain.
    done: i64,
    /// One may have been changed whose answer is unknown.
    unknown: bool,
    /// Why not all of them were.
    stop: Option<Stop>,
}

impl Changes {
    fn add(&mut self, more: Self) {
        self.done += more.done;
        self.unknown |= more.unknown;
        self.stop = self.stop.take().or(more.stop);
    }

    /// How many were changed, if the command was carried out for all of them.
    fn whole(self) -> Result<i64, Stop> {
        match self.stop {
            None => Ok(self.done),
            Some(stop) if self.done > 0 || self.unknown => Err(stop.partly()),
            Some(stop) => Err(stop),
        }
    }
}

/// Changes several keys, some at a time. `one` answers how many it changed. After one that fails no
/// other is begun, but what is under way is waited for: it decides what the client may be told.
async fn change_all<T, F>(all: impl IntoIterator<Item = T>, one: impl Fn(T) -> F) -> Changes
where
    F: Future<Output = Result<Reply, Stop>>,
{
    let stopped = AtomicBool::new(false);
    let goes_on = |_: &T| std::future::ready(!stopped.load(Ordering::Relaxed));
    let changing = stream::iter(all).take_while(goes_on).map(one).buffer_unordered(AT_ONCE);
    let mut changing = std::pin::pin!(changing);
    let mut changes = Changes::default();
    while let Some(changed) = changing.next().await {
        match changed {
            Ok(Reply::Number(count)) => changes.done += count,
            Ok(_) => {}
            Err(stop) => {
                stopped.store(true, Ordering::Relaxed);
                changes.unknown |= !stop.changes_nothing();
                changes.stop.get_or_insert(stop);
            }
        }
    }
    changes
}

/// What a client is told of a `reply` that came after a first step, or instead of it.
fn partly_if(first_step: Option<u64>, reply: Reply) -> Stop {
    let stop = Stop::Told(reply);
    if first_step.is_some() { stop.partly() } else { stop }
}

async fn count_all<F>(keys: Vec<Bytes>, one: impl Fn(Bytes) -> F) -> Result<Reply, Stop>
where
    F: Future<Output = Result<Reply, Stop>>,
{
    let counts = stream::iter(keys).map(one).buffered(AT_ONCE);
    let sum = counts.try_fold(0, |sum, reply| async move {
        match reply {
            Reply::Number(count) => Ok(sum + count),
            other => Err(Stop::Told(other)),
        }
    });
    sum.await.map(Reply::Number)
}

/// Sets a field; whether it is new.
fn put(fields: &mut Vec<(Bytes, Bytes)>, field: &Bytes, value: &Bytes) -> bool {
    match fields.iter_mut().find(|(name, _)| name == field) {
        Some((_, held)) => {
            *held = value.clone();
            false
        }
        None => {
            fields.push((field.clone(), value.clone()));
            true
        }
    }
}

fn add(text: Option<&[u8]>, by: i64, what: &str) -> Result<i64, Reply> {
    let number = match text {
        None => Some(0),
        Some(text) => integer(text),
    };
    let number = number
        .ok_or_else(|| Reply::error("ERR", format!("{what} is not an integer or out of range")))?;
    number
        .checked_add(by)
        .ok_or_else(|| Reply::error("ERR", "increment or decrement would overflow"))
}

fn length(len: usize) -> Reply {
    Reply::Number(i64::try_from(len).unwrap_or(i64::MAX))
}

fn in_unit(span: Duration, unit: Unit) -> i64 {
    let ms = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    match unit {
        Unit::Milliseconds => ms,
        // Rounded, as Redis does: what was just set to 10 s has 10 s left.
        Unit::Seconds => ms.saturating_add(500) / 1000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keys_tells_is_bounded_in_number_and_in_bytes() {
        for (len, fit) in [(1, KEYS_MAX), (496, KEYS_BYTES_MAX / 512)] {
            let mut found = Found::default();
            for _ in 0..fit {
                found.add(Bytes::from(vec![b'k'; len])).unwrap();
            }
            found.add(Bytes::from(vec![b'k'; len])).unwrap_err();
        }
    }

    /// What a command of several keys is answered, of which each comes to this.
    async fn told(each: &[Result<i64, &str>]) -> String {
        let one = |came_to: &Result<i64, &str>| {
            let came_to = match *came_to {
                Ok(changed) => Ok(Reply::Number(changed)),
                Err(told) => Err(Stop::Told(Reply::Error(told.to_owned()))),
            };
            async move { came_to }
        };
        match change_all(each, one).await.whole() {
            Ok(changed) => changed.to_string(),
            Err(Stop::Told(Reply::Error(told))) => told,
            Err(_) => panic!("nothing is watched"),
        }
    }

    #[tokio::test]
    async fn nothing_is_said_to_be_undone_once_a_key_of_several_may_have_been_changed() {
        let (again, unknown) = ("TRYAGAIN nothing was done: why", "UNKNOWN it may have been done");
        assert_eq!(told(&[Ok(1), Ok(0), Ok(1)]).await, "2");
        assert_eq!(told(&[Ok(0), Err(again), Err(again)]).await, again);
        assert_eq!(
            told(&[Err(unknown)]).await,
            "UNKNOWN some of the keys may have been changed: it may have been done"
        );
        let partly = "UNKNOWN some of the keys may have been changed: why";
        // Those that are under way beside the one that fails count, be they before it or after.
        assert_eq!(told(&[Ok(1), Err(again)]).await, partly);
        assert_eq!(told(&[Err(again), Ok(1)]).await, partly);
        assert_eq!(told(&[Err(again), Err(unknown)]).await, partly);
    }

    #[test]
    fn times_to_live_are_rounded_to_the_nearest_second() {
        assert_eq!(in_unit(Duration::from_millis(9_600), Unit::Seconds), 10);
        assert_eq!(in_unit(Duration::from_millis(9_400), Unit::Seconds), 9);
        assert_eq!(in_unit(Duration::from_millis(9_400), Unit::Milliseconds), 9_400);
    }
}
