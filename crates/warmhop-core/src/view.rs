//! What this peer believes of the others, and how old each belief is.
//!
//! Owns the beliefs and their order: each peer alone writes news of itself, numbers it, and the
//! highest number wins, so that news may arrive twice, late, in any order and by any way (I13).
//! Refuses to know how news travels, and what is decided on it. A belief is a hint: the peer that
//! is asked checks again and may say no.
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

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{AppName, Incarnation, Now, PeerId};
use crate::version::AppVersion;

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

/// The state of one app on one peer.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum AppState {
    /// Not running.
    #[default]
    Cold,
    /// Started, not ready yet.
    Starting,
    /// Serving.
    Ready,
    /// Finishing what it serves; takes nothing new.
    Stopping,
    /// The last start failed, or the copy crashed; backing off.
    Failed,
    /// Held down, whoever wants it.
    Paused,
}

impl AppState {
    /// Its name, as status, metrics and logs have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Paused => "paused",
        }
    }
}

/// What a peer says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerNews {
    /// Its name.
    pub peer: PeerId,
    /// This life of its process.
    pub incarnation: Incarnation,
    /// Orders the lives of one peer: the wall clock at its start in milliseconds, or one
    /// more than the last where the clock went back.
    pub generation: u64,
    /// Grows with each change of this record within one life.
    pub seq: u64,
    /// Where its mesh port can be reached.
    pub mesh: SocketAddr,
    /// Where its front door can be reached.
    pub http: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// It is about to leave: give it nothing new.
    pub draining: bool,
    /// It knows of two others at least, or of seeds that may be others: it is no half of a mesh of
    /// two, whatever the one that hears this knows by itself.
    pub knows_more: bool,
    /// Its process began a moment ago: until others have had the time to say otherwise, a former life
    /// of it may have witnessed what this one knows nothing of
    /// ([`REBORN_FOR`](crate::session::census::REBORN_FOR)).
    pub young: bool,
}

/// What a peer says of one of its apps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppNews {
    /// The app.
    pub app: AppName,
    /// Grows with each change of this record within one life of the peer.
    pub seq: u64,
    /// Its state there.
    pub state: AppState,
    /// Milliseconds until it should be ready, or that a start would take there.
    pub eta_ms: Option<u32>,
    /// Requests in flight there.
    pub in_flight: u32,
    /// The version that serves there, or that a start would bring up; absent: none is named.
    pub version: Option<AppVersion>,
    /// A digest of what the app is there, to tell whether peers mean the same; 0: unknown.
    pub digest: u64,
    /// The peer has no such app any more, and nothing else of this holds.
    pub gone: bool,
}

impl AppNews {
    /// An app of no version and nothing in flight.
    #[must_use]
    pub fn of(app: AppName, seq: u64, state: AppState) -> Self {
        Self { app, seq, state, eta_ms: None, in_flight: 0, version: None, digest: 0, gone: false }
    }
}

/// One piece of news. Applying it twice, late or out of order changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// About a peer.
    Peer(PeerNews),
    /// About one app of a peer.
    App {
        /// The peer.
        peer: PeerId,
        /// Its life.
        incarnation: Incarnation,
        /// That life's order.
        generation: u64,
        /// The news.
        news: AppNews,
    },
}

impl News {
    /// The peer that it is about, and that wrote it.
    #[must_use]
    pub fn peer(&self) -> &PeerId {
        match self {
            Self::Peer(news) => &news.peer,
            Self::App { peer, .. } => peer,
        }
    }

    fn life(&self) -> (u64, Incarnation) {
        match self {
            Self::Peer(news) => (news.generation, news.incarnation),
            Self::App { generation, incarnation, .. } => (*generation, *incarnation),
        }
    }
}

/// How a piece of news came here. Both kinds are by the peer that they are about; of two with one
/// number, what it said over its own link wins over what others passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Passed on by others, by gossip.
    Hearsay,
    /// Over a link to the peer itself, whose certificate vouches for its name. Proof that it
    /// lives.
    FirstHand,
}

