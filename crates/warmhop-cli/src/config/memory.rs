//! How much memory sessions may use by default: a share of the memory that this process may have.

use std::fs;
use std::path::Path;

/// The share of the machine's memory, or of the control group's.
const SHARE: u64 = 8;
/// The default if neither is known.
const OTHERWISE: u64 = 1 << 30;
/// The bounds of the configured value.
pub(super) const BOUNDS: std::ops::RangeInclusive<u64> = (1 << 20)..=(1 << 44);

const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// An eighth of the memory that this process may have.
pub(super) fn default() -> u64 {
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_of(&text));
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let bounds = bounds_of(&group, Path::new("/sys/fs/cgroup"));
    let least = bounds.into_iter().chain(total).min();
    least.map_or(OTHERWISE, |bytes| bytes / SHARE).clamp(*BOUNDS.start(), *BOUNDS.end())
}

/// The total in `/proc/meminfo`.
fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The limits of the control group that `/proc/self/cgroup` names, and of all groups above it.
fn bounds_of(groups: &str, root: &Path) -> Vec<u64> {
    let mut bounds = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (folder, file) = match controllers {
            "" => (root.to_path_buf(), "memory.max"),
            "memory" => (root.join("memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        let mut at = folder.join(path.trim_start_matches('/'));
        loop {
            let text = fs::read_to_string(at.join(file)).unwrap_or_default();
            bounds.extend(text.trim().parse::<u64>().ok());
            if at == folder || !at.pop() {
                break;
            }
        }
    }
    bounds
}

/// Reads a size such as `512MiB`; a bare number is in bytes.
pub(super) fn parse(text: &str) -> Option<u64> {
    let unit = UNITS.into_iter().find(|(unit, _)| text.ends_with(unit));
    let (unit, bytes) = unit.unwrap_or(("", 1));
    text.strip_suffix(unit)?.trim_end().parse::<u64>().ok()?.checked_mul(bytes)
}

/// A size as [`parse`] reads it.
pub(super) fn text(bytes: u64) -> String {
    let fits = |(_, unit): &(&str, u64)| bytes >= *unit && bytes.is_multiple_of(*unit);
    let (unit, of) = UNITS.into_iter().find(fits).unwrap_or(("B", 1));
    format!("{}{unit}", bytes / of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back() {
        for (given, bytes) in
            [("512MiB", 512 << 20), ("2 GiB", 2 << 30), ("1500", 1500), ("3KiB", 3072)]
        {
            assert_eq!(parse(given), Some(bytes));
            assert_eq!(parse(&text(bytes)), Some(bytes));
        }
        for wrong in ["", "MiB", "1.5GiB", "-1", "1 TB", "99999999999GiB"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_defaults_leave_room_for_the_peer_and_its_apps() {
        // The rule of docs/trust.md: three times the clients' budget, the sessions, and 64 MiB.
        let own = |limit: u64| 3 * limit / SHARE + limit / SHARE + (64 << 20);
        let manifest = include_str!("../../../../deploy/kubernetes/statefulset.yaml");
        assert!(manifest.contains("limits: { memory: 1Gi }"), "another limit than is checked here");
        assert!(own(1 << 30) <= (1 << 30) * 5 / 8, "{}", own(1 << 30));
    }

    #[test]
    fn the_smallest_bound_of_a_control_group_and_those_above_it_counts() {
        let root = std::env::temp_dir().join(format!("warmhop-groups-{}", std::process::id()));
        let inner = root.join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(root.join("a/memory.max"), "4096000\n").unwrap();
        assert_eq!(bounds_of("0::/a/b\n", &root), [4_096_000]);
        assert!(bounds_of("", &root).is_empty());
        assert_eq!(total_of("MemFree: 1 kB\nMemTotal:  2048 kB\n"), Some(2 << 20));
        assert!(BOUNDS.contains(&default()));
        fs::remove_dir_all(&root).unwrap();
    }
}
