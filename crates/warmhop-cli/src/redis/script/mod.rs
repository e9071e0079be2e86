//! Scripts: `EVAL` and its like, each run on the room of its keys and committed as one change of
//! it.

#[cfg(feature = "lua")]
mod bits;
#[cfg(feature = "lua")]
mod bounds;
#[cfg(all(feature = "lua", any(test, feature = "fuzzing")))]
pub(crate) mod fuzzing;
#[cfg(feature = "lua")]
mod host;
#[cfg(feature = "lua")]
mod json;
mod json_options;
mod json_read;
#[cfg(feature = "lua")]
mod lua;
#[cfg(feature = "lua")]
mod msgpack;
#[cfg(feature = "lua")]
mod packing;
#[cfg(feature = "lua")]
mod patterns;
#[cfg(feature = "lua")]
mod reply;
#[cfg(feature = "lua")]
mod state;
#[cfg(all(test, feature = "lua"))]
mod tests;
#[cfg(feature = "lua")]
mod text;
#[cfg(feature = "lua")]
mod values;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::arguments::{number, unknown_subcommand, word, wrong_count};
use super::cmd::WRITES;
use super::engine::{Database, Outcome, Request, Stop};
use super::frame::Reply;
use super::pubsub::{Hub, Published};
use super::room::{Origin, Room};
use super::scripts::{CONFINED_REPLY_BYTES_MAX, Confined, Known, Scripts};

/// The version of Redis that the endpoint claims to be.
pub(super) const SPEAKS_AS: &str = "7.2.0";

/// The input of a script's run.
#[cfg_attr(not(feature = "lua"), expect(dead_code, reason = "nothing runs them"))]
pub(super) struct Input {
    text: Bytes,
    /// The digest of its text, by which errors name it.
    sha: Arc<str>,
    keys: Vec<Bytes>,
    args: Vec<Bytes>,
    index: u8,
    /// When it began, in milliseconds since 1970.
    now: u64,
    read_only: bool,
    /// The seed of its random numbers, which are the same if it has to begin anew.
    seed: u64,
    /// It is known to take too long for a brief run.
    took_long: bool,
    /// The subscribers at this peer, for the messages that it publishes.
    hub: Arc<Hub>,
    /// The library that its client says it uses.
    library: Arc<str>,
}

/// The result of a run.
struct Ended {
    room: Option<Room>,
    /// It read or changed its room.
    depends: bool,
    /// The changed room is to be kept.
    commits: bool,
    reply: Reply,
    published: Vec<Published>,
    /// It needs this room to continue.
    needs: Option<Bytes>,
    /// It was a brief run that exceeded its bounds: nothing else of this result counts.
    outgrew: bool,
}

impl Ended {
    /// The result of a run that did nothing.
    fn refused(reply: Reply) -> Self {
        Self {
            room: None,
            depends: false,
            commits: false,
            reply,
            published: Vec::new(),
            needs: None,
            outgrew: false,
        }
    }

    /// Whether the script, which used only its own keys, exceeded the bounds of a `confined` run.
    fn is_beyond(&self, confined: &Confined) -> bool {
        let is_large = self.reply.size() > CONFINED_REPLY_BYTES_MAX;
        let is_beyond = !confined.is_first() && (is_large || !self.published.is_empty());
        if is_beyond {
            confined.stop();
        } else {
            confined.has_run();
        }
        is_beyond
    }

    fn failed(why: &str) -> Self {
        Self::refused(Reply::error("ERR", format!("Error running script: {why}")))
    }
}

/// A script's name: the digest of its text.
fn digest(text: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text);
    let digits = digest.as_ref().iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect()
}

impl Scripts {
    /// Answers `SCRIPT`.
    pub(super) fn about(&self, args: &[Bytes]) -> Reply {
        match (word(&args[1]).as_str(), &args[2..]) {
            ("LOAD", [text]) => {
                if let Some(refused) = refused_text(text) {
                    return refused;
                }
                let sha = digest(text);
                self.known().add(sha.as_str().into(), text);
                Reply::text(sha)
            }
            ("EXISTS", shas @ [_, ..]) => {
                let known = self.known();
                let has = |sha: &Bytes| {
                    known.texts.contains_key(&*String::from_utf8_lossy(sha).to_ascii_lowercase())
                };
                Reply::Array(shas.iter().map(|sha| Reply::Number(i64::from(has(sha)))).collect())
            }
            ("FLUSH", []) => self.forget(),
            ("FLUSH", [how]) if matches!(word(how).as_str(), "SYNC" | "ASYNC") => self.forget(),
            ("FLUSH", _) => Reply::error("ERR", "SCRIPT FLUSH only support SYNC|ASYNC option"),
            ("KILL", []) => Reply::error("NOTBUSY", "No scripts in execution right now."),
            ("DEBUG", [_]) => Reply::error("ERR", "there is no debugger here"),
            ("HELP", []) => {
                let lines = [
                    "SCRIPT EXISTS <sha1> [<sha1> ...]",
                    "SCRIPT FLUSH [ASYNC|SYNC]",
                    "SCRIPT LOAD <script>",
                ];
                Reply::Array(lines.map(Reply::status).into())
            }
            ("LOAD" | "EXISTS" | "KILL" | "DEBUG" | "HELP", _) => {
                let subcommand = String::from_utf8_lossy(&args[1]).to_ascii_lowercase();
                wrong_count(&format!("script|{subcommand}"))
            }
            _ => unknown_subcommand("SCRIPT", &args[1]),
        }
    }

