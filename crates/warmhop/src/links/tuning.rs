//! Times and bounds of the network layer that can be set.

use std::time::Duration;

/// Times and bounds of the network layer. The defaults suit a data-centre LAN of up to 50 peers.
#[derive(Debug, Clone)]
pub(crate) struct NetTuning {
    /// How often each peer gossips with three others. Lower repairs news sooner; each halving
    /// doubles what an idle peer costs.
    pub(crate) gossip_interval: Duration,
    /// Above this suspicion (phi accrual) a peer without a link counts as suspect.
    pub(crate) phi_threshold: f64,
    /// A link that is silent for this long is down. Keep-alives go at a quarter of it.
    pub(crate) idle_timeout: Duration,
    /// The largest packet that is tried, in bytes of UDP payload: 1200 to 6500.
    pub(crate) mtu: u16,
    /// Links older than this are dialed anew, so that certificates are verified again.
    pub(crate) link_age_max: Duration,
    /// How long a handshake may take.
    pub(crate) dial_within: Duration,
    /// How long the hello may take once the handshake is done.
    pub(crate) hello_within: Duration,
    /// How long a hop waits for a link and a stream.
    pub(crate) open_within: Duration,
    /// Hops that this peer may have under way over one link, as many as a front door accepts
    /// connections; one more is refused at once. Raising it costs nothing until it is used. Then
    /// each hop takes at most what a stream may hold, 256 KiB in each direction, and the peak
    /// number of hops takes some 90 bytes each for as long as the link lives.
    pub(crate) hops_max: u32,
    /// How long the start waits for seeds to report that the name is taken; once one has, up to
    /// three times as long for the peer that has it. A clash that shows later is reported by
    /// `Net::name_clash`.
    pub(crate) seeds_within: Duration,
    /// A peer without a link is forgotten once no other peer has mentioned it for this long.
    pub(crate) forget_after: Duration,
    /// A peer that others hear and to which there is no link counts as unlinked after this long.
    pub(crate) unlinked_after: Duration,
    /// Whether news is pushed over links at once. Without it gossip alone carries it.
    pub(crate) push_news: bool,
}

impl Default for NetTuning {
    fn default() -> Self {
        Self {
            gossip_interval: Duration::from_millis(250),
            phi_threshold: 12.0,
            idle_timeout: Duration::from_millis(2500),
            // Probes (RFC 8899) find out whether the path carries this much, as loopback and jumbo
            // frames do, which moves bulk half as fast again as Ethernet's size; a path that
            // carries less costs some lost probes.
            mtu: 6000,
            link_age_max: Duration::from_secs(3600),
            dial_within: Duration::from_secs(2),
            hello_within: Duration::from_secs(5),
            open_within: Duration::from_secs(2),
            hops_max: 16 * 1024,
            seeds_within: Duration::from_millis(250),
            forget_after: Duration::from_secs(120),
            unlinked_after: Duration::from_secs(5),
            push_news: true,
        }
    }
}
