//! Breaks the mesh: one fault after the other by a seeded schedule. Each is undone before the next, and the
//! mesh gets time to repair itself in between, since that is what it promises.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures_util::future::join_all;
use http::Method;
use nix::sys::signal::Signal;
use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::time::sleep;

use super::APPS;
use super::history::{Armed, Fault, Micros, Thread};
use super::idle::Idle;
use super::load::{Load, locked};
use super::relay::{Relay, Rule};
use crate::client::Client;
use crate::mesh::{Mesh, warmhop_cert};

/// How long the mesh may take to be whole again after a fault.
const WHOLE_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// How long a peer runs with a failpoint that it does not reach.
const TRIPS_WITHIN: Duration = Duration::from_secs(20);
/// The highest pass at which a seeded failpoint ends its peer.
const PASS_MAX: u64 = 3;
/// How many sessions are begun so that a peer reaches its failpoint.
const STIRRING_MAX: usize = 12;
/// How a peer reports that it leaves before others hold what it holds.
const COUNTED_ON: &str = "some sessions still have this peer as a member";
/// How many requests each of those sessions gets: more than it needs to move.
const ARRIVALS_MAX: usize = 6;
/// How long one of these requests may take.
const STIRS_WITHIN: Duration = Duration::from_secs(2);

/// How long a peer may take to answer once it was started.
const UP_WITHIN: Duration = Duration::from_secs(10);

/// A link to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CutLink {
    from: usize,
    to: usize,
    both_ways: bool,
}

/// Two links of a mesh of so many peers, which has three at least.
fn draw_links(rng: &mut SmallRng, peers: usize) -> Vec<CutLink> {
    let mut links: Vec<CutLink> = Vec::new();
    while links.len() < 2 {
        let from = rng.random_range(0..peers);
        let to = (from + 1 + rng.random_range(0..peers - 1)) % peers;
        let is_known = |link: &CutLink| {
            (link.from, link.to) == (from, to) || (link.from, link.to) == (to, from)
        };
        if !links.iter().any(is_known) {
            links.push(CutLink { from, to, both_ways: rng.random() });
        }
    }
    links
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Kind {
    /// A peer is killed (SIGKILL) and started again.
    Kill,
    /// An app's process is killed.
    App,
    /// An app's process is stopped (SIGSTOP).
    Hang,
    /// An app keeps running and accepts no more connections.
    Refuse,
    /// An app's process is killed again and again.
    Flap,
    /// An app exits by itself with status 0.
    End,
    /// A peer is stopped (SIGSTOP) for 1 to 10 s and goes on.
    Pause,
    /// One peer is cut off from all others, in both directions.
    Partition,
    /// What one peer sends to the others is lost; what they send arrives.
    OneWay,
    /// Links lose 5 to 30 % of what passes and hold the rest back for 5 to 60 ms.
    Loss,
    /// One link is cut while messages pass over it.
    Cut,
    /// Two links are cut, each in one direction or in both, for longer than it takes to suspect.
    Links,
    /// One peer is cut off from all others for longer than others wait for it.
    Isolate,
    /// A peer is killed and, as soon as it runs again, another one is stopped for a moment.
    KillPause,
    /// Every peer in turn is shut down cleanly and started again.
    Roll,
    /// A peer's certificate is replaced under load.
    Rotate,
    /// A peer runs with a failpoint armed until it ends itself there, and is started again.
    Failpoint,
    /// Two peers are killed at once: sessions may be lost, and must then be reported lost.
    Two,
}

/// A moment of the session protocol at which a peer of a debug build can be made to end itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Point {
    /// Its name in `WARMHOP_FAILPOINTS`.
    pub name: &'static str,
    /// What makes a peer reach it.
    stir: Stir,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stir {
    /// Clients begin sessions at its door, so that it owns some.
    Own,
    /// The app is ready at it alone, and clients begin sessions elsewhere, so that these hop.
    HopThere,
    /// It has sessions of its own, and one of the others drains, so that their members change.
    /// The draining peer stays until the fault is over: it is still asked for its votes.
    Drain,
    /// Clients of sessions that another owns keep arriving at it, so that the sessions move.
    Arrive,
}

impl Point {
    /// The failpoints that a mesh of so many peers can reach without losing two holders at once:
    /// members change without a loss only if another peer can take the place of one that drains.
    #[must_use]
    pub fn within_reach_of(peers: usize) -> Vec<Self> {
        Self::ALL.into_iter().filter(|point| peers > 3 || point.stir != Stir::Drain).collect()
    }

    /// All of them.
    pub const ALL: [Self; 8] = [
        Self { name: "exec.vote.before", stir: Stir::HopThere },
        Self { name: "exec.vote.after", stir: Stir::HopThere },
        Self { name: "owner.vote.before", stir: Stir::Own },
        Self { name: "owner.vote.after", stir: Stir::Own },
        Self { name: "release.before", stir: Stir::Own },
        Self { name: "seal.after", stir: Stir::Drain },
        Self { name: "open.after", stir: Stir::Drain },
        Self { name: "reassert.after", stir: Stir::Arrive },
    ];
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Kill,
        Self::App,
        Self::Hang,
        Self::Refuse,
        Self::Flap,
        Self::End,
        Self::Pause,
        Self::Partition,
        Self::OneWay,
        Self::Loss,
        Self::Cut,
        Self::Links,
        Self::Isolate,
        Self::KillPause,
        Self::Roll,
        Self::Rotate,
        Self::Failpoint,
        Self::Two,
    ];

    /// Its name on the command line and in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::App => "app",
            Self::Hang => "hang",
            Self::Refuse => "refuse",
            Self::Flap => "flap",
            Self::End => "end",
            Self::Pause => "pause",
            Self::Partition => "partition",
            Self::OneWay => "one-way",
            Self::Loss => "loss",
            Self::Cut => "cut",
            Self::Links => "links",
            Self::Isolate => "isolate",
            Self::KillPause => "kill-pause",
            Self::Roll => "roll",
            Self::Rotate => "rotate",
            Self::Failpoint => "failpoint",
            Self::Two => "two",
        }
    }
}

