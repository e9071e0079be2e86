//! The identifiers that every other module uses. Each is a newtype, so that one cannot be passed
//! for another, and each refuses malformed text at the edge, so that nothing inside has to check
//! again.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::str::FromStr;
use core::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a valid identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidId {
    /// The kind of identifier, such as `peer name`.
    pub kind: &'static str,
    /// The form that it should have had.
    pub expected: &'static str,
    /// The text itself, cut to 64 characters.
    pub found: String,
}

impl InvalidId {
    /// `found` is not a valid `kind`: it does not have the form `expected`.
    #[must_use]
    pub fn new(kind: &'static str, expected: &'static str, found: &str) -> Self {
        Self { kind, expected, found: found.chars().take(64).collect() }
    }
}

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a valid {}: expected {}", self.found, self.kind, self.expected)
    }
}

impl core::error::Error for InvalidId {}

/// Gives a type made of checked text its serialized form: the text, borrowed on both ways.
macro_rules! serialized_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Text(PhantomData))
            }
        }

        impl Checked for $name {
            fn checked(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }
    };
}

/// Is made of a text whose form is checked.
trait Checked: Sized {
    fn checked(text: &str) -> Result<Self, InvalidId>;
}

/// Reads a text of the form that `T` demands.
struct Text<T>(PhantomData<T>);

impl<T: Checked> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::checked(text).map_err(E::custom)
    }
}

fn name_checked(
    text: &str,
    kind: &'static str,
    expected: &'static str,
    len_max: usize,
) -> Result<Arc<str>, InvalidId> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if (1..=len_max).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(Arc::from(text))
    } else {
        Err(InvalidId { kind, expected, found: text.chars().take(64).collect() })
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $expected:literal, $len_max:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        serialized_as_text!($name);

        impl $name {
            /// Checks the form of `text`: see [`InvalidId::expected`] of the error.
            ///
            /// # Errors
            /// [`InvalidId`] names what was expected and what was found.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                name_checked(text, $kind, $expected, $len_max).map(Self)
            }

            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(&text)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type! {
    /// The name of a peer, unique within its cluster. Its certificate vouches for it, links are
    /// pooled by it, and it is the route at the end of the affinity cookie. A restarted peer keeps
    /// its `PeerId` and draws a new [`Incarnation`].
    PeerId, "peer name", "1 to 32 of the characters A-Z a-z 0-9 _ -", 32
}

name_type! {
    /// The name of an app, the same on every peer that knows it.
    AppName, "app name", "1 to 64 of the characters A-Z a-z 0-9 _ -", 64
}

/// The serialized form of 16 bytes: one after the other.
///
/// A binary encoding writes a float as the eight bytes that it consists of, so two floats have the form
/// of 16 bytes, and take an eighth of the steps.
mod sixteen_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        bytes: &[u8; 16],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return bytes.serialize(serializer);
        }
        let half = |at: usize| {
            let mut half = [0; 8];
            half.copy_from_slice(&bytes[at..at + 8]);
            f64::from_le_bytes(half)
        };
        (half(0), half(8)).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u8; 16], D::Error> {
        if deserializer.is_human_readable() {
            return <[u8; 16]>::deserialize(deserializer);
        }
        let (first, second) = <(f64, f64)>::deserialize(deserializer)?;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..].copy_from_slice(&second.to_le_bytes());
        Ok(bytes)
    }
}

macro_rules! random_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(#[serde(with = "sixteen_bytes")] pub [u8; 16]);

        impl fmt::Display for $name {
            /// 32 lower-case hexadecimal digits.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let mut text = [0; 32];
                for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
                    pair[0] = DIGITS[usize::from(byte >> 4)];
                    pair[1] = DIGITS[usize::from(byte & 15)];
                }
                f.write_str(core::str::from_utf8(&text).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            /// The first eight digits, enough to tell two apart in a trace.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = || InvalidId {
                    kind: stringify!($name),
                    expected: "32 hexadecimal digits",
                    found: text.chars().take(64).collect(),
                };
                if text.len() != 32 || !text.is_ascii() {
                    return Err(invalid());
                }
                let mut bytes = [0; 16];
                for (byte, at) in bytes.iter_mut().zip((0..32).step_by(2)) {
                    *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| invalid())?;
                }
                Ok(Self(bytes))
            }
        }
    };
}

random_type! {
    /// One life of a peer's process, drawn at its start: four random bytes, six of its peer's name
    /// ([`Incarnation::of`]) and six of its start time. A restarted peer has lost its memory and is
    /// another member of a session.
    Incarnation
}

impl Incarnation {
    /// The part that all lives of one peer have in common: a digest of its name.
    #[must_use]
    pub fn name(&self) -> [u8; 6] {
        let mut name = [0; 6];
        name.copy_from_slice(&self.0[4..10]);
        name
    }

    /// Whether this is a life of the peer of this name.
    #[must_use]
    pub fn is_of(&self, peer: &PeerId) -> bool {
        self.name() == Self::of(peer, WallTime::default(), 0).name()
    }

    /// When the process began, by its machine's clock.
    pub(crate) fn began(&self) -> WallTime {
        let began = &self.0[10..];
        WallTime(began.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
    }

    /// Whether `other` is a later life of the same peer. Names are unique, so `self` is over once
    /// `other` is or was alive: anyone who knows `other` can conclude that, whether they saw the
    /// end of `self` or began after it. If a clock went back between the two, nobody can.
    #[must_use]
    pub fn is_before(&self, other: &Self) -> bool {
        self.name() == other.name() && self.0[10..] < other.0[10..]
    }
}

random_type! {
    /// Distinguishes one session of an app from another: 128 random bits.
    SessionId
}

random_type! {
    /// Names one request of a session (`rid`) independently of its attempts, so that it is applied
    /// once however often it is tried. For a keyed request it is a digest of its key; for any other
    /// it is random.
    RequestKey
}

/// One session of one app.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionKey {
    /// The app that the session belongs to.
    pub app: AppName,
    /// Which of the app's sessions.
    pub sid: SessionId,
}

