//! One app on this peer: carries out what the core's `AppMachine` decides, and hands out its
//! service while it is ready.

mod changes;
mod copy;
mod health;
mod leaving;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tracing::{info, warn};
use warmhop_core::app::{AppEffect, AppEvent, AppMachine, NotStarted, WantedBy};
use warmhop_core::config::AppPolicy;
use warmhop_core::ids::{AppName, Now, PeerId};
use warmhop_core::queue::Flow;
use warmhop_core::scale::{Busyness, busy_from};
use warmhop_core::version::AppVersion;
use warmhop_core::view::AppState;

pub(crate) use self::copy::Copy;
use crate::app::loads::Loads;
use crate::app::places::Places;
use crate::app::shares::{Shares, is_known};
use crate::app::{App, AppSpec, Ended, Running, StartContext, StartError};
use crate::http::tunnels::CopyTunnels;
use crate::observe::clock::Clock;
use crate::observe::metrics::{AppCounts, ByApp, Metrics};

/// The attempt under way, if there is one, and its task.
type Starting = Option<(u64, AbortHandle)>;

/// Counts one request in flight at a copy until it is dropped.
pub(crate) struct InFlight {
    copy: Arc<Copy>,
    slot: Arc<Slot>,
    /// Its client, where clients have shares of the places.
    client: Option<u64>,
}

/// How busy a copy here is, from one look at it; idle if there is none.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Doing {
    /// How many requests it is serving.
    pub(crate) in_flight: u32,
    /// How many of them wait for the heads of their answers.
    pub(crate) awaiting: u32,
    /// It serves as many as it may.
    pub(crate) is_full: bool,
    /// One client has its share of the places at it.
    pub(crate) is_shut: bool,
}

/// Why a request does not begin here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoEntry {
    NotReady,
    /// There is no place for it.
    Full,
}

impl InFlight {
    /// The upgraded connections of its copy.
    pub(crate) fn tunnels(&self) -> &CopyTunnels {
        &self.copy.tunnels
    }

    /// Notes how long the request took to its response's head.
    pub(crate) fn measured(&self, took: Duration) {
        self.slot.measured(took);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.slot.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.copy.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.copy.idle.notify_waiters();
        }
        if let Some(client) = self.client {
            self.copy.shares.give_back(client);
        }
        // The task that is woken looks at the counts.
        self.slot.places.freed_at(&self.slot.me, self.client);
    }
}

/// One app on this peer.
pub(crate) struct Slot {
    name: AppName,
    spec: ArcSwap<AppSpec>,
    /// This slot is no app for clients: it executes operations on registers.
    pub(crate) keeps_registers: bool,
    /// What the next start brings up.
    app: Mutex<Arc<dyn App>>,
    /// This peer no longer has the app.
    retired: AtomicBool,
    me: PeerId,
    clock: Clock,
    metrics: Arc<Metrics>,
    /// The start under way. It is locked while an event and all its effects are carried out, so
    /// that no event comes between a decision and its effects, and the mesh's last news is true.
    starting: Mutex<Starting>,
    machine: Mutex<AppMachine>,
    copy: ArcSwapOption<Copy>,
    /// The copy that is out of service until its health check succeeds.
    aside: Mutex<Option<Arc<Copy>>>,
    /// The copy that was just replaced, until its stop begins.
    replaced: Mutex<Option<Arc<Copy>>>,
    /// The copies that are being stopped.
    leaving: Mutex<Vec<Arc<Copy>>>,
    /// The newest version that is known to have been ready anywhere.
    heard: Mutex<Option<AppVersion>>,
    /// How many starts have failed here in total.
    failed_starts: AtomicU32,
    /// And elsewhere, as far as this peer has heard.
    failed_elsewhere: AtomicU32,
    /// When the last request came, in the clock's milliseconds.
    used_at: AtomicU64,
    /// When the copy here became ready.
    ready_at: AtomicU64,
    busyness: Mutex<Busyness>,
    pub(crate) counts: AppCounts,
    pub(crate) in_flight: AtomicU32,
    pub(crate) waiting: AtomicUsize,
    /// A smoothed time to the response's head, in microseconds; 0 before the first.
    latency_us: AtomicU32,
    ticker: Notify,
    /// How busy the copies elsewhere are.
    pub(crate) loads: Arc<Loads>,
    /// The requests here that wait for a place at a copy.
    pub(crate) places: Arc<Places>,
    /// Notified of every change of state.
    changed: watch::Sender<u64>,
    publish: Box<dyn Fn(&Slot) + Send + Sync>,
}

