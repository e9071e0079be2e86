//! The configuration file: TOML on the outside, [`Config`] inside.
//!
//! A file is read once into valid types; nothing further in checks a text again. Every problem of a
//! file is reported at once, each with its line, its key, what is wrong and what to do, because a
//! person who mends a file wants to start the peer once, not ten times. The file is therefore
//! walked as a tree with positions, key by key, rather than deserialized, which would stop at the
//! first mistake.
//!
//! Paths are relative to the folder of the file. `${NAME}` in a string is replaced by a variable of
//! the peer's environment, so that peers which differ only in their name and address share one
//! file; `$${` means `${` itself. Only the arguments of an app's `run` are left as they are, since
//! they are often for a shell.

pub mod keys;
mod memory;
mod print;
mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use warmhop::config::{SessionPolicy, StartMode};
use warmhop::identity::RefusedPeers;
use warmhop::ids::PeerId;

pub use crate::child::launch::{Alive, Inherit, Protocol, Ready};
use crate::host::confine::Wanted;
use crate::redis::Events;
use warmhop::{AppSpec, ClientLimits, TrustedProxies};

/// A valid configuration with every default filled in.
#[derive(Debug, Clone)]
pub struct Config {
    /// Only peers of the same cluster and authority talk.
    pub cluster: String,
    /// `[peer]`.
    pub peer: Peer,
    /// `[http]`.
    pub http: Http,
    /// `[mesh]`.
    pub mesh: Mesh,
    /// `[admin]`.
    pub admin: Admin,
    /// `[session]`.
    pub session: Session,
    /// `[log]`.
    pub log: Log,
    /// `[run]`.
    pub run: Run,
    /// `[[app]]`, in the order of the file.
    pub apps: Vec<App>,
    /// Variables of the environment that the file names: their values are for the keys that use
    /// them, not for every app.
    pub substituted: BTreeSet<String>,
    /// The place of each key in the file, for problems that show only when the peer starts.
    places: Places,
}

/// `[peer]`: who this peer is.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Unique in the cluster; also the affinity route.
    pub name: PeerId,
    /// Peers in the same zone are preferred.
    pub zone: Option<String>,
}

/// `[http]`: the front doors.
#[derive(Debug, Clone)]
pub struct Http {
    /// The addresses of the front doors. Empty: this peer has none.
    pub listen: Vec<SocketAddr>,
    /// Certificate and key of the front doors; absent: plain HTTP.
    pub tls: Option<Tls>,
    /// Whether responses name the peer and the request.
    pub reveal: bool,
    /// The page for browsers whose request cannot be served; absent: the mesh's own.
    pub error_page: Option<PathBuf>,
    /// What clients may take of the peer.
    pub limits: ClientLimits,
    /// The proxies whose information about clients is trusted.
    pub trusted_proxies: TrustedProxies,
    /// Whether connections begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// How long requests and streams in flight may take to end once the peer drains.
    pub drain_grace: Duration,
}

/// `[http] tls`: PEM files.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// `[mesh]`: how this peer meets the others.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// The one UDP port for gossip, hops and sessions.
    pub listen: SocketAddr,
    /// The address at which the others reach it; absent: `listen`.
    pub advertise: Option<SocketAddr>,
    /// `HOST:PORT` of peers to join.
    pub seeds: Vec<String>,
    /// The folder of `ca.pem`, `cert.pem` and `key.pem`.
    pub identity: PathBuf,
    /// Members that the peer refuses.
    pub refuse: RefusedPeers,
    /// The files of the cookie keys: cookies are made with the first key, and accepted under any.
    /// None: `cookie.key` beside the identity, or a block of its `key.pem`.
    pub cookie_key: Vec<PathBuf>,
}

/// `[admin]`: the admin listener.
#[derive(Clone)]
pub struct Admin {
    /// Where it listens; only on loopback unless there is a token.
    pub listen: SocketAddr,
    /// The token that a client has to send.
    pub token: Option<String>,
}

impl fmt::Debug for Admin {
    /// The token is kept out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "(hidden)");
        f.debug_struct("Admin").field("listen", &self.listen).field("token", &token).finish()
    }
}

