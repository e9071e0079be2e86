//! Keyspace events: changes of keys, published on Redis' channels `__keyspace@0__:KEY` and
//! `__keyevent@0__:EVENT`. The configuration selects them by Redis' letters.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use super::arguments::word;
use super::frame::integer;
use super::pubsub::Published;

/// The letters of the classes, in the order in which Redis prints them.
const CLASSES: [(char, u16); 9] = [
    ('g', GENERIC),
    ('$', STRING),
    ('l', LIST),
    ('s', SET),
    ('h', HASH),
    ('z', SORTED_SET),
    ('x', EXPIRED),
    // The endpoint never publishes these two: it evicts nothing and has no streams.
    ('e', 1 << 7),
    ('t', 1 << 8),
];
const GENERIC: u16 = 1;
const STRING: u16 = 1 << 1;
const LIST: u16 = 1 << 2;
const SET: u16 = 1 << 3;
const HASH: u16 = 1 << 4;
const SORTED_SET: u16 = 1 << 5;
const EXPIRED: u16 = 1 << 6;
/// All classes: `A`.
const ALL: u16 = (1 << 9) - 1;
const KEYSPACE: u16 = 1 << 9;
const KEYEVENT: u16 = 1 << 10;
/// How many events of one change are published at most.
const COLLECTED_MAX: usize = 4096;

/// Which events are published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events(u16);

/// The error for a text that selects no events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoEvents;

impl FromStr for Events {
    type Err = NoEvents;

    fn from_str(text: &str) -> Result<Self, NoEvents> {
        let mut flags = 0;
        for letter in text.chars() {
            flags |= match letter {
                'A' => ALL,
                'K' => KEYSPACE,
                'E' => KEYEVENT,
                letter => CLASSES.iter().find(|(known, _)| *known == letter).ok_or(NoEvents)?.1,
            };
        }
        Ok(Self(flags))
    }
}

impl fmt::Display for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 & ALL == ALL {
            f.write_str("A")?;
        } else {
            for (letter, _) in CLASSES.iter().filter(|(_, class)| self.0 & class != 0) {
                write!(f, "{letter}")?;
            }
        }
        for (letter, _) in [('K', KEYSPACE), ('E', KEYEVENT)].iter().filter(|it| self.0 & it.1 != 0)
        {
            write!(f, "{letter}")?;
        }
        Ok(())
    }
}

impl Events {
    /// Whether any event is published at all.
    #[must_use]
    pub fn any(self) -> bool {
        self.0 & ALL != 0 && self.0 & (KEYSPACE | KEYEVENT) != 0
    }

    /// Whether expiries of keys are published.
    pub(super) fn ends(self) -> bool {
        self.any() && self.0 & EXPIRED != 0
    }

    /// Whether all events that `other` selects are published.
    pub(super) fn covers(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The messages of an event of a database.
    pub(super) fn messages(self, index: u8, event: &Event) -> impl Iterator<Item = Published> {
        let is_wanted = self.0 & event.class != 0;
        let (key, name) = (event.key.clone(), Bytes::from_static(event.name.as_bytes()));
        let space = (is_wanted && self.0 & KEYSPACE != 0).then(|| {
            let channel = [format!("__keyspace@{index}__:").as_bytes(), &key].concat();
            Published { channel: channel.into(), message: name, is_sharded: false }
        });
        let event = (is_wanted && self.0 & KEYEVENT != 0).then(|| {
            let channel = Bytes::from(format!("__keyevent@{index}__:{}", event.name));
            Published { channel, message: key, is_sharded: false }
        });
        space.into_iter().chain(event)
    }
}

/// What happened to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    class: u16,
    pub(super) name: &'static str,
    pub(super) key: Bytes,
}

/// What a command did to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// It holds another value, or its value was changed.
    Wrote,
    /// It ends at another time.
    Moved,
    /// It no longer ends.
    Stays,
    /// It is gone.
    Gone,
    /// Its end has come.
    Ended,
}

/// What happens to the keys of a room while a command runs; not noted where nothing is published.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    is_kept: bool,
    /// What the running command has done so far.
    deeds: Vec<(Bytes, Deed)>,
    events: Vec<Event>,
    /// How many of the events, the first ones, happened before anything ran: keys had expired.
    before: usize,
}

