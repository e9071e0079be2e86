//! What a peer looks after without being asked: copies kept ready, sessions kept on enough peers.

pub(crate) mod gauges;
pub(crate) mod repair;
pub(crate) mod report;
pub(crate) mod skew;
pub(crate) mod upkeep;
