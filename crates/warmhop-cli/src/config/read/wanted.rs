//! `[[app]] user`, `group` and `limits`.

use super::Table;
use crate::host::confine::Wanted;

/// The app's user and its limits.
pub(super) fn read(table: &mut Table<'_>) -> Wanted {
    let mut wanted = Wanted::default();
    for (key, to) in [("user", &mut wanted.user), ("group", &mut wanted.group)] {
        *to = table.take(key).and_then(|field| field.text().map(str::to_owned));
    }
    if let Some(mut limits) = table.table("limits") {
        let mut memory = 0;
        limits.set_size("memory", (16 << 20)..=(1 << 50), &mut memory);
        wanted.memory = (memory > 0).then_some(memory);
        for (key, most, to) in
            [("files", 1 << 30, &mut wanted.files), ("cpu", 1024, &mut wanted.cpu)]
        {
            let mut number = 0;
            limits.set_usize(key, 1..=most, &mut number);
            *to = u64::try_from(number).ok().filter(|number| *number > 0);
        }
        wanted.cgroup = limits.take("cgroup").and_then(|field| field.boolean()).unwrap_or(false);
        limits.finish();
    }
    if let Err(cannot) = wanted.here(None)
        && let Some(field) = table.take(cannot.key)
    {
        field.warn(cannot.what, cannot.remedy);
    }
    wanted
}
