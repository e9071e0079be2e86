//! `testbed`: meshes of real peers on this machine, from the command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use nix::sys::signal::Signal;
use warmhop_testbed::chaos::{self, faults::Kind};
use warmhop_testbed::{
    bench, bench_burst, bench_idle, bench_instructions, bench_messages, bench_proxies,
    bench_streams, commands, costs, demo, ports, terminal::Terminal,
};

/// Launches, breaks and shows meshes of real peers on this machine.
#[derive(Debug, Parser)]
#[command(name = "testbed", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a mesh of N peers and wait until each sees every other.
    Up {
        /// How many peers.
        #[arg(value_parser = clap::value_parser!(u16).range(1..=i64::from(ports::PEERS_MAX)))]
        n: u16,
        /// A file of `[[app]]` tables to serve (repeatable). Without it: the bookshop.
        #[arg(long, value_name = "FILE")]
        app: Vec<PathBuf>,
        /// Use the ports P+1…, P+201…, P+301…, P+401… instead of 8081…, 7001…, 9001…, 6401….
        #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1024..=65_035))]
        base_port: Option<u16>,
    },
    /// Stop what `up` started.
    Down,
    /// Send one peer a signal.
    Kill {
        /// The peer's name, such as peer-2.
        name: String,
        /// Which signal, such as KILL, TERM, STOP or CONT.
        #[arg(long, default_value = "KILL", value_parser = commands::signal)]
        signal: Signal,
    },
    /// Start a killed peer again.
    Start {
        /// The peer's name, such as peer-2.
        name: String,
    },
    /// A guided tour of the main job, on a mesh of its own.
    Demo,
    /// All figures of speed: what a request costs beside HAProxy and nginx, a stream by a hop, an idle
    /// peer, and the instructions of a request. `testbed/bench` installs and builds what that takes.
    Bench {
        #[command(flatten)]
        wanted: bench_proxies::Wanted,
        /// How much a stream moves, in bytes.
        #[arg(long, default_value_t = 1 << 30, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
        bytes: u64,
        /// For how long idle peers are watched, in seconds.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=600))]
        idle: u32,
    },
    /// How soon sessions are served again whose owner is killed; `testbed/bench-failover` builds
    /// optimised peers.
    BenchFailover {
        /// How many sessions the peer owns that is killed.
        #[arg(long, default_value_t = 10_000)]
        sessions: usize,
    },
    /// What a hop costs a stream; `testbed/bench-streams` builds optimised peers.
    BenchStreams {
        /// How much is moved, in bytes.
        #[arg(long, default_value_t = 1 << 30, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
        bytes: u64,
    },
    /// How long a message takes to another peer, and what idle subscriptions cost;
    /// `testbed/bench-messages` builds optimised peers.
    BenchMessages,
    /// What a burst meets at a peer that has yet to start the app; `testbed/bench-burst` builds
    /// optimised peers.
    BenchBurst,
    /// What a request costs beside HAProxy and nginx; `testbed/bench-proxies` installs them and
    /// builds optimised peers.
    BenchProxies(bench_proxies::Wanted),
    /// What a request allocates at the peers that it passes; fails where that is more than is
    /// written down. Peers of debug builds alone count it.
    Costs,
    /// Load and faults on a mesh of its own, and a judgement of what the clients saw.
    ///
    /// Starts real peers on this machine whose network passes through a relay, has clients append
    /// to lists that are kept as sessions and nowhere else, breaks something, mends it, waits until
    /// the mesh is whole, and breaks the next thing until the time is up. A judge that knows only
    /// what the clients saw then says whether a change that was acknowledged was lost or applied
    /// twice, a read was stale, or a session has two histories.
    #[command(after_long_help = chaos::MORE_HELP)]
    Chaos {
        /// How many peers, from 3 to 15. With 3, no peer can take the place of one that leaves, so
        /// the failpoints in a change of members are left out.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(3..=15))]
        peers: u16,
        /// For how long faults are made, such as 90s or 10m.
        #[arg(long = "for", value_name = "T", default_value = "1m", value_parser = chaos::span)]
        length: Duration,
        /// Which faults, separated by commas. Without it: all.
        #[arg(long, value_delimiter = ',', value_enum)]
        faults: Vec<Kind>,
        /// Repeats the schedule of an earlier run: which faults, on whom, how long, and what
        /// clients ask for. Which requests meet which fault depends on the machine.
        #[arg(long)]
        seed: Option<u64>,
        /// How many clients. Each works on one session at a time; every second one uses an app that
        /// is declared `session-only`, which the mesh itself may ask again.
        #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=1000))]
        clients: u32,
        /// Where the report goes. Without it: report.html in the run's folder.
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
    },
}

/// All figures of speed, one after the other.
async fn speed(wanted: &bench_proxies::Wanted, bytes: u64, idle: u32) -> anyhow::Result<()> {
    bench_proxies::proxies(wanted, true).await?;
    bench_streams::streams(bytes).await?;
    bench_idle::idle(idle).await?;
    bench_instructions::instructions().await
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Up { n, app, base_port } => commands::up(n.into(), &app, base_port).await,
        Command::Down => commands::down().await,
        Command::Kill { name, signal } => commands::kill(&name, signal).await,
        Command::Start { name } => commands::start(&name).await,
        Command::Demo => demo::run().await,
        Command::Bench { wanted, bytes, idle } => speed(&wanted, bytes, idle).await,
        Command::BenchFailover { sessions } => bench::failover(sessions).await,
        Command::BenchStreams { bytes } => bench_streams::streams(bytes).await,
        Command::BenchMessages => bench_messages::messages().await,
        Command::BenchBurst => bench_burst::burst().await,
        Command::BenchProxies(wanted) => bench_proxies::proxies(&wanted, false).await,
        Command::Costs => costs::costs().await,
        Command::Chaos { peers, length, faults, seed, clients, report } => {
            chaos::command(peers, length, faults, seed, clients, report).await
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            Terminal::new().erase();
            eprintln!("testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