impl Kind {
    /// Whether it takes too long for a short run.
    #[must_use]
    pub fn is_long(self) -> bool {
        matches!(self, Self::Isolate)
    }
}

/// Breaks one mesh.
#[derive(Debug)]
pub struct Breaker {
    /// The mesh.
    pub mesh: Mesh,
    /// Its network.
    pub relay: Relay,
    /// The run's clock.
    pub load: Arc<Load>,
    /// The source of the schedule.
    pub rng: SmallRng,
    /// What was done.
    pub faults: Vec<Fault>,
    /// The failpoints whose turn has not come yet.
    pub points: Vec<Point>,
    /// The keys of the clients' sessions, as peers reported them.
    pub keys: BTreeMap<Thread, String>,
    /// Sessions that no client asks for.
    pub idle: Idle,
}

impl Breaker {
    /// Makes one fault of the kind, undoes it, and waits until the mesh is whole.
    ///
    /// # Errors
    /// If a peer cannot be started again, or the mesh does not become whole in time.
    pub async fn one(&mut self, kind: Kind) -> Result<()> {
        let began = self.load.now();
        let victim = self.rng.random_range(0..self.mesh.peers().len());
        let (peers, what) = match kind {
            Kind::Kill => self.kill(&[victim]).await?,
            Kind::Two => {
                let other = (victim + 1) % self.mesh.peers().len();
                self.kill(&[victim, other]).await?
            }
            Kind::App => self.kill_app(victim)?,
            Kind::Hang => self.hang(victim).await?,
            Kind::Refuse => self.refuse(victim)?,
            Kind::Flap => self.flap(victim).await?,
            Kind::End => self.end_app(victim)?,
            Kind::Pause => self.pause(victim).await?,
            Kind::Partition => self.cut_off(victim, true, (3_000, 12_000)).await,
            Kind::OneWay => self.cut_off(victim, false, (3_000, 12_000)).await,
            Kind::Isolate => self.cut_off(victim, true, (20_000, 45_000)).await,
            Kind::Links => self.cut_links().await,
            Kind::KillPause => self.kill_and_pause(victim).await?,
            Kind::Loss => self.lose().await,
            Kind::Cut => self.cut(victim).await,
            Kind::Roll => self.roll().await?,
            Kind::Rotate => self.rotate(victim)?,
            Kind::Failpoint => {
                if self.points.is_empty() {
                    self.points = Point::within_reach_of(self.mesh.peers().len());
                }
                let point = self.points.swap_remove(self.rng.random_range(0..self.points.len()));
                let pass = self.rng.random_range(1..=PASS_MAX);
                self.failpoint(victim, point, pass).await?;
                return Ok(());
            }
        };
        let may_lose = kind == Kind::Two;
        self.wrote(kind, began, &peers, what, may_lose, None);
        self.whole_again(kind.name()).await
    }

