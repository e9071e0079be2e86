//! The Redis-speaking endpoint: apps' session libraries keep their sessions in the mesh through
//! it, unmodified. No Redis runs anywhere; a key is a register of the mesh
//! ([`warmhop::Registers`]).
//!
//! ```text
//! connection.rs ─bytes─▶ frame.rs ─arguments─▶ cmd/ ─▶ engine.rs ─▶ Registers
//!       ▲                                       │  on a room     │
//!       └──────────── Reply, in the order asked ┴────────────────┘
//! ```
//!
//! What a command promises, and what it does not, is in `docs/redis.md`.

mod about;
mod arguments;
mod carrier;
mod cmd;
mod connection;
mod counts;
mod ending;
mod ends;
mod engine;
mod events;
mod figures;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod glob;
mod holdings;
mod info;
mod instant;
mod interest;
mod listeners;
mod loud;
mod many;
mod numbers;
mod pubsub;
mod refusals;
mod room;
pub(crate) mod script;
mod scripts;
mod seldom;
mod shared;
mod sorted_set;
#[cfg(test)]
mod tests;
mod transaction;
mod turns;
mod under_way;
mod value;
mod waiting;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use carrier::Carrier;
use engine::Database;
pub use events::{Events, NoEvents};
pub use figures::with_commands;
use holdings::Holdings;
use shared::Shared;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use warmhop::{Acceptor, Mesh, Registers};

/// The name of the registers that hold the endpoint's keys.
pub const NAME: &str = "redis";
/// How many clients may be connected at once; further ones get an error.
const CONNECTIONS_MAX: usize = 4096;

/// The address of the endpoint as an app gets it in `REDIS_URL`.
#[must_use]
pub fn url(addr: SocketAddr) -> String {
    format!("redis://{addr}/0")
}

/// Serves clients until the peer is `leaving`. Then it closes the listener, answers what has
/// arrived, disconnects clients that wait for a key or for messages, and returns once the last
/// connection has ended. If it is dropped, all connections end with it.
///
/// `idle` is how long a key without a time to live is kept after its last change; `events` selects
/// the changes of keys that are published. Messages are exchanged with the endpoints of the other
/// peers of `mesh`.
pub async fn serve(
    listener: TcpListener,
    mesh: Mesh,
    registers: Registers,
    idle: Duration,
    events: Events,
    leaving: CancellationToken,
) {
    let carrier = Arc::new(Carrier::between(mesh.clone()));
    let mut shared = Shared::new(idle, events, carrier);
    let bytes_max = usize::try_from(mesh.status().sessions.bytes_max).unwrap_or(usize::MAX);
    shared.holdings = Arc::new(Holdings::new(bytes_max));
    (shared.mesh, shared.leaving) = (Some(mesh), leaving);
    serve_up_to(CONNECTIONS_MAX, listener, registers, shared).await;
}

async fn serve_up_to(
    connections_max: usize,
    listener: TcpListener,
    registers: Registers,
    shared: Shared,
) {
    let database = Database::new(registers, Arc::new(shared));
    info::begin();
    counts::BYTES.begin();
    let room = Arc::new(Semaphore::new(connections_max));
    let mut connections = JoinSet::new();
    let take_in = |stream, client| {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            warn!(%client, "refused: {connections_max} Redis clients are connected");
            return turn_away(stream);
        };
        let database = database.clone();
        connections.spawn(async move {
            let _counted = database.shared.mesh.as_ref().map(|mesh| mesh.connected("redis"));
            let _permit = permit;
            if let Err(error) = Registers::together(connection::serve(stream, database)).await {
                debug!(%client, %error, "a Redis client's connection ended");
            }
        });
    };
    let leaving = database.shared.leaving.clone();
    let acceptor = Acceptor::new(listener, "the Redis endpoint");
    let tells_ends = database.shared.events.ends();
    tokio::select! {
        () = acceptor.until(leaving.cancelled(), take_in) => {}
        // Goes on for ever.
        () = database.tell_ends(), if tells_ends => {}
    }
    while connections.join_next().await.is_some() {}
}

/// Writes an error to a client, as much of it as its socket takes at once.
fn turn_away(stream: TcpStream) {
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write_all(b"-ERR max number of clients reached\r\n");
    }
}
