//! Building and starting a mesh peer.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use warmhop_core::app::{AppEvent, StopReason, WantedBy};
use warmhop_core::config::{SessionPolicy, StartMode};
use warmhop_core::ids::{AppName, Incarnation, PeerId, RequestId, SessionKey};
use warmhop_core::view::AppState;

use crate::adapters::hop_layer::HopLayer;
use crate::app::slot::Slot;
use crate::app::{App, AppSpec};
use crate::care::report;
use crate::care::upkeep;
use crate::error::{ControlError, StartMeshError};
use crate::front::ingress::Ingress;
use crate::front::listener;
use crate::front::listener::Door;
use crate::front::origin::TrustedProxies;
use crate::hop::HopRefusal;
use crate::hop::peer_service::{self, AskPeerError};
use crate::http::body::{Body, BoxError};
use crate::http::client::ClientInfo;
use crate::http::clients::{ClientLimits, Clients};
use crate::identity::{FrontDoorTls, Identity, RefusedPeers};
use crate::links::counters::NetCounters;
use crate::links::handler::NetHandler;
use crate::links::net::{Net, NetConfig};
use crate::links::tuning::NetTuning;
use crate::mesh::change::{AppChanges, Nursery, check_apps};
use crate::mesh::leaving::Leaving;
use crate::mesh::shutdown;
use crate::observe::access::{AccessSink, Accesses};
use crate::observe::clock::Clock;
use crate::observe::metrics::Metrics;
use crate::observe::status::{RequestTrace, SessionStatus, Status};
use crate::observe::trace::{SpanSink, Spans};
use crate::request::error_page::ErrorPage;
use crate::request::node::{Node, Parts};
use crate::request::registers::{self, Registers};
use crate::sessions::store::Store;

/// Collects what a peer needs and starts it.
pub struct Builder {
    pub(crate) cluster: String,
    pub(crate) peer: PeerId,
    pub(crate) zone: Option<String>,
    /// Another one than the machine's, for tests.
    pub(crate) clock: Option<Clock>,
    pub(crate) front_doors: Vec<(TcpListener, Option<FrontDoorTls>)>,
    pub(crate) front_door_connections: usize,
    pub(crate) mesh_listen: SocketAddr,
    pub(crate) advertise: Option<SocketAddr>,
    pub(crate) seeds: Vec<String>,
    pub(crate) refused: RefusedPeers,
    pub(crate) identity: Identity,
    pub(crate) sessions: SessionPolicy,
    pub(crate) reveal: bool,
    pub(crate) error_page: ErrorPage,
    pub(crate) client_limits: ClientLimits,
    pub(crate) trusted_proxies: TrustedProxies,
    pub(crate) proxy_protocol: bool,
    pub(crate) drain_grace: Duration,
    pub(crate) accesses: Accesses,
    pub(crate) spans: Spans,
    pub(crate) apps: Vec<(AppSpec, Arc<dyn App>)>,
    pub(crate) registers: Vec<AppName>,
    pub(crate) layers: Vec<HopLayer>,
}

impl Builder {
    /// The zone this peer is in; peers of the same zone are preferred.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// A bound listener for clients who speak HTTP/1.1 or HTTP/2 without TLS; the latter with
    /// prior knowledge (h2c, RFC 9113 section 3.3). May be called several times; without any,
    /// requests come through [`Mesh::service`] alone.
    #[must_use]
    pub fn front_door(mut self, listener: TcpListener) -> Self {
        self.front_doors.push((listener, None));
        self
    }

    /// A bound listener for clients who speak TLS; HTTP/2 and HTTP/1.1 by ALPN (RFC 7301).
    #[must_use]
    pub fn front_door_tls(mut self, listener: TcpListener, tls: FrontDoorTls) -> Self {
        self.front_doors.push((listener, Some(tls)));
        self
    }

