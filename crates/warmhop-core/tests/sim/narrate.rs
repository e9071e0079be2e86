//! The trace of a run: every line of it, so that two runs can be compared, and the last lines about
//! the session that failed, for people.

use std::collections::VecDeque;

use warmhop_core::ids::SessionId;

/// How many lines are kept, and how many are printed.
const KEPT_MAX: usize = 200_000;
const PRINTED_MAX: usize = 260;
const LINE_CHARS_MAX: usize = 420;

pub(crate) struct Narrator {
    listening: bool,
    /// Lines that were not kept, for want of room.
    dropped: usize,
    lines: VecDeque<(u64, Option<SessionId>, String)>,
    /// The session that failed.
    pub(crate) about: Option<SessionId>,
}

impl Narrator {
    /// Without listeners no line is put into words, which is most of a run's cost.
    pub(crate) fn new(listening: bool) -> Self {
        Self { listening, dropped: 0, lines: VecDeque::new(), about: None }
    }

    pub(crate) fn note(
        &mut self,
        now: u64,
        about: Option<SessionId>,
        line: impl FnOnce() -> String,
    ) {
        if !self.listening {
            return;
        }
        let line = line();
        if self.lines.len() == KEPT_MAX {
            self.lines.pop_front();
            self.dropped += 1;
        }
        self.lines.push_back((now, about, line));
    }

    /// Every line, with its time. Nothing where nobody listens, or where there were too many.
    pub(crate) fn trace(&self) -> Vec<String> {
        if self.dropped > 0 {
            return Vec::new();
        }
        self.lines.iter().map(|(now, _, line)| format!("{now} {line}")).collect()
    }

    /// The last lines about the session that failed and about no session at all.
    pub(crate) fn story(&self) -> String {
        let wanted = |about: &Option<SessionId>| {
            self.about.is_none() || about.is_none() || *about == self.about
        };
        let shown: Vec<_> = self.lines.iter().filter(|(_, about, _)| wanted(about)).collect();
        let printed = std::env::var("TRACE_LINES").ok().and_then(|text| text.parse().ok());
        let from = shown.len().saturating_sub(printed.unwrap_or(PRINTED_MAX));
        let mut story = String::new();
        for (now, _, line) in &shown[from..] {
            let line: String = line.chars().take(LINE_CHARS_MAX).collect();
            story.push_str(&format!("{:>9.3} {line}\n", *now as f64 / 1000.0));
        }
        story
    }
}
