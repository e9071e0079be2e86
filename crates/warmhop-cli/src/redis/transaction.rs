//! Transactions: the commands between `MULTI` and `EXEC`. Commands whose keys live in one room are
//! committed as one change of it. Of several rooms, those with watched keys come first: if another
//! client changed such a key, nothing has been done yet, and the whole transaction may be retried.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use super::arguments::REPLY_BYTES_MAX;
use super::cmd::{All, Handler, Run};
use super::engine::{Database, Guard, Outcome, Request, Stop, Watched, WatchedChanged, run_on};
use super::frame::Reply;

/// How many commands one transaction has at most.
pub(super) const QUEUED_MAX: usize = 1024;

/// A command that waits for `EXEC`, and the database that it is about.
#[derive(Clone)]
pub(super) struct Queued {
    pub(super) request: Request,
    pub(super) index: u8,
}

/// The commands of a transaction, before it runs.
#[derive(Default)]
pub(super) struct Transaction {
    pub(super) commands: Vec<Queued>,
    /// One of them was refused.
    pub(super) is_broken: bool,
    pub(super) bytes: usize,
    /// The database that its next command will be about.
    pub(super) index: u8,
}

/// The state of a transaction's run.
struct Progress {
    replies: Vec<Option<Reply>>,
    /// Part of it has been done.
    changed: bool,
    /// Another client changed a watched key: the remaining commands are not run.
    stopped: bool,
    size: usize,
}

/// The whole reply of a transaction that ended early.
struct Ended(Reply);

fn handler(request: &Request) -> Option<Handler> {
    match request.spec.run {
        Run::Room(handler) | Run::Split(handler, _) | Run::Blocking(handler) => Some(handler),
        Run::All(_) | Run::Script | Run::Connection => None,
    }
}

impl Queued {
    /// The room of its keys, if they live in one.
    fn room(&self, database: &Database) -> Option<Bytes> {
        let keys = self.request.keys();
        handler(&self.request)?;
        keys.iter().try_for_each(|key| super::arguments::checked_key(key)).ok()?;
        self.in_its(database).one_room(&keys).ok().filter(|_| !keys.is_empty())
    }

    fn in_its(&self, database: &Database) -> Database {
        Database { index: self.index, ..database.clone() }
    }
}

/// Why a command may not be a part of a transaction that watches keys.
pub(super) fn refused_beside_watched(
    database: &Database,
    request: &Request,
    watched: &[(Bytes, Watched)],
) -> Option<&'static str> {
    if watched.is_empty() {
        return None;
    }
    let is_watched = |key: &Bytes| {
        let name = database.name(key);
        watched.iter().any(|(watched, _)| *watched == name)
    };
    match request.spec.run {
        // It takes several steps, none of which could include the comparison.
        Run::Split(_, super::cmd::Split::Rename)
            if request.keys().iter().any(is_watched)
                && database.one_room(&request.keys()).is_err() =>
        {
            Some("RENAME of a watched key is not offered")
        }
        Run::All(All::FlushDb | All::FlushEveryDb) => {
            Some("FLUSHDB while keys are watched is not offered")
        }
        _ => None,
    }
}

impl Progress {
    fn put(&mut self, at: usize, reply: Reply) {
        self.size += reply.size();
        self.replies[at] = Some(if self.size > REPLY_BYTES_MAX {
            let detail = format!("it was run, but the answers exceed {REPLY_BYTES_MAX} bytes");
            Reply::error("ERR", detail)
        } else {
            reply
        });
    }

    /// Ends the run because another client changed a watched key before these commands ran.
    fn stop(&mut self, places: &[usize], some_changed: bool) -> Result<(), Ended> {
        if !self.changed && !some_changed {
            return Err(Ended(Reply::Aborted));
        }
        // Too late for EXEC to answer that nothing ran: the replies show what did.
        self.stopped = true;
        for at in places {
            self.replies[*at] = Some(if some_changed { run_in_part() } else { not_run() });
        }
        Ok(())
    }