    /// The most connections of clients that each front door has open at once; more wait to be
    /// accepted. Each takes an open file, and another one while the app is a process that is asked
    /// over a connection. Default: 16,384.
    #[must_use]
    pub fn front_door_connections(mut self, each: NonZeroUsize) -> Self {
        self.front_door_connections = each.get().min(Semaphore::MAX_PERMITS);
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

    /// Whether responses show the mesh's inside: the peer and the request (`Warmhop-Peer`,
    /// `Warmhop-Request-Id`), peers' names in `Via` and `Proxy-Status`, and what went wrong.
    /// Default: yes. Where not, the affinity cookie calls peers by aliases unless its
    /// [`CookieSpec::route`](crate::cookie::CookieSpec::route) says otherwise.
    #[must_use]
    pub fn reveal(mut self, reveal: bool) -> Self {
        self.reveal = reveal;
        self
    }

    /// The page that browsers are shown where a request cannot be served, instead of the mesh's own.
    /// In it `{status}`, `{title}`, `{words}`, `{detail}`, `{id}` and `{again}` (an element for the
    /// head, which loads the page anew where that helps) stand for what happened.
    #[must_use]
    pub fn error_page(mut self, html: impl Into<String>) -> Self {
        self.error_page = ErrorPage::of(html.into());
        self
    }

    /// What clients may take of this peer. Default: [`ClientLimits::default`].
    #[must_use]
    pub fn client_limits(mut self, limits: ClientLimits) -> Self {
        self.client_limits = limits;
        self
    }

    /// The proxies whose `Forwarded`, `X-Forwarded-*` and `X-Real-IP` are believed; from everybody else
    /// they are taken out. Default: nobody.
    #[must_use]
    pub fn trusted_proxies(mut self, proxies: TrustedProxies) -> Self {
        self.trusted_proxies = proxies;
        self
    }

    /// Whether each connection to a front door begins with a header of the PROXY protocol, version 1
    /// or 2. It is believed from trusted proxies alone, or, where none is named, from whoever
    /// connects; others are refused. Default: no.
    #[must_use]
    pub fn proxy_protocol(mut self, proxy_protocol: bool) -> Self {
        self.proxy_protocol = proxy_protocol;
        self
    }

    /// How long requests and streams in flight may take to end once the peer drains. What is
    /// open after it is closed in the terms of its protocol, a WebSocket with status 1001. A
    /// shutdown takes up to so much longer. Default: 30 s.
    #[must_use]
    pub fn drain_grace(mut self, grace: Duration) -> Self {
        self.drain_grace = grace;
        self
    }

    /// Who takes the spans of distributed traces. Default: nobody, and requests' `traceparent`
    /// passes unchanged.
    #[must_use]
    pub fn spans(mut self, sink: impl SpanSink) -> Self {
        self.spans = Spans::new(Arc::new(sink));
        self
    }

    /// Who takes what is told of clients' requests, as an access log does. Default: nobody.
    #[must_use]
    pub fn access_log(mut self, sink: impl AccessSink) -> Self {
        self.accesses = Accesses::new(Arc::new(sink));
        self
    }

    /// An app that this peer can run.
    #[must_use]
    pub fn app(mut self, spec: AppSpec, app: impl App) -> Self {
        self.apps.push((spec, Arc::new(app)));
        self
    }

    /// Offers the registers of this name on this peer: see [`Registers`]. No app of the mesh may
    /// have the name.
    #[must_use]
    pub fn registers(mut self, name: AppName) -> Self {
        self.registers.push(name);
        self
    }

    /// A service that starts by itself and answers its clients through `layer`. Of several peers
    /// with one layer, the last one started has what comes through it.
    #[must_use]
    pub fn hop_layer(mut self, layer: &HopLayer) -> Self {
        self.apps.push((layer.spec(), Arc::new(layer.app())));
        self.layers.push(layer.clone());
        self
    }

    /// Binds the mesh port, starts gossip, the apps that start at boot and the front doors. It
    /// waits for no seed: a peer that is alone serves what it can.
    ///
    /// # Errors
    /// See [`StartMeshError`]: each says what to do next.
    pub async fn start(self) -> Result<Mesh, StartMeshError> {
        let specs: Vec<&AppSpec> = self.apps.iter().map(|(spec, _)| spec).collect();
        check_apps(&specs, &self.registers)?;
        crate::observe::failpoint::arm()?;
        let mut registry = Registry::with_prefix("warmhop");
        let metrics = Arc::new(Metrics::register(&mut registry));
        let counters = NetCounters::new(&mut registry);
        let clock = self.clock.unwrap_or_else(Clock::new);
        let incarnation = Incarnation::of(&self.peer, clock.own_wall(), rand::random());
        let changed = watch::Sender::new(0);
        let store = Store::new(incarnation, self.sessions, clock.clone(), Arc::clone(&metrics));
        let late_net: Arc<OnceLock<Net>> = Arc::default();
        let slot = {
            let (peer, metrics) = (self.peer.clone(), Arc::clone(&metrics));
            let (clock, changed) = (clock.clone(), changed.clone());
            move |spec, keeps_registers, app, publish| {
                let (peer, metrics) = (peer.clone(), Arc::clone(&metrics));
                let (clock, changed) = (clock.clone(), changed.clone());
                Slot::new(spec, keeps_registers, app, peer, clock, metrics, changed, publish)
            }
        };
        let apps = self.apps.into_iter();
        let slots: Vec<Arc<Slot>> = apps
            .map(|(spec, app)| slot(spec, false, app, publisher(Arc::clone(&late_net))))
            .collect();
        let late_node: Arc<OnceLock<Weak<Node>>> = Arc::default();
        let registers: Vec<Arc<Slot>> = self
            .registers
            .into_iter()
            .map(|name| {
                let (spec, app) = registers::keeper(name, Arc::clone(&late_node));
                // Nobody is to send requests to it: whoever owns a register executes it.
                slot(spec, true, Arc::new(app) as Arc<dyn App>, Box::new(|_: &Slot| ()))
            })
            .collect();
        let http: Vec<SocketAddr> =
            self.front_doors.iter().filter_map(|(door, _)| door.local_addr().ok()).collect();
        for slot in &slots {
            metrics.begin(slot.name(), &HopRefusal::LABELS);
        }
        let node = Node::new(Parts {
            me: self.peer.clone(),
            cluster: self.cluster.clone(),
            zone: self.zone.clone(),
            incarnation,
            reveal: self.reveal,
            error_page: self.error_page,
            clock: clock.clone(),
            seeds: self.seeds.len(),
            slots,
            registers,
            changed: changed.clone(),
            store: Arc::clone(&store),
            http: http.clone(),
            auth: self.identity.cookie_authenticator(),
            accesses: self.accesses,
            spans: self.spans,
            metrics,
        });
        let _ = late_node.set(Arc::downgrade(&node));
        registry.register_collector(Box::new(report::Gauges(late_node)));
        let handler: Arc<dyn NetHandler> = Arc::<Node>::clone(&node);
        let net = Net::start(
            NetConfig {
                cluster: self.cluster,
                me: self.peer,
                incarnation,
                zone: self.zone,
                http: http.first().map(ToString::to_string),
                listen: self.mesh_listen,
                advertise: self.advertise,
                seeds: self.seeds.clone(),
                refused: self.refused,
                identity: self.identity,
                counters,
                clock,
                tuning: NetTuning::default(),
            },
            handler,
        )
        .await?;
        let carrier = net.clone();
        store.connect(Box::new(move |to, frame| carrier.send_session(to, frame)));
        let _ = late_net.set(net.clone());
        let make =
            Box::new(move |spec, app| slot(spec, false, app, publisher(Arc::clone(&late_net))));
        let _ = node.net.set(net.clone());
        node.count_peers();
        for slot in &node.apps().slots {
            slot.announce();
        }

        let closing = CancellationToken::new();
        let doors_closing = CancellationToken::new();
        let tasks = TaskTracker::new();
        let doors = TaskTracker::new();
        let connections = TaskTracker::new();
        let refusals = Arc::clone(&node.metrics.refusals);
        let clients = Clients::new(self.client_limits, refusals, node.metrics.client_bytes.clone());
        let trusted = self.trusted_proxies;
        let ingress = Arc::new(Ingress { node: Arc::clone(&node), clients, trusted });
        let background = |task: futures_util::future::BoxFuture<'static, ()>| {
            let closing = closing.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = task => {}
                    () = closing.cancelled() => {}
                }
            });
        };
        background(Box::pin(Arc::clone(&store).wake()));
        background(Box::pin(upkeep::run(Arc::clone(&node), !self.seeds.is_empty())));
        background(Box::pin(upkeep::watch_load(Arc::clone(&node))));
        let nursery = Nursery::new(make, tasks.clone(), closing.clone());
        for slot in node.apps().slots.iter().chain(&node.registers) {
            nursery.tend(slot);
        }
        let mut changes = changed.subscribe();
        for slot in &node.registers {
            // They start without waiting for anything, but on a task of their own.
            while slot.state() != AppState::Ready && changes.changed().await.is_ok() {}
        }
        for layer in self.layers {
            let Some(slot) = node.slot(&layer.spec().name) else { continue };
            background(Box::pin(layer.join(Arc::clone(&ingress), slot)));
        }
        let mut permits_of_doors = Vec::new();
        for (door, tls) in self.front_doors {
            if let Some(tls) = tls.clone() {
                background(Box::pin(tls.follow()));
            }
            let permits = Arc::new(Semaphore::new(self.front_door_connections));
            permits_of_doors.push(Arc::clone(&permits));
            let door_of = Door {
                tls: tls.map(|tls| TlsAcceptor::from(tls.config())),
                proxy_protocol: self.proxy_protocol,
                ingress: Arc::clone(&ingress),
                closing: doors_closing.clone(),
                tunnels: node.tunnels.clone(),
                permits,
            };
            doors.spawn(listener::serve(door, Arc::new(door_of), connections.clone()));
        }
        Ok(Mesh(Arc::new(Running {
            node,
            net,
            ingress,
            nursery,
            registry,
            closing,
            doors_closing,
            doors,
            permits_of_doors,
            proxy_protocol: self.proxy_protocol,
            tasks,
            connections,
            drain_grace: self.drain_grace,
            leaving: Leaving::new(),
            ended: OnceCell::new(),
        })))
    }
}

