//! One client's connection: requests in, replies out, in the order asked.
//!
//! What has arrived is taken as one batch. Commands about different keys run beside each other,
//! those about the same key one after the other; the next batch is read when the replies of this
//! one are written. So a client has a bounded number of commands under way, and one that reads no
//! replies is read from no further: none of its commands begins before there is room for what it
//! may be answered.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::command::{Answer, Command, Connection, DATABASES, Data, OFFERED};
use super::execute::{Database, Guard, REPLY_BYTES_MAX, Watched, WatchedChanged};
use super::frame::{Oversized, ProtocolError, Reply, VALUE_BYTES_MAX, is_complete, take_request};

/// How many commands of one batch are under way at once.
const UNDER_WAY_MAX: usize = 64;
/// A batch ends when its replies take so much, in bytes.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// How much is read at once, in bytes.
const READ_BYTES: usize = 16 * 1024;
/// How long a request may take from its first byte to its last.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);
/// How long a client may leave replies unread.
const REPLY_WITHIN: Duration = Duration::from_secs(30);
/// How long, and for how many bytes, a client is listened to that is told why its connection ends: what
/// is left unread when it is closed has the system take back what was told.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(5);
const LAST_WORDS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How many bytes of replies one client's commands under way may come to, and those that wait to be
/// written. One that is about many keys is under way alone, and has a bound of its own.
const REPLIES_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a reply takes that holds none of what a key does.
const SHORT_REPLY_BYTES: usize = 128;
/// What an argument takes beside its bytes.
const ARGUMENT_BYTES: usize = 32;
/// How many bytes of requests are under way at once, and held back by a transaction, at most.
const HELD_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How many commands one transaction has at most.
const QUEUED_MAX: usize = 1024;
/// How many keys one client watches at most.
const WATCHED_MAX: usize = 1024;

/// What the endpoint says of itself to clients that ask for a server's version: they choose what
/// they send by it.
const SPEAKS_AS: &str = "7.2.0";

static CLIENTS: AtomicI64 = AtomicI64::new(0);

/// Serves a client until it leaves, misbehaves or is too slow.
pub(super) async fn serve(mut stream: TcpStream, database: Database) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut client = Client {
        database,
        version: 2,
        id: CLIENTS.fetch_add(1, Ordering::Relaxed) + 1,
        name: Bytes::new(),
        transaction: None,
        oversized: None,
        queued_bytes: 0,
        queued_index: 0,
        watched: Vec::new(),
    };
    let mut incoming = BytesMut::with_capacity(4096);
    let mut outgoing = BytesMut::new();
    loop {
        let end = client.run_batch(&mut stream, &mut incoming, &mut outgoing).await?;
        write(&mut stream, &mut outgoing).await?;
        match end {
            BatchEnd::MoreIsThere => continue,
            BatchEnd::Close => return see_off(stream, incoming).await,
            BatchEnd::ReadMore => {}
        }
        if !read(&mut stream, &mut incoming, client.oversized.is_some()).await? {
            let late = Reply::error("ERR", "Protocol error: the request took too long");
            put(late, client.version, &mut outgoing);
            write(&mut stream, &mut outgoing).await?;
            return see_off(stream, incoming).await;
        }
    }
}

/// Ends a connection whose client was told why, once it has read that.
async fn see_off(mut stream: TcpStream, mut incoming: BytesMut) -> io::Result<()> {
    stream.shutdown().await?;
    let rest = async {
        let mut left = LAST_WORDS_BYTES_MAX;
        while left > 0 {
            incoming.clear();
            incoming.reserve(READ_BYTES);
            match stream.read_buf(&mut incoming).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        Ok(())
    };
    timeout(LAST_WORDS_WITHIN, rest).await.unwrap_or(Ok(()))
}

async fn write(stream: &mut TcpStream, outgoing: &mut BytesMut) -> io::Result<()> {
    UnderWay::default().write(stream, outgoing).await
}

/// Reads until something arrives, or all of a request that has begun to; false if that takes too
/// long. Whatever arrives of one that is `passed_over` is enough. An error at the stream's end.
async fn read(
    stream: &mut TcpStream,
    incoming: &mut BytesMut,
    passed_over: bool,
) -> io::Result<bool> {
    let begun = passed_over || !incoming.is_empty();
    let late = Instant::now() + REQUEST_WITHIN;
    loop {
        incoming.reserve(READ_BYTES);
        let reading = stream.read_buf(incoming);
        let read = if begun {
            match timeout_at(late, reading).await {
                Ok(read) => read?,
                Err(_) => return Ok(false),
            }
        } else {
            // An idle connection of a pool may wait for as long as it likes.
            reading.await?
        };
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the client left"));
        }
        if !begun || passed_over || is_complete(incoming) {
            return Ok(true);
        }
    }
}

