//! Makes text from elsewhere safe for a terminal to show.

/// Removes everything that a terminal would obey, and invisible characters that change how their
/// neighbours are read.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_format(c) { '\u{fffd}' } else { c }).collect()
}

/// A line that an app printed: without the colours and cursor movements meant for its own terminal,
/// and then [`clean`].
#[must_use]
pub fn printed(line: &str) -> String {
    // All control characters go with the sequences, but a tab separates two words.
    clean(&strip_ansi_escapes::strip_str(line.replace('\t', "    ")))
}

/// The characters of the general category Cf (Unicode 16), and the two that separate lines and
/// paragraphs: they turn the direction of what follows, or hide within a name.
fn is_format(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{600}'..='\u{605}'
            | '\u{61c}'
            | '\u{6dd}'
            | '\u{70f}'
            | '\u{890}'..='\u{891}'
            | '\u{8e2}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{110bd}'
            | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0001}'..='\u{e007f}'
    )
}
