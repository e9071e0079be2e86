//! The sender of a request, as far as its front door knows.

use std::net::SocketAddr;

/// Who sent a request. The mesh's own front doors fill this in; a program with another HTTP server
/// puts it in the extensions of the requests for [`Mesh::service`](crate::Mesh::service), so that
/// apps get the client's address (`Forwarded`, `X-Forwarded-*`) and cookies are `Secure` behind
/// TLS.
///
/// ```
/// use warmhop::{Body, ClientInfo};
///
/// let client = ClientInfo::new("192.0.2.7:4711".parse()?).secure(true);
/// let request = http::Request::get("/").extension(client).body(Body::empty())?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ClientInfo {
    /// The address that the client's connection comes from, if it is known.
    pub addr: Option<SocketAddr>,
    /// Whether the client's connection is encrypted.
    pub secure: bool,
}

impl ClientInfo {
    /// A client whose connection comes from `addr`, and is not encrypted.
    #[must_use]
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr: Some(addr), secure: false }
    }

    /// Whether the client's connection is encrypted.
    #[must_use]
    pub fn secure(mut self, secure: bool) -> Self {
        self.secure = secure;
        self
    }
}
