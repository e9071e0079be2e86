//! Thousands of random commands, scripts and transactions, each to a real redis-server and to one peer or
//! another of a mesh: both answer the same. What differs on purpose is left out, with the reason beside
//! it. `SEED` and `COMMANDS` ask for others, and more.

use std::net::SocketAddr;
use std::process::{Child, Stdio};

use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use warmhop_testbed::ports::Reservation;

use crate::installed::{Skipped, Tested, debian};
use crate::redis_json;
use crate::support::{QUICK, World, shop, until};
use crate::test;

const COMMANDS: u64 = 6000;
const TOLD_OF: u64 = 3000;
const KEYS: [&str; 5] = ["k0", "k1", "k2", "{t}0", "{t}1"];
/// Of one hash tag: what is about two keys changes them as one.
const TOGETHER: [&str; 2] = ["{t}0", "{t}1"];
const VALUES: [&str; 13] = [
    "",
    "a",
    "abc",
    "10",
    "-3",
    "3.5",
    "0",
    "hello world",
    "1e3",
    "  7",
    "9223372036854775807",
    "-0",
    "007",
];
const NUMBERS: [&str; 13] = [
    "0",
    "1",
    "2",
    "3",
    "-1",
    "-2",
    "10",
    "-100",
    "x",
    "1.5",
    "9223372036854775807",
    "-9223372036854775807",
    "99999999999999999999",
];
const SCORES: [&str; 10] = ["0", "1", "2.5", "-1.5", "inf", "-inf", "abc", "1e2", "(1", "0x10"];
/// Times to live, and ends: none is over while this is asked, and none is the last millisecond that a
/// number can hold, which is refused here.
const ENDS: [&str; 6] = ["100000", "0", "-1", "x", "1.5", "99999999999999999999"];
const NAMES: [&str; 7] = ["-", "+", "[a", "(a", "[abc", "(x", "a"];

/// How many commands a script or a transaction has at most.
const TOGETHER_MAX: usize = 4;