    fn forget(&self) -> Reply {
        *self.known() = Known::default();
        Reply::OK
    }
}

/// The error for a script that is loaded and cannot be read.
#[cfg(feature = "lua")]
fn refused_text(text: &[u8]) -> Option<Reply> {
    lua::refused_text(text)
}

#[cfg(not(feature = "lua"))]
fn refused_text(_: &[u8]) -> Option<Reply> {
    Some(no_scripts())
}

#[cfg(not(feature = "lua"))]
fn no_scripts() -> Reply {
    Reply::error("ERR", "this peer was built without scripts, the feature `lua`")
}

/// Runs a script, however long that takes within its bounds.
#[cfg(feature = "lua")]
fn run(input: &Input, room: Option<Room>) -> Ended {
    lua::run(input, room, &bounds::WHOLE)
}

#[cfg(not(feature = "lua"))]
fn run(_: &Input, room: Option<Room>) -> Ended {
    Ended { room, ..Ended::refused(no_scripts()) }
}

#[cfg(feature = "lua")]
fn seems_brief(input: &Input, room: Option<&Room>) -> bool {
    bounds::seems_brief(input, room)
}

#[cfg(not(feature = "lua"))]
fn seems_brief(_: &Input, _: Option<&Room>) -> bool {
    false
}

/// Runs a script that is likely to be over at once; a longer one has outgrown its bounds.
#[cfg(feature = "lua")]
fn run_briefly(input: &Input, room: Option<Room>) -> Ended {
    let run = || lua::run(input, room, &bounds::BRIEF);
    // If it panicked, its environment is dropped.
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    ended.unwrap_or_else(|_| Ended::failed("it failed"))
}

#[cfg(not(feature = "lua"))]
fn run_briefly(_: &Input, room: Option<Room>) -> Ended {
    Ended { room, ..Ended::refused(no_scripts()) }
}

impl Database {
    /// Runs a script.
    pub(super) async fn script(&self, request: &Request) -> Result<Reply, Stop> {
        let input = Arc::new(self.script_input(request)?);
        let mut name = input.keys.first().map(|key| self.name(key));
        // Keys that no argument names are found as the script runs: it restarts with the first one.
        // The keys that it was given may be channels instead.
        for _ in 0..2 {
            let came_to = match &name {
                None => {
                    let ended = self.run_script(&input, None).await;
                    (ended.reply, ended.needs, ended.published)
                }
                Some(name) => self.script_in(name, &input, request.confined.as_ref()).await?,
            };
            let (reply, needs, published) = came_to;
            if let Some(confined) = &request.confined {
                // A command behind it may be about the other key, and may have run already.
                if needs.is_some() && confined.ran() {
                    let detail = "nothing was done: others changed the key, and its other keys";
                    return Err(Reply::error("TRYAGAIN", detail).into());
                }
                if needs.is_some() || !published.is_empty() && !confined.is_first() {
                    confined.stop();
                }
                if confined.stopped() {
                    return Ok(Reply::Null);
                }
            }
            match needs {
                Some(needed) => name = Some(needed),
                None => {
                    for message in published {
                        // How many receive it is not counted.
                        let _ = self.shared.carrier.publish(&message);
                    }
                    return Ok(reply);
                }
            }
        }
        let detail = "the script looks for another key each time that it runs";
        Err(Reply::error("ERR", detail).into())
    }

