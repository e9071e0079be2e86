//! What a request costs a peer, beside HAProxy and nginx in front of the same app, and how long one alone
//! takes.
//!
//! All servers are bound to the first core and the client to the second, and the contenders take turns.
//! The figure is the CPU time of each for a request, which the kernel counts by thread: it is steadier
//! than any rate. A sample in which other processes used the cores is discarded.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::time::sleep;

use crate::client::Client;
use crate::mesh::until;
use crate::ports::{PeerPorts, Reservation};
use crate::terminal::Terminal;

const BOUND: Duration = Duration::from_secs(30);
const BODY_BYTES: usize = 1024;
/// A large body, and how many connections ask for one at once.
const BULK_BYTES: usize = 1024 * 1024;
const BULK_CONNECTIONS: u32 = 16;
/// A sample in which other processes used more of a core than this is discarded.
const OTHERS_MAX: f64 = 0.1;
/// How often a sample is repeated before the machine counts as busy.
const TRIES: usize = 5;
/// The kernel's unit of time in `/proc/stat`: 100 a second on every Linux that matters.
const TICKS: f64 = 100.0;

/// What is to be measured.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    /// Another binary of warmhop to measure beside this one, such as an older one.
    #[arg(long, value_name = "FILE")]
    old: Option<PathBuf>,
    /// How often each contender has its turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each turn takes, in seconds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// How many connections ask at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Take samples on a busy machine too: their ratios are still worth something.
    #[arg(long)]
    pub(crate) busy: bool,
}

/// What is asked for, and how the answer is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// 1 KiB on many connections: the CPU of a request.
    Small,
    /// 1 KiB on one connection: how long half of the requests take at most.
    Alone,
    /// 1 MiB on some connections: the CPU of a request.
    Bulk,
}

impl Load {
    const ALL: [Self; 3] = [Self::Small, Self::Alone, Self::Bulk];

    fn connections(self, wanted: &Wanted) -> u32 {
        match self {
            Self::Small => wanted.connections,
            Self::Alone => 1,
            Self::Bulk => BULK_CONNECTIONS,
        }
    }

    fn title(self, wanted: &Wanted) -> (String, &'static str) {
        let connections = self.connections(wanted);
        match self {
            Self::Small => (format!("1 KiB at {connections} connections"), "us CPU"),
            Self::Alone => ("1 KiB at one connection".to_owned(), "us p50"),
            Self::Bulk => (format!("1 MiB at {connections} connections"), "us CPU"),
        }
    }
}

/// A process that ends with its value, and its children with it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        // A group of its own; what has ended already needs no signal.
        let _ = nix::sys::signal::killpg(pid, nix::sys::signal::Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(300));
        let _ = nix::sys::signal::killpg(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// One way to the app.
struct Contender {
    name: String,
    addr: SocketAddr,
    path: &'static str,
    cookie: Option<String>,
    /// Whose CPU counts.
    pids: Vec<u32>,
    /// The loads beside the first that it is measured under.
    also: &'static [Load],
    /// The samples of each load.
    samples: [Vec<f64>; Load::ALL.len()],
}

impl Contender {
    fn new(name: String, addr: SocketAddr, path: &'static str, pids: &[u32]) -> Self {
        let (also, samples) = (&[][..], Default::default());
        Self { name, addr, path, cookie: None, pids: pids.to_vec(), also, samples }
    }

    fn also(self, also: &'static [Load]) -> Self {
        Self { also, ..self }
    }

    fn is_under(&self, load: Load) -> bool {
        load == Load::Small || self.also.contains(&load)
    }

    fn samples(&self, load: Load) -> &Vec<f64> {
        &self.samples[load as usize]
    }
}

/// Where everything is.
struct Bed {
    folder: PathBuf,
    tools: PathBuf,
    processes: Vec<Process>,
}

impl Bed {
    fn new() -> Result<Self> {
        let target = crate::programs()?;
        let target = target.parent().context("programs are below a target folder")?;
        let folder = target.join("testbed-bench-proxies");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("bulk"), "x".repeat(BULK_BYTES))?;
        let tools = target.join("ecosystem/proxies/debian");
        for tool in ["usr/sbin/haproxy", "usr/sbin/nginx", "usr/bin/wrk"] {
            let missing =
                "is not there: `testbed/install proxies` says why it could not be installed";
            ensure!(tools.join(tool).is_file(), "{} {missing}", tools.join(tool).display());
        }
        Ok(Self { folder, tools, processes: Vec::new() })
    }

    fn tool(&self, name: &str) -> PathBuf {
        self.tools.join("usr").join(name)
    }

    /// Runs a program on the first core.
    fn run(&mut self, program: &Path, args: &[&str], own_libraries: bool) -> Result<u32> {
        use std::os::unix::process::CommandExt;
        let log = std::fs::File::create(self.folder.join(format!("log-{}", self.processes.len())))?;
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]).arg(program).args(args).current_dir(&self.folder);
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if own_libraries {
            command.env("LD_LIBRARY_PATH", self.tools.join("usr/lib/x86_64-linux-gnu"));
        }
        let child = command.spawn().context("cannot run taskset (util-linux)")?;
        let pid = child.id();
        self.processes.push(Process(child));
        Ok(pid)
    }

    fn nginx(&mut self, name: &str, serves: &str) -> Result<u32> {
        let file = self.folder.join(format!("{name}.conf"));
        std::fs::write(&file, nginx_conf(name, serves))?;
        let (folder, file) = (text(&self.folder)?, text(&file)?);
        let nginx = self.tool("sbin/nginx");
        self.run(
            &nginx,
            &["-p", &folder, "-c", &file, "-g", "daemon off; master_process off;"],
            true,
        )
    }
}