    /// Waits until the mesh is whole, and records when it was.
    async fn whole_again(&mut self, after: &str) -> Result<()> {
        let healed = Instant::now();
        let done = self.whole(after).await;
        let now = self.load.now();
        if let Some(fault) = self.faults.last_mut() {
            fault.whole = now;
        }
        done?;
        let names: Vec<String> = self.mesh.peers().iter().map(|peer| peer.name.clone()).collect();
        let admins: Vec<_> = self.mesh.peers().iter().map(|peer| peer.ports.admin).collect();
        let (load, fault) = (Arc::clone(&self.load), self.faults.len().saturating_sub(1));
        let may_lose = self.faults.last().is_some_and(|fault| fault.may_lose);
        self.idle.whole(healed, fault, may_lose, &names, &admins, || load.now()).await;
        Ok(())
    }

    fn wrote(
        &mut self,
        kind: Kind,
        began: Micros,
        peers: &[usize],
        what: String,
        may_lose: bool,
        armed: Option<Armed>,
    ) {
        let peers = peers.iter().map(|peer| self.mesh.peer(*peer).name.clone()).collect();
        let ended = self.load.now();
        let kind = kind.name().to_owned();
        let whole = Micros::MAX;
        self.faults.push(Fault { kind, peers, what, began, ended, whole, may_lose, armed });
    }

    /// Kills a peer, has it run with the failpoint armed until it ends itself there or the time
    /// is up, starts it again and waits until the mesh is whole. Returns whether it tripped.
    ///
    /// # Errors
    /// If the peer ends in any other way, cannot be started again, or the mesh does not become
    /// whole in time.
    pub async fn failpoint(&mut self, victim: usize, point: Point, pass: u64) -> Result<bool> {
        let began = self.load.now();
        let said = self.mesh.peer(self.helper_of(victim)).log().len();
        self.mesh.kill(victim)?;
        let armed = format!("{}=kill@{pass}", point.name);
        self.mesh.start_with(victim, &[("WARMHOP_FAILPOINTS", &armed)])?;
        let tripped = self.until_tripped(victim, point).await?;
        if !tripped {
            self.mesh.kill(victim)?;
        }
        let down = self.for_between(200, 1_200).await;
        self.mesh.start(victim)?;
        let what = if tripped {
            format!("ended at {} (pass {pass}), started again after {down:.1?}", point.name)
        } else {
            format!("did not reach {} (pass {pass})", point.name)
        };
        let armed = Armed { point: point.name.to_owned(), pass, tripped };
        self.wrote(Kind::Failpoint, began, &[victim], what, false, Some(armed));
        self.whole_again("a failpoint").await?;
        if point.stir == Stir::Drain {
            // Nobody is missing by now, so the one that drained may leave and come back.
            let helper = self.helper_of(victim);
            self.mesh.stop(helper).await?;
            // It drained while the other one was down, and may not have been replaced in time: then
            // it says that it leaves although it is counted on.
            let log = self.mesh.peer(helper).log();
            let leaves_early = log.get(said..).is_some_and(|log| log.contains(COUNTED_ON));
            if let Some(fault) = self.faults.last_mut() {
                fault.may_lose = leaves_early;
            }
            self.mesh.start(helper)?;
            self.whole_again("a peer had drained").await?;
        }
        Ok(tripped)
    }

    async fn until_tripped(&mut self, victim: usize, point: Point) -> Result<bool> {
        let until = Instant::now() + TRIPS_WITHIN;
        let mut stirred = false;
        while Instant::now() < until {
            if self.has_tripped(victim)? {
                return Ok(true);
            }
            match point.stir {
                Stir::Own => self.begin_sessions(victim, [victim; 2]).await,
                // The others need a mesh that is whole, with the peer a member of sessions.
                _ if stirred || self.lacking().await.is_some() => {}
                Stir::HopThere => self.hop_to(victim).await,
                Stir::Arrive => {
                    self.begin_sessions(victim, [self.helper_of(victim), victim]).await;
                }
                Stir::Drain => {
                    self.begin_sessions(victim, [victim; 2]).await;
                    let door = self.mesh.peer(self.helper_of(victim)).ports.admin;
                    let mut admin = Client::new();
                    let drain = admin.call(Method::POST, "/v1/drain").timeout(STIRS_WITHIN);
                    // It answers at once and drains then; if it does not, nothing trips.
                    let _ = drain.send(door).await;
                    stirred = true;
                }
            }
            sleep(POLL).await;
        }
        self.has_tripped(victim)
    }

