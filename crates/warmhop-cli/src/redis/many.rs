//! Commands about several rooms: each room is read or changed separately.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use warmhop::When;

use super::arguments::bounded;
use super::arguments::{checked_pattern, syntax, word, wrong_count};
use super::cmd::{All, Split, scan_options};
use super::engine::{Database, Outcome, Request, Stop, failed, too_large};
use super::events::{Deed, Log};
use super::frame::{Reply, VALUE_BYTES_MAX};
use super::glob;
use super::room::{self, Room};
use super::turns::{Place, Turn};
use super::value::TooLarge;

/// How often a rename is tried while other changes win the race for the key. If another peer owns a
/// busy key, most tries lose: each takes two commits here, and a change there takes one.
const RENAMED_MAX: u32 = 256;
/// How many keys of one command are looked up concurrently.
const AT_ONCE: usize = 16;
/// The most keys that `KEYS` lists; `SCAN` lists more.
const KEYS_MAX: usize = 100_000;
/// The most bytes of keys that `KEYS` lists.
const KEYS_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How many keys are fetched at once when all are looked through.
const LISTED_AT_ONCE: usize = 1000;

impl Database {
    /// Carries out a command of several keys, room by room.
    pub(super) async fn split(&self, request: &Request, split: Split) -> Result<Reply, Stop> {
        match split {
            Split::Rename => self.rename(request).await,
            Split::MGet => self.get_many(request.args[1..].to_vec()).await,
            Split::MSet => {
                if request.args.len().is_multiple_of(2) {
                    return Err(wrong_count(request.spec.name).into());
                }
                let values = request.args[1..].chunks_exact(2).map(|pair| pair[1].len());
                if values.max().is_some_and(|len| len > VALUE_BYTES_MAX) {
                    return Err(too_large(TooLarge).into());
                }
                let set = |request| async move { self.by_itself(&request).await };
                change_all(self.each_room(request, 2), set).await.whole()?;
                Ok(Reply::OK)
            }
            Split::Sum => {
                let one = |request| async move { self.by_itself(&request).await };
                let changes = change_all(self.each_room(request, 1), one).await;
                if request.writes() {
                    return changes.whole().map(Reply::Number);
                }
                changes.stop.map_or(Ok(Reply::Number(changes.done)), Err)
            }
        }
    }

    async fn by_itself(&self, request: &Request) -> Result<Reply, Stop> {
        let name = self.one_room(&request.keys())?;
        match request.spec.run {
            super::cmd::Run::Split(handler, _) => self.in_room(&name, request, handler).await,
            _ => Err(syntax().into()),
        }
    }

    /// Splits the command by rooms; each part has the keys of one room with the arguments of each.
    fn each_room(&self, request: &Request, step: usize) -> Vec<Request> {
        let mut rooms: Vec<(Bytes, Vec<Bytes>)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for part in request.args[1..].chunks(step) {
            let name = self.name(&part[0]);
            let at = *places.entry(name.clone()).or_insert(rooms.len());
            if at == rooms.len() {
                rooms.push((name, vec![request.args[0].clone()]));
            }
            rooms[at].1.extend_from_slice(part);
        }
        rooms.into_iter().map(|(_, args)| Request::new(request.spec, args)).collect()
    }

    async fn get_many(&self, keys: Vec<Bytes>) -> Result<Reply, Stop> {
        let mut found = stream::iter(keys)
            .map(|key| async move {
                let room = self.look(&self.name(&key)).await?;
                // As Redis does: a key of another type counts as absent.
                let held = room.string(&key).ok().flatten().cloned();
                Ok::<_, Reply>(Reply::optional(held))
            })
            .buffered(AT_ONCE);
        let (mut values, mut size) = (Vec::new(), 0);
        while let Some(value) = found.try_next().await? {
            size += value.size();
            bounded(size, "keys")?;
            values.push(value);
        }
        Ok(Reply::Array(values))
    }

    /// Renames in two steps, one per room: a failure between them leaves both keys there. Both are
    /// published after the second, in Redis' order.
    async fn rename(&self, request: &Request) -> Result<Reply, Stop> {
        // What the new key was set to, once it was.
        let mut moved = None;
        let renamed = self.rename_in_steps(request, &mut moved).await;
        if moved.is_some() && renamed.is_err() && self.shared.events.any() {
            let mut log = Log::kept();
            log.note(&request.args[2], Deed::Wrote);
            log.command(&request.args);
            self.tell(&self.name(&request.args[2]), log.take());
        }
        renamed
    }

