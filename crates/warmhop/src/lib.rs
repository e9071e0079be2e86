//! A mesh of equal peers that answers the first request to a cold app from a peer where it is
//! ready.

pub mod app;
pub mod body;
mod builder;
mod dial;
pub mod error;
mod gossip;
pub mod identity;
mod link;
mod net;
mod news;
pub mod status;
mod wire;

pub use app::{App, AppService, AppSpec, Running, StartContext, StartError, app_fn};
pub use body::{Body, BoxError};
pub use builder::{Builder, Mesh};
pub use warmhop_core::{config, ids};
