//! The parts of the binary `warmhop`: its configuration file, child-process apps, admin listener
//! and the commands that talk to one. It is a library only so that its tests can reach it; it
//! promises nothing to other programs, which embed the crate `warmhop`.

#![allow(missing_debug_implementations, reason = "these types are nobody's interface")]

pub mod cert;
pub mod child;
pub mod config;
mod failure;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
pub mod lb;
pub mod operate;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod redis;
pub mod run;
pub mod setup;