/// `[session]`: how sessions are kept.
#[derive(Debug, Clone)]
pub struct Session {
    /// The policy that the mesh applies.
    pub policy: SessionPolicy,
    /// Where the Redis-speaking endpoint listens, if it is enabled.
    pub redis: Option<SocketAddr>,
    /// Which changes of keys that endpoint publishes.
    pub redis_events: Events,
}

/// `[log]`: what is logged of requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// Where each request of a client is logged; absent: nowhere.
    pub access: Option<AccessTo>,
    /// The form of its lines; absent: that of the log around them on standard error, text elsewhere.
    pub access_format: Option<AccessFormat>,
    /// Whether queries are logged, which may hold secrets.
    pub access_query: bool,
    /// What else is logged, in the form of `RUST_LOG`; absent: the events of the peer and its apps.
    pub level: Option<String>,
}

/// Where the access log is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessTo {
    /// Standard error, among the other lines of the log.
    Stderr,
    /// A file, to which lines are appended.
    File(PathBuf),
}

/// The form of the access log's lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessFormat {
    /// For people, like balancers' logs.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `[run]`: which resources the peer uses of its machine.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// The threads that serve clients; absent: one for each core that it may use.
    pub threads: Option<NonZeroUsize>,
}

/// One `[[app]]`.
#[derive(Debug, Clone)]
pub struct App {
    /// Its name, its requests and its policy.
    pub spec: AppSpec,
    /// Program and arguments; empty if the app never starts here.
    pub run: Vec<String>,
    /// The folder that it runs in.
    pub dir: PathBuf,
    /// What it inherits of the peer's environment.
    pub inherit_env: Inherit,
    /// A file of variables that are added to those.
    pub env_file: Option<PathBuf>,
    /// Variables that are added to both.
    pub env: BTreeMap<String, String>,
    /// How the peer detects that it is ready.
    pub ready: Ready,
    /// How the peer detects that it is alive.
    pub alive: Alive,
    /// The protocol between the peer and it.
    pub protocol: Protocol,
    /// Its user and its limits.
    pub wanted: Wanted,
}

impl Config {
    /// Reads and validates `file`. Warnings are about settings that are legal but will not work
    /// yet.
    ///
    /// # Errors
    /// Every problem of the file, in its order.
    pub fn load(file: &Path) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        let problem = |what: String, remedy: &str| {
            vec![Problem {
                file: file.to_path_buf(),
                place: None,
                key: String::new(),
                what,
                remedy: remedy.into(),
                is_warning: false,
            }]
        };
        // A device or a mistaken path must not fill the memory.
        match std::fs::metadata(file) {
            Ok(meta) if meta.len() > FILE_BYTES_MAX => {
                return Err(problem(
                    format!("the file has {} bytes; at most {FILE_BYTES_MAX} are read", meta.len()),
                    "name a TOML configuration file",
                ));
            }
            Ok(_) | Err(_) => {}
        }
        let text = std::fs::read_to_string(file).map_err(|error| {
            problem(
                format!("cannot read the file: {error}"),
                "name a readable TOML file, such as warmhop.toml",
            )
        })?;
        Self::parse(file, &text)
    }

    /// Validates `text` as if it were in `file`, whose folder relative paths start from.
    ///
    /// # Errors
    /// Every problem of the text, in its order.
    pub fn parse(file: &Path, text: &str) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        Self::parse_in(file, text, &|name| std::env::var(name).ok())
    }

    /// As [`Config::parse`], with `variable` as the environment.
    ///
    /// # Errors
    /// As there.
    pub fn parse_in(
        file: &Path,
        text: &str,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        read::parse(file, text, variable)
    }

    /// The same as it may be shown: what `warmhop check` prints and `warmhop debug` packs is kept and
    /// passed on. It has the names of apps' variables and not their values. The words of a command are
    /// shown: no variable is replaced in them, and every user of the machine sees them as it runs.
    #[must_use]
    pub fn without_secrets(&self) -> Self {
        let mut shown = self.clone();
        for value in shown.apps.iter_mut().flat_map(|app| app.env.values_mut()) {
            *value = "(not shown)".into();
        }
        shown
    }

    /// Warnings about files of keys, and of the admin token, that every user of this machine may
    /// read, apps among them.
    pub fn exposed_keys(&self) -> impl Iterator<Item = Problem> {
        let tls = self.http.tls.iter().map(|tls| ("http.tls", tls.key.clone()));
        let own = ("mesh.identity", self.mesh.identity.join("key.pem"));
        let beside = ("mesh.identity", self.mesh.identity.join("cookie.key"));
        let cookies = self.mesh.cookie_key.iter().map(|file| ("mesh.cookie_key", file.clone()));
        let itself = Some(("admin.token", self.places.file.clone())).filter(|(_, file)| {
            // A pipe can be read only once; and a token from the environment is not in the file.
            if !std::fs::metadata(file).is_ok_and(|meta| meta.is_file()) {
                return false;
            }
            let text = std::fs::read_to_string(file).unwrap_or_default();
            self.admin.token.as_ref().is_some_and(|token| text.contains(token.as_str()))
        });
        let keys = tls.chain([own, beside]).chain(cookies).chain(itself);
        let exposed = keys.filter(|(_, file)| {
            std::fs::metadata(file).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
        });
        exposed.map(|(key, file)| {
            let what = format!("every user of this machine may read {}", file.display());
            let remedy = format!("chmod 600 {}", file.display());
            Problem { is_warning: true, ..self.problem(key, what, remedy) }
        })
    }

    /// The file that it was read from.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.places.file
    }

    /// Warnings about apps that run as root because the peer does.
    pub fn apps_as_root(&self) -> impl Iterator<Item = Problem> {
        let is_root = nix::unistd::Uid::effective().is_root();
        let apps = self.apps.iter().filter(move |app| {
            is_root && app.spec.policy.start != StartMode::Never && app.wanted.user.is_none()
        });
        apps.map(|app| {
            let what = "the app runs as root, like its peer, and can read the mesh's keys";
            let remedy = "give it a user of its own: user = \"NAME\"";
            let problem = self.problem(&format!("app.{}", app.spec.name), what, remedy);
            Problem { key: format!("app.{}.user", app.spec.name), is_warning: true, ..problem }
        })
    }

    /// A problem with `key` that showed only when the peer started.
    #[must_use]
    pub fn problem(
        &self,
        key: &str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Problem {
        Problem {
            file: self.places.file.clone(),
            place: self.places.by_key.get(key).copied(),
            key: key.into(),
            what: what.into(),
            remedy: remedy.into(),
            is_warning: false,
        }
    }
}

