//! What operators ask a peer over HTTP: health, metrics, the dashboard, and the routes behind the
//! commands of the binary `warmhop`, which therefore work with an embedding service as well. Behind
//! the feature `admin`.
//!
//! ```no_run
//! # async fn shown(mesh: warmhop::Mesh) -> std::io::Result<()> {
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:9001").await?;
//! tokio::spawn(warmhop::admin::Admin::new(&mesh).serve(listener, std::future::pending()));
//! // `warmhop status`, `warmhop why ID` and a browser find it there.
//! # Ok(())
//! # }
//! ```
//!
//! The routes act on one peer, so they are guarded by where they listen and by which clients may
//! ask. On loopback without a token, any process of this machine may ask. A web page in a browser
//! on this machine must not: a page of another origin may not post, and a name that was rebound to
//! 127.0.0.1 is refused. With a [`Token`] everything but health and the dashboard's empty page
//! requires it. Never make them reachable from elsewhere without one.
//!
//! What a peer reads from another one, or makes it do, goes over the mesh's own links, among
//! members of the cluster: [`Admin::into_router`] offers it to them.

mod answers;
mod builder;
mod dashboard;
mod guard;
mod life;
mod members;
mod peer;
mod peers;
mod places;
mod routes;
mod watchers;

pub use self::answers::problem;
pub use self::builder::{Admin, router};
pub use self::guard::Token;
#[doc(hidden)]
pub use self::life::outcome;
