//! Checks that anything a client sends as a script ends, and harms nobody but the client.

use std::sync::Arc;

use bytes::Bytes;

use super::super::room::{Room, register};
use super::{Input, digest, run};

/// The time at which it runs, in milliseconds since 1970.
const NOW: u64 = 1_700_000_000_000;

/// Runs `input` as a script of one key; returns whether it was answered without an error.
///
/// # Panics
/// If the script harms the peer that runs it.
pub fn script(input: &[u8]) -> bool {
    let script = Input {
        text: Bytes::copy_from_slice(input),
        sha: digest(input).into(),
        keys: vec![Bytes::from_static(b"k")],
        args: vec![Bytes::from_static(b"1"), Bytes::from_static(b"b")],
        index: 0,
        now: NOW,
        took_long: false,
        read_only: false,
        seed: 1,
        hub: Arc::default(),
        library: Arc::default(),
    };
    let ended = run(&script, Some(Room::empty(&register(0, b"k"), NOW)));
    assert!(ended.room.is_some(), "a script kept its room");
    !ended.reply.is_error()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::arbitrary::{Numbers, feed, strung};

    const WORDS: &[&[u8]] = &[
        b"return 1\n",
        b"return redis.call('INCR', KEYS[1])\n",
        b"return redis.call('SET', KEYS[1], ARGV[1])\n",
        b"redis.call('RPUSH', KEYS[1], unpack(ARGV))\n",
        b"local a = redis.pcall('GET', KEYS[1]) ",
        b"local t = {} t[1] = t ",
        b"return t\n",
        b"return {1, {2, {ok = 'x'}}, err = 'e'}\n",
        b"return cjson.encode({a = {1, 2}})\n",
        b"return cjson.decode('[1e400, {}]')\n",
        b"return cmsgpack.unpack('\\220\\255\\255\\255\\255')\n",
        b"return string.rep('a', 1e9)\n",
        b"return string.format('%99d', 1)\n",
        b"return ('a'):gsub('.-b*', '%1')\n",
        b"return ('x'):find('(()%1', 1)\n",
        b"return string.char(256)\n",
        b"return struct.pack('>!16i32c999999999s', 1, ARGV[1], ARGV[2])\n",
        b"return struct.unpack('<c0bLd!8', ARGV[1], 1e300)\n",
        b"return struct.size(('c99999999999999999999'):rep(3))\n",
        b"return cmsgpack.unpack_limit(ARGV[1], 1e18, 1)\n",
        b"return bit.lshift(1, -1)\n",
        b"return table.concat(KEYS, ',', -9e15, 9e15)\n",
        b"return setmetatable({}, {__index = error})[1]\n",
        b"return redis.sha1hex(ARGV[1])\n",
        b"return redis.error_reply('no')\n",
        b"error({})\n",
        b"return #ARGV[3]\n",
        b"for i = 1, 10 do ",
        b"end ",
        b"(",
        b")",
        b"'",
        b"\n",
    ];

    #[test]
    fn whatever_a_client_sends_as_a_script_ends_and_gives_its_room_back() {
        let make = |numbers: &mut Numbers| strung(numbers, WORDS, 4);
        let well = feed("redis_script", 400, make, |input| usize::from(script(input)));
        assert!(well > 20, "only {well} were answered");
    }
}
