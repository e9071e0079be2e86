//! Launches, breaks and judges meshes of real `warmhop` processes on this machine.
//!
//! Everything here is outside of the mesh: it runs the binary, reads the admin listener's
//! JSON and speaks HTTP to the front doors, as any user could. It depends on no other crate of
//! the workspace, so whatever it shows holds for users, too.
//!
//! | module | owns |
//! | --- | --- |
//! | [`process`] | whether a process still runs, and ending it without ending another |
//! | [`ports`] | which ports the peers of a mesh use |
//! | [`apps`] | reading the `[[app]]` tables that a mesh is to serve |
//! | [`mesh`] | peers: their certificates, configurations, processes; waiting for what they report |
//! | [`client`] | an HTTP client that keeps cookies and takes times |
//! | [`resp`] | a client of the Redis-speaking endpoint |
//! | [`state`] | `peers.json`, the record of a mesh that outlives its launcher |
//! | [`commands`] | `up`, `down`, `kill`, `start` |
//! | [`demo`] | the guided tour |
//! | [`chaos`] | load, faults, and the judgement of what clients saw |
//! | [`mod@bench`] | figures of optimised processes |
//! | [`costs`] | what a request allocates, beside the most that it may |
//!
//! It reads `/proc`, so it needs Linux.

pub mod apps;
pub mod bench;
pub mod bench_burst;
pub mod bench_idle;
pub mod bench_instructions;
mod bench_mesh;
pub mod bench_messages;
pub mod bench_proxies;
pub mod bench_streams;
pub mod chaos;
pub mod client;
pub mod commands;
pub mod costs;
pub mod demo;
pub mod mesh;
pub mod ports;
pub mod process;
pub mod resp;
pub mod state;
pub mod terminal;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The root of the workspace that this crate was built from.
#[must_use]
pub fn workspace() -> &'static Path {
    // The crate's own folder is one level below the root.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The folder of the programs that were built together with this one.
///
/// # Errors
/// If the path of the running program is not known.
pub fn programs() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot tell where this program is")?;
    let dir = exe.parent().context("this program has no folder")?;
    // Tests run from `deps`, one level below the programs.
    Ok(if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir }.to_path_buf())
}

/// The path of a program that was built together with this one.
///
/// # Errors
/// If it has not been built.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = programs()?.join(name);
    if !path.is_file() {
        bail!("{} is not built; run `cargo build --workspace --bins`", path.display());
    }
    Ok(path)
}
