//! A relay for the datagrams between peers, so that links can be cut, made lossy and slowed down
//! without any privilege.
//!
//! Each peer listens where it always does, but advertises a port of the relay. The relay
//! identifies the sender of a datagram by its source, the sender's own mesh port, and forwards it from a
//! socket of that pair; answers take the same way back. So each direction of each pair of peers has a
//! rule of its own, whichever peer opened the connection.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::RngExt;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Larger than any datagram that peers send.
const DATAGRAM_MAX: usize = 65_536;
/// Pairs of sockets for one peer.
const FLOWS_MAX: usize = 256;
/// Datagrams that are held back at once; further ones are lost, as in a router.
const DELAYED_MAX: usize = 4096;

/// What happens to datagrams of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rule {
    /// The share that is lost, from 0 to 1.
    pub loss: f64,
    /// How long each is held back.
    pub delay: Duration,
}

impl Rule {
    /// Nothing passes.
    pub const CUT: Self = Self { loss: 1.0, delay: Duration::ZERO };
}

type Rules = Arc<Mutex<HashMap<(usize, usize), Rule>>>;

/// The relay of one mesh; it ends when it is dropped.
#[derive(Debug)]
pub struct Relay {
    rules: Rules,
    addresses: Vec<SocketAddr>,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// Opens a port for each of the peers, which listen at `peers`.
    ///
    /// # Errors
    /// If no port can be opened.
    pub async fn open(peers: &[SocketAddr]) -> Result<Self> {
        let rules = Rules::default();
        let mut tasks = JoinSet::new();
        let mut addresses = Vec::new();
        for index in 0..peers.len() {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await;
            let socket = Arc::new(socket.context("cannot open a port for the relay")?);
            addresses.push(socket.local_addr()?);
            let port = Port {
                index,
                peers: peers.to_vec(),
                socket,
                rules: Arc::clone(&rules),
                delayed: Arc::new(Semaphore::new(DELAYED_MAX)),
            };
            tasks.spawn(port.serve());
        }
        Ok(Self { rules, addresses, _tasks: tasks })
    }

    /// What each peer is to advertise.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Sets the rule for what `from` sends to `to`.
    pub fn set(&self, from: usize, to: usize, rule: Rule) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).insert((from, to), rule);
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// The relay's port for one peer.
#[derive(Clone)]
struct Port {
    index: usize,
    peers: Vec<SocketAddr>,
    socket: Arc<UdpSocket>,
    rules: Rules,
    delayed: Arc<Semaphore>,
}

impl Port {
    async fn serve(self) {
        let mut flows: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut returning = JoinSet::new();
        let mut datagram = vec![0; DATAGRAM_MAX];
        loop {
            // An error here is the echo of a datagram to a peer that does not run.
            let Ok((len, source)) = self.socket.recv_from(&mut datagram).await else { continue };
            if !flows.contains_key(&source) && flows.len() < FLOWS_MAX {
                let Ok(flow) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { continue };
                let flow = Arc::new(flow);
                returning.spawn(self.clone().return_to(source, Arc::clone(&flow)));
                flows.insert(source, flow);
            }
            let Some(flow) = flows.get(&source) else { continue };
            let rule = self.rule(self.peer_at(source), Some(self.index));
            self.pass(rule, flow, self.peers[self.index], &datagram[..len]).await;
        }
    }

    async fn return_to(self, source: SocketAddr, flow: Arc<UdpSocket>) {
        let mut datagram = vec![0; DATAGRAM_MAX];
        loop {
            let Ok((len, _)) = flow.recv_from(&mut datagram).await else { continue };
            let rule = self.rule(Some(self.index), self.peer_at(source));
            self.pass(rule, &self.socket, source, &datagram[..len]).await;
        }
    }

    fn peer_at(&self, address: SocketAddr) -> Option<usize> {
        self.peers.iter().position(|peer| *peer == address)
    }

    fn rule(&self, from: Option<usize>, to: Option<usize>) -> Rule {
        let (Some(from), Some(to)) = (from, to) else { return Rule::default() };
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.get(&(from, to)).copied().unwrap_or_default()
    }

    async fn pass(&self, rule: Rule, by: &Arc<UdpSocket>, to: SocketAddr, datagram: &[u8]) {
        if rule.loss > 0.0 && rand::rng().random::<f64>() < rule.loss {
            return;
        }
        if rule.delay.is_zero() {
            // What cannot be sent now is lost, as it may be in any network.
            let _ = by.send_to(datagram, to).await;
            return;
        }
        let Ok(permit) = Arc::clone(&self.delayed).try_acquire_owned() else { return };
        let (by, datagram) = (Arc::clone(by), datagram.to_vec());
        tokio::spawn(async move {
            sleep(rule.delay).await;
            let _ = by.send_to(&datagram, to).await;
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_direction_has_its_own_rule() {
        let one = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let two = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let peers = [one.local_addr().unwrap(), two.local_addr().unwrap()];
        let relay = Relay::open(&peers).await.unwrap();
        let mut buffer = [0; 16];

        one.send_to(b"ask", relay.addresses()[1]).await.unwrap();
        let (len, seen_from) = two.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], b"ask");
        two.send_to(b"answer", seen_from).await.unwrap();
        let (len, from) = one.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..len], from), (&b"answer"[..], relay.addresses()[1]));

        // Cut in one direction: the other still passes, and nothing is held back for later.
        relay.set(0, 1, Rule::CUT);
        one.send_to(b"lost", relay.addresses()[1]).await.unwrap();
        two.send_to(b"passes", seen_from).await.unwrap();
        let (len, _) = one.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], b"passes");
        relay.heal();
        relay.set(0, 1, Rule { loss: 0.0, delay: Duration::from_millis(5) });
        one.send_to(b"late", relay.addresses()[1]).await.unwrap();
        let (len, _) = two.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], b"late");
    }
}