    fn helper_of(&self, victim: usize) -> usize {
        (victim + 1) % self.mesh.peers().len()
    }

    /// Begins sessions at the first door and goes on with them at the second, while the peer at
    /// `victim` runs.
    async fn begin_sessions(&mut self, victim: usize, doors: [usize; 2]) {
        let [first, later] = doors.map(|at| self.mesh.peer(at).ports.http);
        for item in 0..STIRRING_MAX {
            let mut client = Client::new();
            for turn in 0..ARRIVALS_MAX {
                let door = if turn == 0 { first } else { later };
                let call = client.call(Method::POST, "/append").header("host", APPS[0].host);
                let call = call.body(format!("stir.{item}.{turn}")).timeout(STIRS_WITHIN);
                // The peer may be gone by now, which is what this is for.
                if call.send(door).await.is_err() || !self.mesh.peer(victim).is_alive() {
                    return;
                }
            }
        }
    }

    fn has_tripped(&mut self, victim: usize) -> Result<bool> {
        let Some(status) = self.mesh.ended(victim)? else { return Ok(false) };
        if status.signal() == Some(Signal::SIGABRT as i32) {
            return Ok(true);
        }
        let peer = self.mesh.peer(victim);
        bail!("{} ended by itself ({status}); its log: {}", peer.name, peer.folder().display())
    }

    /// Makes the app ready at `victim` alone, as far as that is possible, and begins sessions
    /// elsewhere: these run at `victim`, which votes for them.
    async fn hop_to(&mut self, victim: usize) {
        let app = APPS[0].name;
        if self.tell_app(victim, "start").await && self.is_ready(victim).await {
            for other in (0..self.mesh.peers().len()).filter(|other| *other != victim) {
                if self.is_ready(other).await {
                    self.tell_app(other, "stop").await;
                }
            }
            let helper = self.helper_of(victim);
            if self.mesh.peer(helper).app_state(app).await != "ready" {
                self.begin_sessions(victim, [helper, helper]).await;
            }
        }
    }

    async fn is_ready(&self, peer: usize) -> bool {
        self.mesh.peer(peer).app_state(APPS[0].name).await == "ready"
    }

    /// Whether the peer answered; one that does not has no running app.
    async fn tell_app(&self, peer: usize, action: &str) -> bool {
        let path = format!("/v1/apps/{}/{action}", APPS[0].name);
        let mut admin = Client::new();
        let call = admin.call(Method::POST, path).timeout(STIRS_WITHIN);
        call.send(self.mesh.peer(peer).ports.admin).await.is_ok()
    }

    pub(super) async fn for_between(&mut self, low_ms: u64, high_ms: u64) -> Duration {
        let span = Duration::from_millis(self.rng.random_range(low_ms..high_ms));
        sleep(span).await;
        span
    }

    async fn kill(&mut self, victims: &[usize]) -> Result<(Vec<usize>, String)> {
        for victim in victims {
            self.mesh.kill(*victim)?;
        }
        let down = self.for_between(500, 6_000).await;
        for victim in victims {
            self.mesh.start(*victim)?;
        }
        Ok((victims.to_vec(), format!("killed, started again after {down:.1?}")))
    }

    fn kill_app(&mut self, victim: usize) -> Result<(Vec<usize>, String)> {
        let descendants = self.mesh.peer(victim).process().map(|it| it.descendants());
        let apps = descendants.unwrap_or_default();
        let Some(app) = apps.iter().find(|process| process.command().contains("ledger")) else {
            return Ok((vec![victim], "its app did not run".to_owned()));
        };
        app.signal(Signal::SIGKILL)?;
        Ok((vec![victim], "its app was killed".to_owned()))
    }

    async fn pause(&mut self, victim: usize) -> Result<(Vec<usize>, String)> {
        let Some(process) = self.mesh.peer(victim).process() else { bail!("no peer to stop") };
        process.signal(Signal::SIGSTOP)?;
        let span = self.for_between(1_000, 10_000).await;
        process.signal(Signal::SIGCONT)?;
        Ok((vec![victim], format!("stopped for {span:.1?}")))
    }

