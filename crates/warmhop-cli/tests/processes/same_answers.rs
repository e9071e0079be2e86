//! That an app's answer is the same for a client of its own peer as for one whose request comes there by a
//! hop: its status, its fields and its body.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use warmhop::config::{SessionMode, SessionPolicy, StartMode};
use warmhop::identity::Authority;
use warmhop::ids::{AppName, PeerId};
use warmhop::{App, AppSpec, Mesh, Running, StartContext, StartError};
use warmhop_cli::child::{ChildService, STATE_BYTES_MAX};
use warmhop_cli::config::Protocol;

use crate::role::BOUND;

/// An app at this port, which gets its sessions in the field.
struct AppAt(u16);

#[async_trait::async_trait]
impl App for AppAt {
    async fn start(&self, _: StartContext) -> Result<Running, StartError> {
        let service = ChildService::new(self.0, Protocol::Http1);
        Ok(Running::new(service).with_carried_session())
    }
}

/// Two peers and their front doors. The app at this port is ready at the first, and the other hops there.
async fn two_doors(
    port: u16,
    session: SessionMode,
    policy: SessionPolicy,
) -> (Vec<Mesh>, [SocketAddr; 2]) {
    let authority = Authority::generate("test").unwrap();
    let mut meshes: Vec<Mesh> = Vec::new();
    for (name, start) in [("one", StartMode::AtBoot), ("two", StartMode::Never)] {
        let mut spec = AppSpec::new(AppName::new("shop").unwrap());
        (spec.policy.start, spec.policy.session) = (start, session);
        let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let identity = authority.issue(&PeerId::new(name).unwrap()).unwrap();
        let mut builder = Mesh::builder(identity)
            .sessions(policy.clone())
            .front_door(door)
            .app(spec, AppAt(port));
        if let Some(first) = meshes.first() {
            builder = builder.seed(first.mesh_addr().to_string());
        }
        meshes.push(builder.start().await.unwrap());
    }
    let knows = async {
        let is_ready = |mesh: &Mesh| {
            let peers = mesh.status().peers;
            peers.iter().any(|it| it.apps.get("shop").is_some_and(|state| state == "ready"))
        };
        while !is_ready(&meshes[1]) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(BOUND, knows).await.expect("the second peer learns where the app is");
    let doors = [meshes[0].front_doors()[0], meshes[1].front_doors()[0]];
    (meshes, doors)
}

/// The fields of a request, and its path; `None` at the end of the connection.
async fn request(stream: &mut BufReader<TcpStream>) -> Option<(String, BTreeMap<String, String>)> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut fields = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        fields.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = fields.get("content-length").map_or(0, |length| length.parse().unwrap());
    stream.read_exact(&mut vec![0; length]).await.ok()?;
    Some((path, fields))
}

/// Answers of an app, to a request without a body, to one with a body, and to HEAD.
const ANSWERS: &[&str] = &[
    "200 OK\r\nContent-Length: 2\r\n\r\nok",
    "200 OK\r\nContent-Length: 0\r\n\r\n",
    "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n",
    "200 OK\r\nConnection: close\r\n\r\nok",
    "200 OK\r\nContent-Length: 2\r\nConnection: close\r\nKeep-Alive: timeout=5\r\n\r\nok",
    "200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "200 Fine\r\nContent-Length: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Empty:\r\n\r\nok",
    "200 OK\r\nContent-Length: 2\r\nVia: 1.0 own\r\nServer: x\r\nAge: 3\r\n\r\nok",
    "201 Created\r\nContent-Length: 2\r\nLocation: /a\r\n\r\nok",
    "204 No Content\r\n\r\n",
    "204 No Content\r\nETag: \"a\"\r\n\r\n",
    "204 No Content\r\nContent-Length: 0\r\n\r\n",
    "204 No Content\r\nContent-Length: 5\r\n\r\n",
    "204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
    "205 Reset Content\r\nContent-Length: 0\r\n\r\n",
    "206 Partial Content\r\nContent-Range: bytes 0-1/5\r\nContent-Length: 2\r\n\r\nok",
    "304 Not Modified\r\n\r\n",
    "304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 5\r\n\r\n",
    "304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 0\r\n\r\n",
    "304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
    "304 Not Modified\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n",
    "404 Not Found\r\nContent-Length: 2\r\n\r\nok",
    "500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
];

/// An app that gives the answer whose number is its path.
async fn answers() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            tokio::spawn(async move {
                while let Some((path, fields)) = request(&mut stream).await {
                    let answer = ANSWERS[path[1..].parse::<usize>().unwrap()];
                    let (head, _) = answer.split_once("\r\n\r\n").unwrap();
                    let is_head = fields.get("x-method").is_some_and(|method| method == "HEAD");
                    let answer = if is_head { format!("{head}\r\n\r\n") } else { answer.into() };
                    let answer = format!("HTTP/1.1 {answer}");
                    if stream.get_mut().write_all(answer.as_bytes()).await.is_err()
                        || answer.contains("Connection: close")
                    {
                        break;
                    }
                }
            });
        }
    });
    port
}

/// Whether the field differs for each request, or for each way.
fn differs(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["date", "warmhop-request-id", "proxy-status"].contains(&&*name)
}

