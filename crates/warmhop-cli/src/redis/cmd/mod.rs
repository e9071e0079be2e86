//! The table of the commands that are offered: what the endpoint runs, refuses and answers about
//! itself (`COMMAND`) is derived from it.
//!
//! A command about keys is a function on the [`Room`] in which they live; it changes the room and
//! returns the reply. It does not depend on whether it runs by itself, in a transaction or in a
//! script.

mod bit_fields;
mod blocking;
mod counters;
mod first_of;
mod hashes;
mod keys;
mod lists;
mod sets;
mod sorted;
mod sorted_combined;
mod sorted_ranges;
mod strings;

use bytes::Bytes;

pub(super) use blocking::patience;
pub(super) use keys::scan_options;

use super::arguments::{
    DATABASES, WORD_SHOWN_MAX, checked_pattern, count, float, not_negative, number, syntax,
    unknown_subcommand, word, wrong_count,
};
use super::counts::Counts;
use super::frame::{Reply, integer};
use super::numbers::{self, double_text};
use super::room::Room;

/// A command on the keys of one room: its arguments begin with its name.
pub(super) type Handler = fn(&mut Room, &[Bytes]) -> Result<Reply, Reply>;

/// How a command is carried out.
#[derive(Clone, Copy)]
pub(super) enum Run {
    /// A change of one room, or a look at it.
    Room(Handler),
    /// As [`Run::Room`] if all its keys live in one room; otherwise key by key.
    Split(Handler, Split),
    /// It looks through all keys of the database.
    All(All),
    /// A script.
    Script,
    /// It waits for an element of a list.
    Blocking(Handler),
    /// It is about the connection, or needs no key.
    Connection,
}

/// Commands of several keys that are carried out key by key where they live in several rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Split {
    MGet,
    MSet,
    /// The reply is the sum of the replies for the keys.
    Sum,
    Rename,
}

/// Commands that look through all keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum All {
    Scan,
    Keys,
    DbSize,
    RandomKey,
    FlushDb,
    FlushEveryDb,
}

/// Where a command has its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    None,
    /// From the first to the last, with this distance between keys; a negative last counts from the
    /// end.
    Range(usize, isize, usize),
    /// The argument at `at` states their number, and they follow it; `and_first`: one more is the
    /// first argument.
    Counted {
        at: usize,
        and_first: bool,
    },
    /// The second argument, after the subcommand.
    Second,
}

/// It changes what its keys hold.
pub(super) const WRITES: u8 = 1;
/// A script may not run it.
pub(super) const NOT_IN_SCRIPTS: u8 = 2;
/// Its reply may be as large as what its key holds.
pub(super) const LONG: u8 = 4;
/// A transaction runs it at once instead of queueing it.
pub(super) const AT_ONCE: u8 = 8;

/// A command of the table.
pub(super) struct Spec {
    pub(super) name: &'static str,
    /// How many arguments it has, its name included; if negative, at least so many.
    pub(super) arity: isize,
    pub(super) keys: Keys,
    pub(super) flags: u8,
    pub(super) run: Run,
    /// How often it came to which outcome.
    pub(super) counts: Counts,
}

impl Spec {
    #[cfg(test)]
    pub(super) const fn of_connection(name: &'static str) -> Self {
        about(name, -1)
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn is_count_right(&self, count: usize) -> bool {
        let count = isize::try_from(count).unwrap_or(isize::MAX);
        if self.arity < 0 { count >= -self.arity } else { count == self.arity }
    }

    /// Its key, where its form tells that it has one.
    pub(super) fn only_key<'a>(&self, args: &'a [Bytes]) -> Option<&'a Bytes> {
        match self.keys {
            Keys::Range(first, last, _) if last_of(last, args) == first => args.get(first),
            Keys::Second => args.get(2),
            Keys::None | Keys::Range(..) | Keys::Counted { .. } => None,
        }
    }

    /// The first of its keys.
    pub(super) fn first_key(&self, args: &[Bytes]) -> Option<Bytes> {
        match self.keys {
            Keys::Counted { at, and_first: false } => {
                let count = args.get(at).and_then(|count| integer(count)).unwrap_or_default();
                args.get(at + 1).filter(|_| count > 0).cloned()
            }
            _ => self.keys_of(args).into_iter().next(),
        }
    }

    /// The keys among its arguments.
    pub(super) fn keys_of(&self, args: &[Bytes]) -> Vec<Bytes> {
        match self.keys {
            Keys::None => Vec::new(),
            Keys::Range(first, last, step) => {
                let keys = args.iter().take(last_of(last, args) + 1).skip(first).step_by(step);
                keys.cloned().collect()
            }
            Keys::Counted { at, and_first } => {
                let count = args.get(at).and_then(|count| integer(count)).unwrap_or_default();
                let count = usize::try_from(count).unwrap_or_default();
                let first = and_first.then(|| args.get(1).cloned()).flatten();
                first.into_iter().chain(args.iter().skip(at + 1).take(count).cloned()).collect()
            }
            Keys::Second => args.get(2).cloned().into_iter().collect(),
        }
    }
}

