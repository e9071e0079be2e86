//! Carries commands out on the mesh's registers. A command, a script or a transaction gets the room
//! of its keys as a working copy; its result is committed as one change by compare-and-set, and
//! retried if another change was faster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::FutureExt;
use warmhop::{Expires, RegisterError, Registers, When};

use super::arguments::{WORD_SHOWN_MAX, bounded, checked_key, word};
use super::cmd::{Handler, Run, Spec, WRITES};
use super::events::Event;
use super::frame::{Reply, VALUE_BYTES_MAX};
use super::room::{self, Kept, Room};
use super::scripts::Confined;
use super::shared::Shared;
use super::turns::{Place, Turn, Turns};
use super::value::{TooLarge, Value};

/// The error code for a command that may have been carried out.
const UNKNOWN: &str = "UNKNOWN";
/// How often a command is tried while other changes keep being faster.
const TRIES_MAX: u32 = 100;

/// A client's command: its name and its arguments, whose number has been checked.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) spec: &'static Spec,
    /// They begin with its name.
    pub(super) args: Vec<Bytes>,
    /// It is a script that runs beside other commands.
    pub(super) confined: Option<Arc<Confined>>,
}

impl Request {
    pub(super) fn keys(&self) -> Vec<Bytes> {
        self.spec.keys_of(&self.args)
    }

    pub(super) fn new(spec: &'static Spec, args: Vec<Bytes>) -> Self {
        Self { spec, args, confined: None }
    }

    /// The same, to be run when no other command of its client is.
    pub(super) fn unconfined(&self) -> Self {
        Self { confined: None, ..self.clone() }
    }

    /// Its key, if it has exactly one.
    pub(super) fn only_key(&self) -> Option<Bytes> {
        let key = self.spec.only_key(&self.args).cloned();
        key.or_else(|| match &self.keys()[..] {
            [key] => Some(key.clone()),
            _ => None,
        })
    }

    fn has_only_key(&self) -> bool {
        self.spec.only_key(&self.args).is_some() || self.keys().len() == 1
    }

    pub(super) fn writes(&self) -> bool {
        self.spec.has(WRITES)
    }
}

/// A database of the endpoint: 0 to 15, each with keys of its own.
#[derive(Clone)]
pub(super) struct Database {
    pub(super) registers: Registers,
    pub(super) turns: Arc<Turns>,
    pub(super) shared: Arc<Shared>,
    pub(super) index: u8,
    /// The library that its client says it uses.
    pub(super) library: Arc<str>,
    /// What its client watches, while a transaction runs.
    pub(super) guards: Arc<[Guard]>,
    /// The registers that were empty when its client began to watch them.
    pub(super) absent: Arc<[Absent]>,
}

/// A register that was empty when a client began to watch it. Once it is deleted again nothing shows that it
/// was not empty all the time: so it is noted if a command of that client finds it otherwise.
pub(super) struct Absent {
    pub(super) name: Bytes,
    pub(super) found: AtomicBool,
}

/// A register that a client watches. The transaction's first change of it also compares that it
/// still holds what it held; later changes compare with what the transaction made of it.
pub(super) struct Guard {
    /// Its name.
    pub(super) name: Bytes,
    pub(super) held: Watched,
    pub(super) spent: AtomicBool,
}

/// What a watched register held: its version, or nothing.
pub(super) type Watched = Option<u64>;

/// What a watched register held that has changed since: no register has this version.
pub(super) const CHANGED: Watched = Some(0);

/// Why a command was not carried out.
pub(super) enum Stop {
    /// Its client gets this reply.
    Replies(Reply),
    /// A key that its client watches was changed by another.
    WatchedChanged(WatchedChanged),
}

impl From<Reply> for Stop {
    fn from(reply: Reply) -> Self {
        Self::Replies(reply)
    }
}

impl Stop {
    const WATCHED_CHANGED: Self = Self::WatchedChanged(WatchedChanged { some_changed: false });