/// Measures and prints the tables: with `whole`, also what peers that embed the mesh take, what one
/// request alone takes, and what large bodies do.
///
/// # Errors
/// If a tool is missing, a contender does not answer, or the machine is too busy.
pub async fn proxies(wanted: &Wanted, whole: bool) -> Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    ensure!(cores >= 2, "one core serves and another asks, but this machine has {cores}");
    let terminal = Terminal::new();
    let mut bed = Bed::new()?;
    let reserved = Reservation::new()?;
    let mut contenders = rivals(&mut bed, &reserved.peer(0), &reserved.peer(1))?;
    let mut binaries = vec![("warmhop", crate::program("warmhop")?)];
    binaries.extend(wanted.old.clone().map(|old| ("old", old)));
    let mut next = 2..;
    let mut pair = || [0, 1].map(|_| reserved.peer(next.next().unwrap_or_default()));
    for (name, binary) in binaries {
        contenders.extend(peers(&mut bed, name, &binary, pair())?);
    }
    if whole {
        for runtime in ["work-stealing", "current-thread"] {
            contenders.extend(from_memory(&mut bed, runtime, pair())?);
        }
    }
    for contender in &mut contenders {
        let (addr, path) = (contender.addr, contender.path);
        let answer = until(&format!("{} answers", contender.name), BOUND, async || {
            Client::new().get(addr, path).await.ok()?.ok().ok()
        })
        .await?;
        let cookie = answer.header("set-cookie").and_then(|cookie| cookie.split(';').next());
        contender.cookie = cookie.map(str::to_owned);
    }
    let loads = if whole { &Load::ALL[..] } else { &Load::ALL[..1] };
    for round in 0..wanted.rounds {
        for load in loads {
            for contender in contenders.iter_mut().filter(|it| it.is_under(*load)) {
                let (at, of) = (round + 1, wanted.rounds);
                terminal.passing(format!("round {at} of {of}: {}", contender.name));
                let sample = sample(&bed, contender, *load, wanted).await?;
                contender.samples[*load as usize].push(sample);
            }
        }
    }
    for load in loads {
        print(&terminal, &contenders, *load, wanted);
    }
    Ok(())
}

/// Prints the table of one load: each contender beside the first.
fn print(terminal: &Terminal, contenders: &[Contender], load: Load, wanted: &Wanted) {
    let first = contenders[0].samples(load);
    let (title, unit) = load.title(wanted);
    terminal.line(format!("{title:<36} {unit:>8} {:>8}", "ratio"));
    for contender in contenders.iter().filter(|it| it.is_under(load)) {
        let samples = contender.samples(load);
        let ratios = samples.iter().zip(first).map(|(it, first)| it / first).collect();
        terminal.line(format!(
            "{:<36} {:>8.1} {:>8.2}",
            contender.name,
            median(samples.clone()),
            median(ratios)
        ));
    }
    terminal.line("");
}

