//! The answer to an operation on a register. It travels with the response that carries it, so it
//! is below everything that runs operations.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use warmhop_core::octets;

/// The effect that an operation had.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) done: bool,
    pub(crate) version: u64,
    pub(crate) before: Option<Held>,
}

/// A value in transit, in an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Held {
    #[serde(with = "octets")]
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) version: u64,
    pub(crate) expires: u64,
}
