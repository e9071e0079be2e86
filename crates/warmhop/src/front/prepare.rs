//! Turns a client's request into the one that its app sees: the fields of its connection and those
//! of the mesh are removed, those about where the request came from are added, and a small body is
//! read.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, EXPECT, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY};
use http::request::Parts;
use http::{Method, Request, Version};
use http_body::Body as _;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use warmhop_core::affinity::{Entry, Kind};
use warmhop_core::config::SessionMode;
use warmhop_core::ids::{PeerId, RequestKey};
use warmhop_core::problem::ProblemKind;
use warmhop_core::route::Arrived;
use warmhop_core::session::entry::FORWARDS_MAX;

use crate::app::AppSpec;
use crate::app::places::{Waits, flow_of};
use crate::app::slot::Slot;
use crate::front::client_body::TooSlow;
use crate::front::context::RequestContext;
use crate::front::cookies::AskedAt;
use crate::front::origin::Origin;
use crate::front::targets;
use crate::front::token;
use crate::http::about::About;
use crate::http::body::{Body, Broke};
use crate::http::client::ClientInfo;
use crate::http::fields;
use crate::observe::recall::Tracing;
use crate::observe::traffic::Received;
use crate::request::call::{Call, CallBody};
use crate::request::node::Node;
use crate::request::own_ids::OwnSession;
use crate::request::portable::Portable;
use crate::request::problem::Problem;

/// The longest idempotency key, in bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;
/// How long the body of a request may take that is served only once all of it is there.
const WHOLE_BODY_WITHIN: Duration = Duration::from_secs(60);
/// How many fields this peer adds for the app.
const FIELDS_ADDED: usize = 6;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A client's request in the form for its app, and what its answer needs to know of it.
pub(super) struct Prepared {
    /// Which sessions its app has.
    pub(super) mode: SessionMode,
    pub(super) call: Call,
    /// The client's `Idempotency-Key`, if it counts.
    pub(super) key: Option<String>,
    /// The session that the client's cookie names, or the app's own id.
    pub(super) entry: Option<Entry>,
    /// The peer that the client's cookie names.
    pub(super) route: Option<PeerId>,
    pub(super) brought_token: bool,
    /// The app's own id of the session.
    pub(super) own: Option<OwnSession>,
    pub(super) upgrade: UpgradeAsked,
    /// Where the client asked with the host of the app, if it named none.
    pub(super) own_at: Option<AskedAt>,
    /// The error that a streamed body ended with.
    pub(super) broke: Option<Broke>,
}

/// Prepares a request for `slot`'s app, which gets it without `prefix`. It is boxed, since each step
/// moves it.
pub(super) async fn prepare(
    node: &Arc<Node>,
    slot: &Arc<Slot>,
    prefix: Option<&str>,
    request: Box<Request<Body>>,
    context: &mut RequestContext,
) -> Result<Box<Prepared>, Problem> {
    // One reference: each look at what may change costs more.
    let spec = slot.spec_now();
    let mode = spec.policy.session;
    let (mut parts, body) = (*request).into_parts();
    let record = parts.extensions.remove::<Received>();
    let body = slot.counts.traffic(&node.metrics, slot.name()).receives(body, record);
    let about = About::of(&parts.headers);
    let key = idempotency_key(&parts, about, mode)?;
    let upgrade = UpgradeAsked::take(&mut parts, about, &body);
    let asks_first = remove_fields(&mut parts, about, &upgrade);
    let (token, route) = if about.has(About::COOKIE) {
        token::take(node, &mut parts.headers, slot.name())
    } else {
        (None, None)
    };
    let brought_token = token.is_some();
    let RequestContext { client, asked_at, tracing, .. } = &mut *context;
    let own_at = add_fields(node, &spec, prefix, &mut parts, asked_at, client, tracing);
    let body = if upgrade.is_asked() {
        CallBody::Whole(Bytes::new())
    } else {
        match Call::gathered(body) {
            Ok(whole) => CallBody::Whole(whole),
            // Boxed if there is something to wait for: otherwise its future would be moved with
            // each request.
            Err(body) => {
                let bytes_max = node.store.policy().stored_response_bytes_max;
                Box::pin(gather(body, key.is_some().then_some(bytes_max))).await?
            }
        }
    };
    let (mut body, broke) = noting_if_broken(body);
    if asks_first && key.is_none() && matches!(body, CallBody::Stream(_)) {
        // Nobody has polled the body, so the app may ask for it or refuse it.
        parts.headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
    }
    let mut own = match OwnSession::is_for(&spec) {
        true => {
            let Parts { uri, headers, .. } = &parts;
            Box::pin(OwnSession::of(&spec, prefix, uri, headers, &mut body)).await
        }
        false => None,
    };
    let entry = match &mut own {
        Some(own) => Box::pin(own.find(node, slot)).await,
        None => token,
    };
    let ip = context.client.addr.map(|addr| addr.ip());
    let waits = Waits::of(flow_of(ip, entry.as_ref().map(|it| &it.sid)));
    let mut call = call(&spec, parts, prefix, body, &upgrade, waits, &context.tracing);
    let entry = entry.filter(|entry| match entry.kind {
        Kind::Portable { .. } => mode == SessionMode::Portable,
        Kind::Pinned { .. } => mode == SessionMode::Pinned,
    });
    call.version = entry.as_ref().and_then(|entry| entry.version.clone());
    call.interim = context.interim.take();
    let prepared =
        Prepared { mode, call, key, entry, route, brought_token, own, upgrade, own_at, broke };
    Ok(Box::new(prepared))
}

