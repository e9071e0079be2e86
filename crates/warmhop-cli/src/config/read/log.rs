//! `[log]`: where requests are told, and what of them.

use super::Table;
use crate::config::{AccessTo, Log};

pub(super) fn read(root: &mut Table<'_>) -> Log {
    let mut log = Log::default();
    let Some(mut table) = root.table("log") else { return log };
    if let Some(field) = table.take("access") {
        log.access = match field.text() {
            Some("stderr") => Some(AccessTo::Stderr),
            // Whoever writes it means the stream, and would look for a file in vain.
            Some("stdout" | "") => {
                field.report_found("\"stderr\" or a file, such as \"access.log\"");
                None
            }
            _ => field.path().map(AccessTo::File),
        };
    }
    table.set_enum("access_format", &["text", "json"], &mut log.access_format);
    if let Some(query) = table.take("access_query").and_then(|field| field.boolean()) {
        log.access_query = query;
    }
    table.finish();
    log
}
