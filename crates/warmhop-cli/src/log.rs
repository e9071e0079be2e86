//! What the peer tells its operator while it runs: lines on standard error.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::journal::Journal;

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people; coloured on a terminal.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// What is logged where `RUST_LOG` does not say: this peer's doings and its apps' output,
/// and of the libraries below only what needs attention.
const DEFAULT_FILTER: &str = "warn,warmhop=info,warmhop_cli=info,warmhop_core=info";

/// Sends the program's events to standard error from now on, and keeps the newest.
///
/// # Errors
/// What is wrong with `RUST_LOG`.
pub fn start(format: Format) -> Result<Journal, String> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|error| {
            format!("RUST_LOG={text:?} is not a log filter ({error}); try RUST_LOG=info")
        })?,
        _ => EnvFilter::new(DEFAULT_FILTER),
    };
    let journal = Journal::default();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // A full disk or a collector that went away costs lines. Telling of it would have to be
        // written to the same place, and what fails there panics in whichever task logs.
        .log_internal_errors(false);
    let both = tracing_subscriber::registry().with(filter).with(journal.clone());
    match format {
        Format::Text => both.with(lines.with_ansi(is_coloured(&std::io::stderr()))).init(),
        Format::Json => both.with(lines.json().flatten_event(true)).init(),
    }
    Ok(journal)
}

/// Whether `stream` is to be coloured: a terminal that can, and no wish against it
/// (<https://no-color.org>).
#[must_use]
pub fn is_coloured(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && !is_dumb && !set("NO_COLOR")
}
