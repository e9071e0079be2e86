//! The arguments of the binary's commands.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use warmhop::ids::{PeerId, SessionKey};
use warmhop_cli::config;
use warmhop_cli::host::log;
use warmhop_cli::lb::{Affinity, Balancer};
use warmhop_cli::operate::client::{Admin, AdminUrl};
use warmhop_cli::setup::{dev, init};

/// Run and operate the peers of a mesh, in which a peer where an app is ready answers for those where
/// it has not started.
#[derive(Debug, Parser)]
#[command(name = "warmhop", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Those of the process; it ends here where they are wrong, or ask for help.
    pub(crate) fn of_process() -> Self {
        Self::parse_from(without_flags_of_help(std::env::args_os()))
    }
}

/// clap's command `help` takes each argument for the name of a command, its own `--help` as well: what
/// that asks for is given anyway.
fn without_flags_of_help(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let (mut at, mut arguments) = (Some(Cli::command()), Vec::new());
    let mut is_help = false;
    for (place, argument) in given.enumerate() {
        if is_help && (argument == "--help" || argument == "-h") {
            continue;
        }
        if let (1.., Some(command)) = (place, &at) {
            is_help = argument == "help" && command.has_subcommands();
            at = command.find_subcommand(&argument).filter(|_| !is_help).cloned();
        }
        arguments.push(argument);
    }
    arguments
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one peer in the foreground; SIGTERM or Ctrl-C drains it, a second one ends it at once.
    Run {
        /// The peer's configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The form of the log on standard error; RUST_LOG says what is logged.
        #[arg(long, value_enum, default_value_t = log::Format::Text)]
        log: log::Format,
    },
    /// Run a few peers on this machine with one app behind them, until Ctrl-C. It needs no
    /// configuration file: the identities are made for this run.
    Dev {
        /// How many peers.
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(dev::PEERS_MAX)))]
        peers: u16,
        /// The port of the first peer's front door; the other peers have the next ones. 0: any free ports.
        #[arg(long, value_name = "P", default_value_t = 8080)]
        port: u16,
        /// Where the app's sessions are kept: in its own memory, by the mesh (the app's environment
        /// then has REDIS_URL), or nowhere.
        #[arg(long, value_name = "MODE", default_value = "pinned", value_parser = ["pinned", "portable", "none"])]
        session: String,
        /// The path that answers once the app is ready; without it, it is ready once it listens.
        #[arg(long, value_name = "PATH")]
        ready: Option<String>,
        /// The app's command, which serves HTTP on 127.0.0.1:$PORT. A single argument with spaces in
        /// it is run by the shell.
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Write a commented configuration and an identity for each of a few peers.
    Init {
        /// How many peers.
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(init::PEERS_MAX)))]
        peers: u16,
        /// The folder to write them into.
        dir: PathBuf,
    },
    /// Validate a configuration and the certificates that it names, and print it with every
    /// default filled in.
    Check {
        /// The configuration.
        #[arg(required_unless_present = "schema")]
        file: Option<PathBuf>,
        /// Print the JSON schema of configurations instead, for editors.
        #[arg(long, conflicts_with = "file")]
        schema: bool,
    },
    /// Make a cluster's authority; issue, show or renew a peer's identity.
    #[command(subcommand)]
    Cert(Cert),
    /// Show peers, apps, readiness and sessions, as one peer knows them.
    Status {
        #[command(flatten)]
        ask: Ask,
        /// Show it and the newest decisions again every second, until Ctrl-C; with --json one line
        /// each time.
        #[arg(long)]
        watch: bool,
    },
    /// Start, stop, restart or pause an app on one peer.
    #[command(subcommand)]
    App(App),
    /// Have a peer read its configuration again.
    ///
    /// Changes that it can make while it serves are applied, and the others are listed. A file with a
    /// mistake changes nothing, and the exit status is 2.
    Reload {
        #[command(flatten)]
        ask: Ask,
    },
    /// Take one peer out of traffic and hand off its sessions to the others.
    Drain {
        /// Return once it is drained: its sessions have other owners, and its apps serve nothing.
        #[arg(long)]
        wait: bool,
        /// How long to wait at most, such as 30s or 5m; exit status 1 if it is not drained by then.
        /// The peer goes on draining in any case.
        #[arg(long, value_name = "T", value_parser = config::span, requires = "wait")]
        timeout: Option<Duration>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Let a peer that was drained take traffic again.
    Undrain {
        #[command(flatten)]
        ask: Ask,
    },
    /// Show the peers of the mesh: who is there, since when, and where.
    Members {
        /// Declare that this silent peer is gone for good, so that the peer that is asked goes on
        /// without it. Repeat the command at each peer that is left, and use it only for a peer that is
        /// stopped: if it still runs behind a cut link, both sides go on, and one of them loses changes
        /// that it answered.
        #[arg(long, value_name = "NAME", value_parser = |text: &str| PeerId::new(text).map_err(|error| error.to_string()))]
        gone: Option<PeerId>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Show what an app printed, and its starts and ends.
    Logs {
        /// The app.
        app: String,
        /// Follow: print new lines as they come, until Ctrl-C.
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        lines: Lines,
    },
    /// Follow a peer's log, without what its apps print, until Ctrl-C.
    Monitor {
        /// Only lines of this level or a more severe one: error, warn, info, debug, trace. Lines
        /// that the peer's own RUST_LOG leaves out are not available.
        #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = ["error", "warn", "info", "debug", "trace"])]
        level: String,
        #[command(flatten)]
        lines: Lines,
    },
    /// Write one archive for a bug report: status, configuration without secrets, metrics,
    /// newest requests and log.
    Debug {
        /// The archive; by default warmhop-debug-PEER.tar.gz in this folder.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        listener: Listener,
    },
    /// Show who owns a session and who holds its copies; never what is in it.
    Session {
        /// APP/SID, as `warmhop why` shows it.
        #[arg(value_parser = |text: &str| text.parse::<SessionKey>().map_err(|error| error.to_string()))]
        key: SessionKey,
        #[command(flatten)]
        ask: Ask,
    },
    /// Show what one peer knew and decided for a request.
    Why {
        /// The request's id, from the response's Warmhop-Request-Id.
        request_id: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Print a load balancer's configuration for the mesh as it is, affinity included.
    Lb {
        /// Which one.
        #[arg(value_enum)]
        balancer: Balancer,
        /// Whose cookie it follows.
        #[arg(long, value_enum, default_value = "mesh")]
        affinity: Affinity,
        /// Where it listens for clients.
        #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:80")]
        listen: std::net::SocketAddr,
        #[command(flatten)]
        listener: Listener,
    },
    /// Write a manual page for the program and each of its commands, for packages.
    #[command(hide = true)]
    Man {
        /// The folder to write them into.
        dir: PathBuf,
    },
    /// Print a shell's completions for this program.
    Completions {
        /// Which shell.
        #[arg(value_enum)]
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cert {
    /// Make the authority of a cluster.
    Ca {
        /// The folder to write ca.pem and ca-key.pem into.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// The cluster's name.
        #[arg(long, value_name = "NAME", default_value = "warmhop", value_parser = config::cluster_name)]
        cluster: String,
        /// Replace keys that are there already.
        #[arg(long)]
        force: bool,
    },
    /// Issue the identity of one peer.
    Peer {
        /// The peer's name: 1 to 32 of A-Z a-z 0-9 _ -
        #[arg(value_parser = |text: &str| PeerId::new(text).map_err(|error| error.to_string()))]
        name: PeerId,
        /// The folder of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// The folder to write ca.pem, cert.pem and key.pem into.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Replace keys that are there already.
        #[arg(long)]
        force: bool,
        /// For how many days it is valid.
        #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
    /// Show whose certificates are in a folder and until when they are valid; exit status 1 if a
    /// peer could not run with them.
    Show {
        /// The folder of an identity or an authority.
        dir: PathBuf,
    },
    /// Issue a peer's identity again, with a new key; a running peer loads it by itself.
    Renew {
        /// The identity's folder.
        dir: PathBuf,
        /// The folder of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// For how many days it is valid.
        #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum App {
    /// Start the app on the peer that is asked.
    Start {
        /// Its name.
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Stop the app on the peer that is asked, once its requests have ended.
    Stop {
        /// Its name.
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Start a new copy beside the one that serves, and switch over once it is ready.
    ///
    /// If the new copy does not become ready, the old one keeps serving, and the exit status is 1.
    Restart {
        /// Its name.
        name: String,
        /// Restart it on one peer after the other, as long as the new copies become ready.
        #[arg(long)]
        mesh: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// Stop the app on the peer that is asked, and keep it from starting until it is resumed.
    Pause {
        /// Its name.
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Let an app that was paused start again.
    Resume {
        /// Its name.
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
}

/// Which peer to ask.
#[derive(Debug, Args)]
pub(crate) struct Listener {
    /// The peer's admin listener; https:// if a proxy in front of it ends TLS.
    #[arg(
        long,
        value_name = "URL",
        env = "WARMHOP_ADMIN",
        default_value = "http://127.0.0.1:9001"
    )]
    pub(crate) admin: AdminUrl,
    /// The token of `[admin] token`, if the peer has one.
    #[arg(long, value_name = "TOKEN", env = "WARMHOP_ADMIN_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// The authorities of an https:// listener's certificate, in PEM, instead of those that this
    /// system trusts.
    #[arg(long, value_name = "FILE", env = "WARMHOP_ADMIN_CA_FILE")]
    pub(crate) ca_file: Option<PathBuf>,
}

impl Listener {
    pub(crate) fn connect(self) -> Admin {
        Admin::new(self.admin, self.token.filter(|token| !token.is_empty())).ca_file(self.ca_file)
    }
}

/// Whose lines to show, and how many.
#[derive(Debug, Args)]
pub(crate) struct Lines {
    /// The peer whose lines to show; the peer at --admin forwards the question.
    #[arg(long, value_name = "NAME")]
    pub(crate) peer: Option<PeerId>,
    /// How many earlier lines to show first.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    pub(crate) lines: usize,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Which peer to ask, and how to show the answer.
#[derive(Debug, Args)]
pub(crate) struct Ask {
    #[command(flatten)]
    pub(crate) listener: Listener,
    /// Print the peer's answer as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
