//! A room: the keys that live in one register, as a working copy that commands change.
//!
//! A key lives in its own register, unless its name has a hash tag, as in `{user1}:lock`: all keys
//! with one tag live in the tag's register, whichever client sets them, so that one command, one
//! script or one transaction changes several of them as one change. Nothing here waits: the engine
//! commits the changed room, or drops it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use warmhop::Expires;

use super::events::{Deed, Event, Log};
use super::frame::{Reply, VALUE_BYTES_MAX};
use super::value::{Kind, TooLarge, Value};

/// Set in the first byte of the name of a register that keeps the keys of a tag.
const TAGGED: u8 = 0x80;
/// The first byte of such a register's value.
const ROOM: u8 = 6;
/// What a key takes in such a value beside its name and its own value.
const KEY_BYTES: usize = 2 + 8 + 4;
/// The first byte of the value of a register with one key that is kept on past the key's end, which
/// follows this byte: so the peer that removes the key knows that no other peer has.
const LINGERING: u8 = 7;
/// How long it is kept on. A dead peer, or a lost majority, may delay the publishing of an expiry
/// by this long; after that it is not published at all.
pub(super) const LINGERS: Duration = Duration::from_secs(60);

/// A key's value and its end.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub(super) value: Value,
    /// In milliseconds since 1970; `None` for a key without a time to live.
    pub(super) end: Option<u64>,
    /// The present run set the end.
    moved: bool,
}

/// The keys of one register.
#[derive(Debug, Clone)]
pub(super) struct Room {
    /// The register's name.
    name: Bytes,
    /// When the present run began, in milliseconds since 1970: its clock does not advance.
    pub(super) now: u64,
    items: BTreeMap<Bytes, Item>,
    changed: bool,
    log: Log,
    /// Its register is kept on past the ends of its keys.
    lingers: bool,
    /// Some of its keys had expired.
    had_ended: bool,
    /// The register's value that it was decoded from.
    held: Held,
}

/// A register's value, and when it ends.
type Held = Option<(Bytes, SystemTime)>;

/// From what a room was decoded.
#[derive(Debug)]
pub(super) struct Origin {
    name: Bytes,
    now: u64,
    held: Held,
    tells: bool,
    lingers: bool,
}

impl Origin {
    /// The room as it was when it was opened; `None` where it cannot be read.
    pub(super) fn open(self) -> Option<Room> {
        let mut room = Room::with_ended(&self.name, self.held, self.now)?;
        if self.tells {
            room.tells(self.lingers);
        }
        room.take_out_ended();
        Some(room)
    }
}

/// What is to become of a room's register.
#[derive(Debug)]
pub(super) enum Kept {
    Put(Bytes, Expires),
    Nothing,
}

/// The hash tag of a key: what is between its first `{` and the next `}`, unless that is nothing.
pub(super) fn tag(key: &[u8]) -> Option<&[u8]> {
    let begin = key.iter().position(|byte| *byte == b'{')? + 1;
    let len = key[begin..].iter().position(|byte| *byte == b'}')?;
    (len > 0).then(|| &key[begin..begin + len])
}

/// The name of the register in which a key of a database lives.
pub(super) fn register(index: u8, key: &[u8]) -> Bytes {
    let (mark, text) = tag(key).map_or((0, key), |tag| (TAGGED, tag));
    let mut name = BytesMut::with_capacity(1 + text.len());
    name.put_u8(index | mark);
    name.put_slice(text);
    name.freeze()
}

/// The database of a register of this name.
pub(super) fn index_of(name: &[u8]) -> u8 {
    name.first().map_or(0, |first| first & !TAGGED)
}

/// Whether a register keeps a single key.
pub(super) fn is_of_one(name: &[u8]) -> bool {
    name.first().is_some_and(|first| first & TAGGED == 0)
}

/// The key of a register that keeps a single one; `None` for the register of a tag.
pub(super) fn only_key(name: &Bytes) -> Option<Bytes> {
    is_of_one(name).then(|| name.slice(1..))
}

/// The string that a register holds which keeps a single key: what a look at it needs as a rule, without a
/// room. `None` where it takes one.
pub(super) fn string_in(
    name: &[u8],
    held: Option<(&Bytes, SystemTime)>,
    now: u64,
) -> Option<Option<Bytes>> {
    if name.first()? & TAGGED != 0 {
        return None;
    }
    let Some((kept, expires)) = held else { return Some(None) };
    let (text, endless) = Value::decode_string(kept)?;
    let is_there = endless || millis(expires) > now;
    Some(is_there.then_some(text))
}