/// The key that identifies repeats of a request, if the request may change a portable session.
fn idempotency_key(
    parts: &Parts,
    about: About,
    mode: SessionMode,
) -> Result<Option<String>, Problem> {
    let key = if about.has(About::KEY) { read_idempotency_key(&parts.headers)? } else { None };
    Ok(key.filter(|_| mode == SessionMode::Portable && !fields::is_safe(&parts.method)))
}

/// Another protocol that a client asks its connection to change to.
pub(super) struct UpgradeAsked {
    /// Its name, if the client asks for one.
    protocol: Option<HeaderValue>,
    /// The client's connection, once it has changed.
    pub(super) client_side: Option<OnUpgrade>,
    /// Asked for by an extended CONNECT.
    pub(super) is_extended: bool,
}

impl UpgradeAsked {
    /// Takes the upgrade out of a client's request. A WebSocket over HTTP/2 (RFC 8441) is an
    /// upgrade for every peer on its way, and for the app: only the client's side differs.
    fn take(parts: &mut Parts, about: About, body: &Body) -> Self {
        let is_extended = parts.extensions.remove::<Protocol>().is_some();
        let protocol = if is_extended {
            parts.method = Method::GET;
            parts.headers.insert(SEC_WEBSOCKET_KEY, websocket_key());
            Some(HeaderValue::from_static("websocket"))
        } else if !about.has(About::CONNECTION) {
            None
        } else {
            // A server may ignore the upgrade (RFC 9110 section 7.8). It would be worse if two
            // servers disagreed about where on a connection a body ends and a tunnel begins.
            fields::wanted_upgrade(parts.version, &parts.headers).filter(|_| body.is_end_stream())
        };
        let client_side = parts.extensions.remove::<OnUpgrade>().filter(|_| protocol.is_some());
        Self { protocol, client_side, is_extended }
    }

    fn is_asked(&self) -> bool {
        self.protocol.is_some()
    }
}

/// Removes the fields for the connection, or for this mesh alone. Returns whether the client waits
/// for `100 Continue` before it sends its body.
fn remove_fields(parts: &mut Parts, about: About, upgrade: &UpgradeAsked) -> bool {
    let headers = &mut parts.headers;
    if about.has(About::CONNECTION) {
        fields::remove_hop_by_hop(headers);
    }
    if about.has(About::OURS) {
        fields::remove_reserved(headers);
    }
    if about.has(About::SHADOW) {
        fields::remove_shadows(headers);
    }
    if about.has(About::COOKIE) {
        fields::join_cookies(headers);
    }
    if upgrade.is_asked() {
        headers.remove(CONTENT_LENGTH);
    }
    if !about.has(About::EXPECT) {
        return false;
    }
    let asks_first = fields::expects_continue(headers) && parts.version > Version::HTTP_10;
    headers.remove(EXPECT);
    asks_first
}

/// Adds the fields from which the app learns the request's way. A request whose client named no host
/// gets that of the app; returned is where it asks with that.
fn add_fields(
    node: &Node,
    spec: &AppSpec,
    prefix: Option<&str>,
    parts: &mut Parts,
    asked_at: &AskedAt,
    client: &Origin,
    tracing: &mut Tracing,
) -> Option<AskedAt> {
    let headers = &mut parts.headers;
    // Once, rather than with each field.
    headers.reserve(FIELDS_ADDED);
    let host = asked_at.host.clone();
    let at = match &host {
        Some(_) => None,
        None => Some(asked_at.with_host(targets::name_host(headers, spec.host()))),
    };
    let host = host.filter(|host| host.to_str().is_ok());
    if let Some(prefix) = prefix {
        targets::tell_prefix(headers, prefix);
    }
    targets::passed_on(&parts.method, headers);
    let ClientInfo { addr, secure } = client.neighbour;
    let [scheme, client_scheme] =
        [secure, client.secure].map(|secure| if secure { "https" } else { "http" });
    let schemes = (scheme, client_scheme);
    fields::append_forwarded(headers, addr.map(|addr| addr.ip()), host, schemes);
    node.via[0].append(headers, parts.version);
    headers.insert(X_REQUEST_ID, tracing.id_field());
    at
}

