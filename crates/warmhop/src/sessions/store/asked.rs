//! Which of a session's members is asked whether a read may be answered.
//!
//! Of three members, the owner and one other confirm a read: to ask both others costs both of them a
//! message and an answer that nobody needs. So the one that answered first when both were asked is asked
//! alone, for a moment; then both are asked again. The question to the other is held back, and sent if no
//! answer comes soon: if the one that is asked alone hangs, the reads of that moment wait for that long,
//! and those after it do not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use warmhop_core::ids::{Incarnation, Now, SessionId, SessionKey};
use warmhop_core::session::message::Message;

use super::Store;

/// How long the one that answered first is asked alone: less than the time after which an owner asks
/// again, and longer than a busy peer takes to answer.
const ASKED_ALONE_FOR: Duration = Duration::from_millis(50);
/// How long an answer to the question by which both are compared is waited for.
const COMPARED_WITHIN: Duration = Duration::from_millis(100);
/// How long a question is held back at least, and the most that is added to that.
const HELD_BACK_FOR: Duration = Duration::from_millis(15);
/// How many pairs of members are kept in mind: sessions of others ask both.
const PAIRS_MAX: usize = 64;
/// Of how many sessions questions are held back: others ask both.
const HELD_BACK_MAX: usize = 4096;

/// For each pair of members, which of them is asked.
#[derive(Debug, Default)]
pub(super) struct FirstAsked {
    known: Mutex<Known>,
    /// A question is held back, and was none before.
    holds_back: Notify,
}

#[derive(Debug, Default)]
struct Known {
    pairs: Vec<Pair>,
    held_back: HashMap<SessionId, HeldBack>,
}

/// The last question about a session that was not sent to a member.
#[derive(Debug)]
struct HeldBack {
    key: SessionKey,
    to: Incarnation,
    question: Message,
    nonce: u64,
    /// Since the first of those that it asks all of, or the last answer.
    since: Now,
}

#[derive(Debug)]
struct Pair {
    of: [Incarnation; 2],
    asked: Asked,
    until: Now,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Both: the first that answers this question, or a later one about the same session, is faster.
    Both(SessionId, u64),
    One(Incarnation),
}

impl FirstAsked {
    /// Takes out of the messages about a session the question that need not be sent now.
    pub(super) fn spare(
        &self,
        me: Incarnation,
        key: &SessionKey,
        outgoing: &mut Vec<(Incarnation, Message)>,
        now: Now,
    ) {
        let [(one, question), (other, same)] = &outgoing[..] else { return };
        let Some(nonce) = confirmed_by_one(question, me) else { return };
        if !same.asks_all_of(question) {
            return;
        }
        let mut of = [*one, *other];
        of.sort_unstable();
        let mut known = self.known();
        let Some(alone) = known.asked_alone(of, key.sid, nonce, now) else { return };
        let held = known.held_back.get(&key.sid).map(|held| held.since);
        if held.is_none() && known.held_back.len() >= HELD_BACK_MAX {
            return;
        }
        let Some(at) = outgoing.iter().position(|(to, _)| *to != alone) else { return };
        let (to, question) = outgoing.remove(at);
        let (key, since) = (key.clone(), held.unwrap_or(now));
        let was_empty = known.held_back.is_empty();
        known.held_back.insert(key.sid, HeldBack { key, to, question, nonce, since });
        drop(known);
        if was_empty {
            self.holds_back.notify_one();
        }
    }

    /// A member has answered a question about a session.
    pub(super) fn answered(&self, from: Incarnation, sid: SessionId, message: &Message, now: Now) {
        let Message::Promise { nonce: answered, .. } = message else { return };
        let mut known = self.known();
        match known.held_back.get_mut(&sid) {
            Some(held) if held.nonce <= *answered => {
                known.held_back.remove(&sid);
            }
            // It answers: later questions have only just been asked.
            Some(held) => held.since = now,
            None => {}
        }
        for pair in known.pairs.iter_mut().filter(|pair| pair.of.contains(&from)) {
            if matches!(pair.asked, Asked::Both(of, nonce) if of == sid && nonce <= *answered) {
                (pair.asked, pair.until) = (Asked::One(from), now.after(ASKED_ALONE_FOR));
            }
        }
    }

