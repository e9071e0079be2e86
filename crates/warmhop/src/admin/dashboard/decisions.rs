//! Which of the newest decisions are shown: equal ones as one, failures and hops before requests
//! that were simply served.

use std::collections::HashMap;

use crate::observe::recall::CUT_OFF;
use crate::observe::status::RequestTrace;
use serde::Serialize;

/// The newest of several decisions that differ only in their times.
#[derive(Debug, Serialize)]
pub(super) struct Decision {
    #[serde(flatten)]
    newest: RequestTrace,
    /// How many there were.
    times: usize,
}

/// The order of importance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    Failed,
    Hopped,
    Served,
}

/// At most `count` of them; within one weight the newest first, as `traces` are.
pub(super) fn fold(traces: Vec<RequestTrace>, count: usize) -> Vec<Decision> {
    let mut known = HashMap::new();
    let mut folded: Vec<Decision> = Vec::new();
    for newest in traces {
        let at = *known.entry(kind(&newest)).or_insert(folded.len());
        match folded.get_mut(at) {
            Some(decision) => decision.times += 1,
            None => folded.push(Decision { newest, times: 1 }),
        }
    }
    folded.sort_by_key(|decision| weight(&decision.newest));
    folded.truncate(count);
    folded
}

/// The properties in which equal decisions agree. The reasons are not compared: some contain times.
fn kind(trace: &RequestTrace) -> String {
    let steps: Vec<_> = trace.steps.iter().map(|step| step.what.as_str()).collect();
    let RequestTrace { role, app, host, request, status, served_by, sent_to, .. } = trace;
    // Only where no app matched is the host shown in its place.
    let host = host.as_ref().filter(|_| app.is_none());
    format!("{role} {app:?} {host:?} {request} {status:?} {served_by:?} {sent_to:?} {steps:?}")
}

fn weight(trace: &RequestTrace) -> Weight {
    let took = |way: &str| trace.steps.iter().any(|step| step.what == way);
    // The starting page is not a failure, though its status says that the app cannot serve yet.
    let failed = trace.status.is_some_and(|status| status >= 500) && !took("page");
    if failed || took(CUT_OFF) || (took("refuse") && !took("page")) {
        Weight::Failed
    } else if trace.role == "hop" || took("hop") || took("forward") || took("page") {
        Weight::Hopped
    } else {
        Weight::Served
    }
}

#[cfg(test)]
mod tests {
    use crate::observe::status::TraceStep;

    use super::*;

    fn trace(id: &str, request: &str, what: &str, status: u16) -> RequestTrace {
        RequestTrace {
            id: id.into(),
            peer: "peer-1".into(),
            role: "entry".into(),
            app: Some("shop".into()),
            host: None,
            request: request.into(),
            at_unix_ms: 0,
            status: Some(status),
            served_by: None,
            sent_to: None,
            session: None,
            steps: vec![TraceStep {
                after_us: id.len() as u64,
                what: what.into(),
                why: format!("because of {id}"),
                candidates: Vec::new(),
            }],
            head_ms: None,
        }
    }

    fn shown(traces: Vec<RequestTrace>, count: usize) -> Vec<(String, usize)> {
        let folded = fold(traces, count).into_iter();
        folded.map(|decision| (decision.newest.id, decision.times)).collect()
    }

    #[test]
    fn equal_decisions_are_one_and_failures_come_first() {
        let traces = vec![
            trace("e", "GET /", "serve", 200),
            trace("d", "GET /", "hop", 200),
            trace("c", "GET /", "serve", 200),
            trace("b", "GET /", "refuse", 503),
            trace("a", "GET /cart", "serve", 500),
        ];
        let all = [("b", 1), ("a", 1), ("d", 1), ("e", 2)].map(|(id, n)| (id.to_owned(), n));
        assert_eq!(shown(traces.clone(), 10), all);
        assert_eq!(shown(traces, 2), all[..2]);
    }

    #[test]
    fn an_answer_that_broke_off_is_a_failure_whatever_its_status() {
        let mut broke_off = trace("a", "GET /", "serve", 200);
        broke_off.steps.push(TraceStep { what: CUT_OFF.into(), ..broke_off.steps[0].clone() });
        let traces =
            vec![trace("c", "GET /", "serve", 200), trace("b", "GET /", "hop", 200), broke_off];
        let order = ["a", "b", "c"].map(|id| (id.to_owned(), 1));
        assert_eq!(shown(traces, 10), order);
    }

    #[test]
    fn a_starting_page_is_no_failure() {
        let mut page = trace("b", "GET /", "page", 503);
        page.steps.push(TraceStep { what: "problem".into(), ..page.steps[0].clone() });
        let traces = vec![page, trace("a", "GET /", "problem", 502)];
        assert_eq!(shown(traces, 10), [("a".to_owned(), 1), ("b".to_owned(), 1)]);
    }
}
