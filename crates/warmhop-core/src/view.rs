//! This peer's beliefs about the others, and how old each belief is.
//!
//! Owns the beliefs and their order: each peer alone writes news of itself and numbers it, and the
//! highest number wins, so that news may arrive twice, late, in any order and by any path (I13).
//! Refuses to know how news travels, and what is decided by it. A belief is a hint: the peer that
//! is asked checks again and may refuse.
//!
//! ```text
//!              first-hand news, alive
//!            ┌────────────────────────┐
//!            ▼                        │
//!          Alive ── suspect ──▶ Suspect     a higher generation: the former life is dead for
//!            │ ▲                    │       good, and the new one begins with what it says of
//!       lost │ │ first-hand news,   │ lost  itself
//!            ▼ │ alive              │
//!           Dead ◀──────────────────┘ ── forget_dead ──▶ (unknown)
//! ```
//!
//! A suspect that nobody has heard for long is taken for dead (`give_up`). If others hear a peer,
//! that proves that it is alive, but not that this peer can reach it: a suspect stays one
//! (`heard_by_others`).

mod former;
mod met;
mod news;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::ids::{AppName, Incarnation, Now, PeerId};

pub use self::former::FormerLife;
pub use self::news::{AppNews, AppState, News, PeerNews, RefusedNews, Source};

/// How long nobody may hear a peer before it is taken for dead.
pub const SUSPECT_MAX: Duration = Duration::from_secs(30);
/// After how long the knowledge that others hear a silent peer is asked for again.
const WORD_EVERY: Duration = Duration::from_secs(5);
/// The least time that a start under way is estimated to need, however overdue it is.
pub const ETA_FLOOR: Duration = Duration::from_millis(100);
/// The most peers that a view holds; news of further ones is refused and counted.
pub const PEERS_MAX: usize = 2_000;
/// The most apps that a view holds of one peer; news of further ones is refused and counted.
pub const APPS_PER_PEER_MAX: usize = 10_000;
/// The most bytes of a zone's name.
pub const ZONE_BYTES_MAX: usize = 64;
/// The most bytes of a front door's address.
pub const HTTP_BYTES_MAX: usize = 256;
/// How many former lives are remembered as dead; the longest dead are forgotten first.
pub const FORMER_LIVES_MAX: usize = 4_096;

/// Whether a peer is believed to be alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Liveness {
    /// It answers.
    Alive,
    /// It is silent; chosen only if there is no other.
    Suspect,
    /// It was declared lost.
    Dead,
}

/// The effect of a piece of news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// A belief changed: publish a snapshot.
    Changed,
    /// The same or more was known; a belief may have become fresher.
    Stale,
    /// It was refused.
    Refused(RefusedNews),
}

/// A belief about one app of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppBelief {
    /// The latest news from the peer.
    pub news: AppNews,
    /// When it was last heard.
    pub heard: Now,
    /// How it was heard.
    pub source: Source,
}

impl AppBelief {
    /// How long until it should be ready, or a start would take there, less the age of the belief
    /// if a start is under way or backs off.
    #[must_use]
    pub fn eta(&self, now: Now) -> Option<Duration> {
        let said = Duration::from_millis(u64::from(self.news.eta_ms?));
        Some(match self.news.state {
            AppState::Starting => said.saturating_sub(now.since(self.heard)).max(ETA_FLOOR),
            AppState::Failed => said.saturating_sub(now.since(self.heard)),
            _ => said,
        })
    }
}

/// A belief about one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerBelief {
    /// Its latest news of itself.
    pub news: PeerNews,
    /// Whether it is believed to be alive.
    pub alive: Liveness,
    /// When anything was last heard of it; for a suspect at least when it fell silent, however
    /// seldom it had news before; for the dead when they were declared lost.
    pub heard: Now,
    /// How `news` was heard.
    pub source: Source,
    /// Its latest news of its apps.
    pub apps: BTreeMap<AppName, AppBelief>,
    /// The apps that it announced it no longer has: older news of them may still come.
    gone: BTreeMap<AppName, AppBelief>,
    /// It was met at first hand at least once.
    pub met: bool,
    /// It left cleanly: nobody needs to wait for this life of it any more.
    pub left: bool,
    /// It left before others had copied all that it held: what it had witnessed went with it.
    pub cut_short: bool,
    /// Since when it has been silent, if it is.
    silent: Option<Now>,
    /// From when until when it was silent the last time, if it is heard again.
    was_silent: Option<(Now, Now)>,
    /// When others were last known to hear it.
    heard_by_others: Option<Now>,
    /// It was taken for dead because nobody heard it: it may only have been cut off from all peers.
    given_up: bool,
}

