//! Which ports the peers of a mesh use.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, bail};

/// The most peers that one mesh of the testbed has: a hundred ports lie between the ranges.
pub const PEERS_MAX: u16 = 100;

/// The addresses of one peer, all on loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerPorts {
    /// The front door.
    pub http: SocketAddr,
    /// Gossip, hops and sessions (UDP).
    pub mesh: SocketAddr,
    /// The admin listener.
    pub admin: SocketAddr,
    /// The Redis-speaking endpoint.
    pub redis: SocketAddr,
}

impl PeerPorts {
    fn new(http: u16, mesh: u16, admin: u16, redis: u16) -> Self {
        let [http, mesh, admin, redis] =
            [http, mesh, admin, redis].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        Self { http, mesh, admin, redis }
    }

    /// Says which port is taken, if one is.
    ///
    /// # Errors
    /// If one is.
    pub fn check_free(&self, name: &str) -> Result<()> {
        let tcp = [
            (self.http, "front door"),
            (self.admin, "admin listener"),
            (self.redis, "Redis endpoint"),
        ];
        for (addr, what) in tcp {
            TcpListener::bind(addr)
                .with_context(|| format!("{name}'s {what} cannot use {addr}"))?;
        }
        UdpSocket::bind(self.mesh)
            .with_context(|| format!("{name}'s mesh port cannot use {}", self.mesh))?;
        Ok(())
    }
}

/// The well-known ports of `testbed/up`, or those above a base: P+1…, P+201…, P+301…, P+401….
///
/// # Errors
/// If there are none for so many peers or above that base.
pub fn plan(peers: usize, base: Option<u16>) -> Result<Vec<PeerPorts>> {
    if peers == 0 || peers > PEERS_MAX.into() {
        bail!("a mesh of the testbed has between 1 and {PEERS_MAX} peers, not {peers}");
    }
    let starts = match base {
        None => [8081, 7001, 9001, 6401],
        Some(base) if (1024..=u16::MAX - 500).contains(&base) => {
            [base + 1, base + 201, base + 301, base + 401]
        }
        Some(base) => bail!("--base-port is between 1024 and {}, not {base}", u16::MAX - 500),
    };
    let peers = u16::try_from(peers)?;
    let [http, mesh, admin, redis] = starts;
    Ok((0..peers).map(|n| PeerPorts::new(http + n, mesh + n, admin + n, redis + n)).collect())
}

/// A range of free ports that nobody else who reserves in this way is given meanwhile: its
/// first port is held for as long as this value lives.
///
/// The ranges lie below the ports that kernels hand out to outgoing connections (32768 and
/// up), so that a connection cannot take a port between a peer's death and its restart.
#[derive(Debug)]
pub struct Reservation {
    _held: TcpListener,
    first: u16,
}

const RANGE: u16 = 64;
const RANGES_FROM: u16 = 12_032;
const RANGES: u16 = 320;

impl Reservation {
    /// Reserves ports for up to fifteen peers.
    ///
    /// # Errors
    /// If every range is taken.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        // Where to begin looking differs by process; correctness rests on the held port.
        let begin = (std::process::id().wrapping_mul(37) % u32::from(RANGES)) as u16;
        for _ in 0..RANGES {
            let turn = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(begin) % RANGES;
            let first = RANGES_FROM + turn * RANGE;
            let Ok(held) = TcpListener::bind(("127.0.0.1", first)) else { continue };
            let reserved = Self { _held: held, first };
            if (0..15).all(|n| reserved.peer(n).check_free("").is_ok()) {
                return Ok(reserved);
            }
        }
        bail!("every range of ports between {RANGES_FROM} and 32512 is in use")
    }

    /// The ports of the peer at `index`, which is at most 14.
    #[must_use]
    pub fn peer(&self, index: u16) -> PeerPorts {
        debug_assert!(index < 15);
        let first = self.first + 1 + index * 4;
        PeerPorts::new(first, first + 1, first + 2, first + 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_are_those_that_scripts_rely_on() {
        let peers = plan(3, None).unwrap();
        assert_eq!(peers[0], PeerPorts::new(8081, 7001, 9001, 6401));
        assert_eq!(peers[2], PeerPorts::new(8083, 7003, 9003, 6403));
        assert_eq!(
            plan(2, Some(20_000)).unwrap()[1],
            PeerPorts::new(20_002, 20_202, 20_302, 20_402)
        );
        assert!(plan(0, None).is_err());
        assert!(plan(101, None).is_err());
        assert!(plan(1, Some(80)).is_err());
        assert!(plan(1, Some(65_500)).is_err());
    }

    #[test]
    fn two_reservations_never_share_a_port() {
        let (one, two) = (Reservation::new().unwrap(), Reservation::new().unwrap());
        assert_ne!(one.first, two.first);
        assert!(one.peer(14).redis.port() < one.first + RANGE);
    }

    #[test]
    fn a_taken_port_is_named() {
        let reserved = Reservation::new().unwrap();
        let taken = TcpListener::bind(reserved.peer(0).admin).unwrap();
        let error = format!("{:#}", reserved.peer(0).check_free("peer-1").unwrap_err());
        let addr = taken.local_addr().unwrap().to_string();
        assert!(error.contains("peer-1's admin listener") && error.contains(&addr), "{error}");
    }
}
