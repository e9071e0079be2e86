//! The state that the keys of `status --watch` control: which page is open and what is selected on
//! it. The selection is a name and not a line, so that new data does not move it to something else.

use std::ops::ControlFlow;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// The longest filter.
const FILTER_CHARS_MAX: usize = 100;
/// How far the page keys move.
const PAGE: usize = 10;

/// The open page.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Page {
    /// The overview.
    #[default]
    Overview,
    /// An app, by its name.
    App(String),
    /// A request, by its id.
    Decision(String),
    /// Help on the keys.
    Help,
}

/// The list in which the keys move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Focus {
    #[default]
    Apps,
    Decisions,
}

/// The order of the apps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Sort {
    /// Apps that run anywhere or have failed first, then by name.
    #[default]
    State,
    Name,
    Requests,
    Errors,
}

impl Sort {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Name => "name",
            Self::Requests => "requests",
            Self::Errors => "errors",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::State => Self::Name,
            Self::Name => Self::Requests,
            Self::Requests => Self::Errors,
            Self::Errors => Self::State,
        }
    }
}

/// The items that can be selected now, in order.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// The apps' names.
    pub(super) apps: Vec<String>,
    /// The requests' ids.
    pub(super) decisions: Vec<String>,
    /// How many lines the open page has.
    pub(super) lines: usize,
}

/// The state that the keys control.
#[derive(Debug, Default)]
pub(super) struct Board {
    pub(super) page: Page,
    pub(super) focus: Focus,
    pub(super) sort: Sort,
    pub(super) filter: String,
    /// Whether keys are typed into the filter.
    pub(super) is_typing: bool,
    /// The first visible line of a page that is longer than the terminal.
    pub(super) scroll: usize,
    app: Option<String>,
    decision: Option<String>,
}

impl Board {
    /// Which of the apps or requests is selected, if the keys move in that list.
    pub(super) fn chosen(&self, of: Focus, among: &[String]) -> Option<usize> {
        if self.focus != of || among.is_empty() {
            return None;
        }
        let chosen = match of {
            Focus::Apps => &self.app,
            Focus::Decisions => &self.decision,
        };
        let at = chosen.as_ref().and_then(|it| among.iter().position(|other| other == it));
        // The selected item may be gone.
        Some(at.unwrap_or(0))
    }

