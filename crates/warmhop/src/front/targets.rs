//! Requests that their target or `Max-Forwards` settles before an app is looked for.

use http::header::{ALLOW, HOST, HeaderMap, HeaderName, HeaderValue, MAX_FORWARDS};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri};

use warmhop_core::matching::without_prefix;
use warmhop_core::problem::ProblemKind;

use crate::http::body::Body;
use crate::request::problem::Problem;

/// The methods of the server as a whole (RFC 9110 section 9.3.7); each app may report others.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Whether `uri` has one of the forms that RFC 9112 section 3.2 has for `method`, and RFC 9113
/// section 8.3.1 for HTTP/2: a path from the root on, which may be part of a whole URI, or the
/// server as a whole. Any other form would have to be interpreted as a path, and another reader
/// would interpret it differently. A whole URI is one of HTTP: what other schemes identify is not
/// served here.
fn is_target(method: &Method, uri: &Uri) -> bool {
    let is_http = |scheme: &Scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS;
    if !uri.scheme().is_none_or(is_http) {
        return false;
    }
    match uri.path() {
        "*" => method == Method::OPTIONS && uri.query().is_none(),
        path => path.starts_with('/'),
    }
}

/// Refuses an invalid target, and answers a question for this server and not for an app.
pub(crate) fn answered_here<B>(request: &Request<B>) -> Option<Result<Response<Body>, Problem>> {
    let (method, uri) = (request.method(), request.uri());
    if !is_target(method, uri) {
        let detail = "the request's target is neither a path that begins with a slash nor a whole URI of HTTP";
        return Some(Err(Problem::new(ProblemKind::BadTarget, detail)));
    }
    let ends_here = hops_left(method, request.headers()) == Some(0);
    if uri.path() == "*" || (ends_here && method == Method::OPTIONS) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(METHODS));
        return Some(Ok(response));
    }
    if method == Method::TRACE {
        // The app's answer would be the request as it got it: with fields of this peer that its
        // client must not see.
        let detail = "TRACE is not supported";
        return Some(Err(Problem::new(ProblemKind::NoTrace, detail)));
    }
    None
}

