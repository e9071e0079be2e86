//! Everything between the UDP socket and the rest of the crate: the facade over links, gossip
//! and news. It knows nothing of routing or sessions; what it hears goes to a [`NetHandler`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use quinn::{RecvStream, SendStream};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use warmhop_core::ids::{AppName, Incarnation, PeerId};
use warmhop_core::view::{News, PeerNews};

use crate::error::StartMeshError;
use crate::identity::expiry::Expiry;
use crate::identity::{Identity, RefusedPeers};
use crate::links::dial::{self, Book, NoLink};
use crate::links::gossip::{self, Gossip};
use crate::links::link::{self, HopLease, Link, Links, Met, close_code};
use crate::links::news::{OwnNews, Told};
use crate::links::seeds::{self, Seeds};
use crate::links::wire::{self, SessionFrame};
use crate::observe::clock::Clock;
use crate::observe::status::SeedStatus;

/// Frames of sessions from this peer to itself that wait.
const LOOPBACK_FRAMES_MAX: usize = 1024;
/// Handshakes under way at once; more are refused, so that strangers cannot fill the memory.
const HANDSHAKES_MAX: usize = 256;
/// From so many on, whoever dials has to show first that it hears what is sent to its address (RFC
/// 9000 section 8.1.2): a peer does within a round trip, and whoever makes up addresses never does.
const HANDSHAKES_AT_EASE: usize = 64;
/// How often the identity's files are looked at.
const IDENTITY_EVERY: Duration = Duration::from_secs(5);
/// How long the hops that were taken in last may take to be answered, when the peer leaves.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// How long closing waits for the other ends to have heard of it.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// Asks for a larger socket buffer than the system's usual one; without it bursts are lost.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Above it ten segments of one GSO batch exceed 64 KiB, and such batches fail silently.
const MTU_MAX: u16 = 6500;
const MTU_MIN: u16 = 1200;
/// What may have arrived on a stream that nobody has read: the most memory that a hop takes at either
/// end, in each direction, where its reader stands still. It is also the most that a stream moves in
/// one round trip: 128 MB/s at 2 ms. A larger one moves one bulk stream faster over loopback, as
/// `testbed/bench-streams` shows, and each client that reads nothing costs as much more.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Streams of one direction that a peer may have open on a link: control, sessions and gossip.
const UNI_STREAMS_MAX: u32 = 64;
/// What others may send here however small this peer's own packets are to be.
const ETHERNET_PAYLOAD_BYTES: u16 = 1472;

/// What the network layer is made from.
pub(crate) struct NetConfig {
    /// Only peers of the same cluster are talked to.
    pub(crate) cluster: String,
    /// This peer's name; its identity must be of the same.
    pub(crate) me: PeerId,
    /// This life of its process.
    pub(crate) incarnation: Incarnation,
    /// This peer's zone.
    pub(crate) zone: Option<String>,
    /// Where its front door can be reached.
    pub(crate) http: Option<String>,
    /// The UDP address to bind.
    pub(crate) listen: SocketAddr,
    /// The address that others reach it at; by default the bound one.
    pub(crate) advertise: Option<SocketAddr>,
    /// `HOST:PORT` of peers to join. This peer's own address among them does no harm.
    pub(crate) seeds: Vec<String>,
    /// Members that it has nothing to do with.
    pub(crate) refused: RefusedPeers,
    /// Its credentials.
    pub(crate) identity: Identity,
    /// Where it counts.
    pub(crate) counters: Arc<NetCounters>,
    /// What compares the peers' clocks.
    pub(crate) clock: Clock,
    /// Times and bounds.
    pub(crate) tuning: NetTuning,
}