    /// Carries out a key; breaks if it ends the program.
    pub(super) fn press(&mut self, key: KeyEvent, shown: &Shown) -> ControlFlow<()> {
        if key.kind == KeyEventKind::Release {
            return ControlFlow::Continue(());
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            };
        }
        if self.is_typing {
            self.type_key(key.code);
            return ControlFlow::Continue(());
        }
        match (key.code, &self.page) {
            (KeyCode::Char('q'), _) => return ControlFlow::Break(()),
            (KeyCode::Char('?'), Page::Help) => self.open(Page::Overview),
            (KeyCode::Char('?'), _) => self.open(Page::Help),
            (KeyCode::Esc, Page::Overview) if self.filter.is_empty() => {
                return ControlFlow::Break(());
            }
            (KeyCode::Esc, Page::Overview) => self.filter.clear(),
            (KeyCode::Esc | KeyCode::Enter | KeyCode::Backspace | KeyCode::Left, page)
                if *page != Page::Overview =>
            {
                self.open(Page::Overview);
            }
            (code, Page::Overview) => self.press_on_overview(code, shown),
            (code, _) => {
                if let Some(at) = moved(code, self.scroll, shown.lines) {
                    self.scroll = at;
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn open(&mut self, page: Page) {
        self.page = page;
        self.scroll = 0;
    }

    fn type_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char(c) if self.filter.chars().count() < FILTER_CHARS_MAX => {
                self.filter.push(c);
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            _ => {}
        }
    }

    fn press_on_overview(&mut self, code: KeyCode, shown: &Shown) {
        let among = match self.focus {
            Focus::Apps => &shown.apps,
            Focus::Decisions => &shown.decisions,
        };
        let chosen = self.chosen(self.focus, among);
        match code {
            KeyCode::Tab | KeyCode::BackTab => {
                self.focus = match self.focus {
                    Focus::Apps => Focus::Decisions,
                    Focus::Decisions => Focus::Apps,
                };
            }
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Enter => {
                let Some(name) = chosen.and_then(|at| among.get(at)).cloned() else { return };
                self.open(match self.focus {
                    Focus::Apps => Page::App(name),
                    Focus::Decisions => Page::Decision(name),
                });
            }
            code => {
                let at = chosen.and_then(|at| moved(code, at, among.len()));
                if let Some(name) = at.and_then(|at| among.get(at)).cloned() {
                    match self.focus {
                        Focus::Apps => self.app = Some(name),
                        Focus::Decisions => self.decision = Some(name),
                    }
                }
            }
        }
    }
}

/// The line that a key moves to from `at`, of `count` lines; `None` if the key does not move.
fn moved(code: KeyCode, at: usize, count: usize) -> Option<usize> {
    let to = match code {
        KeyCode::Up | KeyCode::Char('k') => at.saturating_sub(1),
        KeyCode::Down | KeyCode::Char('j') => at + 1,
        KeyCode::PageUp => at.saturating_sub(PAGE),
        KeyCode::PageDown => at + PAGE,
        KeyCode::Home | KeyCode::Char('g') => 0,
        KeyCode::End | KeyCode::Char('G') => count,
        _ => return None,
    };
    Some(to.min(count.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown() -> Shown {
        let named = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Shown {
            apps: named(&["atlas", "blog", "shop"]),
            decisions: named(&["r-2", "r-1"]),
            lines: 5,
        }
    }

    fn press(board: &mut Board, keys: &[KeyCode]) -> ControlFlow<()> {
        keys.iter().try_for_each(|code| board.press(KeyEvent::from(*code), &shown()))
    }

    #[test]
    fn keys_move_the_choice_and_open_what_is_chosen() {
        use KeyCode::{Char, Down, End, Enter, Esc, Tab, Up};
        for (keys, page) in [
            (&[Enter][..], Page::App("atlas".into())),
            (&[Down, Char('j'), Down, Enter], Page::App("shop".into())),
            (&[End, Up, Char('k'), Char('k'), Enter], Page::App("atlas".into())),
            (&[Tab, Char('G'), Enter], Page::Decision("r-1".into())),
            (&[Tab, Down, Tab, Enter], Page::App("atlas".into())),
            (&[Enter, Esc], Page::Overview),
            (&[Char('?')], Page::Help),
            (&[Char('?'), Char('?')], Page::Overview),
        ] {
            let mut board = Board::default();
            assert!(press(&mut board, keys).is_continue());
            assert_eq!(board.page, page, "{keys:?}");
        }
    }

    #[test]
    fn a_choice_stays_with_its_name_when_the_order_changes() {
        let mut board = Board::default();
        assert!(press(&mut board, &[KeyCode::Down]).is_continue());
        let later = ["shop".to_owned(), "atlas".into(), "blog".into()];
        assert_eq!(board.chosen(Focus::Apps, &later), Some(2));
        assert_eq!(board.chosen(Focus::Apps, &later[..2]), Some(0), "it has gone");
        assert_eq!(board.chosen(Focus::Apps, &[]), None);
        assert_eq!(board.chosen(Focus::Decisions, &later), None, "the keys move elsewhere");
    }

    #[test]
    fn a_filter_takes_the_letters_that_are_keys_elsewhere() {
        use KeyCode::{Backspace, Char, Enter, Esc};
        let mut board = Board::default();
        let typed = [Char('/'), Char('q'), Char('s'), Char('?'), Backspace, Enter];
        assert!(press(&mut board, &typed).is_continue());
        assert_eq!((board.filter.as_str(), board.is_typing), ("qs", false));
        assert!(press(&mut board, &[Char('s')]).is_continue());
        assert_eq!(board.sort, Sort::Name);
        assert!(press(&mut board, &[Esc]).is_continue(), "it takes the filter back first");
        assert_eq!(board.filter, "");
        assert!(press(&mut board, &[Esc]).is_break());
    }

    #[test]
    fn q_and_control_c_end_it_from_every_page() {
        use KeyCode::{Char, Enter, Tab};
        for keys in [&[][..], &[Enter], &[Tab, Enter], &[Char('?')]] {
            let mut board = Board::default();
            assert!(press(&mut board, keys).is_continue());
            assert!(press(&mut board, &[Char('q')]).is_break(), "{keys:?}");
        }
        let mut board = Board::default();
        assert!(press(&mut board, &[Char('/')]).is_continue());
        let interrupt = KeyEvent::new(Char('c'), KeyModifiers::CONTROL);
        assert!(board.press(interrupt, &shown()).is_break());
    }

    #[test]
    fn a_page_scrolls_no_further_than_its_last_line() {
        let mut board = Board::default();
        let keys = [KeyCode::Enter, KeyCode::PageDown, KeyCode::Down];
        assert!(press(&mut board, &keys).is_continue());
        assert_eq!(board.scroll, 4);
        assert!(press(&mut board, &[KeyCode::Esc, KeyCode::Enter]).is_continue());
        assert_eq!(board.scroll, 0, "a page that was just opened begins at its beginning");
    }
}
