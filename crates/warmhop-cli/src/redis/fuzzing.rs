//! Checks that the Redis endpoint reads and runs anything that a client sends without harm.

use std::time::Duration;

use bytes::{BufMut, Bytes};

use super::arguments::checked_key;
use super::cmd::{Handler, Run, find};
use super::frame::{Arguments, Incoming};
use super::room::{Kept, Room, register};

/// The time at which commands run, in milliseconds since 1970.
const NOW: u64 = 1_700_000_000_000;
const IDLE: Duration = Duration::from_secs(1800);

/// Reads `input` as a client's requests, and runs those whose keys all have the tag `{t}`; returns
/// how many it ran.
///
/// # Panics
/// If a request is read that was not complete, or a room decodes to another than was encoded.
pub fn requests(input: &[u8]) -> usize {
    let name = register(0, b"{t}");
    let mut room = Room::empty(&name, NOW);
    let mut incoming = Incoming::from(input);
    in_parts(input);
    let mut ran = 0;
    loop {
        let before = incoming.bytes.len();
        let complete = incoming.is_complete();
        match incoming.take_request() {
            Ok(Some(args)) => {
                assert!(complete && incoming.bytes.len() < before, "a request came of nothing");
                let Some(run) = handler(&args) else { continue };
                let mut changed = room.clone();
                if run(&mut changed, &args).is_ok() {
                    room = changed;
                }
                ran += 1;
                if let Ok(Kept::Put(kept, _)) = room.close(IDLE) {
                    let held = Some((kept.clone(), std::time::SystemTime::UNIX_EPOCH));
                    let again = Room::open(&name, held, NOW).map(|room| room.close(IDLE));
                    let is_same = matches!(&again, Some(Ok(Kept::Put(twice, _))) if *twice == kept);
                    assert!(is_same, "a room reads back as another: {args:?} {again:?}");
                }
            }
            // More has to arrive, or the start of the next request is unknown.
            Ok(None) | Err(_) => return ran,
        }
    }
}

/// Reads requests that arrive at once and byte by byte.
///
/// # Panics
/// If they come out differently.
fn in_parts(input: &[u8]) {
    let (mut whole, mut parts) = (Incoming::from(input), Incoming::default());
    let mut arriving = input.iter();
    loop {
        let expected = whole.take_request();
        let found = loop {
            // An empty request is complete, and nothing comes of it.
            let taken = if parts.is_complete() { parts.take_request() } else { Ok(None) };
            if taken != Ok(None) {
                break taken;
            }
            match arriving.next() {
                Some(next) => parts.bytes.put_u8(*next),
                None => break taken,
            }
        };
        assert_eq!(expected, found, "{input:?}");
        if !matches!(expected, Ok(Some(_))) {
            return;
        }
    }
}

/// The function that runs a command on a room, if all its keys have the tag.
fn handler(args: &Arguments) -> Option<Handler> {
    let spec = find(args.first()?).filter(|spec| spec.is_count_right(args.len()))?;
    let keys = spec.keys_of(args);
    let here = |key: &Bytes| checked_key(key).is_ok() && register(0, key) == register(0, b"{t}");
    if keys.is_empty() || !keys.iter().all(here) {
        return None;
    }
    match spec.run {
        Run::Room(run) | Run::Split(run, _) | Run::Blocking(run) => Some(run),
        Run::All(_) | Run::Script | Run::Connection => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::arbitrary::{Numbers, feed, strung};

    /// Words of requests; a line is a request of its own.
    const WORDS: &[&[u8]] = &[
        b"SET {t}a 1\r\n",
        b"SET {t}a 1 PX 10 NX GET\r\n",
        b"INCRBYFLOAT {t}a 1e300\r\n",
        b"INCRBY {t}a 9223372036854775807\r\n",
        b"DECR {t}a\r\n",
        b"APPEND {t}a xyz\r\n",
        b"SETRANGE {t}a 4294967296 x\r\n",
        b"GETRANGE {t}a -9223372036854775808 9223372036854775807\r\n",
        b"SETBIT {t}b 4294967295 1\r\n",
        b"BITCOUNT {t}b 0 -1 BIT\r\n",
        b"PEXPIRE {t}a -9223372036854775808\r\n",
        b"PEXPIREAT {t}a 9223372036854775807\r\n",
        b"EXPIRE {t}h 100 GT\r\n",
        b"PERSIST {t}a\r\n",
        b"HSET {t}h f 1 g 2\r\n",
        b"HINCRBY {t}h f -9223372036854775808\r\n",
        b"HSCAN {t}h 0 MATCH [^a-\\]* COUNT -1\r\n",
        b"RPUSH {t}l a b c\r\n",
        b"LRANGE {t}l -100 9223372036854775807\r\n",
        b"LTRIM {t}l 9223372036854775807 -9223372036854775808\r\n",
        b"LPOS {t}l a RANK -9223372036854775808 COUNT 0\r\n",
        b"LINSERT {t}l BEFORE b x\r\n",
        b"LMOVE {t}l {t}m LEFT RIGHT\r\n",
        b"LPOP {t}l -1\r\n",
        b"SADD {t}s a b\r\n",
        b"SRANDMEMBER {t}s -9223372036854775808\r\n",
        b"SINTERCARD 2 {t}s {t}u LIMIT -1\r\n",
        b"ZADD {t}z NX CH nan a inf b -inf c\r\n",
        b"ZADD {t}z 1 a 1e308 b -0 c\r\n",
        b"ZINCRBY {t}z -inf b\r\n",
        b"ZRANGE {t}z (1 +inf BYSCORE LIMIT -1 -1\r\n",
        b"ZRANGEBYLEX {t}z [a (b\r\n",
        b"ZRANDMEMBER {t}z -9223372036854775808 WITHSCORES\r\n",
        b"ZUNIONSTORE {t}z 2 {t}z {t}s WEIGHTS nan 1\r\n",
        b"ZUNIONSTORE {t}z 9223372036854775807 {t}z\r\n",
        b"RENAME {t}a {t}b\r\n",
        b"COPY {t}a {t}b REPLACE\r\n",
        b"DEL {t}a {t}b\r\n",
        b"OBJECT ENCODING {t}a\r\n",
        b"*3\r\n$3\r\nSET\r\n$4\r\n{t}a\r\n$1\r\n2\r\n",
        b"*1\r\n$-1\r\n",
        b"*-1\r\n",
        b"*9999999999\r\n",
        b"$4\r\n",
        b"*2\r\n",
        b"{t}a",
        b"{t}z ",
        b"\"\\x4",
        b"'",
        b"\r\n",
        b"\n",
        b" -1",
        b" 0",
        b" 18446744073709551616",
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
    ];

    #[test]
    fn whatever_a_client_sends_is_carried_out_or_refused_and_rooms_read_back() {
        let make = |numbers: &mut Numbers| strung(numbers, WORDS, 12);
        let ran = feed("redis_requests", 6_000, make, requests);
        assert!(ran > 3_000, "only {ran} were run");
    }
}
