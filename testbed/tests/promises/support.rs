//! A mesh for one test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::Value as Json;
use toml::Table;
use warmhop_testbed::client::{Client, Reply};
use warmhop_testbed::mesh::{Mesh, Spec};
use warmhop_testbed::ports::Reservation;
use warmhop_testbed::{program, workspace};

/// The app's name in these tests.
pub(crate) const APP: &str = "shop";
/// Where a front door says whether its peer takes traffic.
pub(crate) const READY_PATH: &str = "/.well-known/warmhop/readyz";
/// How long anything may take that takes milliseconds or a second when the machine is idle.
pub(crate) const BOUND: Duration = Duration::from_secs(30);
/// A stock that is read in some hundredths of a second.
pub(crate) const QUICK: u32 = 300;
/// A stock that takes about a second, so that what happens meanwhile can be seen.
pub(crate) const SLOW: u32 = 40_000;
/// A stock that is never read to its end within a test.
pub(crate) const ENDLESS: u32 = 100_000_000;

/// A change of configuration by which the app never runs on the peer at `index`.
pub(crate) fn never_on(index: usize) -> impl Fn(usize, &mut Table) {
    move |peer, config| {
        if peer == index {
            config["app"].as_array_mut().unwrap()[0]["start"] = "never".into();
        }
    }
}

/// The bookshop with a stock of `docs` books, and further keys of its `[[app]]` table.
pub(crate) fn shop(docs: u32, more: &str) -> Table {
    let mut app: Table = format!(
        "name = '{APP}'\nmatch = {{ path = '/' }}\nstart = 'on-request'\nsession = 'portable'\n\
         env = {{ DOCS = '{docs}', ALLOW_CRASH = '1' }}\n\
         ready = {{ path = '/healthz', timeout = '60s' }}\n"
    )
    .parse()
    .unwrap();
    app.extend(more.parse::<Table>().unwrap());
    if !app.contains_key("run") {
        let run = program_built("bookshop").to_str().unwrap().to_owned();
        app.insert("run".into(), toml::Value::Array(vec![run.into()]));
    }
    app
}

/// One mesh, its clients' addresses and its end.
pub(crate) struct World {
    pub(crate) mesh: Mesh,
    folder: PathBuf,
    errors_expected: bool,
    _ports: Reservation,
}

impl World {
    /// A formed mesh of `peers` peers that can all run `app`.
    pub(crate) async fn new(peers: u16, app: Table) -> Self {
        Self::with(peers, vec![app], "", |_, _| ()).await
    }

    /// A formed mesh; `settings` go to every peer, and `change` may alter each configuration.
    pub(crate) async fn with(
        peers: u16,
        apps: Vec<Table>,
        settings: &str,
        change: impl Fn(usize, &mut Table),
    ) -> Self {
        let mut world = Self::prepare(peers, apps, settings);
        for index in 0..usize::from(peers) {
            world.mesh.reconfigure(index, |config| change(index, config)).unwrap();
            world.mesh.start(index).unwrap();
        }
        if let Err(error) = world.mesh.formed().await {
            panic!("{error:#}");
        }
        world
    }