fn publisher(net: Arc<OnceLock<Net>>) -> Box<dyn Fn(&Slot) + Send + Sync> {
    Box::new(move |slot| {
        let Some(net) = net.get() else { return };
        if slot.spec().policy.start == StartMode::Never {
            // An app that never starts here is none that this peer could be asked for.
            net.retract_app(slot.name());
        } else {
            net.publish_app(slot.name(), slot.told());
        }
    })
}

struct Running {
    node: Arc<Node>,
    net: Net,
    ingress: Arc<Ingress>,
    nursery: Nursery,
    registry: Registry,
    closing: CancellationToken,
    doors_closing: CancellationToken,
    doors: TaskTracker,
    /// How many connections each front door may still take, in their order.
    permits_of_doors: Vec<Arc<Semaphore>>,
    /// Their connections begin with a PROXY header.
    proxy_protocol: bool,
    tasks: TaskTracker,
    connections: TaskTracker,
    drain_grace: Duration,
    leaving: Leaving,
    ended: OnceCell<()>,
}

/// A running peer. Cheap to clone; the peer ends with [`Mesh::shutdown`].
#[derive(Clone)]
pub struct Mesh(Arc<Running>);

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
    /// Begins a peer of `cluster` with `identity`.
    #[must_use]
    pub fn builder(cluster: impl Into<String>, peer: PeerId, identity: Identity) -> Builder {
        Builder {
            cluster: cluster.into(),
            peer,
            zone: None,
            clock: None,
            front_doors: Vec::new(),
            front_door_connections: listener::CONNECTIONS_MAX,
            mesh_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            seeds: Vec::new(),
            refused: RefusedPeers::default(),
            identity,
            sessions: SessionPolicy::default(),
            reveal: true,
            error_page: ErrorPage::default(),
            client_limits: ClientLimits::default(),
            trusted_proxies: TrustedProxies::default(),
            proxy_protocol: false,
            drain_grace: Duration::from_secs(30),
            accesses: Accesses::default(),
            spans: Spans::default(),
            apps: Vec::new(),
            registers: Vec::new(),
            layers: Vec::new(),
        }
    }

    /// From now on refuses these members and no others: links to them end at once, and nothing that
    /// is said of refused names is listened to.
    pub fn refuse(&self, refused: RefusedPeers) {
        self.0.net.refuse(refused);
    }

    /// This peer as a tower service.
    #[must_use]
    pub fn service(&self) -> MeshService {
        MeshService(Arc::clone(&self.0.ingress))
    }

    /// The registers of this name; `None` where they were not declared with
    /// [`Builder::registers`].
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
        let running = &self.0;
        let Some(permits) = running.permits_of_doors.get(door) else { return };
        let door = Door {
            tls: tls.map(|tls| TlsAcceptor::from(tls.config())),
            proxy_protocol: running.proxy_protocol,
            ingress: Arc::clone(&running.ingress),
            closing: running.doors_closing.clone(),
            tunnels: running.node.tunnels.clone(),
            permits: Arc::clone(permits),
        };
        let serving = listener::serve(listener, Arc::new(door), running.connections.clone());
        running.doors.track_future(serving).await;
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

    /// Holds copies of the app down here, whoever wants them, or lets them start again. What runs
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
        running.doors_closing.cancel();
        running.closing.cancel();
        running.net.vanish().await;
    }

    /// Drains, stops the apps and closes every link. Idempotent.
    pub async fn shutdown(&self) {
        let running = &self.0;
        running.leaving.end(&running.node, &running.net).await;
        running
            .ended
            .get_or_init(|| async {
                running.doors_closing.cancel();
                // Each has taken in what its clients had begun to open.
                running.doors.close();
                shutdown::wait_for(&running.doors).await;
                running.connections.close();
                shutdown::end_streams(&running.node, &running.connections, running.drain_grace)
                    .await;
                shutdown::give_away_the_rest(&running.node).await;
                shutdown::stop_apps(&running.node).await;
                running.net.close().await;
                running.closing.cancel();
                running.tasks.close();
                shutdown::wait_for(&running.tasks).await;
            })
            .await;
    }
}
