//! Clients of the Redis-speaking endpoint: a few at a time meet on a key that nobody used before,
//! each at a door of its own, and use it as applications do: for a lock, a counter, a value, and in
//! transactions. Each records what it asked and got; `linear` judges that.
//!
//! Keys are many and short-lived: so many of them are created during a fault, and the history of each is
//! short enough to search for an order that explains it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{sleep, timeout};

use super::history::{Asked, Came, KeyOperation, Micros};
use super::load::{Load, locked};
use crate::resp::{Answer, Connection};

/// How long one command may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How many clients meet on one key.
const AT_ONCE: usize = 4;
/// How often each of them uses it.
const USES: usize = 5;
/// A lock that its holder does not give back ends by itself, long after the run.
const LOCK_MS: &str = "3600000";

/// What the clients that meet use their key for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Lock,
    Counter,
    Value,
    Transactions,
}

/// A group of clients that goes from key to key until the run is over.
pub async fn run(load: Arc<Load>, group: u32, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed ^ (u64::from(group) << 40) ^ 0x6B65_7973);
    for round in 0_u32.. {
        if load.over.load(Ordering::Relaxed) {
            return;
        }
        let pause = rng.random_range(20..200);
        sleep(Duration::from_millis(pause)).await;
        let uses = [Use::Lock, Use::Lock, Use::Counter, Use::Value, Use::Transactions];
        let uses = uses[rng.random_range(0..uses.len())];
        let key = format!("{uses:?}:{group}:{round}").to_lowercase();
        let first = rng.random_range(0..load.keys.len());
        let clients = (0..AT_ONCE.min(load.keys.len())).map(|at| {
            let (name, addr) = load.keys[(first + at) % load.keys.len()].clone();
            let client = KeyClient {
                load: Arc::clone(&load),
                rng: SmallRng::seed_from_u64(rng.random()),
                client: group * 100 + u32::try_from(at).unwrap_or_default(),
                key: key.clone(),
                door: name,
                addr,
                uses: 0,
                connection: None,
            };
            client.use_for(uses)
        });
        join_all(clients.collect::<Vec<_>>()).await;
    }
}

/// Reads the keys once more, each at any door, when nothing is broken any more.
pub async fn read_again(load: &Arc<Load>, keys: &[String], seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    for key in keys {
        let (door, addr) = load.keys[rng.random_range(0..load.keys.len())].clone();
        let mut client = KeyClient {
            load: Arc::clone(load),
            rng: SmallRng::seed_from_u64(0),
            client: u32::MAX,
            key: key.clone(),
            door,
            addr,
            uses: 0,
            connection: None,
        };
        client.does(Asked::Get).await;
    }
}

struct KeyClient {
    load: Arc<Load>,
    rng: SmallRng,
    client: u32,
    key: String,
    door: String,
    addr: SocketAddr,
    uses: u32,
    connection: Option<Connection>,
}

impl KeyClient {
    async fn use_for(mut self, uses: Use) {
        for _ in 0..USES {
            let pause = self.rng.random_range(0..30);
            sleep(Duration::from_millis(pause)).await;
            let reads = self.rng.random_range(0..3) == 0;
            match uses {
                _ if reads && self.uses > 0 => drop(self.does(Asked::Get).await),
                Use::Lock => self.lock().await,
                Use::Counter => drop(self.does(Asked::Increment).await),
                Use::Value => {
                    let value = self.fresh();
                    self.does(Asked::Set { value }).await;
                }
                Use::Transactions => self.replaces().await,
            }
        }
    }

    /// A value that nobody else sets.
    fn fresh(&mut self) -> String {
        self.uses += 1;
        format!("{}.{}", self.client, self.uses)
    }

    /// Takes the lock and gives it back, where it is still its own; now and then it forgets to.
    async fn lock(&mut self) {
        let value = self.fresh();
        let taken = self.does(Asked::SetIfAbsent { value: value.clone() }).await;
        if taken == (Came::Done { done: true }) && self.rng.random_range(0..4) > 0 {
            self.replace(Some(value), None).await;
        }
    }

    async fn replaces(&mut self) {
        let to = self.fresh();
        self.replace(None, Some(to)).await;
    }

