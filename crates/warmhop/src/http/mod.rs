//! HTTP itself, used by all other rooms: bodies, fields, framing, upgrades.

pub(crate) mod about;
pub(crate) mod accept;
pub(crate) mod aside;
pub mod body;
pub(crate) mod chunks;
pub(crate) mod client;
pub(crate) mod clients;
pub(crate) mod departure;
pub(crate) mod field_names;
pub(crate) mod field_table;
pub(crate) mod fields;
pub(crate) mod forwarded;
pub(crate) mod framing;
pub(crate) mod h2_frames;
pub(crate) mod heads;
pub(crate) mod interim;
pub(crate) mod names;
pub(crate) mod peek;
pub(crate) mod refusals;
pub(crate) mod spare;
pub(crate) mod transit;
pub(crate) mod tunnels;
pub(crate) mod upload;
pub(crate) mod willing;
pub(crate) mod writes_through;