/// Commands by the kinds of their words: `K` a key, `T` one of those that are kept together, `V` a value,
/// `N` a number, `S` a score, `E` an end, `L` a bound of names; a word behind `?` is there or not, one of
/// several is chosen between bars. What lies between two names in a set whose scores differ is not said
/// by Redis: none is asked for backwards, where the two do not agree on it.
const FORMS: &[&str] = &[
    "SET K V",
    "SET K V NX|XX|GET|KEEPTTL",
    "SET K V EX E",
    "SET K V NX GET",
    "GET K",
    "GETDEL K",
    "GETEX K",
    "GETEX K PERSIST|FOO",
    "GETEX K EX E",
    "GETSET K V",
    "SETNX K V",
    "APPEND K V",
    "STRLEN K",
    "GETRANGE K N N",
    "SETRANGE K 0|3|-1|x V",
    "INCR K",
    "DECR K",
    "INCRBY K N",
    "DECRBY K N",
    "INCRBYFLOAT K S",
    "SETBIT K 0|7|8|100|-1|x 0|1|2",
    "GETBIT K 0|7|8|100|-1|x",
    "BITCOUNT K",
    "BITCOUNT K N N",
    "BITCOUNT K N N BIT|BYTE|x",
    "DEL K K",
    "UNLINK K",
    "EXISTS K K",
    "TOUCH K K",
    "TYPE K",
    "EXPIRE K 100|-1|0|x",
    "EXPIRE K 100|-1 NX|XX|GT|LT|FOO",
    "PERSIST K",
    "RENAME K K",
    "RENAMENX K K",
    "MSET K V K V",
    "MGET K K",
    "HSET K V V ?V",
    "HSET K V V V V",
    "HMSET K V V",
    "HSETNX K V V",
    "HGET K V",
    "HMGET K V V",
    "HDEL K V ?V",
    "HLEN K",
    "HEXISTS K V",
    "HSTRLEN K V",
    "HINCRBY K V N",
    "HINCRBYFLOAT K V S",
    "HGETALL K",
    "HKEYS K",
    "HVALS K",
    "LPUSH K V ?V",
    "RPUSH K V ?V",
    "LPUSHX K V",
    "RPUSHX K V",
    "LPOP K ?N",
    "RPOP K ?N",
    "LLEN K",
    "LRANGE K N N",
    "LINDEX K N",
    "LSET K N V",
    "LREM K N V",
    "LTRIM K N N",
    "LINSERT K BEFORE|AFTER|X V V",
    "LPOS K V",
    "LPOS K V RANK 1|-1|0 COUNT 0|1|-1",
    "LMOVE T T LEFT|X RIGHT",
    "SADD K V ?V",
    "SREM K V ?V",
    "SCARD K",
    "SISMEMBER K V",
    "SMISMEMBER K V V",
    "SMEMBERS K",
    "SMOVE T T V",
    "ZADD K S V",
    "ZADD K NX|XX|GT|LT|CH|INCR S V",
    "ZADD K NX|XX GT|CH S V S V",
    "ZREM K V ?V",
    "ZCARD K",
    "ZSCORE K V",
    "ZMSCORE K V V",
    "ZINCRBY K S V",
    "ZRANK K V",
    "ZREVRANK K V",
    "ZCOUNT K S S",
    "ZRANGE K N N ?WITHSCORES",
    "ZRANGE K N N REV",
    "ZRANGE K S S BYSCORE",
    "ZRANGE K S S BYSCORE LIMIT N N",
    "ZRANGEBYSCORE K S S ?WITHSCORES",
    "ZREVRANGEBYSCORE K S S",
    "ZREVRANGE K N N",
    "ZRANGEBYLEX K L L",
    "ZLEXCOUNT K L L",
    "ZREMRANGEBYSCORE K S S",
    "ZREMRANGEBYRANK K N N",
    "ZREMRANGEBYLEX K L L",
    "ZPOPMIN K ?N",
    "ZPOPMAX K ?N",
    "TTL K",
    "EXPIRETIME K",
    "BITCOUNT K N",
    "GETEX K PX|EXAT|PXAT E",
    "SET K V EX|PX|EXAT|PXAT E",
    "SETEX K E V",
    "PSETEX K E V",
    "MSETNX T V T V",
    "LPOP K N",
    "RPOPLPUSH T T",
    "BLPOP T T 0.01",
    "BRPOP K 0.01|-1|x",
    "BLMOVE T T LEFT RIGHT 0.01",
    "BZPOPMIN T T 0.01",
    "BZPOPMAX K 0.01",
    "LPOS K V COUNT N MAXLEN N",
    "SINTER T T",
    "SUNION T T",
    "SDIFF T T",
    "SINTERCARD 2|1|0|x T T",
    "SINTERCARD 2 T T LIMIT N",
    "SINTERSTORE T T T",
    "SUNIONSTORE T T T",
    "SDIFFSTORE T T T",
    "ZUNIONSTORE T 2 T T",
    "ZUNIONSTORE T 2 T T WEIGHTS S S AGGREGATE SUM|MIN|MAX|x",
    "ZINTERSTORE T 2 T T AGGREGATE MIN",
    "LMPOP 2 T T LEFT|RIGHT|X ?COUNT ?1",
    "LMPOP 1|0|x K LEFT",
    "LMPOP 1 K LEFT COUNT N",
    "ZMPOP 2 T T MIN|MAX|X",
    "ZMPOP 1 K MIN COUNT N",
    "BLMPOP 0.01|-1|x 2 T T LEFT",
    "BZMPOP 0.01 1 K MIN COUNT 2",
    "ZUNION 2 T T WITHSCORES",
    "ZINTER 2|1 T T WITHSCORES",
    "ZDIFF 2 T T ?WITHSCORES",
    "ZDIFF 2 T T AGGREGATE MIN",
    "ZINTERCARD 2|0|x T T",
    "ZINTERCARD 2 T T LIMIT N",
    "ZDIFFSTORE T 2 T T",
    "ZRANGESTORE T T N N ?REV",
    "ZRANGESTORE T T S S BYSCORE",
    "ZRANGESTORE T T N N WITHSCORES",
    "COPY T T ?REPLACE",
    "COPY T T FOO",
    "BITFIELD K GET u8|i5|u63|i64|u64|x 0|#1|7|#x|-1",
    "BITFIELD K SET u4|i8|i64 0|#1|3 N",
    "BITFIELD K OVERFLOW SAT|FAIL|WRAP|X INCRBY u4|i8|u63|i64 #0|#1|5 N GET u8 0",
    "BITFIELD_RO K GET u8|i5 0",
    "BITFIELD_RO K SET u8 0 1",
    "BITPOS K 0|1|2|x",
    "BITPOS K 0|1 N",
    "BITPOS K 0|1 N N ?BIT|BYTE|x",
    "ZRANGE K L L BYLEX",
    "ZRANGE K S S BYSCORE REV WITHSCORES",
    "ZREVRANGEBYSCORE K S S WITHSCORES LIMIT N N",
    "SET K V NX|XX NX|XX",
    "SET K V EX E EX|KEEPTTL E",
    "SET K V EX E FOO",
    "GETEX K PERSIST PERSIST",
    "GETEX K EX E EX|PX E",
    "BLPOP T T 0.01|1e400|inf|nan|0x1p-7",
    "BLMPOP 0.01|x 1 K LEFT|X",
    "BLMOVE T T LEFT|X RIGHT 0.01|x",
    "COPY T T DB 0|16|x ?REPLACE",
    "HSCAN K x|1.5",
    "SCARD K K",
    "GET",
    "HGET K",
    "SET K",
    "ZADD K S",
    "LPUSH K",
];

