//! The limits on what clients may take of a peer, and which connections are closed to keep them.
//!
//! Every connection has an [`Account`]: how much memory its client makes the peer hold, and how
//! long it has been idle. All accounts share one budget. If they exceed it, the address that takes
//! most loses the connection that takes most; if places are short, the connection that has been
//! idle longest is closed.
//!
//! What a client controls is charged: incomplete heads, bodies that arrived and were not read or are
//! still held for an app, answers that the client does not take. It is counted where bytes pass, in steps, so that a small
//! request changes no number that connections share.
//!
//! A hop of another peer has an account as well while it holds a part of a body: see
//! [`crate::http::transit`].

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use warmhop_core::ids::PeerId;

use crate::http::refusals::{Refusal, Refusals};

/// The charge for an idle connection: its buffers and tasks.
const CONNECTION_BYTES: i64 = 16 * 1024;
/// The charge for a request in flight beside its head.
const REQUEST_BYTES: i64 = 4 * 1024;
/// The charge for a frame of a body beside its bytes, while it waits to be read.
const FRAME_BYTES: i64 = 256;
/// Charges are rounded up to this, so that they seldom change.
const STEP_BYTES: i64 = 16 * 1024;
/// The budget is one in so many parts of the memory of the machine or control group. Under an attack a
/// peer takes three times as much, and its sessions and apps need room beside that.
const MEMORY_SHARE: u64 = 8;
/// Closing connections hold much if they hold one in so many parts of the budget.
const CROWDED_SHARE: u64 = 8;
/// The smallest default budget.
const MEMORY_MIN: u64 = 32 << 20;
/// The machine's memory is assumed to be this if it cannot be read.
const MEMORY_UNKNOWN: u64 = 1 << 30;

/// An address has more than its share of a full door if it has at least so many more connections
/// than the one of a newcomer: with fewer, two would displace each other in turn.
const CLEARLY_MORE: usize = 2;
/// A connection whose client has sent something counts as busy for so long, before a request
/// begins.
const ARRIVES_WITHIN: Duration = Duration::from_secs(1);
/// A client has stalled once it has not moved for so long, although something waits for it.
const STANDS_STILL: Duration = Duration::from_secs(1);

/// What the clients of a peer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientLimits {
    /// The memory that they can make the peer hold, in bytes.
    pub memory: u64,
    /// Connections of one address, or of one /64 of IPv6, at all front doors together.
    pub connections_per_address: usize,
    /// The least bytes a second of a request's body while the peer waits for it; 0: no minimum.
    pub body_rate: u64,
    /// How long the peer waits for the next bytes of a request's body.
    pub body_timeout: Duration,
}

impl ClientLimits {
    /// These limits with a change.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            memory: (machine_memory() / MEMORY_SHARE).max(MEMORY_MIN),
            connections_per_address: 4096,
            body_rate: 240,
            body_timeout: Duration::from_secs(60),
        }
    }
}

/// The memory of the machine, or of the control group that this process is in, in bytes.
fn machine_memory() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let machine = read("/proc/meminfo").lines().find_map(|line| {
        let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?;
        kib.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let groups = read("/proc/self/cgroup");
    let group = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    // The groups above it limit it as well.
    let limits = std::path::Path::new(group).ancestors().filter_map(|group| {
        let limit = read(&format!("/sys/fs/cgroup{}/memory.max", group.display()));
        limit.trim().parse::<u64>().ok()
    });
    limits.chain(machine).min().unwrap_or(MEMORY_UNKNOWN)
}

/// The connections of a peer's clients.
#[derive(Debug)]
pub(crate) struct Clients {
    limits: ClientLimits,
    /// The sum of all charges.
    charged: Gauge,
    table: Mutex<Table>,
    refusals: Arc<Refusals>,
    epoch: Instant,
    /// What closing connections were charged: they hold it until their tasks have run.
    ending: AtomicI64,
}

#[derive(Debug, Default)]
struct Table {
    accounts: HashMap<u64, Arc<Account>>,
    by_address: HashMap<IpAddr, HashSet<u64>>,
    next: u64,
}

/// Whom an account is of: above the budget, the owner whose accounts take most loses the largest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Owner {
    Address(IpAddr),
    /// The peer that a hop came from, and the hop's client, as far as that is known.
    Peer(PeerId, u64),
}

