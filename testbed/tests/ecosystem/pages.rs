//! The pages that a peer itself shows, in a real browser: the dashboard, and the page of an app that
//! is starting. Screenshots are left below `target/ecosystem/pages`, to be looked at.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use libtest_mimic::Trial;
use serde_json::{Value as Json, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use toml::Table;
use warmhop_testbed::client::Client;

use crate::browser::Browser;
use crate::installed::{Tested, home};
use crate::support::{APP, ENDLESS, QUICK, SLOW, World, never_on, program_built, shop, until};
use crate::test;

/// The tests of this module.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("the_dashboard_shows_a_mesh_at_work", dashboard),
        test("the_dashboard_names_seeds_not_reached_and_answers_that_broke_off", troubled),
        test("the_dashboard_asks_for_the_token", guarded),
        test("a_dashboard_whose_connection_dies_silently_comes_back_by_itself", silent),
        test("a_dashboard_that_nobody_looks_at_keeps_no_connection", unseen),
        test("a_dashboard_of_many_peers_fits_any_window_and_asks_before_it_stops_an_app", many),
        test("a_starting_app_shows_its_progress_and_then_itself", starting),
        test("a_starting_app_opens_in_a_browser_without_scripts", starting_without_scripts),
        test("an_app_that_does_not_start_says_so_in_the_end", failing),
    ]
}

fn picture(name: &str) -> PathBuf {
    let folder = home().join("pages");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(format!("{name}.png"))
}

fn app(name: &str, docs: u32, more: &str) -> Table {
    let mut app = shop(docs, more);
    app.insert("name".into(), name.into());
    app.insert(
        "match".into(),
        Table::from_iter([("path".into(), format!("/{name}").into())]).into(),
    );
    app
}

/// Nothing went wrong in the page, nothing was asked of anyone else, and it is not too wide.
fn calm(state: &Json) {
    assert_eq!(state["errors"], json!([]), "{state:#}");
    assert_eq!(state["elsewhere"], json!([]), "{state:#}");
    assert_eq!(state["sideways"], json!(false), "{state:#}");
}

async fn dashboard() -> Tested {
    let mut browser = Browser::start("pages.js")?;
    let apps = vec![
        shop(QUICK, ""),
        app(
            "catalogue",
            ENDLESS,
            "session = 'none'\nready = { path = '/healthz', timeout = '10m' }",
        ),
        app("reports", QUICK, "session = 'pinned'\nrun = ['false']"),
    ];
    let mut world = World::with(3, apps, "", |index, config| {
        config["peer"].as_table_mut().unwrap().insert("zone".into(), ["a", "b", "b"][index].into());
        never_on(1)(index, config);
    })
    .await;
    world.expect_errors();
    world.warm(0).await;
    world.admin(1, Method::POST, "/v1/apps/catalogue/start").await;
    world.admin(1, Method::POST, "/v1/apps/reports/start").await;
    for number in 0..6 {
        let path = if number % 2 == 0 { "/cart/add?item=a" } else { "/cart/add?item=b" };
        Client::new().post(world.http(1), path).await.unwrap().ok().unwrap();
    }

    let url = format!("http://{}/", world.mesh.peer(1).ports.admin);
    let open = |name: &str, width: u32, dark: bool| json!({ "do": "open", "page": name, "url": url, "width": width, "dark": dark });
    browser.step(open("light", 1280, false)).await;
    browser.step(open("dark", 1280, true)).await;
    browser.step(open("phone", 390, false)).await;
    browser.step(json!({ "do": "sees", "page": "light", "text": "Live", "exact": true })).await;
    shows_what_was_before(&mut browser, &world).await;
    for name in ["light", "dark", "phone"] {
        browser.step(json!({ "do": "shot", "page": name, "file": picture(name) })).await;
        calm(&browser.step(json!({ "do": "state", "page": name })).await);
    }

    shows_what_happens(&mut browser, &world).await;
    shows_who_comes_and_goes(&mut browser, &mut world).await;
    browser.end().await;
    Ok(())
}

