//! The sessions that this peer owns or holds copies of, around the core's machines.

mod asked;
pub(crate) mod dead;
pub(crate) mod events;
pub(crate) mod losses;
pub(crate) mod memory;
pub(crate) mod store;
pub(crate) mod table;
