//! The sessions that this peer owns or holds copies of, around the core's machines.

pub(crate) mod dead;
pub(crate) mod events;
pub(crate) mod losses;
pub(crate) mod memory;
pub(crate) mod store;
pub(crate) mod table;
