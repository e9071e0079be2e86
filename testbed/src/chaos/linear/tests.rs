//! Histories that the judge of keys must accept, and others that it must reject.

use super::*;

fn operation(span: (Micros, Micros), asked: Asked, came: Came) -> KeyOperation {
    let (began, ended) = span;
    let (key, door) = ("k".to_owned(), "peer-1".to_owned());
    KeyOperation { client: 0, key, door, began, ended, asked, came }
}

fn get(span: (Micros, Micros), value: Option<&str>) -> KeyOperation {
    operation(span, Asked::Get, Came::Value { value: value.map(str::to_owned) })
}

fn done() -> Came {
    Came::Done { done: true }
}

fn not_done() -> Came {
    Came::Done { done: false }
}

fn unknown() -> Came {
    Came::Unknown { error: "UNKNOWN".to_owned() }
}

fn set(span: (Micros, Micros), value: &str, came: Came) -> KeyOperation {
    operation(span, Asked::Set { value: value.to_owned() }, came)
}

fn begin(span: (Micros, Micros), value: &str, came: Came) -> KeyOperation {
    operation(span, Asked::SetIfAbsent { value: value.to_owned() }, came)
}

fn count(span: (Micros, Micros), number: i64) -> KeyOperation {
    operation(span, Asked::Increment, Came::Number { number })
}

fn replace(span: (Micros, Micros), from: &str, to: Option<&str>, came: Came) -> KeyOperation {
    let asked = Asked::Replace { from: from.to_owned(), to: to.map(str::to_owned) };
    operation(span, asked, came)
}

fn finding(operations: &[KeyOperation]) -> Finding {
    judge(&operations.iter().collect::<Vec<_>>(), &[])
}

#[test]
fn a_history_with_a_valid_order_is_accepted() {
    let delete = |span, came| operation(span, Asked::Delete, came);
    let accepted: [&[KeyOperation]; 8] = [
        &[],
        &[get((0, 1), None), set((2, 3), "a", done()), get((4, 5), Some("a"))],
        // Three at once, one of which wins, and all see which.
        &[
            begin((0, 9), "a", not_done()),
            begin((0, 9), "b", done()),
            begin((0, 9), "c", not_done()),
            get((10, 11), Some("b")),
        ],
        // Read before its writer was answered, and by a reader who began later not before that.
        &[set((0, 100), "a", done()), get((10, 20), Some("a")), get((30, 40), Some("a"))],
        &[count((0, 10), 2), count((0, 10), 1), get((11, 12), Some("2"))],
        // What nobody got an answer for may take effect late, or never.
        &[
            set((0, 1), "a", done()),
            set((2, 3), "b", unknown()),
            get((4, 5), Some("a")),
            get((6, 7), Some("b")),
        ],
        &[
            begin((0, 1), "a", done()),
            replace((2, 3), "a", None, unknown()),
            begin((4, 5), "b", done()),
            replace((6, 7), "b", Some("c"), done()),
            replace((6, 7), "b", Some("d"), not_done()),
            get((8, 9), Some("c")),
        ],
        &[
            begin((0, 1), "a", done()),
            delete((2, 3), done()),
            delete((4, 5), not_done()),
            begin((6, 7), "b", done()),
        ],
    ];
    for operations in accepted {
        assert_eq!(finding(operations), Finding::Linearizable, "{operations:#?}");
    }
}

#[test]
fn a_history_without_a_valid_order_is_rejected() {
    let refused = Came::Refused { error: "TRYAGAIN".to_owned() };
    let rejected: [&[KeyOperation]; 9] = [
        // Two winners.
        &[begin((0, 9), "a", done()), begin((0, 9), "b", done())],
        // Each beginner reads its own.
        &[
            set((0, 9), "a", done()),
            set((0, 9), "b", done()),
            get((10, 11), Some("a")),
            get((12, 13), Some("b")),
        ],
        // An acknowledged value is gone.
        &[set((0, 1), "a", done()), get((2, 3), None)],
        // A stale read, after another had seen the newer one.
        &[
            set((0, 1), "a", done()),
            set((2, 50), "b", done()),
            get((3, 4), Some("b")),
            get((5, 6), Some("a")),
        ],
        // A count twice over, and one left out.
        &[count((0, 10), 1), count((0, 10), 1)],
        &[count((0, 1), 1), count((2, 3), 3)],
        // Nobody wrote it; or it was written although the answer to its client said that it was not.
        &[get((0, 1), Some("a"))],
        &[set((0, 1), "a", refused), get((2, 3), Some("a"))],
        // Two transactions on one value that both go through.
        &[
            set((0, 1), "a", done()),
            replace((2, 9), "a", Some("b"), done()),
            replace((2, 9), "a", Some("c"), done()),
        ],
    ];
    for operations in rejected {
        assert_eq!(finding(operations), Finding::Broken, "{operations:#?}");
    }
}

#[test]
fn a_key_may_be_empty_after_a_fault_that_may_lose_it_and_after_no_other() {
    let fault = |began, may_lose| Fault {
        kind: "two".to_owned(),
        peers: Vec::new(),
        what: String::new(),
        began,
        ended: began + 1,
        whole: began + 2,
        may_lose,
        armed: None,
    };
    let history = [set((0, 1), "a", done()), get((20, 21), None)];
    let history: Vec<_> = history.iter().collect();
    assert_eq!(judge(&history, &[fault(10, true)]), Finding::Linearizable);
    assert_eq!(judge(&history, &[fault(10, false)]), Finding::Broken);
    assert_eq!(judge(&history, &[fault(30, true)]), Finding::Broken, "it came later");
}

#[test]
fn a_history_beyond_the_bound_is_not_judged() {
    let many: Vec<_> = (0..=OPERATIONS_MAX as u64).map(|at| get((at, at), None)).collect();
    assert_eq!(finding(&many), Finding::Undecided);
}
