//! What carries frames, news and hops between peers, badly: it loses, delays, reorders and
//! repeats, and cuts in one direction or both.
//!
//! Frames of sessions are sent once, best effort. A hop is a stream of a link: what is lost is
//! sent again, so that it comes late or, where the link falls silent, not at all.

use std::collections::BTreeMap;
use std::rc::Rc;

use warmhop_core::ids::{Incarnation, SessionId};
use warmhop_core::session::message::Message;
use warmhop_core::view::{News, Source};

use crate::peer::Peer;
use crate::world::{To, World};

/// How bad the network is at the moment.
#[derive(Debug, Default, Clone)]
pub(crate) struct Network {
    pub(crate) loss_percent: u64,
    pub(crate) repeat_percent: u64,
    pub(crate) delay_max: u64,
    /// How often something takes a detour, and how long that may be.
    pub(crate) detour_percent: u64,
    pub(crate) detour_max: u64,
    /// How late gossip may be.
    pub(crate) gossip_lag_max: u64,
    /// Until when nothing passes from one node to another.
    pub(crate) cuts: BTreeMap<(usize, usize), u64>,
}

impl Network {
    pub(crate) fn heal(&mut self) {
        *self = Self { delay_max: 2, gossip_lag_max: 50, ..Self::default() };
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize, until: u64) {
        let known = self.cuts.entry((from, to)).or_default();
        *known = until.max(*known);
    }

    fn is_cut(&self, from: usize, to: usize, now: u64) -> bool {
        self.cuts.get(&(from, to)).is_some_and(|until| *until > now)
    }
}

impl World {
    fn delay(&self) -> u64 {
        let (delay_max, percent, detour_max) = {
            let net = self.net.borrow();
            (net.delay_max, net.detour_percent, net.detour_max)
        };
        let detour = if self.chance(percent) { self.below(detour_max + 1) } else { 0 };
        self.below(delay_max + 1) + detour
    }

    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        from != to && self.net.borrow().is_cut(from, to, self.now())
    }

    /// How many copies of something sent once arrive.
    fn copies(&self, from: usize, to: usize) -> u64 {
        let (loss, repeat) = {
            let net = self.net.borrow();
            (net.loss_percent, net.repeat_percent)
        };
        if self.is_cut(from, to) || self.chance(loss) {
            return 0;
        }
        1 + u64::from(self.chance(repeat))
    }

    /// A frame of a session, on its way once it is sent.
    pub(crate) fn send_frame(
        self: &Rc<Self>,
        from: &Peer,
        to: Incarnation,
        sid: SessionId,
        message: Message,
    ) {
        let (from_node, from_inc) = (from.node, from.inc);
        let Some(to_node) = self.node_of(to) else { return };
        let copies = if to_node == from_node { 1 } else { self.copies(from_node, to_node) };
        if copies != 1 {
            self.count(if copies == 0 { "frames lost" } else { "frames repeated" });
        }
        self.note(Some(sid), || {
            let fate = match copies {
                0 => " (lost)",
                1 => "",
                _ => " (twice)",
            };
            format!("{} -> {}: {message:?}{fate}", from.me, crate::name(to_node))
        });
        for _ in 0..copies {
            let message = message.clone();
            let delay = if to_node == from_node { 0 } else { self.delay() };
            self.after(delay, To::Node(to_node), move |world| {
                // A link is to one process: what was sent to a former one is gone with it.
                if let Some(peer) = world.peer_of(to) {
                    peer.on_frame(from_inc, to, sid, message);
                }
            });
        }
    }

    /// News that a peer announces about itself over its links.
    pub(crate) fn send_news(self: &Rc<Self>, from: &Peer, to: usize, news: Rc<Vec<News>>) {
        let (from_node, from_inc) = (from.node, from.inc);
        self.send_word(from, to, 0, move |peer| {
            peer.heard_from(from_node, from_inc);
            for news in news.iter() {
                peer.on_news(news.clone(), Source::FirstHand);
            }
        });
    }

    /// What a peer passes on: news of others, and how far their heartbeats have come.
    pub(crate) fn send_gossip(
        self: &Rc<Self>,
        from: &Peer,
        to: usize,
        news: Rc<Vec<News>>,
        heartbeats: BTreeMap<Incarnation, u64>,
    ) {
        let lag_max = self.net.borrow().gossip_lag_max;
        self.send_word(from, to, lag_max, move |peer| {
            for news in news.iter() {
                peer.on_news(news.clone(), Source::Hearsay);
            }
            peer.on_heartbeats(&heartbeats);
        });
    }

    pub(crate) fn send_word(
        self: &Rc<Self>,
        from: &Peer,
        to: usize,
        lag_max: u64,
        hear: impl FnOnce(&Rc<Peer>) + 'static,
    ) {
        if from.node == to || self.copies(from.node, to) == 0 {
            return;
        }
        let lag = if lag_max > 0 { self.below(lag_max + 1) } else { 0 };
        self.after(self.delay() + lag, To::Node(to), move |world| {
            if let Some(peer) = world.peer(to) {
                hear(&peer);
            }
        });
    }

    /// How long a part of a hop's stream takes; `None` where it does not arrive.
    pub(crate) fn stream_delay(&self, from: usize, to: usize) -> Option<u64> {
        if self.is_cut(from, to) {
            return None;
        }
        let loss = self.net.borrow().loss_percent;
        let again = if self.chance(loss) { self.between(20, 300) } else { 0 };
        Some(self.delay() + again)
    }
}
