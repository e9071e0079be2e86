//! `INFO`: what libraries and their dashboards look for in a server.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use bytes::Bytes;

use super::arguments::word;
use super::frame::Reply;
use super::script::SPEAKS_AS;
use super::shared::BLOCKED;

/// How many clients are connected.
pub(super) static CONNECTED: AtomicI64 = AtomicI64::new(0);
/// When this process's endpoint began, and the identifier of this run.
static RUN: LazyLock<(Instant, String)> =
    LazyLock::new(|| (Instant::now(), format!("{:040x}", rand::random::<u128>())));

/// Records that the endpoint begins.
pub(super) fn begin() {
    LazyLock::force(&RUN);
}

/// How much memory this process uses, in bytes; 0 if the system does not say.
fn memory() -> u64 {
    const PAGE: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or_default().saturating_mul(PAGE)
}

fn lines(pairs: &[(&str, &dyn std::fmt::Display)]) -> String {
    pairs.iter().map(|(name, value)| format!("{name}:{value}\r\n")).collect()
}

/// Answers `INFO`: all sections, or the named ones.
pub(super) fn answer(sections: &[Bytes]) -> Reply {
    let (begun, run) = &*RUN;
    let (seconds, memory) = (begun.elapsed().as_secs(), memory());
    #[expect(clippy::cast_precision_loss, reason = "two digits of it are shown")]
    let human = format!("{:.2}M", memory as f64 / 1_048_576.0);
    let all: [(&str, String); 9] = [
        (
            "Server",
            lines(&[
                ("redis_version", &SPEAKS_AS),
                ("redis_mode", &"standalone"),
                ("server_name", &"warmhop"),
                ("warmhop_version", &env!("CARGO_PKG_VERSION")),
                ("os", &std::env::consts::OS),
                ("arch_bits", &usize::BITS),
                ("process_id", &std::process::id()),
                ("run_id", run),
                ("uptime_in_seconds", &seconds),
                ("uptime_in_days", &(seconds / 86_400)),
            ]),
        ),
        (
            "Clients",
            lines(&[
                ("connected_clients", &CONNECTED.load(Ordering::Relaxed)),
                ("maxclients", &super::CONNECTIONS_MAX),
                ("blocked_clients", &BLOCKED.load(Ordering::Relaxed)),
            ]),
        ),
        (
            "Memory",
            lines(&[
                ("used_memory", &memory),
                ("used_memory_human", &human),
                ("used_memory_rss", &memory),
                ("maxmemory", &0),
                ("maxmemory_human", &"0B"),
                ("maxmemory_policy", &"noeviction"),
            ]),
        ),
        (
            "Persistence",
            lines(&[("loading", &0), ("rdb_bgsave_in_progress", &0), ("aof_enabled", &0)]),
        ),
        ("Stats", lines(&[("evicted_keys", &0)])),
        (
            "Replication",
            lines(&[
                ("role", &"master"),
                ("connected_slaves", &0),
                ("master_failover_state", &"no-failover"),
                ("master_replid", run),
                ("master_repl_offset", &0),
            ]),
        ),
        ("CPU", String::new()),
        ("Cluster", lines(&[("cluster_enabled", &0)])),
        ("Keyspace", String::new()),
    ];
    let asked: Vec<String> = sections.iter().map(|section| word(section)).collect();
    let is_all = asked.is_empty()
        || asked.iter().any(|it| matches!(it.as_str(), "ALL" | "DEFAULT" | "EVERYTHING"));
    let wanted =
        all.iter().filter(|(name, _)| is_all || asked.contains(&name.to_ascii_uppercase()));
    let text: Vec<String> = wanted.map(|(name, text)| format!("# {name}\r\n{text}")).collect();
    Reply::text(text.join("\r\n"))
}
