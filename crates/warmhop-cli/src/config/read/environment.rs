//! The keys that decide which variables an app has in its environment.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Field, Table};
use crate::child::environment;
use crate::child::launch::Inherit;

/// The most variables that an app can be configured to inherit.
const NAMES_MAX: usize = 1_000;

/// Whether an app inherits the peer's environment, or which of its variables.
pub(super) fn read_inherit(table: &mut Table<'_>) -> Inherit {
    let Some(field) = table.take("inherit_env") else { return Inherit::default() };
    match field.value.as_bool() {
        Some(true) => return Inherit::All,
        Some(false) => return Inherit::Only(Vec::new()),
        None => {}
    }
    let expected = "true, false, or a list of names: [\"HOME\", \"LANG\"]";
    let items = field.array_of(expected).unwrap_or_default();
    if items.len() > NAMES_MAX {
        field.report_found(format!("at most {NAMES_MAX} names"));
    }
    let name = |field: &Field<'_>| {
        let text = field.text()?;
        if text.is_empty() || text.contains(['=', '\0']) {
            field.report("a variable's name is empty or has = or NUL in it", "correct the name");
        }
        Some(text.to_owned())
    };
    Inherit::Only(items.iter().filter_map(name).collect())
}

/// The file of an app's variables. If it is missing here, it may be on the machine that the app
/// runs on.
pub(super) fn read_file(table: &mut Table<'_>) -> Option<PathBuf> {
    let field = table.take("env_file")?;
    let file = field.path()?;
    match environment::read_file(&file) {
        Ok(_) => {}
        Err(error) if error.is_missing => {
            field.warn(error.to_string(), "put it there before the app starts");
        }
        Err(error) => field.report(error.to_string(), "correct that file, or name another"),
    }
    Some(file)
}

/// The variables in an app's table. `redis` says whether the mesh keeps sessions for session
/// libraries.
pub(super) fn read_env(table: &mut Table<'_>, redis: bool) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let Some(variables) = table.table("env") else { return env };
    for (name, value) in variables.entries {
        let field = variables.field(name.get_ref(), value);
        if name.get_ref().is_empty() || name.get_ref().contains(['=', '\0']) {
            field.report("a variable's name is empty or has = or NUL in it", "rename it");
        } else if name.get_ref() == "PORT" {
            field.report(
                "warmhop sets this variable itself, to the port that it chooses for the app",
                "remove it, and let the app listen on 127.0.0.1:$PORT",
            );
        } else if name.get_ref() == "REDIS_URL" && redis {
            field.report(
                "warmhop sets this variable itself, to the address of [session] redis",
                "remove it, or name a Redis of the app's own in another variable",
            );
        } else if field.value.as_str().is_none() {
            // Not by its value: it may be a secret.
            field.report("its value is not a text", "put it in quotes");
        } else if let Some(text) = field.text() {
            if text.contains('\0') {
                field.report("the value has a NUL character in it", "remove it");
            }
            env.insert(name.get_ref().to_string(), text.to_owned());
        }
    }
    env
}
