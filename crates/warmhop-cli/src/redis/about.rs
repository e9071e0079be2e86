//! Commands about the server and about the connection, which need no key.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::arguments::{DATABASES, WORD_SHOWN_MAX, syntax, word, wrong_count};
use super::cmd::{AT_ONCE, Keys, LONG, NOT_IN_SCRIPTS, Spec, TABLE, WRITES, find};
use super::events::{Events, NoEvents};
use super::frame::{Reply, VALUE_BYTES_MAX, integer};
use super::refusals::no_subcommand;
use super::script::SPEAKS_AS;
use super::{glob, info, instant};

/// The longest name that a client gives itself, in bytes.
const CLIENT_NAME_BYTES_MAX: usize = 256;
/// The setting by which a Redis server is made to publish changes of keys.
const EVENTS_SETTING: &str = "notify-keyspace-events";

/// What a client said about itself.
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
        let in_option = |option: &Bytes| {
            let named: String =
                String::from_utf8_lossy(option).chars().take(WORD_SHOWN_MAX).collect();
            Reply::error("ERR", format!("Syntax error in HELLO option '{named}'"))
        };
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
                    let user = rest.next().ok_or_else(|| in_option(option))?;
                    rest.next().ok_or_else(|| in_option(option))?;
                    if let Some(refused) = refuse_user(Some(user)) {
                        return Err(refused);
                    }
                }
                "SETNAME" => {
                    let asked = rest.next().ok_or_else(|| in_option(option))?;
                    name = Some(client_name(asked)?);
                }
                _ => return Err(in_option(option)),
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
            ("LIST", options) => self.list(options),
            ("SETINFO", [what, value]) => {
                let value: String =
                    String::from_utf8_lossy(value).chars().take(WORD_SHOWN_MAX).collect();
                match word(what).as_str() {
                    "LIB-NAME" => self.library = value,
                    "LIB-VER" => self.library_version = value,
                    other => {
                        return Reply::error("ERR", format!("Unrecognized option '{other}'"));
                    }
                }
                Reply::OK
            }
            ("NO-EVICT" | "NO-TOUCH", [how]) if matches!(word(how).as_str(), "ON" | "OFF") => {
                Reply::OK
            }
            ("NO-EVICT" | "NO-TOUCH", [_]) => syntax(),
            ("REPLY", [how]) if word(how) == "ON" => Reply::OK,
            ("UNPAUSE", []) => Reply::OK,
            // Nothing is tracked, so switching it off succeeds.
            ("TRACKING", [how]) if word(how) == "OFF" => Reply::OK,
            ("TRACKINGINFO", []) => tracking_info(),
            ("HELP", []) => {
                Reply::Array(CLIENT_HELP.iter().map(|line| Reply::status(*line)).collect())
            }
            (
                "SETNAME" | "GETNAME" | "ID" | "GETREDIR" | "INFO" | "SETINFO" | "NO-EVICT"
                | "NO-TOUCH" | "UNPAUSE" | "TRACKINGINFO" | "HELP",
                _,
            )
            | ("CACHING" | "KILL" | "PAUSE" | "REPLY" | "TRACKING" | "UNBLOCK", []) => wrong(),
            _ => no_subcommand("CLIENT", &args[1]),
        }
    }

    /// Answers `CLIENT LIST` with the one client that asks.
    fn list(&self, options: &[Bytes]) -> Reply {
        let all = || Reply::text(format!("{}\n", self.line()));
        match options {
            [] => all(),
            [option, kind] if word(option) == "TYPE" => match word(kind).as_str() {
                "NORMAL" => all(),
                "MASTER" | "REPLICA" | "SLAVE" | "PUBSUB" => Reply::text(""),
                _ => {
                    let named: String =
                        String::from_utf8_lossy(kind).chars().take(WORD_SHOWN_MAX).collect();
                    Reply::error("ERR", format!("Unknown client type '{named}'"))
                }
            },
            [option, ids @ ..] if word(option) == "ID" && !ids.is_empty() => {
                if ids.iter().any(|id| integer(id) == Some(self.id)) {
                    all()
                } else {
                    Reply::text("")
                }
            }
            _ => syntax(),
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

    /// Answers commands about the server, which change nothing.
    pub(super) fn server(args: &[Bytes], now: SystemTime, events: Events) -> Reply {
        let spec = find(&args[0]).map_or("", |spec| spec.name);
        let subcommand = args.get(1).map(|it| word(it)).unwrap_or_default();
        let empty = || Reply::Array(Vec::new());
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        match (spec, subcommand.as_str()) {
            ("ECHO", _) => Reply::Bytes(args[1].clone()),
            ("TIME", _) => {
                let ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
                instant::reply(instant::micros(ms))
            }
            ("LASTSAVE", _) => Reply::Number(i64::try_from(now.as_secs()).unwrap_or(i64::MAX)),
            ("ROLE", _) => Reply::Array(vec![Reply::text("master"), Reply::Number(0), empty()]),
            ("INFO", _) => info::answer(&args[1..]),
            ("COMMAND", _) => command(&args[1..]),
            ("CONFIG", _) => config(&args[1..], events),
            ("CLUSTER" | "READONLY" | "READWRITE" | "ASKING", _) => {
                Reply::error("ERR", "This instance has cluster support disabled")
            }
            ("FCALL" | "FCALL_RO", _) => Reply::error("ERR", "Function not found"),
            ("FUNCTION", _) => function(&subcommand, &args[1..]),
            ("ACL", _) => acl(&subcommand, &args[1..]),
            ("MODULE", "LIST") | ("SLOWLOG", "GET") => empty(),
            ("LATENCY", "LATEST" | "HISTORY") => empty(),
            ("LATENCY", "HISTOGRAM") => Reply::Map(Vec::new()),
            ("SLOWLOG", "LEN") | ("LATENCY", "RESET") => Reply::Number(0),
            ("SLOWLOG", "RESET") | ("MEMORY", "PURGE") => Reply::OK,
            ("MEMORY", "DOCTOR") => Reply::text("warmhop keeps its own memory: see /metrics"),
            _ => no_subcommand(spec, args.get(1).map_or(&[][..], |it| it)),
        }
    }
}

const CLIENT_HELP: [&str; 8] = [
    "CLIENT GETNAME|GETREDIR|ID|INFO|TRACKINGINFO|UNPAUSE",
    "CLIENT LIST [TYPE <type>|ID <id> ...]",
    "CLIENT NO-EVICT ON|OFF",
    "CLIENT NO-TOUCH ON|OFF",
    "CLIENT REPLY ON",
    "CLIENT SETINFO LIB-NAME|LIB-VER <text>",
    "CLIENT SETNAME <name>",
    "CLIENT TRACKING OFF",
];

fn tracking_info() -> Reply {
    let empty = || Reply::Array(Vec::new());
    Reply::Map(vec![
        (Reply::text("flags"), Reply::Set(vec![Reply::text("off")])),
        (Reply::text("redirect"), Reply::Number(-1)),
        (Reply::text("prefixes"), empty()),
    ])
}

/// Answers `FUNCTION`, as a server without functions.
fn function(subcommand: &str, args: &[Bytes]) -> Reply {
    let none = || (Reply::text("libraries_count"), Reply::Number(0));
    match (subcommand, &args[1..]) {
        ("LIST", _) => Reply::Array(Vec::new()),
        ("FLUSH", []) => Reply::OK,
        ("FLUSH", [how]) if matches!(word(how).as_str(), "SYNC" | "ASYNC") => Reply::OK,
        ("FLUSH", _) => Reply::error("ERR", "FUNCTION FLUSH only supports SYNC|ASYNC option"),
        ("STATS", []) => {
            let counts = vec![none(), (Reply::text("functions_count"), Reply::Number(0))];
            let engines = Reply::Map(vec![(Reply::text("LUA"), Reply::Map(counts))]);
            Reply::Map(vec![
                (Reply::text("running_script"), Reply::Null),
                (Reply::text("engines"), engines),
            ])
        }
        ("DELETE", [_]) => Reply::error("ERR", "Library not found"),
        ("KILL", []) => Reply::error("NOTBUSY", "No scripts in execution right now."),
        ("DELETE" | "KILL" | "STATS", _) | ("LOAD" | "RESTORE", []) => {
            wrong_count(&format!("function|{}", subcommand.to_ascii_lowercase()))
        }
        _ => no_subcommand("FUNCTION", &args[0]),
    }
}

/// Answers `ACL`, as a server that has no users but the default one.
fn acl(subcommand: &str, args: &[Bytes]) -> Reply {
    let texts =
        |all: &[&'static str]| Reply::Array(all.iter().map(|it| Reply::text(*it)).collect());
    match (subcommand, &args[1..]) {
        ("WHOAMI", []) => Reply::text("default"),
        ("USERS", []) => texts(&["default"]),
        ("LIST", []) => texts(&["user default on nopass ~* &* +@all"]),
        ("GETUSER", [user]) if user == "default" => {
            let fields = [
                ("flags", Reply::Set(vec![Reply::text("on"), Reply::text("nopass")])),
                ("passwords", Reply::Array(Vec::new())),
                ("commands", Reply::text("+@all")),
                ("keys", Reply::text("~*")),
                ("channels", Reply::text("&*")),
                ("selectors", Reply::Array(Vec::new())),
            ];
            Reply::Map(fields.map(|(name, value)| (Reply::text(name), value)).into())
        }
        ("GETUSER", [_]) => Reply::Null,
        ("WHOAMI" | "USERS" | "LIST" | "GETUSER", _) => {
            wrong_count(&format!("acl|{}", subcommand.to_ascii_lowercase()))
        }
        _ => no_subcommand("ACL", &args[0]),
    }
}

/// A copy of the client's name: it is kept while the client is connected, its request is not.
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

/// There are no passwords: only this machine reaches the endpoint. Like a Redis server without
/// passwords, it accepts every password of the default user, and refuses `AUTH` without a user.
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

/// The settings of a Redis server that clients ask for, with their values here.
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
            if patterns.iter().any(|pattern| pattern.len() > super::arguments::PATTERN_BYTES_MAX) {
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
        // The settings have the requested values already.
        ("SET", pairs @ [_, _, ..]) if pairs.len().is_multiple_of(2) && are_so(pairs, events) => {
            Reply::OK
        }
        ("SET", [] | [_]) => wrong_count("config|set"),
        ("SET", [_, _, ..]) => {
            let name = String::from_utf8_lossy(&args[1]).into_owned();
            let name: String = name.chars().take(WORD_SHOWN_MAX).collect();
            let detail = format!(
                "CONFIG SET failed (possibly related to argument '{name}') - a peer has its own \
                 configuration; see docs/redis.md"
            );
            Reply::error("ERR", detail)
        }
        ("HELP", []) => Reply::Array(vec![Reply::status("CONFIG GET <pattern> [<pattern> ...]")]),
        _ => no_subcommand("CONFIG", &args[0]),
    }
}

/// Whether all of these settings have the requested values.
fn are_so(pairs: &[Bytes], events: Events) -> bool {
    let settings = settings(events);
    pairs.chunks_exact(2).all(|pair| {
        let is_it = |name: &str| pair[0].eq_ignore_ascii_case(name.as_bytes());
        settings.iter().any(|(name, value)| is_it(name) && value.as_bytes() == pair[1])
    })
}

/// Clients that need events switch them on: that succeeds if the configuration has them already.
fn set_events(asked: &[u8], events: Events) -> Reply {
    let failed = |why: String| {
        let argument = format!("(possibly related to argument '{EVENTS_SETTING}')");
        Reply::error("ERR", format!("CONFIG SET failed {argument} - {why}"))
    };
    match std::str::from_utf8(asked).unwrap_or("?").parse::<Events>() {
        Err(NoEvents) => failed("Invalid event class character. Use 'Ag$lshzxeKEt'.".into()),
        Ok(asked) if asked.any() && events.covers(asked) => Reply::OK,
        Ok(_) => failed(format!(
            "the published events are the same for all clients, by [session] redis_events of every peer, \
             which is \"{events}\"; see docs/redis.md"
        )),
    }
}

/// The entry of a command in `COMMAND INFO`.
fn described(spec: &Spec) -> Reply {
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
        (None, _) | (Some("INFO"), []) => Reply::Array(TABLE.iter().map(described).collect()),
        (Some("COUNT"), []) => Reply::Number(i64::try_from(TABLE.len()).unwrap_or_default()),
        (Some("LIST"), options) => list_commands(options),
        (Some("INFO"), names) => {
            let one = |name: &Bytes| find(name).map_or(Reply::Null, described);
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
        (Some(name @ ("COUNT" | "GETKEYS")), _) => {
            wrong_count(&format!("command|{}", name.to_ascii_lowercase()))
        }
        _ => no_subcommand("COMMAND", args.first().map_or(&[][..], |it| it)),
    }
}

/// Answers `COMMAND LIST`.
fn list_commands(options: &[Bytes]) -> Reply {
    let named = |is_asked: &dyn Fn(&str) -> bool| {
        let names = TABLE.iter().map(|spec| spec.name.to_ascii_lowercase());
        Reply::Array(names.filter(|name| is_asked(name)).map(Reply::text).collect())
    };
    match options {
        [] => named(&|_| true),
        [filter, by, what] if word(filter) == "FILTERBY" => match word(by).as_str() {
            "MODULE" | "ACLCAT" => Reply::Array(Vec::new()),
            "PATTERN" if what.len() <= super::arguments::PATTERN_BYTES_MAX => {
                let pattern = what.to_ascii_lowercase();
                named(&|name| glob::matches(&pattern, name.as_bytes()))
            }
            _ => syntax(),
        },
        _ => syntax(),
    }
}
