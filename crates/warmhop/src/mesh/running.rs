//! A running peer, as those see it who embed it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, watch};
use warmhop_core::app::{AppEvent, StopReason, WantedBy};
use warmhop_core::config::SessionPolicy;
use warmhop_core::ids::{AppName, PeerId, RequestId, SessionKey};

use crate::app::slot::Slot;
use crate::care::report;
use crate::error::ControlError;
use crate::front::ingress::Ingress;
use crate::hop::HopRefusal;
use crate::hop::peer_service::{self, AskPeerError};
use crate::http::body::{Body, BoxError};
use crate::http::client::ClientInfo;
use crate::identity::{FrontDoorTls, RefusedPeers};
use crate::links::net::Net;
use crate::mesh::background::Background;
use crate::mesh::change::{AppChanges, Nursery};
use crate::mesh::doors::FrontDoors;
use crate::mesh::leaving::Leaving;
use crate::mesh::shutdown;
use crate::observe::doors::Connected;
use crate::observe::status::{History, RequestTrace, SessionStatus, Status};
use crate::request::node::Node;
use crate::request::registers::Registers;

pub(super) struct Running {
    pub(super) node: Arc<Node>,
    pub(super) net: Net,
    pub(super) ingress: Arc<Ingress>,
    pub(super) nursery: Nursery,
    pub(super) registry: Registry,
    pub(super) background: Background,
    pub(super) doors: FrontDoors,
    pub(super) drain_grace: Duration,
    pub(super) leaving: Leaving,
    pub(super) ended: OnceCell<()>,
}

/// A running peer. Cheap to clone; the peer ends with [`Mesh::shutdown`].
#[derive(Clone)]
pub struct Mesh(pub(super) Arc<Running>);

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mesh({})", self.0.node.me)
    }
}

/// A mesh peer as a tower service: for those who bring their own HTTP server, which says who sent a
/// request by a [`ClientInfo`] in its extensions.
#[derive(Clone)]
pub struct MeshService(Arc<Ingress>);

impl std::fmt::Debug for MeshService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MeshService")
    }
}

impl<B> tower::Service<http::Request<B>> for MeshService
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = futures_util::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let ingress = Arc::clone(&self.0);
        let client = request.extensions().get::<ClientInfo>().copied().unwrap_or_default();
        Box::pin(async move { Ok(ingress.handle(request.map(Body::new), client).await) })
    }
}

/// Tells when what a peer knows has changed; see [`Mesh::changes`]. It never lags: however many
/// changes there were since the last time, they are told once.
#[derive(Debug)]
pub struct Changes(watch::Receiver<u64>);

impl Changes {
    /// Waits for a change since the last time. Never resolves once the peer has ended.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Mesh {
    /// From now on refuses these members and no others: links to them end at once, and nothing that
    /// is said of refused names is listened to.
    pub fn refuse(&self, refused: RefusedPeers) {
        self.0.net.refuse(refused);
    }

    /// From now on tries these addresses of others, and no more those that it had. Peers that it knows
    /// by now it goes on to know.
    pub fn change_seeds(&self, seeds: &[String]) {
        self.0.net.change_seeds(seeds);
    }

    /// From now on keeps sessions by `policy`, but for their cookie, which stays what it is. What
    /// sessions have been promised holds: an end by being idle changes with their next use.
    pub fn change_sessions(&self, policy: SessionPolicy) {
        self.0.node.store.change_policy(policy);
    }

    /// This peer as a tower service.
    #[must_use]
    pub fn service(&self) -> MeshService {
        MeshService(Arc::clone(&self.0.ingress))
    }

    /// The registers of this name; `None` where they were not declared with
    /// [`Builder::registers`](crate::Builder::registers).
    #[must_use]
    pub fn registers(&self, name: &AppName) -> Option<Registers> {
        let node = &self.0.node;
        let slot = node.registers.iter().find(|slot| slot.name() == name)?;
        Some(Registers::new(Arc::clone(node), Arc::clone(slot)))
    }

    /// Where its front doors listen.
    #[must_use]
    pub fn front_doors(&self) -> &[SocketAddr] {
        &self.0.node.http
    }

