//! Which clients are answered.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use http::uri::Authority;
use http::{Method, StatusCode};
use subtle::ConstantTimeEq;

use crate::admin::answers::problem;
use crate::http::refusals::Refusals;
use crate::http::refusals::admin::AdminRefusal;

/// The token that clients have to send at present.
#[derive(Clone, Default)]
pub struct Token(Arc<RwLock<Option<Arc<str>>>>);

impl fmt::Debug for Token {
    /// The token is never shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.get().is_some() { "Token(set)" } else { "Token(none)" })
    }
}

impl Token {
    /// `None`: no token, and then only clients that address the listener by an IP address or as
    /// `localhost` are answered.
    #[must_use]
    pub fn new(token: Option<&str>) -> Self {
        Self(Arc::new(RwLock::new(token.map(Arc::from))))
    }

    /// Replaces the token.
    pub fn set(&self, token: Option<&str>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = token.map(Arc::from);
    }

    pub(crate) fn get(&self) -> Option<Arc<str>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Clone)]
pub(crate) struct Guard {
    pub(crate) token: Token,
    pub(crate) refusals: Arc<Refusals<AdminRefusal>>,
}

/// In the extensions of a request that passed without the token that there is.
#[derive(Clone)]
pub(crate) struct Stranger;

/// Lets a request pass, or refuses it.
pub(crate) async fn check(
    State(guard): State<Guard>,
    mut request: Request,
    next: Next,
) -> Response {
    match guard.refusal(request.method(), request.uri().path(), request.headers()) {
        Some(refusal) => refusal,
        None => {
            let token = guard.token.get();
            if token.is_some_and(|token| !shows_token(request.headers(), &token)) {
                request.extensions_mut().insert(Stranger);
            }
            next.run(request).await
        }
    }
}

impl Guard {
    fn refusal(&self, method: &Method, path: &str, headers: &HeaderMap) -> Option<Response> {
        if let Some(token) = &self.token.get() {
            let is_open = matches!(path, "/" | "/healthz" | "/readyz");
            if !is_open && !shows_token(headers, token) {
                self.refusals.note(AdminRefusal::NoToken);
                let mut refusal = problem(
                    StatusCode::UNAUTHORIZED,
                    "this needs Authorization: Bearer with the admin token; the commands take it \
                     from WARMHOP_ADMIN_TOKEN",
                );
                let scheme = HeaderValue::from_static("Bearer realm=\"warmhop\"");
                refusal.headers_mut().insert(WWW_AUTHENTICATE, scheme);
                return Some(refusal);
            }
        } else if !is_local_host(headers) {
            self.refusals.note(AdminRefusal::ForeignHost);
            return Some(problem(
                StatusCode::FORBIDDEN,
                "the Host field names another machine; ask http://127.0.0.1, or set an admin token",
            ));
        }
        let acts = method != Method::GET && method != Method::HEAD;
        if acts && is_foreign_page(headers) {
            self.refusals.note(AdminRefusal::ForeignPage);
            return Some(problem(
                StatusCode::FORBIDDEN,
                "a web page of another origin may not act on this peer",
            ));
        }
        None
    }
}

/// Compared in constant time, so that the time does not reveal how much was right.
fn shows_token(headers: &HeaderMap, token: &str) -> bool {
    let shown = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
        let (scheme, rest) = value.split_at_checked(b"Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(rest.trim_ascii())
    });
    shown.is_some_and(|shown| shown.ct_eq(token.as_bytes()).into())
}

/// A page whose DNS name was rebound to this machine sends that name. An address cannot be
/// rebound, and a client without `Host` (HTTP/1.0, as health checkers are) is no browser.
fn is_local_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => true,
        (Some(host), None) => authority(host).is_some_and(|authority| {
            let host = authority.host();
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
        }),
        _ => false,
    }
}

/// Browsers send `Origin` with every request that acts, and most report how far the page is.
fn is_foreign_page(headers: &HeaderMap) -> bool {
    let says_so = headers
        .get("sec-fetch-site")
        .is_some_and(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"));
    let other_origin = headers.get(ORIGIN).is_some_and(|origin| {
        let origin = origin.to_str().ok().and_then(|text| text.strip_prefix("http"));
        let origin = origin.and_then(|rest| rest.trim_start_matches('s').strip_prefix("://"));
        let origin = origin.and_then(|rest| rest.parse::<Authority>().ok());
        origin.is_none() || origin != headers.get(HOST).and_then(authority)
    });
    says_so || other_origin
}

fn authority(value: &HeaderValue) -> Option<Authority> {
    value.to_str().ok()?.parse().ok()
}