    /// The client's error if part of the command may have been carried out before.
    pub(super) fn partly(self) -> Self {
        match self {
            Self::Replies(Reply::Error(error)) => {
                let why = error.split_once(' ').map_or(error.as_str(), |(_, why)| why);
                let why = why.trim_start_matches("nothing was done: ");
                let detail = format!("some of the keys may have been changed: {why}");
                Self::Replies(Reply::error(UNKNOWN, detail))
            }
            Self::Replies(reply) => Self::Replies(reply),
            Self::WatchedChanged(_) => Self::WatchedChanged(WatchedChanged { some_changed: true }),
        }
    }

    /// Whether it leaves everything as it was.
    pub(super) fn changes_nothing(&self) -> bool {
        !matches!(self, Self::Replies(Reply::Error(error)) if error.starts_with(UNKNOWN))
    }
}

/// Another client changed a watched key: the command was not carried out, or only for some of its
/// keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WatchedChanged {
    pub(super) some_changed: bool,
}

/// The result of running something on a room.
pub(super) struct Outcome {
    pub(super) room: Room,
    pub(super) reply: Reply,
    /// The changed room is to be kept.
    pub(super) commits: bool,
    /// The reply depends on what the room holds.
    pub(super) depends: bool,
}

impl Outcome {
    /// Runs a command; one that is refused leaves its room as it was.
    pub(super) fn of(mut room: Room, run: Handler, args: &[Bytes]) -> Self {
        let result = run_on(&mut room, run, args);
        let commits = result.is_ok();
        let reply = result.unwrap_or_else(|refused| refused);
        Self { room, reply, commits, depends: true }
    }
}

/// Runs a command on a room, which notes the events. The parts of a reply may be the same bytes many times: one
/// that would become too large when it is sent is refused.
pub(super) fn run_on(room: &mut Room, run: Handler, args: &[Bytes]) -> Result<Reply, Reply> {
    let result = run(room, args);
    room.ran(args);
    let reply = result?;
    bounded(reply.size(), "parts")?;
    Ok(reply)
}

pub(super) fn failed(error: RegisterError) -> Reply {
    match error {
        // The code by which a cluster's servers ask for a retry.
        RegisterError::Unavailable(_) => Reply::error("TRYAGAIN", error),
        // Word for word as Redis servers say it: clients look for it.
        RegisterError::Full(_) => {
            Reply::error("OOM", "command not allowed when used memory > 'maxmemory'.")
        }
        RegisterError::OutcomeUnknown(_) => Reply::error(UNKNOWN, error),
        _ => Reply::error("ERR", error),
    }
}

pub(super) fn too_large(_: TooLarge) -> Reply {
    let detail = format!("a value has at most {VALUE_BYTES_MAX} bytes");
    Reply::error("ERR", detail)
}

/// A register's value, its version and when it ends.
type Known = Option<(Bytes, u64, SystemTime)>;

fn known(value: Option<warmhop::Value>) -> Known {
    value.map(|value| (value.bytes, value.version, value.expires))
}

impl Database {
    /// The first database, for a client that watches nothing.
    pub(super) fn new(registers: Registers, shared: Arc<Shared>) -> Self {
        Self {
            registers,
            turns: Arc::default(),
            shared,
            index: 0,
            library: Arc::default(),
            guards: Arc::default(),
            absent: Arc::default(),
        }
    }

    /// The name of the register in which a key lives.
    pub(super) fn name(&self, key: &[u8]) -> Bytes {
        room::register(self.index, key)
    }

    /// The present time for times to live, in milliseconds since 1970: the mesh's time, not this
    /// machine's.
    pub(super) fn now(&self) -> u64 {
        room::millis(self.registers.now())
    }

    /// Notes that a register is not empty, if its client watches it since it was.
    fn notes_found(&self, name: &Bytes, known: &Known) {
        if known.is_some()
            && let Some(absent) = self.absent.iter().find(|it| it.name == *name)
        {
            absent.found.store(true, Ordering::Relaxed);
        }
    }

