//! What is asked of the server and of the connection, and needs no key.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::cmd::{
    AT_ONCE, Keys, LONG, NOT_IN_SCRIPTS, Spec, TABLE, WORD_TOLD_MAX, WRITES, find, syntax,
    unknown_subcommand, word, wrong_count,
};
use super::connection::DATABASES;
use super::events::{Events, NoEvents};
use super::frame::{Reply, VALUE_BYTES_MAX, integer};
use super::glob;
use super::script::SPEAKS_AS;

/// The longest name that a client gives itself, in bytes.
const CLIENT_NAME_BYTES_MAX: usize = 256;
/// The setting by which Redis tells of changes of keys.
const EVENTS_SETTING: &str = "notify-keyspace-events";

/// What a connection tells of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Introduced {
    pub(super) id: i64,
    pub(super) version: u8,
    pub(super) index: u8,
    pub(super) name: Bytes,
    /// The library that it uses.
    pub(super) library: String,
    pub(super) library_version: String,
}

impl Introduced {
    pub(super) fn select(&mut self, args: &[Bytes]) -> Reply {
        let Some(index) = integer(&args[1]) else {
            return Reply::error("ERR", "value is not an integer or out of range");
        };
        let index = u8::try_from(index).ok().filter(|index| *index < DATABASES);
        let Some(index) = index else { return Reply::error("ERR", "DB index is out of range") };
        self.index = index;
        Reply::OK
    }

    pub(super) fn hello(&mut self, args: &[Bytes]) -> Reply {
        self.try_hello(args).unwrap_or_else(|refused| refused)
    }

    fn try_hello(&mut self, args: &[Bytes]) -> Result<Reply, Reply> {
        let mut rest = args[1..].iter();
        let mut version = self.version;
        if let Some(asked) = rest.next() {
            let asked = integer(asked).ok_or_else(|| {
                Reply::error("ERR", "Protocol version is not an integer or out of range")
            })?;
            version = u8::try_from(asked)
                .ok()
                .filter(|it| [2, 3].contains(it))
                .ok_or_else(|| Reply::error("NOPROTO", "unsupported protocol version"))?;
        }
        let mut name = None;
        while let Some(option) = rest.next() {
            match word(option).as_str() {
                "AUTH" => {
                    let user = rest.next().ok_or_else(syntax)?;
                    rest.next().ok_or_else(syntax)?;
                    if let Some(refused) = refuse_user(Some(user)) {
                        return Err(refused);
                    }
                }
                "SETNAME" => name = Some(client_name(rest.next().ok_or_else(syntax)?)?),
                _ => {
                    let told = String::from_utf8_lossy(option);
                    let told: String = told.chars().take(WORD_TOLD_MAX).collect();
                    let detail = format!("Syntax error in HELLO option '{told}'");
                    return Err(Reply::error("ERR", detail));
                }
            }
        }
        self.version = version;
        self.name = name.unwrap_or_else(|| std::mem::take(&mut self.name));
        let number = |number| Reply::Number(number);
        let pairs = [
            ("server", Reply::text("redis")),
            ("version", Reply::text(SPEAKS_AS)),
            ("proto", number(i64::from(self.version))),
            ("id", number(self.id)),
            ("mode", Reply::text("standalone")),
            ("role", Reply::text("master")),
            ("modules", Reply::Array(Vec::new())),
        ];
        Ok(Reply::Map(pairs.map(|(name, value)| (Reply::text(name), value)).into()))
    }

