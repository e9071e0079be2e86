//! Replaces `${NAME}` in a string by a variable of the peer's environment, and `$${` by `${`.

use toml::Spanned;
use toml::de::DeValue;

use super::Reader;

/// The variables of an environment.
type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces variables in every string of `value`, which is at `key` in the file.
///
/// The arguments of an app's `run` are left to the program that reads them, often a shell that has
/// variables of its own, above all `PORT`.
pub(super) fn expand(
    reader: &Reader<'_>,
    key: &str,
    value: &mut Spanned<DeValue<'_>>,
    variable: Variable<'_>,
) {
    let mut path = key.to_owned();
    if let ("app", DeValue::Array(apps)) = (key, value.get_mut()) {
        for app in apps.iter_mut() {
            let DeValue::Table(table) = app.get_mut() else { continue };
            let name = table.get("name").and_then(|name| name.get_ref().as_str());
            path.truncate(key.len());
            path.extend(name.into_iter().flat_map(|name| [".", name]));
            for (key, value) in table.iter_mut() {
                let filling = Filling { reader, variable, is_words: key.get_ref() == "run" };
                filling.entry(&mut path, key.get_ref(), value);
            }
        }
        return;
    }
    Filling { reader, variable, is_words: false }.fill(&mut path, value);
}

/// Walks through a value and replaces variables.
struct Filling<'a> {
    reader: &'a Reader<'a>,
    variable: Variable<'a>,
    /// The value is a command, in which only `$${` has a meaning here.
    is_words: bool,
}

impl Filling<'_> {
    fn entry(&self, path: &mut String, key: &str, value: &mut Spanned<DeValue<'_>>) {
        let length = path.len();
        path.push('.');
        path.push_str(key);
        self.fill(path, value);
        path.truncate(length);
    }

    fn fill(&self, path: &mut String, value: &mut Spanned<DeValue<'_>>) {
        let span = value.span();
        match value.get_mut() {
            DeValue::String(text) if text.contains("${") => {
                if self.is_words {
                    *text = text.replace("$${", "${").into();
                    return;
                }
                match filled(text, self.variable) {
                    Ok(full) => *text = full.into(),
                    Err((what, remedy)) => {
                        let place = self.reader.place(span.start);
                        self.reader.report_at(Some(place), path.clone(), what, remedy);
                        self.reader.unknown.borrow_mut().push(place);
                    }
                }
            }
            DeValue::Array(items) => {
                for item in items.iter_mut() {
                    self.fill(path, item);
                }
            }
            DeValue::Table(table) => {
                for (key, value) in table.iter_mut() {
                    self.entry(path, key.get_ref(), value);
                }
            }
            _ => {}
        }
    }
}

/// `text` with each `${NAME}` replaced, or what is wrong with it and what to do.
fn filled(text: &str, variable: Variable<'_>) -> Result<String, (String, String)> {
    let mut full = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            full.push_str(before);
            full.push_str("${");
            rest = after;
            continue;
        }
        let named = after.split_once('}').filter(|(name, _)| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        });
        let Some((name, after)) = named else {
            let remedy = "write ${NAME}, where NAME is a variable of the peer's environment, or \
                          $${ where ${ itself is meant";
            return Err((format!("{text:?} has a ${{ without a name and a }}"), remedy.into()));
        };
        let Some(found) = variable(name) else {
            let remedy = format!(
                "set {name} where the peer is started, or write the value here; $${{ is written for \
                 ${{ itself"
            );
            return Err((format!("the variable {name} is not in the environment"), remedy));
        };
        full.push_str(before);
        // The value of a variable is taken as it is, `${` included.
        full.push_str(&found);
        rest = after;
    }
    full.push_str(rest);
    Ok(full)
}