impl Slot {
    #[expect(clippy::too_many_arguments, reason = "one caller, each of another kind")]
    pub(crate) fn new(
        spec: AppSpec,
        keeps_registers: bool,
        app: Arc<dyn App>,
        me: PeerId,
        clock: Clock,
        metrics: Arc<Metrics>,
        changed: watch::Sender<u64>,
        publish: Box<dyn Fn(&Slot) + Send + Sync>,
    ) -> Arc<Self> {
        let machine = AppMachine::new(spec.policy.clone(), rand::random());
        let places = Arc::new(Places::new(me.clone()));
        Arc::new(Self {
            name: spec.name.clone(),
            spec: ArcSwap::from_pointee(spec),
            keeps_registers,
            app: Mutex::new(app),
            retired: AtomicBool::new(false),
            me,
            clock,
            metrics,
            starting: Mutex::new(None),
            machine: Mutex::new(machine),
            copy: ArcSwapOption::empty(),
            aside: Mutex::new(None),
            replaced: Mutex::new(None),
            leaving: Mutex::default(),
            heard: Mutex::default(),
            failed_starts: AtomicU32::new(0),
            failed_elsewhere: AtomicU32::new(0),
            used_at: AtomicU64::new(0),
            ready_at: AtomicU64::new(0),
            busyness: Mutex::default(),
            counts: AppCounts::default(),
            in_flight: AtomicU32::new(0),
            waiting: AtomicUsize::new(0),
            latency_us: AtomicU32::new(0),
            ticker: Notify::new(),
            loads: Arc::default(),
            places,
            changed,
            publish,
        })
    }

    pub(crate) fn name(&self) -> &AppName {
        &self.name
    }

    /// Its current configuration.
    pub(crate) fn spec(&self) -> Guard<Arc<AppSpec>> {
        self.spec.load()
    }

    /// The same, for longer than a moment.
    pub(crate) fn spec_now(&self) -> Arc<AppSpec> {
        self.spec.load_full()
    }

    fn machine(&self) -> MutexGuard<'_, AppMachine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn starting(&self) -> MutexGuard<'_, Starting> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> AppState {
        // The service decides: between the machine's transition and the swap nobody is misled.
        if self.copy.load().is_some() { AppState::Ready } else { self.not_ready_state() }
    }

    fn not_ready_state(&self) -> AppState {
        match self.machine().state() {
            AppState::Ready => AppState::Stopping,
            state => state,
        }
    }

    pub(crate) fn starts(&self) -> u64 {
        self.machine().starts()
    }

    pub(crate) fn eta(&self) -> Option<Duration> {
        self.machine().eta(self.clock.now())
    }

    /// How long the current start has taken so far.
    pub(crate) fn starting_for(&self) -> Option<Duration> {
        self.machine().starting_for(self.clock.now())
    }

    /// How often in a row it failed, and how long until it may be tried again.
    pub(crate) fn failures(&self) -> (u32, Option<Duration>) {
        let machine = self.machine();
        let backs_off = match machine.why_not_start(WantedBy::Request, self.clock.now()) {
            Some(NotStarted::BackingOff(left)) => Some(left),
            _ => None,
        };
        (machine.failures(), backs_off)
    }

    /// The reason of the last failure with the app's last lines of output.
    pub(crate) fn last_error(&self) -> Option<String> {
        let machine = self.machine();
        let error = machine.last_error()?;
        let mut text = error.reason.clone();
        for line in &error.output {
            text.push_str("\n  ");
            text.push_str(line);
        }
        Some(text)
    }

    pub(crate) fn latency_us(&self) -> u32 {
        self.latency_us.load(Ordering::Relaxed)
    }

