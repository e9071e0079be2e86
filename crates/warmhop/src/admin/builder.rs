//! The routes of one peer, and what a service adds to them.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;

use crate::admin::guard::Token;
use crate::admin::routes::{self, More};
use crate::admin::{life, peers, places};
use crate::mesh::running::Mesh;

/// The routes of a peer for a server of your own on loopback, without a token: see [`Admin`] for
/// more.
pub fn router(mesh: &Mesh) -> Router {
    Admin::new(mesh).into_router()
}

/// What is to be reached at an admin listener.
pub struct Admin {
    mesh: Mesh,
    token: Token,
    metrics: More,
    routes: Router,
    readable: Router,
}

impl Admin {
    /// All of a peer, for a listener on loopback.
    #[must_use]
    pub fn new(mesh: &Mesh) -> Self {
        Self {
            mesh: mesh.clone(),
            token: Token::default(),
            metrics: Arc::new(|text| text),
            routes: Router::new(),
            readable: Router::new(),
        }
    }

    /// What who asks has to show. It may be changed later through a clone of `token`.
    #[must_use]
    pub fn token(mut self, token: Token) -> Self {
        self.token = token;
        self
    }

    /// Adds to what `/metrics` tells: `more` is given an OpenMetrics text, and returns one.
    #[must_use]
    pub fn metrics(mut self, more: impl Fn(String) -> String + Send + Sync + 'static) -> Self {
        self.metrics = Arc::new(more);
        self
    }

    /// More routes behind the same guard.
    #[must_use]
    pub fn routes(mut self, routes: Router) -> Self {
        self.routes = self.routes.merge(routes);
        self
    }

    /// More routes that tell of this peer, and that other peers may read as well: they act on
    /// nothing.
    #[must_use]
    pub fn readable(mut self, routes: Router) -> Self {
        self.readable = self.readable.merge(routes);
        self
    }

    /// Answers on `listener` until `ends`: then it takes in nothing more, and returns once what it
    /// took in has been answered. Connections, their time without a request, and each answer's time
    /// are bounded, and health is always answered.
    ///
    /// Let it end after the mesh has shut down: whoever watches the peer leave asks it here.
    pub async fn serve(self, listener: TcpListener, ends: impl Future<Output = ()> + Send) {
        let mesh = self.mesh.clone();
        let connected = move || Some(mesh.connected("admin"));
        places::serve(listener, self.into_router(), connected, ends).await;
    }

    /// The routes, for a server of your own. From here on the other peers of the cluster may read what
    /// this one tells here, and may ask it for a new copy of an app.
    pub fn into_router(self) -> Router {
        let readable = routes::readable::<Mesh>(Arc::clone(&self.metrics));
        peers::offer(
            &self.mesh,
            readable.with_state(self.mesh.clone()).merge(self.readable.clone()),
        );
        let more = self.routes.merge(self.readable);
        let more = more.merge(peers::routes(&self.mesh)).merge(life::routes(&self.mesh));
        routes::guarded(self.mesh, self.token, self.metrics, more)
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mesh, token) = (&self.mesh, &self.token);
        f.debug_struct("Admin").field("mesh", mesh).field("token", token).finish_non_exhaustive()
    }
}
