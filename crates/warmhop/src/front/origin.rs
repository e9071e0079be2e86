//! A client's address: who is trusted about it, and what they report.
//!
//! A client's own claim is worth nothing. A proxy that is trusted by its address reports its
//! client's address, in the fields of a request or at the start of a connection (the PROXY protocol
//! of HAProxy, versions 1 and 2).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::header::{FORWARDED, HeaderMap, HeaderName};
use ipnet::IpNet;
use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use warmhop_core::ids::InvalidId;

use crate::http::client::ClientInfo;

/// The sender of a request, and the other end of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The client's address, as far as it can be trusted.
    pub(crate) addr: Option<SocketAddr>,
    /// Whether the client is behind TLS.
    pub(crate) secure: bool,
    /// The other end of the connection, which may be a trusted proxy's.
    pub(crate) neighbour: ClientInfo,
}

/// How long a proxy may take to report its client.
const HEADER_WITHIN: Duration = Duration::from_secs(10);
/// The longest header of the PROXY protocol that is read, in bytes: version 2 may carry more than
/// addresses, such as what is known of the client's TLS.
const HEADER_BYTES_MAX: usize = 4096;
/// The most elements of `X-Forwarded-For` that are read, from the nearest on.
const PROXIES_MAX: usize = 32;

/// The proxies that are trusted about their clients, by their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Only the proxies in `networks`.
    #[must_use]
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self(networks.into_iter().collect())
    }

    /// Reads an address such as `10.0.0.7`, or a network such as `10.0.0.0/8`, and adds it.
    ///
    /// # Errors
    /// [`InvalidId`] says what is expected.
    pub fn add(&mut self, text: &str) -> Result<(), InvalidId> {
        let network = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        let expected = "an address or a network, such as \"10.0.0.7\" or \"10.0.0.0/8\"";
        self.0.push(network.ok_or_else(|| InvalidId::new("trusted proxy", expected, text))?);
        Ok(())
    }

    /// Whether no proxy is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The networks, in the form that [`TrustedProxies::add`] reads.
    pub fn texts(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(|network| {
            let whole = network.prefix_len() == network.max_prefix_len();
            if whole { network.addr().to_string() } else { network.to_string() }
        })
    }

    pub(crate) fn trusts(&self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        self.0.iter().any(|network| network.contains(&addr))
    }

    /// Removes from `headers` the fields that only a trusted proxy may send, unless one sent them;
    /// returns the client according to the rest. These fields are forwarded to the app, with this
    /// peer's own element appended to each.
    pub(crate) fn settle(&self, headers: &mut HeaderMap, neighbour: ClientInfo) -> Origin {
        let ClientInfo { addr, secure } = neighbour;
        if !addr.is_some_and(|addr| self.trusts(addr.ip())) {
            remove_claims(headers);
            return Origin { addr, secure, neighbour };
        }
        // A proxy writes one of the two fields, and passes on what its client put into the other:
        // the one that most proxies write comes first.
        let forwarded = forwarded(headers);
        let said = last_of(headers, "x-forwarded-proto")
            .or_else(|| forwarded.first().and_then(|element| element.proto));
        let secure = said.map_or(secure, |said| said.eq_ignore_ascii_case("https"));
        // The client behind the last trusted proxy; the elements before it may be forged.
        let is_client = |addr: &IpAddr| !self.trusts(*addr);
        let origin = if headers.contains_key("x-forwarded-for") {
            let said = elements(headers, "x-forwarded-for").take(PROXIES_MAX);
            said.map_while(address).find(is_client)
        } else {
            let said = forwarded.iter().map_while(|element| element.client.and_then(address));
            said.into_iter().find(is_client)
        };
        let addr = origin.map(|addr| SocketAddr::new(addr, 0)).or(addr);
        Origin { addr, secure, neighbour }
    }
}

/// Removes every field that claims where a client is.
fn remove_claims(headers: &mut HeaderMap) {
    let claims: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            name.as_str().starts_with("x-forwarded-")
                || **name == FORWARDED
                || **name == "x-real-ip"
        })
        .cloned()
        .collect();
    for name in claims {
        headers.remove(name);
    }
}

/// The elements of a list, last first.
fn elements<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let fields = headers.get_all(name).iter().rev().filter_map(|value| value.to_str().ok());
    fields.flat_map(|field| field.rsplit(',')).map(str::trim)
}

fn last_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    elements(headers, name).next()
}

/// The report of one proxy in an element of `Forwarded` (RFC 7239).
#[derive(Default)]
struct Element<'a> {
    client: Option<&'a str>,
    proto: Option<&'a str>,
}

/// The elements of `Forwarded`, last first. A malformed one counts as empty, and so does the end of
/// one that has a separator within quotes.
fn forwarded(headers: &HeaderMap) -> Vec<Element<'_>> {
    elements(headers, FORWARDED.as_str()).take(PROXIES_MAX).map(element).collect()
}

