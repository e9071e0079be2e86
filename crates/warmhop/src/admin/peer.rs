//! What the routes need of a peer, so that their tests need no mesh.

use std::sync::Arc;

use warmhop_core::ids::{AppName, SessionKey};

use crate::error::ControlError;
use crate::http::refusals::Refusals;
use crate::http::refusals::admin::AdminRefusal;
use crate::mesh::running::Mesh;
use crate::observe::status::{History, RequestTrace, SessionStatus, Status};

/// What the routes need of a peer: the interface of [`Mesh`].
pub(crate) trait Peer: Clone + Send + Sync + 'static {
    /// [`Mesh::status`].
    fn status(&self) -> Status;
    /// [`Mesh::why`].
    fn why(&self, request_id: &str) -> Option<RequestTrace>;
    /// [`Mesh::recent`].
    fn recent(&self, count: usize) -> Vec<RequestTrace>;
    /// [`Mesh::history`].
    fn history(&self) -> History;
    /// [`Mesh::session`].
    fn session(&self, key: &SessionKey) -> Option<SessionStatus>;
    /// [`Mesh::start_app`].
    ///
    /// # Errors
    /// As there.
    fn start_app(&self, name: &AppName) -> Result<(), ControlError>;
    /// [`Mesh::stop_app`].
    ///
    /// # Errors
    /// As there.
    fn stop_app(&self, name: &AppName) -> Result<(), ControlError>;
    /// [`Mesh::takes_traffic`].
    fn takes_traffic(&self) -> bool;
    /// [`Mesh::metrics`].
    fn metrics(&self) -> String;
    /// What counts the refusals of its clients.
    fn refusals(&self) -> Arc<Refusals<AdminRefusal>>;
    /// [`Mesh::drain`].
    fn drain(&self) -> impl Future<Output = ()> + Send;
    /// [`Mesh::undrain`].
    ///
    /// # Errors
    /// As there.
    fn undrain(&self) -> impl Future<Output = Result<(), ControlError>> + Send;
}

impl Peer for Mesh {
    fn status(&self) -> Status {
        Self::status(self)
    }

    fn why(&self, request_id: &str) -> Option<RequestTrace> {
        Self::why(self, request_id)
    }

    fn recent(&self, count: usize) -> Vec<RequestTrace> {
        Self::recent(self, count)
    }

    fn history(&self) -> History {
        Self::history(self)
    }

    fn session(&self, key: &SessionKey) -> Option<SessionStatus> {
        Self::session(self, key)
    }

    fn start_app(&self, name: &AppName) -> Result<(), ControlError> {
        Self::start_app(self, name)
    }

    fn stop_app(&self, name: &AppName) -> Result<(), ControlError> {
        Self::stop_app(self, name)
    }

    fn takes_traffic(&self) -> bool {
        Self::takes_traffic(self)
    }

    fn metrics(&self) -> String {
        Self::metrics(self)
    }

    fn refusals(&self) -> Arc<Refusals<AdminRefusal>> {
        Arc::clone(self.admin_refusals())
    }

    async fn drain(&self) {
        Self::drain(self).await;
    }

    async fn undrain(&self) -> Result<(), ControlError> {
        Self::undrain(self).await
    }
}