    /// Serves one more listener at a front door that the builder was given, on the runtime that
    /// calls this: `door` is its place among them, from 0. Clients' connections stay on the runtime
    /// whose listener accepted them, so a current-thread runtime a core, each with a listener of its
    /// own (`SO_REUSEPORT`), spares the wakes across cores that a work-stealing one costs. All
    /// listeners of a door share its bound of connections. The mesh port, and with it hops and
    /// sessions' messages, stays on the runtime that the peer was started on: a hop from another one
    /// wakes it. Resolves once the peer has closed its doors; does nothing where there is no such
    /// door.
    pub async fn serve_front_door(
        &self,
        door: usize,
        listener: TcpListener,
        tls: Option<FrontDoorTls>,
    ) {
        self.0.doors.serve(door, listener, tls).await;
    }

    /// Where other peers reach it; a seed for them.
    #[must_use]
    pub fn mesh_addr(&self) -> SocketAddr {
        self.0.net.advertised_addr()
    }

    /// Resolves, with its address, if another live peer of the cluster turns out to have this
    /// one's name; never otherwise. The later of the two should give up.
    pub async fn name_clash(&self) -> SocketAddr {
        self.0.net.name_clash().await
    }

    /// What this peer knows of itself and the mesh.
    #[must_use]
    pub fn status(&self) -> Status {
        report::status(&self.0.node, &self.0.net)
    }

    /// What this peer decided for a request that it saw lately, by its id.
    #[must_use]
    pub fn why(&self, request_id: &str) -> Option<RequestTrace> {
        self.0.node.traces.find(&RequestId::new(request_id).ok()?)
    }

    /// The newest requests that this peer saw and what it decided for them, newest first; at most
    /// `count`, and not more than it remembers.
    #[must_use]
    pub fn recent(&self, count: usize) -> Vec<RequestTrace> {
        self.0.node.traces.recent(count)
    }

    /// What became of each app's requests over the last ten minutes, of those that clients sent to this
    /// peer.
    #[must_use]
    pub fn history(&self) -> History {
        report::history(&self.0.node)
    }