    /// Asks for something, and records the outcome.
    async fn does(&mut self, asked: Asked) -> Came {
        self.uses += 1;
        let began = self.load.now();
        let words: Vec<&str> = match &asked {
            Asked::Get => vec!["GET", &self.key],
            Asked::Set { value } => vec!["SET", &self.key, value],
            Asked::SetIfAbsent { value } => vec!["SET", &self.key, value, "NX", "PX", LOCK_MS],
            Asked::Increment => vec!["INCR", &self.key],
            Asked::Delete | Asked::Replace { .. } => vec!["DEL", &self.key],
        };
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        let answer = self.command(&words).await;
        let came = match (answer, &asked) {
            (Err(came), _) => came,
            (Ok(Answer::Error(error)), _) => outcome_of(error),
            (Ok(Answer::Text(value)), Asked::Get) => Came::Value { value: Some(value) },
            (Ok(Answer::Nothing), Asked::Get) => Came::Value { value: None },
            (Ok(Answer::Number(number)), Asked::Increment) => Came::Number { number },
            (Ok(Answer::Number(number)), _) => Came::Done { done: number > 0 },
            (Ok(Answer::Nothing), _) => Came::Done { done: false },
            (Ok(_), _) => Came::Done { done: true },
        };
        self.wrote(began, asked, came.clone());
        came
    }

    /// Replaces in a transaction what it reads, or what it set itself.
    async fn replace(&mut self, only: Option<String>, to: Option<String>) {
        let key = self.key.clone();
        let words = |words: &[&str]| words.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let began = self.load.now();
        match self.command(&words(&["WATCH", &key])).await {
            Ok(Answer::Text(_)) => {}
            // Nothing is known, and nothing was asked that could change anything.
            _ => return self.connection = None,
        }
        let asked_at = self.load.now();
        let held = match self.command(&words(&["GET", &key])).await {
            Ok(Answer::Text(value)) => Some(value),
            Ok(Answer::Nothing) => None,
            _ => return self.connection = None,
        };
        self.wrote(asked_at, Asked::Get, Came::Value { value: held.clone() });
        let is_own = only.is_none() || held == only;
        let Some(from) = held.filter(|_| is_own) else {
            self.connection = None;
            if let (None, Some(value)) = (only, to) {
                self.does(Asked::SetIfAbsent { value }).await;
            }
            return;
        };
        let change = match &to {
            Some(value) => words(&["SET", &key, value]),
            None => words(&["DEL", &key]),
        };
        for part in [&words(&["MULTI"]), &change] {
            match self.command(part).await {
                Ok(Answer::Text(_)) => {}
                _ => return self.connection = None,
            }
        }
        let came = match self.command(&words(&["EXEC"])).await {
            Err(came) => came,
            Ok(Answer::Nothing) => Came::Done { done: false },
            Ok(Answer::Error(error)) => outcome_of(error),
            Ok(Answer::Several(answers)) => match answers.into_iter().next() {
                Some(Answer::Error(error)) => outcome_of(error),
                Some(Answer::Number(0)) | None => Came::Done { done: false },
                Some(_) => Came::Done { done: true },
            },
            Ok(other) => Came::Unknown { error: format!("{other:?}") },
        };
        self.wrote(began, Asked::Replace { from, to }, came);
    }

    fn wrote(&self, began: Micros, asked: Asked, came: Came) {
        let (key, door) = (self.key.clone(), self.door.clone());
        let ended = self.load.now();
        let operation = KeyOperation { client: self.client, key, door, began, ended, asked, came };
        locked(&self.load.operations).push(operation);
    }

    /// Sends a command and waits for its answer.
    async fn command(&mut self, words: &[String]) -> Result<Answer, Came> {
        if self.connection.is_none() {
            match timeout(CONNECT_WITHIN, Connection::open(self.addr)).await {
                Ok(Ok(connection)) => self.connection = Some(connection),
                Ok(Err(error)) => return Err(Came::Refused { error: format!("CONNECT {error}") }),
                Err(_) => return Err(Came::Refused { error: "CONNECT in vain".to_owned() }),
            }
        }
        let Some(connection) = &mut self.connection else {
            return Err(Came::Refused { error: "CONNECT in vain".to_owned() });
        };
        let answer = match timeout(ANSWER_WITHIN, connection.ask(words)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => format!("BROKEN {error:#}"),
            Err(_) => format!("BROKEN no answer in {ANSWER_WITHIN:?}"),
        };
        self.connection = None;
        Err(Came::Unknown { error: answer })
    }
}

/// Whether anything was done, according to an error.
fn outcome_of(error: String) -> Came {
    match error.split(' ').next() {
        Some("UNKNOWN") => Came::Unknown { error },
        _ => Came::Refused { error },
    }
}
