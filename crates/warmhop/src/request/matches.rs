//! Which of many apps a request is for: found by its host, then by its path, and never by looking
//! through all apps.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use warmhop_core::matching::{HostPattern, parent_of};

use crate::app::slot::Slot;

/// A match that a request fits.
#[derive(Debug)]
pub(crate) struct Matched<A = Arc<Slot>> {
    pub(crate) app: A,
    /// The beginning of the path, which the match covers.
    pub(crate) prefix: Box<str>,
}

/// The matches of all apps.
pub(crate) struct Matches<A = Arc<Slot>> {
    by_name: HashMap<Box<str>, Paths<A>>,
    /// By the name that a host is one label below.
    below: HashMap<Box<str>, Paths<A>>,
    any: Paths<A>,
}

/// The matches of one host.
struct Paths<A> {
    by_prefix: HashMap<Box<str>, Arc<Matched<A>>>,
    /// The lengths of all prefixes, the longest first, each once.
    lengths: Vec<usize>,
}

impl<A> Default for Paths<A> {
    fn default() -> Self {
        Self { by_prefix: HashMap::new(), lengths: Vec::new() }
    }
}

impl<A> Paths<A> {
    fn add(&mut self, prefix: &str, app: A) {
        let matched = Arc::new(Matched { app, prefix: prefix.into() });
        self.by_prefix.insert(prefix.into(), matched);
        if let Err(at) = self.lengths.binary_search_by(|it| prefix.len().cmp(it)) {
            self.lengths.insert(at, prefix.len());
        }
    }

    /// The longest prefix of whole segments.
    fn find(&self, path: &str) -> Option<&Arc<Matched<A>>> {
        let ends_segment = |length: usize| matches!(path.as_bytes().get(length), None | Some(b'/'));
        self.lengths
            .iter()
            .filter(|length| ends_segment(**length))
            .find_map(|length| self.by_prefix.get(path.get(..*length)?))
    }
}

impl Matches {
    pub(crate) fn of(slots: &[Arc<Slot>]) -> Self {
        let mut matches = Self::default();
        for slot in slots {
            for one in &slot.spec().matches {
                for (host, prefix) in one.claims() {
                    matches.add(host, prefix, Arc::clone(slot));
                }
            }
        }
        matches
    }
}

impl<A> Default for Matches<A> {
    fn default() -> Self {
        Self { by_name: HashMap::new(), below: HashMap::new(), any: Paths::default() }
    }
}

impl<A> Matches<A> {
    fn add(&mut self, host: Option<&HostPattern>, prefix: &str, app: A) {
        let paths = match host {
            Some(host) => {
                let names =
                    if host.exact().is_some() { &mut self.by_name } else { &mut self.below };
                names.entry(host.name().to_ascii_lowercase().into()).or_default()
            }
            None => &mut self.any,
        };
        paths.add(prefix, app);
    }

    /// The best match: a host by name before those below another, these before any, and then the
    /// longest path.
    pub(crate) fn find(&self, host: Option<&str>, path: &str) -> Option<&Arc<Matched<A>>> {
        let of_host = |host: &str| {
            let host = lowercase(host);
            let by_name = || self.by_name.get(&*host)?.find(path);
            by_name().or_else(|| self.below.get(parent_of(&host)?)?.find(path))
        };
        let has_hosts = !(self.by_name.is_empty() && self.below.is_empty());
        host.filter(|_| has_hosts).and_then(of_host).or_else(|| self.any.find(path))
    }
}

fn lowercase(host: &str) -> Cow<'_, str> {
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_match_wins() {
        let mut matches = Matches::default();
        for (host, prefix) in [
            ("-", ""),
            ("-", "/shop"),
            ("-", "/shop/old"),
            ("a.example", ""),
            ("*.b.example", ""),
            ("x.b.example", "/x"),
        ] {
            let pattern = (host != "-").then(|| HostPattern::new(host));
            matches.add(pattern.as_ref(), prefix, format!("{host}{prefix}"));
        }
        for (host, path, expected) in [
            (Some("nobody"), "/", "-"),
            (None, "/", "-"),
            (Some("nobody"), "/shop/1", "-/shop"),
            (Some("nobody"), "/shop/old/1", "-/shop/old"),
            (Some("nobody"), "/shop/older", "-/shop"),
            (Some("nobody"), "/shopping", "-"),
            (Some("a.example"), "/shop", "a.example"),
            (Some("A.Example"), "/shop", "a.example"),
            (Some("y.b.example"), "/", "*.b.example"),
            (Some("x.b.example"), "/", "*.b.example"),
            (Some("X.b.example"), "/x/1", "x.b.example/x"),
            (Some("z.y.b.example"), "/", "-"),
            (Some("b.example"), "/", "-"),
            (Some(".b.example"), "/", "-"),
            (Some("nobody"), "/ü", "-"),
        ] {
            let found = matches.find(host, path).map(|it| it.app.as_str());
            assert_eq!(found, Some(expected), "{host:?}{path}");
        }
    }

    #[test]
    fn a_request_that_fits_no_match_is_nobodys() {
        let mut matches = Matches::default();
        matches.add(Some(&HostPattern::new("a.example")), "/shop", ());
        for (host, path) in [
            (Some("a.example"), "/"),
            (Some("a.example"), "/shopping"),
            (Some("b.example"), "/shop"),
            (None, "/shop"),
            (Some(""), "/shop"),
        ] {
            assert!(matches.find(host, path).is_none(), "{host:?}{path}");
        }
        assert!(matches.find(Some("a.example"), "/shop/").is_some());
    }
}
