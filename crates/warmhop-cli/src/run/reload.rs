//! Reads the configuration of a running peer again: checks all of it, then applies it. A wrong file
//! changes nothing.
//!
//! Apps, how sessions are kept, the admin token, seeds, the members that are refused and the log's
//! filter change while the peer serves. Everything else, such as its ports, is fixed when the peer
//! starts: changes to it are listed, and need a restart.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tracing::{info, warn};
use warmhop::admin::Token;
use warmhop::config::{EffectsMode, SessionMode, StartMode};
use warmhop::identity::RefusedPeers;
use warmhop::{AppChanges, AppSpec, Mesh};

use crate::child::ChildApp;
use crate::config::{App, Config};
use crate::failure::Failure;
use crate::host::confine::Confine;
use crate::host::guard;
use crate::host::log::Level;
use crate::redis;
use crate::run::preflight::checked;

/// What a peer's apps get from the peer.
#[derive(Debug, Clone)]
pub struct Given {
    /// The limit of open files; absent: the peer's own.
    pub open_files: Option<u64>,
    /// Where the Redis-speaking endpoint listens, if there is one.
    pub redis: Option<SocketAddr>,
}

/// What a reload did.
#[derive(Debug, Default, Serialize)]
pub struct Reloaded {
    /// Always `reload`.
    pub action: &'static str,
    /// Apps that are new here.
    pub added: Vec<String>,
    /// Apps that this peer no longer has.
    pub removed: Vec<String>,
    /// Apps whose treatment has changed; their copies are kept.
    pub changed: Vec<String>,
    /// Apps whose copies are replaced, each once the new one is ready.
    pub replaced: Vec<String>,
    /// Other keys whose values apply from now on.
    pub applied: Vec<String>,
    /// Keys whose new values need a restart of the peer.
    pub needs_restart: Vec<String>,
    /// Settings that are legal but will not work yet.
    pub warnings: Vec<String>,
}

/// Reloads a peer's configuration.
pub struct Reloader {
    mesh: Mesh,
    file: PathBuf,
    token: Token,
    level: Level,
    given: Given,
    /// The configuration in effect, except for changes that need a restart.
    current: Mutex<Config>,
}

impl Reloader {
    /// For the peer that runs with `config`, from `file`.
    #[must_use]
    pub fn new(
        mesh: Mesh,
        file: &Path,
        config: &Config,
        token: Token,
        level: Level,
        given: Given,
    ) -> Arc<Self> {
        let (file, current) = (file.to_path_buf(), Mutex::new(config.clone()));
        Arc::new(Self { mesh, file, token, level, given, current })
    }