impl Log {
    /// A log that keeps events.
    pub(super) fn kept() -> Self {
        Self { is_kept: true, ..Self::default() }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.is_kept
    }

    pub(super) fn note(&mut self, key: &Bytes, deed: Deed) {
        if self.is_kept && self.deeds.len() < COLLECTED_MAX {
            self.deeds.push((key.clone(), deed));
        }
    }

    fn push(&mut self, class: u16, name: &'static str, key: Bytes) {
        if self.events.len() < COLLECTED_MAX {
            self.events.push(Event { class, name, key: Bytes::copy_from_slice(&key) });
        }
    }

    /// Notes that a key's end has come.
    pub(super) fn ended(&mut self, key: Bytes) {
        if self.is_kept {
            self.push(EXPIRED, "expired", key);
            self.before = self.events.len();
        }
    }

    /// Names what the finished command did, by its name.
    pub(super) fn command(&mut self, args: &[Bytes]) {
        if self.deeds.is_empty() {
            return;
        }
        let command = word(&args[0]);
        let mut wrote = 0;
        for (key, deed) in std::mem::take(&mut self.deeds) {
            let (class, name) = match deed {
                Deed::Wrote => {
                    wrote += 1;
                    name_of_write(&command, args, wrote)
                }
                Deed::Moved => (GENERIC, "expire"),
                Deed::Stays => (GENERIC, "persist"),
                Deed::Gone if command.starts_with("RENAME") => (GENERIC, "rename_from"),
                Deed::Gone => (GENERIC, "del"),
                Deed::Ended => (EXPIRED, "expired"),
            };
            let sets_end = deed == Deed::Wrote && sets_end(&command, args);
            self.push(class, name, key.clone());
            if sets_end {
                self.push(GENERIC, "expire", key);
            }
        }
    }

    pub(super) fn take(&mut self) -> Vec<Event> {
        self.before = 0;
        std::mem::take(&mut self.events)
    }

    /// Takes the events of what ran, without those before it.
    pub(super) fn take_of_run(&mut self) -> Vec<Event> {
        self.events.split_off(self.before.min(self.events.len()))
    }
}

/// Whether `ZADD` increments: a member may be called as the option is.
fn increments(args: &[Bytes]) -> bool {
    let is_option =
        |it: &&Bytes| matches!(word(it).as_str(), "NX" | "XX" | "GT" | "LT" | "CH" | "INCR");
    args.iter().skip(2).take_while(is_option).any(|it| it.eq_ignore_ascii_case(b"INCR"))
}

/// The side from which a command takes that states its number of keys at this place.
fn side_behind_keys(args: &[Bytes], count_at: usize) -> &[u8] {
    let keys = args.get(count_at).and_then(|count| integer(count));
    let keys = keys.and_then(|keys| usize::try_from(keys).ok()).unwrap_or_default();
    args.get((count_at + 1).saturating_add(keys)).map_or(&[][..], |side| side)
}

/// Whether a command that sets a key sets its end, too.
fn sets_end(command: &str, args: &[Bytes]) -> bool {
    let is_end = |option: &Bytes| matches!(word(option).as_str(), "EX" | "PX" | "EXAT" | "PXAT");
    match command {
        "SETEX" | "PSETEX" => true,
        "SET" => args.iter().skip(3).any(is_end),
        _ => false,
    }
}

