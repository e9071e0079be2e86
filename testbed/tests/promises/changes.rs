//! Changes while the mesh serves: the file reloaded, versions rolled out, apps held down.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use nix::sys::signal::Signal;
use tokio::time::timeout;
use toml::Table;
use warmhop_testbed::client::{Client, Reply};
use warmhop_testbed::program;

use crate::streaming::leaving_after;
use crate::support::{APP, BOUND, ENDLESS, QUICK, Shopper, World, shop, until};

/// Has one key of the app's table another value, or adds it.
fn set(world: &World, index: usize, change: impl FnOnce(&mut Table)) {
    let change = |config: &mut Table| {
        change(config["app"].as_array_mut().unwrap()[0].as_table_mut().unwrap());
    };
    world.mesh.reconfigure(index, change).unwrap();
}

/// What `warmhop` says and how it ends.
fn run(world: &World, index: usize, args: &[&str]) -> (Option<i32>, String, String) {
    let output = world.warmhop(index, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Clients that fill their carts without a pause, each request at another peer, until dropped.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<u64>>,
}

/// The edition that the shop says it is.
fn edition(reply: &Reply) -> u64 {
    reply.header("bookshop-edition").map_or(0, |edition| edition.parse().unwrap())
}

impl Load {
    fn new(world: &World) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let doors: Vec<_> = (0..world.mesh.peers().len()).map(|at| world.http(at)).collect();
        let clients = (0..doors.len())
            .map(|first| {
                let (doors, stop, done) = (doors.clone(), Arc::clone(&stop), Arc::clone(&done));
                tokio::spawn(async move {
                    let (mut shopper, mut newest) = (Shopper::default(), 0);
                    for door in doors.iter().cycle().skip(first) {
                        // Each answer is checked: it is well, and nothing is missing in the cart.
                        let edition = edition(&shopper.add(*door).await);
                        assert!(edition >= newest, "edition {edition} after {newest}");
                        newest = edition;
                        done.fetch_add(1, Ordering::SeqCst);
                        if stop.load(Ordering::SeqCst) {
                            break;
                        }
                    }
                    newest
                })
            })
            .collect();
        Self { stop, done, clients }
    }

    /// Waits until each may have had another answer.
    async fn goes_on(&self) {
        let wanted = self.done.load(Ordering::SeqCst) + 2 * self.clients.len() as u64;
        until("the clients go on", async || {
            assert!(self.clients.iter().all(|client| !client.is_finished()), "one has failed");
            (self.done.load(Ordering::SeqCst) >= wanted).then_some(())
        })
        .await;
    }

    /// Has each client ask once more at most; the editions that they saw last.
    async fn ends_well(self) -> Vec<u64> {
        self.stop.store(true, Ordering::SeqCst);
        let mut newest = Vec::new();
        for client in self.clients {
            newest.push(client.await.unwrap());
        }
        newest
    }
}