/// What one connection takes, or one hop of another peer.
#[derive(Debug)]
pub(crate) struct Account {
    clients: Arc<Clients>,
    owner: Owner,
    /// Cancelled to make the connection end, or the hop.
    gives_way: CancellationToken,
    /// Bytes that arrived and have not been read.
    unread: AtomicI64,
    /// Bytes of answers that have not been sent.
    unsent: AtomicI64,
    /// Bytes of bodies that were read and are held somewhere, such as for an app that does not read, and
    /// what the sources of bodies may hold.
    passed_on: AtomicI64,
    /// Heads of requests in flight.
    heads: AtomicI64,
    in_flight: AtomicUsize,
    /// Bytes came with the connection, and no request of it has begun yet.
    arrives: AtomicBool,
    /// When it last began or ended a request, in milliseconds of the epoch.
    active: AtomicU64,
    /// When it last took a part of an answer that it has not taken all of.
    took: AtomicU64,
    /// Bodies that the peer waits for.
    awaited: AtomicUsize,
    /// What is charged to the budget for all of it.
    charged: AtomicI64,
    /// What was charged when it began to close.
    ending: AtomicI64,
    /// It was refused something, which is counted already.
    refused: AtomicBool,
    /// hyper reads it, and gets a field about trailers with each request.
    read_by_hyper: AtomicBool,
}

/// A piece of a body that a client has sent.
struct PassedOn {
    data: Bytes,
    account: Arc<Account>,
    /// It counts for as long as it is held, even after its hop has ended.
    _place: Option<Arc<Admitted>>,
}

impl AsRef<[u8]> for PassedOn {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for PassedOn {
    fn drop(&mut self) {
        self.account.holds(-(self.data.len() as i64));
    }
}

/// A connection's place, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    id: u64,
    account: Arc<Account>,
}

impl Clients {
    pub(crate) fn new(limits: ClientLimits, refusals: Arc<Refusals>, charged: Gauge) -> Arc<Self> {
        let (table, epoch, ending) = (Mutex::default(), Instant::now(), AtomicI64::new(0));
        Arc::new(Self { limits, charged, table, refusals, epoch, ending })
    }

    pub(crate) fn limits(&self) -> &ClientLimits {
        &self.limits
    }

