//! The keys of an app's life: when it is ready, whether it is alive, and how much one copy serves.

use std::time::Duration;

use warmhop::config::{AlivePolicy, AppPolicy, ScalePolicy, WakePolicy};

use super::{Field, Table, duration_text, host, url_path};
use crate::config::{Alive, Ready};

/// The most statuses that may count as a good answer.
const STATUSES_MAX: usize = 16;
/// The most programs, and the most paths, that do not wake an app.
const WAKE_ITEMS_MAX: usize = 64;
/// The most bytes of one of them.
const WAKE_BYTES_MAX: usize = 256;

pub(super) fn read_ready(table: &mut Table<'_>, app_host: Option<&str>) -> Ready {
    let mut ready = Ready { host: app_host.map(str::to_owned), ..Ready::default() };
    let Some(mut probe) = table.table("ready") else { return ready };
    ready.path = probe.take("path").and_then(|field| field.checked(url_path));
    if let Some(name) = probe.take("host").and_then(|field| field.checked(host)) {
        ready.host = Some(name);
    }
    if let Some(field) = probe.take("status") {
        ready.status = statuses(&field);
    }
    let bounds = Duration::from_millis(100)..=Duration::from_secs(3600);
    probe.set_duration("timeout", bounds, &mut ready.timeout);
    let bounds = Duration::from_millis(10)..=Duration::from_secs(60);
    probe.set_duration("every", bounds, &mut ready.every);
    let bounds = Duration::from_millis(100)..=Duration::from_secs(600);
    probe.set_duration("probe_timeout", bounds, &mut ready.probe_timeout);
    let asks_http = ready.path.is_some();
    for key in ["host", "status"] {
        if !asks_http && probe.has(key) {
            probe.report_missing(
                "path",
                &format!("{key} applies to the answers of a path, and no path is set"),
                "add path = \"/healthz\", or whatever the app answers at",
            );
        }
    }
    probe.finish();
    ready
}

/// One status, or a list of them.
fn statuses(field: &Field<'_>) -> Vec<u16> {
    let one = |field: &Field<'_>| {
        let number = field
            .value
            .as_integer()
            .and_then(|integer| u16::from_str_radix(integer.as_str(), integer.radix()).ok())
            .filter(|status| (200..=599).contains(status));
        if number.is_none() {
            field.report_found("a status from 200 to 599, or a list of them");
        }
        number
    };
    if field.value.as_array().is_none() {
        return one(field).into_iter().collect();
    }
    let items = field.array().unwrap_or_default();
    if items.is_empty() || items.len() > STATUSES_MAX {
        field.report(
            format!("{} statuses are given; 1 to {STATUSES_MAX} are allowed", items.len()),
            "name those that count, or leave status out: 2xx and 3xx",
        );
    }
    items.iter().filter_map(one).collect()
}

pub(super) fn read_alive(table: &mut Table<'_>, ready: &Ready, policy: &mut AppPolicy) -> Alive {
    let mut alive = Alive::default();
    let Some(mut probe) = table.table("alive") else { return alive };
    alive.path = probe.take("path").and_then(|field| field.checked(url_path));
    let bounds = Duration::from_millis(100)..=Duration::from_secs(600);
    probe.set_duration("timeout", bounds, &mut alive.timeout);
    let bounds = Duration::from_millis(100)..=Duration::from_secs(3600);
    let mut kept = AlivePolicy::default().with(|kept| kept.every = Some(Duration::from_secs(5)));
    if let Some(every) = probe.duration("every", bounds) {
        kept.every = Some(every);
    }
    let mut misses = kept.misses as usize;
    probe.set_usize("misses", 1..=100, &mut misses);
    kept.misses = u32::try_from(misses).unwrap_or(kept.misses);
    if let Some(restart) = probe.take("restart").and_then(|field| field.boolean()) {
        kept.restart = restart;
    }
    if alive.path.is_none() && ready.path.is_none() {
        probe.report_missing(
            "path",
            "no path is probed, and a copy that hangs still accepts connections",
            "add path = \"/healthz\", or whatever the app answers at when it is well",
        );
    }
    policy.alive = kept;
    probe.finish();
    alive
}

pub(super) fn read_load(table: &mut Table<'_>, policy: &mut AppPolicy) {
    let bounds = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
    policy.head_timeout = table.duration("head_timeout", bounds);
    if table.has("concurrency") {
        let mut places = 0;
        table.set_usize("concurrency", 1..=100_000, &mut places);
        policy.concurrency = u32::try_from(places).ok().filter(|places| *places > 0);
    } else {
        table.known.push("concurrency");
    }
    read_share(table, policy);
    read_scale(table, policy);
    read_wake(table, policy);
}

