//! Pinned sessions that are known by an id of their app's own: a field, a parameter of the query, a
//! segment of the path, or a cookie that the app sets.
//!
//! A register that the id names records which copy holds the session, so that every peer can find
//! it and the record outlives the peers. It is first written with the answer that contains the id,
//! before the client gets that; and it is read every few seconds while the session is in use.
//!
//! An id that a request has and nobody knows is claimed for the copy that is to serve the request,
//! *before* it goes there: so of requests that reach several peers at once, all go to the copy that one
//! of them recorded. An answer with an error gives up the claim, and so does the request's end without an
//! answer, unless another request has used the session by then. If many claims come to nothing, further
//! new ids of that client are recorded with the answer alone: ids that the app refuses leave no registers.
//!
//! If that copy is gone, the peer that gets a request for the session chooses another, one of the
//! newest version that is ready, and records that *before* it sends the request there, by replacing
//! exactly what it had read. So of two peers that do so at once, one chooses, and the other sends
//! the request to the copy that the first one chose.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, SET_COOKIE};
use http::{HeaderMap, Uri};
use http_body::Body as _;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::{debug, warn};
use warmhop_core::affinity::{Entry, Kind};
use warmhop_core::config::{OwnId, OwnIdPath, SessionMode};
use warmhop_core::ids::{AppName, Incarnation, PeerId, SessionId, WallTime};
use warmhop_core::matching::without_prefix;
use warmhop_core::own_id;
use warmhop_core::route::Arrived;
use warmhop_core::session::repair::may_count_on;
use warmhop_core::version::AppVersion;
use warmhop_core::view::AppState;

use crate::app::AppSpec;
use crate::app::slot::Slot;
use crate::http::peek::peek;
use crate::links::wire;
use crate::observe::recall::Tracing;
use crate::request::call::{Call, CallBody, SMALL_BODY_BYTES_MAX};
use crate::request::known_ids::{CLAIMED, Holder, IdKey, Known, registers_name};
use crate::request::node::{Node, Place, Placing};
use crate::request::problem::Problem;
use crate::request::registers::{Expires, RegisterError, Registers, Value, When};
use crate::request::served::Served;

/// How long the register of an id may take: after that the request is served as if the id were
/// unknown.
const REGISTER_WITHIN: Duration = Duration::from_secs(3);
/// A register's value is a peer's name, its life and a version.
const HOLDER_BYTES_MAX: usize = 256;
/// How often a peer tries to record who holds a session, if others do the same.
const CLAIMS_MAX: u32 = 4;
/// How long the JSON of an answer or a request is waited for that may contain an id. One that takes longer
/// is passed on as it comes: it may be a stream.
const IN_BODY_WITHIN: Duration = Duration::from_secs(1);
/// How long after a session was taken over its register is read for each request: a request that
/// was under way when the former copy was lost may have been served by a newer copy elsewhere,
/// which is then recorded instead of the first.
const UNSETTLED_FOR: Duration = Duration::from_secs(3);

/// The id in a request, and the holder of its session.
struct Brought {
    key: IdKey,
    known: Option<Known>,
    /// It is in the path: only if it is known is it an id, and not some other segment.
    in_path: bool,
    /// Its register was read and is empty.
    is_new: bool,
    /// If this request recorded in the register which copy serves it first.
    claimed: Option<Claim>,
}

/// A record of the copy that is to serve the first request with an id. It is given up when this is dropped,
/// as when the client leaves.
struct Claim {
    node: Arc<Node>,
    key: IdKey,
    /// The register's version; `None` once the record was given up or confirmed.
    version: Option<u64>,
    app: AppName,
    client: u64,
}

impl Claim {
    /// Waits until the record is gone. If another request has used the session meanwhile, the register has
    /// another version, and stays.
    async fn give_up(mut self) {
        if let Some(version) = self.version.take() {
            empty(&self.node, &self.key, version).await;
        }
    }

    fn confirm(mut self) {
        self.version = None;
        self.node.known_ids.confirm_claim(&self.app, self.client);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(version) = self.version.take()
            && let Ok(runtime) = Handle::try_current()
        {
            let (node, key) = (Arc::clone(&self.node), self.key);
            runtime.spawn(async move { empty(&node, &key, version).await });
        }
    }
}

