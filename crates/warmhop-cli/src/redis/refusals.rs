//! The errors for commands that are not offered, in the words that libraries look for.

use bytes::Bytes;

use super::arguments::{WORD_SHOWN_MAX, unknown_subcommand, word};
use super::engine::Request;
use super::frame::Reply;

/// Commands that a Redis server has and that are not offered here, in the order of names.
const NOT_OFFERED: [&str; 41] = [
    "BGREWRITEAOF",
    "BGSAVE",
    "BITOP",
    "DEBUG",
    "DUMP",
    "FAILOVER",
    "GEOADD",
    "GEODIST",
    "GEOHASH",
    "GEOPOS",
    "GEORADIUS",
    "GEOSEARCH",
    "GEOSEARCHSTORE",
    "LCS",
    "MIGRATE",
    "MONITOR",
    "MOVE",
    "PFADD",
    "PFCOUNT",
    "PFMERGE",
    "PSYNC",
    "REPLICAOF",
    "RESTORE",
    "SAVE",
    "SHUTDOWN",
    "SLAVEOF",
    "SORT",
    "SORT_RO",
    "SWAPDB",
    "SYNC",
    "WAITAOF",
    "XACK",
    "XADD",
    "XAUTOCLAIM",
    "XDEL",
    "XGROUP",
    "XLEN",
    "XRANGE",
    "XREAD",
    "XREADGROUP",
    "XTRIM",
];
/// Subcommands that a Redis server has and that are not offered here.
const SUBCOMMANDS_NOT_OFFERED: [(&str, &[&str]); 9] = [
    ("ACL", &["DELUSER", "DRYRUN", "GENPASS", "LOAD", "LOG", "SAVE", "SETUSER"]),
    ("CLIENT", &["CACHING", "KILL", "PAUSE", "REPLY", "TRACKING", "UNBLOCK"]),
    ("COMMAND", &["GETKEYSANDFLAGS"]),
    ("CONFIG", &["REWRITE"]),
    ("FUNCTION", &["DUMP", "LOAD", "RESTORE"]),
    ("LATENCY", &["DOCTOR", "GRAPH"]),
    ("MEMORY", &["MALLOC-STATS", "STATS", "USAGE"]),
    ("MODULE", &["LOAD", "LOADEX", "UNLOAD"]),
    ("SLOWLOG", &[]),
];
/// How much of its arguments an error repeats to a client.
const ARGUMENTS_SHOWN_MAX: usize = 128;

/// The error for an unknown command, as Redis words it; if Redis has such a command, with a pointer
/// to the documentation.
pub(super) fn unknown_command(args: &[Bytes]) -> Reply {
    let (name, rest) =
        args.split_first().map_or((&[][..], &[][..]), |(name, rest)| (&name[..], rest));
    let is_known = NOT_OFFERED.binary_search(&word(name).as_str()).is_ok();
    let name: String = String::from_utf8_lossy(name).chars().take(WORD_SHOWN_MAX).collect();
    let mut shown = String::new();
    for argument in rest {
        let Some(left) = ARGUMENTS_SHOWN_MAX.checked_sub(shown.len()).filter(|left| *left > 0)
        else {
            break;
        };
        let part = &argument[..argument.len().min(left)];
        shown.push_str(&format!("'{}' ", String::from_utf8_lossy(part)));
    }
    let more = if is_known { "(not offered here; see docs/redis.md)" } else { "" };
    Reply::error(
        "ERR",
        format!("unknown command '{name}', with args beginning with: {shown}{more}"),
    )
}

/// The error for a subcommand that is not offered here, or that does not exist.
pub(super) fn no_subcommand(command: &str, subcommand: &[u8]) -> Reply {
    let name = word(subcommand);
    let of_command = SUBCOMMANDS_NOT_OFFERED.iter().find(|(it, _)| *it == command);
    if of_command.is_some_and(|(_, names)| names.contains(&name.as_str())) {
        return Reply::error(
            "ERR",
            format!("{command} {name} is not offered here; see docs/redis.md"),
        );
    }
    unknown_subcommand(command, subcommand)
}

/// The name of a command in a refusal: with its subcommand.
pub(super) fn full_name(request: &Request) -> String {
    const WITH_SUBCOMMANDS: [&str; 12] = [
        "ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "FUNCTION", "LATENCY", "MEMORY", "OBJECT",
        "PUBSUB", "SCRIPT", "SLOWLOG",
    ];
    let name = request.spec.name.to_ascii_lowercase();
    match request.args.get(1) {
        Some(subcommand) if WITH_SUBCOMMANDS.contains(&request.spec.name) => {
            let shown: String = word(subcommand).chars().take(WORD_SHOWN_MAX).collect();
            format!("{name}|{}", shown.to_ascii_lowercase())
        }
        _ => name,
    }
}

/// Whether an error says that something is not offered, which a library may swallow.
pub(super) fn is_not_offered(error: &str) -> bool {
    error.contains("docs/redis.md") || error == "ERR Function not found"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_are_not_offered_are_refused_in_redis_words() {
        assert!(NOT_OFFERED.is_sorted());
        assert!(NOT_OFFERED.iter().all(|name| super::super::cmd::find(name.as_bytes()).is_none()));
        let refusal_of = |words: &[&str]| {
            let words: Vec<Bytes> =
                words.iter().map(|it| Bytes::copy_from_slice(it.as_bytes())).collect();
            match unknown_command(&words) {
                Reply::Error(refusal_of) => refusal_of,
                other => panic!("{other:?}"),
            }
        };
        let begins = "ERR unknown command 'sentinel', with args beginning with: ";
        assert_eq!(refusal_of(&["sentinel"]), begins);
        assert_eq!(refusal_of(&["sentinel", "masters", "a"]), format!("{begins}'masters' 'a' "));
        assert!(refusal_of(&["xadd", "k"]).ends_with("'k' (not offered here; see docs/redis.md)"));
        let long = refusal_of(&["sentinel", &"x".repeat(200), "y"]);
        assert_eq!(long, format!("{begins}'{}' ", "x".repeat(ARGUMENTS_SHOWN_MAX)));
        for (command, subcommand, expected) in [
            ("FUNCTION", "load", "ERR FUNCTION LOAD is not offered here; see docs/redis.md"),
            ("FUNCTION", "foo", "ERR unknown subcommand 'foo'. Try FUNCTION HELP."),
        ] {
            let reply = no_subcommand(command, subcommand.as_bytes());
            assert_eq!(reply, Reply::Error(expected.into()));
        }
    }
}
