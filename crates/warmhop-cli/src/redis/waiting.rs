//! Commands that wait for an element of a list or a sorted set.

use std::future::ready;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::arguments::word;
use super::cmd::{Handler, patience};
use super::engine::{Database, Outcome, Request, Stop};
use super::frame::Reply;
use super::room::Room;
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

/// Runs a command that has found nothing before. A key that holds a value of another type by now counts
/// as one that is not there, as in Redis: its client goes on waiting.
fn run_again(room: Room, handler: Handler, args: &[Bytes], awaited: &Awaited) -> Outcome {
    let kind = if awaited.is_sorted_set { "zset" } else { "list" };
    let fits = |key: &&Bytes| room.value(key).is_none_or(|value| value.kind() == kind);
    let keys: Vec<Bytes> = awaited.keys.iter().filter(fits).cloned().collect();
    if keys.len() == awaited.keys.len() {
        return Outcome::of(room, handler, args);
    }
    if keys.is_empty() {
        return Outcome { room, reply: Reply::Aborted, commits: true, depends: true };
    }
    let others = awaited.keys.len();
    let args = match word(&args[0]).as_str() {
        "BLMPOP" | "BZMPOP" => {
            let count = Bytes::from(keys.len().to_string());
            [&args[..2], &[count], &keys, &args[3 + others..]].concat()
        }
        _ => [&args[..1], &keys, &args[1 + others..]].concat(),
    };
    Outcome::of(room, handler, &args)
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
        let awaited = awaited(request);
        let waits = self.shared.wait_for(name, awaited.clone());
        let mut has_looked = false;
        loop {
            let is_last_look = until.is_some_and(|it| it <= Instant::now());
            if is_last_look || waits.is_first() {
                let run = |room| match has_looked {
                    true => ready(run_again(room, handler, &request.args, &awaited)),
                    false => ready(Outcome::of(room, handler, &request.args)),
                };
                let reply = self.update(name, run).await?;
                has_looked = true;
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

#[cfg(test)]
mod tests {
    use super::super::cmd::{Run, find};
    use super::super::room::register;
    use super::*;

    fn words(text: &str) -> Vec<Bytes> {
        text.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect()
    }

    fn after(room: Room, command: &str) -> Room {
        let args = words(command);
        let Run::Room(handler) = find(&args[0]).unwrap().run else { panic!("{command}") };
        Outcome::of(room, handler, &args).room
    }

    #[test]
    fn a_key_of_another_type_counts_as_absent_to_those_who_wait_already() {
        let list = |parts: Vec<Reply>| Reply::Array(parts);
        let text = |text: &str| Reply::text(text);
        let popped = vec![text("{w}b"), text("x")];
        let scored = || vec![text("x"), Reply::Double(1.0)];
        for (command, pushes, answer) in [
            ("BLPOP {w}a {w}b 0", "RPUSH {w}b x", list(popped)),
            (
                "BLMPOP 0 2 {w}a {w}b LEFT COUNT 2",
                "RPUSH {w}b x y",
                list(vec![text("{w}b"), list(vec![text("x"), text("y")])]),
            ),
            (
                "BZPOPMIN {w}a {w}b 0",
                "ZADD {w}b 1 x",
                list(std::iter::once(text("{w}b")).chain(scored()).collect()),
            ),
            (
                "BZMPOP 0 2 {w}a {w}b MIN",
                "ZADD {w}b 1 x",
                list(vec![text("{w}b"), list(vec![list(scored())])]),
            ),
            ("BLMOVE {w}a {w}b LEFT LEFT 0", "RPUSH {w}b x", Reply::Aborted),
        ] {
            let args = words(command);
            let spec = find(&args[0]).unwrap();
            let Run::Blocking(handler) = spec.run else { panic!("{command}") };
            let awaited = awaited(&Request::new(spec, args.clone()));
            let room = after(Room::empty(&register(0, b"{w}a"), 1), "SET {w}a text");
            let Outcome { room, reply, .. } = run_again(room, handler, &args, &awaited);
            assert_eq!(reply, Reply::Aborted, "{command}");
            let Outcome { reply, .. } = run_again(after(room, pushes), handler, &args, &awaited);
            assert_eq!(reply, answer, "{command}");
        }
    }
}
