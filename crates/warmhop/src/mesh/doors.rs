//! The front doors of a peer, and the connections that came through them.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::front::ingress::Ingress;
use crate::front::listener::{self, Door};
use crate::identity::FrontDoorTls;
use crate::mesh::shutdown;
use crate::observe::doors::FRONT;

pub(crate) struct FrontDoors {
    ingress: Arc<Ingress>,
    /// The most connections that each has open.
    connections_max: usize,
    /// Their connections begin with a PROXY header.
    proxy_protocol: bool,
    /// The places that each has left, in their order.
    permits: Vec<Arc<Semaphore>>,
    closing: CancellationToken,
    listeners: TaskTracker,
    /// The connections that they accepted.
    pub(crate) connections: TaskTracker,
}

impl FrontDoors {
    pub(crate) fn new(ingress: Arc<Ingress>, connections_max: usize, proxy_protocol: bool) -> Self {
        Self {
            ingress,
            connections_max,
            proxy_protocol,
            permits: Vec::new(),
            closing: CancellationToken::new(),
            listeners: TaskTracker::new(),
            connections: TaskTracker::new(),
        }
    }

    /// Adds a door, and serves it from now on.
    pub(crate) fn add(&mut self, listener: TcpListener, tls: Option<FrontDoorTls>) {
        let permits = Arc::new(Semaphore::new(self.connections_max));
        self.permits.push(Arc::clone(&permits));
        if let Some(tls) = &tls {
            self.ingress.node.metrics.doors.proves_itself_by(tls.clone());
        }
        self.listeners.spawn(self.serving(listener, tls, permits));
    }

    /// Serves another listener at a door, by its index. Resolves once the doors are closed, or at
    /// once if there is no such door.
    pub(crate) async fn serve(
        &self,
        door: usize,
        listener: TcpListener,
        tls: Option<FrontDoorTls>,
    ) {
        let Some(permits) = self.permits.get(door) else { return };
        let serving = self.serving(listener, tls, Arc::clone(permits));
        self.listeners.track_future(serving).await;
    }

    fn serving(
        &self,
        listener: TcpListener,
        tls: Option<FrontDoorTls>,
        permits: Arc<Semaphore>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let counted = &self.ingress.node.metrics.doors;
        if tls.is_some() {
            counted.begin_tls(FRONT);
        }
        let door = Door {
            connections: counted.connections(FRONT),
            tls: tls.map(|tls| TlsAcceptor::from(tls.config())),
            proxy_protocol: self.proxy_protocol,
            ingress: Arc::clone(&self.ingress),
            closing: self.closing.clone(),
            tunnels: self.ingress.node.tunnels.clone(),
            permits,
        };
        listener::serve(listener, Arc::new(door), self.connections.clone())
    }

    /// Stops accepting connections.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// As [`FrontDoors::close`], and returns once each has accepted the connections that its
    /// clients had begun to open.
    pub(crate) async fn closed(&self) {
        self.close();
        self.listeners.close();
        shutdown::wait_for(&self.listeners).await;
        self.connections.close();
    }
}
