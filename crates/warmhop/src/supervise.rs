//! One app on this peer: carries out what the core's `AppMachine` decides, and hands out its
//! service while it is ready.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tracing::{info, warn};
use warmhop_core::app::{AppEffect, AppEvent, AppMachine, WantedBy};
use warmhop_core::ids::{AppName, Now, PeerId};
use warmhop_core::view::AppState;

use crate::app::{App, AppService, AppSpec, Running, StartContext, StartError};
use crate::clock::Clock;
use crate::telemetry::{ByApp, Metrics};

type StopFn = Box<dyn FnOnce(Duration) -> futures_util::future::BoxFuture<'static, ()> + Send>;

/// One running copy.
pub(crate) struct Copy {
    pub(crate) attempt: u64,
    pub(crate) service: AppService,
    /// Whether the app speaks the carried `Warmhop-Session` field.
    pub(crate) carried: bool,
    in_flight: AtomicU32,
    idle: Notify,
    stop: Mutex<Option<StopFn>>,
}

/// Counts one request in flight at a copy until it is dropped.
pub(crate) struct InFlight {
    copy: Arc<Copy>,
    slot: Arc<Slot>,
}

impl InFlight {
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
    }
}

/// One app on this peer.
pub(crate) struct Slot {
    pub(crate) spec: AppSpec,
    /// No app that clients reach: it executes what is asked of registers.
    pub(crate) keeps_registers: bool,
    app: Arc<dyn App>,
    me: PeerId,
    clock: Clock,
    metrics: Arc<Metrics>,
    machine: Mutex<AppMachine>,
    copy: ArcSwapOption<Copy>,
    starting: Mutex<Option<(u64, AbortHandle)>>,
    /// When a request last came, in the clock's milliseconds.
    used_at: AtomicU64,
    pub(crate) in_flight: AtomicU32,
    pub(crate) waiting: AtomicUsize,
    /// A smoothed time to the response's head, in microseconds; 0 before the first.
    latency_us: AtomicU32,
    ticker: Notify,
    /// Told of every change of state.
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
        Arc::new(Self {
            spec,
            keeps_registers,
            app,
            me,
            clock,
            metrics,
            machine: Mutex::new(machine),
            copy: ArcSwapOption::empty(),
            starting: Mutex::new(None),
            used_at: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            waiting: AtomicUsize::new(0),
            latency_us: AtomicU32::new(0),
            ticker: Notify::new(),
            changed,
            publish,
        })
    }

    pub(crate) fn name(&self) -> &AppName {
        &self.spec.name
    }

    fn machine(&self) -> MutexGuard<'_, AppMachine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> AppState {
        // The service decides: between the machine's word and the swap nobody is misled.
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

    /// How long the start under way has taken so far.
    pub(crate) fn starting_for(&self) -> Option<Duration> {
        self.machine().starting_for(self.clock.now())
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

    /// The ready copy, with this request counted as in flight; `None` if there is none.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<(Arc<Copy>, InFlight)> {
        let copy = self.copy.load_full()?;
        copy.in_flight.fetch_add(1, Ordering::AcqRel);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.used_at.store(self.clock.now().0, Ordering::Relaxed);
        Some((Arc::clone(&copy), InFlight { copy, slot: Arc::clone(self) }))
    }

    /// A request wants this app here.
    pub(crate) fn wanted(self: &Arc<Self>, by: WantedBy) {
        self.tell(AppEvent::Wanted(by));
    }

    /// Tells the mesh of this app for the first time.
    pub(crate) fn announce(&self) {
        (self.publish)(self);
    }

    /// Whether it is ready or being started.
    pub(crate) fn is_under_way(&self) -> bool {
        matches!(self.state(), AppState::Ready | AppState::Starting)
    }

    /// Why a wish to start it would not be heeded.
    pub(crate) fn why_not_start(&self, by: WantedBy) -> Option<String> {
        self.machine().why_not_start(by, self.clock.now()).map(|why| why.to_string())
    }

    /// Gives the machine an event and carries out what it decides.
    pub(crate) fn tell(self: &Arc<Self>, event: AppEvent) {
        let mut changed = false;
        let effects = {
            let in_flight = self.in_flight.load(Ordering::Relaxed);
            let mut machine = self.machine();
            machine.used(Now(self.used_at.load(Ordering::Relaxed)));
            machine.on(event, self.clock.now(), in_flight)
        };
        for effect in effects {
            match effect {
                AppEffect::Start { attempt } => self.start(attempt),
                AppEffect::CancelStart { attempt } => self.cancel_start(attempt),
                AppEffect::Stop { attempt, grace } => self.stop(attempt, grace),
                AppEffect::Changed => changed = true,
            }
        }
        if changed {
            (self.publish)(self);
            self.changed.send_modify(|count| *count += 1);
        }
        self.ticker.notify_one();
    }

    fn start(self: &Arc<Self>, attempt: u64) {
        info!(app = %self.name(), attempt, "starting");
        self.metrics.app_starts.get_or_create(&self.label()).inc();
        let slot = Arc::clone(self);
        // The lock is held until the handle is stored, so a quick start cannot overtake it.
        let mut starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        let task = tokio::spawn(async move {
            let began = slot.clock.now();
            let context = StartContext { app: slot.name().clone(), peer: slot.me.clone() };
            let outcome = slot.app.start(context).await;
            {
                let mut starting = slot.starting.lock().unwrap_or_else(PoisonError::into_inner);
                match &*starting {
                    Some((current, _)) if *current == attempt => *starting = None,
                    _ => return, // Cancelled in the same instant: what it yields is dropped.
                }
            }
            let took = slot.clock.now().since(began);
            match outcome {
                Ok(running) => slot.started(attempt, running, took),
                Err(error) => slot.start_failed(attempt, error),
            }
        });
        *starting = Some((attempt, task.abort_handle()));
    }

    fn cancel_start(&self, attempt: u64) {
        let mut starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if starting.as_ref().is_some_and(|(current, _)| *current == attempt)
            && let Some((_, task)) = starting.take()
        {
            warn!(app = %self.name(), attempt, "start cancelled");
            task.abort();
        }
    }

    fn started(self: &Arc<Self>, attempt: u64, running: Running, took: Duration) {
        info!(app = %self.name(), attempt, took_ms = took.as_millis() as u64, "ready");
        self.metrics.app_start_seconds.get_or_create(&self.label()).observe(took.as_secs_f64());
        let Running { service, stop, exited, carried } = running;
        let copy = Arc::new(Copy {
            attempt,
            service,
            carried,
            in_flight: AtomicU32::new(0),
            idle: Notify::new(),
            stop: Mutex::new(Some(stop)),
        });
        self.copy.store(Some(copy));
        self.tell(AppEvent::Started { attempt });
        let slot = Arc::clone(self);
        tokio::spawn(async move {
            let reason = exited.await;
            let is_current = slot.copy.load().as_ref().is_some_and(|copy| copy.attempt == attempt);
            if is_current {
                warn!(app = %slot.name(), attempt, reason, "ended by itself");
                slot.metrics.app_failures.get_or_create(&slot.label()).inc();
                slot.copy.store(None);
            }
            slot.tell(AppEvent::Exited { attempt, reason });
        });
    }

    fn start_failed(self: &Arc<Self>, attempt: u64, error: StartError) {
        let StartError { reason, output } = error;
        warn!(app = %self.name(), attempt, reason, "did not start");
        self.metrics.app_failures.get_or_create(&self.label()).inc();
        self.tell(AppEvent::StartFailed { attempt, reason, output });
    }

    /// Takes the copy out of service, lets its requests end, stops it.
    fn stop(self: &Arc<Self>, attempt: u64, grace: Duration) {
        self.cancel_start(attempt);
        let copy = self.copy.load_full().filter(|copy| copy.attempt == attempt);
        let slot = Arc::clone(self);
        if copy.is_some() {
            self.copy.store(None);
        }
        tokio::spawn(async move {
            if let Some(copy) = copy {
                info!(app = %slot.name(), attempt, "stopping");
                let emptied = tokio::time::timeout(grace, copy.emptied()).await;
                if emptied.is_err() {
                    warn!(app = %slot.name(), attempt, "requests outlasted the grace time");
                }
                let stop = copy.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(stop) = stop {
                    stop(grace).await;
                }
            }
            slot.tell(AppEvent::Stopped { attempt });
        });
    }

    /// Ticks the machine when it asks to be woken; runs as long as the peer.
    pub(crate) async fn tick(self: Arc<Self>) {
        loop {
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

impl Copy {
    async fn emptied(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.in_flight.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}
