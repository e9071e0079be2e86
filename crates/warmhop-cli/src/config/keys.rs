//! Every key of a configuration: `docs/configuration.md` and the JSON schema for editors are made
//! from this table. A test compares it with the keys that the parser reads and the defaults that it
//! fills in.

mod table;

use std::fmt::Write;

use serde_json::{Map, Value, json};

use self::table::{KEYS, TABLES};

/// One key.
struct Key {
    /// The table that it is in, such as `http` or `app.ready`; empty at the top.
    table: &'static str,
    name: &'static str,
    kind: Kind,
    /// As TOML; in parentheses if it is no fixed value, and empty if the key is required.
    default: &'static str,
    /// Its meaning, and what raising it costs.
    meaning: &'static str,
}

/// The kind of a key's value.
enum Kind {
    Text,
    Texts,
    /// One string, or a list of them.
    TextOrTexts,
    /// Relative to the folder of the configuration.
    Path,
    /// One, or a list of them.
    Paths,
    /// An IP address and a port.
    Address,
    Addresses,
    Flag,
    /// A whole number from the first to the second.
    Number(u64, u64),
    /// A fraction of one.
    Fraction,
    /// A span of time from the first to the second.
    Span(&'static str, &'static str),
    /// A size from the first to the second.
    Size(&'static str, &'static str),
    OneOf(&'static [&'static str]),
    /// A table of strings whose keys the reader chooses.
    Variables,
    /// One status or several.
    Statuses,
    /// A boolean, or a list of names.
    FlagOrNames,
}

impl Kind {
    /// In words.
    fn words(&self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Texts => "list of texts".into(),
            Self::TextOrTexts => "text, or a list of texts".into(),
            Self::Path => "path".into(),
            Self::Paths => "path, or a list of two".into(),
            Self::Address => "address and port".into(),
            Self::Addresses => "list of addresses and ports".into(),
            Self::Flag => "`true` or `false`".into(),
            Self::Number(least, most) => format!("{least} to {most}"),
            Self::Fraction => "0.01 to 1".into(),
            Self::Span(least, most) => format!("span, {least} to {most}"),
            Self::Size(least, most) => format!("size, {least} to {most}"),
            Self::OneOf(values) => {
                let values: Vec<String> =
                    values.iter().map(|value| format!("`\"{value}\"`")).collect();
                values.join(" or ")
            }
            Self::Variables => "table of texts".into(),
            Self::Statuses => "200 to 599, or a list".into(),
            Self::FlagOrNames => "`true`, `false` or a list of names".into(),
        }
    }

    /// In the JSON schema. A string may name a variable of the environment instead.
    fn schema(&self) -> Value {
        let spelt = |pattern: &str| json!({ "type": "string", "pattern": format!("^({pattern}|.*\\$\\{{\\w+\\}}.*)$") });
        match self {
            Self::Text | Self::Path => json!({ "type": "string" }),
            Self::Paths => json!({ "anyOf": [
                { "type": "string" },
                { "type": "array", "items": { "type": "string" }, "minItems": 1, "maxItems": 2 },
            ] }),
            Self::Texts => json!({ "type": "array", "items": { "type": "string" } }),
            Self::TextOrTexts => json!({ "anyOf": [
                { "type": "string" },
                { "type": "array", "items": { "type": "string" }, "minItems": 1 },
            ] }),
            Self::Address => spelt(".+:[0-9]{1,5}"),
            Self::Addresses => json!({ "type": "array", "items": spelt(".+:[0-9]{1,5}") }),
            Self::Flag => json!({ "type": "boolean" }),
            Self::Number(least, most) => {
                json!({ "type": "integer", "minimum": least, "maximum": most })
            }
            Self::Fraction => json!({ "type": "number", "minimum": 0.01, "maximum": 1 }),
            Self::Span(..) => spelt("[0-9]+(ms|s|m|h|d)"),
            Self::Size(..) => spelt("[0-9]+ *(B|KiB|MiB|GiB)?"),
            Self::OneOf(values) => json!({ "enum": values }),
            Self::Variables => {
                json!({ "type": "object", "additionalProperties": { "type": "string" } })
            }
            Self::FlagOrNames => {
                let names = json!({ "type": "array", "items": { "type": "string" } });
                json!({ "anyOf": [{ "type": "boolean" }, names] })
            }
            Self::Statuses => {
                let one = json!({ "type": "integer", "minimum": 200, "maximum": 599 });
                json!({ "anyOf": [one, { "type": "array", "items": one }] })
            }
        }
    }
}

