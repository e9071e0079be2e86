//! The page is well-formed whatever a run contains, and shows what the verdict says.

use roxmltree::{Document, ParsingOptions};

use super::*;
use crate::chaos::history::{Armed, Attempt, Fault, Operation, Outcome, Sample, Thread};
use crate::chaos::judge::judge;

const HOSTILE: &str = "<script>alert('\"&')</script>\u{1}]]>";

fn history() -> History {
    let attempt = |number: u32, outcome| {
        let began = u64::from(number) * 400_000;
        Attempt {
            thread: Thread { client: number % 3, session: 0 },
            app: "ledger".to_owned(),
            number,
            attempt: 0,
            operation: Operation::Read,
            entry: "peer-1".to_owned(),
            ran_at: Some(format!("peer-{}", number / 9 % 2 + 1)),
            request: None,
            began,
            ended: began + 2_000 * u64::from(number + 1),
            outcome,
            forked: false,
        }
    };
    let refused =
        Outcome::Refused { status: 503, problem: HOSTILE.to_owned(), lost: false, forked: false };
    let answered = Outcome::Answered { items: Vec::new() };
    let mut attempts: Vec<Attempt> =
        (0..60).map(|number| attempt(number, answered.clone())).collect();
    attempts.push(attempt(60, refused));
    let fault = |kind: &str, began: Micros, peers: Vec<String>, armed| Fault {
        kind: kind.to_owned(),
        peers,
        what: HOSTILE.to_owned(),
        began,
        ended: began + 2_000_000,
        whole: began + 3_000_000,
        may_lose: false,
        armed,
    };
    let peers = vec!["peer-1".to_owned(), "peer-2".to_owned(), HOSTILE.to_owned()];
    let armed = Armed { point: "seal.after".to_owned(), pass: 2, tripped: true };
    History {
        seed: 7,
        cut_short: Some(HOSTILE.to_owned()),
        length: 26_000_000,
        faults: vec![
            fault("kill", 3_000_000, vec![HOSTILE.to_owned()], None),
            fault("failpoint", 12_000_000, vec!["peer-2".to_owned()], Some(armed)),
            fault("loss", 20_000_000, peers.clone(), None),
        ],
        samples: (0..26)
            .map(|second| Sample {
                at: second * 1_000_000,
                peer: peers[second as usize % 2].clone(),
                owned: (second % 5 > 0).then_some(second),
                copies: None,
            })
            .collect(),
        peers,
        attempts,
        ..History::default()
    }
}

fn options<'a>() -> ParsingOptions<'a> {
    ParsingOptions { allow_dtd: true, ..ParsingOptions::default() }
}

#[test]
fn the_page_is_well_formed_whatever_a_run_contains() {
    let none = History::default();
    for history in [history(), none] {
        let page = page(&history, &judge(&history));
        let document = Document::parse_with_options(&page, options());
        let document = document.unwrap_or_else(|error| panic!("{error}\n{page}"));
        let named = |name: &str| document.descendants().filter(|it| it.has_tag_name(name)).count();
        assert_eq!(named("script") + named("link") + named("img"), 0);
        let fetched = |name: &str| ["src", "href", "data"].contains(&name);
        let attributes = document.descendants().flat_map(|it| it.attributes());
        assert_eq!(attributes.filter(|it| fetched(it.name())).count(), 0, "nothing is fetched");
        for node in document.descendants().filter(|it| it.is_element()) {
            for attribute in node.attributes() {
                assert!(!attribute.value().contains("NaN"), "{node:?}");
                assert!(!attribute.value().contains("inf"), "{node:?}");
            }
        }
    }
}

#[test]
fn the_page_shows_the_verdict_and_every_fault() {
    let history = history();
    let page = page(&history, &judge(&history));
    let document = Document::parse_with_options(&page, options()).unwrap();
    let text: String =
        document.descendants().filter(|it| it.is_text()).filter_map(|it| it.text()).collect();
    assert!(text.contains("A promise was broken"), "it was cut short");
    for wanted in ["kill", "failpoint", "loss", "seal.after", "alert('", "60"] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    let class = |wanted: &str| {
        document.descendants().filter(|it| it.attribute("class") == Some(wanted)).count()
    };
    // A band behind each of five rows, for each of the faults.
    assert_eq!((class("bar"), class("band")), (3, 3 * 5));
}

#[test]
fn moves_are_counted_where_an_answer_comes_from_another_peer() {
    let history = history();
    let series = Series::of(&history, &waits::waits(&history));
    assert_eq!(series.bin, 1_000_000);
    // Each of the three clients is served by the one and the other in stretches of three.
    let all: u64 = series.moves_between.values().sum();
    assert_eq!(all, series.bins.iter().map(|bin| bin.moves).sum::<u64>());
    assert_eq!(all, 18);
    assert_eq!(series.bins.iter().map(|bin| bin.errors).sum::<u64>(), 1);
    assert_eq!(series.bins.iter().map(|bin| bin.answered).sum::<u64>(), 60);
}

#[test]
fn spans_and_numbers_read_as_people_write_them() {
    assert_eq!(span(2_345), "2.3 ms");
    assert_eq!(span(345_678), "346 ms");
    assert_eq!(span(3_456_789), "3.46 s");
    assert_eq!(span(605_000_000), "10 min 05 s");
    assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
    assert_eq!(count(12), "12");
}
