//! Who hears those that a peer does not: re-enacts the questions of the mesh crate's `care/ways.rs`, and a
//! request that is sent on to its session's owner for a peer that does not hear that one.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use warmhop_core::ids::{Incarnation, PeerId};
use warmhop_core::session::entry::way_on;
use warmhop_core::view::Liveness;

use crate::calls::{Call, Forward, HopRefusal, Served};
use crate::peer::Peer;

const ASK_EVERY_MS: u64 = 250;
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// Asks as long as any other is suspect.
pub(crate) async fn ask(peer: Rc<Peer>) {
    loop {
        let suspects = peer.incarnations(Liveness::Suspect);
        let ways = peer.ways_to(&suspects);
        peer.view.borrow_mut().set_ways(ways);
        if !suspects.is_empty() {
            peer.ask_whom_others_hear();
        }
        peer.sleep(ASK_EVERY_MS).await;
    }
}

impl Peer {
    fn incarnations(&self, alive: Liveness) -> Vec<Incarnation> {
        let view = self.view.borrow();
        let such = view.live_peers().filter(|(_, it)| it.alive == alive);
        such.map(|(_, belief)| belief.news.incarnation).collect()
    }

    /// What the others said lately of those that are suspect here.
    fn ways_to(&self, suspects: &[Incarnation]) -> BTreeMap<Incarnation, Vec<PeerId>> {
        let now = self.now();
        let mut reports = self.hears.borrow_mut();
        reports.retain(|_, (_, at)| now.since(*at) < ANSWER_WITHIN);
        let mut ways: BTreeMap<Incarnation, Vec<PeerId>> = BTreeMap::new();
        for (peer, (hears, _)) in reports.iter() {
            for suspect in suspects.iter().filter(|it| hears.contains(it)) {
                ways.entry(*suspect).or_default().push(peer.clone());
            }
        }
        ways
    }

    fn ask_whom_others_hear(self: &Rc<Self>) {
        for inc in self.incarnations(Liveness::Alive) {
            let Some(node) = self.world.node_of(inc) else { continue };
            let (me, near) = (self.inc, self.node);
            self.world.send_word(self, node, 0, move |far| {
                if far.inc != inc {
                    return;
                }
                let name = far.me.clone();
                let linked = |it: &Incarnation| {
                    far.world.node_of(*it).is_some_and(|node| far.has_link(node, *it))
                };
                let mut hears = far.incarnations(Liveness::Alive);
                hears.retain(linked);
                far.world.send_word(far, near, 0, move |near| {
                    if near.inc == me {
                        let now = near.now();
                        near.hears.borrow_mut().insert(name, (hears, now));
                    }
                });
            });
        }
    }

    /// Who owns the session of a request that was forwarded by way of this peer, where this one hears it.
    pub(crate) fn way_on(&self, forward: &Forward) -> Option<Incarnation> {
        let view = self.view.borrow();
        let (here, owner) = (self.here(&view), forward.owner);
        let known = self.look(forward.sid, |machine| way_on(Some(machine), owner, &here));
        known.unwrap_or_else(|| way_on(None, owner, &here))
    }

    /// Sends a request to its session's owner for another peer, which does not hear that one.
    pub(crate) async fn send_on(
        self: &Rc<Self>,
        call: &mut Call,
        forward: &Forward,
        owner: Incarnation,
    ) -> Result<Served, HopRefusal> {
        let to = self.view.borrow().by_incarnation(&owner).map(|belief| belief.news.peer.clone());
        let (Some(to), Some(hops_left)) = (to, forward.hops_left.checked_sub(1)) else {
            return Err(HopRefusal::NotOwner { claim: None });
        };
        self.world.count("sent on by way of another");
        let on = Forward { owner, hops_left, hand_off: None, ..forward.clone() };
        let end = Box::pin(self.forward(call, forward.sid, on, &to)).await;
        self.tell_entry(forward, end)
    }
}
