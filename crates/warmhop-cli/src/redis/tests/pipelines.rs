//! Scripts among the commands that a client sends without waiting for their replies.

use super::super::cmd::find;
use super::super::engine::Request;
use super::super::scripts::CONFINED_REPLY_BYTES_MAX;
use super::super::under_way::{UnderWay, confine};
use super::*;

const COUNTS: &str = "return redis.call('INCR', KEYS[1])";

fn command(words: &[&str]) -> Request {
    let args: Vec<Bytes> = words.iter().map(|it| Bytes::copy_from_slice(it.as_bytes())).collect();
    let mut request = Request::new(find(&args[0]).unwrap(), args);
    confine(&mut request);
    request
}

fn script(text: &str, key: &str) -> Request {
    command(&["EVAL", text, "1", key])
}

#[tokio::test]
async fn a_script_runs_beside_commands_about_other_keys_than_it_names() {
    let (mesh, name) = mesh().await;
    let database = Arc::new(Database::new(mesh.registers(&name).unwrap(), Arc::new(quiet())));
    let mut under_way = UnderWay::default();
    assert!(under_way.begin(&database, script(COUNTS, "{a}1"), 0).is_none());
    for other in [script(COUNTS, "b"), command(&["GET", "b"])] {
        assert!(!under_way.meets(&other, 0));
    }
    for same in [script(COUNTS, "{a}2"), command(&["GET", "{a}1"])] {
        assert!(under_way.meets(&same, 0));
    }
    for alone in [
        command(&["EVAL", COUNTS, "0"]),
        command(&["EVAL", COUNTS, "2", "b", "c"]),
        command(&["MGET", "b", "c"]),
    ] {
        assert!(under_way.meets(&alone, 0));
    }

    // Those that do more than it seemed have done nothing, and wait until they are alone.
    let long = format!("return string.rep('x', {CONFINED_REPLY_BYTES_MAX})");
    for text in [
        "return redis.call('SET', 'c', 'x')",
        "redis.call('SET', KEYS[1], 'x') return redis.call('PUBLISH', 'channel', 'x')",
        &format!("redis.call('SET', KEYS[1], 'x') {long}"),
    ] {
        let anew = under_way.begin(&database, script(text, "b"), 0).expect(text);
        assert!(under_way.meets(&anew, 0), "{text}");
    }
    for key in ["b", "c"] {
        let name = database.name(key.as_bytes());
        assert!(database.look(&name).await.is_ok_and(|room| room.keys().count() == 0), "{key}");
    }
    mesh.shutdown().await;
}

#[tokio::test]
async fn scripts_of_a_pipeline_keep_its_order_wherever_they_turn_to() {
    let mesh = mesh_of(3).await;
    let addr = serve(&mesh[0]).await;
    let mut listens = Client(TcpStream::connect(addr).await.unwrap());
    listens
        .asks("SUBSCRIBE channel", array(&["subscribe", "channel"]).replace("*2", "*3") + ":1\r\n")
        .await;
    let mut client = Client(TcpStream::connect(addr).await.unwrap());
    let (mut sent, mut expected, mut messages) = (Vec::new(), String::new(), String::new());
    for round in 0..20 {
        let (key, value) = (format!("key:{round}"), round.to_string());
        let eval = |text: &str| {
            request(&[b"EVAL", text.as_bytes(), b"1", key.as_bytes(), value.as_bytes()])
        };
        sent.extend(eval("redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])"));
        expected.push_str(&bulk(&value));
        // Its key is not named.
        sent.extend(eval("return redis.call('SET', 'another', ARGV[1])"));
        expected.push_str("+OK\r\n");
        sent.extend(request(&[b"GET", b"another"]));
        expected.push_str(&bulk(&value));
        sent.extend(eval(
            "redis.call('APPEND', KEYS[1], '.') redis.call('PUBLISH', 'channel', ARGV[1])",
        ));
        expected.push_str("$-1\r\n");
        messages.push_str(&array(&["message", "channel", &value]));
        sent.extend(request(&[b"GET", key.as_bytes()]));
        expected.push_str(&bulk(&format!("{value}.")));
    }
    client.send(&sent).await;
    client.reads(&expected).await;
    listens.reads(&messages).await;
    for mesh in mesh {
        mesh.shutdown().await;
    }
}

#[tokio::test]
async fn reads_are_under_way_together_and_those_without_room_are_run_anew() {
    const KEYS: usize = 24;
    let (mesh, _) = mesh().await;
    let addr = serve(&mesh).await;
    let mut client = Client(TcpStream::connect(addr).await.unwrap());
    let name = |key: usize| format!("key:{key}");
    let value = |key: usize| (key % 10).to_string().repeat(VALUE_BYTES_MAX - key);
    for key in 0..KEYS {
        let (name, value) = (name(key), value(key));
        client.send(&request(&[b"SET", name.as_bytes(), value.as_bytes()])).await;
        client.reads("+OK\r\n").await;
    }
    // At first a short reply is expected of each, then a long one.
    for _ in 0..2 {
        let mut sent = Vec::new();
        for key in 0..KEYS {
            sent.extend(request(&[b"GET", name(key).as_bytes()]));
        }
        client.send(&sent).await;
        for key in 0..KEYS {
            client.reads(&bulk(&value(key))).await;
        }
    }
    mesh.shutdown().await;
}

#[tokio::test]
async fn sixteen_reads_of_a_pipeline_do_not_wait_for_each_other() {
    let (mesh, name) = mesh().await;
    let database = Arc::new(Database::new(mesh.registers(&name).unwrap(), Arc::new(quiet())));
    let mut under_way = UnderWay::default();
    for key in 0..16 {
        for name in ["GET", "SET"] {
            let key = format!("{name}:{key}");
            let words: &[&str] = if name == "GET" { &[name, &key] } else { &[name, &key, "v"] };
            let command = command(words);
            assert!(!under_way.meets(&command, 0), "{key}");
            assert!(under_way.begin(&database, command, 0).is_none());
        }
    }
    mesh.shutdown().await;
}
