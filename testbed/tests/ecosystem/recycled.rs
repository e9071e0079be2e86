//! Servers that renew themselves, and what they say when they do.

use std::net::SocketAddr;

use http::{Method, StatusCode};
use libtest_mimic::Trial;
use toml::Table;
use warmhop_testbed::client::Client;
use warmhop_testbed::workspace;

use crate::installed::{Skipped, Tested, home, node, python};
use crate::support::{APP, World, until};
use crate::test;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("a_uvicorn_that_ends_after_so_many_requests_costs_no_more_than_it_resets", uvicorn),
        test("a_gunicorn_whose_workers_end_after_so_many_requests_costs_nothing", gunicorn),
        test("a_django_that_answers_its_own_host_alone_becomes_ready", django),
        test("a_node_server_that_says_goaway_gets_each_request_once", goaway),
    ]
}

/// How many clients ask at a time, and how often each does.
const CLIENTS: usize = 4;
const TIMES: usize = 60;

/// Two peers with the app ready on both.
async fn world(run: &[&str], more: &str) -> World {
    let dir = workspace().join("testbed/tests/ecosystem/apps");
    let mut app: Table =
        format!("name = '{APP}'\nready = {{ path = '/healthz' }}\n{more}").parse().expect("TOML");
    app.insert("dir".into(), dir.to_str().expect("UTF-8").into());
    let run: Vec<toml::Value> = run.iter().map(|word| (*word).into()).collect();
    app.insert("run".into(), run.into());
    let world = World::new(2, app).await;
    for index in 0..2 {
        world.warm(index).await;
    }
    world
}

fn program(name: &str) -> Result<String, Skipped> {
    python(name)?;
    Ok(home().join("python/bin").join(name).to_str().expect("UTF-8").to_owned())
}

/// Has clients ask at the door again and again, each once at a time; the answers that were not well.
async fn asked(door: SocketAddr, method: &Method) -> Vec<(StatusCode, String)> {
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let method = method.clone();
            tokio::spawn(async move {
                let mut failed = Vec::new();
                for _ in 0..TIMES {
                    let mut client = Client::new();
                    let call = client.call(method.clone(), "/count");
                    let reply = call.send(door).await.expect("an answer");
                    if reply.status != StatusCode::OK {
                        failed.push((reply.status, reply.text()));
                    }
                }
                failed
            })
        })
        .collect();
    let mut failed = Vec::new();
    for client in clients {
        failed.extend(client.await.expect("it ends"));
    }
    failed
}

async fn uvicorn() -> Tested {
    let uvicorn = program("uvicorn")?;
    let run = format!("exec '{uvicorn}' --port $PORT --limit-max-requests 25 counting:asgi");
    let world = world(&["sh", "-c", &run], "").await;
    let starts = async || {
        let (here, there) = (world.app(0, APP).await, world.app(1, APP).await);
        let of = |app: &serde_json::Value| app["starts"].as_u64().expect("a number");
        usize::try_from(of(&here) + of(&there)).expect("few")
    };
    assert_eq!(asked(world.http(0), &Method::GET).await, []);
    let before = until("one has ended, and was started again", async || {
        let reply = Client::new().get(world.http(0), "/count").await.expect("an answer");
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        Some(starts().await).filter(|starts| *starts > 2)
    })
    .await;
    // As it ends it resets connections without a look at what has come on them. Nobody can tell that
    // from a request which it began to carry out, so such a change is not sent again.
    let failed = asked(world.http(0), &Method::POST).await;
    let ends = starts().await - before + 1;
    println!("{} of {} changes were reset, by {ends} ends at most", failed.len(), CLIENTS * TIMES);
    assert!(failed.iter().all(|(status, _)| *status == StatusCode::BAD_GATEWAY), "{failed:?}");
    assert!(failed.len() <= CLIENTS * ends, "{ends} ends: {failed:?}");
    Ok(())
}

async fn gunicorn() -> Tested {
    let gunicorn = program("gunicorn")?;
    let run = format!(
        "exec '{gunicorn}' --bind 127.0.0.1:$PORT --workers 2 --max-requests 25 counting:wsgi"
    );
    let world = world(&["sh", "-c", &run], "").await;
    assert_eq!(asked(world.http(0), &Method::POST).await, []);
    Ok(())
}

async fn django() -> Tested {
    let python = program("python")?;
    let more = "match = { host = 'shop.example' }";
    let world = world(&[&python, "one_host.py"], more).await;
    let mut client = Client::new();
    let call = client.call(Method::GET, "/").header("host", "shop.example");
    let reply = call.send(world.http(1)).await.expect("an answer");
    assert_eq!((reply.status, reply.text()), (StatusCode::OK, "shop.example".into()));
    Ok(())
}

async fn goaway() -> Tested {
    // It needs nothing but Node.js.
    node("")?;
    let world = world(&["node", "goaway.js"], "protocol = 'h2'").await;
    assert_eq!(asked(world.http(0), &Method::POST).await, []);
    let mut counted = 0;
    for index in 0..2 {
        let reply = Client::new().get(world.http(index), "/counted").await.expect("an answer");
        counted += reply.text().parse::<usize>().expect("a number");
    }
    assert_eq!(counted, CLIENTS * TIMES, "each once");
    Ok(())
}
