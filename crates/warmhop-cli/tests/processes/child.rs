//! Child-process apps: starting, failing, stopping, and that nothing of them outlives their
//! peer.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use http::Request;
use http_body::Frame;
use http_body_util::StreamBody;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tower::ServiceExt;
use warmhop::{Body, BoxError};
use warmhop_cli::child::ChildApp;
use warmhop_cli::config::Inherit;

use crate::role::{
    ARGUMENTS, BOUND, ROLE, app, ask, get_text, is_alive, name, pids, scratch, sh, shell_app,
    wait_until, wait_until_gone,
};

#[tokio::test]
async fn an_app_gets_its_environment_and_folder_and_not_the_peers_token() {
    let dir = scratch("folder");
    let mut child = app("app", &[("GREETING", "hello")]);
    child.dir = dir.canonicalize().unwrap();
    let launched = child.launch(&name()).await.unwrap();
    assert_eq!(get_text(&launched.service, "/env").await, "hello");
    assert_eq!(get_text(&launched.service, "/token").await, "");
    assert_eq!(PathBuf::from(get_text(&launched.service, "/dir").await), child.dir);
    launched.process.stop(Duration::ZERO).await;
}

/// What an app that is started as `child` says of these variables.
async fn variables(mut child: ChildApp, script: &str) -> String {
    child.run = ["sh", "-c", &format!("echo \"{script}\"; exit 3")].map(str::to_owned).to_vec();
    child.launch(&name()).await.err().unwrap().output.join("\n")
}

