//! The arguments of commands: their bounds, and the errors for those outside of them.

use super::frame::{KEY_BYTES_MAX, Reply, integer};
use super::numbers;

/// How many databases there are.
pub(super) const DATABASES: u8 = 16;
/// The longest pattern, in bytes: a bound on what comparing a key with it costs.
pub(super) const PATTERN_BYTES_MAX: usize = 1024;
/// The longest name of a channel, in bytes: it has room for the channel of a key's events.
pub(super) const CHANNEL_BYTES_MAX: usize = KEY_BYTES_MAX + 32;
/// How much of a word that a client sent is repeated in an error, in characters.
pub(super) const WORD_SHOWN_MAX: usize = 64;
/// The largest reply to one command, in bytes.
pub(super) const REPLY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A command's name in capitals, or another of its words.
pub(super) fn word(text: &[u8]) -> String {
    String::from_utf8_lossy(text).to_ascii_uppercase()
}

pub(super) fn number(text: &[u8]) -> Result<i64, Reply> {
    integer(text).ok_or_else(not_a_number)
}

pub(super) fn not_a_number() -> Reply {
    Reply::error("ERR", "value is not an integer or out of range")
}

pub(super) fn float(text: &[u8]) -> Result<f64, Reply> {
    numbers::float(text).ok_or_else(|| Reply::error("ERR", "value is not a valid float"))
}

/// The value of an option, which is 0 or more. Any other text gets the error of a negative value.
pub(super) fn not_negative(text: &[u8], option: &str) -> Result<usize, Reply> {
    let negative = || Reply::error("ERR", format!("{option} can't be negative"));
    integer(text).and_then(|it| usize::try_from(it).ok()).ok_or_else(negative)
}

/// A count, which is 0 or more.
pub(super) fn count(text: &[u8]) -> Result<usize, Reply> {
    let out_of_range = || Reply::error("ERR", "value is out of range, must be positive");
    number(text).ok().and_then(|count| usize::try_from(count).ok()).ok_or_else(out_of_range)
}

pub(super) fn checked_key(key: &[u8]) -> Result<(), Reply> {
    if key.len() > KEY_BYTES_MAX {
        let detail =
            format!("the key has {} bytes, but at most {KEY_BYTES_MAX} are kept", key.len());
        return Err(Reply::error("ERR", detail));
    }
    Ok(())
}

pub(super) fn checked_channel(name: &[u8]) -> Result<(), Reply> {
    if name.len() > CHANNEL_BYTES_MAX {
        let detail = format!(
            "the channel's name has {} bytes, and {CHANNEL_BYTES_MAX} are the most",
            name.len()
        );
        return Err(Reply::error("ERR", detail));
    }
    Ok(())
}

pub(super) fn checked_pattern(pattern: &[u8]) -> Result<(), Reply> {
    if pattern.len() > PATTERN_BYTES_MAX {
        let detail = format!("a pattern has at most {PATTERN_BYTES_MAX} bytes");
        return Err(Reply::error("ERR", detail));
    }
    Ok(())
}

/// The error for a command with too few or too many arguments.
pub(super) fn wrong_count(name: &str) -> Reply {
    let name = name.to_ascii_lowercase();
    Reply::error("ERR", format!("wrong number of arguments for '{name}' command"))
}

pub(super) fn syntax() -> Reply {
    Reply::error("ERR", "syntax error")
}

/// The error for an unknown subcommand.
pub(super) fn unknown_subcommand(command: &str, word: &[u8]) -> Reply {
    let named = String::from_utf8_lossy(word);
    let named: String = named.chars().take(WORD_SHOWN_MAX).collect();
    Reply::error("ERR", format!("unknown subcommand '{named}'. Try {command} HELP."))
}

/// Refuses an answer that grows too large.
pub(super) fn bounded(bytes: usize, what: &str) -> Result<(), Reply> {
    if bytes > REPLY_BYTES_MAX {
        let detail = format!("the answer exceeds {REPLY_BYTES_MAX} bytes: ask for fewer {what}");
        return Err(Reply::error("ERR", detail));
    }
    Ok(())
}
