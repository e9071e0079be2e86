//! Which connections have a place at the admin listener. The peer's supervisor checks here whether
//! the peer is alive, and would end it without an answer, so no other client may take all places:
//! if all are taken, the connection that has been idle longest is closed, and if all are busy some
//! are reserved for health checks.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use http::{HeaderValue, Request, Response, StatusCode, header::CONNECTION};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::admin::answers::problem;
use crate::admin::watchers::Who;
use crate::http::accept::Acceptor;
use crate::http::framing::{Checked, ends_connection};
use crate::http::refusals::Refusals;
use crate::http::refusals::admin::AdminRefusal;

/// Connections at once for all clients.
pub(crate) const CONNECTIONS_MAX: usize = 128;
/// Further connections, for health checks alone.
const FOR_HEALTH: usize = 16;
/// How long a connection may be without a whole request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection is closed after this, so that none is held for ever.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(600);

/// Answers on `listener` until `ends`, as [`Admin::serve`](crate::admin::Admin::serve) describes.
/// The result of `connected` is kept as long as its connection.
pub(crate) async fn serve<C: Send + 'static>(
    listener: TcpListener,
    router: Router,
    refusals: Arc<Refusals<AdminRefusal>>,
    connected: impl Fn() -> C,
    ends: impl Future<Output = ()> + Send,
) {
    let leaves = CancellationToken::new();
    let places = Arc::new(Places::new(refusals));
    let mut connections = JoinSet::new();
    let acceptor = Acceptor::new(listener, "the admin listener");
    let accepting = acceptor.until(ends, |stream, _| {
        while connections.try_join_next().is_some() {}
        let connected = connected();
        let connection = connection(stream, places.take(), router.clone(), leaves.clone());
        connections.spawn(async move {
            connection.await;
            drop(connected);
        });
    });
    accepting.await;
    leaves.cancel();
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, place: Place, router: Router, ends: CancellationToken) {
    let (leave, refusals) = (place.leave.clone(), Arc::clone(&place.places.refusals));
    let place = Arc::new(place);
    let who = stream.peer_addr().map_or(Who::Unknown, |addr| Who::client(addr.ip()));
    let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        let (router, busy) = (router.clone(), Busy::new(Arc::clone(&place)));
        request.extensions_mut().insert(who.clone());
        let ends = ends_connection(&request);
        async move {
            let path = request.uri().path();
            if busy.0.for_health && path != "/healthz" && path != "/readyz" {
                busy.0.places.refusals.note(AdminRefusal::NoPlace);
                let what = "every place but those for health is taken; ask again";
                let mut refusal = problem(StatusCode::SERVICE_UNAVAILABLE, what);
                refusal.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                return Ok(refusal);
            }
            let answer: Result<Response<Body>, _> = router.oneshot(request.map(Body::new)).await;
            answer.map(|mut answer| {
                if ends {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                // It is busy until the whole answer has been sent.
                answer.map(|body| {
                    Body::new(body.map_frame(move |frame| {
                        let _ = &busy;
                        frame
                    }))
                })
            })
        }
    });
    let stream = Checked::new(stream);
    let seen = stream.seen();
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let outcome = tokio::select! {
        outcome = timeout(CONNECTION_AGE_MAX, connection.as_mut()) => outcome.unwrap_or(Ok(())),
        () = leave.cancelled() => Ok(()),
        () = ends.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // The other ways a client's connection ends concern the client alone.
    if let Some(why) = seen.refusal(&outcome).and_then(AdminRefusal::of) {
        refusals.note(why);
    }
}

/// The connections that have a place.
struct Places {
    table: Mutex<Table>,
    refusals: Arc<Refusals<AdminRefusal>>,
}

#[derive(Default)]
struct Table {
    taken: HashMap<u64, Taken>,
    next: u64,
}

struct Taken {
    for_health: bool,
    /// Since when it has no request; absent while it has one.
    idle: Option<Instant>,
    leave: CancellationToken,
}

/// One connection's place, which is free again once this is dropped.
struct Place {
    id: u64,
    for_health: bool,
    leave: CancellationToken,
    places: Arc<Places>,
}

impl Places {
    fn new(refusals: Arc<Refusals<AdminRefusal>>) -> Self {
        Self { table: Mutex::default(), refusals }
    }

