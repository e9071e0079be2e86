//! Fits text into a line of a terminal, counted in the places that each character takes there.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// The space between two columns.
pub(super) const GAP: usize = 2;

/// The first characters of a text, in at most `columns` places.
fn first(text: impl Iterator<Item = char>, columns: usize) -> String {
    let mut left = columns;
    let fits = |c: &char| {
        let Some(rest) = left.checked_sub(c.width().unwrap_or(0)) else { return false };
        left = rest;
        true
    };
    text.take_while(fits).collect()
}

/// At most `columns` places of a text; the end of a longer one is left out.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut kept = first(text.chars(), columns.saturating_sub(1));
    if columns > 0 {
        kept.push('…');
    }
    kept
}

/// The same, with both ends kept: names and paths often differ only in their last part.
fn cut_in_the_middle(text: &str, columns: usize) -> String {
    if text.width() <= columns || columns < 3 {
        return cut(text, columns);
    }
    let end = (columns - 1) / 2;
    let begin = first(text.chars(), columns - 1 - end);
    let end: Vec<char> = first(text.chars().rev(), end).chars().collect();
    begin.chars().chain(['…']).chain(end.into_iter().rev()).collect()
}

/// How a column shrinks if a line is too short for all of it.
#[derive(Clone, Copy)]
pub(super) enum Shrinks {
    /// Not at all: it is shown whole or left out.
    Never,
    /// In the middle of its cells, down to so many places.
    Middle(usize),
    /// At the end of its cells, down to so many places.
    End(usize),
}

impl Shrinks {
    fn least_of(self, width: usize) -> usize {
        match self {
            Self::Never => width,
            Self::Middle(least) | Self::End(least) => least.min(width),
        }
    }

    pub(super) fn cut(self, text: &str, columns: usize) -> String {
        match self {
            Self::Middle(_) => cut_in_the_middle(text, columns),
            Self::Never | Self::End(_) => cut(text, columns),
        }
    }
}

/// The widths of columns that want so much, within `room` places: the most important come first,
/// and those at the end that do not fit are left out.
pub(super) fn widths(wanted: &[(Shrinks, usize)], room: usize) -> Vec<usize> {
    let taken = |widths: &[usize]| {
        widths.iter().map(|width| width + GAP).sum::<usize>().saturating_sub(GAP)
    };
    let mut widths: Vec<usize> =
        wanted.iter().map(|(shrinks, width)| shrinks.least_of(*width)).collect();
    while widths.len() > 1 && taken(&widths) > room {
        widths.pop();
    }
    // The remaining room goes to all columns that shrank, in turn.
    let mut left = room.saturating_sub(taken(&widths));
    while left > 0 && widths.iter().zip(wanted).any(|(width, (_, wanted))| width < wanted) {
        for (width, (_, wanted)) in widths.iter_mut().zip(wanted) {
            if *width < *wanted && left > 0 {
                *width += 1;
                left -= 1;
            }
        }
    }
    if let [only] = &mut widths[..] {
        *only = (*only).min(room);
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_too_short_shrinks_what_may_and_then_drops_its_last_columns() {
        let cells = [
            ("tenant-of-acme-eu", Shrinks::Middle(9)),
            ("ready", Shrinks::Never),
            ("the only one", Shrinks::End(6)),
        ];
        let line = |room| {
            let wanted: Vec<_> = cells.iter().map(|(it, shrinks)| (*shrinks, it.width())).collect();
            let shown = cells.iter().zip(widths(&wanted, room));
            shown
                .map(|((it, shrinks), width)| shrinks.cut(it, width))
                .collect::<Vec<_>>()
                .join("  ")
        };
        for (room, expected) in [
            (200, "tenant-of-acme-eu  ready  the only one"),
            (38, "tenant-of-acme-eu  ready  the only one"),
            (32, "tenant…cme-eu  ready  the only …"),
            (24, "tena…e-eu  ready  the o…"),
            (23, "tenant-o…acme-eu  ready"),
            (16, "tena…e-eu  ready"),
            (15, "tenant-…acme-eu"),
            (2, "t…"),
        ] {
            assert_eq!(line(room), expected, "within {room}");
        }
    }

    #[test]
    fn a_wide_character_is_kept_whole_or_not_at_all() {
        assert_eq!(cut("書店書店", 8), "書店書店");
        assert_eq!(cut("書店書店", 7), "書店書…");
        assert_eq!(cut("書店書店", 6), "書店…");
        assert_eq!(cut_in_the_middle("書店-東京", 7), "書…京");
        assert_eq!(cut("cafe\u{301}s", 4), "caf…");
    }
}