/// Scripts of one key.
const SCRIPTS: &[&str] = &[
    "local ok, err = pcall(redis.call, 'HSET', KEYS[1]) return {tostring(ok), err}",
    "local ok, err = pcall(redis.call, 'INCR', KEYS[1]) return err",
    "return {pcall(error, {err = ARGV[1]})}",
    "return {xpcall(function() return redis.call('INCR') end, function(e) return e.err end)}",
    "error(ARGV[1])",
    "error({err = 'MINE ' .. ARGV[1]})",
    "return cjson.decode(ARGV[1])",
    "return redis.sha1hex()",
    "return redis.call('NONE', KEYS[1])",
    "redis.call('SET', KEYS[1], 1 / 3) return redis.call('GET', KEYS[1])",
    "return struct.unpack('Bc0I', struct.pack('Bc0I', #ARGV[1], ARGV[1], 7))",
    "return struct.pack('>hI3!4dxs', -2, 70000, 0.5, ARGV[1])",
    "return struct.unpack('<i2>L', ARGV[1])",
    "return {struct.size('!bhil'), struct.size('bhil')}",
    "return {cmsgpack.unpack_one(cmsgpack.pack(ARGV[1], 2))}",
    "return bit.band(ARGV[1], 255)",
    "return {string.find(ARGV[1], '', 9)}",
    "return {2 ^ 63, 1e300, -1e300, 0 / 0}",
    "return redis.acl_check_cmd('GET', KEYS[1])",
    "cjson.encode_sparse_array(true) return cjson.encode({[1] = 1, [50] = 2})",
    "return redis.call('GET', KEYS[1])",
    "return redis.pcall('INCR', KEYS[1])",
    "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('STRLEN', KEYS[1])",
    "return {1, 'a', false, {2, 3.7}, nil, 4}",
    "return redis.call('TYPE', KEYS[1]).ok",
    "return cjson.encode({1, 2, {a = ARGV[1]}})",
    "return cjson.decode('{\"a\": [1, 2.5]}').a[2] * 2",
    "return redis.error_reply('MINE it is')",
    "return redis.status_reply('fine')",
    "return redis.sha1hex(ARGV[1])",
    "if redis.call('EXISTS', KEYS[1]) == 1 then return redis.call('DEL', KEYS[1]) end return 0",
    "return tonumber(ARGV[1]) == nil",
    "return #ARGV",
    "return bit.band(7, 12)",
];

