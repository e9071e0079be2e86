//! What a burst meets: many requests for an app at a peer that has yet to start it, while another has it
//! ready; and requests at once to copies that serve one at a time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::Method;
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use toml::{Table, Value};

use crate::bench::{Door, percentile};
use crate::client::Client;
use crate::mesh::{Mesh, Spec, until};
use crate::ports::Reservation;
use crate::terminal::Terminal;

/// How often each is measured, in turn with the others: the machine may have other things to do.
const ROUNDS: usize = 5;
const A_SECOND: u32 = 3_000;
const BURST: Duration = Duration::from_secs(2);
/// Each has a connection of its own, and one request at a time.
const CLIENTS: u32 = 64;
/// Half of a burst: the copy of the peer that is asked becomes ready in its middle.
const START_SECONDS: u32 = 1;
const BOUND: Duration = Duration::from_secs(60);
/// How many requests come at once to the copies that serve one at a time, and how long each takes.
const AT_ONCE: usize = 12;
const SLOW_MS: u32 = 500;

/// Measures and prints.
///
/// # Errors
/// If the mesh does not form, or a request is not answered.
pub async fn burst() -> Result<()> {
    let terminal = Terminal::new();
    let reserved = Reservation::new()?;
    let mesh = mesh(&reserved).await?;
    let [mut ready, mut cold, mut ratios, mut took] = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        terminal.passing(format!("round {} of {ROUNDS}", round + 1));
        ready.push(p95(mesh.peer(0).ports.http).await?);
        stop(&mesh, 1).await?;
        cold.push(p95(mesh.peer(1).ports.http).await?);
        ratios.push(cold[round] / ready[round]);
        let state = mesh.peer(1).app_state("shop").await;
        ensure!(state == "ready", "the burst was over before the copy here was ready: {state}");
        took.push(at_once(mesh.peer(0).ports.http).await?);
    }
    let whole = A_SECOND * BURST.as_secs() as u32;
    terminal.line(format!(
        "{whole} requests within {BURST:?}, p95 in ms: where it is ready {:.2}, at a cold peer {:.2} \
         (x{:.2}), none failed",
        median(ready),
        median(cold),
        median(ratios)
    ));
    terminal.line(format!(
        "{AT_ONCE} requests at once, {SLOW_MS} ms each, three copies that serve one at a time: {:.2} s",
        median(took)
    ));
    Ok(())
}

/// Three peers: the first has `shop` ready, the second starts it when it is asked, and all have `one`.
async fn mesh(reserved: &Reservation) -> Result<Mesh> {
    let folder = crate::workspace().join("target/testbed-bench-burst");
    std::fs::create_dir_all(&folder)?;
    let program = crate::program("bookshop")?.to_string_lossy().into_owned();
    let app = |name: &str, run: Vec<String>, more: &str| -> Result<Table> {
        let mut app: Table = format!(
            "name = '{name}'\nready = {{ path = '/healthz' }}\nsession = 'none'\n\
             env = {{ DOCS = '300' }}\n{more}"
        )
        .parse()?;
        app.insert("run".into(), run.into());
        Ok(app)
    };
    let slow = format!("sleep {START_SECONDS}; exec '{program}'");
    let shop = app("shop", vec!["sh".into(), "-c".into(), slow], "match = { path = '/' }")?;
    let more = "match = { path = '/slow' }\nconcurrency = 1\nstart = 'at-boot'";
    let one = app("one", vec![program], more)?;
    let mut mesh = Mesh::prepare(Spec {
        folder,
        cluster: "bench".into(),
        ports: (0..3).map(|index| reserved.peer(index)).collect(),
        apps: vec![shop, one],
        settings: Table::new(),
        detached: false,
    })?;
    for (index, start) in ["at-boot", "on-request", "never"].into_iter().enumerate() {
        mesh.reconfigure(index, |config| {
            let apps = config["app"].as_array_mut().into_iter().flatten();
            if let Some(shop) = apps.filter_map(Value::as_table_mut).next() {
                shop.insert("start".into(), start.into());
            }
        })?;
        mesh.start(index)?;
    }
    mesh.formed().await?;
    for (app, peers) in [("shop", 1), ("one", 3)] {
        for index in 0..peers {
            until("the apps are ready", BOUND, async || {
                (mesh.peer(index).app_state(app).await == "ready").then_some(())
            })
            .await?;
        }
    }
    Ok(mesh)
}

/// Has the peer be cold, and believe that the first one is ready.
async fn stop(mesh: &Mesh, index: usize) -> Result<()> {
    let admin = mesh.peer(index).ports.admin;
    until("the app is cold there", BOUND, async || {
        let state = mesh.peer(index).app_state("shop").await;
        if state == "ready" {
            let _ = Client::new().post(admin, "/v1/apps/shop/stop").await;
        }
        (state == "cold").then_some(())
    })
    .await
}

/// The 95th percentile of a burst's times, in milliseconds. A request counts from the moment that it was
/// due, even if its client was still busy with the one before it.
async fn p95(door: SocketAddr) -> Result<f64> {
    let (every, count) = (BURST / (A_SECOND * BURST.as_secs() as u32), A_SECOND * 2);
    let began = Instant::now() + Duration::from_millis(50);
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(async move {
            let mut door = Door::new(door);
            let mut times = Vec::new();
            for request in (client..count).step_by(CLIENTS as usize) {
                let due = began + every * request;
                let counts_from = if Instant::now() < due {
                    sleep_until(due.into()).await;
                    Instant::now()
                } else {
                    due
                };
                let answer = door.ask(Method::GET, "/healthz", None, String::new()).await?;
                ensure!(answer.status.is_success(), "{}", answer.status);
                times.push(counts_from.elapsed());
            }
            Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = clients.join_next().await {
        times.extend(done??);
    }
    times.sort_unstable();
    Ok(percentile(&times, 95) * 1e3)
}

/// How many seconds the requests take in all that come at once.
async fn at_once(door: SocketAddr) -> Result<f64> {
    let mut asked = JoinSet::new();
    let began = Instant::now();
    for _ in 0..AT_ONCE {
        asked.spawn(async move {
            let path = format!("/slow?head={SLOW_MS}&ms=0");
            Door::new(door).ask(Method::GET, &path, None, String::new()).await
        });
    }
    while let Some(answer) = asked.join_next().await {
        let status = answer??.status;
        ensure!(status.is_success(), "{status}");
    }
    Ok(began.elapsed().as_secs_f64())
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