/// Times and bounds of the network layer. The defaults suit a data-centre LAN of up to 50 peers.
#[derive(Debug, Clone)]
pub(crate) struct NetTuning {
    /// How often each peer gossips with three others. Lower repairs news sooner; each halving
    /// doubles what an idle peer costs.
    pub(crate) gossip_interval: Duration,
    /// Above this suspicion (phi accrual) a peer without a link counts as suspect.
    pub(crate) phi_threshold: f64,
    /// A link that is silent for this long is down. Keep-alives go at a quarter of it.
    pub(crate) idle_timeout: Duration,
    /// The largest packet that is tried, in bytes of UDP payload: 1200 to 6500.
    pub(crate) mtu: u16,
    /// Links older than this are dialed anew, so that certificates are verified again.
    pub(crate) link_age_max: Duration,
    /// How long a handshake may take.
    pub(crate) dial_within: Duration,
    /// How long the hello may take once the handshake is done.
    pub(crate) hello_within: Duration,
    /// How long a hop waits for a link and a stream.
    pub(crate) open_within: Duration,
    /// Hops that this peer may have under way over one link, as many as a front door takes
    /// connections; one more is refused at once. Raising it costs nothing before it is used. Then
    /// each takes what a stream may hold, 256 KiB in each direction at the most and at the worst,
    /// and the most that there ever were take some 90 bytes each for as long as the link lives.
    pub(crate) hops_max: u32,
    /// The start waits this long for seeds to say that the name is taken; once one has, up to
    /// three times as long for whoever has it. A clash that shows later is told by
    /// [`Net::name_clash`].
    pub(crate) seeds_within: Duration,
    /// A peer without a link that nobody has spoken of for this long is forgotten.
    pub(crate) forget_after: Duration,
    /// Whether news is pushed over links at once. Without it gossip alone carries it.
    pub(crate) push_news: bool,
}

impl Default for NetTuning {
    fn default() -> Self {
        Self {
            gossip_interval: Duration::from_millis(250),
            phi_threshold: 12.0,
            idle_timeout: Duration::from_millis(2500),
            // What loopback and jumbo frames carry is found by probes (RFC 8899), and moves bulk half as
            // fast again as Ethernet's size; a path that carries less costs some lost probes.
            mtu: 6000,
            link_age_max: Duration::from_secs(3600),
            dial_within: Duration::from_secs(2),
            hello_within: Duration::from_secs(2),
            open_within: Duration::from_secs(2),
            hops_max: 16 * 1024,
            seeds_within: Duration::from_millis(250),
            forget_after: Duration::from_secs(120),
            push_news: true,
        }
    }
}

/// What was heard of a peer's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// There is a link to it, or others believe that it lives.
    Alive,
    /// Its link was lost, or without a link others have not heard of it for long. Perhaps it
    /// is slow, perhaps dead.
    Suspect,
    /// It lives again as another incarnation.
    Gone,
    /// It said goodbye.
    Left,
}

/// Whom the network layer tells what it hears. All but [`NetHandler::on_hop`] are called from
/// its own tasks, some with its table of links locked: they must be quick, never block, and may
/// call every method of [`Net`].
pub(crate) trait NetHandler: Send + Sync + 'static {
    /// A peer opened a hop. Called in a task of its own; the stream's kind byte has been read.
    fn on_hop(
        self: Arc<Self>,
        from: PeerId,
        from_incarnation: Incarnation,
        send: SendStream,
        recv: RecvStream,
    ) -> BoxFuture<'static, ()>;

    /// A frame of a session arrived. Its addressee may be another incarnation than this one:
    /// the answer to that is the session's (`Nack Dead`).
    fn on_session_frame(&self, from: Incarnation, frame: SessionFrame);

    /// News arrived; `first_hand` if from the peer that it is about.
    fn on_news(&self, news: News, first_hand: bool);

    /// Others remember a former life of this peer, which did not leave in good order.
    fn on_former_life(&self);

    /// Something was heard of a peer's life.
    fn on_liveness(&self, peer: &PeerId, incarnation: Incarnation, heard: Heard);
}

/// The network layer of one peer. Clones share it; when the last one is dropped, it
/// ends as by [`Net::close`], without anyone waiting for it.
#[derive(Clone)]
pub(crate) struct Net {
    shared: Arc<Shared>,
    _ends_with_the_last: Arc<DropGuard>,
}

