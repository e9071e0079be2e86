//! The page that a browser gets while an app is ready nowhere: how far the start has come, and then
//! the app itself. Other clients wait for the first copy instead, because a program needs the
//! answer and nothing else.
//!
//! The page is self-contained and may load nothing; it asks [`PROGRESS_PATH`] for the progress of
//! the start, which never starts anything, and reloads itself once the app is ready.

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderValue,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Response};
use warmhop_core::app::ETA_FLOOR;

use crate::http::body::Body;
use crate::observe::progress::Progress;
use crate::request::error_page::escape_html;
use crate::request::problem::prefers_html;

/// The path at which a front door reports the progress of an app's start; the app's own path
/// follows. A well-known path (RFC 8615), which no app has by accident.
pub(crate) const PROGRESS_PATH: &str = "/.well-known/warmhop/starting";
const PAGE: &str = include_str!("starting.html");

impl Progress {
    /// The JSON for [`PROGRESS_PATH`].
    pub(crate) fn response(&self) -> Response<Body> {
        let number = |span: Option<Duration>| {
            span.map_or_else(|| "null".to_owned(), |span| span.as_millis().to_string())
        };
        let json = format!(
            "{{\"state\":\"{}\",\"eta_ms\":{},\"elapsed_ms\":{},\"failures\":{},\"retry_ms\":{}}}\n",
            self.state,
            number(self.eta),
            number(self.elapsed),
            self.failures,
            number(self.retry)
        );
        let mut response = Response::new(Body::from(json));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    /// The page's text and the fields that go with it.
    pub(crate) fn page(&self, app: &str) -> (String, HeaderMap) {
        let number = |span: Option<Duration>| {
            span.map(|span| span.as_millis().to_string()).unwrap_or_default()
        };
        let left = match (self.eta, self.failures) {
            (Some(eta), _) if eta <= ETA_FLOOR => "It takes longer than usual.".into(),
            (Some(eta), _) => format!("Ready in about {} s.", eta.as_secs_f64().ceil().max(1.0)),
            (None, 0) => "How long its first start takes is not known yet.".into(),
            (None, 1) => "It failed once, and is being tried again.".into(),
            (None, failures) => format!("It failed {failures} times, and is being tried again."),
        };
        let page = PAGE
            .replace("{progress_path}", PROGRESS_PATH)
            .replace("{eta_ms}", &number(self.eta))
            .replace("{elapsed_ms}", &number(self.elapsed))
            .replace("{failures}", &self.failures.to_string())
            .replace("{left}", &left)
            .replace("{app}", &escape_html(app));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        (page, headers)
    }
}

/// The page's own style and script, by their digests (CSP Level 3 section 2.3.1), and the request
/// for the progress of the start; nothing else.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let page = PAGE.replace("{progress_path}", PROGRESS_PATH);
    let digest = |tag: &str| {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        let from = page.find(&open).map_or(0, |at| at + open.len());
        let to = page.find(&close).unwrap_or(page.len());
        let digest = ring::digest::digest(&ring::digest::SHA256, &page.as_bytes()[from..to]);
        format!("'sha256-{}'", STANDARD.encode(digest))
    };
    let policy = format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        digest("style"),
        digest("script"),
    );
    HeaderValue::try_from(policy).expect("digests in base64 are visible ASCII")
});

