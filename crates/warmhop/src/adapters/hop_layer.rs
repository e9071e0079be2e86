//! The mesh as a [`tower::Layer`], for a service that starts by itself, answers its clients through
//! an HTTP server of its own, and wants only the hop: while it is not ready its requests are
//! answered by a peer where it is.
//!
//! ```text
//!                 the service is ready here
//! request ─▶ HopService ──────────────────────────▶ the inner service, untouched
//!                 │ it is not: the mesh                    ▲
//!                 └──▶ ingress ── hop ──▶ another peer ────┘ there
//! ```
//!
//! To the rest of the mesh it is an app like any other, whose start is the wait for readiness. This
//! module owns that wait and the choice between the two ways; where a request hops to is none of
//! its business.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared as SharedFuture};
use http::{Request, Response};
use tokio::sync::watch;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt};
use warmhop_core::app::{AppEvent, StopReason, WantedBy};
use warmhop_core::config::{SessionMode, StartMode};
use warmhop_core::queue::Flow;
use warmhop_core::view::AppState;

use crate::app::slot::{InFlight, Slot};
use crate::app::{App, AppService, AppSpec, Running, StartContext, StartError};
use crate::front::ingress::Ingress;
use crate::http::body::{Body, BoxError};
use crate::http::client::ClientInfo;

/// The readiness of a service that starts by itself, which the service sets as often as it changes.
/// Clones are one signal.
///
/// ```
/// let readiness = warmhop::Readiness::new();
/// assert!(!readiness.is_ready());
/// readiness.set(true);
/// assert!(readiness.clone().is_ready());
/// ```
#[derive(Debug, Clone)]
pub struct Readiness(watch::Sender<bool>);

impl Readiness {
    /// A signal that is not ready yet.
    #[must_use]
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Sets whether the service can answer from now on. When it no longer can, requests under way
    /// continue, and later ones hop.
    pub fn set(&self, ready: bool) {
        self.0.send_if_modified(|was| std::mem::replace(was, ready) != ready);
    }

    /// The value that was set last.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.0.borrow()
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

/// A [`tower::Layer`] that sends a service's requests to a peer where the service is ready, until
/// it is ready here. From then on the inner service gets them as they came, at the cost of a few
/// atomic operations.
///
/// The service counts as ready once all of these hold: what [`HopLayer::ready_when`] was given has
/// resolved, what [`HopLayer::readiness`] was given says so, and the inner service's own
/// `poll_ready` has returned `Ready` once.
///
/// It wraps a *whole* service, once: with axum, `layer.layer(router)` and not
/// `router.layer(layer)`, which would wrap each route by itself.
///
/// ```
/// use axum::{Router, routing::get};
/// use tower::{Layer, ServiceExt};
/// use warmhop::ids::AppName;
/// use warmhop::{AppSpec, Body, HopLayer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let hop = HopLayer::new(AppSpec::new(AppName::new("search")?)).ready_when(async {
///     // Whatever takes long.
///     Ok::<_, std::io::Error>(())
/// });
/// // A peer joins the service to the others: `Mesh::builder(…).hop_layer(&hop).start()`.
/// let service = hop.layer(Router::new().route("/", get(|| async { "found" })));
/// // With axum's server: `axum::serve(listener, Router::new().fallback_service(service))`.
///
/// let response = service.oneshot(http::Request::get("/").body(Body::empty())?).await?;
/// assert_eq!(response.status(), 200);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct HopLayer(Arc<Shared>);

struct Shared {
    spec: AppSpec,
    readiness: Option<Readiness>,
    ready_when: Option<SharedFuture<BoxFuture<'static, Result<(), String>>>>,
    /// The service that the layer wraps, for what hops here.
    inner: OnceLock<AppService>,
    wrapped: watch::Sender<bool>,
    /// The peer, while it runs. Weak, because its slot holds this.
    joined: ArcSwapOption<Joined>,
}

/// A layer's place in a running peer.
struct Joined {
    ingress: Weak<Ingress>,
    slot: Weak<Slot>,
}

/// Who answers a request.
enum Way {
    /// The inner service, counted where a peer runs.
    Inner(Option<InFlight>),
    /// Any peer that the mesh finds.
    Mesh(Arc<Ingress>, Arc<Slot>),
}

impl HopLayer {
    /// A layer for the service that the mesh knows under `spec`'s name.
    ///
    /// Of `spec`'s policy, the mesh has no say in when the service starts or how long that takes:
    /// `start`, `start_timeout` and `stop_when_idle` are not heeded. Its host and path choose it at
    /// the mesh's own front doors, if there are any; what comes through the layer is its own.
    ///
    /// With a `session` other than [`SessionMode::None`] every request goes through the mesh, also
    /// where the service is ready, because the mesh keeps the session around it.
    #[must_use]
    pub fn new(mut spec: AppSpec) -> Self {
        spec.policy.start = StartMode::AtBoot;
        spec.policy.start_timeout = Duration::MAX;
        spec.policy.stop_when_idle = None;
        Self(Arc::new(Shared {
            spec,
            readiness: None,
            ready_when: None,
            inner: OnceLock::new(),
            wrapped: watch::Sender::new(false),
            joined: ArcSwapOption::empty(),
        }))
    }