fn put(reply: Reply, version: u8, outgoing: &mut BytesMut) {
    let before = outgoing.len();
    if let Err(error) = reply.put(version, outgoing) {
        outgoing.truncate(before);
        outgoing
            .extend_from_slice(format!("-ERR the reply cannot be told: {error}\r\n").as_bytes());
    }
}

/// How a batch ended.
enum BatchEnd {
    /// All that has arrived is done.
    ReadMore,
    /// It was long enough.
    MoreIsThere,
    /// Nothing that the client sends can be understood any more, or it is done.
    Close,
}

struct Client {
    database: Database,
    version: u8,
    id: i64,
    name: Bytes,
    /// The commands of a transaction, or that one of them was refused.
    transaction: Option<Result<Vec<Command>, ()>>,
    /// What is left of a request that is too large.
    oversized: Option<Oversized>,
    queued_bytes: usize,
    /// The database that the next command of the transaction will be about.
    queued_index: u8,
    /// Names of registers and what they held.
    watched: Vec<(Bytes, Watched)>,
}

/// The commands under way, and the keys that they are about.
#[derive(Default)]
struct UnderWay {
    replies: FuturesOrdered<BoxFuture<'static, Reply>>,
    /// Replies that came while others were written.
    ready: VecDeque<Reply>,
    /// What is known of each of them, in their order.
    begun: VecDeque<Begun>,
    keys: HashSet<Bytes>,
    /// What their requests take.
    bytes: usize,
    /// What their replies may take, or do take once they are there.
    reply_bytes: Arc<AtomicUsize>,
}

struct Begun {
    /// The key that it is about, if it is about one.
    key: Option<Bytes>,
    bytes: usize,
    /// What of [`UnderWay::reply_bytes`] is its own.
    reply_bytes: Arc<AtomicUsize>,
}

impl UnderWay {
    /// Whether the first of those under way has to end before this one may begin: for they are about
    /// the same key, or one of them is about many and may be answered much.
    fn meets(&self, data: &Data, bytes: usize) -> bool {
        let key = one_key(data);
        let alone = key.is_none() || self.begun.front().is_some_and(|first| first.key.is_none());
        let reply_bytes = self.reply_bytes.load(Ordering::Relaxed) + reply_bytes_max(data);
        (alone && !self.begun.is_empty())
            || self.begun.len() >= UNDER_WAY_MAX
            || (self.bytes + bytes > HELD_BYTES_MAX && !self.begun.is_empty())
            || (reply_bytes > REPLIES_BYTES_MAX && !self.begun.is_empty())
            || key.is_some_and(|key| self.keys.contains(key))
    }

    fn begin(&mut self, database: &Database, data: Data, bytes: usize) {
        let key = one_key(&data).cloned();
        self.keys.extend(key.clone());
        self.bytes += bytes;
        let expected = reply_bytes_max(&data);
        let (all, own) = (Arc::clone(&self.reply_bytes), Arc::new(AtomicUsize::new(expected)));
        all.fetch_add(expected, Ordering::Relaxed);
        self.begun.push_back(Begun { key, bytes, reply_bytes: Arc::clone(&own) });
        let database = database.clone();
        self.replies.push_back(Box::pin(async move {
            // Nothing is watched outside of a transaction.
            let reply = database.execute(data).await.unwrap_or(Reply::Null);
            let takes = reply.size().min(expected);
            own.store(takes, Ordering::Relaxed);
            all.fetch_sub(expected - takes, Ordering::Relaxed);
            reply
        }));
    }

