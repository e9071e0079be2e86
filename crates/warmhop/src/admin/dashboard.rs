//! The dashboard: one self-contained page, and the stream of events that it draws.
//!
//! Nothing runs while nobody watches. While there is a watcher, one task reads the peer's state
//! twice a second and sends every watcher the same text; a watcher that reads slowly skips to the
//! newest, so that each holds one text at most.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::admin::peer::Peer;
use crate::admin::watchers::{Place, Places, Who};
use crate::observe::status::Status;
use decisions::Decision;

mod decisions;

/// How often watchers get an event.
const TICK: Duration = Duration::from_millis(500);
/// How many may watch at once.
const WATCHERS_MAX: usize = 16;
/// How many of the newest requests are read, and how many kinds of their decisions are sent.
const RECENT: usize = 400;
const DECISIONS: usize = 40;

/// The picture of the mesh, the history and the seeds come first, since the rest of the script uses them.
const SCRIPT: &str = concat!(
    include_str!("dashboard/mesh.js"),
    include_str!("dashboard/history.js"),
    include_str!("dashboard/seeds.js"),
    include_str!("dashboard/dashboard.js")
);

/// The page with its style and its script.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    include_str!("dashboard/index.html")
        .replace("{style}", include_str!("dashboard/dashboard.css"))
        .replace("{script}", SCRIPT)
});

/// The page's own style and script, by their digests (CSP Level 3 section 2.3.1), and the peer's
/// events; nothing from elsewhere, and no other page may frame it.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let digest = |text: &str| {
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        format!("'sha256-{}'", STANDARD.encode(digest))
    };
    let policy = format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        digest(include_str!("dashboard/dashboard.css")),
        digest(SCRIPT),
    );
    HeaderValue::try_from(policy).expect("digests in base64 are visible ASCII")
});

/// The page.
pub(crate) fn page() -> Response {
    let headers: [(HeaderName, HeaderValue); 5] = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, POLICY.clone()),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, PAGE.as_str()).into_response()
}

/// The contents of an event.
#[derive(Serialize)]
struct News {
    /// The time here: the watcher's clock need not agree.
    now_unix_ms: u64,
    status: Status,
    recent: Vec<Decision>,
}

/// Sends a peer's events to its watchers.
#[derive(Clone)]
pub(crate) struct Feed {
    places: Arc<Places>,
    /// The task's shared state, as long as there is a watcher.
    broadcast: Arc<Mutex<Weak<Broadcast>>>,
}

struct Broadcast {
    news: watch::Sender<Bytes>,
}

impl Feed {
    pub(crate) fn new() -> Self {
        Self { places: Places::new(WATCHERS_MAX), broadcast: Arc::default() }
    }

    /// A response that lasts until its client leaves, or has to give its place to another; `None`
    /// if too many watch already.
    pub(crate) fn watch(&self, peer: &impl Peer, who: Who) -> Option<Response> {
        let place = self.places.take(who)?;
        let broadcast = self.broadcast(peer);
        let leaves = place.leave().cancelled_owned();
        let live = events(broadcast, place).take_until(leaves).map(Ok::<_, Infallible>);
        let body = Body::from_stream(live);
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
            (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        Some((headers, body).into_response())
    }

    /// The running one, or a new one.
    fn broadcast(&self, peer: &impl Peer) -> Arc<Broadcast> {
        let mut known = self.broadcast.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(broadcast) = known.upgrade() {
            return broadcast;
        }
        let broadcast = Arc::new(Broadcast { news: watch::Sender::new(event(peer)) });
        *known = Arc::downgrade(&broadcast);
        tokio::spawn(send_events(Arc::downgrade(&broadcast), peer.clone()));
        broadcast
    }
}

/// Sends events until nobody listens any more.
async fn send_events(broadcast: Weak<Broadcast>, peer: impl Peer) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is due at once, and its event was sent already.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let Some(broadcast) = broadcast.upgrade() else { return };
        broadcast.news.send_replace(event(&peer));
    }
}

/// The newest event, and those that follow it.
fn events(broadcast: Arc<Broadcast>, place: Place) -> impl Stream<Item = Bytes> {
    let news = broadcast.news.subscribe();
    stream::unfold((news, true, (broadcast, place)), |(mut news, first, held)| async move {
        if !first {
            news.changed().await.ok()?;
        }
        let event = news.borrow_and_update().clone();
        Some((event, (news, false, held)))
    })
}

/// One event in the form of Server-Sent Events (HTML Living Standard, section 9.2.5).
fn event(peer: &impl Peer) -> Bytes {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let news = News {
        now_unix_ms,
        status: peer.status(),
        recent: decisions::fold(peer.recent(RECENT), DECISIONS),
    };
    let json = serde_json::to_string(&news).unwrap_or_default();
    format!("data: {json}\n\n").into()
}
