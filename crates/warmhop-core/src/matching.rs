//! Which requests belong to an app: by host, then by the beginning of the path.
//!
//! Owns the meaning of a match, the order of two matches by how specific they are, and the paths of
//! an app's cookies. Refuses to know how the matches of many apps are searched.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// The hosts that a match is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum HostPattern {
    /// This host.
    Exact(String),
    /// Every name that is one label longer than this one: `*.b.example` matches `a.b.example`, but
    /// neither `b.example` nor `x.a.b.example`, as in certificates (RFC 9525 section 6.3).
    Below(String),
}

impl HostPattern {
    /// A name, or `*.NAME`. The case of hosts does not matter.
    #[must_use]
    pub fn new(text: &str) -> Self {
        match text.strip_prefix("*.") {
            Some(parent) => Self::Below(parent.to_ascii_lowercase()),
            None => Self::Exact(text.to_ascii_lowercase()),
        }
    }

    /// Whether `host`, which has no port, matches.
    #[must_use]
    pub fn takes(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => name.eq_ignore_ascii_case(host),
            Self::Below(parent) => {
                parent_of(host).is_some_and(|above| above.eq_ignore_ascii_case(parent))
            }
        }
    }

    /// The name, if it is the only host that matches.
    #[must_use]
    pub fn exact(&self) -> Option<&str> {
        match self {
            Self::Exact(name) => Some(name),
            Self::Below(_) => None,
        }
    }

    /// The name, or the one that all matching names are below.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Exact(name) | Self::Below(name) => name,
        }
    }
}

/// `b.example` of `a.b.example`.
#[must_use]
pub fn parent_of(host: &str) -> Option<&str> {
    host.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, parent)| parent)
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(parent) => write!(f, "*.{parent}"),
        }
    }
}

/// Requests that belong to an app: those for one of the hosts, below the path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Match {
    /// Empty: any host.
    pub hosts: Vec<HostPattern>,
    /// The beginning of the path, by whole segments; `/` is every path.
    pub path: String,
}

/// One host, or any, and a path without the slash at its end: no two apps may have the same claim.
pub type Claim<'m> = (Option<&'m HostPattern>, &'m str);

impl Match {
    /// Every host and path.
    #[must_use]
    pub fn all() -> Self {
        Self { hosts: Vec::new(), path: "/".into() }
    }

    /// One host, or any, below a path.
    #[must_use]
    pub fn new(host: Option<&str>, path: &str) -> Self {
        Self { hosts: host.map(HostPattern::new).into_iter().collect(), path: path.into() }
    }

    /// The path without the slash at its end: empty for every path.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.path.trim_end_matches('/')
    }

    /// All its claims. Of the claims that fit a request, one for a host by name comes before one
    /// for the names below another, that before any host, and then the longest path.
    pub fn claims(&self) -> impl Iterator<Item = Claim<'_>> {
        let any = self.hosts.is_empty().then_some(None);
        any.into_iter().chain(self.hosts.iter().map(Some)).map(|host| (host, self.prefix()))
    }

    /// Whether requests for the host can match.
    #[must_use]
    pub fn takes_host(&self, host: Option<&str>) -> bool {
        let taken = |host| self.hosts.iter().any(|pattern| pattern.takes(host));
        self.hosts.is_empty() || host.is_some_and(taken)
    }
}

/// Whether `path` is `prefix`, or below it by whole segments.
#[must_use]
pub fn is_below(path: &str, prefix: &str) -> bool {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The paths at which a client of `host` gets a cookie of the app. Each needs a cookie, since a
/// browser sends a cookie below its path alone, and a wider one would be another app's. The path
/// above `path` comes first; no path is below another.
#[must_use]
pub fn cookie_paths<'m>(matches: &'m [Match], host: Option<&str>, path: &str) -> Vec<&'m str> {
    let of_host = matches.iter().filter(|it| it.takes_host(host));
    let mut paths: Vec<&str> = of_host.map(|it| it.path.as_str()).collect();
    if paths.is_empty() {
        // The app was chosen by other means than its matches.
        paths.extend(matches.first().map(|it| it.path.as_str()));
    }
    let trimmed = |path: &&str| path.trim_end_matches('/').len();
    paths.sort_by_key(trimmed);
    let mut outermost: Vec<&str> = Vec::new();
    for one in paths {
        if !outermost.iter().any(|above| is_below(one, above)) {
            outermost.push(one);
        }
    }
    outermost.sort_by_key(|one| !is_below(path, one));
    outermost
}

/// Splits a target, path and query, from the prefix of its path: what to put before it, and the
/// rest.
#[must_use]
pub fn without_prefix<'t>(target: &'t str, prefix: &str) -> (&'static str, &'t str) {
    match target.strip_prefix(prefix.trim_end_matches('/')) {
        Some(rest) if rest.starts_with('/') => ("", rest),
        Some(rest) if rest.is_empty() || rest.starts_with('?') => ("/", rest),
        _ => ("", target),
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use super::*;

    #[test]
    fn a_host_below_another_is_one_label_longer_and_has_no_case() {
        for (pattern, host, taken) in [
            ("a.example", "A.Example", true),
            ("a.example", "b.a.example", false),
            ("*.b.example", "a.b.example", true),
            ("*.B.example", "A.b.Example", true),
            ("*.b.example", "b.example", false),
            ("*.b.example", "x.a.b.example", false),
            ("*.b.example", ".b.example", false),
            ("*.b.example", "", false),
        ] {
            assert_eq!(HostPattern::new(pattern).takes(host), taken, "{pattern} {host}");
        }
        assert_eq!(HostPattern::new("*.B.example").to_string(), "*.b.example");
    }

    #[test]
    fn a_path_is_below_another_by_whole_segments() {
        for (path, prefix, below) in [
            ("/", "/", true),
            ("/shop", "/shop", true),
            ("/shop/a", "/shop", true),
            ("/shop/a", "/shop/", true),
            ("/shop", "/shop/", true),
            ("/shopping", "/shop", false),
            ("/", "/shop", false),
        ] {
            assert_eq!(is_below(path, prefix), below, "{path} below {prefix}");
        }
    }

    #[test]
    fn a_client_gets_a_cookie_at_each_path_of_its_host_that_is_below_no_other() {
        let matches = vec![
            Match::new(Some("a.example"), "/books"),
            Match::new(Some("*.example"), "/shop/"),
            Match::new(None, "/shop/old"),
            Match::new(Some("b.example"), "/"),
        ];
        let paths = |host, path| cookie_paths(&matches, host, path).join(" ");
        assert_eq!(paths(Some("a.example"), "/shop/x"), "/shop/ /books");
        assert_eq!(paths(Some("a.example"), "/books"), "/books /shop/");
        assert_eq!(paths(Some("c.example"), "/shop"), "/shop/");
        assert_eq!(paths(Some("b.example"), "/shop"), "/");
        assert_eq!(paths(None, "/shop/old"), "/shop/old");
        assert_eq!(cookie_paths(&matches[..1], None, "/"), ["/books"]);
    }

    #[test]
    fn a_prefix_is_taken_off_by_whole_segments() {
        for (target, prefix, expected) in [
            ("/shop/a?b", "/shop", "/a?b"),
            ("/shop", "/shop", "/"),
            ("/shop?b", "/shop/", "/?b"),
            ("/shop/", "/shop", "/"),
            ("/shop//a", "/shop", "//a"),
            ("/shopping", "/shop", "/shopping"),
            ("/a", "/", "/a"),
        ] {
            let (slash, rest) = without_prefix(target, prefix);
            assert_eq!([slash, rest].concat(), expected, "{target} {prefix}");
        }
    }
}