#[tokio::test]
async fn a_body_whose_length_nobody_knows_reaches_the_app_whatever_the_method() {
    let launched = app("app", &[]).launch(&name()).await.unwrap();
    for method in ["GET", "DELETE", "OPTIONS", "POST", "PATCH"] {
        for pieces in [1, 100] {
            let frames =
                (0..pieces).map(|_| Ok::<_, BoxError>(Frame::data("x".repeat(1000).into())));
            let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
            let request = Request::builder().method(method).uri("/echo").body(body).unwrap();
            let (status, text) = ask(&launched.service, request).await;
            assert_eq!((status.as_u16(), text.len()), (200, pieces * 1000), "{method}");
        }
        let request = Request::builder().method(method).uri("/echo").body(Body::empty()).unwrap();
        assert_eq!(ask(&launched.service, request).await.1, "", "{method}");
    }
    launched.process.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn an_app_inherits_of_the_peers_environment_what_it_is_said_to() {
    // Cargo sets both for the programs that it starts.
    let script = "$CARGO_MANIFEST_DIR|$CARGO_PKG_NAME|$A|${PORT:+has a port}|${PATH:+has a path}";
    let (dir, package) = (env!("CARGO_MANIFEST_DIR"), env!("CARGO_PKG_NAME"));
    let names = |names: &[&str]| Inherit::Only(names.iter().map(|&name| name.into()).collect());
    for (inherit, expected) in [
        (Inherit::All, format!("{dir}|{package}")),
        (names(&["CARGO_PKG_NAME", "NO_SUCH_VARIABLE"]), format!("|{package}")),
        (names(&[]), "|".to_owned()),
    ] {
        let env = [("A".to_owned(), "own".to_owned())].into();
        let child = ChildApp { inherit, env, ..sh("") };
        let output = variables(child, script).await;
        assert_eq!(output, format!("{expected}|own|has a port|has a path"));
    }
}

#[tokio::test]
async fn a_file_of_variables_is_read_at_each_start_and_yields_to_the_apps_table() {
    let file = scratch("env-file").join(".env");
    std::fs::write(&file, "# ours\nexport A='from the file'\nB=\"two words\"\nPORT=1\n").unwrap();
    let env = [("A".to_owned(), "from the table".to_owned())].into();
    let child = ChildApp { env, env_file: Some(file.clone()), ..sh("") };
    let output = variables(child.clone(), "$A, $B, $((PORT > 1))").await;
    assert_eq!(output, "from the table, two words, 1");
    std::fs::write(&file, "B=new\n").unwrap();
    assert_eq!(variables(child.clone(), "$B").await, "new");
    std::fs::write(&file, "B=new\noops\n").unwrap();
    let failed = child.launch(&name()).await.err().unwrap();
    assert!(failed.reason.contains(".env:2: expected NAME=value"), "{failed}");
}

#[tokio::test]
async fn an_app_is_ready_only_when_it_says_so() {
    let launched = app("app", &[("COLD", "4")]).launch(&name()).await.unwrap();
    assert_eq!(get_text(&launched.service, "/asked").await, "5");
    launched.process.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn without_a_path_to_ask_listening_is_being_ready() {
    let mut child = app("app", &[("COLD", "1000000")]);
    child.ready.path = None;
    let launched = child.launch(&name()).await.unwrap();
    assert_eq!(get_text(&launched.service, "/asked").await, "0");
    launched.process.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn an_app_that_exits_first_fails_with_its_status_and_last_words() {
    let failed = sh("echo one; echo two >&2; exit 3").launch(&name()).await.err().unwrap();
    assert_eq!(failed.reason, "it exited with status 3");
    let mut output = failed.output;
    output.sort();
    assert_eq!(output, ["one", "two"], "two streams have no order between them");

    let failed = sh("kill -SEGV $$").launch(&name()).await.err().unwrap();
    assert_eq!(failed.reason, "it was killed by SIGSEGV (status 139)");
    let failed = sh("exit 0").launch(&name()).await.err().unwrap();
    assert!(failed.reason.contains("stay in the foreground"), "{}", failed.reason);
}

#[tokio::test]
async fn a_program_that_cannot_be_run_is_named() {
    let failed = shell_app(vec!["/no/such/program".into()]).launch(&name()).await.err().unwrap();
    assert_eq!(failed.reason, "it exited with status 126");
    assert!(failed.output[0].contains("cannot run /no/such/program: No such file"), "{failed:?}");
}

#[tokio::test]
async fn an_app_that_is_not_ready_in_time_is_killed_with_all_it_started() {
    let mut child = app("app", &[("COLD", "1000000")]);
    // Long enough for it to print its processes; what counts is that it is never ready.
    child.ready.timeout = Duration::from_secs(5);
    let failed = child.launch(&name()).await.err().unwrap();
    assert!(
        failed.reason.starts_with("it was not ready within 5s: GET http://127.0.0.1:"),
        "{failed:?}"
    );
    let line = failed.output.iter().find_map(|line| line.strip_prefix("the app runs as ")).unwrap();
    let pids: Vec<i32> = line.split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert!(!pids.iter().any(|pid| is_alive(*pid)), "{pids:?}: the failure came after their end");
}

#[tokio::test]
async fn an_app_that_listens_at_another_port_is_reported_with_that_port() {
    let mut child = app("app", &[]);
    // Any port but the one that it is given.
    let elsewhere = ["sh", "-c", "PORT=0 exec \"$0\" \"$@\""].map(str::to_owned);
    child.run = [&elsewhere[..], &child.run].concat();
    let mut reason = String::new();
    // As long as it takes until it listens.
    for within in [1, 4, 16, 64] {
        child.ready.timeout = Duration::from_secs(within);
        reason = child.launch(&name()).await.err().unwrap().reason;
        if !reason.contains("nothing listens at 127.0.0.1:") {
            break;
        }
    }
    assert!(reason.contains(": it listens at 127.0.0.1:"), "{reason}");
    assert!(reason.ends_with(", which its variable PORT asks for"), "{reason}");
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing_behind() {
    let dir = scratch("given-up");
    let marker = dir.join("pid");
    let script =
        format!("echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 1; done", marker.display());
    let child = sh(&script);
    let starting = tokio::spawn(async move { child.launch(&name()).await.is_ok() });
    let started = marker.clone();
    tokio::task::spawn_blocking(move || wait_until("it runs", || started.exists())).await.unwrap();
    let pid: i32 = std::fs::read_to_string(&marker).unwrap().trim().parse().unwrap();
    assert!(is_alive(pid));
    starting.abort();
    assert!(starting.await.unwrap_err().is_cancelled());
    tokio::task::spawn_blocking(move || wait_until_gone(&[pid])).await.unwrap();
}

#[tokio::test]
async fn a_stop_lets_the_app_end_by_itself_and_takes_its_descendants_along() {
    let launched = app("app", &[]).launch(&name()).await.unwrap();
    let pids = pids(&launched.service).await;
    let exited = launched.process.exited();
    // The descendant left the group and so gets no SIGTERM; it ends when the grace does.
    launched.process.stop(Duration::from_millis(300)).await;
    assert!(!pids.iter().any(|pid| is_alive(*pid)), "{pids:?}");
    assert!(exited.await.reason.starts_with("it was killed by SIGTERM (status 143)"));
}

#[tokio::test]
async fn a_graceful_end_is_waited_for_and_no_longer_than_that() {
    let launched = app("app", &[]).launch(&name()).await.unwrap();
    // The descendant is out of SIGTERM's reach and would use up any grace.
    kill(Pid::from_raw(pids(&launched.service).await[1]), Signal::SIGKILL).unwrap();
    let stopped = launched.process.stop(Duration::from_secs(3600));
    tokio::time::timeout(BOUND, stopped).await.expect("the end of all processes ends the wait");
}

#[tokio::test]
async fn an_app_that_does_not_heed_sigterm_is_killed_after_its_grace() {
    let launched = app("app", &[("STUBBORN", "1")]).launch(&name()).await.unwrap();
    let pids = pids(&launched.service).await;
    let exited = launched.process.exited();
    // Enough for it to say that it got SIGTERM.
    launched.process.stop(Duration::from_secs(2)).await;
    assert!(!pids.iter().any(|pid| is_alive(*pid)), "{pids:?}");
    let reason = exited.await.reason;
    assert!(reason.starts_with("it was killed by SIGKILL (status 137)"), "{reason}");
    assert!(reason.contains("not now"), "it had got SIGTERM: {reason}");
}

#[tokio::test]
async fn a_crash_is_reported_with_its_status_and_leaves_no_descendant() {
    let launched = app("app", &[]).launch(&name()).await.unwrap();
    let pids = pids(&launched.service).await;
    let exited = launched.process.exited();
    let request = Request::get("/exit").body(Body::empty()).unwrap();
    launched.service.clone().oneshot(request).await.unwrap_err();
    let reason = exited.await.reason;
    assert!(reason.starts_with("it exited with status 7\n"), "{reason}");
    assert!(reason.contains("the app runs as"), "the last lines are part of it: {reason}");
    assert!(!pids.iter().any(|pid| is_alive(*pid)), "{pids:?}");
}

#[tokio::test]
async fn where_the_guard_is_killed_the_peer_kills_the_app() {
    let launched = app("app", &[]).launch(&name()).await.unwrap();
    let pids = pids(&launched.service).await;
    let exited = launched.process.exited();
    kill(Pid::from_raw(launched.process.group()), Signal::SIGKILL).unwrap();
    let reason = exited.await.reason;
    assert!(reason.starts_with("its guard process was killed by SIGKILL"), "{reason}");
    let app = pids[0];
    tokio::task::spawn_blocking(move || wait_until_gone(&[app])).await.unwrap();
    // What left the group on purpose is beyond the peer's reach then, but not beyond ours.
    let _ = kill(Pid::from_raw(pids[1]), Signal::SIGKILL);
}

#[tokio::test]
async fn a_port_that_somebody_else_took_is_exchanged_for_another() {
    let dir = scratch("clash");
    let marker = dir.join("port");
    let child = app("app", &[("CLASH", marker.to_str().unwrap())]);
    let starting = tokio::spawn(async move { child.launch(&name()).await });
    let written = marker.clone();
    let listener = tokio::task::spawn_blocking(move || {
        wait_until("the first port is known", || written.exists());
        let port: u16 = std::fs::read_to_string(written).unwrap().parse().unwrap();
        // Whoever else has it by now has taken it as well.
        std::net::TcpListener::bind(("127.0.0.1", port)).ok()
    })
    .await
    .unwrap();
    let launched = starting.await.unwrap().unwrap();
    assert_eq!(pids(&launched.service).await.len(), 2);
    drop(listener);
    launched.process.stop(Duration::ZERO).await;
}

#[test]
fn nothing_of_an_app_outlives_a_peer_that_is_killed() {
    let mut peer = Command::new(std::env::current_exe().unwrap())
        .args(ARGUMENTS)
        .env(ROLE, "peer")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(peer.stdout.take().unwrap()).lines();
    let line = lines
        .map_while(Result::ok)
        .find_map(|line| Some(line.strip_prefix("started ")?.to_owned()))
        .unwrap();
    let pids: Vec<i32> = line.split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 3, "guard, app, descendant");
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    peer.kill().unwrap();
    peer.wait().unwrap();
    wait_until_gone(&pids);
}
