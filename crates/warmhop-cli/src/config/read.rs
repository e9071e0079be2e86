//! From TOML text to a [`Config`], collecting every problem on the way.

mod cookie;
mod environment;
mod http;
mod log;
mod matching;
mod mesh;
mod session;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;
use warmhop::config::{AppPolicy, SessionPolicy, StartMode};
use warmhop::ids::{AppName, PeerId};
use warmhop::{AppSpec, AppVersion};

use crate::child::STATE_BYTES_MAX;
use crate::redis::Events;

use super::{
    Admin, App, Config, Http, Peer, Place, Places, Problem, Protocol, Run, Session, cluster_name,
    duration_text, memory,
};

pub(super) mod life;
mod table;
mod variables;
mod wanted;

use self::table::{Field, Reader, Table};

/// Limits the loops over apps in a mistaken file.
const APPS_MAX: usize = 1_000;
/// More threads are a mistake on any machine; more than there are cores is a warning when the peer
/// starts.
const THREADS_MAX: usize = 1_024;

pub(super) fn parse(
    file: &Path,
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<(Config, Vec<Problem>), Vec<Problem>> {
    let reader = Reader::new(file, text);
    let (mut document, errors) = DeTable::parse_recoverable(text);
    // Later errors are mostly consequences of the first: one missing bracket breaks every line
    // below it.
    let first = errors.into_iter().min_by_key(|error| error.span().map(|span| span.start));
    if let Some(error) = first {
        let what = error.message().trim().replace('\n', ", ");
        reader.report(error.span(), "", what, "mend the TOML there");
        return Err(reader.into_problems());
    }

    let substituted = RefCell::new(BTreeSet::new());
    let noted = |name: &str| {
        substituted.borrow_mut().insert(name.to_owned());
        variable(name)
    };
    for (key, value) in document.get_mut() {
        variables::expand(&reader, key.get_ref(), value, &noted);
    }

    let mut root = Table::root(&reader, document.get_ref());
    let cluster = read_cluster(&mut root);
    let peer = read_peer(&mut root);
    let http = http::read(&mut root);
    let name = peer.as_ref().map_or("NAME", |peer| peer.name.as_str());
    let mesh = mesh::read(&mut root, name);
    let admin = read_admin(&mut root);
    let mut session = read_session(&mut root);
    let log = log::read(&mut root);
    let run = read_run(&mut root);
    let apps = read_apps(&mut root, session.redis.is_some());
    root.finish();
    cookie::check(&reader, &mut session, &apps);
    check_ports(&reader, &http, &admin, &session);

    let folder = reader.folder.clone();
    let places = Places { file: file.to_path_buf(), by_key: reader.places.take() };
    let problems = reader.into_problems();
    if problems.iter().any(|problem| !problem.is_warning) {
        return Err(problems);
    }
    let Some(peer) = peer else {
        unreachable!("a missing peer was reported");
    };
    let substituted = substituted.into_inner();
    let mut config =
        Config { cluster, peer, http, mesh, admin, session, log, run, apps, substituted, places };
    config.mesh.identity = folder.join(&config.mesh.identity);
    Ok((config, problems))
}

fn read_cluster(root: &mut Table<'_>) -> String {
    match root.take("cluster") {
        Some(field) => field.checked(cluster_name).unwrap_or_default(),
        None => "warmhop".into(),
    }
}

fn read_peer(root: &mut Table<'_>) -> Option<Peer> {
    let remedy = "name this peer uniquely within its cluster: [peer] name = \"peer-1\"";
    let Some(mut table) = root.table("peer") else {
        if !root.has("peer") {
            root.reader.report(None, "peer.name", "the peer has no name", remedy);
        }
        return None;
    };
    let name = match table.take("name") {
        Some(field) => field.parsed::<PeerId>(),
        None => {
            table.report_missing("name", "the peer has no name", remedy);
            None
        }
    };
    let zone = table.take("zone").and_then(|field| {
        field.checked(|text| {
            // A zone has the form of a peer's name, since it travels in gossip as that does.
            PeerId::new(text)
                .map(String::from)
                .map_err(|invalid| format!("expected {}", invalid.expected))
        })
    });
    table.finish();
    name.map(|name| Peer { name, zone })
}

fn read_run(root: &mut Table<'_>) -> Run {
    let mut run = Run { threads: None };
    let Some(mut table) = root.table("run") else { return run };
    let mut threads = 0;
    table.set_usize("threads", 1..=THREADS_MAX, &mut threads);
    run.threads = NonZeroUsize::new(threads);
    table.finish();
    run
}

fn read_admin(root: &mut Table<'_>) -> Admin {
    let mut admin = Admin { listen: SocketAddr::from(([127, 0, 0, 1], 9001)), token: None };
    let Some(mut table) = root.table("admin") else { return admin };
    let mut listen_span = None;
    if let Some(field) = table.take("listen") {
        listen_span = Some(field.span.clone());
        admin.listen = field.socket_addr().unwrap_or(admin.listen);
    }
    let token_given = table.has("token");
    admin.token = table.take("token").and_then(|field| {
        let text = field.text()?;
        let visible = text.bytes().all(|b| b.is_ascii_graphic());
        if (16..=256).contains(&text.len()) && visible {
            return Some(text.to_owned());
        }
        field.report(
            "a token has 16 to 256 visible ASCII characters",
            "make one with `openssl rand -hex 32`",
        );
        None
    });
    if !admin.listen.ip().is_loopback() && !token_given {
        table.reader.report(
            listen_span,
            "admin.listen",
            format!(
                "{} can be reached from other machines, and anyone there could stop apps",
                admin.listen
            ),
            "listen on 127.0.0.1, or set [admin] token",
        );
    }
    table.finish();
    admin
}

fn read_session(root: &mut Table<'_>) -> Session {
    let mut policy =
        SessionPolicy::default().with(|policy| policy.memory_bytes_max = memory::default());
    let mut redis = None;
    let mut redis_events = Events::default();
    if let Some(mut table) = root.table("session") {
        table.set_usize("copies", 1..=3, &mut policy.copies);
        let ttl = Duration::from_secs(1)..=Duration::from_secs(366 * 86_400);
        table.set_duration("ttl", ttl, &mut policy.ttl);
        if let Some(field) = table.take("memory") {
            let given = field.value.as_str().and_then(memory::parse);
            match given.filter(|bytes| memory::BOUNDS.contains(bytes)) {
                Some(bytes) => policy.memory_bytes_max = bytes,
                None => field.report_found("a size from 1MiB to 16384GiB, such as \"512MiB\""),
            }
        }
        table.set_enum("without_majority", &["refuse", "serve"], &mut policy.without_majority);
        table.set_usize("state_bytes_max", 1..=STATE_BYTES_MAX, &mut policy.state_bytes_max);
        table.set_usize(
            "stored_response_bytes_max",
            0..=1 << 20,
            &mut policy.stored_response_bytes_max,
        );
        if let Some(keys) = table.table("cookie") {
            cookie::read(keys, &mut policy.cookie);
        }
        redis = table.take("redis").and_then(|field| {
            let addr = field.socket_addr()?;
            if !addr.ip().is_loopback() {
                let what =
                    format!("{addr} can be reached from other machines, and it has no passwords");
                field.report(&what, "listen on 127.0.0.1: it is for the apps of this machine");
            }
            Some(addr)
        });
        if let Some(field) = table.take("redis_events") {
            match field.value.as_str().and_then(|text| text.parse().ok()) {
                Some(events) => redis_events = events,
                None => field.report_found(
                    "letters of K E g $ l s h z x A, such as \"Egx\": as Redis' \
                     notify-keyspace-events",
                ),
            }
        }
        table.finish();
    }
    Session { policy, redis, redis_events }
}

/// `redis` says whether the mesh keeps sessions for session libraries.
fn read_apps(root: &mut Table<'_>, redis: bool) -> Vec<App> {
    let Some(field) = root.take("app") else { return Vec::new() };
    let items = field.array_of("an array of tables: [[app]]").unwrap_or_default();
    if items.len() > APPS_MAX {
        field.report(
            format!("{} apps are more than {APPS_MAX}", items.len()),
            "spread them over several clusters",
        );
        return Vec::new();
    }
    let mut apps: Vec<(App, Range<usize>)> = Vec::new();
    for item in items {
        let span = item.span.clone();
        let Some(app) = read_app(item, redis) else { continue };
        if let Some((other, at)) = apps.iter().find(|(other, _)| other.spec.name == app.spec.name) {
            let line = root.reader.place(at.start).line;
            root.reader.report(
                Some(span),
                format!("app.{}.name", app.spec.name),
                format!("line {line} names an app {} already", other.spec.name),
                "give each app its own name",
            );
            continue;
        }
        if redis && app.spec.name.as_str() == crate::redis::NAME {
            root.reader.report(
                Some(span),
                format!("app.{}.name", app.spec.name),
                "this name is reserved for the keys of the endpoint in [session] redis",
                "give the app another name",
            );
            continue;
        }
        apps.push((app, span));
    }
    matching::check(root.reader, &apps);
    apps.into_iter().map(|(app, _)| app).collect()
}

fn read_app(item: Field<'_>, redis: bool) -> Option<App> {
    let reader = item.reader;
    let mut table = item.into_table()?;
    // The app's name is read first, since every other key is reported with it.
    let name_remedy = "name it: [[app]] name = \"shop\"";
    let Some(name_field) = table.take("name") else {
        table.report_missing("name", "the app has no name", name_remedy);
        return None;
    };
    let name = name_field.parsed::<AppName>()?;
    table.path = format!("app.{name}");
    reader.places.borrow_mut().insert(table.path.clone(), reader.place(table.span.start));

    let mut spec = AppSpec::new(name);
    (spec.matches, spec.strip_prefix) = matching::read(&mut table);
    let ready = life::read_ready(&mut table, spec.host());
    spec.version = table.take("version").and_then(|field| field.parsed::<AppVersion>());
    let mut protocol = Protocol::default();
    table.set_enum("protocol", &["http1", "h2"], &mut protocol);
    spec.policy = read_policy(&mut table);
    let wanted = wanted::read(&mut table);
    let alive = life::read_alive(&mut table, &ready, &mut spec.policy);
    life::read_load(&mut table, &mut spec.policy);
    // The app's own deadline comes first, because its error has the last lines of output.
    spec.policy.start_timeout = ready.timeout + Duration::from_secs(10);

    let dir_field = table.take("dir");
    let dir = dir_field.as_ref().and_then(Field::path).unwrap_or_else(|| reader.folder.clone());
    let inherit_env = environment::read_inherit(&mut table);
    let env_file = environment::read_file(&mut table);
    let env = environment::read_env(&mut table, redis);
    let run_at = table.take("run").map(|field| (field.span.clone(), field));
    let run: Vec<String> = match &run_at {
        Some((_, field)) => field
            .array_of("an array: [\"node\", \"server.js\"]")
            .unwrap_or_default()
            .iter()
            .filter_map(|argument| argument.text().map(str::to_owned))
            .collect(),
        None => Vec::new(),
    };
    match &run_at {
        None if spec.policy.start != StartMode::Never => table.report_missing(
            "run",
            "there is nothing to run",
            "add run = [\"PROGRAM\", \"ARGUMENT\"], or start = \"never\" where other peers run it",
        ),
        Some((_, field)) if field.value.as_array().is_some_and(|run| run.is_empty()) => {
            field.report(
                "there is nothing to run",
                "name the program: run = [\"node\", \"server.js\"]",
            );
        }
        Some((_, field)) if run.iter().any(|argument| argument.contains('\0')) => {
            field.report("an argument has a NUL character in it", "remove it");
        }
        Some((_, field)) if spec.policy.start != StartMode::Never && !run.is_empty() => {
            if let Err(missing) = crate::child::find_program(&run[0], &dir, env.get("PATH")) {
                let blamed = dir_field.as_ref().filter(|_| missing.key == "dir");
                blamed.unwrap_or(field).warn(missing.what, missing.remedy);
            }
        }
        _ => {}
    }
    table.finish();
    Some(App { spec, run, dir, inherit_env, env_file, env, ready, alive, protocol, wanted })
}

fn read_policy(table: &mut Table<'_>) -> AppPolicy {
    let mut policy = AppPolicy::default();
    table.set_enum("start", &["on-request", "at-boot", "never"], &mut policy.start);
    let bounds = Duration::from_millis(100)..=Duration::from_secs(366 * 86_400);
    policy.stop_when_idle = table.duration("stop_when_idle", bounds);
    let mut keep_ready = 0;
    table.set_usize("keep_ready", 0..=16, &mut keep_ready);
    policy.keep_ready = u32::try_from(keep_ready).unwrap_or_default();
    session::read(table, &mut policy);
    table.set_enum("effects", &["anything", "session-only"], &mut policy.effects);
    let ten_minutes = Duration::from_secs(600);
    table.set_duration("max_wait", Duration::ZERO..=ten_minutes, &mut policy.max_wait);
    table.set_usize("waiting_max", 1..=100_000, &mut policy.waiting_max);
    if let Some(page) = table.take("starting_page").and_then(|field| field.boolean()) {
        policy.starting_page = page;
    }
    table.set_duration("stop_grace", Duration::ZERO..=ten_minutes, &mut policy.stop_grace);
    policy
}

/// Reports two listeners of one file on one TCP address, which can never both be bound.
fn check_ports(reader: &Reader<'_>, http: &Http, admin: &Admin, session: &Session) {
    let mut taken: Vec<(SocketAddr, String)> = Vec::new();
    let listeners = (http.listen.iter().enumerate())
        .map(|(at, addr)| (*addr, format!("http.listen[{at}]")))
        .chain([(admin.listen, "admin.listen".into())])
        .chain(session.redis.map(|addr| (addr, "session.redis".into())));
    for (addr, key) in listeners {
        if let Some((_, other)) = taken.iter().find(|(other, _)| *other == addr && addr.port() != 0)
        {
            let place = reader.places.borrow().get(&key).copied();
            reader.report_at(
                place,
                &key,
                format!("{addr} is {other} already"),
                "choose another port",
            );
        }
        taken.push((addr, key));
    }
}

/// A host name without port, in lower case.
fn host(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let is_ipv6 = bare.is_some_and(|bare| bare.parse::<std::net::Ipv6Addr>().is_ok());
    if (1..=253).contains(&text.len()) && (text.bytes().all(allowed) || is_ipv6) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("expected a host name without scheme and port, such as shop.example.com".into())
    }
}

/// The path of a URL, without query.
fn url_path(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&b);
    if text.starts_with('/') && text.len() <= 1024 && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("expected a path that begins with /, without query, such as /shop".into())
    }
}

/// Every key that was read on this thread since the last call.
#[cfg(test)]
pub(super) fn keys_looked_for() -> std::collections::BTreeSet<String> {
    table::looked_for::take()
}