/// Whether a peer is believed to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Liveness {
    /// It answers.
    Alive,
    /// It is late; chosen only where nobody else can be.
    Suspect,
    /// It was declared lost.
    Dead,
}

/// Why a piece of news was not believed. Each is counted: see [`View::refused`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusedNews {
    /// It speaks of this very peer: of a former life, or of another process by its name.
    Myself,
    /// Two lives claim one name and one generation: two processes share a name.
    NameClash,
    /// Two peers claim one incarnation.
    IncarnationClash,
    /// There are [`PEERS_MAX`] peers already.
    TooManyPeers,
    /// There are [`APPS_PER_PEER_MAX`] apps of this peer already.
    TooManyApps,
    /// Its zone or front door exceeds its bound.
    TooLong,
}

impl RefusedNews {
    /// The label of its counter.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Myself => "myself",
            Self::NameClash => "name_clash",
            Self::IncarnationClash => "incarnation_clash",
            Self::TooManyPeers => "too_many_peers",
            Self::TooManyApps => "too_many_apps",
            Self::TooLong => "too_long",
        }
    }
}

impl fmt::Display for RefusedNews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Myself => "it speaks of this very peer; does another process have its name?",
            Self::NameClash => "two processes have this name; names are unique: rename one",
            Self::IncarnationClash => "two peers claim one incarnation",
            Self::TooManyPeers => "the view is full of peers",
            Self::TooManyApps => "the view is full of apps of this peer",
            Self::TooLong => "its zone or its front door's address is too long",
        })
    }
}

/// What came of a piece of news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// A belief changed: publish a snapshot.
    Changed,
    /// As much or more was known; a belief may have become younger.
    Stale,
    /// It was not believed.
    Refused(RefusedNews),
}

/// What is believed of one app of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppBelief {
    /// What the peer said last.
    pub news: AppNews,
    /// When that was last heard.
    pub heard: Now,
    /// How that was heard.
    pub source: Source,
}

impl AppBelief {
    /// How long until it should be ready, or a start would take there, less the age of the
    /// belief where a start is under way.
    #[must_use]
    pub fn eta(&self, now: Now) -> Option<Duration> {
        let said = Duration::from_millis(u64::from(self.news.eta_ms?));
        Some(match self.news.state {
            AppState::Starting => {
                said.saturating_sub(now.since(self.heard)).max(crate::app::ETA_FLOOR)
            }
            _ => said,
        })
    }
}

/// What is believed of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerBelief {
    /// What it said of itself last.
    pub news: PeerNews,
    /// Whether it is believed to live.
    pub alive: Liveness,
    /// When anything was last heard of it; of a suspect not before it fell silent, however seldom
    /// it had news before; of the dead when they were declared lost.
    pub heard: Now,
    /// How `news` was heard.
    pub source: Source,
    /// What it said of its apps.
    pub apps: BTreeMap<AppName, AppBelief>,
    /// The apps that it said it has no more: older news of them may still come.
    gone: BTreeMap<AppName, AppBelief>,
    /// It was met at first hand at least once.
    pub met: bool,
    /// It left in good order: nobody needs to wait for this life of it any more.
    pub left: bool,
    /// Since when it has been silent, where it is.
    silent: Option<Now>,
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

/// What this peer believes of all the *others*.
///
/// A clone is a snapshot: it costs five reference counts, and the next change to the original
/// copies the spines of the maps it touches (a pointer a peer, a pointer a warm app) and the one
/// peer that changed. Whoever applies much at once applies it all before publishing a clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    me: PeerId,
    peers: Arc<BTreeMap<PeerId, Arc<PeerBelief>>>,
    strangers: Arc<BTreeMap<PeerId, Arc<Stranger>>>,
    /// The current life of each peer and stranger, to find it by.
    lives: Arc<BTreeMap<Incarnation, PeerId>>,
    /// Lives that are over and done: the peer lives again as another, or was dead for long. And
    /// since when.
    former: Arc<BTreeMap<Incarnation, Now>>,
    /// Lives that took the place of one that did not leave in good order, and since when.
    reborn: Arc<BTreeMap<Incarnation, Now>>,
    /// Where an app is ready or starting: what a request looks for.
    warm: Arc<BTreeMap<AppName, Arc<BTreeSet<PeerId>>>>,
    refused: BTreeMap<RefusedNews, u64>,
}

