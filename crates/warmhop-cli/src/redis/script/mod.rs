//! Scripts: what `EVAL` and its like run, each on the room of its keys and as one change of it.

#[cfg(feature = "lua")]
mod bits;
#[cfg(all(feature = "lua", any(test, feature = "fuzzing")))]
pub(crate) mod fuzzing;
#[cfg(feature = "lua")]
mod json;
#[cfg(feature = "lua")]
mod lua;
#[cfg(feature = "lua")]
mod msgpack;
#[cfg(feature = "lua")]
mod patterns;
#[cfg(all(test, feature = "lua"))]
mod tests;
#[cfg(feature = "lua")]
mod text;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::cmd::{WRITES, number, unknown_subcommand, word, wrong_count};
use super::engine::{Database, Outcome, Request, Stop};
use super::frame::Reply;
use super::room::Room;

/// The version of Redis that the endpoint says it is.
pub(super) const SPEAKS_AS: &str = "7.2.0";
/// How many scripts a peer remembers; the one that was used least lately is forgotten for a new one.
const LOADED_MAX: usize = 4096;
/// How many bytes of them.
const LOADED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many scripts run at once; others wait for them.
const AT_ONCE: usize = 8;

/// What a script is run with.
#[cfg_attr(not(feature = "lua"), expect(dead_code, reason = "nothing runs them"))]
pub(super) struct Input {
    text: Bytes,
    /// Its digest, by which errors name it.
    sha: String,
    keys: Vec<Bytes>,
    args: Vec<Bytes>,
    index: u8,
    /// When it began, in milliseconds since 1970.
    now: u64,
    read_only: bool,
}

/// A message that a script publishes once its change is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Published {
    pub(super) channel: Bytes,
    pub(super) message: Bytes,
    pub(super) is_sharded: bool,
}

/// What a run came to.
struct Ended {
    room: Option<Room>,
    /// It read or changed its room.
    depends: bool,
    /// What it made of the room is to be kept.
    stands: bool,
    reply: Reply,
    published: Vec<Published>,
    /// It needs this room before it can go on.
    needs: Option<Bytes>,
}

