//! The judge finds each violation that a history was given, and reports no other; and its quick check of
//! the order agrees with one that tries every order.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::history::{Asked, Orphan};
use super::*;

const ME: Thread = Thread { client: 1, session: 0 };

fn list(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

fn attempt(number: u32, operation: Operation, span: (Micros, Micros), seen: Outcome) -> Attempt {
    Attempt {
        thread: ME,
        app: "ledger".to_owned(),
        number,
        attempt: 0,
        operation,
        entry: "peer-1".to_owned(),
        ran_at: None,
        request: None,
        began: span.0,
        ended: span.1,
        outcome: seen,
        forked: false,
    }
}

fn append(number: u32, item: &str, span: (Micros, Micros), seen: &[&str]) -> Attempt {
    let operation = Operation::Append { item: item.to_owned(), keyed: true, slow_ms: 0 };
    attempt(number, operation, span, Outcome::Answered { items: list(seen) })
}

fn read(number: u32, span: (Micros, Micros), seen: &[&str]) -> Attempt {
    attempt(number, Operation::Read, span, Outcome::Answered { items: list(seen) })
}

fn broken(number: u32, item: &str, span: (Micros, Micros)) -> Attempt {
    let operation = Operation::Append { item: item.to_owned(), keyed: false, slow_ms: 0 };
    attempt(number, operation, span, Outcome::Broken { error: "gone".to_owned() })
}

fn judged(attempts: Vec<Attempt>, faults: Vec<Fault>) -> Verdict {
    judge(&History { attempts, faults, ..History::default() })
}

fn fault(kind: &str, began: Micros, ended: Micros, may_lose: bool) -> Fault {
    Fault {
        kind: kind.to_owned(),
        peers: vec!["peer-1".to_owned()],
        what: String::new(),
        began,
        ended,
        whole: ended,
        may_lose,
        armed: None,
    }
}

/// Lost, doubled, stale, two histories, out of order.
fn counts(verdict: &Verdict) -> [u64; 5] {
    [verdict.lost, verdict.doubled, verdict.stale, verdict.split, verdict.disordered]
}

#[test]
fn a_history_with_answers_missing_holds() {
    let verdict = judged(
        vec![
            append(0, "a", (0, 10), &["a"]),
            broken(1, "b", (20, 30)),
            read(2, (40, 50), &["a"]),
            // The append without an answer takes effect late: it never ended.
            read(3, (60, 70), &["a", "b"]),
            append(4, "c", (80, 90), &["a", "b", "c"]),
            broken(5, "d", (95, 96)),
            read(6, (100, 110), &["a", "b", "c"]),
        ],
        vec![fault("kill", 15, 25, false)],
    );
    assert!(verdict.holds(), "{verdict}");
    assert_eq!((verdict.acknowledged, verdict.unexplained), (2, 0));
    assert_eq!(verdict.errors.values().map(|refusals| refusals.count).sum::<u64>(), 2);
}

#[test]
fn a_planted_violation_is_found_and_named() {
    let cases: [(&str, Vec<Attempt>, [u64; 5]); 7] = [
        (
            "an acknowledged append is gone",
            vec![append(0, "a", (0, 10), &["a"]), append(1, "b", (20, 30), &["b"])],
            [1, 0, 0, 1, 0],
        ),
        (
            "the last acknowledged append is gone",
            vec![append(0, "a", (0, 10), &["a"]), read(1, (20, 30), &[])],
            [1, 0, 1, 0, 0],
        ),
        (
            "an append was applied twice",
            vec![append(0, "a", (0, 10), &["a"]), read(1, (20, 30), &["a", "a"])],
            [0, 1, 0, 0, 0],
        ),
        (
            "a read is stale",
            vec![
                append(0, "a", (0, 10), &["a"]),
                append(1, "b", (20, 30), &["a", "b"]),
                read(2, (40, 50), &["a"]),
                read(3, (60, 70), &["a", "b"]),
            ],
            [0, 0, 1, 0, 0],
        ),
        (
            "two histories",
            vec![
                append(0, "a", (0, 10), &["a"]),
                broken(1, "b", (20, 30)),
                broken(2, "c", (20, 30)),
                read(3, (40, 50), &["a", "b"]),
                read(4, (60, 70), &["a", "c", "b"]),
            ],
            [0, 0, 0, 1, 0],
        ),
        (
            "two appends changed places",
            vec![
                append(0, "a", (0, 10), &["a"]),
                append(1, "b", (20, 30), &["b", "a"]),
                read(2, (40, 50), &["b", "a"]),
            ],
            [0, 0, 0, 1, 2],
        ),
        (
            "an item that nobody sent",
            vec![append(0, "a", (0, 10), &["a"]), read(1, (20, 30), &["a", "x"])],
            [0, 0, 0, 0, 1],
        ),
    ];
    for (what, attempts, expected) in cases {
        let verdict = judged(attempts, Vec::new());
        assert!(!verdict.holds(), "{what}");
        assert_eq!(counts(&verdict), expected, "{what}: {verdict}");
        assert!(!verdict.examples.is_empty(), "{what} is shown");
    }
}

#[test]
fn a_reported_loss_needs_a_cause() {
    let lost = |at| {
        let seen =
            Outcome::Refused { status: 200, problem: String::new(), lost: true, forked: false };
        vec![append(0, "a", (0, 10), &["a"]), attempt(1, Operation::Read, (at, at + 5), seen)]
    };
    let two = || vec![fault("two", 100, 200, true)];
    let verdict = judged(lost(300), two());
    assert!(verdict.holds());
    assert_eq!((verdict.reported_lost, verdict.lost_without_cause), (1, 0));
    let verdict = judged(lost(50), two());
    assert!(!verdict.holds());
    assert_eq!((verdict.reported_lost, verdict.lost_without_cause), (0, 1));
    assert!(!judged(lost(300), vec![fault("kill", 100, 200, false)]).holds());
}

#[test]
fn errors_are_explained_by_what_was_done_near_them() {
    let refused = Outcome::Refused {
        status: 503,
        problem: "urn:x:session-no-majority".to_owned(),
        lost: false,
        forked: false,
    };
    let at = |began| attempt(0, Operation::Read, (began, began + 10), refused.clone());
    let verdict = judged(vec![at(150)], vec![fault("partition", 100, 200, false)]);
    assert_eq!(verdict.unexplained, 0);
    let refusals = &verdict.errors["503 session-no-majority"];
    assert_eq!((refusals.count, refusals.during["partition"]), (1, 1));
    assert!(!refusals.allowed.is_empty());
    for began in [10, 300 + GRACE] {
        let verdict = judged(vec![at(began)], vec![fault("partition", 100, 200, false)]);
        assert_eq!(verdict.unexplained, 1, "{began}");
    }
}

#[test]
fn the_time_without_an_answer_is_from_the_first_attempt_to_it() {
    let mut attempts = vec![
        attempt(
            0,
            Operation::Append { item: "a".to_owned(), keyed: true, slow_ms: 1 },
            (100, 200),
            Outcome::Broken { error: String::new() },
        ),
        append(0, "a", (300, 5_100), &["a"]),
    ];
    attempts[1].attempt = 1;
    attempts[1].operation = attempts[0].operation.clone();
    let verdict = judged(attempts, vec![fault("kill", 150, 160, false)]);
    // 5,000 us in all, of which the app was asked to take 1,000.
    assert_eq!(verdict.unavailable["kill"].longest, 4_000);
}

#[test]
fn a_failure_that_no_fault_explains_is_unexplained_even_next_to_one() {
    let refused = |status| {
        let seen = Outcome::Refused { status, problem: String::new(), lost: false, forked: false };
        attempt(0, Operation::Read, (150, 160), seen)
    };
    for (status, unexplained) in [(500, 1), (404, 1), (422, 1), (409, 1), (503, 0), (502, 0)] {
        let verdict = judged(vec![refused(status)], vec![fault("kill", 100, 200, false)]);
        assert_eq!(verdict.unexplained, unexplained, "{status}");
    }
    // A repeat that meets its first attempt needs no fault.
    let mut repeat = refused(409);
    repeat.attempt = 1;
    assert_eq!(judged(vec![repeat], Vec::new()).unexplained, 0);
}

#[test]
fn a_session_that_is_born_after_a_fault_has_lost_nothing_to_it() {
    let seen = Outcome::Refused { status: 200, problem: String::new(), lost: true, forked: false };
    let born = 201;
    let attempts =
        vec![append(0, "a", (born, 210), &["a"]), attempt(1, Operation::Read, (220, 230), seen)];
    let verdict = judged(attempts, vec![fault("two", 100, 200, true)]);
    assert_eq!((verdict.reported_lost, verdict.lost_without_cause), (0, 1));
}

#[test]
fn a_wait_belongs_to_the_fault_in_whose_time_it_begins() {
    let faults = [
        fault("kill", 10_000_000, 11_000_000, false),
        fault("pause", 20_000_000, 21_000_000, false),
    ];
    let cases = [
        ((1, 2), None),
        // It was under way when the fault began.
        ((9_000_000, 10_500_000), Some(0)),
        ((10_500_000, 10_600_000), Some(0)),
        // It begins in one fault's time and lasts into another's.
        ((10_500_000, 20_500_000), Some(0)),
        ((11_900_000, 12_500_000), Some(0)),
        // It begins a moment after the one, in calm, and meets the other.
        ((11_900_000, 20_500_000), Some(1)),
        ((12_100_000, 12_500_000), None),
        ((12_100_000, 20_500_000), Some(1)),
    ];
    for ((began, ended), expected) in cases {
        assert_eq!(cause(&faults, began, ended), expected, "{began} to {ended}");
    }
}

#[test]
fn a_wait_without_an_answer_counts_until_it_was_given_up() {
    let mut again = broken(0, "a", (4_000, 9_000));
    again.attempt = 1;
    let verdict = judged(vec![broken(0, "a", (1_000, 3_000)), again], Vec::new());
    assert_eq!(verdict.unavailable["none"].longest, 8_000);
}

/// Whether any order of the operations explains every answer: tries them all.
fn some_order_explains(operations: &[Attempt], done: u32, state: &mut Vec<String>) -> bool {
    let left = |at: usize| done & (1 << at) == 0;
    let answered = |at: usize| matches!(operations[at].outcome, Outcome::Answered { .. });
    if (0..operations.len()).all(|at| !left(at) || !answered(at)) {
        return true;
    }
    // Whatever ended before another began comes first.
    let bound = (0..operations.len())
        .filter(|at| left(*at) && answered(*at))
        .map(|at| operations[at].ended)
        .min();
    for at in (0..operations.len()).filter(|at| left(*at)) {
        let next = &operations[at];
        if bound.is_some_and(|bound| next.began > bound) {
            continue;
        }
        let before = state.len();
        if let Operation::Append { item, .. } = &next.operation {
            state.push(item.clone());
        }
        let fits = match &next.outcome {
            Outcome::Answered { items } => items == state,
            _ => true,
        };
        let explained = fits && some_order_explains(operations, done | (1 << at), state);
        state.truncate(before);
        if explained {
            return true;
        }
    }
    false
}

#[test]
fn the_quick_check_agrees_with_one_that_tries_every_order() {
    let mut found = [0, 0];
    for seed in 0..20_000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        // A register that is right, asked by operations that overlap.
        let mut attempts: Vec<Attempt> = Vec::new();
        let mut state: Vec<String> = Vec::new();
        let mut clock: Micros = 0;
        for number in 0..rng.random_range(2..6) {
            clock += rng.random_range(1..20);
            let (began, ended) =
                (clock.saturating_sub(rng.random_range(0..25)), clock + rng.random_range(0..25));
            let item = format!("i{number}");
            let mut next = match rng.random_range(0..3) {
                0 => read(number, (began, ended), &[]),
                1 => append(number, &item, (began, ended), &[]),
                _ => broken(number, &item, (began, ended)),
            };
            if matches!(next.operation, Operation::Append { .. }) && rng.random_range(0..4) > 0 {
                state.push(item);
            } else if let (Operation::Append { .. }, Outcome::Answered { .. }) =
                (&next.operation, &next.outcome)
            {
                state.push(item);
            }
            if let Outcome::Answered { items } = &mut next.outcome {
                items.clone_from(&state);
            }
            attempts.push(next);
        }
        // Half of them are tampered with.
        if rng.random_range(0..2) == 0 {
            let at = rng.random_range(0..attempts.len());
            if let Outcome::Answered { items } = &mut attempts[at].outcome {
                match rng.random_range(0..3) {
                    0 => drop(items.pop()),
                    1 if items.len() > 1 => items.swap(0, 1),
                    _ => items.truncate(1),
                }
            }
        }
        let explained = some_order_explains(&attempts, 0, &mut Vec::new());
        let verdict = judged(attempts.clone(), Vec::new());
        assert_eq!(verdict.holds(), explained, "seed {seed}: {attempts:#?}\n{verdict}");
        found[usize::from(explained)] += 1;
    }
    assert!(found.iter().all(|count| *count > 1_000), "both kinds were tried: {found:?}");
}

