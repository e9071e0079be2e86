//! The affinity cookies of one answer: one for each path at which the app answers the client's host.

use http::header::HOST;
use http::{HeaderMap, HeaderValue, Uri};
use warmhop_core::cookie::CookieSpec;
use warmhop_core::matching::cookie_paths;

use crate::app::AppSpec;
use crate::http::fields;

/// The path and the host that a client asked for.
pub(crate) struct AskedAt {
    pub(crate) host: Option<HeaderValue>,
    uri: Uri,
    secure: bool,
}

impl AskedAt {
    pub(crate) fn of(headers: &HeaderMap, uri: &Uri, secure: bool) -> Self {
        Self { host: headers.get(HOST).cloned(), uri: uri.clone(), secure }
    }

    /// The same of a host that was not named by the client.
    pub(crate) fn with_host(&self, host: HeaderValue) -> Self {
        Self { host: Some(host), uri: self.uri.clone(), secure: self.secure }
    }

    /// The host as the client wrote it, without a port.
    pub(crate) fn host(&self) -> Option<&str> {
        self.host.as_ref().and_then(fields::host_in)
    }

    /// Gives the client the app's cookie.
    pub(crate) fn set(
        &self,
        cookie: &CookieSpec,
        value: &str,
        spec: &AppSpec,
        headers: &mut HeaderMap,
    ) {
        self.at_each_path(spec, headers, |path| cookie.set(value, path, self.secure));
    }

    /// Removes the app's cookie from the client.
    pub(crate) fn remove(&self, cookie: &CookieSpec, spec: &AppSpec, headers: &mut HeaderMap) {
        self.at_each_path(spec, headers, |path| cookie.remove(path, self.secure));
    }

    fn at_each_path(
        &self,
        spec: &AppSpec,
        headers: &mut HeaderMap,
        field: impl Fn(&str) -> String,
    ) {
        for path in cookie_paths(&spec.matches, self.host(), self.uri.path()) {
            fields::set_affinity(headers, &field(path));
        }
    }
}
