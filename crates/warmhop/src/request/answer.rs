//! The answer to an operation on a register. It travels with the response that carries it, so it
//! is below everything that runs operations.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
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
    #[serde(serialize_with = "octets::serialize", deserialize_with = "shared")]
    pub(crate) bytes: Bytes,
    pub(crate) version: u64,
    pub(crate) expires: u64,
}

fn shared<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    octets::deserialize(deserializer).map(Bytes::from_owner)
}