fn read_share(table: &mut Table<'_>, policy: &mut AppPolicy) {
    const KEY: &str = "concurrency_per_address";
    if !table.has(KEY) {
        table.known.push(KEY);
        return;
    }
    let Some(places) = policy.concurrency else {
        if let Some(field) = table.take(KEY) {
            field.report(
                "it is a share of concurrency, which the app does not set",
                "add concurrency = 4 to the app, or how many requests one copy serves well at once",
            );
        }
        return;
    };
    let mut share = 0;
    table.set_usize(KEY, 1..=places as usize, &mut share);
    policy.concurrency_per_address = u32::try_from(share).ok().filter(|share| *share > 0);
}

fn read_scale(table: &mut Table<'_>, policy: &mut AppPolicy) {
    let Some(mut inner) = table.table("scale") else { return };
    let mut scale = ScalePolicy::default();
    if let Some(at) = inner.take("at").and_then(|field| field.percent()) {
        scale.at_percent = at;
    }
    let mut max = scale.max as usize;
    inner.set_usize("max", 2..=64, &mut max);
    scale.max = u32::try_from(max).unwrap_or(scale.max);
    if policy.concurrency.is_none() {
        inner.report_missing(
            "at",
            "is a share of concurrency, which the app does not set",
            "add concurrency = 4 to the app, or how many requests one copy serves well at once",
        );
    }
    policy.scale = Some(scale);
    inner.finish();
}

fn read_wake(table: &mut Table<'_>, policy: &mut AppPolicy) {
    let Some(mut inner) = table.table("wake") else { return };
    let mut texts = |name, is_right: fn(&str) -> bool, remedy: &str| {
        let Some(field) = inner.take(name) else { return Vec::new() };
        let items = field.array().unwrap_or_default();
        if items.len() > WAKE_ITEMS_MAX {
            field.report(
                format!("{} are more than {WAKE_ITEMS_MAX}", items.len()),
                "name the most common ones, or beginnings of paths, such as \"/status/*\"",
            );
        }
        let one = |item: &Field<'_>| {
            item.checked(
                |text| if is_right(text) { Ok(text.to_owned()) } else { Err(remedy.into()) },
            )
        };
        items.iter().filter_map(one).collect()
    };
    let is_word = |text: &str| !text.is_empty() && text.len() <= WAKE_BYTES_MAX;
    let remedy = "expected a part of User-Agent, such as \"kube-probe\", of 1 to 256 bytes";
    policy.wake.not_user_agent = texts("not_user_agent", is_word, remedy);
    let is_path = |text: &str| text.starts_with('/') && text.len() <= WAKE_BYTES_MAX;
    let remedy = "expected a path, such as \"/healthz\" or \"/status/*\", of 1 to 256 bytes";
    policy.wake.not_path = texts("not_path", is_path, remedy);
    inner.finish();
}

/// The keys of `wake` as they are printed; absent if all requests wake the app.
pub(in crate::config) fn wake_text(wake: &WakePolicy, quote: fn(&str) -> String) -> Option<String> {
    if wake.is_for_all() {
        return None;
    }
    let list =
        |items: &[String]| items.iter().map(|item| quote(item)).collect::<Vec<_>>().join(", ");
    Some(format!(
        "wake = {{ not_user_agent = [{}], not_path = [{}] }}",
        list(&wake.not_user_agent),
        list(&wake.not_path)
    ))
}

/// The keys of a table as they are printed: `ready = { … }`.
pub(in crate::config) fn ready_text(ready: &Ready, quote: fn(&str) -> String) -> String {
    let mut parts = Vec::new();
    if let Some(path) = &ready.path {
        parts.push(format!("path = {}", quote(path)));
        if let Some(host) = &ready.host {
            parts.push(format!("host = {}", quote(host)));
        }
        if !ready.status.is_empty() {
            let statuses: Vec<String> = ready.status.iter().map(u16::to_string).collect();
            parts.push(format!("status = [{}]", statuses.join(", ")));
        }
    }
    parts.push(format!("timeout = \"{}\"", duration_text(ready.timeout)));
    parts.push(format!("every = \"{}\"", duration_text(ready.every)));
    parts.push(format!("probe_timeout = \"{}\"", duration_text(ready.probe_timeout)));
    format!("ready = {{ {} }}", parts.join(", "))
}

/// The same of `alive`; absent where it is not set.
pub(in crate::config) fn alive_text(
    alive: &Alive,
    policy: &AlivePolicy,
    quote: fn(&str) -> String,
) -> Option<String> {
    let every = policy.every?;
    let path = alive.path.as_ref().map(|path| format!("path = {}, ", quote(path)));
    Some(format!(
        "alive = {{ {}every = \"{}\", timeout = \"{}\", misses = {}, restart = {} }}",
        path.unwrap_or_default(),
        duration_text(every),
        duration_text(alive.timeout),
        policy.misses,
        policy.restart
    ))
}
