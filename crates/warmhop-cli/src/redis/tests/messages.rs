//! Messages between the endpoints of several peers.

use super::super::pubsub::Published;
use super::super::pubsub::{Subscriber, What};
use super::*;

fn confirmation(kind: &str, name: &str, count: usize) -> String {
    format!("*3\r\n{}{}:{count}\r\n", bulk(kind), bulk(name))
}

/// Peers that see each other, and a client at each.
async fn endpoints(peers: usize) -> (Vec<Mesh>, Vec<Client>) {
    let mesh = mesh_of(peers).await;
    let mut clients = Vec::new();
    for peer in &mesh {
        clients.push(Client(TcpStream::connect(serve(peer).await).await.unwrap()));
    }
    (mesh, clients)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_heard_at_every_peer_and_all_who_got_it_are_counted() {
    let (_mesh, mut at) = endpoints(3).await;
    at[0].asks("SUBSCRIBE a", confirmation("subscribe", "a", 1)).await;
    at[1].asks("PSUBSCRIBE a*", confirmation("psubscribe", "a*", 1)).await;
    at[1].asks("SSUBSCRIBE shard", confirmation("ssubscribe", "shard", 1)).await;
    // Their subscriptions count from the moment at which they were confirmed.
    at[2].asks("PUBLISH a 1", ":2\r\n").await;
    at[2].asks("PUBLISH about 2", ":1\r\n").await;
    at[2].asks("PUBLISH else 3", ":0\r\n").await;
    at[2].asks("SPUBLISH shard 4", ":1\r\n").await;
    at[2].asks("SPUBLISH a 5", ":0\r\n").await;
    at[0].reads(&array(&["message", "a", "1"])).await;
    at[1].reads(&array(&["pmessage", "a*", "a", "1"])).await;
    at[1].reads(&array(&["pmessage", "a*", "about", "2"])).await;
    at[1].reads(&array(&["smessage", "shard", "4"])).await;
    at[0].asks("UNSUBSCRIBE a", confirmation("unsubscribe", "a", 0)).await;
    at[2].asks("PUBLISH a 6", ":1\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_listens_in_the_newer_protocol_goes_on_asking_and_gets_messages_as_pushes() {
    let (_mesh, mut at) = endpoints(2).await;
    let pushed = |text: String| text.replacen('*', ">", 1);
    at[0].send(&request(&[b"HELLO", b"3"])).await;
    while at[0].line().await != "*0\r\n" {}
    at[0].asks("SUBSCRIBE a", pushed(confirmation("subscribe", "a", 1))).await;
    at[0].asks("PSUBSCRIBE a*", pushed(confirmation("psubscribe", "a*", 2))).await;
    at[0].asks("SSUBSCRIBE shard", pushed(confirmation("ssubscribe", "shard", 1))).await;
    at[0].asks("SET k v", "+OK\r\n").await;
    at[0].asks("PING", "+PONG\r\n").await;
    at[1].asks("PUBLISH about 1", ":1\r\n").await;
    at[0].reads(&pushed(array(&["pmessage", "a*", "about", "1"]))).await;
    at[1].asks("SPUBLISH shard 2", ":1\r\n").await;
    at[0].reads(&pushed(array(&["smessage", "shard", "2"]))).await;
    at[0].asks("GET k", bulk("v")).await;
    at[0].asks("PUNSUBSCRIBE", pushed(confirmation("punsubscribe", "a*", 1))).await;
    at[0].asks("SUNSUBSCRIBE", pushed(confirmation("sunsubscribe", "shard", 0))).await;
    at[1].asks("PUBLISH a 3", ":1\r\n").await;
    at[0].reads(&pushed(array(&["message", "a", "3"]))).await;
    at[0].asks("RESET", "+RESET\r\n").await;
    at[1].asks("PUBLISH a 4", ":0\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pubsub_counts_the_subscribers_of_all_peers() {
    let (_mesh, mut at) = endpoints(2).await;
    let mut third = Client(TcpStream::connect(at[0].0.peer_addr().unwrap()).await.unwrap());
    at[0].asks("SUBSCRIBE a", confirmation("subscribe", "a", 1)).await;
    at[1].asks("SUBSCRIBE a", confirmation("subscribe", "a", 1)).await;
    at[1].asks("SUBSCRIBE b", confirmation("subscribe", "b", 2)).await;
    at[0].asks("PSUBSCRIBE x*", confirmation("psubscribe", "x*", 2)).await;
    at[1].asks("PSUBSCRIBE x*", confirmation("psubscribe", "x*", 3)).await;
    at[1].asks("PSUBSCRIBE y*", confirmation("psubscribe", "y*", 4)).await;
    third.asks("PUBSUB CHANNELS", array(&["a", "b"])).await;
    third.asks("PUBSUB CHANNELS b*", array(&["b"])).await;
    let counted = format!("*6\r\n{}:2\r\n{}:1\r\n{}:0\r\n", bulk("a"), bulk("b"), bulk("c"));
    third.asks("PUBSUB NUMSUB a b c", counted).await;
    third.asks("PUBSUB NUMPAT", ":2\r\n").await;
    // An array in version 3 of the protocol as well.
    third.send(&request(&[b"HELLO", b"3"])).await;
    while third.line().await != "*0\r\n" {}
    third.asks("PUBSUB NUMSUB a", format!("*2\r\n{}:2\r\n", bulk("a"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_one_publisher_come_to_another_peer_in_order_once_each() {
    let (_mesh, mut at) = endpoints(2).await;
    at[0].asks("SUBSCRIBE a", confirmation("subscribe", "a", 1)).await;
    let (mut pipeline, mut counts, mut messages) = (Vec::new(), String::new(), String::new());
    for number in 0..300 {
        let text = number.to_string();
        // By a command, by a transaction and by a script, which does not wait to be counted.
        match number % 3 {
            0 => {
                pipeline.extend(request(&[b"PUBLISH", b"a", text.as_bytes()]));
                counts.push_str(":1\r\n");
            }
            1 => {
                pipeline.extend(request(&[b"MULTI"]));
                pipeline.extend(request(&[b"PUBLISH", b"a", text.as_bytes()]));
                pipeline.extend(request(&[b"EXEC"]));
                counts.push_str("+OK\r\n+QUEUED\r\n*1\r\n:0\r\n");
            }
            _ => {
                let script = b"redis.call('PUBLISH', 'a', ARGV[1]) return 1";
                pipeline.extend(request(&[b"EVAL", script, b"0", text.as_bytes()]));
                counts.push_str(":1\r\n");
            }
        }
        messages.push_str(&array(&["message", "a", &text]));
    }
    at[1].send(&pipeline).await;
    at[1].reads(&counts).await;
    at[0].reads(&messages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_hangs_delays_a_message_to_no_other_peer() {
    let authority = Authority::generate("test").unwrap();
    let first = builder(&authority, 0).start().await.unwrap();
    let seed = first.mesh_addr().to_string();
    let second = builder(&authority, 1).seed(seed.clone()).start().await.unwrap();
    let (third, stop) = stoppable(builder(&authority, 2).seed(seed)).await;
    let mesh = [first, second, third];
    all_see_each_other(&mesh).await;
    let mut it = Client(TcpStream::connect(serve(&mesh[0]).await).await.unwrap());
    let mut other = Client(TcpStream::connect(serve(&mesh[1]).await).await.unwrap());
    it.asks("SUBSCRIBE a", confirmation("subscribe", "a", 1)).await;
    stop.send(()).unwrap();
    for number in 0..3 {
        let number = number.to_string();
        other.send(&request(&[b"PUBLISH", b"a", number.as_bytes()])).await;
        it.reads(&array(&["message", "a", &number])).await;
        other.reads(":1\r\n").await;
    }
}

/// Endpoints' carriers for which an answer about subscriptions outlasts any test.
async fn carriers(peers: usize) -> (Vec<Mesh>, Vec<Arc<Carrier>>) {
    let mesh = mesh_of(peers).await;
    let hour = Duration::from_secs(3600);
    let carriers = mesh.iter().map(|it| Arc::new(Carrier::believing(it.clone(), hour))).collect();
    (mesh, carriers)
}

async fn publish(carrier: &Arc<Carrier>, channel: &str) -> i64 {
    let (channel, message) = (Bytes::copy_from_slice(channel.as_bytes()), Bytes::from("x"));
    carrier.publish(&Published { channel, message, is_sharded: false }).count().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_goes_to_no_peer_where_nobody_listens_and_to_each_where_somebody_does() {
    let (_mesh, at) = carriers(3).await;
    // What is listened to is not known before the first answer.
    assert_eq!(publish(&at[0], "first").await, 0);
    let mut subscriber = Subscriber::new(&at[1].hub);
    subscriber.subscribe(What::Channel, &Bytes::from("a"));
    at[1].is_heard_of().await;
    for _ in 0..50 {
        assert_eq!(publish(&at[0], "a").await, 1);
        assert_eq!(publish(&at[0], "nobody").await, 0);
    }
    assert_eq!((at[1].taken_in(), at[2].taken_in()), (51, 1));
    let mut patterns = Subscriber::new(&at[2].hub);
    patterns.subscribe(What::Pattern, &Bytes::from("b*"));
    at[2].is_heard_of().await;
    for _ in 0..50 {
        assert_eq!(publish(&at[0], "bc").await, 1);
    }
    assert_eq!((at[1].taken_in(), at[2].taken_in()), (51, 51));
    // Nobody listens there any more, and the answer to the next message says so.
    drop(subscriber);
    assert_eq!([publish(&at[0], "a").await, publish(&at[0], "a").await], [0, 0]);
    assert_eq!(at[1].taken_in(), 52);
}

/// One message that is published while a peer learns to forget may be answered before or after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_gets_all_that_is_published_after_its_confirmation() {
    let (_mesh, at) = carriers(3).await;
    let publishing = |from: usize| {
        let carrier = Arc::clone(&at[from]);
        tokio::spawn(async move {
            loop {
                publish(&carrier, "noise").await;
                // It may have nothing to wait for, and others need the threads.
                tokio::task::yield_now().await;
            }
        })
    };
    let noise = [publishing(0), publishing(2)];
    let mut subscriber = Subscriber::new(&at[1].hub);
    for number in 0..100 {
        let channel = number.to_string();
        subscriber.subscribe(What::Channel, &Bytes::from(channel.clone()));
        at[1].is_heard_of().await;
        for from in [0, 2] {
            assert_eq!(publish(&at[from], &channel).await, 1, "{channel} from {from}");
        }
    }
    noise.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_at_a_restarted_peer_gets_all_that_is_published_after_its_confirmation() {
    let (mesh, at) = carriers(3).await;
    assert_eq!(publish(&at[0], "a").await, 0);
    // It takes the place of the one that has answered.
    let again = Arc::new(Carrier::believing(mesh[1].clone(), Duration::from_secs(3600)));
    let mut subscriber = Subscriber::new(&again.hub);
    subscriber.subscribe(What::Channel, &Bytes::from("a"));
    again.is_heard_of().await;
    assert_eq!(publish(&at[0], "a").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_hangs_keeps_nobody_from_subscribing() {
    let authority = Authority::generate("test").unwrap();
    let first = builder(&authority, 0).start().await.unwrap();
    let seed = first.mesh_addr().to_string();
    let (second, stop) = stoppable(builder(&authority, 1).seed(seed)).await;
    let mesh = [first, second];
    all_see_each_other(&mesh).await;
    let mut it = Client(TcpStream::connect(serve(&mesh[0]).await).await.unwrap());
    let there = Arc::new(Carrier::between(mesh[1].clone()));
    assert_eq!(publish(&there, "a").await, 0);
    stop.send(()).unwrap();
    it.asks("SUBSCRIBE a", confirmation("subscribe", "a", 1)).await;
}
