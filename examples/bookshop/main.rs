//! A bookshop: an ordinary web app that is slow to start because it has work to do.
//!
//! Before it can answer, it reads its stock and builds a full-text index of it in memory,
//! which takes some seconds. Nothing here knows of a mesh; the one thing it does for it is to
//! keep the client's cart in the field `Warmhop-Session` (see `session.rs`), so that the cart
//! follows the client to any copy of the shop.
//!
//! Environment: `PORT` (required), `DOCS` (books in stock), `ALLOW_CRASH=1` (opens
//! `POST /crash`, which ends the process at once, and `POST /falls-ill`, which has it live on in a
//! bad way), `EDITION` (every answer says it in the field `Bookshop-Edition`).

mod corpus;
mod illness;
mod index;
mod session;

use std::collections::HashMap;
use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, Request, State};
use axum::http::header::{CONTENT_TYPE, COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{Stream, StreamExt, stream};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::illness::{Illness, falls_ill};
use crate::index::Index;
use crate::session::{Cart, FIELD};

const DOCS_DEFAULT: u32 = 150_000;
const HITS_MAX: usize = 20;
const WAIT_MAX: Duration = Duration::from_secs(60);
const BYTES_MAX: u64 = 1 << 30;
const VISITORS_MAX: usize = 10_000;

/// What every handler shares.
struct Shop {
    port: u16,
    allow_crash: bool,
    edition: Option<HeaderValue>,
    illness: Illness,
    docs: u32,
    docs_read: AtomicU32,
    index: OnceLock<Index>,
    visits_by_visitor: Mutex<HashMap<String, u64>>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some(port) = std::env::var("PORT").ok().and_then(|port| port.parse().ok()) else {
        eprintln!("bookshop: set PORT to the port to listen on");
        return ExitCode::from(2);
    };
    let docs = std::env::var("DOCS").ok().and_then(|docs| docs.parse().ok());
    let shop = Arc::new(Shop {
        port,
        allow_crash: std::env::var("ALLOW_CRASH").is_ok_and(|value| value == "1"),
        edition: std::env::var("EDITION").ok().and_then(|edition| edition.parse().ok()),
        illness: Illness::default(),
        docs: docs.unwrap_or(DOCS_DEFAULT),
        docs_read: AtomicU32::new(0),
        index: OnceLock::new(),
        visits_by_visitor: Mutex::new(HashMap::new()),
    });
    let listener = match TcpListener::bind(("127.0.0.1", port)).await {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("bookshop: cannot listen on 127.0.0.1:{port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    // The index is built beside the listener, so that health checks are answered (503) while
    // it grows. On its own thread: it is seconds of pure computation.
    let building = Arc::clone(&shop);
    std::thread::spawn(move || building.open());
    let ill = Arc::clone(&shop);
    let closing = async move {
        tokio::select! {
            () = terminated() => (),
            () = ill.illness.closes() => (),
        }
    };
    let served = axum::serve(listener, router(Arc::clone(&shop))).with_graceful_shutdown(closing);
    match served.await {
        Ok(()) => {
            if shop.illness.is_closed() {
                terminated().await;
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bookshop: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Shop {
    fn open(&self) {
        let began = Instant::now();
        eprintln!("bookshop: reading {} books", self.docs);
        let mut reported = Instant::now();
        let index = Index::build(self.docs, |read| {
            self.docs_read.store(read, Ordering::Relaxed);
            if reported.elapsed() > Duration::from_millis(500) {
                reported = Instant::now();
                eprintln!("bookshop: {read} of {} books indexed", self.docs);
            }
        });
        let (books, terms, took) = (self.docs, index.terms(), began.elapsed().as_secs_f64());
        let _ = self.index.set(index);
        eprintln!(
            "bookshop: open on port {}: {books} books, {terms} terms, {took:.2} s",
            self.port
        );
    }
}

fn router(shop: Arc<Shop>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/search", get(search))
        .route("/cart", get(cart))
        .route("/cart/add", post(cart_add))
        .route("/cart/clear", post(cart_clear))
        .route("/login", post(login))
        .route("/visits", post(visits))
        .route("/slow", get(slow))
        .route("/bytes", get(bytes))
        .route("/events", get(events))
        .route("/cut", get(cut))
        .route("/echo", post(echo))
        .route("/count", post(count))
        .route("/early", post(early))
        .route("/headers", get(headers))
        .route("/whoami", get(whoami))
        .route("/ws", get(websocket))
        .route("/crash", post(crash))
        .route("/falls-ill", post(falls_ill))
        .layer(from_fn_with_state(Arc::clone(&shop), closed_until_indexed))
        .route("/healthz", get(healthz))
        .with_state(shop)
}

async fn closed_until_indexed(
    State(shop): State<Arc<Shop>>,
    request: Request,
    next: Next,
) -> Response {
    if shop.index.get().is_some() {
        shop.illness.answers().await;
        let mut response = next.run(request).await;
        if let Some(edition) = &shop.edition {
            response.headers_mut().insert("bookshop-edition", edition.clone());
        }
        return response;
    }
    (StatusCode::SERVICE_UNAVAILABLE, "The shop is not open yet.\n").into_response()
}

async fn healthz(State(shop): State<Arc<Shop>>) -> Response {
    shop.illness.answers_whether_it_is_well().await;
    let read = shop.docs_read.load(Ordering::Relaxed);
    let ready = shop.index.get().is_some() && !shop.illness.is_unwell();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready, "books": shop.docs, "indexed": read }))).into_response()
}

async fn page(State(shop): State<Arc<Shop>>, cart: Cart) -> Html<String> {
    Html(format!(
        "<!doctype html><meta charset=utf-8><title>Bookshop</title>\
         <style>body{{font:1.1em/1.5 Georgia,serif;max-width:36em;margin:3em auto;padding:0 1em}}\
         input{{font:inherit;width:70%}}button{{font:inherit}}</style>\
         <h1>Bookshop</h1><p>{} books in stock, {} in your cart. \
         Served by process {} on port {}.</p>\
         <form action=search><input name=q value='\"silent harbour\"'> <button>Search</button></form>\
         <form method=post action='cart/add?item=A%20book'><button>Put a book in the cart</button></form>",
        shop.docs,
        cart.count,
        std::process::id(),
        shop.port,
    ))
}

#[derive(Deserialize)]
struct SearchQuery {
    q: String,
}

async fn search(State(shop): State<Arc<Shop>>, Query(query): Query<SearchQuery>) -> Response {
    let Some(index) = shop.index.get() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let began = Instant::now();
    let (total, hits) = index.search(&query.q, HITS_MAX);
    let took_us = began.elapsed().as_micros() as u64;
    Json(json!({ "query": query.q, "total": total, "took_us": took_us, "hits": hits }))
        .into_response()
}

async fn cart(State(shop): State<Arc<Shop>>, cart: Cart) -> Response {
    shop.show(&cart).into_response()
}

#[derive(Deserialize)]
struct AddQuery {
    item: String,
    /// How long the till takes, in milliseconds.
    #[serde(default)]
    ms: u64,
}

async fn cart_add(
    State(shop): State<Arc<Shop>>,
    Query(query): Query<AddQuery>,
    mut cart: Cart,
) -> Response {
    sleep(Duration::from_millis(query.ms).min(WAIT_MAX)).await;
    cart.add(&query.item);
    ([(FIELD, cart.to_field())], shop.show(&cart)).into_response()
}

/// A login, as far as the session goes: it means more from here on, so it gets a new id, and anyone who
/// had the cookie of before has nothing any more. The cart stays.
async fn login(State(shop): State<Arc<Shop>>, cart: Cart) -> Response {
    ([(FIELD, cart.to_field_renewed())], shop.show(&cart)).into_response()
}

async fn cart_clear(State(shop): State<Arc<Shop>>) -> Response {
    ([(FIELD, Cart::cleared())], shop.show(&Cart::default())).into_response()
}

impl Shop {
    fn show(&self, cart: &Cart) -> Json<serde_json::Value> {
        Json(json!({
            "count": cart.count,
            "items": cart.items,
            "pid": std::process::id(),
            "port": self.port,
        }))
    }
}

/// Counts a visitor's visits in this process's own memory, by a cookie of the app's own: what
/// many apps do, and what the mesh calls a pinned session.
async fn visits(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> Response {
    let known = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix("visitor="))
        .map(str::to_owned);
    let mut visits_by_visitor = shop.visits_by_visitor.lock().unwrap_or_else(|e| e.into_inner());
    let visitor =
        known.unwrap_or_else(|| format!("{:x}-{}", std::process::id(), visits_by_visitor.len()));
    if visits_by_visitor.len() >= VISITORS_MAX {
        visits_by_visitor.clear();
    }
    let visits = visits_by_visitor.entry(visitor.clone()).or_default();
    *visits += 1;
    let cookie = format!("visitor={visitor}; Path=/; HttpOnly");
    let body = Json(json!({ "visits": *visits, "pid": std::process::id(), "port": shop.port }));
    ([(SET_COOKIE, cookie)], body).into_response()
}

#[derive(Deserialize)]
struct SlowQuery {
    ms: u64,
    /// Milliseconds before the head of the response.
    #[serde(default)]
    head: u64,
}

/// A line about every 100 ms, `ms` milliseconds long.
async fn slow(Query(query): Query<SlowQuery>) -> Response {
    sleep(Duration::from_millis(query.head).min(WAIT_MAX)).await;
    let length = Duration::from_millis(query.ms).min(WAIT_MAX);
    let began = Instant::now();
    let lines = stream::unfold(0u32, move |line| async move {
        let left = length.checked_sub(began.elapsed())?;
        sleep(left.min(Duration::from_millis(100))).await;
        Some((Ok::<_, Infallible>(Bytes::from(format!("line {line}\n"))), line + 1))
    });
    Body::from_stream(lines).into_response()
}

#[derive(Deserialize)]
struct BytesQuery {
    n: u64,
}

/// `n` bytes, of which the one at `i` is `i % 251`.
async fn bytes(Query(query): Query<BytesQuery>) -> Response {
    binary(Body::from_stream(numbered(query.n.min(BYTES_MAX)).map(Ok::<_, Infallible>)))
}

/// As `bytes`, but fails where it should end, once what came before is on its way.
async fn cut(Query(query): Query<BytesQuery>) -> Response {
    let whole = numbered(query.n.min(BYTES_MAX)).map(Ok);
    let fails = stream::once(async {
        sleep(Duration::from_millis(100)).await;
        Err(std::io::Error::other("cut off, as asked"))
    });
    binary(Body::from_stream(whole.chain(fails)))
}

fn binary(body: Body) -> Response {
    ([(CONTENT_TYPE, "application/octet-stream")], body).into_response()
}

/// Slices of one buffer, so that a download costs the shop next to nothing.
fn numbered(total: u64) -> impl Stream<Item = Bytes> {
    const PERIOD: usize = 251;
    const PIECE: usize = 32 * 1024;
    static NUMBERS: LazyLock<Bytes> =
        LazyLock::new(|| (0..PERIOD + PIECE).map(|i| (i % PERIOD) as u8).collect());
    stream::unfold(0, move |sent: u64| async move {
        (sent < total).then(|| {
            let (from, length) =
                ((sent % PERIOD as u64) as usize, (total - sent).min(PIECE as u64));
            (NUMBERS.slice(from..from + length as usize), sent + length)
        })
    })
}

/// How many bytes the request's body has.
async fn count(request: Request) -> Response {
    let mut body = request.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes += frame.data_ref().map_or(0, Bytes::len),
            Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
        }
    }
    Json(json!({ "bytes": bytes })).into_response()
}

/// Refuses a body before it has come.
async fn early(_: Request) -> Response {
    (StatusCode::PAYLOAD_TOO_LARGE, "No need to send it.\n").into_response()
}

/// A server-sent event every 50 ms, numbered, until the client leaves.
async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let ticks = stream::unfold(0u64, |tick| async move {
        if tick > 0 {
            sleep(Duration::from_millis(50)).await;
        }
        let data = json!({ "tick": tick, "pid": std::process::id() }).to_string();
        Some((Ok(Event::default().id(tick.to_string()).data(data)), tick + 1))
    });
    Sse::new(ticks).keep_alive(KeepAlive::default())
}

