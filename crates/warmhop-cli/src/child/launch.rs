//! The settings of an app's process, by which a child process is started.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What an app inherits of the peer's environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Inherit {
    /// Everything except the peer's own variables.
    #[default]
    All,
    /// The variables of these names, and `PATH`.
    Only(Vec<String>),
}

/// The protocol between a peer and an app over loopback.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1, WebSocket and other upgrades included.
    #[default]
    Http1,
    /// HTTP/2 in clear text with prior knowledge (RFC 9113 section 3.3), as gRPC servers want it.
    H2,
}

/// When a started app counts as ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The path that has to answer; absent: a TCP connect is enough.
    pub path: Option<String>,
    /// The probe's `Host`; absent: the address that is probed.
    pub host: Option<String>,
    /// The statuses that count; none: 2xx and 3xx.
    pub status: Vec<u16>,
    /// How long a start may take.
    pub timeout: Duration,
    /// The interval between probes, after the first moments.
    pub every: Duration,
    /// How long one probe may go without an answer before the next one.
    pub probe_timeout: Duration,
}

impl Default for Ready {
    fn default() -> Self {
        Self {
            path: None,
            host: None,
            status: Vec::new(),
            timeout: Duration::from_secs(60),
            every: Duration::from_millis(100),
            probe_timeout: Duration::from_secs(2),
        }
    }
}

/// How a ready app is probed for being alive. Its policy says how often, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alive {
    /// The path to probe; absent: that of [`Ready`].
    pub path: Option<String>,
    /// How long its answer may take.
    pub timeout: Duration,
}

impl Default for Alive {
    fn default() -> Self {
        Self { path: None, timeout: Duration::from_millis(1500) }
    }
}
