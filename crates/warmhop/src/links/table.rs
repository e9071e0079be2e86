//! The current links, found by peer, incarnation or address, and sending over them without waiting.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::watch;
use warmhop_core::ids::{Incarnation, PeerId};

use crate::links::lane::Dropped;
use crate::links::link::Link;
use crate::links::wire::{KIND_GOSSIP, SessionFrame};

/// The current links, as an immutable snapshot for readers.
pub(crate) struct Links {
    table: ArcSwap<Table>,
    /// Held while the table changes and the handler is called, so that it hears of changes in order.
    writing: Mutex<()>,
    changed: watch::Sender<u64>,
}

/// The current links by peer, incarnation and address.
#[derive(Clone, Default)]
pub(crate) struct Table {
    pub(crate) by_peer: HashMap<PeerId, Arc<Link>>,
    pub(crate) by_incarnation: HashMap<Incarnation, Arc<Link>>,
    pub(crate) by_addr: HashMap<SocketAddr, Arc<Link>>,
}

impl Links {
    /// No link yet.
    pub(crate) fn new() -> Self {
        Self { table: ArcSwap::default(), writing: Mutex::new(()), changed: watch::Sender::new(0) }
    }

    /// A snapshot of the links.
    pub(crate) fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    /// The current link to a peer.
    pub(crate) fn to(&self, peer: &PeerId) -> Option<Arc<Link>> {
        self.table.load().by_peer.get(peer).filter(|link| link.is_usable()).cloned()
    }

    /// Changes whenever a link is added or removed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// No link is added or removed while the guard is held.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, _: &MutexGuard<'_, ()>, link: &Arc<Link>) {
        let mut table = Table::clone(&self.table.load());
        if let Some(before) = table.by_peer.insert(link.peer.peer.clone(), link.clone()) {
            table.forget(&before);
        }
        table.by_incarnation.insert(link.peer.incarnation, link.clone());
        table.by_addr.insert(link.peer.mesh, link.clone());
        self.table.store(Arc::new(table));
        self.changed.send_modify(|count| *count += 1);
    }

    /// Removes a link; false if it was not current.
    pub(super) fn remove(&self, _: &MutexGuard<'_, ()>, link: &Arc<Link>) -> bool {
        let table = self.table.load();
        if !table.by_peer.get(&link.peer.peer).is_some_and(|current| Arc::ptr_eq(current, link)) {
            return false;
        }
        let mut table = Table::clone(&table);
        table.by_peer.remove(&link.peer.peer);
        table.forget(link);
        self.table.store(Arc::new(table));
        self.changed.send_modify(|count| *count += 1);
        true
    }
}

impl Table {
    fn forget(&mut self, link: &Arc<Link>) {
        self.by_incarnation.retain(|_, other| !Arc::ptr_eq(other, link));
        self.by_addr.retain(|_, other| !Arc::ptr_eq(other, link));
    }
}

impl Table {
    /// Queues a session frame for the link to its incarnation. False if a queued frame makes it
    /// superfluous.
    pub(crate) fn send_session(
        &self,
        to: Incarnation,
        frame: SessionFrame,
    ) -> Result<bool, Dropped> {
        let link = self.by_incarnation.get(&to).ok_or(Dropped::NoLink)?;
        link.lane.take(frame)
    }

    /// As [`Table::send_session`], for a frame that is encoded already.
    pub(crate) fn send_encoded(&self, to: Incarnation, frame: Bytes) -> Result<(), Dropped> {
        self.by_incarnation.get(&to).ok_or(Dropped::NoLink)?.lane.send(frame)
    }

    /// Sends gossip to the peer that is reached at `to`, without waiting.
    pub(crate) fn send_gossip(&self, to: SocketAddr, message: &[u8]) -> Result<(), Dropped> {
        let link = self.by_addr.get(&to).ok_or(Dropped::NoLink)?;
        let mut bytes = BytesMut::with_capacity(1 + message.len());
        bytes.put_u8(KIND_GOSSIP);
        bytes.extend_from_slice(message);
        let bytes = bytes.freeze();
        // The largest datagram changes with the path's MTU, so ask each time.
        if link.conn.max_datagram_size().is_some_and(|max| bytes.len() <= max) {
            return link.conn.send_datagram(bytes).map_err(|_| Dropped::NoLink);
        }
        link.gossip.try_send(bytes).map_err(|_| Dropped::Full)
    }
}
