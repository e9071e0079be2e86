//! The binary and the processes that it starts, asked from the outside.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![allow(clippy::print_stdout, reason = "the roles tell what they are by their output")]

#[cfg(target_os = "linux")]
mod attacks;
mod child;
mod cli;
mod confined;
mod documented;
mod first_minute;
mod joining;
mod logging;
mod operators;
mod role;
mod watch;
