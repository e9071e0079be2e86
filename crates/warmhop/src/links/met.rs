//! The outcomes of dialing an address, and of the connection that results.

use std::net::SocketAddr;

use quinn::ConnectionError;
use warmhop_core::ids::PeerId;

use crate::links::wire::PROTOCOL_VERSION;

/// What is at the other end of an established connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Met {
    /// A link to this peer; perhaps a surplus one beside the current.
    Peer(PeerId),
    /// This very process.
    Myself,
    /// Another process with this peer's name.
    Namesake,
}

/// Why a connection did not become a link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeetError {
    /// The connection broke or was refused by the other end.
    #[error("the link failed: {0}")]
    Connection(#[from] ConnectionError),
    /// The certificate does not prove a peer of this cluster.
    #[error("the certificate is not one of a peer of this cluster")]
    NotOfCluster,
    /// The hello names another peer than the certificate.
    #[error("the hello names {said}, the certificate {proven}")]
    WrongName {
        /// The name in the hello.
        said: PeerId,
        /// The name in the certificate.
        proven: PeerId,
    },
    /// It speaks another version of the protocol.
    #[error("the peer speaks protocol version {0}, this one {PROTOCOL_VERSION}")]
    Version(u16),
    /// No valid hello came.
    #[error("no valid hello arrived: {0}")]
    NoHello(String),
    /// Another live peer has the name already.
    #[error("a live peer at {0} has the name already")]
    NameInUse(SocketAddr),
    /// It is among the peers that this one refuses.
    #[error("an operator has shut out {0} or its certificate")]
    Refused(PeerId),
    /// This peer knows as many others as it can.
    #[error("this peer knows as many others as it can")]
    Full,
}

impl MeetError {
    /// The label of the counter.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Connection(_) => "connection",
            Self::NotOfCluster => "not-of-cluster",
            Self::WrongName { .. } => "wrong-name",
            Self::Version(_) => "version",
            Self::NoHello(_) => "no-hello",
            Self::NameInUse(_) => "name-in-use",
            Self::Refused(_) => "refused",
            Self::Full => "full",
        }
    }
}

/// Why an address could not be dialed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The endpoint refused to try.
    #[error("cannot dial: {0}")]
    Connect(#[from] quinn::ConnectError),
    /// The handshake did not complete in time.
    #[error("no answer in time")]
    NoAnswer,
    /// The handshake or what followed it failed.
    #[error(transparent)]
    Meet(#[from] MeetError),
}