/// Apps of a life whose peer has not introduced itself yet: news may arrive in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stranger {
    incarnation: Incarnation,
    generation: u64,
    heard: Now,
    source: Source,
    apps: BTreeMap<AppName, AppBelief>,
    gone: BTreeMap<AppName, AppBelief>,
}

/// This peer's beliefs about all the *others*.
///
/// A clone is a snapshot: it costs six reference counts, and the next change to the original copies
/// the spines of the maps it touches (a pointer a peer, a pointer a warm app) and the one peer that
/// changed. To apply much at once, apply all of it before publishing a clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    me: PeerId,
    peers: Arc<BTreeMap<PeerId, Arc<PeerBelief>>>,
    strangers: Arc<BTreeMap<PeerId, Arc<Stranger>>>,
    /// Finds each peer and stranger by its current life.
    lives: Arc<BTreeMap<Incarnation, PeerId>>,
    /// Lives that are over: the peer runs as another incarnation, or was dead for long. And since
    /// when.
    former: Arc<BTreeMap<Incarnation, Now>>,
    /// Lives that replaced one that did not leave in good order, and since when.
    reborn: Arc<BTreeMap<Incarnation, Now>>,
    /// Lives that replaced one that did, and since when.
    returned: Arc<BTreeMap<Incarnation, Now>>,
    /// Where an app is ready or starting: the index for requests.
    warm: Arc<BTreeMap<AppName, Arc<BTreeSet<PeerId>>>>,
    /// Which peers reported lately that they hear one that is suspect here.
    ways: Arc<BTreeMap<Incarnation, Vec<PeerId>>>,
    refused: BTreeMap<RefusedNews, u64>,
    /// When it met the first of them.
    met_since: Option<Now>,
}

impl View {
    /// The view of `me`, which knows no peer yet.
    #[must_use]
    pub fn new(me: PeerId) -> Self {
        Self {
            me,
            peers: Arc::default(),
            strangers: Arc::default(),
            lives: Arc::default(),
            former: Arc::default(),
            reborn: Arc::default(),
            returned: Arc::default(),
            warm: Arc::default(),
            ways: Arc::default(),
            refused: BTreeMap::new(),
            met_since: None,
        }
    }

    /// Takes one piece of news: a newer one changes a belief; the same one again, or an older one,
    /// changes nothing (I13).
    pub fn apply(&mut self, news: News, now: Now, source: Source) -> Applied {
        let applied = self.try_apply(news, now, source).unwrap_or_else(Applied::Refused);
        if let Applied::Refused(why) = applied {
            let count = self.refused.entry(why).or_insert(0);
            *count = count.saturating_add(1);
        }
        self.note_met(now);
        applied
    }

    fn try_apply(&mut self, news: News, now: Now, source: Source) -> Result<Applied, RefusedNews> {
        if *news.peer() == self.me {
            return Err(RefusedNews::Myself);
        }
        if let News::Peer(PeerNews { http, zone, .. }) = &news {
            let exceeds = |text: &Option<String>, max| text.as_ref().is_some_and(|t| t.len() > max);
            if exceeds(http, HTTP_BYTES_MAX) || exceeds(zone, ZONE_BYTES_MAX) {
                return Err(RefusedNews::TooLong);
            }
        }
        let (generation, incarnation) = news.life();
        match self.life_of(news.peer()) {
            Some((known, _)) if generation < known => return Ok(Applied::Stale),
            Some((known, who)) if generation == known && who != incarnation => {
                return Err(RefusedNews::NameClash);
            }
            Some((known, _)) if generation == known => {}
            former => {
                let (apps, gone) = (BTreeMap::new(), BTreeMap::new());
                let life = Stranger { incarnation, generation, heard: now, source, apps, gone };
                if !self.begin_life(former.is_some(), news.peer(), life)? {
                    return Ok(Applied::Stale);
                }
            }
        }
        match news {
            News::Peer(news) => Ok(self.apply_peer(news, now, source)),
            News::App { peer, news, .. } => self.apply_app(&peer, news, now, source),
        }
    }