/// The last key's place among the arguments; a negative one counts from their end.
fn last_of(last: isize, args: &[Bytes]) -> usize {
    match usize::try_from(last) {
        Ok(last) => last,
        Err(_) => args.len().saturating_sub(last.unsigned_abs()),
    }
}

const ONE: Keys = Keys::Range(1, 1, 1);
const TWO: Keys = Keys::Range(1, 2, 1);
const REST: Keys = Keys::Range(1, -1, 1);
const COUNTED: Keys = Keys::Counted { at: 1, and_first: false };
const COUNTED_SECOND: Keys = Keys::Counted { at: 2, and_first: false };
const STORED: Keys = Keys::Counted { at: 2, and_first: true };

const fn spec(name: &'static str, arity: isize, keys: Keys, flags: u8, run: Run) -> Spec {
    Spec { name, arity, keys, flags, run, counts: Counts::new() }
}

const fn read(name: &'static str, arity: isize, run: Handler) -> Spec {
    spec(name, arity, ONE, 0, Run::Room(run))
}

const fn long(name: &'static str, arity: isize, run: Handler) -> Spec {
    spec(name, arity, ONE, LONG, Run::Room(run))
}

const fn write(name: &'static str, arity: isize, run: Handler) -> Spec {
    spec(name, arity, ONE, WRITES, Run::Room(run))
}

const fn about(name: &'static str, arity: isize) -> Spec {
    spec(name, arity, Keys::None, NOT_IN_SCRIPTS, Run::Connection)
}

const fn at_once(name: &'static str, arity: isize) -> Spec {
    spec(name, arity, Keys::None, NOT_IN_SCRIPTS | AT_ONCE, Run::Connection)
}

const fn all(name: &'static str, arity: isize, flags: u8, all: All) -> Spec {
    spec(name, arity, Keys::None, flags | LONG | NOT_IN_SCRIPTS, Run::All(all))
}

const fn script(name: &'static str) -> Spec {
    spec(name, -3, Keys::Counted { at: 2, and_first: false }, NOT_IN_SCRIPTS | LONG, Run::Script)
}

/// The longest name of a command.
const NAME_BYTES_MAX: usize = 16;

