//! A peer's answers, as text and as pages of a terminal.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent};
use ratatui::style::Color;
use serde_json::json;
use warmhop::status::History;

use super::board::Board;
use super::frame::Scene;
use super::*;

fn status(uptime_ms: u64, served: u64) -> Status {
    Status::deserialize(json!({
        "peer": {"name": "peer-1", "state": "serving", "version": "0.1.0",
                 "uptime_ms": uptime_ms, "http": ["127.0.0.1:8081"], "mesh": "127.0.0.1:7001"},
        "apps": [
            {"name": "shop", "state": "starting", "starts": 1, "eta_ms": 1500,
             "starting_ms": 1500, "waiting": 2, "requests": {"served": served, "hopped": 4}},
            {"name": "blog", "state": "cold", "starts": 2, "eta_ms": 900,
             "error": "it exited with status 3\n\u{1b}[31mboom"}
        ],
        "peers": [
            {"name": "peer-2", "alive": true, "state": "suspect", "rtt_us": 300,
             "apps": {"shop": "starting", "blog": "ready", "atlas": "ready"},
             "copies": {"shop": {"eta_ms": 2000}}, "hops_sent": 4, "hops_received": 7}
        ],
        "sessions": {"owned": 1, "copies": 30}, "takeovers": 2
    }))
    .unwrap()
}

fn recent() -> Vec<RequestTrace> {
    Recent::deserialize(json!({"requests": [
        {"id": "r-2", "role": "entry", "app": "shop", "request": "GET /search", "status": 200,
         "served_by": "peer-2", "head_ms": 2.0,
         "steps": [{"what": "hop", "why": "ready on peer-2 alone\u{1b}[2J"}]},
        {"id": "r-1", "role": "hop", "app": "blog", "request": "GET /", "status": 200,
         "steps": [{"what": "arrived", "why": "sent here by peer-2: serve it"}]}
    ]}))
    .unwrap()
    .requests
}

#[test]
fn a_text_tells_what_flows_what_starts_and_what_was_decided() {
    let mut watch = Watch::default();
    watch.hear(status(1000, 10), recent());
    let first = watch.text();
    assert!(first.contains("requests a second: counting"), "{first}");
    watch.hear(status(3000, 25), recent());
    let text = watch.text();
    for line in [
        "peer-1 is serving, up 3.0 s, version 0.1.0; owns 1 session, holds 30 copies, took 2 over\n",
        "requests a second: 7.5 served here, 0.0 hopped away, 0.0 hopped in\n",
        "peer-2             suspect  300 µs      4          7",
        "shop   starting      peer-2 starting (2.0 s left)  █████░░░░░ 1.5 s left  0          2        1\n",
        "blog   cold, failed  peer-2 ready                  takes 900 ms",
        "atlas  not here      peer-2 ready\n",
        "blog: it exited with status 3\n",
        "to peer-2  200, 2.0 ms  GET /search  shop  ready on peer-2 alone\u{fffd}[2J\n",
        "hopped in  200          GET /        blog  sent here by peer-2: serve it\n",
    ] {
        assert!(text.contains(line), "{line:?} in\n{text}");
    }
    // A restarted peer has counted nothing yet.
    watch.hear(status(10, 0), Vec::new());
    let anew = watch.text();
    assert!(anew.contains("requests a second: counting"), "{anew}");
}

#[test]
fn a_pause_between_two_answers_changes_no_rate() {
    let mut watch = Watch::default();
    watch.hear(status(1000, 10), Vec::new());
    // All of it was asked for in one moment here, by a terminal that was stopped meanwhile.
    watch.hear(status(101_000, 210), Vec::new());
    let text = watch.text();
    assert!(text.contains("requests a second: 2.0 served here"), "{text}");
    watch.hear(status(101_000, 210), Vec::new());
    assert_eq!(watch.text(), text, "the same answer twice");
}

