//! Whether a peer leaves: one drain at a time, which can be cancelled until the peer ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, watch};

use crate::links::net::Net;
use crate::mesh::shutdown;
use crate::request::node::Node;

pub(crate) struct Leaving {
    /// Whether everything was given to other peers. Locked by the drain that is under way.
    drained: Mutex<bool>,
    /// Counts how often a drain was cancelled.
    called_off: watch::Sender<u64>,
    /// The peer ends: no drain is cancelled any more.
    ending: AtomicBool,
}

impl Leaving {
    pub(crate) fn new() -> Self {
        Self {
            drained: Mutex::new(false),
            called_off: watch::Sender::new(0),
            ending: AtomicBool::new(false),
        }
    }

    /// Drains, or waits for the drain that is under way; returns early if it is cancelled.
    pub(crate) async fn drain(&self, node: &Arc<Node>, net: &Net) {
        let mut called_off = self.called_off.subscribe();
        tokio::select! {
            () = self.drained(node, net) => {}
            _ = called_off.changed() => {}
        }
    }

    /// As [`Leaving::drain`], for good.
    pub(crate) async fn end(&self, node: &Arc<Node>, net: &Net) {
        self.ending.store(true, Ordering::Release);
        self.drained(node, net).await;
    }

    async fn drained(&self, node: &Arc<Node>, net: &Net) {
        let mut drained = self.drained.lock().await;
        if !*drained {
            shutdown::drain(node, net).await;
            *drained = true;
            node.drained.store(true, Ordering::Relaxed);
        }
    }

    /// Makes the peer take traffic again; false if it is about to end.
    pub(crate) async fn call_off(&self, node: &Node, net: &Net) -> bool {
        self.called_off.send_modify(|count| *count += 1);
        let mut drained = self.drained.lock().await;
        // A shutdown waits for this lock, and drains then.
        if self.ending.load(Ordering::Acquire) {
            return false;
        }
        *drained = false;
        shutdown::stay(node, net);
        true
    }
}
