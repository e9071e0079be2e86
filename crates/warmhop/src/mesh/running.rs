//! A running peer, as the embedding program sees it.

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
#[cfg(feature = "admin")]
use crate::http::refusals::{Refusals, admin::AdminRefusal};
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

pub(super) struct RunningPeer {
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
pub struct Mesh(pub(super) Arc<RunningPeer>);

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mesh({})", self.0.node.me)
    }
}

/// A mesh peer as a tower service: for programs with their own HTTP server, which put the sender of
/// a request as a [`ClientInfo`] into its extensions.
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
        Box::pin(
            async move { Ok(ingress.handle(Box::new(request.map(Body::new)), client, None).await) },
        )
    }
}

/// Notifies when a peer's knowledge has changed; see [`Mesh::changes`]. It never lags: however many
/// changes there were since the last call, they are reported once.
#[derive(Debug)]
pub struct Changes(watch::Receiver<u64>);

impl Changes {
    /// Waits for a change since the last call. Never resolves once the peer has ended.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Mesh {
    /// Refuses these members from now on, and no others: links to them end at once, and news about
    /// refused names is ignored.
    pub fn refuse(&self, refused: RefusedPeers) {
        self.0.net.refuse(refused);
    }

    /// Dials these addresses of other peers from now on, and no longer the former ones. Known peers
    /// stay known.
    pub fn change_seeds(&self, seeds: &[String]) {
        self.0.net.change_seeds(seeds);
    }

    /// Keeps sessions by `policy` from now on, except for their cookie, which stays the same.
    /// Existing expiries hold: the idle time of a session changes with its next use.
    pub fn change_sessions(&self, policy: SessionPolicy) {
        self.0.node.store.change_policy(policy);
    }

    /// This peer as a tower service.
    #[must_use]
    pub fn service(&self) -> MeshService {
        MeshService(Arc::clone(&self.0.ingress))
    }

    /// The registers of this name; `None` if they were not declared with
    /// [`Builder::registers`](crate::Builder::registers).
    #[must_use]
    pub fn registers(&self, name: &AppName) -> Option<Registers> {
        let node = &self.0.node;
        let slot = node.registers.iter().find(|slot| slot.name() == name)?;
        Some(Registers::new(Arc::clone(node), Arc::clone(slot)))
    }

    /// The addresses of its front doors.
    #[must_use]
    pub fn front_doors(&self) -> &[SocketAddr] {
        &self.0.node.http
    }

    /// Serves another listener at a front door that the builder got, on the runtime that calls
    /// this: `door` is the door's index, from 0. Clients' connections stay on the runtime whose
    /// listener accepted them, so a current-thread runtime for each core, each with its own
    /// listener (`SO_REUSEPORT`), avoids the wakes across cores that a work-stealing one costs. All
    /// listeners of a door share its limit of connections. The mesh port, and with it hops and
    /// session messages, stays on the runtime on which the peer was started: a hop from another one
    /// wakes it. Resolves once the peer has closed its doors; does nothing if there is no such
    /// door.
    pub async fn serve_front_door(
        &self,
        door: usize,
        listener: TcpListener,
        tls: Option<FrontDoorTls>,
    ) {
        self.0.doors.serve(door, listener, tls).await;
    }

    /// The address at which other peers reach it; a seed for them.
    #[must_use]
    pub fn mesh_addr(&self) -> SocketAddr {
        self.0.net.advertised_addr()
    }

    /// Resolves, with its address, if another live peer of the cluster turns out to have this
    /// one's name; never otherwise. The later of the two should give up.
    pub async fn name_clash(&self) -> SocketAddr {
        self.0.net.name_clash().await
    }

    /// This peer's knowledge of itself and the mesh.
    #[must_use]
    pub fn status(&self) -> Status {
        report::status(&self.0.node, &self.0.net)
    }

    /// This peer's decisions for a request that it saw lately, by its id.
    #[must_use]
    pub fn why(&self, request_id: &str) -> Option<RequestTrace> {
        self.0.node.traces.find(&RequestId::new(request_id).ok()?)
    }

    /// The newest requests that this peer saw and its decisions for them, newest first; at most
    /// `count`, and not more than it remembers.
    #[must_use]
    pub fn recent(&self, count: usize) -> Vec<RequestTrace> {
        self.0.node.traces.recent(count)
    }

    /// The outcomes of each app's requests over the last ten minutes, of those that clients sent to
    /// this peer.
    #[must_use]
    pub fn history(&self) -> History {
        report::history(&self.0.node)
    }