/// What is reported in any order: not to be looked at by a script.
const UNORDERED: &[&str] = &["SMEMBERS", "HKEYS", "HVALS", "HGETALL", "SINTER", "SUNION", "SDIFF"];

/// What a script does with what a command answered, `%`, and with its arguments.
const USES: &[&str] = &[
    "r[#r + 1] = %",
    "r[#r + 1] = %",
    "r[#r + 1] = %",
    "r[#r + 1] = type(%)",
    "local it = % if type(it) == 'table' then r[#r + 1] = #it else r[#r + 1] = tostring(it) end",
    "local it = % if it then r[#r + 1] = 'some' else r[#r + 1] = 'none' end",
    "if % == 1 then r[#r + 1] = ARGV[1] .. ARGV[2] end",
    "r[#r + 1] = cjson.encode({%})",
    "for i = 1, 2 do r[#r + 1] = % end",
];
const VALUES_IN_SCRIPTS: &[&str] = &[
    "tonumber(ARGV[1]) or 'none'",
    "(tonumber(ARGV[1]) or 1) * 2.5",
    "tostring((tonumber(ARGV[2]) or 1) / 3)",
    "string.format('%5.2f|%s|%q', tonumber(ARGV[1]) or 0, ARGV[2], ARGV[1])",
    "string.find(ARGV[1], ARGV[2], 1, true)",
    "{string.byte(ARGV[1], 1, -1)}",
    "ARGV[1]:gsub('%w', '%0%0')",
    "cjson.encode(ARGV)",
    "cjson.decode(cjson.encode({ARGV[1], {n = tonumber(ARGV[2])}}))[1]",
    "cmsgpack.unpack(cmsgpack.pack({ARGV[1], 1, -70000, 1.5}))",
    "bit.bxor(tonumber(ARGV[1]) or 5, 255)",
    "bit.tohex(tonumber(ARGV[2]) or 77)",
    "math.floor(tonumber(ARGV[1]) or 0.5)",
    "table.concat(ARGV, ',')",
    "select('#', unpack(ARGV))",
    "ARGV[1] < ARGV[2]",
    "{ok = ARGV[1]}",
    "{err = 'MINE ' .. ARGV[1]}",
    "next({})",
    "#KEYS",
];

/// An answer, as far as two servers should agree on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    Nothing,
    Number(i64),
    Text(String),
    Error(String),
    List(Vec<Answer>),
}

struct Client(BufReader<TcpStream>);

impl Client {
    async fn connect(addr: SocketAddr) -> Option<Self> {
        Some(Self(BufReader::new(TcpStream::connect(addr).await.ok()?)))
    }

    async fn ask(&mut self, words: &[String]) -> Answer {
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            text.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.read().await
    }

    /// A command, or all of a transaction.
    async fn ask_all(&mut self, commands: &[Vec<String>]) -> Answer {
        match commands {
            [one] => in_order(one, self.ask(one).await),
            several => {
                let mut answers = Vec::new();
                for command in several {
                    answers.push(self.ask(command).await);
                }
                Answer::List(answers)
            }
        }
    }

    async fn read(&mut self) -> Answer {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).await.unwrap() > 0, "the server closed the connection");
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            "+" => Answer::Text(rest.to_owned()),
            "-" => Answer::Error(rest.to_owned()),
            ":" => Answer::Number(rest.parse().unwrap()),
            "$" if rest == "-1" => Answer::Nothing,
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.0.read_exact(&mut bytes).await.unwrap();
                bytes.truncate(bytes.len() - 2);
                Answer::Text(bytes.iter().map(|byte| char::from(*byte)).collect())
            }
            "*" if rest == "-1" => Answer::Nothing,
            "*" => {
                let mut list = Vec::new();
                for _ in 0..rest.parse::<usize>().unwrap() {
                    list.push(Box::pin(self.read()).await);
                }
                Answer::List(list)
            }
            _ => panic!("{line:?} is no answer of RESP 2"),
        }
    }
}

