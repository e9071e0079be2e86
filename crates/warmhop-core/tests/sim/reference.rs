//! What a session is to its clients: a list of the requests applied to it. Judges histories, not
//! internals: every answer shows the whole list, so that what is lost, doubled, stale or out of
//! order shows in the answers alone.
//!
//! * An answered change is in every later answer (I4, I8), and no request is in a list twice (I6).
//! * The lists of one session extend one another (I4): there are never two histories.
//! * A session ends only where that was allowed: it was idle for long, or so many of its holders
//!   were gone at once that nobody promised to keep it; and its client learns of it.

use std::collections::{BTreeMap, BTreeSet};

use warmhop_core::config::WithoutMajority;
use warmhop_core::ids::{Incarnation, SessionId};
use warmhop_core::session::message::{Config, Members};

use crate::calls::{Asked, Does, Reply};
use crate::world::World;

/// The most that two peers' wall clocks differ.
pub(crate) const SKEW_MS_MAX: u64 = 2_000;

#[derive(Default)]
pub(crate) struct Reference {
    histories: BTreeMap<SessionId, History>,
}

#[derive(Default)]
struct History {
    /// The longest list seen of each that was begun under this session; a new one is begun when
    /// the state has expired.
    lists: BTreeMap<u32, Vec<u16>>,
    /// Which list was answered last, and how much of it.
    answered: Option<(u32, usize)>,
    /// The same of what left the session's owner, whether that arrived or not.
    confirmed: Option<(u32, usize)>,
    /// When the last request was sent that was answered.
    used_at: u64,
    /// So many holders were gone at once that it may be lost.
    may_be_lost: bool,
    /// Requests that were applied according to what their client learned, without their answer.
    applied: BTreeSet<u16>,
    /// Requests that were not applied according to what their client learned, and that it did not repeat.
    refused: BTreeSet<u16>,
}

/// What had been answered when a request was sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Before {
    pub(crate) sid: Option<SessionId>,
    answered: Option<(u32, usize)>,
    confirmed: Option<(u32, usize)>,
    used_at: u64,
}

impl World {
    pub(crate) fn before(&self, sid: Option<SessionId>) -> Before {
        let reference = self.reference.borrow();
        let history = sid.and_then(|sid| reference.histories.get(&sid));
        let Some(history) = history else {
            return Before { sid, used_at: self.now(), ..Before::default() };
        };
        let History { answered, confirmed, used_at, .. } = *history;
        Before { sid, answered, confirmed, used_at }
    }

    /// The owner of a session lets an answer go: whatever is asked for from here on shows as much, whether the
    /// answer arrives or not, and whether it is of a request that changed anything.
    pub(crate) fn confirmed(&self, sid: SessionId, answer: &[u8]) {
        let (Some(list_id), list) = read_list(answer) else { return };
        let mut reference = self.reference.borrow_mut();
        let confirmed = &mut reference.histories.entry(sid).or_default().confirmed;
        *confirmed = match *confirmed {
            Some((known, count)) if known == list_id => Some((known, count.max(list.len()))),
            _ => Some((list_id, list.len())),
        };
    }

    /// Judges an answer to `asked`, sent at `sent`, which came under `sid`.
    pub(crate) fn judge(
        &self,
        asked: &Asked,
        before: &Before,
        sent: u64,
        sid: SessionId,
        reply: &Reply,
    ) {
        if let Err(what) = self.try_judge(asked, before, sent, sid, reply) {
            let shown = reply.answer.as_deref().map(read_list);
            let what =
                format!("request {} ({:?}): {what}; answered {shown:?}", asked.id, asked.does);
            self.violated(before.sid.or(Some(sid)), what);
        }
    }

