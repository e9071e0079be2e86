//! What is fuzzed of the program, as a function of any bytes that panics where an invariant does not
//! hold; `fuzz/` feeds it, and the test here what it makes of a configuration.

use std::path::Path;

use crate::config::Config;

/// Reads `input` as a configuration; returns whether it is one.
///
/// # Panics
/// If what `warmhop check` prints of it is none, or another.
pub fn configuration(input: &[u8]) -> bool {
    let file = Path::new("/nowhere/warmhop.toml");
    let Ok(text) = std::str::from_utf8(input) else { return false };
    // What the environment holds would be put in twice.
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
        let (mut seed, mut read) = (7_u64, 0);
        let mut below = |end: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % end
        };
        for _ in 0..1_500 {
            // Most that begins otherwise says no name.
            let mut text = lines[0].to_owned();
            let mut at = 1;
            while at < lines.len() && below(8) > 0 {
                if below(2) == 0 {
                    text.push('\n');
                    text.push_str(lines[at]);
                }
                at += 1;
            }
            if below(4) == 0 {
                text.truncate(below(text.len()));
            }
            read += usize::from(configuration(text.as_bytes()));
        }
        assert!(read > 100, "only {read} were read");
    }
}