impl Key {
    /// Its default as a value, if that is always the same.
    fn fixed_default(&self) -> Option<toml::Value> {
        let text = Some(self.default).filter(|text| !text.is_empty() && !text.starts_with('('))?;
        toml::from_str::<toml::Table>(&format!("it = {text}")).ok()?.remove("it")
    }

    fn default_in_words(&self) -> String {
        match self.default.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
            Some(words) => words.to_owned(),
            None if self.default.is_empty() => "**required**".into(),
            None => format!("`{}`", self.default),
        }
    }
}

/// The reference of all keys, in Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         One TOML file describes one peer; `warmhop check FILE` validates it and prints it with every\n\
         default filled in. This page is made from the table that the program checks itself by\n\
         (`crates/warmhop-cli/src/config/keys/table.rs`).\n\n\
         * A **span** of time is a whole number and a unit: `250ms`, `30s`, `10m`, `1h`, `2d`. A **size**\n\
         \x20 is a number with `B`, `KiB`, `MiB` or `GiB`. A **path** is relative to the folder of the file.\n\
         * `${NAME}` is replaced by a variable of the peer's environment in every text but the words of an\n\
         \x20 app's `run`, which may be a shell's own; `$${` is `${` itself.\n\
         * Certificates and keys are read again when their files change. `warmhop reload` applies `[[app]]`,\n\
         \x20 `[admin] token`, `[mesh] refuse`, `[log] level` and how `[session]` keeps sessions (not its\n\
         \x20 endpoint, with its `ttl`, nor its cookie) while the peer serves; everything else takes a restart:\n\
         \x20 one peer after the other, and no session is lost.\n\
         * For editors: `warmhop check --schema > warmhop.schema.json`, and\n\
         \x20 `#:schema ./warmhop.schema.json` in the first line of a file (Taplo, Even Better TOML).\n",
    );
    for (table, heading, about) in TABLES {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n## {heading}\n\n{about}\n\n");
        text.push_str("| key | value | default | |\n| --- | --- | --- | --- |\n");
        for key in KEYS.iter().filter(|key| key.table == *table) {
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} |",
                key.name,
                key.kind.words(),
                key.default_in_words(),
                key.meaning
            );
        }
    }
    text
}