impl View {
    /// The view of `me`, who knows nobody yet.
    #[must_use]
    pub fn new(me: PeerId) -> Self {
        Self {
            me,
            peers: Arc::default(),
            strangers: Arc::default(),
            lives: Arc::default(),
            former: Arc::default(),
            reborn: Arc::default(),
            warm: Arc::default(),
            refused: BTreeMap::new(),
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

    /// Makes room for a life that is not the current one; whatever was believed of a former one
    /// goes (I14). Returns whether it begins.
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
            // Gossip remembers the dead for longer than this view does, and must not raise them.
            // A peer taken for dead that speaks for itself was not.
            if life.source == Source::Hearsay {
                return Ok(false);
            }
            Arc::make_mut(&mut self.former).remove(&life.incarnation);
        }
        if known && self.peers.get(peer).is_none_or(|former| !former.left) {
            self.note_reborn(life.incarnation, life.heard);
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

    /// Removes what is believed of the peer from every map.
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
                silent: None,
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
        // What strangers have is not seen by any query, so it is no change worth publishing.
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

    /// The peer is late. Returns whether that changed a belief; the dead stay dead.
    pub fn suspect(&mut self, peer: &PeerId, now: Now) -> bool {
        let changed = self.set_alive(peer, Liveness::Suspect, |was| was == Liveness::Alive);
        if changed && let Some(belief) = self.belief_mut(peer) {
            // It answered until then: a peer without news is a quiet one, and no silent one.
            belief.heard = belief.heard.max(now);
            belief.silent = Some(now);
        }
        changed
    }

    /// The peer answers, whatever was believed of it. Returns whether that changed a belief.
    pub fn alive(&mut self, peer: &PeerId) -> bool {
        self.set_alive(peer, Liveness::Alive, |was| was != Liveness::Alive)
    }

    /// This life of the peer is over: its link was closed for good, or it can be reached no more.
    /// Returns whether that changed a belief; another life than the current one is long over.
    pub fn lost(&mut self, peer: &PeerId, incarnation: &Incarnation, now: Now) -> bool {
        if self.life_of(peer).is_none_or(|(_, current)| current != *incarnation) {
            return false;
        }
        if self.strangers.contains_key(peer) {
            self.end_life(peer, now);
            return true;
        }
        let changed = self.set_alive(peer, Liveness::Dead, |was| was != Liveness::Dead);
        if changed && let Some(belief) = self.belief_mut(peer) {
            belief.silent.get_or_insert(belief.heard);
            belief.heard = now;
        }
        changed
    }

    /// This life of the peer said goodbye: as [`View::lost`], and it is proven gone.
    pub fn left(&mut self, peer: &PeerId, incarnation: &Incarnation, now: Now) -> bool {
        let changed = self.lost(peer, incarnation, now);
        if changed && let Some(belief) = self.belief_mut(peer) {
            belief.left = true;
        }
        changed
    }

    /// A life took the place of another, which did not leave in good order. Heard of this very
    /// peer, it tells that this one has forgotten what others count on.
    pub fn note_reborn(&mut self, incarnation: Incarnation, now: Now) {
        let reborn = Arc::make_mut(&mut self.reborn);
        if reborn.len() < FORMER_LIVES_MAX {
            reborn.entry(incarnation).or_insert(now);
        }
    }

    /// The lives that took the place of others less than `within` ago.
    pub fn reborn(&self, now: Now, within: Duration) -> impl Iterator<Item = Incarnation> + '_ {
        let lately = move |since: &Now| now.since(*since) < within;
        self.reborn.iter().filter(move |(_, since)| lately(since)).map(|(life, _)| *life)
    }

    fn set_alive(&mut self, peer: &PeerId, to: Liveness, from: fn(Liveness) -> bool) -> bool {
        let changes = self.peers.get(peer).is_some_and(|belief| from(belief.alive));
        if changes && let Some(belief) = self.belief_mut(peer) {
            belief.alive = to;
            if to == Liveness::Alive {
                belief.met = true;
                belief.left = false;
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
        // Their lives are remembered for as long again, lest hearsay raise them.
        for peer in &forgotten {
            self.end_life(peer, now);
        }
        if self.reborn.values().any(|since| over(*since)) {
            Arc::make_mut(&mut self.reborn).retain(|_, since| !over(*since));
        }
        if self.former.values().any(|ended| over(*ended)) {
            Arc::make_mut(&mut self.former).retain(|_, ended| !over(*ended));
        }
        forgotten
    }

    /// What is believed of the peer, dead or alive.
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

    /// Whether there is one other at most, and that one knows of no third either. A peer that has just
    /// been started knows only whom it has met; who has met more says so.
    #[must_use]
    pub fn is_pair(&self) -> bool {
        self.known() < 2 && self.peers.values().all(|it| !it.news.knows_more)
    }

    /// Every peer that is not dead, by name: what to rank.
    pub fn live_peers(&self) -> impl Iterator<Item = (&PeerId, &PeerBelief)> {
        self.peers().filter(|(_, belief)| belief.alive != Liveness::Dead)
    }

    /// Where the app is believed ready or starting, on peers that are not dead, by name; found by
    /// an index.
    pub fn warm_peers<'a>(
        &'a self,
        app: &'a AppName,
    ) -> impl Iterator<Item = (&'a PeerId, &'a PeerBelief, &'a AppBelief)> {
        self.warm.get(app).into_iter().flat_map(|peers| peers.iter()).filter_map(move |peer| {
            let (peer, belief) = self.peers.get_key_value(peer)?;
            let app = belief.apps.get(app)?;
            (belief.alive != Liveness::Dead).then_some((peer, belief.as_ref(), app))
        })
    }

    /// Where the app is believed ready, suspects and draining peers included, by name.
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

    /// The peer whose current life this is, unless it is dead.
    #[must_use]
    pub fn by_incarnation(&self, incarnation: &Incarnation) -> Option<&PeerBelief> {
        self.peer(self.lives.get(incarnation)?).filter(|belief| belief.alive != Liveness::Dead)
    }

    /// Whether this life is known to be over: its peer lives again as another, or was declared
    /// lost. Of a life never heard of, or forgotten, nothing is known: false.
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
    /// Since when it has not been heard, where it is silent.
    #[must_use]
    pub fn silent_since(&self) -> Now {
        self.silent.unwrap_or(self.heard)
    }

    /// Notes that it was heard of. First-hand news, even old, shows that it lives; hearsay only
    /// that it lived when it wrote it. Returns whether that changed what is believed.
    fn hear(&mut self, now: Now, source: Source, newer: bool) -> bool {
        if newer || source == Source::FirstHand {
            self.heard = self.heard.max(now);
        }
        let revived = source == Source::FirstHand && self.alive != Liveness::Alive;
        if source == Source::FirstHand {
            self.met = true;
        }
        if revived {
            self.alive = Liveness::Alive;
            self.left = false;
            self.silent = None;
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
    /// It says something else than before.
    New,
    /// It says the same at a higher number or from a better source.
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
            // Said again by the peer itself: as old as now.
            if news == belief.news && source == Source::FirstHand {
                belief.heard = belief.heard.max(now);
            }
            Ok(Merged::Old)
        }
    }
}