/// A request's session that is known by an app's own id.
pub(crate) struct OwnSession {
    app: AppName,
    by: Vec<OwnId>,
    brought: Option<Brought>,
}

impl OwnSession {
    /// Whether requests to the app have such sessions.
    pub(crate) fn is_for(spec: &AppSpec) -> bool {
        let policy = &spec.policy;
        policy.session == SessionMode::Pinned && !policy.session_by.is_empty()
    }

    /// For a request to an app whose sessions are known by its own ids. The app gets it without
    /// `prefix`.
    pub(crate) async fn of(
        spec: &AppSpec,
        prefix: Option<&str>,
        uri: &Uri,
        headers: &HeaderMap,
        body: &mut CallBody,
    ) -> Option<Self> {
        if !Self::is_for(spec) {
            return None;
        }
        let (app, by) = (spec.name.clone(), spec.policy.session_by.clone());
        let mut id = by.iter().find_map(|by| match by {
            OwnId::Header(name) => own_id::in_field(headers.get(name.as_str())?.as_bytes()),
            OwnId::Query(name) => own_id::in_query(uri.query()?, name),
            OwnId::Cookie(name) => (headers.get_all(COOKIE).iter())
                .find_map(|field| own_id::in_cookies(field.as_bytes(), name)),
            _ => None,
        });
        if id.is_none()
            && may_be_json(headers)
            && let Some(name) = by.iter().find_map(query_name)
        {
            id = id_in_body(body, headers, name).await;
        }
        let in_path = id.is_none();
        let id = id.or_else(|| {
            let path = by.iter().find_map(path_with_id)?;
            path.id_in(prefix.map_or(uri.path(), |prefix| without_prefix(uri.path(), prefix).1))
        });
        let brought = id.map(|id| {
            let (key, known, claimed) = (key_of(&app, &id), None, None);
            Brought { key, known, in_path, is_new: false, claimed }
        });
        Some(Self { app, by, brought })
    }

    /// Where the session is, if that is known.
    pub(crate) async fn find(&mut self, node: &Arc<Node>, slot: &Slot) -> Option<Entry> {
        let brought = self.brought.as_mut()?;
        // Before it was ready, others may have taken over sessions of the copy here.
        node.known_ids.unready(slot.name(), slot.ready_at());
        let known = node.known_ids.get_heard(&brought.key, slot.name(), &node.me, node.clock.now());
        brought.known = match known.filter(|known| is_up(node, slot, &known.holder)) {
            Some(known) => Some(known),
            None => {
                let found = within_time(look_up_or_succeed(node, slot, &brought.key, &[])).await;
                brought.is_new = found == Some(None);
                found.flatten()
            }
        };
        if brought.in_path && brought.known.is_none() {
            self.brought = None;
            return None;
        }
        self.entry(node)
    }

    /// The session as a cookie would name it.
    fn entry(&self, node: &Node) -> Option<Entry> {
        let brought = self.brought.as_ref()?;
        let holder = brought.known.clone()?.holder;
        let sid = SessionId(*brought.key.first_chunk().expect("a key is longer than an id"));
        let kind = Kind::Pinned { peer: holder.peer, incarnation: holder.incarnation };
        let expiry = node.clock.wall().after(node.store.policy().ttl);
        Some(Entry { app: self.app.clone(), sid, kind, expiry, version: holder.version })
    }