    /// Waits for the first of them; false if there is none. Writes what is long on the way.
    async fn end_one(
        &mut self,
        version: u8,
        stream: &mut TcpStream,
        outgoing: &mut BytesMut,
    ) -> io::Result<bool> {
        let reply = match self.ready.pop_front() {
            Some(reply) => Some(reply),
            None => self.replies.next().await,
        };
        let (Some(reply), Some(begun)) = (reply, self.begun.pop_front()) else { return Ok(false) };
        put(reply, version, outgoing);
        self.bytes -= begun.bytes;
        self.reply_bytes.fetch_sub(begun.reply_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        if let Some(key) = &begun.key {
            self.keys.remove(key);
        }
        if outgoing.len() > BATCH_BYTES_MAX {
            self.write(stream, outgoing).await?;
        }
        Ok(true)
    }

    /// Waits for all of them.
    async fn finish(
        &mut self,
        version: u8,
        stream: &mut TcpStream,
        outgoing: &mut BytesMut,
    ) -> io::Result<()> {
        while self.end_one(version, stream, outgoing).await? {}
        Ok(())
    }

    /// Writes what is ready. Those under way go on meanwhile: others may wait for what they hold.
    async fn write(&mut self, stream: &mut TcpStream, outgoing: &mut BytesMut) -> io::Result<()> {
        if outgoing.is_empty() {
            return Ok(());
        }
        let bytes = outgoing.split();
        let mut writing = std::pin::pin!(timeout(REPLY_WITHIN, stream.write_all(&bytes)));
        loop {
            tokio::select! {
                biased;
                written = &mut writing => {
                    let late = |_| {
                        io::Error::new(io::ErrorKind::TimedOut, "it does not read its replies")
                    };
                    return written.map_err(late)?;
                }
                Some(reply) = self.replies.next() => self.ready.push_back(reply),
            }
        }
    }
}

/// The key that a command is about, if it is about one.
fn one_key(data: &Data) -> Option<&Bytes> {
    match data.keys()[..] {
        [key] => Some(key),
        _ => None,
    }
}

impl Client {
    async fn run_batch(
        &mut self,
        stream: &mut TcpStream,
        incoming: &mut BytesMut,
        outgoing: &mut BytesMut,
    ) -> io::Result<BatchEnd> {
        let mut under_way = UnderWay::default();
        let end = loop {
            if outgoing.len() > BATCH_BYTES_MAX {
                break BatchEnd::MoreIsThere;
            }
            let taken = match &mut self.oversized {
                None => take_request(incoming),
                Some(rest) => match rest.pass_over(incoming) {
                    Ok(true) => {
                        self.oversized = None;
                        continue;
                    }
                    Ok(false) => Ok(None),
                    Err(error) => Err(error),
                },
            };
            let arguments = match taken {
                Ok(Some(arguments)) => arguments,
                Ok(None) => break BatchEnd::ReadMore,
                Err(error @ ProtocolError::Oversized(rest)) => {
                    under_way.finish(self.version, stream, outgoing).await?;
                    put(Reply::error("ERR", error), self.version, outgoing);
                    self.transaction = self.transaction.take().map(|_| Err(()));
                    self.oversized = Some(rest);
                    continue;
                }
                Err(error) => {
                    under_way.finish(self.version, stream, outgoing).await?;
                    put(Reply::error("ERR", error), self.version, outgoing);
                    break BatchEnd::Close;
                }
            };
            let bytes = arguments.iter().map(|argument| argument.len() + ARGUMENT_BYTES).sum();
            let is_exec = arguments[0].eq_ignore_ascii_case(b"EXEC");
            let command = Command::parse(arguments, self.database.registers.now());
            if let (Ok(Command::Data(data)), None) = (&command, &self.transaction) {
                while under_way.meets(data, bytes) {
                    under_way.end_one(self.version, stream, outgoing).await?;
                }
            } else {
                under_way.finish(self.version, stream, outgoing).await?;
            }
            let quits = command == Ok(Command::Connection(Connection::Quit));
            match (command, &mut self.transaction) {
                (Ok(Command::Data(data)), None) => under_way.begin(&self.database, data, bytes),
                (Ok(command), Some(_)) if waits_for_exec(&command) => {
                    self.queued_bytes += bytes;
                    let reply = self.queue(command);
                    put(reply, self.version, outgoing);
                }
                (Ok(Command::Data(_)), Some(_)) => unreachable!("data waits for EXEC"),
                (Ok(Command::Refused(refused)), _) => put(refused, self.version, outgoing),
                (Ok(Command::Connection(command)), _) => {
                    // A reply is in the version that its own HELLO asks for.
                    let reply = self.about_connection(command).await;
                    put(reply, self.version, outgoing);
                }
                (Err(refused), _) if is_exec => {
                    (self.transaction, self.watched) = (None, Vec::new());
                    put(discarded_because(&refused), self.version, outgoing);
                }
                (Err(refused), transaction) => {
                    if let Some(queued) = transaction {
                        *queued = Err(());
                    }
                    put(refused, self.version, outgoing);
                }
            }
            if quits {
                break BatchEnd::Close;
            }
        };
        under_way.finish(self.version, stream, outgoing).await?;
        Ok(end)
    }