pub(crate) fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn nginx_conf(name: &str, serves: &str) -> String {
    format!(
        "error_log stderr; pid {name}.pid; events {{ worker_connections 4096; }} http {{ \
         access_log off; keepalive_requests 100000000; client_body_temp_path tmp; \
         proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp; \
         {serves} }}"
    )
}

/// Answers a body of 1 KiB, and one of 1 MiB where the path ends in that file's name.
fn app(folder: &str, listen: &str) -> String {
    let body = "x".repeat(BODY_BYTES);
    format!(
        "server {{ listen {listen} backlog=4096; default_type text/plain; \
         location / {{ return 200 \"{body}\"; }} \
         location ~ /bulk$ {{ root {folder}; rewrite ^ /bulk break; }} }}"
    )
}

fn rivals(bed: &mut Bed, app_at: &PeerPorts, doors: &PeerPorts) -> Result<Vec<Contender>> {
    let (app_at, haproxy_at, nginx_at) = (app_at.http, doors.http, doors.admin);
    bed.nginx("app", &app(&text(&bed.folder)?, &app_at.to_string()))?;
    let config = bed.folder.join("haproxy.cfg");
    std::fs::write(
        &config,
        format!(
            "global\n nbthread 1\n maxconn 4096\ndefaults\n mode http\n option forwardfor\n \
             timeout connect 5s\n timeout client 60s\n timeout server 60s\nfrontend front\n \
             bind {haproxy_at}\n default_backend back\nbackend back\n server app {app_at}\n"
        ),
    )?;
    let (haproxy, config) = (bed.tool("sbin/haproxy"), text(&config)?);
    let haproxy = bed.run(&haproxy, &["-db", "-f", &config], true)?;
    let nginx = bed.nginx(
        "proxy",
        &format!(
            "upstream app {{ server {app_at}; keepalive 256; keepalive_requests 100000000; }} \
             server {{ listen {nginx_at}; location / {{ proxy_pass http://app; \
             proxy_http_version 1.1; proxy_set_header Connection \"\"; \
             proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header Host $host; }} }}"
        ),
    )?;
    let contender = |name: &str, addr, pid| Contender::new(name.into(), addr, "/", &[pid]);
    Ok(vec![
        contender("HAProxy", haproxy_at, haproxy).also(&[Load::Alone, Load::Bulk]),
        contender("nginx", nginx_at, nginx).also(&[Load::Alone, Load::Bulk]),
    ])
}

