//! Every example that stays up is started here, asked as its clients would ask it, and loses a peer
//! where that makes a difference.
#![allow(missing_docs, reason = "a test crate")]
#![allow(clippy::unwrap_used, reason = "tests: a failed step is a failed test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use http::{Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// No wait takes longer; only a failing one takes as long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running example.
struct Program {
    child: Child,
    typing: ChildStdin,
    lines: Receiver<String>,
}

impl Program {
    fn start(name: &str, args: &[&str]) -> Self {
        let mut program = Command::new(built(name));
        let mut child =
            program.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let typing = child.stdin.take().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = sync_channel(64);
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, typing, lines }
    }

    /// The rest of the next line that begins with `start`.
    fn rest_of_line(&self, start: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("it never said {start:?}"));
            if let Some(rest) = line.strip_prefix(start) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Where its three peers answer.
    fn peers(&self) -> [Uri; 3] {
        ["one ", "two ", "three "].map(|name| self.rest_of_line(name).parse().unwrap())
    }

    fn end(&mut self, peer: &str) {
        writeln!(self.typing, "{peer}").unwrap();
        self.rest_of_line(&format!("{peer} is gone"));
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The example's program, which Cargo builds before it runs all tests of this package.
fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().with_file_name("examples").join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("{name}.rs"));
    let written = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    assert!(
        written(&program).is_some_and(|at| Some(at) >= written(&source)),
        "{} is missing or older than its source: `cargo test -p warmhop-examples` without \
         `--test` builds it",
        program.display(),
    );
    program
}

/// A client that keeps its cookies.
#[derive(Default, Clone)]
struct Client {
    cookies: BTreeMap<String, String>,
}

impl Client {
    /// Asks over HTTP/1.1; what cannot be answered just now is asked again.
    async fn ask(&mut self, at: &Uri, body: Option<&str>) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let (status, text) = self.ask_once(at, body).await;
            if status == StatusCode::OK {
                return text;
            }
            let for_now = status == StatusCode::SERVICE_UNAVAILABLE && Instant::now() < end;
            assert!(for_now, "{at}: {status}: {text}");
        }
    }

    async fn ask_once(&mut self, at: &Uri, body: Option<&str>) -> (StatusCode, String) {
        let stream = TcpStream::connect(at.authority().unwrap().as_str()).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let cookies: Vec<_> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = match body {
            Some(_) => Request::post(at.path()),
            None => Request::get(at.path()),
        };
        let request = request
            .header("host", at.authority().unwrap().as_str())
            .header("cookie", cookies.join("; "))
            .body(Body::from(body.unwrap_or_default().to_owned()))
            .unwrap();
        let asked = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
        let response = asked.expect("an answer in time").unwrap();
        for set in response.headers().get_all("set-cookie") {
            let pair = set.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
        (response.status(), text(response).await)
    }
}