/// Has the peer serve an edition of the shop, which is its version.
async fn rolls(world: &World, index: usize, edition: &str) {
    let before = world.app(index, APP).await["copy"].as_u64();
    set(world, index, |app| {
        app.insert("version".into(), edition.into());
        app["env"].as_table_mut().unwrap().insert("EDITION".into(), edition.into());
    });
    let (code, out, error) = run(world, index, &["reload"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("replaced") && out.contains(APP), "{out}");
    until("the new version serves", async || {
        let app = world.app(index, APP).await;
        (app["version"] == edition && app["copy"].as_u64() > before).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_rolled_out_by_reloads_under_load_and_no_session_goes_back() {
    let app = shop(QUICK, &format!("version = '9'\nenv = {{ DOCS = '{QUICK}', EDITION = '9' }}"));
    let world = World::new(3, app).await;
    for index in 0..3 {
        world.warm(index).await;
    }
    let load = Load::new(&world);
    load.goes_on().await;
    for index in 0..3 {
        rolls(&world, index, "10").await;
        if index == 0 {
            // Whom the new one has served it goes on to serve, wherever its client asks.
            let mut early = Shopper::default();
            for at in [0, 1, 2, 1] {
                assert_eq!(edition(&early.add(world.http(at)).await), 10, "at {at}");
            }
            // The other ones learn what differs, and report it.
            until("peer-2 warns", async || {
                let app = world.app(1, APP).await;
                (app["differs_on"].as_array()?.contains(&"peer-1".into())).then_some(())
            })
            .await;
            let out = run(&world, 1, &["status"]).1;
            assert!(out.contains("configured differently on peer-1"), "{out}");
            assert!(out.contains("peer-1 10"), "its version is shown: {out}");
        }
        load.goes_on().await;
    }
    assert_eq!(load.ends_well().await, [10; 3]);
    until("they mean the same", async || {
        (world.app(0, APP).await["differs_on"].as_array()?.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_replaced_peer_by_peer_under_load() {
    let world = World::new(2, shop(QUICK, "")).await;
    for index in 0..2 {
        assert_eq!(run(&world, index, &["app", "start", APP]).0, Some(0));
        world.reaches(index, APP, "ready").await;
    }
    let load = Load::new(&world);
    load.goes_on().await;
    let (code, out, error) = run(&world, 1, &["app", "restart", APP, "--mesh"]);
    assert_eq!(code, Some(0), "{out} {error}");
    for line in ["peer-1: it serves", "peer-2: it serves"] {
        assert!(out.contains(line), "{out}");
    }
    for index in 0..2 {
        assert_eq!(world.app(index, APP).await["copy"], 2);
    }
    load.goes_on().await;
    load.ends_well().await;
    assert_eq!(run(&world, 0, &["app", "restart", "nothing", "--mesh"]).0, Some(1));
    assert_eq!(run(&world, 0, &["app", "restart", "nothing"]).0, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_stands_still_is_not_left_out_of_a_restart_in_silence() {
    let world = World::new(3, shop(QUICK, "")).await;
    for index in 0..2 {
        assert_eq!(run(&world, index, &["app", "start", APP]).0, Some(0));
        world.reaches(index, APP, "ready").await;
    }
    let name = world.name(1).to_owned();
    until("its copy is known", async || {
        let status = world.status(0).await;
        let peers = status["peers"].as_array()?.clone();
        peers.iter().any(|it| it["name"] == name && it["apps"][APP] == "ready").then_some(())
    })
    .await;
    let process = world.mesh.peer(1).process().unwrap();
    process.signal(Signal::SIGSTOP).unwrap();
    until("it is suspect", async || {
        let status = world.status(0).await;
        let peers = status["peers"].as_array()?.clone();
        peers.iter().any(|it| it["name"] == name && it["state"] == "suspect").then_some(())
    })
    .await;
    let (code, out, error) = run(&world, 0, &["app", "restart", APP, "--mesh"]);
    assert_eq!(code, Some(1), "{out} {error}");
    assert!(out.contains(&format!("{}: it serves", world.name(0))), "{out}");
    let left_out = out.lines().find(|line| line.contains("cannot be reached"));
    assert!(left_out.is_some_and(|line| line.starts_with(&name)), "{out}");
    let (code, _, error) = run(&world, 0, &["logs", APP, "--peer", &name]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("does not answer") || error.contains("cannot be reached"), "{error}");
    assert!(!error.contains("as many hops as it may"), "{error}");
    process.signal(Signal::SIGCONT).unwrap();
    world.believes(0, &name, true).await;

    // Its lines end with it, and the peer that was asked is not blamed for that.
    let mut follow = std::process::Command::new(program("warmhop").unwrap())
        .args(["logs", APP, "-f", "--peer", &name])
        .env("WARMHOP_ADMIN", format!("http://{}", world.mesh.peer(0).ports.admin))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The copy has printed something, so the first line says that it follows.
    let mut first = String::new();
    BufReader::new(follow.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    assert!(!first.is_empty());
    process.signal(Signal::SIGKILL).unwrap();
    let output = follow.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&format!("the lines of {name} have ended")), "{error}");
}

#[tokio::test]
async fn a_wrong_file_changes_nothing_and_says_why() {
    let world = World::new(1, shop(QUICK, "")).await;
    world.warm(0).await;
    set(&world, 0, |app| {
        app.insert("max_wait".into(), "3 weeks".into());
        app.insert("version".into(), "2".into());
    });
    let (code, _, error) = run(&world, 0, &["reload"]);
    assert_eq!(code, Some(2), "{error}");
    for part in ["warmhop.toml:", "app.shop.max_wait", "a span of time"] {
        assert!(error.contains(part), "{error}");
    }
    let reply = world.admin(0, Method::POST, "/v1/reload").await;
    assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY);
    let app = world.app(0, APP).await;
    assert_eq!((&app["state"], &app["copy"]), (&"ready".into(), &1.into()));
    assert!(app["version"].is_null() && app["next_version"].is_null(), "{app}");
    // A program that is not there is wrong as well.
    set(&world, 0, |app| {
        app.insert("max_wait".into(), "3s".into());
        app.insert("run".into(), toml::Value::Array(vec!["no-such-program".into()]));
    });
    let (code, _, error) = run(&world, 0, &["reload"]);
    assert_eq!((code, error.contains("no-such-program")), (Some(2), true), "{error}");
    assert_eq!(Client::new().get(world.http(0), "/cart").await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn a_version_that_never_gets_ready_leaves_the_old_one_in_place() {
    let world = World::new(1, shop(QUICK, "version = '1'")).await;
    world.warm(0).await;
    set(&world, 0, |app| {
        app.insert("version".into(), "2".into());
        app["env"].as_table_mut().unwrap().insert("DOCS".into(), ENDLESS.to_string().into());
        app["ready"].as_table_mut().unwrap().insert("timeout".into(), "500ms".into());
    });
    assert_eq!(run(&world, 0, &["reload"]).0, Some(0));
    let app = until("the new copy is given up", async || {
        let app = world.app(0, APP).await;
        (app["starts"] == 2 && app["next"].is_null()).then_some(app)
    })
    .await;
    assert_eq!((&app["state"], &app["copy"]), (&"ready".into(), &1.into()));
    assert_eq!((&app["version"], &app["next_version"]), (&"1".into(), &"2".into()));
    assert!(app["error"].as_str().unwrap().contains("not ready within"), "{app}");
    assert_eq!(Client::new().get(world.http(0), "/cart").await.unwrap().status, StatusCode::OK);
    let (code, _, error) = run(&world, 0, &["app", "restart", APP]);
    assert_eq!((code, error.contains("did not become ready")), (Some(1), true), "{error}");
}

#[tokio::test]
async fn apps_come_and_go_by_a_hang_up_and_what_takes_a_restart_is_named() {
    let world = World::new(2, shop(QUICK, "")).await;
    world.warm(0).await;
    world
        .mesh
        .reconfigure(0, |config| {
            let mut other = config["app"].as_array().unwrap()[0].as_table().unwrap().clone();
            other.insert("name".into(), "blog".into());
            config["app"] = toml::Value::Array(vec![other.into()]);
            config["http"].as_table_mut().unwrap().insert("drain_grace".into(), "9s".into());
        })
        .unwrap();
    let process = world.mesh.peer(0).process().unwrap();
    process.signal(Signal::SIGHUP).unwrap();
    until("peer-2 knows", async || {
        let status = world.status(1).await;
        let peers = status["peers"].as_array()?;
        let apps = peers.iter().find(|peer| peer["name"] == "peer-1")?["apps"].as_object()?;
        (apps.contains_key("blog") && !apps.contains_key(APP)).then_some(())
    })
    .await;
    assert_eq!(Client::new().get(world.http(0), "/cart").await.unwrap().status, StatusCode::OK);
    assert_eq!(world.app(0, "blog").await["state"], "ready");
    let (code, out, _) = run(&world, 0, &["reload"]);
    assert_eq!((code, out.as_str()), (Some(0), "takes a restart of the peer: http.drain_grace\n"));
    world
        .mesh
        .reconfigure(0, |config| {
            let session = config["session"].as_table_mut().unwrap();
            session.insert("copies".into(), 2.into());
            session.insert("ttl".into(), "1h".into());
        })
        .unwrap();
    let (code, out, _) = run(&world, 0, &["reload"]);
    let expected = "holds from now on: session.copies\n\
                takes a restart of the peer: http.drain_grace, session.ttl\n";
    assert_eq!(
        (code, out.as_str()),
        (Some(0), expected),
        "the endpoint's keys live as long as ever"
    );
    assert!(run(&world, 0, &["app", "start", APP]).2.contains("no app shop"));
}

#[tokio::test]
async fn a_paused_app_stays_down_until_it_is_resumed() {
    let world = World::new(2, shop(QUICK, "keep_ready = 1")).await;
    assert_eq!(run(&world, 0, &["app", "pause", APP]).0, Some(0));
    world.reaches(0, APP, "paused").await;
    // The other one keeps it, and serves clients of both.
    world.reaches(1, APP, "ready").await;
    let reply = Client::new().get(world.http(0), "/cart").await.unwrap();
    assert_eq!((reply.status, reply.peer()), (StatusCode::OK, Some("peer-2")));
    assert_eq!(run(&world, 0, &["app", "start", APP]).0, Some(1));
    assert_eq!(world.app(0, APP).await["state"], "paused");
    assert_eq!(run(&world, 0, &["app", "resume", APP]).0, Some(0));
    assert_eq!(run(&world, 0, &["app", "start", APP]).0, Some(0));
    world.reaches(0, APP, "ready").await;
}

/// Server-sent events of the shop, each of which names the process that tells it.
struct Events(Response<Incoming>);

impl Events {
    async fn open(world: &World, index: usize) -> Self {
        let mut client = Client::new();
        Self(client.call(Method::GET, "/events").open(world.http(index)).await.unwrap())
    }

    /// The process that tells the next ones; `None` where it is cut off.
    async fn teller(&mut self) -> Option<String> {
        let mut text = String::new();
        loop {
            let frame = timeout(BOUND, self.0.frame()).await.expect("an event or the end");
            let data =
                frame.expect("it does not end as if it were whole").ok()?.into_data().ok()?;
            text.push_str(std::str::from_utf8(&data).unwrap());
            if let Some((_, rest)) = text.split_once("\"pid\":")
                && let Some(end) = rest.find(|c: char| !c.is_ascii_digit())
            {
                return Some(rest[..end].to_owned());
            }
        }
    }
}

#[tokio::test]
async fn open_answers_go_on_at_the_copy_that_is_replaced_and_end_with_its_grace() {
    for (grace, goes_on) in [("10m", true), ("300ms", false)] {
        let world = leaving_after("1h", grace).await;
        let mut open = [Events::open(&world, 0).await, Events::open(&world, 1).await];
        let mut before = Vec::new();
        for events in &mut open {
            before.push(events.teller().await.unwrap());
        }
        assert_eq!(run(&world, 0, &["app", "restart", APP]).0, Some(0));
        let now = Client::new().get(world.http(0), "/whoami").await.unwrap().json().unwrap();
        assert_ne!(now["pid"].to_string(), before[0], "new requests have the new copy");
        for (events, before) in open.iter_mut().zip(&before) {
            let mut parts = 0;
            while let Some(teller) = events.teller().await {
                assert_eq!(teller, *before, "one copy tells all of it");
                parts += 1;
                if goes_on && parts > 20 {
                    break;
                }
            }
            assert!(!goes_on || parts > 20, "it was cut off after {parts}");
        }
    }
}

#[tokio::test]
async fn a_peer_that_gets_another_seed_by_a_reload_joins_there() {
    let mut world = World::prepare(2, vec![shop(QUICK, "")], "");
    let seeds = |world: &World, index: usize, seeds: Vec<toml::Value>| {
        let change = |config: &mut Table| config["mesh"]["seeds"] = seeds.into();
        world.mesh.reconfigure(index, change).unwrap();
    };
    for index in 0..2 {
        seeds(&world, index, Vec::new());
        world.mesh.start(index).unwrap();
        until("it serves", async || world.mesh.peer(index).status().await.ok()).await;
    }
    let to = world.mesh.peer(0).ports.mesh.to_string();
    seeds(&world, 1, vec![to.clone().into()]);
    let (code, out, error) = run(&world, 1, &["reload"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("mesh.seeds"), "{out}");
    for (index, other) in [(0, 1), (1, 0)] {
        world.believes(index, world.name(other), true).await;
    }
    let shown = async || world.status(1).await["seeds"].clone();
    until("the seed is reached", async || (shown().await[0]["reached"] == true).then_some(()))
        .await;
    assert_eq!(
        (&shown().await[0]["seed"], shown().await.as_array().unwrap().len()),
        (&to.into(), 1)
    );
    // Without it they know each other all the same.
    seeds(&world, 1, Vec::new());
    assert_eq!(run(&world, 1, &["reload"]).0, Some(0));
    assert_eq!(shown().await.as_array().unwrap().len(), 0);
    world.believes(1, world.name(0), true).await;
}
