//! The events that are published about changes of keys.

use super::*;

/// Peers that see each other, and clients of their endpoints: one at each that listens to all
/// events of keys, and one more at the first that sends commands.
async fn listened_to(mesh: &[Mesh]) -> (Vec<Client>, Client) {
    let mut listeners = Vec::new();
    let mut first = None;
    for peer in mesh {
        let addr = serve_telling(peer, "AE").await;
        first.get_or_insert(addr);
        let mut client = Client(TcpStream::connect(addr).await.unwrap());
        let confirmed = format!("*3\r\n{}{}:1\r\n", bulk("psubscribe"), bulk("__key*"));
        client.asks("PSUBSCRIBE __key*", confirmed).await;
        listeners.push(client);
    }
    let client = Client(TcpStream::connect(first.unwrap()).await.unwrap());
    (listeners, client)
}

fn event(name: &str, key: &str) -> String {
    array(&["pmessage", "__key*", &format!("__keyevent@0__:{name}"), key])
}

/// Asks a command, of which all listeners hear these events.
async fn publishes(
    listeners: &mut [Client],
    it: &mut Client,
    command: &str,
    answer: &str,
    events: &[(&str, &str)],
) {
    it.asks(command, answer).await;
    for listener in listeners {
        for (name, key) in events {
            listener.reads(&event(name, key)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_keys_are_published_at_every_peer_once_as_by_redis() {
    let mesh = mesh_of(2).await;
    let (mut listeners, mut it) = listened_to(&mesh).await;
    for (command, answer, events) in [
        ("SET k v EX 100", "+OK\r\n", vec![("set", "k"), ("expire", "k")]),
        ("SET k w", "+OK\r\n", vec![("set", "k")]),
        ("APPEND k x", ":2\r\n", vec![("append", "k")]),
        ("GETDEL k", "$2\r\nwx\r\n", vec![("del", "k")]),
        ("DEL k", ":0\r\n", vec![]),
        ("INCR n", ":1\r\n", vec![("incrby", "n")]),
        ("LPUSH n x", WRONG, vec![]),
        ("EXPIRE n 100", ":1\r\n", vec![("expire", "n")]),
        ("PERSIST n", ":1\r\n", vec![("persist", "n")]),
        ("RENAME n m", "+OK\r\n", vec![("rename_from", "n"), ("rename_to", "m")]),
        ("HSET h f v", ":1\r\n", vec![("hset", "h")]),
        ("HDEL h f", ":1\r\n", vec![("hdel", "h"), ("del", "h")]),
        ("RPUSH {t}l a", ":1\r\n", vec![("rpush", "{t}l")]),
        (
            "LMOVE {t}l {t}m LEFT RIGHT",
            "$1\r\na\r\n",
            vec![("rpush", "{t}m"), ("lpop", "{t}l"), ("del", "{t}l")],
        ),
        ("ZADD z 1 a", ":1\r\n", vec![("zadd", "z")]),
        ("EXPIRE z 0", ":1\r\n", vec![("del", "z")]),
        (
            "EVAL redis.call('SET',KEYS[1],1)redis.call('INCR',KEYS[1]) 1 s",
            "$-1\r\n",
            vec![("set", "s"), ("incrby", "s")],
        ),
        ("MULTI", "+OK\r\n", vec![]),
        ("SETEX s 100 v", "+QUEUED\r\n", vec![]),
        ("SADD u v", "+QUEUED\r\n", vec![]),
        ("EXEC", "*2\r\n+OK\r\n:1\r\n", vec![("set", "s"), ("expire", "s"), ("sadd", "u")]),
    ] {
        publishes(&mut listeners, &mut it, command, answer, &events).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_without_a_lasting_change_publish_what_redis_publishes() {
    let mesh = mesh_of(2).await;
    let (mut listeners, mut it) = listened_to(&mesh).await;
    for (command, answer, events) in [
        (
            "EVAL redis.call('SET',KEYS[1],1)redis.call('DEL',KEYS[1]) 1 brief",
            "$-1\r\n",
            vec![("set", "brief"), ("del", "brief")],
        ),
        ("MULTI", "+OK\r\n", vec![]),
        ("RPUSH {t}q a", "+QUEUED\r\n", vec![]),
        ("LPOP {t}q", "+QUEUED\r\n", vec![]),
        ("SADD {t}r a b", "+QUEUED\r\n", vec![]),
        ("SREM {t}r a", "+QUEUED\r\n", vec![]),
        (
            "EXEC",
            "*4\r\n:1\r\n$1\r\na\r\n:2\r\n:1\r\n",
            vec![
                ("rpush", "{t}q"),
                ("lpop", "{t}q"),
                ("del", "{t}q"),
                ("sadd", "{t}r"),
                ("srem", "{t}r"),
            ],
        ),
        (
            "SET past v PXAT 1",
            "+OK\r\n",
            vec![("set", "past"), ("expire", "past"), ("expired", "past")],
        ),
        ("RPUSH kept incr", ":1\r\n", vec![("rpush", "kept")]),
        ("LTRIM kept 0 -1", "+OK\r\n", vec![("ltrim", "kept")]),
        ("LMOVE kept kept LEFT RIGHT", "$4\r\nincr\r\n", vec![("rpush", "kept"), ("lpop", "kept")]),
        ("ZADD scores 1 incr", ":1\r\n", vec![("zadd", "scores")]),
        ("ZINCRBY scores 0 incr", "$1\r\n1\r\n", vec![]),
        ("SETBIT bits 0 0", ":0\r\n", vec![("setbit", "bits")]),
        ("SETBIT bits 7 0", ":0\r\n", vec![]),
        ("BITFIELD bits OVERFLOW FAIL SET u4 8 16", "*1\r\n$-1\r\n", vec![]),
        ("STRLEN bits", ":2\r\n", vec![]),
        ("BITFIELD nibbles OVERFLOW FAIL INCRBY u4 0 16", "*1\r\n$-1\r\n", vec![]),
        ("STRLEN nibbles", ":1\r\n", vec![]),
        ("BITFIELD nibbles SET u4 0 0", "*1\r\n:0\r\n", vec![]),
        (
            "BITFIELD nibbles INCRBY u4 0 1 INCRBY u4 0 -1",
            "*2\r\n:1\r\n:0\r\n",
            vec![("setbit", "nibbles")],
        ),
        ("SET last v", "+OK\r\n", vec![("set", "last")]),
    ] {
        publishes(&mut listeners, &mut it, command, answer, &events).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_expiry_of_a_key_is_published_once_at_every_peer() {
    let mesh = mesh_of(3).await;
    let (mut listeners, mut it) = listened_to(&mesh).await;
    let mut expected = event("set", "k") + &event("expire", "k") + &event("set", "{t}a");
    expected += &(event("expire", "{t}a") + &event("set", "{t}b"));
    it.asks("SET k v PX 50", "+OK\r\n").await;
    it.asks("SET {t}a v PX 150", "+OK\r\n").await;
    it.asks("SET {t}b v", "+OK\r\n").await;
    for listener in &mut listeners {
        // The expiries may be published before what was done meanwhile.
        let all = listener.arrays(7).await;
        let ends = [event("expired", "k"), event("expired", "{t}a")];
        assert!(ends.iter().all(|end| all.contains(end)), "{all}");
        assert_eq!(all.len(), expected.len() + ends.concat().len(), "{all}");
    }
    it.asks("GET k", "$-1\r\n").await;
    it.asks("EXISTS {t}a {t}b", ":1\r\n").await;
    it.asks("SET last v", "+OK\r\n").await;
    for listener in &mut listeners {
        listener.reads(&event("set", "last")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_expiry_of_a_key_is_published_by_another_endpoint_if_the_one_that_set_it_is_gone() {
    let mesh = mesh_of(2).await;
    let (mut listeners, _) = listened_to(&mesh[..1]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut it = Client(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
    let registers = mesh[1].registers(&AppName::new(super::super::NAME).unwrap()).unwrap();
    let events = "AE".parse().unwrap();
    let stays = CancellationToken::new();
    let serving = super::super::serve(listener, mesh[1].clone(), registers, IDLE, events, stays);
    let serving = tokio::spawn(serving);
    it.asks("SET k v PX 1000", "+OK\r\n").await;
    serving.abort();
    for name in ["set", "expire", "expired"] {
        listeners[0].reads(&event(name, "k")).await;
    }
}

#[tokio::test]
async fn a_client_that_asks_for_events_learns_whether_they_are_on() {
    let (mesh, _) = mesh().await;
    let addr = serve_telling(&mesh, "Egx").await;
    let mut it = Client(TcpStream::connect(addr).await.unwrap());
    let name = "notify-keyspace-events";
    it.asks(&format!("CONFIG GET {name}"), array(&[name, "gxE"])).await;
    it.asks(&format!("CONFIG SET {name} Ex"), "+OK\r\n").await;
    let failed = format!("-ERR CONFIG SET failed (possibly related to argument '{name}') - ");
    it.asks(
        &format!("CONFIG SET {name} KEA"),
        format!(
            "{failed}the published events are the same for all clients, by [session] redis_events of \
             every peer, which is \"gxE\"; see docs/redis.md\r\n"
        ),
    )
    .await;
    it.asks(
        &format!("CONFIG SET {name} Q"),
        format!("{failed}Invalid event class character. Use 'Ag$lshzxeKEt'.\r\n"),
    )
    .await;
}