/// What was before the page was opened, at any of the peers.
async fn shows_what_was_before(browser: &mut Browser, world: &World) {
    let cells = browser.step(json!({ "do": "cells", "page": "light", "table": "apps" })).await;
    let rows = cells["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3, "{cells:#}");
    let cell = |row: usize, column: usize| rows[row][column].as_str().unwrap().to_owned();
    assert!(cell(0, 0).starts_with(APP) && cell(0, 1).starts_with("cold"), "{cells:#}");
    assert!(
        rows[0].as_array().unwrap().iter().any(|cell| cell.as_str().unwrap().starts_with("ready")),
        "{cells:#}"
    );
    assert!(
        cell(1, 1).starts_with("starting") && cell(1, 1).contains("its first start here"),
        "{cells:#}"
    );
    assert!(cell(2, 1).contains("it exited with status 1"), "{cells:#}");
    let peers = browser.step(json!({ "do": "cells", "page": "light", "table": "peers" })).await;
    let hops: Vec<&str> =
        peers["rows"].as_array().unwrap().iter().map(|row| row[3].as_str().unwrap()).collect();
    assert!(hops.contains(&"6"), "six hops were sent: {peers:#}");
    // What was before the page was opened, at any of the peers.
    browser.step(json!({ "do": "sees", "page": "light", "text": "of clients at 3 peers" })).await;
    let traffic = browser.step(json!({ "do": "cells", "page": "light", "table": "traffic" })).await;
    let rows = traffic["rows"].as_array().unwrap();
    let shop = rows.iter().find(|row| row[0] == APP).expect("each app has a row");
    assert!(shop[1] != "0" && shop[2] == "0" && shop[3] != "–", "six requests: {traffic:#}");
    let state = browser.step(json!({ "do": "state", "page": "light" })).await;
    calm(&state);
    let text = state["text"].as_str().unwrap();
    assert!(text.contains(&format!("to {}", world.name(0))), "the decisions are shown: {text}");
    assert!(
        text.contains("POST /cart/add") && !text.contains("item=a"),
        "without the query: {text}"
    );
}

/// What happens next shows by itself: nothing is loaded again.
async fn shows_what_happens(browser: &mut Browser, world: &World) {
    Client::new().get(world.http(1), "/whoami").await.unwrap().ok().unwrap();
    browser.step(json!({ "do": "sees", "page": "light", "text": "GET /whoami" })).await;
    browser.step(json!({ "do": "fill", "page": "light", "label": "Filter the decisions", "text": "no-such-thing" })).await;
    browser
        .step(
            json!({ "do": "sees", "page": "light", "text": "None of the recent requests matches" }),
        )
        .await;
    browser.step(json!({ "do": "fill", "page": "light", "label": "Filter the decisions", "text": "whoami" })).await;
    let keys =
        browser.step(json!({ "do": "press", "page": "light", "key": "Tab", "times": 2 })).await;
    assert_eq!(keys["focused"], json!(["hold", "summary"]), "{keys:#}");
    browser.step(json!({ "do": "press", "page": "light", "key": "Enter" })).await;
    browser
        .step(json!({ "do": "sees", "page": "light", "text": format!("{}: ready", world.name(0)) }))
        .await;
    browser.step(json!({ "do": "shot", "page": "light", "file": picture("decision") })).await;
    let loads = browser.step(json!({ "do": "state", "page": "light" })).await;
    assert_eq!(loads["loads"], json!([200]), "it was loaded once");

    // A reader of one goes on reading it, however many come after it.
    for _ in 0..50 {
        Client::new().get(world.http(1), "/whoami").await.unwrap().ok().unwrap();
    }
    Client::new().get(world.http(1), "/cart").await.unwrap();
    browser.step(json!({ "do": "sees", "page": "dark", "text": "GET /cart" })).await;
    let state = browser.step(json!({ "do": "state", "page": "light" })).await;
    let text = state["text"].as_str().unwrap();
    assert!(text.contains(&format!("{}: ready", world.name(0))), "the decision is gone: {text}");
}

/// A peer is killed, comes back and leaves in good order; then the one that tells is killed.
async fn shows_who_comes_and_goes(browser: &mut Browser, world: &mut World) {
    let button = "Stop catalogue on this peer";
    browser.step(json!({ "do": "focus", "page": "dark", "label": button })).await;
    world.mesh.kill(2).unwrap();
    browser.step(json!({ "do": "sees", "page": "light", "text": "suspect" })).await;
    browser.step(json!({ "do": "shot", "page": "light", "file": picture("killed") })).await;
    world.mesh.start(2).unwrap();
    let name = world.name(2).to_owned();
    world.believes(1, &name, true).await;
    assert!(world.mesh.stop(2).await.unwrap().success());
    browser.step(json!({ "do": "sees", "page": "dark", "text": "gone" })).await;
    let state = browser.step(json!({ "do": "state", "page": "dark" })).await;
    assert_eq!(state["focused"], button, "the focus was lost with the column of the peer");
    assert_eq!(state["title"], format!("{} – warmhop", world.name(1)));
    world.mesh.kill(1).unwrap();
    browser.step(json!({ "do": "sees", "page": "dark", "text": "Connection lost" })).await;
    let state = browser.step(json!({ "do": "state", "page": "dark" })).await;
    assert_eq!(state["title"], format!("no answer – {} – warmhop", world.name(1)));
    let text = state["text"].as_str().unwrap();
    assert!(text.contains("no answer") && !text.contains("serving"), "{text}");
    browser.step(json!({ "do": "shot", "page": "dark", "file": picture("lost") })).await;
    world.mesh.start(1).unwrap();
    browser.step(json!({ "do": "sees", "page": "dark", "text": "Live", "exact": true })).await;
    let state = browser.step(json!({ "do": "state", "page": "dark" })).await;
    assert_eq!(state["loads"], json!([200]), "it came back by itself");
    assert_eq!(state["title"], format!("{} – warmhop", world.name(1)));
}

async fn troubled() -> Tested {
    let mut browser = Browser::start("pages.js")?;
    let seed = "no-such-host.invalid:7001";
    let world = World::with(1, vec![shop(QUICK, "")], "", |_, config| {
        config["mesh"].as_table_mut().unwrap().insert("seeds".into(), vec![seed].into());
    })
    .await;
    world.warm(0).await;
    Client::new().get(world.http(0), "/whoami").await.unwrap().ok().unwrap();
    assert!(Client::new().get(world.http(0), "/cut?n=300000").await.is_err(), "it breaks off");
    let url = format!("http://{}/", world.mesh.peer(0).ports.admin);
    for (page, width) in [("desk", 1280), ("phone", 390)] {
        let open = json!({ "do": "open", "page": page, "url": url, "width": width });
        browser.step(open).await;
        for text in ["Seeds: 0 of 1 reached", "its name cannot be resolved", "GET /cut"] {
            browser.step(json!({ "do": "sees", "page": page, "text": text })).await;
        }
        let state = browser.step(json!({ "do": "state", "page": page })).await;
        calm(&state);
        let text = state["text"].as_str().unwrap();
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part} in {text}"));
        assert!(text.contains(&format!("{APP} GET /cut")), "the app is named: {text}");
        assert!(at("broke off") > at("Recent decisions"), "{text}");
        assert!(at("GET /cut") < at("GET /whoami"), "what failed comes first: {text}");
        browser
            .step(json!({ "do": "sees", "page": page, "text": "of clients at this peer" }))
            .await;
        let table = json!({ "do": "cells", "page": page, "table": "traffic" });
        let traffic = browser.step(table).await;
        assert!(traffic["rows"][0][2].as_str().unwrap().ends_with("(1)"), "{traffic:#}");
        let file = picture(&format!("troubled-{page}"));
        browser.step(json!({ "do": "shot", "page": page, "file": file })).await;
    }
    browser
        .step(
            json!({ "do": "fill", "page": "desk", "label": "Filter the decisions", "text": "cut" }),
        )
        .await;
    browser.step(json!({ "do": "press", "page": "desk", "key": "Tab", "times": 2 })).await;
    browser.step(json!({ "do": "press", "page": "desk", "key": "Enter" })).await;
    for text in ["host 127.0.0.1", "the answer broke off after"] {
        browser.step(json!({ "do": "sees", "page": "desk", "text": text })).await;
    }
    browser.step(json!({ "do": "shot", "page": "desk", "file": picture("broke-off") })).await;
    browser.end().await;
    Ok(())
}

async fn guarded() -> Tested {
    let mut browser = Browser::start("pages.js")?;
    let token = "a-token-that-is-long-enough-to-be-one";
    let settings = format!("[admin]\ntoken = '{token}'\n");
    let mut world = World::prepare(1, vec![shop(QUICK, "")], &settings);
    world.mesh.start(0).unwrap();
    let admin = world.mesh.peer(0).ports.admin;
    until("the admin listener answers", async || Client::new().get(admin, "/healthz").await.ok())
        .await;
    browser.step(json!({ "do": "open", "page": "a", "url": format!("http://{admin}/") })).await;
    browser.step(json!({ "do": "sees", "page": "a", "text": "asks for its admin token" })).await;
    let state = browser.step(json!({ "do": "state", "page": "a" })).await;
    assert!(!state["text"].as_str().unwrap().contains(APP), "{state:#}");
    browser.step(json!({ "do": "shot", "page": "a", "file": picture("token") })).await;
    for (wrong, said) in
        [("a-token-that-is-another-one", "did not accept this token"), ("жетон", "signs of ASCII")]
    {
        let fill = json!({ "do": "fill", "page": "a", "label": "Admin token", "text": wrong });
        browser.step(fill).await;
        browser.step(json!({ "do": "press", "page": "a", "key": "Enter" })).await;
        browser.step(json!({ "do": "sees", "page": "a", "text": said })).await;
    }
    browser.step(json!({ "do": "fill", "page": "a", "label": "Admin token", "text": token })).await;
    browser.step(json!({ "do": "press", "page": "a", "key": "Enter" })).await;
    browser.step(json!({ "do": "sees", "page": "a", "text": "Live", "exact": true })).await;
    calm(&browser.step(json!({ "do": "state", "page": "a" })).await);
    browser.end().await;
    Ok(())
}

/// Passes connections on to `to`, and from a call of the switch on nothing more on those that there
/// are, without closing them.
async fn passing(to: SocketAddr) -> (SocketAddr, watch::Sender<u64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let switch = watch::Sender::new(0);
    let all = switch.subscribe();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut switched = all.clone();
            switched.mark_unchanged();
            tokio::spawn(async move {
                let mut peer = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut peer) => {}
                    _ = switched.changed() => std::future::pending().await,
                }
            });
        }
    });
    (addr, switch)
}