/// What every task of the network layer shares.
pub(crate) struct Shared {
    pub(crate) cluster: String,
    pub(crate) me: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) advertise: SocketAddr,
    pub(crate) tuning: NetTuning,
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) own: OwnNews,
    pub(crate) links: Links,
    pub(crate) book: Book,
    pub(crate) seeds: Seeds,
    pub(crate) handler: Arc<dyn NetHandler>,
    pub(crate) counters: Arc<NetCounters>,
    /// It takes in no more hops, and answers those that it took.
    pub(crate) leaving: CancellationToken,
    pub(crate) clock: Clock,
    pub(crate) closing: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// The hops that were taken in and are not answered yet.
    pub(crate) taken_in: TaskTracker,
    /// Those of the tasks that take in hops.
    pub(crate) acceptors: TaskTracker,
    /// It is about to leave.
    pub(crate) draining: AtomicBool,
    /// Members that it has nothing to do with.
    pub(crate) refused: watch::Sender<RefusedPeers>,
    identity: Identity,
    client: ArcSwap<quinn::ClientConfig>,
    gossip: Gossip,
    loopback: mpsc::Sender<SessionFrame>,
    clash: watch::Sender<Option<SocketAddr>>,
    /// Probes for namesakes under way.
    probes: watch::Sender<usize>,
}

/// The streams of a hop that was opened.
pub(crate) struct OpenHop {
    /// Begins with [`wire::KIND_HOP`], which its user writes together with the head.
    pub(crate) send: SendStream,
    /// What comes back.
    pub(crate) recv: RecvStream,
    /// The incarnation at the other end.
    pub(crate) incarnation: Incarnation,
    /// To be kept for as long as the streams are used: a link that is replaced waits for it.
    pub(crate) lease: HopLease,
}

/// Why a hop could not be opened. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpenError {
    /// Nothing is known of the peer, or it has left.
    #[error("the peer {0} is not known")]
    Unknown(PeerId),
    /// It does not answer.
    #[error("the peer {0} cannot be reached")]
    Unreachable(PeerId),
    /// As many hops as may be are under way to it, or it did not let another begin in time.
    #[error("the link to the peer {0} carries as many hops as it may")]
    Busy(PeerId),
}