    async fn about_connection(&mut self, command: Connection) -> Reply {
        match command {
            Connection::Exec => self.exec().await,
            Connection::Watch(_) if self.transaction.is_some() => {
                Reply::error("ERR", "WATCH inside MULTI is not allowed")
            }
            Connection::Watch(keys) => self.watch(keys).await,
            command => self.about_itself(command),
        }
    }

    /// Answers what needs no key.
    fn about_itself(&mut self, command: Connection) -> Reply {
        match command {
            Connection::Ping(None) => Reply::Status("PONG"),
            Connection::Ping(Some(text)) | Connection::Echo(text) => Reply::Bytes(text),
            Connection::Hello { version, user, name } => {
                if let Some(refused) = user.and_then(|user| refuse_user(Some(&user))) {
                    return refused;
                }
                self.version = version.unwrap_or(self.version);
                self.name = name.unwrap_or_else(|| std::mem::take(&mut self.name));
                self.hello()
            }
            Connection::Auth { user } => refuse_user(user.as_ref()).unwrap_or(Reply::OK),
            Connection::Select(index) => {
                self.database.index = index;
                Reply::OK
            }
            Connection::SetName(name) => {
                self.name = name;
                Reply::OK
            }
            Connection::GetName if self.name.is_empty() => Reply::Null,
            Connection::GetName => Reply::Bytes(self.name.clone()),
            Connection::Id => Reply::Number(self.id),
            Connection::Noted | Connection::Quit => Reply::OK,
            Connection::CommandCount => Reply::Number(OFFERED),
            Connection::Nothing => Reply::Array(Vec::new()),
            Connection::Setting(name) => Reply::Map(match name.as_str() {
                // redis-benchmark asks how the server saves: not at all.
                "save" => vec![(Reply::text(name), Reply::text(""))],
                "databases" => vec![(Reply::text(name), Reply::text(DATABASES.to_string()))],
                "appendonly" => vec![(Reply::text(name), Reply::text("no"))],
                _ => Vec::new(),
            }),
            Connection::Info => Reply::text(info()),
            Connection::Time => {
                let now = self.database.registers.now();
                let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
                let parts = [now.as_secs().to_string(), now.subsec_micros().to_string()];
                Reply::Array(parts.into_iter().map(Reply::text).collect())
            }
            Connection::Reset => {
                (self.version, self.database.index, self.name) = (2, 0, Bytes::new());
                self.transaction = None;
                self.watched.clear();
                Reply::Status("RESET")
            }
            Connection::Multi if self.transaction.is_some() => {
                Reply::error("ERR", "MULTI calls can not be nested")
            }
            Connection::Multi => {
                self.transaction = Some(Ok(Vec::new()));
                self.queued_bytes = 0;
                self.queued_index = self.database.index;
                Reply::OK
            }
            Connection::Discard if self.transaction.is_none() => {
                Reply::error("ERR", "DISCARD without MULTI")
            }
            Connection::Discard => {
                self.transaction = None;
                self.watched.clear();
                Reply::OK
            }
            Connection::Exec | Connection::Watch(_) => {
                Reply::error("ERR", "EXEC and WATCH are no part of a transaction")
            }
            Connection::Unwatch => {
                self.watched.clear();
                Reply::OK
            }
        }
    }

