//! Everything between the UDP socket and the rest of the crate: the facade over links, gossip and
//! news. It knows nothing of routing or sessions; a [`NetHandler`] gets what it receives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use quinn::{RecvStream, SendStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use warmhop_core::ids::{AppName, Incarnation, PeerId};
use warmhop_core::view::{News, PeerNews};

use crate::error::StartMeshError;
use crate::http::aside::in_time;
use crate::identity::{Identity, RefusedPeers};
use crate::links::book::{Book, Known, NoLink};
use crate::links::context::{NetParts, Shared};
use crate::links::counters::NetCounters;
use crate::links::endpoint::{bind, endpoint, follow_identity, quic_configs, transport};
use crate::links::gossip::handle::{Gossip, GossipIn};
use crate::links::handler::NetHandler;
use crate::links::lane::Dropped;
use crate::links::link::{HopLease, Link};
use crate::links::news::{CopyNews, OwnNews, Standing};
use crate::links::seeds::Seeds;
use crate::links::session_bytes;
use crate::links::table::Links;
use crate::links::tuning::NetTuning;
use crate::links::wire::{self, SessionFrame};
use crate::links::{accept, dial, gossip_loop, together};
use crate::observe::clock::{self, Clock};
use crate::observe::status::SeedStatus;

/// The most session frames from this peer to itself that wait.
const LOOPBACK_FRAMES_MAX: usize = 1024;

/// How long the last accepted hops may take to be answered when the peer leaves.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// How long closing waits for the other ends to acknowledge it.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// The configuration of the network layer.
pub(crate) struct NetConfig {
    /// Only peers of the same cluster get a link.
    pub(crate) cluster: String,
    /// This peer's name, which its identity must have as well.
    pub(crate) me: PeerId,
    /// This life of its process.
    pub(crate) incarnation: Incarnation,
    /// This peer's zone.
    pub(crate) zone: Option<String>,
    /// Where its front door can be reached.
    pub(crate) http: Option<String>,
    /// The UDP address to bind.
    pub(crate) listen: SocketAddr,
    /// The address at which others reach it; by default the bound one.
    pub(crate) advertise: Option<SocketAddr>,
    /// `HOST:PORT` of peers to join. This peer's own address among them does no harm.
    pub(crate) seeds: Vec<String>,
    /// Members that this peer refuses.
    pub(crate) refused: RefusedPeers,
    /// Its credentials.
    pub(crate) identity: Identity,
    /// Its counters.
    pub(crate) counters: Arc<NetCounters>,
    /// Compares the peers' clocks.
    pub(crate) clock: Clock,
    /// Times and bounds.
    pub(crate) tuning: NetTuning,
}

/// The network layer of one peer. Clones share it; when the last one is dropped, it
/// ends as by [`Net::close`], without anyone waiting for it.
#[derive(Clone)]
pub(crate) struct Net {
    parts: Arc<NetParts>,
    _ends_with_the_last: Arc<DropGuard>,
}

/// The streams of a hop that was opened.
pub(crate) struct OpenHop {
    /// Begins with [`wire::KIND_HOP`], which its user writes together with the head.
    pub(crate) send: SendStream,
    /// The other end's direction.
    pub(crate) recv: RecvStream,
    /// The incarnation at the other end.
    pub(crate) incarnation: Incarnation,
    /// Held for as long as the streams are used: a link that is replaced waits for it.
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
    /// It did not answer in time: it hangs, or the network does not reach it.
    #[error("the peer {0} does not answer")]
    Silent(PeerId),
    /// It has as many hops under way as it may have, or it did not let another begin in time.
    #[error("the link to the peer {0} carries as many hops as it may")]
    Busy(PeerId),
}

