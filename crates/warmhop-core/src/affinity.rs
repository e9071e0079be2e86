//! The affinity cookie: which peer a client should come back to, and where its sessions are.
//!
//! Owns the token's layout, its minting and reading, and the rule of when a session moves to where
//! its client arrives ([`MoveCounter`]). Refuses to know the fields that a token travels in
//! ([`cookie`](crate::cookie)) and keys: the caller passes an [`Authenticator`], whose key belongs
//! to one cluster and to cookies alone. A token is a hint: it proves nothing but the session's id
//! (I16), and a bad one is a counted [`Reject`], never an error.
//!
//! The cookie's value is `<opaque>.<route>`. The route is the peer's name or its alias
//! ([`RouteName`]), for load balancers to read or rewrite, and is not trusted. The opaque part is the
//! base64url, without padding, of
//!
//! ```text
//! version   1 byte    1, or 2 for the same under a veil: all that follows, but the tag, is masked
//! count     1 byte    1 to 4 entries, the most recently used first:
//!   expiry    8 bytes   milliseconds since the Unix epoch
//!   app       1 byte    length, 1 to 64, then so many bytes of the name
//!   sid      16 bytes
//!   kind      1 byte    0 portable, 1 pinned; 2 more where a version follows:
//!     version   1 byte    length, 1 to 64, then so many bytes of the app's version
//!   then for a portable session
//!     owner    16 bytes   incarnation
//!     n         8 bytes   the number last seen committed
//!     now                 a set of members:
//!       c         4 bytes
//!       stamp     8 bytes
//!       count     1 byte    1 to 3, then so many incarnations of 16 bytes, ascending
//!     seal      1 byte    0 or 1; after 1, another set of members: those before
//!   or for a pinned one
//!     peer      1 byte    length, 1 to 32, then so many bytes of the name or the alias
//!     life     16 bytes   its incarnation
//! tag      16 bytes    over all of the above
//! ```
//!
//! Numbers are big-endian. The version of the app is the one that served the session last, or a
//! newer one that served it before. One token has one form of each version: other bytes that decode
//! to the same entries are refused. Both versions are accepted whatever is minted here: peers of one
//! mesh may mint different ones while their configurations change.

mod route_name;
mod veil;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use arrayvec::ArrayVec;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::config::SessionPolicy;
use crate::ids::{AppName, Incarnation, Now, PeerId, SessionId, WallTime};
use crate::session::message::{Config, Members};
use crate::version::AppVersion;
use crate::view::{AppState, Liveness, PeerBelief, View};

pub use self::route_name::peer_called;
pub use crate::cookie::RouteName;

/// The most entries of a token: apps of one host. The least recently used one is dropped first.
pub const ENTRIES_MAX: usize = 4;
/// The most bytes of a cookie's value: four of the largest entries take 1,668, and a browser
/// keeps 4,096.
pub const VALUE_BYTES_MAX: usize = 1_750;

const VERSION: u8 = 1;
/// Of a token that only holders of the key can read.
const VEILED: u8 = 2;
const TAG_BYTES: usize = 16;
const PORTABLE: u8 = 0;
const PINNED: u8 = 1;
/// Added to the kind of an entry that names a version.
const OF_A_VERSION: u8 = 2;

/// Makes and checks the token's tag, under a key of the cluster that serves nothing else.
pub trait Authenticator {
    /// The tag of `bytes`, such as HMAC-SHA-256 cut to 16 bytes (RFC 2104 section 5).
    fn tag(&self, bytes: &[u8]) -> [u8; 16];
    /// Whether `tag` is that of `bytes`, in a time that does not depend on either.
    fn verify(&self, bytes: &[u8], tag: &[u8; 16]) -> bool;
    /// How many keys there are under which tags are accepted.
    fn keys(&self) -> usize {
        1
    }
    /// The tag of `bytes` under the key of this number; that of number 0 makes tags.
    fn tag_by(&self, key: usize, bytes: &[u8]) -> [u8; 16] {
        let _ = key;
        self.tag(bytes)
    }
}

/// The contents of the cookie.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Token {
    /// One entry per app of the host, at most [`ENTRIES_MAX`], the most recently used first.
    pub entries: Vec<Entry>,
}

/// One session of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The app.
    pub app: AppName,
    /// Which of its sessions.
    pub sid: SessionId,
    /// When the entry expires.
    pub expiry: WallTime,
    /// Where the session is.
    pub kind: Kind,
    /// The newest version of the app that has served it, if one is named.
    pub version: Option<AppVersion>,
}