async fn silent() -> Tested {
    let mut browser = Browser::start("pages.js")?;
    let world = World::new(1, shop(QUICK, "")).await;
    let (addr, switch) = passing(world.mesh.peer(0).ports.admin).await;
    browser.step(json!({ "do": "open", "page": "a", "url": format!("http://{addr}/") })).await;
    browser.step(json!({ "do": "sees", "page": "a", "text": "Live", "exact": true })).await;
    switch.send_modify(|count| *count += 1);
    browser.step(json!({ "do": "sees", "page": "a", "text": "Connection lost" })).await;
    browser.step(json!({ "do": "sees", "page": "a", "text": "Live", "exact": true })).await;
    let state = browser.step(json!({ "do": "state", "page": "a" })).await;
    assert_eq!(state["loads"], json!([200]), "it was not loaded again");
    browser.end().await;
    Ok(())
}

async fn unseen() -> Tested {
    let mut browser = Browser::start("pages.js")?;
    let world = World::new(1, shop(QUICK, "")).await;
    let url = format!("http://{}/", world.mesh.peer(0).ports.admin);
    // A browser has six connections to one peer.
    for number in 0..8 {
        let page = format!("tab {number}");
        let open = json!({ "do": "open", "page": page, "url": url, "with": "tab 0" });
        browser.step(open).await;
        browser.step(json!({ "do": "sees", "page": page, "text": "Live", "exact": true })).await;
        browser.step(json!({ "do": "hide", "page": page, "hidden": true })).await;
    }
    Client::new().get(world.http(0), "/whoami").await.unwrap().ok().unwrap();
    browser.step(json!({ "do": "hide", "page": "tab 0", "hidden": false })).await;
    browser.step(json!({ "do": "sees", "page": "tab 0", "text": "GET /whoami" })).await;
    browser.step(json!({ "do": "sees", "page": "tab 0", "text": "Live", "exact": true })).await;
    browser.end().await;
    Ok(())
}

