//! What a client gets when a request cannot be served: problem JSON (RFC 9457), or a small
//! page where the client prefers HTML, with the reason in `Proxy-Status` (RFC 9209).

use std::borrow::Cow;
use std::time::Duration;

use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use warmhop_core::problem::ProblemKind;
use warmhop_core::session::Failure;

use crate::hop::{HopRefusal, SentProblem};
use crate::http::body::Body;
use crate::request::error_page::{ErrorPage, Shown, in_plain_words};

/// The detail if no majority is reached. The names of the peers that are not heard follow it.
pub(crate) const NO_MAJORITY: &str =
    "no majority of the peers that hold this session could be reached";
/// Replaces the peers' names if they are not shown.
pub(crate) const PSEUDONYM: &str = "gateway";

/// The client that gets a problem, and how much of it is shown.
pub(crate) struct Audience<'a> {
    /// The client's `Accept` fields.
    pub(crate) accept: &'a HeaderMap,
    /// Repeating the request repeats nothing but the view of a page.
    pub(crate) is_get: bool,
    /// This peer.
    pub(crate) peer: &'a str,
    /// The request's id.
    pub(crate) id: &'a str,
    /// Whether the mesh's inside is shown: names, ids and what went wrong.
    pub(crate) reveal: bool,
    /// The page for a browser.
    pub(crate) page: &'a ErrorPage,
}

/// A refusal on its way to a client.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) kind: ProblemKind,
    /// What happened and what to do next, for people.
    pub(crate) detail: String,
    pub(crate) retry_after: Option<Duration>,
    /// A special page instead of the small one, and its fields.
    pub(crate) page: Option<Box<(String, HeaderMap)>>,
    /// The underlying error, for this peer's log and memory alone.
    pub(crate) inner: Option<Box<str>>,
}

impl Problem {
    pub(crate) fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), retry_after: None, page: None, inner: None }
    }

    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.kind.status()).expect("the status of a problem is 400 to 599")
    }

    /// Adds an underlying error: its text may contain what clients must not see.
    pub(crate) fn because(mut self, why: impl std::fmt::Display) -> Self {
        self.inner = Some(why.to_string().into());
        self
    }

    /// All details.
    pub(crate) fn whole(&self) -> String {
        match &self.inner {
            Some(inner) => format!("{}: {inner}", self.detail),
            None => self.detail.clone(),
        }
    }

    pub(crate) fn retry_after(mut self, span: Duration) -> Self {
        self.retry_after = Some(span);
        self
    }

    /// The response, in the form that the client's `Accept` prefers.
    pub(crate) fn response(&self, to: &Audience<'_>) -> Response<Body> {
        let status = self.status();
        let title = status.canonical_reason().unwrap_or("Error");
        let shown = |text: &str| if to.reveal { text.to_owned() } else { String::new() };
        let mut fields = HeaderMap::new();
        let (kind, body) = if let Some(page) = &self.page {
            fields.clone_from(&page.1);
            ("text/html; charset=utf-8", page.0.clone())
        } else if prefers_html(to.accept) {
            let (detail, id) = (shown(&self.detail), shown(to.id));
            let again = self.retry_after.filter(|_| to.is_get);
            let values = Shown { status, detail: &detail, id: &id, again };
            let page;
            (page, fields) = to.page.render(&values);
            ("text/html; charset=utf-8", page)
        } else if to.reveal {
            let json = format!(
                "{{\"type\":\"urn:warmhop:{}\",\"title\":{},\"status\":{},\"detail\":{},\"instance\":{}}}\n",
                self.kind.name(),
                json_string(title),
                status.as_u16(),
                json_string(&self.detail),
                json_string(&format!("urn:warmhop:request:{}", to.id)),
            );
            ("application/problem+json", json)
        } else {
            let (_, words) = in_plain_words(status, false);
            let json = format!(
                "{{\"type\":\"about:blank\",\"title\":{},\"status\":{},\"detail\":{}}}\n",
                json_string(title),
                status.as_u16(),
                json_string(words),
            );
            ("application/problem+json", json)
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.extend(fields);
        if let Some(span) = self.retry_after {
            headers
                .insert(RETRY_AFTER, HeaderValue::from(span.as_secs_f64().ceil().max(1.0) as u64));
        }
        if to.reveal {
            let kind = self.kind.proxy_error();
            let (peer, detail) = (sf_name(to.peer), sf_string(&self.detail));
            let value = format!("{peer}; error={kind}; details={detail}");
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert("proxy-status", value);
            }
        }
        response
    }
}

/// The problem if an app took a request and did not answer in time.
pub(crate) fn too_slow(peer: &str, detail: &str) -> Problem {
    let detail = format!(
        "the app on {peer} took the request and gave no answer: {detail}; whether it was carried \
         out is unknown"
    );
    Problem::new(ProblemKind::AppTooSlow, detail)
}

