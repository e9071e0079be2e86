//! The fields that the affinity token travels in: `Cookie` and `Set-Cookie`.
//!
//! Owns the cookie's name and attributes ([`CookieSpec`]), which of a request's cookies have that
//! name, and which of an app's `Set-Cookie` fields would give the client one. Refuses to know what
//! a value means: [`affinity::read`](crate::affinity::read) does.
//!
//! The apps of one host have cookies of one name that differ in `Path`. A browser sends all whose
//! path is above the request's, the longest path first (RFC 6265 section 5.4).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

/// How many cookies of this name are read from one request. Any others are removed unread before
/// the app sees them.
pub const COOKIES_MAX: usize = 32;
/// The most bytes of a cookie's name.
pub const NAME_BYTES_MAX: usize = 64;
/// The name of the cookie that balancers set themselves: see `warmhop lb --affinity own`.
pub const BALANCER_COOKIE: &str = "warmhop_lb";

/// What names a peer in the affinity cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RouteName {
    /// Its name.
    #[default]
    Name,
    /// An alias that reveals nothing of it.
    Opaque,
}

impl RouteName {
    /// Its name in the configuration.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Opaque => "opaque",
        }
    }
}

/// With which requests from other sites a browser sends the cookie (RFC 6265bis section 5.6.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SameSite {
    /// With none.
    Strict,
    /// With a navigation to the app.
    #[default]
    Lax,
    /// With all; browsers require that the cookie is `Secure` then.
    None,
}

impl SameSite {
    /// The attribute's value.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Strict => "Strict",
            Self::Lax => "Lax",
            Self::None => "None",
        }
    }
}

/// The cookie's name and attributes. All peers of a mesh have to agree on them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CookieSpec {
    /// Its name. Default: `warmhop`.
    pub name: String,
    /// Default: `Lax`.
    pub same_site: SameSite,
    /// Whether it is `Secure`; absent: if the client came by TLS.
    pub secure: Option<bool>,
    /// The domain whose hosts share it; absent: only the host that set it.
    pub domain: Option<String>,
    /// How it names the peer that the client should come back to; absent: by its name, or by an
    /// alias if front doors reveal nothing.
    pub route: Option<RouteName>,
}

impl Default for CookieSpec {
    fn default() -> Self {
        Self {
            name: "warmhop".into(),
            same_site: SameSite::Lax,
            secure: None,
            domain: None,
            route: None,
        }
    }
}

/// What is wrong with a [`CookieSpec`], and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CookieMistake {
    /// The key: `name`, `same_site`, `secure`, `domain`, or `match` of an app.
    pub key: &'static str,
    /// What is wrong.
    pub what: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

impl fmt::Display for CookieMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.key, self.what, self.remedy)
    }
}

impl core::error::Error for CookieMistake {}

impl CookieSpec {
    /// This specification with a change.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// How it names peers at front doors that do or do not `reveal` the mesh's inside.
    #[must_use]
    pub fn route_name(&self, reveal: bool) -> RouteName {
        let by_doors = if reveal { RouteName::Name } else { RouteName::Opaque };
        self.route.unwrap_or(by_doors)
    }

