//! A store for [tower-sessions](https://docs.rs/tower-sessions) that keeps its sessions in the
//! mesh. Behind the feature `tower-sessions`.
//!
//! An app that uses tower-sessions moves into the mesh by its choice of store alone: the session's
//! cookie, its id and its API stay. Any peer reads a session and changes it, whichever made it.
//!
//! ```
//! use axum::http::StatusCode;
//! use tower_sessions::{Session, SessionManagerLayer};
//! use warmhop::Mesh;
//! use warmhop::identity::Authority;
//! use warmhop::ids::{AppName, PeerId};
//! use warmhop::session_store::Store;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let one = PeerId::new("one")?;
//! # let identity = Authority::generate("example")?.issue(&one)?;
//! let logins = AppName::new("logins")?;
//! let mesh = Mesh::builder(identity).registers(logins.clone()).start().await?;
//! let store = Store::new(mesh.registers(&logins).expect("they were declared"));
//!
//! async fn visit(session: Session) -> Result<String, StatusCode> {
//!     let failed = |_| StatusCode::SERVICE_UNAVAILABLE; // no majority of its holders is there
//!     let visits = session.get("visits").await.map_err(failed)?.unwrap_or(0) + 1;
//!     session.insert("visits", visits).await.map_err(failed)?;
//!     Ok(format!("visit {visits}"))
//! }
//! let app: axum::Router = axum::Router::new()
//!     .route("/", axum::routing::get(visit))
//!     .layer(SessionManagerLayer::new(store));
//! # mesh.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! tower-sessions reads a session as a whole when a request first asks for it, and writes it as a
//! whole when the request is done: of two concurrent requests the one that ends later wins, as with
//! each of its stores. If every change has to count, let the mesh keep the app's sessions itself:
//! see [`SessionMode::Portable`](crate::config::SessionMode::Portable).

use std::collections::HashMap;

use async_trait::async_trait;
use serde_json::Value;
use tower_sessions_core::session::{Id, Record};
use tower_sessions_core::session_store::{Error, Result, SessionStore};

use crate::request::registers::{Expires, RegisterError, Registers, When};

/// How often a new session may find its id in use before something else must be wrong: ids are 128
/// random bits.
const IDS_TRIED_MAX: usize = 8;

/// tower-sessions' sessions, one register each, which end when their `Expiry` says so: nothing needs
/// to delete them. A session's data may have up to [`VALUE_BYTES_MAX`](crate::VALUE_BYTES_MAX)
/// bytes as JSON.
///
/// * A new session never takes over an id that is in use.
/// * If another request has ended a session meanwhile, by a logout for example, a later save does
///   not bring it back: the save fails, and tower-sessions answers 500. So this is the store of a
///   `CachingSessionStore`, and not its cache.
#[derive(Debug, Clone)]
pub struct Store {
    registers: Registers,
}

impl Store {
    /// A store in `registers`, which may hold other things as well: its keys begin with
    /// `tower-session:`.
    #[must_use]
    pub fn new(registers: Registers) -> Self {
        Self { registers }
    }

    /// Writes the record if the condition holds; returns whether it did.
    async fn put(&self, record: &Record, when: When) -> Result<bool> {
        let bytes =
            serde_json::to_vec(&record.data).map_err(|error| Error::Encode(error.to_string()))?;
        // The record's expiry is kept as the register's own, and nowhere else.
        let expires = Expires::At(record.expiry_date.into());
        let change = self.registers.put(&key(&record.id), bytes, expires, when).await;
        change.map(|change| change.done).map_err(failed)
    }
}

#[async_trait]
impl SessionStore for Store {
    async fn create(&self, record: &mut Record) -> Result<()> {
        for _ in 0..IDS_TRIED_MAX {
            if self.put(record, When::Absent).await? {
                return Ok(());
            }
            record.id = Id::default();
        }
        Err(Error::Backend("no id was free for a new session".into()))
    }

    async fn save(&self, record: &Record) -> Result<()> {
        if self.put(record, When::Present).await? {
            return Ok(());
        }
        Err(Error::Backend(
            "the session ended while the request ran, and what it left there was not kept".into(),
        ))
    }

    async fn load(&self, id: &Id) -> Result<Option<Record>> {
        let Some(value) = self.registers.get(&key(id)).await.map_err(failed)? else {
            return Ok(None);
        };
        let data: HashMap<String, Value> = serde_json::from_slice(&value.bytes)
            // The cause might quote the session.
            .map_err(|_| Error::Decode("it is no session of tower-sessions".into()))?;
        Ok(Some(Record { id: *id, data, expiry_date: value.expires.into() }))
    }

    async fn delete(&self, id: &Id) -> Result<()> {
        self.registers.delete(&key(id), When::Always).await.map(drop).map_err(failed)
    }
}

fn key(id: &Id) -> Vec<u8> {
    format!("tower-session:{id}").into_bytes()
}

fn failed(error: RegisterError) -> Error {
    match error {
        RegisterError::TooLarge { .. } => Error::Encode(error.to_string()),
        error => Error::Backend(error.to_string()),
    }
}
