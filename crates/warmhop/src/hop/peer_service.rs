//! Services that peers offer to each other besides apps. Only other peers of the cluster can use
//! them, over the same links as hops. The binary's admin listener uses one of them to answer for
//! any peer.
//!
//! A service is called by its name at one peer, at most 64 requests at a time; bodies stream both
//! ways with back-pressure, as those of hops do. A request under way does not delay a drain: it is
//! cut off when the peer leaves.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tracing::debug;
use warmhop_core::ids::{AppName, PeerId};

use crate::hop::field_block::FieldBlock;
use crate::hop::{
    self, ArrivedHop, HopError, HopHead, HopIncoming, HopKind, HopRefusal, HopRequest, OnSilence,
    ReplyHead, ReplySession,
};
use crate::http::body::{Body, BoxError};
use crate::links::net::Net;

/// How many requests the services of one peer answer at once.
const AT_ONCE: usize = 64;

const NO_SUCH_SERVICE: &str = "it offers no such service";
const NO_PLACE: &str = "it is answering as many as it can";

/// The peer that asks, in the extensions of a service's request: proved by its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedBy(pub PeerId);

type Service = Arc<dyn Fn(Request<Body>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// The services that this peer offers.
pub(crate) struct PeerServices {
    by_name: RwLock<HashMap<AppName, Service>>,
    places: Semaphore,
}

/// Why another peer's service did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskPeerError {
    /// There is no link to the peer.
    #[error("the peer {peer} cannot be reached: {source}")]
    Unreachable {
        /// The peer.
        peer: PeerId,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The peer does not offer it, or is answering as many requests as it can.
    #[error("the peer {peer} does not answer: {reason}")]
    Refused {
        /// The peer.
        peer: PeerId,
        /// Its reason.
        reason: String,
    },
    /// The link broke before there was an answer; the service may have seen the request.
    #[error("the link to the peer {peer} broke before there was an answer: {reason}")]
    Broken {
        /// The peer.
        peer: PeerId,
        /// How.
        reason: String,
    },
}

impl PeerServices {
    /// Offers nothing yet.
    pub(crate) fn new() -> Self {
        Self { by_name: RwLock::default(), places: Semaphore::new(AT_ONCE) }
    }

    /// Offers `service` under `name`, and replaces the one offered under it before.
    pub(crate) fn offer(&self, name: AppName, service: Service) {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).insert(name, service);
    }

    fn named(&self, name: &AppName) -> Option<Service> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Answers a request of `me`, this very peer, as one of another peer.
    pub(crate) async fn ask_own(
        &self,
        me: &PeerId,
        name: &AppName,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, AskPeerError> {
        let refused =
            |reason: &str| AskPeerError::Refused { peer: me.clone(), reason: reason.into() };
        let service = self.named(name).ok_or_else(|| refused(NO_SUCH_SERVICE))?;
        let _place = self.places.try_acquire().map_err(|_| refused(NO_PLACE))?;
        request.extensions_mut().insert(AskedBy(me.clone()));
        Ok(service(request).await)
    }

    /// Answers a hop that asks for a service.
    pub(crate) async fn answer(
        &self,
        me: &PeerId,
        from: &PeerId,
        arrived: ArrivedHop,
        mut send: quinn::SendStream,
    ) {
        let load = hop::Load { in_flight: 0, latency_us: 0 };
        let ArrivedHop { head, method, fields, incoming, .. } = arrived;
        let HopIncoming::Body(body) = incoming else {
            let _ = hop::refuse(send, HopRefusal::Malformed, load).await;
            return;
        };
        let Some(service) = self.named(&head.app) else {
            let _ = hop::refuse(send, HopRefusal::UnknownApp, load).await;
            return;
        };
        let Ok(_place) = self.places.try_acquire() else {
            let _ = hop::refuse(send, HopRefusal::NotReady, load).await;
            return;
        };
        if head.asks_go && hop::go(&mut send).await.is_err() {
            return;
        }
        let Ok(mut request) = Request::builder().method(method).uri(&head.target).body(body) else {
            let _ = hop::refuse(send, HopRefusal::Malformed, load).await;
            return;
        };
        *request.headers_mut() = fields;
        request.extensions_mut().insert(AskedBy(from.clone()));
        let response = service(request).await;
        let head: ReplyHead =
            hop::response_head(&response, ReplySession::None, me.to_string(), load);
        if let Err(error) = hop::reply(send, &head, response.into_body(), None).await {
            debug!(%from, %error, "the answer of a peer's service ended early");
        }
    }
}

impl fmt::Debug for PeerServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(by_name.keys()).finish()
    }
}

/// Asks the service `name` of the peer `to`.
pub(crate) async fn ask(
    net: &Net,
    to: &PeerId,
    name: &AppName,
    request: Request<Body>,
) -> Result<Response<Body>, AskPeerError> {
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let head = HopHead {
        kind: HopKind::Service,
        app: name.clone(),
        request_id: "service".into(),
        method: parts.method.to_string(),
        target: target.to_owned(),
        fields: FieldBlock::of(&parts.headers),
        upgrade: None,
        asks_go: false,
        counts_on: None,
    };
    let on_silence = OnSilence::GoElsewhere;
    let request = HopRequest { head, body, interim: None, on_silence };
    match hop::ask(net, to, request, false).await {
        Ok(reply) if reply.response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            let reason = "it switched protocols, which nobody asked for".into();
            Err(AskPeerError::Refused { peer: to.clone(), reason })
        }
        Ok(reply) => Ok(reply.response),
        Err(HopError::Unreachable(error, _)) => {
            Err(AskPeerError::Unreachable { peer: to.clone(), source: error.into() })
        }
        Err(HopError::Refused(why, ..)) => {
            let reason = match why {
                HopRefusal::UnknownApp => NO_SUCH_SERVICE.into(),
                HopRefusal::NotReady => NO_PLACE.into(),
                other => format!("it refused: {}", other.label()),
            };
            Err(AskPeerError::Refused { peer: to.clone(), reason })
        }
        Err(HopError::Broken(reason)) => Err(AskPeerError::Broken { peer: to.clone(), reason }),
    }
}

/// A service in the form in which it is kept.
pub(crate) fn boxed<S, F, E>(service: S) -> Service
where
    S: Fn(Request<Body>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Response<Body>, E>> + Send + 'static,
    E: Into<BoxError>,
{
    Arc::new(move |request| {
        let answering = service(request);
        Box::pin(async move {
            answering.await.unwrap_or_else(|error| {
                let error: BoxError = error.into();
                debug!(%error, "a peer's service failed");
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                response
            })
        })
    })
}
