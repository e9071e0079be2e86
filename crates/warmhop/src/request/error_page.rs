//! The page that a browser gets if its request cannot be served: self-contained, in plain words,
//! and trying again by itself if it is known when that is worthwhile. Operators and embedders may
//! replace it.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use http::header::{
    CONTENT_SECURITY_POLICY, HeaderMap, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};

const PAGE: &str = include_str!("error.html");

/// The page: a custom one, or the mesh's own.
#[derive(Debug, Clone, Default)]
pub(crate) struct ErrorPage(Option<Arc<str>>);

/// The contents of a page.
pub(crate) struct Shown<'a> {
    pub(crate) status: StatusCode,
    /// What happened, for readers who may know about the mesh's inside.
    pub(crate) detail: &'a str,
    /// The request's id, for the same readers.
    pub(crate) id: &'a str,
    /// When to try again, if that repeats nothing but the view of a page.
    pub(crate) again: Option<Duration>,
}

impl ErrorPage {
    /// A custom page, in which `{status}`, `{title}`, `{words}`, `{detail}`, `{id}` and `{again}`
    /// (an element of the head that reloads the page) are replaced.
    pub(crate) fn of(page: String) -> Self {
        Self(Some(page.into()))
    }

    /// The page's text and the fields that go with it.
    pub(crate) fn render(&self, shown: &Shown<'_>) -> (String, HeaderMap) {
        let again = shown.again.map_or_else(String::new, |again| {
            let seconds = again.as_secs_f64().ceil().max(1.0);
            format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">\n")
        });
        let (title, words) = in_plain_words(shown.status, shown.again.is_some());
        let status = shown.status.as_u16().to_string();
        let values = [
            ("status", status.as_str()),
            ("title", title),
            ("words", words),
            ("detail", &escape_html(shown.detail)),
            ("id", &escape_html(shown.id)),
            ("again", &again),
        ];
        let mut headers = HeaderMap::new();
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(page) = &self.0 {
            // If its author loads resources from elsewhere, that is the author's decision.
            return (filled(page, &values), headers);
        }
        headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        (filled(PAGE, &values), headers)
    }
}

pub(crate) fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// `page` with each `{name}` replaced. It takes one pass, so that nothing inside a value is
/// replaced.
fn filled(page: &str, values: &[(&str, &str)]) -> String {
    let mut full = String::with_capacity(page.len() + 256);
    let mut rest = page;
    while let Some(at) = rest.find('{') {
        full.push_str(&rest[..at]);
        rest = &rest[at..];
        let value = values.iter().find(|(name, _)| {
            rest[1..].strip_prefix(name).is_some_and(|behind| behind.starts_with('}'))
        });
        match value {
            Some((name, value)) => {
                full.push_str(value);
                rest = &rest[name.len() + 2..];
            }
            None => {
                full.push('{');
                rest = &rest[1..];
            }
        }
    }
    full.push_str(rest);
    full
}

/// A headline, and its meaning for the person who reads it.
pub(crate) fn in_plain_words(status: StatusCode, again: bool) -> (&'static str, &'static str) {
    match status.as_u16() {
        404 => ("There is nothing here", "Check the address, or go back to where you came from."),
        408 => ("That took too long", "The request did not arrive in time. Please send it again."),
        409 | 422 => {
            ("This was sent before", "Check whether it went through before you send it again.")
        }
        413 => ("That is too large", "What you sent is larger than this site accepts."),
        431 => ("Too many cookies", "Deleting the cookies of this site often helps."),
        429 => ("Too many requests", "Please wait a moment, and try again."),
        400..500 => {
            ("That was not understood", "The request is not one that this site can answer.")
        }
        _ if status == StatusCode::NOT_IMPLEMENTED => (
            "That cannot be done here",
            "This site does not support requests of this kind, and trying again will not help.",
        ),
        502 => (
            "No proper answer",
            "The service behind this page failed to answer. If you sent something, check whether it \
             went through before you send it again.",
        ),
        504 => (
            "No answer in time",
            "The service behind this page takes too long. If you sent something, check whether it \
             went through before you send it again.",
        ),
        _ if again => (
            "Just a moment",
            "This page cannot be shown right now. Your browser will try again by itself.",
        ),
        _ => ("This is not available right now", "Please try again in a moment."),
    }
}

/// The page's own style, by its digest (CSP Level 3 section 2.3.1), and nothing else.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let (open, close) = ("<style>", "</style>");
    let from = PAGE.find(open).map_or(0, |at| at + open.len());
    let to = PAGE.find(close).unwrap_or(PAGE.len());
    let digest = ring::digest::digest(&ring::digest::SHA256, &PAGE.as_bytes()[from..to]);
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
        STANDARD.encode(digest),
    );
    HeaderValue::try_from(policy).expect("a digest in base64 is visible ASCII")
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_client_sent_is_markup_or_is_replaced_again() {
        let shown = Shown {
            status: StatusCode::NOT_FOUND,
            detail: "no app for <script>{id}</script>",
            id: "a\"{detail}",
            again: None,
        };
        let (page, fields) = ErrorPage::default().render(&shown);
        assert!(page.contains("&lt;script&gt;{id}&lt;/script&gt;"), "{page}");
        assert!(page.contains("404 a&quot;{detail}"), "{page}");
        assert!(!page.contains("refresh") && !page.contains("://"), "{page}");
        let style = &page[page.find("<style>").unwrap() + 7..page.find("</style>").unwrap()];
        let digest = ring::digest::digest(&ring::digest::SHA256, style.as_bytes());
        let policy = fields[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.contains(&STANDARD.encode(digest)), "{policy}");
    }

    #[test]
    fn nobody_is_asked_to_repeat_what_will_never_work() {
        let (_, words) = in_plain_words(StatusCode::NOT_IMPLEMENTED, false);
        assert!(words.contains("will not help") && !words.contains("in a moment"), "{words}");
    }

    #[test]
    fn a_page_of_ones_own_is_filled_in_and_bound_to_nothing() {
        let page = ErrorPage::of("<head>{again}</head>{status} {title} {nothing} {".into());
        let again = Some(Duration::from_millis(2500));
        let shown = Shown { status: StatusCode::SERVICE_UNAVAILABLE, detail: "", id: "", again };
        let (page, fields) = page.render(&shown);
        let refresh = "<head><meta http-equiv=\"refresh\" content=\"3\">\n</head>";
        assert_eq!(page, format!("{refresh}503 Just a moment {{nothing}} {{"));
        assert!(!fields.contains_key(CONTENT_SECURITY_POLICY));
    }
}
