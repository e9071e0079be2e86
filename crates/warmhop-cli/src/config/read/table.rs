//! A TOML table whose keys are taken one by one: each value with its key and its place in the file,
//! and a problem for each value that is wrong and each key that nothing reads.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::host;
use crate::config::{Place, Problem, duration_from, duration_text, memory};

/// The text with its problems and the places of its keys.
pub(super) struct Reader<'a> {
    pub(super) file: &'a Path,
    pub(super) folder: PathBuf,
    pub(super) text: &'a str,
    pub(super) problems: RefCell<Vec<Problem>>,
    pub(super) places: RefCell<BTreeMap<String, Place>>,
    /// The strings that name a variable which is not set. Nobody knows what they should have been,
    /// so no other problem is reported for them.
    pub(super) unknown: RefCell<Vec<Place>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str) -> Self {
        let folder =
            file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
        Self {
            file,
            folder,
            text,
            problems: RefCell::default(),
            places: RefCell::default(),
            unknown: RefCell::default(),
        }
    }

    pub(super) fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    pub(super) fn report(
        &self,
        span: Option<Range<usize>>,
        key: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.report_at(span.map(|span| self.place(span.start)), key, what, remedy);
    }

    pub(super) fn report_at(
        &self,
        place: Option<Place>,
        key: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(place, key.into(), what.into(), remedy.into(), false);
    }

    pub(super) fn warn(
        &self,
        span: Option<Range<usize>>,
        key: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let place = span.map(|span| self.place(span.start));
        self.add(place, key.into(), what.into(), remedy.into(), true);
    }

    pub(super) fn add(
        &self,
        place: Option<Place>,
        key: String,
        what: String,
        remedy: String,
        is_warning: bool,
    ) {
        if place.is_some_and(|place| self.unknown.borrow().contains(&place)) {
            return;
        }
        let file = self.file.to_path_buf();
        let problem = Problem { file, place, key, what, remedy, is_warning };
        self.problems.borrow_mut().push(problem);
    }

    /// In the order of the file; problems without a place come last.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| (problem.place.is_none(), problem.place));
        problems
    }
}

/// A table whose keys are taken one by one; keys left at the end are unknown.
pub(super) struct Table<'a> {
    pub(super) reader: &'a Reader<'a>,
    pub(super) path: String,
    pub(super) span: Range<usize>,
    pub(super) entries: &'a DeTable<'a>,
    pub(super) known: Vec<&'static str>,
}

impl<'a> Table<'a> {
    pub(super) fn root(reader: &'a Reader<'a>, entries: &'a DeTable<'a>) -> Self {
        Self { reader, path: String::new(), span: 0..0, entries, known: Vec::new() }
    }

