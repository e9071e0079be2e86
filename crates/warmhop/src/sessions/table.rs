//! One stripe's sessions, found by their keys. A peer may hold millions of idle ones, so an entry
//! contains its key itself, and everything that idle sessions lack is behind one pointer.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;
use warmhop_core::ids::{AppName, Now, SessionId, SessionKey};
use warmhop_core::session::{Process, Session, Ticket};

use crate::sessions::events::EventSender;

/// One session that this peer owns or holds a copy of.
pub(crate) struct TableEntry {
    /// Shared by all entries of an app in the table.
    app: AppName,
    pub(crate) machine: Session,
    /// When it is filed to be woken, if soon; otherwise zero.
    wake: Now,
    pub(crate) was_owner: bool,
    /// Whether no other peer held a copy when it was last looked at.
    pub(crate) was_sole: bool,
    /// What it was last counted as, in bytes.
    pub(crate) counted: u32,
    busy: Option<Box<Busy>>,
}

/// The state that an idle non-empty session does not need.
#[derive(Default)]
struct Busy {
    /// One request in line here.
    first: Option<(Ticket, EventSender)>,
    /// The others, few at a time.
    others: Vec<(Ticket, EventSender)>,
    /// When an empty session may be dropped; at once if no token names it.
    keep_empty_until: Now,
}

impl TableEntry {
    pub(crate) fn key(&self) -> SessionKey {
        SessionKey { app: self.app.clone(), sid: self.machine.sid() }
    }

    pub(crate) fn app(&self) -> &AppName {
        &self.app
    }

    fn is(&self, key: &SessionKey) -> bool {
        self.machine.sid() == key.sid && self.app == key.app
    }

    /// When it is filed to be woken, if soon.
    pub(crate) fn wake(&self) -> Option<Now> {
        Some(self.wake).filter(|at| *at > Now::default())
    }

    /// Notes when it is filed to be woken, at a time above zero.
    pub(crate) fn set_wake(&mut self, at: Option<Now>) {
        self.wake = at.unwrap_or_default();
    }

    /// A request joins the line; an empty session is kept until `keep_empty_until` at least.
    pub(crate) fn join(&mut self, ticket: Ticket, events: EventSender, keep_empty_until: Now) {
        let busy = self.busy.get_or_insert_default();
        if busy.first.is_none() {
            busy.first = Some((ticket, events));
        } else {
            busy.others.push((ticket, events));
        }
        busy.keep_empty_until = busy.keep_empty_until.max(keep_empty_until);
    }

    pub(crate) fn leave(&mut self, ticket: Ticket) {
        if let Some(busy) = &mut self.busy {
            busy.first.take_if(|(known, _)| *known == ticket);
            busy.others.retain(|(known, _)| *known != ticket);
        }
    }

    /// The request that waits in line under `ticket`.
    pub(crate) fn waiting(&self, ticket: Ticket) -> Option<&EventSender> {
        let busy = self.busy.as_ref()?;
        let mut tickets = busy.first.iter().chain(&busy.others);
        tickets.find(|(known, _)| *known == ticket).map(|(_, events)| events)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.busy.as_ref().is_none_or(|busy| busy.first.is_none() && busy.others.is_empty())
    }

    pub(crate) fn keep_empty_until(&self) -> Now {
        self.busy.as_ref().map_or(Now::default(), |busy| busy.keep_empty_until)
    }

    /// Frees the state that an idle session does not need.
    pub(crate) fn rest(&mut self) {
        if self.is_idle() && !self.machine.is_disposable() {
            self.busy = None;
        }
    }
}

/// The counters of each app's sessions. Stamps are compared within one app only: an app whose sessions
/// last for moments forgets much sooner than others.
#[derive(Default)]
pub(crate) struct Processes(Vec<(AppName, Process)>);

impl Processes {
    pub(crate) fn of(&mut self, app: &AppName) -> &mut Process {
        let at = self.0.iter().position(|(name, _)| name == app).unwrap_or_else(|| {
            self.0.push((app.clone(), Process::default()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }
}

#[derive(Default)]
pub(crate) struct Table {
    entries: HashTable<Box<TableEntry>>,
    places: Places,
    /// The apps of the sessions; each app's name is in memory once.
    apps: Vec<AppName>,
}

/// The slots of entries, by their ids: these are random or digests; the app's name adds nothing to
/// that, and would have to be read for each. The seed is random for each table, so that nobody who
/// chooses keys can make their entries collide.
struct Places([u64; 2]);

impl Default for Places {
    fn default() -> Self {
        Self(rand::random())
    }
}

impl Places {
    fn of(&self, sid: SessionId) -> u64 {
        let id = u128::from_le_bytes(sid.0);
        let (low, high) = (id as u64 ^ self.0[0], (id >> 64) as u64 ^ self.0[1]);
        // Every bit of both halves affects every bit of the folded product.
        let product = u128::from(low) * u128::from(high);
        product as u64 ^ (product >> 64) as u64
    }
}

impl Table {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &TableEntry> {
        self.entries.iter().map(Box::as_ref)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut TableEntry> {
        self.entries.iter_mut().map(Box::as_mut)
    }

    pub(crate) fn get_mut(&mut self, key: &SessionKey) -> Option<&mut TableEntry> {
        let hash = self.places.of(key.sid);
        self.entries.find_mut(hash, |entry| entry.is(key)).map(Box::as_mut)
    }

    /// The entry of `key`; `None` if there is none and the table holds `len_max` already. Also
    /// returns whether it was created now.
    pub(crate) fn get_or_make(
        &mut self,
        key: &SessionKey,
        process: &Process,
        len_max: usize,
    ) -> Option<(&mut TableEntry, bool)> {
        let has_room = self.entries.len() < len_max;
        let places = &self.places;
        let hash = places.of(key.sid);
        #[expect(clippy::borrowed_box, reason = "what the table holds")]
        let again = |entry: &Box<TableEntry>| places.of(entry.machine.sid());
        match self.entries.entry(hash, |entry| entry.is(key), again) {
            Place::Occupied(place) => Some((place.into_mut(), false)),
            Place::Vacant(_) if !has_room => None,
            Place::Vacant(place) => {
                let app = match self.apps.iter().find(|app| **app == key.app) {
                    Some(app) => app.clone(),
                    None => {
                        self.apps.push(key.app.clone());
                        key.app.clone()
                    }
                };
                let machine = Session::new(key.sid, process);
                let entry = TableEntry {
                    app,
                    machine,
                    wake: Now::default(),
                    was_owner: false,
                    was_sole: false,
                    counted: 0,
                    busy: None,
                };
                Some((place.insert(Box::new(entry)).into_mut(), true))
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &SessionKey) {
        let hash = self.places.of(key.sid);
        if let Ok(place) = self.entries.find_entry(hash, |entry| entry.is(key)) {
            place.remove();
        }
    }
}
