//! Refusals of clients that sent no complete request: counted by reason, and logged at most once a
//! second for each reason, because a refused client may come back as fast as it can.

#[cfg(feature = "admin")]
pub(crate) mod admin;

use std::error::Error;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tracing::info;

/// One reason is logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Why clients are refused at one kind of listener.
pub(crate) trait Reason: Copy + 'static {
    /// Each of them.
    const ALL: &'static [Self];
    /// Its place among all.
    fn place(self) -> usize;
    /// A stable name for counters.
    fn label(self) -> &'static str;
    /// What happened and what follows, for the log.
    fn what(self) -> &'static str;
}

/// Why a client was refused at a front door, or lost its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A head that two readers could understand differently.
    AmbiguousHead,
    /// A head that is not HTTP.
    UnreadableHead,
    /// A head with more fields or bytes than there may be.
    HeadTooLarge,
    /// A connection that broke the rules of HTTP/2.
    Http2Error,
    /// A connection that began as TLS does, at a door without it.
    TlsOnPlainDoor,
    /// A chunked body that two readers could end at different places.
    MalformedChunks,
    /// Trailers with a pseudo field.
    MalformedTrailers,
    /// The clients together took more memory than they may.
    OverBudget,
    /// The same, and the largest was a hop of another peer.
    HopOverBudget,
    /// One address had as many connections as it may.
    TooManyFromAddress,
    /// An idle connection was closed to free its place.
    GaveWay,
    /// A connection whose client had stalled was closed to free its place.
    StoodStill,
    /// There was no place, and no connection that should have given up its own.
    NoPlace,
    /// A request's body came too slowly.
    SlowBody,
    /// A request's head was not complete in time.
    SlowHead,
    /// A connection to a door for proxies did not say where its client is.
    NoProxyHeader,
    /// A connection came from an address that is no trusted proxy's.
    UntrustedProxy,
}

impl Refusal {
    /// The refusal that hyper's error means; `None` if the connection ended for another reason.
    pub(crate) fn of_error(error: &(dyn Error + 'static)) -> Option<Self> {
        let error = error.downcast_ref::<hyper::Error>()?;
        if error.is_parse_too_large() {
            return Some(Self::HeadTooLarge);
        }
        if error.is_parse() {
            return Some(Self::UnreadableHead);
        }
        // A connection that its client or the network ended was not refused.
        let error = error.source()?.downcast_ref::<h2::Error>()?;
        error.is_library().then_some(Self::Http2Error)
    }
}

impl Reason for Refusal {
    const ALL: &'static [Self] = &[
        Self::AmbiguousHead,
        Self::UnreadableHead,
        Self::HeadTooLarge,
        Self::Http2Error,
        Self::TlsOnPlainDoor,
        Self::MalformedChunks,
        Self::MalformedTrailers,
        Self::OverBudget,
        Self::HopOverBudget,
        Self::TooManyFromAddress,
        Self::GaveWay,
        Self::StoodStill,
        Self::NoPlace,
        Self::SlowBody,
        Self::SlowHead,
        Self::NoProxyHeader,
        Self::UntrustedProxy,
    ];

    fn place(self) -> usize {
        self as usize
    }

