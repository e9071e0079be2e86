//! A configuration as TOML, with every default filled in. It can be read back to the same
//! configuration, except for the admin token, which is not shown. `warmhop check` prints it
//! [without secrets](Config::without_secrets).

use std::fmt;
use std::path::Path;

use serde::Serialize;
use toml::Value;

use warmhop::Match;
use warmhop::config::ScalePolicy;
use warmhop::cookie::CookieSpec;

use super::read::life::{alive_text, ready_text, wake_text};
use super::{AccessTo, App, Config, Http, Inherit, Mesh, Session, duration_text, memory};

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cluster = {}", text(&self.cluster))?;

        writeln!(f, "\n[peer]\nname = {}", text(self.peer.name.as_str()))?;
        match &self.peer.zone {
            Some(zone) => writeln!(f, "zone = {}", text(zone))?,
            None => writeln!(f, "# zone is not set: no peer is nearer than another")?,
        }
        print_http(&self.http, f)?;
        print_mesh(&self.mesh, f)?;
        writeln!(f, "\n[admin]\nlisten = \"{}\"", self.admin.listen)?;
        match &self.admin.token {
            Some(_) => writeln!(f, "token = \"(set-but-not-shown)\"")?,
            None => writeln!(f, "# token is not set: loopback only")?,
        }
        print_session(&self.session, self.http.reveal, f)?;
        writeln!(f, "\n[log]")?;
        match &self.log.access {
            Some(AccessTo::Stderr) => writeln!(f, "access = \"stderr\"")?,
            Some(AccessTo::File(file)) => writeln!(f, "access = {}", path(file))?,
            None => writeln!(f, "# access is not set: requests that succeed are not logged")?,
        }
        match self.log.access_format {
            Some(format) => writeln!(f, "access_format = {}", value(format))?,
            None => writeln!(
                f,
                "# access_format is not set: text, or JSON on standard error where the log is"
            )?,
        }
        writeln!(f, "access_query = {}", self.log.access_query)?;
        match &self.log.level {
            Some(level) => writeln!(f, "level = {}", text(level))?,
            None => writeln!(f, "# level is not set: events of the peer, and what its apps print")?,
        }
        writeln!(f, "\n[run]")?;
        match self.run.threads {
            Some(threads) => writeln!(f, "threads = {threads}")?,
            None => writeln!(f, "# threads is not set: one for each core that it may use")?,
        }
        self.apps.iter().try_for_each(|app| print_app(app, f))
    }
}

fn print_http(http: &Http, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let listen: Vec<String> = http.listen.iter().map(ToString::to_string).collect();
    writeln!(f, "\n[http]\nlisten = {}", value(&listen))?;
    match &http.tls {
        Some(tls) => {
            writeln!(f, "tls = {{ cert = {}, key = {} }}", path(&tls.cert), path(&tls.key))?;
        }
        None => writeln!(f, "# tls is not set: plain HTTP")?,
    }
    writeln!(f, "reveal = {}", http.reveal)?;
    match &http.error_page {
        Some(file) => writeln!(f, "error_page = {}", path(file))?,
        None => writeln!(f, "# error_page is not set: a page of the mesh's own")?,
    }
    let limits = &http.limits;
    writeln!(f, "memory = \"{}\"", memory::text(limits.memory))?;
    writeln!(f, "connections_per_address = {}", limits.connections_per_address)?;
    writeln!(f, "body_rate = \"{}\"", memory::text(limits.body_rate))?;
    writeln!(f, "body_timeout = \"{}\"", duration_text(limits.body_timeout))?;
    let trusted: Vec<String> = http.trusted_proxies.texts().collect();
    writeln!(f, "trusted_proxies = {}", value(&trusted))?;
    writeln!(f, "proxy_protocol = {}", http.proxy_protocol)?;
    writeln!(f, "drain_grace = \"{}\"", duration_text(http.drain_grace))?;
    Ok(())
}

fn print_mesh(mesh: &Mesh, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "\n[mesh]\nlisten = \"{}\"", mesh.listen)?;
    let advertise = mesh.advertise.unwrap_or(mesh.listen);
    if advertise.port() == 0 {
        writeln!(f, "# advertise is not set: the port that the system chooses")?;
    } else {
        writeln!(f, "advertise = \"{advertise}\"")?;
    }
    writeln!(f, "seeds = {}", value(&mesh.seeds))?;
    writeln!(f, "identity = {}", path(&mesh.identity))?;
    let refused: Vec<String> = mesh.refuse.texts().collect();
    writeln!(f, "refuse = {}", value(&refused))?;
    match &mesh.cookie_key[..] {
        [] => {}
        [file] => writeln!(f, "cookie_key = {}", path(file))?,
        files => {
            let files: Vec<String> = files.iter().map(|file| path(file)).collect();
            writeln!(f, "cookie_key = [{}]", files.join(", "))?;
        }
    }
    Ok(())
}

