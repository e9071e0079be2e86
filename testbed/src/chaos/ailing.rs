//! What befalls an app while its peer is well.

use anyhow::Result;
use nix::sys::signal::Signal;

use super::faults::Breaker;
use crate::process::ProcessId;

/// How often in a row a copy is killed that flaps.
const FLAPS_MAX: u32 = 4;

impl Breaker {
    /// Its process stands still. What becomes of it is its peer's affair: where it lives on still, it
    /// goes on.
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
        Ok((vec![victim], format!("its app stood still, and {end} within {span:.1?}")))
    }

    /// It lives on and takes no connection any more.
    pub(super) fn refuse(&mut self, victim: usize) -> Result<(Vec<usize>, String)> {
        if !self.signal_app(victim, Signal::SIGUSR1)? {
            return Ok(not_there(victim));
        }
        Ok((vec![victim], "its app took no more connections".to_owned()))
    }

    /// It ends in bad order as soon as it is there again, some times in a row.
    pub(super) async fn flap(&mut self, victim: usize) -> Result<(Vec<usize>, String)> {
        let mut ends = 0;
        for _ in 0..FLAPS_MAX {
            ends += u32::from(self.signal_app(victim, Signal::SIGKILL)?);
            self.for_between(200, 2_500).await;
        }
        Ok((vec![victim], format!("its app was killed {ends} times in a row")))
    }

    /// It ends by itself in good order, as those do that end when they are idle.
    pub(super) fn end_app(&mut self, victim: usize) -> Result<(Vec<usize>, String)> {
        if !self.signal_app(victim, Signal::SIGTERM)? {
            return Ok(not_there(victim));
        }
        Ok((vec![victim], "its app ended by itself".to_owned()))
    }

    /// An app's process, if one runs; who looks after it is above it.
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
