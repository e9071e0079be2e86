//! What a request costs a peer, beside HAProxy and nginx in front of the same app.
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
    busy: bool,
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
    samples: Vec<f64>,
}

/// Where everything is.
struct Bed {
    folder: PathBuf,
    tools: PathBuf,
    processes: Vec<Process>,
}

impl Bed {
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

/// Measures and prints the table.
///
/// # Errors
/// If a tool is missing, a contender does not answer, or the machine is too busy.
pub async fn proxies(wanted: &Wanted) -> Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    ensure!(cores >= 2, "one core serves and another asks, but this machine has {cores}");
    let terminal = Terminal::new();
    let target = crate::programs()?;
    let target = target.parent().context("programs are below a target folder")?;
    let folder = target.join("testbed-bench-proxies");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let tools = target.join("ecosystem/proxies/debian");
    for tool in ["usr/sbin/haproxy", "usr/sbin/nginx", "usr/bin/wrk"] {
        let missing = "is not there: `testbed/install proxies` says why it could not be installed";
        ensure!(tools.join(tool).is_file(), "{} {missing}", tools.join(tool).display());
    }
    let mut bed = Bed { folder, tools, processes: Vec::new() };
    let reserved = Reservation::new()?;
    let mut contenders = rivals(&mut bed, &reserved.peer(0), &reserved.peer(1))?;
    let mut binaries = vec![("warmhop", crate::program("warmhop")?)];
    binaries.extend(wanted.old.clone().map(|old| ("old", old)));
    for (at, (name, binary)) in binaries.into_iter().enumerate() {
        let at = u16::try_from(at)? * 2 + 2;
        contenders.extend(peers(
            &mut bed,
            name,
            &binary,
            [reserved.peer(at), reserved.peer(at + 1)],
        )?);
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
    for round in 0..wanted.rounds {
        for contender in &mut contenders {
            terminal.passing(format!(
                "round {} of {}: {}",
                round + 1,
                wanted.rounds,
                contender.name
            ));
            let sample = sample(&bed, contender, wanted).await?;
            contender.samples.push(sample);
        }
    }
    let first = contenders[0].samples.clone();
    terminal.line(format!("{:<28} {:>8} {:>8}", "", "us CPU", "ratio"));
    for contender in &contenders {
        let ratios = contender.samples.iter().zip(&first).map(|(it, first)| it / first).collect();
        terminal.line(format!(
            "{:<28} {:>8.1} {:>8.2}",
            contender.name,
            median(contender.samples.clone()),
            median(ratios)
        ));
    }
    Ok(())
}

fn median(mut samples: Vec<f64>) -> f64 {
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

fn app(listen: &str) -> String {
    let body = "x".repeat(BODY_BYTES);
    format!(
        "server {{ listen {listen} backlog=4096; location / {{ default_type text/plain; \
         return 200 \"{body}\"; }} }}"
    )
}

fn rivals(bed: &mut Bed, app_at: &PeerPorts, doors: &PeerPorts) -> Result<Vec<Contender>> {
    let (app_at, haproxy_at, nginx_at) = (app_at.http, doors.http, doors.admin);
    bed.nginx("app", &app(&app_at.to_string()))?;
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
    let contender = |name: &str, addr, pid| Contender {
        name: name.into(),
        addr,
        path: "/",
        cookie: None,
        pids: vec![pid],
        samples: Vec::new(),
    };
    Ok(vec![contender("HAProxy", haproxy_at, haproxy), contender("nginx", nginx_at, nginx)])
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
    std::fs::write(folder.join("app.conf"), nginx_conf("PORT", &app("127.0.0.1:PORT")))?;
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
    let contender = |way: &str, addr, path, pids: &[u32]| Contender {
        name: format!("{name}: {way}"),
        addr,
        path,
        cookie: None,
        pids: pids.to_vec(),
        samples: Vec::new(),
    };
    Ok(vec![
        contender("served here", ports[0].http, "/none", &pids[..1]),
        contender("portable, served here", ports[0].http, "/portable", &pids[..1]),
        contender("through a hop, both", ports[1].http, "/none", &pids),
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

/// The CPU of a request in microseconds.
async fn sample(bed: &Bed, contender: &Contender, wanted: &Wanted) -> Result<f64> {
    let mut others = 0.0;
    for _ in 0..TRIES {
        // A peer that has just been asked by the one before has something to tidy up.
        sleep(Duration::from_millis(50)).await;
        ensure!(TcpStream::connect(contender.addr).is_ok(), "{} has ended", contender.name);
        let (all, own) = (machine_seconds()?, seconds_of(std::process::id())?);
        let everybody = bed.seconds()?;
        let before = seconds(&contender.pids)?;
        let (requests, load_seconds) = bed.load(contender, wanted).await?;
        let used = seconds(&contender.pids)? - before;
        let known =
            bed.seconds()? - everybody + load_seconds + (seconds_of(std::process::id())? - own);
        others = (machine_seconds()? - all - known).max(0.0) / f64::from(wanted.seconds);
        if wanted.busy || others <= OTHERS_MAX {
            return Ok(used * 1e6 / requests);
        }
    }
    bail!(
        "others use {others:.2} of a core on this machine, {TRIES} times in a row: its figures \
         would say nothing. Stop them, or take --busy, with which only the ratios count"
    )
}

impl Bed {
    /// Asks for the length of a turn; how many requests were answered, and what asking took.
    async fn load(&self, contender: &Contender, wanted: &Wanted) -> Result<(f64, f64)> {
        let before = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
        let mut command = tokio::process::Command::new("taskset");
        command
            .args(["-c", "1"])
            .arg(self.tool("bin/wrk"))
            .arg("-t1")
            .arg(format!("-c{}", wanted.connections))
            .arg(format!("-d{}s", wanted.seconds))
            .env("LD_LIBRARY_PATH", self.tools.join("usr/lib/x86_64-linux-gnu"));
        if let Some(cookie) = &contender.cookie {
            command.args(["-H", &format!("Cookie: {cookie}")]);
        }
        let output =
            command.arg(format!("http://{}{}", contender.addr, contender.path)).output().await?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(!said.contains("Non-2xx"), "{} refuses requests:\n{said}", contender.name);
        let line = said.lines().find(|line| line.contains(" requests in "));
        let requests = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        let requests: f64 = requests.with_context(|| format!("wrk says: {said}"))?;
        ensure!(requests > 0.0, "{} answered nothing", contender.name);
        let after = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
        let spent = |usage: &nix::sys::resource::Usage| {
            let (user, system) = (usage.user_time(), usage.system_time());
            (user.tv_sec() + system.tv_sec()) as f64
                + (user.tv_usec() + system.tv_usec()) as f64 / 1e6
        };
        Ok((requests, spent(&after) - spent(&before)))
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
fn seconds_of(pid: u32) -> Result<f64> {
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
