//! How the program ends where it fails.

use std::fmt;

/// How the program ends: its messages, and the exit status.
#[derive(Debug)]
pub struct Failure {
    /// One message for each thing that is wrong, with its remedy.
    pub messages: Vec<String>,
    /// 2 for wrong usage or configuration, 1 for everything else.
    pub status: u8,
}

impl Failure {
    /// The configuration, or the way the program was called, has to be changed.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { messages: vec![message.to_string()], status: 2 }
    }

    /// The request was correct and did not work.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self { messages: vec![message.to_string()], status: 1 }
    }

    /// All of them at once; wrong usage or configuration outweighs the rest.
    pub(crate) fn together(failures: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self { messages: Vec::new(), status: 1 };
        for failure in failures {
            all.messages.extend(failure.messages);
            all.status = all.status.max(failure.status);
        }
        all
    }
}