    fn try_judge(
        &self,
        asked: &Asked,
        before: &Before,
        sent: u64,
        sid: SessionId,
        reply: &Reply,
    ) -> Result<(), String> {
        let Ok(answer) = &reply.answer else { return Ok(()) };
        let (list_id, list) = read_list(answer);
        let unique: BTreeSet<u16> = list.iter().copied().collect();
        if unique.len() != list.len() {
            return Err("a request was applied twice".into());
        }
        let is_there = match asked.does {
            Does::Read => true,
            Does::Append => list.last() == Some(&asked.id),
            Does::Mark => unique.contains(&asked.id),
            Does::Begin => !list.is_empty(),
            Does::Delete => true,
        };
        if !is_there {
            return Err("its change is not in its answer, or not last".into());
        }
        let may_expire = self.may_have_expired(before);
        let moved_on = before.sid.filter(|old| *old != sid);
        if let Some(old) = moved_on {
            self.judge_move(before, old, &list, list_id, reply, may_expire)?;
        }
        let mut reference = self.reference.borrow_mut();
        let history = reference.histories.entry(sid).or_default();
        if let Some((known, _)) = history.answered
            && Some(known) != list_id
            // One that ran before the first change was answered may show nothing.
            && (list_id.is_some() || before.answered.is_some())
            && !may_expire
            && !reply.replayed
        {
            let longest = &history.lists[&known];
            return Err(format!("another history than {longest:?}, which was answered"));
        }
        if moved_on.is_none() && !may_expire && !reply.replayed {
            follows_confirmed(before, list_id, &list)?;
        }
        let Some(list_id) = list_id else { return Ok(()) };
        let longest = history.lists.entry(list_id).or_default();
        let both = list.len().min(longest.len());
        if list[..both] != longest[..both] {
            return Err(format!("two histories: the other is {longest:?}"));
        }
        if list.len() > longest.len() {
            *longest = list.clone();
        }
        if moved_on.is_none()
            && !reply.replayed
            && let Some((known, count)) = before.answered
            && known == list_id
            && list.len() < count
        {
            let missing = &history.lists[&list_id][list.len()..count];
            return Err(format!("{missing:?} had been answered before, and is not in it"));
        }
        let count = match history.answered {
            Some((known, count)) if known == list_id => count.max(list.len()),
            Some((_, _)) if reply.replayed => return Ok(()),
            _ => list.len(),
        };
        history.answered = Some((list_id, count));
        // A stored answer prolongs nothing.
        if !reply.replayed {
            history.used_at = history.used_at.max(sent);
        }
        Ok(())
    }

    /// Whether a client may be given another session than the one that it asked for.
    fn judge_move(
        &self,
        before: &Before,
        old: SessionId,
        list: &[u16],
        list_id: Option<u32>,
        reply: &Reply,
        may_expire: bool,
    ) -> Result<(), String> {
        if reply.forked {
            // A peer that goes on alone by default holds every answered change.
            let refuses = self.knobs.policy.without_majority == WithoutMajority::Refuse;
            if let Some((known, count)) = before.answered.filter(|_| refuses && !may_expire) {
                let reference = self.reference.borrow();
                let longest = &reference.histories[&old].lists[&known][..count];
                if list_id != Some(known) || !list.starts_with(longest) {
                    return Err(format!("it goes on under another session, without {longest:?}"));
                }
            }
            return Ok(());
        }
        if before.answered.is_none() || may_expire {
            return Ok(());
        }
        // What it went on as may be lost in its turn; so may what nobody was ever answered from.
        let forks = self.forks.borrow();
        let forks = forks.iter().filter(|(from, _)| *from == old).map(|(_, into)| *into);
        let is_unanswered = |fork: SessionId| {
            let reference = self.reference.borrow();
            reference.histories.get(&fork).is_none_or(|history| history.answered.is_none())
        };
        let mut forks = forks.into_iter();
        if !self.may_be_lost(old)
            && !forks.any(|fork| is_unanswered(fork) || self.may_be_lost(fork))
        {
            return Err(format!(
                "its session {old:?} was given up, although a majority of its holders lived"
            ));
        }
        Ok(())
    }

    /// Nobody but this client used the session, and that is so long ago that it may be over. A
    /// session that is used lives for half of its time at least.
    fn may_have_expired(&self, before: &Before) -> bool {
        let half = self.knobs.policy.ttl.as_millis() as u64 / 2;
        self.now() + 2 * SKEW_MS_MAX > before.used_at + half
    }

    /// A client learned that the request was applied.
    pub(crate) fn was_applied(&self, sid: SessionId, id: u16) {
        let mut reference = self.reference.borrow_mut();
        reference.histories.entry(sid).or_default().applied.insert(id);
    }

    /// A client learned that the request was not applied, and will not repeat it.
    pub(crate) fn was_refused(&self, sid: SessionId, id: u16) {
        let mut reference = self.reference.borrow_mut();
        reference.histories.entry(sid).or_default().refused.insert(id);
    }

