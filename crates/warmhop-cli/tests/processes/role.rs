//! The apps and peers of these tests: this test program itself, started again with a role in
//! its environment, which [`a_role_is_played`] plays.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::routing::{any, get};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;
use warmhop::Body;
use warmhop::ids::AppName;
use warmhop_cli::child::{ChildApp, ChildService};
use warmhop_cli::config::{Alive, Inherit, Protocol, Ready};
use warmhop_cli::host::confine::Confine;

/// The variable that names the role of a process.
pub(crate) const ROLE: &str = "WARMHOP_TEST_ROLE";
/// How this program is started to play one.
pub(crate) const ARGUMENTS: [&str; 3] = ["--exact", "role::a_role_is_played", "--nocapture"];
/// A condition that does not come true within this never will.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// An app that plays `role`, with more in its environment.
pub(crate) fn app(role: &str, env: &[(&str, &str)]) -> ChildApp {
    let program = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    let mut run = vec![program];
    run.extend(ARGUMENTS.map(str::to_owned));
    let mut env: BTreeMap<String, String> =
        env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    env.insert(ROLE.into(), role.into());
    ChildApp { env, ..shell_app(run) }
}

pub(crate) fn shell_app(run: Vec<String>) -> ChildApp {
    ChildApp {
        run,
        dir: std::env::temp_dir(),
        inherit: Inherit::All,
        env_file: None,
        env: BTreeMap::new(),
        ready: Ready { path: Some("/healthz".into()), timeout: BOUND, ..Ready::default() },
        alive: Alive::default(),
        redis: None,
        protocol: Protocol::Http1,
        carried: false,
        guard: PathBuf::from(env!("CARGO_BIN_EXE_warmhop")),
        confine: Confine::default(),
        hidden: Vec::new(),
    }
}

pub(crate) fn sh(script: &str) -> ChildApp {
    shell_app(["sh", "-c", script].map(str::to_owned).to_vec())
}

pub(crate) fn name() -> AppName {
    AppName::new("shop").unwrap()
}

/// A folder for one test's files.
pub(crate) fn scratch(test: &str) -> PathBuf {
    let dir =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

pub(crate) async fn ask(service: &ChildService, request: Request<Body>) -> (StatusCode, String) {
    let response = service.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

pub(crate) async fn get_text(service: &ChildService, path: &str) -> String {
    ask(service, Request::get(path).body(Body::empty()).unwrap()).await.1
}

pub(crate) async fn pids(service: &ChildService) -> Vec<i32> {
    get_text(service, "/pids").await.split(' ').map(|pid| pid.parse().unwrap()).collect()
}

/// Whether the process runs; one that is dead and only waits to be reaped does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| {
        !rest.is_empty() && !matches!(rest.trim_start().as_bytes().first(), Some(b'Z' | b'X'))
    })
}

pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    wait_within(BOUND, what, condition);
}

