//! Faults of an app whose peer is healthy.

use anyhow::Result;
use nix::sys::signal::Signal;

use super::faults::Breaker;
use crate::process::ProcessId;

/// How often in a row a flapping copy is killed.
const FLAPS_MAX: u32 = 4;

impl Breaker {
    /// Its process is stopped (SIGSTOP). Its peer decides what happens then; if the process is still
    /// alive afterwards, it continues.
    pub(super) async fn hang(&mut self, victim: usize) -> Result<(Vec<usize>, String)> {
        if !self.signal_app(victim, Signal::SIGSTOP)? {
            return Ok(not_there(victim));
        }
        let app = self.app_of(victim);
        let span = self.for_between(1_000, 12_000).await;
        let lives = match app {
            Some(app) => app.signal(Signal::SIGCONT)?,
            None => false,
        };
        let end = if lives { "went on" } else { "was ended" };
        Ok((vec![victim], format!("its app was suspended, and {end} within {span:.1?}")))
    }

    /// It keeps running and accepts no more connections.
    pub(super) fn refuse(&mut self, victim: usize) -> Result<(Vec<usize>, String)> {
        if !self.signal_app(victim, Signal::SIGUSR1)? {
            return Ok(not_there(victim));
        }
        Ok((vec![victim], "its app took no more connections".to_owned()))
    }

    /// It fails as soon as it runs again, several times in a row.
    pub(super) async fn flap(&mut self, victim: usize) -> Result<(Vec<usize>, String)> {
        let mut ends = 0;
        for _ in 0..FLAPS_MAX {
            ends += u32::from(self.signal_app(victim, Signal::SIGKILL)?);
            self.for_between(200, 2_500).await;
        }
        Ok((vec![victim], format!("its app was killed {ends} times in a row")))
    }

    /// It exits by itself with status 0, as apps do that exit when they are idle.
    pub(super) fn end_app(&mut self, victim: usize) -> Result<(Vec<usize>, String)> {
        if !self.signal_app(victim, Signal::SIGTERM)? {
            return Ok(not_there(victim));
        }
        Ok((vec![victim], "its app ended by itself".to_owned()))
    }

    /// An app's process, if one runs, below the guard that supervises it.
    fn app_of(&self, victim: usize) -> Option<ProcessId> {
        let peer = self.mesh.peer(victim).process()?;
        peer.descendants().into_iter().rfind(|process| process.command().contains("ledger"))
    }

    fn signal_app(&self, victim: usize, signal: Signal) -> Result<bool> {
        self.app_of(victim).map_or(Ok(false), |app| app.signal(signal))
    }
}

fn not_there(victim: usize) -> (Vec<usize>, String) {
    (vec![victim], "its app did not run".to_owned())
}