pub(crate) fn outcome_unknown(why: &str) -> Problem {
    let detail = format!("{why}; whether the request was carried out is unknown");
    Problem::new(ProblemKind::OutcomeUnknown, detail)
}

/// The problem of an attempt that followed one which may have been applied.
pub(crate) fn after_an_attempt(problem: Problem) -> Problem {
    if problem.kind.after_an_attempt() == problem.kind {
        return problem;
    }
    outcome_unknown(&format!(
        "the first attempt was interrupted, and the next one failed: {}",
        problem.detail
    ))
}

pub(crate) fn gave_up() -> Problem {
    Problem::new(ProblemKind::NoProgress, "no peer could take the request after several tries")
        .retry_after(Duration::from_secs(1))
}

/// The problem of a request that no app has seen, and that cannot be sent to another peer.
pub(crate) fn body_gone(why: &str) -> Problem {
    let detail = format!(
        "{why} before it ran the request, whose body is too large to be kept for another try: \
         nothing was done"
    );
    Problem::new(ProblemKind::NoProgress, detail).retry_after(Duration::from_secs(1))
}

pub(crate) fn memory_full() -> Problem {
    let detail = "the peers that hold this session may use no more memory for sessions: nothing was \
                  done";
    Problem::new(ProblemKind::SessionMemoryFull, detail).retry_after(Duration::from_secs(30))
}

pub(crate) fn too_many_sessions() -> Problem {
    Problem::new(ProblemKind::TooManySessions, "this peer holds as many sessions as it may")
        .retry_after(Duration::from_secs(5))
}

/// The client's problem for a session that could not be used.
pub(crate) fn of_session(failure: &Failure) -> Problem {
    if *failure == Failure::NoRoom {
        return memory_full();
    }
    let problem = Problem::new(failure.problem(), in_words(failure));
    if problem.status() == StatusCode::SERVICE_UNAVAILABLE {
        problem.retry_after(Duration::from_secs(1))
    } else {
        problem
    }
}

/// A failure as text for people.
pub(crate) fn in_words(failure: &Failure) -> &'static str {
    match failure {
        Failure::QueueFull => "too many requests of this session wait already",
        Failure::NoMajority { ran: false } => NO_MAJORITY,
        Failure::NoMajority { ran: true } => {
            "the request ran, but no majority of the peers that hold its session confirmed it; \
             whether its change stays is unknown"
        }
        Failure::FingerprintDiffers => "this Idempotency-Key was used with another request",
        Failure::KeyInUse => {
            "a request with this Idempotency-Key is under way; wait for its answer"
        }
        Failure::BelowFloor => {
            "a request with this Idempotency-Key may have been applied too long ago to tell"
        }
        Failure::Lost { ran: false } | Failure::WentOn { .. } => {
            "too many of the peers that held this session are gone"
        }
        Failure::Lost { ran: true } => {
            "the request ran, but too many of the peers that held its session are gone"
        }
        Failure::Absent => "no peer knows of a session with this key",
        Failure::Ended => "the session's id was ended, by a logout for example",
        Failure::TooManyRetries => "the peers where the app is ready could not run it",
        Failure::Deposed { .. } => {
            "the session's owner changed while the request ran; whether it was applied is unknown"
        }
        Failure::ExecutionFailed => "the request could not be executed",
        Failure::NoRoom => {
            "the peers that hold this session may use no more memory for sessions: nothing was done"
        }
    }
}

pub(crate) fn as_refusal(problem: &Problem) -> HopRefusal {
    HopRefusal::Problem(SentProblem {
        kind: problem.kind,
        detail: problem.detail.clone(),
        retry_after: problem.retry_after,
    })
}

/// A problem that another peer decided on.
pub(crate) fn from_refusal(sent: SentProblem) -> Problem {
    let SentProblem { kind, detail, retry_after } = sent;
    Problem { retry_after, ..Problem::new(kind, detail) }
}

/// A name as an RFC 9651 token if it is one, otherwise as a string.
pub(crate) fn sf_name(name: &str) -> Cow<'_, str> {
    if name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        name.into()
    } else {
        sf_string(name).into()
    }
}

fn sf_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars().take(300) {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ => out.push('?'),
        }
    }
    out.push('"');
    out
}

/// Whether a client accepts HTML and prefers no other form of a problem (RFC 9110 section 12.5.1).
/// Of two with the same weight, the one named first counts.
pub(crate) fn prefers_html(headers: &HeaderMap) -> bool {
    let fields = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (mut html, mut others) = (0, 0);
    for range in fields.flat_map(|field| field.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().ok())?
        });
        let weight = (weight.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0) as u32;
        if kind == "text/html" {
            html = html.max(if weight > others { weight } else { 0 });
        } else if html < weight && (kind == "*/*" || kind.contains("json")) {
            others = others.max(weight);
        }
    }
    html > others
}