    /// Not ready before `started` has resolved; an error means never, and is shown where the app's
    /// state is. The future is polled from the peer's start on, once.
    ///
    /// # Panics
    /// If the layer was cloned or has wrapped its service already.
    #[must_use]
    pub fn ready_when<F, E>(mut self, started: F) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        let started = started.map(|outcome| outcome.map_err(|error| error.to_string()));
        self.unshared().ready_when = Some(started.boxed().shared());
        self
    }

    /// Ready only while `readiness` says so.
    ///
    /// # Panics
    /// If the layer was cloned or has wrapped its service already.
    #[must_use]
    pub fn readiness(mut self, readiness: &Readiness) -> Self {
        self.unshared().readiness = Some(readiness.clone());
        self
    }

    fn unshared(&mut self) -> &mut Shared {
        Arc::get_mut(&mut self.0)
            .expect("readiness is configured before the layer is cloned or wraps a service")
    }

    pub(crate) fn spec(&self) -> AppSpec {
        self.0.spec.clone()
    }

    pub(crate) fn app(&self) -> impl App {
        Layered(Arc::clone(&self.0))
    }

    /// Joins the layer to a running peer at once, and follows its readiness until dropped, which
    /// takes it from the peer again.
    pub(crate) fn join(
        &self,
        ingress: Arc<Ingress>,
        slot: Arc<Slot>,
    ) -> impl Future<Output = ()> + use<> {
        let joined = Joined { ingress: Arc::downgrade(&ingress), slot: Arc::downgrade(&slot) };
        self.0.joined.store(Some(Arc::new(joined)));
        let readiness = self.0.readiness.clone();
        async move {
            // What the layer knows of the peer lives as long as this: it holds `ingress`.
            let mut changes = ingress.node.changed.subscribe();
            let Some(readiness) = readiness else { return std::future::pending().await };
            let mut signal = readiness.0.subscribe();
            loop {
                let ready = *signal.borrow_and_update();
                slot.wanted(WantedBy::Boot);
                loop {
                    // A start may have seen the signal just before it was taken back.
                    if !ready && slot.state() == AppState::Ready {
                        // The next start follows at once, and waits for the signal again.
                        slot.tell(AppEvent::StopWanted(StopReason::Operator));
                        slot.wanted(WantedBy::Boot);
                    }
                    // The senders cannot be gone: they are held here.
                    tokio::select! {
                        _ = signal.changed() => break,
                        _ = changes.changed() => {}
                    }
                }
            }
        }
    }
}

impl fmt::Debug for HopLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HopLayer({})", self.0.spec.name)
    }
}