/// A network layer whose socket is bound. Code that uses it can be built already; nothing is sent
/// or received until it is opened.
pub(crate) struct Bound {
    net: Net,
    local: SocketAddr,
    transport: Arc<quinn::TransportConfig>,
    changes: watch::Receiver<u64>,
    looped_back: mpsc::Receiver<SessionFrame>,
    gossip_in: GossipIn,
    to_keep: mpsc::Receiver<Arc<Known>>,
    probes_wanted: mpsc::Receiver<SocketAddr>,
}

impl Bound {
    /// The network layer, which works once it is opened.
    pub(crate) fn net(&self) -> Net {
        self.net.clone()
    }

    /// Starts links and gossip. It does not wait for seeds to be up; it gives seeds that are up a
    /// quarter of a second to report that the name is taken.
    ///
    /// # Errors
    /// [`StartMeshError::NameInUse`]; nothing is left running.
    pub(crate) async fn open(self, handler: Arc<dyn NetHandler>) -> Result<Net, StartMeshError> {
        let Self { net, local, .. } = self;
        let shared = Shared::new(Arc::clone(&net.parts), handler);
        let tasks = &shared.tasks;
        tasks.spawn(accept::accept(shared.clone()));
        tasks.spawn(loop_back(shared.clone(), self.looped_back));
        tasks.spawn(gossip_loop::supervise(shared.clone(), self.gossip_in));
        tasks.spawn(dial::keep_links(shared.clone(), self.to_keep));
        tasks.spawn(dial::probe_namesakes(shared.clone(), self.probes_wanted));
        tasks.spawn(follow_identity(shared.clone(), self.transport, self.changes));
        tasks.spawn(sweep(shared.clone()));
        let mut tried = Vec::new();
        for seed in shared.seeds.to_follow() {
            let (sender, receiver) = watch::channel(false);
            tried.push(receiver);
            tasks.spawn(dial::follow_seed(shared.clone(), seed, sender));
        }
        tasks.spawn(dial::follow_new_seeds(shared.clone()));
        tokio::spawn(end_with(shared));

        if let Some(addr) = net.early_clash(tried).await {
            let name = net.parts.me.to_string();
            net.close().await;
            return Err(StartMeshError::NameInUse { name, addr });
        }
        info!(peer = %net.parts.me, listen = %local, advertise = %net.parts.advertise, "the mesh port is open");
        Ok(net)
    }
}

impl Net {
    /// Binds the socket; no one gets an answer before [`Bound::open`].
    ///
    /// # Errors
    /// [`StartMeshError`]; nothing is left bound.
    pub(crate) fn bind(config: NetConfig) -> Result<Bound, StartMeshError> {
        let (cluster, me, listen) = (config.cluster, config.me, config.listen);
        let bind_failed = |source| StartMeshError::Bind { addr: listen, source };
        let socket = bind(listen).map_err(bind_failed)?;
        let local = socket.local_addr().map_err(bind_failed)?;
        let advertise = config.advertise.unwrap_or(local);
        if advertise.ip().is_unspecified() || advertise.port() == 0 {
            return Err(StartMeshError::NeedsAdvertise { addr: advertise });
        }

        let tuning = config.tuning;
        let transport = Arc::new(transport(&tuning));
        // Subscribes before the identity is read, so that no change between the two is missed.
        let changes = config.identity.changes();
        let (client, server) = quic_configs(&config.identity, &transport)?;
        let endpoint = endpoint(socket, server, tuning.mtu).map_err(bind_failed)?;

        let own = PeerNews {
            peer: me.clone(),
            incarnation: config.incarnation,
            generation: clock::unix_ms(),
            seq: 1,
            mesh: advertise,
            http: config.http.filter(|text| text.len() <= wire::HTTP_BYTES_MAX),
            zone: config.zone.filter(|text| text.len() <= wire::ZONE_BYTES_MAX),
            draining: false,
            knows_more: config.seeds.len() > 1,
            young: true,
            full: false,
            sole: false,
        };
        let (loopback, looped_back) = mpsc::channel(LOOPBACK_FRAMES_MAX);
        let (gossip, gossip_in) = Gossip::new();
        let (book, to_keep) = Book::new();
        let (to_probe, probes_wanted) = mpsc::channel(1);
        let parts = Arc::new(NetParts {
            cluster,
            me,
            incarnation: own.incarnation,
            advertise,
            tuning,
            endpoint,
            own: OwnNews::new(own),
            links: Links::new(),
            book,
            seeds: Seeds::new(&config.seeds),
            counters: config.counters,
            leaving: CancellationToken::new(),
            clock: config.clock,
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
            taken_in: TaskTracker::new(),
            acceptors: TaskTracker::new(),
            draining: AtomicBool::new(false),
            owes: AtomicBool::new(false),
            refused: watch::Sender::new(config.refused),
            identity: config.identity,
            client: ArcSwap::from_pointee(client),
            gossip,
            loopback,
            clash: watch::Sender::new(None),
            probes: watch::Sender::new(0),
            to_probe,
        });
        let ends_with_the_last = Arc::new(parts.closing.clone().drop_guard());
        Ok(Bound {
            net: Self { parts, _ends_with_the_last: ends_with_the_last },
            local,
            transport,
            changes,
            looped_back,
            gossip_in,
            to_keep,
            probes_wanted,
        })
    }

