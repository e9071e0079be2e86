//! `[log]`: where requests are logged, and which parts of them.

use super::Table;
use crate::config::{AccessTo, Log};

pub(super) fn read(root: &mut Table<'_>) -> Log {
    let mut log = Log::default();
    let Some(mut table) = root.table("log") else { return log };
    if let Some(field) = table.take("access") {
        log.access = match field.text() {
            Some("stderr") => Some(AccessTo::Stderr),
            // A user who writes it means the stream, and would search in vain for a file.
            Some("stdout" | "") => {
                field.report_found("\"stderr\" or a file, such as \"access.log\"");
                None
            }
            _ => {
                let file = field.path();
                let dir = file.as_ref().and_then(|file| file.parent());
                if let Some(missing) = dir.filter(|dir| !dir.exists()) {
                    field.warn(
                        format!("there is no folder {}", missing.display()),
                        "create it before the peer starts",
                    );
                }
                file.map(AccessTo::File)
            }
        };
    }
    log.access_format = table.one_of("access_format", &["text", "json"]);
    if let Some(query) = table.take("access_query").and_then(|field| field.boolean()) {
        log.access_query = query;
    }
    if let Some(level) = table.take("level").and_then(|field| field.checked(level)) {
        log.level = Some(level);
    }
    table.finish();
    log
}

fn level(text: &str) -> Result<String, String> {
    crate::host::log::check_level(text).map(|()| text.to_owned())
}
