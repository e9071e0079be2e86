//! The values of the fields by which an app knows where a request came from. The requests of one
//! connection have the same values, so the last ones are kept and shared by the requests that
//! follow.

use std::cell::RefCell;
use std::fmt::Write;
use std::net::IpAddr;

use http::HeaderValue;

/// How many clients' values a thread keeps.
const KEPT_MAX: usize = 16;

/// The values for one client, one host and one scheme.
#[derive(Clone)]
pub(crate) struct Origin {
    client: Option<IpAddr>,
    host: Option<HeaderValue>,
    scheme: &'static str,
    /// The element of `Forwarded` (RFC 7239).
    pub(crate) forwarded: HeaderValue,
    /// The client's address, where it is known.
    pub(crate) address: Option<HeaderValue>,
}

thread_local! {
    static KEPT: RefCell<[Option<Origin>; KEPT_MAX]> = const { RefCell::new([const { None }; KEPT_MAX]) };
}

/// The values for a request; `None` where they cannot be made.
pub(crate) fn origin(
    client: Option<IpAddr>,
    host: Option<&HeaderValue>,
    scheme: &'static str,
) -> Option<Origin> {
    let last = match client {
        Some(IpAddr::V4(ip)) => ip.octets()[3],
        Some(IpAddr::V6(ip)) => ip.octets()[15],
        None => 0,
    };
    KEPT.with_borrow_mut(|kept| {
        let place = &mut kept[usize::from(last) % KEPT_MAX];
        let is_same =
            |it: &&Origin| it.client == client && it.scheme == scheme && it.host.as_ref() == host;
        if let Some(same) = place.as_ref().filter(is_same) {
            return Some(same.clone());
        }
        *place = made(client, host, scheme);
        place.clone()
    })
}

fn made(
    client: Option<IpAddr>,
    host: Option<&HeaderValue>,
    scheme: &'static str,
) -> Option<Origin> {
    let mut element = String::new();
    // Writing to a string does not fail.
    let _ = match client {
        Some(IpAddr::V6(ip)) => write!(element, "for=\"[{ip}]\";proto={scheme}"),
        Some(ip) => write!(element, "for={ip};proto={scheme}"),
        None => write!(element, "for=unknown;proto={scheme}"),
    };
    let text = host.and_then(|host| host.to_str().ok());
    if let Some(host) = text.filter(|host| !host.contains(['"', '\\'])) {
        let _ = write!(element, ";host=\"{host}\"");
    }
    Some(Origin {
        client,
        // Copied, since the request's own bytes would keep alive everything that was read with
        // them.
        host: host.map(|host| HeaderValue::from_bytes(host.as_bytes())).transpose().ok()?,
        scheme,
        forwarded: HeaderValue::try_from(element).ok()?,
        address: client.and_then(|ip| HeaderValue::try_from(ip.to_string()).ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cached_for_one_client_is_used_for_no_other() {
        let (a, b) = (HeaderValue::from_static("a.example"), HeaderValue::from_static("b.example"));
        let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        // Each twice, and some that share a slot with another.
        let asked = [
            (ip("192.0.2.1"), Some(&a), "http", "for=192.0.2.1;proto=http;host=\"a.example\""),
            (ip("192.0.2.17"), Some(&a), "http", "for=192.0.2.17;proto=http;host=\"a.example\""),
            (ip("192.0.2.17"), Some(&b), "http", "for=192.0.2.17;proto=http;host=\"b.example\""),
            (ip("192.0.2.17"), Some(&b), "https", "for=192.0.2.17;proto=https;host=\"b.example\""),
            (ip("2001:db8::1"), None, "https", "for=\"[2001:db8::1]\";proto=https"),
            (None, None, "http", "for=unknown;proto=http"),
        ];
        for (client, host, scheme, element) in
            asked.into_iter().chain(asked).chain(asked.into_iter().rev())
        {
            let origin = origin(client, host, scheme).unwrap();
            assert_eq!(origin.forwarded, element);
            assert_eq!(
                origin.address,
                client.map(|ip| HeaderValue::from_str(&ip.to_string()).unwrap())
            );
        }
    }
}