    async fn watch(&mut self, keys: Vec<Bytes>) -> Reply {
        if self.watched.len() + keys.len() > WATCHED_MAX {
            return Reply::error("ERR", format!("at most {WATCHED_MAX} keys can be watched"));
        }
        for key in keys {
            let name = self.database.name(&key);
            // What it held when it was first watched counts.
            if self.watched.iter().any(|(watched, _)| *watched == name) {
                continue;
            }
            match self.database.watch(&name).await {
                Ok(watched) => self.watched.push((name, watched)),
                Err(failed) => return failed,
            }
        }
        Reply::OK
    }

    /// Keeps a command for EXEC.
    fn queue(&mut self, command: Command) -> Reply {
        let database = Database { index: self.queued_index, ..self.database.clone() };
        let watches = |key: &Bytes| {
            let name = database.name(key);
            self.watched.iter().any(|(watched, _)| *watched == name)
        };
        let refused = match &command {
            // It takes several steps, none of which is one with the comparison.
            Command::Data(Data::Rename { from, to, .. }) if watches(from) || watches(to) => {
                Some("RENAME of a watched key is not offered".to_owned())
            }
            Command::Data(Data::Flush { .. }) if !self.watched.is_empty() => {
                Some("FLUSHDB while keys are watched is not offered".to_owned())
            }
            _ => None,
        };
        let Some(queued) = &mut self.transaction else { return Reply::Null };
        let Ok(commands) = queued else { return Reply::Status("QUEUED") };
        let too_much = commands.len() == QUEUED_MAX || self.queued_bytes > HELD_BYTES_MAX;
        let refused = refused.or_else(|| {
            too_much.then(|| {
                format!(
                    "a transaction has at most {QUEUED_MAX} commands and {HELD_BYTES_MAX} bytes"
                )
            })
        });
        if let Some(refused) = refused {
            *queued = Err(());
            return Reply::error("ERR", refused);
        }
        if let Command::Connection(Connection::Select(index)) = command {
            self.queued_index = index;
        }
        commands.push(command);
        Reply::Status("QUEUED")
    }

    /// Runs a transaction: its commands one after the other, each committed by itself. A watched
    /// key is compared before anything runs, and again as part of the first change of it.
    async fn exec(&mut self) -> Reply {
        let watched = std::mem::take(&mut self.watched);
        let Some(queued) = self.transaction.take() else {
            return Reply::error("ERR", "EXEC without MULTI");
        };
        let Ok(queued) = queued else {
            let detail = "Transaction discarded because of previous errors.";
            return Reply::error("EXECABORT", detail);
        };
        for (name, before) in &watched {
            match self.database.watch(name).await {
                Ok(now) if now == *before => {}
                Ok(_) => return Reply::Aborted,
                Err(failed) => return failed,
            }
        }
        let guard = |(name, held)| Guard { name, held, spent: AtomicBool::new(false) };
        let guards: Arc<[Guard]> = watched.into_iter().map(guard).collect();
        let mut replies = Vec::with_capacity(queued.len());
        let (mut size, mut changed, mut stopped) = (0, false, false);
        for command in queued {
            let reply = match command {
                _ if stopped => not_run(),
                Command::Refused(refused) => refused,
                Command::Connection(command) => self.about_itself(command),
                Command::Data(data) => {
                    let changes = changes(&data);
                    let database =
                        Database { guards: Arc::clone(&guards), ..self.database.clone() };
                    match database.execute(data).await {
                        Ok(reply) => {
                            changed |= changes;
                            reply
                        }
                        Err(WatchedChanged { some_changed: false }) if !changed => {
                            return Reply::Aborted;
                        }
                        // Too late for none of it to have run: this says how far it came.
                        Err(WatchedChanged { some_changed }) => {
                            stopped = true;
                            if some_changed { run_in_part() } else { not_run() }
                        }
                    }
                }
            };
            size += reply.size();
            replies.push(if size > REPLY_BYTES_MAX {
                let detail = format!("it was run, but the answers exceed {REPLY_BYTES_MAX} bytes");
                Reply::error("ERR", detail)
            } else {
                reply
            });
        }
        Reply::Array(replies)
    }