    fn open(&self, name: &Bytes, known: &Known) -> Result<Room, Reply> {
        self.notes_found(name, known);
        let held = known.as_ref().map(|(bytes, _, expires)| (bytes.clone(), *expires));
        let unreadable = || Reply::error("ERR", "the key holds what this version cannot read");
        let mut room = Room::with_ended(name, held, self.now()).ok_or_else(unreadable)?;
        let events = self.shared.events;
        if events.any() {
            room.tells(events.ends());
        }
        room.take_out_ended();
        Ok(room)
    }

    /// Follows up a committed change of a register: wakes those who wait and publishes events.
    fn committed(&self, name: &Bytes, room: &mut Room) {
        self.shared.changed(name);
        let events = self.shared.events;
        if !events.any() {
            return;
        }
        self.tell(name, room.events());
        if events.ends() {
            self.shared.ends.set(name, room.first_end());
        }
    }

    /// Publishes events of a register's database.
    pub(super) fn tell(&self, name: &[u8], happened: Vec<Event>) {
        for event in happened {
            for message in self.shared.events.messages(room::index_of(name), &event) {
                // How many receive it is not counted.
                let _ = self.shared.carrier.publish(&message);
            }
        }
    }

    /// The room of this name as it is now.
    pub(super) async fn look(&self, name: &Bytes) -> Result<Room, Reply> {
        self.open(name, &known(self.registers.get(name).await.map_err(failed)?))
    }

    /// What a register has to hold for a watching client's transaction to be run.
    pub(super) async fn watch(&self, name: &[u8]) -> Result<Watched, Reply> {
        Ok(self.registers.get(name).await.map_err(failed)?.map(|held| held.version))
    }

    pub(super) fn guard(&self, name: &[u8]) -> Option<&Guard> {
        let fresh = |guard: &&Guard| guard.name == name && !guard.spent.load(Ordering::Relaxed);
        self.guards.iter().find(fresh)
    }

    /// Runs something on a room and commits the result as one step.
    pub(super) async fn update<F>(
        &self,
        name: &Bytes,
        run: impl FnMut(Room) -> F + Send,
    ) -> Result<Reply, Stop>
    where
        F: Future<Output = Outcome> + Send,
    {
        let place = self.turns.wait(name, Turn::Alone).await?;
        self.update_in(&place, name, run).await
    }

    /// As [`Database::update`], for a caller that has its turn.
    ///
    /// What this peer knows of the register is taken for what it holds. A change verifies that by
    /// its comparison; without a change the register is read. So a change costs one operation.
    pub(super) async fn update_in<F>(
        &self,
        place: &Place<'_>,
        name: &Bytes,
        mut run: impl FnMut(Room) -> F + Send,
    ) -> Result<Reply, Stop>
    where
        F: Future<Output = Outcome> + Send,
    {
        let in_vain = |_: &RegisterError| place.in_vain();
        let get = || async {
            let now = self.registers.get(name).await.inspect_err(in_vain).map_err(failed)?;
            Ok::<Known, Reply>(known(now))
        };
        let mut held = known(self.registers.peek(name));
        let mut is_certain = false;
        for _ in 0..TRIES_MAX {
            let version = version_of(&held);
            let guard = self.guard(name);
            if guard.is_some_and(|guard| guard.held != version) {
                if is_certain {
                    return Err(Stop::WATCHED_CHANGED);
                }
                held = get().await?;
                is_certain = true;
                continue;
            }
            let Outcome { mut room, mut reply, commits, depends } =
                run(self.open(name, &held)?).await;
            if !commits {
                room.events();
            }
            let kept = match commits && room.is_changed() {
                true => room.close(self.shared.idle).map(Some).unwrap_or_else(|error| {
                    reply = too_large(error);
                    room.events();
                    None
                }),
                false => None,
            };
            let when = version.map_or(When::Absent, When::Version);
            let change = match (kept, version) {
                // The run created the key and deleted it again, or changed nothing.
                (Some(Kept::Nothing), None) | (None, _) => {
                    if !is_certain && depends {
                        held = get().await?;
                        is_certain = true;
                        if version_of(&held) != version {
                            continue;
                        }
                    }
                    self.tell(name, room.events_without_change());
                    return Ok(reply);
                }
                (Some(Kept::Put(bytes, expires)), _) => {
                    self.registers.put(name, bytes, expires, when).await
                }
                (Some(Kept::Nothing), Some(_)) => self.registers.delete(name, when).await,
            };
            let change = change.inspect_err(in_vain).map_err(failed)?;
            if change.done {
                if let Some(guard) = guard {
                    guard.spent.store(true, Ordering::Relaxed);
                }
                self.committed(name, &mut room);
                return Ok(reply);
            }
            held = known(change.before);
            is_certain = true;
        }
        Err(Reply::error("TRYAGAIN", "others kept changing the key; nothing was done").into())
    }