async fn many() -> Tested {
    let mut browser = Browser::start("pages.js")?;
    let elsewhere_alone = app("archive", QUICK, "session = 'none'");
    let world = World::with(7, vec![shop(QUICK, ""), elsewhere_alone], "", |index, config| {
        if index == 0 {
            config["app"].as_array_mut().unwrap().pop();
        }
    })
    .await;
    world.warm(0).await;
    world.warm(3).await;
    let url = format!("http://{}/", world.mesh.peer(0).ports.admin);
    for (width, dark) in [(1280, false), (1024, true), (768, false), (390, true), (320, false)] {
        let page = format!("{width}");
        let open = json!({ "do": "open", "page": page, "url": url, "width": width, "dark": dark });
        browser.step(open).await;
        let summary = format!("1 ready: {}", world.name(3));
        browser.step(json!({ "do": "sees", "page": page, "text": summary })).await;
        let cells = browser.step(json!({ "do": "cells", "page": page, "table": "apps" })).await;
        let rows = cells["rows"].as_array().unwrap();
        assert!(rows[0][2].as_str().unwrap().contains("5 cold"), "{cells:#}");
        assert!(rows[1][0].as_str().unwrap().starts_with("archive"), "{cells:#}");
        assert_eq!((&rows[1][1], &rows[1][2]), (&json!("not here"), &json!("6 cold")));
        let file = picture(&format!("many-{width}"));
        browser.step(json!({ "do": "shot", "page": page, "file": file })).await;
        calm(&browser.step(json!({ "do": "state", "page": page })).await);
    }
    // It serves a request while it is to be stopped.
    Client::new().get(world.http(0), "/whoami").await.unwrap().ok().unwrap();
    browser.step(json!({ "do": "sees", "page": "1280", "text": "GET /whoami" })).await;
    let stop = format!("Stop {APP} on this peer");
    browser.step(json!({ "do": "click", "page": "1280", "label": stop })).await;
    let state = browser.step(json!({ "do": "state", "page": "1280" })).await;
    let question = state["questions"][0].as_str().unwrap();
    assert!(question.contains("shop serves requests here"), "{question}");
    world.reaches(0, APP, "ready").await;
    browser.end().await;
    Ok(())
}

