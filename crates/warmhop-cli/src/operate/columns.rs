//! The tables that the commands print: columns two spaces apart and no lines between them.

use comfy_table::{Attribute, Cell, Color, Table, presets};

use crate::operate::clean::clean;

/// The state of an app that returned to cold after a failure; the reason is shown with it.
pub(crate) const COLD_AFTER_A_FAILURE: &str = "cold, failed";
/// Between two columns.
const GAP: u16 = 2;

/// Columns, each as wide as a terminal shows its widest cell: some characters take two places
/// there, and others none.
pub(crate) struct Columns {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Columns {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    /// Names and reasons come from another machine; control sequences are removed.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| clean(cell)).collect());
    }

    pub(crate) fn print(&self, text: &mut String, coloured: bool) {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        // The caller decides about colours, since it may write to something other than a terminal.
        if coloured {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.style_text_only();
        table.set_header(self.head.iter().map(|it| Cell::new(it).add_attribute(Attribute::Bold)));
        for row in &self.rows {
            table.add_row(row.iter().map(|text| match Meaning::of(text) {
                Some(meaning) => Cell::new(text).fg(meaning.into()),
                None => Cell::new(text),
            }));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, GAP));
        }
        for line in table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
}

/// Whether a word is good or bad news, if it deserves a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    Good,
    Passing,
    Bad,
}

impl Meaning {
    /// For a cell with a state or the outcome of a request.
    pub(crate) fn of(cell: &str) -> Option<Self> {
        match cell {
            "ready" | "serving" | "alive" | "served" => Some(Self::Good),
            "starting" | "stopping" | "draining" | "drained" | "suspect" => Some(Self::Passing),
            "wait" | "waited" | "shown a page" => Some(Self::Passing),
            "failed" | "gone" | "unlinked" | "no answer" | COLD_AFTER_A_FAILURE => Some(Self::Bad),
            "refuse" | "refused" | "problem" | "cut-off" | "broke off" => Some(Self::Bad),
            _ => None,
        }
    }
}

impl From<Meaning> for Color {
    fn from(meaning: Meaning) -> Self {
        match meaning {
            Meaning::Good => Self::DarkGreen,
            Meaning::Passing => Self::DarkYellow,
            Meaning::Bad => Self::DarkRed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(rows: &[[&str; 3]]) -> String {
        let mut columns = Columns::new(&["APP", "HERE", "ELSEWHERE"]);
        for row in rows {
            columns.row(row.iter().map(ToString::to_string).collect());
        }
        let mut text = String::new();
        columns.print(&mut text, false);
        text
    }

    #[test]
    fn wide_and_combining_characters_take_the_places_that_a_terminal_gives_them() {
        let expected = "\
APP       HERE   ELSEWHERE
書店      ready  peer-2
cafe\u{301}      cold   peer-3
bookshop  cold
";
        let rows = [
            ["書店", "ready", "peer-2"],
            ["cafe\u{301}", "cold", "peer-3"],
            ["bookshop", "cold", ""],
        ];
        assert_eq!(printed(&rows), expected);
    }

    #[test]
    fn control_characters_of_a_name_break_no_line_and_start_no_sequence() {
        let text = printed(&[["a\nb\r\u{1b}[2J\tc", "ready", "\u{9b}31m\u{2028}x"]]);
        assert_eq!(text.lines().count(), 2, "{text:?}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }
}
