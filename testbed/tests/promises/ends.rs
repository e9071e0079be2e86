//! How streams end: early, by half, in the middle, by a client or a peer that leaves; and what outlives what.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use warmhop_testbed::client::{Client, RequestBody};

use crate::streaming::{app_stops_sending, echoes, hopping, leaving_after, websocket};
use crate::support::{APP, BOUND, QUICK, World, shop, until};

/// A client's connection in either version of HTTP.
enum Connection {
    One(http1::SendRequest<RequestBody>),
    Two(http2::SendRequest<RequestBody>),
}

impl Connection {
    /// One of each version.
    async fn both(world: &World, index: usize) -> [Self; 2] {
        let stream = async || TokioIo::new(TcpStream::connect(world.http(index)).await.unwrap());
        let (one, connection) = http1::handshake(stream().await).await.unwrap();
        tokio::spawn(connection);
        let (two, connection) =
            http2::handshake(TokioExecutor::new(), stream().await).await.unwrap();
        tokio::spawn(connection);
        [Self::One(one), Self::Two(two)]
    }

    async fn send(
        &mut self,
        world: &World,
        method: Method,
        path: &str,
        body: RequestBody,
    ) -> hyper::Result<Response<Incoming>> {
        let addr = world.http(0);
        let request = Request::builder().method(method);
        match self {
            Self::One(sender) => {
                let request = request.uri(path).header("host", addr.to_string());
                sender.send_request(request.body(body).unwrap()).await
            }
            Self::Two(sender) => {
                let request = request.uri(format!("http://{addr}{path}"));
                sender.send_request(request.body(body).unwrap()).await
            }
        }
    }
}

fn empty() -> RequestBody {
    Full::default().map_err(|never| match never {}).boxed()
}