impl Net {
    /// Binds the socket and starts links and gossip. It does not wait for seeds to be up; a
    /// quarter of a second is given to those that are, to say whether the name is taken.
    ///
    /// # Errors
    /// [`StartMeshError`]; nothing is left running.
    pub(crate) async fn start(
        config: NetConfig,
        handler: Arc<dyn NetHandler>,
    ) -> Result<Self, StartMeshError> {
        let NetConfig {
            cluster,
            me,
            incarnation,
            zone,
            http,
            listen,
            advertise,
            seeds,
            refused,
            identity,
            counters,
            clock,
            tuning,
        } = config;
        if identity.cluster() != cluster || identity.peer() != me {
            return Err(StartMeshError::WrongIdentity {
                found: identity.spiffe_id(),
                expected: format!("spiffe://{cluster}/peer/{me}"),
            });
        }
        let bind_failed = |source| StartMeshError::Bind { addr: listen, source };
        let socket = bind(listen).map_err(bind_failed)?;
        let local = socket.local_addr().map_err(bind_failed)?;
        let advertise = advertise.unwrap_or(local);
        if advertise.ip().is_unspecified() || advertise.port() == 0 {
            return Err(StartMeshError::NeedsAdvertise { addr: advertise });
        }

        let transport = Arc::new(transport(&tuning));
        // Before it is read, so that no change between the two is missed.
        let changes = identity.changes();
        let (client, server) = quic_configs(&identity, &transport)?;
        // The endpoint keeps some two thousand buffers of this size: no larger than needed.
        let mut endpoint_config = quinn::EndpointConfig::default();
        endpoint_config
            .max_udp_payload_size(tuning.mtu.clamp(ETHERNET_PAYLOAD_BYTES, MTU_MAX))
            .expect("the bounds are within what QUIC allows");
        let endpoint = quinn::Endpoint::new(
            endpoint_config,
            Some(server),
            socket,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(bind_failed)?;

        let own = PeerNews {
            peer: me.clone(),
            incarnation,
            generation: unix_ms(),
            seq: 1,
            mesh: advertise,
            http: http.filter(|text| text.len() <= wire::HTTP_BYTES_MAX),
            zone: zone.filter(|text| text.len() <= wire::ZONE_BYTES_MAX),
            draining: false,
            knows_more: seeds.len() > 1,
        };
        let (loopback, loopback_out) = mpsc::channel(LOOPBACK_FRAMES_MAX);
        let (gossip, gossip_in) = Gossip::new();
        let shared = Arc::new(Shared {
            cluster,
            me,
            incarnation: own.incarnation,
            advertise,
            tuning,
            endpoint,
            own: OwnNews::new(own),
            links: Links::new(),
            book: Book::new(),
            seeds: Seeds::new(&seeds),
            handler,
            counters,
            leaving: CancellationToken::new(),
            clock,
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
            taken_in: TaskTracker::new(),
            acceptors: TaskTracker::new(),
            draining: AtomicBool::new(false),
            refused: watch::Sender::new(refused),
            identity,
            client: ArcSwap::from_pointee(client),
            gossip,
            loopback,
            clash: watch::Sender::new(None),
            probes: watch::Sender::new(0),
        });

        let tasks = &shared.tasks;
        tasks.spawn(accept(shared.clone()));
        tasks.spawn(loop_back(shared.clone(), loopback_out));
        tasks.spawn(gossip::supervise(shared.clone(), gossip_in));
        tasks.spawn(follow_identity(shared.clone(), transport, changes));
        tasks.spawn(sweep(shared.clone()));
        let mut tried = Vec::new();
        for (position, seed) in seeds.into_iter().enumerate() {
            let (sender, receiver) = watch::channel(false);
            tried.push(receiver);
            tasks.spawn(dial::follow_seed(shared.clone(), position, seed, sender));
        }
        let net = Self {
            _ends_with_the_last: Arc::new(shared.closing.clone().drop_guard()),
            shared: shared.clone(),
        };
        tokio::spawn(end_with(shared));

        if let Some(addr) = net.early_clash(tried).await {
            let name = net.shared.me.to_string();
            net.close().await;
            return Err(StartMeshError::NameInUse { name, addr });
        }
        info!(peer = %net.shared.me, listen = %local, advertise = %net.shared.advertise, "the mesh port is open");
        Ok(net)
    }

    /// Whether a seed that is up knows another peer of this name.
    async fn early_clash(&self, tried: Vec<watch::Receiver<bool>>) -> Option<SocketAddr> {
        let within = self.shared.tuning.seeds_within;
        let all_tried = async {
            for mut tried in tried {
                // A seed's task that ended has nothing more to say.
                let _ = tried.wait_for(|tried| *tried).await;
            }
        };
        let _ = timeout(within, all_tried).await;
        let mut probes = self.shared.probes.subscribe();
        let _ = timeout(within * 3, probes.wait_for(|probes| *probes == 0)).await;
        *self.shared.clash.borrow()
    }

    #[cfg(test)]
    /// This life of the process.
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.shared.incarnation
    }