    async fn rename_in_steps(
        &self,
        request: &Request,
        moved: &mut Option<room::Item>,
    ) -> Result<Reply, Stop> {
        let only_if_free = request.spec.name == "RENAMENX";
        let (from_key, to_key) = (&request.args[1], &request.args[2]);
        let (from, to) = (self.name(from_key), self.name(to_key));
        // In the same order for all renames, so that no two wait for each other.
        let first = self.turns.wait((&from).min(&to), Turn::Alone).await?;
        let second = self.turns.wait((&from).max(&to), Turn::Alone).await?;
        let (at_from, at_to) = if from < to { (&first, &second) } else { (&second, &first) };
        let in_vain = || [&first, &second].into_iter().for_each(Place::in_vain);
        for _ in 0..RENAMED_MAX {
            let held = self.look(&from).await.inspect_err(|_| in_vain());
            let held = held.map_err(|reply| partly_if(moved.is_some(), reply))?;
            let Some(item) = held.item(from_key).cloned() else {
                let none = Reply::error("ERR", "no such key");
                return Err(partly_if(moved.is_some(), none));
            };
            let put = |mut room: Room| {
                let goes = match (only_if_free, &*moved) {
                    (false, _) => true,
                    (true, None) => room.value(to_key).is_none(),
                    (true, Some(moved)) => room.value(to_key) == Some(&moved.value),
                };
                if goes {
                    room.put_item(to_key, item.clone());
                }
                let reply = Reply::Number(i64::from(goes));
                std::future::ready(Outcome { room, reply, commits: true, depends: true })
            };
            match (self.update_in(at_to, &to, put).await, moved.is_some()) {
                (Ok(Reply::Number(1)), _) => *moved = Some(item.clone()),
                (Ok(Reply::Number(_)), false) => return Ok(Reply::Number(0)),
                (Ok(Reply::Number(_)), true) => break,
                (Ok(refused), false) => return Ok(refused),
                (Ok(refused), true) => return Err(Stop::Replies(refused).partly()),
                (Err(stop), false) => return Err(stop),
                (Err(stop), true) => return Err(stop.partly()),
            }
            let take = |mut room: Room| {
                let is_it = room
                    .item(from_key)
                    .is_some_and(|it| it.value == item.value && it.end == item.end);
                if is_it {
                    room.remove(from_key);
                    room.note(to_key, Deed::Wrote);
                    room.ran(&request.args);
                }
                let reply = Reply::Number(i64::from(is_it));
                std::future::ready(Outcome { room, reply, commits: true, depends: true })
            };
            if self.update_in(at_from, &from, take).await.map_err(Stop::partly)? == Reply::Number(1)
            {
                return Ok(if only_if_free { Reply::Number(1) } else { Reply::OK });
            }
        }
        let detail = "others kept changing the key while it was renamed; both are there now";
        Err(Stop::Replies(Reply::error("ERR", detail)).partly())
    }

    /// Carries out a command that looks through all keys.
    pub(super) async fn all(&self, all: All, args: &[Bytes]) -> Result<Reply, Stop> {
        match all {
            All::Scan => {
                let (cursor, pattern, count, kind) = scan_options(&args[1..], true)?;
                self.scan(cursor, pattern, count, kind).await
            }
            All::Keys => {
                checked_pattern(&args[1])?;
                let mut found = Found::default();
                self.each_key(|key| match glob::matches(&args[1], &key) {
                    true => found.add(key),
                    false => Ok(()),
                })
                .await?;
                Ok(Reply::Array(found.keys))
            }
            All::DbSize => {
                let mut keys = 0;
                self.each_key(|_| {
                    keys += 1;
                    Ok(())
                })
                .await?;
                Ok(Reply::Number(keys))
            }
            All::RandomKey => {
                let (mut seen, mut picked) = (0u64, None);
                self.each_key(|key| {
                    seen += 1;
                    if rand::random_range(0..seen) == 0 {
                        picked = Some(key);
                    }
                    Ok(())
                })
                .await?;
                Ok(Reply::optional(picked))
            }
            All::FlushDb | All::FlushEveryDb => {
                match args[1..].iter().map(|it| word(it)).collect::<Vec<_>>().as_slice() {
                    [] => {}
                    [how] if how == "ASYNC" || how == "SYNC" => {}
                    _ => return Err(syntax().into()),
                }
                self.flush(all == All::FlushEveryDb).await
            }
        }
    }

