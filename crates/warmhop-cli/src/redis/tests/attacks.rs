//! Misbehaviour of one client: it is refused or disconnected, in words that clients know, and
//! others are served meanwhile.

use tokio::io::AsyncReadExt;

use super::*;
use crate::redis::pubsub::{TOO_SLOW, WAITING_BYTES_MAX};

/// An endpoint, one who attacks it and one who only wants to be served.
async fn attacked() -> (Mesh, std::net::SocketAddr, Client) {
    let (mesh, _) = mesh().await;
    let addr = serve(&mesh).await;
    let other = connected(addr).await;
    (mesh, addr, other)
}

async fn connected(addr: std::net::SocketAddr) -> Client {
    Client(TcpStream::connect(addr).await.unwrap())
}

#[cfg(feature = "lua")]
#[tokio::test(flavor = "multi_thread")]
async fn scripts_without_end_are_ended_one_by_one_and_others_are_served_meanwhile() {
    let (_mesh, addr, mut other) = attacked().await;
    let mut attackers = Vec::new();
    for (at, script) in [
        "while true do end",
        "local t = {} while true do t[#t + 1] = ('x'):rep(1000) .. #t end",
        "redis.call('SET', KEYS[1], 1) while true do redis.call('INCR', KEYS[1]) end",
        "local f f = function() return 1 + f() end return f()",
        "for i = 1, 1e9 do redis.pcall('PUBLISH', 'c', ('x'):rep(100000)) end",
    ]
    .into_iter()
    .enumerate()
    {
        let mut attacker = connected(addr).await;
        let key = format!("k{at}");
        attacker.send(&request(&[b"EVAL", script.as_bytes(), b"1", key.as_bytes()])).await;
        attackers.push(attacker);
    }
    for number in 0..20 {
        other.asks(&format!("SET mine {number}"), "+OK\r\n").await;
        other.asks("GET mine", bulk(&number.to_string())).await;
    }
    for attacker in &mut attackers {
        let reply = attacker.line().await;
        assert!(reply.starts_with('-'), "{reply}");
    }
    other.asks("EXISTS k0 k1 k2 k3 k4", ":0\r\n").await;
}

