//! Registers: replicated values that a key names, for embedding services and session stores.
//!
//! A register is a session whose id follows from its key, so that any peer finds it without a
//! token. An operation is a request of it, executed by the peer that owns it: it is forwarded, held
//! in line, replicated and taken over like any other, by the same code.

pub(crate) mod bounds;
pub(crate) mod operation;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use warmhop_core::config::{EffectsMode, SessionMode, StartMode};
use warmhop_core::ids::{
    AppName, Incarnation, PeerId, Position, RequestId, RequestKey, SessionId, SessionKey, WallTime,
};
use warmhop_core::problem::{Applied, ProblemKind};
use warmhop_core::route::Arrived;
use warmhop_core::session::census::{Census, Roll, Verdict};
use warmhop_core::session::entry::{ByKey, FORWARDS_MAX};
use warmhop_core::view::Liveness;

pub use self::bounds::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
pub use self::operation::When;
use crate::app::places::Waits;
use crate::app::slot::Slot;
use crate::app::{App, AppSpec, app_fn};
use crate::hop::{HopError, HopKind, HopRefusal};
use crate::http::body::{Body, BoxError};
use crate::links::{self, wire};
use crate::observe::recall::{REGISTER, Tracing};
use crate::request::call::{Call, CallBody};
use crate::request::node::Node;
use crate::request::own_register::Unfinished;
use crate::request::portable::{Portable, Subject};
use crate::request::problem::Problem;
use crate::request::registers::operation::{
    Answer, Ending, FRAME_BYTES_MAX, Held, Operation, parse,
};
use crate::request::served::Served;
use crate::sessions::store::STRIPES;

/// The fewest keys that one scan of a part of a peer's registers returns, if it has as many.
const LISTED_MIN: usize = 128;
/// The most keys that one call of [`Registers::keys`] returns.
const LISTED_MAX: usize = 8192;
/// Roughly how many bytes one peer lists at once: they fit a frame.
const LISTED_BYTES_MAX: usize = 512 * 1024;
/// The most bytes of a register in a list besides its key.
const LISTED_BYTES: usize = 64;
/// How many parts without a key one call of [`Registers::keys`] scans.
const EMPTY_PARTS_MAX: usize = 16;
/// How long to wait for the last peer's keys once all others have sent theirs.
const LAST_WITHIN: Duration = Duration::from_secs(2);
/// How many peers are asked for their keys at once.
const ASKED_AT_ONCE: usize = 16;
/// The bits of a position: see [`position`].
const POSITION_BITS: u32 = 53;
/// How often an operation starts over after its key's register was found lost.
const BEGUN_ANEW_MAX: u32 = 2;

/// The registers of one name in the mesh: a map from keys to values, replicated as sessions are.
///
/// Each operation is linearizable: it takes effect at one instant between its call and its answer,
/// and none takes effect twice. A value is owned by the peer that used it last, so that the next
/// operation there costs one round trip at most.
///
/// Values live in memory, on up to three peers: they survive the loss of any one of those at any
/// instant, but not that of two at once. A lost value is counted, logged and absent from then on.
/// Every value expires: at its own time, or after the idle time of the mesh's sessions, which any
/// use of it restarts.
///
/// A key that nobody knows counts as absent, or can be set for the first time, only if all known
/// peers but one say so and they are a majority. If two peers are silent, one of them must have
/// been silent for 30 s according to that majority; a seed that was never met counts as silent.
/// Otherwise the operation fails at once with [`RegisterError::Unavailable`]: the others may hold
/// the value. So two sides of a partition never make two values of one key. In a mesh that has
/// never had more than two peers, the last one serves alone.
///
/// ```
/// use warmhop::ids::{AppName, PeerId};
/// use warmhop::identity::Authority;
/// use warmhop::{Expires, Mesh, When};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let one = PeerId::new("one")?;
/// let identity = Authority::generate("example")?.issue(&one)?;
/// let carts = AppName::new("carts")?;
/// let mesh = Mesh::builder(identity).registers(carts.clone()).start().await?;
///
/// let carts = mesh.registers(&carts).ok_or("declared above")?;
/// let put = carts.put(b"ada", "1 book", Expires::Default, When::Absent).await?;
/// assert!(put.done);
/// let cart = carts.get(b"ada").await?.ok_or("put above")?;
/// assert_eq!((&cart.bytes[..], cart.version), (&b"1 book"[..], put.version));
///
/// // Read, change, write: tried again where somebody else was faster.
/// let changed = carts.put(b"ada", "2 books", Expires::Keep, When::Version(cart.version)).await?;
/// assert!(changed.done);
/// assert!(carts.delete(b"ada", When::Present).await?.done);
/// # mesh.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Registers {
    node: Arc<Node>,
    slot: Arc<Slot>,
    /// The digest of what the ids of all of them have in common.
    digest: ring::digest::Context,
}