fn element(text: &str) -> Element<'_> {
    let mut element = Element::default();
    for pair in text.split(';') {
        let Some((name, value)) = pair.trim().split_once('=') else { return Element::default() };
        let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        let value = inner.unwrap_or(value);
        if value.contains(['"', '\\']) {
            return Element::default();
        }
        let known = match name.to_ascii_lowercase().as_str() {
            "for" => &mut element.client,
            "proto" => &mut element.proto,
            _ => continue,
        };
        // A parameter that occurs twice is ambiguous.
        if known.replace(value).is_some() {
            return Element::default();
        }
    }
    element
}

/// An address, with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let with_port = || text.parse::<SocketAddr>().ok().map(|addr| addr.ip());
    bare.parse().ok().or_else(with_port).map(|addr: IpAddr| addr.to_canonical())
}

/// Reads the PROXY header that a connection begins with, and not a byte more. Returns the client:
/// the connection's own address if the proxy speaks for itself.
///
/// # Errors
/// If there is no header, it is malformed, or it does not come in time.
pub(crate) async fn proxied<IO>(stream: &mut IO, own: ClientInfo) -> io::Result<ClientInfo>
where
    IO: AsyncRead + Unpin,
{
    let header = timeout(HEADER_WITHIN, read_header(stream)).await??;
    let malformed = |_| io::Error::new(io::ErrorKind::InvalidData, "malformed PROXY header");
    let (header, _) = ProxyHeader::parse(&header, ParseConfig::default()).map_err(malformed)?;
    let addr = header.proxied_address().map(|addr| addr.source);
    let secure = header.ssl().is_some_and(|ssl| ssl.client_ssl());
    Ok(ClientInfo { addr: addr.or(own.addr), secure: own.secure || secure })
}

