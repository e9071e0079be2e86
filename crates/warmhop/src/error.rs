//! One error enum for each operation that users of the crate call.

use std::net::SocketAddr;

pub use crate::observe::failpoint::FailpointError;

/// Why a peer did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartMeshError {
    /// The mesh port could not be bound.
    #[error(
        "cannot listen on the mesh address {addr} (UDP): {source}; choose a free port, or stop what uses it"
    )]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The mesh port listens on every address, and none of them was named.
    #[error(
        "the mesh address {addr} does not say where other peers reach this one: advertise an address of this machine with a port"
    )]
    NeedsAdvertise {
        /// The address that would have been advertised.
        addr: SocketAddr,
    },
    /// The identity could not be used.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    /// Another live peer of the cluster has this peer's name.
    #[error(
        "a live peer at {addr} has the name {name} already; names are unique: rename one of the two"
    )]
    NameInUse {
        /// The name.
        name: String,
        /// The other one's address.
        addr: SocketAddr,
    },
    /// The failpoints that a test requested are malformed.
    #[error(transparent)]
    Failpoints(#[from] FailpointError),
    /// Two apps claim one name or one host and path.
    #[error("the apps {first} and {second} conflict: {what}")]
    AppsCollide {
        /// One app.
        first: String,
        /// The other.
        second: String,
        /// The name, or the host and path, that both claim.
        what: String,
    },
}

/// Why a control command was not carried out. Nothing changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// This peer has no such app.
    #[error("no app {name} is configured on this peer; it has: {known}")]
    UnknownApp {
        /// The name asked for.
        name: String,
        /// The apps there are.
        known: String,
    },
    /// The peer is about to end.
    #[error("this peer is shutting down and takes no traffic; start it again")]
    Ends,
    /// The apps cannot be changed like that; nothing was changed.
    #[error("nothing was changed: {source}")]
    NotChanged {
        /// The reason why a peer with these apps would not start.
        #[source]
        source: Box<StartMeshError>,
    },
    /// The other peer is not considered gone: that is possible only for one that this peer knows and
    /// that nobody hears.
    #[error("{name} cannot be declared gone: {why}")]
    NotGone {
        /// That peer.
        name: String,
        /// Why not, in a sentence.
        why: String,
    },
    /// The app cannot be started on this peer.
    #[error("the app {name} is not started here: {why}")]
    NotStartable {
        /// The app.
        name: String,
        /// Why not, in a sentence.
        why: String,
    },
}
