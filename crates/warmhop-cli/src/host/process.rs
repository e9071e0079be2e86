//! Metrics of the process itself, under the names of Prometheus's own libraries. The mesh crate
//! counts for one peer and knows no process, so these belong to the binary.

use std::fmt::Write;
use std::fs;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};

/// The end of an OpenMetrics text.
const END: &str = "# EOF\n";

/// Notes when the process began; the first caller's time counts.
pub fn begins() {
    began();
}

fn began() -> f64 {
    static BEGAN: OnceLock<f64> = OnceLock::new();
    *BEGAN.get_or_init(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    })
}

/// `metrics`, an OpenMetrics text, with those of this process appended.
#[must_use]
pub fn with(metrics: String) -> String {
    let mut text = metrics;
    if text.ends_with(END) {
        text.truncate(text.len() - END.len());
    }
    let mut family = |name: &str, kind: &str, unit: &str, help: &str, value: Option<f64>| {
        let Some(value) = value else { return };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}");
        if !unit.is_empty() {
            let _ = writeln!(text, "# UNIT {name} {unit}");
        }
        let total = if kind == "counter" { "_total" } else { "" };
        let _ = writeln!(text, "{name}{total} {value}");
    };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let cpu = "Processor time that this process has used, in user and in system mode";
    family("process_cpu_seconds", "counter", "seconds", cpu, cpu_seconds());
    let resident = "Memory of this process that is in the machine's";
    family("process_resident_memory_bytes", "gauge", "bytes", resident, bytes(&status, "VmRSS:"));
    let addressed = "Memory that this process has addresses for";
    family("process_virtual_memory_bytes", "gauge", "bytes", addressed, bytes(&status, "VmSize:"));
    family("process_open_fds", "gauge", "", "Files that this process has open", open_files());
    let most = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft as f64);
    family("process_max_fds", "gauge", "", "Files that this process may have open", most);
    let start = "When this process started, in seconds since the Unix epoch";
    family("process_start_time_seconds", "gauge", "seconds", start, Some(began()));
    #[cfg(debug_assertions)]
    {
        let allocated =
            "Allocations of this process, those of more room for what there is included";
        family("process_allocations", "counter", "", allocated, Some(allocations()));
    }
    text.push_str(END);
    text
}

/// Release builds do not count them.
#[cfg(debug_assertions)]
fn allocations() -> f64 {
    let counted = stats_alloc::INSTRUMENTED_SYSTEM.stats();
    (counted.allocations + counted.reallocations) as f64
}

fn cpu_seconds() -> Option<f64> {
    let used = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = |time: TimeVal| time.num_microseconds() as f64 / 1e6;
    Some(seconds(used.user_time()) + seconds(used.system_time()))
}

/// The number of kilobytes at `key` in `/proc/self/status`.
fn bytes(status: &str, key: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kilobytes * 1024) as f64)
}

fn open_files() -> Option<f64> {
    // Reading the folder opens it, which counts as one.
    let files = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(files.saturating_sub(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_of_the_process_follow_those_of_the_peer_and_precede_the_end() {
        let text = with("# HELP a b.\n# TYPE a gauge\na 1\n# EOF\n".into());
        assert!(text.starts_with("# HELP a b.\n# TYPE a gauge\na 1\n# HELP process_"), "{text}");
        assert!(text.ends_with("\n# EOF\n") && text.matches(END).count() == 1, "{text}");
        for name in [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_virtual_memory_bytes",
            "process_open_fds",
            "process_max_fds",
            "process_start_time_seconds",
        ] {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            assert!(line.trim().parse::<f64>().unwrap() > 0.0, "{name}{line}");
        }
        assert_eq!(bytes("VmPeak: 1 kB\nVmRSS:\t  2048 kB\n", "VmRSS:"), Some(2_097_152.0));
        assert_eq!(bytes("VmRSS: many\n", "VmRSS:"), None);
    }
}