    #[cfg(test)]
    /// The bound address.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.shared.endpoint.local_addr().unwrap_or(self.shared.advertise)
    }

    /// The address that others reach this peer at.
    pub(crate) fn advertised_addr(&self) -> SocketAddr {
        self.shared.advertise
    }

    /// Tells every peer of an app's state here: at once over links, and by gossip. A change of
    /// load alone is told within a tenth of a second.
    pub(crate) fn publish_app(&self, app: &AppName, told: Told) {
        if !self.shared.own.publish_app(app, told) {
            self.shared.counters.drop_counted("news", "too-many-apps");
        }
    }

    /// Tells every peer that this one has the app no more.
    pub(crate) fn retract_app(&self, app: &AppName) {
        self.shared.own.retract_app(app);
    }

    /// Tells every peer whether this one is about to leave.
    pub(crate) fn publish_draining(&self, draining: bool) {
        self.shared.draining.store(draining, Ordering::Release);
        self.shared.own.publish_draining(draining);
    }

    /// Has nothing to do any more with these members, and with those of before that are not among
    /// them as with any other. Links to them end.
    pub(crate) fn refuse(&self, refused: RefusedPeers) {
        self.shared.refused.send_if_modified(|before| {
            let changes = *before != refused;
            *before = refused;
            changes
        });
    }

    /// Tells every peer whether there are, or may be, more than two.
    pub(crate) fn publish_knows_more(&self, knows_more: bool) {
        self.shared.own.publish_knows_more(knows_more);
    }

    /// Opens the streams of a hop over the current link to a peer. Where there is none, the
    /// peer is dialed once, at once.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was sent.
    pub(crate) async fn open_hop(&self, to: &PeerId) -> Result<OpenHop, OpenError> {
        let opening = async {
            let link: Arc<Link> =
                self.shared.book.link_to(&self.shared, to).await.map_err(|error| match error {
                    NoLink::Unknown => OpenError::Unknown(to.clone()),
                    NoLink::Unreachable => OpenError::Unreachable(to.clone()),
                })?;
            let lease = HopLease::of_own(&link, self.shared.tuning.hops_max)
                .ok_or_else(|| OpenError::Busy(to.clone()))?;
            let (send, recv) =
                lease.open().await.map_err(|_| OpenError::Unreachable(to.clone()))?;
            Ok(OpenHop { send, recv, incarnation: link.peer.incarnation, lease })
        };
        match timeout(self.shared.tuning.open_within, opening).await {
            Ok(result) => result,
            Err(_) => Err(OpenError::Busy(to.clone())),
        }
    }

    /// Sends a frame of a session, this peer itself included. Best effort: it is queued in
    /// order, and dropped and counted if there is no link or its queue is full.
    pub(crate) fn send_session(&self, to: Incarnation, frame: SessionFrame) {
        let result = if to == self.shared.incarnation {
            self.shared.loopback.try_send(frame).map_err(|_| link::Dropped::Full)
        } else {
            self.shared.links.table().send_session(to, &frame)
        };
        match result {
            Ok(()) => self.shared.counters.session_frame_sent(),
            Err(dropped) => self.shared.counters.drop_counted("session", dropped.label()),
        }
    }

    /// How many seeds were never met, and are not the address of a peer that `is_known`.
    pub(crate) fn unmet_seeds(&self, is_known: impl Fn(SocketAddr) -> bool) -> usize {
        self.shared.seeds.unmet(is_known)
    }

    /// What became of each seed, in the order of the configuration.
    pub(crate) fn seeds(&self) -> Vec<SeedStatus> {
        self.shared.seeds.status()
    }

    /// When this peer's certificate ends.
    pub(crate) fn identity_expires(&self) -> SystemTime {
        self.shared.identity.expires()
    }

    /// The round-trip time of the link to a peer.
    pub(crate) fn rtt(&self, peer: &PeerId) -> Option<Duration> {
        self.shared.links.to(peer).map(|link| link.conn.rtt())
    }

    #[cfg(test)]
    /// The peers that there is a link to, in order of their names.
    pub(crate) fn connected(&self) -> Vec<PeerId> {
        let mut peers: Vec<PeerId> = self.shared.links.table().by_peer.keys().cloned().collect();
        peers.sort_unstable();
        peers
    }

    #[cfg(test)]
    /// Where it counts.
    pub(crate) fn counters(&self) -> &NetCounters {
        &self.shared.counters
    }

    /// Resolves when a live peer turns out to have this one's name and to have been there
    /// first, with its address.
    pub(crate) fn name_clash(&self) -> impl Future<Output = SocketAddr> + Send + 'static {
        let mut clash = self.shared.clash.subscribe();
        async move {
            let found = clash.wait_for(Option::is_some).await.map(|addr| *addr);
            match found {
                Ok(Some(addr)) => addr,
                // The network layer has ended without one.
                _ => std::future::pending().await,
            }
        }
    }

    /// Answers the hops that were taken in, says goodbye to every peer and ends; they see it at once.
    /// Idempotent.
    pub(crate) async fn close(&self) {
        let shared = &self.shared;
        shared.draining.store(true, Ordering::Release);
        shared.leaving.cancel();
        shared.taken_in.close();
        shared.acceptors.close();
        if timeout(ANSWERED_WITHIN, shared.acceptors.wait()).await.is_err() {
            warn!("some hops were not answered in time: those who wait for them are cut off");
        }
        self.vanish().await;
    }

    /// Says goodbye to every peer and ends at once, whatever is under way. Idempotent.
    pub(crate) async fn vanish(&self) {
        let shared = &self.shared;
        shared.closing.cancel();
        shared.endpoint.close(close_code::GOODBYE, b"");
        let ended = async {
            shared.endpoint.wait_idle().await;
            shared.tasks.close();
            shared.tasks.wait().await;
        };
        if timeout(CLOSE_WITHIN, ended).await.is_err() {
            debug!("some tasks of the mesh port outlive it");
        }
    }
}

