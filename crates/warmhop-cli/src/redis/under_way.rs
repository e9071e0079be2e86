//! The commands of one client that are under way: those about different keys run beside each other,
//! and their replies leave in the order asked.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use futures_util::stream::{FuturesOrdered, StreamExt};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::cmd::{LONG, Run};
use super::counts::BYTES;
use super::engine::{Database, Request};
use super::frame::{Reply, VALUE_BYTES_MAX};
use super::holdings::Holding;
use super::scripts::{CONFINED_REPLY_BYTES_MAX, Confined};

/// A batch ends once its replies take so many bytes.
pub(super) const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// How many bytes of requests are under way at once, and held back by a transaction, at most.
pub(super) const HELD_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long a client may leave replies unread.
const REPLY_WITHIN: Duration = Duration::from_secs(30);
/// How many commands of one batch are under way at once.
const UNDER_WAY_MAX: usize = 64;
/// How often the endpoint checks whether a client has left that has sent more while its command
/// waits.
const LEFT_ASKED_EVERY: Duration = Duration::from_millis(100);
/// A bound in bytes on the replies to one client's commands under way, together with those that
/// wait to be written. A command about many keys is under way alone, and has another bound.
const REPLIES_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The size of a reply that contains nothing that a key holds.
const SHORT_REPLY_BYTES: usize = 128;
/// For how many commands a client keeps memory while it is idle: a small batch needs none anew.
const KEPT_MAX: usize = 8;
/// The least that a read is expected to answer, in bytes: it may turn out to be more.
const READ_BYTES_MIN: usize = 16 * 1024;

/// How many bytes the replies to a client's reads are expected to have: as many as its longest one had,
/// of those that were answered together last.
#[derive(Debug, Clone, Copy)]
struct Expected(usize);

impl Default for Expected {
    fn default() -> Self {
        Self(READ_BYTES_MIN)
    }
}

/// Waits until the client has closed its end, whatever it has sent before.
async fn has_left(stream: &TcpStream) -> io::Error {
    loop {
        match stream.ready(Interest::READABLE).await {
            Ok(ready) if ready.is_read_closed() => {
                let why = "the client left while its command waited";
                return io::Error::new(io::ErrorKind::UnexpectedEof, why);
            }
            // Requests wait to be read: only another poll shows whether more has come.
            Ok(_) => tokio::time::sleep(LEFT_ASKED_EVERY).await,
            Err(error) => return error,
        }
    }
}

fn holds_too_much() -> io::Error {
    io::Error::other("it held the most of what all clients may hold together")
}

/// How the run of a command ended.
enum Ran {
    /// With what its reply takes of [`UnderWay::reply_bytes`].
    Done(Reply, usize),
    /// Nothing was done: it cannot be carried out within its bounds, and is to run anew once all
    /// before it have been answered.
    Anew(Box<Job>),
}

type Execution = BoxFuture<'static, Ran>;

/// A command to be carried out.
struct Job {
    database: Arc<Database>,
    request: Request,
    counted: Counted,
}

/// The commands under way.
#[derive(Default)]
pub(super) struct UnderWay {
    replies: FuturesOrdered<Execution>,
    /// Replies that came while others were being written.
    ready: VecDeque<(Reply, usize)>,
    /// What is known about each command, in their order.
    begun: VecDeque<Begun>,
    /// How many bytes their requests take.
    bytes: usize,
    /// How many bytes their replies may take, or take once they are there.
    reply_bytes: Arc<AtomicUsize>,
    /// What the reply to a read is expected to take.
    expected: Expected,
    /// The longest reply to a read so far.
    longest: usize,
    /// What the first of them waits for: its reply has no room until others have been written.
    held_back: Option<Arc<Notify>>,
}

struct Begun {
    /// The key that it is about, if it is about one.
    key: Option<Bytes>,
    /// It may wait for others, for as long as its client likes.
    waits: bool,
    /// It is a script that may turn out to be about other keys.
    confined: Option<Arc<Confined>>,
    bytes: usize,
    /// How long its reply is shows only once it is there.
    is_read: bool,
}

impl UnderWay {
    /// Prepares for a batch of commands, when no other is under way.
    pub(super) fn begin_batch(&mut self) {
        let expected = match self.longest {
            0 => self.expected,
            longest => Expected(longest.clamp(READ_BYTES_MIN, VALUE_BYTES_MAX)),
        };
        if self.begun.capacity() > KEPT_MAX {
            // An idle client keeps no memory of a long batch.
            *self = Self::default();
        }
        (self.expected, self.longest) = (expected, 0);
    }