/// Streams the body back as it arrives, trailers included.
async fn echo(request: Request) -> Response {
    let kind = request.headers().get(CONTENT_TYPE).cloned();
    let mut response = Response::new(Body::new(request.into_body().map_frame(|frame| frame)));
    if let Some(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}

/// The request's fields as they arrived here, in order.
async fn headers(headers: HeaderMap) -> Json<Vec<(String, String)>> {
    let text = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into();
    Json(headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect())
}

async fn whoami(State(shop): State<Arc<Shop>>) -> Json<serde_json::Value> {
    Json(json!({ "pid": std::process::id(), "port": shop.port }))
}

async fn websocket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.max_message_size(1 << 20).on_upgrade(|mut socket: WebSocket| async move {
        while let Some(Ok(message)) = socket.recv().await {
            if matches!(message, Message::Text(_) | Message::Binary(_))
                && socket.send(message).await.is_err()
            {
                return;
            }
        }
    })
}

async fn crash(State(shop): State<Arc<Shop>>) -> Response {
    if shop.allow_crash {
        eprintln!("bookshop: crashing, as it was asked to");
        std::process::abort();
    }
    (StatusCode::FORBIDDEN, "Set ALLOW_CRASH=1 to allow this.\n").into_response()
}

/// Ends with SIGTERM or Ctrl-C; requests in flight are answered first.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => (),
                _ = tokio::signal::ctrl_c() => (),
            }
        }
        Err(error) => eprintln!("bookshop: no signal handler: {error}"),
    }
}