    /// The generation and incarnation of the peer's current life.
    fn life_of(&self, peer: &PeerId) -> Option<(u64, Incarnation)> {
        let stranger = || self.strangers.get(peer).map(|s| (s.generation, s.incarnation));
        let known = self.peers.get(peer).map(|p| (p.news.generation, p.news.incarnation));
        known.or_else(stranger)
    }

    /// Makes room for a life that is not the current one; every belief about a former one is
    /// removed (I14). Returns whether it begins.
    fn begin_life(
        &mut self,
        known: bool,
        peer: &PeerId,
        life: Stranger,
    ) -> Result<bool, RefusedNews> {
        if self.lives.contains_key(&life.incarnation) {
            return Err(RefusedNews::IncarnationClash);
        }
        if !known && self.peers.len() + self.strangers.len() >= PEERS_MAX {
            return Err(RefusedNews::TooManyPeers);
        }
        if self.former.contains_key(&life.incarnation) {
            // Gossip remembers the dead for longer than this view does, and must not revive them. A
            // peer taken for dead whose own news arrives was alive.
            if life.source == Source::Hearsay {
                return Ok(false);
            }
            Arc::make_mut(&mut self.former).remove(&life.incarnation);
        }
        if known {
            let left = |former: &Arc<PeerBelief>| former.left && !former.cut_short;
            let former = if self.peers.get(peer).is_some_and(left) {
                FormerLife::Left
            } else {
                FormerLife::Ended
            };
            self.note_former(life.incarnation, former, life.heard);
        }
        self.end_life(peer, life.heard);
        Arc::make_mut(&mut self.lives).insert(life.incarnation, peer.clone());
        Arc::make_mut(&mut self.strangers).insert(peer.clone(), Arc::new(life));
        Ok(true)
    }

    fn end_life(&mut self, peer: &PeerId, now: Now) {
        let Some((_, incarnation)) = self.life_of(peer) else { return };
        self.remove(peer);
        let former = Arc::make_mut(&mut self.former);
        if former.len() >= FORMER_LIVES_MAX {
            let oldest = former.iter().min_by_key(|(_, ended)| **ended).map(|(life, _)| *life);
            oldest.map(|life| former.remove(&life));
        }
        former.insert(incarnation, now);
    }

    /// Removes every belief about the peer from every map.
    fn remove(&mut self, peer: &PeerId) {
        if let Some((_, incarnation)) = self.life_of(peer) {
            Arc::make_mut(&mut self.lives).remove(&incarnation);
        }
        if let Some(belief) = self.peers.get(peer).cloned() {
            for app in belief.apps.values().filter(|app| is_warm(app.news.state)) {
                self.index(&app.news.app, peer, false);
            }
            Arc::make_mut(&mut self.peers).remove(peer);
        }
        if self.strangers.contains_key(peer) {
            Arc::make_mut(&mut self.strangers).remove(peer);
        }
    }

    fn apply_peer(&mut self, news: PeerNews, now: Now, source: Source) -> Applied {
        let peer = news.peer.clone();
        if let Some(stranger) = self.strangers.get(&peer).cloned() {
            Arc::make_mut(&mut self.strangers).remove(&peer);
            let (apps, gone) = (stranger.apps.clone(), stranger.gone.clone());
            for app in apps.values().filter(|app| is_warm(app.news.state)) {
                self.index(&app.news.app, &peer, true);
            }
            let heard = stranger.heard.max(now);
            let met = source.max(stranger.source) == Source::FirstHand;
            let belief = PeerBelief {
                news,
                alive: Liveness::Alive,
                heard,
                source,
                apps,
                gone,
                met,
                left: false,
                cut_short: false,
                silent: None,
                was_silent: None,
                heard_by_others: None,
                given_up: false,
            };
            Arc::make_mut(&mut self.peers).insert(peer, Arc::new(belief));
            return Applied::Changed;
        }
        let Some(belief) = self.belief_mut(&peer) else { return Applied::Stale };
        let newer = (news.seq, source) > (belief.news.seq, belief.source);
        let differs = newer && news != belief.news;
        if newer {
            belief.news = news;
            belief.source = source;
        }
        applied(differs | belief.hear(now, source, newer))
    }