fn print_session(session: &Session, reveal: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let policy = &session.policy;
    writeln!(f, "\n[session]\ncopies = {}", policy.copies)?;
    writeln!(f, "ttl = \"{}\"", duration_text(policy.ttl))?;
    writeln!(f, "memory = \"{}\"", memory::text(policy.memory_bytes_max))?;
    writeln!(f, "without_majority = {}", value(policy.without_majority))?;
    writeln!(f, "state_bytes_max = {}", policy.state_bytes_max)?;
    writeln!(f, "stored_response_bytes_max = {}", policy.stored_response_bytes_max)?;
    writeln!(f, "cookie = {}", cookie(&policy.cookie, reveal))?;
    match session.redis {
        Some(addr) => writeln!(f, "redis = \"{addr}\"")?,
        None => writeln!(f, "# redis is not set: no endpoint for session libraries")?,
    }
    writeln!(f, "redis_events = \"{}\"", session.redis_events)?;
    Ok(())
}

fn matching(wanted: &Match) -> String {
    let hosts: Vec<String> = wanted.hosts.iter().map(|host| text(&host.to_string())).collect();
    let path = text(&wanted.path);
    match &hosts[..] {
        [] => format!("{{ path = {path} }}"),
        [host] => format!("{{ host = {host}, path = {path} }}"),
        several => format!("{{ host = [{}], path = {path} }}", several.join(", ")),
    }
}

fn cookie(spec: &CookieSpec, reveal: bool) -> String {
    let same_site = spec.same_site.label().to_ascii_lowercase();
    let mut keys = format!("name = {}, same_site = {}", text(&spec.name), text(&same_site));
    if let Some(secure) = spec.secure {
        keys.push_str(&format!(", secure = {secure}"));
    }
    if let Some(domain) = &spec.domain {
        keys.push_str(&format!(", domain = {}", text(domain)));
    }
    keys.push_str(&format!(", route = {}", text(spec.route_name(reveal).label())));
    format!("{{ {keys} }}")
}

fn print_app(app: &App, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (spec, policy) = (&app.spec, &app.spec.policy);
    writeln!(f, "\n[[app]]\nname = {}", text(spec.name.as_str()))?;
    let matches: Vec<String> = spec.matches.iter().map(matching).collect();
    match &matches[..] {
        [one] => writeln!(f, "match = {one}")?,
        several => writeln!(f, "match = [{}]", several.join(", "))?,
    }
    writeln!(f, "strip_prefix = {}", spec.strip_prefix)?;
    if app.run.is_empty() {
        writeln!(f, "# run is not set: other peers run it")?;
    } else {
        writeln!(f, "run = {}", value(&app.run))?;
    }
    print_environment(app, f)?;
    writeln!(f, "{}", ready_text(&app.ready, text))?;
    match alive_text(&app.alive, &policy.alive, text) {
        Some(alive) => writeln!(f, "{alive}")?,
        None => {
            writeln!(f, "# alive is not set: a copy is probed only if its requests fail or hang")?
        }
    }
    match policy.head_timeout {
        Some(within) => writeln!(f, "head_timeout = \"{}\"", duration_text(within))?,
        None => writeln!(f, "# head_timeout is not set: an answer may take any time to begin")?,
    }
    match policy.concurrency {
        Some(places) => writeln!(f, "concurrency = {places}")?,
        None => {
            writeln!(f, "# concurrency is not set: a copy serves any number of requests at once")?
        }
    }
    match policy.concurrency_per_address {
        Some(share) => writeln!(f, "concurrency_per_address = {share}")?,
        None => writeln!(
            f,
            "# concurrency_per_address is not set: of 8 or more places a client may hold all but one"
        )?,
    }
    match &spec.version {
        Some(version) => writeln!(f, "version = {}", text(version.as_str()))?,
        None => writeln!(f, "# version is not set")?,
    }
    match policy.scale {
        Some(ScalePolicy { at_percent, max, .. }) => {
            let at = f64::from(at_percent) / 100.0;
            writeln!(f, "scale = {{ at = {at:?}, max = {max} }}")?;
        }
        None => writeln!(f, "# scale is not set: no copy starts because others are busy")?,
    }
    match wake_text(&policy.wake, text) {
        Some(wake) => writeln!(f, "{wake}")?,
        None => writeln!(f, "# wake is not set: every request starts the app")?,
    }
    writeln!(f, "protocol = {}", value(app.protocol))?;
    print_confinement(app, f)?;
    writeln!(f, "start = {}", value(policy.start))?;
    match policy.stop_when_idle {
        Some(idle) => writeln!(f, "stop_when_idle = \"{}\"", duration_text(idle))?,
        None => writeln!(f, "# stop_when_idle is not set: never")?,
    }
    writeln!(f, "keep_ready = {}", policy.keep_ready)?;
    let by = policy.session_by.iter().map(|by| format!("{} = {}", by.place(), text(by.name())));
    match by.collect::<Vec<_>>().join(", ") {
        by if by.is_empty() => writeln!(f, "session = {}", value(policy.session))?,
        by => writeln!(f, "session = {{ pinned = true, by = {{ {by} }} }}")?,
    }
    writeln!(f, "effects = {}", value(policy.effects))?;
    writeln!(f, "max_wait = \"{}\"", duration_text(policy.max_wait))?;
    writeln!(f, "waiting_max = {}", policy.waiting_max)?;
    writeln!(f, "starting_page = {}", policy.starting_page)?;
    writeln!(f, "stop_grace = \"{}\"", duration_text(policy.stop_grace))
}