    fn label(self) -> &'static str {
        match self {
            Self::AmbiguousHead => "ambiguous-head",
            Self::UnreadableHead => "unreadable-head",
            Self::HeadTooLarge => "head-too-large",
            Self::Http2Error => "http2-error",
            Self::TlsOnPlainDoor => "tls-on-plain-door",
            Self::MalformedChunks => "malformed-chunks",
            Self::MalformedTrailers => "malformed-trailers",
            Self::OverBudget => "over-budget",
            Self::HopOverBudget => "hop-over-budget",
            Self::TooManyFromAddress => "too-many-from-address",
            Self::GaveWay => "gave-way",
            Self::StoodStill => "stood-still",
            Self::NoPlace => "no-place",
            Self::SlowBody => "slow-body",
            Self::SlowHead => "slow-head",
            Self::NoProxyHeader => "no-proxy-header",
            Self::UntrustedProxy => "untrusted-proxy",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::AmbiguousHead => {
                "a request's head was ambiguous; it got 400, and its connection was closed"
            }
            Self::UnreadableHead => {
                "a request's head was not HTTP; it got 400, and its connection was closed"
            }
            Self::HeadTooLarge => {
                "a request's head had more than 64 KiB, or more than 128 fields; it got 431"
            }
            Self::Http2Error => "a client broke the rules of HTTP/2; its connection was closed",
            Self::TlsOnPlainDoor => {
                "a client spoke TLS to a front door without it, as for https:// in place of \
                 http://; its connection was closed"
            }
            Self::MalformedChunks => {
                "the end of a chunked body was ambiguous; it was cut off, and its connection was closed"
            }
            Self::MalformedTrailers => {
                "the trailers of a request over HTTP/2 had a pseudo field; its stream was reset"
            }
            Self::OverBudget => {
                "clients hold more memory than all of them may; the connection that uses most was closed"
            }
            Self::HopOverBudget => {
                "requests hold more memory than all of them may; the one from another peer that uses \
                 most was ended"
            }
            Self::TooManyFromAddress => {
                "an address has as many connections as one may have; its idlest was closed, or the \
                 new one where all are busy"
            }
            Self::GaveWay => "a front door is full; the connection idle longest was closed",
            Self::StoodStill => {
                "a front door is full and nobody is idle; a connection was closed whose client \
                 neither took its answer nor sent its body"
            }
            Self::NoPlace => {
                "a front door is full and everybody busy; a new connection was closed, of the \
                 address with most of them"
            }
            Self::SlowBody => {
                "a request's body arrived more slowly than the limits allow; it got 408"
            }
            Self::SlowHead => {
                "a request's head was not complete within a minute; it got 408, and its connection \
                 was closed"
            }
            Self::NoProxyHeader => {
                "a connection did not begin with the PROXY header that the front door asks for; it \
                 was closed"
            }
            Self::UntrustedProxy => {
                "a connection that has to begin with a PROXY header came from no trusted proxy; it \
                 was closed"
            }
        }
    }
}

/// The label of what is counted by its reason alone.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByReason {
    pub(crate) reason: &'static str,
}

/// The refusals of one peer at one kind of listener.
pub(crate) struct Refusals<R = Refusal> {
    counts: Family<ByReason, Counter>,
    /// When each was last logged, and how often it has happened since.
    logged: Mutex<Vec<(Option<Instant>, u64)>>,
    reasons: PhantomData<R>,
}

impl<R: Reason> Default for Refusals<R> {
    fn default() -> Self {
        let logged = Mutex::new(vec![(None, 0); R::ALL.len()]);
        Self { counts: Family::default(), logged, reasons: PhantomData }
    }
}

impl<R> fmt::Debug for Refusals<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusals").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl<R: Reason> Refusals<R> {
    /// The counters, for a registry. Each begins at 0: otherwise the first refusal would be no increase.
    pub(crate) fn counts(&self) -> Family<ByReason, Counter> {
        for why in R::ALL {
            let _ = self.counts.get_or_create(&ByReason { reason: why.label() });
        }
        self.counts.clone()
    }

    /// Counts a refusal, and logs it unless the same one was logged a moment ago.
    pub(crate) fn note(&self, why: R) {
        self.counts.get_or_create(&ByReason { reason: why.label() }).inc();
        let times = {
            let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
            let (at, times) = &mut logged[why.place()];
            *times += 1;
            if at.is_some_and(|at| at.elapsed() < LOG_EVERY) {
                return;
            }
            *at = Some(Instant::now());
            std::mem::take(times)
        };
        info!(reason = why.label(), times, "{}", why.what());
    }

    #[cfg(test)]
    pub(crate) fn count(&self, why: R) -> u64 {
        self.counts.get_or_create(&ByReason { reason: why.label() }).get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts each reason twice.
    pub(super) fn each_is_counted_under_a_name_of_its_own<R: Reason + fmt::Debug>() {
        let refusals = Refusals::<R>::default();
        for (at, why) in R::ALL.iter().enumerate() {
            assert_eq!(why.place(), at);
            refusals.note(*why);
            refusals.note(*why);
            assert_eq!(refusals.count(*why), 2, "{why:?}");
        }
    }

    #[test]
    fn each_refusal_is_counted_under_a_name_of_its_own() {
        each_is_counted_under_a_name_of_its_own::<Refusal>();
    }
}
