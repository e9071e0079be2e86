//! Expiries of keys, where they are published: a register is kept on past the end of its key, and the
//! peer that removes the key, by a change like any other, publishes it. So each expiry is published once, and the
//! death of any peer is no reason for it not to be.
//!
//! The peer that a key was changed at last takes it out as its end comes. Those that have a copy of it
//! look now and then for one that was not removed.

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
/// How long past its end a key is left to the peer that it was changed at last, in milliseconds.
const LEFT_FOR: u64 = 1000;
/// How long nothing is looked at where no end is known.
const RESTS: Duration = Duration::from_secs(1);

impl Database {
    /// Removes expired keys, and publishes their expiry, for as long as it is polled.
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
            let (reply, stands) = (Reply::OK, true);
            std::future::ready(Outcome { room, reply, stands, depends: true })
        };
        if let Err(Stop::Told(Reply::Error(why))) = database.update(&name, take_out).await {
            // It is found when copies are looked through.
            debug!(why, "a key that has ended could not be taken out yet");
        }
    }

    /// Notes the keys in this peer's copies that ended a while ago: the peer that would have taken
    /// them out did not.
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
