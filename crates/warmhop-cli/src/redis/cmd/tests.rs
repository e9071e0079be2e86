//! What single commands answer, run on a room without a mesh.

use bytes::Bytes;

use super::super::room::register;
use super::*;

const NOW: u64 = 1_700_000_000_000;
const TIMEOUT: &str = "ERR timeout is not a float or out of range";
const NEGATIVE: &str = "ERR timeout is negative";

/// A room in which all keys of a tag live, after these commands.
fn room_after(commands: &[&str]) -> Room {
    let mut room = Room::empty(&register(0, b"{t}"), NOW);
    for command in commands {
        answer(&mut room, command);
    }
    room
}

/// What a command answers, in the form in which version 2 of the protocol has it.
fn answer(room: &mut Room, command: &str) -> String {
    // Two bars stand for a word without text.
    let word = |word: &str| Bytes::copy_from_slice(word.replace("||", "").as_bytes());
    let args: Vec<Bytes> = command.split(' ').map(word).collect();
    let spec = find(&args[0]).unwrap();
    assert!(spec.is_count_right(args.len()), "{command}");
    let (Run::Room(handler) | Run::Split(handler, _) | Run::Blocking(handler)) = spec.run else {
        panic!("{command} is not run on a room")
    };
    let reply = handler(room, &args).unwrap_or_else(|refused| refused);
    let mut written = bytes::BytesMut::new();
    reply.put(2, &mut written);
    String::from_utf8(written.to_vec()).unwrap().replace("\r\n", " ").trim_end().to_owned()
}

/// Each command is answered so, on a fresh room after these commands.
fn answers(before: &[&str], expected: &[(&str, &str)]) {
    for (command, answered) in expected {
        assert_eq!(answer(&mut room_after(before), command), *answered, "{command}");
    }
}

#[test]
fn an_option_that_comes_again_counts_once_and_a_time_that_does_counts_last() {
    answers(
        &["SET {t}k old"],
        &[
            ("SET {t}k v NX NX", "$-1"),
            ("SET {t}k v XX XX", "+OK"),
            ("SET {t}k v GET GET", "$3 old"),
            ("SET {t}k v KEEPTTL KEEPTTL", "+OK"),
            ("SET {t}k v NX XX", "-ERR syntax error"),
            ("SET {t}k v XX NX", "-ERR syntax error"),
            ("SET {t}k v EX 10 PX 10", "-ERR syntax error"),
            ("SET {t}k v EX 10 KEEPTTL", "-ERR syntax error"),
            ("SET {t}k v KEEPTTL EX 10", "-ERR syntax error"),
            // An unknown option is reported before a wrong time.
            ("SET {t}k v EX 0 NONE", "-ERR syntax error"),
            ("SET {t}k v EX x 5", "-ERR syntax error"),
            ("SET {t}k v EX 0 EX 10", "+OK"),
            ("SET {t}k v EX 10 EX 0", "-ERR invalid expire time in 'set' command"),
            ("GETEX {t}k PERSIST PERSIST", "$3 old"),
            ("GETEX {t}k EX 10 EX 20", "$3 old"),
            ("GETEX {t}k EX 10 PERSIST", "-ERR syntax error"),
            ("GETEX {t}k PERSIST EX 10", "-ERR syntax error"),
            ("GETEX {t}k EX 0", "-ERR invalid expire time in 'getex' command"),
        ],
    );
    let mut room = room_after(&["SET {t}k v EX 10 EX 20"]);
    assert_eq!(answer(&mut room, "TTL {t}k"), ":20");
    answer(&mut room, "GETEX {t}k PX 5000 PX 7000");
    assert_eq!(answer(&mut room, "PTTL {t}k"), ":7000");
    answer(&mut room, "SET {t}k v KEEPTTL");
    assert_eq!(answer(&mut room, "PTTL {t}k"), ":7000");
    answer(&mut room, "GETEX {t}k PERSIST");
    assert_eq!(answer(&mut room, "PTTL {t}k"), ":-1");
}

