//! The binary and the processes that it starts, asked from the outside.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod child;
mod cli;
mod role;
