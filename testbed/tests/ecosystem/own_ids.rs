//! Apps that know their clients by ids of their own, asked by plain clients who keep no cookie and
//! reach another peer with each request.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use http::{Method, StatusCode};
use libtest_mimic::Trial;
use toml::Table;
use warmhop_testbed::client::{Client, Reply};
use warmhop_testbed::workspace;

use crate::balancers;
use crate::installed::{Tested, home, node, python};
use crate::support::{APP, World};
use crate::test;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("a_session_that_an_app_names_in_a_field_is_found_at_every_peer", named_in_a_field),
        test("a_queue_that_a_client_joins_is_asked_for_its_answer_at_every_peer", queue),
        test("a_call_is_left_at_one_peer_and_its_result_is_fetched_at_another", calls),
        test("calls_of_gradio_by_curl_are_answered_at_every_peer", calls_of_gradio),
        test("a_client_of_socket_io_polls_at_every_peer", socket_io),
        test("clients_of_the_model_context_protocol_keep_their_session", context_protocol),
    ]
}

/// How long a start may take of an app that imports much.
const START_WITHIN: Duration = Duration::from_secs(180);

fn app_file(name: &str) -> PathBuf {
    workspace().join("testbed/tests/ecosystem/apps").join(name)
}

/// Three peers, of which the app is ready on the first alone.
async fn world(which: &str, by: &str, ready: &str) -> World {
    world_of("own_ids.py", which, by, ready).await
}

async fn world_of(file: &str, which: &str, by: &str, ready: &str) -> World {
    let file = app_file(file);
    let python = home().join("python/bin/python");
    let app: Table = format!(
        "name = '{APP}'\nsession = {{ pinned = true, by = {by} }}\n\
         run = ['{}', '{}', '{which}']\nready = {ready}\n",
        python.display(),
        file.display()
    )
    .parse()
    .expect("TOML");
    let world = World::new(3, app).await;
    becomes_ready(&world, 0).await;
    world
}

/// Starts the app there, which may be a slow one.
async fn becomes_ready(world: &World, index: usize) {
    world.admin(index, Method::POST, &format!("/v1/apps/{APP}/start")).await;
    let ready = async || (world.app(index, APP).await["state"] == "ready").then_some(());
    warmhop_testbed::mesh::until("the app is ready", START_WITHIN, ready).await.expect("a start");
    world.reaches(index, APP, "ready").await;
}

/// A client that remembers nothing.
async fn ask(world: &World, index: usize, path: &str, id: Option<&str>, body: &str) -> Reply {
    let mut client = Client::new();
    let mut call = client.call(Method::POST, path);
    if let Some(id) = id {
        call = call.header("mcp-session-id", id);
    }
    call.body(body.to_owned()).send(world.http(index)).await.expect("an answer")
}

async fn named_in_a_field() -> Tested {
    python("python")?;
    let by = "{ header = 'Mcp-Session-Id' }";
    let world = world("fields", by, "{ path = '/ready' }").await;
    // By a hop, while the copy here starts.
    let begun = ask(&world, 1, "/mcp", None, "initialize").await;
    assert_eq!((begun.status, begun.peer()), (StatusCode::OK, Some("peer-1")));
    let id = begun.header("mcp-session-id").expect("an id").to_owned();
    let mut said = "initialize".to_owned();
    for round in 0..2 {
        for index in [2, 0, 1] {
            said.push_str(" list");
            let reply = ask(&world, index, "/mcp", Some(&id), "list").await;
            assert_eq!((reply.status, reply.text()), (StatusCode::OK, said.clone()), "{index}");
            assert_eq!(reply.peer(), Some("peer-1"));
            assert!(reply.header("set-cookie").is_none(), "{reply:?}");
        }
        if round == 0 {
            // From here on each of them has a copy of its own.
            world.reaches(1, APP, "ready").await;
            world.reaches(2, APP, "ready").await;
        }
    }
    let stranger = ask(&world, 1, "/mcp", Some("made-up"), "list").await;
    assert_eq!(stranger.status, StatusCode::NOT_FOUND);
    let other = ask(&world, 2, "/mcp", None, "initialize").await;
    assert_eq!(other.peer(), Some("peer-3"), "a new one is made where it is asked for");
    let other = other.header("mcp-session-id").expect("an id").to_owned();
    assert_eq!(ask(&world, 0, "/mcp", Some(&other), "x").await.text(), "initialize x");
    Ok(())
}

async fn queue() -> Tested {
    python("python")?;
    let world = world("queue", "{ query = 'session_hash' }", "{ path = '/ready' }").await;
    for index in [1, 2] {
        world.admin(index, Method::POST, &format!("/v1/apps/{APP}/start")).await;
        world.reaches(index, APP, "ready").await;
    }
    for (at, id) in [(1, "a1"), (2, "b2"), (0, "c3")] {
        let joined = ask(&world, at, &format!("/join?session_hash={id}"), None, id).await;
        assert_eq!(joined.status, StatusCode::OK, "{}", joined.text());
        for index in 0..3 {
            let path = format!("/data?session_hash={id}");
            let reply = ask(&world, index, &path, None, "").await;
            assert_eq!((reply.status, reply.text()), (StatusCode::OK, id.to_owned()), "{index}");
        }
    }
    Ok(())
}

/// Where a Gradio app has the ids of browsers and of plain calls.
const OF_GRADIO: &str = "{ query = 'session_hash', path = '/gradio_api/call/*/{event_id}' }";