/// A body that is sent piece by piece, and ends with its sender.
fn pieces() -> (mpsc::Sender<Bytes>, RequestBody) {
    let (pieces, queue) = mpsc::channel::<Bytes>(1);
    let body = StreamBody::new(futures_util::stream::unfold(queue, |mut queue| async move {
        queue.recv().await.map(|piece| (Ok::<_, Infallible>(Frame::data(piece)), queue))
    }));
    (pieces, body.map_err(|never| match never {}).boxed())
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_has_is_passed_on_at_once() {
    let world = hopping().await;
    for door in [0, 1] {
        for mut connection in Connection::both(&world, door).await {
            let (pieces, body) = pieces();
            pieces.send(Bytes::from_static(b"the beginning")).await.unwrap();
            let answer = connection.send(&world, Method::POST, "/early", body);
            let answer = timeout(BOUND, answer).await.expect("it comes").unwrap();
            assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
            let text = timeout(BOUND, answer.collect()).await.expect("it is whole").unwrap();
            assert_eq!(text.to_bytes(), "No need to send it.\n");
            // Nobody waits for the rest, and the connection serves on or is closed in good order.
            world.in_flight(0, 0).await;
            drop(pieces);
        }
    }
}

#[tokio::test]
async fn a_body_that_its_app_breaks_off_does_not_look_whole() {
    let world = hopping().await;
    for door in [0, 1] {
        for mut connection in Connection::both(&world, door).await {
            let answer = connection.send(&world, Method::GET, "/cut?n=300000", empty()).await;
            let mut answer = timeout(BOUND, async { answer.unwrap() }).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            let mut received = 0;
            let ended = loop {
                match timeout(BOUND, answer.frame()).await.expect("it ends") {
                    Some(Ok(frame)) => received += frame.into_data().map_or(0, |data| data.len()),
                    other => break other,
                }
            };
            assert!(matches!(ended, Some(Err(_))), "{received} bytes, then {ended:?}");
            assert!(received <= 300_000);
            world.in_flight(0, 0).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_is_heard_at_the_far_end() {
    let world = hopping().await;
    for door in [0, 1] {
        for which in 0..2 {
            // While the app thinks, and while its answer is on the way.
            for path in ["/slow?head=60000&ms=0", "/bytes?n=1000000000"] {
                let mut both = Connection::both(&world, door).await;
                let connection = &mut both[which];
                tokio::select! {
                    _ = async {
                        let mut answer =
                            connection.send(&world, Method::GET, path, empty()).await.unwrap();
                        answer.frame().await.unwrap().unwrap();
                        std::future::pending::<()>().await;
                    } => {}
                    () = world.in_flight(0, 1) => {}
                }
                drop(both);
                world.in_flight(0, 0).await;
            }
            // While it sends.
            let mut both = Connection::both(&world, door).await;
            let (pieces, body) = pieces();
            pieces.send(Bytes::from_static(b"the beginning")).await.unwrap();
            tokio::select! {
                answer = both[which].send(&world, Method::POST, "/count", body) => {
                    panic!("answered before the body had ended: {answer:?}")
                }
                () = world.in_flight(0, 1) => {}
            }
            drop((both, pieces));
            world.in_flight(0, 0).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_has_closed_its_sending_side_gets_its_whole_answer() {
    const BYTES: usize = 20 << 20;
    let world = hopping().await;
    for door in [0, 1] {
        let requests = [
            (format!("GET /bytes?n={BYTES} HTTP/1.1\r\nHost: x\r\n\r\n"), BYTES),
            ("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello".into(), 5),
            ("GET /slow?head=100&ms=300 HTTP/1.0\r\n\r\n".into(), 20),
        ];
        for (request, bytes_min) in requests {
            let mut stream = TcpStream::connect(world.http(door)).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            timeout(BOUND, stream.read_to_end(&mut answer)).await.expect("it ends").unwrap();
            let head = String::from_utf8_lossy(&answer[..answer.len().min(1000)]);
            assert!(head.contains(" 200 OK"), "{request:?} at {door}: {head}");
            assert!(answer.len() > bytes_min, "{request:?} at {door}: {} bytes", answer.len());
            let chunked = head.contains("chunked");
            assert!(!chunked || answer.ends_with(b"0\r\n\r\n"), "{request:?} at {door}");
        }
        world.in_flight(0, 0).await;
    }
}

#[tokio::test]
async fn open_streams_survive_the_cut_over() {
    let world = World::new(2, shop(QUICK, "")).await;
    world.warm(0).await;
    let far = world.app(0, APP).await;
    let mut client = Client::new();
    let mut events = client.call(Method::GET, "/events").open(world.http(1)).await.unwrap();
    assert!(events.headers().contains_key("via"), "the first peer's copy was cold");
    let (pieces, body) = pieces();
    pieces.send(Bytes::from_static(b"a")).await.unwrap();
    let call = Client::new().call(Method::POST, "/echo").streaming(body).open(world.http(1)).await;
    let mut echo = call.unwrap();
    let mut socket = websocket(&world, 1).await;

    world.reaches(1, APP, "ready").await;
    let here = until("new requests are served there", async || {
        let reply = Client::new().get(world.http(1), "/whoami").await.ok()?;
        (!reply.hopped()).then(|| reply.json().unwrap()["pid"].clone())
    })
    .await;

    let mut text = String::new();
    while text.matches("data:").count() < 10 {
        let frame = timeout(BOUND, events.frame()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    assert!(!text.contains(&format!("\"pid\":{here}")), "one process tells all of it: {text}");
    echoes(&mut socket, "still there").await;
    pieces.send(Bytes::from_static(b"b")).await.unwrap();
    drop(pieces);
    let mut back = Vec::new();
    while let Some(frame) = timeout(BOUND, echo.frame()).await.unwrap() {
        back.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    assert_eq!(back, b"ab");
    assert_eq!(world.app(0, APP).await["starts"], far["starts"]);
    socket.close(None).await.unwrap();
    while timeout(BOUND, socket.next()).await.expect("the close is answered").is_some() {}
}

/// Reads one frame (RFC 9113 section 4.1): its type, and its payload.
async fn h2_frame(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    timeout(BOUND, stream.read_exact(&mut head)).await.expect("a frame or an end").ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], payload))
}

#[tokio::test]
async fn a_peer_that_leaves_says_goaway_and_its_streams_go_on_for_their_time() {
    const DATA: u8 = 0;
    const GOAWAY: u8 = 7;
    let mut world = World::new(1, shop(QUICK, "")).await;
    world.warm(0).await;
    let mut stream = TcpStream::connect(world.http(0)).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    // :method GET, :scheme http, :path /events, :authority x (RFC 7541 appendix A).
    let fields = b"\x82\x86\x04\x07/events\x01\x01x";
    bytes.extend([0, 0, fields.len() as u8, 1, 0x5, 0, 0, 0, 1]);
    bytes.extend(fields);
    stream.write_all(&bytes).await.unwrap();
    while h2_frame(&mut stream).await.expect("events come").0 != DATA {}
    let stream_ends = async {
        let goaway = loop {
            let (kind, payload) = h2_frame(&mut stream).await.expect("it says goodbye first");
            if kind == GOAWAY {
                break payload;
            }
        };
        assert_eq!(goaway[4..8], [0; 4], "NO_ERROR");
        while h2_frame(&mut stream).await.expect("its stream goes on").0 != DATA {}
        // The client takes the hint.
        drop(stream);
    };
    let (left, ()) = tokio::join!(world.mesh.stop(0), stream_ends);
    assert!(left.unwrap().success());
}

/// A response that never ends, after its first event.
async fn endless(world: &World, mut connection: Connection) -> Response<Incoming> {
    let answer = connection.send(world, Method::GET, "/events", empty());
    let mut answer = timeout(BOUND, answer).await.expect("it begins").unwrap();
    timeout(BOUND, answer.frame()).await.expect("an event comes").unwrap().unwrap();
    // Without its sender a connection ends, as soon as nothing is in flight on it.
    answer
}

#[tokio::test]
async fn requests_of_other_peers_have_the_whole_grace_of_a_drain() {
    let mut world = leaving_after("1h", "0s").await;
    let door = world.http(0);
    let [one, two] = Connection::both(&world, 1).await;
    let (one, two) = (endless(&world, one).await, endless(&world, two).await);
    let (left, ()) = tokio::join!(world.mesh.stop(0), async {
        until("the peer leaves", async || TcpStream::connect(door).await.is_err().then_some(()))
            .await;
        for mut answer in [one, two] {
            // Some seconds' worth, which is more than the app gets to stop.
            for _ in 0..60 {
                timeout(BOUND, answer.frame()).await.expect("it goes on").unwrap().unwrap();
            }
        }
    });
    assert!(left.unwrap().success());
}

#[tokio::test]
async fn requests_that_outlast_the_grace_of_a_drain_are_cut_off_and_not_waited_for_again() {
    let mut world = leaving_after("300ms", "10m").await;
    let mut endless_ones = Vec::new();
    for door in [0, 1] {
        for connection in Connection::both(&world, door).await {
            endless_ones.push(endless(&world, connection).await);
        }
    }
    let left = world.mesh.stop(0).await.expect("it leaves long before the app's grace is over");
    assert!(left.success());
    for mut answer in endless_ones {
        let ended = loop {
            match timeout(BOUND, answer.frame()).await.expect("it ends") {
                Some(Ok(_)) => {}
                other => break other,
            }
        };
        assert!(matches!(ended, Some(Err(_))), "it must not look whole: {ended:?}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_its_websocket_keeps_no_peer_from_leaving() {
    for leaves in [0, 1] {
        let mut world = leaving_after("300ms", "10m").await;
        let mut sockets = Vec::new();
        for door in [0, 1] {
            let (mut sends, unread) = websocket(&world, door).await.split();
            let sending = tokio::spawn(async move {
                let message = Message::binary(vec![7; 512 * 1024]);
                while sends.send(message.clone()).await.is_ok() {}
            });
            sockets.push((sending, unread));
        }
        app_stops_sending(&world).await;
        let left = world.mesh.stop(leaves).await.expect("it leaves");
        assert!(left.success());
        for (sending, _unread) in sockets {
            sending.abort();
        }
    }
}
