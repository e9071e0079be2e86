//! What a mesh peer is built from.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use warmhop_core::config::SessionPolicy;
use warmhop_core::ids::{AppName, PeerId};

use crate::adapters::hop_layer::HopLayer;
use crate::app::{App, AppSpec};
use crate::front::listener;
use crate::front::origin::TrustedProxies;
use crate::http::clients::ClientLimits;
use crate::identity::{FrontDoorTls, Identity, RefusedPeers};
use crate::mesh::running::Mesh;
use crate::observe::access::{AccessSink, Accesses};
use crate::observe::clock::Clock;
use crate::observe::trace::{SpanSink, Spans};
use crate::request::error_page::ErrorPage;

/// Collects what a peer needs and starts it.
pub struct Builder {
    pub(crate) cluster: String,
    pub(crate) peer: PeerId,
    pub(crate) zone: Option<String>,
    /// Another clock than the machine's, for tests.
    pub(crate) clock: Option<Clock>,
    pub(crate) failpoints: Option<String>,
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

    /// The most connections of clients that each front door has open at once; further ones wait to
    /// be accepted. Each takes an open file, and another one if the app is a process that is
    /// reached over a connection. Default: 16,384.
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

    /// The address at which other peers reach this one. Default: the bound one.
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
    /// Default: yes. If not, the affinity cookie names peers by aliases unless its
    /// [`CookieSpec::route`](crate::cookie::CookieSpec::route) says otherwise.
    #[must_use]
    pub fn reveal(mut self, reveal: bool) -> Self {
        self.reveal = reveal;
        self
    }

    /// The page for browsers whose request cannot be served, instead of the mesh's own. In it
    /// `{status}`, `{title}`, `{words}`, `{detail}`, `{id}` and `{again}` (an element for the head,
    /// which reloads the page if that helps) are replaced.
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

    /// The proxies whose `Forwarded`, `X-Forwarded-*` and `X-Real-IP` are trusted; from everybody
    /// else these fields are removed. Default: nobody.
    #[must_use]
    pub fn trusted_proxies(mut self, proxies: TrustedProxies) -> Self {
        self.trusted_proxies = proxies;
        self
    }

    /// Whether each connection to a front door begins with a header of the PROXY protocol, version
    /// 1 or 2. It is trusted from trusted proxies alone, or, if none is named, from every client;
    /// others are refused. Default: no.
    #[must_use]
    pub fn proxy_protocol(mut self, proxy_protocol: bool) -> Self {
        self.proxy_protocol = proxy_protocol;
        self
    }

    /// How long requests and streams in flight may take to end once the peer drains. Streams still
    /// open after that are closed by their own protocol, a WebSocket with status 1001. A shutdown
    /// takes up to so much longer. Default: 30 s.
    #[must_use]
    pub fn drain_grace(mut self, grace: Duration) -> Self {
        self.drain_grace = grace;
        self
    }

    /// Takes the spans of distributed traces. Default: none, and requests' `traceparent` passes
    /// unchanged.
    #[must_use]
    pub fn spans(mut self, sink: impl SpanSink) -> Self {
        self.spans = Spans::new(Arc::new(sink));
        self
    }

    /// Takes the records of clients' requests, as an access log does. Default: none.
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

    /// Offers the registers of this name on this peer: see [`Registers`](crate::Registers). No app of the mesh may
    /// have the name.
    #[must_use]
    pub fn registers(mut self, name: AppName) -> Self {
        self.registers.push(name);
        self
    }

    /// A service that starts by itself and answers its clients through `layer`. Of several peers
    /// with the same layer, the one started last gets the layer's requests.
    #[must_use]
    pub fn hop_layer(mut self, layer: &HopLayer) -> Self {
        self.apps.push((layer.spec(), Arc::new(layer.app())));
        self.layers.push(layer.clone());
        self
    }

    /// Moments at which this process dies, `NAME=kill@N[,NAME=kill@N…]`: for tests of crashes.
    /// Release builds ignore them.
    #[doc(hidden)]
    #[must_use]
    pub fn failpoints(mut self, points: impl Into<String>) -> Self {
        self.failpoints = Some(points.into());
        self
    }

    /// A wall clock so many milliseconds ahead of the machine's, or behind it if negative: for
    /// tests of peers whose clocks differ.
    #[doc(hidden)]
    #[must_use]
    pub fn clock_ahead(mut self, ahead_ms: i64) -> Self {
        self.clock = Some(Clock::ahead(ahead_ms));
        self
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let apps: Vec<_> = self.apps.iter().map(|(spec, _)| spec.name.as_str()).collect();
        f.debug_struct("Builder")
            .field("identity", &self.identity)
            .field("mesh_listen", &self.mesh_listen)
            .field("seeds", &self.seeds)
            .field("apps", &apps)
            .finish_non_exhaustive()
    }
}

impl Mesh {
    /// Begins to build the peer that `identity` names, in its cluster.
    #[must_use]
    pub fn builder(identity: Identity) -> Builder {
        Builder {
            cluster: identity.cluster(),
            peer: identity.peer(),
            zone: None,
            clock: None,
            failpoints: None,
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
}
