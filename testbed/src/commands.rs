//! `up`, `down`, `kill`, `start`: a mesh that lives on after its launcher.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::mesh::{self, DRAIN_BOUND, FORM_BOUND, Mesh, Spec, until};
use crate::process::ProcessId;
use crate::state::{self, PeerRecord};
use crate::terminal::Terminal;
use crate::{apps, ports, workspace};

/// Where `up` keeps its mesh: `target/testbed`, or the folder that `TESTBED_DIR` names.
#[must_use]
pub fn folder() -> PathBuf {
    match std::env::var_os("TESTBED_DIR") {
        Some(dir) => std::path::absolute(&dir).unwrap_or_else(|_| dir.into()),
        None => workspace().join("target/testbed"),
    }
}

/// Starts `peers` peers that serve the apps of `app_files`, or the example.
///
/// A mesh that is up already is left alone: replacing it unasked could end somebody's trial.
///
/// # Errors
/// If one is up, a port is taken, or the mesh does not form; whatever was started is stopped.
pub async fn up(peers: usize, app_files: &[PathBuf], base: Option<u16>) -> Result<()> {
    let (terminal, folder, began) = (Terminal::new(), folder(), Instant::now());
    if let Some(records) = state::read(&folder)?
        && let Some(alive) = records.iter().find(|peer| peer.process.is_alive())
    {
        bail!(
            "a mesh is up already: {} runs as process {}; `testbed/down` stops it",
            alive.name,
            alive.process.pid
        );
    }
    let ports = ports::plan(peers, base)?;
    for (index, peer) in ports.iter().enumerate() {
        if let Err(error) = peer.check_free(&format!("peer-{}", index + 1)) {
            bail!("{error:#}; free the port, or choose others with --base-port P");
        }
    }
    let example = [apps::example()];
    let files = if app_files.is_empty() { &example[..] } else { app_files };
    let mut tables = Vec::new();
    for file in files {
        tables.extend(apps::read(file)?);
        apps::check(file)?;
    }
    let names: Vec<String> =
        tables.iter().filter_map(|app| Some(app.get("name")?.as_str()?.to_owned())).collect();
    state::remove(&folder)?;
    let spec = Spec {
        folder: folder.clone(),
        cluster: "testbed".into(),
        ports,
        apps: tables,
        settings: toml::Table::new(),
        detached: true,
    };
    terminal.passing(format_args!("starting {peers} peers …"));
    let launch = Mesh::launch(spec);
    let mesh = tokio::select! {
        mesh = launch => mesh?,
        // The half-formed mesh is dropped, which kills it.
        () = crate::process::interrupted() => bail!("interrupted while the mesh formed"),
    };
    let records = mesh.release()?;
    state::write(&folder, &records).inspect_err(|_| kill_all(&records))?;
    terminal.line(format_args!(
        "{} peers, formed in {:.1} s, serving {}\n",
        records.len(),
        began.elapsed().as_secs_f64(),
        names.join(", ")
    ));
    table(terminal, &records);
    terminal.line(format_args!(
        "\nTry   curl -i http://{}/\nLogs  {}/NAME/log\nStop  testbed/down",
        records[0].http,
        folder.strip_prefix(workspace()).unwrap_or(&folder).display()
    ));
    Ok(())
}

/// Stops what `up` started. Stopping nothing is fine.
///
/// # Errors
/// If a peer outlives SIGKILL, or the record is damaged.
pub async fn down() -> Result<()> {
    let (terminal, folder) = (Terminal::new(), folder());
    let Some(records) = state::read(&folder)? else {
        terminal.line("no mesh is up");
        return Ok(());
    };
    let alive: Vec<&PeerRecord> = records.iter().filter(|peer| peer.process.is_alive()).collect();
    let under: Vec<ProcessId> = alive.iter().flat_map(|p| p.process.descendants()).collect();
    // All get the signal at once, so that none spends its drain on moving sessions to a peer that is
    // about to leave.
    for peer in &alive {
        peer.process.signal(Signal::SIGTERM)?;
        // A stopped process acts on SIGTERM only once it goes on.
        peer.process.signal(Signal::SIGCONT)?;
    }
    for peer in &alive {
        terminal.passing(format_args!("stopping {} …", peer.name));
        if !peer.process.ended_within(DRAIN_BOUND).await {
            terminal.line(format_args!("{} did not end within {DRAIN_BOUND:?}; killed", peer.name));
            peer.process.stop(std::time::Duration::ZERO).await?;
        }
    }
    for app in under {
        app.signal(Signal::SIGKILL)?;
    }
    state::remove(&folder)?;
    terminal.line(format_args!("{} of {} peers stopped", alive.len(), records.len()));
    Ok(())
}