/// The contents of a register.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Value {
    /// The bytes that were put.
    pub bytes: Bytes,
    /// Rises with every change of the register, also across a deletion and a later put.
    pub version: u64,
    /// When it expires.
    pub expires: SystemTime,
}

/// When a register's new contents expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expires {
    /// After the idle time of the mesh's sessions without a use. Every use restarts that time, a
    /// read to within a tenth of it.
    Default,
    /// After so long, from now.
    After(Duration),
    /// At this time, by [`Registers::now`]; never sooner, and less than a millisecond later.
    At(SystemTime),
    /// When the former contents would have expired, which may be after an idle time; as
    /// [`Expires::Default`] if it was empty.
    Keep,
}

/// The outcome of an operation that changes a register.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Change {
    /// The condition held, and the change is replicated.
    pub done: bool,
    /// The former contents, as far as the operation saw them: absent also if an answer was lost on
    /// the way and it is only known that the change was made.
    pub before: Option<Value>,
    /// The version of the new contents; 0 if it is empty.
    pub version: u64,
}

/// Why an operation on a register failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The key is longer than [`KEY_BYTES_MAX`]. Nothing was done.
    #[error("the key has {bytes} bytes, but at most {KEY_BYTES_MAX} are kept; hash longer ones")]
    KeyTooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The value is larger than [`VALUE_BYTES_MAX`]. Nothing was done.
    #[error(
        "the value has {bytes} bytes, but at most {VALUE_BYTES_MAX} are kept; store a reference instead"
    )]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
    },
    /// Nothing was done: try again.
    #[error("nothing was done: {0}")]
    Unavailable(String),
    /// Nothing was done: sessions take all the memory that they may. Reads and deletions still
    /// work.
    #[error("nothing was done: {0}")]
    Full(String),
    /// It may have been done: look before trying again.
    #[error("it may have been done: {0}")]
    OutcomeUnknown(String),
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Listing {
    /// In the order of their positions.
    registers: Vec<Listed>,
    /// The position from which on there is more; absent at the end.
    next: Option<u64>,
    /// The processes that this peer knows, and which of them may lack recent contents because they
    /// replaced a former process. Absent if it keeps no list.
    census: Option<Census>,
}

/// A register of which a peer holds a record.
#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    sid: SessionId,
    /// Of several peers' records of one register the one with the highest position counts: peers
    /// that are no longer members keep their old records.
    p: Position,
    /// Its key; absent if the record holds nothing, or no longer does.
    key: Option<Vec<u8>>,
}

impl std::fmt::Debug for Registers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registers({})", self.slot.name())
    }
}

impl Registers {
    pub(crate) fn new(node: Arc<Node>, slot: Arc<Slot>) -> Self {
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        let name = slot.name().as_str().as_bytes();
        digest.update(&[&b"register"[..], &[0], name, &[0]].concat());
        Self { node, slot, digest }
    }

    /// Does `work`, whose operations on registers send to other peers together: what they send while it is
    /// polled once leaves in one piece for each peer. Worth it for a task that begins many operations at
    /// once, as for a pipeline of commands.
    pub fn together<F: Future>(work: F) -> impl Future<Output = F::Output> {
        links::together::together(work)
    }

