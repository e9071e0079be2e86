//! Whether a peer leaves: one drain at a time, which can be called off until the peer ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, watch};

use crate::links::net::Net;
use crate::mesh::shutdown;
use crate::request::node::Node;

pub(crate) struct Leaving {
    /// Whether what there was has been given away. Held by the drain that is under way.
    drained: Mutex<bool>,
    /// Counts how often a drain was called off.
    called_off: watch::Sender<u64>,
    /// The peer ends: nothing is called off any more.
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

    /// Drains, or waits for the drain that is under way; returns early where it is called off.
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

    /// Has the peer take traffic again; false where it is about to end.
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
