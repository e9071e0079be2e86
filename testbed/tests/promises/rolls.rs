//! A restart of every peer in good order, one after the other, while clients of every kind go on.
//! Where a peer takes no connection, or closes one before it has answered anything, its client asks
//! the next one, as a balancer or a pool does; what comes of that shows whether anything was done twice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::sleep;
use warmhop_testbed::client::{Client, Reply};
use warmhop_testbed::resp::{Answer, Connection};

use crate::support::{QUICK, Shopper, World, shop, until};

/// How much one client puts into a cart before it begins another: carts travel with requests.
const CART_MAX: u64 = 50;
/// How long clients rest between requests: it is the roll that the machine is to be busy with.
const REST: Duration = Duration::from_millis(5);
/// How often a client goes around all peers before it gives up.
const ROUNDS: usize = 20;

/// What all clients share.
struct Run {
    doors: Vec<SocketAddr>,
    redis: Vec<SocketAddr>,
    ended: AtomicBool,
    asked: [AtomicUsize; KINDS],
    /// Somebody holds the lock.
    locked: AtomicBool,
    /// How many transactions were done.
    exchanged: AtomicU64,
}

/// How many kinds of clients there are.
const KINDS: usize = 6;

impl Run {
    fn new(world: &World) -> Self {
        Self {
            doors: (0..world.mesh.peers().len()).map(|index| world.http(index)).collect(),
            redis: world.mesh.peers().iter().map(|peer| peer.ports.redis).collect(),
            ended: AtomicBool::new(false),
            asked: Default::default(),
            locked: AtomicBool::new(false),
            exchanged: AtomicU64::new(0),
        }
    }

    /// Whether a client goes on; it has just been answered.
    async fn goes_on(&self, kind: usize) -> bool {
        self.asked[kind].fetch_add(1, Ordering::Relaxed);
        sleep(REST).await;
        !self.ended.load(Ordering::Relaxed)
    }
}

/// Asks the next peer in turn, or whichever after it answers.
async fn ask(
    client: &mut Client,
    doors: &[SocketAddr],
    turn: usize,
    (method, path): (&Method, &str),
    key: Option<&str>,
) -> Reply {
    for door in doors.iter().cycle().skip(turn % doors.len()).take(ROUNDS * doors.len()) {
        let mut call = client.call(method.clone(), path);
        if let Some(key) = key {
            call = call.header("idempotency-key", format!("\"{key}\""));
        }
        match call.send(*door).await {
            Ok(reply) => return reply,
            Err(error) => {
                let message = format!("{error:#}");
                let begun =
                    ["broke off", "no response within"].iter().any(|it| message.contains(it));
                assert!(!begun, "{method} {path}: {message}");
            }
        }
        sleep(REST).await;
    }
    panic!("no peer takes connections");
}

/// What a client of an app does, and goes on to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// It looks at a cart that nothing was ever put into.
    Looks,
    Adds,
    AddsWithKeys,
}

async fn shops(run: Arc<Run>, habit: Habit) {
    let (mut client, mut added) = (Client::new(), 0);
    for turn in 0.. {
        let what = match habit {
            Habit::Looks => (&Method::GET, "/cart"),
            Habit::Adds | Habit::AddsWithKeys => (&Method::POST, "/cart/add?item=book"),
        };
        let key = (habit == Habit::AddsWithKeys).then(|| turn.to_string());
        let reply = ask(&mut client, &run.doors, turn, what, key.as_deref()).await;
        assert_eq!(reply.status, StatusCode::OK, "{habit:?}: {}", reply.text());
        assert_eq!(reply.header("warmhop-session-lost"), None, "{habit:?}: {reply:?}");
        added += u64::from(habit != Habit::Looks);
        assert_eq!(reply.json().unwrap()["count"], added, "{habit:?}: {reply:?}");
        if !run.goes_on(habit as usize).await {
            return;
        }
        if added == CART_MAX {
            (client, added) = (Client::new(), 0);
        }
    }
}

