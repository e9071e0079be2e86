//! A front door behind a real HAProxy that says in front of each connection who its client is.

use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use toml::Table;

use crate::balancers::launch;
use crate::installed::Tested;
use crate::support::{APP, BOUND, QUICK, World, shop, until};
use crate::test;

pub(crate) fn trials() -> Vec<Trial> {
    [("version_1", "send-proxy"), ("version_2", "send-proxy-v2")]
        .into_iter()
        .map(|(name, option)| {
            let name = format!("a_client_is_who_haproxy_says_by_the_proxy_protocol_{name}");
            test(&name, move || is_present(option))
        })
        .collect()
}

async fn is_present(option: &'static str) -> Tested {
    let configure = |_, config: &mut Table| {
        let http = config["http"].as_table_mut().unwrap();
        http.insert("proxy_protocol".into(), true.into());
        http.insert("trusted_proxies".into(), vec!["127.0.0.1".to_owned()].into());
    };
    let world = World::with(1, vec![shop(QUICK, "start = 'at-boot'")], "", configure).await;
    until("the app is ready", async || (world.app(0, APP).await["state"] == "ready").then_some(()))
        .await;
    let door = world.http(0);
    let balancer = launch("haproxy", |listen| {
        format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             frontend doors\n bind {listen}\n default_backend peers\n\
             backend peers\n server one {door} {option}\n"
        )
    })?;
    let answer = until("HAProxy passes connections on", async || {
        let socket = TcpSocket::new_v4().unwrap();
        // Another address than HAProxy's own.
        socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(balancer.addr).await.ok()?;
        let answer = all_of(&mut stream).await;
        answer.starts_with("HTTP/1.1 200 ").then_some(answer)
    })
    .await;
    assert!(answer.contains("[\"x-forwarded-for\",\"127.0.0.9\"]"), "{answer}");
    // A request without it is not served.
    let mut stream = TcpStream::connect(door).await.unwrap();
    assert_eq!(all_of(&mut stream).await, "");
    Ok(())
}

async fn all_of(stream: &mut TcpStream) -> String {
    let request = "GET /headers HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(BOUND, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}
