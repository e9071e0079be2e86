//! An app as the mesh sees it: an asynchronous start that yields a tower service. Its supervision
//! is here too.

pub(crate) mod loads;
pub(crate) mod places;
pub(crate) mod session;
pub(crate) mod shares;
pub(crate) mod slot;
mod whole;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};
use warmhop_core::config::AppPolicy;
use warmhop_core::ids::{AppName, PeerId};
use warmhop_core::matching::{HostPattern, Match};
use warmhop_core::version::AppVersion;

pub use self::whole::{AnsweringWhole, AnswersWhole, WholeRequest};
use crate::http::body::{Body, BoxError};

/// A running app: a service from requests to responses, cheap to clone.
pub type AppService = BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Asks a started copy whether it can still serve.
pub(crate) type AskFn = Box<dyn Fn() -> BoxFuture<Answer> + Send + Sync>;

/// Something that is slow to start and then answers HTTP.
///
/// The mesh calls [`App::start`] once for each copy, however many requests ask for it.
/// Dropping the future cancels the start and must leave nothing behind.
#[async_trait::async_trait]
pub trait App: Send + Sync + 'static {
    /// Starts one copy; resolves when it is ready to serve.
    async fn start(&self, start: StartContext) -> Result<Running, StartError>;
}

/// Which app starts, and where.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StartContext {
    /// The app that starts.
    pub app: AppName,
    /// The peer that it starts on.
    pub peer: PeerId,
}

impl StartContext {
    /// A start of `app` on `peer`, for tests of an [`App`].
    #[must_use]
    pub fn new(app: AppName, peer: PeerId) -> Self {
        Self { app, peer }
    }
}

/// A started copy of an app.
pub struct Running {
    pub(crate) service: AppService,
    pub(crate) stop: Box<dyn FnOnce(Duration) -> BoxFuture<()> + Send>,
    pub(crate) exited: BoxFuture<Ended>,
    pub(crate) ask: Option<AskFn>,
    pub(crate) carried: bool,
    pub(crate) whole: Option<Box<dyn AnswersWhole>>,
}

/// How a copy ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ended {
    /// One sentence for people.
    pub reason: String,
    /// It ended cleanly. If it had served by then, that is no failure: the next request starts
    /// another copy.
    pub in_good_order: bool,
}

impl Ended {
    /// An unexpected end; `reason` is one sentence for people.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), in_good_order: false }
    }

    /// Sets whether it ended cleanly.
    #[must_use]
    pub fn in_good_order(mut self, in_good_order: bool) -> Self {
        self.in_good_order = in_good_order;
        self
    }
}

impl From<String> for Ended {
    /// An unexpected end.
    fn from(reason: String) -> Self {
        Self::new(reason)
    }
}

/// The answer of a copy that is asked whether it can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// It can serve.
    Well,
    /// It answered that it cannot, with this text.
    Unwell(String),
    /// It did not answer, for this reason.
    Silent(String),
}

/// The error of an app's service if no byte of the request can have reached the app. The request
/// then goes to another ready peer, or waits for the next copy, whatever its method.
#[derive(Debug)]
#[non_exhaustive]
pub struct NotSent {
    /// One sentence for people.
    pub reason: String,
    /// The copy no longer takes requests: it is out of service from now on.
    pub refuses: bool,
    source: Option<BoxError>,
}

impl NotSent {
    /// The copy stays in service; `reason` is one sentence for people.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), refuses: false, source: None }
    }

    /// Sets whether the copy no longer takes requests.
    #[must_use]
    pub fn refuses(mut self, refuses: bool) -> Self {
        self.refuses = refuses;
        self
    }

    /// Sets the error that caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for NotSent {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