    /// Runs commands of one room, as one change of it.
    async fn run_room(
        &mut self,
        database: &Database,
        name: &Bytes,
        commands: &[Queued],
        places: &[usize],
    ) -> Result<(), Ended> {
        let all = |mut room: super::room::Room| {
            let mut replies = Vec::with_capacity(places.len());
            for at in places {
                let request = &commands[*at].request;
                let Some(handler) = handler(request) else { continue };
                let reply = run_on(&mut room, handler, &request.args);
                replies.push(reply.unwrap_or_else(|refused| refused));
            }
            Outcome { room, reply: Reply::Array(replies), commits: true, depends: true }
        };
        let writes = places.iter().any(|at| commands[*at].request.writes());
        let done = match writes {
            true => database.update(name, |room| std::future::ready(all(room))).await,
            false => match database.look(name).await {
                Ok(room) => Ok(all(room).reply),
                Err(failed) => Err(Stop::Replies(failed)),
            },
        };
        match done {
            Ok(Reply::Array(replies)) => {
                self.changed |= writes;
                for (at, reply) in places.iter().zip(replies) {
                    self.put(*at, reply);
                }
                Ok(())
            }
            Ok(reply) | Err(Stop::Replies(reply)) if !self.changed => Err(Ended(reply)),
            Ok(reply) | Err(Stop::Replies(reply)) => {
                places.iter().for_each(|at| self.put(*at, reply.clone()));
                Ok(())
            }
            Err(Stop::WatchedChanged(WatchedChanged { some_changed })) => {
                self.stop(places, some_changed)
            }
        }
    }

    /// Runs commands that are each about one room: room by room, those with watched keys first.
    async fn run_rooms(
        &mut self,
        database: &Database,
        commands: &[Queued],
        places: &[(Bytes, usize)],
    ) -> Result<(), Ended> {
        let mut rooms: Vec<(&Bytes, Vec<usize>)> = Vec::new();
        for (name, at) in places {
            match rooms.iter_mut().find(|(known, _)| *known == name) {
                Some((_, places)) => places.push(*at),
                None => rooms.push((name, vec![*at])),
            }
        }
        rooms.sort_by_key(|(name, _)| database.guard(name).is_none());
        for (name, places) in rooms {
            if self.stopped {
                for at in places {
                    self.replies[at] = Some(not_run());
                }
                continue;
            }
            self.run_room(database, name, commands, &places).await?;
        }
        Ok(())
    }
}

impl Database {
    /// Runs a transaction. A watched key is compared before anything runs, and again as part of its
    /// first change. `about` answers commands about the connection.
    pub(super) async fn exec(
        &self,
        watched: Vec<(Bytes, Watched)>,
        commands: Vec<Queued>,
        about: &mut (dyn FnMut(&Request) -> Reply + Send),
    ) -> Reply {
        for (name, before) in &watched {
            match self.watch(name).await {
                Ok(now) if now == *before => {}
                Ok(_) => return Reply::Aborted,
                Err(failed) => return failed,
            }
        }
        let guard = |(name, held)| Guard { name, held, spent: AtomicBool::new(false) };
        let guards: Arc<[Guard]> = watched.into_iter().map(guard).collect();
        let database = Self { guards, ..self.clone() };
        let replies = vec![None; commands.len()];
        let mut progress = Progress { replies, changed: false, stopped: false, size: 0 };
        match run_all(&database, &commands, &mut progress, about).await {
            Ok(()) => {
                let replies = progress.replies.into_iter();
                Reply::Array(replies.map(|reply| reply.unwrap_or_else(not_run)).collect())
            }
            Err(Ended(reply)) => reply,
        }
    }
}

async fn run_all(
    database: &Database,
    commands: &[Queued],
    progress: &mut Progress,
    about: &mut (dyn FnMut(&Request) -> Reply + Send),
) -> Result<(), Ended> {
    let mut together: Vec<(Bytes, usize)> = Vec::new();
    for (at, queued) in commands.iter().enumerate() {
        if let Some(name) = queued.room(database) {
            together.push((name, at));
            continue;
        }
        if matches!(queued.request.spec.run, Run::Connection)
            && !queued.request.spec.name.ends_with("PUBLISH")
        {
            let reply = about(&queued.request);
            progress.put(at, reply);
            continue;
        }
        // A command about several rooms runs after all that were queued before it.
        progress.run_rooms(database, commands, &std::mem::take(&mut together)).await?;
        if progress.stopped {
            progress.replies[at] = Some(not_run());
            continue;
        }
        if matches!(queued.request.spec.run, Run::Connection) {
            let reply = about(&queued.request);
            progress.put(at, reply);
            continue;
        }
        match queued.in_its(database).execute(&queued.request).await {
            Ok(reply) => {
                progress.changed |= queued.request.writes() && !reply.is_error();
                progress.put(at, reply);
            }
            Err(WatchedChanged { some_changed }) => progress.stop(&[at], some_changed)?,
        }
    }
    progress.run_rooms(database, commands, &together).await
}

fn not_run() -> Reply {
    let detail = "a watched key was changed by another after the first commands; this one and those \
                  after it were not run";
    Reply::error("WATCHFAILED", detail)
}

fn run_in_part() -> Reply {
    let detail = "some of the keys may have been changed: a watched one was changed by another; \
                  the commands after this one were not run";
    Reply::error("UNKNOWN", detail)
}