/// Where a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The mesh keeps it.
    Portable {
        /// Who held copies when the token was minted.
        cfg: Config,
        /// Who owned it then.
        owner: Incarnation,
        /// The number last committed then.
        n: u64,
    },
    /// An app keeps it in its own memory.
    Pinned {
        /// The peer that made it.
        peer: PeerId,
        /// The life of that peer.
        incarnation: Incarnation,
    },
}

/// What the choice of the peer that a client should come back to depends on: see [`come_back_to`].
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// This peer.
    pub me: &'a PeerId,
    /// Its life.
    pub incarnation: Incarnation,
    /// This peer does not leave, and may start the app: it is ready here, or will be.
    pub serves: bool,
    /// The app is ready here.
    pub ready: bool,
    /// The others.
    pub view: &'a View,
    /// The peer that the client's cookie names so far.
    pub current: Option<&'a PeerId>,
    /// The peer that ran the request.
    pub served_by: Option<&'a PeerId>,
}

/// The peer that a client should come back to. A pinned session is where its peer is. A portable
/// session follows its owner, if the owner may run the app. Otherwise it comes to the peer where
/// the client arrives, if that peer may run the app, or else to a peer that has the app ready. So a
/// client neither stays with a peer that always has to ask another, nor is sent from one to the
/// next.
#[must_use]
pub fn come_back_to(entry: &Entry, at: &Arrival<'_>) -> PeerId {
    let owner = match &entry.kind {
        Kind::Pinned { peer, .. } => return peer.clone(),
        Kind::Portable { owner, .. } => owner,
    };
    let state_at = |belief: &PeerBelief| belief.apps.get(&entry.app).map(|app| app.news.state);
    if *owner != at.incarnation
        && let Some(belief) = at.view.by_incarnation(owner)
        && !belief.news.draining
    {
        let is_warm = matches!(state_at(belief), Some(AppState::Ready | AppState::Starting));
        if is_warm || !(at.ready && at.serves) {
            return belief.news.peer.clone();
        }
    }
    if at.serves {
        return at.me.clone();
    }
    let has_it = |peer: &&PeerId| {
        at.view.peer(peer).is_some_and(|belief| {
            belief.alive == Liveness::Alive
                && !belief.news.draining
                && state_at(belief) == Some(AppState::Ready)
        })
    };
    let known = at.current.into_iter().chain(at.served_by);
    let ready = at.view.ready_peers(&entry.app).map(|(peer, _)| peer);
    known.chain(ready).find(has_it).unwrap_or(at.me).clone()
}

impl Token {
    /// The app's entry.
    #[must_use]
    pub fn entry(&self, app: &AppName) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.app == *app)
    }

    /// Puts the entry first and replaces one of the same app; drops the least recently used one if
    /// there are too many.
    pub fn put(&mut self, entry: Entry) {
        self.entries.retain(|other| other.app != entry.app);
        self.entries.insert(0, entry);
        self.entries.truncate(ENTRIES_MAX);
    }

    /// Removes the app's entry.
    pub fn remove(&mut self, app: &AppName) {
        self.entries.retain(|entry| entry.app != *app);
    }
}

/// Why a cookie's value was not accepted. The value is ignored and replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reject {
    /// It exceeds [`VALUE_BYTES_MAX`].
    TooLong,
    /// It does not have the form of a token: it was cut, or comes from somebody else.
    Form,
    /// It is of another version.
    Version,
    /// Its tag is not this cluster's.
    Forged,
    /// Each of its entries has expired.
    Expired,
}

impl Reject {
    /// Every one.
    pub const ALL: [Self; 5] =
        [Self::TooLong, Self::Form, Self::Version, Self::Forged, Self::Expired];

    /// The label of its counter.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Form => "form",
            Self::Version => "version",
            Self::Forged => "forged",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "the affinity cookie is too long",
            Self::Form => "the affinity cookie is not of the form of a token",
            Self::Version => "the affinity cookie is of another version",
            Self::Forged => "the affinity cookie was not made by this cluster",
            Self::Expired => "the affinity cookie has expired",
        })
    }
}

impl core::error::Error for Reject {}

/// The cookie's value for this token, which sends the client back to `route`. Entries beyond
/// [`ENTRIES_MAX`], second ones of an app, and configurations without one to three members, which
/// no session has, are left out.
pub fn mint(token: &Token, route: &PeerId, auth: &impl Authenticator) -> String {
    let (mut bytes, tag) = tagged(VERSION, token, auth);
    bytes.extend_from_slice(&tag);
    value(&bytes, route)
}

/// As [`mint`], under a veil: a client reads nothing of it but the route.
pub fn mint_veiled(token: &Token, route: &PeerId, auth: &impl Authenticator) -> String {
    let (mut bytes, tag) = tagged(VEILED, token, auth);
    veil::turn(&mut bytes[1..], &tag, 0, auth);
    bytes.extend_from_slice(&tag);
    value(&bytes, route)
}