async fn starting() -> Tested {
    let mut browser = Browser::start("pages.js")?;
    // The app starts when the test lets it, however quick the machine and slow the browser is.
    let gate = home().join(format!("gate-{}", std::process::id()));
    let bookshop = program_built("bookshop");
    let script = format!(
        "while [ ! -e \"{}\" ]; do sleep 0.05; done; exec \"{}\"",
        gate.display(),
        bookshop.display()
    );
    let world = World::new(2, shop(QUICK, &format!("run = ['sh', '-c', '{script}']"))).await;
    for (name, width, dark) in [
        ("first", 1280, false),
        ("light", 1280, false),
        ("dark", 1280, true),
        ("phone", 390, false),
    ] {
        let url = format!("http://{}/", world.http(0));
        let open = json!({ "do": "open", "page": name, "url": url, "width": width, "dark": dark });
        let opened = browser.step(open).await;
        assert_eq!(opened["status"], 503, "{name} came at once");
        browser.step(json!({ "do": "sees", "page": name, "text": "shop is starting" })).await;
        let file = picture(&format!("starting-{name}"));
        browser.step(json!({ "do": "shot", "page": name, "file": file })).await;
        if name == "first" {
            // It is measured, so that those after it have an end to go towards, and one far
            // enough for a page.
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        if name == "light" {
            let late = "It takes longer than usual.";
            browser.step(json!({ "do": "sees", "page": name, "text": late })).await;
            let file = picture("starting-late");
            browser.step(json!({ "do": "shot", "page": name, "file": file })).await;
        }
        std::fs::write(&gate, "").unwrap();
        browser.step(json!({ "do": "sees", "page": name, "text": "books in stock" })).await;
        std::fs::remove_file(&gate).unwrap();
        let state = browser.step(json!({ "do": "state", "page": name })).await;
        calm(&state);
        // Without a click, and without loading the page again and again.
        assert_eq!(state["loads"], json!([503, 200]), "{state:#}");
        world.admin(0, Method::POST, &format!("/v1/apps/{APP}/stop")).await;
        world.reaches(0, APP, "cold").await;
    }
    browser.end().await;
    Ok(())
}

async fn starting_without_scripts() -> Tested {
    let mut browser = Browser::start("pages.js")?;
    let world = World::new(1, shop(SLOW, "")).await;
    let url = format!("http://{}/", world.http(0));
    let opened =
        browser.step(json!({ "do": "open", "page": "a", "url": url, "script": false })).await;
    assert_eq!(opened["status"], 503);
    browser.step(json!({ "do": "sees", "page": "a", "text": "books in stock" })).await;
    browser.end().await;
    Ok(())
}

async fn failing() -> Tested {
    let mut browser = Browser::start("pages.js")?;
    let mut world = World::new(1, shop(QUICK, "run = ['false']")).await;
    world.expect_errors();
    let url = format!("http://{}/", world.http(0));
    let opened = browser.step(json!({ "do": "open", "page": "a", "url": url })).await;
    assert_eq!(opened["status"], 503);
    browser.step(json!({ "do": "sees", "page": "a", "text": "It has failed to start " })).await;
    browser.step(json!({ "do": "sees", "page": "a", "text": "The next try is in" })).await;
    calm(&browser.step(json!({ "do": "state", "page": "a" })).await);
    browser.end().await;
    Ok(())
}