/// How often the request may still be forwarded (RFC 9110 section 7.6.2).
fn hops_left(method: &Method, headers: &HeaderMap) -> Option<u32> {
    if *method != Method::OPTIONS {
        return None;
    }
    let text = headers.get(MAX_FORWARDS)?.to_str().ok()?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Counts that the request is forwarded.
pub(crate) fn passed_on(method: &Method, headers: &mut HeaderMap) {
    if let Some(left) = hops_left(method, headers) {
        headers.insert(MAX_FORWARDS, HeaderValue::from(left.saturating_sub(1)));
    }
}

/// The target in the app's form, which may lack the `prefix` of its path.
pub(crate) fn for_app(uri: &Uri, prefix: Option<&str>) -> PathAndQuery {
    let root = || PathAndQuery::from_static("/");
    let of = |text: String| PathAndQuery::try_from(text).unwrap_or_else(|_| root());
    let target = match uri.path_and_query() {
        // The target was a whole URI without a path (RFC 9112 section 3.2.1).
        Some(query) if query.as_str().starts_with('?') => of(["/", query.as_str()].concat()),
        Some(target) => target.clone(),
        None => root(),
    };
    match prefix {
        Some(prefix) => {
            let (slash, rest) = without_prefix(target.as_str(), prefix);
            of([slash, rest].concat())
        }
        None => target,
    }
}

/// Sends an app the prefix that was removed from the path, after the one that a proxy removed
/// before.
pub(crate) fn tell_prefix(headers: &mut HeaderMap, prefix: &str) {
    const FIELD: HeaderName = HeaderName::from_static("x-forwarded-prefix");
    let before = headers.get(&FIELD).and_then(|before| before.to_str().ok()).unwrap_or_default();
    let whole = format!("{}{prefix}", before.trim_end_matches('/'));
    if let Ok(value) = HeaderValue::from_str(&whole) {
        headers.insert(FIELD, value);
    }
}

/// Gives a request of HTTP/1.0 without a host the one by which its app is known: some host has to
/// be there, and would otherwise be the loopback address of the app. Returns the host that is there.
pub(crate) fn name_host(headers: &mut HeaderMap, of_app: Option<&str>) -> HeaderValue {
    let otherwise = || {
        let host = of_app.and_then(|host| HeaderValue::from_str(host).ok());
        host.unwrap_or(HeaderValue::from_static("localhost"))
    };
    headers.entry(HOST).or_insert_with(otherwise).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_path_or_a_whole_uri_and_nothing_is_made_up_into_one() {
        for (method, uri, app_gets) in [
            (Method::GET, "/", Some("/")),
            (Method::GET, "/a?b", Some("/a?b")),
            (Method::GET, "http://x", Some("/")),
            (Method::GET, "http://x?q=1", Some("/?q=1")),
            (Method::GET, "http://x/a?q=1", Some("/a?q=1")),
            (Method::DELETE, "products", None),
            (Method::GET, "x:80", None),
            (Method::GET, "*", None),
            (Method::GET, "HTTPS://x/a", Some("/a")),
            (Method::GET, "ftp://x/a", None),
            (Method::GET, "ws://x/", None),
            (Method::GET, "x+y://x", None),
            (Method::OPTIONS, "*", Some("*")),
        ] {
            let uri: Uri = uri.parse().unwrap();
            let target = is_target(&method, &uri).then(|| for_app(&uri, None));
            assert_eq!(target.as_ref().map(PathAndQuery::as_str), app_gets, "{method} {uri}");
        }
    }

    #[test]
    fn a_request_is_passed_on_as_often_as_it_may_be() {
        let asked = |method: &str, left: &str| {
            let request = Request::builder().method(method).uri("/").header("max-forwards", left);
            let request = request.body(()).unwrap();
            let answer = answered_here(&request).map(|answer| match answer {
                Ok(response) => response.status().as_u16(),
                Err(problem) => problem.kind.status(),
            });
            let mut headers = request.headers().clone();
            passed_on(request.method(), &mut headers);
            (answer, headers["max-forwards"].to_str().unwrap().to_owned())
        };
        assert_eq!(asked("OPTIONS", "0").0, Some(204));
        assert_eq!(asked("OPTIONS", "2"), (None, "1".into()));
        for left in ["0", "1", "x"] {
            assert_eq!(asked("TRACE", left).0, Some(501), "{left}");
        }
        for (method, left) in [("GET", "0"), ("OPTIONS", "-1"), ("OPTIONS", "+0"), ("OPTIONS", "x")]
        {
            assert_eq!(asked(method, left), (None, left.into()), "{method} {left}");
        }
    }

    #[test]
    fn an_app_learns_each_prefix_that_its_requests_lack() {
        let mut headers = HeaderMap::new();
        tell_prefix(&mut headers, "/shop");
        assert_eq!(headers["x-forwarded-prefix"], "/shop");
        headers.insert("x-forwarded-prefix", HeaderValue::from_static("/outer/"));
        tell_prefix(&mut headers, "/shop");
        assert_eq!(headers["x-forwarded-prefix"], "/outer/shop");
        let uri: Uri = "http://x/shop?q=1".parse().unwrap();
        assert_eq!(for_app(&uri, Some("/shop")).as_str(), "/?q=1");
    }

    #[test]
    fn a_host_that_was_named_stays() {
        for (named, of_app, host) in [
            (None, None, "localhost"),
            (None, Some("a.example"), "a.example"),
            (Some("b.example"), Some("a.example"), "b.example"),
        ] {
            let named = named.map(|name| (HOST, HeaderValue::from_static(name)));
            let mut headers: HeaderMap = named.into_iter().collect();
            name_host(&mut headers, of_app);
            assert_eq!(headers[HOST], host);
        }
    }
}