pub(super) fn millis(time: SystemTime) -> u64 {
    let span = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn time(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or_else(SystemTime::now)
}

/// Until when a register is kept whose key ends at `end`.
fn lingering(end: u64) -> SystemTime {
    time(end.saturating_add(u64::try_from(LINGERS.as_millis()).unwrap_or(u64::MAX)))
}

/// When the first key of a register ends, if expiries are published: `held` is its value.
pub(super) fn first_end_of(name: &[u8], held: &[u8]) -> Option<u64> {
    let mut held = held;
    let is_tagged = name.first()? & TAGGED != 0;
    match held.try_get_u8().ok()? {
        LINGERING if !is_tagged => held.try_get_u64().ok(),
        ROOM if is_tagged => {
            let mut first = None;
            while held.has_remaining() {
                let len = usize::from(held.try_get_u16().ok()?);
                held = held.get(len..)?;
                // Nothing for a key without a time to live.
                let end = Some(held.try_get_u64().ok()?).filter(|end| *end > 0);
                let len = usize::try_from(held.try_get_u32().ok()?).ok()?;
                held = held.get(len..)?;
                first = first.into_iter().chain(end).min();
            }
            first
        }
        _ => None,
    }
}

pub(super) fn wrong_type() -> Reply {
    let detail = "Operation against a key holding the wrong kind of value";
    Reply::error("WRONGTYPE", detail)
}

impl Room {
    /// A room without keys, at this time.
    pub(super) fn empty(name: &Bytes, now: u64) -> Self {
        Self {
            name: name.clone(),
            now,
            items: BTreeMap::new(),
            changed: false,
            log: Log::default(),
            lingers: false,
            had_ended: false,
            held: None,
        }
    }

    /// From what it was decoded: copying this takes less time than copying its keys.
    pub(super) fn origin(&self) -> Origin {
        Origin {
            name: self.name.clone(),
            now: self.now,
            held: self.held.clone(),
            tells: self.log.is_kept(),
            lingers: self.lingers,
        }
    }

    /// Records events of its keys from now on; `ends`: their expiry is published, too.
    pub(super) fn tells(&mut self, ends: bool) {
        (self.log, self.lingers) = (Log::kept(), ends);
    }

    /// Takes out the keys whose end has come.
    pub(super) fn take_out_ended(&mut self) {
        let now = self.now;
        let mut ended = Vec::new();
        self.items.retain(|key, item| {
            let stays = item.end.is_none_or(|end| end > now);
            if !stays {
                ended.push(key.clone());
            }
            stays
        });
        self.had_ended |= !ended.is_empty();
        ended.into_iter().for_each(|key| self.log.ended(key));
    }

    /// Makes the removal of expired keys a change that is to be kept.
    pub(super) fn ended_are_a_change(&mut self) {
        self.changed |= self.had_ended;
    }

    /// When the first of its keys ends.
    pub(super) fn first_end(&self) -> Option<u64> {
        self.items.values().filter_map(|item| item.end).min()
    }

    /// Records the events of a command that has run on it without being refused.
    pub(super) fn ran(&mut self, args: &[Bytes]) {
        self.log.command(args);
    }

    /// Takes the recorded events.
    pub(super) fn events(&mut self) -> Vec<Event> {
        self.log.take()
    }

    /// Takes the events of what ran and left the room as it was, such as a key that was made and
    /// deleted again. Keys that had expired before are still to be removed.
    pub(super) fn events_without_change(&mut self) -> Vec<Event> {
        self.log.take_of_run()
    }

    /// Notes what Redis tells of a command although it changed nothing, or of another room's key.
    pub(super) fn note(&mut self, key: &Bytes, deed: Deed) {
        self.log.note(key, deed);
    }

    /// As [`Room::with_ended`], without the expired keys.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn open(name: &Bytes, held: Held, now: u64) -> Option<Self> {
        let mut room = Self::with_ended(name, held, now)?;
        room.take_out_ended();
        Some(room)
    }

    /// Decodes a room, including keys that have expired by now: `held` is its register's value, and
    /// when that ends. `None` if this version cannot read it.
    pub(super) fn with_ended(name: &Bytes, held: Held, now: u64) -> Option<Self> {
        let mut room = Self { held, ..Self::empty(name, now) };
        let Some((mut kept, expires)) = room.held.clone() else { return Some(room) };
        match only_key(name) {
            Some(key) => {
                let mut end = millis(expires);
                if kept.first() == Some(&LINGERING) {
                    kept.advance(1);
                    end = kept.try_get_u64().ok()?;
                }
                let (value, endless) = Value::decode(kept)?;
                let end = (!endless).then_some(end);
                room.items.insert(key, Item { value, end, moved: false });
            }
            None => {
                if kept.try_get_u8().ok()? != ROOM {
                    return None;
                }
                while kept.has_remaining() {
                    let len = usize::from(kept.try_get_u16().ok()?);
                    let key = (len <= kept.len()).then(|| kept.split_to(len))?;
                    let end = kept.try_get_u64().ok()?;
                    let len = usize::try_from(kept.try_get_u32().ok()?).ok()?;
                    let value = (len <= kept.len()).then(|| kept.split_to(len))?;
                    let (value, endless) = Value::decode(value)?;
                    let end = (!endless).then_some(end);
                    room.items.insert(key, Item { value, end, moved: false });
                }
            }
        }
        Some(room)
    }

    /// The database of its keys.
    pub(super) fn index(&self) -> u8 {
        index_of(&self.name)
    }

    /// Whether a key lives here.
    #[cfg(any(test, feature = "lua"))]
    pub(super) fn has(&self, key: &[u8]) -> bool {
        let (mark, text) = tag(key).map_or((0, key), |tag| (TAGGED, tag));
        let own = self.name.split_first();
        own.is_some_and(|(first, own)| *first & TAGGED == mark && own == text)
    }

    /// Whether anything was changed.
    pub(super) fn is_changed(&self) -> bool {
        self.changed
    }

    /// Encodes the room.
    ///
    /// # Errors
    /// If it is larger than a register may be.
    pub(super) fn close(&self, idle: Duration) -> Result<Kept, TooLarge> {
        if self.items.is_empty() {
            return Ok(Kept::Nothing);
        }
        if let (Some(key), 1) = (only_key(&self.name), self.items.len())
            && let Some(item) = self.items.get(&key)
        {
            let mut kept = item.value.encode(item.end.is_none())?;
            if let (true, Some(end)) = (self.lingers, item.end) {
                let mut whole = BytesMut::with_capacity(1 + 8 + kept.len());
                whole.put_u8(LINGERING);
                whole.put_u64(end);
                whole.put(kept);
                kept = whole.freeze();
                return Ok(Kept::Put(kept, Expires::At(lingering(end))));
            }
            let expires = match (item.moved, item.end) {
                (false, _) => Expires::Keep,
                (true, None) => Expires::Default,
                (true, Some(end)) => Expires::At(time(end)),
            };
            return Ok(Kept::Put(kept, expires));
        }
        if self.len() > VALUE_BYTES_MAX {
            return Err(TooLarge);
        }
        let mut kept = BytesMut::with_capacity(1 + self.len());
        kept.put_u8(ROOM);
        for (key, item) in &self.items {
            kept.put_u16(u16::try_from(key.len()).map_err(|_| TooLarge)?);
            kept.put_slice(key);
            kept.put_u64(item.end.unwrap_or_default());
            let value = item.value.encode(item.end.is_none())?;
            kept.put_u32(u32::try_from(value.len()).map_err(|_| TooLarge)?);
            kept.put_slice(&value);
        }
        // It ends with the last of its keys; a key without an end lives like any idle key.
        let last = self.items.values().filter_map(|item| item.end).max();
        let last = last.map(|last| if self.lingers { millis(lingering(last)) } else { last });
        let is_endless = self.items.values().any(|item| item.end.is_none());
        let idle_end = self.now.saturating_add(u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
        let expires = match last {
            Some(last) if !is_endless || last > idle_end => Expires::At(time(last)),
            _ => Expires::Default,
        };
        Ok(Kept::Put(kept.freeze(), expires))
    }

    /// How many bytes it takes when encoded, approximately.
    pub(super) fn len(&self) -> usize {
        let len = |(key, item): (&Bytes, &Item)| KEY_BYTES + 1 + key.len() + item.value.len();
        match self.items.len() {
            1 if only_key(&self.name).is_some() => {
                self.items.values().map(|item| item.value.len()).sum()
            }
            _ => self.items.iter().map(len).sum(),
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = (&Bytes, &Value)> {
        self.items.iter().map(|(key, item)| (key, &item.value))
    }

    pub(super) fn item(&self, key: &[u8]) -> Option<&Item> {
        self.items.get(key)
    }

    pub(super) fn value(&self, key: &[u8]) -> Option<&Value> {
        self.items.get(key).map(|item| &item.value)
    }

    /// A key's value, which has to be a string.
    pub(super) fn string(&self, key: &[u8]) -> Result<Option<&Bytes>, Reply> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(bytes)) => Ok(Some(bytes)),
            Some(_) => Err(wrong_type()),
        }
    }

    /// A key's value, which has to be of type `T`.
    pub(super) fn read<T: Kind>(&self, key: &[u8]) -> Result<Option<&T>, Reply> {
        self.value(key).map(|value| T::of(value).ok_or_else(wrong_type)).transpose()
    }

    /// Changes a key's value, which has to be of type `T`; an absent key starts empty. `change`
    /// returns whether it changed anything; a key that is empty afterwards is removed.
    pub(super) fn write<T: Kind, R>(
        &mut self,
        key: &Bytes,
        change: impl FnOnce(&mut T) -> Result<(bool, R), Reply>,
    ) -> Result<R, Reply> {
        let Some(item) = self.items.get_mut(key) else {
            let mut fresh = T::default();
            let (changed, answer) = change(&mut fresh)?;
            if changed && !fresh.nothing_left() {
                self.set(key, fresh.whole(), None);
            }
            return Ok(answer);
        };
        let held = T::of_mut(&mut item.value).ok_or_else(wrong_type)?;
        let (changed, answer) = change(held)?;
        let is_empty = held.nothing_left();
        self.changed |= changed;
        if changed {
            self.log.note(key, Deed::Wrote);
        }
        if changed && is_empty {
            self.items.remove(key);
            self.log.note(key, Deed::Gone);
        }
        Ok(answer)
    }

    /// Sets a key to a value that lives until `end`.
    pub(super) fn set(&mut self, key: &Bytes, value: Value, end: Option<u64>) {
        self.changed = true;
        self.log.note(key, Deed::Wrote);
        if end.is_some_and(|end| end <= self.now) {
            self.items.remove(key);
            self.log.note(key, Deed::Ended);
            return;
        }
        // A slice of a request would keep all of it in memory.
        let key = match self.items.remove_entry(key) {
            Some((held, _)) => held,
            None => Bytes::copy_from_slice(key),
        };
        self.items.insert(key, Item { value, end, moved: true });
    }

    /// Sets a key to a value and leaves its end as it is.
    pub(super) fn replace(&mut self, key: &Bytes, value: Value) {
        self.log.note(key, Deed::Wrote);
        self.replace_silently(key, value);
    }

    /// As [`Room::replace`], for a change that no event tells of.
    pub(super) fn replace_silently(&mut self, key: &Bytes, value: Value) {
        self.changed = true;
        match self.items.get_mut(key) {
            Some(item) => item.value = value,
            None => {
                // A slice of a request would keep all of it in memory.
                let key = Bytes::copy_from_slice(key);
                self.items.insert(key, Item { value, end: None, moved: true });
            }
        }
    }

    /// Moves a key's end; an end in the past removes the key. False if there is no such key.
    pub(super) fn end(&mut self, key: &Bytes, end: Option<u64>) -> bool {
        let Some(item) = self.items.get_mut(key) else { return false };
        self.changed = true;
        if end.is_some_and(|end| end <= self.now) {
            self.items.remove(key);
            self.log.note(key, Deed::Gone);
        } else {
            (item.end, item.moved) = (end, true);
            self.log.note(key, if end.is_some() { Deed::Moved } else { Deed::Stays });
        }
        true
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Item> {
        let (key, gone) = self.items.remove_entry(key)?;
        self.changed = true;
        self.log.note(&key, Deed::Gone);
        Some(gone)
    }

    /// Sets a key to another key's value and end.
    pub(super) fn put_item(&mut self, key: &Bytes, item: Item) {
        self.set(key, item.value, item.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_s_tag_is_what_its_first_braces_hold() {
        for (key, expected) in [
            ("{a}:lock", Some("a")),
            ("x{a}{b}", Some("a")),
            ("x{{a}b}", Some("{a")),
            ("{}x{a}", None),
            ("{a", None),
            ("a}", None),
            ("plain", None),
        ] {
            assert_eq!(tag(key.as_bytes()), expected.map(str::as_bytes), "{key}");
        }
    }

    #[test]
    fn keys_of_one_tag_live_in_one_room_each_with_its_own_end() {
        let name = register(3, b"{t}:a");
        assert_eq!(name, register(3, b"b{t}"));
        assert_ne!(name, register(3, b"t"));
        let mut room = Room::open(&name, None, 1_000).unwrap();
        let (a, b) = (Bytes::from_static(b"{t}:a"), Bytes::from_static(b"{t}:b"));
        assert!(room.has(&a) && !room.has(b"t"));
        room.set(&a, Value::String(Bytes::from_static(b"1")), None);
        let end = room.now + 90_000;
        room.set(&b, Value::String(Bytes::from_static(b"2")), Some(end));
        let Ok(Kept::Put(kept, Expires::At(at))) = room.close(Duration::from_secs(60)) else {
            panic!("it holds two keys, one of which ends later than what is idle")
        };
        assert_eq!(millis(at), end);
        let again = Room::open(&name, Some((kept, at)), 1_000).unwrap();
        assert_eq!(again.item(&a).unwrap().end, None);
        assert_eq!(again.item(&b).unwrap().end, Some(end));
    }
}