    /// Whether the first command under way has to end before this one may begin: because both are
    /// about one key, or because one is about many keys and may get a large reply.
    pub(super) fn meets(&self, data: &Request, bytes: usize) -> bool {
        let key = one_key(data);
        let is_open = |it: &Begun| it.confined.as_ref().is_some_and(|it| !it.ran());
        let alone = key.is_none()
            || self.begun.front().is_some_and(|first| first.key.is_none())
            || self.begun.back().is_some_and(is_open);
        let reply_bytes = self.reply_bytes.load(Ordering::Relaxed) + self.reply_bytes_of(data);
        (alone && !self.begun.is_empty())
            || self.begun.len() >= UNDER_WAY_MAX
            || (self.bytes + bytes > HELD_BYTES_MAX && !self.begun.is_empty())
            || (reply_bytes > REPLIES_BYTES_MAX && !self.begun.is_empty())
            || key.is_some_and(|key| self.is_about(&key))
    }

    /// Whether any of them is about this key. They are few: to compare them all takes less than to keep
    /// a set of their keys.
    fn is_about(&self, key: &Bytes) -> bool {
        self.begun.iter().any(|it| it.key.as_ref() == Some(key))
    }

    /// Begins a command that meets no other. Returns a script that is about other keys than those
    /// that it names: it has done nothing, and is to begin when no other command is under way.
    pub(super) fn begin(
        &mut self,
        database: &Arc<Database>,
        data: Request,
        bytes: usize,
    ) -> Option<Request> {
        let key = one_key(&data);
        let waits = matches!(data.spec.run, Run::Blocking(_));
        let expected = self.reply_bytes_of(&data);
        let is_read =
            key.is_some() && data.confined.is_none() && data.spec.has(LONG) && !data.writes();
        let counted = Counted::new(&self.reply_bytes, expected, is_read);
        let mut confined = data.confined.clone();
        let mut running = run(Job { database: Arc::clone(database), request: data, counted });
        if confined.is_some() {
            // At once, since it shows here what the commands behind it have to wait for.
            match (&mut running).now_or_never() {
                Some(done @ Ran::Done(..)) => {
                    running = ready(done).boxed();
                    confined = None;
                }
                Some(Ran::Anew(job)) => {
                    self.reply_bytes.fetch_sub(expected, Ordering::Relaxed);
                    return Some(job.request.unconfined());
                }
                None => {}
            }
        }
        self.bytes += bytes;
        self.begun.push_back(Begun { key, waits, confined, bytes, is_read });
        self.replies.push_back(running);
        None
    }

    /// How many bytes the reply to a command about one key has at most, about; of a read, how many it is
    /// expected to have.
    fn reply_bytes_of(&self, request: &Request) -> usize {
        let spec = request.spec;
        let is_short = || {
            let gets = |option: &Bytes| option.eq_ignore_ascii_case(b"GET");
            !spec.has(LONG) || spec.name == "SET" && !request.args.iter().skip(3).any(gets)
        };
        match &request.confined {
            Some(_) => CONFINED_REPLY_BYTES_MAX,
            None if is_short() => SHORT_REPLY_BYTES,
            None if request.writes() => VALUE_BYTES_MAX,
            None => self.expected.0,
        }
    }

    /// The next reply, in their order, with what it takes. `is_written`: the replies before it do not wait
    /// to be written.
    async fn next(&mut self, is_written: bool) -> Option<(Reply, usize)> {
        if is_written && let Some(goes) = self.held_back.take() {
            goes.notify_one();
        }
        loop {
            match self.replies.next().await? {
                Ran::Done(reply, takes) => return Some((reply, takes)),
                Ran::Anew(job) if job.counted.is_first && !is_written => {
                    let goes = Arc::new(Notify::new());
                    self.held_back = Some(Arc::clone(&goes));
                    let waits = async move {
                        goes.notified().await;
                        run(*job).await
                    };
                    self.replies.push_front(waits.boxed());
                }
                // All before it have ended.
                Ran::Anew(job) => self.replies.push_front(run(*job)),
            }
        }
    }

    /// Waits for the first of them; false if there is none. Writes long replies on the way.
    pub(super) async fn end_one(
        &mut self,
        version: u8,
        stream: &mut TcpStream,
        outgoing: &mut BytesMut,
        holding: &Holding,
    ) -> io::Result<bool> {
        let waits = self.begun.front().is_some_and(|first| first.waits);
        if waits {
            // Replies to earlier commands are not to wait for this one.
            self.write(stream, outgoing, holding).await?;
            holding.replies(self.bytes);
        }
        let reply = match self.ready.pop_front() {
            Some(reply) => Some(reply),
            None if waits => tokio::select! {
                // First: a client that has left is not to take what others wait for.
                biased;
                left = has_left(stream) => return Err(left),
                () = holding.ended() => return Err(holds_too_much()),
                reply = self.next(true) => reply,
            },
            None => self.next(true).await,
        };
        if waits {
            holding.replies(0);
        }
        let (Some((reply, takes)), Some(begun)) = (reply, self.begun.pop_front()) else {
            return Ok(false);
        };
        reply.put(version, outgoing);
        self.bytes -= begun.bytes;
        self.reply_bytes.fetch_sub(takes, Ordering::Relaxed);
        if begun.is_read {
            self.longest = self.longest.max(takes);
        }
        if outgoing.len() > BATCH_BYTES_MAX {
            self.write(stream, outgoing, holding).await?;
        }
        Ok(true)
    }