fn value(bytes: &[u8], route: &PeerId) -> String {
    let mut value = URL_SAFE_NO_PAD.encode(bytes);
    value.push('.');
    value.push_str(route.as_str());
    value
}

/// The bytes of a token and their tag.
fn tagged(version: u8, token: &Token, auth: &impl Authenticator) -> (Vec<u8>, [u8; TAG_BYTES]) {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(&[version, 0]);
    let mut count = 0;
    for (at, entry) in token.entries.iter().enumerate() {
        let repeated = token.entries[..at].iter().any(|earlier| earlier.app == entry.app);
        if usize::from(count) < ENTRIES_MAX && !repeated && is_well_formed(&entry.kind) {
            count += 1;
            put_entry(&mut bytes, entry);
        }
    }
    bytes[1] = count;
    let tag = auth.tag(&bytes);
    (bytes, tag)
}

/// Reads a cookie's value: the token without the entries that have expired, and the route as the
/// client sent it. A balancer may have rewritten or dropped the route, so one that is no peer's
/// name is absent.
///
/// # Errors
/// [`Reject`], to be counted by its label.
pub fn read(
    value: &str,
    auth: &impl Authenticator,
    wall: WallTime,
) -> Result<(Token, Option<PeerId>), Reject> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(Reject::TooLong);
    }
    let (opaque, route) = match value.split_once('.') {
        Some((opaque, route)) => (opaque, PeerId::new(route).ok()),
        None => (value, None),
    };
    let mut bytes = URL_SAFE_NO_PAD.decode(opaque).map_err(|_| Reject::Form)?;
    // Checked before the tag, since another version may compute the tag differently.
    let version = bytes.first().copied();
    if version.is_some_and(|version| version != VERSION && version != VEILED) {
        return Err(Reject::Version);
    }
    let (signed, tag) = bytes.split_last_chunk_mut::<TAG_BYTES>().ok_or(Reject::Form)?;
    if signed.len() < 2 {
        return Err(Reject::Form);
    }
    let is_genuine = if version == Some(VEILED) {
        // Which key it is of shows only once the veil is off.
        (0..auth.keys()).any(|key| {
            veil::turn(&mut signed[1..], tag, key, auth);
            let is_genuine = auth.verify(signed, tag);
            if !is_genuine {
                veil::turn(&mut signed[1..], tag, key, auth);
            }
            is_genuine
        })
    } else {
        auth.verify(signed, tag)
    };
    if !is_genuine {
        return Err(Reject::Forged);
    }
    let mut entries = Reader(&signed[1..]).entries().ok_or(Reject::Form)?;
    entries.retain(|entry| wall < entry.expiry);
    if entries.is_empty() { Err(Reject::Expired) } else { Ok((Token { entries }, route)) }
}

fn is_well_formed(kind: &Kind) -> bool {
    let members = |m: &Members| {
        (1..=3).contains(&m.who.len()) && m.who.windows(2).all(|pair| pair[0] < pair[1])
    };
    match kind {
        Kind::Portable { cfg, .. } => members(&cfg.now) && cfg.prev.as_deref().is_none_or(members),
        Kind::Pinned { .. } => true,
    }
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    out.extend_from_slice(&entry.expiry.0.to_be_bytes());
    put_name(out, entry.app.as_str());
    out.extend_from_slice(&entry.sid.0);
    let kind = match &entry.kind {
        Kind::Portable { .. } => PORTABLE,
        Kind::Pinned { .. } => PINNED,
    };
    match &entry.version {
        Some(version) => {
            out.push(kind | OF_A_VERSION);
            put_name(out, version.as_str());
        }
        None => out.push(kind),
    }
    match &entry.kind {
        Kind::Portable { cfg, owner, n } => {
            out.extend_from_slice(&owner.0);
            out.extend_from_slice(&n.to_be_bytes());
            put_members(out, &cfg.now);
            out.push(u8::from(cfg.prev.is_some()));
            cfg.prev.iter().for_each(|prev| put_members(out, prev));
        }
        Kind::Pinned { peer, incarnation } => {
            put_name(out, peer.as_str());
            out.extend_from_slice(&incarnation.0);
        }
    }
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    // Names are bounded at 64 bytes where they are made.
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
}

fn put_members(out: &mut Vec<u8>, members: &Members) {
    out.extend_from_slice(&members.c.to_be_bytes());
    out.extend_from_slice(&members.stamp.to_be_bytes());
    out.push(members.who.len() as u8);
    members.who.iter().for_each(|who| out.extend_from_slice(&who.0));
}

