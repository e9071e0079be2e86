//! Requests: where they are served, and what they carry.

use std::time::Duration;

use http::{Method, StatusCode};
use tokio::task::JoinSet;
use warmhop_testbed::client::Client;

use crate::support::{APP, ENDLESS, QUICK, SLOW, Shopper, World, never_on, shop, until};

#[tokio::test]
async fn a_request_to_a_cold_app_is_answered_over_one_hop_while_its_copy_starts() {
    let world = World::new(3, shop(SLOW, "")).await;
    world.warm(0).await;
    assert_eq!(world.app(1, APP).await["state"], "cold");

    let mut client = Client::new();
    let reply = client.get(world.http(1), "/whoami").await.unwrap().ok().unwrap();
    assert_ne!(world.app(1, APP).await["state"], "cold");
    assert_eq!(reply.peer(), Some("peer-1"));
    assert!(reply.hopped());
    let proxy_status = reply.header("proxy-status").unwrap();
    assert!(proxy_status.starts_with("peer-2"), "{proxy_status}");
    assert!(proxy_status.contains("next-hop="), "{proxy_status}");
    assert_eq!(world.app(1, APP).await["starts"], 1);
    assert_eq!(world.app(2, APP).await["state"], "cold", "nobody asked there");

    let local = until("peer-2 serves for itself", async || {
        let reply = client.get(world.http(1), "/whoami").await.unwrap().ok().unwrap();
        (reply.peer() == Some("peer-2")).then_some(reply)
    })
    .await;
    assert!(!local.hopped());
    assert_ne!(local.json().unwrap()["pid"], reply.json().unwrap()["pid"]);
    assert_eq!(world.app(1, APP).await["starts"], 1, "many requests are one start");
}

#[tokio::test]
async fn where_it_is_ready_nowhere_requests_wait_for_the_first_copy() {
    let world = World::new(3, shop(QUICK, "")).await;
    let mut waiting = JoinSet::new();
    for number in 0..12 {
        let addr = world.http(number % 3);
        waiting.spawn(async move { Client::new().get(addr, "/whoami").await.unwrap() });
    }
    while let Some(reply) = waiting.join_next().await {
        let reply = reply.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        assert!(reply.peer().is_some());
    }
}

#[tokio::test]
async fn past_its_bound_a_waiting_request_learns_when_to_come_back() {
    let world = World::new(2, shop(ENDLESS, "max_wait = '400ms'")).await;
    let mut client = Client::new();
    let call = client.call(Method::GET, "/").header("accept", "application/json");
    let reply = call.send(world.http(0)).await.unwrap();
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(reply.took >= Duration::from_millis(400), "{:?}", reply.took);
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=3600).contains(&seconds));
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    assert_eq!(reply.json().unwrap()["status"], 503);
    let proxy_status = reply.header("proxy-status").unwrap();
    assert!(proxy_status.contains("error="), "{proxy_status}");

    let page = client.call(Method::GET, "/").header("accept", "text/html,*/*;q=0.8");
    let page = page.send(world.http(0)).await.unwrap();
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
}

#[tokio::test]
async fn where_the_app_does_not_start_at_the_entry_peer_another_starts_it() {
    let world = World::with(3, vec![shop(QUICK, "")], "", |peer, config| {
        if peer == 0 {
            config["app"].as_array_mut().unwrap()[0]["run"] = vec!["false"].into();
        }
    })
    .await;
    // The first may be refused at once because it did not start; a client that comes again is served.
    let reply = until("somebody else's copy serves", async || {
        let reply = Client::new().get(world.http(0), "/whoami").await.ok()?;
        reply.status.is_success().then_some(reply)
    })
    .await;
    assert!(reply.hopped());
    assert_ne!(reply.peer(), Some("peer-1"));
    assert_eq!(
        world.app(1, APP).await["starts"].as_u64().unwrap()
            + world.app(2, APP).await["starts"].as_u64().unwrap(),
        1,
        "one of them, once"
    );
}

