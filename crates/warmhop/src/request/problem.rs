//! What a client gets when a request cannot be served: problem JSON (RFC 9457), or a small
//! page where the client prefers HTML, with the reason in `Proxy-Status` (RFC 9209).

use std::time::Duration;

use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use warmhop_core::session::Failure;

use crate::hop::HopRefusal;
use crate::http::body::Body;
use crate::request::error_page::{ErrorPage, Told, in_plain_words};

/// An app set a larger session than is carried.
pub(crate) const SET_TOO_LARGE: &str = "session-too-large";
/// An app's server takes no request with its client's session in it.
pub(crate) const FIELD_REFUSED: &str = "session-field-refused";

/// What stands for the peers' names where they are not shown.
pub(crate) const PSEUDONYM: &str = "gateway";

/// Who is told of a problem, and what of it.
pub(crate) struct Audience<'a> {
    /// What the client said that it takes.
    pub(crate) accept: &'a HeaderMap,
    /// Asking again repeats nothing but the view of a page.
    pub(crate) is_get: bool,
    /// This peer.
    pub(crate) peer: &'a str,
    /// The request's id.
    pub(crate) id: &'a str,
    /// Whether the mesh's inside is shown: names, ids and what went wrong.
    pub(crate) reveal: bool,
    /// What a browser is shown.
    pub(crate) page: &'a ErrorPage,
}

/// A refusal on its way to a client.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    /// A short, stable name; the problem's type is `urn:warmhop:NAME`.
    pub(crate) name: &'static str,
    /// What happened and what to do next, for people.
    pub(crate) detail: String,
    /// A registered error type of RFC 9209 section 2.3.
    pub(crate) proxy_error: Option<&'static str>,
    pub(crate) retry_after: Option<Duration>,
    /// A page of its own instead of the small one, and the fields that go with it.
    pub(crate) page: Option<Box<(String, HeaderMap)>>,
    /// What came from below and says why, for this peer's log and memory alone.
    pub(crate) inner: Option<Box<str>>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            name,
            detail: detail.into(),
            proxy_error: None,
            retry_after: None,
            page: None,
            inner: None,
        }
    }

    pub(crate) fn proxy_error(mut self, kind: &'static str) -> Self {
        self.proxy_error = Some(kind);
        self
    }

    /// Adds an error from below: in its words may be what is no client's business.
    pub(crate) fn because(mut self, why: impl std::fmt::Display) -> Self {
        self.inner = Some(why.to_string().into());
        self
    }

    /// All that is known of it.
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
        let title = self.status.canonical_reason().unwrap_or("Error");
        let shown = |text: &str| if to.reveal { text.to_owned() } else { String::new() };
        let mut fields = HeaderMap::new();
        let (kind, body) = if let Some(page) = &self.page {
            fields.clone_from(&page.1);
            ("text/html; charset=utf-8", page.0.clone())
        } else if prefers_html(to.accept) {
            let (detail, id) = (shown(&self.detail), shown(to.id));
            let again = self.retry_after.filter(|_| to.is_get);
            let told = Told { status: self.status, detail: &detail, id: &id, again };
            let page;
            (page, fields) = to.page.told(&told);
            ("text/html; charset=utf-8", page)
        } else if to.reveal {
            let json = format!(
                "{{\"type\":\"urn:warmhop:{}\",\"title\":{},\"status\":{},\"detail\":{},\"instance\":{}}}\n",
                self.name,
                json_string(title),
                self.status.as_u16(),
                json_string(&self.detail),
                json_string(&format!("urn:warmhop:request:{}", to.id)),
            );
            ("application/problem+json", json)
        } else {
            let (_, words) = in_plain_words(self.status, false);
            let json = format!(
                "{{\"type\":\"about:blank\",\"title\":{},\"status\":{},\"detail\":{}}}\n",
                json_string(title),
                self.status.as_u16(),
                json_string(words),
            );
            ("application/problem+json", json)
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.extend(fields);
        if let Some(span) = self.retry_after {
            headers
                .insert(RETRY_AFTER, HeaderValue::from(span.as_secs_f64().ceil().max(1.0) as u64));
        }
        if let Some(kind) = self.proxy_error.filter(|_| to.reveal) {
            let (peer, detail) = (sf_name(to.peer), sf_string(&self.detail));
            let value = format!("{peer}; error={kind}; details={detail}");
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert("proxy-status", value);
            }
        }
        response
    }
}

/// An app took a request and gave no answer in time.
pub(crate) fn too_slow(peer: &str, detail: &str) -> Problem {
    let detail = format!(
        "the app on {peer} took the request and gave no answer: {detail}; whether it was carried \
         out is unknown"
    );
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "app-too-slow", detail)
        .proxy_error("http_response_timeout")
}

pub(crate) fn outcome_unknown(why: &str) -> Problem {
    Problem::new(
        StatusCode::BAD_GATEWAY,
        "outcome-unknown",
        format!("{why}; whether the request was carried out is unknown"),
    )
    .proxy_error("connection_terminated")
}

/// A problem of an attempt that followed one which may have been applied. Most problems say that
/// nothing was done, and whoever hears so does it again.
pub(crate) fn after_an_attempt(problem: Problem) -> Problem {
    let says_so = problem.name.starts_with("applied-")
        || ["outcome-unknown", "app-failed", "execution-failed"].contains(&problem.name);
    // What is not there, or not any more, is not there twice either.
    let nothing_there = ["absent", "session-lost"].contains(&problem.name);
    if says_so || nothing_there {
        return problem;
    }
    outcome_unknown(&format!("a first attempt broke off, and the next failed: {}", problem.detail))
}

