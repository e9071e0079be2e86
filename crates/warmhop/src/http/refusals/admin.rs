//! Why clients are refused at the admin listener.

use crate::http::refusals::{Reason, Refusal};

/// Why a client was refused at the admin listener, or lost its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdminRefusal {
    /// A head that two readers could understand differently.
    AmbiguousHead,
    /// A head that is not HTTP.
    UnreadableHead,
    /// A head with more fields or bytes than there may be.
    HeadTooLarge,
    /// A request's head was not complete in time.
    SlowHead,
    /// A connection that began as TLS does.
    TlsOnPlainDoor,
    /// A chunked body that two readers could end at different places.
    MalformedChunks,
    /// A request without the token, or with another one.
    NoToken,
    /// There is no token, and the request named another machine.
    ForeignHost,
    /// A request that acts came from a web page of another origin.
    ForeignPage,
    /// A browser or a command could not watch, since too many do.
    TooManyWatch,
    /// An idle connection was closed to free its place.
    GaveWay,
    /// Every place was taken but those for health checks.
    NoPlace,
}

impl AdminRefusal {
    /// What ended a connection here as it would have at a front door.
    pub(crate) fn of(why: Refusal) -> Option<Self> {
        match why {
            Refusal::AmbiguousHead => Some(Self::AmbiguousHead),
            Refusal::UnreadableHead => Some(Self::UnreadableHead),
            Refusal::HeadTooLarge => Some(Self::HeadTooLarge),
            Refusal::SlowHead => Some(Self::SlowHead),
            Refusal::TlsOnPlainDoor => Some(Self::TlsOnPlainDoor),
            Refusal::MalformedChunks => Some(Self::MalformedChunks),
            _ => None,
        }
    }
}

impl Reason for AdminRefusal {
    const ALL: &'static [Self] = &[
        Self::AmbiguousHead,
        Self::UnreadableHead,
        Self::HeadTooLarge,
        Self::SlowHead,
        Self::TlsOnPlainDoor,
        Self::MalformedChunks,
        Self::NoToken,
        Self::ForeignHost,
        Self::ForeignPage,
        Self::TooManyWatch,
        Self::GaveWay,
        Self::NoPlace,
    ];

    fn place(self) -> usize {
        self as usize
    }

    fn label(self) -> &'static str {
        match self {
            Self::AmbiguousHead => "ambiguous-head",
            Self::UnreadableHead => "unreadable-head",
            Self::HeadTooLarge => "head-too-large",
            Self::SlowHead => "slow-head",
            Self::TlsOnPlainDoor => "tls-on-plain-door",
            Self::MalformedChunks => "malformed-chunks",
            Self::NoToken => "no-token",
            Self::ForeignHost => "foreign-host",
            Self::ForeignPage => "foreign-page",
            Self::TooManyWatch => "too-many-watch",
            Self::GaveWay => "gave-way",
            Self::NoPlace => "no-place",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::AmbiguousHead => {
                "a request's head at the admin listener was ambiguous; it got 400, and its connection \
                 was closed"
            }
            Self::UnreadableHead => {
                "a request's head at the admin listener was not HTTP; it got 400, and its connection \
                 was closed"
            }
            Self::HeadTooLarge => {
                "a request's head at the admin listener was too large; it got 431"
            }
            Self::SlowHead => {
                "a request's head at the admin listener was not complete in time; its connection was \
                 closed"
            }
            Self::TlsOnPlainDoor => {
                "a client spoke TLS to the admin listener, which has none; its connection was closed"
            }
            Self::MalformedChunks => {
                "the end of a chunked body at the admin listener was ambiguous; it was cut off, and its \
                 connection was closed"
            }
            Self::NoToken => {
                "a request at the admin listener did not have the admin token; it got 401"
            }
            Self::ForeignHost => {
                "a request's Host field at the admin listener named another machine; it got 403. To let \
                 others than this machine's processes ask, set an admin token"
            }
            Self::ForeignPage => {
                "a web page of another origin tried to act through the admin listener; it got 403"
            }
            Self::TooManyWatch => {
                "too many dashboards and commands watch this peer; one more got 503"
            }
            Self::GaveWay => "the admin listener is full; the connection idle longest was closed",
            Self::NoPlace => {
                "the admin listener is full and everybody busy; a request got 503. Health checks have \
                 places of their own"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_is_counted_under_a_name_of_its_own() {
        crate::http::refusals::tests::each_is_counted_under_a_name_of_its_own::<AdminRefusal>();
    }
}
