//! Connections to other peers, and what travels over them: news, gossip, frames.

pub(crate) mod clocks;
pub(crate) mod dial;
pub(crate) mod gossip;
pub(crate) mod link;
pub(crate) mod net;
pub(crate) mod news;
pub(crate) mod seeds;
pub(crate) mod wire;