#[tokio::test]
async fn apps_are_found_by_host_and_path_and_an_unknown_one_is_404() {
    let mut books = shop(QUICK, "match = { host = 'books.test', path = '/' }");
    books.insert("name".into(), "books".into());
    let mut search = shop(QUICK, "match = { host = 'books.test', path = '/search' }");
    search.insert("name".into(), "search".into());
    let world = World::with(1, vec![books, search], "", |_, _| ()).await;
    let at = async |host: &str, path: &str| {
        let mut client = Client::new();
        client.call(Method::GET, path).header("host", host).send(world.http(0)).await.unwrap()
    };
    assert_eq!(at("books.test", "/whoami").await.status, StatusCode::OK);
    assert_eq!(world.app(0, "search").await["state"], "cold");
    assert_eq!(at("BOOKS.test:8080", "/search?q=harbour").await.status, StatusCode::OK);
    assert_eq!(world.app(0, "search").await["state"], "ready", "the most specific match wins");

    for host in ["other.test", "books.test.evil.test"] {
        let unknown = at(host, "/").await;
        assert_eq!(unknown.status, StatusCode::NOT_FOUND, "{host}");
        assert_eq!(unknown.header("content-type"), Some("application/problem+json"));
        assert_eq!(unknown.json().unwrap()["status"], 404);
        assert!(unknown.request_id().is_some());
        assert!(unknown.header("set-cookie").is_none());
    }
}

#[tokio::test]
async fn what_the_app_and_the_client_learn_of_a_request() {
    let world = World::with(2, vec![shop(QUICK, "")], "", never_on(1)).await;
    world.warm(0).await;
    for (door, hops) in [(0, false), (1, true)] {
        ids_are_kept_if_sane_and_minted_if_not(&world, door).await;
        fields_of_one_connection_end_with_it(&world, door).await;
        the_session_field_is_between_mesh_and_app_alone(&world, door).await;
        let reply = Client::new().get(world.http(door), "/whoami").await.unwrap();
        assert_eq!(reply.hopped(), hops);
    }
}

async fn ids_are_kept_if_sane_and_minted_if_not(world: &World, door: usize) {
    let addr = world.http(door);
    let mut client = Client::new();
    let sane = client.call(Method::GET, "/whoami").header("x-request-id", "a-sane_id.42");
    assert_eq!(sane.send(addr).await.unwrap().request_id(), Some("a-sane_id.42"));
    let minted = client.get(addr, "/whoami").await.unwrap();
    let again = client.get(addr, "/whoami").await.unwrap();
    assert!(minted.request_id().is_some_and(|id| id.len() >= 8));
    assert_ne!(minted.request_id(), again.request_id());
    for insane in ["<script>", "with space", &"x".repeat(4000)] {
        let reply = client.call(Method::GET, "/whoami").header("x-request-id", insane);
        let reply = reply.send(addr).await.unwrap().ok().unwrap();
        assert_ne!(reply.request_id(), Some(insane));
        assert!(reply.request_id().is_some_and(|id| id.len() >= 8));
    }
}

async fn fields_of_one_connection_end_with_it(world: &World, door: usize) {
    let mut client = Client::new();
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let call = client
        .call(Method::GET, "/headers")
        .header("host", "books.test")
        .header("connection", "x-private")
        .header("x-private", "for the peer's connection only")
        .header("keep-alive", "timeout=5")
        .header("proxy-authorization", "Basic Zm9v")
        .header("te", "gzip")
        .header("x-public", "for the app")
        .header("x-forwarded-for", "192.0.2.7")
        .header("traceparent", traceparent);
    let reply = call.send(world.http(door)).await.unwrap().ok().unwrap();
    let fields: Vec<(String, String)> = serde_json::from_slice(&reply.body).unwrap();
    let field = |name: &str| -> Vec<&str> {
        fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    };
    for gone in ["x-private", "keep-alive", "proxy-authorization"] {
        assert!(field(gone).is_empty(), "{gone} reached the app: {fields:?}");
    }
    assert_eq!(field("x-public"), ["for the app"]);
    assert_eq!(field("host"), ["books.test"]);
    let forwarded = field("x-forwarded-for").join(", ");
    assert_eq!(forwarded, "127.0.0.1", "what a stranger says of itself is not passed on");
    assert_eq!(field("x-forwarded-proto"), ["http"]);
    assert_eq!(field("x-forwarded-host"), ["books.test"]);
    assert_eq!(field("forwarded").len(), 1, "{fields:?}");
    assert!(field("forwarded")[0].contains("for="), "{fields:?}");
    let continued = field("traceparent");
    assert_eq!(continued.len(), 1);
    assert_eq!(&continued[0][..35], &traceparent[..35], "the trace goes on");
    assert_eq!(field("x-request-id"), [reply.request_id().unwrap()]);
}