/// The most bytes that a configuration file may have.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The file and, for each key in it, its line and column.
#[derive(Debug, Clone)]
struct Places {
    file: PathBuf,
    by_key: BTreeMap<String, Place>,
}

/// A line and a column, both from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// Something wrong with a configuration: where, what, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The configuration file.
    pub file: PathBuf,
    /// The place in the file; absent for a key that is not there.
    pub place: Option<Place>,
    /// The key, such as `mesh.listen`; empty for the file as a whole.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do; empty if `what` says it.
    pub remedy: String,
    /// Whether the configuration is valid all the same.
    pub is_warning: bool,
}

impl fmt::Display for Problem {
    /// `FILE:LINE:COLUMN: KEY: WHAT; REMEDY`, the form that editors jump to.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(place) = self.place {
            write!(f, ":{}:{}", place.line, place.column)?;
        }
        if self.is_warning {
            f.write_str(": warning")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.what)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

impl std::error::Error for Problem {}

/// A cluster's name, if `text` is one.
///
/// # Errors
/// What is expected.
pub fn cluster_name(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 64 of the characters A-Z a-z 0-9 _ -".into())
    }
}

/// The units of a duration, largest first, in milliseconds.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A span of time, as configurations have it, if `text` is one.
///
/// # Errors
/// What is expected.
pub fn span(text: &str) -> Result<Duration, String> {
    duration_from(text).ok_or_else(|| "expected a span of time, such as 30s or 5m".into())
}

/// Reads `250ms`, `30s`, `10m`, `1h` or `2d`: a whole number and one unit. Sums such as `1h30m` are
/// not supported, so that each span has one spelling.
fn duration_from(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*millis).map(Duration::from_millis)
}

/// The inverse of [`duration_from`], in the largest unit that is exact.
fn duration_text(span: Duration) -> String {
    let total = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let (unit, millis) = UNITS
        .into_iter()
        .find(|(_, millis)| total >= *millis && total.is_multiple_of(*millis))
        .unwrap_or(("ms", 1));
    format!("{}{unit}", total / millis)
}

#[cfg(test)]
mod tests;