    /// The configuration in effect, without secrets.
    #[must_use]
    pub fn configuration(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).without_secrets().to_string()
    }

    /// Reads the file, and applies it.
    ///
    /// # Errors
    /// Everything that is wrong with it; nothing was changed.
    pub fn reload(&self) -> Result<Reloaded, Failure> {
        let reloaded = self.try_reload();
        match &reloaded {
            Ok(reloaded) => {
                // A field without a name in it is left out.
                let named = |names: &[String]| Some(names.join(" ")).filter(|it| !it.is_empty());
                info!(
                    added = named(&reloaded.added),
                    removed = named(&reloaded.removed),
                    changed = named(&reloaded.changed),
                    replaced = named(&reloaded.replaced),
                    applied = named(&reloaded.applied),
                    needs_restart = named(&reloaded.needs_restart),
                    "reloaded the configuration"
                );
                for warning in &reloaded.warnings {
                    warn!("{warning}");
                }
            }
            Err(failure) => {
                for message in &failure.messages {
                    warn!("the configuration was not reloaded, and nothing was changed: {message}");
                }
            }
        }
        reloaded
    }

    fn try_reload(&self) -> Result<Reloaded, Failure> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (config, warnings) = checked(&self.file)?;
        // The endpoint learns the lifetime of its keys only when it starts.
        let lasting_ttl = current.session.redis.is_some();
        let (applied, needs_restart) = (differing(&current, &config).into_iter())
            .partition(|key| is_of_sessions(key) && !(lasting_ttl && key == "session.ttl"));
        let mut reloaded = Reloaded {
            action: "reload",
            applied,
            needs_restart,
            warnings: warnings.iter().map(ToString::to_string).collect(),
            ..Reloaded::default()
        };
        let changes = self.changes(&current, &config, &mut reloaded);
        self.mesh.change_apps(changes).map_err(|error| {
            Failure::usage(config.problem(
                "app",
                error.to_string(),
                "correct the file and reload it",
            ))
        })?;
        let same_door = current.admin.listen == config.admin.listen;
        if same_door {
            if current.admin.token != config.admin.token {
                reloaded.applied.push("admin.token".into());
            }
            self.token.set(config.admin.token.as_deref());
        } else if current.admin.token != config.admin.token {
            // The existing listener may need its token.
            reloaded.needs_restart.push("admin.token".into());
        }
        if current.mesh.refuse != config.mesh.refuse {
            let names: Vec<String> = config.mesh.refuse.texts().collect();
            let refused = if names.is_empty() { "nobody".into() } else { names.join(" ") };
            info!(%refused, "[mesh] refuse was read again");
            reloaded.applied.push("mesh.refuse".into());
            self.mesh.refuse(config.mesh.refuse.clone());
        }
        if current.mesh.seeds != config.mesh.seeds {
            reloaded.applied.push("mesh.seeds".into());
            self.mesh.change_seeds(&config.mesh.seeds);
        }
        if reloaded.applied.iter().any(|key| is_of_sessions(key)) {
            let mut policy = config.session.policy.clone();
            policy.cookie = current.session.policy.cookie.clone();
            if lasting_ttl {
                policy.ttl = current.session.policy.ttl;
            }
            self.mesh.change_sessions(policy.clone());
            current.session.policy = policy;
        }
        if current.log.level != config.log.level {
            let changes = self.level.set(config.log.level.as_deref());
            // RUST_LOG overrides it, and continues to.
            let reloaded =
                if changes { &mut reloaded.applied } else { &mut reloaded.needs_restart };
            reloaded.push("log.level".into());
            if changes {
                current.log.level = config.log.level;
            }
        }
        current.mesh.refuse = config.mesh.refuse;
        current.mesh.seeds = config.mesh.seeds;
        current.apps = config.apps;
        current.substituted = config.substituted;
        if same_door {
            current.admin.token = config.admin.token;
        }
        Ok(reloaded)
    }

    fn changes(&self, before: &Config, after: &Config, reloaded: &mut Reloaded) -> AppChanges {
        let mut changes = AppChanges::new();
        for app in &before.apps {
            if !after.apps.iter().any(|other| other.spec.name == app.spec.name) {
                reloaded.removed.push(app.spec.name.to_string());
                changes = changes.remove(app.spec.name.clone());
            }
        }
        for app in &after.apps {
            let name = app.spec.name.to_string();
            let (spec, child) = app_of(after, app, &self.given);
            let Some(old) = before.apps.iter().find(|old| old.spec.name == app.spec.name) else {
                reloaded.added.push(name);
                changes = changes.add(spec, child);
                continue;
            };
            let (old_spec, old_child) = app_of(before, old, &self.given);
            changes = if is_another(&old_spec, &old_child, &spec, &child) {
                reloaded.replaced.push(name);
                changes.replace(spec, child)
            } else if old_child != child {
                reloaded.changed.push(name);
                changes.change_starts(spec, child)
            } else if old_spec != spec {
                reloaded.changed.push(name);
                changes.change(spec)
            } else {
                changes
            };
        }
        changes
    }
}

/// Whether the new configuration needs another copy than the old one. The probes for being ready or
/// alive do not matter for that.
fn is_another(old_spec: &AppSpec, old: &ChildApp, new_spec: &AppSpec, new: &ChildApp) -> bool {
    let asked_alike = ChildApp {
        ready: new.ready.clone(),
        alive: new.alive.clone(),
        hidden: new.hidden.clone(),
        ..old.clone()
    };
    old_spec.version != new_spec.version || asked_alike != *new
}

/// One app in the mesh's form.
#[must_use]
pub fn app_of(config: &Config, app: &App, given: &Given) -> (AppSpec, ChildApp) {
    let mut spec = app.spec.clone();
    // Writes by single commands are not undone when the app's peer dies.
    if given.redis.is_some() && spec.policy.effects == EffectsMode::Anything {
        spec.policy.effects = EffectsMode::ByCommand;
    }
    spec.digest = digest(app);
    let child = ChildApp {
        run: app.run.clone(),
        dir: app.dir.clone(),
        inherit: app.inherit_env.clone(),
        env_file: app.env_file.clone(),
        env: app.env.clone(),
        ready: app.ready.clone(),
        alive: app.alive.clone(),
        redis: given.redis.map(redis::url),
        protocol: app.protocol,
        carried: app.spec.policy.session == SessionMode::Portable,
        guard: guard::executable(),
        // Whether the user and limits exist was checked before; without them the app does not
        // start.
        confine: app.wanted.here(given.open_files).unwrap_or_else(|_| Confine::nobody()),
        hidden: config.substituted.iter().cloned().collect(),
    };
    (spec, child)
}