/// Two peers of one binary, the app as a child process of the first.
fn peers(
    bed: &mut Bed,
    name: &str,
    binary: &Path,
    ports: [PeerPorts; 2],
) -> Result<Vec<Contender>> {
    let folder = bed.folder.join(name);
    std::fs::create_dir_all(&folder)?;
    let (here, ca) = (text(&folder)?, text(&folder.join("ca"))?);
    cert(binary, &["ca", "--cluster", "bench", "--out", &ca])?;
    // nginx gets its port from a file, which the app's command makes from a template.
    std::fs::write(
        folder.join("app.conf"),
        nginx_conf("PORT", &app(&text(&bed.folder)?, "127.0.0.1:PORT")),
    )?;
    let start = format!(
        "sed s/PORT/$PORT/g {here}/app.conf > {here}/$PORT.conf; unset LD_PRELOAD; \
         LD_LIBRARY_PATH={} exec {} -p {} -c {here}/$PORT.conf -g 'daemon off; master_process off;'",
        text(&bed.tools.join("usr/lib/x86_64-linux-gnu"))?,
        text(&bed.tool("sbin/nginx"))?,
        text(&bed.folder)?,
    );
    let start = toml::Value::from(start);
    let mut pids = Vec::new();
    for (at, own) in ports.iter().enumerate() {
        let peer = format!("peer-{}", at + 1);
        let certs = text(&folder.join(&peer))?;
        cert(binary, &["peer", &peer, "--ca", &ca, "--out", &certs])?;
        let mut config = format!(
            "cluster = 'bench'\n[peer]\nname = '{peer}'\n[http]\nlisten = ['{}']\n[mesh]\nlisten = \
             '{}'\nseeds = ['{}']\nidentity = '{certs}'\n[admin]\nlisten = '{}'\n",
            own.http, own.mesh, ports[0].mesh, own.admin
        );
        let when = if at == 0 { "at-boot" } else { "never" };
        for session in ["none", "portable"] {
            config.push_str(&format!(
                "[[app]]\nname = '{session}'\nmatch = {{ path = '/{session}' }}\n\
                 run = ['sh', '-c', {start}]\ndir = '{here}'\nready = {{ path = '/' }}\n\
                 start = '{when}'\nsession = '{session}'\n"
            ));
        }
        let file = folder.join(format!("{peer}.toml"));
        std::fs::write(&file, config)?;
        pids.push(bed.run(binary, &["run", "--config", &text(&file)?], false)?);
    }
    let contender = |way: &str, addr, path, pids: &[u32]| {
        Contender::new(format!("{name}: {way}"), addr, path, pids)
    };
    Ok(vec![
        contender("served here", ports[0].http, "/none", &pids[..1])
            .also(&[Load::Alone, Load::Bulk]),
        contender("portable, served here", ports[0].http, "/portable", &pids[..1]),
        contender("through a hop, both", ports[1].http, "/none", &pids)
            .also(&[Load::Alone, Load::Bulk]),
    ])
}

/// Two peers that embed the mesh on such a runtime: the first answers from memory, the second by a hop.
fn from_memory(
    bed: &mut Bed,
    runtime: &'static str,
    ports: [PeerPorts; 2],
) -> Result<Vec<Contender>> {
    let (warmhop, memory) = (crate::program("warmhop")?, crate::program("memory")?);
    let folder = bed.folder.join(runtime);
    std::fs::create_dir_all(&folder)?;
    let ca = text(&folder.join("ca"))?;
    cert(&warmhop, &["ca", "--cluster", "bench", "--out", &ca])?;
    let mut pids = Vec::new();
    let seed = ports[0].mesh.to_string();
    for (own, (name, starts)) in ports.iter().zip([("peer-1", "ready"), ("peer-2", "never")]) {
        let certs = text(&folder.join(name))?;
        cert(&warmhop, &["peer", name, "--ca", &ca, "--out", &certs])?;
        let (http, mesh) = (own.http.to_string(), own.mesh.to_string());
        pids.push(bed.run(&memory, &[&certs, &http, &mesh, &seed, starts, runtime], false)?);
    }
    let contender = |way: &str, addr, pids: &[u32]| {
        Contender::new(format!("from memory {way}, {runtime}"), addr, "/", pids)
    };
    Ok(vec![
        contender("here", ports[0].http, &pids[..1]),
        contender("by a hop", ports[1].http, &pids),
    ])
}

fn cert(binary: &Path, args: &[&str]) -> Result<()> {
    let made = Command::new(binary).arg("cert").args(args).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned())
}

/// The CPU of a request in microseconds, or how many half of them take at most.
async fn sample(bed: &Bed, contender: &Contender, load: Load, wanted: &Wanted) -> Result<f64> {
    let mut others = 0.0;
    for _ in 0..TRIES {
        // A peer that has just been asked by the one before has something to tidy up.
        sleep(Duration::from_millis(50)).await;
        ensure!(TcpStream::connect(contender.addr).is_ok(), "{} has ended", contender.name);
        let (all, own) = (machine_seconds()?, seconds_of(std::process::id())?);
        let everybody = bed.seconds()?;
        let before = seconds(&contender.pids)?;
        let Loaded { requests, p50, load_seconds } = bed.load(contender, load, wanted).await?;
        let used = seconds(&contender.pids)? - before;
        let known =
            bed.seconds()? - everybody + load_seconds + (seconds_of(std::process::id())? - own);
        others = (machine_seconds()? - all - known).max(0.0) / f64::from(wanted.seconds);
        if wanted.busy || others <= OTHERS_MAX {
            return Ok(if load == Load::Alone { p50 } else { used * 1e6 / requests });
        }
    }
    bail!(
        "others use {others:.2} of a core on this machine, {TRIES} times in a row: its figures \
         would say nothing. Stop them, or take --busy, with which only the ratios count"
    )
}

