//! HTTP fields on their way through: what is removed, what is added, and why.

use std::net::{IpAddr, Ipv6Addr};

use http::header::{
    self, CACHE_CONTROL, CONNECTION, COOKIE, Entry, HOST, HeaderMap, HeaderName, HeaderValue,
    SET_COOKIE, TE, UPGRADE, VIA,
};
use http::uri::Authority;
use http::{Method, StatusCode, Version};
use warmhop_core::cookie::CookieSpec;
use warmhop_core::ids::RequestId;

use crate::http::about::{is_hop_by_hop, is_ours};
use crate::http::forwarded::origin;

/// The field that carries a portable session between a peer and an app.
pub(crate) const SESSION_FIELD: HeaderName = HeaderName::from_static("warmhop-session");
/// The field that names the request in every response.
pub(crate) const REQUEST_ID_FIELD: &str = "warmhop-request-id";
/// The field that names the peer that ran the app.
pub(crate) const PEER_FIELD: &str = "warmhop-peer";

/// Whether the only field that concerns the connection is one `Connection: keep-alive`, which names
/// no other.
fn only_keeps_alive(headers: &HeaderMap) -> bool {
    let mut fields = headers.iter().filter(|(name, _)| is_hop_by_hop(name.as_str()));
    let (Some((name, value)), None) = (fields.next(), fields.next()) else { return false };
    *name == CONNECTION && value.as_bytes().eq_ignore_ascii_case(b"keep-alive")
}

/// Takes out the fields that concern one connection alone (RFC 9110 section 7.6.1), those that
/// `Connection` names included. `TE: trailers` stays, because trailers are passed on.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if only_keeps_alive(headers) {
        headers.remove(CONNECTION);
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        // The usual values of `Connection` are removed below anyway.
        .filter(|name| !["keep-alive", "upgrade"].iter().any(|it| name.eq_ignore_ascii_case(it)))
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .filter(|name| *name != HOST && *name != header::CONTENT_LENGTH)
        .collect();
    let wants_trailers = headers
        .get_all(TE)
        .iter()
        .any(|value| value.to_str().is_ok_and(|te| te.to_ascii_lowercase().contains("trailers")));
    for name in named {
        headers.remove(name);
    }
    // Most messages have one or none of them: a look at the names that are there is cheaper than a
    // lookup of each that might be.
    while let Some(name) = headers.keys().find(|name| is_hop_by_hop(name.as_str())).cloned() {
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
        headers.keys().filter(|name| is_ours(name.as_str())).cloned().collect();
    for name in reserved {
        headers.remove(name);
    }
}

/// Fields that a proxy or this peer vouches for, besides `X-Forwarded-*`.
const SHADOWED: [&str; 5] =
    ["content-length", "transfer-encoding", "x-real-ip", "x-request-id", "idempotency-key"];

/// Removes fields that an app might confuse with others. An app that reads its fields as CGI does
/// (RFC 3875 section 4.1.18) equates `_` with `-`, and could take such a field for one that a proxy
/// vouches for, or for another field of the message. `Proxy` is removed as well: it is no field of
/// HTTP, but such an app finds it in `HTTP_PROXY`, where its libraries would send their requests.
pub(crate) fn remove_shadows(headers: &mut HeaderMap) {
    let shadows = |name: &&HeaderName| {
        if name.as_str() == "proxy" {
            return true;
        }
        if !name.as_str().contains('_') {
            return false;
        }
        let dashed = name.as_str().replace('_', "-");
        dashed != name.as_str()
            && (headers.contains_key(dashed.as_str())
                || dashed.starts_with("x-forwarded-")
                || SHADOWED.contains(&dashed.as_str()))
    };
    let shadows: Vec<HeaderName> = headers.keys().filter(shadows).cloned().collect();
    for name in shadows {
        headers.remove(name);
    }
}

/// The `Cookie` fields as one, which HTTP/2 lets a client split and HTTP/1.1 does not (RFC 9113
/// section 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Removes an affinity cookie that an app sets: only a peer may set it.
pub(crate) fn remove_our_cookie(headers: &mut HeaderMap, cookie: &CookieSpec) {
    let is_ours = |field: &HeaderValue| cookie.is_set_by(field.as_bytes());
    if headers.get_all(SET_COOKIE).iter().any(is_ours) {
        let all: Vec<HeaderValue> = headers.get_all(SET_COOKIE).iter().cloned().collect();
        headers.remove(SET_COOKIE);
        for field in all.into_iter().filter(|field| !is_ours(field)) {
            headers.append(SET_COOKIE, field);
        }
    }
}