    pub(super) fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub(super) fn field(&self, name: &str, value: &'a Spanned<DeValue<'a>>) -> Field<'a> {
        let key = self.key(name);
        self.reader.places.borrow_mut().insert(key.clone(), self.reader.place(value.span().start));
        Field { reader: self.reader, key, span: value.span(), value: value.get_ref() }
    }

    pub(super) fn take(&mut self, name: &'static str) -> Option<Field<'a>> {
        self.known.push(name);
        self.entries.get(name).map(|value| self.field(name, value))
    }

    pub(super) fn table(&mut self, name: &'static str) -> Option<Table<'a>> {
        self.take(name)?.into_table()
    }

    pub(super) fn report_missing(&self, name: &str, what: &str, remedy: &str) {
        self.reader.report(Some(self.span.clone()), self.key(name), what, remedy);
    }

    pub(super) fn required_path(
        &mut self,
        name: &'static str,
        what: &str,
        remedy: &str,
    ) -> Option<PathBuf> {
        let Some(field) = self.take(name) else {
            self.report_missing(name, what, remedy);
            return None;
        };
        field.path_to_be()
    }

    pub(super) fn set_usize(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<usize>,
        to: &mut usize,
    ) {
        let Some(field) = self.take(name) else { return };
        let number = field
            .value
            .as_integer()
            .and_then(|integer| usize::from_str_radix(integer.as_str(), integer.radix()).ok())
            .filter(|number| bounds.contains(number));
        match number {
            Some(number) => *to = number,
            None => field.report_found(format!(
                "a whole number from {} to {}",
                bounds.start(),
                bounds.end()
            )),
        }
    }

    pub(super) fn set_size(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<u64>,
        to: &mut u64,
    ) {
        let Some(field) = self.take(name) else { return };
        let number = || {
            let integer = field.value.as_integer()?;
            u64::from_str_radix(integer.as_str(), integer.radix()).ok()
        };
        let size = field.value.as_str().map_or_else(number, memory::parse);
        match size.filter(|size| bounds.contains(size)) {
            Some(size) => *to = size,
            None => field.report_found(format!(
                "a size from {} to {}, such as \"256MiB\"",
                memory::text(*bounds.start()),
                memory::text(*bounds.end())
            )),
        }
    }

    pub(super) fn duration(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let field = self.take(name)?;
        let Some(span) = field.value.as_str().and_then(duration_from) else {
            field.report_found("a span of time such as \"250ms\", \"30s\", \"10m\" or \"1h\"");
            return None;
        };
        if !bounds.contains(&span) {
            let (least, most) = (duration_text(*bounds.start()), duration_text(*bounds.end()));
            field.report_found(format!("a span from {least} to {most}"));
            return None;
        }
        Some(span)
    }

    pub(super) fn set_duration(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<Duration>,
        to: &mut Duration,
    ) {
        if let Some(span) = self.duration(name, bounds) {
            *to = span;
        }
    }

    pub(super) fn set_enum<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        values: &[&str],
        to: &mut T,
    ) {
        if let Some(value) = self.one_of(name, values) {
            *to = value;
        }
    }

    /// The value of a key that takes one of `values`, if it is present and valid.
    pub(super) fn one_of<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        values: &[&str],
    ) -> Option<T> {
        let field = self.take(name)?;
        let value = field.value.as_str().filter(|text| values.contains(text)).and_then(|text| {
            let text: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
                serde::de::IntoDeserializer::into_deserializer(text);
            T::deserialize(text).ok()
        });
        if value.is_none() {
            let values: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
            field.report_found(values.join(" or "));
        }
        value
    }

    /// Reports every key that nothing read, with the most similar one that exists.
    pub(super) fn finish(self) {
        #[cfg(test)]
        looked_for::note(&self.path, &self.known);
        for (name, _) in self.entries.iter() {
            let unknown = name.get_ref().as_ref();
            if self.known.contains(&unknown) {
                continue;
            }
            let nearest = (self.known.iter())
                .map(|known| (strsim::damerau_levenshtein(known, unknown), *known))
                .min()
                .filter(|(distance, known)| *distance <= (known.len() / 3).max(2));
            let remedy = match nearest {
                Some((_, known)) => format!("did you mean {known}?"),
                None => {
                    let mut known = self.known.clone();
                    known.sort_unstable();
                    format!("the keys here are {}", known.join(", "))
                }
            };
            self.reader.report(
                Some(name.span()),
                self.key(unknown),
                "there is no such key",
                remedy,
            );
        }
    }
}

/// One value with its key and place.
pub(super) struct Field<'a> {
    pub(super) reader: &'a Reader<'a>,
    pub(super) key: String,
    pub(super) span: Range<usize>,
    pub(super) value: &'a DeValue<'a>,
}

impl<'a> Field<'a> {
    pub(super) fn report(&self, what: impl Into<String>, remedy: impl Into<String>) {
        self.reader.report(Some(self.span.clone()), self.key.clone(), what, remedy);
    }

    /// The path of a file that the peer needs, and that may be on another machine.
    pub(super) fn path_to_be(&self) -> Option<PathBuf> {
        let path = self.path()?;
        if !path.exists() {
            self.warn(
                format!("there is no {}", path.display()),
                "put it there before the peer runs",
            );
        }
        Some(path)
    }

    pub(super) fn warn(&self, what: impl Into<String>, remedy: impl Into<String>) {
        self.reader.warn(Some(self.span.clone()), self.key.clone(), what, remedy);
    }

    pub(super) fn report_found(&self, expected: impl fmt::Display) {
        self.report(format!("{} is not valid", self.found()), format!("expected {expected}"));
    }

