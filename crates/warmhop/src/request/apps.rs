//! The apps of this peer, as one immutable table that a change of the configuration replaces whole:
//! a request sees the apps before the change or those after it, and takes no lock for that.

use std::collections::HashMap;
use std::sync::Arc;

use warmhop_core::ids::AppName;

use crate::app::slot::Slot;
use crate::error::ControlError;
use crate::request::matches::{Matched, Matches};

/// The apps of this peer.
pub(crate) struct Apps {
    /// The apps for clients, in the order of the configuration.
    pub(crate) slots: Vec<Arc<Slot>>,
    /// Removed apps that still finish their requests.
    pub(crate) leaving: Vec<Arc<Slot>>,
    /// The apps for clients, and those that keep registers.
    by_name: HashMap<AppName, Arc<Slot>>,
    /// Which requests the slots answer.
    matches: Matches,
}

impl Apps {
    pub(crate) fn new(
        slots: Vec<Arc<Slot>>,
        leaving: Vec<Arc<Slot>>,
        registers: &[Arc<Slot>],
    ) -> Self {
        let all = slots.iter().chain(registers);
        let by_name = all.map(|slot| (slot.name().clone(), Arc::clone(slot))).collect();
        let matches = Matches::of(&slots);
        Self { slots, leaving, by_name, matches }
    }

    pub(crate) fn named(&self, name: &AppName) -> Option<&Arc<Slot>> {
        self.by_name.get(name)
    }

    /// The error for a name that no app has.
    pub(crate) fn unknown(&self, name: &AppName) -> ControlError {
        let names: Vec<&str> = self.slots.iter().map(|slot| slot.name().as_str()).collect();
        ControlError::UnknownApp { name: name.to_string(), known: names.join(", ") }
    }

    /// The app whose match fits a request best.
    pub(crate) fn matching(&self, host: Option<&str>, path: &str) -> Option<&Arc<Matched>> {
        self.matches.find(host, path)
    }
}
