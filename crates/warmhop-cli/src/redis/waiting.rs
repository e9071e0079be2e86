//! Commands that wait for an element of a list or a sorted set.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::cmd::{Handler, patience};
use super::engine::{Database, Outcome, Request, Stop};
use super::frame::Reply;

/// How often a waiting client looks by itself, since it may not be woken: a peer that was
/// changed at another moment, or died before it woke anybody.
const LOOKED_EVERY: Duration = Duration::from_secs(1);
/// What Redis says to those who wait at a server that is no longer theirs; libraries know it.
const LEAVES: &str =
    "force unblock from blocking operation, instance state changed (the peer leaves)";
/// How long a command waits that says for how long: no longer than this, about ten years.
const PATIENCE_MAX: f64 = 3e8;

impl Database {
    /// Runs a command on a room once that has something for it.
    pub(super) async fn wait_in_room(
        &self,
        name: &Bytes,
        request: &Request,
        handler: Handler,
    ) -> Result<Reply, Stop> {
        let seconds = patience(&request.args)?;
        let until = (seconds > 0.0)
            .then(|| Instant::now() + Duration::from_secs_f64(seconds.min(PATIENCE_MAX)));
        let waits = self.shared.wait_for(name);
        loop {
            let changed = waits.changed.notified();
            tokio::pin!(changed);
            // From before the look on: nothing comes in between.
            changed.as_mut().enable();
            let run = |room| std::future::ready(Outcome::of(room, handler, &request.args));
            let reply = self.update(name, run).await?;
            let now = Instant::now();
            if !matches!(reply, Reply::Aborted | Reply::Null) {
                return Ok(reply);
            }
            if until.is_some_and(|it| it <= now) {
                return Ok(Reply::Aborted);
            }
            let look = (now + LOOKED_EVERY).min(until.unwrap_or(now + LOOKED_EVERY));
            tokio::select! {
                () = &mut changed => {}
                () = sleep_until(look) => {}
                () = self.shared.leaving.cancelled() => {
                    return Ok(Reply::error("UNBLOCKED", LEAVES));
                }
            }
        }
    }
}
