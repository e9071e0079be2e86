//! Ways in which a shop can live on and be of no use, so that one can see what becomes of its clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::Shop;

/// What ails the shop.
#[derive(Default)]
pub(crate) struct Illness {
    /// It answers nothing any more.
    hangs: AtomicBool,
    /// It answers nothing any more but that it is well.
    stalls: AtomicBool,
    /// It says that it is not well, and serves all the same.
    unwell: AtomicBool,
    /// It takes no connection any more.
    closed: AtomicBool,
    closing: Notify,
}

impl Illness {
    /// Returns where a client is answered.
    pub(crate) async fn answers(&self) {
        if self.hangs.load(Ordering::SeqCst) || self.stalls.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    /// Returns where it is answered whether the shop is well.
    pub(crate) async fn answers_whether_it_is_well(&self) {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn is_unwell(&self) -> bool {
        self.unwell.load(Ordering::SeqCst)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Returns once it takes no connection any more.
    pub(crate) async fn closes(&self) {
        self.closing.notified().await;
    }
}

/// How it falls ill.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum How {
    Hangs,
    Stalls,
    Unwell,
    Closed,
    /// Not at all: it is well again.
    Well,
}

#[derive(Deserialize)]
pub(crate) struct IllnessQuery {
    how: How,
}

/// Returns once the port is closed.
///
/// Until then the kernel still accepts connections for the shop, and resets them when the port
/// closes: who sends a request in between cannot know whether it was read.
async fn refuses_connections(port: u16) {
    while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// From the next request on. Anyone who may crash the shop may do this.
pub(crate) async fn falls_ill(
    State(shop): State<Arc<Shop>>,
    Query(query): Query<IllnessQuery>,
) -> Response {
    if !shop.allow_crash {
        return (StatusCode::FORBIDDEN, "Set ALLOW_CRASH=1 to allow this.\n").into_response();
    }
    let illness = &shop.illness;
    match query.how {
        How::Hangs => illness.hangs.store(true, Ordering::SeqCst),
        How::Stalls => illness.stalls.store(true, Ordering::SeqCst),
        How::Unwell => illness.unwell.store(true, Ordering::SeqCst),
        How::Well => illness.unwell.store(false, Ordering::SeqCst),
        How::Closed => {
            illness.closed.store(true, Ordering::SeqCst);
            illness.closing.notify_one();
            refuses_connections(shop.port).await;
        }
    }
    StatusCode::NO_CONTENT.into_response()
}