    /// Records which copy is to serve a request with an id that nobody knows, before it is sent
    /// there, and returns the session: at the copy where the request would go, or at that which another peer
    /// recorded first. Waits until one is ready. `None` if it is served anywhere, and recorded with the
    /// answer.
    ///
    /// # Errors
    /// If the request can go nowhere.
    pub(crate) async fn claim(
        &mut self,
        node: &Arc<Node>,
        slot: &Arc<Slot>,
        call: &mut Call,
        tracing: &mut Tracing,
    ) -> Result<Option<Entry>, Problem> {
        let Some(brought) = self.brought.as_mut().filter(|brought| brought.is_new) else {
            return Ok(None);
        };
        let placing = Placing::first(slot, Arrived::AtFrontDoor);
        let place = node.place(&placing, &mut call.waits, tracing).await?;
        let Some(holder) = holder_at(node, slot, place) else { return Ok(None) };
        let client = call.waits.flow.client;
        if !node.known_ids.may_claim(slot.name(), client, node.clock.now()) {
            return Ok(None);
        }
        // A task of its own: what it records while the client leaves is given up.
        let claiming = {
            let (node, slot, key) = (Arc::clone(node), Arc::clone(slot), brought.key);
            async move {
                let asked = record_first(&node, &slot, &key, holder);
                let (known, version) = within_time(asked).await.unwrap_or_default();
                let app = slot.name().clone();
                (known, Claim { node, key, version, app, client })
            }
        };
        if let Ok((known, claim)) = tokio::spawn(claiming).await {
            brought.known = known;
            match claim.version {
                Some(_) => brought.claimed = Some(claim),
                // It belongs to another peer's request.
                None => claim.confirm(),
            }
        }
        Ok(self.entry(node))
    }

    /// Records another copy for a session whose copies at the `lost` peers cannot be reached, or finds the
    /// one that another peer has recorded. `None` if that takes too long: then any copy serves the request.
    pub(crate) async fn succeed(
        &mut self,
        node: &Arc<Node>,
        slot: &Slot,
        lost: &[PeerId],
    ) -> Option<Entry> {
        let brought = self.brought.as_mut()?;
        let found = within_time(look_up_or_succeed(node, slot, &brought.key, lost)).await;
        let next = found.flatten().filter(|next| !lost.contains(&next.holder.peer))?;
        brought.known = Some(next);
        self.entry(node)
    }

    /// Records who served the request, before its client knows: for an id in the answer, or for one
    /// in the request that was unknown. The client gets no cookie for it.
    pub(crate) async fn served(self, node: &Arc<Node>, served: &mut Served) {
        let Some(Entry { kind: Kind::Pinned { peer, incarnation }, version, .. }) =
            served.entry.take()
        else {
            return;
        };
        let status = served.response.status();
        // An app that does not know such a session answers with an error: then none is recorded
        // here.
        if status.is_client_error() || status.is_server_error() {
            if let Some(Brought { claimed: Some(claim), .. }) = self.brought {
                claim.give_up().await;
            }
            return;
        }
        let mut holder = Holder { peer, incarnation, version, taken: WallTime(0) };
        let brought = self.brought.as_ref().map(|brought| brought.key);
        for id in self.issued_ids(served).await {
            let issued = key_of(&self.app, &id);
            if Some(issued) != brought {
                note(node, &self.app, issued, &holder, When::Always).await;
            }
        }
        let Some(Brought { key, known: before, claimed, .. }) = self.brought else { return };
        let is_settled = before.as_ref().is_some_and(|known| {
            known.holder.is(&holder) && (claimed.is_some() || !known.holder.is_claim())
        });
        if !is_settled {
            if let Some(Known { holder: before, .. }) = &before {
                let is_another =
                    before.peer != holder.peer || before.incarnation != holder.incarnation;
                let since = if before.is_claim() { WallTime(0) } else { before.taken };
                holder.taken = if is_another { node.clock.wall() } else { since };
            }
            // The first copy to serve a new id gets it. A session that was held elsewhere gets
            // another holder if nobody else has chosen one since.
            let when = match before {
                None => When::Absent,
                Some(Known { version: 0, .. }) => When::Always,
                Some(Known { version, .. }) => When::Version(version),
            };
            note(node, &self.app, key, &holder, when).await;
        }
        if let Some(claim) = claimed {
            claim.confirm();
        }
    }

