//! Which app a request is for, and what of its path the app gets.

use http::{Method, StatusCode};
use warmhop_testbed::client::{Client, Reply};

use crate::support::{APP, QUICK, Shopper, World, shop};

/// An app of several hosts and paths, and one that has a host of them for itself.
async fn two_apps(peers: u16) -> World {
    let several = "match = [{ host = ['a.example', '*.b.example'], path = '/shop' }, \
                   { path = '/books/' }]\nstrip_prefix = true";
    let mut other = shop(QUICK, "match = { host = 'x.b.example' }");
    other.insert("name".into(), "other".into());
    World::with(peers, vec![shop(QUICK, several), other], "", |_, _| ()).await
}

async fn ask(world: &World, client: &mut Client, host: &str, path: &str) -> Reply {
    let call = client.call(Method::GET, path).header("host", host);
    call.send(world.http(world.mesh.peers().len() - 1)).await.unwrap()
}

#[tokio::test]
async fn an_app_answers_for_all_of_its_hosts_and_paths_and_gets_them_without_the_prefix() {
    let world = two_apps(2).await;
    world.warm(0).await;
    for (host, path, app) in [
        ("a.example", "/shop/cart", APP),
        ("A.Example:8080", "/shop/cart", APP),
        ("y.b.example", "/shop/cart?x=1", APP),
        ("anybody", "/books/cart", APP),
        ("a.example.", "/books/cart", APP),
        ("x.b.example", "/cart", "other"),
    ] {
        let reply = ask(&world, &mut Client::new(), host, path).await;
        assert_eq!(reply.status, StatusCode::OK, "{host}{path}: {}", reply.text());
        let id = reply.request_id().unwrap().to_owned();
        let why = world.admin(1, Method::GET, &format!("/v1/requests/{id}")).await;
        assert_eq!(why.json().unwrap()["app"], app, "{host}{path}");
    }
    for (host, path) in [
        ("b.example", "/shop/cart"),
        ("z.y.b.example", "/shop/cart"),
        ("a.example", "/"),
        ("a.example", "/shopping"),
        ("anybody", "/shop"),
    ] {
        let reply = ask(&world, &mut Client::new(), host, path).await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND, "{host}{path}");
        assert!(reply.text().contains("unknown-app"), "{host}{path}: {}", reply.text());
    }
}

#[tokio::test]
async fn a_session_is_one_at_all_paths_of_its_host_and_at_no_other() {
    let world = two_apps(1).await;
    let mut shopper = Shopper::default();
    let paths = async |shopper: &mut Shopper, host: &str, path: &str| {
        let call = shopper.client.call(Method::POST, format!("{path}/cart/add?item=book"));
        let reply = call.header("host", host).send(world.http(0)).await.unwrap();
        shopper.acknowledged += 1;
        assert_eq!(reply.json().unwrap()["count"], shopper.acknowledged, "{host}{path}");
        let fields = reply.headers.get_all("set-cookie").iter();
        let path = |field: &http::HeaderValue| {
            let text = field.to_str().unwrap().to_owned();
            text.split("; ").find_map(|part| part.strip_prefix("Path=").map(str::to_owned))
        };
        fields.filter_map(path).collect::<Vec<_>>()
    };
    // A browser keeps one for each path, and sends the one of the path it asks for.
    assert_eq!(paths(&mut shopper, "a.example", "/books").await, ["/books", "/shop"]);
    paths(&mut shopper, "a.example", "/shop").await;
    assert_eq!(paths(&mut Shopper::default(), "anybody", "/books").await, ["/books"]);
    assert_eq!(paths(&mut Shopper::default(), "x.b.example", "").await, ["/"]);
}