impl Shared {
    pub(crate) fn client_config(&self) -> quinn::ClientConfig {
        quinn::ClientConfig::clone(&self.client.load())
    }

    /// Begins gossip with a peer that a link was made to.
    pub(crate) fn gossip_with(&self, addr: SocketAddr) {
        self.gossip.meet(addr);
    }

    /// Gossip arrived on a link.
    pub(crate) fn receive_gossip(&self, link: &Link, message: &[u8]) {
        self.gossip.receive(self, link.peer.mesh, message);
    }

    /// A connection reached another process of this peer's name. `by_dialing`: at the address
    /// that this end dialed, so it is certain that it lives there.
    pub(crate) fn met_namesake(self: &Arc<Self>, other: &PeerNews, by_dialing: bool) {
        if !by_dialing {
            return self.probe_namesake(other.mesh);
        }
        let mine = self.own.peer();
        // Exactly one of the two sees itself as the later one.
        if (mine.generation, mine.incarnation) > (other.generation, other.incarnation) {
            warn!(name = %self.me, addr = %other.mesh, "another live peer has this name");
            self.clash.send_replace(Some(other.mesh));
        }
    }

    /// Others remember an earlier life of this peer, which is over.
    pub(crate) fn outrank_earlier_life(&self, generation: u64) {
        if self.own.raise_generation_above(generation) {
            info!("the clock went back since this peer's earlier life: its generation was raised");
        }
    }

    /// Asks at an address, once at a time, whether another process has this peer's name.
    pub(crate) fn probe_namesake(self: &Arc<Self>, addr: SocketAddr) {
        if addr == self.advertise || self.clash.borrow().is_some() {
            return;
        }
        let first = self.probes.send_if_modified(|probes| {
            let free = *probes == 0;
            *probes += usize::from(free);
            free
        });
        if !first {
            return;
        }
        let shared = self.clone();
        self.tasks.spawn(async move {
            match dial::dial(&shared, addr).await {
                Ok(Met::Namesake) => {}
                other => debug!(%addr, ?other, "no namesake answers there"),
            }
            shared.probes.send_modify(|probes| *probes -= 1);
        });
    }
}

/// Closes the endpoint when the last handle is gone or the network layer is closed.
async fn end_with(shared: Arc<Shared>) {
    shared.closing.cancelled().await;
    shared.endpoint.close(close_code::GOODBYE, b"");
}

