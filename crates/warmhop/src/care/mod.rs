//! What a peer does without being asked: it keeps copies ready, and sessions on enough peers.

pub(crate) mod alone;
pub(crate) mod gauges;
pub(crate) mod pace;
pub(crate) mod repair;
pub(crate) mod report;
pub(crate) mod skew;
pub(crate) mod unlinked;
pub(crate) mod upkeep;
pub(crate) mod ways;