    /// The ids in the answer.
    async fn issued_ids(&self, served: &mut Served) -> Vec<Vec<u8>> {
        let headers = served.response.headers();
        let in_head = |by: &OwnId| match by {
            OwnId::Header(name) => own_id::in_field(headers.get(name.as_str())?.as_bytes()),
            OwnId::Cookie(name) => (headers.get_all(SET_COOKIE).iter())
                .filter_map(|field| own_id::in_set_cookie(field.as_bytes(), name))
                .next_back(),
            _ => None,
        };
        let mut issued: Vec<Vec<u8>> = self.by.iter().filter_map(in_head).collect();
        let names: Vec<&str> = self.by.iter().filter_map(|by| self.name_in_json(by)).collect();
        let said = headers.get(CONTENT_LENGTH).and_then(|said| said.to_str().ok()?.parse().ok());
        let length = served.response.body().size_hint().exact().or(said);
        let is_small = length.is_none_or(|length| length <= SMALL_BODY_BYTES_MAX as u64);
        let is_plain = !headers.contains_key(CONTENT_ENCODING) && may_be_json(headers);
        if !names.is_empty() && is_small && is_plain && served.upgrade.is_none() {
            let body = served.response.body_mut();
            let has_ids = |read: &[u8]| names.iter().all(|it| own_id::at_top_of_json(read, it));
            let bytes = peek(body, SMALL_BODY_BYTES_MAX, IN_BODY_WITHIN, has_ids).await;
            issued.extend(names.iter().filter_map(|name| own_id::in_json(&bytes, name)));
        }
        issued
    }

    /// The name of an id that the JSON of this request's answer may contain. One of the query is
    /// there only for a client that has none.
    fn name_in_json<'b>(&self, by: &'b OwnId) -> Option<&'b str> {
        match by {
            OwnId::Query(name) if self.brought.is_none() => Some(name),
            OwnId::Path(path) if self.brought.as_ref().is_none_or(|it| !it.in_path) => {
                Some(path.id_name())
            }
            _ => None,
        }
    }
}

fn query_name(by: &OwnId) -> Option<&str> {
    match by {
        OwnId::Query(name) => Some(name),
        _ => None,
    }
}

fn path_with_id(by: &OwnId) -> Option<&OwnIdPath> {
    match by {
        OwnId::Path(path) => Some(path),
        _ => None,
    }
}

/// The id in a small body.
async fn id_in_body(body: &mut CallBody, headers: &HeaderMap, name: &str) -> Option<Vec<u8>> {
    match body {
        CallBody::Whole(bytes) => own_id::in_json(bytes, name),
        // A client that waits for `100 Continue` sends nothing before.
        CallBody::Stream(Some(stream)) if !headers.contains_key(EXPECT) => {
            let length = stream.size_hint().exact();
            if length.is_some_and(|length| length > SMALL_BODY_BYTES_MAX as u64) {
                return None;
            }
            let has_id = |read: &[u8]| own_id::at_top_of_json(read, name);
            let bytes = peek(stream, SMALL_BODY_BYTES_MAX, IN_BODY_WITHIN, has_id).await;
            let found = own_id::in_json(&bytes, name);
            if stream.size_hint().exact() == Some(bytes.len() as u64) {
                // It can be sent again.
                *body = CallBody::Whole(bytes);
            }
            found
        }
        _ => None,
    }
}

/// Whether the body may be JSON, or contain some: engine.io labels that as `text/plain`.
fn may_be_json(headers: &HeaderMap) -> bool {
    let said = headers.get(CONTENT_TYPE).map(|said| said.as_bytes());
    said.is_some_and(|said| {
        let kind = said.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let kind = kind.to_ascii_lowercase();
        kind.ends_with(b"json") || kind == b"text/plain"
    })
}

fn key_of(app: &AppName, id: &[u8]) -> IdKey {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in [app.as_str().as_bytes(), &[0], id] {
        context.update(part);
    }
    context.finish().as_ref().try_into().expect("a digest has 32 bytes")
}

/// Whether the holder has a copy that serves, as far as this peer knows.
fn is_up(node: &Node, slot: &Slot, holder: &Holder) -> bool {
    if holder.peer == node.me {
        return holder.incarnation == node.incarnation && slot.state() == AppState::Ready;
    }
    let view = node.view();
    view.life(&holder.peer) == Some(holder.incarnation)
        && view.ready_peers(slot.name()).any(|(peer, _)| *peer == holder.peer)
}