    /// Takes out the questions that have been held back for long enough; from now on both members of
    /// their pairs are asked.
    fn overdue(&self, now: Now) -> Vec<(SessionKey, (Incarnation, Message))> {
        let mut known = self.known();
        let Known { pairs, held_back } = &mut *known;
        let is_due = |_: &SessionId, held: &mut HeldBack| held.since.after(HELD_BACK_FOR) <= now;
        let due: Vec<HeldBack> = held_back.extract_if(is_due).map(|(_, held)| held).collect();
        for pair in pairs {
            let is_slow = |held: &HeldBack| {
                matches!(pair.asked, Asked::One(alone) if alone != held.to)
                    && pair.of.contains(&held.to)
            };
            if due.iter().any(is_slow) {
                pair.until = now;
            }
        }
        due.into_iter().map(|held| (held.key, (held.to, held.question))).collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Sends the questions that were held back and are not answered, for as long as the peer runs.
    pub(crate) async fn ask_others(self: Arc<Self>) {
        loop {
            self.first_asked.holds_back.notified().await;
            while !self.first_asked.known().held_back.is_empty() {
                tokio::time::sleep(HELD_BACK_FOR).await;
                for (key, question) in self.first_asked.overdue(self.clock.now()) {
                    self.deliver(&key, vec![question]);
                }
            }
        }
    }
}

impl Known {
    /// The one of two members that is asked alone; `None` if both are to be asked.
    fn asked_alone(
        &mut self,
        of: [Incarnation; 2],
        sid: SessionId,
        nonce: u64,
        now: Now,
    ) -> Option<Incarnation> {
        let pairs = &mut self.pairs;
        let both = Pair { of, asked: Asked::Both(sid, nonce), until: now.after(COMPARED_WITHIN) };
        if let Some(pair) = pairs.iter_mut().find(|pair| pair.of == of) {
            match pair.asked {
                Asked::One(alone) if now < pair.until => return Some(alone),
                Asked::Both(..) if now < pair.until => {}
                _ => *pair = both,
            }
        } else if pairs.len() < PAIRS_MAX {
            pairs.push(both);
        } else if let Some(oldest) = pairs.iter_mut().min_by_key(|pair| pair.until) {
            *oldest = both;
        }
        None
    }
}

/// The number of a question that one answer beside that of `me`, its owner, confirms.
fn confirmed_by_one(question: &Message, me: Incarnation) -> Option<u64> {
    match question {
        Message::Prepare { b, cfg, want_body: false, polite: false, nonce, into: None, .. } => {
            let is_enough =
                cfg.is_open() && cfg.now.who.len() == 3 && cfg.now.contains(me) && b.proposer == me;
            is_enough.then_some(*nonce)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use warmhop_core::ids::{AppName, Ballot, WallTime};
    use warmhop_core::session::message::{Config, Members};

    use super::*;

    const ME: u8 = 1;
    const SID: SessionId = SessionId([7; 16]);

    fn key() -> SessionKey {
        SessionKey { app: AppName::new("shop").unwrap(), sid: SID }
    }

    fn peer(n: u8) -> Incarnation {
        Incarnation([n; 16])
    }

    fn question(who: &[u8], nonce: u64) -> Message {
        let who = who.iter().map(|n| peer(*n)).collect();
        Message::Prepare {
            b: Ballot { round: 1, proposer: peer(ME) },
            cfg: Arc::new(Config { now: Members { c: 1, stamp: 1, who }, prev: None }),
            want_body: false,
            polite: false,
            nonce,
            expiry: WallTime(1),
            into: None,
        }
    }

    fn answer(nonce: u64) -> Message {
        let Message::Prepare { b, cfg, .. } = question(&[1, 2, 3], nonce) else { unreachable!() };
        Message::Promise { b, cfg, nonce, accepted: None, births: Vec::new() }
    }

    /// Who is asked.
    fn asked(it: &FirstAsked, question: &Message, at: u64) -> Vec<u8> {
        let mut outgoing: Vec<(Incarnation, Message)> =
            [2, 3].map(|to| (peer(to), question.clone())).into();
        it.spare(peer(ME), &key(), &mut outgoing, Now(at));
        outgoing.iter().map(|(to, _)| to.0[0]).collect()
    }

    #[test]
    fn the_member_that_answered_first_is_asked_alone_for_a_moment() {
        let it = FirstAsked::default();
        let ask = |nonce, at| asked(&it, &question(&[1, 2, 3], nonce), at);
        assert_eq!(ask(5, 100), [2, 3]);
        // What answers an earlier question, or one about another session, shows nothing.
        it.answered(peer(2), SID, &answer(4), Now(101));
        it.answered(peer(2), SessionId([8; 16]), &answer(5), Now(101));
        it.answered(peer(4), SID, &answer(5), Now(101));
        it.answered(peer(2), SID, &Message::DEAD_LETTER, Now(101));
        assert_eq!(ask(6, 101), [2, 3]);
        it.answered(peer(3), SID, &answer(6), Now(102));
        it.answered(peer(2), SID, &answer(6), Now(103));
        assert_eq!([ask(7, 103), ask(8, 151)], [[3], [3]]);
        // Then both are, and the other may be faster now.
        assert_eq!(ask(9, 152), [2, 3]);
        it.answered(peer(3), SID, &answer(8), Now(153));
        it.answered(peer(2), SID, &answer(9), Now(154));
        assert_eq!(ask(10, 155), [2]);
    }

    #[test]
    fn both_are_asked_as_long_as_none_answers() {
        let it = FirstAsked::default();
        let ask = |nonce, at| asked(&it, &question(&[1, 2, 3], nonce), at);
        for (nonce, at) in [(1, 0), (2, 99), (3, 100), (4, 199)] {
            assert_eq!(ask(nonce, at), [2, 3]);
        }
        // The answer to the first question was lost.
        it.answered(peer(3), SID, &answer(2), Now(199));
        assert_eq!(ask(5, 199), [2, 3]);
        it.answered(peer(2), SID, &answer(3), Now(199));
        assert_eq!(ask(6, 199), [2]);
    }

    #[test]
    fn both_are_asked_where_one_answer_is_not_enough_or_more_is_asked() {
        let it = FirstAsked::default();
        let enough = question(&[1, 2, 3], 1);
        asked(&it, &enough, 0);
        it.answered(peer(2), SID, &answer(1), Now(0));
        assert_eq!(asked(&it, &enough, 1), [2]);
        let differs = |change: fn(&mut Message)| {
            let mut question = enough.clone();
            change(&mut question);
            assert_eq!(asked(&it, &question, 1), [2, 3], "{question:?}");
        };
        differs(|it| *it = question(&[2, 3, 4], 1));
        differs(|it| *it = question(&[2, 3], 1));
        differs(|it| *it = Message::Lease);
        differs(|it| {
            let Message::Prepare { want_body, .. } = it else { return };
            *want_body = true;
        });
        differs(|it| {
            let Message::Prepare { b, .. } = it else { return };
            b.proposer = peer(2);
        });
        differs(|it| {
            let Message::Prepare { cfg, .. } = it else { return };
            let now = cfg.now.clone();
            Arc::make_mut(cfg).prev = Some(Box::new(now));
        });
    }

    #[test]
    fn no_more_pairs_are_kept_in_mind_than_there_may_be() {
        let it = FirstAsked::default();
        for n in 0..=2 * PAIRS_MAX {
            let of = [peer(2), Incarnation([n as u8; 16])];
            assert_eq!(it.known().asked_alone(of, SID, 1, Now(n as u64)), None);
            assert!(it.known().pairs.len() <= PAIRS_MAX);
        }
    }

    #[test]
    fn what_is_not_answered_soon_is_asked_of_the_other_as_well() {
        let it = FirstAsked::default();
        let ask = |nonce, at| asked(&it, &question(&[1, 2, 3], nonce), at);
        let overdue = |at| -> Vec<(u8, u64)> {
            let due = it.overdue(Now(at)).into_iter();
            let asked_of = |(_, (to, question)): (SessionKey, (Incarnation, Message))| {
                (to.0[0], confirmed_by_one(&question, peer(ME)).unwrap())
            };
            due.map(asked_of).collect()
        };
        ask(1, 0);
        it.answered(peer(2), SID, &answer(1), Now(1));
        assert_eq!([ask(2, 1), ask(3, 10)], [[2], [2]]);
        assert_eq!(overdue(15), []);
        // An answer to the first of them leaves the second open.
        it.answered(peer(2), SID, &answer(2), Now(15));
        assert_eq!(overdue(29), []);
        assert_eq!(overdue(30), [(3, 3)]);
        assert_eq!(overdue(45), []);
        // The one that was asked alone is slow: both are compared again.
        assert_eq!(ask(4, 31), [2, 3]);
        it.answered(peer(3), SID, &answer(4), Now(32));
        assert_eq!(ask(5, 32), [3]);
        it.answered(peer(3), SID, &answer(5), Now(33));
        assert_eq!(overdue(99), []);
        assert!(it.known().held_back.is_empty());
    }
}