    fn apply_app(
        &mut self,
        peer: &PeerId,
        news: AppNews,
        now: Now,
        source: Source,
    ) -> Result<Applied, RefusedNews> {
        if let Some(belief) = self.belief_mut(peer) {
            let app = news.app.clone();
            let is_warm = is_warm(news.state) && !news.gone;
            let merged = merge_app(&mut belief.apps, &mut belief.gone, news, now, source)?;
            let revived = belief.hear(now, source, merged != Merged::Old);
            if merged != Merged::Old {
                self.index(&app, peer, is_warm);
            }
            return Ok(applied(merged == Merged::New || revived));
        }
        let strangers = Arc::make_mut(&mut self.strangers);
        let Some(stranger) = strangers.get_mut(peer).map(Arc::make_mut) else {
            return Ok(Applied::Stale);
        };
        // No query sees a stranger's apps, so this is no change worth publishing.
        merge_app(&mut stranger.apps, &mut stranger.gone, news, now, source)?;
        stranger.heard = stranger.heard.max(now);
        stranger.source = stranger.source.max(source);
        Ok(Applied::Stale)
    }

    fn belief_mut(&mut self, peer: &PeerId) -> Option<&mut PeerBelief> {
        if !self.peers.contains_key(peer) {
            return None;
        }
        Arc::make_mut(&mut self.peers).get_mut(peer).map(Arc::make_mut)
    }

    fn index(&mut self, app: &AppName, peer: &PeerId, warm: bool) {
        let has = self.warm.get(app).is_some_and(|peers| peers.contains(peer));
        if has == warm {
            return;
        }
        let index = Arc::make_mut(&mut self.warm);
        if warm {
            Arc::make_mut(index.entry(app.clone()).or_default()).insert(peer.clone());
        } else if let Some(peers) = index.get_mut(app).map(Arc::make_mut) {
            peers.remove(peer);
            if peers.is_empty() {
                index.remove(app);
            }
        }
    }

    /// Notes that the peer is silent. Returns whether that changed a belief; the dead stay dead.
    pub fn suspect(&mut self, peer: &PeerId, now: Now) -> bool {
        let changed = self.set_alive(peer, Liveness::Suspect, |was| was == Liveness::Alive);
        if changed && let Some(belief) = self.belief_mut(peer) {
            // It answered until then: a peer without news is quiet, but not silent.
            belief.heard = belief.heard.max(now);
            belief.silent = Some(now);
        }
        changed
    }

    /// Sets the reports of others about the peers that are suspect here: which peers hear which
    /// life of a peer. They replace the previous reports. Returns whether that changed anything.
    pub fn set_ways(&mut self, ways: BTreeMap<Incarnation, Vec<PeerId>>) -> bool {
        let changed = !self.says_ways(&ways);
        if changed {
            self.ways = Arc::new(ways);
        }
        changed
    }

    /// Whether these are the latest reports of others: see [`View::set_ways`].
    #[must_use]
    pub fn says_ways(&self, ways: &BTreeMap<Incarnation, Vec<PeerId>>) -> bool {
        *self.ways == *ways
    }

