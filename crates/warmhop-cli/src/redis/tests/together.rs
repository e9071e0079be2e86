//! Commands that belong together: transactions, scripts, keys of one hash tag, and those who wait
//! for others.

use super::super::cmd::find;
use super::super::engine::Request;
use super::super::frame::KEY_BYTES_MAX;
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_key_that_changed_stops_the_transaction() {
    let (_mesh, mut it) = endpoint().await;
    let mut other = Client(TcpStream::connect(it.0.peer_addr().unwrap()).await.unwrap());
    it.asks("SET a 1", "+OK\r\n").await;
    it.asks("WATCH a", "+OK\r\n").await;
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("SET a 2", "+QUEUED\r\n").await;
    other.asks("SET a other", "+OK\r\n").await;
    it.asks("EXEC", "*-1\r\n").await;
    it.asks("GET a", bulk("other")).await;
    it.asks("WATCH a", "+OK\r\n").await;
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("SET a 2", "+QUEUED\r\n").await;
    it.asks("EXPIRE a 100", "+QUEUED\r\n").await;
    it.asks("GET a", "+QUEUED\r\n").await;
    it.asks("EXEC", format!("*3\r\n+OK\r\n:1\r\n{}", bulk("2"))).await;
    it.asks("MULTI", "+OK\r\n").await;
    let unknown = "unknown command 'XADD', with args beginning with: 'a' '1' (not offered here; see docs/redis.md)";
    it.asks("XADD a 1", format!("-ERR {unknown}\r\n")).await;
    let discarded = "-EXECABORT Transaction discarded because of previous errors.\r\n";
    it.asks("EXEC", discarded).await;
    it.asks("EXEC", "-ERR EXEC without MULTI\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_key_that_was_absent_has_changed_once_its_client_has_found_it() {
    let (_mesh, mut it) = endpoint().await;
    let mut other = Client(TcpStream::connect(it.0.peer_addr().unwrap()).await.unwrap());
    for finds in ["GET a", "EVAL return(redis.call('GET',KEYS[1])) 1 a"] {
        if cfg!(not(feature = "lua")) && finds.starts_with("EVAL") {
            continue;
        }
        it.asks("WATCH a", "+OK\r\n").await;
        it.asks(finds, "$-1\r\n").await;
        other.asks("SET a seen", "+OK\r\n").await;
        it.asks(finds, bulk("seen")).await;
        other.asks("DEL a", ":1\r\n").await;
        // To watch another key as well changes nothing.
        it.asks("WATCH a b", "+OK\r\n").await;
        it.asks("MULTI", "+OK\r\n").await;
        it.asks("SET a mine", "+QUEUED\r\n").await;
        it.asks("EXEC", "*-1\r\n").await;
        // What it found before is forgotten then.
        it.asks("WATCH a", "+OK\r\n").await;
        it.asks("MULTI", "+OK\r\n").await;
        it.asks("SET a mine", "+QUEUED\r\n").await;
        it.asks("EXEC", "*1\r\n+OK\r\n").await;
        it.asks("DEL a", ":1\r\n").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_or_a_discard_without_a_multi_forgets_nothing_that_is_watched() {
    let (_mesh, mut it) = endpoint().await;
    for without in ["EXEC", "DISCARD"] {
        it.asks("WATCH a", "+OK\r\n").await;
        it.asks("SET a 1", "+OK\r\n").await;
        it.asks(without, format!("-ERR {without} without MULTI\r\n")).await;
        it.asks("MULTI", "+OK\r\n").await;
        it.asks("GET a", "+QUEUED\r\n").await;
        it.asks("EXEC", "*-1\r\n").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_watch_was_refused_is_not_run_whatever_was_watched_beside() {
    let (_mesh, mut it) = endpoint().await;
    let too_long = format!("WATCH a {}", "k".repeat(KEY_BYTES_MAX + 1));
    let length = KEY_BYTES_MAX + 1;
    let refused =
        format!("-ERR the key has {length} bytes, but at most {KEY_BYTES_MAX} are kept\r\n");
    let too_many: String = (0..=1024).map(|key| format!(" {key}")).collect();
    let too_many = (format!("WATCH{too_many}"), "-ERR at most 1024 keys can be watched\r\n".into());
    for (watch, refused) in [(too_long, refused), too_many] {
        it.asks(&watch, &refused).await;
        // Another that is not refused does not make up for it.
        it.asks("WATCH b", "+OK\r\n").await;
        it.asks("MULTI", "+OK\r\n").await;
        it.asks("SET a 1", "+QUEUED\r\n").await;
        it.asks("EXEC", "*-1\r\n").await;
        for forgets in [&["UNWATCH"][..], &["MULTI", "DISCARD"], &["RESET"], &["MULTI", "EXEC"]] {
            it.asks(&watch, &refused).await;
            for command in forgets {
                it.send(&request(&[command.as_bytes()])).await;
                it.line().await;
            }
            it.asks("MULTI", "+OK\r\n").await;
            it.asks("SET a 1", "+QUEUED\r\n").await;
            it.asks("EXEC", "*1\r\n+OK\r\n").await;
        }
        it.asks(&watch, &refused).await;
        it.asks("MULTI", "+OK\r\n").await;
        it.asks("SET a", "-ERR wrong number of arguments for 'set' command\r\n").await;
        let discarded = "-EXECABORT Transaction discarded because of previous errors.\r\n";
        it.asks("EXEC", discarded).await;
        it.asks("DEL a", ":1\r\n").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_could_not_be_watched_for_want_of_a_majority_counts_as_changed() {
    let authority = Authority::generate("test").unwrap();
    let here = builder(&authority, 0).start().await.unwrap();
    let seed = here.mesh_addr().to_string();
    let (first, stop_first) = stoppable(builder(&authority, 1).seed(seed.clone())).await;
    let (second, stop_second) = stoppable(builder(&authority, 2).seed(seed)).await;
    let mesh = [here, first, second];
    all_see_each_other(&mesh).await;
    let mut it = Client(TcpStream::connect(serve(&mesh[0]).await).await.unwrap());
    it.asks("SET n 0", "+OK\r\n").await;
    for stop in [stop_first, stop_second] {
        stop.send(()).unwrap();
    }
    it.send(&request(&[b"WATCH", b"n"])).await;
    let answer = it.line().await;
    assert!(answer.starts_with("-TRYAGAIN "), "{answer}");
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("PING", "+QUEUED\r\n").await;
    it.asks("EXEC", "*-1\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_key_is_compared_until_it_is_changed_whatever_is_asked_of_it_before() {
    let (_mesh, mut it) = endpoint().await;
    // An answer of nothing is no sign that the key was changed by another.
    it.asks("WATCH k", "+OK\r\n").await;
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("SET k v GET", "+QUEUED\r\n").await;
    it.asks("SET other x", "+QUEUED\r\n").await;
    it.asks("EXEC", "*2\r\n$-1\r\n+OK\r\n").await;
    it.asks("WATCH k", "+OK\r\n").await;
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("SET k w NX", "+QUEUED\r\n").await;
    it.asks("SET other y", "+QUEUED\r\n").await;
    it.asks("EXEC", "*2\r\n$-1\r\n+OK\r\n").await;
    // A time to live is a part of what is watched.
    it.asks("WATCH k", "+OK\r\n").await;
    it.asks("EXPIRE k 100", ":1\r\n").await;
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("SET k w", "+QUEUED\r\n").await;
    it.asks("EXEC", "*-1\r\n").await;
    // Several keys are compared, each for itself, as often as they are named.
    it.asks("WATCH k other k", "+OK\r\n").await;
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("MSET k 1 other 2", "+QUEUED\r\n").await;
    it.asks("DEL k other", "+QUEUED\r\n").await;
    it.asks("EXEC", "*2\r\n+OK\r\n:2\r\n").await;
    it.asks("WATCH k", "+OK\r\n").await;
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("RENAME other k", "-ERR RENAME of a watched key is not offered\r\n").await;
    it.asks("EXEC", "-EXECABORT Transaction discarded because of previous errors.\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_by_another_during_a_transaction_is_never_overwritten() {
    let (_mesh, mut it) = endpoint().await;
    let mut other = Client(TcpStream::connect(it.0.peer_addr().unwrap()).await.unwrap());
    let mut met = [0; 3];
    for first in ["GET k", "INCR n"] {
        // The other's change meets the transaction later in some rounds, and before it in others.
        for round in 0..24u64 {
            other.asks("SET k old", "+OK\r\n").await;
            it.asks("WATCH k", "+OK\r\n").await;
            let mut wire = request(&[b"MULTI"]);
            wire.extend(request(&first.split(' ').map(str::as_bytes).collect::<Vec<_>>()));
            for _ in 0..300 {
                wire.extend(request(&[b"INCR", b"n"]));
            }
            wire.extend(request(&[b"SET", b"k", b"mine"]));
            wire.extend(request(&[b"EXEC"]));
            wire.extend(request(&[b"ECHO", b"the end"]));
            let theirs = request(&[b"SET", b"k", b"theirs"]);
            if round % 2 == 0 {
                it.send(&wire).await;
                tokio::time::sleep(Duration::from_millis(round / 8)).await;
                other.send(&theirs).await;
                other.reads("+OK\r\n").await;
            } else {
                other.send(&theirs).await;
                // In some rounds it is done before, however the two are scheduled.
                if round % 4 == 1 {
                    other.reads("+OK\r\n").await;
                    it.send(&wire).await;
                } else {
                    it.send(&wire).await;
                    other.reads("+OK\r\n").await;
                }
            }
            let mut answer = String::new();
            while !answer.ends_with("the end\r\n") {
                let mut bytes = [0; 4096];
                let read = tokio::time::timeout(PATIENCE, it.0.read(&mut bytes)).await;
                let read = read.expect("an answer").unwrap();
                assert!(read > 0, "{answer}");
                answer.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
            // Whether its change came before the transaction or after it, the other's stays.
            other.asks("GET k", bulk("theirs")).await;
            let exec = answer.split_once("$7\r\nthe end").unwrap().0;
            let exec = exec.rsplit_once("+QUEUED\r\n").unwrap().1;
            met[match exec {
                "*-1\r\n" => 0,
                exec if exec.contains("-WATCHFAILED ") => 1,
                exec => {
                    assert!(exec.starts_with("*302\r\n") && exec.ends_with("+OK\r\n"), "{exec}");
                    2
                }
            }] += 1;
        }
    }
    assert!(met[0] >= 12, "a change before the transaction was not seen: {met:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_a_transaction_waits_for_its_end() {
    let (_mesh, mut it) = endpoint().await;
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("PING", "+QUEUED\r\n").await;
    it.asks("SELECT 1", "+QUEUED\r\n").await;
    it.asks("SET a b", "+QUEUED\r\n").await;
    it.asks("EXEC", "*3\r\n+PONG\r\n+OK\r\n+OK\r\n").await;
    it.asks("GET a", bulk("b")).await;
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("SELECT 0", "+QUEUED\r\n").await;
    it.asks("DISCARD", "+OK\r\n").await;
    it.asks("GET a", bulk("b")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_argument_fails_at_exec_and_the_other_commands_run() {
    let (_mesh, mut it) = endpoint().await;
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("SET a 1", "+QUEUED\r\n").await;
    it.asks("INCRBY a x", "+QUEUED\r\n").await;
    it.asks("SET a 2 EX 0", "+QUEUED\r\n").await;
    it.asks("HSET h a 1 b", "+QUEUED\r\n").await;
    it.asks("SELECT 16", "+QUEUED\r\n").await;
    it.asks("GET a", "+QUEUED\r\n").await;
    let replies = [
        "+OK\r\n",
        "-ERR value is not an integer or out of range\r\n",
        "-ERR invalid expire time in 'set' command\r\n",
        "-ERR wrong number of arguments for 'hset' command\r\n",
        "-ERR DB index is out of range\r\n",
        &bulk("1"),
    ];
    it.asks("EXEC", format!("*6\r\n{}", replies.concat())).await;
    for refused in ["SET a", "HSET h a", "NOSUCH"] {
        it.asks("MULTI", "+OK\r\n").await;
        it.send(&request(&refused.split(' ').map(str::as_bytes).collect::<Vec<_>>())).await;
        assert!(it.line().await.starts_with("-ERR "));
        it.asks("EXEC", "-EXECABORT Transaction discarded because of previous errors.\r\n").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_key_is_known_by_its_database_wherever_a_transaction_goes() {
    let (_mesh, mut it) = endpoint().await;
    it.asks("SET w 1", "+OK\r\n").await;
    it.asks("WATCH w", "+OK\r\n").await;
    it.asks("SELECT 1", "+OK\r\n").await;
    it.asks("SET w 2", "+OK\r\n").await;
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("RENAME w to", "+QUEUED\r\n").await;
    it.asks("SELECT 0", "+QUEUED\r\n").await;
    it.asks("RENAME w to", "-ERR RENAME of a watched key is not offered\r\n").await;
    it.asks("EXEC", "-EXECABORT Transaction discarded because of previous errors.\r\n").await;
    it.asks("GET w", bulk("2")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_is_one_change_of_its_key_wherever_it_runs() {
    let mesh = mesh_of(2).await;
    let mut here = Client(TcpStream::connect(serve(&mesh[0]).await).await.unwrap());
    let mut there = Client(TcpStream::connect(serve(&mesh[1]).await).await.unwrap());
    let release = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) \
                   end return 0";
    here.asks("SET lock mine PX 60000", "+OK\r\n").await;
    there.send(&request(&[b"EVAL", release.as_bytes(), b"1", b"lock", b"theirs"])).await;
    there.reads(":0\r\n").await;
    there.send(&request(&[b"EVAL", release.as_bytes(), b"1", b"lock", b"mine"])).await;
    there.reads(":1\r\n").await;
    here.asks("EXISTS lock", ":0\r\n").await;
    let none = "-NOSCRIPT No matching script. Please use EVAL.\r\n";
    here.asks(&format!("EVALSHA {} 1 k", "0".repeat(40)), none).await;
    here.send(&request(&[b"SCRIPT", b"LOAD", b"return redis.call('INCR', KEYS[1])"])).await;
    here.reads(&bulk("61636018f4e6b5817b89791bbed242f93fa089e3")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_one_hash_tag_are_changed_as_one_and_found_as_several() {
    let (_mesh, mut it) = endpoint().await;
    let script = "redis.call('SET', KEYS[1], 'x', 'PX', 60000) return redis.call('INCR', KEYS[2])";
    let eval =
        |a: &str, b: &str| request(&[b"EVAL", script.as_bytes(), b"2", a.as_bytes(), b.as_bytes()]);
    it.send(&eval("{u}:lock", "{u}:fence")).await;
    it.reads(":1\r\n").await;
    it.asks("TTL {u}:lock", ":60\r\n").await;
    it.asks("TTL {u}:fence", ":-1\r\n").await;
    it.asks("KEYS *", array(&["{u}:fence", "{u}:lock"])).await;
    it.asks("DEL {u}:lock {u}:none", ":1\r\n").await;
    it.asks("RENAME {u}:fence plain", "+OK\r\n").await;
    it.asks("GET plain", bulk("1")).await;
    it.asks("KEYS *", array(&["plain"])).await;
    it.send(&eval("one", "other")).await;
    let reply = it.line().await;
    assert!(reply.starts_with("-CROSSSLOT ") && reply.contains("'other'"), "{reply}");
    it.asks("EXISTS one", ":0\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_several_keys_is_not_begun_where_its_watched_one_has_changed() {
    let (_mesh, mut it) = endpoint().await;
    let mut other = Client(TcpStream::connect(it.0.peer_addr().unwrap()).await.unwrap());
    it.asks("SET w 0", "+OK\r\n").await;
    it.asks("WATCH w", "+OK\r\n").await;
    other.asks("SET w 1", "+OK\r\n").await;
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("INCR aux", "+QUEUED\r\n").await;
    it.asks("SET w 2", "+QUEUED\r\n").await;
    it.asks("EXEC", "*-1\r\n").await;
    it.asks("EXISTS aux", ":0\r\n").await;
    it.asks("MULTI", "+OK\r\n").await;
    it.asks("LPUSH l a b", "+QUEUED\r\n").await;
    it.asks("INCR l", "+QUEUED\r\n").await;
    it.asks("SADD s a", "+QUEUED\r\n").await;
    it.asks("LRANGE l 0 -1", "+QUEUED\r\n").await;
    it.asks("EXEC", format!("*4\r\n:2\r\n{WRONG}:1\r\n{}", array(&["b", "a"]))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_a_list_gets_the_pushed_element() {
    let (_mesh, mut it) = endpoint().await;
    let mut other = Client(TcpStream::connect(it.0.peer_addr().unwrap()).await.unwrap());
    it.asks("BLPOP l 0.01", "*-1\r\n").await;
    it.send(&request(&[b"BLPOP", b"l", b"0"])).await;
    other.asks("RPUSH l first", ":1\r\n").await;
    it.reads(&array(&["l", "first"])).await;
    it.asks("EXISTS l", ":0\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_for_a_list_get_what_is_pushed_in_the_order_in_which_they_came() {
    const WAITING: usize = 1200;
    let (mesh, name) = mesh().await;
    let shared = Arc::new(quiet());
    let database = Database::new(mesh.registers(&name).unwrap(), Arc::clone(&shared));
    let asks = |words: &str| {
        let args: Vec<Bytes> =
            words.split(' ').map(|it| Bytes::copy_from_slice(it.as_bytes())).collect();
        let spec = find(&args[0]).unwrap();
        let database = database.clone();
        tokio::spawn(async move { database.execute(&Request::new(spec, args)).await })
    };
    let late = Instant::now() + 3 * PATIENCE;
    let until_there_wait = async |count: usize| {
        while shared.waiting_count() != count {
            assert!(Instant::now() < late, "{} wait, not {count}", shared.waiting_count());
            tokio::task::yield_now().await;
        }
    };
    let mut waiting = Vec::new();
    for count in 1..=WAITING {
        waiting.push(asks("BLPOP l 0"));
        until_there_wait(count).await;
    }
    // One of them leaves.
    waiting.remove(WAITING / 2).abort();
    until_there_wait(WAITING - 1).await;
    let elements: Vec<String> = (1..WAITING).map(|it| it.to_string()).collect();
    let pushed = asks(&format!("RPUSH l {}", elements.join(" "))).await.unwrap();
    assert_eq!(pushed, Ok(Reply::Number(elements.len() as i64)));
    for (element, it) in elements.into_iter().zip(waiting) {
        let reply = tokio::time::timeout(3 * PATIENCE, it).await.unwrap().unwrap();
        assert_eq!(reply, Ok(Reply::Array(vec![Reply::text("l"), Reply::text(element)])));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_left_while_it_waited_takes_nothing() {
    let (mesh, name) = mesh().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let registers = mesh.registers(&name).unwrap();
    tokio::spawn(super::super::serve_up_to(2, listener, registers, quiet()));
    let mut other = Client(TcpStream::connect(addr).await.unwrap());
    let mut it = Client(TcpStream::connect(addr).await.unwrap());
    for behind in [&b""[..], b"PING\r\n"] {
        let mut pipeline = request(&[b"SET", b"k", b"v"]);
        pipeline.extend(request(&[b"BLPOP", b"l", b"0"]));
        it.send(&pipeline).await;
        // What was asked before it is answered while it waits.
        it.reads("+OK\r\n").await;
        it.send(behind).await;
        drop(it);
        it = one_more(addr).await;
        other.asks("RPUSH l first", ":1\r\n").await;
        other.asks("LLEN l", ":1\r\n").await;
        other.asks("DEL l", ":1\r\n").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_reach_subscribers_in_the_order_in_which_they_were_published() {
    let (_mesh, mut it) = endpoint().await;
    let mut other = Client(TcpStream::connect(it.0.peer_addr().unwrap()).await.unwrap());
    let confirmation = |kind: &str, name: &str, count: usize| {
        format!("*3\r\n{}{}:{count}\r\n", bulk(kind), bulk(name))
    };
    it.asks("SUBSCRIBE a", confirmation("subscribe", "a", 1)).await;
    it.asks("PSUBSCRIBE n*", confirmation("psubscribe", "n*", 2)).await;
    other.asks("PUBLISH a 1", ":1\r\n").await;
    other.asks("PUBLISH news 2", ":1\r\n").await;
    other.asks("PUBLISH none 3", ":1\r\n").await;
    it.reads(&array(&["message", "a", "1"])).await;
    it.reads(&array(&["pmessage", "n*", "news", "2"])).await;
    it.reads(&array(&["pmessage", "n*", "none", "3"])).await;
    it.send(&request(&[b"GET", b"k"])).await;
    assert!(it.line().await.starts_with("-ERR Can't execute 'get': only (P|S)SUBSCRIBE"));
    it.asks("PING", array(&["pong", ""])).await;
    other.asks("PUBSUB NUMSUB a", format!("*2\r\n{}:1\r\n", bulk("a"))).await;
    it.asks("UNSUBSCRIBE", confirmation("unsubscribe", "a", 1)).await;
    it.asks("PUNSUBSCRIBE n*", confirmation("punsubscribe", "n*", 0)).await;
    it.asks("GET k", "$-1\r\n").await;
    other.asks("PUBLISH a 4", ":0\r\n").await;
}
