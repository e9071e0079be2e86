//! Confines an app on the peer's machine: its user, and its limits.
//!
//! An app that runs as the peer's own user can read what the peer can, its keys included. So if the
//! peer is root, an app may have a user of its own: it then has only that user's groups, and no
//! process that it starts gets more (`no_new_privs`). The guard sets all of it on the way from
//! itself to the app, so that it can still end the app.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Group, Uid, User};

/// `[[app]] user`, `group` and `limits`, as configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Its user; absent: the peer's.
    pub user: Option<String>,
    /// Its group; absent: the user's own.
    pub group: Option<String>,
    /// How much memory it may take, in bytes of data of each process.
    pub memory: Option<u64>,
    /// How many files each process may have open.
    pub files: Option<u64>,
    /// How many processors it may run on.
    pub cpu: Option<u64>,
    /// Whether `memory` and `cpu` hold for all of its processes together, by a control group.
    pub cgroup: bool,
}

/// The settings that the guard gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confine {
    user: Option<u32>,
    group: Option<u32>,
    memory: Option<u64>,
    files: Option<u64>,
    /// The app itself cannot raise that again.
    files_fixed: bool,
    cpu: Option<u64>,
    cgroup: bool,
    /// Further variables of its environment for the user.
    pub(crate) env: Vec<(&'static str, String)>,
}

/// Why the app cannot be confined so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cannot {
    /// The key of the app's table that is at fault.
    pub key: &'static str,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: &'static str,
}

impl Wanted {
    /// Looks up the names on this machine. `files` is the limit of an app that has none of its own.
    ///
    /// # Errors
    /// If there is no such user or group, or this process may not start processes as it.
    pub fn here(&self, files: Option<u64>) -> Result<Confine, Cannot> {
        let mut confine = Confine {
            memory: self.memory,
            files: self.files.or(files),
            files_fixed: self.files.is_some(),
            cpu: self.cpu,
            cgroup: self.cgroup,
            ..Confine::default()
        };
        if let Some(name) = &self.user {
            let user = User::from_name(name).ok().flatten().ok_or_else(|| Cannot {
                key: "user",
                what: format!("there is no user {name} on this machine"),
                remedy: "create it, for example with `useradd --system`, or correct user",
            })?;
            confine.user = Some(user.uid.as_raw());
            confine.group = Some(user.gid.as_raw());
            let home = user.dir.to_string_lossy().into_owned();
            confine.env = vec![("USER", name.clone()), ("LOGNAME", name.clone()), ("HOME", home)];
        }
        if let Some(name) = &self.group {
            let group = Group::from_name(name).ok().flatten().ok_or_else(|| Cannot {
                key: "group",
                what: format!("there is no group {name} on this machine"),
                remedy: "create it, for example with `groupadd --system`, or correct group",
            })?;
            confine.group = Some(group.gid.as_raw());
        }
        let is_other = confine.user.is_some_and(|user| user != Uid::effective().as_raw())
            || (self.group.is_some() && !Uid::effective().is_root());
        if is_other && !Uid::effective().is_root() {
            return Err(Cannot {
                key: if self.user.is_some() { "user" } else { "group" },
                what: "the peer is not root, so it can start processes only as itself".into(),
                remedy: "start the peer as root, or run each app's peer as the app's user",
            });
        }
        Ok(confine)
    }
}

impl Confine {
    /// A confinement with which nothing starts.
    pub(crate) fn nobody() -> Self {
        Self { user: Some(u32::MAX), ..Self::default() }
    }

