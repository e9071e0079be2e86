//! Limits an app by a control group of its own (cgroup v2): they hold for all of its processes
//! together.
//!
//! ```text
//! the peer's group, which its service manager delegated to it
//! ├─ warmhop-peer   the peer, and the guards of apps without a group of their own
//! └─ app-PID        one copy of an app, with its guard
//! ```
//!
//! A group that shares its controllers among others may have no processes itself, so the peer moves
//! to one of them first. A guard makes its copy's group, and removes those of copies that are gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The group that the peer moves to.
const PEER: &str = "warmhop-peer";
/// What the names of apps' groups begin with.
const APP: &str = "app-";
/// The period of `cpu.max`, in microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;

/// What may help.
const REMEDY: &str = "the peer's service manager has to delegate its control group with memory and \
    cpu (systemd: Delegate=yes, without ProtectControlGroups); or remove limits.cgroup";

/// What a group may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of memory.
    pub(crate) memory: Option<u64>,
    /// Processors.
    pub(crate) cpu: Option<u64>,
}

/// Prepares the group of this process, the peer, for groups of apps below it.
///
/// # Errors
/// Why it cannot, and what may help.
pub(crate) fn prepare() -> Result<(), String> {
    prepare_in(&own()?)
}

fn prepare_in(own: &Path) -> Result<(), String> {
    if own.ends_with(PEER) {
        return Ok(());
    }
    let peer = own.join(PEER);
    let moved = make(&peer).and_then(|()| write(&peer.join("cgroup.procs"), "0"));
    moved.and_then(|()| write(&own.join("cgroup.subtree_control"), "+memory +cpu")).inspect_err(
        |_| {
            // As it was before: best effort, since the start of such an app says what is wrong.
            let _ = write(&own.join("cgroup.procs"), "0");
            let _ = fs::remove_dir(&peer);
        },
    )
}

/// Moves this process, the guard with this number, to a group of its own with these limits.
///
/// # Errors
/// Why it cannot, and what may help. The app must not start without it.
pub(crate) fn enter(guard: u32, limits: Limits) -> Result<(), String> {
    enter_below(&own()?, guard, limits)
}

fn enter_below(peer: &Path, guard: u32, limits: Limits) -> Result<(), String> {
    let Some(own) = peer.parent().filter(|_| peer.ends_with(PEER)) else {
        let when = "as it is when a peer starts with such an app in its configuration";
        return Err(format!("its peer's control group is not divided, {when}: {REMEDY}"));
    };
    remove_empty(own);
    let group = own.join(format!("{APP}{guard}"));
    make(&group)?;
    if let Some(bytes) = limits.memory {
        write(&group.join("memory.max"), &bytes.to_string())?;
    }
    if let Some(cpu) = limits.cpu {
        write(&group.join("cpu.max"), &format!("{} {PERIOD_US}", cpu * PERIOD_US))?;
    }
    write(&group.join("cgroup.procs"), "0")
}

/// Removes the groups of copies that are gone. The kernel keeps those that have processes.
fn remove_empty(own: &Path) {
    let Ok(groups) = fs::read_dir(own) else { return };
    for group in groups.flatten() {
        if group.file_name().to_string_lossy().starts_with(APP) {
            let _ = fs::remove_dir(group.path());
        }
    }
}

/// The folder of this process's group.
fn own() -> Result<PathBuf, String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| cannot(path.as_ref(), &error));
    own_of(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?)
        .ok_or_else(|| "this system has no control groups of version 2 here".into())
}

/// The same, of what the kernel says of this process's groups and mounts.
fn own_of(groups: &str, mounts: &str) -> Option<PathBuf> {
    let group = Path::new(groups.lines().find_map(|line| line.strip_prefix("0::"))?);
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    // A group outside of what is mounted cannot be reached.
    Some(Path::new(point).join(group.strip_prefix(root).ok()?))
}

fn make(group: &Path) -> Result<(), String> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(cannot(group, &error)),
        _ => Ok(()),
    }
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|error| cannot(file, &error))
}

fn cannot(path: &Path, error: &io::Error) -> String {
    format!("no control group, {}: {error}; {REMEDY}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_wherever_it_is_mounted() {
        let mounts = "24 1 0:21 / /proc rw - proc proc rw\n\
                      31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        let own = own_of("0::/system.slice/warmhop.service\n", mounts).unwrap();
        assert_eq!(own, Path::new("/sys/fs/cgroup/system.slice/warmhop.service"));
        let both = "4:memory:/x\n0::/\n";
        let unified = "31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(own_of(both, unified).unwrap(), Path::new("/sys/fs/cgroup/unified"));
        let part = "31 24 0:27 /docker/a /sys/fs/cgroup ro - cgroup2 cgroup ro\n";
        assert_eq!(own_of("0::/docker/a/b\n", part).unwrap(), Path::new("/sys/fs/cgroup/b"));
        assert_eq!(own_of("0::/docker\n", part), None);
        assert_eq!(own_of("4:memory:/x\n", mounts), None, "version 1 alone");
    }

    #[test]
    fn a_copy_gets_a_group_with_its_limits_below_its_peers() {
        let own = std::env::temp_dir().join(format!("warmhop-cgroup-{}", std::process::id()));
        fs::create_dir_all(own.join("app-1")).unwrap();
        fs::create_dir_all(own.join("other")).unwrap();
        let limits = Limits { memory: Some(64 << 20), cpu: Some(2) };
        let error = enter_below(&own, 7, limits).unwrap_err();
        assert!(error.contains("not divided") && error.contains("Delegate=yes"), "{error}");

        prepare_in(&own).unwrap();
        let peer = own.join(PEER);
        prepare_in(&peer).unwrap();
        let read = |file: &str| fs::read_to_string(own.join(file)).unwrap();
        assert_eq!(read("cgroup.subtree_control"), "+memory +cpu");
        assert_eq!(read("warmhop-peer/cgroup.procs"), "0");

        enter_below(&peer, 7, limits).unwrap();
        assert_eq!(read("app-7/memory.max"), "67108864");
        assert_eq!(read("app-7/cpu.max"), "200000 100000");
        assert_eq!(read("app-7/cgroup.procs"), "0");
        assert!(!own.join("app-1").exists(), "its copy is gone");
        assert!(own.join("other").exists());
        fs::remove_dir_all(&own).unwrap();
        let error = enter_below(&peer, 8, limits).unwrap_err();
        assert!(error.contains("app-8") && error.contains("limits.cgroup"), "{error}");
    }
}
