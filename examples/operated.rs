//! A Rust service in the mesh that its operators see as they see the peers of the binary `warmhop`:
//! status, decisions, metrics and the dashboard, and what acts on it.
//!
//! ```sh
//! cargo run -p warmhop-examples --example operated
//! ```
//!
//! It says where operators ask each peer: open that in a browser, or try `warmhop status --admin URL`.
//! With `TOKEN` in its environment they have to show that.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use warmhop::admin::{Admin, Token};
use warmhop::ids::AppName;
use warmhop::{AppSpec, app_fn};

use support::{Error, Peer};

mod support;

async fn greet() -> &'static str {
    "hello\n"
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let token = Token::new(std::env::var("TOKEN").ok().as_deref());
    support::run(|name, builder| {
        let token = token.clone();
        async move {
            let app =
                app_fn(async || Ok::<_, std::io::Error>(Router::new().route("/", get(greet))));
            let mesh = builder
                .front_door(TcpListener::bind("127.0.0.1:0").await?)
                .app(AppSpec::new(AppName::new("greeting")?), app)
                .start()
                .await?;
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            println!("operators ask {name} at http://{}/", listener.local_addr()?);
            let admin = Admin::new(&mesh).token(token);
            let peer = Peer::with_front_door(mesh);
            let ended = peer.server.clone();
            // It ends with the peer.
            tokio::spawn(admin.serve(listener, ended.cancelled_owned()));
            Ok(peer)
        }
    })
    .await
}
