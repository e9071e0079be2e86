//! `[[app]] match` and `strip_prefix`: which requests are for the app.

use std::collections::BTreeMap;
use std::ops::Range;

use warmhop::{HostPattern, Match};

use super::{App, Field, Reader, Table, host, url_path};

/// More tables for one app, or more hosts in one, are a mistake: a name with `*.` covers many.
const MATCHES_MAX: usize = 64;

/// One table, or a list of them.
pub(super) fn read(table: &mut Table<'_>) -> (Vec<Match>, bool) {
    let mut matches = Vec::new();
    if let Some(field) = table.take("match") {
        if field.value.as_array().is_some() {
            let items = field.array().unwrap_or_default();
            if items.is_empty() || items.len() > MATCHES_MAX {
                field.report(
                    format!("{} tables are given; 1 to {MATCHES_MAX} are allowed", items.len()),
                    "leave match out for every request, or name each kind of request once",
                );
            }
            matches.extend(items.into_iter().filter_map(Field::into_table).map(one));
        } else if field.value.as_table().is_some() {
            matches.extend(field.into_table().map(one));
        } else {
            field.report_found("a table, { path = \"/shop\" }, or a list of them");
        }
    }
    if matches.is_empty() {
        matches.push(Match::all());
    }
    let strip_prefix = table.take("strip_prefix").and_then(|field| field.boolean());
    (matches, strip_prefix.unwrap_or_default())
}

fn one(mut table: Table<'_>) -> Match {
    let mut wanted = Match::all();
    if let Some(field) = table.take("host") {
        if field.value.as_array().is_some() {
            let items = field.array().unwrap_or_default();
            if items.is_empty() || items.len() > MATCHES_MAX {
                field.report(
                    format!("{} hosts are given; 1 to {MATCHES_MAX} are allowed", items.len()),
                    "leave host out for any host",
                );
            }
            wanted.hosts = items.iter().filter_map(pattern).collect();
        } else {
            wanted.hosts = pattern(&field).into_iter().collect();
        }
    }
    if let Some(field) = table.take("path")
        && let Some(path) = field.checked(url_path)
    {
        if path.contains('*') {
            field.warn(
                "a path matches all that lies below it, and a * is only itself",
                "leave the * out: \"/shop\" is /shop and all of /shop/…",
            );
        }
        wanted.path = path;
    }
    table.finish();
    wanted
}

fn pattern(field: &Field<'_>) -> Option<HostPattern> {
    field.checked(|text| {
        let parent = text.strip_prefix("*.").filter(|parent| !parent.starts_with(['.', '[']));
        let name = host(parent.unwrap_or(text)).map_err(|_| {
            "expected a host without scheme and port, such as \"shop.example.com\", or all of one \
             label more: \"*.example.com\""
        })?;
        Ok(HostPattern::new(&if parent.is_some() { format!("*.{name}") } else { name }))
    })
}

/// Reports each claim of an app that an app before it has as well.
pub(super) fn check(reader: &Reader<'_>, apps: &[(App, Range<usize>)]) {
    let mut claimed: BTreeMap<_, (usize, usize)> = BTreeMap::new();
    for (at, (app, span)) in apps.iter().enumerate() {
        for (nth, one) in app.spec.matches.iter().enumerate() {
            let taken = one.claims().find_map(|claim| {
                let before = *claimed.entry(claim).or_insert((at, nth));
                (before.0 != at).then_some((claim, before))
            });
            let Some(((host, path), (other, nth_of_other))) = taken else { continue };
            let (other, other_span) = &apps[other];
            let place = place_of(reader, app, nth, span);
            let line = place_of(reader, other, nth_of_other, other_span).1.line;
            let host = host.map_or("any host".into(), |host| format!("host {host}"));
            reader.report_at(
                Some(place.1),
                place.0,
                format!(
                    "line {line} gives the app {} the same requests: {host}, path {}",
                    other.spec.name,
                    if path.is_empty() { "/" } else { path }
                ),
                "give one of them another host or path",
            );
            // One mistake is reported once.
            break;
        }
    }
}

/// The key and the place of an app's nth match.
fn place_of(
    reader: &Reader<'_>,
    app: &App,
    nth: usize,
    span: &Range<usize>,
) -> (String, super::Place) {
    let key = format!("app.{}.match", app.spec.name);
    let places = reader.places.borrow();
    let one = format!("{key}[{nth}]");
    if let Some(place) = places.get(&one) {
        return (one, *place);
    }
    let place = places.get(&key).copied().unwrap_or_else(|| reader.place(span.start));
    (key, place)
}
