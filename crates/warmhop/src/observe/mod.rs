//! How a peer reports its work: metrics, traces, the access log, status.

pub mod access;
pub(crate) mod clock;
pub(crate) mod cut_offs;
pub(crate) mod doors;
pub(crate) mod durations;
pub(crate) mod failpoint;
pub(crate) mod history;
pub(crate) mod labels;
pub(crate) mod lines;
pub(crate) mod metrics;
pub(crate) mod passage;
pub(crate) mod progress;
pub(crate) mod recall;
pub mod status;
pub mod trace;
pub(crate) mod traffic;
