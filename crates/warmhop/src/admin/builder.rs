//! The routes of one peer, and those that a service adds.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;

use crate::admin::guard::Token;
use crate::admin::routes::{self, More};
use crate::admin::{life, members, peers, places};
use crate::mesh::running::Mesh;

/// The routes of a peer for a server of your own on loopback, without a token: see [`Admin`] for
/// more.
pub fn router(mesh: &Mesh) -> Router {
    Admin::new(mesh).into_router()
}

/// The routes of an admin listener.
pub struct Admin {
    mesh: Mesh,
    token: Token,
    metrics: More,
    routes: Router,
    readable: Router,
}

impl Admin {
    /// All routes of a peer, for a listener on loopback.
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

    /// The token that a client has to send. It may be changed later through a clone of `token`.
    #[must_use]
    pub fn token(mut self, token: Token) -> Self {
        self.token = token;
        self
    }

    /// Extends the text of `/metrics`: `more` gets an OpenMetrics text, and returns one.
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

    /// More routes that report on this peer, and that other peers may read as well: they must not
    /// act on anything.
    #[must_use]
    pub fn readable(mut self, routes: Router) -> Self {
        self.readable = self.readable.merge(routes);
        self
    }

    /// Answers on `listener` until `ends`: then it accepts nothing more, and returns once the
    /// accepted requests have been answered. Connections, their time without a request, and each
    /// answer's time are bounded, and health checks are always answered.
    ///
    /// Let it end after the mesh has shut down: an operator who watches the peer leave asks here.
    pub async fn serve(self, listener: TcpListener, ends: impl Future<Output = ()> + Send) {
        let mesh = self.mesh.clone();
        let connecting = mesh.clone();
        let connected = move || Some(connecting.connected("admin"));
        let refusals = Arc::clone(mesh.admin_refusals());
        places::serve(listener, self.into_router(), refusals, connected, ends).await;
    }

    /// The routes, for a server of your own. From now on the other peers of the cluster may read
    /// this one's readable routes, and may ask it for a new copy of an app.
    pub fn into_router(self) -> Router {
        let readable = routes::readable::<Mesh>(Arc::clone(&self.metrics));
        peers::offer(
            &self.mesh,
            readable.with_state(self.mesh.clone()).merge(self.readable.clone()),
        );
        let more = self.routes.merge(self.readable);
        let more = more.merge(peers::routes(&self.mesh)).merge(life::routes(&self.mesh));
        let more = more.merge(members::routes(&self.mesh));
        routes::guarded(self.mesh, self.token, self.metrics, more)
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mesh, token) = (&self.mesh, &self.token);
        f.debug_struct("Admin").field("mesh", mesh).field("token", token).finish_non_exhaustive()
    }
}