/// Whether a person opens the app in a browser's tab. Current browsers reveal that by fetch
/// metadata; of those that send none, one that prefers HTML to anything else counts. A frame or a
/// prefetch is no tab that a person looks at.
pub(crate) fn is_navigation(method: &Method, headers: &HeaderMap) -> bool {
    let field = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    let prefetches = || {
        ["sec-purpose", "purpose"]
            .iter()
            .any(|name| field(name).is_some_and(|value| value.starts_with(b"prefetch")))
    };
    // First the check that most requests of programs fail.
    *method == Method::GET
        && headers.contains_key(ACCEPT)
        && prefers_html(headers)
        && !prefetches()
        && match field("sec-fetch-mode") {
            Some(mode) => mode == b"navigate",
            // Browsers send the mode only to sites that they consider secure. To all others they
            // send this when they open a tab, and no program that prefers HTML does.
            None => field("upgrade-insecure-requests") == Some(b"1"),
        }
        && field("sec-fetch-dest").is_none_or(|dest| dest == b"document")
        && !headers.contains_key("idempotency-key")
        && !headers.contains_key(http::header::UPGRADE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTING: Progress =
        Progress { state: "starting", eta: None, elapsed: None, failures: 0, retry: None };
    const CHROMIUM: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

    fn fields(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn only_a_tab_that_somebody_looks_at_is_shown_a_page() {
        let html = ("accept", CHROMIUM);
        let tab = [html, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert!(is_navigation(&Method::GET, &fields(&tab)));
        let plain = [html, ("upgrade-insecure-requests", "1")];
        assert!(is_navigation(&Method::GET, &fields(&plain)), "a browser without metadata");
        let java = ("accept", "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2");
        assert!(!is_navigation(&Method::GET, &fields(&[java])), "a program without any");
        for method in [Method::POST, Method::HEAD, Method::PUT] {
            assert!(!is_navigation(&method, &fields(&tab)), "{method}");
        }
        for other in [
            &[("accept", "*/*")][..],
            &[("accept", "application/json, text/html;q=0.1")],
            &[],
            &[html, ("sec-fetch-mode", "cors")],
            &[html, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")],
            &[html, ("sec-purpose", "prefetch;prerender")],
            &[html, ("idempotency-key", "a")],
            &[html, ("upgrade", "websocket")],
        ] {
            assert!(!is_navigation(&Method::GET, &fields(other)), "{other:?}");
        }
    }

    #[test]
    fn the_page_is_shown_where_waiting_would_hang_the_tab() {
        let starting = |eta| Progress { eta, ..STARTING };
        assert!(starting(None).is_worth_a_page());
        assert!(starting(Some(Duration::from_secs(4))).is_worth_a_page());
        assert!(!starting(Some(Duration::from_millis(900))).is_worth_a_page());
        assert!(starting(Some(ETA_FLOOR)).is_worth_a_page(), "an overdue one may take any time");
    }

    #[test]
    fn a_page_without_scripts_tells_what_is_late_and_what_failed() {
        for (progress, said) in [
            (Progress { eta: Some(ETA_FLOOR), ..STARTING }, "It takes longer than usual."),
            (STARTING, "How long its first start takes is not known yet."),
            (Progress { failures: 1, ..STARTING }, "It failed once, and is being tried again."),
            (Progress { failures: 3, ..STARTING }, "It failed 3 times, and is being tried again."),
        ] {
            let page = progress.page("shop").0;
            assert!(page.contains(said), "{said} in {page}");
        }
    }

    #[test]
    fn the_page_names_the_app_as_text_and_allows_nothing_but_its_own_parts() {
        let progress = Progress {
            eta: Some(Duration::from_millis(3200)),
            elapsed: Some(Duration::from_millis(800)),
            ..STARTING
        };
        let (page, headers) = progress.page("a<script>\"&");
        assert!(page.contains("a&lt;script&gt;&quot;&amp; is starting"), "{page}");
        assert!(page.contains("data-eta-ms=\"3200\" data-elapsed-ms=\"800\""), "{page}");
        assert!(page.contains("Ready in about 4 s."), "{page}");
        assert!(!page.contains("{app}") && !page.contains("://"), "{page}");
        let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        // The digest covers exactly what is sent: there is no name or number within the two parts.
        for (open, close) in [("<style>", "</style>"), ("<script>", "</script>")] {
            let part = &page[page.find(open).unwrap() + open.len()..page.find(close).unwrap()];
            let digest = ring::digest::digest(&ring::digest::SHA256, part.as_bytes());
            assert!(policy.contains(&STANDARD.encode(digest)), "{open}");
        }
    }
}