    /// As one argument of the guard.
    pub(crate) fn argument(&self) -> OsString {
        let part = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |it| it.to_string());
        let parts = [
            part(self.user.map(u64::from)),
            part(self.group.map(u64::from)),
            part(self.memory),
            part(self.files),
            part(self.cpu),
            part(self.cgroup.then_some(1)),
            part(self.files_fixed.then_some(1)),
        ];
        parts.join(",").into()
    }

    /// The inverse of [`Confine::argument`].
    pub(crate) fn from_argument(argument: &str) -> Option<Self> {
        let mut parts = argument.split(',').map(|part| match part {
            "-" => Some(None),
            number => number.parse::<u64>().ok().map(Some),
        });
        let mut next = || parts.next().flatten();
        let (user, group, memory, files, cpu) = (next()?, next()?, next()?, next()?, next()?);
        let (cgroup, files_fixed) = (next()?.is_some(), next()?.is_some());
        let id = |id: Option<u64>| id.map(u32::try_from).transpose().ok();
        let (user, group) = (id(user)?, id(group)?);
        Some(Self { user, group, memory, files, files_fixed, cpu, cgroup, env: Vec::new() })
    }

    /// Sets, in this process, the limits that its children inherit.
    ///
    /// # Errors
    /// What could not be set. The app must not start without it.
    pub(crate) fn limit(&self) -> Result<(), String> {
        if let Some(soft) = self.files
            && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        {
            // Many runtimes raise the soft limit to the hard one as they start.
            let soft = soft.min(hard);
            let hard = if self.files_fixed { soft } else { hard };
            // Best effort: an app with the peer's limit is better than none.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
        }
        #[cfg(target_os = "linux")]
        if self.cgroup {
            let limits = crate::host::cgroup::Limits { memory: self.memory, cpu: self.cpu };
            crate::host::cgroup::enter(std::process::id(), limits)?;
        } else if let Some(wanted) = self.cpu {
            run_on(wanted).map_err(|error| format!("cannot choose processors: {error}"))?;
        }
        #[cfg(target_os = "linux")]
        if self.user.is_some() {
            nix::sys::prctl::set_no_new_privs()
                .map_err(|error| format!("cannot set no_new_privs: {error}"))?;
        }
        Ok(())
    }

    /// Whether the memory of each of its processes is limited.
    pub(crate) fn limits_memory(&self) -> bool {
        self.memory.is_some() && !self.cgroup
    }

    /// Limits the memory of this process and of what it starts or becomes. The guard itself would not
    /// fit into a small limit, since its allocator reserves address space in advance, and it cannot
    /// limit a process that has another user already without a capability that containers take from
    /// root: so the process that becomes the app does it.
    ///
    /// # Errors
    /// Why it cannot be limited. The app must not run without it.
    pub(crate) fn limit_memory(&self) -> Result<(), String> {
        let Some(bytes) = self.memory else { return Ok(()) };
        setrlimit(Resource::RLIMIT_DATA, bytes, bytes)
            .map_err(|error| format!("cannot limit its memory: {error}"))
    }

    /// Makes `command` run as the user and the group. If the user changes, supplementary groups are
    /// dropped.
    pub(crate) fn become_user(&self, command: &mut Command) {
        if let Some(group) = self.group {
            command.gid(group);
        }
        if let Some(user) = self.user {
            command.uid(user);
        }
    }
}

/// Binds this process and those that it starts to `wanted` of its processors.
#[cfg(target_os = "linux")]
fn run_on(wanted: u64) -> nix::Result<()> {
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use nix::unistd::Pid;

    let itself = Pid::from_raw(0);
    let may = sched_getaffinity(itself)?;
    let cpus: Vec<usize> =
        (0..CpuSet::count()).filter(|cpu| may.is_set(*cpu).unwrap_or(false)).collect();
    let mut set = CpuSet::new();
    // Each guard starts at another processor, so that apps do not share one while others idle.
    let first = std::process::id() as usize % cpus.len().max(1);
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(cpus.len());
    for cpu in cpus.iter().cycle().skip(first).take(wanted) {
        set.set(*cpu)?;
    }
    sched_setaffinity(itself, &set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_gets_the_limits_as_arguments() {
        let some = Confine {
            user: Some(33),
            group: Some(34),
            memory: Some(1 << 40),
            files: Some(1024),
            files_fixed: true,
            cpu: Some(2),
            cgroup: true,
            env: Vec::new(),
        };
        for confine in [Confine::default(), some] {
            let argument = confine.argument().into_string().unwrap();
            assert_eq!(Confine::from_argument(&argument), Some(confine));
        }
        for wrong in
            ["", "1", "1,2,3,4,5,6", "-,-,-,-,-,-,x", "-1,-,-,-,-,-,-", "99999999999,-,-,-,-,-,-"]
        {
            assert_eq!(Confine::from_argument(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn who_is_not_there_is_named() {
        let nobody = Wanted { user: Some("no-such-user".into()), ..Wanted::default() };
        assert_eq!(nobody.here(None).unwrap_err().key, "user");
        let nothing = Wanted { group: Some("no-such-group".into()), ..Wanted::default() };
        assert_eq!(nothing.here(None).unwrap_err().key, "group");
        assert_eq!(Wanted::default().here(Some(7)).unwrap().files, Some(7));
    }
}