/// The same for what takes its time on a machine with much else to do.
pub(crate) fn wait_within(bound: Duration, what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + bound;
    while !condition() {
        assert!(Instant::now() < until, "{what}: not within {bound:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn wait_until_gone(pids: &[i32]) {
    wait_until(&format!("{pids:?} are gone"), || !pids.iter().any(|pid| is_alive(*pid)));
}

/// Where it has no role, this is the test of the test app itself.
#[test]
fn a_role_is_played() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match std::env::var(ROLE).as_deref() {
        Ok("app") => runtime.block_on(play_app()),
        Ok("peer") => runtime.block_on(play_peer()),
        Ok("descendant") => {
            // It leaves the process group and session, as daemons do.
            nix::unistd::setsid().unwrap();
            loop {
                std::thread::park();
            }
        }
        Ok(other) => panic!("there is no role {other}"),
        Err(_) => runtime.block_on(async {
            let launched = app("app", &[]).launch(&name()).await.unwrap();
            let post = Request::post("/echo").body(Body::from("x".repeat(1 << 20))).unwrap();
            let (status, body) = ask(&launched.service, post).await;
            assert_eq!((status, body.len()), (StatusCode::OK, 1 << 20));
            assert_eq!(pids(&launched.service).await.len(), 2, "itself and a descendant");
            launched.process.stop(Duration::ZERO).await;
        }),
    }
}

/// Serves on PORT: `/healthz` says no so often as COLD says; a descendant that left the
/// process group runs beside it.
#[expect(clippy::zombie_processes, reason = "its end together with the app's is what is tested")]
async fn play_app() {
    let port: u16 = std::env::var("PORT").unwrap().parse().unwrap();
    if let Ok(marker) = std::env::var("CLASH") {
        clash_once(&marker, port);
    }
    if let Ok(answers) = std::env::var("ANSWERS") {
        play_answers(port, &answers);
    }
    if std::env::var("SHORT_HEADS").is_ok() {
        play_short_heads(port);
    }
    let cold: usize = std::env::var("COLD").map_or(0, |cold| cold.parse().unwrap());
    let descendant = Command::new(std::env::current_exe().unwrap())
        .args(ARGUMENTS)
        .env(ROLE, "descendant")
        .spawn()
        .unwrap();
    let pids = format!("{} {}", std::process::id(), descendant.id());
    println!("the app runs as {pids}");
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let healthz = {
        let asked = asked.clone();
        move || async move {
            let so_far = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            if so_far < cold { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
        }
    };
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/pids", get(move |State(pids): State<String>| async { pids }))
        .route("/asked", get(move || async move { format!("{asked:?}") }))
        .route("/env", get(|| async { std::env::var("GREETING").unwrap_or_default() }))
        .route("/token", get(|| async { std::env::var("WARMHOP_ADMIN_TOKEN").unwrap_or_default() }))
        .route("/dir", get(|| async { std::env::current_dir().unwrap().display().to_string() }))
        .route("/echo", any(|body: axum::body::Body| async { body }))
        .route("/unread", any(leave_unread))
        .route("/endless", get(endless))
        .route("/exit", get(exit))
        .with_state(pids);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let server = axum::serve(listener, router);
    if std::env::var("STUBBORN").is_ok() {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        tokio::spawn(async move {
            loop {
                terminate.recv().await;
                println!("not now");
            }
        });
    }
    server.await.unwrap();
}

/// Neither reads the body of its request nor answers.
async fn leave_unread(_body: axum::body::Body) {
    std::future::pending::<()>().await;
}

/// Never ends, and sends as fast as it is read.
async fn endless() -> axum::body::Body {
    let piece = || Ok::<_, std::convert::Infallible>(Bytes::from_static(&[7; 64 * 1024]));
    axum::body::Body::from_stream(futures_util::stream::repeat_with(piece))
}

/// Answers each request with these bytes, and closes its connection; that it is well it says in HTTP,
/// unless they are none.
fn play_answers(port: u16, answers: &str) -> ! {
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    loop {
        // The client may have left.
        let Ok((mut client, _)) = listener.accept() else { continue };
        let mut head = [0; 4096];
        let read = client.read(&mut head).unwrap_or(0);
        let is_probe = head[..read].starts_with(b"GET /healthz ") && answers.starts_with("HTTP/");
        let well = "HTTP/1.1 204 No Content\r\n\r\n";
        let _ = client.write_all(if is_probe { well } else { answers }.as_bytes());
    }
}

/// A server that speaks HTTP/1.0, sets a session of 3 KiB, and reads no head of more than 3 KiB.
fn play_short_heads(port: u16) -> ! {
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let session = format!("Warmhop-Session: :{}:\r\n", "QUFB".repeat(1024));
    loop {
        let Ok((mut client, _)) = listener.accept() else { continue };
        let (mut head, mut piece) = (Vec::new(), [0; 1024]);
        while head.len() <= 3072 && !head.ends_with(b"\r\n\r\n") {
            match client.read(&mut piece) {
                Ok(0) | Err(_) => break,
                Ok(read) => head.extend_from_slice(&piece[..read]),
            }
        }
        let answer = match head.len() {
            ..=3072 => format!("HTTP/1.0 200 OK\r\n{session}\r\nwell"),
            _ => "HTTP/1.0 400 Bad Request\r\n\r\ntoo long".to_owned(),
        };
        let _ = client.write_all(answer.as_bytes());
        // What it has not read would have the system discard the answer.
        let _ = client.shutdown(std::net::Shutdown::Write);
        while client.read(&mut piece).is_ok_and(|read| read > 0) {}
    }
}

async fn exit() -> StatusCode {
    std::process::exit(7)
}

/// The first of two lives: prints its port, and ends if somebody else has it.
fn clash_once(marker: &str, port: u16) {
    let marker = PathBuf::from(marker);
    if marker.exists() {
        return;
    }
    std::fs::write(marker.with_extension("new"), port.to_string()).unwrap();
    std::fs::rename(marker.with_extension("new"), &marker).unwrap();
    wait_until("the port is taken", || std::net::TcpListener::bind(("127.0.0.1", port)).is_err());
    eprintln!("the port is taken");
    std::process::exit(1);
}

/// Starts an app, prints its processes, and runs until it is killed.
async fn play_peer() {
    let launched = app("app", &[]).launch(&name()).await.unwrap();
    let pids = get_text(&launched.service, "/pids").await;
    println!("\nstarted {} {pids}", launched.process.group());
    std::future::pending::<()>().await;
}
