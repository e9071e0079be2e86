//! Bodies and upgrades through a hop: what is sent arrives as it is sent, and nothing is
//! buffered whole if they are long.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::Method;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{self, Message};
use warmhop_testbed::client::{Client, RequestBody};

use crate::support::{APP, BOUND, QUICK, World, never_on, shop, until};

const MIB: usize = 1 << 20;

/// Two peers; the first serves the clients of the second.
pub(crate) async fn hopping() -> World {
    let world = World::with(2, vec![shop(QUICK, "")], "", never_on(1)).await;
    world.warm(0).await;
    world
}

#[tokio::test]
async fn large_bodies_pass_a_hop_both_ways_without_being_held() {
    let world = hopping().await;
    let before = [resident_peak(&world, 0), resident_peak(&world, 1)];
    let mut client = Client::new();
    let body: Bytes = (0..24 * MIB).map(|i| (i % 253) as u8).collect();
    let call = client.call(Method::POST, "/echo").body(body.clone());
    let reply = call.send(world.http(1)).await.unwrap().ok().unwrap();
    assert!(reply.hopped());
    assert!(reply.body == body, "24 MiB come back as they went");

    let download = client.get(world.http(1), format!("/bytes?n={}", 96 * MIB)).await.unwrap();
    assert_eq!(download.body.len(), 96 * MIB);
    assert!(download.body.iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8));
    for (index, before) in before.into_iter().enumerate() {
        let grown = resident_peak(&world, index).saturating_sub(before);
        assert!(grown < 64 * MIB, "{} grew by {grown} bytes", world.name(index));
    }
}

#[tokio::test]
async fn a_slow_reader_holds_the_sender_back() {
    let world = hopping().await;
    let before = [resident_peak(&world, 0), resident_peak(&world, 1)];
    let mut client = Client::new();
    let call = client.call(Method::GET, format!("/bytes?n={}", 512 * MIB));
    let mut response = call.open(world.http(1)).await.unwrap();
    // One frame is read and no more; what the sender can still send is bounded by windows and
    // buffers on the way, so in the end it has to stop.
    response.frame().await.unwrap().unwrap();
    app_stops_sending(&world).await;
    assert_eq!(world.app(0, APP).await["in_flight"], 1, "it waits, it did not finish");
    for (index, before) in before.into_iter().enumerate() {
        let grown = resident_peak(&world, index).saturating_sub(before);
        assert!(grown < 64 * MIB, "{} holds {grown} bytes", world.name(index));
    }
    drop(response);
    world.in_flight(0, 0).await;
}

#[tokio::test]
async fn clients_that_do_not_read_stop_nobody_else() {
    let world = hopping().await;
    let mut unread = Vec::new();
    for _ in 0..24 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(world.http(1)).await.unwrap();
        stream.write_all(b"GET /bytes?n=60000000 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        unread.push(stream);
    }
    world.in_flight(0, 24).await;
    app_stops_sending(&world).await;
    let mut client = Client::new();
    for _ in 0..3 {
        let reply = timeout(BOUND, client.get(world.http(1), format!("/bytes?n={MIB}"))).await;
        let reply = reply.expect("it is not held up").unwrap();
        assert!(reply.hopped() && reply.body.len() == MIB);
    }
    drop(unread);
    world.in_flight(0, 0).await;
}

#[tokio::test]
async fn each_piece_arrives_before_the_next_is_sent() {
    let world = hopping().await;
    let (pieces, queue) = mpsc::channel::<Bytes>(1);
    let body = StreamBody::new(futures_util::stream::unfold(queue, |mut queue| async move {
        queue.recv().await.map(|piece| (Ok::<_, Infallible>(Frame::data(piece)), queue))
    }));
    let body: RequestBody = BodyExt::boxed(BodyExt::map_err(body, |never| match never {}));
    let mut client = Client::new();
    pieces.send(Bytes::from_static(b"first;")).await.unwrap();
    let call = client.call(Method::POST, "/echo").streaming(body);
    let mut response = timeout(BOUND, call.open(world.http(1))).await.unwrap().unwrap();
    assert!(response.headers().contains_key("via"));
    let mut back = Vec::new();
    for round in 0..20 {
        let sent = if round == 0 { "first;".to_owned() } else { format!("piece {round};") };
        if round > 0 {
            pieces.send(Bytes::from(sent.clone())).await.unwrap();
        }
        while !back.ends_with(sent.as_bytes()) {
            let frame = timeout(BOUND, response.frame()).await.expect("it comes back at once");
            back.extend_from_slice(&frame.unwrap().unwrap().into_data().unwrap());
        }
    }
    drop(pieces);
    assert!(timeout(BOUND, response.frame()).await.unwrap().is_none(), "and then it ends");
}

