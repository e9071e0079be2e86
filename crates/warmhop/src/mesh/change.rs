//! A change of a running peer's apps: checked whole, then carried out whole.
//!
//! The table of apps is replaced by one store, so that a request sees the apps before the change or
//! those after it. An app that leaves the table finishes its requests and starts nothing more; a
//! changed app keeps its copy until a new one is ready.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tracing::info;
use warmhop_core::app::WantedBy;
use warmhop_core::config::StartMode;
use warmhop_core::ids::{AppName, PeerId};
use warmhop_core::matching::{Claim, Match};

use crate::app::slot::Slot;
use crate::app::{App, AppSpec};
use crate::error::{ControlError, StartMeshError};
use crate::links::net::Net;
use crate::mesh::background::Background;
use crate::observe::clock::Clock;
use crate::observe::metrics::Metrics;
use crate::request::apps::Apps;
use crate::request::node::Node;
use crate::request::registers;

/// Changes of a running peer's apps: see [`Mesh::change_apps`](crate::Mesh::change_apps).
///
/// ```
/// # fn change(
/// #     mesh: &warmhop::Mesh,
/// #     blog: impl warmhop::App,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// use warmhop::ids::AppName;
/// use warmhop::{AppChanges, AppSpec};
///
/// let spec = AppSpec::new(AppName::new("blog")?);
/// mesh.change_apps(AppChanges::new().add(spec, blog).remove(AppName::new("shop")?))?;
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct AppChanges {
    added: Vec<(AppSpec, Arc<dyn App>)>,
    changed: Vec<Changed>,
    removed: BTreeSet<AppName>,
}

struct Changed {
    spec: AppSpec,
    app: Option<Arc<dyn App>>,
    renewed: bool,
}

impl AppChanges {
    /// No change.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an app.
    #[must_use]
    pub fn add(mut self, spec: AppSpec, app: impl App) -> Self {
        self.added.push((spec, Arc::new(app)));
        self
    }

    /// Changes the treatment of the app of this name from now on: its requests, or its policy. Its
    /// copy keeps running.
    #[must_use]
    pub fn change(mut self, spec: AppSpec) -> Self {
        self.changed.push(Changed { spec, app: None, renewed: false });
        self
    }

    /// As [`AppChanges::change`], and from the next start on `app` is started.
    #[must_use]
    pub fn change_starts(mut self, spec: AppSpec, app: impl App) -> Self {
        self.changed.push(Changed { spec, app: Some(Arc::new(app)), renewed: false });
        self
    }

    /// As [`AppChanges::change_starts`], and a running copy is replaced: a new one starts beside
    /// it, and serves as soon as it is ready. If it does not become ready, the old one stays.
    #[must_use]
    pub fn replace(mut self, spec: AppSpec, app: impl App) -> Self {
        self.changed.push(Changed { spec, app: Some(Arc::new(app)), renewed: true });
        self
    }

    /// Removes the app of this name from this peer.
    #[must_use]
    pub fn remove(mut self, name: AppName) -> Self {
        self.removed.insert(name);
        self
    }
}

impl fmt::Debug for AppChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppChanges")
            .field("added", &self.added.iter().map(|(spec, _)| &spec.name).collect::<Vec<_>>())
            .field("changed", &self.changed.iter().map(|it| &it.spec.name).collect::<Vec<_>>())
            .field("removed", &self.removed)
            .finish()
    }
}

/// Makes the slots of apps.
pub(crate) struct SlotMaker {
    pub(crate) me: PeerId,
    pub(crate) clock: Clock,
    pub(crate) metrics: Arc<Metrics>,
    /// Counts the changes of this peer's knowledge.
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) net: Net,
}

impl SlotMaker {
    /// The slot of an app.
    pub(crate) fn slot(&self, spec: AppSpec, app: Arc<dyn App>) -> Arc<Slot> {
        let net = self.net.clone();
        let publish = move |slot: &Slot| {
            if slot.spec().policy.start == StartMode::Never {
                // Other peers cannot ask this one for an app that never starts here.
                net.retract_app(slot.name());
            } else {
                net.publish_app(slot.name(), slot.copy_news());
            }
        };
        self.make(spec, false, app, Box::new(publish))
    }

    /// The slot that executes operations on registers. No peer sends requests to it: the owner of a
    /// register executes them.
    pub(crate) fn keeper(&self, name: AppName, node: Weak<Node>) -> Arc<Slot> {
        let (spec, app) = registers::keeper(name, node);
        self.make(spec, true, Arc::new(app), Box::new(|_: &Slot| ()))
    }

    fn make(
        &self,
        spec: AppSpec,
        keeps_registers: bool,
        app: Arc<dyn App>,
        publish: Box<dyn Fn(&Slot) + Send + Sync>,
    ) -> Arc<Slot> {
        let (me, metrics) = (self.me.clone(), Arc::clone(&self.metrics));
        let (clock, changed) = (self.clock.clone(), self.changed.clone());
        Slot::new(spec, keeps_registers, app, me, clock, metrics, changed, publish)
    }
}