async fn text(response: Response<hyper::body::Incoming>) -> String {
    let body = to_bytes(Body::new(response.into_body()), 1 << 20).await.unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

#[test]
fn embed_shows_a_session_that_goes_on_across_the_cut_over() {
    let program = Program::start("embed", &[]);
    let mut visits = (1..).map(|n| program.rest_of_line(&format!("visit {n}, served by ")));
    let by_one: Vec<_> = visits.by_ref().take_while(|visit| visit.starts_with("one ")).collect();
    assert_ne!(by_one.len(), 0, "it did not hop");
    let again = visits.next().unwrap();
    assert!(again.starts_with("two "), "after its first answer: {again:?}");
}

#[tokio::test]
async fn operated_is_asked_by_operators_as_a_peer_of_the_binary_is() {
    let program = Program::start("operated", &[]);
    let admin: Uri = program.rest_of_line("operators ask one at ").parse().unwrap();
    let [one, ..] = program.peers();
    let mut client = Client::default();
    assert_eq!(client.ask(&one, None).await, "hello\n");
    let at = |path| format!("{admin}{path}").parse::<Uri>().unwrap();
    let status = client.ask(&at("v1/status"), None).await;
    assert!(status.starts_with("{\"peer\":{\"name\":\"one\""), "{status}");
    assert!(client.ask(&at(""), None).await.starts_with("<!doctype html>"));
    let other = client.ask(&at("v1/peers/two/v1/status"), None).await;
    assert!(other.starts_with("{\"peer\":{\"name\":\"two\""), "{other}");
}

#[tokio::test]
async fn axum_session_goes_with_its_client_and_outlives_its_owner() {
    let mut program = Program::start("axum_session", &[]);
    let [one, two, three] = program.peers();
    let mut client = Client::default();
    assert_eq!(client.ask(&one, None).await, "nothing yet");
    assert_eq!(client.ask(&one, Some("Emma")).await, "Emma");
    assert_eq!(client.ask(&two, Some("Ulysses")).await, "Emma, Ulysses");
    assert_eq!(Client::default().ask(&two, None).await, "nothing yet");
    program.end("one");
    assert_eq!(client.ask(&three, None).await, "Emma, Ulysses");
    assert_eq!(client.ask(&two, Some("Solaris")).await, "Emma, Ulysses, Solaris");
}

#[tokio::test]
async fn tower_sessions_are_known_at_every_peer_and_outlive_the_one_that_made_them() {
    let mut program = Program::start("tower_sessions", &[]);
    let [one, two, three] = program.peers();
    let at = |peer: &Uri, path| format!("{peer}{path}").parse::<Uri>().unwrap();
    let mut ada = Client::default();
    assert_eq!(ada.ask(&one, None).await, "who are you?\n");
    ada.ask(&at(&one, "login"), Some("Ada")).await;
    assert_eq!(ada.ask(&two, None).await, "hello Ada, for the 1. time\n");
    assert_eq!(Client::default().ask(&two, None).await, "who are you?\n");
    program.end("one");
    assert_eq!(ada.ask(&three, None).await, "hello Ada, for the 2. time\n");
    assert_eq!(ada.ask(&two, None).await, "hello Ada, for the 3. time\n");
    let mut stolen = ada.clone();
    ada.ask(&at(&three, "logout"), Some("")).await;
    assert_eq!(stolen.ask(&two, None).await, "who are you?\n");
}

#[tokio::test]
async fn hop_layer_answers_by_another_peer_while_the_service_is_not_ready() {
    // Longer than any test lasts.
    let program = Program::start("hop_layer", &["3600"]);
    let [_, two, three] = program.peers();
    let mut client = Client::default();
    for _ in 0..3 {
        assert_eq!(client.ask(&two, None).await, "found by one\n");
        assert_eq!(client.ask(&three, None).await, "found by one\n");
    }
}

#[tokio::test]
async fn hop_layer_answers_by_itself_once_the_service_is_ready() {
    let mut program = Program::start("hop_layer", &["2"]);
    let [_, two, three] = program.peers();
    let mut client = Client::default();
    let end = Instant::now() + PATIENCE;
    loop {
        match client.ask(&two, None).await.as_str() {
            "found by two\n" => break,
            by => assert_eq!(by, "found by one\n"),
        }
        assert!(Instant::now() < end, "two never answered by itself");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    program.end("one");
    assert_eq!(client.ask(&two, None).await, "found by two\n");
    assert!(client.ask(&three, None).await.starts_with("found by t"));
}

/// A client that trusts what `file` holds.
fn tls(file: &str, alpn: &str) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file).unwrap()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn front_doors_answer_http_1_and_http_2_with_and_without_tls() {
    let program = Program::start("front_doors", &[]);
    let plain: Uri = program.rest_of_line("HTTP/1.1 and HTTP/2").parse().unwrap();
    let secure = program.rest_of_line("the same over TLS");
    let (secure, cert_file) = secure.split_once(" trusting ").unwrap();
    let secure: Uri = secure.trim().parse().unwrap();
    let own: Uri = program.rest_of_line("a server of one's own").parse().unwrap();

    let by_http = "hello 127.0.0.1, by http\n";
    assert_eq!(Client::default().ask(&plain, None).await, by_http);
    assert_eq!(Client::default().ask(&own, None).await, by_http);
    let stream = TcpStream::connect(plain.authority().unwrap().as_str()).await.unwrap();
    assert_eq!(over_http2(&plain, stream).await, by_http);

    for alpn in ["h2", "http/1.1"] {
        let stream = TcpStream::connect(secure.authority().unwrap().as_str()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tls(cert_file, alpn).connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn.as_bytes()));
        let answer = if alpn == "h2" {
            over_http2(&secure, stream).await
        } else {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let request = Request::get("/").header("host", "localhost").body(Body::empty());
            text(sender.send_request(request.unwrap()).await.unwrap()).await
        };
        assert_eq!(answer, "hello 127.0.0.1, by https\n");
    }
    // It removes the file itself when it is asked to end, and not when it is killed as it is here.
    std::fs::remove_file(cert_file).unwrap();
}

async fn over_http2<IO>(uri: &Uri, io: IO) -> String
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let response =
        sender.send_request(Request::get(uri).body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
    text(response).await
}