    /// Tells of every change of what this peer knows: an app's state here or elsewhere, a peer that
    /// comes or goes, a drain.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes(self.0.node.changed.subscribe())
    }

    /// One session that this peer holds a copy of or owns. `None` where it knows nothing of it.
    #[must_use]
    pub fn session(&self, key: &SessionKey) -> Option<SessionStatus> {
        report::session(&self.0.node, key)
    }

    /// Starts the app here; returns at once. Starting a ready app does nothing.
    ///
    /// # Errors
    /// [`ControlError::UnknownApp`], or [`ControlError::NotStartable`] with the reason.
    pub fn start_app(&self, name: &AppName) -> Result<(), ControlError> {
        let slot = self.slot(name)?;
        if slot.is_under_way() {
            return Ok(());
        }
        if let Some(why) = slot.why_not_start(WantedBy::Operator) {
            return Err(ControlError::NotStartable { name: name.to_string(), why });
        }
        slot.wanted(WantedBy::Operator);
        Ok(())
    }

    /// Stops the app here once its requests have ended; returns at once.
    ///
    /// # Errors
    /// [`ControlError::UnknownApp`].
    pub fn stop_app(&self, name: &AppName) -> Result<(), ControlError> {
        self.slot(name)?.tell(AppEvent::StopWanted(StopReason::Operator));
        Ok(())
    }

    fn slot(&self, name: &AppName) -> Result<Arc<Slot>, ControlError> {
        let apps = self.0.node.apps();
        let slot = apps.named(name).filter(|slot| !slot.keeps_registers).cloned();
        slot.ok_or_else(|| apps.unknown(name))
    }

    /// Has a new copy of the app start beside the one that serves here, which it replaces once it
    /// is ready; where none runs, starts one. Returns the number of its start at once: it serves
    /// when [`AppStatus::copy`](crate::status::AppStatus::copy) has come so far.
    ///
    /// # Errors
    /// [`ControlError::UnknownApp`], or [`ControlError::NotStartable`] with the reason.
    pub fn restart_app(&self, name: &AppName) -> Result<u64, ControlError> {
        let why = |why| ControlError::NotStartable { name: name.to_string(), why };
        self.slot(name)?.renew().map_err(why)
    }

    /// Holds copies of the app down here against every request for one, or lets them start again. What runs
    /// ends once its requests have.
    ///
    /// # Errors
    /// [`ControlError::UnknownApp`].
    pub fn pause_app(&self, name: &AppName, paused: bool) -> Result<(), ControlError> {
        self.slot(name)?.tell(AppEvent::Pause(paused));
        Ok(())
    }

    /// Changes the apps of this peer while it serves: all that `changes` names, or nothing.
    ///
    /// # Errors
    /// [`ControlError::UnknownApp`] for one that is not there, [`ControlError::NotChanged`] where
    /// two would claim one name, or one host and path.
    pub fn change_apps(&self, changes: AppChanges) -> Result<(), ControlError> {
        let running = &self.0;
        let begin = |slot: &Slot| running.node.metrics.begin(slot.name(), &HopRefusal::LABELS);
        running.nursery.apply(&running.node, changes, begin)
    }

    /// The other peers of the cluster that are there, or are not known to be gone: those that
    /// [`Mesh::ask_peer`] may reach.
    #[must_use]
    pub fn others(&self) -> Vec<PeerId> {
        self.0.node.view().live_peers().map(|(name, _)| name.clone()).collect()
    }

    /// Offers a service to the other peers of the cluster, and to nobody else: they ask it with
    /// [`Mesh::ask_peer`]. What was offered under the name before is replaced. Of the peer that asks,
    /// [`AskedBy`](crate::hop::peer_service::AskedBy) in the request's extensions tells the name; it is a
    /// member of the cluster, and trusted with no more than that.
    pub fn offer_to_peers<S, F, E>(&self, name: AppName, service: S)
    where
        S: Fn(http::Request<Body>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<http::Response<Body>, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.0.node.services.offer(name, peer_service::boxed(service));
    }

    /// Asks a service that another peer offers by [`Mesh::offer_to_peers`]. Bodies stream both ways.
    ///
    /// # Errors
    /// [`AskPeerError`] if the peer cannot be reached, does not offer it, or the link breaks.
    pub async fn ask_peer(
        &self,
        peer: &PeerId,
        name: &AppName,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, AskPeerError> {
        peer_service::ask(&self.0.net, peer, name, request).await
    }

    /// Whether this peer should be sent traffic: false while draining.
    #[must_use]
    pub fn takes_traffic(&self) -> bool {
        !self.0.node.is_draining()
    }

    /// Every metric of this peer in the Prometheus (OpenMetrics) text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        for (peer, _) in self.0.node.view().peers() {
            self.0.node.metrics.begin_peer(peer);
        }
        let mut text = String::new();
        // Writing to a string fails only where memory ends.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.0.registry);
        text
    }

    /// Counts a connection at a listener of your own in `warmhop_connections{door}`, until what it
    /// returns is dropped.
    #[must_use]
    pub fn connected(&self, door: &'static str) -> Connected {
        Connected::at(&self.0.node.metrics.doors.connections(door))
    }

    /// Says to all that this peer leaves, gives the sessions that it owns to other peers, and hops
    /// what still comes; within the grace times. Idempotent; [`Mesh::undrain`] calls it off.
    pub async fn drain(&self) {
        let running = &self.0;
        running.leaving.drain(&running.node, &running.net).await;
    }

    /// Takes traffic again after a [`Mesh::drain`], or in the middle of one. Sessions that were given
    /// away come back as their clients do.
    ///
    /// # Errors
    /// [`ControlError::Ends`] once the peer shuts down.
    pub async fn undrain(&self) -> Result<(), ControlError> {
        let running = &self.0;
        let stays = running.leaving.call_off(&running.node, &running.net).await;
        if stays { Ok(()) } else { Err(ControlError::Ends) }
    }

    /// Ends at once: gives nothing away, lets nothing finish, and its apps' `on_stop` is not
    /// called. For those whose process is about to be ended anyway; sessions survive it as they
    /// survive a crash.
    pub async fn vanish(&self) {
        let running = &self.0;
        running.doors.close();
        running.background.stop();
        running.net.vanish().await;
    }

    /// Drains, stops the apps and closes every link. Idempotent.
    pub async fn shutdown(&self) {
        self.shutdown_after(std::future::ready(())).await;
    }

    /// As [`Mesh::shutdown`]; `last` runs once the apps have stopped and before the links close, for
    /// doors that who embeds the mesh serves itself: what these have taken in can be answered still.
    /// It is for the caller to bound it.
    pub async fn shutdown_after(&self, last: impl Future<Output = ()>) {
        let running = &self.0;
        running.leaving.end(&running.node, &running.net).await;
        running
            .ended
            .get_or_init(|| async {
                running.doors.closed().await;
                let connections = &running.doors.connections;
                shutdown::end_streams(&running.node, connections, running.drain_grace).await;
                shutdown::give_away_the_rest(&running.node).await;
                shutdown::stop_apps(&running.node).await;
                last.await;
                shutdown::give_away_the_rest(&running.node).await;
                running.net.close().await;
                running.background.end().await;
            })
            .await;
    }
}