    pub(crate) fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }

    /// How much of the budget is taken, in bytes.
    #[cfg(test)]
    fn held(&self) -> i64 {
        self.charged.get()
    }

    /// Admits a connection from `address`, for which another may have to close; `None` if that
    /// address has enough connections that are busy. `arrives` says that its client has sent
    /// something already: such a connection is not idle, though nobody has read its request yet.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr, arrives: bool) -> Option<Admitted> {
        let address = owner_of(address);
        let admitted = {
            let mut table = self.lock();
            let of_address = table.by_address.get(&address).map_or(0, HashSet::len);
            if of_address >= self.limits.connections_per_address {
                self.refusals.note(Refusal::TooManyFromAddress);
                let ids = table.by_address.get(&address).into_iter().flatten().copied();
                let idlest = table.idlest(ids, self.now())?;
                table.give_way(idlest);
            }
            table.next += 1;
            let id = table.next;
            let account = self.account(Owner::Address(address), arrives);
            table.accounts.insert(id, Arc::clone(&account));
            table.by_address.entry(address).or_default().insert(id);
            Admitted { id, account }
        };
        admitted.account.recharge();
        Some(admitted)
    }

    fn account(self: &Arc<Self>, owner: Owner, arrives: bool) -> Arc<Account> {
        Arc::new(Account {
            clients: Arc::clone(self),
            owner,
            gives_way: CancellationToken::new(),
            unread: AtomicI64::new(0),
            passed_on: AtomicI64::new(0),
            unsent: AtomicI64::new(0),
            heads: AtomicI64::new(0),
            in_flight: AtomicUsize::new(0),
            arrives: AtomicBool::new(arrives),
            active: AtomicU64::new(self.now()),
            took: AtomicU64::new(0),
            awaited: AtomicUsize::new(0),
            charged: AtomicI64::new(0),
            ending: AtomicI64::new(0),
            refused: AtomicBool::new(false),
            read_by_hyper: AtomicBool::new(false),
        })
    }

    /// Opens an account for a hop of the peer `from` whose body passes through here. It takes nobody's
    /// place, and ends by the budget alone.
    pub(crate) fn take_in(self: &Arc<Self>, from: PeerId, client: u64) -> Admitted {
        let account = self.account(Owner::Peer(from, client), false);
        let id = {
            let mut table = self.lock();
            table.next += 1;
            let id = table.next;
            table.accounts.insert(id, Arc::clone(&account));
            id
        };
        account.recharge();
        Admitted { id, account }
    }

    /// Whether closing connections still hold much. Reading on, and accepting others,
    /// has to let their tasks run first: a burst could make the peer hold far more than the budget.
    pub(crate) fn is_crowded(&self) -> bool {
        let ending = self.ending.load(Relaxed);
        ending > i64::try_from(self.limits.memory / CROWDED_SHARE).unwrap_or(i64::MAX)
    }

    /// How many connections an address has.
    pub(crate) fn connections_of(&self, address: IpAddr) -> usize {
        self.lock().by_address.get(&owner_of(address)).map_or(0, HashSet::len)
    }

    /// Closes the connection that deserves its place least. The place is for a connection from
    /// `newcomer`, or from an unknown address. It closes the connection that has been idle longest
    /// at the address with the most connections; if none is idle, a connection whose client has
    /// stalled: it does not take its answer or does not send its body. Returns false if there is
    /// neither.
    pub(crate) fn make_room(&self, newcomer: Option<IpAddr>) -> bool {
        let mut table = self.lock();
        let mut addresses: Vec<_> = table.by_address.values().collect();
        addresses.sort_unstable_by_key(|ids| std::cmp::Reverse(ids.len()));
        let now = self.now();
        let idlest = addresses.iter().find_map(|ids| table.idlest(ids.iter().copied(), now));
        if let Some(id) = idlest {
            self.refusals.note(Refusal::GaveWay);
            table.give_way(id);
            return true;
        }
        // Of an address that has more than its share a connection closes at once, of any other only
        // once its client has stalled.
        let own = |address| table.by_address.get(&owner_of(address)).map_or(0, HashSet::len);
        let share = newcomer.map_or(usize::MAX, |address| own(address) + CLEARLY_MORE);
        let greedy = addresses.iter().take_while(|ids| ids.len() >= share);
        let stillest =
            { greedy }.find_map(|ids| table.stillest(ids.iter().copied())).or_else(|| {
                table.stillest(table.accounts.keys().copied()).filter(|(_, since)| {
                    now.saturating_sub(*since) >= STANDS_STILL.as_millis() as u64
                })
            });
        let Some((id, _)) = stillest else { return false };
        self.refusals.note(Refusal::StoodStill);
        table.give_way(id);
        true
    }

    /// Closes connections until the others fit into the budget.
    #[cold]
    fn relieve(&self) {
        let budget = i64::try_from(self.limits.memory).unwrap_or(i64::MAX);
        let mut table = self.lock();
        while self.charged.get() > budget {
            let mut by_owner: HashMap<&Owner, i64> = HashMap::new();
            for account in table.accounts.values() {
                *by_owner.entry(&account.owner).or_default() += account.charged.load(Relaxed);
            }
            let Some((most, _)) = by_owner.into_iter().max_by_key(|(_, sum)| *sum) else {
                return;
            };
            let accounts = table.accounts.iter().filter(|(_, account)| account.owner == *most);
            let greatest = accounts.max_by_key(|(_, account)| {
                let active = account.active.load(Relaxed);
                (account.charged.load(Relaxed), std::cmp::Reverse(active))
            });
            let greatest = greatest.map(|(id, account)| (*id, &account.owner));
            let Some((id, owner)) = greatest else { return };
            self.refusals.note(match owner {
                Owner::Address(_) => Refusal::OverBudget,
                Owner::Peer(..) => Refusal::HopOverBudget,
            });
            table.give_way(id);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Of `ids`, the connection that has been without a request longest.
    fn idlest(&self, ids: impl Iterator<Item = u64>, now: u64) -> Option<u64> {
        let idle_since = |id: &u64| self.accounts.get(id).and_then(|it| it.idle_since(now));
        ids.filter_map(|id| Some((idle_since(&id)?, id))).min().map(|(_, id)| id)
    }

    /// Of `ids`, the connection whose client has stalled longest, and since when.
    fn stillest(&self, ids: impl Iterator<Item = u64>) -> Option<(u64, u64)> {
        let still = |id| self.accounts.get(&id).and_then(|it| it.still_since()).map(|at| (id, at));
        ids.filter_map(still).min_by_key(|(_, since)| *since)
    }

    /// Ends a connection; what it took is freed as soon as its task sees the signal.
    fn give_way(&mut self, id: u64) {
        if let Some((account, charged)) = self.remove(id) {
            account.ending.store(charged, Relaxed);
            account.clients.ending.fetch_add(charged, Relaxed);
            account.gives_way.cancel();
        }
    }

    /// Removes a connection; returns what it was charged as well.
    fn remove(&mut self, id: u64) -> Option<(Arc<Account>, i64)> {
        let account = self.accounts.remove(&id)?;
        if let Owner::Address(address) = &account.owner
            && let Some(ids) = self.by_address.get_mut(address)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_address.remove(address);
            }
        }
        let charged = account.close();
        Some((account, charged))
    }
}