    /// A place for a new connection, for which another may have to close.
    fn take(self: &Arc<Self>) -> Place {
        let mut table = self.lock();
        let all = table.taken.values().filter(|taken| !taken.for_health).count();
        let mut gave_way = all >= CONNECTIONS_MAX && table.idlest_leaves(false);
        let for_health = all >= CONNECTIONS_MAX && !gave_way;
        if for_health {
            let all = table.taken.values().filter(|taken| taken.for_health).count();
            gave_way = all >= FOR_HEALTH && table.idlest_leaves(true);
        }
        if gave_way {
            self.refusals.note(AdminRefusal::GaveWay);
        }
        table.next += 1;
        let (id, leave) = (table.next, CancellationToken::new());
        let taken = Taken { for_health, idle: Some(Instant::now()), leave: leave.clone() };
        table.taken.insert(id, taken);
        Place { id, for_health, leave, places: Arc::clone(self) }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Closes the connection that has been idle longest; false if none is idle.
    fn idlest_leaves(&mut self, for_health: bool) -> bool {
        let idle = self.taken.iter().filter(|(_, taken)| taken.for_health == for_health);
        let idlest = idle.filter_map(|(id, taken)| Some((taken.idle?, *id))).min();
        let Some(taken) = idlest.and_then(|(_, id)| self.taken.remove(&id)) else { return false };
        taken.leave.cancel();
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().taken.remove(&self.id);
    }
}

/// A request under way on a connection.
struct Busy(Arc<Place>);

impl Busy {
    fn new(place: Arc<Place>) -> Self {
        let busy = Self(place);
        busy.is_idle(None);
        busy
    }

    fn is_idle(&self, since: Option<Instant>) {
        if let Some(taken) = self.0.places.lock().taken.get_mut(&self.0.id) {
            taken.idle = since;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.is_idle(Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn the_idlest_leaves_first_and_health_has_places_of_its_own() {
        let places = Arc::new(Places::new(Arc::default()));
        let all: Vec<_> = (0..CONNECTIONS_MAX).map(|_| Arc::new(places.take())).collect();
        assert!(all.iter().all(|place| !place.for_health));
        let _first = Busy::new(Arc::clone(&all[0]));
        let late = Arc::new(places.take());
        assert!(all[1].leave.is_cancelled() && !late.for_health);
        assert!(!all[0].leave.is_cancelled(), "something is asked on it");
        let _busy: Vec<_> =
            all[2..].iter().chain([&late]).map(|place| Busy::new(Arc::clone(place))).collect();
        let health: Vec<_> = (0..FOR_HEALTH).map(|_| places.take()).collect();
        assert!(health.iter().all(|place| place.for_health && !place.leave.is_cancelled()));
        let another = places.take();
        assert!(another.for_health && health[0].leave.is_cancelled());
        drop(_first);
        assert!(!places.take().for_health, "one of the others is idle again");
        assert_eq!(places.refusals.count(AdminRefusal::GaveWay), 3);
    }

    #[tokio::test]
    async fn what_two_readers_could_understand_differently_is_refused_and_nothing_behind_it_is_read()
     {
        let router = Router::new().fallback(|| async { "ok" });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let refusals: Arc<Refusals<AdminRefusal>> = Arc::default();
        let counted = Arc::clone(&refusals);
        tokio::spawn(serve(listener, router, counted, || (), std::future::pending()));
        let behind = "GET /behind HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        for (head, answers) in [
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                &["400"][..],
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
                &["400"],
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", &["400"]),
            ("GET / HTTP/1.1\r\nHost: a\r\nx\r\n\r\n", &["400"]),
            ("GET / HTTP/1.1\r\n\r\n", &["400"]),
            ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &["400"]),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", &["200"]),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                &["200", "200"],
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", &["200", "200"]),
        ] {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.write_all([head, behind].concat().as_bytes()).await.unwrap();
            let mut came = Vec::new();
            // It may be reset, since not all was read.
            let _ = stream.read_to_end(&mut came).await;
            let came = String::from_utf8(came).unwrap();
            let statuses = came.match_indices("HTTP/1.").map(|(at, _)| &came[at + 9..at + 12]);
            assert_eq!(statuses.collect::<Vec<_>>(), answers, "{head}");
        }
        // A connection is counted once it has ended, which its client may see before.
        let counted = || {
            let count = |why| refusals.count(why);
            (count(AdminRefusal::AmbiguousHead), count(AdminRefusal::UnreadableHead))
        };
        while counted() != (5, 1) {
            assert!(counted() <= (5, 1), "{:?}", counted());
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_head_that_trickles_is_counted_and_an_idle_connection_is_not() {
        let router = Router::new().fallback(|| async { "ok" });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let refusals: Arc<Refusals<AdminRefusal>> = Arc::default();
        let counted = Arc::clone(&refusals);
        tokio::spawn(serve(listener, router, counted, || (), std::future::pending()));
        let mut idle = TcpStream::connect(addr).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        idle.read_exact(&mut [0; 15]).await.unwrap();
        let mut slow = TcpStream::connect(addr).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nHos").await.unwrap();
        tokio::time::pause();
        // Time passes while nothing else can happen.
        let _ = slow.read_to_end(&mut Vec::new()).await;
        let _ = idle.read_to_end(&mut Vec::new()).await;
        while refusals.count(AdminRefusal::SlowHead) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(refusals.count(AdminRefusal::SlowHead), 1);
    }
}
