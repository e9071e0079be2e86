//! `peers.json`, the record of a mesh that outlives its launcher.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::ports::PeerPorts;
use crate::process::ProcessId;

/// One peer, as scripts read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// Its name.
    pub name: String,
    /// Its process; after a kill, that of its last life. `started` tells it from a later
    /// process with the same pid.
    #[serde(flatten)]
    pub process: ProcessId,
    /// Its front door.
    pub http: SocketAddr,
    /// Its mesh port (UDP).
    pub mesh: SocketAddr,
    /// Its admin listener.
    pub admin: SocketAddr,
    /// Its Redis-speaking endpoint.
    pub redis: SocketAddr,
}

impl PeerRecord {
    /// Its addresses.
    #[must_use]
    pub fn ports(&self) -> PeerPorts {
        PeerPorts { http: self.http, mesh: self.mesh, admin: self.admin, redis: self.redis }
    }
}

/// The record of the mesh under `folder`.
#[must_use]
pub fn file(folder: &Path) -> PathBuf {
    folder.join("peers.json")
}

/// Reads the record of the mesh under `folder`; none is up if there is none.
///
/// # Errors
/// If it is there but cannot be read.
pub fn read(folder: &Path) -> Result<Option<Vec<PeerRecord>>> {
    let path = file(folder);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let peers = serde_json::from_str(&text).with_context(|| {
        format!("{} is damaged; stop the peers by hand and remove it", path.display())
    })?;
    Ok(Some(peers))
}

/// Replaces the record as a whole: a reader finds the old one or the new one.
///
/// # Errors
/// If it cannot be written.
pub fn write(folder: &Path, peers: &[PeerRecord]) -> Result<()> {
    let path = file(folder);
    let draft = folder.join(format!(".peers.json.{}", std::process::id()));
    let mut text = serde_json::to_string_pretty(peers)?;
    text.push('\n');
    std::fs::write(&draft, text)
        .and_then(|()| std::fs::rename(&draft, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Removes the record.
///
/// # Errors
/// If it is there and cannot be removed.
pub fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_file(file(folder)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
