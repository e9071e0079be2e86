//! The processor time and memory of the apps' processes, summed over the process group of each
//! copy. It is read from `/proc` at each scrape, so that it costs nothing in between.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::unistd::{SysconfVar, sysconf};
use warmhop::ids::AppName;

/// The end of an OpenMetrics text.
const END: &str = "# EOF\n";
/// The columns of fields in `/proc/PID/stat`, counted after the command's closing bracket: see
/// proc_pid_stat(5).
const GROUP: usize = 2;
const TICKS: std::ops::RangeInclusive<usize> = 11..=14;
const RESIDENT_PAGES: usize = 21;

/// The copies that run here.
static COPIES: Mutex<Copies> =
    Mutex::new(Copies { groups: BTreeMap::new(), ended: BTreeMap::new() });

struct Copies {
    /// By the id of its process group.
    groups: BTreeMap<i32, Run>,
    /// Ticks of the copies that have ended, by app.
    ended: BTreeMap<AppName, u64>,
}

struct Run {
    app: AppName,
    /// As of the last look. What a process used between that and its end is not counted.
    ticks: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Use {
    ticks: u64,
    pages: u64,
}

/// A copy of `app` has started, whose processes are in `group`.
pub(super) fn begins(app: &AppName, group: i32) {
    let mut copies = COPIES.lock().unwrap_or_else(PoisonError::into_inner);
    copies.groups.insert(group, Run { app: app.clone(), ticks: 0 });
}

/// All processes of `group` have ended.
pub(super) fn ends(group: i32) {
    let mut copies = COPIES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(copy) = copies.groups.remove(&group) {
        *copies.ended.entry(copy.app).or_default() += copy.ticks;
    }
}

/// `metrics`, an OpenMetrics text, with the apps' usage appended.
#[must_use]
pub(crate) fn with(metrics: String) -> String {
    let apps = COPIES.lock().unwrap_or_else(PoisonError::into_inner).look(Path::new("/proc"));
    let second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as f64;
    let mut text = metrics;
    if apps.is_empty() {
        return text;
    }
    let had_end = text.ends_with(END);
    if had_end {
        text.truncate(text.len() - END.len());
    }
    let mut family = |name: &str, kind: &str, unit: &str, help: &str, of: &dyn Fn(Use) -> f64| {
        let suffix = if kind == "counter" { "_total" } else { "" };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}\n# UNIT {name} {unit}");
        for (app, used) in &apps {
            let _ = writeln!(text, "{name}{suffix}{{app=\"{app}\"}} {}", of(*used));
        }
    };
    let cpu = "Processor time that the app's processes on this machine were seen to use";
    family("warmhop_app_cpu_seconds", "counter", "seconds", cpu, &|used| {
        used.ticks as f64 / second
    });
    let memory =
        "Memory of the app's processes that is in the machine's, what they share counted in each";
    family("warmhop_app_resident_memory_bytes", "gauge", "bytes", memory, &|used| {
        used.pages as f64 * page
    });
    if had_end {
        text.push_str(END);
    }
    text
}

impl Copies {
    fn look(&mut self, proc: &Path) -> BTreeMap<AppName, Use> {
        let mut groups: BTreeMap<i32, Use> = BTreeMap::new();
        if !self.groups.is_empty() {
            let entries = fs::read_dir(proc).into_iter().flatten().flatten();
            for (group, used) in entries.filter_map(|entry| stat(&entry.path())) {
                if self.groups.contains_key(&group) {
                    let all = groups.entry(group).or_default();
                    all.ticks += used.ticks;
                    all.pages += used.pages;
                }
            }
        }
        let ended = self.ended.iter().map(|(app, ticks)| (app.clone(), *ticks));
        let mut apps: BTreeMap<AppName, Use> =
            ended.map(|(app, ticks)| (app, Use { ticks, pages: 0 })).collect();
        for (group, copy) in &mut self.groups {
            let used = groups.get(group).copied().unwrap_or_default();
            // A process that ended without being waited for takes its time with it.
            copy.ticks = copy.ticks.max(used.ticks);
            let all = apps.entry(copy.app.clone()).or_default();
            all.ticks += copy.ticks;
            all.pages += used.pages;
        }
        apps
    }
}

/// The group of a process and its usage, with the time of the children that it waited for.
fn stat(process: &Path) -> Option<(i32, Use)> {
    process.file_name()?.to_str()?.parse::<u32>().ok()?;
    let text = fs::read_to_string(process.join("stat")).ok()?;
    // The command's name may contain brackets and spaces.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = TICKS.map(number).sum::<Option<u64>>()?;
    let group = fields.get(GROUP)?.parse().ok()?;
    Some((group, Use { ticks, pages: number(RESIDENT_PAGES)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> AppName {
        AppName::new(name).expect("a name")
    }

    fn process(proc: &Path, pid: u32, group: i32, ticks: u64, pages: u64) {
        let folder = proc.join(pid.to_string());
        fs::create_dir_all(&folder).expect("a folder can be made");
        let line = format!(
            "{pid} (a ) name) S 1 {group} {group} 0 -1 0 0 0 0 0 {ticks} 1 2 3 20 0 1 0 9 999 {pages} 0\n"
        );
        fs::write(folder.join("stat"), line).expect("a file can be written");
    }

    #[test]
    fn a_copy_is_all_processes_of_its_group_and_an_app_all_copies_that_it_had() {
        let proc = std::env::temp_dir().join(format!("warmhop-usage-{}", std::process::id()));
        let proc = proc.as_path();
        let mut copies = Copies { groups: BTreeMap::new(), ended: BTreeMap::new() };
        copies.groups.insert(7, Run { app: app("shop"), ticks: 0 });
        copies.groups.insert(9, Run { app: app("shop"), ticks: 0 });
        process(proc, 7, 7, 100, 10);
        process(proc, 8, 7, 50, 5);
        process(proc, 9, 9, 1, 1);
        process(proc, 10, 3, 1_000, 1_000);
        fs::create_dir(proc.join("net")).expect("a folder can be made");
        let used = copies.look(proc);
        assert_eq!(used[&app("shop")], Use { ticks: 106 + 56 + 7, pages: 16 });
        fs::remove_dir_all(proc.join("8")).expect("a folder can be removed");
        let used = copies.look(proc);
        assert_eq!(
            used[&app("shop")],
            Use { ticks: 106 + 56 + 7, pages: 11 },
            "time never shrinks"
        );
        let _ = fs::remove_dir_all(proc);
    }

    #[test]
    fn this_process_can_be_read() {
        let (group, used) = stat(&Path::new("/proc").join(std::process::id().to_string()))
            .expect("every process has its line");
        assert_eq!(group, nix::unistd::getpgrp().as_raw());
        assert!(used.pages > 0, "{used:?}");
    }
}
