//! `[[app]] session`: what keeps an app's sessions, and by which ids pinned ones are known.

use warmhop::config::{AppPolicy, OWN_ID_NAME_BYTES_MAX, OwnId, OwnIdPath, SessionMode};

use super::Table;

/// One word, or a table.
pub(super) fn read(table: &mut Table<'_>, policy: &mut AppPolicy) {
    let is_table =
        table.entries.get("session").is_some_and(|value| value.get_ref().as_table().is_some());
    if !is_table {
        table.set_enum("session", &["portable", "pinned", "none"], &mut policy.session);
        return;
    }
    let Some(mut inner) = table.table("session") else { return };
    policy.session = SessionMode::Pinned;
    match inner.take("pinned") {
        None => inner.report_missing(
            "pinned",
            "the table does not say who keeps the sessions",
            "add pinned = true, or write one word: session = \"portable\"",
        ),
        Some(field) => {
            if field.boolean() == Some(false) {
                field.report(
                    "a table is for pinned sessions",
                    "write pinned = true, or one word: session = \"portable\"",
                );
            }
        }
    }
    policy.session_by = inner.table("by").map(read_by).unwrap_or_default();
    inner.finish();
}

fn read_by(mut by: Table<'_>) -> Vec<OwnId> {
    let names_none = !["header", "query", "cookie", "path"].into_iter().any(|key| by.has(key));
    let header = by.take("header").and_then(|field| field.checked(header));
    let query = by.take("query").and_then(|field| field.checked(query));
    let cookie = by.take("cookie").and_then(|field| field.checked(cookie));
    let path = by.take("path").and_then(|field| field.checked(path));
    if names_none {
        by.reader.report(
            Some(by.span.clone()),
            by.path.clone(),
            "no place is named where the id is",
            "name one: { header = \"Mcp-Session-Id\" }, { query = \"sid\" }, { cookie = \"sid\" } or \
             { path = \"/gradio_api/call/*/{event_id}\" }",
        );
    }
    by.finish();
    let header = header.map(OwnId::Header);
    let others = [query.map(OwnId::Query), cookie.map(OwnId::Cookie), path.map(OwnId::Path)];
    header.into_iter().chain(others.into_iter().flatten()).collect()
}

/// A field that a peer passes on unchanged.
fn header(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    if name == "cookie" || name == "set-cookie" {
        return Err("name the cookie: by = { cookie = \"sid\" }".into());
    }
    let is_ours = name.starts_with("warmhop-") || name.starts_with("x-forwarded-");
    let is_hops = ["connection", "te", "upgrade", "transfer-encoding", "content-length", "host"];
    if !is_token(&name) || is_ours || is_hops.contains(&&*name) {
        return Err("expected the name of a field of the app's own, such as Mcp-Session-Id".into());
    }
    Ok(name)
}

fn query(text: &str) -> Result<String, String> {
    let fits = (1..=OWN_ID_NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"&=#?\"\\".contains(&byte));
    if fits { Ok(text.to_owned()) } else { Err("expected a parameter's name, such as sid".into()) }
}

fn cookie(text: &str) -> Result<String, String> {
    if is_token(text) {
        Ok(text.to_owned())
    } else {
        Err("expected a cookie's name, such as sid".into())
    }
}

fn path(text: &str) -> Result<OwnIdPath, String> {
    OwnIdPath::new(text).map_err(|wrong| format!("{wrong}, as in /gradio_api/call/*/{{event_id}}"))
}

fn is_token(text: &str) -> bool {
    let is_in = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=OWN_ID_NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_in)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn parsed(session: &str) -> Result<Config, String> {
        let text =
            format!("[peer]\nname = 'p'\n[[app]]\nname = 'x'\nrun = ['sh']\nsession = {session}");
        Config::parse(Path::new("/nowhere/warmhop.toml"), &text)
            .map(|(config, _)| config)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn an_id_of_the_apps_own_is_read_and_printed() {
        for (session, by) in [
            ("{ pinned = true, by = { header = 'Mcp-Session-Id' } }", &["mcp-session-id"][..]),
            ("{ pinned = true, by = { query = 'session_hash' } }", &["session_hash"]),
            ("{ pinned = true, by = { cookie = 'connect.sid' } }", &["connect.sid"]),
            ("{ pinned = true, by = { path = '/call/*/{event_id}' } }", &["/call/*/{event_id}"]),
            ("{ pinned = true, by = { path = '/{a}', query = 'b' } }", &["b", "/{a}"]),
            ("{ pinned = true }", &[]),
            ("'pinned'", &[]),
        ] {
            let config = parsed(session).unwrap();
            let policy = &config.apps[0].spec.policy;
            assert_eq!(policy.session, SessionMode::Pinned, "{session}");
            let named: Vec<&str> = policy.session_by.iter().map(OwnId::name).collect();
            assert_eq!(named, by, "{session}");
            let printed = config.to_string();
            let again = Config::parse(Path::new("/nowhere/warmhop.toml"), &printed).unwrap().0;
            assert_eq!(again.apps[0].spec.policy, *policy, "{printed}");
        }
    }

    #[test]
    fn a_mistake_in_the_session_table_is_reported_with_its_place() {
        for (session, said) in [
            ("{ by = { query = 'sid' } }", ":6:11: app.x.session.pinned: the table does not say"),
            ("{ pinned = false }", ":6:22: app.x.session.pinned: a table is for pinned sessions"),
            ("{ pinned = true, by = {} }", ":6:33: app.x.session.by: no place is named"),
            (
                "{ pinned = true, by = { path = '/call' } }",
                ":6:42: app.x.session.by.path: \"/call\" is not valid; expected one segment in braces",
            ),
            (
                "{ pinned = true, by = { path = 'call/{id}' } }",
                "expected a path that begins with a slash and has no empty segment, as in /gradio_api",
            ),
            (
                "{ pinned = true, by = { header = 'Cookie' } }",
                "name the cookie: by = { cookie = \"sid\" }",
            ),
            ("{ pinned = true, by = { header = 'a b' } }", "expected the name of a field"),
            ("{ pinned = true, by = { query = 'a&b' } }", "expected a parameter's name"),
            ("{ pinned = true, by = { qury = 'a' } }", "did you mean query?"),
            ("7", "7 is not valid; expected \"portable\" or \"pinned\" or \"none\""),
        ] {
            let problems = parsed(session).unwrap_err();
            assert!(problems.contains(said), "{session}: {problems}");
        }
    }
}