    async fn script_in(
        &self,
        name: &Bytes,
        input: &Arc<Input>,
        confined: Option<&Arc<Confined>>,
    ) -> Result<(Reply, Option<Bytes>, Vec<Published>), Stop> {
        if input.read_only {
            let ended = self.run_script(input, Some(self.look(name).await?)).await;
            return Ok((ended.reply, ended.needs, ended.published));
        }
        let last = Arc::new(Mutex::new((None, Vec::new())));
        let run = |room: Room| {
            let (last, input, name) = (Arc::clone(&last), Arc::clone(input), name.clone());
            async move {
                let mut ended = self.run_script(&input, Some(room)).await;
                if let Some(confined) = confined.filter(|_| ended.needs.is_none())
                    && ended.is_beyond(confined)
                {
                    ended = Ended::refused(Reply::Null);
                }
                *last.lock().unwrap_or_else(PoisonError::into_inner) =
                    (ended.needs, ended.published);
                let room = ended.room.unwrap_or_else(|| Room::empty(&name, input.now));
                Outcome { room, reply: ended.reply, commits: ended.commits, depends: ended.depends }
            }
        };
        let reply = self.update(name, run).await?;
        let (needs, published) =
            std::mem::take(&mut *last.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((reply, needs, published))
    }

    /// Runs a script once; a long run does not block anything else that this peer does.
    async fn run_script(&self, input: &Arc<Input>, mut room: Option<Room>) -> Ended {
        if seems_brief(input, room.as_ref()) {
            let origin = room.as_ref().map(Room::origin);
            let ended = run_briefly(input, room);
            if !ended.outgrew {
                return ended;
            }
            room = origin.and_then(Origin::open);
            self.shared.scripts.known().took_long(&input.sha);
        }
        let Ok(_room) = self.shared.scripts.room.acquire().await else {
            return Ended::failed("this peer is ending");
        };
        let input = Arc::clone(input);
        let running = tokio::task::spawn_blocking(move || run(&input, room));
        running.await.unwrap_or_else(|_| Ended::failed("it failed"))
    }

    fn script_input(&self, request: &Request) -> Result<Input, Reply> {
        let args = &request.args;
        let count = number(&args[2])?;
        let count = usize::try_from(count)
            .map_err(|_| Reply::error("ERR", "Number of keys can't be negative"))?;
        let Some((keys, rest)) = args[3..].split_at_checked(count) else {
            let detail = "Number of keys can't be greater than number of args";
            return Err(Reply::error("ERR", detail));
        };
        let scripts = &self.shared.scripts;
        let (text, took_long, sha) = if request.spec.name.starts_with("EVALSHA") {
            let sha = String::from_utf8_lossy(&args[1]).to_ascii_lowercase();
            let text = scripts.known().touch(&sha);
            let no_script = || Reply::error("NOSCRIPT", "No matching script. Please use EVAL.");
            let (text, took_long) = text.ok_or_else(no_script)?;
            (text, took_long, sha.into())
        } else {
            let known = scripts.known().touch_text(&args[1]);
            let (sha, took_long) = known.unwrap_or_else(|| {
                let sha: Arc<str> = digest(&args[1]).into();
                // A script that does not compile gets its error on each run.
                let took_long = scripts.known().add(Arc::clone(&sha), &args[1]);
                (sha, took_long)
            });
            (args[1].clone(), took_long, sha)
        };
        let (text, flagged) = without_shebang(&text)?;
        Ok(Input {
            text,
            sha,
            keys: keys.to_vec(),
            args: rest.to_vec(),
            index: self.index,
            now: self.now(),
            took_long,
            read_only: flagged || !request.spec.has(WRITES),
            seed: rand::random(),
            hub: Arc::clone(&self.shared.hub),
            library: Arc::clone(&self.library),
        })
    }
}

/// A script's text without the line that names its engine and flags, and whether those forbid it to
/// write. The line is kept as an empty one, so that errors name the right lines.
fn without_shebang(text: &Bytes) -> Result<(Bytes, bool), Reply> {
    if !text.starts_with(b"#!") {
        return Ok((text.clone(), false));
    }
    let end = text.iter().position(|byte| *byte == b'\n');
    let Some(end) = end else { return Err(Reply::error("ERR", "Invalid script shebang")) };
    let line = String::from_utf8_lossy(&text[2..end]).into_owned();
    let mut words = line.split_whitespace();
    let engine = words.next().unwrap_or_default();
    if engine != "lua" {
        let detail = format!("Unexpected engine in script shebang: #!{engine}");
        return Err(Reply::error("ERR", detail));
    }
    let mut no_writes = false;
    for word in words {
        let Some(flags) = word.strip_prefix("flags=") else {
            return Err(Reply::error("ERR", format!("Unknown lua shebang option: {word}")));
        };
        for flag in flags.split(',').filter(|flag| !flag.is_empty()) {
            match flag {
                "no-writes" => no_writes = true,
                "allow-oom" | "allow-stale" | "no-cluster" | "allow-cross-slot-keys" => {}
                _ => {
                    let detail = format!("Unexpected flag in script shebang: {flag}");
                    return Err(Reply::error("ERR", detail));
                }
            }
        }
    }
    Ok((text.slice(end..), no_writes))
}
