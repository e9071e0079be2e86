//! An axum service that starts by itself and answers through an HTTP server of its own, with the
//! mesh as a layer: until it has built its index here, a peer that has built its own answers.
//!
//! ```sh
//! cargo run -p warmhop-examples --example hop_layer
//! curl http://127.0.0.1:PORT/    # answered at once by one, and by the peer itself once it can
//! ```
//!
//! A number behind it is how many seconds the building takes, 5 without: `… --example hop_layer 60`.
#![allow(clippy::print_stdout, missing_docs, reason = "an example talks to its reader")]

mod support;

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use support::Peer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::Layer;
use warmhop::ids::AppName;
use warmhop::{AppSpec, HopLayer, Readiness};

#[tokio::main]
async fn main() -> Result<(), support::Error> {
    let building: u64 = std::env::args().nth(1).map_or(Ok(5), |seconds| seconds.parse())?;
    support::run(|name, builder| async move {
        let readiness = Readiness::new();
        let built = readiness.clone();
        tokio::spawn(async move {
            // One has its index on disk; the others have to build it.
            let seconds = if name == "one" { 0 } else { building };
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            built.set(true);
        });

        let router =
            Router::new().route("/", get(move || async move { format!("found by {name}\n") }));
        let hop = HopLayer::new(AppSpec::new(AppName::new("search")?)).readiness(&readiness);
        let service = Router::new().fallback_service(hop.layer(router));
        let mesh = builder.hop_layer(&hop).start().await?;

        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?);
        let server = CancellationToken::new();
        let serving =
            axum::serve(listener, service).with_graceful_shutdown(server.clone().cancelled_owned());
        tokio::spawn(serving.into_future());
        Ok(Peer { mesh, url, server })
    })
    .await
}
