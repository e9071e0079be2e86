//! A mesh of equal peers that answers the first request to a cold app from a peer where it is
//! ready.
//!
//! This crate is for Rust services that are slow to start and want to be such a mesh themselves.
//! To put a mesh in front of apps in any language, run the program `warmhop` instead, which
//! `cargo install warmhop-cli` installs; it is built on nothing but what is documented here.
//!
//! # A peer in a page
//!
//! An *app* is an async start that yields a tower service, such as an axum `Router`. A *peer* is
//! made of an identity, an app or more, and the addresses of some others:
//!
//! ```
//! use axum::{Extension, Router, routing::get};
//! use warmhop::config::SessionMode;
//! use warmhop::identity::Authority;
//! use warmhop::ids::{AppName, PeerId};
//! use warmhop::{AppSpec, Body, Mesh, Session, app_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! /// Counts visits in the client's session, which the mesh replicates.
//! async fn visit(Extension(session): Extension<Session>) -> String {
//!     let visits = session.get().map_or(0, |bytes| bytes[0]) + 1;
//!     session.set(vec![visits]).map_or_else(|error| error.to_string(), |()| visits.to_string())
//! }
//!
//! // In production: `warmhop cert ca`, `warmhop cert peer one`, and `Identity::from_dir`.
//! let authority = Authority::generate("example")?;
//! let one = PeerId::new("one")?;
//! let identity = authority.issue(&one)?;
//!
//! let mut spec = AppSpec::new(AppName::new("visits")?);
//! spec.policy.session = SessionMode::Portable;
//! let app = app_fn(|| async {
//!     // Whatever takes long: loading a model, building an index.
//!     Ok::<_, std::io::Error>(Router::new().route("/", get(visit)))
//! });
//!
//! let mesh = Mesh::builder(identity)
//!     .mesh_listen("127.0.0.1:0".parse()?)
//!     .seed("127.0.0.1:7002") // need not be up
//!     .app(spec, app)
//!     .start()
//!     .await?;
//!
//! // `.front_door(listener)` serves clients over TCP; a peer is a tower service as well:
//! let request = http::Request::get("/").header("host", "localhost").body(Body::empty())?;
//! let response = tower::ServiceExt::oneshot(mesh.service(), request).await?;
//! assert_eq!(response.status(), 200);
//! assert_eq!(response.headers()["warmhop-peer"], "one");
//! assert!(response.headers().contains_key("set-cookie"), "the affinity cookie");
//!
//! mesh.shutdown().await; // gives its sessions to others, lets requests end, closes its links
//! # Ok(())
//! # }
//! ```
//!
//! # What happens to a request
//!
//! 1. The app is ready on this peer: it is served here, without a channel or a task switch on the
//!    way. The one lock that requests share is held while a finished request's trace is stored.
//! 2. It is not: its start begins here, once, and the request is sent over one QUIC stream to a
//!    peer where it is ready, chosen by load and distance.
//! 3. It is ready nowhere: the request waits, bounded in number and time, for the first copy in
//!    the mesh.
//!
//! [`Mesh::why`] shows for each of the last requests what the peer knew and decided.
//!
//! # Sessions
//!
//! With [`SessionMode::Portable`](config::SessionMode::Portable) the request's extensions hold a
//! [`Session`]. What [`Session::set`] leaves there when the handler returns is replicated on up
//! to three peers *before* the client sees the response. The peer that the client reached owns
//! the session from its first request, so that nothing has to be transferred when its own copy of
//! the app becomes ready; if that peer dies, the next one that the client reaches takes the
//! session over. A request with an `Idempotency-Key` changes its session once, however often it
//! is sent; a repeat gets the first answer.
//!
//! Sessions live in memory: with three peers they survive the loss of any one at any instant, and
//! not that of two at once.
//!
//! With the feature `axum` handlers take the session as an argument, as bytes or as a value of
//! their own, and in an app that is not portable they get an error instead:
//!
//! ```
//! # #[cfg(feature = "axum")]
//! # mod shown {
//! use serde::{Deserialize, Serialize};
//! use warmhop::extract::{Session, SetError};
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct Cart {
//!     books: Vec<String>,
//! }
//!
//! async fn add(mut cart: Session<Cart>, book: String) -> Result<String, SetError> {
//!     cart.update(|cart| {
//!         cart.books.push(book);
//!         format!("{} in the cart", cart.books.len())
//!     })
//! }
//! # fn routed() -> axum::Router { axum::Router::new().route("/", axum::routing::post(add)) }
//! # }
//! ```
//!
//! An app that uses [tower-sessions](https://docs.rs/tower-sessions) keeps its cookie, its API and
//! its handlers; with the feature `tower-sessions` its sessions live in the mesh, in
//! [`Registers`] that the peer was declared to keep:
//!
//! ```
//! # #[cfg(feature = "tower-sessions")]
//! # mod shown {
//! use tower_sessions::{Session, SessionManagerLayer};
//! use warmhop::session_store::Store;
//!
//! fn app(registers: warmhop::Registers) -> axum::Router {
//!     axum::Router::new()
//!         .route("/", axum::routing::get(async |session: Session| {
//!             session.insert("seen", true).await.map_err(|error| error.to_string())
//!         }))
//!         .layer(SessionManagerLayer::new(Store::new(registers)))
//! }
//! # }
//! ```
//!
//! # Front doors
//!
//! A front door is a bound listener. Without TLS it speaks HTTP/1.1, and HTTP/2 to clients that
//! begin with it; with TLS, what the client prefers of the two by ALPN. Certificates that come from
//! files are renewed without a restart:
//!
//! ```no_run
//! # async fn shown(mut builder: warmhop::Builder) -> Result<(), Box<dyn std::error::Error>> {
//! use tokio::net::TcpListener;
//! use warmhop::identity::FrontDoorTls;
//!
//! let tls = FrontDoorTls::from_files("cert.pem", "key.pem")?;
//! builder = builder
//!     .front_door(TcpListener::bind("0.0.0.0:80").await?)
//!     .front_door_tls(TcpListener::bind("0.0.0.0:443").await?, tls);
//! # Ok(())
//! # }
//! ```
//!
//! An HTTP server of your own serves [`Mesh::service`], and says by a [`ClientInfo`] in each request's
//! extensions who sent it: apps and cookies depend on that.
//!
//! ```
//! # async fn shown(mesh: warmhop::Mesh, listener: tokio::net::TcpListener) -> std::io::Result<()> {
//! use std::net::SocketAddr;
//!
//! use axum::Router;
//! use axum::extract::{ConnectInfo, Request};
//! use warmhop::ClientInfo;
//!
//! let service = tower::ServiceBuilder::new()
//!     .map_request(|mut request: Request| {
//!         if let Some(ConnectInfo(addr)) = request.extensions().get::<ConnectInfo<SocketAddr>>() {
//!             let client = ClientInfo::new(*addr);
//!             request.extensions_mut().insert(client);
//!         }
//!         request
//!     })
//!     .service(mesh.service());
//! let router = Router::new().fallback_service(service);
//! axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
//! # }
//! ```
//!
//! # Only the hop
//!
//! A service that starts by itself and has its own server takes the mesh as a [`HopLayer`]: while
//! it is not ready, by its own [`Readiness`] signal, a future or its `poll_ready`, its requests are
//! answered by a peer where it is. From then on they reach it untouched.
//!
//! ```
//! # async fn shown(
//! #     builder: warmhop::Builder,
//! #     listener: tokio::net::TcpListener,
//! #     router: axum::Router,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! use axum::Router;
//! use tower::Layer;
//! use warmhop::ids::AppName;
//! use warmhop::{AppSpec, HopLayer, Readiness};
//!
//! let readiness = Readiness::new(); // `readiness.set(true)` once the index is built
//! let hop = HopLayer::new(AppSpec::new(AppName::new("search")?)).readiness(&readiness);
//! let service = Router::new().fallback_service(hop.layer(router));
//! let mesh = builder.hop_layer(&hop).start().await?;
//! axum::serve(listener, service).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Operators
//!
//! With the feature `admin` a listener of the service answers the commands of the binary
//! (`warmhop status`, `why`, `drain` …), scrapes of metrics and health checks, and shows the
//! dashboard: see [`admin`].
//!
//! # Examples that run
//!
//! `embed`, `operated`, `axum_session`, `tower_sessions`, `front_doors` and `hop_layer`, each by
//! `cargo run -p warmhop-examples --example NAME`; each starts a mesh and says what to ask it.
//!
//! # Apps of other kinds
//!
//! [`App`] is a trait: implement it where a start needs more than a closure, such as a child
//! process. [`Running`] says how the copy is stopped, how its crash is noticed, and whether it
//! speaks the carried `Warmhop-Session` field. A service that answers 101 leaves hyper's
//! `OnUpgrade` of its own side in the response's extensions, or takes the request's, as axum does.
//! [`Interim`] in the request's extensions takes interim responses, such as `103 Early Hints`.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod adapters;
#[cfg(feature = "admin")]
pub mod admin;
pub mod app;
mod care;
pub mod error;
mod front;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod hop;
mod http;
pub mod identity;
mod links;
mod mesh;
mod observe;
mod request;
mod sessions;

#[cfg(feature = "axum")]
pub use self::adapters::extract;
pub use self::adapters::hop_layer::{HopLayer, HopService, Readiness};
#[cfg(feature = "tower-sessions")]
pub use self::adapters::session_store;
pub use self::app::session::{Session, SessionError};
pub use self::front::ingress::READY_PATH;
pub use self::front::origin::TrustedProxies;
pub use self::hop::peer_service;
pub use self::http::accept::Acceptor;
pub use self::http::body;
pub use self::http::body::{Body, BoxError};
pub use self::http::client::ClientInfo;
pub use self::http::clients::ClientLimits;
pub use self::http::interim::Interim;
pub use self::mesh::builder::Builder;
pub use self::mesh::change::AppChanges;
pub use self::mesh::running::{Changes, Mesh, MeshService};
pub use self::observe::access;
pub use self::observe::doors::Connected;
pub use self::observe::status;
pub use self::observe::trace;
pub use self::request::registers::{
    Change, Expires, KEY_BYTES_MAX, RegisterError, Registers, VALUE_BYTES_MAX, Value, When,
};
pub use app::{
    Answer, App, AppService, AppSpec, Ended, NotSent, Running, StartContext, StartError, app_fn,
};
pub use warmhop_core::matching::{HostPattern, Match};
pub use warmhop_core::version::AppVersion;
pub use warmhop_core::{config, cookie};

/// Names and keys, each checked as it is made.
pub mod ids {
    pub use warmhop_core::ids::{AppName, InvalidId, PeerId, RequestId, SessionId, SessionKey};
}