/// A command of these keys.
fn command(random: &mut StdRng, keys: &[&str], together: &[&str]) -> Vec<String> {
    let form = FORMS.choose(random).unwrap();
    let mut words = Vec::new();
    for word in form.split(' ') {
        let (may_lack, word) = word.strip_prefix('?').map_or((false, word), |word| (true, word));
        if may_lack && random.random() {
            continue;
        }
        let from: Vec<&str> = match word {
            "K" => keys.to_vec(),
            "T" => together.to_vec(),
            "V" => VALUES.to_vec(),
            "N" => NUMBERS.to_vec(),
            "S" => SCORES.to_vec(),
            "L" => NAMES.to_vec(),
            "E" => ENDS.to_vec(),
            word => word.split('|').collect(),
        };
        words.push((*from.choose(random).unwrap()).to_owned());
    }
    words
}

/// Keys that live in one place.
fn one_place(random: &mut StdRng) -> Vec<&'static str> {
    if random.random() { TOGETHER.to_vec() } else { vec![KEYS.choose(random).unwrap()] }
}

/// A script of one of the list, or one of random commands.
fn script(random: &mut StdRng) -> Vec<String> {
    let value = |random: &mut StdRng| VALUES.choose(random).unwrap().to_string();
    if random.random_range(0..4) == 0 {
        let (script, key) = (SCRIPTS.choose(random).unwrap(), KEYS.choose(random).unwrap());
        return vec!["EVAL".into(), (*script).into(), "1".into(), (*key).into(), value(random)];
    }
    let keys = one_place(random);
    let mut text = "local r = {} ".to_owned();
    for _ in 0..random.random_range(1..=TOGETHER_MAX) {
        let words = command(random, &keys, &keys);
        let filled = if UNORDERED.contains(&&*words[0]) || random.random_range(0..5) == 0 {
            (*VALUES_IN_SCRIPTS.choose(random).unwrap()).to_owned()
        } else {
            let how = if random.random_range(0..4) == 0 { "call" } else { "pcall" };
            let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
            format!("redis.{how}({})", words.join(", "))
        };
        let used = USES.choose(random).unwrap().replace('%', &filled);
        text.push_str(&format!("do {used} end "));
    }
    text.push_str("return r");
    let mut words = vec!["EVAL".to_owned(), text, keys.len().to_string()];
    words.extend(keys.iter().map(|key| (*key).to_owned()));
    words.extend([value(random), value(random)]);
    words
}

/// What is sent next: a command, a script, or a transaction.
fn commands(random: &mut StdRng) -> Vec<Vec<String>> {
    match random.random_range(0..12) {
        0..3 => vec![script(random)],
        3 if random.random() => vec![redis_json::script(random)],
        3 => {
            let keys = one_place(random);
            let mut all = vec![vec!["MULTI".to_owned()]];
            for _ in 0..random.random_range(1..=TOGETHER_MAX) {
                let command = command(random, &keys, &keys);
                if !UNORDERED.contains(&&*command[0]) {
                    all.push(command);
                }
            }
            all.push(vec!["EXEC".to_owned()]);
            all
        }
        _ => vec![command(random, &KEYS, &TOGETHER)],
    }
}

/// Sets and hashes tell their members in any order.
fn in_order(command: &[String], answer: Answer) -> Answer {
    let Answer::List(mut list) = answer else { return answer };
    match command[0].as_str() {
        "SMEMBERS" | "HKEYS" | "HVALS" | "SINTER" | "SUNION" | "SDIFF" => list.sort(),
        "HGETALL" => {
            let mut pairs: Vec<Vec<Answer>> = list.chunks(2).map(<[Answer]>::to_vec).collect();
            pairs.sort();
            list = pairs.concat();
        }
        _ => {}
    }
    Answer::List(list)
}

