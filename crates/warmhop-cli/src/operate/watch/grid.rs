//! A table on a page of `status --watch`.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::widgets::{Cell, Row, Table, TableState};
use unicode_width::UnicodeWidthStr;

use super::fit::{GAP, Shrinks, widths};
use crate::operate::columns::Meaning;
use crate::operate::show::clean;

/// One cell, and whether it is good or bad news.
pub(super) struct Text {
    text: String,
    meaning: Option<Meaning>,
}

impl Text {
    pub(super) fn meaning(text: impl Into<String>, meaning: Option<Meaning>) -> Self {
        Self { text: clean(&text.into()), meaning }
    }
}

/// A cell whose own text determines its meaning, if it has any.
impl<T: Into<String>> From<T> for Text {
    fn from(text: T) -> Self {
        let text = text.into();
        let meaning = Meaning::of(&text);
        Self::meaning(text, meaning)
    }
}

/// The style of good or bad news, on a terminal that shows colours.
pub(super) fn style(meaning: Option<Meaning>, coloured: bool) -> Style {
    match meaning.filter(|_| coloured) {
        Some(Meaning::Good) => Style::new().fg(Color::Green),
        Some(Meaning::Passing) => Style::new().fg(Color::Yellow),
        Some(Meaning::Bad) => Style::new().fg(Color::Red),
        None => Style::new(),
    }
}

/// Rows under a header; the most important column comes first.
pub(super) struct Grid {
    columns: Vec<(&'static str, Shrinks)>,
    rows: Vec<Vec<Text>>,
}

/// Where the parts of a grid are on the terminal.
pub(super) struct Drawn {
    /// The first visible row.
    first: usize,
    area: Rect,
    /// The start of each visible column, and its width.
    columns: Vec<(u16, u16)>,
}

impl Grid {
    pub(super) fn new(columns: &[(&'static str, Shrinks)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: Vec<Text>) {
        self.rows.push(cells);
    }

    /// Draws as many rows as fit, with the selected one among them.
    pub(super) fn draw(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        coloured: bool,
        chosen: Option<usize>,
    ) -> Drawn {
        let wanted: Vec<(Shrinks, usize)> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, (head, shrinks))| {
                let cells = self.rows.iter().filter_map(|row| row.get(at));
                let widest = cells.map(|cell| cell.text.width()).max().unwrap_or(0);
                (*shrinks, widest.max(head.width()))
            })
            .collect();
        let widths = widths(&wanted, area.width.into());
        let shown = |text: &str, at: usize| {
            let (_, shrinks) = self.columns[at];
            shrinks.cut(text, widths[at])
        };
        let head = (0..widths.len()).map(|at| Cell::from(shown(self.columns[at].0, at)));
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let rows = self.rows.iter().map(|row| {
            Row::new(row.iter().take(widths.len()).enumerate().map(|(at, cell)| {
                Cell::from(shown(&cell.text, at)).style(style(cell.meaning, coloured))
            }))
        });
        let lengths: Vec<u16> =
            widths.iter().map(|it| u16::try_from(*it).unwrap_or(u16::MAX)).collect();
        let gap = u16::try_from(GAP).unwrap_or(1);
        let table = Table::new(rows, lengths.iter().copied().map(Constraint::Length))
            .header(Row::new(head).style(bold))
            .column_spacing(gap)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let mut state = TableState::new().with_selected(chosen);
        frame.render_stateful_widget(table, area, &mut state);
        let mut at = area.x;
        let columns = lengths.iter().map(|width| {
            let begins = at;
            at = at.saturating_add(width.saturating_add(gap));
            (begins, *width)
        });
        Drawn { first: state.offset(), area, columns: columns.collect() }
    }
}

impl Drawn {
    /// Where the cell of a row is, if it is visible.
    pub(super) fn cell(&self, row: usize, column: usize) -> Option<Rect> {
        let (x, width) = *self.columns.get(column)?;
        let below_head = u16::try_from(row.checked_sub(self.first)?).ok()?.checked_add(1)?;
        let y = self.area.y.checked_add(below_head)?;
        (y < self.area.bottom()).then_some(Rect { x, y, width, height: 1 })
    }
}