/// Reads the bytes of the header. Both versions give its length before its end.
async fn read_header<IO: AsyncRead + Unpin>(stream: &mut IO) -> io::Result<Vec<u8>> {
    const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    /// Version 1 is a line of at most so many bytes.
    const V1_BYTES_MAX: usize = 107;
    let none = || io::Error::new(io::ErrorKind::InvalidData, "no PROXY header");
    let mut header = vec![0; 16];
    // One byte less than the shortest header of version 1, `PROXY UNKNOWN\r\n`.
    stream.read_exact(&mut header[..15]).await?;
    if header.starts_with(V2_SIGNATURE) {
        stream.read_exact(&mut header[15..]).await?;
        let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if header.len() + length > HEADER_BYTES_MAX {
            return Err(none());
        }
        header.resize(16 + length, 0);
        stream.read_exact(&mut header[16..]).await?;
        return Ok(header);
    }
    if !header.starts_with(b"PROXY ") {
        return Err(none());
    }
    header.truncate(15);
    while !header.ends_with(b"\r\n") {
        if header.len() == V1_BYTES_MAX {
            return Err(none());
        }
        header.push(stream.read_u8().await?);
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn trusted(texts: &[&str]) -> TrustedProxies {
        let mut trusted = TrustedProxies::default();
        for text in texts {
            trusted.add(text).unwrap();
        }
        trusted
    }

    fn fields(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in pairs {
            fields.append(*name, HeaderValue::from_static(value));
        }
        fields
    }

    fn from(addr: &str) -> ClientInfo {
        ClientInfo { addr: Some(addr.parse().unwrap()), secure: false }
    }

    #[test]
    fn only_a_trusted_proxy_says_where_a_client_comes_from() {
        let said = fields(&[
            ("x-forwarded-for", "6.6.6.6, 192.0.2.7"),
            ("x-forwarded-for", "10.0.0.9"),
            ("x-forwarded-proto", "http, https"),
            ("x-forwarded-host", "a"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("accept", "*/*"),
        ]);
        for (trust, client) in [
            (trusted(&[]), from("10.0.0.1:1")),
            (trusted(&["10.0.0.0/8"]), from("192.0.2.1:1")),
            (trusted(&["10.0.0.0/8"]), ClientInfo::default()),
        ] {
            let mut headers = said.clone();
            let ClientInfo { addr, secure } = client;
            let itself = Origin { addr, secure, neighbour: client };
            assert_eq!(trust.settle(&mut headers, client), itself);
            assert_eq!(headers, fields(&[("accept", "*/*")]), "{trust:?} {client:?}");
        }
        for own in ["10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let mut headers = said.clone();
            let origin = trusted(&["10.0.0.0/8"]).settle(&mut headers, from(own));
            let addr = from("192.0.2.7:0").addr;
            assert_eq!(origin, Origin { addr, secure: true, neighbour: from(own) });
            assert_eq!(headers, said);
        }
    }

    #[test]
    fn an_invalid_address_ends_the_list() {
        let trust = trusted(&["10.0.0.1", "2001:db8::/32"]);
        for (said, client) in [
            ("6.6.6.6, unknown, 10.0.0.1", "10.0.0.1:1"),
            ("192.0.2.7:4711, 10.0.0.1", "192.0.2.7:0"),
            ("[2001:db9::1]:80, 2001:db8::1", "[2001:db9::1]:0"),
            ("[2001:db9::1]", "[2001:db9::1]:0"),
            ("", "10.0.0.1:1"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", HeaderValue::from_str(said).unwrap());
            let settled = trust.settle(&mut headers, from("10.0.0.1:1"));
            assert_eq!(settled.addr, from(client).addr, "{said}");
        }
    }

    #[test]
    fn a_proxy_may_say_it_by_forwarded_where_it_says_nothing_else() {
        let trust = trusted(&["10.0.0.1", "2001:db8::/32"]);
        for (said, client, secure) in [
            ("for=192.0.2.7", "192.0.2.7:0", false),
            ("for=192.0.2.7;proto=https;by=10.0.0.1", "192.0.2.7:0", true),
            ("For=\"192.0.2.7:4711\" ; Proto=HTTPS", "192.0.2.7:0", true),
            ("for=6.6.6.6, for=192.0.2.7, for=10.0.0.1", "192.0.2.7:0", false),
            ("for=6.6.6.6;proto=https, for=192.0.2.7;proto=http", "192.0.2.7:0", false),
            ("for=\"[2001:db9::1]:80\", for=\"[2001:db8::1]\"", "[2001:db9::1]:0", false),
            ("for=\"a, for=6.6.6.6\"", "10.0.0.1:1", false),
            ("for=6.6.6.6, for=\"a\\\", for=6.6.6.6\"", "10.0.0.1:1", false),
            ("for=\"a, for=192.0.2.7", "192.0.2.7:0", false),
            ("for=10.0.0.1;host=\"a, for=6.6.6.6, b\"", "10.0.0.1:1", false),
            ("for=6.6.6.6;for=192.0.2.7", "10.0.0.1:1", false),
            ("for=6.6.6.6, for=unknown", "10.0.0.1:1", false),
            ("for=6.6.6.6, for=_hidden, for=10.0.0.1", "10.0.0.1:1", false),
            ("6.6.6.6", "10.0.0.1:1", false),
            ("for=\"6.6.6.6", "10.0.0.1:1", false),
            ("", "10.0.0.1:1", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(FORWARDED, HeaderValue::from_str(said).unwrap());
            let settled = trust.settle(&mut headers, from("10.0.0.1:1"));
            assert_eq!((settled.addr, settled.secure), (from(client).addr, secure), "{said}");
            // What a client forges beside the field of its proxy is passed on, but not trusted.
            headers.insert("x-forwarded-for", HeaderValue::from_static("192.0.2.9"));
            headers.insert("x-forwarded-proto", HeaderValue::from_static("http"));
            let settled = trust.settle(&mut headers, from("10.0.0.1:1"));
            assert_eq!((settled.addr, settled.secure), (from("192.0.2.9:0").addr, false), "{said}");
        }
    }

    #[test]
    fn a_network_reads_back_as_it_was_written_and_what_is_none_is_refused() {
        let texts = ["10.0.0.7", "10.0.0.0/8", "::1", "2001:db8::/32"];
        assert_eq!(trusted(&texts).texts().collect::<Vec<_>>(), texts);
        for wrong in ["", "10.0.0.0/33", "a.example", "10.0.0"] {
            TrustedProxies::default().add(wrong).unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_proxy_header_is_read_to_its_end_and_no_further() {
        let v2 = |command: u8, family: u8, rest: &[u8]| {
            let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
            [b"\r\n\r\n\0\r\nQUIT\n", &[0x20 | command, family][..], &length, rest].concat()
        };
        let addresses = [192, 0, 2, 7, 192, 0, 2, 1, 0, 9, 0, 80];
        let ssl = [&addresses[..], &[0x20, 0, 5, 1, 0, 0, 0, 0]].concat();
        for (header, addr, secure) in [
            (b"PROXY TCP4 192.0.2.7 192.0.2.1 9 80\r\n".to_vec(), "192.0.2.7:9", false),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 9 80\r\n".to_vec(), "[2001:db8::7]:9", false),
            (b"PROXY UNKNOWN\r\n".to_vec(), "10.0.0.1:1", false),
            (v2(1, 0x11, &addresses), "192.0.2.7:9", false),
            (v2(0, 0, &[]), "10.0.0.1:1", false),
            (v2(1, 0x11, &ssl), "192.0.2.7:9", true),
        ] {
            let mut stream = &[&header[..], b"GET /"].concat()[..];
            let client = proxied(&mut stream, from("10.0.0.1:1")).await.unwrap();
            assert_eq!((client.addr, client.secure), (from(addr).addr, secure), "{header:?}");
            assert_eq!(stream, b"GET /");
        }
        for header in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7\r\n\r\n".to_vec(),
            b"PROXY TCP4 6.6.6.6 x 9 80\r\n".to_vec(),
            [b"PROXY TCP4 ", &[b'1'; 200][..]].concat(),
            v2(1, 0x11, &addresses[..5]),
            v2(1, 0x11, &[0; 5000]),
            b"PROXY".to_vec(),
        ] {
            let mut stream = &header[..];
            assert!(proxied(&mut stream, from("10.0.0.1:1")).await.is_err(), "{header:?}");
        }
    }
}
