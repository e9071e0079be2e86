//! What is refused before it reaches an app: bytes that two parties could read in two ways.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use warmhop_testbed::client::Client;

use crate::support::{BOUND, QUICK, World, never_on, shop};

#[tokio::test]
async fn heads_beyond_their_bounds_are_refused_and_the_next_client_is_served() {
    let world = World::new(1, shop(QUICK, "")).await;
    world.warm(0).await;
    let many = format!("GET /whoami HTTP/1.1\r\nHost: x\r\n{}\r\n", "X-Many: 1\r\n".repeat(5000));
    let long =
        format!("GET /whoami HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(2 << 20));
    let target = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(2 << 20));
    for (what, request) in
        [("many fields", many), ("a long field", long), ("a long target", target)]
    {
        let answer = exchange(&world, request.as_bytes()).await;
        let status = answer.split(' ').nth(1).unwrap_or("closed");
        assert!(status.starts_with('4'), "{what}: {}", &answer[..answer.len().min(200)]);
    }
    Client::new().get(world.http(0), "/whoami").await.unwrap().ok().unwrap();
}

#[tokio::test]
async fn nothing_hides_behind_what_is_read_in_two_ways() {
    let world = World::new(1, shop(QUICK, "")).await;
    world.warm(0).await;
    let before = [
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\n\
         POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx: y\n\r\n",
        "GET /whoami HTTP/1.0\r\nHost: x\r\nConnection: keep-alive, upgrade\r\nUpgrade: x\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok",
        "\r\n\r\nGET /whoami HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    let hidden = [
        "POST /whoami HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /whoami HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    ];
    for before in before {
        let served = all_of(&world, 0, &format!("{before}nonsense\r\n\r\n"))
            .await
            .matches(" 200 OK")
            .count();
        for hidden in hidden {
            let answer = all_of(&world, 0, &format!("{before}{hidden}")).await;
            assert_eq!(
                answer.matches(" 200 OK").count(),
                served,
                "{before:?} {hidden:?}: {answer}"
            );
        }
    }
    let metrics = Client::new().get(world.mesh.peer(0).ports.admin, "/metrics").await.unwrap();
    let metrics = metrics.ok().unwrap().text();
    for reason in ["ambiguous-head", "malformed-chunks"] {
        let counted = format!("warmhop_clients_refused_total{{reason=\"{reason}\"}} ");
        let count = metrics.lines().find_map(|line| line.strip_prefix(&counted));
        assert!(count.is_some_and(|count| count != "0"), "{metrics}");
    }
}

#[tokio::test]
async fn nothing_a_client_sends_names_where_to_connect_or_reaches_a_peers_own_functions() {
    let world = World::new(2, shop(QUICK, "")).await;
    world.warm(0).await;
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = elsewhere.local_addr().unwrap();
    for request in [
        format!(
            "GET http://{target}/whoami HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n"
        ),
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n"),
        format!(
            "GET /whoami HTTP/1.1\r\nHost: {target}\r\nX-Forwarded-Host: {target}\r\n\
             Forwarded: host=\"{target}\"\r\nVia: 1.1 {target}\r\nWarmhop-Peer: {target}\r\n\
             Cookie: warmhop=AAAA.{target}\r\nConnection: close\r\n\r\n"
        ),
    ] {
        exchange(&world, request.as_bytes()).await;
    }
    let mut client = Client::new();
    for path in ["/v1/status", "/metrics", "/v1/drain", "/v1/requests/x"] {
        let reply = client.get(world.http(0), path).await.unwrap();
        assert_eq!(reply.status, 404, "{path} is the app's to answer, and it has no such page");
        assert_eq!(reply.peer(), Some("peer-1"), "{path}");
    }
    // Every answer above was read to its end, so whatever they led to has happened.
    let accepted = timeout(std::time::Duration::ZERO, elsewhere.accept()).await;
    assert!(accepted.is_err(), "somebody connected to an address of the client's choice");
}

#[tokio::test]
async fn nothing_hides_behind_an_upgrade() {
    let world = World::with(2, vec![shop(QUICK, "")], "", never_on(1)).await;
    world.warm(0).await;
    let hidden = "GET /headers HTTP/1.1\r\nHost: x\r\nWarmhop-Session: :eA==:\r\n\r\n";
    for door in [0, 1] {
        // A body that comes with the wish for another protocol is a body, and all of it is the
        // app's: what is left over would be read as the next client's request.
        let request = format!(
            "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close, upgrade\r\nUpgrade: x\r\n\
             Content-Length: {}\r\n\r\n{hidden}",
            hidden.len()
        );
        let answer = all_of(&world, door, &request).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(hidden), "{answer}");
        let chunked = "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close, upgrade\r\n\
             Upgrade: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        let answer = all_of(&world, door, chunked).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("hello"), "{answer}");
        for _ in 0..4 {
            let reply = Client::new().get(world.http(door), "/whoami").await.unwrap();
            assert!(reply.ok().unwrap().json().unwrap()["pid"].is_u64());
        }

        // What follows a wish that is not granted was not looked at, so it is not read.
        for wish in [
            "GET /whoami HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
            "CONNECT x:80 HTTP/1.1\r\n",
        ] {
            let ambiguous = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\
                 Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
            let answer = all_of(&world, door, &format!("{wish}Host: x\r\n\r\n{ambiguous}")).await;
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{wish}: {answer}");
            assert!(answer.to_lowercase().contains("connection: close\r\n"), "{wish}: {answer}");
        }
        // One that nobody grants any more costs nothing.
        let offers = "GET /whoami HTTP/1.1\r\nHost: x\r\nConnection: upgrade, http2-settings\r\n\
             Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n\
             GET /whoami HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let answer = all_of(&world, door, offers).await;
        assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 2, "{answer}");
    }
}

