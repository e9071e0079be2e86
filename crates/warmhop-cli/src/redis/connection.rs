//! One client's connection: requests in, replies out, in the order asked.
//!
//! What has arrived is taken as one batch. Commands about different keys run concurrently, those
//! about one key one after the other; the next batch is read once the replies to this one are
//! written. So a client has a bounded number of commands under way. If it reads no replies, nothing
//! more is read from it: none of its commands begins before there is room for the largest reply
//! that it may get.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};

use super::about::{Introduced, refuse_user};
use super::arguments::{checked_channel, checked_key, word, wrong_count};
use super::cmd::{AT_ONCE, Run, find};
use super::counts::BYTES;
use super::engine::{Absent, CHANGED, Database, Request, Watched};
use super::frame::{Incoming, Oversized, ProtocolError, Reply};
use super::holdings::Holding;
use super::info::CONNECTED;
use super::pubsub::Published;
use super::pubsub::{Subscriber, What};
use super::refusals::{full_name, is_not_offered, unknown_command};
use super::shared::Shared;
use super::transaction::{QUEUED_MAX, Queued, Transaction, refused_beside_watched};
use super::under_way::{BATCH_BYTES_MAX, HELD_BYTES_MAX, UnderWay, confine};
use super::{listeners, loud};

/// How much room a client's first read has, in bytes.
const FIRST_READ_BYTES: usize = 4096;
/// How much is read at once, in bytes; of a request of which so much has arrived, further parts are read in
/// turn.
const READ_BYTES: usize = 16 * 1024;
/// How much of a long request is read at once, in bytes.
const LONG_READ_BYTES: usize = 64 * 1024;
/// How long a request may take from its first byte to its last.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);
/// How long, and up to how many bytes, the endpoint goes on reading from a client that got an error
/// and is disconnected: if bytes were left unread at the close, the system would discard the error.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(5);
const LAST_WORDS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a client may take to read the last replies before the peer leaves.
const LAST_ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// What an argument takes beside its bytes.
const ARGUMENT_BYTES: usize = 32;
/// How many keys one client watches at most.
const WATCHED_MAX: usize = 1024;

/// The most arguments of `AUTH`: a user's name and a password; neither is kept.
const AUTH_WORDS_MAX: usize = 2;

static CLIENTS: AtomicI64 = AtomicI64::new(0);

/// A client that is counted until it leaves.
struct Leaves;