/// Reads a body that is small, or one of at most `want_whole` bytes, into memory.
async fn gather(body: Body, want_whole: Option<usize>) -> Result<CallBody, Problem> {
    match tokio::time::timeout(WHOLE_BODY_WITHIN, Call::gather(body, want_whole)).await {
        Ok(gathered) => gathered.map_err(|error| body_cut_off(&*error)),
        Err(_) => Err(body_too_slow()),
    }
}

/// Makes a streamed body store the error that it ends with, if it breaks.
fn noting_if_broken(body: CallBody) -> (CallBody, Option<Broke>) {
    match body {
        CallBody::Stream(Some(body)) => {
            let broke = Broke::default();
            (CallBody::Stream(Some(body.telling_if_broken(&broke))), Some(broke))
        }
        body => (body, None),
    }
}

/// The request in the form for its app.
fn call(
    spec: &AppSpec,
    parts: Parts,
    prefix: Option<&str>,
    body: CallBody,
    upgrade: &UpgradeAsked,
    waits: Waits,
    tracing: &Tracing,
) -> Call {
    let mut call = Call {
        id: tracing.id.clone(),
        method: parts.method,
        target: targets::for_app(&parts.uri, prefix),
        fields: parts.headers,
        body,
        upgrade: upgrade.protocol.clone(),
        on_upgrade: upgrade.client_side.clone(),
        may_have_run: false,
        failed_at: None,
        failures: 0,
        attempt: rand::random(),
        waits,
        entered: None,
        version: None,
        counts_on: None,
        interim: None,
        moves_first: false,
        lost: None,
    };
    call.waits.never_wakes = !call.wakes(&spec.policy.wake);
    call
}

/// A request of a portable session, as it begins at the front door.
pub(super) fn portable<'a>(
    slot: &'a Arc<Slot>,
    call: &Call,
    key: Option<&str>,
    entry: Option<&'a Entry>,
) -> Portable<'a> {
    Portable {
        slot,
        rid: key.map_or_else(|| RequestKey(rand::random::<u128>().to_ne_bytes()), rid_of_key),
        fingerprint: if key.is_some() { call.fingerprint() } else { 0 },
        keyed: key.is_some(),
        seen: entry.and_then(|entry| match entry.kind {
            Kind::Portable { n, .. } => Some(n),
            Kind::Pinned { .. } => None,
        }),
        arrived: Arrived::AtFrontDoor,
        hops_left: FORWARDS_MAX,
        drawn: false,
        version: entry.and_then(|entry| entry.version.as_ref()),
    }
}

/// The problem of a body that ended before its length, came too slowly, or was malformed.
pub(super) fn body_cut_off(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Problem {
    if error.is::<TooSlow>() {
        let detail = format!("the peer stopped reading the request's body: {error}");
        return Problem::new(ProblemKind::BodyTooSlow, detail);
    }
    let detail = "the request's body was cut off, or is not valid HTTP";
    Problem::new(ProblemKind::BodyCutOff, detail).because(error)
}

fn body_too_slow() -> Problem {
    let detail = format!(
        "a request with an Idempotency-Key is carried out once all of its body has arrived, which \
         took more than {WHOLE_BODY_WITHIN:?}"
    );
    Problem::new(ProblemKind::BodyTooSlow, detail)
}

/// A nonce for an app's handshake (RFC 6455 section 4.1): a client over HTTP/2 sends none.
fn websocket_key() -> HeaderValue {
    let nonce: [u8; 16] = rand::random();
    HeaderValue::from_str(&STANDARD.encode(nonce)).expect("base64 is a field's value")
}

fn rid_of_key(key: &str) -> RequestKey {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
    RequestKey(digest.as_ref()[..16].try_into().expect("a digest has 32 bytes"))
}

/// The `Idempotency-Key`, as a string item or bare. A malformed one is refused, because its client
/// relies on it.
fn read_idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().map(|text| text.trim().trim_matches('"'));
    match text {
        Some(key)
            if values.next().is_none() && (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) =>
        {
            Ok(Some(key.to_owned()))
        }
        _ => Err(Problem::new(
            ProblemKind::BadIdempotencyKey,
            format!(
                "Idempotency-Key must be one value of 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible characters"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idempotency_key_is_taken_bare_or_quoted_and_refused_when_malformed() {
        let with = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("idempotency-key", HeaderValue::from_str(value).unwrap());
            }
            read_idempotency_key(&headers)
        };
        assert_eq!(with(&[]).unwrap(), None);
        assert_eq!(with(&["\"a-1\""]).unwrap().unwrap(), "a-1");
        assert_eq!(with(&["a-1"]).unwrap().unwrap(), "a-1");
        assert!(with(&["a", "b"]).is_err());
        assert!(with(&[""]).is_err());
        assert!(with(&[&"k".repeat(257)]).is_err());
    }
}
