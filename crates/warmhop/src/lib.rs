//! A mesh of equal peers that answers the first request to a cold app from a peer where it is
//! ready.

pub mod app;
pub mod body;
mod builder;
pub mod error;
pub mod identity;
pub mod status;

pub use app::{App, AppService, AppSpec, Running, StartContext, StartError, app_fn};
pub use body::{Body, BoxError};
pub use builder::{Builder, Mesh};
pub use warmhop_core::{config, ids};