/// The bytes left to read. Every method returns `None` if there are too few.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn entries(mut self) -> Option<Vec<Entry>> {
        let count = usize::from(self.byte()?);
        if !(1..=ENTRIES_MAX).contains(&count) {
            return None;
        }
        let mut entries: Vec<Entry> = Vec::with_capacity(count);
        for _ in 0..count {
            let entry = self.entry()?;
            if entries.iter().any(|earlier| earlier.app == entry.app) {
                return None;
            }
            entries.push(entry);
        }
        self.0.is_empty().then_some(entries)
    }

    fn entry(&mut self) -> Option<Entry> {
        let expiry = WallTime(self.number()?);
        let app = AppName::new(self.name()?).ok()?;
        let sid = SessionId(self.array()?);
        let kind = self.byte()?;
        let version = match kind & OF_A_VERSION {
            0 => None,
            _ => Some(AppVersion::new(self.name()?).ok()?),
        };
        let kind = match kind & !OF_A_VERSION {
            PORTABLE => {
                let owner = Incarnation(self.array()?);
                let n = self.number()?;
                let now = self.members()?;
                let prev = match self.byte()? {
                    0 => None,
                    1 => Some(self.members()?),
                    _ => return None,
                };
                Kind::Portable { cfg: Config { now, prev: prev.map(Box::new) }, owner, n }
            }
            PINNED => {
                let peer = PeerId::new(self.name()?).ok()?;
                Kind::Pinned { peer, incarnation: Incarnation(self.array()?) }
            }
            _ => return None,
        };
        is_well_formed(&kind).then_some(Entry { app, sid, expiry, kind, version })
    }

    fn members(&mut self) -> Option<Members> {
        let c = u32::from_be_bytes(self.array()?);
        let stamp = self.number()?;
        let count = self.byte()?;
        let mut who = ArrayVec::new();
        for _ in 0..count {
            // Three are the most, which `is_well_formed` checks; reading more would only cost time.
            if who.is_full() {
                return None;
            }
            who.push(Incarnation(self.array()?));
        }
        Some(Members { c, stamp, who })
    }

    fn name(&mut self) -> Option<&'a str> {
        let len = usize::from(self.byte()?);
        let (name, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        core::str::from_utf8(name).ok()
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }
}

/// The state of a session's owner, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    /// It serves.
    Serving,
    /// It is about to leave.
    Draining,
    /// It is dead, or its peer runs as another incarnation.
    Gone,
}

/// Decides when a session moves to this entry peer, which is not its owner: at once if the owner is
/// gone or draining; otherwise after [`SessionPolicy::move_after`] consecutive requests of its
/// client through this peer, and once in [`SessionPolicy::move_interval`] at most (I17).
///
/// The session's number tells whether requests are consecutive: if the client's token names another
/// number than this peer last gave it, the client has been elsewhere meanwhile. A balancer that
/// deals a client's requests out in turn thus never moves its session. A read elsewhere goes
/// unnoticed, and costs one move in an interval at worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MoveCounter {
    consecutive: u32,
    n_given: Option<u64>,
    moved_at: Option<Now>,
}

impl MoveCounter {
    /// A session that this peer has not seen yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A request of the session arrived at this peer's front door, with `n` in its token. Returns
    /// whether the session is to move here; then call [`MoveCounter::moved`] if it did.
    pub fn arrived(&mut self, owner: Owner, n: u64, now: Now, policy: &SessionPolicy) -> bool {
        // An older number belongs to a request that was sent before the last answer arrived.
        let elsewhere = self.n_given.is_some_and(|given| n > given);
        self.consecutive = if elsewhere { 1 } else { self.consecutive.saturating_add(1) };
        if elsewhere {
            self.n_given = Some(n);
        }
        match owner {
            Owner::Gone | Owner::Draining => true,
            Owner::Serving => {
                self.consecutive >= policy.move_after
                    && self.moved_at.is_none_or(|at| now.since(at) >= policy.move_interval)
            }
        }
    }

    /// Whether this peer, which owns the session and does not run its app, may give it to one that
    /// does: not if it moved here within the interval (I17).
    #[must_use]
    pub fn may_give(&self, now: Now, policy: &SessionPolicy) -> bool {
        self.moved_at.is_none_or(|at| now.since(at) >= policy.move_interval)
    }

    /// Notes that a response left through this peer, with `n` in its token.
    pub fn answered(&mut self, n: u64) {
        self.n_given = self.n_given.max(Some(n));
    }

    /// The highest number that left through this peer in a token, or arrived here in one.
    #[must_use]
    pub fn given(&self) -> u64 {
        self.n_given.unwrap_or_default()
    }

    /// Notes that the session moved here.
    pub fn moved(&mut self, now: Now) {
        self.consecutive = 0;
        self.moved_at = Some(now);
    }
}
