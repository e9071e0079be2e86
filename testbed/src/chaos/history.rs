//! The records of a run: what clients asked and saw, what apps ran, and which faults were made. The
//! judge uses these records and nothing else.
//!
//! Each client works on one session at a time, which holds a list of items. An append adds one
//! item that occurs nowhere else, and its answer is the whole list; a read's answer is the whole
//! list too. So every answer shows the session's history up to a point, and the answers of one
//! session can be compared.

use serde::{Deserialize, Serialize};

use super::leases::{Hold, LetIn};

/// Microseconds since the run began, on the one monotonic clock of the process that records.
pub type Micros = u64;

/// One client's session, as the client counts: when it learns that its session is lost, it begins
/// another and records that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Thread {
    /// Which client.
    pub client: u32,
    /// Its first session is 0.
    pub session: u32,
}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Adds an item that occurs nowhere else.
    Append {
        /// The item.
        item: String,
        /// It carried an `Idempotency-Key`, the same one at each attempt.
        keyed: bool,
        /// How long the app was asked to take, in milliseconds.
        slow_ms: u64,
    },
    /// Asks for the list.
    Read,
    /// Sends a line over an open WebSocket and waits for its echo. It changes nothing.
    Echo,
}

/// The outcome of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The app's answer: for appends and reads the session's list as the app saw it.
    Answered {
        /// The list after the operation; empty for an echo.
        items: Vec<String>,
    },
    /// An answer of the mesh in place of the app's.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The problem's `type`, or its `title`, or nothing.
        problem: String,
        /// The mesh said that the session is lost (the field or the problem that marks it).
        lost: bool,
        /// The mesh said that it went on under another session (`Warmhop-Session-Forked`).
        forked: bool,
    },
    /// No connection was made: no byte of the request was sent.
    NotSent {
        /// The error.
        error: String,
    },
    /// The connection broke, or the client's time was up, before an answer was whole.
    Broken {
        /// The error.
        error: String,
    },
}

/// One attempt of one operation, written when it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// Whose attempt it is.
    pub thread: Thread,
    /// The app that it asked for.
    pub app: String,
    /// The operation's number within its thread; a repeat has the same one.
    pub number: u32,
    /// The number of the attempt, from 0.
    pub attempt: u32,
    /// What it asked for.
    pub operation: Operation,
    /// The peer whose front door it used.
    pub entry: String,
    /// The peer that ran the app, where the answer names it.
    pub ran_at: Option<String>,
    /// The request's id, where the answer names it.
    pub request: Option<String>,
    /// When it was sent.
    pub began: Micros,
    /// When its outcome was known.
    pub ended: Micros,
    /// What came of it.
    pub outcome: Outcome,
    /// The answer was marked as one of a session that forked.
    pub forked: bool,
}

/// One run of an append, written by the app before it answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Run {
    /// The peer beside which the app runs.
    pub peer: String,
    /// The item that it added.
    pub item: String,
    /// How many items the session held before.
    pub before: u64,
    /// Milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
}

/// What a client of the Redis-speaking endpoint asked one key for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asked {
    /// What it holds.
    Get,
    /// To hold this, which nobody else sets.
    Set {
        /// The value.
        value: String,
    },
    /// To hold this if it holds nothing (`SET … NX`), as locks are taken.
    SetIfAbsent {
        /// The value.
        value: String,
    },
    /// To count up by one.
    Increment,
    /// A transaction (`WATCH`, `GET`, `MULTI`, the change, `EXEC`) that read the first and makes it
    /// the second, or nothing.
    Replace {
        /// What it read.
        from: String,
        /// What it is to hold.
        to: Option<String>,
    },
    /// To hold nothing.
    Delete,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Came {
    /// What it holds.
    Value {
        /// Absent where it holds nothing.
        value: Option<String>,
    },
    /// Whether it was done.
    Done {
        /// It was.
        done: bool,
    },
    /// What it counts.
    Number {
        /// The sum.
        number: i64,
    },
    /// Nothing was done, by the answer or because the request could not be sent.
    Refused {
        /// The answer.
        error: String,
    },
    /// It may have been done.
    Unknown {
        /// The answer, or why there was none.
        error: String,
    },
}

/// One operation on a key, written when it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyOperation {
    /// Which client.
    pub client: u32,
    /// The key.
    pub key: String,
    /// The peer whose endpoint it used.
    pub door: String,
    /// When it was sent.
    pub began: Micros,
    /// When its outcome was known.
    pub ended: Micros,
    /// What it asked for.
    pub asked: Asked,
    /// What came of it.
    pub came: Came,
}

/// An idle session that was not whole in time after a fault.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Orphan {
    /// Its key.
    pub key: String,
    /// The client that began it.
    pub thread: Thread,
    /// The position of the fault.
    pub fault: usize,
    /// When it was given up.
    pub at: Micros,
    /// What each peer reported about it.
    pub reports: String,
}

/// Something done to the mesh, and how long it lasted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fault {
    /// Its kind as `--faults` names it.
    pub kind: String,
    /// Which peers it hit.
    pub peers: Vec<String>,
    /// What was done, in a few words.
    pub what: String,
    /// When it began.
    pub began: Micros,
    /// When it was undone (a peer runs again, a link is whole again).
    pub ended: Micros,
    /// When every peer saw every other again and no session lacked copies; or, where that never
    /// came, when the run ended.
    pub whole: Micros,
    /// So many holders were hit at once that sessions may be lost; they must be reported lost.
    pub may_lose: bool,
    /// The failpoint with which a peer ran.
    pub armed: Option<Armed>,
}

impl Fault {
    /// Its kind, with the failpoint where it was one.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.armed {
            Some(armed) => format!("{} {}", self.kind, armed.point),
            None => self.kind.clone(),
        }
    }
}

/// A failpoint with which a peer ran.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Armed {
    /// Its name.
    pub point: String,
    /// At which pass the peer was to end.
    pub pass: u64,
    /// Whether it ended there; otherwise the time was up before.
    pub tripped: bool,
}

/// How many sessions a peer owned, as its admin listener reported now and then.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sample {
    /// When.
    pub at: Micros,
    /// Which peer was asked.
    pub peer: String,
    /// Absent where the peer did not answer.
    pub owned: Option<u64>,
    /// Copies held there.
    pub copies: Option<u64>,
}

/// A whole run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The seed with which it can be repeated.
    pub seed: u64,
    /// When it began, in milliseconds since the Unix epoch, which is how the apps count.
    pub began_unix_ms: u64,
    /// Why it ended before its time, if it did.
    pub cut_short: Option<String>,
    /// The peers' names.
    pub peers: Vec<String>,
    /// How long it took.
    pub length: Micros,
    /// What the clients saw, in the order of `ended`.
    pub attempts: Vec<Attempt>,
    /// What the apps ran.
    pub runs: Vec<Run>,
    /// What was done to the mesh.
    pub faults: Vec<Fault>,
    /// Ownership over time.
    pub samples: Vec<Sample>,
    /// What clients saw of keys.
    pub keys: Vec<KeyOperation>,
    /// Locks that clients held.
    pub holds: Vec<Hold>,
    /// Clients that limiters let in.
    pub let_in: Vec<LetIn>,
    /// Idle sessions that were looked after.
    pub idle: u64,
    /// Those that were not whole in time.
    pub orphans: Vec<Orphan>,
}
