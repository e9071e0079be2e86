//! Apps that keep their sessions in memory: slow to start, everything over WebSockets, used by a
//! real browser through a mesh that they know nothing of.

use std::path::Path;
use std::time::{Duration, Instant};

use http::Method;
use libtest_mimic::Trial;
use serde_json::{Value as Json, json};
use tokio::time::timeout;
use toml::Table;
use warmhop_testbed::workspace;

use crate::browser::Browser;
use crate::installed::{Skipped, Tested, home, python};
use crate::support::World;
use crate::test;

/// The tests of this module.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("jupyterlab_opens_by_a_hop_and_keeps_its_kernels", jupyter),
        test("streamlit_opens_by_a_hop_and_keeps_its_state", streamlit),
    ]
}

async fn jupyter() -> Tested {
    python("jupyter-lab")?;
    python("ipython")?;
    let pinned = Pinned::new("jupyter", |app, folder| {
        // Each copy has its own folders, as it would have on a machine of its own.
        let run = app["run"].as_array_mut().expect("the example runs a shell");
        let line = run[2].as_str().expect("a command line");
        let line = format!(
            "d='{}'/$PORT; mkdir -p \"$d\"; export HOME=\"$d\" JUPYTER_CONFIG_DIR=\"$d/config\" \
             JUPYTER_DATA_DIR=\"$d/data\" JUPYTER_RUNTIME_DIR=\"$d/runtime\" IPYTHONDIR=\"$d/ipython\"; \
             cd \"$d\"; {line} --allow-root",
            folder.display()
        );
        run[2] = line.into();
    })
    .await?;
    let mut browser = Browser::start("pinned.js")?;

    let lab = "/lab?token=change-me";
    pinned.opens_by_a_hop(&mut browser, "ada", lab).await;
    browser.step(json!({ "do": "notebook", "page": "ada" })).await;
    let first = browser
        .step(json!({ "do": "cell", "page": "ada", "code": "import time; x = 6*7; x" }))
        .await;
    assert_eq!(first["text"], "42", "{first}");
    assert!(first["received"].as_u64() > Some(0), "the answer came over no WebSocket: {first}");
    // Names that a path has to be encoded for, a body, and a cookie that is sent back as a field.
    let path = "a b%2F é+c.txt";
    let file = json!({ "do": "file", "page": "ada", "path": path, "text": "6*7" });
    let file = browser.step(file).await;
    assert_eq!(file, json!({ "status": 201, "path": path, "text": "6*7" }));
    pinned.is_ready_here().await;

    // The kernel remembers, and streams what it prints over the WebSocket that was opened before
    // the copy here was ready.
    let prints = "[print(n, flush=True) or time.sleep(.05) for n in range(40)][0] or x + 1";
    let again = browser.step(json!({ "do": "cell", "page": "ada", "code": prints })).await;
    assert_eq!(again["text"], "43", "{again}");
    assert_eq!(again["sockets"], first["sockets"], "a WebSocket was cut off: {again}");
    let frames = |answer: &Json| answer["received"].as_u64().unwrap_or(0);
    assert!(frames(&again) > frames(&first) + 5, "it came in one piece: {first} {again}");
    pinned.stays(&mut browser, "ada").await;

    pinned.opens_here(&mut browser, "bob", lab).await;
    browser.step(json!({ "do": "notebook", "page": "bob" })).await;
    let fresh = "'x' in globals(), 6*7";
    let answer = browser.step(json!({ "do": "cell", "page": "bob", "code": fresh })).await;
    assert_eq!(answer["text"], "(False, 42)", "{answer}");
    browser.end().await;
    Ok(())
}

async fn streamlit() -> Tested {
    python("streamlit")?;
    let pinned = Pinned::new("streamlit", |app, folder| {
        let env: Table =
            [("HOME".into(), folder.to_str().expect("UTF-8").into())].into_iter().collect();
        app.insert("env".into(), env.into());
    })
    .await?;
    let mut browser = Browser::start("pinned.js")?;

    pinned.opens_by_a_hop(&mut browser, "ada", "/").await;
    let first = browser.step(json!({ "do": "term", "page": "ada", "term": 40 })).await;
    assert_eq!(first["text"], "1 terms, sum 40", "{first}");
    assert!(first["received"].as_u64() > Some(0), "the answer came over no WebSocket: {first}");
    pinned.is_ready_here().await;

    let again = browser.step(json!({ "do": "term", "page": "ada", "term": 2 })).await;
    assert_eq!(again["text"], "2 terms, sum 42", "{again}");
    assert_eq!(again["sockets"], first["sockets"], "a WebSocket was cut off: {again}");
    pinned.stays(&mut browser, "ada").await;

    pinned.opens_here(&mut browser, "bob", "/").await;
    let answer = browser.step(json!({ "do": "term", "page": "bob", "term": 42 })).await;
    assert_eq!(answer["text"], "1 terms, sum 42", "{answer}");
    browser.end().await;
    Ok(())
}

