//! A ledger: each client has a list of items, kept as its session and nowhere else.
//!
//! Every append answers with the whole list, and is written down in a log before it is answered,
//! so that a test that drives it can find out afterwards what was run, where, and on what. Nothing here
//! knows of a mesh but for the field `Warmhop-Session`, an RFC 9651 byte sequence.
//!
//! Environment: `PORT` (required), `START_MS` (how long it takes to start), `LEDGER_LOG` (the
//! file that gets a line of JSON for each append), `LEDGER_PEER` (the name in those lines).
//!
//! On SIGUSR1 it lives on and takes no more connections, so that one can see what becomes of it.

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::SignalKind;
use tokio::time::sleep;

const FIELD: HeaderName = HeaderName::from_static("warmhop-session");
const ITEMS_MAX: usize = 500;
const ITEM_CHARS_MAX: usize = 64;
const WAIT_MAX: Duration = Duration::from_secs(10);

struct Ledger {
    peer: String,
    log: Option<Mutex<File>>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some(port) = number("PORT").and_then(|port| u16::try_from(port).ok()) else {
        eprintln!("ledger: set PORT to the port to listen on");
        return ExitCode::from(2);
    };
    let log = match std::env::var("LEDGER_LOG") {
        Err(_) => None,
        Ok(path) => match File::options().create(true).append(true).open(&path) {
            Ok(file) => Some(Mutex::new(file)),
            Err(error) => {
                eprintln!("ledger: cannot write to LEDGER_LOG={path}: {error}");
                return ExitCode::FAILURE;
            }
        },
    };
    let peer = std::env::var("LEDGER_PEER").unwrap_or_default();
    sleep(Duration::from_millis(number("START_MS").unwrap_or(0))).await;
    let router = Router::new()
        .route("/append", post(append))
        .route("/list", get(list))
        .route("/ws", get(socket))
        .route("/healthz", get(|| async { "open" }))
        .with_state(Arc::new(Ledger { peer, log }));
    let served = async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        tokio::select! {
            served = axum::serve(listener, router).with_graceful_shutdown(terminated()) => served,
            () = signalled(SignalKind::user_defined1()) => {
                // The listener is gone, and what is open goes on.
                terminated().await;
                Ok(())
            }
        }
    };
    match served.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ledger: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

async fn terminated() {
    signalled(SignalKind::terminate()).await;
}

async fn signalled(by: SignalKind) {
    match tokio::signal::unix::signal(by) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

/// The items that the request's session holds.
fn held(headers: &HeaderMap) -> Vec<String> {
    let decoded = headers.get(FIELD).and_then(|value| {
        let base64 = value.to_str().ok()?.trim().strip_prefix(':')?.strip_suffix(':')?;
        serde_json::from_slice(&STANDARD.decode(base64).ok()?).ok()
    });
    decoded.unwrap_or_default()
}

#[derive(Deserialize)]
struct How {
    /// How long the append takes, in milliseconds.
    #[serde(default)]
    ms: u64,
}

async fn append(
    State(ledger): State<Arc<Ledger>>,
    Query(how): Query<How>,
    headers: HeaderMap,
    item: String,
) -> Response {
    let mut items = held(&headers);
    if items.len() >= ITEMS_MAX || item.is_empty() || item.chars().count() > ITEM_CHARS_MAX {
        return (StatusCode::UNPROCESSABLE_ENTITY, "the list is full, or this is no item\n")
            .into_response();
    }
    sleep(Duration::from_millis(how.ms).min(WAIT_MAX)).await;
    if let Err(error) = ledger.write_down(&item, items.len()) {
        return (StatusCode::INTERNAL_SERVER_ERROR, format!("the log: {error}\n")).into_response();
    }
    items.push(item);
    let state = serde_json::to_vec(&items).unwrap_or_default();
    match HeaderValue::from_str(&format!(":{}:", STANDARD.encode(state))) {
        Ok(state) => ([(FIELD, state)], Json(items)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

impl Ledger {
    fn write_down(&self, item: &str, before: usize) -> std::io::Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = json!({
            "peer": self.peer, "item": item, "before": before,
            "at_unix_ms": at.as_millis() as u64,
        });
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        // One write a line, so that a process that is killed leaves whole ones.
        log.write_all(format!("{line}\n").as_bytes())
    }
}

async fn list(headers: HeaderMap) -> Json<Vec<String>> {
    Json(held(&headers))
}

async fn socket(upgrade: WebSocketUpgrade) -> Response {
    async fn echo(mut socket: WebSocket) {
        while let Some(Ok(message)) = socket.recv().await {
            let text = matches!(message, Message::Text(_) | Message::Binary(_));
            if text && socket.send(message).await.is_err() {
                return;
            }
        }
    }
    upgrade.on_upgrade(echo)
}