async fn the_session_field_is_between_mesh_and_app_alone(world: &World, door: usize) {
    let addr = world.http(door);
    // {"count":41,"items":[]}
    let forged = ":eyJjb3VudCI6NDEsIml0ZW1zIjpbXX0=:";
    let mut client = Client::new();
    let call = client.call(Method::POST, "/cart/add?item=x").header("warmhop-session", forged);
    let reply = call.send(addr).await.unwrap().ok().unwrap();
    assert_eq!(reply.json().unwrap()["count"], 1, "a client cannot set a session's state");
    assert!(reply.header("warmhop-session").is_none(), "nor see it");
    let call = client.call(Method::GET, "/cart").header("warmhop-session", forged);
    assert_eq!(call.send(addr).await.unwrap().json().unwrap()["count"], 1);
}

#[tokio::test]
async fn an_app_that_fails_on_one_peer_says_why_and_its_clients_are_served_elsewhere() {
    let world = World::with(2, vec![shop(QUICK, "")], "", |index, config| {
        if index == 1 {
            let fail = "echo the shelf is missing >&2; exit 3";
            let run = ["sh", "-c", fail].map(toml::Value::from).to_vec();
            config["app"].as_array_mut().unwrap()[0]["run"] = toml::Value::Array(run);
        }
    })
    .await;
    world.warm(0).await;
    let mut client = Client::new();
    let reply = client.get(world.http(1), "/whoami").await.unwrap().ok().unwrap();
    assert_eq!(reply.peer(), Some("peer-1"));
    let error = until("the failure is reported", async || {
        let app = world.app(1, APP).await;
        app["error"].as_str().map(str::to_owned)
    })
    .await;
    assert!(error.contains("the shelf is missing"), "{error}");
    let reply = client.get(world.http(1), "/whoami").await.unwrap().ok().unwrap();
    assert_eq!(reply.peer(), Some("peer-1"));
}

#[tokio::test]
async fn an_app_that_fails_everywhere_is_refused_with_the_reason() {
    let app = shop(QUICK, "run = ['false']\nmax_wait = '2s'");
    let world = World::new(1, app).await;
    let reply = Client::new().get(world.http(0), "/").await.unwrap();
    assert!(reply.status.is_server_error(), "{}", reply.status);
    let proxy_status = reply.header("proxy-status").unwrap();
    assert!(proxy_status.contains("error="), "{proxy_status}");
    assert_eq!(reply.json().unwrap()["status"], reply.status.as_u16());
    // The peer itself is well.
    assert_eq!(world.admin(0, Method::GET, "/readyz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_known_client_at_a_third_peer_is_served_at_once_and_has_the_app_begin_there() {
    let only_on_the_second = |peer: usize, config: &mut toml::Table| {
        if peer != 1 {
            let app = config["app"].as_array_mut().unwrap()[0].as_table_mut().unwrap();
            app["env"].as_table_mut().unwrap().insert("DOCS".into(), ENDLESS.to_string().into());
        }
    };
    let world = World::with(3, vec![shop(QUICK, "")], "", only_on_the_second).await;
    world.warm(1).await;
    let mut shopper = Shopper::default();
    assert_eq!(shopper.add(world.http(0)).await.peer(), Some("peer-2"));
    assert_eq!(world.app(2, APP).await["state"], "cold");
    assert_eq!(shopper.add(world.http(2)).await.peer(), Some("peer-2"));
    assert_eq!(world.app(2, APP).await["state"], "starting");
}
