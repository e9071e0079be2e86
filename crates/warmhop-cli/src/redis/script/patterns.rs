//! Lua's patterns. Lua's matcher recurses as deep as a text is long and takes exponential time for
//! some patterns, and nothing can stop it: this one counts its steps and its depth.

/// How many parts of a text a pattern may capture.
const CAPTURES_MAX: usize = 32;
/// How deep it looks ahead.
const DEPTH_MAX: usize = 200;

/// A captured part of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capture {
    /// From the first place up to the second.
    Part(usize, usize),
    /// A place, counted from 0.
    Place(usize),
}

#[derive(Debug, Clone, Copy)]
enum State {
    Open(usize),
    Closed(usize, usize),
    Place(usize),
}

/// The result of a search: where the match begins, where it ends and what was captured; the whole
/// match if a pattern captures nothing.
pub(super) struct Found {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) captures: Vec<Capture>,
}

/// One search.
struct Matcher<'a> {
    text: &'a [u8],
    pattern: &'a [u8],
    captures: Vec<State>,
    depth: usize,
    /// How many steps it may still take.
    steps: &'a mut u64,
}

type Matched = Result<Option<usize>, String>;

/// Searches for `pattern` in `text` from `at` on, or, if `fixed`, at that place only.
pub(super) fn search(
    text: &[u8],
    pattern: &[u8],
    at: usize,
    fixed: bool,
    steps: &mut u64,
) -> Result<Option<Found>, String> {
    let (pattern, is_anchored) = match pattern.split_first() {
        Some((b'^', rest)) => (rest, true),
        _ => (pattern, false),
    };
    for start in at..=text.len() {
        let mut matcher =
            Matcher { text, pattern, captures: Vec::new(), depth: 0, steps: &mut *steps };
        if let Some(end) = matcher.matches(start, 0)? {
            let captures = matcher.captured(start, end)?;
            return Ok(Some(Found { start, end, captures }));
        }
        if is_anchored || fixed {
            break;
        }
    }
    Ok(None)
}

/// Whether a pattern has no special characters, so that it matches its own text only.
pub(super) fn is_plain(pattern: &[u8]) -> bool {
    !pattern.iter().any(|byte| b"^$*+?.([%-".contains(byte))
}

fn class(byte: u8, class: u8) -> bool {
    let holds = match class.to_ascii_lowercase() {
        b'a' => byte.is_ascii_alphabetic(),
        b'c' => byte.is_ascii_control(),
        b'd' => byte.is_ascii_digit(),
        b'l' => byte.is_ascii_lowercase(),
        b'p' => byte.is_ascii_punctuation(),
        b's' => byte.is_ascii_whitespace() || byte == 0x0b,
        b'u' => byte.is_ascii_uppercase(),
        b'w' => byte.is_ascii_alphanumeric(),
        b'x' => byte.is_ascii_hexdigit(),
        b'z' => byte == 0,
        _ => return class == byte,
    };
    holds != class.is_ascii_uppercase()
}