#[test]
fn violations_at_keys_and_idle_sessions_fail_a_run_too() {
    let win = |client, value: &str| KeyOperation {
        client,
        key: "lock".to_owned(),
        door: format!("peer-{client}"),
        began: 10,
        ended: 20,
        asked: Asked::SetIfAbsent { value: value.to_owned() },
        came: Came::Done { done: true },
    };
    let verdict = judge(&History { keys: vec![win(1, "a")], ..History::default() });
    assert!(verdict.holds(), "{verdict}");
    let verdict = judge(&History { keys: vec![win(1, "a"), win(2, "b")], ..History::default() });
    assert_eq!((verdict.keys, verdict.keys_broken), ((1, 2), 1));
    assert!(!verdict.holds() && verdict.to_string().contains("no order explains key lock"));

    let reports = "peer-1: nothing".to_owned();
    let orphan = Orphan { key: "shop/1".to_owned(), thread: ME, fault: 0, at: 30, reports };
    let verdict = judge(&History { idle: 1, orphans: vec![orphan], ..History::default() });
    assert_eq!(verdict.orphaned, 1);
    assert!(!verdict.holds(), "{verdict}");
}

#[test]
fn a_session_without_a_write_is_never_lost() {
    let lost = |number, began| {
        let problem = "urn:warmhop:session-lost".to_owned();
        let outcome = Outcome::Refused { status: 503, problem, lost: true, forked: false };
        attempt(number, Operation::Read, (began, began + 1), outcome)
    };
    let two = || vec![fault("two", 15, 25, true)];
    let verdict = judged(vec![read(0, (0, 1), &[]), lost(1, 30)], two());
    assert_eq!((verdict.lost_nothing, verdict.reported_lost), (1, 0));
    assert!(!verdict.holds(), "{verdict}");
    let verdict = judged(vec![append(0, "a", (0, 1), &["a"]), lost(1, 30)], two());
    assert_eq!((verdict.lost_nothing, verdict.reported_lost), (0, 1));
    assert!(verdict.holds(), "{verdict}");
}