    fn hello(&self) -> Reply {
        let number = |number| Reply::Number(number);
        let pairs = [
            ("server", Reply::text("redis")),
            ("version", Reply::text(SPEAKS_AS)),
            ("proto", number(i64::from(self.version))),
            ("id", number(self.id)),
            ("mode", Reply::text("standalone")),
            ("role", Reply::text("master")),
            ("modules", Reply::Array(Vec::new())),
        ];
        Reply::Map(pairs.map(|(name, value)| (Reply::text(name), value)).into())
    }
}

/// Whether the command may change its key, so that what it watches has to be compared with it.
fn changes(data: &Data) -> bool {
    !matches!(
        data,
        Data::Get(_)
            | Data::StrLen(_)
            | Data::Exists(_)
            | Data::Ends { .. }
            | Data::Type(_)
            | Data::HGet { .. }
            | Data::HMGet { .. }
            | Data::HGetAll(_)
            | Data::HKeys(_)
            | Data::HVals(_)
            | Data::HLen(_)
            | Data::HExists { .. }
            | Data::HStrLen { .. }
    )
}

/// How many bytes the reply to a command about one key has at most, about.
fn reply_bytes_max(data: &Data) -> usize {
    match data {
        Data::Get(_)
        | Data::GetEx { .. }
        | Data::GetDel(_)
        | Data::MGet(_)
        | Data::Set { answer: Answer::Before, .. }
        | Data::HGet { .. }
        | Data::HMGet { .. }
        | Data::HGetAll(_)
        | Data::HKeys(_)
        | Data::HVals(_) => VALUE_BYTES_MAX,
        _ => SHORT_REPLY_BYTES,
    }
}

/// Whether a command of a transaction waits for its EXEC.
fn waits_for_exec(command: &Command) -> bool {
    !matches!(
        command,
        Command::Connection(
            Connection::Exec
                | Connection::Discard
                | Connection::Multi
                | Connection::Watch(_)
                | Connection::Quit
                | Connection::Reset
        )
    )
}

fn not_run() -> Reply {
    let detail = "a watched key was changed by another after the first commands; this one and those \
                  after it were not run";
    Reply::error("WATCHFAILED", detail)
}

/// As Redis has it, an EXEC of the wrong form ends its transaction.
fn discarded_because(refused: &Reply) -> Reply {
    let why = match refused {
        Reply::Error(told) => told.split_once(' ').map_or(told.as_str(), |(_, why)| why),
        _ => "",
    };
    Reply::error("EXECABORT", format!("Transaction discarded because of: {why}"))
}

fn run_in_part() -> Reply {
    let detail = "some of the keys may have been changed: a watched one was changed by another; \
                  the commands after this one were not run";
    Reply::error("UNKNOWN", detail)
}

/// There are no passwords: whoever reaches the endpoint is on this machine. As a server without
/// any, it takes every password of the default user, and refuses one that names none.
fn refuse_user(user: Option<&Bytes>) -> Option<Reply> {
    match user {
        Some(user) if user == "default" => None,
        Some(_) => {
            Some(Reply::error("WRONGPASS", "invalid username-password pair or user is disabled."))
        }
        None => Some(Reply::error(
            "ERR",
            "AUTH <password> called without any password configured for the default user. \
             Are you sure your configuration is correct?",
        )),
    }
}

fn info() -> String {
    format!(
        "# Server\r\nredis_version:{SPEAKS_AS}\r\nredis_mode:standalone\r\nserver_name:warmhop\r\n\
         warmhop_version:{}\r\nprocess_id:{}\r\n\r\n\
         # Persistence\r\nloading:0\r\n\r\n# Replication\r\nrole:master\r\nconnected_slaves:0\r\n\r\n\
         # Cluster\r\ncluster_enabled:0\r\n",
        env!("CARGO_PKG_VERSION"),
        std::process::id()
    )
}