/// What asking came to.
struct Loaded {
    requests: f64,
    /// In microseconds.
    p50: f64,
    /// The CPU of the client.
    load_seconds: f64,
}

/// The microseconds of the line `50%  117.00us` of wrk.
fn half_within(said: &str) -> Option<f64> {
    let text = said.lines().find_map(|line| line.trim().strip_prefix("50%"))?.trim();
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let factor = match &text[at..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(text[..at].parse::<f64>().ok()? * factor)
}

impl Bed {
    /// Asks for the length of a turn.
    async fn load(&self, contender: &Contender, load: Load, wanted: &Wanted) -> Result<Loaded> {
        let before = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
        let mut command = tokio::process::Command::new("taskset");
        command
            .args(["-c", "1"])
            .arg(self.tool("bin/wrk"))
            .args(["-t1", "--latency"])
            .arg(format!("-c{}", load.connections(wanted)))
            .arg(format!("-d{}s", wanted.seconds))
            .env("LD_LIBRARY_PATH", self.tools.join("usr/lib/x86_64-linux-gnu"));
        if let Some(cookie) = &contender.cookie {
            command.args(["-H", &format!("Cookie: {cookie}")]);
        }
        let path = match load {
            Load::Small | Load::Alone => contender.path.to_owned(),
            Load::Bulk => format!("{}/bulk", contender.path.trim_end_matches('/')),
        };
        let output = command.arg(format!("http://{}{path}", contender.addr)).output().await?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(!said.contains("Non-2xx"), "{} refuses requests:\n{said}", contender.name);
        let line = said.lines().find(|line| line.contains(" requests in "));
        let requests = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        let requests: f64 = requests.with_context(|| format!("wrk says: {said}"))?;
        ensure!(requests > 0.0, "{} answered nothing", contender.name);
        let p50 = half_within(&said).with_context(|| format!("wrk says: {said}"))?;
        let after = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
        let spent = |usage: &nix::sys::resource::Usage| {
            let (user, system) = (usage.user_time(), usage.system_time());
            (user.tv_sec() + system.tv_sec()) as f64
                + (user.tv_usec() + system.tv_usec()) as f64 / 1e6
        };
        Ok(Loaded { requests, p50, load_seconds: spent(&after) - spent(&before) })
    }

    /// What everything that was started here has used.
    fn seconds(&self) -> Result<f64> {
        let mut sum = 0.0;
        for process in &self.processes {
            let pid = process.0.id();
            let started = crate::process::ProcessId::of(pid).context("a process has ended")?;
            sum += seconds_of(pid)?;
            for descendant in started.descendants() {
                sum += seconds_of(descendant.pid).unwrap_or_default();
            }
        }
        Ok(sum)
    }
}

fn seconds(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| seconds_of(*pid)).sum()
}

/// What all threads of a process have used.
pub(crate) fn seconds_of(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let Ok(stat) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let used = stat.split_whitespace().next().context("schedstat says what was used")?;
        nanoseconds += used.parse::<f64>()?;
    }
    Ok(nanoseconds / 1e9)
}

/// What all of the machine has used.
fn machine_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<f64> =
        line.split_whitespace().skip(1).filter_map(|it| it.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal: what is idle is nobody's.
    let busy: f64 = fields
        .iter()
        .take(8)
        .enumerate()
        .filter(|(at, _)| ![3, 4].contains(at))
        .map(|(_, it)| it)
        .sum();
    Ok(busy / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_requests_is_read_in_each_unit_of_wrk() {
        let said = |line: &str| format!("  Latency Distribution\n     {line}\n     75%  9.00ms\n");
        for (line, expected) in
            [("50%  117.00us", 117.0), ("50%    1.50ms", 1500.0), ("50%    2.00s", 2e6)]
        {
            assert_eq!(half_within(&said(line)), Some(expected), "{line}");
        }
        assert_eq!(half_within(&said("50%  1.00m")), None);
        assert_eq!(half_within("12 requests in 3.00s"), None);
    }
}