#[test]
fn how_long_a_command_waits_is_any_number_that_is_not_below_zero() {
    let list = &["RPUSH {t}l a", "ZADD {t}z 1 a"];
    for (timeout, expected) in [
        ("0", Ok(0.0)),
        ("0x1p-3", Ok(0.125)),
        ("1e-400", Ok(0.001)),
        ("-1e-400", Ok(0.0)),
        // Times have milliseconds, rounded up.
        ("0.0001", Ok(0.001)),
        ("-0.0001", Ok(0.0)),
        ("9223372036854", Ok(9_223_372_036_854.0)),
        ("9223372036854776", Err(NEGATIVE)),
        ("1e400", Err(NEGATIVE)),
        ("-1e400", Err(NEGATIVE)),
        ("inf", Err(NEGATIVE)),
        ("-1", Err(NEGATIVE)),
        ("-0.001", Err(NEGATIVE)),
        ("nan", Err(TIMEOUT)),
        ("x", Err(TIMEOUT)),
        ("", Err(TIMEOUT)),
        (" 1", Err(TIMEOUT)),
        ("1 ", Err(TIMEOUT)),
    ] {
        let args = ["BLPOP", "k", timeout].map(|it| Bytes::copy_from_slice(it.as_bytes()));
        assert_eq!(patience(&args), expected.map_err(|it| Reply::Error(it.into())), "{timeout}");
    }
    // Errors of other arguments come first.
    answers(
        list,
        &[
            ("BLPOP {t}l 1e400", "-ERR timeout is negative"),
            ("BLMPOP x 0 {t}l LEFT", "-ERR numkeys should be greater than 0"),
            ("BLMPOP x 1 {t}l UP", "-ERR syntax error"),
            ("BLMPOP x 1 {t}l LEFT COUNT 0", "-ERR count should be greater than 0"),
            ("BLMPOP x 1 {t}l LEFT", "-ERR timeout is not a float or out of range"),
            ("BZMPOP x 1 {t}z UP", "-ERR syntax error"),
            ("BZMPOP inf 1 {t}z MIN", "-ERR timeout is negative"),
            ("BLMOVE {t}l {t}m UP LEFT x", "-ERR syntax error"),
            ("BLMOVE {t}l {t}m LEFT LEFT x", "-ERR timeout is not a float or out of range"),
        ],
    );
}

#[test]
fn names_in_no_order_are_looked_for_in_the_steps_that_redis_takes() {
    answers(
        &["ZADD {t}z 1 b 2 a 3 c", "ZADD {t}y 1 a 2 c 3 b"],
        &[
            ("ZLEXCOUNT {t}z [a [a", ":0"),
            ("ZLEXCOUNT {t}z [a [b", ":2"),
            ("ZREMRANGEBYLEX {t}z [a [a", ":0"),
            ("ZRANGEBYLEX {t}y [a [b", "*1 $1 a"),
            ("ZRANGEBYLEX {t}y (a [b", "*0"),
            ("ZRANGEBYLEX {t}y - +", "*3 $1 a $1 c $1 b"),
            ("ZLEXCOUNT {t}y [d +", ":0"),
        ],
    );
}

#[test]
fn a_scan_of_one_key_takes_the_cursors_that_redis_takes() {
    answers(
        &["HSET {t}h f v", "SADD {t}s m", "ZADD {t}z 1 m"],
        &[
            ("HSCAN {t}h ||", "*2 $1 0 *2 $1 f $1 v"),
            ("SSCAN {t}s -1", "*2 $1 0 *1 $1 m"),
            ("ZSCAN {t}z 18446744073709551615", "*2 $1 0 *2 $1 m $1 1"),
            ("ZSCAN {t}z 18446744073709551616", "-ERR invalid cursor"),
            ("ZSCAN {t}z -", "-ERR invalid cursor"),
            ("ZSCAN {t}z --1", "-ERR invalid cursor"),
            ("ZSCAN {t}z x", "-ERR invalid cursor"),
            // Whether there is such a key is looked up before the options are read.
            ("HSCAN {t}none 0 COUNT 0", "*2 $1 0 *0"),
            ("HSCAN {t}none x", "-ERR invalid cursor"),
            ("SSCAN {t}h 0 COUNT 0", WRONG_TYPE),
            ("HSCAN {t}h 0 COUNT 0", "-ERR syntax error"),
        ],
    );
}

const WRONG_TYPE: &str = "-WRONGTYPE Operation against a key holding the wrong kind of value";