/// The address that a connection counts for: a client with one address of IPv6 has a /64 of them.
fn owner_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & (u128::from(u64::MAX) << 64)).into()
        }
        address => address,
    }
}

/// The value of [`Account::charged`] once the connection is no longer accounted for.
const CLOSED: i64 = i64::MIN;

impl Account {
    /// Counts bytes that arrived and nobody has read yet, in so many frames.
    pub(crate) fn came(&self, bytes: usize, frames: usize) {
        self.unread.fetch_add(bytes as i64 + frames as i64 * FRAME_BYTES, Relaxed);
        self.recharge();
    }

    /// Counts a frame of a body as read.
    pub(crate) fn read(&self, bytes: usize, in_frames: bool) {
        let overhead = if in_frames { FRAME_BYTES } else { 0 };
        self.unread.fetch_sub(bytes as i64 + overhead, Relaxed);
        self.recharge();
    }

    /// Counts a piece of a body that was read for as long as anybody holds it.
    pub(crate) fn passes_on(self: &Arc<Self>, data: Bytes) -> Bytes {
        self.holds(data.len() as i64);
        Bytes::from_owner(PassedOn { data, account: Arc::clone(self), _place: None })
    }

    /// Counts so many bytes more as held, or less.
    pub(crate) fn holds(&self, more: i64) {
        self.passed_on.fetch_add(more, Relaxed);
        self.recharge();
    }

    /// Counts bytes of an answer that are to be sent.
    pub(crate) fn answers(&self, bytes: usize) {
        self.unsent.fetch_add(bytes as i64, Relaxed);
        self.recharge();
    }

    /// Counts bytes as sent, of whatever kind.
    pub(crate) fn sent(&self, bytes: usize) {
        let less = |unsent: i64| (unsent > 0).then(|| (unsent - bytes as i64).max(0));
        if let Ok(before) = self.unsent.fetch_update(Relaxed, Relaxed, less) {
            if before > bytes as i64 {
                self.took.store(self.clients.now(), Relaxed);
            }
            self.recharge();
        }
    }

    /// Notes that a body is waited for from now on, or no longer.
    pub(crate) fn awaits(&self, waits: bool) {
        if waits {
            self.awaited.fetch_add(1, Relaxed);
        } else {
            self.awaited.fetch_sub(1, Relaxed);
        }
    }

    /// Since when no request has been in flight or arriving; absent while one is.
    fn idle_since(&self, now: u64) -> Option<u64> {
        let active = self.active.load(Relaxed);
        let arrives = self.arrives.load(Relaxed)
            && now.saturating_sub(active) < ARRIVES_WITHIN.as_millis() as u64;
        (self.in_flight.load(Relaxed) == 0 && !arrives).then_some(active)
    }

    /// Since when its client has been stalled: it does not take its answer or does not send its
    /// body. Absent where nothing waits for the client.
    fn still_since(&self) -> Option<u64> {
        let waits = self.unsent.load(Relaxed) > 0 || self.awaited.load(Relaxed) > 0;
        waits.then(|| self.active.load(Relaxed).max(self.took.load(Relaxed)))
    }

