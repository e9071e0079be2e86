//! Scripts on rooms, without a mesh.

use bytes::Bytes;

use super::super::frame::Reply;
use super::super::room::{Room, register};
use super::{Ended, Input, digest, run};

/// The time at which they run.
const NOW: u64 = 1_700_000_000_000;

fn input(text: &str, keys: &[&str], args: &[&str]) -> Input {
    let owned = |all: &[&str]| all.iter().map(|it| Bytes::copy_from_slice(it.as_bytes())).collect();
    Input {
        text: Bytes::copy_from_slice(text.as_bytes()),
        sha: digest(text.as_bytes()),
        keys: owned(keys),
        args: owned(args),
        index: 0,
        now: NOW,
        read_only: false,
    }
}

fn ended(text: &str, keys: &[&str], args: &[&str]) -> Ended {
    let first = keys.first().copied().unwrap_or_default();
    run(&input(text, keys, args), Some(Room::empty(&register(0, first.as_bytes()), NOW)))
}

fn told(text: &str) -> Reply {
    ended(text, &["k"], &["a", "b"]).reply
}

#[test]
fn what_a_script_answers_is_turned_into_replies_as_redis_does() {
    let text = |text: &str| Reply::text(text);
    for (script, expected) in [
        ("return 3.99", Reply::Number(3)),
        ("return -3.99", Reply::Number(-3)),
        ("return '3.99'", text("3.99")),
        ("return true", Reply::Number(1)),
        ("return false", Reply::Null),
        ("return nil", Reply::Null),
        ("return {1, 2, nil, 4}", Reply::Array(vec![Reply::Number(1), Reply::Number(2)])),
        ("return {ok = 'FINE'}", Reply::status("FINE")),
        ("return redis.status_reply('FINE')", Reply::status("FINE")),
        ("return {err = 'MY way'}", Reply::Error("MY way".into())),
        ("return redis.error_reply('MY way')", Reply::Error("MY way".into())),
        ("return redis.error_reply('Failed')", Reply::Error("ERR Failed".into())),
        ("return redis.call('SET', KEYS[1], ARGV[1])", Reply::OK),
        ("redis.call('SET', KEYS[1], 5) return redis.call('INCRBY', KEYS[1], 2)", Reply::Number(7)),
        ("return redis.call('GET', KEYS[1])", Reply::Null),
        (
            "return redis.pcall('INCR', KEYS[1], 1).err",
            text("ERR Wrong number of args calling Redis command from script"),
        ),
        ("return redis.sha1hex('')", text("da39a3ee5e6b4b0d3255bfef95601890afd80709")),
        ("return cjson.encode({a = {1, 2, 'x'}})", text(r#"{"a":[1,2,"x"]}"#)),
        ("return cjson.decode('{\"a\":[1,2.5,null]}').a[2] * 2", Reply::Number(5)),
        ("return cmsgpack.unpack(cmsgpack.pack({a = 'b'})).a", text("b")),
        ("return bit.band(0xff, 0x0f) + bit.lshift(1, 4)", Reply::Number(31)),
        ("local s = ('a,b'):gsub(',', ';') return s", text("a;b")),
        (
            "local n = 0 for w in string.gmatch('one two', '%a+') do n = n + #w end return n",
            Reply::Number(6),
        ),
        ("return string.gsub('hello', 'l', {l = 'L'})", text("heLLo")),
        ("local t = {3, 1, 2} table.sort(t) return table.concat(t, ' ')", text("1 2 3")),
        (
            "return {string.find('key=v', '(%w+)=')}",
            Reply::Array(vec![Reply::Number(1), Reply::Number(4), text("key")]),
        ),
        ("return tostring(0.1)", text("0.1")),
        ("return select('#', pcall(error, {}))", Reply::Number(2)),
        ("return loadstring('return 1 + 1')()", Reply::Number(2)),
        ("return #redis.call('TIME')", Reply::Number(2)),
    ] {
        assert_eq!(told(script), expected, "{script}");
    }
}

#[test]
fn errors_are_told_in_redis_words_with_the_place() {
    let error = |text: &str| match told(text) {
        Reply::Error(told) => told,
        other => panic!("{text}: {other:?}"),
    };
    for (script, begins) in [
        (
            "return x",
            "ERR user_script:1: Script attempted to access nonexistent global variable 'x' script: ",
        ),
        ("x = 1", "ERR user_script:1: Attempt to modify a readonly table script: "),
        (
            "return +",
            "ERR Error compiling script (new function): user_script:1: unexpected symbol near '+'",
        ),
        ("error('mine')", "ERR user_script:1: mine script: "),
        (
            "\n\nlocal n = nil + 1",
            "ERR user_script:3: attempt to perform arithmetic on a nil value script: ",
        ),
        ("return redis.call('NONE')", "ERR Unknown Redis command called from script script: "),
        (
            "return redis.call('SUBSCRIBE', 'c')",
            "ERR This Redis command is not allowed from script script: ",
        ),
        (
            "redis.call('SET', 'k', 'x') return redis.call('INCR', 'k')",
            "ERR value is not an integer or out of range script: ",
        ),
        (
            "return redis.call()",
            "ERR Please specify at least one argument for this redis.call() call",
        ),
        (
            "return redis.call('GET', {})",
            "ERR Lua redis lib command arguments must be strings or integers",
        ),
        (
            "return os.execute('x')",
            "ERR user_script:1: attempt to call field 'execute' (a nil value)",
        ),
        (
            "return require('x')",
            "ERR user_script:1: Script attempted to access nonexistent global variable 'require'",
        ),
        (
            "return loadstring(string.char(27) .. 'Lua')()",
            "ERR user_script:1: attempt to call a nil value",
        ),
    ] {
        let told = error(script);
        assert!(told.starts_with(begins), "{script}: {told}");
    }
    let told = error("return redis.call('NONE')");
    assert!(told.ends_with(", on @user_script:1."), "{told}");
}

#[test]
fn what_an_error_comes_after_is_kept_as_in_redis() {
    let ended = ended("redis.call('SET', KEYS[1], 'x') error('late')", &["k"], &[]);
    assert!(ended.stands && ended.reply.is_error());
    assert!(ended.room.unwrap().value(b"k").is_some());
}

#[test]
fn a_script_without_end_is_ended_and_nothing_of_it_is_done() {
    for script in [
        "redis.call('SET', KEYS[1], 'x') while true do end",
        "redis.call('SET', KEYS[1], 'x') while true do pcall(function() while true do end end) end",
        "redis.call('SET', KEYS[1], 'x') local f f = function() return f() end return f()",
        "redis.call('SET', KEYS[1], 'x') coroutine.wrap(function() while true do end end)()",
        "redis.call('SET', KEYS[1], 'x') local t = {} while true do t[#t + 1] = ('x'):rep(1000) .. #t end",
        "redis.call('SET', KEYS[1], 'x') local s = 'x' while true do s = s .. s end",
        "redis.call('SET', KEYS[1], ('x'):rep(2000000)) return 1",
    ] {
        let ended = ended(script, &["k"], &[]);
        assert!(!ended.stands && ended.reply.is_error(), "{script}: {:?}", ended.reply);
    }
}

#[test]
fn what_recurses_or_backtracks_is_an_error_of_its_script() {
    for script in [
        "local f f = function() return 1 + f() end return f()",
        "return string.find(('a'):rep(3000), ('a?'):rep(3000) .. ('a'):rep(3000))",
        "return string.find(('a'):rep(10000), '.-.-.-.-b')",
        "return ('x'):rep(1e12)",
        "local t = {} t[1] = t return cjson.encode(t)",
        "local s = ('('):rep(300) .. '1' .. (')'):rep(300) return loadstring('return ' .. s)()",
    ] {
        assert!(told(script).is_error(), "{script}");
    }
    assert_eq!(told("return #('').rep('', 1e15)"), Reply::Number(0));
    let nested = told("local t = {} t[1] = t return t");
    assert!(format!("{nested:?}").contains("reached lua stack limit"));
}

#[test]
fn a_script_has_one_room_and_is_told_which_key_is_in_another() {
    let script = "redis.call('GET', KEYS[1]) return redis.call('GET', KEYS[2])";
    let Reply::Error(told) = ended(script, &["a", "other"], &[]).reply else { panic!("two rooms") };
    assert!(told.starts_with("CROSSSLOT ") && told.contains("'other'"), "{told}");
    assert_eq!(ended(script, &["{t}:a", "{t}:other"], &[]).reply, Reply::Null);
    let needs = ended("return redis.call('GET', ARGV[1])", &["a"], &["other"]).needs;
    assert_eq!(needs, Some(register(0, b"other")));
}

#[test]
fn a_script_that_may_only_read_does_not_write() {
    let read_only =
        Input { read_only: true, ..input("return redis.call('SET', KEYS[1], 1)", &["k"], &[]) };
    let Reply::Error(told) = run(&read_only, Some(Room::empty(&register(0, b"k"), NOW))).reply
    else {
        panic!("it wrote")
    };
    assert!(
        told.starts_with("ERR Write commands are not allowed from read-only scripts."),
        "{told}"
    );
}
