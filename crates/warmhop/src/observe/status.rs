//! A peer's report about itself: the shapes behind the admin listener's JSON. They only grow.
//!
//! They can be read from a peer of another version too: a field that it does not send is empty, and
//! one that only it knows is passed over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A peer's view of itself and of the mesh.
///
/// ```
/// # fn main() -> serde_json::Result<()> {
/// use warmhop::status::Status;
///
/// let status: Status = serde_json::from_str(r#"{"peer": {"name": "peer-1"}, "later": 1}"#)?;
/// assert_eq!((status.peer.name.as_str(), status.apps.len()), ("peer-1", 0));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Status {
    /// This peer.
    pub peer: PeerStatus,
    /// Its apps, by name.
    pub apps: Vec<AppStatus>,
    /// The other peers that it knows, by name.
    pub peers: Vec<OtherPeer>,
    /// The name of the affinity cookie.
    pub cookie: String,
    /// Sessions here.
    pub sessions: SessionCounts,
    /// How many sessions this peer took over from others since its start.
    pub takeovers: u64,
    /// The peers that it was configured to join, in the order of the configuration, without those
    /// addresses that lead to this peer alone.
    pub seeds: Vec<SeedStatus>,
}

/// One seed, and the outcome of the last attempt to reach it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SeedStatus {
    /// `HOST:PORT`, as configured.
    pub seed: String,
    /// Whether it leads to another peer of the mesh.
    pub reached: bool,
    /// Why it does not; absent if it does, and before the first attempt has ended.
    pub error: Option<String>,
}

/// This peer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its name in cookies, for load balancers to follow: its name or an alias.
    pub route: String,
    /// Its SPIFFE id.
    pub id: String,
    /// This life of its process.
    pub incarnation: String,
    /// The version of warmhop.
    pub version: String,
    /// Milliseconds since its start.
    pub uptime_ms: u64,
    /// `serving`; `draining`; or `drained`: nothing is left here that could be given to another
    /// peer, and no request is under way in its apps.
    pub state: String,
    /// Where its front doors listen.
    pub http: Vec<String>,
    /// Where its mesh port can be reached.
    pub mesh: String,
    /// Its zone, if one is configured.
    pub zone: Option<String>,
    /// The time that sessions go by less this machine's clock, in milliseconds: sessions go by the
    /// median of all peers' clocks.
    pub clock_correction_ms: i64,
    /// When its certificate ends, in seconds since the Unix epoch.
    pub identity_not_after: u64,
    /// When the first of its front doors' certificates ends, in the same unit; absent if they have
    /// none.
    pub front_door_not_after: Option<u64>,
}

/// One app on this peer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct AppStatus {
    /// Its name.
    pub name: String,
    /// `cold`, `starting`, `ready`, `stopping`, `failed` or `paused`.
    pub state: String,
    /// How often a copy was started here.
    pub starts: u64,
    /// Milliseconds until a starting copy should be ready, or that a start would take, from the
    /// measured starts; absent before the first.
    pub eta_ms: Option<u64>,
    /// Milliseconds since the start under way began; absent where none is.
    pub starting_ms: Option<u64>,
    /// Requests that it is serving here.
    pub in_flight: u32,
    /// Requests that wait here for the first copy in the mesh to become ready.
    pub waiting: u64,
    /// The outcomes of the requests that clients sent to this peer.
    pub requests: RequestCounts,
    /// Why the last start failed or the copy ended, with its last lines of output.
    pub error: Option<String>,
    /// Where its sessions are kept: `portable`, `pinned` or `none`.
    pub session: String,
    /// The number of the start of the copy that serves; absent if none does.
    pub copy: Option<u64>,
    /// The number of the start of a new copy beside it; absent if none is under way.
    pub next: Option<u64>,
    /// The version that serves, or that a start would bring up; absent if none is named.
    pub version: Option<String>,
    /// The version that the configuration names, if it is another one.
    pub next_version: Option<String>,
    /// A digest of the app's configuration here, to compare with other peers'.
    pub digest: String,
    /// The peers on which the digest differs: their configurations differ.
    pub differs_on: Vec<String>,
}

/// Requests that arrived from clients at one peer since its start, by outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RequestCounts {
    /// Answered by the copy here.
    pub served: u64,
    /// Answered by another peer over a hop.
    pub hopped: u64,
    /// Answered with a problem, or with the starting page.
    pub refused: u64,
    /// Of all these, those that were answered with a status of 500 or above, except by the starting
    /// page, and those whose answer broke off after its head.
    pub failed: u64,
}

/// The outcomes of the requests that clients sent to one peer over the last minutes, app by app.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct History {
    /// Milliseconds that an interval lasts.
    pub interval_ms: u64,
    /// How many intervals are kept.
    pub intervals_max: u64,
    /// The upper bounds in milliseconds of the counts in [`HistoryInterval::heads`]. The last count
    /// has no bound.
    pub bounds_ms: Vec<f64>,
    /// Each app's intervals, oldest first; intervals without a request are left out.
    pub apps: BTreeMap<String, Vec<HistoryInterval>>,
}