impl Shared {
    /// Whether the service itself is ready, whatever its peer's state.
    fn says_ready(&self) -> bool {
        self.readiness.as_ref().is_none_or(Readiness::is_ready)
            && self.ready_when.as_ref().is_none_or(|started| matches!(started.peek(), Some(Ok(()))))
    }

    fn way(&self) -> Way {
        let joined = self.joined.load();
        let peer = joined
            .as_deref()
            .and_then(|joined| Some((joined.ingress.upgrade()?, joined.slot.upgrade()?)));
        // Before the peer starts and after it has ended there is nobody else to ask.
        let Some((ingress, slot)) = peer else { return Way::Inner(None) };
        if self.spec.policy.session != SessionMode::None {
            return Way::Mesh(ingress, slot);
        }
        // No front door has determined its client yet.
        match slot.enter(|_| true, Flow::default()) {
            Ok((_, guard)) => Way::Inner(Some(guard)),
            // A peer that leaves has taken its apps out of the mesh; this one is still at work.
            Err(_) if ingress.node.is_draining() && self.says_ready() => Way::Inner(None),
            Err(_) => Way::Mesh(ingress, slot),
        }
    }
}

/// The layer's service as an app, whose start is the wait for its readiness.
struct Layered(Arc<Shared>);

#[async_trait::async_trait]
impl App for Layered {
    async fn start(&self, _: StartContext) -> Result<Running, StartError> {
        let failed = |reason: String| StartError::new(reason);
        let shared = &self.0;
        // The senders of both signals are held by what is shared: neither wait can fail.
        let _ = shared.wrapped.subscribe().wait_for(|wrapped| *wrapped).await;
        if let Some(started) = shared.ready_when.clone() {
            started.await.map_err(failed)?;
        }
        if let Some(readiness) = &shared.readiness {
            let _ = readiness.0.subscribe().wait_for(|ready| *ready).await;
        }
        let service = shared.inner.get().expect("`wrapped` is set once `inner` is");
        // The clone that was polled ready holds whatever `poll_ready` reserved.
        service.clone().ready().await.map_err(|error| failed(error.to_string()))?;
        Ok(Running::new(service.clone()))
    }
}

/// A service wrapped by a [`HopLayer`].
#[derive(Clone)]
pub struct HopService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> fmt::Debug for HopService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HopService({})", self.shared.spec.name)
    }
}

impl<S, B> Layer<S> for HopLayer
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Service = HopService<S>;

    /// # Panics
    /// When called a second time: a peer could not tell which of the two services a request that
    /// hops to it is for.
    fn layer(&self, inner: S) -> HopService<S> {
        let service = inner
            .clone()
            .map_response(|response: Response<B>| response.map(Body::new))
            .map_err(Into::into);
        assert!(
            self.0.inner.set(BoxCloneSyncService::new(service)).is_ok(),
            "a HopLayer wraps one whole service: with axum `layer.layer(router)`, not \
             `router.layer(layer)`, which wraps each route by itself",
        );
        self.0.wrapped.send_replace(true);
        HopService { inner, shared: Arc::clone(&self.0) }
    }
}

impl<S, B, A> Service<Request<A>> for HopService<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    A: http_body::Body<Data = Bytes> + Send + 'static,
    A::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    /// Always ready: only the request decides who answers it. If the inner service does, the
    /// request waits for it.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let request = request.map(Body::new);
        match self.shared.way() {
            Way::Inner(guard) => {
                let answering = self.inner.clone().oneshot(request);
                Box::pin(async move {
                    let began = tokio::time::Instant::now();
                    let response = answering.await?.map(Body::new);
                    Ok(match guard {
                        Some(guard) => {
                            guard.measured(began.elapsed());
                            response.map(|body| body.guarded(guard))
                        }
                        None => response,
                    })
                })
            }
            Way::Mesh(ingress, slot) => Box::pin(async move {
                let client = request.extensions().get::<ClientInfo>().copied().unwrap_or_default();
                Ok(ingress.handle_for(&slot, request, client).await)
            }),
        }
    }
}