    /// Notifies of every change of this peer's knowledge: an app's state here or elsewhere, a peer
    /// that joins or leaves, a drain.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes(self.0.node.changed.subscribe())
    }

    /// One session that this peer holds a copy of or owns. `None` if it does not know the session.
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

    /// Starts a new copy of the app beside the one that serves here, which it replaces once it is
    /// ready; if none runs, starts one. Returns the number of its start at once: it serves when
    /// [`AppStatus::copy`](crate::status::AppStatus::copy) has reached that.
    ///
    /// # Errors
    /// [`ControlError::UnknownApp`], or [`ControlError::NotStartable`] with the reason.
    pub fn restart_app(&self, name: &AppName) -> Result<u64, ControlError> {
        let why = |why| ControlError::NotStartable { name: name.to_string(), why };
        self.slot(name)?.renew().map_err(why)
    }

    /// Holds the app's copies down here, whatever is requested, or lets them start again. A running
    /// copy ends once its requests have.
    ///
    /// # Errors
    /// [`ControlError::UnknownApp`].
    pub fn pause_app(&self, name: &AppName, paused: bool) -> Result<(), ControlError> {
        self.slot(name)?.tell(AppEvent::Pause(paused));
        Ok(())
    }

    /// Changes the apps of this peer while it serves: all that `changes` contains, or nothing.
    ///
    /// # Errors
    /// [`ControlError::UnknownApp`] for one that does not exist, [`ControlError::NotChanged`] if
    /// two would claim one name, or one host and path.
    pub fn change_apps(&self, changes: AppChanges) -> Result<(), ControlError> {
        let running = &self.0;
        let begin = |slot: &Slot| running.node.metrics.begin(slot.name(), &HopRefusal::LABELS);
        running.nursery.apply(&running.node, changes, begin)
    }

    /// The other peers of the cluster that are alive, or not known to be gone: those that
    /// [`Mesh::ask_peer`] may reach.
    #[must_use]
    pub fn others(&self) -> Vec<PeerId> {
        self.0.node.view().live_peers().map(|(name, _)| name.clone()).collect()
    }

    /// Offers a service to the other peers of the cluster, and to nobody else: they call it with
    /// [`Mesh::ask_peer`]. It replaces a service offered before under the same name.
    /// [`AskedBy`](crate::hop::peer_service::AskedBy) in the request's extensions names the calling
    /// peer; it is a member of the cluster, and trusted with no more than that.
    pub fn offer_to_peers<S, F, E>(&self, name: AppName, service: S)
    where
        S: Fn(http::Request<Body>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<http::Response<Body>, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.0.node.services.offer(name, peer_service::boxed(service));
    }

    /// Calls a service that another peer, or this one, offers by [`Mesh::offer_to_peers`]. Bodies stream
    /// both ways.
    ///
    /// # Errors
    /// [`AskPeerError`] if the peer cannot be reached, does not offer it, or the link breaks.
    pub async fn ask_peer(
        &self,
        peer: &PeerId,
        name: &AppName,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, AskPeerError> {
        let node = &self.0.node;
        if *peer == node.me {
            return node.services.ask_own(peer, name, request).await;
        }
        peer_service::ask(&self.0.net, peer, name, request).await
    }

    /// Takes an operator's word that a silent peer never comes back with what it held: this peer no
    /// longer waits for it, and goes on without it, alone if all others are gone. Call it at each peer
    /// that is left. If the silent peer lives after all, on the other side of a cut link, a key may have two
    /// values until the link is mended, of which one is then lost.
    ///
    /// # Errors
    /// [`ControlError::NotGone`] if the peer is unknown, is heard here or by others, or has left already.
    pub fn write_off(&self, peer: &PeerId) -> Result<(), ControlError> {
        let node = &self.0.node;
        if let Some(life) = node.edit_view(|view, now| view.write_off(peer, now)) {
            tracing::warn!(%peer, "the peer counts as gone for good, on an operator's word");
            node.is_over(life);
            return Ok(());
        }
        let view = node.view();
        let why = match view.peer(peer) {
            None => "this peer does not know it",
            Some(belief) if belief.left => "it has left, or was taken for gone before",
            Some(_) => "it is heard, or was by another peer less than 30 s ago; stop it first",
        };
        Err(ControlError::NotGone { name: peer.to_string(), why: why.into() })
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

    /// Counts a connection at a listener of your own in `warmhop_connections{door}`, until the
    /// returned value is dropped.
    #[must_use]
    pub fn connected(&self, door: &'static str) -> Connected {
        Connected::at(&self.0.node.metrics.doors.connections(door))
    }

    /// What counts the refusals at the admin listener.
    #[cfg(feature = "admin")]
    pub(crate) fn admin_refusals(&self) -> &Arc<Refusals<AdminRefusal>> {
        &self.0.node.metrics.admin_refusals
    }

    /// Announces that this peer leaves, gives the sessions that it owns to other peers, and hops
    /// later requests; within the grace times. Idempotent; [`Mesh::undrain`] cancels it.
    pub async fn drain(&self) {
        let running = &self.0;
        running.leaving.drain(&running.node, &running.net).await;
    }

    /// Takes traffic again after a [`Mesh::drain`], or during one. Sessions that were handed off
    /// come back as their clients do.
    ///
    /// # Errors
    /// [`ControlError::Ends`] once the peer shuts down.
    pub async fn undrain(&self) -> Result<(), ControlError> {
        let running = &self.0;
        let stays = running.leaving.call_off(&running.node, &running.net).await;
        if stays { Ok(()) } else { Err(ControlError::Ends) }
    }

    /// Ends at once: gives nothing away, lets nothing finish, and does not call its apps'
    /// `on_stop`. For programs whose process is about to be ended anyway; sessions survive it as
    /// they survive a crash.
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

    /// As [`Mesh::shutdown`]; `last` runs once the apps have stopped and before the links close,
    /// for doors that the embedding program serves itself: requests that these have accepted can
    /// still be answered. The caller has to bound it.
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
                running.net.owe(running.node.copies_to_replace() > 0);
                running.net.close().await;
                running.background.end().await;
            })
            .await;
    }
}