/// Whether both are the same number of more digits than Redis reckons with.
fn differ_in_the_last(a: &str, b: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().ok().filter(|_| text.len() > 17);
    number(a).zip(number(b)).is_some_and(|(a, b)| (a - b).abs() <= a.abs() * 1e-17)
}

/// What both answer counts as the same.
fn agree(redis: &Answer, ours: &Answer) -> bool {
    match (redis, ours) {
        // What the server notes in an error for itself.
        (Answer::Text(a), Answer::Text(b)) => {
            a.replace("\"ignore_error_stats_update\":true,", "") == *b || differ_in_the_last(a, b)
        }
        (Answer::List(a), Answer::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| agree(a, b))
        }
        _ => redis == ours,
    }
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("random_commands_are_answered_as_by_redis", random_commands),
        test("random_commands_publish_events_as_by_redis", events),
    ]
}

/// A real server and a mesh of two, side by side.
struct Both {
    world: World,
    addr: SocketAddr,
    redis: Client,
    ours: Vec<Client>,
    _server: Server,
    _reserved: Reservation,
}

impl Both {
    async fn new(settings: &str) -> Result<Self, Skipped> {
        let mut program = debian("usr/bin/redis-server")?;
        let apps = vec![shop(QUICK, "start = 'never'")];
        let world = World::with(2, apps, settings, |_, _| ()).await;
        let reserved = Reservation::new().unwrap();
        let addr = reserved.peer(0).http;
        let port = addr.port().to_string();
        let arguments =
            ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let server = Server(program.args(arguments).stdout(Stdio::null()).spawn().unwrap());
        let redis = until("redis-server answers", async || Client::connect(addr).await).await;
        let mut ours = Vec::new();
        for index in 0..2 {
            ours.push(Client::connect(world.mesh.peer(index).ports.redis).await.unwrap());
        }
        Ok(Self { world, addr, redis, ours, _server: server, _reserved: reserved })
    }
}

/// Deletes all keys.
fn delete_all() -> Vec<String> {
    std::iter::once("DEL").chain(KEYS).map(str::to_owned).collect()
}

/// The seed, and how many are sent.
fn asked(count: u64) -> (u64, u64) {
    let set = |name: &str| std::env::var(name).ok().map(|it| it.parse().unwrap());
    (set("SEED").unwrap_or(1), set("COMMANDS").unwrap_or(count))
}

async fn random_commands() -> Tested {
    let Both { mut redis, mut ours, world: _world, _server, _reserved, .. } = Both::new("").await?;
    let (seed, count) = asked(COMMANDS);
    let mut random = StdRng::seed_from_u64(seed);
    let mut differences = Vec::new();
    let (mut scripts, mut transactions) = (0, 0);
    for _ in 0..count {
        let commands = commands(&mut random);
        scripts += u64::from(commands[0][0] == "EVAL");
        transactions += u64::from(commands.len() > 1);
        let expected = redis.ask_all(&commands).await;
        let at = random.random_range(0..2);
        let came = ours[at].ask_all(&commands).await;
        if !agree(&expected, &came) {
            differences.push(format!("{commands:?}\n  redis: {expected:?}\n  here:  {came:?}"));
            // What the one did and the other did not is no difference of the commands after it.
            redis.ask(&delete_all()).await;
            ours[at].ask(&delete_all()).await;
        }
    }
    println!("{count} were sent, of them {scripts} scripts and {transactions} transactions");
    assert!(
        differences.is_empty(),
        "{} of {count} were answered otherwise:\n{}",
        differences.len(),
        differences.join("\n")
    );
    Ok(())
}

/// The channel of what is published to see that all events before it have come: one that listeners to
/// keyspace events hear.
const MARK: &str = "__keymark";

fn mark() -> [String; 3] {
    ["PUBLISH", MARK, ""].map(str::to_owned)
}