/// A script's name: the digest of its text.
fn digest(text: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The scripts that clients of this peer have sent, by their digests.
pub(super) struct Scripts {
    known: Mutex<Known>,
    room: Semaphore,
}

#[derive(Default)]
struct Known {
    texts: HashMap<String, (Bytes, u64)>,
    /// In the order in which they were used, with when that was; those used again since are passed
    /// over.
    used: VecDeque<(u64, String)>,
    clock: u64,
    bytes: usize,
}

impl Default for Scripts {
    fn default() -> Self {
        Self { known: Mutex::default(), room: Semaphore::new(AT_ONCE) }
    }
}

impl Known {
    fn touch(&mut self, sha: &str) -> Option<Bytes> {
        self.clock += 1;
        let (text, used) = self.texts.get_mut(sha)?;
        *used = self.clock;
        let text = text.clone();
        self.used.push_back((self.clock, sha.to_owned()));
        if self.used.len() > 2 * LOADED_MAX {
            let texts = &self.texts;
            self.used.retain(|(at, sha)| texts.get(sha).is_some_and(|(_, used)| used == at));
        }
        Some(text)
    }

    fn add(&mut self, sha: String, text: &Bytes) {
        if self.touch(&sha).is_some() || text.len() > LOADED_BYTES_MAX {
            return;
        }
        self.bytes += text.len();
        self.texts.insert(sha.clone(), (Bytes::copy_from_slice(text), 0));
        self.touch(&sha);
        while self.texts.len() > LOADED_MAX || self.bytes > LOADED_BYTES_MAX {
            let Some((at, sha)) = self.used.pop_front() else { break };
            if self.texts.get(&sha).is_some_and(|(_, used)| *used == at)
                && let Some((text, _)) = self.texts.remove(&sha)
            {
                self.bytes -= text.len();
            }
        }
    }
}

impl Scripts {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers `SCRIPT`.
    pub(super) fn about(&self, args: &[Bytes]) -> Reply {
        match (word(&args[1]).as_str(), &args[2..]) {
            ("LOAD", [text]) => {
                if let Some(refused) = refused_text(text) {
                    return refused;
                }
                let sha = digest(text);
                self.known().add(sha.clone(), text);
                Reply::text(sha)
            }
            ("EXISTS", shas @ [_, ..]) => {
                let known = self.known();
                let has = |sha: &Bytes| {
                    known.texts.contains_key(&String::from_utf8_lossy(sha).to_ascii_lowercase())
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

/// What is answered to one who loads a script that cannot be read.
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

#[cfg(feature = "lua")]
fn run(input: &Input, room: Option<Room>) -> Ended {
    lua::run(input, room)
}

#[cfg(not(feature = "lua"))]
fn run(_: &Input, room: Option<Room>) -> Ended {
    let (reply, published) = (no_scripts(), Vec::new());
    Ended { room, depends: false, stands: false, reply, published, needs: None }
}

impl Database {
    /// Runs a script.
    pub(super) async fn script(&self, request: &Request) -> Result<Reply, Stop> {
        let input = Arc::new(self.script_input(request)?);
        let mut name = input.keys.first().map(|key| self.name(key));
        // Keys that no argument names are found as the script runs: it begins anew with the first.
        // The keys that it was given may be no keys, but channels.
        for _ in 0..2 {
            let came_to = match &name {
                None => {
                    let ended = self.run_script(&input, None).await;
                    (ended.reply, ended.needs, ended.published)
                }
                Some(name) => self.script_in(name, &input).await?,
            };
            let (reply, needs, published) = came_to;
            match needs {
                Some(needed) => name = Some(needed),
                None => {
                    for message in published {
                        // How many get it is told by nobody.
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
    ) -> Result<(Reply, Option<Bytes>, Vec<Published>), Stop> {
        if input.read_only {
            let ended = self.run_script(input, Some(self.look(name).await?)).await;
            return Ok((ended.reply, ended.needs, ended.published));
        }
        let last = Arc::new(Mutex::new((None, Vec::new())));
        let run = |room: Room| {
            let (last, input, name) = (Arc::clone(&last), Arc::clone(input), name.clone());
            async move {
                let ended = self.run_script(&input, Some(room)).await;
                *last.lock().unwrap_or_else(PoisonError::into_inner) =
                    (ended.needs, ended.published);
                let room = ended.room.unwrap_or_else(|| Room::empty(&name, input.now));
                Outcome { room, reply: ended.reply, stands: ended.stands, depends: ended.depends }
            }
        };
        let reply = self.update(name, run).await?;
        let (needs, published) =
            std::mem::take(&mut *last.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((reply, needs, published))
    }

    /// One run, beside everything else that this peer does.
    async fn run_script(&self, input: &Arc<Input>, room: Option<Room>) -> Ended {
        let failed = |why: &str| Ended {
            room: None,
            depends: false,
            stands: false,
            reply: Reply::error("ERR", format!("Error running script: {why}")),
            published: Vec::new(),
            needs: None,
        };
        let Ok(_room) = self.shared.scripts.room.acquire().await else {
            return failed("this peer is ending");
        };
        let input = Arc::clone(input);
        let running = tokio::task::spawn_blocking(move || run(&input, room));
        running.await.unwrap_or_else(|_| failed("it failed"))
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
        let (text, sha) = if request.spec.name.starts_with("EVALSHA") {
            let sha = String::from_utf8_lossy(&args[1]).to_ascii_lowercase();
            let text = scripts.known().touch(&sha);
            let no_script = || Reply::error("NOSCRIPT", "No matching script. Please use EVAL.");
            (text.ok_or_else(no_script)?, sha)
        } else {
            let sha = digest(&args[1]);
            (args[1].clone(), sha)
        };
        // One that does not compile is told so each time it is run.
        if !request.spec.name.starts_with("EVALSHA") {
            scripts.known().add(sha.clone(), &text);
        }
        let (text, flagged) = without_shebang(&text)?;
        Ok(Input {
            text,
            sha,
            keys: keys.to_vec(),
            args: rest.to_vec(),
            index: self.index,
            now: self.now(),
            read_only: flagged || !request.spec.has(WRITES),
        })
    }
}

/// A script's text without the line that tells its engine and flags, and whether those forbid it to
/// write. The line stays as an empty one, so that errors tell the right lines.
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
        let detail = format!("Unexpected engine in script shebang: {engine}");
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