#[tokio::test]
async fn server_sent_events_flow_and_end_with_their_client() {
    let world = hopping().await;
    let mut client = Client::new();
    let mut response = client.call(Method::GET, "/events").open(world.http(1)).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    while text.matches("\n\n").count() < 5 {
        let frame = timeout(BOUND, response.frame()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    assert!(text.contains("\"tick\":4"), "{text}");
    world.in_flight(0, 1).await;
    drop(response);
    // The stream is endless: the far end hears that its client left.
    world.in_flight(0, 0).await;
}

#[tokio::test]
async fn an_answer_to_a_client_that_was_not_asked_for_its_body_goes_on_as_long_as_it_likes() {
    let world = hopping().await;
    for door in [0, 1] {
        let mut stream = TcpStream::connect(world.http(door)).await.unwrap();
        let request = "GET /events HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\
             Content-Length: 20000\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        let begun = Instant::now();
        // Well beyond the time after which a client would get `100 Continue`.
        while begun.elapsed() < Duration::from_millis(2500) {
            let mut piece = [0; 4096];
            let read = timeout(BOUND, stream.read(&mut piece)).await.unwrap().unwrap();
            assert_ne!(read, 0, "{door}: cut off: {}", String::from_utf8_lossy(&heard));
            heard.extend_from_slice(&piece[..read]);
        }
        let heard = String::from_utf8_lossy(&heard);
        assert!(heard.starts_with("HTTP/1.1 200 "), "{door}: {heard}");
        assert_eq!(heard.matches("HTTP/1.1 ").count(), 1, "{door}: got 100 Continue: {heard}");
        drop(stream);
        world.in_flight(0, 0).await;
    }
}

#[tokio::test]
async fn a_websocket_passes_a_hop() {
    let world = hopping().await;
    let stream = TcpStream::connect(world.http(1)).await.unwrap();
    let url = format!("ws://{}/ws", world.http(1));
    let connect = tokio_tungstenite::client_async(url, stream);
    let (mut socket, response) = timeout(BOUND, connect).await.unwrap().unwrap();
    assert_eq!(response.status(), 101);
    assert!(response.headers().contains_key("via"));
    echoes_and_closes(&mut socket).await;
    world.in_flight(0, 0).await;
}

/// Sends messages, each of which comes back, and closes the WebSocket.
async fn echoes_and_closes<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) {
    for message in
        [Message::text("hello"), Message::binary(vec![7; 100_000]), Message::text("and again")]
    {
        socket.send(message.clone()).await.unwrap();
        let back = timeout(BOUND, socket.next()).await.unwrap().unwrap().unwrap();
        assert!(back == message);
    }
    socket.close(None).await.unwrap();
    while timeout(BOUND, socket.next()).await.expect("the close is answered").is_some() {}
}

pub(crate) type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

pub(crate) async fn websocket(world: &World, index: usize) -> Socket {
    let stream = TcpStream::connect(world.http(index)).await.unwrap();
    let url = format!("ws://{}/ws", world.http(index));
    let connect = tokio_tungstenite::client_async(url, stream);
    let (mut socket, _) = timeout(BOUND, connect).await.unwrap().unwrap();
    echoes(&mut socket, "hello").await;
    socket
}

pub(crate) async fn echoes(socket: &mut Socket, text: &'static str) {
    socket.send(Message::text(text)).await.unwrap();
    let back = timeout(BOUND, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(back, Message::text(text));
}

/// The code of the close frame that ends the socket.
async fn closed_with(socket: &mut Socket) -> u16 {
    match timeout(BOUND, socket.next()).await.expect("it ends in time") {
        Some(Ok(Message::Close(Some(frame)))) => frame.code.into(),
        other => panic!("no close frame with a code: {other:?}"),
    }
}

/// Opens a WebSocket over HTTP/2 (RFC 8441) at `path`, without judging the answer.
async fn extended_connect(addr: SocketAddr, path: &str) -> http::Response<Incoming> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    // The server's settings, which allow extended CONNECT, come with its first answer.
    let probe = http::Request::get(format!("http://{addr}/healthz")).body(Empty::new()).unwrap();
    let probed = timeout(BOUND, sender.send_request(probe)).await.unwrap().unwrap();
    assert_eq!(probed.version(), http::Version::HTTP_2);
    let request = http::Request::connect(format!("http://{addr}{path}"))
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(Empty::new())
        .unwrap();
    timeout(BOUND, sender.send_request(request)).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_websocket_over_http_2_passes_a_hop() {
    let world = hopping().await;
    let response = extended_connect(world.http(1), "/ws").await;
    assert_eq!(response.status(), 200);
    assert!(response.headers().contains_key("via"));
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    let io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    echoes_and_closes(&mut socket).await;
    world.in_flight(0, 0).await;

    // And from the peer where the app is.
    let response = extended_connect(world.http(0), "/ws").await;
    assert_eq!(response.status(), 200);
    let io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    socket.send(Message::text("near")).await.unwrap();
    let back = timeout(BOUND, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(back, Message::text("near"));
}

#[tokio::test]
async fn a_websocket_to_an_app_that_has_none_gets_its_answer() {
    let world = hopping().await;
    let response = extended_connect(world.http(1), "/no-such-page").await;
    assert_eq!(response.status(), 404);
    // Over HTTP/2, success would say that the WebSocket is open.
    let response = extended_connect(world.http(1), "/healthz").await;
    assert_eq!(response.status(), 501);
    let stream = TcpStream::connect(world.http(1)).await.unwrap();
    let connect =
        tokio_tungstenite::client_async(format!("ws://{}/healthz", world.http(1)), stream);
    match timeout(BOUND, connect).await.unwrap() {
        Err(tungstenite::Error::Http(response)) => assert_eq!(response.status(), 200),
        other => panic!("{other:?}"),
    }
}

/// As [`hopping`], with this `drain_grace` of the peers and `stop_grace` of the app.
pub(crate) async fn leaving_after(drain: &str, stop: &str) -> World {
    let settings = format!("[http]\ndrain_grace = '{drain}'\n");
    let app = shop(QUICK, &format!("stop_grace = '{stop}'"));
    let world = World::with(2, vec![app], &settings, never_on(1)).await;
    world.warm(0).await;
    world
}

#[tokio::test]
async fn open_websockets_get_1001_when_the_grace_of_a_drain_is_over() {
    // The peer that the client reached leaves.
    let mut world = leaving_after("300ms", "10m").await;
    let mut hops = websocket(&world, 1).await;
    let (left, code) = tokio::join!(world.mesh.stop(1), closed_with(&mut hops));
    assert_eq!(code, 1001);
    assert!(left.unwrap().success());
    // The peer that runs the app leaves.
    let mut world = leaving_after("300ms", "10m").await;
    let (mut local, mut hops) = (websocket(&world, 0).await, websocket(&world, 1).await);
    let (left, local, hops) =
        tokio::join!(world.mesh.stop(0), closed_with(&mut local), closed_with(&mut hops));
    assert_eq!((local, hops), (1001, 1001));
    assert!(left.unwrap().success());
}

#[tokio::test]
async fn open_websockets_get_1001_when_the_grace_of_a_copy_that_is_replaced_is_over() {
    let world = leaving_after("1h", "300ms").await;
    let (mut local, mut hops) = (websocket(&world, 0).await, websocket(&world, 1).await);
    let restarted = world.warmhop(0, &["app", "restart", APP]);
    assert!(restarted.status.success(), "{restarted:?}");
    let codes = tokio::join!(closed_with(&mut local), closed_with(&mut hops));
    assert_eq!(codes, (1001, 1001));
    for index in 0..2 {
        websocket(&world, index).await.close(None).await.unwrap();
    }
}

#[tokio::test]
async fn an_open_websocket_gets_its_time_and_a_peer_leaves_as_soon_as_it_has_ended() {
    let mut world = leaving_after("1h", "10s").await;
    let (mut socket, door) = (websocket(&world, 1).await, world.http(1));
    let (left, ()) = tokio::join!(world.mesh.stop(1), async {
        until("the peer leaves", async || TcpStream::connect(door).await.is_err().then_some(()))
            .await;
        echoes(&mut socket, "still there").await;
        socket.close(None).await.unwrap();
        while timeout(BOUND, socket.next()).await.expect("it is answered").is_some() {}
    });
    assert!(left.unwrap().success());
}

#[tokio::test]
async fn a_websocket_whose_app_dies_ends_with_a_close_frame_here_and_through_a_hop() {
    let mut world = hopping().await;
    world.expect_errors();
    let mut sockets = [websocket(&world, 0).await, websocket(&world, 1).await];
    // The app takes its own answer with it.
    let _ = Client::new().post(world.http(0), "/crash").await;
    for socket in &mut sockets {
        assert_eq!(closed_with(socket).await, 1011);
    }
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it() {
    let world = hopping().await;
    let mut stream = TcpStream::connect(world.http(1)).await.unwrap();
    stream
        .write_all(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\
              Connection: close\r\n\r\n",
        )
        .await
        .unwrap();
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let n = timeout(BOUND, stream.read(&mut chunk)).await.unwrap().unwrap();
        assert!(n > 0, "closed before it was answered");
        answer.extend_from_slice(&chunk[..n]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&answer));
    stream.write_all(b"hello").await.unwrap();
    timeout(BOUND, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("HTTP/1.1 200") && answer.contains("hello"), "{answer}");
}

/// The most memory that a peer has had resident, in bytes.
fn resident_peak(world: &World, index: usize) -> usize {
    let pid = world.mesh.peer(index).process().unwrap().pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Waits until the app of the first peer has sent what it may to a client that does not read.
pub(crate) async fn app_stops_sending(world: &World) {
    let mut last = u64::MAX;
    until("the app stops sending", async || {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let sent = bytes_written(world);
        std::mem::replace(&mut last, sent).eq(&sent).then_some(())
    })
    .await;
}

/// How much the processes under the first peer, its app among them, have written.
fn bytes_written(world: &World) -> u64 {
    let processes = world.mesh.peer(0).process().unwrap().descendants();
    processes
        .iter()
        .filter_map(|process| std::fs::read_to_string(format!("/proc/{}/io", process.pid)).ok())
        .filter_map(|io| io.lines().find_map(|l| l.strip_prefix("wchar: ")?.parse::<u64>().ok()))
        .sum()
}