pub(crate) fn gave_up() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no-progress",
        "no peer could take the request after several tries",
    )
    .proxy_error("destination_unavailable")
    .retry_after(Duration::from_secs(1))
}

/// The name of the problem of a change that there is no memory for.
pub(crate) const MEMORY_FULL: &str = "session-memory-full";

pub(crate) fn memory_full() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        MEMORY_FULL,
        "sessions take all the memory that they may on the peer that owns this one: nothing was done",
    )
    .proxy_error("destination_unavailable")
    .retry_after(Duration::from_secs(30))
}

pub(crate) fn too_many_sessions() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "too-many-sessions",
        "this peer holds as many sessions as it may",
    )
    .proxy_error("destination_unavailable")
    .retry_after(Duration::from_secs(5))
}

/// What a client is told of a session that could not be used.
pub(crate) fn of_session(failure: &Failure) -> Problem {
    let (name, status, detail) = describe(failure);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let problem = Problem::new(status, name, detail);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        problem.proxy_error("destination_unavailable").retry_after(Duration::from_secs(1))
    } else if status.is_server_error() {
        problem.proxy_error("connection_terminated")
    } else {
        problem.proxy_error("http_request_denied")
    }
}

/// A failure's name, HTTP status and words for people.
pub(crate) fn describe(failure: &Failure) -> (&'static str, u16, &'static str) {
    match failure {
        Failure::QueueFull => {
            ("session-queue-full", 503, "too many requests of this session wait already")
        }
        Failure::NoMajority { ran: false } => (
            "session-no-majority",
            503,
            "no majority of the peers that hold this session could be reached",
        ),
        Failure::NoMajority { ran: true } => (
            "outcome-unknown",
            502,
            "the request ran, but no majority of the peers that hold its session confirmed it; \
             whether its change stays is unknown",
        ),
        Failure::FingerprintDiffers => {
            ("idempotency-key-reused", 422, "this Idempotency-Key was used with another request")
        }
        Failure::KeyInUse => (
            "idempotency-key-in-use",
            409,
            "a request with this Idempotency-Key is under way; wait for its answer",
        ),
        Failure::BelowFloor => (
            "outcome-unknown",
            409,
            "a request with this Idempotency-Key may have been applied too long ago to tell",
        ),
        Failure::Lost { ran: false } | Failure::WentOn { .. } => {
            ("session-lost", 503, "too many of the peers that held this session are gone")
        }
        Failure::Lost { ran: true } => (
            "outcome-unknown",
            502,
            "the request ran, but too many of the peers that held its session are gone",
        ),
        Failure::Absent => ("absent", 404, "nobody knows of a session under this key"),
        Failure::Ended => {
            ("session-ended", 409, "the session's id was ended, by a logout for example")
        }
        Failure::TooManyRetries => {
            ("session-no-executor", 503, "the peers where the app is ready could not run it")
        }
        Failure::Deposed { .. } => (
            "outcome-unknown",
            502,
            "the session's owner changed while the request ran; whether it was applied is unknown",
        ),
        Failure::ExecutionFailed => ("execution-failed", 502, "the request could not be executed"),
    }
}

pub(crate) fn as_refusal(problem: &Problem) -> HopRefusal {
    HopRefusal::Problem {
        status: problem.status.as_u16(),
        name: problem.name.to_owned(),
        detail: problem.detail.clone(),
        retry_after_ms: problem
            .retry_after
            .map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// A problem that another peer decided on.
pub(crate) fn from_refusal(
    status: u16,
    name: &str,
    detail: String,
    retry_after_ms: Option<u64>,
) -> Problem {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut problem = Problem::new(status, known_problem(name), detail);
    problem.retry_after = retry_after_ms.map(Duration::from_millis);
    if status.is_server_error() {
        problem = problem.proxy_error("destination_unavailable");
    }
    problem
}

/// The names of problems are the project's own; one from a newer peer is told by its detail.
pub(crate) fn known_problem(name: &str) -> &'static str {
    const KNOWN: [&str; 18] = [
        MEMORY_FULL,
        "app-too-slow",
        "absent",
        "session-queue-full",
        "session-no-majority",
        "outcome-unknown",
        "idempotency-key-reused",
        "idempotency-key-in-use",
        "session-lost",
        "session-no-executor",
        "execution-failed",
        "app-failed",
        "applied-answer-lost",
        "applied-too-large-to-repeat",
        "no-progress",
        "idempotency-key-outcome-unknown",
        SET_TOO_LARGE,
        FIELD_REFUSED,
    ];
    KNOWN.iter().copied().find(|known| *known == name).unwrap_or("at-owner")
}

/// A name as an RFC 9651 token where it is one, else as a string.
pub(crate) fn sf_name(name: &str) -> String {
    if name.starts_with(|c: char| c.is_ascii_alphabetic()) { name.into() } else { sf_string(name) }
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

/// Whether a client names HTML and weighs nothing higher that a problem could be told in (RFC 9110
/// section 12.5.1). Of two that weigh the same, the one named first.
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
    use super::*;

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
            let told = after_an_attempt(undone);
            assert_eq!((told.name, told.status), ("outcome-unknown", StatusCode::BAD_GATEWAY));
            assert!(told.retry_after.is_none() && told.detail.contains(&detail), "{told:?}");
        }
        for answer in [Failure::Absent, Failure::Lost { ran: false }, Failure::BelowFloor] {
            let problem = of_session(&answer);
            assert_eq!(after_an_attempt(problem.clone()).name, problem.name);
        }
    }

    #[test]
    fn a_detail_with_quotes_and_line_breaks_stays_one_valid_header_and_one_valid_json_string() {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "x", "said \"no\"\n\u{1}é")
            .proxy_error("destination_unavailable")
            .because("inner");
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