async fn accept(shared: Arc<Shared>) {
    let free = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = shared.endpoint.accept().await {
        let under_way = HANDSHAKES_MAX - free.available_permits();
        if under_way >= HANDSHAKES_AT_EASE && !incoming.remote_address_validated() {
            shared.counters.handshake_retried();
            // It fails only for one that cannot be asked, which was looked at.
            let _ = incoming.retry();
            continue;
        }
        let Ok(permit) = free.clone().try_acquire_owned() else {
            shared.counters.links_refused("handshakes");
            incoming.refuse();
            continue;
        };
        let shared = shared.clone();
        shared.tasks.clone().spawn(async move {
            let from = incoming.remote_address();
            let accepted = async {
                let connecting = incoming.accept()?;
                timeout(shared.tuning.dial_within, connecting)
                    .await
                    .map_err(|_| quinn::ConnectionError::TimedOut)?
            };
            match accepted.await {
                Ok(conn) => {
                    let from = conn.remote_address();
                    if let Err(error) = link::meet(&shared, conn, None).await {
                        debug!(%from, %error, "a link was not accepted");
                        if !matches!(error, link::MeetError::Connection(_)) {
                            shared.seeds.refused(from, &error.to_string());
                        }
                    }
                }
                Err(error) => {
                    shared.counters.links_refused("handshake");
                    debug!(%from, %error, "a handshake failed");
                    // Of those that this end refused; strangers that fall silent are no news.
                    if matches!(error, quinn::ConnectionError::TransportError(_)) {
                        shared.seeds.refused(from, &seeds::why_closed(&error));
                    }
                }
            }
            drop(permit);
        });
    }
}

/// Frames of sessions from this peer to itself: through a queue, so that a handler which sends
/// to itself is not called within its own call.
async fn loop_back(shared: Arc<Shared>, mut queue: mpsc::Receiver<SessionFrame>) {
    loop {
        tokio::select! {
            frame = queue.recv() => match frame {
                Some(frame) => shared.handler.on_session_frame(shared.incarnation, frame),
                None => return,
            },
            () = shared.closing.cancelled() => return,
        }
    }
}

async fn sweep(shared: Arc<Shared>) {
    let mut ticks = interval(shared.tuning.forget_after / 4);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => shared.book.sweep(&shared),
            () = shared.closing.cancelled() => return,
        }
    }
}

/// Reads the identity's files again when they change, and uses what it finds for the links to
/// come. Those that exist are renewed by their age.
async fn follow_identity(
    shared: Arc<Shared>,
    transport: Arc<quinn::TransportConfig>,
    mut changes: watch::Receiver<u64>,
) {
    let mut seen = None;
    let mut expiry = Expiry::default();
    let mut ticks = interval(IDENTITY_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                expiry.look("the peer's identity", shared.identity.expires(), SystemTime::now());
                let modified = shared.identity.modified();
                if modified != seen {
                    match shared.identity.reload() {
                        Ok(_) => seen = modified,
                        // Perhaps its files are only half replaced: it is tried again.
                        Err(error) => warn!(%error, "the identity's files changed, but are of no use"),
                    }
                }
            }
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                match quic_configs(&shared.identity, &transport) {
                    Ok((client, server)) => {
                        shared.client.store(Arc::new(client));
                        shared.endpoint.set_server_config(Some(server));
                        info!("the identity was reloaded");
                    }
                    Err(error) => warn!(%error, "the reloaded identity is of no use"),
                }
            }
            () = shared.closing.cancelled() => return,
        }
    }
}

fn quic_configs(
    identity: &Identity,
    transport: &Arc<quinn::TransportConfig>,
) -> Result<(quinn::ClientConfig, quinn::ServerConfig), StartMeshError> {
    let (client, server) = identity.quic()?;
    let mut client = quinn::ClientConfig::new(Arc::new(client));
    client.transport_config(transport.clone());
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
    server.transport_config(transport.clone()).migration(false).max_incoming(HANDSHAKES_MAX * 2);
    Ok((client, server))
}

fn transport(tuning: &NetTuning) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    let idle = quinn::IdleTimeout::try_from(tuning.idle_timeout.min(Duration::from_secs(600)))
        .expect("ten minutes are within what QUIC allows");
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(tuning.mtu.clamp(MTU_MIN, MTU_MAX));
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(tuning.idle_timeout / 4))
        .max_concurrent_bidi_streams(link::HOPS_AT_FIRST.into())
        .max_concurrent_uni_streams(UNI_STREAMS_MAX.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        // None for all streams together, in either direction: a few that nobody reads would use it
        // up, and then no other hop, no news and no session's frame could pass. What is held is
        // bounded all the same, by the number of streams times the window of each.
        .receive_window(quinn::VarInt::MAX)
        .send_window(u64::MAX)
        .initial_rtt(Duration::from_millis(50))
        .mtu_discovery_config(Some(discovery))
        .datagram_receive_buffer_size(Some(1 << 20));
    transport
}

