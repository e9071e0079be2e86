//! What clients meet at a peer: HTTP/1.1, HTTP/2 and TLS at its own front doors, and at the HTTP
//! server that an embedding service brings.
#![allow(missing_docs, reason = "a test crate")]
#![allow(clippy::unwrap_used, reason = "tests: a failed step is a failed test")]

mod bed;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::routing::{get, post};
use bed::{PATIENCE, eventually, peer};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Request, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ClientConfig, DEFAULT_VERSIONS, ProtocolVersion, RootCertStore, SupportedProtocolVersion,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use warmhop::config::{SessionMode, StartMode};
use warmhop::identity::{Authority, FrontDoorTls};
use warmhop::ids::AppName;
use warmhop::{AppSpec, Body, ClientInfo, Mesh, Session, app_fn};

/// Tells what it sees of the request, and keeps a session.
async fn tell(session: axum::Extension<Session>, headers: HeaderMap) -> String {
    session.set("seen").unwrap();
    let field = |name| headers.get(name).map_or("-", |value| value.to_str().unwrap());
    format!("{} {}", field("x-forwarded-proto"), field("x-forwarded-for"))
}

/// Takes a request and never reads its body.
async fn leave_unread(_body: axum::body::Body) {
    std::future::pending::<()>().await;
}

/// How long a request's body is.
async fn count(body: Bytes) -> String {
    body.len().to_string()
}

/// What the request says of trailers, followed by one.
async fn with_trailers(headers: HeaderMap) -> http::Response<axum::body::Body> {
    let te: Vec<_> = headers.get_all("te").iter().map(|it| it.to_str().unwrap()).collect();
    let said = Bytes::from(format!("[{}]", te.join("|")));
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())]);
    let frames =
        [Ok(Frame::data(said)), Ok::<_, std::convert::Infallible>(Frame::trailers(trailers))];
    let body = axum::body::Body::new(StreamBody::new(futures_util::stream::iter(frames)));
    http::Response::builder().header("trailer", "x-sum").body(body).unwrap()
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// One peer with the app ready, and whatever front doors are asked for.
async fn one_peer(with: impl FnOnce(warmhop::Builder) -> warmhop::Builder) -> Mesh {
    let one = peer("one");
    let identity = Authority::generate("test").unwrap().issue(&one).unwrap();
    let mut spec = AppSpec::new(AppName::new("tell").unwrap());
    spec.policy.session = SessionMode::Portable;
    spec.policy.start = StartMode::AtBoot;
    let app = app_fn(|| async {
        let routes = Router::new()
            .route("/", get(tell))
            .route("/unread", post(leave_unread))
            .route("/count", post(count))
            .route("/trailers", get(with_trailers).post(with_trailers));
        Ok::<_, std::convert::Infallible>(routes)
    });
    with(Mesh::builder(identity).app(spec, app)).start().await.unwrap()
}

/// A certificate for `localhost`, and its key, in PEM.
fn certificate() -> (rcgen::Certificate, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (made.cert, made.signing_key.serialize_pem())
}

async fn tls_client(
    addr: SocketAddr,
    trusted: &[u8],
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    tls_client_of(DEFAULT_VERSIONS, addr, trusted, alpn).await
}

async fn tls_client_of(
    versions: &[&'static SupportedProtocolVersion],
    addr: SocketAddr,
    trusted: &[u8],
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(trusted.to_vec())).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

struct Seen {
    version: Version,
    cookie: String,
    text: String,
}

async fn seen(response: http::Response<hyper::body::Incoming>) -> Seen {
    assert_eq!(response.status(), StatusCode::OK);
    let cookie = response.headers().get("set-cookie");
    let cookie = cookie.map_or(String::new(), |cookie| cookie.to_str().unwrap().to_owned());
    let version = response.version();
    let body = tokio::time::timeout(PATIENCE, response.into_body().collect()).await.unwrap();
    Seen { version, cookie, text: String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap() }
}

/// Sends two requests over one HTTP/1.1 connection.
async fn over_http1<IO>(io: IO) -> [Seen; 2]
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async || {
        let request = Request::get("/").header("host", "localhost").body(Body::empty()).unwrap();
        sender.ready().await.unwrap();
        seen(sender.send_request(request).await.unwrap()).await
    };
    [ask().await, ask().await]
}

/// Sends two requests at once over one HTTP/2 connection.
async fn over_http2<IO>(io: IO, scheme: &str) -> [Seen; 2]
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
    tokio::spawn(connection);
    let ask = async || {
        let uri = format!("{scheme}://localhost/");
        let request = Request::get(uri).body(Body::empty()).unwrap();
        seen(sender.clone().send_request(request).await.unwrap()).await
    };
    let (first, second) = tokio::join!(ask(), ask());
    [first, second]
}