    /// Requests that were said to be applied must be in the list, once it is seen last, and those that
    /// were said not to be must not.
    pub(crate) fn judge_last(&self, sid: SessionId) {
        let (missing, applied) = {
            let reference = self.reference.borrow();
            let Some(history) = reference.histories.get(&sid) else { return };
            let seen: BTreeSet<u16> = history.lists.values().flatten().copied().collect();
            let missing = history.applied.iter().find(|id| !seen.contains(id)).copied();
            (missing, history.refused.intersection(&seen).next().copied())
        };
        if let Some(id) = applied {
            let what = format!("request {id} was said not to be applied, and is in a list");
            self.violated(Some(sid), what);
        }
        if let Some(id) = missing {
            self.violated(
                Some(sid),
                format!("request {id} was said to be applied, and is in no list"),
            );
        }
    }

    /// Whether any client was answered from this session. Of one whose first change came to nothing
    /// a copy may be left that nobody will ever ask for.
    pub(crate) fn was_answered(&self, sid: SessionId) -> bool {
        let reference = self.reference.borrow();
        reference.histories.get(&sid).is_some_and(|history| history.answered.is_some())
    }

    /// Whether so many of its holders were gone at once that it may be lost.
    pub(crate) fn noted_endangered(&self, sid: SessionId) -> bool {
        self.reference.borrow().histories.get(&sid).is_some_and(|history| history.may_be_lost)
    }

    pub(crate) fn may_be_lost(&self, sid: SessionId) -> bool {
        self.noted_endangered(sid) || self.is_endangered(sid, &self.newest_configs(sid))
    }

    /// Every session that somebody holds something of.
    pub(crate) fn sids(&self) -> BTreeSet<SessionId> {
        let peers = self.live_peers();
        peers
            .iter()
            .flat_map(|peer| peer.store.borrow().entries.keys().copied().collect::<Vec<_>>())
            .collect()
    }

    /// The configurations of the highest count that any live peer knows.
    pub(crate) fn newest_configs(&self, sid: SessionId) -> Vec<Config> {
        let peers = self.live_peers();
        let mut configs: Vec<Config> = peers
            .iter()
            .filter_map(|peer| peer.look(sid, |m| m.config().cloned()).flatten())
            .collect();
        let newest = configs.iter().map(|cfg| cfg.now.c).max().unwrap_or_default();
        configs.retain(|cfg| cfg.now.c == newest);
        configs
    }

    /// Whether the process lives and can vote in this set.
    pub(crate) fn can_vote(&self, sid: SessionId, set: &Members, peer: Incarnation) -> bool {
        self.peer_of(peer).is_some_and(|peer| {
            let fenced = peer.look(sid, |machine| machine.fenced()).flatten().is_some();
            let store = peer.store.borrow();
            let low = store.entries.get(&sid).map_or(store.process.watermark, |entry| entry.low);
            low < set.stamp && !fenced
        })
    }

    /// Whether a majority of any set of members can vote no more.
    pub(crate) fn is_endangered(&self, sid: SessionId, configs: &[Config]) -> bool {
        let sets = || configs.iter().flat_map(Config::sets);
        configs.is_empty() || sets().any(|set| !set.majority(|peer| self.can_vote(sid, set, peer)))
    }

    /// Whether nothing that anybody knows of it can ever be taken over again.
    pub(crate) fn is_hopeless(&self, sid: SessionId) -> bool {
        let has_hope =
            |cfg: &Config| cfg.sets().all(|set| set.majority(|peer| self.can_vote(sid, set, peer)));
        !self.newest_configs(sid).iter().any(has_hope)
    }

    pub(crate) fn note_endangered(&self, sid: SessionId) {
        self.note(Some(sid), || "from here on it may be lost".into());
        if let Some(register) = self.fleeting.borrow_mut().get_mut(&sid) {
            register.endangered = Some(self.now());
        }
        self.reference.borrow_mut().histories.entry(sid).or_default().may_be_lost = true;
    }
}

/// Whether an answer shows what an owner had let go when it was asked for.
fn follows_confirmed(before: &Before, list_id: Option<u32>, list: &[u16]) -> Result<(), String> {
    match before.confirmed {
        Some((known, count)) if Some(known) != list_id || list.len() < count => {
            let what = format!("{count} requests of another read had been confirmed before");
            Err(format!("it is older than that: {what}"))
        }
        _ => Ok(()),
    }
}

/// A list's own number and what is in it.
pub(crate) fn read_list(bytes: &[u8]) -> (Option<u32>, Vec<u16>) {
    let Some((id, rest)) = bytes.split_first_chunk::<4>() else { return (None, Vec::new()) };
    let list = rest.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
    (Some(u32::from_be_bytes(*id)), list)
}