    /// The value for a message: a scalar itself, or else its kind. A text with variables is shown as it is
    /// in the file, since their values may be secrets.
    pub(super) fn found(&self) -> String {
        let in_file = self.reader.text.get(self.span.clone()).unwrap_or_default();
        match self.value {
            DeValue::String(_) if in_file.contains("${") => in_file.chars().take(64).collect(),
            DeValue::String(text) => format!("{:?}", text.chars().take(64).collect::<String>()),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            DeValue::Boolean(value) => value.to_string(),
            DeValue::Datetime(at) => at.to_string(),
            DeValue::Array(_) => "an array".into(),
            DeValue::Table(_) => "a table".into(),
        }
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.report_found("a text in quotes");
        }
        text
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let value = self.value.as_bool();
        if value.is_none() {
            self.report_found("true or false");
        }
        value
    }

    /// A fraction of one, as whole percents.
    pub(super) fn percent(&self) -> Option<u32> {
        let number = match self.value {
            DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
            DeValue::Integer(number) => number.as_str().parse::<f64>().ok(),
            _ => None,
        };
        match number {
            Some(part) if (0.01..=1.0).contains(&part) => Some((part * 100.0).round() as u32),
            _ => {
                self.report_found("a part of one, 0.01 to 1, such as 0.8");
                None
            }
        }
    }

    pub(super) fn path(&self) -> Option<PathBuf> {
        self.text().map(|text| self.reader.folder.join(text))
    }

    pub(super) fn checked<T>(&self, check: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text()?;
        match check(text) {
            Ok(value) => Some(value),
            Err(remedy) => {
                self.report(format!("{} is not valid", self.found()), remedy);
                None
            }
        }
    }

    pub(super) fn parsed<T: std::str::FromStr<Err = warmhop::ids::InvalidId>>(&self) -> Option<T> {
        self.checked(|text| {
            text.parse().map_err(|invalid: T::Err| format!("expected {}", invalid.expected))
        })
    }

    pub(super) fn socket_addr(&self) -> Option<SocketAddr> {
        self.checked(|text| {
            text.parse().map_err(|_| {
                "expected an IP address and a port, such as \"127.0.0.1:8081\" or \"[::1]:8081\"".into()
            })
        })
    }

    pub(super) fn seed(&self) -> Option<String> {
        self.checked(|text| {
            let remedy = "expected HOST:PORT, such as \"10.0.0.1:7001\" or \"peers.internal:7001\"";
            let (name, port) = text.rsplit_once(':').ok_or(remedy)?;
            let port_fits = port.parse::<u16>().is_ok_and(|port| port != 0);
            if port_fits && host(name).is_ok() { Ok(text.to_owned()) } else { Err(remedy.into()) }
        })
    }

    pub(super) fn array(&self) -> Option<Vec<Field<'a>>> {
        self.array_of("an array: [\"…\", \"…\"]")
    }

    pub(super) fn array_of(&self, expected: &str) -> Option<Vec<Field<'a>>> {
        let Some(items) = self.value.as_array() else {
            self.report_found(expected);
            return None;
        };
        let field = |(at, value): (usize, &'a Spanned<DeValue<'a>>)| {
            let key = format!("{}[{at}]", self.key);
            let place = self.reader.place(value.span().start);
            self.reader.places.borrow_mut().insert(key.clone(), place);
            Field { reader: self.reader, key, span: value.span(), value: value.get_ref() }
        };
        Some(items.iter().enumerate().map(field).collect())
    }

    pub(super) fn into_table(self) -> Option<Table<'a>> {
        let Some(entries) = self.value.as_table() else {
            self.report_found(format!("a table: [{}]", self.key));
            return None;
        };
        Some(Table {
            reader: self.reader,
            path: self.key,
            span: self.span,
            entries,
            known: Vec::new(),
        })
    }
}

#[cfg(test)]
/// Records which keys the parser reads, whatever the file contains.
#[cfg(test)]
pub(super) mod looked_for {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    thread_local! {
        static KEYS: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
    }

    pub(super) fn note(table: &str, names: &[&str]) {
        let prefix = if table.is_empty() { String::new() } else { format!("{table}.") };
        KEYS.with_borrow_mut(|keys| {
            keys.extend(names.iter().map(|name| format!("{prefix}{name}")));
        });
    }

    pub(in crate::config::read) fn take() -> BTreeSet<String> {
        KEYS.take()
    }
}