    /// Checks what browsers would refuse about the cookie, for apps at these `paths`. If the name
    /// or `same_site` requires `Secure` and it is not set, it is filled in.
    ///
    /// # Errors
    /// The first mistake.
    pub fn settle<'p>(
        &mut self,
        paths: impl IntoIterator<Item = &'p str>,
    ) -> Result<(), CookieMistake> {
        let mistake = |key, what, remedy| Err(CookieMistake { key, what, remedy });
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if !(1..=NAME_BYTES_MAX).contains(&self.name.len()) || !self.name.bytes().all(is_token) {
            let what = "it is no cookie's name";
            return mistake("name", what, "use 1 to 64 letters, digits, - and _");
        }
        if self.name == BALANCER_COOKIE {
            let what = "that is the cookie which balancers keep (warmhop lb --affinity own)";
            return mistake("name", what, "choose another name");
        }
        if let Some(domain) = &self.domain
            && !is_domain(domain)
        {
            let what = "it is no domain";
            return mistake(
                "domain",
                what,
                "name one such as \"example.com\", without a dot before it",
            );
        }
        // Browsers compare the prefix without regard to case (RFC 6265bis section 5.7).
        let begins = |prefix: &str| {
            self.name.get(..prefix.len()).is_some_and(|name| name.eq_ignore_ascii_case(prefix))
        };
        let is_host = begins("__Host-");
        let needs_secure = is_host || begins("__Secure-") || begins("__Http-");
        if needs_secure && self.secure == Some(false) {
            let what = "browsers take a cookie with this prefix only if it is Secure";
            return mistake(
                "secure",
                what,
                "leave secure out, or choose a name without the prefix",
            );
        }
        if self.same_site == SameSite::None && self.secure == Some(false) {
            let what = "browsers take a cookie with SameSite=None only if it is Secure";
            return mistake("secure", what, "leave secure out, or choose same_site = \"lax\"");
        }
        if is_host && self.domain.is_some() {
            let what =
                "browsers refuse a cookie whose name begins with __Host- and that has a domain";
            return mistake("domain", what, "remove it, or let the name begin with __Secure-");
        }
        if is_host && paths.into_iter().any(|path| cookie_path(path) != "/") {
            let what = "the cookie's path is that of the app's match, and browsers take a cookie \
                        whose name begins with __Host- at the path / only";
            return mistake(
                "name",
                what,
                "let the name begin with __Secure-, or give each app a host",
            );
        }
        if needs_secure || self.same_site == SameSite::None {
            self.secure = Some(true);
        }
        Ok(())
    }

    /// The values of the cookies of this name in one `Cookie` field, in the order sent. The field
    /// is read as leniently as servers do: pairs are separated by `;`, white space around names and
    /// values is dropped, and so are quotes around a value. A value that is not UTF-8 becomes an
    /// empty one.
    pub fn values<'h>(&self, header: &'h [u8]) -> impl Iterator<Item = &'h str> {
        let values = header.split(|byte| *byte == b';').filter_map(|pair| self.value_in(pair));
        values.map(|value| core::str::from_utf8(value).unwrap_or(""))
    }

    /// The `Cookie` field without those cookies of this name for whose value `hide` returns true:
    /// `None` if the field can stay as it is; empty if nothing is left. The other pairs are kept
    /// byte by byte.
    pub fn strip(&self, header: &[u8], mut hide: impl FnMut(&str) -> bool) -> Option<Vec<u8>> {
        let mut kept = Vec::new();
        let mut hidden = false;
        for pair in header.split(|byte| *byte == b';') {
            let value = self.value_in(pair).map(|it| core::str::from_utf8(it).unwrap_or(""));
            if value.is_some_and(&mut hide) {
                hidden = true;
                continue;
            }
            let pair = trim(pair);
            if !pair.is_empty() {
                if !kept.is_empty() {
                    kept.extend_from_slice(b"; ");
                }
                kept.extend_from_slice(pair);
            }
        }
        hidden.then_some(kept)
    }

    /// Whether this `Set-Cookie` field makes a client send a cookie of this name: by its name, or,
    /// where it has none, by a value that looks like a pair once it is sent (RFC 6265bis section
    /// 5.6).
    #[must_use]
    pub fn is_set_by(&self, set_cookie: &[u8]) -> bool {
        let pair = set_cookie.split(|byte| *byte == b';').next().unwrap_or_default();
        let mut pair = pair;
        while let [b' ' | b'\t' | b'=', rest @ ..] = pair {
            pair = rest;
        }
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        trim(name) == self.name.as_bytes()
    }

    /// The `Set-Cookie` field that gives the client this value for the app at `path`, for as long as
    /// its browser runs. `by_tls`: the client came by TLS.
    #[must_use]
    pub fn set(&self, value: &str, path: &str, by_tls: bool) -> String {
        format!("{}={value}{}", self.name, self.attributes(path, by_tls))
    }

    /// The `Set-Cookie` field that removes the cookie of the app at `path` from the client.
    #[must_use]
    pub fn remove(&self, path: &str, by_tls: bool) -> String {
        format!("{}={}; Max-Age=0", self.name, self.attributes(path, by_tls))
    }

    fn attributes(&self, path: &str, by_tls: bool) -> String {
        let domain =
            self.domain.as_ref().map_or_else(String::new, |domain| format!("; Domain={domain}"));
        let secure = if self.secure.unwrap_or(by_tls) { "; Secure" } else { "" };
        let (path, same_site) = (cookie_path(path), self.same_site.label());
        format!("; Path={path}{domain}; HttpOnly; SameSite={same_site}{secure}")
    }

    fn value_in<'p>(&self, pair: &'p [u8]) -> Option<&'p [u8]> {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        if trim(&pair[..equals]) != self.name.as_bytes() {
            return None;
        }
        let value = trim(&pair[equals + 1..]);
        Some(value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value))
    }
}

/// An app's path as a cookie's `Path`: without the slash at its end, so that the path itself is
/// below it. `/` replaces a path that no attribute can carry.
fn cookie_path(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';');
    if path.is_empty() || !is_plain { "/" } else { path }
}

fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}