/// Makes a response's framing fields agree with its status and body, which decide the framing: the
/// next reader would believe fields that say otherwise (RFC 9112 section 6.3, RFC 9110 section
/// 8.6). A 304 needs no length of what it does not send: hyper leaves it out over HTTP/1, and over
/// HTTP/2 a body that comes by a hop would be shorter than it.
pub(crate) fn mend_framing(status: StatusCode, headers: &mut HeaderMap) {
    let no_content = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if no_content || headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    // The same length several times, in one field or more, is one length (RFC 9112 section 6.3).
    // Over HTTP/2 it would be an error, and hyper refuses to send a field that has a list.
    let lengths = headers.get_all(header::CONTENT_LENGTH);
    let mut fields = lengths.iter().map(HeaderValue::as_bytes);
    let Some(first) = fields.next() else { return };
    if fields.next().is_none() && !first.contains(&b',') {
        return;
    }
    let all = lengths.iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b','));
    let mut all = all.map(|length| number(length.trim_ascii()));
    if let Some(one) = all.next().flatten().filter(|one| all.all(|length| length == Some(*one))) {
        headers.insert(header::CONTENT_LENGTH, one.into());
    }
}

/// A number in digits alone.
fn number(digits: &[u8]) -> Option<u64> {
    let is_one = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_one)?.parse().ok()
}

/// Whether the client sends the body only after a `100 Continue` (RFC 9110 section 10.1.1).
pub(crate) fn expects_continue(headers: &HeaderMap) -> bool {
    headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The protocol that an HTTP/1.1 request asks to upgrade to, if its `Connection` says so.
pub(crate) fn wanted_upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get_all(CONNECTION).iter().map(HeaderValue::as_bytes);
    let upgrade = headers.get_all(UPGRADE).iter().map(HeaderValue::as_bytes);
    if version == Version::HTTP_11 && asks_to_upgrade(connection, upgrade) {
        headers.get(UPGRADE).cloned()
    } else {
        None
    }
}

/// Whether these values of `Connection` and `Upgrade` ask for another protocol that a peer passes
/// on. HTTP/2 in clear text does not count: RFC 9113 section 3.1 withdrew that upgrade.
pub(crate) fn asks_to_upgrade<'a>(
    connection: impl Iterator<Item = &'a [u8]>,
    upgrade: impl Iterator<Item = &'a [u8]>,
) -> bool {
    let tokens = |list: &'a [u8]| list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let mut protocols = upgrade.flat_map(tokens).peekable();
    connection.flat_map(tokens).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
        && protocols.peek().is_some()
        && protocols.all(|protocol| {
            !protocol.is_empty()
                && !protocol.get(..2).is_some_and(|h2| h2.eq_ignore_ascii_case(b"h2"))
        })
}