    /// Answers `CLIENT`.
    pub(super) fn client(&mut self, args: &[Bytes]) -> Reply {
        let subcommand = word(&args[1]);
        let wrong = || wrong_count(&format!("client|{}", subcommand.to_ascii_lowercase()));
        match (subcommand.as_str(), &args[2..]) {
            ("SETNAME", [name]) => match client_name(name) {
                Ok(name) => {
                    self.name = name;
                    Reply::OK
                }
                Err(refused) => refused,
            },
            ("GETNAME", []) if self.name.is_empty() => Reply::Null,
            ("GETNAME", []) => Reply::Bytes(self.name.clone()),
            ("ID", []) => Reply::Number(self.id),
            ("GETREDIR", []) => Reply::Number(-1),
            ("INFO", []) => Reply::text(format!("{}\n", self.line())),
            ("LIST", _) => Reply::text(format!("{}\n", self.line())),
            ("SETINFO", [what, value]) => {
                let value: String =
                    String::from_utf8_lossy(value).chars().take(WORD_TOLD_MAX).collect();
                match word(what).as_str() {
                    "LIB-NAME" => self.library = value,
                    "LIB-VER" => self.library_version = value,
                    other => {
                        return Reply::error("ERR", format!("Unrecognized option '{other}'"));
                    }
                }
                Reply::OK
            }
            ("NO-EVICT" | "NO-TOUCH", [_]) | ("UNPAUSE", []) => Reply::OK,
            ("REPLY", [how]) if word(how) == "ON" => Reply::OK,
            (
                "SETNAME" | "GETNAME" | "ID" | "GETREDIR" | "INFO" | "SETINFO" | "NO-EVICT"
                | "NO-TOUCH" | "UNPAUSE",
                _,
            ) => wrong(),
            // What Redis of this version has, and is not here.
            (
                other @ ("CACHING" | "KILL" | "NOEVICT" | "PAUSE" | "REPLY" | "TRACKING"
                | "TRACKINGINFO" | "UNBLOCK"),
                _,
            ) => {
                let detail = format!("CLIENT {other} is not offered here; see docs/redis.md");
                Reply::error("ERR", detail)
            }
            _ => unknown_subcommand("CLIENT", &args[1]),
        }
    }

    fn line(&self) -> String {
        let name = String::from_utf8_lossy(&self.name);
        format!(
            "id={} addr=127.0.0.1:0 laddr=127.0.0.1:0 name={name} age=0 idle=0 flags=N db={} sub=0 \
             psub=0 multi=-1 cmd=client user=default resp={} lib-name={} lib-ver={}",
            self.id, self.index, self.version, self.library, self.library_version
        )
    }

    /// Answers what is about the server, and changes nothing.
    pub(super) fn server(args: &[Bytes], now: SystemTime, events: Events) -> Reply {
        let spec = find(&args[0]).map_or("", |spec| spec.name);
        let subcommand = args.get(1).map(|it| word(it)).unwrap_or_default();
        let empty = || Reply::Array(Vec::new());
        let not_offered = || {
            let told: String = subcommand.chars().take(WORD_TOLD_MAX).collect();
            Reply::error("ERR", format!("{spec} {told} is not offered here; see docs/redis.md"))
        };
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        match (spec, subcommand.as_str()) {
            ("ECHO", _) => Reply::Bytes(args[1].clone()),
            ("TIME", _) => {
                let parts = [now.as_secs().to_string(), now.subsec_micros().to_string()];
                Reply::Array(parts.into_iter().map(Reply::text).collect())
            }
            ("LASTSAVE", _) => Reply::Number(i64::try_from(now.as_secs()).unwrap_or(i64::MAX)),
            ("ROLE", _) => Reply::Array(vec![Reply::text("master"), Reply::Number(0), empty()]),
            ("INFO", _) => info(&args[1..]),
            ("COMMAND", _) => command(&args[1..]),
            ("CONFIG", _) => config(&args[1..], events),
            ("CLUSTER", _) => Reply::error("ERR", "This instance has cluster support disabled"),
            ("FUNCTION", "LIST") | ("MODULE", "LIST") | ("SLOWLOG", "GET") => empty(),
            ("LATENCY", "LATEST" | "HISTORY" | "HISTOGRAM") => empty(),
            ("SLOWLOG", "LEN") | ("LATENCY", "RESET") => Reply::Number(0),
            ("SLOWLOG", "RESET") | ("FUNCTION", "FLUSH") => Reply::OK,
            ("MEMORY", "DOCTOR") => Reply::text("warmhop keeps its own memory: see /metrics"),
            _ => not_offered(),
        }
    }
}

/// A client's name is kept for as long as it is connected, the request that it came in is not.
fn client_name(name: &[u8]) -> Result<Bytes, Reply> {
    if name.len() > CLIENT_NAME_BYTES_MAX {
        let detail = format!("a client's name has at most {CLIENT_NAME_BYTES_MAX} bytes");
        return Err(Reply::error("ERR", detail));
    }
    if !name.iter().all(u8::is_ascii_graphic) {
        let detail = "Client names cannot contain spaces, newlines or special characters.";
        return Err(Reply::error("ERR", detail));
    }
    Ok(Bytes::copy_from_slice(name))
}

