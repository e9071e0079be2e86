//! The fuzzed parts of the program, as functions of any bytes that panic if an invariant does not
//! hold; `fuzz/` calls them, and so does the test here with variations of a configuration.

use std::path::Path;

use crate::config::Config;

#[cfg(test)]
#[path = "../../warmhop/src/fuzzing/arbitrary.rs"]
pub(crate) mod arbitrary;

pub use crate::redis::fuzzing::requests as redis_requests;
#[cfg(feature = "lua")]
pub use crate::redis::script::fuzzing::script as redis_script;

/// Reads `input` as a configuration; returns whether it is one.
///
/// # Panics
/// If the output of `warmhop check` for it is not valid, or differs from it.
pub fn configuration(input: &[u8]) -> bool {
    let file = Path::new("/nowhere/warmhop.toml");
    let Ok(text) = std::str::from_utf8(input) else { return false };
    // Variables of the environment would be replaced twice.
    if text.contains("${") {
        return false;
    }
    let Ok((config, _)) = Config::parse(file, text) else { return false };
    let printed = config.to_string();
    let again = Config::parse(file, &printed).map(|(config, _)| config.to_string());
    assert!(again.as_ref().is_ok_and(|again| *again == printed), "{printed}\n{again:?}");
    true
}

#[cfg(test)]
mod tests {
    use super::arbitrary::{Numbers, feed};
    use super::*;

    #[test]
    fn any_configuration_is_refused_or_printed_as_one_that_reads_the_same() {
        let lines = [
            "[peer]\nname = 'a'",
            "[http]",
            "memory = '64MiB'",
            "body_rate = 7",
            "trusted_proxies = ['10.0.0.0/8', '::1']",
            "proxy_protocol = true",
            "listen = []",
            "[mesh]",
            "cookie_key = ['a', 'b']",
            "cookie_key = 'a'",
            "[session]\nttl = '1h'",
            "[[app]]\nname = 'shop'\nrun = ['sh']",
            "[[app]]\nname = 'far'\nstart = 'never'\nmatch = { path = '/far' }",
            "user = 'nobody'",
            "limits = { memory = '32MiB', cpu = 2 }",
            "env = { 'a b' = \"\\u0001\" }",
            "]",
        ];
        let make = |numbers: &mut Numbers| {
            // Most texts without this beginning name no peer.
            let mut text = lines[0].to_owned();
            let mut at = 1;
            while at < lines.len() && numbers.below(8) > 0 {
                if numbers.below(2) == 0 {
                    text.push('\n');
                    text.push_str(lines[at]);
                }
                at += 1;
            }
            if numbers.below(4) == 0 {
                text.truncate(numbers.below(text.len()));
            }
            text.into_bytes()
        };
        let read = feed("configuration", 1_500, make, |input| usize::from(configuration(input)));
        assert!(read > 100, "only {read} were read");
    }
}