fn json_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use warmhop_core::problem::Applied;

    use super::*;
    use crate::links::wire;

    #[test]
    fn nothing_is_said_to_be_undone_after_an_attempt_that_may_have_been_applied() {
        for undone in [
            of_session(&Failure::NoMajority { ran: false }),
            of_session(&Failure::QueueFull),
            of_session(&Failure::KeyInUse),
            of_session(&Failure::TooManyRetries),
            gave_up(),
            too_many_sessions(),
        ] {
            let detail = undone.detail.clone();
            let after = after_an_attempt(undone);
            assert_eq!(after.kind, ProblemKind::OutcomeUnknown);
            assert!(after.retry_after.is_none() && after.detail.contains(&detail), "{after:?}");
        }
        for answer in [Failure::Absent, Failure::Lost { ran: false }, Failure::BelowFloor] {
            let problem = of_session(&answer);
            assert_eq!(after_an_attempt(problem.clone()).kind, problem.kind);
        }
    }

    /// The rows of the table in `docs/problems.md`.
    fn documented() -> Vec<Vec<String>> {
        let page = include_str!("../../../../docs/problems.md");
        let rows = page.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| row.trim_matches('|').split('|').map(|it| it.trim().into()).collect())
            .collect()
    }

    #[test]
    fn each_refusal_reaches_the_client_as_documented_from_here_and_by_a_hop() {
        let documented = documented();
        assert_eq!(documented.len(), ProblemKind::ALL.len() + 1, "one row for each, and at-owner");
        let (accept, page) = (HeaderMap::new(), ErrorPage::default());
        let to = Audience {
            accept: &accept,
            is_get: true,
            peer: "peer-1",
            id: "id",
            reveal: true,
            page: &page,
        };
        for kind in ProblemKind::ALL {
            let applied = match kind.applied() {
                Applied::No => "no",
                Applied::Maybe => "maybe",
                Applied::Yes => "yes",
            };
            let (name, status, error) = (kind.name(), kind.status(), kind.proxy_error());
            let row =
                [format!("`{name}`"), status.to_string(), format!("`{error}`"), applied.into()];
            let is_documented = documented.iter().any(|it| it[..4] == row);
            assert!(is_documented, "docs/problems.md needs a row | {} |", row.join(" | "));

            let here = Problem::new(kind, "why").retry_after(Duration::from_millis(1_500));
            let sent = wire::encode(&as_refusal(&here), 1_000).unwrap();
            let HopRefusal::Problem(sent) = wire::decode::<HopRefusal, 1_000>(&sent).unwrap()
            else {
                panic!("{kind:?} is sent as something else");
            };
            let by_hop = from_refusal(sent);
            for problem in [here, by_hop] {
                let mut response = problem.response(&to);
                let body = std::mem::take(response.body_mut());
                let body = futures_util::FutureExt::now_or_never(body.collect()).unwrap().unwrap();
                let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
                assert!(body.contains(&format!("\"urn:warmhop:{name}\"")), "{body}");
                assert_eq!(response.status().as_u16(), status);
                let expected = format!("peer-1; error={error}; details=\"why\"");
                assert_eq!(response.headers()["proxy-status"], expected);
                assert_eq!(response.headers()[RETRY_AFTER], "2");
            }
        }
    }

    #[test]
    fn a_detail_with_quotes_and_line_breaks_stays_one_valid_header_and_one_valid_json_string() {
        let problem = Problem::new(ProblemKind::NoProgress, "said \"no\"\n\u{1}é").because("inner");
        assert!(problem.whole().ends_with(": inner"));
        let (accept, page) = (HeaderMap::new(), ErrorPage::default());
        let mut to = Audience {
            accept: &accept,
            is_get: true,
            peer: "peer-1",
            id: "id",
            reveal: true,
            page: &page,
        };
        let response = problem.response(&to);
        let status = response.headers()["proxy-status"].to_str().unwrap();
        assert_eq!(status, "peer-1; error=destination_unavailable; details=\"said \\\"no\\\"???\"");
        assert_eq!(json_string("a\"\n\u{1}"), "\"a\\\"\\n\\u0001\"");
        to.reveal = false;
        assert!(!problem.response(&to).headers().contains_key("proxy-status"));
    }

    #[test]
    fn a_browser_gets_a_page_and_everyone_else_json() {
        let accept = |text| HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(text))]);
        assert!(prefers_html(&accept("text/html,application/xhtml+xml,*/*;q=0.8")));
        assert!(!prefers_html(&accept("*/*")));
        assert!(prefers_html(&accept("text/html;q=0.9, application/json;q=0.8")));
        for other in [
            "application/json, text/html;q=0.1",
            "text/html;q=0.1, application/json",
            "application/json, text/html",
            "text/html;q=0",
            "text/plain, text/html;q=0",
            "*/*, text/html;q=0.1",
            "text/html;q=0.1, */*",
        ] {
            assert!(!prefers_html(&accept(other)), "{other}");
        }
        assert!(!prefers_html(&HeaderMap::new()));
    }
}
