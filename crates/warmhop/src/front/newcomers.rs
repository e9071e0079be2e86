//! Which connection gets the next place at a full front door.
//!
//! New connections wait here rather than in the system's queue, where nobody can see their
//! addresses: the address with the fewest connections is next, so that no address keeps others from
//! a place by connecting more often.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use crate::http::clients::Clients;
use crate::http::refusals::Refusal;

/// The most connections that wait at one listener. Each has an open file.
const WAITING_MAX: usize = 16;
/// If the queue here is full and no connection in it has got a place for so long, later ones are
/// refused, so that the connections of one address no longer hide the others.
const STUCK_AFTER: Duration = Duration::from_millis(250);
/// How often a full door looks for a connection to close.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long a closed connection may take to free its place before another is closed.
const GIVES_WAY_WITHIN: Duration = Duration::from_secs(1);

/// A newly accepted connection.
#[derive(Debug)]
pub(crate) struct Newcomer {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
}

impl Newcomer {
    /// Whether its client has closed the connection and left nothing to be read.
    fn has_left(&self) -> bool {
        match peek(&self.stream) {
            Ok(read) => read == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }
}

/// Whether a client has sent something that nobody has read yet.
pub(crate) fn has_sent(stream: &TcpStream) -> bool {
    peek(stream).is_ok_and(|read| read > 0)
}

fn peek(stream: &TcpStream) -> io::Result<usize> {
    SockRef::from(stream).peek(&mut [MaybeUninit::uninit()])
}

/// The connections of one listener that wait for a place.
pub(crate) struct Newcomers {
    clients: Arc<Clients>,
    permits: Arc<Semaphore>,
    /// Connections come from proxies: their clients are not known yet.
    anonymous: bool,
    waiting: Vec<Newcomer>,
    /// When to look for a connection to close.
    look_at: Instant,
    /// A connection is being closed already.
    gives_way: bool,
    /// Since when the queue here has been full without a connection in it getting a place.
    full_since: Option<Instant>,
}

impl Newcomers {
    pub(crate) fn new(clients: Arc<Clients>, permits: Arc<Semaphore>, anonymous: bool) -> Self {
        let (waiting, look_at) = (Vec::new(), Instant::now());
        Self { clients, permits, anonymous, waiting, look_at, gives_way: false, full_since: None }
    }

    /// When another may be accepted; absent: at once. If the queue here is full, the next
    /// connection stays in the system's queue for a while: as long as those here get places, none
    /// has to be refused.
    pub(crate) fn may_come_at(&self) -> Option<Instant> {
        self.full_since.map(|since| since + STUCK_AFTER)
    }

    /// Adds a new connection. If too many wait, those whose clients have left are dropped; if none
    /// has, one is refused: the latest of the address with the most connections.
    pub(crate) fn comes(&mut self, newcomer: Newcomer) {
        self.waiting.push(newcomer);
        if self.waiting.len() > WAITING_MAX {
            self.waiting.retain(|it| !it.has_left());
        }
        if self.waiting.len() > WAITING_MAX {
            let all = self.has_in_all();
            let has = |at: usize| all.get(&self.waiting[at].peer.ip()).copied().unwrap_or(0);
            if let Some(last) = (0..self.waiting.len()).max_by_key(|at| has(*at)) {
                self.waiting.remove(last);
                self.clients.refusals().note(Refusal::NoPlace);
            }
        }
        if self.waiting.len() == WAITING_MAX {
            self.full_since.get_or_insert_with(Instant::now);
        }
        if !self.gives_way {
            self.look_at = Instant::now();
        }
    }

    /// The next one, with its place. It is cancel-safe.
    pub(crate) async fn next_placed(&mut self) -> (Newcomer, OwnedSemaphorePermit) {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        loop {
            if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
                return self.takes(permit);
            }
            if Instant::now() >= self.look_at {
                let first = &self.waiting[self.first()];
                let address = (!self.anonymous).then(|| first.peer.ip());
                self.gives_way = self.clients.make_room(address);
                // A closed connection frees its place at once. Newly admitted connections are not
                // in the table yet, and busy ones may become idle.
                let again = if self.gives_way { GIVES_WAY_WITHIN } else { LOOK_AGAIN };
                self.look_at = Instant::now() + again;
            }
            let permit = Arc::clone(&self.permits).acquire_owned();
            tokio::select! {
                permit = permit => match permit {
                    Ok(permit) => return self.takes(permit),
                    Err(_) => return std::future::pending().await,
                },
                () = sleep_until(self.look_at) => {}
            }
        }
    }

    /// The connections that still wait.
    pub(crate) fn without_place(self) -> Vec<Newcomer> {
        self.waiting
    }

    fn takes(&mut self, permit: OwnedSemaphorePermit) -> (Newcomer, OwnedSemaphorePermit) {
        let first = self.first();
        (self.gives_way, self.look_at, self.full_since) = (false, Instant::now(), None);
        (self.waiting.remove(first), permit)
    }

    /// Which one is next: the first of those whose address has the fewest connections.
    fn first(&self) -> usize {
        if self.waiting.len() < 2 || self.anonymous {
            return 0;
        }
        let has = |at: &usize| self.clients.connections_of(self.waiting[*at].peer.ip());
        (0..self.waiting.len()).min_by_key(has).unwrap_or(0)
    }

    /// How many connections the addresses of those that wait have, with a place and without.
    fn has_in_all(&self) -> HashMap<IpAddr, usize> {
        let mut all = HashMap::new();
        for newcomer in self.waiting.iter().filter(|_| !self.anonymous) {
            let ip = newcomer.peer.ip();
            *all.entry(ip).or_insert_with(|| self.clients.connections_of(ip)) += 1;
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use prometheus_client::metrics::gauge::Gauge;
    use tokio::net::TcpListener;

    use super::*;
    use crate::http::clients::ClientLimits;

    #[tokio::test]
    async fn the_address_with_fewest_connections_is_next_and_the_one_with_most_is_turned_away() {
        let clients = Clients::new(ClientLimits::default(), Arc::default(), Gauge::default());
        let permits = Arc::new(Semaphore::new(0));
        let mut newcomers = Newcomers::new(Arc::clone(&clients), Arc::clone(&permits), false);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let (greedy, modest) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let held: Vec<_> = (0..3).map(|_| clients.admit(greedy.into(), false).unwrap()).collect();
        held.iter().for_each(|one| one.account().begins(0, true));
        for (at, ip) in [&[greedy; WAITING_MAX][..], &[modest]].concat().into_iter().enumerate() {
            let stream = TcpStream::connect(to).await.unwrap();
            let peer = SocketAddr::from((ip, u16::try_from(at).unwrap()));
            newcomers.comes(Newcomer { stream, peer });
        }
        assert_eq!(newcomers.waiting.len(), WAITING_MAX);
        assert_eq!(clients.refusals().count(Refusal::NoPlace), 1);
        permits.add_permits(2);
        let (first, _permit) = newcomers.next_placed().await;
        assert_eq!(first.peer.ip(), modest);
        let (second, _permit) = newcomers.next_placed().await;
        assert_eq!(second.peer, SocketAddr::from((greedy, 0)));
        let left = newcomers.without_place();
        assert_eq!(left.len(), WAITING_MAX - 2);
        assert!(left.iter().all(|it| it.peer.port() < 15), "the latest was turned away");
    }
}
