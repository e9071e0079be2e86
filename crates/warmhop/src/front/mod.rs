//! The entrance for clients: the listener, and which app and session a request is for.

pub(crate) mod client_body;
mod context;
pub(crate) mod cookies;
pub(crate) mod finish;
pub(crate) mod ingress;
mod interjected;
mod known_cookies;
pub(crate) mod listener;
pub(crate) mod newcomers;
pub(crate) mod origin;
pub(crate) mod plain;
pub(crate) mod prepare;
pub(crate) mod starting;
pub(crate) mod targets;
pub(crate) mod token;