#[tokio::test]
async fn trailers_reach_every_client_that_does_not_forbid_them() {
    let listener = listener().await;
    let addr = listener.local_addr().unwrap();
    let _mesh = one_peer(|builder| builder.front_door(listener)).await;
    // One connection: the first request is read otherwise than those behind it.
    let mut stream = BufReader::new(TcpStream::connect(addr).await.unwrap());
    let cases = [
        ("", "[]", true),
        ("", "[]", true),
        ("TE: trailers\r\nConnection: TE\r\n", "[trailers]", true),
        ("TE: gzip, trailers;q=0.5\r\nConnection: TE\r\n", "[trailers]", true),
        ("TE: gzip\r\nConnection: TE\r\n", "[]", true),
        ("TE: trailers;q=0\r\n", "", false),
        ("Transfer-Encoding: chunked\r\n", "[]", true),
        ("Content-Length: 3\r\n", "[]", true),
        ("", "[]", true),
    ];
    for (at, (fields, said, sent)) in cases.into_iter().enumerate() {
        let (method, body) = match fields {
            it if it.starts_with("Tr") => ("POST", "2\r\nhi\r\n0\r\n\r\n"),
            it if it.starts_with("Co") => ("POST", "abc"),
            _ => ("GET", ""),
        };
        let request =
            format!("{method} /trailers HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n{body}");
        // In one piece, and in two of which the second begins within the head.
        for cut in [request.len(), request.len() - body.len() - 3] {
            stream.write_all(&request.as_bytes()[..cut]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.write_all(&request.as_bytes()[cut..]).await.unwrap();
            let (mut answer, mut line) = (String::new(), String::new());
            // The head, and then the chunks with what follows them.
            for _ in 0..2 {
                line.clear();
                while line != "\r\n" {
                    line.clear();
                    let read = tokio::time::timeout(PATIENCE, stream.read_line(&mut line));
                    assert_ne!(read.await.unwrap().unwrap(), 0, "{at}: {answer}");
                    answer.push_str(&line);
                }
            }
            assert!(answer.starts_with("HTTP/1.1 200"), "{at}: {answer}");
            assert!(answer.contains(said), "{at}: {answer}");
            assert_eq!(answer.ends_with("\r\n0\r\nx-sum: 42\r\n\r\n"), sent, "{at}: {answer}");
        }
    }
}

#[tokio::test]
async fn one_door_without_tls_speaks_http_1_and_http_2() {
    let door = listener().await;
    let mesh = one_peer(|builder| builder.front_door(door)).await;
    let addr = mesh.front_doors()[0];
    for answer in over_http1(TcpStream::connect(addr).await.unwrap()).await {
        assert_eq!((answer.version, answer.text.as_str()), (Version::HTTP_11, "http 127.0.0.1"));
        assert!(!answer.cookie.contains("Secure"), "{}", answer.cookie);
    }
    for answer in over_http2(TcpStream::connect(addr).await.unwrap(), "http").await {
        assert_eq!((answer.version, answer.text.as_str()), (Version::HTTP_2, "http 127.0.0.1"));
    }
    mesh.shutdown().await;
}

#[tokio::test]
async fn a_door_with_tls_speaks_what_its_client_offers() {
    let (cert, key) = certificate();
    let tls = FrontDoorTls::from_pem(cert.pem().as_bytes(), key.as_bytes()).unwrap();
    let door = listener().await;
    let mesh = one_peer(|builder| builder.front_door_tls(door, tls)).await;
    let addr = mesh.front_doors()[0];

    for alpn in [&[b"h2".as_slice(), b"http/1.1"][..], &[b"http/1.1", b"h2"], &[b"h2"]] {
        let stream = tls_client(addr, cert.der(), alpn).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        for answer in over_http2(stream, "https").await {
            assert_eq!(
                (answer.version, answer.text.as_str()),
                (Version::HTTP_2, "https 127.0.0.1")
            );
            assert!(answer.cookie.contains("Secure"), "{}", answer.cookie);
        }
    }
    for (alpn, agreed) in [(&[b"http/1.1".as_slice()][..], Some(&b"http/1.1"[..])), (&[], None)] {
        let stream = tls_client(addr, cert.der(), alpn).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed);
        for answer in over_http1(stream).await {
            assert_eq!(
                (answer.version, answer.text.as_str()),
                (Version::HTTP_11, "https 127.0.0.1")
            );
            assert!(answer.cookie.contains("Secure"), "{}", answer.cookie);
        }
    }
    assert!(tls_client(addr, cert.der(), &[b"smtp"]).await.is_err());
    mesh.shutdown().await;
}