/// A digest of the app's configuration, which peers compare. Settings that may well differ from one
/// machine to the next are left out: folders, the environment, when a copy starts.
fn digest(app: &App) -> u64 {
    let (spec, policy) = (&app.spec, &app.spec.policy);
    if policy.start == StartMode::Never {
        return 0;
    }
    let what = format!(
        "{:?}",
        (
            (&spec.matches, spec.strip_prefix, &spec.version, &app.run, app.protocol),
            (
                policy.session,
                &policy.session_by,
                policy.effects,
                policy.keep_ready,
                (policy.concurrency, policy.concurrency_per_address)
            ),
            (policy.max_wait, policy.head_timeout, policy.stop_when_idle, &app.ready.path),
        )
    );
    let hash = ring::digest::digest(&ring::digest::SHA256, what.as_bytes());
    let bytes = hash.as_ref().first_chunk::<8>().copied().unwrap_or_default();
    u64::from_be_bytes(bytes).max(1)
}

/// Whether the key is about how sessions are kept, which may change while the peer serves.
fn is_of_sessions(key: &str) -> bool {
    let name = key.strip_prefix("session.").unwrap_or_default();
    ["copies", "ttl", "memory", "without_majority", "state_bytes_max", "stored_response_bytes_max"]
        .contains(&name)
}

/// The keys whose values differ, among those of [`settings`]: `http.listen`.
fn differing(before: &Config, after: &Config) -> Vec<String> {
    let (before, after) = (settings(before), settings(after));
    let tables: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut keys = Vec::new();
    for name in tables {
        match (before.get(name), after.get(name)) {
            (Some(toml::Value::Table(old)), Some(toml::Value::Table(new))) => {
                let inner: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
                let differ = inner.into_iter().filter(|key| old.get(*key) != new.get(*key));
                keys.extend(differ.map(|key| format!("{name}.{key}")));
            }
            (old, new) if old != new => keys.push(name.clone()),
            _ => {}
        }
    }
    keys
}

/// All settings except those that change while the peer serves, with every default filled in.
fn settings(config: &Config) -> toml::Table {
    let mut bare = config.clone();
    bare.apps.clear();
    bare.admin.token = None;
    bare.log.level = None;
    bare.mesh.refuse = RefusedPeers::default();
    bare.mesh.seeds.clear();
    // The printed form can be read back.
    bare.to_string().parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let text = format!("[peer]\nname = 'p'\n{text}");
        Config::parse(Path::new("/nowhere/warmhop.toml"), &text).unwrap().0
    }

    fn app(keys: &str) -> Config {
        config(&format!("[[app]]\nname = 'shop'\nrun = ['sh']\nready = {{ path = '/' }}\n{keys}"))
    }

    fn is_replaced(before: &Config, after: &Config) -> bool {
        let given = Given { open_files: None, redis: None };
        let (old_spec, old) = app_of(before, &before.apps[0], &given);
        let (new_spec, new) = app_of(after, &after.apps[0], &given);
        is_another(&old_spec, &old, &new_spec, &new)
    }

    #[test]
    fn a_copy_is_replaced_where_another_one_would_be_started_and_left_alone_where_not() {
        let before = app("");
        for keys in [
            "version = '2'",
            "env = { A = '1' }",
            "dir = '/tmp'",
            "protocol = 'h2'",
            "session = 'portable'",
        ] {
            assert!(is_replaced(&before, &app(keys)), "{keys}");
        }
        for keys in [
            "max_wait = '3s'",
            "keep_ready = 1",
            "match = { path = '/a' }",
            "strip_prefix = true",
            "alive = { path = '/' }",
            "head_timeout = '3s'",
        ] {
            assert!(!is_replaced(&before, &app(keys)), "{keys}");
        }
    }

    #[test]
    fn peers_mean_the_same_by_an_app_that_differs_in_its_machine_alone() {
        let of = |keys: &str| digest(&app(keys).apps[0]);
        for keys in ["env = { A = '1' }", "dir = '/tmp'", "start = 'at-boot'"] {
            assert_eq!(of(""), of(keys), "{keys}");
        }
        for keys in
            ["version = '2'", "session = 'pinned'", "match = { path = '/a' }", "concurrency = 3"]
        {
            assert_ne!(of(""), of(keys), "{keys}");
        }
        assert_eq!(of("start = 'never'"), 0);
    }

    #[test]
    fn other_changed_settings_are_named_by_their_keys() {
        let before = config("");
        let after = config(
            "zone = 'b'\n[http]\nlisten = ['127.0.0.1:1']\n[session]\nttl = '1h'\n[admin]\n\
             token = '0123456789abcdef'\n[mesh]\nseeds = ['127.0.0.1:7002']\n[[app]]\nname = 'shop'\nrun = ['sh']\n",
        );
        assert_eq!(differing(&before, &after), ["http.listen", "peer.zone", "session.ttl"]);
        assert!(differing(&before, &before).is_empty());
        let of_sessions: Vec<&str> =
            ["http.listen", "session.ttl", "session.copies", "session.redis", "session.cookie"]
                .into_iter()
                .filter(|key| is_of_sessions(key))
                .collect();
        assert_eq!(of_sessions, ["session.ttl", "session.copies"]);
    }
}