    /// Counts a request that begins, with a head of this many bytes. If it is alone on its
    /// connection, as with HTTP/1, all unread bytes were its head.
    pub(crate) fn begins(&self, head: usize, alone: bool) {
        self.in_flight.fetch_add(1, Relaxed);
        if self.arrives.load(Relaxed) {
            self.arrives.store(false, Relaxed);
        }
        self.active.store(self.clients.now(), Relaxed);
        self.heads.fetch_add(head as i64 + REQUEST_BYTES, Relaxed);
        if alone {
            self.unread.store(0, Relaxed);
        }
        self.recharge();
    }

    /// Counts the end of a request that began with a head of this many bytes.
    pub(crate) fn ends(&self, head: usize) {
        self.heads.fetch_sub(head as i64 + REQUEST_BYTES, Relaxed);
        if self.in_flight.fetch_sub(1, Relaxed) == 1 {
            self.active.store(self.clients.now(), Relaxed);
            // Unread bytes of bodies are dropped with the request.
            self.unread.store(0, Relaxed);
            self.unsent.store(0, Relaxed);
        }
        self.recharge();
    }

    /// Keeps the connection busy for good: it became something else, such as a WebSocket.
    pub(crate) fn stays_busy(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// From here on hyper reads the connection.
    pub(crate) fn goes_to_hyper(&self) {
        self.read_by_hyper.store(true, Relaxed);
    }

    pub(crate) fn is_read_by_hyper(&self) -> bool {
        self.read_by_hyper.load(Relaxed)
    }

    /// Counts a refusal of this client.
    pub(crate) fn refused(&self, why: Refusal) {
        self.refused.store(true, Relaxed);
        self.clients.refusals.note(why);
    }

    /// Counts a refusal by which the connection ended, unless it ended by one that is counted.
    pub(crate) fn ended_by(&self, why: Refusal) {
        if !self.refused.load(Relaxed) {
            self.refused(why);
        }
    }

    /// For how long no request has been in flight; absent while one is.
    pub(crate) fn idle_for(&self) -> Option<Duration> {
        let idle = self.clients.now().saturating_sub(self.active.load(Relaxed));
        (self.in_flight.load(Relaxed) == 0).then(|| Duration::from_millis(idle))
    }

    /// Cancelled when the connection has to end.
    pub(crate) fn gives_way(&self) -> &CancellationToken {
        &self.gives_way
    }

    fn recharge(&self) {
        let held = CONNECTION_BYTES
            + self.unread.load(Relaxed).max(0)
            + self.passed_on.load(Relaxed).max(0)
            + self.unsent.load(Relaxed).max(0)
            + self.heads.load(Relaxed).max(0);
        let steps = (held + STEP_BYTES - 1) / STEP_BYTES * STEP_BYTES;
        let before = self.charged.load(Relaxed);
        if before == steps || before == CLOSED {
            return;
        }
        if self.charged.compare_exchange(before, steps, Relaxed, Relaxed).is_err() {
            // A task that changed it meanwhile has seen newer numbers, or the next change will.
            return;
        }
        let all = self.clients.charged.inc_by(steps - before) + steps - before;
        if steps > before && all > i64::try_from(self.clients.limits.memory).unwrap_or(i64::MAX) {
            self.clients.relieve();
        }
    }

    /// Ends the account; returns what was charged.
    fn close(&self) -> i64 {
        let charged = self.charged.swap(CLOSED, Relaxed);
        if charged == CLOSED {
            return 0;
        }
        self.clients.charged.dec_by(charged);
        charged
    }

    /// Whether anything arrived that nobody has read yet.
    pub(crate) fn has_unread(&self) -> bool {
        self.unread.load(Relaxed) > 0
    }

    /// See [`Clients::is_crowded`].
    pub(crate) fn is_crowded(&self) -> bool {
        self.clients.is_crowded()
    }
}

impl Admitted {
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// The same as [`Account::passes_on`] for a hop: it is accounted for until its last piece is no
    /// longer held.
    pub(crate) fn passes_on(self: &Arc<Self>, data: Bytes) -> Bytes {
        let account = Arc::clone(&self.account);
        account.holds(data.len() as i64);
        Bytes::from_owner(PassedOn { data, account, _place: Some(Arc::clone(self)) })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let account = &self.account;
        account.clients.lock().remove(self.id);
        account.clients.ending.fetch_sub(account.ending.swap(0, Relaxed), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(memory: u64, connections_per_address: usize) -> Arc<Clients> {
        let limits = ClientLimits { memory, connections_per_address, ..ClientLimits::default() };
        Clients::new(limits, Arc::default(), Gauge::default())
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn gave_way(admitted: &Admitted) -> bool {
        admitted.account().gives_way().is_cancelled()
    }

    #[test]
    fn over_the_budget_the_address_that_takes_most_gives_way_by_what_takes_most() {
        let clients = clients(1 << 20, 100);
        let small: Vec<_> = (0..8).map(|_| clients.admit(address(1), false).unwrap()).collect();
        let greedy: Vec<_> = (0..4).map(|_| clients.admit(address(2), false).unwrap()).collect();
        for (at, one) in greedy.iter().enumerate() {
            one.account().came(200_000 + at, 0);
        }
        assert!(!greedy.iter().any(gave_way), "{}", clients.held());
        greedy[2].account().came(100_000, 0);
        assert_eq!(greedy.iter().map(gave_way).collect::<Vec<_>>(), [false, false, true, false]);
        assert!(!small.iter().any(gave_way));
        assert_eq!(clients.refusals.count(Refusal::OverBudget), 1);
        // A connection that has ended is charged nothing more, whatever else happens to it.
        let held = clients.held();
        greedy[2].account().came(1 << 30, 0);
        assert_eq!(clients.held(), held);
        assert!(clients.is_crowded(), "its task has still to run");
        drop((small, greedy));
        assert_eq!((clients.held(), clients.is_crowded()), (0, false));
    }

    #[test]
    fn bytes_that_were_read_sent_or_dropped_are_charged_no_more() {
        let clients = clients(1 << 30, 100);
        let one = clients.admit(address(1), false).unwrap();
        let account = one.account();
        let idle = clients.held();
        account.came(60_000, 0);
        assert!(clients.held() > idle);
        account.begins(60_000, true);
        assert!(clients.held() > idle, "its head is in flight");
        account.came(100_000, 100);
        account.read(100_000, true);
        account.answers(100_000);
        account.sent(300_000);
        account.ends(60_000);
        assert_eq!(clients.held(), idle);
        account.begins(10, false);
        account.came(1 << 20, 1 << 10);
        account.answers(1 << 20);
        assert!(clients.held() > 2 << 20);
        account.ends(10);
        assert_eq!(clients.held(), idle);
    }

    #[test]
    fn a_piece_of_a_body_is_charged_for_as_long_as_anybody_holds_it() {
        let clients = clients(1 << 30, 100);
        let one = clients.admit(address(1), false).unwrap();
        let account = one.account();
        let idle = clients.held();
        account.came(60_000, 4);
        account.read(60_000, true);
        let piece = account.passes_on(Bytes::from(vec![7; 60_000]));
        let part = piece.slice(10..20);
        drop(piece);
        assert!(clients.held() >= idle + 60_000, "a part of it holds all of it");
        assert_eq!(part, [7; 10][..]);
        drop(part);
        assert!(clients.held() <= idle + STEP_BYTES, "{}", clients.held());
        let late = account.passes_on(Bytes::from(vec![7; 60_000]));
        drop(one);
        assert_eq!(clients.held(), 0);
        drop(late);
        assert_eq!(clients.held(), 0, "what ends later changes nothing");
    }

    #[test]
    fn an_address_that_has_its_share_replaces_its_own_idlest_or_is_refused() {
        let clients = clients(1 << 30, 3);
        let own: Vec<_> = (0..3).map(|_| clients.admit(address(1), false).unwrap()).collect();
        own[0].account().begins(0, true);
        own[1].account().active.store(0, Relaxed);
        own[2].account().active.store(1, Relaxed);
        let other = clients.admit(address(2), false).unwrap();
        let fourth = clients.admit(address(1), false).unwrap();
        assert_eq!(own.iter().map(gave_way).collect::<Vec<_>>(), [false, true, false]);
        own[2].account().begins(0, true);
        fourth.account().begins(0, true);
        assert!(clients.admit(address(1), false).is_none(), "all of its own are busy");
        assert!(!gave_way(&other));
        let v6 = |text: &str| owner_of(text.parse().unwrap());
        assert_eq!(v6("2001:db8::1"), v6("2001:db8::ffff:0:0:2"));
        assert_ne!(v6("2001:db8::1"), v6("2001:db8:0:1::1"));
        assert_eq!(v6("::ffff:192.0.2.1"), address(1));
    }

    #[test]
    fn where_places_are_short_the_idlest_of_the_address_with_most_gives_way() {
        let clients = clients(1 << 30, 100);
        let few = clients.admit(address(1), false).unwrap();
        few.account().active.store(0, Relaxed);
        let many: Vec<_> = (0..3).map(|_| clients.admit(address(2), false).unwrap()).collect();
        for (at, one) in many.iter().enumerate() {
            one.account().active.store(10 - at as u64, Relaxed);
        }
        many[2].account().begins(0, true);
        assert!(clients.make_room(None));
        assert_eq!(many.iter().map(gave_way).collect::<Vec<_>>(), [false, true, false]);
        assert!(!gave_way(&few));
        assert!(clients.make_room(None) && clients.make_room(None));
        assert!(!clients.make_room(None), "who is left is busy");
        assert!(gave_way(&many[0]) && gave_way(&few) && !gave_way(&many[2]));
    }

    #[test]
    fn where_nobody_is_idle_a_stalled_client_gives_way_to_an_address_with_clearly_fewer() {
        let clients = clients(1 << 30, 100);
        let many: Vec<_> = (0..3).map(|_| clients.admit(address(2), false).unwrap()).collect();
        many.iter().for_each(|one| one.account().begins(0, true));
        assert!(!clients.make_room(Some(address(1))), "all wait for the peer");
        many[1].account().awaits(true);
        many[1].account().active.store(1, Relaxed);
        many[2].account().answers(10);
        many[2].account().active.store(0, Relaxed);
        assert!(!clients.make_room(None) && !clients.make_room(Some(address(2))), "it is too soon");
        assert!(clients.make_room(Some(address(1))));
        assert_eq!(many.iter().map(gave_way).collect::<Vec<_>>(), [false, false, true]);
        let few = clients.admit(address(1), false).unwrap();
        few.account().begins(0, true);
        assert!(!clients.make_room(Some(address(1))), "two to one is no more than a share");
        assert!(clients.make_room(Some(address(3))));
        assert!(gave_way(&many[1]) && !gave_way(&many[0]) && !gave_way(&few));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stalls_for_long_gives_way_to_anybody() {
        let clients = clients(1 << 30, 100);
        let both: Vec<_> = (0..2).map(|_| clients.admit(address(1), false).unwrap()).collect();
        for one in &both {
            one.account().begins(0, true);
            one.account().answers(10);
        }
        tokio::time::advance(STANDS_STILL).await;
        both[0].account().sent(1);
        assert!(clients.make_room(Some(address(1))));
        assert!(gave_way(&both[1]) && !gave_way(&both[0]));
        assert!(!clients.make_room(Some(address(1))), "it took a part just now");
        tokio::time::advance(STANDS_STILL).await;
        assert!(clients.make_room(None) && gave_way(&both[0]));
    }

    #[test]
    fn a_connection_whose_request_is_on_its_way_is_not_idle() {
        let clients = clients(u64::MAX, 8);
        let arriving = clients.admit(address(1), true).unwrap();
        assert!(!clients.make_room(Some(address(1))));
        let idle = clients.admit(address(1), false).unwrap();
        assert!(clients.make_room(Some(address(1))));
        assert!(idle.account().gives_way().is_cancelled());
        assert!(!arriving.account().gives_way().is_cancelled());
        arriving.account().begins(100, true);
        arriving.account().ends(100);
        assert!(clients.make_room(Some(address(1))), "its request has been answered");
    }

    #[test]
    fn of_connections_that_came_at_once_the_first_gives_way() {
        let clients = clients(u64::MAX, 64);
        let all: Vec<_> = (0..20).map(|_| clients.admit(address(1), false).unwrap()).collect();
        let now = clients.now();
        all.iter().for_each(|it| it.account().active.store(now, Relaxed));
        for one in &all {
            assert!(!one.account().gives_way().is_cancelled());
            assert!(clients.make_room(None));
            assert!(one.account().gives_way().is_cancelled());
        }
    }
}
