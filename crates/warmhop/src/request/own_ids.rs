//! Pinned sessions that are known by an id of their app's own: a field, a parameter of the query, or
//! a cookie that the app sets.
//!
//! Which copy holds a session is kept in a register that the id names, so that every peer finds it and
//! it outlives the peers that learnt it. It is written once, with the answer that tells the id, before
//! the client has that; and from then on read every few seconds while the session is used.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, SET_COOKIE};
use http::{HeaderMap, Uri};
use http_body::{Body as _, Frame};
use tokio::time::timeout;
use tracing::{debug, warn};
use warmhop_core::affinity::{Entry, Kind};
use warmhop_core::config::{OwnId, SessionMode};
use warmhop_core::ids::{AppName, SessionId};
use warmhop_core::own_id;
use warmhop_core::view::AppState;

use crate::app::slot::Slot;
use crate::http::body::{Body, BoxError};
use crate::links::wire;
use crate::request::call::{Call, CallBody, SMALL_BODY_BYTES_MAX};
use crate::request::known_ids::{Holder, IdKey, registers_name};
use crate::request::node::Node;
use crate::request::registers::{Expires, Registers, When};
use crate::request::serve::Served;

/// How long the register of an id may take: past it the request is served as if nobody knew the id.
const REGISTER_WITHIN: Duration = Duration::from_secs(3);
/// A register's value is a peer's name and its life.
const HOLDER_BYTES_MAX: usize = 256;

/// The id that a request brought, and who holds its session.
struct Brought {
    key: IdKey,
    holder: Option<Holder>,
}

/// What a request says of a session of its app's own.
pub(crate) struct OwnSession {
    app: AppName,
    by: OwnId,
    brought: Option<Brought>,
}

impl OwnSession {
    /// That of a request for an app whose sessions are known by ids of its own.
    pub(crate) fn of(slot: &Slot, uri: &Uri, headers: &HeaderMap, body: &CallBody) -> Option<Self> {
        let spec = slot.spec();
        let by = spec.policy.session_by.clone();
        let by = by.filter(|_| spec.policy.session == SessionMode::Pinned)?;
        let app = slot.name().clone();
        let id = match &by {
            OwnId::Header(name) => {
                headers.get(name.as_str()).and_then(|value| own_id::in_field(value.as_bytes()))
            }
            OwnId::Cookie(name) => (headers.get_all(COOKIE).iter())
                .find_map(|field| own_id::in_cookies(field.as_bytes(), name)),
            OwnId::Query(name) => {
                let query = uri.query().and_then(|query| own_id::in_query(query, name));
                query.or_else(|| match body {
                    CallBody::Whole(bytes) if may_be_json(headers) => own_id::in_json(bytes, name),
                    _ => None,
                })
            }
        };
        let brought = id.map(|id| Brought { key: key_of(&app, &id), holder: None });
        Some(Self { app, by, brought })
    }

    /// Where the session is, if anyone knows it.
    pub(crate) async fn find(&mut self, node: &Arc<Node>, slot: &Slot) -> Option<Entry> {
        let brought = self.brought.as_mut()?;
        let known = node.known_ids.get(&brought.key, node.clock.now());
        brought.holder = match known.filter(|holder| is_up(node, slot, holder)) {
            Some(known) => Some(known),
            None => look_up(node, &brought.key).await,
        };
        let holder = brought.holder.clone()?;
        let sid = SessionId(*brought.key.first_chunk().expect("a key is longer than an id"));
        let kind = Kind::Pinned { peer: holder.peer, incarnation: holder.incarnation };
        let expiry = node.clock.wall().after(node.store.policy().ttl);
        Some(Entry { app: self.app.clone(), sid, kind, expiry })
    }

    /// Notes who served the request, before its client knows: an id that the answer tells, or one that
    /// the request brought and nobody knew. The client gets no cookie for it.
    pub(crate) async fn served(self, node: &Arc<Node>, served: &mut Served) {
        let Some(Entry { kind: Kind::Pinned { peer, incarnation }, .. }) = served.entry.take()
        else {
            return;
        };
        let status = served.response.status();
        // An app that knows no such session says so by an error: that makes none here either.
        if status.is_client_error() || status.is_server_error() {
            return;
        }
        let holder = Holder { peer, incarnation };
        let brought = self.brought.as_ref().map(|brought| brought.key);
        let told = self.told(served).await.map(|id| key_of(&self.app, &id));
        if let Some(told) = told.filter(|told| Some(*told) != brought) {
            note(node, told, &holder, When::Always).await;
        }
        if let Some(Brought { key, holder: before }) = self.brought
            && before.as_ref() != Some(&holder)
        {
            // The first one who serves a new id has it; one whose holder is gone has another.
            let when = if before.is_some() { When::Always } else { When::Absent };
            note(node, key, &holder, when).await;
        }
    }