    /// Notes how long a request took to its response's head.
    pub(crate) fn measured(&self, took: Duration) {
        let sample = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        let old = self.latency_us.load(Ordering::Relaxed);
        let smoothed = if old == 0 { sample } else { old - old / 8 + sample / 8 };
        self.latency_us.store(smoothed.max(1), Ordering::Relaxed);
    }

    /// The ready copy, with this request of `flow` counted as in flight.
    /// Whether that counts as a use of the copy under the app's policy, `is_use` says.
    pub(crate) fn enter(
        self: &Arc<Self>,
        is_use: impl Fn(&AppPolicy) -> bool,
        flow: Flow,
    ) -> Result<(Arc<Copy>, InFlight), NoEntry> {
        loop {
            let copy = self.copy.load_full().ok_or(NoEntry::NotReady)?;
            let before = copy.in_flight.fetch_add(1, Ordering::AcqRel);
            self.in_flight.fetch_add(1, Ordering::Relaxed);
            let (copy_of, slot) = (Arc::clone(&copy), Arc::clone(self));
            let mut entered = InFlight { copy: copy_of, slot, client: None };
            let (places, share, is_use) = {
                let policy = &self.spec().policy;
                let share = policy.share().filter(|_| is_known(flow));
                (policy.concurrency, share, is_use(policy))
            };
            if places.is_some_and(|places| before >= places) {
                return Err(NoEntry::Full);
            }
            if let Some(share) = share {
                if !copy.shares.take(flow.client, share) {
                    return Err(NoEntry::Full);
                }
                entered.client = Some(flow.client);
            }
            // Either this sees that the copy was taken out of service meanwhile, or the task that took
            // it out sees the count: with the fence in `Copy::emptied` not neither.
            fence(Ordering::SeqCst);
            if self.copy.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, &copy)) {
                if is_use {
                    self.used_at.store(self.clock.now().0, Ordering::Relaxed);
                }
                return Ok((copy, entered));
            }
        }
    }

    /// How many requests the copy here is serving; requests that former copies still serve take no
    /// place.
    pub(crate) fn in_flight_here(&self) -> u32 {
        self.copy.load().as_ref().map_or(0, |copy| copy.in_flight.load(Ordering::Relaxed))
    }

    /// How busy the copy here is with all requests, and with those of `flow`, under `policy`.
    pub(crate) fn doing(&self, policy: &AppPolicy, flow: Flow) -> Doing {
        let copy = self.copy.load();
        let Some(copy) = copy.as_ref() else { return Doing::default() };
        let in_flight = copy.in_flight.load(Ordering::Relaxed);
        let share = policy.share().filter(|_| is_known(flow));
        Doing {
            in_flight,
            awaiting: copy.awaiting.load(Ordering::Relaxed),
            is_full: policy.concurrency.is_some_and(|places| in_flight >= places),
            is_shut: share.is_some_and(|share| copy.shares.of(flow.client) >= share),
        }
    }

    /// How many requests in flight this peer announces. If the app starts further copies when its
    /// copies are busy, the number tells the others whether this copy is.
    pub(crate) fn announced_in_flight(&self) -> u32 {
        let (in_flight, spec) = (self.in_flight.load(Ordering::Relaxed), self.spec());
        let (Some(scale), Some(places)) = (spec.policy.scale, spec.policy.concurrency) else {
            return in_flight;
        };
        let from = busy_from(scale, places);
        if self.is_busy() { in_flight.max(from) } else { in_flight.min(from - 1) }
    }

    /// Whether the copy here has been busy for a while.
    pub(crate) fn is_busy(&self) -> bool {
        self.busyness().is_busy()
    }

    fn busyness(&self) -> MutexGuard<'_, Busyness> {
        self.busyness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Samples how busy the copy here is, and announces changes to the mesh.
    pub(crate) fn look_whether_busy(&self) {
        let spec = self.spec();
        let (Some(scale), Some(places)) = (spec.policy.scale, spec.policy.concurrency) else {
            return;
        };
        let waiting = u32::try_from(self.places.waiting()).unwrap_or(u32::MAX);
        let load = self.in_flight_here().saturating_add(waiting);
        let change = self.busyness().look(load, busy_from(scale, places), self.clock.now());
        if let Some(busy) = change {
            info!(app = %self.name(), busy, "the other peers are informed how busy the copy here is");
            let _starting = self.starting();
            (self.publish)(self);
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// How long the copy here has served no request.
    pub(crate) fn idle_for(&self) -> Duration {
        if self.in_flight_here() > 0 {
            return Duration::ZERO;
        }
        let used_at = Now(self.used_at.load(Ordering::Relaxed));
        self.clock.now().since(used_at.max(self.ready_at()))
    }

    /// A request wants this app here.
    pub(crate) fn wanted(self: &Arc<Self>, by: WantedBy) {
        self.tell(AppEvent::Wanted(by));
    }

    /// Whether this peer is among those that keep the app ready.
    pub(crate) fn keep(self: &Arc<Self>, kept: bool) {
        if kept || self.machine().is_kept() {
            self.tell(AppEvent::Keep(kept));
        }
    }

    /// Gives the machine an event and carries out what it decides.
    pub(crate) fn tell(self: &Arc<Self>, event: AppEvent) {
        self.carry_out(event, &mut self.starting());
    }

    fn carry_out(self: &Arc<Self>, event: AppEvent, starting: &mut Starting) {
        let mut changed = false;
        let effects = {
            let in_flight = self.in_flight.load(Ordering::Relaxed);
            let mut machine = self.machine();
            machine.used(Now(self.used_at.load(Ordering::Relaxed)));
            machine.on(event, self.clock.now(), in_flight)
        };
        for effect in effects {
            match effect {
                AppEffect::Start { attempt } => self.start(attempt, starting),
                AppEffect::CancelStart { attempt } => self.cancel_start(attempt, starting),
                AppEffect::Stop { attempt, grace } => self.stop(attempt, grace),
                AppEffect::EndNow { attempt } => self.end_now(attempt),
                AppEffect::Changed => changed = true,
            }
        }
        if changed {
            self.publish();
            self.changed.send_modify(|count| *count += 1);
        }
        self.ticker.notify_one();
    }

    fn start(self: &Arc<Self>, attempt: u64, starting: &mut Starting) {
        // Registers are no app, and are ready at once.
        if !self.keeps_registers {
            info!(app = %self.name(), attempt, "starting");
            self.metrics.app_starts.get_or_create(&self.label()).inc();
        }
        let slot = Arc::clone(self);
        let app = Arc::clone(&self.app.lock().unwrap_or_else(PoisonError::into_inner));
        let version = self.spec().version.clone();
        let task = tokio::spawn(async move {
            let began = slot.clock.now();
            let context = StartContext { app: slot.name().clone(), peer: slot.me.clone() };
            let outcome = app.start(context).await;
            let mut starting = slot.starting();
            if starting.as_ref().is_none_or(|(current, _)| *current != attempt) {
                drop(starting);
                // Cancelled in the same instant. In a task of its own, since this one may be
                // aborted.
                if let Ok(running) = outcome {
                    tokio::spawn((running.stop)(slot.spec().policy.stop_grace));
                }
                return;
            }
            *starting = None;
            match outcome {
                Ok(running) => slot.started(attempt, version, running, began, &mut starting),
                Err(error) => slot.start_failed(attempt, error, &mut starting),
            }
        });
        *starting = Some((attempt, task.abort_handle()));
    }

    fn cancel_start(&self, attempt: u64, starting: &mut Starting) {
        if let Some((_, task)) = starting.take_if(|(current, _)| *current == attempt) {
            warn!(app = %self.name(), attempt, "the start was cancelled");
            task.abort();
        }
    }

    fn started(
        self: &Arc<Self>,
        attempt: u64,
        version: Option<AppVersion>,
        running: Running,
        began: Now,
        starting: &mut Starting,
    ) {
        let took = self.clock.now().since(began);
        if !self.keeps_registers {
            info!(app = %self.name(), attempt, took_ms = took.as_millis() as u64, "ready");
            self.metrics.app_start_seconds.get_or_create(&self.label()).observe(took.as_secs_f64());
        }
        version.iter().for_each(|version| self.hears(version));
        let Running { service, stop, exited, ask, carried, whole } = running;
        let copy = Arc::new(Copy {
            attempt,
            version,
            service,
            whole,
            carried,
            in_flight: AtomicU32::new(0),
            shares: Shares::default(),
            idle: Notify::new(),
            stop: Mutex::new(Some(stop)),
            tunnels: CopyTunnels::default(),
            awaiting: AtomicU32::new(0),
            answered: AtomicU64::new(0),
            failed_in_a_row: AtomicU32::new(0),
            took_head: AtomicUsize::new(0),
            hangs: AtomicBool::new(false),
            given_up: Notify::new(),
            ends_now: Notify::new(),
        });
        self.ready_at.store(self.clock.now().0, Ordering::Relaxed);
        // A copy that has served until now is stopped by the event below.
        *self.replaced() = self.copy.swap(Some(Arc::clone(&copy)));
        self.carry_out(AppEvent::Started { attempt }, starting);
        let slot = Arc::clone(self);
        let watched = ask.map(|ask| {
            tokio::spawn(health::watch(Arc::clone(self), Arc::clone(&copy), ask)).abort_handle()
        });
        tokio::spawn(async move {
            let ended = exited.await;
            if let Some(watched) = watched {
                watched.abort();
            }
            slot.ended(&copy, ended);
        });
    }

    fn ended(self: &Arc<Self>, copy: &Arc<Copy>, ended: Ended) {
        let mut starting = self.starting();
        if !self.take_out(copy) {
            // It is being stopped, and the task that does so reports when it is done.
            return;
        }
        let (attempt, Ended { reason, in_good_order }) = (copy.attempt, ended);
        let failed = !(in_good_order && copy.has_served());
        if failed {
            warn!(app = %self.name(), attempt, reason, "the copy exited by itself");
            self.count_failure();
        } else {
            info!(app = %self.name(), attempt, "the copy exited by itself after it had served");
        }
        self.carry_out(AppEvent::Exited { attempt, reason, failed }, &mut starting);
    }

    fn count_failure(&self) {
        self.failed_starts.fetch_add(1, Ordering::Relaxed);
        self.metrics.app_failures.get_or_create(&self.label()).inc();
    }

    /// When the last copy here became ready; 0 if none has.
    pub(crate) fn ready_at(&self) -> Now {
        Now(self.ready_at.load(Ordering::Relaxed))
    }

    /// How many starts have failed, and copies ended with an error, here in total.
    pub(crate) fn failed_starts(&self) -> u32 {
        self.failed_starts.load(Ordering::Relaxed)
    }

    /// Counts a start that failed on another peer.
    pub(crate) fn fails_elsewhere(&self) {
        self.failed_elsewhere.fetch_add(1, Ordering::Relaxed);
    }

    /// How many starts elsewhere have failed, as far as this peer has heard.
    pub(crate) fn failed_elsewhere(&self) -> u32 {
        self.failed_elsewhere.load(Ordering::Relaxed)
    }

    /// How long until the next start begins by itself: the rest of a back-off.
    pub(crate) fn starts_in(&self) -> Option<Duration> {
        self.machine().starts_in(self.clock.now())
    }

    /// Takes the copy out of service, if it is the one that serves, or is unwell.
    fn take_out(&self, copy: &Arc<Copy>) -> bool {
        if self.copy.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, copy)) {
            self.copy.store(None);
            return true;
        }
        self.aside().take_if(|aside| Arc::ptr_eq(aside, copy)).is_some()
    }

    fn replaced(&self) -> MutexGuard<'_, Option<Arc<Copy>>> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn aside(&self) -> MutexGuard<'_, Option<Arc<Copy>>> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The copy no longer takes requests: it refuses connections.
    pub(crate) fn refuses(self: &Arc<Self>, copy: &Arc<Copy>, reason: &str) {
        let mut starting = self.starting();
        // Many requests may find that out at once.
        if self.copy.load().as_ref().is_none_or(|current| !Arc::ptr_eq(current, copy)) {
            return;
        }
        let (attempt, failed) = (copy.attempt, !copy.has_served());
        info!(app = %self.name(), attempt, reason, "the copy is out of service: it takes no more requests");
        let event = AppEvent::Lost { attempt, reason: reason.to_owned(), failed };
        self.carry_out(event, &mut starting);
    }

    /// The copy hangs, or answers nobody for another reason.
    pub(crate) fn hangs(self: &Arc<Self>, copy: &Arc<Copy>, reason: &str) {
        let mut starting = self.starting();
        if !self.holds(copy) {
            return;
        }
        let attempt = copy.attempt;
        warn!(app = %self.name(), attempt, reason, "the copy gives no answer: it is killed, and another one starts");
        self.count_failure();
        copy.hangs.store(true, Ordering::SeqCst);
        copy.given_up.notify_waiters();
        let event = AppEvent::Lost { attempt, reason: reason.to_owned(), failed: true };
        self.carry_out(event, &mut starting);
    }

    /// The copy reports that it cannot serve.
    pub(crate) fn unwell(self: &Arc<Self>, copy: &Arc<Copy>, reason: &str) {
        let mut starting = self.starting();
        if self.take_out(copy) {
            let attempt = copy.attempt;
            warn!(app = %self.name(), attempt, reason, "the copy is out of service until its health check succeeds");
            *self.aside() = Some(Arc::clone(copy));
            self.carry_out(AppEvent::Unwell { attempt, reason: reason.to_owned() }, &mut starting);
        }
    }

    /// The copy reports that it can serve again.
    pub(crate) fn well(self: &Arc<Self>, copy: &Arc<Copy>) {
        let mut starting = self.starting();
        let aside = self.aside().take_if(|aside| Arc::ptr_eq(aside, copy));
        if let Some(copy) = aside {
            let attempt = copy.attempt;
            info!(app = %self.name(), attempt, "the copy is in service again: its health check succeeds");
            self.copy.store(Some(copy));
            self.carry_out(AppEvent::Well { attempt }, &mut starting);
        }
    }

    /// Whether the copy of this attempt serves, or is unwell, and is not being stopped.
    pub(crate) fn holds_attempt(&self, attempt: u64) -> bool {
        self.copy.load().as_ref().is_some_and(|current| current.attempt == attempt)
            || self.aside().as_ref().is_some_and(|aside| aside.attempt == attempt)
    }

    /// Whether the copy serves, or is unwell, and is not being stopped.
    pub(crate) fn holds(&self, copy: &Arc<Copy>) -> bool {
        self.copy.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, copy))
            || self.aside().as_ref().is_some_and(|aside| Arc::ptr_eq(aside, copy))
    }

    pub(crate) fn now(&self) -> Now {
        self.clock.now()
    }

    fn start_failed(self: &Arc<Self>, attempt: u64, error: StartError, starting: &mut Starting) {
        let StartError { reason, output, .. } = error;
        let why = reason.clone();
        self.count_failure();
        self.carry_out(AppEvent::StartFailed { attempt, reason, output }, starting);
        let (failures, backs_off) = self.failures();
        let next_try_ms = backs_off.map_or(0, |left| left.as_millis() as u64);
        warn!(app = %self.name(), attempt, failures, next_try_ms, reason = why, "the app did not start");
    }

    /// Ticks the machine when it asks to be woken; runs as long as the peer.
    pub(crate) async fn tick(self: Arc<Self>) {
        loop {
            if self.is_retired() && self.has_ended() {
                return;
            }
            let wake = self.machine().next_wake();
            match wake {
                Some(at) => {
                    let span = at.since(self.clock.now());
                    tokio::select! {
                        () = tokio::time::sleep(span) => self.tell(AppEvent::Tick),
                        () = self.ticker.notified() => {}
                    }
                }
                None => self.ticker.notified().await,
            }
        }
    }

    fn label(&self) -> ByApp {
        ByApp { app: self.name().to_string() }
    }
}

#[cfg(test)]
mod tests;