    /// The time by which values begin and expire: the median of the peers' clocks, which this
    /// machine's own may differ from.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        let since = Duration::from_millis(self.node.clock.wall().0);
        UNIX_EPOCH.checked_add(since).unwrap_or_else(SystemTime::now)
    }

    /// The register's contents; `None` if it is empty. A key that was never set takes no memory.
    ///
    /// # Errors
    /// See [`RegisterError`].
    pub async fn get(&self, key: &[u8]) -> Result<Option<Value>, RegisterError> {
        let answer = self.ask(key, &Operation::Get, false).await?;
        Ok(answer.and_then(|answer| answer.before).map(Value::from))
    }

    /// The contents of this peer's own copy of the register, if it keeps one: a free read that may
    /// be stale. It is good enough to prepare a change that [`When::Version`] then checks.
    #[must_use]
    pub fn peek(&self, key: &[u8]) -> Option<Value> {
        if key.len() > KEY_BYTES_MAX {
            return None;
        }
        let session = SessionKey { app: self.slot.name().clone(), sid: self.sid(key) };
        let now = self.node.clock.wall();
        self.node.store.read(&session, |machine| {
            let (state, expiry) = machine.state().filter(|(_, expiry)| *expiry > now)?;
            let held = parse(state)?;
            let expires = UNIX_EPOCH.checked_add(Duration::from_millis(expiry.0))?;
            let bytes = Bytes::copy_from_slice(held.bytes);
            Some(Value { bytes, version: held.version, expires })
        })?
    }

    /// Scans the copies of registers that this peer keeps, whichever peer owns them, a part at a
    /// time: `pick` gets a register's key and the copy's contents, which may be stale. `None` after
    /// the last part.
    #[must_use]
    pub fn copies_here<R>(
        &self,
        part: usize,
        pick: impl Fn(&[u8], &[u8]) -> Option<R>,
    ) -> Option<Vec<R>> {
        if part >= STRIPES {
            return None;
        }
        let now = self.node.clock.wall();
        Some(self.node.store.records_in(part, self.slot.name(), |_, machine| {
            let (state, _) = machine.state().filter(|(_, expiry)| *expiry > now)?;
            let held = parse(state)?;
            pick(held.key, held.bytes)
        }))
    }

    /// Sets the register to `bytes`, `when` the condition holds.
    ///
    /// # Errors
    /// See [`RegisterError`]; a condition that does not hold is not an error.
    pub async fn put(
        &self,
        key: &[u8],
        bytes: impl AsRef<[u8]>,
        expires: Expires,
        when: When,
    ) -> Result<Change, RegisterError> {
        let bytes = bytes.as_ref();
        if bytes.len() > VALUE_BYTES_MAX {
            return Err(RegisterError::TooLarge { bytes: bytes.len() });
        }
        let begins = matches!(when, When::Always | When::Absent);
        let expires = ending(expires, self.node.clock.wall());
        self.change(key, &Operation::Put { key, bytes, expires, when }, begins).await
    }

    /// Changes when the register's contents expire, `when` the condition holds. An empty register
    /// stays as it is, and `done` is false.
    ///
    /// # Errors
    /// See [`RegisterError`]; a condition that does not hold is not an error.
    pub async fn expire(
        &self,
        key: &[u8],
        expires: Expires,
        when: When,
    ) -> Result<Change, RegisterError> {
        let expires = ending(expires, self.node.clock.wall());
        self.change(key, &Operation::Expire { expires, when }, false).await
    }

    /// Empties the register, `when` the condition holds. `done` is false if it was empty.
    ///
    /// # Errors
    /// See [`RegisterError`]; a condition that does not hold is not an error.
    pub async fn delete(&self, key: &[u8], when: When) -> Result<Change, RegisterError> {
        self.change(key, &Operation::Delete { when }, false).await
    }

    /// Some keys, about `count` of them, and the cursor to continue with, below 2^53: 0 begins and
    /// 0 ends. Every key that exists from the first call to the last is listed, once; others may
    /// be, such as one that was deleted a moment ago. A call may return no key and a cursor to
    /// continue with.
    ///
    /// # Errors
    /// [`RegisterError::Unavailable`] if two peers or more cannot be asked.
    pub async fn keys(
        &self,
        cursor: u64,
        count: usize,
    ) -> Result<(Vec<Bytes>, u64), RegisterError> {
        let count = count.clamp(LISTED_MIN, LISTED_MAX);
        let mut from = cursor;
        for _ in 0..EMPTY_PARTS_MAX {
            let listings = self.list_everywhere(from, count).await?;
            // After the position where the first of them stopped, the lists are incomplete.
            let next = listings.iter().filter_map(|listing| listing.next).min();
            let mut newest = BTreeMap::new();
            for it in listings.into_iter().flat_map(|listing| listing.registers) {
                let at = position(it.sid);
                if next.is_some_and(|next| at >= next) {
                    continue;
                }
                match newest.entry((at, it.sid)) {
                    Entry::Vacant(free) => {
                        free.insert((it.p, it.key));
                    }
                    Entry::Occupied(mut known) if known.get().0 < it.p => {
                        known.insert((it.p, it.key));
                    }
                    Entry::Occupied(_) => {}
                }
            }
            let keys = newest.into_values().filter_map(|(_, key)| key.map(Bytes::from));
            let keys: Vec<Bytes> = keys.collect();
            match next {
                Some(next) if keys.is_empty() => from = next,
                next => return Ok((keys, next.unwrap_or(0))),
            }
        }
        Ok((Vec::new(), from))
    }

    /// The peers' lists, from a position on. All peers are asked for the same part: at least one
    /// peer that holds a key has its newest change, whichever peer owns it at the time, but nobody knows
    /// which. If sessions have several copies, at least two peers hold every acknowledged change,
    /// so that one peer may stay silent.
    async fn list_everywhere(
        &self,
        from: u64,
        count: usize,
    ) -> Result<Vec<Listing>, RegisterError> {
        let (view, census) = (self.node.view(), self.node.store.census());
        let mut roll = Roll::new(self.node.incarnation, &census);
        // A silent peer would only delay the answer.
        let others = view.live_peers().filter(|(_, it)| it.alive == Liveness::Alive);
        let others: Vec<(PeerId, Incarnation)> =
            others.map(|(peer, it)| (peer.clone(), it.news.incarnation)).collect();
        let mut listings = vec![list(&self.node, &self.slot, from, count)];
        let mut left = others.len();
        let mut failed = None;
        let mut asked = stream::iter(others)
            .map(|(peer, it)| async move { (it, self.list_at(&peer, from, count).await) })
            .buffer_unordered(ASKED_AT_ONCE);
        let single = self.node.store.policy().copies <= 1;
        let enough = |roll: &Roll| roll.verdict(true) == Verdict::Enough && !single;
        while left > 0 {
            let next = if left == 1 && enough(&roll) {
                tokio::time::timeout(LAST_WITHIN, asked.next()).await.unwrap_or(None)
            } else {
                asked.next().await
            };
            left -= 1;
            match next {
                Some((it, Ok(listing))) => {
                    let census = listing.census.clone();
                    let census = census.unwrap_or(Census { pair: true, ..Census::default() });
                    roll.answer(it, Some(&census));
                    listings.push(listing);
                }
                Some((_, Err(error))) => failed = Some(error),
                None => break,
            }
        }
        let missed = roll.open().next().is_some();
        if enough(&roll) || single && !missed {
            return Ok(listings);
        }
        Err(failed.unwrap_or_else(|| {
            let why = "too few peers answer that could know of every key; try again";
            RegisterError::Unavailable(why.to_owned())
        }))
    }

    async fn change(
        &self,
        key: &[u8],
        operation: &Operation<'_>,
        begins: bool,
    ) -> Result<Change, RegisterError> {
        let none = Change::default();
        let Some(answer) = self.ask(key, operation, begins).await? else { return Ok(none) };
        let before = answer.before.map(Value::from);
        Ok(Change { done: answer.done, before, version: answer.version })
    }

    /// Sends an operation to its register's owner and returns the answer; `None` if there is no
    /// register.
    async fn ask(
        &self,
        key: &[u8],
        operation: &Operation<'_>,
        begins: bool,
    ) -> Result<Option<Answer>, RegisterError> {
        if key.len() > KEY_BYTES_MAX {
            return Err(RegisterError::KeyTooLong { bytes: key.len() });
        }
        let sid = self.sid(key);
        let session = SessionKey { app: self.slot.name().clone(), sid };
        // One number of sixteen bytes is drawn with fewer steps than sixteen of one.
        let rid = RequestKey(rand::random::<u128>().to_le_bytes());
        let node = &self.node;
        let mut begun = None;
        if let Some(here) = node.operates_here(&session, rid, operation) {
            match here.map_err(failed)?.answer(node, operation).await {
                Ok(answered) => return answered.map(Some).map_err(failed),
                Err(unfinished) => begun = Some(unfinished),
            }
        }
        // Boxed, since it is large, and the owner's own operations need none of it.
        Box::pin(self.ask_anywhere(&session, (rid, begun), operation, begins)).await
    }

    /// Sends an operation to its register's owner, or goes on with one that has `begun` here.
    async fn ask_anywhere(
        &self,
        session: &SessionKey,
        (rid, mut begun): (RequestKey, Option<Unfinished>),
        operation: &Operation<'_>,
        begins: bool,
    ) -> Result<Option<Answer>, RegisterError> {
        let body = encode(operation)?;
        let reads = matches!(operation, Operation::Get);
        // An operation whose answer was lost may run again only if it is certain that it was not
        // applied and forgotten since. A change known to have been chosen before can show that; if
        // none is known, only a register that has forgotten nothing yet can.
        let seen = begun.as_ref().map(Unfinished::seen);
        let seen = seen.unwrap_or_else(|| self.node.store.surely_chosen(session));
        let portable = Portable {
            slot: &self.slot,
            rid,
            fingerprint: 0,
            keyed: false,
            seen: Some(seen),
            arrived: Arrived::AtFrontDoor,
            hops_left: FORWARDS_MAX,
            drawn: false,
            version: None,
        };
        let mut begun_anew = 0;
        loop {
            let mut call = self.call(method_of(operation), body.clone());
            let node = &self.node;
            let mut tracing =
                Tracing::begin(&node.traces, call.id.clone(), &node.me, REGISTER, |line| {
                    // Writing to a string cannot fail.
                    let _ = write!(line, "{} {session}", call.method);
                });
            tracing.app(self.slot.name());
            let by_key = ByKey { sid: session.sid, begins };
            let served = match begun.take() {
                Some(begun) => {
                    begun.serve_on(node, &portable, &mut call, by_key, &mut tracing).await
                }
                None => {
                    let subject = Subject::Key(by_key);
                    node.serve_portable(&portable, &mut call, subject, &mut tracing).await
                }
            };
            match served {
                Ok(served) => return answer_in(served).await.map(Some),
                Err(problem) => match problem.kind {
                    ProblemKind::Absent => return Ok(None),
                    ProblemKind::SessionLost => {
                        tracing::debug!(register = %session, "the register's value is lost, because too many of its holders are gone; its key is free");
                        let peers = node.whom_to_ask(session);
                        node.store.with(session, false, |machine, ctx, out| {
                            machine.bury(ctx, &peers, out);
                        });
                        begun_anew += 1;
                        // Another may have been begun under its key since what is left of this one was
                        // written, which hid it here.
                        if begun_anew <= BEGUN_ANEW_MAX {
                            continue;
                        }
                        if reads || !begins {
                            return Ok(None);
                        }
                        return Err(RegisterError::Unavailable(problem.detail));
                    }
                    ProblemKind::AppliedAnswerLost => {
                        return Ok(Some(Answer { done: true, version: 0, before: None }));
                    }
                    _ => return Err(failed(problem)),
                },
            }
        }
    }

    async fn list_at(
        &self,
        peer: &PeerId,
        from: u64,
        count: usize,
    ) -> Result<Listing, RegisterError> {
        let operation = Operation::List { from, count: count as u64 };
        let mut call = self.call(Method::GET, encode(&operation)?);
        let node = &self.node;
        let mut tracing =
            Tracing::begin(&node.traces, call.id.clone(), &node.me, REGISTER, |line| {
                ["LIST ", self.slot.name().as_str()].iter().for_each(|it| line.push_str(it))
            });
        let asked = node.ask(&self.slot, peer, &mut call, HopKind::Plain, &mut tracing).await;
        let unavailable = |why: String| {
            RegisterError::Unavailable(format!("{peer} could not be asked for its keys: {why}"))
        };
        let reply = match asked {
            Ok(reply) => reply,
            // It keeps copies for other peers, which list them.
            Err(HopError::Refused(HopRefusal::UnknownApp, ..)) => return Ok(Listing::default()),
            Err(HopError::Refused(why, ..)) => return Err(unavailable(why.label().to_owned())),
            Err(HopError::Unreachable(error, _)) => return Err(unavailable(error.to_string())),
            Err(HopError::Broken(why)) => return Err(unavailable(why)),
        };
        let body = collected(reply.response.into_body()).await.map_err(unavailable)?;
        decode(&body)
    }

    fn call(&self, method: Method, body: Bytes) -> Call {
        Call {
            id: random_id(),
            method,
            target: PathAndQuery::from_static("/"),
            fields: HeaderMap::new(),
            body: CallBody::Whole(body),
            upgrade: None,
            on_upgrade: None,
            may_have_run: false,
            failed_at: None,
            failures: 0,
            attempt: rand::random(),
            waits: Waits::default(),
            entered: None,
            version: None,
            counts_on: None,
            interim: None,
            moves_first: false,
            lost: None,
        }
    }

    /// The session that a key names: a digest of both names, so that keys spread evenly and nobody
    /// can choose where one is kept.
    fn sid(&self, key: &[u8]) -> SessionId {
        let mut digest = self.digest.clone();
        digest.update(key);
        let digest = digest.finish();
        SessionId(digest.as_ref()[..16].try_into().expect("a digest has 32 bytes"))
    }
}