async fn calls() -> Tested {
    python("python")?;
    let world = world("calls", OF_GRADIO, "{ path = '/ready' }").await;
    leaves_calls(&world, &["/gradio_api/call/greet"]).await;
    Ok(())
}

async fn calls_of_gradio() -> Tested {
    python("gradio")?;
    let ready = "{ path = '/gradio_api/info', timeout = '3m' }";
    let world = world_of("with_gradio.py", "", OF_GRADIO, ready).await;
    leaves_calls(&world, &["/gradio_api/call/greet", "/gradio_api/call/v2/greet"]).await;
    Ok(())
}

/// Two plain calls each, of which the second is for another peer, while the copies there start and
/// once they are ready.
async fn leaves_calls(world: &World, paths: &[&str]) {
    let leave = async |index: usize, path: &str, name: &str| {
        let body = match path.contains("/v2/") {
            true => serde_json::json!({ "name": name }),
            false => serde_json::json!({ "data": [name] }),
        };
        let mut client = Client::new();
        let call = client.call(Method::POST, path).header("content-type", "application/json");
        let left = call.body(body.to_string()).send(world.http(index)).await.expect("an answer");
        let said: serde_json::Value = serde_json::from_str(&left.text()).expect("JSON");
        format!("/gradio_api/call/greet/{}", said["event_id"].as_str().expect("an id"))
    };
    let fetch = async |index: usize, path: &str, name: &str| {
        let fetched = Client::new().get(world.http(index), path).await.expect("an answer").text();
        let expected = format!("data: [\"greet {name}\"]");
        assert!(fetched.contains(&expected), "peer {index}, {name}: {fetched}");
    };
    let mut left = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        // By a hop, while the copy there starts.
        let name = format!("early-{at}");
        left.push((leave(1, path, &name).await, name));
    }
    for index in [1, 2] {
        becomes_ready(world, index).await;
    }
    for (path, name) in &left {
        fetch(1, path, name).await;
    }
    for path in paths {
        for index in 0..3 {
            for other in 0..3 {
                let name = format!("ada-{index}-{other}");
                let left = leave(index, path, &name).await;
                fetch(other, &left, &name).await;
            }
        }
    }
}

async fn socket_io() -> Tested {
    python("python")?;
    let world = world("socket_io", "{ query = 'sid' }", "{}").await;
    for index in [1, 2] {
        world.admin(index, Method::POST, &format!("/v1/apps/{APP}/start")).await;
        world.reaches(index, APP, "ready").await;
    }
    let path = "/socket.io/?EIO=4&transport=polling";
    let opened = Client::new().get(world.http(0), path).await.expect("an answer").text();
    let packet: serde_json::Value = serde_json::from_str(&opened[1..]).expect("an open packet");
    let path = format!("{path}&sid={}", packet["sid"].as_str().expect("an id"));
    let say = async |index: usize, packet: &str| {
        let reply = ask(&world, index, &path, None, packet).await;
        assert_eq!((reply.status, reply.text()), (StatusCode::OK, "OK".into()), "{packet}");
    };
    let hear = async |index: usize| {
        Client::new().get(world.http(index), &path).await.expect("an answer").text()
    };
    say(1, "40").await;
    assert!(hear(2).await.starts_with("40{"), "it joins the namespace");
    say(1, "421[\"say\",\"a\"]").await;
    assert_eq!(hear(0).await, "431[\"a\"]");
    say(2, "422[\"say\",\"b\"]").await;
    assert_eq!(hear(1).await, "432[\"a b\"]");
    Ok(())
}

/// What HAProxy needs to deal requests out in turn, whichever client sends them.
pub(crate) fn in_turn(world: &World, listen: SocketAddr) -> String {
    let mut recipe = format!(
        "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         frontend all\n bind {listen}\n default_backend peers\n\
         backend peers\n balance roundrobin\n"
    );
    for index in 0..3 {
        recipe.push_str(&format!(" server {} {}\n", world.name(index), world.http(index)));
    }
    recipe
}

async fn context_protocol() -> Tested {
    python("mcp")?;
    node("@modelcontextprotocol/sdk")?;
    let by = "{ header = 'Mcp-Session-Id' }";
    let world = world_of("mcp_server.py", "", by, "{ path = '/ready' }").await;
    let balancer = balancers::launch("haproxy", |listen| in_turn(&world, listen))?;
    balancers::serves(balancer.addr).await;
    let url = format!("http://{}/mcp", balancer.addr);
    let run = |mut client: Command, file: &str| {
        client.arg(app_file(file)).arg(&url).arg("a b c d e f").stdin(Stdio::null());
        tokio::task::spawn_blocking(move || {
            let ran = client.output().expect("it starts");
            let errors = String::from_utf8_lossy(&ran.stderr);
            assert!(ran.status.success(), "{client:?}: {errors}");
            let said = String::from_utf8_lossy(&ran.stdout);
            assert_eq!(said.trim(), "a b c d e f", "{client:?}");
        })
    };
    // The copies on the other two become ready while sessions of the first are used.
    let of_python = run(python("python")?, "mcp_client.py");
    run(node("@modelcontextprotocol/sdk")?, "mcp_client.js").await.expect("it ends");
    of_python.await.expect("it ends");
    for index in [1, 2] {
        world.reaches(index, APP, "ready").await;
    }
    run(node("@modelcontextprotocol/sdk")?, "mcp_client.js").await.expect("it ends");
    Ok(())
}
