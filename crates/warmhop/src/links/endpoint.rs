//! The UDP socket and the configuration of QUIC on it: windows, packet sizes, certificates. The
//! certificates are read again when they change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::error::StartMeshError;
use crate::identity::Identity;
use crate::identity::expiry::Expiry;
use crate::links::context::Shared;
use crate::links::link::HOPS_AT_FIRST;
use crate::links::tuning::NetTuning;

/// Handshakes under way at once; more are refused, so that strangers cannot fill the memory.
pub(super) const HANDSHAKES_MAX: usize = 256;

/// How often the identity's files are checked.
const IDENTITY_EVERY: Duration = Duration::from_secs(5);

/// Asks for a larger socket buffer than the system's usual one; without it bursts are lost.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Above it ten segments of one GSO batch exceed 64 KiB, and such batches fail silently.
const MTU_MAX: u16 = 6500;

const MTU_MIN: u16 = 1200;

/// The bytes of a stream that may have arrived unread: the most memory that a hop takes at either
/// end, in each direction, if its reader does not read. It is also the most that a stream moves in
/// one round trip: 128 MB/s at 2 ms. A larger window moves one bulk stream faster over loopback, as
/// `testbed/bench-streams` shows, and each client that reads nothing costs as much more.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// Streams of one direction that a peer may have open on a link: control, sessions and gossip.
const UNI_STREAMS_MAX: u32 = 64;

/// The packet size that others may send here, however small this peer's own packets are configured.
const ETHERNET_PAYLOAD_BYTES: u16 = 1472;

/// What to do about an identity that is about to expire.
const RENEW: [&str; 2] = [
    "other peers end their links with this one and accept no new ones",
    "renew it: a running peer loads the new one by itself",
];

/// Reads the identity's files again when they change, and uses the new credentials for later links.
/// Existing links are renewed by their age, and before a certificate that they were made with ends.
pub(super) async fn follow_identity(
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
                let ends = shared.identity.expires();
                expiry.look("the peer's identity", RENEW, ends, SystemTime::now());
                let modified = shared.identity.modified();
                if modified != seen {
                    match shared.identity.reload() {
                        Ok(_) => seen = modified,
                        // Perhaps its files are only half replaced: try again.
                        Err(error) => warn!(%error, "the identity's new files cannot be used; the peer keeps the identity that it has"),
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
                    Err(error) => warn!(%error, "the reloaded identity cannot be used; links go on with the former one"),
                }
            }
            () = shared.closing.cancelled() => return,
        }
    }
}

pub(super) fn quic_configs(
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

pub(super) fn transport(tuning: &NetTuning) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    let idle = quinn::IdleTimeout::try_from(tuning.idle_timeout.min(Duration::from_secs(600)))
        .expect("ten minutes are within what QUIC allows");
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(tuning.mtu.clamp(MTU_MIN, MTU_MAX));
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(tuning.idle_timeout / 4))
        .max_concurrent_bidi_streams(HOPS_AT_FIRST.into())
        .max_concurrent_uni_streams(UNI_STREAMS_MAX.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        // There is no window for all streams together, in either direction: a few unread streams
        // would use it up, and then no other hop, no news and no session frame could pass. The
        // memory is bounded all the same, by the number of streams times the window of each.
        .receive_window(quinn::VarInt::MAX)
        .send_window(u64::MAX)
        .initial_rtt(Duration::from_millis(50))
        .mtu_discovery_config(Some(discovery))
        .datagram_receive_buffer_size(Some(1 << 20));
    transport
}

/// An endpoint on a socket of [`bind`].
pub(super) fn endpoint(
    socket: std::net::UdpSocket,
    server: quinn::ServerConfig,
    mtu: u16,
) -> std::io::Result<quinn::Endpoint> {
    // It keeps some two thousand buffers of this size: no larger than needed.
    let mut config = quinn::EndpointConfig::default();
    config
        .max_udp_payload_size(mtu.clamp(ETHERNET_PAYLOAD_BYTES, MTU_MAX))
        .expect("the bounds are within what QUIC allows");
    quinn::Endpoint::new(config, Some(server), socket, Arc::new(quinn::TokioRuntime))
}

pub(super) fn bind(addr: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    // The system may grant less; then bursts lose more packets, and nothing else changes.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}
