//! Whether all peers have the same configuration of an app: each sends a digest of it with its news.

use std::collections::BTreeMap;

use tracing::{info, warn};
use warmhop_core::config::StartMode;
use warmhop_core::ids::{AppName, PeerId};
use warmhop_core::view::{Liveness, View};

use crate::app::slot::Slot;
use crate::request::node::Node;

/// The peers with another configuration of the app, by name. Peers that are gone, that send no digest,
/// or that never run it are left out.
pub(crate) fn differing(slot: &Slot, view: &View) -> Vec<String> {
    others(slot, view).map(ToString::to_string).collect()
}

fn others<'v>(slot: &Slot, view: &'v View) -> impl Iterator<Item = &'v PeerId> {
    let spec = slot.spec();
    let own = if spec.policy.start == StartMode::Never { 0 } else { spec.digest };
    let name = spec.name.clone();
    view.live_peers()
        .filter(move |(_, belief)| {
            let digest = belief.apps.get(&name).map_or(0, |copy| copy.news.digest);
            belief.alive == Liveness::Alive && own != 0 && digest != 0 && digest != own
        })
        .map(|(peer, _)| peer)
}

/// Warns once of each app that peers differ about, and says when they agree again.
#[derive(Default)]
pub(crate) struct Watch {
    warned_of: BTreeMap<AppName, Vec<String>>,
}

impl Watch {
    pub(crate) fn look(&mut self, node: &Node) {
        let (apps, view) = (node.apps(), node.view());
        self.warned_of.retain(|name, _| apps.named(name).is_some());
        for slot in &apps.slots {
            let differ = differing(slot, &view);
            let name = slot.name();
            match self.warned_of.get(name) {
                None if differ.is_empty() => {}
                Some(warned_of) if *warned_of == differ => {}
                Some(_) if differ.is_empty() => {
                    info!(app = %name, "every peer has the same configuration of the app again");
                    self.warned_of.remove(name);
                }
                _ => {
                    let peers = differ.join(", ");
                    warn!(
                        app = %name,
                        peers,
                        "the app is configured differently on other peers: each request follows the \
                         configuration of the peer that it reaches"
                    );
                    self.warned_of.insert(name.clone(), differ);
                }
            }
        }
    }
}
