//! An axum service whose handlers take the client's session as an argument. The mesh replicates it
//! before the client sees the response, and knows it wherever the client goes:
//!
//! ```sh
//! cargo run -p warmhop-examples --example axum_session
//! curl -c jar -b jar -d Emma  http://127.0.0.1:PORT/    # at one peer
//! curl -c jar -b jar          http://127.0.0.1:PORT/    # at another; end the first, and ask again
//! ```
#![allow(clippy::print_stdout, missing_docs, reason = "an example talks to its reader")]

mod support;

use axum::Router;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use support::Peer;
use tokio::net::TcpListener;
use warmhop::config::SessionMode;
use warmhop::extract::{Session, SetError};
use warmhop::ids::AppName;
use warmhop::{AppSpec, app_fn};

/// What the mesh keeps for each client.
#[derive(Default, Serialize, Deserialize)]
struct Cart {
    books: Vec<String>,
}

async fn show(cart: Session<Cart>) -> String {
    match cart.get() {
        Some(cart) => cart.books.join(", "),
        None => "nothing yet".into(),
    }
}

async fn add(mut cart: Session<Cart>, book: String) -> Result<String, SetError> {
    cart.update(|cart| {
        cart.books.push(book);
        cart.books.join(", ")
    })
}

#[tokio::main]
async fn main() -> Result<(), support::Error> {
    support::run(|_, builder| async move {
        let mut spec = AppSpec::new(AppName::new("shop")?);
        spec.policy.session = SessionMode::Portable;
        let app = app_fn(|| async {
            // Whatever takes long: loading a model, building an index.
            Ok::<_, std::io::Error>(Router::new().route("/", get(show).post(add)))
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Ok(Peer::with_front_door(builder.front_door(listener).app(spec, app).start().await?))
    })
    .await
}
