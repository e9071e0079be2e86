//! Scripts on rooms, without a mesh.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::frame::Reply;
use super::super::room::{Room, register};
use super::bounds::{Bounds, WHOLE};
use super::{Ended, Input, digest, lua, run, run_briefly, seems_brief};

/// The time at which they run.
const NOW: u64 = 1_700_000_000_000;

fn input(text: &str, keys: &[&str], args: &[&str]) -> Input {
    let owned = |all: &[&str]| all.iter().map(|it| Bytes::copy_from_slice(it.as_bytes())).collect();
    Input {
        text: Bytes::copy_from_slice(text.as_bytes()),
        sha: digest(text.as_bytes()).into(),
        keys: owned(keys),
        args: owned(args),
        index: 0,
        now: NOW,
        took_long: false,
        read_only: false,
        seed: 1,
        hub: Arc::default(),
        library: Arc::default(),
    }
}

/// What a run beside its client comes to, unless it takes too long for that.
fn brief(text: &str, keys: &[&str], args: &[&str]) -> Option<Ended> {
    let first = keys.first().copied().unwrap_or_default();
    let room = Room::empty(&register(0, first.as_bytes()), NOW);
    Some(run_briefly(&input(text, keys, args), Some(room))).filter(|ended| !ended.outgrew)
}

/// What a run on a thread of its own comes to.
fn whole(text: &str, keys: &[&str], args: &[&str]) -> Ended {
    let first = keys.first().copied().unwrap_or_default();
    let room = Room::empty(&register(0, first.as_bytes()), NOW);
    run(&input(text, keys, args), Some(room))
}

/// What a run comes to, which is the same whether it is brief or not.
fn ended(text: &str, keys: &[&str], args: &[&str]) -> Ended {
    let ended = whole(text, keys, args);
    if let Some(brief) = brief(text, keys, args) {
        let all =
            |it: &Ended| format!("{:?}", (&it.reply, it.commits, it.depends, &it.needs, &it.room));
        assert_eq!(all(&brief), all(&ended), "{text}");
    }
    ended
}

fn reply_of(text: &str) -> Reply {
    ended(text, &["k"], &["a", "b"]).reply
}

fn numbers(all: &[i64]) -> Reply {
    Reply::Array(all.iter().map(|it| Reply::Number(*it)).collect())
}

#[test]
fn the_result_of_a_script_becomes_a_reply_as_in_redis() {
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
        ("return cjson.encode({-1e15, 12345678901234})", text("[-1e+15,12345678901234]")),
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
        assert_eq!(reply_of(script), expected, "{script}");
    }
}

