//! The apps of this peer, as one immutable table that a change of the configuration replaces whole:
//! a request sees the apps before the change or those after it, and takes no lock for that.

use std::collections::HashMap;
use std::sync::Arc;

use warmhop_core::ids::AppName;

use crate::app::slot::Slot;
use crate::error::ControlError;

/// The apps of this peer.
pub(crate) struct Apps {
    /// Those that clients reach, in the order of the configuration.
    pub(crate) slots: Vec<Arc<Slot>>,
    /// Those that are none any more, and still end what they have begun.
    pub(crate) leaving: Vec<Arc<Slot>>,
    /// Those that there are and the ones that keep registers.
    by_name: HashMap<AppName, Arc<Slot>>,
}

impl Apps {
    pub(crate) fn new(
        slots: Vec<Arc<Slot>>,
        leaving: Vec<Arc<Slot>>,
        registers: &[Arc<Slot>],
    ) -> Self {
        let all = slots.iter().chain(registers);
        let by_name = all.map(|slot| (slot.name().clone(), Arc::clone(slot))).collect();
        Self { slots, leaving, by_name }
    }

    pub(crate) fn named(&self, name: &AppName) -> Option<&Arc<Slot>> {
        self.by_name.get(name)
    }

    /// What is said of a name that none of them has.
    pub(crate) fn unknown(&self, name: &AppName) -> ControlError {
        let names: Vec<&str> = self.slots.iter().map(|slot| slot.name().as_str()).collect();
        ControlError::UnknownApp { name: name.to_string(), known: names.join(", ") }
    }

    /// The app whose host and path match best: a host before none, then the longest path.
    pub(crate) fn matching(&self, host: Option<&str>, path: &str) -> Option<&Arc<Slot>> {
        let mut best: Option<((bool, usize), &Arc<Slot>)> = None;
        for slot in &self.slots {
            let spec = slot.spec();
            let is_host = match &spec.host {
                Some(wanted) => host.is_some_and(|host| wanted.eq_ignore_ascii_case(host)),
                None => true,
            };
            if !is_host || !is_below(path, &spec.path) {
                continue;
            }
            let fit = (spec.host.is_some(), spec.path.trim_end_matches('/').len());
            if best.as_ref().is_none_or(|(other, _)| fit >= *other) {
                best = Some((fit, slot));
            }
        }
        best.map(|(_, slot)| slot)
    }
}

fn is_below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_matches_by_whole_segments() {
        for (path, prefix, below) in [
            ("/", "/", true),
            ("/shop", "/shop", true),
            ("/shop/a", "/shop", true),
            ("/shop/a", "/shop/", true),
            ("/shopping", "/shop", false),
            ("/", "/shop", false),
        ] {
            assert_eq!(is_below(path, prefix), below, "{path} below {prefix}");
        }
    }
}
