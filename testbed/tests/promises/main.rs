//! What `warmhop` promises its users, asked of real processes from the outside.
//!
//! Every test has a mesh of its own on ports of its own, and leaves nothing running.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod changes;
mod commands;
mod cookie;
mod ends;
#[cfg(debug_assertions)]
mod failpoints;
mod faults;
mod framing;
mod health;
mod keyed;
mod leaving;
mod locks;
mod matching;
mod operations;
mod requests;
mod rolls;
mod sessions;
mod streaming;
mod support;
mod traces;