/// Puts the upgrade back that [`remove_hop_by_hop`] took out.
pub(crate) fn put_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Adds the fields by which the app knows where the request came from: `X-Forwarded-*` and
/// `Forwarded` (RFC 7239), appended to those of earlier proxies. `scheme` is that of the connection to
/// this peer, and `client_scheme` that which the client uses, as far as earlier proxies said so.
pub(crate) fn append_forwarded(
    headers: &mut HeaderMap,
    client: Option<IpAddr>,
    host: Option<HeaderValue>,
    (scheme, client_scheme): (&'static str, &'static str),
) {
    const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
    if let Some(origin) = origin(client, host.as_ref(), scheme) {
        append_list(headers, header::FORWARDED, &origin.forwarded);
        if let Some(address) = &origin.address {
            append_list(headers, X_FORWARDED_FOR, address);
        }
    }
    headers.entry(X_FORWARDED_PROTO).or_insert_with(|| HeaderValue::from_static(client_scheme));
    if let Some(host) = host {
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
}

/// What a peer adds to `Via` (RFC 9110 section 7.6.3).
pub(crate) struct Via {
    peer: String,
    /// The value for most messages.
    of_http_11: HeaderValue,
}

impl Via {
    /// For a peer with this name, which is visible ASCII.
    pub(crate) fn of(peer: &str) -> Self {
        let of_http_11 = HeaderValue::try_from(format!("1.1 {peer}"));
        Self { peer: peer.to_owned(), of_http_11: of_http_11.expect("a name is visible ASCII") }
    }

    /// Appends the version of HTTP that the message arrived with, and the name of this peer.
    pub(crate) fn append(&self, headers: &mut HeaderMap, version: Version) {
        let version = match version {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2",
            Version::HTTP_3 => "3",
            _ => return append_list(headers, VIA, &self.of_http_11),
        };
        if let Ok(element) = HeaderValue::try_from(format!("{version} {}", self.peer)) {
            append_list(headers, VIA, &element);
        }
    }
}

/// Appends an element to the list that the fields of this name form, and joins the list into one field.
fn append_list(headers: &mut HeaderMap, name: HeaderName, element: &HeaderValue) {
    let mut list = match headers.entry(name) {
        Entry::Vacant(none) => {
            none.insert(element.clone());
            return;
        }
        Entry::Occupied(list) => list,
    };
    let mut joined: Vec<u8> = Vec::new();
    // A field without a value is an empty list (RFC 9110 section 5.6.1).
    for value in list.iter().filter(|value| !value.is_empty()) {
        joined.extend_from_slice(value.as_bytes());
        joined.extend_from_slice(b", ");
    }
    joined.extend_from_slice(element.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        list.insert(value);
    }
}

/// Sets the affinity cookie and keeps shared caches from storing the response.
pub(crate) fn set_affinity(headers: &mut HeaderMap, cookie: &str) {
    let Ok(value) = HeaderValue::from_str(cookie) else { return };
    headers.append(SET_COOKIE, value);
    // Fields for one kind of cache take precedence over the general one (RFC 9213 section 2.2).
    for targeted in ["cdn-cache-control", "surrogate-control"] {
        headers.remove(targeted);
    }
    let said = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let said = said.collect::<Vec<_>>().join(",");
    let mut kept = Vec::new();
    let mut is_kept_out = false;
    for directive in directives(&said) {
        let (name, argument) = match directive.split_once('=') {
            Some((name, argument)) => (name.trim(), Some(argument)),
            None => (directive, None),
        };
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        // These let a shared cache store the response (RFC 9111 section 5.2.2). `private` with
        // names of fields protects these fields alone.
        if is("public") || is("s-maxage") || (is("private") && argument.is_some()) {
            continue;
        }
        is_kept_out |= is("private") || is("no-store");
        kept.push(directive);
    }
    if !is_kept_out {
        kept.push("private");
    }
    if let Ok(value) = HeaderValue::from_str(&kept.join(", ")) {
        headers.insert(CACHE_CONTROL, value);
    }
}

/// The members of a list, whose quoted strings may contain commas.
fn directives(list: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    list.split(move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .map(str::trim)
    .filter(|directive| !directive.is_empty())
}

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The client's `X-Request-Id` if it is sane.
pub(crate) fn request_id(headers: &HeaderMap) -> Option<RequestId> {
    RequestId::new(headers.get(X_REQUEST_ID)?.to_str().ok()?).ok()
}

/// Makes `Host` agree with the request's target, if that has an authority (RFC 9112 section 3.2.2,
/// RFC 9113 section 8.3.1): the app must not see another host than the one it was chosen by.
/// Returns false if the host is ambiguous or not valid, or is missing over HTTP/2, where no older
/// client could know of none. A target with userinfo, which servers should treat as an error (RFC
/// 9110 section 4.2.4), is not valid either.
pub(crate) fn settle_host(
    authority: Option<&Authority>,
    version: Version,
    headers: &mut HeaderMap,
) -> bool {
    let authority = authority.map(|authority| HeaderValue::from_str(authority.as_str()));
    if let Some(Ok(host)) = authority {
        headers.insert(HOST, host);
    }
    let mut hosts = headers.get_all(HOST).iter();
    let is_one = match hosts.next() {
        Some(host) => host.to_str().is_ok_and(is_host),
        None => version < Version::HTTP_2,
    };
    is_one && hosts.next().is_none()
}

/// Removes from a trailer section the fields that the next reader could take for fields of the head
/// (RFC 9110 section 6.5.1): it may merge the two, or read its fields as CGI does, and the head was
/// checked without them. A trailer may bring in nothing that a head may not.
pub(crate) fn tidy_trailers(trailers: &mut HeaderMap) {
    let forbidden: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| !is_trailer(&name.as_str().replace('_', "-")))
        .cloned()
        .collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

/// Whether a field, named with dashes, does not frame, route, authenticate or modify a message.
fn is_trailer(name: &str) -> bool {
    const FORBIDDEN: [&str; 34] = [
        // Framing.
        "content-length",
        "trailer",
        // Where it goes and where it came from.
        "forwarded",
        "host",
        "max-forwards",
        "via",
        "x-real-ip",
        "x-request-id",
        // Who asks.
        "authorization",
        "cookie",
        "set-cookie",
        "www-authenticate",
        // How it is to be processed.
        "content-encoding",
        "content-location",
        "content-range",
        "content-type",
        "expect",
        "idempotency-key",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "range",
        "traceparent",
        "tracestate",
        // What is done with the answer.
        "age",
        "cache-control",
        "date",
        "expires",
        "location",
        "pragma",
        "retry-after",
        "vary",
    ];
    let prefixed = ["warmhop-", "x-forwarded-"];
    !is_hop_by_hop(name)
        && !FORBIDDEN.contains(&name)
        && !prefixed.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether the text is a host, with or without a port (RFC 3986 section 3.2). An empty one is
/// allowed: it says that the target has no authority. A comma is refused: no real name has one, but
/// a proxy that joins two fields puts one in.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, ""),
    };
    let is_named = |host: &str| {
        host.bytes().all(|byte| {
            byte.is_ascii_alphanumeric()
                || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'')
                || matches!(byte, b'(' | b')' | b'*' | b'+' | b';' | b'=')
        })
    };
    let is_one = match host.strip_prefix('[') {
        Some(literal) => literal.strip_suffix(']').is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok()),
        None => is_named(host),
    };
    // The grammar allows a port of any length, and none beyond 65535 can be meant.
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
    is_one && is_port && (port.is_empty() || port.parse::<u16>().is_ok())
}

