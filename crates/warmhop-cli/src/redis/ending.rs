//! Expiries of keys, if they are published: a register is kept on past the end of its key, and the
//! peer that removes the key publishes the expiry. The removal is a change like any other, so each
//! expiry is published once, even if a peer dies.
//!
//! The peer that last changed a key removes it at its end. Peers with a copy of it check now and
//! then for keys that were not removed.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::ends::AT_ONCE;
use super::engine::{Database, Outcome, Stop};
use super::frame::Reply;
use super::room;

/// How often the copies of this peer are looked through.
const LOOKED_EVERY: Duration = Duration::from_secs(5);
/// How long past its end a key is left to the peer that changed it last, in milliseconds.
const LEFT_FOR: u64 = 1000;
/// How long the loop rests while it knows of no end.
const RESTS: Duration = Duration::from_secs(1);

impl Database {
    /// Removes expired keys, and publishes their expiry, while it is polled.
    pub(super) async fn tell_ends(&self) {
        let ends = &self.shared.ends;
        let mut looked = Instant::now();
        loop {
            if looked.elapsed() >= LOOKED_EVERY {
                self.look_for_overdue().await;
                looked = Instant::now();
            }
            let now = self.now();
            let (due, next) = ends.due(now);
            if due.is_empty() {
                let rests = next.map_or(RESTS, |next| Duration::from_millis(next - now)).min(RESTS);
                tokio::select! {
                    () = sleep(rests) => {}
                    () = ends.sooner.notified() => {}
                }
                continue;
            }
            stream::iter(due).for_each_concurrent(AT_ONCE, |name| self.end_keys(name)).await;
        }
    }

    async fn end_keys(&self, name: Bytes) {
        let database = Self { index: room::index_of(&name), ..self.clone() };
        let take_out = |mut room: room::Room| {
            room.ended_are_a_change();
            let (reply, commits) = (Reply::OK, true);
            std::future::ready(Outcome { room, reply, commits, depends: true })
        };
        if let Err(Stop::Replies(Reply::Error(why))) = database.update(&name, take_out).await {
            // It is found again when the copies are looked through.
            debug!(why, "a key that has ended could not be taken out yet");
        }
    }

    /// Notes the keys in this peer's copies that ended a while ago: the peer that should have
    /// removed them did not.
    async fn look_for_overdue(&self) {
        let overdue = self.now().saturating_sub(LEFT_FOR);
        let is_overdue = |name: &[u8], held: &[u8]| {
            let end = room::first_end_of(name, held).filter(|end| *end <= overdue)?;
            Some((Bytes::copy_from_slice(name), end))
        };
        for part in 0.. {
            let Some(found) = self.registers.copies_here(part, is_overdue) else { return };
            for (name, end) in found {
                self.shared.ends.set(&name, Some(end));
            }
            tokio::task::yield_now().await;
        }
    }
}
