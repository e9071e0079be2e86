//! How a client learns that its request is not served, in the form that it asked for.

use std::sync::Arc;

use http::header::{ACCEPT, HeaderMap};
use http::{Method, Request, Response};
use warmhop_core::problem::ProblemKind;

use crate::app::slot::Slot;
use crate::front::cookies::AskedAt;
use crate::front::ingress::Ingress;
use crate::http::body::Body;
use crate::observe::recall::Tracing;
use crate::request::grpc;
use crate::request::problem::{Audience, Problem};

/// The parts of a request that decide the form of its refusal.
pub(crate) struct Asked {
    accept: HeaderMap,
    is_get: bool,
    pub(crate) is_call: bool,
    at: AskedAt,
}

impl Asked {
    pub(crate) fn of(request: &Request<Body>, secure: bool) -> Self {
        let accept = request.headers().get_all(ACCEPT).iter().cloned();
        Self {
            accept: accept.map(|accept| (ACCEPT, accept)).collect(),
            is_get: *request.method() == Method::GET,
            is_call: grpc::is_grpc(request.headers()),
            at: AskedAt::of(request.headers(), request.uri(), secure),
        }
    }
}

impl Ingress {
    /// The response to a request that is not served, which is logged as well, unless there have just
    /// been many of its kind.
    pub(crate) fn refusal(
        &self,
        problem: &Problem,
        app: Option<&Arc<Slot>>,
        asked: &Asked,
        tracing: &mut Tracing,
    ) -> Response<Body> {
        let node = &self.node;
        tracing.step("problem", problem.whole());
        if let Some(not_logged) = self.refused.due(problem.kind) {
            tracing::info!(
                request = %tracing.id,
                problem = problem.kind.name(),
                status = problem.kind.status(),
                detail = problem.whole(),
                not_logged = Some(not_logged).filter(|not_logged| *not_logged > 0),
                "refused"
            );
        }
        let mut response = problem.response(&Audience {
            accept: &asked.accept,
            is_get: asked.is_get,
            peer: node.me.as_str(),
            id: tracing.id.as_str(),
            reveal: node.reveal,
            page: &node.error_page,
        });
        if asked.is_call {
            grpc::refusal(problem, node.reveal, &mut response);
        }
        if let (ProblemKind::SessionFieldRefused, Some(slot)) = (problem.kind, app) {
            // It would be refused each time.
            let cookie = &node.store.policy().cookie;
            asked.at.remove(cookie, &slot.spec(), response.headers_mut());
        }
        response
    }
}