    /// Carries a command out.
    ///
    /// # Errors
    /// If another client changed a register of [`Database::guards`] that the command would change.
    pub(super) async fn execute(&self, request: &Request) -> Result<Reply, WatchedChanged> {
        match self.run(request).await {
            Ok(reply) | Err(Stop::Replies(reply)) => Ok(reply),
            Err(Stop::WatchedChanged(changed)) => Err(changed),
        }
    }

    async fn run(&self, request: &Request) -> Result<Reply, Stop> {
        if let Run::Room(handler) | Run::Split(handler, _) = request.spec.run
            && let Some(key) = request.spec.only_key(&request.args)
        {
            checked_key(key)?;
            return self.in_room(&self.name(key), request, handler).await;
        }
        let keys = request.keys();
        keys.iter().try_for_each(|key| checked_key(key))?;
        match request.spec.run {
            Run::Room(handler) => {
                let name = self.one_room(&keys)?;
                self.in_room(&name, request, handler).await
            }
            Run::Split(handler, split) => match self.one_room(&keys) {
                Ok(name) => self.in_room(&name, request, handler).await,
                // Boxed, like the other rare kinds, so that a command about one key stays small.
                Err(_) => self.split(request, split).boxed().await,
            },
            Run::All(all) => self.all(all, &request.args).boxed().await,
            Run::Script => self.script(request).boxed().await,
            Run::Blocking(handler) => {
                let name = self.one_room(&keys)?;
                self.wait_in_room(&name, request, handler).boxed().await
            }
            Run::Connection => {
                let detail = "this command is about the connection and runs by itself";
                Err(Reply::error("ERR", detail).into())
            }
        }
    }

    /// The one room in which all of these keys live.
    pub(super) fn one_room(&self, keys: &[Bytes]) -> Result<Bytes, Reply> {
        let Some(first) = keys.first() else { return Ok(self.name(b"")) };
        let name = self.name(first);
        match keys.iter().find(|key| self.name(key) != name) {
            None => Ok(name),
            Some(other) => Err(elsewhere(other, Some(first))),
        }
    }

    /// Runs a command whose keys live in one room.
    pub(super) async fn in_room(
        &self,
        name: &Bytes,
        request: &Request,
        handler: Handler,
    ) -> Result<Reply, Stop> {
        if !request.writes() {
            let known = known(self.registers.get(name).await.map_err(failed)?);
            self.notes_found(name, &known);
            if request.spec.name == "GET" {
                let held = known.as_ref().map(|(bytes, _, expires)| (bytes, *expires));
                if let Some(text) = room::string_in(name, held, self.now()) {
                    return Ok(Reply::optional(text));
                }
            }
            return Ok(Outcome::of(self.open(name, &known)?, handler, &request.args).reply);
        }
        // The events of a change depend on the old value.
        if self.guard(name).is_none()
            && !self.shared.events.any()
            && room::is_of_one(name)
            && request.has_only_key()
            && let Some(reply) = self.blindly(name, request, handler).await?
        {
            return Ok(reply);
        }
        let run = |room| std::future::ready(Outcome::of(room, handler, &request.args));
        self.update(name, run).await
    }

