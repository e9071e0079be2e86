//! A Rust service joined to a mesh: one axum app that is slow to start, with a session.
//!
//! Three peers in one process, so that one command shows it:
//!
//! ```sh
//! cargo run -p warmhop-examples --example embed
//! ```
//!
//! In a real service each process starts one peer, with an identity made by `warmhop cert` and
//! the others' addresses as seeds.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::time::{Duration, Instant};

use axum::Extension;
use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use warmhop::config::SessionMode;
use warmhop::identity::Authority;
use warmhop::ids::{AppName, PeerId};
use warmhop::{AppSpec, Mesh, Session, app_fn};

/// Counts a client's visits; the mesh keeps the count, wherever the client goes.
async fn visit(Extension(session): Extension<Session>) -> String {
    let visits = session.get().and_then(|bytes| bytes.as_ref().try_into().ok());
    let visits = visits.map_or(0, u64::from_be_bytes) + 1;
    match session.set(visits.to_be_bytes().to_vec()) {
        Ok(()) => format!("visit {visits}"),
        Err(error) => error.to_string(),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let authority = Authority::generate("embed")?;
    let mut peers: Vec<Mesh> = Vec::new();
    for (name, start_takes) in [("one", 0), ("two", 2), ("three", 2)] {
        let peer = PeerId::new(name)?;
        let mut spec = AppSpec::new(AppName::new("visits")?);
        spec.policy.session = SessionMode::Portable;
        let app = app_fn(move || async move {
            // Loading a model, warming a cache, replaying a journal.
            tokio::time::sleep(Duration::from_secs(start_takes)).await;
            Ok::<_, std::io::Error>(Router::new().route("/", get(visit)))
        });
        let mut builder = Mesh::builder(authority.issue(&peer)?)
            .front_door(TcpListener::bind("127.0.0.1:0").await?)
            .app(spec, app);
        for other in &peers {
            builder = builder.seed(other.mesh_addr().to_string());
        }
        peers.push(builder.start().await?);
    }
    peers[0].start_app(&AppName::new("visits")?)?;
    let knows = |mesh: &Mesh| {
        let one = mesh.status().peers.into_iter().find(|peer| peer.name == "one");
        one.is_some_and(|one| one.apps.get("visits").is_some_and(|state| state == "ready"))
    };
    while !peers[1..].iter().all(knows) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // The client talks to peer two alone, where the app needs two seconds to start.
    let two = &peers[1];
    let mut cookie = String::new();
    let mut own_answers = 0;
    while own_answers < 2 {
        let request = http::Request::get("/").header("host", "localhost").header("cookie", &cookie);
        let request = request.body(warmhop::Body::empty())?;
        let began = Instant::now();
        let response = tower::ServiceExt::oneshot(two.service(), request).await?;
        let took = began.elapsed();
        if let Some(set) = response.headers().get("set-cookie") {
            cookie = set.to_str()?.split(';').next().unwrap_or_default().to_owned();
        }
        let served_by = response.headers()["warmhop-peer"].to_str()?.to_owned();
        let body = http_body_util::BodyExt::collect(response.into_body()).await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        let text = String::from_utf8_lossy(&body);
        own_answers += usize::from(served_by == "two");
        println!("{text}, served by {served_by:<5} in {:.1} ms", took.as_secs_f64() * 1000.0);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for peer in &peers {
        peer.shutdown().await;
    }
    Ok(())
}