fn registers(node: &Arc<Node>) -> Option<Registers> {
    let slot = node.registers.iter().find(|slot| *slot.name() == registers_name())?;
    Some(Registers::new(Arc::clone(node), Arc::clone(slot)))
}

/// The result, if it comes within the time that a register may take.
async fn within_time<T>(asked: impl Future<Output = Result<T, RegisterError>>) -> Option<T> {
    match timeout(REGISTER_WITHIN, asked).await {
        Ok(Ok(found)) => return Some(found),
        Ok(Err(error)) => {
            debug!(%error, "the register that names a session's copy could not be read; the request is served anywhere");
        }
        Err(_) => {
            debug!(
                "the register that names a session's copy did not answer in time; the request is served anywhere"
            );
        }
    }
    None
}

/// The holder of the session; if that copy is gone, or at a `lost` peer, another ready one is recorded as
/// the holder.
async fn look_up_or_succeed(
    node: &Arc<Node>,
    slot: &Slot,
    key: &IdKey,
    lost: &[PeerId],
) -> Result<Option<Known>, RegisterError> {
    let Some(registers) = registers(node) else { return Ok(None) };
    let read =
        |value: Value| Some(Known { holder: holder_of(&value.bytes)?, version: value.version });
    let mut known = registers.get(key).await?.and_then(read);
    for _ in 0..CLAIMS_MAX {
        let Some(before) = &known else { return Ok(None) };
        let Some(next) = successor(node, slot, &before.holder, lost) else { break };
        let Ok(bytes) = wire::encode(&next, HOLDER_BYTES_MAX) else { break };
        let when = When::Version(before.version);
        let change = registers.put(key, bytes, Expires::Default, when).await?;
        known = match change.done {
            true => Some(Known { holder: next, version: change.version }),
            // Another peer chose meanwhile.
            false => change.before.and_then(read),
        };
    }
    if let Some(known) = &known {
        remember(node, *key, known.clone());
    }
    Ok(known)
}

/// Records the first holder of a session; another peer may have done so meanwhile. With the version of
/// the register if it is this one.
async fn record_first(
    node: &Arc<Node>,
    slot: &Slot,
    key: &IdKey,
    holder: Holder,
) -> Result<(Option<Known>, Option<u64>), RegisterError> {
    let Some(registers) = registers(node) else { return Ok((None, None)) };
    let Ok(bytes) = wire::encode(&holder, HOLDER_BYTES_MAX) else { return Ok((None, None)) };
    for _ in 0..CLAIMS_MAX {
        match registers.put(key, &bytes, Expires::Default, When::Absent).await {
            Ok(change) if change.done => {
                let known = Known { holder, version: change.version };
                return Ok((Some(known), Some(change.version)));
            }
            // Two peers that begin a register at once may be in each other's way.
            Ok(_) | Err(RegisterError::Unavailable(_) | RegisterError::OutcomeUnknown(_)) => {}
            Err(error) => return Err(error),
        }
        if let Some(known) = look_up_or_succeed(node, slot, key, &[]).await? {
            return Ok((Some(known), None));
        }
    }
    Ok((None, None))
}

/// Empties the register of an id, unless it has another version by now.
async fn empty(node: &Arc<Node>, key: &IdKey, version: u64) {
    if let Some(registers) = registers(node) {
        within_time(registers.delete(key, When::Version(version))).await;
    }
}

/// The copy at the place where a request goes, as the first holder of its session.
fn holder_at(node: &Node, slot: &Slot, place: Place) -> Option<Holder> {
    let (peer, incarnation, version) = match place {
        Place::Here => (node.me.clone(), node.incarnation, slot.copy_news().version),
        Place::There(peer) => {
            let view = node.view();
            let version = view.peer(&peer).and_then(|belief| belief.apps.get(slot.name()));
            let version = version.and_then(|app| app.news.version.clone());
            let incarnation = view.life(&peer)?;
            (peer, incarnation, version)
        }
    };
    Some(Holder { peer, incarnation, version, taken: CLAIMED })
}