#[test]
fn a_request_is_described_by_its_outcome() {
    let described = |steps: &[&str], status: Option<u16>| {
        let steps: Vec<_> = steps.iter().map(|what| json!({"what": what, "why": what})).collect();
        let trace = json!({"role": "entry", "status": status, "sent_to": "peer-3",
                           "served_by": "peer-2", "steps": steps});
        let trace = RequestTrace::deserialize(trace).unwrap();
        (words(&trace, decided(&trace)), answer(&trace))
    };
    for (steps, status, what, answered) in [
        (&["serve"][..], Some(200), "served", "200"),
        (&["wait", "hop"], Some(200), "to peer-3", "200"),
        (&["owner", "forward"], Some(200), "to peer-3", "200"),
        (&["wait", "cancelled"], None, "waited", "client left"),
        (&["refuse", "problem"], Some(503), "refused", "503"),
        (&["page", "problem"], Some(503), "shown a page", "503"),
        (&["hop", "broken", "problem"], Some(502), "problem", "502"),
        (&["problem"], Some(404), "problem", "404"),
        (&["serve", "cut-off"], Some(200), "broke off", "200"),
        (&[], None, "", ""),
    ] {
        assert_eq!(described(steps, status), (what.into(), answered.into()), "{steps:?}");
    }
}

/// A terminal in front of a peer.
struct Seat {
    watch: Watch,
    board: Board,
    terminal: Terminal<TestBackend>,
    coloured: bool,
    silence: Option<&'static str>,
}

impl Seat {
    fn before(watch: Watch, columns: u16, rows: u16) -> Self {
        Self {
            watch,
            board: Board::default(),
            terminal: Terminal::new(TestBackend::new(columns, rows)).unwrap(),
            coloured: false,
            silence: None,
        }
    }

