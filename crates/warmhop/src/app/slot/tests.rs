use std::convert::Infallible;

use futures_util::FutureExt;

use http::Response;
use prometheus_client::registry::Registry;
use warmhop_core::app::{LEAVING_MAX, StopReason};
use warmhop_core::config::StartMode;

use super::*;
use crate::app::app_fn;
use crate::http::body::Body;

type Publish = Box<dyn Fn(&Slot) + Send + Sync>;

fn slot(app: impl App, publish: Publish) -> Arc<Slot> {
    let mut spec = AppSpec::new(AppName::new("shop").unwrap());
    spec.policy.start = StartMode::OnRequest;
    Slot::new(
        spec,
        false,
        Arc::new(app),
        PeerId::new("one").unwrap(),
        Clock::ahead(0),
        Arc::new(Metrics::register(&mut Registry::default())),
        watch::Sender::new(0),
        publish,
    )
}

/// Is ready at once.
fn quick() -> impl App {
    app_fn(|| async {
        Ok::<_, Infallible>(tower::service_fn(|_| async {
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }))
    })
}

async fn comes_to(slot: &Slot, state: AppState) {
    let mut changes = slot.changed.subscribe();
    let reached = changes.wait_for(|_| slot.machine().state() == state);
    let reached = tokio::time::timeout(Duration::from_secs(20), reached).await;
    reached.unwrap_or_else(|_| panic!("never {state:?}")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_reported_state_is_the_current_one() {
    let seen: Arc<Mutex<Vec<AppState>>> = Arc::default();
    let publish: Publish = Box::new({
        let seen = Arc::clone(&seen);
        move |slot| {
            let state = slot.state();
            // This leaves time for the other worker to come between.
            std::thread::sleep(Duration::from_millis(2));
            seen.lock().unwrap().push(state);
        }
    });
    let slot = slot(quick(), publish);
    for _ in 0..10 {
        slot.wanted(WantedBy::Request);
        comes_to(&slot, AppState::Ready).await;
        slot.tell(AppEvent::StopWanted(StopReason::Operator));
        comes_to(&slot, AppState::Cold).await;
    }
    // The last of it was announced once this is free.
    drop(slot.starting());
    let seen = seen.lock().unwrap();
    let round = [AppState::Starting, AppState::Ready, AppState::Stopping, AppState::Cold];
    assert_eq!(*seen, round.repeat(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_is_given_up_as_it_succeeds_leaves_no_copy() {
    let counts = Counts::default();
    let slot = slot(counts.clone(), Box::new(|_| ()));
    for round in 0..5_000 {
        slot.wanted(WantedBy::Request);
        // At any moment while the other worker starts it.
        for _ in 0..round % 500 {
            std::hint::spin_loop();
        }
        slot.tell(AppEvent::StopWanted(StopReason::Operator));
        comes_to(&slot, AppState::Cold).await;
        assert!(slot.copy.load().is_none(), "nobody will stop it");
    }
    let all_stopped = async {
        while counts.stopped.load(Ordering::SeqCst) < counts.started.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all_stopped).await.expect("each is stopped");
}

/// Counts its copies.
#[derive(Clone, Default)]
struct Counts {
    started: Arc<AtomicU32>,
    stopped: Arc<AtomicU32>,
}

#[async_trait::async_trait]
impl App for Counts {
    async fn start(&self, context: StartContext) -> Result<Running, StartError> {
        let running = quick().start(context).await?;
        self.started.fetch_add(1, Ordering::SeqCst);
        let stopped = Arc::clone(&self.stopped);
        Ok(running.on_stop(|_| async move {
            stopped.fetch_add(1, Ordering::SeqCst);
        }))
    }
}

/// It ends first when it is stopped, and then has work left to do.
struct EndsFirst(Arc<AtomicBool>);

#[async_trait::async_trait]
impl App for EndsFirst {
    async fn start(&self, context: StartContext) -> Result<Running, StartError> {
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let done = Arc::clone(&self.0);
        let running = quick().start(context).await?.on_stop(|_| async move {
            drop(end);
            tokio::time::sleep(Duration::from_millis(20)).await;
            done.store(true, Ordering::SeqCst);
        });
        Ok(running.exits_with(ended.map(|_| "as asked".to_owned())))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_stopped_when_its_stop_is_done_and_not_when_it_ends() {
    let done = Arc::new(AtomicBool::new(false));
    let slot = slot(EndsFirst(Arc::clone(&done)), Box::new(|_| ()));
    slot.wanted(WantedBy::Request);
    comes_to(&slot, AppState::Ready).await;
    slot.tell(AppEvent::StopWanted(StopReason::Operator));
    comes_to(&slot, AppState::Cold).await;
    assert!(done.load(Ordering::SeqCst), "the rest of its stop was cut off");
    assert!(slot.last_error().is_none());
}

/// Its copies take no notice of being stopped.
#[derive(Clone, Default)]
struct Stubborn(Counts);

/// Counts a stop as done when it is dropped.
struct Ends(Arc<AtomicU32>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait::async_trait]
impl App for Stubborn {
    async fn start(&self, context: StartContext) -> Result<Running, StartError> {
        let running = quick().start(context).await?;
        self.0.started.fetch_add(1, Ordering::SeqCst);
        let ends = Ends(Arc::clone(&self.0.stopped));
        Ok(running.on_stop(|grace| async move {
            let _ends = ends;
            tokio::time::sleep(grace).await;
        }))
    }
}

/// Has so many copies served and stopped one after the other, while those before them still end.
async fn served_and_stopped(slot: &Arc<Slot>, times: u32) {
    for _ in 0..times {
        slot.wanted(WantedBy::Request);
        comes_to(slot, AppState::Ready).await;
        slot.tell(AppEvent::StopWanted(StopReason::Idle));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_copies_that_are_slow_to_stop() {
    const STARTS: u32 = 12;
    let app = Stubborn::default();
    let slot = slot(app.clone(), Box::new(|_| ()));
    let mut spec = AppSpec::clone(&slot.spec());
    spec.policy.stop_grace = Duration::from_secs(600);
    slot.change(spec, None, false);
    served_and_stopped(&slot, STARTS).await;
    let most = u32::try_from(LEAVING_MAX).unwrap();
    assert_eq!(app.0.started.load(Ordering::SeqCst), STARTS);
    assert_eq!(app.0.stopped.load(Ordering::SeqCst), STARTS - most, "no more than had to");
    // Likewise where requests keep the copies.
    let mut held = Vec::new();
    for _ in 0..STARTS {
        slot.wanted(WantedBy::Request);
        comes_to(&slot, AppState::Ready).await;
        held.push(slot.enter(|_| true, Flow::default()).expect("it is ready"));
        slot.tell(AppEvent::StopWanted(StopReason::Operator));
    }
    assert_eq!(app.0.stopped.load(Ordering::SeqCst), 2 * STARTS - most);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_in_a_copy_that_is_stopped() {
    let slot = slot(quick(), Box::new(|_| ()));
    let done = Arc::new(AtomicBool::new(false));
    let requests = std::thread::spawn({
        let (slot, done) = (Arc::clone(&slot), Arc::clone(&done));
        move || {
            let mut entered = 0;
            while !done.load(Ordering::Relaxed) {
                let Ok((copy, _in_flight)) = slot.enter(|_| true, Flow::default()) else {
                    continue;
                };
                entered += 1;
                for _ in 0..10 {
                    assert!(copy.stop.lock().unwrap().is_some(), "it was stopped");
                }
            }
            entered
        }
    });
    for _ in 0..2_000 {
        slot.wanted(WantedBy::Request);
        comes_to(&slot, AppState::Ready).await;
        slot.tell(AppEvent::StopWanted(StopReason::Operator));
        comes_to(&slot, AppState::Cold).await;
    }
    done.store(true, Ordering::Relaxed);
    assert_ne!(requests.join().unwrap(), 0);
    assert_eq!(slot.in_flight.load(Ordering::Relaxed), 0);
}