    async fn cut_off(
        &mut self,
        victim: usize,
        both_ways: bool,
        (low_ms, high_ms): (u64, u64),
    ) -> (Vec<usize>, String) {
        for other in (0..self.mesh.peers().len()).filter(|other| *other != victim) {
            self.relay.set(victim, other, Rule::CUT);
            if both_ways {
                self.relay.set(other, victim, Rule::CUT);
            }
        }
        let span = self.for_between(low_ms, high_ms).await;
        self.relay.heal();
        let how = if both_ways { "cut off" } else { "unheard" };
        (vec![victim], format!("{how} for {span:.1?}"))
    }

    async fn lose(&mut self) -> (Vec<usize>, String) {
        let loss = f64::from(self.rng.random_range(5_u32..30)) / 100.0;
        let delay = Duration::from_millis(self.rng.random_range(5..60));
        let count = self.mesh.peers().len();
        for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
            self.relay.set(from, to, Rule { loss, delay });
        }
        let span = self.for_between(5_000, 12_000).await;
        self.relay.heal();
        let what = format!("{:.0} % lost, {delay:?} later, for {span:.1?}", loss * 100.0);
        ((0..count).collect(), what)
    }

    async fn cut(&mut self, victim: usize) -> (Vec<usize>, String) {
        let other = (victim + 1) % self.mesh.peers().len();
        self.relay.set(victim, other, Rule::CUT);
        self.relay.set(other, victim, Rule::CUT);
        let span = self.for_between(2_000, 8_000).await;
        self.relay.heal();
        (vec![victim, other], format!("the link between them cut for {span:.1?}"))
    }

    async fn cut_links(&mut self) -> (Vec<usize>, String) {
        let links = draw_links(&mut self.rng, self.mesh.peers().len());
        for link in &links {
            self.relay.set(link.from, link.to, Rule::CUT);
            if link.both_ways {
                self.relay.set(link.to, link.from, Rule::CUT);
            }
        }
        let span = self.for_between(5_000, 15_000).await;
        self.relay.heal();
        let names = links.iter().map(|link| {
            let arrow = if link.both_ways { "↮" } else { "↛" };
            format!("{} {arrow} {}", link.from + 1, link.to + 1)
        });
        let names: Vec<String> = names.collect();
        let mut peers: Vec<usize> = links.iter().flat_map(|link| [link.from, link.to]).collect();
        peers.sort_unstable();
        peers.dedup();
        (peers, format!("links {} cut for {span:.1?}", names.join(", ")))
    }

    /// What the first peer held is gone while the second one, which may hold the only other copy, is
    /// silent.
    async fn kill_and_pause(&mut self, victim: usize) -> Result<(Vec<usize>, String)> {
        let count = self.mesh.peers().len();
        let other = (victim + 1 + self.rng.random_range(0..count - 1)) % count;
        self.mesh.kill(victim)?;
        self.mesh.start(victim)?;
        let until = Instant::now() + UP_WITHIN;
        while self.mesh.peer(victim).status().await.is_err() && Instant::now() < until {
            sleep(Duration::from_millis(5)).await;
        }
        let Some(process) = self.mesh.peer(other).process() else { bail!("no peer to stop") };
        process.signal(Signal::SIGSTOP)?;
        let span = self.for_between(300, 3_000).await;
        process.signal(Signal::SIGCONT)?;
        let what =
            format!("the first was killed and started, the second stopped at once for {span:.1?}");
        Ok((vec![victim, other], what))
    }

    async fn roll(&mut self) -> Result<(Vec<usize>, String)> {
        let count = self.mesh.peers().len();
        for index in 0..count {
            self.mesh.stop(index).await?;
            self.mesh.start(index)?;
            self.whole("a restart of a rolling restart").await?;
        }
        Ok(((0..count).collect(), "each ended and started in turn".to_owned()))
    }

    fn rotate(&mut self, victim: usize) -> Result<(Vec<usize>, String)> {
        let peer = self.mesh.peer(victim);
        let certs = peer.folder().join("certs");
        let ca = peer.folder().join("../ca");
        let ca = ca.to_string_lossy().into_owned();
        warmhop_cert(&["peer", &peer.name, "--force", "--ca", &ca, "--out"], &certs)?;
        Ok((vec![victim], "its certificate was replaced".to_owned()))
    }

    /// Waits until every peer sees every other, and every session and key, used or not, has as many
    /// living members as it should.
    async fn whole(&mut self, after: &str) -> Result<()> {
        self.mesh.formed().await?;
        let until = Instant::now() + WHOLE_WITHIN;
        while let Some(lacking) = self.lacking().await {
            if Instant::now() > until {
                bail!("{WHOLE_WITHIN:?} after {after}, {lacking}");
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Why the mesh is not whole yet, if it is not.
    async fn lacking(&mut self) -> Option<String> {
        if self.mesh.peers().iter().any(|peer| !peer.is_alive()) || !self.mesh.is_formed().await {
            return Some("not every peer sees every other".to_owned());
        }
        let at_work = locked(&self.load.sessions).clone();
        self.keys.retain(|thread, _| at_work.contains_key(thread));
        for (thread, (door, request)) in at_work {
            if !self.keys.contains_key(&thread) {
                let trace = self.ask(door, &format!("/v1/requests/{request}")).await;
                let key = trace.as_ref().and_then(|trace| trace["session"].as_str());
                // The peer that served it may have been ended since; the next request tells more.
                let Some(key) = key else {
                    return Some(format!("nobody knows the session of request {request}"));
                };
                self.keys.insert(thread, key.to_owned());
            }
            let members = self.members_of(&self.keys[&thread]).await;
            let wanted = self.mesh.peers().len().min(3);
            let living = members.iter().filter(|member| self.mesh.index(member).is_some());
            if living.count() < wanted {
                let key = &self.keys[&thread];
                return Some(format!("the members of session {key} are {members:?}"));
            }
        }
        self.short().await
    }

    /// What the peers report to be short of members or an owner: keys, and sessions, unused ones
    /// included.
    async fn short(&self) -> Option<String> {
        let statuses = join_all(self.mesh.peers().iter().map(|peer| peer.status())).await;
        let mut lives = BTreeMap::new();
        for (peer, status) in self.mesh.peers().iter().zip(&statuses) {
            let Ok(status) = status else { return Some(format!("{} tells nothing", peer.name)) };
            lives.insert(peer.name.as_str(), status["peer"]["incarnation"].clone());
        }
        for (peer, status) in self.mesh.peers().iter().zip(statuses.iter().flatten()) {
            let others = status["peers"].as_array().into_iter().flatten();
            // If a peer died and came back unnoticed, nobody misses yet what it held.
            let former = others.clone().find(|other| {
                let name = other["name"].as_str().unwrap_or_default();
                lives.get(name).is_some_and(|life| *life != other["incarnation"])
            });
            if let Some(former) = former {
                return Some(format!("{} knows a former life of {}", peer.name, former["name"]));
            }
            // One that drains mends nothing: it hands off what it has when it ends.
            let short = status["sessions"]["short"].as_u64().unwrap_or_default();
            if short > 0 && status["peer"]["state"] == "serving" {
                return Some(format!("{short} sessions or keys are short at {}", peer.name));
            }
        }
        None
    }

    /// The members of a session as its owner knows them; members that are gone for good do not have
    /// names of peers. Empty if nobody owns the session.
    async fn members_of(&self, key: &str) -> Vec<String> {
        for (index, peer) in self.mesh.peers().iter().enumerate() {
            let Some(session) = self.ask(index, &format!("/v1/sessions/{key}")).await else {
                continue;
            };
            if session["owner"] == peer.name.as_str()
                && !session["ballot"].as_str().is_none_or(str::is_empty)
            {
                let members = session["members"].as_array().into_iter().flatten();
                return members.filter_map(|name| Some(name.as_str()?.to_owned())).collect();
            }
        }
        Vec::new()
    }

    async fn ask(&self, peer: usize, path: &str) -> Option<serde_json::Value> {
        let mut admin = Client::new();
        let call = admin.call(Method::GET, path).timeout(STIRS_WITHIN);
        call.send(self.mesh.peer(peer).ports.admin).await.ok()?.ok().ok()?.json().ok()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn two_links_of_different_pairs_are_drawn_the_same_ones_for_one_seed() {
        let draw = |seed| draw_links(&mut SmallRng::seed_from_u64(seed), 3);
        let mut one_way = 0;
        for seed in 0..200 {
            let links = draw(seed);
            assert_eq!(links, draw(seed));
            let pair = |link: &CutLink| (link.from.min(link.to), link.from.max(link.to));
            assert_ne!(pair(&links[0]), pair(&links[1]), "{links:?}");
            assert!(links.iter().all(|link| link.from != link.to && link.to < 3), "{links:?}");
            one_way += links.iter().filter(|link| !link.both_ways).count();
        }
        assert!((100..300).contains(&one_way), "{one_way} of 400");
    }

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