    /// Carries out a command whose result does not depend on what its key holds: it takes one
    /// operation, and several run concurrently. `None` for other commands.
    async fn blindly(
        &self,
        name: &Bytes,
        request: &Request,
        handler: Handler,
    ) -> Result<Option<Reply>, Stop> {
        if matches!(request.spec.name, "DEL" | "UNLINK") {
            let place = self.turns.wait(name, Turn::Together).await?;
            let change = self.registers.delete(name, When::Present).await;
            let change = change.inspect_err(|_| place.in_vain()).map_err(failed)?;
            if change.done {
                self.shared.changed(name);
            }
            return Ok(Some(Reply::Number(i64::from(change.done))));
        }
        let Some((bytes, expires, when)) = self.made_blindly(name, request, handler)? else {
            return Ok(None);
        };
        let place = self.turns.wait(name, Turn::Together).await?;
        let change = self.registers.put(name, bytes, expires, when).await;
        let change = change.inspect_err(|_| place.in_vain()).map_err(failed)?;
        if change.done {
            self.shared.changed(name);
        }
        Ok(Some(match (request.spec.name, change.done) {
            ("SETNX", done) => Reply::Number(i64::from(done)),
            (_, true) => Reply::OK,
            (_, false) => Reply::Null,
        }))
    }

    /// What a command puts into its register whatever that holds, and when; `None` for one that depends on
    /// it.
    fn made_blindly(
        &self,
        name: &Bytes,
        request: &Request,
        handler: Handler,
    ) -> Result<Option<(Bytes, Expires, When)>, Stop> {
        if let ("SET", [_, _, value]) = (request.spec.name, &request.args[..]) {
            // As below. It has no options, as most have none: it takes no room.
            let bytes = Value::String(value.clone()).encode(true).map_err(too_large)?;
            return Ok(Some((bytes, Expires::Default, When::Always)));
        }
        let mut args = request.args.clone();
        let Some(when) = independent(request.spec.name, &mut args) else { return Ok(None) };
        let mut room = Room::empty(name, self.now());
        handler(&mut room, &args)?;
        // An end that has passed already deletes the key, which depends on what is there.
        if room::only_key(name).is_none_or(|key| room.item(&key).is_none()) {
            return Ok(None);
        }
        match room.close(self.shared.idle) {
            Ok(Kept::Put(bytes, expires)) => Ok(Some((bytes, expires, when))),
            Ok(Kept::Nothing) | Err(TooLarge) => Err(too_large(TooLarge).into()),
        }
    }
}

fn version_of(known: &Known) -> Option<u64> {
    known.as_ref().map(|(_, version, _)| *version)
}

/// The error for a command that names keys of several rooms.
pub(super) fn elsewhere(key: &[u8], other: Option<&[u8]>) -> Reply {
    let shown =
        |key: &[u8]| String::from_utf8_lossy(key).chars().take(WORD_SHOWN_MAX).collect::<String>();
    let beside = other.map(|other| format!(" beside '{}'", shown(other))).unwrap_or_default();
    let detail = format!(
        "Keys in request don't hash to the same slot: '{}' is another key{beside}, and one command, \
         script or transaction changes one; keys with the same hash tag, as in {{user1}}:lock, count \
         as one",
        shown(key)
    );
    Reply::error("CROSSSLOT", detail)
}

/// The condition on which a command sets its key, if the new value does not depend on the old one;
/// the condition is removed from the arguments.
fn independent(name: &str, args: &mut Vec<Bytes>) -> Option<When> {
    match name {
        "SETEX" | "PSETEX" | "MSET" => Some(When::Always),
        "SETNX" => Some(When::Absent),
        "SET" => {
            let mut when = When::Always;
            let mut at = 3;
            while at < args.len() {
                match word(&args[at]).as_str() {
                    "NX" if when == When::Always => when = When::Absent,
                    "XX" if when == When::Always => when = When::Present,
                    "EX" | "PX" | "EXAT" | "PXAT" => {
                        at += 2;
                        continue;
                    }
                    // The command is refused, or depends on the old value.
                    _ => return None,
                }
                args.remove(at);
            }
            Some(when)
        }
        _ => None,
    }
}
