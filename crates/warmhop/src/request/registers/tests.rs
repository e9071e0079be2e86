//! The effect of one operation on a register's contents, by the clock that is passed in.

use super::operation::*;
use super::*;

const TTL: Duration = Duration::from_secs(100);
const KEY: &[u8] = b"cart";

/// A register before and after one operation.
struct Kept {
    state: Option<Arc<[u8]>>,
    expiry: u64,
    n: u64,
}

/// When the tests begin.
const NOW: u64 = 1 << 50;

impl Kept {
    fn nothing() -> Self {
        Self { state: None, expiry: 0, n: 0 }
    }

    /// Executes `operation` after `seconds`; returns whether it was done.
    fn after(&mut self, seconds: u64, operation: &Operation<'_>) -> bool {
        let now = NOW + seconds * 1000;
        self.n += 1;
        let turn = Turn {
            expiry: WallTime(self.expiry),
            idle_until: WallTime(now).after(TTL),
            n: Some(self.n),
        };
        let executed = execute(operation, self.state.as_ref(), &turn, TTL, WallTime(now));
        let (answer, next) = executed.unwrap();
        if let Some(Next { state, until }) = next {
            (self.state, self.expiry) = (state, until.0);
        }
        answer.done
    }

    /// The seconds until it expires, and its version.
    fn ends(&self) -> (u64, u64) {
        ((self.expiry - NOW) / 1000, parse(self.state.as_ref().unwrap()).unwrap().version)
    }
}

fn put(expires: Ending) -> Operation<'static> {
    Operation::Put { key: KEY, bytes: b"1", expires, when: When::Always }
}

#[test]
fn a_key_with_an_idle_time_lives_for_as_long_as_it_is_changed_or_read() {
    let mut kept = Kept::nothing();
    assert!(kept.after(0, &put(Ending::Idle)));
    assert_eq!(kept.ends(), (100, 1));
    assert!(kept.after(5, &put(Ending::Keep)));
    assert_eq!(kept.ends(), (105, 2), "a change moves the end at once");
    assert!(kept.after(15, &Operation::Get));
    assert_eq!(kept.ends(), (105, 2), "a read soon after the last move changes nothing");
    assert!(kept.after(16, &Operation::Get));
    assert_eq!(kept.ends(), (116, 2), "a later one moves the end and leaves the version");
    let absent =
        Operation::Put { key: KEY, bytes: b"2", expires: Ending::Idle, when: When::Absent };
    assert!(!kept.after(60, &absent));
    assert_eq!(kept.ends(), (160, 2), "a change that is not made is a use as well");
}

#[test]
fn an_end_of_its_own_is_moved_by_nothing_but_another() {
    let mut kept = Kept::nothing();
    let end = NOW + 50_000;
    kept.after(0, &put(Ending::At(end)));
    for (seconds, operation) in [(10, put(Ending::Keep)), (40, Operation::Get)] {
        assert!(kept.after(seconds, &operation));
        assert_eq!(kept.ends().0, 50);
    }
    let persists = Operation::Expire { expires: Ending::Idle, when: When::Present };
    assert!(kept.after(45, &persists));
    assert_eq!(kept.ends().0, 145);
    assert!(kept.after(80, &Operation::Get));
    assert_eq!(kept.ends().0, 180, "it ends by being idle from then on");
    assert!(kept.after(81, &put(Ending::At(end))));
    assert_eq!(kept.ends().0, 50, "and at a time again, which may be sooner");
}

#[test]
fn an_idle_end_is_not_brought_forward_by_a_peer_whose_clock_is_behind() {
    let mut kept = Kept::nothing();
    kept.after(60, &put(Ending::Idle));
    kept.after(10, &put(Ending::Keep));
    assert_eq!(kept.ends(), (160, 2));
}