/// There are no passwords: whoever reaches the endpoint is on this machine. As a server without
/// any, it takes every password of the default user, and refuses one that names none.
pub(super) fn refuse_user(user: Option<&Bytes>) -> Option<Reply> {
    match user {
        Some(user) if user == "default" => None,
        Some(_) => {
            Some(Reply::error("WRONGPASS", "invalid username-password pair or user is disabled."))
        }
        None => Some(Reply::error(
            "ERR",
            "AUTH <password> called without any password configured for the default user. \
             Are you sure your configuration is correct?",
        )),
    }
}

/// The settings of a Redis server that clients ask for, as they are here.
fn settings(events: Events) -> [(&'static str, String); 24] {
    let text = str::to_owned;
    [
        ("appendfsync", text("no")),
        ("appendonly", text("no")),
        ("bind", text("127.0.0.1")),
        ("busy-reply-threshold", text("5000")),
        ("client-output-buffer-limit", text("normal 0 0 0 slave 0 0 0 pubsub 8388608 0 0")),
        ("cluster-enabled", text("no")),
        ("databases", DATABASES.to_string()),
        ("hz", text("10")),
        ("lua-time-limit", text("5000")),
        ("maxclients", super::CONNECTIONS_MAX.to_string()),
        ("maxmemory", text("0")),
        ("maxmemory-policy", text("noeviction")),
        ("maxmemory-samples", text("5")),
        ("min-replicas-to-write", text("0")),
        (EVENTS_SETTING, events.to_string()),
        ("proto-max-bulk-len", VALUE_BYTES_MAX.to_string()),
        ("replica-read-only", text("yes")),
        ("requirepass", text("")),
        ("save", text("")),
        ("slowlog-log-slower-than", text("-1")),
        ("slowlog-max-len", text("0")),
        ("tcp-keepalive", text("0")),
        ("timeout", text("0")),
        ("unixsocket", text("")),
    ]
}

fn config(args: &[Bytes], events: Events) -> Reply {
    match (word(&args[0]).as_str(), &args[1..]) {
        ("GET", patterns @ [_, ..]) => {
            let patterns: Vec<Vec<u8>> =
                patterns.iter().map(|pattern| pattern.to_ascii_lowercase()).collect();
            if patterns.iter().any(|pattern| pattern.len() > super::cmd::PATTERN_BYTES_MAX) {
                return Reply::error("ERR", "a pattern is too long");
            }
            let is_asked =
                |name: &str| patterns.iter().any(|pattern| glob::matches(pattern, name.as_bytes()));
            let found = settings(events).into_iter().filter(|(name, _)| is_asked(name));
            Reply::Map(found.map(|(name, it)| (Reply::text(name), Reply::text(it))).collect())
        }
        ("RESETSTAT", []) => Reply::OK,
        ("GET", []) => wrong_count("config|get"),
        ("SET", [name, asked]) if name.eq_ignore_ascii_case(EVENTS_SETTING.as_bytes()) => {
            set_events(asked, events)
        }
        ("SET", [_, _, ..]) => {
            let name = String::from_utf8_lossy(&args[1]).into_owned();
            let name: String = name.chars().take(WORD_TOLD_MAX).collect();
            let detail = format!(
                "CONFIG SET failed (possibly related to argument '{name}') - a peer has its own \
                 configuration; see docs/redis.md"
            );
            Reply::error("ERR", detail)
        }
        ("HELP", []) => Reply::Array(vec![Reply::status("CONFIG GET <pattern> [<pattern> ...]")]),
        _ => unknown_subcommand("CONFIG", &args[0]),
    }
}

/// A client that needs events sees to it that they are told: so they are where that is configured.
fn set_events(asked: &[u8], events: Events) -> Reply {
    let failed = |why: String| {
        let argument = format!("(possibly related to argument '{EVENTS_SETTING}')");
        Reply::error("ERR", format!("CONFIG SET failed {argument} - {why}"))
    };
    match std::str::from_utf8(asked).unwrap_or("?").parse::<Events>() {
        Err(NoEvents) => failed("Invalid event class character. Use 'Ag$lshzxeKEt'.".into()),
        Ok(asked) if asked.any() && events.covers(asked) => Reply::OK,
        Ok(_) => failed(format!(
            "what is told is for all clients and configured at every peer: [session] redis_events, \
             which is \"{events}\"; see docs/redis.md"
        )),
    }
}

/// What `COMMAND INFO` tells of one.
fn told(spec: &Spec) -> Reply {
    let number = |number: isize| Reply::Number(i64::try_from(number).unwrap_or_default());
    let (first, last, step) = match spec.keys {
        Keys::None => (0, 0, 0),
        Keys::Range(first, last, step) => (first, last, step),
        Keys::Counted { and_first: true, .. } => (1, 1, 1),
        Keys::Counted { .. } => (0, 0, 0),
        Keys::Second => (2, 2, 1),
    };
    let mut flags = vec![if spec.has(WRITES) { "write" } else { "readonly" }];
    if matches!(spec.keys, Keys::Counted { .. }) {
        flags.push("movablekeys");
    }
    for (flag, name) in [(NOT_IN_SCRIPTS, "noscript"), (AT_ONCE, "fast"), (LONG, "denyoom")] {
        if spec.has(flag) && flag != LONG {
            flags.push(name);
        }
    }
    let place = |at: usize| number(isize::try_from(at).unwrap_or_default());
    let empty = || Reply::Array(Vec::new());
    Reply::Array(vec![
        Reply::text(spec.name.to_ascii_lowercase()),
        number(spec.arity),
        Reply::Set(flags.into_iter().map(Reply::status).collect()),
        place(first),
        number(last),
        place(step),
        empty(),
        empty(),
        empty(),
        empty(),
    ])
}

fn command(args: &[Bytes]) -> Reply {
    let subcommand = args.first().map(|it| word(it));
    match (subcommand.as_deref(), args.get(1..).unwrap_or_default()) {
        (None, _) | (Some("INFO"), []) => Reply::Array(TABLE.iter().map(told).collect()),
        (Some("COUNT"), []) => Reply::Number(i64::try_from(TABLE.len()).unwrap_or_default()),
        (Some("LIST"), _) => {
            let name = |spec: &Spec| Reply::text(spec.name.to_ascii_lowercase());
            Reply::Array(TABLE.iter().map(name).collect())
        }
        (Some("INFO"), names) => {
            let one = |name: &Bytes| find(name).map_or(Reply::Aborted, told);
            Reply::Array(names.iter().map(one).collect())
        }
        (Some("DOCS"), _) => Reply::Map(Vec::new()),
        (Some("GETKEYS"), [name, ..]) => match find(name) {
            Some(spec) if spec.is_count_right(args.len() - 1) => {
                let keys = spec.keys_of(&args[1..]);
                if keys.is_empty() {
                    return Reply::error("ERR", "The command has no key arguments");
                }
                Reply::Array(keys.into_iter().map(Reply::Bytes).collect())
            }
            Some(_) => Reply::error("ERR", "Invalid number of arguments specified for command"),
            None => Reply::error("ERR", "Invalid command specified"),
        },
        _ => unknown_subcommand("COMMAND", args.first().map_or(&[][..], |it| it)),
    }
}

/// Answers `INFO`: all sections, or those that are named.
fn info(sections: &[Bytes]) -> Reply {
    let all: [(&str, String); 8] = [
        (
            "Server",
            format!(
                "redis_version:{SPEAKS_AS}\r\nredis_mode:standalone\r\nserver_name:warmhop\r\n\
                 warmhop_version:{}\r\nprocess_id:{}\r\narch_bits:64\r\n",
                env!("CARGO_PKG_VERSION"),
                std::process::id()
            ),
        ),
        ("Clients", format!("maxclients:{}\r\nblocked_clients:0\r\n", super::CONNECTIONS_MAX)),
        (
            "Memory",
            "maxmemory:0\r\nmaxmemory_human:0B\r\nmaxmemory_policy:noeviction\r\n".to_owned(),
        ),
        ("Persistence", "loading:0\r\nrdb_bgsave_in_progress:0\r\naof_enabled:0\r\n".to_owned()),
        ("Stats", "evicted_keys:0\r\n".to_owned()),
        ("Replication", "role:master\r\nconnected_slaves:0\r\n".to_owned()),
        ("Cluster", "cluster_enabled:0\r\n".to_owned()),
        ("Keyspace", String::new()),
    ];
    let asked: Vec<String> = sections.iter().map(|section| word(section)).collect();
    let is_all = asked.is_empty()
        || asked.iter().any(|it| matches!(it.as_str(), "ALL" | "DEFAULT" | "EVERYTHING"));
    let told = all.iter().filter(|(name, _)| is_all || asked.contains(&name.to_ascii_uppercase()));
    let text: Vec<String> = told.map(|(name, text)| format!("# {name}\r\n{text}")).collect();
    Reply::text(text.join("\r\n"))
}