    /// A mesh of which nothing runs yet.
    pub(crate) fn prepare(peers: u16, apps: Vec<Table>, settings: &str) -> Self {
        static WORLDS: AtomicU32 = AtomicU32::new(0);
        program_built("warmhop");
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("mesh-{}-{number}", std::process::id()));
        let ports = Reservation::new().unwrap();
        let spec = Spec {
            folder: folder.clone(),
            cluster: format!("test-{number}"),
            ports: (0..peers).map(|index| ports.peer(index)).collect(),
            apps,
            settings: settings.parse().unwrap(),
            detached: false,
        };
        let mesh = Mesh::prepare(spec).unwrap_or_else(|error| panic!("{error:#}"));
        Self { mesh, folder, errors_expected: false, _ports: ports }
    }

    /// The front door of the peer at `index`.
    pub(crate) fn http(&self, index: usize) -> SocketAddr {
        self.mesh.peer(index).ports.http
    }

    /// The name of the peer at `index`.
    pub(crate) fn name(&self, index: usize) -> &str {
        &self.mesh.peer(index).name
    }

    /// What the peer at `index` reports of itself and the mesh.
    pub(crate) async fn status(&self, index: usize) -> Json {
        let reply = self.admin(index, Method::GET, "/v1/status").await;
        reply.ok().and_then(|reply| reply.json()).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// One of the apps in the status of the peer at `index`.
    pub(crate) async fn app(&self, index: usize, app: &str) -> Json {
        let status = self.status(index).await;
        let apps = status["apps"].as_array().unwrap();
        apps.iter().find(|entry| entry["name"] == app).expect("the app is configured").clone()
    }

    /// Asks the admin listener of the peer at `index`.
    pub(crate) async fn admin(&self, index: usize, method: Method, path: &str) -> Reply {
        let mut client = Client::new();
        client.call(method, path).send(self.mesh.peer(index).ports.admin).await.unwrap()
    }

    /// Has the app ready on the peer at `index`, and every running peer know of it.
    pub(crate) async fn warm(&self, index: usize) {
        let started = self.admin(index, Method::POST, &format!("/v1/apps/{APP}/start")).await;
        assert!(started.status.is_success(), "{} {}", started.status, started.text());
        self.reaches(index, APP, "ready").await;
    }

    /// Waits until the app is in `state` on the peer at `index` and every running peer
    /// believes so.
    pub(crate) async fn reaches(&self, index: usize, app: &str, state: &str) {
        let name = self.name(index);
        until(&format!("{app} is {state} on {name}"), async || {
            (self.app(index, app).await["state"] == state).then_some(())
        })
        .await;
        for (other, peer) in self.mesh.peers().iter().enumerate() {
            if other == index || !peer.is_alive() {
                continue;
            }
            until(&format!("{} knows that {app} is {state} on {name}", peer.name), async || {
                let status = self.status(other).await;
                let seen = status["peers"].as_array()?.iter().find(|p| p["name"] == name)?;
                (seen["apps"][app] == state).then_some(())
            })
            .await;
        }
    }

    /// Waits until the peer at `index` believes that the one named `other` is alive or not.
    pub(crate) async fn believes(&self, index: usize, other: &str, alive: bool) {
        until(&format!("{} sees {other} alive: {alive}", self.name(index)), async || {
            let status = self.status(index).await;
            let peers = status["peers"].as_array()?;
            let seen = peers.iter().any(|p| p["name"] == other && p["alive"] == true);
            (seen == alive).then_some(())
        })
        .await;
    }

    /// Waits until `n` requests are in the app on the peer at `index`.
    pub(crate) async fn in_flight(&self, index: usize, n: u64) {
        until(&format!("{n} requests are in flight at {}", self.name(index)), async || {
            (self.app(index, APP).await["in_flight"] == n).then_some(())
        })
        .await;
    }

    /// Runs the binary against the admin listener of the peer at `index`.
    pub(crate) fn warmhop(&self, index: usize, args: &[&str]) -> Output {
        Command::new(program("warmhop").unwrap())
            .args(args)
            .env("WARMHOP_ADMIN", format!("http://{}", self.mesh.peer(index).ports.admin))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// A log line at ERROR is what this test is about, so it does not fail it.
    pub(crate) fn expect_errors(&mut self) {
        self.errors_expected = true;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for peer in self.mesh.peers() {
                let log = peer.log();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(40)..].join("\n");
                eprintln!("---- {} ({}):\n{tail}", peer.name, peer.folder().display());
            }
            return;
        }
        let errors: Vec<String> = self
            .mesh
            .peers()
            .iter()
            .flat_map(|peer| {
                let log = peer.log();
                // By their level: an app may print the word in its own lines.
                let is_error = |line: &&str| line.split_whitespace().nth(1) == Some("ERROR");
                let lines = log.lines().filter(is_error);
                lines.map(|line| format!("{}: {line}", peer.name)).collect::<Vec<_>>()
            })
            .collect();
        assert!(
            self.errors_expected || errors.is_empty(),
            "errors in the logs under {}:\n{}",
            self.folder.display(),
            errors.join("\n")
        );
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Asks again until there is an answer; fails the test if there is none within [`BOUND`].
pub(crate) async fn until<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    match warmhop_testbed::mesh::until(what, BOUND, ask).await {
        Ok(answer) => answer,
        Err(error) => panic!("{error:#}"),
    }
}

/// A client whose cart is checked against what was acknowledged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shopper {
    pub(crate) client: Client,
    pub(crate) acknowledged: u64,
}

impl Shopper {
    /// Adds an item; the answer must count exactly what was acknowledged so far.
    pub(crate) async fn add(&mut self, addr: SocketAddr) -> Reply {
        let reply = self.client.post(addr, "/cart/add?item=book").await.unwrap().ok().unwrap();
        self.acknowledged += 1;
        assert_eq!(reply.json().unwrap()["count"], self.acknowledged, "{reply:?}");
        reply
    }

    /// Reads the cart, which must hold exactly what was acknowledged.
    pub(crate) async fn check(&mut self, addr: SocketAddr) -> Reply {
        let reply = self.client.get(addr, "/cart").await.unwrap().ok().unwrap();
        assert_eq!(reply.json().unwrap()["count"], self.acknowledged, "{reply:?}");
        reply
    }
}

/// The path of a program of this workspace, built from the tree as it is.
///
/// `cargo test` builds the programs of the package under test only. This builds those of the
/// others once a run, with the features that `cargo test --workspace --all-features` resolves, so
/// that after it there is nothing left to build.
pub(crate) fn program_built(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let programs = warmhop_testbed::programs().unwrap();
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo
            .args(["build", "--quiet", "--workspace", "--all-features", "--bins", "--tests"])
            .arg("--target-dir")
            .arg(programs.parent().unwrap())
            .current_dir(workspace())
            .stdin(Stdio::null());
        if programs.ends_with("release") {
            cargo.arg("--release");
        }
        // What cargo tells a test about its package would look to build scripts like a change
        // of their environment, and have them run again.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let prefixes = ["CARGO_PKG_", "CARGO_BIN_", "CARGO_MANIFEST_", "CARGO_CRATE_"];
            if prefixes.iter().any(|prefix| text.starts_with(prefix))
                || ["CARGO", "CARGO_PRIMARY_PACKAGE", "CARGO_TARGET_TMPDIR"].contains(&&*text)
            {
                cargo.env_remove(&name);
            }
        }
        assert!(cargo.status().unwrap().success(), "the programs under test do not build");
    });
    program(name).unwrap()
}
