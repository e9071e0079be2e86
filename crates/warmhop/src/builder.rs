//! Building and starting a mesh peer.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use warmhop_core::config::SessionPolicy;
use warmhop_core::ids::{AppName, PeerId, SessionKey};

use crate::app::{App, AppSpec};
use crate::error::{ControlError, StartMeshError};
use crate::identity::Identity;
use crate::status::{RequestTrace, SessionStatus, Status};

/// Collects what a peer needs and starts it.
pub struct Builder {
    pub(crate) cluster: String,
    pub(crate) peer: PeerId,
    pub(crate) zone: Option<String>,
    pub(crate) front_doors: Vec<TcpListener>,
    pub(crate) mesh_listen: SocketAddr,
    pub(crate) advertise: Option<SocketAddr>,
    pub(crate) seeds: Vec<String>,
    pub(crate) identity: Identity,
    pub(crate) sessions: SessionPolicy,
    pub(crate) reveal: bool,
    pub(crate) apps: Vec<(AppSpec, Arc<dyn App>)>,
}

impl Builder {
    /// The zone this peer is in; peers of the same zone are preferred.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// A bound listener for clients. May be called several times; without any, requests come
    /// through [`Mesh::service`] alone.
    #[must_use]
    pub fn front_door(mut self, listener: TcpListener) -> Self {
        self.front_doors.push(listener);
        self
    }

    /// The one UDP address for gossip, hops and sessions. Default: `127.0.0.1:0`.
    #[must_use]
    pub fn mesh_listen(mut self, addr: SocketAddr) -> Self {
        self.mesh_listen = addr;
        self
    }

    /// The address that other peers reach this one at. Default: the bound one.
    #[must_use]
    pub fn advertise(mut self, addr: SocketAddr) -> Self {
        self.advertise = Some(addr);
        self
    }

    /// `HOST:PORT` of a peer to join; names are resolved again as they change. May be called
    /// several times; none needs to be up.
    #[must_use]
    pub fn seed(mut self, seed: impl Into<String>) -> Self {
        self.seeds.push(seed.into());
        self
    }

    /// How sessions are kept.
    #[must_use]
    pub fn sessions(mut self, policy: SessionPolicy) -> Self {
        self.sessions = policy;
        self
    }

    /// Whether responses name the peer and the request (`Warmhop-Peer`,
    /// `Warmhop-Request-Id`). Default: yes.
    #[must_use]
    pub fn reveal(mut self, reveal: bool) -> Self {
        self.reveal = reveal;
        self
    }

    /// An app that this peer can run.
    #[must_use]
    pub fn app(mut self, spec: AppSpec, app: impl App) -> Self {
        self.apps.push((spec, Arc::new(app)));
        self
    }

    /// Binds the mesh port, starts gossip and the front doors.
    ///
    /// # Errors
    /// See [`StartMeshError`]: each says what to do next.
    pub async fn start(self) -> Result<Mesh, StartMeshError> {
        todo!()
    }
}

/// A running peer. Cheap to clone; the peer ends with [`Mesh::shutdown`].
#[derive(Clone)]
pub struct Mesh {}

impl Mesh {
    /// Begins a peer of `cluster` with `identity`.
    #[must_use]
    pub fn builder(cluster: impl Into<String>, peer: PeerId, identity: Identity) -> Builder {
        Builder {
            cluster: cluster.into(),
            peer,
            zone: None,
            front_doors: Vec::new(),
            mesh_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            seeds: Vec::new(),
            identity,
            sessions: SessionPolicy::default(),
            reveal: true,
            apps: Vec::new(),
        }
    }

    /// What this peer knows of itself and the mesh.
    #[must_use]
    pub fn status(&self) -> Status {
        todo!()
    }

    /// What this peer decided for a request that it saw lately, by its id.
    #[must_use]
    pub fn why(&self, _request_id: &str) -> Option<RequestTrace> {
        todo!()
    }

    /// One session that this peer holds or can locate.
    pub async fn session(&self, _key: &SessionKey) -> Option<SessionStatus> {
        todo!()
    }

    /// Starts the app here; returns at once. Starting a ready app does nothing.
    ///
    /// # Errors
    /// [`ControlError::UnknownApp`].
    pub fn start_app(&self, _name: &AppName) -> Result<(), ControlError> {
        todo!()
    }

    /// Stops the app here once its requests have ended; returns at once.
    ///
    /// # Errors
    /// [`ControlError::UnknownApp`].
    pub fn stop_app(&self, _name: &AppName) -> Result<(), ControlError> {
        todo!()
    }

    /// Whether this peer should be sent traffic: false while draining.
    #[must_use]
    pub fn takes_traffic(&self) -> bool {
        todo!()
    }

    /// Prometheus text exposition of every metric of this peer.
    #[must_use]
    pub fn metrics(&self) -> String {
        todo!()
    }

    /// Takes no new clients' work here, gives sessions to other peers and lets requests in
    /// flight end, all within the grace times. Idempotent.
    pub async fn drain(&self) {
        todo!()
    }

    /// Drains, stops the apps and closes every link.
    pub async fn shutdown(&self) {
        todo!()
    }
}