/// Every command, by its name in capitals; in the order of names.
pub(super) static TABLE: [Spec; 188] = [
    about("ACL", -2),
    write("APPEND", 3, strings::append),
    about("ASKING", 1),
    about("AUTH", -2),
    read("BITCOUNT", -2, strings::bit_count),
    write("BITFIELD", -2, bit_fields::run),
    long("BITFIELD_RO", -2, bit_fields::run),
    read("BITPOS", -3, strings::bit_position),
    spec("BLMOVE", 6, TWO, WRITES | LONG | NOT_IN_SCRIPTS, Run::Blocking(blocking::move_one)),
    spec("BLMPOP", -5, COUNTED_SECOND, WRITES | LONG, Run::Blocking(blocking::pop_elements)),
    spec(
        "BLPOP",
        -3,
        Keys::Range(1, -2, 1),
        WRITES | LONG | NOT_IN_SCRIPTS,
        Run::Blocking(blocking::pop),
    ),
    spec(
        "BRPOP",
        -3,
        Keys::Range(1, -2, 1),
        WRITES | LONG | NOT_IN_SCRIPTS,
        Run::Blocking(blocking::pop),
    ),
    spec("BRPOPLPUSH", 4, TWO, WRITES | LONG | NOT_IN_SCRIPTS, Run::Blocking(blocking::move_one)),
    spec("BZMPOP", -5, COUNTED_SECOND, WRITES | LONG, Run::Blocking(blocking::pop_members)),
    spec(
        "BZPOPMAX",
        -3,
        Keys::Range(1, -2, 1),
        WRITES | NOT_IN_SCRIPTS,
        Run::Blocking(blocking::pop_scored),
    ),
    spec(
        "BZPOPMIN",
        -3,
        Keys::Range(1, -2, 1),
        WRITES | NOT_IN_SCRIPTS,
        Run::Blocking(blocking::pop_scored),
    ),
    about("CLIENT", -2),
    about("CLUSTER", -2),
    about("COMMAND", -1),
    about("CONFIG", -2),
    spec("COPY", -3, TWO, WRITES, Run::Room(keys::copy)),
    all("DBSIZE", 1, 0, All::DbSize),
    write("DECR", 2, counters::incr),
    write("DECRBY", 3, counters::incr_by),
    spec("DEL", -2, REST, WRITES, Run::Split(keys::del, Split::Sum)),
    write("DELEX", -2, strings::del_ex),
    at_once("DISCARD", 1),
    spec("ECHO", 2, Keys::None, 0, Run::Connection),
    spec(
        "EVAL",
        -3,
        Keys::Counted { at: 2, and_first: false },
        WRITES | NOT_IN_SCRIPTS | LONG,
        Run::Script,
    ),
    spec(
        "EVALSHA",
        -3,
        Keys::Counted { at: 2, and_first: false },
        WRITES | NOT_IN_SCRIPTS | LONG,
        Run::Script,
    ),
    script("EVALSHA_RO"),
    script("EVAL_RO"),
    at_once("EXEC", 1),
    spec("EXISTS", -2, REST, 0, Run::Split(keys::exists, Split::Sum)),
    write("EXPIRE", -3, keys::expire),
    write("EXPIREAT", -3, keys::expire),
    read("EXPIRETIME", 2, keys::ends),
    about("FCALL", -3),
    about("FCALL_RO", -3),
    all("FLUSHALL", -1, WRITES, All::FlushEveryDb),
    all("FLUSHDB", -1, WRITES, All::FlushDb),
    about("FUNCTION", -2),
    long("GET", 2, strings::get),
    read("GETBIT", 3, strings::get_bit),
    spec("GETDEL", 2, ONE, WRITES | LONG, Run::Room(strings::get_del)),
    spec("GETEX", -2, ONE, WRITES | LONG, Run::Room(strings::get_ex)),
    long("GETRANGE", 4, strings::get_range),
    spec("GETSET", 3, ONE, WRITES | LONG, Run::Room(strings::get_set)),
    write("HDEL", -3, hashes::del),
    about("HELLO", -1),
    read("HEXISTS", 3, hashes::exists),
    long("HGET", 3, hashes::get),
    long("HGETALL", 2, hashes::get_all),
    write("HINCRBY", 4, hashes::incr_by),
    write("HINCRBYFLOAT", 4, hashes::incr_by_float),
    long("HKEYS", 2, hashes::keys),
    read("HLEN", 2, hashes::len),
    long("HMGET", -3, hashes::get_many),
    write("HMSET", -4, hashes::set),
    long("HRANDFIELD", -2, hashes::random),
    long("HSCAN", -3, hashes::scan),
    write("HSET", -4, hashes::set),
    write("HSETNX", 4, hashes::set_if_new),
    read("HSTRLEN", 3, hashes::str_len),
    long("HVALS", 2, hashes::values),
    write("INCR", 2, counters::incr),
    write("INCRBY", 3, counters::incr_by),
    write("INCRBYFLOAT", 3, counters::incr_by_float),
    about("INFO", -1),
    all("KEYS", 2, 0, All::Keys),
    about("LASTSAVE", 1),
    about("LATENCY", -2),
    long("LINDEX", 3, lists::index),
    write("LINSERT", 5, lists::insert),
    read("LLEN", 2, lists::len),
    spec("LMOVE", 5, TWO, WRITES | LONG, Run::Room(lists::move_one)),
    spec("LMPOP", -4, COUNTED, WRITES | LONG, Run::Room(first_of::pop_elements)),
    spec("LPOP", -2, ONE, WRITES | LONG, Run::Room(lists::pop)),
    read("LPOS", -3, lists::position),
    write("LPUSH", -3, lists::push),
    write("LPUSHX", -3, lists::push),
    long("LRANGE", 4, lists::range),
    write("LREM", 4, lists::remove),
    write("LSET", 4, lists::set),
    write("LTRIM", 4, lists::trim),
    about("MEMORY", -2),
    spec("MGET", -2, REST, LONG, Run::Split(strings::get_many, Split::MGet)),
    about("MODULE", -2),
    spec("MSET", -3, Keys::Range(1, -1, 2), WRITES, Run::Split(strings::set_many, Split::MSet)),
    spec("MSETNX", -3, Keys::Range(1, -1, 2), WRITES, Run::Room(strings::set_many)),
    at_once("MULTI", 1),
    spec("OBJECT", -2, Keys::Second, 0, Run::Room(keys::object)),
    write("PERSIST", 2, keys::persist),
    write("PEXPIRE", -3, keys::expire),
    write("PEXPIREAT", -3, keys::expire),
    read("PEXPIRETIME", 2, keys::ends),
    spec("PING", -1, Keys::None, 0, Run::Connection),
    write("PSETEX", 4, strings::set_ex),
    about("PSUBSCRIBE", -2),
    read("PTTL", 2, keys::ends),
    spec("PUBLISH", 3, Keys::None, 0, Run::Connection),
    about("PUBSUB", -2),
    about("PUNSUBSCRIBE", -1),
    at_once("QUIT", -1),
    all("RANDOMKEY", 1, 0, All::RandomKey),
    about("READONLY", 1),
    about("READWRITE", 1),
    spec("RENAME", 3, TWO, WRITES, Run::Split(keys::rename, Split::Rename)),
    spec("RENAMENX", 3, TWO, WRITES, Run::Split(keys::rename, Split::Rename)),
    at_once("RESET", 1),
    about("ROLE", 1),
    spec("RPOP", -2, ONE, WRITES | LONG, Run::Room(lists::pop)),
    spec("RPOPLPUSH", 3, TWO, WRITES | LONG, Run::Room(lists::move_one)),
    write("RPUSH", -3, lists::push),
    write("RPUSHX", -3, lists::push),
    write("SADD", -3, sets::add),
    all("SCAN", -2, 0, All::Scan),
    read("SCARD", 2, sets::len),
    about("SCRIPT", -2),
    spec("SDIFF", -2, REST, LONG, Run::Room(sets::combine)),
    spec("SDIFFSTORE", -3, REST, WRITES, Run::Room(sets::combine_and_store)),
    about("SELECT", 2),
    spec("SET", -3, ONE, WRITES | LONG, Run::Room(strings::set)),
    write("SETBIT", 4, strings::set_bit),
    write("SETEX", 4, strings::set_ex),
    write("SETNX", 3, strings::set_if_new),
    write("SETRANGE", 4, strings::set_range),
    spec("SINTER", -2, REST, LONG, Run::Room(sets::combine)),
    spec("SINTERCARD", -3, COUNTED, 0, Run::Room(sets::intersection_len)),
    spec("SINTERSTORE", -3, REST, WRITES, Run::Room(sets::combine_and_store)),
    read("SISMEMBER", 3, sets::has),
    about("SLOWLOG", -2),
    long("SMEMBERS", 2, sets::members),
    read("SMISMEMBER", -3, sets::has_many),
    spec("SMOVE", 4, TWO, WRITES, Run::Room(sets::move_one)),
    spec("SPOP", -2, ONE, WRITES | LONG, Run::Room(sets::pop)),
    spec("SPUBLISH", 3, Keys::None, 0, Run::Connection),
    long("SRANDMEMBER", -2, sets::random),
    write("SREM", -3, sets::remove),
    long("SSCAN", -3, sets::scan),
    about("SSUBSCRIBE", -2),
    read("STRLEN", 2, strings::str_len),
    about("SUBSCRIBE", -2),
    long("SUBSTR", 4, strings::get_range),
    spec("SUNION", -2, REST, LONG, Run::Room(sets::combine)),
    spec("SUNIONSTORE", -3, REST, WRITES, Run::Room(sets::combine_and_store)),
    about("SUNSUBSCRIBE", -1),
    spec("TIME", 1, Keys::None, 0, Run::Connection),
    spec("TOUCH", -2, REST, 0, Run::Split(keys::exists, Split::Sum)),
    read("TTL", 2, keys::ends),
    read("TYPE", 2, keys::kind),
    spec("UNLINK", -2, REST, WRITES, Run::Split(keys::del, Split::Sum)),
    about("UNSUBSCRIBE", -1),
    about("UNWATCH", 1),
    about("WAIT", 3),
    at_once("WATCH", -2),
    write("ZADD", -4, sorted::add),
    read("ZCARD", 2, sorted::len),
    read("ZCOUNT", 4, sorted_ranges::count),
    spec("ZDIFF", -3, COUNTED, LONG, Run::Room(sorted_combined::combine)),
    spec("ZDIFFSTORE", -4, STORED, WRITES, Run::Room(sorted_combined::combine_and_store)),
    write("ZINCRBY", 4, sorted::incr_by),
    spec("ZINTER", -3, COUNTED, LONG, Run::Room(sorted_combined::combine)),
    spec("ZINTERCARD", -3, COUNTED, 0, Run::Room(sorted_combined::intersection_len)),
    spec("ZINTERSTORE", -4, STORED, WRITES, Run::Room(sorted_combined::combine_and_store)),
    read("ZLEXCOUNT", 4, sorted_ranges::count),
    spec("ZMPOP", -4, COUNTED, WRITES | LONG, Run::Room(first_of::pop_members)),
    read("ZMSCORE", -3, sorted::scores),
    write("ZPOPMAX", -2, sorted::pop),
    write("ZPOPMIN", -2, sorted::pop),
    long("ZRANDMEMBER", -2, sorted::random),
    long("ZRANGE", -4, sorted_ranges::range),
    long("ZRANGEBYLEX", -4, sorted_ranges::range),
    long("ZRANGEBYSCORE", -4, sorted_ranges::range),
    spec("ZRANGESTORE", -5, TWO, WRITES, Run::Room(sorted_ranges::range_and_store)),
    read("ZRANK", -3, sorted::rank),
    write("ZREM", -3, sorted::remove),
    write("ZREMRANGEBYLEX", 4, sorted_ranges::remove),
    write("ZREMRANGEBYRANK", 4, sorted_ranges::remove),
    write("ZREMRANGEBYSCORE", 4, sorted_ranges::remove),
    long("ZREVRANGE", -4, sorted_ranges::range),
    long("ZREVRANGEBYLEX", -4, sorted_ranges::range),
    long("ZREVRANGEBYSCORE", -4, sorted_ranges::range),
    read("ZREVRANK", -3, sorted::rank),
    long("ZSCAN", -3, sorted::scan),
    read("ZSCORE", 3, sorted::score),
    spec("ZUNION", -3, COUNTED, LONG, Run::Room(sorted_combined::combine)),
    spec("ZUNIONSTORE", -4, STORED, WRITES, Run::Room(sorted_combined::combine_and_store)),
];

