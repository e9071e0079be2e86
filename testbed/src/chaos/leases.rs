//! Clients of locks with a lease and of limiters, as libraries have them: `SET NX PX` given back by a
//! script that compares and deletes, fenced by a counter; and a script that lets so many in within a
//! moving window. Their records alone show whether two clients held one lock, or
//! too many were let in.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::history::{Fault, Micros};
use super::load::{Load, locked};
use crate::resp::{Answer, Connection};

/// How long one command may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How many clients share a lock and a limiter.
pub const AT_ONCE: u32 = 3;
/// The lease of a lock: short enough to end while something is broken.
const LEASE_MS: u64 = 1_500;
/// How many are let in within a window.
pub const LIMIT: usize = 5;
const WINDOW_MS: u64 = 1_000;
/// How far the peers' clocks may differ, since all of them run on one machine.
const CLOCKS_MS: u64 = 20;

const GIVE_BACK: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then \
                         return redis.call('DEL', KEYS[1]) end return 0";
const LET_IN: &str = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000) \
                      redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, now - ARGV[1]) \
                      if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end \
                      redis.call('ZADD', KEYS[1], now, ARGV[3]) \
                      redis.call('PEXPIRE', KEYS[1], ARGV[1]) return 1";

/// A lock that a client held.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hold {
    /// Which lock.
    pub lock: String,
    /// Which client.
    pub client: u32,
    /// Since when it knew that it held it.
    pub from: Micros,
    /// Until when: it gave it back then, or its lease may have ended.
    pub until: Micros,
    /// The number that it drew while it held it, if it got one.
    pub fence: Option<i64>,
}

/// A client was let in by a limiter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LetIn {
    /// Which limiter.
    pub limiter: String,
    /// When it asked.
    pub began: Micros,
    /// When it got the answer.
    pub ended: Micros,
}

/// A client that goes on until the run is over; the clients of a group share a lock and a limiter.
pub async fn run(load: Arc<Load>, group: u32, client: u32, seed: u64) {
    let mut user = User {
        rng: SmallRng::seed_from_u64(seed ^ (u64::from(group * AT_ONCE + client) << 32) ^ 0x6C65),
        load,
        group,
        client: group * AT_ONCE + client,
        uses: 0,
        connection: None,
    };
    while !user.load.over.load(Ordering::Relaxed) {
        let pause = user.rng.random_range(10..150);
        sleep(Duration::from_millis(pause)).await;
        if user.rng.random() {
            user.locks().await;
        } else {
            user.is_let_in().await;
        }
    }
}

struct User {
    rng: SmallRng,
    load: Arc<Load>,
    group: u32,
    client: u32,
    uses: u32,
    connection: Option<Connection>,
}

impl User {
    fn fresh(&mut self) -> String {
        self.uses += 1;
        format!("{}.{}", self.client, self.uses)
    }

    /// `None`: it was refused, or nobody knows.
    async fn command(&mut self, words: &[&str]) -> Option<Answer> {
        if self.connection.is_none() {
            let (_, addr) = self.load.keys[self.rng.random_range(0..self.load.keys.len())].clone();
            let connected = timeout(CONNECT_WITHIN, Connection::open(addr)).await;
            self.connection = connected.ok().and_then(Result::ok);
        }
        let asked = timeout(ANSWER_WITHIN, self.connection.as_mut()?.ask(words)).await;
        match asked {
            Ok(Ok(Answer::Error(_))) => None,
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(_)) | Err(_) => {
                self.connection = None;
                None
            }
        }
    }

    async fn locks(&mut self) {
        let (lock, fence) = (format!("lease:{}", self.group), format!("fence:{}", self.group));
        let value = self.fresh();
        let asked_at = self.load.now();
        let lease = LEASE_MS.to_string();
        let taken = self.command(&["SET", &lock, &value, "NX", "PX", &lease]).await;
        let from = self.load.now();
        // The lease began when the command was done: not before it was sent.
        let until = asked_at + LEASE_MS * 1_000;
        if taken != Some(Answer::Text("OK".into())) {
            return;
        }
        let drawn = self.command(&["INCR", &fence]).await;
        let fence = match drawn {
            Some(Answer::Number(number)) if self.load.now() < until => Some(number),
            _ => None,
        };
        // Some take longer than they should, and some never give it back.
        let work = self.rng.random_range(0..40);
        sleep(Duration::from_millis(work)).await;
        let until = until.min(self.load.now());
        if self.rng.random_range(0..5) > 0 {
            self.command(&["EVAL", GIVE_BACK, "1", &lock, &value]).await;
        }
        if from < until {
            let hold = Hold { lock, client: self.client, from, until, fence };
            locked(&self.load.holds).push(hold);
        }
    }

    async fn is_let_in(&mut self) {
        let limiter = format!("limit:{}", self.group);
        let (id, began) = (self.fresh(), self.load.now());
        let (window, limit) = (WINDOW_MS.to_string(), LIMIT.to_string());
        let reply = self.command(&["EVAL", LET_IN, "1", &limiter, &window, &limit, &id]).await;
        if reply == Some(Answer::Number(1)) {
            let let_in = LetIn { limiter, began, ended: self.load.now() };
            locked(&self.load.let_in).push(let_in);
        }
    }
}