    fn scene(&self) -> Scene<'_> {
        Scene {
            watch: &self.watch,
            board: &self.board,
            silence: self.silence,
            coloured: self.coloured,
            now: UNIX_EPOCH + Duration::from_secs(12),
        }
    }

    fn press(&mut self, keys: &[KeyCode]) -> String {
        for code in keys {
            let shown = self.scene().shown();
            assert!(self.board.press(KeyEvent::from(*code), &shown).is_continue(), "{code:?}");
        }
        self.look()
    }

    /// The contents of the terminal.
    fn look(&mut self) -> String {
        let scene = Scene {
            watch: &self.watch,
            board: &self.board,
            silence: self.silence,
            coloured: self.coloured,
            now: UNIX_EPOCH + Duration::from_secs(12),
        };
        self.terminal.draw(|frame| scene.draw(frame)).unwrap();
        let buffer = self.terminal.backend().buffer();
        let mut text = String::new();
        for y in 0..buffer.area.height {
            let line: String = (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// The colours of the places where `word` is shown.
    fn colours_of(&self, word: &str) -> Vec<Color> {
        let buffer = self.terminal.backend().buffer();
        let cells: Vec<_> = buffer.content().iter().collect();
        let word: Vec<String> = word.chars().map(String::from).collect();
        let is_word = |at: &usize| {
            cells[*at..].iter().zip(&word).all(|(cell, letter)| cell.symbol() == letter)
        };
        let found = (0..cells.len().saturating_sub(word.len())).filter(is_word);
        found.map(|at| cells[at].fg).collect()
    }
}

fn informed() -> Watch {
    let mut watch = Watch::default();
    watch.hear(status(1000, 10), recent());
    watch.hear(status(3000, 25), recent());
    let history = json!({"interval_ms": 10_000, "intervals_max": 60, "apps": {"shop": [
        {"ended_ms_ago": 300_000, "lasted_ms": 10_000, "requests": 90},
        {"ended_ms_ago": 0, "lasted_ms": 10_000, "requests": 30, "failed": 3}
    ]}});
    watch.traffic = Traffic::of(&[History::deserialize(history).unwrap()]);
    watch
}

/// A mesh with more of everything than fits.
fn crowd() -> Watch {
    let mut reported = status(1000, 1);
    reported.peers[0].state = "alive".into();
    let copy = |name: &str| json!({"name": name, "state": "cold"});
    for number in 0..20 {
        reported.apps.push(AppStatus::deserialize(copy(&format!("tenant-{number:02}"))).unwrap());
    }
    reported.apps[19].state = "starting".into();
    reported.apps[18].name =
        "tenant-with-a-very-long-name-that-never-ends-acme-corporation-eu".into();
    reported.apps[18].state = "ready".into();
    for number in 3..9 {
        let peer = json!({"name": format!("peer-{number}"), "alive": number != 8});
        reported.peers.push(OtherPeer::deserialize(peer).unwrap());
    }
    let mut watch = Watch::default();
    watch.hear(reported, (0..3).flat_map(|_| recent()).collect());
    watch
}

#[test]
fn one_page_of_an_ordinary_terminal_shows_the_mesh_its_traffic_and_its_decisions() {
    let mut seat = Seat::before(informed(), 80, 24);
    let text = seat.look();
    for line in [
        "peer-1 is serving, up 3.0 s, version 0.1.0; owns 1 session, holds 30 copies, to…\n",
        "requests a second: 7.5 served here, 0.0 hopped away, 0.0 hopped in\n",
        "peer-1 (this one)  serving",
        "peer-2             suspect  300 µs      4          7",
        "blog: it exited with status 3\n",
        "12 s  to peer-2  200, 2.0 ms  GET /search",
        "12 s  hopped in  200          GET /",
    ] {
        assert!(text.contains(line), "{line:?} in\n{text}");
    }
    let shop = text.lines().find(|line| line.starts_with("shop")).unwrap();
    for part in ["starting", "█████░░░░░ 1.5 s left", "1.0", "2.5 %"] {
        assert!(shop.contains(part), "{part} in {shop:?}");
    }
    assert!(!text.contains('\u{1b}'), "{text:?}");

    let mut wide = Seat::before(informed(), 140, 30);
    let text = wide.look();
    let shop = text.lines().find(|line| line.starts_with("shop")).unwrap();
    assert!(shop.contains('█') && shop.contains("▂") | shop.contains("▃"), "no plot in {shop:?}");
}

#[test]
fn what_is_not_reached_is_named_at_the_top() {
    let mut reported = status(3000, 25);
    let seed = json!({"seed": "far.example:7001", "reached": false, "error": "nobody answers"});
    reported.seeds.push(warmhop::status::SeedStatus::deserialize(seed).unwrap());
    reported.peers[0].unlinked = Some("it refuses this peer's certificate".into());
    let mut watch = Watch::default();
    watch.hear(reported, recent());
    let text = Seat::before(watch, 80, 24).look();
    for line in [
        "seeds: 0 of 1 reached\n  far.example:7001: nobody answers\n",
        "  peer-2: it refuses this peer's certificate\n",
    ] {
        assert!(text.contains(line), "{line:?} in\n{text}");
    }
}

#[test]
fn keys_sort_filter_and_open_what_is_chosen() {
    use KeyCode::{Char, Down, Enter, Esc, Tab};
    let mut seat = Seat::before(informed(), 80, 24);
    let order = |text: &str| -> Vec<String> {
        let lines = text.lines().skip_while(|line| !line.starts_with("APP")).skip(1).take(3);
        lines.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
    };
    assert_eq!(order(&seat.look()), ["atlas", "blog", "shop"]);
    assert_eq!(order(&seat.press(&[Char('s'), Char('s')])), ["shop", "atlas", "blog"]);

    let page = seat.press(&[Down, Down, Enter]);
    for part in ["blog\n", "peer-1 (this one)  cold, failed", "peer-2             ready", "boom\n"]
    {
        assert!(page.contains(part), "{part:?} in\n{page}");
    }
    let page = seat.press(&[Esc, Tab, Down, Enter]);
    for part in ["request    r-1\n", "sent here by peer-2: serve it"] {
        assert!(page.contains(part), "{part:?} in\n{page}");
    }
    // Its trace is shown for as long as the peer sends it.
    seat.watch.hear(status(4000, 25), Vec::new());
    assert!(seat.look().contains("warmhop why r-1"));
    seat.watch.hear(status(5000, 25), recent());

    let found = seat.press(&[Esc, Char('/'), Char('S'), Char('h')]);
    assert!(found.contains("/Sh▏"), "{found}");
    let found = seat.press(&[Char('o'), Enter]);
    assert_eq!(order(&found)[0], "shop");
    assert!(!found.contains("atlas") && !found.contains("sent here by"), "{found}");
    let none = seat.press(&[Char('/'), Char('x')]);
    assert!(none.contains("no app has that in its name"), "{none}");
    assert!(seat.press(&[Esc, Char('?')]).contains("these keys"));
}

#[test]
fn an_apps_page_draws_its_last_minutes() {
    let mut seat = Seat::before(informed(), 80, 24);
    let page = seat.press(&[KeyCode::End, KeyCode::Enter]);
    let expected = "requests: 1.0 a second; 120 in the last 10 min, of them 3 failed\n";
    assert!(page.contains(expected), "{page}");
    assert!(page.contains('█'), "{page}");
}

#[test]
fn a_small_terminal_shows_what_matters_of_many_apps_and_peers() {
    for (columns, shown) in [
        (80, &["HERE", "ELSEWHERE", "PROGRESS", "ROUND TRIP", "HOPS SENT", "WHY"][..]),
        (40, &["HERE", "STATE", "ROUND TRIP", "ANSWER", "REQUEST"]),
    ] {
        let text = Seat::before(crowd(), columns, 24).look();
        for head in shown {
            assert!(text.contains(head), "no {head} within {columns}:\n{text}");
        }
        for what in ["n-eu", "tenant-17", "peer-8", "gone", "more apps", "more peers"] {
            assert!(text.contains(what), "no {what} within {columns}:\n{text}");
        }
        let requests = text.lines().skip_while(|line| !line.starts_with("AGO")).skip(1);
        assert!(requests.filter(|line| line.contains("GET /")).count() >= 4, "{text}");
    }
}

#[test]
fn the_choice_stays_in_sight_however_far_it_goes() {
    let mut seat = Seat::before(crowd(), 80, 24);
    assert!(!seat.look().contains("tenant-19"));
    assert!(seat.press(&[KeyCode::End]).contains("tenant-19"));
    assert!(!seat.press(&[KeyCode::Home]).contains("tenant-19"));
}

#[test]
fn a_silent_peer_is_said_to_be_silent_above_its_last_status() {
    const SILENCE: &str = "no answer for 7 s, trying again: nobody listens at that address";
    let mut seat = Seat::before(Watch::default(), 36, 24);
    seat.silence = Some(SILENCE);
    let text = seat.look();
    assert!(text.starts_with("no answer for 7 s, trying again:\nnobody listens at that"), "{text}");

    seat.coloured = true;
    seat.watch = informed();
    let text = seat.look();
    let begins = "no answer for 7 s, trying again: no…\npeer-1 was serving";
    assert!(text.starts_with(begins), "{text}");
    assert_eq!(seat.colours_of("no answer for"), [Color::Red]);
    assert!(!seat.colours_of("serving").contains(&Color::Green), "{text}");
    seat.terminal.backend_mut().resize(120, 40);
    assert!(seat.look().contains("requests a second: not known"));
    seat.silence = None;
    seat.look();
    assert!(seat.colours_of("serving").contains(&Color::Green));
}

#[test]
fn without_colours_nothing_is_coloured_and_with_them_only_what_says_something() {
    let mut seat = Seat::before(informed(), 120, 30);
    seat.look();
    let coloured = |seat: &Seat| {
        let cells = seat.terminal.backend().buffer().content().iter();
        cells.filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset).count()
    };
    assert_eq!(coloured(&seat), 0);
    seat.coloured = true;
    seat.look();
    assert!(seat.colours_of("cold, failed").contains(&Color::Red));
    assert!(seat.colours_of("GET /search").contains(&Color::Reset));
}

#[test]
fn any_size_is_drawn_and_a_resized_terminal_is_drawn_anew() {
    use KeyCode::{Char, Enter, Esc, Tab};
    for watch in [Watch::default, informed, crowd] {
        let mut seat = Seat::before(watch(), 80, 24);
        for keys in [&[][..], &[Enter], &[Esc, Tab], &[Enter], &[Char('?')]] {
            if seat.watch.latest.is_some() {
                seat.press(keys);
            }
            for (columns, rows) in [(80, 24), (40, 10), (20, 5), (7, 3), (1, 1), (200, 60)] {
                seat.terminal.backend_mut().resize(columns, rows);
                assert_eq!(seat.look().lines().count(), usize::from(rows));
            }
        }
    }
}
