//! HTTP fields on their way through: what is removed, what is added, and why.

use std::net::IpAddr;

use http::header::{
    self, CACHE_CONTROL, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, SET_COOKIE, TE,
    UPGRADE, VIA,
};
use http::{Method, Uri, Version};
use warmhop_core::ids::RequestId;

/// The field that carries a portable session between a peer and an app.
pub(crate) const SESSION_FIELD: &str = "warmhop-session";
/// The field that names the request in every response.
pub(crate) const REQUEST_ID_FIELD: &str = "warmhop-request-id";
/// The field that names the peer that ran the app.
pub(crate) const PEER_FIELD: &str = "warmhop-peer";

/// Takes out the fields that concern one connection alone (RFC 9110 section 7.6.1), those that
/// `Connection` names included. `TE: trailers` stays, because trailers are passed on.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| *name != HOST && *name != header::CONTENT_LENGTH)
        .collect();
    let wants_trailers = headers
        .get_all(TE)
        .iter()
        .any(|value| value.to_str().is_ok_and(|te| te.to_ascii_lowercase().contains("trailers")));
    for name in named {
        headers.remove(name);
    }
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ] {
        headers.remove(name);
    }
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Takes out every field of the mesh's own name space, so that neither a client nor an app can
/// speak for a peer.
pub(crate) fn remove_reserved(headers: &mut HeaderMap) {
    let reserved: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("warmhop-")).cloned().collect();
    for name in reserved {
        headers.remove(name);
    }
}

/// Whether the client sends the body only once it is told to go on (RFC 9110 section 10.1.1).
pub(crate) fn expects_continue(headers: &HeaderMap) -> bool {
    headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The protocol that an HTTP/1.1 request asks to upgrade to, if its `Connection` says so.
pub(crate) fn wanted_upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let connection_says_so = headers.get_all(CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|list| {
            list.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
        })
    });
    if version == Version::HTTP_11 && connection_says_so {
        // Upgrading to HTTP/2 in clear text was withdrawn by RFC 9113 section 3.1.
        headers.get(UPGRADE).filter(|protocol| !protocol.as_bytes().starts_with(b"h2")).cloned()
    } else {
        None
    }
}

/// Puts the upgrade back that [`remove_hop_by_hop`] took out.
pub(crate) fn put_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Adds what tells the app where the request came from: `X-Forwarded-*` and `Forwarded`
/// (RFC 7239), appended to what earlier proxies said.
pub(crate) fn append_forwarded(
    headers: &mut HeaderMap,
    client: Option<IpAddr>,
    host: Option<&str>,
    scheme: &'static str,
) {
    let node = match client {
        Some(IpAddr::V6(ip)) => format!("\"[{ip}]\""),
        Some(ip) => ip.to_string(),
        None => "unknown".into(),
    };
    let mut element = format!("for={node};proto={scheme}");
    if let Some(host) = host.filter(|host| !host.contains(['"', '\\'])) {
        element.push_str(&format!(";host=\"{host}\""));
    }
    append_list(headers, header::FORWARDED, &element);
    if let Some(ip) = client {
        append_list(headers, HeaderName::from_static("x-forwarded-for"), &ip.to_string());
    }
    for (name, value) in [("x-forwarded-proto", Some(scheme)), ("x-forwarded-host", host)] {
        if let (false, Some(Ok(value))) =
            (headers.contains_key(name), value.map(HeaderValue::from_str))
        {
            headers.insert(name, value);
        }
    }
}

/// Appends `Via` (RFC 9110 section 7.6.3): the version that the message came by, and who passed
/// it on.
pub(crate) fn append_via(headers: &mut HeaderMap, version: Version, peer: &str) {
    let version = match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    };
    append_list(headers, VIA, &format!("{version} {peer}"));
}

fn append_list(headers: &mut HeaderMap, name: HeaderName, element: &str) {
    let mut list: Vec<u8> = Vec::new();
    for value in headers.get_all(&name) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(element.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&list) {
        headers.insert(name, value);
    }
}

/// Sets the affinity cookie and keeps shared caches from storing the response.
pub(crate) fn set_affinity(headers: &mut HeaderMap, cookie: &str) {
    let Ok(value) = HeaderValue::from_str(cookie) else { return };
    headers.append(SET_COOKIE, value);
    let private = headers.get_all(CACHE_CONTROL).iter().any(|value| {
        value.to_str().is_ok_and(|list| list.contains("no-store") || list.contains("private"))
    });
    if !private {
        headers.append(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
}

/// The client's `X-Request-Id` if it is sane.
pub(crate) fn request_id(headers: &HeaderMap) -> Option<RequestId> {
    RequestId::new(headers.get("x-request-id")?.to_str().ok()?).ok()
}

/// The host a request is for, lower-case and without port.
pub(crate) fn host_of(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let authority = match uri.authority() {
        Some(authority) => authority.as_str(),
        None => headers.get(HOST)?.to_str().ok()?,
    };
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = if authority.starts_with('[') {
        authority.split_inclusive(']').next()?
    } else {
        authority.split(':').next()?
    };
    Some(host.to_ascii_lowercase())
}

/// Whether requests of this method change nothing (RFC 9110 section 9.2.1).
pub(crate) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn what_connection_names_goes_with_it_but_never_the_host() {
        let mut fields = headers(&[
            ("connection", "close, x-secret, host"),
            ("x-secret", "1"),
            ("host", "a"),
            ("te", "gzip, trailers"),
            ("keep-alive", "5"),
        ]);
        remove_hop_by_hop(&mut fields);
        assert_eq!(fields, headers(&[("host", "a"), ("te", "trailers")]));
    }

    #[test]
    fn forwarding_fields_extend_what_earlier_proxies_said() {
        let mut fields =
            headers(&[("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "https")]);
        append_forwarded(
            &mut fields,
            Some("2001:db8::1".parse().unwrap()),
            Some("a.example"),
            "http",
        );
        assert_eq!(fields["x-forwarded-for"], "192.0.2.1, 2001:db8::1");
        assert_eq!(fields["x-forwarded-proto"], "https");
        assert_eq!(fields["forwarded"], "for=\"[2001:db8::1]\";proto=http;host=\"a.example\"");
    }

    #[test]
    fn a_host_is_read_without_port_user_or_case() {
        let uri: Uri = "/".parse().unwrap();
        for (field, host) in
            [("Shop.Localhost:80", "shop.localhost"), ("[::1]:80", "[::1]"), ("a", "a")]
        {
            assert_eq!(host_of(&uri, &headers(&[("host", field)])).as_deref(), Some(host));
        }
        assert_eq!(host_of(&uri, &HeaderMap::new()), None);
    }

    #[test]
    fn only_an_http_1_1_connection_upgrade_counts() {
        let ws = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert!(wanted_upgrade(Version::HTTP_11, &ws).is_some());
        assert!(wanted_upgrade(Version::HTTP_2, &ws).is_none());
        let h2c = headers(&[("connection", "upgrade"), ("upgrade", "h2c")]);
        assert!(wanted_upgrade(Version::HTTP_11, &h2c).is_none());
    }

    #[test]
    fn a_response_that_sets_the_cookie_is_private() {
        let mut fields = headers(&[("cache-control", "public, max-age=60")]);
        set_affinity(&mut fields, "warmhop=x.y");
        assert!(fields.get_all(CACHE_CONTROL).iter().any(|value| value == "private"));
    }
}