/// A client that listens to keyspace events.
struct Listener(Client);

impl Listener {
    async fn at(addr: SocketAddr) -> Self {
        let mut client = Client::connect(addr).await.unwrap();
        client.ask(&["PSUBSCRIBE", "__key*"].map(str::to_owned)).await;
        Self(client)
    }

    /// The channels and messages that come before the next mark. When an expired key is found to be
    /// so differs between the two.
    async fn up_to_mark(&mut self) -> Vec<(String, String)> {
        let mut events = Vec::new();
        loop {
            let Answer::List(parts) = self.0.read().await else { panic!("it is no message") };
            let [.., Answer::Text(channel), Answer::Text(message)] = &parts[..] else {
                panic!("{parts:?} is no message")
            };
            if channel == MARK {
                return events;
            }
            if !channel.ends_with(":expired") && message != "expired" {
                events.push((channel.clone(), message.clone()));
            }
        }
    }
}

/// What was reported, by the keys that it is about where these live in several places: such a command, or
/// transaction, is several changes.
fn by_place(commands: &[Vec<String>], events: &[(String, String)]) -> Vec<Vec<(String, String)>> {
    let words: Vec<&String> = commands.iter().flatten().collect();
    let is_asked = |key: &&str| words.iter().any(|word| word == key);
    let apart = KEYS.iter().filter(|key| !TOGETHER.contains(key)).filter(|key| is_asked(key));
    let places = apart.count() + usize::from(TOGETHER.iter().any(is_asked));
    if places < 2 {
        return vec![events.to_vec()];
    }
    let about = |key: &str| {
        let is_its = |(channel, message): &&(String, String)| {
            channel.split_once(':').is_some_and(|(_, it)| it == key) || message == key
        };
        events.iter().filter(is_its).cloned().collect()
    };
    KEYS.iter().map(|key| about(key)).collect()
}

/// The events of commands, scripts and transactions, those of keys that are made and deleted within one
/// as well, come in the same order.
async fn events() -> Tested {
    let both = Both::new("[session]\nredis_events = 'AKE'").await?;
    let Both { mut redis, mut ours, world, addr, _server, _reserved } = both;
    let words = ["CONFIG", "SET", "notify-keyspace-events", "AKE"].map(str::to_owned);
    redis.ask(&words).await;
    let mut heard = Listener::at(addr).await;
    let mut heard_here = Vec::new();
    for index in 0..2 {
        heard_here.push(Listener::at(world.mesh.peer(index).ports.redis).await);
    }
    let (seed, count) = asked(TOLD_OF);
    let mut random = StdRng::seed_from_u64(seed);
    let (mut differences, mut events) = (Vec::new(), 0);
    for _ in 0..count {
        let commands = commands(&mut random);
        redis.ask_all(&commands).await;
        redis.ask(&mark()).await;
        let expected = heard.up_to_mark().await;
        events += expected.len();
        let at = random.random_range(0..2);
        ours[at].ask_all(&commands).await;
        ours[at].ask(&mark()).await;
        let mut differs = false;
        for (peer, listener) in heard_here.iter_mut().enumerate() {
            let came = listener.up_to_mark().await;
            if by_place(&commands, &expected) != by_place(&commands, &came) {
                differs = true;
                differences.push(format!(
                    "{commands:?}\n  redis: {expected:?}\n  here, at peer {peer}:  {came:?}"
                ));
            }
        }
        if differs {
            redis.ask(&delete_all()).await;
            ours[at].ask(&delete_all()).await;
            redis.ask(&mark()).await;
            ours[at].ask(&mark()).await;
            heard.up_to_mark().await;
            for listener in &mut heard_here {
                listener.up_to_mark().await;
            }
        }
    }
    println!("{count} were sent, and {events} events were published about them");
    assert!(
        differences.is_empty(),
        "{} differences of {count}:\n{}",
        differences.len(),
        differences.join("\n")
    );
    Ok(())
}
