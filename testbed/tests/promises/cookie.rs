//! The affinity cookie.

use http::HeaderMap;
use warmhop_testbed::client::Client;

use crate::support::{QUICK, SLOW, Shopper, World, never_on, shop, until};

#[tokio::test]
async fn from_the_first_response_on_the_cookie_names_the_entry_peer() {
    let world = World::new(3, shop(SLOW, "")).await;
    world.warm(0).await;
    let mut shopper = Shopper::default();
    let reply = shopper.add(world.http(2)).await;
    assert_eq!(reply.peer(), Some("peer-1"), "the app ran elsewhere");
    assert_eq!(shopper.client.route(), Some("peer-3"), "but this is where to come back to");

    let cookie = set_cookie(&reply.headers).expect("the first response sets it");
    let attributes: Vec<String> =
        cookie.split(';').skip(1).map(|part| part.trim().to_ascii_lowercase()).collect();
    for wanted in ["path=/", "httponly", "samesite=lax"] {
        assert!(attributes.iter().any(|attribute| attribute == wanted), "{cookie}");
    }
    assert!(!attributes.contains(&"secure".to_owned()), "there is no TLS here: {cookie}");
    let (opaque, route) = shopper.client.cookie("warmhop").unwrap().split_once('.').unwrap();
    assert!(!opaque.is_empty() && !route.contains('.'));
    let base64url = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    assert!(opaque.chars().all(base64url), "{opaque}");

    let cache = reply.header("cache-control").unwrap_or_default().to_ascii_lowercase();
    assert!(
        cache.contains("private") || cache.contains("no-store") || cache.contains("set-cookie"),
        "shared caches must not keep it: {cache:?}"
    );
}

#[tokio::test]
async fn the_cookie_names_no_peer_that_never_runs_the_app_and_none_that_leaves() {
    let world = World::with(3, vec![shop(QUICK, "")], "", never_on(2)).await;
    for index in [0, 1] {
        world.warm(index).await;
    }
    // At the third peer each request would have to hop, for ever.
    let mut shopper = Shopper::default();
    shopper.add(world.http(2)).await;
    let named = shopper.client.route().unwrap().to_owned();
    let at = usize::from(named == world.name(1));
    assert_eq!(named, world.name(at), "one of the two that have it ready");
    // And there it stays, the session too.
    for _ in 0..5 {
        shopper.add(world.http(at)).await;
        assert_eq!(shopper.client.route(), Some(&*named));
    }
    until("the session is owned where its client is", async || {
        shopper.check(world.http(at)).await;
        (world.status(at).await["sessions"]["owned"] == 1).then_some(())
    })
    .await;

    assert!(world.warmhop(at, &["drain"]).status.success());
    let mut another = Shopper::default();
    let reply = another.add(world.http(at)).await;
    let stays = world.name(1 - at);
    assert_eq!((reply.peer(), another.client.route()), (Some(stays), Some(stays)));
}

#[tokio::test]
async fn no_cookie_but_the_meshs_own_chooses_a_session() {
    let world = World::new(2, shop(QUICK, "")).await;
    world.warm(0).await;
    let addr = world.http(0);
    let mut owner = Shopper::default();
    owner.add(addr).await;
    owner.add(addr).await;
    let genuine = owner.client.cookie("warmhop").unwrap().to_owned();
    let (opaque, route) = genuine.split_once('.').unwrap();

    let flipped = |at: usize| {
        let mut bytes = opaque.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        format!("{}.{route}", String::from_utf8(bytes).unwrap())
    };
    let other_mesh = World::new(1, shop(QUICK, "")).await;
    let mut stranger = Shopper::default();
    stranger.add(other_mesh.http(0)).await;
    let forgeries = [
        flipped(0),
        flipped(opaque.len() / 2),
        flipped(opaque.len() - 2),
        format!("{}.{route}", &opaque[..opaque.len() - 4]),
        format!("{}.{route}", &opaque[..4]),
        format!("{opaque}{opaque}.{route}"),
        format!(".{route}"),
        route.to_owned(),
        format!("AAAA.{route}"),
        format!("{}.{route}", "A".repeat(6000)),
        String::new(),
        stranger.client.cookie("warmhop").unwrap().to_owned(),
    ];
    for forgery in forgeries {
        let mut thief = Client::new();
        thief.set_cookie("warmhop", &forgery);
        let reply = thief.get(addr, "/cart").await.unwrap().ok().unwrap();
        assert_eq!(reply.json().unwrap()["count"], 0, "{forgery} opened a session");
        let mut thief = Client::new();
        thief.set_cookie("warmhop", &forgery);
        let reply = thief.post(addr, "/cart/add?item=x").await.unwrap().ok().unwrap();
        assert_eq!(reply.json().unwrap()["count"], 1, "{forgery} opened a session");
        let given = thief.cookie("warmhop").unwrap();
        assert_ne!(given, forgery, "it is replaced");
    }
    owner.check(addr).await;
}

#[tokio::test]
async fn the_route_is_a_hint_that_anyone_may_change() {
    let world = World::with(3, vec![shop(QUICK, "")], "", never_on(1)).await;
    world.warm(0).await;
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;
    for route in ["peer-2", "peer-3", "nobody", "127.0.0.1:1"] {
        let (opaque, _) = shopper.client.cookie("warmhop").unwrap().split_once('.').unwrap();
        let altered = format!("{opaque}.{route}");
        shopper.client.set_cookie("warmhop", altered);
        let reply = shopper.add(world.http(1)).await;
        assert_eq!(reply.peer(), Some("peer-1"), "the route of a cookie names no target");
    }
}

#[tokio::test]
async fn an_apps_own_cookies_pass_untouched() {
    let world = World::with(2, vec![shop(QUICK, "session = 'pinned'")], "", never_on(1)).await;
    world.warm(0).await;
    let mut client = Client::new();
    client.set_cookie("theirs", "a.b.c");
    let reply = client.post(world.http(1), "/visits").await.unwrap().ok().unwrap();
    assert!(client.cookie("visitor").is_some(), "the app's cookie arrives: {reply:?}");
    assert_eq!(client.cookie("theirs"), Some("a.b.c"));
    let seen = client.get(world.http(1), "/headers").await.unwrap().text();
    assert!(seen.contains("theirs=a.b.c"), "{seen}");
}

fn set_cookie(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all("set-cookie")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .find(|value| value.starts_with("warmhop="))
        .map(str::to_owned)
}