    /// Whether a register belongs to this database.
    fn is_mine(&self, name: &[u8]) -> bool {
        room::index_of(name) == self.index && !name.is_empty()
    }

    /// The keys of a register: from its name if that is enough, otherwise by reading it.
    async fn keys_in(&self, name: Bytes, looks: bool) -> Result<Vec<(Bytes, &'static str)>, Reply> {
        if let Some(key) = room::only_key(&name)
            && !looks
        {
            return Ok(vec![(key, "")]);
        }
        let room = self.look(&name).await?;
        Ok(room.keys().map(|(key, value)| (key.clone(), value.kind())).collect())
    }

    async fn scan(
        &self,
        cursor: u64,
        pattern: Option<Bytes>,
        count: usize,
        kind: Option<Bytes>,
    ) -> Result<Reply, Stop> {
        let (names, next) = self.registers.keys(cursor, count).await.map_err(failed)?;
        let is_match =
            |key: &[u8]| pattern.as_ref().is_none_or(|pattern| glob::matches(pattern, key));
        let may_match = |name: &Bytes| {
            self.is_mine(name) && room::only_key(name).is_none_or(|key| is_match(&key))
        };
        let names: Vec<Bytes> = names.into_iter().filter(may_match).collect();
        let looks = kind.is_some();
        let found: Vec<Vec<(Bytes, &str)>> = stream::iter(names)
            .map(|name| self.keys_in(name, looks))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let is_kind = |held: &str| {
            kind.as_ref().is_none_or(|kind| kind.eq_ignore_ascii_case(held.as_bytes()))
        };
        let found =
            found.into_iter().flatten().filter(|(key, held)| is_match(key) && is_kind(held));
        let found = found.map(|(key, _)| Reply::Bytes(key)).collect();
        Ok(Reply::Array(vec![Reply::text(next.to_string()), Reply::Array(found)]))
    }

    async fn each_key(
        &self,
        mut each: impl FnMut(Bytes) -> Result<(), Reply> + Send,
    ) -> Result<(), Reply> {
        let mut cursor = 0;
        loop {
            let listed = self.registers.keys(cursor, LISTED_AT_ONCE).await;
            let (names, next) = listed.map_err(failed)?;
            let mine = names.into_iter().filter(|name| self.is_mine(name));
            let mut found = stream::iter(mine.collect::<Vec<_>>())
                .map(|name| self.keys_in(name, false))
                .buffered(AT_ONCE);
            while let Some(keys) = found.try_next().await? {
                keys.into_iter().try_for_each(|(key, _)| each(key))?;
            }
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }

    async fn flush(&self, all: bool) -> Result<Reply, Stop> {
        let (mut cursor, mut flushed) = (0, Changes::default());
        loop {
            let listed = self.registers.keys(cursor, LISTED_AT_ONCE).await;
            let (names, next) = match listed {
                Ok(listed) => listed,
                Err(error) => {
                    flushed.stop = Some(failed(error).into());
                    return flushed.whole().map(Reply::Number);
                }
            };
            let mine = names.into_iter().filter(|name| all || self.is_mine(name));
            let delete = |name: Bytes| async move {
                let place = self.turns.wait(&name, Turn::Together).await?;
                let change = self.registers.delete(&name, When::Present).await;
                let change = change.inspect_err(|_| place.in_vain()).map_err(failed)?;
                Ok(Reply::Number(i64::from(change.done)))
            };
            flushed.add(change_all(mine, delete).await);
            if flushed.stop.is_some() || next == 0 {
                return flushed.whole().map(|_| Reply::OK);
            }
            cursor = next;
        }
    }
}

/// What `KEYS` has found.
#[derive(Default)]
struct Found {
    keys: Vec<Reply>,
    bytes: usize,
}

impl Found {
    fn add(&mut self, key: Bytes) -> Result<(), Reply> {
        let key = Reply::Bytes(key);
        self.bytes += key.size();
        self.keys.push(key);
        if self.keys.len() > KEYS_MAX || self.bytes > KEYS_BYTES_MAX {
            let detail = format!(
                "more than {KEYS_MAX} keys match, or {KEYS_BYTES_MAX} bytes of them: use SCAN"
            );
            return Err(Reply::error("ERR", detail));
        }
        Ok(())
    }
}

/// The result of a command that changes several keys separately.
#[derive(Default)]
struct Changes {
    /// How many were certainly changed.
    done: i64,
    /// Perhaps one more was changed: its answer is unknown.
    unknown: bool,
    /// Why not all of them were changed.
    stop: Option<Stop>,
}

impl Changes {
    fn add(&mut self, more: Self) {
        self.done += more.done;
        self.unknown |= more.unknown;
        self.stop = self.stop.take().or(more.stop);
    }