/// The host a request is for, lower-case, without port or the dot that ends a full name.
pub(crate) fn host_of(headers: &HeaderMap) -> Option<String> {
    host_as_sent(headers).map(str::to_ascii_lowercase)
}

/// The same, as the client wrote it.
pub(crate) fn host_as_sent(headers: &HeaderMap) -> Option<&str> {
    host_in(headers.get(HOST)?)
}

/// The name in a `Host` field, without port.
pub(crate) fn host_in(field: &HeaderValue) -> Option<&str> {
    let authority = field.to_str().ok()?;
    let host = if authority.starts_with('[') {
        authority.split_inclusive(']').next()?
    } else {
        authority.split(':').next()?
    };
    Some(host.strip_suffix('.').unwrap_or(host))
}

/// Whether requests of this method change nothing (RFC 9110 section 9.2.1).
pub(crate) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

#[cfg(test)]
mod tests {
    use http::Uri;

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
    fn fields_that_connection_names_are_removed_with_it_but_never_the_host() {
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
    fn a_connection_that_is_kept_alive_takes_no_other_field_with_it_and_hides_none() {
        for (sent, left) in [
            (
                &[("connection", "keep-alive"), ("keep-alives", "1")] as &[_],
                &["keep-alives"] as &[_],
            ),
            (&[("connection", "Keep-Alive"), ("keep-alive", "5"), ("x-a", "1")], &["x-a"]),
            (&[("connection", "keep-alive"), ("connection", "x-a"), ("x-a", "1")], &[]),
            (&[("connection", "keep-alive"), ("upgrade", "a"), ("te", "gzip")], &[]),
            (&[("connection", "keep-alive, x-a"), ("x-a", "1")], &[]),
            (&[("keep-alive", "5"), ("x-a", "1")], &["x-a"]),
        ] {
            let mut fields = headers(sent);
            remove_hop_by_hop(&mut fields);
            assert!(fields.keys().eq(left), "{sent:?}: {fields:?}");
        }
    }

    #[test]
    fn forwarding_fields_extend_what_earlier_proxies_said() {
        let mut fields =
            headers(&[("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "https")]);
        append_forwarded(
            &mut fields,
            Some("2001:db8::1".parse().unwrap()),
            Some(HeaderValue::from_static("a.example")),
            ("http", "https"),
        );
        assert_eq!(fields["x-forwarded-for"], "192.0.2.1, 2001:db8::1");
        assert_eq!(fields["x-forwarded-proto"], "https");
        assert_eq!(fields["forwarded"], "for=\"[2001:db8::1]\";proto=http;host=\"a.example\"");
    }

    #[test]
    fn an_earlier_proxy_may_say_nothing_or_say_it_by_forwarded_alone() {
        let mut fields =
            headers(&[("x-forwarded-for", ""), ("forwarded", "for=192.0.2.7;proto=https")]);
        let client = Some("127.0.0.1".parse().unwrap());
        append_forwarded(&mut fields, client, None, ("http", "https"));
        assert_eq!(fields["x-forwarded-for"], "127.0.0.1");
        assert_eq!(fields["x-forwarded-proto"], "https");
        let both = "for=192.0.2.7;proto=https, for=127.0.0.1;proto=http";
        assert_eq!(fields["forwarded"], both);
    }

    #[test]
    fn a_host_is_read_without_port_case_or_final_dot() {
        for (field, host) in [
            ("Shop.Localhost:80", "shop.localhost"),
            ("shop.example.:80", "shop.example"),
            ("[::1]:80", "[::1]"),
            ("a", "a"),
        ] {
            assert_eq!(host_of(&headers(&[("host", field)])).as_deref(), Some(host));
        }
        assert_eq!(host_of(&HeaderMap::new()), None);
    }

    #[test]
    fn the_target_says_which_host_it_is_and_what_is_no_host_is_refused() {
        let settled = |uri: &str, host: &str| {
            let mut fields = headers(&[("host", host)]);
            let uri: Uri = uri.parse().unwrap();
            settle_host(uri.authority(), Version::HTTP_2, &mut fields)
                .then(|| fields["host"].to_str().unwrap().to_owned())
        };
        assert_eq!(settled("http://a.example:99/x", "evil").as_deref(), Some("a.example:99"));
        assert_eq!(settled("http://u@a.example:99/x", "evil"), None);
        let mut two = headers(&[("host", "a")]);
        two.append("host", HeaderValue::from_static("b"));
        assert!(!settle_host(None, Version::HTTP_2, &mut two));
        assert!(!settle_host(None, Version::HTTP_2, &mut HeaderMap::new()), "there is none");
        assert!(settle_host(None, Version::HTTP_10, &mut HeaderMap::new()), "it may be that old");
        for host in
            ["a.example:80", "a.example:65535", "[::1]:80", "[::1]", "a_b.example", "a:", ""]
        {
            assert_eq!(settled("/x", host).as_deref(), Some(host));
        }
        for host in
            ["a b", "evil@a", "a:80,evil", "a/b", "a?b", "[x]:80", "a:b:80", "::1", "a:99999"]
        {
            assert_eq!(settled("/x", host), None, "{host}");
        }
    }

    #[test]
    fn no_field_passes_for_another_where_underscores_count_as_dashes() {
        let mut fields = headers(&[
            ("warmhop_session", ":YQ==:"),
            ("warmhop-peer", "x"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x_real_ip", "6.6.6.6"),
            ("proxy", "http://evil.example"),
            ("content_length", "5"),
            ("x-user", "ada"),
            ("x_user", "eve"),
            ("api_key", "k"),
        ]);
        remove_reserved(&mut fields);
        remove_shadows(&mut fields);
        assert_eq!(fields, headers(&[("x-user", "ada"), ("api_key", "k")]));
    }

    #[test]
    fn a_trailer_says_nothing_that_a_head_is_believed_for() {
        let mut trailers = headers(&[
            ("x-checksum", "1"),
            ("grpc-status", "0"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x_forwarded_for", "6.6.6.6"),
            ("cookie", "warmhop=forged"),
            ("set-cookie", "warmhop=forged"),
            ("connection", "x"),
            ("content-length", "9"),
            ("content_length", "9"),
            ("host", "evil"),
            ("warmhop_session", ":YQ==:"),
            ("x-request-id", "forged"),
        ]);
        tidy_trailers(&mut trailers);
        assert_eq!(trailers, headers(&[("x-checksum", "1"), ("grpc-status", "0")]));
    }

    #[test]
    fn cookies_that_came_split_go_on_as_one() {
        let mut fields = HeaderMap::new();
        for crumb in ["a=1", "b=2; c=3"] {
            fields.append(COOKIE, HeaderValue::from_static(crumb));
        }
        join_cookies(&mut fields);
        assert_eq!(fields.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }

    #[test]
    fn an_app_sets_its_own_cookies_and_not_ours() {
        let mut fields = HeaderMap::new();
        for cookie in
            ["warmhop=evil.peer-9; Path=/", "= warmhop=evil", "a=1", "warmhopper=2", "x=warmhop=3"]
        {
            fields.append(SET_COOKIE, HeaderValue::from_static(cookie));
        }
        remove_our_cookie(&mut fields, &CookieSpec::default());
        let left: Vec<_> = fields.get_all(SET_COOKIE).iter().collect();
        assert_eq!(left, ["a=1", "warmhopper=2", "x=warmhop=3"]);
    }

    #[test]
    fn a_response_has_no_length_beside_what_frames_it() {
        let chunked = headers(&[("transfer-encoding", "chunked"), ("content-length", "5")]);
        for (status, mut fields) in [
            (StatusCode::OK, chunked),
            (StatusCode::NO_CONTENT, headers(&[("content-length", "5")])),
            (StatusCode::NOT_MODIFIED, headers(&[("content-length", "5")])),
        ] {
            mend_framing(status, &mut fields);
            assert!(!fields.contains_key("content-length"), "{status}");
        }
        let mut plain = headers(&[("content-length", "5")]);
        mend_framing(StatusCode::OK, &mut plain);
        assert!(plain.contains_key("content-length"));
    }

    #[test]
    fn one_length_that_is_said_several_times_is_said_once_and_another_beside_it_stays() {
        for (said, expected) in [
            (&["2, 2"] as &[_], &["2"] as &[_]),
            (&["2,2 ,\t2"], &["2"]),
            (&["2", "2"], &["2"]),
            (&["2, 2", "2"], &["2"]),
            (&["2, 3"], &["2, 3"]),
            (&["2", "3"], &["2", "3"]),
            (&["2, 2", "3"], &["2, 2", "3"]),
            (&["2,"], &["2,"]),
            (&["+2, +2"], &["+2, +2"]),
            (&[",", ","], &[",", ","]),
        ] {
            let mut fields: HeaderMap = said
                .iter()
                .map(|length| (header::CONTENT_LENGTH, HeaderValue::from_static(length)))
                .collect();
            mend_framing(StatusCode::OK, &mut fields);
            let left: Vec<_> = fields.get_all(header::CONTENT_LENGTH).iter().collect();
            assert_eq!(left, expected, "{said:?}");
        }
    }

    #[test]
    fn only_an_http_1_1_connection_upgrade_counts() {
        let ws = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert!(wanted_upgrade(Version::HTTP_11, &ws).is_some());
        assert!(wanted_upgrade(Version::HTTP_2, &ws).is_none());
        for protocol in ["h2c", "H2C", "websocket, h2c", ""] {
            let fields = headers(&[("connection", "upgrade"), ("upgrade", protocol)]);
            assert!(wanted_upgrade(Version::HTTP_11, &fields).is_none(), "{protocol}");
        }
    }

    #[test]
    fn a_response_that_sets_the_cookie_is_for_no_shared_cache() {
        for (said, expected) in [
            ("public, max-age=60", "max-age=60, private"),
            ("s-maxage=50", "private"),
            ("private=\"x-foo, x-bar\", max-age=1", "max-age=1, private"),
            ("Private, max-age=5", "Private, max-age=5"),
            ("no-store", "no-store"),
            ("ext=\"a, public\"", "ext=\"a, public\", private"),
        ] {
            let mut fields =
                headers(&[("cache-control", said), ("cdn-cache-control", "max-age=60")]);
            set_affinity(&mut fields, "warmhop=x.y");
            assert_eq!(fields.get_all(CACHE_CONTROL).iter().collect::<Vec<_>>(), [expected]);
            assert!(!fields.contains_key("cdn-cache-control"));
        }
        let mut fields = HeaderMap::new();
        set_affinity(&mut fields, "warmhop=x.y");
        assert_eq!(fields[CACHE_CONTROL], "private");
    }
}
