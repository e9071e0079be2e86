//! Commands that wait for an element of a list or a sorted set.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::cmd::{Handler, patience};
use super::engine::{Database, Outcome, Request, Stop};
use super::frame::Reply;
use super::shared::Awaited;

/// How often the first of those who wait checks its keys without being woken: a change from another
/// peer wakes nobody here.
const LOOKED_EVERY: Duration = Duration::from_secs(1);
/// Redis' error for clients that wait when a server ceases to be theirs; libraries know it.
const LEAVES: &str =
    "force unblock from blocking operation, instance state changed (the peer leaves)";
/// The longest that a command with a timeout waits, about ten years.
const PATIENCE_MAX: f64 = 3e8;

/// What a command waits for.
fn awaited(request: &Request) -> Awaited {
    let mut keys = request.keys();
    if matches!(request.spec.name, "BLMOVE" | "BRPOPLPUSH") {
        // It does not wait for the key to which it moves an element.
        keys.truncate(1);
    }
    Awaited { is_sorted_set: request.spec.name.starts_with("BZ"), keys }
}

impl Database {
    /// Runs a command on a room once there is something for it, after those who came before.
    pub(super) async fn wait_in_room(
        &self,
        name: &Bytes,
        request: &Request,
        handler: Handler,
    ) -> Result<Reply, Stop> {
        let seconds = patience(&request.args)?;
        let until = (seconds > 0.0)
            .then(|| Instant::now() + Duration::from_secs_f64(seconds.min(PATIENCE_MAX)));
        let waits = self.shared.wait_for(name, awaited(request));
        loop {
            let is_last_look = until.is_some_and(|it| it <= Instant::now());
            if is_last_look || waits.is_first() {
                let run = |room| std::future::ready(Outcome::of(room, handler, &request.args));
                let reply = self.update(name, run).await?;
                if !matches!(reply, Reply::Aborted | Reply::Null) {
                    return Ok(reply);
                }
            }
            if is_last_look {
                return Ok(Reply::Aborted);
            }
            let look = Instant::now() + LOOKED_EVERY;
            let look = until.map_or(look, |until| until.min(look));
            tokio::select! {
                // Also if the notice came while it checked.
                () = waits.turn.notified() => {}
                () = sleep_until(look) => {}
                () = self.shared.leaving.cancelled() => {
                    return Ok(Reply::error("UNBLOCKED", LEAVES));
                }
            }
        }
    }
}