impl fmt::Display for SessionKey {
    /// `APP/SID`, the form that `warmhop session` takes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.sid)
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:?}", self.app, self.sid)
    }
}

impl FromStr for SessionKey {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let (app, sid) = text.split_once('/').ok_or_else(|| InvalidId {
            kind: "session key",
            expected: "APP/SID, such as shop/000102030405060708090a0b0c0d0e0f",
            found: text.chars().take(64).collect(),
        })?;
        Ok(Self { app: app.parse()?, sid: sid.parse()? })
    }
}

/// A request as people see it: in `Warmhop-Request-Id`, in logs, in `warmhop why`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(Arc<str>);

serialized_as_text!(RequestId);

/// Which bytes a request's id may have: a look is cheaper than a comparison with each kind.
const ALLOWED_IN_REQUEST_ID: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut byte: u8 = 0;
    while byte < 128 {
        allowed[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'/' | b'+' | b'=' | b'@');
        byte += 1;
    }
    allowed
};

impl RequestId {
    /// Accepts 1 to 128 characters of the unreserved set of RFC 3986 section 2.3 and
    /// `: / + = @`, which keeps an id harmless in logs, headers and shells.
    ///
    /// # Errors
    /// [`InvalidId`] for anything else.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        let allowed = |byte: u8| ALLOWED_IN_REQUEST_ID[usize::from(byte)];
        if (1..=128).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(Arc::from(text)))
        } else {
            Err(InvalidId {
                kind: "request id",
                expected: "1 to 128 of the characters A-Z a-z 0-9 - . _ ~ : / + = @",
                found: text.chars().take(64).collect(),
            })
        }
    }

    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RequestId {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::new(&text)
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> String {
        id.0.to_string()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A proposer's ballot: a higher one takes ownership from a lower one. Ordered by round,
/// then by the proposer, so that two peers never share one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// Grows with each take-over.
    pub round: u64,
    /// The peer that proposes.
    pub proposer: Incarnation,
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:?}", self.round, self.proposer)
    }
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The position of a record in a session's history: ballot first, then its number within
/// the ballot. Each position is used for one record only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The proposer's ballot.
    pub ballot: Ballot,
    /// Which of the proposer's records.
    pub n: u64,
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.ballot, self.n)
    }
}

/// A reading of this process's monotonic clock, in milliseconds since a start that only
/// this process knows. Never compared across peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Now(pub u64);

impl Now {
    /// How long ago `earlier` was; zero if it is in the future.
    #[must_use]
    pub fn since(self, earlier: Now) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The reading `span` later.
    #[must_use]
    pub fn after(self, span: Duration) -> Now {
        Now(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Wall-clock time in milliseconds since the Unix epoch: for times on which peers must agree
/// roughly, such as a session's expiry. It may jump.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct WallTime(pub u64);

impl WallTime {
    /// The time `span` later.
    #[must_use]
    pub fn after(self, span: Duration) -> WallTime {
        WallTime(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn names_refuse_what_could_break_a_cookie_or_a_header() {
        assert!(PeerId::new("peer-1_A").is_ok());
        for bad in ["", "a.b", "a b", "a;b", "é", "a\nb", &"x".repeat(33)] {
            assert!(PeerId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_session_key_reads_back_as_it_is_shown() {
        let key = SessionKey { app: AppName::new("shop").unwrap(), sid: SessionId([7; 16]) };
        assert_eq!(format!("{key}").parse::<SessionKey>().unwrap(), key);
        assert!("shop".parse::<SessionKey>().is_err());
        assert!("shop/zz".parse::<SessionKey>().is_err());
        assert!("shop/ééééééééééééééééé".parse::<SessionKey>().is_err());
    }

    #[test]
    fn a_later_life_of_a_name_shows_that_an_earlier_one_is_over() {
        let life = |name, born, random| {
            Incarnation::of(&PeerId::new(name).unwrap(), WallTime(born), random)
        };
        let (earlier, later) = (life("a", 1_700_000_000_000, 9), life("a", 1_700_000_000_001, 2));
        assert!(earlier.is_before(&later) && !later.is_before(&earlier));
        // Of two lives that began in one millisecond, nobody can tell which came first.
        assert!(!earlier.is_before(&life("a", 1_700_000_000_000, 3)));
        assert!(!earlier.is_before(&life("b", 1_700_000_000_001, 2)));
        assert!(earlier.is_of(&PeerId::new("a").unwrap()));
        assert!(!earlier.is_of(&PeerId::new("b").unwrap()));
    }

    #[test]
    fn positions_order_by_ballot_before_number() {
        let at =
            |round, n| Position { ballot: Ballot { round, proposer: Incarnation([0; 16]) }, n };
        assert!(at(2, 1) > at(1, 9));
        assert!(at(2, 2) > at(2, 1));
    }

    #[test]
    fn a_clock_that_runs_backwards_gives_zero_not_a_panic() {
        assert_eq!(Now(5).since(Now(9)), Duration::ZERO);
        assert_eq!(Now(u64::MAX).after(Duration::from_secs(1)), Now(u64::MAX));
    }
}