/// Creates the apps of a running peer.
pub(crate) struct Nursery {
    maker: SlotMaker,
    background: Background,
    /// Held during a change, so that there is one at a time.
    turn: Mutex<()>,
}

impl Nursery {
    pub(crate) fn new(maker: SlotMaker, background: Background) -> Self {
        Self { maker, background, turn: Mutex::new(()) }
    }

    /// Lets time pass for the app, and starts it if it starts at boot.
    pub(crate) fn tend(&self, slot: &Arc<Slot>) {
        self.background.spawn(Arc::clone(slot).tick());
        if slot.spec().policy.start == StartMode::AtBoot {
            slot.wanted(WantedBy::Boot);
        }
    }

    /// Carries out all changes, or returns why none of them.
    pub(crate) fn apply(
        &self,
        node: &Node,
        mut changes: AppChanges,
        begin: impl Fn(&Slot),
    ) -> Result<(), ControlError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = node.apps();
        check(node, &before, &changes)?;
        let mut slots = Vec::new();
        let mut leaving: Vec<Arc<Slot>> =
            before.leaving.iter().filter(|slot| !slot.has_ended()).cloned().collect();
        for slot in &before.slots {
            if changes.removed.contains(slot.name()) {
                leaving.push(Arc::clone(slot));
            } else {
                slots.push(Arc::clone(slot));
            }
        }
        let added: Vec<Arc<Slot>> =
            changes.added.drain(..).map(|(spec, app)| self.maker.slot(spec, app)).collect();
        for slot in &added {
            begin(slot);
        }
        slots.extend(added.iter().cloned());
        // Before the table is replaced: an app may take over another's path.
        for Changed { spec, app, renewed } in changes.changed.drain(..) {
            info!(app = %spec.name, renewed, "the app's configuration changed");
            if let Some(slot) = before.named(&spec.name) {
                slot.change(spec, app, renewed);
            }
        }
        node.put_apps(Apps::new(slots, leaving, &node.registers));
        for slot in before.slots.iter().filter(|slot| changes.removed.contains(slot.name())) {
            info!(app = %slot.name(), "the app was removed");
            slot.retire();
            node.net.retract_app(slot.name());
        }
        for slot in &added {
            info!(app = %slot.name(), "the app was added");
            slot.announce();
            self.tend(slot);
        }
        node.changed.send_modify(|count| *count += 1);
        Ok(())
    }
}

fn check(node: &Node, before: &Apps, changes: &AppChanges) -> Result<(), ControlError> {
    let known = |name: &AppName| before.slots.iter().any(|slot| slot.name() == name);
    let named = changes.changed.iter().map(|it| &it.spec.name).chain(&changes.removed);
    if let Some(name) = named.into_iter().find(|name| !known(name)) {
        return Err(before.unknown(name));
    }
    let stay = before.slots.iter().filter(|slot| {
        let changed = changes.changed.iter().any(|it| it.spec.name == *slot.name());
        !changed && !changes.removed.contains(slot.name())
    });
    let mut specs: Vec<AppSpec> = stay.map(|slot| AppSpec::clone(&slot.spec())).collect();
    specs.extend(changes.changed.iter().map(|it| it.spec.clone()));
    specs.extend(changes.added.iter().map(|(spec, _)| spec.clone()));
    let registers: Vec<AppName> = node.registers.iter().map(|it| it.name().clone()).collect();
    check_apps(&specs.iter().collect::<Vec<_>>(), &registers)
        .map_err(|error| ControlError::NotChanged { source: Box::new(error) })
}

/// Checks that no two apps claim one name, or one host and path: otherwise chance would decide
/// which of them gets a request.
pub(crate) fn check_apps(apps: &[&AppSpec], registers: &[AppName]) -> Result<(), StartMeshError> {
    for (at, name) in registers.iter().enumerate() {
        let same = |other: &&AppName| *other == name;
        let names = apps.iter().map(|spec| &spec.name);
        if let Some(other) = registers[..at].iter().chain(names).find(same) {
            return Err(StartMeshError::AppsCollide {
                first: other.to_string(),
                second: name.to_string(),
                what: "registers have names of their own".into(),
            });
        }
    }
    let mut names = HashSet::new();
    let mut claims: HashMap<Claim<'_>, &AppSpec> = HashMap::new();
    let collide = |first: &AppSpec, second: &AppSpec, what| StartMeshError::AppsCollide {
        first: first.name.to_string(),
        second: second.name.to_string(),
        what,
    };
    for one in apps {
        if !names.insert(&one.name) {
            return Err(collide(one, one, format!("both are named {}", one.name)));
        }
        for claim in one.matches.iter().flat_map(Match::claims) {
            let other = claims.insert(claim, one).filter(|other| other.name != one.name);
            if let Some(other) = other {
                let (host, path) = claim;
                let host = host.map_or("(any)".into(), ToString::to_string);
                let path = if path.is_empty() { "/" } else { path };
                return Err(collide(other, one, format!("both match host {host} and path {path}")));
            }
        }
    }
    Ok(())
}
