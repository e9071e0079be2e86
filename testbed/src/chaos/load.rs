//! The clients: each works on one session at a time and records all that it sees.
//!
//! They know only the contract. After a failed connection they go to another front door. They repeat a
//! request that is safe or has a key until it is answered, and do not repeat an unkeyed append whose
//! outcome is unknown.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use http::header::{COOKIE, HOST};
use http::{HeaderValue, Method};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::history::{Attempt, KeyOperation, Micros, Operation, Outcome, Thread};
use super::leases::{Hold, LetIn};
use super::{APPS, LedgerApp};
use crate::client::Client;

/// How long a client waits for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long it goes on repeating one operation.
const REPEATS_WITHIN: Duration = Duration::from_secs(60);
/// The answer to a repeat that settles its operation.
const KEY_UNKNOWN: &str = ":idempotency-key-outcome-unknown";
/// How many items a session gets before its client begins another.
const ITEMS_MAX: usize = 60;
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// The first number of the clients that begin a session and leave it alone.
pub const IDLE_FROM: u32 = 100_000;
/// How long the last read of a session that was left alone may be repeated.
const READ_WITHIN: Duration = Duration::from_secs(20);

/// What the clients of one run share.
#[derive(Debug)]
pub struct Load {
    /// The front doors, by the peer's position.
    pub doors: Vec<(String, SocketAddr)>,
    /// When the run began.
    pub began: Instant,
    /// Set when clients are to finish their operation and end.
    pub over: AtomicBool,
    /// What they saw.
    pub attempts: Mutex<Vec<Attempt>>,
    /// The Redis-speaking endpoints, by the peer's position.
    pub keys: Vec<(String, SocketAddr)>,
    /// What was seen of keys.
    pub operations: Mutex<Vec<KeyOperation>>,
    /// Locks that were held.
    pub holds: Mutex<Vec<Hold>>,
    /// Who was let in by a limiter.
    pub let_in: Mutex<Vec<LetIn>>,
    /// The session that each client works on, as far as it holds something: the last request of
    /// it that was answered, and the position of the door that knows of it.
    pub sessions: Mutex<BTreeMap<Thread, (usize, String)>>,
}

impl Load {
    /// Time since the run began.
    pub fn now(&self) -> Micros {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// The shared records, even if a thread that held them has panicked.
pub(super) fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// Appends, most of them with a key, and reads.
    Mixed,
    /// Appends without any key, and reads.
    Keyless,
    /// Reads, so that its session never holds anything.
    Reads,
    /// Begins a session and leaves it alone.
    Idles,
}

impl Habit {
    /// One client of six never uses keys, and one never appends.
    fn of(client: u32) -> Self {
        match client % 6 {
            4 => Self::Keyless,
            5 => Self::Reads,
            _ => Self::Mixed,
        }
    }
}

/// One client, from its first request to the end of the run.
pub async fn run(load: Arc<Load>, client: u32, seed: u64) {
    let mut walker = Walker::new(load, client, seed, Habit::of(client));
    while !walker.load.over.load(Ordering::Relaxed) {
        let pause = walker.rng.random_range(5..120);
        sleep(Duration::from_millis(pause)).await;
        walker.one_operation().await;
    }
}

/// One client and the session that it works on.
#[derive(Debug)]
pub struct Walker {
    habit: Habit,
    load: Arc<Load>,
    rng: SmallRng,
    thread: Thread,
    app: &'static LedgerApp,
    number: u32,
    cookies: Client,
    items: usize,
}

impl Walker {
    fn new(load: Arc<Load>, client: u32, seed: u64, habit: Habit) -> Self {
        Self {
            habit,
            rng: SmallRng::seed_from_u64(seed ^ (u64::from(client) << 32)),
            thread: Thread { client, session: 0 },
            // The half that is odd, whatever their habits are.
            app: &APPS[(client / 3) as usize % APPS.len()],
            number: 0,
            cookies: Client::new(),
            items: 0,
            load,
        }
    }

    /// One that leaves its session alone.
    #[must_use]
    pub fn idle(load: Arc<Load>, client: u32, seed: u64) -> Self {
        Self::new(load, client, seed, Habit::Idles)
    }

