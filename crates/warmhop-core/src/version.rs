//! The version of an app that a copy runs, and which of two is newer.

use alloc::string::String;
use alloc::sync::Arc;
use core::cmp::Ordering;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::InvalidId;

/// The most bytes of a version.
pub const VERSION_BYTES_MAX: usize = 64;

/// The form of a version.
const FORM: &str = "1 to 64 of the characters A-Z a-z 0-9 . _ + -";

/// A version of an app, as its operator names it: `1.10.2`, `2026-11-28`, `v7`.
///
/// Numbers decide which of two is newer, part by part: 1.9 is older than 1.10. Of two with the same
/// beginning the longer one is newer. But a part that begins with `-` after a number marks a
/// pre-release of it (Semantic Versioning 2.0.0, section 11), and everything after a `+` is ignored
/// (section 10).
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppVersion(Arc<str>);

impl AppVersion {
    /// Checks the form of `text`.
    ///
    /// # Errors
    /// [`InvalidId`] names what was expected and what was found.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._+-".contains(&b);
        if (1..=VERSION_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(Arc::from(text)))
        } else {
            let found = text.chars().take(64).collect();
            Err(InvalidId { kind: "version", expected: FORM, found })
        }
    }

    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is newer than the other.
    #[must_use]
    pub fn is_newer_than(&self, other: &Self) -> bool {
        self.0 != other.0 && compare(&self.0, &other.0) == Ordering::Greater
    }

    /// The newer of the two that are given; of equal ones the first.
    #[must_use]
    pub fn newest(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) if other.is_newer_than(&one) => Some(other),
            (one, other) => one.or(other),
        }
    }
}

impl TryFrom<String> for AppVersion {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::new(&text)
    }
}

impl FromStr for AppVersion {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::new(text)
    }
}

impl From<AppVersion> for String {
    fn from(version: AppVersion) -> Self {
        Self::from(&*version.0)
    }
}

impl fmt::Display for AppVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AppVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn compare(a: &str, b: &str) -> Ordering {
    let bare = |text: &str| {
        let text = text.split('+').next().unwrap_or(text);
        let numbered = text.strip_prefix(['v', 'V']).filter(|rest| starts_with_digit(rest));
        String::from(numbered.unwrap_or(text))
    };
    let (a, b) = (bare(a), bare(b));
    let (mut a, mut b) = (a.as_str(), b.as_str());
    loop {
        match (a.is_empty(), b.is_empty()) {
            (true, true) => return Ordering::Equal,
            (true, false) if b.starts_with('-') => return Ordering::Greater,
            (true, false) => return Ordering::Less,
            (false, true) if a.starts_with('-') => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        let ((of_a, rest_a), (of_b, rest_b)) = (part(a), part(b));
        let order = if starts_with_digit(of_a) && starts_with_digit(of_b) {
            let (of_a, of_b) = (of_a.trim_start_matches('0'), of_b.trim_start_matches('0'));
            of_a.len().cmp(&of_b.len()).then_with(|| of_a.cmp(of_b))
        } else {
            of_a.cmp(of_b)
        };
        if order != Ordering::Equal {
            // After the same number a pre-release is older than any other continuation.
            return match (of_a.starts_with('-'), of_b.starts_with('-')) {
                (true, false) => Ordering::Less,
                (false, true) => Ordering::Greater,
                _ => order,
            };
        }
        (a, b) = (rest_a, rest_b);
    }
}

fn starts_with_digit(text: &str) -> bool {
    text.bytes().next().is_some_and(|byte| byte.is_ascii_digit())
}

/// The first run of digits, or of anything else.
fn part(text: &str) -> (&str, &str) {
    let digits = starts_with_digit(text);
    let end = text.bytes().position(|byte| byte.is_ascii_digit() != digits).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> AppVersion {
        AppVersion::new(text).unwrap()
    }

    #[test]
    fn numbers_decide_part_by_part_and_a_pre_release_comes_before_its_release() {
        let ascending = [
            ["1", "2"],
            ["1.9", "1.10"],
            ["1.9.9", "1.10"],
            ["1.10", "1.10.1"],
            ["2026-11-28", "2026-12-01"],
            ["1.0.0-rc1", "1.0.0"],
            ["1.0.0-rc2", "1.0.0-rc10"],
            ["1.0.0-rc1", "1.0.1"],
            ["1.0.0-rc1", "1.0.0.1"],
            ["v1.2", "1.3"],
            ["blue2", "blue10"],
            ["99999999999999999999998", "99999999999999999999999"],
        ];
        for [old, new] in ascending {
            assert!(version(new).is_newer_than(&version(old)), "{new} > {old}");
            assert!(!version(old).is_newer_than(&version(new)), "{old} < {new}");
        }
        for [a, b] in [["1.2", "1.2"], ["1.02", "1.2"], ["v3", "3"], ["1+a", "1+b"]] {
            assert!(!version(a).is_newer_than(&version(b)), "{a} = {b}");
            assert!(!version(b).is_newer_than(&version(a)), "{b} = {a}");
        }
    }

    #[test]
    fn a_version_is_short_and_has_no_blanks() {
        for wrong in ["", "a b", "1\n", "é", &"1".repeat(65)] {
            assert!(AppVersion::new(wrong).is_err(), "{wrong:?}");
        }
    }
}