/// A client of the Redis endpoints that connects to the next peer where its connection ends.
struct Redis {
    run: Arc<Run>,
    at: usize,
    connection: Option<Connection>,
}

impl Redis {
    fn new(run: &Arc<Run>, at: usize) -> Self {
        Self { run: Arc::clone(run), at, connection: None }
    }

    /// Asks once; `None` where the connection ended unanswered.
    async fn once(&mut self, words: &[&str]) -> Option<Answer> {
        if self.connection.is_none() {
            self.at += 1;
            let addr = self.run.redis[self.at % self.run.redis.len()];
            self.connection = Connection::open(addr).await.ok();
        }
        let answer = match &mut self.connection {
            Some(connection) => connection.ask(words).await.ok(),
            None => None,
        };
        match &answer {
            None => self.connection = None,
            Some(Answer::Error(error)) => panic!("{words:?}: {error}"),
            Some(_) => {}
        }
        answer
    }

    async fn ask(&mut self, words: &[&str]) -> Answer {
        for _ in 0..ROUNDS * self.run.redis.len() {
            if let Some(answer) = self.once(words).await {
                return answer;
            }
            sleep(REST).await;
        }
        panic!("no peer answers {words:?}");
    }

    /// Changes what `key` holds in a transaction, if it holds what `to` makes something of; whether it
    /// did. `None` where the connection ended.
    async fn replace(
        &mut self,
        key: &str,
        to: impl Fn(Option<String>) -> Option<Vec<String>>,
    ) -> Option<bool> {
        self.once(&["WATCH", key]).await?;
        let held = match self.once(&["GET", key]).await? {
            Answer::Text(held) => Some(held),
            _ => None,
        };
        let Some(change) = to(held) else {
            self.once(&["UNWATCH"]).await?;
            return Some(false);
        };
        self.once(&["MULTI"]).await?;
        self.once(&change.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        Some(matches!(self.once(&["EXEC"]).await?, Answer::Several(_)))
    }

    async fn replaces(
        &mut self,
        key: &str,
        to: impl Fn(Option<String>) -> Option<Vec<String>>,
    ) -> bool {
        for _ in 0..ROUNDS * self.run.redis.len() {
            if let Some(done) = self.replace(key, &to).await {
                return done;
            }
            sleep(REST).await;
        }
        panic!("no peer does a transaction on {key}");
    }
}

async fn counts(run: Arc<Run>) {
    let mut redis = Redis::new(&run, 0);
    for count in 1.. {
        assert_eq!(redis.ask(&["INCR", "count"]).await, Answer::Number(count));
        if !run.goes_on(3).await {
            return;
        }
    }
}

async fn locks(run: Arc<Run>, own: usize) {
    let mut redis = Redis::new(&run, own);
    for turn in 0.. {
        let value = format!("{own}.{turn}");
        let taken = redis.ask(&["SET", "lock", &value, "NX", "PX", "3600000"]).await;
        if taken == Answer::Text("OK".into()) {
            assert!(!run.locked.swap(true, Ordering::SeqCst), "two hold the lock");
            sleep(REST).await;
            run.locked.store(false, Ordering::SeqCst);
            let mine = Some(value);
            let given_back = |held: Option<String>| {
                assert_eq!(held, mine, "another took what was held");
                Some(vec!["DEL".into(), "lock".into()])
            };
            assert!(redis.replaces("lock", given_back).await, "nobody else changes it");
        }
        if !run.goes_on(4).await {
            return;
        }
    }
}

async fn exchanges(run: Arc<Run>, own: usize) {
    let mut redis = Redis::new(&run, own);
    loop {
        let next = |held: Option<String>| {
            let next = held.map_or(0, |held| held.parse::<u64>().unwrap()) + 1;
            Some(vec!["SET".into(), "sum".into(), next.to_string()])
        };
        if redis.replaces("sum", next).await {
            run.exchanged.fetch_add(1, Ordering::SeqCst);
        }
        if !run.goes_on(5).await {
            return;
        }
    }
}

/// Ends a peer in good order and starts it again, until all is as it was.
async fn restart(world: &mut World, index: usize) {
    let status = world.mesh.stop(index).await.unwrap();
    assert!(status.success(), "{status}");
    world.mesh.start(index).unwrap();
    if let Err(error) = world.mesh.formed().await {
        panic!("{error:#}");
    }
    world.warm(index).await;
    until("nothing is short of members", async || {
        for other in 0..world.mesh.peers().len() {
            if world.status(other).await["sessions"]["short"] != 0 {
                return None;
            }
        }
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_all_peers_one_by_one_fails_no_request_of_anybody() {
    all_restart(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_peers_the_other_has_everything_while_one_is_restarted() {
    all_restart(2).await;
}

/// A restart of so many peers, one by one, under clients of every kind.
async fn all_restart(peers: u16) {
    let mut world = World::new(peers, shop(QUICK, "")).await;
    for index in 0..usize::from(peers) {
        world.warm(index).await;
    }
    let run = Arc::new(Run::new(&world));
    let mut clients = tokio::task::JoinSet::new();
    for habit in [Habit::Looks, Habit::Adds, Habit::AddsWithKeys] {
        clients.spawn(shops(Arc::clone(&run), habit));
    }
    clients.spawn(counts(Arc::clone(&run)));
    for own in 0..2 {
        clients.spawn(locks(Arc::clone(&run), own));
        clients.spawn(exchanges(Arc::clone(&run), own));
    }
    for index in 0..usize::from(peers) {
        restart(&mut world, index).await;
        // Everyone goes on with all of them; one that does not has failed, and says why.
        let asked = || run.asked.each_ref().map(|asked| asked.load(Ordering::Relaxed));
        let before = asked();
        until("clients went on", async || {
            if let Some(ended) = clients.try_join_next() {
                ended.unwrap();
            }
            asked().iter().zip(before).all(|(now, before)| *now > before + 2).then_some(())
        })
        .await;
    }
    run.ended.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let sum = Redis::new(&run, 0).ask(&["GET", "sum"]).await;
    assert_eq!(sum, Answer::Text(run.exchanged.load(Ordering::SeqCst).to_string()));
}

/// Sets large values of keys in turn, at each peer in turn, until some are refused for want of memory;
/// notes what each key holds that was set.
async fn fill(world: &World, round: usize, held: &mut BTreeMap<String, String>) {
    const REFUSALS: usize = 6;
    const KEYS: usize = 200;
    let mut refused = 0;
    for key in 0..KEYS {
        let ports = world.mesh.peers()[key % 3].ports;
        let mut redis = Connection::open(ports.redis).await.unwrap();
        let (name, value) = (format!("large:{key}"), format!("{round}.{key}.").repeat(20_000));
        match redis.ask(&["SET", &name, &value]).await.unwrap() {
            Answer::Text(_) => _ = held.insert(name, value),
            Answer::Error(error) => {
                assert!(error.starts_with("OOM"), "{error}");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
        if refused == REFUSALS {
            return;
        }
    }
    panic!("the memory is not full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_in_memory_that_is_full_outlive_a_restart_of_every_peer() {
    let memory = "[session]\nmemory = '8MiB'";
    let mut world = World::with(3, vec![shop(QUICK, "")], memory, |_, _| ()).await;
    let mut held = BTreeMap::new();
    for index in 0..3 {
        fill(&world, index, &mut held).await;
        restart(&mut world, index).await;
        for (key, value) in &held {
            for peer in world.mesh.peers() {
                let mut redis = Connection::open(peer.ports.redis).await.unwrap();
                let answer = redis.ask(&["GET", key]).await.unwrap();
                assert!(
                    answer == Answer::Text(value.clone()),
                    "{key} at {} after {} was restarted: {:.40}, and not {value:.10}",
                    peer.name,
                    world.name(index),
                    format!("{answer:?}"),
                );
            }
        }
    }
}

/// Writes the file of a peer's cookie key.
fn write_key(world: &World, index: usize, file: &str, key: &str) {
    let file = world.mesh.peer(index).folder().join(file);
    let part = file.with_extension("part");
    std::fs::write(&part, key).unwrap();
    std::fs::rename(part, file).unwrap();
}

/// Has a peer use the keys in these files from its next start on.
fn name_keys(world: &World, index: usize, files: [&str; 2]) {
    let folder = world.mesh.peer(index).folder().to_owned();
    let files = files.map(|file| toml::Value::from(folder.join(file).to_str().unwrap()));
    let named = |config: &mut toml::Table| {
        let mesh = config["mesh"].as_table_mut().unwrap();
        mesh.insert("cookie_key".into(), toml::Value::Array(files.into()));
    };
    world.mesh.reconfigure(index, named).unwrap();
}

/// Replaces the file of a key on every peer, until each has read it.
async fn replace_key(world: &World, file: &str, key: &str) {
    for (index, peer) in world.mesh.peers().iter().enumerate() {
        let read = || peer.log().matches("the identity was reloaded").count();
        let before = read();
        write_key(world, index, file, key);
        until("the peer has read its new key", async || (read() > before).then_some(())).await;
    }
}

/// As docs/trust.md says: all accept the new key, then all make cookies with it, then the old one goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cookie_key_is_replaced_in_three_steps_and_no_client_is_lost() {
    const OLD: &str = "b2xkIGtleSBvZiAzMiBieXRlcywgMTIzNDU2Nzg5MDE=";
    const NEW: &str = "bmV3IGtleSBvZiAzMiBieXRlcywgMTIzNDU2Nzg5MDE=";
    const NONE: &str = "bm8ga2V5IGF0IGFsbCwgMTIzNDU2Nzg5MDEyMzQ1Njc=";
    let mut world = World::prepare(3, vec![shop(QUICK, "")], "[session]\nttl = '20s'");
    for index in 0..3 {
        write_key(&world, index, "a.key", OLD);
        write_key(&world, index, "b.key", NONE);
        name_keys(&world, index, ["a.key", "b.key"]);
        world.mesh.start(index).unwrap();
    }
    if let Err(error) = world.mesh.formed().await {
        panic!("{error:#}");
    }
    for index in 0..3 {
        world.warm(index).await;
    }
    let run = Arc::new(Run::new(&world));
    let mut clients = tokio::task::JoinSet::new();
    for habit in [Habit::Looks, Habit::Adds, Habit::AddsWithKeys] {
        clients.spawn(shops(Arc::clone(&run), habit));
    }
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;

    replace_key(&world, "b.key", NEW).await;
    for index in 0..3 {
        shopper.add(world.http(index)).await;
    }
    let under_old = shopper.client.cookie("warmhop").unwrap().to_owned();
    for index in 0..3 {
        name_keys(&world, index, ["b.key", "a.key"]);
        restart(&mut world, index).await;
        for door in 0..3 {
            shopper.add(world.http(door)).await;
        }
    }
    replace_key(&world, "a.key", NONE).await;
    for index in 0..3 {
        shopper.add(world.http(index)).await;
    }
    run.ended.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    // The old key opens nothing any more.
    let mut stale = Shopper::default();
    stale.client.set_cookie("warmhop", under_old);
    stale.check(world.http(0)).await;
    let metrics = world.admin(0, Method::GET, "/metrics").await.text();
    let rejected = "warmhop_cookies_rejected_total{reason=\"forged\"} 1\n";
    assert!(metrics.contains(rejected), "{metrics}");
}
