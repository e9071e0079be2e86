//! How the program ends when it fails.

use std::fmt;

/// How the program ends: its messages, and the exit status.
#[derive(Debug)]
pub struct Failure {
    /// One message for each mistake, with its remedy.
    pub messages: Vec<String>,
    /// 2 for wrong usage or configuration, 1 for everything else.
    pub status: u8,
}

impl Failure {
    /// The configuration, or the command line, has to be changed.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { messages: vec![message.to_string()], status: 2 }
    }

    /// The command was correct but failed.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self { messages: vec![message.to_string()], status: 1 }
    }

    /// All of them at once; wrong usage or configuration determines the status.
    pub(crate) fn together(failures: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self { messages: Vec::new(), status: 1 };
        for failure in failures {
            all.messages.extend(failure.messages);
            all.status = all.status.max(failure.status);
        }
        all
    }
}