#[tokio::test]
async fn an_app_sees_the_host_that_it_was_chosen_by_and_no_forged_field() {
    let world = World::with(2, vec![shop(QUICK, "")], "", never_on(1)).await;
    world.warm(0).await;
    for door in [0, 1] {
        let request = "GET http://a.test:8080/headers HTTP/1.1\r\nHost: evil.test\r\n\
             Warmhop_Session: :eA==:\r\nX_Forwarded_For: 6.6.6.6\r\nCookie: a=1\r\nCookie: b=2\r\n\
             Connection: close\r\n\r\n";
        let answer = all_of(&world, door, request).await;
        let fields = &answer[answer.find("\r\n\r\n").unwrap()..];
        assert!(fields.contains("[\"host\",\"a.test:8080\"]"), "{fields}");
        assert!(fields.contains("[\"x-forwarded-host\",\"a.test:8080\"]"), "{fields}");
        assert!(fields.contains("[\"cookie\",\"a=1; b=2\"]"), "{fields}");
        for forged in ["evil", "_session", "6.6.6.6"] {
            assert!(!fields.contains(forged), "{forged}: {fields}");
        }
        for host in ["evil@a.test", "a.test:80,b.test", "a b"] {
            let request =
                format!("GET /whoami HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let answer = all_of(&world, door, &request).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{host}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_body_that_is_no_http_is_its_clients_fault() {
    let world = World::with(2, vec![shop(QUICK, "")], "", never_on(1)).await;
    world.warm(0).await;
    for door in [0, 1] {
        let request = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
             5\r\nhello\r\nno size\r\n";
        let answer = all_of(&world, door, request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
}

/// Sends raw bytes and returns all that comes back up to the end of the connection.
async fn all_of(world: &World, door: usize, request: &str) -> String {
    let mut stream = TcpStream::connect(world.http(door)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(BOUND, stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    // A reset behind the answer is as good an end: what was sent after it was not read.
    let _ = read.unwrap_or_else(|_| panic!("the connection stays open: {answer}"));
    answer
}

/// Sends raw bytes and returns what came back: after a refusal all of it, up to the close that
/// must follow; else at least the head of an answer.
async fn exchange(world: &World, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(world.http(0)).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let send = async {
        // A peer may answer and close before it has read a request that is too large.
        let _ = writer.write_all(request).await;
    };
    let receive = async {
        let mut chunk = [0; 4096];
        while let Ok(n @ 1..) = reader.read(&mut chunk).await {
            answer.extend_from_slice(&chunk[..n]);
            let refused = answer.starts_with(b"HTTP/1.1 4");
            if !refused && answer.windows(4).any(|end| end == b"\r\n\r\n") {
                break;
            }
        }
    };
    let talk = async { tokio::join!(send, receive) };
    timeout(BOUND, talk).await.expect("the peer answers, and closes what it refused");
    String::from_utf8_lossy(&answer).into_owned()
}
