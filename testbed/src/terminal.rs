//! What a person reads: colour and redrawn lines on a terminal only.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

/// Standard output. A reader that has gone away is no error of ours, so writes cannot fail.
#[derive(Debug, Clone, Copy)]
pub struct Terminal {
    live: bool,
    colour: bool,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Terminal {
    /// Asks the environment what it can show; `NO_COLOR` is honoured.
    #[must_use]
    pub fn new() -> Self {
        let live = std::io::stdout().is_terminal();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { live, colour: live && wanted }
    }

    /// A whole line.
    pub fn line(&self, text: impl Display) {
        self.erase();
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    /// A line that the next one replaces; shown on a terminal only.
    pub fn passing(&self, text: impl Display) {
        if self.live {
            self.erase();
            let _ = write!(std::io::stdout(), "{text}");
            let _ = std::io::stdout().flush();
        }
    }

    /// Takes back a passing line.
    pub fn erase(&self) {
        if self.live {
            let _ = write!(std::io::stdout(), "\r\x1b[2K");
            let _ = std::io::stdout().flush();
        }
    }

    /// Bold.
    #[must_use]
    pub fn bold(&self, text: impl Display) -> String {
        self.styled("1", text)
    }

    /// Faint.
    #[must_use]
    pub fn faint(&self, text: impl Display) -> String {
        self.styled("2", text)
    }

    /// Green.
    #[must_use]
    pub fn green(&self, text: impl Display) -> String {
        self.styled("32", text)
    }

    /// Red.
    #[must_use]
    pub fn red(&self, text: impl Display) -> String {
        self.styled("1;31", text)
    }

    fn styled(&self, style: &str, text: impl Display) -> String {
        if self.colour { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_string() }
    }
}
