//! The parts of the binary `warmhop`: its configuration file, child-process apps, admin listener
//! and the commands that talk to one. It is a library only so that its tests can reach it; it
//! promises nothing to other programs, which embed the crate `warmhop`.

#![allow(missing_debug_implementations, reason = "these types are nobody's interface")]

pub mod access_log;
pub mod admin;
pub mod cert;
#[cfg(target_os = "linux")]
mod cgroup;
pub mod child;
mod clean;
pub mod client;
mod columns;
pub mod config;
pub mod confine;
pub mod cores;
pub mod dev;
mod failure;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod guard;
mod https;
pub mod init;
pub mod journal;
pub mod launch;
pub mod lb;
pub mod log;
mod memory;
pub mod notify;
pub mod operate;
#[cfg(feature = "otlp")]
pub mod otlp;
mod preflight;
pub mod process;
pub mod redis;
pub mod reload;
pub mod run;
pub mod show;
pub mod stderr;
pub mod watch;