    /// How many were changed, if none failed.
    fn whole(self) -> Result<i64, Stop> {
        match self.stop {
            None => Ok(self.done),
            Some(stop) if self.done > 0 || self.unknown => Err(stop.partly()),
            Some(stop) => Err(stop),
        }
    }
}

/// Changes several keys, some concurrently. `one` returns how many it changed. After a failure no
/// other is begun, but those under way are waited for: their results decide the client's reply.
async fn change_all<T, F>(all: impl IntoIterator<Item = T>, one: impl Fn(T) -> F) -> Changes
where
    F: Future<Output = Result<Reply, Stop>>,
{
    let stopped = AtomicBool::new(false);
    let goes_on = |_: &T| std::future::ready(!stopped.load(Ordering::Relaxed));
    let changing = stream::iter(all).take_while(goes_on).map(one).buffer_unordered(AT_ONCE);
    let mut changing = std::pin::pin!(changing);
    let mut changes = Changes::default();
    while let Some(changed) = changing.next().await {
        match changed {
            Ok(Reply::Number(count)) => changes.done += count,
            Ok(_) => changes.done += 1,
            Err(stop) => {
                stopped.store(true, Ordering::Relaxed);
                changes.unknown |= !stop.changes_nothing();
                changes.stop.get_or_insert(stop);
            }
        }
    }
    changes
}

/// The client's error for a `reply` that came after a first step, or instead of it.
fn partly_if(first_step: bool, reply: Reply) -> Stop {
    let stop = Stop::Replies(reply);
    if first_step { stop.partly() } else { stop }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_of_keys_is_bounded_in_number_and_in_bytes() {
        for (len, fit) in [(1, KEYS_MAX), (496, KEYS_BYTES_MAX / 512)] {
            let mut found = Found::default();
            for _ in 0..fit {
                found.add(Bytes::from(vec![b'k'; len])).unwrap();
            }
            found.add(Bytes::from(vec![b'k'; len])).unwrap_err();
        }
    }

    /// The reply to a command of several keys with these results for each.
    async fn reply_to(each: &[Result<i64, &str>]) -> String {
        let one = |came_to: &Result<i64, &str>| {
            let came_to = match *came_to {
                Ok(changed) => Ok(Reply::Number(changed)),
                Err(error) => Err(Stop::Replies(Reply::Error(error.to_owned()))),
            };
            async move { came_to }
        };
        match change_all(each, one).await.whole() {
            Ok(changed) => changed.to_string(),
            Err(Stop::Replies(Reply::Error(error))) => error,
            Err(_) => panic!("nothing is watched"),
        }
    }

    #[tokio::test]
    async fn nothing_is_said_to_be_undone_once_a_key_of_several_may_have_been_changed() {
        let (again, unknown) = ("TRYAGAIN nothing was done: why", "UNKNOWN it may have been done");
        assert_eq!(reply_to(&[Ok(1), Ok(0), Ok(1)]).await, "2");
        assert_eq!(reply_to(&[Ok(0), Err(again), Err(again)]).await, again);
        assert_eq!(
            reply_to(&[Err(unknown)]).await,
            "UNKNOWN some of the keys may have been changed: it may have been done"
        );
        let partly = "UNKNOWN some of the keys may have been changed: why";
        // Those under way beside the one that fails count, whether they end before it or after.
        assert_eq!(reply_to(&[Ok(1), Err(again)]).await, partly);
        assert_eq!(reply_to(&[Err(again), Ok(1)]).await, partly);
        assert_eq!(reply_to(&[Err(again), Err(unknown)]).await, partly);
    }
}