    /// The id that the answer tells.
    async fn told(&self, served: &mut Served) -> Option<Vec<u8>> {
        let headers = served.response.headers();
        match &self.by {
            OwnId::Header(name) => own_id::in_field(headers.get(name.as_str())?.as_bytes()),
            OwnId::Cookie(name) => (headers.get_all(SET_COOKIE).iter())
                .filter_map(|field| own_id::in_set_cookie(field.as_bytes(), name))
                .next_back(),
            OwnId::Query(name) => {
                let said =
                    headers.get(CONTENT_LENGTH).and_then(|said| said.to_str().ok()?.parse().ok());
                let length = served.response.body().size_hint().exact().or(said)?;
                let is_small = length <= SMALL_BODY_BYTES_MAX as u64;
                let is_new = self.brought.is_none() && served.upgrade.is_none();
                let is_plain = !headers.contains_key(CONTENT_ENCODING) && may_be_json(headers);
                if !(is_small && is_new && is_plain) {
                    return None;
                }
                let bytes = read(served.response.body_mut()).await?;
                own_id::in_json(&bytes, name)
            }
        }
    }
}

/// Reads a small body, and puts what it had in its place.
async fn read(body: &mut Body) -> Option<bytes::Bytes> {
    let whole = std::mem::take(body);
    match Call::gather(whole, Some(SMALL_BODY_BYTES_MAX)).await {
        Ok(CallBody::Whole(bytes)) => {
            *body = Body::from(bytes.clone());
            return Some(bytes);
        }
        Ok(CallBody::Stream(rest)) => *body = rest.unwrap_or_else(Body::empty),
        Ok(CallBody::Lent(_)) => {}
        Err(error) => {
            let broken = stream::iter([Err::<Frame<bytes::Bytes>, BoxError>(error)]);
            *body = Body::new(http_body_util::StreamBody::new(broken));
        }
    }
    None
}

/// Whether the body may be JSON, or have some in it: engine.io says `text/plain` of that.
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

async fn look_up(node: &Arc<Node>, key: &IdKey) -> Option<Holder> {
    let registers = registers(node)?;
    match timeout(REGISTER_WITHIN, registers.get(key)).await {
        Ok(Ok(value)) => {
            let holder = holder_of(&value?.bytes)?;
            node.known_ids.put(*key, holder.clone(), node.clock.now());
            Some(holder)
        }
        Ok(Err(error)) => {
            debug!(%error, "which copy holds a session could not be asked; the request is served anywhere");
            None
        }
        Err(_) => {
            debug!(
                "which copy holds a session was not told in time; the request is served anywhere"
            );
            None
        }
    }
}

async fn note(node: &Arc<Node>, key: IdKey, holder: &Holder, when: When) {
    if node.known_ids.get(&key, node.clock.now()).as_ref() == Some(holder) {
        return;
    }
    let Some(registers) = registers(node) else { return };
    let Ok(bytes) = wire::encode(holder, HOLDER_BYTES_MAX) else { return };
    let noting = registers.put(&key, bytes, Expires::Default, when);
    let why = match timeout(REGISTER_WITHIN, noting).await {
        Ok(Ok(change)) => {
            let other = change.before.filter(|_| !change.done);
            let holder =
                other.and_then(|it| holder_of(&it.bytes)).unwrap_or_else(|| holder.clone());
            node.known_ids.put(key, holder, node.clock.now());
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it took over {REGISTER_WITHIN:?}"),
    };
    // Here it is known all the same, for a while.
    node.known_ids.put(key, holder.clone(), node.clock.now());
    warn!(
        holder = %holder.peer,
        "which copy holds a new session could not be told to the other peers: {why}; its requests at \
         them are served by any copy until one answers without an error"
    );
}

fn holder_of(bytes: &[u8]) -> Option<Holder> {
    wire::decode::<Holder, HOLDER_BYTES_MAX>(bytes).ok()
}