impl Matcher<'_> {
    fn captured(&self, start: usize, end: usize) -> Result<Vec<Capture>, String> {
        if self.captures.is_empty() {
            return Ok(vec![Capture::Part(start, end)]);
        }
        let captured = self.captures.iter().map(|capture| match *capture {
            State::Closed(from, to) => Ok(Capture::Part(from, to)),
            State::Place(at) => Ok(Capture::Place(at)),
            State::Open(_) => Err("unfinished capture".to_owned()),
        });
        captured.collect()
    }

    fn step(&mut self) -> Result<(), String> {
        *self.steps = self.steps.checked_sub(1).ok_or("pattern too complex")?;
        Ok(())
    }

    /// Where the item of the pattern at `p` ends.
    fn item_end(&self, p: usize) -> Result<usize, String> {
        let pattern = self.pattern;
        match pattern[p] {
            b'%' if p + 1 >= pattern.len() => Err("malformed pattern (ends with '%')".into()),
            b'%' => Ok(p + 2),
            b'[' => {
                let mut at = p + 1;
                if pattern.get(at) == Some(&b'^') {
                    at += 1;
                }
                loop {
                    let missing = || "malformed pattern (missing ']')".to_owned();
                    let byte = *pattern.get(at).ok_or_else(missing)?;
                    at += if byte == b'%' { 2 } else { 1 };
                    match pattern.get(at) {
                        Some(b']') => return Ok(at + 1),
                        Some(_) => {}
                        None => return Err(missing()),
                    }
                }
            }
            _ => Ok(p + 1),
        }
    }

    /// Whether a byte is in the set from `p`, its `[`, to `end`, its `]`.
    fn in_set(&self, byte: u8, p: usize, end: usize) -> bool {
        let pattern = self.pattern;
        let (mut at, is_in) = if pattern[p + 1] == b'^' { (p + 2, false) } else { (p + 1, true) };
        while at < end {
            if pattern[at] == b'%' {
                at += 1;
                if class(byte, pattern[at]) {
                    return is_in;
                }
                at += 1;
            } else if pattern.get(at + 1) == Some(&b'-') && at + 2 < end {
                if (pattern[at]..=pattern[at + 2]).contains(&byte) {
                    return is_in;
                }
                at += 3;
            } else {
                if pattern[at] == byte {
                    return is_in;
                }
                at += 1;
            }
        }
        !is_in
    }

    fn single(&self, s: usize, p: usize, end: usize) -> bool {
        let Some(&byte) = self.text.get(s) else { return false };
        match self.pattern[p] {
            b'.' => true,
            b'%' => class(byte, self.pattern[p + 1]),
            b'[' => self.in_set(byte, p, end - 1),
            plain => plain == byte,
        }
    }

    fn matches(&mut self, s: usize, p: usize) -> Matched {
        if self.depth == DEPTH_MAX {
            return Err("pattern too complex".into());
        }
        self.depth += 1;
        let matched = self.matches_here(s, p);
        self.depth -= 1;
        matched
    }

    fn matches_here(&mut self, mut s: usize, mut p: usize) -> Matched {
        loop {
            self.step()?;
            let Some(&first) = self.pattern.get(p) else { return Ok(Some(s)) };
            match (first, self.pattern.get(p + 1)) {
                (b'(', Some(b')')) => return self.capture(State::Place(s), s, p + 2),
                (b'(', _) => return self.capture(State::Open(s), s, p + 1),
                (b')', _) => return self.close(s, p + 1),
                (b'%', Some(b'b')) => match self.balanced(s, p + 2)? {
                    Some(next) => {
                        (s, p) = (next, p + 4);
                        continue;
                    }
                    None => return Ok(None),
                },
                (b'%', Some(b'f')) => {
                    p += 2;
                    if self.pattern.get(p) != Some(&b'[') {
                        return Err("missing '[' after '%f' in pattern".into());
                    }
                    let end = self.item_end(p)?;
                    let before = if s == 0 { 0 } else { self.text[s - 1] };
                    let here = self.text.get(s).copied().unwrap_or(0);
                    if self.in_set(before, p, end - 1) || !self.in_set(here, p, end - 1) {
                        return Ok(None);
                    }
                    p = end;
                    continue;
                }
                (b'%', Some(digit)) if digit.is_ascii_digit() => match self.again(s, *digit)? {
                    Some(next) => {
                        (s, p) = (next, p + 2);
                        continue;
                    }
                    None => return Ok(None),
                },
                (b'$', None) => return Ok((s == self.text.len()).then_some(s)),
                _ => {}
            }
            let end = self.item_end(p)?;
            let here = self.single(s, p, end);
            match self.pattern.get(end) {
                Some(b'?') => {
                    if here && let Some(found) = self.matches(s + 1, end + 1)? {
                        return Ok(Some(found));
                    }
                    p = end + 1;
                }
                Some(b'*') => return self.longest(s, p, end, 0),
                Some(b'+') => return self.longest(s, p, end, 1),
                Some(b'-') => return self.shortest(s, p, end),
                _ if here => (s, p) = (s + 1, end),
                _ => return Ok(None),
            }
        }
    }

    fn longest(&mut self, s: usize, p: usize, end: usize, least: usize) -> Matched {
        let mut many = 0;
        while self.single(s + many, p, end) {
            self.step()?;
            many += 1;
        }
        while many >= least {
            if let Some(found) = self.matches(s + many, end + 1)? {
                return Ok(Some(found));
            }
            let Some(fewer) = many.checked_sub(1) else { break };
            many = fewer;
        }
        Ok(None)
    }

    fn shortest(&mut self, mut s: usize, p: usize, end: usize) -> Matched {
        loop {
            if let Some(found) = self.matches(s, end + 1)? {
                return Ok(Some(found));
            }
            if !self.single(s, p, end) {
                return Ok(None);
            }
            s += 1;
        }
    }

    fn capture(&mut self, capture: State, s: usize, p: usize) -> Matched {
        if self.captures.len() == CAPTURES_MAX {
            return Err("too many captures".into());
        }
        self.captures.push(capture);
        let matched = self.matches(s, p)?;
        if matched.is_none() {
            self.captures.pop();
        }
        Ok(matched)
    }

    fn close(&mut self, s: usize, p: usize) -> Matched {
        let open = self.captures.iter().rposition(|it| matches!(it, State::Open(_)));
        let open = open.ok_or("invalid pattern capture")?;
        let State::Open(from) = self.captures[open] else { return Ok(None) };
        self.captures[open] = State::Closed(from, s);
        let matched = self.matches(s, p)?;
        if matched.is_none() {
            self.captures[open] = State::Open(from);
        }
        Ok(matched)
    }

    fn balanced(&mut self, s: usize, p: usize) -> Matched {
        let (Some(open), Some(close)) = (self.pattern.get(p), self.pattern.get(p + 1)) else {
            return Err("unbalanced pattern".into());
        };
        if self.text.get(s) != Some(open) {
            return Ok(None);
        }
        let mut depth = 1usize;
        for at in s + 1..self.text.len() {
            *self.steps = self.steps.checked_sub(1).ok_or("pattern too complex")?;
            let byte = &self.text[at];
            if byte == close {
                depth -= 1;
                if depth == 0 {
                    return Ok(Some(at + 1));
                }
            } else if byte == open {
                depth += 1;
            }
        }
        Ok(None)
    }

    /// Matches the same text as an earlier capture did.
    fn again(&mut self, s: usize, digit: u8) -> Matched {
        let at = usize::from(digit).checked_sub(usize::from(b'1'));
        let Some(State::Closed(from, to)) = at.and_then(|at| self.captures.get(at).copied()) else {
            return Err("invalid capture index".into());
        };
        let same = self.text[s..].starts_with(&self.text[from..to]);
        Ok(same.then_some(s + to - from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, pattern: &str) -> Option<(usize, usize, Vec<Capture>)> {
        let mut steps = 100_000;
        let found = search(text.as_bytes(), pattern.as_bytes(), 0, false, &mut steps).unwrap();
        found.map(|found| (found.start, found.end, found.captures))
    }

    #[test]
    fn patterns_find_what_lua_s_find() {
        let part = |from, to| vec![Capture::Part(from, to)];
        for (text, pattern, expected) in [
            ("hello world", "o w", Some((4, 7, part(4, 7)))),
            ("key=value", "(%w+)=(%w+)", Some((0, 9, [part(0, 3), part(4, 9)].concat()))),
            ("  x", "^%s*()", Some((0, 2, vec![Capture::Place(2)]))),
            ("a-b", "[%a-]+", Some((0, 3, part(0, 3)))),
            ("f(a(b)c)d", "%b()", Some((1, 8, part(1, 8)))),
            ("THE (quick) fox", "%f[%a]%a+%f[%A]", Some((0, 3, part(0, 3)))),
            ("abcabc", "(abc)%1", Some((0, 6, part(0, 3)))),
            ("<<a>>", "<(.-)>", Some((0, 4, part(1, 3)))),
            ("x]y", "[]]", Some((1, 2, part(1, 2)))),
            ("12", "^%d%d$", Some((0, 2, part(0, 2)))),
            ("12a", "^%d+$", None),
            ("abc", "[^a-b]", Some((2, 3, part(2, 3)))),
        ] {
            assert_eq!(found(text, pattern), expected, "{pattern} in {text}");
        }
    }

    #[test]
    fn a_search_ends_whatever_it_is_given() {
        let text = "a".repeat(5000);
        let nasty = ["a*a*a*a*a*b".to_owned(), "a?".repeat(5000), "(.-)-".repeat(20)];
        for pattern in nasty {
            let mut steps = 100_000;
            let ended = search(text.as_bytes(), pattern.as_bytes(), 0, false, &mut steps);
            assert!(ended.is_err(), "{}", &pattern[..10]);
        }
        for broken in ["%", "[a", "(a", "a)", "%b", "%1", "%f"] {
            let mut steps = 1000;
            assert!(search(b"aaa", broken.as_bytes(), 0, false, &mut steps).is_err(), "{broken}");
        }
    }
}
