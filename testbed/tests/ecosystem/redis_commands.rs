//! Thousands of random commands, each to a real redis-server and to one peer or another of a mesh:
//! both answer the same. What differs on purpose is left out, with the reason beside it.

use std::net::SocketAddr;
use std::process::{Child, Stdio};

use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use warmhop_testbed::ports::Reservation;

use crate::installed::{Tested, debian};
use crate::support::{QUICK, World, shop, until};
use crate::test;

const COMMANDS: usize = 1200;
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
const SCORES: [&str; 9] = ["0", "1", "2.5", "-1.5", "inf", "-inf", "abc", "1e2", "(1"];
const NAMES: [&str; 7] = ["-", "+", "[a", "(a", "[abc", "(x", "a"];

/// Commands by the kinds of their words: `K` a key, `T` one of those
/// that are kept together, `V` a value, `N` a number, `S` a score, `L` a bound
/// of names; a word behind `?` is there or not, one of several is chosen between bars.
const FORMS: &[&str] = &[
    "SET K V",
    "SET K V NX|XX|GET|KEEPTTL",
    "SET K V EX N",
    "SET K V NX GET",
    "GET K",
    "GETDEL K",
    "GETEX K",
    "GETEX K PERSIST|FOO",
    "GETEX K EX N",
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
    "GET",
    "HGET K",
    "SET K",
    "ZADD K S",
    "LPUSH K",
];

/// Scripts of one key.
const SCRIPTS: &[&str] = &[
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

fn command(random: &mut StdRng) -> Vec<String> {
    if random.random_range(0..12) == 0 {
        let script = SCRIPTS.choose(random).unwrap();
        let key = KEYS.choose(random).unwrap();
        let value = VALUES.choose(random).unwrap();
        return ["EVAL", script, "1", key, value].map(str::to_owned).to_vec();
    }
    let form = FORMS.choose(random).unwrap();
    let mut words = Vec::new();
    for word in form.split(' ') {
        let (may_lack, word) = word.strip_prefix('?').map_or((false, word), |word| (true, word));
        if may_lack && random.random() {
            continue;
        }
        let from: Vec<&str> = match word {
            "K" => KEYS.to_vec(),
            "T" => TOGETHER.to_vec(),
            "V" => VALUES.to_vec(),
            "N" => NUMBERS.to_vec(),
            "S" => SCORES.to_vec(),
            "L" => NAMES.to_vec(),
            word => word.split('|').collect(),
        };
        words.push((*from.choose(random).unwrap()).to_owned());
    }
    words
}

/// Sets and hashes tell their members in any order.
fn in_order(command: &[String], answer: Answer) -> Answer {
    let Answer::List(mut list) = answer else { return answer };
    match command[0].as_str() {
        "SMEMBERS" | "HKEYS" | "HVALS" => list.sort(),
        "HGETALL" => {
            let mut pairs: Vec<Vec<Answer>> = list.chunks(2).map(<[Answer]>::to_vec).collect();
            pairs.sort();
            list = pairs.concat();
        }
        _ => {}
    }
    Answer::List(list)
}

/// What both answer counts as the same.
fn agree(redis: &Answer, ours: &Answer) -> bool {
    match (redis, ours) {
        // Where a script failed, the words name the place in the server's own terms.
        (Answer::Error(a), Answer::Error(b)) if a.contains("script: ") => {
            a.split(' ').next() == b.split(' ').next()
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
    vec![test("random_commands_are_answered_as_by_redis", random_commands)]
}

async fn random_commands() -> Tested {
    let mut program = debian("usr/bin/redis-server")?;
    let world = World::new(2, shop(QUICK, "start = 'never'")).await;
    let reserved = Reservation::new().unwrap();
    let addr = reserved.peer(0).http;
    let port = addr.port().to_string();
    let arguments = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    let _server = Server(program.args(arguments).stdout(Stdio::null()).spawn().unwrap());
    let mut redis = until("redis-server answers", async || Client::connect(addr).await).await;
    let mut ours = Vec::new();
    for index in 0..2 {
        ours.push(Client::connect(world.mesh.peer(index).ports.redis).await.unwrap());
    }
    let mut random = StdRng::seed_from_u64(1);
    let mut differences = Vec::new();
    for _ in 0..COMMANDS {
        let command = command(&mut random);
        let expected = in_order(&command, redis.ask(&command).await);
        let at = random.random_range(0..2);
        let came = in_order(&command, ours[at].ask(&command).await);
        if !agree(&expected, &came) {
            differences.push(format!("{command:?}\n  redis: {expected:?}\n  here:  {came:?}"));
            // What the one did and the other did not is no difference of the commands after it.
            let all: Vec<String> = std::iter::once("DEL").chain(KEYS).map(str::to_owned).collect();
            redis.ask(&all).await;
            ours[at].ask(&all).await;
        }
    }
    assert!(
        differences.is_empty(),
        "{} of {COMMANDS} commands were answered otherwise:\n{}",
        differences.len(),
        differences.join("\n")
    );
    Ok(())
}