/// An answer without what differs, as text.
async fn answer_over_one(door: SocketAddr, method: &str, number: usize, body: &str) -> String {
    let mut stream = TcpStream::connect(door).await.unwrap();
    let length = match method {
        "POST" => format!("Content-Length: {}\r\n", body.len()),
        _ => String::new(),
    };
    let request = format!(
        "{method} /{number} HTTP/1.1\r\nHost: a\r\nX-Method: {method}\r\n{length}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    // Another one behind it, which ends the connection: the answer before it is whole.
    let end = "GET /0 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let _ = stream.write_all(end.as_bytes()).await;
    let mut all = Vec::new();
    let read = timeout(BOUND, stream.read_to_end(&mut all)).await;
    let _ = read.unwrap_or_else(|_| panic!("it stays open: {}", all.escape_ascii()));
    let all = String::from_utf8(all).unwrap();
    let (head, rest) = all.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{all}"));
    let body = rest.split_once("HTTP/1.1 ").map_or(rest, |(body, _)| body);
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap();
    let mut fields: Vec<_> = lines
        .filter(|line| !differs(line.split(':').next().unwrap()))
        .map(|line| if line.starts_with("via: ") { without_hop(line) } else { line.to_owned() })
        .filter(|line| line != "via: ")
        .collect();
    fields.sort_unstable();
    format!("{status} {fields:?} {body:?}")
}

/// A `Via` field without the element of the peer that hopped.
fn without_hop(field: &str) -> String {
    let own = field.trim_end_matches("1.1 two");
    own.trim_end_matches(", ").to_owned()
}

async fn answer_over_two(door: SocketAddr, method: &str, number: usize, body: &str) -> String {
    let stream = TcpStream::connect(door).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let body = Full::<Bytes>::new(body.to_owned().into());
    let request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(format!("http://a/{number}"))
        .header("x-method", method);
    let answer = sender.send_request(request.body(body).unwrap());
    let (parts, body) = timeout(BOUND, answer).await.unwrap().unwrap().into_parts();
    let body = timeout(BOUND, body.collect()).await.unwrap();
    let body = body.map(|whole| (whole.trailers().cloned(), whole.to_bytes()));
    let mut fields: Vec<_> = parts
        .headers
        .iter()
        .filter(|(name, _)| !differs(name.as_str()))
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .map(|line| if line.starts_with("via: ") { without_hop(&line) } else { line })
        .filter(|line| line != "via: ")
        .collect();
    fields.sort_unstable();
    format!("{} {fields:?} {body:?}", parts.status)
}

#[tokio::test]
async fn an_answer_is_the_same_here_and_by_a_hop() {
    let (_meshes, doors) =
        two_doors(answers().await, SessionMode::None, SessionPolicy::default()).await;
    let mut wrong = Vec::new();
    for (number, answer) in ANSWERS.iter().enumerate() {
        for (method, body) in [("GET", ""), ("HEAD", ""), ("POST", ""), ("POST", "body")] {
            let over_one = async |door| answer_over_one(door, method, number, body).await;
            let over_two = async |door| answer_over_two(door, method, number, body).await;
            let of_both = [
                [over_one(doors[0]).await, over_one(doors[1]).await],
                [over_two(doors[0]).await, over_two(doors[1]).await],
            ];
            for [here, by_hop] in of_both {
                if here != by_hop {
                    wrong.push(format!("{method} {answer:?}\n  here  {here}\n  a hop {by_hop}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// An app that sets a session of as many bytes as its path says, and tells how long the field with it is
/// that came.
async fn keeps_sessions() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            tokio::spawn(async move {
                while let Some((path, fields)) = request(&mut stream).await {
                    let came = fields.get("warmhop-session").map_or(0, String::len).to_string();
                    let length = came.len();
                    let bytes = path[1..].parse::<usize>().unwrap_or_default();
                    let set = match bytes / 3 {
                        0 => String::new(),
                        threes => format!("Warmhop-Session: :{}:\r\n", "QUFB".repeat(threes)),
                    };
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{set}\r\n");
                    let _ = stream.get_mut().write_all((head + &came).as_bytes()).await;
                }
            });
        }
    });
    port
}

/// The status of an answer, its cookie, and the rest.
async fn asked(door: SocketAddr, path: &str, cookie: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(door).await.unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n");
    let rest = format!("Cookie: {cookie}\r\nConnection: close\r\n\r\n");
    stream.write_all((head + &rest).as_bytes()).await.unwrap();
    let mut all = String::new();
    timeout(BOUND, stream.read_to_string(&mut all)).await.unwrap().unwrap();
    let cookie = all.lines().find_map(|line| line.strip_prefix("set-cookie: "));
    let cookie = cookie.and_then(|cookie| cookie.split(';').next()).unwrap_or_default().to_owned();
    (all[9..12].parse().unwrap(), cookie, all)
}

#[tokio::test]
async fn a_session_is_carried_up_to_its_bound_and_a_larger_one_is_reported_with_its_size() {
    let port = keeps_sessions().await;
    let largest = STATE_BYTES_MAX / 3 * 3;
    let policy = |bytes| SessionPolicy::default().with(|made| made.state_bytes_max = bytes);
    let (_meshes, doors) = two_doors(port, SessionMode::Portable, policy(STATE_BYTES_MAX)).await;
    for door in doors {
        let (status, cookie, all) = asked(door, &format!("/{largest}"), "").await;
        assert_eq!(status, 200, "{all}");
        for door in doors {
            let (status, _, all) = asked(door, "/", &cookie).await;
            assert_eq!(status, 200, "{all}");
            assert!(all.ends_with(&format!("\r\n\r\n{}", largest / 3 * 4 + 2)), "{all}");
        }
    }
    // Where less may be carried, it is too large and nothing else.
    let (_meshes, doors) = two_doors(port, SessionMode::Portable, policy(4096)).await;
    for door in doors {
        let (status, _, all) = asked(door, &format!("/{largest}"), "").await;
        assert_eq!(status, 502, "{all}");
        for part in ["session-too-large", &format!("{largest} bytes"), "registers"] {
            assert!(all.contains(part), "{part}: {all}");
        }
    }
}