/// The class and the name of a command's first or second write.
fn name_of_write(command: &str, args: &[Bytes], time: usize) -> (u16, &'static str) {
    let side = |at: usize, left: &'static str, right: &'static str| {
        let is_left = args.get(at).is_some_and(|side| side.eq_ignore_ascii_case(b"LEFT"));
        if is_left { left } else { right }
    };
    let is_first = time == 1;
    match command {
        "APPEND" => (STRING, "append"),
        "SETRANGE" => (STRING, "setrange"),
        "SETBIT" | "BITFIELD" => (STRING, "setbit"),
        "INCR" | "DECR" | "INCRBY" | "DECRBY" => (STRING, "incrby"),
        "INCRBYFLOAT" => (STRING, "incrbyfloat"),
        "RENAME" | "RENAMENX" => (GENERIC, "rename_to"),
        "HSET" | "HMSET" | "HSETNX" => (HASH, "hset"),
        "HINCRBY" => (HASH, "hincrby"),
        "HINCRBYFLOAT" => (HASH, "hincrbyfloat"),
        "HDEL" => (HASH, "hdel"),
        "LPUSH" | "LPUSHX" => (LIST, "lpush"),
        "RPUSH" | "RPUSHX" => (LIST, "rpush"),
        "LPOP" | "BLPOP" => (LIST, "lpop"),
        "RPOP" | "BRPOP" => (LIST, "rpop"),
        "LMOVE" | "BLMOVE" if is_first => (LIST, side(4, "lpush", "rpush")),
        "LMOVE" | "BLMOVE" => (LIST, side(3, "lpop", "rpop")),
        "RPOPLPUSH" | "BRPOPLPUSH" => (LIST, if is_first { "lpush" } else { "rpop" }),
        "LINSERT" => (LIST, "linsert"),
        "LSET" => (LIST, "lset"),
        "LREM" => (LIST, "lrem"),
        "LTRIM" => (LIST, "ltrim"),
        "SADD" => (SET, "sadd"),
        "SREM" => (SET, "srem"),
        "SPOP" => (SET, "spop"),
        "SMOVE" => (SET, if is_first { "srem" } else { "sadd" }),
        "SUNIONSTORE" => (SET, "sunionstore"),
        "SINTERSTORE" => (SET, "sinterstore"),
        "SDIFFSTORE" => (SET, "sdiffstore"),
        "ZADD" if increments(args) => (SORTED_SET, "zincr"),
        "ZADD" => (SORTED_SET, "zadd"),
        "ZINCRBY" => (SORTED_SET, "zincr"),
        "ZREM" => (SORTED_SET, "zrem"),
        "ZPOPMIN" | "BZPOPMIN" => (SORTED_SET, "zpopmin"),
        "ZPOPMAX" | "BZPOPMAX" => (SORTED_SET, "zpopmax"),
        "ZREMRANGEBYSCORE" => (SORTED_SET, "zremrangebyscore"),
        "ZREMRANGEBYRANK" => (SORTED_SET, "zremrangebyrank"),
        "ZREMRANGEBYLEX" => (SORTED_SET, "zremrangebylex"),
        "LMPOP" | "BLMPOP" => {
            let side = side_behind_keys(args, if command == "LMPOP" { 1 } else { 2 });
            (LIST, if side.eq_ignore_ascii_case(b"LEFT") { "lpop" } else { "rpop" })
        }
        "ZMPOP" | "BZMPOP" => {
            let side = side_behind_keys(args, if command == "ZMPOP" { 1 } else { 2 });
            (SORTED_SET, if side.eq_ignore_ascii_case(b"MIN") { "zpopmin" } else { "zpopmax" })
        }
        "COPY" => (GENERIC, "copy_to"),
        "ZDIFFSTORE" => (SORTED_SET, "zdiffstore"),
        "ZRANGESTORE" => (SORTED_SET, "zrangestore"),
        "ZUNIONSTORE" => (SORTED_SET, "zunionstore"),
        "ZINTERSTORE" => (SORTED_SET, "zinterstore"),
        _ => (STRING, "set"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_selected_and_printed_in_redis_letters() {
        for (asked, expected) in
            [("", ""), ("KEA", "AKE"), ("Egx", "gxE"), ("xE$Kg", "g$xKE"), ("g$lshzxetKE", "AKE")]
        {
            assert_eq!(asked.parse::<Events>().unwrap().to_string(), expected, "{asked}");
        }
        assert_eq!("Em".parse::<Events>(), Err(NoEvents));
        assert!(!"gx".parse::<Events>().unwrap().any(), "neither K nor E: nothing is published");
        let all: Events = "AKE".parse().unwrap();
        assert!(all.covers("Egx".parse().unwrap()) && !Events::default().covers(all));
    }
}
