//! The meaning of recent `Cookie` fields. A browser sends the same one with each request, and
//! extracting and decoding the token again costs more than a lookup.

use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher, RandomState};

use http::HeaderValue;
use warmhop_core::affinity::Entry;
use warmhop_core::ids::{AppName, PeerId, WallTime};

use crate::identity::InUse;

/// How many fields each thread caches.
const KNOWN_MAX: usize = 512;
/// A longer field is not cached: most hold an affinity cookie of 200 bytes, and some of the app's
/// own.
const FIELD_BYTES_MAX: usize = 1024;

/// The meaning of a `Cookie` field with one valid token for an app.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) entry: Entry,
    pub(super) route: Option<PeerId>,
    /// The field as the app sees it; empty if nothing is left.
    pub(super) rest: HeaderValue,
}

struct Known {
    hash: u64,
    field: Box<[u8]>,
    /// The credentials that authenticated it.
    keys: InUse,
    /// The name of the affinity cookie.
    name: Box<str>,
    found: Found,
}

/// Each field is in the slot that its hash selects. The hash is keyed, so nobody can choose which
/// slot is used, nor learn from the time how much of a field agrees with another's.
struct Table {
    places: Vec<Option<Box<Known>>>,
    hasher: RandomState,
}

thread_local! {
    static TABLE: RefCell<Table> =
        RefCell::new(Table { places: Vec::new(), hasher: RandomState::new() });
}

impl Table {
    fn hash(&self, field: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(field);
        hasher.finish()
    }
}

/// The cached meaning of `field` for `app`, if `keys` are still in use and it has not expired.
pub(super) fn find(
    field: &HeaderValue,
    app: &AppName,
    name: &str,
    keys: &InUse,
    wall: WallTime,
) -> Option<Found> {
    if field.len() > FIELD_BYTES_MAX {
        return None;
    }
    TABLE.with_borrow(|table| {
        let hash = table.hash(field.as_bytes());
        let known = table.places.get(hash as usize % KNOWN_MAX)?.as_ref()?;
        let is_it = known.hash == hash
            && *known.field == *field.as_bytes()
            && known.keys == *keys
            && *known.name == *name
            && known.found.entry.app == *app
            && wall < known.found.entry.expiry;
        is_it.then(|| known.found.clone())
    })
}

/// Caches the meaning of `field`, perhaps in place of another.
pub(super) fn keep(field: &HeaderValue, name: &str, keys: InUse, found: Found) {
    if field.len() > FIELD_BYTES_MAX {
        return;
    }
    TABLE.with_borrow_mut(|table| {
        let hash = table.hash(field.as_bytes());
        if table.places.is_empty() {
            table.places.resize_with(KNOWN_MAX, || None);
        }
        if let Some(place) = table.places.get_mut(hash as usize % KNOWN_MAX) {
            let field = field.as_bytes().into();
            *place = Some(Box::new(Known { hash, field, keys, name: name.into(), found }));
        }
    });
}

#[cfg(test)]
mod tests {
    use warmhop_core::affinity::Kind;
    use warmhop_core::ids::{Incarnation, SessionId};

    use super::*;
    use crate::identity::Authority;

    fn found(app: &AppName) -> Found {
        let kind =
            Kind::Pinned { peer: PeerId::new("p1").unwrap(), incarnation: Incarnation([7; 16]) };
        let (sid, expiry) = (SessionId([1; 16]), WallTime(1_000));
        let entry = Entry { app: app.clone(), sid, kind, expiry, version: None };
        Found { entry, route: None, rest: HeaderValue::from_static("theme=dark") }
    }

    fn keys() -> InUse {
        let authority = Authority::generate("known-cookies").unwrap();
        authority.issue(&PeerId::new("p1").unwrap()).unwrap().cookie_authenticator().in_use()
    }

    #[test]
    fn a_field_is_known_to_its_app_by_its_name_under_its_keys_until_it_expires() {
        let (app, other) = (AppName::new("shop").unwrap(), AppName::new("blog").unwrap());
        let (ours, theirs) = (keys(), keys());
        let field = HeaderValue::from_static("theme=dark; warmhop=a");
        keep(&field, "warmhop", ours.clone(), found(&app));
        let known = |field: &HeaderValue, app, name, keys, wall| {
            find(field, app, name, keys, WallTime(wall)).is_some()
        };
        assert!(known(&field, &app, "warmhop", &ours, 999));
        assert!(!known(&field, &app, "warmhop", &ours, 1_000));
        assert!(!known(&field, &other, "warmhop", &ours, 999));
        assert!(!known(&field, &app, "mesh", &ours, 999));
        assert!(!known(&field, &app, "warmhop", &theirs, 999));
        let longer = HeaderValue::from_static("theme=dark; warmhop=ab");
        assert!(!known(&longer, &app, "warmhop", &ours, 999));
    }

    #[test]
    fn no_more_fields_are_kept_than_there_are_places_and_no_long_ones() {
        let (app, ours) = (AppName::new("shop").unwrap(), keys());
        let fields: Vec<_> = (0..4 * KNOWN_MAX)
            .map(|at| HeaderValue::from_str(&format!("warmhop={at}")).unwrap())
            .collect();
        for field in &fields {
            keep(field, "warmhop", ours.clone(), found(&app));
        }
        let known = |field| find(field, &app, "warmhop", &ours, WallTime(0)).is_some();
        let count = fields.iter().filter(|field| known(field)).count();
        assert!((1..=KNOWN_MAX).contains(&count), "{count}");
        let long = HeaderValue::from_str(&"x".repeat(FIELD_BYTES_MAX + 1)).unwrap();
        keep(&long, "warmhop", ours.clone(), found(&app));
        assert!(!known(&long));
    }
}