    /// The peers that hear this life of another, which is suspect here: only links are down, and
    /// not the peer itself.
    pub fn ways_to<'a>(
        &'a self,
        suspect: &Incarnation,
    ) -> impl Iterator<Item = (&'a PeerId, &'a PeerBelief)> + use<'a> {
        let belief = self.by_incarnation(suspect);
        let is_suspect = belief.is_some_and(|belief| belief.alive == Liveness::Suspect);
        let ways = self.ways.get(suspect).filter(|_| is_suspect);
        let beliefs = ways.into_iter().flatten().filter_map(|way| self.peers.get_key_value(way));
        let beliefs = beliefs.map(|(way, belief)| (way, belief.as_ref()));
        beliefs.filter(|(_, belief)| belief.alive == Liveness::Alive)
    }

    /// Notes that the peer answers, whatever was believed of it. Returns whether that changed a
    /// belief.
    pub fn alive(&mut self, peer: &PeerId, now: Now) -> bool {
        let Some(belief) = self.peers.get(peer).filter(|it| it.alive != Liveness::Alive) else {
            return false;
        };
        let silent = (belief.silent_since(), now);
        let changed = self.set_alive(peer, Liveness::Alive, |_| true);
        if let Some(belief) = self.belief_mut(peer) {
            belief.was_silent = Some(silent);
        }
        changed
    }

    /// Notes that others hear this life of the peer, whether this peer does or not. It does not
    /// count as dead then; if it did, because nobody heard it, it is suspect again. Returns whether
    /// that changed a belief.
    pub fn heard_by_others(&mut self, peer: &PeerId, incarnation: &Incarnation, now: Now) -> bool {
        let known = self.peers.get(peer).filter(|belief| belief.news.incarnation == *incarnation);
        if known.is_none_or(|belief| belief.alive == Liveness::Alive) {
            return false;
        }
        let Some(belief) = self.belief_mut(peer) else { return false };
        belief.heard_by_others = Some(now);
        let revived = belief.alive == Liveness::Dead && belief.given_up;
        if revived {
            belief.alive = Liveness::Suspect;
            belief.given_up = false;
        }
        revived
    }

    /// Whether the peer is silent, and no recent report says that others hear it.
    #[must_use]
    pub fn wants_word_of(&self, peer: &PeerId, now: Now) -> bool {
        self.peer(peer).is_some_and(|belief| {
            let is_old = |at| now.since(at) >= WORD_EVERY;
            belief.alive != Liveness::Alive && belief.heard_by_others.is_none_or(is_old)
        })
    }

    /// The suspects that nobody has heard for [`SUSPECT_MAX`]. A suspect that others hear is alive,
    /// and sessions still count on it.
    pub fn unheard(&self, now: Now) -> impl Iterator<Item = &PeerId> {
        self.peers().filter(move |(_, belief)| belief.is_unheard(now)).map(|(peer, _)| peer)
    }

    /// Considers a peer dead that nobody hears, unless it was heard meanwhile. Returns whether that
    /// changed a belief.
    pub fn give_up(&mut self, peer: &PeerId, now: Now) -> bool {
        let Some(belief) = self.peer(peer).filter(|belief| belief.is_unheard(now)) else {
            return false;
        };
        let incarnation = belief.news.incarnation;
        let changed = self.lost(peer, &incarnation, now);
        if let Some(belief) = self.belief_mut(peer) {
            belief.given_up = true;
        }
        changed
    }

    /// Notes that this life of the peer is over: its link was closed for good, or it can no longer
    /// be reached. Returns whether that changed a belief; if it is not the current life, it is long
    /// over.
    pub fn lost(&mut self, peer: &PeerId, incarnation: &Incarnation, now: Now) -> bool {
        if self.life_of(peer).is_none_or(|(_, current)| current != *incarnation) {
            return false;
        }
        if self.strangers.contains_key(peer) {
            self.end_life(peer, now);
            return true;
        }
        let changed = self.set_alive(peer, Liveness::Dead, |was| was != Liveness::Dead);
        if let Some(belief) = self.belief_mut(peer) {
            // Whatever the peer was taken for, this life is over.
            belief.given_up = false;
            if changed {
                belief.silent.get_or_insert(belief.heard);
                belief.heard = now;
            }
        }
        changed
    }

    /// Notes that this life of the peer said goodbye: as [`View::lost`], and it is proven gone.
    pub fn left(&mut self, peer: &PeerId, incarnation: &Incarnation, now: Now) -> bool {
        let changed = self.lost(peer, incarnation, now);
        if changed && let Some(belief) = self.belief_mut(peer) {
            belief.left = true;
        }
        changed
    }

    /// As [`View::left`], but others have not copied all that the peer held, as after a crash.
    pub fn cut_short(&mut self, peer: &PeerId, incarnation: &Incarnation, now: Now) -> bool {
        let changed = self.left(peer, incarnation, now);
        if changed && let Some(belief) = self.belief_mut(peer) {
            belief.cut_short = true;
        }
        changed
    }

    /// Takes an operator's word that a silent peer never comes back: as [`View::cut_short`]. Returns
    /// the life that is over; `None` if the peer is unknown, heard here or by others, or left before.
    pub fn write_off(&mut self, peer: &PeerId, now: Now) -> Option<Incarnation> {
        let heard_lately = |at: Now| now.since(at) < SUSPECT_MAX;
        let is_silent = |it: &&PeerBelief| {
            it.alive != Liveness::Alive && !it.left && !it.heard_by_others.is_some_and(heard_lately)
        };
        let life = self.peer(peer).filter(is_silent)?.news.incarnation;
        self.lost(peer, &life, now);
        let belief = self.belief_mut(peer)?;
        (belief.left, belief.cut_short) = (true, true);
        Some(life)
    }

    fn set_alive(&mut self, peer: &PeerId, to: Liveness, from: fn(Liveness) -> bool) -> bool {
        let changes = self.peers.get(peer).is_some_and(|belief| from(belief.alive));
        if changes && let Some(belief) = self.belief_mut(peer) {
            belief.alive = to;
            if to == Liveness::Alive {
                belief.met = true;
                (belief.left, belief.cut_short) = (false, false);
                belief.silent = None;
            }
        }
        changes
    }

    /// Forgets the peers that have been dead, the strangers that have been silent and the former
    /// lives that have been over for `after`. Returns the peers forgotten.
    pub fn forget_dead(&mut self, now: Now, after: Duration) -> Vec<PeerId> {
        let over = |heard: Now| now.since(heard) >= after;
        let gone = |p: &PeerBelief| p.alive == Liveness::Dead && (p.left || p.silent.is_none());
        let counted = self.peers.values().filter(|p| !gone(p)).count() + 1;
        let heard = self.peers.values().filter(|p| p.alive == Liveness::Alive).count() + 1;
        let is_larger = 2 * heard > counted;
        let dead = self
            .peers
            .iter()
            .filter(|(_, p)| p.alive == Liveness::Dead && over(p.heard) && (is_larger || gone(p)));
        let silent = self.strangers.iter().filter(|(_, s)| over(s.heard));
        let forgotten: Vec<PeerId> =
            dead.map(|(peer, _)| peer).chain(silent.map(|(peer, _)| peer)).cloned().collect();
        // Their lives are remembered for as long again, so that second-hand news does not revive
        // them.
        for peer in &forgotten {
            self.end_life(peer, now);
        }
        // A silent peer has given nothing back to those that were reborn.
        let all_are_heard = self.peers.values().all(|p| p.left || p.alive == Liveness::Alive);
        if all_are_heard && self.reborn.values().any(|since| over(*since)) {
            Arc::make_mut(&mut self.reborn).retain(|_, since| !over(*since));
        }
        if self.returned.values().any(|since| over(*since)) {
            Arc::make_mut(&mut self.returned).retain(|_, since| !over(*since));
        }
        if self.former.values().any(|ended| over(*ended)) {
            Arc::make_mut(&mut self.former).retain(|_, ended| !over(*ended));
        }
        forgotten
    }

    /// The belief about the peer, dead or alive.
    #[must_use]
    pub fn peer(&self, peer: &PeerId) -> Option<&PeerBelief> {
        self.peers.get(peer).map(Arc::as_ref)
    }

    /// The peer's current life, whether it has introduced itself or was only heard of.
    #[must_use]
    pub fn life(&self, peer: &PeerId) -> Option<Incarnation> {
        self.life_of(peer).map(|(_, incarnation)| incarnation)
    }

    /// Every peer that has introduced itself, dead ones included, by name.
    pub fn peers(&self) -> impl Iterator<Item = (&PeerId, &PeerBelief)> + Clone {
        self.peers.iter().map(|(peer, belief)| (peer, belief.as_ref()))
    }

    /// How many others are known, dead ones and strangers included.
    #[must_use]
    pub fn known(&self) -> usize {
        self.peers.len() + self.strangers.len()
    }

    /// Whether there is one other at most, and that one knows of no third either. A peer that has
    /// just been started knows only the peers that it has met; one that has met more announces
    /// that.
    #[must_use]
    pub fn is_pair(&self) -> bool {
        self.known() < 2 && self.peers.values().all(|it| !it.news.knows_more)
    }

    /// Every peer that is not dead, by name: the peers to rank.
    pub fn live_peers(&self) -> impl Iterator<Item = (&PeerId, &PeerBelief)> {
        self.peers().filter(|(_, belief)| belief.alive != Liveness::Dead)
    }

    /// The peers that are not dead where the app is believed to be ready or starting, by name;
    /// found by an index.
    pub fn warm_peers<'a>(
        &'a self,
        app: &AppName,
    ) -> impl Iterator<Item = (&'a PeerId, &'a PeerBelief, &'a AppBelief)> {
        self.warm.get(app).into_iter().flat_map(|peers| peers.iter()).filter_map(move |peer| {
            let (peer, belief) = self.peers.get_key_value(peer)?;
            let app = belief.apps.get(app)?;
            (belief.alive != Liveness::Dead).then_some((peer, belief.as_ref(), app))
        })
    }

    /// The peers where the app is believed to be ready, suspects and draining peers included, by
    /// name.
    pub fn ready_peers<'a>(
        &'a self,
        app: &'a AppName,
    ) -> impl Iterator<Item = (&'a PeerId, &'a PeerBelief)> {
        self.warm_peers(app)
            .filter(|(_, _, app)| app.news.state == AppState::Ready)
            .map(|(peer, belief, _)| (peer, belief))
    }

    /// The shortest time until a copy that is starting should be ready.
    #[must_use]
    pub fn best_eta(&self, app: &AppName, now: Now) -> Option<Duration> {
        let starting = |app: &AppBelief| app.news.state == AppState::Starting;
        self.warm_peers(app)
            .filter(|(_, _, a)| starting(a))
            .filter_map(|(_, _, a)| a.eta(now))
            .min()
    }

    /// The peer that has this life as its current one, unless it is dead.
    #[must_use]
    pub fn by_incarnation(&self, incarnation: &Incarnation) -> Option<&PeerBelief> {
        self.peer(self.lives.get(incarnation)?).filter(|belief| belief.alive != Liveness::Dead)
    }

    /// Whether this life is known to be over: its peer runs as another incarnation, or was declared
    /// lost. Returns false for a life that is unknown or forgotten.
    #[must_use]
    pub fn is_dead(&self, incarnation: &Incarnation) -> bool {
        self.former.contains_key(incarnation)
            || self
                .lives
                .get(incarnation)
                .and_then(|peer| self.peer(peer))
                .is_some_and(|belief| belief.alive == Liveness::Dead)
    }

    /// How often news was refused for this reason.
    #[must_use]
    pub fn refused(&self, why: RefusedNews) -> u64 {
        self.refused.get(&why).copied().unwrap_or(0)
    }
}