/// The command of this name, in any case.
pub(super) fn find(name: &[u8]) -> Option<&'static Spec> {
    let mut capitals = [0; NAME_BYTES_MAX];
    let capitals = capitals.get_mut(..name.len())?;
    capitals.copy_from_slice(name);
    capitals.make_ascii_uppercase();
    let found = TABLE.binary_search_by(|spec| spec.name.as_bytes().cmp(capitals));
    found.ok().and_then(|at| TABLE.get(at))
}

fn length(len: usize) -> Reply {
    Reply::Number(i64::try_from(len).unwrap_or(i64::MAX))
}

fn flag(holds: bool) -> Reply {
    Reply::Number(i64::from(holds))
}

/// A copy of an argument, so that the request that it came in is not kept in memory.
fn owned(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// The places from `start` to `stop` of `len`; negative ones count from the end.
fn span(start: i64, stop: i64, len: usize) -> std::ops::Range<usize> {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    let place = |at: i64| if at < 0 { at.saturating_add(len) } else { at };
    let (start, stop) = (place(start).max(0), place(stop).min(len - 1));
    if start > stop || start >= len {
        return 0..0;
    }
    let place = |at: i64| usize::try_from(at).unwrap_or_default();
    place(start)..place(stop) + 1
}

#[cfg(test)]
mod tests;