/// A mesh of three peers with an app of `examples/apps`, which is ready on the first alone.
struct Pinned {
    world: World,
    app: String,
    /// How long the copy on the first peer took to become ready.
    start: Duration,
}

/// Where the app is ready before anyone asks.
const WARM: usize = 0;
/// Where the browser arrives.
const ENTRY: usize = 1;

impl Pinned {
    async fn new(name: &str, change: impl FnOnce(&mut Table, &Path)) -> Result<Self, Skipped> {
        let file = workspace().join("examples/apps").join(format!("{name}.toml"));
        let config: Table = std::fs::read_to_string(&file).expect("the example").parse().unwrap();
        let mut app = config["app"][0].as_table().expect("an [[app]]").clone();
        let folder = home().join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        change(&mut app, &folder);
        let dir = app.get("dir").and_then(|dir| dir.as_str()).unwrap_or(".");
        let dir = file.with_file_name(dir);
        app.insert("dir".into(), dir.to_str().expect("UTF-8").into());
        // The test says where a copy is ready, so that it knows which request has to hop.
        app.insert("keep_ready".into(), 0.into());
        let programs = home().join("python/bin");
        let path = std::env::var("PATH").unwrap_or_default();
        let env = app.entry("env").or_insert_with(|| Table::new().into());
        let env = env.as_table_mut().expect("a table");
        env.insert("PATH".into(), format!("{}:{path}", programs.display()).into());

        let world = World::new(3, app).await;
        let begun = Instant::now();
        world.admin(WARM, Method::POST, &format!("/v1/apps/{name}/start")).await;
        let ready = async {
            while world.app(WARM, name).await["state"] == "starting" {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(130), ready).await.expect("it starts or fails in time");
        let start = begun.elapsed();
        world.reaches(WARM, name, "ready").await;
        Ok(Self { world, app: name.to_owned(), start })
    }

    /// By a name that no app has heard of, as both compare a WebSocket's Origin with its Host.
    /// Browsers take names below `localhost` for this machine.
    fn url(&self, path: &str) -> String {
        format!("http://apps.localhost:{}{path}", self.world.http(ENTRY).port())
    }

    /// A page is served at once by the warm peer, while the copy here starts.
    async fn opens_by_a_hop(&self, browser: &mut Browser, page: &str, path: &str) {
        assert_eq!(self.world.app(ENTRY, &self.app).await["state"], "cold");
        let opened =
            browser.step(json!({ "do": "open", "page": page, "url": self.url(path) })).await;
        println!(
            "{}: the page came in {} ms, by a hop; a copy takes {} ms to start",
            self.app,
            opened["waited_ms"],
            self.start.as_millis()
        );
        assert_eq!(opened["status"], 200, "{opened}");
        assert_eq!(opened["peer"], self.world.name(WARM), "{opened}");
        assert_ne!(self.world.app(ENTRY, &self.app).await["state"], "cold");
    }

    async fn is_ready_here(&self) {
        let ready = async {
            while self.world.app(ENTRY, &self.app).await["state"] == "starting" {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(130), ready).await.expect("it starts or fails in time");
        self.world.reaches(ENTRY, &self.app, "ready").await;
    }

    /// A session that was made elsewhere stays there, although a copy here is ready.
    async fn stays(&self, browser: &mut Browser, page: &str) {
        let again = browser.step(json!({ "do": "reload", "page": page })).await;
        assert_eq!(again["peer"], self.world.name(WARM), "{again}");
    }

    /// A client without a session is served here.
    async fn opens_here(&self, browser: &mut Browser, page: &str, path: &str) {
        let opened =
            browser.step(json!({ "do": "open", "page": page, "url": self.url(path) })).await;
        assert_eq!(opened["status"], 200, "{opened}");
        assert_eq!(opened["peer"], self.world.name(ENTRY), "{opened}");
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Whatever a failed test wrote stays to be looked at.
        if !std::thread::panicking() {
            let folder = home().join(format!("{}-{}", self.app, std::process::id()));
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}
