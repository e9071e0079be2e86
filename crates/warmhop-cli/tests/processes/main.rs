//! The binary and the processes that it starts, asked from the outside.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![allow(clippy::print_stdout, reason = "the roles tell what they are by their output")]

#[cfg(target_os = "linux")]
mod attacks;
mod child;
mod cli;
mod confined;
mod documented;
mod embedded;
mod first_minute;
mod https;
mod interim;
mod joining;
mod logging;
mod misbehaving;
mod operators;
mod printed;
mod redis_seen;
mod role;
mod same_answers;
mod starting;
mod watch;