impl PeerBelief {
    /// Since when it has not been heard, if it is silent.
    #[must_use]
    pub fn silent_since(&self) -> Now {
        self.silent.unwrap_or(self.heard)
    }

    fn is_unheard(&self, now: Now) -> bool {
        let heard = self.heard_by_others.map_or(self.heard, |by_others| by_others.max(self.heard));
        self.alive == Liveness::Suspect && now.since(heard) > SUSPECT_MAX
    }

    /// Notes that it was heard of. First-hand news, even old, proves that it is alive; second-hand
    /// news only that it was alive when it wrote the news. Returns whether that changed a belief.
    fn hear(&mut self, now: Now, source: Source, newer: bool) -> bool {
        let silent = (self.silent_since(), now);
        if newer || source == Source::FirstHand {
            self.heard = self.heard.max(now);
        }
        let revived = source == Source::FirstHand && self.alive != Liveness::Alive;
        if source == Source::FirstHand {
            self.met = true;
        }
        if revived {
            self.alive = Liveness::Alive;
            (self.left, self.cut_short) = (false, false);
            self.silent = None;
            self.was_silent = Some(silent);
        }
        revived
    }
}

fn is_warm(state: AppState) -> bool {
    matches!(state, AppState::Ready | AppState::Starting)
}

fn applied(changed: bool) -> Applied {
    if changed { Applied::Changed } else { Applied::Stale }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Merged {
    /// It differs from the last news.
    New,
    /// It is the same at a higher number or from a better source.
    Same,
    Old,
}

fn merge_app(
    apps: &mut BTreeMap<AppName, AppBelief>,
    gone: &mut BTreeMap<AppName, AppBelief>,
    news: AppNews,
    now: Now,
    source: Source,
) -> Result<Merged, RefusedNews> {
    let full = apps.len() + gone.len() >= APPS_PER_PEER_MAX;
    let put = |apps: &mut BTreeMap<_, _>, gone: &mut BTreeMap<_, _>, news: AppNews| {
        let (to, from) = if news.gone { (gone, apps) } else { (apps, gone) };
        from.remove(&news.app);
        to.insert(news.app.clone(), AppBelief { news, heard: now, source });
    };
    match apps.get_mut(&news.app).or_else(|| gone.get_mut(&news.app)) {
        None if full => Err(RefusedNews::TooManyApps),
        None => {
            put(apps, gone, news);
            Ok(Merged::New)
        }
        Some(belief) if (news.seq, source) > (belief.news.seq, belief.source) => {
            let merged = if news == belief.news { Merged::Same } else { Merged::New };
            put(apps, gone, news);
            Ok(merged)
        }
        Some(belief) => {
            // Repeated by the peer itself: the belief is fresh again.
            if news == belief.news && source == Source::FirstHand {
                belief.heard = belief.heard.max(now);
            }
            Ok(Merged::Old)
        }
    }
}