/// One interval of an app's history.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct HistoryInterval {
    /// Milliseconds since it ended; 0 for the current one.
    pub ended_ms_ago: u64,
    /// Milliseconds that it has lasted.
    pub lasted_ms: u64,
    /// Requests that were answered, refusals and starting pages included.
    pub requests: u64,
    /// Of these, the requests that [`RequestCounts::failed`] counts.
    pub failed: u64,
    /// How many responses had their head within each of [`History::bounds_ms`] and not within the
    /// bound before it. Only requests that an app answered, here or by a hop, are counted.
    pub heads: Vec<u64>,
}

/// Another peer, as this one believes it to be.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct OtherPeer {
    /// Its name.
    pub name: String,
    /// Its name in cookies, for load balancers to follow: its name or an alias.
    pub route: String,
    /// Its SPIFFE id.
    pub id: String,
    /// The last known life of its process.
    pub incarnation: String,
    /// Whether it is believed to be alive.
    pub alive: bool,
    /// Whether it is draining.
    pub draining: bool,
    /// `alive`, `unlinked` (alive, as others report, and no link can be made to it), `suspect` (its
    /// link or heartbeat is silent), `draining` or `gone`.
    pub state: String,
    /// Why no link can be made to it, if others hear it; absent with a link.
    pub unlinked: Option<String>,
    /// The round-trip time of the link to it in microseconds; absent without a link.
    pub rtt_us: Option<u64>,
    /// How far its clock is ahead of this peer's machine's, in milliseconds; absent until it was
    /// measured.
    pub clock_ahead_ms: Option<i64>,
    /// Its zone, if it has one.
    pub zone: Option<String>,
    /// Where its mesh port can be reached.
    pub mesh: String,
    /// Where its front door can be reached, if it has one.
    pub http: Option<String>,
    /// The state of each of its apps, by name.
    pub apps: BTreeMap<String, String>,
    /// What else it announces of each of its apps, by name.
    pub copies: BTreeMap<String, CopyStatus>,
    /// Hops that this peer sent to it.
    pub hops_sent: u64,
    /// Hops that it sent here.
    pub hops_received: u64,
}

/// An app on another peer, as that peer last announced it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct CopyStatus {
    /// Milliseconds until a starting copy should be ready, or that a start would take there.
    pub eta_ms: Option<u64>,
    /// Requests in flight there.
    pub in_flight: u32,
    /// The version that serves there, or that a start would bring up; absent if none is named.
    pub version: Option<String>,
    /// A digest of the app's configuration there.
    pub digest: String,
}

/// Sessions on this peer.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SessionCounts {
    /// Sessions that this peer owns.
    pub owned: u64,
    /// Sessions that this peer holds a copy of, its own included.
    pub copies: u64,
    /// Sessions that need repair: the owner knows of too few living members, or a member knows of
    /// no living owner. Such a session may be lost with the next peer.
    pub short: u64,
    /// How many bytes they take, as far as that is counted.
    pub bytes: u64,
    /// How many bytes they may take.
    pub bytes_max: u64,
}

/// One session, without its contents.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SessionStatus {
    /// `APP/SID`.
    pub key: String,
    /// The peer that owns it, if that is known.
    pub owner: Option<String>,
    /// `ROUND.PROPOSER`.
    pub ballot: String,
    /// The number of its last committed change.
    pub version: u64,
    /// The peers of which a majority keeps it alive, most often those that hold copies. `gone:` and
    /// an incarnation's id names one that is dead or has forgotten the session. If a change of
    /// members can no longer be completed, these are the members of the set that has no majority.
    pub members: Vec<String>,
}

/// What this peer knew and decided for one request.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RequestTrace {
    /// The request's id.
    pub id: String,
    /// The peer that made this trace.
    pub peer: String,
    /// `entry` if the client arrived here, `hop` if another peer sent it.
    pub role: String,
    /// Its app, if one matched.
    pub app: Option<String>,
    /// The host that its client asked for, if it named one.
    pub host: Option<String>,
    /// Method and path, without the query.
    pub request: String,
    /// When it arrived, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// The response's status, once there is one.
    pub status: Option<u16>,
    /// The peer that ran the app.
    pub served_by: Option<String>,
    /// The peer that it was sent to last, whatever the outcome.
    pub sent_to: Option<String>,
    /// Its session, if it has one.
    pub session: Option<String>,
    /// Each decision and event, in order.
    pub steps: Vec<TraceStep>,
    /// Milliseconds from its arrival to the response's head.
    pub head_ms: Option<f64>,
}

/// One thing that happened to a request.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TraceStep {
    /// Microseconds since the request arrived.
    pub after_us: u64,
    /// What was decided or happened: `serve`, `hop`, `forward`, `wait`, `refuse`, `page`,
    /// `problem`, `cancelled` (the client left before there was a response), `cut-off` (the response
    /// broke off after its head) …
    pub what: String,
    /// The reason, in a sentence.
    pub why: String,
    /// The peers considered: name, state, requests in flight, the belief's age in ms.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<TraceCandidate>,
}

/// A peer that was considered for a request.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TraceCandidate {
    /// Its name.
    pub peer: String,
    /// The state of the app there, as believed.
    pub state: String,
    /// Requests in flight there, as last heard.
    pub in_flight: u32,
    /// How old the belief is, in milliseconds.
    pub age_ms: u64,
}