    #[cfg(test)]
    /// Binds and opens at once.
    pub(crate) async fn start(
        config: NetConfig,
        handler: Arc<dyn NetHandler>,
    ) -> Result<Self, StartMeshError> {
        Self::bind(config)?.open(handler).await
    }

    /// Whether a seed that is up knows another peer of this name.
    async fn early_clash(&self, tried: Vec<watch::Receiver<bool>>) -> Option<SocketAddr> {
        let within = self.parts.tuning.seeds_within;
        let all_tried = async {
            for mut tried in tried {
                // A seed's task that has ended has nothing to add.
                let _ = tried.wait_for(|tried| *tried).await;
            }
        };
        let _ = timeout(within, all_tried).await;
        let mut probes = self.parts.probes.subscribe();
        let _ = timeout(within * 3, probes.wait_for(|probes| *probes == 0)).await;
        *self.parts.clash.borrow()
    }

    #[cfg(test)]
    /// This life of the process.
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.parts.incarnation
    }

    #[cfg(test)]
    /// The bound address.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.parts.endpoint.local_addr().unwrap_or(self.parts.advertise)
    }

    /// The address that others reach this peer at.
    pub(crate) fn advertised_addr(&self) -> SocketAddr {
        self.parts.advertise
    }

    /// Announces an app's state here to every peer: at once over links, and by gossip. A change of
    /// load alone is sent within a tenth of a second.
    pub(crate) fn publish_app(&self, app: &AppName, copy: CopyNews) {
        if !self.parts.own.publish_app(app, copy) {
            self.parts.counters.drop_counted("news", "too-many-apps");
        }
    }

    /// This peer's own news of an app, if there is any.
    pub(crate) fn own_news_of(&self, app: &AppName) -> Option<News> {
        self.parts.own.of_app(app)
    }

    /// Announces to every peer that this one no longer has the app.
    pub(crate) fn retract_app(&self, app: &AppName) {
        self.parts.own.retract_app(app);
    }

    /// Announces to every peer whether this one is about to leave.
    pub(crate) fn publish_draining(&self, draining: bool) {
        self.parts.draining.store(draining, Ordering::Release);
        self.parts.own.publish_draining(draining);
    }

    /// Refuses these members from now on, and no others. Links to refused members end.
    pub(crate) fn refuse(&self, refused: RefusedPeers) {
        self.parts.refused.send_if_modified(|before| {
            let changes = *before != refused;
            *before = refused;
            changes
        });
    }

    /// Announces to every peer what its census needs to know of this one.
    pub(crate) fn publish_standing(&self, standing: Standing) {
        self.parts.own.publish_standing(standing);
    }

    /// Opens the streams of a hop over the current link to a peer. Without a link, it dials the
    /// peer once, at once.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was sent.
    pub(crate) async fn open_hop(&self, to: &PeerId) -> Result<OpenHop, OpenError> {
        let opening = async {
            let link: Arc<Link> = self.parts.book.link_to(&self.parts.links, to).await.map_err(
                |error| match error {
                    NoLink::Unknown => OpenError::Unknown(to.clone()),
                    NoLink::Unreachable => OpenError::Unreachable(to.clone()),
                },
            )?;
            let lease = HopLease::of_own(&link, self.parts.tuning.hops_max)
                .ok_or_else(|| OpenError::Busy(to.clone()))?;
            let (send, recv) =
                lease.open().await.map_err(|_| OpenError::Unreachable(to.clone()))?;
            Ok(OpenHop { send, recv, incarnation: link.peer.incarnation, lease })
        };
        let opened = in_time(self.parts.tuning.open_within, opening).await;
        opened.unwrap_or_else(|| {
            // With a link, it is the other end that lets no further hop begin.
            let is_linked = self.parts.links.to(to).is_some();
            let error = if is_linked { OpenError::Busy } else { OpenError::Silent };
            Err(error(to.clone()))
        })
    }

    /// Sends a session frame to a peer, which may be this one. Best effort: frames are queued in
    /// order, except that frames which confirm reads follow all others at hand. A frame is dropped
    /// and counted if there is no link or its queue is full.
    pub(crate) fn send_session(&self, to: Incarnation, frame: SessionFrame) {
        let is_own = to == self.parts.incarnation;
        if !is_own && !frame.message.may_be_gathered() && self.hold(&frame, [to]) {
            return;
        }
        let result = if is_own {
            self.parts.loopback.try_send(frame).map(|()| true).map_err(|_| Dropped::Full)
        } else {
            self.parts.links.table().send_session(to, frame)
        };
        match result {
            Ok(false) => {}
            Ok(true) => self.parts.counters.session_frame_sent(),
            Err(dropped) => self.parts.counters.drop_counted("session", dropped.label()),
        }
    }

    /// Holds a frame until the end of the round; false outside of one.
    fn hold(&self, frame: &SessionFrame, to: impl IntoIterator<Item = Incarnation>) -> bool {
        let NetParts { links, counters, .. } = &*self.parts;
        together::hold(frame, to, || links.table(), counters)
    }

    /// As [`Net::send_session`], to its addressee and to `others`. It is encoded once.
    pub(crate) fn send_session_to_all(&self, others: &[Incarnation], frame: SessionFrame) {
        let to_me = |to: &Incarnation| *to == self.parts.incarnation;
        let to_all = || [frame.to].into_iter().chain(others.iter().copied());
        let is_alone = others.is_empty() || frame.message.may_be_gathered();
        if is_alone || to_all().any(|to| to_me(&to)) {
            for to in others.iter().copied() {
                self.send_session(to, SessionFrame { to, ..frame.clone() });
            }
            return self.send_session(frame.to, frame);
        }
        if self.hold(&frame, to_all()) {
            return;
        }
        let mut first = BytesMut::new();
        let encoded = session_bytes::put_frame(&mut first, &frame);
        let table = self.parts.links.table();
        for to in to_all() {
            let sent = encoded.as_ref().map_err(|_| Dropped::TooLarge).and_then(|()| {
                let mut bytes = first.clone();
                session_bytes::readdress(&mut bytes, &frame.key, to);
                table.send_encoded(to, bytes.freeze())
            });
            match sent {
                Ok(()) => self.parts.counters.session_frame_sent(),
                Err(dropped) => self.parts.counters.drop_counted("session", dropped.label()),
            }
        }
    }

    /// Follows these seeds from now on, and no others.
    pub(crate) fn change_seeds(&self, names: &[String]) {
        self.parts.seeds.change(names);
    }

    /// How many seeds were never met, and are not the address of a peer that `is_known`.
    pub(crate) fn unmet_seeds(&self, is_known: impl Fn(SocketAddr) -> bool) -> usize {
        self.parts.seeds.unmet(is_known)
    }

    /// The state of each seed, in the order of the configuration.
    pub(crate) fn seeds(&self) -> Vec<SeedStatus> {
        self.parts.seeds.status()
    }

    /// When this peer's certificate ends.
    pub(crate) fn identity_expires(&self) -> SystemTime {
        self.parts.identity.expires()
    }

    /// The round-trip time of the link to a peer.
    pub(crate) fn rtt(&self, peer: &PeerId) -> Option<Duration> {
        self.parts.links.to(peer).map(|link| link.conn.rtt())
    }

    /// Why no link could be made to a peer that has been without one for a while.
    pub(crate) fn why_unlinked(&self, peer: &PeerId) -> Option<String> {
        let after = self.parts.tuning.unlinked_after;
        self.parts.book.why_unlinked(&self.parts.links, peer, after)
    }

    /// Why there is no link to a peer, if one could not be made.
    pub(crate) fn why_no_link(&self, peer: &PeerId) -> Option<String> {
        self.parts.book.why_unlinked(&self.parts.links, peer, Duration::ZERO)
    }

    #[cfg(test)]
    /// The peers that there is a link to, in order of their names.
    pub(crate) fn connected(&self) -> Vec<PeerId> {
        let mut peers: Vec<PeerId> = self.parts.links.table().by_peer.keys().cloned().collect();
        peers.sort_unstable();
        peers
    }

    #[cfg(test)]
    /// Its counters.
    pub(crate) fn counters(&self) -> &NetCounters {
        &self.parts.counters
    }

    /// Resolves when a live peer turns out to have this one's name and to have had it first, with
    /// its address.
    pub(crate) fn name_clash(&self) -> impl Future<Output = SocketAddr> + Send + 'static {
        let mut clash = self.parts.clash.subscribe();
        async move {
            let found = clash.wait_for(Option::is_some).await.map(|addr| *addr);
            match found {
                Ok(Some(addr)) => addr,
                // The network layer has ended without a clash.
                _ => std::future::pending().await,
            }
        }
    }

    /// Notes whether others have yet to copy what this peer holds. If it ends before they have, its
    /// goodbye says so, and what it held counts as lost.
    pub(crate) fn owe(&self, owes: bool) {
        self.parts.owes.store(owes, Ordering::Release);
    }

    /// Answers the hops that were accepted, says goodbye to every peer, which they see at once, and
    /// shuts down. Idempotent.
    pub(crate) async fn close(&self) {
        let parts = &self.parts;
        parts.draining.store(true, Ordering::Release);
        parts.leaving.cancel();
        parts.taken_in.close();
        parts.acceptors.close();
        if timeout(ANSWERED_WITHIN, parts.acceptors.wait()).await.is_err() {
            warn!(
                "some hops were not answered in time: the requests that wait for them are cut off"
            );
        }
        self.vanish().await;
    }

    /// Says goodbye to every peer and shuts down at once, whatever is under way. Idempotent.
    pub(crate) async fn vanish(&self) {
        let parts = &self.parts;
        parts.closing.cancel();
        parts.endpoint.close(parts.goodbye(), b"");
        let ended = async {
            parts.endpoint.wait_idle().await;
            parts.tasks.close();
            parts.tasks.wait().await;
        };
        if timeout(CLOSE_WITHIN, ended).await.is_err() {
            debug!("some tasks of the mesh port outlive it");
        }
    }
}

/// Closes the endpoint when the last handle is gone or the network layer is closed.
async fn end_with(shared: Arc<Shared>) {
    shared.closing.cancelled().await;
    shared.endpoint.close(shared.goodbye(), b"");
}

/// Delivers session frames from this peer to itself: through a queue, so that a handler which sends
/// to itself is not called within a call of its own.
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
            _ = ticks.tick() => shared.book.sweep(&shared.links, shared.tuning.forget_after),
            () = shared.closing.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests;