#[tokio::test]
async fn a_door_with_tls_serves_clients_of_either_version() {
    let (cert, key) = certificate();
    let tls = FrontDoorTls::from_pem(cert.pem().as_bytes(), key.as_bytes()).unwrap();
    let door = listener().await;
    let mesh = one_peer(|builder| builder.front_door_tls(door, tls)).await;
    for (version, agreed) in
        [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)]
    {
        let addr = mesh.front_doors()[0];
        let stream = tls_client_of(&[version], addr, cert.der(), &[b"http/1.1"]).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(agreed));
        for answer in over_http1(stream).await {
            assert_eq!(answer.text, "https 127.0.0.1");
        }
    }
    mesh.shutdown().await;
}

/// The value of a series of a peer's metrics; 0 if there is none.
fn stands_at(mesh: &Mesh, series: &str) -> u64 {
    let metrics = mesh.metrics();
    let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

#[tokio::test]
async fn connections_and_handshakes_that_failed_are_counted_by_their_door() {
    let (cert, key) = certificate();
    let tls = FrontDoorTls::from_pem(cert.pem().as_bytes(), key.as_bytes()).unwrap();
    let door = listener().await;
    let mesh = one_peer(|builder| builder.front_door_tls(door, tls)).await;
    let addr = mesh.front_doors()[0];
    let open = |door| stands_at(&mesh, &format!("warmhop_connections{{door=\"{door}\"}}"));
    let failed = |door, reason| {
        let labels = format!("{{door=\"{door}\",reason=\"{reason}\"}}");
        stands_at(&mesh, &format!("warmhop_tls_failures_total{labels}"))
    };

    let held = tls_client(addr, cert.der(), &[b"http/1.1"]).await.unwrap();
    eventually("a connection is counted", || open("front") == 1).await;
    let begun = "warmhop_tls_failures_total{door=\"front\",reason=\"expired\"} 0";
    assert!(mesh.metrics().contains(begun), "what never happened is there all the same");

    let mut plain = TcpStream::connect(addr).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    eventually("one without TLS is counted as such", || failed("front", "not-tls") == 1).await;
    let (other, _) = certificate();
    assert!(tls_client(addr, other.der(), &[b"http/1.1"]).await.is_err());
    eventually("one who refuses the certificate", || failed("front", "refused") == 1).await;
    assert!(tls_client(addr, cert.der(), &[b"smtp"]).await.is_err());
    eventually("one who wants another protocol", || failed("front", "protocol") == 1).await;
    drop(TcpStream::connect(addr).await.unwrap());
    eventually("one who leaves", || failed("front", "left") == 1).await;
    drop((held, plain));
    eventually("all are gone", || open("front") == 0).await;

    // Of another authority, with the same names.
    let stranger = Authority::generate("test").unwrap().issue(&peer("two")).unwrap();
    let stranger =
        Mesh::builder(stranger).seed(mesh.mesh_addr().to_string()).start().await.unwrap();
    let of_mesh = || failed("mesh", "refused") + failed("mesh", "certificate");
    eventually("a peer of another authority", || of_mesh() > 0).await;
    stranger.shutdown().await;

    let own = mesh.connected("own");
    assert_eq!(open("own"), 1);
    drop(own);
    assert_eq!(open("own"), 0);
    mesh.shutdown().await;
}

#[tokio::test]
async fn a_configuration_of_ones_own_is_used_as_it_is() {
    let (cert, key) = certificate();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let key = tokio_rustls::rustls::pki_types::pem::PemObject::from_pem_slice(key.as_bytes());
    let mut config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let door = listener().await;
    let mesh = one_peer(|builder| builder.front_door_tls(door, config.into())).await;
    let offered: &[&[u8]] = &[b"h2", b"http/1.1"];
    let stream = tls_client(mesh.front_doors()[0], cert.der(), offered).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    over_http1(stream).await;
    mesh.shutdown().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart_and_a_broken_one_is_not() {
    let dir = std::env::temp_dir().join(format!("warmhop-front-doors-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (cert_path, key_path) = (dir.join("cert.pem"), dir.join("key.pem"));
    let (old, old_key) = certificate();
    std::fs::write(&cert_path, old.pem()).unwrap();
    std::fs::write(&key_path, &old_key).unwrap();
    let tls = FrontDoorTls::from_files(&cert_path, &key_path).unwrap();
    let door = listener().await;
    let mesh = one_peer(|builder| builder.front_door_tls(door, tls.clone())).await;
    let addr = mesh.front_doors()[0];
    let presents =
        async |cert: &rcgen::Certificate| tls_client(addr, cert.der(), &[]).await.is_ok();
    assert!(presents(&old).await);
    assert!(!tls.reload().unwrap(), "nothing changed");

    let (new, new_key) = certificate();
    std::fs::write(&cert_path, new.pem()).unwrap();
    let refused = tls.reload().expect_err("the key is still the old one").to_string();
    assert!(refused.contains("cert.pem") && refused.contains("does not go with"), "{refused}");
    assert!(presents(&old).await);

    std::fs::write(&key_path, new_key).unwrap();
    // The running peer looks at its files by itself.
    let renewed = async {
        while !presents(&new).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.expect("the new certificate is used");
    assert!(!presents(&old).await);
    assert!(!tls.reload().unwrap(), "it is the one in use");
    mesh.shutdown().await;
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test]
async fn behind_ones_own_server_the_app_learns_who_asks() {
    let mesh = one_peer(|builder| builder).await;
    let service = ServiceBuilder::new()
        .map_request(|mut request: axum::extract::Request| {
            let from = request.extensions().get::<ConnectInfo<SocketAddr>>().unwrap().0;
            request.extensions_mut().insert(ClientInfo::new(from).secure(true));
            request
        })
        .service(mesh.service());
    let router = Router::new().fallback_service(service);
    let server = listener().await;
    let addr = server.local_addr().unwrap();
    let closing = CancellationToken::new();
    let serving = axum::serve(server, router.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(closing.clone().cancelled_owned());
    let serving = tokio::spawn(serving.into_future());
    for answer in over_http1(TcpStream::connect(addr).await.unwrap()).await {
        assert_eq!(answer.text, "https 127.0.0.1");
        assert!(answer.cookie.contains("Secure"), "{}", answer.cookie);
    }
    closing.cancel();
    serving.await.unwrap().unwrap();
    mesh.shutdown().await;
}

/// Whether the peer closes a connection on which no more is sent.
async fn is_closed<IO: AsyncRead + Unpin>(mut io: IO) -> bool {
    // However it is closed: what counts is that it is.
    let rest = async { io.read_to_end(&mut Vec::new()).await };
    tokio::time::timeout(Duration::from_secs(600), rest).await.is_ok()
}

/// The clock goes on by itself whenever nothing else is to be done, so that minutes take no time.
#[tokio::test(start_paused = true)]
async fn a_client_that_never_comes_to_the_point_is_not_waited_for() {
    let (cert, key) = certificate();
    let tls = FrontDoorTls::from_pem(cert.pem().as_bytes(), key.as_bytes()).unwrap();
    let (plain, with_tls) = (listener().await, listener().await);
    let mesh = one_peer(|builder| builder.front_door(plain).front_door_tls(with_tls, tls)).await;
    let [plain, with_tls] = mesh.front_doors()[..] else { panic!("two doors") };
    for said in ["", "P", "PRI * HT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "G", "GET / HTTP/1.1\r\n"]
    {
        let mut stream = TcpStream::connect(plain).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        assert!(is_closed(stream).await, "after {said:?}");
        for alpn in [&[][..], &[&b"h2"[..]], &[&b"http/1.1"[..]]] {
            let mut stream = tls_client(with_tls, cert.der(), alpn).await.unwrap();
            stream.write_all(said.as_bytes()).await.unwrap();
            assert!(is_closed(stream).await, "after {said:?} in TLS");
        }
    }
    // A TLS record of a handshake, without what it announces.
    for said in [&[][..], &[0x16, 3, 1, 2, 0]] {
        let mut stream = TcpStream::connect(with_tls).await.unwrap();
        stream.write_all(said).await.unwrap();
        assert!(is_closed(stream).await, "after {said:?} of a handshake");
    }
    mesh.shutdown().await;
}

#[tokio::test]
async fn uploads_that_their_app_does_not_read_hold_up_no_other_on_their_connection() {
    const PIECE: Bytes = Bytes::from_static(&[7; 16 * 1024]);
    let door = listener().await;
    let mesh = one_peer(|builder| builder.front_door(door)).await;
    let stream = TcpStream::connect(mesh.front_doors()[0]).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let upload = |path: &str, pieces: usize, sent: &Arc<AtomicUsize>| {
        let sent = Arc::clone(sent);
        let pieces = futures_util::stream::iter(0..pieces).map(move |_| {
            sent.fetch_add(PIECE.len(), Ordering::Relaxed);
            Ok::<_, std::convert::Infallible>(Frame::data(PIECE))
        });
        let request = Request::post(format!("http://localhost{path}"));
        sender.clone().send_request(request.body(StreamBody::new(pieces)).unwrap())
    };
    let stuck = Arc::new(AtomicUsize::new(0));
    let unread: Vec<_> =
        (0..20).map(|_| tokio::spawn(upload("/unread", usize::MAX, &stuck))).collect();
    // HTTP/2 libraries grant a megabyte to a whole connection unless they are configured otherwise.
    eventually("they have sent what they may", || stuck.load(Ordering::Relaxed) >= 1024 * 1024)
        .await;
    let answer = tokio::time::timeout(PATIENCE, upload("/count", 64, &Arc::default()));
    let answer = answer.await.expect("it is not held up").unwrap();
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, (64 * PIECE.len()).to_string());
    for task in unread {
        task.abort();
    }
    mesh.vanish().await;
}