fn bind(addr: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    // The system may grant less; then bursts lose more packets, and nothing else changes.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Drop {
    what: &'static str,
    reason: &'static str,
}

/// What the network layer counts.
#[derive(Debug, Default)]
pub(crate) struct NetCounters {
    links: Gauge,
    links_opened: Counter,
    links_closed: Family<Reason, Counter>,
    links_refused: Family<Reason, Counter>,
    handshakes_retried: Counter,
    dials_failed: Counter,
    frames_refused: Family<Reason, Counter>,
    session_frames_sent: Counter,
    session_frames_received: Counter,
    dropped: Family<Drop, Counter>,
    gossip_received: Counter,
    gossip_restarts: Counter<u64, AtomicU64>,
}

impl NetCounters {
    /// Counters that `registry` exposes.
    pub(crate) fn new(registry: &mut Registry) -> Arc<Self> {
        let counters = Self::default();
        registry.register("links", "Links to other peers", counters.links.clone());
        registry.register(
            "links_opened",
            "Links that became current",
            counters.links_opened.clone(),
        );
        registry.register(
            "links_closed",
            "Current links that ended, by reason",
            counters.links_closed.clone(),
        );
        registry.register(
            "links_refused",
            "Connections that did not become a link, by reason",
            counters.links_refused.clone(),
        );
        registry.register(
            "handshakes_retried",
            "Connections that were asked to show first that they hear what is sent to them",
            counters.handshakes_retried.clone(),
        );
        registry.register(
            "dials_failed",
            "Dials that did not lead to a link",
            counters.dials_failed.clone(),
        );
        registry.register(
            "frames_refused",
            "Frames from peers that were malformed or out of place, by kind",
            counters.frames_refused.clone(),
        );
        registry.register(
            "session_frames_sent",
            "Frames of sessions that were queued for a peer",
            counters.session_frames_sent.clone(),
        );
        registry.register(
            "session_frames_received",
            "Frames of sessions that arrived",
            counters.session_frames_received.clone(),
        );
        registry.register(
            "dropped",
            "What was not sent, by kind and reason",
            counters.dropped.clone(),
        );
        registry.register(
            "gossip_received",
            "Gossip messages that arrived",
            counters.gossip_received.clone(),
        );
        registry.register(
            "gossip_restarts",
            "Times that the gossip loop ended and was started anew",
            counters.gossip_restarts.clone(),
        );
        Arc::new(counters)
    }

    pub(crate) fn link_opened(&self) {
        self.links_opened.inc();
    }

    pub(crate) fn links_now(&self, links: usize) {
        self.links.set(i64::try_from(links).unwrap_or(i64::MAX));
    }

    pub(crate) fn link_closed(&self, reason: &'static str) {
        self.links_closed.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn links_refused(&self, reason: &'static str) {
        self.links_refused.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn handshake_retried(&self) {
        self.handshakes_retried.inc();
    }

    pub(crate) fn dial_failed(&self) {
        self.dials_failed.inc();
    }

    pub(crate) fn frame_refused(&self, reason: &'static str) {
        self.frames_refused.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn session_frame_sent(&self) {
        self.session_frames_sent.inc();
    }

    pub(crate) fn session_frame_received(&self) {
        self.session_frames_received.inc();
    }

    pub(crate) fn drop_counted(&self, what: &'static str, reason: &'static str) {
        self.dropped.get_or_create(&Drop { what, reason }).inc();
    }

    pub(crate) fn gossip_received(&self) {
        self.gossip_received.inc();
    }

    pub(crate) fn gossip_restarted(&self) {
        self.gossip_restarts.inc();
    }
}

#[cfg(test)]
mod tests;
