//! An axum service that uses tower-sessions, with its sessions in the mesh: only its choice of store
//! tells that it runs on more than one machine.
//!
//! ```sh
//! cargo run -p warmhop-examples --example tower_sessions
//! curl -c jar -b jar -d Ada http://127.0.0.1:PORT/login    # at one peer
//! curl -c jar -b jar        http://127.0.0.1:PORT/         # at another; end the first, ask again
//! ```
#![allow(clippy::print_stdout, missing_docs, reason = "an example talks to its reader")]

mod support;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use support::Peer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_sessions::session::Error;
use tower_sessions::{Session, SessionManagerLayer};
use warmhop::ids::AppName;
use warmhop::session_store::Store;

/// Where a session cannot be read or written, there is no majority of the peers that hold it.
fn failed(error: Error) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}

async fn greet(session: Session) -> Result<String, (StatusCode, String)> {
    let name: Option<String> = session.get("name").await.map_err(failed)?;
    let Some(name) = name else { return Ok("who are you?\n".into()) };
    let visits = session.get("visits").await.map_err(failed)?.unwrap_or(0) + 1;
    session.insert("visits", visits).await.map_err(failed)?;
    Ok(format!("hello {name}, for the {visits}. time\n"))
}

async fn log_in(session: Session, name: String) -> Result<(), (StatusCode, String)> {
    // A new id, so that nobody goes on with one that they planted.
    session.cycle_id().await.map_err(failed)?;
    session.insert("name", name).await.map_err(failed)
}

async fn log_out(session: Session) -> Result<(), (StatusCode, String)> {
    session.flush().await.map_err(failed)
}

#[tokio::main]
async fn main() -> Result<(), support::Error> {
    support::run(|_, builder| async move {
        let logins = AppName::new("logins")?;
        let mesh = builder.registers(logins.clone()).start().await?;
        let store = Store::new(mesh.registers(&logins).expect("they were declared"));

        let router = Router::new()
            .route("/", get(greet))
            .route("/login", post(log_in))
            .route("/logout", post(log_out))
            // Only because the example has no TLS: cookies are for HTTPS alone by default.
            .layer(SessionManagerLayer::new(store).with_secure(false));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?);
        let server = CancellationToken::new();
        let serving =
            axum::serve(listener, router).with_graceful_shutdown(server.clone().cancelled_owned());
        tokio::spawn(serving.into_future());
        Ok(Peer { mesh, url, server })
    })
    .await
}
