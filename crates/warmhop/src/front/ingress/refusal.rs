//! How a client learns that its request is not served, in the form that it asked for.

use http::Response;
use warmhop_core::problem::ProblemKind;

use crate::front::context::RequestContext;
use crate::front::ingress::Ingress;
use crate::http::body::Body;
use crate::request::grpc;
use crate::request::problem::{Audience, Problem};

impl Ingress {
    /// The response to a request that is not served, which is logged as well, unless there have just
    /// been many of its kind.
    pub(super) fn refuse(&self, problem: &Problem, context: &mut RequestContext) -> Response<Body> {
        let node = &self.node;
        context.refused(problem.kind.name(), problem.page.is_some());
        let RequestContext { tracing, asked_at, refusal_form: form, slot, .. } = context;
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
            accept: &form.accept(),
            is_get: form.is_get,
            peer: node.me.as_str(),
            id: tracing.id.as_str(),
            reveal: node.reveal,
            page: &node.error_page,
        });
        if form.is_call {
            grpc::refusal(problem, node.reveal, &mut response);
        }
        if let (ProblemKind::SessionFieldRefused, Some(slot)) = (problem.kind, slot) {
            // It would be refused each time.
            let cookie = &node.store.policy().cookie;
            asked_at.remove(cookie, &slot.spec(), response.headers_mut());
        }
        response
    }
}