#[test]
fn rare_uses_of_scripts_are_answered_as_in_redis() {
    let text = |text: &str| Reply::text(text);
    for (script, expected) in [
        // What is out of the bounds of a number is the lowest of them.
        ("return {2 ^ 63, 1e100, 0 / 0, 1 / 0}", Reply::Array(vec![Reply::Number(i64::MIN); 4])),
        ("return {err = '-MINE'}", Reply::Error("-MINE".into())),
        ("return {big_number = '123'}", text("123")),
        ("return {verbatim_string = {format = 'txt', string = 'x'}}", text("x")),
        // An error that pcall caught is its text, and that of xpcall a table.
        (
            "local ok, err = pcall(redis.call, 'NONE') return err",
            text("ERR Unknown Redis command called from script"),
        ),
        ("return {pcall(error, {err = 'x'})}", Reply::Array(vec![Reply::Null, text("x")])),
        (
            "local _, err = xpcall(function() redis.call('NONE') end, function(e) return e.err end) \
             return err",
            text("ERR Unknown Redis command called from script"),
        ),
        (
            "redis.call('SET', KEYS[1], 0.1) return redis.call('GET', KEYS[1])",
            text("0.10000000000000001"),
        ),
        (
            "redis.call('SET', KEYS[1], 1e15) return redis.call('GET', KEYS[1])",
            text("1000000000000000"),
        ),
        (
            "return {string.find('abc', '', 10)}",
            Reply::Array(vec![Reply::Number(4), Reply::Number(3)]),
        ),
        (
            "cjson.encode_sparse_array(true) return cjson.encode({[1] = 1, [100] = 2})",
            text(r#"{"1":1,"100":2}"#),
        ),
        ("cjson.encode_number_precision(3) return cjson.encode(1 / 3)", text("0.333")),
        ("return tostring(cjson.decode('[-inf]')[1])", text("-inf")),
        (
            "return {cmsgpack.unpack_one(cmsgpack.pack(7, 8))}",
            Reply::Array(vec![Reply::Number(1), Reply::Number(7)]),
        ),
        (
            "return {cmsgpack.unpack_limit(cmsgpack.pack(7, 8), 5)}",
            Reply::Array(vec![Reply::Number(-1), Reply::Number(7), Reply::Number(8)]),
        ),
        (
            "return {struct.unpack('>I2<hb', struct.pack('>I2<hb', 513, -2, -1))}",
            numbers(&[513, -2, -1, 6]),
        ),
        // As rate limiters of Redisson keep what they let in.
        (
            "local it = struct.pack('Bc0I', 3, 'abc', 7) local len, s, n = struct.unpack('Bc0I', it) \
             return {s or 'none', n or 'none'}",
            Reply::Array(vec![Reply::Number(7), Reply::Number(9)]),
        ),
        ("return struct.size('!8 b d')", Reply::Number(16)),
        ("return #struct.pack('s', 'ab')", Reply::Number(3)),
        ("return redis.acl_check_cmd('GET', 'k')", Reply::Number(1)),
        ("return {redis.REPL_AOF, redis.REPL_SLAVE, redis.REPL_REPLICA}", numbers(&[1, 2, 2])),
        ("return type(gcinfo())", text("number")),
        // What Redis' own functions fail with has a code, and is a table as that of commands is.
        (
            "return {pcall(redis.sha1hex)}",
            Reply::Array(vec![Reply::Null, text("ERR wrong number of arguments")]),
        ),
        (
            "local _, err = xpcall(function() redis.log('x') end, function(e) return e.err end) return err",
            text("ERR redis.log() requires two arguments or more."),
        ),
    ] {
        assert_eq!(reply_of(script), expected, "{script}");
    }
}

#[test]
fn json_is_nested_as_deep_as_a_script_says_and_no_deeper_than_redis_default() {
    let nested = |depth: usize| {
        format!("local t = {{}} for _ = 2, {depth} do t = {{t}} end return #cjson.encode(t)")
    };
    assert_eq!(reply_of(&nested(1000)), Reply::Number(2000));
    let found = |depth: usize| error(&nested(depth));
    assert!(
        found(1001).contains("user_script:1: Cannot serialise, excessive nesting (1001) script")
    );
    let set = |depth: usize| error(&format!("cjson.encode_max_depth(3) {}", nested(depth)));
    assert!(set(4).contains("Cannot serialise, excessive nesting (4) script"));
    let objects = "local t = {a = 1} for _ = 2, 1000 do t = {a = t} end return #cjson.encode(t)";
    assert_eq!(reply_of(objects), Reply::Number(6001));
    let read = |depth: usize, level: &str, end: &str| {
        format!(
            "local t = cjson.decode(('{level}'):rep({depth}) .. '1' .. ('{end}'):rep({depth})) \
             local depth = 0 while type(t) == 'table' do depth, t = depth + 1, t[1] or t.a end return depth"
        )
    };
    for (level, end) in [("[", "]"), ("{\"a\":", "}")] {
        assert_eq!(reply_of(&read(1000, level, end)), Reply::Number(1000));
        let found = error(&read(1001, level, end));
        assert!(found.contains("Found too many nested data structures (1001)"), "{found}");
    }
    let found = error("cjson.decode_max_depth(1) return cjson.decode('[[]]')");
    assert!(found.contains("Found too many nested data structures (2) at character 2"), "{found}");
}

#[test]
fn what_a_script_sets_of_json_is_checked() {
    for (script, expected) in [
        (
            "cjson.decode_invalid_numbers(false) return cjson.decode('[0x10]')",
            "Expected value but found invalid number at character 2",
        ),
        (
            "cjson.decode_invalid_numbers(false) return cjson.decode('[nan]')",
            "Expected value but found invalid token at character 2",
        ),
        (
            "return cjson.encode_max_depth(0)",
            "bad argument #1 to 'encode_max_depth' (expected integer between 1 and 2147483647)",
        ),
        (
            "return cjson.encode_max_depth('x')",
            "bad argument #1 to 'encode_max_depth' (number expected, got string)",
        ),
        (
            "return cjson.encode_max_depth(1, 2)",
            "bad argument #2 to 'encode_max_depth' (found too many arguments)",
        ),
        (
            "return cjson.encode_number_precision(15)",
            "bad argument #1 to 'encode_number_precision' (expected integer between 1 and 14)",
        ),
        (
            "return cjson.encode_sparse_array(true, -1)",
            "bad argument #1 to 'encode_sparse_array' (expected integer between 0 and 2147483647)",
        ),
        (
            "return cjson.encode_invalid_numbers('x')",
            "bad argument #1 to 'encode_invalid_numbers' (invalid option 'x')",
        ),
        (
            "return cjson.decode_invalid_numbers({})",
            "bad argument #1 to 'decode_invalid_numbers' (string expected, got table)",
        ),
    ] {
        let found = error(script);
        assert!(found.contains(expected), "{script}: {found}");
    }
}

#[test]
fn json_is_written_and_read_by_the_settings_of_its_script() {
    let text = |text: &str| Reply::text(text);
    for (script, expected) in [
        ("return {cjson.decode_max_depth(), cjson.decode_max_depth(5)}", numbers(&[1000, 5])),
        ("return tostring(cjson.encode_invalid_numbers())", text("false")),
        (
            "local one, own = {}, cjson.new() own.encode_max_depth(1) own.encode_invalid_numbers('null') \
             for _, it in ipairs({own, cjson}) do \
               one[#one + 1] = tostring(pcall(it.encode, {{1}})) \
               one[#one + 1] = tostring(pcall(it.encode, {1 / 0})) \
             end return table.concat(one, ' ') .. ' ' .. own.encode({1 / 0})",
            text("false true true false [null]"),
        ),
        (
            "cjson.encode_invalid_numbers(true) return cjson.encode({-1 / 0, 0 / 0})",
            text("[-inf,nan]"),
        ),
        (
            "cjson.encode_number_precision(3) return cjson.encode({[1.23456] = 1})",
            text("{\"1.23\":1}"),
        ),
        ("return cjson.encode(cjson.decode('[0x10, 007, +3, 1.]'))", text("[16,7,3,1]")),
        ("return cjson.new().encode({1})", text("[1]")),
    ] {
        assert_eq!(reply_of(script), expected, "{script}");
    }
}

fn error(text: &str) -> String {
    match reply_of(text) {
        Reply::Error(message) => message,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn the_place_of_an_error_is_reported_whatever_failed() {
    for (script, begins) in [
        // The place is reported even if the script's last call is what fails.
        (
            "return cjson.decode('[1,')",
            "ERR user_script:1: Expected value but found T_END at character 4 script: ",
        ),
        ("return redis.sha1hex()", "ERR wrong number of arguments script: "),
        ("return redis.log(9, 'x')", "ERR Invalid debug level. script: "),
        (
            "return bit.band('x')",
            "ERR user_script:1: bad argument #1 to 'band' (number expected, got string) script: ",
        ),
        ("local t = {3, 'x'} table.sort(t)", "ERR attempt to compare string with number script: "),
        (
            "local ok, err = pcall(redis.call, 'NONE') error(err)",
            "ERR user_script:1: ERR Unknown Redis command called from script script: ",
        ),
        (
            "return struct.unpack('>I4', 'ab')",
            "ERR user_script:1: bad argument #2 to 'unpack' (data string too short) script: ",
        ),
        ("return struct.pack('y', 1)", "ERR user_script:1: bad argument #1"),
        (
            "return redis.acl_check_cmd('NONE')",
            "ERR Invalid command passed to redis.acl_check_cmd()",
        ),
    ] {
        let message = error(script);
        assert!(message.starts_with(begins), "{script}: {message}");
    }
}

#[test]
fn errors_have_redis_words_and_the_place() {
    for (script, begins) in [
        (
            "return x",
            "ERR user_script:1: Script attempted to access nonexistent global variable 'x' script: ",
        ),
        ("x = 1", "ERR user_script:1: Attempt to modify a readonly table script: "),
        ("redis.call = nil", "ERR user_script:1: Attempt to modify a readonly table script: "),
        ("string.mine = 1", "ERR user_script:1: Attempt to modify a readonly table script: "),
        ("rawset(_G, 'mine', 1)", "ERR Attempt to modify a readonly table script: "),
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
        ("return redis.call()", "ERR Please specify at least one argument for this redis lib call"),
        (
            "return redis.call('GET', {})",
            "ERR Lua redis lib command arguments must be strings or integers",
        ),
        (
            "return os.execute('x')",
            "ERR user_script:1: Script attempted to access nonexistent global variable 'os'",
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
        let message = error(script);
        assert!(message.starts_with(begins), "{script}: {message}");
    }
    let message = error("return redis.call('NONE')");
    assert!(message.ends_with(", on @user_script:1."), "{message}");
}

#[test]
fn the_time_is_the_same_within_a_run_and_another_in_the_next() {
    let text = "local a, b = redis.call('TIME'), redis.call('TIME') \
                return {a[1], a[2], b[1] == a[1] and b[2] == a[2]}";
    let reply = || whole(text, &["k"], &[]).reply;
    let (one, other) = (reply(), reply());
    let Reply::Array(parts) = &one else { panic!("{one:?}") };
    assert_eq!((&parts[0], &parts[2]), (&Reply::text("1700000000"), &Reply::Number(1)));
    assert_ne!(one, other, "members of a sorted set, say, would be the same");
}

#[test]
fn random_numbers_differ_between_runs_and_not_where_one_begins_anew() {
    let drawn = |text: &str, seed: u64| {
        let room = Room::empty(&register(0, b"k"), NOW);
        run(&Input { seed, ..input(text, &["k"], &[]) }, Some(room)).reply
    };
    let text = "return math.random(1000000) * 1000000 + math.random(1000000)";
    assert_eq!(drawn(text, 1), drawn(text, 1));
    assert_ne!(drawn(text, 1), drawn(text, 2));
    let seeded = "math.randomseed(7) return math.random(1000000)";
    assert_eq!(drawn(seeded, 1), drawn(seeded, 2), "as in Redis");
}

#[test]
fn changes_that_a_script_makes_to_its_globals_are_not_visible_to_others() {
    let look = "for _, t in pairs({string, table, math, coroutine, redis, cjson, cmsgpack, bit, struct, _G}) do \
                if rawget(t, 1) or rawget(t, 'mine') or getmetatable(t) then return 'touched' end end \
                if ('x'):rep(2) ~= 'xx' or string.find('ab', 'b') ~= 2 or #ARGV ~= 2 or KEYS[2] then \
                return 'touched' end return math.random(1, 1000000)";
    let first = reply_of(look);
    assert!(matches!(first, Reply::Number(_)), "{first:?}");
    for script in [
        "string.find = nil return 1",
        "string.mine = 1 error('then it fails')",
        "getmetatable('').__index = nil return 1",
        "getmetatable('').__index.rep = nil return 1",
        "getmetatable('').__index.find = function() return 1 end while true do end",
        "table.insert(string, 'mine') return 1",
        "getmetatable('').__index = function() return function() return 'mine' end end return 1",
        "rawset(_G, 'mine', 1) return 1",
        "table.insert(math, 'mine') return 1",
        "setmetatable(cjson, {__index = function() return 'mine' end}) return 1",
        "setmetatable(bit, {__metatable = false}) return 1",
        "redis.call = function() return 'mine' end return 1",
        "coroutine.mine, struct.mine, cmsgpack.mine = 1, 1, 1 return 1",
        "KEYS[2], ARGV[3] = 'mine', 'mine' return 1",
        "math.randomseed(7) return math.random()",
        "redis.setresp(3) return 1",
        "string.find = nil while true do end",
        "local f = coroutine.wrap(function() string.rep = nil coroutine.yield() end) f() return 1",
        "loadstring('string.rep = nil')() return 1",
        "pcall(function() string.rep = nil error('x') end) return 1",
    ] {
        reply_of(script);
        assert_eq!(reply_of(look), first, "{script}");
    }
    assert_eq!(reply_of("return redis.call('GET', KEYS[1])"), Reply::Null);
}

#[test]
fn scripts_that_leave_their_surroundings_alone_share_them() {
    reply_of("return 1");
    let made = super::lua::made_here();
    for number in 0..200 {
        let text = format!("local mine = {number} return redis.call('SET', KEYS[1], ARGV[1])");
        assert_eq!(reply_of(&text), Reply::OK);
        assert!(reply_of("return redis.call('GET')").is_error());
    }
    assert!(ended("return redis.call('GET', ARGV[1])", &["a"], &["other"]).reply.is_error());
    assert_eq!(super::lua::made_here(), made);
    // What has left much behind is not kept.
    whole("local t = {} for i = 1, 100000 do t[i] = i .. 'x' end return #t", &[], &[]);
    whole("return 1", &[], &[]);
    assert_eq!(super::lua::made_here(), made + 1);
}

#[test]
fn writes_before_an_error_are_kept_as_in_redis() {
    let ended = ended("redis.call('SET', KEYS[1], 'x') error('late')", &["k"], &[]);
    assert!(ended.commits && ended.reply.is_error());
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
        assert!(!ended.commits && ended.reply.is_error(), "{script}: {:?}", ended.reply);
    }
}

#[test]
fn a_script_that_takes_long_is_ended_beside_its_client_whatever_it_catches() {
    for script in [
        "while true do end",
        "while true do pcall(function() while true do end end) end",
        "pcall(function() while true do end end) return 1",
        "pcall(string.rep, 'x', 1000000) return 1",
        "local s = 'x' pcall(function() while true do s = s .. s end end) return 1",
        "local t = {} for i = 1, 100 do t[i] = ('x'):rep(60000) end pcall(table.concat, t) return 1",
        "xpcall(function() local s = 'x' while true do s = s .. s end end, function() end) return 1",
        "coroutine.resume(coroutine.create(function() while true do end end)) return 1",
        "local t = {('x'):rep(60000)} for i = 1, 5 do t = {t, t} end pcall(cjson.encode, t) return 1",
        "local t = {('x'):rep(60000)} for i = 1, 5 do t = {t, t} end pcall(cmsgpack.pack, t) return 1",
        "pcall(struct.pack, 'c999999', 'x') return 1",
        "pcall(string.gsub, ('x'):rep(60000), 'x', 'yy') return 1",
        "pcall(string.find, ('a'):rep(10000), '.-.-.-.-b') return 1",
        "pcall(loadstring, 'return ' .. ('1+'):rep(40000) .. '1') return 1",
        "for i = 1, 10000 do redis.call('SET', KEYS[1], i) end return 1",
    ] {
        assert!(brief(script, &["k"], &[]).is_none(), "{script}");
    }
    // It goes on as if nothing had been.
    assert_eq!(brief("return ('x'):rep(3)", &["k"], &[]).unwrap().reply, Reply::text("xxx"));
}

#[test]
fn a_script_whose_time_is_over_is_ended_by_each_function_that_takes_long() {
    let on = |bounds: Bounds, script: &str| {
        lua::run(&input(script, &[], &[]), None, Box::leak(Box::new(bounds)))
    };
    let is_killed = |ended: Ended| match &ended.reply {
        Reply::Error(error) => error.contains("killed") && !ended.commits,
        _ => false,
    };
    // The steps alone would not end it, nor the first look at the clock.
    let never = u32::MAX >> 1;
    for call in [
        "redis.sha1hex('x')",
        "loadstring('return 1')",
        "('x'):find('x')",
        "('x'):match('x')",
        "('x'):gsub('x', 'y')",
        "('x'):gsub('x', {x = 'y'})",
        "('x'):rep(2)",
        "(('x'):gmatch('x'))()",
        "cjson.encode(1)",
        "cjson.decode('1')",
        "cmsgpack.pack(1)",
        "cmsgpack.unpack('')",
        "cmsgpack.unpack_one('')",
        "cmsgpack.unpack_limit('', 1)",
        "struct.pack('b', 1)",
        "struct.unpack('b', 'x')",
    ] {
        let bounds = || Bounds { within: Duration::ZERO, looked_at: never, late: 1, ..WHOLE };
        let twice = format!("pcall(function() local a = {call} local b = {call} end) return 1");
        assert!(is_killed(on(bounds(), &twice)), "{call}");
    }
    // One call of them looks at it again and again.
    for call in ["cjson.encode(t)", "cmsgpack.pack(t)", "s:gsub('x', 'y')", "cjson.decode(s)"] {
        let bounds = || Bounds { within: Duration::ZERO, looked_at: never, late: 3, ..WHOLE };
        let make = "local t = {} for i = 1, 20000 do t[i] = 1 end local s = '[' .. table.concat(t, ',') .. ']'";
        assert!(is_killed(on(bounds(), &format!("{make} local a = {call} return 1"))), "{call}");
    }
    // Lua's own are ended after a few calls.
    let bounds = || Bounds { within: Duration::ZERO, ..WHOLE };
    for call in ["('x'):upper()", "('x'):reverse()", "table.concat({})"] {
        let script = format!("for i = 1, 50 do local a = {call} end return 1");
        assert!(is_killed(on(bounds(), &script)), "{call}");
    }
}

#[test]
fn a_run_whose_time_is_over_stays_so_however_often_that_is_asked() {
    let mut state = super::state::State::default();
    assert!(!state.is_over());
    state.until = std::time::Instant::now().checked_sub(std::time::Duration::from_millis(1));
    for _ in 0..3 {
        assert!(state.is_over());
    }
}

#[test]
fn a_script_of_many_bytes_is_not_taken_for_brief() {
    let room = Room::empty(&register(0, b"k"), NOW);
    let seems = |input: &Input| seems_brief(input, Some(&room));
    let long = "x".repeat(100_000);
    assert!(seems(&input("return 1", &["k"], &["a"])));
    assert!(!seems(&Input { took_long: true, ..input("return 1", &["k"], &["a"]) }));
    assert!(!seems(&input(&format!("return '{long}'"), &["k"], &[])));
    assert!(!seems(&input("return 1", &["k"], &[&long])));
    let fill = ended(&format!("redis.call('SET', KEYS[1], '{long}')"), &["k"], &[]);
    assert!(!seems_brief(&input("return 1", &["k"], &[]), fill.room.as_ref()));
}

#[test]
fn endless_recursion_and_backtracking_are_errors_of_the_script() {
    for script in [
        "local f f = function() return 1 + f() end return f()",
        "return string.find(('a'):rep(3000), ('a?'):rep(3000) .. ('a'):rep(3000))",
        "return string.find(('a'):rep(10000), '.-.-.-.-b')",
        "return ('x'):rep(1e12)",
        "local t = {} t[1] = t return cjson.encode(t)",
        "local s = ('('):rep(300) .. '1' .. (')'):rep(300) return loadstring('return ' .. s)()",
    ] {
        assert!(reply_of(script).is_error(), "{script}");
    }
    assert_eq!(reply_of("return #('').rep('', 1e15)"), Reply::Number(0));
    let nested = reply_of("local t = {} t[1] = t return t");
    assert!(format!("{nested:?}").contains("reached lua stack limit"));
}

#[test]
fn a_script_has_one_room_and_the_error_names_the_key_in_another() {
    let script = "redis.call('GET', KEYS[1]) return redis.call('GET', KEYS[2])";
    let Reply::Error(message) = ended(script, &["a", "other"], &[]).reply else {
        panic!("two rooms")
    };
    assert!(message.starts_with("CROSSSLOT ") && message.contains("'other'"), "{message}");
    assert_eq!(ended(script, &["{t}:a", "{t}:other"], &[]).reply, Reply::Null);
    let needs = ended("return redis.call('GET', ARGV[1])", &["a"], &["other"]).needs;
    assert_eq!(needs, Some(register(0, b"other")));
}

#[test]
fn a_script_that_may_only_read_does_not_write() {
    for text in
        ["return redis.call('SET', KEYS[1], 1)", "return redis.call('PUBLISH', KEYS[1], 'm')"]
    {
        let read_only = Input { read_only: true, ..input(text, &["k"], &[]) };
        let room = Room::empty(&register(0, b"k"), NOW);
        let Reply::Error(message) = run(&read_only, Some(room)).reply else { panic!("it wrote") };
        let begins = "ERR Write commands are not allowed from read-only scripts.";
        assert!(message.starts_with(begins), "{message}");
    }
}

#[test]
fn a_reply_that_is_many_times_as_large_as_what_the_script_took_is_refused() {
    let large = "local s, t = ('x'):rep(100000), {} for i = 1, 400 do t[i] = s end return t";
    let shared = "local t = {} for i = 1, 40 do t = {t, t} end return t";
    for text in [large, shared] {
        let set = format!("redis.call('SET', KEYS[1], 'v') {text}");
        let ended = whole(&set, &["k"], &[]);
        let Reply::Error(error) = &ended.reply else { panic!("{text} is answered") };
        assert!(error.starts_with("ERR nothing was done: the script's reply"), "{error}");
        assert!(!ended.commits, "{text}");
    }
    let fits = "local s, t = ('x'):rep(100000), {} for i = 1, 300 do t[i] = s end return t";
    assert!(matches!(whole(fits, &[], &[]).reply, Reply::Array(parts) if parts.len() == 300));
}

#[test]
fn a_command_whose_arguments_are_one_string_many_times_is_refused() {
    let text = "local s, t = ('x'):rep(100000), {} for i = 1, 100 do t[i] = s end \
                return redis.call('DEL', KEYS[1], unpack(t))";
    assert!(error(text).starts_with("ERR a command has at most 2097152 bytes"), "{}", error(text));
}