impl Running {
    /// A copy that serves through `service`, needs nothing to stop and never exits by itself.
    pub fn new<S, B>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let service = service
            .map_response(|response: Response<B>| response.map(Body::new))
            .map_err(Into::into);
        Self::of(service)
    }

    /// The same for a service with the mesh's own types: nothing is between it and its requests.
    pub fn of<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = BoxError>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        Self {
            service: BoxCloneSyncService::new(service),
            stop: Box::new(|_| Box::pin(std::future::ready(()))),
            exited: Box::pin(std::future::pending()),
            ask: None,
            carried: false,
            whole: None,
        }
    }

    /// Sets what to do when the copy is stopped; `stop` gets the time that stopping may take.
    /// Before it is called, requests in flight have ended or their grace has run out.
    #[must_use]
    pub fn on_stop<F, Fut>(mut self, stop: F) -> Self
    where
        F: FnOnce(Duration) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.stop = Box::new(move |grace| Box::pin(stop(grace)));
        self
    }

    /// Declares that the app uses the carried form: it gets its session in the request field
    /// `Warmhop-Session` and sets it in the same field of its response, instead of through
    /// [`Session`](crate::Session) in the request's extensions.
    #[must_use]
    pub fn with_carried_session(mut self) -> Self {
        self.carried = true;
        self
    }

    /// Has `app` answer the requests that it takes of those that are in memory as a whole, in place of
    /// the service: no copy is made of them.
    #[must_use]
    pub fn answers_whole(mut self, app: impl AnswersWhole) -> Self {
        self.whole = Some(Box::new(app));
        self
    }

    /// Sets a future that resolves, with the reason, if the copy ends by itself: every peer of the
    /// mesh then learns of a crash at once.
    #[must_use]
    pub fn exits_with<E: Into<Ended>>(
        mut self,
        exited: impl Future<Output = E> + Send + 'static,
    ) -> Self {
        self.exited = Box::pin(async move { exited.await.into() });
        self
    }

    /// Sets how the copy is asked whether it can still serve, at the times that
    /// [`AppPolicy::alive`](warmhop_core::config::AppPolicy::alive) sets: at intervals, or only
    /// when its requests fail or hang. The answer has to come in bounded time.
    #[must_use]
    pub fn asked_with<F, Fut>(mut self, ask: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        self.ask = Some(Box::new(move || Box::pin(ask())));
        self
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Running")
    }
}

/// Why a copy did not start.
#[derive(Debug)]
#[non_exhaustive]
pub struct StartError {
    /// One sentence for people.
    pub reason: String,
    /// The app's last lines of output, oldest first; at most 20.
    pub output: Vec<String>,
    source: Option<BoxError>,
}

impl StartError {
    /// A failure for `reason`, one sentence for people.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), output: Vec::new(), source: None }
    }

    /// Adds the app's last lines of output, oldest first.
    #[must_use]
    pub fn with_output(mut self, output: Vec<String>) -> Self {
        self.output = output;
        self
    }

    /// Sets the error that caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

/// An [`App`] from an async closure that yields any tower service, such as an axum `Router`.
pub fn app_fn<F, Fut, S, B, E>(start: F) -> impl App
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<S, E>> + Send + 'static,
    E: fmt::Display + 'static,
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    AppFn {
        start: move || -> BoxFuture<Result<Running, StartError>> {
            let starting = start();
            Box::pin(async move {
                match starting.await {
                    Ok(service) => Ok(Running::new(service)),
                    Err(error) => Err(StartError::new(error.to_string())),
                }
            })
        },
    }
}

struct AppFn<F> {
    start: F,
}

#[async_trait::async_trait]
impl<F> App for AppFn<F>
where
    F: Fn() -> BoxFuture<Result<Running, StartError>> + Send + Sync + 'static,
{
    async fn start(&self, _: StartContext) -> Result<Running, StartError> {
        (self.start)().await
    }
}

/// An app's name, its requests, and its policy.
///
/// It may gain fields: make one with [`AppSpec::new`] and change what differs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AppSpec {
    /// The app's name, the same on every peer.
    pub name: AppName,
    /// The requests that it answers: of all apps' matches, the most specific one that fits decides.
    pub matches: Vec<Match>,
    /// Whether the app gets its requests without the path of their match, which it then finds in
    /// `X-Forwarded-Prefix`.
    pub strip_prefix: bool,
    /// How it is started, stopped and waited for.
    pub policy: AppPolicy,
    /// The version that a start brings up, if it is named. A session that a newer one has served
    /// does not go back to an older one while a newer one is ready.
    pub version: Option<AppVersion>,
    /// A digest of the app's configuration, the same on every peer with the same configuration; 0:
    /// unknown. Differences between peers are reported.
    pub digest: u64,
}

impl AppSpec {
    /// An app that answers for every host and path, under the default policy.
    #[must_use]
    pub fn new(name: AppName) -> Self {
        Self {
            name,
            matches: vec![Match::all()],
            strip_prefix: false,
            policy: AppPolicy::default(),
            version: None,
            digest: 0,
        }
    }

    /// This specification with a change.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The host by which it is known, if there is one: the first that its matches name, or the domain of
    /// the first wildcard, for which an app that answers below it mostly answers as well.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        let hosts = || self.matches.iter().flat_map(|it| &it.hosts);
        hosts().find_map(HostPattern::exact).or_else(|| hosts().next().map(HostPattern::name))
    }
}
