//! The machine that a peer runs on: the processes that it starts and their limits, its service
//! manager, its log on standard error, and the authorities that the system trusts.

#[cfg(target_os = "linux")]
pub(crate) mod cgroup;
pub mod confine;
pub mod guard;
pub(crate) mod https;
pub mod journal;
pub mod log;
pub(crate) mod memory;
pub mod notify;
pub mod process;
pub mod stderr;