/// The folder and the variables of the app's processes.
fn print_environment(app: &App, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "dir = {}", path(&app.dir))?;
    match &app.inherit_env {
        Inherit::All => writeln!(f, "inherit_env = true")?,
        Inherit::Only(names) if names.is_empty() => writeln!(f, "inherit_env = false")?,
        Inherit::Only(names) => writeln!(f, "inherit_env = {}", value(names))?,
    }
    match &app.env_file {
        Some(file) => writeln!(f, "env_file = {}", path(file))?,
        None => writeln!(f, "# env_file is not set: its variables are those of env")?,
    }
    let env: Vec<String> =
        app.env.iter().map(|(name, set)| format!("{} = {}", key(name), text(set))).collect();
    if env.is_empty() {
        writeln!(f, "env = {{}}")?;
    } else {
        writeln!(f, "env = {{ {} }}", env.join(", "))?;
    }
    Ok(())
}

/// The user and the limits of the app's processes.
fn print_confinement(app: &App, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (key, name) in [("user", &app.wanted.user), ("group", &app.wanted.group)] {
        match name {
            Some(name) => writeln!(f, "{key} = {}", text(name))?,
            None => writeln!(f, "# {key} is not set: the peer's own")?,
        }
    }
    let limits =
        [("memory", app.wanted.memory), ("files", app.wanted.files), ("cpu", app.wanted.cpu)];
    let mut limits: Vec<String> = (limits.into_iter())
        .filter_map(|(key, limit)| Some((key, limit?)))
        .map(|(key, limit)| match key {
            "memory" => format!("memory = \"{}\"", memory::text(limit)),
            key => format!("{key} = {limit}"),
        })
        .collect();
    limits.extend(app.wanted.cgroup.then(|| "cgroup = true".to_owned()));
    if !limits.is_empty() {
        writeln!(f, "limits = {{ {} }}", limits.join(", "))?;
    }
    Ok(())
}

/// A string in quotes, escaped, with `$${` for `${`.
fn text(text: &str) -> String {
    key(&text.replace("${", "$${"))
}

/// A key in quotes, escaped: variables are not replaced in a key.
fn key(text: &str) -> String {
    // A literal with single quotes is TOML too, but basic strings are read the same way everywhere.
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn path(path: &Path) -> String {
    text(&path.to_string_lossy())
}

/// An enum or a list of texts.
fn value(serializable: impl Serialize) -> String {
    match Value::try_from(serializable) {
        Ok(Value::String(plain)) => text(&plain),
        Ok(Value::Array(items)) => {
            let items: Vec<String> = items.iter().filter_map(Value::as_str).map(text).collect();
            format!("[{}]", items.join(", "))
        }
        other => unreachable!("only texts and lists of texts are printed so, not {other:?}"),
    }
}
