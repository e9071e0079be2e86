//! Chaos: load and faults on a mesh of real processes, and a judge that knows only their records.
//!
//! | module | owns |
//! | --- | --- |
//! | [`run`] | one run from its beginning to its end |
//! | [`faults`] | the faults, and when each is made |
//! | [`judge`] | what the clients' histories prove |
//! | [`linear`] | what the histories of keys prove |
//! | [`history`] | the records of a run |
//! | [`load`] | the clients of apps |
//! | [`keys`] | the clients of the Redis-speaking endpoint |
//! | [`leases`] | the clients of locks with a lease and of limiters |
//! | [`idle`] | sessions that no client asks for |
//! | [`relay`] | the network between the peers, which can be broken |
//! | [`report`] | the page that shows a run to people |
//! | [`waits`] | how long clients waited, and for which fault |

pub mod ailing;
pub mod faults;
pub mod history;
pub mod idle;
pub mod judge;
pub mod keys;
pub mod leases;
pub mod linear;
pub mod load;
pub mod relay;
pub mod report;
pub mod run;
pub mod waits;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::interrupted;
use crate::terminal::Terminal;
use crate::workspace;
use faults::Kind;

/// One of the apps that the clients use: the same program, declared in two ways.
#[derive(Debug)]
pub struct LedgerApp {
    /// Its name.
    pub name: &'static str,
    /// The host by which it is asked for.
    pub host: &'static str,
    /// What its `effects` are declared to be.
    pub effects: &'static str,
}

/// Half of the clients use the one, half the other. Where an app changes nothing but its session,
/// the mesh itself may run an unanswered request again, key or not, and must still apply it once.
pub const APPS: [LedgerApp; 2] = [
    LedgerApp { name: "ledger", host: "ledger.localhost", effects: "anything" },
    LedgerApp { name: "session-only", host: "session-only.localhost", effects: "session-only" },
];

/// Runs of at least this length also make the faults that take long, unless `--faults` selects some.
const LONG_FROM: Duration = Duration::from_secs(150);

/// How many sessions are begun and left alone.
const IDLE_SESSIONS: u32 = 40;

/// What `--help` says of a run's outcome.
pub const MORE_HELP: &str = "\
What it leaves, under target/testbed-chaos:
  report.html    the verdict, waits and errors over time, every fault; opens from disk
  history.json   what the clients saw and what was done, which the verdict is made from
  peer-N/log     what each peer said
A run that fails is kept under target/testbed-chaos-failed/seed-SEED, whatever runs after it.

Exit status: 0 if every promise was kept; 1 if one was broken, the mesh did not become whole again
within a minute after a fault, or the run was interrupted. Errors do not break a promise where a
fault explains them: a client that is refused, or learns that the outcome is unknown, gets a true answer.
Nor do sessions that are reported lost after two holders were lost at once.

Examples:
  testbed/chaos                                           five peers, a minute, every short fault
  testbed/chaos --for 10m --clients 48
  testbed/chaos --peers 3 --faults kill,pause --seed 7    the same schedule each time
  TESTBED_PROFILE=release testbed/chaos                   optimised peers; these have no failpoints";

/// Reads a span of time such as `90s` or `10m`.
///
/// # Errors
/// If it is none.
pub fn span(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| !c.is_ascii_digit()).len());
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("`{text}` is no span of time; write 90s, 10m or 1h")),
    };
    let count: u64 =
        number.parse().map_err(|_| format!("`{text}` does not begin with a number"))?;
    Ok(Duration::from_secs(count.saturating_mul(seconds)))
}

/// `testbed/chaos`: a run, its verdict on one screen, and the files that tell more.
///
/// # Errors
/// If a promise was broken, the mesh did not become whole again, or it was interrupted. Nothing
/// it started is left behind.
pub async fn command(
    peers: u16,
    length: Duration,
    faults: Vec<Kind>,
    seed: Option<u64>,
    clients: u32,
    report: Option<PathBuf>,
) -> Result<()> {
    let terminal = Terminal::new();
    let folder = workspace().join("target/testbed-chaos");
    let debug = cfg!(debug_assertions);
    if faults.contains(&Kind::Failpoint) && !debug {
        bail!("only debug builds have failpoints; leave TESTBED_PROFILE unset");
    }
    let usual = Kind::ALL.into_iter().filter(|kind| {
        (debug || *kind != Kind::Failpoint) && (length >= LONG_FROM || !kind.is_long())
    });
    let kinds = if faults.is_empty() { usual.collect() } else { faults };
    let seed = seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    terminal.line(format!(
        "{peers} peers, {clients} clients, {length:?} of {}; seed {seed}",
        names.join(", ")
    ));
    let idle = IDLE_SESSIONS;
    let options =
        run::Options { peers, length, kinds, clients, idle, seed, folder: folder.clone() };
    let history = tokio::select! {
        history = run::run(&options) => history.inspect_err(|_| keep(&folder, seed)),
        () = interrupted() => bail!("interrupted; the peers have been stopped"),
    }?;
    let path = folder.join("history.json");
    std::fs::write(&path, serde_json::to_vec(&history)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let verdict = judge::judge(&history);
    let report = report.unwrap_or_else(|| folder.join("report.html"));
    std::fs::write(&report, report::page(&history, &verdict))
        .with_context(|| format!("cannot write {}", report.display()))?;
    std::fs::write(folder.join("verdict.txt"), verdict.to_string())?;
    terminal.line(&verdict);
    terminal.line(format!("\nreport:  {}\nhistory: {}", report.display(), path.display()));
    if !verdict.holds() {
        keep(&folder, seed);
        bail!("a promise was broken; the peers' logs are under {}", folder.display());
    }
    terminal.line(terminal.green("Every promise was kept."));
    Ok(())
}

/// Keeps what a run that failed has left, beside what the next one will leave.
fn keep(folder: &Path, seed: u64) {
    let kept = folder.with_file_name("testbed-chaos-failed").join(format!("seed-{seed}"));
    let copied = (|| {
        std::fs::create_dir_all(&kept)?;
        for entry in std::fs::read_dir(folder)? {
            let from = entry?.path();
            let (Some(name), log) = (from.file_name(), from.join("log")) else { continue };
            if from.is_file() {
                std::fs::copy(&from, kept.join(name))?;
            } else if log.is_file() {
                std::fs::copy(&log, kept.join(name).with_extension("log"))?;
            }
        }
        std::io::Result::Ok(())
    })();
    let terminal = Terminal::new();
    match copied {
        Ok(()) => terminal.line(format!("kept:    {}", kept.display())),
        Err(error) => terminal.line(format!("the run's files were not kept: {error}")),
    }
}