fn remember(node: &Node, key: IdKey, known: Known) {
    let (now, wall) = node.clock.both();
    if known.holder.is_claim() || wall < known.holder.taken.after(UNSETTLED_FOR) {
        node.known_ids.forget(&key);
    } else {
        node.known_ids.put(key, known, now);
    }
}

/// The next holder of a session whose holder is gone: this peer, or the first by name, of those
/// whose copy is ready and of the newest version. `None` if that copy is there after all, or there
/// is no other.
fn successor(node: &Node, slot: &Slot, gone: &Holder, lost: &[PeerId]) -> Option<Holder> {
    if is_up(node, slot, gone) && !lost.contains(&gone.peer) {
        return None;
    }
    let view = node.view();
    let may_own = !node.is_draining() && !lost.contains(&node.me);
    let own = (slot.state() == AppState::Ready && may_own)
        .then(|| (node.me.clone(), node.incarnation, slot.copy_news().version));
    let others = view.ready_peers(slot.name());
    let others = others.filter(|(peer, belief)| may_count_on(belief) && !lost.contains(peer));
    let others = others.map(|(peer, belief)| {
        let version = belief.apps.get(slot.name()).and_then(|app| app.news.version.clone());
        (peer.clone(), belief.news.incarnation, version)
    });
    let ready: Vec<(PeerId, Incarnation, Option<AppVersion>)> =
        own.into_iter().chain(others).collect();
    let newest = ready
        .iter()
        .fold(None, |newest, (_, _, version)| AppVersion::newest(newest, version.clone()));
    let is_newest = |version: &Option<AppVersion>| match (version, &newest) {
        (Some(version), Some(newest)) => !newest.is_newer_than(version),
        (version, newest) => version.is_some() || newest.is_none(),
    };
    let (peer, incarnation, version) = ready.into_iter().find(|(_, _, it)| is_newest(it))?;
    // The version that has served it counts, though its next copy may be older.
    let version = AppVersion::newest(gone.version.clone(), version);
    Some(Holder { peer, incarnation, version, taken: node.clock.wall() })
}

/// Records who holds a session. If another peer recorded something else meanwhile, that stays,
/// unless its version is older than the one that has served by now.
async fn note(node: &Arc<Node>, app: &AppName, key: IdKey, holder: &Holder, when: When) {
    let known = node.known_ids.get(&key, app, node.clock.now());
    if known.is_some_and(|known| known.holder.is(holder)) {
        return;
    }
    let Some(registers) = registers(node) else { return };
    let Ok(bytes) = wire::encode(holder, HOLDER_BYTES_MAX) else { return };
    let noting = async {
        let mut when = when;
        let mut known = Known { holder: holder.clone(), version: 0 };
        for _ in 0..CLAIMS_MAX {
            let change = registers.put(&key, bytes.clone(), Expires::Default, when).await?;
            if !change.done && change.before.is_none() {
                // It was emptied: an answer with an error gave up a claim.
                when = When::Absent;
                continue;
            }
            let other = change.before.filter(|_| !change.done);
            let other = other.and_then(|it| Some((holder_of(&it.bytes)?, it.version)));
            let (other, version) = other.unwrap_or_else(|| (holder.clone(), change.version));
            let is_older = match (&holder.version, &other.version) {
                (Some(own), Some(other)) => own.is_newer_than(other),
                _ => false,
            };
            known = Known { holder: other, version };
            if !is_older {
                break;
            }
            when = When::Version(version);
        }
        Ok::<_, RegisterError>(known)
    };
    let why = match timeout(REGISTER_WITHIN, noting).await {
        Ok(Ok(known)) => return remember(node, key, known),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it took over {REGISTER_WITHIN:?}"),
    };
    // This peer knows it all the same, for a while.
    node.known_ids.put(key, Known { holder: holder.clone(), version: 0 }, node.clock.now());
    warn!(
        holder = %holder.peer,
        "the other peers could not be informed which copy holds a new session: {why}; there, any copy \
         serves its requests until one answers without an error"
    );
}

fn holder_of(bytes: &[u8]) -> Option<Holder> {
    wire::decode::<Holder, HOLDER_BYTES_MAX>(bytes).ok()
}