/// What the records of locks and limiters prove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finding {
    /// Pairs of holds of one lock at one time.
    pub shared: Vec<(Hold, Hold)>,
    /// Pairs of which the later drew the lower number, or the same.
    pub unfenced: Vec<(Hold, Hold)>,
    /// Those that were let in as one too many.
    pub too_many: Vec<LetIn>,
}

/// Judges a run. What a fault among `faults` may lose may be taken again while it lasts.
#[must_use]
pub fn judge(holds: &[Hold], let_in: &[LetIn], faults: &[Fault]) -> Finding {
    let excused = |from: Micros, until: Micros| {
        faults.iter().any(|it| it.may_lose && it.began <= until && from <= it.whole)
    };
    let mut found = Finding::default();
    let mut holds: Vec<&Hold> = holds.iter().collect();
    holds.sort_by_key(|hold| (&hold.lock, hold.from));
    for pair in holds.windows(2).filter(|pair| pair[0].lock == pair[1].lock) {
        let (one, next) = (pair[0], pair[1]);
        if excused(one.from, next.until) {
            continue;
        }
        if next.from < one.until {
            found.shared.push((one.clone(), next.clone()));
        }
        if let (Some(first), Some(second)) = (one.fence, next.fence)
            && second <= first
        {
            found.unfenced.push((one.clone(), next.clone()));
        }
    }
    let mut let_in: Vec<&LetIn> = let_in.iter().collect();
    let_in.sort_by_key(|it| (&it.limiter, it.ended));
    for (at, last) in let_in.iter().enumerate() {
        // All of these were let in between the earliest beginning and the last end.
        let earlier = let_in[..at].iter().rev().take_while(|it| it.limiter == last.limiter);
        let span = (WINDOW_MS - CLOCKS_MS) * 1_000;
        let is_near = |it: &LetIn| last.ended.saturating_sub(it.began) < span;
        let near = earlier.take(AT_MOST_LATE).filter(|it| is_near(it)).count();
        let is_within = is_near(last) && near >= LIMIT;
        let since = last.ended.saturating_sub(span);
        if is_within && !excused(since, last.ended) {
            found.too_many.push((*last).clone());
        }
    }
    found
}

/// How many before one are looked at that was let in: more cannot have ended in one window.
const AT_MOST_LATE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(client: u32, from: Micros, until: Micros, fence: i64) -> Hold {
        Hold { lock: "a".into(), client, from, until, fence: Some(fence) }
    }

    #[test]
    fn two_that_hold_one_lock_at_once_are_found_and_those_after_each_other_are_not() {
        let (one, next) = (hold(1, 10, 20, 1), hold(2, 20, 30, 2));
        let fine = judge(&[next.clone(), one.clone()], &[], &[]);
        assert_eq!(fine, Finding::default());
        let early = hold(2, 19, 30, 2);
        let found = judge(&[early.clone(), one.clone()], &[], &[]);
        assert_eq!(found.shared, [(one.clone(), early)]);
        let elsewhere = Hold { lock: "b".into(), ..hold(2, 19, 30, 1) };
        assert_eq!(judge(&[one.clone(), elsewhere], &[], &[]), Finding::default());
        let unfenced = hold(2, 20, 30, 1);
        assert_eq!(judge(&[one.clone(), unfenced], &[], &[]).unfenced.len(), 1);
        let fault = Fault {
            kind: "two".into(),
            peers: vec![],
            what: String::new(),
            began: 5,
            ended: 6,
            whole: 11,
            may_lose: true,
            armed: None,
        };
        assert_eq!(judge(&[one, hold(2, 15, 30, 1)], &[], &[fault]), Finding::default());
    }

    #[test]
    fn one_more_than_the_limit_within_a_window_is_found() {
        let let_in = |began, ended| LetIn { limiter: "a".into(), began, ended };
        let ms = 1_000;
        let mut all: Vec<LetIn> = (0..5).map(|at| let_in(at * ms, (at + 1) * ms)).collect();
        assert_eq!(judge(&[], &all, &[]), Finding::default());
        all.push(let_in(500 * ms, 600 * ms));
        assert_eq!(judge(&[], &all, &[]).too_many.len(), 1);
        all[5] = let_in(1_100 * ms, 1_200 * ms);
        assert_eq!(judge(&[], &all, &[]), Finding::default());
        all[5] = let_in(500 * ms, 1_200 * ms);
        assert_eq!(judge(&[], &all, &[]), Finding::default(), "it may have been late");
    }
}
