//! What libraries ask as they start, and the errors for what is not offered: in Redis' words.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_are_not_offered_are_refused_as_by_a_stand_alone_server() {
    let (_mesh, mut it) = endpoint().await;
    let unknown = "-ERR unknown command 'SENTINEL', with args beginning with: ";
    it.asks("SENTINEL masters", format!("{unknown}'masters' \r\n")).await;
    let no_cluster = "-ERR This instance has cluster support disabled\r\n";
    for command in ["CLUSTER INFO", "CLUSTER SLOTS", "READONLY", "READWRITE", "ASKING"] {
        it.asks(command, no_cluster).await;
    }
    it.asks("FUNCTION LIST", "*0\r\n").await;
    it.asks("FUNCTION FOO", "-ERR unknown subcommand 'FOO'. Try FUNCTION HELP.\r\n").await;
    let not_offered = "-ERR FUNCTION LOAD is not offered here; see docs/redis.md\r\n";
    it.asks("FUNCTION LOAD x", not_offered).await;
    it.asks("FUNCTION DELETE x", "-ERR Library not found\r\n").await;
    it.asks("FCALL f 0", "-ERR Function not found\r\n").await;
    it.asks("FCALL_RO f 0", "-ERR Function not found\r\n").await;
    it.asks("ACL WHOAMI", bulk("default")).await;
    it.asks("ACL GETUSER nobody", "$-1\r\n").await;
    it.asks("CLIENT TRACKING OFF", "+OK\r\n").await;
    let not_offered = "-ERR CLIENT TRACKING is not offered here; see docs/redis.md\r\n";
    it.asks("CLIENT TRACKING ON", not_offered).await;
    it.asks("CLIENT LIST TYPE pubsub", bulk("")).await;
    it.asks("CLIENT NO-EVICT maybe", "-ERR syntax error\r\n").await;
    it.asks("CONFIG SET save x", "-ERR CONFIG SET failed (possibly related to argument 'save') - a peer has its own configuration; see docs/redis.md\r\n").await;
    it.asks("CONFIG SET maxmemory-policy noeviction", "+OK\r\n").await;
    it.asks("CONFIG SET maxmemory", "-ERR wrong number of arguments for 'config|set' command\r\n")
        .await;
    it.asks("HELLO 2 SETNAME", "-ERR Syntax error in HELLO option 'SETNAME'\r\n").await;
    it.asks("WAIT 2 100", ":0\r\n").await;
    it.asks("WAIT 0 x", "-ERR timeout is not an integer or out of range\r\n").await;
    it.asks("COMMAND INFO none", "*1\r\n$-1\r\n").await;
    it.asks("COMMAND LIST FILTERBY PATTERN zmp*", array(&["zmpop"])).await;
    it.asks("SLOWLOG FOO", "-ERR unknown subcommand 'FOO'. Try SLOWLOG HELP.\r\n").await;
    it.send(&request(&[b"INFO", b"replication"])).await;
    let head = it.line().await;
    let mut text = vec![0; head[1..].trim_end().parse().unwrap()];
    it.0.read_exact(&mut text).await.unwrap();
    let text = String::from_utf8(text).unwrap();
    for line in ["role:master", "connected_slaves:0", "master_repl_offset:0"] {
        assert!(text.lines().any(|it| it == line), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_listens_in_the_older_protocol_is_refused_all_else() {
    let (_mesh, mut it) = endpoint().await;
    it.asks("SUBSCRIBE c", format!("*3\r\n{}{}:1\r\n", bulk("subscribe"), bulk("c"))).await;
    let only = "only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this \
                context";
    it.asks("CLIENT ID", format!("-ERR Can't execute 'client|id': {only}\r\n")).await;
    it.asks("GET k", format!("-ERR Can't execute 'get': {only}\r\n")).await;
    let discarded =
        format!("-EXECABORT Transaction discarded because of: Can't execute 'exec': {only}");
    it.asks("EXEC", format!("{discarded}\r\n")).await;
    it.asks("PING a b", "-ERR wrong number of arguments for 'ping' command\r\n").await;
    it.asks("PING a", array(&["pong", "a"])).await;
    it.asks("RESET", "+RESET\r\n").await;
    it.asks("GET k", "$-1\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_of_several_keys_that_has_something_is_taken_from() {
    let (_mesh, mut it) = endpoint().await;
    it.asks("BLMOVE {t}a {t}b LEFT RIGHT 0.01", "*-1\r\n").await;
    it.asks("BLMPOP 0.01 2 {t}a {t}b LEFT", "*-1\r\n").await;
    it.asks("BZMPOP x 1 {t}a MIN", "-ERR timeout is not a float or out of range\r\n").await;
    it.asks("RPUSH {t}b 1 2 3", ":3\r\n").await;
    let two = format!("*2\r\n{}{}", bulk("{t}b"), array(&["3", "2"]));
    it.asks("LMPOP 2 {t}a {t}b RIGHT COUNT 2", two).await;
    let one = format!("*2\r\n{}{}", bulk("{t}b"), array(&["1"]));
    it.asks("BLMPOP 0 2 {t}a {t}b LEFT", one).await;
    it.asks("ZADD {t}z 1 a 2 b", ":2\r\n").await;
    let member = format!("*2\r\n{}*1\r\n{}", bulk("{t}z"), array(&["b", "2"]));
    it.asks("ZMPOP 1 {t}z MAX", member).await;
    it.asks("ZUNION 1 {t}z WITHSCORES", array(&["a", "1"])).await;
    it.asks("ZDIFFSTORE {t}d 1 {t}z", ":1\r\n").await;
    it.asks("ZRANGESTORE {t}e {t}d 0 -1", ":1\r\n").await;
    it.asks("COPY {t}e {t}f", ":1\r\n").await;
    it.asks("ZINTERCARD 2 {t}z {t}f", ":1\r\n").await;
    it.send(&request(&[b"LMPOP", b"2", b"a", b"b", b"LEFT"])).await;
    assert!(it.line().await.starts_with("-CROSSSLOT "));
    it.asks("SET b a", "+OK\r\n").await;
    it.asks("BITPOS b 1", ":1\r\n").await;
    it.asks("BITPOS b 0 1", ":-1\r\n").await;
    it.asks("BITFIELD n OVERFLOW SAT INCRBY u16 #1 70000 GET u8 #2", "*2\r\n:65535\r\n:255\r\n")
        .await;
    it.asks("BITFIELD_RO n SET u8 0 1", "-ERR BITFIELD_RO only supports the GET subcommand\r\n")
        .await;
}

#[cfg(feature = "lua")]
#[tokio::test(flavor = "multi_thread")]
async fn what_a_script_publishes_is_counted_where_it_runs_and_commands_it_lacks_are_logged() {
    let (mesh, mut it) = endpoint().await;
    let mut listens = Client(TcpStream::connect(serve(&mesh).await).await.unwrap());
    it.asks("CLIENT SETINFO LIB-NAME scripted", "+OK\r\n").await;
    let publish = b"return redis.call('PUBLISH', 'c', 'm')";
    it.send(&request(&[b"EVAL", publish, b"0"])).await;
    it.reads(":0\r\n").await;
    let mut here = Client(TcpStream::connect(it.0.peer_addr().unwrap()).await.unwrap());
    for client in [&mut here, &mut listens] {
        client.asks("SUBSCRIBE c", format!("*3\r\n{}{}:1\r\n", bulk("subscribe"), bulk("c"))).await;
    }
    it.send(&request(&[b"EVAL", publish, b"0"])).await;
    it.reads(":1\r\n").await;
    here.reads(&array(&["message", "c", "m"])).await;
    it.send(&request(&[b"EVAL", b"return redis.call('XADD', KEYS[1], '*', 'a', 1)", b"1", b"k"]))
        .await;
    assert!(it.line().await.starts_with("-ERR Unknown Redis command called from script"));
    let counts = super::super::loud::all().counts();
    let counted = ("XADD".to_owned(), "scripted".to_owned(), 1);
    assert!(counts.contains(&counted), "{counts:?}");
}