    /// Waits for all of them.
    pub(super) async fn finish(
        &mut self,
        version: u8,
        stream: &mut TcpStream,
        outgoing: &mut BytesMut,
        holding: &Holding,
    ) -> io::Result<()> {
        while self.end_one(version, stream, outgoing, holding).await? {}
        Ok(())
    }

    /// Writes what is ready. Meanwhile commands under way make progress: others may wait for what
    /// they hold.
    pub(super) async fn write(
        &mut self,
        stream: &mut TcpStream,
        outgoing: &mut BytesMut,
        holding: &Holding,
    ) -> io::Result<()> {
        if outgoing.is_empty() {
            return Ok(());
        }
        let bytes = outgoing.split();
        holding.replies(bytes.len() + self.bytes + self.reply_bytes.load(Ordering::Relaxed));
        let mut writing = std::pin::pin!(timeout(REPLY_WITHIN, stream.write_all(&bytes)));
        loop {
            tokio::select! {
                biased;
                written = &mut writing => {
                    let late = |_| {
                        io::Error::new(io::ErrorKind::TimedOut, "it does not read its replies")
                    };
                    written.map_err(late)??;
                    BYTES.sent(bytes.len());
                    holding.replies(0);
                    return Ok(());
                }
                () = holding.ended(), if holding.is_counted() => return Err(holds_too_much()),
                Some(reply) = self.next(false) => self.ready.push_back(reply),
            }
        }
    }
}

/// The bytes that the reply to a command may take, or takes once it is there.
struct Counted {
    all: Arc<AtomicUsize>,
    expected: usize,
    /// It may turn out to be longer.
    is_read: bool,
    /// All before it have been answered.
    is_first: bool,
}

impl Counted {
    fn new(all: &Arc<AtomicUsize>, expected: usize, is_read: bool) -> Self {
        all.fetch_add(expected, Ordering::Relaxed);
        Self { all: Arc::clone(all), expected, is_read, is_first: false }
    }

    /// Counts a reply instead of what was expected, and returns what it takes; `None` if there is no room
    /// for it.
    fn takes(&self, reply: &Reply) -> Option<usize> {
        let takes = reply.size();
        let takes = if self.is_read { takes } else { takes.min(self.expected) };
        let others = self.all.load(Ordering::Relaxed) - self.expected;
        let fits = takes <= self.expected || self.is_first || others + takes <= REPLIES_BYTES_MAX;
        if fits {
            self.all.store(others + takes, Ordering::Relaxed);
        }
        fits.then_some(takes)
    }
}

/// Carries a command out.
fn run(mut job: Job) -> Execution {
    Box::pin(async move {
        // Outside of a transaction nothing is watched.
        let reply = job.database.execute(&job.request).await.unwrap_or(Reply::Null);
        if let Some(confined) = job.request.confined.clone().filter(|it| it.stopped()) {
            job.request.confined = confined.anew().map(Arc::new);
            return Ran::Anew(Box::new(job));
        }
        let Some(takes) = job.counted.takes(&reply) else {
            // It has only read.
            job.counted.is_first = true;
            return Ran::Anew(Box::new(job));
        };
        job.request.spec.counts.add(&reply);
        Ran::Done(reply, takes)
    })
}

/// The key of a command, if it is about exactly one and does not wait; the text of the tag, if it
/// has one, since all keys of a tag are one.
fn one_key(request: &Request) -> Option<Bytes> {
    match request.spec.run {
        Run::Blocking(_) => None,
        Run::Script => {
            request.confined.as_ref()?;
            request.spec.first_key(&request.args).as_ref().map(place_of)
        }
        _ => request.only_key().as_ref().map(place_of),
    }
}

/// What keys that live together have in common.
fn place_of(key: &Bytes) -> Bytes {
    super::room::tag(key).map_or_else(|| key.clone(), |tag| key.slice_ref(tag))
}

/// Has a script that names keys of one place run beside commands about others.
pub(super) fn confine(request: &mut Request) {
    if !matches!(request.spec.run, Run::Script) {
        return;
    }
    let keys = request.keys();
    if let Some((first, others)) = keys.split_first() {
        let place = place_of(first);
        let together = others.iter().all(|key| place_of(key) == place);
        request.confined = together.then(Arc::default);
    }
}