impl From<Held> for Value {
    fn from(held: Held) -> Self {
        let expires = UNIX_EPOCH.checked_add(Duration::from_millis(held.expires));
        let expires = expires.unwrap_or_else(SystemTime::now);
        Self { bytes: held.bytes, version: held.version, expires }
    }
}

/// A request's id of 32 hexadecimal digits.
fn random_id() -> RequestId {
    let random: [u8; 16] = rand::random();
    let mut digits = [0; 32];
    for (two, byte) in digits.chunks_exact_mut(2).zip(random) {
        let digit = |half: u8| b"0123456789abcdef"[usize::from(half)];
        two.copy_from_slice(&[digit(byte >> 4), digit(byte & 0xf)]);
    }
    let text = std::str::from_utf8(&digits).expect("digits are text");
    RequestId::new(text).expect("32 hexadecimal digits make an id")
}

fn ending(expires: Expires, now: WallTime) -> Ending {
    match expires {
        Expires::Default => Ending::Idle,
        Expires::After(span) => Ending::At(now.after(span).0),
        Expires::At(time) => Ending::At(millis(time)),
        Expires::Keep => Ending::Keep,
    }
}

/// Milliseconds since the Unix epoch, rounded up: nothing expires too soon.
fn millis(time: SystemTime) -> u64 {
    let span = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn method_of(operation: &Operation<'_>) -> Method {
    match operation {
        Operation::Get | Operation::List { .. } => Method::GET,
        Operation::Delete { .. } => Method::DELETE,
        Operation::Put { .. } | Operation::Expire { .. } => Method::POST,
    }
}

/// The answer of a register's owner, here or over a hop.
async fn answer_in(served: Served) -> Result<Answer, RegisterError> {
    if served.response.status() != StatusCode::OK {
        let said = format!("its owner answered {}", served.response.status());
        return Err(RegisterError::Unavailable(said));
    }
    if let Some(answer) = served.answer {
        return Ok(answer);
    }
    let body =
        collected(served.response.into_body()).await.map_err(RegisterError::OutcomeUnknown)?;
    decode(&body)
}

/// Whether an operation that failed may have been done.
fn failed(problem: Problem) -> RegisterError {
    match problem.kind {
        // A register's client does not know the keys that identify HTTP requests.
        ProblemKind::OutcomeForgotten => {
            let detail = "it may have been applied too long ago to tell";
            RegisterError::OutcomeUnknown(detail.to_owned())
        }
        ProblemKind::SessionMemoryFull => RegisterError::Full(problem.detail),
        kind if kind.applied() != Applied::No => RegisterError::OutcomeUnknown(problem.detail),
        _ => RegisterError::Unavailable(problem.detail),
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Bytes, RegisterError> {
    wire::encode(value, FRAME_BYTES_MAX)
        .map_err(|error| RegisterError::Unavailable(error.to_string()))
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, RegisterError> {
    wire::decode::<T, { 4 * FRAME_BYTES_MAX }>(bytes)
        .map_err(|error| RegisterError::OutcomeUnknown(error.to_string()))
}

async fn collected(body: Body) -> Result<Bytes, String> {
    let limited = http_body_util::Limited::new(body, 4 * FRAME_BYTES_MAX);
    let whole = limited.collect().await.map_err(|error| error.to_string())?;
    Ok(whole.to_bytes())
}

/// A register's position among all: the beginning of its session's id, in as many bits as a cursor
/// may have, which clients read as a signed number, or as a JavaScript number.
fn position(sid: SessionId) -> u64 {
    let bytes = sid.0[..8].try_into().expect("an id has 16 bytes");
    u64::from_be_bytes(bytes) >> (u64::BITS - POSITION_BITS)
}

/// The registers of which this peer holds a record, from a position on, whether it owns them or not.
fn list(node: &Node, slot: &Slot, from: u64, count: usize) -> Listing {
    let now = node.clock.wall();
    let census = Census::clone(&node.store.census());
    let mut listing = Listing { census: Some(census), ..Listing::default() };
    // Empty registers were not asked for: only their bytes are bounded.
    let (mut keys, mut bytes) = (0, 0);
    // The store's parts are in the order of positions, too.
    let part = POSITION_BITS - STRIPES.ilog2();
    let first = usize::try_from(from >> part).unwrap_or(usize::MAX);
    for stripe in node.store.stripes().skip(first) {
        let is_full = keys >= count || bytes >= LISTED_BYTES_MAX;
        if is_full {
            listing.next = Some((stripe as u64) << part);
            return listing;
        }
        let mut found = node.store.records_in(stripe, slot.name(), |sid, machine| {
            let p = machine.newest_at().filter(|_| position(sid) >= from)?;
            if machine.was_replaced(node.incarnation) {
                return None;
            }
            let held = machine.state().filter(|(_, expiry)| *expiry > now);
            let key = held.and_then(|(state, _)| parse(state)).map(|held| held.key.to_vec());
            Some(Listed { sid, p, key })
        });
        found.sort_unstable_by_key(|it| it.sid);
        for it in found {
            let at = position(it.sid);
            let is_full = keys >= count || bytes >= LISTED_BYTES_MAX;
            // Registers at one position stay together, since some of them would be skipped
            // otherwise.
            if is_full && listing.registers.last().is_none_or(|last| position(last.sid) != at) {
                listing.next = Some(at);
                return listing;
            }
            keys += usize::from(it.key.is_some());
            bytes += LISTED_BYTES + it.key.as_ref().map_or(0, Vec::len);
            listing.registers.push(it);
        }
    }
    listing
}

/// The app-like service that executes operations on this peer.
pub(crate) fn keeper(name: AppName, node: Weak<Node>) -> (AppSpec, impl App + use<>) {
    let mut spec = AppSpec::new(name.clone());
    spec.policy.session = SessionMode::Portable;
    spec.policy.effects = EffectsMode::SessionOnly;
    spec.policy.start = StartMode::AtBoot;
    let app = app_fn(move || {
        let (node, name) = (Weak::clone(&node), name.clone());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (node, name) = (Weak::clone(&node), name.clone());
            async move { answer(&node, &name, request).await }
        });
        std::future::ready(Ok::<_, std::convert::Infallible>(service))
    });
    (spec, app)
}

async fn answer(
    node: &Weak<Node>,
    name: &AppName,
    request: Request<Body>,
) -> Result<Response<Body>, BoxError> {
    let body = collected(request.into_body()).await?;
    let node = node.upgrade().ok_or("this peer is ending")?;
    let operation: Operation<'_> = wire::decode_borrowed::<_, FRAME_BYTES_MAX>(&body)?;
    let Operation::List { from, count } = operation else {
        return Err("an operation on one register is executed in its turn".into());
    };
    let slot = node.slot(name).ok_or("no such registers")?;
    let count = usize::try_from(count).unwrap_or(LISTED_MAX).clamp(1, LISTED_MAX);
    let bytes = encode(&list(&node, &slot, from, count))?;
    Ok(Response::new(Body::from(bytes)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests;