#[cfg(feature = "lua")]
#[tokio::test(flavor = "multi_thread")]
async fn of_scripts_without_number_those_used_last_are_known_and_the_others_asked_for_anew() {
    let (_mesh, addr, mut other) = attacked().await;
    let mut it = connected(addr).await;
    let count = 10_000;
    let texts = (0..count).map(|number| format!("return {number}"));
    let sending: Vec<u8> =
        texts.flat_map(|text| request(&[b"SCRIPT", b"LOAD", text.as_bytes()])).collect();
    let (mut reading, mut writing) = it.0.split();
    let (sent, _) = tokio::join!(writing.write_all(&sending), async {
        let mut digests = vec![0; count * bulk(&"0".repeat(40)).len()];
        reading.read_exact(&mut digests).await.unwrap();
    });
    sent.unwrap();
    let digest = |text: &str| {
        let sha = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        sha.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let (first, last) = (digest("return 0"), digest("return 9999"));
    other.asks(&format!("SCRIPT EXISTS {first} {last}"), "*2\r\n:0\r\n:1\r\n").await;
    other.asks(&format!("EVALSHA {last} 0"), ":9999\r\n").await;
    let no_script = "-NOSCRIPT No matching script. Please use EVAL.\r\n";
    other.asks(&format!("EVALSHA {first} 0"), no_script).await;
}

#[cfg(feature = "lua")]
#[tokio::test(flavor = "multi_thread")]
async fn each_run_of_a_script_draws_its_own_random_numbers() {
    let (_mesh, _, mut client) = attacked().await;
    let mut drawn = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let script = b"return math.random(1000000000)";
        client.send(&request(&[b"EVAL", script, b"0"])).await;
        drawn.insert(client.line().await);
    }
    assert!(drawn.len() > 1, "a limiter's members would all be the same: {drawn:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_reads_nothing_is_closed_and_those_who_read_get_all() {
    let (_mesh, addr, mut other) = attacked().await;
    let confirmed = format!("*3\r\n{}{}:1\r\n", bulk("subscribe"), bulk("c"));
    let mut deaf = connected(addr).await;
    deaf.asks("SUBSCRIBE c", confirmed.clone()).await;
    let mut hears = connected(addr).await;
    hears.asks("SUBSCRIBE c", confirmed).await;
    let message = "x".repeat(512 * 1024);
    // What the sockets take in between is not known; far more than they do comes up.
    let count = 8 * WAITING_BYTES_MAX / message.len();
    let expected = array(&["message", "c", &message]);
    let mut counts = Vec::new();
    for _ in 0..count {
        other.send(&request(&[b"PUBLISH", b"c", message.as_bytes()])).await;
        counts.push(other.line().await);
        // It reads as quickly as is published, however the machine is loaded.
        hears.reads(&expected).await;
    }
    let too_slow = TOO_SLOW.load(std::sync::atomic::Ordering::Relaxed);
    assert!(too_slow > 0, "it was disconnected, and not counted");
    assert_eq!((&*counts[0], counts.last().map(|it| &**it)), (":2\r\n", Some(":1\r\n")));
    // It gets what was written before, and no more.
    let mut rest = Vec::new();
    let _ =
        tokio::time::timeout(PATIENCE * 3, deaf.0.read_to_end(&mut rest)).await.expect("its end");
    assert!(rest.len() < count * message.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_of_any_length_is_answered_and_keeps_nobody_waiting() {
    let (_mesh, addr, mut other) = attacked().await;
    let mut it = connected(addr).await;
    let count = 100_000;
    let sending: Vec<u8> = (0..count).flat_map(|_| request(&[b"ECHO", b"x"])).collect();
    let answers = bulk("x").repeat(count);
    let (mut reading, mut writing) = it.0.split();
    let piped = async {
        let (sent, _) = tokio::join!(writing.write_all(&sending), async {
            let mut all = vec![0; answers.len()];
            reading.read_exact(&mut all).await.unwrap();
            assert!(all == answers.as_bytes());
        });
        sent.unwrap();
    };
    tokio::join!(piped, async {
        for number in 0..20 {
            other.asks(&format!("SET mine {number}"), "+OK\r\n").await;
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_and_names_of_channels_have_bounds() {
    let (_mesh, addr, mut other) = attacked().await;
    let mut it = connected(addr).await;
    let long = "x".repeat(1024 * 1024);
    let refused =
        format!("-ERR the channel's name has {} bytes, and 544 are the most\r\n", long.len());
    it.asks(&format!("SUBSCRIBE {long}"), refused.clone()).await;
    it.asks(&format!("PUBLISH {long} x"), refused.clone()).await;
    it.asks(&format!("PSUBSCRIBE {long}"), "-ERR a pattern has at most 1024 bytes\r\n").await;
    let confirmation =
        |kind: &str, name: &str, at: usize| format!("*3\r\n{}{}:{at}\r\n", bulk(kind), bulk(name));
    for from in (0..10_000).step_by(1000) {
        let names: Vec<String> = (from..from + 1000).map(|number| format!("c{number}")).collect();
        let each = names.iter().enumerate();
        let expected: String =
            each.map(|(at, name)| confirmation("subscribe", name, from + at + 1)).collect();
        it.asks(&format!("SUBSCRIBE {}", names.join(" ")), expected).await;
    }
    other.asks("PUBLISH c9999 x", ":1\r\n").await;
    it.reads(&array(&["message", "c9999", "x"])).await;
    drop(it);
    // Nothing of it is left when its client is gone.
    let late = Instant::now() + PATIENCE;
    loop {
        other.send(&request(&[b"PUBSUB", b"NUMSUB", b"c1"])).await;
        let count = other.name_and_number().await;
        if count == 0 {
            break;
        }
        assert!(Instant::now() < late, "{count} still listen");
    }
}

#[test]
fn the_subscriptions_at_one_peer_are_bounded() {
    use crate::redis::pubsub::{Hub, Subscriber, What};
    let hub = Arc::new(Hub::default());
    let mut one = Subscriber::new(&hub);
    let refused = (0..20_000).find(|number| {
        one.subscribe(What::Pattern, &Bytes::from(format!("p{number}*"))).is_error()
    });
    assert_eq!(refused, Some(16_384));
    assert!(!one.subscribe(What::Pattern, &Bytes::from_static(b"p1*")).is_error(), "known");
    let mut all = vec![one];
    let name = "n".repeat(500);
    let refused = 'refused: loop {
        let mut it = Subscriber::new(&hub);
        for number in 0..50_000 {
            if it.subscribe(What::Channel, &Bytes::from(format!("{name}{number}"))).is_error() {
                break 'refused all.len();
            }
        }
        all.push(it);
        assert!(all.len() < 100, "it has no bound");
    };
    assert!(refused > 1);
    all.clear();
    let mut again = Subscriber::new(&hub);
    assert!(!again.subscribe(What::Pattern, &Bytes::from_static(b"q*")).is_error());
}