impl Drop for Leaves {
    fn drop(&mut self) {
        CONNECTED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a client until it leaves, misbehaves or is too slow.
pub(super) async fn serve(mut stream: TcpStream, database: Database) -> io::Result<()> {
    let database = Arc::new(database);
    let shared = Arc::clone(&database.shared);
    let shared = &*shared;
    stream.set_nodelay(true)?;
    let id = CLIENTS.fetch_add(1, Ordering::Relaxed) + 1;
    CONNECTED.fetch_add(1, Ordering::Relaxed);
    let _leaves = Leaves;
    let mut client = Client::new(id, database);
    let mut incoming = Incoming::default();
    incoming.bytes.reserve(FIRST_READ_BYTES);
    let mut outgoing = BytesMut::new();
    let mut under_way = UnderWay::default();
    let mut has_left_off = false;
    loop {
        let end =
            client.run_batch(&mut under_way, &mut stream, &mut incoming, &mut outgoing).await?;
        under_way.write(&mut stream, &mut outgoing, &client.holding).await?;
        match end {
            BatchEnd::MoreIsThere => continue,
            BatchEnd::Close => {
                return see_off(stream, incoming.bytes, LAST_WORDS_WITHIN, shared).await;
            }
            BatchEnd::ReadMore => {}
        }
        let passed_over = client.oversized.is_some();
        let kept = client.kept_bytes();
        let version = client.introduced.version;
        let answered = Instant::now();
        let leaves = shared.leaving.is_cancelled();
        let arrived = loop {
            // What had arrived by then has been read: a client that keeps sending delays nobody.
            if leaves && std::mem::replace(&mut has_left_off, true) {
                break ReadEnd::Leaves;
            }
            let Some(subscriber) = client.subscriber.as_mut().filter(|it| it.is_listening()) else {
                let holding = (&client.holding, kept);
                break read(&mut stream, &mut incoming, passed_over, shared, holding).await?;
            };
            let holding = (&client.holding, kept);
            let reading = read(&mut stream, &mut incoming, passed_over, shared, holding);
            tokio::select! {
                read = reading => break read?,
                message = subscriber.next() => {
                    let Some(message) = message else {
                        let why = "it leaves too many messages unread";
                        return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                    };
                    message.put(version, &mut outgoing);
                    while outgoing.len() < BATCH_BYTES_MAX
                        && let Some(message) = subscriber.ready()
                    {
                        message.put(version, &mut outgoing);
                    }
                }
            }
            under_way.write(&mut stream, &mut outgoing, &client.holding).await?;
        };
        match arrived {
            ReadEnd::Some => {}
            ReadEnd::TooLate | ReadEnd::TooMuch => {
                arrived.why().put(version, &mut outgoing);
                // What it holds is given back at once.
                (incoming, client.transaction) = (Incoming::default(), None);
                under_way.write(&mut stream, &mut outgoing, &client.holding).await?;
                return see_off(stream, incoming.bytes, LAST_WORDS_WITHIN, shared).await;
            }
            // The client has read the last replies by now, or never will.
            ReadEnd::Leaves if answered.elapsed() > LAST_ANSWERS_WITHIN => return Ok(()),
            ReadEnd::Leaves => {
                return see_off(stream, incoming.bytes, LAST_ANSWERS_WITHIN, shared).await;
            }
        }
    }
}

/// Ends a connection once its client has read the last reply.
async fn see_off(
    mut stream: TcpStream,
    mut incoming: BytesMut,
    within: Duration,
    shared: &Shared,
) -> io::Result<()> {
    stream.shutdown().await?;
    let rest = async {
        let mut left = LAST_WORDS_BYTES_MAX;
        while left > 0 {
            incoming.clear();
            match read_in_turn(&stream, &mut incoming, &shared.long_reads).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        Ok(())
    };
    timeout(within, rest).await.unwrap_or(Ok(()))
}

/// Reads a part of a long request once it is its client's turn. All clients that send such parts take
/// turns, one in each round of this thread's runtime: however many they are, the commands of others are
/// not kept waiting by more than one part. If it is dropped, nothing was read.
async fn read_in_turn(
    stream: &TcpStream,
    incoming: &mut BytesMut,
    turns: &Semaphore,
) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        let Ok(_turn) = turns.acquire().await else { return Ok(0) };
        // The next turn is in the next round.
        tokio::task::yield_now().await;
        incoming.reserve(LONG_READ_BYTES);
        match stream.try_read_buf(&mut (&mut *incoming).limit(LONG_READ_BYTES)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

/// How reading ended.
enum ReadEnd {
    /// Something that may be a request.
    Some,
    /// The rest of a request took too long.
    TooLate,
    /// The client holds too much.
    TooMuch,
    /// Nothing, and the peer leaves.
    Leaves,
}

impl ReadEnd {
    /// The last reply to a client that is disconnected.
    fn why(&self) -> Reply {
        match self {
            Self::TooMuch => Reply::error("OOM", "this client holds the most of what all may hold"),
            _ => Reply::error("ERR", "Protocol error: the request took too long"),
        }
    }
}

/// Reads until something arrives, or, if a request has begun, until all of it has. Of a request
/// that is `passed_over`, any part is enough. The client holds `kept` bytes besides. Returns an error at
/// the stream's end.
async fn read(
    stream: &mut TcpStream,
    incoming: &mut Incoming,
    passed_over: bool,
    shared: &Shared,
    (holding, kept): (&Holding, usize),
) -> io::Result<ReadEnd> {
    let begun = passed_over || !incoming.bytes.is_empty();
    let late = Instant::now() + REQUEST_WITHIN;
    loop {
        holding.requests(kept + incoming.bytes.len());
        // What has arrived when the peer leaves is read at once.
        let is_long =
            (passed_over || incoming.bytes.len() >= READ_BYTES) && !shared.leaving.is_cancelled();
        let reading = async {
            if is_long {
                return read_in_turn(stream, &mut incoming.bytes, &shared.long_reads).await;
            }
            incoming.bytes.reserve(READ_BYTES);
            stream.read_buf(&mut (&mut incoming.bytes).limit(READ_BYTES)).await
        };
        let read = tokio::select! {
            // First: what has arrived is answered before the peer leaves.
            biased;
            read = reading => read?,
            () = shared.leaving.cancelled() => match is_long {
                true => continue,
                false => return Ok(ReadEnd::Leaves),
            },
            // An idle connection of a pool may wait for as long as it likes.
            () = sleep_until(late), if begun => return Ok(ReadEnd::TooLate),
            () = holding.ended(), if holding.is_counted() => return Ok(ReadEnd::TooMuch),
        };
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the client left"));
        }
        BYTES.received(read);
        if !begun || passed_over || incoming.is_complete() {
            return Ok(ReadEnd::Some);
        }
    }
}

/// How a batch ended.
enum BatchEnd {
    /// All that has arrived is done.
    ReadMore,
    /// It was long enough.
    MoreIsThere,
    /// The connection ends: what the client sends can no longer be understood, or it has quit.
    Close,
}

struct Client {
    /// The memory that it takes.
    holding: Holding,
    /// Shared by its commands under way.
    database: Arc<Database>,
    introduced: Introduced,
    /// The commands that wait for `EXEC`, since `MULTI`.
    transaction: Option<Transaction>,
    /// What is left of a request that is too large.
    oversized: Option<Oversized>,
    /// Names of watched registers, with what they held.
    watched: Vec<(Bytes, Watched)>,
    /// A `WATCH` was refused since: a key that its client wants to be watched is not.
    watched_in_vain: bool,
    /// The client's subscriptions, once it has any.
    subscriber: Option<Subscriber>,
}

/// Reads a command.
///
/// # Errors
/// With the client's reply, if there is no such command, or if its number of arguments is wrong: a
/// transaction that contains it is discarded.
fn parse(args: Vec<Bytes>) -> Result<Request, Reply> {
    let Some(spec) = find(&args[0]) else { return Err(unknown_command(&args)) };
    if !spec.is_count_right(args.len()) {
        return Err(wrong_count(spec.name));
    }
    Ok(Request::new(spec, args))
}

impl Client {
    fn new(id: i64, database: Arc<Database>) -> Self {
        Self {
            holding: database.shared.holdings.of(id),
            database,
            introduced: Introduced { id, version: 2, ..Introduced::default() },
            transaction: None,
            oversized: None,
            watched: Vec::new(),
            watched_in_vain: false,
            subscriber: None,
        }
    }

    async fn run_batch(
        &mut self,
        under_way: &mut UnderWay,
        stream: &mut TcpStream,
        incoming: &mut Incoming,
        outgoing: &mut BytesMut,
    ) -> io::Result<BatchEnd> {
        under_way.begin_batch();
        let end = loop {
            if outgoing.len() > BATCH_BYTES_MAX {
                break BatchEnd::MoreIsThere;
            }
            let version = self.introduced.version;
            let taken = match &mut self.oversized {
                None => incoming.take_request(),
                Some(rest) => match rest.pass_over(&mut incoming.bytes) {
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
                    under_way.finish(version, stream, outgoing, &self.holding).await?;
                    Reply::error("ERR", error).put(version, outgoing);
                    if let Some(transaction) = &mut self.transaction {
                        transaction.is_broken = true;
                    }
                    self.oversized = Some(rest);
                    continue;
                }
                Err(error) => {
                    under_way.finish(version, stream, outgoing, &self.holding).await?;
                    Reply::error("ERR", error).put(version, outgoing);
                    break BatchEnd::Close;
                }
            };
            let bytes = arguments.iter().map(|argument| argument.len() + ARGUMENT_BYTES).sum();
            let name = arguments[0].clone();
            let mut request = match parse(arguments) {
                Ok(request) => request,
                Err(refused) => {
                    under_way.finish(version, stream, outgoing, &self.holding).await?;
                    self.refuse(&name, refused).put(version, outgoing);
                    continue;
                }
            };
            let is_data = !matches!(request.spec.run, Run::Connection);
            if is_data && self.transaction.is_none() && !self.only_listens() {
                confine(&mut request);
                let mut next = Some(request);
                while let Some(request) = next.take() {
                    while under_way.meets(&request, bytes) {
                        under_way.end_one(version, stream, outgoing, &self.holding).await?;
                    }
                    next = under_way.begin(&self.database, request, bytes);
                }
                continue;
            }
            under_way.finish(version, stream, outgoing, &self.holding).await?;
            let spec = request.spec;
            let quits = spec.name == "QUIT";
            let reply = self.answer(request, bytes).boxed().await;
            spec.counts.add(&reply);
            // A reply to HELLO is in the version that this HELLO asks for.
            reply.put(self.introduced.version, outgoing);
            if quits {
                break BatchEnd::Close;
            }
        };
        under_way.finish(self.introduced.version, stream, outgoing, &self.holding).await?;
        Ok(end)
    }

    /// What it keeps between two requests, in bytes.
    fn kept_bytes(&self) -> usize {
        let watched = self.watched.iter().map(|(name, _)| name.len() + ARGUMENT_BYTES);
        self.transaction.as_ref().map_or(0, |it| it.bytes) + watched.sum::<usize>()
    }

    /// Refuses an unknown command, or one with a wrong number of arguments.
    fn refuse(&mut self, name: &Bytes, refused: Reply) -> Reply {
        if find(name).is_none() {
            let command = String::from_utf8_lossy(name);
            loud::all().refused_command(&command, &self.introduced.library);
        }
        if name.eq_ignore_ascii_case(b"EXEC") {
            self.transaction = None;
            self.unwatch();
            return discarded_because(&refused);
        }
        if let Some(transaction) = &mut self.transaction {
            transaction.is_broken = true;
        }
        refused
    }

    /// Whether the client may only change its subscriptions: in version 2 of the protocol, replies
    /// to other commands could not be distinguished from messages.
    fn only_listens(&self) -> bool {
        self.introduced.version == 2
            && self.subscriber.as_ref().is_some_and(Subscriber::is_listening)
    }

    async fn answer(&mut self, request: Request, bytes: usize) -> Reply {
        let name = request.spec.name;
        if self.only_listens() {
            let goes = name.ends_with("SUBSCRIBE") || matches!(name, "PING" | "QUIT" | "RESET");
            if !goes {
                let detail = format!(
                    "Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET \
                     are allowed in this context",
                    full_name(&request)
                );
                // As for an EXEC that is refused for any other reason.
                let refused = Reply::error("ERR", detail);
                return if name == "EXEC" { discarded_because(&refused) } else { refused };
            }
            if name == "PING" && request.args.len() > 2 {
                return wrong_count("PING");
            }
            if name == "PING" {
                let text = request.args.get(1).cloned().unwrap_or_default();
                return Reply::Push(vec![Reply::text("pong"), Reply::Bytes(text)]);
            }
        }
        if self.transaction.is_some() && !request.spec.has(AT_ONCE) {
            return self.queue(request, bytes);
        }
        match name {
            "EXEC" => self.exec().await,
            "WATCH" if self.transaction.is_some() => {
                Reply::error("ERR", "WATCH inside MULTI is not allowed")
            }
            "WATCH" => {
                let reply = self.watch(&request.args[1..]).await;
                self.watched_in_vain |= reply.is_error();
                reply
            }
            "PUBLISH" | "SPUBLISH" => self.publish(&request).await,
            "PUBSUB" => {
                let shared = &self.database.shared;
                listeners::about(&shared.hub, shared.carrier.mesh(), &request.args).await
            }
            "SUBSCRIBE" | "PSUBSCRIBE" | "SSUBSCRIBE" => self.subscribe(&request).await,
            _ => self.about_itself(&request),
        }
    }

    async fn publish(&self, request: &Request) -> Reply {
        if let Err(refused) = checked_channel(&request.args[1]) {
            return refused;
        }
        let message = Published {
            channel: request.args[1].clone(),
            message: request.args[2].clone(),
            is_sharded: request.spec.name == "SPUBLISH",
        };
        Reply::Number(self.database.shared.carrier.publish(&message).count().await)
    }

    async fn subscribe(&mut self, request: &Request) -> Reply {
        let hub = Arc::clone(&self.database.shared.hub);
        let what = What::of(request.spec.name);
        let names = &request.args[1..];
        let checked = match what {
            What::Pattern => names.iter().try_for_each(|it| super::arguments::checked_pattern(it)),
            _ => names.iter().try_for_each(|it| checked_channel(it)),
        };
        if let Err(refused) = checked {
            return refused;
        }
        let subscriber = self.subscriber.get_or_insert_with(|| Subscriber::new(&hub));
        let confirmed = names.iter().map(|name| subscriber.subscribe(what, name)).collect();
        self.database.shared.carrier.is_heard_of().await;
        Reply::Several(confirmed)
    }

    fn unsubscribe(&mut self, request: &Request) -> Reply {
        let hub = Arc::clone(&self.database.shared.hub);
        let what = What::of(request.spec.name);
        let subscriber = self.subscriber.get_or_insert_with(|| Subscriber::new(&hub));
        subscriber.unsubscribe(what, &request.args[1..])
    }

    /// Answers commands that need no key.
    fn about_itself(&mut self, request: &Request) -> Reply {
        let args = &request.args;
        match request.spec.name {
            "PING" if args.len() > 2 => wrong_count("PING"),
            "PING" => args.get(1).map_or(Reply::status("PONG"), |text| Reply::Bytes(text.clone())),
            "HELLO" => self.introduced.hello(args),
            "AUTH" if args.len() > 1 + AUTH_WORDS_MAX => Reply::error("ERR", "syntax error"),
            "AUTH" => refuse_user(args.get(1).filter(|_| args.len() > 2)).unwrap_or(Reply::OK),
            "SELECT" => {
                let reply = self.introduced.select(args);
                Arc::make_mut(&mut self.database).index = self.introduced.index;
                reply
            }
            "CLIENT" => {
                let reply = self.introduced.client(args);
                if *self.database.library != *self.introduced.library {
                    let library = Arc::from(&*self.introduced.library);
                    Arc::make_mut(&mut self.database).library = library;
                }
                if matches!(&reply, Reply::Error(error) if error.contains("not offered")) {
                    self.tell_loudly(args);
                }
                reply
            }
            "QUIT" => Reply::OK,
            "SCRIPT" => self.database.shared.scripts.about(args),
            "PUBSUB" => listeners::about_here(&self.database.shared.hub, args),
            "UNSUBSCRIBE" | "PUNSUBSCRIBE" | "SUNSUBSCRIBE" => self.unsubscribe(request),
            "WAIT" => {
                match (super::arguments::number(&args[1]), super::arguments::number(&args[2])) {
                    (Ok(_), Ok(timeout)) if timeout < 0 => {
                        Reply::error("ERR", "timeout is negative")
                    }
                    // There are no replicas to count, and what was acknowledged is stored already.
                    (Ok(_), Ok(_)) => Reply::Number(0),
                    (Ok(_), Err(_)) => {
                        Reply::error("ERR", "timeout is not an integer or out of range")
                    }
                    (Err(refused), _) => refused,
                }
            }
            "RESET" => {
                let id = self.introduced.id;
                self.introduced = Introduced { id, version: 2, ..Introduced::default() };
                Arc::make_mut(&mut self.database).index = 0;
                (self.transaction, self.subscriber) = (None, None);
                self.unwatch();
                Reply::status("RESET")
            }
            "MULTI" if self.transaction.is_some() => {
                Reply::error("ERR", "MULTI calls can not be nested")
            }
            "MULTI" => {
                let index = self.introduced.index;
                self.transaction = Some(Transaction { index, ..Transaction::default() });
                Reply::OK
            }
            "DISCARD" if self.transaction.is_none() => Reply::error("ERR", "DISCARD without MULTI"),
            "DISCARD" => {
                self.transaction = None;
                self.unwatch();
                Reply::OK
            }
            "UNWATCH" => {
                self.unwatch();
                Reply::OK
            }
            _ => {
                let reply = Introduced::server(
                    args,
                    self.database.registers.now(),
                    self.database.shared.events,
                );
                if matches!(&reply, Reply::Error(error) if is_not_offered(error)) {
                    self.tell_loudly(args);
                }
                reply
            }
        }
    }

    /// Logs and counts that a client asked for a subcommand that is not offered.
    fn tell_loudly(&self, args: &[Bytes]) {
        // The word after FCALL is the name of a function, not a subcommand.
        let words = if args[0].to_ascii_uppercase().starts_with(b"FCALL") { 1 } else { 2 };
        let words: Vec<String> = args.iter().take(words).map(|it| word(it)).collect();
        loud::all().refused_command(&words.join(" "), &self.introduced.library);
    }

    async fn watch(&mut self, keys: &[Bytes]) -> Reply {
        if self.watched.len() + keys.len() > WATCHED_MAX {
            return Reply::error("ERR", format!("at most {WATCHED_MAX} keys can be watched"));
        }
        self.note_found();
        for key in keys {
            if let Err(refused) = checked_key(key) {
                return refused;
            }
            let name = self.database.name(key);
            // What it held when first watched counts.
            if self.watched.iter().any(|(watched, _)| *watched == name) {
                continue;
            }
            match self.database.watch(&name).await {
                Ok(watched) => self.watched.push((name, watched)),
                Err(failed) => return failed,
            }
        }
        let absent = self.watched.iter().filter(|(_, held)| held.is_none());
        let absent = absent.map(|(name, _)| Absent { name: name.clone(), found: false.into() });
        Arc::make_mut(&mut self.database).absent = absent.collect();
        Reply::OK
    }

    fn unwatch(&mut self) {
        self.watched.clear();
        self.watched_in_vain = false;
    }

    /// Notes which watched registers were empty, and were found otherwise since.
    fn note_found(&mut self) {
        for absent in self.database.absent.iter().filter(|it| it.found.load(Ordering::Relaxed)) {
            let watched = self.watched.iter_mut().find(|(name, _)| *name == absent.name);
            if let Some((_, held @ None)) = watched {
                *held = CHANGED;
            }
        }
    }

    /// Keeps a command for EXEC.
    fn queue(&mut self, request: Request, bytes: usize) -> Reply {
        let Some(transaction) = &mut self.transaction else { return Reply::Null };
        transaction.bytes += bytes;
        if transaction.is_broken {
            return Reply::status("QUEUED");
        }
        let database = Database { index: transaction.index, ..Database::clone(&self.database) };
        let refused = refused_beside_watched(&database, &request, &self.watched);
        let refused = refused.map(str::to_owned).or_else(|| {
            let too_much =
                transaction.commands.len() == QUEUED_MAX || transaction.bytes > HELD_BYTES_MAX;
            too_much.then(|| {
                format!(
                    "a transaction has at most {QUEUED_MAX} commands and {HELD_BYTES_MAX} bytes"
                )
            })
        });
        let refused = refused.or_else(|| {
            let listens = request.spec.name.ends_with("SUBSCRIBE");
            listens.then(|| "SUBSCRIBE and its like are no part of a transaction".to_owned())
        });
        if let Some(refused) = refused {
            transaction.is_broken = true;
            return Reply::error("ERR", refused);
        }
        let index = transaction.index;
        if request.spec.name == "SELECT" {
            let mut selected = Introduced::default();
            if !selected.select(&request.args).is_error() {
                transaction.index = selected.index;
            }
        }
        transaction.commands.push(Queued { request, index });
        Reply::status("QUEUED")
    }

    async fn exec(&mut self) -> Reply {
        // What is watched stays so for the next one.
        let Some(transaction) = self.transaction.take() else {
            return Reply::error("ERR", "EXEC without MULTI");
        };
        self.note_found();
        let watched = std::mem::take(&mut self.watched);
        let watched_in_vain = std::mem::take(&mut self.watched_in_vain);
        if transaction.is_broken {
            let detail = "Transaction discarded because of previous errors.";
            return Reply::error("EXECABORT", detail);
        }
        if watched_in_vain {
            // The key may have changed: nobody has looked.
            return Reply::Aborted;
        }
        let database = self.database.clone();
        let mut published = Vec::new();
        let mut about = |request: &Request| {
            if request.spec.name.ends_with("PUBLISH") {
                if let Err(refused) = checked_channel(&request.args[1]) {
                    return refused;
                }
                let (channel, message) = (request.args[1].clone(), request.args[2].clone());
                let is_sharded = request.spec.name == "SPUBLISH";
                let message = Published { channel, message, is_sharded };
                // The message is published once the transaction is done.
                let here = database.shared.hub.count_here(&message);
                published.push(message);
                return Reply::Number(here);
            }
            self.about_itself(request)
        };
        let reply = database.exec(watched, transaction.commands, &mut about).await;
        for message in published {
            let _ = database.shared.carrier.publish(&message);
        }
        reply
    }
}

/// As Redis has it, an EXEC of the wrong form ends its transaction.
fn discarded_because(refused: &Reply) -> Reply {
    let why = match refused {
        Reply::Error(error) => error.split_once(' ').map_or(error.as_str(), |(_, why)| why),
        _ => "",
    };
    Reply::error("EXECABORT", format!("Transaction discarded because of: {why}"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn of_all_that_send_long_requests_one_has_a_part_read_in_each_round() {
        const CLIENTS: usize = 20;
        const EACH: usize = 512 * 1024;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (turns, read) = (Arc::new(Semaphore::new(1)), Arc::new(AtomicUsize::new(0)));
        let mut senders = Vec::new();
        for _ in 0..CLIENTS {
            let mut sender = TcpStream::connect(addr).await.unwrap();
            let (receiver, _) = listener.accept().await.unwrap();
            senders.push(tokio::spawn(async move { sender.write_all(&vec![0; EACH]).await }));
            let (turns, read) = (Arc::clone(&turns), Arc::clone(&read));
            tokio::spawn(async move {
                let mut incoming = BytesMut::new();
                while let Ok(more @ 1..) = read_in_turn(&receiver, &mut incoming, &turns).await {
                    read.fetch_add(more, Ordering::Relaxed);
                }
            });
        }
        // Some was read while the others connected.
        let (mut before, mut most) = (read.load(Ordering::Relaxed), 0);
        while before < CLIENTS * EACH {
            tokio::task::yield_now().await;
            let now = read.load(Ordering::Relaxed);
            most = most.max(now - before);
            before = now;
        }
        // A round of this test may see the end of one turn and the begin of the next.
        assert!(most <= 2 * LONG_READ_BYTES, "{most} bytes in one round");
    }
}
