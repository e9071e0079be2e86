//! What operators use: the admin listener and the commands over it.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::{Method, StatusCode};
use nix::sys::signal::Signal;
use serde_json::Value as Json;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use warmhop_testbed::client::Client;

use crate::support::{
    APP, BOUND, QUICK, READY_PATH, Shopper, World, never_on, program_built, shop, until,
};

#[tokio::test]
async fn a_peer_reports_itself_its_apps_and_the_others() {
    let world = World::new(3, shop(QUICK, "")).await;
    world.warm(0).await;
    let status = world.status(1).await;
    assert_eq!(status["peer"]["name"], "peer-2");
    assert_eq!(status["peer"]["state"], "serving");
    for text in ["id", "incarnation", "version"] {
        assert!(status["peer"][text].as_str().is_some_and(|t| !t.is_empty()), "{text}: {status}");
    }
    assert!(status["peer"]["uptime_ms"].as_u64().is_some());
    let app = &status["apps"][0];
    assert_eq!((&app["name"], &app["state"]), (&APP.into(), &"cold".into()));
    assert_eq!((&app["starts"], &app["in_flight"]), (&0.into(), &0.into()));
    assert!(app["error"].is_null());
    let others = status["peers"].as_array().unwrap();
    let mut names: Vec<&str> = others.iter().filter_map(|peer| peer["name"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["peer-1", "peer-3"]);
    let one = others.iter().find(|peer| peer["name"] == "peer-1").unwrap();
    assert_eq!((&one["alive"], &one["apps"][APP]), (&true.into(), &"ready".into()));
    until("the links are measured", async || {
        let status = world.status(1).await;
        let peers = status["peers"].as_array()?.clone();
        peers.iter().all(|peer| peer["rtt_us"].as_u64().is_some()).then_some(())
    })
    .await;

    for path in ["/healthz", "/readyz"] {
        let reply = world.admin(1, Method::GET, path).await;
        assert_eq!(reply.status, StatusCode::OK, "{path}: it can hop, so it takes traffic");
    }
    let metrics = world.admin(1, Method::GET, "/metrics").await;
    assert!(metrics.text().lines().any(|line| line.starts_with("# TYPE ")), "{}", metrics.text());
    let metrics = world.admin(0, Method::GET, "/metrics").await.text();
    let memory = format!("warmhop_app_resident_memory_bytes{{app=\"{APP}\"}} ");
    let memory = metrics.lines().find_map(|line| line.strip_prefix(&memory));
    let memory = memory.and_then(|bytes| bytes.parse::<u64>().ok());
    assert!(memory.is_some_and(|bytes| bytes > 100_000), "it runs a program: {metrics}");
    let page = world.admin(1, Method::GET, "/").await;
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert_eq!(world.admin(1, Method::GET, "/v1/nothing").await.status, StatusCode::NOT_FOUND);
    let wrong = world.admin(1, Method::POST, "/v1/apps/nothing/start").await;
    assert_eq!(wrong.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_commands_do_what_they_say_and_exit_accordingly() {
    let world = World::new(2, shop(QUICK, "")).await;
    let run = |args: &[&str]| {
        let output = world.warmhop(0, args);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), out, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, out, _) = run(&["status"]);
    assert_eq!(code, Some(0));
    for word in ["peer-1", "peer-2", APP] {
        assert!(out.contains(word), "{out}");
    }
    assert!(!out.contains('\x1b'), "no colour where there is no terminal");
    let (code, out, _) = run(&["status", "--json"]);
    assert_eq!(code, Some(0));
    assert_eq!(serde_json::from_str::<Json>(&out).unwrap()["peer"]["name"], "peer-1");

    assert_eq!(run(&["app", "start", APP]).0, Some(0));
    world.reaches(0, APP, "ready").await;
    assert_eq!(run(&["app", "start", "nothing"]).0, Some(1));

    let mut shopper = Shopper::default();
    let reply = shopper.add(world.http(0)).await;
    let id = reply.request_id().unwrap();
    let (code, out, _) = run(&["why", id]);
    assert_eq!(code, Some(0));
    assert!(out.contains(id) && out.contains(APP), "{out}");
    let (code, out, _) = run(&["why", id, "--json"]);
    assert_eq!(code, Some(0));
    let key = serde_json::from_str::<Json>(&out).unwrap()["session"].as_str().unwrap().to_owned();
    assert_eq!(run(&["why", "no-such-request"]).0, Some(1));

    let (code, out, _) = run(&["session", &key, "--json"]);
    assert_eq!(code, Some(0), "{out}");
    let session: Json = serde_json::from_str(&out).unwrap();
    assert_eq!(session["owner"], "peer-1");
    assert!(session["version"].as_u64().is_some_and(|version| version >= 1));
    assert!(session["members"].as_array().unwrap().contains(&"peer-1".into()));
    assert!(!out.contains("book"), "contents are never shown");
    assert_eq!(run(&["session", "shop/nothing"]).0, Some(2));

    assert_eq!(run(&["app", "stop", APP]).0, Some(0));
    until("it is stopped", async || (world.app(0, APP).await["state"] == "cold").then_some(()))
        .await;

    let (code, _, error) = run(&["no-such-command"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("Usage"), "{error}");
    let (code, _, error) = run(&["--admin", "http://127.0.0.1:1", "status"]);
    let (code, error) = if code == Some(2) {
        // The flag comes after the command.
        let (code, _, error) = run(&["status", "--admin", "http://127.0.0.1:1"]);
        (code, error)
    } else {
        (code, error)
    };
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("127.0.0.1:1"), "{error}");

    for balancer in ["haproxy", "nginx", "apache", "envoy"] {
        let (code, out, error) = run(&["lb", balancer]);
        assert_eq!(code, Some(0), "{balancer}: {error}");
        for index in 0..2 {
            let port = world.http(index).port().to_string();
            assert!(out.contains(&port), "{balancer} names {}: {out}", world.name(index));
        }
        assert!(out.contains("warmhop"), "{balancer} reads the cookie: {out}");
    }
}

#[tokio::test]
async fn one_request_is_followed_across_two_peers() {
    let world = World::with(2, vec![shop(QUICK, "")], "", never_on(1)).await;
    world.warm(0).await;
    let mut client = Client::new();
    let call = client.call(Method::GET, "/whoami").header("x-request-id", "follow-me-across");
    let reply = call.send(world.http(1)).await.unwrap().ok().unwrap();
    assert!(reply.hopped());
    for (index, role) in [(1, "entry"), (0, "hop")] {
        let trace = until("the trace is there", async || {
            let path = "/v1/requests/follow-me-across";
            let reply = world.admin(index, Method::GET, path).await;
            reply.status.is_success().then(|| reply.json().unwrap())
        })
        .await;
        assert_eq!(trace["role"], role, "{trace}");
        assert_eq!(trace["served_by"], "peer-1", "{trace}");
        let steps = trace["steps"].as_array().unwrap();
        assert!(!steps.is_empty(), "{trace}");
        assert!(steps.iter().all(|step| step["why"].as_str().is_some_and(|why| !why.is_empty())));
        let why = world.warmhop(index, &["why", "follow-me-across"]);
        let text = String::from_utf8_lossy(&why.stdout).into_owned();
        assert!(text.contains("peer-1"), "{text}");
    }
    let trace = world.admin(1, Method::GET, "/v1/requests/follow-me-across").await.json().unwrap();
    let steps = trace["steps"].as_array().unwrap();
    assert!(steps.iter().any(|step| step["what"] == "hop"), "{trace}");
}

#[tokio::test]
async fn a_front_door_says_that_it_takes_traffic_while_its_apps_are_cold() {
    let world = World::new(1, shop(QUICK, "match = { host = 'books.test', path = '/' }")).await;
    let mut client = Client::new();
    for method in [Method::GET, Method::HEAD] {
        let call = client.call(method, READY_PATH).header("warmhop-request-id", "a-check");
        let reply = call.send(world.http(0)).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert_eq!(reply.request_id(), None);
    }
    assert_eq!(client.get(world.http(0), READY_PATH).await.unwrap().text(), "ready\n");
    assert_eq!(world.app(0, APP).await["state"], "cold", "a check starts nothing");
    let answer = world.admin(0, Method::GET, "/v1/requests/a-check").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND, "{}", answer.text());
}

#[tokio::test]
async fn a_draining_peer_takes_no_new_traffic_and_says_so() {
    let world = World::new(2, shop(QUICK, "")).await;
    world.warm(0).await;
    world.warm(1).await;
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;
    let drained = world.warmhop(0, &["drain"]);
    assert!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    until("it is not ready", async || {
        let reply = world.admin(0, Method::GET, "/readyz").await;
        (reply.status == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
    let asked = Client::new().get(world.http(0), READY_PATH).await.unwrap();
    assert_eq!((asked.status, &*asked.text()), (StatusCode::SERVICE_UNAVAILABLE, "draining\n"));
    assert_eq!(world.admin(0, Method::GET, "/healthz").await.status, StatusCode::OK);
    let state = world.status(0).await["peer"]["state"].clone();
    assert!(state == "draining" || state == "drained", "{state}");
    until("its sessions have another owner", async || {
        (world.status(1).await["sessions"]["owned"] == 1).then_some(())
    })
    .await;
    shopper.add(world.http(1)).await;

    // A client that has not heard of it yet is served all the same, upgrades included.
    let stream = TcpStream::connect(world.http(0)).await.unwrap();
    let url = format!("ws://{}/ws", world.http(0));
    let connect = tokio_tungstenite::client_async(url, stream);
    let (mut socket, _) = timeout(BOUND, connect).await.unwrap().unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    let back = timeout(BOUND, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(back, Message::text("hello"));
    drop(socket);
}

#[tokio::test]
async fn sessions_that_begin_at_a_peer_on_its_way_out_outlive_it() {
    let mut world = World::new(3, shop(QUICK, "")).await;
    for index in 0..3 {
        world.warm(index).await;
    }
    assert!(world.warmhop(0, &["drain"]).status.success());
    let mut shoppers: Vec<Shopper> = (0..20).map(|_| Shopper::default()).collect();
    for shopper in &mut shoppers {
        shopper.add(world.http(0)).await;
    }
    let status = world.mesh.stop(0).await.unwrap();
    assert!(status.success(), "{status}");
    for (index, shopper) in shoppers.iter_mut().enumerate() {
        shopper.add(world.http(1 + index % 2)).await;
    }
}

#[tokio::test]
async fn a_peer_that_was_replaced_while_it_stood_still_leaves_without_waiting_for_it() {
    let mut world = World::new(4, shop(QUICK, "")).await;
    for index in 0..4 {
        world.warm(index).await;
    }
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;
    let copies = async |world: &World, index: usize| {
        world.status(index).await["sessions"]["copies"].as_u64().unwrap()
    };
    let holder = until("three peers hold it", async || {
        let mut holders = Vec::new();
        for index in 0..4 {
            if copies(&world, index).await == 1 {
                holders.push(index);
            }
        }
        (holders.len() == 3).then(|| holders.into_iter().find(|index| *index != 0)).flatten()
    })
    .await;
    let process = world.mesh.peer(holder).process().unwrap();
    process.signal(Signal::SIGSTOP).unwrap();
    until("another holds it instead", async || {
        let mut held = 0;
        for index in (0..4).filter(|index| *index != holder) {
            held += copies(&world, index).await;
        }
        (held == 3).then_some(())
    })
    .await;
    process.signal(Signal::SIGCONT).unwrap();
    let name = world.name(holder).to_owned();
    world.believes(0, &name, true).await;
    assert!(world.mesh.stop(holder).await.unwrap().success());
    let log = world.mesh.peer(holder).log();
    assert!(!log.contains("still count on this peer's copy"), "it waited in vain:\n{log}");
    shopper.add(world.http(0)).await;
}

#[tokio::test]
async fn an_idle_app_stops_and_starts_again_when_it_is_asked_for() {
    let world = World::new(1, shop(QUICK, "stop_when_idle = '500ms'")).await;
    let mut client = Client::new();
    client.get(world.http(0), "/whoami").await.unwrap().ok().unwrap();
    let under = world.mesh.peer(0).process().unwrap().descendants();
    until("it is cold again", async || (world.app(0, APP).await["state"] == "cold").then_some(()))
        .await;
    for process in under.iter().filter(|process| process.command().contains("bookshop")) {
        assert!(!process.is_alive(), "its process is gone");
    }
    client.get(world.http(0), "/whoami").await.unwrap().ok().unwrap();
    assert_eq!(world.app(0, APP).await["starts"], 2);
}

#[tokio::test]
async fn of_idle_copies_the_one_to_be_kept_stays_ready() {
    let world = World::new(2, shop(QUICK, "keep_ready = 1\nstop_when_idle = '1s'")).await;
    for index in [0, 1] {
        world.admin(index, Method::POST, &format!("/v1/apps/{APP}/start")).await;
    }
    let apps = async || [world.app(0, APP).await, world.app(1, APP).await];
    // One may stop as soon as the other is ready, so they need not be seen to be at once.
    until("both have been ready", async || {
        let has_been = |app: &Json| app["starts"] == 1 && app["state"] != "starting";
        apps().await.iter().all(has_been).then_some(())
    })
    .await;
    let kept = until("one of them stops", async || {
        let cold = apps().await.iter().position(|app| app["state"] == "cold")?;
        Some(1 - cold)
    })
    .await;
    let starts = world.app(kept, APP).await["starts"].clone();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let app = world.app(kept, APP).await;
        assert_eq!((&app["state"], &app["starts"]), (&"ready".into(), &starts), "{app}");
    }
}

#[tokio::test]
async fn an_app_that_is_wanted_at_boot_is_ready_unasked() {
    let world = World::new(1, shop(QUICK, "start = 'at-boot'")).await;
    world.reaches(0, APP, "ready").await;
    assert_eq!(world.app(0, APP).await["starts"], 1);
}

#[tokio::test]
async fn a_configuration_is_checked_before_it_is_run() {
    let world = World::prepare(1, vec![shop(QUICK, "")], "");
    let file = world.mesh.peer(0).folder().join("warmhop.toml");
    let good = world.warmhop(0, &["check", file.to_str().unwrap()]);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let filled: toml::Table = String::from_utf8_lossy(&good.stdout).parse().unwrap();
    assert_eq!(filled["session"]["copies"].as_integer(), Some(3), "defaults are filled in");

    let text = std::fs::read_to_string(&file).unwrap();
    let bad = file.with_file_name("bad.toml");
    for (what, broken, named) in [
        ("a wrong key", text.replace("listen", "lisen"), "lisen"),
        (
            "a wrong value",
            text.replace("'portable'", "'postal'").replace("\"portable\"", "\"postal\""),
            "postal",
        ),
        ("not TOML", format!("{text}\n= 3"), "bad.toml"),
    ] {
        std::fs::write(&bad, broken).unwrap();
        for args in
            [vec!["check", bad.to_str().unwrap()], vec!["run", "--config", bad.to_str().unwrap()]]
        {
            let output = world.warmhop(0, &args);
            assert_eq!(output.status.code(), Some(2), "{what}: {args:?}");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(error.contains(named), "{what}: {error}");
            assert!(error.contains("bad.toml"), "{what}: {error}");
        }
    }
}

#[tokio::test]
async fn a_peer_is_watched_in_a_terminal_through_its_restart() {
    let mut world = World::new(2, shop(QUICK, "")).await;
    let mut watching = Watching::start(&world, 0);
    watching.sees("served here").await;
    assert!(watching.is_on_a_screen_of_its_own());
    world.warm(0).await;
    Client::new().get(world.http(0), "/whoami").await.unwrap().ok().unwrap();
    watching.sees("GET /whoami").await;
    watching.sees("FRONT DOOR").await;

    // Its keys: how they work, and all about the one app.
    watching.types("?");
    watching.sees("these keys").await;
    watching.types("?\r");
    watching.sees("sessions: ").await;
    watching.types("q");
    watching.ended_and_left_the_terminal_as_it_was().await;

    let watching = Watching::start(&world, 0);
    watching.sees("is serving, up").await;
    world.mesh.kill(0).unwrap();
    watching.sees("no answer for").await;
    world.mesh.start(0).unwrap();
    watching.sees("is serving, up").await;
    watching.is_sent(nix::sys::signal::Signal::SIGTERM);
    watching.ended_and_left_the_terminal_as_it_was().await;

    let watching = Watching::start(&world, 0);
    watching.sees("served here").await;
    watching.is_sent(nix::sys::signal::Signal::SIGINT);
    watching.ended_and_left_the_terminal_as_it_was().await;
}

/// `warmhop status --watch` in a terminal.
struct Watching {
    program: std::process::Child,
    /// The side of the one who sits there.
    seat: std::fs::File,
    /// The other side, kept open so that it can be asked afterwards.
    terminal: std::os::fd::OwnedFd,
    modes: nix::sys::termios::Termios,
    screen: std::sync::Arc<std::sync::Mutex<vt100::Parser>>,
}

impl Watching {
    fn start(world: &World, peer: usize) -> Self {
        use std::io::Read;
        use std::num::NonZeroU16;
        use std::sync::{Arc, Mutex};

        const ROWS: NonZeroU16 = NonZeroU16::new(30).unwrap();
        const COLUMNS: NonZeroU16 = NonZeroU16::new(100).unwrap();

        let (ws_row, ws_col) = (ROWS.get(), COLUMNS.get());
        let size = nix::pty::Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = nix::pty::openpty(Some(&size), None).unwrap();
        let modes = nix::sys::termios::tcgetattr(&pair.slave).unwrap();
        let admin = format!("http://{}", world.mesh.peer(peer).ports.admin);
        let program = std::process::Command::new(program_built("warmhop"))
            .args(["status", "--watch", "--admin", &admin])
            .stdin(pair.slave.try_clone().unwrap())
            .stdout(pair.slave.try_clone().unwrap())
            .stderr(pair.slave.try_clone().unwrap())
            .spawn()
            .unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0)));
        let seat = std::fs::File::from(pair.master);
        std::thread::spawn({
            let (screen, mut seat) = (Arc::clone(&screen), seat.try_clone().unwrap());
            move || {
                let mut bytes = [0; 4096];
                // It fails once nobody holds the other end.
                while let Ok(read @ 1..) = seat.read(&mut bytes) {
                    screen.lock().unwrap().process(&bytes[..read]);
                }
            }
        });
        Self { program, seat, terminal: pair.slave, modes, screen }
    }

    async fn sees(&self, text: &str) {
        until(&format!("the terminal shows {text:?}"), async || {
            self.screen.lock().unwrap().screen().contents().contains(text).then_some(())
        })
        .await;
    }

    fn is_on_a_screen_of_its_own(&self) -> bool {
        self.screen.lock().unwrap().screen().alternate_screen()
    }

    fn types(&mut self, keys: &str) {
        use std::io::Write;
        self.seat.write_all(keys.as_bytes()).unwrap();
    }

    fn is_sent(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.program.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    async fn ended_and_left_the_terminal_as_it_was(mut self) {
        let ended = until("the program ends", async || self.program.try_wait().unwrap()).await;
        assert!(ended.success(), "{ended}");
        assert_eq!(nix::sys::termios::tcgetattr(&self.terminal).unwrap(), self.modes);
        // What it wrote last may still be on its way.
        until("the screen is the one from before, with its cursor", async || {
            let screen = self.screen.lock().unwrap();
            let screen = screen.screen();
            (!screen.alternate_screen() && !screen.hide_cursor()).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_grafana_dashboard_asks_for_what_peers_tell() {
    let world = World::with(2, vec![shop(QUICK, "")], "", never_on(1)).await;
    world.warm(0).await;
    let mut client = Client::new();
    client.set_cookie("warmhop", "forged.peer-1");
    client.get(world.http(1), "/whoami").await.unwrap().ok().unwrap();
    let mut metrics = String::new();
    for index in 0..2 {
        metrics += &world.admin(index, Method::GET, "/metrics").await.text();
    }
    let file = warmhop_testbed::workspace().join("docs/grafana-dashboard.json");
    let board: Json = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut asked = 0;
    for panel in board["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = target["expr"].as_str().unwrap();
            for at in expr.match_indices("warmhop_").map(|(at, _)| at) {
                let name: &str = expr[at..].split(['{', '[', ')']).next().unwrap();
                let labels = expr[at + name.len()..].strip_prefix('{').unwrap_or_default();
                let labels = labels.split('}').next().unwrap();
                let lines = metrics.lines().filter(|line| {
                    line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']))
                });
                let lines: Vec<&str> = lines.collect();
                assert!(!lines.is_empty(), "no peer tells {name}, which {} shows", panel["title"]);
                // What it groups by and chooses from, but for what Prometheus itself adds.
                let grouped =
                    expr.split("by (").skip(1).map(|rest| rest.split(')').next().unwrap());
                let chosen = labels.split(", ").filter_map(|label| label.split(['=', '!']).next());
                let wanted = grouped.flat_map(|names| names.split(", ")).chain(chosen);
                for label in wanted.filter(|label| !["", "job", "instance"].contains(label)) {
                    let has = |line: &&str| line.contains(&format!("{label}=\""));
                    assert!(lines.iter().any(has), "{name} has no {label}: {lines:?}");
                }
                asked += 1;
            }
        }
    }
    assert!(asked > 30, "{asked} only");
}