    /// Whose session it is.
    #[must_use]
    pub fn thread(&self) -> Thread {
        self.thread
    }

    /// Appends an item once, without a key, at the door at this position; the request's id, if it
    /// was answered.
    pub async fn append_at(&mut self, door: usize) -> Option<String> {
        let Thread { client, session } = self.thread;
        let item = format!("{client}.{session}.{}", self.number);
        let operation = Operation::Append { item, keyed: false, slow_ms: 0 };
        let seen = self.attempt_at(door, &operation, self.number, 0).await;
        self.number += 1;
        matches!(seen.outcome, Outcome::Answered { .. }).then_some(seen.request)?
    }

    /// Reads the list, again and again until it is answered or has to be given up.
    pub async fn read_until_answered(&mut self) {
        let number = self.number;
        self.number += 1;
        let since = Instant::now();
        for attempt in 0.. {
            let door = self.choose(None);
            let seen = self.attempt_at(door, &Operation::Read, number, attempt).await;
            let is_final = match seen.outcome {
                Outcome::Answered { .. } | Outcome::Refused { lost: true, .. } => true,
                Outcome::Refused { .. } | Outcome::NotSent { .. } | Outcome::Broken { .. } => false,
            };
            if is_final || since.elapsed() > READ_WITHIN {
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// One attempt, written down.
    async fn attempt_at(
        &mut self,
        door: usize,
        operation: &Operation,
        number: u32,
        attempt: u32,
    ) -> Seen {
        let (name, addr) = self.load.doors[door].clone();
        let began = self.load.now();
        let seen = self.attempt(operation, addr).await;
        let record = Attempt {
            thread: self.thread,
            app: self.app.name.to_owned(),
            number,
            attempt,
            operation: operation.clone(),
            entry: name,
            ran_at: seen.ran_at.clone(),
            request: seen.request.clone(),
            began,
            ended: self.load.now(),
            outcome: seen.outcome.clone(),
            forked: seen.forked,
        };
        locked(&self.load.attempts).push(record);
        seen
    }

    async fn one_operation(&mut self) {
        if self.items >= ITEMS_MAX {
            self.another_session();
        }
        let Thread { client, session } = self.thread;
        let number = self.number;
        self.number += 1;
        let operation = match self.rng.random_range(0..100) {
            _ if self.habit == Habit::Reads => Operation::Read,
            0..55 => Operation::Append {
                item: format!("{client}.{session}.{number}"),
                keyed: self.habit == Habit::Mixed && self.rng.random_range(0..10) < 7,
                // Most are quick; a few are long enough for any fault to meet them.
                slow_ms: match self.rng.random_range(0..100) {
                    0..4 => 400,
                    4 => 2_500,
                    _ => 0,
                },
            },
            55..95 => Operation::Read,
            _ => Operation::Echo,
        };
        let again = match &operation {
            Operation::Append { keyed, .. } => *keyed,
            Operation::Read => true,
            Operation::Echo => false,
        };
        let since = Instant::now();
        let mut avoid = None;
        for attempt in 0.. {
            let door = self.choose(avoid);
            let seen = self.attempt_at(door, &operation, number, attempt).await;
            let (request, forked) = (seen.request, seen.forked);
            match seen.outcome {
                Outcome::Answered { items } => {
                    if operation != Operation::Echo {
                        self.items = items.len();
                    }
                    if let Some(request) = request.filter(|_| self.items > 0) {
                        let mut sessions = locked(&self.load.sessions);
                        sessions.insert(self.thread, (door, request));
                    }
                    if forked {
                        self.another_session();
                    }
                    return;
                }
                Outcome::Refused { lost: true, .. } => {
                    self.another_session();
                    return;
                }
                // No byte of it left: the next door may try it, whatever it is.
                Outcome::NotSent { .. } => avoid = Some(door),
                Outcome::Broken { .. } if again => avoid = Some(door),
                // Of a run that broke off nobody will ever know more.
                Outcome::Refused { problem, .. } if problem.ends_with(KEY_UNKNOWN) => return,
                Outcome::Refused { status, .. } if again && (status >= 500 || status == 409) => {}
                Outcome::Broken { .. } | Outcome::Refused { .. } => return,
            }
            if since.elapsed() > REPEATS_WITHIN || self.load.over.load(Ordering::Relaxed) {
                return;
            }
            let pause = self.rng.random_range(50..300);
            sleep(Duration::from_millis(pause)).await;
        }
    }

    fn another_session(&mut self) {
        locked(&self.load.sessions).remove(&self.thread);
        self.thread.session += 1;
        self.number = 0;
        self.items = 0;
        self.cookies = Client::new();
    }

    /// The door that the cookie names, as a balancer would choose; now and then any other.
    fn choose(&mut self, avoid: Option<usize>) -> usize {
        let doors = self.load.doors.len();
        let named = self.cookies.route();
        let named = self.load.doors.iter().position(|(name, _)| Some(name.as_str()) == named);
        match named.filter(|door| Some(*door) != avoid) {
            Some(door) if self.rng.random_range(0..10) > 0 => door,
            _ => {
                let door = self.rng.random_range(0..doors);
                if Some(door) == avoid { (door + 1) % doors } else { door }
            }
        }
    }

    async fn attempt(&mut self, operation: &Operation, addr: SocketAddr) -> Seen {
        match timeout(CONNECT_WITHIN, TcpStream::connect(addr)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Outcome::NotSent { error: error.to_string() }.into(),
            Err(_) => return Outcome::NotSent { error: "no connection".to_owned() }.into(),
        }
        let call = match operation {
            Operation::Append { item, keyed, slow_ms } => {
                let path = format!("/append?ms={slow_ms}");
                let call = self.cookies.call(Method::POST, path).body(item.clone());
                if *keyed { call.header("idempotency-key", format!("\"{item}\"")) } else { call }
            }
            Operation::Read => self.cookies.call(Method::GET, "/list"),
            Operation::Echo => return self.echo(addr).await,
        };
        let call = call.header("host", self.app.host);
        let reply = match call.timeout(ANSWER_WITHIN).send(addr).await {
            Ok(reply) => reply,
            Err(error) => return Outcome::Broken { error: format!("{error:#}") }.into(),
        };
        let marked = |name: &str| reply.header(name) == Some("?1");
        let (lost, forked) = (marked("warmhop-session-lost"), marked("warmhop-session-forked"));
        let items = serde_json::from_slice(&reply.body).ok().filter(|_| reply.status.is_success());
        let outcome = match items {
            Some(items) if !lost => Outcome::Answered { items },
            _ => {
                let problem = reply.json().ok();
                let named = problem.as_ref().and_then(|it| it["type"].as_str());
                let problem = named.unwrap_or_default().to_owned();
                Outcome::Refused { status: reply.status.as_u16(), problem, lost, forked }
            }
        };
        Seen {
            ran_at: reply.peer().map(str::to_owned),
            request: reply.request_id().map(str::to_owned),
            forked,
            outcome,
        }
    }

    /// Opens a WebSocket, sends a line and waits for it to come back.
    async fn echo(&self, addr: SocketAddr) -> Seen {
        let exchange = async {
            let stream = TcpStream::connect(addr).await?;
            let mut request = format!("ws://{addr}/ws").into_client_request()?;
            request.headers_mut().insert(HOST, HeaderValue::from_static(self.app.host));
            if let Some(value) = self.cookies.cookie("warmhop") {
                request.headers_mut().insert(COOKIE, format!("warmhop={value}").parse()?);
            }
            let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await?;
            socket.send(Message::text("ping")).await?;
            let heard = socket.next().await.transpose()?;
            socket.close(None).await?;
            anyhow::ensure!(heard == Some(Message::text("ping")), "heard {heard:?}");
            anyhow::Ok(())
        };
        match timeout(ANSWER_WITHIN, exchange).await {
            Ok(Ok(())) => Outcome::Answered { items: Vec::new() }.into(),
            Ok(Err(error)) => Outcome::Broken { error: format!("{error:#}") }.into(),
            Err(_) => Outcome::Broken { error: "no echo in time".to_owned() }.into(),
        }
    }
}

struct Seen {
    outcome: Outcome,
    ran_at: Option<String>,
    request: Option<String>,
    forked: bool,
}

impl From<Outcome> for Seen {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, ran_at: None, request: None, forked: false }
    }
}
