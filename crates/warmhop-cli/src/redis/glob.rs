//! Patterns of keys, by Redis's rules (`stringmatchlen` in its `util.c`): `*`, `?`, `[abc]`,
//! `[a-z]`, `[^a]`, and `\` before a literal character. It is as lenient as Redis: a class that is
//! not closed ends with the pattern, and a `\` at the end of the pattern is literal.

/// Whether `pattern` matches all of `text`, byte by byte. Only the last `*` met is backtracked to,
/// so that the cost is at most the pattern's length for each byte of the text.
pub(super) fn matches(mut pattern: &[u8], mut text: &[u8]) -> bool {
    // The pattern after the last `*`, and the earliest text that it may match.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some((b'*', rest)) = pattern.split_first() {
            pattern = rest;
            retry = Some((rest, text));
            continue;
        }
        let Some((byte, behind)) = text.split_first() else { return pattern.is_empty() };
        if let Some(rest) = one(pattern, *byte) {
            (pattern, text) = (rest, behind);
            continue;
        }
        let Some((after_star, [_, later @ ..])) = retry else { return false };
        (pattern, text) = (after_star, later);
        retry = Some((after_star, later));
    }
}

/// The rest of `pattern` after the part that matches one byte, if it does.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (first, rest) = pattern.split_first()?;
    let (is_match, rest) = match (first, rest) {
        (b'?', rest) => (true, rest),
        (b'[', rest) => class(rest, byte),
        (b'\\', [escaped, rest @ ..]) => (*escaped == byte, rest),
        (literal, rest) => (*literal == byte, rest),
    };
    is_match.then_some(rest)
}

/// Whether `byte` is in the class that `pattern` begins with, and the rest of the pattern.
fn class(pattern: &[u8], byte: u8) -> (bool, &[u8]) {
    let (inverted, mut rest) = match pattern {
        [b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut found = false;
    loop {
        rest = match rest {
            [] => break,
            [b']', behind @ ..] => {
                rest = behind;
                break;
            }
            [b'\\', escaped, behind @ ..] => {
                found |= *escaped == byte;
                behind
            }
            [first, b'-', last, behind @ ..] => {
                found |= (*first.min(last)..=*first.max(last)).contains(&byte);
                behind
            }
            [literal, behind @ ..] => {
                found |= *literal == byte;
                behind
            }
        };
    }
    (found != inverted, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_match(pattern: &str, text: &str) -> bool {
        matches(pattern.as_bytes(), text.as_bytes())
    }

    #[test]
    fn patterns_match_as_redis_has_it() {
        for (pattern, text) in [
            ("sess:*", "sess:a/b.c"),
            ("*", ""),
            ("**", "abc"),
            ("a**c", "abbc"),
            ("*a*b*c*", "xaxbxc"),
            ("h?llo", "hallo"),
            ("h[ae]llo", "hello"),
            ("h[^e]llo", "hallo"),
            ("[!f]", "!"),
            ("[!f]", "f"),
            ("a[a-c]", "ab"),
            ("a[c-a]", "ab"),
            ("[a\\-z]", "-"),
            ("[\\]]", "]"),
            ("[f", "f"),
            ("[^", "x"),
            ("a{b}*", "a{b}c"),
            ("a\\*", "a*"),
            ("a\\", "a\\"),
            ("\\a", "a"),
        ] {
            assert!(is_match(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("a", ""),
            ("?", ""),
            ("h?llo", "hllo"),
            ("h[^e]llo", "hello"),
            ("[!f]", "x"),
            ("[a\\-z]", "b"),
            ("[", "["),
            ("[]a", "]a"),
            ("a{b,c}", "ab"),
            ("a\\*", "ab"),
            ("*a", "ab"),
            ("A*", "a"),
        ] {
            assert!(!is_match(pattern, text), "{pattern} {text}");
        }
        assert!(matches(b"\xff*", b"\xff\x00\xfe"));
    }

    #[test]
    fn a_pattern_of_many_stars_ends() {
        let pattern = "*a".repeat(500);
        assert!(!is_match(&pattern, &"a".repeat(499)));
        assert!(is_match(&pattern, &"a".repeat(512)));
        assert!(!is_match(&format!("{pattern}b"), &"a".repeat(512)));
    }
}
