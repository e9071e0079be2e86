//! What operators ask of a peer over HTTP: health, metrics, the dashboard, and the routes behind the
//! commands of the binary `warmhop`, which so work with a service that embeds the mesh as well.
//! Behind the feature `admin`.
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
//! The routes act on one peer, so they are guarded by where they listen and by who may ask. On
//! loopback without a token, any process of this machine may, and what has to be kept out is a web
//! page in a browser here: a page of another origin may not post, and a name that was rebound to
//! 127.0.0.1 is no name of ours. With a [`Token`] everything but health and the dashboard's empty
//! page asks for it. Never let them be reached from elsewhere without one.
//!
//! What a peer reads of another one, and has it do, goes over the mesh's own links, among members of
//! the cluster: [`Admin::into_router`] offers it to them.

mod answers;
mod builder;
mod dashboard;
mod guard;
mod life;
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
