//! Connections to other peers, and what travels over them: news, gossip, frames.

pub(crate) mod accept;
pub(crate) mod book;
pub(crate) mod carry;
pub(crate) mod clocks;
pub(crate) mod close_code;
pub(crate) mod context;
pub(crate) mod counters;
pub(crate) mod dial;
pub(crate) mod endpoint;
pub(crate) mod gossip;
pub(crate) mod gossip_loop;
pub(crate) mod handler;
pub(crate) mod hop_body;
pub(crate) mod lane;
pub(crate) mod link;
pub(crate) mod meet;
pub(crate) mod met;
pub(crate) mod net;
pub(crate) mod news;
pub(crate) mod seeds;
pub(crate) mod session_bytes;
pub(crate) mod table;
pub(crate) mod together;
pub(crate) mod tuning;
pub(crate) mod wire;
