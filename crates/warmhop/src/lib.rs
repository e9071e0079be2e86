//! A mesh of equal peers that answers the first request to a cold app from a peer where it is
//! ready.

pub mod app;
mod arrivals;
pub mod body;
mod builder;
mod call;
mod clock;
mod dial;
pub mod error;
mod fields;
mod framing;
mod front;
mod gossip;
mod hop;
pub mod identity;
mod ingress;
mod link;
mod net;
mod news;
mod node;
mod problem;
mod report;
mod serve;
mod session;
mod sessions;
mod shutdown;
pub mod status;
mod supervise;
mod telemetry;
mod upkeep;
mod wire;

pub use app::{App, AppService, AppSpec, Running, StartContext, StartError, app_fn};
pub use body::{Body, BoxError};
pub use builder::{Builder, Mesh, MeshService};
pub use session::{Session, SessionError};
pub use warmhop_core::{config, ids};