/// The schema of a configuration file (JSON Schema, draft 7), for editors.
#[must_use]
pub fn schema() -> Value {
    let mut root = table_schema("");
    root["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    root["title"] = json!("A warmhop peer");
    root
}

fn table_schema(table: &str) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in KEYS.iter().filter(|key| key.table == table) {
        let mut schema = key.kind.schema();
        schema["description"] = json!(key.meaning);
        if let Some(default) = key.fixed_default() {
            schema["default"] = json!(default);
        }
        if key.default.is_empty() {
            required.push(key.name);
        }
        properties.insert(key.name.into(), schema);
    }
    let prefix = if table.is_empty() { String::new() } else { format!("{table}.") };
    for (inner, _, about) in TABLES {
        let Some(name) = inner.strip_prefix(&prefix).filter(|name| !name.is_empty()) else {
            continue;
        };
        if name.contains('.') {
            continue;
        }
        let mut schema = table_schema(inner);
        schema["description"] = json!(about);
        let several = || json!({ "type": "array", "items": schema });
        let schema = match *inner {
            "app" => several(),
            // A table is allowed besides the modes that are one word.
            "app.session" => json!({ "anyOf": [properties["session"], schema] }),
            "app.match" => json!({ "anyOf": [schema, several()] }),
            _ => schema,
        };
        properties.insert(name.into(), schema);
    }
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "required": required,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::config::{Config, read};

    /// Every table, so that each of their keys is read.
    const ALL_TABLES: &str = "[peer]\nname = 'p'\n[http]\ntls = {}\n[mesh]\n[admin]\n[session]\n\
         cookie = {}\n[log]\n[run]\n[[app]]\nname = 'shop'\nrun = ['sh']\nmatch = {}\n\
         session = { by = {} }\n\
         ready = { path = '/' }\nalive = {}\nscale = {}\nwake = {}\nlimits = {}\nenv = {}\n";

    fn path(table: &str, name: &str) -> String {
        if table.is_empty() { name.into() } else { format!("{table}.{name}") }
    }

    #[test]
    fn every_key_that_is_read_is_documented_and_no_other() {
        // Errors do not matter: each key is read all the same.
        let _ = Config::parse(Path::new("/nowhere/warmhop.toml"), ALL_TABLES);
        let read: BTreeSet<String> = read::keys_looked_for()
            .into_iter()
            .map(|key| key.replacen("app.shop.", "app.", 1))
            .collect();
        let tables = TABLES.iter().map(|(table, ..)| (*table).to_owned());
        let documented: BTreeSet<String> = KEYS
            .iter()
            .map(|key| path(key.table, key.name))
            .chain(tables.filter(|table| !table.is_empty()))
            .collect();
        let missing: Vec<_> = read.difference(&documented).collect();
        assert!(missing.is_empty(), "add to config/keys/table.rs: {missing:?}");
        let surplus: Vec<_> = documented.difference(&read).collect();
        assert!(surplus.is_empty(), "nothing reads these of config/keys/table.rs: {surplus:?}");
    }

    #[test]
    fn every_default_is_the_one_that_is_filled_in() {
        let text = "[peer]\nname = 'p'\n[[app]]\nname = 'shop'\nrun = ['sh']\n\
                    ready = { path = '/' }\nalive = { path = '/' }\nconcurrency = 4\nscale = {}\n";
        let config = Config::parse(Path::new("/nowhere/warmhop.toml"), text).unwrap().0;
        let printed: toml::Table = toml::from_str(&config.to_string()).unwrap();
        for key in KEYS {
            let full = path(key.table, key.name);
            let mut at = Some(&toml::Value::Table(printed.clone())).cloned();
            for part in full.split('.') {
                at = at.and_then(|value| match value {
                    toml::Value::Array(items) => items.first()?.get(part).cloned(),
                    value => value.get(part).cloned(),
                });
            }
            if let Some(default) = key.fixed_default() {
                assert_eq!(at, Some(default), "{full}");
            } else {
                let is_in_words = key.default.is_empty() || key.default.starts_with('(');
                assert!(is_in_words, "{full}: {:?} is no TOML", key.default);
            }
        }
    }

    #[test]
    fn the_reference_in_the_documentation_is_the_one_that_is_made_here() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
        if std::env::var_os("WARMHOP_WRITE_DOCS").is_some() {
            std::fs::write(&file, markdown()).unwrap();
        }
        let written = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            written == markdown(),
            "docs/configuration.md lags behind; WARMHOP_WRITE_DOCS=1 cargo test -p warmhop-cli --lib keys"
        );
    }

    #[test]
    fn the_schema_knows_each_table_and_refuses_what_is_none() {
        let schema = schema();
        let at = |pointer: &str| schema.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(at("/properties/http/properties/reveal/type"), "boolean");
        assert_eq!(at("/properties/http/properties/reveal/default"), true);
        assert_eq!(at("/properties/app/type"), "array");
        assert_eq!(at("/properties/app/items/properties/ready/properties/path/type"), "string");
        assert_eq!(at("/properties/app/items/required"), json!(["name"]));
        assert_eq!(at("/properties/app/items/additionalProperties"), false);
    }
}