#[test]
fn numbers_are_read_and_added_in_the_forms_that_redis_takes() {
    let before = &["SET {t}n 10", "HSET {t}h f 1", "ZADD {t}z 1 a 2 b"];
    answers(
        before,
        &[
            ("INCRBYFLOAT {t}n 0x10", "$2 26"),
            ("INCRBYFLOAT {t}n 1e-400", "$2 10"),
            ("INCRBYFLOAT {t}n 1e17", "$18 100000000000000010"),
            ("INCRBYFLOAT {t}n nan", "-ERR value is not a valid float"),
            ("HINCRBYFLOAT {t}h f 0x1p3", "$1 9"),
            ("HINCRBYFLOAT {t}h f inf", "-ERR value is NaN or Infinity"),
            ("ZADD {t}z 0x10 c", ":1"),
            ("ZADD {t}z 1e-400 c", "-ERR value is not a valid float"),
            ("ZINCRBY {t}z 0x1p3 b", "$2 10"),
            ("ZCOUNT {t}z 0x0 0x1", ":1"),
            ("ZRANGEBYSCORE {t}z || (0x2", "*1 $1 a"),
            ("ZCOUNT {t}z -inf ||", ":0"),
            ("ZCOUNT {t}z x 1", "-ERR min or max is not a float"),
            // -0 is answered, and kept as 0.
            ("ZINCRBY {t}z -0 c", "$2 -0"),
            ("ZADD {t}z INCR -0 c", "$2 -0"),
        ],
    );
    let mut room = room_after(&["ZADD {t}z -0 a", "ZINCRBY {t}z -0 b"]);
    assert_eq!(answer(&mut room, "ZRANGE {t}z 0 -1 WITHSCORES"), "*4 $1 a $1 0 $1 b $1 0");
}

#[test]
fn how_many_are_picked_at_random_has_the_bounds_of_redis() {
    let all = "value is out of range, value must between -9223372036854775807 and \
               9223372036854775807";
    answers(
        &["HSET {t}h f v", "SADD {t}s m", "ZADD {t}z 1 m"],
        &[
            ("SRANDMEMBER {t}s -9223372036854775808", &format!("-ERR {all}")),
            ("HRANDFIELD {t}none -9223372036854775808", &format!("-ERR {all}")),
            ("HRANDFIELD {t}h 9223372036854775807 WITHVALUES", "-ERR value is out of range"),
            ("HRANDFIELD {t}h 9223372036854775807", "*1 $1 f"),
            ("ZRANDMEMBER {t}z 9223372036854775807 WITHSCORES", "-ERR value is out of range"),
            ("ZRANDMEMBER {t}z 4611686018427387903 WITHSCORES", "*2 $1 m $1 1"),
            ("ZRANDMEMBER {t}z x NONE", "-ERR value is not an integer or out of range"),
        ],
    );
}

#[test]
fn a_copy_may_name_the_database_in_which_its_keys_are() {
    answers(
        &["SET {t}a v", "SET {t}b w"],
        &[
            ("COPY {t}a {t}c DB 0", ":1"),
            ("COPY {t}a {t}b DB 0", ":0"),
            ("COPY {t}a {t}b DB 0 REPLACE", ":1"),
            ("COPY {t}a {t}b REPLACE REPLACE", ":1"),
            ("COPY {t}a {t}a DB 0", "-ERR source and destination objects are the same"),
            ("COPY {t}a {t}c DB 1", "-ERR COPY to another database is not offered here"),
            ("COPY {t}a {t}c DB 16", "-ERR DB index is out of range"),
            ("COPY {t}a {t}c DB -1", "-ERR DB index is out of range"),
            ("COPY {t}a {t}c DB x", "-ERR value is not an integer or out of range"),
            ("COPY {t}a {t}c DB", "-ERR syntax error"),
            ("OBJECT FREQ {t}none", "$-1"),
        ],
    );
}

const ARGS: [&[u8]; 5] = [b"name", b"one", b"2", b"three", b"four"];

#[test]
fn the_table_is_in_the_order_of_names_and_is_found_whatever_the_case() {
    assert!(TABLE.is_sorted_by(|a, b| a.name < b.name));
    for spec in &TABLE {
        let found = find(spec.name.to_ascii_lowercase().as_bytes()).unwrap();
        assert_eq!(found.name, spec.name);
        assert_eq!(spec.first_key(&ARGS.map(Bytes::from_static)), {
            spec.keys_of(&ARGS.map(Bytes::from_static)).first().cloned()
        });
    }
    assert!(TABLE.iter().any(|spec| spec.name.len() == NAME_BYTES_MAX));
    assert!(find(b"NONE").is_none() && find(&[b'A'; 64]).is_none());
}