/// Sends a signal to one peer, and waits for its end if the signal ends it.
///
/// # Errors
/// If there is no such peer, or it does not run.
pub async fn kill(name: &str, signal: Signal) -> Result<()> {
    let (terminal, folder) = (Terminal::new(), folder());
    let (records, index) = find(&folder, name)?;
    let process = records[index].process;
    if !process.signal(signal)? {
        bail!("{name} does not run; `testbed/start {name}` starts it");
    }
    let bound = match signal {
        Signal::SIGKILL | Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT => DRAIN_BOUND,
        _ => {
            terminal.line(format_args!("{name} (process {}): {signal} sent", process.pid));
            return Ok(());
        }
    };
    if !process.ended_within(bound).await {
        bail!("{name} (process {}) still runs {bound:?} after {signal}", process.pid);
    }
    terminal.line(format_args!("{name} (process {}) is gone after {signal}", process.pid));
    Ok(())
}

/// Starts one peer of the mesh again, with the configuration and certificate it had.
///
/// # Errors
/// If there is no such peer, it runs, or it does not see the others in time.
pub async fn start(name: &str) -> Result<()> {
    let (terminal, folder) = (Terminal::new(), folder());
    let (mut records, index) = find(&folder, name)?;
    if records[index].process.is_alive() {
        bail!("{name} runs already, as process {}", records[index].process.pid);
    }
    records[index].ports().check_free(name)?;
    let began = Instant::now();
    let place = folder.join(name);
    let mut child = mesh::spawn(&place, true, &[])?;
    let ended = || format!("{name} ended as it started.\n{}", mesh::log_tail(&place));
    records[index].process = ProcessId::of(child.id()).with_context(ended)?;
    // Recorded before the wait: should it be cut short, `down` knows of it.
    state::write(&folder, &records)?;
    let names: Vec<String> =
        records.iter().filter(|p| p.process.is_alive()).map(|p| p.name.clone()).collect();
    let record = &records[index];
    let formed = until("it sees the others", FORM_BOUND, async || {
        if child.try_wait().ok().flatten().is_some() {
            return Some(false);
        }
        mesh::missing(&mesh::status(record.admin).await, name, &names).is_none().then_some(true)
    });
    if !formed.await.with_context(|| mesh::log_tail(&place))? {
        bail!(ended());
    }
    terminal.line(format_args!(
        "{name} is back as process {} and sees {} others, {:.1} s",
        record.process.pid,
        names.len() - 1,
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn find(folder: &Path, name: &str) -> Result<(Vec<PeerRecord>, usize)> {
    let records = state::read(folder)?.context("no mesh is up; `testbed/up 3` starts one")?;
    let Some(index) = records.iter().position(|peer| peer.name == name) else {
        let names: Vec<&str> = records.iter().map(|peer| peer.name.as_str()).collect();
        bail!("there is no peer {name}; there are {}", names.join(", "));
    };
    Ok((records, index))
}

/// `KILL`, `SIGKILL`, `kill` or `9`.
///
/// # Errors
/// If there is no such signal.
pub fn signal(text: &str) -> Result<Signal> {
    let upper = text.to_ascii_uppercase();
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).with_context(|| format!("there is no signal {text}"));
    }
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    name.parse().with_context(|| format!("there is no signal {text}"))
}

fn kill_all(records: &[PeerRecord]) {
    for peer in records {
        let _ = peer.process.signal(Signal::SIGKILL);
    }
}

fn table(terminal: Terminal, records: &[PeerRecord]) {
    let head = format!(
        "{:<9} {:>8}  {:<23} {:<17} {:<23} {}",
        "peer", "process", "front door", "mesh (udp)", "admin", "redis"
    );
    terminal.line(terminal.bold(head));
    for peer in records {
        terminal.line(format_args!(
            "{:<9} {:>8}  {:<23} {:<17} {:<23} {}",
            peer.name,
            peer.process.pid,
            format!("http://{}", peer.http),
            peer.mesh.to_string(),
            format!("http://{}", peer.admin),
            peer.redis
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_as_kill_names_them() {
        for text in ["KILL", "SIGKILL", "kill", "9"] {
            assert_eq!(signal(text).unwrap(), Signal::SIGKILL);
        }
        assert_eq!(signal("STOP").unwrap(), Signal::SIGSTOP);
        assert!(signal("FRY").is_err());
        assert!(signal("99").is_err());
    }
}
