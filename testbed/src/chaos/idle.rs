//! Sessions that no client asks for: begun before the first fault, looked after from the admin
//! listeners, and read once at the end.
//!
//! Clients at work repair what they use: a request of a session whose owner is gone takes it over.
//! Only idle sessions show whether the mesh repairs what nobody uses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::Method;
use tokio::time::sleep;

use super::history::{Orphan, Thread};
use super::load::{IDLE_FROM, Load, Walker};
use crate::client::Client;

/// Every one has to be whole within this time after a fault was undone.
pub const WHOLE_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_secs(1);
const ASKED_WITHIN: Duration = Duration::from_secs(2);
/// How many items each holds.
const ITEMS: usize = 2;

/// The idle sessions of one run.
#[derive(Debug, Default)]
pub struct Idle {
    walkers: Vec<Walker>,
    /// Their keys, by the clients that began them.
    keys: BTreeMap<Thread, String>,
    /// Those that were not whole in time.
    pub orphans: Vec<Orphan>,
}

impl Idle {
    /// Begins so many sessions, each at the next door.
    pub async fn begin(load: &Arc<Load>, admins: &[SocketAddr], count: u32, seed: u64) -> Self {
        let mut idle = Self::default();
        for index in 0..count {
            let mut walker = Walker::idle(Arc::clone(load), IDLE_FROM + index, seed);
            let door = index as usize % load.doors.len();
            let mut request = None;
            for _ in 0..ITEMS {
                request = walker.append_at(door).await.or(request);
            }
            let Some(request) = request else { continue };
            let trace = ask(admins[door], &format!("/v1/requests/{request}")).await;
            if let Some(key) = trace.as_ref().and_then(|trace| trace["session"].as_str()) {
                idle.keys.insert(walker.thread(), key.to_owned());
            }
            idle.walkers.push(walker);
        }
        idle
    }

    /// How many are checked.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.keys.len() as u64
    }

    /// Waits until each is whole, and records those that are not `WHOLE_WITHIN` after `healed`. These
    /// are no longer checked, nor are those that a fault which `may_lose` them has left without a
    /// majority. `names` are the peers', in the order of `admins`.
    pub async fn whole(
        &mut self,
        healed: Instant,
        fault: usize,
        may_lose: bool,
        names: &[String],
        admins: &[SocketAddr],
        now: impl Fn() -> u64,
    ) {
        let mut lacking: Vec<(Thread, String)> =
            self.keys.iter().map(|(thread, key)| (*thread, key.clone())).collect();
        loop {
            let mut still = Vec::new();
            for (thread, key) in lacking {
                match is_whole(&key, names, admins).await {
                    Ok(()) => {}
                    Err(lacking) if may_lose && !lacking.has_majority => {
                        self.keys.remove(&thread);
                    }
                    Err(lacking) => still.push((thread, key, lacking.reports)),
                }
            }
            if still.is_empty() {
                return;
            }
            if healed.elapsed() > WHOLE_WITHIN {
                for (thread, key, reports) in still {
                    self.keys.remove(&thread);
                    self.orphans.push(Orphan { key, thread, fault, at: now(), reports });
                }
                return;
            }
            lacking = still.into_iter().map(|(thread, key, _)| (thread, key)).collect();
            sleep(POLL).await;
        }
    }

    /// Reads each of them once.
    pub async fn read(&mut self) {
        for walker in &mut self.walkers {
            walker.read_until_answered().await;
        }
    }
}

/// What a session lacks.
struct Lacking {
    /// What each peer reported about it.
    reports: String,
    /// Whether more than half of the members that any peer named are alive.
    has_majority: bool,
}

/// Whether exactly one peer owns the session and counts as many living members as there should be;
/// otherwise what each peer reported about it.
async fn is_whole(key: &str, names: &[String], admins: &[SocketAddr]) -> Result<(), Lacking> {
    let path = format!("/v1/sessions/{key}");
    let answers = join_all(admins.iter().map(|admin| ask(*admin, &path))).await;
    let mut owners = Vec::new();
    let mut said = Vec::new();
    let mut has_majority = false;
    for (name, answer) in names.iter().zip(&answers) {
        let Some(answer) = answer else {
            said.push(format!("{name}: nothing"));
            continue;
        };
        let members: Vec<&str> = answer["members"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|it| it.as_str())
            .collect();
        let ballot = answer["ballot"].as_str().unwrap_or_default();
        let owner = answer["owner"].as_str().unwrap_or_default();
        let living = members.iter().filter(|it| names.iter().any(|name| name == **it)).count();
        // One that was replaced keeps what it held, and hears no more of it.
        has_majority |= members.contains(&name.as_str()) && 2 * living > members.len();
        if owner == name && !ballot.is_empty() {
            owners.push(living);
        }
        said.push(format!("{name}: owner {owner}, ballot {ballot}, members {members:?}"));
    }
    match owners[..] {
        [living] if living >= names.len().min(3) => Ok(()),
        _ => Err(Lacking { reports: said.join("; "), has_majority }),
    }
}

async fn ask(admin: SocketAddr, path: &str) -> Option<serde_json::Value> {
    let mut client = Client::new();
    let call = client.call(Method::GET, path).timeout(ASKED_WITHIN);
    call.send(admin).await.ok()?.ok().ok()?.json().ok()
}
